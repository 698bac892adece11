"The sum over triples on a device: the same as on the processor, which is asked to play the device here."
import itertools

import numpy as np
import pytest
import torch

from eci_sem import device
from eci_sem.collection import InputError
from eci_sem.custom import forget_factor, register_factor
from eci_sem.device import device_mean, device_sums, on_device
from eci_sem.score import FACTORS, Accumulator, ECIConfig, baselines, calibrate, eci_net, eci_score, mean_vector

N, D = 300, 24


@pytest.fixture
def embeddings():
    rng = np.random.default_rng(0)
    q = rng.standard_normal((N, D))
    return [x.astype(np.float32) for x in (q, q + rng.standard_normal((N, D)), q + rng.standard_normal((N, D)))], rng.random(N)

@pytest.fixture
def processor(monkeypatch):
    "Tensors of the processor count as tensors of a device, and what was made there is kept."
    made, real = [], device.device_sums
    def spy(*args, **kwargs):
        made.append(real(*args, **kwargs))
        return made[-1]
    monkeypatch.setattr(device, "DEVICES", ("cpu",))
    monkeypatch.setattr("eci_sem.score.device_sums", spy)
    return made

def tensors(arrays, kind=None): return [torch.from_numpy(x) if kind is None else torch.from_numpy(x).to(kind) for x in arrays]

def every_config():
    for c, l, p, r, s in itertools.product(("sigmoid", "step", "none"), FACTORS["locality"], FACTORS["product"], FACTORS["residual"], FACTORS["space"]):
        if p == "a*l" or (c, l) == ("sigmoid", "margin"): yield ECIConfig(consistency=c, locality=l, product=p, residual=r, space=s)

def alike(a, b, rel=1e-10):
    assert a.n == b.n and a.as_dict().keys() == b.as_dict().keys()
    for k, v in a.as_dict().items(): assert b.as_dict()[k] == pytest.approx(v, rel=rel, abs=1e-13), k
    assert np.allclose(a.spectrum, b.spectrum, rtol=rel, atol=1e-13)


@pytest.mark.parametrize("config", list(every_config()), ids=lambda c: "-".join((c.consistency, c.locality, c.product, c.residual, c.space)))
def test_every_form_is_the_processors(embeddings, processor, config):
    arrays, rho = embeddings
    here = eci_score(*arrays, rho, config=config)
    assert processor == [None], "arrays are not on a device"
    alike(here, eci_score(*tensors(arrays), rho, config=config))
    assert processor[1] is not None and len(processor) == 2

def test_portions_change_nothing_but_the_order_of_additions(embeddings, processor, monkeypatch):
    arrays, rho = embeddings
    whole = eci_score(*tensors(arrays), rho)
    monkeypatch.setattr(device, "_PORTION", 8 * D * 7) # seven rows at a time, and a rest of six
    alike(whole, eci_score(*tensors(arrays), rho), rel=1e-12)

def test_half_precision_is_brought_to_float64_first(embeddings, processor):
    arrays, rho = embeddings
    half = tensors(arrays, torch.bfloat16)
    alike(eci_score(*(x.double().numpy() for x in half), rho), eci_score(*half, rho))
    assert processor[-1] is not None

def test_a_length_does_not_matter_and_the_tensors_stay_as_they_were(embeddings, processor):
    arrays, rho = embeddings
    given = [1024 * x.double() for x in tensors(arrays)] # float64 is not copied on its way
    before = [x.clone() for x in given]
    for config in (ECIConfig(), ECIConfig(space="centred", residual="unit")): alike(eci_score(*arrays, rho, config=config), eci_score(*given, rho, config=config))
    assert all(torch.equal(a, b) for a, b in zip(given, before)) and all(x is not None for x in processor[1::2])

def test_a_full_device_and_few_rows_are_left_to_the_processor(embeddings, processor, monkeypatch):
    arrays, rho = embeddings
    few = [x[:D - 1] for x in arrays]
    alike(Accumulator(D).add(*few, rho[:D - 1]).result(), Accumulator(D).add(*tensors(few), rho[:D - 1]).result())
    assert processor == [None, None]
    def full(*args, **kwargs): raise torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(device, "_unit", full)
    alike(eci_score(*arrays, rho), eci_score(*tensors(arrays), rho))
    assert processor[2:] == [None, None] and device_mean(tensors(arrays), kinds=["cpu"]) is None

