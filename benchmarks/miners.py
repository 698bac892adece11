"""Our dense miner beside sentence-transformers' mine_hard_negatives: python benchmarks/miners.py [--data FOLDER] [--margin none 0] [--json FILE]

negatives  the same ones from the same data, model and margin, pair by pair. Each difference must have a reason that is checked, not assumed:
           a passage that is relevant (or repeats one) and that the other can't know to be; a text that repeats another but for case and
           spaces; a margin counted from the lowest of several positives; two scores, or a score and its limit, nearer than float32 can tell.
time       ours takes no longer, encoding included.
memory     ours takes no more at its peak, beside the model and the texts.

The two miners live in processes of their own and run in turns, so that another program's load falls on both; times are the best of several
runs, the peak is that of the first one. With a margin mine_hard_negatives gets the whole corpus as its range, as ours goes as deep as it
must. The exit status is 2 if a difference has no reason, 1 if ours is slower or larger, 0 otherwise.
"""
import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import claim, finish, forget_peak, machine, memory, peak

TIMES, ROUNDING = 1.0, 2e-6 # limit of the ratios ours / theirs; how far two float32 similarities of unit vectors may be apart


# --- in a process of its own

def load(args: dict[str, Any]) -> tuple[Any, list[Any], Any]:
    from eci_sem.collection import named_collection
    from eci_sem.encoders import load_encoder
    collection = named_collection(args["data"])
    pairs = [p for split in args["split"] for p in collection.pairs(split, max_positives=args["positives"], limit=args["limit"])]
    # sentence-transformers reads a text of any length with a static model, and so must we
    return collection, pairs, load_encoder(args["encoder"], cache=False, max_length=8192 if args["encoder"] == "glove" else None)

def child(args: dict[str, Any]) -> None:
    "Mines once for each line that comes in; the first answer holds the negatives."
    from datasets import Dataset
    from sentence_transformers.util import mine_hard_negatives
    from eci_sem.sources import mine_dense
    collection, pairs, encoder = load(args)
    corpus, margin, num = [t for _, t in sorted(collection.corpus.items()) if t.strip()], args["margin"], args["num"]
    data = Dataset.from_dict(dict(query=[p.query for p in pairs], positive=[p.positive for p in pairs]))
    def ours(pairs=pairs): return mine_dense(collection, pairs, encoder, num_negatives=num, min_margin=margin)
    def theirs(data=data, corpus=corpus): return mine_hard_negatives(data, encoder.model, corpus=corpus, num_negatives=num, absolute_margin=margin, range_max=None if margin is None else len(corpus), output_format="triplet", verbose=False)
    if args["miner"] == "ours": ours(pairs[:2]) # imports and threads come before the clock
    else: theirs(data.select(range(2)), corpus[:num + 40] if margin is None else corpus)
    for number, _ in enumerate(sys.stdin):
        forget_peak()
        before, start = memory(), time.perf_counter()
        found = ours() if args["miner"] == "ours" else theirs()
        answer = dict(seconds=time.perf_counter() - start, extra=peak() - before, rows=len(found))
        if number == 0:
            texts = zip(found.texts("query"), found.texts("positive"), found.texts("negative")) if args["miner"] == "ours" else zip(found["query"], found["positive"], found["negative"])
            answer["found"] = [list(t) for t in texts]
        print(json.dumps(answer), flush=True)


# --- the comparison

