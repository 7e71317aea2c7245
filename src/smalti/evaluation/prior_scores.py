"""The likelihood that a prior assigns to images, and scores of its samples.

B batch, H W pixels, h w code grid, P prefix codes, K size of the codebook, N images.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from smalti.conditions.base import Condition, condition_keys, condition_value
from smalti.conditions.condition_registry import build_condition
from smalti.core.errors import SmaltiError
from smalti.core.evenly_spaced import evenly_spaced
from smalti.core.fingerprints import weights_fingerprint
from smalti.core.progress_callback import Progress, no_progress
from smalti.core.settings import as_mapping
from smalti.data.code_shards import CodeShards
from smalti.data.sources import Source
from smalti.evaluation.feature_statistics import StatisticsAccumulator
from smalti.evaluation.measurement import (
    Counter,
    ImageValues,
    PretrainedNetworks,
    fingerprints,
    load_networks,
    ranked,
    sparse_codebook_note,
)
from smalti.evaluation.metrics import CodeUse
from smalti.evaluation.prepared_images import PreparedImages
from smalti.evaluation.protocols import PriorProtocol
from smalti.evaluation.results import DEFINITIONS, ExampleImage, Measured
from smalti.evaluation.set_scores import Scores, score_sets
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import unknown_codes
from smalti.images.io import to_array, to_tensor
from smalti.pipeline import Pipeline
from smalti.prior import nll

SHOWN_SAMPLES = 12
"""Number of samples stored as examples."""


class _CodeBatch(NamedTuple):
    """Some images as codes."""

    indices: Tensor
    """(B,)"""
    codes: Tensor
    """(B,h,w)"""
    labels: list[str | None]
    prefix: Tensor
    """(B,P), the codes of the condition before them; P 0 where none are kept"""
    images: Tensor | None
    """(B,C,H,W) in [-1,1], where there are images"""


class _EncodedData:
    """Images that are encoded in batches, or the held-out codes of code shards."""

    def __init__(self, pipeline: Pipeline, data: Source | CodeShards, protocol: PriorProtocol, *, batch: int) -> None:
        self._pipeline, self._data, self._batch = pipeline, data, batch
        self.prepared: PreparedImages | None = None
        self._rows: list[int] = []
        if isinstance(data, CodeShards):
            self._open_codes(data, protocol)
        else:
            self._open_images(data, protocol)

    def _open_codes(self, shards: CodeShards, protocol: PriorProtocol) -> None:
        shards.check_fingerprint(self._pipeline.tokenizer.fingerprint())
        _check_prefix(self._pipeline.condition, shards)
        if tuple(shards.meta.grid) != tuple(self._pipeline.prior.grid):
            raise SmaltiError(
                f"the codes in {shards.path} are grids of {shards.meta.grid[0]}x{shards.meta.grid[1]}, the prior's "
                f"window is {self._pipeline.prior.grid[0]}x{self._pipeline.prior.grid[1]}; encode images of its size"
            )
        total = len(shards.validation)
        count = total if protocol.images.count is None else protocol.images.count
        if count > total or not total:
            raise SmaltiError(f"the protocol takes {count or 'some'} held-out images and {shards.path} has {total}")
        self._rows = evenly_spaced(total, count)

    def _open_images(self, source: Source, protocol: PriorProtocol) -> None:
        size, wanted = self._pipeline.default_size, protocol.images.size
        if wanted is not None and tuple(wanted) != tuple(size):
            raise SmaltiError(
                f"the likelihood is measured in the prior's window, {size[0]}x{size[1]} pixels, not "
                f"{wanted[0]}x{wanted[1]}; omit the size"
            )
        channels = self._pipeline.tokenizer.settings.autoencoder.channels
        if channels not in (1, 3):
            raise SmaltiError(f"this tokenizer takes {channels} channels; images have 1 or 3; give code shards instead")
        self.prepared = PreparedImages(source, replace(protocol.images, size=size), channels=channels)

    def __len__(self) -> int:
        return len(self._rows) if self.prepared is None else len(self.prepared)

    def label(self, index: int) -> str | None:
        """The label of an image, where it has one."""
        if self.prepared is not None:
            return self.prepared.images[index].label
        assert isinstance(self._data, CodeShards)
        label = int(self._data.validation.labels[self._rows[index]])
        return None if label < 0 else self._data.meta.labels[label]

    def name(self, index: int) -> str:
        return f"held-out image {self._rows[index]}" if self.prepared is None else self.prepared.images[index].key

    def batches(self) -> Iterator[_CodeBatch]:
        """All of them, encoded, on the pipeline's device."""
        if self.prepared is not None:
            for indices, pixels in self.prepared.batches(self._batch):
                images = to_tensor(pixels).to(self._pipeline.device)
                labels = [self.label(index) for index in indices.tolist()]
                none = torch.empty(len(indices), 0, dtype=torch.int64)
                yield _CodeBatch(indices, self._pipeline.encode(images), labels, none, images)
            return
        assert isinstance(self._data, CodeShards)
        for first in range(0, len(self._rows), self._batch):
            indices = torch.arange(first, min(first + self._batch, len(self._rows)))
            codes, _, prefix = map(
                torch.stack,
                zip(*(self._data.validation[self._rows[index], 0] for index in indices.tolist()), strict=True),
            )
            labels = [self.label(index) for index in indices.tolist()]
            yield _CodeBatch(indices, codes.to(self._pipeline.device), labels, prefix, None)

    def codes(self, index: int) -> Tensor:
        """Those of one image: (1,h,w)."""
        if self.prepared is not None:
            return self._pipeline.encode(to_tensor(self.prepared.read(index)[None]))
        assert isinstance(self._data, CodeShards)
        return self._data.validation[self._rows[index], 0].codes[None]

    def described(self) -> dict[str, Any]:
        """As in a result."""
        if self.prepared is not None:
            return self.prepared.described()
        assert isinstance(self._data, CodeShards)
        keys = self._data.meta.validation.data.get("keys")
        return {"name": self._data.path.name, "identity": f"codes {keys}", "images": len(self)}


