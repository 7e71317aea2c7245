"""How a prior is asked for the codes of a wave: several at once, and with what it kept of those before.

Letters: B batch, K image codes, P prefix codes, h w grid, m places laid in one call of the prior, T codes before the last of them.
"""

from __future__ import annotations

import abc
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from smalti.generation.cuda_graphs import NextCode
from smalti.generation.wavefront import Place, calls, waves
from smalti.prior.base import NoCache, Prior, StaticCache
from smalti.prior.gpt import GPT
from smalti.prior.transformer import Transformer
from smalti.prior.window import Middle, Window

MOST = 2**14
"""Codes that one call of the prior reads at most, where it reads sequences of several places: enough to keep a device busy. A
wave over a very wide image takes several calls, so that the memory of a call does not grow with the image."""

KEPT = 2**30
"""Bytes of keys and values that are kept at most for windows that come back."""


class Laying(abc.ABC):
    """An image's codes -> logits of those that are laid next, wave after wave."""

    schedule: list[list[Place]]
    """The places of each wave."""

    @abc.abstractmethod
    def logits(self, codes: Tensor, wave: int) -> Iterator[tuple[Sequence[Place], Tensor]]:
        """Codes so far (B, h, w), the waves before number `wave` laid -> some places of it, and of these the logits, float32.

        They are (1, m, B, K), or with guidance (2, m, B, K): with the condition, and with the empty one. Each wave is asked for
        once, in turn. What is laid meanwhile of the same wave does not matter.
        """


class _Stand(NamedTuple):
    """One window, or several side by side: their prefixes, guided with the empty ones below, and what the prior keeps of them."""

    prefix: Tensor
    cache: NoCache | StaticCache


@final
class UnderWindows(Laying):
    """A prior that reads one window at a time: a whole sequence for each code, or its end where the window has been there before.

    Keys and values hang on the places of codes in their window. So they are kept for a window that stands over later codes too:
    the next of its row, or at the upper and lower border, where the windows of one row come back over the next, those of the next.
    """

    def __init__(
        self,
        prior: Prior,
        prefix_at: Callable[[Window], Tensor],
        empty: Tensor,
        *,
        missing: Tensor,
        middle: Middle,
        device: torch.device,
    ) -> None:
        """`empty` (B, P) says nothing, or is of no images without guidance; `missing` (h, w) is where codes are to be laid."""
        height, width = missing.shape
        self.prior, self.prefix_at, self.empty = prior, prefix_at, empty
        self.window = (min(prior.max_grid[0], height), min(prior.max_grid[1], width))
        self.inside = prior.sequence_order(self.window, device=device)  # the window's own places, in order
        self.few, stays = _wants_few_calls(device), self.window == (height, width)
        self.steady = prior if graphs(device) and stays and isinstance(prior, GPT | Transformer) else None
        self.schedule = self._schedule(missing, middle)
        self.uses = Counter(place.window for wave in self.schedule for place in wave)
        self.stands: dict[Window, _Stand] = {}
        self.next_code: NextCode | None = None

    def _schedule(self, missing: Tensor, middle: Middle) -> list[list[Place]]:
        if self.prior.order == "raster":
            return waves(missing, window=self.window, middle=middle)
        asked, whole = missing.flatten().tolist(), Window(0, 0, *self.window)
        places = (
            (*divmod(place, self.window[1]), turn) for turn, place in enumerate(self.inside.tolist()) if asked[place]
        )
        return [[Place(row, column, whole, turn)] for row, column, turn in places]

    def logits(self, codes: Tensor, wave: int) -> Iterator[tuple[Sequence[Place], Tensor]]:
        places = self.schedule[wave]
        self.uses.subtract(place.window for place in places)
        following = self.schedule[wave + 1] if wave + 1 < len(self.schedule) else []
        standing = {place.window for place in following} | self.stands.keys() | self._returning(places)
        copies = len(codes) + len(self.empty)
        for some in calls(
            places, standing=standing, prefix=self.prior.prefix_length, copies=copies, most=MOST, few=self.few
        ):
            yield some, self._asked(codes, some, kept=len(some) == 1 and some[0].window in standing)
        self.stands = {window: stand for window, stand in self.stands.items() if self.uses[window]}

    def _returning(self, places: Sequence[Place]) -> set[Window]:
        """Windows over these places that come back, as far as there is memory to keep them."""
        if not self.stands:
            return {place.window for place in places if self.uses[place.window]}
        most = max(_bytes(stand.cache) for stand in self.stands.values())
        room = KEPT // max(most, 1) - len(self.stands)
        returning = [place.window for place in places if self.uses[place.window] and place.window not in self.stands]
        return set(returning[: max(room, 0)])

    def _asked(self, codes: Tensor, places: Sequence[Place], *, kept: bool) -> Tensor:
        """Codes so far and m places -> logits (1, m, B, K), guided (2, m, B, K).

        What a cache holds already is not read again. Codes that were known, and so never asked for, are read now. Places that
        have fewer codes before them than others are followed by codes that come later or by filler, which a causal prior does
        not see.
        """
        prior, window = self.prior, places[0].window
        stand = self.stands.get(window) if len(places) == 1 else None
        if stand is None:
            keeping = kept and self.uses[window] > 0
            prefixes = [self.prefix_at(place.window) for place in places]
            cache = prior.empty_cache(window=self.window) if keeping else NoCache(columns=self.window[1])
            stand = _Stand(torch.cat((*prefixes, self.empty.repeat(len(places), 1))), cache)
            if keeping:
                self.stands[window] = stand
        longest, start = max(place.turn for place in places), stand.cache.length
        before = [_within(codes, place.window)[:, self.inside[:longest]] for place in places]
        heard = torch.cat(before).clamp(min=0)  # (m B, T)
        heard = heard.repeat(len(stand.prefix) // len(heard), 1)
        goes_on = start == prior.prefix_length + longest - 1 >= prior.prefix_length  # by one image code
        if self.steady is not None and isinstance(stand.cache, StaticCache) and goes_on:
            self.next_code = self.next_code or NextCode(self.steady, stand.cache)
            return self.next_code.logits(heard[:, -1]).view(-1, len(places), len(codes), prior.size)
        turns = torch.tensor([place.turn for place in places], device=codes.device).repeat_interleave(len(codes))
        asked = (prior.prefix_length - 1 - start + turns).repeat(len(heard) // len(turns))
        features = prior.features_at(prior.join(stand.prefix, heard)[:, start:], stand.cache, asked)
        logits: Tensor = prior.head(features)[:, : prior.size].float()
        return logits.view(-1, len(places), len(codes), prior.size)


def _wants_few_calls(device: torch.device) -> bool:
    """Whether a call that reads a few hundred codes takes about as long as one that reads a single code: not on a CPU."""
    return device.type != "cpu"


def graphs(device: torch.device) -> bool:
    """Whether codes under one window are laid by a CUDA graph (`prior.graphed`): on a GPU, with `SMALTI_GRAPHS` set."""
    return device.type == "cuda" and bool(os.environ.get("SMALTI_GRAPHS"))


def _bytes(cache: NoCache | StaticCache) -> int:
    return sum(kept.nbytes for kept in cache.buffers.values()) if isinstance(cache, StaticCache) else 0


def _within(codes: Tensor, window: Window) -> Tensor:
    """Codes (B, h, w) -> those of the window in raster order (B, n)."""
    top, left, rows, columns = window
    return codes[:, top : top + rows, left : left + columns].flatten(1)
