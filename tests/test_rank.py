"""Ranking: every number against a plain recomputation, nothing moves what should not move it, and errors before any work."""
import hashlib
import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.bootstrap import resample_counts
from eci_sem.collection import Collection, InputError
from eci_sem.lexical import IDF, get_tokenizer, lexical_residuality
from eci_sem.rank import Ranking, agreement, rank_sources
from eci_sem.score import ECIConfig, calibrate, eci_net, eci_score, mean_vector
from eci_sem.triples import Triples

WORDS = "sort array list matrix file socket thread plot axis tensor gradient value return compute index sparse signal filter table column".split()


class Stub:
    "Deterministic vectors: the sum of a hashed vector per word; counts what it is asked."
    name, dim, fingerprint, max_length, info = "stub", 8, "stub-1", 512, dict(pooling="sum")
    def __init__(self): self.asked = []
    def _vector(self, text):
        words = [np.random.default_rng(int(hashlib.sha256(w.encode()).hexdigest()[:8], 16)).normal(size=self.dim) for w in text.lower().split()]
        v = np.sum(words, axis=0)
        return v / np.linalg.norm(v)
    def _encode(self, texts): self.asked += texts; return np.stack([self._vector(t) for t in texts]).astype(np.float32)
    encode_queries = encode_passages = lambda self, texts: self._encode(list(texts))
    def tokenize(self, texts): return [t.split() for t in texts]


def made(sources=("bm25", "dense", "random"), queries=30, per_query=1, seed=0, prefix=""):
    "Triples whose negatives are more like the query in some sources than in others."
    rows = []
    for q in range(queries):
        shared = np.random.default_rng([seed, q])
        words = [WORDS[i] for i in shared.permutation(len(WORDS))[:9]]
        query, positive = " ".join(words[:4]), " ".join(words[1:7])
        for s in sources:
            rng = np.random.default_rng([seed, q, *s.encode()])
            keep = {"bm25": 3, "dense": 2, "llm": 2}.get(s, 0)
            for k in range(per_query if isinstance(per_query, int) else per_query[s]):
                tail = [WORDS[i] for i in rng.integers(len(WORDS), size=6)]
                # the mark makes every negative a text of its own
                rows.append(dict(query_id=f"q{q:03d}", positive_id=f"p{q:03d}", negative_id=f"{prefix}{s}:{q}:{k}", query=query, positive=positive, negative=" ".join([*words[1:1 + keep], *tail, f"{s}{q}x{k}"]), source=s, rank=k + 1))
    return Triples.from_rows(rows)


@pytest.fixture(scope="module")
def triples(): return made()


@pytest.fixture(scope="module")
def ranking(triples): return rank_sources(triples, Stub())


def values(ranking): return ranking.table["value"].to_dict()


def parts_of(t, encoder, idf_texts=None, form="query"):
    "Arrays of the rows of t, made the plain way."
    word = get_tokenizer("word")
    rho = lexical_residuality(t, IDF.fit(idf_texts if idf_texts is not None else sorted(set(t.texts("positive"))), word), word, form=form).rho
    return encoder.encode_queries(t.texts("query")), encoder.encode_passages(t.texts("positive")), encoder.encode_passages(t.texts("negative")), rho


# what is in it

def test_one_row_per_source_in_sections(ranking):
    t = ranking.table
    assert list(t["kind"]) == ["source", "source", "hybrid", "control"]
    assert set(t.index) == {"bm25", "dense", "bm25+dense", "random"} and t.index[-1] == "random" and t.index[2] == "bm25+dense"
    assert (t["queries"] == 30).all() and t.loc["bm25+dense", "n"] == 60 and t.loc["bm25", "n"] == 30
    assert ((t["lo"] < t["value"]) & (t["value"] < t["hi"])).all() and ((t["net_lo"] < t["net_value"]) & (t["net_value"] < t["net_hi"])).all()
    assert t["per_dim"].to_numpy() == pytest.approx(t["value"] / 8) and t["diversity_loss"].to_numpy() == pytest.approx(1 - t["value"] / t["trace"])
    assert t["mean_of_parts"].notna().to_list() == [False, False, True, False]
    for column in ("a", "l", "rho", "w", "margin", "hardness", "false_negative_rate", "eci_v1", "without_locality", "net_expected_false"): assert t[column].notna().all()


