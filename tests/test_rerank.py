"""Re-ranked negatives, on a random cross-encoder made here: the slow way, ties, counts, what is refused."""
import json
import re
import shutil
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.collection import Collection, InputError, Pair, load_beir, normalise
from eci_sem.rerank import Reranker, load_reranker, mine_cross_encoder
from eci_sem.sources import SOURCES, describe_source, mine, mine_bm25, mine_random

WORDS = "cat dog fish bird purr bark swim sing big small red old tree house river stone".split()


def checkpoint(folder, labels=1, seed=0):
    "A BERT of one thin layer with random weights, and a word-level tokenizer."
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]").save_pretrained(folder)
    torch.manual_seed(seed)
    BertForSequenceClassification(BertConfig(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=64, num_labels=labels, initializer_range=0.6)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory): return checkpoint(tmp_path_factory.mktemp("models") / "tiny")

@pytest.fixture(scope="module")
def reranker(folder): return load_reranker(folder)


class Stub:
    "A reranker that looks scores up."
    name, fingerprint = "stub", "f" * 64
    def __init__(self, scores): self.scores, self.seen = scores, []
    def score_pairs(self, queries, passages): self.seen += zip(queries, passages); return np.array([float(self.scores[q, p]) for q, p in zip(queries, passages)])


def rows(t): return t.table.select(["query_id", "positive_id", "negative_id", "rank", "score"]).to_pylist()

def texts(seed, n, least=1, most=30):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(least, most))) for _ in range(n)]

def zoo(n=60, m=9):
    corpus = {f"d{i:02}": t for i, t in enumerate(texts(1, n))}
    queries = {f"q{i}": t for i, t in enumerate(texts(2, m, 2, 5))}
    return Collection("zoo", corpus, queries, {"test": {q: {f"d{(7 * i) % n:02}": 1, f"d{(11 * i + 3) % n:02}": 1} for i, q in enumerate(queries)}})


# ------------------------------------------------------------------ scores

def test_scores_are_the_models_raw_outputs(folder, reranker):
    import torch
    from sentence_transformers import CrossEncoder
    model = CrossEncoder(str(folder), device="cpu")
    queries, passages = texts(3, 40, 1, 6), texts(4, 40, 1, 120) # some are longer than the model can read
    want = [float(model.predict([pair], activation_fn=torch.nn.Identity())[0]) for pair in zip(queries, passages)]
    got = reranker.score_pairs(queries, passages)
    assert got.dtype == np.float64 and np.allclose(got, want, rtol=1e-4, atol=1e-5) and np.std(got) > 0.1
    assert reranker.max_length == 64 and reranker.score_pairs([], []).shape == (0,)
    sigmoid = model.predict(list(zip(queries, passages)))
    assert (np.argsort(sigmoid) == np.argsort(got)).all() or np.allclose(sigmoid, 1 / (1 + np.exp(-got)), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 39), min_size=1, max_size=40))
def test_a_pairs_score_does_not_depend_on_its_company(reranker, chosen):
    queries, passages = texts(3, 40, 1, 6), texts(4, 40, 1, 120)
    if not hasattr(reranker, "alone"): reranker.alone = np.array([reranker.score_pairs([q], [p])[0] for q, p in zip(queries, passages)])
    assert (reranker.score_pairs([queries[i] for i in chosen], [passages[i] for i in chosen]) == reranker.alone[chosen]).all()


@pytest.mark.parametrize("words", [20, 38])
def test_nor_on_its_place_in_the_batch(reranker, words):
    # 1,024 tokens make 42 rows of 24 and 21 of 48: in a batch of so many the last rows would be treated apart
    passages = texts(7, 45, words, words + 1)
    alone = [reranker.score_pairs(["cat"], [p])[0] for p in passages]
    assert (reranker.score_pairs(["cat"] * 45, passages) == alone).all() and (reranker.score_pairs(["cat"] * 45, passages[::-1]) == alone[::-1]).all()


