"""Names of weights in smalti <-> in another program: one two-way table for each model, checked name by name.

A format gives rules that turn smalti's names into foreign ones. Applied to all names of a smalti model they make the
table; reading goes through it backwards, writing forwards. Names that are left over on either side are an error that
lists them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from smalti.core.errors import SmaltiError


def as_it_is(tensor: Tensor) -> Tensor:
    """A tensor -> itself."""
    return tensor


class Rule(NamedTuple):
    """How one kind of weight is named and arranged in the foreign format."""

    pattern: str
    """A regular expression that matches the whole of smalti's name."""
    foreign: str | Callable[[re.Match[str]], str] | None
    """The foreign name: a template for `re.Match.expand`, a function of the match, or None if there is no such
    weight."""
    read: Callable[[Tensor], Tensor] = as_it_is
    """Foreign tensor -> smalti's."""
    write: Callable[[Tensor], Tensor] = as_it_is
    """smalti's tensor -> the foreign one."""


class Renaming(NamedTuple):
    """The table of one model: smalti's name -> the foreign name and the rule it comes from; names without a foreign one
    are left out."""

    pairs: dict[str, tuple[str, Rule]]

    @classmethod
    def of(cls, module: nn.Module, rules: Sequence[Rule]) -> Renaming:
        """A smalti model (on any device, "meta" too) and a format's rules -> its table. The first rule that matches
        counts."""
        pairs: dict[str, tuple[str, Rule]] = {}
        for name in module.state_dict():
            rule, match = next((rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, name)))
            if rule.foreign is not None:
                foreign = match.expand(rule.foreign) if isinstance(rule.foreign, str) else rule.foreign(match)
                pairs[name] = (foreign, rule)
        names = [foreign for foreign, _ in pairs.values()]
        assert len(set(names)) == len(names), "two names have one foreign name"
        return cls(pairs)

    def read_into(self, module: nn.Module, weights: Mapping[str, Tensor], *, where: str, ignored: str = "(?!)") -> None:
        """Fill `module` from `weights` in foreign names; names that match the regular expression `ignored` may be left
        over.

        Raises `SmaltiError` with the names that are missing, unknown, or of another shape. Weights in half precision
        become what the module holds.
        """
        state = module.state_dict()
        converted: dict[str, Tensor] = {}
        problems: list[str] = []
        for name, (foreign, rule) in self.pairs.items():
            if foreign not in weights:
                problems.append(f"{foreign} is missing")
                continue
            tensor = rule.read(weights[foreign])
            if tensor.shape != state[name].shape:
                found, expected = tuple(weights[foreign].shape), tuple(state[name].shape)
                problems.append(f"{foreign} has the shape {found}, where its settings require {expected}")
            converted[name] = tensor
        known = {foreign for foreign, _ in self.pairs.values()}
        problems += [
            f"{name} is not known" for name in weights if name not in known and not re.fullmatch(ignored, name)
        ]
        if problems:
            more = f", and {len(problems) - 4} more" if len(problems) > 4 else ""
            prefix_hint = _prefixed({foreign for foreign, _ in self.pairs.values()}, weights)
            raise SmaltiError(f"the weights of {where} do not fit{prefix_hint}: {'; '.join(problems[:4])}{more}")
        with torch.no_grad():
            for name, tensor in converted.items():
                state[name].copy_(tensor)

    def written_from(self, module: nn.Module) -> dict[str, Tensor]:
        """A smalti model -> its weights in the foreign names and layout."""
        state = module.state_dict()
        return {foreign: rule.write(state[name]).contiguous() for name, (foreign, rule) in self.pairs.items()}


def _prefixed(known: Collection[str], names: Iterable[str]) -> str:
    """What to say where half of the `known` names or more are there behind one and the same prefix; else nothing."""
    found = Counter(
        name[: index + 1]
        for name in names
        for index, letter in enumerate(name)
        if letter == "." and name[index + 1 :] in known
    )
    prefix, count = max(found.items(), key=lambda item: item[1], default=("", 0))
    return (
        f" ({count} of its names begin with {prefix!r}, which no name here does; take it off)"
        if 2 * count > len(known)
        else ""
    )
