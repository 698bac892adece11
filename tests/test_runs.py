"""The papermill runner: what is refused before anything runs, what a batch leaves behind, and what a kill does not break."""
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eci_sem.collection import InputError
from eci_sem.results import TABLE_LIMIT
from eci_sem.runs import Estimate, answer, collect, drop_progress_bars, estimates, find_root, inspect_notebook, make_readme, package_hash, plan, profile_names, read_manifest, run, versions

GOOD = ["n: int = 3 # rows\nscale: float = 1.0\nseed: int = 0\nout: str = ''", """
import json, os
from pathlib import Path
folder = Path(out)
(folder / "more").mkdir()
(folder / "table.csv").write_text("n,square\\n" + "".join(f"{i},{i * i * scale}\\n" for i in range(n)))
(folder / "more/plot.svg").write_text("<svg/>")
(folder / "plot.png").write_bytes(b"\\x89PNG")
(folder / "notes.txt").write_text("not for figures/")
(folder / "result.json").write_text(json.dumps({"collection": "abc123"}))
print("kernel in", os.path.basename(os.getcwd()))"""]


def write_notebook(path: Path, *cells: str, tags=("parameters",), kernelspec=True, outputs=()) -> Path:
    code = [dict(cell_type="code", id=f"c{i}", execution_count=None, outputs=list(outputs), metadata=dict(tags=list(tags)) if i == 0 and tags else {}, source=s) for i, s in enumerate(cells)]
    metadata = dict(kernelspec=dict(name="python3", display_name="python3", language="python")) if kernelspec else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=code, metadata=metadata, nbformat=4, nbformat_minor=5)))
    return path


def make_root(folder: Path) -> Path:
    "A checkout in miniature: a package of its own, so that the real one may change meanwhile."
    (folder / "nbs/experiments").mkdir(parents=True)
    (folder / "eci_sem").mkdir()
    (folder / "eci_sem/core.py").write_text("x = 1\n")
    write_notebook(folder / "nbs/experiments/good.ipynb", *GOOD)
    return folder.resolve()


def make_plan(root: Path, cells: str, name: str = "small"):
    (root / f"{name}.yaml").write_text(f"cells:\n{cells}")
    return plan(root / f"{name}.yaml", root=root)


@pytest.fixture
def tiny(tmp_path): return make_root(tmp_path)


# before anything runs

@pytest.mark.parametrize("cells, tags, kernelspec, match", [
    (["n = 1"], (), True, "no cells are tagged 'parameters', expected exactly one; tag the cell that holds the defaults"),
    (["import os"], ("parameters",), True, "the parameters cell holds 'import os', expected only lines such as"),
    (["n = 1\nprint(n)"], ("parameters",), True, r"the parameters cell holds 'print\(n\)'"),
    (["n = 1 + 1"], ("parameters",), True, "parameter 'n' has the default '1 \\+ 1', which is no literal; compute it in the next cell"),
    (["n = len('ab')"], ("parameters",), True, "which is no literal"),
    (["n: int"], ("parameters",), True, "the parameters cell holds 'n: int'"),
    (["a = b = 1"], ("parameters",), True, "the parameters cell holds 'a = b = 1'"),
    (["a, b = 1, 2"], ("parameters",), True, "the parameters cell holds 'a, b = 1, 2'"),
    (["n = 1\nn = 2"], ("parameters",), True, "parameter 'n' is given twice"),
    (["n = (1"], ("parameters",), True, r"not valid Python \(line 1: "),
    (["n = 1"], ("parameters",), False, "no kernelspec; open it with the kernel python3"),
])
def test_notebooks_that_cant_take_parameters(tmp_path, cells, tags, kernelspec, match):
    path = write_notebook(tmp_path / "nbs/x.ipynb", *cells, tags=tags, kernelspec=kernelspec)
    with pytest.raises(InputError, match=match) as e: inspect_notebook(path, tmp_path)
    assert str(e.value).startswith("nbs/x.ipynb: ")


def test_two_tagged_cells_no_notebook_and_no_json(tmp_path):
    path = write_notebook(tmp_path / "x.ipynb", "n = 1", "m = 1")
    notebook = json.loads(path.read_text())
    notebook["cells"][1]["metadata"]["tags"] = ["parameters"]
    path.write_text(json.dumps(notebook))
    with pytest.raises(InputError, match="2 cells are tagged 'parameters', expected exactly one; leave the tag on one"): inspect_notebook(path)
    with pytest.raises(InputError, match="no such notebook"): inspect_notebook(tmp_path / "y.ipynb")
    path.write_text("{")
    with pytest.raises(InputError, match="not a notebook"): inspect_notebook(path)


def test_defaults_types_and_comments_are_read(tmp_path):
    source = "a: int = 1 # one\nb = -0.5\nc: list[str] = []\nd: int | None = None # perhaps\ne = None\nf = [1, 2]\ng: 'odd' = 'x'\nh = True\ni = {'k': 1}\nj = '# no comment'"
    found = inspect_notebook(write_notebook(tmp_path / "x.ipynb", source)).parameters
    assert {k: (p.default, p.kinds, p.element, p.comment) for k, p in found.items()} == {
        "a": (1, ("int",), None, "one"), "b": (-0.5, ("float",), None, ""), "c": ([], ("list",), "str", ""), "d": (None, ("int", "None"), None, "perhaps"), "e": (None, (), None, ""),
        "f": ([1, 2], ("list",), "int", ""), "g": ("x", ("str",), None, ""), "h": (True, ("bool",), None, ""), "i": ({"k": 1}, ("dict",), None, ""), "j": ("# no comment", ("str",), None, "")}
    yes = {"a": [0, -3], "b": [1, 2.5], "c": [[], ["x"]], "d": [None, 4], "e": [None, "x", [1]], "f": [[], [3]], "h": [False], "i": [{}]}
    no = {"a": [True, 1.0, "1", None, [1]], "b": ["1", False, None], "c": ["x", [1], ["x", 1]], "d": ["x", 1.5, True], "f": [["x"], [1.5], [True], 3], "h": [1, 0, "yes"], "i": [[]], "j": [1]}
    assert not [(k, v) for k, values in yes.items() for v in values if not found[k].accepts(v)]
    assert not [(k, v) for k, values in no.items() for v in values if found[k].accepts(v)]


