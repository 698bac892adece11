"""Lexical overlap: tokenizers, IDF tables, and rho against an independent reference with sets."""
import json
import math
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from eci_sem import lexical
from eci_sem.collection import InputError
from eci_sem.lexical import FORMS, IDF, TOKENIZERS, Tokenizer, get_tokenizer, lexical_residuality, overlap_rho, term_matrix
from eci_sem.triples import SCHEMA, Triples

WORD, STEM = get_tokenizer("word"), get_tokenizer("stem")


class Pieces:
    "An encoder as far as this module knows one: word pieces of three letters."
    fingerprint = "pieces of three"
    def tokenize(self, texts): return [[w[i:i + 3] for w in t.split() for i in range(0, len(w), 3)] for t in texts]


PIECES = get_tokenizer("wordpiece", Pieces())


def weight(term, documents):
    "idf from its definition, counting in the documents each time."
    df = sum(term in d for d in documents)
    return math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))


def slow_rho(q, p, n, documents, form):
    "One triple, with sets of terms."
    def mass(terms): return math.fsum(weight(t, documents) for t in terms)
    if form == "none": return 1.0
    if form == "jaccard": return 1 - mass(q & n) / mass(q | n) if q | n else 1.0
    reference = q if form == "query" else p
    return 1 - mass(reference & n) / mass(reference) if reference else 1.0


# tokenizers

def test_word_takes_lower_cased_word_characters_of_any_script():
    assert WORD(["It's x_1, GRÖSSE-42!", "Ёлка  и кот", "日本語 text", "?! ...", ""]) == [["it", "s", "x_1", "grösse", "42"], ["ёлка", "и", "кот"], ["日本語", "text"], [], []]


def test_stem_joins_forms_and_keeps_repetition():
    assert STEM(["Dogs barked, the dog barks"]) == [["dog", "bark", "the", "dog", "bark"]] and STEM(["..."]) == [[]]


def test_wordpiece_is_the_encoders_own():
    assert PIECES(["barking dogs"]) == [["bar", "kin", "g", "dog", "s"]] and "pieces of three" in PIECES.fingerprint


def test_tokenizers_by_name():
    assert len({get_tokenizer(n, Pieces()).fingerprint for n in TOKENIZERS}) == len(TOKENIZERS)
    assert get_tokenizer() == WORD and get_tokenizer(WORD) is WORD and get_tokenizer("word", encoder=Pieces()) == WORD
    with pytest.raises(InputError, match="unknown tokenizer 'wrod'. Did you mean 'word'.*Known: stem, word, wordpiece"): get_tokenizer("wrod")
    with pytest.raises(InputError, match=r"the tokenizer 'wordpiece' takes the pieces of an encoder, and none was given; pass encoder=load_encoder"): get_tokenizer("wordpiece")
    with pytest.raises(InputError, match=r"takes a list of texts, got one string; write tokenizer\(\['dogs'\]\)"): WORD("dogs")


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_word_agrees_with_its_definition(text): assert WORD([text])[0] == re.findall(r"\w+", text.lower())


@given(st.text(st.characters(max_codepoint=127), max_size=40))
@settings(max_examples=100, deadline=None)
def test_ascii_takes_a_short_cut_to_the_same_words(text): assert WORD([text])[0] == re.findall(r"\w+", text.lower()) and STEM([text + " ä"])[0] == [*STEM([text])[0], "ä"]


def test_every_ascii_character_is_a_word_character_or_not_as_the_definition_has_it():
    for i in range(128): assert WORD([f"a{chr(i)}B"])[0] == re.findall(r"\w+", f"a{chr(i)}b".lower())


# IDF

