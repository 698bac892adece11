"""Saved tables: what they hold, that equal results have equal bytes, and what is refused."""
import hashlib
import json

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.collection import InputError
from eci_sem.tables import CSV_COLUMNS, RUN_COLUMNS, run_columns, run_digits, run_id, save_table, versions, without_run

META = dict(parameters=dict(encoders=["glove"], tau=0.05, seed=3), collection=dict(name="docstrings", content_hash="abc", documents=10, origin=dict(versions=dict(numpy="2"))),
    encoders=dict(glove=dict(name="glove", fingerprint="f1", weights_sha256="w1"), minilm=dict(name="minilm", fingerprint="f2")), triples=dict(glove="t1", minilm="t2"))
FRAME = pd.DataFrame(dict(source=["bm25", "llm", "NA"], value=[0.1, -2e-17, np.nan], n=[1, 2, 3], good=[True, False, True]))


def test_what_is_written(tmp_path):
    csv, parquet, record = save_table(FRAME, "scores", tmp_path / "new", META)
    assert [p.name for p in (csv, parquet, record)] == ["scores.csv", "scores.parquet", "scores.run.json"]
    run = run_id(META)
    digits = run_digits(run_columns(META))
    tail = ",".join([run, *(str(digits[c]) for c in RUN_COLUMNS)])
    assert csv.read_text() == f"source,value,n,good,run,run_parameters,run_seed,run_versions,run_data,run_models\nbm25,0.1,1,True,{tail}\nllm,-2e-17,2,False,{tail}\nNA,,3,True,{tail}\n" and len(run) == 12
    full = pd.read_parquet(parquet)
    assert not pq.read_schema(parquet).metadata # where pandas notes its own version
    assert list(full.columns) == ["source", "value", "n", "good", *RUN_COLUMNS]
    pd.testing.assert_frame_equal(full[list(FRAME)], FRAME, check_dtype=False)
    for row in full.to_dict("records"): # in each of them
        assert json.loads(row["run_parameters"]) == META["parameters"] and row["run_seed"] == 3 and f"numpy={np.__version__}" in row["run_versions"]
        assert json.loads(row["run_data"]) == {"collection": {"docstrings": "abc"}, "triples": {"glove": "t1", "minilm": "t2"}} and json.loads(row["run_models"]) == {"encoders": {"glove": "f1", "minilm": "f2"}}
    saved = json.loads(record.read_text())
    # what the digits of the CSV stand for is in the Parquet file and in the record
    assert saved["columns"] == digits == {c: 3 if c == "run_seed" else hashlib.sha256(str(full[c].iloc[0]).encode()).hexdigest()[:12] for c in RUN_COLUMNS}
    pd.testing.assert_frame_equal(without_run(pd.read_csv(csv, keep_default_na=False, na_values=[""])), without_run(full), check_dtype=False)
    assert saved["run"] == run and saved["meta"] == META and saved["versions"] == versions() and saved["rows"] == 3
    assert saved["sha256"] == {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (csv, parquet)}
    assert not [p for p in (tmp_path / "new").iterdir() if p.name.startswith(".")]


def test_the_name_of_a_run_follows_its_description_and_the_versions(monkeypatch):
    run = run_id(META)
    assert run_id(json.loads(json.dumps(META))) == run and run_id(dict(reversed(META.items()))) == run
    assert len({run, run_id({**META, "parameters": {**META["parameters"], "seed": 4}}), run_id({**META, "triples": "t"}), run_id({**META, "note": 1})}) == 4
    monkeypatch.setattr("eci_sem.tables.versions", lambda: {"python": "4"})
    assert run_id(META) != run


