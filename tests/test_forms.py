"""Every training-free score on one footing: against the functions of score and rank, agreement by hand, the frozen file."""
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings, strategies as st

from eci_sem import forms as fm
from eci_sem.collection import InputError, load_docstrings
from eci_sem.encoders import load_encoder
from eci_sem.rank import rank_sources
from eci_sem.transfer import mine_depths


@pytest.fixture(scope="module")
def scored():
    c, glove = load_docstrings(), load_encoder("glove")
    triples = mine_depths(c, c.pairs("score", limit=40), {"bm25": None, "dense": glove, "random": None}, [1, 20])
    options = dict(collection=c, hybrids=["bm25@1+dense@1"], resamples=300, seed=2)
    return fm.score_forms(triples, glove, progress=False, **options), rank_sources(triples, glove, progress=False, **options), triples, glove, c

def test_the_two_scores_are_those_of_rank_sources(scored):
    found, ranking, *_ = scored
    for form, x in (("ECI_sem", ""), ("ECI_net", "net_")):
        assert np.allclose(found.values(form)[ranking.table.index], ranking.table[x + "value"], rtol=1e-10)
        hybrid = found.table[(found.table["form"] == form) & (found.table["kind"] == "hybrid")].iloc[0]
        assert hybrid["mean_of_parts"] == pytest.approx(ranking.table.loc["bm25@1+dense@1", x + "mean_of_parts"], rel=1e-10)
    d = ranking.draws["eci_sem"]
    assert np.allclose(found.draws["ECI_sem"][d.columns], d, rtol=1e-6, atol=1e-12)
    assert np.allclose(found.draws["ECI_net"][d.columns], ranking.draws["eci_net"], rtol=1e-6, atol=1e-10)

@pytest.mark.parametrize("form, config", [("ECI_sem: product fisher", dict(product="fisher")), ("ECI_sem: space centred", dict(space="centred")), ("ECI_sem: residual unit", dict(residual="unit")), ("ECI_sem: overlap jaccard", dict(overlap="jaccard")), ("ECI_sem: gain d", dict(gain="d")), ("ECI_sem: consistency calibrated", dict(consistency="calibrated"))])
def test_an_alternative_form_is_rank_sources_with_that_config(scored, form, config):
    from eci_sem.score import ECIConfig
    found, _, triples, glove, c = scored
    other = rank_sources(triples, glove, collection=c, hybrids=None, config=ECIConfig(**config), metrics=["eci_sem"], resamples=100, seed=2, progress=False)
    assert np.allclose(found.values(form)[other.table.index], other.table["value"], rtol=1e-9)

def test_means_and_trace_are_those_of_the_ranking(scored):
    found, ranking, *_ = scored
    t = ranking.table
    for form, expected in (("trace (no diversity)", t["trace"]), ("mean hardness", t["hardness"]), ("minus margin", -t["margin"]), ("minus false-negative rate", -t["false_negative_rate"]), ("lexical overlap", t["lexical_overlap"]), ("ECI (v1)", t["eci_v1"])):
        assert np.allclose(found.values(form)[t.index], expected, rtol=1e-9, equal_nan=True), form
    assert set(found.draws) == set(fm.FORMS)

def test_draws_of_a_mean_are_plain_resampling(scored):
    from eci_sem.bootstrap import resample_counts
    found, ranking, *_ = scored
    f = ranking.factors
    part = f[f["source"] == "bm25@1"].sort_values("query_id")
    counts = resample_counts(40, 300, 2)
    assert np.allclose(found.draws["mean hardness"]["bm25@1"], counts @ part["hardness"].to_numpy() / 40)

def test_an_unknown_form_is_refused(scored):
    found, _, triples, glove, c = scored
    with pytest.raises(InputError, match="unknown form 'ECI_nett'.*ECI_net"): fm.score_forms(triples, glove, forms=["ECI_nett"])
    with pytest.raises(InputError, match="unknown form 'x'"): found.values("x")

# --- agreement