@pytest.mark.parametrize("source", ["bm25", "random", "bm25+dense"])
def test_scores_are_those_of_the_plain_functions(triples, ranking, source):
    t = triples.pool(["bm25", "dense"]) if "+" in source else triples.select(source)
    q, p, n, rho = parts_of(t, Stub())
    assert ranking.table.loc[source, "value"] == pytest.approx(eci_score(q, p, n, rho).value, rel=1e-12)
    f = ranking.factors[ranking.factors["source"] == source]
    if "+" not in source: assert f["rho"].mean() == pytest.approx(rho.mean()) and len(f) == 30 and ranking.table.loc[source, "rho"] == pytest.approx(rho.mean())
    assert ranking.spectra.query("source == @source")["eigenvalue"].sum() == pytest.approx(ranking.table.loc[source, "trace"])


def test_draws_are_the_scores_of_the_triples_drawn(triples):
    "The naive loop: repeat the triples of each query drawn, and score them from scratch."
    ranking, encoder = rank_sources(triples, Stub(), resamples=6, seed=4), Stub()
    one = triples.select("bm25")
    order = np.argsort(one.column("query_id"))
    q, p, *_ = parts_of(one.take(order), encoder)
    words = one.texts("positive")
    answers = [{j for j in range(30) if words[order[j]] == words[order[i]]} for i in range(30)]
    calibration, mean = calibrate(q, p, answers, seed=4), mean_vector(p)
    for name in ("bm25", "random", "bm25+dense"):
        t = triples.pool(["bm25", "dense"]) if "+" in name else triples.select(name)
        ids = sorted(set(t.column("query_id")))
        arrays = parts_of(t, encoder)
        for b, counts in enumerate(resample_counts(30, 6, seed=4)):
            rows = np.concatenate([np.flatnonzero(t.column("query_id") == ids[i]) for i, c in enumerate(counts) for _ in range(c)])
            drawn = [x[rows] for x in arrays]
            wanted = dict(eci_sem=eci_score(*drawn).value, eci_net=eci_net(*drawn, calibration, 1 / len(set(words)), mean=mean).value)
            for m, value in wanted.items(): assert ranking.draws[m][name][b] == pytest.approx(value, rel=1e-9, abs=1.01 * ranking.provenance["bootstrap"][m][name]["bound"])


def test_blocks_of_one_query_are_queries(triples, ranking):
    blocks = rank_sources(triples, Stub(), max_rows=10)
    assert blocks.provenance["units"] == 30
    for m in ("eci_sem", "eci_net"): np.testing.assert_allclose(blocks.draws[m], ranking.draws[m][blocks.draws[m].columns], rtol=1e-4)
    assert blocks.table["lo"].to_numpy() == pytest.approx(ranking.table["lo"].to_numpy(), rel=1e-4)


def test_many_queries_are_dealt_into_blocks():
    t = made(("bm25", "random"), queries=300)
    blocks, plain = rank_sources(t, Stub(), max_rows=100, metrics=["eci_sem"]), rank_sources(t, Stub(), metrics=["eci_sem"])
    assert blocks.provenance["units"] == 256 and "Resampled in 256 blocks of queries" in repr(blocks)
    assert values(blocks) == values(plain)
    # a block is one or two queries here, so the intervals are about as wide
    width = lambda r: (r.table["hi"] - r.table["lo"]).to_numpy()
    np.testing.assert_allclose(width(blocks), width(plain), rtol=0.2)


# pools

def test_a_hybrid_is_balanced_and_compared_on_its_own_rows():
    t = made(("bm25", "dense"), per_query=dict(bm25=3, dense=1))
    r = rank_sources(t, Stub())
    assert r.table.loc["bm25", "n"] == 90 and r.table.loc["bm25+dense", "n"] == 60
    first = t.select("bm25")
    first = first.take(np.flatnonzero(first.column("rank") == 1))
    parts = [eci_score(*parts_of(x, Stub())).value for x in (first, t.select("dense"))]
    assert r.table.loc["bm25+dense", "mean_of_parts"] == pytest.approx(np.mean(parts), rel=1e-12)
    assert r.table.loc["bm25+dense", "value"] >= np.mean(parts) - 1e-14
    assert r.dropped.query("source == 'bm25+dense'")[["reason", "rows"]].values.tolist() == [["rows beyond the balanced number", 60]]
    equal = rank_sources(t, Stub(), equal_counts=True)
    assert set(equal.table["n"]) == {30, 60} and equal.table.loc["bm25", "value"] == pytest.approx(parts[0], rel=1e-12)
    assert equal.dropped.query("source == 'bm25'")["rows"].tolist() == [60]


