"""What the large sizes cost on one machine, measured: python benchmarks/scale.py [--only map|bootstrap|dense|bm25] [--json FILE]

map        1,000,000 triples at d = 768 scored from a memory map of float32: at most 3 times as long as numpy's float64 R.T @ R of the same
           rows in the same run, with at most 500 MB of memory beside the map, and the same result as plain numpy. On a GPU the pass takes
           at most twice the time that reading the embeddings once takes; where there is none, the claim stands as not applicable.
bootstrap  1,000 resamples of 100,000 queries at d = 768, in 256 blocks, exact: at most 60 seconds, and at least 20 times faster than
           multiplying all rows anew for each resample, which gives the same scores within 1e-9. From the sums of the blocks alone, which is
           how a stream and a cluster rank: at most 60 seconds too, and the same scores.
dense      the nearest of 1,000,000 passages to 1,000 queries: at most 500 MB beside the texts, at most twice as long as blocked numpy
           products with argpartition, and the same passages as a search in float64.
bm25       the index of 100,000 passages, kept and mapped: read at least 5 times faster than it is built, with at most a quarter of its
           memory, and with the same hits and scores to the last bit.

Each part runs in a process of its own. The product R.T @ R is added up over portions of rows, so that the baseline fits in memory; it
does the same multiplications. Memory is what the process has for itself: pages of a mapped file, which the system drops when it needs
the room, are not counted. The map part needs 10 GB of disk, which it gives back. The exit status is 1 if a claim fails or a result is
not the baseline's; `--small` runs everything at a hundredth of the size in a few seconds, to see that it works: its limits are
meant for the full size.
"""
import argparse
import ctypes
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import at_least_one, claim as one_claim, finish, machine, options, weighted

LIMITS = dict(ratio=3.0, memory=500.0, gpu=2.0, seconds=60.0, naive=20.0, bootstrap_memory=1200.0, search=2.0, load=5.0, mapped=0.25)
FULL = dict(triples=1_000_000, dim=768, queries=100_000, blocks=256, resamples=1000, passages=1_000_000, asked=1000, dense_dim=384, indexed=100_000)
WORDS = 40 # of a passage for BM25
SMALL = dict(triples=20_000, dim=96, queries=4000, blocks=64, resamples=100, passages=20_000, asked=200, dense_dim=64, indexed=3000)


# --- measured in the process that does the work

def own() -> float:
    "Memory of this process alone in MB, pages of mapped files left out."
    try: return next(int(line.split()[1]) / 1e3 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        import psutil
        return psutil.Process().memory_full_info().uss / 1e6

class Watch:
    "Seconds, processor seconds, and the most memory beside what was there at the start, looked at 100 times a second."
    def __enter__(self) -> "Watch":
        if sys.platform == "linux": ctypes.CDLL(None).malloc_trim(0) # or what is taken from freed memory would not be seen
        self.before = self.most = own()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True); self.thread.start()
        self.start = time.perf_counter(), time.process_time()
        return self
    def look(self) -> None:
        while not self.done.wait(0.01): self.most = max(self.most, own())
    def __exit__(self, *_: Any) -> None:
        self.seconds, self.cpu = time.perf_counter() - self.start[0], time.process_time() - self.start[1]
        self.done.set(); self.thread.join()
        self.extra = max(self.most, own()) - self.before

def portions(n: int, size: int) -> list[slice]: return [slice(i, min(i + size, n)) for i in range(0, n, size)]

def same(what: str, found: Any, expected: Any, within: float) -> float:
    "The largest relative difference, refused above `within`."
    off = float(np.max(np.abs(np.asarray(found) / np.asarray(expected) - 1)))
    if not off <= within: raise SystemExit(f"FAIL  {what}: not the baseline's result, {off:.1e} apart (at most {within:.0e})")
    return off

def normal(path: Path, N: int, d: int, seed: int, beside: np.ndarray | None = None) -> np.ndarray:
    "A file of random vectors, near those `beside` it when there are such."
    out, rng = np.lib.format.open_memmap(path, "w+", np.float32, (N, d)), np.random.default_rng(seed)
    for part in portions(N, 16384):
        x = rng.standard_normal((part.stop - part.start, d), dtype=np.float32)
        out[part] = x if beside is None else x + beside[part]
    out.flush()
    return np.load(path, mmap_mode="r")

