"""The tasks of jobs: generate, edit, vary and reconstruct images, with the library's pipeline.

B batch, C channels, H W pixels, h w code grid, f = H/h.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping
from smalti.evaluation.metrics import psnr
from smalti.evaluation.rejection_sampling import by_likelihood, rejection_sample
from smalti.generation.generation_loop import generation_states
from smalti.generation.partial_images import PreviewSchedule
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.images.io import Array, png_bytes, to_array, to_tensor
from smalti.images.seams import with_kept_pixels
from smalti.web.code_images import data_url, masked_image, mosaic
from smalti.web.jobs import Outcome, Report, ResultImage, Task
from smalti.web.requests import Extension, SamplingRequest, check_size
from smalti.web.studio import Studio

PREVIEW_SIDE = 512
"""Maximum longer side of previews in pixels."""
PREVIEW_SHARE = 0.2
"""Largest fraction of the time that previews take."""
CANDIDATES = 4
"""Candidates per image where the prior has a fixed order, and does not see what is kept below and to the right."""
GREEDY = "with temperature 0 or top-k 1 always the most likely code is taken, and images tend to become uniform"


@final
@dataclass(frozen=True, eq=False)
class Plan:
    """What all generating tasks share: the studio, the checked request, its condition value, and what the images' files
    say about it."""

    studio: Studio
    request: SamplingRequest
    value: Any
    about: Mapping[str, Any]

    def estimate(self, grid: tuple[int, int], codes: int) -> float:
        """Seconds for `codes` of each image of a grid (h,w)."""
        request = self.request
        return self.studio.pace.estimate(grid, codes=codes, count=request.count, guided=request.guidance != 1)

    def codes_request(self, known: Tensor) -> GenerationRequest:
        """Codes (1,h,w), -1 where one is to be generated -> the library's request for all images."""
        pipeline, request = self.studio.pipeline, self.request
        return pipeline.request_for(
            [self.value] * request.count,
            known.repeat(request.count, 1, 1),
            seeds=pipeline.seeds(request.seed, request.count),
            sampler=request.sampler,
        )

    def generate(self, known: Tensor, report: Report) -> Tensor:
        """Codes (1,h,w), -1 where one is to be generated -> complete codes (B,h,w), with previews."""
        pipeline, request = self.studio.pipeline, self.codes_request(known)
        schedule = PreviewSchedule(every=0.15, max_share=PREVIEW_SHARE)
        for state in generation_states(pipeline.prior, request):
            report.check()
            if schedule.is_due and not state.is_complete:
                with schedule:
                    images = pipeline.decode_partial(state.codes)
                    shown = (masked_image(*both) for both in zip(images, state.codes, strict=True))
                    previews = tuple(data_url(pixels, side=PREVIEW_SIDE) for pixels in shown)
                report.update(state.share, state.seconds_left, previews)
            elif not state.is_complete:
                report.update(state.share, state.seconds_left)
        self.record(state.seconds, known)
        return state.codes

    def record(self, seconds: float, known: Tensor) -> None:
        """Note the time of a generation from codes (1,h,w)."""
        self.studio.pace.record(
            seconds,
            (known.shape[1], known.shape[2]),
            codes=int((known < 0).sum()),
            count=self.request.count,
            guided=self.request.guidance != 1,
        )

    def outcome(self, images: Tensor, *, task: str, facts: Mapping[str, Any]) -> Outcome:
        """Images (B,C,H,W) -> the result of the job."""
        title = str(self.about.get("label") or self.about.get("text") or "image")
        height, width = images.shape[2:]
        settings = {**as_mapping(self.request), "height": height, "width": width, "count": 1}
        made = []
        for seed, image in enumerate(images, self.request.seed):
            about = {"command": task, "model": self.studio.name, **settings, "seed": seed, **self.about}
            name = f"{_slug(title)}-{seed}.png"
            made.append(ResultImage(name, title, seed, (height, width), png_bytes(image, settings=about)))
        greedy = self.request.temperature == 0 or self.request.top_k == 1
        return Outcome(tuple(made), {**facts, **({"note": GREEDY} if greedy else {})})


@final
@dataclass(frozen=True, eq=False)
class SampleTask(Task):
    """New images."""

    plan: Plan

    @property
    def seconds(self) -> float:
        grid = self.plan.studio.pipeline.grid(self.plan.request.size)
        return self.plan.estimate(grid, grid[0] * grid[1])

    def run(self, report: Report) -> Outcome:
        plan, pipeline = self.plan, self.plan.studio.pipeline
        codes = plan.generate(unknown_codes(1, pipeline.grid(plan.request.size)), report)
        return plan.outcome(pipeline.decode(codes), task="sample", facts={})


