"""What the benchmarks share: options, the clock, the machine, a claim in one line, and one layout for what --json writes."""
import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def options(doc: str | None, parts: Mapping[str, Any] | None = None, **numbers: tuple[Any, str]) -> argparse.ArgumentParser:
    "A parser with --json, --only for the parts, and a whole number for each of (default, what it is)."
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if parts: parser.add_argument("--only", choices=parts, help="one part of it")
    parser.add_argument("--json", metavar="FILE", help="write the measurements there as well")
    for name, (default, what) in numbers.items(): parser.add_argument(f"--{name.replace('_', '-')}", type=at_least_one, default=default, help=f"{what} (default: {default:,})")
    return parser

def at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1: raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least 1")
    return int(text)

def measured(parts: Mapping[str, Callable[[argparse.Namespace], list[dict[str, Any]]]], args: argparse.Namespace) -> int:
    "Every part that --only leaves, and the exit status."
    report = dict(machine=machine(), claims=[])
    for name, part in parts.items():
        if args.only in (None, name): report["claims"] += part(args)
    return finish(report, args.json)

def agreement(tables: Sequence[Any]) -> tuple[list[str], str]: # (what differs, how many were held against each other)
    "What `compare_tables` found, in words; tables made of measured times can't come out again and need only be there."
    same, timed = (sum(t.verdict == v for t in tables) for v in ("same", "measured"))
    problems = [f"{t.table}: {t.verdict} {t.detail}".rstrip() for t in tables if t.verdict not in ("same", "measured")]
    if not same and not problems: problems.append("no table can be compared: all of them are made of measured times")
    return problems, f"{same} tables" + f" (and {timed} of times, measured in each run)" * bool(timed)

def memory() -> float:
    "Memory of this process in MB: now where that can be told, else the most so far."
    try: return next(int(line.split()[1]) / 1e3 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    except (OSError, StopIteration): return peak()

def peak() -> float:
    "The most memory since `forget_peak`, in MB."
    try: return next(int(line.split()[1]) / 1e3 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)

def forget_peak() -> None:
    try: Path("/proc/self/clear_refs").write_text("5")
    except OSError: pass # then the peak is that of the whole process, loading included

def weighted(q: np.ndarray, p: np.ndarray, n: np.ndarray, rho: np.ndarray) -> np.ndarray:
    "Rows sqrt(w) r with the default factors, in plain numpy: the baseline of scoring."
    Q, P, R = (x.astype(np.float64) for x in (q, p, n))
    for x in (Q, P, R): x /= np.linalg.norm(x, axis=1, keepdims=True)
    m = np.einsum("ij,ij->i", Q, P) - np.einsum("ij,ij->i", Q, R)
    del Q
    P *= np.einsum("ij,ij->i", P, R)[:, None]
    R -= P
    del P
    R *= np.sqrt(1 / (1 + np.exp(np.abs(m) / 0.05)) * rho)[:, None]
    return R

WORDS = np.array("water house river night music paper stone light garden winter market letter engine forest island doctor bridge summer school window".split(), object)
def some_texts(rng: np.random.Generator, n: int, words: int) -> list[str]: return [f"{' '.join(WORDS[rng.integers(0, len(WORDS), words)])} {i}" for i in range(n)]

def timed(f: Callable[[], Any]) -> tuple[float, Any]:
    "Seconds and the result."
    start = time.perf_counter()
    result = f()
    return time.perf_counter() - start, result

def claim(name: str, value: float, limit: float, most: bool, what: str, unit: str = "", unless: str = "", of: Mapping[str, Any] | None = None) -> dict[str, Any]:
    "One line of the report: `most` says whether the limit is an upper one, `unless` why the claim does not apply here, `of` which stage of eci_sem.scaling was timed: stage, seconds, sizes. A value that is not a number fails; of a claim that does not apply it is written as null."
    good, kind = (value <= limit if most else value >= limit), "at most" if most else "at least"
    print(f"{'N/A ' if unless else 'PASS' if good else 'FAIL'}  {name}: {value:.4g}{unit and ' ' + unit} ({kind} {limit:g}{f'; not applicable here: {unless}' if unless else ''}); {what}", flush=True)
    return dict(name=name, value=None if unless and value != value else float(value), limit=limit, kind=kind, unit=unit, passed=None if unless else bool(good), what=f"not applicable here: {unless}; {what}" if unless else what, **({"of": dict(of)} if of else {}))

def machine() -> dict[str, Any]:
    "The machine, as far as it bears on the times."
    from eci_sem.tables import this_machine, versions
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    try: flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError: flags = set()
    found = dict(this_machine(), instructions=" ".join(x for x in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16") if x in flags) or "not known", load=round(os.getloadavg()[0], 1), blas=f"{blas['name']} {blas['version']}", threads={k: os.environ[k] for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ} or "as the libraries choose", versions=versions())
    print("machine: " + ", ".join(f"{k} {v}" for k, v in found.items() if k != "versions"), flush=True)
    return found

def finish(report: dict[str, Any], path: str | None) -> int:
    "Write {machine, claims, ...} where --json says, print the sum, and give the exit status: 1 if a claim fails."
    if path:
        from eci_sem.collection import write_text
        write_text(path, json.dumps(report, indent=1) + "\n")
    tried = [c for c in report["claims"] if c["passed"] is not None]
    failed, away = [c["name"] for c in tried if not c["passed"]], len(report["claims"]) - len(tried)
    print(f"{len(tried) - len(failed)} of {len(tried)} claims hold" + (f", {away} not applicable here" if away else "") + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))
