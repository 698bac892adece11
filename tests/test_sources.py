"""Miners: worked examples, brute force, what is never returned, counts, determinism, wording of errors."""
import json
import math
import re
import tracemalloc
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eci_sem.sources as sources
import eci_sem.writer as writer
from eci_sem.collection import Collection, InputError, Pair, load_beir, normalise, sha256_text
from eci_sem.sources import SOURCES, describe_source, mine, mine_bm25, mine_dense, mine_llm, mine_random
from eci_sem.writer import WriterConfig, pair_key, prompt_text


class Stub:
    "An encoder that looks vectors up."
    name, fingerprint = "stub", "f" * 64
    def __init__(self, vectors): self.vectors, self.seen = {k: np.asarray(v, np.float32) for k, v in vectors.items()}, []
    def encode_queries(self, texts): return np.stack([self.vectors[t] for t in texts])
    def encode_passages(self, texts): self.seen += texts; return np.stack([self.vectors[t] for t in texts])


def collection(corpus, queries, relevant, name="c"):
    return Collection(name, corpus, queries, {"test": {q: {d: 1 for d in ds} for q, ds in relevant.items()}})

def rows(t): return t.table.select(["query_id", "positive_id", "negative_id", "rank", "score"]).to_pylist()
def found(t):
    result = {}
    for r in rows(t): result.setdefault(r["query_id"], []).append((r["negative_id"], r["rank"]))
    return result


# ------------------------------------------------------------------ BM25

PETS = collection({"d1": "The cat purrs: a cat!", "d2": "Dogs bark at the Cats.", "d3": "A dog chased a ball; dogs ran.", "d4": "Fish swim."}, {"q": "about cats and dogs, dogs"}, {"q": ["d4"]})

def test_bm25_worked_by_hand():
    # without stop words, stemmed: d1 = cat purr cat, d2 = dog bark cat, d3 = dog chase ball dog ran, d4 = fish swim; query = cat dog dog ('about' stays)
    length, mean, D = {"d1": 3, "d2": 3, "d3": 5, "d4": 2}, 13 / 4, 4
    tf = {"cat": {"d1": 2, "d2": 1}, "dog": {"d2": 1, "d3": 2}}
    def term(t, d, k1, b): return 0 if d not in tf[t] else math.log(1 + (D - len(tf[t]) + 0.5) / (len(tf[t]) + 0.5)) * tf[t][d] / (tf[t][d] + k1 * (1 - b + b * length[d] / mean))
    for k1, b in ((1.2, 0.75), (0.9, 0.4), (0.0, 1.0)):
        got = {r["negative_id"]: (r["rank"], r["score"]) for r in rows(mine_bm25(PETS, PETS.pairs("test"), num_negatives=3, k1=k1, b=b))}
        want = {d: term("cat", d, k1, b) + 2 * term("dog", d, k1, b) for d in ("d1", "d2", "d3")}
        assert {d: s for d, (_, s) in got.items()} == pytest.approx(want, rel=1e-13)
        assert [d for d, _ in sorted(got.items(), key=lambda x: x[1][0])] == sorted(want, key=lambda d: (-round(want[d], 12), d))


def test_bm25_words_are_what_the_settings_say():
    c = collection({"a": "cats", "b": "the cat", "c": "C is a language", "d": "nothing here"}, {"q": "the cats c"}, {"q": ["d"]})
    ids = lambda **k: [r["negative_id"] for r in rows(mine_bm25(c, c.pairs("test"), num_negatives=3, **k))]
    assert ids() == ["a", "b"] # stemmed alike; 'the' is a stop word; 'c' is too short to be a word
    assert ids(stemmer=None) == ["a"]
    assert set(ids(stopwords=None)) == {"a", "b"} and ids(stopwords=None, stemmer=None) == ["b", "a"] or ids(stopwords=None, stemmer=None) == ["a", "b"]
    assert ids(stopwords=["cats"], stemmer=None) == ["b"] # only 'the' is left
    with pytest.raises(InputError, match="no negative is left for any of the 1 pairs .*1 query without a word that BM25 indexes"): mine_bm25(c, c.pairs("test"), stopwords=["cats", "the"])


def test_bm25_ties_go_by_id_and_strangers_are_no_hits():
    c = collection({i: f"cat {w}" for i, w in zip("zyxwv", "one two three four five".split())} | {"a": "dog"}, {"q": "cat"}, {"q": ["x"]})
    t = mine_bm25(c, c.pairs("test"), num_negatives=5)
    assert found(t) == {"q": [("v", 1), ("w", 2), ("y", 3), ("z", 4)]} # not 'a', which shares no word
    assert t.dropped == {"bm25": {"relevant passage skipped": 1, "query with fewer than 5 left": 1}}


WORDS = "cat dog fish bird purr bark swim sing big small red old".split()