def frames(values, noise=0.0, n=50, seed=0):
    s = pd.Series(values)
    rng = np.random.default_rng(seed)
    return s, pd.DataFrame(s.to_numpy() + noise * rng.standard_normal((n, len(s))), columns=s.index)

def test_agreement_by_hand():
    value, down = frames(dict(a=3.0, b=2.0, c=1.0, h=9.0)), frames(dict(a=0.5, b=0.7, c=0.4, h=0.1))
    got = fm.agree(*value, *down, ["a", "b", "c"])
    # of three pairs, (a, b) is the wrong way round
    assert got["tau"] == pytest.approx(1 / 3) and got["spearman"] == pytest.approx(0.5) and got["top1"] == 0.0
    assert got["chosen"] == "a" and got["best"] == "b" and got["regret"] == pytest.approx(0.2) and got["regret_lo"] == pytest.approx(0.2) and got["sources"] == 3

@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.integers(0, 99))
def test_regret_is_never_negative_and_zero_where_the_first_choice_is_right(order, seed):
    names = list("abcdef")
    value, down = frames(dict(zip(names, map(float, order))), 0.5, seed=seed), frames(dict(zip(names, np.random.default_rng(seed).random(6))), 0.1, seed=seed + 1)
    got = fm.agree(*value, *down, names)
    assert got["regret"] >= 0 and got["regret_lo"] >= 0 and (got["regret"] == 0) == bool(got["top1"])
    assert got["tau"] == pytest.approx(-fm.agree(-value[0], -value[1], *down, names)["tau"])

def test_a_score_without_a_value_for_a_source_gets_no_number():
    value, down = frames(dict(a=3.0, b=np.nan, c=1.0)), frames(dict(a=0.5, b=0.9, c=0.4))
    got = fm.agree(*value, *down, ["a", "b", "c"])
    assert got["sources"] == 2 and all(np.isnan(got[k]) for k in ("tau", "lo", "spearman", "top1", "regret")) and got["chosen"] == ""
    with pytest.raises(InputError, match="source 'b' was scored but not trained on"): fm.agree(*frames(dict(a=1.0, b=2.0)), *frames(dict(a=1.0)), ["a", "b"])
    # a run that no score speaks of can still be the best one
    got = fm.agree(*frames(dict(a=3.0, c=1.0)), *down, ["a", "b", "c"])
    assert got["tau"] == 1.0 and got["best"] == "b" and got["top1"] == 0.0 and got["regret"] == pytest.approx(0.4)

def test_tied_first_choices_are_taken_at_random():
    value, down = frames(dict(a=1.0, b=1.0, c=0.0)), frames(dict(a=0.1, b=0.5, c=0.2))
    got = fm.agree(*value, *down, ["a", "b", "c"])
    assert got["top1"] == got["top1_share"] == 0.5 and got["regret"] == got["regret_hi"] == pytest.approx(0.2) and got["chosen"] == "a = b" and got["best"] == "b"

@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.integers(0, 99))
def test_agreement_is_what_a_plain_loop_gives(values, seed):
    names = list("abcdef")[:len(values)]
    value, down = frames(dict(zip(names, map(float, values)))), frames(dict(zip(names, np.random.default_rng(seed).integers(0, 3, len(values)) / 10)))
    firsts = [n for n in names if value[0][n] == max(value[0])]
    got = fm.agree(*value, *down, names)
    assert got["regret"] == pytest.approx(max(down[0]) - sum(down[0][n] for n in firsts) / len(firsts), abs=1e-12)
    assert got["top1"] == pytest.approx(sum(down[0][n] == max(down[0]) for n in firsts) / len(firsts))