def test_idf_by_hand():
    idf = IDF.fit(["a b b", "b c", "b"], WORD)
    assert (idf.documents, idf.df) == (3, {"a": 1, "b": 3, "c": 1})
    np.testing.assert_allclose(idf(["a", "b", "unseen"]), [math.log(1 + 2.5 / 1.5), math.log(1 + 0.5 / 3.5), math.log(1 + 3.5 / 0.5)], rtol=1e-15)
    assert idf([]).shape == (0,) and repr(idf) == "IDF(3 documents, 3 terms, tokenizer 'word')"


words = st.sampled_from("a b c d e f ä 日 ,".split())
texts = st.lists(words, max_size=8).map(" ".join)


@given(st.lists(texts, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_idf_agrees_with_its_definition_and_is_positive(documents):
    idf, sets, terms = IDF.fit(documents, WORD), [set(d) for d in WORD(documents)], list("abcdefg")
    np.testing.assert_allclose(idf(terms), [weight(t, sets) for t in terms], rtol=1e-14)
    assert (idf(terms) > 0).all()
    assert IDF.fit(reversed(documents), WORD).fingerprint == idf.fingerprint


def test_idf_fingerprint_sees_counts_documents_and_tokenizer():
    assert len({i.fingerprint for i in (IDF.fit(["a b"], WORD), IDF.fit(["a c"], WORD), IDF.fit(["a b", ""], WORD), IDF.fit(["a b"], STEM), IDF.uniform(WORD), IDF.uniform(STEM))}) == 6


def test_uniform_weighs_every_term_the_same():
    assert IDF.uniform(WORD)(["a", "b"]).tolist() == [1, 1] and "uniform" in repr(IDF.uniform(WORD))


def test_idf_is_refused_without_documents():
    with pytest.raises(InputError, match="the IDF corpus has no documents, expected at least one"): IDF.fit([], WORD)
    with pytest.raises(InputError, match="IDF.fit takes a list of texts, got one string"): IDF.fit("dogs bark", WORD)


@pytest.mark.parametrize("idf", [IDF.fit(["dogs bark", "Größe 日本 bark"], WORD), IDF.uniform(WORD)])
def test_tables_come_back_from_disk(tmp_path, idf):
    path = idf.save(tmp_path / "sub" / "idf.json")
    back = IDF.load(path, WORD)
    assert back.fingerprint == idf.fingerprint and back(["bark", "x"]).tolist() == idf(["bark", "x"]).tolist()
    assert path.read_bytes() == back.save(tmp_path / "again.json").read_bytes() and os.listdir(tmp_path / "sub") == ["idf.json"]
    assert json.loads(path.read_text())["tokenizer"] == "word"


def test_a_table_of_another_tokenizer_is_refused(tmp_path):
    path = IDF.fit(["dogs"], WORD).save(tmp_path / "idf.json")
    with pytest.raises(InputError, match=r"idf.json: this IDF table was made with tokenizer 'word' .*but the texts are split by 'stem'.*or fit again: IDF.fit\(texts, tokenizer\)"): IDF.load(path, STEM)
    other = get_tokenizer("wordpiece", type("Other", (Pieces,), dict(fingerprint="pieces of four"))())
    with pytest.raises(InputError, match="pieces of three.*pieces of four"): IDF.load(IDF.fit(["x"], PIECES).save(tmp_path / "p.json"), other)
    with pytest.raises(InputError, match="this IDF table was made with tokenizer 'word'"): lexical_residuality(Triples.from_rows([dict(query="q", positive="p", negative="n")]), IDF.load(path), STEM)


@pytest.mark.parametrize("content, message", [
    (None, "no such file"), ("", "the file is empty"), ("{", "not an IDF table"), ("[1]", "not an IDF table"), ('{"df": {}}', 'not an IDF table .no "kind": "eci_sem idf"'),
    ('{"kind": "eci_sem idf", "tokenizer": "word", "tokenizer_fingerprint": "x", "documents": -1, "df": {}}', "key 'documents' of the IDF table is missing or damaged"),
    ('{"kind": "eci_sem idf", "tokenizer": "word", "tokenizer_fingerprint": "x", "documents": 1, "df": {"a": 0.5}}', "key 'df' of the IDF table is missing or damaged"),
    ('{"kind": "eci_sem idf", "documents": 1, "df": {}}', "key 'tokenizer' of the IDF table is missing or damaged"),
])
def test_damaged_tables_are_refused(tmp_path, content, message):
    if content is not None: (tmp_path / "idf.json").write_text(content)
    with pytest.raises(InputError, match=f"idf.json: {message}"): IDF.load(tmp_path / "idf.json")


# rho

def test_rho_by_hand():
    # D = 3; "at" and "dogs" occur in two documents, "bark" and "night" in one
    passages = ["dogs bark at night", "dogs sleep at noon", "wolves howl"]
    two, one = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    t = Triples.from_rows([dict(query="Dogs bark at night?", positive=passages[0], negatives=passages)])
    rho = lexical_residuality(t, IDF.fit(passages, WORD), WORD).rho
    np.testing.assert_allclose(rho, [0, 1 - 2 * two / (2 * two + 2 * one), 1], rtol=0, atol=1e-15)
    assert rho[0] == 0 and rho[2] == 1 # exactly
    assert rho.dtype == np.float64
    uniform = lexical_residuality(t, IDF.uniform(WORD), WORD)
    assert uniform.rho.tolist() == [0, 0.5, 1]
    # "dogs sleep at noon" shares 2 of the 6 terms of both
    assert lexical_residuality(t, IDF.uniform(WORD), WORD, "jaccard").rho.tolist() == pytest.approx([0, 1 - 2 / 6, 1])


def test_repeated_terms_count_once():
    t = Triples.from_rows([dict(query="dog dog cat", positive="p", negative="cat cat cat")])
    assert lexical_residuality(t, IDF.uniform(WORD), WORD).rho.tolist() == [0.5]


triples = st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=10)


@given(rows=triples, corpus=st.lists(texts, min_size=1, max_size=6), form=st.sampled_from(FORMS), name=st.sampled_from(["word", "stem", "wordpiece"]), uniform=st.booleans())
@settings(max_examples=150, deadline=None)
def test_rho_agrees_with_sets(rows, corpus, form, name, uniform):
    tokenizer = get_tokenizer(name, Pieces())
    t = Triples.from_rows([dict(query=q, positive=p, negative=n, query_id=str(i)) for i, (q, p, n) in enumerate(rows)])
    idf, sets = IDF.fit(corpus, tokenizer), [set(d) for d in tokenizer(corpus)]
    if uniform: idf, sets = IDF.uniform(tokenizer), [] # with no documents every term weighs the same, log 2
    found = lexical_residuality(t, idf, tokenizer, form)
    expected = [slow_rho(*(set(x) for x in tokenizer(list(row))), sets, form) for row in rows]
    np.testing.assert_allclose(found.rho, expected, rtol=0, atol=1e-12)
    assert ((found.rho >= 0) & (found.rho <= 1)).all() and found.form == form
    assert found.empty_query_ids == [str(i) for i, (q, _, _) in enumerate(rows) if not tokenizer([q])[0]] and found.empty_queries == len(found.empty_query_ids)
    measured = {"query": 0, "jaccard": 0, "positive": 1}
    assert found.empty_rows == (0 if form == "none" else sum(not tokenizer([row[measured[form]]])[0] for row in rows))


def test_the_default_idf_is_that_of_the_distinct_positives():
    rows = [dict(query="dogs bark", positive=p, negative=n, source=s) for p, n, s in [("dogs", "cats bark", "a"), ("dogs", "bark", "b"), ("cats", "dogs", "a")]]
    t = Triples.from_rows(rows)
    assert lexical_residuality(t).idf == IDF.fit(["dogs", "cats"], WORD).fingerprint
    assert lexical_residuality(t).rho[[0, 2]].tolist() == lexical_residuality(t.select("a")).rho.tolist() # adding a source never moves another


def test_rho_is_the_same_whatever_the_order_and_the_company():
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{i}" for i in range(300)])
    def text(n): return " ".join(vocabulary[rng.integers(0, 300, n)])
    t = Triples.from_rows([dict(query=text(8), positive=text(30), negative=text(40)) for _ in range(60)])
    idf = IDF.fit(t.texts("positive"), WORD)
    order = rng.permutation(60)
    for form in FORMS:
        whole = lexical_residuality(t, idf, WORD, form).rho
        np.testing.assert_allclose(lexical_residuality(t.take(order), idf, WORD, form).rho, whole[order], rtol=0, atol=1e-14)
        np.testing.assert_allclose(lexical_residuality(t.take(np.arange(7)), idf, WORD, form).rho, whole[:7], rtol=0, atol=1e-14)


def test_rho_is_bit_for_bit_the_same_under_another_hash_seed():
    code = """
import hashlib, numpy as np
from eci_sem.lexical import lexical_residuality
from eci_sem.triples import Triples
rng = np.random.default_rng(0)
def text(n): return " ".join(f"w{i}" for i in rng.integers(0, 300, n))
t = Triples.from_rows([dict(query=text(8), positive=text(30), negative=text(40)) for _ in range(60)])
print(hashlib.sha256(b"".join(lexical_residuality(t, form=f).rho.tobytes() for f in ("query", "positive", "jaccard"))).hexdigest())
"""
    runs = {subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": s}, capture_output=True, text=True, check=True).stdout for s in ("1", "2")}
    assert len(runs) == 1


def test_queries_without_terms_are_counted():
    t = Triples.from_rows([dict(query_id=i, query=q, positive="p", negative="dogs ?!") for i, q in [("1", "dogs"), ("2", "?!"), ("2", "?!"), ("3", "")]])
    found = lexical_residuality(t)
    assert found.rho.tolist() == [0, 1, 1, 1] and found.empty_query_ids == ["2", "3"] and found.empty_rows == 3
    assert "queries without terms: 2" in repr(found) and "4 triples, form 'query'" in repr(found)
    assert lexical_residuality(t, form="positive").empty_queries == 2 and lexical_residuality(t, form="positive").empty_rows == 0


def test_an_empty_table_has_no_rho():
    t = Triples(SCHEMA.empty_table())
    for form in FORMS: assert lexical_residuality(t, IDF.uniform(WORD), WORD, form).rho.shape == (0,)
    assert "no rows" in repr(lexical_residuality(t, IDF.uniform(WORD)))


def test_unknown_forms_are_refused_before_any_work():
    with pytest.raises(InputError, match="unknown overlap form 'jacard'. Did you mean 'jaccard'"): lexical_residuality(None, form="jacard")


# the matrices below

def test_term_matrix_grows_or_keeps_its_vocabulary():
    vocabulary = {}
    m = term_matrix(["b a b", "", "c a"], WORD, vocabulary)
    assert vocabulary == {"b": 0, "a": 1, "c": 2} and m.toarray().tolist() == [[1, 1, 0], [0, 0, 0], [0, 1, 1]] and m.dtype == np.int8
    fixed = term_matrix(["c x", "x"], WORD, vocabulary, grow=False)
    assert fixed.toarray().tolist() == [[0, 0, 1], [0, 0, 0]] and len(vocabulary) == 3
    many = term_matrix(["a " * 1000, "a"], WORD, {})
    assert many.toarray().tolist() == [[1], [1]] # a count that overflows is a one all the same


@given(batch=st.lists(texts | st.text(max_size=12) | st.sampled_from([" a b ", "a", "", " ", "?", "\x00a\x1fb\u2003c"]), max_size=9), grow=st.booleans(), size=st.integers(1, 4), known=st.sets(st.sampled_from("abcx")))
@settings(max_examples=150, deadline=None)
def test_terms_split_in_bulk_are_those_of_the_lists(batch, grow, size, known):
    assert WORD.spaced and not STEM.spaced
    plain, found = Tokenizer("word", WORD.fingerprint, WORD.split), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lexical, "_BATCH", size) # texts on both sides of a border
        for tokenizer in (WORD, plain):
            vocabulary = {t: i for i, t in enumerate(sorted(known))}
            found.append((vocabulary, term_matrix(batch, tokenizer, vocabulary, grow)))
    (v, a), (w, b) = found
    expected = {t: i for i, t in enumerate(dict.fromkeys([*sorted(known), *(t for ts in WORD(batch) for t in ts if grow)]))}
    assert list(v.items()) == list(w.items()) == list(expected.items()) and a.shape == b.shape == (len(batch), len(expected))
    assert all((x == y).all() and x.dtype == y.dtype for x, y in ((a.indptr, b.indptr), (a.indices, b.indices), (a.data, b.data)))
    assert a.toarray().tolist() == [[int(t in terms) for t in expected] for terms in map(set, WORD(batch))] and a.has_canonical_format


def random_matrix(rng, rows, columns, density): return sparse.csr_matrix((rng.random((rows, columns)) < density).astype(np.int8))


@given(seed=st.integers(0, 10_000), form=st.sampled_from(FORMS), chunk=st.integers(1, 40), threads=st.integers(1, 3), paired=st.booleans())
@settings(max_examples=80, deadline=None)
def test_overlap_agrees_with_dense_arithmetic(seed, form, chunk, threads, paired):
    rng = np.random.default_rng(seed)
    q, n, idf = random_matrix(rng, 20, 15, 0.2), random_matrix(rng, 20 if not paired else 13, 15, 0.4), rng.random(15)
    i, j = (rng.integers(0, 20, 33), rng.integers(0, 13, 33)) if paired else (None, None)
    Q, N = (q.toarray()[i], n.toarray()[j]) if paired else (q.toarray(), n.toarray())
    common, whole = (Q * N) @ idf, (Q @ idf if form != "jaccard" else np.maximum(Q, N) @ idf)
    expected = np.ones(len(Q)) if form == "none" else np.where(whole > 0, 1 - common / np.where(whole > 0, whole, 1), 1)
    found = overlap_rho(q, n, idf, form, i, j, chunk=chunk, threads=threads)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert found.tobytes() == overlap_rho(q, n, idf, form, i, j, threads=1).tobytes()


@given(seed=st.integers(0, 10_000), form=st.sampled_from(FORMS), chunk=st.integers(1, 50), threads=st.integers(1, 2), table=st.integers(0, 200), paired=st.booleans())
@settings(max_examples=100, deadline=None)
def test_passages_that_recur_are_looked_up_with_the_same_bits(seed, form, chunk, threads, table, paired):
    rng = np.random.default_rng(seed)
    n, passages, width = int(rng.integers(1, 120)), int(rng.integers(1, 12)), int(rng.integers(1, 25))
    q, p, idf = random_matrix(rng, n if not paired else 7, width, rng.choice([0, 0.1, 0.6])), random_matrix(rng, passages, width, 0.5), rng.random(width)
    i, j, used = rng.integers(0, 7, n) if paired else None, rng.integers(0, passages, n), []
    merged = overlap_rho(q if i is None else q[i], p[j], idf, form) # a row for each pair: nothing recurs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lexical, "_TABLE", table) # from one passage at a time to all in one block
        look_up = lexical._look_up
        patch.setattr(lexical, "_look_up", lambda *args: used.append(1) or look_up(*args))
        found = overlap_rho(q, p, idf, form, i, j, chunk=chunk, threads=threads)
    assert found.tobytes() == merged.tobytes()
    terms = q.getnnz(1)[i].sum() if paired else q.nnz
    assert bool(used) == (form != "none" and 2 * (p.nnz + terms) < terms + p.getnnz(1)[j].sum())


def test_a_table_of_few_passages_is_looked_up_and_another_is_merged(monkeypatch):
    used, look_up = [], lexical._look_up
    monkeypatch.setattr(lexical, "_look_up", lambda *args: used.append(1) or look_up(*args))
    rng = np.random.default_rng(0)
    def text(n): return " ".join(f"w{i}" for i in rng.integers(0, 300, n))
    passages = [text(40) for _ in range(5)]
    rows = [dict(query=text(6), positive=text(30), negative=passages[k % 5]) for k in range(40)]
    rho = lexical_residuality(Triples.from_rows(rows)).rho
    assert used and lexical_residuality(Triples.from_rows(rows[:4]), IDF.fit([r["positive"] for r in rows], WORD)).rho.tobytes() == rho[:4].tobytes() and len(used) == 1


def test_overlap_takes_counts_unsorted_and_explicit_zeros():
    counts = sparse.csr_matrix((np.array([3.0, 1.0, 0.0, 2.0]), np.array([2, 0, 1, 2]), np.array([0, 4])), shape=(1, 3))
    binary = sparse.csr_matrix(np.array([[1, 0, 1]], np.int8))
    before = counts.copy()
    assert overlap_rho(counts, binary, np.ones(3)).tolist() == [0] and overlap_rho(binary, counts, np.array([1.0, 1, 3])).tolist() == [0]
    assert (counts.data == before.data).all() and (counts.indices == before.indices).all() # the caller's matrix is left alone


def test_overlap_refuses_what_does_not_fit():
    q, n = sparse.csr_matrix(np.ones((3, 4), np.int8)), sparse.csr_matrix(np.ones((2, 4), np.int8))
    with pytest.raises(InputError, match="3 rows are paired with 2; expected the same number of both"): overlap_rho(q, n, np.ones(4))
    with pytest.raises(InputError, match="the term matrices have 4 and 4 columns and there are 5 weights"): overlap_rho(q, q, np.ones(5))
    with pytest.raises(InputError, match=r"weight 1 \(counting from 0\) of the 4 terms is nan; expected numbers that are not negative"): overlap_rho(q, q, np.array([1, np.nan, 1, 1]))
    with pytest.raises(InputError, match="is -1.0"): overlap_rho(q, q, np.array([1, 1, 1, -1.0]))
    with pytest.raises(InputError, match="unknown overlap form 'querry'"): overlap_rho(q, q, np.ones(4), "querry")


def test_overlap_is_much_faster_than_a_loop_over_sets():
    # the benchmark asks for 20 times; on a machine that is busy with other things, 5 times still tells arrays from a loop
    rng = np.random.default_rng(0)
    n, columns = 30_000, 20_000
    share = 1 / (np.arange(columns) + 3.0); share /= share.sum()
    def matrix(low, high):
        lengths = rng.integers(low, high, n)
        m = sparse.csr_matrix((np.ones(lengths.sum(), np.int8), rng.choice(columns, lengths.sum(), p=share).astype(np.int32), np.r_[0, np.cumsum(lengths)]), shape=(n, columns))
        m.sum_duplicates(); m.data[:] = 1
        return m
    q, p, idf = matrix(5, 14), matrix(40, 90), np.log1p(1 / share / 1000)
    def sets(m): return [{f"w{i}" for i in row} for row in np.split(m.indices, m.indptr[1:-1])]
    qs, ps, weights = sets(q), sets(p), {f"w{i}": float(x) for i, x in enumerate(idf)}
    def best(f): return min((lambda start: (f(), time.perf_counter() - start)[1])(time.perf_counter()) for _ in range(3))
    slow = best(lambda: [1 - sum(weights[t] for t in a & b) / sum(weights[t] for t in a) for a, b in zip(qs, ps)])
    fast = best(lambda: overlap_rho(q, p, idf))
    assert slow > 5 * fast, f"{slow / fast:.1f} times"
