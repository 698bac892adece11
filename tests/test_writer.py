"""The LLM writer, on a random checkpoint made here: seeds per text, resuming, filters, and the shipped files."""
import json
import re
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eci_sem.writer as writer
from eci_sem.collection import Collection, InputError, Pair, sha256_text
from eci_sem.writer import GumbelSampler, WriterConfig, clean_generation, pair_key, prompt_text, ship_negatives, shipped_negatives, write_negatives, writer_header

NOUNS = "array list matrix file socket thread plot axis tensor gradient value index signal filter table graph".split()
VERBS = "sort return compute close open read write draw fit split join merge".split()
OTHER = "the a of and in to with over under new old large small first last . .. user assistant".split()
CONFIG = WriterConfig(temperature=2.0, top_k=20, min_new_tokens=6, max_new_tokens=24, min_words=4, max_words=15, attempts=2)
PAIRS = [Pair(f"q{i}", f"p{i}", f"{VERBS[i % 12]} the {NOUNS[i % 16]}" + " with a new index" * (i % 3), f"the {NOUNS[(i + 5) % 16]} of a {NOUNS[(i + 2) % 16]} ." + " the end of it ." * 2, frozenset({f"p{i}"})) for i in range(11)]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    "A Llama of two thin layers with random weights, and a word-level tokenizer."
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    words = ["<pad>", "<eos>", "<unk>", "```", *NOUNS, *VERBS, *OTHER]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}user {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        initializer_range=0.4, bos_token_id=None, eos_token_id=1, pad_token_id=0))
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def calls(monkeypatch):
    "Counts the texts that the model really writes."
    made = []
    original = writer._Writer.write
    def counting(self, prompts, seeds):
        made.append(len(prompts))
        return original(self, prompts, seeds)
    monkeypatch.setattr(writer._Writer, "write", counting)
    return made


def raw(path): return [json.loads(line) for line in path.read_text().splitlines()[1:]]
def by_text(path): return {(r["key"], r["attempt"]): (r["raw"], r["tokens"]) for r in raw(path)}


def reference(folder, pairs, config, batch_size):
    "The generation loop written out plainly: batches by prompt length, one generator per text."
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer.padding_side = "left"
    fence = torch.tensor([i for t, i in tokenizer.get_vocab().items() if "```" in t])

    class Noise(LogitsProcessor):
        def __init__(self, seeds): self.generators = [torch.Generator().manual_seed(s) for s in seeds]
        def __call__(self, ids, scores):
            scores = scores.index_fill(1, fence, -float("inf"))
            v, i = torch.topk(scores, config.top_k, dim=-1)
            u = torch.stack([torch.rand(config.top_k, generator=g, dtype=torch.float64) for g in self.generators]).clamp_min(1e-12)
            v = v.double() / config.temperature - torch.log(-torch.log(u))
            return torch.full_like(scores, -float("inf"), dtype=torch.float64).scatter_(1, i, v)

    have = {}
    for attempt in range(config.attempts):
        todo = []
        for p in pairs:
            key = pair_key(p.query, p.positive)
            if any(clean_generation(r[0], p.positive, config.min_words, config.max_words)[0] for (k, _), r in have.items() if k == key): continue
            message = [{"role": "user", "content": prompt_text(config.prompt).format(query=p.query, positive=" ".join(p.positive.split()[:config.positive_words]))}]
            text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
            todo.append((len(tokenizer(text, add_special_tokens=False)["input_ids"]), key, text))
        todo.sort(key=lambda x: (x[0], x[1]))
        for i in range(0, len(todo), batch_size):
            part = todo[i:i + batch_size]
            batch = tokenizer([x[2] for x in part], padding=True, return_tensors="pt", add_special_tokens=False)
            seeds = [int(sha256_text(str(config.seed), x[1], str(attempt))[:15], 16) for x in part]
            with torch.inference_mode(): out = model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], min_new_tokens=config.min_new_tokens, max_new_tokens=config.max_new_tokens, do_sample=False, logits_processor=LogitsProcessorList([Noise(seeds)]))
            for x, ids in zip(part, out[:, batch["input_ids"].shape[1]:]): have[x[1], attempt] = (tokenizer.decode(ids, skip_special_tokens=True), int((ids != tokenizer.pad_token_id).sum()))
    return have


