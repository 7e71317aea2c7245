"""The experiment `inpainting`: what does an any-order prior gain in a hole, and what does it cost?

One tokenizer, one set of codes, one network. A raster prior and an any-order prior are trained for equal time, half of
the images with their labels, if they have some, and half without. Measured on held-out images, unconditionally: the
likelihood of a hole's codes given all that is kept, and of whole images in raster order. Shown: holes completed by both
priors, unconditionally too, so that only what is kept determines the hole. And samples of all labels, in a few parallel
steps beside the exact path: time, Frechet distance, and class accuracy.

B batch, H W pixels, f = H/h, h w grid of codes.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from smalti.conditions.base import constant_prefix
from smalti.core.devices import pick_device
from smalti.core.progress import progress_bar
from smalti.core.settings import Natural, Positive, as_mapping, settings
from smalti.data.code_shards import CodeBatch, open_codes
from smalti.data.config import ImageSettings
from smalti.data.loader import Batch, Crops, batches, evenly_spaced_batch, in_order
from smalti.data.sources import Source, open_source
from smalti.data.splits import split_crops
from smalti.evaluation.image_sets import measure_sets
from smalti.evaluation.protocols import FeatureProtocol, ImageProtocol, SetProtocol
from smalti.evaluation.rejection_sampling import by_likelihood, rejection_sample
from smalti.experiments import prior_steps, steps
from smalti.experiments.base import Experiment, ExperimentRequest, Step, StepContext
from smalti.experiments.class_network import Classifier, accuracy, train_classifier
from smalti.experiments.equal_time import with_length
from smalti.experiments.inpainting.findings import ANY, CODES, EXACT, RASTER, REAL, findings
from smalti.experiments.inpainting.holes import HOLES, SHOWN
from smalti.experiments.sampling import MIN_SAMPLES
from smalti.experiments.steps import ImageSource, check_overrides_used
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import GenerationRequest, unknown_codes
from smalti.hub.pretrained import find_model
from smalti.images.io import save_png
from smalti.images.seams import with_kept_pixels
from smalti.model_loading import load_tokenizer
from smalti.pipeline import Pipeline
from smalti.prior import Prior, nll
from smalti.prior.order import known_first
from smalti.prior_folder import load_prior
from smalti.training.config import CopiesSettings, PriorTraining
from smalti.training.run_folder import read_metrics
from smalti.training.runs import encode_images, train_prior

BATCH = 64
"""Images that are measured or generated at once."""
CLASSIFIED = 16
"""Images per batch of the classifier."""
TIMED = 3
"""How often one image alone is generated; the shortest time counts."""


@settings
class InpaintingSettings:
    """What is compared, and on what."""

    recipe: str
    """Of the tokenizer and of the priors."""
    tokenizer: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for the tokenizer."""
    prior: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for both priors: their network, and `run.codes`, how many codes the raster prior sees;
    the other one sees as many as go into the same time."""
    pace_steps: Positive = 12
    """Timed training steps of each prior, from which that number follows."""
    size: tuple[Positive, Positive]
    """(H,W) of all images."""
    copies: Positive
    """Crops of each training image that the priors are trained on the codes of. Of each held-out image there is one."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Share of the images that trainings do not see."""
    best_of: Positive = 8
    """Candidates per image, where the raster prior completes by rejection."""
    shown: Positive = 4
    """Held-out images that are completed, for each hole."""
    parallel: tuple[Positive, ...] = (8, 16, 32, 64)
    """Numbers of steps of parallel decoding."""
    samples: Positive = 64
    """Images generated in each way."""
    classifier_steps: Natural = 300
    """Batches that the classifier learns from, where images have labels. 0: no classifier."""
    scenes: Positive = 480
    """How many scenes are rendered, where no images are given."""


