"""What the embedding cache holds, whether it is sound, and what may go: never what another process is using."""
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from eci_sem.cache import _opened, cache_parts, cache_prune, cache_sizes, cache_stores, cache_verify
from eci_sem.collection import InputError
from eci_sem.encoders import EmbeddingCache, load_encoder


def fill(folder, name, n, dim=4, said=True):
    store = EmbeddingCache(folder, dim)
    store.put([i.to_bytes(16, "big") for i in range(n)], np.arange(n * dim, dtype=np.float32).reshape(n, dim))
    if said: store.describe(dict(name=name, dim=dim, dtype="float32"))
    store.close()
    return folder


def test_stores_are_told_apart_by_what_they_say(tmp_path):
    fill(tmp_path / "aaaaaaaa1", "small", 3); fill(tmp_path / "bbbbbbbb1", "large", 5000); fill(tmp_path / "cccccccc1", "", 2, said=False)
    found = cache_stores(tmp_path)
    assert found[0].name == "large" and {(s.name, s.vectors, s.dim, s.state) for s in found} == {("small", 3, 4, "ok"), ("large", 5000, 4, "ok"), ("?", 2, None, "ok")}
    assert found[0].bytes > 5000 * 16 and all(0 <= s.days < 1 for s in found)
    assert [s.fingerprint for s in cache_stores(tmp_path, "small")] == ["aaaaaaaa1"] == [s.fingerprint for s in cache_stores(tmp_path, "aaaaaa")]
    with pytest.raises(InputError, match=r"unknown encoder in the cache 'smal'. Did you mean 'small'"): cache_stores(tmp_path, "smal")
    assert cache_stores(tmp_path / "nothing") == [] and isinstance(cache_sizes(), dict)


def test_an_encoder_names_its_store(tmp_path):
    encoder = load_encoder("glove", cache=tmp_path)
    encoder.encode_queries(["sort an array", "close a socket"])
    store, = cache_stores(tmp_path)
    assert (store.name, store.vectors, store.dim, store.dtype) == ("glove", 2, 50, "float32") and encoder.fingerprint.startswith(store.fingerprint)
    assert [(v.good, v.bad) for v in cache_verify(tmp_path, "glove")] == [(2, 0)]


def test_a_vector_that_was_changed_is_found_and_not_served(tmp_path):
    import lmdb
    folder = fill(tmp_path / "aaaaaaaa1", "small", 10)
    env = lmdb.open(str(folder))
    with env.begin(write=True) as txn:
        record = bytearray(txn.get((3).to_bytes(16, "big"))); record[0] ^= 1
        txn.put((3).to_bytes(16, "big"), bytes(record)); txn.put((4).to_bytes(16, "big"), b"short")
    env.close()
    assert [(v.good, v.bad) for v in cache_verify(tmp_path)] == [(8, 2)]
    vectors, found = EmbeddingCache(folder, 4).get([i.to_bytes(16, "big") for i in range(12)])
    assert found.tolist() == [True] * 3 + [False] * 2 + [True] * 5 + [False] * 2
    assert (vectors[found] == np.arange(40, dtype=np.float32).reshape(10, 4)[[0, 1, 2, 5, 6, 7, 8, 9]]).all()


def test_a_store_that_was_cut_off_is_named_and_can_go(tmp_path):
    good, bad = fill(tmp_path / "aaaaaaaa1", "small", 3), fill(tmp_path / "bbbbbbbb1", "large", 5000)
    os.truncate(bad / "data.mdb", 40_960)
    assert {s.name: s.state.split(":")[0] for s in cache_stores(tmp_path)} == {"small": "ok", "large": "cut off"}
    (tmp_path / "dddd.damaged-x").mkdir()
    assert {(p.store.name, p.removed) for p in cache_prune(tmp_path, damaged=True, dry_run=True)} == {("small", False), ("large", True), ("?", True)} and bad.exists()
    cache_prune(tmp_path, damaged=True)
    assert good.exists() and not bad.exists() and not (tmp_path / "dddd.damaged-x").exists()


def test_what_goes_fits_every_condition(tmp_path):
    old, new = fill(tmp_path / "aaaaaaaa1", "small", 3), fill(tmp_path / "bbbbbbbb1", "large", 30)
    past = time.time() - 40 * 86400
    os.utime(old / "data.mdb", (past, past))
    assert {p.store.name: (p.removed, p.why) for p in cache_prune(tmp_path, encoder="large", older_than=30)} == {"large": (False, "written 0.0 days ago")}
    assert {p.store.name: p.removed for p in cache_prune(tmp_path, older_than=30)} == {"small": True, "large": False} and not old.exists() and new.exists()
    with pytest.raises(InputError, match="nothing says what can go"): cache_prune(tmp_path)
    with pytest.raises(InputError, match="older_than is -1, expected a number of days"): cache_prune(tmp_path, older_than=-1)


