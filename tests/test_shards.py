"Shards from a store and from Ray Data: the same triples as from files, errors by the shard's own name, no key in them, nothing left behind."
import glob
import os
import shutil
import signal
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from eci_sem import cluster as C
from eci_sem import shards as S
from eci_sem.checks import check_file
from eci_sem.cluster import rank_cluster, score_cluster
from eci_sem.collection import InputError, open_text, read_jsonl
from eci_sem.lexical import Tokenizer, get_tokenizer
from eci_sem.score import ECIConfig
from eci_sem.shards import Shard, dataset_shards, find_shards, is_dataset
from eci_sem.stream import score_stream, stream_idf
from eci_sem.triples import Triples
from test_cluster import NAMES, Digests, batches, content, ray, same, shards, some_triples, split, uneven  # noqa: F401


@contextmanager
def object_store(objects: dict[str, bytes]):
    "What of S3 is needed to read objects of one bucket, on loopback; yields (host:port, paths asked for)."
    asked = []
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def log_message(self, *_): pass
        def answer(self, status, body=b"", head=False, **headers):
            self.send_response(status)
            for k, v in ({"Content-Length": str(len(body)), "Content-Type": "application/octet-stream", "Last-Modified": "Sat, 28 Nov 2026 00:00:00 GMT", "ETag": '"x"'} | headers).items(): self.send_header(k, v)
            self.end_headers()
            if not head: self.wfile.write(body)
        def do_GET(self, head=False):
            parts = urlsplit(self.path)
            asked.append(self.path)
            bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
            query = parse_qs(parts.query)
            if bucket != "bucket": return self.answer(404, head=head)
            if not key and "list-type" in query:
                prefix, found, folders = query.get("prefix", [""])[0], [], set()
                for name in sorted(objects):
                    if not name.startswith(prefix): continue
                    rest = name[len(prefix):]
                    if "delimiter" in query and "/" in rest: folders.add(prefix + rest.partition("/")[0] + "/")
                    else: found.append(name)
                body = "".join(f"<Contents><Key>{n}</Key><Size>{len(objects[n])}</Size><LastModified>2026-11-28T00:00:00.000Z</LastModified></Contents>" for n in found) + "".join(f"<CommonPrefixes><Prefix>{f}</Prefix></CommonPrefixes>" for f in sorted(folders))
                return self.answer(200, f'<?xml version="1.0"?><ListBucketResult><Name>bucket</Name><Prefix>{prefix}</Prefix><KeyCount>{len(found) + len(folders)}</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{body}</ListBucketResult>'.encode(), **{"Content-Type": "application/xml"})
            if key not in objects: return self.answer(404, head=head)
            data = objects[key]
            if (given := self.headers.get("Range")) and not head:
                first, last = given.removeprefix("bytes=").split("-")
                first, last = int(first), min(int(last or len(data) - 1), len(data) - 1)
                return self.answer(206, data[first:last + 1], **{"Content-Range": f"bytes {first}-{last}/{len(data)}"})
            self.answer(200, data, head, **({"Content-Length": str(len(data))} if head else {}))
        def do_HEAD(self): self.do_GET(head=True)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f"127.0.0.1:{server.server_port}", asked
    finally: server.shutdown(); server.server_close()


def left_behind(): return glob.glob(os.path.join(tempfile.gettempdir(), "eci-sem-shard-*"))


# which shards there are

def test_files_of_an_address_a_folder_and_a_pattern(shards):
    _, files, folder = shards
    for name in ("_SUCCESS", ".hidden.jsonl", "notes.txt"): (folder / name).write_text("x")
    (folder / "more").mkdir()
    files[0].rename(folder / "more/5.parquet")
    at = lambda *given: [s.name for s in find_shards(*given)]
    base = f"file://{folder}"
    assert at(base) == at(base + "/") == [f"{base}/{n}" for n in NAMES[1:]]
    assert at(f"{base}/*.jsonl") == [f"{base}/1.jsonl", f"{base}/4.jsonl"]
    assert at(f"{base}/*/*.parquet") == [f"{base}/more/5.parquet"]
    assert at([f"{base}/[12].jsonl*", folder / "4.jsonl"]) == [f"{base}/1.jsonl", f"{base}/2.jsonl.gz", str(folder / "4.jsonl")]
    assert at(f"{base}/3.parquet") == [f"{base}/3.parquet"] and at(folder / "3.parquet") == [str(folder / "3.parquet")]


