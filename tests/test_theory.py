"""The derivation: gradients and Fisher matrices against automatic differentiation, identities and bounds, information against quadrature."""
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import expit

from eci_sem.collection import InputError
from eci_sem.figures import save_figure
from eci_sem.linearised import gain_curve, score_scatter, step_error_lines
from eci_sem.score import ECIConfig, factors, residuals, weighted_residuals
from eci_sem.theory import ADAPTERS, adapter_kernel, adapter_matrix, adapter_steps, directions, fisher_matrix, gain_correction, information_gain, label_information, log_slope, loss_decrease, loss_gradient, partial_trace, pairwise_loss, quadrature_information, step_errors

TAU = 0.05


def unit(x): return x / np.linalg.norm(x, axis=-1, keepdims=True)


def triples(size=30, d=5, seed=0):
    "Queries, positives and negatives with margins of a few temperatures, some of them negative."
    rng = np.random.default_rng(seed)
    q, p, n = unit(rng.normal(size=(3, size, d)))
    return q, unit(q + 0.6 * p), unit(q + 0.6 * n)


def entropy(p): return -(p * np.log(p) + (1 - p) * np.log(1 - p))


def slow_loss(q, p, n, tau=TAU, A=None, b=None):
    # one triple at a time, by the definition
    d = len(q[0])
    A, b = np.zeros((d, d)) if A is None else A, np.zeros(d) if b is None else b
    return np.array([-np.log(1 / (1 + np.exp(-((np.eye(d) + A) @ x + b) @ (y - z) / tau))) for x, y, z in zip(q, p, n)])


def scores(q, p, n, tau, form, adapter):
    # d log likelihood of y = 1 and of y = 0, a row a triple, and the probability of y = 1
    project = {"difference": lambda x, y: np.eye(len(x)), "query": lambda x, y: np.eye(len(x)) - np.outer(x, x), "positive": lambda x, y: np.eye(len(x)) - np.outer(y, y)}[form]
    a = np.array([1 / (1 + np.exp(-x @ (y - z) / tau)) for x, y, z in zip(q, p, n)])
    rows = np.array([v if adapter == "shift" else np.kron(x, v) for x, y, z in zip(q, p, n) for v in [project(x, y) @ (y - z) / tau]])
    return (1 - a)[:, None] * rows, -a[:, None] * rows, a


# loss, gradient, Fisher information

