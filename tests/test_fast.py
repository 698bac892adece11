"""The fast number format: what it stands for, float32 after the transformer, no shared vectors, and what it does to a ranking."""
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from eci_sem import encoders
from eci_sem.collection import InputError, load_docstrings
from eci_sem.encoders import Encoder, fast_dtype, load_encoder, sampled_queries
from eci_sem.fast import FastCheck, FastEffect, fast_effect, fast_or_float32
from eci_sem.rank import rank_sources
from eci_sem.ranked_stream import rank_stream
from eci_sem.stream import score_stream
from eci_sem.sources import mine_bm25, mine_random
from eci_sem.triples import Triples

SAMPLE = ["Return a sorted copy of an array.", "Close the socket and wait until the peer is gone.", "The gradient of a sparse tensor with respect to its values, as a matrix in which each row is a sample."]


@pytest.fixture
def amx(monkeypatch):
    monkeypatch.setattr(encoders, "_bfloat16_instructions", lambda: "amx_bf16")


def test_fast_is_bfloat16_only_where_there_are_instructions_for_it(monkeypatch):
    import torch
    for there, dtype, why in (("amx_bf16", "bfloat16", "(amx_bf16: multiplies tiles)"), ("avx512_bf16", "bfloat16", "(avx512_bf16: multiplies pairs)"), (None, "float32", "no instructions for bfloat16 (amx_bf16 or avx512_bf16)")):
        monkeypatch.setattr(encoders, "_bfloat16_instructions", lambda: there)
        assert fast_dtype()[0] == fast_dtype("cpu")[0] == dtype and why in fast_dtype()[1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda d: __import__("contextlib").nullcontext())
    for there, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there and not including_emulation)
        assert fast_dtype("cuda:1")[0] == dtype
    assert fast_dtype("mps") == ("float32", "bfloat16 was not measured on mps")
    with pytest.raises(InputError, match="unknown device 'gpu'"): fast_dtype("gpu")


