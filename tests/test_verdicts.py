"""The verdict table says what the committed tables say, and nothing else."""
import pandas as pd
import pytest

from eci_sem.collection import InputError
from eci_sem.verdicts import CLAIMS, verdict_markdown, verdict_table


def pooled(lo, hi, top1=1.0): return pd.DataFrame([dict(role="confirmation", targets="all targets", form=f, cells=2, tau=t, lo=lo, hi=hi, top1=top1, regret=0.012) for f, t in (("ECI_sem", 0.25), ("minus margin", 0.6))])

def test_a_claim_that_was_not_run_says_so(tmp_path):
    t = verdict_table(tmp_path)
    assert len(t) == len(CLAIMS) and set(t["verdict"]) == {"not run"}

@pytest.mark.parametrize("lo, hi, verdict", [(0.1, 0.4, "holds"), (-0.1, 0.4, "not told apart from chance"), (-0.5, -0.1, "reversed")])
def test_the_interval_decides(tmp_path, lo, hi, verdict):
    (tmp_path / "agreement").mkdir()
    pooled(lo, hi).to_csv(tmp_path / "agreement/pooled.csv", index=False)
    row = verdict_table(tmp_path).query("notebook == 'agreement'").iloc[0]
    assert row["verdict"] == verdict and f"0.25 [{lo:.2f}, {hi:.2f}]" in row["result"] and "1.2 points" in row["result"] and "best of all forms: minus margin 0.60" in row["result"]

def test_the_right_order_with_a_wrong_first_choice_is_no_match(tmp_path):
    (tmp_path / "agreement").mkdir()
    pd.concat([pooled(0.1, 0.4, 0.5), pooled(0.2, 0.4).assign(targets="glove"), pooled(-0.3, 0.1).assign(targets="minilm")]).to_csv(tmp_path / "agreement/pooled.csv", index=False)
    row = verdict_table(tmp_path).query("notebook == 'agreement'").iloc[0]
    assert row["verdict"] == "order agrees, first choice does not" and "right first choice in 50%" in row["result"]
    assert "(glove 0.25 [0.20, 0.40], minilm 0.25 [-0.30, 0.10])" in row["result"]

def test_development_and_confirmation_have_a_row_each(tmp_path):
    (tmp_path / "cross_family").mkdir()
    row = dict(form="ECI_sem", targets="all targets", comparisons=1, in_family=0.2, in_lo=-0.1, in_hi=0.5, difference=0.3, difference_lo=0.1, difference_hi=0.5, verdict="in-family ahead, but does not foresee training")
    pd.DataFrame([row | dict(role=r) for r in ("confirmation", "development")]).to_csv(tmp_path / "cross_family/claim.csv", index=False)
    t = verdict_table(tmp_path).query("notebook == 'cross_family'")
    assert list(t["on"]) == ["confirmation, 1 comparison", "development, 1 comparison"] and set(t["verdict"]) == {row["verdict"]}

def test_every_case_must_hold(tmp_path):
    (tmp_path / "ranking").mkdir()
    a, b = "LLM highest of the single sources", "Dense+LLM highest of the hybrids"
    def verdict(*cells):
        pd.DataFrame([dict(encoder=f"e{i}", metric="ECI_sem", **{a: x, b: y}) for i, (x, y) in enumerate(cells)]).to_csv(tmp_path / "ranking/claims.csv", index=False)
        return verdict_table(tmp_path).query("notebook == 'ranking'").iloc[0]
    assert verdict(("holds", "holds"), ("holds", "holds"))["verdict"] == "holds"
    assert verdict(("holds", "holds"), ("first, tied with bm25", "holds"))["verdict"] == "does not hold throughout"
    row = verdict(("does not hold: dense is highest", "first, tied with bm25"),)
    assert row["verdict"] == "does not hold" and "LLM: e0 dense is highest" in row["result"]

def test_a_table_of_another_kind_is_named(tmp_path):
    (tmp_path / "agreement").mkdir()
    pd.DataFrame(dict(x=[1])).to_csv(tmp_path / "agreement/pooled.csv", index=False)
    with pytest.raises(InputError, match="agreement: a table of that folder lacks 'role'"): verdict_table(tmp_path)

def test_the_committed_results_make_a_table(root):
    text = verdict_markdown(root / "figures")
    assert text.count("\n") >= len(CLAIMS) and "(nbs/experiments/ranking.ipynb)" in text
