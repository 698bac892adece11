"""Power: subsamples, contributions and the planner against slow references, and plans that do what they promise."""
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, norm

from eci_sem.bootstrap import resample_counts, resampled_scores
from eci_sem.collection import InputError
from eci_sem.power import contributions, expected_power, match_lengths, order_share, queries_needed, sample_size_curve, sample_sizes, subsample_counts
from eci_sem.rank import Ranking
from eci_sem.triples import Triples


def source(queries=30, per_query=(1, 3), d=5, scale=0.05, seed=0):
    "Rows sqrt(w) r and their queries, in no order."
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(queries), rng.integers(per_query[0], per_query[1] + 1, queries))
    X = rng.normal(size=(len(unit), d)) * (scale * rng.uniform(0, 1, (len(unit), 1))) ** 0.5
    order = rng.permutation(len(unit))
    return X[order], unit[order]


def naive(X, keep, gain=1.0): return np.linalg.slogdet(np.eye(X.shape[1]) + gain * X[keep].T @ X[keep] / keep.sum())[1]


# subsamples

def test_subsamples_are_drawn_without_replacement_and_larger_ones_hold_smaller_ones():
    small, large = (subsample_counts(20, n, 50, seed=1) for n in (7, 13))
    assert set(np.unique(small)) == {0, 1} and (small.sum(1) == 7).all() and (large.sum(1) == 13).all()
    assert (small <= large).all()
    assert (subsample_counts(20, 7, 10, seed=1) == small[:10]).all() and (subsample_counts(20, 7, 50, seed=2) != small).any()
    assert (subsample_counts(5, 5, 3) == 1).all()


def test_every_query_is_as_likely_as_any_other():
    assert abs(subsample_counts(10, 4, 4000).mean(0) - 0.4).max() < 0.03


def test_sizes_double_up_to_all():
    assert sample_sizes(600) == [25, 50, 100, 200, 400, 600]
    assert sample_sizes(400) == [25, 50, 100, 200, 400] and sample_sizes(26) == [25, 26]
    assert sample_sizes(20) == [20] and sample_sizes(25) == [25] and sample_sizes(10, first=3) == [3, 6, 10]


# the same order

def test_order_share_by_hand():
    o = order_share(np.array([[3, 2, 1], [3, 1, 2], [2, 3, 1], [9, 5, 1.0], [np.nan, 2, 1]]), [3, 2, 1])
    assert (o.share, o.first, o.draws) == (0.5, 0.75, 4) # the draw with a gap does not count
    assert order_share(np.array([[3, 1, 2], [3, 1, 2.0]]), [3, 2, 1]).first == 1 and order_share(np.array([[2, 3, 1.0]]), [3, 2, 1]).first == 0
    # taus 1, 1/3, 1/3, 1
    assert o.tau == pytest.approx(2 / 3) and o.tau_lo == pytest.approx(1 / 3) and o.tau_hi == 1
    # Wilson at 2 of 4, z = 1.96: middle 0.5, half-width sqrt(1/16 + z^2/64) z / (1 + z^2/4)
    z = norm.isf(0.025)
    half = z * np.sqrt(1 / 16 + z * z / 64) / (1 + z * z / 4)
    assert o.lo == pytest.approx(0.5 - half) and o.hi == pytest.approx(0.5 + half)


def test_a_share_of_all_or_none_still_has_an_interval():
    all_, none = (order_share(np.tile(row, (200, 1)), [2.0, 1.0]) for row in ([2.0, 1.0], [1.0, 2.0]))
    assert (all_.share, all_.hi) == (1, 1) and all_.lo == pytest.approx(200 / (200 + norm.isf(0.025) ** 2))
    assert (none.share, none.lo) == (0, 0) and none.hi == pytest.approx(1 - all_.lo)
    assert (all_.tau, none.tau) == (1, -1)