def measure_prior(
    pipeline: Pipeline,
    data: Source | CodeShards,
    *,
    protocol: PriorProtocol,
    device: torch.device,
    progress: Progress = no_progress,
    batch: int = 16,
) -> Measured:
    """A pipeline, which is moved to `device`, and images or codes -> their likelihood under its prior, given their
    conditions.

    Images are conditioned on their labels, codes also on their condition codes. Of code shards the held-out codes are
    measured. With `protocol.samples`, generated images are compared with the data.

    Raises `SmaltiError` for images where the prior has other conditions than labels, unknown labels, codes of another
    tokenizer, condition or grid, samples without images or features to compare them by, and unavailable weights.
    """
    pipeline = pipeline.to(device)
    _check(pipeline, data, protocol)
    encoded = _EncodedData(pipeline, data, protocol, batch=batch)
    networks = load_networks(
        (), protocol.features if protocol.samples else None, missing=protocol.missing, device=device
    )
    counter = Counter(progress, len(encoded) + protocol.samples)
    reference = _accumulator(networks, protocol, len(encoded), score=False, device=device)
    use, values, nats_per_position = _measure_codes(pipeline, encoded, reference, counter)
    examples = _examples(pipeline, encoded, values, protocol)
    values.columns["bits_per_pixel"] = _bits_per_pixel(pipeline, values.columns["nats_per_code"])
    scored, shown = _sampled(pipeline, encoded, reference, networks, protocol, counter, batch=batch)
    scores = {**_likelihood(pipeline, nats_per_position, use), **scored.values}
    return Measured(
        kind="prior",
        scores=scores,
        deviations=scored.deviations,
        definitions={**{name: DEFINITIONS[name] for name in scores if name in DEFINITIONS}, **scored.definitions},
        protocol=as_mapping(protocol),
        networks=fingerprints(networks),
        data=encoded.described(),
        model={
            "tokenizer": pipeline.tokenizer.fingerprint(),
            "prior": weights_fingerprint(pipeline.prior.state_dict()),
        },
        notes=(
            *networks.notes,
            *(() if encoded.prepared is None else encoded.prepared.notes()),
            *sparse_codebook_note(use),
            *scored.notes,
        ),
        names=tuple(encoded.name(index) for index in range(len(encoded))),
        values=values.columns,
        counts=use.counts,
        examples=(*examples, *shown),
        nats_per_position=nats_per_position.float(),
    )