def test_loss_by_definition():
    q, p, n = triples()
    rng = np.random.default_rng(1)
    A, b = 0.1 * rng.normal(size=(5, 5)), 0.1 * rng.normal(size=5)
    assert pairwise_loss(3 * q, 2 * p, n, TAU, A=A, b=b) == pytest.approx(slow_loss(q, p, n, A=A, b=b), rel=1e-10)
    assert pairwise_loss(q, p, p, TAU) == pytest.approx(np.full(30, np.log(2)))
    moved = unit(q + b)
    assert pairwise_loss(q, p, n, TAU, b=b, normalised=True) == pytest.approx(slow_loss(moved, p, n), rel=1e-10)
    assert np.isfinite(pairwise_loss(q, p, n, 1e-4)).all() # logits of thousands


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("form", ["difference", "query"])
def test_gradient_against_autograd(adapter, form):
    torch = pytest.importorskip("torch")
    q, p, n = triples(size=50, d=7, seed=3)
    Q, P, N = (torch.tensor(x) for x in (q, p, n))
    assert Q.dtype == torch.float64
    theta = torch.zeros((7, 7) if adapter == "linear" else 7, dtype=torch.float64, requires_grad=True)
    moved = Q + (Q @ theta.T if adapter == "linear" else theta)
    if form == "query": moved = moved / moved.norm(dim=1, keepdim=True) # the renormalised adapter
    torch.nn.functional.softplus(-(moved * (P - N)).sum(1) / TAU).mean().backward()
    found = loss_gradient(q, p, n, TAU, adapter=adapter, form=form)
    assert found.shape == tuple(theta.shape) and np.abs(found).max() > 0.1
    assert np.abs(found - theta.grad.numpy()).max() <= 1e-8


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_fisher_is_the_hessian_of_the_summed_loss(adapter):
    torch = pytest.importorskip("torch")
    q, p, n = triples(size=20, d=4, seed=5)
    Q, P, N = (torch.tensor(x) for x in (q, p, n))
    def loss(v): # v stacks the columns of A
        moved = Q + (Q @ v.reshape(4, 4) if adapter == "linear" else v) # row k of the reshaped v is column k of A
        return torch.nn.functional.softplus(-(moved * (P - N)).sum(1) / TAU).sum()
    H = torch.autograd.functional.hessian(loss, torch.zeros(16 if adapter == "linear" else 4, dtype=torch.float64)).numpy()
    F = fisher_matrix(q, p, n, TAU, adapter=adapter)
    assert np.abs(F - H).max() <= 1e-8 * np.abs(H).max()


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("form", ["difference", "query", "positive"])
def test_fisher_is_the_expected_outer_product(adapter, form):
    q, p, n = triples(size=12, d=3, seed=7)
    one, zero, a = scores(q, p, n, TAU, form, adapter)
    expected = sum(x * np.outer(s, s) + (1 - x) * np.outer(t, t) for s, t, x in zip(one, zero, a))
    F = fisher_matrix(q, p, n, TAU, adapter=adapter, form=form)
    assert np.allclose(F, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
    assert np.allclose((a[:, None] * one + (1 - a)[:, None] * zero).sum(0), 0, atol=1e-9) # scores have mean 0 under the model
    gradient = loss_gradient(q, p, n, TAU, adapter=adapter, form=form)
    assert np.allclose(gradient.flatten("F"), -one.mean(0)) # all labels say 1


def test_trace_is_the_expected_squared_gradient_of_drawn_labels():
    q, p, n = triples(size=40, d=3)
    one, zero, a = scores(q, p, n, 0.3, "difference", "linear")
    y = np.random.default_rng(0).random((20_000, 40)) < a
    squares = np.square(y @ (one - zero) + zero.sum(0)).sum(1)
    trace = np.trace(fisher_matrix(q, p, n, 0.3))
    assert abs(squares.mean() - trace) < 4 * squares.std() / 20_000**0.5


def test_a_normalised_adapter_of_finite_size_starts_along_the_projected_gradient():
    q, p, n = triples()
    b, h = np.random.default_rng(0).normal(size=5), 1e-5
    up, down = (pairwise_loss(q, p, n, TAU, b=s * h * b, normalised=True).mean() for s in (1, -1))
    assert (up - down) / (2 * h) == pytest.approx(loss_gradient(q, p, n, TAU, adapter="shift", form="query") @ b, rel=1e-6)


# d x d

@settings(max_examples=40, deadline=None)
@given(d=st.integers(1, 5), seed=st.integers(0, 10**6))
def test_partial_trace_of_a_kronecker_product(d, seed):
    B, C = np.random.default_rng(seed).normal(size=(2, d, d))
    assert np.allclose(partial_trace(np.kron(B, C)), np.trace(B) * C, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 12), d=st.integers(2, 5), seed=st.integers(0, 10**6), tau=st.sampled_from([0.05, 0.3, 1.0]), form=st.sampled_from(["difference", "query", "positive"]))
def test_shift_fisher_is_the_partial_trace_and_bounds_the_linear_one(size, d, seed, tau, form):
    q, p, n = triples(size, d, seed)
    F_A, F_b = (fisher_matrix(q, p, n, tau, adapter=a, form=form) for a in ADAPTERS)
    scale = np.abs(F_b).max() + 1e-12
    assert np.allclose(partial_trace(F_A), F_b, atol=1e-10 * scale)
    assert np.trace(F_A) == pytest.approx(np.trace(F_b), abs=1e-10 * scale)
    # rank-one adapters b u_k^T of an orthonormal basis share the information of the shift
    U = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    parts = [np.kron(u[:, None], np.eye(d)) for u in U.T]
    assert np.allclose(sum(J.T @ F_A @ J for J in parts), F_b, atol=1e-10 * scale)
    # Oppenheim
    low, high = 2 * information_gain(F_b), 2 * information_gain(F_A)
    assert low <= high * (1 + 1e-9) + 1e-12 and high <= np.trace(F_b) * (1 + 1e-9) + 1e-12


def test_shift_is_the_block_of_the_constant_input():
    q, p, n = triples(size=10, d=3)
    a = expit((q * (p - n)).sum(1) / TAU)
    rows = np.array([np.kron([*x, 1.0], y) for x, y in zip(q, p - n)])
    whole = rows.T @ (rows * (a * (1 - a) / TAU**2)[:, None])
    assert np.allclose(whole[9:, 9:], fisher_matrix(q, p, n, TAU, adapter="shift"))
    assert np.allclose(whole[:9, :9], fisher_matrix(q, p, n, TAU))


def test_fisher_forms_meet_the_score():
    "M with the Fisher product is tau^2/N of the shift's Fisher matrix, with either residual."
    q, p, n = triples(size=25, d=6)
    for form, residual in (("difference", "difference"), ("positive", "tangent")):
        X = weighted_residuals(q, p, n, None, ECIConfig(product="fisher", overlap="none", residual=residual))
        assert np.allclose(X.T @ X, TAU**2 * fisher_matrix(q, p, n, TAU, adapter="shift", form=form))


# the tangent space

