"""Ranking in a walk: the scores of the table in memory, intervals of a plain block bootstrap, bounded memory, files and the command."""
import hashlib
import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.bootstrap import compare_pairs, interval, resample_counts
from eci_sem.cli import main
from eci_sem.collection import Collection, InputError
from eci_sem.encoders import load_encoder
from eci_sem.formats import scan_triples
from eci_sem.lexical import IDF, get_tokenizer, lexical_residuality
from eci_sem.rank import rank_sources
from eci_sem.ranked_stream import _number_of_blocks, rank_files, rank_stream
from eci_sem.score import ECIConfig, logdet_from_rows, weighted_residuals
from eci_sem.stream import accumulate_stream, query_keys, score_stream
from eci_sem.triples import Triples

WORDS = "river stone light market winter letter engine forest island doctor bridge summer".split()


class Hashed:
    "A fake encoder: sums of a random vector a word."
    name, dim, fingerprint = "hashed", 12, "hashed"
    def __init__(self):
        rng = np.random.default_rng(7)
        self.table = {w: rng.normal(size=self.dim) for w in WORDS}
    def encode_queries(self, texts, progress=None): return np.array([sum(self.table[w] for w in t.split() if w in self.table) + 0.01 for t in texts], np.float32)
    encode_passages = encode_queries


def some(seed, queries, per=2, sources=("a", "b", "random"), missing=()):
    "Triples of `queries` queries, each source with 1 to `per` negatives; (source, query) in `missing` has none."
    rng, rows = np.random.default_rng(seed), []
    text = lambda n: " ".join(rng.choice(WORDS, n))
    for q in range(queries):
        query, positive = text(3), f"{text(5)} p{q}"
        for s in sources:
            if (s, q) not in missing: rows += [dict(query_id=f"q{q}", query=query, positive_id=f"p{q}", positive=positive, negative_id=f"{s}{q}.{k}", negative=f"{text(6)} {s} {k}", source=s) for k in range(int(rng.integers(1, per + 1)))]
    rng.shuffle(rows)
    return Triples.from_rows(rows)


def walk(t, size): return lambda: (t.take(range(i, min(i + size, len(t)))) for i in range(0, len(t), size))


@pytest.mark.parametrize("config", [ECIConfig(), ECIConfig(overlap="none", gain="d"), ECIConfig(residual="unit", overlap="jaccard")])
@pytest.mark.parametrize("missing", [(), {("a", 3), ("b", 5), ("b", 6)}])
def test_scores_are_those_of_the_table_in_memory(config, missing):
    t, encoder = some(0, 40, missing=missing), Hashed()
    held = rank_sources(t, encoder, config=config, hybrids=None, metrics="eci_sem", resamples=50)
    for size in (7, 1000):
        found = rank_stream(walk(t, size), encoder, config, resamples=50)
        assert list(found.frame().index) == list(held.frame().index) and found.metrics == ["eci_sem"]
        for c in ("value", "per_dim", "trace", "diversity_loss", "margin", "a", "l", "rho", "w", "hardness", "false_negative_rate"): assert np.allclose(found.table[c], held.table[c], rtol=1e-10, atol=1e-12), c
        for c in ("kind", "n", "queries"): assert found.table[c].tolist() == held.table[c].tolist()
        assert found.lengths.equals(held.lengths.loc[found.lengths.index].astype(found.lengths.dtypes)) or np.allclose(found.lengths.to_numpy(float), held.lengths.loc[found.lengths.index].to_numpy(float))
        assert found.dropped.to_dict("records") == held.dropped.to_dict("records") and (len(found.dropped) > 0) == bool(missing)