def test_an_encoder_without_progress_bars_is_not_asked_for_one(triples, ranking):
    assert values(rank_sources(triples, Stub(), progress=False)) == values(ranking)


def test_hybrids_by_name_and_none(triples):
    t = made(("bm25", "dense", "llm", "random"))
    assert sum(rank_sources(t, Stub()).table["kind"] == "hybrid") == 3
    three = rank_sources(t, Stub(), hybrids=[("bm25", "dense", "llm"), "dense+llm"])
    assert set(three.table.index[three.table["kind"] == "hybrid"]) == {"bm25+dense+llm", "dense+llm"}
    assert three.table.loc["bm25+dense+llm", "n"] == 90
    assert not (rank_sources(triples, Stub(), hybrids=None).table["kind"] == "hybrid").any()
    # a pool made beforehand is a hybrid too, and is not pooled again
    pooled = rank_sources(Triples.concat([triples, triples.pool(["bm25", "dense"])]), Stub(), hybrids=None)
    assert pooled.table.loc["bm25+dense", "kind"] == "hybrid"
    for name in ("bm25+dense", "dense+bm25"):
        held = rank_sources(Triples.concat([t, t.pool(["bm25", "dense"], name)]), Stub()).table
        assert set(held.index[held["kind"] == "hybrid"]) == {name, "bm25+llm", "dense+llm"}


# what must not move a score

def same(a: Ranking, b: Ranking, rel=1e-11):
    assert list(a.table.index) == list(b.table.index)
    for c in a.table.columns:
        if a.table[c].dtype.kind == "f": np.testing.assert_allclose(a.table[c].to_numpy(), b.table[c].to_numpy(), rtol=rel, atol=1e-13)
        else: assert a.table[c].astype(str).tolist() == b.table[c].astype(str).tolist()


def test_order_of_rows_and_sources_does_not_matter(triples, ranking):
    for seed in (0, 1): same(rank_sources(triples.take(np.random.default_rng(seed).permutation(len(triples))), Stub()), ranking)


def test_adding_a_source_moves_no_other(triples, ranking):
    more = rank_sources(made(("bm25", "dense", "random", "llm")), Stub())
    for c in ("value", "net_value", "trace", "rho", "without_overlap", "net_expected_false"):
        assert more.table.loc[ranking.table.index, c].to_numpy() == pytest.approx(ranking.table[c].to_numpy(), rel=1e-12)


def test_the_control_moves_no_rank(triples, ranking):
    without = rank_sources(triples.select("bm25", "dense"), Stub())
    keep = ["rank", "ties", "place", "rank_in_kind"]
    assert without.table[keep].astype(str).equals(ranking.table.loc[without.table.index, keep].astype(str))
    assert "No source 'random' in these triples: no control was scored." in without.notes
    assert pd.isna(ranking.table.loc["random", "rank"]) and ranking.table.loc["random", "ties"] == ""
    own = ranking.pairs.query("metric == 'eci_sem' and family == 'control'")
    above = own[own["significant"] & (own["b"] == "random")]
    assert ranking.table.loc["random", "stands"] == 1 + len(above) and len(own) == 3


def test_without_a_control_every_source_is_a_candidate(triples):
    r = rank_sources(triples, Stub(), control=None)
    assert r.table.loc["random", "kind"] == "source" and r.table.loc["random", "rank"] >= 1 and "bm25+random" in r.table.index


def test_one_source_or_none_but_the_control(triples):
    alone = rank_sources(triples.select("bm25"), Stub())
    assert alone.table.loc["bm25", ["rank", "place", "ties"]].tolist() == [1, 1, "a"] and len(alone.pairs) == 0 and "bm25" in repr(alone)
    two = rank_sources(triples.select("bm25", "random"), Stub())
    assert two.pairs["family"].unique().tolist() == ["control"] and two.table.loc["bm25", "rank"] == 1
    control = rank_sources(triples.select("random"), Stub())
    assert control.table.loc["random", "stands"] == 1 and "place 1 of 1" in repr(control)


