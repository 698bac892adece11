"""What scoring on a cluster promises, measured: python benchmarks/cluster.py [--rows N] [--shards K] [--workers W] [--encoder NAME] [--address A] [--json FILE]

Files of N rows (default 200,000) and of four times as many over the same texts are scored by `score_stream` in this process and by
`score_cluster` on W workers (default 2). The scores agree to 1e-10 relative; each text is encoded once; with four times the rows
the largest worker's peak memory grows by at most 60 MB. Seconds of both are printed, and no claim is made of them: on one machine the cluster has to start its
workers, which takes seconds, and pays off where the encoder is what costs. --toy stands for an encoder that costs nothing.

Prints what was measured, and PASS or FAIL; the exit status is 1 if one fails.
"""
import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import claim, finish, machine, options, some_texts, timed

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
    queries, passages, found = some_texts(rng, 4_000, 6), some_texts(rng, 20_000, 30), []
    for k in range(shards):
        q, d = rng.integers(0, 4_000, rows // shards), rng.integers(4_000, 20_000, rows // shards)
        found.append(Triples.from_rows([dict(query=queries[i], positive=passages[i], negative=passages[j], source=f"s{j % 4}") for i, j in zip(q, d)]).write(folder / f"{rows}-{k:03}.parquet"))
    return found

def main() -> int:
    parser = options(__doc__, rows=(200_000, "rows of the smaller run"), shards=(8, "files"), workers=(2, "actors that encode, and tasks at a time"))
    parser.add_argument("--encoder", default="glove", help="an embedded encoder or a folder (default: %(default)s)")
    parser.add_argument("--address", help="of a cluster (default: one on this machine, for the time of the run)")
    parser.add_argument("--toy", action="store_true", help="an encoder that costs nothing")
    args = parser.parse_args()
    from eci_sem.cluster import connected, score_cluster
    from eci_sem.encoders import load_encoder
    from eci_sem.formats import scan_triples
    from eci_sem.stream import score_stream
    about, claims, peaks = machine(), [], []
    with tempfile.TemporaryDirectory() as tmp, connected(args.address, None if args.address else args.workers):
        for rows in (args.rows, 4 * args.rows):
            files = make_shards(Path(tmp), rows, args.shards)
            def walk(): return (t for f in files for t in scan_triples(f))
            def encoder(kind: str): return load_encoder(args.encoder, cache=Path(tmp) / f"{kind}-{rows}")
            alone, local = timed(lambda: score_stream(walk, Toy() if args.toy else encoder("alone")))
            found = score_cluster(files, Toy if args.toy else encoder("cluster"), workers=args.workers)
            queries, passages = set(), set()
            for t in walk(): queries.update(t.texts("query")); passages.update(t.texts("positive"), t.texts("negative"))
            what = f"{rows:,} rows in {args.shards} files, {found.work['workers']} workers: {found.work['seconds']:.1f} s, starting the actors included; one process alone {alone:.1f} s"
            claims.append(claim(f"cluster, {rows:,} rows, scores off those of one process", max(abs(found[s].value / x.value - 1) for s, x in local.items()), 1e-10, True, what))
            claims.append(claim(f"cluster, {rows:,} rows, texts encoded again", found.work["encoded"] - len(queries) - len(passages), 0, True, f"{found.work['encoded']:,} encoded", "texts"))
            peaks.append(found.work["peak_mb"])
    claims.append(claim("cluster, growth of a worker's peak memory with four times the rows", peaks[1] - peaks[0], GROWTH, True, f"from {peaks[0]:,} to {peaks[1]:,} MB", "MB"))
    return finish(dict(machine=about, claims=claims), args.json)


if __name__ == "__main__": sys.exit(main())