@given(seed=st.integers(0, 5), blocks=st.sampled_from([2, 5, 16, None]), size=st.integers(5, 80))
@settings(max_examples=8, deadline=None)
def test_intervals_are_those_of_a_plain_block_bootstrap(seed, blocks, size):
    t, encoder = some(seed, 16), Hashed()
    found = rank_stream(walk(t, size), encoder, blocks=blocks, resamples=60, seed=seed)
    # plainly: all rows held, the queries dealt out to the blocks in the order of their keys, and each draw scored from its rows
    keys = query_keys(t, seed)
    unit = np.searchsorted(np.unique(keys), keys) % (blocks or 16)
    rho = lexical_residuality(t, IDF.fit(t.distinct("positive")[0], get_tokenizer("word"))).rho
    X = weighted_residuals(encoder.encode_queries(t.texts("query")), encoder.encode_passages(t.texts("positive")), encoder.encode_passages(t.texts("negative")), rho)
    counts, names, draws, values = resample_counts(blocks or 16, 60, seed), sorted(t.sources), [], []
    for s in names:
        mine = t.column("source") == s
        draws.append(logdet_from_rows(X[mine], counts[:, unit[mine]])); values.append(logdet_from_rows(X[mine]))
    draws = np.stack(draws, 1)
    assert np.allclose(found.draws["eci_sem"][names], draws, rtol=1e-10)
    lo, hi = interval(draws)
    assert np.allclose(found.table.loc[names, "lo"], lo) and np.allclose(found.table.loc[names, "hi"], hi)
    plain = compare_pairs(names, values, draws, [("a", "b")], units=blocks or 16)
    row = found.pairs[found.pairs["family"] == "candidates"].iloc[0]
    for c in ("difference", "lo", "hi", "p", "p_holm"): assert row[c] == pytest.approx(plain.iloc[0][c], rel=1e-8)
    assert found.provenance["units"] == (blocks or 16)


def test_a_query_is_in_one_block_in_every_source_and_the_blocks_are_of_one_size():
    t, seen = some(1, 50), {}
    def block(part):
        found = (query_keys(part) % np.uint64(8)).astype(int)
        for q, b in zip(part.column("query_id"), found): assert seen.setdefault(q, b) == b
        return found
    sums = accumulate_stream(walk(t, 9), Hashed(), blocks=8, block=block)
    plain = score_stream(walk(t, 9), Hashed())
    for s, x in sums.items():
        assert x.result().value == pytest.approx(plain[s].value, rel=1e-12) and x.block_scores(np.ones(8)) == pytest.approx(plain[s].value, rel=1e-10)
        assert x.block_counts.tolist() == [sum(b == k for q, b in seen.items() for _ in range(int(((t.column("query_id") == q) & (t.column("source") == s)).sum()))) for k in range(8)]
    assert accumulate_stream(walk(t, 9), Hashed(), blocks=8)["a"].block_counts.tolist() == sums["a"].block_counts.tolist()
    keys = np.unique(query_keys(t))
    assert len(keys) == 50 and len(np.unique(query_keys(t, 1))) == 50 and not set(keys.tolist()) & set(query_keys(t, 1).tolist())


def test_another_seed_makes_other_blocks():
    t, encoder = some(2, 60), Hashed()
    a, b, c = (rank_stream(walk(t, 50), encoder, blocks=8, resamples=40, seed=s) for s in (0, 0, 1))
    assert a.draws["eci_sem"].equals(b.draws["eci_sem"]) and not a.draws["eci_sem"].equals(c.draws["eci_sem"]) and np.allclose(a.table["value"], c.table["value"])


