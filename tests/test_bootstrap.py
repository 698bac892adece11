"""Bootstrap: the three ways to a resample's score agree, intervals cover, ties are ties."""
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.bootstrap import compare_pairs, correct_draws, holm, interval, letters, ranks, resample_counts, resampled_scores
from eci_sem.collection import InputError
from eci_sem.score import logdet_from_rows


def source(queries=20, per_query=(1, 3), d=6, scale=0.05, seed=0):
    "Rows sqrt(w) r and their queries, in no order."
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(queries), rng.integers(per_query[0], per_query[1] + 1, queries))
    X = rng.normal(size=(len(unit), d)) * (scale * rng.uniform(0, 1, (len(unit), 1))) ** 0.5
    order = rng.permutation(len(unit))
    return X[order], unit[order]


def naive(X, unit, counts, gain):
    "Rows repeated as often as their query is drawn, nothing else."
    values = []
    for c in counts:
        rows = np.concatenate([np.flatnonzero(unit == q) for q, k in enumerate(c) for _ in range(k)])
        values.append(np.linalg.slogdet(np.eye(X.shape[1]) + gain * X[rows].T @ X[rows] / len(rows))[1])
    return np.array(values)


# draws

def test_counts_sum_to_the_units_and_do_not_depend_on_how_many_are_drawn():
    counts = resample_counts(17, 40, seed=3)
    assert counts.shape == (40, 17) and (counts.sum(1) == 17).all()
    assert (resample_counts(17, 12, seed=3) == counts[:12]).all()
    assert (resample_counts(17, 40, seed=4) != counts).any()


def test_counts_are_multinomial():
    counts = resample_counts(10, 4000)
    assert abs(counts.mean(0) - 1).max() < 0.06 and abs(counts.var(0) - 0.9).max() < 0.12


# scores of resamples

@settings(max_examples=30, deadline=None)
@given(queries=st.integers(2, 25), most=st.integers(1, 4), d=st.integers(1, 9), gain=st.sampled_from([0.5, 1.0, 30.0, 400.0]), seed=st.integers(0, 10**6))
def test_every_way_gives_the_score_of_the_repeated_rows(queries, most, d, gain, seed):
    X, unit = source(queries, (1, most), d, seed=seed)
    counts = resample_counts(queries, 8, seed)
    wanted = naive(X, unit, counts, gain)
    for packed in (False, True):
        exact = resampled_scores(X, unit, counts, gain, path="exact", packed=packed)
        assert exact.path == "exact" and exact.bound == 0
        np.testing.assert_allclose(exact.values, wanted, rtol=1e-10, atol=1e-13)
        series = resampled_scores(X, unit, counts, gain, path="series", packed=packed)
        assert series.path == "series" and abs(series.values - wanted).max() <= series.bound + 1e-12


def test_gram_form_and_matrix_form_agree():
    # more dimensions than rows: the Gram matrix is the smaller one
    X, unit = source(30, (1, 2), 80, scale=0.5)
    counts = resample_counts(30, 20)
    np.testing.assert_allclose(resampled_scores(X, unit, counts, 5.0, path="exact", packed=False).values, naive(X, unit, counts, 5.0), rtol=1e-11)
    np.testing.assert_allclose(resampled_scores(X, unit, counts, 5.0, path="exact", packed=True).values, naive(X, unit, counts, 5.0), rtol=1e-11)


def test_terms_are_added_with_their_coefficients():
    (X, unit), rng = source(40), np.random.default_rng(1)
    Y = X * rng.uniform(0, 1, (len(X), 1))
    counts = resample_counts(40, 50)
    wanted = naive(X, unit, counts, 1.0) - 3 * naive(Y, unit, counts, 1.0)
    for path in ("exact", "series"):
        for packed in (True, False):
            got = resampled_scores([X, Y], unit, counts, coefficients=(1, -3), path=path, packed=packed)
            assert abs(got.values - wanted).max() <= got.bound + 1e-13
    assert resampled_scores([X, X], unit, counts, coefficients=(1, -1)).values == pytest.approx(0, abs=1e-13)


def test_rows_may_come_from_a_function_in_any_portions():
    X, unit = source(40)
    counts, asked = resample_counts(40, 30), []
    def get(rows): asked.append(len(rows)); return [X[rows]]
    for packed in (True, False):
        np.testing.assert_array_equal(resampled_scores(get, unit, counts, path="exact", packed=packed).values, resampled_scores(X, unit, counts, path="exact", packed=packed).values)
    assert max(asked) == len(X)


def test_many_units_are_packed_in_portions():
    # more rows than one portion holds, units of unequal size
    X, unit = source(3000, (1, 4), 3)
    assert len(X) > 4096
    counts = resample_counts(3000, 5)
    np.testing.assert_allclose(resampled_scores(X, unit, counts, path="exact", packed=True).values, resampled_scores(X, unit, counts, path="exact", packed=False).values, rtol=1e-11)


