"""Triples: every door in and out, balanced pools, checks against an independent row-by-row reference, hashes and errors with their place."""
import gzip
import json
import os
from collections import Counter, defaultdict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.collection import Collection, InputError, load_beir, normalise, sha256_text
from eci_sem.triples import CHECKS, COLUMNS, SCHEMA, Triples, pool_rows, text_id

ROW = dict(query_id="1", positive_id="a", negative_id="b", query="q", positive="p", negative="n", source="s", rank=1, score=0.5)


def many(n=200, seed=0, sources=("a", "b", "c"), queries=12, passages=15):
    rng = np.random.default_rng(seed)
    return Triples.from_rows([dict(query_id=f"q{i}", positive_id=f"d{i}", negative_id=f"d{j}", query=f"query {i}", positive=f"passage {i}", negative=f"passage {j}", source=s,
        rank=int(r) if r < 8 else None, score=float(x) if x > 0.2 else None)
        for i, j, s, r, x in zip(rng.integers(0, queries, n), rng.integers(0, passages, n), rng.choice(list(sources), n), rng.integers(1, 10, n), rng.random(n))])


def rechunked(t, size):
    return Triples(pa.Table.from_batches(t.table.to_batches(max_chunksize=size), schema=SCHEMA), t.dropped)


# doors in

def test_rows_need_only_three_texts():
    t = Triples.from_rows([dict(query="q", positive="p", negative="n"), dict(query="q", positive="n", negative="p", query_id="7", rank=3, score=1)])
    assert t.table.schema.equals(SCHEMA) and tuple(t.table.column_names) == COLUMNS
    assert t.sources == ["negatives"] and t.query_ids == [text_id("q", "q:"), "7"]
    first, second = t.table.to_pylist()
    assert first["positive_id"] == second["negative_id"] == "p:" + sha256_text("p")[:16] # the same passage, the same id in either role
    assert (first["rank"], first["score"], second["rank"], second["score"]) == (None, None, 3, 1.0)


def test_empty_ids_and_sources_count_as_missing():
    t = Triples.from_rows([{**ROW, "query_id": "", "negative_id": None, "source": ""}])
    assert t.table.to_pylist()[0] == {**ROW, "query_id": text_id("q", "q:"), "negative_id": text_id("n"), "source": "negatives"}


def test_number_ids_become_strings():
    assert Triples.from_rows([{**ROW, "query_id": 12}]).query_ids == ["12"]
    assert Triples.from_pandas(pd.DataFrame([{**ROW, "query_id": 12}])).query_ids == ["12"]


def test_pandas_round_trip_and_float_ranks():
    t = many()
    assert Triples.from_pandas(t.to_pandas()).table.equals(t.table) and str(t.to_pandas()["rank"].dtype) == "Int32"
    frame = pd.DataFrame(dict(query=["q", "q"], positive="p", negative=["n", "m"], rank=[1.0, np.nan], extra=1))
    t = Triples.from_pandas(frame, source="mine")
    assert t.table["rank"].to_pylist() == [1, None] and t.sources == ["mine"]


def test_categories_from_pandas():
    frame = pd.DataFrame({k: [v, v] for k, v in ROW.items()}).astype({"query": "category", "source": "category"})
    assert Triples.from_pandas(frame).table.to_pylist() == [ROW, ROW]


def test_lists_of_negatives_become_rows():
    rows = [dict(query="q", positive="p", negatives=["a", "b"], source="s"), dict(query="r", positive="p", negatives=["c"], source="t")]
    t = Triples.from_rows(rows)
    assert t.texts("negative") == ["a", "b", "c"] and t.texts("query") == ["q", "q", "r"] and t.sources == ["s", "t"]
    assert Triples.from_pandas(pd.DataFrame(rows)).table.equals(t.table)


def test_construction_is_strict():
    table = Triples.from_rows([ROW]).table
    assert Triples(table.select(list(reversed(COLUMNS)))).table.equals(table)
    with pytest.raises(InputError, match="Triples takes a pyarrow Table, got list; use Triples.from_pandas or Triples.from_rows"): Triples([ROW])
    with pytest.raises(InputError, match="Triples: column 'query' is missing; found"): Triples(table.drop_columns(["query"]))
    with pytest.raises(InputError, match="Triples: column 'extra' is not one of query_id, "): Triples(table.append_column("extra", pa.array([1])))
    with pytest.raises(InputError, match="Triples: column 'rank' is text, expected whole numbers"): Triples(table.set_column(7, "rank", pa.array(["one"])))
    with pytest.raises(InputError, match=r"Triples: row 0 \(counting from 0\): 'source' is null, expected text"): Triples(table.set_column(6, "source", pa.array([None], pa.string())))


def test_a_missing_score_may_be_nan():
    assert Triples.from_rows([{**ROW, "score": float("nan")}]).content_hash == Triples.from_rows([{**ROW, "score": None}]).content_hash


