"""The actions of the page's buttons and of the API functions, each for one session."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, final

import gradio as gr

from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping
from smalti.generation.partial_images import PartialImages
from smalti.web import rendering
from smalti.web.requests import SamplingRequest, check_size, parse_request, smallest
from smalti.web.sessions import GalleryImage, Session, Sessions
from smalti.web.studio import Reconstruction, Studio

ConditionInputs = Mapping[str, str | Path | None]
SIDES = {
    "none": (0, 0, 0, 0),
    "above": (1, 0, 0, 0),
    "to the right": (0, 1, 0, 0),
    "below": (0, 0, 1, 0),
    "to the left": (0, 0, 0, 1),
    "all around": (1, 1, 1, 1),
}
"""The side of outpainting -> the fractions of the amount above, to the right, below and to the left."""


class PageUpdate(NamedTuple):
    """An update of the page: the image area as HTML, and the gallery; its first `new` images are new."""

    stage: str
    gallery: list[GalleryImage]
    new: int = 0


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn a `SmaltiError` into a message on the page and an exception of the client."""
    try:
        yield
    except SmaltiError as error:
        raise gr.Error(str(error), title="Cannot generate this", print_exception=False) from error


@final
class Actions:
    """A studio and its sessions."""

    def __init__(self, studio: Studio, sessions: Sessions) -> None:
        self.studio, self.sessions = studio, sessions

    def parse(self, values: Mapping[str, Any]) -> SamplingRequest:
        """As `requests.parse_request`, for this studio."""
        return parse_request(self.studio.pipeline, values, self.studio.limits)

    def generate(self, session_id: str, values: Mapping[str, Any], given: ConditionInputs) -> Iterator[PageUpdate]:
        """Generate images for a session: values by the names of `SamplingRequest`, inputs by the conditions' keys."""
        with user_errors():
            request = self.parse(values)
            value = self.studio.condition_value(given, request.size)
            session = self.sessions.session(session_id)
            states = self.studio.generate(request, value, session.stop)
            yield from self._updates(session, states, request, given, command="sample", more={})

    def complete(
        self,
        session_id: str,
        values: Mapping[str, Any],
        given: ConditionInputs,
        *,
        image: Path | None,
        mask: str | Path,
        side: str,
        amount: int,
    ) -> Iterator[PageUpdate]:
        """As `generate`, for the masked region of an image, and for `amount` pixels added on a side of it."""
        with user_errors():
            if image is None:
                raise SmaltiError("there is no image to edit; load one, or use the newest")
            request = self.parse(values)
            if side not in SIDES:
                raise SmaltiError(f"unknown side {side!r}; use one of {', '.join(SIDES)}")
            if not isinstance(amount, int) or amount < 0:
                raise SmaltiError(f"the amount of pixels is an integer of 0 or more, not {amount!r}")
            top, right, bottom, left = (amount * factor for factor in SIDES[side])
            whole = (request.height + top + bottom, request.width + left + right)
            check_size(self.studio.pipeline, whole, self.studio.limits, count=request.count)
            value = self.studio.condition_value(given, whole)
            pixels = self.studio.image(image, request.size)
            masked = self.studio.mask(mask, request.size)
            session = self.sessions.session(session_id)
            states = self.studio.complete(request, value, pixels, masked, (top, right, bottom, left), session.stop)
            more = {"image": image.name, "masked": int(masked.sum()), "extended": f"{side} {amount}"}
            yield from self._updates(session, states, request, given, command="complete", more=more)

    def _updates(
        self,
        session: Session,
        states: Iterator[PartialImages],
        request: SamplingRequest,
        given: ConditionInputs,
        *,
        command: str,
        more: Mapping[str, Any],
    ) -> Iterator[PageUpdate]:
        """States of generation -> updates of the page; the final images are added to the gallery with their
        settings."""
        if session.stop.is_set():  # while it was queued
            yield PageUpdate(rendering.waiting("Cancelled while queued."), session.gallery)
            return
        last = None
        for last in states:
            if not last.state.is_complete:
                yield PageUpdate(rendering.generation(last), session.gallery)
        if last is None or not last.state.is_complete:
            yield PageUpdate(rendering.stopped(last), session.gallery)
            return
        names = {
            key: text if isinstance(text, str) and len(text) < 100 else "a file or painted map"
            for key, text in given.items()
            if text
        }
        title = next((part.key for part in self.studio.parts if part.kind == "choice" and given.get(part.key)), "")
        for index, image in enumerate(last.images):
            seed = request.seed + index
            name = f"{given[title] if title else 'image'}-{seed}"
            settings = {
                **as_mapping(request),
                "command": command,
                "model": self.studio.name,
                **names,
                **more,
                "seed": seed,
            }
            session.keep(image, name=name, caption=name, settings=settings)
        yield PageUpdate(rendering.generation(last), session.gallery, len(last.images))

    def codes(self, image: Path | None) -> dict[str, Any]:
        """An image file -> its codes (h,w) as lists, and the PSNR of its reconstruction in dB."""
        with user_errors():
            found = self._reconstruct(image)
            return {"codes": found.codes.tolist(), "psnr": round(found.psnr, 3)}

    def describe(self) -> dict[str, Any]:
        """The model's sizes, conditions and limits as plain values."""
        pipeline = self.studio.pipeline
        return {
            "model": self.studio.name,
            "size": list(pipeline.default_size),
            "smallest": list(smallest(pipeline)),
            "factor": pipeline.tokenizer.factor,
            "codes": pipeline.tokenizer.size,
            "conditions": [asdict(part) for part in self.studio.parts],
            "limits": as_mapping(self.studio.limits),
            "extend": list(SIDES),
        }

    def _reconstruct(self, image: Path | None) -> Reconstruction:
        if image is None:
            raise SmaltiError("there is no image; load one")
        return self.studio.reconstruct(self.studio.read_photo(image))

    def reconstruct(self, image: Path | None) -> str:
        """An image file -> HTML that compares it with its reconstruction."""
        with user_errors():
            found = self._reconstruct(image)
            return rendering.reconstruction(found, size=self.studio.pipeline.tokenizer.size)
