"""Code tables: codes of the codebook <-> codes outside, alone and within the nearest-code quantizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from smalti.core.settings import parse
from smalti.tokenizer.quantizers import VQ, RemapSettings, VQSettings
from smalti.tokenizer.quantizers.code_table import AllCodes, UsedCodes, code_table

USED = torch.tensor([4, 0, 3])
"""Of a codebook of 6 codes."""


def features(seed: int = 0) -> Tensor:
    """(2,3,8,5), uniform in [-1, 1]."""
    return torch.rand(2, 3, 8, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def used_codes(*, unknown: Any = "random") -> UsedCodes:
    table = code_table(parse(RemapSettings, {"used": 3, "unknown": unknown}, where="test"), codebook_size=6)
    assert isinstance(table, UsedCodes)
    table.load_state_dict({"used": USED})
    return table


def quantizer(**changes: Any) -> VQ:
    """6 codes of 3 numbers; their order in the table is that of `USED`."""
    torch.manual_seed(0)
    made = VQ(
        parse(VQSettings, {"codebook_size": 6, "codebook_dim": 3, "l2_normalize": False, **changes}, where="test")
    )
    with torch.no_grad():
        made.codebook.uniform_(-1, 1)
    if made.settings.remap.used:
        made.get_buffer("table.used").copy_(USED)
    return made


def test_without_a_table_codes_are_themselves() -> None:
    table, codes = code_table(RemapSettings(), codebook_size=5), torch.tensor([[0, 4], [2, 2]])
    assert isinstance(table, AllCodes)
    assert (table.size, table.identity, list(table.state_dict())) == (5, "", [])
    assert torch.equal(table.outside(codes), codes)
    assert torch.equal(table.inside(codes), codes)


@pytest.mark.parametrize(
    ("unknown", "size", "expected"), [("extra", 4, [3, 3, 1]), (2, 3, [2, 2, 1]), (0, 3, [0, 0, 1])]
)
def test_a_table_gives_each_code_its_place(unknown: str | int, size: int, expected: list[int]) -> None:
    table, codes = used_codes(unknown=unknown), torch.tensor([[4, 0, 3], [1, 5, 0]])
    outside = table.outside(codes)
    assert table.size == size
    assert outside.tolist() == [[0, 1, 2], expected]
    assert outside.dtype == torch.int64
    assert table.inside(torch.tensor([[2], [0]])).tolist() == [[3], [4]]
    assert codes.tolist() == [[4, 0, 3], [1, 5, 0]]


def test_the_extra_code_is_read_as_the_first_of_the_table() -> None:
    """The original writes zeros over the extra codes in the tensor that it is given."""
    codes = torch.tensor([[3, 0], [2, 3]])
    assert used_codes(unknown="extra").inside(codes).tolist() == [[4, 4], [3, 4]]
    assert codes.tolist() == [[3, 0], [2, 3]]
    with pytest.raises(IndexError):
        used_codes().inside(codes)


def test_unknown_codes_are_drawn_by_chance() -> None:
    table, codes = used_codes(), torch.tensor([1, 2, 5, 3]).repeat(300)
    torch.manual_seed(0)
    outside = table.outside(codes).view(300, 4)
    assert (outside[:, 3] == 2).all()
    counts = torch.bincount(outside[:, :3].flatten(), minlength=3)
    assert len(counts) == 3
    assert (counts - 300).abs().max() < 75  # 5 standard deviations
    torch.manual_seed(0)
    assert torch.equal(table.outside(codes).view(300, 4), outside)


def test_the_first_place_counts_for_a_code_that_stands_twice() -> None:
    table = used_codes(unknown="extra")
    table.load_state_dict({"used": torch.tensor([4, 0, 4])})
    assert table.outside(torch.arange(6)).tolist() == [1, 3, 3, 3, 0, 3]


def test_a_table_keeps_the_values_of_its_codes() -> None:
    values = torch.arange(24).view(2, 6, 2)
    assert torch.equal(used_codes().select_used(values, dim=1), values[:, USED])


def test_a_table_changes_the_codes_and_nothing_else() -> None:
    plain, made = quantizer(), quantizer(remap={"used": 3, "unknown": "extra"})
    expected, found, relaxed = plain(features()), made(features()), made.bypass(features())
    assert torch.equal(found.latents, expected.latents)
    assert torch.equal(found.loss, expected.loss)
    places = torch.tensor([1, 3, 3, 2, 0, 3])
    assert len(torch.unique(expected.codes)) == 6
    assert torch.equal(found.codes, places[expected.codes])
    assert torch.equal(relaxed.codes, found.codes)
    rows = torch.tensor([4, 0, 3, 4])[found.codes]
    assert torch.equal(made.lookup(found.codes).permute(0, 2, 3, 1), made.codebook[rows])


def test_k_means_places_the_codes_that_are_not_in_the_table_too() -> None:
    made = quantizer(remap={"used": 3})
    before = made.codebook.detach().clone()
    made.init_codebook(features(), generator=torch.Generator().manual_seed(0))
    assert (made.codebook != before).any(1).all()


def test_only_codes_of_the_table_restart() -> None:
    """The others are never shown and always look dead; on a feature they would begin to draw features away."""
    made = quantizer(usage_decay=0.0, remap={"used": 3, "unknown": "extra"})
    before = made.codebook.detach().clone()
    codes = torch.tensor([1, 1, 1, 2]).repeat(20).view(2, 8, 5)
    assert made.update_codebook(features(), codes, generator=torch.Generator().manual_seed(0)) == 1
    assert torch.equal((made.codebook != before).any(1), torch.tensor([False] * 4 + [True, False]))
    torch.testing.assert_close(made.use[USED], torch.tensor([1.0, 2.25, 0.75]))
