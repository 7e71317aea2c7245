"""Words of an older vocabulary that must not come back: the left column of the terms that docs/glossary.md replaced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

# fmt: off
WORDS = frozenset(
    (
        "lay", "lays", "laid", "laying", "told", "tell", "tells", "telling", "untold", "judge", "judges",
        "judged", "judging", "pulls", "keeper", "sayings", "saying", "sayer", "picture", "pictures", "beside",
        "thing", "things", "asked", "asking", "launching", "stepping", "playing", "players", "played", "mover",
        "alarm", "alarms", "blockwise", "finetuning", "nats_a", "guessing", "guesses", "guessed", "obedience",
        "obey", "obeyed", "visitors", "unwatched", "further",
    )
)
"""Parts of identifiers: `told` is in `told_by` and `TOLD`, and not in `threshold`."""

NAMES = frozenset(
    (
        "held", "said", "sayings", "clip", "everyones", "first_ones", "sum_of_all", "mean_of_all", "warm_up",
        "Room", "Work", "Paired", "Keeper", "Book", "Strength", "Moves", "Mover", "Several", "Given", "Nothing",
        "Maps", "Asked", "Every", "One", "Sight", "Panels", "Laying", "UnderWindows", "AmongNeighbours",
        "GuessingAhead", "Held", "Spilled", "CutAlike", "Thing", "Taken", "Kept", "Players", "Played",
        "normalised", "hangs_on", "takes_none", "partly_hidden", "drop_condition", "most_skipped",
        "report_every", "picture_every", "nats_a_code", "bits_a_pixel", "best_of_all", "toward_data",
        "toward_real", "kinds", "in_text", "first_alone", "fit_condition",
        "is_ours", "refuse_twins", "everybody", "images_codes",
    )
)
# fmt: on
"""Whole identifiers."""

LIMITS = ("MOST_", "FEWEST_", "LEAST_")
"""Beginnings of constants; limits are called MAX_ and MIN_."""

BRITISH = (
    "colour",
    "neighbour",
    "normalis",
    "optimis",
    "initialis",
    "centre",
    "behaviour",
    "licence",
    "organis",
    "grey",
)
"""Beginnings of parts of words; American spelling is used."""

TEXT = re.compile(
    r"\b(?:is|are|was|were|be|been|being) (?:laid|told|judged|obeyed)\b"
    r"|\b(?:told (?:nothing|apart|what|where|that|its|their|the|a|by|in)|tells? (?:one|you|what|how|where|which|of)"
    r"|(?:to|not|will|can|would|may) lay|lays? (?:images?|codes?|them|it|out|down)|laying"
    r"|laid (?:by|anew|over|out|down|in)"
    r"|pictures?|paint new images|judges?|so-manieth|colou?red by hand|nats a code|bits a pixel"
    r"|(?:images|codes|steps) a second|(?:can|could)(?:not)? be had|nobody|somebody|whoever|goes? on with the run"
    r"|(?:is|that is|are) none of theirs|what is none)\b",
    re.IGNORECASE,
)
"""In strings that a user reads, and in docstrings."""


def parts(name: str) -> list[str]:
    """`GenerationRequest` -> generation, request; `warm_up` -> warm, up."""
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """All names that a file defines or uses, with their lines; not the names of other packages' attributes in calls."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute) and not foreign(node):
            yield line, node.attr
        elif isinstance(node, ast.arg):
            yield line, node.arg
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield line, node.name
        elif isinstance(node, ast.alias):
            yield line, node.asname or node.name.split(".")[-1]
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((line, name) for name in node.module.split("."))


def foreign(node: ast.Attribute) -> bool:
    """Whether an attribute is one of numpy's, torch's or of a file's: np.clip, file.tell."""
    return node.attr in {"tell", "clip", "clip_", "behaviour"}


def banned_names(tree: ast.AST) -> Iterator[str]:
    """Where a file uses a word of the older vocabulary in an identifier."""
    for line, name in identifiers(tree):
        words = parts(name)
        old = name.strip("_") in NAMES or name.strip("_").startswith(LIMITS) or WORDS & set(words)
        if old or any(word.startswith(BRITISH) for word in words):
            yield f"line {line}: {name}"


def strings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The strings of a file, docstrings among them: line, text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def banned_text(text: str) -> Iterator[str]:
    """What a text says in the older vocabulary."""
    yield from (match[0] for match in TEXT.finditer(text))
    yield from (word for word in re.findall(r"[A-Za-z]+", text) if word.lower().startswith(BRITISH))
