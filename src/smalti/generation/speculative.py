"""Guessing ahead: codes that are not laid yet are guessed, and one call of the prior answers for all of them at once.

The noise of a place is known before its code is drawn, and so each code is a function of those before it. What the prior answers
to guesses is a better guess: Jacobi decoding (Santilli et al., arXiv 2305.10427), here for codes that are drawn. A place keeps
its noise from guess to guess, so that they settle early: the Gumbel coupling of So et al., arXiv 2510.24211. All chance is in the
noise, none in what is accepted, and so the codes are those that are laid one by one.

Letters: B batch, K image codes, T codes before the last that is asked for, n codes that are guessed at once, m of one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, final

import torch
from torch import Tensor

from smalti.core.arguments import whole_number
from smalti.core.errors import SmaltiError
from smalti.generation.sliding_window import Laying, UnderWindows
from smalti.generation.wavefront import Place
from smalti.prior.window import Window

Drawn: TypeAlias = Callable[[Sequence[Place], Tensor], Tensor]
"""m places and their logits, (1, m, B, K) or guided (2, m, B, K) -> the codes that these and the places' noise make (m, B)."""


@final
class GuessingAhead(Laying):
    """A window that stands over the whole image: each call reads n codes that are guessed, and answers for n + 1.

    An answer counts as long as all codes before it came out as they were guessed; the first always does. From there on the next
    call goes on, with what the others say as new guesses. In a batch the image that was guessed worst decides.
    """

    def __init__(self, under: UnderWindows, drawn: Drawn, *, count: int) -> None:
        """How the prior would be asked without guesses, how codes are drawn, and how many are guessed at once, n."""
        self.prior, self.drawn, self.count = under.prior, drawn, count
        self.schedule, self.order = under.schedule, under.inside
        self.turns = [place.turn for (place,) in under.schedule]
        self.prefix = torch.cat((under.prefix_at(Window(0, 0, *under.window)), under.empty))
        self.cache = self.prior.empty_cache(window=under.window)
        self.heard = self.prefix[:, :0]  # (B, T), what the last call was told
        self.answers: tuple[Tensor, ...] = ()  # m x (1 or 2, B, K), what it answered
        self.first = 0  # the wave that the first of them belongs to

    def logits(self, codes: Tensor, wave: int) -> Iterator[tuple[Sequence[Place], Tensor]]:
        laid, before = codes.flatten(1)[:, self.order], self.turns[wave]
        answered = wave < self.first + len(self.answers)
        if not answered or not torch.equal(self.heard[:, :before], laid[:, :before]):
            self._ask(laid, wave)
        yield self.schedule[wave], self.answers[wave - self.first][:, None]

    def _ask(self, laid: Tensor, wave: int) -> None:
        """Codes in the prior's order (B, h w), -1 where none is laid -> the answers for a wave, and as far as it is guessed."""
        prior, cache = self.prior, self.cache
        asked = self.turns[wave : wave + 1 + (self.count if self.answers else 0)]
        self.heard = laid[:, : asked[-1]].clone()  # (B, T)
        said = self.answers[wave - self.first : wave - self.first + len(asked) - 1]
        if said:
            places = [place for (place,) in self.schedule[wave : wave + len(said)]]
            self.heard[:, asked[: len(said)]] = self.drawn(places, torch.stack(said, dim=1)).T
        for turn in asked[len(said) : -1]:
            # A place without an answer yet: the code before it. The one above, or what the last answer makes with the noise of
            # this place, is right about as often (docs/high-resolution.md).
            self.heard[:, turn] = self.heard[:, turn - 1]
        # The cache is right up to the code before the last one laid, which is read now, whatever was guessed there.
        cache.length = start = prior.prefix_length + self.turns[wave - 1] if wave else 0
        copies = len(self.prefix) // len(laid)
        features = prior.features(prior.join(self.prefix, self.heard.repeat(copies, 1))[:, start:], cache)
        at = torch.tensor(asked, device=laid.device) + (prior.prefix_length - 1 - start)
        logits: Tensor = prior.head(features[:, at])[..., : prior.size].float()  # (B or 2 B, m, K)
        self.answers = logits.view(copies, len(laid), len(asked), -1).unbind(2)
        self.first = wave


def guessing(laying: Laying, drawn: Drawn, *, grid: tuple[int, int], count: int) -> Laying:
    """How the prior is asked for a grid (h, w), how codes are drawn -> how it is asked with `count` guesses; 0 leaves it as it is.

    Raises `SmaltiError` for fewer, and where there is no window that stands over the whole grid.
    """
    if whole_number(count, "speculate") < 0:
        raise SmaltiError(f"speculate = {count} is no number of codes; give 0 for no guesses, or 1 and more")
    if count == 0:
        return laying
    if not isinstance(laying, UnderWindows):
        raise SmaltiError(
            f"speculate = {count} guesses codes under a window, and a neighborhood transformer has none; leave it at 0"
        )
    if laying.window != grid:
        raise SmaltiError(
            f"speculate = {count} guesses codes under a window that stands still, and one of {laying.window[0]} x "
            f"{laying.window[1]} codes moves over a grid of {grid[0]} x {grid[1]}; leave it at 0, or lay a smaller image"
        )
    return GuessingAhead(laying, drawn, count=count)