def test_the_memory_of_the_blocks_is_bounded():
    each = 3 * 384 * 385 * 4 # a packed triangle of float64 for each of 3 sources
    assert _number_of_blocks(None, 3, 384, 10**6, 2 << 30) == 256 and _number_of_blocks(None, 3, 384, 100, 2 << 30) == 100
    assert _number_of_blocks(None, 3, 384, 10**6, 40 * each) == 40 and _number_of_blocks(64, 3, 384, 10**6, 64 * each) == 64
    with pytest.raises(InputError, match=r"3 sources at 384 dimensions take 1.8 MB a block of queries, so that 32 blocks need 57 MB, and memory is 35 MB; from fewer blocks no interval is worth much: give more memory, or rank fewer sources"): _number_of_blocks(None, 3, 384, 10**6, 20 * each)
    with pytest.raises(InputError, match=r"so that 64 blocks need 114 MB, and memory is 71 MB: give more memory, or blocks=40\."): _number_of_blocks(64, 3, 384, 10**6, 40 * each)
    found = rank_stream(walk(some(3, 80), 50), Hashed(), blocks=64, resamples=20)
    assert found.provenance["block_bytes"] == 3 * 64 * (12 * 13 // 2) * 8 and "Resampled in 64 blocks of queries, of which a matrix for each source is held (0 MB)." in found.notes


def test_four_times_the_rows_take_little_more_memory(tmp_path):
    used, encoder = {}, Hashed()
    for n in (10, 500, 2_000): # the first one brings in what is imported on the way
        i, rng = np.arange(n), np.random.default_rng(n)
        text = lambda what: np.char.add(np.char.add(rng.choice(WORDS, n), f" {what} " + "y" * 500 + " "), i.astype(str))
        path = Triples.from_pandas(pd.DataFrame(dict(query=np.char.add("river ", (i // 2).astype(str)), positive=text("p"), negative=text("n"), source=np.where(i % 2, "a", "b")))).write(tmp_path / f"{n}.jsonl")
        if n > 10: tracemalloc.start()
        found = rank_stream(lambda: scan_triples(path, batch=100), encoder, resamples=10, keep=100_000)
        used[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found.table["n"].sum() == n
    # beside the keys, the vocabulary grows: each positive here has a number of its own
    assert used[2_000] < used[500] + 300 * 1_500 and used[2_000] < 2_000 * 1_000


def test_what_can_not_be_ranked_is_refused():
    t, encoder = some(4, 10), Hashed()
    for call, message in ((lambda: rank_stream(walk(t, 9)(), encoder), "batches is generator, expected a function that starts a walk"), (lambda: rank_stream(walk(t, 9), encoder, resamples=1), "resamples is 1, expected a whole number of at least 2"),
        (lambda: rank_stream(walk(t, 9), encoder, blocks=1), "blocks is 1, expected a whole number of at least 2"), (lambda: rank_stream(walk(t, 9), encoder, alpha=1), "alpha is 1, expected a number between 0 and 1"), (lambda: rank_stream(walk(t, 9), encoder, config="unit"), "config is str, expected ECIConfig"),
        (lambda: rank_stream(walk(t, 9), encoder, control="llm"), "unknown control 'llm'; the sources are a, b, random"), (lambda: rank_stream(lambda: [], encoder), "the stream holds no triples"), (lambda: rank_stream(walk(t, 9), encoder, ECIConfig(consistency="calibrated")), "consistency 'calibrated' needs a calibration"),
        (lambda: rank_stream(walk(t, 9), encoder, ECIConfig(space="centred")), "space 'centred' needs the mean passage vector up front"), (lambda: rank_stream(walk(t.take([0]), 9), encoder), r"1 query is covered by every source, expected at least 2 \(queries of each:"),
        (lambda: rank_stream(walk(t, 9), encoder, resamples=20).explain(), "an explanation needs the triples"), (lambda: rank_stream(walk(t, 9), encoder, resamples=20).examples(t), "a choice of examples needs the triples")):
        with pytest.raises(InputError, match=message): call()


def test_files_are_checked_and_named_as_in_memory(tmp_path):
    t, encoder = some(5, 30), Hashed()
    bad = Triples.concat([t, t.take([0, 0])]) # copies
    for s in t.sources: bad.select(s).rename(source=s, to="negatives").write(tmp_path / f"{s}.jsonl")
    files = [tmp_path / f"{s}.jsonl" for s in sorted(t.sources)]
    found, held = rank_files(files, encoder, resamples=40), rank_sources(bad, encoder, hybrids=None, metrics="eci_sem", resamples=40)
    assert np.allclose(found.table["value"], held.table.loc[found.table.index, "value"], rtol=1e-10) and found.dropped.to_dict("records") == held.dropped.to_dict("records") and found.dropped["rows"].sum() == 2
    told = json.loads(found.to_json())
    assert {r["source"] for r in told["table"]} == set(t.sources) and told["provenance"]["units"] == 30 and found._repr_html_() and found.to_latex() and "at n = 30" in found.advice()
    whole = t.write(tmp_path / "whole.parquet")
    assert np.allclose(rank_files([whole], encoder, resamples=40).table["value"], rank_stream(walk(t, 8), encoder, resamples=40).table["value"])
    with pytest.raises(InputError, match=r"whole.jsonl: source 'a' is in .*whole.parquet too; sources of several files need names of their own"): rank_files([whole, t.write(tmp_path / "whole.jsonl")], encoder)
    (tmp_path / "cut.jsonl").write_text('{"query": "q", "positive": "p"}\n' + (tmp_path / "a.jsonl").read_text() + "{\n")
    with pytest.raises(InputError, match=r"cut.jsonl:1: key 'negative' is missing.*\(2 such in all; eci-sem check --clean leaves them out\.\)"): rank_files([tmp_path / "cut.jsonl"], encoder)
    with pytest.raises(InputError, match="no such file"): rank_files([tmp_path / "none.jsonl"], encoder)


def test_a_collection_says_what_is_relevant_and_gives_the_weights(tmp_path):
    t, encoder = some(7, 20), Hashed()
    corpus = dict(zip(t.column("positive_id"), t.texts("positive"))) | dict(zip(t.column("negative_id"), t.texts("negative")))
    queries = dict(zip(t.column("query_id"), t.texts("query")))
    judged = {q: {f"p{q[1:]}": 1, f"a{q[1:]}.0": 1} if q == "q3" else {f"p{q[1:]}": 1} for q in queries} # a negative of source a is relevant
    c = Collection("mine", corpus, queries, {"test": judged})
    found = rank_files([t.write(tmp_path / "t.jsonl")], encoder, collection=c, resamples=30)
    held = rank_sources(t, encoder, collection=c, hybrids=None, metrics="eci_sem", resamples=30)
    assert np.allclose(found.table["value"], held.table.loc[found.table.index, "value"], rtol=1e-10) and found.provenance["collection"]["name"] == "mine" and found.provenance["idf"] == held.provenance["idf"]
    assert found.dropped.to_dict("records") == held.dropped.to_dict("records") and "known relevant" in " ".join(found.dropped["reason"])


def test_the_command(tmp_path, capsys):
    t = some(6, 20)
    path, out = t.write(tmp_path / "t.parquet"), tmp_path / "r.csv"
    assert main(["rank", str(path), "--encoder", "glove", "--stream", "--resamples", "100", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("ECI_sem, glove (50 d): 20 queries, 100 resamples") and "too few to tell" not in said.split("\n\n")[0] and pd.read_csv(out)["source"].tolist()[-1] == "random"
    assert main(["rank", str(path), "--encoder", "glove", "--stream", "--resamples", "100", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    held = rank_sources(t, "glove", hybrids=None, metrics="eci_sem", resamples=100)
    assert {r["source"]: pytest.approx(r["value"], rel=1e-9) for r in told["table"]} == held.table["value"].to_dict() and told["advice"]
    assert main(["rank", str(path), "--encoder", "glove", "--stream", "--explain"]) == 2 and "--explain needs the triples, which --stream does not hold" in capsys.readouterr().err
    assert main(["rank", str(path), "--encoder", "glove", "--stream", "--depth", "3"]) == 2 and "where --depth has no effect" in capsys.readouterr().err


class Digest:
    name, dim, fingerprint = "digest", 16, "digest"
    def encode_queries(self, texts, progress=None): return np.array([np.frombuffer(hashlib.sha256(t.encode()).digest(), np.int16) for t in texts], np.float32)
    encode_passages = encode_queries


def test_a_positive_of_one_file_is_no_negative_in_another(tmp_path):
    "Two positives a query: cut into files so that each file knows one of them, the ranking is that of all rows together."
    rows = [dict(query=f"query {i}", positive=f"answer {i} {k}", negative=f"answer {i} {1 - k}" if s == "bm25" and i % 3 == 0 else f"{s} {i} {k} other", source=s) for i in range(30) for k in (0, 1) for s in ("bm25", "dense")]
    whole = Triples.from_rows(rows)
    held = rank_sources(whole, Digest(), hybrids=None, metrics=["eci_sem"], progress=False, resamples=50)
    assert held.dropped.query("reason == 'negative is a known relevant passage'")["rows"].sum() == 20
    one = rank_files([whole.write(tmp_path / "all.jsonl")], Digest(), resamples=50)
    for k in (0, 1): Triples.from_rows([r for r in rows if r["positive"].endswith(str(k))]).write(tmp_path / f"{k}.parquet")
    cut = rank_files([tmp_path / "[01].parquet"], Digest(), resamples=50)
    for found in (one, cut):
        assert found.table["value"].to_dict() == pytest.approx(held.table["value"].to_dict(), rel=1e-9) and found.table["n"].to_dict() == held.table["n"].to_dict()
        assert found.dropped.query("reason == 'negative is a known relevant passage'")["rows"].sum() == 20


def test_paths_rows_and_frames_are_ranked_as_their_triples(tmp_path):
    rows = [dict(query=f"query {i}", positive=f"answer {i}", negative=f"{s} {i} other", source=s) for i in range(24) for s in ("bm25", "dense")]
    whole = Triples.from_rows(rows)
    held = rank_sources(whole, Digest(), metrics=["eci_sem"], progress=False, resamples=50)
    path = whole.write(tmp_path / "all.jsonl")
    for given in (path, str(path), rows, tuple(rows), whole.to_pandas(), whole.table, [path]):
        assert rank_sources(given, Digest(), metrics=["eci_sem"], progress=False, resamples=50).table.equals(held.table)


def test_files_that_a_pattern_or_a_folder_names_are_one_set(tmp_path, capsys):
    "A source may be in several of them; of files that are named one by one it may not."
    rows = [dict(query=f"query {i}", positive=f"answer {i}", negative=f"{s} {i} other", source=s) for i in range(24) for s in ("bm25", "dense")]
    held = rank_sources(Triples.from_rows(rows), load_encoder("glove"), hybrids=None, metrics=["eci_sem"], progress=False, resamples=40)
    folder = tmp_path / "shards"; folder.mkdir()
    for k in range(3): Triples.from_rows([r for i, r in enumerate(rows) if i // 2 % 3 == k]).write(folder / f"{k}.{['parquet', 'jsonl', 'jsonl.gz'][k]}")
    (folder / "_SUCCESS").write_text(""); (folder / ".hidden.jsonl").write_text("{")
    for given in (folder, folder / "*"):
        if given == folder:
            found = rank_files([given], load_encoder("glove"), resamples=40)
            assert found.table["value"].to_dict() == pytest.approx(held.table["value"].to_dict(), rel=1e-9)
        for more in ([], ["--stream"]):
            pattern = str(folder / "[0-9].*") if given != folder else str(given)
            assert main(["rank", pattern, "--encoder", "glove", "--resamples", "40", "--json", *more]) == 0
            told = {r["source"]: r["value"] for r in json.loads(capsys.readouterr().out)["table"]}
            assert {s: told[s] for s in ("bm25", "dense")} == pytest.approx(held.table["value"].to_dict(), rel=1e-9)
    with pytest.raises(InputError, match="source 'bm25' is in .*0.parquet too"): rank_files(sorted(folder.glob("[01].*")), Digest())
    assert main(["rank", str(tmp_path / "no*.jsonl"), "--encoder", "glove"]) == 2 and "no file fits this pattern" in capsys.readouterr().err
