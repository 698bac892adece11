"""Every experiment notebook runs with tiny parameters, the way `make paper` runs it at full size; what ran before comes out again."""
import subprocess
import sys

import pytest
import yaml

from eci_sem.results import compare_tables, read_manifest
from eci_sem.runs import plan, run, versions

# how far a number may be from the committed one: other machines add up in another order; absolute below 1, relative above
TOLERANCE = 1e-9


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
        for path in here.glob("*.csv"): assert "run" in path.open().readline().strip().split(","), f"{cell.name}/{path.name} does not name its run: save it with save_table or save_figure"


def test_two_runs_and_portions_of_another_size_give_the_same_bytes(root, tmp_path):
    "What benchmarks/twice.py does with the profile offline, in small: from empty caches, the second time in portions of 17 texts."
    cells = [dict(name="published", notebook="experiments/published", parameters=dict(matrices=20)),
        dict(name="ranking", notebook="experiments/ranking", parameters=dict(encoders=["glove"], queries=40, corpus_documents=200, resamples=50))]
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(dict(about="two cells in small", cells=cells)))
    result = subprocess.run([sys.executable, root / "benchmarks/twice.py", "--profile", tmp_path / "two.yaml", "--root", root], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "portions of 17 in ranking" in result.stdout and "PASS  " in result.stdout and "tables, the same in both runs" in result.stdout


def committed(root, cell):
    m = read_manifest(root / "figures" / cell)
    assert m, f"figures/{cell} holds no manifest: make paper writes it"
    if m["versions"] != versions(): pytest.skip("the committed tables were made with other versions")
    return m


def test_the_committed_tables_come_out_again(root, smoke):
    _, report, _ = smoke
    m = committed(root, "published")
    if m["parameters"] != read_manifest(report["published"].folder)["parameters"]: pytest.skip("the committed tables have other parameters")
    found = compare_tables(report["published"].folder, root / "figures/published", tolerance=TOLERANCE)
    assert len(found) >= 6 and not [c for c in found if c.verdict not in ("same", "close")], found


def test_the_committed_ranking_comes_out_again(root, tmp_path):
    "One encoder at full size: its rows don't depend on the others."
    import pandas as pd
    m = committed(root, "ranking")
    parameters = {k: v for k, v in m["parameters"].items()} | dict(encoders=["glove"])
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(dict(cells=[dict(name="ranking", notebook="experiments/ranking", parameters=parameters)])))
    report = run(plan(tmp_path / "one.yaml", root=root), tmp_path / "runs")
    assert report.exit_status == 0, repr(report)
    for name in ("table_scores.csv", "claims.csv", "spectrum.csv"):
        ours, theirs = (pd.read_csv(f / name).query("encoder == 'glove'").drop(columns="run", errors="ignore").reset_index(drop=True) for f in (report["ranking"].folder, root / "figures/ranking"))
        pd.testing.assert_frame_equal(ours, theirs, check_dtype=False, rtol=TOLERANCE, atol=TOLERANCE)