def _measure_codes(
    pipeline: Pipeline, encoded: _EncodedData, reference: StatisticsAccumulator | None, counter: Counter
) -> tuple[CodeUse, ImageValues, Tensor]:
    """All images as codes -> their code usage, the nats per code of each image, and the mean nats at each position
    (h,w) float64. `reference` gets the features of the images, where there are any."""
    use, values = CodeUse(pipeline.tokenizer.size), ImageValues(len(encoded))
    total = torch.zeros(pipeline.prior.grid, dtype=torch.float64)
    for coded in encoded.batches():
        nats = _nll(pipeline, coded)  # (B,h,w)
        use.add(coded.codes)
        total += nats.double().sum(0).cpu()
        values.put("nats_per_code", coded.indices, nats.mean((1, 2)))
        if reference is not None and coded.images is not None:
            reference.update(coded.images, coded.indices)
        counter.add(len(coded.indices))
    counter.add(0 if encoded.prepared is None else len(encoded.prepared.left_out))
    measured = int((~values.columns["nats_per_code"].isnan()).sum())
    return use, values, total / measured


def _check(pipeline: Pipeline, data: Source | CodeShards, protocol: PriorProtocol) -> None:
    condition = pipeline.condition
    if not isinstance(data, CodeShards) and condition.is_stored and not condition.optional:
        conditions = " and a ".join(condition_keys(condition))
        raise SmaltiError(
            f"this prior is conditioned on a {conditions}, which image files do not hold; encode the images with it, "
            "smalti encode --condition, and give the codes"
        )
    if not protocol.samples:
        return
    if protocol.features is None:
        raise SmaltiError("samples are compared in the features of a network; set features.network, or samples=0")
    if isinstance(data, CodeShards):
        raise SmaltiError("samples are compared with images, not codes; give the images, or samples=0")


@torch.no_grad()
def _nll(pipeline: Pipeline, coded: _CodeBatch) -> Tensor:
    """Images as codes -> nats of each code (B,h,w)."""
    if coded.prefix.shape[1] and pipeline.condition.is_stored:
        return nll(pipeline.prior, coded.prefix.to(coded.codes.device), coded.codes)
    return pipeline.nll(coded.codes, values=_condition_values(pipeline.condition, coded.labels))


def _condition_values(condition: Condition, labels: Sequence[str | None]) -> list[Any]:
    """The labels of images -> their condition values; None is unconditional."""
    names = condition_keys(condition)
    return [
        condition_value(condition, {"label": label} if label is not None and "label" in names else {})
        for label in labels
    ]


def _check_prefix(condition: Condition, shards: CodeShards) -> None:
    """Refuse codes before which the codes of another condition stand, or none though the prior reads some."""
    kept = shards.meta.prefix
    if not condition.is_stored or (kept is None and condition.optional):
        return
    conditions = " and a ".join(condition_keys(condition))
    again = f"encode the images with a {conditions}: smalti encode --condition"
    if kept is None:
        raise SmaltiError(
            f"the codes in {shards.path} have no condition codes, and this prior is conditioned on a "
            f"{conditions}; {again}"
        )
    with TemporaryDirectory() as folder:
        same = condition.save(Path(folder)) == kept.condition
    if same:
        shard_networks = build_condition(kept.condition, shards.path).networks
        same = [weights_fingerprint(each.state_dict()) for each in shard_networks] == [
            weights_fingerprint(each.state_dict()) for each in condition.networks
        ]
    if not same:
        raise SmaltiError(f"the codes in {shards.path} have those of another condition; {again}")