@pytest.mark.parametrize("change, message", [
    (dict(query=None), r"row 1 \(counting from 0\): 'query' is null, expected a string"),
    (dict(positive=None), r"row 1 .*query 'q' has no positive \('positive' is null\); every triple needs the text of a labelled relevant passage"),
    (dict(positive=[]), r"query 'q' has no positive"),
    (dict(positive=3), r"'positive' is int, expected a string"),
    (dict(negative=["n"]), r"'negative' is list, expected a string"),
    (dict(query_id=1.5), r"'query_id' is float, expected a string"),
    (dict(source=1), r"'source' is int, expected a string"),
    (dict(rank=1.5), r"'rank' is 1.5, expected a whole number"),
    (dict(rank=float("inf")), r"'rank' is inf, expected a whole number"),
    (dict(rank=2**31), r"'rank' is 2147483648, expected a whole number"),
    (dict(rank=True), r"'rank' is bool, expected a number"),
    (dict(score="high"), r"'score' is str, expected a number"),
    (dict(negatives=["n"]), r"'negative' stands beside the list 'negatives'; write one row for each negative instead"),
    (dict(query="\ud800"), r"row 1 .*'query' holds half a surrogate pair, which is no text; repair the line"),
])
def test_rows_are_refused_with_their_place(change, message):
    with pytest.raises(InputError, match=message): Triples.from_rows([ROW, {**ROW, **change}])


@pytest.mark.parametrize("frame, message", [
    (pd.DataFrame(dict(query=["q"], positive=["p"])), "data frame: column 'negative' is missing; found 'query', 'positive', expected at least 'query', 'positive' and 'negative'"),
    (pd.DataFrame(dict(query=["q", "r"], positive=["p", None], negative=["n", "n"])), r"data frame: row 1 \(counting from 0\): query 'r' has no positive \('positive' is null\)"),
    (pd.DataFrame(dict(query=["q"], positive=["p"], negative=[3])), "data frame: column 'negative' is int64, expected text"),
    (pd.DataFrame(dict(query=["q", 3], positive=["p", "p"], negative=["n", "n"])), "data frame: column 'query' holds values of several types"),
    (pd.DataFrame(dict(query=["q"], positive=["p"], negative=["n"], rank=[1.5])), "data frame: column 'rank' can't be read as whole numbers"),
    (pd.DataFrame(dict(query=["q"], positive=["p"], negatives=["n"])), "data frame: column 'negatives' is text, expected lists of text"),
    (pd.DataFrame(dict(query=["q", "r"], positive=["p", "p"], negatives=[["n"], []])), r"data frame: row 1 \(counting from 0\): 'negatives' is empty; a triple needs a negative"),
    (pd.DataFrame(dict(query=["q"], positive=["p"], negatives=[["n"]], rank=[1])), "data frame: column 'rank' stands beside the lists 'negatives'"),
])
def test_frames_are_refused_with_column_and_row(frame, message):
    with pytest.raises(InputError, match=message): Triples.from_pandas(frame)


# files

@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "t.jsonl.gz"])
def test_files_round_trip_with_the_same_bytes(tmp_path, name):
    t = many()
    path = t.write(tmp_path / name)
    again = rechunked(t, 7).write(tmp_path / f"again-{name}")
    assert path.read_bytes() == again.read_bytes()
    back = Triples.read(path)
    assert back.table.equals(t.table) and back.content_hash == t.content_hash
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"again-{name}"])


@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.sampled_from(["a", "b+c", "ü"]),
    st.none() | st.integers(-2**31 + 1, 2**31 - 1), st.none() | st.floats(allow_nan=False, allow_infinity=False)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_any_text_survives_both_formats(tmp_path_factory, rows):
    t = Triples.from_rows([dict(query=q, positive=p, negative=n, source=s, rank=r, score=x) for q, p, n, s, r, x in rows])
    folder = tmp_path_factory.mktemp("t")
    for name in ("t.parquet", "t.jsonl", "t.jsonl.gz"): assert Triples.read(t.write(folder / name)).table.equals(t.table)


def test_dropped_travels_in_parquet_and_not_in_jsonl(tmp_path):
    t = Triples(many().table, {"a": {"duplicate row": 3, "none": 0}, "gone": {"empty text": 2}, "z": {}})
    assert t.dropped == {"a": {"duplicate row": 3}, "gone": {"empty text": 2}}
    assert Triples.read(t.write(tmp_path / "t.parquet")).dropped == t.dropped
    assert Triples.read(tmp_path / "t.parquet", source="x").dropped == {"x": {"duplicate row": 3, "empty text": 2}}
    assert Triples.read(t.write(tmp_path / "t.jsonl")).dropped == {}


