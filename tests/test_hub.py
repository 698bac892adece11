"""Models and data sets from a hub on loopback: pinned, verified, resumed, and never a line of a repository's code."""
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from huggingface_hub import constants, snapshot_download

from eci_sem import hub
from eci_sem.collection import InputError
from eci_sem.hub import download_msmarco, hub_file, hub_model, list_files, load_msmarco, missing_weights, refuse_code

from hub_server import Fault, HubServer, git_sha

NAME = "lab/encoder"
FILES = {"config.json": b'{"model_type": "bert"}', "vocab.txt": b"a\nb\n", "model.safetensors": bytes(range(256)) * 200, "pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit", "onnx/config.json": b"{}", "1_Pooling/config.json": b'{"x": 1}', "README.md": b"#"}
WANTED = ["1_Pooling/config.json", "config.json", "model.safetensors", "vocab.txt"]


@pytest.fixture
def server(tmp_path, monkeypatch):
    "A hub on loopback, and caches of its own; the library's constants are what the environment would make of them."
    with HubServer() as s:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        for k, v in dict(HF_ENDPOINT=s.url, ECI_SEM_CACHE=tmp_path / "own", HF_TOKEN="hf_secret", ECI_SEM_NET_TIMEOUT="0.4", ECI_SEM_NET_ATTEMPTS="3", ECI_SEM_NET_PAUSE="0.01", ECI_SEM_NET_LONGEST_PAUSE="0.5", ECI_SEM_NET_TOTAL="20").items(): monkeypatch.setenv(k, str(v))
        yield s


