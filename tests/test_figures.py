"""Figures: what they refuse, that they draw what the table says, and that the same table gives the same bytes."""
import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from eci_sem import figures
from eci_sem.collection import InputError
from eci_sem.figures import QUANTILES, factor_distributions, length_quantiles, planted_curves, published_scores, ranking_bars, save_figure, source_styles, spectrum

SOURCES = [("bm25", "source"), ("dense", "source"), ("llm", "source"), ("bm25+dense", "hybrid"), ("bm25+llm", "hybrid"), ("dense+llm", "hybrid"), ("random", "control")]
LONG = "sentence-transformers/all-mpnet-base-v2"


def ranking(encoders=("minilm", "glove"), sources=SOURCES, scale=1.0):
    rng = np.random.default_rng(0)
    rows = [dict(encoder=e, source=s, kind=k, value=v * scale, lo=v * scale * 0.93, hi=v * scale * 1.06, rank=float(i // 2 + 1) if k != "control" else np.nan, n=600)
        for e in encoders for (i, (s, k)), v in zip(enumerate(sources), rng.uniform(0.1, 0.9, len(sources)))]
    return pd.DataFrame(rows)


def published(encoders=("DistilBERT",)): return ranking(encoders)[["encoder", "source", "kind", "value"]].rename(columns={"value": "score"})


def factors(encoders=("minilm",)):
    rng = np.random.default_rng(1)
    return pd.DataFrame([dict(encoder=e, source=s, factor=f, value=x * (1e-4 if f == "w" else 1)) for e in encoders for s, _ in SOURCES for f in "alw" for x in rng.beta(2, 3, 20)])


def eigenvalues(encoders=("minilm",)): return pd.DataFrame([dict(encoder=e, source=s, k=k, eigenvalue=1e-3 * k ** -(1 + j / 10)) for e in encoders for j, (s, _) in enumerate(SOURCES) for k in range(1, 41)])


def lengths(): return pd.DataFrame([dict(source=s, q05=10 + i, q25=30 + i, q50=50, q75=70.5, q95=110, mean=52, n=600) for i, (s, _) in enumerate(SOURCES)])


def planted(encoders=("minilm", "glove")): return pd.DataFrame([dict(encoder=e, change=c, measure=m, share=s, relative=v * s, lo=v * s - 0.1, hi=v * s + 0.1, expected=w, queries=300) for e in encoders for c, m, v, w in (("copies", "trace", -1.0, -1), ("copies", "mean hardness", 0.4, -1), ("random", "trace", -0.8, -1), ("random", "mean margin", 0.5, 1)) for s in (0.0, 0.25, 1.0)])


TABLES = {published_scores: published, ranking_bars: ranking, factor_distributions: factors, spectrum: eigenvalues, length_quantiles: lengths}
TABLES |= {planted_curves: planted}
CASES = [pytest.param(draw, table, id=draw.__name__) for draw, table in TABLES.items()]


@pytest.mark.parametrize("draw, make", CASES)
def test_redrawn_from_its_csv_the_bytes_are_the_same(draw, make, tmp_path):
    table = make()
    before = table.copy(deep=True)
    paths = save_figure(draw(table), table, "fig", tmp_path / "a", dict(seed=0))
    assert [p.name for p in paths] == ["fig.png", "fig.svg", "fig.csv", "fig.json"]
    pd.testing.assert_frame_equal(table, before) # the caller's table is left alone
    again = pd.read_csv(paths[2])
    for a, b in zip(paths[:2], save_figure(draw(again), again, "fig", tmp_path / "b", dict(seed=0))): assert a.read_bytes() == b.read_bytes(), a.name
    assert not list((tmp_path / "a").glob("*.tmp")) and not list((tmp_path / "a").glob(".*"))


def test_bytes_do_not_depend_on_settings_or_on_having_been_shown(tmp_path):
    import matplotlib
    plain = ranking_bars(ranking())
    first = save_figure(plain, ranking(), "fig", tmp_path / "a", {})
    with matplotlib.rc_context({"font.size": 20, "svg.hashsalt": "other", "svg.fonttype": "none", "savefig.dpi": 30, "lines.linewidth": 9, "savefig.bbox": "tight"}):
        shown = ranking_bars(ranking())
        assert shown._repr_png_()[:4] == b"\x89PNG" and matplotlib.rcParams["font.size"] == 20
        second = save_figure(shown, ranking(), "fig", tmp_path / "b", {})
    third = save_figure(plain, ranking(), "fig", tmp_path / "c", {})
    for a, b, c in zip(first, second, third): assert a.read_bytes() == b.read_bytes() == c.read_bytes(), a.name


def test_what_is_saved(tmp_path):
    from PIL import Image
    table = ranking()
    png, svg, csv, record = save_figure(ranking_bars(table), table, "fig", tmp_path / "new", dict(seed=3, parameters=dict(tau=0.05, seed=3), data="abc"))
    with Image.open(png) as im:
        assert im.size[0] == 7 * 200 and im.info["dpi"] == pytest.approx((200, 200), abs=0.1) and json.loads(im.text["eci_sem"])["seed"] == 3
    text = svg.read_text()
    assert "<dc:date>" not in text and "<text" not in text # no date; letters are paths, so no font is needed to show them
    saved = json.loads(record.read_text())
    assert saved["meta"] == dict(seed=3, parameters=dict(tau=0.05, seed=3), data="abc") and set(saved["versions"]) == {"eci_sem", "matplotlib", "seaborn", "numpy", "pandas"}
    assert saved["sha256"] == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (png, svg, csv)}
    drawn = pd.read_csv(csv, dtype=dict.fromkeys(("run", *saved["columns"]), str))
    assert {c: set(drawn.pop(c)) for c in ("run", *saved["columns"])} == {"run": {saved["run"]}, **{c: {str(x)} for c, x in saved["columns"].items()}} and saved["columns"]["run_seed"] == 3 # in each row, the run that made it
    pd.testing.assert_frame_equal(drawn, table, check_dtype=False)
    assert saved["draw"] == dict(function="ranking_bars", module="eci_sem.figures", options={}, text=["encoder", "source", "kind"])


def test_a_figure_is_saved_with_its_own_table_and_beside_no_other_of_its_name(tmp_path):
    from eci_sem.figures import save_table
    table, meta = ranking(), dict(parameters=dict(seed=0))
    with pytest.raises(InputError, match="fig was drawn by ranking_bars from another table than the one given"): save_figure(ranking_bars(table), table.assign(value=0.5), "fig", tmp_path, meta)
    with pytest.raises(InputError, match="column 'run' of the table of fig is one that save_figure adds"): save_figure(ranking_bars(table), table.assign(run="x"), "fig", tmp_path, meta)
    assert not list(tmp_path.iterdir())
    save_table(table, "scores", tmp_path, meta); save_figure(ranking_bars(table), table, "fig", tmp_path, meta)
    with pytest.raises(InputError, match="stem 'scores': a table of that name is in the folder"): save_figure(ranking_bars(table), table, "scores", tmp_path, meta)
    with pytest.raises(InputError, match="stem 'fig': a figure of that name has its own fig.csv"): save_table(table, "fig", tmp_path, meta)


def test_save_refuses_before_it_writes(tmp_path):
    table = ranking()
    fig = ranking_bars(table)
    with pytest.raises(InputError, match="stem 'a/b': expected a file name without folder or ending"): save_figure(fig, table, "a/b", tmp_path, {})
    with pytest.raises(InputError, match="meta can't be written as JSON"): save_figure(fig, table, "fig", tmp_path, dict(x=object()))
    with pytest.raises(InputError, match="meta can't be written as JSON"): save_figure(fig, table, "fig", tmp_path, dict(x=float("nan")))
    with pytest.raises(InputError, match="the table is list, expected a pandas DataFrame"): save_figure(fig, [], "fig", tmp_path, {})
    assert not list(tmp_path.iterdir())


def texts(fig):
    from matplotlib.text import Text
    hidden = {t for ax in fig.axes if not ax.get_visible() for t in ax.findobj(Text)}
    return [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]


STRESS = [(published_scores, published(("one", "two", "three", LONG))), (ranking_bars, ranking()), (ranking_bars, ranking(scale=1e-3)), (ranking_bars, ranking((LONG,))), (ranking_bars, ranking(("a", "b", LONG, "d"))),
    (factor_distributions, factors(("a", "intfloat/e5-base-v2"))), (spectrum, eigenvalues((LONG,))), (spectrum, eigenvalues(("a", "b")).assign(n=600)), (length_quantiles, lengths()),
    (ranking_bars, ranking((LONG,), [(f"{m}@{k}", "source") for m in ("bm25", "minilm", "glove") for k in (1, 5, 20, 50)] + [("random", "control")]))]


@pytest.mark.parametrize("draw, table", STRESS, ids=[f"{d.__name__}-{i}" for i, (d, _) in enumerate(STRESS)])
def test_readable_in_print(draw, table):
    fig = draw(table)
    assert fig.get_figwidth() in (figures.SINGLE, figures.DOUBLE)
    with figures.figure_style(): fig.draw_without_rendering()
    # a tick outside the limits keeps its label but is not drawn
    undrawn = {t for ax in fig.axes for labels, limits, k in ((ax.get_xticklabels(which="both"), ax.get_xlim(), 0), (ax.get_yticklabels(which="both"), ax.get_ylim(), 1)) for t in labels if not min(limits) <= t.get_position()[k] <= max(limits)}
    shown = [t for t in texts(fig) if t not in undrawn]
    assert shown and all(t.get_fontsize() >= 7 for t in shown)
    page = fig.bbox
    for t in shown:
        box = t.get_window_extent()
        assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1, f"{t.get_text()!r} is cut"
    for ax in fig.axes:
        if not ax.get_visible(): continue
        boxes = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text() and t.get_visible() and min(ax.get_xlim()) <= t.get_position()[0] <= max(ax.get_xlim())]
        boxes.sort(key=lambda b: b.x0)
        for a, b in zip(boxes, boxes[1:]): assert a.x1 < b.x0, "tick labels overlap"


