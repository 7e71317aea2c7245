"""What is laid of an image, kept in a file, so that a stop at any time loses little and the same image is laid on.

A code's chance belongs to its seed and its place (`smalti.core.rng`). So codes that are laid already, given as known ones, change
nothing: the image is the one that would have been laid without the stop, code for code.

Letters: B batch, h w code grid, P prefix codes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.files import write_atomically
from smalti.core.settings import as_mapping
from smalti.generation.code_sampler import Sampler
from smalti.prior import Prior, Window

SUFFIX = ".generation"
FORMAT = 1
WRITE_INTERVAL = 10.0
"""What is laid is written again when the last writing is so long ago."""


class SavedGeneration(NamedTuple):
    """What a file of a laying holds."""

    codes: Tensor
    """(B,h,w) int64, -1 where none is laid yet."""
    fingerprint: str
    """Of all that the codes depend on, as `generation_fingerprint` gives it."""
    settings: dict[str, Any]
    """For people: what was asked for."""


def generation_fingerprint(
    prior: Prior, prefixes: Callable[[], Callable[[Window], Tensor]], known: Tensor, *, sampler: Sampler, seeds: Tensor
) -> str:
    """All that the codes of a laying depend on -> 16 hexadecimal digits.

    They are what `prior.sampling.sample_windows` is given: the prior's weights, the prefix (B,P) at each place of the window (asked
    for at places side by side that cover the grid), codes (B,h,w) that are known beforehand, -1 elsewhere, and the seeds (B,).
    """
    digest = hashlib.sha256(json.dumps(as_mapping(sampler), sort_keys=True).encode())
    height, width = known.shape[1:]
    rows, columns = min(prior.grid[0], height), min(prior.grid[1], width)
    tops, lefts = ([*range(0, n - m, m), n - m] for n, m in ((height, rows), (width, columns)))
    prefix_at = prefixes()
    for name, tensor in [*sorted(prior.state_dict().items()), ("known", known), ("seeds", seeds)]:
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    for window in (Window(top, left, rows, columns) for top in tops for left in lefts):
        digest.update(prefix_at(window).cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def save_generation(path: Path, saved: SavedGeneration) -> None:
    """Write what is laid, whole or not at all. Raises `SmaltiError` when the disk refuses."""
    about = {"format": FORMAT, "fingerprint": saved.fingerprint, "settings": saved.settings}
    tensors = {"codes": saved.codes.to("cpu", torch.int32).contiguous()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"smalti": json.dumps(about)}))


def read_generation(path: Path) -> SavedGeneration:
    """The inverse of `save_generation`. Raises `SmaltiError` for a file that is missing, damaged or another."""
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
        raise SmaltiError(f"{path} keeps no laying, or is damaged ({error}); delete it to begin anew") from error


@final
class GenerationCheckpoint:
    """Keeps one laying in a file, from which the next one goes on. A context manager around laying and all that is done with it.

    The file is written every `WRITE_INTERVAL` and when the block is left by an exception (Ctrl-C is one), and is gone when the block
    ends: then nothing needs it.
    """

    def __init__(
        self, path: Path, known: Tensor, *, fingerprint: Callable[[], str], settings: Mapping[str, Any]
    ) -> None:
        """`known` (B,h,w): the codes that are there before anything is laid, -1 elsewhere. `fingerprint` gives the `generation_fingerprint`; it
        reads all weights, and so is asked only when there is something to write or to compare.

        Raises `SmaltiError` where the file at `path` keeps another laying, or cannot be read.
        """
        self.path = path
        self.codes = known
        """What is laid so far, with what the file held."""
        self._fingerprint, self._settings, self._written = lru_cache(fingerprint), _jsonable(settings), time.monotonic()
        if path.exists():
            saved = read_generation(path)
            if saved.fingerprint != self._fingerprint():
                raise SmaltiError(_mismatch_message(path, saved.settings, self._settings))
            self.codes = saved.codes.to(known.device)
        self.initial_count = self.count
        """How many codes were there at the beginning."""

    @property
    def count(self) -> int:
        """How many codes there are now, of all images."""
        return int((self.codes >= 0).sum())

    def update(self, codes: Tensor) -> None:
        """More codes (B,h,w) are laid."""
        self.codes = codes
        if time.monotonic() - self._written >= WRITE_INTERVAL:
            self._write()

    def _write(self) -> None:
        save_generation(self.path, SavedGeneration(self.codes, self._fingerprint(), self._settings))
        self._written = time.monotonic()

    def __enter__(self) -> GenerationCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            self.path.unlink(missing_ok=True)
        elif self.count > self.initial_count:
            self._write()


def _jsonable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a file holds them: what JSON has no word for, a map of segments say, in a few words of Python's."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(settings), default=lambda value: f"{value!r:.80}"))
    return plain


def _mismatch_message(path: Path, saved: Mapping[str, Any], requested: Mapping[str, Any]) -> str:
    """Why a file is not gone on from."""
    differing = [name for name in dict.fromkeys((*saved, *requested)) if saved.get(name) != requested.get(name)]
    differences = ", ".join(f"{name} {saved.get(name)!r} there and {requested.get(name)!r} here" for name in differing)
    return (
        f"{path} keeps another laying: {differences or 'the model or a file of its condition has changed since'}; ask for what is kept "
        "there, or delete it to begin anew"
    )