@settings(max_examples=60, deadline=None)
@given(draws=st.integers(1, 12), sources=st.integers(2, 6), seed=st.integers(0, 10**6), paired=st.booleans())
def test_order_share_is_what_a_loop_over_draws_gives(draws, sources, seed, paired):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (draws, sources)).astype(float) # with ties
    y = rng.integers(0, 4, (draws, sources) if paired else sources).astype(float)
    gone = rng.random(draws) < 0.2
    gone[0] = False
    o = order_share(np.where(gone[:, None], np.nan, x), y)
    rows = [(a, y[i] if paired else y) for i, a in enumerate(x) if not gone[i]]
    assert o.draws == len(rows)
    assert o.share == pytest.approx(np.mean([all(np.sign(a[i] - a[j]) == np.sign(b[i] - b[j]) for i, j in combinations(range(sources), 2)) for a, b in rows]))
    with np.errstate(all="ignore"): taus = [t for a, b in rows if np.isfinite(t := kendalltau(a, b).statistic)]
    if taus: assert o.tau == pytest.approx(np.mean(taus)) and o.tau_lo == pytest.approx(np.quantile(taus, 0.025)) and o.tau_hi == pytest.approx(np.quantile(taus, 0.975))
    else: assert np.isnan(o.tau)
    assert 0 <= o.lo <= o.share <= o.hi <= 1


# the curve

def three(queries=60):
    rows, unit = {}, {}
    for k, s in enumerate(("strong", "middle", "weak")): rows[s], unit[s] = source(queries, scale=0.09 - 0.025 * k, seed=k)
    return rows, unit


def test_a_curve_is_made_of_the_scores_of_the_subsamples():
    rows, unit = three(30)
    curve = sample_size_curve(rows, unit, [5, 30], resamples=20, seed=3)
    for size in (5, 30):
        counts = subsample_counts(30, size, 20, seed=3)
        wanted = np.array([[naive(rows[s], c[unit[s]].astype(bool)) for s in rows] for c in counts])
        np.testing.assert_allclose(curve.draws[size], wanted, rtol=1e-4 if size == 5 else 1e-9) # the series' own bound is looser
        found = curve.scores[curve.scores["size"] == size].set_index("source")
        np.testing.assert_allclose(found["value"], wanted.mean(0), rtol=1e-4)
        if size == 5: np.testing.assert_allclose(found[["lo", "hi"]].to_numpy().T, np.quantile(wanted, [0.025, 0.975], axis=0), rtol=1e-3)
    whole = curve.scores[curve.scores["size"] == 30]
    assert (whole["sd"] == 0).all() and (whole["lo"] == whole["hi"]).all()
    assert curve.order["same_order"].iloc[-1] == 1 and curve.order["tau"].iloc[-1] == 1


def test_more_queries_agree_more_often():
    rows, unit = three(200)
    order = sample_size_curve(rows, unit, resamples=100).order
    assert order["size"].tolist() == [25, 50, 100, 200] and order["same_order"].iloc[0] < order["same_order"].iloc[2] <= 1
    assert (order["same_order_lo"] <= order["same_order"]).all() and (order["sources"] == 3).all()


def test_the_order_of_some_sources_is_that_of_these_alone():
    rows, unit = three()
    two = sample_size_curve(rows, unit, [10], resamples=30, candidates=["strong", "weak"])
    draws = two.draws[10]
    assert list(draws) == ["strong", "middle", "weak"] and two.order["sources"].tolist() == [2]
    assert two.order["same_order"].iloc[0] == pytest.approx((draws["strong"] > draws["weak"]).mean())


def test_a_curve_refuses():
    rows, unit = three()
    with pytest.raises(InputError, match=r"unknown source 'week'. Did you mean 'weak'\?"): sample_size_curve(rows, unit, candidates=["week"])
    with pytest.raises(InputError, match="rows are of strong, middle, weak, and unit is of strong: expected the same sources"): sample_size_curve(rows, {"strong": unit["strong"]})
    with pytest.raises(InputError, match=r"different numbers of queries \(strong: 60, middle: 60, weak: 59\)"): sample_size_curve({s: rows[s][unit[s] < (59 if s == "weak" else 60)] for s in rows}, {s: u[u < (59 if s == "weak" else 60)] for s, u in unit.items()})
    with pytest.raises(InputError, match="size is 61, and there are 60 queries to draw from without replacement: give a size of at most 60"): sample_size_curve(rows, unit, [61])
    with pytest.raises(InputError, match="size is 0, expected a whole number of at least 1"): subsample_counts(5, 0)
    with pytest.raises(InputError, match=r"draws have shape \(3,\), expected \(B, S\)"): order_share(np.zeros(3), [1])
    with pytest.raises(InputError, match="none of the 2 draws has a finite score"): order_share(np.full((2, 2), np.nan), [1, 2])