def names(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


def gets(server, part="resolve"): return [(s.path.rsplit("/", 1)[1], s.status, s.range) for s in server.requests(part)]


# what is fetched

def test_a_model_is_fetched_by_commit_and_only_what_an_encoder_needs(server, tmp_path):
    commit = server.add_repo(NAME, FILES, refs=("main", "v1"))
    folder, found = hub_model(NAME, "v1", progress=False)
    assert found == commit and names(folder) == WANTED and (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    # every file is asked for at the commit, not at the tag that could move
    assert {s.path for s in server.requests("resolve")} == {f"/{NAME}/resolve/{commit}/{n}" for n in WANTED}
    # the layout is the library's: it finds the snapshot, by tag and by commit
    monkey = snapshot_download(NAME, revision="v1", cache_dir=tmp_path / "hf", local_files_only=True)
    assert Path(monkey) == folder == Path(snapshot_download(NAME, revision=commit, cache_dir=tmp_path / "hf", local_files_only=True))
    assert os.readlink(folder / "1_Pooling/config.json") == f"../../../blobs/{git_sha(FILES['1_Pooling/config.json'])}"
    assert os.readlink(folder / "model.safetensors") == f"../../blobs/{hashlib.sha256(FILES['model.safetensors']).hexdigest()}"
    assert server.log[0].headers["authorization"] == "Bearer hf_secret" == server.requests("resolve")[0].headers["authorization"]


def test_what_is_there_is_not_fetched_again_and_a_pinned_commit_asks_nothing(server):
    commit = server.add_repo(NAME, FILES)
    folder, _ = hub_model(NAME, progress=False)
    server.log.clear()
    assert hub_model(NAME) == (folder, commit) and [s.path for s in server.log] == [f"/api/models/{NAME}"]
    server.log.clear()
    assert hub_model(NAME, commit) == (folder, commit) and server.log == []
    # a new commit fetches what changed
    newer = server.add_repo(NAME, {**FILES, "config.json": b'{"model_type": "bert", "x": 1}'})
    found, at = hub_model(NAME, progress=False)
    assert at == newer and found != folder and gets(server) == [("config.json", 200, None)] and names(found) == names(folder) == WANTED
    assert hub_model(NAME, commit)[0] == folder


def test_a_damaged_or_half_cache_is_repaired(server, tmp_path):
    commit = server.add_repo(NAME, FILES)
    folder, _ = hub_model(NAME, progress=False)
    blob = (folder / "model.safetensors").resolve()
    blob.write_bytes(FILES["model.safetensors"][:-9]) # shorter: noticed by its size
    server.log.clear()
    assert hub_model(NAME, commit, progress=False)[0] == folder and gets(server) == [("model.safetensors", 200, None)] and blob.read_bytes() == FILES["model.safetensors"]
    # as another tool may have left it: no note of ours, a blob of the right length and wrong bytes, a file missing
    shutil.rmtree(tmp_path / "own")
    blob.write_bytes(FILES["model.safetensors"][::-1]); (folder / "vocab.txt").unlink()
    server.log.clear()
    assert hub_model(NAME, commit, progress=False)[0] == folder and gets(server) == [("model.safetensors", 200, None)]
    assert blob.read_bytes() == FILES["model.safetensors"] and names(folder) == WANTED


def test_one_file_of_a_model_is_not_taken_for_the_model(server):
    commit = server.add_repo(NAME, FILES)
    place, _ = hub_file(NAME, "model.safetensors", commit, kind="model", progress=False)
    assert place.read_bytes() == FILES["model.safetensors"] and gets(server) == [("model.safetensors", 200, None)]
    assert names(hub_model(NAME, commit, progress=False)[0]) == WANTED and len(gets(server)) == 4
    server.log.clear()
    assert hub_model(NAME, commit) and hub_file(NAME, "vocab.txt", commit, kind="model") and server.log == []
    # fetching one more file does not make it less of a model
    hub_file(NAME, "README.md", commit, kind="model", progress=False)
    server.log.clear()
    assert hub_model(NAME, commit) and server.log == []


def test_redirects_to_a_new_name_and_to_a_store_elsewhere(server, tmp_path):
    # the hub sends an old name on to the new one, with the token; and a large file's bytes come from another host, without it
    commit = server.add_repo(NAME, FILES)
    server.fail("/api/models/encoder", Fault(status=307, headers={"Location": f"/api/models/{NAME}"}))
    for n in WANTED: server.fail(f"/encoder/resolve/{commit}/{n}", Fault(status=307, headers={"Location": f"/{NAME}/resolve/{commit}/{n}"}))
    with HubServer() as store:
        store.files["/bytes"] = FILES["model.safetensors"]
        store.fail("/bytes", Fault(after=30_000, how="reset"))
        server.fail(f"/{NAME}/resolve/{commit}/model.safetensors", *[Fault(status=302, headers={"Location": f"{store.url.replace('127.0.0.1', 'localhost')}/bytes"})] * 2)
        server.fail(f"/encoder/resolve/{commit}/model.safetensors", Fault(status=307, headers={"Location": f"/{NAME}/resolve/{commit}/model.safetensors"}))
        folder, found = hub_model("encoder", progress=False)
        assert [(s.status, s.range, s.sent) for s in store.log] == [(200, None, 30_000), (206, "bytes=30000-", 21_200)]
        assert not [s for s in store.log if "Authorization" in s.headers or "authorization" in s.headers]
    assert found == commit and names(folder) == WANTED
    assert {s.headers.get("authorization") for s in server.requests(f"/{NAME}/resolve")} == {"Bearer hf_secret"}


def test_weights_are_linked_last(server, monkeypatch):
    # a process that dies in between leaves a folder that doesn't pass for a model
    server.add_repo(NAME, FILES)
    seen, link = [], hub._link
    monkeypatch.setattr(hub, "_link", lambda blob, place: (seen.append(place.name), link(blob, place)))
    hub_model(NAME, progress=False)
    assert sorted(seen) == sorted(Path(n).name for n in WANTED) and seen[-1] == "model.safetensors"


def test_a_cache_that_can_only_be_read_does(server, tmp_path, monkeypatch):
    commit = server.add_repo(NAME, FILES)
    folder, _ = hub_model(NAME, progress=False)
    shutil.rmtree(tmp_path / "own")
    def refuse(*args, **kwargs): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(hub, "write_text", refuse); monkeypatch.setattr(hub.os, "replace", refuse)
    server.log.clear()
    assert hub_model(NAME, "main") == (folder, commit) == hub_model(NAME, commit) and gets(server) == []


# what goes wrong

@pytest.mark.parametrize("how", ["close", "reset", "stall"])
def test_a_broken_download_goes_on_in_the_next_call(server, tmp_path, how):
    commit = server.add_repo(NAME, FILES)
    path = f"/{NAME}/resolve/{commit}/model.safetensors"
    server.fail(path, Fault(after=20_000, how=how), *[Fault(after=0, how=how)] * 3)
    with pytest.raises(InputError, match=r"lab/encoder/model.safetensors from 127.0.0.1:\d+: the connection .* 3 times in a row. Run again later; the 20,000 bytes that came are kept, and it goes on from there; give the folder\."): hub_model(NAME, progress=False, instead="give the folder")
    # nothing half-written is to be found under the commit
    assert not (tmp_path / "hf/models--lab--encoder/snapshots").exists()
    server.log.clear()
    folder, _ = hub_model(NAME, progress=False)
    assert gets(server, "model.safetensors") == [("model.safetensors", 206, "bytes=20000-")] and server.requests("model.safetensors")[0].sent == 51_200 - 20_000
    # what came whole the first time is not fetched again
    assert [n for n, *_ in gets(server)] == ["model.safetensors", "config.json"] and (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not list((tmp_path / "hf").rglob("*.part*"))


def test_wrong_bytes_of_the_right_length_are_refused(server, tmp_path):
    commit = server.add_repo(NAME, FILES)
    for name, kind in (("vocab.txt", "git"), ("model.safetensors", "sha256")):
        server.fail(f"/{NAME}/resolve/{commit}/{name}", Fault(body=FILES[name][::-1]))
        with pytest.raises(InputError, match=rf"lab/encoder/{name} from .*: its {kind} is .*, expected .*: damaged on the way"): hub_model(NAME, progress=False)
        assert not (tmp_path / "hf/models--lab--encoder/snapshots").exists()
    assert names(hub_model(NAME, progress=False)[0]) == WANTED


def test_a_file_cut_short_on_the_server_is_refused(server):
    commit = server.add_repo(NAME, FILES)
    server.fail(f"/{NAME}/resolve/{commit}/model.safetensors", Fault(body=FILES["model.safetensors"][:1000]))
    with pytest.raises(InputError, match=r"lab/encoder/model.safetensors: .* has 1,000 bytes, expected 51,200: cut short on the server"): hub_model(NAME, progress=False)


def test_names_and_revisions_that_are_not_there(server):
    server.add_repo(NAME, FILES)
    for args, message in ((("lab/nobody",), r"no model 'lab/nobody' on the hub \(or it is private: set HF_TOKEN\); check the name. Give the folder\."), ((NAME, "v9"), r"the model 'lab/encoder' has no revision 'v9': give a branch, a tag or a commit"), ((NAME, "f" * 40), "has no revision 'ffff"), (("lab/a/b",), "is no name of a model on the hub; expected organisation/name")):
        server.log.clear()
        with pytest.raises(InputError, match=message): hub_model(*args, instead="give the folder")
        assert len(server.log) <= 1
    server.fail(f"/api/models/{NAME}", Fault(status=403, headers={"X-Error-Code": "GatedRepo"}))
    with pytest.raises(InputError, match="is gated: accept its terms on its page and set HF_TOKEN") as e: hub_model(NAME)
    assert "hf_secret" not in str(e.value)


def test_a_busy_hub_is_waited_for_within_bounds(server):
    commit = server.add_repo(NAME, FILES)
    server.fail(f"/api/models/{NAME}", Fault(status=429), Fault(status=429, headers={"Retry-After": "0.2"}))
    server.fail(f"/{NAME}/resolve/{commit}/vocab.txt", Fault(status=429, headers={"Retry-After": "0.1"}), Fault(status=500))
    start = time.monotonic()
    assert names(hub_model(NAME, progress=False)[0]) == WANTED and 0.3 < time.monotonic() - start < 5
    assert [s.status for s in server.requests("/api/")] == [429, 429, 200] and [s.status for s in server.requests("vocab.txt")] == [429, 500, 200]
    server.add_repo("lab/other", FILES)
    for faults, message in (([Fault(status=429)] * 3, r"the model 'lab/other' is not on this machine and the hub is busy \(it answers 429, 3 times in a row\). Run again later, or give the folder\."), ([Fault(status=429, headers={"Retry-After": "900"})], r"it answers 429, and the server asks to wait 900 s")):
        server.fail("/api/models/lab/other", *faults)
        start = time.monotonic()
        with pytest.raises(InputError, match=message): hub_model("lab/other", instead="give the folder")
        assert time.monotonic() - start < 2


def test_a_hub_that_stalls_breaks_off_or_is_no_hub(server):
    server.add_repo(NAME, FILES)
    for fault, message in ((Fault(after=10, how="stall"), r"can't be reached \(no whole answer \(ReadTimeout\), 3 times in a row\)"), (Fault(after=10), r"can't be reached \(no whole answer \(RemoteProtocolError\)"), (Fault(body=b"<html>Log in</html>"), r"does not answer as a hub does \(JSONDecodeError\); check HF_ENDPOINT and the proxy"), (Fault(body=b"[]"), "does not answer as a hub does"),
                           (Fault(body=json.dumps(dict(id=NAME, sha="main", siblings=[])).encode()), r"names no commit \('main'\)"), (Fault(body=json.dumps(dict(id=NAME, sha="a" * 40, siblings=[dict(rfilename="config.json", size=1)])).encode()), "gives no hash for 'config.json'"),
                           (Fault(body=json.dumps(dict(id=NAME, sha="a" * 40, siblings=[dict(rfilename="../../x.json", size=1, blobId="a" * 40)])).encode()), "holds '../../x.json', which leaves its folder")):
        server.fail(f"/api/models/{NAME}", *[fault] * 3)
        start = time.monotonic()
        with pytest.raises(InputError, match=message): hub_model(NAME)
        assert time.monotonic() - start < 4
        server.faults.clear()


JSON = st.recursive(st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "a", "a/b.json", "../x", "a" * 40, "b" * 64]), lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["rfilename", "size", "blobId", "lfs", "sha256", "pointerSize"]), x, max_size=4), max_leaves=6)