def test_twins_tie(triples):
    twin = triples.select("dense").rename(source="dense", to="twin")
    r = rank_sources(Triples.concat([triples, twin]), Stub(), hybrids=None)
    for m in ("eci_sem", "eci_net"):
        row = r.pairs.query("metric == @m and a == 'dense' and b == 'twin'").iloc[0]
        assert (row.difference, row.lo, row.hi, row.p, row.p_holm, row.significant) == (0, 0, 0, 1, 1, False)
    assert r.table.loc["dense", "rank"] == r.table.loc["twin", "rank"] and set(r.table.loc["dense", "ties"]) & set(r.table.loc["twin", "ties"])
    assert r.table.loc["dense", "place"] == r.table.loc["twin", "place"]


def test_same_seed_same_ranking_another_seed_other_intervals(triples, ranking):
    same(rank_sources(triples, Stub()), ranking, rel=0)
    other = rank_sources(triples, Stub(), seed=1)
    assert values(other) == values(ranking) and (other.table["lo"] != ranking.table["lo"]).all()


def test_each_text_is_encoded_once(triples):
    encoder = Stub()
    rank_sources(triples, encoder)
    assert len(encoder.asked) == len(set(triples.texts("query"))) + len({*triples.texts("positive"), *triples.texts("negative")})


# what went into it

def test_only_queries_that_every_source_covers(triples):
    cut = triples.take(np.flatnonzero(~((triples.column("source") == "dense") & np.isin(triples.column("query_id"), ["q003", "q007"]))))
    r = rank_sources(cut, Stub())
    assert r.provenance["queries"] == 28 and (r.table["queries"] == 28).all()
    assert r.dropped.set_index("source")["rows"].to_dict() == {"bm25": 2, "random": 2} and set(r.dropped["reason"]) == {"query not covered by every source"}
    assert "bm25: 2 query not covered by every source" in repr(r)


def test_bad_rows_are_dropped_and_counted(triples):
    frame = triples.to_pandas()
    at = frame.index[(frame["source"] == "bm25") & (frame["query_id"] == "q000")][0]
    frame.loc[at, "negative"] = frame.loc[at, "positive"]
    r = rank_sources(Triples.from_pandas(frame), Stub())
    assert r.dropped.query("source == 'bm25'")["rows"].sum() == 1 and r.provenance["queries"] == 29


def test_a_collection_gives_the_relevant_passages_the_idf_corpus_and_the_prior(triples):
    corpus = {**{f"p{q:03d}": t for q, t in zip(range(30), triples.select("bm25").texts("positive"))}, **{f"x{i}": f"sort filler {i}" for i in range(70)}}
    corpus |= dict(zip(triples.column("negative_id"), triples.texts("negative")))
    queries = dict(zip(triples.column("query_id"), triples.texts("query")))
    c = Collection("tiny", corpus, queries, {"test": {q: {"p" + q[1:]: 1} for q in queries} | {"q001": {"p001": 1, "bm25:1:0": 1}}})
    r = rank_sources(triples, Stub(), collection=c)
    assert r.provenance["idf"]["documents"] == len(corpus) and r.provenance["net"]["prior"] == pytest.approx(1 / len(corpus))
    assert r.dropped.query("source == 'bm25'")["rows"].sum() == 1 and r.provenance["collection"]["content_hash"] == c.content_hash
    plain = rank_sources(triples, Stub())
    assert plain.provenance["idf"]["documents"] == len(set(triples.texts("positive"))) and plain.provenance["collection"] is None


def test_generated_negatives_have_a_prior_of_their_own():
    t = Triples.concat([made(("bm25", "random")), made(("llm",), prefix="llm:")])
    assert t.select("llm").column("negative_id")[0].startswith("llm:")
    one, low = rank_sources(t, Stub(), hybrids=None), rank_sources(t, Stub(), hybrids=None, generated_prior=1e-9)
    assert one.provenance["net"]["generated"] == 30 and low.provenance["net"]["generated_prior"] == 1e-9
    assert low.table.loc["llm", "net_expected_false"] < one.table.loc["llm", "net_expected_false"]
    assert low.table.loc["bm25", "net_value"] == one.table.loc["bm25", "net_value"]


