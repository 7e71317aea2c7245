"""The framework of experiments: their steps, and how a run stops at any moment and resumes.

An experiment is a list of steps and a page. Each step has a name, the settings that decide what comes of it, and the
earlier steps whose results it uses; together they give its key. A step works in a folder of its own and ends with a
marker:

    OUT/experiment.json                   which experiment this folder is of
    OUT/steps/NAME/KEY/              what step NAME made with the settings of that key
    OUT/steps/NAME/KEY.json          its settings; when it is finished, its outcome and how long it took
    OUT/result.json, OUT/report.html

A finished step is not done again. With other settings it has another key, and so another folder: nothing that was made
is ever mistaken for something else or written over, and going back to the former settings finds what they had made.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar, final

from rich.console import Console

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import read_json, refusals_explained, write_json
from smalti.core.progress import say
from smalti.core.settings import as_mapping, assignment, flattened, parse, read_yaml, settings
from smalti.core.version import __version__
from smalti.reports.report import write_report
from smalti.training.config import as_yaml

S = TypeVar("S")

TRAININGS = ("tokenizer", "prior")
"""`--set tokenizer.a.b=c` and `--set prior.a.b=c` are generated over the trainings of an experiment; other keys are the
experiment's own."""


class StepResult(NamedTuple):
    """A finished step."""

    folder: Path
    outcome: dict[str, Any]
    """What it measured, as plain values."""
    seconds: float


@final
@dataclass(frozen=True)
class StepContext:
    """The context of a step: its own folder, which exists, and the results of the steps that it depends on."""

    folder: Path
    before: Mapping[str, StepResult]
    console: Console


@final
@dataclass(frozen=True, kw_only=True)
class Step:
    """A part of an experiment that is done once.

    `work` fills its folder and returns plain values. It may be stopped at any moment, and is then called again with the
    same folder: it resumes from what is there, or starts over.
    """

    name: str
    settings: Mapping[str, Any]
    """Plain values: all that decides what comes of it, besides the steps it comes `after`."""
    work: Callable[[StepContext], Mapping[str, Any]]
    after: tuple[str, ...] = ()


@final
@settings
class Scale:
    """How large an experiment is run: a section of its `scales.yaml`."""

    about: str
    """How long it takes, and where."""
    data: str
    """The images it is made for, in words."""
    renders_scenes: bool
    """Without `--data` the embedded scenes are rendered; False: it has to be given."""
    settings: dict[str, Any]
    """Plain values of the experiment's settings."""