def child_map(a: dict[str, Any]) -> dict[str, Any]:
    from eci_sem.score import eci_score
    N, d = a["triples"], a["dim"]
    with tempfile.TemporaryDirectory(dir=a["folder"], prefix="scale-") as folder:
        q = normal(Path(folder) / "q.npy", N, d, 0)
        p, n = (normal(Path(folder) / f"{k}.npy", N, d, seed, q) for k, seed in (("p", 1), ("n", 2)))
        rho = np.random.default_rng(3).random(N)
        eci_score(q[:900], p[:900], n[:900], rho[:900]) # imports, threads
        buffer = np.empty((8192, d), np.float32)
        with Watch() as read:
            for x in (q, p, n):
                for part in portions(N, 8192): buffer[:part.stop - part.start] = x[part]
        with Watch() as ours: score = eci_score(q, p, n, rho)
        M, product, cpu = np.zeros((d, d)), 0.0, 0.0
        for part in portions(N, 50_000):
            R = weighted(q[part], p[part], n[part], rho[part])
            with Watch() as w: M += R.T @ R
            product += w.seconds; cpu += w.cpu
            del R
        off = same("scoring from a memory map", [score.value, score.trace], [np.linalg.slogdet(np.eye(d) + M / N)[1], np.trace(M) / N], 1e-10)
        out = dict(seconds=ours.seconds, cpu=ours.cpu, extra=ours.extra, product=product, product_cpu=cpu, read=read.seconds, off=off, gb=3 * N * d * 4 / 1e9)
        import torch
        if torch.cuda.is_available(): out["gpu"] = gpu(q, p, n, rho, score.value)
    return out

def gpu(q: np.ndarray, p: np.ndarray, n: np.ndarray, rho: np.ndarray, value: float) -> dict[str, float]:
    "The embeddings brought to a GPU and scored there, beside bringing them alone."
    import torch
    from eci_sem.score import eci_score
    def bring() -> list[Any]:
        out = [torch.empty(x.shape, device="cuda") for x in (q, p, n)]
        for part in portions(len(q), 32768):
            for x, to in zip((q, p, n), out): to[part] = torch.from_numpy(np.array(x[part])).to("cuda")
        torch.cuda.synchronize()
        return out
    bring() # starts the device
    with Watch() as read: found = bring()
    with Watch() as ours: score = eci_score(*found, rho)
    return dict(seconds=read.seconds + ours.seconds, read=read.seconds, off=same("scoring on a GPU", score.value, value, 1e-10), name=torch.cuda.get_device_name(0))

def child_bootstrap(a: dict[str, Any]) -> dict[str, Any]:
    from eci_sem.bootstrap import block_scores, resample_counts, resampled_scores
    from eci_sem.score import weighted_residuals
    N, d, units, B, rng = a["queries"], a["dim"], a["blocks"], a["resamples"], np.random.default_rng(0)
    q, p, n = (rng.standard_normal((N, d), dtype=np.float32) for _ in range(3)); p += q; n += q
    rho, unit, counts = rng.random(N), rng.permutation(N) % units, resample_counts(units, B)
    def rows(k: np.ndarray) -> list[np.ndarray]: return [weighted_residuals(q[k], p[k], n[k], rho[k])]
    few = np.arange(2 * units)
    for path in ("series", "exact"): resampled_scores(rows, np.arange(len(few)) % units, counts[:4], path=path, packed=True) # imports, threads
    found = {}
    for path in ("exact", "series"):
        with Watch() as w: r = resampled_scores(rows, unit, counts, path=path, packed=True)
        found[path] = dict(values=r.values, seconds=w.seconds, cpu=w.cpu, extra=w.extra, bound=r.bound)
    exact, series = found["exact"].pop("values"), found["series"].pop("values")
    if not (off := abs(exact - series).max()) <= found["series"]["bound"] + 1e-12: raise SystemExit(f"FAIL  bootstrap: the series is {off:.1e} from the exact scores, its bound is {found['series']['bound']:.1e}")
    X, again = np.concatenate([weighted(q[k], p[k], n[k], rho[k]) for k in portions(N, 25_000)]), []
    del q, p, n
    order, size, upper = np.argsort(unit, kind="stable"), np.bincount(unit, minlength=units), np.triu_indices(d)
    totals = np.stack([(X[rows].T @ X[rows])[upper] for rows in np.split(order, np.cumsum(size)[:-1])])
    with Watch() as w: sums = block_scores(totals, size, counts, d)
    found["sums"] = dict(seconds=w.seconds, cpu=w.cpu, extra=w.extra, off=same("bootstrap of block sums", sums, exact, 1e-9))
    del totals
    with Watch() as naive: # what a resample costs where nothing is kept but the rows
        for c in counts[:3]:
            v = c[unit]
            again.append(np.linalg.slogdet(np.eye(d) + X.T @ (X * (v / v.sum())[:, None]))[1])
    return dict(found, naive=naive.seconds / 3, naive_cpu=naive.cpu / 3, off=same("bootstrap", exact[:3], again, 1e-9), series_off=float(off), deviation=float(exact.std()))

