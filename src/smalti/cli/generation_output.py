"""What the commands that generate images share: progress, a partial preview, and the checkpoint for `--resume`.

Notation: B images, C channels, H W pixels, h w code grid, f = H/h, p pixels per code in the preview.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, final

import typer

from smalti.cli.console import CONSOLE, progress_bar
from smalti.core.errors import SmaltiError
from smalti.core.files import remove_written

if TYPE_CHECKING:
    from torch import Tensor

    from smalti.evaluation.rejection_sampling import ImageScore
    from smalti.generation.generation_checkpoint import GenerationCheckpoint
    from smalti.generation.request import GenerationRequest
    from smalti.pipeline import Pipeline

Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Continue from the checkpoint of the same command after it was stopped; keep finished images."
    ),
]
Preview = Annotated[
    float,
    typer.Option(min=0.0, help="Seconds between previews of the partial image, NAME-partial.png; 0 for none."),
]

Speculate = Annotated[
    int,
    typer.Option(
        min=0,
        help="Speculative decoding with this many codes per step: the same images in fewer steps, at most at "
        "the training size; 0 disables it.",
    ),
]

Parallel = Annotated[
    int,
    typer.Option(
        min=0,
        help="Generate in this many steps, several codes at once: faster and approximate, for priors that know any "
        "order; 0 generates one code after the other.",
    ),
]

MAX_SIDE = 1024
"""Maximum longer side of a preview in pixels, unless the code grid is larger."""
OVERLAP = 4
"""Rows of codes that are decoded again as context above the new ones."""
MAX_SHARE = 0.1
"""The largest fraction of the time that previews may take."""
SELECTION_KEYS = ("selected_by", "candidate_seed", "score")
"""PNG settings that only a finished image has: how it was selected among several candidates."""


class OutputFile(NamedTuple):
    """The path of an image, and the settings written into its PNG text."""

    path: Path
    settings: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the image exists already, with the same settings."""
        from smalti.images.png_stream import read_head

        head = read_head(self.path)
        found = {} if head is None or head.settings is None else head.settings
        return {name: value for name, value in found.items() if name not in SELECTION_KEYS} == self.settings


