"The score: exact properties, an independent reference, hand-worked cases, calibration, wording of errors."
import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem import score as S
from eci_sem.collection import InputError
from eci_sem.score import (FACTORS, Accumulator, Calibration, ECIConfig, baselines, calibrate, eci_net, eci_score, eci_v1, factors, false_negative_probability,
    information_matrix, logdet_from_rows, mean_vector, net_weights, residuals, weighted_residuals)

FORMS = ("matrix", "gram")
many = settings(max_examples=40, deadline=None, derandomize=True)

def close(x, y): return math.isclose(x, y, rel_tol=1e-10, abs_tol=1e-14)

def make(seed: int, N: int, d: int, spread: float = 1.0, dtype=np.float64):
    "Triples around common queries, so that margins of both signs and of all sizes occur."
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((N, d))
    p, n = (q + spread * rng.uniform(0, 2, (N, 1)) * rng.standard_normal((N, d)) for _ in range(2))
    return q.astype(dtype), p.astype(dtype), n.astype(dtype), rng.random(N)

@st.composite
def triples(draw, least=1):
    return make(draw(st.integers(0, 2**31)), draw(st.integers(least, 40)), draw(st.integers(2, 24)), draw(st.sampled_from([0.05, 0.5, 1.0, 3.0])))

@st.composite
def configs(draw):
    product = draw(st.sampled_from(FACTORS["product"]))
    plain = product == "a*l"
    return ECIConfig(product=product, consistency=draw(st.sampled_from(["sigmoid", "step", "none"])) if plain else "sigmoid", locality=draw(st.sampled_from(FACTORS["locality"])) if plain else "margin",
        overlap=draw(st.sampled_from(["query", "none"])), residual=draw(st.sampled_from(FACTORS["residual"])), gain=draw(st.sampled_from([1.0, "d", "1/tau^2", 0.3])), tau=draw(st.sampled_from([0.02, 0.05, 0.5])))

# --- the reference: one triple at a time, no shared code

def unit(v): return [x / math.sqrt(sum(y * y for y in v)) for x in v]
def dot(u, v): return math.fsum(x * y for x, y in zip(u, v))
def sigmoid(x): return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))

def one_triple(q, p, n, rho, c: ECIConfig, mean=None, phi=None):
    "(weight, residual) of one triple, from the definitions."
    q, p, n = unit(q), unit(p), unit(n)
    if mean is not None: q, p, n = (unit([x - y for x, y in zip(v, mean)]) for v in (q, p, n))
    m = dot(q, p) - dot(q, n)
    a = {"sigmoid": sigmoid(m / c.tau), "step": 1.0 if m >= 0 else 0.0, "none": 1.0, "calibrated": None if phi is None else 1 - phi}[c.consistency]
    l = {"margin": math.exp(-max(m, 0) / c.tau), "cosine": (1 + dot(q, n)) / 2, "none": 1.0}[c.locality]
    u = {"a*l": lambda: a * l, "fisher": lambda: sigmoid(m / c.tau) * sigmoid(-m / c.tau), "gradient": lambda: sigmoid(-m / c.tau)}[c.product]()
    r = [y - dot(p, n) * x for x, y in zip(p, n)] if c.residual == "tangent" else [y - x for x, y in zip(p, n)]
    if c.residual == "unit": r = unit(r) if any(r) else r
    return u * (1.0 if c.overlap == "none" else rho), r

def reference(q, p, n, rho, c: ECIConfig = ECIConfig(), mean=None, phi=None):
    "The score, summed triple by triple; log det by LU of I + gain*M."
    q, p, n = (x.astype(float).tolist() for x in (q, p, n))
    d = len(q[0]); M = np.zeros((d, d))
    for i in range(len(q)):
        w, r = one_triple(q[i], p[i], n[i], float(rho[i]), c, mean, None if phi is None else phi[i])
        M += w * np.outer(r, r) / len(q)
    return np.linalg.slogdet(np.eye(d) + {"d": d, "1/tau^2": c.tau**-2}.get(c.gain, c.gain) * M)[1], M

@many
@given(triples(), configs())
def test_reference(t, c):
    "LU of I + M is good to about 1e-15 absolute, which the tolerance allows for."
    assert math.isclose(eci_score(*t).value, reference(*t)[0], rel_tol=1e-10, abs_tol=1e-13)
    expected, M = reference(*t, c)
    for form in FORMS:
        s = eci_score(*t, config=c, form=form)
        assert math.isclose(s.value, expected, rel_tol=1e-10, abs_tol=1e-13)
        assert close(s.trace, c.gain_for(t[0].shape[1]) * np.trace(M)) and close(s.per_dim, s.value / t[0].shape[1])
    assert np.allclose(information_matrix(residuals(t[1], t[2], c), factors(*t, c).w), M, rtol=1e-10, atol=1e-14)

@many
@given(triples(least=3), st.booleans())
def test_reference_centred(t, given_mean):
    q, p, n, rho = t
    own = np.mean([unit(v) for v in [*p.tolist(), *n.tolist()]], axis=0)
    mean = np.full(q.shape[1], 0.1) if given_mean else None
    c = ECIConfig(space="centred")
    expected = reference(*t, c, mean=(own if mean is None else mean).tolist())[0]
    for form in FORMS: assert math.isclose(eci_score(*t, config=c, mean=mean, form=form).value, expected, rel_tol=1e-10, abs_tol=1e-13)
    assert np.allclose(mean_vector(p, n), own, atol=1e-14)