def plan(chosen: InpaintingSettings, request: ExperimentRequest) -> list[Step]:
    """Scenes where no images are given; the tokenizer and its codes; the pace of both priors, and both for equal time;
    likelihoods; completed images; samples in parallel steps."""
    check_overrides_used(request, trains=("tokenizer", "prior"))
    images = ImageSource.of(request.data)
    tokenizer = prior_steps.tokenizer_training(
        chosen.recipe, chosen.tokenizer, request, size=chosen.size, held_out=chosen.held_out
    )
    trainings = {order: _prior_training(order, chosen, request) for order in (RASTER, ANY)}
    found = [] if request.data else [steps.scenes(count=chosen.scenes, size=chosen.size)]
    return [
        *found,
        steps.tokenizer("tokenizer", images=images, training=tokenizer),
        _codes(images, chosen),
        prior_steps.pace_step(trainings, timed_steps=chosen.pace_steps),
        *(_prior(order, training) for order, training in trainings.items()),
        _likelihoods(images, chosen),
        _completions(images, chosen),
        _samples(images, chosen),
    ]


def _prior_training(order: str, chosen: InpaintingSettings, request: ExperimentRequest) -> PriorTraining:
    changes = [f"network.order={order}", "condition=auto", "condition_dropout=0.5", "encode={}", "run.patience=0"]
    return steps.varied_prior(chosen.recipe, shared=chosen.prior, overrides=request.of("prior"), changes=changes)


def _images(chosen: InpaintingSettings) -> ImageSettings:
    """How images are cropped: random crops of training images, whole held-out ones."""
    return ImageSettings(size=chosen.size, zoom=(1.0, 1.25), validation=chosen.held_out)


def _held_out(images: ImageSource, chosen: InpaintingSettings, context: StepContext) -> Crops:
    """The held-out images, in the order of their codes."""
    return split_crops(open_source(images.path(context)), _images(chosen), channels=3, seed=0)[1]


def _codes(images: ImageSource, chosen: InpaintingSettings) -> Step:
    """The step that encodes all images, with the labels that their folders give them."""
    copies = CopiesSettings(copies=chosen.copies, images=_images(chosen))

    def work(context: StepContext) -> dict[str, Any]:
        with progress_bar(context.console, title="encoding", unit="images") as progress:
            encode_images(
                context.before["tokenizer"].folder,
                images.path(context),
                context.folder / "codes",
                settings=copies,
                seed=0,
                progress=progress,
            )
        shards = open_codes(context.folder / "codes")
        return {"training": len(shards.training) * chosen.copies, "held_out": len(shards.validation)}

    return Step(
        name=CODES,
        settings={**images.described, **as_mapping(copies)},
        work=work,
        after=(*images.after, "tokenizer"),
    )


def _prior(order: str, training: PriorTraining) -> Step:
    """The step that trains a prior over as many codes as go into the time of the raster prior's `run.codes`."""

    def work(context: StepContext) -> dict[str, Any]:
        shards = open_codes(context.before[CODES].folder / "codes")
        batch, pace = training.run.batch * math.prod(shards.meta.grid), context.before["pace"].outcome
        length = max(round(training.run.codes * pace[RASTER] / pace[order] / batch), 1) * batch
        run = replace(training, run=with_length(training.run, length))
        tokenizer = context.before["tokenizer"].folder
        train_prior(shards, tokenizer, context.folder, settings=run, console=context.console)
        lines = read_metrics(context.folder)
        entropies = [line["code_entropy_nats"] for line in lines if line["part"] == "validation"]
        points = prior_steps.prior_curve(lines)
        return {
            "curve": points,
            "codes": points[-1]["codes"],
            "seconds": points[-1]["seconds"],
            "code_entropy_nats": entropies[-1],
        }

    return Step(
        name=f"prior-{order}",
        settings={"training": steps.decisive_settings(as_mapping(training))},
        work=work,
        after=("tokenizer", CODES, "pace"),
    )