@settings(max_examples=50, deadline=None)
@given(d=st.integers(2, 6), seed=st.integers(0, 10**6))
def test_tangent_directions(d, seed):
    q, p, n = triples(4, d, seed)
    at_p, at_q, delta = directions(q, p, n, "positive"), directions(q, p, n, "query"), directions(q, p, n)
    r = residuals(p, n)
    assert np.allclose(at_p, -r, atol=1e-14) and np.allclose((at_p * p).sum(1), 0, atol=1e-14) and np.allclose((at_q * q).sum(1), 0, atol=1e-14)
    cosine = (p * n).sum(1)
    assert np.allclose((r * r).sum(1), 1 - cosine**2) and np.allclose((r * r).sum(1), (delta * delta).sum(1) * (1 + cosine) / 2)
    bound = np.linalg.norm(delta, axis=1) * np.sqrt(np.maximum(1 - (q * p).sum(1) ** 2, 0))
    assert (np.linalg.norm(at_q - at_p, axis=1) <= bound + 1e-12).all()


def test_the_projector_bound_is_reached():
    # delta in the plane of q and p, along the eigenvector of the difference of the projectors
    angle = 0.8
    q, p = np.array([[1.0, 0]]), np.array([[np.cos(angle), np.sin(angle)]])
    turned = [[np.cos(t), np.sin(t)] for t in np.linspace(0, 2 * np.pi, 721)]
    ratios = [np.linalg.norm(directions(q, p, [n], "query") - directions(q, p, [n], "positive")) / np.linalg.norm(directions(q, p, [n])) for n in turned if abs(np.array(n) @ p[0]) < 0.999]
    assert max(ratios) == pytest.approx(np.sin(angle), abs=1e-9) # in the plane every direction attains it


# weights

@settings(max_examples=200, deadline=None)
@given(margin=st.floats(-0.9, 0.9), tau=st.floats(0.005, 2))
def test_fisher_weight_lies_between_half_u_and_u(margin, tau):
    def at(c): return np.array([[c, np.sqrt(1 - c * c)]])
    f = factors(np.array([[1.0, 0]]), at(margin / 2), at(-margin / 2), None, ECIConfig(overlap="none", tau=tau))
    u, fisher = f.w[0], f.a[0] * expit(-f.margin[0] / tau)
    assert u / 2 * (1 - 1e-12) <= fisher <= u * (1 + 1e-12)
    assert u == pytest.approx(expit(-abs(f.margin[0]) / tau), rel=1e-9) and fisher == pytest.approx(u * (1 - u), rel=1e-9)
    assert f.margin[0] == pytest.approx(margin, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 20), d=st.integers(2, 5), seed=st.integers(0, 10**6), gain=st.sampled_from([1.0, 20.0, 400.0]))
def test_choice_of_weight_changes_the_log_determinant_by_a_factor_of_two_at_most(size, d, seed, gain):
    q, p, n = triples(size, d, seed)
    fisher, u = (2 * information_gain(gain / size * X.T @ X) for X in (weighted_residuals(q, p, n, None, ECIConfig(product=k, overlap="none")) for k in ("fisher", "a*l")))
    assert fisher * (1 - 1e-9) <= u <= 2 * fisher * (1 + 1e-9)


# steps

@pytest.mark.parametrize("adapter", ADAPTERS)
def test_steps_against_the_loss_itself(adapter):
    q, p, n = triples(size=40, d=6, seed=2)
    gradient, before = loss_gradient(q, p, n, TAU, adapter=adapter), slow_loss(q, p, n).mean()
    r = step_errors(q, p, n, [0.01, 0.1, 1.0], TAU, adapter=adapter)
    for k, eta in enumerate(r.eta):
        moved = {"A" if adapter == "linear" else "b": -eta * TAU**2 * gradient}
        assert r.predicted[k] == pytest.approx(eta * TAU**2 * np.square(gradient).sum(), rel=1e-10)
        assert r.actual[k] == pytest.approx(before - slow_loss(q, p, n, **moved).mean(), rel=1e-9)
        d = moved.get("A") if adapter == "linear" else None
        change = ((q @ d.T if adapter == "linear" else moved["b"]) * (p - n)).sum(1) / TAU
        assert r.change[k] == pytest.approx(np.abs(change).max(), rel=1e-10) and np.abs(change).max() <= 4 * eta
        assert 0 <= r.error[k] <= np.square(change).mean() / 8


