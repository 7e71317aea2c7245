"""The one exception a user ever meets: a sentence that holds the value that was wrong and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SmaltiError(Exception):
    """Something a user can cause and mend. The command line prints its message, without a traceback, and ends with status 1."""


LISTED = 40
"""So many choices are named; of more, the nearest few."""
NEAREST = 5


def suggestion(word: str, choices: Iterable[str]) -> str:
    """What to add to "unknown X": the nearest choice and all of them; of very many the nearest few, and how many there are.

    >>> suggestion("smal", ["small", "demo"])
    "did you mean 'small'? There are: demo, small"
    >>> suggestion("class 7b", [f"class {number}" for number in range(1500)])
    "did you mean 'class 7', 'class 97', 'class 87', 'class 79', 'class 78'? There are 1,500"
    """
    known = sorted(choices)
    if len(known) > LISTED:
        few = _nearest(word, known)
        named = ", ".join(map(repr, few or known[:NEAREST]))
        return (
            f"did you mean {named}? There are {len(known):,}" if few else f"there are {len(known):,}, such as {named}"
        )
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    listed = f"There are: {', '.join(known)}" if known else "There are none"
    return f"did you mean {near[0]!r}? {listed}" if near else listed[0].lower() + listed[1:]


def _nearest(word: str, known: Sequence[str]) -> list[str]:
    """The few of `known` that are written most like a word, in capitals or not, or that hold it."""
    plain = word.lower()
    alike = difflib.get_close_matches(plain, [each.lower() for each in known], n=NEAREST, cutoff=0.6)
    places = {each.lower(): each for each in reversed(known)}
    holding = [each for each in known if plain.strip() and plain in each.lower()]
    return list(dict.fromkeys((*(places[each] for each in alike), *holding)))[:NEAREST]
