"""What a setting is here: a field of a small frozen dataclass, checked when it is read, shown before it is used.

A class's settings stand right above the class. From YAML or JSON they come through `parse`, which refuses unknown keys
and names the nearest one; `as_mapping` is its inverse.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import pydantic_core
import yaml
from pydantic import Field
from typing_extensions import dataclass_transform

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.files import read_text

T = TypeVar("T")

Positive = Annotated[int, Field(ge=1, lt=2**62)]
Natural = Annotated[int, Field(ge=0, lt=2**62)]
LayerCount = Annotated[int, Field(ge=1, le=1000)]
"""How many layers follow one another; each takes time to make, whatever its size."""
Fraction = Annotated[float, Field(ge=0, le=1)]
ProperFraction = Annotated[float, Field(ge=0, lt=1)]
Rate = Annotated[float, Field(gt=0)]
Amount = Annotated[float, Field(ge=0)]
"""How much of a training: a number up to 1 is a fraction of it, a larger one a number of images (or of codes in stage
2)."""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass whose values are checked and whose unknown keys are errors."""
    strict = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    made: Any = pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=strict)(cls)
    return made  # type: ignore[no-any-return]


def amount(value: float, *, length: float) -> float:
    """An `Amount` of a training of `length` -> images (or codes)."""
    return value * length if value <= 1 else value


def parse(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """A mapping of plain values -> an instance of the settings class `cls`.

    Raises `SmaltiError` with `where` (a file, a recipe, an option), the dotted key, the value, and for a misspelled key
    the nearest one there is.
    """
    try:
        return pydantic.TypeAdapter(cls).validate_python(dict(values))
    except pydantic.ValidationError as error:
        raise SmaltiError("; ".join(_sentence(cls, item, where) for item in _distinct(error.errors()))) from error


_MAX_VALUES = 1_000_000
"""Values that a YAML file may stand for: with aliases of aliases a few lines stand for billions."""
_MAX_DIGITS = 400
"""Of a number; more than the largest float has, and few enough for Python to print."""


def parse_yaml(text: str) -> Any:
    """YAML -> its value. Raises `yaml.YAMLError` for invalid YAML, brackets nested too deep, dates that there are not,
    numbers without end, and aliases that stand for very many values, or for themselves."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values_below(node, {}) > _MAX_VALUES:
            raise yaml.YAMLError(f"its aliases stand for more than {_MAX_VALUES:,} values")
        return loader.construct_document(node)
    except yaml.YAMLError:
        raise
    except RecursionError as error:
        raise yaml.YAMLError("its brackets are nested too deep") from error
    except Exception as error:  # of a value that does not have the type of its tag, such as !!bool 7: of any kind
        raise yaml.YAMLError(str(error) or type(error).__name__) from error
    finally:
        loader.dispose()


def _values_below(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, with each alias counted as all that it stands for; `known`: nodes by their
    `id`, 0 for those that are being counted."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MAX_DIGITS:
            raise yaml.YAMLError(f"a number of {len(node.value):,} digits")
        return 1
    if id(node) not in known:
        known[id(node)] = 0
        below = [each for pair in node.value for each in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_values_below(each, known) for each in below)
    elif not known[id(node)]:
        raise yaml.YAMLError("an alias stands for what it is in")
    return known[id(node)]


def read_yaml(path: Path) -> Any:
    """A YAML file -> its value. A missing or damaged one is a `SmaltiError` naming it."""
    try:
        return parse_yaml(read_text(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SmaltiError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def assignment(override: str, *, form: str = "a.b=value") -> tuple[str, Any]:
    """What follows `--set`, such as `a.b=[1, 2]` -> the dotted key and the value, which is read as YAML.

    Raises `SmaltiError` for another form, which is called `form`, and for values that are not YAML.
    """
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise SmaltiError(f"--set {override!r} is not of the form {form}")
    try:
        return key, parse_yaml(text)
    except yaml.YAMLError as error:
        raise SmaltiError(f"--set {override!r}: the value is not YAML") from error


def apply_override(values: dict[str, Any], override: str) -> None:
    """Write one `a.b=c` into nested `values`, in location; c is read as YAML. A section that is None so far begins
    empty.

    Raises `SmaltiError` for another form, and for a key below a single value.
    """
    key, value = assignment(override)
    if isinstance(value, str):
        # YAML 1.1 reads 1e-3 as text; the person who typed it meant a number.
        with suppress(ValueError):
            value = float(value)
    *path, last = key.split(".")
    for part in path:
        if values.get(part) is None:
            values[part] = {}
        if not isinstance(values[part], dict):
            raise SmaltiError(f"--set {override!r}: {part!r} is a single value, not a section")
        values = values[part]
    values[last] = value


def flattened(values: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested plain values -> the dotted key and the value of each that is not a section."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flattened(value, prefix=f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def as_mapping(value: Any) -> dict[str, Any]:
    """An instance of a settings class -> nested plain values (dict, list, str, number, bool, None)."""
    plain = pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")
    assert isinstance(plain, dict)
    return plain


def _distinct(items: Sequence[Any]) -> Iterator[Any]:
    """The errors that say something: of the members of one list the first of each kind, and no list is too short for
    its errors."""
    seen: set[tuple[Any, ...]] = set()
    lists = {tuple(item["loc"][:-1]) for item in items if item["loc"]}
    for item in items:
        location = tuple(item["loc"])
        kind = (location[:-1], item["type"]) if location and isinstance(location[-1], int) else (location, item["type"])
        if kind not in seen and not (item["type"] == "too_short" and location in lists):
            yield item
        seen.add(kind)


def _sentence(cls: type[Any], item: Any, where: str) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join(_follow(cls, path)[1])
    if item["type"] == "unexpected_keyword_argument":
        return f"{where}: unknown key {key!r}; {suggestion(path[-1], _keys(cls, path[:-1]))}"
    if item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{where}: the key {key!r} is missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error" and isinstance(
        item["input"], Mapping | pydantic_core.ArgsKwargs
    ):  # of several keys at once
        return f"{where}: {f'{key}: ' if key else ''}{message}"
    if item["type"] in ("tuple_type", "list_type"):
        message = f"a list is wanted, such as {key}=[{item['input']}]"
    if item["type"] == "string_type" and isinstance(item["input"], int | float | datetime.date):
        name = re.sub(r"\.\d+$", "", key)
        quoted = '["...", "..."]' if name != key else '"..."'
        message = (
            "text is wanted, and without quotes YAML reads some names as numbers, dates, yes or no; put them in "
            f"quotes, in a shell '{name}={quoted}'"
        )
    return f"{where}: {key} = {item['input']!r}: {message[0].lower()}{message[1:]}"


def _keys(cls: Any, path: list[str]) -> list[str]:
    """The field names of the settings class found by following `path` from `cls`; unions are tried member by member."""
    candidates, _ = _follow(cls, path)
    return sorted({field.name for c in candidates if dataclasses.is_dataclass(c) for field in dataclasses.fields(c)})


def _follow(cls: Any, path: list[str]) -> tuple[list[Any], list[str]]:
    """The classes that a value at `path` may have, and the path as one types it: without the tags of unions."""
    candidates, typed = [cls], []
    for part in path:
        found: list[Any] = []
        for candidate in candidates:
            fields = getattr(candidate, "__pydantic_fields__", {})
            if part in fields:
                annotation = fields[part].annotation
                found.extend(getattr(annotation, "__args__", ()) or (annotation,))
        tagged = [candidate for candidate in candidates if getattr(candidate, "name", None) == part]
        if found or not tagged:
            typed.append(part)
        candidates = found or tagged or candidates
    return candidates, typed
