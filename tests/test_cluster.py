"Many machines: the same numbers as on one, whatever the number of workers; dead workers, bad shards, no memory; the cells of a plan."
import hashlib
import json
import os
import signal
import sys
import time
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem import cluster as C
from eci_sem import connection as K
from eci_sem.checks import _merge_known, check_file
from eci_sem.cluster import rank_cluster, score_cluster
from eci_sem.collection import Collection, InputError
from eci_sem.encoders import Encoder, load_encoder
from eci_sem.formats import scan_triples
from eci_sem.lexical import Tokenizer, get_tokenizer
from eci_sem.rank import rank_sources
from eci_sem.ranked_stream import rank_files, rank_stream
from eci_sem.score import Accumulator, ECIConfig
from eci_sem.shards import Shard, find_shards
from eci_sem.stream import score_stream, stream_idf
from eci_sem.triples import Triples


class Digests:
    "A fake encoder: a vector from the hash of the text, another one for a query than for a passage."
    name, dim, fingerprint = "digests", 16, "digests"
    def encode_queries(self, texts, progress=None): return self._of("q", texts)
    def encode_passages(self, texts, progress=None): return self._of("p", texts)
    def _of(self, kind, texts): return np.array([np.frombuffer(hashlib.sha256(((kind if len(t) % 2 else "") + t).encode()).digest(), np.int16) for t in texts], np.float32)


class Dies(Digests):
    "Kills its process, the first time that the passages are asked for, or every time."
    def __init__(self, flag, always=False): self.flag, self.always = Path(flag), always
    def encode_passages(self, texts, progress=None):
        if self.always or not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_passages(texts)


class Small(Digests):
    "Has memory for so many texts at a time."
    def __init__(self, most): self.most = most
    def _of(self, kind, texts):
        if len(texts) > self.most: np.empty(1 << 60, np.uint8)
        return super()._of(kind, texts)


def some_triples(n=240, seed=0):
    rng = np.random.default_rng(seed)
    words = "river stone light market winter letter engine forest island doctor".split()
    some = lambda k: " ".join(rng.choice(words, k))
    asked = [some(3) + f" {i}" for i in range(40)]
    return Triples.from_rows([dict(query=asked[i % 40], positive=some(2), negative=some(3), source="ab"[i % 3 > 1]) for i in range(n)])


def split(t, folder, *names):
    "The rows in files, in order."
    return [t.take(rows).write(folder / name) for name, rows in zip(names, np.array_split(np.arange(len(t)), len(names)))]


NAMES = ("0.parquet", "1.jsonl", "2.jsonl.gz", "3.parquet", "4.jsonl")


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    pytest.importorskip("ray", reason="Ray, which the extra scale brings, is not installed")
    from ray import cloudpickle
    cloudpickle.register_pickle_by_value(sys.modules[__name__]) # the workers can't import the tests
    given = os.environ.get("ECI_SEM_TEST_RAY")
    with C.connected(given, None if given else 3) as found: yield found # where it does not start, nothing of it is tested, which is a failure


@pytest.fixture
def shards(tmp_path):
    t = some_triples()
    return t, split(t, tmp_path, *NAMES), tmp_path


def batches(files): return lambda: (t for f in files for t in scan_triples(f))


def distinct(t): return len(set(t.texts("query"))) + len({*t.texts("positive"), *t.texts("negative")})


def same(found, local):
    assert list(found) == list(local)
    for s, x in local.items():
        assert found[s].value == pytest.approx(x.value, rel=1e-10) and found[s].n == x.n and found[s].factor_means == pytest.approx(x.factor_means, rel=1e-10)
        assert found[s].trace == pytest.approx(x.trace, rel=1e-10) and found[s].effective_rank == pytest.approx(x.effective_rank, rel=1e-10)


def content(scores): return [(s, a.n, a.total.tobytes(), a.block_totals.tobytes(), a.sums) for s, a in scores.accumulators.items()]


# the same numbers

def test_the_cluster_scores_as_one_machine_and_encodes_each_text_once(ray, shards):
    t, files, folder = shards
    local = score_stream(batches(files), Digests())
    three = score_cluster(folder, Digests, workers=3, batch=17, blocks=4)
    same(three, local)
    assert three.idf.fingerprint == stream_idf(batches(files)()).fingerprint and three.idf.documents == len(set(t.texts("positive")))
    assert three.work["encoded"] == distinct(t) and three.work["rows"] == len(t) and three.work["shards"] == 5 and three.work["workers"] == 3
    # another number of workers, another way to name the files: the same bytes
    one = score_cluster(str(folder / "*"), Digests, workers=1, batch=17, blocks=4, keep=1)
    assert content(one) == content(three)
    # the blocks are those of the queries
    for a in three.accumulators.values(): assert a.block_counts.sum() == a.n and np.allclose(a.block_totals.sum(0), a.total[np.triu_indices(16)])


def test_other_factors_and_tokenizers(ray, shards):
    t, files, folder = shards
    config, options = ECIConfig(overlap="jaccard", space="centred", residual="unit", gain="d"), dict(tokenizer="stem", mean=np.full(16, 0.01))
    same(score_cluster(files[0], Digests(), config, workers=1, **options), score_stream(batches(files[:1]), Digests(), config, **options))


def test_a_real_encoder_its_cache_and_its_pieces(ray, shards, tmp_path):
    t, files, _ = shards
    glove = load_encoder("glove", cache=tmp_path / "cache")
    found = score_cluster(files, glove, workers=1, tokenizer="wordpiece")
    assert 0 < found.work["encoded"] <= distinct(t) # one prompt for both, so a query that is a passage too is in the cache by then
    same(found, score_stream(batches(files), glove, tokenizer="wordpiece"))
    assert glove.stats["encoded"] == 0 # the cache is one


def test_workers_of_a_cluster_of_ones_own_are_no_background_work(ray):
    if os.environ.get("ECI_SEM_TEST_RAY") or "RAY_worker_niceness" in os.environ: pytest.skip("the cluster is another's, or its niceness was chosen")
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)