def test_the_series_is_taken_only_where_it_is_accurate():
    X, unit = source(200, scale=0.05)
    counts = resample_counts(200, 300)
    auto, exact = (resampled_scores(X, unit, counts, path=p) for p in ("auto", "exact"))
    assert auto.path == "series" and auto.bound <= 1e-3 * exact.values.std()
    assert abs(auto.values - exact.values).max() <= auto.bound
    assert resampled_scores(X, unit, counts, tolerance=0).path == "exact"
    assert resampled_scores(X, unit, counts, gain=1e4).path == "exact"


def test_a_source_without_weight_scores_zero_in_every_resample():
    X, unit = source(10)
    got = resampled_scores(0 * X, unit, resample_counts(10, 20))
    assert (got.values == 0).all() and got.bound == 0


def test_refused():
    X, unit = source(10)
    counts = resample_counts(10, 5)
    with pytest.raises(InputError, match=r"unknown bootstrap path 'serie'. Did you mean 'series'\?"): resampled_scores(X, unit, counts, path="serie")
    with pytest.raises(InputError, match=r"counts are of 9 queries, and the rows belong to 10 of 10"): resampled_scores(X, unit, counts[:, :9])
    with pytest.raises(InputError, match=r"counts are of 10 queries, and the rows belong to 9 of 10: every query needs a row"): resampled_scores(X[unit != 4], unit[unit != 4], counts)
    with pytest.raises(InputError, match=r"found 2 arrays of rows and 1 coefficients"): resampled_scores([X, X], unit, counts)
    with pytest.raises(InputError, match=r"the rows hold NaN or infinity \(1 values\)"): resampled_scores(np.where(np.arange(X.size).reshape(X.shape) == 7, np.nan, X), unit, counts)


# intervals

def test_draws_are_reflected_above_gain_one_only():
    draws = np.array([1.0, 2.0, 6.0])
    same, bias = correct_draws(2.5, draws, gain=1)
    assert (same == draws).all() and bias == pytest.approx(0.5)
    reflected, bias = correct_draws(2.5, draws, gain=400)
    assert reflected.tolist() == [4.0, 3.0, -1.0] and bias == pytest.approx(0.5)


def test_interval_is_equal_tailed():
    lo, hi = interval(np.arange(1001.0), alpha=0.1)
    assert (lo, hi) == (50, 950)


def coverage(gain, reflect, trials=200, population=4000, n=60, d=4):
    "Share of samples whose interval holds the score of the population they come from."
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(population, d)) * np.array([1, 0.7, 0.5, 0.3]) * rng.gamma(1.0, size=(population, 1)) ** 0.5 * 0.2
    score = lambda X: np.linalg.slogdet(np.eye(d) + gain * X.T @ X / len(X))[1]
    hits = 0
    for trial in range(trials):
        X = rows[rng.integers(population, size=n)]
        draws = resampled_scores(X, np.arange(n), resample_counts(n, 300, trial), gain).values
        lo, hi = interval(correct_draws(score(X), draws, gain if reflect else 1)[0])
        hits += lo <= score(rows) <= hi
    return hits / trials


def test_intervals_cover_the_score_of_the_population():
    # 200 trials: 0.95 has a standard error of 0.015, and percentile intervals of 60 skewed rows are a little short
    assert 0.88 <= coverage(1.0, reflect=True) <= 0.99


def test_above_gain_one_the_reflected_interval_covers_better():
    corrected, plain = coverage(2000.0, reflect=True), coverage(2000.0, reflect=False)
    assert corrected >= 0.88 and corrected > plain


# comparisons

