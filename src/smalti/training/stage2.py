"""One step of stage 2: the prior on code shards.

Notation: B batch, P prefix codes, h w code grid, K size of the codebook. Source: arXiv 2012.09841, section 3.2.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from smalti.conditions.base import Condition, constant_prefix
from smalti.data.code_shards import CodeBatch, CodeShards, entropy
from smalti.data.loader import evenly_spaced_batch, in_order
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.images.io import make_image_grid, to_tensor
from smalti.prior import Prior, nll, parameter_groups
from smalti.prior_folder import save_prior
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.activation_checkpointing import compiled, recompute
from smalti.training.config import PriorTraining
from smalti.training.diagnostics import Diagnoses
from smalti.training.initialization import PriorStart
from smalti.training.loop import Stage, stream
from smalti.training.optimizer import build_optimizer, exported, rate_at
from smalti.training.optimizer_step import (
    NotFiniteError,
    apply_gradients,
    clip_gradients,
    gradient_sync,
    mean_of_processes,
    not_finite,
    quotient_of_processes,
)
from smalti.training.prior_networks import CodesRead, build_network

SHOWN = 16
"""Images in the grid of samples during training."""
VALIDATION_IMAGES = 2048
"""The largest number of held-out images whose likelihood is measured."""


@final
class _Joined(nn.Module):
    """prefix (B,P), codes (B,h,w), input codes (B,h,w), orders (B,n) -> negative log-likelihood in nats of each code
    (B,h,w). Orders (B,0) are the prior's own.

    In one `forward`, so that data-parallel wrappers see it.
    """

    def __init__(self, prior: Prior) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, prefix: Tensor, codes: Tensor, inputs: Tensor, orders: Tensor) -> Tensor:
        return nll(self.prior, prefix, codes, inputs=inputs, order=orders if orders.shape[1] else None)


def blocks(joined: Any) -> nn.ModuleList:
    """What is trained -> the blocks of its prior."""
    return joined.prior.blocks  # type: ignore[no-any-return]


def _described(shards: CodeShards, condition: Condition) -> Mapping[str, Any]:
    """The settings of the condition, as plain values."""
    if condition.is_stored and shards.meta.prefix is not None:
        return shards.meta.prefix.condition
    return condition.save(shards.path)  # labels or none, which write nothing


def corrupt_codes(codes: Tensor, *, keep_probability: float, vocabulary: int) -> Tensor:
    """Codes (B,h,w) -> the same with each code kept with `keep_probability`, else replaced by a random one below
    `vocabulary`.

    The original's `pkeep`. Draws from torch's default generator, unless the probability is 1.
    """
    if keep_probability == 1.0:
        return codes
    kept = torch.rand(codes.shape, device=codes.device) < keep_probability
    return torch.where(kept, codes, torch.randint_like(codes, vocabulary))


@final
class PriorStage(Stage):
    """Trains a prior. It validates, samples and exports a running average of the weights, or with `ema_half_life` 0 the
    weights."""

    unit = "codes"
    selection_metric = "nats"

    def __init__(
        self,
        settings: PriorTraining,
        shards: CodeShards,
        condition: Condition,
        tokenizer: VQGAN,
        *,
        fabric: Fabric,
        about: Mapping[str, Any],
        start: PriorStart | None = None,
    ) -> None:
        """`start`: the prior whose weights are the first ones, if not random ones."""
        torch.manual_seed(settings.run.seed)
        self.settings, self.shards, self.condition, self.fabric = settings, shards, condition, fabric
        codes = shards.meta
        self.per_example = codes.grid[0] * codes.grid[1]
        self.entropy = entropy(shards.training, codes.size)
        self.about = {**about, "code_entropy_nats": self.entropy}
        codes_read = CodesRead(codes.size, codes.grid, condition.size, condition.length, condition.maps)
        prior, self.vocabulary = build_network(settings.network, codes_read)
        if start is not None:
            start.load_into(prior, _described(shards, condition))
        self.exported = exported(prior, half_life=settings.run.ema_half_life)
        self.exported.module.to(fabric.device)
        self.tokenizer = tokenizer.to(fabric.device)
        if settings.run.recompute:
            recompute(prior.blocks)
        if settings.run.compile:
            compiled(prior.blocks, device=fabric.device)
        self.prior = prior
        self.likelihood: Any = fabric.setup_module(_Joined(prior))
        groups = parameter_groups(prior, weight_decay=settings.optimizer.weight_decay)  # of the weights as they lie now
        self.optimizer: Any = fabric.setup_optimizers(build_optimizer(groups, settings.optimizer))

    def batches(self, examples: int) -> Iterator[CodeBatch]:
        return stream(self.shards.training, start=examples, run=self.settings.run, fabric=self.fabric)

    def step(self, batch: CodeBatch, *, seen: int, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        prefix, codes = self._prefix(batch), self.fabric.to_device(batch.codes)  # (B,P), (B,h,w)
        prefix = self._drop_conditions(prefix)
        inputs = corrupt_codes(codes, keep_probability=self.settings.keep_probability, vocabulary=self.vocabulary)
        orders = self._orders(len(codes))  # (B,n) or (B,0)
        parts = self.settings.run.accumulate
        losses = []
        examples = (prefix, codes, inputs, orders)
        for number, part in enumerate(zip(*(each.chunk(parts) for each in examples), strict=True), 1):
            with gradient_sync(self.fabric, (self.likelihood,), enabled=number == parts):
                losses.append(self.likelihood(*part).mean())
                self.fabric.backward(losses[-1] / parts)
        norm = clip_gradients(self.fabric, self.likelihood, self.optimizer, self.settings.optimizer.grad_clip)
        local_values = {"nats": torch.stack([loss.detach() for loss in losses]).mean(), "gradient_norm": norm}
        values = mean_of_processes(self.fabric, local_values)
        lr = rate_at(seen, length=self.settings.run.codes, settings=self.settings.optimizer)
        broken = not_finite(values)
        if not broken:
            apply_gradients(self.optimizer, lr=lr)
        self.optimizer.zero_grad(set_to_none=True)
        if broken:
            raise NotFiniteError(broken)
        self.exported.update(self.prior, seen=seen, step=count)
        return {**values, "rate": torch.tensor(lr)}

    def _drop_conditions(self, prefix: Tensor) -> Tensor:
        """The codes (B,P) of conditions -> the same with some dropped: parts of composite conditions, and whole
        ones."""
        probability, of_parts = self.settings.condition_dropout, self.settings.part_dropout
        if not probability and not of_parts:
            return prefix
        if self.condition.parts:
            of_all = [of_parts.get(part.key, probability) for part in self.condition.parts]
            probabilities = torch.tensor(of_all, device=prefix.device)  # (n,)
            parts = torch.rand(len(prefix), len(of_all), device=prefix.device) < probabilities
            prefix = self.condition.drop_parts(prefix, parts)
        hidden = torch.rand(len(prefix), 1, device=prefix.device) < probability
        return torch.where(hidden, self.prior.null_prefix(len(prefix)), prefix)

    def _orders(self, batch: int) -> Tensor:
        """The orders of the images of a step (B,n), or (B,0) if the prior has an order of its own."""
        if not self.prior.knows_any_order:
            return torch.empty(batch, 0, dtype=torch.int64)
        return self.settings.orders.draw(batch, self.prior.grid, device=self.fabric.device)

    def diagnose(self, means: Mapping[str, float], *, seen: int) -> Diagnoses:
        """A prior has no diagnostics of its own."""
        return {}

    def _prefix(self, batch: CodeBatch) -> Tensor:
        """The condition's codes as in the shards, or label indices -> prefix codes (B,P)."""
        if self.condition.size == 0:
            return self.prior.null_prefix(len(batch.labels))
        prefix: Tensor = self.fabric.to_device(self.condition.example_prefix(batch.labels, batch.prefix))
        return prefix

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Nats per code on held-out images with their conditions, and the unigram entropy; each process has a share."""
        total, count = 0.0, 0
        most = -(-VALIDATION_IMAGES // self.settings.run.batch)
        every = itertools.islice(in_order(self.shards.validation, batch=self.settings.run.batch), most)
        with self.exported.shown() as prior:
            for batch in itertools.islice(every, self.fabric.global_rank, None, self.fabric.world_size):
                losses = nll(prior, self._prefix(batch), self.fabric.to_device(batch.codes))
                total, count = total + float(losses.sum()), count + losses.numel()
        mean = quotient_of_processes(self.fabric, total, count)
        return {"nats": mean, "code_entropy_nats": self.entropy, "below_entropy": 1 - mean / self.entropy}

    @torch.no_grad()
    def image(self) -> Tensor:
        """Samples of the exported prior, one seed each: of all labels in turn, or after each of some held-out
        conditions."""
        with self.exported.shown() as prior:
            prefix = self._sample_prefix(prior)
            known, seeds = unknown_codes(len(prefix), prior.grid), torch.arange(len(prefix))
            codes = final_codes(generate(prior, GenerationRequest(constant_prefix(prefix), known, seeds=seeds)))
        images = self.tokenizer.decode_codes(codes).cpu().contiguous()  # (B,C,H,W)
        if self.condition.is_stored:
            previews = torch.stack([to_tensor(self.condition.preview(row)) for row in prefix.cpu()])  # (B,3,H',W')
            size = (images.shape[2], images.shape[2] * previews.shape[3] // previews.shape[2])
            previews = F.interpolate(previews, size=size, mode="nearest-exact")  # as high as the images
            images = torch.cat((previews, images.expand(-1, 3, -1, -1)), dim=3)
            return make_image_grid(images, columns=4, gap=2)
        return make_image_grid(images, columns=8, gap=2)

    def _sample_prefix(self, prior: Prior) -> Tensor:
        """The conditions of the samples, (B,P)."""
        if self.condition.from_labels:
            return (torch.arange(SHOWN, device=self.fabric.device) % self.condition.size).reshape(-1, 1)
        if self.condition.size:
            prefix: Tensor = self.fabric.to_device(evenly_spaced_batch(self.shards.validation, SHOWN).prefix)
            return prefix
        return prior.null_prefix(SHOWN)

    def state(self) -> dict[str, Any]:
        return {"model": self.likelihood, "optimizer": self.optimizer, "average": self.exported.module}

    def restored(self, state: Mapping[str, Any]) -> None:
        """Nothing but modules and the optimizer, which were restored in place."""

    def export(self, folder: Path, *, seen: int) -> None:
        about = {**self.about, "codes_seen": seen}
        save_prior(self.exported.module, self.condition, folder, fingerprint=self.shards.meta.fingerprint, about=about)