def test_digits_where_log_det_has_none():
    "log det of I + M would lose what a tiny M holds; log1p keeps it."
    q, p, n, rho = make(1, 30, 8)
    s = eci_score(q, p, n, rho * 1e-12)
    exact = math.fsum(x - x * x / 2 for x in s.spectrum)
    assert math.isclose(s.value, exact, rel_tol=1e-13) and math.isclose(s.value, s.trace, rel_tol=1e-10) and s.value < 1e-12

# --- exact properties (DESIGN, section 3), in both matrix forms

@many
@given(triples(), configs(), st.sampled_from(FORMS), st.integers(0, 99), st.integers(2, 4))
def test_order_and_repetition(t, c, form, seed, times):
    value = eci_score(*t, config=c, form=form).value
    order = np.random.default_rng(seed).permutation(len(t[3]))
    assert close(eci_score(*(x[order] for x in t), config=c, form=form).value, value)
    repeated = eci_score(*(np.concatenate([x] * times) for x in t), config=c, form=form)
    assert close(repeated.value, value) and repeated.n == times * len(t[3])

@many
@given(triples(), configs(), st.sampled_from(FORMS), st.integers(0, 99))
def test_rotation(t, c, form, seed):
    d = t[0].shape[1]
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    assert close(eci_score(*(x @ turn for x in t[:3]), t[3], config=c, form=form).value, eci_score(*t, config=c, form=form).value)

@many
@given(triples(), st.integers(0, 99))
def test_length_of_the_vectors_does_not_count(t, seed):
    scale = np.exp(np.random.default_rng(seed).uniform(-20, 20, (3, len(t[3]), 1)))
    assert close(eci_score(*(x * s for x, s in zip(t[:3], scale)), t[3]).value, eci_score(*t).value)

@many
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(2, 16), configs(), st.sampled_from(FORMS))
def test_pool_is_at_least_the_mean_of_its_parts(seed, half, d, c, form):
    t = make(seed, 2 * half, d)
    parts = [eci_score(*(x[k] for x in t), config=c, form=form).value for k in (slice(0, half), slice(half, None))]
    assert eci_score(*t, config=c, form=form).value >= np.mean(parts) * (1 - 1e-10) - 1e-14

@many
@given(triples(), configs(), st.sampled_from(FORMS))
def test_a_negative_equal_to_its_positive_contributes_nothing(t, c, form):
    q, p, n, rho = t
    assert abs(eci_score(q, p, p, rho, config=c, form=form).value) < 1e-14 * max(1, c.gain_for(q.shape[1]))
    # beside others it only counts as a triple
    doubled = eci_score(np.vstack([q, q]), np.vstack([p, p]), np.vstack([n, p]), np.r_[rho, rho], config=dataclasses.replace(c, gain=2 * c.gain_for(q.shape[1])), form=form).value
    assert close(doubled, eci_score(*t, config=c, form=form).value)

@many
@given(triples(), configs(), st.sampled_from(FORMS))
def test_between_trace_and_its_second_order(t, c, form):
    s = eci_score(*t, config=c, form=form)
    square = float(((c.gain_for(t[0].shape[1]) * s.spectrum)**2).sum())
    slack = 1e-10 * s.trace + 1e-14
    assert -slack <= s.trace - s.value <= square / 2 + slack and -slack <= s.diversity_loss <= 1

@many
@given(triples(), configs())
def test_both_forms_agree(t, c):
    matrix, gram, auto = (eci_score(*t, config=c, form=f) for f in (*FORMS, "auto"))
    for name in ("value", "per_dim", "trace"): assert close(getattr(matrix, name), getattr(gram, name)) and close(getattr(matrix, name), getattr(auto, name))
    assert matrix.spectrum.shape == gram.spectrum.shape == (t[0].shape[1],)
    assert np.allclose(matrix.spectrum, gram.spectrum, rtol=1e-10, atol=1e-14) and (np.diff(matrix.spectrum) <= 0).all() and (gram.spectrum >= 0).all()
    assert math.isclose(matrix.effective_rank, gram.effective_rank, rel_tol=1e-8, abs_tol=1e-8) and matrix.factor_means == gram.factor_means

@many
@given(triples(), st.sampled_from([0.1, 1.0, 30.0, 1e4]), st.sampled_from(FORMS))
def test_range(t, gain, form):
    d, value = t[0].shape[1], eci_score(*t, gain=gain, form=form).value
    assert 0 <= value <= d * math.log1p(gain / (2 * d)) * (1 + 1e-10) < gain / 2 * (1 + 1e-9)

@many
@given(triples(), configs(), st.integers(0, 99), st.sampled_from([1, 3, 7, 100]), st.sampled_from([(4, 8), (512, 8192)]))
def test_chunked_and_merged(t, c, seed, size, buffers):
    "Chunks in any order, spread over two accumulators; with small inner buffers as well."
    expected = eci_score(*t, config=c)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S, "_BLOCK", buffers[0]); patch.setattr(S, "_CHUNK", buffers[1])
        one, two = Accumulator(t[0].shape[1], c), Accumulator(t[0].shape[1], c)
        starts = np.random.default_rng(seed).permutation(range(0, len(t[3]), size))
        for k, i in enumerate(starts): (one, two)[k % 2].add(*(x[i:i + size] for x in t))
        s, again = one.merge(two).result(), eci_score(*t, config=c)
        assert np.allclose(weighted_residuals(*t, c).T @ weighted_residuals(*t, c), one.total, rtol=1e-10, atol=1e-14)
    for name in ("value", "trace"): assert close(getattr(s, name), getattr(expected, name)) and close(getattr(again, name), getattr(expected, name))
    assert s.n == expected.n and all(close(s.factor_means[k], v) for k, v in expected.factor_means.items())

