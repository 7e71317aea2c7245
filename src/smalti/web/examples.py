"""Images that the page shows first: those in the model's folder, or else generated while no job waits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, final

from smalti.core.settings import as_mapping
from smalti.images.io import read_settings, read_size
from smalti.web.jobs import Outcome, Report, Task
from smalti.web.requests import SamplingRequest, check_size, parse_request
from smalti.web.studio import Studio
from smalti.web.tasks import Plan, SampleTask

FOLDER = "examples"
"""The folder of a model with PNG files that smalti made, in the order of their names; the first one is a panorama."""
MAX_EXAMPLES = 8
"""Example images that are read."""
GUIDANCE = 2.0


class Example(NamedTuple):
    """An example image: its PNG file, its size (H,W), and the settings that it was made by."""

    png: bytes
    size: tuple[int, int]
    settings: Mapping[str, Any]


def read_examples(model: Path) -> list[Example]:
    """A model's folder -> the examples in it; none where there is no such folder."""
    found = []
    for path in sorted((model / FOLDER).glob("*.png"))[:MAX_EXAMPLES]:
        settings = read_settings(path)
        if settings is not None:
            found.append(Example(path.read_bytes(), read_size(path, name=path.name), settings))
    return found


@final
class Examples:
    """The examples of a studio; those that are missing are made one by one."""

    def __init__(self, studio: Studio, known: list[Example]) -> None:
        self.images = known
        # One image is made in any case: it measures the pace, and compiles what the first job would wait for.
        self._tasks: list[Task] = [SampleTask(example_plan(studio, 0))] if known else []
        self._tasks += [] if known else [ExampleTask(example_plan(studio, seed), known) for seed in range(4)]

    def next_task(self) -> Task | None:
        """The task for the next moment in which no job waits, None if all are done."""
        return self._tasks.pop(0) if self._tasks else None


@final
@dataclass(frozen=True, eq=False)
class ExampleTask(Task):
    """One example is made and added to the images."""

    plan: Plan
    images: list[Example]

    @property
    def seconds(self) -> float:
        return SampleTask(self.plan).seconds

    def run(self, report: Report) -> Outcome:
        outcome = SampleTask(self.plan).run(report)
        image = outcome.images[0]
        self.images.append(Example(image.png, image.size, {**as_mapping(self.plan.request), **self.plan.about}))
        return outcome


def example_plan(studio: Studio, seed: int, *, text: str = "", width: int = 0) -> Plan:
    """A seed, a text ("" for a label that depends on the seed) and a width (0 for the trained one) -> a plan."""
    pipeline = studio.pipeline
    choice = next((part for part in studio.parts if part.kind == "choice"), None)
    texts = {"text": text} if text else {}
    if choice is not None and not text:
        texts[choice.key] = choice.names[seed * len(choice.names) // 4 % len(choice.names)]
    values: dict[str, Any] = {"seed": seed, "guidance": GUIDANCE if texts and studio.takes_guidance else 1.0}
    request: SamplingRequest = parse_request(pipeline, values | ({"width": width} if width else {}), studio.limits)
    check_size(pipeline, request.size, studio.limits, count=1)
    return Plan(studio, request, studio.condition_value(texts, {}, request.size), texts)
