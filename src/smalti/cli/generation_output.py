"""What the commands that lay images share: progress, a partial image to look at, and a file from which `--resume` goes
on.

Letters: B images, C channels, H W pixels, h w code grid, f = H/h, p pixels of a code in the partial image.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, final

import typer

from smalti.cli.console import CONSOLE, counting
from smalti.core.errors import SmaltiError

if TYPE_CHECKING:
    from torch import Tensor

    from smalti.evaluation.rejection_sampling import Score
    from smalti.generation.code_sampler import Sampler
    from smalti.generation.generation_checkpoint import Keeper
    from smalti.pipeline import Pipeline

Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with what the same command laid before it was stopped; images that are there stay."
    ),
]
Preview = Annotated[
    float,
    typer.Option(min=0.0, help="While it lays: seconds between partial images, NAME-partial.png; 0 for none."),
]

Speculate = Annotated[
    int,
    typer.Option(
        min=0,
        help="Guess so many codes at once: the same images in fewer steps, of the trained size at most; 0 for none.",
    ),
]

SIDE = 1024
"""Pixels of the longer side of a partial image at most, but one for each code."""
ABOVE = 4
"""Rows of codes that are decoded again with the new ones below them, and not shown again."""
SHARE = 9
"""A partial image is waited for at least so many times as long as the last one took: a tenth of the time goes into
them."""
CHOSEN = ("chosen_by", "laid_with_seed", "score")
"""What only a finished image can say of how it was chosen among several tries."""


class File(NamedTuple):
    """Where an image is written, and what it says of itself."""

    path: Path
    settings: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the image is there already, made in the same way."""
        from smalti.images.png_stream import read_head

        head = read_head(self.path)
        found = {} if head is None or head.settings is None else head.settings
        return {name: value for name, value in found.items() if name not in CHOSEN} == self.settings


