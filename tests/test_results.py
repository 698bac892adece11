"""Results: figures drawn again from their tables alone, and two runs compared table by table."""
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from eci_sem import figures
from eci_sem.cli import main
from eci_sem.collection import InputError
from eci_sem.figures import figure_versions, ranking_bars, save_figure, save_table
from eci_sem.download import digest
from eci_sem.results import compare_tables, read_manifest, redraw
from eci_sem.tables import RUN_COLUMNS, run_columns, run_digits

META = dict(parameters=dict(seed=0))


def scores(**changed): # a name that looks like a number, and one that looks like a missing value
    return pd.DataFrame([dict(encoder="1", source=s, kind=k, value=v, lo=v - 1e-3, hi=v + 1 / 3e3, rank=r, n=60) for s, k, v, r in (("NA", "source", 0.1, 1), ("02", "source", 0.3, 1), ("random", "control", 1 / 3, None))]).assign(**changed)


def saved(folder, stem="ranking", **options):
    table = scores()
    return save_figure(ranking_bars(table, **options), table, stem, folder, META)


# drawn again

def test_the_same_bytes_from_the_table_alone(tmp_path):
    png, svg, csv, record = saved(tmp_path / "a/b", counted="toys", by_value=False)
    before = [p.read_bytes() for p in (png, svg, csv, record)]
    assert redraw(tmp_path) == [("a/b/ranking", "same", "")]
    png.unlink(); svg.write_text("<svg>damaged</svg>")
    (found,) = redraw(tmp_path / "a")
    assert found[:2] == ("b/ranking", "changed") and [p.read_bytes() for p in (png, svg, csv)] == before[:3]
    assert redraw(tmp_path / "a", tmp_path / "a/b") == [("b/ranking", "same", ""), ("ranking", "same", "")]


def test_another_style_is_drawn_and_written_down(tmp_path, monkeypatch):
    png, svg, csv, record = saved(tmp_path / "cell")
    names = [p.name for p in (png, svg, csv, record)]
    entry = lambda: {n: dict(sha256=digest(tmp_path / "cell" / n, "sha256"), bytes=(tmp_path / "cell" / n).stat().st_size) for n in names}
    (tmp_path / "cell/manifest.json").write_text(json.dumps(dict(cell="c", status="ok", key="k", files=entry())))
    old, table = json.loads(record.read_text()), csv.read_bytes()
    monkeypatch.setattr(figures, "DPI", 100)
    assert redraw(tmp_path) == [("cell/ranking", "changed", "drawn by another version of the figure's function")]
    new = json.loads(record.read_text())
    assert new["sha256"]["ranking.png"] == digest(png, "sha256") != old["sha256"]["ranking.png"] and new["draw"] == old["draw"] and csv.read_bytes() == table
    m = read_manifest(tmp_path / "cell")
    assert m["files"] == entry() and m["redrawn"] == ["ranking"] # so a finished cell stays finished
    record.write_text(json.dumps({**new, "versions": {**new["versions"], "matplotlib": "2.0"}})); png.unlink()
    assert redraw(tmp_path)[0].why == f"drawn with matplotlib 2.0, now {figure_versions()['matplotlib']}"


