"""The request of `smalti fit`, and the file that keeps it, with all decisions, for a run that resumes.

`fit.json` in the output folder holds the request, the inspection, the lengths of the trainings and the steps that are
finished. A resumed run reads its decisions there: it does not measure or decide again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from smalti.core.errors import SmaltiError
from smalti.core.files import read_json, write_json
from smalti.core.settings import Natural, Positive, as_mapping, parse, settings
from smalti.core.version import __version__
from smalti.fit.found_conditions import FoundCondition
from smalti.fit.inspection import Inspection

FILE = "fit.json"
STREAMED = "images"
"""The folder in the output folder with the images of a stream."""
STAGES = ("tokenizer", "prior")
_UNITS = {"d": 86400.0, "h": 3600.0, "min": 60.0, "m": 60.0, "s": 1.0}


@settings
class FitRequest:
    """The options of the command."""

    images: str
    """The absolute path of the images, or `hf:` and the name of a data set."""
    recipe: str = "small"
    time: str = ""
    """How long all of it should take, such as "1h"; "": as long as the recipe says."""
    without: tuple[str, ...] = ()
    """Conditions that are left out."""
    overrides: tuple[str, ...] = ()
    """`tokenizer.a.b=c` and `prior.a.b=c`."""
    stream: Natural = 0
    """The number of images to copy from a data set on the Hub; 0 downloads the whole data set."""

    def folder(self, out: Path) -> Path:
        """The images that are trained on, in a fit whose output folder is `out`."""
        return out / STREAMED if self.stream else Path(self.images)

    def stage_overrides(self, stage: str) -> list[str]:
        """The overrides of one stage, without its name. Raises `SmaltiError` for an override of neither stage."""
        for override in self.overrides:
            if override.partition(".")[0] not in STAGES or "." not in override.partition("=")[0]:
                raise SmaltiError(f"--set {override!r}: begin with the stage, as tokenizer.a.b=c or prior.a.b=c")
        return [each.partition(".")[2] for each in self.overrides if each.partition(".")[0] == stage]


@settings
class FitState:
    """The decisions and the finished steps of a fit."""

    smalti: str
    request: FitRequest
    contents: dict[str, Any]
    """What tells the images from others; see `data.contents`."""
    inspection: Inspection
    found: tuple[FoundCondition, ...]
    lengths: dict[str, Positive] = field(default_factory=dict)
    """Step -> images or codes that its training sees."""
    copies: int = 0
    """Crops of each training image that are encoded; 0 before it is decided."""
    estimates: dict[str, float] = field(default_factory=dict)
    """Step -> seconds that it is expected to take."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Finished step -> seconds that it took."""


@final
@dataclass(frozen=True)
class StateFile:
    """The file of a fit in its output folder."""

    folder: Path

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder / FILE

    def read(self, request: FitRequest) -> FitState | None:
        """The state of an earlier start of the same fit, None without one.

        Raises `SmaltiError` for a folder that holds something else, and for a fit of another request,
        naming what differs.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise SmaltiError(f"{self.folder} is a file; name a folder with --out")
        if not self.path.is_file():
            if self.folder.is_dir() and any(
                not self._is_fit_output(entry.name, request) for entry in self.folder.iterdir()
            ):
                raise SmaltiError(f"{self.folder} is not empty and holds no {FILE}; choose another --out")
            return None
        content = read_json(self.path)
        if not isinstance(content, dict):
            raise SmaltiError(f"{self.path} is damaged; remove {self.folder}, or choose another --out")
        state = parse(FitState, content, where=str(self.path))
        before, now = as_mapping(state.request), as_mapping(request)
        differ = [
            f"{key} was {_shown(before[key])} and is {_shown(now[key])}" for key in now if before[key] != now[key]
        ]
        if differ:
            raise SmaltiError(
                f"{self.folder} was begun with other options ({'; '.join(differ)}); repeat them to resume, or choose "
                "another --out"
            )
        return state

    @staticmethod
    def _is_fit_output(name: str, request: FitRequest) -> bool:
        return name.startswith(f".{FILE}") or (name == STREAMED and request.stream > 0)

    def write(self, state: FitState) -> FitState:
        """Write the state, whole or not at all, and return it."""
        write_json(self.path, as_mapping(replace(state, smalti=__version__)))
        return state


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value)) or "not given"
    return str(value) or "not given"


def seconds_of(text: str) -> float:
    """A time such as `1h`, `90m`, `1h30m` or `45s` -> seconds. Raises `SmaltiError` for anything else."""
    compact = text.replace(" ", "").lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)(d|h|min|m|s)", compact)
    if not parts or "".join(number + unit for number, unit in parts) != compact:
        raise SmaltiError(f"--time {text!r} is not a time; write it with units, such as 45m, 1h or 1h30m")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not seconds:
        raise SmaltiError(f"--time {text!r} is not a time at all; give minutes or hours, such as 45m or 1h")
    return seconds
