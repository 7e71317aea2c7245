"""One step of stage 1: the tokenizer against the pictures and a discriminator.

Letters: B batch, C channels, H W pixels, h w code grid, D dimension of a code.
Source: arXiv 2012.09841, section 3.1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from smalti.data.loading import Batch, CentreCrop, Crop, Crops, RandomCrop, in_order, spread
from smalti.data.sources import Source, split
from smalti.errors import SmaltiError
from smalti.evaluation.metrics import CodeUse, psnr
from smalti.images import grid
from smalti.losses.adversarial import LeCam, ramp
from smalti.losses.discriminator import DISCRIMINATORS
from smalti.losses.objective import AdversarialSettings, ReconstructionLoss
from smalti.processes import everyones
from smalti.settings import amount
from smalti.tokenizer.blocks import as_channels_last
from smalti.tokenizer.quantizers import Quantized
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import OptimiserSettings, PictureSettings, TokenizerTraining
from smalti.training.loop import Stage, stream
from smalti.training.optimiser import build_optimiser, exported, move, rate_at
from smalti.training.playing import Players, Strength, play_of

SHOWN = 8
"""Pictures in the grid that is saved on the way."""


CROPS: dict[str, Callable[[PictureSettings], Crop]] = {
    "random": lambda pictures: RandomCrop(zoom=pictures.zoom, flip=pictures.flip),
    "centre": lambda pictures: CentreCrop(),
}
"""How training pictures are cut, by the name in the settings."""


@final
class _Joined(nn.Module):
    """images -> features, codes, reconstructions: one `forward`, so that data-parallel wrappers see the whole pass."""

    def __init__(self, tokenizer: VQGAN) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor, quantize: Callable[[Tensor], Quantized]) -> tuple[Tensor, Quantized, Tensor]:
        features = self.tokenizer.features(images)  # (B,D,h,w)
        quantized = quantize(features)
        return features, quantized, self.tokenizer.decode(quantized.latents)  # .., .., (B,C,H,W)


def crops(
    source: Source, pictures: PictureSettings, *, channels: int, seed: int, most: int | None = None
) -> tuple[Crops, Crops]:
    """A source -> its training pictures (random crops and flips) and its held-out ones (centre crops).

    `most`: how many of the held-out ones to take, evenly spread; all by default. Raises `SmaltiError` for a single picture.
    """
    training, validation = split(source.pictures, validation=pictures.validation)
    if not validation:
        raise SmaltiError(
            f"{source.path} holds a single picture; training needs at least two, one of them to validate on"
        )
    if most is not None and most < len(validation):
        validation = tuple(validation[place * len(validation) // most] for place in range(most))
    cut = CROPS[pictures.crop](pictures)
    size, cache = pictures.size, pictures.cache_mib
    return (
        Crops(source, training, size=size, channels=channels, crop=cut, seed=seed, cache_mib=cache),
        Crops(source, validation, size=size, channels=channels, crop=CentreCrop(), seed=seed, cache_mib=cache),
    )


def strength_at(seen: int, *, length: int, settings: AdversarialSettings) -> Strength:
    """How far the game has come after `seen` of `length` pictures."""
    start = amount(settings.start, length=length)
    return Strength(
        generator=ramp(seen, start=start, length=amount(settings.ramp, length=length)),
        discriminator=1.0 if settings.early or seen >= start else 0.0,
    )


@final
class TokenizerStage(Stage):
    """Trains a VQGAN. What is validated, shown and exported is a running average of its weights, or with `average` 0 they."""

    unit = "images"
    per_example = 1

    def __init__(
        self, settings: TokenizerTraining, source: Source, *, fabric: Fabric, about: Mapping[str, Any]
    ) -> None:
        torch.manual_seed(settings.run.seed)
        self.settings, self.fabric, self.about = settings, fabric, dict(about)
        channels = settings.model.pyramid.channels
        pictures, seed = settings.pictures, settings.run.seed
        self.training, self.held_out = crops(
            source, pictures, channels=channels, seed=seed, most=pictures.validation_pictures
        )
        self.tokenizer = VQGAN(settings.model)
        judge = replace(settings.objective.adversarial.discriminator, channels=channels)
        self.judge = DISCRIMINATORS[judge.name](judge)
        for module in (self.tokenizer, self.judge):
            as_channels_last(module)
        self.exported = exported(self.tokenizer, half_life=settings.run.average)
        self.exported.module.to(fabric.device)
        self.score = ReconstructionLoss(settings.objective).to(fabric.device)
        self.play = play_of(settings.objective)
        self.lecam = LeCam.start(fabric.device)
        self.optimiser: Any = build_optimiser([{"params": list(self.tokenizer.parameters())}], settings.optimiser)
        self.judge_optimiser: Any = build_optimiser(
            [{"params": list(self.judge.parameters())}], settings.discriminator_optimiser
        )
        self.generate: Any
        self.generate, self.optimiser = fabric.setup(_Joined(self.tokenizer), self.optimiser)
        self.judged: Any
        self.judged, self.judge_optimiser = fabric.setup(self.judge, self.judge_optimiser)
        self.used = CodeUse(self.tokenizer.size)

    def batches(self, examples: int) -> Iterator[Batch]:
        return stream(self.training, start=examples, run=self.settings.run, fabric=self.fabric)

    def step(self, batch: Batch, *, seen: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        quantizer, length = self.tokenizer.quantizer, self.settings.run.length
        first = self.settings.codes_from * length
        placed = seen >= first
        if placed and seen - count < first:
            self._place_codes(seen, generator)
        quantize = quantizer.at(seen, length=length) if placed else quantizer.relaxed
        images = self._on_device(batch)  # (B,C,H,W)
        strength = strength_at(seen, length=length, settings=self.settings.objective.adversarial)
        played = self.play(self._players(seen), images, quantize=quantize, strength=strength, anchors=self.lecam)
        self.lecam = played.anchors
        mended = self._mend_codebook(played.features, played.codes, generator) if placed else {}
        self.exported.update(self.tokenizer, seen=seen, step=count)
        return {**played.values, **mended}

    def _players(self, seen: int) -> Players:
        """Both networks as they step after `seen` pictures."""

        def mover(module: Any, optimiser: Any, settings: OptimiserSettings) -> Callable[[], Tensor]:
            rate = rate_at(seen, length=self.settings.run.length, settings=settings)
            return partial(move, self.fabric, module, optimiser, rate=rate, clip=settings.clip)

        return Players(
            generate=self.generate,
            judge=self.judged,
            score=self.score,
            last_layer=self.tokenizer.decoder.last_layer,
            settings=self.settings.objective,
            backward=self.fabric.backward,
            move_generator=mover(self.generate, self.optimiser, self.settings.optimiser),
            move_judge=mover(self.judged, self.judge_optimiser, self.settings.discriminator_optimiser),
        )

    def _place_codes(self, seen: int, generator: torch.Generator) -> None:
        """Let the quantizer place its codes on features of the next pictures, where it wants any."""
        wanted = self.tokenizer.quantizer.start_features
        if not wanted:
            return
        gathered: list[Tensor] = []
        for batch in itertools.islice(self.batches(seen), 256):
            with torch.no_grad():
                gathered.append(everyones(self.tokenizer.features(self._on_device(batch))))
            if sum(each.numel() // each.shape[1] for each in gathered) >= wanted:
                break
        self.tokenizer.quantizer.start(torch.cat(gathered), generator=generator)

    def _mend_codebook(self, features: Tensor, codes: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        features, codes = everyones(features), everyones(codes)
        moved = self.tokenizer.quantizer.observe(features, codes, generator=generator)
        self.used.add(codes)
        if int(self.used.counts.sum()) < 64 * self.tokenizer.size:  # too few codes to say how many are in use
            return {"restarted_codes": torch.tensor(float(moved))}
        values = {
            "restarted_codes": torch.tensor(float(moved)),
            "codes_in_use": torch.tensor(self.used.in_use),
            "perplexity": torch.tensor(self.used.perplexity),
        }
        self.used = CodeUse(self.tokenizer.size)
        return values

    def _on_device(self, batch: Batch) -> Tensor:
        images: Tensor = self.fabric.to_device(batch.images)
        return images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR, the reconstruction loss, and the codes in use over the held-out pictures."""
        ratios, totals, used = [], [], CodeUse(self.tokenizer.size)
        self.score.eval()
        with self.exported.shown() as tokenizer:
            for batch in in_order(self.held_out, batch=self.settings.run.batch):
                images = self._on_device(batch)
                reconstructions, quantized = tokenizer(images)
                ratios.append(psnr(images, reconstructions))
                totals.append(self.score(images, reconstructions).total * len(images))
                used.add(quantized.codes)
        self.score.train()
        count = len(self.held_out)
        return {
            "psnr": float(torch.cat(ratios).mean()),
            "reconstruction": float(torch.stack(totals).sum() / count),
            "codes_in_use": used.in_use,
            "perplexity": used.perplexity,
            "pictures": float(count),
        }

    @torch.no_grad()
    def picture(self) -> Tensor:
        """Held-out pictures above, their reconstructions below."""
        images = self._on_device(spread(self.held_out, SHOWN))
        with self.exported.shown() as tokenizer:
            reconstructions, _ = tokenizer(images)
        return grid(torch.cat([images, reconstructions]).cpu().contiguous(), columns=len(images), gap=2)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.generate,
            "discriminator": self.judged,
            "optimiser": self.optimiser,
            "discriminator_optimiser": self.judge_optimiser,
            "average": self.exported.module,
            "lecam": self.lecam._asdict(),
            "used": self.used.counts,
        }

    def restored(self, state: Mapping[str, Any]) -> None:
        self.lecam = LeCam(**{name: value.to(self.fabric.device) for name, value in state["lecam"].items()})
        self.used.counts = state["used"].cpu()

    def export(self, folder: Path, *, seen: int) -> None:
        about = {**self.about, "images_seen": seen, "fingerprint": self.exported.module.fingerprint()}
        self.exported.module.save_pretrained(folder, about=about)
