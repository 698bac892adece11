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
    assert tied["score"] == "ECI_sem" and not tied["usable"] and tied["text"].startswith("**No score is recommended") and "Highest of all forms: minus margin 0.60 [0.40, 0.80]" in tied["text"] and tied["cells"] == ["glove on scifact"]
    none = fm.recommend(pooled_table(0.1).assign(role="development"), frozen, CELLS)
    assert none["usable"] is None and none["score"] == "ECI_sem" and "no confirmation collection" in none["text"]
    assert "the rule was frozen for ndcg@10, and this is mrr@10" in fm.recommend(pooled_table(0.1), frozen, CELLS, metric="mrr@10")["text"]
    assert "ECI_sem and ECI_net are not both among the scores" in fm.recommend(pooled_table(0.1).query("form != 'ECI_net'"), frozen, CELLS)["text"]
    said = fm.recommend(pooled_table(0.1), frozen, CELLS, departed={"glove on scifact": ["at most 60 training queries"], "glove on docstrings": ["x"]})
    assert said["text"].endswith("Targets: glove only. Departures from what was frozen: glove on scifact: at most 60 training queries.") and said["departures"] == ["glove on scifact: at most 60 training queries"]

def test_departures_from_the_frozen_file_are_named():
    frozen = fm.load_frozen()
    recipe = dict(frozen.content["recipes"]["glove"])
    asis = dict(encoder="glove", methods=["bm25", "dense", "minilm", "llm", "random"], depths=[1, 5, 20, 50], recipe=recipe, train_queries=0)
    assert fm.departures(frozen, asis, "docstrings") == [] and fm.departures(frozen, asis | dict(methods=["bm25", "dense", "minilm", "random"]), "scifact") == []
    found = fm.departures(frozen, asis | dict(methods=["bm25", "dense", "random"], depths=[1, 20, 100], recipe=recipe | dict(epochs=1), train_queries=3000), "medquad")
    assert found == ["without the method minilm", "without the depths 5, 50", "with depth 100 besides", "epochs 1 instead of 3", "at most 3,000 training queries"]
    assert "no recipe was frozen for this target" in fm.departures(frozen, asis | dict(encoder="smollm2"), "docstrings")

def test_the_recommendation_that_ships_is_that_of_the_committed_run(root):
    from eci_sem.rank import recommendation
    path = root / "figures/agreement/recommendation.json"
    assert recommendation() == json.loads(path.read_text(encoding="utf-8")), "copy figures/agreement/recommendation.json to eci_sem/data/ and run make docs"
    assert recommendation()["frozen"] == fm.load_frozen().sha256