def test_pooled_is_the_mean_over_cells_with_a_paired_difference():
    names = list("abc")
    right, wrong, down = frames(dict(a=3.0, b=2.0, c=1.0)), frames(dict(a=1.0, b=2.0, c=3.0)), frames(dict(a=0.3, b=0.2, c=0.1))
    cell = lambda v: (*v, *down, names)
    got = fm.pooled([cell(right), cell(wrong)], [cell(wrong), cell(wrong)])
    assert got["tau"] == 0.0 and got["difference"] == 1.0 and got["difference_lo"] == got["difference_hi"] == 1.0 and got["top1"] == 0.5 and got["regret"] == pytest.approx(0.1) and got["defined"] == 2
    # where a score is not defined it has no mean: over the other cells alone it would be compared with more than itself
    gap = frames(dict(a=np.nan, b=2.0, c=1.0))
    got = fm.pooled([cell(right), cell(gap)], [cell(right), cell(wrong)])
    assert np.isnan(got["tau"]) and np.isnan(got["difference"]) and got["defined"] == 1

def test_pooled_gives_every_statistic_an_interval_from_the_same_draws():
    names, rng = list("abcd"), np.random.default_rng(3)
    def cell(value, down, n):
        s = pd.Series(value, index=names)
        d = pd.Series(down, index=names)
        return s, pd.DataFrame(s.to_numpy() + rng.standard_normal((n, 4)), columns=names), d, pd.DataFrame(d.to_numpy() + 0.1 * rng.standard_normal((n, 4)), columns=names), names
    cells = [cell([3, 2, 1, 0], [0.3, 0.4, 0.2, 0.1], 60), cell([0, 1, 2, 3], [0.3, 0.4, 0.2, 0.1], 50)]
    got, one = fm.pooled(cells, cells), [fm.agree(*c) for c in cells]
    for k in ("tau", "spearman", "top1", "regret"): assert got[k] == pytest.approx(np.mean([o[k] for o in one])), k
    # by hand: row b of one cell goes with row b of the other
    from scipy.stats import spearmanr
    rho, lost, top = [], [], []
    for b in range(50):
        of = [(a.iloc[b], d.iloc[b]) for _, a, _, d, _ in cells]
        rho.append(np.mean([spearmanr(a, d).statistic for a, d in of])); lost.append(np.mean([d.max() - d[a.idxmax()] for a, d in of])); top.append(np.mean([d.idxmax() == a.idxmax() for a, d in of]))
    for k, x in (("spearman", rho), ("regret", lost), ("top1", top)): assert [got[f"{k}_lo"], got[f"{k}_hi"]] == pytest.approx(np.quantile(x, [0.025, 0.975]).tolist()), k
    assert got["top1_share"] == pytest.approx(np.mean(top)) and got["regret_median"] == pytest.approx(np.median(lost))
    assert got["difference"] == got["difference_lo"] == got["difference_hi"] == 0.0
    assert list(got)[:6] == ["tau", "lo", "hi", "top1", "regret", "defined"]

def test_the_regret_of_a_draw_is_biased_upwards():
    # no source is better than another: every choice is right, and no draw says so
    value, down = frames(dict.fromkeys("abcd", 1.0), 1.0, n=400, seed=1), frames(dict.fromkeys("abcd", 0.5), 0.1, n=400, seed=2)
    got = fm.pooled([(*value, *down, list("abcd"))])
    assert got["regret"] == 0.0 and got["regret_median"] > 0.05 and got["top1"] == 1.0 and got["top1_share"] < 0.4

def test_reachable_taus_are_all_that_permutations_give():
    from itertools import permutations
    from scipy.stats import kendalltau
    for n in (2, 3, 4): assert np.allclose(sorted({round(kendalltau(range(n), p).statistic, 9) for p in permutations(range(n))}), sorted(fm.reachable_taus(n)))
    with pytest.raises(InputError, match="n is 1, expected at least 2 sources"): fm.reachable_taus(1)

# --- frozen

def test_the_frozen_file_is_whole_and_its_forms_are_in_use():
    frozen = fm.load_frozen()
    assert frozen.differences == [] and {"forms", "sources", "rule", "primary", "recipes", "collections"} <= set(frozen.content)