@settings(max_examples=30, deadline=None)
@given(size=st.integers(1, 25), d=st.integers(2, 6), seed=st.integers(0, 10**6), adapter=st.sampled_from(ADAPTERS), tau=st.sampled_from([0.02, 0.05, 0.5]))
def test_error_is_of_second_order(size, d, seed, adapter, tau):
    q, p, n = triples(size, d, seed)
    etas = np.logspace(-5, -1, 9)
    r = step_errors(q, p, n, etas, tau, adapter=adapter)
    assume(r.predicted[-1] > 1e-12)
    a = expit((q * (p - n)).sum(1) / tau)
    move = loss_gradient(q, p, n, tau, adapter=adapter)
    h = -tau * ((q @ move.T if adapter == "linear" else move) * (p - n)).sum(1)
    leading = (a * (1 - a) * h**2).mean() / 2
    assume(leading > 1e-9 * r.predicted[-1] / etas[-1])
    slack = 1e-14 * r.predicted
    assert (np.abs(r.error - leading * etas**2) <= (np.abs(h) ** 3).mean() * etas**3 / (36 * 3**0.5) + slack).all()
    assert (r.error >= -slack).all() and (r.change <= 4 * etas).all()


def test_slope_is_two_and_counts_are_repetitions():
    q, p, n = triples(size=30, d=6)
    etas = np.logspace(-5, -1, 9)
    counts = np.random.default_rng(0).integers(0, 3, (3, 30))
    many = step_errors(q, p, n, etas, TAU, counts=np.concatenate([np.ones((1, 30)), counts]))
    assert many.error.shape == (9, 4) and np.abs(log_slope(etas, many.error) - 2).max() < 0.001
    assert many.error[:, 0] == pytest.approx(step_errors(q, p, n, etas, TAU).error, rel=1e-6)
    for b, c in enumerate(counts):
        rows = np.repeat(np.arange(30), c)
        one = step_errors(q[rows], p[rows], n[rows], etas, TAU)
        assert many.actual[:, b + 1] == pytest.approx(one.actual, rel=1e-9) and many.change[:, b + 1] == pytest.approx(one.change, rel=1e-9)
    t = np.array([0.1, 0.5]) # the same query, differences of one direction: a step of the first moves the second more
    x, y, z = np.array([[1.0, 0]] * 2), np.stack([np.cos(t), np.sin(t)], 1), np.stack([np.cos(t), -np.sin(t)], 1)
    single = step_errors(x, y, z, [0.1], TAU, counts=[[1, 0]])
    assert single.change[0, 0] == pytest.approx(step_errors(x[:1], y[:1], z[:1], [0.1], TAU).change[0]) # that of a triple not drawn doesn't count
    assert log_slope([1, 10, 100], [5, 500, 50_000]) == pytest.approx(2)


def test_small_decreases_keep_their_digits():
    mp = pytest.importorskip("mpmath") # comes with torch's sympy
    mp.mp.dps = 60
    for z in (-40.0, -3.0, 0.0, 2.5, 30.0):
        for change in (-5.0, -0.3, -1e-9, 1e-12, 0.2, 4.0):
            exact = mp.log1p(mp.exp(-mp.mpf(z))) - mp.log1p(mp.exp(-mp.mpf(z) - mp.mpf(change)))
            assert float(loss_decrease(z, change)) == pytest.approx(float(exact), rel=1e-12), (z, change)
    with np.errstate(all="raise", under="ignore"): assert loss_decrease([0.0, 800.0], [-2000.0, -1600.0]) == pytest.approx([np.log(2) - 2000, -800])


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapter_steps_against_gradient_descent_of_the_matrix(adapter):
    q, p, n = triples(size=25, d=4, seed=4)
    theta = np.zeros((4, 4) if adapter == "linear" else 4)
    name, found, losses = "A" if adapter == "linear" else "b", adapter_steps(q, p, n, (1, 2, 7), 0.8, TAU, adapter=adapter), []
    other = triples(size=9, d=4, seed=5)
    for k in range(1, 8):
        # the gradient at theta is that at 0 of queries that have already moved, which no unit length may undo
        moved = q + (q @ theta.T if adapter == "linear" else theta)
        pull = -expit(-(moved * (p - n)).sum(1) / TAU)[:, None] * (p - n) / TAU / 25
        theta = theta - 0.8 * TAU**2 * (pull.T @ q if adapter == "linear" else pull.sum(0))
        losses.append(slow_loss(q, p, n, **{name: theta}).mean())
        if k in (1, 2, 7):
            c = found[(1, 2, 7).index(k)]
            assert np.allclose(adapter_matrix(c, q, p, n, TAU, adapter=adapter), theta, atol=1e-12)
            x, z = directions(*other), ((other[0]) * (other[1] - other[2])).sum(1) / TAU
            held = loss_decrease(z, adapter_kernel(other[0], x, q, directions(q, p, n), adapter) @ c)
            assert held == pytest.approx(slow_loss(*other) - slow_loss(*other, **{name: theta}), rel=1e-8, abs=1e-12)
    assert np.diff([slow_loss(q, p, n).mean(), *losses]).max() < 0


