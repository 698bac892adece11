"""Planted changes: what is planted where, the same for every seed and order of rows, and measures that agree with the score's own functions."""
import ast
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.bootstrap import resample_counts
from eci_sem.collection import Collection, InputError, normalise
from eci_sem.plant import BIASED, MEASURES, Passage, copies, hubs, matched, near_duplicates, other_relevant, plant, random_passages, repeat_queries, resampled_measures, several_relevant
from eci_sem.score import ECIConfig, baselines, calibrate, eci_net, eci_score
from eci_sem.triples import Triples


def unit(x): return x / np.linalg.norm(x, axis=-1, keepdims=True)


def small(queries=12, passages=60, relevant=3, negatives=1, seed=0, d=6):
    "A collection with several relevant passages per query, mined triples, and vectors."
    rng = np.random.default_rng(seed)
    corpus = {f"d{i}": f"passage number {i}" for i in range(passages)}
    qrels = {f"q{i}": {f"d{relevant * i + k}": 1 for k in range(relevant)} for i in range(queries)}
    collection = Collection("small", corpus, {q: f"question {q}" for q in qrels}, {"test": qrels})
    rows = [dict(query_id=x.query_id, positive_id=x.positive_id, query=x.query, positive=x.positive, negative_id=f"d{passages - 1 - k}", negative=corpus[f"d{passages - 1 - k}"], source="mined", rank=1, score=0.5) for x in collection.pairs("test") for k in range(negatives)]
    vectors, of = unit(rng.normal(size=(passages, d))), {q: unit(rng.normal(size=d)) for q in qrels}
    triples = Triples.from_rows(rows)
    asked = np.stack([of[q] for q in triples.column("query_id")])
    return collection, triples, vectors, asked, vectors[[int(p[1:]) for p in triples.column("positive_id")]]


def rows(t): return list(zip(t.column("query_id"), t.column("negative_id"), t.texts("negative")))


# what is planted

def test_queries_with_several_relevant_texts():
    c = Collection("c", {"1": "one", "2": "two", "3": "One ", "4": "four"}, {"a": "qa", "b": "qb", "c": "qc", "d": "qd", "e": "qe"},
        {"test": {"a": {"1": 1, "2": 1}, "b": {"1": 1, "3": 1}, "c": {"4": 1, "2": 0}}, "train": {"d": {"2": 1, "4": 2}, "e": {"4": 1}}})
    assert several_relevant(c) == ["a", "d"] and several_relevant(c, "test") == ["a"] and several_relevant(c, "train") == ["d"] # "One " is a copy of "one", and grade 0 is not relevant
    with pytest.raises(InputError, match="unknown split of collection 'c' 'dev'"): several_relevant(c, "dev")


