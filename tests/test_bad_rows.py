"""A bad row of any format is told one by one, with its place and reason, and the rest is what a reader makes of the rows that are sound; TREC runs are read query by query."""
import gzip
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.checks import check_file
from eci_sem.collection import Collection, InputError, load_beir
from eci_sem.formats import FORMATS, read_triples, scan_triples
from eci_sem.layouts import read_qrels, read_run, run_blocks
from eci_sem.triples import COLUMNS, Triples

ANIMALS = Collection("animals", {"a": "Dogs bark.", "b": "They fetch.", "c": "Cats purr.", "d": "Fish swim."}, {"1": "what do dogs do", "2": "what do cats do"},
    {"test": {"1": {"a": 1, "b": 2, "c": 0}, "2": {"c": 1}}})


def stored(folder, name, rows, **schema):
    "Rows as JSONL, Parquet, an Arrow file or a data set's folder."
    path = folder / name
    if name == "jsonl": path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"); return path
    table = pa.Table.from_pylist(rows, **schema)
    if name == "parquet": pq.write_table(table, path); return path
    if name == "folder":
        import datasets
        bars = datasets.are_progress_bars_disabled()
        datasets.disable_progress_bars()
        datasets.Dataset(table).save_to_disk(str(path), num_shards=min(2, len(rows)))
        if not bars: datasets.enable_progress_bars()
        return path
    with pa.ipc.new_stream(str(path), table.schema) as out: out.write_table(table)
    return path


def judged(path, **options):
    "(report, rejected rows with the place of the file, the triples that are left)"
    report, told = check_file(path, batch=3, **options), []
    kept = [t for t in scan_triples(path, batch=3, rejected=lambda n, why, content: told.append((n, why, json.loads(content) if content.startswith(b'{"') else content)), **options)]
    out = [json.loads(line) for line in report.write_rejected(path.parent / "rejected.jsonl").read_text().splitlines()]
    out = [r for r in out if "text" in r]
    key = "line" if "line" in out[0] else "row_of_file"
    assert report.problem is None and report.errors and report.bad_lines == len(told) == len(out) and [(r[key], r["reason"]) for r in out] == [(n, why) for n, why, _ in told] and {r["file"] for r in out} == {path.name}
    assert [n for n, _ in report.lines] == [n for n, *_ in told][:10] and report.rows == sum(map(len, kept))
    assert [tuple(d) for d in json.loads(report.to_json())["lines"]] == [(key, "reason")] * min(10, len(told))
    assert f"{len(told)} {'line' if key == 'line' else 'row'}{'s' * (len(told) > 1)} that can't be used" in repr(report)
    with pytest.raises(InputError): read_triples(path, **options) # a reader takes all or nothing
    return report, told, Triples.concat(kept) if kept else None


NATIVE = [dict(query="q0", positive="p", negative="n0"), dict(query="q1", positive="p", negative=None), dict(query="q2", positive="p", negative="n2"), dict(query=None, positive="p", negative="n3"), dict(query="q4", positive=None, negative="n4"), dict(query="q5", positive="p", negative="n5")]

@pytest.mark.parametrize("container", ["parquet", "arrow", "folder"])
def test_null_texts_of_this_package_s_columns(tmp_path, container):
    report, told, t = judged(stored(tmp_path, container, NATIVE))
    assert [n for n, *_ in told] == [1, 3, 4] and t.texts("negative") == ["n0", "n2", "n5"] and report.table
    assert ["'negative' is null" in told[0][1], "'query' is null" in told[1][1], "query 'q4' has no positive" in told[2][1]] == [True] * 3 and all(f"row {n} (counting from 0)" in why for n, why, _ in told)
    assert told[0][2] == NATIVE[1]


@pytest.mark.parametrize("container", ["parquet", "arrow"])
def test_lists_numbers_and_what_stands_beside_them(tmp_path, container):
    rows = [dict(query="q", positive="p", negatives=x) for x in (["a", "b"], [], None, ["c", None], ["d"])]
    _, told, t = judged(stored(tmp_path, container, rows))
    assert [n for n, *_ in told] == [1, 2, 3] and t.texts("negative") == ["a", "b", "d"] and "'negatives' is empty" in told[1][1] and "row 3 (counting from 0): 'negatives' holds null, expected strings" in told[2][1]
    rows = [dict(query="q", positive="p", negative=str(i), rank=r, score=s) for i, (r, s) in enumerate([(1.0, 1), (1.5, 1), (float("nan"), 1), (1e12, 1), (2.0, 2**53 + 1), (3.0, 5)])]
    _, told, t = judged(stored(tmp_path, container + "2" if container == "arrow" else container, rows))
    assert [n for n, *_ in told] == [1, 3, 4] and t.texts("negative") == ["0", "2", "5"] and "column 'rank' can't be read as whole numbers" in told[0][1] and "column 'score' can't be read as numbers" in told[2][1]
    assert all(why.count(f"row {n} (counting from 0)") == 1 for n, why, _ in told), "each reason names its row"


