"""(folder, count, size, seed) -> the embedded data set as files: images by class, and all that is known about them.

It is written in chunks, each noted when its images are there, so that a run which was stopped continues where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from smalti.core.allocator import keep_memory
from smalti.core.capacity import available_cores, check_memory
from smalti.core.errors import SmaltiError
from smalti.core.files import read_json, refusals_explained, write_json, write_text
from smalti.scenes.canvas import FAR
from smalti.scenes.captions import caption_row
from smalti.scenes.painter import CLASSES, COLORS, KEYPOINTS, LABELS, Scene, check, paint, scene_class

_VERSION = 1
_DEPTH_UNIT = 0.1  # meters a step of the 16-bit depth images
_CHUNK = 48  # images at most whose objects are noted together; an interrupted run loses at most that many a process
_CHUNK_PIXELS = _CHUNK * 256**2  # and pixels at most: a few seconds of painting
_CHUNKS = 64  # but at least that many chunks where there are as many images, so that the processes end together
_CHUNK_BYTES = 200  # memory that the list of chunks and their jobs takes for each, about
_PARTS = ".objects"
CAPTIONS_FILE = "metadata.jsonl"
"""The captions of all images, in their folder: a table with the columns `file_name` and `text`, a list of captions."""
_KINDS = ("images", "segmentations", "depths", "edges")


def write_scenes(
    out: Path,
    *,
    count: int,
    size: tuple[int, int],
    seed: int = 0,
    workers: int | None = 1,
    progress: Callable[[int], None] = lambda written: None,
) -> None:
    """Write images 0 to `count` - 1 of the data set `seed` to the folder `out`, each as PNG under its class.

    `images`, `segmentations` (palette, the values of `LABELS`), `depths` (16 bit) and `edges` hold `CLASS/INDEX.png`;
    `objects.json` has a line per image, `images/metadata.jsonl` its captions, `scenes.json` says what all of it means.
    The same call again finishes what was interrupted and leaves a finished folder as it is. `workers` processes (None:
    one for each core it may use) share the work and do not change a byte; a script that uses more than one needs
    the guard `if __name__ == "__main__":`, as they are started afresh. `progress` is called now and then with how many
    images are done.

    Raises `SmaltiError` when `out` holds anything else (also scenes of other settings), and for a count, a seed or a
    size that cannot be.
    """
    check(seed, size)
    check_memory(16 * 8 * size[0] * size[1], f"painting a scene of {size[0]:,} x {size[1]:,} pixels (height x width)")
    if count < 1:
        raise SmaltiError(f"the count of scenes is 1 or more, not {count}")
    check_memory(count // _max_in_chunk(count, size) * _CHUNK_BYTES, f"the list of {count:,} scenes")
    processes = available_cores() if workers is None else workers
    if processes < 1:
        raise SmaltiError(f"the number of workers is 1 or more, not {workers}")
    _claim(out, _description(count, size, seed))
    notes = (out / "objects.json", out / "images" / CAPTIONS_FILE)
    if all(file.exists() for file in notes) and all(_whole(out, seed, index) for index in range(count)):
        progress(count)
        return
    chunks = _chunks(count, size)
    jobs = [_Job(out, start, stop, size, seed) for start, stop in chunks if not _finished(out, seed, start, stop)]
    done = count - sum(job.stop - job.start for job in jobs)
    progress(done)
    for written in _chunks_written(jobs, processes):
        done += written
        progress(done)
    _join(out, chunks)


def _description(count: int, size: tuple[int, int], seed: int) -> dict[str, Any]:
    labels = [{"value": i, "name": name, "color": list(COLORS[i])} for i, name in enumerate(LABELS)]
    return {
        "version": _VERSION,
        "seed": seed,
        "count": count,
        "size": list(size),
        "classes": list(CLASSES),
        "labels": labels,
        "keypoints": list(KEYPOINTS),
        "depth_unit_meters": _DEPTH_UNIT,
        "depth_far_meters": FAR,
    }


def scene_labels(segmentations: Path) -> tuple[str, ...]:
    """The folder of the segmentations of scenes -> what their labels are called, in order; of any other folder nothing
    is known."""
    description_file = segmentations.parent / "scenes.json"
    known = read_json(description_file) if segmentations.name == "segmentations" and description_file.is_file() else {}
    labels = known.get("labels", []) if isinstance(known, dict) else []
    return tuple(str(label["name"]) for label in labels)


def _claim(out: Path, description: dict[str, Any]) -> None:
    """Make `out` the folder of these scenes, or see that it is."""
    if out.exists() and not out.is_dir():
        raise SmaltiError(f"{out} is a file; scenes are written into a folder")
    settings = out / "scenes.json"
    if settings.exists():
        there = read_json(settings)
        if there != description:
            known = there if isinstance(there, dict) else {}
            differing = [key for key in description if known.get(key) != description[key]]
            description_file = ", ".join(
                f"{key} {known.get(key)!r} instead of {description[key]!r}" for key in differing[:3]
            )
            raise SmaltiError(
                f"{out} holds scenes with other settings ({description_file}); choose another folder, or remove this "
                "one"
            )
        return
    if out.is_dir() and any(out.iterdir()):
        raise SmaltiError(f"{out} holds something other than scenes; choose a new or an empty folder")
    write_json(settings, description)


def _path(out: Path, kind: str, seed: int, index: int) -> Path:
    return out / kind / scene_class(seed, index) / f"{index:06d}.png"


def _whole(out: Path, seed: int, index: int) -> bool:
    """Whether all of an image's files are there and end as a PNG ends; after a power cut they may not."""
    for kind in _KINDS:
        try:
            with _path(out, kind, seed, index).open("rb") as file:
                file.seek(-12, 2)
                if file.read() != b"\0\0\0\0IEND\xaeB`\x82":
                    return False
        except OSError:
            return False
    return True