@given(st.integers(0, 1000), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_another_relevant_passage_is_relevant_and_no_copy(seed, negatives):
    collection, t, *_ = small(negatives=negatives)
    found = other_relevant(t, collection, seed)
    for (q, p, text), (d, planted) in zip(zip(t.column("query_id"), t.column("positive_id"), t.texts("positive")), found):
        assert d in collection.relevant(q) and d != p and planted == collection.corpus[d] and normalise(planted) != normalise(text)
    assert len(set(zip(t.column("query_id"), found))) == len(t.query_ids) * min(negatives, 2) # two others each: rows take turns


def test_a_copy_is_no_other_relevant_passage():
    c = Collection("c", {"1": "One", "2": " one", "3": "three", "4": "x"}, {"a": "qa", "b": "qb"}, {"test": {"a": {"1": 1, "2": 1}, "b": {"3": 1, "1": 1}}})
    t = Triples.from_rows([dict(query_id=q, positive_id=p, query=f"q{q}", positive=c.corpus[p], negative_id="4", negative="x") for q, p in (("b", "3"), ("a", "1"))])
    assert {d.id for d in other_relevant(t.take([0]), c)} <= {"1", "2"}
    with pytest.raises(InputError, match=r"1 of 2 rows have no second relevant passage \(query 'a', for one\).*several_relevant\(collection\) names"): other_relevant(t, c)


def test_copies_are_the_positive_under_an_id_of_their_own():
    collection, t, *_ = small()
    assert copies(t) == [Passage("copy:" + p, text) for p, text in zip(t.column("positive_id"), t.texts("positive"))]
    assert plant(t, copies(t), 1).check(collection).counts == {"negative equals the positive": {"mined": len(t)}}


def test_the_guard_finds_false_negatives_and_repeats_but_not_the_rest():
    collection, t, vectors, asked, _ = small()
    assert plant(t, other_relevant(t, collection), 1).check(collection).counts == {"negative is a known relevant passage": {"mined": len(t)}}
    assert repeat_queries(t, 1, queries=3).check(collection).counts == {"duplicate row": {"mined": len(t) - 3}}
    for passages in (random_passages(t, collection), near_duplicates(t, collection, vectors, asked), hubs(t, collection, vectors, asked)): assert plant(t, passages, 1).check(collection).ok


def test_random_passages_are_uniform_over_what_is_not_relevant():
    collection, t, *_ = small(queries=2, passages=8, relevant=3)
    found = [random_passages(t.take([0]), collection, seed)[0] for seed in range(400)]
    counts = np.unique([d.id for d in found], return_counts=True)
    assert set(counts[0]) == set(collection.corpus) - collection.relevant("q0") and counts[1].min() > 50
    assert all(d.text == collection.corpus[d.id] for d in found)
    assert random_passages(t, collection, 3) == random_passages(t, collection, 3) != random_passages(t, collection, 4)
    everything = Collection("all", {"1": "a", "2": "b"}, {"q": "q"}, {"test": {"q": {"1": 1, "2": 1}}})
    with pytest.raises(InputError, match="query 'q': all 2 passages of collection 'all' are relevant"): random_passages(Triples.from_rows([dict(query_id="q", positive_id="1", query="q", positive="a", negative="z")]), everything)


@given(st.integers(0, 500), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_near_duplicates_surround_one_passage(seed, k):
    collection, t, vectors, asked, _ = small(seed=seed)
    centre = vectors[(vectors @ asked.mean(0)).argmax()]
    found = near_duplicates(t, collection, vectors, asked, k, seed)
    for q, d in zip(t.column("query_id"), found):
        may = sorted((i for i in collection.corpus if i not in collection.relevant(q)), key=lambda i: -(vectors[int(i[1:])] @ centre))
        assert d.id in may[:k] and d.text == collection.corpus[d.id]


def test_every_near_duplicate_is_used():
    collection, t, vectors, asked, _ = small()
    assert len({d.id for s in range(40) for d in near_duplicates(t.take([0]), collection, vectors, asked[:1], 5, s)}) == 5
    with pytest.raises(InputError, match="k is 61, expected 1 to 60"): near_duplicates(t, collection, vectors, asked, 61)


@given(st.integers(0, 500), st.integers(1, 59))
@settings(max_examples=30, deadline=None)
def test_hubs_are_hard_and_few(seed, depth):
    collection, t, vectors, asked, _ = small(seed=seed)
    found = [d.id for d in hubs(t, collection, vectors, asked, depth)]
    top = [sorted((i for i in collection.corpus if i not in collection.relevant(q)), key=lambda i: -(a @ vectors[int(i[1:])]))[:depth] for q, a in zip(t.column("query_id"), asked)]
    left, expected = set(range(len(t))), [None] * len(t)
    while left: # the greedy cover, one passage at a time
        best = max(collection.corpus, key=lambda i: (sum(i in top[r] for r in left), -int(i[1:])))
        for r in [r for r in left if best in top[r]]: expected[r] = best; left.remove(r)
    assert found == expected and all(d in own for d, own in zip(found, top))
    if depth == 1: assert found == [own[0] for own in top]


def test_hubs_refuse_what_makes_no_sense():
    collection, t, vectors, asked, _ = small()
    with pytest.raises(InputError, match="depth is 0, expected at least 1"): hubs(t, collection, vectors, asked, 0)
    with pytest.raises(InputError, match=r"vectors has shape \(59, 6\), expected \(60, 6\): a row per passage of the collection, in its order"): hubs(t, collection, vectors[1:], asked)
    with pytest.raises(InputError, match=r"asked has shape \(12, 5\), expected \(12, 6\): a row per triple"): near_duplicates(t, collection, vectors, asked[:, :5])
    broken = vectors.copy(); broken[7, 2] = np.nan
    with pytest.raises(InputError, match=r"vectors: row 7 \(counting from 0\) holds NaN or infinity"): hubs(t, collection, broken, asked)
    everything = Collection("all", {"d0": "a", "d1": "b"}, {"q0": "q"}, {"test": {"q0": {"d0": 1, "d1": 1}}})
    one = Triples.from_rows([dict(query_id="q0", positive_id="d0", query="q", positive="a", negative="z")])
    for make in (hubs, near_duplicates):
        with pytest.raises(InputError, match="query 'q0': all 2 passages of collection 'all' are relevant"): make(one, everything, vectors[:2], asked[:1], 2)


@given(st.integers(0, 500))
@settings(max_examples=25, deadline=None)
def test_the_control_is_as_hard_and_all_different(seed):
    collection, t, vectors, asked, positives = small(queries=4, passages=14, relevant=2, seed=seed)
    passages = near_duplicates(t, collection, vectors, asked, 2)
    found = matched(t, passages, collection, vectors, asked, positives)
    ids = [d.id for d in found]
    assert len(set(ids)) == len(ids) and not set(ids) & {d.id for d in passages} and all(d.text == collection.corpus[d.id] for d in found)
    assert not any(d in collection.relevant(q) for d, q in zip(ids, t.column("query_id")))
    of = {i: v for i, v in zip(collection.corpus, vectors)}
    def miss(chosen): return sum(abs(a @ of[c] - a @ of[d.id]) + 0.1 * abs(p @ of[c] - p @ of[d.id]) for a, p, c, d in zip(asked, positives, chosen, passages))
    def best(r=0, taken=()): # every way to hand them out
        if r == len(t): return miss(taken)
        return min(best(r + 1, (*taken, i)) for i in collection.corpus if i not in taken and i not in {d.id for d in passages} and i not in collection.relevant(t.column("query_id")[r]))
    if seed % 5 == 0: assert miss(ids) == pytest.approx(best())


def test_the_control_says_what_it_lacks():
    collection, t, vectors, asked, positives = small(queries=3, passages=9, relevant=2)
    some = [Passage(d, collection.corpus[d]) for d in ("d8", "d7", "d6")]
    few = Collection("few", {d: collection.corpus[d] for d in ("d0", "d1", "d2", "d6", "d7")}, collection.queries, {"test": {"q0": {"d0": 1, "d1": 1}}})
    with pytest.raises(InputError, match="3 different passages are needed beside those planted, and collection 'few' has 2 that are left, some of them relevant"): matched(t, [few_passage(few, d) for d in ("d7", "d6", "d2")], few, vectors[[0, 1, 2, 6, 7]], asked, positives)
    only = Collection("few", {d: collection.corpus[d] for d in ("d0", "d1", "d6")}, collection.queries, {"test": {"q0": {"d0": 1, "d1": 1}}})
    with pytest.raises(InputError, match="1 different passages are needed.*'few' has 2 that are left"): matched(t.take([0]), [few_passage(only, "d6")], only, vectors[[0, 1, 6]], asked[:1], positives[:1])
    with pytest.raises(InputError, match="found 1 passages for 3 rows"): matched(t, some[:1], collection, vectors, asked, positives)
    with pytest.raises(InputError, match="planted passage 'elsewhere' is not in collection 'small'"): matched(t, [*some[:2], Passage("elsewhere", "x")], collection, vectors, asked, positives)


def few_passage(collection, d): return Passage(d, collection.corpus[d])


# where it is planted

@given(seed=st.integers(0, 100), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)), negatives=st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_a_larger_share_holds_the_smaller_one(seed, shares, negatives):
    collection, t, *_ = small(negatives=negatives)
    passages = copies(t)
    changed = []
    for share in sorted(shares):
        found = plant(t, passages, share, seed)
        new = [i for i, (a, b) in enumerate(zip(rows(found), rows(t))) if a != b]
        assert len(new) == round(share * len(t)) and all(rows(found)[i][1:] == tuple(passages[i]) for i in new)
        assert found.table.drop_columns(["negative_id", "negative", "rank", "score"]) == t.table.drop_columns(["negative_id", "negative", "rank", "score"]).cast(found.table.drop_columns(["negative_id", "negative", "rank", "score"]).schema)
        assert np.isnan(found.column("rank")[new]).all() and np.isnan(found.column("score")[new]).all() and (np.delete(found.column("rank"), new) == 1).all()
        changed.append(set(new))
    assert changed[0] <= changed[1]


@pytest.mark.parametrize("make", [lambda t, c: plant(t, copies(t), 0.4, 1), lambda t, c: plant(t, random_passages(t, c, 2), 0.4, 1), lambda t, c: repeat_queries(t, 0.4, 3, 1)], ids=["plant", "random", "repeats"])
def test_the_order_of_the_rows_does_not_matter(make):
    collection, t, *_ = small(negatives=2)
    order = np.random.default_rng(0).permutation(len(t))
    whole = lambda x: sorted(zip(x.column("query_id"), x.column("negative_id"), x.texts("negative")))
    assert whole(make(t, collection)) == whole(make(t.take(order), collection))


def test_planting_is_refused_where_it_can_not_be_meant():
    _, t, *_ = small()
    for share in (-0.1, 1.1, "half", True, float("nan")):
        with pytest.raises(InputError, match=f"share is {share!r}, expected a number from 0 to 1"): plant(t, copies(t), share)
    with pytest.raises(InputError, match="found 3 passages for 12 rows, expected one for each"): plant(t, copies(t)[:3], 0.5)
    for n in (0, 12):
        with pytest.raises(InputError, match=f"queries is {n}, expected 1 to 11: the triples have 12 queries"): repeat_queries(t, 0.5, n)


@given(seed=st.integers(0, 100), share=st.floats(0, 1), few=st.integers(1, 11), negatives=st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_repeats_leave_the_loud_queries_and_fill_the_rest_with_them(seed, share, few, negatives):
    _, t, *_ = small(negatives=negatives)
    loud = set(repeat_queries(t, 1, few, seed).query_ids)
    assert len(loud) == few
    found = repeat_queries(t, share, few, seed)
    changed = [i for i, (a, b) in enumerate(zip(rows(found), rows(t))) if a != b]
    assert len(found) == len(t) and len(changed) == round(share * negatives * (12 - few)) and all(t.column("query_id")[i] not in loud and found.column("query_id")[i] in loud for i in changed)
    counts = np.unique([rows(found)[i] for i in changed], axis=0, return_counts=True)[1] if changed else np.zeros(0)
    assert len(counts) == min(len(changed), few * negatives) and (not changed or np.ptp(counts) <= 1) # in turns


# measures

def arrays(N=30, d=8, queries=12, seed=0, zero=0):
    rng = np.random.default_rng(seed)
    p = unit(rng.normal(size=(N, d)))
    q, n = (unit(p + 0.5 * rng.normal(size=p.shape)) for _ in range(2))
    n[:zero] = p[:zero]
    return (q, p, n, rng.random(N)), np.r_[np.arange(queries), rng.integers(0, queries, N - queries)]


@pytest.mark.parametrize("N, d, zero", [(30, 8, 0), (14, 40, 3), (25, 20, 0)])
def test_every_resample_is_scored_as_its_repeated_rows(N, d, zero):
    x, unit_of = arrays(N, d, zero=zero)
    calibration, mean = calibrate(x[0], x[1]), x[1].mean(0)
    counts = np.vstack([np.ones(12, int), resample_counts(12, 6)])
    found = resampled_measures(*x, unit_of, counts, calibration=calibration, prior=0.02, mean=mean, tau=0.08, penalty=2.0, k=4)
    assert list(found) == list(MEASURES) and set(BIASED) < set(MEASURES)
    for c, row in zip(counts, found.to_dict("records")):
        rows = [i for i in range(N) for _ in range(c[unit_of[i]])]
        y = [a[rows] for a in x]
        s, plain = eci_score(*y, tau=0.08), baselines(*y, ECIConfig(tau=0.08), k=4)
        expected = {"ECI_sem": s.value, "ECI_sem (gain d)": eci_score(*y, config=ECIConfig(tau=0.08, gain="d")).value, "ECI_sem (gain 1/tau^2)": eci_score(*y, config=ECIConfig(tau=0.08, gain="1/tau^2")).value,
            "ECI_net": eci_net(*y, calibration, 0.02, tau=0.08, penalty=2.0, mean=mean).value, "trace": s.trace, "effective rank": s.effective_rank, "ECI v1": plain["eci_v1"], "mean hardness": plain["hardness"], "mean margin": plain["margin"],
            "false-negative rate": plain["false_negative_rate"], "lexical overlap": plain["lexical_overlap"], **{f"without {k}": plain[f"without_{k}"] for k in ("consistency", "locality", "overlap", "projection")}}
        assert set(expected) == set(MEASURES)
        for name, value in expected.items(): assert row[name] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), name


def test_what_can_not_be_measured_is_nan_and_copies_have_no_direction():
    x, unit_of = arrays(12, 5, zero=12)
    options = dict(calibration=calibrate(x[0], x[1]), prior=0.1)
    found = resampled_measures(*x, unit_of, np.vstack([np.ones(12), np.zeros(12)]), **options)
    assert found.iloc[1].isna().all()
    assert found.loc[0, ["ECI_sem", "effective rank", "trace"]].tolist() == [0, 0, 0] and found.loc[0, "ECI_net"] == pytest.approx(0, abs=1e-12)
    assert found.loc[0, "false-negative rate"] == 0 and found.loc[0, "mean margin"] == 0 and np.isnan(found.loc[0, "ECI v1"])
    with pytest.raises(InputError, match=r"counts has shape \(2, 5\) and unit \(12,\) with numbers up to 11, expected \(B, units\) and \(12,\) with numbers below the units"): resampled_measures(*x, unit_of, np.ones((2, 5)), **options)


def test_a_row_that_is_drawn_alone_has_one_direction():
    x, unit_of = arrays(12, 30)
    counts = np.eye(12)[:3]
    found = resampled_measures(*x, unit_of, counts, calibration=calibrate(x[0], x[1]), prior=0.1)
    np.testing.assert_allclose(found["effective rank"], 1, rtol=1e-6)
    np.testing.assert_allclose(found["ECI_sem"], np.log1p(found["trace"]), rtol=1e-9)


# the notebook

@pytest.fixture(scope="module")
def cells(root): return [("".join(c["source"]), c["metadata"].get("tags", [])) for c in json.loads((root / "nbs/experiments/validity.ipynb").read_text())["cells"] if c["cell_type"] == "code"]


def test_expectations_are_fixed_before_anything_is_computed(cells):
    at = next(i for i, (source, _) in enumerate(cells) if source.startswith("CHANGES"))
    parameters = {node.target.id for node in ast.parse(cells[0][0]).body}
    assert cells[0][1] == ["parameters"] and at == 1, "right behind the parameters, before the imports"
    tree, space = ast.parse(cells[at][0]), {}
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    assert not names & parameters and not any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(tree))
    exec(cells[at][0], space)
    assert set(space["READINGS"]) == set(MEASURES) and set(space["EXPECTED"]) == {(c, m) for c in space["CHANGES"] for m in MEASURES}
    assert all(way in (1, -1) and "worse" in reason and reason.count(".") == 0 for way, reason in space["EXPECTED"].values())
    assert {m for m in MEASURES if space["EXPECTED"]["copies", m][0] == 1} == {"mean margin", "false-negative rate", "lexical overlap"}


