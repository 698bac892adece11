"""Large sizes, made small: block bootstrap, mining in blocks, a BM25 index that is kept, damaged, and shared by processes."""
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import eci_sem.bm25 as bm25
from eci_sem.bm25 import bm25_index, bm25_indexes, index_name, prune_bm25
from eci_sem.bootstrap import resample_counts, resampled_scores
from eci_sem.collection import Collection, InputError, Pair, normalise
from eci_sem.sources import describe_source, mine, mine_bm25, mine_dense


# bootstrap in blocks

def plain(X, unit, counts, gain=1.0):
    "Every resample from all rows, each row weighted by how often its block was drawn."
    return np.array([np.linalg.slogdet(np.eye(X.shape[1]) + gain * X.T @ (X * (c[unit] / c[unit].sum())[:, None]))[1] for c in counts])


def test_two_blocks_worked_by_hand():
    # blocks {(1, 0)} and {(0, 1), (0, 1)}: drawn (2, 0), (1, 1) and (0, 2) times
    X, unit, counts = np.array([[1.0, 0], [0, 1], [0, 1]]), np.array([0, 1, 1]), np.array([[2, 0], [1, 1], [0, 2]])
    wanted = np.log([2, (1 + 1 / 3) * (1 + 2 / 3), 2])
    np.testing.assert_allclose(resampled_scores(X, unit, counts, path="exact", packed=True).values, wanted, rtol=1e-14)


@settings(max_examples=25, deadline=None)
@given(blocks=st.integers(2, 20), d=st.integers(1, 40), resamples=st.integers(1, 40), gain=st.sampled_from([1.0, 50.0]), seed=st.integers(0, 10**6))
def test_blocks_give_the_scores_of_the_plain_bootstrap(blocks, d, resamples, gain, seed):
    rng = np.random.default_rng(seed)
    unit = rng.permutation(np.r_[np.arange(blocks), rng.integers(blocks, size=60)])
    X, counts = rng.normal(size=(len(unit), d)) / d**0.5, resample_counts(blocks, resamples, seed)
    found = resampled_scores(X, unit, counts, gain, path="exact", packed=True)
    np.testing.assert_allclose(found.values, plain(X, unit, counts, gain), rtol=1e-10, atol=1e-13)


def test_more_resamples_than_a_batch_holds_and_columns_that_fill_several_slices():
    rng = np.random.default_rng(0)
    X, unit = rng.normal(size=(400, 150)) / 12, np.arange(400) % 16
    counts = resample_counts(16, 600)
    assert 150 * 151 // 2 > 8192 and len(counts) > 256
    found = resampled_scores(X, unit, counts, path="exact", packed=True).values
    np.testing.assert_allclose(found, plain(X, unit, counts), rtol=1e-10)
    # the first resamples do not depend on how many there are, nor on how many processors work on them
    np.testing.assert_allclose(resampled_scores(X, unit, counts[:40], path="exact", packed=True).values, found[:40], rtol=1e-13)


def test_the_number_of_workers_changes_no_bit(monkeypatch):
    rng = np.random.default_rng(0)
    X, unit, counts = rng.normal(size=(300, 140)) / 12, np.arange(300) % 8, resample_counts(8, 30)
    values = []
    for cores in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda: cores)
        values.append(resampled_scores(X, unit, counts, path="exact", packed=True).values)
    np.testing.assert_array_equal(*values)


# dense mining in blocks

class Table:
    "An encoder that looks a text up; it notes the most texts that it was given at once."
    name, most = "table", 0
    def __init__(self, vectors): self.vectors = vectors
    def encode_passages(self, texts): self.most = max(self.most, len(texts)); return np.stack([self.vectors[t] for t in texts])
    encode_queries = encode_passages


