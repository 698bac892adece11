"""`python -m eci_sem`: the command `eci-sem`."""
import sys

from eci_sem.cli import main

if __name__ == "__main__": sys.exit(main())