def read_scales(path: Path) -> dict[str, Scale]:
    """A `scales.yaml` -> the scales by name. Raises `SmaltiError` for other content."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise SmaltiError(f"{path} holds no scales; it maps the name of each to about, data, renders_scenes, settings")
    return {name: parse(Scale, values, where=f"{path}, scale {name}") for name, values in content.items()}


@final
@dataclass(frozen=True, kw_only=True)
class ExperimentRequest:
    """The command line options of an experiment."""

    scale: str = "tiny"
    models: tuple[Path, ...] = ()
    """Given models, for experiments that compare such."""
    data: Path | None = None
    """Given images; None: the experiment renders the embedded scenes."""
    overrides: tuple[str, ...] = ()
    """`a.b=c`, as typed."""

    def of(self, training: str) -> list[str]:
        """The overrides for trainings of "tokenizer" or "prior", without that first word."""
        return [each.partition(".")[2] for each in self.overrides if each.partition(".")[0] == training]


@final
@dataclass(frozen=True, kw_only=True)
class Experiment(Generic[S]):
    """An experiment: settings, scales, a plan of steps, and a report page."""

    name: str
    """As it is called on the command line."""

    about: str
    """One line: the question it answers."""
    takes_models: bool
    """Whether models can be given."""
    settings: type[S]
    scales_file: Path
    """The YAML file of its scales."""
    plan: Callable[[S, ExperimentRequest], Sequence[Step]]
    """Settings -> the steps, each after those it uses. Raises `SmaltiError` for what cannot be done, before any
    work."""
    findings: Callable[[S, ExperimentRequest, Mapping[str, StepResult]], Mapping[str, Any]]
    """The finished steps -> the values of its page, besides those that every page has, see `page_values`."""
    page: str
    """The template of its page, which extends `experiments/experiment.html`."""
    brings_images: Callable[[S], bool] = lambda settings: False
    """Whether settings name all the images that they need themselves."""

    @cached_property
    def scales(self) -> Mapping[str, Scale]:
        """The scales by name."""
        return read_scales(self.scales_file)

    def resolved(self, request: ExperimentRequest) -> S:
        """The settings of a scale with overrides applied.

        Raises `SmaltiError` for an unknown scale or key, and where images or models are missing or not wanted.
        """
        if request.scale not in self.scales:
            raise SmaltiError(f"unknown scale {request.scale!r}; {suggestion(request.scale, self.scales)}")
        scale = self.scales[request.scale]
        if request.models and not self.takes_models:
            raise SmaltiError(f"this experiment trains its own models; omit {request.models[0]}")
        own = [each for each in request.overrides if each.partition(".")[0] not in TRAININGS]
        values = {**scale.settings, **dict(assignment(each, form="key=value") for each in own)}
        settings = parse(self.settings, values, where=f"scale {request.scale}" + (" with --set" if own else ""))
        if request.data is None and not scale.renders_scenes and not self.brings_images(settings):
            raise SmaltiError(
                f"the scale {request.scale} needs {scale.data}; give the images with --data, or use another --scale"
            )
        return settings


def run_experiment(experiment: Experiment[S], out: Path, *, request: ExperimentRequest, console: Console) -> Path:
    """Do the steps of an experiment that are not done yet, write `out/result.json` and `out/report.html` -> the path of
    the latter.

    The same call resumes a stopped run. Raises `SmaltiError` as `Experiment.resolved`, for a folder that holds
    something else, and for what a step raises, naming the step.
    """
    settings = experiment.resolved(request)
    steps = experiment.plan(settings, request)
    keys = _keys(steps)
    _claim(out, experiment.name)
    done: dict[str, StepResult] = {}
    for number, step in enumerate(steps, 1):
        before = {earlier: done[earlier] for earlier in step.after}
        title = f"step {number} of {len(steps)}, {step.name}"
        done[step.name] = _do(step, keys[step.name], before, root=out / "steps", title=title, console=console)
    write_json(out / "result.json", _result(experiment.name, settings, request, done, out))
    values = {**page_values(experiment, settings, request, done), **experiment.findings(settings, request, done)}
    write_report(out / "report.html", experiment.page, values)
    return out / "report.html"


def page_values(
    experiment: Experiment[S], settings: S, request: ExperimentRequest, done: Mapping[str, StepResult]
) -> dict[str, Any]:
    """The values that the page of every experiment has."""
    words = ["smalti", "experiment", experiment.name, *map(str, request.models), "--scale", request.scale]
    words += ["--data", str(request.data)] if request.data else []
    words += [word for override in request.overrides for word in ("--set", override)]
    return {
        "settings": settings,
        "settings_listing": as_yaml(as_mapping(settings)),
        "command": shlex.join([*words, "--out", "OUT"]),
        "whole_seconds": sum(each.seconds for each in done.values()),
    }


def _keys(steps: Sequence[Step]) -> dict[str, str]:
    """Steps -> the key of each: 12 hexadecimal digits that its settings and the keys before it decide."""
    keys: dict[str, str] = {}
    for step in steps:
        assert re.fullmatch(r"[\w.-]+", step.name), f"{step.name!r} is not a name for a folder"
        assert step.name not in keys, f"two steps are called {step.name}"
        parts = {"name": step.name, "settings": step.settings, "after": {name: keys[name] for name in step.after}}
        keys[step.name] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return keys


def _claim(out: Path, name: str) -> None:
    """Make `out` the folder of this experiment, or see that it is."""
    marker = out / "experiment.json"
    if out.exists() and not out.is_dir():
        raise SmaltiError(f"{out} is a file; name a folder for the experiment with --out")
    if marker.is_file():
        there = read_json(marker)
        experiment = there.get("experiment") if isinstance(there, dict) else None
        if experiment != name:
            raise SmaltiError(f"{out} holds the experiment {experiment!r}, not {name!r}; choose another --out")
    elif out.is_dir() and any(not entry.name.startswith(".experiment.json") for entry in out.iterdir()):
        raise SmaltiError(f"{out} is not empty and holds no experiment; choose another --out")
    else:
        write_json(marker, {"smalti": __version__, "experiment": name})


def _do(
    step: Step, key: str, before: Mapping[str, StepResult], *, root: Path, title: str, console: Console
) -> StepResult:
    """Do one step, or find it done."""
    home = root / step.name
    folder, marker = home / key, home / f"{key}.json"
    begun = read_json(marker) if marker.is_file() else {}
    if begun.get("finished"):
        say(console, f"{title}: already done")
        return StepResult(folder, begun["outcome"], begun["seconds"])
    message = ", resuming" if begun else "".join(_changes(step, home))
    say(console, f"{title}{message}")
    note = {"settings": dict(step.settings), "after": list(step.after)}
    spent = float(begun.get("seconds", 0.0))
    write_json(marker, {**note, "finished": False, "seconds": spent})
    with refusals_explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()

    def seconds() -> float:
        return round(spent + time.monotonic() - began, 1)

    try:
        outcome = dict(step.work(StepContext(folder, before, console)))
    except (SmaltiError, KeyboardInterrupt) as error:
        write_json(marker, {**note, "finished": False, "seconds": seconds()})
        message = str(error) if isinstance(error, SmaltiError) else "interrupted; run the same command again to resume"
        raise SmaltiError(f"{title}: {message}") from error
    took = seconds()
    write_json(marker, {**note, "finished": True, "seconds": took, "outcome": outcome})
    return StepResult(folder, outcome, took)


def _changes(step: Step, home: Path) -> Iterator[str]:
    """What differs from the latest other settings with which this step was done, as the end of a sentence."""
    others = sorted(home.glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not others:
        return
    then, now = dict(flattened(read_json(others[-1])["settings"])), dict(flattened(step.settings))
    differ = [key for key in sorted(then.keys() | now.keys()) if then.get(key) != now.get(key)]
    what = [f"{key} was {then.get(key)!r} and is {now.get(key)!r}" for key in differ[:3]]
    yield f": {'; '.join(what) or 'an earlier step has changed'}; it is run again; earlier results are kept"


def _result(
    name: str, settings: Any, request: ExperimentRequest, done: Mapping[str, StepResult], out: Path
) -> dict[str, Any]:
    return {
        "smalti": __version__,
        "experiment": name,
        "scale": request.scale,
        "data": str(request.data) if request.data else "embedded scenes",
        "models": [str(model) for model in request.models],
        "overrides": list(request.overrides),
        "settings": as_mapping(settings),
        "seconds": round(sum(step.seconds for step in done.values()), 1),
        "steps": {
            step: {"folder": each.folder.relative_to(out).as_posix(), "seconds": each.seconds, "outcome": each.outcome}
            for step, each in done.items()
        },
    }