def functions(cells, *names):
    "Functions of the notebook, with what they need, run apart from it."
    import pandas as pd
    from eci_sem.bootstrap import correct_draws, interval
    space = dict(np=np, pd=pd, MEASURES=MEASURES, BIASED=BIASED, correct_draws=correct_draws, interval=interval)
    for source, _ in cells:
        for node in ast.parse(source).body:
            name = node.name if isinstance(node, ast.FunctionDef) else node.targets[0].id if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) else None
            if name in (*names, "CHANGES", "READINGS", "REASONED", "EXPECTED", "WORDS", "MOVES"): exec(ast.unparse(node), space)
    return [space[n] for n in names]


def test_changes_are_relative_to_share_0_of_the_same_resample(cells):
    compared, = functions(cells, "between", "compared")[1:]
    rng, M = np.random.default_rng(0), len(MEASURES)
    zero = np.vstack([np.full(M, 2.0), rng.uniform(1, 3, (400, M))])
    zero[1::2, MEASURES.index("mean margin")] *= -1 # changes sign among the resamples
    zero[0, MEASURES.index("ECI v1")] = np.nan
    out = {r["measure"]: r for r in compared(0.5 * zero, zero, zero)}
    s, m = out["ECI_sem"], out["mean margin"]
    assert (s["change_by"], s["relative"]) == (-1, -0.5) and s["lo"] == s["hi"] == pytest.approx(-0.5) and s["low"] < -1 < s["high"] < 0
    assert m["relative"] == -0.5 and m["lo"] == pytest.approx(m["low"] / 2) and m["hi"] == pytest.approx(m["high"] / 2)
    assert np.isnan([out["ECI v1"][k] for k in ("change_by", "low", "high", "relative", "lo", "hi")]).all()
    r = out["effective rank"]
    draws = -0.5 * zero[1:, MEASURES.index("effective rank")]
    np.testing.assert_allclose([r["low"], r["high"]], np.quantile(-2 - draws, [0.025, 0.975])) # reflected at the estimate, -1