# contributions

@settings(max_examples=25, deadline=None)
@given(queries=st.integers(2, 20), most=st.integers(1, 4), d=st.integers(1, 8), gain=st.sampled_from([0.5, 1.0, 50.0]), seed=st.integers(0, 10**6))
def test_contributions_are_the_score_plus_its_derivatives(queries, most, d, gain, seed):
    X, unit = source(queries, (1, most), d, seed=seed)
    Y = X * np.random.default_rng(seed).uniform(0, 1, (len(X), 1))
    def score(weight):
        # of queries counted so often: two terms, the second with coefficient -3
        v = weight[unit]
        return sum(c * np.linalg.slogdet(np.eye(d) + gain * (Z * v[:, None]).T @ Z / v.sum())[1] for c, Z in ((1, X), (-3, Y)))
    got, one = contributions([X, Y], unit, gain, (1, -3)), np.ones(queries)
    assert got.mean() == pytest.approx(score(one), abs=1e-12)
    for k in range(queries):
        step = np.zeros(queries)
        step[k] = 1e-5
        slope = (score(one + step) - score(one - step)) / 2e-5
        assert got[k] - score(one) == pytest.approx(queries * slope, abs=1e-6 * (1 + abs(queries * slope)))


def test_their_deviation_is_the_bootstraps():
    X, unit = source(300, seed=4)
    draws = resampled_scores(X, unit, resample_counts(300, 4000)).values
    assert contributions(X, unit).std() / np.sqrt(300) == pytest.approx(draws.std(), rel=0.04)


def test_contributions_refuse():
    X, unit = source()
    with pytest.raises(InputError, match="found 1 arrays of rows and 2 coefficients"): contributions(X, unit, 1.0, (1, -3))
    with pytest.raises(InputError, match=r"the rows belong to 29 of 30 queries: number the queries from 0 without a gap"): contributions(X[unit != 4], unit[unit != 4])
    with pytest.raises(InputError, match=r"rows have shape \(\d+, 5\), expected \(\d+, d\)"): contributions(X[1:], unit)
    with pytest.raises(InputError, match=r"the rows hold NaN or infinity \(1 values\)"): contributions(np.where(np.arange(X.size).reshape(X.shape) == 7, np.inf, X), unit)


# the planner

def pilot_of(difference, sd, n=50, common=3.0, seed=0):
    "Contributions of two sources whose difference has exactly this mean and deviation; what is common cancels."
    rng = np.random.default_rng(seed)
    d = rng.normal(size=n)
    d = difference + sd * (d - d.mean()) / d.std(ddof=1)
    base = common * rng.normal(size=n)
    return pd.DataFrame(dict(a=base + d, b=base))


def test_a_plan_by_hand():
    # (1.959964 + 0.841621)^2 / 0.5^2 = 31.40; the interval's ends: 0.5 +- 1.959964 / sqrt(50)
    r = queries_needed(pilot_of(0.5, 1.0)).iloc[0]
    assert (r.a, r.b, r.pilot, r.queries) == ("a", "b", 50, 32) and r.difference == pytest.approx(0.5) and r.sd == pytest.approx(1.0)
    assert r.low == np.ceil((2.801585 / (0.5 + 0.277181)) ** 2) == 13 and r.high == np.ceil((2.801585 / (0.5 - 0.277181)) ** 2) == 159
    assert bool(r.separated) and not bool(queries_needed(pilot_of(0.27, 1.0))["separated"].iloc[0])
    # 90 % power at 99 %: (2.575829 + 1.281552)^2 * 4 = 59.5
    assert queries_needed(pilot_of(0.5, 1.0), confidence=0.99, power=0.9)["queries"].iloc[0] == 60
    assert queries_needed(pilot_of(0.1, 1.0))["high"].iloc[0] == np.inf


