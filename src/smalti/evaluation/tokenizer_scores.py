"""Reconstruction quality and codebook usage of a tokenizer.

B batch, C channels, H W pixels, h w code grid, K size of the codebook, N images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.core.progress_callback import Progress, no_progress
from smalti.core.settings import as_mapping
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
from smalti.evaluation.metrics import CodeUse, psnr
from smalti.evaluation.periodic_artifacts import PowerSpectrum, hatch, is_measurable
from smalti.evaluation.prepared_images import PreparedImages
from smalti.evaluation.protocols import TokenizerProtocol
from smalti.evaluation.results import DEFINITIONS, ExampleImage, Measured
from smalti.evaluation.set_scores import Scores, score_sets
from smalti.evaluation.similarity import MIN_SIDE, WINDOW, ms_ssim, ssim
from smalti.images.io import to_array, to_tensor
from smalti.losses.perceptual import Perceptual
from smalti.tokenizer.vqgan import VQGAN

SIMILARITIES = {"psnr": (psnr, 1), "ssim": (ssim, WINDOW), "ms_ssim": (ms_ssim, MIN_SIDE)}
"""Names in a protocol -> the measure, and the least height and width it is defined for."""


class _Reconstructions(NamedTuple):
    """A batch of images, their reconstructions and their codes."""

    images: Tensor
    """(B,C,H,W) in [-1,1], on 8-bit levels"""
    reconstructions: Tensor
    """(B,C,H,W)"""
    codes: Tensor
    """(B,h,w)"""


@torch.no_grad()
def _reconstruct(tokenizer: VQGAN, pixels: npt.NDArray[Any], protocol: TokenizerProtocol) -> _Reconstructions:
    """Images (B,H,W,C) uint8 or uint16 -> originals, reconstructions and codes; both images are on 8-bit levels."""
    device = next(tokenizer.parameters()).device
    originals = to_tensor(pixels)
    reconstructions, quantized = tokenizer(originals.to(device))
    images = originals if pixels.dtype == np.uint8 else to_tensor(to_array(originals))
    rounded = to_tensor(to_array(reconstructions, rounding=protocol.rounding))
    return _Reconstructions(images.to(device), rounded.to(device), quantized.codes)


def measure_tokenizer(
    tokenizer: VQGAN,
    source: Source,
    *,
    protocol: TokenizerProtocol,
    device: torch.device,
    progress: Progress = no_progress,
    batch: int = 16,
) -> Measured:
    """A tokenizer, which is moved to `device`, and images -> its reconstruction scores and codebook usage.

    Raises `SmaltiError` for sizes that are not multiple of f, tokenizers of other than 1 or 3 channels, and unavailable
    weights where the protocol does not leave them out.
    """
    channels = tokenizer.settings.autoencoder.channels
    if channels not in (1, 3):
        raise SmaltiError(f"this tokenizer takes {channels} channels; evaluation supports 1 or 3")
    prepared = PreparedImages(source, protocol.images, channels=channels, tile=tokenizer.factor)
    networks = load_networks(protocol.lpips, protocol.features, missing=protocol.missing, device=device)
    tokenizer = tokenizer.to(device).eval()
    measured = _measure_images(tokenizer, prepared, networks, protocol, progress=progress, batch=batch)
    scored = _score_sets(measured.sets, protocol)
    scores = {
        **measured.values.means(),
        **_hatch(*measured.spectra, period=_hatch_period(tokenizer)),
        "codes_in_use": measured.use.in_use,
        "perplexity": measured.use.perplexity,
        **scored.values,
    }
    return Measured(
        kind="tokenizer",
        scores=scores,
        deviations=scored.deviations,
        definitions={**{name: DEFINITIONS[name] for name in scores if name in DEFINITIONS}, **scored.definitions},
        protocol=as_mapping(protocol),
        networks=fingerprints(networks),
        data=prepared.described(),
        model={"tokenizer": tokenizer.fingerprint(), "codes": tokenizer.size, "factor": tokenizer.factor},
        notes=(
            *networks.notes,
            *prepared.notes(),
            *_undefined_notes(measured.values, prepared, protocol, networks),
            *sparse_codebook_note(measured.use),
            *scored.notes,
        ),
        names=tuple(image.key for image in prepared.images),
        values=measured.values.columns,
        counts=measured.use.counts,
        examples=_examples(tokenizer, prepared, measured.values, protocol),
    )


class _Measurements(NamedTuple):
    """What is measured on all images."""

    use: CodeUse
    values: ImageValues
    """The scores of single images."""
    spectra: tuple[PowerSpectrum, PowerSpectrum]
    """Of the reconstructions and of the originals, of the batches that are large enough."""
    sets: list[StatisticsAccumulator]
    """Features of the reconstructions and of the originals; empty without a feature network."""


def _measure_images(
    tokenizer: VQGAN,
    prepared: PreparedImages,
    networks: PretrainedNetworks,
    protocol: TokenizerProtocol,
    *,
    progress: Progress,
    batch: int,
) -> _Measurements:
    """Reconstruct all images in batches, and measure each batch."""
    device, total = next(tokenizer.parameters()).device, len(prepared)
    sets: list[StatisticsAccumulator] = []
    if networks.network is not None and protocol.features is not None:
        sets = [
            StatisticsAccumulator(networks.network, protocol.features, total=total, score=score, device=device)
            for score in (True, False)
        ]
    measured = _Measurements(CodeUse(tokenizer.size), ImageValues(total), (PowerSpectrum(), PowerSpectrum()), sets)
    counter, period = Counter(progress, total), _hatch_period(tokenizer)
    for indices, pixels in prepared.batches(batch):
        images, reconstructions, codes = _reconstruct(tokenizer, pixels, protocol)
        measured.use.add(codes)
        if is_measurable((images.shape[2], images.shape[3]), period=period):
            for spectrum, set_images in zip(measured.spectra, (reconstructions, images), strict=True):
                spectrum.update(set_images)
        for name, values in _similarities(images, reconstructions, protocol, networks.lpips).items():
            measured.values.put(name, indices, values)
        for accumulator, set_images in zip(sets, (reconstructions, images)[: len(sets)], strict=True):
            accumulator.update(set_images, indices)
        counter.add(len(indices))
    counter.add(len(prepared.left_out))
    return measured


def _similarities(
    images: Tensor, reconstructions: Tensor, protocol: TokenizerProtocol, lpips: dict[str, Perceptual]
) -> dict[str, Tensor]:
    """A batch and its reconstructions -> the values (B,) of each measure that is defined for their size."""
    least = min(images.shape[2:])
    found: dict[str, Tensor] = {}
    for name in protocol.similarity:
        measure, smallest = SIMILARITIES[name]
        if least >= smallest:
            found[name] = measure(reconstructions, images)
    for backbone, network in lpips.items():
        if least >= network.backbone.smallest:
            with torch.no_grad():
                found[f"lpips_{backbone}"] = network(images, reconstructions)
    return found


def _hatch_period(tokenizer: VQGAN) -> int:
    """The patch size if the decoder unfolds patches, else f: the period of its upsampling."""
    autoencoder = tokenizer.settings.autoencoder
    return autoencoder.patch_size if autoencoder.patch_size > 1 else autoencoder.factor


def _hatch(reconstructions: PowerSpectrum, images: PowerSpectrum, *, period: int) -> dict[str, float]:
    """Spectra of reconstructions and originals -> the score, where any were large enough for one."""
    if not images.count:
        return {}
    return {"hatch": hatch(reconstructions.mean(), period=period) / hatch(images.mean(), period=period)}


def _undefined_notes(
    values: ImageValues, prepared: PreparedImages, protocol: TokenizerProtocol, networks: PretrainedNetworks
) -> list[str]:
    """Notes on measures that are not defined for some or all of the images."""
    requested = [*protocol.similarity, *(f"lpips_{name}" for name in networks.lpips)]
    found = []
    for name in requested:
        count = 0 if name not in values.columns else int((~values.columns[name].isnan()).sum())
        smallest = (
            SIMILARITIES[name][1] if name in SIMILARITIES else networks.lpips[name.partition("_")[2]].backbone.smallest
        )
        if count < prepared.measured and min(min(size) for size in prepared.sizes) < smallest:
            which = f"measured on {count} of {prepared.measured} images" if count else "left out"
            found.append(f"{name} is {which}: it needs {smallest} pixels each way")
    return found


def _score_sets(sets: list[StatisticsAccumulator], protocol: TokenizerProtocol) -> Scores:
    """Scores of the set of reconstructions against the set of originals, with names of their own: `rfid` for FID."""
    if not sets or protocol.features is None:
        return Scores({}, {}, {}, [])
    reconstructed, reference = sets
    if int(reconstructed.pool.count) < 2:
        return Scores({}, {}, {}, ["the scores of sets are left out: a single image is not a set"])
    return score_sets(
        reconstructed.statistics(),
        reference.statistics(),
        protocol=protocol.features,
        network=reconstructed.network,
        score=reconstructed.score,
        named=lambda name: "rfid" if name == "fid" else f"reconstruction_{name}",
    )


def _examples(
    tokenizer: VQGAN, prepared: PreparedImages, values: ImageValues, protocol: TokenizerProtocol
) -> tuple[ExampleImage, ...]:
    """The worst, the median and the best, by LPIPS where it was measured, else by the first measure; reconstructed
    again."""
    ranking_metric = next(
        (name for name in values.columns if name.startswith("lpips")), next(iter(values.columns), None)
    )
    if ranking_metric is None:
        return ()
    column, lower = values.columns[ranking_metric], ranking_metric.startswith("lpips")
    shown = []
    for rank, index in ranked(column, count=protocol.examples, lower_is_better=lower):
        images, reconstructions, _ = _reconstruct(tokenizer, prepared.read(index)[None], protocol)
        name = prepared.images[index].key
        shown.append(ExampleImage(rank, name, values.at(index), to_array(images[0]), to_array(reconstructions[0])))
    return tuple(shown)
