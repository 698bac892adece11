"""Fine-tuning and evaluation: the order of training, the loss, the trainer against plain torch, beir's habits, the store."""
import json
import math
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from eci_sem import transfer as tr
from eci_sem.collection import Collection, InputError
from eci_sem.cost import estimate
from eci_sem.encoders import Encoder
from eci_sem.triples import Triples

WORDS = [f"w{i}" for i in range(60)]


def static_model(dim=8, seed=0):
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers
    tokenizer = Tokenizer(models.WordLevel({**{w: i for i, w in enumerate(WORDS)}, "[UNK]": len(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(seed).standard_normal((len(WORDS) + 1, dim)).astype(np.float32)
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=torch.from_numpy(weights))], device="cpu")

def text(rng, n=5): return " ".join(rng.choice(WORDS[:50], n))

def toy(queries=24, seed=0):
    rng = np.random.default_rng(seed)
    corpus = {str(i): text(rng, 6) for i in range(40)}
    ask = {str(i): text(rng, 4) for i in range(queries)}
    half = queries // 2
    qrels = {"train": {str(i): {str(i): 1} for i in range(half)}, "test": {str(i): {str(i): 1} for i in range(half, queries)}}
    return Collection("toy", corpus, ask, qrels)

def toy_triples(c, sources=("bm25@1", "llm", "random")):
    rng = np.random.default_rng(1)
    return Triples.from_rows([dict(query_id=p.query_id, positive_id=p.positive_id, negative_id=f"{s}{p.query_id}", query=p.query, positive=p.positive, negative=text(rng, 6), source=s) for s in sources for p in c.pairs("train")])

def runner(tmp_path, c=None, recipe=tr.Recipe(batch_size=4, learning_rate=0.01), **options):
    c = c or toy()
    return tr.Runner(Encoder(static_model(), "toy", cache=False), tr.training_data(toy_triples(c), ["bm25@1+llm"]), [tr.Evaluation(c)], recipe, store=tmp_path, **options)

# --- the recipe

@pytest.mark.parametrize("change, message", [(dict(epochs=0), "Recipe: epochs is 0, expected a whole number of at least 1"), (dict(learning_rate=0), "Recipe: learning_rate is 0, expected a number from 0 to 10"),
    (dict(warmup=2), "Recipe: warmup is 2, expected a number from 0 to 1"), (dict(precision="fp8"), "unknown precision 'fp8'"), (dict(batch_size=1), "Recipe: in_batch needs a batch_size of at least 2")])
def test_a_bad_recipe_is_refused(change, message):
    with pytest.raises(InputError, match=message): tr.Recipe(**change)

def test_recipe_for_takes_changes_by_name():
    assert tr.recipe_for("glove", epochs=None, batch_size=8) == tr.Recipe(**{**tr.asdict(tr.RECIPES["glove"]), "batch_size": 8})
    with pytest.raises(InputError, match="unknown field of the recipe 'lr'"): tr.recipe_for("glove", lr=1)

# --- the order of training

@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=2, max_size=40), st.integers(1, 3), st.integers(2, 8), st.integers(0, 5))
def test_every_row_comes_once_an_epoch_and_no_text_twice_in_a_batch(rows, epochs, size, seed):
    q, p = [f"q{a}" for a, _ in rows], [f"p{b}" for _, b in rows]
    order = tr.batches(q, p, tr.Recipe(epochs=epochs, batch_size=size), seed)
    assert Counter(x for b in order for x in b) == Counter((e, r) for e in range(epochs) for r in range(len(rows)))
    for b in order:
        assert len(b) <= size and len({q[r] for _, r in b}) == len(b) == len({p[r] for _, r in b})
    assert [e for b in order for e, _ in b] == sorted(e for b in order for e, _ in b), "an epoch ends before the next begins"

def test_batches_do_not_depend_on_the_source_and_another_seed_is_another_order():
    data = tr.training_data(toy_triples(toy()), ["bm25@1+llm"])
    recipe = tr.Recipe(epochs=2, batch_size=4)
    order = {s: [(r["anchor"], r["positive"]) for r in tr.training_rows(data, s, recipe, 3)[0]] for s in data.sources}
    assert len({json.dumps(o) for o in order.values()}) == 1 and set(order) == {"none", "bm25@1", "llm", "random", "bm25@1+llm"}
    assert [r["anchor"] for r in tr.training_rows(data, "llm", recipe, 4)[0]] != [a for a, _ in order["llm"]]