def test_one_look_per_source():
    known = source_styles([s for s, _ in SOURCES] + ["cross-encoder"])
    assert len({s.colour for s in known.values()}) == len({s.marker for s in known.values()}) == 8
    assert source_styles(["llm+bm25"])["llm+bm25"] == known["bm25+llm"] and source_styles(["BM25"])["BM25"] == known["bm25"]
    own = source_styles(["mine", "bm25@5", "bm25@20", "mine+llm"])
    assert list(own) == ["mine", "bm25@5", "bm25@20", "mine+llm"] and own["bm25@5"].colour == own["bm25@20"].colour == known["bm25"].colour
    assert len({(s.colour, s.marker) for s in [*own.values(), *known.values()]}) == 12 and own["mine+llm"].label == "mine+LLM"
    assert source_styles(["other", "mine"])["mine"] == own["mine"] # whatever stands beside it


@pytest.mark.parametrize("draw, make", CASES)
def test_missing_column_is_named(draw, make):
    table = make()
    for column in [c for c in table.columns if c not in ("encoder",) or draw is not length_quantiles]:
        with pytest.raises(InputError, match=f"^{draw.__name__}: column '{column}' is missing; found .*, expected .*{column}"): draw(table.drop(columns=column))


def test_table_errors():
    t = ranking()
    for bad, message in [
        (t.to_dict("records"), "ranking_bars: the table is list, expected a pandas DataFrame"),
        (t.iloc[:0], "ranking_bars: the table has no rows"),
        (t.assign(value="0.1"), "ranking_bars: column 'value' holds str values, expected numbers"),
        (t.assign(value=[np.nan, *t["value"][1:]]), "ranking_bars: column 'value' is nan in row 0 (minilm, bm25, source), expected a finite number"),
        (t.assign(hi=[*t["hi"][:-1], np.inf]), "ranking_bars: column 'hi' is inf in row 13 (glove, random, control)"),
        (t.assign(kind="negatives"), "unknown kind in the table of ranking_bars 'negatives'. Known: control, hybrid, source."),
        (t.assign(lo=t["hi"] + 1), "ranking_bars: lo = "),
        (pd.concat([t, t]), "ranking_bars: minilm, bm25 occurs more than once; expected one row per encoder, source"),
        (t.assign(source=[None, *t["source"][1:]]), "ranking_bars: column 'source' holds a missing value, expected names"),
        (t.assign(encoder=3), "ranking_bars: column 'encoder' holds 3, expected names"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)): ranking_bars(bad)
    with pytest.raises(InputError, match="unknown factor in the table of factor_distributions 'roh'. Did you mean 'rho'"): factor_distributions(factors().assign(factor="roh"))
    with pytest.raises(InputError, match="length_quantiles: q50 = 50.0 is above q75 = 40.0 in row 0"): length_quantiles(lengths().assign(q75=40.0))
    with pytest.raises(InputError, match="spectrum: k = 0.0; eigenvalues are counted from 1"): spectrum(eigenvalues().assign(k=lambda d: d["k"] - 1))
    with pytest.raises(InputError, match="spectrum: no eigenvalue is above 0"): spectrum(eigenvalues().assign(eigenvalue=0.0))
    with pytest.raises(InputError, match="floor is 2"): spectrum(eigenvalues(), floor=2)