# ------------------------------------------------------------------ writing

def test_same_texts_as_the_plain_loop(tiny, tmp_path):
    found = write_negatives(PAIRS, config=CONFIG, model=tiny, store=tmp_path / "s.jsonl", batch_size=4)
    expected = reference(tiny, PAIRS, CONFIG, 4)
    assert by_text(tmp_path / "s.jsonl") == expected
    assert len({t for t, _ in expected.values()}) > len(PAIRS) * 0.9 # the texts do differ
    assert any(a == 1 for _, a in expected) and 0 < len(found.texts) <= len(PAIRS) # some first tries were dropped
    assert not any("```" in t for t, _ in expected.values())
    assert all(CONFIG.min_new_tokens <= n <= CONFIG.max_new_tokens for _, n in expected.values())


def test_batch_size_and_company_change_no_text(tiny, tmp_path):
    for size in (1, 3, 11): write_negatives(PAIRS, config=CONFIG, model=tiny, store=tmp_path / f"{size}.jsonl", batch_size=size)
    write_negatives(PAIRS[::-1] + PAIRS[:2], config=CONFIG, model=tiny, store=tmp_path / "turned.jsonl", batch_size=3)
    assert by_text(tmp_path / "1.jsonl") == by_text(tmp_path / "3.jsonl") == by_text(tmp_path / "11.jsonl")
    assert (tmp_path / "turned.jsonl").read_text().count("\n") == (tmp_path / "3.jsonl").read_text().count("\n")
    assert by_text(tmp_path / "turned.jsonl") == by_text(tmp_path / "3.jsonl")
    alone = write_negatives(PAIRS[4:5], config=CONFIG, model=tiny)
    together = write_negatives(PAIRS, config=CONFIG, model=tiny, store=tmp_path / "3.jsonl")
    assert all(together.texts[k] == t for k, t in alone.texts.items())


def test_seed_changes_the_texts(tiny):
    one, two = (write_negatives(PAIRS[:3], config=replace(CONFIG, seed=s), model=tiny).texts for s in (0, 1))
    assert one and all(one[k] != two[k] for k in one.keys() & two.keys())


def test_resume_repeats_nothing(tiny, tmp_path, calls):
    store = tmp_path / "s.jsonl"
    first = write_negatives(PAIRS, config=CONFIG, model=tiny, store=store, batch_size=4)
    written, bytes_ = sum(calls), store.read_bytes()
    again = write_negatives(PAIRS, config=CONFIG, model=tiny, store=store, batch_size=4)
    assert sum(calls) == written and store.read_bytes() == bytes_
    assert again == first and repr(again) == repr(first)


def test_a_finished_store_needs_no_model(tiny, tmp_path, monkeypatch):
    write_negatives(PAIRS, config=CONFIG, model=tiny, store=tmp_path / "s.jsonl")
    monkeypatch.setattr(writer, "_Writer", lambda *a: pytest.fail("the model was loaded"))
    write_negatives(PAIRS, config=CONFIG, model=tiny, store=tmp_path / "s.jsonl")