def differences(pairs: list[Any], ours: list[list[str]], theirs: list[list[str]], score: Callable[[str, str], float], relevant: Callable[[Any], set[str]], num: int, margin: float | None, kept: dict[str, str] | None = None) -> tuple[Counter, list[str]]:
    "(reason -> negatives, what has no reason): negatives of two miners, pair by pair; `relevant` in normalised form, `kept` the text we take of those that differ in case and spaces alone."
    from eci_sem.collection import normalise
    counts, without = Counter(), []
    positives: dict[str, list[str]] = {}
    for p in pairs: positives.setdefault(p.query, []).append(p.positive)
    for p, mine, other in zip(pairs, ours, theirs):
        def s(text: str) -> float: return score(p.query, text)
        if mine == other: counts["same"] += len(mine); continue
        own, lowest = s(p.positive), min(s(x) for x in positives[p.query])
        limit, strict = (np.inf, np.inf) if margin is None else (own - margin, lowest - margin)
        seen, left, mine_left = set(), [], []
        for t in other: # what the other could not know
            if normalise(t) in relevant(p): counts["relevant, or repeats a relevant passage"] += 1
            elif normalise(t) in seen or kept and kept.get(normalise(t), t) != t: counts["repeats another but for case and spaces"] += 1
            else: left.append(t)
            seen.add(normalise(t))
        for t in mine:
            if s(t) > strict + ROUNDING and s(t) <= limit + ROUNDING: counts["margin from the lowest of several positives"] += 1
            else: mine_left.append(t)
        full, mine_full = len(other) == num, len(mine) == num
        form = lambda ts: {normalise(t) for t in ts}
        common = form(left) & form(mine_left)
        def near(t: str) -> bool: return margin is not None and min(abs(s(t) - strict), abs(s(t) - limit)) <= ROUNDING
        alone, theirs_alone = ([t for t in ts if normalise(t) not in common] for ts in (mine_left, left))
        # what one of them left out, or could not know, made room for a lower one
        removed, passed = len(other) - len(left) + sum(map(near, theirs_alone)), len(mine) - len(mine_left) + sum(map(near, alone))
        for t in alone:
            if near(t): counts["at the limit, within float32"] += 1
            elif full and abs(s(t) - s(other[-1])) <= ROUNDING or any(abs(s(t) - s(x)) <= ROUNDING for x in theirs_alone): counts["scores nearer than float32 can tell"] += 1
            elif full and s(t) < s(other[-1]) and removed > 0: removed -= 1; counts["in the place of such a one"] += 1
            else: without.append(f"query {p.query_id!r}: only ours, score {s(t):.7f}: {t[:60]!r}")
        for t in theirs_alone:
            if near(t): counts["at the limit, within float32"] += 1
            elif mine_full and abs(s(t) - s(mine[-1])) <= ROUNDING or any(abs(s(t) - s(x)) <= ROUNDING for x in alone): counts["scores nearer than float32 can tell"] += 1
            elif mine_full and s(t) < s(mine[-1]) and passed > 0: passed -= 1; counts["in the place of such a one"] += 1
            else: without.append(f"query {p.query_id!r}: only mine_hard_negatives', score {s(t):.7f}: {t[:60]!r}")
        counts["same"] += len(common)
        a, b = ([t for t in ts if normalise(t) in common] for ts in (mine_left, left))
        for x, y in zip(a, b):
            if normalise(x) != normalise(y) and abs(s(x) - s(y)) > ROUNDING: without.append(f"query {p.query_id!r}: another order, scores {s(x):.7f} and {s(y):.7f}")
    return counts, without

def grouped(pairs: list[Any], found: list[list[str]]) -> list[list[str]]:
    "Negatives of each pair, in the order of `found`."
    rows: dict[tuple[str, str], list[str]] = {}
    for q, p, n in found: rows.setdefault((q, p), []).append(n)
    return [rows.get((p.query, p.positive), []) for p in pairs]