@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(WORDS), min_size=0, max_size=6), min_size=3, max_size=14), st.lists(st.sampled_from(WORDS), max_size=4), st.integers(1, 4), st.integers(0, 2), st.randoms(use_true_random=False))
def test_bm25_against_brute_force(docs, query, num, skip, rng):
    corpus = {f"d{i:02}": " ".join(d) for i, d in enumerate(docs)} | {"gold": "gold standard"}
    ids = list(corpus); rng.shuffle(ids)
    c = collection({i: corpus[i] for i in ids}, {"q": " ".join(query) or "?"}, {"q": ["gold", rng.choice(ids)]})
    p = c.pairs("test", max_positives=None)[-1]
    texts = {i: t.split() for i, t in corpus.items() if t}
    mean = sum(map(len, texts.values())) / len(texts)
    df = Counter(w for t in texts.values() for w in set(t))
    def score(i): return sum(math.log(1 + (len(texts) - df[w] + 0.5) / (df[w] + 0.5)) * texts[i].count(w) / (texts[i].count(w) + 1.2 * (0.25 + 0.75 * len(texts[i]) / mean)) for w in query)
    scores = {}
    for i in sorted(texts):
        if corpus[i] not in {corpus[j] for j in scores}: scores[i] = score(i) # the first of each text
    banned = {normalise(corpus[d]) for d in p.relevant}
    hits = [i for i in sorted(scores, key=lambda i: (-round(scores[i], 10), i)) if scores[i] > 0 and normalise(corpus[i]) not in banned]
    want = list(enumerate(hits, 1))[skip:skip + num]
    free = len(scores) - len({normalise(t) for t in corpus.values() if normalise(t) in banned and t})
    if free < num + skip:
        with pytest.raises(InputError, match="is too small"): mine_bm25(c, [p], num_negatives=num, skip_top=skip, stemmer=None)
    elif not want:
        with pytest.raises(InputError, match="no negative is left"): mine_bm25(c, [p], num_negatives=num, skip_top=skip, stemmer=None)
    else:
        got = rows(mine_bm25(c, [p], num_negatives=num, skip_top=skip, stemmer=None))
        # equal sums may differ in their last bit: compare scores, and ids where the scores differ
        assert [r["rank"] for r in got] == [r for r, _ in want]
        assert [r["score"] for r in got] == pytest.approx([scores[i] for _, i in want], rel=1e-12)
        assert [round(scores[r["negative_id"]], 10) for r in got] == [round(scores[i], 10) for _, i in want]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 60))
def test_descending_is_a_stable_sort(values, repeat):
    scores = np.array(values * repeat, float)
    assert list(sources._descending(scores)) == sorted(((i, s) for i, s in enumerate(scores.tolist()) if s > 0), key=lambda x: (-x[1], x[0]))


def test_query_without_words_is_counted():
    c = collection({"a": "cat", "b": "cat dog", "d": "gold"}, {"1": "cat", "2": "the of !", "3": "zebra"}, {"1": ["d"], "2": ["d"], "3": ["d"]})
    t = mine_bm25(c, c.pairs("test"))
    assert t.query_ids == ["1"]
    assert t.dropped == {"bm25": {"query with fewer than 1 left": 2, "query without a word that BM25 indexes": 1}}


def test_corpus_without_words():
    c = collection({"a": "the", "b": "of a"}, {"1": "cat"}, {"1": ["a"]})
    with pytest.raises(InputError, match="collection 'c': no passage holds a word that BM25 can index"): mine_bm25(c, c.pairs("test"))


# ------------------------------------------------------------------ dense

def brute(c, pairs, vectors, num, skip, min_margin):
    "Sources' rules, one passage at a time, in Python floats."
    def dot(x, y):
        total = 0.0
        for a, b in zip(vectors[x].tolist(), vectors[y].tolist()): total += a * b
        return total
    result, dropped = [], Counter()
    for p in pairs:
        banned = {normalise(c.corpus[d]) for d in (*p.relevant, p.positive_id)} | {normalise(p.positive)}
        seen, rank, taken = set(), 0, []
        for i in sorted(c.corpus, key=lambda i: (-dot(p.query, c.corpus[i]), i)):
            text = normalise(c.corpus[i])
            if text in seen: continue
            seen.add(text)
            if text in banned: dropped["relevant passage skipped"] += 1; continue
            rank += 1
            if rank <= skip: dropped[f"hit among the first {skip} (skip_top)"] += 1; continue
            if min_margin is not None and dot(p.query, p.positive) - dot(p.query, c.corpus[i]) < min_margin: dropped[f"margin under {min_margin:g}"] += 1; continue
            taken.append(dict(query_id=p.query_id, positive_id=p.positive_id, negative_id=i, rank=rank, score=dot(p.query, c.corpus[i])))
            if len(taken) == num: break
        else: dropped[f"query with fewer than {num} left"] += 1
        result += taken
    return result, {k: v for k, v in dropped.items() if v}