ST = {
    "st-triplet": ([dict(anchor="q", positive="p", negative=n) for n in ("a", None, "b")], [1], ["a", "b"]),
    "st-n-tuple": ([dict(anchor="q", positive="p", negative_1=a, negative_2=b) for a, b in (("a", "b"), ("c", None), (None, "d"), ("e", "f"))], [1, 2], ["a", "b", "e", "f"]),
    "st-labeled-list": ([dict(query="q", passages=ps, labels=ls) for ps, ls in ((["p", "a"], [1, 0]), (["p"], [1]), (["p", "b"], [2, 0]), (["p", "b", "c"], [1, 0]), (None, None), (["c", "p"], [0, 1]))], [1, 2, 3, 4], ["a", "c"]),
    "st-labeled-pair": ([dict(query=q, passage=p, label=l) for q, p, l in (("q", "p", 1), ("q", "a", 0), ("q", "b", 7), ("q", None, 0), ("q", "c", 0), ("r", "d", 0), ("s", "p", 1), ("s", "e", 0))], [2, 3, 5], ["a", "c", "e"]),
    "flagembedding": ([dict(query="q", pos=ps, neg=ns) for ps, ns in ((["p"], ["a"]), ([], ["b"]), (["p"], None), (["p"], ["c"]))], [1, 2], ["a", "c"]),
    "tevatron": ([dict(query_id="1", query="q", positive_passages=[dict(docid="1", title="", text="p")], negative_passages=ns) for ns in ([dict(docid="2", title="", text="a")], [], [dict(docid="3", title="", text=None)], [dict(docid="4", title="", text="b")])], [1, 2], ["a", "b"])}

@pytest.mark.parametrize("container", ["jsonl", "parquet", "arrow", "folder"])
@pytest.mark.parametrize("format", ST)
def test_rows_of_other_tools(tmp_path, format, container):
    rows, bad, good = ST[format]
    report, told, t = judged(stored(tmp_path, container, rows))
    assert report.format == format and [n - (container == "jsonl") for n, *_ in told] == bad and t.texts("negative") == good
    for (n, _, content), k in zip(told, bad): assert content == rows[k]
    # the cleaned file is what a reader takes, of the same layout too
    assert Triples.read(report.write_clean(tmp_path / "clean.parquet")).texts("negative") == good


