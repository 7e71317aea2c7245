"""Eigenvalues and singular values of matrices on which LAPACK's iterations may give up.

Covariances of few or flat images have hundreds of equal eigenvalues, and some libraries' divide-and-conquer does not
converge on them. What fails in one basis, or in one library, does not fail in another.

Notation: D N sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from smalti.core.errors import SmaltiError

T = TypeVar("T")


class Spectrum(NamedTuple):
    """A symmetric matrix as the product of its eigenvectors, their eigenvalues, and the eigenvectors again."""

    values: Tensor
    """(D,), ascending"""
    vectors: Tensor
    """(D,D), a column each"""


def spectrum(matrix: Tensor, *, what: str) -> Spectrum:
    """A symmetric matrix (D,D) -> its eigenvalues and eigenvectors, in its precision and on its device.

    `what` is named where it fails. Raises `SmaltiError` for values that are not finite, and where nothing converges.
    """
    if not bool(matrix.isfinite().all()):
        raise SmaltiError(f"{what} holds values that are not finite numbers, and so has no eigenvalues")
    used = (matrix != 0).any(1) & (matrix != 0).any(0)  # the others are eigenvectors as they are, of the eigenvalue 0
    inner = matrix[used][:, used]
    scale = _scale(inner)
    found = _first(
        _eigenpairs(inner * scale), lambda pair: _is_whole(*pair, trace=float(inner.trace()) * scale), what=what
    )
    values = torch.cat((found[0] / scale, matrix.new_zeros(int((~used).sum()))))
    vectors = torch.zeros_like(matrix)
    places = torch.arange(len(matrix), device=matrix.device)
    vectors[places[used][:, None], places[: len(inner)]] = found[1]
    vectors[places[~used], places[len(inner) :]] = 1
    order = values.argsort(stable=True)
    return Spectrum(values[order], vectors[:, order])


def singular_values(matrix: Tensor, *, what: str) -> Tensor:
    """A matrix (D,N) -> its singular values, descending, in its precision and on its device. Errors as `spectrum`."""
    if not bool(matrix.isfinite().all()):
        raise SmaltiError(f"{what} holds values that are not finite numbers, and so has no singular values")
    if not matrix.numel():
        return matrix.new_zeros(min(matrix.shape))
    scale = _scale(matrix)
    square = float((matrix * scale).square().sum())
    found = _first(
        _singular_values(matrix * scale), lambda values: _is_near(float(values.square().sum()), square), what=what
    )
    return found / scale


def _scale(matrix: Tensor) -> float:
    """The power of two, which changes no digit, that brings the largest entry near 1: then no square leaves the
    range."""
    largest = float(matrix.abs().amax()) if matrix.numel() else 0.0
    most = math.frexp(torch.finfo(matrix.dtype).max)[1] - 2
    return 2.0 ** max(-most, min(most, -math.frexp(largest)[1]))


def _eigenpairs(matrix: Tensor) -> Iterator[Callable[[], tuple[Tensor, Tensor]]]:
    """Ways to find the eigenvalues (D,) and eigenvectors (D,D), the usual one first."""
    yield lambda: _pair(*torch.linalg.eigh(matrix), like=matrix)
    if matrix.device.type != "cpu":
        yield lambda: _pair(*torch.linalg.eigh(matrix.cpu()), like=matrix)
    yield lambda: _pair(*map(torch.from_numpy, np.linalg.eigh(matrix.cpu().numpy())), like=matrix)
    turned = _turn(len(matrix), like=matrix)

    def elsewhere() -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(turned.T @ matrix @ turned)
        return values, turned @ vectors

    yield elsewhere


def _singular_values(matrix: Tensor) -> Iterator[Callable[[], Tensor]]:
    """Ways to find the singular values, the usual one first."""
    yield lambda: torch.linalg.svdvals(matrix)
    yield lambda: torch.from_numpy(np.linalg.svd(matrix.cpu().numpy(), compute_uv=False)).to(matrix)
    yield lambda: torch.linalg.svdvals(_turn(len(matrix), like=matrix).T @ matrix)


def _pair(values: Tensor, vectors: Tensor, *, like: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the precision and on the device of the matrix that they are of."""
    return values.to(like), vectors.to(like)


def _turn(side: int, *, like: Tensor) -> Tensor:
    """Some orthogonal matrix (D,D), always the same."""
    generator = torch.Generator().manual_seed(0)
    turned: Tensor = torch.linalg.qr(torch.randn(side, side, dtype=torch.float64, generator=generator))[0]
    return turned.to(like)


def _first(ways: Iterator[Callable[[], T]], is_right: Callable[[T], bool], *, what: str) -> T:
    """What the first way gives that ends and is right."""
    for way in ways:
        try:
            found = way()
        except (LinAlgError, np.linalg.LinAlgError):
            continue
        if is_right(found):
            return found
    raise SmaltiError(f"the eigenvalues of {what} could not be computed; measure more, or other, images")


def _is_whole(values: Tensor, vectors: Tensor, *, trace: float) -> bool:
    """Whether eigenvalues add up to the trace, as those that were given up on do not."""
    if not bool(values.isfinite().all() and vectors.isfinite().all()):
        return False
    return abs(float(values.sum()) - trace) <= _rounding(values) * float(values.abs().sum())


def _is_near(found: float, expected: float) -> bool:
    return math.isfinite(found) and abs(found - expected) <= 1e-4 * expected


def _rounding(values: Tensor) -> float:
    return 64 * len(values) * torch.finfo(values.dtype).eps
