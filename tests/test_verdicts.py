"""The verdict table says what the committed tables say, and nothing else."""
import json

import pandas as pd
import pytest

from eci_sem.collection import InputError
from eci_sem.forms import opposed
from eci_sem.verdicts import CLAIMS, verdict_markdown, verdict_table


def pooled(lo, hi, top1=1.0): return pd.DataFrame([dict(role="confirmation", targets="all targets", form=f, cells=2, tau=t, lo=lo, hi=hi, top1=top1, regret=0.012) for f, t in (("ECI_sem", 0.25), ("minus margin", 0.6))])

def test_a_claim_that_was_not_run_says_so(tmp_path):
    t = verdict_table(tmp_path)
    assert len(t) == len(CLAIMS) and set(t["verdict"]) == {"not run"}

@pytest.mark.parametrize("lo, hi, verdict", [(0.1, 0.4, "holds"), (-0.1, 0.4, "not told apart from 0"), (-0.5, -0.1, "reversed")])
def test_the_interval_decides(tmp_path, lo, hi, verdict):
    (tmp_path / "agreement").mkdir()
    pooled(lo, hi).to_csv(tmp_path / "agreement/pooled.csv", index=False)
    row = verdict_table(tmp_path).query("notebook == 'agreement'").iloc[0]
    assert row["verdict"] == verdict and f"0.25 [{lo:.2f}, {hi:.2f}]" in row["result"] and "1.2 points" in row["result"] and "highest of all 2 forms, chosen afterwards: minus margin 0.60" in row["result"]

def test_chance_stands_beside_a_correlation(tmp_path):
    (tmp_path / "agreement").mkdir()
    pooled(0.1, 0.4).assign(p=[0.21, 0.03], p_family=[0.5, 0.072]).to_csv(tmp_path / "agreement/pooled.csv", index=False)
    said = verdict_table(tmp_path).query("notebook == 'agreement'").iloc[0]["result"]
    assert "0.25 [0.10, 0.40], p = 0.21 against these sources in a random order; " in said and said.endswith("minus margin 0.60 [0.10, 0.40], p = 0.072 against the highest of them in a random order")

def test_the_right_order_with_a_wrong_first_choice_is_no_match(tmp_path):
    (tmp_path / "agreement").mkdir()
    pd.concat([pooled(0.1, 0.4, 0.5), pooled(0.2, 0.4).assign(targets="glove"), pooled(-0.3, 0.1).assign(targets="minilm")]).to_csv(tmp_path / "agreement/pooled.csv", index=False)
    row = verdict_table(tmp_path).query("notebook == 'agreement'").iloc[0]
    assert row["verdict"] == "order agrees, first choice does not" and "right first choice in 50%" in row["result"]
    assert "(glove 0.25 [0.20, 0.40]; minilm 0.25 [-0.30, 0.10])" in row["result"]

def test_development_and_confirmation_have_a_row_each(tmp_path):
    (tmp_path / "cross_family").mkdir()
    row = dict(form="ECI_sem", targets="all targets", comparisons=1, in_family=0.2, in_lo=-0.1, in_hi=0.5, difference=0.3, difference_lo=0.1, difference_hi=0.5, verdict="in-family ahead, but does not foresee training")
    pd.DataFrame([row | dict(role=r) for r in ("confirmation", "development")]).to_csv(tmp_path / "cross_family/claim.csv", index=False)
    t = verdict_table(tmp_path).query("notebook == 'cross_family'")
    assert list(t["on"]) == ["confirmation, 1 comparison", "development, 1 comparison"] and set(t["verdict"]) == {row["verdict"]}

