"""Small random pipelines for the tests of the page, and what a page sends."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smalti.conditions.base import Condition
from smalti.conditions.composite import CompositeCondition
from smalti.conditions.labels import Labels
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.conditions.text import text_condition, train_vocabulary
from smalti.web.limits import Limits
from smalti.web.server import make_app
from smalti.web.studio import Studio
from smalti.web.uploads import Upload
from tests.small_pipeline import pipeline, tokenizer

CLASSES = ("dawn", "dusk", "night")
SEASONAL = tuple(f"{season}-{time}" for season in ("autumn", "spring", "summer", "winter") for time in ("day", "night"))
PLACES = ("sky", "ground", "water")
LIMITS = Limits(
    side=64, codes=300, count=4, upload=1, pixels=1, waiting=6, waiting_per_session=3, waiting_per_address=4
)


def segmentation(unlabeled: int | None = None) -> SpatialCondition:
    """Maps of three labels."""
    maps = SpatialConditionSettings(
        kind="segmentation", key="segmentation", grid=(3, 4), names=PLACES, unlabeled=unlabeled
    )
    return SpatialCondition(maps, tokenizer(channels=len(PLACES) + (unlabeled is not None)))


def both() -> CompositeCondition:
    """A class and a segmentation."""
    return CompositeCondition([Labels(CLASSES), segmentation()])


def all_three() -> CompositeCondition:
    """A class of season and time, a text and a segmentation."""
    vocabulary = train_vocabulary(["a red house by a lake", "a lake at night"], max_size=260)
    return CompositeCondition([Labels(SEASONAL), text_condition(vocabulary, length=4), segmentation()])


def studio(condition: Condition | None = None, limits: Limits = LIMITS, *, order: str = "raster") -> Studio:
    return Studio(pipeline(condition or Labels(CLASSES), order=order), limits, name="tiny")


def pixels(height: int, width: int, *, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random colors (H,W,3)."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)


def file_bytes(array: Any, *, kind: str = "PNG") -> bytes:
    """An image file."""
    stream = io.BytesIO()
    Image.fromarray(np.asarray(array)).save(stream, kind)
    return stream.getvalue()


def upload(array: Any, *, name: str = "given.png", kind: str = "PNG") -> Upload:
    return Upload(name, file_bytes(array, kind=kind))


@contextmanager
def served(work: Studio, **options: Any) -> Iterator[Any]:
    """A studio -> the test client of its application."""
    from fastapi.testclient import TestClient

    app, close = make_app(work, model=Path("no-such-folder"), **options)
    try:
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client
    finally:
        close()


def finished(client: Any, key: str) -> dict[str, Any]:
    """Poll a job until it is over."""
    for _ in range(3000):
        state: dict[str, Any] = client.get(f"/api/jobs/{key}").json()
        if state.get("phase") not in ("waiting", "running"):
            return state
        time.sleep(0.01)
    raise AssertionError(f"the job is not over: {state}")