def test_instructions_are_asked_of_torch_else_of_the_system(monkeypatch):
    import torch
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    for flags, found in ((dict(avx512_bf16=True, amx_bf16=True), "amx_bf16"), (dict(amx_bf16=False, avx512_bf16=True), "avx512_bf16"), (dict(amx_bf16=False, avx512_bf16=False, avx512_f=True), None), ({}, None)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
        assert encoders._bfloat16_instructions() == found
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    for text, found in (("flags : avx512_bf16 amx_bf16 amx_tile\n", "amx_bf16"), ("flags : avx512_bf16 amx_tile\n", "avx512_bf16"), ("flags : avx2\n", None)):
        monkeypatch.setattr(encoders.Path, "read_text", lambda self, encoding=None: text)
        assert encoders._bfloat16_instructions() == found
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert encoders._bfloat16_instructions() is None


def test_what_fast_became_is_recorded_and_the_default_says_nothing_of_it(amx):
    fast = load_encoder("minilm", dtype="fast", cache=False)
    assert fast.dtype == fast.info["dtype"] == "bfloat16" and fast.info["dtype_asked"] == "fast" and "amx_bf16" in fast.info["dtype_why"] and "bfloat16" in repr(fast)
    assert not any(k.startswith("dtype_") for k in load_encoder("minilm", cache=False).info)
    with pytest.raises(InputError, match="unknown dtype 'fst'. Did you mean 'fast'"): load_encoder("minilm", dtype="fst")


def test_formats_never_share_a_vector_and_fast_shares_that_of_what_it_became(monkeypatch, tmp_path):
    def encoder(dtype, there):
        monkeypatch.setattr(encoders, "_bfloat16_instructions", lambda: there)
        return load_encoder("minilm", dtype=dtype, cache=tmp_path)
    full, half = encoder("float32", None), encoder("bfloat16", None)
    assert full.fingerprint == encoder("fast", None).fingerprint != half.fingerprint == encoder("fast", "avx512_bf16").fingerprint
    a, b = full.encode_passages(SAMPLE), half.encode_passages(SAMPLE)
    assert half.stats["encoded"] == 3 and (a != b).any(1).all()
    for there, want in ((None, a), ("amx_bf16", b)):
        fast = encoder("fast", there)
        assert fast.encode_passages(SAMPLE).tobytes() == want.tobytes() and fast.stats["cached"] == 3


def test_the_default_vectors_keep_their_name():
    "Committed results rest on it: a change of the float32 vectors, or of their fingerprint, makes them all anew."
    assert load_encoder("minilm", cache=False).fingerprint == "df80f2968f2c31e367f45dc35eb4247fb1aa6ffdff318505e74c94c0c6898a47"


def test_pooling_and_length_stay_in_float32():
    "From the transformer's own bfloat16 token vectors, float64 by hand: what was pooled or normalised in bfloat16 is a thousand times further off."
    import torch
    encoder, seen = load_encoder("minilm", dtype="bfloat16", cache=False), []
    model = encoder.model
    assert {p.dtype for p in model[0].parameters()} == {torch.bfloat16}
    model[0].register_forward_hook(lambda module, args, out: seen.append((out["token_embeddings"].clone(), out["attention_mask"].clone())))
    for text in SAMPLE:
        got = encoder.encode_passages([text])[0]
        tokens, mask = seen.pop()
        assert tokens.dtype == torch.bfloat16
        mean = (tokens.double() * mask[:, :, None]).sum(1)[0] / mask[0].sum()
        want = (mean / mean.norm()).numpy()
        assert np.abs(got - want).max() < 1e-7
        assert np.abs(torch.tensor(want).bfloat16().double().numpy() - want).max() > 1e-5, "a bfloat16 vector would pass"
        assert abs(np.linalg.norm(got.astype(float)) - 1) < 1e-6


def test_a_static_model_is_rounded_and_then_averaged_in_float32():
    full, half = (load_encoder("glove", dtype=d, cache=False) for d in ("float32", "bfloat16"))
    a, b = full.encode_passages(SAMPLE), half.encode_passages(SAMPLE)
    assert 0 < np.abs(a - b).max() < 4e-3
    import torch
    table = full.model[0].embedding.weight.detach().bfloat16().double().numpy()
    ids = full.model.tokenizer.encode(SAMPLE[0], add_special_tokens=False).ids
    mean = table[ids].mean(0)
    np.testing.assert_allclose(b[0], mean / np.linalg.norm(mean), atol=1e-7)


def test_a_model_of_the_callers_keeps_its_format(amx):
    import torch
    mine = load_encoder("minilm", cache=False).model
    fast = Encoder(mine, "mine", dtype="fast", cache=False)
    assert np.isfinite(fast.encode_queries(SAMPLE[:1])).all() and next(fast.model[0].parameters()).dtype == torch.bfloat16
    assert next(mine.parameters()).dtype == torch.float32


# --- what it does to a ranking

@pytest.fixture(scope="module")
def ranked():
    collection = load_docstrings()
    pairs = collection.pairs("score", limit=24)
    return collection, Triples.concat([mine_bm25(collection, pairs), mine_random(collection, pairs)])


@pytest.mark.parametrize("name", ["glove", "minilm"])
def test_bfloat16_keeps_the_order_and_moves_no_score_by_a_tenth_of_its_interval(ranked, name):
    collection, triples = ranked
    effect = fast_effect(triples, name, collection=collection, load=dict(cache=False), resamples=1000, progress=False)
    assert effect.holds and not effect.changed and 0 < effect.share <= 0.1, effect
    assert list(effect.table["metric"].unique()) == ["ECI_sem", "ECI_net"] and set(effect.table["source"]) == {"bm25", "random"}
    assert "the same order" in repr(effect) and repr(effect).splitlines()[0].endswith("holds")


def effect(a, b, half=1.0):
    with np.errstate(invalid="ignore"): share = np.abs(np.subtract(b, a)) / half
    return FastEffect("x", "bfloat16", pd.DataFrame(dict(metric="ECI_sem", source=["u", "v"], kind="source", float32=a, fast=b, difference=np.subtract(b, a), half_width=half, share=share)), 0.1, 7)


def test_the_rule_by_hand():
    assert effect([1.0, 2.0], [1.05, 2.0]).holds
    assert not effect([1.0, 2.0], [1.2, 2.0]).holds, "further off than a tenth"
    swapped = effect([1.0, 1.01], [1.02, 1.0])
    assert swapped.changed == ["ECI_sem"] and swapped.share <= 0.1 and not swapped.holds and "another order by ECI_sem" in repr(swapped) and "does not hold" in swapped._repr_html_()
    assert not effect([1.0, 2.0], [1.0, np.nan]).holds and not effect([1.0, 2.0], [1.0, 2.0], 0.0).holds, "what is not a number does not hold"


def test_errors_of_fast_effect(ranked):
    with pytest.raises(InputError, match="dtype is 'float32', which is what the other format is held against"): fast_effect(ranked[1], "glove", dtype="float32")
    with pytest.raises(InputError, match="unknown dtype 'float16'"): fast_effect(ranked[1], "glove", dtype="float16")
    with pytest.raises(InputError, match="load has a dtype of its own"): fast_effect(ranked[1], "glove", load=dict(dtype="float32"))


# --- the rule, applied: a ranking asked for with "fast" is one in bfloat16 or one in float32, and says which

def far_from_zero(folder):
    "A static model whose vectors are a small difference on top of a large common part: bfloat16 has no digits left for it."
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    tokenizer = load_encoder("glove", cache=False).model.tokenizer
    weights = 1 + 1e-3 * np.random.default_rng(0).standard_normal((tokenizer.get_vocab_size(), 24))
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=torch.tensor(weights, dtype=torch.float32))], device="cpu").save(str(folder))
    return folder


