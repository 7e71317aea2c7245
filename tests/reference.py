"""The plain slow truth of every clever thing: each is a few lines that can be checked by eye."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from smalti.noise import gumbel
from smalti.prior import ORDERS, NoCache, Prior, Sampler, Window


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox4x32-10 of one counter and one key, in Python's integers (Salmon et al., SC 2011, figure 4)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second % 2**32, (first >> 32) ^ c3 ^ k1, first % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def gumbel_number(seed: int, row: int, column: int, code: int) -> float:
    """One number of the noise, in double precision."""
    word = philox([code // 4, row, column, 0], [seed % 2**32, seed // 2**32])[code % 4]
    return -math.log(-math.log(1 - (word + 0.5) / 2**32))


def placement(i: int, N: int, n: int) -> int:
    """The original's rule as its scripts write it (n is 16 there); an odd window has its larger part after the code."""
    half = n // 2
    if i <= half:
        return i
    if N - i < n - half:
        return n - (N - i)
    return half


def surviving(logits: Sequence[float], *, top_k: int, top_p: float) -> set[int]:
    """Codes left by top-k and then top-p, one after the other."""
    order = sorted(range(len(logits)), key=lambda code: -logits[code])
    if top_k:
        order = [code for code in order if logits[code] >= logits[order[min(top_k, len(order)) - 1]]]
    weights = [math.exp(logits[code] - logits[order[0]]) for code in order]
    kept, mass = set(), 0.0
    for code, weight in zip(order, weights, strict=True):
        kept.add(code)
        mass += weight / sum(weights)
        if top_p < 1 and mass > top_p:
            break
    return kept


@torch.no_grad()
def sampled(
    prior: Prior, prefix: Tensor | Callable[[Window], Tensor], known: Tensor, *, sampler: Sampler, seed: int
) -> Tensor:
    """One picture, prefix (P,) or one for each window, and known (h, w) -> codes (h, w), without cache or batch.

    For every code the whole window goes through the prior, with filler where nothing is laid yet.
    """
    codes, (height, width) = known.clone(), known.shape
    rows, columns = min(height, prior.grid[0]), min(width, prior.grid[1])
    order = ORDERS[prior.order](rows, columns).tolist()
    for i, j in (divmod(place, width) for place in ORDERS[prior.order](height, width).tolist()):
        if known[i, j] >= 0:
            continue
        local_i, local_j = placement(i, height, rows), placement(j, width, columns)
        window = Window(i - local_i, j - local_j, rows, columns)
        inside = codes[window.top : window.top + rows, window.left : window.left + columns].clamp(min=0).reshape(1, -1)
        turn = order.index(local_i * columns + local_j)

        def logits_with(start: Tensor, inside: Tensor = inside, turn: int = turn) -> Tensor:
            sequence = prior.join(start[None], inside[:, order])[:, :-1]
            logits: Tensor = prior(sequence, cache=NoCache(columns=columns))
            return logits[0, prior.prefix - 1 + turn, : prior.size]

        logits = sampler.guidance * logits_with(prefix if isinstance(prefix, Tensor) else prefix(window))
        if sampler.guidance != 1:
            logits = logits + (1 - sampler.guidance) * logits_with(prior.null_prefix(1)[0])
        if sampler.temperature == 0:
            codes[i, j] = logits.argmax()
            continue
        logits = logits / sampler.temperature
        kept = surviving(logits.tolist(), top_k=sampler.top_k, top_p=sampler.top_p)
        noise = gumbel(torch.tensor([seed]), prior.size, rows=torch.tensor([i]), columns=torch.tensor([j]))[0]
        scores = (logits + noise).tolist()
        codes[i, j] = max(kept, key=scores.__getitem__)
    return codes


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """vectors (N, D), codebook (K, D) -> index (N,) of the closest row, from the whole matrix of squared distances."""
    return (vectors[:, None] - codebook[None]).square().sum(2).argmin(1)


def balanced(
    nll: Tensor, generator: Tensor, parameters: Sequence[Tensor], *, last_layer: Tensor, weight: float, limit: float
) -> tuple[Tensor, ...]:
    """Gradients of Eq. 6 with the lambda of Eq. 7, as the original takes them: three times backward from the losses."""
    (toward_data,) = torch.autograd.grad(nll, last_layer, retain_graph=True)
    (toward_real,) = torch.autograd.grad(generator, last_layer, retain_graph=True)
    adaptive = (toward_data.norm() / (toward_real.norm() + 1e-4)).clamp(0.0, limit)
    return torch.autograd.grad(nll + weight * adaptive * generator, parameters)