def test_a_length_limit_of_ones_own(folder, reranker):
    short = load_reranker(folder, max_length=16)
    long = " ".join(WORDS * 3)
    assert short.max_length == 16 and short.score_pairs(["cat"], [long])[0] != reranker.score_pairs(["cat"], [long])[0]
    assert short.score_pairs(["cat"], ["dog"])[0] == reranker.score_pairs(["cat"], ["dog"])[0] and short.fingerprint != reranker.fingerprint
    assert load_reranker(folder, max_length=10_000).max_length == 64


# ------------------------------------------------------------------ the source

def slow(c, pairs, score, depth, num, skip, least):
    "The rules written out: BM25's whole list, one pair at a time."
    result, dropped = [], Counter()
    whole = {}
    for p in pairs: # BM25's order over everything, without knowing what is relevant
        alone = Pair(p.query_id, "none", p.query, "no text of the collection", frozenset())
        try: whole[p.query_id] = mine_bm25(c, [alone], num_negatives=len({normalise(t) for t in c.corpus.values()})).table.column("negative_id").to_pylist()
        except InputError: whole[p.query_id] = []
    for p in pairs:
        banned, candidates, taken, full = {normalise(c.corpus[d]) for d in (*p.relevant, p.positive_id) if d in c.corpus} | {normalise(p.positive)}, [], 0, False
        for i in whole[p.query_id]:
            if normalise(c.corpus[i]) in banned: dropped["relevant passage skipped"] += 1
            else: candidates.append(i)
            if len(candidates) == depth: break
        order = sorted(candidates, key=lambda i: (-score(p.query, c.corpus[i]), i))
        for rank, i in enumerate(order, 1):
            if taken == num: break
            if rank <= skip: dropped[f"hit among the first {skip} (skip_top)"] += 1
            elif least is not None and score(p.query, p.positive) - score(p.query, c.corpus[i]) < least: dropped[f"margin under {least:g}"] += 1
            else: result.append(dict(query_id=p.query_id, positive_id=p.positive_id, negative_id=i, rank=rank, score=score(p.query, c.corpus[i]))); taken += 1
        if taken < num: dropped[f"query with fewer than {num} left"] += 1
    return result, {k: v for k, v in dropped.items() if v}


@pytest.mark.parametrize("depth, num, skip, least", [(20, 3, 0, None), (10, 2, 3, None), (30, 2, 1, 0.0), (5, 5, 0, -0.5), (100, 4, 0, 0.3)])
def test_same_as_the_slow_way(reranker, depth, num, skip, least):
    c = zoo()
    pairs = c.pairs("test", max_positives=None)
    known = {}
    def score(q, p):
        if (q, p) not in known: known[q, p] = float(reranker.score_pairs([q], [p])[0])
        return known[q, p]
    want, dropped = slow(c, pairs, score, depth, num, skip, least)
    got = mine_cross_encoder(c, pairs, reranker, depth=depth, num_negatives=num, skip_top=skip, min_margin=least)
    assert rows(got) == want and len(want) > 10
    assert {k: v for k, v in got.dropped.get("cross_encoder", {}).items() if not k.startswith("corpus")} == dropped
    assert got.check(c).ok


@st.composite
def case(draw):
    n, m = draw(st.integers(3, 14)), draw(st.integers(1, 4))
    corpus = {f"d{i:02}": " ".join(draw(st.lists(st.sampled_from(WORDS[:5]), min_size=1, max_size=4))) + f" mark{draw(st.integers(0, 6))}" for i in draw(st.permutations(range(n)))}
    queries = {f"q{i}": " ".join(draw(st.lists(st.sampled_from(WORDS[:5]), min_size=1, max_size=3))) + f" ask{i}" for i in range(m)}
    c = Collection("c", corpus, queries, {"test": {q: {d: 1 for d in draw(st.sets(st.sampled_from(sorted(corpus)), min_size=1, max_size=2))} for q in queries}})
    return c, {(q, p): draw(st.integers(-2, 2)) for q in queries.values() for p in sorted(set(corpus.values()))}

