"""smalti.core.rng: the generator's published numbers, and noise that belongs to a place."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smalti.core.rng import gumbel, philox, standard_gumbel
from tests import reference

WORD = st.integers(0, 2**32 - 1)
# Known answers of the Random123 library, file kat_vectors, for philox4x32 with 10 rounds.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_the_published_numbers(counter: str, key: str, answer: str) -> None:
    assert philox(torch.tensor(words(counter)), torch.tensor(words(key))).tolist() == words(answer)
    assert reference.philox(words(counter), words(key)) == words(answer)


@settings(max_examples=25)
@given(st.lists(st.tuples(WORD, WORD, WORD, WORD, WORD, WORD), min_size=1, max_size=5))
def test_a_tensor_of_counters_is_each_counter_alone(cases: list[tuple[int, ...]]) -> None:
    table = torch.tensor(cases).T
    assert philox(table[:4], table[4:]).T.tolist() == [reference.philox(case[:4], case[4:]) for case in cases]


@settings(max_examples=25)
@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 9))
@example(3288, 0, 435, 8)  # a number within 2e-5 of one
def test_noise_is_the_slow_truth(seed: int, row: int, column: int, size: int) -> None:
    noise = gumbel(torch.tensor([seed]), size, rows=torch.tensor([row]), columns=torch.tensor([column]))
    truth = torch.tensor([[reference.gumbel_number(seed, row, column, code) for code in range(size)]])
    assert noise.dtype == torch.float32
    # Where the uniform number comes near one, floats are coarse, and two logarithms magnify what they leave out.
    unlikely = (-truth).exp()
    allowed = 2e-6 * (1 + truth.abs()) + 2**-24 * unlikely.exp() / unlikely
    assert ((noise - truth).abs() <= allowed).all()


def test_noise_depends_on_nothing_but_seed_and_place() -> None:
    seeds, rows, columns = torch.tensor([7, 7, 8, 7, 2**40 + 7]), torch.tensor([0, 1, 1, 1, 1]), torch.arange(5) // 3
    together = gumbel(seeds, 33, rows=rows, columns=columns)
    for item in range(5):
        alone = gumbel(seeds[[item]], 33, rows=rows[[item]], columns=columns[[item]])
        assert torch.equal(alone[0], together[item])
    assert torch.equal(gumbel(seeds, 10, rows=rows, columns=columns), together[:, :10]), "the size changed the numbers"
    assert len(set(together.flatten().tolist())) == together.numel(), "two places share a number"


def test_rows_are_not_columns() -> None:
    one, two = torch.tensor([1]), torch.tensor([2])
    assert not torch.equal(gumbel(one, 8, rows=one, columns=two), gumbel(one, 8, rows=two, columns=one))


def test_noise_has_the_moments_of_the_standard_gumbel_distribution() -> None:
    places = torch.arange(400)
    noise = gumbel(torch.zeros_like(places), 500, rows=places // 20, columns=places % 20).double()
    assert abs(noise.mean() - 0.5772) < 4 * math.sqrt(math.pi**2 / 6 / noise.numel())
    assert abs(noise.var() - math.pi**2 / 6) < 0.03
    assert abs(torch.corrcoef(noise[:, :2].T)[0, 1]) < 0.2


def test_the_largest_noise_draws_from_the_softmax() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    places = torch.arange(20000)
    noise = gumbel(torch.full_like(places, 3), 4, rows=places // 100, columns=places % 100)
    counts = (probabilities.log() + noise).argmax(dim=1).bincount(minlength=4)
    torch.testing.assert_close(counts / len(places), probabilities, atol=0.015, rtol=0)


def test_every_word_gives_a_finite_number_and_larger_words_smaller_ones() -> None:
    extremes = torch.tensor([0, 1, 2**31, 2**32 - 2**8, 2**32 - 1])
    noise = standard_gumbel(extremes)
    assert noise.isfinite().all()
    assert noise[0] > 22.8
    assert noise.diff().le(0).all()
    assert noise[-1] < -2.8
