"""ECI_sem: rank hard-negative sources for dense retrieval before training."""
from importlib.metadata import PackageNotFoundError, version as _version

try:
    __version__ = _version("eci_sem")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
