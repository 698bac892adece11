"""What a job costs: terms are counted right, factors come back from seconds made of them, and figures draw what the table says."""
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.collection import InputError
from eci_sem.figures import save_figure
from eci_sem.growth import cost_curves, cost_residuals, job_bars
from eci_sem.cost import GFLOP_PER_TEXT, GPU_TFLOPS, RATES, SECONDS_PER_TEXT
from eci_sem.scaling import SHAPES, STAGES, UNMEASURED, Fit, Job, Shape, against, extrapolate, fit, invented_ranking, invented_texts, measure, prepared


def test_operations_of_a_shape_by_hand():
    # 1 layer, width 2, inner 3: 4 matrices of 4 weights and 2 of 6; 5 tokens; attention 4 * 1 * 2 * 25
    assert Shape(1, 2, 3).flops(5) == 2 * (16 + 12) * 5 + 200
    assert SHAPES["bert-base"].flops(0) == 0 and SHAPES["bert-base"].flops(100) > 2 * SHAPES["distilbert"].flops(100) * 0.999


def test_operations_are_those_of_the_model_itself():
    "Two per weight of the layers, biases and norms aside."
    from transformers import BertConfig, BertModel
    s = Shape(2, 64, 96)
    model = BertModel(BertConfig(vocab_size=10, hidden_size=s.dim, num_hidden_layers=s.layers, num_attention_heads=2, intermediate_size=s.inner), add_pooling_layer=False)
    weights = sum(p.numel() for n, p in model.encoder.named_parameters() if p.ndim == 2)
    assert s.flops(1) - 4 * s.layers * s.dim == 2 * weights


def test_invented_texts_differ_and_come_again():
    texts = invented_texts(200, 7, seed=3)
    assert len(set(texts)) == 200 and texts == invented_texts(200, 7, seed=3) != invented_texts(200, 7, seed=4) and {len(t.split()) for t in texts} == {7}


def sized(stage, factors, sizes, noise=0.0, repeats=2, of="seconds"):
    rng = np.random.default_rng(0)
    rows = [dict(stage=stage, encoder="", **z, repeat=k) for z in sizes for k in range(repeats)]
    terms = STAGES[stage].time if of == "seconds" else STAGES[stage].memory
    value = lambda r: sum(f * np.prod([1.0 if p == "1" else r[p] for p in t.split("*")]) for f, t in zip(factors, terms))
    return pd.DataFrame([r | dict(seconds=1.0, bytes=1) | {of: value(r) * np.exp(noise * rng.normal())} for r in rows])


SIZES = [dict(n=n, d=d) for n in (1000, 4000, 16_000) for d in (32, 128)]


@given(st.lists(st.floats(1e-12, 1e-3), min_size=2, max_size=2))
@settings(max_examples=40, deadline=None)
def test_factors_come_back(factors):
    f = fit(sized("score", factors, SIZES), "score", resamples=5)
    assert np.allclose(f.factors, factors, rtol=1e-6, atol=1e-9 * max(factors)) and f.worst < 1e-6 and abs(f.held_out) < 1e-6 and f.points == 6
    value, lo, hi = f.predict(dict(n=10**6, d=768))
    assert np.isclose(value, factors[0] * 768e6 + factors[1] * 768e6 * 768, rtol=1e-6) and np.isclose(lo, value, rtol=1e-4) and np.isclose(hi, value, rtol=1e-4)


def test_no_factor_is_below_zero_and_a_wrong_form_shows():
    table = sized("score", (0, 1e-9), SIZES)
    table["seconds"] = 1e-6 * table["n"]**0.5 # grows slower than any term
    f = fit(table, "score", resamples=20)
    assert (f.factors >= 0).all() and (f.draws >= 0).all() and f.worst > 0.3 and f.held_out < -0.3


