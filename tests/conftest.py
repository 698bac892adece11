"""Shared by all tests: a cache of their own, no network, and where the public test collections are."""
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

# before anything imports transformers: no hub, and never the user's own cache
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")
# one for all processes of a run, so that a text is encoded, and a model converted, once; the process that made it removes it
MADE = None if os.environ.get("ECI_SEM_TEST_CACHE") else tempfile.mkdtemp(prefix="eci_sem-tests-")
if MADE: os.environ["ECI_SEM_TEST_CACHE"] = MADE
os.environ["ECI_SEM_CACHE"] = os.environ["ECI_SEM_TEST_CACHE"]

# a shell that starts the tests in the background has them, and all they start, ignore Ctrl-C, which some of them are about
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("ECI_SEM_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("the public test collections (../shared/data) are not on this machine")
    return folder


# files that take minutes, the slowest first: two processes share the files out in this order, so that none of these is left for the end
SLOW = ("test_experiments.py", "test_cluster.py", "test_fast.py", "test_endpoint.py", "test_runs.py", "test_miners.py", "test_encoders.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))


def pytest_unconfigure() -> None:
    if MADE: shutil.rmtree(MADE, ignore_errors=True)
