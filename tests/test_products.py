"The quicker ways of matrix products: the same numbers, chosen by the processor alone, and nothing touched that is not plain."
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear, scaled_dot_product_attention

from eci_sem import products
from eci_sem.encoders import Encoder, batch_shape, embedded_path, load_encoder
from eci_sem.products import QuickProducts, Ways, quick_products, quicker_ways

HAS = torch.cpu.get_capabilities()
PACKS = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
FORMATS = [torch.float32, *([torch.bfloat16] if HAS.get("avx512_bf16") or HAS.get("amx_bf16") else [])]
packs = pytest.mark.skipif(not PACKS, reason="this build of PyTorch has no oneDNN, or none that packs weights")
SAMPLE = [" ".join(f"word{(i * j) % 97}" for j in range(1, 3 + (i * 7) % 12)) for i in range(1, 13)] # of two or three shapes


def capabilities(monkeypatch, **has): monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)


@pytest.mark.parametrize("has, single, double", [
    (dict(cpu_name="AMD EPYC 9655", avx2=True, avx512_f=True, avx512_bf16=True), Ways(products=True), Ways(True, True)),
    (dict(cpu_name="AMD EPYC 7763", avx2=True, avx512_f=False, avx512_bf16=False), Ways(), Ways()),
    (dict(cpu_name="Intel(R) Xeon(R) Processor", avx512_f=True, avx512_bf16=True, amx_bf16=True), Ways(), Ways(products=True)),
    (dict(cpu_name="Intel(R) Xeon(R) Gold 6330", avx512_f=True), Ways(), Ways()),
    (dict(), Ways(), Ways()),
])
def test_what_is_done_otherwise_follows_from_the_processor(monkeypatch, has, single, double):
    capabilities(monkeypatch, **has)
    monkeypatch.setattr(products, "_packs", lambda dtype: True)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert (quicker_ways("float32"), quicker_ways("bfloat16")) == (single, double)
    assert quicker_ways("float32", "cuda") == quicker_ways("bfloat16", "cuda:1") == Ways()
    assert isinstance(quick_products(torch.nn.Linear(2, 2), "bfloat16"), QuickProducts) == any(double)
    assert not isinstance(quick_products(torch.nn.TransformerEncoderLayer(4, 2), "bfloat16"), QuickProducts), "it has a quick path of its own, which a mode would turn off"
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False) # another BLAS: nothing was measured
    assert quicker_ways("float32") == Ways() and quicker_ways("bfloat16") == double
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert quicker_ways("bfloat16") == Ways()


def test_an_older_pytorch_does_as_it_does(monkeypatch):
    capabilities(monkeypatch, cpu_name="AMD EPYC", avx512_f=True, avx512_bf16=True)
    products._packs.cache_clear()
    with monkeypatch.context() as without:
        without.setattr(torch.ops, "mkldnn", object())
        assert not products._packs("float32") and not products._packs("bfloat16")
    products._packs.cache_clear()
    with monkeypatch.context() as other: # it is there, and does something else
        other.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda x, *args: x)
        assert not products._packs("float32")
    products._packs.cache_clear()
    assert products._packs("float32") == PACKS
    monkeypatch.setattr(products, "_packs", lambda dtype: False)
    assert quicker_ways("float32") == quicker_ways("bfloat16") == Ways()
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert quicker_ways("float32") == Ways()


@packs
@settings(max_examples=40)
@given(st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 2**31 - 1))
def test_a_packed_product_is_the_product(rows, inner, outer, biased, seed):
    torch.manual_seed(seed)
    quick = QuickProducts(Ways(products=True))
    for dtype in FORMATS:
        x, w, b = torch.randn(2, rows, inner, dtype=dtype), torch.nn.Parameter(torch.randn(outer, inner, dtype=dtype)), torch.randn(outer, dtype=dtype) if biased else None
        exact = linear(x.double(), w.detach().double(), None if b is None else b.double())
        with torch.no_grad():
            with quick: first, again = linear(x, w, b), linear(x, w, b)
        assert len(quick._packed) and first.dtype == dtype and first.shape == exact.shape
        assert torch.equal(first, again)
        sums = linear(x.double().abs(), w.detach().double().abs(), None if b is None else b.double().abs())
        bound = (inner + 2) * torch.finfo(torch.float32).eps * sums + torch.finfo(dtype).eps * exact.abs() # of sums in float32 in any order, and of one rounding
        assert ((first - exact).abs() <= bound).all()


