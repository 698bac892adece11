"""The paper's printed numbers and what they are checked against."""
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from eci_sem.collection import InputError
from eci_sem.published import Interval, check_eci_v1, check_hybrids, check_per_dim, check_triangle, load_published, rounding_interval, verdict

ROOT = Path(__file__).resolve().parents[1]
# typed in a second time, as strings, so that a slip in the data file shows
V3 = """
DistilBERT 0.1265 0.1755 0.2612 0.1510 0.1939 0.2192 | 165 228 340 197 252 285
E5-base 0.0954 0.1191 0.2112 0.1072 0.1533 0.1659 | 124 155 275 140 200 216
Contriever 0.0667 0.1170 0.1813 0.0918 0.1240 0.1498 | 87 152 236 120 161 195
"""
V3_SOURCES = ["bm25", "dense", "llm", "bm25+dense", "bm25+llm", "dense+llm"]
V1 = {"bm25": "50 .577 .199 1.16", "cross-encoder": "25 .606 .175 0.88", "llm": "3 .656 .110 0.26", "bm25+cross-encoder": "75 .587 .192 1.25", "llm+bm25": "53 .620 .152 0.97",
    "llm+bm25+cross-encoder": "78 .621 .152 1.06", "cross-encoder+llm": "28 .631 .143 0.79"}


@pytest.fixture(scope="module")
def tables(): return load_published()


def test_data_is_complete(tables):
    v3, v1 = tables["v3_table_1"], tables["v1_table_1"]
    assert "2603.20990 v3" in v3.source and "2603.20990 v1" in v1.source and v3.dim == 768
    found = {(r["encoder"], r["source"]): (r["score"], r["per_dim"]) for r in v3.rows}
    expected = {}
    for line in V3.strip().splitlines():
        scores, per_dim = line.split(" | ")
        encoder, *scores = scores.split()
        expected.update({(encoder, s): (float(x), int(y)) for s, x, y in zip(V3_SOURCES, scores, per_dim.split(), strict=True)})
    assert found == expected and len(found) == 18
    assert {r["source"]: (r["k"], r["signal"], r["margin"], r["eci"]) for r in v1.rows} == {s: (int(k), float(a), float(b), float(c)) for s, (k, a, b, c) in ((s, row.split()) for s, row in V1.items())}
    for t in tables.values(): assert all((r["kind"] == "hybrid") == ("+" in r["source"]) for r in t.rows)


def test_rounding_interval_by_hand(tables):
    assert rounding_interval(0.1755, 4) == pytest.approx((0.17545, 0.17555), abs=1e-15)
    assert rounding_interval(228, 0, 1e-6) == pytest.approx((227.5e-6, 228.5e-6), abs=1e-18)
    assert rounding_interval(50, None) == (50, 50)
    row = tables["v1_table_1"].rows[0]
    assert tables["v1_table_1"].interval(row, "eci") == pytest.approx((1.155, 1.165)) and tables["v1_table_1"].interval(row, "k") == (50, 50)
    with pytest.raises(InputError, match=r"unknown column of v1_table_1 'margn'. Did you mean 'margin'"): tables["v1_table_1"].interval(row, "margn")


@pytest.mark.parametrize("found, expected, close, want", [
    ((1, 2), (1.5, 3), 0, "match"), # overlap
    ((1.5, 1.6), (1, 3), 0, "match"), # inside
    ((0.1 + 0.2, 0.1 + 0.2), (0.2, 0.3), 0, "match"), # touch, but for the last bit
    ((1.0, 1.0), (1.01, 1.01), 0.01, "close"),
    ((1.0, 1.0), (0.99, 0.99), 0.02, "close"),
    ((1.0, 1.0), (1.02, 1.02), 0.01, "differs"),
    ((1.0, 1.0), (1.0001, 1.0001), 0, "differs"),
    ((-2.0, -1.0), (1.0, 2.0), 0.5, "differs"),
    ((100, 100), (100.9, 100.9), 0.01, "close"), # a fraction of the printed value, whatever its size
    ((0.1, 0.1), (0.105, 0.105), 0.01, "differs"),
    ((0.0, 0.0), (0.0, 0.0), 0, "match"),
])
def test_verdict_three_ways(found, expected, close, want): assert verdict(Interval(*found), Interval(*expected), close) == want


@settings(max_examples=200, deadline=None)
@given(st.floats(0.001, 1e3), st.integers(0, 6), st.floats(-0.5, 0.5))
def test_a_value_matches_its_own_print(x, decimals, off):
    assert verdict(Interval(x, x), rounding_interval(round(x, decimals), decimals), 0) == "match"
    shown = rounding_interval(round(x, decimals), decimals)
    beyond = shown.hi + 1e-3 * (1 + abs(off)) * max(abs(shown.hi), 1e-6)
    assert verdict(Interval(beyond, beyond), shown, 0) == "differs"