@pytest.mark.parametrize("N", [511, 512, 513, 1024, 8192, 8193])
def test_buffer_edges(N):
    t = make(3, N, 4)
    R, w = residuals(*t[1:3]), factors(*t).w
    expected = np.log1p(np.linalg.eigvalsh((R * w[:, None]).T @ R / N)).sum()
    assert close(eci_score(*t).value, expected) and len(R) == len(w) == N and weighted_residuals(*t).shape == (N, 4)

# --- factors

@many
@given(triples(), st.sampled_from([1e-3, 0.05, 1.0]))
def test_fisher_lies_between_u_and_half_of_it(t, tau):
    u, fisher = factors(*t, ECIConfig(tau=tau, overlap="none")).w, factors(*t, ECIConfig(tau=tau, overlap="none", product="fisher")).w
    m = factors(*t).margin
    assert (u / 2 <= fisher * (1 + 1e-12) + 1e-300).all() and (fisher <= u * (1 + 1e-12) + 1e-300).all() # denormal numbers have few digits
    assert np.allclose(u, [sigmoid(-abs(x) / tau) for x in m], rtol=1e-10, atol=1e-300) and np.allclose(fisher, u * (1 - u), rtol=1e-10, atol=1e-300)

def test_factors_by_hand():
    q, p, n = np.array([[1.0, 0]]), np.array([[0.8, 0.6]]), np.array([[0.6, 0.8]])
    f = factors(q, p, n, [0.5], ECIConfig(tau=0.1))
    assert np.allclose([f.margin, f.a, f.l, f.rho, f.w, f.similarity, f.hardness], np.array([[0.2, 0.8807970779778823, 0.1353352832366127, 0.5, 0.0596014611, 0.8, 0.6]]).T, rtol=1e-9)
    assert np.allclose(residuals(p, n), [[-0.168, 0.224]], atol=1e-15) and np.allclose(residuals(p, n, ECIConfig(residual="difference")), [[-0.2, 0.2]])
    assert np.allclose(residuals(p, n, ECIConfig(residual="unit")), [[-(0.5**0.5), 0.5**0.5]]) and not residuals(p, p, ECIConfig(residual="unit")).any()
    assert factors(q, n, p, [1], ECIConfig(consistency="step")).a == 0 and factors(q, p, p, [1], ECIConfig(consistency="step")).a == 1
    assert np.isclose(factors(q, p, n, [1], ECIConfig(locality="cosine")).l, 0.8)

@many
@given(triples())
def test_residuals_are_orthogonal_to_the_positive(t):
    p = t[1] / np.linalg.norm(t[1], axis=1, keepdims=True)
    assert np.abs((residuals(t[1], t[2]) * p).sum(1)).max() < 1e-14

@pytest.mark.parametrize("margin", [2.0, -2.0, 0.0])
@pytest.mark.parametrize("product", FACTORS["product"])
def test_extreme_margins_are_finite(margin, product):
    q = np.array([[1.0, 0, 0]]); p, n = (q, -q) if margin > 0 else (-q, q) if margin < 0 else (q, q)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        f = factors(q, p, n, [1], ECIConfig(tau=1e-3, product=product)); s = eci_score(q, p, n, [1], config=ECIConfig(tau=1e-3, product=product, gain="1/tau^2"))
    assert f.margin == margin and all(np.isfinite(x).all() for x in (f.a, f.l, f.w)) and np.isfinite(s.value) and s.value >= 0
    assert f.w == {"a*l": 0.5 * (margin == 0), "fisher": 0.25 * (margin == 0), "gradient": [0.5, 0, 1][int(np.sign(margin))]}[product]

def test_rounding_of_the_margin_does_not_matter_for_lengths():
    "Vectors too long or too short to be squared are still directions."
    q, p, n, rho = make(5, 6, 4)
    assert close(eci_score(q * 1e200, p * 1e-200, n, rho).value, eci_score(q, p, n, rho).value)

def test_all_weights_zero():
    q, p, n, _ = make(6, 5, 3)
    s = eci_score(q, p, n, np.zeros(5))
    assert (s.value, s.trace, s.effective_rank, s.diversity_loss) == (0, 0, 0, 0)

def test_effective_rank():
    "Equal eigenvalues in three of four directions: rank 3."
    q, p = np.tile([1.0, 0, 0, 0], (3, 1)), np.tile([1.0, 0, 0, 0], (3, 1))
    s = eci_score(q, p, np.eye(4)[1:], np.ones(3))
    assert np.isclose(s.effective_rank, 3) and np.count_nonzero(s.spectrum > 1e-12) == 3

# --- input types

@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_dtypes_and_memory_maps(tmp_path, dtype):
    q, p, n, rho = make(7, 600, 5, dtype=dtype)
    expected = eci_score(*(x.astype(np.float64) for x in (q, p, n)), rho).value
    assert close(eci_score(q, p, n, rho).value, expected)
    assert close(eci_score(np.asfortranarray(q), p[:, ::-1][:, ::-1], n.tolist(), rho.tolist()).value, expected)
    if dtype == np.longdouble: return
    np.save(tmp_path / "n.npy", n)
    before = n.copy()
    mapped = np.load(tmp_path / "n.npy", mmap_mode="r")
    assert close(eci_score(q, p, mapped, rho).value, expected) and (n == before).all()