def test_labelled_pairs_that_come_back_are_told_row_by_row(tmp_path):
    rows = [dict(query=q, passage=p, label=l) for q, p, l in [("q", "a", 1), ("q", "x", 0), ("r", "b", 1), ("r", "y", 0), ("q", "c", 0), ("q", "d", 0)]]
    (tmp_path / "t").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{\n{"query": "s", "passage": "\\ud800", "label": 1}\n{"query": "s", "passage": "ok", "label": 1}\n')
    report, told, t = judged(tmp_path / "t")
    assert sorted(n for n, *_ in told) == [5, 6, 7, 8] and t.texts("negative") == ["x", "y"] and "query 'q' has no positive among its rows here" in {n: why for n, why, _ in told}[5]
    assert {n: why for n, why, _ in told}[8].endswith("t:8: 'passage' holds half a surrogate pair, which is no text; repair the line.")
    assert report.dropped == {"negatives": {"labelled pair of a query without negatives": 1}}


def test_text_that_is_none_is_one_row_and_not_the_file(tmp_path):
    texts = [b"a", b"\xff\xfe", b"b", b"c"]
    ends = pa.array(np.cumsum([0, *map(len, texts)]), pa.int64())
    bad = pa.Array.from_buffers(pa.large_string(), 4, [None, ends.buffers()[1], pa.py_buffer(b"".join(texts))])
    for names in (("query", "positive", "negative"), ("anchor", "positive", "negative_1")):
        pq.write_table(pa.table(dict(zip(names, (pa.array(["q"] * 4), pa.array(["p"] * 4), bad)))), tmp_path / "t.parquet")
        _, told, t = judged(tmp_path / "t.parquet")
        assert [n for n, *_ in told] == [1] and "row 1 (counting from 0): can't be read" in told[0][1] and told[0][2][names[2]] == "\ufffd\ufffd" and t.texts("negative") == ["a", "b", "c"]


@pytest.mark.parametrize("make, message", [
    (lambda path: pq.write_table(pa.table(dict(query=["q"], positive=["p"], negative=[1])), path), "column 'negative' is int64, expected text"),
    (lambda path: pq.write_table(pa.table(dict(query=["q"], positive=["p"])), path), "column 'negative' is missing"),
    (lambda path: (pq.write_table(pa.table(dict(query=["q"] * 9, positive=["p"] * 9, negative=["n"] * 9)), path), path.write_bytes(path.read_bytes()[:-9])), "not a readable Parquet file"),
    (lambda path: pq.write_table(pa.table(dict(q=["q"], d=["p"], score=[0.5])), path), "scores instead of labels don't tell the positive")])
def test_what_concerns_the_whole_file_ends_the_check(tmp_path, make, message):
    make(tmp_path / "t.parquet")
    report = check_file(tmp_path / "t.parquet")
    assert message in report.problem and not report.bad_lines


value = st.sampled_from(["x", "y", "", None])
row = st.fixed_dictionaries(dict(query=value, positive=value, negative=value, query_id=value, source=st.sampled_from(["x", "y"]), rank=st.sampled_from([None, 1.0, 2.5, 1e10, float("nan")]), score=st.sampled_from([None, 0.5, float("inf")])))
SCHEMA = pa.schema([*((c, pa.string()) for c in ("query", "positive", "negative", "query_id", "source")), ("rank", pa.float64()), ("score", pa.float64())])

@given(rows=st.lists(row, min_size=1, max_size=12), size=st.integers(1, 12), container=st.sampled_from(["parquet", "arrow"]))
@settings(max_examples=60, deadline=None)
def test_a_row_is_left_out_exactly_if_a_file_of_it_alone_is_refused(tmp_path_factory, rows, size, container):
    folder, kept, bad, told = tmp_path_factory.mktemp("t"), [], [], []
    for k, r in enumerate(rows):
        try: kept.append(Triples.from_frame(pa.Table.from_pylist([r], schema=SCHEMA)))
        except InputError: bad.append(k)
    path = stored(folder, container, rows, schema=SCHEMA)
    parts = list(scan_triples(path, batch=size, rejected=lambda n, *_: told.append(n)))
    assert told == bad and sum(map(len, parts)) == len(kept) and all(len(p) <= size for p in parts)
    if kept: assert Triples.concat(parts).table.equals(Triples.concat(kept).table)


def test_many_bad_rows_leave_one_batch(tmp_path):
    n = 2_000
    pq.write_table(pa.table(dict(query=["q"] * n, positive=["p"] * n, negative=[None if i % 2 else f"n{i}" for i in range(n)])), tmp_path / "t")
    report = check_file(tmp_path / "t")
    assert report.bad_lines == n // 2 and report.rows == n // 2 and len(report.lines) == 10
    parts = list(scan_triples(tmp_path / "t", rejected=lambda *_: None))
    assert [len(p) for p in parts] == [n // 2] and all(c.num_chunks == 1 for c in parts[0].table.columns), "what is left of a batch stays one batch"


# TREC runs

RUN = ["1 Q0 a 1 9.0 bm25", "1 Q0 c 2 4.5 bm25", "1 Q0 d 3 4.5", "1 Q0 zz 4 1.0 bm25", "1 Q0 c 5 0.5 bm25", "1 Q0 d 6 0.25 bm25", "2 Q0 a x 1.0 bm25", "2 Q0 d 1 nan bm25", "2 Q0 b 2 0.5 bm25", "9 Q0 a 1 1.0 bm25"]

@pytest.mark.parametrize("files", [False, True])
def test_lines_of_a_run_are_told_one_by_one(tmp_path, files):
    (tmp_path / "run").write_text("\n".join(RUN) + "\n")
    options = dict(corpus=ANIMALS, qrels={**ANIMALS.qrels["test"], "9": {"b": 1}})
    if files:
        for kind, table in (("corpus", ANIMALS.corpus), ("queries", ANIMALS.queries)): (tmp_path / kind).write_text("".join(f"{i}\t{x}\n" for i, x in table.items()))
        options |= dict(corpus=tmp_path / "corpus", queries=tmp_path / "queries")
    report, told, t = judged(tmp_path / "run", **options)
    reasons = {n: why for n, why, _ in told}
    assert sorted(reasons) == [3, 4, 5, 7, 8, 10] and report.format == "trec"
    for n, words in {3: "found 5 fields, expected 6", 4: "passage 'zz' is not in", 5: "document 'c' occurs a second time for query '1'", 7: "rank 'x' and score '1.0'", 8: "the score is not a number", 10: "query '9' is not in"}.items(): assert words in reasons[n]
    assert [(q, p, d, k) for q, p, d, k in zip(*(t.column(c) for c in ("query_id", "positive_id", "negative_id", "rank")))] == [("1", "a", "c", 2), ("1", "a", "d", 4), ("1", "b", "c", 2), ("1", "b", "d", 4), ("2", "c", "b", 1)]
    assert t.dropped == {"bm25": {"retrieved passage is relevant": 1, "beyond the depth": 0}} or t.dropped == {"bm25": {"retrieved passage is relevant": 1}}


def test_a_positive_without_a_text_is_told_at_its_query(tmp_path):
    (tmp_path / "run").write_text("1 Q0 c 1 2.0 x\n1 Q0 d 2 1.0 x\n2 Q0 a 1 1.0 x\n2 Q0 b 2 0.5 x\n")
    _, told, t = judged(tmp_path / "run", corpus=ANIMALS, qrels={"1": {"a": 1, "gone": 1}, "2": {"gone": 1, "too": 1}})
    # a line that is of use with another positive is not rejected: what is missing is counted
    assert [n for n, *_ in told] == [3, 4] and all("passage 'gone' is not in" in why for _, why, _ in told) and list(zip(t.column("positive_id"), t.column("negative_id"))) == [("a", "c"), ("a", "d")]
    assert t.dropped["x"]["relevant passage has no text"] == 1


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_run_gives_the_same_triples_whether_its_queries_come_back_or_not(tmp_path_factory, data):
    "An independent, slow reading of the whole run; lines grouped, and in any order."
    docs, queries = list("abcdef"), ["1", "2", "3"]
    hits = data.draw(st.lists(st.tuples(st.sampled_from(["x", "y"]), st.sampled_from(queries), st.sampled_from(docs)), min_size=1, max_size=25, unique=True))
    scored = [(tag, q, d, data.draw(st.sampled_from([0.5, 1.0, 2.0])), k) for k, (tag, q, d) in enumerate(hits)]
    qrels = data.draw(st.dictionaries(st.sampled_from(queries), st.dictionaries(st.sampled_from(docs), st.integers(0, 2), max_size=3), max_size=3))
    depth, judged_only = data.draw(st.sampled_from([None, 1, 2])), data.draw(st.booleans())
    if data.draw(st.booleans()): scored.sort(key=lambda h: h[:2]) # grouped, as systems write it
    path = tmp_path_factory.mktemp("t") / "run"
    path.write_text("".join(f"{q} Q0 {d} {k} {s} {tag}\n" for tag, q, d, s, k in scored))
    expected, left = [], {}
    for tag, q in dict.fromkeys((h[0], h[1]) for h in scored):
        mine = sorted((h for h in scored if h[:2] == (tag, q)), key=lambda h: (-h[3], h[4]))
        relevant = [d for d, g in qrels.get(q, {}).items() if g > 0]
        for p in relevant:
            for rank, (_, _, d, s, _) in enumerate(mine[:depth], 1):
                if qrels[q].get(d, 0) <= 0 and (not judged_only or d in qrels[q]): expected.append((q, p, d, tag, rank, s))
    options = dict(corpus={d: f"text {d}" for d in docs}, queries={q: f"query {q}" for q in queries}, qrels=qrels, depth=depth, judged_only=judged_only)
    try: t = Triples.read(path, **options)
    except InputError as e: assert not expected and "holds no triples" in str(e); return
    assert list(zip(*(t.column(c).tolist() for c in ("query_id", "positive_id", "negative_id", "source", "rank", "score")))) == expected
    assert read_run(path) == {(tag, q): [(h[2], h[3]) for h in sorted((h for h in scored if h[:2] == (tag, q)), key=lambda h: (-h[3], h[4]))] for tag, q in dict.fromkeys((h[0], h[1]) for h in scored)}


def test_only_the_texts_that_become_triples_are_held(tmp_path, monkeypatch):
    import eci_sem.formats
    asked, real = {}, eci_sem.formats.read_texts
    monkeypatch.setattr(eci_sem.formats, "read_texts", lambda origin, kind, wanted=None: (asked.update({kind: set(wanted)}), real(origin, kind, wanted))[1])
    for kind, table in (("corpus", ANIMALS.corpus), ("queries", ANIMALS.queries)): (tmp_path / kind).write_text("".join(f"{i}\t{x}\n" for i, x in table.items()))
    (tmp_path / "run").write_text("1 Q0 c 1 3 x\n1 Q0 d 2 2 x\n2 Q0 c 1 1 x\n3 Q0 d 1 1 x\n")
    Triples.read(tmp_path / "run", corpus=tmp_path / "corpus", queries=tmp_path / "queries", qrels=ANIMALS, depth=1)
    assert asked == {"query": {"1"}, "passage": {"a", "b", "c"}}


def test_a_run_whose_queries_come_back_is_held_up_to_a_limit(tmp_path, monkeypatch):
    (tmp_path / "run").write_text("1 Q0 c 1 3 x\n2 Q0 a 1 2 x\n1 Q0 d 2 1 x\n")
    assert Triples.read(tmp_path / "run", corpus=ANIMALS, qrels=ANIMALS).column("negative_id").tolist() == ["c", "d", "c", "d", "a"]
    monkeypatch.setattr("eci_sem.formats._HELD", 2)
    with pytest.raises(InputError, match=r"run: holds more than 2 lines, and those of a query do not follow one another, so that all would have to be held; put them together first: sort -s -k6,6 -k1,1 run > sorted"): Triples.read(tmp_path / "run", corpus=ANIMALS, qrels=ANIMALS)
    assert "holds more than 2 lines" in check_file(tmp_path / "run", corpus=ANIMALS, qrels=ANIMALS).problem
    (tmp_path / "grouped").write_text("1 Q0 c 1 3 x\n1 Q0 d 2 1 x\n2 Q0 a 1 2 x\n1 Q0 c 1 3 y\n") # the same query of another system is another block
    assert len(Triples.read(tmp_path / "grouped", corpus=ANIMALS, qrels=ANIMALS)) == 7


def test_ten_times_the_run_takes_little_more_memory(tmp_path):
    corpus, used = {str(i): f"text {i}" for i in range(50)}, {}
    for n in (20, 150, 1_500): # the first one brings in what is imported on the way
        (tmp_path / str(n)).write_text("".join(f"q{q} Q0 {(q + k) % 50} {k + 1} {20 - k}.5 x\n" for q in range(n) for k in range(20)))
        options = dict(corpus=corpus, queries={f"q{q}": "query" for q in range(n)}, qrels={f"q{q}": {str(q % 50): 1} for q in range(n)})
        tracemalloc.start()
        rows = sum(map(len, scan_triples(tmp_path / str(n), batch=100, **options)))
        used[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows == 19 * n
    assert used[1_500] < used[150] + 150 * 1_350, "a number for each query, and none for its lines"


def test_a_real_run_survives_damage_to_its_lines(shared_data, tmp_path):
    name, split = "cranfield", "test"
    if not (shared_data / name).is_dir(): pytest.skip(f"{name} is not in the folder of public test collections")
    collection, rng = load_beir(shared_data / name), np.random.default_rng(0)
    ids, rows = list(collection.corpus), []
    for q in sorted(collection.qrels[split])[:20]: rows += [f"{q} Q0 {ids[i]} {k} {30 - k}.25 random" for k, i in enumerate(rng.permutation(len(ids))[:20], 1)]
    (tmp_path / "good").write_text("\n".join(rows) + "\n")
    options = dict(corpus=collection, qrels=read_qrels(shared_data / name / "qrels" / f"{split}.tsv"), queries=collection)
    damaged = sorted(rng.permutation(len(rows))[:15].tolist())
    for i in damaged: rows[i] = rows[i].replace(" Q0 ", rng.choice([" ", " Q0 no-such-"]))
    (tmp_path / "bad").write_text("\n".join(rows) + "\n")
    whole, told = check_file(tmp_path / "good", **options), []
    missing = whole.bad_lines # judgments of documents that the collection leaves out
    kept = Triples.concat(scan_triples(tmp_path / "bad", rejected=lambda n, *_: told.append(n), **options))
    assert set(i + 1 for i in damaged) <= set(told) and len(told) <= 15 + missing and whole.problem is None
    good = Triples.concat(scan_triples(tmp_path / "good", rejected=lambda *_: None, **options))
    key = lambda t: set(zip(t.column("query_id"), t.column("positive_id"), t.column("negative_id")))
    gone = {(rows[i].split()[0], ) for i in damaged}
    assert key(kept) < key(good) and {(q,) for q, *_ in key(good) - key(kept)} <= gone
