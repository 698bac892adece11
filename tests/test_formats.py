"""Formats: each one recognised by content, round trips of what it can hold, real files, other tools' own output, and errors with their place."""
import gzip
import html
import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eci_sem.checks import check_file
from eci_sem.collection import Collection, InputError, load_beir
from eci_sem.formats import FORMATS, formats_table, frame_triples, read_triples, recognise, scan_triples, to_dataset, write_triples
from eci_sem.layouts import is_header, layout_of, read_qrels, read_run, read_texts
from eci_sem.triples import COLUMNS, TEXT_COLUMNS, Triples, text_id

WRITTEN = [f.name for f in FORMATS.values() if f.writes]
LISTS = ["st-triplet", "st-n-tuple", "st-labeled-list"]
ANIMALS = Collection("animals", {"a": "Dogs bark.", "b": "They fetch.", "c": "Cats purr.", "d": "Fish swim."}, {"1": "what do dogs do", "2": "what do cats do"},
    {"test": {"1": {"a": 1, "b": 2, "c": 0}, "2": {"c": 1}}})


def texts_of(t): return t.table.select(list(TEXT_COLUMNS)).to_pylist()
def put(path, *rows): path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), encoding="utf-8"); return path


def files_for(folder, format): # the options of a write, which are those of the read
    needs = FORMATS[format].needs
    return {n: folder / f"{n}.{'jsonl' if n == 'corpus' else 'tsv' if n == 'queries' else 'txt'}" for n in needs}


# round trips: what each format holds comes back, in the order of the rows where it keeps one

text = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\ufeff"), min_size=1, max_size=8).filter(lambda s: s.strip())
ident = st.from_regex(r"[A-Za-z0-9:_.-]{1,6}", fullmatch=True)


@st.composite
def tables(draw, sources=("a", "b+c")):
    "Queries with one positive each; two passages may share a text, but an id has one text."
    passages = draw(st.dictionaries(ident, text, min_size=4, max_size=7))
    queries = draw(st.dictionaries(ident, text, min_size=1, max_size=3))
    ids, rows = sorted(passages), []
    for source in draw(st.lists(st.sampled_from(sources), min_size=1, max_size=len(sources), unique=True)):
        for q, query in queries.items():
            p, others = ids[0], ids[1:]
            for k, n in enumerate(draw(st.permutations(others))[:2], 1):
                rows.append(dict(query_id=q, positive_id=p, negative_id=n, query=query, positive=passages[p], negative=passages[n], source=source, rank=k, score=float(-k)))
    return Triples.from_rows(rows)


def expected_back(t, format):
    "What the documented losses leave of a table."
    rows = t.table.to_pylist()
    if format in ("parquet", "jsonl"): return rows
    for r in rows:
        if format in ("tsv", "flagembedding") or format.startswith("st-"): r |= dict(query_id=text_id(r["query"], "q:"), positive_id=text_id(r["positive"]), negative_id=text_id(r["negative"]))
        if format in ("tsv", "qidpidtriples") or format.startswith("st-"): r["source"] = "negatives"
        if format not in ("msmarco", "trec"): r["rank"] = None
        if format != "trec": r["score"] = None
    if format in ("msmarco", "trec"): rows = sorted(rows, key=lambda r: (t.query_ids.index(r["query_id"]), t.sources.index(r["source"]) if format == "msmarco" else 0, r["rank"]))
    return rows


@pytest.mark.parametrize("format", WRITTEN)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_what_a_format_holds_comes_back(tmp_path_factory, format, data):
    one = "source (one is allowed)" in FORMATS[format].loses
    t = data.draw(tables(sources=("a",) if one else ("a", "b+c")))
    folder = tmp_path_factory.mktemp("t")
    path = folder / data.draw(st.sampled_from(["t.parquet", "t.jsonl", "t.jsonl.gz"])) if format.startswith("st-") else folder / data.draw(st.sampled_from(["t", "t.txt", "t.gz"]))
    options = files_for(folder, format)
    t.write(path, format, **options)
    back = Triples.read(path, **options, **({"format": format} if format in ("tsv", "qidpidtriples") else {}))
    key = lambda r: json.dumps(r, sort_keys=True)
    assert sorted(map(key, back.table.to_pylist())) == sorted(map(key, expected_back(t, format)))
    if format not in ("msmarco", "trec"): assert back.table.to_pylist() == expected_back(t, format)
    assert recognise(path) == format or format in ("tsv", "qidpidtriples")


