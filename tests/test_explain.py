"""Explanations: parts that add up, whatever the factors; triples that are the ones they are said to be; advice that says no more than the table."""
from itertools import permutations
from math import log

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem import explain as ex
from eci_sem.bootstrap import compare_pairs, resample_counts
from eci_sem.collection import InputError
from eci_sem.explain import advice, examples, explain, split_difference
from eci_sem.rank import Ranking, rank_sources
from eci_sem.score import ECIConfig, residuals
from eci_sem.triples import Triples
from test_rank import Stub, made


@pytest.fixture(scope="module")
def triples(): return made()


@pytest.fixture(scope="module")
def ranking(triples): return rank_sources(triples, Stub())


# the split

values = st.one_of(st.just(0.0), st.just(1.0), st.floats(1e-6, 1.0))


@st.composite
def two_sets(draw, k=st.integers(1, 4)):
    k = draw(k)
    sets = [dict(zip("abcde", np.array(draw(st.lists(st.lists(values, min_size=k, max_size=k), min_size=1, max_size=6))).T)) for _ in range(2)]
    return sets


def means(x): return np.prod(np.stack(list(x.values())), 0).mean()


@settings(max_examples=150, deadline=None)
@given(two_sets())
def test_the_shares_add_up_and_change_sign_with_the_sides(sets):
    a, b = sets
    found = split_difference(a, b)
    assert sum(found.values()) == pytest.approx(means(a) - means(b), abs=1e-12)
    other = split_difference(b, a)
    assert all(other[f] == pytest.approx(-found[f], abs=1e-12) for f in found)


@settings(max_examples=80, deadline=None)
@given(two_sets(st.integers(2, 4)), st.randoms(use_true_random=False))
def test_neither_the_order_of_the_factors_nor_that_of_the_triples_matters(sets, random):
    found, names = split_difference(*sets), list(sets[0])
    random.shuffle(names)
    orders = [np.array(random.sample(range(len(s["a"])), len(s["a"]))) for s in sets]
    again = split_difference(*({f: s[f][o] for f in names} for s, o in zip(sets, orders)))
    assert all(again[f] == pytest.approx(found[f], abs=1e-12) for f in found)


@settings(max_examples=80, deadline=None)
@given(two_sets(st.integers(1, 3)))
def test_equal_sets_give_zeros_and_a_factor_that_is_one_everywhere_gives_nothing(sets):
    assert set(split_difference(sets[0], sets[0]).values()) == {0.0}
    found, more = split_difference(*sets), [{"one": np.ones(len(s["a"])), **s} for s in sets]
    with_one = split_difference(*more)
    assert with_one["one"] == 0 and all(with_one[f] == pytest.approx(found[f], abs=1e-12) for f in found)


@settings(max_examples=60, deadline=None)
@given(two_sets(st.integers(2, 4)))
def test_the_shares_are_averages_over_all_orders(sets):
    "The plain way: factors come in one after the other, in every order."
    a, b = sets
    if not (means(a) and means(b)): return
    E = lambda x, S: np.prod(np.stack([np.ones(len(x["a"])), *(x[f] for f in S)]), 0).mean()
    v = lambda S: log(E(a, S)) - log(E(b, S))
    gains = {f: [] for f in a}
    for order in permutations(a):
        for i, f in enumerate(order): gains[f].append(v(order[:i + 1]) - v(order[:i]))
    whole = log(means(a) / means(b))
    scale = (means(a) - means(b)) / whole if abs(whole) > 1e-6 else means(b)
    for f, share in split_difference(a, b).items(): assert share == pytest.approx(scale * np.mean(gains[f]), rel=1e-5, abs=1e-9)