def test_a_source_may_be_given_while_reading(tmp_path):
    assert Triples.read(many().write(tmp_path / "t.jsonl"), source="mine").sources == ["mine"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = many(5).write(tmp_path / "t.parquet")
    old = path.read_bytes()
    def full(*args, **kwargs): raise OSError(28, "No space left on device")
    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(InputError, match="no space left on the disk while writing t.parquet: nothing was written"): many(6).write(path)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["t.parquet"]


def test_foreign_parquet_is_cast(tmp_path):
    table = pa.table(dict(negative=pa.array(["n"]).dictionary_encode(), query=pa.array(["q"]), positive=pa.array(["p"]), rank=pa.array([3], pa.int64()), other=pa.array([1])))
    pq.write_table(table, tmp_path / "t.parquet")
    assert Triples.read(tmp_path / "t.parquet").table.equals(Triples.from_rows([dict(query="q", positive="p", negative="n", rank=3)]).table)


GOOD = '{"query": "q", "positive": "p", "negative": "n"}\n'


@pytest.mark.parametrize("name, content, message", [
    ("t.csv", b"query,positive", r"t.csv: extension '.csv' is not known; expected .parquet, .jsonl or .jsonl.gz, or the content of another format .*a first line that names the columns"),
    ("t.txt", b"hello", r"t.txt: extension '.txt' is not known; expected .parquet, .jsonl or .jsonl.gz, or the content of another format \(the guide 'formats' lists them\)"),
    ("t", b"", r"extension '' is not known"),
    ("t.parquet", None, r"t.parquet: no such file"),
    ("t.jsonl", None, r"t.jsonl: no such file"),
    ("t.parquet", b"", r"t.parquet: the file is empty"),
    ("t.jsonl", b"", r"t.jsonl: the file is empty"),
    ("t.jsonl", b"\n", r"t.jsonl: holds no rows"),
    ("t.parquet", b"not parquet at all", r"t.parquet: not a readable Parquet file .*write it again or fetch it again"),
    ("t.jsonl.gz", b"not gzip", r"t.jsonl.gz: is named .gz, but holds no gzip data; rename it \(t.jsonl\)"),
    ("t.jsonl", GOOD + '{"query": "q" "positive": "p"}', r"t.jsonl:2: not valid JSON"),
    ("t.jsonl", GOOD + '\n"text"', r"t.jsonl:3: found a JSON str, expected an object"),
    ("t.jsonl", '{"positive": "p", "negative": "n"}', r"t.jsonl:1: key 'query' is missing; found 'positive', 'negative', expected a string"),
    ("t.jsonl", GOOD + '{"query": "who", "negative": "n"}', r"t.jsonl:2: query 'who' has no positive \(key 'positive' is missing; found 'query', 'negative'\)"),
    ("t.jsonl", GOOD + '{"query": "who", "positive": null, "negative": "n"}', r"t.jsonl:2: query 'who' has no positive \('positive' is null\)"),
    ("t.jsonl", GOOD + '{"query": "q", "positive": "p"}', r"t.jsonl:2: key 'negative' is missing"),
    ("t.jsonl", GOOD + '{"query": "q", "positive": "p", "negatives": []}', r"t.jsonl:2: 'negatives' is an empty list, expected a list with at least one string"),
    ("t.jsonl", GOOD + '{"query": "q", "positive": "p", "negatives": "n"}', r"t.jsonl:2: 'negatives' is str, expected a list"),
    ("t.jsonl", GOOD + '{"query": "q", "positive": "p", "negatives": ["n", 3]}', r"t.jsonl:2: 'negatives' holds a int, expected strings"),
    ("t.jsonl", GOOD + '{"query": "q", "positive": "p", "negative": "n", "rank": Infinity}', r"t.jsonl:2: 'rank' is inf"),
    ("t.jsonl", GOOD + '{"query": "q", "positive": "p", "negative": "\\ud800"}', r"t.jsonl:2: 'negative' holds half a surrogate pair"),
])
def test_files_are_refused_with_their_place(tmp_path, name, content, message):
    if content is not None: (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message): Triples.read(tmp_path / name)


@pytest.mark.parametrize("table, message", [
    (pa.table(dict(query=["q"], positive=["p"])), r"t.parquet: column 'negative' is missing; found 'query', 'positive', expected at least"),
    (pa.table(dict(other=[1])), r"t.parquet: column 'query' is missing; found 'other'"),
    (pa.table(dict(query=["q"], positive=[1.5], negative=["n"])), r"t.parquet: column 'positive' is double, expected text"),
    (pa.table(dict(query=["q"], positive=["p"], negative=["n"], score=["high"])), r"t.parquet: column 'score' is text, expected numbers"),
    (pa.table(dict(query=["q", "who"], positive=["p", None], negative=["n", "n"])), r"t.parquet: row 1 \(counting from 0\): query 'who' has no positive \('positive' is null\)"),
    (pa.table(dict(query=["q"], positive=["p"], negatives=[["n", None]])), r"t.parquet: row 0 \(counting from 0\): 'negatives' holds null, expected strings"),
    (SCHEMA.empty_table(), r"t.parquet: holds no rows"),
])
def test_parquet_is_refused_with_column_and_row(tmp_path, table, message):
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=message): Triples.read(tmp_path / "t.parquet")


def test_unknown_extension_is_refused_before_writing(tmp_path):
    with pytest.raises(InputError, match="extension '.txt' is not known"): many(3).write(tmp_path / "t.txt")
    assert os.listdir(tmp_path) == []


# reading the table