def test_a_text_may_begin_with_a_brace(tmp_path):
    rows = [("{x} in f-strings", "braces are replaced", "a brace opens a block"), ("{}", "an empty dict", "an empty set")]
    for name, head in (("t", ""), ("t.tsv", "\ufeff"), ("t.gz", "")):
        path = tmp_path / name
        text = head + "".join("\t".join(r) + "\n" for r in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        assert recognise(path) == "tsv" and [(r["query"], r["positive"], r["negative"]) for r in Triples.read(path).table.to_pylist()] == rows
        assert check_file(path).format == "tsv"
    # what looks like JSON is not taken for text, unless the caller says that it is
    for begin in ('{"query": broken', '{ "query"', "{", "{}"):
        path.with_name("u").write_text(f"{begin}\tb\tc\n")
        if begin == '{"query": broken':
            with pytest.raises(InputError, match="u: extension '' is not known"): Triples.read(path.with_name("u"))
        assert Triples.read(path.with_name("u"), format="tsv").table["query"].to_pylist() == [begin]
    (tmp_path / "v.jsonl").write_text("{x}\tb\tc\n")
    with pytest.raises(InputError, match=r"v\.jsonl:1: "): Triples.read(tmp_path / "v.jsonl")


@pytest.mark.parametrize("format", WRITTEN)
@pytest.mark.parametrize("name", ["msmarco-triples-sample", "nq-triples-sample"])
def test_real_triples_survive_each_format(shared_data, tmp_path, name, format):
    path = shared_data / name / "triples.jsonl.gz"
    if not path.exists(): pytest.skip(f"{name} is not in the folder of public test collections")
    raw = Triples.read(path)
    t = raw.clean()
    # names that a run can hold, and as many negatives a query as an n-tuple needs
    for k, s in enumerate(t.sources): t = t.rename(source=s, to=f"source{k}")
    if "one is allowed" in FORMATS[format].loses: t = t.select(t.sources[0])
    if format == "st-n-tuple":
        rows, per = t.table.to_pylist(), {}
        for i, r in enumerate(rows): per.setdefault((r["query"], r["positive"]), []).append(i)
        t = t.take([i for v in per.values() for i in v[:min(map(len, per.values()))]])
    if format in ("msmarco", "trec"): # the sample has queries with two positives, each with negatives of its own
        first = dict(reversed(list(zip(t.column("query_id"), t.column("positive_id")))))
        t = t.take(np.flatnonzero([first[q] == p for q, p in zip(t.column("query_id"), t.column("positive_id"))]))
    if format == "tsv" and any(c in x for x in (*t.texts("positive"), *t.texts("negative")) for c in "\t\n"): # passages of several lines
        with pytest.raises(InputError, match="holds a tab or a line break, which a text table can't hold"): t.write(tmp_path / "t", format)
        return
    options = {n: tmp_path / f"{n}.{'txt' if n == 'qrels' else 'jsonl'}" for n in FORMATS[format].needs}
    back = Triples.read(t.write(tmp_path / "t", format, **options) if not format.startswith("st-") else t.write(tmp_path / "folder", format), **options)
    key = lambda r: tuple(r.values())
    assert sorted(map(key, texts_of(back))) == sorted(map(key, texts_of(t))) and len(back) == len(t) > 0
    assert back.sources == (["negatives"] if "one is allowed" in FORMATS[format].loses else t.sources)
    assert recognise(tmp_path / ("folder" if format.startswith("st-") else "t")) == format
    assert name in FORMATS[format].tested, "the registry says what it is tested with"


def test_the_same_triples_give_the_same_bytes(tmp_path):
    t = Triples.from_rows([dict(query="q", positive="p", negative=f"n{i}") for i in range(5)])
    for format in WRITTEN:
        if format.startswith("st-"): a, b = (t.write(tmp_path / f"{x}.jsonl.gz", format) for x in "ab")
        else: a, b = (t.write(tmp_path / f"{x}.gz", format) for x in "ab")
        assert a.read_bytes() == b.read_bytes()


# other tools' own output

@pytest.fixture(scope="module")
def mined(shared_data):
    if not (shared_data / "scifact").is_dir(): pytest.skip("scifact is not in the folder of public test collections")
    import datasets
    from sentence_transformers.util import mine_hard_negatives
    from eci_sem.encoders import load_encoder
    scifact = load_beir(shared_data / "scifact")
    pairs = scifact.pairs("test", max_positives=None, limit=40)
    data = datasets.Dataset.from_dict({"question": [p.query for p in pairs], "answer": [p.positive for p in pairs]})
    model = load_encoder("glove").model
    return lambda **o: mine_hard_negatives(data, model, num_negatives=3, range_max=8, use_faiss=False, verbose=False, **o)


@pytest.mark.parametrize("layout", ["triplet", "n-tuple", "labeled-pair", "labeled-list"])
def test_mined_data_sets_are_read(mined, tmp_path, layout):
    import datasets
    data = mined(output_format=layout)
    rows = data.to_list()
    t = Triples.from_frame(data, source="mined")
    if layout == "triplet": expected = [tuple(r.values()) for r in rows]
    if layout == "n-tuple": expected = [(*list(r.values())[:2], n) for r in rows for n in list(r.values())[2:]]
    if layout == "labeled-list": expected = [(r["question"], r["answer"][0], n) for r in rows for n in r["answer"][1:]]
    if layout == "labeled-pair":
        per = {}
        for r in rows: per.setdefault(r["question"], ([], []))[1 - r["label"]].append(r["answer"])
        expected = [(q, p, n) for q, (ps, ns) in per.items() for p in ps for n in ns]
    assert [tuple(r.values()) for r in texts_of(t)] == expected and len(t) > 50 and t.sources == ["mined"]
    datasets.disable_progress_bars()
    data.save_to_disk(tmp_path / "saved")
    data.to_json(tmp_path / "rows")
    data.to_parquet(tmp_path / "columns")
    for name in ("saved", "rows", "columns"): assert recognise(tmp_path / name) == f"st-{layout}" and texts_of(Triples.read(tmp_path / name)) == texts_of(t)
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "splits")
    assert texts_of(Triples.read(tmp_path / "splits")) == texts_of(t)
    order = data.select(range(len(data) - 1, -1, -1)) if layout != "labeled-pair" else data
    assert sorted(map(str, texts_of(Triples.read(order)))) == sorted(map(str, texts_of(t))), "a selection is followed"


@pytest.mark.parametrize("layout", ["triplet", "n-tuple", "labeled-list"])
def test_mined_scores_are_those_of_the_negatives(mined, layout):
    data = mined(output_format=layout, output_scores=True)
    t = Triples.from_frame(data)
    assert np.allclose(t.column("score"), [s for r in data.to_list() for s in r["scores"][1:]])
    with pytest.raises(InputError, match=r"row 0 .*scores instead of labels don't tell the positive"): Triples.from_frame(mined(output_format="labeled-pair", output_scores=True))