@pytest.mark.parametrize("stop", [2, 4])
def test_interrupted_job_ends_with_the_same_texts(tiny, tmp_path, monkeypatch, stop):
    write_negatives(PAIRS, config=CONFIG, model=tiny, store=tmp_path / "whole.jsonl", batch_size=3)
    original, calls = writer._Writer.write, []
    def breaking(self, prompts, seeds):
        calls.append(sorted(seeds))
        if len(calls) == stop: raise KeyboardInterrupt
        return original(self, prompts, seeds)
    monkeypatch.setattr(writer._Writer, "write", breaking)
    with pytest.raises(KeyboardInterrupt): write_negatives(PAIRS, config=CONFIG, model=tiny, store=tmp_path / "cut.jsonl", batch_size=3)
    assert len(raw(tmp_path / "cut.jsonl")) == 3 * (stop - 1) # what was written is there
    write_negatives(PAIRS, config=CONFIG, model=tiny, store=tmp_path / "cut.jsonl", batch_size=3)
    assert calls[stop - 1] == calls[stop] # the batch that was lost comes again, with the same mates
    assert by_text(tmp_path / "cut.jsonl") == by_text(tmp_path / "whole.jsonl")


def test_torn_last_line_is_dropped_and_rewritten(tiny, tmp_path, calls):
    store = tmp_path / "s.jsonl"
    write_negatives(PAIRS, config=CONFIG, model=tiny, store=store, batch_size=4)
    expected, whole, before = by_text(store), store.read_bytes(), sum(calls)
    store.write_bytes(whole[:-20])
    with pytest.warns(UserWarning, match="the last line was cut off, as after a crash; it is dropped and written again"):
        write_negatives(PAIRS, config=CONFIG, model=tiny, store=store, batch_size=4)
    assert by_text(store) == expected and len(raw(store)) == len(expected)
    assert 0 < sum(calls) - before <= 4
    for size in (0, 10): # cut inside the header, or before it
        store.write_bytes(whole[:size])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            write_negatives(PAIRS[:2], config=CONFIG, model=tiny, store=store)
        assert json.loads(store.read_text().splitlines()[0])["format"].startswith("eci_sem llm negatives")


def test_store_of_other_settings_is_refused(tiny, tmp_path, monkeypatch):
    store = tmp_path / "s.jsonl"
    write_negatives(PAIRS[:2], config=CONFIG, model=tiny, store=store)
    before = store.read_bytes()
    with pytest.raises(InputError, match=r"s\.jsonl: these texts were written with other settings: temperature is 2\.0 there and 0\.5 here; seed is 0 there and 3 here\. Give another store, or the settings it was written with"):
        write_negatives(PAIRS[:2], config=replace(CONFIG, seed=3, temperature=0.5), model=tiny, store=store)
    header = json.loads(before.splitlines()[0])
    for change, words in ((dict(model=dict(name="other", sha256="0" * 64)), "model sha256 is '0000"), (dict(prompt_sha256="f" * 64), "prompt_sha256 is 'ffff")):
        store.write_text(json.dumps({**header, **change}) + "\n")
        with pytest.raises(InputError, match=words): write_negatives(PAIRS[:2], config=CONFIG, model=tiny, store=store)
    store.write_text('{"key": "k", "attempt": 0, "raw": "x"}\n')
    with pytest.raises(InputError, match=r"s\.jsonl:1: no header of a store of generated texts"): write_negatives(PAIRS[:2], config=CONFIG, model=tiny, store=store)
    store.write_text(json.dumps(header) + '\n{"key": "k", "attempt": "0", "raw": "x"}\n')
    with pytest.raises(InputError, match=r"s\.jsonl:2: expected an object with 'key', 'attempt' and 'raw'"): write_negatives(PAIRS[:2], config=CONFIG, model=tiny, store=store)
    store.write_text(json.dumps(header) + '\n{"key": \n{}\n')
    with pytest.raises(InputError, match=r"s\.jsonl:2: not valid JSON"): write_negatives(PAIRS[:2], config=CONFIG, model=tiny, store=store)


