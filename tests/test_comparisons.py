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
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["ECI_net", "ECI_sem"] and fig.axes[0].get_title() == "glove\nn = 10 sources"
    assert "rows in the order of the mean over 2 panels" in fig.get_supxlabel()
    gap = BOARD.copy(); gap.loc[0, ["tau", "lo", "hi"]] = np.nan
    assert sum(len(line.get_xdata()) == 1 for line in cp.leaderboard(gap).axes[0].lines) == 1

# the development panels come first in the table, and would turn the order of the scores
ROLES = pd.DataFrame([dict(score=s, panel=p, role=r, tau=t, lo=t - 0.1, hi=t + 0.1, sources=10) for p, r, taus in (("a", "development", (0.9, -0.9)), ("b", "confirmation", (0.1, 0.2)), ("c", "confirmation", (0.1, 0.2)), ("d", "confirmation", (0.1, 0.2)), ("e", "development", (0.9, -0.9))) for s, t in zip(("ECI_sem", "ECI_net"), taus)])

def shown(fig): return [ax for ax in fig.axes if ax.get_visible()]

def test_confirmation_stands_above_development_and_alone_fixes_the_order():
    fig = cp.leaderboard(ROLES)
    assert [ax.get_title() for ax in shown(fig)] == [f"{p}\n{r}, n = 10 sources" for p, r in (("b", "confirmation"), ("c", "confirmation"), ("d", "confirmation"), ("a", "development"), ("e", "development"))]
    assert [ax.get_subplotspec().rowspan.start for ax in shown(fig)] == [0, 0, 0, 1, 1]
    assert all([t.get_text() for t in ax.get_yticklabels()] == ["ECI_net", "ECI_sem"] for ax in shown(fig) if ax.get_subplotspec().is_first_col()) and "the mean over 3 confirmation panels" in fig.get_supxlabel()
    only = cp.leaderboard(ROLES[ROLES["role"] == "development"])
    assert [t.get_text() for t in only.axes[0].get_yticklabels()] == ["ECI_sem", "ECI_net"] and "the mean over 2 development panels" in only.get_supxlabel()

@pytest.mark.parametrize("table", (ROLES, ROLES.drop(columns="role")), ids=("roles", "no role"))
def test_every_panel_of_the_leaderboard_has_its_tick_labels_and_none_stands_alone(table):
    fig = cp.leaderboard(table)
    assert all(ax.xaxis.get_tick_params()["labelbottom"] and [t.get_text() for t in ax.get_xticklabels() if t.get_visible()] == ["\u22121", "\u22120.5", "0", "0.5", "1"] for ax in shown(fig))
    assert [sum(ax.get_subplotspec().rowspan.start == k for ax in shown(fig)) for k in (0, 1)] == [3, 2]

def test_a_leaderboard_with_roles_is_drawn_again_from_its_csv(tmp_path):
    from eci_sem.results import redraw
    save_figure(cp.leaderboard(ROLES), ROLES, "board", tmp_path, {})
    assert pd.read_csv(tmp_path / "board.csv")["role"].tolist() == ROLES["role"].tolist() and redraw(tmp_path) == [("board", "same", "")]
    gaps = ROLES.assign(role=ROLES["role"].where(ROLES["role"] == "confirmation", np.nan)) # a missing role is no role
    save_figure(cp.leaderboard(gaps), gaps, "gaps", tmp_path, {})
    assert dict((f, s) for f, s, _ in redraw(tmp_path))["gaps"] == "same" and "a\nn = 10 sources" in [ax.get_title() for ax in cp.leaderboard(gaps).axes]

def test_a_role_that_will_not_do_is_named():
    with pytest.raises(InputError, match="unknown role in the table of leaderboard 'developement'. Did you mean 'development'"): cp.leaderboard(ROLES.replace("development", "developement"))
    mixed = ROLES.copy(); mixed.loc[0, "role"] = "confirmation"
    with pytest.raises(InputError, match="leaderboard: panel 'a' has the roles 'confirmation', 'development'; expected one role per panel"): cp.leaderboard(mixed)

# a target whose line hangs on one source, and one with margins ten times as small
PULLED = pd.DataFrame([dict(target=t, dataset="docstrings", source=s, kind="control" if s == "random" else "source", margin=scale * m, gain=g, gain_lo=g - 0.004, gain_hi=g + 0.004) for t, scale in (("minilm", 1.0), ("glove", 0.1))
    for s, m, g in (("bm25@1", 0.06, -0.009), ("bm25@20", 0.23, 0.004), ("dense@1", -0.03, -0.004), ("dense@20", 0.13, 0.006), ("llm", -0.005, -0.066), ("random", 0.43, 0.004))])

def fits(ax): return {line.get_linestyle(): np.polyfit(line.get_xdata(), line.get_ydata(), 1) for line in ax.lines if line.get_color() == "#000000" and len(line.get_xdata()) == 2}

