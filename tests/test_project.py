"""The project as a whole: one version, notebooks and what is made from them in sync, pinned requirements, nothing of this machine."""
import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path

import pytest

import eci_sem

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
LIBRARY = [p for p in NOTEBOOKS if p.parent == ROOT / "nbs" and p.name[:2].isdigit()]
EXPERIMENTS = [p for p in NOTEBOOKS if p.parent.name == "experiments"]
MODULES = sorted((ROOT / "eci_sem").glob("[a-z]*.py"))


def name(path: Path) -> str: return path.relative_to(ROOT).as_posix()


def cells(path: Path) -> list[dict]: return json.loads(path.read_text(encoding="utf-8"))["cells"]


def settings() -> dict[str, str]:
    config = ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(config["DEFAULT"])


def requirements() -> list[str]: return [line.strip() for key, value in settings().items() if key.endswith("requirements") for line in value.splitlines() if line.strip()]


def canonical(requirement: str) -> str: return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def pins() -> dict[str, str]:
    lines = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return {canonical(n): v for n, v in lines}


def tracked() -> list[Path]:
    try: found = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError): pytest.skip("not a git checkout: which files are tracked is not known")
    return [ROOT / f for f in found if f and (ROOT / f).is_file()]


# metadata

def test_one_version_everywhere():
    version = settings()["version"]
    assert version == eci_sem.__version__ == importlib.metadata.version("eci_sem")
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_pyproject_holds_two_tables_only():
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(found) == {"build-system", "tool"} and set(found["tool"]) == {"nbdev"} and found["tool"]["nbdev"]["allowed_cell_metadata_keys"] == ["tags"]


def test_the_installed_metadata_are_those_of_settings_ini():
    installed = importlib.metadata.requires("eci_sem")
    assert {canonical(r) for r in installed} == {canonical(r) for r in requirements()}
    assert {e.name: e.value for e in importlib.metadata.entry_points(group="console_scripts") if e.value.startswith("eci_sem")} == {"eci-sem": "eci_sem.cli:main"}