def test_two_opposite_targets_are_no_average(tmp_path):
    (tmp_path / "cross_family").mkdir()
    row = lambda targets, d, verdict, own=(0.1, -0.1, 0.3): dict(form="ECI_sem", role="confirmation", targets=targets, comparisons=3, in_family=own[0], in_lo=own[1], in_hi=own[2], difference=d[0], difference_lo=d[1], difference_hi=d[2], verdict=verdict)
    whole, weak, strong = row("all targets", (0.1, -0.34, 0.35), "differs between targets"), row("glove", (0.66, 0.02, 0.91), "in-family ahead, but does not foresee training"), row("minilm", (-1, -1.33, -0.33), "reversed", (-0.67, -0.67, 0))
    def verdict(*rows):
        pd.DataFrame(rows).to_csv(tmp_path / "cross_family/claim.csv", index=False)
        return verdict_table(tmp_path).query("notebook == 'cross_family'").iloc[0]
    got = verdict(whole, weak, strong)
    assert got["verdict"] == "differs between targets"
    assert "+0.10 [-0.34, +0.35] (glove +0.66 [+0.02, +0.91] in-family ahead, but does not foresee training; minilm -1.00 [-1.33, -0.33] reversed); in-family 0.10 [-0.10, 0.30] (glove 0.10 [-0.10, 0.30]; minilm -0.67 [-0.67, 0.00])" in got["result"]
    assert "(" not in verdict(whole, weak)["result"], "a lone target is the mean itself"
    # the notebook says so by the same rule; one interval that holds 0 opposes nothing
    each = lambda *rows: opposed(pd.DataFrame(rows), "difference_lo", "difference_hi")
    assert each(weak, strong) and not each(weak, row("minilm", (-1, -1.33, 0.1), "")) and not each(weak) and not each(strong, strong)
    (tmp_path / "agreement").mkdir()
    pd.concat([pooled(0.1, 0.4), pooled(0.2, 0.4).assign(targets="glove"), pooled(-0.9, -0.1).assign(targets="minilm")]).to_csv(tmp_path / "agreement/pooled.csv", index=False)
    got = verdict_table(tmp_path).query("notebook == 'agreement'").iloc[0]
    assert got["verdict"] == "differs between targets" and "highest of all 2 forms, chosen afterwards: minus margin 0.60 [0.10, 0.40] (glove 0.60 [0.20, 0.40]; minilm 0.60 [-0.90, -0.10])" in got["result"]

def test_the_regret_has_an_interval_where_the_table_has_one(tmp_path):
    (tmp_path / "agreement").mkdir()
    pooled(0.1, 0.4).assign(top1_share=0.25, regret_lo=0.01, regret_hi=0.03, regret_median=0.018).to_csv(tmp_path / "agreement/pooled.csv", index=False)
    assert "right first choice in 100% (25% of the draws); regret 1.2 points of nDCG@10 [1.0, 3.0], median of the draws 1.8;" in verdict_table(tmp_path).query("notebook == 'agreement'").iloc[0]["result"]

def ablation(which, verdicts, tau=0.9, metric="eci_sem"): return pd.DataFrame([dict(on=f"c (score), {e}, {metric}, {which}: " + ", ".join("abc" if which == "methods" else "abcdefgh"), factor=f, encoder=e, metric=metric, set=which, tau=tau, lo=tau - 0.1, hi=1.0, at="x", verdict=v) for f, of in verdicts.items() for e, v in of.items()])

def test_both_sets_of_sources_and_the_other_idf_tables_are_shown(tmp_path):
    (tmp_path / "ablations").mkdir(); (tmp_path / "ablations-idf").mkdir()
    pd.concat([ablation("methods", {"tokenizer": dict(glove="holds", minilm="holds"), "IDF corpus": dict(glove="holds", minilm="holds")}), ablation("all", {"temperature": dict(glove="holds", minilm="does not hold")}, -0.21)]).to_csv(tmp_path / "ablations/claims.csv", index=False)
    (tmp_path / "ablations/claims.run.json").write_text(json.dumps(dict(meta=dict(collection=dict(name="scifact")))))
    t = lambda: verdict_table(tmp_path).query("notebook == 'ablations'").reset_index(drop=True)
    few, many = t().iloc[0], t().iloc[1]
    assert few["on"] == "scifact (methods: 3 sources); glove, minilm" and few["verdict"] == "holds" and few["result"] == "lowest tau-b to the default: tokenizer 0.90 [0.80, 1.00] (glove at x): holds; IDF corpus 0.90 [0.80, 1.00] (glove at x): holds"
    assert many["on"] == "scifact (all: 8 sources); glove, minilm" and many["verdict"] == "does not hold throughout" and "temperature -0.21 [-0.31, 1.00] (glove at x): holds (glove), does not hold (minilm)" in many["result"]
    ablation("methods", {"tokenizer": dict(glove="does not hold"), "IDF corpus": dict(glove="does not hold")}, 0.5).to_csv(tmp_path / "ablations-idf/claims.csv", index=False)
    few = t().iloc[0]
    assert few["verdict"] == "does not hold throughout" and few["result"].endswith("IDF corpus, other collections too 0.50 [0.40, 1.00] (glove at x): does not hold") and few["result"].count("tokenizer") == 1

@pytest.mark.parametrize("said, verdict", [(("holds", "holds"), "holds"), (("not decided", "not decided"), "not decided"), (("holds", "not decided"), "not decided throughout"), (("does not hold", "not decided"), "does not hold"), (("does not hold", "holds"), "does not hold throughout")])
def test_what_decides_nothing_is_no_failure(tmp_path, said, verdict):
    (tmp_path / "ablations").mkdir()
    ablation("methods", {f"factor {i}": dict(glove=v) for i, v in enumerate(said)}).to_csv(tmp_path / "ablations/claims.csv", index=False)
    row = verdict_table(tmp_path).query("notebook == 'ablations'").iloc[0]
    assert row["verdict"] == verdict and row["on"].startswith("collection not recorded")