def test_the_order_of_the_names_does_not_matter():
    frame = pilot_of(0.5, 1.0)
    r = queries_needed(frame, pairs=[("b", "a")]).iloc[0]
    assert (r.a, r.b, r.queries) == ("a", "b", 32)
    assert queries_needed({"b": frame["b"], "a": frame["a"].to_numpy()}).iloc[0].equals(r)


def test_holm_by_hand():
    # effects 1, 0.5 and 0.5 against three levels: 0.05/3, 0.05/2, 0.05
    x = pilot_of(0.5, 1.0)
    d = x["a"] - x["b"]
    frame = pd.DataFrame(dict(a=2 * d, b=d, c=0.0 * d))
    plan = queries_needed(frame)
    z = [norm.isf(0.05 / 2 / k) + norm.ppf(0.8) for k in (3, 2, 1)]
    assert plan["queries"].tolist() == [np.ceil((z[0] / 0.5) ** 2)] * 3 # all effects are 0.5: the first is the hardest, the others follow it
    frame["a"] = x["a"] * 0 + 1.0 + (d - d.mean()) # effect 1 against c, infinite against b
    plan = queries_needed(frame, pairs=[("a", "c"), ("b", "c")])
    assert plan[["a", "b"]].to_numpy().tolist() == [["a", "c"], ["b", "c"]]
    assert plan["queries"].tolist() == [np.ceil(z[1] ** 2), np.ceil((z[2] / 0.5) ** 2)]
    assert queries_needed(frame, pairs=[("a", "c"), ("b", "c")], correction="none")["queries"].tolist() == [np.ceil(z[2] ** 2), np.ceil((z[2] / 0.5) ** 2)]


def test_what_holm_does_not_reach_is_not_separated():
    # z = 2.2 and 2.1: against 2.24 and then 1.96, so the first fails and ends it
    d = pilot_of(1.0, 1.0, n=100)["a"] - pilot_of(1.0, 1.0, n=100)["b"] - 1.0
    frame = pd.DataFrame(dict(a=0.22 + d, b=0.21 + d, c=0.0 * d))
    for correction, wanted in (("holm", [False, False]), ("none", [True, True])): assert queries_needed(frame, pairs=[("a", "c"), ("b", "c")], correction=correction)["separated"].tolist() == wanted


def test_nothing_to_tell_apart_and_nothing_in_the_way():
    frame = pilot_of(0.5, 1.0).assign(c=lambda f: f["b"], d=lambda f: f["b"] + 0.25)
    same = queries_needed(frame, pairs=[("b", "c")]).iloc[0]
    assert same.queries == same.low == same.high == np.inf and not same.separated
    # rounding apart, d differs from b by a constant: two queries, the least that have a deviation
    assert queries_needed({"b": [1.0, 2.0, 3.0], "d": [1.25, 2.25, 3.25]})["queries"].tolist() == [2]


def test_draws_and_contributions_give_the_same_plan():
    frame = pilot_of(0.5, 1.0, n=80)
    draws = resample_counts(80, 20_000) @ frame.to_numpy() / 80
    plan = queries_needed(pd.DataFrame(draws, columns=["a", "b"]), drawn_from=80, estimates=dict(a=frame["a"].mean(), b=frame["b"].mean())).iloc[0]
    assert plan.pilot == 80 and plan.sd == pytest.approx(1.0, rel=0.02) and plan.difference == pytest.approx(0.5) and abs(plan.queries - 32) <= 2
    assert abs(queries_needed(pd.DataFrame(draws, columns=["a", "b"]), drawn_from=80)["queries"].iloc[0] - 32) <= 3