def test_the_interval_widens_with_the_noise_and_repeats_are_no_evidence():
    widths = []
    for noise, repeats in ((0.02, 2), (0.2, 2), (0.2, 50)):
        lo, hi = fit(sized("triples", (1e-6,), [dict(n=n) for n in (10, 100, 1000, 10_000)], noise, repeats), "triples", resamples=400).predict(dict(n=10**9))[1:]
        widths.append(hi / lo - 1)
    assert widths[1] > 4 * widths[0]
    same = fit(pd.concat([sized("triples", (1e-6,), [dict(n=n) for n in (10, 100, 1000)], 0.2, 1)] * 20), "triples", resamples=400, seed=1)
    once = fit(sized("triples", (1e-6,), [dict(n=n) for n in (10, 100, 1000)], 0.2, 1), "triples", resamples=400, seed=1)
    assert np.allclose(same.predict(dict(n=5)), once.predict(dict(n=5)))


def test_the_largest_size_is_predicted_from_the_others():
    table = sized("triples", (1e-6,), [dict(n=n) for n in (10, 100, 1000)])
    table.loc[table["n"] == 1000, "seconds"] *= 2
    assert np.isclose(fit(table, "triples", resamples=2).held_out, 1)


def test_what_does_not_fit_is_refused():
    table = sized("score", (1, 1), SIZES)
    for wrong, message in ((dict(stage="scores"), "unknown stage 'scores'. Did you mean 'score'"), (dict(stage="score", of="byte"), "unknown quantity 'byte'"), (dict(stage="encode", of="bytes"), "the bytes of 'encode' are not measured")):
        with pytest.raises(InputError, match=message): fit(table, **wrong)
    with pytest.raises(InputError, match="'score' was measured at 1 sizes, expected at least 2: as many as it has terms"): fit(table[:2], "score")
    with pytest.raises(InputError, match="'score': seconds hold values that are not above 0"): fit(table.assign(seconds=0.0), "score")
    with pytest.raises(InputError, match="unknown stage 'mine'"): measure({"mine": []})
    with pytest.raises(InputError, match="unknown stage 'mine'"): prepared("mine", {}, ".")
    with pytest.raises(InputError, match="repeats is 0, expected a whole number of at least 1"): measure({}, repeats=0)


def test_the_least_of_the_repeats_counts_and_the_spread_is_kept():
    table = sized("triples", (1e-6,), [dict(n=n) for n in (10, 100, 1000)])
    table.loc[table["repeat"] == 1, "seconds"] *= 5 # another program ran
    table["load"] = np.arange(len(table)) # another load at each repeat makes no other size
    f = fit(table, "triples", resamples=20)
    assert np.isclose(f.factors[0], 1e-6) and f.worst < 1e-9 and np.isclose(f.spread, 5) and f.points == 3 and not f.doubtful()


def test_a_fit_that_is_far_off_is_doubtful():
    table = sized("triples", (1e-6,), [dict(n=n) for n in (10, 100, 1000)])
    table.loc[table["n"] == 10, "seconds"] *= 4
    f = fit(table, "triples", resamples=20)
    assert f.worst > 0.5 and f.doubtful() and f.doubtful(0.5) and not f.doubtful(99) and "DOUBTFUL" in repr(f)
    assert Fit("s", ("n",), np.ones(1), np.ones((2, 1)), 1, np.zeros(1), 0.6).doubtful() and not Fit("s", ("n",), np.ones(1), np.ones((2, 1)), 1, np.zeros(1), float("nan")).doubtful()


def test_the_memory_of_the_bootstrap_grows_with_its_rows():
    "Whole blocks are taken at once, and the numbers of all rows are kept: measured in small, told at a larger size."
    grid = [dict(n=n, d=d, B=4, K=k) for d in (16, 48) for n in (6000, 24_000) for k in (3, 24)]
    small = measure({"bootstrap": grid}, repeats=1, progress=False)
    f = fit(small, "bootstrap", "bytes", resamples=2)
    factor = dict(zip(f.terms, f.factors))
    assert factor["r*d"] > 8 and f.worst < 0.5, f
    large = measure({"bootstrap": [dict(n=150_000, d=32, B=4, K=3)]}, repeats=1, progress=False)
    assert large["r"].tolist() == [50_000] and np.isclose(f.predict(large.iloc[0])[0], large["bytes"].iloc[0], rtol=0.3)
    assert f.predict(dict(n=25e6, d=768, B=1000, K=256))[0] > 25e6 / 256 * 768 * 8 # more than one block of rows in float64


