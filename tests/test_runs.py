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
from eci_sem.runs import answer, collect, drop_progress_bars, find_root, inspect_notebook, make_readme, package_hash, plan, profile_names, read_manifest, run, versions

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
    ("cells: [{name: a, notebook: x}, {name: a, notebook: y}]", "two cells have the name 'a'"),
    ("cells: [{name: a, notebook: experiments/none}]", "nbs/experiments/none.ipynb: no such notebook"),
])
def test_profiles_are_checked(tiny, text, match):
    (tiny / "wrong.yaml").write_text(text)
    with pytest.raises(InputError, match=match): plan(tiny / "wrong.yaml", root=tiny)


def test_unknown_names_and_no_checkout(tiny, tmp_path):
    with pytest.raises(InputError, match=r"unknown profile 'offlin'. Did you mean 'offline'\? Known: offline, smoke. Or give the path of a .yaml file"): plan("offlin")
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
    for same in ("_modidx", "runs", "cli"): (tiny / f"eci_sem/{same}.py").write_text("d = 1")
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
    (folder / "manifest.json").write_text(json.dumps(dict(cell="a", profile=p.profile, status="ok", key=p.cells[0].key, notebook="nbs/experiments/good.ipynb", result=None, seconds=1, files=sizes)))
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


def test_answers():
    assert answer("Table 1", "x.csv") == "Table 1" and answer({"table*": "T"}, "table1.csv") == "T" and answer({"fig": "F"}, "fig.svg") == "F" and answer({"fig": "F"}, "table.csv") == "not known"


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
    assert {"offline", "smoke"} <= set(profile_names())
    for name in profile_names(): plan(name, root=root)
