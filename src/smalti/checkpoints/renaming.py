"""Names of weights in another program's layout <-> ours: one two-way table for each model, checked name by name.

A format gives rules that turn our names into its names. Applied to all names of one of our models they make the table;
reading goes through it backwards, writing forwards. Names that are left over on either side are an error that lists
them.
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
    """How one kind of weight is named and arranged there."""

    ours: str
    """A regular expression that matches the whole of our name."""
    theirs: str | Callable[[re.Match[str]], str] | None
    """Their name: a template for `re.Match.expand`, a function of the match, or None where they have no such weight."""
    read: Callable[[Tensor], Tensor] = as_it_is
    """Their tensor -> ours."""
    write: Callable[[Tensor], Tensor] = as_it_is
    """Our tensor -> theirs."""


class Renaming(NamedTuple):
    """The table of one model: our name -> their name and the rule it comes from; names that they do not have are left
    out."""

    pairs: dict[str, tuple[str, Rule]]

    @classmethod
    def of(cls, module: nn.Module, rules: Sequence[Rule]) -> Renaming:
        """One of our models (on any device, "meta" too) and a format's rules -> its table. The first rule that matches
        counts."""
        pairs: dict[str, tuple[str, Rule]] = {}
        for name in module.state_dict():
            rule, match = next((rule, match) for rule in rules if (match := re.fullmatch(rule.ours, name)))
            if rule.theirs is not None:
                theirs = match.expand(rule.theirs) if isinstance(rule.theirs, str) else rule.theirs(match)
                pairs[name] = (theirs, rule)
        names = [theirs for theirs, _ in pairs.values()]
        assert len(set(names)) == len(names), "two of our names have one name there"
        return cls(pairs)

    def read_into(self, module: nn.Module, weights: Mapping[str, Tensor], *, where: str, ignored: str = "(?!)") -> None:
        """Fill `module` from `weights` in their names; names that match the regular expression `ignored` may be left
        over.

        Raises `SmaltiError` with the names that are missing, unknown, or of another shape. Weights in half precision
        become what the module holds.
        """
        state = module.state_dict()
        mine: dict[str, Tensor] = {}
        problems: list[str] = []
        for name, (theirs, rule) in self.pairs.items():
            if theirs not in weights:
                problems.append(f"{theirs} is missing")
                continue
            tensor = rule.read(weights[theirs])
            if tensor.shape != state[name].shape:
                there, here = tuple(weights[theirs].shape), tuple(state[name].shape)
                problems.append(f"{theirs} has the shape {there}, where its settings require {here}")
            mine[name] = tensor
        known = {theirs for theirs, _ in self.pairs.values()}
        problems += [
            f"{name} is not known" for name in weights if name not in known and not re.fullmatch(ignored, name)
        ]
        if problems:
            more = f", and {len(problems) - 4} more" if len(problems) > 4 else ""
            prefix_hint = _prefixed({theirs for theirs, _ in self.pairs.values()}, weights)
            raise SmaltiError(f"the weights of {where} do not fit{prefix_hint}: {'; '.join(problems[:4])}{more}")
        with torch.no_grad():
            for name, tensor in mine.items():
                state[name].copy_(tensor)

    def written_from(self, module: nn.Module) -> dict[str, Tensor]:
        """Our model -> its weights in their names and layout."""
        state = module.state_dict()
        return {theirs: rule.write(state[name]).contiguous() for name, (theirs, rule) in self.pairs.items()}


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