@st.composite
def dense_case(draw, component):
    n, m, d = draw(st.integers(3, 16)), draw(st.integers(1, 5)), draw(st.integers(1, 4))
    vector = st.lists(component, min_size=d, max_size=d).filter(any)
    vectors = {f"passage {i}": np.array(draw(vector), np.float32) for i in range(n)} | {f"query {i}": np.array(draw(vector), np.float32) for i in range(m)}
    relevant = {f"q{i}": draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=3)) for i in range(m)}
    c = collection({f"d{i:02}": f"passage {i}" for i in draw(st.permutations(range(n)))}, {f"q{i}": f"query {i}" for i in range(m)}, {q: [f"d{i:02}" for i in s] for q, s in relevant.items()})
    return c, vectors

@settings(max_examples=150, deadline=None)
@given(dense_case(st.integers(-2, 2)), st.integers(1, 4), st.integers(0, 3), st.sampled_from([None, -2, -1, 0, 1, 2]), st.integers(1, 20))
def test_dense_against_brute_force(case, num, skip, min_margin, block):
    c, vectors = case # whole numbers: ties are exact, and many
    pairs = c.pairs("test", max_positives=None)
    want, dropped = brute(c, pairs, vectors, num, skip, min_margin)
    if max(len(c.corpus) - len(p.relevant) for p in pairs) < num + skip:
        with pytest.raises(InputError, match="is too small"): mine_dense(c, pairs, Stub(vectors), num_negatives=num, skip_top=skip, min_margin=min_margin, block=block)
    elif not want:
        with pytest.raises(InputError, match="no negative is left"): mine_dense(c, pairs, Stub(vectors), num_negatives=num, skip_top=skip, min_margin=min_margin, block=block)
    else:
        got = mine_dense(c, pairs, Stub(vectors), num_negatives=num, skip_top=skip, min_margin=min_margin, block=block)
        assert rows(got) == want and got.dropped.get("dense", {}) == dropped


def crowded(n=700, m=40, d=48, seed=0):
    "Unit vectors in tight bundles: many scores differ by less than float32 can tell."
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(6, d))
    unit = lambda x: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    P = unit(centre[rng.integers(6, size=n)] + 2e-7 * rng.normal(size=(n, d)) * rng.integers(0, 2, size=(n, 1)))
    Q = unit(centre[rng.integers(6, size=m)] + 0.3 * rng.normal(size=(m, d)))
    vectors = {f"passage {i}": v for i, v in enumerate(P)} | {f"query {i}": v for i, v in enumerate(Q)}
    c = collection({f"d{i:03}": f"passage {i}" for i in range(n)}, {f"q{i}": f"query {i}" for i in range(m)}, {f"q{i}": [f"d{int(rng.integers(n)):03}"] for i in range(m)})
    return c, vectors

@pytest.mark.parametrize("min_margin", [None, 0.0])
def test_float32_rounding_changes_nothing(monkeypatch, min_margin):
    c, vectors = crowded()
    pairs, encoder = c.pairs("test"), Stub(vectors)
    want, dropped = brute(c, pairs, vectors, 3, 1, min_margin)
    assert len({r["score"] for r in want}) > 20 and any(abs(a["score"] - b["score"]) < 1e-8 for a, b in zip(want, want[1:]))
    for block in (4096, 100, 7):
        got = mine_dense(c, pairs, encoder, num_negatives=3, skip_top=1, min_margin=min_margin, block=block)
        assert rows(got) == want and got.dropped == {"dense": dropped}
    # another device: every block score off by as much as float32 sums may be
    rng, exact = np.random.default_rng(1), sources._product
    def other_device(q, p):
        e = q.shape[1] * 2.0**-24 * np.linalg.norm(q, axis=1).max() * np.linalg.norm(p, axis=1).max()
        return (exact(q, p).astype(np.float64) + rng.choice([-0.9, 0.9, 0.0], size=(len(q), len(p))) * e).astype(np.float32)
    monkeypatch.setattr(sources, "_product", other_device)
    got = mine_dense(c, pairs, encoder, num_negatives=3, skip_top=1, min_margin=min_margin, block=64)
    assert rows(got) == want and got.dropped == {"dense": dropped}


def test_slack_bounds_float32_sums():
    rng = np.random.default_rng(0)
    for d in (3, 50, 768):
        a, b = (rng.normal(size=(200, d)).astype(np.float32) for _ in range(2))
        exact = np.einsum("ij,kj->ik", a.astype(np.float64), b.astype(np.float64))
        forward = np.cumsum(a[:, None, :] * b[None, :60, :], axis=2, dtype=np.float32)[..., -1]
        e = sources._slack(d, sources._longest(a) * sources._longest(b))
        assert np.abs(sources._product(a, b) - exact).max() < e and np.abs(forward - exact[:, :60]).max() < e


