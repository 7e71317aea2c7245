"""Training of stage 1: the tokenizer with its losses and a discriminator.

Letters: B batch, C channels, H W pixels, h w code grid, D dimension of a code.
Source: arXiv 2012.09841, section 3.1.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from smalti.conditions.map_files import label_accuracy, label_colors
from smalti.core.distributed import all_gather
from smalti.core.errors import SmaltiError
from smalti.core.settings import amount
from smalti.data.config import ImageSettings
from smalti.data.crops import CenterCrop, Crop, RandomCrop
from smalti.data.damage import DamageRecord
from smalti.data.loader import Batch, Crops, Example, first_readable, holding_out, in_order, spread
from smalti.data.sources import Source, held_out_order, split
from smalti.evaluation.metrics import CodeUse, psnr
from smalti.images.io import grid
from smalti.losses.adversarial import LeCam, ramp
from smalti.losses.discriminator import DISCRIMINATORS
from smalti.losses.objective import AdversarialSettings, ReconstructionLoss
from smalti.tokenizer.blocks import as_channels_last
from smalti.tokenizer.quantizers import Quantized
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.activation_checkpointing import compiled, recompute, tokenizer_blocks, tokenizer_stages
from smalti.training.codebook_training import (
    CodebookTraining,
    FrozenCodebook,
    LearningCodebook,
    ProcessShare,
    validation_chances,
)
from smalti.training.config import TokenizerTraining
from smalti.training.diagnostics import Diagnoses, diagnose_codebook, diagnose_gan
from smalti.training.gan_step import (
    GAN,
    AdversarialSchedule,
    RandomChoices,
    StepInputs,
    draw_choices,
    gan_step,
    r1_factor_at,
)
from smalti.training.launcher import synchronized
from smalti.training.loop import Stage, stream
from smalti.training.optimizer import build_optimizer, exported, rate_at
from smalti.training.optimizer_step import NotFiniteError, copied_buffers, restore_buffers, sum_of_processes

SHOWN = 8
"""Images in the grid that is saved during training."""


CROPS: dict[str, Callable[[ImageSettings], Crop]] = {
    "random": lambda images: RandomCrop(zoom=images.zoom, flip=images.flip),
    "center": lambda images: CenterCrop(zoom=images.zoom[0]),
}
"""How training images are cropped, by the name in the settings."""


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
    source: Source, images: ImageSettings, *, channels: int, seed: int, most: int | None = None
) -> tuple[Crops, Crops]:
    """A source -> its training images (random crops and flips) and its held-out ones (center crops, at the least zoom).

    Their kind is that of the source. `most`: how many of the held-out ones to take, evenly spread; all by default.
    Where all held-out ones are damaged, a training image is held out too. Raises `SmaltiError` for a single image,
    for a kind that does not go with the channels, and for too many damaged images.
    """
    training, validation = split(source.images, validation=images.validation)
    if not validation:
        raise SmaltiError(
            f"{source.path} holds a single image; training needs at least two, one of them to validate on"
        )
    if most is not None and most < len(validation):
        validation = tuple(validation[place * len(validation) // most] for place in range(most))
    cut, middle = CROPS[images.crop](images), CROPS["center"](images)
    size, cache = images.size, images.cache_mib
    record = DamageRecord(source, [len(training), len(validation)])
    parts = (
        Crops(source, training, size=size, channels=channels, crop=cut, seed=seed, cache_mib=cache, record=(record, 0)),
        Crops(
            source,
            validation,
            size=size,
            channels=channels,
            crop=middle,
            seed=seed,
            cache_mib=cache,
            record=(record, 1),
        ),
    )
    if len(training) == 1 or first_readable(parts[1]) is not None:
        return parts
    place = first_readable(parts[0], held_out_order(training))
    return parts if place is None else holding_out(parts, place)


@final
class Share:
    """Examples `rank`, `rank + world`, ... of a data set, so that `world` processes share them."""

    def __init__(self, whole: Crops, *, rank: int, world: int) -> None:
        self._whole, self._places = whole, range(rank, len(whole), world)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, key: tuple[int, int], /) -> Example:
        place = self._places[key[0]]
        return self._whole[place, place]

    def batch_of(self, *stacked: Tensor) -> Batch:
        """The fields of examples, stacked -> a batch."""
        return self._whole.batch_of(*stacked)


def in_stream_order(mine: Tensor) -> Tensor:
    """(B,..) of this process -> (world B,..) of all, in the order in which one process would have read the examples.

    Each process reads every world-th example of the stream (see `data.loader.batches`).
    """
    gathered = all_gather(mine)
    processes = len(gathered) // len(mine)
    return gathered.view(processes, *mine.shape).transpose(0, 1).flatten(0, 1) if processes > 1 else gathered


def adversarial_schedule(seen: int, *, length: int, settings: AdversarialSettings) -> AdversarialSchedule:
    """The factors of the adversarial losses after `seen` of `length` images."""
    start = amount(settings.start, length=length)
    return AdversarialSchedule(
        generator=ramp(seen, start=start, length=amount(settings.ramp, length=length)),
        discriminator=1.0 if settings.discriminator_from_start or seen >= start else 0.0,
    )


@final
class TokenizerStage(Stage):
    """Trains a VQGAN. It validates, shows and exports a running average of the weights, or with `ema_half_life` 0 the weights."""

    unit = "images"
    selection_metric = ""  # sharper images have more pixel error: no single metric selects the best model
    per_example = 1

    def __init__(
        self,
        settings: TokenizerTraining,
        source: Source,
        *,
        fabric: Fabric,
        about: Mapping[str, Any],
        weights: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """`weights`: of the tokenizer that training begins with, whose codes stay where they are; none begins anew."""
        torch.manual_seed(settings.run.seed)
        self.settings, self.fabric, self.about = settings, fabric, dict(about)
        run, adversarial = settings.run, settings.objective.adversarial
        channels = settings.model.autoencoder.channels
        images = settings.images
        self.training, self.held_out = crops(
            source, images, channels=channels, seed=run.seed, most=images.validation_images
        )
        self.tokenizer = VQGAN(settings.model)
        if weights:
            self.tokenizer.load_state_dict(weights)
        self.share = ProcessShare(fabric.global_rank, fabric.world_size)
        if settings.has_decoder_phase and not settings.decoder_phase.start and not weights:
            raise SmaltiError(
                "decoder_phase.start = 0 freezes an encoder that has learned nothing; begin with a trained tokenizer (--from), or "
                "set decoder_phase.start above 0"
            )
        discriminator = replace(adversarial.discriminator, channels=channels)
        self.discriminator = synchronized(DISCRIMINATORS[discriminator.name](discriminator), fabric=fabric)
        for module in (self.tokenizer, self.discriminator):
            as_channels_last(module)
        self.exported = exported(self.tokenizer, half_life=run.ema_half_life)
        self.exported.module.to(fabric.device)
        self.score = ReconstructionLoss(settings.objective).to(fabric.device)
        self.lecam_ema = LeCam.start(fabric.device)
        if run.recompute:
            recompute(tokenizer_blocks(self.tokenizer))
        if run.compile:
            compiled(tokenizer_stages(self.tokenizer), device=fabric.device)
        self.optimizer: Any = build_optimizer([{"params": list(self.tokenizer.parameters())}], settings.optimizer)
        learned = [weight for weight in self.discriminator.parameters() if weight.requires_grad]
        self.discriminator_optimizer: Any = build_optimizer([{"params": learned}], settings.discriminator_optimizer)
        self.autoencoder: Any
        self.autoencoder, self.optimizer = fabric.setup(_Joined(self.tokenizer), self.optimizer)
        self.wrapped_discriminator: Any
        self.wrapped_discriminator, self.discriminator_optimizer = fabric.setup(
            self.discriminator, self.discriminator_optimizer
        )
        self.used = CodeUse(self.tokenizer.size)
        self.codebook: CodebookTraining = LearningCodebook(self.tokenizer.quantizer, settings, placed=bool(weights))
        self._notes_placing = True  # states of smalti 0.1 do not say whether the codes are placed

    def _gan(self) -> GAN:
        """Networks, losses and optimizers as a GAN step takes them."""
        settings = self.settings
        return GAN(
            fabric=self.fabric,
            autoencoder=self.autoencoder,
            discriminator=self.wrapped_discriminator,
            discriminator_weights=[weight for weight in self.discriminator.parameters() if weight.requires_grad],
            reconstruction_loss=self.score,
            last_layer=self.tokenizer.decoder.last_layer,
            settings=settings.objective,
            optimizer=self.optimizer,
            discriminator_optimizer=self.discriminator_optimizer,
            grad_clip=settings.optimizer.grad_clip,
            discriminator_grad_clip=settings.discriminator_optimizer.grad_clip,
        )

    def batches(self, examples: int) -> Iterator[Batch]:
        return stream(self.training, start=examples, run=self.settings.run, fabric=self.fabric)

    def step(self, batch: Batch, *, seen: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        length = self.settings.run.images
        just_placed = self._init_codebook_when_due(seen, count, generator)
        if seen >= self.settings.decoder_phase.begins(length) and not self.codebook.frozen:
            if just_placed:  # of a run that goes on with a shorter length: the average knows no codes yet
                self.exported.module.quantizer.load_state_dict(self.tokenizer.quantizer.state_dict())
            self._freeze_codebook()
        quantize = self.codebook.quantize(seen, generator=generator)
        images = self._on_device(batch)  # (B,C,H,W)
        buffers = copied_buffers(self.discriminator)
        settings, objective = self.settings, self.settings.objective
        inputs = StepInputs(
            quantize=quantize,
            schedule=adversarial_schedule(seen, length=length, settings=objective.adversarial),
            lecam_ema=self.lecam_ema,
            lr=rate_at(seen, length=length, settings=settings.optimizer),
            discriminator_lr=rate_at(seen, length=length, settings=settings.discriminator_optimizer),
            choices=self._choices(len(images), generator),
            r1_factor=r1_factor_at(seen // settings.run.batch, settings=objective.adversarial),
            accumulate=settings.run.accumulate,
        )
        result = gan_step(self._gan(), images, inputs)
        codebook_values: dict[str, Tensor] = {}
        if result.stepped:
            if self.codebook.placed:
                codebook_values = self._update_codebook(result.features, result.codes, generator)
            self.exported.update(self.tokenizer, seen=seen, step=count)
        if result.not_finite:
            restore_buffers(self.discriminator, buffers)
            raise NotFiniteError(result.not_finite)
        self.lecam_ema = result.lecam_ema
        return {**result.values, **codebook_values}

    def _choices(self, batch: int, generator: torch.Generator) -> RandomChoices:
        """The random choices for the images of this process: its share of what one process would draw for all of them."""
        choices = draw_choices(self.settings.objective, batch * self.share.world, generator=generator)
        return choices._replace(augmentation=choices.augmentation.part(self.share.places))

    def _init_codebook_when_due(self, seen: int, count: int, generator: torch.Generator) -> bool:
        """Initialize the codebook once, in the first step from `quantize_from` on -> whether that was now.

        A run that is resumed with another total may have passed that point without an initialized codebook.
        """
        first = self.settings.quantize_from * self.settings.run.images
        if self.codebook.placed or seen < first:
            return False
        due = self._notes_placing or seen - count < first
        if due:
            self._init_codebook(seen, generator)
        self.codebook.placed = True
        return due

    def _init_codebook(self, seen: int, generator: torch.Generator) -> None:
        """Initialize the codebook from features of the next images, where the quantizer needs any."""
        wanted = self.tokenizer.quantizer.init_features
        if not wanted:
            return
        gathered: list[Tensor] = []
        for batch in itertools.islice(self.batches(seen), 256):
            with torch.no_grad():
                gathered.append(in_stream_order(self.tokenizer.features(self._on_device(batch))))
            if sum(each.numel() // each.shape[1] for each in gathered) >= wanted:
                break
        self.tokenizer.quantizer.init_codebook(torch.cat(gathered), generator=generator)

    def _freeze_codebook(self) -> None:
        """Begin the decoder phase, or continue it after a resume."""
        settings, exported = self.settings.decoder_phase, self.exported.module
        self.codebook = FrozenCodebook(self.tokenizer, exported, settings=settings, share=self.share)
        # A data-parallel wrapper waits for the gradients of all that learned when it was made.
        self.autoencoder = self.fabric.setup_module(_Joined(self.tokenizer))

    def _update_codebook(self, features: Tensor, codes: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        features, codes = in_stream_order(features), in_stream_order(codes)
        moved = self.codebook.update_codebook(features, codes, generator=generator)
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

    def diagnose(self, means: Mapping[str, float], *, seen: int) -> Diagnoses:
        length, adversarial = self.settings.run.images, self.settings.objective.adversarial
        learns_from = 0.0 if adversarial.discriminator_from_start else amount(adversarial.start, length=length)
        factor = adversarial_schedule(seen, length=length, settings=adversarial).generator
        trained = (seen - learns_from) / length
        return {
            **diagnose_codebook(means, size=self.tokenizer.size),
            **diagnose_gan(means, settings=adversarial, trained=trained, strength=factor),
        }

    def _on_device(self, batch: Batch) -> Tensor:
        images = self.training.to_images(self.fabric.to_device(batch.images))
        return images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """PSNR (of label maps the share of right labels), the reconstruction loss and its terms, and the codes in use over the
        held-out images, each process a share. With a decoder phase also that PSNR or share where some codes are replaced.
        """
        used, scores = CodeUse(self.tokenizer.size), []
        share = Share(self.held_out, rank=self.fabric.global_rank, world=self.fabric.world_size)
        self.score.eval()
        likeness, like = ("accuracy", label_accuracy) if self.settings.images.file_type == "labels" else ("psnr", psnr)
        several = max(self.settings.run.batch // self.fabric.world_size, 1)
        with self.exported.shown() as tokenizer:
            others = self._other_reconstructions(tokenizer, batch=several)
            for batch in in_order(share, batch=several):
                images = self._on_device(batch)
                reconstructions, quantized = tokenizer(images)
                terms = self.score(images, reconstructions)._asdict()
                likenesses = [
                    like(images, reconstructions),
                    *(like(images, of(quantized.codes)) for of in others.values()),
                ]
                means = [*(each.mean() for each in likenesses), *(terms[name] for name in self._terms().values())]
                scores.append(torch.stack(means) * len(images))
                used.add(quantized.codes)
        self.score.train()
        count = len(self.held_out)
        names = (likeness, *(f"{likeness}_{name}" for name in others), *self._terms())
        totals = torch.stack(scores).sum(0) if scores else torch.zeros(len(names), device=self.fabric.device)
        used.counts = sum_of_processes(self.fabric, used.counts).cpu()
        means_of_all = dict(zip(names, (sum_of_processes(self.fabric, totals) / count).tolist(), strict=True))
        return {**means_of_all, "codes_in_use": used.in_use, "perplexity": used.perplexity, "images": float(count)}

    def _other_reconstructions(self, tokenizer: VQGAN, *, batch: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """What else the held-out images are compared with: name -> a function of the codes (B,h,w) of each batch in turn."""
        if not self.settings.has_decoder_phase:
            return {}
        (height, width), f = self.settings.images.size, tokenizer.factor
        codes, seed = (len(self.held_out), height // f, width // f), self.settings.run.seed
        chances = validation_chances(codes, seed=seed, share=self.share, batch=batch)
        noise = self.codebook.noise(tokenizer)
        return {"replaced": lambda codes: tokenizer.decode(noise.latents(codes, next(chances)))}

    def _terms(self) -> dict[str, str]:
        """What is recorded of the reconstruction loss -> its name in `Reconstruction`; only what is computed."""
        return {"reconstruction": "total", "pixel": "pixel", **{name: name for name in self.settings.objective.terms}}

    @torch.no_grad()
    def image(self) -> Tensor:
        """Held-out images above, their reconstructions below; label maps in colors."""
        images = self._on_device(spread(self.held_out, SHOWN))
        with self.exported.shown() as tokenizer:
            reconstructions, _ = tokenizer(images)
        both = torch.cat([images, reconstructions]).cpu().contiguous()
        shown = label_colors(both) if self.settings.images.file_type == "labels" else both
        return grid(shown.contiguous(), columns=len(images), gap=2)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.autoencoder,
            "discriminator": self.wrapped_discriminator,
            "optimizer": self.optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
            "average": self.exported.module,
            "lecam": self.lecam_ema._asdict(),
            "used": {"counts": self.used.counts, "placed": self.codebook.placed},
        }

    def restored(self, state: Mapping[str, Any]) -> None:
        self.lecam_ema = LeCam(**{name: value.to(self.fabric.device) for name, value in state["lecam"].items()})
        used = state["used"]
        self._notes_placing = not isinstance(used, Tensor)
        if self._notes_placing:
            self.codebook.placed = self.codebook.placed or used["placed"]
        self.used.counts = (used["counts"] if self._notes_placing else used).cpu()

    def export(self, folder: Path, *, seen: int) -> None:
        about = {**self.about, "images_seen": seen, "fingerprint": self.exported.module.fingerprint()}
        self.exported.module.save_pretrained(folder, about=about)