@pytest.mark.parametrize("content", [
    b'{"important": "one line, no newline at the end"}', b'{"a":1}\n{"b":2}\n{"c":3, "precious": "last line without newline"}', b'{"model": "m", "config": 3}\nx', b"plain words", b"\n", b"\x1f\x8b\x08\x00 zipped", b"\xff\xfe\n\x00", b'{"format": "eci_sem llm negatives 9"}', b'{"format": "eci_sem llm negatives 1"}\ncut', b"[" * 100_000,
])
def test_a_file_that_is_no_store_stays_as_it_is(tmp_path, content):
    path = tmp_path / "settings.json"
    path.write_bytes(content)
    for write in (True, False):
        with warnings.catch_warnings(), pytest.raises(InputError, match=r"settings\.json:1: no header of a store of generated texts \(format .*, expected 'eci_sem llm negatives 1'\), so the file is left as it is; give another path\.$"):
            warnings.simplefilter("error")
            writer._Store(path, HEADER, write=write)
        assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == ["settings.json"]


HEADER = dict(format="eci_sem llm negatives 1", prompt_sha256="p", config=dict(seed=0, attempts=3), model=dict(name="m", sha256="s"))
ROW = dict(key="k", attempt=0, raw="text")

def test_what_a_crash_cut_off_is_healed_and_a_refused_store_keeps_its_end(tmp_path):
    path, head = tmp_path / "s.jsonl", json.dumps(HEADER)
    for n in (0, 1, 12, 30, 60, len(head)): # in the header
        path.write_text(head[:n])
        writer._Store(path, HEADER, write=False)
        assert path.read_text() == head[:n]
        with writer._Store(path, {**HEADER, "config": dict(seed=1)}) as book: book.append([ROW])
        assert [json.loads(line) for line in path.read_text().splitlines()] == [{**HEADER, "config": dict(seed=1)}, ROW]
    cut = f"{head}\n{json.dumps(ROW)}\n" + '{"key": "cut o'
    for change, more in ((dict(prompt_sha256="q"), ""), ({}, "{}\n")): # other settings, or a line that is no text
        path.write_text(cut.replace('{"key": "cut o', more + '{"key": "cut o'))
        before = path.read_bytes()
        with pytest.raises(InputError, match="written with other settings" if change else r"s\.jsonl:3: expected an object with 'key'"): writer._Store(path, {**HEADER, **change})
        assert path.read_bytes() == before
    path.write_text(cut)
    assert writer._Store(path, HEADER, write=False).rows == {"k": {0: ROW}} and path.read_text() == cut
    with pytest.warns(UserWarning, match="the last line was cut off"), writer._Store(path, HEADER) as book: assert book.rows == {"k": {0: ROW}}
    assert path.read_text() == f"{head}\n{json.dumps(ROW)}\n"


def test_places_where_no_store_can_be(tmp_path):
    with pytest.raises(InputError, match="is a folder, expected the file of a store"): writer._Store(tmp_path, HEADER)
    with pytest.raises(InputError, match=r"s\.jsonl\.gz: a store grows line by line and is not zipped; give a path without \.gz"): writer._Store(tmp_path / "s.jsonl.gz", HEADER)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    import errno
    import os
    path = tmp_path / "s.jsonl"
    with writer._Store(path, HEADER) as book:
        book.append([ROW])
        before = path.read_bytes()
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            with monkeypatch.context() as m, pytest.raises(InputError, match=rf"^no space left on the disk while writing s\.jsonl: the texts up to here are kept \({os.strerror(number)}\); free some space"):
                m.setattr(writer.os, "fsync", lambda f: (_ for _ in ()).throw(OSError(number, os.strerror(number))))
                book.append([{**ROW, "attempt": 1}])
            assert path.read_bytes() == before
        book.append([{**ROW, "attempt": 2}])
    assert [r["attempt"] for r in raw(path)] == [0, 2]


def test_filters_are_no_part_of_the_store(tiny, tmp_path, calls):
    store = tmp_path / "s.jsonl"
    write_negatives(PAIRS, config=CONFIG, model=tiny, store=store)
    written = sum(calls)
    loose, strict = (write_negatives(PAIRS, config=replace(CONFIG, min_words=n, attempts=1), model=tiny, store=store) for n in (4, 9))
    assert sum(calls) == written and len(strict.texts) < len(loose.texts)
    assert sum(strict.counts.values()) == sum(loose.counts.values()) == len(PAIRS) and strict.counts["too short"] > loose.counts["too short"]