def test_inner_is_summed_in_order():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(70, 33)).astype(np.float32), rng.normal(size=(50, 33)).astype(np.float32)
    i, k = rng.integers(70, size=5000), rng.integers(50, size=5000)
    got = sources._inner(a, i, b, k)
    for n in range(0, 5000, 97):
        total = 0.0
        for x, y in zip(a[i[n]].tolist(), b[k[n]].tolist()): total += x * y
        assert got[n] == total


def test_queries_and_blocks_change_nothing_and_memory_is_bounded():
    d, n, m, block = 64, 30_000, 600, 1024
    class Made:
        "Vectors made from the text when asked for, so that the test holds none."
        name = "made"
        def _vector(self, text): return np.frombuffer((sha256_text(text) * 4).encode(), np.uint8)[:d].astype(np.float32) - 80 - (text[0] == "q")
        def _unit(self, texts):
            v = np.stack([self._vector(t) for t in texts])
            return v / np.linalg.norm(v, axis=1, keepdims=True)
        encode_queries = encode_passages = lambda self, texts: self._unit(texts)
    c = collection({f"d{i}": f"passage {i}" for i in range(n)}, {f"q{i}": f"query {i}" for i in range(m)}, {f"q{i}": [f"d{i}"] for i in range(m)})
    pairs = c.pairs("test")
    plan_bytes = sum(len(t) + 120 for t in c.corpus.values()) * 3
    tracemalloc.start()
    t = mine_dense(c, pairs, Made(), num_negatives=2, block=block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    bound = 2 * m * d * 4 + 4 * block * d * 8 + 256 * block * 30 + 2048 * d * 8 * 4 + plan_bytes
    assert peak < bound < n * m * 4 / 2, (peak, bound) # far under the full score matrix
    turned = mine_dense(c, pairs[::-7], Made(), num_negatives=2, block=5000)
    whole = {r["query_id"] + str(r["rank"]): r for r in rows(t)}
    assert all(whole[r["query_id"] + str(r["rank"])] == r for r in rows(turned)) and len(turned) == 2 * len(pairs[::-7])


@pytest.mark.parametrize("damage, words", [
    (lambda v: v.fill(np.nan), r"encoder 'stub' returned NaN or infinity for 1 of 4 passages"),
    (lambda v: v.fill(np.inf), r"returned NaN or infinity for 1 of 4 passages"),
    (lambda v: v.fill(0), r"returned zero vectors for 1 of 4 passages: they have no direction"),
])
def test_bad_embeddings(damage, words):
    c = collection({"a": "a", "b": "b", "c": "c", "d": "d"}, {"q": "q"}, {"q": ["a"]})
    encoder = Stub({t: [1.0, 0.0] for t in "abcdq"})
    damage(encoder.vectors["c"])
    with pytest.raises(InputError, match=words): mine_dense(c, c.pairs("test"), encoder)


def test_encoder_of_a_wrong_shape():
    c = collection({"a": "a", "b": "b"}, {"q": "q"}, {"q": ["a"]})
    class Wrong(Stub):
        def encode_queries(self, texts): return np.ones(3, np.float32)
    with pytest.raises(InputError, match=r"encoder 'stub' returned shape \(3,\) for 1 queries, expected \(1, dimension\)"): mine_dense(c, c.pairs("test"), Wrong({"a": [1], "b": [1]}))
    with pytest.raises(InputError, match=r"encoder is 'minilm', expected an Encoder, e\.g\. load_encoder\('minilm'\)"): mine_dense(c, c.pairs("test"), "minilm")


# ------------------------------------------------------------------ random

@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.text(max_size=5))
def test_permutation(n, key): assert sorted(sources._permutation(n, key)) == list(range(n))


def test_random_is_uniform_over_what_is_not_relevant():
    c = collection({f"d{i}": f"text {i}" for i in range(8)}, {f"q{i}": f"query {i}" for i in range(4000)}, {f"q{i}": ["d0", "d5"] for i in range(4000)})
    t = mine_random(c, c.pairs("test"), num_negatives=2)
    for rank in (1, 2):
        counts = Counter(r["negative_id"] for r in rows(t) if r["rank"] == rank)
        assert set(counts) == {f"d{i}" for i in (1, 2, 3, 4, 6, 7)}
        assert all(abs(n - 4000 / 6) < 5 * math.sqrt(4000 * 5 / 36) for n in counts.values())
    assert all(r["score"] is None for r in rows(t))
    assert all(len({n for n, _ in ns}) == 2 for ns in found(t).values())


def test_random_depends_on_query_and_seed_alone():
    c = collection({f"d{i:03}": f"text {i}" for i in range(500)}, {f"q{i}": f"query {i}" for i in range(40)}, {f"q{i}": [f"d{i:03}"] for i in range(40)})
    pairs = c.pairs("test")
    one = found(mine_random(c, pairs, num_negatives=3))
    assert found(mine_random(c, pairs[::-1], num_negatives=3)) == one
    assert found(mine_random(c, pairs[5:6], num_negatives=3)) == {pairs[5].query_id: one[pairs[5].query_id]}
    shuffled = collection(dict(reversed(c.corpus.items())), c.queries, {q: list(d) for q, d in c.qrels["test"].items()})
    assert found(mine_random(shuffled, pairs, num_negatives=3)) == one
    other = found(mine_random(c, pairs, num_negatives=3, seed=1))
    assert sum(other[q] == one[q] for q in one) == 0
    assert {q: ns[1:] for q, ns in one.items()} == found(mine_random(c, pairs, num_negatives=2, skip_top=1))