@pytest.mark.parametrize("parameters, match", [
    ("{sede: 1}", "unknown parameter of nbs/experiments/good.ipynb in profile 'small', cell 'a': 'sede'. Did you mean 'seed'\\? Known: n, out, scale, seed"),
    ("{n: many}", "profile 'small', cell 'a': parameter 'n' is str 'many', expected int \\(default 3 in nbs/experiments/good.ipynb\\)"),
    ("{n: 2.5}", "parameter 'n' is float 2.5, expected int"),
    ("{n: true}", "parameter 'n' is bool True, expected int"),
    ("{out: x}", "'out' is set by the runner"),
    ("[n]", "'parameters' is list, expected a mapping"),
])
def test_parameters_are_checked_before_the_run(tiny, parameters, match):
    with pytest.raises(InputError, match=match): make_plan(tiny, f"  - {{name: a, notebook: experiments/good, parameters: {parameters}}}")


@pytest.mark.parametrize("text, match", [
    ("cells: [", r"wrong.yaml:1: not valid YAML"),
    ("cells: []", "expected a mapping with 'cells'"),
    ("- a", "expected a mapping with 'cells'"),
    ("cells: [a]", "cell 1: found str, expected a mapping"),
    ("cells: [{name: a}]", "cell 1: 'notebook' is None, expected text"),
    ("cells: [{name: a, notebok: x}]", "unknown key of profile 'wrong', cell 1 'notebok'. Did you mean 'notebook'"),
    ("cels: []\ncells: [{name: a, notebook: x}]", "unknown key of profile 'wrong' 'cels'. Did you mean 'cells'"),
    ("cells: [{name: ../a, notebook: x}]", "name '../a'; it becomes a folder"),
    ("cells: [{name: a/b/c, notebook: x}]", "name 'a/b/c'; it becomes a folder.* at most one '/'"),
    ("cells: [{name: a/b, notebook: x}, {name: a, notebook: y}]", "cell 'a/b' lies in the folder of the cell 'a'; rename one"),
    ("cells: [{name: a, notebook: x, part: 2}]", "cell 1: 'part' is int, expected text"),
    ("cells: [{name: a, notebook: x, needs: [b]}]", "cell 1: 'needs' is list, expected a mapping"),
    ("cells: [{name: a, notebook: x}, {name: a, notebook: y}]", "two cells have the name 'a'"),
    ("cells: [{name: a, notebook: experiments/none}]", "nbs/experiments/none.ipynb: no such notebook"),
])
def test_profiles_are_checked(tiny, text, match):
    (tiny / "wrong.yaml").write_text(text)
    with pytest.raises(InputError, match=match): plan(tiny / "wrong.yaml", root=tiny)


def test_unknown_names_and_no_checkout(tiny, tmp_path):
    with pytest.raises(InputError, match=r"unknown profile 'offlin'. Did you mean 'offline'\? Known: full, offline, paper, smoke. Or give the path of a .yaml file"): plan("offlin")
    with pytest.raises(InputError, match="nowhere.yaml: no such file"): plan(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="holds no folder nbs: experiments are notebooks of the repository"): find_root(tmp_path / "eci_sem")
    p = make_plan(tiny, "  - {name: alpha, notebook: experiments/good}")
    with pytest.raises(InputError, match="unknown cell of profile 'small' 'alhpa'. Did you mean 'alpha'"): run(p, only="alhpa")
    with pytest.raises(InputError, match="jobs = 0: expected 1 or more"): run(p, jobs=0)
    assert not (tiny / "runs").exists()


def test_the_key_follows_what_a_result_depends_on(tiny):
    cells = "  - {name: a, notebook: experiments/good, parameters: {n: %d}}"
    key = make_plan(tiny, cells % 2).cells[0].key
    assert make_plan(tiny, cells % 2).cells[0].key == key
    assert make_plan(tiny, cells % 4).cells[0].key != key
    # a default written out is the same run
    assert make_plan(tiny, cells % 3).cells[0].key == make_plan(tiny, "  - {name: a, notebook: experiments/good.ipynb}").cells[0].key
    for same in ("_modidx", "profiles", "runs", "results", "cli"): (tiny / f"eci_sem/{same}.py").write_text("d = 1")
    (tiny / "eci_sem/data/profiles").mkdir(parents=True); (tiny / "eci_sem/data/profiles/x.yaml").write_text("")
    write_notebook(tiny / "nbs/experiments/good.ipynb", *GOOD, outputs=[dict(output_type="stream", name="stdout", text="hello")])
    assert make_plan(tiny, cells % 2).cells[0].key == key
    before = package_hash(tiny)
    (tiny / "eci_sem/core.py").write_text("x = 2\n")
    assert package_hash(tiny) != before and make_plan(tiny, cells % 2).cells[0].key != key
    (tiny / "eci_sem/core.py").write_text("x = 1\n")
    assert make_plan(tiny, cells % 2).cells[0].key == key
    write_notebook(tiny / "nbs/experiments/good.ipynb", *GOOD, "1 + 1")
    assert make_plan(tiny, cells % 2).cells[0].key != key


def test_versions_are_those_of_the_requirements():
    found = versions()
    assert {"python", "eci_sem", "numpy", "torch", "papermill"} <= set(found) and "+" not in found["torch"] and "pytest" not in found
    # what evaluates and trains counts where it is installed; what only shows, serves or spreads work does not
    assert {"beir", "pytrec_eval-terrier", "accelerate", "tokenizers"} <= set(found) and not {"ray", "openai", "jupyterlab"} & set(found)


# a batch

BATCH = """
  - {name: good, notebook: experiments/good, parameters: {n: 2}, answers: {"table*": "Table 7"}}
  - {name: broken, notebook: experiments/broken, parameters: {seed: 5}}
  - {name: dies, notebook: experiments/dies}
"""


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    root = make_root(tmp_path_factory.mktemp("batch"))
    write_notebook(root / "nbs/experiments/broken.ipynb", "seed: int = 0\nout: str = ''", "from pathlib import Path\nPath(out, 'before.csv').write_text('1')", "assert Path('repaired').exists(), 'not repaired yet'")
    write_notebook(root / "nbs/experiments/dies.ipynb", "n: int = 1", "import os, pathlib\npathlib.Path('repaired').exists() or os._exit(7)")
    p = make_plan(root, BATCH)
    return root, p, run(p, jobs=3, figures_dir="figures")