def test_counts_and_missing(tiny):
    hard = write_negatives(PAIRS, config=replace(CONFIG, min_words=14), model=tiny)
    assert set(hard.texts) | set(hard.missing) == {pair_key(p.query, p.positive) for p in PAIRS} and not set(hard.texts) & set(hard.missing)
    assert hard.counts.get("kept", 0) == len(hard.texts) and sum(hard.counts.values()) >= len(PAIRS)
    assert hard.tokens >= 6 * sum(hard.counts.values()) and hard.seconds > 0
    assert f"{len(hard.texts)} of {len(PAIRS)} pairs have a text" in repr(hard)


def test_several_per_pair_and_known_texts(tiny, tmp_path, calls):
    store = tmp_path / "s.jsonl"
    two = write_negatives(PAIRS, config=CONFIG, model=tiny, store=store, num_negatives=2)
    per_key = {}
    for r in two.rows: per_key.setdefault(r["key"], []).append(r)
    assert all(len(rs) <= 2 and len({r["text"] for r in rs}) == len(rs) and [r["attempt"] for r in rs] == sorted(r["attempt"] for r in rs) for rs in per_key.values())
    assert any(len(rs) == 2 for rs in per_key.values())
    one = write_negatives(PAIRS, config=CONFIG, model=tiny, store=store)
    assert {k: rs[0]["text"] for k, rs in per_key.items() if rs[0]["attempt"] < CONFIG.attempts} == one.texts
    before = sum(calls)
    known = {r["key"]: dict(text="A text that is known.", attempt=1) for r in one.rows[:3]}
    found = write_negatives(PAIRS[:3], config=CONFIG, model=tiny, known={pair_key(p.query, p.positive): dict(text="A known text.", attempt=1) for p in PAIRS[:3]})
    assert sum(calls) == before and set(found.texts.values()) == {"A known text."}
    more = write_negatives(PAIRS, config=CONFIG, model=tiny, store=store, num_negatives=2, known=known)
    assert sum(calls) == before # everything past the known attempt is in the store
    for r in more.rows:
        if r["key"] in known: assert r["attempt"] >= 1


@pytest.mark.parametrize("change, words", [
    (dict(temperature=0), "WriterConfig: temperature is 0, expected a number of at least 0.001"),
    (dict(temperature=float("nan")), "temperature is nan"),
    (dict(top_k=0), "WriterConfig: top_k is 0, expected a whole number of at least 1"),
    (dict(min_new_tokens=10, max_new_tokens=9), "max_new_tokens is 9, expected a whole number of at least 10"),
    (dict(attempts=1.5), "attempts is 1.5, expected a whole number"),
    (dict(seed=-1), "seed is -1"),
])
def test_settings_out_of_range(change, words):
    with pytest.raises(InputError, match=re.escape(words)): WriterConfig(**change)


def test_bad_requests(tiny, tmp_path):
    with pytest.raises(InputError, match="no pairs were given, expected at least one"): write_negatives([], model=tiny)
    with pytest.raises(InputError, match=r"pairs hold tuple, expected Pair\("): write_negatives([("q", "p")], model=tiny)
    with pytest.raises(InputError, match="batch_size is 0"): write_negatives(PAIRS, model=tiny, batch_size=0)
    with pytest.raises(InputError, match="unknown prompt 'hard_negative_v2'. Did you mean 'hard_negative_v1'"): write_negatives(PAIRS, model=tiny, config=WriterConfig(prompt="hard_negative_v2"))
    with pytest.raises(InputError, match="expected 'smollm2', or a local folder .* no such folder"): write_negatives(PAIRS, model=tmp_path / "nothing")
    with pytest.raises(InputError, match="there is none in it"): write_negatives(PAIRS, model=tmp_path)