def test_what_is_not_drawn_and_why(tmp_path, capsys):
    *_, csv, record = saved(tmp_path)
    good, table = json.loads(record.read_text()), csv.read_text()
    pixels = (tmp_path / "ranking.png").read_bytes()
    def state(**changed):
        record.write_text(json.dumps({**good, **changed}))
        (found,) = redraw(tmp_path)
        return found.state, found.why
    assert state() == ("same", "")
    csv.write_text(table.replace("0.3,", "0.4,"))
    assert state() == ("not drawn", "ranking.csv is not the table that was drawn: it was changed after the run")
    csv.unlink()
    assert state() == ("not drawn", "ranking.csv is not there; the run's folder has it")
    csv.write_text(table)
    assert state(draw=None)[1].startswith("its record does not say which function drew it")
    for module, function in (("eci_sem.figures", "lost"), ("eci_sem.lost", "ranking_bars"), ("os", "system"), ("subprocess", "run"), ("eci_sem.figures", "save_figure"), ("eci_sem.cli", "main")):
        assert state(draw={**good["draw"], "module": module, "function": function}) == ("not drawn", f"there is no function {module}.{function} of figures")
    assert "spectrum: column 'k' is missing" in state(draw={**good["draw"], "function": "spectrum"})[1]
    assert main(["redraw", str(tmp_path)]) == 1 and "ranking  not drawn  spectrum: column" in capsys.readouterr().out
    assert (tmp_path / "ranking.png").read_bytes() == pixels
    for folder, match in (("lost", "no such folder"), ("empty", "no saved figure")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert main(["redraw", str(tmp_path / folder)]) == 2 and match in capsys.readouterr().err


def test_each_function_that_gives_a_figure_can_be_drawn_again(root):
    import importlib
    import inspect
    found = []
    for path in sorted((root / "eci_sem").glob("[a-z]*.py")):
        if '-> "Figure"' not in path.read_text(): continue
        module = importlib.import_module(f"eci_sem.{path.stem}")
        for name in module.__all__:
            f = getattr(module, name, None)
            if inspect.isfunction(f) and inspect.signature(f).return_annotation == "Figure": found.append(name); assert hasattr(f, "__wrapped__"), f"{path.stem}.{name} has no @_redrawable: eci-sem redraw could not draw it"
    assert {"ranking_bars", "spectrum"} <= set(found)


TABLES = sorted(p for p in (Path(__file__).resolve().parents[1] / "figures").rglob("*.csv"))

@pytest.mark.parametrize("path", TABLES, ids=lambda p: "/".join(p.parts[p.parts.index("figures") + 1:]))
def test_each_row_of_a_committed_table_tells_its_run(path):
    record = next(p for p in (path.with_name(f"{path.stem}.run.json"), path.with_suffix(".json")) if p.exists())
    saved = json.loads(record.read_text())
    found = pd.read_csv(path, dtype=str, keep_default_na=False)[["run", *RUN_COLUMNS]].drop_duplicates().to_dict("records")
    assert found == [dict(run=saved["run"], **{k: "" if v is None else str(v) for k, v in saved["columns"].items()})] or not found
    parameters, seed = saved["meta"]["parameters"], saved["columns"]["run_seed"]
    assert seed == parameters.get("seed") and saved["columns"]["run_parameters"] == run_digits(run_columns(saved["meta"]))["run_parameters"]
    assert saved["sha256"][path.name] == hashlib.sha256(path.read_bytes()).hexdigest()
    if path.with_suffix(".parquet").exists(): # where the digits' texts are
        full = pd.read_parquet(path.with_suffix(".parquet"), columns=list(RUN_COLUMNS)).drop_duplicates().astype(object).to_dict("records")
        assert [run_digits(x) for x in full] == [saved["columns"]] or not full


COMMITTED = sorted(p for p in (Path(__file__).resolve().parents[1] / "figures").rglob("*.json") if p.with_suffix(".svg").exists() and '"draw"' in p.read_text())


def assert_looks_the_same(one: Path, two: Path) -> None:
    "Bytes are equal on one machine; another processor rounds sines and logarithms otherwise, which may move a line by a hundredth of a point."
    if one.read_bytes() == two.read_bytes(): return
    if one.suffix == ".png":
        from PIL import Image
        a, b = (np.asarray(Image.open(p).convert("RGB"), float) for p in (one, two))
        assert a.shape == b.shape and np.abs(a - b).mean() < 0.02 and (np.abs(a - b).max(axis=2) > 64).mean() < 1e-4, f"{one.name}: another picture"
    else:
        number = r"-?\d+(?:\.\d+)?(?:e[-+]?\d+)?"
        a, b = (re.sub(r"\b[mp][0-9a-f]{10}\b", "id", p.read_text()) for p in (one, two)) # ids of markers and clips are hashes of their paths
        assert re.sub(number, "#", a) == re.sub(number, "#", b), f"{one.name}: other texts or other lines"
        np.testing.assert_allclose(*([float(x) for x in re.findall(number, s)] for s in (a, b)), rtol=0, atol=0.01, err_msg=one.name)


def labels_that_meet(fig) -> list[str]:
    "Neighbours among the tick labels of an axis that run into each other."
    found = []
    for ax in (ax for ax in fig.axes if ax.get_visible()):
        for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
            seen = [(t.label1.get_text(), t.label1.get_window_extent().padded(-0.5)) for t in axis.get_major_ticks() if low <= t.get_loc() <= high and t.label1.get_visible() and t.label1.get_text()]
            found += [f"{ax.get_title()!r}: {one} and {two}" for i, (one, a) in enumerate(seen) for two, b in seen[i + 1:] if a.overlaps(b)]
    return found


@pytest.mark.parametrize("record", COMMITTED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_committed_figures_are_drawn_again_from_their_tables(record, tmp_path, monkeypatch):
    import shutil
    from eci_sem import figures
    drawn, files = [], figures.figure_files
    monkeypatch.setattr(figures, "figure_files", lambda fig, meta: (files(fig, meta), drawn.append(fig))[0])
    for path in record.parent.glob(f"{record.stem}.*"): shutil.copy(path, tmp_path)
    (found,) = redraw(tmp_path)
    assert [labels_that_meet(fig) for fig in drawn] == [[]]
    assert found.state != "not drawn", found.why
    assert (tmp_path / f"{record.stem}.csv").read_bytes() == record.with_suffix(".csv").read_bytes()
    if json.loads(record.read_text())["versions"] == figure_versions():
        for kind in ("png", "svg"): assert_looks_the_same(tmp_path / f"{record.stem}.{kind}", record.with_suffix(f".{kind}")) # if not: eci-sem redraw figures


def test_tick_labels_that_meet_are_told_and_left_out():
    import matplotlib.pyplot as plt
    from eci_sem.figures import _roomy
    label = lambda v, _: f"{v:g}"
    def drawn(ticks):
        fig, ax = plt.subplots(figsize=(3.3, 2), layout="constrained")
        ax.set(xscale="log", xlim=(0.009, 1.1)); ax.set_xticks(ticks(ax)); ax.xaxis.set_major_formatter(label); ax.xaxis.minorticks_off()
        fig.draw_without_rendering(); plt.close(fig)
        return fig
    close = [0.01, 0.0316, 0.05, 0.1, 1]
    assert labels_that_meet(drawn(lambda ax: close)) == ["'': 0.0316 and 0.05"]
    for first, kept in (([0.05], [0.01, 0.05, 0.1, 1]), ([0.0316], [0.01, 0.0316, 0.1, 1])):
        assert labels_that_meet(drawn(lambda ax: _roomy(ax, close, label, first))) == [] and drawn(lambda ax: _roomy(ax, close, label, first)).axes[0].get_xticks().tolist() == kept
    assert drawn(lambda ax: _roomy(ax, [1, 0.01], label)).axes[0].get_xticks().tolist() == [0.01, 1]


def test_another_picture_is_told(tmp_path):
    (tmp_path / "a.svg").write_text('<path d="M 1.5 20.25" id="m0123456789"/><text>n = 20</text>')
    (tmp_path / "b.svg").write_text('<path d="M 1.505 20.25" id="mabcdef6789"/><text>n = 20</text>') # rounding
    assert_looks_the_same(tmp_path / "a.svg", tmp_path / "b.svg")
    for text in ('<path d="M 1.52 20.25" id="m0123456789"/><text>n = 20</text>', '<path d="M 1.5 20.25" id="m0123456789"/><text>n = 21</text>', '<path d="M 1.5 20.25" id="m0123456789"/><text>N = 20</text>'):
        (tmp_path / "b.svg").write_text(text)
        with pytest.raises(AssertionError): assert_looks_the_same(tmp_path / "a.svg", tmp_path / "b.svg")
    from PIL import Image
    pixels = np.full((100, 100, 3), 255, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pixels[50, 50:52] = 0
    Image.fromarray(pixels).save(tmp_path / "b.png")
    with pytest.raises(AssertionError): assert_looks_the_same(tmp_path / "a.png", tmp_path / "b.png")


def test_there_is_a_committed_figure_that_can_be_drawn_again(): assert COMMITTED


# compared

def cell(folder, name, tables, started="2026-01-01", status="ok"):
    folder.mkdir(parents=True)
    for stem, frame in tables.items(): save_table(frame, stem, folder, META)
    (folder / "notes.txt").write_text(started)
    (folder / "manifest.json").write_text(json.dumps(dict(cell=name, status=status, key="k", started=started, files={p.name: dict(bytes=1, sha256="") for p in folder.iterdir()})))


def verdicts(one, two, **how): return {c.table: (c.verdict, c.detail) for c in compare_tables(one, two, **how)}


def test_tables_are_compared_cell_by_cell(tmp_path):
    t = scores()
    a, b = tmp_path / "a", tmp_path / "b/smoke"
    cell(a / "one-111", "one", {"x": t, "y": t})
    cell(a / "old/two-000", "two", {"x": t.assign(value=9.0)}, started="2025-01-01")
    cell(a / "old/two-111", "two", {"x": t}); cell(a / "three-111", "three", {"x": t}, status="failed")
    cell(b / "one-222", "one", {"x": t, "z": t}); cell(b / "group/two-222", "two", {"x": t.assign(value=t["value"] + 1e-9)})
    found = verdicts(a, b)
    assert found == {**{f"one/x.{k}": ("same", "") for k in ("csv", "parquet")}, **{f"one/{s}.{k}": ("missing", f"only in {f}") for s, f in (("y", "a"), ("z", "smoke")) for k in ("csv", "parquet")},
        **{f"two/x.{k}": ("differs", f"value in row 1: 0.3 against {0.3 + 1e-9}") for k in ("csv", "parquet")}}
    assert set(verdicts(a, b, only=["two"], tolerance=1e-8).values()) == {("close", "numbers differ by at most 1.0e-09")}
    with pytest.raises(InputError, match="no finished cell with a table is in it"): compare_tables(a, tmp_path / "nothing")


def test_tables_of_measured_times_are_not_compared_where_both_runs_say_so(tmp_path):
    t = scores()
    for run, value in (("a", t["value"]), ("b", t["value"] + 1)):
        for name in ("timed", "half", "other"):
            cell(tmp_path / run / f"{name}-111", name, {"x": t.assign(value=value)})
            path = tmp_path / run / f"{name}-111/manifest.json"
            result = {"timed": dict(measured="seconds"), "half": dict(measured="seconds") if run == "a" else dict(), "other": [1]}[name]
            path.write_text(json.dumps({**json.loads(path.read_text()), "result": result}))
    found = verdicts(tmp_path / "a", tmp_path / "b")
    assert {k: v for k, (v, _) in found.items()} == {f"{n}/x.{k}": v for n, v in (("timed", "measured"), ("half", "differs"), ("other", "differs")) for k in ("csv", "parquet")}


@pytest.mark.parametrize("change, tolerance, verdict", [
    (dict(value=lambda t: t["value"] * (1 + 1e-7)), 1e-6, "close"), (dict(value=lambda t: t["value"] * (1 + 1e-5)), 1e-6, "differs"),
    (dict(value=lambda t: t["value"] * 1e6), 0.9, "differs"), (dict(n=lambda t: t["n"] + 1), 0.01, "differs"), (dict(n=lambda t: t["n"] + 1), 0.02, "close"), # relative above 1
    (dict(source=["NA", "02", "Random"]), 1.0, "differs"), (dict(rank=[1, None, 1]), 1e9, "differs"), (dict(rank=[1, 1, np.inf]), 1e9, "differs"), (dict(kind="source"), 1.0, "differs"),
])
def test_close_and_not_close(tmp_path, change, tolerance, verdict):
    cell(tmp_path / "a/one", "one", {"x": scores()}); cell(tmp_path / "b/one", "one", {"x": scores(**change)})
    assert {v for v, _ in verdicts(tmp_path / "a", tmp_path / "b", tolerance=tolerance).values()} == {verdict}


def test_rows_columns_and_runs(tmp_path):
    cell(tmp_path / "a/one", "one", {"x": scores()}); cell(tmp_path / "b/one", "one", {"x": scores().iloc[:2]}); cell(tmp_path / "c/one", "one", {"x": scores().rename(columns={"n": "m"})})
    for other in "bc": assert {v for v, _ in verdicts(tmp_path / "a", tmp_path / other, tolerance=1e9).values()} == {"differs"}
    cell(tmp_path / "d/one", "one", {})
    for path in save_table(scores(), "x", tmp_path / "d/one", dict(parameters=dict(seed=1))): pass
    m = json.loads((tmp_path / "d/one/manifest.json").read_text())
    (tmp_path / "d/one/manifest.json").write_text(json.dumps({**m, "files": {"x.csv": {}, "x.parquet": {}}}))
    assert set(verdicts(tmp_path / "a", tmp_path / "d").values()) == {("close", "the run's columns differ, or how the numbers are written")}


def test_import_is_light():
    code = "import sys, eci_sem.results, eci_sem.runs; sys.exit(bool({'matplotlib', 'pandas', 'numpy', 'yaml', 'papermill', 'pyarrow'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_a_notebook_says_in_words_is_kept(tmp_path):
    from eci_sem.results import findings
    said = lambda text, **more: dict(cell_type="code", source=["x"], outputs=[dict(output_type="display_data", data={"text/markdown": [text], "text/plain": ["<Markdown>"]}, **more)])
    prose = lambda text: dict(cell_type="markdown", source=[text])
    cells = [prose("# The question\n\n> In short."), prose("## First"), said("**a** is ahead"), dict(cell_type="code", source=["y"], outputs=[dict(output_type="stream", text=["1 of 2"])]), said("b is not"), dict(cell_type="code", source=["z"], outputs=[*said("**caption**")["outputs"], dict(output_type="display_data", data={"text/html": ["<table>"]})]), prose("## Second\n\nWhy."), prose("## Third"), said("c")]
    (tmp_path / "n.ipynb").write_text(json.dumps(dict(cells=cells)))
    assert findings(tmp_path / "n.ipynb") == "# The question\n\n## First\n\n**a** is ahead\n\nb is not\n\n## Third\n\nc\n"
    (tmp_path / "n.ipynb").write_text(json.dumps(dict(cells=[cells[0], cells[3]])))
    assert findings(tmp_path / "n.ipynb") == ""
