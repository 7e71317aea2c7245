"""Where a training step of stage 1 gets its codes: from a trainable codebook, or in the decoder phase from a frozen
one.

In the decoder phase, the last part of a training, encoder and codebook are frozen and only the decoder is trained. A
decoder trained on the codes of real images alone gets others in generation: those that a prior samples. So some codes
are replaced by near ones, and the decoder learns to reconstruct the image nevertheless.

Notation: B batch, D dimension of a code, h w code grid, K number of codes, k near codes of each. Sources: Qiu et al.
2025, "Robust latent matters" (RobustTok, arXiv 2503.08354) for the replaced codes, and "Image tokenizer needs
post-training" (arXiv 2509.12474) for training the decoder alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from smalti.tokenizer.code_replacement import draw_random_numbers, neighbor_codes, replace_codes
from smalti.tokenizer.quantizers import Quantized, Quantizer
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import DecoderPhaseSettings, TokenizerTraining


class ProcessSlice(NamedTuple):
    """The examples of this process: `rank`, `rank + world`, ... of a batch (`data.loader.batches`) and of the held-out
    images."""

    rank: int
    world: int

    @property
    def indices(self) -> slice:
        """The indices of its examples among those of all processes."""
        return slice(self.rank, None, self.world)

    def of(self, tensor: Tensor) -> Tensor:
        """(N,..) of all processes -> those of this one."""
        return tensor[self.indices]


@final
class CodeNoise:
    """Codes -> latents, some of the codes replaced by near ones. The near codes are found once, on creation."""

    def __init__(self, quantizer: Quantizer, settings: DecoderPhaseSettings) -> None:
        self._quantizer, self._probability = quantizer, settings.replaced
        self._neighbors = neighbor_codes(quantizer, settings.neighbors)  # (K,k)

    def latents(self, codes: Tensor, random_numbers: Tensor) -> Tensor:
        """Codes (B,h,w) and random numbers (B,h,w,2) of `draw_random_numbers` -> latents (B,D,h,w)."""
        random_numbers = random_numbers.to(codes.device)
        return self._quantizer.lookup(
            replace_codes(codes, self._neighbors, random_numbers, probability=self._probability)
        )


class CodebookTraining(ABC):
    """Quantizes the features of a training step, and updates the codebook where that takes more than a gradient."""

    frozen: bool
    """Whether encoder and codebook are frozen."""
    initialized: bool
    """Whether the codebook is initialized and used. It stays so, also if the length of the training changes."""

    @abstractmethod
    def quantize(self, seen: int, *, generator: torch.Generator) -> Callable[[Tensor], Quantized]:
        """The quantizer after `seen` images: features (B,D,h,w) of this process -> `Quantized`, whose codes are without
        noise.

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
    """The quantizer in training: latents are not quantized before the codebook is initialized."""

    frozen = False

    def __init__(self, quantizer: Quantizer, settings: TokenizerTraining, *, initialized: bool) -> None:
        self._quantizer, self._phase, self._length = quantizer, settings.decoder_phase, settings.run.images
        self.initialized = initialized

    def quantize(self, seen: int, *, generator: torch.Generator) -> Callable[[Tensor], Quantized]:
        return self._quantizer.schedule(seen, length=self._length) if self.initialized else self._quantizer.bypass

    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        return self._quantizer.update_codebook(features, codes, generator=generator)

    def noise(self, exported: VQGAN) -> CodeNoise:
        return CodeNoise(exported.quantizer, self._phase)


@final
class FrozenCodebook(CodebookTraining):
    """The quantizer as it is used after training; some of its codes are replaced by near ones."""

    frozen = True
    initialized = True

    def __init__(
        self, tokenizer: VQGAN, exported: VQGAN, *, settings: DecoderPhaseSettings, process_slice: ProcessSlice
    ) -> None:
        """Freezes encoder and codebook of `tokenizer`, which become those of `exported`: see `freeze_encoding`."""
        freeze_encoding(tokenizer, exported)
        self._quantizer, self._process_slice = tokenizer.quantizer, process_slice
        self._noise = CodeNoise(tokenizer.quantizer, settings)

    def quantize(self, seen: int, *, generator: torch.Generator) -> Callable[[Tensor], Quantized]:
        def replaced(features: Tensor) -> Quantized:
            codes = self._quantizer(features).codes
            B, h, w = codes.shape
            # Each process draws for all and takes its part, so the result does not depend on the number of processes.
            random_numbers = self._process_slice.of(
                draw_random_numbers((B * self._process_slice.world, h, w), generator=generator)
            )
            return Quantized(self._noise.latents(codes, random_numbers), codes, torch.zeros((), device=codes.device))

        return replaced

    def update_codebook(self, features: Tensor, codes: Tensor, *, generator: torch.Generator) -> int:
        """Does nothing: the codebook is frozen. Returns 0."""
        return 0

    def noise(self, exported: VQGAN) -> CodeNoise:
        """That of training: both have one codebook."""
        return self._noise


def encoding_parts(tokenizer: VQGAN) -> tuple[nn.Module, ...]:
    """The parts of a tokenizer that decide which codes an image has, and which latents a code has."""
    return tokenizer.encoder, tokenizer.to_codes, tokenizer.quantizer


def freeze_encoding(tokenizer: VQGAN, exported: VQGAN) -> None:
    """Give `tokenizer` encoder and codebook of `exported` and freeze them: no gradients, no dropout.

    The running average lags behind the weights that are trained. It is what is exported, so the decoder must learn from
    its codes. Where both are equal already, as after a resume, no bit changes.
    """
    for trained, averaged in zip(encoding_parts(tokenizer), encoding_parts(exported), strict=True):
        trained.load_state_dict(averaged.state_dict())
        trained.requires_grad_(False)
        trained.eval()


def validation_random_numbers(
    codes: tuple[int, int, int], *, seed: int, process_slice: ProcessSlice, batch: int
) -> Iterator[Tensor]:
    """Shape (N,h,w) of the codes of all held-out images -> random numbers (b,h,w,2) for this process,
    `batch` images at a time.

    They are the same at every validation, so that its numbers can be compared.
    """
    return iter(
        torch.split(process_slice.of(draw_random_numbers(codes, generator=torch.Generator().manual_seed(seed))), batch)
    )