def test_measurements_without_the_newer_columns_are_fitted(root):
    "Those that are committed were made before `r` and `load` were written."
    table = pd.read_csv(root / "figures/scaling/measurements.csv").drop(columns=["r", "load"], errors="ignore")
    for stage, s in STAGES.items():
        assert fit(table, stage, resamples=2).points > 1
        if s.memory: assert fit(table, stage, "bytes", resamples=2).points > 1


def test_all_cores_are_used_where_a_batch_left_fewer(root):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    code = "import json, numpy; from eci_sem.scaling import use_threads; print(json.dumps([use_threads(), use_threads(1)]))"
    found = subprocess.run([sys.executable, "-c", code], env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=root, capture_output=True, text=True)
    assert json.loads(found.stdout) == [dict(torch=cores, blas=cores), dict(torch=1, blas=1)], found.stderr


def test_what_a_gpu_sustains_is_assumed_once(root):
    assert np.isclose(GFLOP_PER_TEXT, SHAPES["bert-base"].flops(80) / 1e9, rtol=0.01) and RATES["*", "cuda"][0] == int(1e3 * GPU_TFLOPS["float32"] / GFLOP_PER_TEXT)
    assert {s.gpu[2] for s in STAGES.values() if s.gpu} == set(GPU_TFLOPS) and {k for k, s in STAGES.items() if s.gpu} == {"encode", "score"}
    cells = json.loads((root / "nbs/experiments/scaling.ipynb").read_text(encoding="utf-8"))["cells"]
    given = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ()))
    assert all(f"{name}: float = 0.0 " in given for name in ("gpu_fp32_tflops", "gpu_fp64_tflops", "text_seconds")) # 0: the constants of cost


def test_an_invented_ranking_can_be_ranked():
    from eci_sem.rank import rank_sources
    t, encoder = invented_ranking(3, queries=30, negatives=2, dim=8)
    again, _ = invented_ranking(3, queries=30, negatives=2, dim=8)
    assert t.content_hash == again.content_hash and t.sources == ["s0", "s1", "s2"] and len(t) == 180 and encoder.dim == 8
    found = rank_sources(t, encoder, metrics=["eci_sem"], resamples=20, progress=False)
    assert len(found.table) == 6 and found.table["n"].sum() == 3 * 60 + 3 * 120 and not found.provenance["cautions"] and found.dropped.empty


def test_a_benchmark_beside_its_fit():
    of = [dict(stage="bootstrap", seconds=30.0, B=1000, n=100_000, K=256, d=768), dict(stage="score", seconds=2.35, n=100_000, d=768), dict(stage="cache read", seconds=0.5, n=200_000, d=384),
        dict(stage="dense mining", seconds=21.1, p=1_000_000, q=1000, d=384), dict(stage="bm25 mining", seconds=28.0, p=200_000, q=0, t=40), dict(stage="another", seconds=1.0, n=1)]
    scripts = dict(all=dict(load=0.5, claims=[dict(name=f"claim {i}", of=x) for i, x in enumerate(of)] + [dict(name="memory, which times nothing")]))
    before = json.dumps(scripts)
    seconds = {"score": plain(("n*d",), 1e-8), "bootstrap": plain(("B*K",), 1e-4), "dense mining": plain(("q*p*d",), 1e-11), "bm25 mining": plain(("p*t", "q*p"), 1e-6), "cache read": plain(("n",), 1e-6)}
    table = against(scripts, seconds).set_index("stage")
    assert json.dumps(scripts) == before and table["claimed"].to_dict() == {"score": 2.35, "bootstrap": 30.0, "dense mining": 21.1, "bm25 mining": 28.0, "cache read": 0.5}
    assert np.allclose(table["fitted"][["score", "bootstrap", "dense mining", "bm25 mining", "cache read"]], [0.768, 25.6, 3.84, 8.0, 0.2])
    assert np.isclose(table.loc["bootstrap", "claimed_over_fitted"], 30 / 25.6) and (table["load"] == 0.5).all() and against({}, seconds).empty
    assert table.loc["bm25 mining", ["claim", "sizes"]].tolist() == ["claim 4", "p 200,000, q 0, t 40"]