@settings(max_examples=60, deadline=None)
@given(case(), st.integers(1, 8), st.integers(1, 3), st.integers(0, 2), st.sampled_from([None, -1, 0, 1, 2]))
def test_whole_scores_ties_and_all(found, depth, num, skip, least):
    c, scores = found
    pairs = c.pairs("test", max_positives=None)
    def call(pairs): return mine_cross_encoder(c, pairs, Stub(scores), depth=depth, num_negatives=num, skip_top=skip, min_margin=least)
    distinct = {normalise(t) for t in c.corpus.values()}
    if max(len(distinct - {normalise(c.corpus[d]) for d in p.relevant}) for p in pairs) < num + skip:
        with pytest.raises(InputError, match="is too small"): call(pairs)
        return
    if depth < num + skip:
        with pytest.raises(InputError, match=rf"depth is {depth} and skip_top \+ num_negatives asks for {num + skip} of the re-ranked hits: raise depth"): call(pairs)
        return
    want, dropped = slow(c, pairs, lambda q, p: float(scores[q, p]), depth, num, skip, least)
    if not want:
        with pytest.raises(InputError, match="no negative is left"): call(pairs)
        return
    got = call(pairs)
    assert rows(got) == want and {k: v for k, v in got.dropped.get("cross_encoder", {}).items() if not k.startswith("corpus")} == dropped
    assert {(r["query_id"], r["positive_id"], r["rank"]): r for r in rows(call(pairs[::-1]))} == {(r["query_id"], r["positive_id"], r["rank"]): r for r in want}


def test_ties_go_by_the_id_and_relevant_passages_take_no_place():
    c = Collection("c", {"z": "cat one", "a": "cat two cat", "m": "cat three", "gold": "cat gold", "copy": "CAT  gold", "far": "dog"}, {"q": "cat"}, {"test": {"q": {"gold": 1}}})
    stub = Stub({("cat", t): 1.0 for t in c.corpus.values()})
    t = mine_cross_encoder(c, c.pairs("test"), stub, depth=3, num_negatives=3)
    assert [(r["negative_id"], r["rank"], r["score"]) for r in rows(t)] == [("a", 1, 1.0), ("m", 2, 1.0), ("z", 3, 1.0)]
    assert {p for _, p in stub.seen} == {"cat one", "cat two cat", "cat three"} # neither the relevant passage, nor its copy, nor what shares no word
    assert t.sources == ["cross_encoder"] and t.dropped["cross_encoder"]["relevant passage skipped"] == 1


def test_the_margin_asks_for_the_positive_and_keeps_the_limit(reranker):
    c = Collection("c", {"a": "cat one", "b": "cat two", "gold": "cat gold"}, {"q": "cat"}, {"test": {"q": {"gold": 1}}})
    stub = Stub({("cat", "cat one"): 4.0, ("cat", "cat two"): 3.0, ("cat", "cat gold"): 5.0})
    for least, want in ((None, "a"), (1.0, "a"), (1.5, "b"), (2.0, "b")): assert rows(mine_cross_encoder(c, c.pairs("test"), stub, min_margin=least))[0]["negative_id"] == want
    with pytest.raises(InputError, match=r"source 'cross_encoder': no negative is left for any of the 1 pairs \(.*2 margin under 2\.5"): mine_cross_encoder(c, c.pairs("test"), stub, min_margin=2.5)