@pytest.mark.parametrize("config", [ECIConfig(consistency="calibrated"), ECIConfig(space="centred", residual="unit"), ECIConfig(overlap="none"), ECIConfig(overlap="jaccard", product="gradient"), ECIConfig(gain="d")])
def test_every_config_is_scored_as_it_says(triples, config):
    r = rank_sources(triples, Stub(), config=config, resamples=50)
    q, p, n, rho = parts_of(triples.select("dense"), Stub(), form=config.overlap)
    extra = dict(mean=mean_vector(np.unique(p, axis=0))) if config.space == "centred" else {}
    if config.consistency == "calibrated": assert 0 < r.table.loc["dense", "value"] and r.provenance["net"]["mu1"] > r.provenance["net"]["mu0"]
    else: assert r.table.loc["dense", "value"] == pytest.approx(eci_score(q, p, n, rho, config=config, **extra).value, rel=1e-6)
    assert r.provenance["config"]["space"] == config.space


def test_above_gain_one_the_bias_is_shown_and_taken_out(triples):
    r = rank_sources(triples, Stub(), config=ECIConfig(gain="1/tau^2"))
    assert r.provenance["interval"] == "basic" and r.provenance["gain"] == pytest.approx(400) and (r.table["bias"] < 0).all()
    assert "bias" in repr(r).splitlines()[2] and "compare equal numbers only" in repr(r)
    # the draws are reflected: their mean lies as far above the score as the bootstrap's lay below
    assert (r.resamples.mean() - r.table["value"] + r.table["bias"]).abs().max() < 1e-12


def test_few_resamples_are_told(triples):
    assert any("With 100 resamples no difference among 3 pairs can be significant at 0.05: more than 119 are needed." == n for n in rank_sources(triples, Stub(), resamples=100).notes)
    assert rank_sources(triples, Stub(), metrics=["eci_sem"]).provenance["resamples"] == 1000
    assert rank_sources(triples, Stub(), alpha=0.001, metrics=["eci_sem"]).provenance["resamples"] == 30_000


def test_place_of_the_control_is_stated_for_each_metric(ranking):
    notes = [n for n in ranking.notes if n.startswith("Control 'random' in ECI_")]
    assert len(notes) == 2
    for n in notes: assert re.search(r"place \d of 4 by score \[\d, \d\], significantly below \d and above \d of 3 candidates; it would rank \(\d\)\.$", n)
    t = ranking.table
    assert t.loc["random", "place"] == 1 + (t["value"] > t.loc["random", "value"]).sum()


def test_provenance_tells_how_it_was_made(triples, ranking):
    p = ranking.provenance
    assert p["encoder"]["name"] == "stub" and p["encoder"]["fingerprint"] == "stub-1" and p["encoder"]["dim"] == 8 and p["encoder"]["pooling"] == "sum"
    assert p["triples"] == triples.content_hash and p["seed"] == 0 and p["resamples"] == 1000 and p["config"]["tau"] == 0.05
    assert set(p["seconds"]) == {"check", "overlap", "embeddings", "scores", "bootstrap"} and "numpy" in p["versions"] and p["tokenizer"]["name"] == "word"
    assert set(p["bootstrap"]["eci_sem"]) == set(ranking.table.index)


# how it is shown

def test_it_prints_as_aligned_tables(ranking):
    text = repr(ranking)
    lines = text.splitlines()
    assert lines[0] == "ECI_sem and ECI_net, stub (8 d): 30 queries, 1,000 resamples"
    rule = lines[3]
    assert set(rule) == {"-"} and all(len(line) <= len(rule) for line in lines[2:9]) and lines.count(rule) >= 3
    row = next(line for line in lines if line.startswith("random"))
    assert re.match(r"random +-?\d\.\d+ \[-?\d\.\d+, -?\d\.\d+\] +\(\d\)", row)
    assert str(ranking) == text


def test_html_and_latex_hold_the_same_cells(ranking):
    html, latex = ranking._repr_html_(), ranking.to_latex(caption="What we saw.", label="tab:x")
    assert html.count("<table>") == 2 and html.count("<tr") == 2 * 5
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len(body) == 5 and len({line.count("&") for line in body}) == 1 and r"\caption{What we saw.}" in latex and r"\label{tab:x}" in latex
    cells = lambda line: [c.strip().replace(r"\_", "_").replace(r"\%", "%") for c in line.removesuffix(r"\\").split("&")]
    head, rows = ranking._tables()[0]
    assert [cells(line) for line in body] == [head, *[r for r in rows if r is not None]]
    assert r"ECI\_sem" in ranking.to_latex() and latex.count(r"\midrule") == 3