def test_bars_draw_the_table():
    t = ranking(("glove",), scale=-1.0).assign(lo=lambda d: d["value"] - 0.05, hi=lambda d: d["value"] + 0.02, metric="eci_net")
    fig = ranking_bars(t)
    (ax,) = fig.axes
    want = t.sort_values("value", ascending=False)
    assert [b.get_width() for b in ax.patches] == pytest.approx(want["value"].tolist())
    intervals = [line.get_xdata() for line in ax.lines if line.get_marker() == "|"]
    assert np.array(intervals) == pytest.approx(want[["lo", "hi"]].to_numpy())
    assert ax.get_xlabel() == "ECI_net (nats)" and "n = 600 queries" in ax.get_title()
    assert [p.get_hatch() for p in ax.patches].count("/////") == 1
    assert [t.get_text() for t in ax.get_yticklabels()] == [source_styles([s])[s].label for s in want["source"]]
    kept = ranking_bars(t, by_value=False).axes[0]
    assert [b.get_width() for b in kept.patches] == pytest.approx(t["value"].tolist())


def test_ties_are_joined_and_numbered():
    t = pd.DataFrame([dict(encoder="e", source=s, kind=k, value=v, lo=v, hi=v, rank=r, n=5) for s, k, v, r in [("bm25", "source", 0.9, 1), ("dense", "source", 0.8, 1), ("llm", "source", 0.7, 3), ("random", "control", 0.1, None)]])
    (ax,) = ranking_bars(t).axes
    assert [x.get_text() for x in ax.texts] == ["1", "3"] and ax.texts[0].get_position()[1] == 0.5
    joins = [line for line in ax.lines if line.get_xdata()[0] == 1.02]
    assert len(joins) == 1 and joins[0].get_ydata().tolist() == [-0.25, 1.25]
    nullable = t.assign(rank=pd.array([1, 1, 3, None], dtype="Int64"))
    assert ranking_bars(nullable)._repr_png_() == ranking_bars(t)._repr_png_()


