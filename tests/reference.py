"""The plain slow truth of every clever thing: each is a few lines that can be checked by eye."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from smalti.core.rng import gumbel
from smalti.generation.code_sampler import Sampler
from smalti.prior import NoCache, Prior, Window


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


def placement(i: int, N: int, n: int, *, half: int | None = None) -> int:
    """The original's rule as its scripts write it (n is 16 there); an odd window has its larger part after the code.

    `half` is n // 2 where it is not given, the place of the code in a window that stands freely.
    """
    half = n // 2 if half is None else half
    if i <= half:
        return i
    if N - i < n - half:
        return n - (N - i)
    return half


def earliest(missing: Tensor, window: tuple[int, int], *, middle: Callable[[int], int]) -> list[list[int]]:
    """Where codes are asked for (H, W) -> the first step in which each can be laid, 0 where none is asked for.

    Every code that the window shows before the code, row by row, must be laid in a step before.
    """
    (H, W), (h, w) = missing.shape, window
    steps = [[0] * W for _ in range(H)]
    for i in range(H):
        for j in range(W):
            top = i - placement(i, H, h, half=middle(h))
            left = j - placement(j, W, w, half=middle(w))
            shown = [(a, b) for a in range(top, top + h) for b in range(left, left + w) if (a, b) < (i, j)]
            if missing[i, j]:
                steps[i][j] = 1 + max((steps[a][b] for a, b in shown), default=0)
    return steps


def surviving(logits: Sequence[float], *, top_k: int, top_p: float, min_p: float = 0.0) -> set[int]:
    """Codes left by top-k, then top-p, then min-p, one after the other."""
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
    return {code for code in kept if math.exp(logits[code] - logits[order[0]]) >= min_p}


@torch.no_grad()
def sampled(
    prior: Prior,
    prefix: Tensor | Callable[[Window], Tensor],
    known: Tensor,
    *,
    sampler: Sampler,
    seed: int,
    middle: Callable[[int], int] = lambda n: n // 2,
) -> Tensor:
    """One image, prefix (P,) or one for each window, and known (h, w) -> codes (h, w), without cache or batch.

    For every code the whole window goes through the prior, with filler where nothing is laid yet.
    """
    codes, (height, width) = known.clone(), known.shape
    rows, columns = min(height, prior.grid[0]), min(width, prior.grid[1])
    order, places = (
        prior.sequence_order(grid, device=known.device).tolist() for grid in ((rows, columns), (height, width))
    )
    for step, place in enumerate(places):
        i, j = divmod(place, width)
        done = step / (height * width - 1) if step else 0.0  # 0 at the first code, 1 at the last
        shares = {"constant": 1.0, "linear": done, "cosine": 0.5 - 0.5 * math.cos(math.pi * done)}
        scale = 1 + (sampler.guidance - 1) * shares[sampler.guidance_schedule]
        if known[i, j] >= 0:
            continue
        local_i = placement(i, height, rows, half=middle(rows))
        local_j = placement(j, width, columns, half=middle(columns))
        window = Window(i - local_i, j - local_j, rows, columns)
        inside = codes[window.top : window.top + rows, window.left : window.left + columns].clamp(min=0).reshape(1, -1)
        turn = order.index(local_i * columns + local_j)

        def logits_with(start: Tensor, inside: Tensor = inside, turn: int = turn) -> Tensor:
            sequence = prior.join(start[None], inside[:, order])[:, :-1]
            logits: Tensor = prior(sequence, cache=NoCache(columns=columns))
            return logits[0, prior.prefix_length - 1 + turn, : prior.size]

        logits = scale * logits_with(prefix if isinstance(prefix, Tensor) else prefix(window))
        if sampler.guidance != 1:
            logits = logits + (1 - scale) * logits_with(prior.null_prefix(1)[0])
        if sampler.temperature == 0:
            codes[i, j] = logits.argmax()
            continue
        logits = logits / sampler.temperature
        kept = surviving(logits.tolist(), top_k=sampler.top_k, top_p=sampler.top_p, min_p=sampler.min_p)
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
    (reconstruction_gradient,) = torch.autograd.grad(nll, last_layer, retain_graph=True)
    (adversarial_gradient,) = torch.autograd.grad(generator, last_layer, retain_graph=True)
    adaptive = (reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-4)).clamp(0.0, limit)
    return torch.autograd.grad(nll + weight * adaptive * generator, parameters)


def turned(feature: Tensor, code: Tensor, gradient: Tensor) -> Tensor:
    """The rotation trick for one vector (D,): lambda R^T gradient, with R put together in the plane of feature and
    code."""
    e, q = feature / feature.norm(), code / code.norm()
    cosine = e @ q
    aside = (q - cosine * e) / (q - cosine * e).norm()  # with e an orthonormal base of the plane
    sine = aside @ q
    plane = torch.stack([e, aside], 1)
    turn = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    R = torch.eye(len(e)) - plane @ plane.T + plane @ turn @ plane.T
    turned_back: Tensor = (code.norm() / feature.norm()) * R.T @ gradient
    return turned_back


def moving_average(
    codebook: Tensor, steps: Sequence[tuple[Tensor, Tensor]], *, memory: float, smoothing: float
) -> Tensor:
    """Appendix A.1 of VQ-VAE: steps of vectors (N, D) and their codes (N,) -> the codebook (K, D), from running sums
    and counts.

    The first counts are those of a step in which each code is taken equally often; `smoothing` is a fraction of them.
    """
    K = len(codebook)
    start = len(steps[0][1]) / K
    sums, counts = [start * code for code in codebook], [start] * K
    for vectors, codes in steps:
        for k in range(K):
            mine = vectors[codes == k]
            counts[k] = memory * counts[k] + (1 - memory) * len(mine)
            sums[k] = memory * sums[k] + (1 - memory) * mine.sum(0)
    total = sum(counts)
    smooth = [(count + smoothing * start) / (total + K * smoothing * start) * total for count in counts]
    return torch.stack([m / n for m, n in zip(sums, smooth, strict=True)])


def code_probabilities(features: Tensor, corners: Tensor, *, temperature: float) -> Tensor:
    """features (N, D), all K codes' vectors (K, D) -> (N, K): softmax(-|feature - code|^2 / temperature)."""
    return (-(features[:, None] - corners[None]).square().sum(2) / temperature).softmax(1)


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    """x (B,C,H,W), weight (K,C,3,3) -> (B,K,H,W): stride 1, one pixel of zeros around, one product of shifted images
    each."""
    B, C, H, W = x.shape
    padded = x.new_zeros(B, C, H + 2, W + 2)
    padded[:, :, 1:-1, 1:-1] = x
    out = x.new_zeros(B, len(weight), H, W)
    for i in range(3):
        for j in range(3):
            out += torch.einsum("bchw,kc->bkhw", padded[:, :, i : i + H, j : j + W], weight[:, :, i, j])
    return out