def test_torch():
    torch = pytest.importorskip("torch")
    t32 = make(8, 700, 6, dtype=np.float32)
    tensors = [torch.from_numpy(x) for x in t32[:3]]
    expected = eci_score(*t32)
    for rho in (t32[3], torch.from_numpy(t32[3])): assert close(eci_score(*tensors, rho).value, expected.value)
    assert close(eci_score(tensors[0].requires_grad_(), t32[1], tensors[2].double(), t32[3]).value, expected.value)
    half = [x.detach().bfloat16() for x in tensors]
    assert close(eci_score(*half, t32[3]).value, eci_score(*(x.double().numpy() for x in half), t32[3]).value)
    q, p = tensors[0].detach(), tensors[1]
    assert calibrate(q, p) == calibrate(*t32[:2]) and close(Accumulator(6).add(q, p, tensors[2], t32[3]).result().value, expected.value)
    with pytest.raises(InputError, match=r"n \(negatives\): row 650 \(counted from 0\) holds NaN"):
        bad = tensors[2].clone(); bad[650, 1] = float("nan"); eci_score(q, p, bad, t32[3])
    if torch.cuda.is_available(): assert close(eci_score(*(x.detach().cuda() for x in tensors), t32[3]).value, expected.value)

def test_no_torch_is_imported():
    code = "import sys, numpy as np; from eci_sem.score import *; x = np.eye(4); eci_score(x, x, x[::-1], np.ones(4)); bad = [m for m in ('torch', 'pandas', 'matplotlib') if m in sys.modules]; print(bad); sys.exit(bool(bad))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr

# --- resampling

@many
@given(triples(), st.sampled_from([1.0, 50.0]), st.integers(0, 99))
def test_resampled_rows(t, gain, seed):
    q, p, n, rho = t
    c, N = ECIConfig(gain=gain), len(rho)
    X = weighted_residuals(*t, c)
    assert math.isclose(logdet_from_rows(X, gain=gain), eci_score(*t, config=c).value, rel_tol=1e-10, abs_tol=1e-13)
    counts = np.random.default_rng(seed).multinomial(N, [1 / N] * N, size=3)
    drawn = [eci_score(*(np.repeat(x, k, axis=0) for x in t), config=c).value for k in counts]
    assert np.allclose(logdet_from_rows(X, counts, gain), drawn, rtol=1e-10, atol=1e-13)
    # the same by blocks of queries, two rows each
    block = np.arange(N) // 2; B = block[-1] + 1
    a = Accumulator(q.shape[1], c, blocks=int(B)).add(*t, query_block=block)
    drawn = np.random.default_rng(seed).multinomial(B, [1 / B] * B, size=2)
    assert np.allclose(a.block_scores(drawn), logdet_from_rows(X, drawn[:, block], gain), rtol=1e-10, atol=1e-13)
    assert close(a.block_totals[:, np.cumsum([0, *range(q.shape[1], 1, -1)])].sum(), np.trace(a.total)) and a.block_counts.sum() == N

def test_blocks_merge_in_any_order():
    t = make(9, 30, 4); block = np.arange(30) % 5
    whole = Accumulator(4, blocks=5).add(*t, query_block=block)
    parts = [Accumulator(4, blocks=5).add(*(x[k] for x in t), query_block=block[k]) for k in (slice(20, 30), slice(0, 3), slice(3, 20))]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert np.allclose(merged.block_totals, whole.block_totals, rtol=1e-12, atol=1e-16) and (merged.block_counts == whole.block_counts).all()
    assert close(merged.result().value, whole.result().value) and merged.result().factor_means.keys() == whole.result().factor_means.keys()

# --- calibration and the net score

def similar(rng, cosines, d=32):
    "Pairs of unit vectors with the given cosines."
    q = rng.standard_normal((len(cosines), d)); q /= np.linalg.norm(q, axis=1, keepdims=True)
    other = rng.standard_normal(q.shape); other -= (other * q).sum(1, keepdims=True) * q
    return q, cosines[:, None] * q + np.sqrt(1 - cosines[:, None]**2) * other / np.linalg.norm(other, axis=1, keepdims=True)

@pytest.mark.parametrize("form", ["normal", "logistic", "kde"])
def test_calibration_recovers_normals(form):
    rng = np.random.default_rng(0)
    q, p = similar(rng, rng.normal(0.6, 0.1, 3000), d=64)
    c = calibrate(q, p, form=form)
    assert abs(c.mu1 - 0.6) < 0.01 and abs(c.sd1 - 0.1) < 0.005 and abs(c.mu0) < 0.005 and abs(c.sd0 - 1 / 8) < 0.005 and (c.positives, c.pairs, c.form) == (3000, 20_000, form)
    assert calibrate(q, p, form=form) == c and calibrate(q, p, seed=1, form=form) != c
    # where both densities are well sampled, all forms see the same ratio
    if form == "kde": assert np.allclose(c.log_ratio([0.25, 0.3, 0.35]), dataclasses.replace(c, form="normal").log_ratio([0.25, 0.3, 0.35]), atol=0.5)