def test_json_comes_back_as_the_same_table(ranking, tmp_path):
    text = ranking.to_json(tmp_path / "ranking.json")
    found = json.loads((tmp_path / "ranking.json").read_text())
    assert found == json.loads(text) and "NaN" not in text
    back = pd.DataFrame(found["table"]).set_index("source")
    for c in ("value", "lo", "hi", "net_value", "mean_of_parts", "rank"): np.testing.assert_allclose(back[c].astype(float), ranking.table[c].astype(float).to_numpy(na_value=np.nan), rtol=0)
    assert back["ties"].tolist() == ranking.table["ties"].tolist() and len(found["pairs"]) == len(ranking.pairs) and found["provenance"]["seed"] == 0


def test_frames_are_copies_and_fit_the_figures(ranking):
    from eci_sem.figures import length_quantiles, ranking_bars, spectrum
    frame = ranking.frame()
    frame["value"] = 0.0
    assert (ranking.table["value"] > 0).all()
    scores = ranking.scores()
    assert list(scores.columns) == ["encoder", "metric", "source", "kind", "value", "lo", "hi", "rank", "n", "mean_of_parts"] and len(scores) == 8
    ranking_bars(scores)
    spectrum(ranking.spectra.assign(encoder="stub"))
    length_quantiles(ranking.lengths.reset_index())


def test_plot_shows_every_source(ranking):
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    ax = ranking.plot(metric="eci_net")
    assert [t.get_text() for t in ax.get_yticklabels()] == list(ranking.table.index) and "ECI_net" in ax.get_xlabel()
    with pytest.raises(InputError, match="unknown metric of this ranking 'ecinet'. Did you mean 'eci_net'"): ranking.plot(metric="ecinet")
    plt.close("all")


# errors, before any work

class Idle:
    "An encoder that must not be asked."
    name, dim = "idle", 8
    def encode_queries(self, texts): raise AssertionError("encoded before the input was checked")
    encode_passages = tokenize = encode_queries


@pytest.mark.parametrize("change, message", [
    (dict(hybrids=[("bm25", "denze")]), r"unknown part of a hybrid 'denze'. Did you mean 'dense'\? Known: bm25, dense, random\."),
    (dict(hybrids=[("bm25", "random")]), r"'random' is the control, which is no candidate and so no part of a hybrid; leave it out, or rank with control=None\."),
    (dict(hybrids=[("bm25", "bm25")]), r"a hybrid needs at least two different sources, got \('bm25', 'bm25'\)"),
    (dict(hybrids="all"), r"hybrids is 'all', expected 'pairs', None, or a list of tuples"),
    (dict(control="rnadom"), r"unknown control 'rnadom'. Did you mean 'random'\?"),
    (dict(metrics=["eci_smm"]), r"unknown metric 'eci_smm'. Did you mean 'eci_sem'"),
    (dict(metrics=["eci_net"]), r"the table is one of eci_sem, add it"),
    (dict(alpha=5), r"alpha is 5, expected a number between 0 and 1, e\.g\. 0\.05"),
    (dict(resamples=1), r"resamples is 1, expected a whole number of at least 2"),
    (dict(resamples=99.5), r"resamples is 99\.5, expected a whole number"),
    (dict(seed=-1), r"seed is -1, expected a whole number of at least 0"),
    (dict(prior=0), r"prior is 0, expected a probability between 0 and 1"),
    (dict(penalty=-1), r"penalty is -1, expected a finite number of at least 0"),
    (dict(config=dict(tau=1)), r"config is dict, expected ECIConfig: e\.g\. ECIConfig\(residual='unit'\)"),
    (dict(collection="docstrings"), r"collection is str, expected Collection: see load_beir and load_docstrings"),
    (dict(tokenizer="wrod"), r"unknown tokenizer 'wrod'. Did you mean 'word'"),
])
def test_wrong_arguments(triples, change, message):
    with pytest.raises(InputError, match=message): rank_sources(triples, Idle(), **change)