def ranking(values, draws, n=80):
    "A ranking of three candidates and a control, from draws of the bootstrap."
    table = pd.DataFrame(dict(kind=["source", "source", "source", "control"], value=values, net_value=[-v for v in values]), index=pd.Index(list("abcr"), name="source"))
    pairs = pd.DataFrame([dict(metric=m, family=f, a=x, b=y) for m in ("eci_sem", "eci_net") for f, of in (("candidates", [("a", "b"), ("a", "c"), ("b", "c")]), ("control", [("a", "r"), ("b", "r"), ("c", "r")])) for x, y in of])
    frame = pd.DataFrame(draws, columns=list("abcr"))
    return Ranking(table, pairs, {"eci_sem": frame, "eci_net": -frame}, None, None, None, None, dict(queries=n))


def test_a_ranking_brings_its_queries_scores_and_families():
    rng = np.random.default_rng(0)
    draws = rng.normal([1.0, 0.8, 0.5, 0.1], 0.1, size=(3000, 4))
    r = ranking([1.0, 0.8, 0.5, 0.1], draws)
    plan = queries_needed(r)
    assert len(plan) == 6 and (plan["pilot"] == 80).all()
    one = plan.set_index(["a", "b"]).loc[("a", "b")]
    sd = (draws[:, 0] - draws[:, 1]).std(ddof=1) * 80 / np.sqrt(79)
    assert one["difference"] == pytest.approx(0.2) and one["sd"] == pytest.approx(sd)
    # the smallest of three effects, so at the last step of Holm's
    assert one["queries"] == np.ceil(((norm.isf(0.025) + norm.ppf(0.8)) * sd / 0.2) ** 2)
    control = plan.set_index(["a", "b"]).loc[("c", "r")]
    assert control["queries"] == np.ceil(((norm.isf(0.025) + norm.ppf(0.8)) * control["sd"] / 0.4) ** 2)
    net = queries_needed(r, metric="eci_net").set_index(["a", "b"])
    assert net.loc[("b", "a"), "queries"] == one["queries"]
    assert len(queries_needed(r, pairs=[("a", "b")])) == 1


effects = st.tuples(st.floats(0.01, 2.0), st.floats(0.05, 3.0))


@settings(max_examples=40, deadline=None)
@given(effect=effects, smaller=st.floats(0.1, 1.0), more=st.floats(0.0, 0.9), power=st.floats(0.3, 0.95), confidence=st.floats(0.8, 0.99))
def test_more_is_never_had_for_fewer(effect, smaller, more, power, confidence):
    (d, sd) = effect
    def need(d=d, sd=sd, **k): return queries_needed(pilot_of(d, sd), **(dict(confidence=confidence, power=power) | k))["queries"].iloc[0]
    base = need()
    assert need(confidence=confidence + more * (1 - confidence) * 0.99) >= base
    assert need(power=power + more * (1 - power) * 0.99) >= base
    assert need(d=d * smaller) >= base - 1e-9 and need(sd=sd / smaller) >= base
    r = queries_needed(pilot_of(d, sd), confidence=confidence, power=power).iloc[0]
    assert r.low <= r.queries <= r.high


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), sources=st.integers(3, 6), shrink=st.floats(0.0, 1.0))
def test_in_a_family_too(seed, sources, shrink):
    rng = np.random.default_rng(seed)
    values = pd.DataFrame(rng.normal(rng.uniform(0, 1, sources), rng.uniform(0.2, 1, sources), size=(30, sources)), columns=[f"s{i}" for i in range(sources)])
    holm, alone = (queries_needed(values, correction=c) for c in ("holm", "none"))
    key = lambda p: p.set_index(["a", "b"])["queries"].sort_index()
    assert (key(holm) >= key(alone)).all() and (np.diff(holm["queries"][np.isfinite(holm["queries"])]) >= 0).all()
    assert (holm["low"] <= holm["queries"]).all() and (holm["queries"] <= holm["high"]).all()
    # the units of the score do not matter
    np.testing.assert_array_equal(queries_needed(values * 1e-3)["queries"], holm["queries"])
    # one pair of a family of two drawn together needs more, or as many
    pairs = [("s0", "s1"), ("s1", "s2")]
    near = values.assign(s0=values["s0"] + (1 - shrink) * (values["s1"].mean() - values["s0"].mean()))
    def of(frame): return {frozenset((r.a, r.b)): r.queries for r in queries_needed(frame, pairs=pairs).itertuples()}[frozenset(pairs[0])]
    assert of(near) >= of(values) - 1e-9


