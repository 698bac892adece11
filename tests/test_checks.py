"""Checking files: the same findings as in memory whatever the batches, an independent reference for margins, cleaned and rejected files, and bounded memory."""
import gzip
import json
import os

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.checks import check_file, mix_keys
from eci_sem.collection import Collection, InputError, load_beir
from eci_sem.lexical import IDF, get_tokenizer, lexical_residuality
from eci_sem.formats import scan_triples
from eci_sem.score import ECIConfig, eci_score
from eci_sem.stream import score_stream, stream_idf
from eci_sem.triples import CHECKS, Triples

COLLECTION = Collection("animals", {"a": "Dogs bark.", "b": "They fetch.", "c": "Cats purr.", "a2": "DOGS bark.", "d": "Fish swim."},
    {"1": "what do dogs do", "2": "What do dogs  do", "3": "what do cats do"}, {"train": {"1": {"a": 1}}, "test": {"2": {"b": 2, "c": 0}, "3": {"c": 1}}})


class Letters:
    "A fake encoder: counts of letters, so that margins can be worked out by hand."
    name, dim, fingerprint = "letters", 26, "letters"
    def __init__(self): self.seen = []
    def _encode(self, texts, progress=None):
        self.seen += texts
        out = np.array([[t.lower().count(chr(97 + i)) + 1e-3 for i in range(26)] for t in texts], np.float32)
        return out / np.linalg.norm(out, axis=1, keepdims=True)
    encode_queries = encode_passages = _encode


def test_the_queries_that_every_source_covers_are_counted(tmp_path):
    "What a ranking would compare: a file may be sound and still hold nothing to compare."
    rows = lambda **covered: [dict(query=f"q{i} {i}", positive=f"p{i}", negative=f"n{i} {s}", source=s) for s, queries in covered.items() for i in queries]
    def report(rows, batch=8192):
        Triples.from_rows(rows).write(tmp_path / "t.jsonl")
        return check_file(tmp_path / "t.jsonl", batch=batch)
    same = report(rows(a=range(5), b=range(5)))
    assert (same.shared, same.queries) == (5, 5) and "every source covers" not in repr(same)
    for batch in (8192, 3):
        some = report(rows(a=range(5), b=range(3, 9), c=range(3, 5)), batch)
        assert (some.shared, some.queries) == (2, 9) and some.ok and "queries that every source covers: 2 of 9; a ranking compares the sources on these alone" in repr(some) and "needs at least" not in repr(some)
    none = report(rows(a=range(5), b=range(5, 7)))
    assert (none.shared, none.queries) == (0, 7) and none.ok and "can't be ranked: 0 of 7 queries are covered by every source, and a ranking compares the sources on these alone and needs at least 2: rank the sources that share queries" in repr(none)
    assert json.loads(none.to_json())["shared"] == 0 and json.loads(none.to_json())["queries"] == 7


def test_lines_that_are_not_shown_are_counted(tmp_path):
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(x) + "\n" for x in [dict(query="q", positive="p", negative="n", source="s"), *[dict(query="q", positive="p")] * 13]))
    assert "... and 3 more lines that can't be used" in repr(check_file(tmp_path / "t.jsonl"))
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(x) + "\n" for x in [dict(query="q", positive="p", negative="n", source="s"), *[dict(query="q", positive="p")] * 10]))
    assert "... and" not in repr(check_file(tmp_path / "t.jsonl"))


texts = st.sampled_from(["Dogs bark.", "dogs  BARK.", "They fetch.", "Cats purr.", "Fish swim.", "Cows moo.", "", " \n"])
ids = st.sampled_from(["a", "b", "c", "a2", "d", "zz", "llm:1", None])
rows = st.fixed_dictionaries(dict(query=st.sampled_from(["what do dogs do", "What do dogs  do", "what do cats do", "other", " "]), positive=texts, negative=texts,
    query_id=st.sampled_from(["1", "2", "3", "9", None]), positive_id=ids, negative_id=ids, source=st.sampled_from(["bm25", "llm", "bm25+llm"]), rank=st.sampled_from([None, 1, 2])))


