"""What the embedding cache promises, measured: python benchmarks/cache.py [--only read|two|mixed] [--json FILE]

read    200,000 vectors of d = 384, written through the cache, are read warm by one process: at least 200,000 vectors a second, all of them equal
        to what was put in, beside the same rows of a numpy memory map in the same run; the store takes at most 2.2 times the raw vectors.
two     two processes write at once, partly the same keys, while this one reads: every vector that is served is the right one, and in the end
        none is missing.
mixed   encoders of other weights, number format, length limit and prompt share one cache folder: each gets its own vectors, bit by bit.

Each claim prints what was measured, the limit, and PASS or FAIL; the exit status is 1 if one fails. Reads are the best of several passes over
all vectors; keys are at hand, the file is in the system's memory, and what was read is compared outside the clock.
"""
import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from common import claim, measured, options, timed

RATE, SIZE, BLOCK = 200_000.0, 2.2, 256 # limits: vectors a second, times the raw vectors; vectors to a transaction


def keys_of(numbers: range) -> list[bytes]: return [hashlib.sha256(f"0:text {i}".encode()).digest()[:16] for i in numbers] # as an Encoder without prompt makes them

def vectors_of(numbers: range, d: int) -> np.ndarray:
    "The vectors of texts by number, the same in every process."
    x = np.random.default_rng(np.arange(numbers.start, numbers.stop, dtype=np.uint64)[:1]).standard_normal((len(numbers), d), dtype=np.float32)
    x[:, 0] = np.arange(numbers.start, numbers.stop) # no two alike, whatever the generator does
    return x

def wrong(vectors: np.ndarray, found: np.ndarray, expected: np.ndarray) -> int: return int((vectors[found] != expected[found]).any(1).sum())

def on_disk(folder: Path) -> int: return sum(max(p.stat().st_size, getattr(p.stat(), "st_blocks", 0) * 512) for p in folder.rglob("*") if p.is_file())

# --- 1. reading

def bench_read(args: argparse.Namespace) -> list[dict[str, Any]]:
    from eci_sem.encoders import Encoder, EmbeddingCache
    n, d = args.vectors, args.dim
    keys, expected = keys_of(range(n)), vectors_of(range(n), d)
    def refuse() -> None: raise AssertionError("the model was asked for: a vector was not served")
    with tempfile.TemporaryDirectory() as tmp:
        encoder = Encoder(refuse, "measured", weights="measured", max_length=256, dim=d, cache=tmp)
        cache = EmbeddingCache(Path(tmp, encoder.fingerprint[:32]), d)
        put, _ = timed(lambda: [cache.put(keys[i:i + BLOCK], expected[i:i + BLOCK]) for i in range(0, n, BLOCK)])
        size = on_disk(cache.folder)
        flat, order = Path(tmp, "flat.npy"), np.random.default_rng(0).permutation(n) # hashes are in no order, so neither are the rows
        np.save(flat, expected[np.argsort(order)])
        mapped = np.load(flat, mmap_mode="r")
        texts, best = [f"text {i}" for i in range(n)], dict.fromkeys(("get", "memory map", "Encoder"), np.inf)
        for turn in range(args.runs + 1): # the first turn warms
            for name, way in {"get": lambda: cache.get(keys), "memory map": lambda: (mapped[order], np.ones(n, bool)), "Encoder": lambda: (encoder.encode_passages(texts, progress=False), np.ones(n, bool))}.items():
                seconds, (vectors, found) = timed(way)
                if not found.all() or wrong(vectors, found, expected): raise SystemExit(f"{name}: {n - int(found.sum()):,} vectors are missing and {wrong(vectors, found, expected):,} are not what was put in")
                if turn: best[name] = min(best[name], seconds)
                del vectors
        cache.close()
        del mapped
    rate = {k: n / s for k, s in best.items()}
    print(f"      for information: put {n / put:,.0f} a second, {BLOCK} to a transaction; texts in, vectors out of a warm Encoder {rate['Encoder']:,.0f} a second; rows of a numpy memory map without checks {rate['memory map']:,.0f} a second, {rate['memory map'] / rate['get']:.2f} times the cache")
    what = f"{n:,} vectors of d = {d}, checksums verified, best of {args.runs} passes; all equal to what was put in"
    return [claim("warm read, vectors a second", rate["get"], RATE, False, f"{what}; {rate['get'] / rate['memory map']:.2f} times the rate of the same rows of a numpy memory map", "a second", of=dict(stage="cache read", seconds=best["get"], n=n, d=d)),
        claim("size on disk, times the raw vectors", size / expected.nbytes, SIZE, True, f"{size / 1e6:,.0f} MB for {expected.nbytes / 1e6:,.0f} MB of float32", "times")]