@given(field=st.sampled_from(["sha", "siblings", "lfs", "rfilename", "blobId", "size", "id", "tags", "whole"]), value=JSON)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_hub_answers_is_a_listing_or_one_clear_error(server, field, value):
    info = dict(id=NAME, sha="c" * 40, siblings=[dict(rfilename="config.json", size=2, blobId="a" * 40), dict(rfilename="m.safetensors", size=2, blobId="a" * 40, lfs=dict(sha256="b" * 64, size=2, pointerSize=1))])
    if field in ("lfs", "rfilename", "blobId", "size"): info["siblings"][1][field] = value
    elif field != "whole": info[field] = value
    server.fail(f"/api/models/{NAME}", Fault(body=json.dumps(value if field == "whole" else info).encode()))
    try: listing = list_files(NAME)
    except InputError as e: assert len(str(e)) < 500
    else: assert all(not f.name.startswith("/") and ".." not in f.name and re.fullmatch("(sha256:[0-9a-f]{64}|git:[0-9a-f]{40})", f.checksum) for f in listing.files)
    server.faults.clear()


def test_without_the_hub_the_cache_is_used_if_it_is_whole(server, tmp_path, monkeypatch):
    commit = server.add_repo(NAME, FILES)
    folder, _ = hub_model(NAME, progress=False)
    server.__exit__()
    with pytest.warns(UserWarning, match=rf"the hub can't be reached: lab/encoder is taken from the cache, at commit {commit[:12]}, the last one known of main"): assert hub_model(NAME) == (folder, commit)
    with pytest.raises(InputError, match=r"the model 'lab/encoder', revision 'v2', is not on this machine and the hub can't be reached \(no connection \(ConnectError\), 2 times in a row\)"): hub_model(NAME, "v2")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for revision in (None, "main", commit): assert hub_model(NAME, revision) == (folder, commit)
        shutil.rmtree(tmp_path / "own") # fetched by another tool: used as it is
        assert hub_model(NAME, commit) == (folder, commit)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"can't be reached \(HF_HUB_OFFLINE is set\). Unset it, or give the folder\."): hub_model(NAME, commit, instead="give the folder")


