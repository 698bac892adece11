"""What the profile showed, what was changed for it, and what that gained: python benchmarks/before_after.py [--only encode|products|bfloat16|cache|bootstrap] [--json FILE]

The other way stands here as the baseline, and runs beside the code as it is, on the same data, in turns; both must give the same result.
For the cache and the bootstrap the other way is the code as it was; for encoding it is plain SentenceTransformer.encode at batch 32; for the
products it is PyTorch's own choice of library and kernel. For each part the time is split into its steps too, since that is what says where to look: for encoding by PyTorch's profiler, in operators.

encode     batches of 32 passages, sorted by length and filled up to the longest, against batches of fixed shapes of about 1,024 tokens: small ones stay in the processor's cache;
           with the quicker products of the next part, where the processor has them.
products   the same batches in float32, with PyTorch's choice of library, against the ways of eci_sem.products: products by oneDNN with weights packed once a call.
bfloat16   the same in bfloat16, where attention is made otherwise too; vectors may differ by bfloat16's rounding.
           Neither applies where the processor has no quicker way.
cache      one look-up, one checksum and one copy per record, against portions of 1,024 records.
bootstrap  each resample formed by itself, scattered into a matrix and factorised by numpy, against many formed per reading of the blocks
           and factorised where LAPACK unpacks them.

A claim is that the change still gains. Both ways are timed turn by turn, and the number is the lower end of the gain: of 9 turns the second least
ratio, which is above the true median once in 50 times; of fewer than 5 the least. At 1 or below, a gain is not shown, and the claim fails.
The exit status is 1 if one fails, or if a result differs.
"""
import argparse
import hashlib
import sys
import tempfile
import zlib
from math import comb
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import claim, finish, machine, options, timed

CRC_OF_WHOLE = 0x2144DF1C


def turns(before: Any, after: Any, runs: int) -> tuple[dict[str, Any], Any, Any]:
    "Best seconds of both, the gain of each turn, and their results."
    a, b = [], []
    for _ in range(runs):
        s, x = timed(before); a.append(s)
        s, y = timed(after); b.append(s)
    return dict(before=min(a), after=min(b), turns=[s / t for s, t in zip(a, b)]), x, y

def lower_end(ratios: list[float]) -> float:
    "Below the median of such ratios in 19 of 20 times at least, whatever their distribution; of fewer than 5 simply the least."
    n, k, below = len(ratios), -1, 0
    while n >= 5 and (below := below + comb(n, k + 1)) <= 0.05 * 2**n: k += 1
    return sorted(ratios)[max(k, 0)]

# operators of PyTorch by what they do
KINDS = {"matrix products": "addmm mm bmm baddbmm matmul linear mkldnn_linear mkldnn::_linear_pointwise", "attention": "attention softmax", "norms and activations": "layer_norm gelu tanh norm div clamp",
    "copies and gathering": "copy_ cat clone index_select embedding contiguous fill_ pad stack gather", "sums and masks": "add add_ where sum mul bitwise_and masked_fill sub"}

def operators(work: Any) -> dict[str, float]:
    "Seconds of a run by kind of operator, and what is outside of all."
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU]) as watched: seconds, _ = timed(work)
    spent = dict.fromkeys((*KINDS, "other operators"), 0.0)
    for x in watched.key_averages():
        name = x.key.removeprefix("aten::")
        exact = next((k for k, words in KINDS.items() if name in words.split()), None)
        spent[exact or next((k for k in ("attention", "norms and activations") if any(w in name for w in KINDS[k].split() if len(w) > 4)), "other operators")] += x.self_cpu_time_total / 1e6
    return spent | {"outside of operators: word pieces, sorting, Python": max(seconds - sum(spent.values()), 0.0)}