def test_columns_texts_and_distinct():
    t = Triples.from_rows([ROW, {**ROW, "negative": "p", "rank": None, "score": None}])
    assert t.texts("negative") == ["n", "p"] and t.column("negative").tolist() == ["n", "p"]
    assert t.column("rank").dtype == np.float64 and t.column("rank")[0] == 1 and np.isnan(t.column("rank")[1]) and np.isnan(t.column("score")[1])
    texts, (positive, negative) = t.distinct("positive", "negative")
    assert texts == ["p", "n"] and positive.tolist() == [0, 0] and negative.tolist() == [1, 0]
    with pytest.raises(InputError, match="unknown column 'negativ'. Did you mean 'negative'"): t.column("negativ")
    with pytest.raises(InputError, match="unknown column 'source'"): t.texts("source")


@given(seed=st.integers(0, 1000), size=st.integers(1, 50))
@settings(max_examples=30, deadline=None)
def test_distinct_puts_the_table_together_again(seed, size):
    t = rechunked(many(60, seed), size)
    for names in (("query",), ("positive", "negative"), ("source",), ("negative_id", "positive_id", "query_id")):
        values, codes = t.distinct(*names)
        assert len(set(values)) == len(values)
        for name, code in zip(names, codes): assert [values[c] for c in code] == t.column(name).tolist()


def test_select_rename_concat_take():
    t = Triples(many().table, {"a": {"duplicate row": 1}, "b": {"empty text": 2}})
    assert t.select("b").sources == ["b"] and t.select("b").dropped == {"b": {"empty text": 2}}
    assert len(t.select("a")) + len(t.select("b")) + len(t.select("c")) == len(t)
    renamed = t.rename(source="a", to="z")
    assert set(renamed.sources) == {"z", "b", "c"} and renamed.dropped == {"z": {"duplicate row": 1}, "b": {"empty text": 2}} and "a" in t.sources
    both = Triples.concat([t, renamed])
    assert len(both) == 2 * len(t) and both.dropped == {"a": {"duplicate row": 1}, "b": {"empty text": 4}, "z": {"duplicate row": 1}}
    assert t.take(np.array([3, 1])).table.equals(t.table.take([3, 1]))
    with pytest.raises(InputError, match="unknown source 'bm52'"): t.select("bm52")
    with pytest.raises(InputError, match="unknown source 'z'"): t.rename(source="z", to="y")
    with pytest.raises(InputError, match="source 'a' can't be renamed to 'b': that name is taken, and the two would be merged"): t.rename(source="a", to="b")
    with pytest.raises(InputError, match="Triples.concat got no tables"): Triples.concat([])


def test_triples_do_not_change():
    t = Triples(many().table, {"a": {"x": 1}})
    t.dropped["a"]["x"] = 9
    assert t.dropped == {"a": {"x": 1}}
    with pytest.raises(AttributeError): t.table = None


def test_an_empty_table_answers_every_question():
    t = Triples(SCHEMA.empty_table())
    assert (len(t), t.sources, t.query_ids, t.texts("query"), t.distinct("positive", "negative")[0]) == (0, [], [], [], [])
    assert t.check().ok and len(t.clean()) == 0 and "0 triples" in repr(t.summary) and t.content_hash and "<table" in t._repr_html_()


# hash and summary

@given(seed=st.integers(0, 1000), size=st.integers(1, 70))
@settings(max_examples=30, deadline=None)
def test_the_hash_does_not_see_chunks(seed, size):
    t = many(60, seed)
    assert rechunked(t, size).content_hash == t.content_hash
    part = Triples(Triples.concat([many(5, 1), t, many(5, 2)]).table.slice(5, 60))
    assert part.content_hash == t.content_hash


def test_the_hash_sees_every_value():
    base = Triples.from_rows([ROW, ROW])
    seen = {base.content_hash, Triples.from_rows([ROW]).content_hash}
    for name in COLUMNS:
        for value in (["other", "q p"] if name not in ("rank", "score") else [2, None, 0]):
            seen.add(Triples.from_rows([ROW, {**ROW, name: value}]).content_hash)
    assert len(seen) == 2 + 7 * 2 + 2 * 3
    # moving a character from one row's text to the next, or from one column to the next, is a change
    assert Triples.from_rows([{**ROW, "query": "ab"}, {**ROW, "query": "c"}]).content_hash != Triples.from_rows([{**ROW, "query": "a"}, {**ROW, "query": "bc"}]).content_hash
    assert Triples.from_rows([{**ROW, "query": "q", "positive": "pp"}]).content_hash != Triples.from_rows([{**ROW, "query": "qp", "positive": "p"}]).content_hash


def test_summary_counts_and_lengths():
    t = Triples(Triples.from_rows([{**ROW, "negative": "one two three"}, {**ROW, "negative": "one"}, {**ROW, "query_id": "2", "source": "t", "negative": " a  b "}]).table, {"s": {"empty text": 4}})
    frame = t.summary.frame()
    assert frame.loc["s"].to_dict() == {"rows": 2, "queries": 1, "distinct negatives": 2, "words 10%": 1.2, "words 50%": 2.0, "words 90%": 2.8, "dropped": 4}
    assert frame.loc["t", "words 50%"] == 2 and t.summary.counts == dict(rows=3, queries=2, covered=0)
    assert "3 triples of 2 queries, 0 covered by every source" in repr(t.summary) and "s: 4 empty text" in t.summary._repr_html_()