def test_failures_dont_stop_the_others_and_are_listed(batch, capfd):
    root, p, report = batch
    assert [o.state for o in report.outcomes] == ["finished", "failed", "failed"] and report.exit_status == 1
    text = repr(report)
    assert "failed: broken: AssertionError: not repaired yet (code cell 4)" in text and "DeadKernelError" in report["dies"].error
    kept = report["broken"].folder
    assert kept.name == p.cells[1].folder + ".failed" and (kept / "before.csv").read_text() == "1"
    assert "not repaired yet" in (kept / "notebook.ipynb").read_text() and read_manifest(kept)["status"] == "failed"
    assert sorted(f.name for f in (root / "runs/small").iterdir()) == sorted([".lock", p.cells[0].folder, p.cells[1].folder + ".failed", p.cells[2].folder + ".failed"])


def test_the_manifest_says_what_the_result_is_made_of(batch):
    root, p, report = batch
    folder = root / "runs/small" / p.cells[0].folder
    m = read_manifest(folder)
    assert m["status"] == "ok" and m["key"] == p.cells[0].key and m["notebook"] == "nbs/experiments/good.ipynb" and m["profile"] == "small"
    assert m["parameters"] == {"n": 2, "scale": 1.0, "seed": 0} and m["seeds"] == {"seed": 0} and m["versions"] == versions() and m["result"] == {"collection": "abc123"}
    assert m["package_sha256"] == package_hash(root) and m["notebook_sha256"] == inspect_notebook(root / "nbs/experiments/good.ipynb").sha256 and m["seconds"] > 0
    assert set(m["files"]) == {"notebook.ipynb", "table.csv", "more/plot.svg", "plot.png", "notes.txt", "result.json"}
    import hashlib
    for name, info in m["files"].items(): assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == info["sha256"] and (folder / name).stat().st_size == info["bytes"]
    text = (folder / "notebook.ipynb").read_text()
    # the notebook ran in the checkout, knows its final folder, and names no folder of the machine
    assert f"runs/small/{folder.name}" in text and ".part" not in text and str(root) not in text and f"kernel in {root.name}" in text


def test_results_are_copied_and_indexed(batch):
    root, p, _ = batch
    assert sorted(f.relative_to(root / "figures").as_posix() for f in (root / "figures").rglob("*.*")) == ["INDEX.md", "good/manifest.json", "good/more/plot.svg", "good/plot.png", "good/table.csv"]
    index = (root / "figures/INDEX.md").read_text()
    assert f"| good/table | [csv](good/table.csv) | Table 7 | [good](../nbs/experiments/good.ipynb) | small/{p.cells[0].folder} |" in index
    assert "| good/plot | [png](good/plot.png) | not known |" in index and "| good/more/plot | [svg](good/more/plot.svg) |" in index and str(root) not in index + (root / "figures/good/manifest.json").read_text()


def test_what_is_finished_is_kept_and_what_failed_is_tried_again(batch):
    root, p, _ = batch
    finished = root / "runs/small" / p.cells[0].folder
    stamp = (finished / "notebook.ipynb").stat().st_mtime_ns
    again = run(p, retry_failed=False)
    assert [o.state for o in again.outcomes] == ["kept", "failed", "failed"] and again.exit_status == 1 and "not repaired yet" in again["broken"].error
    assert [o.state for o in run(p, dry_run=True).outcomes] == ["kept", "to run", "to run"]
    (root / "repaired").write_text("")
    report = run(p, only=["broken", "good"])
    assert [(o.cell, o.state) for o in report.outcomes] == [("good", "kept"), ("broken", "finished")] and report.exit_status == 0
    assert (finished / "notebook.ipynb").stat().st_mtime_ns == stamp
    assert not (root / "runs/small" / (p.cells[1].folder + ".failed")).exists() and (root / "runs/small" / p.cells[1].folder / "before.csv").exists()
    # a result that was tampered with is no result
    (finished / "table.csv").write_text("")
    assert run(p, only="good", dry_run=True)["good"].state == "to run"


def test_one_run_at_a_time(tiny):
    p = make_plan(tiny, "  - {name: a, notebook: experiments/good}")
    (tiny / "runs/small").mkdir(parents=True)
    with open(tiny / "runs/small/.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run is at work in small/"): run(p)


# what is copied

def fake_result(root, p, files):
    "A finished cell, made by hand."
    folder = root / "runs" / p.profile / p.cells[0].folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"notebook.ipynb": "{}", **files}.items(): (folder / name).write_text(text)
    sizes = {f.name: dict(sha256="0", bytes=f.stat().st_size) for f in folder.iterdir() if f.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps(dict(cell="a", profile=p.profile, status="ok", key=p.cells[0].key, notebook="nbs/experiments/good.ipynb", parameters=p.cells[0].parameters, result=None, started="2026-01-01", seconds=1, files=sizes)))
    return folder


def test_a_file_that_names_a_folder_of_this_machine_is_refused(tiny):
    p = make_plan(tiny, "  - {name: a, notebook: experiments/good}")
    fake_result(tiny, p, {"good.csv": f"x{tiny}/y", "bad.csv": f"path\n{tiny}/data\n"})
    refused = collect(p)
    assert list(refused) == ["a/bad.csv"] and "it names a folder of this machine" in refused["a/bad.csv"] and not (tiny / "figures/a/bad.csv").exists() and (tiny / "figures/a/good.csv").exists()
    report = run(p, figures_dir="figures")
    assert report["a"].state == "kept" and report.exit_status == 1 and "not copied: a/bad.csv" in repr(report)


def test_what_counts_as_finished(tiny):
    p = make_plan(tiny, "  - {name: a, notebook: experiments/good}")
    manifest = fake_result(tiny, p, {"table.csv": "1"}) / "manifest.json"
    good = json.loads(manifest.read_text())
    assert run(p, dry_run=True)["a"].state == "kept"
    for changed in ({**good, "key": "0"}, {**good, "status": "failed"}, {**good, "files": {}}, {k: v for k, v in good.items() if k != "files"}, [], None):
        manifest.write_text(json.dumps(changed) if changed is not None else "{")
        assert run(p, dry_run=True)["a"].state == "to run" and collect(p) == {} and not (tiny / "figures/a").exists()