def test_weights_in_parts_must_all_be_there(server, monkeypatch):
    parts = {f"model-0000{i}-of-00002.safetensors": bytes([i]) * 20_000 for i in (1, 2)}
    commit = server.add_repo(NAME, {**FILES, **parts, "model.safetensors.index.json": json.dumps(dict(weight_map={f"w{n}": n for n in parts})).encode()})
    folder, _ = hub_model(NAME, progress=False)
    assert missing_weights(folder) == []
    (folder / list(parts)[1]).unlink()
    assert missing_weights(folder) == [list(parts)[1]]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="is not on this machine"): hub_model(NAME, commit)
    (folder / "model.safetensors.index.json").unlink(); (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match="model.safetensors.index.json: not an index of weight files"): missing_weights(folder)


def test_a_model_without_safetensors_is_refused_before_anything_is_fetched(server):
    commit = server.add_repo(NAME, {k: v for k, v in FILES.items() if k != "model.safetensors"})
    with pytest.raises(InputError, match=rf"lab/encoder at {commit[:12]}: no .safetensors file \(pytorch_model.bin found\). Pickled weights are never loaded: .*revision='refs/pr/NUMBER'"): hub_model(NAME)
    assert gets(server) == []
    pr = server.add_repo(NAME, FILES, refs=("refs/pr/3",))
    assert hub_model(NAME, "refs/pr/3", progress=False)[1] == pr


