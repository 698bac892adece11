"""Figures of the comparison with training: what is drawn is what the table says, and a bad table is refused."""
import numpy as np
import pandas as pd
import pytest

from eci_sem import comparisons as cp
from eci_sem.collection import InputError
from eci_sem.figures import save_figure

GAINS = pd.DataFrame([dict(dataset=d, source=s, kind=k, gain=g, gain_lo=g - 0.01, gain_hi=g + 0.01, seeds=20, queries=300) for d in ("docstrings", "scifact") for s, k, g in (("bm25@1", "source", 0.01), ("random", "control", 0.0), ("bm25@1+llm", "hybrid", 0.02))])
BOARD = pd.DataFrame([dict(score=s, panel=p, tau=t, lo=t - 0.2, hi=t + 0.2, sources=10) for p in ("glove", "minilm") for s, t in (("ECI_sem", 0.1), ("ECI_net", 0.5))])
POINTS = pd.DataFrame([dict(target=t, dataset="docstrings", source=f"bm25@{k}", kind="source", margin=m, gain=g * m, gain_lo=g * m - 0.01, gain_hi=g * m + 0.01) for t, g in (("glove", -0.1), ("minilm", 0.1)) for k, m in ((1, 0.1), (5, 0.2), (20, 0.3))])
CELLS = pd.DataFrame([dict(target=t, scorer=s, value=v, lo=v - 0.2, hi=v + 0.2) for (t, s), v in {("glove", "glove"): 0.7, ("glove", "minilm"): -0.1, ("minilm", "glove"): 0.2, ("minilm", "minilm"): 0.6}.items()])
ALL = [(cp.transfer_gains, GAINS), (cp.leaderboard, BOARD), (cp.gain_by_margin, POINTS), (cp.agreement_heatmap, CELLS)]

@pytest.mark.parametrize("draw, table", ALL, ids=lambda x: getattr(x, "__name__", ""))
def test_a_figure_is_saved_with_its_table_and_drawn_twice_alike(draw, table, tmp_path):
    files = [{p.suffix: p.read_bytes() for p in save_figure(draw(table), table, "x", tmp_path / str(k), {})} for k in (0, 1)]
    assert files[0] == files[1] and set(files[0]) == {".png", ".svg", ".csv", ".json"}

@pytest.mark.parametrize("draw, table", ALL, ids=lambda x: getattr(x, "__name__", ""))
def test_a_missing_column_is_named(draw, table):
    column = "lo" if "lo" in table else "gain_lo"
    with pytest.raises(InputError, match=f"{draw.__name__}: column '{column}' is missing"): draw(table.drop(columns=column))

def test_gains_are_drawn_where_the_table_says_highest_on_top():
    fig = cp.transfer_gains(GAINS)
    ax = fig.axes[0]
    dots = {round(float(line.get_xdata()[0]), 6): float(line.get_ydata()[0]) for line in ax.lines if len(line.get_xdata()) == 1}
    assert dots == {0.02: 0.0, 0.01: 1.0, 0.0: 2.0}
    assert ax.get_title() == "docstrings\nn = 300 queries\n20 seeds"
    with pytest.raises(InputError, match="gain_lo = 0.05 is above gain_hi"): cp.transfer_gains(GAINS.assign(gain_lo=0.05))

def test_the_order_of_the_leaderboard_is_that_of_the_mean_and_a_gap_is_left_open():
    fig = cp.leaderboard(BOARD)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["ECI_net", "ECI_sem"]
    gap = BOARD.copy(); gap.loc[0, ["tau", "lo", "hi"]] = np.nan
    assert sum(len(line.get_xdata()) == 1 for line in cp.leaderboard(gap).axes[0].lines) == 1

def test_the_dashed_line_shows_the_sign_of_each_target():
    lines = [line for line in cp.gain_by_margin(POINTS).axes[0].lines if line.get_linestyle() == "--"]
    slopes = [np.polyfit(line.get_xdata(), line.get_ydata(), 1)[0] for line in lines]
    assert np.allclose(slopes, [-0.1, 0.1])

def test_in_family_cells_are_framed_and_values_printed():
    ax = cp.agreement_heatmap(CELLS).axes[0]
    framed = [p for p in ax.patches if p.get_edgecolor()[:3] == (0, 0, 0)]
    assert len(framed) == 2 and {t.get_text().split("\n")[0] for t in ax.texts} == {"0.70", "\u22120.10", "0.20", "0.60"}


def test_each_panel_names_its_scorers_and_only_its_own_targets():
    rows = [dict(dataset=d, target=t, scorer=s, value=0.1, lo=0.0, hi=0.2) for d, targets in (("one", "ab"), ("two", "a"), ("three", "b")) for t in targets for s in "ab"]
    fig = cp.agreement_heatmap(pd.DataFrame(rows))
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert [[t.get_text() for t in ax.get_yticklabels()] for ax in shown] == [["a", "b"], ["a"], ["b"]]
    assert all([t.get_text() for t in ax.get_xticklabels() if t.get_visible()] == ["a", "b"] and ax.xaxis.get_tick_params()["labelbottom"] for ax in shown)


def test_the_legend_of_gains_stands_above_the_intervals():
    rows = [dict(target=t, dataset="d", source=f"s{k}", kind="source", margin=k / 10, gain=k / 100, gain_lo=k / 100 - 0.1, gain_hi=k / 100 + 0.1) for t in "ab" for k in range(8)]
    fig = cp.gain_by_margin(pd.DataFrame(rows))
    fig.draw_without_rendering()
    ax = fig.axes[0]
    bottom = ax.transData.inverted().transform(ax.get_legend().get_window_extent().get_points())[0, 1]
    assert bottom > max(r["gain_hi"] for r in rows)