def test_each_requirement_is_pinned_and_has_its_reason():
    from packaging.requirements import Requirement
    reasons = {canonical(line.split("|")[1].strip()) for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| ") and not line.startswith("| package")}
    pinned = pins()
    for text in requirements():
        r = Requirement(text)
        assert canonical(r.name) in pinned, f"constraints.txt does not pin {r.name}"
        assert r.specifier.contains(pinned[canonical(r.name)]), f"constraints.txt pins {r.name} {pinned[canonical(r.name)]}, settings.ini wants {r.specifier}"
    assert reasons == {canonical(r) for r in requirements()}


def test_the_pins_are_free_of_local_versions_and_of_the_models():
    from eci_sem.encoders import EMBEDDED
    pinned = pins()
    assert not [v for v in pinned.values() if "+" in v or not re.fullmatch(r"\d[\w.]*", v)] and "eci-sem" not in pinned
    lines = [line for line in (ROOT / "models.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    assert {line.split()[0] for line in lines} == {f"{m.package}=={m.version}" for m in EMBEDDED.values()}
    assert not {canonical(line) for line in lines} & set(pinned)


def test_the_top_level_is_as_designed():
    wanted = set("nbs eci_sem tests figures settings.ini setup.py README.md benchmarks pyproject.toml Makefile constraints.txt models.txt MANIFEST.in LICENSE CITATION.cff CONTRIBUTING.md".split())
    found = {p.relative_to(ROOT).parts[0] for p in tracked()}
    assert {f for f in found if not f.startswith(".")} <= wanted
    assert {"nbs", "eci_sem", "tests", "settings.ini", "setup.py", "README.md", "pyproject.toml", "Makefile", "constraints.txt", "models.txt", "MANIFEST.in", "LICENSE", "CITATION.cff", "CONTRIBUTING.md"} <= found
    assert "Apache License" in (ROOT / "LICENSE").read_text()


# notebooks, modules and README

def run_nbdev(command: str, folder: Path) -> None:
    # nbdev does nothing when IN_TEST is set
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    subprocess.run([Path(sys.executable).parent / command], cwd=folder, env=env, check=True, capture_output=True, timeout=300)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    "A copy with a damaged module, exported and cleaned anew."
    copy = tmp_path_factory.mktemp("copy")
    for folder in ("nbs", "eci_sem"): shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for file in ("pyproject.toml", "settings.ini", "setup.py", "README.md"): shutil.copy(ROOT / file, copy / file)
    damaged = copy / "eci_sem/collection.py"
    damaged.write_text(damaged.read_text().replace("return", "return None #") + "\nlost = 1\n")
    (copy / "eci_sem/runs.py").unlink()
    run_nbdev("nbdev-export", copy)
    run_nbdev("nbdev-clean", copy)
    return copy


def test_a_damaged_module_is_repaired_and_the_modules_are_those_of_the_notebooks(exported):
    for path in [*MODULES, ROOT / "eci_sem/_modidx.py"]:
        assert path.read_bytes() == (exported / name(path)).read_bytes(), f"{name(path)} is not what its notebook exports: run nbdev-export"
    sources = {re.search(r"^#\| default_exp (\w+)", "".join(c["source"]), re.M)[1] for p in LIBRARY for c in cells(p) if "".join(c["source"]).startswith("#| default_exp")}
    assert {p.stem for p in MODULES} == sources, "a module without a notebook, or a notebook without its module"
    # nothing but the door of python -m is written by hand, because no notebook can be run as it
    assert {p.name for p in (ROOT / "eci_sem").glob("_*.py")} == {"__init__.py", "__main__.py", "_modidx.py"} and len((ROOT / "eci_sem/__main__.py").read_text().splitlines()) < 10


def test_notebooks_are_clean(exported):
    for path in NOTEBOOKS: assert path.read_bytes() == (exported / name(path)).read_bytes(), f"{name(path)} is not clean: run nbdev-clean"


def test_readme_is_made_from_the_index_notebook(exported):
    from eci_sem.runs import make_readme
    text = make_readme(ROOT, write=False)
    (exported / "README.md").write_text("damaged")
    make_readme(exported)
    assert (exported / "README.md").read_text(encoding="utf-8") == text, "a damaged README.md is not repaired"
    assert (ROOT / "README.md").read_text(encoding="utf-8") == text, "README.md is not what nbs/index.ipynb gives: run make docs"
    linked = [t for t in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in t]
    assert not [t for t in linked if not (ROOT / t).exists()], "README.md links to files that are not there"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_experiments_take_parameters_and_keep_no_outputs(path):
    from eci_sem.runs import inspect_notebook
    info = inspect_notebook(path, ROOT)
    assert info.parameters["out"].default == "" and all(p.comment for p in info.parameters.values()), "each parameter has a comment; 'out' is the folder for results"
    assert not [c for c in cells(path) if c.get("outputs") or c.get("execution_count")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_notebooks_have_a_kernel_a_title_and_no_dead_output(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["metadata"]["kernelspec"]["name"] == "python3", "papermill fails without a kernelspec"
    assert "".join(cells(path)[0]["source"]).startswith("# "), "the first cell is the title"
    outputs = [o for c in cells(path) for o in c.get("outputs", ())]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert "widgets" not in notebook["metadata"] and not [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", ())], "a dead progress bar: make docs takes it out (or eci_sem.runs.drop_progress_bars)"


@pytest.mark.parametrize("path", LIBRARY, ids=name)
def test_library_notebooks_read_as_lessons(path):
    code = [c for c in cells(path) if c["cell_type"] == "code"]
    assert re.match(r"# .+\n+> .+", "".join(cells(path)[0]["source"])), "the first cell is '# Title' and '> one line'"
    lessons = [len("".join(c["source"]).splitlines()) for c in code if not "".join(c["source"]).startswith("#|")]
    assert lessons and sorted(lessons)[len(lessons) // 2] <= 6, "lesson cells are short"
    assert any(c["outputs"] for c in code), "library notebooks keep their outputs"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_are_short_and_import_only_modules_above(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 600
    # 03a stands beside 03: a module may import from its own number, never from a later one
    number = {p.stem: int(re.search(r"nbs/(\d+)\w*\.ipynb", p.read_text(encoding="utf-8"))[1]) for p in MODULES}
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.ImportFrom) or not (node.level == 1 or (node.module or "").split(".")[0] == "eci_sem"): continue
        module = node.module if node.level else ".".join(node.module.split(".")[1:])
        for used in [module] if module else [a.name for a in node.names if a.name != "__version__"]: assert number[used] <= number[path.stem] and used != path.stem, f"{path.stem} imports {used}, which stands below it"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_public_functions_say_what_they_do_and_whose_definition_it_is(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    public = next((ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"), [])
    for node in tree.body:
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name not in public: continue
        doc = ast.get_docstring(node)
        assert doc and "\n" not in doc, f"{node.name}: a docstring of one line"
        if isinstance(node, ast.FunctionDef): assert re.search(r"(paper|ours)[^\]]*\]$", doc), f"{node.name}: the docstring ends in [paper] or [ours]"


# nothing of this machine

# written in pieces, so that this file does not hold what it looks for
_MACHINE = re.compile("|".join(["/" + "root/", "/" + "home/[a-z]", "/" + "work/", "/" + "Users/[A-Za-z]", "/" + "tmp/(?:tmp|ipykernel|pytest)", r"C:\\+" + "Users", "/" + "site-packages/"]))


def test_the_pattern_finds_a_machine_path():
    for path in ("/" + "root/x", "'/" + "home/someone'", "/" + "tmp/tmpab12/x", "/" + "tmp/ipykernel_9/1.py"): assert _MACHINE.search(path)
    for path in ("https://arxiv.org/abs/2603.20990", "../shared/data", "figures/ranking/table.csv", "~/.cache"): assert not _MACHINE.search(path)


def test_no_tracked_file_carries_a_machine_path():
    found = []
    for path in tracked():
        if path == Path(__file__).resolve(): continue
        data = path.read_bytes()
        if path.suffix == ".png": text = " ".join(re.findall(rb"(?:tEXt|iTXt)([^\x00]+\x00[ -~]*)", data).__repr__().split())
        else:
            try: text = data.decode("utf-8")
            except UnicodeDecodeError: continue
        if m := _MACHINE.search(text): found.append(f"{name(path)}: {text[max(0, m.start() - 40):m.end() + 40]!r}")
    assert not found, "\n".join(found)


# make

def test_make_says_what_is_wrong_with_an_old_python(tmp_path):
    if not shutil.which("make"): pytest.skip("make is not installed")
    for file in ("Makefile", "constraints.txt", "models.txt", "settings.ini", "setup.py"): shutil.copy(ROOT / file, tmp_path / file)
    old = tmp_path / "old-python"
    old.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo Python 3.9.1\nexit 1\n")
    old.chmod(0o755)
    result = subprocess.run(["make", "paper", f"PYTHON={old}"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode and "eci_sem needs Python 3.11 or newer" in result.stderr and "is Python 3.9.1" in result.stderr and "make paper PYTHON=python3.11" in result.stderr
    no_venv = tmp_path / "no-venv"
    no_venv.write_text("#!/bin/sh\n[ \"$1\" = -m ] && exit 1\nexit 0\n")
    no_venv.chmod(0o755)
    result = subprocess.run(["make", "test", f"PYTHON={no_venv}"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode and "install Python's venv module" in result.stderr and not (tmp_path / ".venv").exists()


def test_continuous_integration_runs_what_a_user_runs():
    text = (ROOT / ".ci/run").read_text()
    assert os.access(ROOT / ".ci/run", os.X_OK) and "set -euo pipefail" in text and text.strip().splitlines()[-1] == "make test"