def test_the_committed_benchmarks_are_found(root):
    scripts = json.loads((root / "benchmarks/results.json").read_text(encoding="utf-8"))["scripts"]
    assert set(against(scripts, {s: plain(x.time, 1e-9) for s, x in STAGES.items()})["stage"]) == {"cache read", "score", "bootstrap", "dense mining", "bm25 mining"}


def job(**changes): return Job(**dict(name="j", passages=1000, queries=10, negatives=5, sources=("dense", "bm25", "random"), encoders=("minilm-l6", "distilbert")) | changes)


def test_a_job_counts_its_work():
    work = {(s, e): (times, z) for s, e, times, z in job().sizes()}
    assert job().triples == 150 and {s for s, _ in work} == set(STAGES) and len(work) == 6 + 5 + 3 # the second encoder mines no source
    assert job().pools == (3, 1) and job(hybrids=False).pools == (3, 0) and job().written == 0
    scored = [(times, z) for s, e, times, z in job().sizes() if (s, e) == ("score", "distilbert")]
    assert scored == [(3, dict(n=50, d=768)), (1, dict(n=100, d=768))] # the hybrid has the rows of both its parts
    flop, texts = SHAPES["minilm-l6"].flops, 1010
    assert np.isclose(work["encode", "minilm-l6"][1]["gflop"] * texts * 1e9, 1000 * flop(80) + 10 * flop(10))
    for stage, _, _, z in job().sizes():
        assert set("*".join(STAGES[stage].time + STAGES[stage].memory).split("*")) <= {*z, "1", ""} | ({"b", "r"} if stage == "bootstrap" else set()), f"{stage} lacks a size" # b and r follow from the others
    for wrong, message in ((dict(queries=0), "Job: queries is 0, expected a number above 0"), (dict(encoders=()), "no encoder is named"), (dict(encoders=("bert",)), "unknown shape of an encoder 'bert'. Did you mean 'bert-base'"), (dict(tokens=float("inf")), "tokens is inf"),
        (dict(sources=()), "sources is \\(\\), expected a tuple of at least one of dense, bm25, llm, random"), (dict(sources="bm25"), "sources is 'bm25', expected a tuple"), (dict(sources=("bm52",)), "unknown kind of source 'bm52'. Did you mean 'bm25'"), (dict(sources=("dense",) * 3), "3 dense sources and 2 encoders")):
        with pytest.raises(InputError, match=message): job(**wrong)