# pools

def slow_pool(t, parts):
    rows = t.table.to_pylist()
    per = {p: defaultdict(list) for p in parts}
    for i, r in enumerate(rows):
        if r["source"] in per: per[r["source"]][r["query_id"]].append((r["rank"] is None, r["rank"] or 0, i))
    out = {p: [] for p in parts}
    for q in t.query_ids:
        k = min(len(per[p][q]) for p in parts)
        for p in parts: out[p] += [i for *_, i in sorted(per[p][q])[:k]]
    return out


@given(seed=st.integers(0, 10_000), n=st.integers(30, 150), parts=st.sampled_from([("a", "b"), ("b", "a"), ("c", "a", "b")]))
@settings(max_examples=60, deadline=None)
def test_pools_agree_with_a_slow_reference(seed, n, parts):
    t = many(n, seed, queries=5)
    expected = slow_pool(t, parts)
    if not expected[parts[0]]:
        with pytest.raises(InputError, match="nothing can be pooled"): t.pool(parts)
        return
    picked = pool_rows(t, parts)
    assert list(picked) == list(parts) and {p: r.tolist() for p, r in picked.items()} == expected
    ids = t.column("query_id")
    for p in parts: assert (ids[picked[p]] == ids[picked[parts[0]]]).all() and (t.column("source")[picked[p]] == p).all()
    pooled = t.pool(parts)
    assert pooled.sources == ["+".join(parts)] and len(pooled) == sum(map(len, picked.values()))
    assert sorted(map(str, pooled.rename(source="+".join(parts), to="x").table.to_pylist())) == sorted(str({**r, "source": "x"}) for r in t.table.take(np.concatenate(list(picked.values()))).to_pylist())
    dropped = pooled.dropped.get("+".join(parts), {})
    assert sum(dropped.values()) == sum(r["source"] in parts for r in t.table.to_pylist()) - len(pooled)


def test_a_pool_by_hand():
    def row(q, n, s, r=None): return dict(query_id=q, query=q, positive=f"p{q}", negative=n, source=s, rank=r)
    t = Triples.from_rows([row("1", "x", "A", 2), row("1", "y", "A", 1), row("1", "z", "A"), row("1", "y", "B"), row("1", "w", "B", 9), row("2", "x", "A"), row("3", "x", "A"), row("3", "v", "B")])
    assert {p: r.tolist() for p, r in pool_rows(t, ["A", "B"]).items()} == {"A": [1, 0, 6], "B": [4, 3, 7]} # by rank, rows without a rank last
    pool = t.pool(["A", "B"])
    assert pool.texts("negative") == ["y", "w", "x", "y", "x", "v"] # y was found by both and stays twice
    assert pool.dropped == {"A+B": {"rows of a query that a part does not cover": 1, "rows beyond the balanced number": 1}}
    assert pool.check().ok and len(pool.clean()) == 6
    assert t.pool(["A", "B"], name="both").sources == ["both"] and t.pool(("B", "A")).sources == ["B+A"]


def test_a_pool_of_three_parts():
    t = Triples.from_rows([dict(query="q", positive="p", negative=n, source=s) for s, n in zip("AABBC", "uvuvu")])
    pool = t.pool(["A", "B", "C"])
    assert pool.texts("negative") == ["u", "u", "u"] and pool.sources == ["A+B+C"] and pool.check().ok


def test_pools_are_refused():
    t = Triples.from_rows([ROW, {**ROW, "source": "t", "query_id": "2"}])
    with pytest.raises(InputError, match="unknown source 'x'"): t.pool(["s", "x"])
    for parts in (["s"], "s", ["s", "s"], ["s", "t", "s"]):
        with pytest.raises(InputError, match="a pool needs at least two different sources, got 's'"): t.pool(parts)
    with pytest.raises(InputError, match="a pool needs at least two different sources, got none"): t.pool([])
    with pytest.raises(InputError, match=r"no query has negatives from every part of the pool \(s: 1 queries, t: 1 queries\)"): t.pool(["s", "t"])


# checks

COLLECTION = Collection("animals", {"a": "Dogs bark.", "b": "They fetch.", "c": "Cats purr.", "a2": "DOGS bark.", "d": "Fish swim."},
    {"1": "what do dogs do", "2": "What do dogs  do", "3": "what do cats do"}, {"train": {"1": {"a": 1}}, "test": {"2": {"b": 2, "c": 0}, "3": {"c": 1}}})