def test_files_that_a_run_no_longer_makes_go_and_other_cells_stay_in_the_index(tiny):
    one, two = make_plan(tiny, "  - {name: a, notebook: experiments/good}"), make_plan(tiny, "  - {name: b, notebook: experiments/good, answers: Figure 2}", "other")
    old = fake_result(tiny, one, {"old.csv": "1", "same.csv": "1"})
    collect(one)
    (old / "old.csv").unlink()
    fake_result(tiny, one, {"same.csv": "2"}); fake_result(tiny, two, {"plot.svg": "<svg/>"})
    (tiny / "figures/a/by-hand.txt").write_text("mine")
    assert collect(one) == collect(two) == {}
    assert sorted(f.name for f in (tiny / "figures/a").iterdir()) == ["by-hand.txt", "manifest.json", "same.csv"] and (tiny / "figures/a/same.csv").read_text() == "2"
    index = (tiny / "figures/INDEX.md").read_text()
    assert "a/same.csv" in index and "old.csv" not in index and "| Figure 2 |" in index
    elsewhere = tiny.parent / f"{tiny.name}-elsewhere"
    assert collect(one, "runs", elsewhere) == {} and "| nbs/experiments/good.ipynb |" in (elsewhere / "INDEX.md").read_text() and str(tiny) not in (elsewhere / "INDEX.md").read_text()


