"""One job at a time writes to a store of generated texts: two processes, a killed holder, and readers beside it."""
import json
import os
import signal
import subprocess
import sys

import pytest

from eci_sem.collection import InputError
from eci_sem.writer import _Store

HEADER = dict(format="eci_sem endpoint negatives 1", prompt_sha256="0", config={}, model=dict(name="m"))
HOLD = """
import sys
from eci_sem.writer import _Store
with _Store(sys.argv[1], {header!r}) as store:
    store.append([dict(key="a", attempt=0, raw="x")])
    print("held", flush=True)
    sys.stdin.readline()
""".format(header=HEADER)


def holder(path):
    job = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert job.stdout.readline() == "held\n"
    return job


def test_a_second_job_stops_and_names_the_first(tmp_path):
    path = tmp_path / "store.jsonl"
    job = holder(path)
    try:
        before = path.read_bytes()
        with pytest.raises(InputError, match=rf"store.jsonl: another job \(process {job.pid}\) is writing to this store\. Wait until it ends and run again: what it wrote is not written twice; or give another store\."): _Store(path, HEADER)
        assert path.read_bytes() == before
        seen = _Store(path, HEADER, write=False) # reading is free, a line that is being written is left aside
        assert list(seen.rows) == ["a"]
        with open(path, "a") as f: f.write('{"key": "b", "att')
        assert list(_Store(path, HEADER, write=False).rows) == ["a"] and path.read_bytes().endswith(b'"att')
        os.truncate(path, len(before))
    finally: job.communicate("\n", timeout=30)
    with _Store(path, HEADER) as store: assert list(store.rows) == ["a"]
    assert os.listdir(tmp_path) == ["store.jsonl"], "no lock stays behind"


def test_a_killed_job_holds_nothing(tmp_path):
    path = tmp_path / "store.jsonl"
    job = holder(path)
    job.send_signal(signal.SIGKILL)
    job.wait(30)
    job.stdin.close(); job.stdout.close()
    assert sorted(os.listdir(tmp_path)) == [".store.jsonl.lock", "store.jsonl"]
    with _Store(path, HEADER) as store:
        assert list(store.rows) == ["a"] and (tmp_path / ".store.jsonl.lock").read_text() == str(os.getpid())
        with pytest.raises(InputError, match=rf"another job \(process {os.getpid()}\)"): _Store(path, HEADER)
    assert os.listdir(tmp_path) == ["store.jsonl"]


def test_an_error_frees_the_store(tmp_path):
    path = tmp_path / "store.jsonl"
    with _Store(path, HEADER): pass
    with pytest.raises(InputError, match="written with other settings") as error: _Store(path, HEADER | {"config": {"seed": 1}})
    with _Store(path, HEADER): pass # although the error, and with it the store, is still at hand
    with pytest.raises(ZeroDivisionError) as error:
        with _Store(path, HEADER): 1 / 0
    with _Store(path, HEADER) as store: pass
    store.append([dict(key="late", attempt=0, raw="x")])
    assert "late" not in path.read_text() and os.listdir(tmp_path) == ["store.jsonl"] and error


def test_of_many_that_start_together_one_writes_at_a_time(tmp_path):
    "Each of three processes takes the store, reads a number, waits, writes the next: none is lost, though the lock's file comes and goes."
    path, script = tmp_path / "store.jsonl", """
import sys, time, random
from eci_sem.collection import InputError
from eci_sem.writer import _Store
done = 0
while done < 5:
    try: store = _Store(sys.argv[1], {header!r})
    except InputError as e:
        assert "another job" in str(e), e
        time.sleep(random.random() / 100); continue
    with store:
        n = len(store.rows)
        time.sleep(0.002)
        store.append([dict(key=str(n), attempt=0, raw=sys.argv[2])])
    done += 1
""".format(header=HEADER)
    jobs = [subprocess.Popen([sys.executable, "-c", script, str(path), str(k)], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, stderr=subprocess.PIPE, text=True) for k in range(3)]
    for j in jobs: assert j.communicate(timeout=120)[1] == "" and j.returncode == 0
    keys = [json.loads(line)["key"] for line in path.read_text().splitlines()[1:]]
    assert keys == [str(k) for k in range(15)] and os.listdir(tmp_path) == ["store.jsonl"]


def test_two_jobs_at_an_endpoint(tmp_path, monkeypatch):
    from eci_sem.collection import Pair
    from eci_sem.endpoint import EndpointConfig, ask_negatives, endpoint_header
    pairs, model, path = [Pair("1", "a", "what do dogs do", "Dogs bark.", frozenset({"a"}))], EndpointConfig("m"), tmp_path / "store.jsonl"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with _Store(path, endpoint_header(model)):
        with pytest.raises(InputError, match="another job") as error: ask_negatives(pairs, model, store=path)
        assert ask_negatives(pairs, model, store=path, ask=False).asked == 0 # what is there can be read meanwhile
    with pytest.raises(InputError, match="can't be reached"): ask_negatives(pairs, model, store=path)
    with pytest.raises(InputError, match="can't be reached"): ask_negatives(pairs, model, store=path) # the first failure holds nothing
    assert os.listdir(tmp_path) == ["store.jsonl"] and error