def test_by_hand():
    # E(x), E(y), E(xy): 0.4, 0.5, 0.2 against 0.1, 0.5, 0.05: all is due to x
    found = split_difference(dict(x=[0.4, 0.4], y=[0.25, 0.75]), dict(x=[0.1, 0.1], y=[0.25, 0.75]))
    assert found == pytest.approx(dict(x=0.15, y=0.0), abs=1e-15)
    # E(x) 0.5 and 0.25, E(y) 0.5 and 0.5, E(xy) 0.5 and 0.125: v(x) = ln 2, v(y) = 0, v(xy) = ln 4,
    # so x gets (ln 2 + ln 4) / 2 = 1.5 ln 2 and y 0.5 ln 2, times (0.5 - 0.125) / ln 4
    found = split_difference(dict(x=[1.0, 0.0], y=[1.0, 0.0]), dict(x=[0.25, 0.25], y=[0.25, 0.75]))
    assert found == pytest.approx(dict(x=0.375 * 0.75, y=0.375 * 0.25), abs=1e-15)


def test_where_a_mean_is_zero_the_factors_that_make_it_so_share_the_difference():
    b = dict(x=[0.5], y=[0.5], z=[0.8])
    assert split_difference(dict(x=[0.0], y=[0.3], z=[0.9]), b) == pytest.approx(dict(x=-0.2, y=0, z=0), abs=1e-15)
    assert split_difference(dict(x=[0.0], y=[0.0], z=[0.9]), b) == pytest.approx(dict(x=-0.1, y=-0.1, z=0), abs=1e-15)
    # x and y are never there together
    assert split_difference(dict(x=[1.0, 0.0], y=[0.0, 1.0], z=[0.9, 0.9]), b) == pytest.approx(dict(x=-0.1, y=-0.1, z=0), abs=1e-15)
    # it is the limit
    near = split_difference(dict(x=[1e-300], y=[0.3], z=[0.9]), b)
    assert near["x"] == pytest.approx(-0.2, rel=1e-2)
    assert set(split_difference(dict(x=[0.0], y=[0.3], z=[0.9]), dict(x=[0.5], y=[0.0], z=[0.9])).values()) == {0.0}


@pytest.mark.parametrize("a, b, message", [
    (dict(x=[1.0]), dict(y=[1.0]), "b has the factors y, and a has x: expected the same ones in the same order"),
    ({}, {}, "found 0 factors, expected 1 to 12"),
    (dict(x=[1.0], y=[1.0, 0.5]), dict(x=[1.0], y=[1.0]), r"a: shapes x \(1,\), y \(2,\); expected \(N,\), one value of each factor for each triple"),
    (dict(x=[1.0, -0.5]), dict(x=[1.0]), r"a: factor 'x' holds values that are negative or not finite \(1 of 2\)"),
    (dict(x=[1.0]), dict(x=[np.nan]), r"b: factor 'x' holds values that are negative or not finite \(1 of 1\)")])
def test_what_cannot_be_split(a, b, message):
    with pytest.raises(InputError, match=message): split_difference(a, b)


# a ranking explained

def adds_up(r):
    worst = 0.0
    for a in r.table.index:
        why = explain(r, a)
        sums = why.parts.groupby("b")["value"].sum()
        for _, row in why.table.iterrows():
            assert row["difference"] == r.table.loc[a, "value"] - r.table.loc[row["b"], "value"]
            worst = max(worst, abs(sums[row["b"]] - row["difference"]) / max(1, abs(r.table["value"]).max()))
    return worst


def test_parts_add_up_for_every_pair(ranking):
    assert adds_up(ranking) < 1e-12
    why = explain(ranking, "bm25", "random")
    assert list(why.parts["part"]) == ["consistency", "locality", "residuality", "residual", "diversity"] and list(why.parts["symbol"]) == ["a", "l", "rho", "|r|^2", "score - trace"]
    t = ranking.table
    assert why.parts["value"].iloc[:4].sum() == pytest.approx(t.loc["bm25", "trace"] - t.loc["random", "trace"], abs=1e-14)
    assert why.parts["times"].iloc[:4].prod() == pytest.approx(t.loc["bm25", "trace"] / t.loc["random", "trace"], rel=1e-12)
    for column, part in (("a", 0), ("l", 1), ("rho", 2)): assert why.parts["mean_a"].iloc[part] == pytest.approx(t.loc["bm25", column]) and why.parts["mean_b"].iloc[part] == pytest.approx(t.loc["random", column])


