"""What a command costs before it does anything, measured: python benchmarks/startup.py [--runs N] [--json FILE]

help   processor time of `eci-sem --help`: at most 0.5 s. The baseline is an interpreter that does nothing; the same start with the
       library's heavy packages imported stands beside it, which is what a careless import would cost.

Prints what was measured, the limit, and PASS or FAIL; the exit status is 1 if it fails. The best of several runs counts.
"""
import resource
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import claim, finish, machine, options

LIMIT = 0.5 # seconds of processor time


def processor_seconds(command: list[str]) -> tuple[float, str]:
    "Processor time of a command and its children, and what it printed."
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, out

def main() -> int:
    args = options(__doc__, runs=(5, "runs of each command, the best of which counts")).parse_args()
    about = machine()
    main_of = "import sys; sys.argv = ['eci-sem', '--help']; from eci_sem.cli import main; sys.exit(main())"
    best = {}
    for name, code in (("nothing", "pass"), ("help", main_of), ("heavy", "import torch, sentence_transformers, pandas, matplotlib.pyplot")):
        found = [processor_seconds([sys.executable, "-c", code]) for _ in range(args.runs if name != "heavy" else 1)]
        best[name] = min(s for s, _ in found)
        if name == "help" and "reproduce" not in found[0][1]: print("eci-sem --help does not name its commands", file=sys.stderr); return 1
    claims = [claim("eci-sem --help, processor time", best["help"], LIMIT, True, f"best of {args.runs}; an empty interpreter {best['nothing']:.2f} s; the heavy packages alone {best['heavy']:.1f} s", "s")]
    return finish(dict(machine=about, claims=claims), args.json)


if __name__ == "__main__": sys.exit(main())