def test_a_large_table_stays_in_the_run(tiny):
    p = make_plan(tiny, "  - {name: a, notebook: experiments/good, answers: {fig: Figure 1, big: Table 9}}")
    text = "n\n" + "1234567\n" * (TABLE_LIMIT // 8 + 1)
    folder = fake_result(tiny, p, {"big.csv": text, "big.parquet": "PAR1", "big.run.json": "{}", "fig.svg": "x" * (TABLE_LIMIT + 1), "exact.csv": "x" * TABLE_LIMIT})
    assert collect(p) == {} and sorted(f.name for f in (tiny / "figures/a").iterdir()) == ["big.parquet", "big.run.json", "exact.csv", "fig.svg", "manifest.json"]
    index, m = (tiny / "figures/INDEX.md").read_text(), read_manifest(tiny / "figures/a")
    assert f"| a/big | csv ({TABLE_LIMIT / 1e6:.1f} MB, in the run's folder) [parquet](a/big.parquet) [run](a/big.run.json) | Table 9 |" in index and "| a/fig | [svg](a/fig.svg) | Figure 1 |" in index
    assert set(m["left_in_run"]) == {"big.csv"} and "big.csv" not in m["files"] and m["left_in_run"]["big.csv"]["bytes"] == len(text)
    # compressed text is looked into as well
    import pandas as pd
    pd.DataFrame(dict(n=[1, 2], path=["x", f"{tiny}/data"])).to_parquet(folder / "big.parquet")
    fake_result(tiny, p, {"big.csv": f"path\n{tiny}/data\n", "fig.svg": "<svg/>"})
    assert list(collect(p)) == ["a/big.csv", "a/big.parquet"] and not (tiny / "figures/a/big.parquet").exists() and not [line for line in (tiny / "figures/INDEX.md").read_text().splitlines() if "big.csv" in line or "big.parquet" in line]


def test_answers():
    assert answer("Table 1", "x.csv") == "Table 1" and answer({"table*": "T"}, "table1.csv") == "T" and answer({"fig": "F"}, "fig.svg") == "F" and answer({"fig": "F"}, "table.csv") == "not known" and answer({"fig": "F"}, "fig.run.json") == answer({"fig": "F"}, "more/fig.csv") == "F"


# cells that need others, parts, data that are elsewhere

ADD = ["tables: list[str] = []\nseed: int = 0\nout: str = ''", """
from pathlib import Path
rows = [line for folder in tables for table in sorted(Path(folder).glob("*.csv")) for line in table.read_text().splitlines()[1:]]
Path(out, "sum.csv").write_text("\\n".join([str(len(tables)), *rows]))
Path(out, "seen.txt").write_text(" ".join(tables))"""]
CHAIN = """
  - {name: last, notebook: experiments/add, needs: {tables: [sum]}, part: two}
  - {name: sum, notebook: experiments/add, needs: {tables: ["in/*"]}, part: two}
  - {name: in/b, notebook: experiments/good, parameters: {n: %d}, part: one}
  - {name: in/a, notebook: experiments/good, parameters: {n: 1, scale: 2.0}, part: one}
  - {name: alone, notebook: experiments/good, parameters: {n: 5}, part: one}
"""


@pytest.fixture
def chain(tiny):
    write_notebook(tiny / "nbs/experiments/add.ipynb", *ADD)
    return tiny


@pytest.mark.parametrize("needs, match", [
    ("{tables: [good, nowhere]}", "unknown cell under 'needs' in profile 'small', cell 'a': 'nowhere'. Known: a, good"),
    ("{tables: [\"x*\"]}", "unknown cell under 'needs' in profile 'small', cell 'a': 'x\\*'"),
    ("{table: [good]}", "unknown parameter of nbs/experiments/add.ipynb under 'needs' in profile 'small', cell 'a': 'table'. Did you mean 'tables'"),
    ("{seed: [good]}", "'needs' gives folders to the parameter 'seed', which is int in nbs/experiments/add.ipynb; expected list\\[str\\]"),
    ("{tables: good}", "'needs' of 'tables' is 'good', expected a list of names"),
    ("{tables: []}", "'needs' of 'tables' is \\[\\], expected a list of names"),
    ("{tables: [1]}", "'needs' of 'tables' is \\[1\\], expected a list of names"),
    ("{tables: [\"*\"]}", "cells need each other in a circle: a -> a; take one of the needs out"),
    ("{tables: [good]}, parameters: {tables: [x]}", "'tables' stands under 'needs' and under 'parameters'"),
])
def test_needs_are_checked_before_the_run(chain, needs, match):
    with pytest.raises(InputError, match=match): make_plan(chain, f"  - {{name: a, notebook: experiments/add, needs: {needs}}}\n  - {{name: good, notebook: experiments/good}}")


def test_a_circle_is_named(chain):
    cells = "".join(f"  - {{name: {a}, notebook: experiments/add, needs: {{tables: [{b}]}}}}\n" for a, b in ("xa", "ab", "bc", "ca"))
    with pytest.raises(InputError, match="profile 'small': cells need each other in a circle: a -> b -> c -> a; take"): make_plan(chain, cells)


def test_the_key_follows_the_keys_of_what_is_needed(chain):
    keys = {c.name: c.key for c in make_plan(chain, CHAIN % 2).cells}
    other = {c.name: c.key for c in make_plan(chain, CHAIN % 3).cells}
    assert {n for n in keys if keys[n] != other[n]} == {"in/b", "sum", "last"} and list(keys) == ["last", "sum", "in/b", "in/a", "alone"]
    # what is needed counts, not only what it is called
    without = {c.name: c.key for c in make_plan(chain, (CHAIN % 2).replace('["in/*"]', "[in/a]")).cells}
    assert without["sum"] != keys["sum"] and without["in/a"] == keys["in/a"]


def test_what_is_needed_runs_first_and_hands_over_its_folder(chain):
    p = make_plan(chain, CHAIN % 2)
    assert [o.cell for o in run(p, only="sum", dry_run=True).outcomes] == ["sum", "in/b", "in/a"]
    report = run(p, only="sum", jobs=2, figures_dir="figures")
    assert {o.cell: o.state for o in report.outcomes} == {"sum": "finished", "in/b": "finished", "in/a": "finished"} and report.exit_status == 0
    # both folders, relative to the checkout, in the order of the profile
    folder = chain / "runs/small" / p["sum"].folder
    assert (folder / "seen.txt").read_text() == f"runs/small/{p['in/b'].folder} runs/small/{p['in/a'].folder}" and (folder / "sum.csv").read_text().splitlines() == ["2", "0,0.0", "1,1.0", "0,0.0"]
    m = read_manifest(folder)
    assert m["needs"] == {"tables": [p["in/b"].folder, p["in/a"].folder]} and m["parameters"] == {"seed": 0}
    assert (chain / "figures/in/b/table.csv").exists() and (chain / "figures/sum/sum.csv").exists() and "| in/b/table | [csv](in/b/table.csv) |" in (chain / "figures/INDEX.md").read_text()
    # what is finished is not run again, with its needs or without them
    assert [(o.cell, o.state) for o in run(p, only=["sum"]).outcomes] == [("sum", "kept")]
    import shutil
    shutil.rmtree(chain / "runs/small/in")
    assert [(o.cell, o.state) for o in run(p, only=["sum"]).outcomes] == [("sum", "kept")]
    assert {o.cell: o.state for o in run(p, only=["last"], dry_run=True).outcomes} == {"last": "to run", "sum": "kept"}


def test_parts_and_patterns(chain):
    p = make_plan(chain, CHAIN % 2)
    def would(**how): return [o.cell for o in run(p, dry_run=True, **how).outcomes]
    assert would(part="one") == ["in/b", "in/a", "alone"] and would(only=["in/*"]) == ["in/b", "in/a"] and would(only=["*a", "alone"]) == ["in/a", "alone"]
    assert would(part="one", only=["a*", "last"]) == ["alone"]
    assert would(part="two") == ["last", "sum", "in/b", "in/a"] # and what it needs
    with pytest.raises(InputError, match="unknown part of profile 'small' 'tow'. Did you mean 'two'\\? Known: one, two"): run(p, part="tow")
    with pytest.raises(InputError, match="no cell that 'only' names is in part 'one'"): run(p, part="one", only="last")
    with pytest.raises(InputError, match="unknown cell of profile 'small' 'out/\\*'"): run(p, only=["in/*", "out/*"])
    with pytest.raises(InputError, match="profile 'small' has no parts"): run(make_plan(chain, "  - {name: a, notebook: experiments/good}"), part="one")
    assert not (chain / "runs").exists()


def test_what_needs_a_failed_cell_is_blocked_and_all_else_runs(chain):
    write_notebook(chain / "nbs/experiments/broken.ipynb", "n: int = 1\nout: str = ''", "from pathlib import Path\nassert Path('repaired').exists(), 'not yet'\nPath(out, 'table.csv').write_text('n\\n7')")
    p = make_plan(chain, (CHAIN % 2).replace("{name: in/b, notebook: experiments/good, parameters: {n: 2}", "{name: in/b, notebook: experiments/broken"))
    report = run(p)
    assert {o.cell: o.state for o in report.outcomes} == {"last": "blocked", "sum": "blocked", "in/b": "failed", "in/a": "finished", "alone": "finished"} and report.exit_status == 1
    text = repr(report)
    assert "failed: in/b: AssertionError: not yet" in text and f"its notebook up to the error: {p['in/b'].folder}.failed/notebook.ipynb" in text and (chain / "runs/small" / f"{p['in/b'].folder}.failed/notebook.ipynb").exists()
    assert "blocked: sum: it needs in/b, which failed" in text and "blocked: last: it needs sum, which is blocked" in text
    assert not [f for f in (chain / "runs/small").iterdir() if f.name.startswith(("sum", "last"))]
    # not tried again on request, and the status still tells
    kept = run(p, retry_failed=False, only="last")
    assert {o.cell: o.state for o in kept.outcomes} == {"last": "blocked", "sum": "blocked", "in/b": "failed", "in/a": "kept"} and kept.exit_status == 1 and len(kept.blocked) == 2
    assert {o.cell: o.state for o in run(p, retry_failed=False, only="last", dry_run=True).outcomes}["sum"] == "blocked"
    assert {o.cell: o.state for o in run(p, dry_run=True).outcomes}["sum"] == "to run"
    (chain / "repaired").write_text("")
    again = run(p)
    assert {o.cell: o.state for o in again.outcomes} == {"last": "finished", "sum": "finished", "in/b": "finished", "in/a": "kept", "alone": "kept"} and again.exit_status == 0


def test_a_cell_without_its_data_is_left_out(chain):
    cells = (CHAIN % 2).replace("{name: in/b,", "{name: in/b, data: ../elsewhere,") + "  - {name: only-b, notebook: experiments/add, needs: {tables: [in/b]}}\n"
    p = make_plan(chain, cells)
    assert [c.name for c in p.cells] == ["last", "sum", "in/a", "alone"] and p["sum"].needed == ["in/a"]
    why = {"in/b": "its data are not here (no folder ../elsewhere, seen from the checkout)", "only-b": "what it needs is left out (in/b)"}
    assert p.left_out == why and all(f"left out: {n}: {w}" in text for n, w in why.items() for text in (repr(p), repr(run(p, dry_run=True))))
    with pytest.raises(InputError, match="cell 'in/b' of profile 'small' can't run here: its data are not here"): run(p, only="in/b")
    with pytest.raises(InputError, match="none of the cells of profile 'small' that fit only\\* can run here; only-b: what it needs is left out"): run(p, only="only*")
    assert [o.cell for o in run(p, only="in/*", dry_run=True).outcomes] == ["in/a"]
    with pytest.raises(InputError, match="profile 'small': no cell can run here; in/b: its data are not here"): make_plan(chain, "  - {name: in/b, notebook: experiments/good, data: ../elsewhere}")
    elsewhere = chain.parent / "elsewhere"
    elsewhere.mkdir()
    try: assert make_plan(chain, cells)["sum"].key != p["sum"].key and not make_plan(chain, cells).left_out
    finally: elsewhere.rmdir()


# what it would cost

def test_estimates(tiny, monkeypatch):
    import types
    write_notebook(tiny / "nbs/experiments/transfer.ipynb", "queries: int = 10\nrate: float = 1.0\nearlier: str = ''\nout: str = ''")
    p = make_plan(tiny, "  - {name: a, notebook: experiments/good, parameters: {n: 2}}\n  - {name: b, notebook: experiments/good, parameters: {n: 2, scale: 3.0}}\n  - {name: t/big, notebook: experiments/transfer, parameters: {queries: 5000}}\n  - {name: t/odd, notebook: experiments/transfer}\n")
    def estimate(parameters):
        if parameters["queries"] == 10: raise InputError("no such collection")
        return dict(encodes=1000 * parameters["queries"], steps=777, hours=12.5, runs=3)
    monkeypatch.setitem(sys.modules, "eci_sem.cost", types.SimpleNamespace(estimate=estimate))
    folder = fake_result(tiny, p, {"table.csv": "1"})
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {e.cell: e[1:] for e in estimates(p)}
    assert found == {"a": (None, None, manifest["seconds"] / 3600, "earlier run (runs)"), "b": (None, None, None, ""), "t/big": (5_000_000, 777, 12.5, "estimate"), "t/odd": (None, None, None, "")}
    # a run from before the notebook had the parameter, which is at its default now; a later run counts for more
    old = {**manifest, "parameters": {k: v for k, v in manifest["parameters"].items() if k != "scale"}, "seconds": 7200.0}
    (tiny / "figures/a").mkdir(parents=True); (tiny / "figures/a/manifest.json").write_text(json.dumps(old)); (folder / "manifest.json").unlink()
    assert {e.cell: (e.hours, e.basis) for e in estimates(p, only=["a", "b"])} == {"a": (2.0, "earlier run (figures)"), "b": (None, "")}
    lines = repr(run(p, dry_run=True)).splitlines()
    assert lines[1].split() == ["cell", "state", "encodes", "steps", "time", "from"] and lines[2].split() == ["a", "to", "run", "-", "-", "2.0", "h", "earlier", "run", "(figures)"]
    assert lines[4].split() == ["t/big", "to", "run", "5,000,000", "777", "12.5", "h", "estimate"] and lines[6].split() == ["total", "5,000,000", "777", "14.5", "h", "without", "2", "of", "unknown", "length"]
    for cell, started, seconds in (("b1", "2026-02-01", 3600), ("b2", "2026-03-01", 1800), ("b0", "2026-01-01", 60)): # of several runs the last one
        (tiny / "runs/x" / cell).mkdir(parents=True); (tiny / "runs/x" / cell / "manifest.json").write_text(json.dumps({**manifest, "parameters": {**p["b"].parameters}, "started": started, "seconds": seconds}))
    assert {e.cell: e.hours for e in estimates(p)}["b"] == 0.5
    def shown(hours): # short times in seconds and minutes
        report = run(p, only=["t/odd"], dry_run=True)
        report.estimates = [Estimate("t/odd", None, None, hours, "")]
        return repr(report).splitlines()[2].split()[5:]
    assert [" ".join(shown(h)) for h in (None, 0.0013, 0.02, 0.031, 0.04, 1.99, 2.04)] == ["-", "5 s", "72 s", "112 s", "2 min", "119 min", "2.0 h"]
    # runs that stand somewhere are taken over, so that less is left to do than is told
    told = lambda: {e.cell: e.basis for e in estimates(make_plan(tiny, "  - {name: t/big, notebook: experiments/transfer, parameters: {queries: 5000, earlier: figures/kept}}\n"))}
    assert told() == {"t/big": "estimate"}
    (tiny / "figures/kept").mkdir(parents=True)
    assert told() == {"t/big": "estimate, less what is taken over"}
    monkeypatch.setitem(sys.modules, "eci_sem.cost", None) # the import fails
    assert {e.cell: e.hours for e in estimates(p)}["t/big"] is None


# a kill in the middle

SLOW = ["steps: int = 4\nout: str = ''", """
import time
from pathlib import Path
table = Path(out, "table.csv")
for step in range(steps):
    with table.open("a") as f: f.write(f"{step},{step ** 3}\\n")
    if step == 1 and not Path("go").exists():
        Path("half-way").touch()
        time.sleep(120)"""]
KILLED = "  - {name: quick, notebook: experiments/good}\n  - {name: slow, notebook: experiments/slow}\n"


def processes_in(root: Path) -> list[int]:
    import psutil
    found = []
    for process in psutil.process_iter():
        try: found += [process.pid] if process.pid != os.getpid() and Path(process.cwd()) == root and process.status() != psutil.STATUS_ZOMBIE else []
        except (psutil.Error, OSError): pass
    return found


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


def test_a_killed_run_resumes_and_gives_the_same_tables(tiny):
    write_notebook(tiny / "nbs/experiments/slow.ipynb", *SLOW)
    p = make_plan(tiny, KILLED)
    code = f"from pathlib import Path; from eci_sem.runs import plan, run; p = plan(Path('small.yaml').resolve(), root='.'); run(p)"
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=tiny)
    try: wait_for(lambda: (tiny / "half-way").exists() or runner.poll() is not None)
    finally: runner.send_signal(signal.SIGKILL); runner.wait()
    names = [f.name for f in (tiny / "runs/small").iterdir()]
    quick, slow = p.cells[0].folder, p.cells[1].folder
    assert quick in names and slow not in names and any(n.endswith(".part") for n in names)
    # nothing of it goes on computing
    wait_for(lambda: not processes_in(tiny), 30)
    (tiny / "go").touch()
    report = run(p)
    assert [o.state for o in report.outcomes] == ["kept", "finished"] and not list((tiny / "runs/small").glob("*.part")) and not list((tiny / "runs/small").glob(".*.part"))
    assert (tiny / "runs/small" / slow / "table.csv").read_text() == "".join(f"{i},{i ** 3}\n" for i in range(4))
    straight = run(p, "straight", jobs=2)
    for cell in (quick, slow): assert (tiny / "runs/small" / cell / "table.csv").read_bytes() == (tiny / "straight/small" / cell / "table.csv").read_bytes()
    assert straight.exit_status == 0