def same_as_pytorch(quick: QuickProducts, f, made=0) -> None:
    "The same bits as without the mode, and nothing packed."
    with torch.no_grad():
        want = f()
        with quick: found = f()
    assert torch.equal(found, want) and found.dtype == want.dtype and len(quick._packed) == made


@packs
def test_what_is_not_plain_is_left_to_pytorch():
    quick, layer, x = QuickProducts(Ways(True, True)), torch.nn.Linear(8, 4), torch.randn(3, 8)
    with quick: layer(x).sum().backward() # gradients
    assert layer.weight.grad is not None and not quick._packed
    weight, bias = layer.weight.detach(), torch.arange(8.0)
    double, normed = torch.nn.Linear(8, 4).double(), torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 4))
    for f in (lambda: layer(x[0]), lambda: layer(x[:0]), lambda: linear(x, weight=layer.weight), lambda: linear(x, weight), lambda: linear(x, layer.weight[:2]), # a row, no row, by name, made by the pass, a part
            lambda: linear(x, layer.weight, bias[::2]), lambda: linear(x, layer.weight, torch.tensor(2.0)), lambda: linear(x, layer.weight, torch.ones(1)), lambda: linear(x, layer.weight, torch.ones(1, 4)), # biases of other shapes
            lambda: linear(x, torch.nn.Parameter(torch.ones(0, 8))), lambda: linear(x, torch.nn.Parameter(weight.to_sparse_csr())), lambda: normed(x), lambda: double(x.double())):
        same_as_pytorch(quick, f)
    with torch.inference_mode(): born = torch.nn.Linear(8, 4) # its weights have no version
    same_as_pytorch(quick, lambda: born(x))
    with torch.autocast("cpu", torch.bfloat16): same_as_pytorch(quick, lambda: layer(x))
    with torch.no_grad(), quick: traced = torch.jit.trace(layer, x)
    assert torch.equal(traced(x), layer(x)) and "mkldnn" not in str(traced.graph)


@packs
def test_a_compiled_layer_is_compiled_as_it_is():
    layer, x, graphs = torch.nn.Linear(8, 4), torch.randn(3, 8), []
    compiled = torch.compile(layer, backend=lambda graph, inputs: graphs.append(str(graph.code)) or graph.forward, fullgraph=True)
    with torch.no_grad(), QuickProducts(Ways(True, True)): found = compiled(x)
    assert torch.allclose(found, layer(x), atol=1e-6) and graphs and "mkldnn" not in graphs[0]
    torch._dynamo.reset()


@packs
def test_a_weight_that_changes_is_packed_anew():
    quick, layer, x = QuickProducts(Ways(products=True)), torch.nn.Linear(16, 8, bias=False), torch.randn(5, 16)
    def both():
        with torch.no_grad():
            with quick: ours = layer(x)
            assert torch.allclose(ours, layer(x), atol=1e-6)
    both()
    with torch.no_grad(): layer.weight.add_(1)
    both()
    for _ in range(20): # of two new ones the second may get the address of the first one's predecessor, unless that is held
        for _ in range(2): layer.weight.data = torch.randn(8, 16)
        both()
    layer.weight.data = layer.weight.data.t().contiguous().t()
    both()
    layer.load_state_dict({"weight": torch.randn(8, 16)})
    both()
    assert len(quick._packed) == 1 and quick._bytes == 8 * 16 * 4


@packs
def test_what_training_changes_between_two_calls_is_seen(monkeypatch):
    from sentence_transformers import SentenceTransformer
    forced(monkeypatch, "float32")
    model = SentenceTransformer(str(embedded_path("minilm").parent), device="cpu", local_files_only=True)
    encoder = Encoder(model, "minilm", cache=False)
    encoder.encode_queries(SAMPLE[:2])
    for p in model.parameters(): p.data.mul_(1.01) # such a change has no version
    np.testing.assert_allclose(encoder.encode_queries(SAMPLE[:2]), model.encode(SAMPLE[:2], normalize_embeddings=True), atol=1e-6)