def test_negatives_that_are_written_are_work():
    "They are written, encoded by every encoder, kept, read, and their words are counted; nothing is mined for them."
    j = job(sources=("dense", "dense", "bm25", "llm", "random"))
    work = {(s, e): z for s, e, _, z in j.sizes()}
    assert j.written == 50 and j.pools == (5, 6) and work["write negatives", ""] == dict(n=50)
    for e in j.encoders:
        assert work["encode generated negatives", e] == dict(n=50, d=SHAPES[e].dim, gflop=SHAPES[e].flops(80) / 1e9) and work["encode", e]["n"] == 1010
        assert work["cache write", e]["n"] == work["cache read", e]["n"] == 1060 and ("dense mining", e) in work
    assert work["overlap", ""]["p"] == 1050 and work["bm25 mining", ""]["p"] == 1000
    seconds, memory = {s: plain(x.time, 0.0) for s, x in STAGES.items()} | {"encode": plain(("n",), 36.0)}, {s: plain(x.memory, 0.0) for s, x in STAGES.items() if x.memory}
    table = extrapolate(j, seconds, memory, tflops=dict(float32=1e-3, float64=1.0), text_seconds=72.0).set_index("stage")
    assert np.isclose(table.loc["write negatives", "hours"], 1) and np.isclose(table.loc["encode generated negatives", "hours"], 1) and np.isclose(table.loc["encode", "hours"], 2 * 10.1)
    assert table.loc["write negatives", "basis"] == "assumed: 72 s a text" and table.loc["encode generated negatives", "basis"] == "fit of encode" and table.loc["score", "basis"] == "fit"
    assert np.isclose(table.loc["encode generated negatives", "gpu_hours"], 50 * sum(SHAPES[e].flops(80) for e in j.encoders) / 1e9 / 3600) and np.isnan(table.loc["write negatives", ["gpu_hours", "bytes"]].astype(float)).all()
    assert set(UNMEASURED) <= set(table.index) and np.isclose(extrapolate(j, seconds, memory).set_index("stage").loc["write negatives", "hours"], 50 * SECONDS_PER_TEXT / 3600)


def test_a_plan_says_which_of_its_fits_are_doubtful():
    off = lambda terms: plain(terms, 1e-9)._replace(residuals=np.array([2.6]))
    seconds = {s: plain(x.time, 1e-9) for s, x in STAGES.items()} | {"encode": off(STAGES["encode"].time), "triples": off(("n",))}
    memory = {s: plain(x.memory, 1e-9) for s, x in STAGES.items() if x.memory} | {"bootstrap": off(STAGES["bootstrap"].memory), "triples": off(("n",))}
    j = job(sources=("bm25", "llm"))
    said = extrapolate(j, seconds, memory).set_index("stage")["doubtful"]
    assert said[said != ""].to_dict() == {"encode": "seconds", "encode generated negatives": "seconds", "bootstrap": "bytes", "triples": "seconds and bytes"}
    assert (extrapolate(j, seconds, memory, doubt=3)["doubtful"] == "").all()


def plain(terms, factor=1.0): return Fit("s", terms, np.full(len(terms), factor), np.full((4, len(terms)), factor), 1, np.zeros(1), 0.0)


def test_a_plan_by_hand():
    seconds = {s: plain(x.time, 0.0) for s, x in STAGES.items()} | {"score": plain(STAGES["score"].time[1:], 3600.0)}
    memory = {s: plain(x.memory, 0.0) for s, x in STAGES.items() if x.memory} | {"triples": plain(("n",), 8.0), "cache write": plain(("n*d",), 2.0)}
    table = extrapolate(job(), seconds, memory, tflops=dict(float32=1.0, float64=1e-12), ram=1000, disk=1e9, hours=1e9).set_index("stage")
    # three sources, and a hybrid of two with twice the rows
    assert table.loc["score", "hours"] == 5 * 50 * (384**2 + 768**2) and np.isclose(table.loc["score", "gpu_hours"], 2 * 5 * 50 * (384**2 + 768**2) / 3600)
    assert table.loc["triples", "bytes"] == 1200 and table.loc["cache write", "bytes"] == 2 * 1010 * (384 + 768) and table.loc["encode", "bytes"] == 4 * 1010 * 768
    # the vectors in memory pass their limit by the most; all else is within its own or has less
    assert table.index[0] == "encode" and table["over"].iloc[0] == 4 * 1010 * 768 / 1000 and table["limit"].iloc[0] == "memory" and table["over"].is_monotonic_decreasing
    assert np.isnan(table.loc[["bm25 mining", "dense mining", "bootstrap"], "gpu_hours"]).all() and table.loc["cache write", "limit"] == "disk"


