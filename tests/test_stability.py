"""Figures of stability: they draw what the table says, refuse what they can't draw, and give the same bytes from their CSV."""
import numpy as np
import pandas as pd
import pytest

from eci_sem.collection import InputError
from eci_sem.figures import save_figure
from eci_sem.stability import order_curves, setting_curves, stability_dots


def curves(encoders=("minilm",), shift=0.0):
    rows = [dict(encoder=e, metric=m, source=s, x=t, value=t ** p - shift, lo=0.9 * t ** p - shift, hi=1.1 * t ** p - shift) for e in encoders for m in ("eci_sem", "eci_net") for s, p in (("bm25", 1.0), ("dense@5", 0.5), ("random", 2.0)) for t in (0.01, 0.1, 1.0)]
    return pd.DataFrame(rows)


def shares(encoders=("minilm",)): return pd.DataFrame([dict(encoder=e, metric=m, set=s, x=n, share=0.5 + n / 1000, lo=0.4 + n / 1000, hi=0.55 + n / 1000) for e in encoders for m in ("eci_sem", "eci_net") for s in ("methods", "all") for n in (25, 50, 400)])


def taus(encoders=("minilm", "glove")):
    found = (("temperature", "0.01", 0.33, -0.33, 1.0), ("temperature", "1", 1.0, 0.33, 1.0), ("tokenizer", "stem", 1.0, 1.0, 1.0), ("gain", "d", -1.0, -1.0, -0.5))
    return pd.DataFrame([dict(encoder=e, ablation=a, setting=s, tau=t, lo=lo, hi=hi, same_first=int(t > 0.5)) for e in encoders for a, s, t, lo, hi in found])


CASES = [pytest.param(draw, make, id=draw.__name__) for draw, make in ((setting_curves, curves), (order_curves, shares), (stability_dots, taus))]


@pytest.mark.parametrize("draw, make", CASES)
def test_drawn_again_from_its_csv_the_bytes_are_the_same(draw, make, tmp_path):
    table = make()
    before = table.copy(deep=True)
    first = save_figure(draw(table), table, "fig", tmp_path / "a", dict(seed=0))
    pd.testing.assert_frame_equal(table, before)
    again = pd.read_csv(first[2])
    for a, b in zip(first[:2], save_figure(draw(again), again, "fig", tmp_path / "b", dict(seed=0))): assert a.read_bytes() == b.read_bytes(), a.name


@pytest.mark.parametrize("draw, make", CASES)
def test_what_is_missing_or_out_of_order_is_named(draw, make):
    table = make()
    for column in table.columns:
        with pytest.raises(InputError, match=f"^{draw.__name__}: column '{column}' is missing; found .*, expected .*{column}"): draw(table.drop(columns=column))
    with pytest.raises(InputError, match=f"^{draw.__name__}: lo = 9.0 is above hi = .* in row 0"): draw(table.assign(lo=9.0))
    with pytest.raises(InputError, match=f"^{draw.__name__}: .* occurs more than once"): draw(pd.concat([table, table]))


def test_setting_curves_draw_every_source_and_choose_the_scale():
    fig = setting_curves(curves(("a", "b")).assign(n=60), "temperature tau", default=0.05)
    assert [ax.get_ylabel() for ax in fig.axes] == ["ECI_sem (nats)", "", "ECI_net (nats)", ""]
    assert [ax.get_title() for ax in fig.axes] == ["a, n = 60 triples", "b, n = 60 triples"] * 2
    ax = fig.axes[0]
    assert ax.get_yscale() == ax.get_xscale() == "log" and len(ax.collections) == 3 # a band each
    drawn = {line.get_marker(): line for line in ax.lines if len(line.get_xdata()) == 3}
    assert drawn["o"].get_ydata().tolist() == [0.01, 0.1, 1.0] and drawn["X"].get_linestyle() == "--"
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [0.05]
    assert setting_curves(curves(shift=0.02)).axes[0].get_yscale() == "linear" # nothing below zero on a logarithmic axis
    with pytest.raises(InputError, match=r"setting_curves: x is 0.0, expected numbers above 0: the axis is logarithmic"): setting_curves(curves().assign(x=lambda f: f["x"] - 0.01))


def test_order_curves_have_a_line_per_metric_and_set():
    fig = order_curves(shares(("a", "b")).assign(resamples=200), "queries")
    assert [ax.get_title() for ax in fig.axes] == ["a, n = 200 draws a size", "b, n = 200 draws a size"]
    assert [t.get_text() for t in fig.legends[0].get_texts()] == ["ECI_sem, methods", "ECI_sem, all", "ECI_net, methods", "ECI_net, all"]
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["25", "50", "400"]
    assert fig.axes[0].lines[0].get_ydata().tolist() == [0.525, 0.55, 0.9]


def test_stability_dots_group_the_settings_and_leave_gaps_empty():
    table = taus()
    table.loc[table["setting"] == "stem", ["tau", "lo", "hi"]] = np.nan
    ax = stability_dots(table, threshold=0.8).axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["temperature", "0.01", "1", "tokenizer", "stem", "gain", "d"]
    assert [t.get_text() for t in ax.get_yticklabels() if t.get_fontweight() == "bold"] == ["temperature", "tokenizer", "gain"]
    dots = {line.get_ydata()[0]: (line.get_xdata()[0], line.get_markerfacecolor()) for line in ax.lines if line.get_marker() in "oD" and len(line.get_xdata()) == 1}
    assert dots[1] == (0.33, "white") and dots[2] == (1.0, "#0072B2") and dots[6] == (-1.0, "white") and np.isnan(dots[4][0])
    assert {1: [-0.33, 1.0], 2: [0.33, 1.0], 6: [-1.0, -0.5]}.items() <= {line.get_ydata()[0]: list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]}.items()
    assert 0.8 in [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]


def test_a_block_that_compares_another_number_of_sources_says_so():
    table = pd.concat([taus(), taus().query("ablation == 'gain'").assign(ablation="sample size", setting="25")], ignore_index=True)
    table["sources"] = [3 if a == "tokenizer" else 8 for a in table["ablation"]]
    def drawn(t): return (fig := stability_dots(t)), [x.get_text() for x in fig.axes[0].get_yticklabels() if x.get_fontweight() == "bold"], " ".join(fig.get_supxlabel().split())
    _, blocks, note = drawn(table)
    assert blocks == ["temperature", "tokenizer (n = 3)", "gain", "sample size"] and "n: sources in order, 8 where a block names no other number" in note
    assert "open: another (sample size: in under 97.5 % of the subsamples)" in note
    _, blocks, note = drawn(table.query("ablation == 'gain'"))
    assert blocks == ["gain"] and note.endswith("n: sources in order, 8") and "subsamples" not in note
    assert "n: sources" not in drawn(taus())[2]
