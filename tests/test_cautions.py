"""What should make one doubt a ranking is found, and nothing is said where there is nothing to say."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.cautions import cautions
from eci_sem.checks import as_encoder
from eci_sem.collection import InputError
from eci_sem.encoders import Encoder, load_encoder
from eci_sem.rank import rank_sources
from eci_sem.triples import Triples

N = 24


def given_(negative=None, vectors=None, sources="ab", cut=None, dropped=None, queries=N):
    "Sources of one row a query; passages 0 to n - 1 are positives."
    k = len(sources)
    rows, query = {s: np.arange(N) + N * i for i, s in enumerate(sources)}, np.tile(np.arange(N), k)
    negative = np.arange(N * k) + N if negative is None else np.asarray(negative)
    vectors = np.random.default_rng(1).normal(size=(N * (k + 1), 4)).astype(np.float32) if vectors is None else vectors
    return cautions(rows, query, query, negative, vectors, cut or {}, dropped or {}, queries)


def test_nothing_to_say(): assert given_() == [] and given_(cut=dict(queries=(0, 24), passages=(7, 72)), dropped=dict(a={"duplicate row": 2, "query not covered by every source": 900})) == []


def test_each_by_itself():
    own = np.arange(2 * N) + N
    assert given_(cut=dict(queries=(3, 24), passages=(8, 72))) == ["Caution: 3 of 24 queries and 8 of 72 passages are longer than the encoder reads: what stands after the cut is in no vector, though the lexical overlap counts its words."]
    assert given_(np.r_[np.arange(N) % 2 + N, own[N:]]) == ["Caution: a has 2 different negatives in 24 triples."]
    assert given_(np.r_[own[:N], own[:N]]) == ["Caution: a and b hold the same triples: they are one source under 2 names."]
    assert given_(np.r_[own[:N], own[:N], own[:N]], sources="abc", vectors=np.eye(4 * N, dtype=np.float32)) == ["Caution: a, b and c hold the same triples: they are one source under 3 names."]
    assert given_(np.r_[own[:N], own[:N][::-1]]) == [], "the same passages under other queries are another source"
    assert given_(dropped=dict(b={"negative equals the positive": 2, "negative is a known relevant passage": 1})) == ["Caution: b lost 3 of 27 rows to the checks (2 negative equals the positive, 1 negative is a known relevant passage): where so many are no negatives, others may be so without anyone knowing."]
    assert given_(queries=19) == ["Caution: 19 queries are few: intervals from fewer than 20 are too narrow."]


def test_vectors_that_repeat():
    vectors = np.random.default_rng(1).normal(size=(3 * N, 4)).astype(np.float32)
    vectors[N:2 * N] = vectors[N]
    assert given_(vectors=vectors) == ["Caution: the 24 different negatives of a have 1 vector: the encoder reads many of them as the same text."]
    vectors = np.random.default_rng(1).normal(size=(3 * N, 4)).astype(np.float32)
    vectors[2 * N:2 * N + 3] = vectors[:3]
    assert given_(vectors=vectors) == ["Caution: 3 of 24 negatives of b have the vector of their positive, and weigh nothing."]
    vectors[2 * N] = -vectors[0]
    assert given_(vectors=vectors) == [] # 2 of 24 are under a tenth


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=N, max_size=N))
def test_pairs_of_one_vector_are_counted(which):
    "Against a plain loop; pieces of an uneven length."
    from eci_sem.cautions import _same_vectors
    vectors = np.eye(6, dtype=np.float32)[which]
    a, b = np.arange(N), np.roll(np.arange(N), 1)
    assert _same_vectors(vectors, a, b) == sum(which[i] == which[i - 1] for i in range(N))
    assert _same_vectors(vectors, a, a) == 0


def frame(n=30, **sources):
    rows = [(s, f"{i:02d} query about {w}", f"{i:02d} answers it", make(i)) for s, make in sources.items() for i, w in ((i, "abcdefghij"[i % 10]) for i in range(n))]
    return pd.DataFrame(rows, columns=["source", "query", "positive", "negative"])


class Read:
    "Reads ten characters of a text, and the first two twice."
    dim = 16
    def _vector(self, text): return sum(np.random.default_rng(list(text[:n].encode())).normal(size=16) for n in (2, 10)) # texts that begin alike lie near each other
    def encode_queries(self, texts): return np.stack([self._vector(t) for t in texts])
    encode_passages = encode_queries


def test_a_ranking_tells_them():
    "Texts that are the same up to the cut: the vectors are one, and only the words differ."
    t = Triples.from_pandas(frame(plain=lambda i: f"{i:02d} other", cut=lambda i: f"preamble of ten words, then {i}", again=lambda i: f"{i:02d} other"))
    found = rank_sources(t, Read(), hybrids=None, progress=False, resamples=200)
    assert found.provenance["cautions"] == ["Caution: the 30 different negatives of cut have 1 vector: the encoder reads many of them as the same text.", "Caution: again and plain hold the same triples: they are one source under 2 names."]
    assert set(found.provenance["cautions"]) <= set(found.notes) and found.advice().endswith("Mind the 2 cautions under the table.")
    pair = found.pairs[(found.pairs["a"] == "again") & (found.pairs["b"] == "plain")].iloc[0]
    assert pair["difference"] == 0 and not pair["significant"]
    few = rank_sources(Triples.from_pandas(frame(3, plain=lambda i: f"{i:02d} other", more=lambda i: f"{i:02d} more")), Read(), hybrids=None, progress=False, resamples=200)
    assert "Caution: 3 queries are few: intervals from fewer than 20 are too narrow." in few.notes and not few.pairs["significant"].any()


def test_a_control_by_another_name_is_pointed_out():
    t = Triples.from_pandas(frame(mined=lambda i: f"{i:02d} other", src_Random=lambda i: f"{i:02d} random"))
    said = next(n for n in rank_sources(t, Read(), hybrids=None, progress=False, resamples=200).notes if n.startswith("No source 'random'"))
    assert said.endswith("If 'src_Random' is one, say so: control='src_Random' (on the command line: --control src_Random).")
    assert rank_sources(t, Read(), control="src_Random", hybrids=None, progress=False, resamples=200).table.loc["src_Random", "kind"] == "control"


# what stands for an encoder

def test_what_stands_for_an_encoder(tmp_path):
    reader = Read()
    assert as_encoder(reader) is reader and isinstance(as_encoder(Read), Read) and isinstance(as_encoder(lambda: Read()), Read)
    assert as_encoder("glove").name == "glove"
    model = load_encoder("minilm").model
    folder = tmp_path / "mine"
    model.prompts = dict(query="query: ", document="passage: ")
    try:
        model.save_pretrained(str(folder))
        got = as_encoder(model)
    finally: model.prompts = dict(query="", document="")
    assert isinstance(got, Encoder) and (got.query_prompt, got.passage_prompt, got.device) == ("query: ", "passage: ", "cpu") and got.name
    sample = ["Return a sorted copy of an array."]
    assert np.allclose(got.encode_passages(sample), model.encode(["passage: " + sample[0]], normalize_embeddings=True), atol=1e-5)


@pytest.mark.parametrize("wrong, says", [
    (lambda texts: texts, "encoder is the function <lambda>, which needs arguments; expected a name for load_encoder, a SentenceTransformer, an object whose methods encode_queries and encode_passages each make"),
    (None, "encoder is NoneType; expected"), (pd.DataFrame(), "encoder is DataFrame; expected"), (lambda: (lambda: 1), "encoder is a function that makes another, <lambda>; expected"), (lambda: 3, "encoder is int; expected"),
    (type("OnlyEncode", (), dict(encode=lambda self, x: x))(), "encoder is OnlyEncode with encode alone; expected")])
def test_what_is_no_encoder_is_refused(wrong, says):
    t = Triples.from_pandas(frame(mined=lambda i: f"{i:02d} other", random=lambda i: f"{i:02d} random"))
    for call in (lambda: as_encoder(wrong), lambda: rank_sources(t, wrong, progress=False)):
        with pytest.raises(InputError, match=says.replace("(", r"\(")): call()
