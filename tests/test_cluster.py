"Many machines: the same numbers as on one, whatever the number of workers; dead workers, bad shards, no memory; the cells of a plan."
import hashlib
import json
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem import cluster as C
from eci_sem.cluster import score_cluster
from eci_sem.collection import InputError
from eci_sem.formats import scan_triples
from eci_sem.lexical import Tokenizer, get_tokenizer
from eci_sem.rank import rank_sources
from eci_sem.score import Accumulator, ECIConfig
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
    with ExitStack() as stack:
        try: found = stack.enter_context(C.connected(given, None if given else 3))
        except InputError as e:
            if given or "Ray does not start on this machine" not in str(e): raise
            pytest.skip(str(e)) # sockets or shared memory that a sandbox does not give
        yield found


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
    # the blocks are those of the queries, and the bootstrap draws them
    for a in three.accumulators.values(): assert a.block_counts.sum() == a.n and np.allclose(a.block_totals.sum(0), a.total[np.triu_indices(16)])
    table = three.ranked(resamples=100)
    assert list(table.index) == sorted(local, key=lambda s: -local[s].value) and (table["lo"] < table["hi"]).all() and table["n"].sum() == len(t)
    assert table["value"].to_dict() == {s: x.value for s, x in three.items()}
    with pytest.raises(InputError, match="there are no query blocks to resample: score with blocks=256"): C.ClusterScores({s: Accumulator(16, blocks=0)._take(1, {}, np.eye(16), slice(0), np.zeros((0, 0)), np.zeros(0, int)) for s in "a"}, None, {}).ranked()


def test_other_factors_and_tokenizers(ray, shards):
    t, files, folder = shards
    config, options = ECIConfig(overlap="jaccard", space="centred", residual="unit", gain="d"), dict(tokenizer="stem", mean=np.full(16, 0.01))
    same(score_cluster(files[0], Digests(), config, workers=1, **options), score_stream(batches(files[:1]), Digests(), config, **options))


def test_a_real_encoder_its_cache_and_its_pieces(ray, shards, tmp_path):
    from eci_sem.encoders import load_encoder
    t, files, _ = shards
    glove = load_encoder("glove", cache=tmp_path / "cache")
    found = score_cluster(files, glove, workers=1, tokenizer="wordpiece")
    assert 0 < found.work["encoded"] <= distinct(t) # one prompt for both, so a query that is a passage too is in the cache by then
    same(found, score_stream(batches(files), glove, tokenizer="wordpiece"))
    assert glove.stats["encoded"] == 0 # the cache is one


# faults

def test_an_actor_that_is_killed_is_replaced_and_the_answer_is_the_same(ray, shards, tmp_path):
    _, files, folder = shards
    flag = tmp_path / "died"
    found = score_cluster(files, lambda: Dies(flag), workers=1, batch=17)
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
    found = score_cluster(files, Digests, workers=2, tokenizer=deadly(flag, in_actor), batch=17)
    assert flag.exists()
    local = score_stream(batches(files), Digests())
    same(found, local)
    assert found.idf.df == stream_idf(batches(files)()).df


def test_a_worker_that_dies_every_time_stops_the_job(ray, shards, tmp_path):
    _, files, folder = shards
    with pytest.raises(InputError, match=r"a worker died, and its replacements too \(3 tries; \w+\)\. The kernel may have killed them for want of memory: give a smaller batch= or keep="):
        score_cluster(files, lambda: Dies(tmp_path / "died", always=True), ECIConfig(overlap="none"), workers=1)


def test_a_worker_without_memory_takes_less_at_a_time():
    texts = [f"text {i}" for i in range(40)]
    part = C._Part(lambda: Small(8), "word", 1 << 20)
    assert np.array_equal(part.encode("passages", texts), Digests().encode_passages(texts)) and part.work["encoded"] == 40
    with pytest.raises(MemoryError): C._Part(lambda: Small(0), "word", 1 << 20).encode("passages", texts)


def test_a_worker_without_any_memory_stops_the_job(ray, shards):
    with pytest.raises(InputError, match="a worker ran out of memory; give a smaller batch= or keep=, fewer workers, or machines with more memory"): score_cluster(shards[1], lambda: Small(0), ECIConfig(overlap="none"), workers=1)


def test_what_ray_raises_is_told_in_plain_words():
    exceptions = pytest.importorskip("ray").exceptions
    assert str(C._explained(exceptions.OutOfMemoryError("x"), "a.jsonl")).startswith("a.jsonl: a worker ran out of memory; give a smaller batch=")
    assert str(C._explained(exceptions.WorkerCrashedError(), "a.jsonl")).startswith("a.jsonl: a worker died, and its replacements too (3 tries; WorkerCrashedError)")
    assert str(C._explained(exceptions.RayTaskError("f", "trace", InputError("b.jsonl:3: bad")), "a")) == "b.jsonl:3: bad"
    other = KeyError("x")
    assert C._explained(exceptions.RayTaskError("f", "trace", other), "a") is other


def test_a_bad_shard_stops_the_job_and_is_named(ray, shards):
    t, files, folder = shards
    good = files[3].read_bytes()
    files[3].write_bytes(good[:len(good) // 2])
    for task in (lambda: C._count_shard(str(files[3]), [], [], {}), lambda: C._score_shard(str(files[3]), Digests(), dict(tokenizer="word", config=ECIConfig(), idf=None, keep=1, blocks=0, given={}, reading={}))):
        with pytest.raises(InputError, match=r"3\.parquet: not a readable Parquet file"): task()
    files[3].write_bytes(good)
    with open(files[1], "a") as f: f.write('{"query": "q", "positive": "p"}\n')
    n = len(files[1].read_text().splitlines())
    with pytest.raises(InputError, match=rf"1\.jsonl:{n}: "): score_cluster(folder, Digests, workers=1)


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
    assert C._shards(tmp_path) == [str(path)]


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
        C._end(str(tmp_path / "eciabc"))
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

def test_a_ranking_is_the_same_on_a_cluster(ray):
    t = some_triples()
    local, there = (rank_sources(t, Digests(), control=None, resamples=100, **engine) for engine in ({}, dict(engine="ray")))
    numbers = local.table.select_dtypes("number")
    assert list(there.table.index) == list(local.table.index) and np.allclose(there.table[numbers.columns].to_numpy(float), numbers.to_numpy(float), rtol=1e-10, atol=0, equal_nan=True)
    assert there.draws["eci_sem"].equals(local.draws["eci_sem"]) and there.provenance["encoder"] == local.provenance["encoder"]


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


def test_an_encoder_that_can_not_be_made_is_told(ray, shards):
    def broken(): raise ModuleNotFoundError("No module named 'mine'")
    with pytest.raises(InputError, match=r"starting the encoders: a worker could not make the encoder: ModuleNotFoundError: No module named 'mine' What makes it must be there on every machine"): score_cluster(shards[1][:1], broken, workers=1)


def test_workers_with_different_encoders_are_refused(ray, shards):
    class Other(Digests):
        @property
        def fingerprint(self): return f"weights of process {os.getpid()}"
    with pytest.raises(InputError, match=r"the workers hold different encoders: digests with 16 dimensions and fingerprint weights of proce"): score_cluster(shards[1][:1], Other, workers=2)