def slow_check(t, collection=None):
    "One row at a time, straight from the definitions."
    rows, found = t.table.to_pylist(), {}
    for i, r in enumerate(rows):
        known_ids, known_texts = set(), set()
        for other in rows:
            if normalise(other["query"]) == normalise(r["query"]): known_ids.add(other["positive_id"]); known_texts.add(normalise(other["positive"]))
        if collection is not None:
            for q, text in collection.queries.items():
                if q == r["query_id"] or normalise(text) == normalise(r["query"]):
                    known_ids |= collection.relevant(q); known_texts |= {normalise(collection.corpus[d]) for d in collection.relevant(q)}
        key = lambda x: (x["query_id"], x["query"], x["positive"], x["negative"], x["source"])
        place = lambda k: (float("inf") if rows[k]["rank"] is None else rows[k]["rank"], k)
        copies = sum(key(x) == key(r) and place(k) < place(i) for k, x in enumerate(rows))
        def unknown(i_, text, table, prefix):
            return i_ not in table and not (i_ == prefix + sha256_text(text)[:16] and normalise(text) in map(normalise, table.values()))
        if not all(r[c].strip() for c in ("query", "positive", "negative")): found[i] = CHECKS[0]
        elif r["positive"] == r["negative"] or r["positive_id"] == r["negative_id"]: found[i] = CHECKS[1]
        elif normalise(r["positive"]) == normalise(r["negative"]): found[i] = CHECKS[2]
        elif r["negative_id"] in known_ids or normalise(r["negative"]) in known_texts: found[i] = CHECKS[3]
        elif copies >= len(r["source"].split("+")): found[i] = CHECKS[4]
        elif collection is not None and (unknown(r["query_id"], r["query"], collection.queries, "q:") or unknown(r["positive_id"], r["positive"], collection.corpus, "p:")
            or not r["negative_id"].startswith("llm:") and unknown(r["negative_id"], r["negative"], collection.corpus, "p:")): found[i] = CHECKS[5]
        elif len({normalise(x["query"]) for x in rows if x["query_id"] == r["query_id"]}) > 1: found[i] = CHECKS[6]
    return found


texts = st.sampled_from(["Dogs bark.", "dogs  BARK.", "They fetch.", "Cats purr.", "Fish swim.", "Cows moo.", "", " \n"])
ids = st.sampled_from(["a", "b", "c", "a2", "d", "zz", "llm:1", None])
rows = st.fixed_dictionaries(dict(query=st.sampled_from(["what do dogs do", "What do dogs  do", "what do cats do", "other", " "]), positive=texts, negative=texts,
    query_id=st.sampled_from(["1", "2", "3", "9", None]), positive_id=ids, negative_id=ids, source=st.sampled_from(["bm25", "llm", "bm25+llm"]), rank=st.sampled_from([None, 1, 2])))


@given(rows=st.lists(rows, min_size=1, max_size=12), collection=st.sampled_from([None, COLLECTION]), size=st.integers(1, 12))
@settings(max_examples=120, deadline=None)
def test_checks_agree_with_a_slow_reference(rows, collection, size):
    t = rechunked(Triples.from_rows(rows), size)
    report, expected = t.check(collection), slow_check(t, collection)
    assert {int(r): kind for kind, rs in report.found.items() for r in rs} == expected
    per = Counter((kind, t.column("source")[r]) for r, kind in expected.items())
    assert {(k, s): n for k, c in report.counts.items() for s, n in c.items()} == per
    assert report.ok == (not expected) and report.frame()["all"].sum() == len(expected) == report.bad
    for kind, examples in report.examples.items(): assert [e["row"] for e in examples] == report.found[kind][:3].tolist()
    cleaned = t.clean(collection)
    assert cleaned.table.equals(t.table.filter(pa.array([i not in expected for i in range(len(t))])))
    assert cleaned.dropped == {s: {k: n for (k, s2), n in sorted(per.items()) if s2 == s} for s in {s for _, s in per}}


def test_clean_adds_to_what_was_dropped_before():
    t = Triples(Triples.from_rows([ROW, ROW, {**ROW, "negative": "p"}]).table, {"s": {"duplicate row": 2}})
    assert t.clean().dropped == {"s": {"duplicate row": 3, "negative equals the positive": 1}} and len(t.clean()) == 1
    once = t.clean()
    assert once.clean() is once


def test_generated_negatives_are_told_not_blamed():
    t = Triples.from_rows([dict(query_id="1", query="what do dogs do", positive_id="a", positive="Dogs bark.", negative_id=text_id("Dogs nap.", "llm:"), negative="Dogs nap.", source="llm")])
    report = t.check(COLLECTION)
    assert report.ok and report.generated == {"llm": 1} and t.clean(COLLECTION) is t
    assert "generated negatives in 'llm': 1" in repr(report) and "no problem found" in report._repr_html_()
    # a generated text that is a known answer is a problem all the same
    copied = Triples.from_rows([{**t.table.to_pylist()[0], "negative": "they FETCH."}])
    assert list(copied.check(COLLECTION).counts) == ["negative is a known relevant passage"]