@settings(max_examples=60, deadline=None)
@given(effect=effects, power=st.floats(0.3, 0.95), confidence=st.floats(0.8, 0.99))
def test_the_plan_is_the_least_that_has_the_power(effect, power, confidence):
    r = queries_needed(pilot_of(*effect), power=power, confidence=confidence).iloc[0]
    assert expected_power(r.difference, r.sd, r.queries, confidence) >= power - 1e-6
    if r.queries > 2: assert expected_power(r.difference, r.sd, r.queries - 1, confidence) < power + 1e-6


def test_expected_power_by_hand():
    # effect 0.5 at n = 16: 2 - 1.96 = 0.04
    assert expected_power(0.5, 1.0, 16) == pytest.approx(norm.cdf(2 - norm.isf(0.025)))
    assert expected_power(-0.5, 1.0, 16) == expected_power(0.5, 1.0, 16)
    assert expected_power(0.0, 0.0, 16) == pytest.approx(0.025) and expected_power(0.1, 0.0, 16) == 1
    np.testing.assert_allclose(expected_power(0.5, 1.0, np.array([4, 16])), [expected_power(0.5, 1.0, 4), expected_power(0.5, 1.0, 16)])


def test_new_samples_of_the_planned_size_separate_as_often_as_promised():
    # a population of queries with skewed contributions, seen through log det
    rng = np.random.default_rng(2)
    Q, d = 20_000, 3
    axes = rng.normal(size=(Q, d)) * [1, 0.6, 0.3]
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    weight = {"a": rng.gamma(2.0, 0.05, Q), "b": rng.gamma(2.0, 0.04, Q)}
    rows = {s: axes * np.sqrt(w)[:, None] for s, w in weight.items()}
    whole = {s: contributions(X, np.arange(Q)) for s, X in rows.items()}
    n = int(queries_needed(whole)["queries"].iloc[0])
    assert 50 < n < 400
    def separated():
        k, score = rng.integers(Q, size=n), {}
        each = {s: contributions(X[k], np.arange(n)) for s, X in rows.items()}
        score = {s: np.linalg.slogdet(np.eye(d) + X[k].T @ X[k] / n)[1] for s, X in rows.items()}
        return abs(score["a"] - score["b"]) > 1.96 * (each["a"] - each["b"]).std(ddof=1) / np.sqrt(n)
    share = np.mean([separated() for _ in range(600)])
    assert abs(share - 0.8) < 0.06 # three standard errors are 0.05


def test_the_planner_refuses():
    p = pilot_of(0.5, 1.0)
    for call, message in [
        (lambda: queries_needed([1, 2]), "pilot is list, expected a Ranking, or a data frame or dictionary: source -> values"),
        (lambda: queries_needed(p[["a"]]), "the pilot has 1 source, expected at least 2 to compare"),
        (lambda: queries_needed({"a": [1.0], "b": [2.0]}), "the pilot has 1 value a source, expected at least 2"),
        (lambda: queries_needed({"a": [1.0, 2.0], "b": [2.0]}), r"different numbers of values \(a: 2, b: 1\): expected the same queries, in the same order"),
        (lambda: queries_needed(p.drop(3).reindex(range(50))), r"the pilot holds NaN or infinity \(2 of 100 values\): leave those queries out"),
        (lambda: queries_needed(p, confidence=95), "confidence is 95, expected a number between 0 and 1"),
        (lambda: queries_needed(p, power=0.05), r"power is 0.05, expected a number above 1 - confidence = 0.05, which chance alone would reach, and below 1"),
        (lambda: queries_needed(p, power=1.0), "power is 1.0, expected"),
        (lambda: queries_needed(p, correction="bonferroni"), "unknown correction 'bonferroni'"),
        (lambda: queries_needed(p, pairs=[("a", "c")]), "unknown source of the pilot 'c'"),
        (lambda: queries_needed(p, pairs=[("a", "a")]), r"a pair needs two different sources, got \('a', 'a'\)"),
        (lambda: queries_needed(p, drawn_from=1.5), "drawn_from is 1.5, expected a whole number of at least 2: the queries that the draws were made from"),
        (lambda: queries_needed(p, estimates=dict(a=1.0)), "unknown source in estimates 'b'"),
        (lambda: queries_needed(ranking([1, 2, 3, 4], np.zeros((5, 4))), drawn_from=5), "a Ranking knows its queries and its scores: leave drawn_from and estimates out"),
        (lambda: queries_needed(ranking([1, 2, 3, 4], np.zeros((5, 4))), metric="eci"), "unknown metric of this ranking 'eci'"),
        (lambda: expected_power(1, 1, 5, confidence=0), "confidence is 0, expected a number between 0 and 1"),
    ]:
        with pytest.raises(InputError, match=message): call()


