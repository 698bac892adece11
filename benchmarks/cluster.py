"""What scoring on a cluster promises, measured: python benchmarks/cluster.py [--rows N] [--shards K] [--workers W] [--encoder NAME] [--address A] [--json FILE]

Files of N rows (default 200,000) and of four times as many over the same texts are scored by `score_stream` in this process and by
`score_cluster` on W workers (default 2). Asserted: the scores agree to 1e-10 relative; each text is encoded once; with four times the rows
the largest worker's peak memory grows by at most 60 MB. Seconds of both are printed: on one machine the cluster has to start its
workers, which takes seconds, and pays off where the encoder is what costs. --toy stands for an encoder that costs nothing.

Prints what was measured, and PASS or FAIL; the exit status is 1 if one fails.
"""
import argparse
import hashlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GROWTH = 60.0 # MB

class Toy:
    "A vector from the hash of each text."
    name, dim = "toy", 64
    def encode_queries(self, texts, progress=None): return np.array([np.frombuffer(hashlib.blake2b(t.encode()).digest(), np.uint8) - 127.5 for t in texts], np.float32)
    encode_passages = encode_queries

def make_shards(folder: Path, rows: int, shards: int) -> list[Path]:
    "Files of triples over 4,000 queries and 20,000 passages."
    from eci_sem.triples import Triples
    rng = np.random.default_rng(0)
    words = np.array("water house river night music paper stone light garden winter market letter engine forest island doctor bridge summer school window".split(), object)
    texts = lambda n, length: [f"{' '.join(words[rng.integers(0, len(words), length)])} {i}" for i in range(n)]
    queries, passages, found = texts(4_000, 6), texts(20_000, 30), []
    for k in range(shards):
        q, d = rng.integers(0, 4_000, rows // shards), rng.integers(4_000, 20_000, rows // shards)
        found.append(Triples.from_rows([dict(query=queries[i], positive=passages[i], negative=passages[j], source=f"s{j % 4}") for i, j in zip(q, d)]).write(folder / f"{rows}-{k:03}.parquet"))
    return found

def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind, default in (("rows", int, 200_000), ("shards", int, 8), ("workers", int, 2), ("encoder", str, "glove"), ("address", str, None), ("json", str, None)): parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    from eci_sem.cluster import connected, score_cluster
    from eci_sem.encoders import load_encoder
    from eci_sem.formats import scan_triples
    from eci_sem.stream import score_stream
    lines, ok = [], True
    def tell(what: str, good: bool = True, **numbers) -> None:
        nonlocal ok
        ok &= good; lines.append(dict(numbers, what=what, passed=good)); print(f"{'PASS' if good else 'FAIL'}  {what}: " + ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v:.3g}" for k, v in numbers.items()), flush=True)
    with tempfile.TemporaryDirectory() as tmp, connected(args.address, None if args.address else args.workers):
        peaks = []
        for rows in (args.rows, 4 * args.rows):
            files = make_shards(Path(tmp), rows, args.shards)
            encoder = lambda: Toy() if args.toy else load_encoder(args.encoder, cache=Path(tmp) / f"cache-{rows}")
            started = time.perf_counter(); cpu = time.process_time()
            local = score_stream(lambda: (t for f in files for t in scan_triples(f)), encoder())
            alone, cpu = time.perf_counter() - started, time.process_time() - cpu
            there = Toy if args.toy else load_encoder(args.encoder, cache=Path(tmp) / f"cluster-{rows}")
            found = score_cluster(files, there, workers=args.workers)
            distinct = len({x for f in files for t in scan_triples(f) for x in t.texts("query")}) + len({x for f in files for t in scan_triples(f) for c in ("positive", "negative") for x in t.texts(c)})
            tell(f"{rows:,} rows, scores", max(abs(found[s].value / local[s].value - 1) for s in local) <= 1e-10, largest_difference=float(max(abs(found[s].value / local[s].value - 1) for s in local)))
            tell(f"{rows:,} rows, texts", found.work["encoded"] == distinct, encoded=found.work["encoded"], distinct=distinct)
            tell(f"{rows:,} rows, time", seconds_local=alone, processor_seconds_local=cpu, seconds_cluster=found.work["seconds"], workers=found.work["workers"])
            peaks.append(found.work["peak_mb"])
            tell(f"{rows:,} rows, memory", peak_mb_of_a_worker=peaks[-1])
        tell("growth with four times the rows", peaks[1] - peaks[0] <= GROWTH, mb=peaks[1] - peaks[0])
    if args.json: Path(args.json).write_text(json.dumps(lines, indent=1) + "\n")
    return 0 if ok else 1

if __name__ == "__main__": sys.exit(main())
