"""Damaged and foreign input for every reader: a whole table or a clear error, within a time limit. ECI_SEM_FUZZ sets the number of inputs (nightly: 20000)."""
import gzip
import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eci_sem.checks import check_file
from eci_sem.collection import InputError
from eci_sem.formats import FORMATS
from eci_sem.triples import Triples

INPUTS = int(os.environ.get("ECI_SEM_FUZZ", 500))
LIMIT = 20 # seconds for one input of a few kilobytes; most take milliseconds
KEYS = ["query", "positive", "negative", "negatives", "negative_1", "pos", "neg", "qid", "query_id", "positive_id", "source", "rank", "score", "scores", "labels", "label", "passages", "positive_passages", "negative_passages", "docid", "title", "text", "neg_scores", "x"]


@contextmanager
def time_limit():
    def stop(*_): raise TimeoutError(f"an input took more than {LIMIT} seconds")
    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def read(path, **options):
    "A sound table, or None for a clear error; anything else fails the test."
    try:
        with time_limit(): t = Triples.read(path, **options)
    except InputError as e:
        assert len(str(e)) > 20 and "\n" not in str(e).strip()
        return None
    t.table.validate(full=True)
    assert len(t) and not any(t.table.column(c).null_count for c in t.table.column_names[:7])
    t.content_hash
    return t


# whole files, one of each format, made from real triples where these are there

@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    sample = Path(os.environ.get("ECI_SEM_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "msmarco-triples-sample" / "triples.jsonl.gz"
    if sample.exists(): t = Triples.read(sample).clean()
    else: t = Triples.from_rows([dict(query=f"what is {i}?", positive=f"It is {i} é.", negatives=[f"It is not {j}." for j in range(3)], source=f"s{i % 2}") for i in range(6)])
    for k, s in enumerate(t.sources): t = t.rename(source=s, to=f"s{k}")
    one = t.select(t.sources[0]).take(range(6))
    few = t.take(range(len(t) - 8, len(t)))
    found = []
    for f in FORMATS.values():
        if not f.writes: continue
        for name in {"parquet": ["t.parquet"], "jsonl": ["t.jsonl", "t.jsonl.gz"], "msmarco": ["t.jsonl", "t.jsonl.gz"]}.get(f.name, ["t.parquet", "t.jsonl", "data"] if f.name.startswith("st-") else ["t"]):
            here = folder / f"{f.name}-{name}"
            here.mkdir()
            options = {n: here / n for n in f.needs}
            (one if "one is allowed" in f.loses else few if f.name not in ("msmarco", "trec") else one).write(here / name, f.name, **options)
            found.append((f.name, here, name, tuple(options)))
    plain = folder / "plain"
    plain.mkdir()
    pq.write_table(few.table, plain / "t.parquet", compression="none", use_dictionary=False) # of another tool: nothing is compressed, no checksums
    found.append(("parquet", plain, "t.parquet", ()))
    for _, here, name, options in found: assert read(here / name, **{o: here / o for o in options}) is not None
    return found


def mutate(data, rng):
    "(mutated bytes, what was done)"
    how = rng.choice(["flip", "flip", "flips", "cut", "cut", "delete line", "repeat line", "swap", "rename", "type", "utf-8", "insert", "tail"])
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(data))
    if how == "flip": return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:], how
    if how == "flips":
        out = bytearray(data)
        for _ in range(rng.randint(2, 20)): out[rng.randrange(len(out))] = rng.randrange(256)
        return bytes(out), how
    if how == "cut": return data[:at], how
    if how == "tail": return data + rng.choice([b"x", b"\0", b"\xff", b"{", b"\n{}", data[:at], b"PAR1"]), how
    if how == "delete line": k = rng.randrange(len(lines)); return b"".join(lines[:k] + lines[k + 1:]), how
    if how == "repeat line": k = rng.randrange(len(lines)); return b"".join(lines[:k] + lines[k:k + 1] * rng.randint(2, 3) + lines[k + 1:]), how
    if how == "swap": a, b = sorted((at, rng.randrange(len(data)))); return data[b:] + data[a:b] + data[:a], how
    if how == "rename": return data.replace(f'"{rng.choice(KEYS)}"'.encode(), f'"{rng.choice(KEYS)}"'.encode(), rng.choice([1, -1])), how
    if how == "type":
        value = rng.choice([b"null", b"1e999", b"-1", b"[]", b"{}", b"true", b'""', b"[[1]]", b'"\\ud800"', b"1" * 5000, b"NaN", b"[" * 2000])
        found = list(re.finditer(rb'(?<=: )("(?:[^"\\]|\\.)*"|\[[^\]]*\]|[\d.]+|null)|\b\d+\b', data))
        if not found: return data[:at] + value + data[at:], how
        m = rng.choice(found)
        return data[:m.start()] + value + data[m.end():], how
    if how == "utf-8": return data[:at] + rng.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xef\xbb\xbf"]) + data[at:], how
    return data[:at] + rng.choice([b"\n", b"\r", b"\t", b"\0", b"{", b'"', b"]", b"\xe2\x80\xa8", b" "]) + data[at:], how