def test_what_can_not_be_found(tmp_path):
    def refused(match, given):
        with pytest.raises(InputError, match=match): find_shards(given)
    base = f"file://{tmp_path}"
    refused(r"file://.*nowhere: no such object or folder\.", f"{base}/nowhere")
    refused(r"file://.*\*\.parquet: no object fits this pattern\.", f"{base}/*.parquet")
    refused("holds no .parquet, .jsonl or .jsonl.gz file", base)
    refused(r"\*\* is no pattern in a store; name the folders", f"{base}/**/*.jsonl")
    refused("s3://\\*: names no folder or bucket", "s3://*")
    refused("ftp://x/y: this address can't be used .*expected file://, s3://, gs:// or hdfs://", "ftp://x/y")
    path = some_triples(3).write(tmp_path / "a.jsonl")
    for twice in ([f"{base}/a.jsonl", f"{base}/*.jsonl"], [f"{base}/a.jsonl", path], [path, os.path.relpath(path)], [f"{base}/a.jsonl", f"{base}//a.jsonl"]): refused(r"a\.jsonl: the shard is named 2 times", twice)
    refused("the list of shards is empty", [])
    refused("shards hold NoneType, expected paths, addresses, or a list of these", None)
    refused("shards hold int, expected", [path, 3])
    refused(r"^s3://bucket/x: is an address, where a file of this machine is needed", Path("s3://KEYNAME:SECRETWORD@bucket/x")) # a Path has lost a slash
    with pytest.raises(InputError, match=r"^s3://bucket/q\.tsv: is an address, where a file of this machine is needed: copy it here"): score_cluster(path, Digests, queries="s3://KEYNAME:SECRETWORD@bucket/q.tsv")


NAMES_OF_ALL_KINDS = ("a+b.jsonl", "a%2Bb.jsonl", "x y.jsonl", "k[1].jsonl", "h#i.jsonl", "p%20q.jsonl", "w?z.jsonl", "v@1.jsonl", "é.jsonl")


def test_objects_of_all_names_are_found_and_none_is_taken_for_another(tmp_path):
    folder = tmp_path / "my folder"
    folder.mkdir()
    for name in NAMES_OF_ALL_KINDS: (folder / name).write_text(name)
    found = find_shards(f"file://{tmp_path}/my%20folder/")
    assert found == find_shards(f"file://{tmp_path}/my%20folder/*.jsonl") == find_shards(f"file://{tmp_path}/my folder") and len(found) == len(NAMES_OF_ALL_KINDS)
    for shard in found:
        with shard.file() as path: assert shard.name == f"file://{folder}/{Path(path).read_text()}" and Path(path).name == Path(path).read_text()
    assert [s.name for s in find_shards(f"file://{tmp_path}/my%20folder/x%20*.jsonl")] == [f"file://{folder}/x y.jsonl"]


def object_at(path, name=None):
    (shard,) = find_shards(f"file://{path}")
    return replace(shard, name=name or shard.name)


def test_an_object_is_read_as_its_file_is_and_the_copy_is_removed(shards):
    _, files, _ = shards
    for f in files:
        with object_at(f).file() as path:
            assert path != str(f) and Path(path).read_bytes() == f.read_bytes()
        assert not Path(path).exists()
        with Shard(str(f), str(f)).file() as path: assert path == str(f)
    shard = object_at(files[0], "s")
    files[0].unlink()
    with pytest.raises(InputError, match=r"s: can't be fetched \(FileNotFoundError\); an object must be there for every machine"):
        with shard.file(): pass
    assert not left_behind()


def test_errors_go_by_the_shards_name(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    shard = object_at(tmp_path / "a.jsonl", "s3://bucket/a.jsonl")
    def told(say, shard=shard):
        with pytest.raises(InputError) as e:
            with shard.file() as path: raise InputError(say(path))
        return str(e.value)
    assert told(lambda p: f"{p}:3: no query") == "s3://bucket/a.jsonl:3: no query"
    assert told(lambda p: "no query") == "s3://bucket/a.jsonl: no query"
    assert told(lambda p: f"{p}:3: no query", Shard("/x/a.jsonl", f"{tmp_path}/a.jsonl")) == f"/x/a.jsonl: {tmp_path}/a.jsonl:3: no query"
    with pytest.raises(InputError, match="s3://bucket/a.jsonl: a worker ran out of memory; give a smaller batch="):
        with shard.file(): raise MemoryError
    assert not left_behind()


def test_what_a_killed_process_left_is_removed_by_the_next(shards, tmp_path, monkeypatch):
    import subprocess
    import sys
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run = f"from eci_sem.shards import find_shards; import time\nwith find_shards('file://{shards[1][0]}')[0].file() as path: print(path, flush=True); time.sleep(60)"
    other = object_at(shards[1][1])
    with subprocess.Popen([sys.executable, "-c", run], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}) as p:
        path = Path(p.stdout.readline().strip())
        monkeypatch.setattr(S, "_MINUTE", 0)
        with other.file(): assert path.exists() # it lives
        monkeypatch.setattr(S, "_MINUTE", 60)
        p.kill()
    with other.file(): assert path.exists() # not yet: a young folder may be about to be locked
    monkeypatch.setattr(S, "_MINUTE", 0)
    with other.file(): assert not path.parent.exists()
    assert not left_behind()