@given(rows=st.lists(rows, min_size=1, max_size=14), collection=st.sampled_from([None, COLLECTION]), size=st.integers(1, 14), name=st.sampled_from(["t.parquet", "t.jsonl", "t.jsonl.gz"]))
@settings(max_examples=60, deadline=None)
def test_a_file_in_batches_is_judged_as_the_table(tmp_path_factory, rows, collection, size, name):
    t = Triples.from_rows(rows)
    folder = tmp_path_factory.mktemp("t")
    path = t.write(folder / name)
    expected, report = t.check(collection), check_file(path, collection=collection, batch=size)
    assert report.counts == expected.counts and report.bad == expected.bad and report.errors == (not expected.ok) and report.rows == len(t) and report.problem is None
    assert {k: [e["row"] for e in es] for k, es in report.examples.items()} == {k: r[:3].tolist() for k, r in expected.found.items()}
    marks = np.concatenate([kind for *_, kind in report.marked()])
    assert {k: np.flatnonzero(marks == i).tolist() for i, k in enumerate(CHECKS) if (marks == i).any()} == {k: r.tolist() for k, r in expected.found.items()}
    assert {s: n["rows"] for s, n in report.sources.items()} == {s: int((t.column("source") == s).sum()) for s in t.sources}
    assert {s: n["queries"] for s, n in report.sources.items()} == {s: len(t.select(s).query_ids) for s in t.sources}
    for s in t.sources:
        for c in ("query", "positive", "negative"): assert np.allclose(report.lengths[s][c], np.quantile([len(x.split()) for x in t.select(s).texts(c)], (0.1, 0.5, 0.9, 1)))
    cleaned = t.clean(collection)
    if not len(cleaned):
        with pytest.raises(InputError, match="every row has a problem, so nothing is left to write"): report.write_clean(folder / "c.parquet")
        return
    back = Triples.read(report.write_clean(folder / "c.parquet"))
    assert back.table.equals(cleaned.table) and back.dropped == cleaned.dropped
    assert Triples.read(report.write_clean(folder / "c.jsonl")).table.equals(cleaned.table)
    assert Triples.read(report.write_clean(folder / "d.jsonl", "flagembedding")).texts("negative") == cleaned.texts("negative")
    rejected = [json.loads(line) for line in report.write_rejected(folder / "r.jsonl").read_text().splitlines()]
    assert {(r["row"], r["reason"]) for r in rejected} == {(int(i), k) for k, r in expected.found.items() for i in r}
    again = check_file(folder / "c.parquet", collection=collection)
    assert again.rows == len(cleaned)


def test_a_positive_is_known_across_batches_by_its_id_and_by_its_text(tmp_path):
    row = lambda p, pid, n, nid: dict(query_id="1", query="q", positive=p, positive_id=pid, negative=n, negative_id=nid)
    path = Triples.from_rows([row("x", "a", "one text", "b"), row("y", "c", "X", "d"), row("another text", "b", "z", "e")]).write(tmp_path / "t.jsonl")
    report = check_file(path, batch=1)
    assert [e["row"] for e in report.examples["negative is a known relevant passage"]] == [0, 1] and report.bad == 2


def test_margins_by_hand_and_by_a_slow_reference(tmp_path):
    rows = [dict(query="aaab", positive="aaaa", negative=n, source=s) for n, s in [("aaab", "x"), ("zzzz", "x"), ("aabb", "y"), ("aaaa", "y")]]
    path = Triples.from_rows(rows).write(tmp_path / "t.jsonl")
    report = check_file(path, Letters())
    encode = Letters()._encode
    m = [float(np.dot(*encode([r["query"], r["positive"]]).astype(float)) - np.dot(*encode([r["query"], r["negative"]]).astype(float))) for r in rows]
    assert m[0] < 0 < m[1] and report.margins["x"] == {"rows": 2, "false": 0.5, "mean": pytest.approx((m[0] + m[1]) / 2)}
    assert report.margins["y"]["rows"] == 1 and report.counts == {"negative equals the positive": {"y": 1}} # a row with a problem is not measured
    assert report.worst[0]["row"] == 0 and report.worst[0]["margin"] == pytest.approx(m[0]) and [w["margin"] < 0 for w in report.worst] == [True]
    assert "likely false negative under letters, row 0 (x), margin -0.0" in repr(report) and "m &lt; 0" in report._repr_html_()
    same = check_file(path, Letters(), batch=1)
    assert same.margins.keys() == report.margins.keys() and [w["row"] for w in same.worst] == [w["row"] for w in report.worst]