def test_wrong_triples(triples):
    for wrong, what in (([1], "list of int"), (3, "int"), ([], "list"), (None, "NoneType")):
        with pytest.raises(InputError, match=f"triples is {what}, expected Triples, a path, a data frame, or a list of rows such as"): rank_sources(wrong, Idle())
    with pytest.raises(InputError, match=r"the triples hold no rows, expected at least 2 queries"): rank_sources(triples.take([]), Idle())
    with pytest.raises(InputError, match=r"1 of 1 queries is covered by every source, expected at least 2"): rank_sources(made(queries=1), Idle())
    apart = Triples.concat([triples.select("bm25").take(range(10)), triples.select("dense").take(range(10, 30))])
    with pytest.raises(InputError, match=r"0 of 30 queries are covered by every source, expected at least 2 \(queries of each: bm25: 10, dense: 20\)\. Rank the sources that share queries"): rank_sources(apart, Idle())
    with pytest.raises(InputError, match=r"without 'dense' there would be more"): rank_sources(Triples.concat([triples.select("bm25", "random"), triples.select("dense").take([0])]), Idle())
    with pytest.raises(InputError, match=r"the triples hold a source 'bm25\+dense' already"): rank_sources(Triples.concat([triples, triples.pool(["bm25", "dense"])]), Idle(), hybrids=[("bm25", "dense")])
    frame = triples.to_pandas()
    frame.loc[frame["source"] == "dense", "negative"] = frame["positive"]
    with pytest.raises(InputError, match=r"source 'dense' has no row left after the checks \(30 negative equals the positive\): leave it out"): rank_sources(Triples.from_pandas(frame), Idle())
    with pytest.raises(InputError, match=r"unknown encoder 'glov'\. Did you mean 'glove'"): rank_sources(triples, "glov")


def test_an_encoder_that_gives_the_wrong_shape(triples):
    class Wrong(Stub):
        def encode_passages(self, texts): return self._encode(list(texts))[:, :5]
    with pytest.raises(InputError, match=r"the encoder gave passages of shape \(\d+, 5\), expected \(\d+, 8\)"): rank_sources(triples, Wrong())


# agreement

def test_agreement_by_hand():
    a, b = dict(w=4, x=3, y=2, z=1), dict(w=4, x=2, y=3, z=1)
    found = agreement(a, b)
    # one of six pairs is the other way round: (5 - 1) / 6; Spearman 1 - 6 * 2 / 60
    assert found.kendall == pytest.approx(4 / 6) and found.spearman == pytest.approx(0.8) and found.top1 and found.n == 4
    assert np.isnan(found.kendall_lo) and found.draws == 0 and "no interval: neither side has draws" in repr(found)
    assert agreement(a, {k: -v for k, v in a.items()}).kendall == -1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=9), st.integers(0, 100))
def test_draws_are_correlated_as_scipy_does(pairs, seed):
    from scipy.stats import kendalltau, spearmanr
    a, b = ({str(i): p[k] for i, p in enumerate(pairs)} for k in (0, 1))
    draws = pd.DataFrame([a])
    found = agreement(a, b, draws_a=draws)
    if len(set(a.values())) == 1 or len(set(b.values())) == 1: assert np.isnan(found.kendall) and np.isnan(found.kendall_lo); return
    x, y = list(a.values()), list(b.values())
    assert found.kendall == pytest.approx(kendalltau(x, y).statistic) and found.kendall_lo == pytest.approx(found.kendall) == found.kendall_hi
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic) and found.spearman_lo == pytest.approx(found.spearman)
    assert found.top1_share == float(found.top1)


def test_agreement_of_rankings(triples, ranking):
    itself = agreement(ranking, ranking)
    assert (itself.kendall, itself.kendall_lo, itself.kendall_hi, itself.top1, itself.top1_share, itself.n, itself.draws) == (1, 1, 1, True, 1, 3, 1000)
    assert itself.left_out == () and "random" not in itself.sources
    assert agreement(ranking, ranking, kinds=("source", "control")).n == 3
    downstream = pd.Series(dict(bm25=0.1, dense=0.2, llm=0.3))
    found = agreement(ranking, downstream)
    assert found.n == 2 and set(found.left_out) == {"bm25+dense", "llm"} and found.kendall in (-1, 1) and -1 <= found.kendall_lo <= found.kendall_hi <= 1
    both = agreement(ranking, downstream, draws_b=pd.DataFrame(dict(bm25=[0.1, 0.2], dense=[0.2, 0.1])))
    assert both.draws == 2 and both.kendall_lo < both.kendall_hi


