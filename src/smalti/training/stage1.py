"""Training of stage 1: the tokenizer with its losses and a discriminator.

Notation: B batch, C channels, H W pixels, h w code grid, D dimension of a code. Source: arXiv 2012.09841, section 3.1.
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

from smalti.conditions.map_files import label_colors
from smalti.core.distributed import all_gather
from smalti.core.errors import SmaltiError
from smalti.core.settings import amount
from smalti.data.loader import Batch, evenly_spaced_batch
from smalti.data.sources import Source
from smalti.data.splits import split_crops
from smalti.evaluation.metrics import CodeUse
from smalti.images.io import make_image_grid
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
    ProcessSlice,
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
from smalti.training.launcher import with_synchronized_norms
from smalti.training.loop import Stage, stream
from smalti.training.optimizer import build_optimizer, exported, rate_at
from smalti.training.optimizer_step import NotFiniteError, copied_buffers, restore_buffers
from smalti.training.tokenizer_validation import validate_tokenizer

IMAGES_SHOWN = 8
"""Images in the grid that is saved during training."""


@final
class _AutoencoderForward(nn.Module):
    """Images -> features, codes and reconstructions in one `forward`, as data-parallel wrappers need it."""

    def __init__(self, tokenizer: VQGAN) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, images: Tensor, quantize: Callable[[Tensor], Quantized]) -> tuple[Tensor, Quantized, Tensor]:
        features = self.tokenizer.features(images)  # (B,D,h,w)
        quantized = quantize(features)
        return features, quantized, self.tokenizer.decode(quantized.latents)  # .., .., (B,C,H,W)


def in_stream_order(local: Tensor) -> Tensor:
    """(B,..) of this process -> (world B,..) of all, in the order in which one process would have read the examples.

    Each process reads every world-th example of the stream (see `data.loader.batches`).
    """
    gathered = all_gather(local)
    processes = len(gathered) // len(local)
    return gathered.view(processes, *local.shape).transpose(0, 1).flatten(0, 1) if processes > 1 else gathered


def adversarial_schedule(seen: int, *, length: int, settings: AdversarialSettings) -> AdversarialSchedule:
    """The factors of the adversarial losses after `seen` of `length` images."""
    start = amount(settings.start, length=length)
    return AdversarialSchedule(
        generator=ramp(seen, start=start, length=amount(settings.ramp, length=length)),
        discriminator=1.0 if settings.discriminator_from_start or seen >= start else 0.0,
    )


@final
class TokenizerStage(Stage):
    """Trains a VQGAN. Validates and exports the EMA of the weights, or with `ema_half_life` 0 the weights
    themselves."""

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
        """`weights`: of the tokenizer to start from, whose codebook is kept; empty to start from scratch."""
        torch.manual_seed(settings.run.seed)
        self.settings, self.fabric, self.about = settings, fabric, dict(about)
        self.process_slice = ProcessSlice(fabric.global_rank, fabric.world_size)
        self.training, self.held_out = split_crops(
            source,
            settings.images,
            channels=settings.model.autoencoder.channels,
            seed=settings.run.seed,
            max_held_out=settings.images.validation_images,
        )
        self._build_networks(weights)
        self._wrap_networks()
        self.score = ReconstructionLoss(settings.objective).to(fabric.device)
        self.lecam_ema = LeCam.start(fabric.device)
        self.used = CodeUse(self.tokenizer.size)
        self.codebook: CodebookTraining = LearningCodebook(
            self.tokenizer.quantizer, settings, initialized=bool(weights)
        )

    def _build_networks(self, weights: Mapping[str, Tensor]) -> None:
        """Make the tokenizer, its exported copy and the discriminator, as they are before Fabric wraps them."""
        settings = self.settings
        self.tokenizer = VQGAN(settings.model)
        if weights:
            self.tokenizer.load_state_dict(weights)
        elif settings.has_decoder_phase and not settings.decoder_phase.start:
            raise SmaltiError(
                "decoder_phase.start = 0 freezes an encoder that has learned nothing; begin with a trained tokenizer "
                "(--from), or set decoder_phase.start above 0"
            )
        discriminator = replace(
            settings.objective.adversarial.discriminator, channels=settings.model.autoencoder.channels
        )
        self.discriminator = with_synchronized_norms(
            DISCRIMINATORS[discriminator.name](discriminator), fabric=self.fabric
        )
        for module in (self.tokenizer, self.discriminator):
            as_channels_last(module)
        self.exported = exported(self.tokenizer, half_life=settings.run.ema_half_life)
        self.exported.module.to(self.fabric.device)

    def _wrap_networks(self) -> None:
        """Make the optimizers, and let Fabric move networks and optimizers to their device and wrap them for several
        processes."""
        settings, fabric = self.settings, self.fabric
        if settings.run.recompute:
            recompute(tokenizer_blocks(self.tokenizer))
        if settings.run.compile:
            compiled(tokenizer_stages(self.tokenizer), device=fabric.device)
        self.autoencoder: Any
        self.wrapped_discriminator: Any
        self.optimizer: Any = build_optimizer([{"params": list(self.tokenizer.parameters())}], settings.optimizer)
        self.discriminator_optimizer: Any = build_optimizer(
            [{"params": self._discriminator_weights()}], settings.discriminator_optimizer
        )
        self.autoencoder, self.optimizer = fabric.setup(_AutoencoderForward(self.tokenizer), self.optimizer)
        self.wrapped_discriminator, self.discriminator_optimizer = fabric.setup(
            self.discriminator, self.discriminator_optimizer
        )

    def _discriminator_weights(self) -> list[Tensor]:
        """Those that are trained: the projected discriminator has a frozen feature network."""
        return [weight for weight in self.discriminator.parameters() if weight.requires_grad]

    def _gan(self) -> GAN:
        """The networks, losses and optimizers of a GAN step."""
        settings = self.settings
        return GAN(
            fabric=self.fabric,
            autoencoder=self.autoencoder,
            discriminator=self.wrapped_discriminator,
            discriminator_weights=self._discriminator_weights(),
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
        self._advance_codebook(seen, generator)
        quantize = self.codebook.quantize(seen, generator=generator)
        images = self._on_device(batch)  # (B,C,H,W)
        buffers = copied_buffers(self.discriminator)
        choices = self._choices(len(images), generator)
        result = gan_step(self._gan(), images, self._step_inputs(seen, quantize=quantize, choices=choices))
        codebook_values: dict[str, Tensor] = {}
        if result.stepped:
            if self.codebook.initialized:
                codebook_values = self._update_codebook(result.features, result.codes, generator)
            self.exported.update(self.tokenizer, seen=seen, step=count)
        if result.not_finite:
            restore_buffers(self.discriminator, buffers)
            raise NotFiniteError(result.not_finite)
        self.lecam_ema = result.lecam_ema
        return {**result.values, **codebook_values}

    def _step_inputs(self, seen: int, *, quantize: Callable[[Tensor], Quantized], choices: RandomChoices) -> StepInputs:
        """What the step after `seen` images depends on: schedules, and what is drawn for it."""
        settings, adversarial = self.settings, self.settings.objective.adversarial
        length = settings.run.images
        return StepInputs(
            quantize=quantize,
            schedule=adversarial_schedule(seen, length=length, settings=adversarial),
            lecam_ema=self.lecam_ema,
            lr=rate_at(seen, length=length, settings=settings.optimizer),
            discriminator_lr=rate_at(seen, length=length, settings=settings.discriminator_optimizer),
            choices=choices,
            r1_factor=r1_factor_at(seen // settings.run.batch, settings=adversarial),
            accumulate=settings.run.accumulate,
        )

    def _advance_codebook(self, seen: int, generator: torch.Generator) -> None:
        """Initialize the codebook, and begin the decoder phase, in the first step at or after their points."""
        just_initialized = self._init_codebook_when_due(seen, generator)
        if seen >= self.settings.decoder_phase.begins(self.settings.run.images) and not self.codebook.frozen:
            if just_initialized:  # in a run resumed with a shorter length: the EMA has no codebook yet
                self.exported.module.quantizer.load_state_dict(self.tokenizer.quantizer.state_dict())
            self._freeze_codebook()

    def _choices(self, batch: int, generator: torch.Generator) -> RandomChoices:
        """The random choices for the images of this process: its part of what a single process would draw
        for all images."""
        choices = draw_choices(self.settings.objective, batch * self.process_slice.world, generator=generator)
        return choices._replace(augmentation=choices.augmentation.part(self.process_slice.indices))

    def _init_codebook_when_due(self, seen: int, generator: torch.Generator) -> bool:
        """Initialize the codebook in the first step at or after `quantize_from`. Returns whether it was initialized
        now.

        A run that is resumed with another length may have passed that point without an initialized codebook.
        """
        first = self.settings.quantize_from * self.settings.run.images
        if self.codebook.initialized or seen < first:
            return False
        self._init_codebook(seen, generator)
        self.codebook.initialized = True
        return True

    def _init_codebook(self, seen: int, generator: torch.Generator) -> None:
        """Initialize the codebook from features of the next images, if the quantizer needs any."""
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
        self.codebook = FrozenCodebook(self.tokenizer, exported, settings=settings, process_slice=self.process_slice)
        # A data-parallel wrapper waits for the gradients of all parameters that were trainable when it was made.
        self.autoencoder = self.fabric.setup_module(_AutoencoderForward(self.tokenizer))

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

    def validate(self) -> dict[str, float]:
        """See `validate_tokenizer`. With a decoder phase some codes are replaced in a second reconstruction."""
        with torch.no_grad(), self.exported.shown() as tokenizer:
            noise = self.codebook.noise(tokenizer) if self.settings.has_decoder_phase else None
            return validate_tokenizer(
                tokenizer,
                self.held_out,
                settings=self.settings,
                score=self.score,
                to_images=self._on_device,
                noise=noise,
                fabric=self.fabric,
            )

    @torch.no_grad()
    def image(self) -> Tensor:
        """Held-out images above, their reconstructions below; label maps in colors."""
        images = self._on_device(evenly_spaced_batch(self.held_out, IMAGES_SHOWN))
        with self.exported.shown() as tokenizer:
            reconstructions, _ = tokenizer(images)
        both = torch.cat([images, reconstructions]).cpu().contiguous()
        shown = label_colors(both) if self.settings.images.file_type == "labels" else both
        return make_image_grid(shown.contiguous(), columns=len(images), gap=2)

    def state(self) -> dict[str, Any]:
        return {
            "model": self.autoencoder,
            "discriminator": self.wrapped_discriminator,
            "optimizer": self.optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
            "average": self.exported.module,
            "lecam": self.lecam_ema._asdict(),
            "used": {"counts": self.used.counts, "initialized": self.codebook.initialized},
        }

    def restored(self, state: Mapping[str, Any]) -> None:
        self.lecam_ema = LeCam(**{name: value.to(self.fabric.device) for name, value in state["lecam"].items()})
        self.codebook.initialized = self.codebook.initialized or state["used"]["initialized"]
        self.used.counts = state["used"]["counts"].cpu()

    def export(self, folder: Path, *, seen: int) -> None:
        about = {**self.about, "images_seen": seen, "fingerprint": self.exported.module.fingerprint()}
        self.exported.module.save_pretrained(folder, about=about)