def perceptual_of_map(target: Tensor, features: Tensor, weight: Tensor) -> Tensor:
    """One feature map of LPIPS (its Eq. 1), raw on both sides: (B,D,h,w) twice, weight (D,) -> (B,)."""
    a, b = (each / (each.square().sum(1, keepdim=True).sqrt() + 1e-10) for each in (target, features))
    return ((a - b).square() * weight.view(-1, 1, 1)).sum(1).mean((1, 2))


def gradient_penalty(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """R1 of each image by itself: |gradient of the sum of its logits|^2 / their number, and the mean over images."""
    penalties = []
    for image in images:
        alone = image[None].detach().requires_grad_()
        logits = discriminator(alone)
        (gradient,) = torch.autograd.grad(logits.sum(), alone)
        penalties.append(float(gradient.square().sum()) / logits.numel())
    return sum(penalties) / len(penalties)


def first_reached(
    points: Sequence[dict[str, float]], score: str, *, target: float, lower_is_better: bool
) -> float | None:
    """Points of a curve -> the second at which it first is as good as the target: looked for in steps of a
    thousandth."""

    def good(value: float) -> bool:
        return value <= target + 1e-9 if lower_is_better else value >= target - 1e-9

    if good(points[0][score]):
        return points[0]["seconds"]
    for before, after in pairwise(points):
        for step in range(3001):
            share = step / 3000
            if good(before[score] + share * (after[score] - before[score])):
                return before["seconds"] + share * (after["seconds"] - before["seconds"])
    return None


def nearest_colors(images: Tensor, colors: Tensor) -> Tensor:
    """Images (B,3,H,W), colors (K,3) -> for each pixel the color that is nearest: (B,H,W)."""
    B, _, H, W = images.shape
    codes = torch.zeros(B, H, W, dtype=torch.int64)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                codes[b, i, j] = (colors - images[b, :, i, j]).square().sum(1).argmin()
    return codes


def upsampled(x: Tensor, weight: Tensor) -> Tensor:
    """(B,C,H,W), kernel (O,C,3,3) -> (B,O,2H,2W): repeated 2x2, then convolved, as it is written."""
    return F.conv2d(x.repeat_interleave(2, 2).repeat_interleave(2, 3), weight, padding=1)


def one_hot(labels: Tensor, channels: int) -> Tensor:
    """Labels (B,H,W) -> (B,channels,H,W): 1 where the label is the channel's number, else 0."""
    B, H, W = labels.shape
    maps = torch.zeros(B, channels, H, W)
    for b in range(B):
        for i in range(H):
            for j in range(W):
                maps[b, int(labels[b, i, j]), i, j] = 1
    return maps


@torch.no_grad()
def sampled_whole(prior: Prior, prefix: Tensor, empty: Tensor, known: Tensor, *, sampler: Sampler, seed: int) -> Tensor:
    """One image of a prior that reads grids of any size whole: prefixes (P,), known (h, w) -> codes (h, w).

    For every code the whole grid goes through the prior, with filler where nothing is laid yet.
    """
    codes, (height, width) = known.clone(), known.shape
    for place in range(height * width):
        i, j = divmod(place, width)
        if known[i, j] >= 0:
            continue
        both = []
        for start in (prefix, empty):
            sequence = prior.join(start[None], codes.clamp(min=0).reshape(1, -1))[:, :-1]
            both.append(prior(sequence, cache=NoCache(columns=width))[0, len(start) - 1 + place])
        logits = both[1] + sampler.guidance * (both[0] - both[1])
        noise = gumbel(torch.tensor([seed]), prior.size, rows=torch.tensor([i]), columns=torch.tensor([j]))[0]
        codes[i, j] = (logits / sampler.temperature + noise).argmax()
    return codes


def speculative(
    prior: Prior,
    prefix: Callable[[Window], Tensor],
    grid: tuple[int, int],
    *,
    sampler: Sampler,
    seeds: Sequence[int],
    count: int,
) -> tuple[Tensor, int]:
    """Prefixes (B, P), as many seeds -> codes (B, h, w) in raster order, `count` guessed at once, and how many calls it
    took.

    A call answers for the place after each code it is told. Answers count up to the first guess that is wrong in any
    image, and those after it are guesses of the next call; the other guesses repeat the code before.
    """
    total, calls = grid[0] * grid[1], 0
    generated: list[list[int]] = [[] for _ in seeds]
    answers: list[list[int]] = [[] for _ in seeds]

    def answered(item: int, context: list[int]) -> int:
        codes = torch.tensor(context + [-1] + [0] * (total - len(context) - 1)).view(grid)
        alone = sampled(prior, lambda window: prefix(window)[item], codes, sampler=sampler, seed=seeds[item])
        return int(alone.flatten()[len(context)])

    while (done := len(generated[0])) < total:
        ahead = min(count, total - done - 1) if calls else 0
        right, calls = ahead, calls + 1
        for item, proposals in enumerate(answers):
            while len(proposals) < ahead:
                proposals.append((generated[item] + proposals)[-1])
            context = generated[item] + proposals
            answers[item] = [answered(item, context[:place]) for place in range(done, done + ahead + 1)]
            right = min([right, *(place for place in range(ahead) if answers[item][place] != proposals[place])])
        for item, given in enumerate(answers):
            generated[item] += given[: right + 1]
            answers[item] = given[right + 1 :]
    return torch.tensor(generated).view(len(seeds), *grid), calls


def feature_distance(targets: list[Tensor], features: list[Tensor]) -> Tensor:
    """The distance on EfficientNet's maps by its definition, position by position -> (B,)."""
    total = torch.zeros(len(targets[0]))
    for a, b in zip(targets, features, strict=True):
        for image in range(len(a)):
            differences = []
            for row in range(a.shape[2]):
                for column in range(a.shape[3]):
                    u, v = (each[image, :, row, column] for each in (a, b))
                    u, v = (each / (each.square().mean() + 1e-6).sqrt() for each in (u, v))
                    differences.append((u - v).abs().mean())
            total[image] += torch.stack(differences).mean() / len(targets)
    return total


def neighbor_codes(latents: Tensor, count: int) -> list[list[int]]:
    """Latents (K,D) of all codes -> for each code the `count` nearest others, of equally far ones the smaller first."""
    found = []
    for code in range(len(latents)):
        distances = [(float((latents[code] - latents[other]).norm()), other) for other in range(len(latents))]
        found.append([other for _, other in sorted(distances) if other != code][:count])
    return found


def replace_codes(codes: Tensor, neighbors: list[list[int]], random_numbers: Tensor, *, probability: float) -> Tensor:
    """Codes (B,h,w) and two random numbers for each (B,h,w,2): whether it is replaced, and by which of its
    neighbors."""
    replaced = codes.clone()
    for place in torch.cartesian_prod(*(torch.arange(side) for side in codes.shape)).tolist():
        whether, which = random_numbers[tuple(place)].tolist()
        near = neighbors[int(codes[tuple(place)])]
        if whether < probability:
            replaced[tuple(place)] = near[math.floor(which * len(near))]
    return replaced


def second_nearest(
    identities: npt.NDArray[np.int16], depths: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float32]]:
    """Whose each point of a painted grid (2 H, 2 W) is, and how far it is -> the same of each pixel (H, W).

    Things are numbered from far to near; of a pixel's four points that with the second largest number counts, and of
    equal ones that which comes later in rows.
    """
    height, width = (side // 2 for side in identities.shape)
    identity, depth = np.empty((height, width), identities.dtype), np.empty((height, width), depths.dtype)
    for y in range(height):
        for x in range(width):
            four = [(2 * y + down, 2 * x + across) for down in (0, 1) for across in (0, 1)]
            place = sorted(four, key=lambda point: identities[point])[2]
            identity[y, x], depth[y, x] = identities[place], depths[place]
    return identity, depth


def between_four(tile: npt.NDArray[np.float32], row: float, column: float) -> float:
    """A periodic tile (side, side) and a place on it, in tiles -> its value there, between the four points around."""
    side = len(tile)
    y, x = row * side - 0.5, column * side - 0.5
    top, left = math.floor(y), math.floor(x)
    down, across = y - top, x - left
    rows = [
        (1 - across) * float(tile[i % side, left % side]) + across * float(tile[i % side, (left + 1) % side])
        for i in (top, top + 1)
    ]
    return (1 - down) * rows[0] + down * rows[1]