@final
@dataclass(frozen=True, eq=False)
class EditTask(Task):
    """A part of an image is generated anew, or the image is extended; other pixels stay as they are, to the bit."""

    plan: Plan
    pixels: Array
    """(H,W,C) uint8."""
    masked: Tensor
    """(H,W) bool, True where pixels are generated."""
    extend: Extension

    def __post_init__(self) -> None:
        f, sides = self.plan.studio.pipeline.tokenizer.factor, as_mapping(self.extend)
        if any(amount % f for amount in sides.values()):
            raise SmaltiError(f"an image is extended by multiples of {f} pixels, not by {sides}")
        if not self.masked.any() and not any(sides.values()):
            raise SmaltiError("nothing is marked and nothing added; mark the region to generate, or extend the image")
        whole = self.extend.around(self.plan.request.size)
        check_size(self.plan.studio.pipeline, whole, self.plan.studio.limits, count=self.plan.request.count)

    @property
    def seconds(self) -> float:
        grid = self.plan.studio.pipeline.grid(self.extend.around(self.plan.request.size))
        return self.plan.estimate(grid, grid[0] * grid[1]) * (1 if self._is_exact else CANDIDATES)

    @property
    def _is_exact(self) -> bool:
        return self.plan.studio.pipeline.prior.knows_any_order

    def run(self, report: Report) -> Outcome:
        plan, pipeline = self.plan, self.plan.studio.pipeline
        f, extend = pipeline.tokenizer.factor, self.extend
        given = to_tensor(self.pixels)[None]  # (1,C,H,W)
        around = (extend.left, extend.right, extend.top, extend.bottom)
        kept = pipeline.known_codes(given, ~self.masked)  # (1,h,w)
        known = F.pad(kept, tuple(side // f for side in around), value=-1)
        codes = plan.generate(known, report) if self._is_exact else self._best(known, report)
        completed = pipeline.decode(codes)
        canvas, keep = F.pad(given, around), F.pad(~self.masked, around, value=False)
        images = with_kept_pixels(completed, canvas, keep, reach=f)
        return plan.outcome(images, task="complete", facts={"exact": self._is_exact})

    def _best(self, known: Tensor, report: Report) -> Tensor:
        """The codes (B,h,w) of the candidates that fit best what is kept. The images' own seeds reproduce them."""
        plan, pipeline = self.plan, self.plan.studio.pipeline
        request, began = plan.codes_request(known), time.monotonic()

        def progress(done: int, total: int) -> None:
            share = done / total if total else 1.0
            left = (time.monotonic() - began) * (1 / share - 1) if share else math.inf
            report.update(share, left)

        best = rejection_sample(
            pipeline,
            request,
            num_candidates=CANDIDATES,
            score=by_likelihood(pipeline, request),
            progress=progress,
        )
        plan.record((time.monotonic() - began) / CANDIDATES, known)
        return best.codes


@final
@dataclass(frozen=True, eq=False)
class VaryTask(Task):
    """Images like a given one: a fraction of its codes is generated anew."""

    plan: Plan
    pixels: Array
    """(H,W,C) uint8."""
    strength: float

    @property
    def seconds(self) -> float:
        grid = self.plan.studio.pipeline.grid(self.plan.request.size)
        return self.plan.estimate(grid, int(grid[0] * grid[1] * self.strength))

    def run(self, report: Report) -> Outcome:
        plan, pipeline = self.plan, self.plan.studio.pipeline
        codes = pipeline.encode(to_tensor(self.pixels)[None]).cpu()
        known = torch.where(self.renewed(codes), -1, codes)
        images = pipeline.decode(plan.generate(known, report))
        return plan.outcome(images, task="vary", facts={"exact": pipeline.prior.knows_any_order})

    def renewed(self, codes: Tensor) -> Tensor:
        """Codes (1,h,w) -> those to generate (1,h,w) bool: random ones, or with a fixed order the last ones in it."""
        prior, places = self.plan.studio.pipeline.prior, codes[0].numel()
        count = max(round(places * self.strength), 1)
        if prior.knows_any_order:
            generator = torch.Generator().manual_seed(self.plan.request.seed)
            chosen = torch.randperm(places, generator=generator)[:count]
        else:
            chosen = torch.arange(places)[-count:]
            order = prior.sequence_order((codes.shape[1], codes.shape[2]), device=codes.device)
            chosen = order[chosen]
        renewed = torch.zeros(places, dtype=torch.bool)
        renewed[chosen] = True
        return renewed.view_as(codes)


@final
@dataclass(frozen=True, eq=False)
class ReconstructTask(Task):
    """An image, its reconstruction, and its codes as a mosaic."""

    studio: Studio
    name: str
    pixels: Array
    """(H,W,C) uint8."""

    @property
    def seconds(self) -> float:
        return 1.0

    def run(self, report: Report) -> Outcome:
        pipeline, given = self.studio.pipeline, to_tensor(self.pixels)[None]
        report.update(0.0, math.inf)
        codes = pipeline.encode(given)
        report.update(0.5, math.inf)
        decoded = pipeline.decode(codes)
        height, width = given.shape[2:]
        rows, columns = codes.shape[1:]
        tiles = mosaic(codes[0], decoded[0])
        shown: list[tuple[str, str, Array]] = [
            ("original", "Original", self.pixels),
            ("reconstruction", "Reconstruction", to_array(decoded[0])),
            ("codes", "Codes", tiles),
        ]
        facts = {
            "psnr": round(float(psnr(decoded, given)), 3),
            "codes": codes[0].tolist(),
            "grid": [rows, columns],
            "distinct": len(set(codes.flatten().tolist())),
            "bytes": [
                height * width * 3,
                math.ceil(rows * columns * math.ceil(math.log2(pipeline.tokenizer.size)) / 8),
            ],
        }
        stem = _slug(self.name.rpartition(".")[0] or self.name)
        images = tuple(
            ResultImage(f"{stem}-{name}.png", caption, 0, (height, width), png_bytes(pixels))
            for name, caption, pixels in shown
        )
        return Outcome(images, facts)


def _slug(text: str) -> str:
    """Any text -> a part of a file name."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in text)
    return "-".join(part for part in plain.split("-") if part)[:60] or "image"