def test_model_without_chat_template_or_language_model(tiny, tmp_path):
    import shutil
    bare = tmp_path / "bare"
    shutil.copytree(tiny, bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    found = json.loads((bare / "tokenizer_config.json").read_text())
    found.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="model 'bare' has no chat template"): write_negatives(PAIRS, config=CONFIG, model=bare)
    (bare / "config.json").write_text('{"model_type": "no such thing"}')
    with pytest.raises(InputError, match="model 'bare' can't be read as a causal language model"): write_negatives(PAIRS, config=CONFIG, model=bare)


# ------------------------------------------------------------------ the sampler

def test_sampler_is_exact_and_seeded():
    import torch
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(1))
    none = torch.tensor([], dtype=torch.long)
    draw = lambda seeds, **k: GumbelSampler(seeds, **{**dict(temperature=0.8, top_k=5, banned=none), **k})(None, logits.repeat(len(seeds), 1)).argmax(1).numpy()
    drawn = draw(range(20_000))
    best = torch.topk(logits[0], 5)
    p = np.zeros(12); p[best.indices.numpy()] = torch.softmax(best.values.double() / 0.8, 0).numpy()
    share = np.bincount(drawn, minlength=12) / len(drawn)
    assert (np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / len(drawn))).all() and (share[p == 0] == 0).all()
    assert (draw([7, 8, 9]) == [draw([7])[0], draw([8])[0], draw([9])[0]]).all()
    top = int(best.indices[0])
    assert top not in draw(range(200), banned=torch.tensor([top]))
    assert (draw(range(50), top_k=1) == top).all() and len(set(draw(range(500), top_k=400))) > 5 # more than there are: all of them


# ------------------------------------------------------------------ the filters

LONG = ("Sorting networks compare elements in a fixed pattern that does not depend on the data. They are used in hardware, where the comparisons of one layer run at the same time. "
    "Their depth grows with the square of the logarithm of the input size, and proofs use zeros and ones.")
POSITIVE = "Return a sorted copy of an array. The order of equal elements is kept when the kind is stable, and the axis says along which dimension the values are put in order."

@pytest.mark.parametrize("text, why", [
    (LONG, "kept"),
    ("", "empty"), ("  \n ", "empty"),
    ("Sure, here is a paragraph. " + LONG, "chat opening"),
    ("**Here's** a text. " + LONG, "chat opening"),
    ("Query: what? " + LONG, "chat opening"),
    ("I\u2019m sorry, no. " + LONG, "chat opening"),
    ("Hierarchies matter. " + LONG, "kept"), # no greeting
    ("Sureties are paid. " + LONG, "kept"),
    (LONG + " The original query was about arrays.", "talk about the task"),
    (LONG + " Text of the above response may look formal.", "talk about the task"),
    ("The response is a perfect example. " + LONG, "talk about the task"),
    (LONG + " A related question: how deep is it?", "talk about the task"),
    (LONG + " I hope this helps!", "talk about the task"),
    ("A simple example of a related topic is this. " + LONG, "talk about the task"),
    ("As I'm thrilled to assist, read on. " + LONG, "talk about the task"),
    ("It is written in plain English. " + LONG, "talk about the task"),
    ("XPath queries on documents answer questions. " + LONG, "kept"), # the words alone are no talk
    ("```python\n" + LONG, "code"),
    (LONG + "\nimport numpy as np", "code"),
    (LONG + "\n    def f(x): return x", "code"),
    ("<p>" + LONG + "</p>", "code"),
    ("Too short. It stops here.", "too short"),
    ("no sentence ends here " * 20, "too short"),
    ("The array is sorted again. " * 12, "repeats itself"),
    (POSITIVE + " " + POSITIVE.replace("sorted", "ordered"), "copy of the positive"),
    ("\ud83d", "too short"),
    ("Half a pair \ud83d is no text. " + LONG, "kept"),
])
def test_filters(text, why):
    kept, reason = clean_generation(text, POSITIVE)
    assert reason == why and (kept is not None) == (why == "kept")
    if kept: kept.encode() # no half of a surrogate pair


