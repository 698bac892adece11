"""What the streaming reader, check, score, ranking and writer promise about memory, measured: python benchmarks/stream.py [--rows N] [--megabytes M] [--lines L] [--only STEP ...] [--json FILE]

score   a Parquet file of N rows (default 10 million) over a small vocabulary of texts is checked and scored batch by batch: peak memory
        above the start at most 500 MB and 60 bytes a row, far below the table itself.
rank    the same file's cleaned batches are ranked with intervals from 256 blocks of queries: at most 500 MB, 60 bytes a row, and three times
        what the blocks' matrices take.
folder  the same file's cleaned rows of one source are written as a data set's folder (st-labeled-list): at most 500 MB and 60 bytes a row.
run     a TREC run of L lines (default 10 million; 1,000 a query) with judgments is read to its end in batches: at most 300 MB.
lines   a JSONL file of M megabytes (default 1,024) is read to its end in batches: peak memory above the start at most 400 MB.

Up to 2 million rows each step is done once more in a plain way, after its peak was taken, and must come out the same: the scores, and the scores
of the ranking, from the whole table in memory; the rows that were written, read back, against the rows of the table; the rows that were
read against those that a few lines of Python make of the file.

Each step runs in a process of its own, so that its peak is its own. Prints what was measured, the limit, and PASS or FAIL; the exit status
is 1 if one fails. The files are made in a temporary folder and need about 0.6 GB (and what is written of it 1.5 GB), 0.4 GB and 1 GB.
"""
import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import claim, finish, forget_peak, machine, memory, options, peak, some_texts

FIXED, PER_ROW, LINES, RUN = 500.0, 60.0, 400.0, 300.0 # limits: MB, bytes a row, MB, MB
VERIFIED = 2_000_000 # rows up to which the scores are compared with those of the whole table in memory

def make_rows(path: Path, rows: int, seed: int = 0) -> None:
    "A file of triples over 4,000 queries and 20,000 passages, written batch by batch; about 1 row in 10,000 is a copy of its positive."
    import pyarrow as pa
    import pyarrow.parquet as pq
    from eci_sem.triples import SCHEMA
    rng = np.random.default_rng(seed)
    def texts(n, length): return pa.array(some_texts(rng, n, length), pa.large_string())
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