@pytest.mark.parametrize("config", [dict(product="fisher"), dict(product="gradient"), dict(residual="unit"), dict(space="centred", residual="difference"), dict(consistency="calibrated"), dict(consistency="step", locality="cosine"), dict(gain="d"), dict(gain="1/tau^2"), dict(overlap="jaccard")], ids=str)
def test_with_any_config(triples, config):
    r = rank_sources(triples, Stub(), config=ECIConfig(**config), resamples=50, metrics=["eci_sem"])
    assert adds_up(r) < 1e-12
    parts = explain(r).parts
    assert ("product" in set(parts["part"])) == ("product" in config) and ((parts["lo"] <= parts["hi"])).all()


def test_a_factor_that_is_off_has_no_share(triples):
    off = rank_sources(triples, Stub(), config=ECIConfig(overlap="none", consistency="none"), resamples=50, metrics=["eci_sem"])
    parts = explain(off).parts
    assert set(parts[parts["part"].isin(["residuality", "consistency"])]["value"]) == {0.0} and set(parts[parts["part"] == "residuality"]["times"]) == {1.0}
    assert (parts[parts["part"] == "locality"]["value"] != 0).all()


def test_swapping_the_sides_changes_every_sign(ranking):
    there, back = explain(ranking, "dense", "bm25"), explain(ranking, "bm25", "dense")
    np.testing.assert_allclose(there.parts[["value", "lo", "hi"]].to_numpy(), -back.parts[["value", "hi", "lo"]].to_numpy(), atol=1e-15)
    np.testing.assert_allclose(there.parts["times"].dropna(), 1 / back.parts["times"].dropna(), rtol=1e-12)


def test_equal_sources_give_zeros(triples):
    one = triples.select("bm25")
    both = Triples.concat([one, one.rename(source="bm25", to="copy"), triples.select("dense")])
    r = rank_sources(both, Stub(), hybrids=None, resamples=50)
    why = explain(r, "bm25", "copy")
    assert set(why.parts["value"]) == {0.0} and set(why.parts["lo"]) == set(why.parts["hi"]) == {0.0} and why.sentences == [f"bm25 and copy have the same score, {r.table.loc['copy', 'value']:.{why._digits}f}."]


def test_a_hybrid_is_explained_from_the_rows_of_its_pool():
    t = made(("bm25", "dense", "random"), per_query=dict(bm25=3, dense=1, random=2))
    r = rank_sources(t, Stub(), resamples=50)
    rows = r.factors.iloc[r.pools["bm25+dense"]]
    assert rows["source"].value_counts().to_dict() == dict(bm25=30, dense=30)
    pooled = t.pool(["bm25", "dense"])
    assert sorted(rows["negative_id"]) == sorted(pooled.column("negative_id"))
    assert (rows["w"] * rows["r2"]).mean() == pytest.approx(r.table.loc["bm25+dense", "trace"], rel=1e-12)
    assert adds_up(r) < 1e-12


def test_the_table_of_factors_names_its_triples_and_their_residuals(triples, ranking):
    f, t = ranking.factors, triples.to_pandas()
    assert list(f) == ["source", "query_id", "positive_id", "negative_id", "margin", "a", "l", "rho", "w", "hardness", "r2"]
    both = f.merge(t, on=["source", "query_id", "positive_id", "negative_id"])
    assert len(both) == len(f) == len(t)
    e = Stub()
    R = residuals(e.encode_passages(both["positive"]), e.encode_passages(both["negative"]))
    np.testing.assert_allclose(both["r2"], np.square(R).sum(1), rtol=1e-12)