def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, never falling: .04 .06 .06 .06
    np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.4]), [0.8, 0.8])
    np.testing.assert_allclose(holm([0.9, 0.9, 0.9]), [1, 1, 1])
    assert holm([]).shape == (0,) and holm([0.2]) == [0.2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all() and (adjusted <= np.minimum(np.array(p) * len(p), 1) + 1e-15).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_a_pair_by_hand():
    draws = np.zeros((9, 2))
    draws[:, 0] = [3, 2, 2, 1, 1, 1, 1, 1, -1]
    pairs = compare_pairs(["low", "high"], [0.0, 1.0], draws[:, ::-1], alpha=0.5)
    row = pairs.iloc[0]
    # one of nine draws is at most 0: p = 2 (1 + 1) / (9 + 1)
    assert (row.a, row.b, row.difference, row.p, row.p_holm) == ("high", "low", 1.0, 0.4, 0.4)
    assert (row.lo, row.hi) == (1, 2) and row.significant


def test_the_smallest_p_times_the_number_of_pairs_stays_below_five_percent():
    # the reason for 100 resamples a pair
    for sources in (3, 7, 12):
        family = sources * (sources - 1) // 2
        draws = np.tile(np.arange(sources, 0, -1.0), (max(1000, 100 * family), 1))
        pairs = compare_pairs([str(i) for i in range(sources)], np.arange(sources, 0, -1.0), draws)
        assert len(pairs) == family and pairs["significant"].all()


def test_equal_sources_differ_by_exactly_zero():
    draws = np.random.default_rng(0).normal(size=(500, 1)).repeat(2, axis=1)
    row = compare_pairs(["y", "x"], [0.3, 0.3], draws).iloc[0]
    assert (row.a, row.b, row.difference, row.lo, row.hi, row.p, row.significant) == ("x", "y", 0, 0, 0, 1, False)


def test_few_queries_bound_the_p():
    "Every draw lies above 0, but two queries have three samples: p is at least 2^(1 - n)."
    draws = np.linspace(1, 2, 1000)[:, None] * np.array([1.0, 0.5, 0.25])
    alone = compare_pairs("abc", [1.5, 0.75, 0.375], draws)
    assert alone["significant"].all() and (alone["p"] == 2 / 1001).all()
    for units, least, told in ((2, 0.5, False), (6, 1 / 32, False), (7, 1 / 64, True), (15, 2 / 1001, True)):
        found = compare_pairs("abc", [1.5, 0.75, 0.375], draws, units=units)
        assert (found["p"] == max(least, 2 / 1001)).all() and (found["significant"] == told).all(), units


def test_rounding_is_no_difference():
    draws = np.random.default_rng(0).normal(2, 0.1, size=(500, 1)) * np.ones(2)
    draws[:, 1] += 1e-16
    row = compare_pairs("ab", [2.0, 2.0 + 4e-16], draws).iloc[0]
    assert row["difference"] == row["lo"] == row["hi"] == 0 and row["p"] == 1 and not row["significant"]
    draws[:, 1] += 1e-6 # small and real
    assert compare_pairs("ab", [2.0, 2.000001], draws).iloc[0]["significant"]


def test_pairing_sees_what_separate_intervals_do_not():
    rng = np.random.default_rng(0)
    common = rng.normal(size=(2000, 1))
    draws = common + rng.normal(size=(2000, 2)) * 0.01 + [0.1, 0]
    (alo, blo), (ahi, bhi) = interval(draws)
    assert alo < bhi and compare_pairs("ab", [0.1, 0.0], draws)["significant"].all()


def significant(*pairs): return pd.DataFrame([dict(a=a, b=b, significant=True) for a, b in pairs], columns=["a", "b", "significant"])


def test_ranks_and_letters_by_hand():
    # a beats c and d, b beats d: a and b tie at 1, c is below one, d below two
    pairs = significant("ac", "ad", "bd")
    assert ranks("abcd", pairs) == dict(a=1, b=1, c=2, d=3)
    assert letters("abcd", pairs) == dict(a="a", b="ab", c="bc", d="c")
    assert ranks("abc", significant()) == dict(a=1, b=1, c=1) and letters("abc", significant()) == dict(a="a", b="a", c="a")
    assert letters("ab", significant("ab")) == dict(a="a", b="b")


def test_sources_outside_the_list_do_not_count():
    assert ranks("bc", significant("ab", "ac", "bc")) == dict(b=1, c=2)


@settings(max_examples=80, deadline=None)
@given(n=st.integers(1, 8), seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_two_sources_share_a_letter_exactly_if_they_do_not_differ(n, seed, share):
    names, rng = [f"s{i}" for i in range(n)], np.random.default_rng(seed)
    differ = {p for p in combinations(names, 2) if rng.random() < share}
    found = letters(names, significant(*differ))
    assert all(found.values())
    for a, b in combinations(names, 2): assert ((a, b) in differ) == (not set(found[a]) & set(found[b]))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 5), st.sampled_from([1.0, 7.0]))
def test_block_sums_give_the_scores_of_their_rows(dim, blocks, seed, gain):
    "Against the Accumulator's own way and the rows themselves; with more resamples than are formed at once."
    from eci_sem import bootstrap as B
    rng = np.random.default_rng(seed)
    X, block = rng.normal(size=(3 * blocks, dim)), np.arange(3 * blocks) % blocks
    upper = np.triu_indices(dim)
    totals = np.stack([(X[block == b].T @ X[block == b])[upper] for b in range(blocks)])
    counts = resample_counts(blocks, 20, seed)
    got = B.block_scores(totals, np.bincount(block, minlength=blocks), counts, dim, gain)
    assert np.allclose(got, logdet_from_rows(X, counts[:, block], gain), rtol=1e-9, atol=1e-12)
    before, B.at_once = B.at_once, lambda d: 3
    try: assert np.allclose(B.block_scores(totals, np.bincount(block, minlength=blocks), counts, dim, gain), got, rtol=1e-13)
    finally: B.at_once = before