def test_cut_at_the_last_sentence_end():
    text, why = clean_generation(LONG + "\n\nAnd then it went", POSITIVE)
    assert why == "kept" and text == LONG
    text, _ = clean_generation(LONG + " It said (see 3.5 below.) And more", POSITIVE)
    assert text.endswith("(see 3.5 below.)")
    text, _ = clean_generation(" ".join([LONG, LONG.replace("networks", "trees").replace("fixed", "other")] * 2), "Something else.", max_words=60)
    assert len(text.split()) <= 60 and text.endswith(".")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab cd.!?'\n\u2019`", max_size=400), st.integers(1, 12), st.integers(12, 40))
def test_a_kept_text_obeys_the_limits(text, low, high):
    kept, why = clean_generation(text, POSITIVE, low, high)
    if kept is None: assert why != "kept"
    else:
        assert low <= len(kept.split()) <= high and re.search(r"[.!?][\"')\]]*$", kept) and kept == " ".join(kept.split())
        assert clean_generation(kept, POSITIVE, low, high) == (kept, "kept") # cleaning again changes nothing


# ------------------------------------------------------------------ the shipped files

def row(pair, attempt, text, tokens=50): return dict(key=pair_key(pair.query, pair.positive), attempt=attempt, query_id=pair.query_id, positive_id=pair.positive_id, tokens=tokens, raw=text)


