"""Negatives from an OpenAI-compatible endpoint: a small server on loopback that fails on request, and once a real one with a real model."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("openai")

import eci_sem.endpoint as endpoint
import eci_sem.writer as writer
from eci_sem.collection import Collection, InputError, Pair, sha256_text
from eci_sem.endpoint import EndpointConfig, ask_negatives, endpoint_header, endpoint_store
from eci_sem.sources import describe_source, mine, mine_llm
from eci_sem.writer import WriterConfig, pair_key, prompt_text

KEY = "sk-not-to-be-seen-4711"
MODEL = EndpointConfig("writer-1", timeout=20, max_retries=3)
PAIRS = [Pair(f"q{i}", f"p{i}", f"query number {i} about arrays", f"The positive passage {i} says how arrays of kind {i} are made, and how long it takes to make one of them on a machine with many cores.", frozenset({f"p{i}"})) for i in range(40)]


def good(seed): return " ".join(f"Word{seed}x{i} and thing{i} lie near place{seed % 97 + i}." for i in range(9))


class Fake(ThreadingHTTPServer):
    "An OpenAI-compatible server: `fault(number, asked)` may name what goes wrong, `write(asked)` makes the text."
    daemon_threads = True
    def __init__(self):
        self.requests, self.lock, self.now, self.most = [], threading.Lock(), 0, 0
        self.fault = lambda number, asked: None
        self.write = lambda asked: good(asked["seed"])
        self.delay, self.usage, self.models, self.drops = 0.0, True, ["writer-1", "writer-2-large"], 0
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs=dict(poll_interval=0.02), daemon=True).start()
    def handle_error(self, request, client_address): pass # a client that was killed
    @property
    def url(self): return f"http://127.0.0.1:{self.server_port}/v1"
    @property
    def contents(self): return [(r["messages"][0]["content"], r["seed"]) for r in self.requests]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def reply(self, status, body, headers=None, kind="application/json"):
        data = body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for k, v in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items(): self.send_header(k, v)
        self.end_headers(); self.wfile.write(data)
    def do_GET(self):
        if self.server.models is None: return self.reply(404, dict(error=dict(message="no such path")))
        self.reply(200, dict(object="list", data=[dict(id=m, object="model", created=0, owned_by="x") for m in self.server.models]))
    def do_POST(self):
        s = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with s.lock:
            s.requests.append(asked | dict(_auth=self.headers["Authorization"], _path=self.path)); number = len(s.requests)
            s.now += 1; s.most = max(s.most, s.now)
        try:
            time.sleep(s.delay)
            fault = s.fault(number, asked)
            if fault == "drop": self.close_connection = True; self.connection.shutdown(socket.SHUT_RDWR); return
            if fault == "stall": time.sleep(1.0); fault = (500, dict(error=dict(message="too late")))
            if fault in ("drip", "drip head"): # a blank now and then, and never an answer
                self.close_connection = True
                with suppress(OSError):
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n" + (b"\r\n" if fault == "drip" else b"X-Long: "))
                    for _ in range(200): self.wfile.write(b"1\r\n \r\n" if fault == "drip" else b"x"); self.wfile.flush(); s.drops += 1; time.sleep(0.05)
                return
            if fault is not None: return self.reply(*fault)
            text = s.write(asked)
            answer = text if isinstance(text, dict) else dict(message=dict(role="assistant", content=text), finish_reason="stop")
            self.reply(200, dict(id="x", object="chat.completion", created=0, model="writer-1-of-november", choices=[dict(index=0, **answer)]) | (dict(usage=dict(prompt_tokens=100, completion_tokens=50, total_tokens=150)) if s.usage else {}))
        finally:
            with s.lock: s.now -= 1


@pytest.fixture
def server(monkeypatch):
    s = Fake()
    monkeypatch.setenv("OPENAI_BASE_URL", s.url); monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for k in ("NO_PROXY", "no_proxy"): monkeypatch.setenv(k, "127.0.0.1,localhost")
    for k in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"): monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)
    yield s
    s.shutdown(); s.server_close()


@pytest.fixture
def store(tmp_path): return tmp_path / "store.jsonl"

def rows(path): return [json.loads(line) for line in path.read_text().splitlines()[1:]]
def busy(**headers): return 429, dict(error=dict(message="slow down", code="rate_limit_exceeded")), {"retry-after-ms": "10"} | headers


# ------------------------------------------------------------------ what is asked, and what becomes of it

def test_the_request_and_the_record(server, store):
    e = replace(MODEL, top_p=0.9, extra={"top_k": 20})
    found = ask_negatives(PAIRS, e, store=store, config=WriterConfig(temperature=0.5, max_new_tokens=99, positive_words=5, seed=3))
    assert len(server.requests) == found.asked == len(found.texts) == len(PAIRS) and found.counts == {"kept": 40} and found.missing == []
    by_query = {r["messages"][0]["content"].split("\n")[0].removeprefix("Query: "): r for r in server.requests}
    for p in PAIRS:
        r, key = by_query[p.query], pair_key(p.query, p.positive)
        assert r["_auth"] == f"Bearer {KEY}" and r["_path"] == "/v1/chat/completions"
        assert r["messages"] == [dict(role="user", content=prompt_text("hard_negative_v1").format(query=p.query, positive=" ".join(p.positive.split()[:5])))]
        assert {k: v for k, v in r.items() if k not in ("messages", "seed", "_auth", "_path")} == dict(model="writer-1", temperature=0.5, max_tokens=99, top_p=0.9, top_k=20)
        assert r["seed"] == int(sha256_text("3", key, "0")[:15], 16) % 2**31 and found.texts[key] == good(r["seed"])
    assert len({r["seed"] for r in server.requests}) == len(PAIRS)
    kept = {r["key"]: r for r in rows(store)}
    one = kept[pair_key(PAIRS[7].query, PAIRS[7].positive)]
    assert {k: one[k] for k in ("attempt", "query_id", "positive_id", "tokens", "prompt_tokens", "finish", "served")} == dict(attempt=0, query_id="q7", positive_id="p7", tokens=50, prompt_tokens=100, finish="stop", served="writer-1-of-november")
    header = json.loads(store.read_text().splitlines()[0])
    assert header == json.loads(json.dumps(endpoint_header(e, WriterConfig(temperature=0.5, max_new_tokens=99, positive_words=5, seed=3))))
    assert header["prompt_sha256"] == sha256_text(prompt_text("hard_negative_v1")) and "top_k" not in header["config"] and header["config"]["extra"] == {"top_k": 20}


def test_query_only_shows_the_query_only(server, store):
    found = ask_negatives(PAIRS[:3], replace(MODEL, token_field="max_completion_tokens"), store=store, config=WriterConfig(prompt="query-only"))
    assert len(found.texts) == 3 and not any("positive passage" in c for c, _ in server.contents) and all("query number" in c for c, _ in server.contents)
    assert all(r["max_completion_tokens"] == 160 and "max_tokens" not in r and "top_p" not in r for r in server.requests)
    assert WriterConfig(prompt="query-only").prompt == "hard_negative_query_only_v1" and WriterConfig(prompt="paper-style") == WriterConfig() # the record names the version
    assert "{positive}" in prompt_text("hard_negative_v1") and "{positive}" not in prompt_text("hard_negative_query_only_v1")


def test_a_text_in_braces_is_no_template(server, store):
    p = PAIRS[0]._replace(query="what is {positive} in {0} or {{}}?")
    ask_negatives([p], MODEL, store=store)
    assert server.contents[0][0].startswith("Query: what is {positive} in {0} or {{}}?\nAnswer: The positive")


def test_filters_are_counted(server, store):
    answers = ["", dict(message=dict(role="assistant", content=None), finish_reason="stop"), "I'm sorry, but I can\u2019t assist with that request. " + good(5), dict(message=dict(role="assistant", content=None, refusal="No."), finish_reason="stop"),
        dict(message=dict(role="assistant", content=good(6)), finish_reason="content_filter"), PAIRS[5].positive, "Too short a text.", "```python\n" + good(7), "<think>Hm, a near topic?\nYes.</think>\n\n" + good(8)]
    def number(asked): return int(re.search(r"number (\d+)", asked["messages"][0]["content"])[1])
    server.fault = lambda n, asked: (400, dict(error=dict(message="filtered", code="content_filter"))) if number(asked) == 9 else None
    server.write = lambda asked: answers[number(asked)]
    server_config = WriterConfig(attempts=1, min_words=20)
    found = ask_negatives(PAIRS[:10], MODEL, store=store, config=server_config)
    assert found.counts == {"empty": 2, "refusal": 4, "copy of the positive": 1, "too short": 1, "code": 1, "kept": 1}, found.counts
    assert list(found.texts.values()) == [good(8)] and len(found.missing) == 9
    assert "4 refusal" in repr(found) and "1 of 10 pairs have a text" in repr(found)
    again = ask_negatives(PAIRS[:10], MODEL, store=store, config=replace(server_config, min_words=2))
    assert again.asked == 0 and again.counts["kept"] == 2 # the filters are no part of the store


def test_a_text_of_no_use_is_tried_again_with_another_seed(server, store):
    server.write = lambda asked: "I cannot write that." if asked["seed"] % 2 else good(asked["seed"])
    found = ask_negatives(PAIRS, MODEL, store=store)
    tries = Counter(r["key"] for r in rows(store))
    assert max(tries.values()) <= 3 and found.counts["refusal"] > 5 and len(server.requests) == sum(tries.values()) == sum(found.counts.values())
    assert all(r["attempt"] == tries[r["key"]] - 1 for r in found.rows) and len({s for _, s in server.contents}) == len(server.requests)
    two = ask_negatives(PAIRS[:5], MODEL, store=store, num_negatives=2)
    assert all(Counter(r["key"] for r in two.rows)[pair_key(p.query, p.positive)] <= 2 for p in PAIRS[:5]) and len({r["text"] for r in two.rows}) == len(two.rows)


def test_tokens_and_cost(server, store):
    found = ask_negatives(PAIRS[:10], replace(MODEL, price_in=2.0, price_out=8.0), store=store)
    assert (found.prompt_tokens, found.tokens, found.uncounted) == (1000, 500, 0) and found.cost == pytest.approx((1000 * 2 + 500 * 8) / 1e6, rel=1e-15)
    assert "1,000 prompt tokens, 10 answers asked for in this call, cost 0.0060" in repr(found) and "500 tokens" in repr(found)
    server.usage = False
    more = ask_negatives(PAIRS[:12], MODEL, store=store)
    assert more.cost is None and more.uncounted == 2 and more.prompt_tokens == 1000 and "2 answers without a token count" in repr(more) and "cost" not in repr(more)


def test_an_answer_in_parts_is_their_text(server, store):
    thought = dict(type="thinking", thinking=[dict(type="text", text="hm")])
    parts = [[thought, dict(type="text", text=good(1)[:40]), dict(type="text", text=good(1)[40:])], [thought], []]
    server.write = lambda asked: parts[int(re.search(r"number (\d+)", asked["messages"][0]["content"])[1])]
    for asked in (3, 0):
        found = ask_negatives(PAIRS[:3], MODEL, store=store, config=WriterConfig(attempts=1))
        assert list(found.texts.values()) == [good(1)] and found.counts == {"kept": 1, "empty": 2} and found.asked == asked
    old = store.with_name("old.jsonl") # where such an answer was kept as it came, and a count as text
    lines = [json.loads(line) for line in store.read_text().splitlines()]
    old.write_text("".join(json.dumps(line) + "\n" for line in [lines[0], *({**r, "raw": parts[int(r["query_id"][1:])], "tokens": "3"} for r in lines[1:])]))
    found = ask_negatives(PAIRS[:3], MODEL, store=old, config=WriterConfig(attempts=1))
    assert list(found.texts.values()) == [good(1)] and found.asked == 0 and (found.tokens, found.prompt_tokens) == (0, 300)


@pytest.mark.parametrize("usage", [[1], dict(prompt_tokens="12", completion_tokens="3"), dict(prompt_tokens=1.5, completion_tokens=True), dict(prompt_tokens=-1, completion_tokens=None), {}, "many"])
def test_counts_that_are_no_whole_numbers_are_none(server, store, usage):
    server.fault = lambda n, asked: (200, dict(choices=[dict(message=dict(content=good(n)), finish_reason=["stop"])], usage=usage))
    for asked in (2, 0):
        found = ask_negatives(PAIRS[:2], replace(MODEL, price_in=1, price_out=1), store=store)
        assert (found.asked, len(found.texts), found.tokens, found.prompt_tokens, found.uncounted, found.cost) == (asked, 2, 0, 0, 2, 0.0)


def test_half_a_surrogate_pair_blocks_nothing(server, store, tmp_path):
    c, pairs = pets()
    server.write = lambda asked: "Half a pair \ud83d at its start. " + good(asked["seed"])
    for asked in (3, 3):
        t = mine_llm(c, pairs, endpoint=MODEL, store=store)
        assert len(server.requests) == asked and all(text.startswith("Half a pair \ufffd at its start. Word") for text in t.column("negative"))
    assert all("\ud83d" in r["raw"] for r in rows(store)) # kept as it came
    t.write(tmp_path / "t.parquet")


# ------------------------------------------------------------------ a server that has its troubles

@pytest.mark.parametrize("fault, status", [(busy(), 429), ((500, dict(error=dict(message="oops")), {"retry-after-ms": "10"}), 500), ((503, "<html>down</html>", {"retry-after-ms": "10"}, "text/html"), 503), ((408, {}), 408), ("drop", None)])
def test_passing_trouble_is_waited_out(server, store, fault, status):
    server.fault = lambda n, asked: fault if n in (1, 4, 9, 10, 11) else None
    found = ask_negatives(PAIRS[:20], replace(MODEL, concurrency=3, max_retries=4), store=store)
    assert len(found.texts) == found.asked == 20 and len(server.requests) == 25 and len(rows(store)) == 20


def test_silence_is_waited_out(server, store):
    server.fault = lambda n, asked: "stall" if n in (1, 6) else None
    found = ask_negatives(PAIRS[:12], replace(MODEL, timeout=0.4), store=store)
    assert len(found.texts) == 12 and len(server.requests) == 14


@pytest.mark.parametrize("fault", ["drip", "drip head"])
def test_an_answer_that_never_ends_is_silence(server, store, fault):
    server.fault = lambda n, asked: fault if n in (1, 6) else None
    began = time.monotonic()
    found = ask_negatives(PAIRS[:12], replace(MODEL, timeout=0.4), store=store)
    assert len(found.texts) == 12 and len(server.requests) == 14 and time.monotonic() - began < 8 # each would drip for 10 s
    server.requests.clear(); server.fault = lambda n, asked: fault
    with pytest.raises(InputError, match=r"gave no answer within 0\.3 s, after 1 try: raise timeout"): ask_negatives(PAIRS[12:13], replace(MODEL, timeout=0.3, max_retries=0), store=store)
    if fault == "drip": # nobody goes on reading
        until, seen = time.monotonic() + 5, -1
        while seen != server.drops: seen = server.drops; time.sleep(0.3); assert time.monotonic() < until


def test_waits_as_long_as_the_server_says_or_twice_as_long_each_time(server, store, monkeypatch):
    import openai._base_client as base
    waits, original = [], base.BaseClient._calculate_retry_timeout
    monkeypatch.setattr(base.BaseClient, "_calculate_retry_timeout", lambda *a, **k: waits.append(original(*a, **k)) or waits[-1])
    server.fault = lambda n, asked: (429, {}, {"Retry-After": "0.3"}) if n == 2 else None
    began = time.monotonic()
    ask_negatives(PAIRS[:1], MODEL, store=store); ask_negatives(PAIRS[:2], MODEL, store=store)
    assert waits == [] # the first request of a job goes alone and is repeated at once
    server.requests.clear(); server.fault = lambda n, asked: (429, {}, {"Retry-After": "0.3"}) if n in (1, 2) else None
    ask_negatives(PAIRS[:3], MODEL, store=store)
    assert waits == [0.3] and time.monotonic() - began >= 0.3
    waits.clear(); server.requests.clear(); server.fault = lambda n, asked: (503, {}) if n <= 4 else None
    ask_negatives(PAIRS[:4], MODEL, store=store)
    assert len(waits) == 3 and all(0.75 * 0.02 * 2**i <= w <= 0.02 * 2**i for i, w in enumerate(waits))


@pytest.mark.parametrize("fault, words", [
    (busy(), r"the endpoint http://127\.0\.0\.1:\d+/v1 is still too busy after 3 tries \(429: slow down\): wait, lower concurrency, or raise max_retries; or the account is used up\."),
    ((502, "<html>bad gateway</html>", {"retry-after-ms": "5"}, "text/html"), r"still fails after 3 tries \(502\): look at the server's own log"),
    ("drop", r"broke off the connection after 3 tries \(.*\): look at the server's own log"),
    ("stall", r"gave no answer within 0\.3 s, after 3 tries: raise timeout, or lower concurrency or max_new_tokens"),
])
def test_lasting_trouble_stops_the_job_and_keeps_what_is_there(server, store, fault, words):
    server.fault = lambda n, asked: fault if n > 8 else None
    e = replace(MODEL, concurrency=2, max_retries=2, timeout=0.3)
    with pytest.raises(InputError, match=words) as error: ask_negatives(PAIRS, e, store=store)
    assert re.search(r"The 8 answers up to here are kept; run again to go on\.$", str(error.value)) and len(rows(store)) == 8
    done = {r["query_id"] for r in rows(store)}
    server.fault = lambda n, asked: None
    server.requests.clear()
    found = ask_negatives(PAIRS, e, store=store)
    assert found.asked == len(server.requests) == 32 and len(found.texts) == 40
    assert not done & {"q" + re.search(r"number (\d+)", c)[1] for c, _ in server.contents}


# ------------------------------------------------------------------ what can't be mended

@pytest.mark.parametrize("fault, words", [
    ((401, dict(error=dict(message=f"Incorrect API key provided: {KEY}. Look there.", code="invalid_api_key"))), r"refuses the key \(401: Incorrect API key provided: \*\*\*\. Look there\.\): set OPENAI_API_KEY to one that is valid there\.$"),
    ((403, dict(error=dict(message="not for you"))), r"does not allow this key to use 'writer-1' \(403: not for you\)"),
    ((400, dict(detail="Server is pinned to '/models/x'; requested 'writer-1'.")), r"refuses the request \(400: Server is pinned to .*\): check the model's name and the settings of EndpointConfig and WriterConfig\.$"),
    ((422, dict(detail="Unexpected fields in the request: {'top_k'}")), r"refuses the request \(422: Unexpected fields"),
    ((200, "<html>Welcome</html>", {}, "text/html"), r"answered with something that is no chat completion; does OPENAI_BASE_URL end in the path of the interface, usually /v1\?"),
    ((200, dict(object="chat.completion", choices=[])), r"answered with something that is no chat completion"),
    ((200, '{"choices": [', {}), r"answered with something that can't be read \(JSON that ends too early or is damaged at character 14 of 13: Expecting value\)\.$"),
    ((200, '{"choices": "caf\u00e9"}'.encode("latin-1")), r"can't be read \(no UTF-8 at byte 17 of 19\)\.$"),
    ((200, '{"choices": "caf\u00e9'.encode()[:-1]), r"can't be read \(no UTF-8 at byte 17 of 17\)\.$"),
    ((200, "[" * 100_000), r"can't be read \(RecursionError\)\.$"),
    *(((200, body), rf"is no chat completion; does OPENAI_BASE_URL end in .*\? Found: {words}\.$") for body, words in (
        ([1, 2], "a list without 'choices'"), ("null", "null without 'choices'"), ({}, "an object without 'choices'"), (dict(choices={"a": 1}), "'choices' is an object, expected a list"), (dict(choices=5), "'choices' is a number, expected a list"), (dict(choices=[]), "'choices' is empty"),
        (dict(choices=[dict(index=0, text="foo", finish_reason="stop")]), "a choice has 'text' and no 'message', as in the older interface of completions"), (dict(choices=[dict(message=None)]), "'message' is null, expected an object with 'content'"),
        (dict(choices=[3]), "'message' is null, expected an object with 'content'"), (dict(choices=[dict(message="foo")]), "'message' is text, expected an object with 'content'"), (dict(choices=[dict(message=dict(content=5))]), "'content' is a number, expected text"),
        (dict(choices=[dict(message=dict(content=dict(text="x")))]), "'content' is an object, expected text"), *((dict(choices=[dict(message=dict(content=parts))]), "'content' is a list, expected parts with a type, and a text in those of text") for parts in ([3], ["x"], [dict(text="x")], [dict(type="text", text=None)])))),
])
def test_one_request_shows_what_is_wrong(server, store, fault, words):
    server.fault = lambda n, asked: fault
    with pytest.raises(InputError, match=words) as error: ask_negatives(PAIRS, MODEL, store=store)
    assert len(server.requests) == 1 and KEY not in str(error.value) and error.value.__suppress_context__
    assert rows(store) == []


def test_unknown_model(server, store):
    server.fault = lambda n, asked: (404, dict(error=dict(message="no such model", code="model_not_found")))
    with pytest.raises(InputError, match=r"has no such model: unknown model 'writer-2'\. Did you mean 'writer-1' or 'writer-2-large'\? Known: writer-1, writer-2-large\."): ask_negatives(PAIRS, EndpointConfig("writer-2"), store=store)
    server.models = None # a server that lists none, or a wrong path
    with pytest.raises(InputError, match=r"knows no model 'writer-2', or no such path \(404: no such model\): check EndpointConfig's model, and that OPENAI_BASE_URL ends in the path of the interface, usually /v1\."): ask_negatives(PAIRS, EndpointConfig("writer-2"), store=store)


def test_nobody_there(server, store, monkeypatch):
    with socket.socket() as s: # a port where nobody listens
        s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:{KEY}@127.0.0.1:{port}/v1?secret={KEY}")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 2.0)
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"^the endpoint http://127\.0\.0\.1:{port}/v1 can't be reached \(.*refused\): is the server running, and is OPENAI_BASE_URL its address\?$"): ask_negatives(PAIRS, replace(MODEL, max_retries=2), store=store)
    assert time.monotonic() - began < 4 and server.requests == [] # no waiting for nobody: two more tries would wait 4.5 s at least


@pytest.mark.parametrize("url, key, words", [
    (None, KEY, r"OPENAI_BASE_URL is not set: the endpoint's address is taken from the environment only\. Set it before you start, e\.g\. export OPENAI_BASE_URL=http://localhost:8000/v1"),
    ("  ", KEY, "OPENAI_BASE_URL is not set"),
    ("localhost:8000/v1", KEY, r"OPENAI_BASE_URL is no address that begins with http:// or https:// and names a host"),
    ("ftp://x/v1", KEY, "OPENAI_BASE_URL is no address"),
    ("http:///v1", KEY, "OPENAI_BASE_URL is no address"),
    ("http://localhost:1/v1", None, r"OPENAI_API_KEY is not set: .* for a local server without keys any word will do, e\.g\. export OPENAI_API_KEY=none"),
    ("http://localhost:1/v1", "", "OPENAI_API_KEY is not set"),
    *((url, "sk", r"^OPENAI_BASE_URL is no address: its host or port can't be read; expected e\.g\. http://localhost:8000/v1 or http://\[::1\]:8000/v1, and in .* / as %2F") for url in ("http://localhost:80000/v1", "http://localhost:80o0/v1", "http://[::1:8000/v1", f"http://user:pa/{KEY}@localhost:1/v1", f"http://user:{KEY}?x@localhost:1/v1", f"http://user:{KEY}#x@localhost:1/v1", "http://a\x01b:1/v1")),
    *((url, "sk", r"^OPENAI_BASE_URL has an @ after its host: .*; an @ of the path as %40\.$") for url in (f"http://user:12/{KEY}@localhost:1/v1", f"http://user:1?{KEY}@localhost:1/v1", f"http://{KEY}/x@localhost:1/v1")),
    *(("http://localhost:1/v1", key, "^OPENAI_API_KEY holds a character that no key can hold") for key in (f"\u201c{KEY}\u201d", f"{KEY}\u00e9", f"{KEY}\nx", f"{KEY}\x7f")),
])
def test_environment(monkeypatch, store, url, key, words):
    for name, value in (("OPENAI_BASE_URL", url), ("OPENAI_API_KEY", key)): monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words) as error: ask_negatives(PAIRS, MODEL, store=store)
    assert not store.exists() and KEY not in str(error.value) and error.value.__cause__ is None and (error.value.__context__ is None or error.value.__suppress_context__)


@pytest.mark.parametrize("change, words", [
    (dict(model=" "), "model is ' ', expected the name the endpoint knows the model by"),
    (dict(concurrency=0), "EndpointConfig: concurrency is 0, expected a whole number of at least 1"),
    (dict(timeout=0), "EndpointConfig: timeout is 0"), (dict(top_p=1.5), "EndpointConfig: top_p is 1.5, expected a number from 0 to 1"), (dict(max_retries=-1), "max_retries is -1"),
    (dict(price_in=1), "price_in and price_out are given together or not at all"), (dict(price_in=-1, price_out=1), "price_in is -1"),
    (dict(token_field="limit"), "unknown EndpointConfig token_field 'limit'"),
    (dict(extra={"seed": 1, "model": "y"}), "extra holds model, seed, which the other settings decide; leave them out"),
    (dict(extra={"x": {1, 2}}), r"extra is \{'x': \{1, 2\}\}, expected fields of a request with values that JSON can hold"),
])
def test_settings_out_of_range(change, words):
    with pytest.raises(InputError, match=words): EndpointConfig(**{"model": "m", **change})


def test_settings_that_the_protocol_does_not_have(store):
    for change in (dict(top_k=5), dict(min_new_tokens=5)):
        with pytest.raises(InputError, match=rf"WriterConfig: {next(iter(change))} is {next(iter(change.values()))}, and the protocol of endpoints has no such setting\. Leave it out; if this server knows it, give it in EndpointConfig\(extra=\.\.\.\)"): ask_negatives(PAIRS, MODEL, config=WriterConfig(**change), store=store)
    with pytest.raises(InputError, match="endpoint is 'gpt', expected an EndpointConfig"): ask_negatives(PAIRS, "gpt", store=store)
    with pytest.raises(InputError, match="no pairs were given"): ask_negatives([], MODEL, store=store)
    with pytest.raises(InputError, match="num_negatives is 0"): ask_negatives(PAIRS, MODEL, num_negatives=0, store=store)


def test_the_key_is_nowhere(server, store, capfd, caplog):
    caplog.set_level("DEBUG", logger="eci_sem")
    found = ask_negatives(PAIRS[:5], MODEL, store=store)
    line = endpoint._Endpoint(MODEL, WriterConfig())
    record = json.dumps(describe_source("llm", endpoint=MODEL))
    everything = store.read_text() + repr(found) + repr(line) + repr(MODEL) + record + json.dumps(asdict(MODEL)) + "".join(capfd.readouterr()) + caplog.text
    assert KEY not in everything and "127.0.0.1" not in store.read_text() + record


# ------------------------------------------------------------------ many at a time, interrupted, resumed

def test_no_more_at_a_time_than_asked_for(server, store):
    server.delay = 0.03
    ask_negatives(PAIRS, replace(MODEL, concurrency=6), store=store)
    assert 3 <= server.most <= 6
    server.most = 0
    ask_negatives([p._replace(query=p.query + "!") for p in PAIRS[:6]], replace(MODEL, concurrency=1), store=store)
    assert server.most == 1


CHILD = """
import sys; from eci_sem.endpoint import *; from eci_sem.collection import Pair
pairs = [Pair(f"q{i}", f"p{i}", f"query number {i} about arrays", f"The positive passage {i}.", frozenset()) for i in range(int(sys.argv[2]))]
print(len(ask_negatives(pairs, EndpointConfig("writer-1", concurrency=4), store=sys.argv[1]).texts))
"""

def test_a_killed_job_resumes_with_exactly_what_is_missing(server, store):
    n, server.delay = 300, 0.01
    job = subprocess.Popen([sys.executable, "-c", CHILD, str(store), str(n)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until and len(server.requests) < 60: time.sleep(0.02)
    finally: job.kill(); job.wait()
    time.sleep(0.2) # what was under way ends at the server
    before, whole = server.contents, store.read_bytes()
    there = {json.loads(line)["key"] for line in whole[:whole.rfind(b"\n") + 1].decode().splitlines()[1:]}
    assert 60 <= len(before) < n and len(before) - 4 <= len(there) <= len(before) # at most the requests under way are lost
    if not whole.endswith(b"\n"): store.write_bytes(whole[:whole.rfind(b"\n") + 1])
    else: store.write_bytes(whole + b'{"key": "cut off by') # as a crash of the machine leaves it
    server.requests.clear(); server.delay = 0
    pairs = [Pair(f"q{i}", f"p{i}", f"query number {i} about arrays", f"The positive passage {i}.", frozenset()) for i in range(n)]
    if not whole.endswith(b"\n"): found = ask_negatives(pairs, EndpointConfig("writer-1", concurrency=4), store=store)
    else:
        with pytest.warns(UserWarning, match="the last line was cut off"): found = ask_negatives(pairs, EndpointConfig("writer-1", concurrency=4), store=store)
    assert found.asked == len(server.requests) == n - len(there) and len(found.texts) == n
    missing = {p.query for p in pairs if pair_key(p.query, p.positive) not in there}
    assert Counter(c.split("\n")[0].removeprefix("Query: ") for c, _ in server.contents) == Counter(missing)
    assert ask_negatives(pairs, EndpointConfig("writer-1"), store=store).asked == 0 and len(server.requests) == len(missing)
    assert len(rows(store)) == len({r["key"] for r in rows(store)}) == n


def test_interrupted_by_hand(server, store):
    server.delay = 0.02
    def interrupt(n, asked):
        if n == 12: os.kill(os.getpid(), signal.SIGINT)
    server.fault = interrupt
    with pytest.raises(KeyboardInterrupt): ask_negatives(PAIRS, replace(MODEL, concurrency=4), store=store)
    time.sleep(0.1)
    sent = len(server.requests)
    assert 12 <= sent <= 20 and len(rows(store)) == sent # nothing new was begun, and what was under way came in
    server.fault = lambda n, asked: None
    assert ask_negatives(PAIRS, MODEL, store=store).asked == 40 - sent


def test_a_finished_store_needs_neither_server_nor_key(server, store, monkeypatch):
    first = ask_negatives(PAIRS[:5], MODEL, store=store)
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"): monkeypatch.delenv(name)
    again = ask_negatives(PAIRS[:5], MODEL, store=store)
    assert again.texts == first.texts and again.counts == first.counts and again.asked == 0
    part = ask_negatives(PAIRS[:8], MODEL, store=store, ask=False)
    assert part.texts == first.texts and len(part.missing) == 3
    with pytest.raises(InputError, match="OPENAI_BASE_URL is not set"): ask_negatives(PAIRS[:8], MODEL, store=store)
    nothing = store.with_name("nothing.jsonl")
    assert ask_negatives(PAIRS[:2], MODEL, store=nothing, ask=False).texts == {} and not nothing.exists()


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 11)), st.integers(1, 3), st.integers(1, 5), st.integers(0, 10))
def test_exactly_what_is_missing_is_asked_for(tmp_path_factory, there, num_negatives, concurrency, bad):
    store, asked = tmp_path_factory.mktemp("s") / "s.jsonl", []
    class Line:
        client = type("Client", (), {"close": lambda self: None})()
        def __init__(self, *a): pass
        told, each = endpoint._Endpoint.told, endpoint._Endpoint.each
        endpoint = replace(MODEL, concurrency=concurrency)
        def ask(self, pair, attempt, retry=True):
            asked.append((pair.query_id, attempt))
            seed = int(sha256_text(pair.query_id, str(attempt))[:6], 16)
            return dict(key=pair_key(pair.query, pair.positive), attempt=attempt, tokens=1, raw="" if seed % 10 < bad else good(seed))
        first = ask
    with pytest.MonkeyPatch.context() as m:
        m.setattr(endpoint, "_Endpoint", Line)
        if there: ask_negatives([PAIRS[i] for i in sorted(there)], MODEL, store=store, num_negatives=num_negatives)
        before = list(asked)
        found = ask_negatives(PAIRS[:12], MODEL, store=store, num_negatives=num_negatives)
        assert len(asked) == len(set(asked)) and found.asked == len(asked) - len(before) and not {q for q, _ in asked[len(before):]} & {f"q{i}" for i in there}
        want = {}
        for p in PAIRS[:12]: # one pair at a time, tries in order until there are enough
            seeds = [int(sha256_text(p.query_id, str(a))[:6], 16) for a in range(3 * num_negatives)]
            fine = [a for a, s in enumerate(seeds) if s % 10 >= bad][:num_negatives]
            want[p.query_id] = (fine[-1] + 1 if len(fine) == num_negatives else len(seeds), [good(seeds[a]) for a in fine])
        assert Counter(q for q, _ in asked) == {q: n for q, (n, _) in want.items()}
        texts = {}
        for r in found.rows: texts.setdefault(r["key"], []).append(r["text"])
        assert all(texts.get(pair_key(p.query, p.positive), []) == want[p.query_id][1] for p in PAIRS[:12])
        assert ask_negatives(PAIRS[:12][::-1], MODEL, store=store, num_negatives=num_negatives).asked == 0


def test_another_model_prompt_sampling_or_seed_is_another_store(server, store):
    ask_negatives(PAIRS[:2], MODEL, store=store)
    for e, c, words in ((replace(MODEL, model="writer-2-large"), WriterConfig(), "model is 'writer-1' there and 'writer-2-large' here"), (MODEL, WriterConfig(prompt="query-only"), "prompt_sha256 is"), (MODEL, WriterConfig(temperature=1.0), "temperature is 0.7 there and 1.0 here"),
        (MODEL, WriterConfig(seed=1), "seed is 0 there"), (replace(MODEL, top_p=0.5), WriterConfig(), "top_p is None there"), (replace(MODEL, extra={"top_k": 4}), WriterConfig(), "extra is {} there")):
        with pytest.raises(InputError, match=rf"store\.jsonl: these texts were written with other settings: {words}"): ask_negatives(PAIRS[:2], e, config=c, store=store)
        assert endpoint_store(e, c) != endpoint_store(MODEL)
    assert endpoint_store(replace(MODEL, concurrency=1, timeout=1, max_retries=0, price_in=1, price_out=1), WriterConfig(min_words=3, max_words=500, attempts=9)) == endpoint_store(MODEL)
    assert len(server.requests) == 2


# ------------------------------------------------------------------ as a source

def pets():
    c = Collection("c", {"a": "Cats purr.", "b": "Dogs bark.", "d": "Fish swim."}, {"1": "cats", "2": "dogs", "3": "fish"}, {"test": {"1": {"a": 1}, "2": {"b": 1}, "3": {"d": 1}}})
    return c, c.pairs("test")

def test_mine_llm_through_an_endpoint(server, store, monkeypatch):
    c, pairs = pets()
    server.write = lambda asked: "" if "fish" in asked["messages"][0]["content"] else good(asked["seed"])
    t = mine_llm(c, pairs, endpoint=MODEL, store=store, config=WriterConfig(attempts=1))
    assert t.query_ids == ["1", "2"] and t.dropped == {"llm": {"query with fewer than 1 left": 1}} or t.dropped == {"llm": {"no generated negative": 1}}
    negatives = t.column("negative")
    assert all(t.column("negative_id")[i] == "llm:" + sha256_text(negatives[i])[:16] for i in range(2)) and t.check(c).ok
    monkeypatch.delenv("OPENAI_API_KEY")
    again = mine("llm", c, pairs, endpoint=MODEL, store=store, config=WriterConfig(attempts=1), generate=False)
    assert again.table.equals(t.table) and len(server.requests) == 3
    for k, v in (("model", "other"), ("batch_size", 4), ("device", "cuda")):
        with pytest.raises(InputError, match=rf"{k}={v!r} is given together with endpoint: it is a local model's setting; leave one of them out"): mine_llm(c, pairs, endpoint=MODEL, store=store, **{k: v})


def test_two_per_query_and_the_default_store(server, monkeypatch, tmp_path):
    monkeypatch.setattr(writer, "cache_dir", lambda: tmp_path)
    c, pairs = pets()
    t = mine_llm(c, pairs, endpoint=MODEL, num_negatives=2)
    assert t.column("rank").tolist() == [1, 2] * 3 and len(server.requests) == 6
    assert mine_llm(c, pairs, endpoint=MODEL, skip_top=1).column("rank").tolist() == [2] * 3 and len(server.requests) == 6
    assert [p.parent.name for p in tmp_path.rglob("*.jsonl")] == ["llm"]


def test_a_text_that_answers_the_query_is_dropped(server, store):
    c, pairs = pets()
    server.write = lambda asked: good(0) if "Query: cats" in asked["messages"][0]["content"] else good(asked["seed"])
    class Stub: # q.p = 0.8; the text for the cats stands nearer
        def encode_queries(self, texts): return np.array([[1.0, 0.0]] * len(texts), np.float32)
        def encode_passages(self, texts): return np.array([[0.8, 0.6] if len(t) < 20 else [1.0, 0.0] if t == good(0) else [0.0, 1.0] for t in texts], np.float32)
    class Cross:
        name, fingerprint = "cross", "c" * 64
        def score_pairs(self, queries, passages): return np.array([5.0 if len(p) < 20 else 4.5 if p == good(0) else -3.0 for p in passages])
    for judge, least in ((Stub(), 0.0), (Cross(), 1.0), (Cross(), 7.5)):
        t = mine_llm(c, pairs, endpoint=MODEL, store=store, min_margin=least, margin_encoder=judge)
        assert t.query_ids == ["2", "3"] and t.dropped == {"llm": {f"answers the query (margin under {least:g})": 1}}
    assert mine_llm(c, pairs, endpoint=MODEL, store=store, min_margin=0.5, margin_encoder=Cross()).query_ids == ["1", "2", "3"]
    with pytest.raises(InputError, match=r"no negative is left for any of the 3 pairs \(3 answers the query \(margin under 100\)\)"): mine_llm(c, pairs, endpoint=MODEL, store=store, min_margin=100, margin_encoder=Cross())
    with pytest.raises(InputError, match="min_margin is nan, expected a number that is finite"): mine_llm(c, pairs, endpoint=MODEL, store=store, min_margin=float("nan"), margin_encoder=Cross())


def test_the_record_of_an_endpoint_source():
    d = describe_source("llm", endpoint=replace(MODEL, extra={"stop": ["x"]}, price_in=1, price_out=2), config=WriterConfig(prompt="query-only"))
    assert d["endpoint"]["model"] == "writer-1" and d["endpoint"]["extra"] == {"stop": ["x"]} and d["config"]["prompt"] == "hard_negative_query_only_v1" and d["prompt_sha256"] == sha256_text(prompt_text("hard_negative_query_only_v1"))
    assert set(d["versions"]) == {"openai"} and json.loads(json.dumps(d)) == d
    assert describe_source("llm", endpoint=EndpointConfig("/models/place/of/a-model"))["endpoint"]["model"] == "a-model"
    assert endpoint_header(EndpointConfig("/models/place/of/a-model"))["config"]["model"] == "a-model"


# ------------------------------------------------------------------ a real server and a real model

def test_transformers_serve_with_smollm2(store, monkeypatch, tmp_path):
    for package in ("fastapi", "uvicorn", "gguf", "accelerate"): pytest.importorskip(package)
    from eci_sem.encoders import EMBEDDED, converted_gguf, embedded_path
    command = Path(sys.executable).with_name("transformers")
    if not command.exists(): pytest.skip("the command transformers is not installed")
    try: folder = converted_gguf(embedded_path("smollm2"), EMBEDDED["smollm2"].sha256)
    except InputError as e: pytest.skip(f"the embedded model is not installed: {e}")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    log = tmp_path / "serve.log"
    with open(log, "wb") as out:
        server = subprocess.Popen([str(command), "serve", folder.name, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"], cwd=folder.parent, stdout=out, stderr=out,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"})
    try:
        until = time.monotonic() + 120
        while True:
            if server.poll() is not None: pytest.fail(f"transformers serve ended: {log.read_text()[-800:]}")
            try: socket.create_connection(("127.0.0.1", port), timeout=1).close(); break
            except OSError: pass
            if time.monotonic() > until: pytest.skip("transformers serve was not up after two minutes")
            time.sleep(0.3)
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1"); monkeypatch.setenv("OPENAI_API_KEY", "none")
        for k in ("NO_PROXY", "no_proxy"): monkeypatch.setenv(k, "127.0.0.1,localhost")
        # the protocol's temperature alone does not make this server sample
        smol = EndpointConfig(folder.name, timeout=60, concurrency=1, extra={"generation_config": json.dumps(dict(do_sample=True, top_k=40))}, price_in=1.0, price_out=1.0)
        config = WriterConfig(min_new_tokens=1, max_new_tokens=12, min_words=3, attempts=1)
        pairs = [Pair("a", "pa", "sort an array", "Return a sorted copy of an array.", frozenset()), Pair("b", "pb", "open a file for reading", "Open a file and return a file object.", frozenset())]
        found = ask_negatives(pairs, smol, config=config, store=store)
        kept = rows(store)
        assert found.asked == len(kept) == 2 == sum(found.counts.values())
        for r in kept: assert len(r["raw"].split()) > 3 and 0 < r["tokens"] <= 12 and r["prompt_tokens"] > 20 and r["served"].startswith(folder.name) and r["finish"] in ("stop", "length")
        assert kept[0]["raw"] != kept[1]["raw"] and found.cost == pytest.approx(sum(r["tokens"] + r["prompt_tokens"] for r in kept) / 1e6)
        again = ask_negatives(pairs[1:], smol, config=config, store=tmp_path / "again.jsonl")
        assert again.asked == 1 and [r["raw"] for r in rows(tmp_path / "again.jsonl")] == [r["raw"] for r in kept if r["query_id"] == "b"] # this server heeds the seed
        with pytest.raises(InputError, match=r"refuses the request \(400: Server is pinned to .*\): check the model's name"): ask_negatives(pairs, EndpointConfig("another"), config=config, store=tmp_path / "other.jsonl")
    finally:
        server.terminate()
        try: server.wait(10)
        except subprocess.TimeoutExpired: server.kill(); server.wait()