def _parts(out: Path, start: int, stop: int) -> tuple[Path, Path]:
    """Where a chunk's objects and its captions are until all chunks are done."""
    stem = f"{start:06d}-{stop:06d}"
    return out / _PARTS / f"{stem}.lines", out / _PARTS / f"{stem}.captions"


def _chunks(count: int, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The images that are painted by one process and noted together: (first, last + 1) of each chunk.

    They depend on nothing else, so that a run continues with any number of processes.
    """
    images = _max_in_chunk(count, size)
    return [(start, min(start + images, count)) for start in range(0, count, images)]


def _max_in_chunk(count: int, size: tuple[int, int]) -> int:
    return max(min(_CHUNK, _CHUNK_PIXELS // (size[0] * size[1]), count // _CHUNKS), 1)


def _finished(out: Path, seed: int, start: int, stop: int) -> bool:
    noted = all(part.exists() for part in _parts(out, start, stop))
    return noted and all(_whole(out, seed, index) for index in range(start, stop))


class _Job(NamedTuple):
    """Images `start` to `stop` - 1, to be written by one process."""

    out: Path
    start: int
    stop: int
    size: tuple[int, int]
    seed: int


def _chunks_written(jobs: list[_Job], processes: int) -> Iterator[int]:
    """Write the chunks, and yield the number of images of each."""
    if min(processes, len(jobs)) <= 1:
        yield from map(_write_chunk, jobs)
        return
    # Fresh processes: a forked one would inherit the threads of PyTorch half alive.
    fresh = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(min(processes, len(jobs)), fresh, initializer=_start_worker) as pool:
            yield from pool.map(_write_chunk, jobs)
    except BrokenProcessPool as error:
        raise SmaltiError(
            "a process that painted scenes was ended from outside; the same call again continues"
        ) from error


def _start_worker() -> None:
    """On Ctrl-C the main process decides, and its workers end with the chunk they are at; without it they end at once.

    A fresh process has none of the main process's settings: without `keep_memory` a third of the time of a scene at
    512 px is the system's, which fills 50,000 new pages with zeros for arrays that live for milliseconds.
    """
    keep_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(process: BaseProcess) -> None:
    process.join()
    os._exit(1)


def _write_chunk(job: _Job) -> int:
    out, start, stop, size, seed = job
    lines, captioned = [], []
    for index in range(start, stop):
        scene = paint(seed, index, size=size)
        images = {
            "images": Image.fromarray(scene.image),
            "segmentations": Image.fromarray(scene.segmentation),
            "depths": Image.fromarray(np.rint(scene.depth / _DEPTH_UNIT).astype(np.uint16)),
            "edges": Image.fromarray(scene.edges),
        }
        images["segmentations"].putpalette([channel for color in COLORS for channel in color])
        for kind, image in images.items():
            _save(image, _path(out, kind, seed, index))
        lines.append(_line(scene, index))
        file_name = _path(out, "images", seed, index).relative_to(out / "images").as_posix()
        captioned.append(caption_row(scene, seed=seed, index=index, file_name=file_name) + "\n")
    objects, captions = _parts(out, start, stop)
    write_text(captions, "".join(captioned))
    write_text(objects, ",\n".join(lines))
    return stop - start


def _save(image: Image.Image, path: Path) -> None:
    """Write a PNG under another name first. It is not synced, which would cost more than the painting:
    `_whole` looks."""
    temporary = path.with_name(f".{path.name}.tmp")
    with refusals_explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of a scene at 512 px level 1 makes 390 kB in 34 ms. Level 6 makes 15 % less in 115 ms, two thirds of what
        # painting takes.
        image.save(temporary, format="PNG", compress_level=1)
        temporary.replace(path)


def _line(scene: Scene, index: int) -> str:
    objects = [
        {
            "class": item.label,
            "box": [round(number, 5) for number in item.box],
            "distance": round(item.distance, 2),
            "keypoints": [[round(x, 5), round(y, 5)] for x, y in item.keypoints],
        }
        for item in scene.objects
    ]
    return json.dumps({"key": f"{scene.label}/{index:06d}", "class": scene.label, "objects": objects})


def _join(out: Path, chunks: list[tuple[int, int]]) -> None:
    """The chunks' objects and captions -> `objects.json` and `metadata.jsonl`; the chunks' own files go."""
    objects, captions = zip(*(_parts(out, start, stop) for start, stop in chunks), strict=True)
    write_text(out / "images" / CAPTIONS_FILE, "".join(part.read_text(encoding="utf-8") for part in captions))
    body = ",\n".join(part.read_text(encoding="utf-8") for part in objects)
    write_text(out / "objects.json", f'{{"version": {_VERSION}, "images": [\n{body}\n]}}\n')
    shutil.rmtree(out / _PARTS)
