"""What was measured is there whole, and the guide shows it; no time is tested here."""
import ast
import json
import re
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def scripts(root):
    tree = ast.parse((root / "benchmarks/run.py").read_text())
    return next(ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "SCRIPTS")


def test_what_was_measured_covers_every_script(root, scripts):
    text = (root / "benchmarks/results.json").read_text(encoding="utf-8")
    found = json.loads(text)["scripts"]
    assert list(found) == list(scripts) and not re.search(r"/(tmp|home|root|work)/", text)
    for name, x in found.items():
        assert (x["script"], x["options"]) == scripts[name] or [x["script"], x["options"]] == list(scripts[name])
        assert x["claims"] and x["machine"]["cpu"] and x["machine"]["versions"]["torch"] and x["seconds"] > 0
        for c in x["claims"]: assert {"name", "value", "limit", "kind", "passed", "what"} <= set(c) and c["passed"] in (True, False, None) and c["kind"] in ("at most", "at least")
        for c in x["claims"]: assert c["passed"] is None or c["passed"] == (c["value"] <= c["limit"] if c["kind"] == "at most" else c["value"] >= c["limit"]), c


def test_a_claim_that_failed_is_named_in_the_guide(root):
    failed = [c["name"] for x in json.loads((root / "benchmarks/results.json").read_text(encoding="utf-8"))["scripts"].values() for c in x["claims"] if c["passed"] is False]
    cells = json.loads((root / "nbs/guides/performance.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = "".join("".join(o["data"].get("text/markdown", "")) for c in cells for o in c.get("outputs", ()) if "data" in o)
    assert all(name in shown for name in failed) and ("Every claim holds" in shown) == (not failed), "run the guide again: nbs/guides/performance.ipynb"


def test_every_script_of_the_folder_is_run_or_says_why_not(root, scripts):
    left = {p.name for p in (root / "benchmarks").glob("*.py")} - {s for s, _ in scripts.values()} - {"run.py", "common.py"}
    assert left == {"kills.py", "twice.py"}, "these run a profile for many minutes; all others belong to make bench"


def test_a_script_that_breaks_is_told(root, tmp_path):
    (tmp_path / "run.py").write_text((root / "benchmarks/run.py").read_text().replace('"startup": ("startup.py", [])', '"startup": ("broken.py", [])'))
    (tmp_path / "common.py").write_text((root / "benchmarks/common.py").read_text())
    (tmp_path / "broken.py").write_text("raise SystemExit(7)")
    out = subprocess.run([sys.executable, tmp_path / "run.py", "--only", "startup", "--results", tmp_path / "r.json"], capture_output=True, text=True)
    assert out.returncode == 2 and "broken.py ended with status 7 and no result" in out.stderr and not (tmp_path / "r.json").exists()
    (tmp_path / "broken.py").write_text("import json, sys\njson.dump(dict(claims=[dict(name='x', value=2, limit=1, kind='at most', passed=False, what='')]), open(sys.argv[sys.argv.index('--json') + 1], 'w')); sys.exit(1)")
    out = subprocess.run([sys.executable, tmp_path / "run.py", "--only", "startup", "--results", tmp_path / "r.json"], capture_output=True, text=True)
    assert out.returncode == 1 and "failed: x" in out.stdout and json.loads((tmp_path / "r.json").read_text())["scripts"]["startup"]["claims"][0]["value"] == 2


def test_what_stood_before_gives_the_same(root, tmp_path):
    "The changed code beside the code as it was, in small: equal results are asserted by the script; how long each took is not looked at."
    for part in ("cache", "bootstrap"):
        out = subprocess.run([sys.executable, root / "benchmarks/before_after.py", "--only", part, "--vectors", "500", "--queries", "60", "--dim", "12", "--blocks", "12", "--resamples", "5", "--runs", "1", "--json", tmp_path / "r.json"], capture_output=True, text=True)
        assert out.returncode in (0, 1) and "equal results" in out.stdout, out.stdout + out.stderr
        assert json.loads((tmp_path / "r.json").read_text())["profile"][0]["part"] == part