def test_a_data_set_made_here_trains_there(tmp_path):
    t = Triples.from_rows([dict(query="q", positive="p", negatives=["m", "n"]), dict(query="r", positive="p", negatives=["n", "o"])])
    assert to_dataset(t).column_names == ["anchor", "positive", "negative"] and to_dataset(t, "st-n-tuple").column_names == ["anchor", "positive", "negative_1", "negative_2"]
    assert to_dataset(t, "st-labeled-list")[1] == {"query": "r", "passages": ["p", "n", "o"], "labels": [1, 0, 0]}
    with pytest.raises(InputError, match="unknown layout 'triplet'. Did you mean 'st-triplet'"): to_dataset(t, "triplet")
    folder = t.write(tmp_path / "data", "st-triplet")
    import datasets
    assert datasets.load_from_disk(str(folder)).to_list() == to_dataset(t).to_list() and os.listdir(tmp_path) == ["data"]
    t.take([0]).write(folder, "st-triplet") # takes the place of the old one
    assert len(Triples.read(folder)) == 1 and os.listdir(tmp_path) == ["data"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is there already, and is no saved data set"): t.write(tmp_path / "mine", "st-triplet")


@pytest.mark.parametrize("row", [{"negative_1": "N1", "negative_2": "N2", "positive": "P", "query": "Q"}, {"positive": "P", "anchor": "Q", "negative_2": "N2", "negative_1": "N1"}, {"answer": "P", "negative_2": "N2", "negative_1": "N1", "question": "Q"},
    {"answer": "P", "negative_1": "N1", "negative_2": "N2", "x": "Q"}, {"x": "P", "negative_1": "N1", "negative_2": "N2", "query": "Q"}, {"x": "Q", "negative_1": "N1", "y": "P", "negative_2": "N2"}, {"query": "Q", "question": "P", "negative_1": "N1", "negative_2": "N2"},
    {"labels": [1, 0, 0], "passages": ["P", "N1", "N2"], "query": "Q"}, {"passages": ["N1", "P", "N2"], "x": "Q", "labels": [0, 1, 0]}, {"docs": ["P", "N1", "N2"], "labels": [1, 0, 0], "question": "Q"}, {"x": "Q", "docs": ["P", "N1", "N2"], "labels": [1, 0, 0]}])
def test_names_tell_the_roles_in_any_order(tmp_path, row):
    expected = [dict(query="Q", positive="P", negative=n) for n in ("N1", "N2")]
    assert texts_of(Triples.read(put(tmp_path / "t", row))) == texts_of(Triples.read(pa.Table.from_pylist([row]))) == expected


def test_names_tell_the_roles_of_labelled_pairs_and_of_many_negatives(tmp_path):
    rows = [{"label": 1, "passage": "P", "query": "Q"}, {"label": 0, "passage": "N", "query": "Q"}]
    assert texts_of(Triples.read(put(tmp_path / "pairs", *rows))) == [dict(query="Q", positive="P", negative="N")]
    assert texts_of(Triples.read(put(tmp_path / "triplet", {"positive": "b", "anchor": "a", "negative": "c"}))) == [dict(query="a", positive="b", negative="c")]
    row = {"query": "Q", "positive": "P", **{f"negative_{k}": f"N{k}" for k in range(1, 12)}, "scores": list(range(12))}
    (tmp_path / "sorted").write_text(json.dumps(row, sort_keys=True) + "\n") # negative_10 stands before negative_2
    t = Triples.read(tmp_path / "sorted")
    assert list(zip(t.texts("negative"), t.column("score"))) == [(f"N{k}", k) for k in range(1, 12)] and set(t.texts("query")) == {"Q"}


def test_flagembedding_and_tevatron_by_hand(tmp_path):
    path = put(tmp_path / "f", {"query": "q", "pos": ["p", "r"], "neg": ["m", "n"], "pos_scores": [1, 2], "neg_scores": [0.5, 0.25], "prompt": "x"})
    assert [(r["positive"], r["negative"], r["score"]) for r in Triples.read(path).table.to_pylist()] == [("p", "m", 0.5), ("p", "n", 0.25), ("r", "m", 0.5), ("r", "n", 0.25)]
    path = put(tmp_path / "t", {"query_id": 7, "query": "q", "positive_passages": [{"docid": "1", "title": "A", "text": "p"}], "negative_passages": [{"docid": "2", "title": "", "text": "n"}, {"text": "m"}]})
    assert [tuple(r.values())[:6] for r in Triples.read(path).table.to_pylist()] == [("7", "1", "2", "q", "A p", "n"), ("7", "1", text_id("m"), "q", "A p", "m")]


def test_msmarco_hard_negatives_keep_their_systems(tmp_path):
    path = tmp_path / "hard.jsonl.gz"
    with gzip.open(path, "wt") as f: f.write('{"qid": 1, "pos": ["a", "b"], "neg": {"bm25": ["c"], "dense": ["d", "c"], "none": []}}\n{"qid": 2, "pos": [], "neg": {"bm25": ["a", "b"]}}\n')
    t = Triples.read(path, corpus=ANIMALS)
    assert recognise(path) == "msmarco" and t.sources == ["bm25", "dense"] and t.dropped == {"bm25": {"query has no positive": 2}}
    assert [(r["positive_id"], r["negative_id"], r["source"], r["rank"]) for r in t.table.to_pylist()] == [("a", "c", "bm25", 1), ("a", "d", "dense", 1), ("a", "c", "dense", 2), ("b", "c", "bm25", 1), ("b", "d", "dense", 1), ("b", "c", "dense", 2)]
    put(tmp_path / "corpus.tsv", *(f"{i}\t{x}\n" for i, x in ANIMALS.corpus.items())), put(tmp_path / "q.jsonl", *({"_id": i, "text": x} for i, x in ANIMALS.queries.items()))
    assert Triples.read(path, corpus=tmp_path / "corpus.tsv", queries=tmp_path / "q.jsonl").table.equals(t.table) and Triples.read(path, corpus=ANIMALS.corpus, queries=ANIMALS.queries).table.equals(t.table)
    with pytest.raises(InputError, match=r"hard.jsonl.gz:1: passage 'd' is not in the dictionary that was given"): Triples.read(path, corpus={k: v for k, v in ANIMALS.corpus.items() if k != "d"}, queries=ANIMALS.queries)
    with pytest.raises(InputError, match=r"recognised as 'msmarco', which holds ids: corpus=, queries= are needed"): Triples.read(path)
    with pytest.raises(InputError, match=r"holds no triples, all was left out \(bm25: 2 query has no positive\)"): Triples.read(put(tmp_path / "none", {"qid": 2, "pos": [], "neg": {"bm25": ["a", "b"]}}), corpus=ANIMALS)


def test_a_run_with_judgments_by_hand(tmp_path):
    run = put(tmp_path / "run", "1 Q0 c 2 4.5 bm25\n", "1 Q0 a 1 9.0 bm25\n", "1 Q0 d 3 4.5 bm25\n", "2 Q0 a 1 1.0 bm25\n", "1 Q0 d 1 0.9 dense\n", "9 Q0 a 1 1.0 dense\n")
    qrels = put(tmp_path / "qrels", "1 0 a 1\n", "1 0 b 2\n", "1 0 c 0\n", "2 0 c 1\n")
    t = Triples.read(run, corpus=ANIMALS, qrels=qrels)
    assert recognise(run) == "trec" and [(r["query_id"], r["positive_id"], r["negative_id"], r["source"], r["rank"], r["score"]) for r in t.table.to_pylist()] == [
        ("1", "a", "c", "bm25", 2, 4.5), ("1", "a", "d", "bm25", 3, 4.5), ("1", "b", "c", "bm25", 2, 4.5), ("1", "b", "d", "bm25", 3, 4.5), ("2", "c", "a", "bm25", 1, 1.0), ("1", "a", "d", "dense", 1, 0.9), ("1", "b", "d", "dense", 1, 0.9)]
    assert t.dropped == {"bm25": {"retrieved passage is relevant": 1}, "dense": {"query has no relevant passage": 1}}
    few = Triples.read(run, corpus=ANIMALS, judged_only=True)
    assert set(few.column("negative_id")) == {"c"} and few.dropped["bm25"] == {"retrieved passage is not judged": 2, "retrieved passage is relevant": 1}
    assert Triples.read(run, corpus=ANIMALS, depth=2).dropped["bm25"] == {"beyond the depth": 1, "retrieved passage is relevant": 1}
    beir = put(tmp_path / "test.tsv", "query-id\tcorpus-id\tscore\n", "1\ta\t1\n", "1\tb\t2\n", "1\tc\t0\n", "2\tc\t1\n")
    assert read_qrels(beir) == read_qrels(qrels) == read_qrels(ANIMALS)


@pytest.mark.parametrize("name, split", [("scifact", "test"), ("cranfield", "test")])
def test_a_real_run_is_read_with_its_judgments(shared_data, tmp_path, name, split):
    if not (shared_data / name).is_dir(): pytest.skip(f"{name} is not in the folder of public test collections")
    collection = load_beir(shared_data / name)
    queries = sorted(collection.qrels[split])[:30]
    judgments = read_qrels(shared_data / name / "qrels" / f"{split}.tsv") # those of empty documents too, which the collection leaves out
    rows = []
    import bm25s
    index = bm25s.BM25()
    ids = list(collection.corpus)
    index.index(bm25s.tokenize(list(collection.corpus.values()), show_progress=False), show_progress=False)
    hits, scores = index.retrieve(bm25s.tokenize([collection.queries[q] for q in queries], show_progress=False), k=20, show_progress=False)
    for q, h, s in zip(queries, hits, scores): rows += [f"{q} Q0 {ids[i]} {k} {x!r} bm25\n" for k, (i, x) in enumerate(zip(h.tolist(), s.tolist()), 1)]
    run = put(tmp_path / "run.txt", *rows)
    t = Triples.read(run, corpus=shared_data / name / "corpus.jsonl.gz", queries=shared_data / name / "queries.jsonl.gz", qrels=shared_data / name / "qrels" / f"{split}.tsv", depth=10)
    expected = []
    for q, h in zip(queries, hits):
        grades = judgments[q]
        expected += [(q, p, ids[i]) for p in grades if grades[p] > 0 for i in h.tolist()[:10] if grades.get(ids[i], 0) <= 0]
    assert sorted(zip(t.column("query_id"), t.column("positive_id"), t.column("negative_id"))) == sorted(expected) and len(t) > 100
    assert t.check().counts.keys() <= {"empty text"} # two documents of cranfield have none
    t = t.clean()
    assert all(collection.corpus[i] == x for i, x in zip(t.column("negative_id"), t.texts("negative")))
    one = t.take(np.flatnonzero(np.array([min(p for p, g in collection.qrels[split][q].items() if g > 0) for q in t.column("query_id")]) == t.column("positive_id")))
    for format in ("msmarco", "qidpidtriples"):
        back = Triples.read(one.write(tmp_path / format, format), corpus=collection)
        assert back.table.select(list(COLUMNS[:6])).equals(one.table.select(list(COLUMNS[:6])).combine_chunks())


def test_ids_and_texts_between_tabs(tmp_path):
    ids = put(tmp_path / "ids.tsv", "1\ta\tc\n", "1\ta\td\n")
    t = Triples.read(ids, corpus=ANIMALS, source="bm25")
    assert texts_of(t)[1] == {"query": "what do dogs do", "positive": "Dogs bark.", "negative": "Fish swim."} and t.sources == ["bm25"]
    with pytest.raises(InputError, match=r"recognised as 'qidpidtriples', which holds ids: corpus=, queries= are needed"): Triples.read(ids)
    assert texts_of(Triples.read(ids, format="tsv"))[0] == {"query": "1", "positive": "a", "negative": "c"}
    with pytest.raises(InputError, match="ids.tsv: recognised as 'qidpidtriples', but format='trec' was given"): Triples.read(ids, format="trec")
    assert len(Triples.read(put(tmp_path / "texts", "a query\ta passage\tanother\r\n"))) == 1
    (tmp_path / "cut").write_text("1\ta\tc\n1\ta\td")
    with pytest.raises(InputError, match=r"cut:2: the last line has no end, so the file may have been cut off"): Triples.read(tmp_path / "cut", corpus=ANIMALS)


@pytest.mark.parametrize("header", ["query\tpositive\tnegative", "anchor\tpositive\tnegative", "Question\tAnswer\tNegative", "qid\tpos\tneg", "query_id\tpositive_id\tnegative_id", "qid\tpos_pid\tneg_pid", "query-text\tpositive passage\tnegative passage", "\ufeffquery\tpos\tneg"])
def test_a_header_is_no_triple(tmp_path, header):
    assert texts_of(Triples.read(put(tmp_path / "texts", f"{header}\r\n", "a query\ta passage\tanother\n"))) == [dict(query="a query", positive="a passage", negative="another")]
    t = Triples.read(put(tmp_path / "ids", f"{header}\n", "1\ta\tc\n", "2\tc\ta\n"), corpus=ANIMALS)
    assert t.column("negative_id").tolist() == ["c", "a"] and recognise(tmp_path / "texts") == "tsv"
    again = put(tmp_path / "twice", f"{header}\n" * 2, "a query\ta passage\tanother\n")
    assert len(Triples.read(again)) == 2 # only the first line is a header
    with pytest.raises(InputError, match="holds no rows"): Triples.read(put(tmp_path / "empty", f"{header}\n"), format="tsv")


def test_a_row_that_looks_like_a_header_is_not_written(tmp_path):
    t = Triples.from_rows([dict(query_id="qid", query="query", positive_id="pos", positive="positive", negative_id="neg", negative="negative")])
    for format in ("tsv", "qidpidtriples"):
        with pytest.raises(InputError, match="the first row would be read as a header"): t.write(tmp_path / "t", format)
    for line in ("what is it\tpositive\tnegative", "1\ta\tc", "q\tp\tn", "query\tanother\tthird"): assert not is_header(line)


def test_judgments_are_no_triples(tmp_path):
    for header in ("query-id\tcorpus-id\tscore\n", "query_id\tdoc_id\tgrade\n"):
        with pytest.raises(InputError, match=r"test.tsv: these are judgments .*give them as qrels="): Triples.read(put(tmp_path / "test.tsv", header, "1\ta\t1\n", "1\tb\t2\n"), corpus=ANIMALS)


@pytest.mark.parametrize("qrels, message", [({"1": {"a": "1"}}, "qrels, query '1': maps str 'a' to str"), ({"1": {"a": None}}, "to NoneType, expected document ids"), ({"1": {"a": 1.5}}, "to float"), ({"1": {"a": True}}, "to bool"), ({"1": {2: 1}}, "maps int '2' to int"), ({"1": ["a"]}, "qrels maps str '1' to list, expected query ids"), ({1: {"a": 1}}, "qrels maps int '1' to dict"), ({"1": None}, "to NoneType")])
def test_dictionaries_of_judgments_are_checked(tmp_path, qrels, message):
    run = put(tmp_path / "run", "1 Q0 c 1 1.0 x\n")
    with pytest.raises(InputError, match=message): Triples.read(run, corpus=ANIMALS, qrels=qrels)
    assert len(Triples.read(run, corpus=ANIMALS, qrels={"1": {"a": np.int64(1)}})) == 1


def test_rows_of_labelled_pairs_follow_one_another(tmp_path):
    rows = [{"query": q, "passage": p, "label": l} for q, p, l in [("q", "a", 1), ("r", "b", 1), ("q", "c", 0), ("r", "d", 0)]]
    with pytest.raises(InputError, match=r"t:3: query 'q' has no positive among its rows here .*a query's rows must follow one another"): Triples.read(put(tmp_path / "t", *rows))


@pytest.mark.parametrize("frame", [pd.DataFrame({"a": [1], "b": [2]}), pa.table({"a": [1], "b": [2]})])
def test_the_columns_that_were_there_are_named(frame):
    with pytest.raises(InputError, match="data frame: column 'query' is missing; found 'a', 'b', expected at least 'query'"): Triples.read(frame)


def test_a_csv_comes_in_as_it_is_and_through_pandas(tmp_path):
    put(tmp_path / "t.csv", "query,positive,negative\n", "a query,a passage,another\n")
    assert texts_of(Triples.read(tmp_path / "t.csv")) == [dict(query="a query", positive="a passage", negative="another")]
    assert texts_of(Triples.read(pd.read_csv(tmp_path / "t.csv"))) == [dict(query="a query", positive="a passage", negative="another")]


# frames

def test_frames_of_every_library_are_the_same_table(shared_data):
    import polars
    path = shared_data / "nq-triples-sample" / "triples.jsonl.gz"
    if not path.exists(): pytest.skip("nq-triples-sample is not in the folder of public test collections")
    t = Triples.read(path)
    frames = [t.to_pandas(), polars.from_arrow(t.table), t.table, pa.RecordBatchReader.from_batches(t.table.schema, t.table.to_batches())]
    for frame in frames: assert Triples.from_frame(frame).table.equals(t.table)
    frame = polars.read_ndjson(gzip.open(path).read())
    assert Triples.read(frame).table.equals(t.table) and Triples.read(frame.to_pandas()).table.equals(t.table) and Triples.read(frame, source="x").sources == ["x"]
    assert Triples.from_frame(frame.with_columns(polars.col("source").cast(polars.Categorical))).table.equals(t.table)

    class Mine: # any other library
        def __arrow_c_stream__(self, requested_schema=None): return t.table.__arrow_c_stream__(requested_schema)
    assert Triples.from_frame(Mine()).table.equals(t.table)


@pytest.mark.parametrize("frame, message", [
    ([1], "found list, expected a path or a frame with Arrow's stream interface"),
    (None, "found NoneType, expected a path or a frame"),
    (pd.DataFrame([["a", "b", "c"]], columns=["query", "query", "negative"]), "data frame: column 'query' occurs twice"),
    (pa.table({"query": ["q"], "positive": ["p"]}), "data frame: column 'negative' is missing; found 'query', 'positive'"),
    (pd.DataFrame({"anchor": ["q"], "positive": ["p"], "negative": [3]}), r"data frame: row 0 \(counting from 0\): 'negative' is int, expected a string"),
    (pa.table({"qid": [1], "pos": [[1]], "neg": [[2]]}), "data frame: holds ids"),
    (pa.table({"anchor": ["q", "q"], "positive": ["p", "p"], "negative_1": ["n", "n"], "negative_2": ["n", None]}), r"row 1 \(counting from 0\): 'negative_2' is null, expected a string"),
    (pa.table({"q": ["q"], "docs": [["p", "n"]], "labels": [[1, 2]]}), "'labels' holds 2, expected 1 for a positive and 0 for a negative"),
    (pa.table({"q": ["q"], "docs": [["p", "n"]], "labels": [[0, 0]]}), "query 'q' has no positive"),
    (pa.table({"q": ["q"], "docs": [["p"]], "scores": [[0.5]]}), "the list holds the positive alone"),
    (pa.table({"q": ["q"], "d": ["p"], "label": [3]}), "'label' is 3, expected 1 for a positive and 0 for a negative"),
])
def test_frames_are_refused_with_their_place(frame, message):
    with pytest.raises(InputError, match=message): Triples.read(frame)


# recognition, options and errors

def test_content_counts_and_names_do_not(tmp_path):
    t = Triples.from_rows([dict(query="q", positive="p", negative="n")])
    t.write(tmp_path / "a.parquet"), t.write(tmp_path / "a.jsonl"), t.write(tmp_path / "a.jsonl.gz")
    for old, new in (("a.parquet", "b.jsonl"), ("a.jsonl", "b.parquet"), ("a.jsonl.gz", "b.txt"), ("a.jsonl", "b")):
        (tmp_path / new).write_bytes((tmp_path / old).read_bytes())
        assert recognise(tmp_path / new) == old[2:].removesuffix(".gz") and Triples.read(tmp_path / new).table.equals(t.table)
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.jsonl").read_bytes())
    assert Triples.read(tmp_path / "bom").table.equals(t.table)


@pytest.mark.parametrize("names, layout", [
    (["query", "positive", "negative"], "native"), (["query", "positive", "negatives", "x"], "native"), (["query", "positive", "negative", "scores"], "st-triplet"), (["a", "b", "negative"], "st-triplet"),
    (["a", "b", "negative_1"], "st-n-tuple"), (["a", "b", "c", "negative_1"], None), (["query", "pos", "neg"], "flagembedding"), (["qid", "pos", "neg"], "msmarco"), (["a", "b", "labels"], "st-labeled-list"), (["a", "b", "score"], "st-labeled-pair"), ([], None)])
def test_layouts(names, layout): assert layout_of(names) == layout


def test_options_without_effect_are_refused(tmp_path):
    path = put(tmp_path / "t.jsonl", {"query": "q", "positive": "p", "negative": "n"})
    for option in (dict(corpus=ANIMALS), dict(queries={}), dict(qrels=ANIMALS), dict(depth=3), dict(judged_only=True)):
        name = next(iter(option))
        with pytest.raises(InputError, match=rf"t.jsonl: recognised as 'jsonl', where {name}= has no effect \(it belongs to .*trec\); leave it out"): Triples.read(path, **option)
    with pytest.raises(InputError, match="where depth= has no effect"): Triples.read(pd.DataFrame(dict(query=["q"], positive="p", negative="n")), depth=1)
    run = put(tmp_path / "run", "1 Q0 c 1 1.0 x\n")
    for depth in (0, True, 1.5):
        with pytest.raises(InputError, match=f"depth is {depth!r}, expected a whole number of at least 1"): Triples.read(run, corpus=ANIMALS, depth=depth)
    with pytest.raises(InputError, match="which holds ids: queries=, qrels= are needed"): Triples.read(run, corpus=ANIMALS.corpus)
    with pytest.raises(InputError, match="unknown format 'cvs'"): Triples.read(path, format="cvs")
    t = Triples.read(path)
    with pytest.raises(InputError, match="format 'tsv' has no use for corpus="): t.write(tmp_path / "x", "tsv", corpus=tmp_path / "y")
    for name in ("frame", "st-labeled-pair", "csv"):
        with pytest.raises(InputError, match=f"unknown format to write '{name}'"): t.write(tmp_path / "x", name)


@pytest.mark.parametrize("rows, message", [
    ([{"query": "q", "pos": ["p"], "neg": []}], r":1: 'neg' is an empty list, expected a list with at least one string"),
    ([{"query": "q", "pos": ["p"], "neg": ["n"]}, {"query": "q", "pos": ["p"]}], r":2: key 'neg' is missing; found 'query', 'pos', expected a list"),
    ([{"query": "q", "pos": ["p"], "neg": ["n", 3]}], r":1: 'neg' holds a int, expected strings"),
    ([{"query": "q", "pos": ["p"], "neg": ["n"], "neg_scores": [1, 2]}], r":1: 'neg_scores' holds 2 numbers for 1 passages"),
    ([{"query": "q", "pos": ["p"], "neg": ["n"], "neg_scores": ["x"]}], r":1: 'neg_scores' holds a str, expected numbers"),
    (['{"query": "q", "pos": ["p"], "neg": ["n"], "neg_scores": [1' + "0" * 400 + "]}\n"], r":1: 'neg_scores' holds a number that is too large"),
    ([{"query": "q", "positive_passages": ["p"], "negative_passages": [{"text": "n"}]}], r":1: 'positive_passages' holds a str, expected objects with docid"),
    ([{"query": "q", "positive_passages": [{"docid": "1"}], "negative_passages": [{"text": "n"}]}], r":1: 'positive_passages': key 'text' is missing"),
    ([{"anchor": "q", "positive": "p", "negative": "n"}, {"anchor": "q", "positive": "p"}], r":2: key 'negative' is missing"),
    (['{"query": "q", "pos": ["\\ud800"], "neg": ["n"]}\n'], r":1: 'positive' holds half a surrogate pair"),
    ([{"query": "q", "positive": "p", "negative": "n", "score": 10**400}], r":1: 'score' is too large for a number of 64 bits"),
    (["[1, 2]\n"], r"extension '' is not known"),
])
def test_rows_are_refused_with_their_line(tmp_path, rows, message):
    with pytest.raises(InputError, match=message): Triples.read(put(tmp_path / "t", *rows))


@pytest.mark.parametrize("content, message", [
    (b'{"query": "q", "pos": ["\xff"], "neg": ["n"]}\n', r"t.jsonl:1: not UTF-8 text \(byte 24 of the line\)"),
    (gzip.compress(b'{"query": "q", "pos": ["p"], "neg": ["n"]}\n' * 99, mtime=0)[:-9], r"t.jsonl: damaged gzip data"),
])
def test_damaged_lines_are_refused(tmp_path, content, message):
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=message): Triples.read(tmp_path / "t.jsonl")