def test_calibration_in_centred_space():
    "With a common direction, raw similarities are all high; centring takes it out."
    rng = np.random.default_rng(1)
    q, p = similar(rng, rng.normal(0.6, 0.1, 400))
    common = np.full(32, 2.0)
    raw, centred = calibrate(q + common, p + common), calibrate(q + common, p + common, mean=mean_vector(p + common))
    assert raw.mu0 > 0.9 and abs(centred.mu0) < 0.1 and centred.mu1 > 0.5 and centred.mean.shape == (32,) and "centred" in repr(centred)
    unit_rows = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    a, b = (unit_rows(unit_rows(x + common) - centred.mean) for x in (q, p))
    assert np.isclose(centred.mu1, (a * b).sum(1).mean(), rtol=1e-9)

def test_background_never_holds_a_relevant_pair():
    "Relevant pairs get similarity 1, so one of them among the background would show in its mean."
    d = 40
    q = p = np.eye(d); p = p.copy(); answers = {(0, 1), (3, 7), (7, 3)}
    q = q.copy()
    for i, j in answers: q[i, j] = 5.0
    matrix = np.zeros((d, d), bool); sets = [set() for _ in range(d)]
    for i, j in answers: matrix[i, j] = True; sets[i].add(j)
    for relevant in (matrix, sets, lambda i, j: (i, j) in answers):
        i, j = S._background(q, p, relevant, 20_000, 0)
        assert len(i) == d * (d - 1) - 3 and not answers & set(zip(i.tolist(), j.tolist())) and (i != j).all() and len(set(zip(i.tolist(), j.tolist()))) == len(i)
        with pytest.raises(InputError, match="similarities that are all equal"): calibrate(q, p, relevant)
    q[5], p[9] = q[2], p[8] # one query twice, one positive twice
    i, j = S._background(q, p, None, 20_000, 0)
    assert not {(5, 2), (2, 5), (8, 9), (9, 8)} & set(zip(i.tolist(), j.tolist())) and len(i) == d * (d - 1) - 4
    assert len(S._background(q, p, None, 100, 0)[0]) == 100

def test_false_negative_probability_by_hand():
    c = Calibration(0.6, 0.2, 0.3, 0.2)
    L = math.exp((1**2 - 0.5**2) / 2) # z0 = 1, z1 = -0.5
    assert math.isclose(float(false_negative_probability(0.5, c, 0.01)), 0.01 * L / (0.01 * L + 0.99), rel_tol=1e-12)
    # different deviations, s above the cap: taken at mu1, where f1 = 1/sd1 and f0 = exp(-(0.3/0.1)^2/2)/sd0
    c = Calibration(0.6, 0.2, 0.3, 0.1); L = 0.1 / 0.2 * math.exp(4.5)
    assert math.isclose(float(false_negative_probability(0.9, c, 0.01)), 0.01 * L / (0.01 * L + 0.99), rel_tol=1e-12)
    # logistic at s = mu1: density 1/(4 scale) over exp(-z)/(scale (1 + exp(-z))^2), scale = sd*sqrt(3)/pi
    z = 0.3 / (0.2 * math.sqrt(3) / math.pi); L = (1 + math.exp(-z))**2 / (4 * math.exp(-z))
    assert math.isclose(float(false_negative_probability(0.6, Calibration(0.6, 0.2, 0.3, 0.2, "logistic"), 0.01)), 0.01 * L / (0.01 * L + 0.99), rel_tol=1e-12)
    assert false_negative_probability(0.5, c, 0.0) == 0 and false_negative_probability(0.5, c, 1.0) == 1

@many
@given(st.floats(-0.5, 0.5), st.floats(0.01, 0.5), st.floats(0.005, 0.5), st.floats(0.005, 0.5), st.sampled_from(["normal", "logistic"]), st.floats(1e-9, 0.4))
def test_false_negative_probability_never_falls(mu0, gap, sd1, sd0, form, prior):
    c = Calibration(mu0 + gap, sd1, mu0, sd0, form); s = np.linspace(-1, 1, 201)
    phi = false_negative_probability(s, c, prior)
    assert ((phi >= 0) & (phi <= 1)).all() and (np.diff(phi) >= -1e-10 * phi[1:] - 1e-300).all() and (false_negative_probability(s, c, prior * 2) >= phi).all()
    assert (phi[s >= c.mu1] == phi[-1]).all()

def test_kde_never_falls():
    rng = np.random.default_rng(2)
    c = calibrate(*similar(rng, rng.normal(0.5, 0.15, 200)), form="kde")
    assert (np.diff(c.log_ratio(np.linspace(-1, 1, 999))) >= 0).all() and c.log_ratio(1) == c.log_ratio(c.mu1) > c.log_ratio(0)

def test_calibrated_consistency():
    q, p, n, rho = make(10, 20, 6)
    c, cal = ECIConfig(consistency="calibrated"), Calibration(0.7, 0.1, 0.2, 0.15)
    f = factors(q, p, n, rho, c, cal, 0.01)
    assert np.allclose(f.phi, false_negative_probability(f.hardness, cal, 0.01), rtol=1e-12) and np.allclose(f.a, 1 - f.phi) and np.allclose(f.w, f.a * f.l * rho)
    prior = np.linspace(0, 0.5, 20); phi = factors(q, p, n, rho, c, cal, prior).phi
    assert np.allclose(phi, [false_negative_probability(h, cal, x) for h, x in zip(f.hardness, prior)])
    s = eci_score(q, p, n, rho, config=c, calibration=cal, prior=prior)
    assert math.isclose(s.value, reference(q, p, n, rho, c, phi=phi)[0], rel_tol=1e-10)
    a = Accumulator(6, c, calibration=cal, prior=0.01).add(q[:9], p[:9], n[:9], rho[:9]).add(q[9:], p[9:], n[9:], rho[9:])
    assert close(a.result().value, eci_score(q, p, n, rho, config=c, calibration=cal, prior=0.01).value)
    assert "without_consistency" in baselines(q, p, n, rho, c, calibration=cal, prior=0.01)

