"""Whether data is what a training began with, wherever it is now: by how many images there are, their names and
sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from smalti.data.sources import Source, identity

CONTENTS = "contents"
"""The key of a run's config under which its `contents` are."""


def contents(source: Source) -> dict[str, Any]:
    """A source -> what tells its images from others, as plain values: their number and their `identity`."""
    return {"images": len(source.images), "files": identity(source)}


def is_data_of(run: Mapping[str, Any], data: Path, source: Source) -> bool:
    """Whether a run, by its config, was trained on `data`, whose images are those of `source`: at the same place,
    whatever has changed there, or on the same images elsewhere."""
    return run.get("data") == str(data.resolve()) or run.get(CONTENTS) == contents(source)