# no code

EVIL = "import pathlib\npathlib.Path(__file__).with_name('RAN').touch()\n"


def test_classes_from_elsewhere_are_refused(tmp_path):
    ok = [dict(type="sentence_transformers.models.Transformer", path=""), dict(type="sentence_transformers.sentence_transformer.modules.pooling.Pooling", path="1_Pooling")]
    (tmp_path / "modules.json").write_text(json.dumps(ok)); (tmp_path / "config.json").write_text('{"model_type": "bert", "tokenizer_class": "BertTokenizer", "auto_map": {"AutoModel": "evil.Model"}}')
    refuse_code(tmp_path)
    for bad in ("evil.Model", "os.system", "sentence_transformersx.Model", "sentence_transformers", "sentence_transformers.models.Transformer; import os", "", None, 3, "sentence_transformers..x", "lab/encoder--evil.Model"):
        (tmp_path / "modules.json").write_text(json.dumps([*ok, dict(type=bad, path="")]))
        with pytest.raises(InputError, match=r"modules.json: names the class .*, which is not part of sentence-transformers; loading it would run the code of that repository, which is never done. If you trust it, load it yourself"): refuse_code(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps(ok))
    for file, content in (("0_Router/router_config.json", dict(types={"a": "evil.Model"}, structure={})), ("0_Asym/config.json", dict(types={"a": "evil.Model"})), ("0_Words/wordembedding_config.json", dict(tokenizer_class="evil.Tokenizer"))):
        (tmp_path / file).parent.mkdir(); (tmp_path / file).write_text(json.dumps(content))
        with pytest.raises(InputError, match=f"{file}: names the class 'evil"): refuse_code(tmp_path)
        shutil.rmtree((tmp_path / file).parent)
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(InputError, match="modules.json: not JSON"): refuse_code(tmp_path)