def _pipeline(context: StepContext, order: str) -> Pipeline:
    kept = find_model(context.before[f"prior-{order}"].folder, kind="prior")
    return Pipeline(load_tokenizer(context.before["tokenizer"].folder), *load_prior(kept)).to(pick_device("auto"))


def _likelihoods(images: ImageSource, chosen: InpaintingSettings) -> Step:
    """The step that asks both priors for the nats of the held-out images' codes: in holes, and in raster order."""

    def work(context: StepContext) -> dict[str, Any]:
        held_out, shards = _held_out(images, chosen, context), open_codes(context.before[CODES].folder / "codes")
        priors = {order: _pipeline(context, order) for order in (RASTER, ANY)}
        whole = {
            order: torch.cat([_nats(pipeline, batch) for batch in in_order(shards.validation, batch=BATCH)])
            for order, pipeline in priors.items()
        }  # (N,h,w)
        rows = {}
        for name, hole_of in HOLES.items():
            hole = hole_of(*shards.meta.grid)
            pairs = zip(in_order(shards.validation, batch=BATCH), in_order(held_out, batch=BATCH), strict=True)
            found = [_hole_nats(priors[ANY], codes, pixels, hole) for codes, pixels in pairs]
            raster, known, filled = (
                whole[RASTER][:, hole].mean(1),
                torch.cat([each[0] for each in found]),
                torch.cat([each[1] for each in found]),
            )  # (N,) each
            rows[name] = {
                "share": float(hole.float().mean()),
                RASTER: float(raster.mean()),
                ANY: float(known.mean()),
                "filled": float(filled.mean()),
                **_gain(known - raster),
            }
        return {
            "images": len(whole[RASTER]),
            "grid": list(shards.meta.grid),
            "parameters": {order: _count(pipeline.prior) for order, pipeline in priors.items()},
            "holes": rows,
            "whole": {order: float(nats.mean()) for order, nats in whole.items()},
            "price": _gain(whole[ANY].mean((1, 2)) - whole[RASTER].mean((1, 2))),
        }

    return Step(
        name="likelihoods",
        settings={**images.described, "holes": list(HOLES)},
        work=work,
        after=(*images.after, "tokenizer", CODES, f"prior-{RASTER}", f"prior-{ANY}"),
    )


def _gain(differences: Tensor) -> dict[str, float | None]:
    """Differences of nats, image by image (N,) -> their mean and its standard error, None for one image."""
    count = len(differences)
    error = float(differences.double().std() / math.sqrt(count)) if count > 1 else None
    return {"difference": float(differences.double().mean()), "error": error}


def _count(prior: Prior) -> int:
    """How many numbers a prior has learned."""
    return sum(weight.numel() for weight in prior.parameters())


def _prefix(pipeline: Pipeline, labels: Tensor) -> Tensor:
    """Labels (B,) -> the prefix (B,P) of each, the unconditional one if the prior has no condition."""
    if pipeline.condition.size == 0:
        return pipeline.prior.null_prefix(len(labels))
    return labels[:, None].to(pipeline.device)


@torch.no_grad()
def _nats(pipeline: Pipeline, batch: CodeBatch) -> Tensor:
    """A batch of codes -> the nats of each in raster order, (B,h,w)."""
    codes = batch.codes.to(pipeline.device)
    return nll(pipeline.prior, pipeline.prior.null_prefix(len(codes)), codes).cpu()