def test_a_changed_frozen_file_is_refused_and_a_changed_form_named(tmp_path, monkeypatch):
    path = tmp_path / "frozen.yaml"
    fm.freeze(path, "2026-01-01", rule="r")
    assert fm.load_frozen(path).differences == []
    with pytest.raises(InputError, match="frozen.yaml is there already"): fm.freeze(path, "2026-01-02", rule="r")
    monkeypatch.setitem(fm.FORMS, "ECI_net", fm.replace(fm.FORMS["ECI_net"], penalty=2.0))
    assert fm.load_frozen(path).differences == ["ECI_net: penalty was 3.0 and is 2.0"]
    data = yaml.safe_load(path.read_text())
    data["content"]["rule"] = "another"
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="it was changed after it was frozen"): fm.load_frozen(path)

def pooled_table(net_lo, sem=(0.1, -0.1, 0.3), net=(0.5, 0.3, 0.7)):
    row = lambda form, t, d: dict(role="confirmation", targets="all targets", form=form, cells=2, tau=t[0], lo=t[1], hi=t[2], top1=0.5, regret=0.01, difference=d[0], difference_lo=d[1], difference_hi=d[2])
    return pd.DataFrame([row("ECI_sem", sem, (0, 0, 0)), row("ECI_net", net, (0.4, net_lo, 0.8)), row("minus margin", (0.6, 0.4, 0.8), (0.5, 0.1, 0.9))])

CELLS = pd.DataFrame([dict(name="glove on scifact", role="confirmation", main=True), dict(name="glove on docstrings", role="development", main=True)])

def test_the_rule_of_recommendation():
    frozen = fm.load_frozen()
    assert fm.recommend(pooled_table(0.1), frozen, CELLS)["score"] == "ECI_net" and fm.recommend(pooled_table(0.1), frozen, CELLS)["usable"]
    tied = fm.recommend(pooled_table(-0.1), frozen, CELLS)
    assert tied["score"] == "ECI_sem" and not tied["usable"] and tied["text"].startswith("**No score is recommended") and "Highest of all 3 forms, chosen afterwards: minus margin 0.60 [0.40, 0.80]." in tied["text"] and tied["cells"] == ["glove on scifact"]
    none = fm.recommend(pooled_table(0.1).assign(role="development"), frozen, CELLS)
    assert none["usable"] is None and none["score"] == "ECI_sem" and "no confirmation collection" in none["text"]
    assert "the rule was frozen for ndcg@10, and this is mrr@10" in fm.recommend(pooled_table(0.1), frozen, CELLS, metric="mrr@10")["text"]
    assert "ECI_sem and ECI_net are not both among the scores" in fm.recommend(pooled_table(0.1).query("form != 'ECI_net'"), frozen, CELLS)["text"]
    said = fm.recommend(pooled_table(0.1), frozen, CELLS, departed={"glove on scifact": ["at most 60 training queries"], "glove on docstrings": ["x"]})
    assert said["text"].endswith("Not as frozen (see `departures`): glove on scifact.") and said["departures"] == ["glove on scifact: at most 60 training queries"]

def test_p_of_the_recommendation_is_told():
    said = fm.recommend(pooled_table(0.1).assign(p=[0.41, 0.32, 0.012], p_family=[0.9, 0.5, 0.034]), fm.load_frozen(), CELLS)
    assert "ECI_sem 0.10 [-0.10, 0.30], p = 0.41 against these sources in a random order; ECI_net 0.50" in said["text"] and "p = 0.32" in said["text"] and "[0.40, 0.80], p = 0.034 against the highest of them in a random order." in said["text"]
    assert said["evidence"]["ECI_sem"]["p"] == 0.41 and said["evidence"]["minus margin"]["p_family"] == 0.034

