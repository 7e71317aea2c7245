"""What the figures of the experiment `reconstruction` say, and what they do not, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from smalti.experiments.page_parts import not_measured
from smalti.experiments.tokenizer_comparison import LPIPS, Compared, difference, measured_on, spread


def findings(compared: Sequence[Compared], best: Compared, *, grid: bool) -> str:
    """What can be said from the figures. `grid`: they differ in f and K alone."""
    sentences = [
        f"By PSNR, {best.name} ({best.kind}) keeps most: {best.scores['psnr']:.2f} dB at "
        f"{best.outcome['bits_per_image']:,.0f} bits per image, {best.outcome['bits_per_pixel']:.3g} a "
        "pixel where the image "
        f"itself has {8 * best.outcome['channels']}."
    ]
    least = compared[0]
    share = least.outcome["bits_per_image"] / best.outcome["bits_per_image"]
    if share < 1:
        loss = best.scores["psnr"] - least.scores["psnr"]
        sentences.append(
            f"{least.name} ({least.kind}) makes do with {least.outcome['bits_per_image']:,.0f} bits, "
            f"{share:.0%} of that, and "
            f"gives up {loss:.2f} dB for it."
        )
    rivals = [one for one in compared if one is not best]
    if rivals:
        next_best = max(rivals, key=lambda one: one.scores["psnr"])
        gain = difference(best.columns["psnr"], next_best.columns["psnr"])
        sentences.append(
            f"Image by image, {best.name} is {spread(gain)} dB above the next best, {next_best.name}, and "
            "above it on "
            f"{gain.above} of {gain.images} images."
        )
        if abs(gain.mean) < 2 * gain.error:
            sentences.append("That is within two standard errors: on these images the two do not differ significantly.")
    measured = [one for one in compared if LPIPS in one.scores]
    if len(measured) > 1:
        nearest = min(measured, key=lambda one: one.scores[LPIPS])
        agrees = "agrees" if nearest is best else f"prefers {nearest.name}"
        sentences.append(
            f"LPIPS, which follows what people see more closely than PSNR, {agrees} ({nearest.scores[LPIPS]:.3f})."
        )
    return " ".join(sentences) + (f"\n\n{_steps_up(compared)}" if grid else "")


def _steps_up(compared: Sequence[Compared]) -> str:
    """What a smaller f and a larger K bring where all else is equal, in sentences."""
    by_kind = {(one.outcome["factor"], one.outcome["codes"]): one for one in compared}
    factors, sizes = sorted({f for f, _ in by_kind}), sorted({K for _, K in by_kind})
    sentences = []
    for what, pairs in (
        ("f", [((large, K), (small, K)) for small, large in pairwise(factors) for K in sizes]),
        ("K", [((f, small), (f, large)) for small, large in pairwise(sizes) for f in factors]),
    ):
        found = [(by_kind[a], by_kind[b]) for a, b in pairs if a in by_kind and b in by_kind]
        if found:
            gains = [b.scores["psnr"] - a.scores["psnr"] for a, b in found]
            bits = [b.outcome["bits_per_image"] / a.outcome["bits_per_image"] for a, b in found]
            change = "the next smaller f" if what == "f" else "the next larger K"
            sentences.append(f"{change} brings {_range(gains, '.2f')} dB for {_range(bits, '.3g')} times the bits")
    return (
        f"Where f alone differs (and the levels of the network with it), or K alone, {'; '.join(sentences)}."
        if sentences
        else ""
    )


def _range(values: Sequence[float], digits: str) -> str:
    low, high = (f"{value:{digits}}".replace("-", "\u2212") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def limitations(best: Compared, *, trained: bool) -> str:
    """What must not be concluded."""
    count = measured_on(best)
    sentences = [
        "PSNR and SSIM reward images that are blurred rather than wrong; look at the details below before "
        "believing them.",
        "Bits are those of codes written one by one with log2 K each, not what a prior would need for "
        "them: a tokenizer with "
        "more codes an image also leaves more to be learned in stage 2, which is not measured here.",
    ]
    if trained:
        sentences.append(
            "Each tokenizer was trained once, with one seed, for the same number of images, which suits some "
            "better than "
            "others: the figures compare these trainings, not what f and K can reach."
        )
    else:
        sentences.append(
            "The tokenizers were given: what they learned from is not known here, perhaps some of these very "
            "images, and more "
            "than f and K may differ between them."
        )
    if count < 2048:
        sentences.append(f"A Frechet distance over {count:,} images is biased and noisy; it ranks, at best.")
    return " ".join([*sentences, *not_measured(best)])
