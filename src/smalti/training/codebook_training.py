"""How a training step of stage 1 gets its codes: from a codebook that learns, or at the end of a training from a frozen one.

In that last phase, the decoder phase, encoder and codebook are frozen and the decoder learns alone. A decoder that has only ever
seen the codes of real images meets others in generation: those that a prior samples. So some codes are replaced by near ones, and
the decoder learns what they should have been.

Letters: B batch, D dimension of a code, h w code grid, K number of codes, k near codes of each.
Sources: Qiu et al. 2025, "Robust latent matters" (RobustTok, arXiv 2503.08354) for the replaced codes, and "Image tokenizer needs
post-training" (arXiv 2509.12474) for the decoder that learns alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from smalti.tokenizer.code_replacement import draw_chances, neighbor_codes, replace_codes
from smalti.tokenizer.quantizers import Quantized, Quantizer
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import DecoderPhaseSettings, TokenizerTraining


class ProcessShare(NamedTuple):
    """Which examples this process has: `rank`, `rank + world`, ..., of a batch (`loading.batches`) and of the validated ones."""

    rank: int
    world: int

    @property
    def places(self) -> slice:
        """Of the examples of all processes, those of this one."""
        return slice(self.rank, None, self.world)

    def of(self, tensor: Tensor) -> Tensor:
        """(N,..) of all processes -> those of this one."""
        return tensor[self.places]


@final
class CodeNoise:
    """Codes -> latents of codes some of which are replaced by near ones. Those are searched for once, when it is made."""

    def __init__(self, quantizer: Quantizer, settings: DecoderPhaseSettings) -> None:
        self._quantizer, self._probability = quantizer, settings.replaced
        self._neighbors = neighbor_codes(quantizer, settings.neighbors)  # (K,k)

    def latents(self, codes: Tensor, chances: Tensor) -> Tensor:
        """Codes (B,h,w) and chances (B,h,w,2) of `draw_chances` -> latents (B,D,h,w)."""
        chances = chances.to(codes.device)
        return self._quantizer.lookup(replace_codes(codes, self._neighbors, chances, probability=self._probability))


class CodebookTraining(ABC):
    """How the features of a step become codes, and what the codebook learns of them besides its gradient."""

    frozen: bool
    """Whether neither encoder nor codebook learns."""
    placed: bool
    """Whether the codes are placed and used; once they are, they stay so, also where the length of the training changes."""

    @abstractmethod
    def quantize(self, seen: int, *, generator: torch.Generator) -> Callable[[Tensor], Quantized]:
        """The quantizer after `seen` images: features (B,D,h,w) of this process -> `Quantized`, whose codes are without noise.

        `generator` is the same in all processes.
        """

    @abstractmethod
    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        """As `Quantizer.update_codebook`."""

    @abstractmethod
    def noise(self, exported: VQGAN) -> CodeNoise:
        """The noise with which `exported` is validated."""


@final
class LearningCodebook(CodebookTraining):
    """The quantizer as it trains: before the codes are placed latents are not quantized."""

    frozen = False

    def __init__(self, quantizer: Quantizer, settings: TokenizerTraining, *, placed: bool) -> None:
        self._quantizer, self._phase, self._length = quantizer, settings.decoder_phase, settings.run.images
        self.placed = placed

    def quantize(self, seen: int, *, generator: torch.Generator) -> Callable[[Tensor], Quantized]:
        return self._quantizer.schedule(seen, length=self._length) if self.placed else self._quantizer.bypass

    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        return self._quantizer.update_codebook(features, codes, generator=generator)

    def noise(self, exported: VQGAN) -> CodeNoise:
        return CodeNoise(exported.quantizer, self._phase)


@final
class FrozenCodebook(CodebookTraining):
    """The quantizer as it is used after training; some of its codes are replaced by near ones."""

    frozen = True
    placed = True

    def __init__(
        self, tokenizer: VQGAN, exported: VQGAN, *, settings: DecoderPhaseSettings, share: ProcessShare
    ) -> None:
        """Freezes encoder and codebook of `tokenizer`, which become those of `exported`: see `freeze_encoding`."""
        freeze_encoding(tokenizer, exported)
        self._quantizer, self._share = tokenizer.quantizer, share
        self._noise = CodeNoise(tokenizer.quantizer, settings)

    def quantize(self, seen: int, *, generator: torch.Generator) -> Callable[[Tensor], Quantized]:
        def replaced(features: Tensor) -> Quantized:
            codes = self._quantizer(features).codes
            B, h, w = codes.shape
            # Each process draws for all and takes its share, so that many replace the codes that one would.
            chances = self._share.of(draw_chances((B * self._share.world, h, w), generator=generator))
            return Quantized(self._noise.latents(codes, chances), codes, torch.zeros((), device=codes.device))

        return replaced

    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        """Nothing: no code moves, and no use is noted. Returns 0."""
        return 0

    def noise(self, exported: VQGAN) -> CodeNoise:
        """That of training: both have one codebook."""
        return self._noise


def encoding_parts(tokenizer: VQGAN) -> tuple[nn.Module, ...]:
    """The parts of a tokenizer that decide which codes an image has, and which latents a code."""
    return tokenizer.encoder, tokenizer.to_codes, tokenizer.quantizer


def freeze_encoding(tokenizer: VQGAN, exported: VQGAN) -> None:
    """Give `tokenizer` encoder and codebook of `exported` and freeze them: no gradients, no dropout.

    The running average lags behind the weights that are trained. It is what is exported, so the decoder must learn from its codes.
    Where both are equal already, as after a resume, no bit changes.
    """
    for mine, theirs in zip(encoding_parts(tokenizer), encoding_parts(exported), strict=True):
        mine.load_state_dict(theirs.state_dict())
        mine.requires_grad_(False)
        mine.eval()


def validation_chances(codes: tuple[int, int, int], *, seed: int, share: ProcessShare, batch: int) -> Iterator[Tensor]:
    """Shape (N,h,w) of the codes of all validated images -> chances (b,h,w,2) of this process's, `batch` images at a time.

    They are the same at every validation, so that its numbers can be compared.
    """
    return iter(torch.split(share.of(draw_chances(codes, generator=torch.Generator().manual_seed(seed))), batch))
