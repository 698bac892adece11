"""What encoding promises about speed, measured: python benchmarks/encode.py [--only speed|threads|rank] [--json FILE]

speed   passages of the embedded collection through minilm, cold cache, side by side: plain SentenceTransformer.encode in float32 at batch 32,
        our Encoder in float32 (at least 1.3 times as fast), and our Encoder in bfloat16, which is what dtype="fast" stands for on a processor
        with instructions for it (amx_bf16, avx512_bf16): at least 3 times as fast, and at least 1.2 times our own float32; where there are none
        a 150th of the passages is measured, and neither claim applies. All passages by
        default, once, and half of them without instructions for bfloat16, on what is a slower processor: the batches have fixed shapes,
        and the last one of each shape is filled up, which for few passages is much of the work: padding adds 6 % to the tokens of all
        3,790 passages, 9 % to those of 576 and 16 % to those of 192 (plain encode: 21 to 22 %).
        The vectors are held against plain encode's: cosine at least 1 - 1e-5 in float32.
threads with every number of threads up to the processor's: the number that PyTorch chooses by itself takes at most 1.15 times as long as the
        best of them (so the Encoder sets none), and every number gives the same vectors to the last bit.
rank    rank_sources with our float32 and with plain encode's vectors: the same order, and no score further off than a tenth of the half width of
        its bootstrap interval. And rank_sources in float32 and in bfloat16 over BM25, dense and random negatives: the same order, and no score further off than a tenth of
        the half width of its bootstrap interval. Of 200 queries where dtype="fast" is bfloat16, of 24 elsewhere, where bfloat16 takes long and is not
        what "fast" gives; fewer queries mean wider intervals, so there the claim is the weaker one.

Each claim prints what was measured, the limit, and PASS, FAIL or N/A; the exit status is 1 if one fails. Times are the best of the runs,
taken in turns, each with an empty cache of its own; imports, weights and first calls come before the clock.
"""
import argparse
import random
import sys
import tempfile
from typing import Any

import numpy as np

from common import at_least_one, claim, measured, options, timed

PLAIN, FAST, FASTER, APART, ROUNDED, THREADS = 1.3, 3.0, 1.2, 1e-5, 1e-2, 1.15 # times plain encode, in float32 and in bfloat16; times our float32; 1 - cosine in float32 and in bfloat16