def test_intervals_are_those_of_the_resamples_done_the_plain_way(triples):
    r = rank_sources(triples, Stub(), resamples=9, seed=4)
    why, f = explain(r, "dense", "bm25"), r.factors
    ids, drawn = sorted(set(f["query_id"])), []
    for b, counts in enumerate(resample_counts(30, 9, seed=4)):
        sides = []
        for s in ("dense", "bm25"):
            one = f[f["source"] == s].set_index("query_id").loc[np.repeat(ids, counts)]
            sides.append({c: one[c].to_numpy() for c in ("a", "l", "rho", "r2")})
        split = split_difference(*sides)
        rest = r.draws["eci_sem"]["dense"][b] - r.draws["eci_sem"]["bm25"][b] - sum(split.values())
        drawn.append([*split.values(), rest])
    lo, hi = np.quantile(drawn, [0.025, 0.975], axis=0)
    np.testing.assert_allclose(why.parts["lo"], lo, atol=1e-12); np.testing.assert_allclose(why.parts["hi"], hi, atol=1e-12)


@pytest.mark.parametrize("gain", [1.0, "d"])
def test_blocks_of_queries_are_the_rankings_own(gain):
    t = made(("bm25", "random"), queries=300)
    r = rank_sources(t, Stub(), max_rows=100, metrics=["eci_sem"], resamples=100, config=ECIConfig(gain=gain))
    assert r.provenance["units"] == 256
    part = explain(r, "bm25", "random").parts.set_index("part").loc["diversity"]
    trace = r.factors.assign(x=r.factors["w"] * r.factors["r2"] * r.provenance["gain"]).groupby("source")["x"].std()
    # with blocks of other queries it would vary as the trace does
    assert part["lo"] <= part["value"] <= part["hi"] and part["hi"] - part["lo"] < 0.5 * trace.max() / np.sqrt(300)


def test_who_is_held_against_whom(ranking):
    first = ranking.table.query("kind != 'control'")["value"].idxmax()
    assert list(explain(ranking).table["b"]) == [s for s in ranking.table.index if s != first] and set(explain(ranking).table["a"]) == {first}
    other = next(s for s in ("dense", "bm25", "bm25+dense") if s != first)
    assert explain(ranking, b=first).table[["a", "b"]].values.tolist()[0][1] == first
    assert list(explain(ranking, "random", ["bm25", "dense"]).table["b"]) == ["bm25", "dense"]
    assert ranking.explain(first, other).table["difference"].item() == ranking.table.loc[first, "value"] - ranking.table.loc[other, "value"]


def test_an_explanation_costs_no_scoring_and_no_bootstrap_of_scores(ranking, triples, monkeypatch):
    def never(*a, **k): raise AssertionError("scored again")
    for name in ("eci_sem.rank.eci_score", "eci_sem.rank.resampled_scores", "eci_sem.bootstrap.resampled_scores", "eci_sem.rank.factors"): monkeypatch.setattr(name, never)
    ranking.explain(); ranking.examples(triples)
    monkeypatch.setattr("eci_sem.explain.resample_counts", never)
    monkeypatch.setattr("eci_sem.rank.resample_counts", never)
    ranking.advice()


def test_how_it_prints(ranking):
    one, all_of = explain(ranking, "dense", "bm25"), explain(ranking, "dense")
    text = repr(one)
    assert text.splitlines()[0] == "ECI_sem, stub: why dense scores as it does, 30 queries"
    for word in ("consistency a", "locality l", "residuality rho", "residual |r|^2", "diversity score - trace", "difference", "mean dense", "mean bm25", "Shapley"): assert word in text
    assert repr(all_of).splitlines()[2].startswith("dense against") and "most of it is" in one.sentences[0] and len(all_of.sentences) == 3
    assert one._repr_html_().count("<tr") == 7 and "<table>" in all_of._repr_html_()


