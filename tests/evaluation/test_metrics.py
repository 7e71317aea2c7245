"""Numbers about images and codes, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from smalti.evaluation.metrics import CodeUse, levels, psnr

LEVEL = 2 / 255
"""One of 256 levels, in [-1, 1]."""


def grays(level: float) -> torch.Tensor:
    """An image (1, 3, 4, 5) of one 8-bit level."""
    return torch.full((1, 3, 4, 5), level * LEVEL - 1)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (100, 100, 100.0),
        (100, 101, 20 * math.log10(255)),
        (0, 255, 0.0),
        (10, 61, 20 * math.log10(5)),
        (100, 100.4, 100.0),  # the same when rounded to 8 bits
        (255, 300, 100.0),  # and when clamped
        (-40, 0, 100.0),
    ],
)
def test_psnr_of_even_images(a: float, b: float, expected: float) -> None:
    assert psnr(grays(a), grays(b)).item() == pytest.approx(expected, abs=1e-4)
    assert psnr(grays(b), grays(a)).item() == pytest.approx(expected, abs=1e-4)


def test_psnr_is_of_each_image() -> None:
    images = torch.cat((grays(10), grays(20), grays(30)))
    others = torch.cat((grays(10), grays(22), grays(31)))
    found = psnr(images, others)
    assert found.shape == (3,)
    assert found.tolist() == pytest.approx([100.0, 20 * math.log10(255 / 2), 20 * math.log10(255)], abs=1e-3)


def test_psnr_is_of_the_mean_square_error() -> None:
    """One of sixty numbers is wrong by 30 levels: mean square 15."""
    other = grays(100).clone()
    other[0, 1, 2, 3] += 30 * LEVEL
    assert psnr(grays(100), other).item() == pytest.approx(10 * math.log10(255**2 / 15), abs=1e-4)


def test_code_use_is_counted_as_codes_come_by() -> None:
    use = CodeUse(8)
    assert (use.in_use, use.entropy, use.perplexity) == (0.0, 0.0, 1.0)
    use.add(torch.tensor([[[3, 3], [3, 3]]]))
    assert use.counts.tolist() == [0, 0, 0, 4, 0, 0, 0, 0]
    assert (use.in_use, use.entropy, use.perplexity) == (1 / 8, 0.0, 1.0)
    use.add(torch.tensor([0, 0, 7, 7]))
    assert use.counts.tolist() == [2, 0, 0, 4, 0, 0, 0, 2]
    assert use.in_use == 3 / 8
    assert use.entropy == pytest.approx(1.5 * math.log(2))
    assert use.perplexity == pytest.approx(2**1.5)
    use.add(torch.tensor([], dtype=torch.int64))
    assert use.counts.sum() == 8


@pytest.mark.parametrize("size", [2, 16, 1024])
def test_even_use_has_the_perplexity_of_the_size(size: int) -> None:
    use = CodeUse(size)
    use.add(torch.arange(size).repeat(3))
    assert use.in_use == 1.0
    assert use.perplexity == pytest.approx(size, rel=1e-5)


def test_counts_of_processes_add_up() -> None:
    codes = torch.arange(40).reshape(2, 20) // 6
    alone, parts = CodeUse(8), [CodeUse(8), CodeUse(8)]
    alone.add(codes)
    for part, own in zip(parts, codes, strict=True):
        part.add(own)
    gathered = CodeUse(8)
    gathered.merge_gathered({"counts": torch.stack([part.state()["counts"] for part in parts])})
    assert gathered.counts.tolist() == alone.counts.tolist()
    before = parts[1].state()
    parts[0].merge(parts[1])
    assert parts[0].counts.tolist() == alone.counts.tolist()
    parts[1].add(codes)
    assert before["counts"].tolist() != parts[1].counts.tolist()  # a state is a copy


def test_levels_are_those_of_a_saved_file() -> None:
    given = torch.tensor([-1.0, 1.0, 0.0, 3.0, -3.0, float("nan"), float("inf"), 0.4 * LEVEL - 1, 0.6 * LEVEL - 1])
    assert levels(given).tolist() == [0, 255, 128, 255, 0, 0, 255, 0, 1]
    assert levels(given.bfloat16()).dtype == torch.float32