# ------------------------------------------------------------------ rules for all

TEXTS = {"a": "Cats purr loudly.", "a2": "cats  PURR loudly.", "b": "Cats sleep.", "c": "Cats eat fish.", "c2": "Cats eat fish.", "d": "Dogs and cats fight.", "e": "Cats climb trees.", "empty": "  "}
VECTORS = {t: [math.cos(x), math.sin(x)] for t, x in zip([*dict.fromkeys(TEXTS.values()), "cats", "cat"], (0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 1.5, 0.05, 0.35))}

def small():
    c = collection({i: t for i, t in TEXTS.items()}, {"1": "cats", "2": "cat"}, {"1": ["a"], "2": ["d", "e"]})
    return c, c.pairs("test")

def miners(c, pairs, **k):
    encoder = Stub(VECTORS)
    return {"bm25": lambda **o: mine_bm25(c, pairs, **k, **o), "dense": lambda **o: mine_dense(c, pairs, encoder, **k, **o), "random": lambda **o: mine_random(c, pairs, **k, **o)}

@pytest.mark.parametrize("name", ["bm25", "dense", "random"])
def test_never_relevant_never_a_copy(name):
    c, pairs = small()
    t = miners(c, pairs, num_negatives=9 - 5)[name]()
    got = {q: {n for n, _ in ns} for q, ns in found(t).items()}
    assert got == {"1": {"b", "c", "d", "e"}, "2": {"a", "b", "c"}} # a2 is relevant as a copy; of c and c2 one is enough
    assert t.check(c).ok
    assert t.dropped[name]["corpus passages that repeat another's text"] == 2 and t.dropped[name]["corpus passages without text"] == 1
    assert t.dropped[name]["query with fewer than 4 left"] == 1
    assert [r["rank"] for r in rows(t)] == [1, 2, 3, 4, 1, 2, 3]
    assert set(t.table.column("source").to_pylist()) == {name}


@pytest.mark.parametrize("name", ["bm25", "dense", "random"])
def test_relevant_by_hand_counts_for_copies_too(name):
    c, _ = small()
    pair = Pair("1", "elsewhere", "cats", "CATS sleep.", frozenset({"c2"})) # the positive is in no corpus, but its text is
    t = {"bm25": mine_bm25, "random": mine_random, "dense": lambda c, p, **k: mine_dense(c, p, Stub(VECTORS | {"CATS sleep.": [1, 0]}), **k)}[name](c, [pair], num_negatives=3)
    assert {r["negative_id"] for r in rows(t)} == {"a", "d", "e"}


@pytest.mark.parametrize("name", ["bm25", "dense", "random"])
def test_order_of_pairs_changes_nothing(name):
    c, pairs = small()
    one, two = (miners(c, ps, num_negatives=2)[name]() for ps in (pairs, pairs[::-1]))
    assert found(one) == found(two) and one.dropped == two.dropped and two.query_ids == ["2", "1"]
    assert {r["query_id"]: r for r in rows(one)} == {r["query_id"]: r for r in rows(two)}


@pytest.mark.parametrize("name", ["bm25", "dense", "random"])
def test_skip_top_moves_down_the_same_list(name):
    c, pairs = small()
    whole = found(miners(c, pairs, num_negatives=3)[name]())
    t = miners(c, pairs, num_negatives=1, skip_top=2)[name]()
    assert found(t) == {q: ns[2:3] for q, ns in whole.items()} and t.dropped[name]["hit among the first 2 (skip_top)"] == 4


@pytest.mark.parametrize("name", ["bm25", "random"])
def test_margin_filter_by_brute_force(name):
    c, pairs = small()
    encoder = Stub(VECTORS)
    margin = lambda p, n: float(np.dot(encoder.vectors[p.query].astype(float), encoder.vectors[p.positive].astype(float) - encoder.vectors[c.corpus[n]].astype(float)))
    whole = found(miners(c, pairs, num_negatives=3)[name]())
    for least in (-0.5, 0.0, 0.03):
        want, drops = {}, 0
        for p in pairs:
            keep = [x for x in found(mine(name, c, [p], num_negatives=4 if p.query_id == "1" else 3))[p.query_id] if margin(p, x[0]) >= least]
            if keep: want[p.query_id] = keep[:1]
        t = mine(name, c, pairs, encoder, min_margin=least)
        assert found(t) == want
        ranks = {q: ns[0][1] for q, ns in want.items()}
        passed = sum((ranks[p.query_id] - 1) if p.query_id in ranks else (4 if p.query_id == "1" else 3) for p in pairs)
        assert t.dropped[name].get(f"margin under {least:g}", 0) == passed # ranks tell how many were passed over
    with pytest.raises(InputError, match=rf"source '{name}': no negative is left for any of the 2 pairs \(.*7 margin under 2"): mine(name, c, pairs, encoder, min_margin=2)