@settings(max_examples=20, deadline=None)
@given(size=st.integers(1, 15), d=st.integers(2, 5), seed=st.integers(0, 10**6), adapter=st.sampled_from(ADAPTERS))
def test_a_step_of_one_never_raises_the_training_loss(size, d, seed, adapter):
    q, p, n = triples(size, d, seed)
    z, K = (q * (p - n)).sum(1) / TAU, adapter_kernel(q, p - n, q, p - n, adapter)
    losses = [np.logaddexp(0, -z).mean(), *(np.logaddexp(0, -z - K @ c).mean() for c in adapter_steps(q, p, n, range(1, 12), 1.0, TAU, adapter=adapter))]
    assert np.diff(losses).max() <= 1e-14


def test_resampled_adapters_are_those_of_the_drawn_triples():
    q, p, n = triples(size=12, d=4)
    counts = np.random.default_rng(0).integers(0, 3, (2, 12))
    many = adapter_steps(q, p, n, (1, 5), counts=counts)
    assert many.shape == (2, 12, 2)
    for b, c in enumerate(counts):
        rows = np.repeat(np.arange(12), c)
        for k, one in enumerate(adapter_steps(q[rows], p[rows], n[rows], (1, 5))): assert np.allclose(adapter_matrix(many[k, :, b], q, p, n), adapter_matrix(one, q[rows], p[rows], n[rows]), atol=1e-14)


# information

def test_information_gain_is_that_of_the_gaussian_model():
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(9, 3)), rng.uniform(0.1, 2, 9)
    F = x.T @ (x * v[:, None])
    assert information_gain(F) == pytest.approx(np.linalg.slogdet(np.eye(3) + F)[1] / 2)
    # mean KL(posterior || prior) over drawn observations
    cov = np.linalg.inv(np.eye(3) + F)
    y = rng.normal(size=(200_000, 3)) @ x.T + rng.normal(size=(200_000, 9)) / v**0.5
    mean = (y * v) @ x @ cov
    kl = (np.trace(cov) + (mean**2).sum(1) - 3 - np.linalg.slogdet(cov)[1]) / 2
    assert kl.mean() == pytest.approx(information_gain(F), abs=4 * kl.std() / len(kl)**0.5)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 10), d=st.integers(1, 5), seed=st.integers(0, 10**6), scale=st.floats(1e-4, 10))
def test_log_determinant_lies_below_the_trace_by_half_the_square_at_most(size, d, seed, scale):
    X = scale * np.random.default_rng(seed).normal(size=(size, d))
    F = X.T @ X
    gap = np.trace(F) - 2 * information_gain(F)
    assert -1e-12 * np.trace(F) <= gap <= np.square(F).sum() / 2 * (1 + 1e-9) + 1e-13 * np.trace(F)


def exact_one_dimension(x, z):
    # H(y) - H(y | theta), each label vector's probability by adaptive quadrature
    normal = lambda t: np.exp(-t * t / 2) / (2 * np.pi) ** 0.5
    integrate = lambda f: quad(lambda t: f(t) * normal(t), -12, 12, epsabs=1e-13, epsrel=1e-11, limit=400)[0]
    total = 0.0
    for labels in np.ndindex(*[2] * len(x)):
        signs = 2 * np.array(labels) - 1
        p = integrate(lambda t: np.prod(expit(signs * (z + x * t))))
        total -= p * np.log(p)
    return total - sum(integrate(lambda t: entropy(expit(b + a * t))) for a, b in zip(x, z))


@pytest.mark.parametrize("x, z", [([0.3], [0.0]), ([0.2, -0.5, 0.1], [1.0, 0.0, -2.0]), ([1.5, 0.8], [0.5, -1.0]), ([3.0, -2.0, 2.5], [0.0, 4.0, -1.0])])
def test_information_of_labels_in_one_dimension(x, z):
    x, z = np.array(x), np.array(z)
    exact = exact_one_dimension(x, z)
    assert quadrature_information(x[:, None], z, 40) == pytest.approx(exact, rel=2e-4 if max(abs(x)) > 2 else 1e-7)
    found = label_information(x[:, None], z, 20_000)
    assert abs(found.value - exact) < 4 * found.se + 1e-9 and found.se < 0.01 * exact


def test_standard_error_is_honest():
    rng = np.random.default_rng(3)
    for scale in (0.2, 3.0):
        X, z = scale * rng.normal(size=(4, 2)), rng.normal(size=4)
        found = [label_information(X, z, 400, seed=s) for s in range(60)]
        spread = np.std([f.value for f in found], ddof=1)
        assert 0.6 < np.mean([f.se for f in found]) / spread < 1.6
        assert abs(np.mean([f.value for f in found]) - quadrature_information(X, z, 40)) < 4 * spread / 60**0.5 + 2e-3 * found[0].value