def test_the_line_shows_the_sign_of_each_target():
    fig = cp.gain_by_margin(POINTS)
    assert np.allclose([fits(ax)["-"][0] for ax in shown(fig)], [-0.1, 0.1]) and [ax.get_xlabel() for ax in shown(fig)] == ["slope \u22120.1 (solid)", "slope 0.1 (solid)"]

def test_the_dashed_line_leaves_out_the_source_that_moves_it_most():
    for ax, (target, part) in zip(shown(cp.gain_by_margin(PULLED)), PULLED.groupby("target", sort=False)):
        rest = part[part["source"] != "llm"]
        solid, dashed = np.polyfit(part["margin"], part["gain"], 1), np.polyfit(rest["margin"], rest["gain"], 1)
        assert np.allclose(fits(ax)["-"], solid) and np.allclose(fits(ax)["--"], dashed)
        assert ax.get_xlabel() == f"slope {solid[0]:.2g} (solid)\nwithout LLM: {dashed[0]:.2g} (dashed)" and ax.get_title() == f"{target}, n = 6 sources\ndocstrings"

def test_cooks_distance_names_the_source():
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.normal(size=(2, 7))
        moved = [np.square(np.polyval(np.polyfit(x, y, 1), x) - np.polyval(np.polyfit(np.delete(x, i), np.delete(y, i), 1), x)).sum() for i in range(7)] # its definition
        line, i = cp.margin_line(x, y, list("abcdefg")), int(np.argmax(moved))
        assert line.without == "abcdefg"[i] and np.allclose([line.slope, line.intercept, line.slope_without, line.intercept_without], [*np.polyfit(x, y, 1), *np.polyfit(np.delete(x, i), np.delete(y, i), 1)])
    assert cp.margin_line([1, 2], [1, 2], "ab") is None and cp.margin_line([1, 1, 1], [1, 2, 3], "abc") is None
    assert cp.margin_line([1, 2, 3], [1, 2, 4], "abc").without == "" # two points are always a line
    assert cp.margin_line([0, 0, 0, 1], [1, 2, 3, 4], "abcd").without in "abc" # without d no line is left

def test_each_panel_of_gains_has_its_own_range():
    wide = [ax.get_xlim() for ax in shown(cp.gain_by_margin(PULLED))]
    for (low, high), (_, part) in zip(wide, PULLED.groupby("target", sort=False)): assert np.ptp(part["margin"]) > 0.7 * (high - low)

def test_names_of_sources_lie_on_nothing():
    from matplotlib.text import Text
    fig = cp.gain_by_margin(PULLED)
    fig.draw_without_rendering()
    for ax, (_, part) in zip(shown(fig), PULLED.groupby("target", sort=False)):
        assert {"LLM", "Random", "dense@1"} <= {t.get_text() for t in ax.texts}
        boxes = [Text.get_window_extent(t) for t in ax.texts]
        inside = ax.get_window_extent()
        for i, box in enumerate(boxes):
            assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
            assert not any(box.overlaps(other) for other in boxes[:i])
            for r in part.itertuples():
                ends = ax.transData.transform([(r.margin, v) for v in np.linspace(r.gain_lo, r.gain_hi, 50)])
                assert not any(box.contains(*p) for p in ends)

def test_in_family_cells_are_framed_and_values_printed():
    ax = cp.agreement_heatmap(CELLS).axes[0]
    framed = [p for p in ax.patches if p.get_edgecolor()[:3] == (0, 0, 0)]
    assert len(framed) == 2 and {t.get_text().split("\n")[0] for t in ax.texts} == {"0.70", "\u22120.10", "0.20", "0.60"}


def test_a_row_tells_how_many_sources_were_ordered():
    rows = pd.DataFrame([dict(dataset="one", target=t, scorer=s, value=0.1, lo=0.0, hi=0.2, sources=n) for t, n in (("a", 13), ("b", 4)) for s in "ab"])
    fig = cp.agreement_heatmap(rows)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["a\nn = 13", "b\nn = 4"] and "n: sources that were ordered" in fig.get_supxlabel()
    assert "n:" not in cp.agreement_heatmap(rows.drop(columns="sources")).get_supxlabel()


def test_each_panel_names_its_scorers_and_only_its_own_targets():
    rows = [dict(dataset=d, target=t, scorer=s, value=0.1, lo=0.0, hi=0.2) for d, targets in (("one", "ab"), ("two", "a"), ("three", "b")) for t in targets for s in "ab"]
    fig = cp.agreement_heatmap(pd.DataFrame(rows))
    shown = [ax for ax in fig.axes if ax.get_visible()]
    assert [[t.get_text() for t in ax.get_yticklabels()] for ax in shown] == [["a", "b"], ["a"], ["b"]]
    assert all([t.get_text() for t in ax.get_xticklabels() if t.get_visible()] == ["a", "b"] and ax.xaxis.get_tick_params()["labelbottom"] for ax in shown)