@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=5, max_size=5), min_size=1, max_size=3), st.permutations(range(5)))
def test_p_by_chance_is_that_of_all_orders(values, down):
    from itertools import permutations
    from scipy.stats import kendalltau
    names = list("abcde")
    scores, after = {f"score {k}": pd.Series(v, index=names, dtype=float) for k, v in enumerate(values)}, pd.Series(down, index=names, dtype=float)
    got = fm.by_chance([(scores, after, names)], permutations=4999, seed=3)
    orders = [after.to_numpy()[list(p)] for p in permutations(range(5))]
    every = np.array([[kendalltau(v, o).statistic if v.nunique() > 1 else np.nan for v in scores.values()] for o in orders])
    for k, s in enumerate(scores):
        tau = kendalltau(scores[s], after).statistic if scores[s].nunique() > 1 else np.nan
        if np.isnan(tau): assert got.loc[s].isna().all(); continue
        assert got.loc[s, "tau"] == pytest.approx(tau, abs=1e-12)
        assert got.loc[s, "p"] == pytest.approx(np.mean(np.abs(every[:, k]) >= abs(tau) - 1e-9), abs=0.04) # 5.6 standard errors of 4,999 orders
        assert got.loc[s, "p_family"] == pytest.approx(np.mean(np.nanmax(every, axis=1) >= tau - 1e-9), abs=0.04)

def test_chance_over_cells():
    right, after = pd.Series(dict(a=1.0, b=2.0, c=3.0, d=4.0)), pd.Series(dict(a=0.1, b=0.2, c=0.3, d=0.4))
    gap = right.where(right > 1)
    cell = lambda s: ({"s": s, "t": right}, after, list("abcd"))
    one, two = fm.by_chance([cell(right)]), fm.by_chance([cell(right), cell(right)])
    assert one.loc["s", "p"] == pytest.approx(2 / 24, abs=0.015) and two.loc["s", "p"] == pytest.approx(2 / 576, abs=0.004) # each cell in an order of its own
    undefined = fm.by_chance([cell(right), cell(gap)])
    assert undefined.loc["s"].isna().all() and undefined.loc["t", "tau"] == 1
    assert fm.by_chance([cell(right)]).equals(one) and not fm.by_chance([cell(right)], seed=1).equals(one)
    # a score that does not speak of a source is compared on the others, as agree does
    some = fm.by_chance([({"s": right[["a", "b", "c"]]}, after, list("abcd"))])
    assert some.loc["s", "tau"] == 1 and some.loc["s", "p"] == pytest.approx(2 / 6, abs=0.03)

def opposite():
    "Pooled results of two targets for which ECI_sem points in opposite directions."
    row = lambda targets, form, t: dict(role="confirmation", targets=targets, form=form, cells=2, tau=t[0], lo=t[1], hi=t[2], top1=0.5, regret=0.01, difference=0.0, difference_lo=-0.1, difference_hi=0.1)
    return pd.concat([pooled_table(-0.1)] + [pd.DataFrame([row("glove", f, (0.66, 0.02, 0.91)), row("minilm", f, low)]) for f, low in (("ECI_sem", (-1.0, -1.0, -0.33)), ("ECI_net", (-0.2, -0.5, 0.1)), ("minus margin", (0.5, 0.4, 0.6)))], ignore_index=True)

def test_the_recommendation_shows_every_target_by_itself():
    found = fm.recommend(opposite(), fm.load_frozen(), CELLS)
    assert "ECI_sem 0.10 [-0.10, 0.30] (glove 0.66 [0.02, 0.91], minilm -1.00 [-1.00, -0.33]; the targets differ)" in found["text"]
    assert "ECI_net 0.50 [0.30, 0.70] (glove 0.66 [0.02, 0.91], minilm -0.20 [-0.50, 0.10]);" in found["text"] # one interval holds 0
    assert "Highest of all 3 forms, chosen afterwards: minus margin 0.60 [0.40, 0.80] (glove 0.66 [0.02, 0.91], minilm 0.50 [0.40, 0.60])." in found["text"] and len(found["text"]) < 600
    assert found["evidence"]["ECI_sem"]["targets"] == dict(glove=dict(tau=0.66, lo=0.02, hi=0.91), minilm=dict(tau=-1.0, lo=-1.0, hi=-0.33))
    json.dumps(found, allow_nan=False)
    new = fm.recommend(opposite().assign(regret_lo=0.001, regret_hi=0.02), fm.load_frozen(), CELLS)["evidence"]["ECI_net"]
    assert new["regret_lo"] == 0.001 and "spearman" not in new # what an older table lacks is left out