# lengths

def table(rows):
    "(query, source, rank, words) -> triples; texts differ in their first word, and a passage may be a negative of many queries."
    return Triples.from_rows([dict(query_id=q, positive_id=f"p{q}", negative_id=f"{s}{k}", query=f"query {q}", positive=f"positive {q}", negative=" ".join([f"{s}{q}{k}", *["w"] * (n - 1)]), source=s, rank=k) for q, s, k, n in rows])


def test_lengths_are_matched_to_the_references_first_negative():
    t = table([("1", "ref", 1, 10), ("1", "ref", 2, 99), ("1", "far", 1, 40), ("1", "far", 2, 9), ("1", "far", 3, 12), # 9 is nearer to 10 than 12
               ("2", "far", 1, 13), ("2", "far", 2, 30), ("2", "ref", 1, 10), # 13 is beyond 20 %
               ("3", "ref", 1, 10), ("3", "far", 2, 12), ("3", "far", 1, 5), # just within, and given out of order
               ("4", "ref", 1, 10)]) # not covered
    m = match_lengths(t, "ref")
    assert (m.queries, m.kept, m.unmatched) == (3, 2, dict(ref=0, far=1))
    ids = lambda rows: t.column("negative_id")[rows].tolist()
    assert ids(m.rows["ref"]) == ids(m.first["ref"]) == ids(m.drawn["ref"]) == ["ref1", "ref1"]
    assert ids(m.rows["far"]) == ["far2", "far2"] and ids(m.first["far"]) == ["far1", "far1"]
    for rows in (*m.rows.values(), *m.first.values(), *m.drawn.values()): assert t.column("query_id")[rows].tolist() == ["1", "3"]
    assert match_lengths(t, "ref", caliper=0.3).kept == 3 and match_lengths(t, "ref", caliper=0).kept == 0
    # the other way round the target is far's first negative
    assert match_lengths(t, "far").unmatched == dict(far=0, ref=3)


def test_ties_and_draws_follow_the_seed_and_not_the_order_of_rows():
    rows = [(str(q), s, k, 10) for q in range(40) for s in ("ref", "far") for k in (1, 2, 3)]
    t, back = table(rows), table(rows[::-1])
    one, two = match_lengths(t, "ref", seed=1), match_lengths(back, "ref", seed=1)
    ids = lambda t, rows: t.column("negative_id")[rows].tolist()
    assert ids(t, one.rows["far"]) == ids(back, two.rows["far"]) == ids(t, one.drawn["far"]) # all of one length: the draw and the tie are one
    assert ids(t, one.rows["far"]) != ids(t, match_lengths(t, "ref", seed=2).rows["far"])
    assert 5 < sum(i.endswith("1") for i in ids(t, one.rows["far"])) < 25
    assert all(i.endswith("1") for i in ids(t, one.first["far"]))


def test_matching_refuses():
    t = table([("1", "ref", 1, 10), ("2", "far", 1, 10)])
    with pytest.raises(InputError, match="unknown source 'ref2'"): match_lengths(t, "ref2")
    with pytest.raises(InputError, match="no query has negatives from every one of ref, far"): match_lengths(t, "ref")
    with pytest.raises(InputError, match="caliper is -0.1, expected a number of at least 0"): match_lengths(t, "ref", caliper=-0.1)