def test_margin_filter_goes_as_deep_as_it_must():
    n = 300 # the only passage behind the positive comes last in BM25's order
    corpus = {f"d{i:03}": "cat " * (n - i) + f"w{i}" for i in range(n)} | {"gold": "cat gold"}
    c = collection(corpus, {"q": "cat"}, {"q": ["gold"]})
    near = {t: [1.0, 0.0] for t in corpus.values()} | {"cat": [1.0, 0.0], "cat gold": [0.8, 0.6]}
    last = mine_bm25(c, c.pairs("test"), num_negatives=n).table.column("negative_id").to_pylist()[-1]
    near[corpus[last]] = [0.0, 1.0]
    encoder = Stub(near)
    t = mine_bm25(c, c.pairs("test"), min_margin=0.1, margin_encoder=encoder)
    assert found(t) == {"q": [(last, n)]} and t.dropped["bm25"]["margin under 0.1"] == n - 1
    assert len(encoder.seen) <= n + 1 # no passage is encoded twice


@pytest.mark.parametrize("name", ["bm25", "dense", "random"])
def test_several_positives_of_one_query(name):
    c, _ = small()
    pairs = c.pairs("test", max_positives=None)
    t = miners(c, pairs, num_negatives=2)[name]()
    per_pair = {}
    for r in rows(t): per_pair.setdefault((r["query_id"], r["positive_id"]), []).append(r["negative_id"])
    assert set(per_pair) == {("1", "a"), ("2", "d"), ("2", "e")} and per_pair["2", "d"] == per_pair["2", "e"]


@pytest.mark.parametrize("name, words, settings_", [
    ("bm25", "num_negatives is 0, expected a whole number of at least 1", dict(num_negatives=0)),
    ("dense", "num_negatives is 1.0, expected a whole number", dict(num_negatives=1.0)),
    ("random", "num_negatives is True, expected a whole number", dict(num_negatives=True)),
    ("dense", "skip_top is -1, expected a whole number of at least 0", dict(skip_top=-1)),
    ("random", "seed is -3", dict(seed=-3)),
    ("dense", "block is 0", dict(block=0)),
    ("bm25", "k1 is -1, expected a number of at least 0", dict(k1=-1)),
    ("bm25", "b is 1.5, expected a number from 0 to 1", dict(b=1.5)),
    ("bm25", "k1 is nan", dict(k1=float("nan"))),
    ("bm25", "unknown stemmer 'englsh'. Did you mean 'english'", dict(stemmer="englsh")),
    ("bm25", "unknown list of stop words 'english'", dict(stopwords="english")),
    ("bm25", "stopwords holds something that is no string", dict(stopwords=[1])),
    ("dense", "min_margin is 3, expected a number from -2 to 2", dict(min_margin=3)),
    ("dense", "min_margin is nan", dict(min_margin=float("nan"))),
    ("bm25", r"min_margin is given without margin_encoder: the filter keeps n if q\.p - q\.n >= min_margin under margin_encoder, so it takes both or neither", dict(min_margin=0.1)),
    ("random", "margin_encoder is given without min_margin", dict(margin_encoder=Stub(VECTORS))),
    ("random", "margin_encoder is 'glove', expected an Encoder", dict(min_margin=0.1, margin_encoder="glove")),
    ("random", "name is '', expected text", dict(name="")),
    ("dense", "collection 'c' is too small: of its 5 distinct passages 4 are not relevant, and skip_top \\+ num_negatives asks for 5. Lower them, or mine from a larger corpus", dict(num_negatives=2, skip_top=3)),
])
def test_bad_settings(name, words, settings_):
    c, pairs = small()
    with pytest.raises(InputError, match=words): miners(c, pairs)[name](**settings_)


@pytest.mark.parametrize("name", ["bm25", "dense", "random", "llm"])
def test_bad_pairs_and_collections(name):
    c, pairs = small()
    call = lambda c, p: mine(name, c, p, Stub(VECTORS))
    with pytest.raises(InputError, match=r"no pairs were given, expected at least one; Collection\.pairs\(split\) makes them"): call(c, [])
    with pytest.raises(InputError, match=r"pairs hold str, expected Pair\("): call(c, ["query"])
    with pytest.raises(InputError, match="collection is dict, expected a Collection"): call(c.corpus, pairs)


# ------------------------------------------------------------------ by name