def test_a_line_without_an_end_is_not_held(tmp_path, monkeypatch):
    import eci_sem.collection
    monkeypatch.setattr(eci_sem.collection, "_LINE", 1 << 20)
    (tmp_path / "t.jsonl").write_bytes(b'{"query": "' + b"q" * (1 << 21))
    with pytest.raises(InputError, match="t.jsonl:1: the line is longer than 1 MB"): Triples.read(tmp_path / "t.jsonl")


def test_damaged_data_sets_are_refused(tmp_path):
    t = Triples.from_rows([dict(query="q", positive="p", negative=f"n{i}") for i in range(200)])
    folder = t.write(tmp_path / "data", "st-triplet")
    arrow = next(folder.glob("*.arrow"))
    whole = arrow.read_bytes()
    for cut in (8, 100, len(whole) - 20):
        arrow.write_bytes(whole[:-cut])
        with pytest.raises(InputError, match="may have been cut off|not a readable Arrow file|file is empty"): Triples.read(folder)
    arrow.unlink()
    with pytest.raises(InputError, match="no such file, but state.json names it"): Triples.read(folder)
    (folder / "state.json").write_text("{")
    with pytest.raises(InputError, match="state.json: not readable"): Triples.read(folder)
    with pytest.raises(InputError, match="is a folder without state.json"): Triples.read(tmp_path)


