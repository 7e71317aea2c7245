"""The whole pipeline on the embedded scenes: from nothing to `report.html`, in minutes on two cores.

Every figure is computed here, with the models that this run trained, on scenes they were not trained on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

import torch
from rich.console import Console
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.files import read_json, write_json
from smalti.core.progress import progress_bar, say
from smalti.data.code_shards import entropy, open_codes
from smalti.data.loader import Batch, Crops, batches, evenly_spaced_batch, in_order
from smalti.data.sources import open_source
from smalti.data.splits import split_crops
from smalti.evaluation.metrics import CodeUse, psnr
from smalti.experiments.class_network import Classifier, accuracy, train_classifier
from smalti.experiments.demo.findings import Results, findings
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.images.io import make_image_grid, save_png
from smalti.images.masks import kept_part
from smalti.pipeline import Pipeline
from smalti.prior import nll
from smalti.reports.report import write_report
from smalti.scenes.scene_files import write_scenes
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.runs import encode_images, train_prior, train_tokenizer

SAMPLES_A_CLASS = 10
CLASSIFIER_STEPS = 200
TOP_P, GUIDANCE = 0.97, 1.5
PANORAMAS = ("spring-day", "summer-dusk", "autumn-day", "winter-night")
COMPLETED = 8
BATCH = 48


@final
class Timings:
    """Seconds that each part has taken so far, kept in a file, so that they add up over a demo that was stopped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = dict(read_json(path)) if path.is_file() else {}

    @contextmanager
    def measured(self, part: str) -> Iterator[None]:
        """Add the time of the block to `part`, also when it is interrupted."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = round(self.seconds.get(part, 0.0) + time.monotonic() - began, 1)
            write_json(self._path, self.seconds)


def run_demo(out: Path, *, recipe: str, count: int, console: Console) -> None:
    """Render, train, sample, measure, and write `out/report.html` and `out/report.json`. The same call again
    resumes."""
    tokenizer = resolve(TokenizerTraining, stage="tokenizer", recipe=recipe, overrides=[])
    prior = resolve(PriorTraining, stage="prior", recipe=recipe, overrides=[])
    if out.is_dir() and any(out.iterdir()) and not (out / "seconds.json").is_file():
        raise SmaltiError(f"{out} is not empty and holds no demo; choose another --out")
    timings = Timings(out / "seconds.json")
    with timings.measured("scenes"), progress_bar(console, title="rendering", unit="scenes") as progress:
        write_scenes(
            out / "scenes",
            count=count,
            size=tokenizer.images.size,
            workers=None,
            progress=lambda done: progress(done, count),
        )
    with timings.measured("tokenizer"):
        train_tokenizer(out / "scenes" / "images", out / "tokenizer", settings=tokenizer, console=console)
    with timings.measured("codes"), progress_bar(console, title="encoding", unit="images") as progress:
        images, codes = out / "scenes" / "images", out / "codes"
        encode_images(out / "tokenizer", images, codes, settings=prior.encode, seed=prior.run.seed, progress=progress)
    with timings.measured("prior"):
        train_prior(open_codes(codes), out / "tokenizer", out / "prior", settings=prior, console=console)
    with timings.measured("results"):
        say(console, "measuring on held-out scenes, sampling")
        results = measure(out, tokenizer)
    figures = {**results.figures, "seconds": round(sum(timings.seconds.values()), 1)}
    write_json(out / "report.json", figures)
    results = results._replace(figures=figures)
    values = findings(out, results, seconds=timings.seconds, tokenizer=tokenizer, prior=prior)
    write_report(out / "report.html", "experiments/demo/page.html", values)
    for name, value in figures.items():
        say(console, f"{name}: {value:.4g}")
    say(console, f"open {out / 'report.html'}")


def measure(out: Path, settings: TokenizerTraining) -> Results:
    """A finished demo folder -> figures and images."""
    pipeline = Pipeline.from_pretrained(out)
    source = open_source(out / "scenes" / "images")
    training, held_out = split_crops(source, settings.images, channels=3, seed=settings.run.seed)
    classifier = train_classifier(_some(training), classes=len(source.labels), seed=settings.run.seed)
    ratios, use = [], CodeUse(pipeline.tokenizer.size)
    for batch in in_order(held_out, batch=BATCH):
        codes = pipeline.encode(batch.images)
        use.add(codes)
        ratios.append(psnr(batch.images, pipeline.decode(codes)))
    shards = open_codes(out / "codes")
    with torch.no_grad():
        losses = [
            nll(pipeline.prior, batch.labels.unsqueeze(1), batch.codes)
            for batch in in_order(shards.validation, batch=BATCH)
        ]
    samples = {label: _samples(pipeline, label) for label in source.labels}
    right = _sample_accuracy(classifier, samples, source.labels)
    shown, labels = evenly_spaced_batch(held_out, COMPLETED)
    names = [source.labels[int(label)] for label in labels]
    known = kept_part("top-half", settings.images.size)
    H, W = settings.images.size
    results = Results(
        figures={
            "psnr": float(torch.cat(ratios).mean()),
            "codes_in_use": use.in_use,
            "prior_nats": float(torch.cat(losses).mean()),
            "code_entropy_nats": entropy(shards.training, pipeline.tokenizer.size),
            "class_accuracy": right,
            "class_chance": 1 / len(source.labels),
            "class_accuracy_of_real": accuracy(classifier, in_order(held_out, batch=BATCH)),
            "held_out_images": float(len(held_out)),
        },
        counts=use.counts,
        originals=shown,
        reconstructions=pipeline.reconstruct(shown),
        samples=samples,
        panoramas={
            label: pipeline.sample(1, label=label, size=(H, 4 * W), seed=1, top_p=TOP_P, guidance=GUIDANCE)[0]
            for label in PANORAMAS
        },
        intermediate=_intermediate_images(pipeline, PANORAMAS[1]),
        kept=torch.where(known, shown, 0.0),
        completions=_completions(pipeline, shown, known, names),
    )
    for label, images in samples.items():
        save_png(out / "images" / f"{label}.png", make_image_grid(images, columns=5, gap=2), settings={"label": label})
    for label, image in results.panoramas.items():
        save_png(out / "images" / f"panorama-{label}.png", image, settings={"label": label, "seed": 1})
    return results


def _some(training: Crops) -> Iterator[Batch]:
    """The batches that the classifier learns from."""
    return itertools.islice(batches(training, batch=64, seed=1, start=0), CLASSIFIER_STEPS)


def _samples(pipeline: Pipeline, label: str) -> Tensor:
    return pipeline.sample(SAMPLES_A_CLASS, label=label, seed=0, top_p=TOP_P, guidance=GUIDANCE)


def _sample_accuracy(classifier: Classifier, samples: dict[str, Tensor], labels: tuple[str, ...]) -> float:
    batches_of = (Batch(images, torch.full((len(images),), labels.index(label))) for label, images in samples.items())
    return accuracy(classifier, batches_of)


def _completions(pipeline: Pipeline, images: Tensor, known: Tensor, names: Sequence[str]) -> Tensor:
    """Images (B,C,H,W), a mask (H,W) of what is kept, and the label of each -> completed images (B,C,H,W)."""
    codes, seeds = pipeline.known_codes(images, known), pipeline.seeds(0, len(names))
    sampler = Sampler(top_p=TOP_P, guidance=GUIDANCE)
    return pipeline.decode(
        final_codes(generate(pipeline.prior, pipeline.request_for(names, codes, seeds=seeds, sampler=sampler)))
    )


def _intermediate_images(pipeline: Pipeline, label: str) -> list[Tensor]:
    """One image after every second row of codes."""
    images = pipeline.stream(label=label, seed=3, top_p=TOP_P, guidance=GUIDANCE)
    return list(itertools.islice(images, 1, None, 2))
