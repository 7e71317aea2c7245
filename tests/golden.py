"""Golden numbers of the original code: where they are, how they are read, how close is close enough.

They are looked for in the folder that `SMALTI_GOLDEN` names, else in `../shared/golden`; the few small ones that are
kept in `tests/golden` stand in where neither is there. Folders are found by the number their names begin with, and
every shape and setting comes from the folder's own `data.json`, so that any folder of that layout will do.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from smalti.conditions.coordinates import Coordinates
from smalti.conditions.labels import Labels, Unconditional
from smalti.conditions.precomputed import PrecomputedCodes
from smalti.conditions.spatial import SpatialCondition
from smalti.losses.perceptual import BACKBONES, Backbone, Perceptual
from smalti.pipeline import Pipeline

_HERE = Path(__file__).resolve().parent
NAMED = Path(os.environ.get("SMALTI_GOLDEN", _HERE.parents[1] / "shared" / "golden"))
COMPLETE = NAMED.is_dir()
FOLDER = NAMED if COMPLETE else _HERE / "golden"


def fixtures(prefix: str) -> list[Any]:
    """All folders whose names begin with `prefix`, for `pytest.mark.parametrize`; one that skips where there is
    none."""
    found = sorted(path for path in FOLDER.glob(f"{prefix}*") if path.is_dir())
    if not found:
        return [pytest.param(None, id=prefix, marks=pytest.mark.skip(f"no golden numbers {prefix}* on this machine"))]
    return [pytest.param(path, id=path.name) for path in found]


def number_of(prefix: str) -> Path:
    """The one folder whose name begins with `prefix`; skips the test where it is absent."""
    found = sorted(path for path in FOLDER.glob(f"{prefix}*") if path.is_dir())
    if not found:
        pytest.skip(f"no golden numbers {prefix}* on this machine")
    return found[0]


@dataclass(frozen=True)
class Golden:
    """One folder: its tensors by name, and what its `data.json` says."""

    path: Path
    tensors: dict[str, Tensor]
    facts: dict[str, Any]

    @classmethod
    def read(cls, path: Path, *, name: str = "data") -> Golden:
        facts = json.loads((path / f"{name}.json").read_text("utf-8"))
        return cls(path, load_file(path / f"{name}.safetensors"), facts)

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def weights(self, prefix: str = "", *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """The stored weights whose names begin with `prefix`, without it; floats as `dtype` (they are stored exactly in
        half)."""
        stored = {
            key: value
            for key, value in self.tensors.items()
            if not key.startswith(("in.", "out.", "final32.", "final64."))
        }
        return {
            key.removeprefix(prefix): value.to(dtype) if value.is_floating_point() else value
            for key, value in stored.items()
            if key.startswith(prefix)
        }

    def check(self, key: str, actual: Tensor) -> None:
        """`actual` must be the tensor `key`: integers equal, floats within 20 times the original's own rounding noise.

        Gradients in single precision also within a ten-thousandth of the largest; in double precision nothing is let
        through."""
        expected = self.tensors[key]
        assert actual.shape == expected.shape, f"{key}: {tuple(actual.shape)}, not {tuple(expected.shape)}"
        if not expected.is_floating_point():
            assert torch.equal(actual.to(expected.dtype), expected), f"{key}: {(actual != expected).sum()} differ"
            return
        measured = self.facts.get("noise_fp32_vs_fp64", {})
        noise = float(measured.get(key, max([1e-6, *measured.values()])))  # not all were measured: then as the worst
        # A sum rounds as its terms are large, whatever is left of them:
        # a gradient near 0 is as inexact as the largest beside it.
        terms = (
            float(expected.abs().amax())
            if "grad" in key and actual.dtype == torch.float32 and expected.numel()
            else 0.0
        )
        torch.testing.assert_close(
            actual.detach().to(expected.dtype),
            expected,
            rtol=1e-4,
            atol=max(20 * noise, 2e-6, 1e-4 * terms),
            msg=lambda m: f"{key}: {m}",
        )


def random_vgg(seed: int) -> dict[str, Tensor]:
    """The VGG16 trunk that the golden numbers used, by the rule in `06_lpips/vgg_rule.json`: torchvision's key ->
    tensor."""
    shapes = [(64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256), (512, 256)]
    shapes += [(512, 512)] * 5
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    tensors: dict[str, Tensor] = {}
    for number, (place, (out, channels)) in enumerate(zip(places, shapes, strict=True)):
        weight = np.random.default_rng(seed + number).standard_normal((out, channels, 3, 3)) * np.sqrt(
            2 / (channels * 9)
        )
        bias = np.random.default_rng(seed + 100 + number).standard_normal((out,)) * 0.05
        tensors[f"features.{place}.weight"] = torch.from_numpy(weight.astype(np.float32))
        tensors[f"features.{place}.bias"] = torch.from_numpy(bias.astype(np.float32))
    return tensors


def prefix_of(pipeline: Pipeline, given: Tensor, count: int) -> Tensor:
    """What the original was given -> prefix codes, through what a user of ours would give."""
    condition = pipeline.condition
    if isinstance(condition, Unconditional):
        return pipeline.prior.null_prefix(count)
    if isinstance(condition, Labels):
        return condition.encode([str(int(label)) for label in given])
    if isinstance(condition, Coordinates):
        return condition.codes(given.float()).flatten(1)
    if isinstance(condition, SpatialCondition):
        segmentation = condition.settings.kind == "segmentation"
        return condition.encode(list(given.argmax(1)) if segmentation else list(given.float()))
    assert isinstance(condition, PrecomputedCodes)
    return condition.encode(list(given))


def known_codes(golden: Golden) -> Tensor:
    """A sliding-window fixture -> the codes (1,h,w) that are kept of its input image, -1 where one is to be laid."""
    height, width = golden.facts["latent_grid"]
    given = golden.facts["tokens_from_input"]
    known = torch.full((1, height, width), -1)
    known.flatten(1)[:, :given] = golden["in.z_indices"].view(1, -1)[:, :given]
    if (
        given
    ):  # the original begins every row at the column where it begins the first, and leaves the others as they are
        known[:, :, : given % width] = golden["out.grid"][:, :, : given % width]
    assert (known < 0).sum() == golden.facts["sampled_tokens"]
    return known


@functools.cache
def _trunk(seed: int, dtype: torch.dtype) -> Backbone:
    made = BACKBONES["vgg16"].build()
    made.load_state_dict(random_vgg(seed))
    return made.to(dtype)


def random_lpips(golden: Golden, prefix: str, *, dtype: torch.dtype, dropout: float = 0.0) -> Perceptual:
    """LPIPS over the random VGG16 of a fixture, its linear weights under `prefix`; where it holds none, the published
    ones of number 06."""
    stored = golden.weights(prefix) or Golden.read(number_of("06_")).weights()
    distance = Perceptual(_trunk(golden.facts["vgg_seed"], dtype), dropout=dropout)
    distance.linear.load_state_dict({str(k): stored[f"lin{k}.model.1.weight"] for k in range(5)})
    return distance.to(dtype)