@torch.no_grad()
def _hole_nats(pipeline: Pipeline, batch: CodeBatch, pixels: Batch, hole: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and pixels of the same images, and a hole (h,w) -> the nats per code of the hole, (B,) twice.

    Given the kept codes of the whole image, and given those of the image with the hole filled by its surroundings.
    """
    order, f = known_first(~hole.flatten()).to(pipeline.device), pipeline.tokenizer.factor
    known_pixels = ~hole.repeat_interleave(f, 0).repeat_interleave(f, 1)
    filled = pipeline.known_codes(pixels.images, known_pixels, fill=True).cpu()  # (B,h,w)
    found = []
    for codes in (batch.codes, torch.where(hole, batch.codes, filled)):
        prefix = pipeline.prior.null_prefix(len(codes))
        nats = nll(pipeline.prior, prefix, codes.to(pipeline.device), order=order)
        found.append(nats.cpu()[:, hole].mean(1))
    return found[0], found[1]


def _completions(images: ImageSource, chosen: InpaintingSettings) -> Step:
    """The step that completes held-out images: with the raster prior, the best of several, and in any order."""

    def work(context: StepContext) -> dict[str, Any]:
        held_out = _held_out(images, chosen, context)
        given = evenly_spaced_batch(held_out, chosen.shown).images
        for number, image in enumerate(given):
            save_png(context.folder / "shown" / f"original-{number:02d}.png", image)
        took: dict[str, list[float]] = {}
        for way, order, candidates in _ways(chosen):
            pipeline = _pipeline(context, order)
            for name in SHOWN:
                began = time.perf_counter()
                completed, seen = _completed(pipeline, given, HOLES[name](*chosen.size), candidates)
                took.setdefault(way, []).append((time.perf_counter() - began) / len(given))
                for number, image in enumerate(completed):
                    save_png(context.folder / "shown" / f"{name}-{way}-{number:02d}.png", image)
                for number, image in enumerate(seen):
                    save_png(context.folder / "shown" / f"{name}-given-{number:02d}.png", image)
        return {"images": len(given), "seconds": {way: math.fsum(each) / len(each) for way, each in took.items()}}

    return Step(
        name="completions",
        settings={**images.described, "shown": chosen.shown, "best_of": chosen.best_of, "holes": list(SHOWN)},
        work=work,
        after=(*images.after, "tokenizer", CODES, f"prior-{RASTER}", f"prior-{ANY}"),
    )


def _ways(chosen: InpaintingSettings) -> list[tuple[str, str, int]]:
    """What a way of completing is called, its prior, and the number of candidates per image."""
    return [(RASTER, RASTER, 1), (f"best of {chosen.best_of}", RASTER, chosen.best_of), (ANY, ANY, 1)]


def _completed(pipeline: Pipeline, given: Tensor, hole: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """Images (B,3,H,W) and a hole (H,W) -> completed ones, and what is given, gray in the hole."""
    known, prefix = ~hole, pipeline.prior.null_prefix(len(given))
    codes, seeds = pipeline.known_codes(given, known), torch.arange(len(given))
    request = GenerationRequest(constant_prefix(prefix), codes.to(pipeline.device), seeds=seeds, sampler=Sampler())
    if candidates > 1:
        score = by_likelihood(pipeline, request)
        codes = rejection_sample(pipeline, request, num_candidates=candidates, score=score).codes
    else:
        codes = final_codes(generate(pipeline.prior, request))
    decoded = pipeline.decode(codes)
    return with_kept_pixels(decoded, given, known, reach=pipeline.tokenizer.factor), torch.where(known, given, 0.0)


def _samples(images: ImageSource, chosen: InpaintingSettings) -> Step:
    """The step that generates samples in each way, and measures them and real images through the codes."""

    def work(context: StepContext) -> dict[str, Any]:
        source = open_source(images.path(context))
        training, held_out = split_crops(source, _images(chosen), channels=3, seed=0)
        classifier, right = None, None
        if chosen.classifier_steps and len(source.labels) > 1:
            some = islice(batches(training, batch=CLASSIFIED, seed=0, start=0), chosen.classifier_steps)
            classifier = train_classifier(some, classes=len(source.labels), seed=0)
            right = accuracy(classifier, in_order(held_out, batch=BATCH))
        labels = torch.arange(chosen.samples) % max(len(source.labels), 1)
        rows = {}
        for way, (order, parallel) in _sampled(chosen).items():
            pipeline = _pipeline(context, order)
            alone = min(_generated(pipeline, labels[:1], parallel).seconds for _ in range(TIMED))
            generated = _generated(pipeline, labels, parallel)
            scores = _scores(Batch(generated.images, labels), way, source, classifier, chosen.size, context)
            rows[way] = {"alone": alone, "in_a_batch": generated.seconds / chosen.samples, **scores}
        real = evenly_spaced_batch(training, chosen.samples)
        through = Batch(_pipeline(context, RASTER).reconstruct(real.images), real.labels)
        rows[REAL] = _scores(through, REAL, source, classifier, chosen.size, context)
        return {"samples": chosen.samples, "rows": rows, "class_accuracy_of_originals": right}

    return Step(
        name="samples",
        settings={
            **images.described,
            "parallel": list(chosen.parallel),
            "samples": chosen.samples,
            "classifier_steps": chosen.classifier_steps,
            "size": list(chosen.size),
        },
        work=work,
        after=(*images.after, "tokenizer", CODES, f"prior-{RASTER}", f"prior-{ANY}"),
    )


def _sampled(chosen: InpaintingSettings) -> dict[str, tuple[str, int]]:
    """What a way of sampling is called -> its prior, and the number of parallel steps, 0 for one code at a time."""
    parallel = {f"{count} steps": (ANY, count) for count in chosen.parallel}
    return {RASTER: (RASTER, 0), EXACT: (ANY, 0), **parallel}


class _Generated(NamedTuple):
    """Images (B,3,H,W), and the seconds that generating their codes took."""

    images: Tensor
    seconds: float


def _generated(pipeline: Pipeline, labels: Tensor, parallel: int) -> _Generated:
    """Labels (B,) -> images with the seeds 0, 1, ..."""
    found, seconds = [], 0.0
    for some, seeds in zip(torch.split(labels, BATCH), torch.split(torch.arange(len(labels)), BATCH), strict=True):
        prefix, known = _prefix(pipeline, some), unknown_codes(len(some), pipeline.prior.grid)
        request = GenerationRequest(constant_prefix(prefix), known, seeds=seeds, sampler=Sampler(), parallel=parallel)
        began = time.perf_counter()
        codes = final_codes(generate(pipeline.prior, request)).cpu()
        seconds += time.perf_counter() - began
        found.append(pipeline.decode(codes))
    return _Generated(torch.cat(found), seconds)


def _scores(
    batch: Batch,
    way: str,
    source: Source,
    classifier: Classifier | None,
    size: tuple[int, int],
    context: StepContext,
) -> dict[str, float | None]:
    """Images with their labels -> their Frechet distance from all images of a source, and the share of labels that the
    classifier finds; None where it is not measured. The images are written to the step's folder."""
    folder = context.folder / "samples" / way.replace(" ", "-")
    for number, image in enumerate(batch.images):
        save_png(folder / f"{number:04d}.png", image)
    distance = None
    if len(batch.images) >= MIN_SAMPLES:
        protocol = SetProtocol(
            about="Samples against all images of the experiment.",
            reference=ImageProtocol(size=size),
            features=FeatureProtocol(network="efficientnet", scores=("frechet",)),
        )
        statistics = context.folder / "statistics.npz"
        device = pick_device("auto")
        measured = measure_sets(open_source(folder), source, protocol=protocol, device=device, statistics=statistics)
        distance = measured.scores["frechet_efficientnet"]
    right = None if classifier is None else accuracy(classifier, [batch])
    return {"frechet": distance, "class_accuracy": right}


INPAINTING = Experiment(
    name="inpainting",
    about="raster against any order on the same codes in equal time: likelihood of holes, completed images, its price",
    takes_models=False,
    settings=InpaintingSettings,
    scales_file=Path(__file__).with_name("scales.yaml"),
    plan=plan,
    findings=findings,
    page="experiments/inpainting/page.html",
)