def make_run(path: Path, lines: int) -> None:
    "A run over 100,000 passages with 1,000 hits a query; one relevant passage a query is among them."
    with open(path, "w", encoding="utf-8") as out:
        for q in range(max(1, lines // 1000)): out.write("".join(f"q{q} Q0 p{(q * 7 + k * 97) % 100_000} {k + 1} {1000 - k}.5 bm25\n" for k in range(1000)))

def rows_hash(rows) -> tuple[int, int]:
    "How many, and a sum of hashes that the order does not change."
    n = total = 0
    for row in rows: n += 1; total = (total + int.from_bytes(hashlib.blake2b("\x1f".join(row).encode(), digest_size=8).digest(), "little")) % 2 ** 64
    return n, total

def rows_of(batches, source: str | None = None): return (r for t in batches for r in zip(t.texts("query"), t.texts("positive"), t.texts("negative"), *([] if source is None else [t.column("source")])) if source is None or r[3] == source)

def same_rows(what: str, found, expected) -> str:
    found, expected = rows_hash(r[:3] for r in found), rows_hash(expected)
    if found != expected or not found[0]: raise SystemExit(f"FAIL  {what}: {found[0]:,} rows, expected {expected[0]:,}{', and other ones' if found[0] == expected[0] else ''}")
    return f"{found[0]:,} rows are those of a plain reading"

def step(name: str, path: str) -> dict:
    "One measured step, in this process."
    from eci_sem.checks import check_file
    from eci_sem.encoders import load_encoder
    from eci_sem.formats import scan_triples
    from eci_sem.stream import score_stream
    from eci_sem.triples import Triples
    out = {}
    if name == "lines":
        forget_peak(); base, start = memory(), time.perf_counter()
        rows = sum(len(t) for t in scan_triples(path))
        out = dict(rows=rows, seconds=time.perf_counter() - start, peak_mb=peak() - base)
        if rows <= VERIFIED: out["checked"] = same_rows("lines", rows_of(scan_triples(path)), ((r["query"], r["pos"][0], n) for r in map(json.loads, open(path, encoding="utf-8")) for n in r["neg"]))
        return out
    if name == "run":
        lines = sum(1 for _ in open(path))
        texts = {f"p{i}": f"passage {i}" for i in range(100_000)}
        options = dict(corpus=texts, queries={f"q{q}": f"query {q}" for q in range(lines // 1000)}, qrels={f"q{q}": {f"p{q * 7 % 100_000}": 1} for q in range(lines // 1000)})
        forget_peak(); base, start = memory(), time.perf_counter()
        rows = sum(len(t) for t in scan_triples(path, **options))
        out = dict(rows=rows, seconds=time.perf_counter() - start, peak_mb=peak() - base)
        def plain():
            for q, _, p, *_ in map(str.split, open(path, encoding="utf-8")):
                answer = next(iter(options["qrels"][q]))
                if p != answer: yield options["queries"][q], texts[answer], texts[p]
        if rows <= VERIFIED: out["checked"] = same_rows("run", rows_of(scan_triples(path, **options)), plain())
        return out
    if name == "folder":
        import datasets # what is imported on the way is no part of it
        from eci_sem.trainers import write_layout
        forget_peak(); base, start = memory(), time.perf_counter()
        report = check_file(path)
        write_layout((t.select("bm25") for t in report.clean_batches() if "bm25" in t.sources), path + ".folder", "st-labeled-list")
        out = dict(rows=report.rows, seconds=time.perf_counter() - start, peak_mb=peak() - base)
        if report.rows <= VERIFIED: out["checked"] = same_rows("folder", rows_of([Triples.read(path + ".folder")]), (r[:3] for r in rows_of([Triples.read(path).clean()], "bm25")))
        return out
    encoder = load_encoder("glove", cache=False)
    encoder.encode_passages(["warm"], progress=False)
    forget_peak(); base, start = memory(), time.perf_counter()
    report = check_file(path)
    out = dict(rows=report.rows, bad=report.bad, check_seconds=time.perf_counter() - start)
    start = time.perf_counter()
    if name == "rank":
        from eci_sem.ranked_stream import rank_stream
        found = rank_stream(report.clean_batches, encoder)
        out |= dict(rank_seconds=time.perf_counter() - start, peak_mb=peak() - base, blocks_mb=found.provenance["block_bytes"] / 1e6, table=found.table[["value", "lo", "hi"]].to_dict("index"))
        if report.rows <= VERIFIED: out["difference"] = whole_difference(report, encoder, found.table["value"].to_dict(), shared=True)
        return out
    scores = score_stream(report.clean_batches, encoder)
    out |= dict(score_seconds=time.perf_counter() - start, peak_mb=peak() - base, scores={s: x.value for s, x in scores.items()})
    if report.rows <= VERIFIED: out["difference"] = whole_difference(report, encoder, scores) # after the peak was taken
    return out

def whole_difference(report, encoder, scores: dict, shared: bool = False) -> float: # shared: of the queries that every source covers
    "The same scores from the whole table in memory: the largest relative difference."
    from eci_sem.lexical import IDF, get_tokenizer, lexical_residuality
    from eci_sem.score import eci_score
    from eci_sem.triples import Triples
    t = Triples.concat(list(report.clean_batches()))
    if shared:
        queries, sources = t.column("query_id"), t.column("source")
        common = set.intersection(*(set(queries[sources == s]) for s in scores))
        t = t.take(np.flatnonzero([q in common for q in queries]))
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
    parser = options(__doc__, rows=(10_000_000, "rows of the Parquet file"), megabytes=(1024, "size of the JSONL file"), lines=(10_000_000, "lines of the run"))
    parser.add_argument("--only", nargs="+", choices=("score", "rank", "folder", "run", "lines"), default=("score", "rank", "folder", "run", "lines"), help="some of the steps")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step: print(json.dumps(step(*args.step))); return 0
    about, results, claims = machine(), {}, []
    with tempfile.TemporaryDirectory() as tmp:
        for make, size, names in ((make_rows, args.rows, ("score", "rank", "folder")), (make_run, args.lines, ("run",)), (make_lines, args.megabytes, ("lines",))):
            names = [n for n in names if n in args.only]
            if not names: continue
            path = Path(tmp, names[0])
            make(path, size)
            for name in names:
                run = subprocess.run([sys.executable, __file__, "--step", name, str(path)], capture_output=True, text=True)
                if run.returncode: print(run.stderr, file=sys.stderr); return 1
                results[name] = found = {**json.loads(run.stdout.splitlines()[-1]), "file_mb": path.stat().st_size / 1e6}
                if not found["peak_mb"] > 0: print(f"{name}: no memory was seen to be taken, so nothing was measured", file=sys.stderr); return 1
                limit = {"lines": LINES, "run": RUN}.get(name, FIXED + PER_ROW * args.rows / 1e6 + 3 * found.get("blocks_mb", 0))
                times = ", ".join(f"{k.replace('_', ' ')} {v:.0f}" for k, v in found.items() if k.endswith("seconds"))
                claims.append(claim(f"streaming ({name}), extra memory at its peak", found["peak_mb"], limit, True, f"{found['rows']:,} rows of a file of {found['file_mb']:.0f} MB; {times}" + (f"; scores equal to those of the whole table within {found['difference']:.0e}" if "difference" in found else "") + (f"; {found['checked']}" if "checked" in found else ""), "MB"))
            path.unlink()
    return finish(dict(machine=about, claims=claims, measured=results), args.json)

if __name__ == "__main__": sys.exit(main())