def compare(settings: dict[str, Any], runs: int) -> list[dict[str, Any]]:
    "The two miners under one margin: three claims."
    from eci_sem.collection import normalise
    what, children = f"margin {settings['margin']}", {}
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        for miner in ("ours", "theirs"): children[miner] = subprocess.Popen([sys.executable, __file__, "--child", json.dumps({**settings, "miner": miner})], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env)
        answers: dict[str, list[dict[str, Any]]] = {m: [] for m in children}
        for _ in range(runs):
            for miner, process in children.items():
                try: process.stdin.write("mine\n"); process.stdin.flush()
                except BrokenPipeError: pass
                line = process.stdout.readline()
                if not line: raise SystemExit(f"the process of {miner} failed with status {process.wait()}")
                answers[miner].append(json.loads(line))
    finally:
        for process in children.values():
            process.stdin.close()
            try: process.wait(30)
            except subprocess.TimeoutExpired: process.kill()
    collection, pairs, encoder = load(settings)
    unique = list({(p.query, p.positive): p for p in pairs}.values()) # two query ids of one text are one query to mine_hard_negatives
    known: dict[str, set[str]] = {}
    for p in pairs: known.setdefault(p.query, set()).update(normalise(collection.corpus[d]) for d in (*p.relevant, p.positive_id) if d in collection.corpus)
    kept: dict[str, str] = {}
    for _, text in sorted(collection.corpus.items()): kept.setdefault(normalise(text), text)
    ours, theirs = (grouped(unique, answers[m][0]["found"]) for m in ("ours", "theirs"))
    ours = [list(dict.fromkeys(ns)) for ns in ours]
    texts = sorted({t for ns in (*ours, *theirs) for t in ns} | {p.positive for p in unique})
    queries = sorted({p.query for p in unique})
    place, vectors = ({t: i for i, t in enumerate(ts)} for ts in (texts, queries)), (encoder.encode_passages(texts).astype(np.float64), encoder.encode_queries(queries).astype(np.float64))
    at, asked = place
    direct = encoder.model.encode_document(texts[:500], normalize_embeddings=True)
    apart = float(np.abs(direct - vectors[0][:500]).max())
    counts, without = differences(unique, ours, theirs, lambda q, t: float(vectors[1][asked[q]] @ vectors[0][at[t]]), lambda p: known[p.query], settings["num"], settings["margin"], kept)
    total, told = sum(map(len, theirs)), "; ".join(f"{n:,} {why}" for why, n in sorted(counts.items(), key=lambda x: (x[0] != "same", -x[1])) if n)
    for line in without[:5]: print(f"      no reason: {line}")
    best = {m: min(a["seconds"] for a in rs) for m, rs in answers.items()}
    extra = {m: rs[0]["extra"] for m, rs in answers.items()}
    return [claim(f"{what}, negatives that differ without a reason", len(without), 0, True, f"{sum(map(len, ours)):,} of ours, {total:,} of theirs, for {len(unique):,} pairs over {len(collection.corpus):,} passages: {told}; {len(without):,} without a reason; embeddings at most {apart:.0e} apart") | dict(about="negatives", without=len(without), counts=dict(counts)),
        claim(f"{what}, time, ours over theirs", best["ours"] / best["theirs"], TIMES, True, f"{best['ours']:.2f} s against {best['theirs']:.2f} s, best of {runs}") | dict(about="time", **best),
        claim(f"{what}, memory, ours over theirs", extra["ours"] / max(extra["theirs"], 1e-9), TIMES, True, f"{extra['ours']:.0f} MB against {extra['theirs']:.0f} MB at the peak of the first run") | dict(about="memory", **extra)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="docstrings", help="docstrings, or a folder in BEIR's layout (default: %(default)s)")
    parser.add_argument("--split", nargs="+", help="judgments to use (default: train and test of docstrings, else test)")
    parser.add_argument("--encoder", default="glove", help="an embedded encoder or a folder (default: %(default)s)")
    parser.add_argument("--num", type=int, default=5, help="negatives per pair (default: %(default)s)")
    parser.add_argument("--margin", nargs="+", default=["none", "0"], help="margins to compare under, none for no filter (default: none 0)")
    parser.add_argument("--limit", type=int, help="at most so many queries per split")
    parser.add_argument("--positives", type=int, default=1, help="positives per query, 0 for all (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each miner, the best of which counts (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the measurements there as well")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child: child(json.loads(args.child)); return 0
    if min(args.num, args.runs, args.limit or 1) < 1 or args.positives < 0: parser.error("--num, --runs and --limit must be at least 1, --positives at least 0")
    bad = [m for m in args.margin if not re.fullmatch(r"none|-?\d*\.?\d+", m)]
    if bad: parser.error(f"--margin {bad[0]}: expected none or a number")
    settings = dict(data=args.data, split=args.split or (["train", "test"] if args.data == "docstrings" else ["test"]), encoder=args.encoder, num=args.num, limit=args.limit, positives=args.positives or None)
    about = machine()
    claims = [c for m in args.margin for c in compare({**settings, "margin": None if m == "none" else float(m)}, args.runs)]
    done = finish(dict(machine=about, settings={k: Path(v).name if k in ("data", "encoder") else v for k, v in settings.items()}, claims=claims), args.json)
    return 2 if any(c["about"] == "negatives" and not c["passed"] for c in claims) else done


if __name__ == "__main__": sys.exit(main())