def test_wrong_agreements(ranking):
    with pytest.raises(InputError, match=r"a and b have 1 source in common, expected at least 2 \(a: .*; b: bm25\)"): agreement(ranking, dict(bm25=1.0))
    with pytest.raises(InputError, match=r"b is list, expected a Ranking, a Series or a dictionary"): agreement(ranking, [1, 2])
    with pytest.raises(InputError, match=r"b: source 'dense' has the value nan, expected a finite number; leave that source out"): agreement(ranking, dict(bm25=1.0, dense=np.nan))
    with pytest.raises(InputError, match=r"unknown metric of a 'net'"): agreement(ranking, dict(bm25=1.0, dense=2), metric="net")
    with pytest.raises(InputError, match=r"draws_b has no column for source 'dense'; found bm25"): agreement(dict(bm25=1, dense=2), dict(bm25=1.0, dense=2), draws_b=pd.DataFrame(dict(bm25=[1.0])))
    with pytest.raises(InputError, match=r"unknown kind of source 'sources'"): agreement(ranking, ranking, kinds=("sources",))


# real text, a real encoder

def test_real_triples_with_glove(shared_data):
    from eci_sem.encoders import load_encoder
    path = shared_data / "msmarco-triples-sample" / "triples.jsonl.gz"
    if not path.exists(): pytest.skip("the sample of MS MARCO triples is not on this machine")
    try: glove = load_encoder("glove")
    except InputError as e: pytest.skip(str(e))
    t = Triples.read(path, source="released")
    shuffled = t.column("negative_id")[np.random.default_rng(0).permutation(len(t))]
    text = dict(zip(t.column("negative_id"), t.texts("negative")))
    frame = t.to_pandas().assign(source="random", negative_id=shuffled, negative=[text[i] for i in shuffled])
    r = rank_sources(Triples.concat([t, Triples.from_pandas(frame)]), glove)
    assert r.table.loc["released", "kind"] == "source" and r.table.loc["random", "kind"] == "control" and r.provenance["encoder"]["dim"] == 50
    assert np.isfinite(r.table[["value", "lo", "hi", "net_value"]]).all(axis=None) and r.provenance["queries"] >= 80
    # random passages are farther from the query than those that a system released as hard
    assert r.table.loc["random", "hardness"] < r.table.loc["released", "hardness"]


def test_queries_without_tokens_and_the_marks_are_said():
    table = made(queries=6).to_pandas()
    table.loc[table["query_id"] == "q002", "query"] = "?! ..."
    notes = rank_sources(Triples.from_pandas(table), Stub(), resamples=50).notes
    assert "1 queries have no token for the tokenizer: rho = 1 for them." in notes
    assert "ECI_sem: names of the factors [paper], their forms [ours]. ECI_net: [ours]." in notes
    assert not any("no token" in n for n in rank_sources(made(queries=6), Stub(), resamples=50).notes)


# --- the recommended score comes first

def advice(monkeypatch, **a): monkeypatch.setattr("eci_sem.rank.recommendation", lambda: a or None)

def test_the_recommended_score_comes_first_and_the_other_stands_beside_it(monkeypatch):
    t, encoder = made(), Stub()
    advice(monkeypatch)
    plain = rank_sources(t, encoder, resamples=20)
    assert plain.metrics == ["eci_sem", "eci_net"] and not any("Recommended" in n for n in plain.notes)
    advice(monkeypatch, score="ECI_net", text="Recommended: **ECI_net**. Evidence.")
    net = rank_sources(t, encoder, resamples=20)
    assert net.metrics == ["eci_net", "eci_sem"] and net.provenance["order"] == "eci_net" and "Recommended: ECI_net. Evidence." in net.notes and "Recommended: ECI_net" in repr(net)
    head = next(line for line in repr(net).splitlines() if line.startswith("source "))
    assert head.index("ECI_net") < head.index("ECI_sem")
    for kind, part in net.table.groupby("kind"): assert part["net_value"].is_monotonic_decreasing
    for c in ("value", "net_value", "rank", "net_rank"): assert net.table[c].equals(plain.table[c].loc[net.table.index])
    assert rank_sources(t, encoder, resamples=20, order="eci_sem").table.equals(plain.table)
    # a score that isn't wanted can't come first
    assert rank_sources(t, encoder, resamples=20, metrics="eci_sem").metrics == ["eci_sem"]
    with pytest.raises(InputError, match="unknown metric to order by: 'eci_nett'"): rank_sources(t, encoder, order="eci_nett")