# writes until it is ended, its folder too when that is gone
BUSY = ["seed: int = 0\nout: str = ''", """
import time
from pathlib import Path
first = not Path("half-way").exists()
Path("half-way").touch()
while True:
    Path(out).mkdir(exist_ok=True)
    (Path(out) / "table.csv").write_text("x\\n1\\n")
    if not first: break
    time.sleep(0.01)"""]


def test_what_an_orphan_writes_at_last_is_not_left_behind(tiny):
    "The runner is killed, its notebook misses the interrupt (a callback may swallow it) and goes on for two seconds, and the runner is started again at once."
    write_notebook(tiny / "nbs/experiments/busy.ipynb", *BUSY)
    p = make_plan(tiny, "  - {name: busy, notebook: experiments/busy}\n")
    code = """from pathlib import Path
from eci_sem import runs
deaf = runs._CHILD.replace("os.kill(os.getpid(), signal.SIGINT); time.sleep(10)", "time.sleep(2)")
assert deaf != runs._CHILD
runs._CHILD = deaf
runs.run(runs.plan(Path("small.yaml").resolve(), root="."))"""
    runner = subprocess.Popen([sys.executable, "-c", code], cwd=tiny)
    try: wait_for(lambda: (tiny / "half-way").exists() or runner.poll() is not None)
    finally: runner.send_signal(signal.SIGKILL); runner.wait()
    assert [o.state for o in run(p).outcomes] == ["finished"]
    assert [f.name for f in (tiny / "runs/small").iterdir() if f.name.endswith(".part")] == [] and not processes_in(tiny)