def test_mutated_files_give_a_whole_table_or_a_clear_error(seeds, tmp_path):
    rng, read_well, slowest = random.Random(INPUTS), 0, 0.0
    whole = {here: read(here / name, **{o: here / o for o in options}) for f, here, name, options in seeds}
    for n in range(INPUTS - INPUTS // 4):
        format, here, name, options = seeds[n % len(seeds)]
        work = tmp_path / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(here, work)
        folder = (work / name).is_dir()
        target = rng.choice(sorted((work / name).iterdir())) if folder else work / rng.choice([name, name, name, *options])
        data, main = target.read_bytes(), folder or target.name == name
        inside = target.name.endswith(".gz") and rng.random() < 0.5
        plain = gzip.decompress(data) if inside else data
        changed, how = mutate(plain, rng)
        target.write_bytes(gzip.compress(changed) if inside else changed)
        path = work / name
        if main and not folder and rng.random() < 0.2: path = target.rename(work / rng.choice(["t", "t.txt", "t.jsonl", "t.parquet", "t.gz", "t.tsv"]))
        start = time.perf_counter()
        t = read(path, **{o: work / o for o in options})
        slowest = max(slowest, time.perf_counter() - start)
        if n % 10 == 0: # a report tells what a reader refuses
            report = check_file(path, **{o: work / o for o in options})
            assert report.errors if t is None else report.problem is None and not report.bad_lines and report.rows == len(t)
            repr(report), report.to_json()
        if t is None: continue
        read_well += 1
        full, done = whole[here], f"{format} {name}, input {n}: {how} of {target.name}"
        if how != "cut" or not main: 
            if main and not folder and (inside or not name.endswith((".parquet", ".gz"))) and format not in ("trec", "msmarco"): assert len(t) + sum(sum(r.values()) for r in t.dropped.values()) >= sum(bool(line.strip()) for line in changed.split(b"\n")), f"{done}: a line was skipped"
            continue
        # a cut file: whole rows, as many as whole lines are left, and never part of a binary file
        assert not (name.endswith((".parquet", ".gz")) and not inside) and not (folder and target.suffix == ".arrow"), f"{done}: a table from part of a file"
        if folder: continue
        assert changed.endswith(b"\n") or plain[len(changed):][:1] == b"\n", f"{done}: the last line was cut, and a table came back"
        if format not in ("trec", "msmarco"):
            assert t.table.equals(full.table.slice(0, len(t)).combine_chunks()) and len(t) < len(full) or len(t) == len(full), done
    assert read_well > INPUTS // 50, "some damage does no harm; if nothing is read, the test tests nothing"
    assert slowest < LIMIT


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.sampled_from(KEYS), v, max_size=3), max_leaves=6)
objects = st.dictionaries(st.sampled_from(KEYS), st.text(max_size=4) | st.lists(st.text(max_size=3), max_size=3) | values, max_size=6)


@given(rows=st.lists(objects, min_size=1, max_size=3), name=st.sampled_from(["t", "t.jsonl", "t.parquet", "t.jsonl.gz"]))
@settings(max_examples=max(20, INPUTS // 8), deadline=None, suppress_health_check=list(HealthCheck))
def test_rows_of_any_shape(rows, name):
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp, name)
        data = "".join(json.dumps(r) + "\n" for r in rows).encode("utf-8", "surrogatepass")
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        t = read(path)
        assert t is None or len(t) >= len(rows) or t.dropped
        try: table = pa.Table.from_pylist(rows)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError, ValueError): return
        read(table)
        try: pq.write_table(table, Path(tmp, "u"))
        except pa.ArrowException: return
        read(Path(tmp, "u"))


@given(data=st.binary(max_size=60) | st.text(st.sampled_from("1aQ0 \t\n.{}\"[]:,é"), max_size=60).map(str.encode), head=st.sampled_from([b"", b"PAR1", b"\x1f\x8b\x08\x00", b"\xff\xff\xff\xff", b"{", b"1 Q0 a 1 2 x\n", b"1\t2\t3\n"]),
    name=st.sampled_from(["t", "t.jsonl", "t.parquet", "t.gz", "t.jsonl.gz"]), options=st.sampled_from([{}, dict(corpus={"a": "p"}, queries={"1": "q"}), dict(corpus={"a": "p"}, queries={"1": "q"}, qrels={"1": {"a": 1}})]))
@settings(max_examples=max(20, INPUTS // 8), deadline=None, suppress_health_check=list(HealthCheck))
def test_any_bytes(data, head, name, options):
    with tempfile.TemporaryDirectory() as tmp:
        Path(tmp, name).write_bytes(head + data)
        read(Path(tmp, name), **options)


keys = st.sampled_from(["1", "a", "c", "zz", 1, None, ""])
tables = st.dictionaries(keys, values | st.text(max_size=5), max_size=3)
others = values.filter(lambda v: not isinstance(v, str)) # a string is a path


@given(corpus=tables | others, queries=tables | others, qrels=st.dictionaries(keys, st.dictionaries(keys, values, max_size=3) | values, max_size=3) | others, content=st.sampled_from(["1 Q0 c 1 1.0 x\n1 Q0 a 2 0.5 x\n", "1\ta\tc\n", '{"qid": 1, "pos": ["a"], "neg": {"x": ["c"]}}\n']))
@settings(max_examples=max(50, INPUTS // 4), deadline=None, suppress_health_check=list(HealthCheck))
def test_dictionaries_of_any_shape(corpus, queries, qrels, content):
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp, "t")
        path.write_text(content)
        if " Q0 " in content: read(path, corpus={"a": "p", "c": "n"}, queries={"1": "q"}, qrels=qrels)
        read(path, corpus=corpus, queries=queries, **({"qrels": qrels} if " Q0 " in content else {}))