def test_mine_by_name():
    c, pairs = small()
    encoder = Stub(VECTORS)
    assert set(SOURCES) == {"bm25", "cross_encoder", "dense", "llm", "random"}
    for name in ("bm25", "dense", "random"): assert rows(mine(name, c, pairs, encoder, num_negatives=2)) == rows(miners(c, pairs, num_negatives=2)[name]())
    assert mine("bm25", c, pairs, skip_top=1, name="bm25@2").sources == ["bm25@2"]
    assert list(mine("random", c, pairs, name="chance").dropped) == ["chance"]
    with pytest.raises(InputError, match=r"unknown source 'bm52'\. Did you mean 'bm25'\? Known: bm25, cross_encoder, dense, llm, random"): mine("bm52", c, pairs)
    with pytest.raises(InputError, match="unknown setting of source 'random' 'sed'. Did you mean 'seed'"): mine("random", c, pairs, sed=1)
    with pytest.raises(InputError, match="the source 'dense' mines with an encoder and none was given"): mine("dense", c, pairs)


def test_description_records_every_setting():
    d = describe_source("bm25", num_negatives=3, stopwords=("a", "b"))
    assert d["source"] == "bm25" and d["num_negatives"] == 3 and d["stopwords"] == ["a", "b"] and d["k1"] == 1.2 and d["b"] == 0.75 and d["stemmer"] == "english" and d["method"] == "lucene"
    assert set(d["versions"]) == {"bm25s", "PyStemmer"}
    assert describe_source("dense", Stub(VECTORS))["encoder"] == dict(name="stub", fingerprint="f" * 64)
    assert describe_source("random", Stub(VECTORS), min_margin=0.1)["margin_encoder"]["name"] == "stub" and describe_source("random", Stub(VECTORS))["margin_encoder"] is None
    d = describe_source("llm", config=WriterConfig(seed=4), store="/somewhere/x.jsonl")
    assert d["config"]["seed"] == 4 and d["prompt_sha256"] == sha256_text(prompt_text("hard_negative_v1")) and "store" not in d
    for name in SOURCES: json.dumps(describe_source(name))
    with pytest.raises(InputError, match="unknown setting of source 'dense' 'k1'"): describe_source("dense", k1=1)
    with pytest.raises(InputError, match="unknown source 'lm'"): describe_source("lm")


# ------------------------------------------------------------------ LLM: the texts that are there