# a store

def test_objects_of_a_store_are_scored_as_files_are_and_no_key_is_told(ray, shards, capfd):
    t, files, folder = shards
    objects = {f"triples/{f.name}": f.read_bytes() for f in files}
    with object_store(objects) as (host, asked):
        options = f"?endpoint_override={host}&scheme=http&region=us-east-1"
        given = f"s3://KEYNAME:SECRETWORD@bucket/triples{options}"
        assert [s.name for s in find_shards(given)] == [f"s3://bucket/triples/{n}" for n in NAMES] and "SECRET" not in repr(find_shards(given))
        found = score_cluster(f"s3://KEYNAME:SECRETWORD@bucket/triples/*{options}", Digests, workers=3, batch=17)
        assert content(found) == content(score_cluster(folder, Digests, workers=3, batch=17))
        same(found, score_stream(batches(files), Digests()))
        objects["triples/1.jsonl"] += b'{"query": "q", "positive": "p"}\n'
        n = len(objects["triples/1.jsonl"].splitlines())
        def told(given):
            with pytest.raises(InputError) as e: score_cluster(given, Digests, ECIConfig(overlap="none"), workers=1)
            return str(e.value)
        messages = [told(given), told(f"s3://KEYNAME:SECRETWORD@bucket/nothing{options}"), told(f"s3://KEYNAME:SECRETWORD@other/x.jsonl{options}")]
    messages.append(told(f"s3://KEYNAME:SECRETWORD@bucket/x.jsonl{options}")) # nobody answers there now
    assert messages[0].startswith(f"s3://bucket/triples/1.jsonl:{n}: ") and messages[1] == "s3://bucket/nothing: no such object or folder."
    assert messages[2].startswith("s3://other/x.jsonl: ") and messages[3].startswith("s3://bucket/x.jsonl: the store does not answer, or gives no right to read")
    for word in ("KEYNAME", "SECRETWORD"): assert not any(word in m for m in messages) and word not in "".join(capfd.readouterr())
    assert not left_behind()


def test_a_task_that_is_killed_with_a_copy_is_tried_again(ray, shards, tmp_path):
    t, files, folder = shards
    base, words, flag = f"file://{folder}/[0-9]*", get_tokenizer("word"), tmp_path / "killed"
    def deadly(texts): # once, in a task, which holds a copy then
        import ray
        if not ray.get_runtime_context().get_actor_id() and not flag.exists(): flag.touch(); os.kill(os.getpid(), signal.SIGKILL)
        return words(texts)
    idf = stream_idf([t])
    there, here = (score_cluster(base, Digests, workers=2, batch=17, idf=idf, tokenizer=Tokenizer("word", words.fingerprint, split)) for split in (deadly, words.split))
    assert flag.exists() and content(there) == content(here)
    for left in left_behind(): shutil.rmtree(left) # of the one that was killed, which the next copy would remove after a minute


def test_a_bad_object_ends_the_tasks_that_hold_copies(ray, tmp_path, monkeypatch):
    cancel, cancelled = ray.cancel, []
    monkeypatch.setattr(ray, "cancel", lambda ref, **how: (cancelled.append(how["force"]), cancel(ref, **how)))
    t, words, at = some_triples(60), get_tokenizer("word"), tmp_path / "at work"
    Triples.from_rows([dict(r, query=r["query"] + " slow") for r in t.table.to_pylist()]).write(tmp_path / "0.parquet")
    with open(t.write(tmp_path / "1.jsonl"), "a") as f: f.write('{"query": "q", "positive": "p"}\n')
    def split(texts): # the slow one never ends; the bad one waits for it, then comes to its last line
        import ray
        if not ray.get_runtime_context().get_actor_id():
            if any("slow" in x for x in texts): at.touch()
            while not at.exists() or any("slow" in x for x in texts): time.sleep(0.05) # an interrupt comes between two steps
        return words(texts)
    with pytest.raises(InputError, match=rf"^file://{tmp_path}/1\.jsonl:61: "): score_cluster(f"file://{tmp_path}/[01].*", Digests, workers=2, batch=20, idf=stream_idf([t]), tokenizer=Tokenizer("word", words.fingerprint, split))
    assert at.exists() and not left_behind() and cancelled == [False], "once, and so that it can remove its copy"