@packs
def test_packed_weights_stay_below_a_limit(monkeypatch):
    monkeypatch.setattr(products, "_KEPT", 3 * 64 * 4)
    quick, layers, x = QuickProducts(Ways(products=True)), [torch.nn.Linear(8, 8) for _ in range(5)], torch.randn(3, 8)
    with torch.no_grad():
        for layer in layers * 2:
            with quick: ours = layer(x)
            assert torch.allclose(ours, layer(x), atol=1e-6)
    assert len(quick._packed) == 3 and quick._bytes == 3 * 64 * 4


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.sampled_from([4, 8]), st.sampled_from([None, "row", "full"]), st.sampled_from([None, 0.3]), st.integers(0, 2**31 - 1))
def test_attention_is_the_attention(texts, heads, rows, columns, d, masked, scale, seed):
    torch.manual_seed(seed)
    q, k, v = torch.randn(texts, heads, rows, d), torch.randn(texts, heads, columns, d), torch.randn(texts, heads, columns, d)
    q, k, v = (x.bfloat16() for x in (q, k, v))
    mask = None
    if masked: mask = (torch.rand(texts, 1, rows if masked == "full" else 1, columns) < 0.7); mask[..., 0] = True
    exact = scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask, scale=scale)
    with torch.inference_mode(), QuickProducts(Ways(attention=True)): ours = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    assert ours.shape == exact.shape and ours.dtype == torch.bfloat16
    assert (ours - exact).abs().max() <= 0.02 * v.abs().max() # a score of 4 is rounded by up to 2^-7


def test_portions_of_attention_change_nothing(monkeypatch):
    torch.manual_seed(1)
    q, k, v = (x.transpose(1, 2) for x in torch.randn(3, 7, 12, 4, 8, dtype=torch.bfloat16))
    mask = torch.rand(7, 1, 1, 12) < 0.8
    def ours():
        with torch.inference_mode(), QuickProducts(Ways(attention=True)): return scaled_dot_product_attention(q, k, v, attn_mask=mask)
    whole = ours()
    for scores in (1, 4 * 12 * 12 * 2 * 2, 4 * 12 * 12 * 2 * 3):
        monkeypatch.setattr(products, "_SCORES", scores)
        assert torch.equal(ours(), whole)


def test_a_row_that_sees_nothing_is_finite():
    q = torch.randn(1, 1, 3, 4, dtype=torch.bfloat16)
    mask = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])[None, None]
    with torch.inference_mode(), QuickProducts(Ways(attention=True)): ours = scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert ours.isfinite().all() and torch.equal(ours[0, 0, 0], q[0, 0, 0])


