"""Every benchmark after the other: python benchmarks/run.py [--only NAME ...] [--results FILE]

Each script measures its claims against a named baseline in its own run, and fails loudly when its result is not the baseline's.
What they measured goes to benchmarks/results.json, whole or not at all, with the machine and the versions; the guide
nbs/guides/performance.ipynb shows it. What another kind of processor measured before stays beside it, under `elsewhere`: some claims
are about what a processor can do. The exit status is 1 if a claim failed, 2 if a script did not run to its end.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# name -> (script, arguments); in all about 17 minutes on 2 cores without matrix instructions for bfloat16. stream.py at its own default (10 million rows) takes 8 minutes more.
SCRIPTS = {
    "startup": ("startup.py", []), "encode": ("encode.py", []), "cache": ("cache.py", []), "score": ("score.py", []), "scale": ("scale.py", []), "miners": ("miners.py", []), "cluster": ("cluster.py", ["--toy", "--rows", "50000"]), "before and after": ("before_after.py", []),
    "stream": ("stream.py", ["--rows", "300000", "--megabytes", "200", "--lines", "300000"]),
}


def kind(machine: dict[str, Any]) -> tuple[str, str]:
    "What tells processors apart: clouds give several of them one name."
    return machine["cpu"], machine.get("instructions", "not recorded")

def elsewhere(before: dict[str, Any] | None, here: dict[str, Any]) -> list[dict[str, Any]]:
    "The last measurements of each other kind of processor, the latest first."
    if not before: return []
    last = [] if kind(before["machine"]) == kind(here) else [{k: before[k] for k in ("options", "seconds", "load", "machine", "claims") if k in before}]
    return last + [x for x in before.get("elsewhere", ()) if kind(x["machine"]) not in {kind(here), *(kind(m["machine"]) for m in last)}]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, metavar="NAME", help=f"some of them: {', '.join(SCRIPTS)}; the others' results stay as they are")
    parser.add_argument("--results", type=Path, default=HERE / "results.json", help="where the measurements go (default: beside this script)")
    args = parser.parse_args()
    from eci_sem.collection import write_text
    from common import machine
    before = json.loads(args.results.read_text(encoding="utf-8"))["scripts"] if args.results.is_file() else {}
    known = before if args.only else {}
    about, found, broken = machine(), {}, []
    for name in args.only or SCRIPTS:
        script, options = SCRIPTS[name]
        print(f"\n{script} {' '.join(options)}".rstrip(), flush=True)
        with tempfile.TemporaryDirectory() as tmp:
            result, start, load = Path(tmp, "result.json"), time.perf_counter(), os.getloadavg()[0]
            done = subprocess.run([sys.executable, str(HERE / script), *options, "--json", str(result)], cwd=HERE)
            seconds = time.perf_counter() - start
            # a script that found a claim broken has written what it measured; one that stopped in between has not
            if not result.is_file(): broken.append(name); print(f"{script} ended with status {done.returncode} and no result", file=sys.stderr); continue
            report = json.loads(result.read_text(encoding="utf-8"))
        found[name] = dict(script=script, options=options, seconds=round(seconds, 1), load=round(load, 1), machine=about, claims=report["claims"], **{k: v for k, v in report.items() if k not in ("machine", "claims")})
        if others := elsewhere(before.get(name), about): found[name]["elsewhere"] = others
    scripts = {name: (found[name] if name in found else known[name]) for name in SCRIPTS if name in found or name in known}
    if found: write_text(args.results, json.dumps(dict(scripts=scripts), indent=1, ensure_ascii=False) + "\n")
    claims = [c for x in found.values() for c in x["claims"]]
    failed = [c["name"] for c in claims if c["passed"] is False]
    print(f"\n{sum(c['passed'] is True for c in claims)} claims hold, {len(failed)} failed, {sum(c['passed'] is None for c in claims)} do not apply to this machine; {sum(x['seconds'] for x in found.values()):.0f} s" + (f"; failed: {'; '.join(failed)}" if failed else ""))
    return 2 if broken else int(bool(failed))


if __name__ == "__main__": sys.exit(main())
