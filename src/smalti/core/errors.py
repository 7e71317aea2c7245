"""The exception for everything that a user can cause: one sentence with the wrong value and a remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SmaltiError(Exception):
    """An error that a user can cause and fix. The command line prints its message without a traceback,
    and exits with status 1.

    Messages quote names and values from files of others: what is not printable in them, such as the codes that move a
    terminal's cursor, is written as Python writes it, and the middle of very long ones is left out.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


LONGEST = 3000
"""Characters of a message."""


def printable(text: str) -> str:
    r"""Text -> the same in one line, with escapes for line breaks, control codes and halves of characters; of more than
    `LONGEST` the beginning and the end.

    >>> printable("a\x1b[2J\nb")
    'a\\x1b[2J\\nb'
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 1000]} ... {text[-500:]}"
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


LISTED = 40
"""The maximum number of choices that a message lists."""
NEAREST = 5
"""The number of nearest choices in a message about more than `LISTED`."""


def suggestion(word: str, choices: Iterable[str]) -> str:
    """The text after "unknown X": the nearest choice and all choices, or of more than `LISTED` the nearest few and
    their number.

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
    """The few of `known` with the spelling nearest to a word, or that contain it, in upper or lower case."""
    plain = word.lower()
    alike = difflib.get_close_matches(plain, [each.lower() for each in known], n=NEAREST, cutoff=0.6)
    spelled = {each.lower(): each for each in reversed(known)}
    holding = [each for each in known if plain.strip() and plain in each.lower()]
    return list(dict.fromkeys((*(spelled[each] for each in alike), *holding)))[:NEAREST]