def test_pairs_of_opposite_parameters_cancel_what_is_odd():
    X, z = 0.03 * np.random.default_rng(0).normal(size=(8, 3)), 4 * np.random.default_rng(1).normal(size=8)
    found = label_information(X, z, 5000)
    assert found.se < 1e-4 * found.value # without pairs it is about 8e-4
    assert found.value == pytest.approx(quadrature_information(X, z), rel=2e-4)


def test_information_is_bounded_and_same_for_all_who_ask():
    rng = np.random.default_rng(0)
    X, z = 50 * rng.normal(size=(6, 3)), rng.normal(size=6)
    for scale in (0.01, 0.1, 1, 10, 1000):
        found = label_information(scale * X, z, 2000)
        assert 0 < found.value <= 6 * np.log(2) + 3 * found.se and found.se < 0.02 * found.value
    assert label_information(X, z, 500, seed=4) == label_information(X, z, 500, seed=4) != label_information(X, z, 500, seed=5)
    turned = X / 100 @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert quadrature_information(turned, z) == pytest.approx(quadrature_information(X / 100, z), rel=1e-6)
    assert label_information(np.zeros((2, 2)), np.zeros(2), 200).value == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_leading_correction(seed):
    rng = np.random.default_rng(seed)
    X, z = rng.normal(size=(5, 2)), 2 * rng.normal(size=5)
    v = expit(z) * expit(-z)
    gap = []
    for scale in (0.1, 0.05):
        Y = scale * X
        left = quadrature_information(Y, z, 24) - information_gain(Y.T @ (Y * v[:, None])) - gain_correction(Y, z)
        gap.append(left)
        assert abs(left) < 0.4 * scale**2 * abs(gain_correction(Y, z)) * 100 / 4 + 1e-9
    assert np.log2(abs(gap[0] / gap[1])) == pytest.approx(6, abs=0.5) # what is left is of third order in the prior's variance


def test_correction_by_hand():
    # one label of probability 1/2: F = x^2/4, I = F/2 - 3 F^2/4, 1/2 log(1+F) = F/2 - F^2/4
    assert gain_correction([[0.4]], [0.0]) == pytest.approx(-0.5 * 0.04**2)
    v = expit(2.0) * expit(-2.0)
    assert gain_correction([[0.1, 0.2]], [2.0]) == pytest.approx((v * 0.05) ** 2 * (1 / (4 * v) - 1.5))


def test_five_percent_under_the_condition_of_the_derivation():
    rng = np.random.default_rng(1)
    for k in range(12):
        X, z = rng.normal(size=(8, 1 + k % 4)), 3 * rng.normal(size=8)
        X *= (0.1 / np.square(X).sum(1).max()) ** 0.5
        F = X.T @ (X * (expit(z) * expit(-z))[:, None])
        assert abs(information_gain(F) / label_information(X, z, 4000).value - 1) < 0.05


# what is refused

q, p, n = triples(size=6, d=3)