def _bits_per_pixel(pipeline: Pipeline, nats_per_code: Tensor) -> Tensor:
    """Nats per code, of any shape -> bits of the code grid for each pixel of the image, of the same shape."""
    (h, w), (H, W) = pipeline.prior.grid, pipeline.default_size
    return nats_per_code / math.log(2) * (h * w / (H * W))


def _likelihood(pipeline: Pipeline, nats: Tensor, use: CodeUse) -> dict[str, float]:
    """Mean nats at each position (h,w) -> the scores of the likelihood."""
    mean, entropy = float(nats.mean()), use.entropy
    return {
        "nats_per_code": mean,
        "bits_per_pixel": float(_bits_per_pixel(pipeline, nats.mean())),
        "entropy_nats_per_code": entropy,
        "below_entropy": 1 - mean / entropy if entropy else math.nan,
        "codes_in_use": use.in_use,
    }


def _accumulator(
    networks: PretrainedNetworks, protocol: PriorProtocol, total: int, *, score: bool, device: torch.device
) -> StatisticsAccumulator | None:
    if networks.network is None or protocol.features is None:
        return None
    return StatisticsAccumulator(networks.network, protocol.features, total=total, score=score, device=device)


def _sampled(
    pipeline: Pipeline,
    data: _EncodedData,
    reference: StatisticsAccumulator | None,
    networks: PretrainedNetworks,
    protocol: PriorProtocol,
    counter: Counter,
    *,
    batch: int,
) -> tuple[Scores, tuple[ExampleImage, ...]]:
    """Generate images with the labels of the data -> their scores against it, and the first of them."""
    count = protocol.samples
    shown: list[ExampleImage] = []
    accumulator = _accumulator(networks, protocol, count, score=True, device=pipeline.device)
    if accumulator is None or reference is None or protocol.features is None:
        return Scores({}, {}, {}, []), ()
    labels = [data.label(index * len(data) // count) for index in range(count)]
    conditions = _condition_values(pipeline.condition, labels)
    for first in range(0, count, batch):
        values = conditions[first : first + batch]
        known, seeds = (
            unknown_codes(len(values), pipeline.prior.grid),
            pipeline.seeds(protocol.seed + first, len(values)),
        )
        request = pipeline.request_for(values, known, seeds=seeds, sampler=protocol.sampler)
        codes = final_codes(generate(pipeline.prior, request))
        pixels = to_array(pipeline.decode(codes), rounding=protocol.rounding)
        indices = torch.arange(first, first + len(values))
        accumulator.update(torch.from_numpy(pixels).permute(0, 3, 1, 2).to(pipeline.device), indices)
        for index, each in zip(indices.tolist(), pixels, strict=True):
            if len(shown) < SHOWN_SAMPLES:
                name = f"seed {protocol.seed + index}" + (f", {labels[index]}" if conditions[index] is not None else "")
                shown.append(ExampleImage("sample", name, {}, each, each))
        counter.add(len(values))
    generated, real = accumulator.statistics(), reference.statistics()
    scored = score_sets(
        generated, real, protocol=protocol.features, network=accumulator.network, score=accumulator.score
    )
    return scored, tuple(shown)


def _examples(
    pipeline: Pipeline, data: _EncodedData, values: ImageValues, protocol: PriorProtocol
) -> tuple[ExampleImage, ...]:
    """The least, the median and the most likely images, and their codes decoded."""
    shown = []
    for rank, index in ranked(values.columns["nats_per_code"], count=protocol.examples, lower_is_better=True):
        back = to_array(pipeline.decode(data.codes(index))[0], rounding=protocol.rounding)
        original = back if data.prepared is None else to_array(to_tensor(data.prepared.read(index)))
        shown.append(ExampleImage(rank, data.name(index), values.at(index), original, back))
    return tuple(shown)