def test_a_log_that_nobody_writes_is_not_waited_for(tmp_path, monkeypatch):
    import fcntl
    from eci_sem import runs
    start = time.monotonic()
    runs._wait_until_ended(tmp_path / "none.txt")
    (tmp_path / "log.txt").touch()
    runs._wait_until_ended(tmp_path / "log.txt")
    assert time.monotonic() - start < 1
    monkeypatch.setattr(runs, "_ENDING", 0.5)
    with open(tmp_path / "log.txt") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        runs._wait_until_ended(tmp_path / "log.txt") # gives up
    assert time.monotonic() - start >= 0.5


# fills the embedding cache as an encoder does, only that the vectors are made up
WORK = ["rows: int = 400\nseed: int = 0\ntables: list[str] = []\nout: str = ''", """
import hashlib, time
import numpy as np
import pandas as pd
from eci_sem.collection import cache_dir
from eci_sem.encoders import EmbeddingCache
from eci_sem.tables import save_table
store = EmbeddingCache(cache_dir() / "made-up", 8)
keys = [hashlib.sha256(f"{seed} {i}".encode()).digest()[:16] for i in range(rows)]
for start in range(0, rows, 20):
    missing = [k for k, found in zip(keys[start:start + 20], store.get(keys[start:start + 20])[1]) if not found]
    if missing: time.sleep(0.1); store.put(missing, np.array([np.frombuffer(k, np.uint16) for k in missing], np.float32))
vectors, found = store.get(keys)
total = sum(pd.read_csv(f"{folder}/table.csv")["x"].sum() for folder in tables)
save_table(pd.DataFrame(dict(x=vectors[:, 0] + total)), "table", out, dict(parameters=dict(rows=rows, seed=seed)))
assert found.all()"""]