# faults

def test_an_actor_that_is_killed_is_replaced_and_the_answer_is_the_same(ray, shards, tmp_path):
    _, files, folder = shards
    flag = tmp_path / "died"
    found = score_cluster(files, lambda: Dies(flag), workers=3, batch=17)
    assert flag.exists()
    same(found, score_stream(batches(files), Digests()))


def deadly(flag, in_actor):
    "Words, by a tokenizer that kills its process once, where it is asked to."
    words = get_tokenizer("word")
    def split(texts):
        import ray
        if bool(ray.get_runtime_context().get_actor_id()) == in_actor and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return words(texts)
    return Tokenizer("word", words.fingerprint, split)


@pytest.mark.parametrize("in_actor", [True, False], ids=["counting", "scoring"])
def test_a_worker_that_is_killed_while_it_counts_or_scores(ray, shards, tmp_path, in_actor):
    _, files, folder = shards
    flag = tmp_path / "killed"
    found = score_cluster(files, Digests, workers=3, tokenizer=deadly(flag, in_actor), batch=17)
    assert flag.exists()
    local = score_stream(batches(files), Digests())
    same(found, local)
    assert found.idf.df == stream_idf(batches(files)()).df


def test_a_worker_that_dies_every_time_stops_the_job(ray, shards, tmp_path):
    _, files, folder = shards
    with pytest.raises(InputError, match=r"a worker died, and its replacements too \(3 tries; \w+\)\. The kernel may have killed them for want of memory: give a smaller batch= or keep="):
        score_cluster(files, lambda: Dies(tmp_path / "died", always=True), ECIConfig(overlap="none"), workers=3)


def test_a_worker_without_memory_takes_less_at_a_time():
    texts = [f"text {i}" for i in range(40)]
    part = C._Part(lambda: Small(8), "word", 1 << 20)
    assert np.array_equal(part.encode("passages", texts), Digests().encode_passages(texts)) and part.work["encoded"] == 40
    with pytest.raises(MemoryError): C._Part(lambda: Small(0), "word", 1 << 20).encode("passages", texts)


def test_a_worker_without_any_memory_stops_the_job(ray, shards):
    with pytest.raises(InputError, match="a worker ran out of memory; give a smaller batch= or keep=, fewer workers, or machines with more memory"): score_cluster(shards[1], lambda: Small(0), ECIConfig(overlap="none"), workers=3)


def test_what_ray_raises_is_told_in_plain_words():
    exceptions = pytest.importorskip("ray").exceptions
    assert str(K._explained(exceptions.OutOfMemoryError("x"), "a.jsonl")).startswith("a.jsonl: a worker ran out of memory; give a smaller batch=")
    assert str(K._explained(exceptions.WorkerCrashedError(), "a.jsonl")).startswith("a.jsonl: a worker died, and its replacements too (3 tries; WorkerCrashedError)")
    assert str(K._explained(exceptions.RayTaskError("f", "trace", InputError("b.jsonl:3: bad")), "a")) == "b.jsonl:3: bad"
    other = KeyError("x")
    assert K._explained(exceptions.RayTaskError("f", "trace", other), "a") is other


