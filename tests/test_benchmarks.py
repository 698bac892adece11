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
    scripts = json.loads((root / "benchmarks/results.json").read_text(encoding="utf-8"))["scripts"].values()
    failed = [c["name"] for s in scripts for x in (s, *s.get("elsewhere", ())) for c in x["claims"] if c["passed"] is False] # on another kind of processor too
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


def test_what_another_kind_of_processor_measured_stays_beside(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    from run import elsewhere
    def found(cpu, value, instructions=None, *others): return dict(script="s.py", options=[], seconds=1.0, load=0.1, machine=dict(cpu=cpu, **({"instructions": instructions} if instructions else {})), claims=[dict(value=value)], **({"elsewhere": list(others)} if others else {}))
    bare = lambda x: {k: v for k, v in x.items() if k not in ("script", "elsewhere")}
    here = found("EPYC", 0, "avx2")["machine"]
    assert elsewhere(None, here) == elsewhere(found("EPYC", 1, "avx2"), here) == []
    assert elsewhere(old := found("EPYC", 2, "avx2 avx512_bf16"), here) == [bare(old)], "one name, two kinds"
    assert elsewhere(old := found("Xeon", 3), here) == [bare(old)], "an older file does not tell the instructions"
    older = bare(found("EPYC", 4, "avx2")), bare(found("Xeon", 5, "amx_bf16")), bare(found("Arm", 6, "none"))
    assert elsewhere(old := found("Xeon", 7, "amx_bf16", *older), here) == [bare(old), older[2]], "the latest of each, and none of this one"


def test_what_stood_before_gives_the_same(root, tmp_path):
    "The changed code beside the code as it was, in small: equal results are asserted by the script; how long each took is not looked at."
    from eci_sem.products import quicker_ways
    for part in ("encode", "products", "bfloat16", "cache", "bootstrap"):
        out = subprocess.run([sys.executable, root / "benchmarks/before_after.py", "--only", part, "--texts", "3", "--vectors", "500", "--reads", "5", "--queries", "60", "--dim", "12", "--blocks", "12", "--resamples", "5", "--runs", "1", "--json", tmp_path / "r.json"], capture_output=True, text=True)
        report = json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda x: pytest.fail(f"{x} is no JSON"))
        if part in ("products", "bfloat16") and not any(quicker_ways("float32" if part == "products" else part)):
            assert out.returncode == 0 and report["claims"][0]["passed"] is None and report["claims"][0]["value"] is None and "PyTorch's own choice" in report["claims"][0]["what"] and not report["profile"]
            continue
        assert out.returncode in (0, 1) and "equal results" in out.stdout, out.stdout + out.stderr
        found, steps = report["profile"][0], {(s["of"], s["step"]): s["seconds"] for s in report["steps"]}
        assert found["part"] == part and found["turns"] == (5 if part == "cache" else 1) and report["claims"][0]["value"] == found["gain_lower"] <= found["gain"] and "lower end of" in report["claims"][0]["what"]
        if part in ("encode", "products", "bfloat16"):
            assert "plain" not in steps and {of for of, _ in steps} == {"before", "after"}
            for of in ("before", "after"): # a transformer multiplies matrices, and no kind of operator is made up by subtraction
                assert steps[of, "matrix products"] > 0 and steps[of, "attention"] > 0 and steps[of, "norms and activations"] > 0 and steps[of, "other operators"] < 0.3 * steps[of, "matrix products"]


def test_a_gain_within_noise_is_none(root, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    from before_after import lower_end
    assert lower_end([3.0]) == 3 and lower_end([1.1, 0.9, 1.2]) == 0.9 and lower_end([1.0, 2, 3, 4, 5]) == 1
    assert lower_end([9.0, 1, 2, 3, 4, 5, 6, 7, 8]) == 2 # 10 of 512 outcomes put the median below it
    assert lower_end([1.09 + 0.2 * (-1)**k for k in range(9)]) < 1 < lower_end([1.09 + 0.02 * (-1)**k for k in range(9)])


def test_the_line_about_a_gpu_is_there_without_one(root, tmp_path):
    import torch
    out = subprocess.run([sys.executable, root / "benchmarks/scale.py", "--small", "--triples", "2000", "--only", "map", "--folder", tmp_path, "--json", tmp_path / "r.json"], capture_output=True, text=True)
    claims = {c["name"]: c for c in json.loads((tmp_path / "r.json").read_text(), parse_constant=lambda x: pytest.fail(f"{x} is no JSON"))["claims"]}
    found = claims["scoring on a GPU, times reading the embeddings once"]
    if not torch.cuda.is_available(): assert found["passed"] is None and found["value"] is None and found["what"].startswith("not applicable here: no GPU"), out.stdout