def test_chunks_and_baselines_too(embeddings, processor):
    arrays, rho = embeddings
    acc = Accumulator(D)
    for part in (slice(0, 100), slice(100, N)): acc.add(*(x[part] for x in tensors(arrays)), rho[part])
    assert all(x is not None for x in processor) and len(processor) == 2
    alike(eci_score(*arrays, rho), acc.result())
    here, there = baselines(*arrays, rho), baselines(*tensors(arrays), rho)
    assert there == pytest.approx(here, rel=1e-10)

def test_query_blocks_and_calibration_are_made_by_the_processor(embeddings, processor):
    arrays, rho = embeddings
    block = np.arange(N) % 5
    a, b = (Accumulator(D, blocks=5).add(*x, rho, block) for x in (arrays, tensors(arrays)))
    assert not processor and np.array_equal(a.block_totals, b.block_totals) and np.array_equal(a.total, b.total)
    c = calibrate(arrays[0], arrays[1])
    assert eci_net(*tensors(arrays), rho, c, 0.01).value == pytest.approx(eci_net(*arrays, rho, c, 0.01).value, rel=1e-12) and not processor
    config = ECIConfig(consistency="calibrated")
    alike(*(eci_score(*x, rho, config=config, calibration=c, prior=0.01) for x in (arrays, tensors(arrays))))
    assert not processor

def test_a_factor_of_ones_own_is_made_by_the_processor(embeddings, processor):
    arrays, rho = embeddings
    register_factor("locality", "plateau", lambda qp, qn, tau: np.exp(-np.maximum(qp - qn - 0.1, 0) / tau))
    try: alike(*(eci_score(*x, rho, config=ECIConfig(locality="plateau")) for x in (arrays, tensors(arrays))))
    finally: forget_factor("locality", "plateau")
    assert processor == [None, None]

@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("value, words", [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (0.0, "zero vector")])
def test_a_vector_without_a_direction_is_named_as_ever(embeddings, processor, which, value, words):
    arrays, rho = embeddings
    arrays[which][17] = value
    with pytest.raises(InputError, match=words) as here: eci_score(*arrays, rho)
    with pytest.raises(InputError) as there: eci_score(*tensors(arrays), rho)
    assert str(here.value) == str(there.value) and "row 17" in str(there.value) and processor == [None, None]

def test_vectors_too_long_to_be_squared_are_left_to_the_processor(embeddings, processor):
    arrays, rho = embeddings
    long = [x.astype(np.float64) for x in arrays]
    long[2][3] *= 1e180
    alike(eci_score(*long, rho), eci_score(*tensors(long), rho))
    assert processor == [None, None]

def test_a_row_at_the_centre_is_named_as_ever(embeddings, processor):
    arrays, rho = embeddings
    centre = arrays[1][5] / np.linalg.norm(arrays[1][5].astype(float))
    arrays[1][5] = centre
    for x in (arrays, tensors(arrays)):
        with pytest.raises(InputError, match=r"row 5 \(counted from 0\) equals the mean"): eci_score(*x, rho, config=ECIConfig(space="centred"), mean=arrays[1][5].astype(float) / np.linalg.norm(arrays[1][5].astype(float)))
    assert processor == [None, None]

def test_the_mean_is_the_processors(embeddings):
    arrays, _ = embeddings
    assert device_mean(tensors(arrays[1:])) is None
    there = device_mean(tensors(arrays[1:]), kinds=["cpu"])
    assert there.dtype == np.float64 and np.allclose(there, mean_vector(*arrays[1:]), rtol=1e-12, atol=1e-15)
    arrays[2][0] = 0
    assert device_mean(tensors(arrays[1:]), kinds=["cpu"]) is None

def test_what_counts_as_on_a_device(embeddings):
    (q, p, n), rho = embeddings
    a, b = tensors((q, p))
    assert not on_device() and not on_device(a, b) and not on_device(a, p, kinds=["cpu"]) and not on_device(q, p, kinds=["cpu"]) and on_device(a, b, kinds=["cpu"])
    assert not on_device(a, b.to("meta"), kinds=["cpu", "meta"]), "two devices"
    assert "mps" not in device.DEVICES and "cpu" not in device.DEVICES, "no float64 there, and no need here"
    assert device_sums(a, b, torch.from_numpy(n), rho, ECIConfig()) is None

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("config", [ECIConfig(), ECIConfig(residual="unit", space="centred", product="fisher")])
def test_on_a_gpu(embeddings, config):
    arrays, rho = embeddings
    there = [x.to("cuda") for x in tensors(arrays)]
    assert device_sums(*there, rho, ECIConfig()) is not None
    alike(eci_score(*arrays, rho, config=config), eci_score(*there, rho, config=config))