def test_ship_and_read_again(tiny, tmp_path):
    config = WriterConfig()
    rows = [row(PAIRS[0], 0, "Sure! " + LONG), row(PAIRS[0], 1, LONG + " Cut he"), row(PAIRS[1], 0, LONG), row(PAIRS[1], 1, "never looked at"), row(PAIRS[2], 0, "Short."), row(PAIRS[9], 0, LONG)]
    collection = Collection("c", {"p0": "x"}, {"q0": "y"}, {})
    manifest = ship_negatives(rows[::-1], {"score": PAIRS[:2], "train": PAIRS[2:4]}, tmp_path, config=config, model=tiny, collection=collection, seconds=12.34, device="cpu", torch_threads=2)
    assert manifest["splits"] == {"score": dict(pairs=2, kept=2, without_text=0, attempts=3, outcomes={"chat opening": 1, "kept": 2}), "train": dict(pairs=2, kept=0, without_text=2, attempts=1, outcomes={"too short": 1})}
    assert manifest["generated_tokens"] == 200 and manifest["seconds"] == 12.3 and manifest["device"] == "cpu" and manifest["torch_threads"] == 2
    assert manifest["prompt"]["text"] == prompt_text(config.prompt) and manifest["prompt"]["sha256"] == sha256_text(prompt_text(config.prompt)) and manifest["config"] == asdict(config)
    assert manifest["model"] == writer_header(config, tiny)["model"] and manifest["model"]["name"] == "tiny" and {"torch", "transformers", "eci_sem"} <= set(manifest["versions"])
    assert manifest["collection"] == dict(name="c", content_hash=collection.content_hash)
    lines = [json.loads(line) for line in (tmp_path / "llm_negatives.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == sorted(pair_key(p.query, p.positive) for p in PAIRS[:2])
    assert all(set(line) == {"key", "query_id", "positive_id", "split", "attempt", "tokens", "text"} and line["text"] == LONG for line in lines)
    assert {line["query_id"]: line["attempt"] for line in lines} == {"q0": 1, "q1": 0}
    shipped = shipped_negatives(tmp_path)
    assert list(shipped.rows.values()) == lines and shipped.manifest == json.loads(json.dumps(manifest))
    assert "2 generated negatives by tiny (score: 2 of 2 pairs, train: 0 of 2 pairs)" in repr(shipped)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["llm_negatives.jsonl", "llm_negatives.manifest.json"]
    again = (tmp_path / "llm_negatives.jsonl").read_bytes()
    ship_negatives(rows, {"score": PAIRS[:2], "train": PAIRS[2:4]}, tmp_path, config=config, model=tiny)
    assert (tmp_path / "llm_negatives.jsonl").read_bytes() == again # the order of the rows doesn't matter


def test_shipping_refuses_what_makes_no_sense(tiny, tmp_path):
    with pytest.raises(InputError, match="no usable text for any pair: nothing to ship"): ship_negatives([], {"score": PAIRS}, tmp_path, model=tiny)
    with pytest.raises(InputError, match="query 'q0' with its positive is in the splits 'score' and 'train'"): ship_negatives([row(PAIRS[0], 0, LONG)], {"score": PAIRS[:1], "train": PAIRS[:1]}, tmp_path, model=tiny)
    assert not list(tmp_path.iterdir())


def test_absent_and_damaged_shipped_files(tiny, tmp_path):
    assert shipped_negatives(tmp_path).rows == {} and "no generated negatives" in repr(shipped_negatives(tmp_path))
    ship_negatives([row(PAIRS[0], 0, LONG)], {"score": PAIRS[:1]}, tmp_path, model=tiny)
    texts, manifest = tmp_path / "llm_negatives.jsonl", tmp_path / "llm_negatives.manifest.json"
    whole = texts.read_text()
    texts.write_text(whole.replace("Sorting", "Sortinq"))
    with pytest.raises(InputError, match="the texts are not those that the manifest describes"): shipped_negatives(tmp_path)
    texts.write_text(whole)
    manifest.write_text(manifest.read_text()[:-30])
    with pytest.raises(InputError, match=r"manifest\.json: not valid JSON .*install the package again"): shipped_negatives(tmp_path)


def test_what_the_package_ships():
    shipped = shipped_negatives()
    if not shipped.rows: pytest.skip("this checkout ships no generated negatives")
    assert [*shipped.rows] == sorted(shipped.rows) and sum(s["kept"] for s in shipped.manifest["splits"].values()) == len(shipped.rows)
    config = shipped.manifest["config"]
    assert config == asdict(WriterConfig()) and shipped.manifest["prompt"]["text"] == prompt_text(config["prompt"])
    assert all(config["min_words"] <= len(r["text"].split()) <= config["max_words"] for r in shipped.rows.values())
    assert all(clean_generation(r["text"], "", config["min_words"], config["max_words"]) == (r["text"], "kept") for r in shipped.rows.values())


def test_the_notebook_that_writes_them(root, tiny, tmp_path):
    papermill = pytest.importorskip("papermill")
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(dict(_id=p.positive_id, text=p.positive)) + "\n" for p in PAIRS))
    (folder / "queries.jsonl").write_text("".join(json.dumps(dict(_id=p.query_id, text=p.query)) + "\n" for p in PAIRS))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{p.query_id}\t{p.positive_id}\t1\n" for p in PAIRS))
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_text(json.dumps(dict(row(PAIRS[0], 0, "the array of a matrix and a list . the end"), seconds=1.0)) + "\n" + json.dumps(dict(key="no such pair", attempt=0, raw="x")) + "\n")
    papermill.execute_notebook(str(root / "nbs" / "experiments" / "llm_negatives.ipynb"), str(tmp_path / "out.ipynb"), progress_bar=False, cwd=str(tmp_path), parameters=dict(
        collection=str(folder), splits=["test"], model=str(tiny), temperature=2.0, top_k=20, min_new_tokens=6, max_new_tokens=24, min_words=4, max_words=15, attempts=2, store=str(tmp_path / "s.jsonl"), earlier=str(earlier), out=str(tmp_path / "data")))
    shipped = shipped_negatives(tmp_path / "data")
    assert shipped.rows[pair_key(PAIRS[0].query, PAIRS[0].positive)]["text"] == "the array of a matrix and a list ."
    assert shipped.manifest["splits"]["test"]["pairs"] == len(PAIRS) and shipped.manifest["batch_size"] == 32
