"""The one exception a user ever meets: a sentence that holds the value that was wrong and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SmaltiError(Exception):
    """Something a user can cause and mend. The command line prints its message, without a traceback, and ends with status 1."""


def suggestion(word: str, choices: Iterable[str]) -> str:
    """What to add to "unknown X": the nearest choice and all of them.

    >>> suggestion("smal", ["small", "demo"])
    "did you mean 'small'? There are: demo, small"
    """
    known = sorted(choices)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    listed = f"There are: {', '.join(known)}" if known else "There are none"
    return f"did you mean {near[0]!r}? {listed}" if near else listed[0].lower() + listed[1:]