def test_a_report_prints_counts_and_examples():
    t = Triples.from_rows([{**ROW, "negative": "p", "query": "<b>" + "long " * 30}] * 5 + [{**ROW, "query_id": "2"}])
    report = t.check()
    assert report.frame().loc["negative equals the positive"].to_dict() == {"s": 5, "all": 5} and list(report.frame().index) == list(CHECKS)
    text = repr(report)
    assert text.startswith("check of 6 rows against its own positives: 5 with a problem (clean() drops them)") and "negative equals the positive, row 2 (s): query '1'" in text
    assert "row 3 (s)" not in text and "...'" in text and "long " * 12 not in text # three examples, cut
    assert "&lt;b&gt;" in report._repr_html_() and "<b>long" not in report._repr_html_()


def test_a_check_of_many_rows_is_quick():
    import time
    rng = np.random.default_rng(0)
    n = 100_000
    passages = np.array([f"passage number {i} with some words" for i in range(20_000)], object)
    t = Triples.from_pandas(pd.DataFrame(dict(query=np.char.add("query ", rng.integers(0, 9_000, n).astype(str)), positive=passages[rng.integers(0, 20_000, n)], negative=passages[rng.integers(0, 20_000, n)], source=rng.choice(["a", "b"], n))))
    start = time.perf_counter()
    t.check(); t.pool(["a", "b"]); t.content_hash
    assert time.perf_counter() - start < 10 # about half a second on a quiet machine; a loop over pairs of rows would take hours


# the public samples beside the repository

@pytest.mark.parametrize("name, lines, queries", [("msmarco-triples-sample", 114, 111), ("nq-triples-sample", 10, 10)])
def test_public_triples_are_read_whole(shared_data, name, lines, queries):
    path = shared_data / name / "triples.jsonl.gz"
    if not path.exists(): pytest.skip(f"{name} is not in the folder of public test collections")
    with gzip.open(path, "rt") as f: raw = [json.loads(line) for line in f]
    t = Triples.read(path)
    assert len(raw) == lines and len(t) == sum(len(r["negatives"]) for r in raw) and len(t.query_ids) == queries
    assert t.texts("negative") == [n for r in raw for n in r["negatives"]] and t.sources == list(dict.fromkeys(r["source"] for r in raw))
    expected = slow_check(t) if len(t) < 700 else None
    report = t.check()
    if expected is not None: assert {int(r): k for k, rs in report.found.items() for r in rs} == expected
    assert len(t.clean()) == len(t) - report.bad
    assert Triples.read(path, source="msmarco").sources == ["msmarco"]


def test_a_real_collection_flags_its_own_relevant_passages(shared_data):
    if not (shared_data / "scifact").is_dir(): pytest.skip("scifact is not in the folder of public test collections")
    scifact = load_beir(shared_data / "scifact")
    pairs = scifact.pairs("test")
    others = [sorted(p.relevant - {p.positive_id}) for p in pairs]
    t = Triples.from_rows([dict(query_id=p.query_id, query=p.query, positive_id=p.positive_id, positive=p.positive, negative_id=d, negative=scifact.corpus[d], source="known")
        for p, more in zip(pairs, others) for d in more])
    assert len(t) > 20 and t.check(scifact).counts == {"negative is a known relevant passage": {"known": len(t)}}
    fine = Triples.from_rows([dict(query_id=p.query_id, query=p.query, positive_id=p.positive_id, positive=p.positive, negative_id="4983", negative=scifact.corpus["4983"]) for p in pairs[:50] if "4983" not in p.relevant])
    assert fine.check(scifact).ok
    bare = fine.to_pandas()[["query", "positive", "negative"]] # without ids: known by their texts
    assert Triples.from_pandas(bare).check(scifact).ok
    assert Triples.from_pandas(bare.assign(query_id="no such query")).check(scifact).counts == {"unknown id": {"negatives": len(bare)}}


# sources that are not told, or told in two ways

NAMED = [dict(query=f"q{i}", positive=f"p{i}", negative=f"n{i}", source="ab"[i % 2]) for i in range(6)]


@pytest.mark.parametrize("empty", [None, "", "  ", float("nan")])
@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet", "t.csv", "frame", "rows"])
@pytest.mark.parametrize("at", [0, 3])
def test_a_row_without_a_source_among_others_is_refused(tmp_path, empty, name, at):
    rows = [dict(r) for r in NAMED]
    rows[at]["source"] = None if empty != empty else empty
    frame, path = pd.DataFrame(rows), tmp_path / name
    if empty != empty: frame.loc[at, "source"] = np.nan
    if name == "t.jsonl": path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif name == "t.parquet": frame.to_parquet(path)
    elif name == "t.csv": frame.to_csv(path, index=False)
    place = f":{at + 1}:" if name == "t.jsonl" else f":{at + 2}:" if name == "t.csv" else rf"row {at} \(counting from 0\):"
    read = dict(frame=lambda **o: Triples.from_pandas(frame, **o), rows=lambda: Triples.from_rows(rows)).get(name, lambda **o: Triples.read(path, **o))
    with pytest.raises(InputError, match=place + " 'source' is empty, and other rows have one; give each row its source, or leave the column out"): read()
    if name != "rows": assert read(source="mine").sources == ["mine"], "who names the source needs none in the rows"
    for r in rows: r["source"] = None
    assert Triples.from_rows(rows).sources == ["negatives"]