@pytest.fixture
def formats(amx, tmp_path):
    "Name -> dtype -> encoder: one that keeps its order in bfloat16, and one that does not."
    folder = far_from_zero(tmp_path / "far")
    return {"glove": lambda d: load_encoder("glove", dtype=d, cache=False), "far": lambda d: load_encoder(folder, dtype=d, cache=False)}


@pytest.mark.parametrize("name, kept", [("glove", "bfloat16"), ("far", "float32")])
def test_a_ranking_asked_for_with_fast_is_in_bfloat16_only_where_the_rule_holds(ranked, formats, name, kept):
    collection, triples = ranked
    options = dict(collection=collection, progress=False, resamples=300)
    fast = formats[name]("fast")
    assert fast.dtype == "bfloat16"
    got, want = rank_sources(triples, fast, **options), rank_sources(triples, formats[name](kept), **options)
    pd.testing.assert_frame_equal(got.table, want.table)
    encoder = got.provenance["encoder"]
    assert (encoder["dtype"], encoder["dtype_asked"], encoder["fingerprint"]) == (kept, "fast", want.provenance["encoder"]["fingerprint"])
    said = [n for n in got.notes if n.startswith("dtype 'fast'")]
    assert fast.stats["texts"] == 0 or kept == "bfloat16", "the sample is no count of the caller's"
    assert said == [encoder["dtype_check"]] and ("is bfloat16 here" if kept == "bfloat16" else "stays with float32 here") in said[0] and "24 queries: " in said[0] and said[0] in repr(got)
    assert "dtype_check" not in want.provenance["encoder"] and not any("dtype" in n for n in want.notes), "what was asked for by name is not asked again"
    assert fast.dtype == "bfloat16" and "dtype_check" not in fast.info, "the caller's encoder is left as it was"
    # the same in a walk that holds no triples
    streams = [rank_stream(lambda: iter([triples.take(np.arange(20)), triples.take(np.arange(20, len(triples)))]), e, resamples=300) for e in (fast, formats[name](kept))]
    pd.testing.assert_frame_equal(streams[0].table, streams[1].table)
    assert streams[0].provenance["encoder"]["dtype"] == kept and sum(n.startswith("dtype 'fast'") for n in streams[0].notes) == 1


