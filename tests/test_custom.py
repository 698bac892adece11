"""Factors of one's own: known wherever a factor is named, computed as the function says, and refused before they can do harm."""
import numpy as np
import pytest

from eci_sem.collection import InputError
from eci_sem.custom import forget_factor, register_factor
from eci_sem.explain import explain
from eci_sem.rank import rank_sources
from eci_sem.score import CUSTOM, FACTORS, Accumulator, ECIConfig, baselines, eci_score, factors, residuals
from test_rank import Stub, made

GIVEN = {k: tuple(v) for k, v in FACTORS.items()}
OWN = dict(consistency=lambda qp, qn, tau: (qp > qn - tau).astype(float), locality=lambda qp, qn, tau: np.exp(-np.abs(qp - qn) / tau), product=lambda qp, qn, tau: 1 / (1 + ((qp - qn) / tau) ** 2))


@pytest.fixture(autouse=True)
def forgotten():
    yield
    for kind in CUSTOM:
        for name in list(CUSTOM[kind]): forget_factor(kind, name)
    assert {k: tuple(v) for k, v in FACTORS.items()} == GIVEN


def arrays(n=700, d=6, seed=0): # more rows than a block has
    rng = np.random.default_rng(seed)
    return *rng.normal(size=(3, n, d)), rng.uniform(size=n)


@pytest.mark.parametrize("kind", OWN)
def test_a_factor_is_what_the_function_says(kind):
    register_factor(kind, "mine", OWN[kind])
    register_factor(kind, "another", lambda qp, qn, tau: np.full_like(qp, 0.3))
    q, p, n, rho = arrays()
    f = factors(q, p, n, rho, ECIConfig(**{kind: "mine"}, tau=0.2))
    wanted = OWN[kind](f.similarity, f.hardness, 0.2)
    plain = factors(q, p, n, rho, ECIConfig(tau=0.2))
    a, l = (wanted if k == kind else getattr(plain, s) for k, s in (("consistency", "a"), ("locality", "l")))
    np.testing.assert_array_equal(f.w, (wanted if kind == "product" else a * l) * rho)
    assert eci_score(q, p, n, rho, config=ECIConfig(**{kind: "mine"})).value > 0 and baselines(q, p, n, rho, ECIConfig(**{kind: "mine"}))["without_overlap"] > 0


def test_a_residual_of_ones_own():
    register_factor("residual", "sum", lambda p, n: n + p)
    q, p, n, rho = arrays()
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    R = residuals(p, n, ECIConfig(residual="sum"))
    np.testing.assert_allclose(R, unit(p) + unit(n), rtol=1e-12)
    w = factors(q, p, n, rho).w
    assert eci_score(q, p, n, rho, config=ECIConfig(residual="sum")).trace == pytest.approx((w * np.square(R).sum(1)).mean(), rel=1e-12)
    # a function that gives back what it got does not disturb the next block
    register_factor("residual", "negative", lambda p, n: n)
    np.testing.assert_allclose(residuals(p, n, ECIConfig(residual="negative")), unit(n), rtol=1e-12)


def test_the_same_function_under_a_name_of_ones_own_gives_the_same_score():
    from scipy.special import expit
    register_factor("consistency", "my sigmoid", lambda qp, qn, tau: expit((qp - qn) / tau))
    register_factor("residual", "my difference", lambda p, n: n - p)
    t = arrays()
    assert eci_score(*t, config=ECIConfig(consistency="my sigmoid", residual="my difference")).value == pytest.approx(eci_score(*t, config=ECIConfig(residual="difference")).value, rel=1e-13)
    chunks = Accumulator(6, ECIConfig(consistency="my sigmoid", residual="my difference"))
    for i in range(0, 700, 90): chunks.add(*(x[i:i + 90] for x in t))
    assert chunks.result().value == pytest.approx(eci_score(*t, config=ECIConfig(residual="difference")).value, rel=1e-12)


def test_a_ranking_and_its_explanation_take_it():
    register_factor("product", "cauchy", OWN["product"])
    r = rank_sources(made(), Stub(), config=ECIConfig(product="cauchy"), resamples=50, metrics=["eci_sem"])
    assert r.provenance["config"]["product"] == "cauchy"
    why = explain(r)
    assert why.parts.groupby("b")["value"].sum().to_numpy() == pytest.approx(why.table["difference"].to_numpy(), abs=1e-12) and "product" in set(why.parts["part"])


def test_a_name_is_forgotten():
    register_factor("locality", "mine", OWN["locality"])
    ECIConfig(locality="mine")
    forget_factor("locality", "mine")
    with pytest.raises(InputError, match="unknown locality 'mine'"): ECIConfig(locality="mine")
    with pytest.raises(InputError, match="unknown registered locality 'mine'"): forget_factor("locality", "mine")
    with pytest.raises(InputError, match="unknown kind of factor 'overlap'"): forget_factor("overlap", "mine")


@pytest.mark.parametrize("kind, name, function, message", [
    ("overlap", "x", OWN["locality"], "unknown kind of factor 'overlap'.*Known: consistency, locality, product, residual"),
    ("locality", "margin", OWN["locality"], "locality 'margin' is there already, and comes with the package: give another name"),
    ("locality", " ", OWN["locality"], "name is ' ', expected text"),
    ("locality", "x", 3, r"function is int, expected a function \(qp, qn, tau\) -> \(N,\)"),
    ("locality", "x", lambda qp, qn: qp, r"locality 'x' can't be called: .*expected a function \(qp, qn, tau\) -> \(N,\) of arrays"),
    ("product", "x", lambda qp, qn, tau: qp - qn, r"product 'x' gave .* at q.p = .*, expected a number in \[0, 1\]"),
    ("product", "x", lambda qp, qn, tau: qp * np.nan, r"product 'x' gave nan at q.p"),
    ("product", "x", lambda qp, qn, tau: 0.5, r"product 'x' gave shape \(\) for 25 triples, expected \(25,\): one number a triple"),
    ("consistency", "x", lambda qp, qn, tau: np.clip(qp - qp.mean(), 0, 1), "gives a triple another value alone than among others: the score is computed in blocks, so a factor may look at its own row only"),
    ("residual", "x", lambda p, n: p @ n.T, r"residual 'x' gave shape \(4, 4\) for vectors of shape \(4, 3\)"),
    ("residual", "x", lambda p, n: n / 0 * 0, "residual 'x' gave NaN or infinity in 4 of 4 rows"),
    ("residual", "x", lambda p, n: n - n.mean(0), "gives a triple another value alone")])
def test_what_is_refused(kind, name, function, message):
    with np.errstate(all="ignore"), pytest.raises(InputError, match=message): register_factor(kind, name, function)
    assert not any(CUSTOM.values())


def test_a_name_is_given_once():
    register_factor("locality", "x", OWN["locality"])
    with pytest.raises(InputError, match=r"locality 'x' is there already: give another name, or forget_factor\('locality', 'x'\) first"): register_factor("locality", "x", OWN["locality"])


def test_a_value_out_of_range_is_found_while_scoring():
    register_factor("product", "late", lambda qp, qn, tau: np.where(tau < 0.01, 2.0, 0.5) * np.ones_like(qp))
    with pytest.raises(InputError, match=r"product 'late' gave 2 at q.p = .*, tau = 0.001, expected a number in \[0, 1\]"): factors(*arrays(), ECIConfig(product="late", tau=0.001))