@final
class Partial:
    """A small image of what is laid so far, in a file that is written again every so many seconds.

    Each time only the rows of codes that are new are decoded, with a few above them. They have the group statistics of
    themselves, so that brightness may differ a little from the finished image's.
    """

    def __init__(self, pipeline: Pipeline, path: Path, grid: tuple[int, int], *, every: float) -> None:
        """`every` 0 writes none."""
        import torch

        f = pipeline.tokenizer.factor
        self._pixels = max((p for p in range(1, f + 1) if f % p == 0 and p * max(grid) <= SIDE), default=1)
        channels = pipeline.tokenizer.settings.autoencoder.channels
        self._canvas = torch.zeros(channels, grid[0] * self._pixels, grid[1] * self._pixels)  # (C, h p, w p)
        self._pipeline, self._path, self._every, self._done = pipeline, path, every, 0
        self._due = time.monotonic() + every if every else float("inf")

    def laid(self, codes: Tensor) -> None:
        """Codes (h,w) of the image, -1 where none is laid."""
        began = time.monotonic()
        if began >= self._due:
            self._draw(codes)
            now = time.monotonic()
            self._due = now + max(self._every, SHARE * (now - began))

    def _draw(self, codes: Tensor) -> None:
        from torch.nn import functional as F

        from smalti.images.io import save_png

        laid, p = codes >= 0, self._pixels
        top, end = max(self._done - ABOVE, 0), int(laid.any(1).nonzero().max()) + 1
        rows = self._pipeline.partial(codes[None, top:end])[0]  # (C, .., W)
        small = F.avg_pool2d(rows, self._pipeline.tokenizer.factor // p)  # (C, .., w p)
        self._canvas[:, self._done * p : end * p] = small[:, (self._done - top) * p :]
        self._done = int(laid.all(1).long().cumprod(0).sum())
        save_png(self._path, self._canvas, settings={"partial": f"{int(laid.sum())} of {laid.numel()} codes"})

    def remove(self) -> None:
        """The image is finished, and this one is not needed any longer."""
        self._path.unlink(missing_ok=True)


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # which alone may listen
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Choice(NamedTuple):
    """How an image is chosen among several that are laid."""

    tries: int
    """1: there is nothing to choose."""
    judge: str
    """What chooses, in a word for the image's settings."""
    scoring: Callable[[Sequence[Any], Tensor], Score]
    """What images are told, and their known codes -> the score of their candidates."""


class Way(NamedTuple):
    """How a command lays its images, whichever they are."""

    sampler: Sampler
    choice: Choice
    resume: bool
    preview: float
    """Seconds between partial images, 0 for none."""
    speculate: int
    """Codes that are guessed at once, 0 for none."""


class Laying(NamedTuple):
    """B images that are laid together."""

    pipeline: Pipeline
    values: Sequence[Any]
    """What each is told, as in `Pipeline.lay`."""
    known: Tensor
    """(B,h,w): codes, -1 where one is to be laid."""
    seeds: Tensor
    """(B,)"""
    files: Sequence[File]
    way: Way
    inputs: Sequence[Path]
    """Files that the command was given, which it never replaces."""
    title: str = ""
    """Which of all images they are, for the progress."""

    @property
    def kept(self) -> Path:
        """The file that keeps them when they are stopped."""
        from smalti.generation.generation_checkpoint import SUFFIX

        return self.files[0].path.with_suffix(SUFFIX)

    @property
    def partial(self) -> Path:
        """The file of the partial image."""
        first = self.files[0].path
        return first.with_name(f"{first.stem}-partial.png")


def lay_and_save(laying: Laying) -> None:
    """Lay images, and write their files. Of several tries nothing is kept when they are stopped.

    Raises `SmaltiError` when it was stopped, where something is kept and `way.resume` was not asked for, and where a
    result would replace an input or a file that smalti did not write.
    """
    from smalti.data.outputs import check_outputs

    outputs = [*(file.path for file in laying.files), laying.partial]
    check_outputs(outputs, laying.files[0].path.parent, inputs=laying.inputs)
    if laying.way.resume and all(file.finished for file in laying.files):
        laying.kept.unlink(missing_ok=True)
    elif laying.way.choice.tries == 1:
        _lay_and_keep(laying)
    else:
        _lay_and_choose(laying)


def _lay_and_choose(laying: Laying) -> None:
    from smalti.evaluation.rejection_sampling import rejection_sample

    pipeline, values, known, seeds, files, way, _, title = laying
    tries, judge, scoring = way.choice
    score = scoring(values, known)
    with counting(f"laying{title}", "codes") as progress:
        chosen = rejection_sample(
            pipeline,
            values,
            known,
            sampler=way.sampler,
            seeds=seeds,
            num_candidates=tries,
            score=score,
            speculate=way.speculate,
            progress=progress,
        )
    told = []
    for place, (path, settings) in enumerate(files):
        points = float(chosen.scores[place, chosen.candidates[place]])
        how = (judge, int(chosen.seeds[place]), round(points, 4))
        told.append(File(path, {**settings, **dict(zip(CHOSEN, how, strict=True))}))
    _save(laying._replace(files=told), chosen.codes)


def _lay_and_keep(laying: Laying) -> None:
    pipeline, values, known, seeds, files, way, _, title = laying
    path, first, total = laying.kept, files[0], known.numel()
    if path.exists() and not way.resume:
        raise SmaltiError(
            f"{path} keeps what a stopped command has laid; go on with --resume, or delete it to begin anew"
        )
    said = {**first.settings, "images": len(files)}
    keeper = pipeline.keeper(path, values, known, sampler=way.sampler, seeds=seeds, said=said)
    partial = Partial(pipeline, laying.partial, (known.shape[1], known.shape[2]), every=way.preview)
    if keeper.begun > (known >= 0).sum():
        CONSOLE.print(f"going on from {keeper.begun:,} of {total:,} codes", soft_wrap=True)
    try:
        with stopped_by_sigterm(), keeper:
            with counting(f"laying{title}", "codes") as progress:
                for codes in pipeline.lay(
                    values, keeper.codes, sampler=way.sampler, seeds=seeds, speculate=way.speculate
                ):
                    keeper.laid(codes)
                    progress(keeper.count - keeper.begun, total - keeper.begun)
                    partial.laid(codes[0])
            _save(laying, keeper.codes)
            partial.remove()
    except KeyboardInterrupt as error:
        raise SmaltiError(_stopped(keeper, total)) from error


def _stopped(keeper: Keeper, total: int) -> str:
    if not keeper.path.exists():
        return "stopped before as many codes as a row has were laid; nothing is kept"
    count = keeper.count
    return (
        f"stopped with {count:,} of {total:,} codes laid, kept in {keeper.path}; the same command with --resume goes on"
    )


def _save(laying: Laying, codes: Tensor) -> None:
    """Codes (B,h,w) -> the files of their images, each written while it is decoded; large ones show how far they
    are."""
    from smalti.tokenizer.tiled.any_size import is_large
    from smalti.tokenizer.tiled.work import further, unwatched

    pipeline, files = laying.pipeline, laying.files

    def write(progress: Callable[[int, int], object]) -> None:
        for number, (file, own) in enumerate(zip(files, codes, strict=True)):
            pipeline.save(file.path, own, settings=file.settings, progress=further(progress, number, len(files)))

    if is_large(pipeline.tokenizer, codes):
        with counting(f"decoding{laying.title}", "rows") as progress:
            write(progress)
    else:
        write(unwatched)