def test_verdict_refuses_nonsense():
    with pytest.raises(InputError, match=r"found is \(2, 1\): expected two finite numbers, the lower one first"): verdict(Interval(2, 1), Interval(0, 1))
    with pytest.raises(InputError, match="expected is"): verdict(Interval(0, 1), Interval(0, math.nan))
    with pytest.raises(InputError, match="close is -1"): verdict(Interval(0, 1), Interval(0, 1), -1)


def test_every_per_dim_cell(tables):
    frame = check_per_dim(tables["v3_table_1"])
    assert len(frame) == 18 and (frame["verdict"] == "match").all()
    odd = frame[frame["from_score"].astype(int) != frame["printed"]]
    assert odd[["encoder", "source", "from_score", "printed"]].values.tolist() == [["DistilBERT", "dense", "229", 228]]
    assert odd["lo"].item() == pytest.approx(228.4505, abs=1e-4) and odd["hi"].item() == pytest.approx(228.5807, abs=1e-4)


def test_every_hybrid(tables):
    frame = check_hybrids(tables["v3_table_1"]).set_index(["encoder", "hybrid"])
    assert len(frame) == 9
    for encoder, excess in (("DistilBERT", 0.00085), ("E5-base", 0.00075), ("Contriever", 0.00065)):
        assert frame.loc[(encoder, "bm25+dense"), "verdict"] == frame.loc[(encoder, "bm25+llm"), "verdict"] == "match"
        row = frame.loc[(encoder, "dense+llm")]
        assert row["verdict"] == "close" and row["excess"] == pytest.approx(excess, abs=1e-12) and row["excess_lo"] == pytest.approx(excess - 1e-4, abs=1e-12) and row["excess_hi"] == pytest.approx(excess + 1e-4, abs=1e-12)


def test_triangle_by_hand(tables):
    frame = check_triangle(tables["v3_table_1"]).set_index("encoder")
    # DistilBERT: the BM25 hybrids exceed their means by at most 1.0e-4 and 1.5e-4, the other two by 0.5e-4 and 1.0e-4
    assert frame.loc["DistilBERT", "allowed"] == pytest.approx((1.0e-4 ** 0.5 + 1.5e-4 ** 0.5) ** 2, rel=1e-6)
    for encoder in ("E5-base", "Contriever"): assert frame.loc[encoder, "allowed"] == pytest.approx((0.5e-4 ** 0.5 + 1.0e-4 ** 0.5) ** 2, rel=1e-6)
    # at the most generous corner all parts are at their lowest, the BM25 hybrids highest, Dense+LLM lowest: its excess is then the printed one
    assert (frame["shortfall"] > 0).all() and (frame["verdict"] == "differs").all()
    assert frame["shortfall"].tolist() == pytest.approx((frame["excess"] - frame["allowed"]).tolist(), abs=1e-12)


TABLE = load_published()["v3_table_1"]
TRIANGLE = check_triangle(TABLE).set_index("encoder")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=6, max_size=6), st.sampled_from(range(3)))
def test_no_rounding_inside_the_box_beats_the_corners(where, k):
    encoder = ["DistilBERT", "E5-base", "Contriever"][k]
    score = {r["source"]: r["score"] for r in TABLE.rows if r["encoder"] == encoder}
    b, d, l, bd, bl, dl = (score[s] + w * 0.5e-4 for s, w in zip(V3_SOURCES, where))
    near, far, own = max(bd - (b + d) / 2, 0), max(bl - (b + l) / 2, 0), dl - (d + l) / 2
    row = TRIANGLE.loc[encoder]
    bound = (near ** 0.5 + far ** 0.5) ** 2
    assert own - bound >= row["shortfall"] - 1e-12 and bound <= row["allowed"] + 1e-12 and row["excess_lo"] - 1e-12 <= own <= row["excess_hi"] + 1e-12


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2 ** 32 - 1), st.integers(1, 6), st.floats(-4, 2))
def test_sqrt_of_the_excess_is_a_metric(seed, rank, power):
    rng = np.random.default_rng(seed)
    def psd(): r = rng.normal(size=(rank, 5)); return 10 ** power * rng.uniform(0.1, 10) * r.T @ r
    def f(m): return np.log1p(np.linalg.eigvalsh(m).clip(0)).sum()
    def root(x, y): return max(f((x + y) / 2) - (f(x) + f(y)) / 2, 0) ** 0.5
    a, b, c = psd(), psd(), psd()
    assert root(b, c) <= root(a, b) + root(a, c) + 1e-7
    assert root(b, c) <= root((b + c) / 2, b) + root((b + c) / 2, c) + 1e-7 # nearly tight