@final
class PartialPreview:
    """A small preview of the codes generated so far, in a file that is rewritten periodically.

    Each update decodes only the new rows of codes and a few above them. Group statistics come from these rows alone, so
    brightness may differ slightly from the finished image.
    """

    def __init__(self, pipeline: Pipeline, path: Path, grid: tuple[int, int], *, every: float) -> None:
        """`every`: seconds between previews; 0 writes none."""
        import torch

        from smalti.generation.partial_images import PreviewSchedule

        f = pipeline.tokenizer.factor
        self._pixels = max((p for p in range(1, f + 1) if f % p == 0 and p * max(grid) <= MAX_SIDE), default=1)
        channels = pipeline.tokenizer.settings.autoencoder.channels
        self._canvas = torch.zeros(channels, grid[0] * self._pixels, grid[1] * self._pixels)  # (C, h p, w p)
        self._pipeline, self._path, self._done = pipeline, path, 0
        self._schedule = PreviewSchedule(every=every, max_share=MAX_SHARE, first=every or float("inf"))

    def update(self, codes: Tensor) -> None:
        """Codes (h,w) of the image, -1 where not generated yet -> the preview, if it is due."""
        if self._schedule.is_due:
            with self._schedule:
                self._draw(codes)

    def _draw(self, codes: Tensor) -> None:
        from torch.nn import functional as F

        from smalti.images.io import save_png

        known, p = codes >= 0, self._pixels
        top, end = max(self._done - OVERLAP, 0), int(known.any(1).nonzero().max()) + 1
        rows = self._pipeline.decode_partial(codes[None, top:end])[0]  # (C, .., W)
        small = F.avg_pool2d(rows, self._pipeline.tokenizer.factor // p)  # (C, .., w p)
        self._canvas[:, self._done * p : end * p] = small[:, (self._done - top) * p :]
        self._done = int(known.all(1).long().cumprod(0).sum())
        save_png(self._path, self._canvas, settings={"partial": f"{int(known.sum())} of {known.numel()} codes"})

    def remove(self) -> None:
        """Delete the preview once the image is finished."""
        remove_written(self._path)


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class CandidateSelection(NamedTuple):
    """How an image is selected among several candidates."""

    num_candidates: int
    """1: no selection."""
    scorer: str
    """The name of the score for the image's settings: "likelihood", or the classifier."""
    make_score: Callable[[Pipeline, GenerationRequest], ImageScore]
    """A request -> the score of its candidates."""

    @property
    def settings(self) -> dict[str, int]:
        """The PNG settings of an image selected among several candidates; empty for a single candidate."""
        return {"best_of": self.num_candidates} if self.num_candidates > 1 else {}


def likelihood_selection(num_candidates: int) -> CandidateSelection:
    """The number of candidates -> the selection of the most likely one."""
    from smalti.evaluation.rejection_sampling import by_likelihood

    return CandidateSelection(num_candidates, "likelihood", by_likelihood)


class GenerationOptions(NamedTuple):
    """How a command generates its images, apart from what the request holds."""

    selection: CandidateSelection
    resume: bool
    preview: float
    """Seconds between previews, 0 for none."""
    inputs: Sequence[Path]
    """Input files of the command, which are never replaced."""


class KeptPixels(NamedTuple):
    """The given image, and which of its pixels are kept."""

    image: Tensor
    """(1,C,H,W) in [-1,1], of the size of the completed images."""
    known: Tensor
    """(H,W) bool, True where a pixel is kept."""


class GenerationJob(NamedTuple):
    """B images that are generated together."""

    pipeline: Pipeline
    request: GenerationRequest
    files: Sequence[OutputFile]
    options: GenerationOptions
    title: str = ""
    """Which of all images they are, for the progress line."""
    kept: KeptPixels | None = None
    """What replaces the decoder's pixels where they are kept; None keeps the decoder's."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint file for `--resume`."""
        from smalti.generation.generation_checkpoint import SUFFIX

        return self.files[0].path.with_suffix(SUFFIX)

    @property
    def partial(self) -> Path:
        """The file of the preview."""
        first = self.files[0].path
        return first.with_name(f"{first.stem}-partial.png")


def generate_and_save(job: GenerationJob) -> None:
    """Generate images and write their files. Generation with several candidates has no checkpoint.

    Raises `SmaltiError` when it is stopped, where a checkpoint exists without `options.resume`, and where a result
    would replace an input or a file that smalti did not write.
    """
    from smalti.data.outputs import check_outputs

    outputs = [*(file.path for file in job.files), job.partial]
    check_outputs(outputs, job.files[0].path.parent, inputs=job.options.inputs)
    if job.options.resume and all(file.finished for file in job.files):
        remove_written(job.checkpoint)
    elif job.options.selection.num_candidates == 1:
        _generate_resumable(job)
    else:
        _generate_candidates(job)


def _generate_candidates(job: GenerationJob) -> None:
    from smalti.evaluation.rejection_sampling import rejection_sample

    num_candidates, scorer, make_score = job.options.selection
    score = make_score(job.pipeline, job.request)
    with progress_bar(f"generating{job.title}", "codes") as progress:
        best = rejection_sample(
            job.pipeline, job.request, num_candidates=num_candidates, score=score, progress=progress
        )
    selected = []
    for index, (path, settings) in enumerate(job.files):
        points = float(best.scores[index, best.candidates[index]])
        how = (scorer, int(best.seeds[index]), round(points, 4))
        selected.append(OutputFile(path, {**settings, **dict(zip(SELECTION_KEYS, how, strict=True))}))
    _save(job._replace(files=selected), best.codes)


def _generate_resumable(job: GenerationJob) -> None:
    from smalti.generation.generation_checkpoint import GenerationCheckpoint

    path, request, total = job.checkpoint, job.request, job.request.known.numel()
    if path.exists() and not job.options.resume:
        raise SmaltiError(
            f"{path} holds the partial result of a stopped command; continue it with --resume, or delete it to "
            "start over"
        )
    notes = {**job.files[0].settings, "images": len(job.files)}
    checkpoint = GenerationCheckpoint(path, job.pipeline.prior, request, settings=notes)
    partial = PartialPreview(job.pipeline, job.partial, request.grid, every=job.options.preview)
    if checkpoint.initial_count > total - request.num_missing:
        CONSOLE.print(f"resuming from {checkpoint.initial_count:,} of {total:,} codes", soft_wrap=True)
    try:
        with stopped_by_sigterm(), checkpoint:
            with progress_bar(f"generating{job.title}", "codes") as progress:
                for state in checkpoint.states():
                    progress(state.generated, state.total)
                    partial.update(state.codes[0])
            _save(job, checkpoint.codes)
            partial.remove()
    except KeyboardInterrupt as error:
        raise SmaltiError(_stopped(checkpoint, total)) from error


def _stopped(checkpoint: GenerationCheckpoint, total: int) -> str:
    if not checkpoint.path.exists():
        return "stopped before the first row of codes was finished; nothing was saved"
    count = checkpoint.count
    return (
        f"stopped with {count:,} of {total:,} codes generated, saved in {checkpoint.path}; run the same "
        "command with --resume to continue"
    )


def _save(job: GenerationJob, codes: Tensor) -> None:
    """Codes (B,h,w) -> image files, written while they are decoded; large images show progress."""
    from smalti.core.progress_callback import no_progress
    from smalti.tokenizer.tiled.any_size import is_large
    from smalti.tokenizer.tiled.tiled_progress import image_progress

    pipeline, files = job.pipeline, job.files

    def write(progress: Callable[[int, int], object]) -> None:
        for number, (file, own) in enumerate(zip(files, codes, strict=True)):
            pipeline.save(file.path, own, settings=file.settings, progress=image_progress(progress, number, len(files)))

    if is_large(pipeline.tokenizer, codes):
        with progress_bar(f"decoding{job.title}", "rows") as progress:
            write(progress)
        if job.kept is not None:
            CONSOLE.print(
                "note: an image this large is written while it is decoded, so all its pixels are the decoder's"
            )
    elif job.kept is not None:
        _save_with_kept_pixels(job, job.kept, codes)
    else:
        write(no_progress)


def _save_with_kept_pixels(job: GenerationJob, kept: KeptPixels, codes: Tensor) -> None:
    """Codes (B,h,w) of completed images -> image files, in which kept pixels are the given ones."""
    from smalti.images.io import save_png
    from smalti.images.seams import with_kept_pixels

    for file, own in zip(job.files, codes, strict=True):
        decoded = job.pipeline.decode(own[None])
        blended = with_kept_pixels(decoded, kept.image, kept.known, reach=job.pipeline.tokenizer.factor)
        save_png(file.path, blended[0], settings=file.settings)
