"""A profile killed at random moments ends with the tables of one that was left alone: python benchmarks/kills.py [--profile smoke] [--kills 10] [--seed 0]

The profile runs once undisturbed, from an empty cache. Then it runs again, from another empty cache, and is killed with SIGKILL at seeded
random moments and started anew each time: by turns the runner alone is killed, as when a terminal goes away for good, and the runner with
every process that it has started, as when the power fails. When it gets through before its next kill, it starts over from an empty cache,
until all kills are done. At the end of each round: the tables are those of the undisturbed run byte for byte (but for those made of times
that the cell measures: these are there), no finished cell was run twice or lost, nothing half done is left, and no process goes on. The
exit status is 1 when one of these does not hold.

Two kills run in the tests; the ten on smoke take about seven times as long as smoke.
"""
import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from common import agreement

from eci_sem.profiles import Plan, plan
from eci_sem.results import compare_tables, finished


def start(given: argparse.Namespace, work: Path) -> subprocess.Popen:
    "The runner, in a process group of its own, with a cache of its own."
    work.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", "import sys; from eci_sem.cli import main; sys.exit(main())", "reproduce", "--profile", given.profile, "--root", given.root, "--runs", str(work / "runs")]
    with open(work / "log.txt", "ab") as log: return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "ECI_SEM_CACHE": str(work / "cache")}, start_new_session=True)


def processes(runner: subprocess.Popen) -> list[psutil.Process]:
    "What the runner has started, and what that has started."
    try: return psutil.Process(runner.pid).children(recursive=True)
    except psutil.NoSuchProcess: return []


def kill(runner: subprocess.Popen, whole: bool) -> list[psutil.Process]:
    "Kill the runner's group, or all; what was there to be killed or to end by itself."
    seen = processes(runner)
    os.killpg(runner.pid, signal.SIGKILL)
    for process in seen if whole else ():
        try: process.kill()
        except psutil.NoSuchProcess: pass
    runner.wait()
    return seen


def state(p: Plan, work: Path) -> tuple[dict[str, str], list[str]]:
    "Finished cells with the time when each was started, and what is half done."
    base = work / "runs" / p.profile
    done = {c.name: m["started"] for c in p.cells if (m := finished(base / c.folder, c.key))}
    parts = [*base.glob(".*.part"), *base.glob("*/.*.part")] # .<cell>-<12 digits of its key>.<random>.part
    return done, sorted(f.relative_to(base).as_posix().replace("/.", "/").lstrip(".").split(".")[0][:-13] for f in parts)


def wrong(p: Plan, quiet: Path, work: Path, before: dict[str, str], seen: list[psutil.Process]) -> list[str]:
    "What does not hold of a round that has come to its end."
    done, half = state(p, work)
    found, told = agreement(compare_tables(quiet / "runs" / p.profile, work / "runs" / p.profile))
    found += [f"{name}: was finished before a kill, and was {'run again' if name in done else 'lost'}" for name, started in before.items() if done.get(name) != started]
    found += [f"{name}: half done, and left behind" for name in half]
    _, alive = psutil.wait_procs(seen, timeout=60)
    found += [f"process {process.pid} goes on" for process in alive]
    if not found: print(f"      {told} of {len(done)} cells are those of the undisturbed run", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="smoke", help="a profile's name, or a .yaml file (default: smoke)")
    parser.add_argument("--kills", type=int, default=10, help="how many (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--root", default=".", help="the checkout (default: the current folder)")
    parser.add_argument("--work", help="an empty folder for runs and caches; it is kept (default: a temporary one)")
    given = parser.parse_args()
    p, rng = plan(given.profile, given.root), random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as temporary:
        work = Path(given.work or temporary).resolve()
        if work.exists() and any(work.iterdir()): parser.error(f"--work {given.work}: the folder is not empty")
        clock = time.monotonic()
        if start(given, quiet := work / "undisturbed").wait(): print((quiet / "log.txt").read_text()); print("the undisturbed run failed: nothing to compare with"); return 1
        length = time.monotonic() - clock
        print(f"undisturbed: {length:.0f} s, {len(p.cells)} cells", flush=True)
        kills, rounds, problems = 0, 0, []
        while kills < given.kills and not problems:
            rounds += 1
            here, before, seen = work / f"round-{rounds}", {}, []
            while True:
                runner, moment = start(given, here), rng.uniform(0, length) if kills < given.kills else None
                try: code = runner.wait(timeout=moment); break
                except subprocess.TimeoutExpired: kills += 1
                whole = kills % 2 == 0
                seen += kill(runner, whole)
                done, half = state(p, here)
                problems += [f"{name}: was finished before kill {kills}, and was run again or lost" for name, started in before.items() if done.get(name) != started]
                before = done
                print(f"kill {kills} of {given.kills}, {moment:.1f} s after a start, {'the runner and all it started' if whole else 'the runner alone'}: {len(done)} of {len(p.cells)} cells finished, under way: {', '.join(half) or 'none'}", flush=True)
            print(f"      round {rounds} came through", flush=True)
            if code: problems.append(f"round {rounds} ended with exit status {code}: {(here / 'log.txt').read_text()[-2000:]}")
            else: problems += wrong(p, quiet, here, before, seen)
        for problem in problems: print(f"FAIL  {problem}")
        if not problems: print(f"PASS  {kills} kills in {rounds} rounds changed nothing")
    return int(bool(problems))


if __name__ == "__main__": sys.exit(main())