def test_files_of_a_store_go_by_their_names(ray, tmp_path):
    rows = some_triples(60).table.to_pylist()
    files = [Triples.from_rows([dict(r, source="negatives", query_id=f"q{i % 40}", negative=f"{r['negative']} {s} {i}") for i, r in enumerate(rows)]).write(tmp_path / f"{s}.jsonl") for s in "ab"]
    there, here = (rank_cluster(given, Digests, workers=2, resamples=40) for given in (f"file://{tmp_path}/*.jsonl", files))
    assert set(there.table.index) == {"a", "b"} and there.to_json() != "" and there.table.equals(here.table)


# Ray Data

def test_a_data_set_is_scored_as_its_rows_are(ray, shards, tmp_path):
    import ray as module
    t, files, folder = shards
    local = score_stream(lambda: [t], Digests())
    one = t.write(tmp_path / "one file.parquet")
    read = module.data.read_parquet(str(one)).repartition(5)
    assert is_dataset(read) and not is_dataset(files) and not is_dataset(None) and not is_dataset("ray.data")
    found = score_cluster(read, Digests, workers=3, batch=17, blocks=4)
    same(found, local)
    assert found.work["shards"] == 5 and found.work["rows"] == len(t) # one file, five tasks
    assert content(score_cluster(read, Digests, workers=1, batch=17, blocks=4)) == content(found)
    # what Ray Data filters and makes, rows of Python, a block without any
    half = module.data.from_items(t.table.to_pylist(), override_num_blocks=4).filter(lambda r: r["source"] == "a")
    same(score_cluster(half, Digests, workers=2), score_stream(lambda: [t.select("a")], Digests()))
    pandas = module.data.from_pandas([t.table.to_pandas(), t.table.to_pandas().iloc[:0]])
    assert len(dataset_shards(pandas)) == 1
    same(score_cluster(pandas, Digests, workers=2), local)


def test_several_parquet_files_are_read_in_a_process_of_its_own(shards, tmp_path):
    "Ray lists files in threads, each of which looks for aiohttp; without it, one that loses the race fails."
    import subprocess
    import sys
    t = shards[0]
    for k in range(4): Triples(t.table.slice(k * 20, 20)).write(tmp_path / f"{k}.parquet")
    code = f"from eci_sem.cluster import connected\nwith connected(workers=1) as ray:\n    import ray.data\n    from eci_sem.shards import dataset_shards\n    print('shards', len(dataset_shards(ray.data.read_parquet({[str(p) for p in sorted(tmp_path.glob('*.parquet'))]!r}))))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0 and int(out.stdout.split("shards ")[1]) >= 1, out.stderr[-2000:]


def test_the_blocks_of_a_data_set_keep_their_order_whichever_is_made_first(ray):
    import ray as module
    def slow_first(rows): # the first block is the last to be made
        if rows["query"][0] == "0": time.sleep(3)
        return rows
    rows = [dict(query=str(i), positive="p", negative="n") for i in range(4)]
    found = dataset_shards(module.data.from_items(rows, override_num_blocks=4).map_batches(slow_first))
    def query(shard):
        with shard.file() as path: return Triples.read(path).texts("query")
    assert [query(s) for s in found] == [["0"], ["1"], ["2"], ["3"]]


def test_a_data_set_is_ranked_as_files_are(ray, uneven):
    import ray as module
    t, files, folder = uneven
    here = rank_cluster(files, Digests, workers=3, batch=17)
    data = module.data.from_arrow([Triples.read(f).table for f in files])
    there = rank_cluster(data, Digests, workers=3, batch=17)
    assert there.table.equals(here.table) and there.pairs.equals(here.pairs) and there.draws["eci_sem"].equals(here.draws["eci_sem"])