def test_a_sentence_says_which_way():
    def made_of(values, means, d, significant=True):
        parts = pd.DataFrame([dict(a="x", b="y", part=p, symbol="", value=v, lo=v, hi=v, times=np.nan if p == "diversity" else np.exp(v), mean_a=m, mean_b=0.5) for p, v, m in zip(("consistency", "locality", "residuality", "residual", "diversity"), values, means)])
        return ex.Explanation(pd.DataFrame([dict(a="x", b="y", value_a=1 + d, value_b=1.0, difference=d, lo=d - 0.02, hi=d + 0.02, significant=significant)]), parts, "e", 9, 0.05).sentences[0]
    assert made_of([0.3, 0, 0, 0, 0], [0.6, 0.5, 0.5, 0.5, np.nan], 0.3) == "x scores 0.300 [0.280, 0.320] above y (1.300 and 1.000), significantly; most of it is consistency (x1.35: the encoder is surer that its labels are right)."
    down = made_of([0.1, 0, -0.4, 0, 0], [0.6, 0.5, 0.3, 0.5, np.nan], -0.3, False)
    assert down == "x scores 0.300 [0.280, 0.320] below y (0.700 and 1.000), not significantly; most of it is residuality (x0.67: its negatives repeat more of the query's wording); against it works consistency (x1.11: the encoder is surer that its labels are right)."
    assert "by how it goes together with the other factors" in made_of([0.3, 0, 0, 0, 0], [0.4, 0.5, 0.5, 0.5, np.nan], 0.3)
    assert "most of it is diversity (the concave score takes less from its trace)" in made_of([0, 0, 0, 0, 0.3], [0.5] * 4 + [np.nan], 0.3)


def test_errors_of_explain(ranking):
    for arguments, message in (((ranking, "bm52"), "unknown source of this ranking 'bm52'. Did you mean 'bm25'"), ((ranking, "bm25", "bm25"), "'bm25' is to be held against itself: name another source of"), ((ranking, "bm25", []), "held against nothing"),
        ((ranking, None, ["dense", "bm25", "bm25+dense"]), r"b names every candidate .*: say with a= which one to explain"), (("x",), "ranking is str, expected what rank_sources returns")):
        with pytest.raises(InputError, match=message): explain(*arguments)
    changed = Ranking(**{**ranking.__dict__, "factors": ranking.factors.assign(r2=2 * ranking.factors["r2"])})
    with pytest.raises(InputError, match=r"the triples of '.*' in ranking.factors give the trace .*, its table says .*: one of them was changed; rank again"): explain(changed)


# examples

def test_examples_are_the_triples_they_are_said_to_be(triples, ranking):
    found = examples(ranking, triples, n=4)
    f, t = ranking.factors, triples.to_pandas().set_index(["source", "query_id", "negative_id"])
    for s in ("bm25", "dense", "random"):
        own = f[f["source"] == s]
        rows = lambda k: found.table[(found.table["source"] == s) & (found.table["kind"] == k)]
        assert rows("highest weight")["w"].tolist() == sorted(own["w"], reverse=True)[:4] and rows("lowest weight")["w"].tolist() == sorted(own["w"])[:4]
        assert rows("likely false negative")["margin"].tolist() == sorted(m for m in own["margin"] if m < 0)[:4]
        assert found.counts.loc[s].to_dict() == dict(triples=30, without_weight=int((own["w"] == 0).sum()), negative_margin=int((own["margin"] < 0).sum()))
    for _, r in found.table.iterrows():
        row = t.loc[(r["source"], r["query_id"], r["negative_id"])]
        assert (r["query"], r["positive"], r["negative"], r["positive_id"]) == (row["query"], row["positive"], row["negative"], row["positive_id"])


def test_examples_of_a_hybrid_and_of_one_kind(triples, ranking):
    found = ranking.examples(triples, "bm25+dense", n=60)
    assert set(found.table["source"]) == {"bm25+dense"} and (found.table["kind"] == "highest weight").sum() == 60 and found.counts.loc["bm25+dense", "triples"] == 60
    only = examples(ranking, triples, ["dense"], n=1, kinds=["lowest weight"])
    assert len(only.table) == 1 and only.table["kind"].item() == "lowest weight"


