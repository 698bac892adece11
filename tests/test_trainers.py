"""Data sets of sentence-transformers written batch by batch: what `datasets` itself would write, in bounded memory, whole or not at all."""
import json
import os
import tracemalloc

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eci_sem.trainers
from eci_sem.checks import check_file
from eci_sem.collection import InputError
from eci_sem.formats import recognise, write_triples
from eci_sem.trainers import LAYOUTS, layout_rows, to_dataset, write_layout
from eci_sem.triples import Triples


def some(queries, per=2): return Triples.from_rows([dict(query=f"q{q}", positive=f"p{q} é", negatives=[f"n{q}.{k}" for k in range(per)]) for q in range(queries)])
def parts(t, size): return [t.take(range(i, min(i + size, len(t)))) for i in range(0, len(t), size)]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(queries=st.integers(1, 9), per=st.integers(1, 3), size=st.integers(1, 30), batch=st.integers(1, 9), shard=st.sampled_from([1, 3_000, 1 << 30]))
@settings(max_examples=12, deadline=None)
def test_a_folder_is_what_datasets_makes_of_the_table(tmp_path_factory, layout, queries, per, size, batch, shard):
    import datasets
    t, folder = some(queries, per), tmp_path_factory.mktemp("t") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eci_sem.trainers, "_BATCH", batch)
        patch.setattr(eci_sem.trainers, "_SHARD", shard)
        write_layout(parts(t, size), folder, layout)
    back, held = datasets.load_from_disk(str(folder)), to_dataset(t, layout)
    assert back.to_list() == held.to_list() and back.features == held.features and len(back) == len(held)
    state = json.loads((folder / "state.json").read_text())
    files = [f["filename"] for f in state["_data_files"]]
    assert files == [f"data-{k:05d}-of-{len(files):05d}.arrow" for k in range(len(files))] and sorted(os.listdir(folder)) == sorted([*files, "dataset_info.json", "state.json"]) and (shard > 1 or len(files) == -(-len(held) // batch))
    own = folder.with_name("own")
    datasets.disable_progress_bars()
    held.save_to_disk(str(own))
    theirs = json.loads((own / "state.json").read_text())
    assert {k: v for k, v in state.items() if k not in ("_data_files", "_fingerprint")} == {k: v for k, v in theirs.items() if k not in ("_data_files", "_fingerprint")} and (folder / "dataset_info.json").read_bytes() == (own / "dataset_info.json").read_bytes()
    assert recognise(folder) == layout and Triples.read(folder).table.equals(Triples.read(own).table)
    assert os.listdir(folder.parent).count("data") == 1 and not [f for f in os.listdir(folder.parent) if f.startswith(".")]


def test_the_same_triples_make_the_same_folder_whatever_the_batches(tmp_path):
    t = some(40)
    for name, size in (("a", 7), ("b", 80)): write_layout(parts(t, size), tmp_path / name, "st-labeled-list")
    for file in os.listdir(tmp_path / "a"): assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_in_batches(tmp_path, monkeypatch, layout, name):
    t = some(30)
    monkeypatch.setattr(eci_sem.trainers, "_BATCH", 7)
    path = write_layout(parts(t, 11), tmp_path / name, layout)
    assert recognise(path) == layout and Triples.read(path).texts("negative") == t.texts("negative") and os.listdir(tmp_path) == [name]
    if name == "t.parquet": assert pq.read_table(path).to_pylist() == list(layout_rows([t], layout)) and pq.ParquetFile(path).num_row_groups > 1


def test_a_query_of_two_batches_is_one_row():
    t = some(2, 4)
    assert [r["labels"] for r in layout_rows(parts(t, 3), "st-labeled-list")] == [[1, 0, 0, 0, 0]] * 2


@pytest.mark.parametrize("name", ["data", "t.jsonl", "t.parquet"])
def test_what_a_layout_can_not_hold_leaves_nothing_behind(tmp_path, monkeypatch, name):
    monkeypatch.setattr(eci_sem.trainers, "_BATCH", 2)
    uneven = Triples.concat([some(5), Triples.from_rows([dict(query="z", positive="p", negatives=["a", "b", "c"]), dict(query="y", positive="p", negatives=["a"])]), some(3)])
    with pytest.raises(InputError, match="number 1 to 3, and 'st-n-tuple' holds one number of negatives for all"): write_layout(parts(uneven, 3), tmp_path / name, "st-n-tuple")
    two = [some(3), some(3).rename(source="negatives", to="other")]
    with pytest.raises(InputError, match="the table holds the sources negatives, other, and 'st-triplet' has no place for them"): write_layout(two, tmp_path / name, "st-triplet")
    with pytest.raises(InputError, match="the table has no rows to write"): write_layout([], tmp_path / name, "st-triplet")
    with pytest.raises(InputError, match="unknown layout 'triplet'"): write_layout([some(1)], tmp_path / name, "triplet")
    def broken():
        yield some(5)
        raise InputError("the reader stopped")
    with pytest.raises(InputError, match="the reader stopped"): write_layout(broken(), tmp_path / name, "st-triplet")
    assert os.listdir(tmp_path) == []


def test_an_old_folder_stays_when_the_new_one_fails(tmp_path):
    folder = write_layout([some(3)], tmp_path / "data", "st-triplet")
    before = {f: (folder / f).read_bytes() for f in os.listdir(folder)}
    with pytest.raises(InputError): write_layout([some(3), some(1).rename(source="negatives", to="other")], folder, "st-triplet")
    assert {f: (folder / f).read_bytes() for f in os.listdir(folder)} == before and os.listdir(tmp_path) == ["data"]
    write_layout([some(4)], folder, "st-triplet")
    assert len(Triples.read(folder)) == 8


def test_the_clean_rows_of_a_file_go_to_a_folder(tmp_path):
    import datasets
    t = some(20)
    path = Triples.concat([t, t.take([0, 3])]).write(tmp_path / "t.jsonl")
    report = check_file(path, batch=7)
    folder = report.write_clean(tmp_path / "clean", "st-n-tuple")
    assert datasets.load_from_disk(str(folder)).to_list() == to_dataset(t, "st-n-tuple").to_list()
    with pytest.raises(InputError, match="has no use for corpus="): report.write_clean(tmp_path / "x", "st-triplet", corpus=tmp_path / "c")


@pytest.mark.parametrize("name", ["data", "t.parquet", "t.jsonl"])
def test_four_times_the_rows_take_no_more_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(eci_sem.trainers, "_BATCH", 250)
    used, held = {}, {}
    def batches(n):
        for i in range(0, n, 250): yield Triples.from_pandas(pd.DataFrame(dict(query=[f"q {k // 2}" for k in range(i, i + 250)], positive=[f"p {k // 2} " + "y" * 400 for k in range(i, i + 250)], negative=[f"n {k} " + "z" * 400 for k in range(i, i + 250)])))
    for n in (250, 1_000, 4_000): # the first one brings in what is imported on the way
        arrow = pa.total_allocated_bytes()
        peak = [0]
        def watched():
            for t in batches(n): yield t; peak[0] = max(peak[0], pa.total_allocated_bytes() - arrow)
        tracemalloc.start()
        write_layout(watched(), tmp_path / f"{n}{name}", "st-labeled-list")
        used[n] = tracemalloc.get_traced_memory()[1] + peak[0]
        tracemalloc.stop()
    assert used[4_000] < 1.3 * used[1_000] + 2e5
