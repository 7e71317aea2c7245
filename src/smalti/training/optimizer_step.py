"""What the steps of both stages have in common: gradients that are gathered over the parts of a batch and over all processes,
and networks that move along them together or, where a number is not finite, not at all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from smalti.core.distributed import sum_of_all
from smalti.training.config import OptimizerSettings
from smalti.training.fsdp import whole
from smalti.training.optimizer import rate_at, set_rate

NORMS = ("gradient_norm", "discriminator_gradient_norm")
"""Numbers of a whole step: they are known with its last part."""


class NotFiniteError(Exception):
    """A step was left out because numbers of it are not finite; the networks are as they were. `names`: of those numbers."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(", ".join(names))
        self.names = names


@final
class Mover:
    """Moves one network along the gradients that it has, at a rate that depends on how much was seen."""

    def __init__(
        self, fabric: Fabric, module: Any, optimizer: Any, *, settings: OptimizerSettings, length: int
    ) -> None:
        """`module` and `optimizer` are those that `fabric.setup` gave back; `length`: of the training."""
        self._fabric, self._module, self._optimizer = fabric, module, optimizer
        self._settings, self._length = settings, length

    def clipped(self) -> Tensor:
        """Scale the gradients down to the largest norm allowed -> their norm () before. It may be other than finite."""
        limit = self._settings.grad_clip or math.inf
        norm = self._fabric.clip_gradients(self._module, self._optimizer, max_norm=limit, error_if_nonfinite=False)
        return whole(torch.as_tensor(norm))

    def move(self, seen: int) -> None:
        """Step along the gradients, and forget them."""
        set_rate(self._optimizer, rate_at(seen, length=self._length, settings=self._settings))
        self._optimizer.step()
        self.forget()

    def forget(self) -> None:
        """Forget the gradients."""
        self._optimizer.zero_grad(set_to_none=True)


@final
class Moves:
    """The moves of one step. Networks ask to be moved; they move together at its end, or not at all.

    With `at_once` each moves when it asks, as the alternating play needs it, whose discriminator looks at what the generator has
    just become. There each turn is made or left out by itself, and none is made after one that was left out.
    """

    def __init__(self, *, seen: int, at_once: bool) -> None:
        self._seen, self._at_once = seen, at_once
        self.whole = True
        """Whether the gradients are those of the whole batch; before its last part nothing moves."""
        self.moved: list[Mover] = []
        self._asked: list[Mover] = []
        self._broken = False

    def of(self, mover: Mover) -> Callable[[], Tensor]:
        """How one network asks: a function -> the norm () of its gradients, 0 before they are whole."""

        def ask() -> Tensor:
            if not self.whole:
                return torch.zeros(())
            norm = mover.clipped()
            self._asked.append(mover)
            if self._at_once:
                self._broken = self._broken or not bool(norm.isfinite())
                if not self._broken:
                    self._make(mover)
            return norm

        return ask

    def finish(self, values: Mapping[str, Tensor]) -> list[str]:
        """Make the moves that were asked for -> the names of values that are not finite; with any, nothing more moves.

        All processes must have the same values. This is the one place of a step where the CPU waits for the GPU, besides the
        turns that are made at once.
        """
        names = not_finite(values)
        for mover in self._asked:
            if mover in self.moved:
                continue
            if names:
                mover.forget()
            else:
                self._make(mover)
        return names

    def _make(self, mover: Mover) -> None:
        mover.move(self._seen)
        self.moved.append(mover)


def not_finite(values: Mapping[str, Tensor]) -> list[str]:
    """Named numbers () -> the names of those that are not finite. Waits for the GPU once where all are."""
    places: dict[torch.device, list[Tensor]] = {}
    for value in values.values():
        places.setdefault(value.device, []).append(value.isfinite())
    if all(bool(torch.stack(finite).all()) for finite in places.values()):
        return []
    return [name for name, value in values.items() if not bool(value.isfinite())]


def kept_buffers(module: nn.Module) -> Callable[[], None]:
    """-> a function that brings back the buffers of `module` as they are now: a forward pass moves those of batch norms."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]

    def bring_back() -> None:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)

    return bring_back


@contextmanager
def gathering(fabric: Fabric, modules: Iterable[Any], *, last: bool) -> Iterator[None]:
    """Inside, processes exchange gradients only with the `last` part of a batch."""
    with ExitStack() as stack:
        if not last and fabric.world_size > 1:
            for module in modules:
                stack.enter_context(fabric.no_backward_sync(module))
        yield


def mean_of_parts(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Named numbers of the equal parts of a batch -> those of the whole: means, but for what only the last one knows."""
    if len(parts) == 1:
        return parts[0]
    names = dict.fromkeys(name for part in parts for name in part)
    means = {name: torch.stack([part[name] for part in parts if name in part]).mean() for name in names}
    return {**means, **{name: parts[-1][name] for name in NORMS if name in parts[-1]}}


def mean_of_processes(fabric: Fabric, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named numbers (), on any device -> their means over all processes, the same in each, on the run's device."""
    if fabric.world_size == 1:
        return dict(values)
    stacked = torch.stack([value.detach().to(fabric.device, torch.float64) for value in values.values()])
    return dict(zip(values, (sum_of_processes(fabric, stacked) / fabric.world_size).unbind(), strict=True))


def sum_of_processes(fabric: Fabric, tensor: Tensor) -> Tensor:
    """A tensor of any shape, on any device -> the sum over all processes, on the run's device."""
    return sum_of_all(tensor.to(fabric.device)) if fabric.world_size > 1 else tensor


def quotient_of_processes(fabric: Fabric, total: float, count: float) -> float:
    """A sum and how many were summed -> the mean over all processes; one process may have summed nothing."""
    if fabric.world_size > 1:
        total, count = sum_of_processes(fabric, torch.tensor((total, count), dtype=torch.float64)).tolist()
    return total / count