def test_as_the_margin_of_other_sources(reranker):
    c = zoo()
    pairs = c.pairs("test")
    for miner, name in ((mine_bm25, "bm25"), (mine_random, "random")):
        whole = {}
        for r in rows(miner(c, pairs, num_negatives=30)): whole.setdefault(r["query_id"], []).append(r)
        t = miner(c, pairs, min_margin=0.2, margin_encoder=reranker)
        for r in rows(t):
            p = next(p for p in pairs if p.query_id == r["query_id"])
            def margin(i): return reranker.score_pairs([p.query] * 2, [p.positive, c.corpus[i]]) @ [1, -1]
            before = [x for x in whole[p.query_id] if x["rank"] < r["rank"]]
            assert margin(r["negative_id"]) >= 0.2 and all(margin(x["negative_id"]) < 0.2 for x in before) and len(before) == r["rank"] - 1
        assert t.dropped[name]["margin under 0.2"] >= sum(r["rank"] - 1 for r in rows(t)) > 0
    with pytest.raises(InputError, match="min_margin is inf, expected a number that is finite"): mine_bm25(c, pairs, min_margin=float("inf"), margin_encoder=reranker)


# ------------------------------------------------------------------ by name, by folder, by object

def test_by_name_and_in_the_record(folder, reranker, tmp_path):
    c = zoo()
    pairs = c.pairs("test")
    t = mine_cross_encoder(c, pairs, reranker, depth=10, name="reranked")
    assert rows(mine("cross_encoder", c, pairs, model=str(folder), depth=10, name="reranked")) == rows(t)
    class Encoder: # one for the other sources: a cross-encoder measures the margin itself
        def encode_queries(self, texts): raise AssertionError
        encode_passages = encode_queries
    assert rows(mine("cross_encoder", c, pairs, Encoder(), model=folder, depth=10, min_margin=-9)) == rows(mine_cross_encoder(c, pairs, reranker, depth=10, min_margin=-9))
    d = describe_source("cross_encoder", model=folder, depth=10)
    assert d["model"] == dict(name="tiny", fingerprint=reranker.fingerprint) and d["depth"] == 10 and d["k1"] == 1.2 and d["min_margin"] is None and "encoder" not in d and d["method"] == "lucene"
    assert {"bm25s", "torch", "sentence-transformers"} <= set(d["versions"]) and str(folder.parent) not in json.dumps(d)
    assert describe_source("cross_encoder", model=checkpoint(tmp_path / "tiny", seed=1))["model"]["fingerprint"] != reranker.fingerprint
    assert "cross_encoder" in SOURCES and describe_source("cross_encoder")["model"] is None
    with pytest.raises(InputError, match="unknown setting of source 'cross_encoder' 'dept'. Did you mean 'depth'"): mine("cross_encoder", c, pairs, model=reranker, dept=3)


def test_an_object_of_the_library(folder, reranker):
    from sentence_transformers import CrossEncoder
    given = load_reranker(CrossEncoder(str(folder), device="cpu"))
    queries, passages = texts(5, 12), texts(6, 12)
    assert (given.score_pairs(queries, passages) == reranker.score_pairs(queries, passages)).all() and given.name == "cross-encoder"
    assert load_reranker(given) is given and "Reranker('tiny', device=cpu" in repr(reranker)


# ------------------------------------------------------------------ what is refused

def test_bad_models(folder, tmp_path, monkeypatch):
    c = zoo()
    pairs = c.pairs("test")
    call = lambda model: mine_cross_encoder(c, pairs, model)
    with pytest.raises(InputError, match=r"the source 'cross_encoder' re-ranks with a model and none was given: model='cross-encoder/ms-marco-MiniLM-L6-v2', say, or a local folder\."): call(None)
    with pytest.raises(InputError, match="the cross-encoder is 3, expected a local folder, a hub name"): call(3)
    with pytest.raises(InputError, match="cross-encoder 'nowhere': no such folder, and no hub name"): call("nowhere")
    with pytest.raises(InputError, match="no such folder"): call(tmp_path / "nothing")
    with pytest.raises(InputError, match="cross-encoder 'two' has 2 outputs, expected one"): call(checkpoint(tmp_path / "two", labels=2))
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"cross-encoder 'pickled': no \.safetensors file \(pytorch_model\.bin found\)\. Pickled weights are never loaded"): call(pickled)
    bare = shutil.copytree(folder, tmp_path / "bare")
    (bare / "config.json").unlink()
    with pytest.raises(InputError, match="cross-encoder 'bare': no config.json"): call(bare)
    (bare / "config.json").write_text('{"model_type": "no such thing"}')
    with pytest.raises(InputError, match="cross-encoder 'bare' can't be read"): call(bare)
    monkeypatch.setattr("eci_sem.rerank._hub_folder", lambda name, revision: (_ for _ in ()).throw(InputError("no network")))
    with pytest.raises(InputError, match="cross-encoder 'someone/model': no network"): call("someone/model")


