"""`smalti fit`: the steps from a folder of images to a generator, each of which resumes.

OUT/fit.json        request, decisions, finished steps
OUT/tokenizer       run folder of the images' tokenizer
OUT/conditions/NAME run folder of the tokenizer of a map
OUT/codes           code shards of the images with their conditions
OUT/prior           run folder of the prior
OUT/samples, panorama.png, completion.png, report.json, report.html
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from smalti.core.errors import SmaltiError
from smalti.core.files import write_json
from smalti.core.progress import WorkPlan, progress_bar, say
from smalti.core.version import __version__
from smalti.data.code_shards import open_codes
from smalti.data.contents import contents
from smalti.data.file_types import COLOR, FILE_TYPES
from smalti.data.image_tables import is_hub_name
from smalti.data.sources import Source, open_source
from smalti.data.streaming import copy_stream
from smalti.encoding.condition_encoding import ConditionSource
from smalti.fit.check_text import advice, check_rows
from smalti.fit.fit_page import page_values
from smalti.fit.fit_plan import (
    Paces,
    Plan,
    codes_per_image,
    codes_read,
    make_plan,
    map_step,
    prior_length,
    schedule,
    with_lengths,
)
from smalti.fit.fit_request import FitRequest, FitState, StateFile, seconds_of
from smalti.fit.fit_results import fit_results
from smalti.fit.found_conditions import FoundCondition, chosen_conditions, find_conditions, images_folder
from smalti.fit.inspection import inspect_images
from smalti.reports.report import write_report
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.launcher import is_one_of_several_processes
from smalti.training.pace import NOMINAL, measure_prior_pace, measure_tokenizer_pace
from smalti.training.prior_networks import CodesRead
from smalti.training.run_folder import read_metrics
from smalti.training.runs import condition_of, encode_images, train_prior, train_tokenizer

PACE_SECONDS = 2.0
"""The pace of each training is measured for about so long, for an estimate; with a time for all of it ..."""
PACE_SHARE, MAX_PACE_SECONDS = 0.01, 20.0
"""... for this share of the time, and at most for so long."""


def request_for(
    images: Path, *, recipe: str, time: str, without: Sequence[str], overrides: Sequence[str], stream: int = 0
) -> FitRequest:
    """The command's options -> the request, with the path of the images as it is found from any folder.

    Raises `SmaltiError` for a time that cannot be read, and for a stream of what is no table.
    """
    if time:
        seconds_of(time)
    if stream and not (is_hub_name(images) or images.is_dir()):
        raise SmaltiError(f"--stream is for data sets of Hugging Face, as hf:NAME, and {images} is not one; omit it")
    folder = images_folder(images)
    where = str(folder) if str(folder).startswith("hf:") else str(folder.resolve())
    return FitRequest(
        images=where, recipe=recipe, time=time, without=tuple(without), overrides=tuple(overrides), stream=stream
    )


def check(request: FitRequest, folder: Path, *, console: Console) -> FitState:
    """Look at the images in `folder` and print what was found, what is cut and what should be changed.

    Raises `SmaltiError` if nothing can be trained, and for an unknown name in `without`.
    """
    source = open_source(folder)
    tokenizer = _image_training(request)
    with progress_bar(console, title="looking at the images", unit="images") as progress:
        inspection = inspect_images(
            source,
            size=tokenizer.images.size,
            channels=tokenizer.model.autoencoder.channels,
            progress=progress,
        )
    with progress_bar(console, title="looking at their maps", unit="maps") as progress:
        found = find_conditions(source, progress=progress)
    state = FitState(smalti=__version__, request=request, contents=contents(source), inspection=inspection, found=found)
    _print_check(state, tokenizer, console)
    return state


def fit(request: FitRequest, out: Path, *, console: Console) -> Path:
    """Images -> a generator in `out`, and the path of its report page. The same call again resumes.

    Raises `SmaltiError` for images that cannot be trained on, for a folder that holds something else or a fit of
    another request, and on a signal to stop.
    """
    if is_one_of_several_processes():
        raise SmaltiError(
            "smalti fit runs in one process; for several, use smalti train tokenizer and smalti train prior"
        )
    if not request.stream:
        _check_not_inside(Path(request.images), out)
    file = StateFile(out)
    state = file.read(request)
    folder = request.folder(out)
    if request.stream:
        with progress_bar(console, title="copying images", unit="images") as progress:
            copy_stream(Path(request.images), folder, count=request.stream, progress=progress)
    if state is None:
        state = check(request, folder, console=console)
        make_plan(request, chosen_conditions(state.found, without=request.without))  # errors come before work
        file.write(state)
    else:
        say(console, f"resuming the fit in {out}; its check and its decisions are in {file.path}")
        if contents(open_source(folder)) != state.contents:
            say(
                console,
                f"the images in {folder} have changed since it was begun; finished steps stay as they are",
            )
    return _Fit(out, file, state, console).run()


class _Fit:
    """A fit with its decisions."""

    def __init__(self, out: Path, file: StateFile, state: FitState, console: Console) -> None:
        self.out, self.file, self.state, self.console = out, file, state, console
        self.images = state.request.folder(out)
        self.conditions = chosen_conditions(state.found, without=state.request.without)
        self.plan = make_plan(state.request, self.conditions)
        self.seconds = seconds_of(state.request.time) if state.request.time else None
        self.steps = [*self.plan.tokenizers(), "codes", "prior", "results"]

    def run(self) -> Path:
        """Do the steps that are not finished -> the report page."""
        if not self.state.lengths:
            self._decide()
        plan = self._planned()
        self._train_tokenizer("tokenizer", self.images, self.out / "tokenizer", plan.tokenizer)
        for each in self.conditions:
            if each.has_tokenizer:
                self._train_tokenizer(
                    map_step(each.name), Path(each.path), self._map_run(each.name), plan.maps[each.name]
                )
        self._encode(plan.prior)
        self._train_prior(plan)
        page = self.out / "report.html"
        if "results" not in self.state.seconds or not page.is_file():
            self._write_results(self._planned(), page)
        return page

    def _planned(self) -> Plan:
        """The plan with the lengths that are decided so far."""
        images = self.state.inspection.images
        return with_lengths(self.plan, self.state.lengths, copies=self.state.copies, images=images)

    def _decide(self) -> None:
        """Measure the speed of this machine, and set the lengths of the trainings."""
        say(self.console, "measuring the speed of the trainings")
        seconds = self._pace_seconds()
        folders = {"tokenizer": self.images, **{map_step(each.name): Path(each.path) for each in self.conditions}}
        tokenizers = {
            name: measure_tokenizer_pace(_nominal(each), _source(folders[name], each), seconds=seconds)
            for name, each in self.plan.tokenizers().items()
        }
        prior = measure_prior_pace(self.plan.prior, codes_read(self.plan, self.conditions), seconds=seconds)
        found = schedule(self.plan, Paces(tokenizers, prior), images=self.state.inspection.images, seconds=self.seconds)
        self._save(lengths=found.lengths, copies=found.copies, estimates=found.estimates)
        for name, count in found.lengths.items():
            unit = "codes" if name == "prior" else "images"
            say(self.console, f"{name}: {count:,} {unit}, about {_minutes(found.estimates[name])}")
        say(self.console, f"all steps: about {_minutes(sum(found.estimates.values()))}")

    def _pace_seconds(self) -> float:
        """How long each pace is measured."""
        return PACE_SECONDS if self.seconds is None else min(PACE_SHARE * self.seconds, MAX_PACE_SECONDS)

    def _train_tokenizer(self, name: str, data: Path, out: Path, settings: TokenizerTraining) -> None:
        if self._is_done(name, out / "model" / "config.json"):
            return
        train_tokenizer(data, out, settings=settings, console=self.console, work=self._work(name))
        self._finished(name, _elapsed(out))

    def _map_run(self, name: str) -> Path:
        return self.out / "conditions" / name

    def _encode(self, settings: PriorTraining) -> None:
        codes = self.out / "codes"
        if self._is_done("codes", codes / "codes.json"):
            return
        names = [each.name for each in self.conditions]
        sources = [self._condition_source(each) for each in self.conditions] if names != ["labels"] else []
        with (
            self._timed("codes"),
            progress_bar(self.console, title="encoding", unit="images", work=self._work("codes")) as progress,
        ):
            encode_images(
                self.out / "tokenizer",
                self.images,
                codes,
                settings=settings.encode,
                seed=settings.run.seed,
                progress=progress,
                conditions=sources,
            )

    def _condition_source(self, condition: FoundCondition) -> ConditionSource:
        tokenizer = self._map_run(condition.name) if condition.has_tokenizer else None
        return ConditionSource(condition.name, tokenizer, Path(condition.path) if condition.path else None)

    def _train_prior(self, plan: Plan) -> None:
        out, codes = self.out / "prior", open_codes(self.out / "codes")
        if self._is_done("prior", out / "model" / "config.json"):
            return
        if self.seconds is not None and not (out / "config.yaml").is_file():
            self._decide_prior(plan.prior)
            plan = self._planned()
        train_prior(
            codes, self.out / "tokenizer", out, settings=plan.prior, console=self.console, work=self._work("prior")
        )
        self._finished("prior", _elapsed(out))

    def _decide_prior(self, training: PriorTraining) -> None:
        """Give the prior what is left of the time, by its pace on the codes that there are now."""
        assert self.seconds is not None
        shards = open_codes(self.out / "codes")
        condition = condition_of(shards, training.condition)
        codes = CodesRead(shards.meta.size, shards.meta.grid, condition.size, condition.length, condition.maps)
        pace = measure_prior_pace(training, codes, seconds=self._pace_seconds())
        spent = sum(self.state.seconds.values())
        left = max(self.seconds - spent - self.state.estimates["results"], 0.1 * self.seconds)
        length = prior_length(training, left, pace, codes_per_image(self.plan))
        self._save(
            lengths={**self.state.lengths, "prior": length},
            estimates={**self.state.estimates, "prior": round(length * pace, 2)},
        )

    def _write_results(self, plan: Plan, page: Path) -> None:
        with self._timed("results"):
            say(self.console, f"{self._work('results').titled('results')}: samples, a panorama, completions")
            source = open_source(self.images)
            results = fit_results(self.out, source, tokenizer=plan.tokenizer, prior=plan.prior)
        figures = {**results.figures, "seconds": round(sum(self.state.seconds.values()), 1)}
        write_json(self.out / "report.json", figures)
        values = page_values(
            self.out,
            self.state,
            plan,
            conditions=self.conditions,
            results=results._replace(figures=figures),
            source=source,
        )
        write_report(page, "fit/fit_page.html", values)
        for name, value in figures.items():
            say(self.console, f"{name}: {value:.4g}")

    def _work(self, step: str) -> WorkPlan:
        """The number of a step among all, and how long those after it are expected to take."""
        number = self.steps.index(step)
        later = sum(self.state.estimates.get(each, 0.0) for each in self.steps[number + 1 :])
        label = f"step {number + 1} of {len(self.steps)}"
        of_map = step.removeprefix(map_step("")) if step.startswith(map_step("")) else ""
        return WorkPlan(step=f"{label}, {of_map}" if of_map else label, later_seconds=later)

    def _is_done(self, step: str, product: Path) -> bool:
        return step in self.state.seconds and product.is_file()

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._finished(step, time.monotonic() - began)

    def _finished(self, step: str, seconds: float) -> None:
        self._save(seconds={**self.state.seconds, step: round(seconds, 1)})

    def _save(self, **changes: Any) -> None:
        self.state = self.file.write(replace(self.state, **changes))


def _image_training(request: FitRequest) -> TokenizerTraining:
    overrides = request.stage_overrides("tokenizer")
    return resolve(TokenizerTraining, stage="tokenizer", recipe=request.recipe, overrides=overrides)


def _print_check(state: FitState, tokenizer: TokenizerTraining, console: Console) -> None:
    size, inspection = tokenizer.images.size, state.inspection
    chosen = chosen_conditions(state.found, without=state.request.without)
    rows = check_rows(inspection, state.found, chosen=chosen, size=size)
    width = max(len(name) for name, _ in rows) + 1
    for name, text in rows:
        say(console, f"{name + ':':{width}} {text}")
    sentences = advice(inspection, state.found, size=size)
    say(console, "What should be changed:" if sentences else "Nothing needs to be changed.")
    for sentence in sentences:
        say(console, f"- {sentence}")


def _check_not_inside(images: Path, out: Path) -> None:
    """Raise `SmaltiError` if the output folder is in that of the images: its images would become training images."""
    if images.is_dir() and out.resolve().is_relative_to(images.resolve()):
        raise SmaltiError(f"--out {out} is in the folder of the images, {images}; choose a folder outside of it")


def _nominal(training: TokenizerTraining) -> TokenizerTraining:
    return replace(training, run=training.run.with_total(NOMINAL))


def _source(path: Path, training: TokenizerTraining) -> Source:
    make: Callable[..., Any] = FILE_TYPES[training.images.file_type]
    file_type = COLOR if training.images.file_type == "color" else make(training.images.unlabeled)
    return open_source(path, file_type=file_type)


def _elapsed(run: Path) -> float:
    """The seconds of training that a run folder notes, of all starts together."""
    return max((float(line["elapsed"]) for line in read_metrics(run) if "elapsed" in line), default=0.0)


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
