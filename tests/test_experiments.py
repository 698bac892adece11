"""Every experiment notebook runs with tiny parameters, the way `make paper` runs it at full size."""
from eci_sem.runs import plan, run


def test_every_experiment_runs_with_tiny_parameters(root, tmp_path):
    p = plan("smoke", root=root)
    assert {c.notebook for c in p.cells} == {f"nbs/experiments/{f.name}" for f in (root / "nbs/experiments").glob("*.ipynb")}, "each experiment has a cell in the profile smoke"
    report = run(p, tmp_path / "runs", figures_dir=tmp_path / "figures")
    assert report.exit_status == 0, repr(report)
    for cell in p.cells:
        made = {f.suffix for f in (tmp_path / "figures" / cell.name).iterdir()}
        assert made & {".csv", ".json"}, f"{cell.name} leaves no table"
    assert {".png", ".svg", ".csv"} <= {f.suffix for f in (tmp_path / "figures/ranking").iterdir()}