def test_no_baseline_is_left_out_of_the_theory(tmp_path):
    (tmp_path / "theory").mkdir()
    names = dict(eci_sem="ECI_sem", trace="tr M", hardness="mean hardness", fisher="fisher", gradient="gradient", alignment="alignment")
    def last(**of):
        of = dict(eci_sem=(0.39, 0.56)) | of
        pd.DataFrame([dict(claim="first-order error of order eta^2", verdict="holds", detail="slope 2")] + [dict(claim=f"{names[n]} ranks sources by the held-out loss decrease of an adapter", verdict="holds", detail="x") for n in of]).to_csv(tmp_path / "theory/theory_verdicts.csv", index=False)
        row = lambda score, encoder, tau, steps=100, test="common", control=False: dict(encoder=encoder, test=test, steps=steps, score=score, control=control, kendall=tau, kendall_lo=0.1, kendall_hi=0.95)
        rows = [row(s, e, x) for s, pair in of.items() for e, x in zip(("glove", "minilm"), pair)]
        # fewer steps, other queries and the control counted in are not what the line is about
        rows += [row(s, e, 1.0 if s != "eci_sem" else -1.0, *other) for s in of for e in ("glove", "minilm") for other in ((1,), (100, "own"), (100, "common", True))]
        pd.DataFrame(rows).to_csv(tmp_path / "theory/theory_correlations.csv", index=False)
        return verdict_table(tmp_path).query("notebook == 'theory'")
    rows = last(hardness=(0.50, 0.89), trace=(0.44, 0.10), gradient=(0.94, 0.94), alignment=(1.0, 1.0))
    assert len(rows) == 4 and rows.iloc[-1]["verdict"] == "higher than ECI_sem for every encoder: mean hardness, gradient" and rows.iloc[2]["result"].startswith("alignment ranks")
    text = rows.iloc[-1]["result"]
    assert text.startswith("baselines, tau-b with the held-out loss decrease after 100 adapter steps: tr M glove 0.44 [0.10, 0.95], minilm 0.10 [0.10, 0.95]; mean hardness glove 0.50") and text.endswith("gradient glove 0.94 [0.10, 0.95], minilm 0.94 [0.10, 0.95]; beside ECI_sem glove 0.39 [0.10, 0.95], minilm 0.56 [0.10, 0.95]")
    assert last(fisher=(0.1, 0.2)).iloc[-1]["verdict"] == "none is higher than ECI_sem for every encoder"
    assert len(last()) == 2

def test_every_case_must_hold(tmp_path):
    (tmp_path / "ranking").mkdir()
    a, b = "LLM highest of the single sources", "Dense+LLM highest of the hybrids"
    def verdict(*cells):
        pd.DataFrame([dict(encoder=f"e{i}", metric="ECI_sem", **{a: x, b: y}) for i, (x, y) in enumerate(cells)]).to_csv(tmp_path / "ranking/claims.csv", index=False)
        return verdict_table(tmp_path).query("notebook == 'ranking'").iloc[0]
    assert verdict(("holds", "holds"), ("holds", "holds"))["verdict"] == "holds"
    assert verdict(("holds", "holds"), ("does not hold: bm25 is highest", "holds"))["verdict"] == "does not hold throughout"
    assert verdict(("holds", "holds"), ("first, tied with bm25", "holds"))["verdict"] == "not decided throughout"
    assert verdict(("first, tied with bm25", "first, tied with dense"))["verdict"] == "not decided"
    row = verdict(("does not hold: dense is highest", "first, tied with bm25"),)
    assert row["verdict"] == "does not hold" and "LLM: e0 dense is highest" in row["result"]

def test_a_table_of_another_kind_is_named(tmp_path):
    (tmp_path / "agreement").mkdir()
    pd.DataFrame(dict(x=[1])).to_csv(tmp_path / "agreement/pooled.csv", index=False)
    with pytest.raises(InputError, match="agreement: a table of that folder lacks 'role'"): verdict_table(tmp_path)

def test_the_committed_results_make_a_table(root):
    text = verdict_markdown(root / "figures")
    assert "| docstrings (all: 8 sources); " in text and "collection not recorded" not in text # the records say where it was
    assert text.count("\n") >= len(CLAIMS) and "(nbs/experiments/ranking.ipynb)" in text