def case(seed, passages, d, repeats, coarse):
    "A collection with repeated texts and, when coarse, many equal scores."
    rng = np.random.default_rng(seed)
    forms = [f"text {k}" for k in range(passages)]
    corpus = {f"d{i:03d}": t if i % 2 else t.upper() + "  " for i, t in enumerate([*forms, *(forms[k] for k in rng.integers(passages, size=repeats))])}
    def vector(): v = rng.integers(-1, 2, d).astype(np.float32) if coarse else rng.normal(size=d).astype(np.float32); return v if v.any() else np.ones(d, np.float32)
    of = {normalise(t): vector() for t in forms}
    vectors = {t: of[normalise(t)] for t in corpus.values()} | {f"query {i}": vector() for i in range(5)}
    ids = sorted(corpus)
    judged = {f"q{i}": {ids[k]: 1 for k in rng.integers(len(ids), size=1 + i % 3)} for i in range(5)}
    c = Collection("toy", corpus, {f"q{i}": f"query {i}" for i in range(5)}, {"test": judged})
    return c, c.pairs("test"), vectors


def brute_force(c, pair, vectors, depth):
    "Ids of the best passages: texts once, by their lowest id; none that repeats a relevant one or the positive."
    first = {}
    for i in sorted(c.corpus): first.setdefault(normalise(c.corpus[i]), i)
    out = {normalise(c.corpus[d]) for d in pair.relevant} | {normalise(pair.positive)}
    score = lambda i: float((vectors[pair.query].astype(np.float64) * vectors[c.corpus[i]].astype(np.float64)).sum())
    return sorted((i for form, i in first.items() if form not in out), key=lambda i: (-score(i), i))[:depth]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), passages=st.integers(12, 60), d=st.integers(1, 6), repeats=st.integers(0, 15), coarse=st.booleans(), block=st.integers(1, 80), depth=st.integers(1, 4))
def test_mining_in_blocks_is_a_search_through_everything(seed, passages, d, repeats, coarse, block, depth):
    c, pairs, vectors = case(seed, passages, d, repeats, coarse)
    if coarse is False: vectors = {t: (v * 4).round() for t, v in vectors.items()}; vectors = {t: v if v.any() else np.ones(d, np.float32) for t, v in vectors.items()} # sums that are exact in any order
    encoder = Table(vectors)
    found = mine_dense(c, pairs, encoder, num_negatives=depth, block=block)
    mined = {}
    for r in found.table.select(["query_id", "positive_id", "negative_id"]).to_pylist(): mined.setdefault((r["query_id"], r["positive_id"]), []).append(r["negative_id"])
    for p in pairs: assert mined[p.query_id, p.positive_id] == brute_force(c, p, vectors, depth)
    assert encoder.most <= max(block, len(pairs))
    assert found.dropped.get("dense", {}).get("corpus passages that repeat another's text", 0) == len(c.corpus) - len({normalise(t) for t in c.corpus.values()})