def test_a_bad_shard_stops_the_job_and_is_named(ray, shards):
    t, files, folder = shards
    good = files[3].read_bytes()
    files[3].write_bytes(good[:len(good) // 2])
    shard = Shard(str(files[3]), str(files[3]))
    for task in (lambda: C._count_shard(shard, [], [], dict(reading={})), lambda: C._score_shard(shard, Digests(), dict(tokenizer="word", config=ECIConfig(), idf=None, keep=1, blocks=0, given={}, reading={}))):
        with pytest.raises(InputError, match=r"3\.parquet: not a readable Parquet file"): task()
    files[3].write_bytes(good)
    with open(files[1], "a") as f: f.write('{"query": "q", "positive": "p"}\n')
    n = len(files[1].read_text().splitlines())
    with pytest.raises(InputError, match=rf"1\.jsonl:{n}: "): score_cluster(folder, Digests, workers=3)


def ends(*pids):
    "Wait until these processes are gone (a dead one that nobody has waited for yet is)."
    import psutil
    for _ in range(300):
        left = [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]
        if not left: return True
        time.sleep(0.2)


def test_a_bad_shard_ends_the_tasks_that_are_under_way(ray, shards, tmp_path, monkeypatch):
    cancel, cancelled = ray.cancel, []
    monkeypatch.setattr(ray, "cancel", lambda ref, **how: (cancelled.append((ref, how)), cancel(ref, **how)))
    t = some_triples(60)
    slow = t.from_rows([dict(r, query=r["query"] + " slow") for r in t.table.to_pylist()])
    files, words, at = [slow.write(tmp_path / "0.parquet"), slow.write(tmp_path / "1.parquet"), t.write(tmp_path / "2.jsonl")], get_tokenizer("word"), tmp_path / "at work"
    at.mkdir()
    with open(files[2], "a") as f: f.write('{"query": "q", "positive": "p"}\n')
    def split(texts): # the two slow ones never end; the bad one waits for them, then comes to its last line
        import ray
        if not ray.get_runtime_context().get_actor_id():
            if any("slow" in x for x in texts): (at / str(os.getpid())).touch(); time.sleep(900)
            while len(list(at.iterdir())) < 2: time.sleep(0.05)
        return words(texts)
    with pytest.raises(InputError, match=r"2\.jsonl:61: "): score_cluster(files, Digests, workers=3, batch=60, idf=stream_idf([t]), tokenizer=Tokenizer("word", words.fingerprint, split))
    assert ends(*(int(p.name) for p in at.iterdir()))
    # Ray ends this process, now and then, when a task is cancelled twice
    assert len({ref for ref, _ in cancelled}) == len(cancelled) == 2 and all(how["force"] for _, how in cancelled), "a file is read in place, so nothing is left to remove"


def test_a_worker_without_memory_for_a_shard_does_not_call_it_damaged(shards, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq
    def full(self, *_, **__): raise pa.ArrowMemoryError("malloc of size 268435456 failed")
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", full)
    shard = Shard(str(shards[1][0]), str(shards[1][0]))
    for task in (lambda: C._count_shard(shard, [], [], dict(reading={})), lambda: C._look_shard(shard, dict(reading={}, collection=None, named=C._FileSources([shard.name]), seed=0))):
        with pytest.raises(InputError, match=r"0\.parquet: a worker ran out of memory; give a smaller batch="): task()


# what can't be done

def test_shards_are_looked_for_before_anything_is_started(tmp_path):
    def refused(match, shards, **more):
        with pytest.raises(InputError, match=match): score_cluster(shards, more.pop("encoder", Digests), **more)
    refused("holds no .parquet, .jsonl or .jsonl.gz file", tmp_path)
    refused("no file fits this pattern", str(tmp_path / "*.parquet"))
    refused("no such file", [tmp_path / "a.jsonl"])
    refused("the list of shards is empty", [])
    path = some_triples(3).write(tmp_path / "a.jsonl")
    refused("the shard is named 2 times, so its triples would count again", [path, path])
    refused("space 'centred' needs the mean passage vector up front", path, config=ECIConfig(space="centred"))
    refused("an IDF table was given, but overlap is 'none'", path, config=ECIConfig(overlap="none"), idf=stream_idf(scan_triples(path)))
    refused("unknown tokenizer 'wrod'. Did you mean 'word'", path, tokenizer="wrod")
    refused("encoder is int, expected an Encoder, a name for load_encoder, or a function", path, encoder=3)
    refused("workers is 0, expected a whole number of at least 1", path, workers=0)
    for name in ("_SUCCESS", ".hidden.jsonl", "notes.txt"): (tmp_path / name).write_text("x")
    assert [s.at for s in find_shards(tmp_path)] == [str(path)]


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    path = some_triples(3).write(tmp_path / "a.jsonl")
    monkeypatch.setitem(sys.modules, "ray", None)
    match = r"engine 'ray' needs Ray, which is not installed: pip install 'eci_sem\[scale\]'"
    with pytest.raises(InputError, match=match): score_cluster(path, Digests)
    with pytest.raises(InputError, match=match): rank_sources(some_triples(), Digests(), control=None, engine="ray")


def test_engines_and_addresses(ray, tmp_path):
    path = some_triples(3).write(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="unknown engine 'spark'. .*Known: local, ray"): rank_sources(some_triples(), Digests(), engine="spark")
    with pytest.raises(InputError, match="address is '1.2.3.4:5', which has no effect with engine local"): rank_sources(some_triples(), Digests(), address="1.2.3.4:5")
    with pytest.raises(InputError, match="this process is connected to the cluster .* already, but the address 1.2.3.4:5 was given"): score_cluster(path, Digests, address="1.2.3.4:5")
    with pytest.raises(InputError, match="1 workers with 1 GPU each were asked for, and the cluster has 0"): score_cluster(path, Digests, gpus_per_worker=1)


def test_what_a_cluster_left_running_is_ended_and_nothing_else(tmp_path):
    import subprocess
    if not os.path.isdir("/proc/self"): pytest.skip("there is no /proc to look into")
    wait = "import sys, time; time.sleep(60)"
    ours, other = (subprocess.Popen([sys.executable, "-c", wait, f"--dir={tmp_path / name}/session"]) for name in ("eciabc", "other"))
    try:
        K._end(str(tmp_path / "eciabc"))
        assert ours.wait(20) == -signal.SIGKILL and other.poll() is None
    finally:
        for p in (ours, other): p.kill(); p.wait()


# the tree of merges

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 40), st.integers(0, 2**31))
def test_neighbours_are_merged_in_their_order_whenever_they_come(n, seed):
    def grown(order):
        tree = C._Tree(n, lambda a, b: (a, b))
        for k in order: tree.add(int(k), int(k))
        return tree.root
    def leaves(x): return [x] if isinstance(x, int) else leaves(x[0]) + leaves(x[1])
    root = grown(range(n))
    assert leaves(root) == list(range(n)) and grown(np.random.default_rng(seed).permutation(n)) == root


def test_sources_that_one_side_lacks_are_merged_too():
    def of(*names): return {s: Accumulator(2).add(*(np.eye(2)[[0]] + k for k in (0, 1, 2)), [0.5]) for s in names}
    left, right = of("a", "b"), of("c", "b")
    for a in (*left.values(), *right.values()): a.total.flags.writeable = False # as they come
    found = C._merge(left, right)
    assert list(found) == ["a", "b", "c"] and [a.n for a in found.values()] == [1, 2, 1] and np.allclose(found["b"].total, 2 * left["b"].total) and left["b"].n == 1


# ranking

CELL_KINDS = ("kind", "n", "queries", "rank", "ties", "place", "place_lo", "place_hi", "stands")


def ranks_as(there, local):
    "The same table, pairs, draws, lengths and counts."
    assert list(there.table.index) == list(local.table.index) and list(there.table.columns) == list(local.table.columns)
    for c in CELL_KINDS: assert there.table[c].tolist() == local.table[c].tolist(), c
    for a, b in ((there.table, local.table), (there.pairs, local.pairs), (there.draws["eci_sem"], local.draws["eci_sem"]), (there.lengths, local.lengths)):
        numbers = b.select_dtypes("number").columns
        assert list(a.columns) == list(b.columns) and np.allclose(a[numbers].to_numpy(float), b[numbers].to_numpy(float), rtol=1e-10, atol=1e-14, equal_nan=True)
    assert there.dropped.to_dict("records") == local.dropped.to_dict("records")
    assert {k: x for k, x in there.provenance.items() if k != "work"} == local.provenance and there.notes == local.notes


@pytest.fixture
def uneven(tmp_path):
    "Three sources and a control, of which some lack queries, with a row that is no triple's; shards that hold parts of all."
    rows = [dict(r, source=("a", "b", "c", "random")[i % 4], query_id=f"q{i // 4 % 20}", query=f"what is {i // 4 % 20}", positive_id=f"p{i // 4 % 20}", positive=f"{r['positive']} {i // 4 % 20}", negative_id=f"n{i}", negative=f"{r['negative']} {i}") for i, r in enumerate(some_triples(400).table.to_pylist())]
    rows = [r for r in rows if (r["source"], r["query_id"]) not in {("a", "q3"), ("b", "q7"), ("random", "q8")}]
    rows.append(dict(rows[0], negative=rows[0]["positive"], negative_id="n-bad"))
    return Triples.from_rows(rows), split(Triples.from_rows(rows), tmp_path, *NAMES), tmp_path


def checked(files):
    reports = [check_file(f) for f in files]
    for r in reports: r._known = reduce(_merge_known, [x._known for x in reports[1:]], reports[0]._known) if r is reports[0] else reports[0]._known
    return lambda: (t for r in reports for t in r.clean_batches())


def test_shards_are_ranked_as_a_stream_is(ray, uneven, monkeypatch):
    t, files, folder = uneven
    local = rank_stream(checked(files), Digests())
    local.provenance["collection"] = None
    kept = []
    monkeypatch.setattr(C, "_get", lambda ref, what, get=C._get: kept.append(get(ref, what)) or kept[-1])
    there = rank_cluster(folder, Digests, workers=3, batch=17)
    ranks_as(there, local)
    assert there.table["queries"].eq(17).all() and there.table.loc["random", "kind"] == "control" and there.provenance["resamples"] == 1000
    assert there.dropped.set_index(["source", "reason"])["rows"].sum() > 1 and set(there.dropped["reason"]) == {"query not covered by every source", "negative equals the positive"}
    assert not [x for x in kept if isinstance(x, (np.ndarray, Triples))] # no key and no triple comes here
    assert there.provenance["work"]["rows"] == there.table["n"].sum() and there.provenance["work"]["workers"] == 3 and there.explain.__self__ is there
    with pytest.raises(InputError, match="an explanation needs the triples"): there.explain()


def test_a_ranking_with_a_dead_worker_fewer_blocks_and_other_options(ray, uneven, tmp_path_factory):
    t, files, folder = uneven
    config, options = ECIConfig(residual="unit", gain="d"), dict(control="a", resamples=60, blocks=5, seed=3, alpha=0.1)
    local = rank_stream(checked(files), Digests(), config, **options)
    local.provenance["collection"] = None
    flag = tmp_path_factory.mktemp("flag") / "killed"
    ranks_as(rank_cluster(str(folder / "*"), Digests, config, workers=3, batch=17, tokenizer=deadly(flag, False), **options), local)
    assert flag.exists()


def test_files_without_sources_go_by_their_names_and_a_collection_judges(ray, tmp_path):
    rows = [dict(r, source="negatives", query_id=f"q{i % 40}", positive_id=f"p{i}") for i, r in enumerate(some_triples(60).table.to_pylist())]
    of = {s: [dict(r, negative_id=f"{s}{i}", negative=f"{r['negative']} {s} {i}") for i, r in enumerate(rows)] for s in "ab"}
    files = [Triples.from_rows(mine).write(tmp_path / f"{s}.jsonl") for s, mine in of.items()]
    corpus = {r[f"{k}_id"]: r[k] for mine in of.values() for r in mine for k in ("positive", "negative")}
    collection = Collection("few", corpus, {r["query_id"]: r["query"] for r in rows}, {"test": {"q1": {"a1": 1}}})
    options = dict(collection=collection, resamples=40)
    local = rank_files(files, Digests(), **options)
    ranks_as(rank_cluster(files, Digests, workers=2, **options), local)
    assert set(local.table.index) == {"a", "b"} and len(local.dropped)


def test_a_positive_of_one_shard_is_no_negative_in_another(ray, tmp_path):
    rows = [dict(query=f"query {i}", positive=f"answer {i} {k}", negative=f"answer {i} {1 - k}" if s == "bm25" and i % 3 == 0 else f"{s} {i} {k} other", source=s) for i in range(30) for k in (0, 1) for s in ("bm25", "dense")]
    held = rank_sources(Triples.from_rows(rows), Digests(), hybrids=None, metrics=["eci_sem"], progress=False, resamples=50)
    for cut in (lambda r: r["positive"][-1], lambda r: r["source"], lambda r: len(r["query"]), lambda r: 0):
        folder = tmp_path / str(id(cut)); folder.mkdir()
        for key in sorted({str(cut(r)) for r in rows}): Triples.from_rows([r for r in rows if str(cut(r)) == key]).write(folder / f"{key}.parquet")
        there = rank_cluster(folder, Digests, workers=2, resamples=50)
        assert there.table["value"].to_dict() == pytest.approx(held.table["value"].to_dict(), rel=1e-10) and there.table["n"].to_dict() == held.table["n"].to_dict()
        assert there.dropped.query("reason == 'negative is a known relevant passage'")["rows"].sum() == 20


def test_rank_sources_takes_shards_on_a_cluster(ray, tmp_path, monkeypatch, capsys):
    import ray.data
    rows = [dict(query=f"query {i}", positive=f"answer {i}", negative=f"{s} {i} other", source=s) for i in range(24) for s in ("bm25", "dense", "random")]
    folder = tmp_path / "shards"; folder.mkdir()
    for k in range(3): Triples.from_rows(rows[k::3] if k else rows[::3]).write(folder / f"{k}.{'jsonl' if k == 1 else 'parquet'}")
    held = rank_sources(Triples.from_rows(rows), Digests(), hybrids=None, metrics=["eci_sem"], progress=False, resamples=50)
    for given in (folder, str(folder / "*.*"), sorted(folder.iterdir()), ray.data.from_items(rows)):
        there = rank_sources(given, Digests, engine="ray", resamples=50)
        assert there.table["value"].to_dict() == pytest.approx(held.table["value"].to_dict(), rel=1e-10) and there.table.loc["random", "kind"] == "control" and there.provenance["work"]["workers"] == 3
    with pytest.raises(InputError, match="equal_counts needs the triples in memory, and shards are walked over"): rank_sources(folder, Digests, engine="ray", equal_counts=True)
    from eci_sem.cli import main
    monkeypatch.setattr(C, "cluster_encoder", lambda encoder, *given, real=C.cluster_encoder, **options: real(Digests, *given, **options))
    for given in (str(folder), str(folder / "*.*")): # without --stream
        assert main(["rank", given, "--encoder", "glove", "--engine", "ray", "--resamples", "50", "--json"]) == 0
        assert {r["source"]: r["value"] for r in json.loads(capsys.readouterr().out)["table"]} == pytest.approx(held.table["value"].to_dict(), rel=1e-10)


def test_what_is_named_by_a_relative_path_is_this_machines(ray, tmp_path, monkeypatch):
    "The workers stand in a folder of their own, where a file of that name may hold other texts."
    here = tmp_path / "here"; here.mkdir()
    rows = [dict(query_id=f"q{i % 8}", positive_id=f"p{i % 8}", negative_id=f"n{i}") for i in range(24)]
    for s in "ab": (here / f"{s}.tsv").write_text("".join("\t".join(r.values()) + "\n" for k, r in enumerate(rows) if "ab"[k // 8 % 2] == s))
    (here / "corpus.jsonl").write_text("".join(json.dumps({"_id": i, "text": f"text of {i}"}) + "\n" for i in sorted({x for r in rows for x in (r["positive_id"], r["negative_id"])})))
    (here / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": f"query {i}"}) + "\n" for i in range(8)))
    texts = dict(corpus="corpus.jsonl", queries="queries.jsonl")
    monkeypatch.chdir(here)
    local = rank_files(["a.tsv", "b.tsv"], Digests(), reading=texts, resamples=40)
    there = rank_cluster(["a.tsv", "b.tsv"], Digests, workers=2, resamples=40, **texts)
    assert there.table["value"].to_dict() == pytest.approx(local.table["value"].to_dict(), rel=1e-10)
    scores = score_cluster("a.tsv", Digests, workers=2, **texts)
    assert [x.n for x in scores.values()] == [16]
    with pytest.raises(InputError, match="none.jsonl: no such file"): rank_cluster("a.tsv", Digests, corpus="none.jsonl")


def test_an_encoder_by_a_relative_path_is_found_from_anywhere(tmp_path, monkeypatch):
    from eci_sem.encoders import HUB
    monkeypatch.chdir(tmp_path)
    family = next(iter(HUB))
    for name in ("model", "glove", family): (tmp_path / name).mkdir(parents=True)
    whole = lambda made: (made.args, made.keywords)
    assert whole(C._by_name("model")) == ((str(tmp_path / "model"),), {}) and whole(C._by_name(Path("./model"))) == ((str(tmp_path / "model"),), {})
    assert whole(C._by_name("glove")) == (("glove",), {}) and whole(C._by_name("a/b")) == (("a/b",), {})
    assert whole(C._by_name(family)) == ((family,), dict(path=str(tmp_path / family)))
    assert whole(C._by_name(partial(load_encoder, "x/y", path="model", dtype="fast"))) == (("x/y",), dict(path=str(tmp_path / "model"), dtype="fast"))
    assert whole(C._by_name(partial(load_encoder, name="model"))) == ((), dict(name=str(tmp_path / "model")))


def test_a_collection_is_unpacked_once_in_a_worker(monkeypatch):
    import ray
    asked = []
    monkeypatch.setattr(ray, "get", lambda ref: asked.append(ref) or f"collection {ref}")
    C._held.clear()
    assert [C._collection(dict(collection=c)) for c in (None, ("k", [1]), ("k", [1]), ("l", [2]), ("l", [2]))] == [None, "collection 1", "collection 1", "collection 2", "collection 2"] and asked == [1, 2] and len(C._held) == 1
    C._held.clear()


def test_the_token_of_a_cluster_goes_to_this_machine_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"): monkeypatch.delenv(name, raising=False)
    def mode(address):
        K._with_token(address)
        return os.environ.pop("RAY_AUTH_MODE", None)
    assert mode("127.0.0.1:6379") is None # there is none
    (tmp_path / ".ray").mkdir(); (tmp_path / ".ray/auth_token").write_text("secret")
    assert mode("127.0.0.1:6379") == mode("localhost:6379") == "token" and mode("198.51.100.7:6379") is None and mode("no-such-host.invalid:1") is None
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    K._with_token("127.0.0.1:6379")
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_a_task_that_is_killed_for_memory_is_not_tried_for_ever(): # Ray's own default is to try again without end
    K.need_ray()
    assert os.environ["RAY_task_oom_retries"] == str(K._TRIES)


def test_what_a_cluster_can_not_rank(ray, tmp_path):
    rows = some_triples(30).table.to_pylist()
    one, other = ([dict(r, source=s, query_id=s + r["query_id"], query=f"{s} {r['query']}") for r in rows] for s in ("a", "b"))
    path = Triples.from_rows([*one, *other]).write(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"0 queries are covered by every source, expected at least 2 \(queries of each: a: 30, b: 30\)"): rank_cluster(path, Digests, workers=1)
    with pytest.raises(InputError, match="unknown control 'llm'; the sources are a, b"): rank_cluster(path, Digests, workers=1, control="llm")
    named = Triples.from_rows([dict(r, source="negatives") for r in rows]).write(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"t\.parquet: source 'a' is in .*a\.jsonl too, which has no source of its own and goes by its name"): rank_cluster([path, named], Digests, workers=1)
    with pytest.raises(InputError, match="resamples is 1, expected a whole number of at least 2"): rank_cluster(path, Digests, resamples=1)


def test_the_command_ranks_shards_on_a_cluster(ray, uneven, capsys, monkeypatch):
    from eci_sem.cli import main
    _, files, folder = uneven
    monkeypatch.setattr(C, "cluster_encoder", lambda encoder, *given, real=C.cluster_encoder, **options: real(Digests, *given, **options)) # no weights to be read three times
    rank_ = ["rank", str(folder / "*"), "--encoder", "glove", "--stream", "--resamples", "40", "--json"]
    assert main([*rank_, "--engine", "ray"]) == 0
    there = json.loads(capsys.readouterr().out)
    local = rank_stream(checked(files), Digests(), resamples=40)
    assert [r["source"] for r in there["table"]] == list(local.table.index) and [r["value"] for r in there["table"]] == pytest.approx(local.table["value"].tolist(), rel=1e-10)


# GPUs that are in the cluster, and not here

class FakeRay:
    "A cluster of 16 processors and 4 GPUs that notes which actors are asked for."
    def __init__(self): self.actors, self.asked = [], {}
    def cluster_resources(self): return {"CPU": 16.0, "GPU": 4.0}
    def remote(self, what): return self
    def options(self, **options): self.asked = options; return self
    def kill(self, part): pass
    class Part:
        class about:
            @staticmethod
            def remote(): return None


@pytest.fixture
def gpus(monkeypatch):
    fake = FakeRay()
    class Actor:
        def options(self, **options): fake.asked = options; return self
        def remote(self, make, tokenizer, keep): fake.actors.append((make, fake.asked["num_gpus"])); return FakeRay.Part()
    @contextmanager
    def connected(address=None, workers=None): fake.actors.clear(); yield fake
    fake.remote = lambda what: Actor()
    monkeypatch.setattr(C, "connected", connected)
    monkeypatch.setattr(C, "_get", lambda ref, what: [dict(dim=16, name="n", fingerprint="f", info={}, pid=1) for _ in ref])
    return fake


def pool(fake, encoder, **options):
    "(actors, GPUs of each, what makes the encoder)"
    with C.cluster_encoder(encoder, **options) as remote: assert remote.dim == 16
    make = {id(m): m for m, _ in fake.actors}
    return len(fake.actors), {g for _, g in fake.actors}, fake.actors[0][0]


def test_a_named_encoder_is_put_on_the_gpus_of_the_cluster(gpus):
    for encoder, options, n, each, device in (("minilm", {}, 4, 1, "cuda"), (partial(load_encoder, "minilm", dtype="fast"), {}, 4, 1, "cuda"), ("minilm", dict(device="cpu"), 16, 0, "cpu"), (partial(load_encoder, "minilm", device="cuda"), {}, 4, 1, "cuda"), (partial(load_encoder, "minilm", device="cpu"), {}, 16, 0, "cpu"), ("minilm", dict(gpus_per_worker=0.5), 8, 0.5, "cuda")):
        found, gpu, make = pool(gpus, encoder, **options)
        assert (found, gpu) == (n, {each}) and make.func is load_encoder and make.args == ("minilm",) and make.keywords["device"] == device
    assert pool(gpus, partial(load_encoder, "minilm", dtype="fast"))[2].keywords["dtype"] == "fast"


def test_an_encoder_is_moved_to_the_device_that_was_asked_for(gpus, monkeypatch):
    glove = load_encoder("glove", cache=False)
    fingerprint, model = glove.fingerprint, glove.model
    assert pool(gpus, glove)[:2] == (16, {0})
    n, gpu, make = pool(gpus, glove, device="cuda")
    assert (n, gpu) == (4, {1})
    import torch
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device 'cuda': this machine's PyTorch .* sees no such device"): make() # said by the actor, not here
    monkeypatch.setattr(C, "_check_device", lambda device: None)
    moved = make()
    assert moved.device == "cuda" and moved._loaded is None and moved.fingerprint != fingerprint # another kind of device, other vectors
    assert glove.device == "cpu" and glove.model is model and glove.fingerprint == fingerprint
    # one that holds its model is moved as well
    held = Encoder(model, "held", weights="w", cache=False)
    n, gpu, make = pool(gpus, held, device="cuda")
    assert (n, gpu) == (4, {1}) and make().device == "cuda" and not make()._ready
    # "fast" is what it is on the machine of the actor
    fast = Encoder(model, "fast", weights="w", dtype="fast", cache=False)
    monkeypatch.setattr(C, "fast_dtype", lambda device: (f"of {device}", "why"))
    assert pool(gpus, fast, device="cuda")[2]().dtype == "of cuda" and fast.dtype != "of cuda"
    for other, what in ((Digests(), "Digests"), (Digests, "a function"), (lambda: Digests(), "a function")):
        with pytest.raises(InputError, match=f"device is 'cuda', but encoder is {what} that can't be told: leave device= out"): pool(gpus, other, device="cuda")


def test_a_ranking_hands_the_name_over_and_not_an_encoder_of_this_machine(gpus, tmp_path, monkeypatch):
    from eci_sem import cli
    t = some_triples()
    class Enough(Exception): pass
    def stop(*_): raise Enough
    monkeypatch.setattr(C, "_one_encoder", stop)
    path = str(t.write(tmp_path / "t.jsonl"))
    rank_ = ["rank", path, "--encoder", "minilm", "--dtype", "fast", "--engine", "ray", "--debug"]
    for call in (lambda: rank_sources(t, "minilm", engine="ray"), lambda: rank_cluster(path, "minilm"), lambda: cli.main(rank_), lambda: cli.main([*rank_, "--stream"]), lambda: cli.main([*rank_, "--device", "cuda"]), lambda: cli.main([*rank_, "--stream", "--device", "cuda"])):
        with pytest.raises(Enough): call()
        make, gpu = gpus.actors[0]
        assert len(gpus.actors) == 4 and gpu == 1 and make.args == ("minilm",) and make.keywords["device"] == "cuda"
    assert make.keywords["dtype"] == "fast"
    with pytest.raises(Enough): cli.main([*rank_, "--device", "cpu"])
    assert len(gpus.actors) == 16 and gpus.actors[0][1] == 0


class Pieces(Digests):
    "Has word pieces."
    def tokenize(self, texts): return [[t[i:i + 3] for i in range(0, len(t), 3)] for t in texts]


def test_without_a_cluster_a_function_or_class_makes_the_encoder_here():
    found = [rank_sources(some_triples(), e, control=None, resamples=20).table["value"].tolist() for e in (Digests(), Digests, lambda: Digests())]
    assert found[0] == found[1] == found[2]


def test_word_pieces_are_those_of_the_encoder_on_the_cluster(ray):
    t = some_triples(120)
    local, there = (rank_sources(t, e, control=None, resamples=20, tokenizer="wordpiece", **engine) for e, engine in ((Pieces(), {}), (Pieces, dict(engine="ray"))))
    assert all(there.provenance[k] == local.provenance[k] for k in ("tokenizer", "idf", "encoder")) and np.allclose(there.table["value"], local.table["value"], rtol=1e-10)


def test_a_ranking_is_the_same_on_a_cluster(ray):
    t = some_triples()
    local, there = (rank_sources(t, Digests(), control=None, resamples=100, **engine) for engine in ({}, dict(engine="ray")))
    numbers = local.table.select_dtypes("number")
    assert list(there.table.index) == list(local.table.index) and np.allclose(there.table[numbers.columns].to_numpy(float), numbers.to_numpy(float), rtol=1e-10, atol=0, equal_nan=True)
    assert there.draws["eci_sem"].equals(local.draws["eci_sem"]) and there.provenance["encoder"] == local.provenance["encoder"]


@pytest.mark.parametrize("kept", ["bfloat16", "float32"])
def test_fast_is_held_against_float32_on_a_cluster_too(ray, tmp_path, monkeypatch, kept):
    from test_fast import far_from_zero
    monkeypatch.setattr("eci_sem.encoders._bfloat16_instructions", lambda: "amx_bf16")
    model = load_encoder("glove" if kept == "bfloat16" else far_from_zero(tmp_path / "far"), cache=False).model
    made = lambda dtype: Encoder(model, "held", weights="held", dtype=dtype, cache=False) # holds its model, so that the actors don't choose a format of their own
    t, options = some_triples(480), dict(seed=3, resamples=200)
    if kept == "bfloat16":
        files = split(t, tmp_path, *NAMES[:2])
        scored, plain = score_cluster(files, made("fast"), workers=1), score_stream(batches(files), made("float32"))
        assert {s: x.value for s, x in scored.items()} == pytest.approx({s: x.value for s, x in plain.items()}, rel=1e-10), "a score that nothing is held against is in float32"
        with C.cluster_encoder(made("fast"), workers=1) as remote: # what engine="ray" ranks with
            there, here = (rank_sources(t, e, metrics="eci_sem", progress=False, **options) for e in (remote, made(kept)))
    else:
        files = split(t, tmp_path, *NAMES)
        there, here = rank_cluster(files, made("fast"), workers=2, tokenizer="wordpiece", **options), rank_stream(batches(files), made(kept), tokenizer="wordpiece", **options)
    numbers = here.table.select_dtypes("number").columns
    np.testing.assert_allclose(there.table[numbers].to_numpy(float), here.table[numbers].to_numpy(float), rtol=1e-10, atol=1e-14)
    encoder = there.provenance["encoder"]
    assert (encoder["dtype"], encoder["fingerprint"]) == (kept, here.provenance["encoder"]["fingerprint"]) and there.notes.count(encoder["dtype_check"]) == 1
    assert ("is bfloat16 here" if kept == "bfloat16" else "stays with float32 here") in encoder["dtype_check"]


def test_an_actor_holds_both_formats_until_one_is_chosen_and_makes_the_other_anew_after_a_restart(monkeypatch):
    monkeypatch.setattr("eci_sem.encoders._bfloat16_instructions", lambda: "avx512_bf16")
    texts, parts = ["close the socket", "sort an array"], [C._Part(lambda: load_encoder("glove", dtype="fast", cache=False), "word", 1 << 20) for _ in range(2)]
    want = {d: load_encoder("glove", dtype=d, cache=False).encode_queries(texts).tobytes() for d in ("float32", "bfloat16")}
    for part in parts: # the mark alone is enough: what the actor was told before its restart is lost
        assert part.encode("float32 queries", texts).tobytes() == want["float32"] != want["bfloat16"] == part.encode("queries", texts).tobytes()
        assert [part.about(mark)["info"]["dtype"] for mark in ("", C._FLOAT32)] == ["bfloat16", "float32"] and part.about(C._FLOAT32)["fingerprint"] == load_encoder("glove", cache=False).fingerprint
    parts[0].settle(C._FLOAT32)
    assert set(parts[0].vectors) == {"float32 queries", "float32 passages"} and parts[0].encoder is parts[0].twin and parts[0].encode("float32 queries", texts).tobytes() == want["float32"]
    parts[1].settle("")
    assert set(parts[1].vectors) == {"queries", "passages"} and parts[1].twin is None and parts[1].encode("queries", texts).tobytes() == want["bfloat16"]


def test_the_command_line_passes_the_engine_on(tmp_path, monkeypatch, capsys):
    from eci_sem import rank, runs
    from eci_sem.cli import main
    told = []
    def stop(*_, **options): told.append({k: options[k] for k in ("engine", "address")}); raise InputError("enough")
    monkeypatch.setattr(rank, "rank_sources", stop); monkeypatch.setattr(runs, "run", stop); monkeypatch.setattr(runs, "plan", lambda *_: None)
    path = str(some_triples(6).write(tmp_path / "t.jsonl"))
    rank_, reproduce = ["rank", path, "--encoder", "glove"], ["reproduce", "--profile", "smoke"]
    for command in (rank_, reproduce):
        assert main([*command, "--engine", "ray", "--address", "10.0.0.1:6379"]) == 2 and told.pop() == dict(engine="ray", address="10.0.0.1:6379")
        assert main(command) == 2 and told.pop() == dict(engine="local", address=None)
        capsys.readouterr()
        assert main([*command, "--engine", "rya"]) == 2 and "unknown engine in --engine 'rya'. Did you mean 'ray'?" in capsys.readouterr().err
        assert main([*command, "--address", "auto"]) == 2 and "--address is 'auto', which has no effect with --engine local" in capsys.readouterr().err


# batches of notebooks

CELLS = """
  - {name: last, notebook: experiments/total, needs: {tables: ["part/*"]}}
  - {name: part/one, notebook: experiments/good, parameters: {n: 3}}
  - {name: part/two, notebook: experiments/good, parameters: {n: 4}}
"""


def write_notebook(path, parameters, body):
    cells = [dict(cell_type="code", id=f"c{i}", execution_count=None, outputs=[], metadata=dict(tags=["parameters"]) if i == 0 else {}, source=s) for i, s in enumerate((parameters, body))]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")), nbformat=4, nbformat_minor=5)))


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "eci_sem").mkdir()
    (tmp_path / "eci_sem/core.py").write_text("x = 1\n")
    write_notebook(tmp_path / "nbs/experiments/good.ipynb", "n: int = 3\nout: str = ''", "from pathlib import Path\nPath(out, 'table.csv').write_text('\\n'.join(f'{i},{i * i / 7}' for i in range(n)))")
    write_notebook(tmp_path / "nbs/experiments/total.ipynb", "tables: list[str] = []\nout: str = ''", "from pathlib import Path\nPath(out, 'total.csv').write_text('\\n'.join(Path(t, 'table.csv').read_text() for t in tables))")
    write_notebook(tmp_path / "nbs/experiments/slow.ipynb", "seconds: int = 300\nout: str = ''", "import time\nfrom pathlib import Path\nPath('started').touch()\ntime.sleep(seconds)")
    return tmp_path.resolve()


def planned(root, cells, name):
    from eci_sem.runs import plan
    (root / f"{name}.yaml").write_text(f"cells:{cells}")
    return plan(root / f"{name}.yaml", root=root)


def test_a_batch_on_a_cluster_leaves_what_a_local_one_leaves(ray, checkout):
    from eci_sem.runs import read_manifest, run
    small = planned(checkout, CELLS, "small")
    first = run(small, "there", only="part/one", engine="ray", jobs=2)
    assert [(o.cell, o.state) for o in first.outcomes] == [("part/one", "finished")]
    there = run(small, "there", engine="ray", jobs=2)
    assert [(o.cell, o.state) for o in there.outcomes] == [("last", "finished"), ("part/one", "kept"), ("part/two", "finished")] and there.exit_status == 0
    here = run(small, "here")
    for cell in small.cells:
        a, b = (checkout / k / "small" / cell.folder for k in ("here", "there"))
        ma, mb = read_manifest(a), read_manifest(b)
        assert ma.keys() == mb.keys() and all(ma[k] == mb[k] for k in ma if k not in ("started", "seconds", "files")) and ma["files"].keys() == mb["files"].keys()
        for table in a.glob("*.csv"): assert table.read_bytes() == (b / table.name).read_bytes()
    assert not list((checkout / "there").rglob(".stop*")) and not list((checkout / "there").rglob("*.part"))


def test_a_batch_whose_time_is_up_ends_its_notebooks(ray, checkout):
    from eci_sem.runs import run
    slow = planned(checkout, "\n  - {name: slow, notebook: experiments/slow}\n", "slow")
    report = run(slow, "runs", engine="ray", minutes=0.3)
    assert report.exit_status == 3 and [o.state for o in report.outcomes] == ["to run"]
    assert not list((checkout / "runs").rglob("*.part")) and not list((checkout / "runs/slow").rglob("notebook.ipynb"))
    with pytest.raises(InputError, match="unknown engine 'rya'"): run(slow, engine="rya")
    with pytest.raises(InputError, match="address is 'x', which has no effect with engine local"): run(slow, address="x")


KILLS = """import os, signal, time
from pathlib import Path
def parent(pid): return int(Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[1])
if not Path('killed').exists():
    Path('killed').write_text(f'{os.getpid()} {parent(os.getpid())}')
    os.kill(parent(parent(os.getpid())), signal.SIGKILL) # the worker, whose child is the runner of this notebook
    time.sleep(900)
Path(out, 'table.csv').write_text('1')"""


def test_a_cell_whose_worker_is_killed_is_tried_again(ray, checkout):
    from eci_sem.runs import run
    if not os.path.isdir("/proc/self"): pytest.skip("there is no /proc to find the worker in")
    write_notebook(checkout / "nbs/experiments/kills.ipynb", "out: str = ''", KILLS)
    report = run(planned(checkout, "\n  - {name: kills, notebook: experiments/kills}\n", "kills"), "runs", engine="ray")
    assert [(o.cell, o.state) for o in report.outcomes] == [("kills", "finished")] and (report["kills"].folder / "table.csv").read_text() == "1"
    assert ends(*map(int, (checkout / "killed").read_text().split())) # the notebook of the dead worker ends with it
    assert not list((checkout / "runs").rglob("*.part"))


def test_an_encoder_that_can_not_be_made_is_told(ray, shards):
    def broken(): raise ModuleNotFoundError("No module named 'mine'")
    with pytest.raises(InputError, match=r"starting the encoders: a worker could not make the encoder: ModuleNotFoundError: No module named 'mine' What makes it must be there on every machine"): score_cluster(shards[1][:1], broken, workers=1)


def test_workers_with_different_encoders_are_refused(ray, shards):
    class Other(Digests):
        @property
        def fingerprint(self): return f"weights of process {os.getpid()}"
    with pytest.raises(InputError, match=r"the workers hold different encoders: digests with 16 dimensions and fingerprint weights of proce"): score_cluster(shards[1][:1], Other, workers=2)
