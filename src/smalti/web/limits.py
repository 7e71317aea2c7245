"""Limits of a request, a session, an address and the server, and the refusals of what exceeds them."""

from __future__ import annotations

from typing import final

from smalti.core.errors import SmaltiError
from smalti.core.settings import Positive, settings


@settings
class Limits:
    """Limits of the server of the page.

    `side`: pixels of an image's longer side. `codes`: codes of all images of a request. `count`: images of a request.
    `upload`: MiB of a request with all its files. `pixels`: millions of pixels of an image file. `waiting`: jobs that
    wait, of everybody; `waiting_per_session` and `waiting_per_address`: of those, jobs of one session and of one
    network address, the running one included. `sessions`: open sessions; `sessions_per_address`: of those, sessions of
    one address. `results`: MiB of finished images that the server keeps until the pages have fetched them.
    """

    side: Positive = 1024
    codes: Positive = 16384
    count: Positive = 8
    upload: Positive = 20
    pixels: Positive = 40
    waiting: Positive = 32
    waiting_per_session: Positive = 4
    waiting_per_address: Positive = 16
    sessions: Positive = 200
    sessions_per_address: Positive = 50
    results: Positive = 256


@final
class Refusal(SmaltiError):  # noqa: N818 - named after what it is
    """A request that is refused for another reason than its content; `status` is the number of its HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


def busy(message: str) -> Refusal:
    """The server has no place for the request now: 503."""
    return Refusal(message, status=503)


def too_many(message: str) -> Refusal:
    """One session or address has as much as it may have: 429."""
    return Refusal(message, status=429)


def unknown(message: str) -> Refusal:
    """There is no such job or image: 404."""
    return Refusal(message, status=404)


def too_large(message: str) -> Refusal:
    """The body of the request is too large: 413."""
    return Refusal(message, status=413)


def too_slow(message: str) -> Refusal:
    """The body of the request took too long to arrive: 408."""
    return Refusal(message, status=408)