def test_departures_from_the_frozen_file_are_named():
    frozen = fm.load_frozen()
    recipe = dict(frozen.content["recipes"]["glove"])
    asis = dict(encoder="glove", methods=["bm25", "dense", "minilm", "llm", "random"], depths=[1, 5, 20, 50], recipe=recipe, train_queries=0)
    assert fm.departures(frozen, asis, "docstrings") == [] and fm.departures(frozen, asis | dict(methods=["bm25", "dense", "minilm", "random"]), "scifact") == []
    found = fm.departures(frozen, asis | dict(methods=["bm25", "dense", "random"], depths=[1, 20, 100], recipe=recipe | dict(epochs=1), train_queries=3000), "medquad")
    assert found == ["without the method minilm", "without the depths 5, 50", "with depth 100 besides", "epochs 1 instead of 3", "at most 3,000 training queries"]
    assert "no recipe was frozen for this target" in fm.departures(frozen, asis | dict(encoder="smollm2"), "docstrings")

def test_what_was_tested_on_and_how_long_is_compared_too(root):
    frozen = fm.load_frozen()
    of = lambda name: json.loads((root / f"figures/transfer/{name}/transfer.run.json").read_text(encoding="utf-8"))["meta"]["parameters"]
    p = of("minilm-scifact")
    assert fm.departures(frozen, p, "scifact") == ["without the method glove", "without the depths 5, 50", "tested on 3 of 6 collections (not nfcorpus-processed, xquad-en, msmarco-dl19-5k)", "texts cut at 128 tokens in evaluation"]
    assert fm.departures(frozen, of("glove-scifact"), "scifact") == [] and fm.departures(frozen, of("glove-docstrings"), "docstrings") == []
    # names in place of folders, and a collection besides
    assert "tested on medquad besides" in fm.departures(frozen, p | dict(datasets=[*frozen.content["collections"]["tested_on"], "medquad"]), "scifact")
    assert fm.departures(frozen, of("glove-scifact") | dict(test_queries=60, test_split="dev"), "scifact") == ["tested on the split dev", "at most 60 test queries a collection"]
    assert fm.departures(frozen, of("glove-scifact"), "nfcorpus") == ["nfcorpus is not among the frozen collections"]
    assert "precision bfloat16 instead of float32" in fm.departures(frozen, of("minilm-docstrings"), "docstrings")

def test_a_frozen_list_may_be_words():
    frozen = fm.load_frozen()
    words = fm.replace(frozen, content=frozen.content | dict(collections=dict(development="docstrings", confirmation="medquad, scifact", tested_on=["scifact", "cacm where it is given"])))
    p = dict(encoder="glove", methods=["bm25", "dense", "minilm", "random"], depths=[1, 5, 20, 50], recipe=frozen.content["recipes"]["glove"], datasets=["../shared/data/scifact", "../shared/data/cacm"])
    assert fm.departures(words, p, "scifact") == []
    assert fm.departures(words, p | dict(datasets=["x/scifact"]), "scifact") == ["tested on 1 of 2 collections (not cacm)"]

def test_fewer_scored_queries_than_frozen_are_named():
    frozen = fm.load_frozen()
    p = dict(encoder="glove", methods=["bm25", "dense", "minilm", "random"], depths=[1, 5, 20, 50], recipe=frozen.content["recipes"]["glove"])
    assert fm.most_scored(frozen) == 1000 and fm.most_scored(fm.replace(frozen, content={})) is None
    assert fm.departures(frozen, p, "scifact", limit=1000) == [] and fm.departures(frozen, p, "scifact", limit=300) == ["at most 300 queries scored instead of at most 1,000"]
    assert fm.departures(frozen, p, "scifact", limit=0) == ["all queries scored instead of at most 1,000"]

# --- the first look