@many
@given(triples(least=3), st.floats(0, 5), st.sampled_from([None, 1]), st.sampled_from(FACTORS["residual"]))
def test_net_score(t, penalty, whole, residual):
    q, p, n, rho = t
    mean, cal = np.full(q.shape[1], 0.05), Calibration(0.6, 0.2, 0.1, 0.2, mean=np.full(q.shape[1], 0.05))
    net = eci_net(q, p, n, None if whole else rho, cal, 0.05, penalty=penalty, residual=residual)
    true = false = 0.0
    for i in range(len(rho)):
        w, r = one_triple(q[i], p[i], n[i], 1.0 if whole else float(rho[i]), ECIConfig(product="gradient", space="centred", residual=residual), mean)
        a, b = (unit([x - y for x, y in zip(unit(v), mean)]) for v in (q[i], n[i]))
        phi = float(false_negative_probability(dot(a, b), cal, 0.05))
        true, false = true + (1 - phi) * w * np.outer(r, r) / len(rho), false + phi * w * np.outer(r, r) / len(rho)
    expected = [np.linalg.slogdet(np.eye(q.shape[1]) + M)[1] for M in (true, false)]
    assert np.allclose([net.true, net.false], expected, rtol=1e-10, atol=1e-13) and close(net.value, net.true - penalty * net.false) and 0 <= net.expected_false <= 1
    both = net_weights(q, p, n, None if whole else rho, cal, 0.05); R = residuals(p, n, ECIConfig(space="centred", residual=residual), mean=mean)
    assert np.allclose([information_matrix(R, w) for w in both], [true, false], rtol=1e-9, atol=1e-13)

def test_net_score_space_of_the_calibration():
    "A raw calibration reads raw similarities; the centre is then the mean of the passages at hand."
    q, p, n, rho = make(11, 30, 5)
    cal = calibrate(q, p)
    assert np.isclose(eci_net(q, p, n, rho, cal, 0.02).expected_false, false_negative_probability(factors(q, p, n, rho).hardness, cal, 0.02).mean())
    assert eci_net(q, p, n, rho, cal, 0.02) == eci_net(q, p, n, rho, cal, 0.02, mean=mean_vector(p, n))
    assert eci_net(q, p, n, rho, cal, 0.0).false == 0 and eci_net(q, p, n, rho, cal, 1.0).true == 0

# --- baselines

def test_eci_v1_published_rows():
    rows = [(50, .577, .199, 1.16), (25, .606, .175, 0.88), (3, .656, .110, 0.26), (75, .587, .192, 1.25), (53, .620, .152, 0.97), (78, .621, .152, 1.06), (28, .631, .143, 0.79)]
    assert all(abs(eci_v1(k, s, d) - value) < 0.0075 for k, s, d, value in rows)
    assert math.isnan(eci_v1(3, 0.5, -0.1)) and math.isnan(eci_v1(3, 0.0, 0.1))

def test_baselines():
    q, p, n, rho = t = make(12, 50, 6, spread=0.5)
    b, f = baselines(*t, k=4), factors(*t)
    assert list(b) == ["eci_v1", "hardness", "margin", "minus_margin", "false_negative_rate", "lexical_overlap", "trace", "without_consistency", "without_locality", "without_overlap", "without_projection"]
    assert close(b["hardness"], f.hardness.mean()) and close(b["margin"], f.margin.mean()) and b["minus_margin"] == -b["margin"] and b["false_negative_rate"] == (f.margin < 0).mean()
    assert close(b["lexical_overlap"], (1 - rho).mean()) and close(b["trace"], eci_score(*t).trace)
    for name, change in dict(consistency=dict(consistency="none"), locality=dict(locality="none"), overlap=dict(overlap="none"), projection=dict(residual="difference")).items():
        assert math.isclose(b[f"without_{name}"], reference(*t, ECIConfig(**change))[0], rel_tol=1e-10)
    assert np.isclose(b["eci_v1"], math.log(5) * 2 * b["hardness"] * b["margin"] / (b["hardness"] + b["margin"]), equal_nan=True) or b["margin"] <= 0
    other = baselines(*t, ECIConfig(product="gradient"))
    assert math.isclose(other["without_product"], reference(*t, ECIConfig(consistency="none", locality="none"))[0], rel_tol=1e-10) and "without_locality" not in other

# --- how results print

def test_prints():
    t = make(13, 1200, 8)
    s = eci_score(*t); text = repr(s).splitlines()
    assert text[0] == f"ECI_sem {s.value:.4f} ({s.per_dim * 1e6:.0f}e-6 per dimension), 1,200 triples, 8 dimensions" and text[1].startswith("trace ") and text[2].startswith("means: margin ")
    assert set(s.as_dict()) == {"value", "per_dim", "trace", "diversity_loss", "effective_rank", "n", "margin", "a", "l", "rho", "w", "similarity", "hardness", "false_negative_rate"}
    assert all(type(v) in (float, int) for v in s.as_dict().values()) and "1,200 triples" in repr(Accumulator(8).add(*t))
    assert repr(eci_net(*t, Calibration(0.5, 0.1, 0.1, 0.1), 0.01)).startswith("ECI_net ")

# --- bad input, by its wording