def bench_speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    import torch
    from sentence_transformers import SentenceTransformer
    from eci_sem.collection import load_docstrings
    from eci_sem.encoders import embedded_path, fast_dtype, load_encoder
    corpus = load_docstrings().corpus
    found, claims, (dtype, why) = {}, [], fast_dtype(args.device)
    n = args.texts or (len(corpus) if dtype == "bfloat16" else len(corpus) // 2)
    texts = [corpus[i] for i in random.Random(args.seed).sample(sorted(corpus), min(n, len(corpus)))]
    plain = SentenceTransformer(str(embedded_path("minilm").parent), device=args.device, local_files_only=True)
    models = {d: load_encoder("minilm", dtype=d, device=args.device, cache=False).model for d in ("float32", "bfloat16")} # weights come before the clock
    some = texts if dtype == "bfloat16" else texts[:-(-len(texts) // 150)] # bfloat16 without instructions for it takes six times as long
    def ours(dtype: str) -> np.ndarray:
        from eci_sem.encoders import Encoder, EMBEDDED
        with tempfile.TemporaryDirectory() as cache:
            encoder = Encoder(lambda: models[dtype], "minilm", weights=EMBEDDED["minilm"].sha256, dim=384, max_length=EMBEDDED["minilm"].max_length, dtype=dtype, device=args.device, cache=cache)
            vectors = encoder.encode_passages(some if dtype == "bfloat16" else texts, progress=False)
            assert encoder.stats["encoded"] == encoder.stats["distinct"], "the cache was not empty"
        return vectors
    ways = {"plain": lambda: plain.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False), "float32": lambda: ours("float32"), "bfloat16": lambda: ours("bfloat16")}
    for n in args.threads or [torch.get_num_threads()]:
        torch.set_num_threads(n)
        best = dict.fromkeys(ways, np.inf)
        for model in (plain, *models.values()): model.encode(texts[:4], show_progress_bar=False) # first calls
        for k in range(args.runs):
            for name, way in ways.items():
                if name == "bfloat16" and k and dtype != "bfloat16": continue
                seconds, found[name] = timed(way)
                best[name] = min(best[name], seconds / len(found[name]))
        print(f"      {n} threads, {len(texts)} passages, texts a second: " + ", ".join(f"{name} {1 / s:.1f}" for name, s in best.items()))
        # on two threads or on ten, the claim is about the same number for both sides
        what = lambda ours, base="plain": f"{len(found[ours])} passages of docstrings, minilm, {args.device}, {n} threads: {1 / best[ours]:.1f} texts a second against {1 / best[base]:.1f}, best of {args.runs if len(found[ours]) == len(texts) else 1}, cold cache"
        mark = f", {n} threads" if args.threads else ""
        claims += [claim(f"Encoder in float32, times plain encode in float32 at batch 32{mark}", best["plain"] / best["float32"], PLAIN, False, what("float32"), "times"),
            claim(f"Encoder with dtype=\"fast\" as bfloat16, times plain encode in float32 at batch 32{mark}", best["plain"] / best["bfloat16"], FAST, False, what("bfloat16"), "times", unless="" if dtype == "bfloat16" else why),
            claim(f"Encoder with dtype=\"fast\" as bfloat16, times our own float32{mark}", best["float32"] / best["bfloat16"], FASTER, False, what("bfloat16", "float32"), "times", unless="" if dtype == "bfloat16" else why)]
    apart = {d: float(1 - np.einsum("ij,ij->i", found["plain"][:len(found[d])].astype(float), found[d].astype(float)).min()) for d in ("float32", "bfloat16")}
    return [*claims, claim("vectors in float32, 1 - cosine with plain encode's", apart["float32"], APART, True, "the largest of all passages", "apart"),
        claim("vectors in bfloat16, 1 - cosine with plain encode's", apart["bfloat16"], ROUNDED, True, f"the largest of {len(some)} passages; what it does to a ranking is the next claim", "apart")]

def bench_threads(args: argparse.Namespace) -> list[dict[str, Any]]:
    import os
    import torch
    from eci_sem.collection import load_docstrings
    from eci_sem.encoders import fast_dtype, load_encoder
    corpus, chosen, claims = load_docstrings().corpus, torch.get_num_threads(), []
    texts = [corpus[i] for i in random.Random(args.seed).sample(sorted(corpus), min(args.texts or 192, len(corpus)))]
    counts = sorted({*range(1, min(os.cpu_count() or 1, 16) + 1), chosen})
    for dtype in ("float32", *(["bfloat16"] if fast_dtype(args.device)[0] == "bfloat16" else [])):
        encoder = load_encoder("minilm", dtype=dtype, device=args.device, cache=False)
        best, vectors = dict.fromkeys(counts, np.inf), {}
        for k in range(1 + max(2, args.runs)): # the first turn is the first calls'
            for n in counts:
                torch.set_num_threads(n)
                seconds, vectors[n] = timed(lambda: encoder.encode_passages(texts, progress=False))
                if k: best[n] = min(best[n], seconds)
        torch.set_num_threads(chosen)
        if len({v.tobytes() for v in vectors.values()}) > 1: raise SystemExit(f"FAIL  threads: {dtype} vectors depend on the number of threads")
        told = ", ".join(f"{n}: {len(texts) / s:.1f}" for n, s in best.items())
        claims.append(claim(f"threads as PyTorch chooses, {dtype}, times the seconds of the best number", best[chosen] / min(best.values()), THREADS, True, f"{chosen} threads chosen; {len(texts)} passages of docstrings, minilm, texts a second by threads: {told}; the same vectors to the last bit", "times"))
    return claims

class Plain:
    "Plain encode, as an encoder."
    name = "plain"
    def __init__(self, model: Any): self.model, self.dim = model, 384
    def encode_passages(self, texts: list[str]) -> np.ndarray: return self.model.encode(list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False)
    encode_queries = encode_passages

def bench_rank(args: argparse.Namespace) -> list[dict[str, Any]]:
    from eci_sem.collection import load_docstrings
    from eci_sem.encoders import fast_dtype, load_encoder
    from sentence_transformers import SentenceTransformer
    from eci_sem.encoders import embedded_path
    from eci_sem.fast import TENTH, _effect, fast_effect
    from eci_sem.rank import rank_sources
    from eci_sem.sources import mine_bm25, mine_dense, mine_random
    from eci_sem.triples import Triples
    collection = load_docstrings()
    pairs = collection.pairs("score", limit=args.queries or (200 if fast_dtype(args.device)[0] == "bfloat16" else 24))
    with tempfile.TemporaryDirectory() as cache:
        triples = Triples.concat([mine_bm25(collection, pairs), mine_dense(collection, pairs, load_encoder("glove", cache=cache)), mine_random(collection, pairs)])
        effect = fast_effect(triples, "minilm", collection=collection, load=dict(device=args.device, cache=cache), progress=False)
        plain = Plain(SentenceTransformer(str(embedded_path("minilm").parent), device=args.device, local_files_only=True))
        path = _effect(*(rank_sources(triples, e, collection=collection, progress=False) for e in (plain, load_encoder("minilm", device=args.device, cache=cache))), "our float32", TENTH)
    print("      " + repr(effect).replace("\n", "\n      "))
    what = f"{len(pairs)} scoring queries of docstrings, minilm, {len(triples):,} triples of bm25, dense (mined by glove) and random, {len(effect.table)} scores of {effect.table['metric'].nunique()} metrics, hybrids included"
    return [claim("scores in our float32, largest difference from plain encode's in half widths of the bootstrap interval", path.share, TENTH, True, what, "half widths"),
        claim("order in our float32, metrics that have another one than with plain encode", len(path.changed), 0, True, what, "metrics"),
        claim("scores in bfloat16, largest difference from float32 in half widths of the bootstrap interval", effect.share, TENTH, True, what, "half widths"),
        claim("order in bfloat16, metrics that have another one than in float32", len(effect.changed), 0, True, what, "metrics")]


def main() -> int:
    parts = dict(speed=bench_speed, threads=bench_threads, rank=bench_rank)
    parser = options(__doc__, parts, runs=(1, "runs of each measurement, the best of which counts"))
    parser.add_argument("--texts", type=at_least_one, help="passages to encode (default: all or half, see above; 192 for threads)")
    parser.add_argument("--threads", type=at_least_one, nargs="+", help="measure with so many threads, one after another (default: as PyTorch chooses)")
    parser.add_argument("--queries", type=at_least_one, help="scoring queries of the rankings (default: 200 or 24, see above)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of passages (default: %(default)s)")
    return measured(parts, parser.parse_args())


if __name__ == "__main__": sys.exit(main())