def test_a_larger_table_of_triples_does_as_well(ranking):
    more = made(("bm25", "dense", "random", "llm"))
    assert len(examples(ranking, more, "dense", n=2).table) >= 4


def test_how_examples_print(triples, ranking):
    text = repr(examples(ranking, triples, "bm25", n=2, width=30))
    lines = text.splitlines()
    assert lines[0] == "bm25, highest weight: 2 of 30 triples" and lines[1].startswith("  m ") and lines[2].startswith("    query     ")
    assert all(len(line) <= 44 for line in lines if line.startswith("    ")) and " ..." in text
    marked = triples.to_pandas()
    marked["query"] = marked["query"] + " <b>"
    marked = Triples.from_pandas(marked)
    html = rank_sources(marked, Stub(), hybrids=None, resamples=50, metrics=["eci_sem"]).examples(marked, "bm25")._repr_html_()
    assert "&lt;b&gt;" in html and "<b>" not in html


def test_a_source_without_a_negative_margin_says_so(triples):
    e = Stub()
    r = rank_sources(triples, e, hybrids=None, resamples=50, metrics=["eci_sem"])
    r.factors.loc[r.factors["source"] == "random", "margin"] = 0.1
    found = r.examples(triples)
    assert "No negative comes before its positive (m < 0) in random." in repr(found) and not len(found.table[(found.table["source"] == "random") & (found.table["kind"] == "likely false negative")])


def test_errors_of_examples(triples, ranking):
    for arguments, message in (((triples.select("bm25"), "dense"), r"(\d) of the \1 examples are not in these triples \(first: source 'dense', query_id 'q.*'\): give the triples that were ranked"), (("x",), "triples is str, expected the Triples that were ranked"),
        ((triples, "bm52"), "unknown source of this ranking 'bm52'"), ((triples, None, 0), "n is 0, expected a whole number of at least 1"), ((triples, None, 1, ["best"]), "unknown kind of example 'best'"), ((triples, None, 1, ["lowest weight"], 3), "width is 3, expected a whole number of at least 10")):
        with pytest.raises(InputError, match=message): examples(ranking, *arguments)


# advice

RECOMMENDED = dict(score="ECI_sem", usable=False, cells=["glove on x"], evidence=dict(ECI_sem=dict(tau=0.27, lo=-0.05, hi=0.43), ECI_net=dict(tau=0.15, lo=-0.14, hi=0.31)))


@pytest.fixture(autouse=True)
def recommended(monkeypatch): monkeypatch.setattr(ex, "recommendation", lambda: RECOMMENDED)


def stub(values, sd, control=None, n=200, seed=0):
    "A ranking from scores, with draws as if each query added noise of its own to each source."
    names = [*values, *(["random"] if control is not None else [])]
    v = np.array([*values.values(), *([control] if control is not None else [])])
    # exact deviations and no correlation, so that the numbers of queries are known
    z = np.random.default_rng(seed).normal(size=(4000, len(v)))
    z = np.linalg.qr(z - z.mean(0))[0] * np.sqrt(len(z) - 1)
    draws = v + z * sd / np.sqrt(2 * n) * np.sqrt((n - 1) / n)
    kinds = ["control" if s == "random" else "hybrid" if "+" in s else "source" for s in names]
    pairs = []
    for family, of in (("candidates", None), ("control", [("random", s) for s in values])):
        if family == "control" and control is None: continue
        own = [(a, b) for i, a in enumerate(values) for b in [*values][i + 1:]] if of is None else of
        pairs.append(compare_pairs(names, v, draws, own).assign(metric="eci_sem", family=family))
    frame = pd.DataFrame(draws, columns=names)
    table = pd.DataFrame(dict(kind=kinds, value=v), index=pd.Index(names, name="source"))
    return Ranking(table, pd.concat(pairs), dict(eci_sem=frame), None, None, None, None, dict(queries=n, alpha=0.05, order="eci_sem"))