@pytest.mark.parametrize("rows, heads, few", [(3, 2, 2), (17, 6, 2), (5, 4, 1)])
def test_causal_and_grouped_attention_are_those_of_a_mask_and_of_repeated_heads(rows, heads, few):
    torch.manual_seed(rows)
    q, k, v = (torch.randn(2, n, rows, 8, dtype=torch.bfloat16) for n in (heads, few, few))
    repeated = [x.repeat_interleave(heads // few, 1) for x in (k, v)]
    mask = torch.ones(2, 1, rows, rows, dtype=torch.bool).tril()
    exact = scaled_dot_product_attention(q.double(), *(x.double() for x in repeated), is_causal=True)
    with torch.inference_mode(), QuickProducts(Ways(attention=True)):
        flags, written = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != few), scaled_dot_product_attention(q, *repeated, attn_mask=mask)
    assert torch.equal(flags, written) and (flags - exact).abs().max() < 0.02 * v.abs().max()


def test_attention_that_is_not_plain_is_left_to_pytorch(monkeypatch):
    def refused(*args, **kwargs): raise AssertionError("made otherwise all the same")
    monkeypatch.setattr(products.torch, "baddbmm", refused)
    q = torch.randn(1, 2, 3, 4, dtype=torch.bfloat16)
    quick, added, ours = QuickProducts(Ways(attention=True)), torch.zeros(3, 3, dtype=torch.bfloat16), scaled_dot_product_attention(q, q, q)
    with quick, torch.no_grad():
        for args, more in (((q, q, q), dict(dropout_p=0.5)), ((q, q, q), dict(is_causal=True, attn_mask=None, dropout_p=0.5)), ((q, q, q), dict(attn_mask=added)), ((q[0], q[0], q[0]), {}), ((q.float(),) * 3, {})):
            assert scaled_dot_product_attention(*args, **more).shape == args[0].shape
        with pytest.raises(AssertionError, match="otherwise"): scaled_dot_product_attention(q, q, q)
        monkeypatch.setattr(products, "_MOST", 2 * 3 * 3 * 2 - 1) # bytes of the scores of a text
        assert torch.equal(scaled_dot_product_attention(q, q, q), ours)
    with quick: assert scaled_dot_product_attention(q.requires_grad_(), q, q).requires_grad


def forced(monkeypatch, dtype: str) -> list[str]: # what was made otherwise, call by call
    "The other ways, on whatever processor this is."
    made: list[str] = []
    for part in ("_linear", "_attention"):
        def counted(self, *args, part=part, way=getattr(QuickProducts, part), **more):
            if (out := way(self, *args, **more)) is not None: made.append(part)
            return out
        monkeypatch.setattr(QuickProducts, part, counted)
    ways = Ways(products=PACKS and getattr(torch, dtype) in FORMATS, attention=dtype == "bfloat16")
    monkeypatch.setattr(products, "quicker_ways", lambda dtype, device="cpu": ways)
    return made


@pytest.mark.parametrize("dtype, apart", [("float32", 1e-6), ("bfloat16", 5e-3)])
def test_an_encoder_gives_the_same_vectors_and_leaves_the_model_alone(monkeypatch, dtype, apart):
    from sentence_transformers import SentenceTransformer
    model = SentenceTransformer(str(embedded_path("minilm").parent), device="cpu", local_files_only=True)
    theirs = model.encode(SAMPLE, normalize_embeddings=True)
    made = forced(monkeypatch, dtype)
    encoder = Encoder(model, "minilm", dtype=dtype, cache=False)
    ours = encoder.encode_passages(SAMPLE)
    assert np.abs(ours - theirs).max() < apart
    batches = len({batch_shape(len(ids)) for ids in encoder._token_ids(SAMPLE)[0]}) # few texts: one of each shape
    assert made.count("_attention") == 6 * batches * (dtype == "bfloat16") # six layers
    if PACKS and getattr(torch, dtype) in FORMATS: assert made.count("_linear") >= 36 * batches # six products in each
    made.clear()
    np.testing.assert_array_equal(model.encode(SAMPLE, normalize_embeddings=True), theirs)
    assert not made, "the caller's own calls are PyTorch's"
    for k in (1, 5): # in other company
        for a, b in zip(encoder.encode_passages(SAMPLE[::-1][:k]), ours[::-1][:k]): assert a.tobytes() == b.tobytes()


@packs
def test_a_reranker_takes_the_same_ways(monkeypatch, tmp_path):
    from eci_sem.rerank import load_reranker
    from test_rerank import checkpoint
    folder, queries, passages = checkpoint(tmp_path / "tiny"), ["cat", "dog", "cat"], ["cat dog", "bird", "dog"]
    plain = load_reranker(folder).score_pairs(queries, passages)
    made = forced(monkeypatch, "float32")
    ours = load_reranker(folder).score_pairs(queries, passages)
    assert np.allclose(ours, plain, rtol=1e-4, atol=1e-5) and made.count("_linear") >= 6 and "_attention" not in made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_do_not_meet(monkeypatch, dtype):
    forced(monkeypatch, dtype)
    encoder = load_encoder("minilm", dtype=dtype, cache=False)
    want, found = encoder.encode_passages(SAMPLE[:5]), {}
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, encoder.encode_passages(SAMPLE[:5]))) for i in range(3)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(found) == 3 and all(v.tobytes() == want.tobytes() for v in found.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_causal_model_gives_the_same_in_any_company(monkeypatch, dtype):
    "Where no text of a batch is padded, transformers says what is seen by a flag, else by a mask."
    forced(monkeypatch, dtype)
    encoder = load_encoder("smollm2", dtype=dtype, cache=False)
    words = lambda n, first: " ".join([first, *["cat"] * (n - 1)])
    for n in (8, 16):
        full = next(t for t in (words(k, "dog") for k in range(1, 40)) if len(encoder._token_ids([t])[0][0]) == n)
        short = words(n - 3, "house")
        alone, beside = encoder.encode_passages([full])[0], encoder.encode_passages([short, full])[1]
        assert alone.tobytes() == beside.tobytes()


def test_the_fingerprint_is_the_same_on_every_processor(monkeypatch):
    "Processors and libraries round differently; a cluster of several kinds is one encoder all the same."
    def prints(ways):
        monkeypatch.setattr(products, "quicker_ways", lambda dtype, device="cpu": ways)
        return [load_encoder("minilm", dtype=d, cache=False).fingerprint for d in ("float32", "bfloat16")]
    assert prints(Ways()) == prints(Ways(products=True)) == prints(Ways(True, True)) and len({*prints(Ways())}) == 2
