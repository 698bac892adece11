"""What the streaming reader, check and score promise about memory, measured: python benchmarks/stream.py [--rows N] [--megabytes M] [--json FILE]

score   a Parquet file of N rows (default 10 million) over a small vocabulary of texts is checked and scored batch by batch: peak memory
        above the start at most 300 MB and 60 bytes a row, far below the table itself. Up to 2 million rows the same scores are made
        from the whole table in memory afterwards, and must be equal.
lines   a JSONL file of M megabytes (default 1,024) is read to its end in batches: peak memory above the start at most 400 MB.

Each step runs in a process of its own, so that its peak is its own. Prints what was measured, the limit, and PASS or FAIL; the exit status
is 1 if one fails. The files are made in a temporary folder and need about 0.2 and 1 GB.
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from score import claim, machine

FIXED, PER_ROW, LINES = 300.0, 60.0, 400.0 # limits: MB, bytes a row, MB
VERIFIED = 2_000_000 # rows up to which the scores are compared with those of the whole table in memory

def peak() -> float: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 # MB

def make_rows(path: Path, rows: int, seed: int = 0) -> None:
    "A file of triples over 4,000 queries and 20,000 passages, written batch by batch; about 1 row in 10,000 is a copy of its positive."
    import pyarrow as pa
    import pyarrow.parquet as pq
    from eci_sem.triples import SCHEMA
    rng = np.random.default_rng(seed)
    words = np.array("water house river night music paper stone light garden winter market letter engine forest island doctor bridge summer school window".split(), object)
    def texts(n, length): return pa.array([f"{' '.join(words[rng.integers(0, len(words), length)])} {i}" for i in range(n)], pa.large_string())
    queries, passages = texts(4_000, 6), texts(20_000, 30)
    ids = [pa.array([f"{k}{i}" for i in range(len(x))], pa.large_string()) for k, x in (("q", queries), ("p", passages))]
    sources = pa.array(["bm25", "dense", "llm", "random"], pa.large_string())
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as out:
        for start in range(0, rows, 65_536):
            n = min(65_536, rows - start)
            q, d, s = rng.integers(0, 4_000, n), rng.integers(4_000, 20_000, n), rng.integers(0, 4, n)
            d = np.where(rng.random(n) < 1e-4, q, d)
            q, d, p = pa.array(q), pa.array(d), pa.array(q) # passage i answers query i
            columns = [ids[0].take(q), ids[1].take(p), ids[1].take(d), queries.take(q), passages.take(p), passages.take(d), sources.take(pa.array(s)), pa.nulls(n, pa.int32()), pa.nulls(n, pa.float64())]
            out.write_table(pa.table(columns, schema=SCHEMA))

def make_lines(path: Path, megabytes: int, seed: int = 0) -> None:
    "A file in FlagEmbedding's layout with 8 negatives a line, all texts distinct."
    rng, size, n = np.random.default_rng(seed), 0, 0
    filler = ["".join(map(chr, rng.integers(97, 123, 250))) for _ in range(64)]
    with open(path, "w", encoding="utf-8") as out:
        while size < megabytes << 20:
            line = json.dumps({"query": f"query {n}", "pos": [f"{n} {filler[n % 64]}"], "neg": [f"{n} {k} {filler[(n + k) % 64]}" for k in range(8)]}) + "\n"
            size += out.write(line)
            n += 1

def step(name: str, path: str) -> dict:
    "One measured step, in this process."
    from eci_sem.checks import check_file
    from eci_sem.encoders import load_encoder
    from eci_sem.formats import scan_triples
    from eci_sem.stream import score_stream
    out = {}
    if name == "lines":
        base, start = peak(), time.perf_counter()
        rows = sum(len(t) for t in scan_triples(path))
        return dict(rows=rows, seconds=time.perf_counter() - start, peak_mb=peak() - base)
    encoder = load_encoder("glove", cache=False)
    encoder.encode_passages(["warm"], progress=False)
    base, start = peak(), time.perf_counter()
    report = check_file(path)
    out = dict(rows=report.rows, bad=report.bad, check_seconds=time.perf_counter() - start)
    start = time.perf_counter()
    scores = score_stream(report.clean_batches, encoder)
    out |= dict(score_seconds=time.perf_counter() - start, peak_mb=peak() - base, scores={s: x.value for s, x in scores.items()})
    if report.rows <= VERIFIED: out["difference"] = whole_difference(report, encoder, scores) # after the peak was taken
    return out

def whole_difference(report, encoder, scores: dict) -> float:
    "The same scores from the whole table in memory: the largest relative difference."
    from eci_sem.lexical import IDF, get_tokenizer, lexical_residuality
    from eci_sem.score import eci_score
    from eci_sem.triples import Triples
    t = Triples.concat(list(report.clean_batches()))
    rho = lexical_residuality(t, IDF.fit(t.distinct("positive")[0], get_tokenizer("word"))).rho
    vectors = {}
    for what, encode in (("query", encoder.encode_queries), ("positive", encoder.encode_passages), ("negative", encoder.encode_passages)):
        texts, (code,) = t.distinct(what)
        vectors[what] = (encode(texts, progress=False), code)
    source, worst = t.column("source"), 0.0
    assert set(source.tolist()) == set(scores), "the stream scored other sources"
    for s, x in scores.items():
        rows = np.flatnonzero(source == s)
        found = eci_score(*(v[code[rows]] for v, code in vectors.values()), rho[rows]).value
        worst = max(worst, abs(found / x - 1) if isinstance(x, float) else abs(found / x.value - 1))
    assert worst < 1e-10, f"the whole table in memory gives scores that differ by {worst:.1e}"
    return worst

def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step: print(json.dumps(step(*args.step))); return 0
    about, results, claims = machine(), {}, []
    with tempfile.TemporaryDirectory() as tmp:
        for name, make, size in (("score", make_rows, args.rows), ("lines", make_lines, args.megabytes)):
            if not size: continue
            path = Path(tmp, name)
            make(path, size)
            run = subprocess.run([sys.executable, __file__, "--step", name, str(path)], capture_output=True, text=True)
            if run.returncode: print(run.stderr, file=sys.stderr); return 1
            results[name] = found = {**json.loads(run.stdout.splitlines()[-1]), "file_mb": path.stat().st_size / 1e6}
            limit = FIXED + PER_ROW * args.rows / 1e6 if name == "score" else LINES
            times = ", ".join(f"{k.replace('_', ' ')} {v:.0f}" for k, v in found.items() if k.endswith("seconds"))
            claims.append(claim(f"streaming ({name}), extra memory at its peak in MB", found["peak_mb"], limit, True, f"{found['rows']:,} rows of a file of {found['file_mb']:.0f} MB; {times}" + (f"; scores equal to those of the whole table within {found['difference']:.0e}" if "difference" in found else "")))
            path.unlink()
    if args.json:
        from eci_sem.collection import write_text
        write_text(args.json, json.dumps(dict(machine=about, claims=claims, measured=results), indent=1) + "\n")
    return int(not all(c["passed"] for c in claims))

if __name__ == "__main__": sys.exit(main())