def test_two_that_cannot_be_told_apart():
    # one query's difference has the deviation 1: (1.96 + 0.84)^2 / 0.11^2 = 648.7 queries
    text = advice(stub({"Dense+LLM": 1.11, "LLM": 1.0}, 1.0))
    assert text.startswith("Dense+LLM and LLM can't be told apart by ECI_sem at n = 200; about 650 queries would (80% power; the difference's interval allows 130 to any number).")
    assert text.endswith("No score is recommended to choose a source by: in the confirmation runs (glove on x) the order by ECI_sem agreed with the order after training by Kendall's tau-b 0.27 [-0.05, 0.43]. So fine-tune on Dense+LLM and LLM and compare downstream before choosing.")
    assert "No control was scored" in text
    assert "about 870 queries would (90% power" in advice(stub({"Dense+LLM": 1.11, "LLM": 1.0}, 1.0), power=0.9)


def test_a_clear_first():
    text = advice(stub(dict(a=2.0, b=1.0, c=0.5), 1.0, control=0.1))
    assert text.startswith("a is highest by ECI_sem, and significantly above b and c at n = 200 queries. Every candidate is significantly above the control random.")
    assert "So fine-tune on a and b and compare" in text
    assert advice(stub(dict(a=9.0, b=4.0, c=3.0, d=2.0, e=1.0), 1.0)).startswith("a is highest by ECI_sem, and significantly above the other 4 candidates at")


def test_several_ties_and_the_rest():
    text = advice(stub(dict(a=1.1, b=1.05, c=1.0, d=0.2), 1.0, control=1.0))
    assert text.startswith("a is highest by ECI_sem, but can't be told apart from 2 others at n = 200 (b: about ") and "; c: about " in text and " a is significantly above d. No candidate" in text
    assert "No candidate is significantly above the control random (d significantly below it): by this score random passages are as good as any of them or better, and only training can say whether they are." in text and "So fine-tune on a, b, c and random and compare" in text
    many = advice(stub({s: 1.0 + i / 1000 for i, s in enumerate("abcdefg")}, 1.0, control=0.0))
    assert "can't be told apart from 6 others" in many and "; and 3 more)" in many and "Every candidate is significantly above the control random." in many


def test_some_above_the_control():
    text = advice(stub(dict(a=3.0, b=2.0, c=1.0), 1.0, control=2.0))
    assert "Not significantly above the control random: b and c (c significantly below it)." in text
    assert "No candidate is significantly above the control random (all significantly below it): by" in advice(stub(dict(a=2.0, b=1.0), 1.0, control=3.0))


def test_too_few_resamples_are_not_blamed_on_the_queries():
    "With 3 pairs at 0.05 the smallest corrected p of B draws is 6 / (B + 1): under 0.05 from 120 draws on."
    r = stub(dict(a=3.0, b=2.0, c=1.0), 0.01)
    for draws in (20, 119):
        r.draws = {"eci_sem": r.draws["eci_sem"].iloc[:draws]}
        r.pairs = compare_pairs(["a", "b", "c"], [3.0, 2.0, 1.0], r.draws["eci_sem"][["a", "b", "c"]].to_numpy()).assign(metric="eci_sem", family="candidates")
        assert not r.pairs["significant"].any()
        assert advice(r).startswith(f"a is highest by ECI_sem, but {draws} resamples are too few to tell any of 3 pairs apart after the correction, however many queries there are: rank with at least 120 resamples.")
        r = stub(dict(a=3.0, b=2.0, c=1.0), 0.01)
    r.draws = {"eci_sem": r.draws["eci_sem"].iloc[:120]}
    r.pairs = compare_pairs(["a", "b", "c"], [3.0, 2.0, 1.0], r.draws["eci_sem"][["a", "b", "c"]].to_numpy()).assign(metric="eci_sem", family="candidates")
    assert r.pairs["significant"].all() and "too few" not in advice(r)