@pytest.mark.parametrize("first, here, lo, hi, verdict", [
    (0.72, -0.01, -0.30, 0.16, "refuted: more than 0.5 apart"), # the sign alone would not say so
    (-0.03, 0.38, 0.21, 0.58, "differs"), # another sign, but of what is hardly anything
    (0.52, 0.47, -0.07, 0.60, "reproduced"), (-0.29, 0.07, -0.33, 0.20, "reproduced"), (0.71, 0.47, 0.07, 0.47, "differs"),
    (0.25, -0.21, -0.24, -0.1, "refuted: the sign differs"), (0.25, -0.2, -0.24, -0.1, "differs"), (0.333, 1 / 3, 0.335, 0.4, "reproduced"), (0.5, np.nan, np.nan, np.nan, "not defined")])
def test_reproduced_refuted_or_neither(first, here, lo, hi, verdict): assert fm.first_look_verdict(first, here, lo, hi) == verdict

def test_the_first_looks_training_is_compared_by_level_gain_and_order():
    down, draws = frames({"none": 0.20, "random": 0.23, "dense@1": 0.22, "bm25@1": 0.19, "llm": 0.1}, 0.001, n=200)
    t = fm.first_look_downstream({"zero-shot": None, "none": 0.15, "random": 0.151, "dense@1": 0.17, "bm25@1": 0.14, "glove@1": 0.16}, down, draws).set_index("source")
    assert list(t.index) == ["none", "random", "dense@1", "bm25@1", "glove@1"] and set(t["inside"]) == {"no", "not trained here"}
    assert t.loc["glove@1", "inside"] == "not trained here" and np.isnan(t.loc["glove@1", "here"]) and t.loc["glove@1", "first_gain"] == pytest.approx(0.01)
    # other test queries: no level is inside, and two of the three gains are
    assert t["gain_inside"].to_dict() == {"none": "", "random": "no", "dense@1": "yes", "bm25@1": "yes", "glove@1": ""}
    # dense, random, none, bm25 then; random, dense, none, bm25 here: one of six pairs
    assert set(t["order_tau"].round(6)) == {round(4 / 6, 6)} and set(t["order_sources"]) == {4} and (t["order_lo"] <= t["order_tau"]).all()
    inside = fm.first_look_downstream({"none": 0.2, "random": 0.2304}, *frames({"none": 0.2, "random": 0.23})).set_index("source")
    assert set(inside["inside"]) == {"yes"} # half of the last digit
    assert fm.first_look_downstream({"x": 0.1}, down, draws)["order_tau"].isna().all()

def test_a_headline_is_a_difference_of_groups():
    down, draws = frames({"none": 0.20, "random": 0.23, "dense@1": 0.22, "bm25@1": 0.18}, 0.001, n=200)
    assert fm.headline(down, draws, ["none"], ["bm25@1"])["verdict"] == "reproduced" and fm.headline(down, draws, ["dense@1"], ["random"])["verdict"] == "refuted"
    got = fm.headline(down, draws, ["none"], ["bm25@1", "dense@1"])
    assert got["verdict"] == "not reproduced" and got["difference"] == pytest.approx(0) and got["lo"] < 0 < got["hi"]
    assert fm.headline(down, draws, ["dense@1"], [])["verdict"] == "not trained here"
    # a tie while the correlation is refuted is no headline any more; what is ahead stays ahead
    refuted = "refuted: more than 0.5 apart"
    assert fm.headline(down, draws, ["none"], ["bm25@1", "dense@1"], refuted)["verdict"] == "refuted" and fm.headline(down, draws, ["none"], ["bm25@1"], refuted)["verdict"] == "reproduced"

# --- what the notebooks say of two opposite targets