def test_the_sample_is_a_twentieth_and_its_interval_is_narrowed_to_that_of_all(formats, monkeypatch):
    from eci_sem import fast as F
    from eci_sem.ranked_stream import _hold_fast
    assert [sampled_queries(n) for n in (3, 24, 25, 480, 481, 1000, 2000, 10**6)] == [3, 24, 24, 24, 25, 50, 100, 100]
    words = "sort array close socket gradient tensor matrix sample peer value".split()
    rng = np.random.default_rng(0)
    some = lambda: " ".join(rng.choice(words, 4))
    rows = lambda positive: Triples.from_rows([dict(query=f"{words[i % 10]} {i}", positive=positive(i), negative=some(), source=s) for i in range(600) for s in ("a", "b")])
    triples = rows(lambda i: f"{words[i % 10]} {words[i % 10]} {i % 7}")
    seen, real = [], F._effect
    def spy(full, fast, *rest):
        seen.append((full, fast, rest, real(full, fast, *rest)))
        return seen[-1][-1]
    monkeypatch.setattr(F, "_effect", spy)
    encoder = formats["glove"]("fast")
    kept, check = fast_or_float32(triples, encoder, progress=False, control=None, hybrids=None)
    (full, fast, (dtype, limit, of), effect), = seen
    said = check.text
    assert limit == 0.05, "of a sample half of the limit is asked"
    assert (full.provenance["queries"], of, effect.queries, effect.of) == (30, 600, 30, 600) and "30 of 600 queries" in said
    half = (full.table["hi"] - full.table["lo"]) / 2
    np.testing.assert_allclose(effect.table[effect.table["metric"] == "ECI_sem"].set_index("source")["half_width"], half / np.sqrt(20))
    assert full.provenance["encoder"]["dtype"] == "float32" and fast.provenance["encoder"]["dtype"] == "bfloat16"
    assert (kept is encoder) == effect.holds == ("is bfloat16" in said) == bool(check.apart)
    assert full.provenance["alpha"] == 0.05
    fast_or_float32(triples, encoder, progress=False, control=None, hybrids=None, seed=1)
    assert set(seen[1][0].factors["query_id"]) != set(full.factors["query_id"]), "another seed, other queries"
    # the interval is that of the ranking
    rank_sources(triples, encoder, progress=False, control=None, hybrids=None, alpha=0.5, resamples=200)
    assert seen[2][0].provenance["alpha"] == 0.5 and seen[2][0].provenance["net"]["prior"] == rank_sources(triples, formats["glove"]("float32"), progress=False, control=None, hybrids=None, resamples=200).provenance["net"]["prior"]
    _hold_fast([triples], encoder, 600, None, None, "word", None, 0, 0.5)
    assert seen[3][0].provenance["alpha"] == 0.5
    # what the sample can't be ranked by: here no positive is nearer to its query than to another
    kept, check = fast_or_float32(rows(lambda i: some()), encoder, progress=False, control=None, hybrids=None)
    said = check.text
    assert not check.apart and kept.dtype == "float32" and "stays with float32 here: 30 of 600 queries could not be ranked in both formats (labelled pairs are no more similar" in said and kept.info["dtype_why"] in said
    plain = formats["glove"]("bfloat16")
    assert fast_or_float32(triples, plain) == (plain, None) and len(seen) == 4


def test_neighbours_that_the_format_may_have_swapped_are_named():
    table = pd.DataFrame(dict(value=[1.0, 5.0, 4.9, 3.0], net_value=[1.0, 2.0, 4.0, 8.0]), index=["d", "a", "b", "c"])
    assert FastCheck("x.", {}).note(table) == "x."
    assert FastCheck("x.", {"ECI_sem": 0.04}).note(table) == "x."
    assert FastCheck("x.", {"ECI_sem": 0.06}).note(table) == "x. In float32 these neighbours may stand the other way round: a and b by ECI_sem."
    assert FastCheck("x.", {"ECI_sem": 0.0, "ECI_net": 0.6}).note(table) == "x. In float32 these neighbours may stand the other way round: a and d by ECI_net."
    assert FastCheck("x.", {"ECI_net": 0.6}).note(table[["value"]]) == "x."


@pytest.mark.parametrize("name", ["glove", "far"])
def test_a_score_that_nothing_is_held_against_is_in_float32(ranked, formats, name):
    batches = lambda: iter([ranked[1]])
    scores = {d: score_stream(batches, formats[name](d)) for d in ("fast", "float32", "bfloat16")}
    values = {d: {k: v.value for k, v in s.items()} for d, s in scores.items()}
    assert values["fast"] == values["float32"] != values["bfloat16"]