def test_equal_scores_and_close_calls():
    same = stub(dict(a=1.0, b=1.0), 1.0)
    assert "can't be told apart by ECI_sem at n = 200; no number of queries would, since they score the same." in advice(same)
    close = stub(dict(a=1.3, b=1.0), 1.0)
    close.pairs["significant"] = False
    assert advice(close).startswith("a and b can't be told apart by ECI_sem at n = 200; about 88 queries would (80% power; the difference's interval allows 41 to 310), so it is close.")
    assert advice(stub(dict(a=1.0), 1.0, control=0.0)).startswith("a is the only candidate: there is nothing to choose between. Every candidate is significantly above the control random.")


def test_pools_the_other_score_and_cautions_are_told():
    r = stub({"x+y": 2.0, "x": 1.0}, 1.0, control=5.0)
    r.table["net_value"], r.draws["eci_net"], r.pools = [0.1, 0.3, 0.9], r.draws["eci_sem"], {"x+y": np.arange(2)}
    r.provenance["cautions"] = ["Caution: a", "Caution: b"]
    text = advice(r)
    assert " By ECI_net x is highest. " in text and "So fine-tune on x+y, x and random (x+y: the negatives of both, pooled) and compare downstream" in text and text.endswith("Mind the 2 cautions under the table.")
    r.table["net_value"] = [0.4, 0.3, 0.9]
    r.provenance["cautions"] = ["Caution: a"]
    assert "By ECI_net" not in advice(r) and advice(r).endswith("Mind the 1 caution under the table.")


def test_nothing_but_the_control_and_too_few_resamples_for_it():
    assert advice(stub({}, 1.0, control=0.1)) == "The triples hold no source but the control: there is nothing to choose between."
    r = stub(dict(a=3.0, b=2.0, c=1.0), 0.01, control=9.0)
    r.draws = {"eci_sem": r.draws["eci_sem"].iloc[:20]}
    assert "control" not in advice(r) and "random" not in advice(r)


def test_what_the_confirmation_says(monkeypatch):
    r = stub(dict(a=2.0, b=1.0), 1.0)
    monkeypatch.setattr(ex, "recommendation", lambda: None)
    assert advice(r).endswith("No result of the confirmation runs says how far ECI_sem foresees the order after training: fine-tune on a and b and compare downstream before choosing.")
    monkeypatch.setattr(ex, "recommendation", lambda: RECOMMENDED | dict(usable=True))
    assert "ECI_sem is the recommended score: in the confirmation runs (glove on x) the order" in advice(r) and "Downstream evaluation stays the final test: fine-tune on a and b" in advice(r)
    monkeypatch.setattr(ex, "recommendation", lambda: RECOMMENDED | dict(usable=True, score="ECI_net"))
    assert "ECI_sem is not the recommended score, which is ECI_net: in the confirmation runs" in advice(r)


def test_the_package_own_recommendation_is_told(ranking, monkeypatch):
    monkeypatch.undo()
    from eci_sem.rank import recommendation
    found, text = recommendation(), ranking.advice()
    assert (found["usable"] is True) == ("No score is recommended" not in text) and f"{found['evidence']['ECI_sem']['tau']:.2f}" in text
    assert "ECI_net" in ranking.advice("eci_net") and f"{found['evidence']['ECI_net']['tau']:.2f}" in ranking.advice("eci_net")


def test_errors_of_advice(ranking):
    for arguments, message in (((ranking, "eci"), "unknown metric of this ranking 'eci'"), ((ranking, None, 80), "power is 80, expected a number above"), (("x",), "ranking is str, expected what rank_sources returns")):
        with pytest.raises(InputError, match=message): advice(*arguments)