def cell_of(root, notebook, marker):
    cells = json.loads((root / f"nbs/experiments/{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    return next("".join(c["source"]) for c in cells if c["cell_type"] == "code" and marker in "".join(c["source"]))

def two_targets():
    "Two targets with the order a, b, c, d after training; the one is foreseen, of the other the reverse."
    down = frames(dict(a=4.0, b=3.0, c=2.0, d=1.0), 0.01)
    return list("abcd"), down, {"glove": frames(dict(a=4.0, b=3.0, c=2.0, d=1.0), 0.01, seed=1), "minilm": frames(dict(a=1.0, b=2.0, c=3.0, d=4.0), 0.01, seed=2)}

def test_agreement_shows_two_opposite_targets_apart(root):
    names, down, of = two_targets()
    cell = lambda t: (*of[t], *down, names)
    together, shown = pd.DataFrame([dict(role="confirmation", targets=g, form=f, cells=len(ts), **fm.pooled([cell(t) for t in ts], [cell(t) for t in ts]), p=0.5, p_family=0.7) for f in ("ECI_sem", "minus margin") for g, ts in (("all targets", ["glove", "minilm"]), ("glove", ["glove"]), ("minilm", ["minilm"]))]), []
    source = cell_of(root, "agreement", "by_target = ")
    exec(source[source.index("span = "):], dict(together=together, pd=pd, display=shown.append, opposed=fm.opposed))
    taus = shown[0].loc[("confirmation", "ECI_sem")]
    assert taus.to_dict() == {"all targets": "0.00 [0.00, 0.00]", "glove": "1.00 [1.00, 1.00]", "minilm": "-1.00 [-1.00, -1.00]", "targets": "differ"}
    assert len(shown) == 5 and shown[1].loc[("confirmation", "ECI_sem"), "p, glove"] == "0.500 (0.700 as the highest)" and shown[4].loc[("confirmation", "ECI_sem"), "regret, minilm"].startswith("300.00 [") and list(shown[2].columns) == ["Spearman, all targets", "Spearman, glove", "Spearman, minilm"]

def test_cross_family_says_that_two_targets_differ(root):
    from types import SimpleNamespace as S
    names, down, of = two_targets()
    # the own family is right for the one and wrong for the other; the foreign scorer the other way round
    score = lambda x: S(values=lambda f: x[0], draws={"ECI_sem": x[1]})
    scored = {(("scifact", t), e): score(of["glove" if (t == "glove") == (e == t) else "minilm"]) for t in of for e in of}
    at = dict(scored=scored, singles={("scifact", t): names for t in of}, down={("scifact", t): down for t in of}, scorers=list(of), forms=["ECI_sem"], development=["docstrings"], pooled=fm.pooled, opposed=fm.opposed, pd=pd)
    exec(cell_of(root, "cross_family", "differs between targets"), at)
    claim = at["claim"].set_index("targets")["verdict"]
    assert claim.to_dict() == {"all targets": "differs between targets", "glove": "holds", "minilm": "reversed"}

def test_the_notebooks_name_departures_and_few_queries(root):
    for notebook in ("agreement", "cross_family"):
        text = cell_of(root, notebook, "departures(frozen, p |")
        assert "limit=score_queries" in text and 'datasets=sorted(table["dataset"].unique())' in text and "departures_text(frozen, departed, " in text

def test_departures_and_few_queries_in_words():
    frozen = fm.load_frozen()
    assert fm.departures_text(frozen, {"a": []}, {"a": 1000}) == "Departures from what was frozen: none."
    text = fm.departures_text(frozen, {"a": ["without the depths 5, 50", "tested on x besides"], "b": []}, {"a": 999, "b": 1000, "c": 17})
    assert text.startswith("Departures from what was frozen: \n- a: without the depths 5, 50, tested on x besides\n\nScored queries (frozen: at most 1,000") and text.endswith("where fewer: a 999, c 17.") and "- b" not in text

def test_the_recommendation_that_ships_is_that_of_the_committed_run(root):
    from eci_sem.rank import recommendation
    path = root / "figures/agreement/recommendation.json"
    assert recommendation() == json.loads(path.read_text(encoding="utf-8")), "copy figures/agreement/recommendation.json to eci_sem/data/ and run make docs"
    assert recommendation()["frozen"] == fm.load_frozen().sha256