def test_blocks_of_several_kinds_counts_of_dropped_rows_and_columns_that_parquet_can_not_hold(ray, uneven):
    import pyarrow as pa
    import ray as module
    t, _, _ = uneven
    tables = [t.table.slice(0, 200), t.table.slice(200)]
    mixed = module.data.from_arrow(tables[0]).union(module.data.from_pandas(tables[1].to_pandas()))
    same(score_cluster(mixed, Digests, workers=2), score_stream(lambda: [t], Digests()))
    # each block of a file would bring the file's counts again
    noted = t.table.replace_schema_metadata({"eci_sem.dropped": '{"a": {"no text": 7}}'})
    assert Triples(t.table, {"a": {"no text": 7}}).dropped and not rank_cluster(module.data.from_arrow([noted.slice(0, 200), noted.slice(200)]), Digests, workers=2, resamples=40).dropped["reason"].eq("no text").any()
    odd = t.table.append_column("meta", pa.array([{}] * len(t), pa.struct([])))
    with pytest.raises(InputError, match=r"block 1 of 1 of the data set: can't be fetched \(Arrow\w+\); .* must fit on the disk of temporary files and in columns of Parquet"): score_cluster(module.data.from_arrow(odd), Digests, workers=1)


def test_a_data_set_is_made_before_the_encoders_take_the_gpus(ray, shards, monkeypatch):
    import ray as module
    order = []
    for name in ("dataset_shards", "cluster_encoder"): monkeypatch.setattr(C, name, lambda *given, name=name, real=getattr(C, name), **more: order.append(name) or real(*given, **more))
    data = module.data.from_arrow(shards[0].table)
    score_cluster(data, Digests, workers=1)
    assert order == ["dataset_shards", "cluster_encoder"]
    with pytest.raises(InputError, match="a data set is in a list of shards; give it alone, several joined by its union"): score_cluster([data, shards[1][0]], Digests)
    with pytest.raises(InputError, match="encoder is int, expected an Encoder"): score_cluster(data, 3)
    assert order == ["dataset_shards", "cluster_encoder"]


def test_other_columns_that_a_parquet_file_may_have_and_a_source_by_name(ray):
    import ray as module
    rows = [dict(anchor=f"what is {i}", positive=f"it is {i}", negative_1=f"it is not {i}", negative_2=f"nor {i + 1}") for i in range(12)]
    found = score_cluster(module.data.from_items(rows, override_num_blocks=3), Digests, workers=2, source="mined")
    assert list(found) == ["mined"] and found["mined"].n == 24 and found.work["shards"] == 3


def test_what_a_data_set_can_not_give(ray):
    import ray as module
    def told(data):
        with pytest.raises(InputError) as e: score_cluster(data, Digests, ECIConfig(overlap="none"), workers=2)
        return str(e.value)
    rows = some_triples(12).table.to_pylist()
    def broken(row): raise ValueError("not this one")
    assert told(module.data.from_items(rows).map(broken)) == "the data set can't be made: ValueError: not this one"
    assert told(module.data.from_items(rows).filter(lambda r: False)) == "the data set holds no rows: at least 1 triple is needed."
    bad = told(module.data.from_items([*rows[:6], dict(rows[6], negative=None), *rows[7:]], override_num_blocks=2))
    assert bad.startswith("block 2 of 2 of the data set") and "row 0" in bad and "block.parquet" not in bad
    assert told(module.data.from_items([dict(x=1)])).startswith("block 1 of 1 of the data set")
    context = module.data.DataContext.get_current()
    assert not context.execution_options.preserve_order # as it was
    assert not left_behind()


def test_whatever_reads_files_refuses_an_address_without_its_key(tmp_path, capsys):
    from eci_sem.cli import main
    given = "s3://KEYNAME:SECRETWORD@bucket/x.parquet?region=r"
    told = "s3://bucket/x.parquet: is an address, where a file of this machine is needed: copy it here. Triples in a store are read by the workers of a cluster (eci-sem rank --stream --engine ray)."
    path = some_triples(3).write(tmp_path / "x.jsonl")
    for command in (["rank", str(path), given], ["rank", str(path), given, "--stream"], ["check", given]):
        assert main([*command, *(["--encoder", "glove"] if command[0] == "rank" else [])]) == 2
        assert capsys.readouterr().err == f"eci-sem: {told}\n"
    from eci_sem.cli import _shards_alone
    assert _shards_alone([given]) and not _shards_alone([str(path)]) # on a cluster they are read where they are
    assert check_file(given).problem == told
    for read in (Triples.read, lambda x: Triples.read(Path(x)), open_text, lambda x: list(read_jsonl(x))):
        with pytest.raises(InputError) as e: read(given)
        assert str(e.value) == told