def test_every_stage_is_measured(tmp_path):
    grid = {"cache write": [dict(n=30, d=8)], "cache read": [dict(n=30, d=8)], "overlap": [dict(n=20, p=10, t=5)], "score": [dict(n=20, d=4)], "bootstrap": [dict(n=20, d=4, B=3, K=5)], "dense mining": [dict(q=3, p=10, d=4)], "bm25 mining": [dict(q=3, p=10, t=5)], "triples": [dict(n=20)]}
    table = measure(grid, repeats=2)
    assert list(dict.fromkeys(table["stage"])) == [s for s in STAGES if s != "encode"] and (table["seconds"] > 0).all() and (table["bytes"] > 0).all() and len(table) == 16 and (table["load"] >= 0).all()
    assert table.loc[table["stage"] == "cache write", "bytes"].iloc[0] >= 30 * 8 * 4 # the vectors are on the disk


def test_an_encoder_of_random_weights_has_its_shape(tmp_path):
    from eci_sem.scaling import random_encoder
    shape = Shape(1, 64, 80)
    a = random_encoder(shape, tmp_path / "a")
    table = measure({"encode": [dict(n=3, words=4, encoder=a, shape=shape)]}, repeats=1)
    assert a.dim == 64 and table["gflop"].iloc[0] == shape.flops(table["t"].iloc[0]) / 1e9 and table["t"].iloc[0] >= 6
    same, other = random_encoder(shape, tmp_path / "b"), random_encoder(shape, tmp_path / "c", seed=1)
    v = a.encode_passages(["water"])
    assert (same.encode_passages(["water"]) == v).all() and (other.encode_passages(["water"]) != v).any()


def curves(): return pd.DataFrame([dict(stage=s, series=f"d {d}", x_name="n", x=n, seconds=1e-8 * n * d, fitted=1.1e-8 * n * d) for s in ("score", "mining") for d in (8, 32) for n in (10, 100)])
def bars(): return pd.DataFrame([dict(job=j, stage=s, hours=h, lo=h / 2, hi=h * 2) for j, h in (("small", 1.0), ("large", 40.0)) for s in ("encode", "score")])


@pytest.mark.parametrize("draw, make", [pytest.param(d, m, id=d.__name__) for d, m in ((cost_curves, curves), (cost_residuals, curves), (job_bars, bars))])
def test_drawn_again_from_its_csv_the_bytes_are_the_same(draw, make, tmp_path):
    table = make()
    first = save_figure(draw(table), table, "fig", tmp_path / "a", dict(seed=0))
    again = pd.read_csv(first[2])
    for a, b in zip(first[:2], save_figure(draw(again), again, "fig", tmp_path / "b", dict(seed=0))): assert a.read_bytes() == b.read_bytes(), a.name
    for column in ("stage", table.select_dtypes("number").columns[-1]):
        with pytest.raises(InputError, match=f"{draw.__name__}: column '{column}' is missing"): draw(table.drop(columns=column))


def test_figures_show_what_the_table_says():
    fig = cost_curves(curves())
    ax = fig.axes[0]
    marks = [l for l in ax.lines if l.get_linestyle() == "None"]
    assert len(fig.axes) == 2 and len(marks) == 2 and list(marks[1].get_ydata()) == [1e-8 * 10 * 32, 1e-8 * 100 * 32] and ax.get_xscale() == ax.get_yscale() == "log"
    assert [t.get_text() for t in cost_residuals(curves()).axes[0].get_yticklabels()] == ["score (4)", "mining (4)"]
    large = job_bars(bars(), limit=24).axes[1]
    assert {l.get_marker() for l in large.lines} == {"None", "D"} and {l.get_marker() for l in job_bars(bars(), limit=24).axes[0].lines} == {"None", "o"}
    for draw, table, message in ((cost_curves, curves().assign(seconds=0.0), "seconds is 0.0, expected numbers above 0"), (cost_residuals, curves().assign(fitted=-1.0), "not above 0"), (job_bars, bars().assign(lo=99.0), "is above hi"), (job_bars, bars().assign(hours=0.0), "not above 0")):
        with pytest.raises(InputError, match=message): draw(table)