def test_the_digits_in_a_csv_tell_what_differs(monkeypatch):
    one = run_digits(run_columns(META))
    def differs(meta): return {k for k, v in run_digits(run_columns(meta)).items() if v != one[k]}
    assert differs(json.loads(json.dumps(META))) == set()
    assert differs({**META, "parameters": {**META["parameters"], "tau": 0.1}}) == {"run_parameters"}
    assert differs({**META, "parameters": {**META["parameters"], "seed": 4}}) == {"run_parameters", "run_seed"}
    assert differs({**META, "triples": "t"}) == {"run_data"} and differs({**META, "encoders": {}}) == {"run_models"}
    monkeypatch.setattr("eci_sem.tables.versions", lambda: {"python": "4"})
    assert differs(META) == {"run_versions"}
    assert run_digits(run_columns(dict(parameters={})))["run_seed"] is None and run_columns(dict(parameters={}, seed=5))["run_seed"] == 5 == run_columns(dict(parameters=dict(seed=5), seed=6))["run_seed"]


@pytest.mark.parametrize("meta, data, models", [
    (dict(collections=dict(a=dict(name="a", content_hash="h1"), b=dict(content_hash="h2"))), {"collections": {"a": "h1", "b": "h2"}}, {}),
    (dict(collections=[dict(name="a", content_hash="h1"), dict(name="b", content_hash="h2")]), {"collections": {"a": "h1", "b": "h2"}}, {}),
    (dict(data="d" * 64, encoder=dict(name="glove", fingerprint="f", dim=50)), {"data": "d" * 64}, {"encoder": {"glove": "f"}}),
    (dict(datasets=dict(scifact="h3")), {"datasets": {"scifact": "h3"}}, {}),
    (dict(data={"cell/table.csv": "s1", "empty": {}}), {"data": {"cell/table.csv": "s1"}}, {}),
    (dict(), {}, {}),
])
def test_hashes_are_found_in_every_shape_of_a_description(meta, data, models):
    found = run_columns(dict(parameters={}, **meta))
    assert json.loads(found["run_data"]) == data and json.loads(found["run_models"]) == models and found["run_seed"] is None


def test_names_in_the_index_become_columns_and_the_frame_is_left_alone(tmp_path):
    frame = FRAME.set_index(["source", "n"])
    before = frame.copy(deep=True)
    csv, parquet, _ = save_table(frame, "a", tmp_path, META)
    pd.testing.assert_frame_equal(frame, before)
    assert list(pd.read_csv(csv).columns) == ["source", "n", "value", "good", *CSV_COLUMNS]
    # an index without a name is where the rows came from, and no value
    shuffled = save_table(FRAME.iloc[::-1].iloc[::-1], "b", tmp_path, META)
    assert shuffled[0].read_text() == save_table(FRAME, "c", tmp_path, META)[0].read_text()


def test_a_table_without_rows_keeps_its_columns(tmp_path):
    csv, parquet, record = save_table(FRAME.iloc[:0], "none", tmp_path, META)
    assert csv.read_text() == f"source,value,n,good,{','.join(CSV_COLUMNS)}\n" and list(pd.read_parquet(parquet).columns) == [*FRAME, *RUN_COLUMNS] and json.loads(record.read_text())["rows"] == 0


def test_without_the_csv(tmp_path):
    frame = FRAME.astype({"source": "category", "n": "int16"})
    assert [p.name for p in save_table(frame, "long", tmp_path, META, csv=False)] == ["long.parquet", "long.run.json"] == sorted(p.name for p in tmp_path.iterdir())
    back = pd.read_parquet(tmp_path / "long.parquet")
    assert back["source"].astype(str).tolist() == FRAME["source"].tolist() and back["n"].dtype == "int16" and back["run_seed"].tolist() == [3] * 3
    assert set(json.loads((tmp_path / "long.run.json").read_text())["sha256"]) == {"long.parquet"}


def test_the_run_takes_no_room_in_a_long_parquet_file(tmp_path):
    long, meta = pd.DataFrame(dict(x=np.arange(100_000) % 7)), {**META, "parameters": dict(text="x" * 5000, seed=0)}
    _, parquet, _ = save_table(long, "long", tmp_path, meta)
    assert parquet.stat().st_size < 150_000 and pd.read_parquet(parquet, columns=["run_parameters"])["run_parameters"].nunique() == 1


