"""What the page's buttons and the functions of `gradio_client` do, for one visitor each; a wrong wish is told in one
sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, final

import gradio as gr

from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping
from smalti.web import rendering
from smalti.web.requests import Asked, asked, check_size, smallest
from smalti.web.sessions import Kept, Visitor, Visitors
from smalti.web.studio import Moment, Reconstructed, Studio

Given = Mapping[str, str | Path | None]
SIDES = {
    "not at all": (0, 0, 0, 0),
    "above": (1, 0, 0, 0),
    "to the right": (0, 1, 0, 0),
    "below": (0, 0, 1, 0),
    "to the left": (0, 0, 0, 1),
    "all around": (1, 1, 1, 1),
}
"""Where an image is extended -> the share of the amount above, to the right, below and to the left."""


class Seen(NamedTuple):
    """What a visitor sees: the large image as HTML, and the images kept; the first `new` of them came last."""

    stage: str
    kept: list[Kept]
    new: int = 0


@contextmanager
def told() -> Iterator[None]:
    """What a person can mend becomes a message on the page, and in the client's exception."""
    try:
        yield
    except SmaltiError as error:
        raise gr.Error(str(error), title="That cannot be laid", print_exception=False) from error


@final
class Actions:
    """A studio and its visitors."""

    def __init__(self, studio: Studio, visitors: Visitors) -> None:
        self.studio, self.visitors = studio, visitors

    def checked(self, values: Mapping[str, Any]) -> Asked:
        """As `asking.asked`, for this studio."""
        return asked(self.studio.pipeline, values, self.studio.limits)

    def lay(self, number: str, values: Mapping[str, Any], given: Given) -> Iterator[Seen]:
        """New images for a visitor, by the names of `Asked` and the keys of the conditions; seen while they are
        laid."""
        with told():
            request = self.checked(values)
            value = self.studio.told(given, request.size)
            visitor = self.visitors.visitor(number)
            moments = self.studio.lay(request, value, visitor.stop)
            yield from self._watched(visitor, moments, request, given, command="sample", more={})

    def complete(
        self,
        number: str,
        values: Mapping[str, Any],
        given: Given,
        *,
        image: Path | None,
        erased: str | Path,
        side: str,
        amount: int,
    ) -> Iterator[Seen]:
        """As `lay`, what is erased of an image, and what is added on a side of it, that many pixels."""
        with told():
            if image is None:
                raise SmaltiError("there is no image to erase in; load one, or take the newest")
            request = self.checked(values)
            if side not in SIDES:
                raise SmaltiError(f"an image is extended {', '.join(SIDES)}; not {side!r}")
            if not isinstance(amount, int) or amount < 0:
                raise SmaltiError(f"an image is extended by whole numbers of pixels from 0 on, not by {amount!r}")
            top, right, bottom, left = (amount * share for share in SIDES[side])
            whole = (request.height + top + bottom, request.width + left + right)
            check_size(self.studio.pipeline, whole, self.studio.limits, count=request.count)
            value = self.studio.told(given, whole)
            pixels = self.studio.image(image, request.size)
            mask = self.studio.erased(erased, request.size)
            visitor = self.visitors.visitor(number)
            moments = self.studio.complete(request, value, pixels, mask, (top, right, bottom, left), visitor.stop)
            more = {"image": image.name, "erased": int(mask.sum()), "extended": f"{side} {amount}"}
            yield from self._watched(visitor, moments, request, given, command="complete", more=more)

    def _watched(
        self,
        visitor: Visitor,
        moments: Iterator[Moment],
        request: Asked,
        given: Given,
        *,
        command: str,
        more: Mapping[str, Any],
    ) -> Iterator[Seen]:
        """Moments -> what is seen at each; the images of the last are kept with their settings."""
        if visitor.stop.is_set():  # while it waited for its turn
            yield Seen(rendering.waiting("Cancelled before it began."), visitor.kept)
            return
        last = None
        for last in moments:
            if last.share < 1:
                yield Seen(rendering.moment(last), visitor.kept)
        if last is None or last.share < 1:
            yield Seen(rendering.stopped(last), visitor.kept)
            return
        names = {
            key: text if isinstance(text, str) and len(text) < 100 else "a file or painted"
            for key, text in given.items()
            if text
        }
        title = next((part.key for part in self.studio.parts if part.way == "choose" and given.get(part.key)), "")
        for place, image in enumerate(last.images):
            seed = request.seed + place
            name = f"{given[title] if title else 'image'}-{seed}"
            settings = {
                **as_mapping(request),
                "command": command,
                "model": self.studio.name,
                **names,
                **more,
                "seed": seed,
            }
            visitor.keep(image, name=name, caption=name, settings=settings)
        yield Seen(rendering.moment(last), visitor.kept, len(last.images))

    def codes(self, image: Path | None) -> dict[str, Any]:
        """An image file -> its codes (h,w) as lists, and how near they bring it back, in decibels."""
        with told():
            found = self._reconstructed(image)
            return {"codes": found.codes.tolist(), "psnr": round(found.psnr, 3)}

    def described(self) -> dict[str, Any]:
        """What can be asked for, as plain values."""
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

    def _reconstructed(self, image: Path | None) -> Reconstructed:
        if image is None:
            raise SmaltiError("there is no image; load one")
        return self.studio.reconstruct(self.studio.fitting(image))

    def reconstruct(self, image: Path | None) -> str:
        """An image file -> the page's comparison of it with what its codes keep."""
        with told():
            found = self._reconstructed(image)
            return rendering.reconstruction(found, size=self.studio.pipeline.tokenizer.size)