def test_margins_are_measured_on_a_sample_that_does_not_depend_on_batches(tmp_path):
    path = Triples.from_rows([dict(query=f"q{i} abc", positive=f"p{i} def", negative=f"n{i} ghi") for i in range(2000)]).write(tmp_path / "t.parquet")
    found = [check_file(path, Letters(), margin_rows=200, batch=b) for b in (64, 2000)]
    assert 140 < found[0].margins["negatives"]["rows"] < 260 and found[0].margins["negatives"]["rows"] == found[1].margins["negatives"]["rows"]
    assert found[0].margins["negatives"]["mean"] == pytest.approx(found[1].margins["negatives"]["mean"])


def test_lines_that_can_not_be_used_are_told_and_left_out(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"query": "q", "pos": ["p"], "neg": ["n", "p"]}\n{\n{"query": "q", "pos": ["p"]}\n{"query": "r", "pos": ["p"], "neg": ["m"]}\n')
    report = check_file(path)
    assert (report.format, report.rows, report.bad_lines, report.bad, report.errors) == ("flagembedding", 3, 2, 1, True)
    assert repr(report).startswith("t.jsonl: flagembedding, 3 rows, 1 source; 1 row with a problem, 2 lines that can't be used") and ":3: key 'neg' is missing" in repr(report)
    assert Triples.read(report.write_clean(tmp_path / "c.jsonl")).texts("negative") == ["n", "m"]
    rejected = [json.loads(line) for line in report.write_rejected(tmp_path / "r.jsonl.gz").open("rb") and gzip.open(tmp_path / "r.jsonl.gz")]
    assert [(r.get("line"), r.get("row"), r["reason"][-40:]) for r in rejected][:2] != [] and {r.get("line") for r in rejected} == {None, 2, 3} and {"text": "{"}.items() <= rejected[0].items()
    told = json.loads(report.to_json())
    assert told["errors"] and told["bad_lines"] == 2 and told["lines"][0]["line"] == 2 and told["counts"] == {"negative equals the positive": {"negatives": 1}}
    assert sorted(os.listdir(tmp_path)) == ["c.jsonl", "r.jsonl.gz", "t.jsonl"]


ANIMAL_TEXTS = dict(corpus={"a": "Dogs bark.", "b": "Cats purr."}, queries={"1": "what do dogs do", "2": "what do cats do"})

@pytest.mark.parametrize("format, content, options, bad, good", [
    ("tsv", b"query\tpositive\tnegative\none query\ta passage\tanother\ntwo\tfields\n\xff\ta\tb\nx\ty\tz w\n", {}, [3, 4], ["another", "z w"]),
    ("qidpidtriples", b"1\ta\tb\n1\ta\n1\ta\tzz\n9\ta\tb\n2\tb\ta\n", ANIMAL_TEXTS, [2, 3, 4], ["Cats purr.", "Dogs bark."]),
    ("msmarco", b'{"qid": "1", "pos": ["a"], "neg": {"x": ["b"]}}\n{\n{"qid": "1", "pos": ["a"], "neg": {"x": ["zz"]}}\n', ANIMAL_TEXTS, [2, 3], ["Cats purr."])])
@pytest.mark.parametrize("files", [False, True])
def test_a_bad_line_of_a_text_table_or_an_unknown_id_does_not_end_the_check(tmp_path, format, content, options, bad, good, files):
    (tmp_path / "t").write_bytes(content)
    if files:
        for name, table in options.items(): (tmp_path / name).write_text("".join(f"{i}\t{x}\n" for i, x in table.items()))
        options = {name: tmp_path / name for name in options}
    report = check_file(tmp_path / "t", **options)
    assert report.problem is None and report.format == format and [n for n, _ in report.lines] == bad and report.bad_lines == len(bad) and report.errors
    assert Triples.read(report.write_clean(tmp_path / "c.parquet")).texts("negative") == good
    rejected = [json.loads(line) for line in report.write_rejected(tmp_path / "r.jsonl").read_text().splitlines()]
    lines = content.decode("utf-8", "replace").splitlines()
    assert [(r["line"], r["text"]) for r in rejected] == [(n, lines[n - 1]) for n in bad]
    with pytest.raises(InputError, match=f"t:{bad[0]}: "): Triples.read(tmp_path / "t", **options) # a reader takes all or nothing


@pytest.mark.parametrize("name, content, reasons", [
    ("t.jsonl", '{\n{"query": "q", "pos": ["p"], "neg": []}\n', [(1, None), (2, None)]), ("t.jsonl", '{"query": "q", "positive": "p", "negative": "p"}\n[]\n', [(2, None), (None, 0)]), ("t", "a\tb\tc\td\n" * 2 + "\t\ta\n", None)])
def test_what_is_rejected_is_written_when_nothing_is_left(tmp_path, name, content, reasons):
    (tmp_path / name).write_text(content)
    report = check_file(tmp_path / name)
    if reasons is None: assert report.problem; return # no known format
    assert report.problem is None and report.errors
    rejected = [json.loads(line) for line in report.write_rejected(tmp_path / "r.jsonl").read_text().splitlines()]
    assert [(r.get("line"), r.get("row")) for r in rejected] == reasons
    with pytest.raises(InputError, match="every row has a problem, so nothing is left to write"): report.write_clean(tmp_path / "c.parquet")
    report.to_json(), report._repr_html_(), repr(report)


def test_the_format_told_is_the_one_that_was_read(tmp_path):
    (tmp_path / "t").write_text("1\ta\tb\n")
    assert check_file(tmp_path / "t").format == "qidpidtriples" and check_file(tmp_path / "t", format="tsv").format == "tsv"
    (tmp_path / "t").write_text("a query\ta\tb\n")
    assert check_file(tmp_path / "t", **ANIMAL_TEXTS).format == "qidpidtriples" and check_file(tmp_path / "t", format="csv").format == "tsv"


def test_the_head_counts_in_words(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"query": "q", "positive": "p", "negative": "p"}\n{\n')
    assert repr(check_file(path)).startswith("t.jsonl: jsonl, 1 row, 1 source; 1 row with a problem, 1 line that can't be used")
    path.write_text('{"query": "q", "positive": "p", "negative": "p"}\n{\n' * 2)
    assert repr(check_file(path)).startswith("t.jsonl: jsonl, 2 rows, 1 source; 2 rows with a problem, 2 lines that can't be used")


names = st.lists(st.text(st.sampled_from("ab ."), min_size=1, max_size=60) | st.tuples(st.just("x" * 20), st.text("ab", max_size=12), st.just("y" * 20), st.text("ab", max_size=3), st.just("z" * 20)).map("".join), max_size=8, unique=True)

@given(names=names)
@settings(max_examples=200, deadline=None)
def test_short_names_are_told_apart(names):
    from eci_sem.checks import _short
    short = _short(names)
    assert list(short) == names and len(set(short.values())) == len(names)
    assert all(short[n] == n for n in names if len(n) <= 40)


def test_two_long_sources_stay_two_in_the_tables(tmp_path):
    a, b = ("some/tool:" + "x" * 40 + middle + "y" * 40 for middle in ("one/way", "two/ways"))
    report = check_file(Triples.from_rows([dict(query="q", positive="p", negative="n", source=s) for s in (a, b)]).write(tmp_path / "t.jsonl"))
    shown = [line.split("  ")[0].removesuffix(" query") for line in repr(report).splitlines() if line.startswith("some/tool:")]
    assert len(shown) == 4 and len(set(shown)) == 2 and max(map(len, shown)) < 70 and any("one/way" in s for s in shown)


@pytest.mark.parametrize("name, content, message", [
    ("t.jsonl", None, "no such file"), ("t.csv", b"a,b", "is not known; expected .parquet"), ("t.parquet", b"PAR1xxxx", "not a readable Parquet file"),
    ("t.jsonl.gz", gzip.compress(b'{"query": "q", "positive": "p", "negative": "n"}\n' * 50, mtime=0)[:-4], "damaged gzip data"), ("t.tsv", b"1\t2\t3\n", "corpus=, queries= are needed")])
def test_a_file_that_can_not_be_read_is_told(tmp_path, name, content, message):
    if content: (tmp_path / name).write_bytes(content)
    report = check_file(tmp_path / name)
    assert report.errors and not report.ok and message in report.problem and message in repr(report) and message in report._repr_html_() and json.loads(report.to_json())["problem"]
    with pytest.raises(InputError, match=message): report.write_clean(tmp_path / "c.parquet")
    with pytest.raises(InputError, match=message): report.write_rejected(tmp_path / "r.jsonl")
    assert os.listdir(tmp_path) == ([name] if content else [])


def test_arguments_are_checked_first(tmp_path):
    for name in ("margin_rows", "examples", "batch"):
        with pytest.raises(InputError, match=f"{name} is 0, expected a whole number of at least 1"): check_file("t", **{name: 0})
    with pytest.raises(InputError, match="encoder is int; expected a name for load_encoder"): check_file("t", 3)
    with pytest.raises(InputError, match="collection is str, expected a Collection"): check_file("t", collection="scifact")
    path = Triples.from_rows([dict(query="q", positive="p", negative="n")]).write(tmp_path / "t.jsonl")
    report = check_file(path)
    path.write_text(path.read_text() * 2)
    with pytest.raises(InputError, match=r"changed while it was checked \(1 rows, then 2\)"): list(report.clean_batches())
    assert check_file(path, depth=3).problem.endswith("leave it out.")


def test_keys_depend_on_order_and_place():
    a, b = np.array([1, 2], np.uint64), np.array([2, 1], np.uint64)
    assert len({*mix_keys(a, b).tolist(), *mix_keys(a, a).tolist(), *mix_keys(a).tolist()}) == 6
    assert len(np.unique(mix_keys(np.arange(100_000, dtype=np.uint64), np.zeros(100_000, np.uint64)))) == 100_000


def test_real_files_are_checked(shared_data):
    path = shared_data / "msmarco-triples-sample" / "triples.jsonl.gz"
    if not path.exists(): pytest.skip("msmarco-triples-sample is not in the folder of public test collections")
    from eci_sem.encoders import load_encoder
    report = check_file(path, load_encoder("glove"), batch=100)
    t = Triples.read(path)
    assert report.ok and report.rows == len(t) and report.counts == t.check().counts and list(report.sources) == t.sources and sum(m["rows"] for m in report.margins.values()) == len(t)
    glove = load_encoder("glove")
    q, p, n = glove.encode_queries(t.texts("query")), glove.encode_passages(t.texts("positive")), glove.encode_passages(t.texts("negative"))
    m = np.vecdot(q.astype(float), p.astype(float)) - np.vecdot(q.astype(float), n.astype(float))
    for s in t.sources: assert report.margins[s]["false"] == pytest.approx((m[t.column("source") == s] < 0).mean()) and report.margins[s]["mean"] == pytest.approx(m[t.column("source") == s].mean())
    assert [w["row"] for w in report.worst] == np.argsort(m)[:3].tolist()


# scoring in batches

@pytest.mark.parametrize("config", [ECIConfig(), ECIConfig(overlap="none"), ECIConfig(overlap="jaccard", residual="unit", gain=10.0)])
def test_a_stream_scores_as_the_table(tmp_path, config):
    rng = np.random.default_rng(0)
    words = "river stone light market winter letter engine forest island doctor".split()
    some = lambda n: " ".join(rng.choice(words, n))
    t = Triples.from_rows([dict(query=some(3), positive=some(5), negative=some(5), source=str(rng.choice(["a", "b"]))) for _ in range(300)])
    path = t.write(tmp_path / "t.parquet")
    encoder = Letters()
    q, p, n = (encoder._encode(t.texts(c)) for c in ("query", "positive", "negative"))
    rho = lexical_residuality(t, form=config.overlap).rho
    for size, keep in ((300, 1 << 28), (17, 1 << 28), (17, 1), (64, 12_000)):
        found = score_stream(lambda: scan_triples(path, batch=size), encoder, config, keep=keep)
        assert list(found) == t.sources
        for s in t.sources:
            mine = t.column("source") == s
            whole = eci_score(q[mine], p[mine], n[mine], None if config.overlap == "none" else rho[mine], config=config)
            assert found[s].value == pytest.approx(whole.value, rel=1e-10) and found[s].n == whole.n and found[s].factor_means == pytest.approx(whole.factor_means)


def test_the_weights_of_a_stream_are_those_of_the_distinct_positives(tmp_path):
    t = Triples.from_rows([dict(query="q", positive=f"word{i % 7} and {i % 3} and so on", negative="n") for i in range(60)])
    path = t.write(tmp_path / "t.jsonl")
    whole = IDF.fit(t.distinct("positive")[0], get_tokenizer("word"))
    for size in (1, 13, 60): assert stream_idf(scan_triples(path, batch=size)).fingerprint == whole.fingerprint


def test_texts_that_come_again_are_encoded_once(tmp_path):
    t = Triples.from_rows([dict(query=f"q{i % 3}", positive="p", negative=f"n{i % 5}") for i in range(60)])
    path, encoder = t.write(tmp_path / "t.jsonl"), Letters()
    score_stream(lambda: scan_triples(path, batch=4), encoder)
    assert sorted(encoder.seen) == sorted(["q0", "q1", "q2", "p", *(f"n{i}" for i in range(5))])


def test_what_a_stream_can_not_score_is_refused(tmp_path):
    path = Triples.from_rows([dict(query="q", positive="p", negative="n")]).write(tmp_path / "t.jsonl")
    with pytest.raises(InputError, match="batches is generator, expected a function that starts a walk"): score_stream(scan_triples(path), Letters())
    with pytest.raises(InputError, match="space 'centred' needs the mean passage vector up front"): score_stream(lambda: scan_triples(path), Letters(), ECIConfig(space="centred"))
    with pytest.raises(InputError, match="an IDF table was given, but overlap is 'none'"): score_stream(lambda: scan_triples(path), Letters(), ECIConfig(overlap="none"), idf=stream_idf(scan_triples(path)))
    with pytest.raises(InputError, match="the stream holds no triples"): stream_idf([])


class Digests:
    "A fake encoder that keeps nothing."
    name, dim, fingerprint = "digests", 16, "digests"
    def encode_queries(self, texts, progress=None):
        import hashlib
        return np.array([np.frombuffer(hashlib.sha256(t.encode()).digest(), np.int16) for t in texts], np.float32)
    encode_passages = encode_queries


def test_four_times_the_rows_take_little_more_memory(tmp_path):
    import tracemalloc
    used = {}
    for n in (10, 500, 2_000): # the first one brings in what is imported on the way
        i = np.arange(n)
        t = Triples.from_pandas(pd.DataFrame(dict(query=np.char.add("query ", (i % 50).astype(str)), positive=np.char.add("passage " + "y" * 600, (i % 50).astype(str)), negative=np.char.add("negative " + "z" * 600, i.astype(str)))))
        path = t.write(tmp_path / f"{n}.jsonl")
        table = t.table.nbytes
        del t
        if n > 10: tracemalloc.start()
        report = check_file(path, batch=100)
        score_stream(report.clean_batches, Digests(), keep=100_000)
        used[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert report.rows == n and report.ok
    assert used[2_000] < used[500] + 60 * 1_500 + 2e5 and used[2_000] < table


def test_a_pool_holds_a_passage_once_for_each_of_its_parts(tmp_path):
    "By hand, across batches: twice in the pool of two is as it should be, the third is a duplicate; twice in a plain source is one too many."
    row = lambda source: json.dumps(dict(query="q", positive="p", negative="n", source=source)) + "\n"
    path = tmp_path / "pool.jsonl"
    path.write_text(row("a+b") * 2 + row("a") + row("a+b") + row("a"))
    for batch in (1, 2, 100):
        report = check_file(path, batch=batch)
        assert report.counts == {"duplicate row": {"a+b": 1, "a": 1}}
        assert [t.column("source").tolist() for t in report.clean_batches() if len(t)] and sum(map(len, report.clean_batches())) == 3


def test_a_bar_in_a_terminal_and_quiet_elsewhere(tmp_path, capsys, monkeypatch):
    import sys
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(dict(query=f"q{i}", positive="p", negative=f"n{i}")) + "\n" for i in range(40)))
    check_file(path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    check_file(path, batch=10)
    err = capsys.readouterr().err
    assert "t.jsonl: reading" in err and "t.jsonl: checking" in err and "/40.0" in err


# what a ranking would refuse, or count wrongly

def written(path, rows): path.write_text("".join(json.dumps(r) + "\n" for r in rows)); return path
def asked(i, source="a", **more): return dict(query=f"q{i}", positive=f"p{i}", negative=f"n{i} {source}", source=source, **more)


def test_what_can_not_be_ranked_is_said(tmp_path):
    one = check_file(written(tmp_path / "one.jsonl", [asked(0), asked(0, "b")]))
    assert one.unrankable.startswith("1 of 1 queries is covered by every source") and "; can't be ranked\n" in repr(one) and "be ranked: 1 of 1" in one._repr_html_()
    assert json.loads(one.to_json())["unrankable"] == one.unrankable and not one.errors, "no row has a problem"
    two = check_file(written(tmp_path / "two.jsonl", [asked(i, s) for i in (0, 1) for s in "ab"]))
    assert two.unrankable is None and "no problem found" in repr(two) and json.loads(two.to_json())["unrankable"] is None


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_a_query_id_of_several_texts_is_found_across_batches_and_files(tmp_path, batch):
    rows = [asked(0, query_id="1"), asked(1, query_id="2"), asked(2, query_id="3"), asked(3, query_id="2"), dict(asked(0, query_id="1"), query=" Q0", negative="other")]
    report = check_file(written(tmp_path / "t.jsonl", rows), batch=batch)
    assert report.counts == {"query id of several texts": {"a": 2}} and [e["row"] for e in report.examples["query id of several texts"]] == [1, 3] and report.errors
    assert "query id of several texts, row 1 (a): id '2' of query 'q1'" in repr(report) and "query id of several texts, row 3 (a): id '2' of query 'q3'" in repr(report)
    assert sorted(q for t in report.clean_batches() for q in t.column("query_id")) == ["1", "1", "3"]
    from functools import reduce
    from eci_sem.checks import _merge_known
    parts = [check_file(written(tmp_path / f"{k}.jsonl", part), batch=batch) for k, part in enumerate((rows[:2] + rows[4:], rows[2:4]))]
    assert not any(p.errors for p in parts)
    known = reduce(_merge_known, (p._known for p in parts))
    for p in parts: p._known = known
    assert sorted(q for p in parts for t in p.clean_batches() for q in t.column("query_id")) == ["1", "1", "3"]


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_of_equal_rows_in_several_batches_the_lowest_rank_stays(tmp_path, batch):
    rows = [asked(0, rank=3), asked(0, rank=1), asked(1, rank=1), asked(0), asked(1, rank=1, score=2.0), asked(0, rank=2)]
    report = check_file(written(tmp_path / "t.jsonl", rows), batch=batch)
    assert report.counts == {"duplicate row": {"a": 4}} and Triples.read(report.write_clean(tmp_path / "clean.parquet")).table.select(["query", "rank", "score"]).to_pylist() == [dict(query="q0", rank=1, score=None), dict(query="q1", rank=1, score=None)]


def test_files_of_another_collection_and_names_that_are_alike_are_told(tmp_path):
    report = check_file(written(tmp_path / "t.jsonl", [asked(0, "lexical"), asked(0, "Lexical")]), collection=COLLECTION)
    assert "these triples carry no ids of collection 'animals'" in repr(report) and "the sources 'lexical' and 'Lexical' differ by case or blanks alone" in repr(report)
    with pytest.raises(InputError, match="t.jsonl: these triples carry no ids of collection 'animals'"): list(report.clean_batches())
    assert any(line.startswith("words") for line in repr(report).splitlines()) and report.length_frame().columns.name == "words"