def test_verdicts_by_hand(cells):
    moved, verdict = functions(cells, "moved", "verdict")
    assert [moved(*i) for i in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.1), (0, 0.1), (-0.1, 0))] == [1, -1, 0, 0, 0]
    def of(measure, low, high, path=(3, 2, 1), change="copies"): return verdict(dict(encoder="e", change=change, measure=measure, share=1.0, expected=functions(cells, "EXPECTED")[0][change, measure][0], change_by=0, low=low, high=high, relative=0, lo=low, hi=high, queries=5), np.array(path, float))
    assert of("ECI_sem", -2, -1)["verdict"] == "right way" and of("mean margin", -2, -1)["verdict"] == "wrong way" and of("trace", -1, 1)["verdict"] == "not seen" and of("ECI v1", np.nan, np.nan)["verdict"] == "not defined"
    assert of("ECI_sem", -2, -1)["steady"] and not of("ECI_sem", -2, -1, (3, 4, 1))["steady"] and of("ECI_sem", -2, -1, (3, np.nan, 1))["steady"]
    assert of("mean margin", -2, -1)["expected"] == "up" and of("mean margin", -2, -1)["measured"] == "down"
    # random is worse by the reasoning alone: no measure is right or wrong there
    found = [of(m, *span, change="random") for m in ("ECI_sem", "mean margin") for span in ((-2, -1), (1, 2), (-1, 1), (np.nan, np.nan))]
    assert [f["verdict"] for f in found] == 2 * ["falls", "rises", "no change seen", "not defined"] and found[0]["expected"] == "down" and "would be worse" in found[0]["reason"]


