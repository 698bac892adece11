"""A profile run twice gives the same tables: python benchmarks/twice.py [--profile offline] [--batch 17]

Each run has a fresh folder and an empty cache, and in the second one the notebooks that have a parameter `encode_batch` hand their texts to
the encoders in portions of another size, so that every vector is made beside other texts. All tables have to be the same byte for byte,
but for those made of times that a notebook measures; the exit status is 1 when one is not. It takes twice as long as the profile.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from common import agreement

from eci_sem.profiles import inspect_notebook, plan
from eci_sem.results import compare_tables


def with_batch(profile: str, root: str, batch: int, folder: Path) -> tuple[Path, list[str]]:
    "A copy of a profile with another `encode_batch`, and the cells that have one."
    import eci_sem
    p = plan(profile, root)
    source = Path(profile) if profile.endswith((".yaml", ".yml")) else Path(eci_sem.__file__).parent / f"data/profiles/{profile}.yaml"
    data = yaml.safe_load(source.read_text(encoding="utf-8"))
    changed = [c.name for c in p.cells if "encode_batch" in inspect_notebook(p.root / c.notebook).parameters]
    for cell in data["cells"]:
        if cell["name"] in changed: cell["parameters"] = {**(cell.get("parameters") or {}), "encode_batch": batch}
    copy = folder / source.name
    copy.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return copy, changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="offline", help="a profile's name, or a .yaml file (default: offline)")
    parser.add_argument("--batch", type=int, default=17, help="texts encoded at a time in the second run (default: 17)")
    parser.add_argument("--root", default=".", help="the checkout (default: the current folder)")
    parser.add_argument("--work", help="an empty folder for runs and caches; it is kept (default: a temporary one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="twice-") as temporary:
        work = Path(given.work or temporary).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if any(work.iterdir()): parser.error(f"--work {given.work}: the folder is not empty")
        other, changed = with_batch(given.profile, given.root, given.batch, work)
        if not changed: print(f"no notebook of {given.profile} has a parameter encode_batch: the second run would be the first one again"); return 1
        for name, profile in (("first", given.profile), ("second", str(other))):
            clock, command = time.monotonic(), [sys.executable, "-c", "import sys; from eci_sem.cli import main; sys.exit(main())", "reproduce", "--profile", profile, "--root", given.root, "--runs", str(work / name)]
            result = subprocess.run(command, env={**os.environ, "ECI_SEM_CACHE": str(work / f"cache-{name}")}, capture_output=True, text=True)
            how = "as it is" if name == "first" else f"portions of {given.batch} in {', '.join(changed)}"
            print(f"{name} run: {time.monotonic() - clock:.0f} s, {how}", flush=True)
            if result.returncode: print(f"{result.stdout}\n{result.stderr[-2000:]}\nFAIL  the {name} run did not come through"); return 1
        found = compare_tables(work / "first", work / "second")
        problems, told = agreement(found)
        for problem in problems: print(f"FAIL  {problem}")
        if not problems: print(f"PASS  {told}, the same in both runs")
    return int(bool(problems))


if __name__ == "__main__": sys.exit(main())