def test_what_another_process_has_open_stays(tmp_path):
    folder = fill(tmp_path / "aaaaaaaa1", "small", 3)
    code = "import sys, time; from eci_sem.encoders import EmbeddingCache; c = EmbeddingCache(sys.argv[1], 4); c.get([b'0' * 16]); print('open', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "open\n"
        assert [(p.removed, p.why) for p in cache_prune(tmp_path, encoder="small")] == [(False, "in use by another process")] and folder.exists()
    finally: other.communicate(timeout=60)
    assert [p.removed for p in cache_prune(tmp_path, encoder="small")] == [True] and not folder.exists()


def test_what_this_process_has_open_is_looked_at_all_the_same(tmp_path):
    store = EmbeddingCache(tmp_path / "aaaaaaaa1", 4)
    store.put([b"0" * 16], np.ones((1, 4), np.float32))
    assert [s.vectors for s in cache_stores(tmp_path)] == [1] and [(v.good, v.bad) for v in cache_verify(tmp_path)] == [(1, 0)]
    assert [p.removed for p in cache_prune(tmp_path, encoder="aaaaaaaa1")] == [True]
    assert len(store) == 0, "the next use makes it anew"


def test_a_store_is_sound_while_another_process_writes_to_it(tmp_path):
    "The look stops at the first record until every page has been written over several times."
    store = EmbeddingCache(tmp_path / "aaaaaaaa1", 64)
    keys = [i.to_bytes(16, "big") for i in range(400)]
    store.put(keys, np.ones((400, 64), np.float32))
    store.describe(dict(name="small", dim=64, dtype="float32"))
    code = textwrap.dedent("""
        import sys, types, zlib
        from eci_sem import cache
        looked = []
        def crc32(record):
            if not looked: print("half", flush=True); sys.stdin.readline()
            looked.append(1)
            return zlib.crc32(record)
        cache.zlib = types.SimpleNamespace(crc32=crc32)
        print([(v.good, v.bad, v.store.state) for v in cache.cache_verify(sys.argv[1])])
    """)
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "half\n"
        for k in range(12): store.put(keys, np.full((400, 64), k, np.float32))
    finally: said = other.communicate("\n", timeout=60)
    assert said[0] == "[(400, 0, 'ok')]\n" and other.returncode == 0, said


def test_a_store_whose_lock_can_not_be_used_is_looked_at_without(tmp_path):
    folder = fill(tmp_path / "aaaaaaaa1", "small", 3)
    (folder / "lock.mdb").unlink(); (folder / "lock.mdb").mkdir()
    assert [(v.good, v.bad, v.store.state) for v in cache_verify(tmp_path)] == [(3, 0, "ok")]


def test_a_look_leaves_room_for_as_many_readers_as_a_writer_does(tmp_path):
    folder = fill(tmp_path / "aaaaaaaa1", "small", 3)
    (folder / "lock.mdb").unlink()
    with _opened(folder): assert (folder / "lock.mdb").stat().st_size >= 1024 * 64, "the first to open the store fixes the number"


def test_a_look_and_a_write_of_two_threads_take_turns(tmp_path):
    folder, found = fill(tmp_path / "aaaaaaaa1", "small", 3), []
    thread = threading.Thread(target=lambda: found.append(len(EmbeddingCache(folder, 4))))
    with _opened(folder):
        thread.start(); thread.join(0.1)
        assert not found, "LMDB allows one handle per process"
    thread.join(20)
    assert found == [3]


def test_a_store_that_is_removed_while_it_is_looked_at_is_left_out(tmp_path, monkeypatch):
    import shutil
    gone, stays = fill(tmp_path / "aaaaaaaa1", "small", 3), fill(tmp_path / "bbbbbbbb1", "large", 9)
    def removed(env, folder):
        if folder == gone: shutil.rmtree(gone)
        return ""
    monkeypatch.setattr("eci_sem.cache._cut_off", removed)
    assert [s.folder for s in cache_stores(tmp_path)] == [stays]


def test_an_empty_cache_says_so_and_its_parts_have_a_place(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no embeddings are cached in .*nothing, so none of encoder 'glove': leave the encoder out, or set ECI_SEM_CACHE"): cache_stores(tmp_path / "nothing", "glove")
    monkeypatch.setenv("ECI_SEM_CACHE", str(tmp_path))
    (tmp_path / "models").mkdir(); (tmp_path / "models/x").write_bytes(b"1" * 5000)
    assert [(p.name, p.folder) for p in cache_parts()] == [("models", tmp_path / "models")] and cache_sizes() == {"models": cache_parts()[0].bytes} and cache_sizes()["models"] >= 5000