def test_two_metrics_are_two_rows():
    both = pd.concat([ranking().assign(metric="eci_sem"), ranking().assign(metric="eci_net")])
    fig = ranking_bars(both)
    assert [ax.get_xlabel() for ax in fig.axes] == ["ECI_sem (nats)"] * 2 + ["ECI_net (nats)"] * 2


def test_small_values_carry_their_power_in_the_label():
    (ax,) = ranking_bars(ranking(("e",), scale=1e-3)).axes
    assert ax.get_xlabel() == "ECI_sem (1e-6 nats)"
    assert "500" in [t.get_text() for t in ax.get_xticklabels()]


def test_long_table_and_its_quantiles_draw_the_same():
    long = factors()
    groups = long.groupby(["encoder", "source", "factor"], sort=False)["value"]
    short = groups.quantile([0.05, 0.25, 0.5, 0.75, 0.95]).unstack()
    short.columns = list(QUANTILES)
    short = short.assign(mean=groups.mean(), n=groups.size()).reset_index()
    assert factor_distributions(long)._repr_png_() == factor_distributions(short)._repr_png_()
    (ax,) = length_quantiles(lengths()).axes
    assert {line.get_xdata()[0] for line in ax.lines if line.get_marker() not in ("None", None, "")} == {52} # the means


def test_spectrum_says_what_it_leaves_out():
    t = eigenvalues(("e",))
    t.loc[t["k"] > 38, "eigenvalue"] = 0.0
    fig = spectrum(t)
    assert fig.legends[0].get_title().get_text() == "14 of 280 eigenvalues under 1e-06 of the largest: not drawn"
    curves = [line for line in fig.axes[0].lines if line.get_linestyle() == "-" and len(line.get_xdata())]
    assert len(curves) == 7 and all(len(c.get_xdata()) == 38 for c in curves)
    assert [x.get_text() for x in fig.legends[0].get_texts()] == [source_styles([s])[s].label for s, _ in SOURCES]
    assert spectrum(eigenvalues(("e",))).legends[0].get_title().get_text() == ""


