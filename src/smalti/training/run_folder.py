"""A run folder: settings, metrics, the exported model, and the state to resume from.

config.yaml  metrics.jsonl  tensorboard/  images/  model/ (config.json, model.safetensors)  state/<seen>/state.ckpt
state/best/<seen>/ is the best model at each of the states, for stages with a selection metric.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

import yaml
from lightning_fabric import Fabric

from smalti.core.errors import SmaltiError
from smalti.core.files import (
    folder_written_atomically,
    parse_json,
    read_json,
    refusals_explained,
    write_atomically,
    write_json,
    write_text,
)
from smalti.core.settings import as_mapping, flattened, parse, parse_yaml
from smalti.training.config import STAGES, as_yaml
from smalti.training.fsdp import load, save

log = logging.getLogger("smalti")

NOTES = "notes.json"
DIAGNOSTIC = "diagnostic"
"""The `part` of the lines in `metrics.jsonl` for diagnostics that begin or are resolved; all other parts are
metrics."""
BEST = "best"
"""The folder in `state` for models that are the best so far."""
KEPT_STATES = 2
"""The newest state, and the one before it in case the newest is damaged."""

RESUMABLE_CHANGES = (
    "run.images",
    "run.codes",
    "run.log_every",
    "run.validate_every",
    "run.sample_every",
    "run.checkpoint_every",
    "run.accelerator",
    "run.devices",
    "run.nodes",
    "run.strategy",
    "run.accumulate",
    "run.recompute",
    "run.compile",
    "run.max_skipped_steps",
    "run.patience",
    "run.workers",
    "run.tensorboard",
    "images.cache_mib",
)
"""Settings that may differ when a run resumes: none of them changes what has been learned so far."""


CONTENTS = ("contents.images", "contents.files")
"""Settings that identify the data wherever it is: the number of images, and their `identity`."""


class Restored(NamedTuple):
    """What `load_state` returns besides the values that it fills."""

    seen: int
    """Images or codes seen, 0 without a state."""
    notes: dict[str, Any]
    """The loop's own state: metrics since the last report, active diagnostics, seconds. Empty without a state,
    and for old ones."""


@final
class RunFolder:
    """The folder of one run. Creating it checks that the folder is empty or holds the same run, in the first process
    for all."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        """`config`: the resolved settings as plain values.

        Raises `SmaltiError` when the folder holds something else, or a run with other settings (naming those that
        differ).
        """
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.images = path / "images"
        self.tensorboard = path / "tensorboard"
        self.model = path / "model"
        self._states = path / "state"
        written = path / "config.yaml"
        if path.exists() and not path.is_dir():
            raise SmaltiError(f"{path} is a file; name a folder for the run with --out")
        if written.is_file():
            begun = self.metrics.is_file() or self.states()
            self._same_run(written, config, begun=bool(begun))
        elif path.is_dir() and any(not _is_encoding_output(entry) for entry in path.iterdir()):
            raise SmaltiError(f"{path} is not empty and holds no run of smalti (no config.yaml); choose another --out")
        with refusals_explained(path):
            path.mkdir(parents=True, exist_ok=True)
            for folder in (path, self._states, *(self._states / BEST).glob("*"), self.model):
                for leftover in folder.glob(".*.tmp"):
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        write_text(written, as_yaml(config))

    def _same_run(self, written: Path, config: Mapping[str, Any], *, begun: bool) -> None:
        try:
            before = parse_yaml(written.read_text("utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SmaltiError(f"{written} is not YAML; choose another --out") from error
        if not isinstance(before, dict) or "smalti" not in before:
            raise SmaltiError(f"{self.path} holds the run of another program; choose another --out")
        old, new = dict(flattened(_with_defaults(before))), dict(flattened(config))
        known = all(key in old and key in new for key in CONTENTS)
        unchanged = known and all(old[key] == new[key] for key in CONTENTS)
        free = {"smalti", *RESUMABLE_CHANGES, *CONTENTS, *(["data"] if unchanged else [])}
        differ = [
            f"{key} is {old.get(key)!r} there and {new.get(key)!r} here"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key) and key not in free
        ]
        if differ and begun:
            raise SmaltiError(
                f"{self.path} holds a run with other settings ({'; '.join(differ[:4])}); "
                "repeat its settings to resume it, or choose another --out"
            )
        if begun and known and not unchanged:
            count, now = old["contents.images"], new["contents.images"]
            log.warning(
                "the images in %s have changed since the run was last started: there were %s, and there are %s%s; "
                "training continues with those that are there now",
                new["data"],
                count,
                now,
                ", but not the same files" if count == now else "",
            )

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Add one JSON line."""
        with refusals_explained(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def cut_metrics(self, seen: int) -> None:
        """Remove the lines after `seen`, which will be written again, and an incomplete last line."""
        if self.metrics.is_file():
            kept = [line for line in _complete_lines(self.metrics) if line["seen"] <= seen]
            write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def save_state(self, fabric: Fabric, state: dict[str, Any], *, seen: int, notes: Mapping[str, Any]) -> None:
        """Write a new state under a temporary name, sync it, rename it, and only then drop the oldest."""
        target = self._states / f"{seen:014d}"
        with ExitStack() as stack:
            temporary = None
            if fabric.is_global_zero and not target.exists():
                temporary = stack.enter_context(folder_written_atomically(target))
            temporary = fabric.broadcast(temporary)
            if temporary is None:
                return
            save(fabric, temporary / "state.ckpt", state)
            if fabric.is_global_zero:
                write_json(temporary / NOTES, dict(notes))
            fabric.barrier()
        if fabric.is_global_zero:
            for old in self.states()[:-KEPT_STATES]:
                shutil.rmtree(old)
            self._drop_models()

    def _drop_models(self) -> None:
        """Remove best models that belong to no saved state."""
        needed = set()
        for entry in self.states():
            with suppress(SmaltiError):  # a damaged state has no model to keep
                needed.add(self.best(_best_of(_read_notes(entry))))
        for kept in set((self._states / BEST).glob("*")) - needed:
            shutil.rmtree(kept)

    def best(self, seen: int) -> Path:
        """The folder of the best model, selected at `seen`."""
        return self._states / BEST / f"{seen:014d}"

    def publish(self, kept: Path) -> None:
        """Copy the files of a best model to `model`. The config comes last, since it marks a model as complete."""
        for file in sorted((path for path in kept.rglob("*") if path.is_file()), reverse=True):
            write_atomically(self.model / file.relative_to(kept), partial(shutil.copyfile, file))

    def states(self) -> list[Path]:
        """The saved states, oldest first."""
        return sorted(entry for entry in self._states.glob("*") if entry.name.isdigit())

    def load_state(self, fabric: Fabric, state: dict[str, Any]) -> Restored:
        """Fill `state` in place from the newest state that can be read.

        Raises `SmaltiError` when there are states and none can be read.
        """
        states = self.states()
        reasons = []
        for entry in reversed(states):
            try:
                notes = _read_notes(entry)
                best = _best_of(notes)
                if best and not self.best(best).is_dir():
                    raise SmaltiError(f"its best model is not in {self.best(best)}")
                load(fabric, entry / "state.ckpt", state)
            except Exception as error:  # a damaged archive can raise any exception
                reasons.append(f"{entry.name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
                log.warning("state %s cannot be read and is skipped (%s)", entry, reasons[-1])
            else:
                return Restored(int(entry.name), notes)
        if states:
            raise SmaltiError(
                f"no state in {self._states} can be read ({'; '.join(reasons)}); "
                "remove that folder to train from the beginning"
            )
        return Restored(0, {})


def _read_notes(state: Path) -> dict[str, Any]:
    """The notes of the training loop in the folder of a state; empty where it has none."""
    notes: dict[str, Any] = read_json(state / NOTES) if (state / NOTES).is_file() else {}
    return notes


def _best_of(notes: Mapping[str, Any]) -> int:
    """Notes of the loop -> `seen` at the best validation, 0 without one; see `early_stopping.Best`."""
    seen: int = notes.get("best", {}).get("seen", 0)
    return seen


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config, perhaps of an older version -> the same with defaults for settings that did not exist then."""
    cls = STAGES.get(str(config.get("stage")))
    if cls is None:
        return dict(config)
    try:
        known = parse(cls, {name: config[name] for name in cls.__dataclass_fields__ if name in config}, where="")
    except SmaltiError:  # settings that no longer exist: they count as different
        return dict(config)
    return {**config, **as_mapping(known)}


def _is_encoding_output(entry: Path) -> bool:
    """Whether it is a folder of codes that encoding before the training wrote, complete or not."""
    return (entry / "codes.json").is_file() or (entry.name.startswith(".codes") and entry.suffix in (".tmp", ".parts"))


def _complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            value = parse_json(line)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("seen"), int) and isinstance(value.get("part"), str):
            yield value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """A run folder -> its metrics: the lines of its `metrics.jsonl`, oldest first, without the diagnostics."""
    return [line for line in _lines(path) if line.get("part") != DIAGNOSTIC]


def read_diagnostics(path: Path) -> list[dict[str, Any]]:
    """A run folder -> the diagnostics that began and were resolved: lines of its `metrics.jsonl`, oldest first."""
    return [line for line in _lines(path) if line.get("part") == DIAGNOSTIC]


def _lines(path: Path) -> list[dict[str, Any]]:
    metrics = path / "metrics.jsonl"
    return list(_complete_lines(metrics)) if metrics.is_file() else []
