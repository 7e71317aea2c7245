"""Generation checkpoints: the codes of an unfinished image in a file, to resume generation after an interruption.

The noise of a code depends on its seed and its position (`smalti.core.rng`). So known codes change nothing: a
resumed image equals the uninterrupted one, code for code.

Notation: B batch, h w code grid, P prefix codes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.files import remove_written, write_atomically
from smalti.core.settings import as_mapping
from smalti.generation.generation_loop import GenerationState, generation_states
from smalti.generation.request import GenerationRequest
from smalti.prior import Prior, Window

SUFFIX = ".generation"
FORMAT = 1
WRITE_INTERVAL = 10.0
"""Seconds between two writes of the file."""


class SavedGeneration(NamedTuple):
    """The content of a generation checkpoint."""

    codes: Tensor
    """(B,h,w) int64, -1 where not generated yet."""
    fingerprint: str
    """Of all inputs that the codes depend on, from `generation_fingerprint`."""
    settings: dict[str, Any]
    """The request, for display."""


def generation_fingerprint(prior: Prior, request: GenerationRequest) -> str:
    """All inputs that the generated codes depend on -> 16 hexadecimal digits.

    They are the prior's weights, and of the request the prefix (B,P) per window position (at adjacent windows that
    cover the grid), the known codes (B,h,w), the seeds (B,), the sampler, and where it is given the order and the
    number of parallel steps.
    """
    digest = hashlib.sha256(json.dumps(as_mapping(request.sampler), sort_keys=True).encode())
    if request.order is not None or request.parallel:
        order = [] if request.order is None else request.order.tolist()
        digest.update(json.dumps([order, request.parallel]).encode())
    height, width = request.grid
    rows, columns = min(prior.grid[0], height), min(prior.grid[1], width)
    tops, lefts = ([*range(0, n - m, m), n - m] for n, m in ((height, rows), (width, columns)))
    for name, tensor in [*sorted(prior.state_dict().items()), ("known", request.known), ("seeds", request.seeds)]:
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for window in (Window(top, left, rows, columns) for top in tops for left in lefts):
        digest.update(request.prefix_at(window).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_generation(path: Path, saved: SavedGeneration) -> None:
    """Write a checkpoint atomically. Raises `SmaltiError` if the file cannot be written."""
    about = {"format": FORMAT, "fingerprint": saved.fingerprint, "settings": saved.settings}
    tensors = {"codes": saved.codes.to("cpu", torch.int32).contiguous()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"smalti": json.dumps(about)}))


def read_generation(path: Path) -> SavedGeneration:
    """The inverse of `save_generation`. Raises `SmaltiError` for a file that is missing, damaged or of another
    kind."""
    if not path.is_file():
        raise SmaltiError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["smalti"])
            codes = file.get_tensor("codes").long()
            if about["format"] > FORMAT:
                raise SmaltiError(f"{path} was written by a newer smalti (format {about['format']}); update smalti")
            return SavedGeneration(codes, about["fingerprint"], about["settings"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise SmaltiError(
            f"{path} is not a generation checkpoint, or is damaged ({error}); delete it to start again"
        ) from error


@final
class GenerationCheckpoint:
    """Saves the progress of one generation to a file, and resumes from it. A context manager around generation and
    all use of its result.

    The file is written every `WRITE_INTERVAL` seconds and when an exception (including Ctrl-C) leaves the block. It
    is deleted when the block ends normally.
    """

    def __init__(self, path: Path, prior: Prior, request: GenerationRequest, *, settings: Mapping[str, Any]) -> None:
        """`settings` describe the request in messages and in `smalti info`.

        Raises `SmaltiError` if the file at `path` holds another generation, or cannot be read.
        """
        self.path = path
        self.codes = request.known
        """(B,h,w): the codes so far, including those from the file."""
        self._prior, self._request = prior, request
        self._settings, self._written = _jsonable(settings), time.monotonic()
        if path.exists():
            saved = read_generation(path)
            if saved.fingerprint != self._fingerprint:
                raise SmaltiError(_mismatch_message(path, saved.settings, self._settings))
            self.codes = saved.codes.to(request.known.device)
        self.initial_count = self.count
        """How many codes were there at the beginning."""

    @cached_property
    def _fingerprint(self) -> str:
        """Computed only when there is something to write or to compare, since it reads all weights."""
        return generation_fingerprint(self._prior, self._request)

    def states(self) -> Iterator[GenerationState]:
        """Generate the codes that are missing, and record them: the states of `generation_states`."""
        for state in generation_states(self._prior, replace(self._request, resumed=self.codes)):
            self.update(state.codes)
            yield state

    @property
    def count(self) -> int:
        """The current number of codes of all images."""
        return int((self.codes >= 0).sum())

    def update(self, codes: Tensor) -> None:
        """Record the codes so far (B,h,w)."""
        self.codes = codes
        if time.monotonic() - self._written >= WRITE_INTERVAL:
            self._write()

    def _write(self) -> None:
        save_generation(self.path, SavedGeneration(self.codes, self._fingerprint, self._settings))
        self._written = time.monotonic()

    def __enter__(self) -> GenerationCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            remove_written(self.path)
        elif self.count > self.initial_count:
            self._write()


def _jsonable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them: other values, such as a segmentation map, become a short Python representation."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings), default=lambda value: f"{value!r:.80}"))
    return plain


def _mismatch_message(path: Path, saved: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    """Why generation cannot resume from a file."""
    differing = [name for name in dict.fromkeys((*saved, *requested)) if saved.get(name) != requested.get(name)]
    differences = ", ".join(f"{name} {saved.get(name)!r} there and {requested.get(name)!r} here" for name in differing)
    return (
        f"{path} holds another generation: "
        f"{differences or 'the model or a file of its condition has changed since'}; "
        "repeat that request, or delete it to start again"
    )