def test_published_digits_stand_beside_the_dots():
    fig = published_scores(published(("A",)).assign(score=0.117))
    assert [t.get_text() for t in fig.axes[0].texts] == ["0.1170"] * 7
    open_dots = [line for line in fig.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert len(open_dots) == 3


def test_import_is_light():
    code = "import sys, eci_sem.figures, eci_sem.published; sys.exit(bool({'matplotlib', 'seaborn', 'pandas', 'yaml'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_box_lies_within_its_panel():
    "A later encoder with larger weights is not cut off by the first one's axis."
    rows = [dict(encoder=e, source=s, factor=f, q05=0.0, q25=0.1 * k, q50=0.2 * k, q75=0.3 * k, q95=0.4 * k, mean=0.2 * k, n=5) for e, k in (("small", 0.1), ("large", 1.0)) for s in ("bm25", "llm") for f in ("a", "w")]
    figure = factor_distributions(pd.DataFrame(rows))
    for ax in figure.axes: assert ax.get_xlim()[1] > 0.4 and ax.get_xlim()[0] <= 0
    lengths = [dict(encoder=e, source="bm25", q05=1, q25=2, q50=3, q75=4, q95=hi, mean=3, n=5) for e, hi in (("small", 5), ("large", 500))]
    assert all(ax.get_xlim()[1] > 500 for ax in length_quantiles(pd.DataFrame(lengths)).axes)


def test_planted_curves_draws_each_curve_and_shades_the_expected_side():
    table = planted()
    axes = np.array(planted_curves(table.sample(frac=1, random_state=0).sort_values(["change", "measure"], kind="stable")).axes).reshape(3, 2)
    assert axes[0, 0].get_title() == "copies\nn = 300 queries" and [a.get_ylabel() for a in axes[:, 0]] == ["mean hardness", "trace", "mean margin"]
    lines = [line for line in axes[1, 1].lines if len(line.get_xdata()) == 3]
    assert len(lines) == 2 and all(line.get_xdata().tolist() == [0, 0.25, 1] and line.get_ydata().tolist() == [0, -0.2, -0.8] for line in lines)
    low, high = axes[1, 1].get_ylim()
    spans = {k: [tuple(sorted((round(p.get_y(), 9), round(p.get_y() + p.get_height(), 9)))) for p in ax.patches] for k, ax in (("down", axes[1, 1]), ("up", axes[2, 1]), ("none", axes[0, 1]))}
    assert spans["down"] == [(round(low, 9), 0)] and spans["up"] == [(0, round(axes[2, 1].get_ylim()[1], 9))] and spans["none"] == []
    assert [t.get_text() for t in axes[0, 1].texts] == ["undefined"] # hardness under random is not in the table
    with pytest.raises(InputError, match="lo = 1.0 is above hi"): planted_curves(table.assign(lo=1.0))
    # a change of a hundred times is written out, a small one is not rounded away
    for times, longest in ((1, "50%"), (200, "000%"), (1e-3, ".05%")):
        large = planted_curves(table.assign(**{c: table[c] * times for c in ("relative", "lo", "hi")}))
        large.canvas.draw()
        shown = [t.get_text() for ax in large.axes for t in ax.get_yticklabels()]
        assert not [t for t in shown if "e" in t] and any(t.endswith(longest) for t in shown), (times, shown)


def test_planted_curves_of_far_and_of_missing_values_can_be_read():
    table = planted()
    far = (table["change"] == "random") & (table["measure"] == "mean margin") & (table["encoder"] == "glove")
    rows = table.assign(hi=table["hi"].mask(far, 160.0)) # one band of 16,000 %
    fig = planted_curves(rows)
    axes = np.array(fig.axes).reshape(3, 2)
    assert [ax.get_yscale() for ax in axes[:, 0]] == ["linear", "linear", "symlog"]
    at = lambda v: axes[2, 1].transAxes.inverted().transform(axes[2, 1].transData.transform((0, v)))[1]
    assert at(0.5) - at(0) > 0.1 and 0 < at(0.4) and at(160) < 0.97 # the curves have room, and nothing is cut
    assert sorted(y.get_ydata()[0] for y in axes[2, 1].lines if y.get_linestyle() == ":") == [-1, 1] and not [y for y in axes[0, 1].lines if y.get_linestyle() == ":"]
    said = fig.legends[0].get_title().get_text()
    assert "beyond them logarithmic" in said and "undefined" not in planted_curves(table[table["measure"] == "trace"]).legends[0].get_title().get_text() and "logarithmic" not in planted_curves(table).legends[0].get_title().get_text()
    # a curve that ends, and one that is not there
    of = (table["measure"] == "trace") & (table["change"] == "copies")
    fig = planted_curves(table[~(of & (table["encoder"] == "glove")) & ~(of & (table["encoder"] == "minilm") & (table["share"] == 0.25))])
    ax = next(ax for ax in np.array(fig.axes).reshape(3, 2)[:, 0] if ax.get_ylabel() == "trace")
    assert [t.get_text() for t in ax.texts] == ["undefined"] * 2 and len({t.get_color() for t in ax.texts}) == 2 and "undefined: the measure has no value" in fig.legends[0].get_title().get_text()
    line, = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert np.isnan(line.get_ydata()[1]) # no line over a share without a value
