"""Every experiment notebook runs with tiny parameters, the way `make paper` runs it at full size; what ran before comes out again."""
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eci_sem.results import compare_tables, read_manifest
from eci_sem.runs import plan, run, versions

# how far a number may be from the committed one: other machines add up in another order; absolute below 1, relative above
TOLERANCE = 1e-9
VECTORS = 1e-6 # where an encoder has a part: float32 sums differ from one processor to another
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def smoke(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    p = plan("smoke", root=root)
    return p, run(p, folder / "runs", figures_dir=folder / "figures"), folder


def test_every_experiment_runs_with_tiny_parameters(root, smoke):
    p, report, folder = smoke
    assert {c.notebook for c in p.cells} == {f"nbs/experiments/{f.name}" for f in (root / "nbs/experiments").glob("*.ipynb")}, "each experiment has a cell in the profile smoke"
    assert report.exit_status == 0, repr(report)
    for cell in p.cells:
        made = {f.suffix for f in (folder / "figures" / cell.name).iterdir()}
        assert made & {".csv", ".json"}, f"{cell.name} leaves no table"
    told = {c.name: (folder / "figures" / c.name / "findings.md").read_text(encoding="utf-8") for c in p.cells if (folder / "figures" / c.name / "findings.md").exists()}
    assert {"transfer/glove-docstrings", "agreement", "cross_family", "ablations", "theory", "validity"} <= set(told) and "before training" in told["transfer/glove-docstrings"], "what was found stands in words beside the tables"
    assert {".png", ".svg", ".csv", ".parquet"} <= {f.suffix for f in (folder / "figures/ranking").iterdir()}


def test_every_row_says_what_it_was_made_from(smoke):
    import pandas as pd
    from eci_sem.tables import RUN_COLUMNS
    p, _, folder = smoke
    for cell in p.cells:
        here = folder / "runs/smoke" / cell.folder
        for path in here.glob("*.parquet"):
            full = pd.read_parquet(path)
            # a generator of text leaves its tables to others; all else names its parameters, seed and versions
            assert set(RUN_COLUMNS) <= set(full.columns) and (full["run_seed"] == cell.parameters.get("seed", 0)).all() and full["run_versions"].astype("str").str.contains("numpy=").all(), path.name
            assert not [v for v in full["run_parameters"].astype("str").unique() if str(folder) in v or ".part" in v], f"{cell.name}/{path.name} holds a folder of its run"
        for path in here.glob("*.csv"): assert path.open().readline().strip().split(",")[-6:] == ["run", *RUN_COLUMNS], f"{cell.name}/{path.name} does not name its run: save it with save_table or save_figure"


def test_two_runs_and_portions_of_another_size_give_the_same_bytes(root, tmp_path):
    "What benchmarks/twice.py does with the profile offline, in small: from empty caches, the second time in portions of 17 texts."
    cells = [dict(name="ranking", notebook="experiments/ranking", parameters=dict(encoders=["glove"], queries=40, corpus_documents=200, resamples=50))]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(dict(about="a cell in small", cells=cells)))
    result = subprocess.run([sys.executable, root / "benchmarks/twice.py", "--profile", tmp_path / "two.yaml", "--root", root], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "portions of 17 in ranking" in result.stdout and "PASS  " in result.stdout and "tables, the same in both runs" in result.stdout


def pinned(root):
    "The versions of constraints.txt."
    lines = (line.split("#")[0].strip() for line in (root / "constraints.txt").read_text().splitlines())
    return {name.lower().replace("_", "-"): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}

COMPUTE = ("numpy", "scipy", "pandas", "pyarrow", "torch", "transformers", "sentence-transformers", "tokenizers", "bm25s", "beir", "pytrec-eval-terrier")

@pytest.mark.parametrize("folder", [p.parent.relative_to(ROOT / "figures").as_posix() for depth in ("*", "*/*") for p in sorted((ROOT / "figures").glob(f"{depth}/manifest.json"))])
def test_committed_tables_were_made_with_the_pinned_versions(root, folder):
    made, pins = read_manifest(root / "figures" / folder)["versions"], pinned(root)
    assert not {k: (v, pins[k]) for k, v in made.items() if k in COMPUTE and k in pins and v != pins[k]}, f"figures/{folder} is older than constraints.txt: run it again"
    assert set(made) & set(COMPUTE) >= {"numpy", "torch"}

def committed(root, cell):
    m, here = read_manifest(root / "figures" / cell), versions()
    assert m, f"figures/{cell} holds no manifest: make paper writes it"
    # with the pinned versions nothing is skipped: only somebody's own environment may differ
    other = {k: (v, here[k]) for k, v in m["versions"].items() if k in COMPUTE and k in here and v != here[k]}
    if other: pytest.skip(f"the committed tables were made with other versions: {other}")
    return m

@pytest.mark.parametrize("folder", [p.parent.relative_to(ROOT / "figures").as_posix() for p in sorted((ROOT / "figures").glob("transfer*/*/scores.parquet"))])
def test_the_committed_gains_follow_from_the_committed_scores(root, folder):
    "Every interval of figures/transfer is made from the scores of every query that stand beside it."
    import json
    import numpy as np
    import pandas as pd
    from eci_sem.tables import without_run
    from eci_sem.transfer import METRICS, UNTRAINED, summarise
    here = root / "figures" / folder
    p = json.loads((here / "transfer.run.json").read_text())["meta"]["parameters"]
    table = pd.read_parquet(here / "scores.parquet", columns=["source", "seed", "dataset", "query_id", *METRICS]).astype({"source": str, "dataset": str, "query_id": str, "seed": int})
    # one collection, so that it takes a second
    one = sorted(set(table["dataset"]))[0]
    found = summarise(table[table["dataset"] == one], baseline="none" if p["in_batch"] else "random", resamples=p["resamples"], seed=p["seed"])
    want = pd.read_csv(here / "transfer.csv").query("dataset == @one").pipe(without_run).drop(columns="kind")
    assert len(want) and set(found["source"]) == set(want["source"]) and UNTRAINED in set(found["source"])
    pd.testing.assert_frame_equal(found.set_index(["metric", "source"]).sort_index(), want.set_index(["metric", "source"]).sort_index(), check_dtype=False, check_like=True, rtol=1e-9, atol=1e-12)


def test_the_committed_tables_come_out_again(root, smoke):
    _, report, _ = smoke
    m = committed(root, "published")
    if m["parameters"] != read_manifest(report["published"].folder)["parameters"]: pytest.skip("the committed tables have other parameters")
    found = compare_tables(report["published"].folder, root / "figures/published", tolerance=TOLERANCE)
    assert len(found) >= 6 and not [c for c in found if c.verdict not in ("same", "close")], found


def test_a_training_of_the_controls_alone_says_what_they_gave(root, tmp_path):
    parameters = dict(encoder="glove", methods=["random"], hybrids=[], seeds=1, train_queries=48, test_queries=24, resamples=50)
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(dict(cells=[dict(name="controls", notebook="experiments/transfer", parameters=parameters)])))
    report = run(plan(tmp_path / "one.yaml", root=root), tmp_path / "runs", figures_dir=tmp_path / "figures")
    assert report.exit_status == 0, repr(report)
    said = (tmp_path / "figures/controls/findings.md").read_text(encoding="utf-8")
    assert "- **docstrings** (24 queries, 1 seeds): no source but the controls was trained on: `none` nDCG@10 0." in said and ", `random` nDCG@10 0." in said and "; before training 0." in said


def test_the_committed_ranking_comes_out_again(root, tmp_path):
    "One encoder at full size: its rows don't depend on the others."
    import pandas as pd
    from eci_sem.tables import without_run
    m = committed(root, "ranking")
    parameters = {k: v for k, v in m["parameters"].items()} | dict(encoders=["glove"])
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(dict(cells=[dict(name="ranking", notebook="experiments/ranking", parameters=parameters)])))
    report = run(plan(tmp_path / "one.yaml", root=root), tmp_path / "runs")
    assert report.exit_status == 0, repr(report)
    for name in ("table_scores.csv", "claims.csv", "spectrum.csv"):
        ours, theirs = (without_run(pd.read_csv(f / name)).query("encoder == 'glove'").reset_index(drop=True) for f in (report["ranking"].folder, root / "figures/ranking"))
        pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, rtol=VECTORS, atol=VECTORS)