# --- 2. two processes

def writer(folder: str, start: int, stop: int, d: int) -> None:
    from eci_sem.encoders import EmbeddingCache
    cache = EmbeddingCache(folder, d)
    for i in range(start, stop, BLOCK):
        part = range(i, i + BLOCK)
        cache.put(keys_of(part), vectors_of(part, d))
    cache.close()

def bench_two(args: argparse.Namespace) -> list[dict[str, Any]]:
    from eci_sem.encoders import EmbeddingCache
    d, third = args.dim, -(-args.shared // BLOCK // 3) * BLOCK
    n, parts = 3 * third, [(0, 2 * third), (third, 3 * third)] # the middle third is written by both
    keys, expected = keys_of(range(n)), np.concatenate([vectors_of(range(i, i + BLOCK), d) for i in range(0, n, BLOCK)])
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp, "store")
        jobs = [subprocess.Popen([sys.executable, __file__, "--child", str(folder), str(a), str(b), str(d)]) for a, b in parts]
        cache, served, bad, passes = EmbeddingCache(folder, d), 0, 0, 0
        try:
            while any(job.poll() is None for job in jobs):
                vectors, found = cache.get(keys)
                served, bad, passes = served + int(found.sum()), bad + wrong(vectors, found, expected), passes + 1
        finally:
            for job in jobs: job.wait()
        vectors, found = cache.get(keys)
        bad += wrong(vectors, found, expected)
        cache.close()
    failed = [job.returncode for job in jobs if job.returncode]
    if failed: raise SystemExit(f"a writing process failed with status {failed[0]}")
    what = f"two processes write {n:,} vectors of d = {d} at once, a third of them both; this one read {served:,} in {passes} passes meanwhile"
    return [claim("two processes, vectors lost", n - int(found.sum()), 0, True, what, "vectors"), claim("two processes, vectors that are not what was put in", bad, 0, True, what, "vectors")]

# --- 3. nothing of another text or model

def bench_mixed(args: argparse.Namespace) -> list[dict[str, Any]]:
    from eci_sem.encoders import load_encoder
    # texts and prompts that join to the same string, that differ in case, spaces and form, or repeat another
    texts = [*(f"sort the array number {i}" for i in range(args.texts)), "sort", "sort ", " sort", "Sort", "a sort", "caf\u00e9 table", "cafe\u0301 table", "sort the array number 0"]
    ways = [dict(), dict(max_length=4), dict(dtype="bfloat16"), dict(passage_prompt="a "), dict(passage_prompt="a"), dict(query_prompt="query: ")]
    names = ["glove"] * len(ways) + ["minilm"]
    different, want = [], {}
    with tempfile.TemporaryDirectory() as cache:
        for again in (False, True): # filled, then read
            for name, way in zip(names, [*ways, {}]):
                some = texts if name == "glove" else texts[-8:]
                shared, alone = load_encoder(name, cache=cache, **way), None if again else load_encoder(name, cache=False, **way)
                for kind in ("encode_queries", "encode_passages"):
                    key, got = (name, str(way), kind), getattr(shared, kind)(some, progress=False)
                    if not again: want[key] = getattr(alone, kind)(some, progress=False)
                    different += [(*key, t) for t, a, b in zip(some, got, want[key]) if a.tobytes() != b.tobytes()]
                    if again and shared.stats["encoded"]: raise SystemExit(f"{name} {way}: {shared.stats['encoded']:,} texts were not in the cache")
    for line in different[:5]: print(f"      another vector: {line}")
    return [claim("one folder for all encoders, vectors of another text or model", len(different), 0, True, f"{len(names)} encoders that differ in weights, number format, length limit or prompt, {len(texts):,} texts, queries and passages, filled and read again, bit by bit as without a cache", "vectors")]


def main() -> int:
    parts = dict(read=bench_read, two=bench_two, mixed=bench_mixed)
    parser = options(__doc__, parts, vectors=(200_000, "vectors to read"), dim=(384, "dimension of the vectors"), shared=(60_000, "vectors that two processes write, about"), texts=(2_000, "texts that several encoders share a cache for"), runs=(5, "passes over all vectors, the best of which counts"))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child: writer(args.child[0], *map(int, args.child[1:])); return 0
    return measured(parts, args)


if __name__ == "__main__": sys.exit(main())
