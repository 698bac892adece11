"""The guides: one for each task, each begins with its result and says what can go wrong. nbdev-test runs them."""
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("score_my_triples", "mine_negatives", "compare_two_miners", "choose_sample_size", "add_my_encoder", "add_my_factor", "run_a_batch")


def cells(name: str) -> list[dict]: return json.loads((ROOT / "nbs/guides" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def source(cell: dict) -> str: return "".join(cell["source"])


def test_there_is_a_guide_for_each_task():
    assert set(TASKS) <= {p.stem for p in (ROOT / "nbs/guides").glob("*.ipynb")}
    assert not (ROOT / "nbs/guides/.notest").exists(), "nbdev-test would pass the guides over"


GUIDES = sorted(p.stem for p in (ROOT / "nbs/guides").glob("*.ipynb"))


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_begins_with_its_result(name):
    first = next(c for c in cells(name) if c["cell_type"] == "code")
    results = [o for o in first["outputs"] if o["output_type"] in ("execute_result", "display_data", "stream") and o.get("name") != "stderr"]
    assert results, "the first code cell shows the result"
    before = [c for c in cells(name)[:cells(name).index(first)]]
    assert len(before) <= 3 and all(c["cell_type"] == "markdown" for c in before)


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_reads_well(name):
    found, code = cells(name), [source(c) for c in cells(name) if c["cell_type"] == "code"]
    assert re.match(r"# .+\n+> .+", source(found[0])), "the first cell is '# Title' and '> one line'"
    lengths = sorted(len(c.splitlines()) for c in code)
    assert lengths[len(lengths) // 2] <= 6 and lengths[-1] <= 30, "cells are short"
    assert any("## What can go wrong" in source(c) for c in found if c["cell_type"] == "markdown")
    prose = sum(len(source(c).split()) for c in found if c["cell_type"] == "markdown")
    assert prose >= 200, "a guide explains"
    assert not any(re.search(r"^#\|", c, re.M) for c in code), "nothing of a guide is hidden or exported"


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_leaves_nothing_behind(name):
    text = "\n".join(source(c) for c in cells(name) if c["cell_type"] == "code")
    # whatever is written goes to a folder that is removed when the guide is through
    if re.search(r"\.write|write_text|\.save|open\(|mkdir", text): assert "TemporaryDirectory()" in text


@pytest.mark.parametrize("name", GUIDES)
def test_guides_that_are_named_exist(name):
    text = "\n".join(source(c) for c in cells(name) if c["cell_type"] == "markdown")
    for other in re.findall(r"guides? `(\w+)`", text): assert other in GUIDES