def test_the_twin_in_float32(formats):
    fast = formats["far"]("fast")
    twin = fast.in_float32("because")
    assert (twin.dtype, twin.info["dtype_why"], twin.info["dtype_asked"]) == ("float32", "because", "fast") and twin.fingerprint == formats["far"]("float32").fingerprint != fast.fingerprint
    assert twin.encode_passages(SAMPLE).tobytes() == formats["far"]("float32").encode_passages(SAMPLE).tobytes() != fast.encode_passages(SAMPLE).tobytes()
    mine = load_encoder("glove", cache=False).model
    held = Encoder(mine, "mine", dtype="fast", cache=False)
    held.encode_queries(SAMPLE)
    assert held.in_float32().model is mine, "the caller's model was kept as it was"


@pytest.mark.parametrize("name", ["glove", "minilm"])
def test_the_twin_has_the_name_and_the_vectors_of_float32_and_no_vector_of_another_model(amx, tmp_path, name):
    "Without a hash of the weights given, what is hashed for bfloat16 is the rounded model: two models may round alike."
    import copy
    import torch
    mine = load_encoder(name, cache=False).model
    rounded = copy.deepcopy(mine)
    for p in rounded.parameters(): p.data = p.data.bfloat16().float()
    made = lambda model, dtype: Encoder(model, "mine", dtype=dtype, cache=tmp_path)
    twins = [made(m, "fast").in_float32() for m in (mine, rounded)]
    plain = made(mine, "float32")
    assert twins[0].fingerprint == plain.fingerprint != twins[1].fingerprint
    a, b = (t.encode_passages(SAMPLE) for t in twins)
    assert twins[1].stats["encoded"] == 3 and (a != b).any() and plain.encode_passages(SAMPLE).tobytes() == a.tobytes() and plain.stats["cached"] == 3
    half = copy.deepcopy(mine).to(torch.float16)
    assert made(half, "fast").in_float32().model is not half and {p.dtype for p in half.parameters()} == {torch.float16}, "a model of the caller's keeps its format"


# --- the benchmarks in small

def run(root, script, *options):
    out = subprocess.run([sys.executable, root / "benchmarks" / script, *map(str, options)], capture_output=True, text=True, timeout=300)
    assert out.returncode in (0, 1), out.stderr[-2000:]
    return out


def test_the_benchmark_of_the_cache_in_small(root, tmp_path):
    out = run(root, "cache.py", "--vectors", 3000, "--dim", 384, "--shared", 800, "--texts", 8, "--runs", 2, "--json", tmp_path / "c.json")
    report = json.loads((tmp_path / "c.json").read_text())
    assert set(report) == {"machine", "claims"} and all({"name", "value", "limit", "unit", "passed", "what"} <= set(c) for c in report["claims"])
    passed = {c["name"]: c["passed"] for c in report["claims"]}
    assert len(passed) == 5 and all(good for name, good in passed.items() if "vectors a second" not in name and "size on disk" not in name), out.stdout  # the rate is for an idle machine, the size for many vectors
    assert out.returncode == int(not all(passed.values()))


def test_the_benchmark_of_encoding_in_small(root, tmp_path):
    out = run(root, "encode.py", "--only", "speed", "--texts", 4, "--runs", 1, "--json", tmp_path / "e.json")
    claims = {c["name"]: c for c in json.loads((tmp_path / "e.json").read_text())["claims"]}
    assert claims["vectors in float32, 1 - cosine with plain encode's"]["passed"] and claims["vectors in bfloat16, 1 - cosine with plain encode's"]["passed"], out.stdout
    fast = [c for name, c in claims.items() if "fast" in name]
    assert len(fast) == 2
    if fast_dtype()[0] == "float32": assert all(c["passed"] is None and c["what"].startswith("not applicable here: ") for c in fast) and "no instructions for bfloat16" in out.stdout
    else: assert fast[1]["passed"] is not None


def test_a_claim_that_fails_fails_the_benchmark(root, capsys, monkeypatch):
    monkeypatch.syspath_prepend(root / "benchmarks")
    from common import claim, finish
    good, bad, away, none = claim("a", 1, 2, True, ""), claim("b", 1, 2, False, ""), claim("c", 1, 2, False, "", unless="no such part"), claim("d", float("nan"), 2, True, "")
    assert [c["passed"] for c in (good, bad, away, none)] == [True, False, None, False]
    assert [finish(dict(claims=x), None) for x in ([good], [good, away], [good, bad], [none])] == [0, 0, 1, 1]
    assert "1 of 1 claims hold, 1 not applicable here" in capsys.readouterr().out
