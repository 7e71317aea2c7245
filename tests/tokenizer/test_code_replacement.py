"""Near codes and their replacement: the slow truth, every quantizer, any cut into pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.core.settings import parse
from smalti.tokenizer import code_replacement
from smalti.tokenizer.code_replacement import draw_random_numbers, neighbor_codes, replace_codes
from smalti.tokenizer.quantizers import QUANTIZERS, Quantizer
from smalti.tokenizer.vqgan import VQGANSettings
from tests import reference

SETTINGS: dict[str, dict[str, Any]] = {
    "vq": {"codebook_size": 50, "codebook_dim": 4},
    "vq plain": {"name": "vq", "codebook_size": 50, "codebook_dim": 20, "l2_normalize": False},
    "vq remapped": {"name": "vq", "codebook_size": 50, "codebook_dim": 4, "remap": {"used": 30}},
    "vq extra": {"name": "vq", "codebook_size": 50, "codebook_dim": 4, "remap": {"used": 30, "unknown": "extra"}},
    "ema": {"codebook_size": 50, "codebook_dim": 4},
    "simvq": {"codebook_size": 50, "codebook_dim": 4},
    "gumbel": {"codebook_size": 50, "codebook_dim": 4},
    "gumbel remapped": {"name": "gumbel", "codebook_size": 50, "codebook_dim": 4, "remap": {"used": 30}},
    "fsq": {"levels": [5, 3, 4]},
    "lfq": {"codebook_dim": 6},
}


def quantizer(name: str) -> Quantizer:
    settings = parse(VQGANSettings, {"quantizer": {"name": name, **SETTINGS[name]}}, where="test").quantizer
    torch.manual_seed(0)
    made = QUANTIZERS[settings.name](settings)
    assert made.size == settings.size
    return made


def latents(made: Quantizer) -> Tensor:
    return made.lookup(torch.arange(made.size).view(1, 1, -1))[0, :, 0].T.detach()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_quantizer_is_here() -> None:
    assert {each.split()[0] for each in SETTINGS} == set(QUANTIZERS)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("pieces", [(7, 5), (2048, 2048)])
def test_near_codes_are_those_of_the_slow_search(
    name: str, pieces: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of rounding and signs are mostly equally far: the smaller code comes first, however the search is cut."""
    monkeypatch.setattr(code_replacement, "PIECE_ROWS", pieces[0])
    monkeypatch.setattr(code_replacement, "PIECE_COLUMNS", pieces[1])
    made = quantizer(name)
    for count in (1, 9, made.size - 1):
        found = neighbor_codes(made, count)
        assert found.dtype == torch.int64
        assert found.tolist() == reference.neighbor_codes(latents(made), count)


def test_codes_in_one_place_are_neighbors_of_one_another_and_not_of_themselves() -> None:
    made = quantizer("vq plain")
    with torch.no_grad():
        made.get_parameter("codebook")[10:20] = 1000.0  # far from zero, where squares have lost all small differences
        made.get_parameter("codebook")[20] = 1000.001
    near = neighbor_codes(made, 9)
    for code in range(10, 20):
        assert near[code].tolist() == [other for other in range(10, 20) if other != code]
    assert near[20].tolist() == list(range(10, 19))


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_codes_are_replaced_as_in_the_slow_loop(probability: float) -> None:
    near = neighbor_codes(quantizer("vq"), 7)
    codes = torch.randint(50, (3, 4, 5), generator=seeded(1))
    random_numbers = draw_random_numbers((3, 4, 5), generator=seeded(2))
    before = codes.clone()
    replaced = replace_codes(codes, near, random_numbers, probability=probability)
    assert torch.equal(replaced, reference.replace_codes(codes, near.tolist(), random_numbers, probability=probability))
    assert torch.equal(codes, before)
    assert int((replaced != codes).sum()) == {0.0: 0, 1.0: 60}.get(
        probability, int((random_numbers[..., 0] < 0.3).sum())
    )


@pytest.mark.parametrize("count", [1, 3, 16, 100, 1000003])
def test_the_largest_chance_is_still_of_a_neighbor(count: int) -> None:
    last = torch.arange(count).unsqueeze(0)
    random_numbers = torch.tensor([0.0, 1 - 2**-24]).view(1, 1, 1, 2)
    replaced = replace_codes(torch.zeros(1, 1, 1, dtype=torch.int64), last, random_numbers, probability=1.0)
    assert int(replaced) == count - 1


def test_all_neighbors_are_as_likely() -> None:
    near = neighbor_codes(quantizer("vq"), 4)
    codes = torch.full((1, 100, 100), 7)
    replaced = replace_codes(codes, near, draw_random_numbers((1, 100, 100), generator=seeded(0)), probability=0.5)
    counts = torch.bincount(replaced.flatten(), minlength=50)
    assert int(counts[7]) == pytest.approx(5000, abs=200)
    assert counts[near[7]].tolist() == pytest.approx([1250] * 4, abs=150)


def test_parts_of_a_batch_have_the_chances_of_the_whole() -> None:
    whole, one = draw_random_numbers((6, 3, 5), generator=seeded(4)), seeded(4)
    parts = [draw_random_numbers((count, 3, 5), generator=one) for count in (1, 3, 2)]
    assert torch.equal(torch.cat(parts), whole)