@pytest.mark.parametrize("call, message", [
    (lambda: pairwise_loss(q, p, n[:5]), "unequal shapes: q (6, 3), p (6, 3), n (5, 3); expected one shape (N, d)"),
    (lambda: pairwise_loss(q, p, 0 * n), "n (negatives): row 0 (counted from 0) is a zero vector, which has no direction"),
    (lambda: pairwise_loss(q, p, n, 0), "tau is 0, expected a positive finite number; 0.05 is the temperature of the fine-tuning loss"),
    (lambda: pairwise_loss(q, p, n, A=np.zeros((3, 2))), "A has shape (3, 2), expected (3, 3): the linear adapter."),
    (lambda: pairwise_loss(q, p, n, b=[0, np.nan, 0]), "b holds NaN or infinity (1 values), expected finite numbers: the shift."),
    (lambda: directions(q, p, n, "tangent"), "unknown direction 'tangent'. Known: difference, positive, query."),
    (lambda: loss_gradient(q, p, n, adapter="linea"), "unknown adapter 'linea'. Did you mean 'linear'?"),
    (lambda: fisher_matrix(*(np.ones((2, 65)) for _ in range(3))), "the Fisher matrix of the linear adapter has 65^2 x 65^2 entries, expected d of at most 64: use adapter 'shift' (d x d)"),
    (lambda: partial_trace(np.eye(6)), "F has shape (6, 6), expected (d^2, d^2): the Fisher matrix of the linear adapter."),
    (lambda: information_gain(np.ones((2, 3))), "F has shape (2, 3), expected (2, 2): a square information matrix."),
    (lambda: information_gain([[1, 2], [0, 1]]), "F is not symmetric, expected an information matrix"),
    (lambda: information_gain(-np.eye(2)), "F has the eigenvalue -1, expected none below 0: an information matrix is positive semi-definite."),
    (lambda: adapter_kernel(q, p, q, p[:, :2]), "unequal shapes: q (6, 3), X (6, 3), q_other (6, 3), X_other (6, 2); expected (N, d) twice and (K, d) twice."),
    (lambda: adapter_kernel(q, p, q, p, "rotation"), "unknown adapter 'rotation'. Known: linear, shift."),
    (lambda: step_errors(q, p, n, [0.1, -1]), "etas are [0.1, -1.0], expected a list of positive finite steps, in units of tau^2."),
    (lambda: step_errors(q, p, n, [0.1], counts=np.ones((2, 5))), "counts has shape (2, 5), expected (6,) or (B, 6): how often each triple is drawn."),
    (lambda: step_errors(q, p, n, [0.1], counts=np.zeros(6)), "counts must not be negative, and each resample must draw at least 1 triple."),
    (lambda: log_slope([1, 2], [0, 1]), "a log-log slope needs at least 2 points with positive values, found x of shape (2,) and y of shape (2,), the smallest 1 and 0."),
    (lambda: log_slope([2, 2], [1, 1]), "a log-log slope needs different x, found 2 only."),
    (lambda: adapter_steps(q, p, n, (10, 1)), "steps are [10, 1], expected whole numbers above 0 in ascending order, e.g. (1, 10, 100)."),
    (lambda: adapter_steps(q, p, n, (1, True)), "steps are [1, True], expected whole numbers"),
    (lambda: adapter_steps(q, p, n, step=-1), "step is -1, expected a positive finite number; in units of tau^2; 1 is the longest that never raises the training loss"),
    (lambda: adapter_matrix(np.ones(5), q, p, n), "coefficients has shape (5,), expected (6,): one a training triple."),
    (lambda: label_information(np.ones((13, 2)), np.ones(13)), "X has 13 labels, expected at most 12: all 2^N label vectors are enumerated."),
    (lambda: label_information(np.ones(3), np.ones(3)), "X has shape (3,), expected (N, d): a row per label, in units of the prior."),
    (lambda: label_information(np.ones((3, 2)), np.ones(2)), "z has shape (2,), expected (3,): the logit of each label at the prior mean."),
    (lambda: label_information(np.ones((3, 2)), np.ones(3), draws=50), "draws is 50, expected a whole number of at least 100."),
    (lambda: quadrature_information(np.ones((3, 5)), np.ones(3)), "X has 5 dimensions, expected at most 4 for quadrature; use label_information, or project first."),
    (lambda: quadrature_information(np.ones((3, 2)), np.ones(3), 1), "nodes is 1, expected a whole number from 2 to 40."),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match="^" + re.escape(message)): call()


# figures

def step_lines(): return pd.DataFrame([dict(encoder=e, source=s, eta=x, error=c * x**2, n=60) for e in ("minilm", "glove") for s, c in (("bm25@1", 0.01), ("random", 0.002)) for x in (1e-5, 1e-3, 1e-1)])


def gain_points(): return pd.DataFrame([dict(design=g, source=f"design {k}", dim=d, trace=t, largest_variance=v * t, error=c * t * d) for g, v, c in (("random", 0.6, 0.2), ("glove", 4, -0.1)) for k in range(2) for d in (1, 4) for t in (0.01, 0.1, 1.0)])


def link_points(): return pd.DataFrame([dict(encoder="glove", source=s, kind=k, steps=n, score=x, score_lo=x - 0.01, score_hi=x + 0.01, decrease=y * n, lo=0.8 * y * n, hi=1.2 * y * n) for s, k, x, y in (("bm25@1", "source", 0.12, 0.004), ("llm", "source", 0.1, 0.005), ("random", "control", 0.05, 0.001)) for n in (1, 10)])


@pytest.mark.parametrize("draw, table", [(step_error_lines, step_lines()), (gain_curve, gain_points()), (score_scatter, link_points())])
def test_figures_drawn_again_from_their_csv_have_the_same_bytes(draw, table, tmp_path):
    before = table.copy()
    first = save_figure(draw(table), table, "fig", tmp_path / "a", {})
    pd.testing.assert_frame_equal(table, before)
    again = pd.read_csv(first[2])
    for a, b in zip(first, save_figure(draw(again), again, "fig", tmp_path / "b", {})): assert a.suffix == ".json" or a.read_bytes() == b.read_bytes()
    for column in table:
        if column in ("kind", "source", "n"): continue
        with pytest.raises(InputError, match=f"^{draw.__name__}: column '{column}' is missing"): draw(table.drop(columns=column))


def test_figures_draw_the_table():
    t = step_lines()
    fig = step_error_lines(t)
    for ax, (_, part) in zip(fig.axes, t.groupby("encoder", sort=False)):
        assert [line.get_ydata().tolist() for line in ax.lines if line.get_linestyle() == "-"] == [pytest.approx(g["error"].tolist()) for _, g in part.groupby("source", sort=False)]
        (guide,) = [line for line in ax.lines if line.get_linestyle() == "--"]
        assert log_slope(*guide.get_data()) == pytest.approx(2) and "n = 60 triples" in ax.get_title()
    assert fig.legends[0].get_title().get_text() == "dashed: slope 2"
    t.loc[0, "error"] = -1e-20
    assert "1 of 12 points not above 0: not drawn" in step_error_lines(t).legends[0].get_title().get_text()
    with pytest.raises(InputError, match="step_error_lines: no step and error are above 0"): step_error_lines(t.assign(error=0.0))
    g = gain_points()
    for ax, (kind, part) in zip(gain_curve(g).axes, g.groupby("design", sort=False)):
        dots = [line for line in ax.lines if line.get_linestyle() == "None"]
        filled, hollow = (sum(len(line.get_xdata()) for line in dots if (line.get_markerfacecolor() != "white") == f) for f in (True, False))
        assert (filled, hollow) == ((part["largest_variance"] <= 0.1).sum(), (part["largest_variance"] > 0.1).sum()) and ax.get_title() == f"{kind}, n = 4 designs"
    points = link_points()
    for ax, (steps, part) in zip(score_scatter(points, label="ECI_sem").axes, points.groupby("steps")):
        dots = {(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines if len(line.get_xdata()) == 1 and line.get_marker() not in ("None", "_", "|")}
        assert dots == set(zip(part["score"], part["decrease"])) and ax.get_xlabel() == "ECI_sem (nats)" and ax.get_title() == f"{steps} step{'s' * (steps > 1)}, n = {len(part)} sources"
    with pytest.raises(InputError, match="score_scatter: lo = 1.0 is above hi"): score_scatter(points.assign(lo=1.0))


def slope_lines(): return pd.DataFrame([dict(encoder=e, source=s, adapter=a, eta=x, error=c * off**3 * x**2, n=60, slope=2 + off * c, slope_lo=2 - 1e-6, slope_hi=2 + 3 * off * c) for e, off in (("minilm", 1e-3), ("glove", 1e-2)) for a in ("linear", "shift") for s, c in (("bm25@1", 0.01), ("random", 0.002)) for x in (1e-5, 1e-3, 1e-1)])


def test_slopes_are_drawn_with_their_intervals_and_the_allowed_band(tmp_path):
    t = slope_lines()
    fig = step_error_lines(t)
    assert [ax.get_title() for ax in fig.axes] == ["minilm, n = 60 triples", "glove, n = 60 triples", "", ""]
    for dots, lines, (_, part) in zip(fig.axes[:2], fig.axes[2:], t.groupby("encoder", sort=False)):
        fits = part.drop_duplicates(["source", "adapter"])
        assert sorted(float(line.get_xdata()[0]) for line in dots.lines if line.get_marker() not in ("None", None)) == pytest.approx(sorted(fits["slope"] - 2))
        bars = [line.get_xdata() for line in dots.lines if line.get_marker() in ("None", None) and line.get_linestyle() == "-"]
        assert sorted(map(tuple, bars)) == sorted(zip(fits["slope_lo"] - 2, fits["slope_hi"] - 2))
        assert [float(p.get_x()) for p in dots.patches] == [-0.1] and float(dots.patches[0].get_width()) == pytest.approx(0.2)
        assert dots.get_xlabel() == "slope \u2212 2 (no unit)"
        assert sum(line.get_linestyle() == "-" for line in lines.lines) == 2 # of the first adapter alone: the others lie on them
        low, high = lines.get_ylim()
        assert low < part["error"].min() and part["error"].max() < high
    assert [x.get_text() for x in fig.axes[0].get_yticklabels()] == ["bm25@1", "Random"]
    assert "band: 2 \u00b1 0.1" in fig.get_supxlabel() and "open: adapter shift" in fig.get_supxlabel()
    files = save_figure(fig, t, "steps", tmp_path, {})
    from eci_sem.results import redraw
    assert redraw(tmp_path) == [("steps", "same", "")] and files[2].name == "steps.csv"
    none = t.assign(**{c: t[c].where(t["source"] != "random") for c in ("slope", "slope_lo", "slope_hi")}) # too few points for a line
    assert [x.get_text() for x in step_error_lines(none).axes[0].texts] == ["no line", "no line"]


def test_a_table_of_slopes_that_will_not_do_is_named():
    t = slope_lines()
    with pytest.raises(InputError, match="step_error_lines: column 'slope_lo' is missing"): step_error_lines(t.drop(columns="slope_lo"))
    with pytest.raises(InputError, match="step_error_lines: slope_lo = 3.0 is above slope_hi"): step_error_lines(t.assign(slope_lo=3.0))
    t.loc[0, "slope"] = 1.9
    with pytest.raises(InputError, match="step_error_lines: minilm, bm25@1, linear has 2 slopes or intervals; expected one per line"): step_error_lines(t)