def test_two_kills_change_nothing(tmp_path):
    "What benchmarks/kills.py does with the profile smoke, in small: two cells that fill the embedding cache, one in need of the other."
    root = make_root(tmp_path / "root")
    write_notebook(root / "nbs/experiments/work.ipynb", *WORK)
    (tmp_path / "kills.yaml").write_text("cells:\n  - {name: sum, notebook: experiments/work, parameters: {rows: 200}, needs: {tables: [first]}}\n  - {name: first, notebook: experiments/work}\n")
    script = Path(__file__).resolve().parents[1] / "benchmarks/kills.py"
    result = subprocess.run([sys.executable, script, "--profile", tmp_path / "kills.yaml", "--root", root, "--kills", "2", "--seed", "1"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "kill 2 of 2" in result.stdout and "4 tables of 2 cells are those of the undisturbed run" in result.stdout and "PASS  2 kills" in result.stdout


def test_a_result_gets_its_name_at_once_or_not_at_all(tiny, monkeypatch):
    p = make_plan(tiny, "  - {name: in/a, notebook: experiments/good}")
    stale = tiny / "runs/small/in/.a-123456789012.xyz.part"
    (tiny / "runs/small/.b-123456789012.xyz.part").mkdir(parents=True); stale.mkdir(parents=True)
    replace = os.replace
    def no_folders(source, target):
        if Path(source).is_dir(): raise OSError(5, "Input/output error")
        replace(source, target)
    with monkeypatch.context() as m:
        m.setattr(os, "replace", no_folders)
        assert run(p)["in/a"].error == "OSError: Input/output error"
    # neither the result nor what earlier runs left half done
    assert sorted(f.relative_to(tiny / "runs/small").as_posix() for f in (tiny / "runs/small").rglob("*")) == [".lock", "in"]
    assert run(p)["in/a"].state == "finished"


def test_ctrl_c_ends_the_children_and_leaves_nothing_half_done(tiny):
    write_notebook(tiny / "nbs/experiments/slow.ipynb", *SLOW)
    p = make_plan(tiny, "  - {name: slow, notebook: experiments/slow}\n  - {name: after, notebook: experiments/good}\n")
    runner = subprocess.Popen([Path(sys.executable).parent / "eci-sem", "reproduce", "--profile", "small.yaml"], cwd=tiny, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: (tiny / "half-way").exists() or runner.poll() is not None)
        runner.send_signal(signal.SIGINT)
        out, err = runner.communicate(timeout=60)
    finally: runner.kill()
    assert runner.returncode == 130 and out == "" and err == "eci-sem: interrupted; what is finished is kept.\n"
    wait_for(lambda: not processes_in(tiny), 30)
    assert [f.name for f in (tiny / "runs/small").iterdir()] == [".lock"] and [o.state for o in run(p, dry_run=True).outcomes] == ["to run", "to run"]


# README

def test_when_the_time_is_up_what_is_finished_is_kept_and_the_same_call_goes_on(tiny):
    write_notebook(tiny / "nbs/experiments/slow.ipynb", 'seconds: float = 60.0 # to sleep\nout: str = ""', "import time\ntime.sleep(seconds)")
    p = make_plan(tiny, "  - {name: a, notebook: experiments/good}\n  - {name: slow, notebook: experiments/slow}\n  - {name: later, notebook: experiments/slow, parameters: {seconds: 0.0}}\n")
    assert run(p, only="a").exit_status == 0
    clock = time.monotonic()
    report = run(p, minutes=0.05)
    assert time.monotonic() - clock < 40 and report.exit_status == 3 and [o.state for o in report.outcomes] == ["kept", "to run", "to run"]
    assert "time is up: 2 cells to run; the same command goes on" in repr(report) and not list((tiny / "runs/small").glob(".*.part")) and not list((tiny / "runs/small").glob("*.failed"))
    assert run(p, only="later", minutes=5).exit_status == 0
    assert run(p, dry_run=True).exit_status == 0, "a dry run has no time to run out of"
    with pytest.raises(InputError, match=r"minutes = 0: expected a number above 0, or None for no limit"): run(p, minutes=0)


def test_a_part_ends_after_the_profiles_own_minutes(tiny):
    write_notebook(tiny / "nbs/experiments/slow.ipynb", 'seconds: float = 60.0 # to sleep\nout: str = ""', "import time\ntime.sleep(seconds)")
    def timed(minutes):
        (tiny / "small.yaml").write_text(f"minutes_per_part: {minutes}\ncells:\n  - {{name: a, notebook: experiments/good, part: one}}\n  - {{name: slow, notebook: experiments/slow, part: two}}\n")
        return plan(tiny / "small.yaml", root=tiny)
    clock = time.monotonic()
    report = run(timed(0.05), part="two")
    assert time.monotonic() - clock < 40 and report.exit_status == 3 and "time is up: 1 cell to run; the same command goes on" in repr(report)
    assert run(timed(0.0001), only="a").exit_status == 0, "the limit is one of parts"
    assert run(timed(0.001), part="two", minutes=0.1).exit_status == 3 and plan("full").minutes_per_part == 45
    for bad in ("0", "-1", ".inf", "true", "soon"):
        with pytest.raises(InputError, match="profile 'small': 'minutes_per_part' is .*, expected a number of minutes above 0"): timed(bad)


def test_a_profile_says_how_many_notebooks_run_side_by_side(tiny, monkeypatch):
    from eci_sem import runs
    asked, worker = [], runs._Worker
    monkeypatch.setattr(runs, "_Worker", lambda plan, base, jobs: (asked.append(jobs), worker(plan, base, jobs))[1])
    def of(jobs):
        (tiny / "small.yaml").write_text(f"jobs: {jobs}\ncells:\n  - {{name: a, notebook: experiments/good}}\n")
        return plan(tiny / "small.yaml", root=tiny)
    assert run(of(2), "one").exit_status == run(of(2), "two", jobs=1).exit_status == 0 and asked == [2, 1]
    assert plan("smoke").jobs == 2 and plan("offline").jobs == 1
    for bad in ("0", "1.5", "true", "many"):
        with pytest.raises(InputError, match="profile 'small': 'jobs' is .*, expected a whole number of at least 1"): of(bad)


def test_readme_is_the_index_notebook(tmp_path):
    (tmp_path / "nbs").mkdir()
    with pytest.raises(InputError, match="nbs/index.ipynb: no such notebook"): make_readme(tmp_path)
    html = dict(output_type="execute_result", execution_count=1, metadata={}, data={"text/html": "<style scoped>\n.x {}\n</style>\n<table></table>", "text/plain": "x"})
    def code(source, *outputs): return dict(cell_type="code", id=f"i{abs(hash(source)) % 10**6}", metadata={}, execution_count=None, outputs=list(outputs), source=source)
    cells = [dict(cell_type="markdown", id="a", metadata={}, source="# Title\n\n![fig](../figures/a/x.svg)"), code("#| hide\nsecret = 1"), code("#| eval: false\nshown = 2", html), code("#| echo: false\nunseen = 3", dict(output_type="stream", name="stdout", text="its output"))]
    (tmp_path / "nbs/index.ipynb").write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    text = make_readme(tmp_path)
    assert (tmp_path / "README.md").read_text() == text == make_readme(tmp_path, write=False)
    assert text.startswith("# Title\n\n![fig](figures/a/x.svg)\n") and "```python\nshown = 2\n```" in text and "<table></table>" in text and "its output" in text and text.endswith("\n")
    assert not any(s in text for s in ("secret", "unseen", "#|", "<style", ".x {}", "\n\n\n"))
    cells[2]["outputs"][0]["data"]["image/png"] = "aGk="
    (tmp_path / "nbs/index.ipynb").write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    with pytest.raises(InputError, match="an output is an image; README.md shows images by reference"): make_readme(tmp_path)


def test_dead_progress_bars_are_taken_out(tiny):
    bar = dict(output_type="display_data", metadata={}, data={"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "0%"})
    kept = dict(output_type="stream", name="stdout", text="kept")
    path = write_notebook(tiny / "nbs/bar.ipynb", "n = 1", outputs=[bar, kept])
    path.write_text(json.dumps({**json.loads(path.read_text()), "metadata": {"widgets": {"state": {"a": 1}}}}))
    stamp = (tiny / "nbs/experiments/good.ipynb").read_bytes()
    assert drop_progress_bars(tiny) == ["bar.ipynb"] and drop_progress_bars(tiny) == []
    assert json.loads(path.read_text())["cells"][0]["outputs"] == [kept] and json.loads(path.read_text())["metadata"] == {} and (tiny / "nbs/experiments/good.ipynb").read_bytes() == stamp


# the project's own

def test_the_projects_profiles_fit_its_notebooks(root):
    assert {"full", "offline", "paper", "smoke"} <= set(profile_names())
    for name in profile_names(): assert plan(name, root=root).about, "the first line says what a profile is for; eci-sem reproduce --help shows it"


def test_other_data_give_another_key(tiny):
    from eci_sem.profiles import _data_hash
    (tiny / "d").mkdir(); (tiny / "d/a.txt").write_text("1")
    make = lambda: make_plan(tiny, "  - {name: a, notebook: experiments/good, data: d}\n  - {name: b, notebook: experiments/good}")
    p = make()
    assert make()["a"].key == p["a"].key and p["a"].key != p["b"].key
    (tiny / "d/a.txt").write_text("2"); _data_hash.cache_clear()
    assert make()["a"].key != p["a"].key and make()["b"].key == p["b"].key