def test_what_training_refuted_is_not_counted(cells, root):
    space = {}
    exec(next(source for source, _ in cells if source.startswith("CHANGES")), space)
    counting = next(source for source, _ in cells if source.startswith("judged_changes"))
    import pandas as pd
    verdicts = pd.DataFrame([dict(encoder="e", measure=m, change=c, verdict="falls" if c == "random" else "right way") for m in MEASURES for c in space["CHANGES"]])
    space |= dict(pd=pd, verdicts=verdicts, encoders=["e"], MEASURES=MEASURES)
    exec(counting, space)
    assert space["counted"].columns.tolist() == ["right way", "wrong way", "not seen", "not defined"] and (space["counted"]["right way"] == 5).all()
    # what the text says of training stands in the committed results
    from eci_sem.transfer import transfer_draws
    for target in ("glove", "minilm"):
        table = pd.read_parquet(root / f"figures/transfer/{target}-docstrings/scores.parquet")
        means, draws = transfer_draws(table[table["source"].isin(["random", "bm25@1"])])
        low, high = 100 * (draws["random"] - draws["bm25@1"]).quantile([0.025, 0.975])
        assert f"{target} +{100 * (means['random'] - means['bm25@1']):.2f} [{low:.2f}, {high:.2f}]" in space["TRAINED"]