@pytest.fixture
def shipped(tmp_path, monkeypatch):
    "Two of the three pairs have a shipped text; one of these repeats a relevant passage."
    c = collection({"a": "Cats purr.", "b": "Cats sleep all day.", "c": "Dogs bark.", "d": "Fish swim."}, {"1": "cats", "2": "dogs", "3": "fish"}, {"1": ["a", "b"], "2": ["c"], "3": ["d"]})
    pairs = c.pairs("test")
    lines = sorted((dict(key=pair_key(p.query, p.positive), text=t, attempt=0, tokens=5) for p, t in zip(pairs, ("A tiger is no pet.", "Wolves howl at night."))), key=lambda r: r["key"])
    text = "".join(json.dumps(r) + "\n" for r in lines)
    config = WriterConfig()
    manifest = dict(prompt=dict(name=config.prompt, sha256=sha256_text(prompt_text(config.prompt))), config=asdict(config), model=dict(name="smollm2", sha256="0"), splits={}, texts_sha256=sha256_text(text))
    (tmp_path / "llm_negatives.jsonl").write_text(text)
    (tmp_path / "llm_negatives.manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(writer, "_shipped_folder", lambda: tmp_path)
    monkeypatch.setattr(writer, "_Writer", lambda *a: pytest.fail("the model was loaded"))
    return c, pairs

def test_shipped_texts_come_first(shipped):
    c, pairs = shipped
    t = mine_llm(c, pairs, generate=False)
    assert [(r["query_id"], r["negative_id"], r["rank"], r["score"]) for r in rows(t)] == [("1", "llm:" + sha256_text("A tiger is no pet.")[:16], 1, None), ("2", "llm:" + sha256_text("Wolves howl at night.")[:16], 1, None)]
    assert t.dropped == {"llm": {"no generated negative": 1}} and t.sources == ["llm"] and t.check(c).ok
    assert rows(mine_llm(c, pairs[:2])) == rows(t) # nothing is missing: no model is needed
    assert rows(mine("llm", c, pairs, generate=False, name="llm")) == rows(t)
    assert rows(mine_llm(c, pairs, generate=False, config=WriterConfig(attempts=9))) == rows(t)

def test_missing_texts_are_written(shipped, tmp_path, monkeypatch):
    c, pairs = shipped
    class Fake:
        asked = []
        def __init__(self, model, config, device): pass
        def prompt(self, pair): return 3, pair.query
        def write(self, prompts, seeds): self.asked.append(prompts); return [(" ".join(f"{p}{i}-{len(self.asked)}" for i in range(50)) + ".", 60) for p in prompts]
    monkeypatch.setattr(writer, "_Writer", Fake)
    monkeypatch.setattr(writer, "writer_header", lambda config, model="smollm2": dict(format="eci_sem llm negatives 1", prompt_sha256="x", config=asdict(config), model=dict(name=model, sha256="1")))
    monkeypatch.setattr(writer, "cache_dir", lambda: tmp_path / "cache")
    t = mine_llm(c, pairs)
    assert t.query_ids == ["1", "2", "3"] and Fake.asked == [["fish"]] and t.dropped == {}
    assert rows(mine_llm(c, pairs)) == rows(t) and len(Fake.asked) == 1 # kept in the cache folder
    assert len(list((tmp_path / "cache" / "llm").iterdir())) == 1
    two = mine_llm(c, pairs, num_negatives=2)
    assert [(r["query_id"], r["rank"]) for r in rows(two)] == [(q, k) for q in "123" for k in (1, 2)]
    assert {r["negative_id"] for r in rows(t)} <= {r["negative_id"] for r in rows(two)}
    second = mine_llm(c, pairs, skip_top=1)
    assert [r for r in rows(two) if r["rank"] == 2] == rows(second) and second.dropped == {"llm": {"hit among the first 1 (skip_top)": 3}}

def test_other_settings_than_the_shipped_ones(shipped):
    c, pairs = shipped
    with pytest.raises(InputError, match=r"the shipped negatives were written with other settings: seed is 0 there and 5 here\. Give generate=True, or leave these settings out"):
        mine_llm(c, pairs, generate=False, config=WriterConfig(seed=5))
    with pytest.raises(InputError, match=r"model is 'smollm2' there and 'other' here"): mine_llm(c, pairs, generate=False, model="other")

def test_generated_copy_of_a_relevant_passage(shipped, monkeypatch):
    c, pairs = shipped
    p = pairs[0]._replace(relevant=pairs[0].relevant | {"tiger"})
    bigger = collection(c.corpus | {"tiger": "a TIGER is no pet."}, c.queries, {"1": ["a"]})
    with pytest.raises(InputError, match=r"source 'llm': no negative is left for any of the 1 pairs \(1 copy of a relevant passage, 1 query with fewer than 1 left\)"): mine_llm(bigger, [p], generate=False)

def test_margin_of_generated_texts(shipped):
    c, pairs = shipped
    encoder = Stub({"cats": [1, 0], "Cats purr.": [0.8, 0.6], "A tiger is no pet.": [1, 0], "dogs": [1, 0], "Dogs bark.": [0.8, 0.6], "Wolves howl at night.": [0, 1], "fish": [0, 1], "Fish swim.": [0, 1]})
    t = mine_llm(c, pairs, generate=False, min_margin=0.1, margin_encoder=encoder)
    assert t.query_ids == ["2"] and t.dropped["llm"] == {"no generated negative": 1, "answers the query (margin under 0.1)": 1}
    assert rows(mine("llm", c, pairs, encoder, generate=False, min_margin=0.1)) == rows(t)

def test_nothing_shipped(tmp_path, monkeypatch):
    c, pairs = small()
    monkeypatch.setattr(writer, "_shipped_folder", lambda: tmp_path)
    with pytest.raises(InputError, match=r"source 'llm': no negative is left for any of the 2 pairs \(2 no generated negative\)"): mine_llm(c, pairs, generate=False)


# ------------------------------------------------------------------ real collections

def test_xquad(shared_data):
    c = load_beir(shared_data / "xquad-en")
    pairs = c.pairs("test", limit=150)
    bm25, chance = mine_bm25(c, pairs, num_negatives=3), mine_random(c, pairs, num_negatives=3)
    for t in (bm25, chance):
        assert t.check(c).ok and t.query_ids == [p.query_id for p in pairs]
        relevant = {p.query_id: p.relevant for p in pairs}
        assert not any(r["negative_id"] in relevant[r["query_id"]] for r in rows(t))
        assert all([k for _, k in ns] == [1, 2, 3] for ns in found(t).values())
    # BM25 finds the answer first for nearly every question of this collection, so the answer is nearly always skipped on the way
    assert bm25.dropped["bm25"]["relevant passage skipped"] > 0.9 * len(pairs)
    for q, ns in found(mine_bm25(c, pairs[::-3], num_negatives=3)).items(): assert ns == found(bm25)[q]
    scores = bm25.column("score").reshape(-1, 3)
    assert (np.diff(scores, axis=1) <= 0).all() and (scores > 0).all()


def test_cacm_with_many_relevant_passages(shared_data):
    c = load_beir(shared_data / "cacm")
    pairs = c.pairs("test")
    t = mine_bm25(c, pairs, num_negatives=20)
    assert t.check(c).ok and max(len(p.relevant) for p in pairs) > 30
    assert t.dropped["bm25"]["relevant passage skipped"] > 100
    deep = mine_bm25(c, pairs, num_negatives=5, skip_top=10)
    assert found(deep) == {q: ns[10:15] for q, ns in found(t).items()}