def test_a_hybrid_gives_half_to_each_part_and_swaps():
    data = tr.training_data(toy_triples(toy()), ["bm25@1+llm"])
    rows, _ = tr.training_rows(data, "bm25@1+llm", tr.Recipe(epochs=2, batch_size=4), 0)
    part = lambda r: [s for s in ("bm25@1", "llm") if r["negative"] == data.negatives[s][data.queries.index(r["anchor"])]][0]
    n = len(data.queries)
    first, second = ({r["anchor"]: part(r) for r in rows[k * n:(k + 1) * n]} for k in (0, 1))
    assert Counter(first.values()) == {"bm25@1": n // 2, "llm": n - n // 2}
    assert all(first[q] != second[q] for q in first)

def test_training_takes_the_queries_that_every_source_covers():
    t = toy_triples(toy())
    keep = [i for i, (s, q) in enumerate(zip(t.column("source"), t.column("query_id"))) if not (s == "llm" and q in ("0", "1"))]
    data = tr.training_data(t.take(np.array(keep)))
    assert "0" not in data.query_ids and len(data.query_ids) == 10 and data.dropped == {"bm25@1": 2, "llm": 0, "random": 2}
    assert len(tr.training_data(t, limit=5, seed=1).query_ids) == 5

def test_what_training_data_refuses():
    t = toy_triples(toy())
    with pytest.raises(InputError, match="unknown part of the hybrid 'bm25@1\\+dense' 'dense'"): tr.training_data(t, ["bm25@1+dense"])
    with pytest.raises(InputError, match="hybrid 'llm': expected different sources joined by '\\+'"): tr.training_data(t, ["llm"])
    with pytest.raises(InputError, match="source 'llm' has several negatives for query '0'"):
        tr.training_data(Triples.concat([t, Triples.from_rows([dict(query_id="0", positive_id="0", negative_id="x", query=toy().queries["0"], positive=toy().corpus["0"], negative="w1 w2", source="llm")])]))
    with pytest.raises(InputError, match="unknown source 'dense'"): tr.training_rows(tr.training_data(t), "dense", tr.Recipe())

def test_depths_are_places_among_the_hits():
    from eci_sem.collection import load_docstrings
    from eci_sem.sources import mine_bm25
    c = load_docstrings()
    pairs = c.pairs("score", limit=5)
    t = tr.mine_depths(c, pairs, {"bm25": None, "random": None}, [1, 5])
    five = mine_bm25(c, pairs, num_negatives=5)
    by = lambda t, s: {q: n for q, n, x in zip(t.column("query_id"), t.column("negative_id"), t.column("source")) if x == s}
    for q in {p.query_id for p in pairs}:
        ranked = [n for a, n in zip(five.column("query_id"), five.column("negative_id")) if a == q]
        assert by(t, "bm25@1")[q] == ranked[0] and by(t, "bm25@5")[q] == ranked[4]
    with pytest.raises(InputError, match=r"depths is \[0\], expected different whole numbers from 1 on"): tr.mine_depths(c, pairs, {"bm25": None}, [0])
    with pytest.raises(InputError, match="method 'dense' mines with an encoder and none was given"): tr.mine_depths(c, pairs, {"dense": None})

# --- the loss and the trainer

def plain_training(weights, tokens, rows, sizes, recipe):
    "The same training in a few lines of torch: mean of word vectors, cosine, cross-entropy, Adam, linear schedule, clipped gradient."
    import torch
    E = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    optimiser = torch.optim.AdamW([E], lr=recipe.learning_rate, weight_decay=0.0)
    vector = lambda ts: torch.stack([E[tokens(t)].mean(0) for t in ts])
    warm, at = round(recipe.warmup * len(sizes)), 0
    for step, n in enumerate(sizes):
        batch = rows[at:at + n]; at += n
        rate = step / max(1, warm) if step < warm else max(0.0, (len(sizes) - step) / max(1, len(sizes) - warm))
        for g in optimiser.param_groups: g["lr"] = recipe.learning_rate * rate
        q, docs = vector([r["anchor"] for r in batch]), [vector([r[c] for r in batch]) for c in ("positive", "negative") if c in batch[0]]
        unit = lambda x: torch.nn.functional.normalize(x, dim=1)
        if recipe.in_batch: loss = torch.nn.functional.cross_entropy(recipe.scale * unit(q) @ unit(torch.cat(docs)).T, torch.arange(n))
        else: loss = torch.nn.functional.cross_entropy(recipe.scale * torch.stack([(unit(q) * unit(d)).sum(1) for d in docs], 1), torch.zeros(n, dtype=torch.long))
        optimiser.zero_grad(); loss.backward()
        torch.nn.utils.clip_grad_norm_([E], 1.0)
        optimiser.step()
    return E.detach().numpy()

@pytest.mark.parametrize("source, in_batch", [("llm", True), ("none", True), ("llm", False), ("bm25@1+llm", True)])
def test_the_trainer_does_what_a_few_lines_of_torch_do(source, in_batch):
    data, recipe, model = tr.training_data(toy_triples(toy()), ["bm25@1+llm"]), tr.Recipe(epochs=2, batch_size=5, learning_rate=0.02, in_batch=in_batch), static_model()
    rows, sizes = tr.training_rows(data, source, recipe, 1)
    before = model[0].embedding.weight.detach().numpy().copy()
    facts = tr.fine_tune(model, rows, sizes, recipe, seed=1)
    expected = plain_training(before, lambda t: model[0].tokenizer.encode(t, add_special_tokens=False).ids, rows, sizes, recipe)
    assert facts["steps"] == len(sizes) == 6
    assert np.abs(model[0].embedding.weight.detach().numpy() - expected).max() < 2e-5
    assert np.abs(expected - before).max() > 0.01, "it moved at all"

def test_a_compact_encoder_trains_to_the_same_vectors():
    c = toy()
    data, recipe = tr.training_data(toy_triples(c)), tr.Recipe(batch_size=4, learning_rate=0.02)
    texts = [*c.corpus.values(), *c.queries.values(), *data.negatives["llm"]]
    rows, sizes = tr.training_rows(data, "llm", recipe)
    full, compact = static_model(), tr.compact_static(static_model(), texts)
    assert compact[0].num_embeddings < full[0].num_embeddings
    assert np.array_equal(full.encode(texts), compact.encode(texts))
    for m in (full, compact): tr.fine_tune(m, rows, sizes, recipe)
    assert np.abs(full.encode(texts) - compact.encode(texts)).max() < 1e-6
    with pytest.raises(InputError, match="this compact encoder was made without the text 'w1 w2 w3 w3 w3'"): compact.encode(["w1 w2 w3 w3 w3"])

def test_prompts_reach_the_training_texts():
    data, recipe = tr.training_data(toy_triples(toy())), tr.Recipe(batch_size=4, learning_rate=0.02)
    rows, sizes = tr.training_rows(data, "llm", recipe)
    said = [dict(anchor="w58 " + r["anchor"], positive="w59 " + r["positive"], negative="w59 " + r["negative"]) for r in rows]
    a, b = static_model(), static_model()
    tr.fine_tune(a, rows, sizes, recipe, query_prompt="w58 ", passage_prompt="w59 "); tr.fine_tune(b, said, sizes, recipe)
    assert np.array_equal(a[0].embedding.weight.detach().numpy(), b[0].embedding.weight.detach().numpy())

def test_a_loss_that_is_no_number_is_an_error():
    data, recipe = tr.training_data(toy_triples(toy())), tr.Recipe(batch_size=4)
    rows, sizes = tr.training_rows(data, "llm", recipe)
    model = static_model()
    model[0].embedding.weight.data[:] = float("nan")
    with pytest.raises(InputError, match="the loss became nan: lower the learning rate"): tr.fine_tune(model, rows, sizes, recipe)
    with pytest.raises(InputError, match="without in-batch negatives and without hard negatives there is nothing to contrast"):
        r = tr.Recipe(batch_size=4, in_batch=False)
        tr.fine_tune(static_model(), *tr.training_rows(data, "none", r), r)

def interrupted_at(step, monkeypatch):
    "Training is interrupted once, at this step; the steps that were begun are counted in the list."
    from transformers import Trainer
    real, steps = Trainer.training_step, []
    def count(self, *args, **kwargs):
        steps.append(1)
        if len(steps) == step: raise KeyboardInterrupt
        return real(self, *args, **kwargs)
    monkeypatch.setattr(Trainer, "training_step", count)
    return steps

def test_a_run_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    data, recipe = tr.training_data(toy_triples(toy())), tr.Recipe(epochs=3, batch_size=4, learning_rate=0.02)
    rows, sizes = tr.training_rows(data, "llm", recipe)
    whole, cut = static_model(), static_model()
    tr.fine_tune(whole, rows, sizes, recipe)
    steps = interrupted_at(7, monkeypatch)
    with pytest.raises(KeyboardInterrupt): tr.fine_tune(cut, rows, sizes, recipe, checkpoints=tmp_path / "c", save_steps=2)
    again = static_model()
    tr.fine_tune(again, rows, sizes, recipe, checkpoints=tmp_path / "c", save_steps=2)
    assert len(steps) == 7 + len(sizes) - 6, "the steps before the last checkpoint are not repeated"
    assert np.abs(again[0].embedding.weight.detach().numpy() - whole[0].embedding.weight.detach().numpy()).max() < 1e-6

def test_a_checkpoint_that_was_not_written_to_its_end_is_left_for_the_one_before(tmp_path, monkeypatch):
    import os, shutil
    data, recipe = tr.training_data(toy_triples(toy())), tr.Recipe(epochs=3, batch_size=4, learning_rate=0.02)
    rows, sizes = tr.training_rows(data, "llm", recipe)
    whole, cut, c = static_model(), static_model(), tmp_path / "c"
    tr.fine_tune(whole, rows, sizes, recipe)
    steps = interrupted_at(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt): tr.fine_tune(cut, rows, sizes, recipe, checkpoints=c, save_steps=2)
    def halve(name): return lambda p: os.truncate(p / name, (p / name).stat().st_size // 2)
    def left(p):
        for f in p.iterdir():
            if f.name not in ("config_sentence_transformers.json", "model.safetensors"): f.unlink()
    damages = [halve("trainer_state.json"), halve("model.safetensors"), halve("optimizer.pt"), halve("scheduler.pt"), halve("rng_state.pth"), lambda p: (p / "model.safetensors").unlink(), lambda p: (p / "scheduler.pt").unlink(), lambda p: (p / "trainer_state.json").unlink(), left]
    for damage in damages:
        shutil.copytree(c / "checkpoint-4", c / "checkpoint-6")
        assert tr._last_checkpoint(c) == str(c / "checkpoint-6")
        damage(c / "checkpoint-6")
        assert tr._last_checkpoint(c) == str(c / "checkpoint-4") and not (c / "checkpoint-6").exists()
    shutil.copytree(c / "checkpoint-4", c / "checkpoint-6"); damages[1](c / "checkpoint-6")
    again = static_model()
    tr.fine_tune(again, rows, sizes, recipe, checkpoints=c, save_steps=2)
    assert len(steps) == 5 + len(sizes) - 4
    assert np.abs(again[0].embedding.weight.detach().numpy() - whole[0].embedding.weight.detach().numpy()).max() < 1e-6
    for p in c.iterdir(): damages[-1](p)
    assert tr._last_checkpoint(c) is None and not list(c.iterdir()), "none is whole: from the beginning"
    (c / "checkpoint-best").mkdir()
    assert tr._last_checkpoint(c) is None and (c / "checkpoint-best").exists() and tr._last_checkpoint(tmp_path / "no") is None

# --- evaluation

def test_a_prompt_that_the_model_puts_by_itself_stays_out():
    model = static_model()
    model.prompts, model.default_prompt_name = {"query": "w1 w2 "}, "query"
    for kind in ("query", "passage"): assert tr.encode_with(model)(["w3"], kind).tolist() == model.encode(["w3"], prompt="", convert_to_tensor=True, normalize_embeddings=True).tolist() != model.encode(["w3"], convert_to_tensor=True, normalize_embeddings=True).tolist()
    assert tr.encode_with(model, "w1 w2 ")(["w3"], "query").tolist() == model.encode(["w3"], convert_to_tensor=True, normalize_embeddings=True).tolist()

def vectors_for(table): # text -> vector
    import torch
    return lambda texts, kind: torch.tensor([table[t] for t in texts])

def test_ndcg_recall_and_mrr_by_hand():
    # one query at (1, 0); passages at falling cosine; grades 0, 2, 1 in that order and one relevant passage far away
    angle = {"a": 0.1, "b": 0.2, "c": 0.3, "far": 3.0}
    table = {f"text {k}": [math.cos(x), math.sin(x)] for k, x in angle.items()} | {"the query": [1.0, 0.0], "another": [0.0, 1.0]}
    c = Collection("hand", {k: f"text {k}" for k in angle}, {"q": "the query", "r": "another"}, {"test": {"q": {"b": 2, "c": 1, "a": 0}, "r": {"far": 1}}})
    found = tr.evaluate(vectors_for(table), c).set_index("query_id")
    ideal = 2 + 1 / math.log2(3)
    assert found.loc["q", "ndcg@10"] == pytest.approx((2 / math.log2(3) + 1 / 2) / ideal)
    assert found.loc["q", "mrr@10"] == 0.5 and found.loc["q", "recall@100"] == 1.0
    assert found.loc["r", "mrr@10"] == pytest.approx(1 / 3)

def test_a_query_may_have_the_id_of_a_passage():
    # beir drops a document whose id is the query's, from the results and from the evaluation
    table = {"same": [1.0, 0.0], "other": [0.9, 0.1], "ask": [1.0, 0.0]}
    c = Collection("ids", {"7": "same", "8": "other"}, {"7": "ask"}, {"test": {"7": {"7": 1}}})
    assert tr.evaluate(vectors_for(table), c)[["ndcg@10", "mrr@10"]].to_numpy().tolist() == [[1.0, 1.0]]

def test_beyond_the_tenth_place_mrr_is_nothing():
    angle = {f"p{i:02d}": 0.1 * (i + 1) for i in range(12)}
    table = {k: [math.cos(x), math.sin(x)] for k, x in angle.items()} | {"ask": [1.0, 0.0]}
    for place, expected in ((9, 0.1), (10, 0.0)):
        c = Collection("deep", {k: k for k in angle}, {"q": "ask"}, {"test": {"q": {f"p{place:02d}": 1}}})
        assert tr.evaluate(vectors_for(table), c)["mrr@10"].item() == pytest.approx(expected)

def test_evaluation_agrees_with_beir_on_random_vectors():
    import torch
    from beir.retrieval.evaluation import EvaluateRetrieval
    c, rng = toy(), np.random.default_rng(3)
    table = {t: rng.standard_normal(6).tolist() for t in [*c.corpus.values(), *c.queries.values()]}
    found = tr.evaluate(vectors_for(table), c)
    unit = lambda ids, texts: torch.nn.functional.normalize(torch.tensor([table[texts[i]] for i in ids]), dim=1)
    asked, ids = sorted(c.qrels["test"]), sorted(c.corpus)
    scores = unit(asked, c.queries) @ unit(ids, c.corpus).T
    results = {f"q{q}": {i: float(s) for i, s in zip(ids, row)} for q, row in zip(asked, scores)}
    qrels = {f"q{q}": c.qrels["test"][q] for q in asked}
    ndcg, _, recall, _ = EvaluateRetrieval.evaluate(qrels, results, [10, 100])
    mrr = EvaluateRetrieval.evaluate_custom(qrels, results, [10], "mrr")
    assert found["ndcg@10"].mean() == pytest.approx(ndcg["NDCG@10"], abs=1e-5) and found["recall@100"].mean() == pytest.approx(recall["Recall@100"], abs=1e-5) and found["mrr@10"].mean() == pytest.approx(mrr["MRR@10"], abs=1e-5)

def test_a_split_without_judgments_is_refused():
    c = Collection("empty", {"a": "w1"}, {"q": "w2"}, {"test": {"q": {"a": 0}}})
    with pytest.raises(InputError, match="collection 'empty' has no query with a relevant passage in split 'test'"): tr.evaluate(vectors_for({}), c)

# --- runs

def test_a_finished_run_is_read_and_a_damaged_one_made_again(tmp_path, monkeypatch):
    r = runner(tmp_path)
    first = r.run("llm", 1)
    path = tmp_path / f"{r.key('llm', 1)}.parquet"
    bytes_before = path.read_bytes()
    trained = []
    real = tr.fine_tune
    monkeypatch.setattr(tr, "fine_tune", lambda *a, **k: trained.append(1) or real(*a, **k))
    again = runner(tmp_path).run("llm", 1)
    assert not trained and again.equals(first) and again.attrs == first.attrs
    path.write_bytes(bytes_before[:100])
    assert runner(tmp_path).run("llm", 1).equals(first) and trained == [1], "the same run gives the same scores"

def test_the_key_of_a_run_covers_what_decides_about_it(tmp_path):
    c, r = toy(), runner(tmp_path)
    keys = {"base": r.key("llm", 0), "seed": r.key("llm", 1), "source": r.key("random", 0), "zero": r.key(tr.UNTRAINED, 0), "recipe": runner(tmp_path, recipe=tr.Recipe(batch_size=4, learning_rate=0.02)).key("llm", 0),
        "test set": tr.Runner(r.encoder, r.data, [tr.Evaluation(c, limit=3)], r.recipe, store=tmp_path).key("llm", 0), "length": runner(tmp_path, eval_length=9).key("llm", 0),
        "weights": tr.Runner(Encoder(static_model(seed=1), "toy", cache=False), r.data, r.evaluations, r.recipe, store=tmp_path).key("llm", 0), "other data": runner(tmp_path, c=toy(seed=5)).key("llm", 0)}
    assert len(set(keys.values())) == len(keys)
    assert runner(tmp_path).key("llm", 0) == keys["base"]

def test_the_base_model_is_never_trained(tmp_path):
    r = runner(tmp_path)
    zero = r.run(tr.UNTRAINED)
    r.run("llm"); r.run("random")
    (tmp_path / f"{r.key(tr.UNTRAINED, 0)}.parquet").unlink()
    assert r.run(tr.UNTRAINED).equals(zero)

def test_runner_needs_tests_with_names_of_their_own(tmp_path):
    with pytest.raises(InputError, match="evaluations are of toy, toy: expected at least one, each with a name of its own"):
        tr.Runner(Encoder(static_model(), "toy", cache=False), tr.training_data(toy_triples(toy())), [tr.Evaluation(toy()), tr.Evaluation(toy(seed=2))], tr.Recipe(), store=tmp_path)

# --- statistics

def runs_table(values): # {(source, seed): [score of each query]}
    return tr.gather({k: pd.DataFrame(dict(dataset="d", query_id=[str(i) for i in range(len(v))], **{m: v for m in tr.METRICS})) for k, v in values.items()})

def test_gains_by_hand():
    t = runs_table({("none", 0): [0.0, 0.2], ("none", 1): [0.2, 0.4], ("a", 0): [0.5, 0.7], ("a", 1): [0.7, 0.9], (tr.UNTRAINED, 0): [0.1, 0.1]})
    s = tr.summarise(t, resamples=200).query("metric == 'ndcg@10'").set_index("source")
    assert s.loc["a", "value"] == pytest.approx(0.7) and s.loc["none", "value"] == pytest.approx(0.2) and s.loc["a", "gain"] == pytest.approx(0.5)
    # the same seeds and queries are drawn for both, so the gain does not vary at all
    assert s.loc["a", "gain_lo"] == pytest.approx(0.5) and s.loc["a", "gain_hi"] == pytest.approx(0.5) and s.loc["a", "lo"] < 0.7 < s.loc["a", "hi"]
    assert s.loc["a", "seed_sd"] == pytest.approx(np.std([0.6, 0.8], ddof=1)) and s.loc[tr.UNTRAINED, "value"] == pytest.approx(0.1)
    # training on a changed 0.1 to 0.7; all queries gained as much, so only the seeds make the change uncertain
    assert s.loc["a", "change"] == pytest.approx(0.6) and s.loc["a", "change_lo"] < 0.6 < s.loc["a", "change_hi"] and np.isnan(s.loc[tr.UNTRAINED, "change"])
    assert s.loc[tr.UNTRAINED, "gain"] == pytest.approx(-0.1) and s.loc[tr.UNTRAINED, "gain_lo"] < -0.1 < s.loc[tr.UNTRAINED, "gain_hi"]
    assert s.loc["none", "gain"] == 0 and s.loc["none", "change"] == pytest.approx(0.1)

def test_a_change_from_the_untrained_encoder_is_paired_by_query():
    # queries differ widely, and each gains exactly 0.1 under both seeds: the change is certain, the values are not
    x = np.random.default_rng(0).random(40) * 0.8
    t = runs_table({("none", 0): (x + 0.1).tolist(), ("none", 1): (x + 0.1).tolist(), (tr.UNTRAINED, 0): x.tolist()})
    s = tr.summarise(t, resamples=200).query("metric == 'ndcg@10'").set_index("source")
    assert [s.loc["none", c] for c in ("change", "change_lo", "change_hi")] == pytest.approx([0.1] * 3) and s.loc["none", "hi"] - s.loc["none", "lo"] > 0.05
    assert s.loc[tr.UNTRAINED, ["seeds", "queries"]].tolist() == [0, 40]

def test_nothing_trained_is_summarised_too():
    s = tr.summarise(runs_table({(tr.UNTRAINED, 0): [0.1, 0.3]}), resamples=50).query("metric == 'ndcg@10'").set_index("source")
    assert list(s.index) == [tr.UNTRAINED] and s.loc[tr.UNTRAINED, "value"] == pytest.approx(0.2) and s.loc[tr.UNTRAINED, ["gain", "change"]].isna().all()

def test_draws_are_plain_resampling():
    rng = np.random.default_rng(0)
    t = runs_table({(s, k): rng.random(7).tolist() for s in "ab" for k in range(3)})
    means, draws = tr.transfer_draws(t, resamples=400, seed=5)
    from eci_sem.bootstrap import resample_counts
    from eci_sem.collection import sha256_text
    seeds, queries = resample_counts(3, 400, 5), resample_counts(7, 400, int(sha256_text("transfer", "5", "d")[:8], 16))
    cube = tr.score_cube(t)[1]
    b = 17
    picked = np.repeat(np.arange(3), seeds[b]), np.repeat(np.arange(7), queries[b])
    # a draw of three seeds shows two thirds of their variance: what it has of them is stretched
    queries_alone = cube[0][:, picked[1]].mean()
    assert draws["a"][b] == pytest.approx(queries_alone + (cube[0][np.ix_(*picked)].mean() - queries_alone) * math.sqrt(3 / 2)) and means["b"] == pytest.approx(cube[1].mean())
    assert abs(draws["a"].mean() - means["a"]) < 0.02

def test_the_spread_over_seeds_is_that_of_the_mean_of_so_many():
    # one query, so that seeds are all there is: the variance of the draws is s^2 / n, with the unbiased s^2
    x = [0.1, 0.5, 0.6]
    _, draws = tr.transfer_draws(runs_table({("a", k): [v] for k, v in enumerate(x)}), resamples=20_000)
    assert draws["a"].var() == pytest.approx(np.var(x, ddof=1) / 3, rel=0.03)

def test_missing_runs_are_named():
    t = runs_table({("a", 0): [0.1, 0.2], ("a", 1): [0.1, 0.2], ("b", 0): [0.3, 0.4]})
    with pytest.raises(InputError, match="the runs are not complete: 2 seeds and 2 queries in all, and source 'b' has 1 seeds"): tr.transfer_draws(t)
    with pytest.raises(InputError, match="unknown baseline 'none'"): tr.summarise(runs_table({("a", 0): [0.1, 0.2], ("b", 0): [0.3, 0.4]}), resamples=20)

def test_the_estimate_counts_runs_texts_and_steps():
    p = dict(collection="docstrings", train_split="train", train_queries=64, datasets=["docstrings"], test_split="test", test_queries=100, encoder="minilm", methods=["bm25", "llm"], depths=[1, 5], hybrids=["bm25@1+llm"], seeds=2)
    from eci_sem.collection import load_docstrings
    docs = len(load_docstrings().corpus)
    e = estimate(p, rates=(100, 10))
    assert e["runs"] == 10 and e["encodes"] == 11 * (docs + 100) and e["steps"] == 10 * 2
    assert e["hours"] == pytest.approx((e["encodes"] / 100 + 10 * 64 / 10) / 3600, abs=0.01)
    big = estimate({**p, "collection": "msmarco", "datasets": ["nq", "scifact"], "train_queries": 0})
    # another encoder's hits need the vectors of what is trained on, and texts that are not there yet have to be written
    more = estimate({**p, "methods": ["bm25", "glove", "llm"], "write_llm": True}, rates=(100, 10))
    assert more["encodes"] == 15 * (docs + 100) + docs + 64 and more["hours"] == pytest.approx((more["encodes"] / 100 + 14 * 64 / 10 + 64) / 3600, abs=0.01)
    assert big["encodes"] == 11 * (2_681_468 + 100 + 5_183 + 100) and big["hours"] > 100

def test_runs_are_taken_over_by_their_key_alone(tmp_path):
    r = runner(tmp_path / "a")
    runs = {(s, k): r.run(s, k) for s in ("none", "llm") for k in (0, 1)}
    folder = tmp_path / "results"; folder.mkdir()
    tr.gather(runs).to_parquet(folder / "scores.parquet")
    pd.DataFrame([dict(source=s, seed=k, key="another" if (s, k) == ("llm", 1) else r.key(s, k), steps=x.attrs["steps"], loss=x.attrs["loss"]) for (s, k), x in runs.items()]).to_parquet(folder / "runs.parquet")
    other = runner(tmp_path / "b")
    assert other.adopt(folder, ["none", "llm", "random"], [0, 1, 2]) == 3 and other.adopt(folder, ["none", "llm"], [0, 1]) == 0
    got = other.run("llm", 0)
    by = lambda t: t.sort_values(["dataset", "query_id"], ignore_index=True)
    assert by(got).equals(by(runs["llm", 0])) and got.attrs["steps"] == runs["llm", 0].attrs["steps"] and got.attrs["seconds"] is None
    with pytest.raises(InputError, match="no runs.parquet and scores.parquet there"): other.adopt(tmp_path, ["none"], [0])

def test_runs_that_are_not_what_was_written_are_not_taken_over(tmp_path):
    from eci_sem.download import digest
    r = runner(tmp_path / "a")
    folder = tmp_path / "results"; folder.mkdir()
    found = r.run("none", 0)
    tr.gather({("none", 0): found}).to_parquet(folder / "scores.parquet")
    pd.DataFrame([dict(source="none", seed=0, key=r.key("none", 0), steps=1, loss=1.0)]).to_parquet(folder / "runs.parquet")
    for name in ("scores", "runs"): (folder / f"{name}.run.json").write_text(json.dumps(dict(sha256={f"{name}.parquet": digest(folder / f"{name}.parquet", "sha256")})))
    assert runner(tmp_path / "b").adopt(folder, ["none"], [0]) == 1
    tr.gather({("none", 0): found.assign(**{"ndcg@10": 1.0})}).to_parquet(folder / "scores.parquet")
    with pytest.raises(InputError, match=r"scores.parquet: its SHA-256 is not the one that scores.run.json records, .* train anew"): runner(tmp_path / "c").adopt(folder, ["none"], [0])

# --- results of the notebook

def result(folder, encoder="glove", collection="docstrings", datasets=("a",), seeds=2, **changes):
    folder.mkdir()
    p = dict(encoder=encoder, collection=collection, train_split="train", methods=["bm25"], depths=[1], hybrids=[], seeds=seeds, train_queries=0, recipe={"epochs": 1}, seed=0, **changes)
    (folder / "result.json").write_text(json.dumps(dict(parameters=p)))
    (folder / "manifest.json").write_text(json.dumps(dict(result=dict(parameters=p))))
    rows = [dict(source=s, seed=k, dataset=d, query_id=str(q), **{m: (q + k) / 10 for m in tr.METRICS}, run_seed=0) for s in (tr.UNTRAINED, "none", "bm25@1") for k in range(seeds) for d in datasets for q in range(3)]
    pd.DataFrame(rows, columns=["source", "seed", "dataset", "query_id", *tr.METRICS, "run_seed"]).to_parquet(folder / "scores.parquet")
    return folder

def test_results_of_one_training_become_one(tmp_path):
    folders = [result(tmp_path / "a"), result(tmp_path / "b", datasets=("b", "c")), result(tmp_path / "m", encoder="minilm"), result(tmp_path / "zero", encoder="minilm", collection="scifact", seeds=0)]
    glove, minilm = tr.read_transfer(folders)
    assert glove.parameters["encoder"] == "glove" and set(glove.table["dataset"]) == {"a", "b", "c"} and set(minilm.table["dataset"]) == {"a"}
    assert set(glove.table["source"]) == {"none", "bm25@1"} and len(glove.table) == 2 * 2 * 3 * 3 and "run_seed" not in glove.table

def test_committed_results_are_read_from_their_manifest(tmp_path):
    a = result(tmp_path / "a")
    (a / "result.json").unlink()
    assert len(tr.read_transfer([a])) == 1

def test_results_that_do_not_fit_together_are_refused(tmp_path):
    a = result(tmp_path / "a")
    with pytest.raises(InputError, match="dataset 'a' is in another result of glove on docstrings too"): tr.read_transfer([a, result(tmp_path / "b")])
    with pytest.raises(InputError, match=r"c and a train glove on docstrings with another seeds \(3 and 2\)"): tr.read_transfer([a, result(tmp_path / "c", datasets=("b",), seeds=3)])
    other = result(tmp_path / "d", datasets=("b",))
    (other / "result.json").write_text(json.dumps(dict(json.loads((other / "result.json").read_text()), collection=dict(content_hash="x"))))
    with pytest.raises(InputError, match=r"with another collection_hash \('x' and None\)"): tr.read_transfer([a, other])
    with pytest.raises(InputError, match="none of the result folders holds a training"): tr.read_transfer([result(tmp_path / "zero", seeds=0)])
    with pytest.raises(InputError, match="nowhere: no result.json with parameters there"): tr.read_transfer([tmp_path / "nowhere"])

@pytest.mark.parametrize("package", ["datasets", "accelerate"])
def test_a_missing_package_is_named_before_training(monkeypatch, package):
    import sys
    model = static_model()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"training needs the package {package}, which is not installed: pip install 'eci_sem\[train\]'"): tr.fine_tune(model, [dict(anchor="w1", positive="w2")] * 2, [2], tr.Recipe(batch_size=2))