def test_pools_that_are_balanced_pass(tables, tmp_path):
    # hybrids made from real matrices by the rule that the published ones break
    rng = np.random.default_rng(0)
    m = {s: (lambda r: c * r.T @ r / 40)(rng.normal(size=(40, 768))) for s, c in (("bm25", 1.6e-4), ("dense", 2.3e-4), ("llm", 3.4e-4))}
    def f(x): return float(np.log1p(np.linalg.eigvalsh(x).clip(0)).sum())
    rows = [dict(encoder="e", source=s, kind="hybrid" if "+" in s else "source", score=round(f(sum(m[p] for p in s.split("+")) / len(s.split("+"))), 4)) for s in V3_SOURCES]
    spec = dict(t=dict(source="x", metric="ECI_sem", keys=["encoder", "source", "kind"], close=0.01, columns=dict(score=dict(decimals=4, unit=1.0)), rows=rows))
    (tmp_path / "t.yaml").write_text(json.dumps(spec))
    row = check_triangle(load_published(tmp_path / "t.yaml")["t"]).iloc[0]
    assert row["shortfall"] <= 0 and row["verdict"] == "match"


def test_every_v1_row(tables):
    frame = check_eci_v1(tables["v1_table_1"]).set_index("source")
    assert len(frame) == 7 and (frame["verdict"] == "match").all()
    assert round(frame.loc["llm+bm25+cross-encoder", "formula"], 3) == 1.067 and 1.0635 < frame.loc["llm+bm25+cross-encoder", "lo"] < 1.065
    assert frame.loc["bm25", "formula"] == pytest.approx(math.log(51) * 2 * 0.577 * 0.199 / 0.776)


@pytest.mark.parametrize("text, message", [
    ("", "expected a mapping from table names to tables, found NoneType"),
    ("a: [1", "not valid YAML"),
    ("t: 3", "table 't' is int, expected a mapping"),
    ("t: {source: x, metric: m, keys: [source], close: 0.01, columns: {s: {decimals: 2, unit: 1}}}", "table 't' has no 'rows'"),
    ("t: {source: x, metric: m, keys: [source], close: 0.01, columns: {s: {unit: 1}}, rows: [{source: a, s: 1}]}", "column 's' has no 'decimals': how the digits were printed"),
    ("t: {source: x, metric: m, keys: [source], close: 0.01, columns: {s: {decimals: 2, unit: 1}}, rows: [{source: a}]}", "row 1 has no 's'"),
    ("t: {source: x, metric: m, keys: [source], close: 0.01, columns: {s: {decimals: 2, unit: 1}}, rows: [{source: a, s: '1e-6x'}]}", "row 1: 's' is '1e-6x', expected a number"),
    ("t: {source: x, metric: m, keys: [source], close: 0.01, columns: {s: {decimals: 2, unit: 1}}, rows: [{source: a, s: 1}, {source: a, s: 2}]}", "row 2 repeats a"),
])
def test_bad_data_files(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match=re.escape(message)): load_published(tmp_path / "p.yaml")


def test_missing_data_file(tmp_path):
    with pytest.raises(InputError, match="none.yaml: no such file"): load_published(tmp_path / "none.yaml")


def test_notebook_runs_and_writes(tmp_path):
    pm = pytest.importorskip("papermill")
    notebook = ROOT / "nbs" / "experiments" / "published.ipynb"
    done = pm.execute_notebook(notebook, tmp_path / "done.ipynb", parameters=dict(out=str(tmp_path / "out"), matrices=20, dim=5), kernel_name="python3", progress_bar=False)
    assert sum("parameters" in c.metadata.get("tags", []) for c in done.cells) == 1
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"published_scores.png", "published_scores.svg", "published_scores.csv", "published_scores.json", *(f"published_{n}.{kind}" for n in ("per_dim", "hybrids", "triangle", "metric", "eci_v1") for kind in ("csv", "parquet", "run.json"))}
    record = json.loads((tmp_path / "out" / "published_scores.json").read_text())
    assert record["meta"]["parameters"] == dict(seed=0, matrices=20, dim=5)
    shown = " ".join("".join(o["data"].get("text/markdown", "")) for c in done.cells for o in c.get("outputs", []) if "data" in o)
    assert "Verdicts over 18 cells: {'match': 18}" in shown and "fails at every rounding for 3 of 3 encoders" in shown and str(tmp_path) not in json.dumps([c.get("outputs") for c in done.cells])


def test_notebook_is_committed_without_outputs():
    nb = json.loads((ROOT / "nbs" / "experiments" / "published.ipynb").read_text())
    assert all(not c.get("outputs") for c in nb["cells"])
