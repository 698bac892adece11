"""Collections: loaders, what counts as relevant, errors with their place, the embedded docstrings, and the public collections beside the repository."""
import errno
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem import collection as c
from eci_sem.collection import Collection, InputError, atomic_path, load_beir, load_docstrings, normalise, read_jsonl, seeded_order, sha256_text, split_docstring, unknown_name, write_text

from hub_server import Fault, HubServer

GOOD = {"corpus.jsonl": '{"_id": "d1", "title": "Cats", "text": "Cats purr."}\n{"_id": "d2", "title": "", "text": "Dogs bark."}\n',
    "queries.jsonl": '{"_id": "q1", "text": "what do cats do"}\n{"_id": "q2", "text": "what do dogs do"}\n',
    "qrels/test.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t2\n"}


def folder(tmp_path, gz=(), **changes):
    for name, text in {**GOOD, **{k.replace("__", "/").replace("_jsonl", ".jsonl").replace("_tsv", ".tsv"): v for k, v in changes.items()}}.items():
        if text is None: continue
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name in gz: (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        else: (tmp_path / name).write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def docstrings(): return load_docstrings()


# errors, files, orders

def test_unknown_name_gives_the_nearest():
    assert str(unknown_name("source", "bm52", ["llm", "bm25"])) == "unknown source 'bm52'. Did you mean 'bm25'? Known: bm25, llm."
    assert "Did you mean" not in str(unknown_name("source", "xyz", ["llm", "bm25"]))


def test_atomic_path_leaves_the_old_file_when_the_block_fails(tmp_path):
    path = write_text(tmp_path / "a" / "f.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(path) as tmp:
        tmp.write_text("half")
        raise RuntimeError("stop")
    assert path.read_text() == "old" and os.listdir(path.parent) == ["f.txt"]


def test_a_folder_is_made_whole_or_not_at_all(tmp_path):
    from eci_sem.collection import atomic_folder
    with atomic_folder(tmp_path / "deep/new") as part: (part / "a").write_text("1")
    assert (tmp_path / "deep/new/a").read_text() == "1" and (tmp_path / "deep/new").stat().st_mode & 0o777 == (tmp_path / "deep").stat().st_mode & 0o777
    with pytest.raises(KeyError), atomic_folder(tmp_path / "broken") as part: (part / "a").write_text("1"); raise KeyError
    with pytest.raises(InputError, match="no space left on the disk while making full: nothing was kept"), atomic_folder(tmp_path / "full"): raise OSError(28, "No space left on device")
    # another process was faster: its folder stays
    with atomic_folder(tmp_path / "both") as part:
        (part / "a").write_text("mine")
        (tmp_path / "both").mkdir(); (tmp_path / "both/a").write_text("theirs")
    assert (tmp_path / "both/a").read_text() == "theirs" and sorted(p.name for p in tmp_path.iterdir()) == ["both", "deep"] and len(list((tmp_path / "deep").iterdir())) == 1


def test_a_full_disk_is_told_and_nothing_is_left(tmp_path):
    with pytest.raises(InputError, match="no space left on the disk while writing f.txt: nothing was written"), atomic_path(tmp_path / "f.txt"):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_quota_and_a_limit_of_file_sizes_are_no_space_too(tmp_path, number):
    from eci_sem.collection import atomic_folder
    for make in (atomic_path, atomic_folder):
        with pytest.raises(InputError, match=rf"^no space left on the disk while (writing|making) x: nothing was (written|kept) \({os.strerror(number)}\); free some space"), make(tmp_path / "x"): raise OSError(number, os.strerror(number))
    assert os.listdir(tmp_path) == []


def test_written_files_are_readable_by_others(tmp_path):
    plain = tmp_path / "plain"; plain.write_text("x")
    assert write_text(tmp_path / "f.txt", "x").stat().st_mode == plain.stat().st_mode


def test_sha256_counts_the_boundaries():
    assert sha256_text("ab", "c") != sha256_text("a", "bc") != sha256_text("abc")
    assert sha256_text("a") == hashlib.sha256((1).to_bytes(8, "little") + b"a").hexdigest()


@given(ids=st.lists(st.text(max_size=4), max_size=20), seed=st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_seeded_order_is_a_permutation_that_ignores_the_input_order(ids, seed):
    order = seeded_order(ids, seed)
    assert sorted(order) == sorted(set(ids)) and order == seeded_order(reversed(ids), seed)


def test_seeded_order_depends_on_seed_and_purpose():
    ids = [str(i) for i in range(50)]
    assert len({tuple(seeded_order(ids, s, p)) for s in (0, 1) for p in ("", "a")}) == 4


@given(st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_normalise_ignores_white_space_and_ascii_case(text):
    assert normalise(f"  {text}\n") == normalise(text) == " ".join(normalise(text).split())
    ascii_text = text.encode("ascii", "ignore").decode()
    assert normalise(ascii_text.upper()) == normalise(ascii_text.lower())


# JSONL

@pytest.mark.parametrize("text, message", [
    ('{"a": "x"}\n{"a" 2}\n', r"f.jsonl:2: not valid JSON \(Expecting ':' delimiter, character 6\); expected one JSON object a line"),
    ('\n\n[1]\n', r"f.jsonl:3: found a JSON list, expected an object"),
    ('{"b": "x"}\n', r"f.jsonl:1: key 'a' is missing; found 'b'"),
    ('{"a": "x"}\n{"a": 3}\n', r"f.jsonl:2: 'a' is int, expected a string"),
    ('\n \n', r"f.jsonl: holds no rows"),
    ('', r"f.jsonl: the file is empty"),
    ('{"a": "x\ty"}\n', r"f.jsonl:1: not valid JSON \(Invalid control character, character 9\)"),
    ('[' * 100_000, r"f.jsonl:1: not valid JSON"),
])
def test_jsonl_errors_name_the_line(tmp_path, text, message):
    (tmp_path / "f.jsonl").write_text(text)
    with pytest.raises(InputError, match=message): list(read_jsonl(tmp_path / "f.jsonl", ["a"]))


def test_jsonl_missing_folder_gzip_and_encoding(tmp_path):
    with pytest.raises(InputError, match="no such file"): list(read_jsonl(tmp_path / "f.jsonl"))
    with pytest.raises(InputError, match="is a folder, expected a file"): list(read_jsonl(tmp_path))
    (tmp_path / "f.jsonl.gz").write_bytes(b"plain text, no gzip")
    with pytest.raises(InputError, match="damaged gzip data"): list(read_jsonl(tmp_path / "f.jsonl.gz"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"a": "x"}\n' * 500)[:30])
    with pytest.raises(InputError, match="damaged gzip data"): list(read_jsonl(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "latin.jsonl").write_bytes('{"a": "é"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8 text"): list(read_jsonl(tmp_path / "latin.jsonl"))


def test_jsonl_line_numbers_count_blank_lines(tmp_path):
    (tmp_path / "f.jsonl").write_text('\n{"a": "x"}\n\n{"a": "y"}\n')
    assert [n for n, _ in read_jsonl(tmp_path / "f.jsonl")] == [2, 4]


# relevance

TINY = Collection("tiny",
    corpus={"a": "Cats purr.", "b": "Dogs bark.", "b2": "dogs  BARK.", "c": "Fish swim."},
    queries={"1": "what do dogs do", "2": "What do  dogs do", "3": "what do fish do", "4": "unjudged"},
    qrels={"train": {"1": {"b": 1}}, "test": {"2": {"a": 0, "b": 2}, "3": {"c": 1}}})


def test_relevance_spreads_over_splits_equal_queries_and_equal_passages():
    assert TINY.relevant("1") == TINY.relevant("2") == {"b", "b2"}
    assert TINY.relevant("3") == {"c"} and TINY.relevant("4") == frozenset()
    with pytest.raises(InputError, match=r"query '9' is not in collection 'tiny' \(4 queries\)"): TINY.relevant("9")


def test_grade_zero_is_not_relevant(): assert "a" not in TINY.relevant("2")


def test_pairs_know_all_relevant_passages_and_prefer_high_grades():
    (two, three) = TINY.pairs("test")
    assert (two.query_id, two.positive_id, two.positive, two.relevant) == ("2", "b", "Dogs bark.", {"b", "b2"})
    graded = Collection("g", {"x": "x", "y": "y", "z": "z"}, {"q": "q"}, {"test": {"q": {"x": 1, "z": 3, "y": 3}}})
    assert [p.positive_id for p in graded.pairs("test", max_positives=None)] == ["y", "z", "x"]
    assert [p.positive_id for p in graded.pairs("test")] == ["y"]
    assert all(p.relevant == {"x", "y", "z"} for p in graded.pairs("test", max_positives=None))


def test_pairs_limit_is_seeded_and_nested():
    many = Collection("m", {"d": "text"}, {str(i): f"query {i}" for i in range(30)}, {"test": {str(i): {"d": 1} for i in range(30)}})
    picked = {n: {p.query_id for p in many.pairs("test", limit=n, seed=3)} for n in (5, 10)}
    assert len(picked[5]) == 5 and picked[5] < picked[10]
    assert picked[10] != {p.query_id for p in many.pairs("test", limit=10, seed=4)}
    with pytest.raises(InputError, match="unknown split of collection 'tiny' 'tset'. Did you mean 'test'"): TINY.pairs("tset")


def test_sample_keeps_every_relevant_passage_and_counts_what_it_left():
    big = Collection("big", {**TINY.corpus, **{f"x{i}": f"other {i}" for i in range(20)}}, TINY.queries, TINY.qrels)
    small = big.sample(8, "test", seed=1)
    assert len(small.corpus) == 8 and {"a", "b", "b2", "c"} <= set(small.corpus) and set(small.queries) == {"2", "3"}
    assert small.dropped == {"documents left out by sampling": 16, "queries of other splits": 2}
    assert small.relevant("2") == big.relevant("2")
    assert small.content_hash == big.sample(8, "test", seed=1).content_hash != big.sample(8, "test", seed=2).content_hash
    assert len(big.sample(2, "test").corpus) == 4 # the relevant ones come on top
    with pytest.raises(InputError, match="unknown split"): big.sample(8, "dev")
    for seed in range(3):
        one, pairs = big.sample(3, "test", seed=seed, limit=1), big.pairs("test", limit=1, seed=seed)
        assert one.pairs("test", limit=1, seed=seed) == pairs and list(one.queries) == [pairs[0].query_id] and len(one.corpus) == 3 and big.relevant(pairs[0].query_id) <= set(one.corpus)
        assert one.dropped == {"documents left out by sampling": 21, "queries of other splits": 2, "queries left out by sampling": 1} and one.origin["sample"]["limit"] == 1
    for all_of_them in (2, 100):
        same = big.sample(8, "test", seed=1, limit=all_of_them)
        assert (same.content_hash, same.origin, same.dropped) == (small.content_hash, small.origin, small.dropped)


def test_content_hash_sees_content_alone():
    def make(name="tiny", **changes): return Collection(name, **{**dict(corpus=TINY.corpus, queries=TINY.queries, qrels=TINY.qrels), **changes})
    turned = {k: dict(reversed(list(v.items()))) for k, v in dict(corpus=TINY.corpus, queries=TINY.queries).items()}
    assert make("other", **turned).content_hash == TINY.content_hash
    changed = [dict(corpus={**TINY.corpus, "a": "Cats purr!"}), dict(corpus={**TINY.corpus, "e": ""}), dict(queries={**TINY.queries, "4": "x"}),
        dict(qrels={**TINY.qrels, "train": {"1": {"b": 2}}}), dict(qrels={"dev": TINY.qrels["train"], "test": TINY.qrels["test"]})]
    assert len({make(**ch).content_hash for ch in changed} | {TINY.content_hash}) == len(changed) + 1


@pytest.mark.parametrize("changes, message", [
    (dict(corpus={}), "collection 't' has no corpus: at least one entry is needed"),
    (dict(queries={}), "has no queries"),
    (dict(corpus={1: "x"}), r"corpus id 1 is int, expected a string; convert ids with str\(\)"),
    (dict(qrels={"test": {"9": {"a": 1}}}), "split 'test': judged query '9' is not among the queries"),
    (dict(qrels={"test": {"1": {"z": 1}}}), "split 'test': judged document 'z' is not in the corpus"),
])
def test_collections_are_checked_when_made(changes, message):
    with pytest.raises(InputError, match=message): Collection("t", **{**dict(corpus={"a": "x"}, queries={"1": "q"}, qrels={"test": {"1": {"a": 1}}}), **changes})


def test_summary_counts_judgments_and_drops(tmp_path):
    s = TINY.summary
    assert s.judgments == {"train": {1: 1}, "test": {0: 1, 2: 1, 1: 1}} and s.judged == {"train": 1, "test": 2}
    assert s.frame().loc["test"].to_dict() == {"queries": 2, "grade 0": 1, "grade 1": 1, "grade 2": 1}
    assert "4 documents, 4 queries" in repr(s) and "dropped: nothing" in repr(s) and "<table" in s._repr_html_()


# BEIR folders

def test_beir_plain_and_gzipped_are_the_same(tmp_path):
    (tmp_path / "a").mkdir(); (tmp_path / "b").mkdir()
    plain, zipped = load_beir(folder(tmp_path / "a")), load_beir(folder(tmp_path / "b", gz=tuple(GOOD)))
    assert plain.content_hash == zipped.content_hash and plain.name == "a" and zipped.splits == ["test"]
    assert plain.corpus == {"d1": "Cats Cats purr.", "d2": "Dogs bark."} and plain.qrels == {"test": {"q1": {"d1": 1}, "q2": {"d2": 2}}}
    assert load_beir(tmp_path / "a", use_title=False, name="n").corpus["d1"] == "Cats purr."


def test_beir_counts_what_it_drops(tmp_path):
    found = load_beir(folder(tmp_path, corpus_jsonl=GOOD["corpus.jsonl"] + '{"_id": "d3", "text": "  "}\n', qrels__test_tsv=GOOD["qrels/test.tsv"] + "q1\td3\t1\nq9\td1\t1\nq1\td9\t1\n"))
    assert found.dropped == {"documents with no text": 1, "judgments of a document that is unknown or empty": 2, "judgments of a query that is unknown or empty": 1}
    assert "d3" not in found.corpus and "1 documents with no text" in repr(found.summary)


def test_beir_number_ids_become_strings(tmp_path):
    found = load_beir(folder(tmp_path, corpus_jsonl='{"_id": 7, "text": "x"}\n', qrels__test_tsv="q1\t7\t1\n"))
    assert list(found.corpus) == ["7"] and found.qrels["test"] == {"q1": {"7": 1}}


@pytest.mark.parametrize("changes, message", [
    (dict(corpus_jsonl='{"_id": "d1", "text": "x"}\n{"_id": "d1", "text": "y"}\n'), r"corpus.jsonl:2: id 'd1' occurs a second time"),
    (dict(corpus_jsonl='{"text": "x"}\n'), r"corpus.jsonl:1: '_id' is missing, expected a string"),
    (dict(corpus_jsonl='{"_id": true, "text": "x"}\n'), r"corpus.jsonl:1: '_id' is bool, expected a string"),
    (dict(corpus_jsonl='{"_id": "d1", "text": 3}\n'), r"corpus.jsonl:1: 'text' is int, expected a string"),
    (dict(corpus_jsonl='{"_id": "d1", "text": "x", "title": 3}\n'), r"corpus.jsonl:1: 'title' is int, expected a string"),
    (dict(queries_jsonl='{"_id": "q1"}\n'), r"queries.jsonl:1: 'text' is missing, expected a string"),
    (dict(queries_jsonl=None), r"neither queries.jsonl nor queries.jsonl.gz is there"),
    (dict(qrels__test_tsv=None), r"qrels: no .tsv file with judgments"),
    (dict(qrels__test_tsv="query-id\tcorpus-id\tscore\nq1\td1\n"), r"test.tsv:2: found 2 tab-separated fields, expected 3"),
    (dict(qrels__test_tsv="q1\td1\tone\n"), r"test.tsv:1: score 'one' is not a whole number"),
    (dict(qrels__test_tsv=f"q1\td1\t{'x' * 140_000}\n"), r"test.tsv:1: score 'x{20}' is not a whole number"),
    (dict(qrels__test_tsv="q1\td1\t1\nq2\td2\t1\nq1\td1\t1\nq1\td1\t0\n"), r"test.tsv:4: document 'd1' of query 'q1' has the score 0 here and 1 in an earlier line; keep one of the two"),
])
def test_beir_errors_name_file_and_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=message): load_beir(folder(tmp_path, **changes))


def test_judgments_with_a_byte_order_mark_or_damage(tmp_path):
    whole = folder(tmp_path)
    judged, path, good = load_beir(whole).qrels, tmp_path / "qrels/test.tsv", GOOD["qrels/test.tsv"].encode()
    for data in (b"\xef\xbb\xbf" + good, b"\xef\xbb\xbf" + good.split(b"\n", 1)[1], good.replace(b"\n", b"\r\n"), good + b"\nq1\td1\t1", gzip.compress(good)):
        path.write_bytes(data)
        assert load_beir(whole).qrels == judged
    path.write_bytes(good + b"caf\xe9\td1\t1\n")
    with pytest.raises(InputError, match=r"test.tsv:4: not UTF-8 text"): load_beir(whole)
    path.write_bytes(good + b"q1\t" + b"x" * 200_000 + b"\t1\n") # longer than a field of a CSV may be
    assert load_beir(whole).dropped == {"judgments of a document that is unknown or empty": 1}
    path.unlink(); path = tmp_path / "qrels/test.tsv.gz"
    for data in (gzip.compress(os.urandom(5000).hex().encode())[:-200], gzip.compress(good)[:-12], b"no gzip at all"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"test.tsv.gz: damaged gzip data \(.*\); fetch the file again"): load_beir(whole)


def test_beir_folder_must_exist(tmp_path):
    with pytest.raises(InputError, match="no such folder; expected one with corpus.jsonl"): load_beir(tmp_path / "nowhere")


def test_download_refuses_unknown_names_and_uses_what_is_there(tmp_path):
    with pytest.raises(InputError, match="unknown BEIR collection 'scifcat'. Did you mean 'scifact'"): c.download_beir("scifcat", tmp_path)
    (tmp_path / "scifact").mkdir()
    folder(tmp_path / "scifact")
    assert c.download_beir("scifact", tmp_path) == tmp_path / "scifact"


@pytest.fixture
def beir_server(monkeypatch):
    "Archives over HTTP on loopback, without a pause between tries."
    monkeypatch.setenv("ECI_SEM_NET_PAUSE", "0"); monkeypatch.setenv("ECI_SEM_NET_TIMEOUT", "0.3"); monkeypatch.setenv("ECI_SEM_NET_ATTEMPTS", "2")
    with HubServer() as server: yield server


def zipped(server, tmp, name, parts=("",)):
    source = tmp / "source"
    for part in parts: (source / name / part).mkdir(parents=True, exist_ok=True); folder(source / name / part)
    server.files[f"/{name}.zip"] = open(shutil.make_archive(str(tmp / "made"), "zip", source), "rb").read()
    shutil.rmtree(source)
    return server.url + "/{name}.zip"


def test_download_without_a_network_says_what_to_do_and_leaves_nothing_behind(tmp_path, beir_server):
    with pytest.raises(InputError, match=r"scifact.zip: not on .* \(status 404\).*Without a network, put the folder of 'scifact' somewhere and give its path, or use the embedded collection 'docstrings'"): c.download_beir("scifact", tmp_path, beir_server.url + "/{name}.zip")
    beir_server.__exit__()
    with pytest.raises(InputError, match=r"scifact.zip from .*: no connection to .* 2 times in a row. Run again later; without a network, put the folder of 'scifact'"): c.download_beir("scifact", tmp_path, beir_server.url + "/{name}.zip")
    assert os.listdir(tmp_path) == []


def test_download_puts_a_whole_collection_in_its_place(tmp_path, beir_server):
    url, cache = zipped(beir_server, tmp_path, "scifact"), tmp_path / "cache"
    for _ in range(2): assert load_beir(c.download_beir("scifact", cache, url)).name == "scifact" and os.listdir(cache) == ["scifact"]
    assert len(beir_server.log) == 1
    beir_server.files["/nfcorpus.zip"] = beir_server.files["/scifact.zip"]
    with pytest.raises(InputError, match="nfcorpus.zip: holds no folder 'nfcorpus'"): c.download_beir("nfcorpus", cache, url)
    (tmp_path / "empty/nq").mkdir(parents=True); (tmp_path / "empty/nq/queries.jsonl").write_text("{}")
    beir_server.files["/nq.zip"] = open(shutil.make_archive(str(tmp_path / "made"), "zip", tmp_path / "empty"), "rb").read()
    with pytest.raises(InputError, match="the archive holds no nq/corpus.jsonl"): c.download_beir("nq", cache, url)
    assert os.listdir(cache) == ["scifact"]


def test_download_goes_on_where_it_stopped_and_checks_the_archive(tmp_path, beir_server, monkeypatch):
    url, cache = zipped(beir_server, tmp_path, "scifact"), tmp_path / "cache"
    whole = beir_server.files["/scifact.zip"]
    beir_server.fail("/scifact.zip", Fault(after=300), Fault(status=503), Fault(status=503))
    with pytest.raises(InputError, match="answers 503.*the 300 bytes that came are kept"): c.download_beir("scifact", cache, url)
    beir_server.log.clear()
    load_beir(c.download_beir("scifact", cache, url, md5=hashlib.md5(whole).hexdigest()))
    assert [(s.status, s.range, s.sent) for s in beir_server.log] == [(206, "bytes=300-", len(whole) - 300)]
    # what is fetched from BEIR itself is held against BEIR's checksum
    monkeypatch.setattr(c, "BEIR_URL", url)
    with pytest.raises(InputError, match=f"its md5 is {hashlib.md5(whole).hexdigest()[:16]}..., expected {c.BEIR_MD5['scifact'][:16]}"): c.download_beir("scifact", tmp_path / "other", url)
    assert os.listdir(tmp_path / "other") == [] and set(c.BEIR_MD5) == set(c.BEIR_NAMES)


def test_an_archive_that_wants_out_of_its_folder_is_refused(tmp_path, beir_server):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as z: z.writestr("scifact/corpus.jsonl", "{}"); z.writestr("scifact/../../evil", "x")
    beir_server.files["/scifact.zip"] = (tmp_path / "x.zip").read_bytes()
    with pytest.raises(InputError, match="holds 'scifact/../../evil', which leaves its folder"): c.download_beir("scifact", tmp_path / "a/cache", beir_server.url + "/{name}.zip")
    assert os.listdir(tmp_path / "a/cache") == [] and not list(tmp_path.rglob("evil"))


def test_a_collection_of_collections_is_taken_by_part(tmp_path, beir_server, monkeypatch):
    url = zipped(beir_server, tmp_path, "cqadupstack", ("android", "unix"))
    whole = c.download_beir("cqadupstack", tmp_path / "beir", url)
    assert c.download_beir("cqadupstack", tmp_path / "beir", url) == whole and len(beir_server.log) == 1
    with pytest.raises(InputError, match=r"holds 2 collections \(android, unix\); give the folder of one of them"): load_beir(whole)
    monkeypatch.setenv("ECI_SEM_CACHE", str(tmp_path))
    assert c.named_collection("cqadupstack/android").name == "android"
    with pytest.raises(InputError, match="no such folder"): c.named_collection("cqadupstack/windows")
    with pytest.raises(InputError, match="scifact/x: no such folder"): c.named_collection("scifact/x")


# docstrings

def test_split_docstring_takes_the_summary_and_drops_signatures_and_rulers():
    doc = "max(a, b)\nmax(*args) -> value\n\nThe largest\nof all.\n\n    Parameters\n    ----------\n    a : int\n        One.\n"
    assert split_docstring(doc) == ("The largest of all.", "Parameters a : int One.")
    assert split_docstring("Only a summary.") == ("Only a summary.", "") and split_docstring("") == ("", "")
    assert split_docstring("S.\n\n" + "w " * 300, words=5) == ("S.", "w w w w w")


def test_docstrings_are_split_without_overlap(docstrings):
    sizes = {s: len(q) for s, q in docstrings.qrels.items()}
    assert sizes["score"] == 600 and sizes["train"] == 1000 and sizes["test"] > 1500
    assert sum(sizes.values()) == len(docstrings.queries) == len(set().union(*docstrings.qrels.values()))


def test_docstrings_keep_their_own_rules(docstrings):
    for text in docstrings.corpus.values(): assert 40 <= len(text.split()) <= 120 and " at 0x" not in text
    for text in docstrings.queries.values(): assert 3 <= len(text.split()) <= 25 and not text.endswith(":")
    assert len({normalise(t) for t in docstrings.corpus.values()}) == len(docstrings.corpus)
    assert len({normalise(t) for t in docstrings.queries.values()}) == len(docstrings.queries)
    judged = [set(docs) for qs in docstrings.qrels.values() for docs in qs.values()]
    assert all(judged) and set().union(*judged) == set(docstrings.corpus)
    assert sum(len(d) > 1 for d in judged) > 0 # one summary over several passages: all of them are relevant


def test_a_library_that_is_not_installed_is_named():
    from eci_sem.collection import load_docstrings
    with pytest.raises(InputError, match=r"made from sklearnx, and the module 'sklearnx' is not installed: pip install 'eci_sem\[offline\]'"): load_docstrings({"sklearnx": ["sklearnx.base"]})


def test_docstrings_do_not_depend_on_the_process():
    # another hash seed, and no test runner: pytest puts hooks of its own into sys
    modules = {"numpy": ["numpy.fft", "numpy.linalg"], "stdlib": ["sys", "logging", "warnings", "threading", "json"]}
    code = f"from eci_sem.collection import load_docstrings; print(load_docstrings({modules!r}).content_hash)"
    out = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "12345"}, capture_output=True, text=True, check=True)
    assert out.stdout.split()[-1] == load_docstrings(modules).content_hash


def test_docstrings_of_chosen_modules():
    small = load_docstrings({"stdlib": ["json", "shutil", "textwrap"]}, {"score": 5})
    assert small.name == "docstrings" and len(small.qrels["score"]) == 5 and all(i.split(".")[0] in {"json", "shutil", "textwrap"} for i in small.corpus)
    assert small.origin["versions"] == {} and small.origin["kind"] == "docstrings"


# the public collections: counts as their README gives them

COUNTS = { # name: documents, queries, split -> (judgments, queries with a judgment)
    "scifact": (5183, 1109, {"train": (919, 809), "test": (339, 300)}),
    "cranfield": (1398, 225, {"test": (1837, 225)}), # two of the 1,400 are empty in the source
    "cacm": (3204, 64, {"test": (796, 52)}),
    "msmarco-dl19-5k": (5000, 43, {"test": (4102, 43)}),
    "nfcorpus-processed": (3395, 3237, {"train": (110075, 2563), "dev": (11385, 324), "test": (12334, 323)}),
    "xquad-en": (240, 1190, {"test": (1190, 1190)}),
}


@pytest.fixture(scope="module")
def public(shared_data):
    loaded = {}
    def load(name):
        if not (shared_data / name).is_dir(): pytest.skip(f"{name} is not in the folder of public test collections")
        if name not in loaded: loaded[name] = load_beir(shared_data / name)
        return loaded[name]
    return load


@pytest.mark.parametrize("name", COUNTS)
def test_public_collections_have_the_counts_of_their_readme(public, name):
    documents, queries, splits = COUNTS[name]
    found = public(name)
    assert (len(found.corpus), len(found.queries)) == (documents, queries)
    lost = found.dropped.get("judgments of a document that is unknown or empty", 0)
    assert {s: (sum(map(len, q.values())) + lost, len(q)) for s, q in found.qrels.items()} == splits


def test_cranfield_drops_its_two_empty_documents(public):
    assert public("cranfield").dropped == {"documents with no text": 2, "judgments of a document that is unknown or empty": 1}
    assert not {"471", "995"} & set(public("cranfield").corpus) and set(public("cranfield").summary.judgments["test"]) == {1, 2, 3, 4}


def test_scifact_claims_of_the_same_text_share_their_judgments(public):
    found = public("scifact")
    same = [("870", "871"), ("1291", "1292")]
    for a, b in same:
        assert normalise(found.queries[a]) == normalise(found.queries[b]) and found.relevant(a) == found.relevant(b)
    everywhere = {d for s in found.qrels.values() for q in same[0] for d in s.get(q, ())}
    assert everywhere <= found.relevant("870")


def test_dl19_passages_of_the_same_text_are_relevant_together(public):
    found = public("msmarco-dl19-5k")
    assert found.corpus["3516677"] == found.corpus["6465910"]
    for q in found.queries: assert len({"3516677", "6465910"} & found.relevant(q)) in (0, 2)


def test_no_pair_misses_a_relevant_passage(public):
    found = public("xquad-en")
    for pair in found.pairs("test", limit=200): assert pair.positive_id in pair.relevant and pair.positive == found.corpus[pair.positive_id]


def test_an_address_is_told_from_a_path_and_shown_without_key_and_options():
    from pathlib import Path
    from eci_sem.collection import existing, is_address, shown_address
    for given, shown in (("s3://KEY:SE/CRET@bucket/x.jsonl?region=r", "s3://bucket/x.jsonl"), ("s3://KEY:S@CRET@bucket/x", "s3://bucket/x"), ("s3://bucket/v@1/x", "s3://bucket/v@1/x"), ("file:///d/v@1/a:b@c", "file:///d/v@1/a:b@c"), ("hdfs://host:9000/v@1/x", "hdfs://host:9000/v@1/x"),
            ("s3://admin:12345678@bucket/x", "s3://bucket/x"), ("https://ghp_token123@host/x.jsonl", "https://host/x.jsonl"), ("s3://k:s?x@bucket/y?region=r", "s3://bucket/y"), ("s3://k:s/e?x@bucket/y", "s3://bucket/y"), ("s3://k@x:S/e@bucket/y", "s3://bucket/y"),
            ("https://u:p@host:8080/v@1/x?to=a@b", "https://host:8080/v@1/x"), ("s3://bucket/x?mail=a@b", "s3://bucket/x"), ("s3://k:s@bucket", "s3://bucket"), ("s3://k:12/3@bucket/y", "s3://bucket/y")):
        assert is_address(given) and shown_address(given) == shown
    assert is_address(Path("s3://KEY:SECRET@bucket/x")) and shown_address(Path("s3://KEY:SECRET@bucket/x")) == "s3://bucket/x"
    for path in ("a/b", "C:/x", "c://x", "s3:x", "", "s3:/x", Path("C:/x"), Path("a:b/c"), None, 3, b"s3://x"): assert not is_address(path)
    with pytest.raises(InputError, match=r"^s3://bucket/x: is an address, where a file of this machine is needed: copy it here"): existing("s3://KEY:SECRET@bucket/x")
    with pytest.raises(InputError, match="nowhere: no such file"): existing("nowhere")