def test_memory_of_a_search_does_not_grow_with_the_vectors():
    # 8,000 passages of 1,024 dimensions: 33 MB of vectors, and texts of 48 MB that a second copy would double
    code = """
import numpy as np, tracemalloc
from eci_sem.collection import Collection
from eci_sem.sources import mine_dense
class E:
    name = "e"
    def encode_passages(self, texts): return np.random.default_rng(0).standard_normal((len(texts), 1024), dtype=np.float32)
    encode_queries = encode_passages
corpus = {f"d{i:06d}": f"Passage {i} " + (600 * "w" + " ") * 10 for i in range(8000)}
c = Collection("toy", corpus, {"q": "query"}, {"test": {"q": {"d000000": 1}}})
mine_dense(Collection("few", {k: corpus[k] for k in list(corpus)[:50]}, {"q": "query"}, {"test": {"q": {"d000000": 1}}}), c.pairs("test"), E())
pairs = c.pairs("test")
tracemalloc.start()
mine_dense(c, pairs, E(), block=512)
print(tracemalloc.get_traced_memory()[1] / 1e6)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 20


# a BM25 index that is kept

PETS = Collection("pets", {"a": "The cat purrs: a cat!", "b": "Dogs bark.", "c": "The dog chases cats.", "d": "dogs BARK.", "e": "  ", "f": "Fish swim; cats watch fish."}, {"1": "about cats", "2": "dogs that bark"}, {"test": {"1": {"b": 1}, "2": {"a": 1}}})


def words(texts): return [t.split() for t in texts]
def never(*_, **__): raise AssertionError("built again")


def test_a_kept_index_gives_the_same_triples_to_the_last_bit(tmp_path, monkeypatch):
    pairs = PETS.pairs("test")
    wanted = mine_bm25(PETS, pairs, num_negatives=2, index=False)
    for _ in range(2):
        found = mine_bm25(PETS, pairs, num_negatives=2, index=tmp_path)
        assert found.table.equals(wanted.table) and found.summary.__dict__ == wanted.summary.__dict__
    (kept,) = bm25_indexes(tmp_path, check=True)
    assert kept.state == "ok" and kept.collection == "pets" and kept.passages == 5 # one has no text
    monkeypatch.setattr("bm25s.BM25.index", never)
    assert mine_bm25(PETS, pairs, num_negatives=2, index=str(tmp_path)).table.equals(wanted.table)
    assert mine("bm25", PETS, pairs, num_negatives=2, index=tmp_path).table.equals(wanted.table)
    with pytest.raises(AssertionError, match="built again"): mine_bm25(PETS, pairs, k1=1.3, index=tmp_path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(st.characters(codec="utf-8", categories=["L", "N", "Zs", "Po"]), min_size=1, max_size=30), min_size=1, max_size=8))
def test_any_words_survive_the_disk(tmp_path, texts):
    if not any(map(str.split, texts)): return
    built, kept = (bm25_index(texts, words, dict(k1=1.2, b=0.75), index) for index in (False, tmp_path))
    again = bm25_index(texts, never, dict(k1=1.2, b=0.75), tmp_path)
    for w in {w for t in texts for w in t.split()}:
        for index in (kept, again): assert index.get_scores([w]).tobytes() == built.get_scores([w]).tobytes()


def test_the_name_holds_all_that_decides():
    base = dict(k1=1.2, b=0.75, stemmer="english", stopwords="en")
    names = {index_name(t, s) for t in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab"]) for s in (base, base | dict(k1=1.3), base | dict(stemmer=None), base | dict(versions={"bm25s": "0"}))}
    assert len(names) == 16 and all(len(n) == 32 for n in names)


def damage(folder, how):
    data = folder / "data.csc.index.npy"
    if how == "short": data.write_bytes(data.read_bytes()[:-8])
    if how == "flipped": raw = bytearray(data.read_bytes()); raw[-1] ^= 1; data.write_bytes(raw)
    if how == "gone": data.unlink()
    if how == "no manifest": (folder / "manifest.json").unlink()
    if how == "manifest cut off": (folder / "manifest.json").write_text('{"files": {"data')
    if how == "manifest of nothing": (folder / "manifest.json").write_text('{"files": {}}')
    if how == "manifest of another kind": (folder / "manifest.json").write_text('{"files": [1]}')
    if how == "vocabulary": (folder / "vocab.index.json").write_text("{}")
    if how == "pickled":
        np.save(data, np.array([{}], dtype=object), allow_pickle=True)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"][data.name] = [data.stat().st_size, bm25._checksum(data)]
        (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("how, said", [("short", r"data.csc.index.npy has \d+ bytes, expected \d+"), ("flipped", "data.csc.index.npy fails its checksum"), ("gone", "No such file"), ("no manifest", "manifest.json can't be read"), ("manifest cut off", "manifest.json can't be read"),
    ("manifest of nothing", "names no file"), ("manifest of another kind", "manifest.json can't be read"), ("vocabulary", "vocab.index.json has 2 bytes"), ("pickled", "Python objects in dtype")])
def test_a_damaged_index_is_built_anew(tmp_path, how, said):
    texts = ["the cat purrs", "dogs bark", "the dog chases cats"]
    wanted = bm25_index(texts, words, dict(k1=1.2, b=0.75), tmp_path).get_scores(["cat"])
    (folder,) = tmp_path.iterdir()
    damage(folder, how)
    state = [i.state for i in bm25_indexes(tmp_path, check=True)]
    assert (state == ["ok"]) == (how == "pickled") and len(prune_bm25(tmp_path, damaged=True, dry_run=True)) == (how != "pickled"), "what can't be used is listed, and can be pruned"
    with pytest.warns(UserWarning, match=rf"the BM25 index {folder.name} is damaged \(.*{said}.*\): built anew"): again = bm25_index(texts, words, dict(k1=1.2, b=0.75), tmp_path)
    np.testing.assert_array_equal(again.get_scores(["cat"]), wanted)
    np.testing.assert_array_equal(bm25_index(texts, never, dict(k1=1.2, b=0.75), tmp_path).get_scores(["cat"]), wanted)
    assert list(tmp_path.iterdir()) == [folder], "something is left behind"


def test_an_index_in_use_outlives_its_removal(tmp_path):
    texts = ["the cat purrs", "dogs bark"]
    index = bm25_index(texts, words, dict(k1=1.2, b=0.75), tmp_path)
    wanted = index.get_scores(["cat"])
    assert [i.passages for i in prune_bm25(tmp_path, older_than=0)] == [2] and not list(tmp_path.iterdir())
    np.testing.assert_array_equal(index.get_scores(["cat"]), wanted)


def test_where_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ECI_SEM_CACHE", str(tmp_path))
    monkeypatch.setattr(bm25, "KEEP_FROM", 4)
    s = dict(k1=1.2, b=0.75)
    for texts, index, kept in ((["a b", "c"], None, 0), (["a b", "c"], False, 0), (["a b", "c"], True, 1), (["a b", "c", "d", "e"], None, 2), (["a b", "c", "d", "f"], False, 2)):
        bm25_index(texts, words, s, index)
        assert len(bm25_indexes()) == kept
    assert {i.name for i in bm25_indexes()} == {p.name for p in (tmp_path / "bm25").iterdir()}
    from eci_sem.cache import cache_sizes
    assert cache_sizes()["bm25"] > 0


def test_a_disk_that_refuses_costs_the_index_and_not_the_run(tmp_path, monkeypatch):
    def full(*_, **__): raise OSError(28, "No space left on device")
    monkeypatch.setattr("bm25s.BM25.save", full)
    with pytest.warns(UserWarning, match=r"can't be kept \(No space left on device\): it will be built again next time"): index = bm25_index(["a b", "c"], words, dict(k1=1.2, b=0.75), tmp_path)
    assert index.get_scores(["c"])[1] > 0 and not list(tmp_path.iterdir())


def test_place_is_no_setting(tmp_path):
    assert describe_source("bm25", index=tmp_path) == describe_source("bm25") == describe_source("bm25", index=False)
    assert "index" not in describe_source("bm25")


def test_refused(tmp_path):
    pairs = PETS.pairs("test")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"index is 3, expected a folder, True \(the cache folder\), False \(not kept\), or None"): mine_bm25(PETS, pairs, index=3)
    with pytest.raises(InputError, match=r"index is '.*file', which is a file, expected a folder"): mine_bm25(PETS, pairs, index=tmp_path / "file")
    with pytest.raises(InputError, match="no passage holds a word that BM25 can index"): bm25_index(["x"], lambda texts: [[] for _ in texts], dict(k1=1.2, b=0.75), tmp_path)
    with pytest.raises(InputError, match="nothing says what can go: give older_than in days, or damaged=True"): prune_bm25(tmp_path)
    with pytest.raises(InputError, match="older_than is -1, expected a number of days of at least 0"): prune_bm25(tmp_path, older_than=-1)


def test_prune(tmp_path):
    s = dict(k1=1.2, b=0.75)
    for texts in (["a b", "c"], ["a b", "d"], ["a b", "e"]): bm25_index(texts, words, s, tmp_path)
    good, old, bad = (tmp_path / index_name(["a b", x], s) for x in "cde")
    os.utime(old / "manifest.json", (time.time() - 10 * 86400,) * 2)
    damage(bad, "flipped")
    (tmp_path / "not ours").mkdir(); fresh, left = tmp_path / ".x.1.part", tmp_path / ".x.2.part"
    for part in (fresh, left): part.mkdir()
    os.utime(left, (time.time() - 7200,) * 2)
    assert {i.state for i in bm25_indexes(tmp_path)} == {"ok", "part"}, "sizes alone don't show a flipped bit"
    assert [i.name for i in prune_bm25(tmp_path, older_than=5, dry_run=True)] == [old.name] and old.is_dir()
    assert {i.name for i in prune_bm25(tmp_path, damaged=True)} == {bad.name, left.name}
    assert [i.name for i in prune_bm25(tmp_path, older_than=5)] == [old.name]
    assert {p.name for p in tmp_path.iterdir()} == {good.name, "not ours", fresh.name}
    bm25_index(["a b", "d"], words, s, tmp_path) # a use is what counts, not the making
    os.utime(old / "manifest.json", (time.time() - 10 * 86400,) * 2)
    bm25_index(["a b", "d"], never, s, tmp_path)
    assert prune_bm25(tmp_path, older_than=5) == []


def _build(args):
    folder, wait = args
    time.sleep(max(0, wait - time.time()))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        index = bm25_index([f"word{i % 50} and word{i % 7}" for i in range(2000)], words, dict(k1=1.2, b=0.75), folder)
    return index.get_scores(["word3", "and"]).tobytes(), [str(w.message) for w in said if "BM25" in str(w.message)]


def test_processes_that_build_the_same_index_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool: found = pool.map(_build, [(tmp_path, time.time() + 2)] * 3, chunksize=1)
    assert len({scores for scores, _ in found}) == 1 and not any(said for _, said in found)
    assert [i.state for i in bm25_indexes(tmp_path, check=True)] == ["ok"] and len(list(tmp_path.iterdir())) == 1


def test_a_process_that_is_killed_leaves_no_half_index(tmp_path):
    code = f"""
