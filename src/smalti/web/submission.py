"""What a page has sent -> the task of a job, or what the page wants to know of a file.

H W pixels, f the downsampling factor.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping
from smalti.images.io import png_bytes, read_settings
from smalti.web.jobs import Task
from smalti.web.requests import JobRequest, SamplingRequest, parse_request, smallest
from smalti.web.studio import Studio
from smalti.web.tasks import EditTask, Plan, ReconstructTask, SampleTask, VaryTask
from smalti.web.uploads import Upload, read_edit_mask, read_whole_tiles

Files = Mapping[str, Upload]


class Submission(NamedTuple):
    """What came with a request: the JSON of its job, its files by their names, and its query."""

    fields: Any
    files: Files
    query: Mapping[str, str]


def task_of(studio: Studio, job: JobRequest, files: Files) -> Task:
    """A job and its files -> its task. Raises `SmaltiError` for all that is wrong with them."""
    image = files.get("image")
    maps = {key: file for key, file in files.items() if key not in ("image", "mask")}
    if job.task == "sample":
        request = parse_request(studio.pipeline, job.settings, studio.limits)
        return SampleTask(_plan(studio, job, request, maps, request.size))
    if image is None:
        raise SmaltiError(f"the task {job.task!r} needs an image; send one as the file `image`")
    most = studio.limits.side // 2 if job.task == "reconstruct" else studio.limits.side
    pixels = read_whole_tiles(
        image,
        channels=studio.channels,
        factor=studio.pipeline.tokenizer.factor,
        most=most,
        limits=studio.limits,
    )
    size = (pixels.shape[0], pixels.shape[1])
    if job.task == "reconstruct":
        return ReconstructTask(studio, image.name, pixels)
    own = {**job.settings, "height": size[0], "width": size[1]}  # an edited image keeps its size
    request = parse_request(studio.pipeline, own, studio.limits)
    if job.task == "vary":
        return VaryTask(_plan(studio, job, request, maps, size), pixels, job.strength)
    mask = files.get("mask")
    masked = torch.zeros(size, dtype=torch.bool)
    if mask is not None:
        masked = read_edit_mask(mask, size, limits=studio.limits)
    plan = _plan(studio, job, request, maps, job.extend.around(size))
    return EditTask(plan, pixels, masked, job.extend)


def _plan(studio: Studio, job: JobRequest, request: SamplingRequest, maps: Files, size: tuple[int, int]) -> Plan:
    """The plan for images of a size (H,W)."""
    value = studio.condition_value(job.conditions, maps, size)
    about: dict[str, Any] = {key: text for key, text in job.conditions.items() if text.strip()}
    painted = {}
    for key, file in maps.items():
        part = studio.part(key)
        if part.kind == "paint":
            painted[key] = base64.b64encode(studio.painted(part, studio.label_map(part, file, size))).decode("ascii")
        else:
            about[key] = file.name
    return Plan(studio, request, value, {**about, **({"maps": painted} if painted else {})})


def dropped_image(studio: Studio, submission: Submission) -> dict[str, Any]:
    """An image file -> its pixels, its size, and its settings if smalti made it (None otherwise).

    The pixels are at their own size, cropped to whole tiles, as the base64 text of a PNG file.

    Raises `SmaltiError` for what is not an image, and for images smaller than the model generates.
    """
    file = submission.files.get("image")
    if file is None:
        raise SmaltiError("there is no image; send one as the file `image`")
    pixels = read_whole_tiles(
        file,
        channels=studio.channels,
        factor=studio.pipeline.tokenizer.factor,
        most=studio.limits.side,
        limits=studio.limits,
    )
    height, width = pixels.shape[:2]
    least = smallest(studio.pipeline)
    if height < least[0] or width < least[1]:
        raise SmaltiError(
            f"{file.name} is {height} x {width} pixels (height x width), and this model edits images of at least "
            f"{least[0]} x {least[1]}; use a larger image"
        )
    return {
        "name": file.name,
        "height": height,
        "width": width,
        "png": base64.b64encode(png_bytes(pixels)).decode("ascii"),
        "settings": known_settings(studio, read_settings(file.stream, name=file.name)),
    }


def known_settings(studio: Studio, found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The settings in an image file -> those that the page restores: {"settings", "conditions", "maps"}.

    None for an image without settings, and for settings that this model cannot have.
    """
    if found is None:
        return None
    names = as_mapping(SamplingRequest(height=1, width=1)).keys()
    try:
        request = parse_request(studio.pipeline, {k: found[k] for k in names if k in found}, studio.limits)
    except SmaltiError:
        return None
    texts = {
        part.key: found[part.key]
        for part in studio.parts
        if isinstance(found.get(part.key), str) and (part.kind == "text" or found[part.key] in part.names)
    }
    maps = found.get("maps")
    painted = {part.key for part in studio.parts if part.kind == "paint"}
    return {
        "settings": as_mapping(request),
        "conditions": texts,
        "maps": {key: text for key, text in maps.items() if key in painted and isinstance(text, str)}
        if isinstance(maps, Mapping)
        else {},
    }


def loaded_map(studio: Studio, key: str, submission: Submission) -> bytes:
    """A file `map`, and the size in the query -> the map as a PNG file in the colors of the page.

    Raises `SmaltiError`."""
    part, file = studio.part(key), submission.files.get("map")
    if file is None:
        raise SmaltiError("there is no map; send one as the file `map`")
    if part.kind != "paint":
        raise SmaltiError(f"the {key} is not painted; send its file with the job")
    values = {name: submission.query[name] for name in ("height", "width") if name in submission.query}
    request = parse_request(studio.pipeline, values, studio.limits)
    return studio.painted(part, studio.label_map(part, file, request.size))