class Toy:
    "An encoder for passages that carry a number: a vector is looked up and turned, so that encoding costs next to nothing."
    name = "toy"
    def __init__(self, dim: int):
        rng = np.random.default_rng(0)
        self.dim, self.a, self.b = dim, rng.standard_normal((4093, dim), dtype=np.float32), rng.standard_normal((4099, dim), dtype=np.float32)
    def encode_passages(self, texts: list[str]) -> np.ndarray:
        k = np.fromiter((int(t[:8]) for t in texts), np.int64, len(texts))
        v = self.a[k % 4093] + self.b[k * 2654435761 % 4099]
        return v / np.linalg.norm(v, axis=1, keepdims=True)
    encode_queries = encode_passages

def child_dense(a: dict[str, Any]) -> dict[str, Any]:
    from eci_sem.collection import Collection, Pair
    from eci_sem.sources import mine_dense
    P, Q, depth, block = a["passages"], a["asked"], 10, 4096
    words = [f"{w:x}" * 3 for w in range(1000)]
    corpus = {f"p{i:08d}": f"{i:08d} " + " ".join(words[(i * k) % 1000] for k in range(1, 21)) for i in range(P)}
    pairs = [Pair(query_id=f"q{i}", positive_id=(p := f"p{i:08d}"), query=f"{i + 3 * P:08d} asks", positive=corpus[p], relevant=frozenset([p])) for i in range(Q)]
    collection, encoder, texts = Collection("toy", corpus, {p.query_id: p.query for p in pairs}, {"test": {p.query_id: {p.positive_id: 1} for p in pairs}}), Toy(a["dense_dim"]), list(corpus.values())
    mine_dense(Collection("few", dict(list(corpus.items())[:5000]), {"q0": "few"}, {"test": {"q0": {"p00000000": 1}}}), pairs[:20], encoder, num_negatives=2) # imports
    with Watch() as ours: found = mine_dense(collection, pairs, encoder, num_negatives=depth)
    queries = encoder.encode_queries([p.query for p in pairs])
    with Watch() as plain: # the same blocks in plain numpy: no repeated passages, no relevant ones, ties as they fall
        best, rows = np.full((Q, depth), -np.inf, np.float32), np.zeros((Q, depth), np.int64)
        for part in portions(P, block):
            s = queries @ encoder.encode_passages(texts[part]).T
            top = np.argpartition(s, -min(depth, s.shape[1]), axis=1)[:, -depth:]
            s, k = np.hstack([best, np.take_along_axis(s, top, 1)]), np.hstack([rows, top + part.start])
            top = np.argpartition(s, -depth, axis=1)[:, -depth:]
            best, rows = np.take_along_axis(s, top, 1), np.take_along_axis(k, top, 1)
    sample = range(0, Q, max(1, Q // 50))
    wide, kept = queries[sample].astype(np.float64), [[] for _ in sample]
    for part in portions(P, block):
        s = wide @ encoder.encode_passages(texts[part]).astype(np.float64).T
        for i, (row, q) in enumerate(zip(s, sample)):
            near = [(-row[k], k + part.start) for k in np.argsort(-row, kind="stable")[:depth + 1] if k + part.start != q]
            kept[i] = sorted(kept[i] + near)[:depth]
    table, mined = found.table.select(["query_id", "negative_id"]).to_pylist(), {}
    for r in table: mined.setdefault(r["query_id"], []).append(r["negative_id"])
    wrong = [pairs[q].query_id for q, near in zip(sample, kept) if mined[pairs[q].query_id] != [f"p{k:08d}" for _, k in near]]
    if wrong: raise SystemExit(f"FAIL  dense mining: other passages than the search in float64 for {len(wrong)} of {len(sample)} queries, {wrong[0]} first")
    return dict(seconds=ours.seconds, cpu=ours.cpu, extra=ours.extra, plain=plain.seconds, plain_cpu=plain.cpu, checked=len(sample), corpus=sum(map(len, texts)) / 1e6, depth=depth)

def passages(count: int, words: int = WORDS) -> list[str]:
    "Texts with the word frequencies of Zipf's law."
    rng, V = np.random.default_rng(0), 50_000
    share = 1 / (np.arange(V) + 3.0); share /= share.sum()
    vocabulary = np.array([f"{'bcdfghjklmnprstv'[i % 16]}{'aeiou'[i // 16 % 5]}{i:x}ing" for i in range(V)])
    return [" ".join(w) for part in portions(count, 10_000) for w in vocabulary[rng.choice(V, size=(part.stop - part.start, words), p=share)].tolist()]

def child_bm25(a: dict[str, Any]) -> dict[str, Any]:
    "Build, or read what was kept; hits and scores of 50 queries."
    from eci_sem.sources import _bm25
    texts = passages(a["indexed"])
    _bm25("few", texts[:500], 1.2, 0.75, "english", "en", False)("warm")
    with Watch() as w: scores = _bm25("texts", texts, 1.2, 0.75, "english", "en", {"build": False, "keep": a["folder"], "read": a["folder"]}[a["how"]])
    held, h = own() - w.before, hashlib.sha256()
    with Watch() as asked:
        for t in texts[:50]: h.update(scores(t[:100]).tobytes())
    return dict(seconds=w.seconds, cpu=w.cpu, extra=w.extra, held=held, asked=asked.seconds, hash=h.hexdigest())


# --- the claims

CLAIMS: list[dict[str, Any]] = []

def claim(name: str, value: float, limit: float, what: str, most: bool = True, **of: Any) -> None: CLAIMS.append(one_claim(name, value, limit, most, what, of=of))

def child(part: str, **args: Any) -> dict[str, Any] | None:
    run = subprocess.run([sys.executable, __file__, "--child", json.dumps([part, args])], stdout=subprocess.PIPE, text=True)
    if run.returncode == 0: return json.loads(run.stdout.splitlines()[-1])
    print(f"FAIL  {part}: the run ended with status {run.returncode}; what it says stands above", flush=True)
    CLAIMS.append(dict(name=f"{part}: the run comes to its end with the baseline's result", value=float(run.returncode), limit=0.0, kind="at most", passed=False, what="see the output"))

def bench_map(a: argparse.Namespace) -> None:
    need = 3 * a.triples * a.dim * 4
    if (free := shutil.disk_usage(a.folder).free) < need * 1.05: raise SystemExit(f"the memory map takes {need / 1e9:.1f} GB and {free / 1e9:.1f} GB are free in the temporary folder: give --folder on another disk, or fewer --triples.")
    if not (r := child("map", triples=a.triples, dim=a.dim, folder=a.folder)): return
    ours, base = (r["cpu"], r["product_cpu"]) if a.clock == "process" else (r["seconds"], r["product"])
    claim("scoring from a memory map, times numpy's float64 R.T @ R", ours / base, LIMITS["ratio"], f"{a.triples:,} triples, d = {a.dim}, a map of {r['gb']:.1f} GB: {ours:.1f} s against {base:.1f} s; reading alone {r['read']:.1f} s; equal to plain numpy within {r['off']:.0e}", stage="score", seconds=r["seconds"], n=a.triples, d=a.dim)
    claim("scoring from a memory map, memory beside it in MB", r["extra"], LIMITS["memory"], f"peak of what the process has for itself, map of {r['gb']:.1f} GB")
    if g := r.get("gpu"): claim("scoring on a GPU, times reading the embeddings once", g["seconds"] / g["read"], LIMITS["gpu"], f"{g['name']}: {g['seconds']:.1f} s against {g['read']:.1f} s; equal to the processor's within {g['off']:.0e}")
    else: # the guide shows the line, without a number
        CLAIMS.append(one_claim("scoring on a GPU, times reading the embeddings once", float("nan"), LIMITS["gpu"], True, "not measured", unless="no GPU that torch can use"))

def bench_bootstrap(a: argparse.Namespace) -> None:
    if not (r := child("bootstrap", queries=a.queries, dim=a.dim, blocks=a.blocks, resamples=a.resamples)): return
    k = "cpu" if a.clock == "process" else "seconds"
    ours, naive = r["exact"][k], r["naive_cpu" if a.clock == "process" else "naive"] * a.resamples
    what = f"{a.resamples:,} resamples of {a.queries:,} queries in {a.blocks} blocks, d = {a.dim}"
    claim("bootstrap, seconds", ours, LIMITS["seconds"], f"{what}, every determinant computed; by the series {r['series'][k]:.1f} s, {r['series_off']:.0e} from it at most (standard deviation {r['deviation']:.0e})", stage="bootstrap", seconds=r["exact"]["seconds"], B=a.resamples, n=a.queries, K=a.blocks, d=a.dim)
    claim("bootstrap, times faster than all rows anew", naive / ours, LIMITS["naive"], f"{naive:.0f} s, from 3 resamples; equal within {r['off']:.0e}", most=False)
    claim("bootstrap of block sums, seconds", r["sums"][k], LIMITS["seconds"], f"{what}, from the blocks' packed matrices; equal to the above within {r['sums']['off']:.0e}; {r['sums']['extra']:,.0f} MB beside them")
    claim("bootstrap, memory in MB", r["exact"]["extra"], LIMITS["bootstrap_memory"], f"peak beside the embeddings, of which {a.blocks * a.dim * (a.dim + 1) * 4 / 1e6:,.0f} MB are the blocks' matrices, whatever the number of queries")

def bench_dense(a: argparse.Namespace) -> None:
    if not (r := child("dense", passages=a.passages, asked=a.asked, dense_dim=a.dense_dim)): return
    ours, plain = (r["cpu"], r["plain_cpu"]) if a.clock == "process" else (r["seconds"], r["plain"])
    claim("dense mining, memory beside the texts in MB", r["extra"], LIMITS["memory"], f"{a.passages:,} passages ({r['corpus']:,.0f} MB of text), {a.asked:,} queries, d = {a.dense_dim}; the vectors would take {a.passages * a.dense_dim * 4 / 1e6:,.0f} MB")
    claim("dense mining, times blocked numpy products with argpartition", ours / plain, LIMITS["search"], f"{ours:.1f} s against {plain:.1f} s, both with encoding by a table, ours with repeated passages found; first {r['depth']} of {r['checked']} queries are those of a search in float64", stage="dense mining", seconds=r["seconds"], p=a.passages, q=a.asked, d=a.dense_dim)

def bench_bm25(a: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=a.folder, prefix="scale-") as folder:
        runs = {how: child("bm25", indexed=a.indexed, how=how, folder=folder) for how in ("build", "keep", "read")}
        if not all(runs.values()): return
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 1e6
    if len({r["hash"] for r in runs.values()}) > 1: raise SystemExit("FAIL  bm25: a kept index gives other scores than one that was built")
    build, keep, read = (runs[how]["cpu" if a.clock == "process" else "seconds"] for how in ("build", "keep", "read"))
    claim("BM25 index, times faster read than built", build / read, LIMITS["load"], f"{a.indexed:,} passages, {size:,.0f} MB: {read:.1f} s, texts hashed and checksums compared, against {build:.1f} s ({keep:.1f} s when it is also kept); 50 queries give the same bits", most=False, stage="bm25 mining", seconds=runs["build"]["seconds"], p=a.indexed, q=0, t=WORDS)
    claim("BM25 index, memory of a mapped one as a share of one built", runs["read"]["held"] / runs["build"]["held"], LIMITS["mapped"], f"{runs['read']['held']:,.0f} MB against {runs['build']['held']:,.0f} MB held after it; at the peak {runs['read']['extra']:,.0f} MB against {runs['build']['extra']:,.0f} MB; 50 queries in {runs['read']['asked']:.2f} s against {runs['build']['asked']:.2f} s")


def main() -> int:
    parts = dict(map=bench_map, bootstrap=bench_bootstrap, dense=bench_dense, bm25=bench_bm25)
    parser = options(__doc__, parts)
    parser.add_argument("--small", action="store_true", help="small sizes, where none is given: " + ", ".join(f"{k} {v:,}" for k, v in SMALL.items()))
    for k, what in dict(triples="triples of the memory map", dim="dimension of the embeddings", queries="queries of the bootstrap, one triple each", blocks="their blocks", resamples="resamples", passages="passages of dense mining", asked="its queries", dense_dim="its dimension", indexed="passages of the BM25 index").items():
        parser.add_argument(f"--{k.replace('_', '-')}", type=at_least_one, help=f"{what} (default: {FULL[k]:,})")
    parser.add_argument("--clock", choices=("wall", "process"), default="wall", help="what the times are: seconds that pass, or seconds of the processor, for a machine that is busy (default: %(default)s)")
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the map and the index are written, and removed (default: the temporary folder)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        part, given = json.loads(args.child)
        print(json.dumps(dict(map=child_map, bootstrap=child_bootstrap, dense=child_dense, bm25=child_bm25)[part](given)))
        return 0
    for k, v in (SMALL if args.small else FULL).items():
        if getattr(args, k) is None: setattr(args, k, v)
    found = machine()
    for name, part in parts.items():
        if args.only in (None, name): part(args)
    return finish(dict(machine=found, claims=CLAIMS), args.json)


if __name__ == "__main__": sys.exit(main())