q, p, n, rho = make(14, 6, 4)
def nan_at(x, i, j, v=np.nan): x = x.copy(); x[i, j] = v; return x
def zero_at(x, i): x = x.copy(); x[i] = 0; return x

@pytest.mark.parametrize("call, message", [
    (lambda: eci_score(q[:5], p, n, rho), r"unequal shapes: q \(5, 4\), p \(6, 4\), n \(6, 4\); expected one shape \(N, d\)"),
    (lambda: eci_score(q, p[:, :3], n, rho), r"unequal shapes: .*p \(6, 3\)"),
    (lambda: eci_score(q[0], p, n, rho), r"q \(queries\) has shape \(4,\), expected \(N, d\)"),
    (lambda: eci_score(q, p, n.astype(str), rho), r"n \(negatives\) has dtype <U\d+, expected floats"),
    (lambda: eci_score(q[:0], p[:0], n[:0], rho[:0]), r"q \(queries\) has shape \(0, 4\): at least 1 row"),
    (lambda: eci_score(q, nan_at(p, 3, 2), n, rho), r"p \(positives\): row 3 \(counted from 0\) holds NaN or infinity \(1 of 4 values\)"),
    (lambda: eci_score(q, p, nan_at(n, 5, 0, -np.inf), rho), r"n \(negatives\): row 5 \(counted from 0\) holds NaN or infinity"),
    (lambda: eci_score(zero_at(q, 1), p, n, rho), r"q \(queries\): row 1 \(counted from 0\) is a zero vector, which has no direction"),
    (lambda: eci_score(q, p, n, rho + 1), r"rho is 1\.\d+ in row 0 \(counted from 0\), expected a number in \[0, 1\] .* 6 of 6 rows"),
    (lambda: eci_score(q, p, n, np.r_[rho[:5], np.nan]), r"rho is nan in row 5"),
    (lambda: eci_score(q, p, n, rho[:4]), r"rho has shape \(4,\), expected \(6,\)"),
    (lambda: eci_score(q, p, n, None), "rho is missing: overlap 'query' needs"),
    (lambda: eci_score(q, p, n, rho, tau=0), "tau is 0, expected a positive finite number"),
    (lambda: eci_score(q, p, n, rho, tau=-0.05), "tau is -0.05, expected a positive finite number"),
    (lambda: eci_score(q, p, n, rho, tau="0.05"), r"tau is '0.05' \(str\), expected a positive number"),
    (lambda: eci_score(q, p, n, rho, gain=float("inf")), "gain is inf, expected a positive finite number"),
    (lambda: eci_score(q, p, n, rho, gain="D"), "unknown gain 'D'"),
    (lambda: eci_score(q, p, n, rho, tau=0.05, config=ECIConfig()), r"config, which holds tau=0.05, and tau=0.05 were both given"),
    (lambda: eci_score(q, p, n, rho, gain=1.0, config=ECIConfig(gain="d")), r"config, which holds gain='d', and gain=1.0 were both given.*dataclasses.replace\(config, gain=1.0\)"),
    (lambda: eci_score(q, p, n, rho, config=dict(tau=0.1)), "config is dict, expected an ECIConfig"),
    (lambda: eci_score(q, p, n, rho, form="grm"), "unknown form 'grm'. Did you mean 'gram'"),
    (lambda: ECIConfig(consistency="sigmoïd"), "unknown consistency 'sigmoïd'. Did you mean 'sigmoid'"),
    (lambda: ECIConfig(locality="margins"), "unknown locality 'margins'. Did you mean 'margin'"),
    (lambda: ECIConfig(overlap="jacard"), "unknown overlap 'jacard'. Did you mean 'jaccard'"),
    (lambda: ECIConfig(product="fisher", consistency="none"), "product 'fisher' replaces a\\*l"),
    (lambda: eci_score(q, p, n, rho, config=ECIConfig(consistency="calibrated")), "calibrated consistency needs a calibration and a prior; missing: calibration and prior"),
    (lambda: Accumulator(4, ECIConfig(consistency="calibrated"), prior=0.1), "missing: calibration"),
    (lambda: factors(q, p, n, rho, None, Calibration(0.5, 0.1, 0.1, 0.1), 0.1), "a calibration or prior was given, but consistency is 'sigmoid'"),
    (lambda: eci_score(q, p, n, rho, config=ECIConfig(consistency="calibrated"), calibration=0.5, prior=0.1), "calibration is float, expected the Calibration"),
    (lambda: eci_net(q, p, n, rho, None, 0.1), "missing: calibration"),
    (lambda: eci_net(q, p, n, rho, Calibration(0.5, 0.1, 0.1, 0.1), 1.5), r"prior is 1.5, expected a probability in \[0, 1\]"),
    (lambda: eci_net(q, p, n, rho, Calibration(0.5, 0.1, 0.1, 0.1), [0.1, 0.2]), r"prior has shape \(2,\), expected one number or \(6,\)"),
    (lambda: eci_net(q, p, n, rho, Calibration(0.5, 0.1, 0.1, 0.1), 0.1, penalty=-1), "penalty is -1, expected a finite number"),
    (lambda: eci_score(q, p, n, rho, mean=np.zeros(4)), "a mean was given, but space is 'raw'"),
    (lambda: eci_score(q, p, n, rho, config=ECIConfig(space="centred"), mean=np.zeros(3)), r"mean has shape \(3,\), expected \(4,\)"),
    (lambda: eci_score(q, p, zero_at(n, 2), rho, config=ECIConfig(space="centred")), r"n \(negatives\): row 2 \(counted from 0\) is a zero vector"),
    (lambda: eci_score(q[:1], p[:1], p[:1], rho[:1], config=ECIConfig(space="centred")), r"p \(positives\): row 0 \(counted from 0\) equals the mean passage vector"),
    (lambda: mean_vector(p, n[:, :2]), "mean_vector needs arrays of one dimension"),
    (lambda: Accumulator(4, ECIConfig(space="centred")), "space 'centred' needs the mean passage vector up front"),
    (lambda: Accumulator(0), "dim is 0, expected a whole number of at least 1"),
    (lambda: Accumulator(5).add(q, p, n, rho), "the embeddings have 4 dimensions, this accumulator has 5"),
    (lambda: Accumulator(4).result(), "nothing was added: at least 1 triple"),
    (lambda: Accumulator(4, blocks=2).add(q, p, n, rho), "this accumulator has 2 query blocks, so query_block must be given"),
    (lambda: Accumulator(4).add(q, p, n, rho, query_block=np.zeros(6, int)), r"this accumulator has 0 query blocks, so query_block must be left out \(or make it with blocks=\)"),
    (lambda: Accumulator(4, blocks=2).add(q, p, n, rho, query_block=np.arange(6)), "query_block runs from 0 to 5, expected 0 to 1"),
    (lambda: Accumulator(4, blocks=2).add(q, p, n, rho, query_block=np.zeros(6)), "query_block has shape .* dtype float64, expected .* whole numbers"),
    (lambda: Accumulator(4).merge(Accumulator(5)), "different dim: 4 here, 5 there"),
    (lambda: Accumulator(4).merge(Accumulator(4, ECIConfig(tau=0.1))), "different config"),
    (lambda: Accumulator(4).merge(Accumulator(4, blocks=3)), "different blocks: 0 here, 3 there"),
    (lambda: Accumulator(4, ECIConfig(space="centred"), mean=np.zeros(4)).merge(Accumulator(4, ECIConfig(space="centred"), mean=np.ones(4))), "different mean passage vectors"),
    (lambda: logdet_from_rows(q, np.ones(5)), r"counts has shape \(5,\), expected \(6,\) or \(B, 6\)"),
    (lambda: logdet_from_rows(q, np.zeros(6)), "each resample must draw at least 1 row"),
    (lambda: information_matrix(nan_at(q, 0, 0), np.ones(6)), r"R \(residuals\) hold NaN"),
    (lambda: information_matrix(q, np.full(6, 2.0)), "w is 2 in row 0"),
    (lambda: calibrate(q[:1], p[:1]), "at least 2 labelled pairs, found 1"),
    (lambda: calibrate(q, -q), "labelled pairs are no more similar"),
    (lambda: calibrate(q, zero_at(p, 4)), r"p \(positives\): row 4 \(counted from 0\) is a zero vector"),
    (lambda: calibrate(q, p, pairs=0), "pairs is 0, expected a whole number of at least 2"),
    (lambda: calibrate(q, p, np.ones((6, 6), bool)), "only 0 background pairs are left among 6 labelled pairs"),
    (lambda: calibrate(q, p, [set()] * 5), r"relevant has shape \(5, 6\), expected \(6, 6\)"),
    (lambda: calibrate(q, p, form="norml"), "unknown form 'norml'. Did you mean 'normal'"),
    (lambda: Calibration(0.5, 0, 0.1, 0.1), "sd1 is 0, expected a positive finite number"),
    (lambda: Calibration(0.5, 0.1, 0.1, 0.1, "kde"), "make it with calibrate"),
    (lambda: eci_v1(0, 0.5, 0.1), "k is 0, expected a positive finite number"),
])
def test_errors(call, message):
    with pytest.raises(InputError, match=message): call()