SCRIPT = textwrap.dedent("""
    import json, os, sys, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    work, url = Path(sys.argv[1]), os.environ["HF_ENDPOINT"]
    import torch, numpy as np
    torch.set_num_threads(1)
    from transformers import BertConfig, BertModel, BertTokenizerFast
    from sentence_transformers import SentenceTransformer
    from eci_sem.collection import InputError
    from eci_sem.encoders import _from_folder, load_encoder
    sys.path.insert(0, sys.argv[2])
    from hub_server import HubServer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"sort the list of arrays by key".split()]
    torch.manual_seed(0)
    plain = work / "plain"
    BertModel(BertConfig(vocab_size=len(words), hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, max_position_embeddings=64)).save_pretrained(plain)
    BertTokenizerFast(vocab={w: i for i, w in enumerate(words)}).save_pretrained(plain)
    st = work / "st"
    _from_folder(plain, "cls").save_pretrained(str(st))
    evil = (work / "evil.txt").read_text()
    def variant(name, base, **configs):
        import shutil
        folder = work / name; shutil.copytree(base, folder)
        for file, change in configs.items():
            path = folder / f"{file}.json"; found = json.loads(path.read_text()); found = change(found); path.write_text(json.dumps(found))
        (folder / "modeling_evil.py").write_text(evil)
        return folder
    mapped = variant("mapped", plain, config=lambda c: {**c, "auto_map": {"AutoModel": "modeling_evil.Model", "AutoConfig": "modeling_evil.Config"}}, tokenizer_config=lambda c: {**c, "auto_map": {"AutoTokenizer": ["modeling_evil.Tok", None]}})
    unknown = variant("unknown", plain, config=lambda c: {**c, "model_type": "evil", "architectures": ["Model"], "auto_map": {"AutoModel": "modeling_evil.Model", "AutoConfig": "modeling_evil.Config"}})
    module = variant("module", st, modules=lambda m: [{**m[0], "type": "modeling_evil.Model"}, *m[1:]])
    texts = ["sort the list", "arrays by key", "the key of the list of arrays"]
    out = {}
    with HubServer() as server:
        # the environment names a port; the hub listens on its own
        os.environ["HF_ENDPOINT"] = server.url
        for folder in (plain, st, mapped, unknown, module): out[f"{folder.name} commit"] = server.add_repo(f"lab/{folder.name}", folder)
        for folder in (plain, st, mapped):
            encoder = load_encoder(f"lab/{folder.name}", revision="main", cache=False)
            same = np.array_equal(encoder.encode_queries(texts), load_encoder(folder, cache=False).encode_queries(texts))
            out[folder.name] = dict(same=bool(same), name=encoder.name, info={k: encoder.info[k] for k in ("hub", "commit", "revision", "pooling")})
        for folder in (unknown, module):
            for what in (f"lab/{folder.name}", folder):
                try: load_encoder(what, cache=False).encode_queries(texts); out[str(what)] = "loaded"
                except InputError as e: out[Path(what).name + (" hub" if isinstance(what, str) else " local")] = str(e)
        fetched = sorted({s.path.rsplit("/", 1)[1] for s in server.requests("resolve")})
        asked = [s.path for s in server.log]
        out["asked twice"] = sorted({p for p in asked if asked.count(p) > 1})
        out["python files fetched"] = [f for f in fetched if f.endswith(".py")]
        # the library finds the same files in the cache, with the hub gone
        server.log.clear()
        out["library"] = SentenceTransformer("lab/st", revision=out["st commit"], local_files_only=True, device="cpu").encode(texts).shape
        out["asked"] = len(server.log)
    out["ran"] = sorted(str(p.relative_to(work)) for p in work.rglob("RAN"))
    print("RESULT" + json.dumps(out))
""")


def test_encoders_by_name_over_http_give_the_vectors_of_the_folder_and_run_nothing(tmp_path):
    (tmp_path / "evil.txt").write_text(EVIL.replace("__file__).with_name('RAN')", f"{str(tmp_path / 'RAN')!r})"))
    env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf"), "ECI_SEM_CACHE": str(tmp_path / "own"), "OMP_NUM_THREADS": "1", "ECI_SEM_NET_PAUSE": "0.01", "ECI_SEM_NET_TIMEOUT": "10"}
    for k in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"): env.pop(k, None)
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path), str(Path(__file__).parent)], capture_output=True, text=True, timeout=240, env=env, stdin=subprocess.DEVNULL)
    assert "RESULT" in done.stdout, done.stderr[-3000:]
    out = json.loads(done.stdout.split("RESULT")[1])
    for name, pooling in (("plain", "mean"), ("st", "model"), ("mapped", "mean")):
        assert out[name] == dict(same=True, name=f"lab/{name}", info=dict(hub=f"lab/{name}", commit=out[f"{name} commit"], revision="main", pooling=pooling))
    for where in ("hub", "local"):
        assert "names the class 'modeling_evil.Model', which is not part of sentence-transformers" in out[f"module {where}"]
        assert "needs code of its own" in out[f"unknown {where}"]
    assert out["library"] == [3, 32] and out["asked"] == 0 and out["python files fetched"] == out["asked twice"] == [] and out["ran"] == []