def encode(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from sentence_transformers import SentenceTransformer
    from eci_sem.collection import load_docstrings
    from eci_sem.encoders import embedded_path, load_encoder
    from eci_sem.products import quicker_ways
    corpus = load_docstrings().corpus
    texts = [corpus[i] for i in sorted(corpus)[::max(1, len(corpus) // args.texts)][:args.texts]]
    encoder, model = load_encoder("minilm", cache=False), SentenceTransformer(str(embedded_path("minilm").parent), device="cpu", local_files_only=True)
    def plain(texts: list[str]) -> np.ndarray: return model.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False)
    def ours(texts: list[str]) -> np.ndarray: return encoder.encode_passages(texts, progress=False)
    plain(texts[:4]); ours(texts[:4]) # first calls
    took, x, y = turns(lambda: plain(texts), lambda: ours(texts), args.runs)
    assert np.abs(x - y).max() < 1e-5, "another batch moved a vector"
    steps = [dict(step=step, seconds=s, of=of) for of, way in (("before", plain), ("after", ours)) for step, s in operators(lambda: way(texts)).items()]
    return dict(took, size=f"{len(texts)} passages, minilm, float32", changed="batches of fixed shapes of about 1,024 tokens, instead of 32 passages filled up to the longest" + ", and the next line's products" * any(quicker_ways("float32"))), steps

def products(args: argparse.Namespace, dtype: str = "float32") -> tuple[dict[str, Any], list[dict[str, Any]]] | str:
    from unittest.mock import patch
    from eci_sem.collection import load_docstrings
    from eci_sem.encoders import load_encoder
    from eci_sem.products import Ways, quicker_ways
    ways = quicker_ways(dtype)
    if not any(ways): return f"on this processor PyTorch's own choice is used for {dtype}"
    corpus = load_docstrings().corpus
    texts = [corpus[i] for i in sorted(corpus)[::max(1, len(corpus) // args.texts)][:args.texts]]
    encoder = load_encoder("minilm", dtype=dtype, cache=False)
    def after(texts: list[str] = texts) -> np.ndarray: return encoder.encode_passages(texts, progress=False)
    def before(texts: list[str] = texts) -> np.ndarray: # PyTorch as it is
        with patch("eci_sem.products.quicker_ways", lambda *of: Ways()): return after(texts)
    before(texts[:4]); after(texts[:4]) # first calls
    took, x, y = turns(before, after, args.runs)
    assert np.abs(x - y).max() < (1e-5 if dtype == "float32" else 1e-2), "another library moved a vector"
    steps = [dict(step=step, seconds=s, of=of) for of, way in (("before", before), ("after", after)) for step, s in operators(way).items()]
    changed = " and ".join(["products by oneDNN with weights packed once a call"] * ways.products + ["attention as two batched products and a softmax"] * ways.attention)
    return dict(took, size=f"{len(texts)} passages, minilm, {dtype}", changed=f"{changed}, instead of PyTorch's choice"), steps

def bfloat16(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]] | str: return products(args, "bfloat16")

def cache(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from eci_sem.encoders import EmbeddingCache
    n, d = args.vectors, 384
    keys = [hashlib.sha256(str(i).encode()).digest()[:16] for i in range(n)]
    vectors = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    with tempfile.TemporaryDirectory() as tmp:
        store = EmbeddingCache(Path(tmp, "store"), d)
        store.put(keys, vectors)
        def one_by_one() -> np.ndarray:
            out, size = np.empty((n, d), np.float32), 4 * d
            with store._env.begin(buffers=True) as txn:
                for i, key in enumerate(keys):
                    record = txn.get(key)
                    if record is None or len(record) != size + 4 or zlib.crc32(record[:size]) != int.from_bytes(record[size:], "little"): continue
                    out[i] = np.frombuffer(record[:size], np.float32)
            return out
        took, x, y = turns(one_by_one, lambda: store.get(keys)[0], args.reads)
        assert (x == vectors).all() and (y == vectors).all(), "a vector came back changed"
        spent = dict.fromkeys(("look-up", "checksum", "copy"), 0.0)
        with store._env.begin() as txn:
            for at in range(0, n, 1024):
                s, records = timed(lambda: list(map(txn.get, keys[at:at + 1024]))); spent["look-up"] += s
                s, good = timed(lambda: [r for r in records if len(r) == 4 * d + 4 and zlib.crc32(r) == CRC_OF_WHOLE]); spent["checksum"] += s
                s, _ = timed(lambda: np.frombuffer(b"".join(good), np.float32).reshape(len(good), d + 1)[:, :d].copy()); spent["copy"] += s
        store.close()
    return dict(took, size=f"{n:,} vectors of d = {d}", changed="portions of 1,024 records, the checksum over record and sum at once, one copy a portion"), [dict(step=k, seconds=s, of="after") for k, s in spent.items()]

def bootstrap(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from eci_sem.bootstrap import _log_det, _Packed, _workers, resample_counts
    n, d, blocks, resamples = args.queries, args.dim, args.blocks, args.resamples
    rows = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32) * np.float32(0.05)
    unit, counts = np.arange(n) % blocks, resample_counts(blocks, resamples, 0)
    store = _Packed(lambda index: [rows[index].astype(float)], 1, d, unit, np.bincount(unit), 1.0)
    (base, P), u = store._of(0), counts / (counts @ store.size)[:, None] - 1 / store.size.sum()
    size, upper = int(np.clip(8e6 // d**2, 1, 256)), np.triu_indices(d)
    def formed(start: int) -> np.ndarray: return u[start:start + size] @ P
    def scattered(packed: np.ndarray) -> np.ndarray:
        A = np.zeros((len(packed), d, d))
        A[:, upper[1], upper[0]] = packed
        A[:, range(d), range(d)] += 1
        return A
    def factorised(A: np.ndarray) -> np.ndarray: return 2 * np.log(np.linalg.cholesky(A).diagonal(axis1=1, axis2=2)).sum(1)
    def one_by_one() -> np.ndarray:
        with _workers() as pool: return base + np.concatenate(list(pool.map(lambda i: factorised(scattered(formed(i))), range(0, resamples, size))))
    took, x, y = turns(one_by_one, lambda: store.exact(0, counts), args.runs)
    assert np.allclose(x, y, rtol=1e-10), "the scores of the resamples changed"
    from scipy.linalg.lapack import dtpttr
    def in_place(packed: np.ndarray) -> list[float]:
        out = []
        for row in packed:
            A = dtpttr(d, row, uplo="L")[0].T
            A.flat[::d + 1] += 1
            out.append(_log_det(A))
        return out
    few = min(resamples, 64) # one thread, so that steps add up
    with _workers() as pool:
        def split() -> list[dict[str, Any]]:
            a, packed = timed(lambda: np.concatenate([formed(i) for i in range(0, few, size)])[:few])
            b, A = timed(lambda: scattered(packed[:size]))
            c, _ = timed(lambda: factorised(A))
            e, _ = timed(lambda: u[:few] @ P)
            f, _ = timed(lambda: in_place(packed))
            k = min(size, few)
            return [dict(step="form, a resample", seconds=a / few, of="before"), dict(step="scatter, a resample", seconds=b / k, of="before"), dict(step="factorise, a resample", seconds=c / k, of="before"),
                dict(step="form, a resample", seconds=e / few, of="after"), dict(step="unpack and factorise, a resample", seconds=f / few, of="after")]
        steps = split()
    return dict(took, size=f"{resamples} resamples of {n:,} queries in {blocks} blocks, d = {d}", changed="many resamples formed per reading of the packed blocks; LAPACK unpacks and factorises in one place"), steps

PARTS = dict(encode=encode, products=products, bfloat16=bfloat16, cache=cache, bootstrap=bootstrap)


def main() -> int:
    args = options(__doc__, PARTS, texts=(150, "passages to encode"), vectors=(100_000, "vectors to read"), reads=(9, "turns of reading them"), queries=(20_000, "queries of the bootstrap"), dim=(768, "their dimension"), blocks=(256, "their blocks"), resamples=(200, "resamples"), runs=(3, "turns of the other parts")).parse_args()
    about, claims, profile, steps = machine(), [], [], []
    for name, part in PARTS.items():
        if args.only not in (None, name): continue
        found = part(args)
        if isinstance(found, str):
            claims.append(claim(f"{name}, before over after", float("nan"), 1.0, False, "not measured", "times", unless=found))
            continue
        found, split = found
        ratios = found.pop("turns")
        low = lower_end(ratios)
        profile.append(dict(part=name, **found, gain=float(np.median(ratios)), gain_lower=low, turns=len(ratios)))
        steps += [dict(part=name, **s) for s in split]
        claims.append(claim(f"{name}, before over after", low, 1.0, False, f"lower end of {len(ratios)} turns, {min(ratios):.2f} to {max(ratios):.2f}, median {np.median(ratios):.2f}; {found['size']}: best {found['before']:.2f} s before, {found['after']:.2f} s after; {found['changed']}; equal results", "times"))
        for s in split: print(f"      {s['of']}: {s['step']} {s['seconds']:.4g} s", flush=True)
    return finish(dict(machine=about, claims=claims, profile=profile, steps=steps), args.json)


if __name__ == "__main__": sys.exit(main())