def test_text_that_is_none_is_refused(tmp_path):
    bad = pa.Array.from_buffers(pa.large_string(), 1, [None, pa.array([0, 2], pa.int64()).buffers()[1], pa.py_buffer(b"\xff\xfe")])
    pq.write_table(pa.table(dict(query=["q"], positive=["p"], negative=bad)), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t.parquet: not a readable Parquet file \(.*UTF8"): Triples.read(tmp_path / "t.parquet")


def test_writes_that_would_lose_what_matters_are_refused(tmp_path):
    t = Triples.from_rows([dict(query_id=q, positive_id="p", query=q, positive="p", negative_id=n, negative=n, source=s) for q, n, s in [("1", "a", "x"), ("1", "b", "x"), ("1", "a", "y")]])
    for format in ("tsv", "qidpidtriples", *LISTS):
        with pytest.raises(InputError, match=f"the table holds the sources x, y, and '{format}' has no place for them"): t.write(tmp_path / "t", format)
    uneven = Triples.from_rows([dict(query="q", positive="p", negatives=["a", "b"]), dict(query="r", positive="p", negatives=["a"])])
    with pytest.raises(InputError, match="number 1 to 2, and 'st-n-tuple' holds one number"): uneven.write(tmp_path / "t", "st-n-tuple")
    with pytest.raises(InputError, match="is empty or holds a tab or a line break"): Triples.from_rows([dict(query="q", positive="p", negative="a\tb")]).write(tmp_path / "t", "tsv")
    with pytest.raises(InputError, match="a negative occurs twice or is a positive"): Triples.concat([t, t]).write(tmp_path / "t", "trec")
    two = Triples.from_rows([dict(query_id="1", query="q", positive=p, negative=n) for p, n in [("p", "a"), ("r", "b")]])
    for format in ("msmarco", "trec"):
        with pytest.raises(InputError, match="query '1' has other negatives for one of its positives than for another"): two.write(tmp_path / "t", format)
    with pytest.raises(InputError, match="the source 'two words' is empty or holds white space"): t.select("x").rename(source="x", to="two words").write(tmp_path / "t", "trec")
    with pytest.raises(InputError, match="id 'a' stands for two texts"): Triples.from_rows([dict(query="q", positive="p", negative_id="a", negative=n) for n in "mn"]).write(tmp_path / "t", "msmarco", corpus=tmp_path / "c")
    with pytest.raises(InputError, match="the table has no rows to write"): t.take([]).write(tmp_path / "t", "tevatron")
    assert os.listdir(tmp_path) == ["t"] or os.listdir(tmp_path) == []


# batches

@pytest.mark.parametrize("format", ["parquet", "jsonl", "flagembedding", "tevatron", "tsv", "st-triplet"])
def test_batches_put_together_are_the_table(tmp_path, format):
    t = Triples.from_rows([dict(query=f"q {i // 3}", positive=f"p {i // 3}", negative=f"n {i}") for i in range(50)])
    path = t.write(tmp_path / "t", format) if not format.startswith("st") else t.write(tmp_path / "t.parquet", format)
    whole = Triples.read(path)
    for size in (1, 7, 49, 50, 1000):
        parts = list(scan_triples(path, batch=size))
        assert max(map(len, parts)) <= size and Triples.concat(parts).content_hash == whole.content_hash
    with pytest.raises(InputError, match="batch is 0"): scan_triples(path, batch=0)


def test_a_row_of_parquet_is_named_by_its_place_in_the_file(tmp_path):
    pq.write_table(pa.table(dict(query=["q"] * 30, positive=["p"] * 30, negative=["n"] * 21 + [None] + ["n"] * 8)), tmp_path / "t")
    with pytest.raises(InputError, match=r"t: row 21 \(counting from 0\): 'negative' is null"): list(scan_triples(tmp_path / "t", batch=8))


def test_rejected_lines_are_told_and_the_rest_is_read(tmp_path):
    good = {"query": "q", "positive": "p", "negative": "n"}
    path = put(tmp_path / "t.jsonl", good, "{\n", good, '{"query": "q", "positive": "\\ud800", "negative": "n"}\n', {"query": "q"}, good)
    told = []
    parts = list(scan_triples(path, rejected=lambda *x: told.append(x)))
    assert sum(map(len, parts)) == 3 and [n for n, *_ in told] == [2, 4, 5] and "not valid JSON" in told[0][1] and "half a surrogate pair" in told[1][1] and told[0][2] == b"{\n"


def peak(path, batch):
    import tracemalloc
    held = pa.total_allocated_bytes()
    most = rows = 0
    tracemalloc.start()
    for part in scan_triples(path, batch=batch):
        rows += len(part)
        most = max(most, pa.total_allocated_bytes() - held)
        del part
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return rows, python + most


@pytest.mark.parametrize("format", ["parquet", "jsonl", "flagembedding"])
def test_four_times_the_rows_take_no_more_memory(tmp_path, monkeypatch, format):
    monkeypatch.setattr("eci_sem.formats._BATCH", 1000) # rows of a row group of Parquet
    used = {}
    for n in (4_000, 16_000):
        t = Triples.from_pandas(pd.DataFrame(dict(query=[f"query {i // 4} " + "x" * 40 for i in range(n)], positive=[f"passage {i // 4} " + "y" * 200 for i in range(n)], negative=[f"negative {i} " + "z" * 200 for i in range(n)])))
        rows, used[n] = peak(t.write(tmp_path / str(n), format), 1000)
        assert rows == n
    assert used[16_000] < 1.5 * used[4_000] + 1e6 and used[16_000] < 0.7 * t.table.nbytes


@pytest.mark.parametrize("rejected", [None, lambda *_: None])
def test_what_a_line_holds_besides_its_texts_is_not_kept(tmp_path, rejected):
    "A field that no reader asks for may be the largest of a file."
    import tracemalloc
    with open(tmp_path / "t.jsonl", "w") as f:
        for i in range(1_500): f.write(json.dumps(dict(query=f"q{i}", pos=["p"], neg=["n"], more="x" * 20_000)) + "\n")
    tracemalloc.start()
    rows = sum(len(t) for t in scan_triples(tmp_path / "t.jsonl", rejected=rejected))
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 1_500 and used < 6e6, f"{used / 1e6:.0f} MB for a file of 30 MB with 10 kB of texts"


# the table

def test_the_registry_is_the_table():
    frame = formats_table()
    assert list(frame.index) == list(FORMATS)
    for f in FORMATS.values(): assert frame.loc[f.name, "read"] == ("yes" if f.reads else "no") and frame.loc[f.name, "write"] == ("yes" if f.writes else "no") and f.tested and (f.loses or not f.writes)


def test_the_guide_shows_the_registry(root):
    cells = json.loads((root / "nbs/guides/formats.ipynb").read_text(encoding="utf-8"))["cells"]
    shown = ["".join(o["data"]["text/html"]) for c in cells for o in c.get("outputs", ()) if "text/html" in o.get("data", {})]
    expected = formats_table().reset_index()
    columns = []
    for table in shown[:2]:
        head, _, *rows = [[html.unescape(c) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", r, re.S)] for r in re.findall(r"<tr.*?</tr>", table, re.S)]
        assert [r[0] for r in rows] == list(FORMATS), "run the guide again: nbs/guides/formats.ipynb"
        for k, c in enumerate(head[1:], 1): assert [r[k] for r in rows] == expected[c].tolist(), f"column {c!r}: run the guide again"
        columns += head[1:]
    assert set(columns) == set(formats_table().columns)


def test_want_of_memory_is_not_called_damage(tmp_path, monkeypatch):
    path = Triples.from_rows([dict(query="q", positive="p", negative="n")]).write(tmp_path / "a.parquet")
    def fails(message):
        def full(self, *_, **__): raise pa.ArrowMemoryError(message)
        monkeypatch.setattr(pq.ParquetFile, "iter_batches", full)
        return lambda: Triples.read(path)
    for message in ("malloc of size 268435456 failed", "realloc of size 268435456 failed", "std::bad_alloc"):
        read = fails(message)
        with pytest.raises(MemoryError, match=rf"a\.parquet: there was no memory left to read it with \({message}\); give a smaller batch"): read()
    read = fails(f"malloc of size {1 << 50} failed") # more than any machine has: the file claims it
    with pytest.raises(InputError, match=r"a\.parquet: not a readable Parquet file \(malloc of size 1125899906842624 failed\); write it again or fetch it again"): read()


# text between commas, semicolons or tabs, with the names of its columns

cell = st.text(st.sampled_from("ab é\"',;\t\n "), max_size=6)

@given(rows=st.lists(st.tuples(cell, cell, cell, st.sampled_from(["a", "b,c"])), min_size=1, max_size=6), split=st.sampled_from(",;\t"), size=st.integers(1, 7), packed=st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_a_spreadsheet_writes_is_read_as_it_was(tmp_path_factory, rows, split, size, packed):
    path = tmp_path_factory.mktemp("t") / ("t.gz" if packed else "t")
    pd.DataFrame(rows, columns=["query", "positive", "negative", "source"]).assign(other=1).to_csv(path, sep=split, index=False)
    t = Triples.concat(scan_triples(path, batch=size))
    # a blank line within a text loses its blanks, which no check sees
    plain = lambda x: re.sub(r"\n[ \t]+(?=\n)", "\n", x)
    assert [tuple(map(plain, r)) for r in zip(t.texts("query"), t.texts("positive"), t.texts("negative"), t.column("source"))] == [tuple(map(plain, r)) for r in rows]
    assert recognise(path) == "csv" and check_file(path, batch=size).rows == len(rows)


def test_a_table_with_names_has_ids_ranks_and_layouts_too(tmp_path):
    rows = [dict(query_id="1", positive_id="a", negative_id="", query="q", positive="p", negative="n", source="s", rank="2", score="0.5"), dict(query_id="", positive_id="a", negative_id="b", query="q", positive="p", negative="m", source="s", rank="", score="nan")]
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    first, second = Triples.read(tmp_path / "t.csv").table.to_pylist()
    assert (first["query_id"], first["rank"], first["score"], first["negative_id"]) == ("1", 2, 0.5, text_id("n")) and (second["query_id"], second["rank"], second["score"]) == (text_id("q", "q:"), None, None)
    put(tmp_path / "n.csv", "anchor,positive,negative_1,negative_2\n", "q,p,n,m\n")
    assert recognise(tmp_path / "n.csv") == "st-n-tuple" and Triples.read(tmp_path / "n.csv").texts("negative") == ["n", "m"]
    # three columns between tabs are texts as they are, unless the caller says that quotes are quotes
    put(tmp_path / "t.tsv", "query\tpositive\tnegative\n", '"a ""b"" c"\tp\tn\n')
    assert recognise(tmp_path / "t.tsv") == "tsv" and Triples.read(tmp_path / "t.tsv").texts("query") == ['"a ""b"" c"']
    assert Triples.read(tmp_path / "t.tsv", format="csv").texts("query") == ['a "b" c']
    put(tmp_path / "four.tsv", "query\tpositive\tnegative\tsource\n", "q\tp\tn\ts\n")
    for format in (None, "csv", "tsv"): assert Triples.read(tmp_path / "four.tsv", format=format).sources == ["s"]
    with pytest.raises(InputError, match="recognised as 'csv', but format='tsv' was given"): Triples.read(tmp_path / "t.csv", format="tsv")


def test_a_bad_row_of_a_table_with_names_is_told_with_its_line(tmp_path):
    lines = [b"query,positive,negative,source,rank", b'q,"p, with', b"", b'a break",n,s,1', b"q,p,n", b'q,"p" x,n,s,1', b"q,p,\xff,s,1", b"q,p,n,s,first", b"q,p,n,,1", b"q,p,m,s,2", b'q,"open,n,s,1']
    path = tmp_path / "t.csv"
    path.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(InputError, match=r"t.csv:5: found 3 fields, expected 5 \(query, positive, negative, source, rank\); a text that holds ',' stands between quotes"): Triples.read(path)
    told = {}
    parts = list(scan_triples(path, batch=1, rejected=lambda n, why, line: told.update({n: why})))
    assert sorted(told) == [5, 6, 7, 8, 9, 11] and Triples.concat(parts).texts("positive") == ["p, with\n\na break", "p"]
    for n, words in {6: "the quotes are not right", 7: "not UTF-8 text", 8: "'rank' is 'first', expected a number", 9: "'source' is empty", 11: "the quotes are not right"}.items(): assert told[n].startswith(f"{path}:{n}: ") and words in told[n]
    report = check_file(path, batch=1)
    assert [n for n, _ in report.lines] == sorted(told) and report.rows == 2 and report.problem is None and "line that can't be used" not in repr(report) and "6 lines that can't be used" in repr(report)
    path.write_bytes(b"query,positive,negative,source\nq,p,n,s")
    with pytest.raises(InputError, match="t.csv:2: the last line has no end"): Triples.read(path)
    path.write_bytes(b"query,positive,negative,query\nq,p,n,s\n")
    with pytest.raises(InputError, match="column 'query' occurs twice"): Triples.read(path)
    path.write_bytes(b"query,positive,negative\nq,p," + b"n" * 300_000 + b"\n")
    assert len(Triples.read(path).texts("negative")[0]) == 300_000, "a text may be long"


@pytest.mark.parametrize("name", ["msmarco-triples-sample", "nq-triples-sample"])
def test_real_triples_come_through_a_spreadsheet(shared_data, tmp_path, name):
    path = shared_data / name / "triples.jsonl.gz"
    if not path.exists(): pytest.skip(f"{name} is not in the folder of public test collections")
    t = Triples.read(path)
    for split in ",\t":
        t.to_pandas().to_csv(tmp_path / "t.csv", sep=split, index=False)
        assert Triples.read(tmp_path / "t.csv").table.equals(t.table) and name in FORMATS["csv"].tested


def test_cut_and_changed_tables_give_a_table_or_a_clear_error(tmp_path):
    import random
    rng, path = random.Random(0), tmp_path / "t.csv"
    data = pd.DataFrame(dict(query=['a "b"', "c, d"] * 4, positive="é\n\nf", negative="n", source="s", rank=range(8))).to_csv(index=False).encode()
    for _ in range(150):
        at = rng.randrange(60, len(data))
        path.write_bytes(rng.choice([data[:at], data[:at] + rng.choice([b'"', b",", b"\n", b"\xff", b"\0", b"\r"]) + data[at:], data[:at] + data[at + 1:]]))
        try: Triples.read(path)
        except InputError as e: assert str(path) in str(e)
        check_file(path, batch=3)


def test_what_is_no_table_says_what_it_is(tmp_path):
    put(tmp_path / "t.json", json.dumps([dict(query="q", positive="p", negative="n")]))
    for name in ("t.json", "t.jsonl"):
        (tmp_path / name).write_text((tmp_path / "t.json").read_text())
        with pytest.raises(InputError, match=rf"{name}: begins with '\[', as one array of JSON does; expected one object a line: jq -c '\.\[\]' {name} > t.jsonl"): Triples.read(tmp_path / name)
    put(tmp_path / "t.jsonl.gz", dict(query="q", positive="p", negative="n"))
    with pytest.raises(InputError, match=r"t.jsonl.gz: is named .gz, but holds no gzip data; rename it \(t.jsonl\)"): Triples.read(tmp_path / "t.jsonl.gz")
    put(tmp_path / "four.tsv", "a\tb\tc\td\n")
    with pytest.raises(InputError, match="extension '.tsv' is not known; .*a first line that names the columns, e.g. query,positive,negative,source"): Triples.read(tmp_path / "four.tsv")