import os, signal, bm25s
from pathlib import Path
import eci_sem.bm25 as b
save = bm25s.BM25.save
def stop(self, folder, **kw): save(self, folder, **kw); (Path(folder) / "data.csc.index.npy").write_bytes(b""); os.kill(os.getpid(), signal.SIGKILL)
bm25s.BM25.save = stop
b.bm25_index(["a b", "c"], lambda ts: [t.split() for t in ts], dict(k1=1.2, b=0.75), {str(tmp_path)!r})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert [i.state for i in bm25_indexes(tmp_path)] == ["part"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bm25_index(["a b", "c"], words, dict(k1=1.2, b=0.75), tmp_path).get_scores(["c"])[1] > 0
    assert sorted(i.state for i in bm25_indexes(tmp_path)) == ["ok", "part"]
    for part in tmp_path.glob(".*.part"): os.utime(part, (time.time() - 90000,) * 2)
    bm25_index(["a b", "d"], words, dict(k1=1.2, b=0.75), tmp_path)
    assert [i.state for i in bm25_indexes(tmp_path)] == ["ok", "ok"]


# the benchmark

def test_the_benchmark_runs_small(root, tmp_path):
    run = subprocess.run([sys.executable, "benchmarks/scale.py", "--small", "--only", "bootstrap", "--json", str(tmp_path / "out.json"), "--folder", str(tmp_path)], cwd=root, capture_output=True, text=True)
    report = json.loads((tmp_path / "out.json").read_text())
    assert set(report) == {"machine", "claims"} and [c["name"] for c in report["claims"]] == ["bootstrap, seconds", "bootstrap, times faster than all rows anew", "bootstrap of block sums, seconds", "bootstrap, memory in MB"], run.stdout + run.stderr
    assert run.returncode == int(not all(c["passed"] for c in report["claims"]))
    assert all({"name", "value", "limit", "passed", "what"} <= set(c) for c in report["claims"])