def test_code_beside_the_weights_does_not_run(folder, tmp_path):
    odd = shutil.copytree(folder, tmp_path / "odd")
    config = json.loads((odd / "config.json").read_text())
    mark = tmp_path / "it ran"
    (odd / "modeling_odd.py").write_text(f"open({str(mark)!r}, 'w').close()\nfrom transformers import BertForSequenceClassification as Odd\n")
    (odd / "config.json").write_text(json.dumps(config | dict(auto_map={"AutoModelForSequenceClassification": "modeling_odd.Odd", "AutoConfig": "modeling_odd.Odd"})))
    try: load_reranker(odd).score_pairs(["cat"], ["dog"])
    except InputError as e: assert "can't be read" in str(e)
    assert not mark.exists()


def test_scores_that_are_no_numbers(folder):
    import torch
    from sentence_transformers import CrossEncoder
    broken = CrossEncoder(str(folder), device="cpu")
    with torch.no_grad(): next(iter(broken[0].parameters())).fill_(float("nan"))
    with pytest.raises(InputError, match="cross-encoder 'broken' gives NaN or infinity for 2 of 2 pairs"): Reranker(broken, "broken").score_pairs(["cat", "dog"], ["a dog", "a cat"])
    with pytest.raises(InputError, match="2 queries and 1 passages were given, expected as many of each"): load_reranker(folder).score_pairs(["a", "b"], ["c"])


@pytest.mark.parametrize("change, words", [(dict(depth=0), "depth is 0, expected a whole number of at least 1"), (dict(min_margin=float("nan")), "min_margin is nan, expected a number that is finite"), (dict(k1=-1), "k1 is -1"), (dict(stemmer="englsh"), "unknown stemmer 'englsh'"),
    (dict(num_negatives=0), "num_negatives is 0"), (dict(depth=4, skip_top=4), r"depth is 4 and skip_top \+ num_negatives asks for 5"), (dict(name=""), "name is '', expected text")])
def test_settings_out_of_range(reranker, change, words):
    c = zoo()
    with pytest.raises(InputError, match=words): mine_cross_encoder(c, c.pairs("test"), reranker, **change)


# ------------------------------------------------------------------ a real collection

def test_cacm(shared_data, reranker):
    c = load_beir(shared_data / "cacm")
    pairs = c.pairs("test", limit=12)
    t = mine_cross_encoder(c, pairs, reranker, depth=10, num_negatives=10)
    bm25 = mine_bm25(c, pairs, num_negatives=10)
    assert t.check(c).ok and Counter(zip(t.column("query_id"), t.column("negative_id"))) == Counter(zip(bm25.column("query_id"), bm25.column("negative_id"))) # the same ten, in another order
    assert t.dropped["cross_encoder"]["relevant passage skipped"] == bm25.dropped["bm25"]["relevant passage skipped"]
    for p in pairs:
        mine_ = [r for r in rows(t) if r["query_id"] == p.query_id]
        assert [r["rank"] for r in mine_] == list(range(1, 11)) and all(a["score"] >= b["score"] for a, b in zip(mine_, mine_[1:]))
