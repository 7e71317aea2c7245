"""Terminal helpers of the commands: consoles, progress, and parsing of options."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import typer

from smalti.core import progress
from smalti.core.errors import SmaltiError

CONSOLE = progress.plain_console()
ERRORS = progress.plain_console(stderr=True)


def progress_bar(title: str, unit: str) -> AbstractContextManager[Callable[[int, int], None]]:
    """As `progress.progress_bar`, on the console of the commands."""
    return progress.progress_bar(CONSOLE, title=title, unit=unit)


def by_name(given: Sequence[str], names: Sequence[str], *, option: str) -> dict[str, str]:
    """Values of a repeated option, `NAME=TEXT`, or `TEXT` alone where there is one name -> texts by name.

    Raises `SmaltiError` for an unknown name, a missing name where there are several, and a name given twice.
    """
    texts: dict[str, str] = {}
    for text in given:
        name, equals, rest = text.partition("=")
        if not (equals and name in names):
            if len(names) != 1:
                known = " or ".join(f"{option} {name}=..." for name in names)
                raise SmaltiError(f"{option} {text!r}: give a name: {known or 'no condition takes it'}")
            name, rest = names[0], text
        if name in texts:
            raise SmaltiError(f"{option} is given twice for {name}: {texts[name]!r} and {rest!r}")
        texts[name] = rest
    return texts


def size_option(text: str | None, *, of: str = "a size", unit: str = "pixels") -> tuple[int, int] | None:
    """`64` or `HxW` (height first) -> (H,W); None stays None. Anything else is wrong usage."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text.strip())
    if match is None or int(match[1]) == 0 or (match[2] is not None and int(match[2]) == 0):
        raise typer.BadParameter(f"{text!r} is not {of}; write {unit} as 64, or height x width as 64x128")
    return int(match[1]), int(match[2] or match[1])