text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(text, st.floats(allow_nan=False, width=64), st.integers(-2**53, 2**53), st.booleans()), min_size=1, max_size=8))
def test_numbers_come_back_to_the_last_bit_and_the_bytes_are_the_same(tmp_path_factory, rows):
    frame = pd.DataFrame(rows, columns=["t", "x", "i", "b"])
    one, two = (save_table(frame, "t", tmp_path_factory.mktemp("t"), META) for _ in range(2))
    for a, b in zip(one, two): assert a.read_bytes() == b.read_bytes()
    back = pd.read_csv(one[0], keep_default_na=False, dtype=dict(t=str))
    assert back["x"].to_numpy(float).tobytes() == frame["x"].to_numpy().tobytes() and (back["i"].to_numpy() == frame["i"].to_numpy()).all() and back["t"].tolist() == frame["t"].tolist()
    full = pd.read_parquet(one[1])
    assert full["x"].to_numpy().tobytes() == frame["x"].to_numpy().tobytes() and full["t"].tolist() == frame["t"].tolist() and (full["b"] == frame["b"]).all()


def test_a_carriage_return_in_a_cell_keeps_its_row_and_other_files_their_bytes(tmp_path):
    from eci_sem.figures import _csv
    odd = pd.DataFrame({"a\rb": ["x\ry", 'q"\r\n,', "\r", "plain", "two\nlines", None], "n": [1.5, 2, np.nan, 4, 5, 6]})
    text = save_table(odd, "t", tmp_path, META)[0].read_bytes().decode()
    assert text.splitlines()[-1].startswith(",6.0,") and '\nplain,4.0,' in text and '\n"two\nlines",5.0,' in text # quoted where need be
    (tmp_path / "f.csv").write_bytes(_csv(odd))
    for name in ("t", "f"): pd.testing.assert_frame_equal(without_run(pd.read_csv(tmp_path / f"{name}.csv", keep_default_na=False, na_values=[""])), odd, check_dtype=False)
    assert _csv(odd[3:5].rename(columns={"a\rb": "a"})) == b'a,n\nplain,4.0\n"two\nlines",5.0\n'


@pytest.mark.parametrize("frame, stem, meta, match", [
    (FRAME, "a/b", META, "stem 'a/b': expected a file name without folder or ending"),
    ([1], "t", META, "table t: found list, expected a pandas DataFrame"),
    (FRAME.rename(columns={"n": "run"}), "t", META, "table t: column 'run' is one that save_table adds; give yours another name"),
    (FRAME.rename(columns={"n": "run_seed"}), "t", META, "column 'run_seed' is one that save_table adds"),
    (FRAME.rename(columns={"n": 3}), "t", META, "a column is named 3, expected text"),
    (FRAME.rename(columns={"n": "value"}), "t", META, "two columns are named 'value'"),
    (pd.DataFrame(dict(x=[[1], [2]])), "t", META, "column 'x' holds list values, expected one number or text per cell"),
    (pd.DataFrame(dict(x=[None, np.zeros(2)])), "t", META, "column 'x' holds ndarray values"),
    (pd.DataFrame(dict(x=[1, "two"])), "t", META, "table t: .*; expected one type per column"),
    (FRAME, "t", dict(seed=0), "meta is \\[\"seed\"\\], expected a dict with 'parameters'"),
    (FRAME, "t", dict(parameters=[1]), "expected a dict with 'parameters'"),
    (FRAME, "t", dict(parameters=dict(out="runs/x")), "holds 'out', the folder of this one run"),
    (FRAME, "t", dict(parameters=dict(x=float("nan"))), "meta can't be written as JSON"),
    (FRAME, "t", dict(parameters={}, x=object()), "meta can't be written as JSON"),
    (FRAME, "t", dict(parameters=dict(seed="one")), "a whole number as seed"),
])
def test_refused_before_anything_is_written(tmp_path, frame, stem, meta, match):
    with pytest.raises(InputError, match=match): save_table(frame, stem, tmp_path, meta)
    assert not list(tmp_path.iterdir())