def test_the_families_of_the_paper_are_asked_for_at_a_pinned_commit(server):
    from eci_sem.encoders import HUB, load_encoder
    assert all(re.fullmatch("[0-9a-f]{40}", f.revision) for f in HUB.values())
    for name, family in HUB.items():
        server.add_repo(name, FILES)
        with pytest.raises(InputError, match=f"the model '{name}' has no revision '{family.revision}'"): load_encoder(name)
        assert server.log[-1].path == f"/api/models/{name}/revision/{family.revision}"
    encoder = load_encoder("distilbert-base-uncased", revision="main", cache=False)
    assert encoder.about["revision"] == "main" and encoder.about["commit"] == server.repos["models/distilbert-base-uncased"]["refs"]["main"]


# MS MARCO

def ms_marco(server, tmp_path):
    import io
    import zipfile
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        z.writestr("msmarco/corpus.jsonl", "".join(json.dumps(dict(_id=str(i), title="", text=f"passage {i}")) + "\n" for i in range(5)))
        z.writestr("msmarco/queries.jsonl", "".join(json.dumps(dict(_id=str(i), text=f"query {i}")) + "\n" for i in range(2)))
        z.writestr("msmarco/qrels/train.tsv", "query-id\tcorpus-id\tscore\n0\t3\t1\n1\t4\t1\n")
    server.files["/msmarco.zip"] = buffer.getvalue()
    lines = "".join(json.dumps(dict(qid=str(q), pos=[str(3 + q)], neg=dict(bm25=["0", "1"], dense=["2"]))) + "\n" for q in range(2))
    data = gzip.compress(lines.encode(), mtime=0)
    return data, server.add_repo("sentence-transformers/msmarco-hard-negatives", {"msmarco-hard-negatives.jsonl.gz": data, "cross-encoder-scores.pkl.gz": b"pickle"}, kind="datasets")


def test_ms_marco_comes_with_its_hard_negatives(server, tmp_path):
    data, commit = ms_marco(server, tmp_path)
    path = f"/datasets/sentence-transformers/msmarco-hard-negatives/resolve/{commit}/msmarco-hard-negatives.jsonl.gz"
    server.fail(path, Fault(after=40, how="reset"))
    collection, files = load_msmarco(url=server.url + "/{name}.zip")
    assert files.commit == commit and files.negatives.read_bytes() == data and files.corpus.exists() and files.queries.exists()
    assert collection.name == "msmarco" and len(collection.corpus) == 5 and collection.pairs("train")[0].positive == "passage 3"
    assert collection.origin["hard_negatives"] == dict(repo="sentence-transformers/msmarco-hard-negatives", file="msmarco-hard-negatives.jsonl.gz", commit=commit)
    row = json.loads(gzip.open(files.negatives).readline())
    assert row["neg"]["bm25"] == ["0", "1"] and set(row["pos"]) <= set(collection.corpus)
    assert [(s.status, s.range) for s in server.requests(path)] == [(200, None), (206, "bytes=40-")] and not server.requests(".pkl")
    # a second time, pinned: nothing is asked
    server.log.clear()
    assert download_msmarco(commit, url=server.url + "/{name}.zip") == files and server.log == []


def test_ms_marco_tells_what_is_missing_before_the_gigabyte(server, tmp_path):
    ms_marco(server, tmp_path)
    with pytest.raises(InputError, match="the dataset 'sentence-transformers/msmarco-hard-negatives' has no revision 'v7'"): download_msmarco("v7", url=server.url + "/{name}.zip")
    with pytest.raises(InputError, match=r"no file 'x.gz'; found cross-encoder-scores.pkl.gz, msmarco-hard-negatives.jsonl.gz"): hub_file("sentence-transformers/msmarco-hard-negatives", "x.gz")
    assert not server.requests("msmarco.zip")
    files = download_msmarco(url=server.url + "/{name}.zip")
    server.__exit__()
    with pytest.warns(UserWarning, match="is taken from the cache"): assert download_msmarco() == files
    with pytest.raises(InputError, match=r"the dataset 'lab/x' is not on this machine"): hub_file("lab/x", "x.gz")
    assert list_files.__doc__.endswith("[ours]") and hub.MODEL_FILES