@pytest.mark.parametrize("batch", [1, 2, 100])
@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_a_row_without_a_source_is_one_bad_row_of_a_check(tmp_path, batch, name):
    from eci_sem.checks import check_file
    def checked(at):
        frame = pd.DataFrame([dict(r, source=None if i == at else r["source"]) for i, r in enumerate(NAMED)])
        frame.to_parquet(tmp_path / name) if name == "t.parquet" else frame.to_json(tmp_path / name, orient="records", lines=True)
        return check_file(tmp_path / name, batch=batch)
    report = checked(3)
    assert report.problem is None and report.rows == 5 and [n for n, _ in report.lines] == [3 if name == "t.parquet" else 4] and "'source' is empty" in report.lines[0][1]
    assert "'source' is empty" in checked(0).problem, "which rows are wrong can't be told where the first has none"


def test_names_that_differ_by_case_or_blanks_are_told():
    t = Triples.from_rows([dict(r, source=s) for r, s in zip(NAMED, ["lexical", "lexical ", "LEXICAL", "other", "other", "other"])])
    assert t.sources == ["lexical", "lexical ", "LEXICAL", "other"]
    assert "the sources 'lexical', 'lexical ' and 'LEXICAL' differ by case or blanks alone, and count as 3 sources" in repr(t.check())
    assert "differ by case" not in repr(Triples.from_rows(NAMED).check())


def test_a_query_id_of_several_texts_is_counted_and_dropped():
    rows = [dict(r, query_id=str(i // 2)) for i, r in enumerate(NAMED)]
    rows[1]["query"] = " Q0"
    report = Triples.from_rows(rows).check()
    assert report.counts == {"query id of several texts": {"a": 2, "b": 2}} and report.found["query id of several texts"].tolist() == [2, 3, 4, 5], "case and spacing make no other text"
    assert Triples.from_rows(rows).clean().query_ids == ["0"]


def test_of_equal_rows_the_lowest_rank_stays():
    rows = [dict(NAMED[0], rank=r, score=s) for r, s in ((7, 0.1), (None, 0.2), (2, 0.3), (5, 0.4))]
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2)):
        t = Triples.from_rows([rows[k] for k in order]).clean()
        assert len(t) == 1 and t.column("rank").tolist() == [2] and t.dropped == {"a": {"duplicate row": 3}}
    pooled = Triples.from_rows([dict(r, source="a+b") for r in rows]).clean()
    assert sorted(pooled.column("rank")) == [2, 5], "a pool holds a passage once for each part"


# what is no table

@pytest.mark.parametrize("call, message", [
    (lambda: Triples.read(NAMED), r"found list, .*for dictionaries take Triples.from_rows\(rows\)"),
    (lambda: Triples.read(dict(query=["q"])), r"found dict, .*take Triples.read\(pd.DataFrame\(data\)\)"),
    (lambda: Triples.from_pandas(NAMED), "from_pandas: found list, expected a data frame; take Triples.from_rows for dictionaries"),
    (lambda: Triples.from_pandas("t.jsonl"), "from_pandas: found str, expected a data frame; .*Triples.read for a file"),
    (lambda: Triples.from_rows("t.jsonl"), "from_rows: found str, expected a list of dictionaries; .*Triples.read"),
    (lambda: Triples.from_rows(pd.DataFrame(NAMED)), "from_rows: found DataFrame, expected a list of dictionaries; .*Triples.read"),
    (lambda: Triples.from_rows(NAMED[0]), "from_rows: found dict, expected a list of dictionaries"),
    (lambda: Triples.concat(["t.jsonl"]), r"concat: found str, expected Triples; read each file first: Triples.concat\(map\(Triples.read, files\)\)"),
    (lambda: Triples.read(pd.DataFrame(NAMED).rename(columns=dict(positive="pos", negative="neg"))), r"row 0 \(counting from 0\): 'pos' is str, expected a list of strings, for the columns query, pos and neg are read as FlagEmbedding's; if each holds one text, name them positive and negative"),
])
def test_what_is_no_table_is_sent_to_the_right_door(call, message):
    with pytest.raises(InputError, match=message): call()


def test_a_stream_of_datasets_is_sent_to_another_door():
    data = pytest.importorskip("datasets").Dataset.from_pandas(pd.DataFrame(NAMED)).to_iterable_dataset()
    with pytest.raises(InputError, match=r"IterableDataset is a stream and no table; take Triples.from_rows\(data\)"): Triples.read(data)
    assert len(Triples.from_rows(data)) == 6


def test_triples_of_another_collection_are_told():
    t = Triples.from_rows(NAMED)
    report = t.check(COLLECTION)
    assert "these triples carry no ids of collection 'animals', and where they carry none at all their texts are not in it either: give the collection that they come from, or none" in repr(report)
    assert "carry no ids" not in repr(Triples.concat([t, Triples.from_rows([dict(query="what do dogs do", positive="Dogs bark.", negative="Cats purr.", source="a")])]).check(COLLECTION)), "where the texts are in it, ids are not needed"