def test_a_failed_add_adds_nothing():
    a = Accumulator(4, blocks=3).add(q, p, n, rho, query_block=np.arange(6) % 3)
    before = (a.n, a.total.copy(), a.block_totals.copy(), dict(a.sums))
    big = [np.tile(x, (200, 1)) for x in (q, p, n)]; big[2][1150, 0] = np.nan
    with pytest.raises(InputError, match="row 1150"): a.add(*big, np.tile(rho, 200), query_block=np.zeros(1200, int))
    assert a.n == before[0] and (a.total == before[1]).all() and (a.block_totals == before[2]).all() and a.sums == before[3]


@pytest.mark.parametrize("given, words", [(dict(tau=1e-200, gain="1/tau^2"), "tau is 1e-200, .*from 1e-6 to 1e6"), (dict(tau=1e9), "tau is 1e.09"), (dict(gain=1e308), r"gain is 1e\+308, .*from 1e-12 to 1e15"), (dict(gain=1e-300), "gain is 1e-300")])
def test_numbers_that_leave_no_digits_are_refused(given, words):
    with pytest.raises(InputError, match=words): ECIConfig(**given)


@pytest.mark.parametrize("given", [dict(tau=1e-6, gain="1/tau^2"), dict(tau=1e6, gain="1/tau^2"), dict(gain=1e15), dict(gain=1e-12)])
def test_at_the_bounds_there_is_a_score(given):
    rng = np.random.default_rng(0)
    q, p, n = (rng.normal(size=(40, 8)) for _ in range(3))
    for weights in (dict(), dict(consistency="step", locality="none")):
        score = eci_score(q, p, n, np.ones(40), config=ECIConfig(**given, **weights))
        assert np.isfinite(score.value) and score.value >= 0
