"""Measuring: what a slow reading of the definition gives, for any batch size; and what happens to odd data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from smalti.conditions.labels import Labels, Unconditional
from smalti.conditions.precomputed import PrecomputedCodes, PrecomputedCodesSettings
from smalti.core.errors import SmaltiError
from smalti.core.settings import parse
from smalti.data.code_shards import open_codes
from smalti.data.crops import CenterCrop
from smalti.data.loader import Crops
from smalti.data.sources import open_source, split
from smalti.encoding.code_writer import ImageSets, WritingSettings, write_codes
from smalti.encoding.condition_encoding import tokenizer_encoder
from smalti.evaluation.measures import measure_prior, measure_tokenizer
from smalti.evaluation.metrics import psnr
from smalti.evaluation.protocols import PRIOR_PROTOCOLS, TOKENIZER_PROTOCOLS, select_protocol
from smalti.images.io import read_image, to_array, to_tensor
from smalti.images.resizing import center_crop, resize_to_cover
from smalti.pipeline import Pipeline
from smalti.prior import Transformer, TransformerSettings, nll
from smalti.tokenizer.vqgan import VQGAN
from tests.feature_networks import forbid_downloads, use_means, write_noise
from tests.small import write_images
from tests.small_pipeline import tokenizer as small_tokenizer

CPU = torch.device("cpu")
LABELS = ("dark", "light")


def tokenizer(*, channels: int = 3) -> VQGAN:
    return small_tokenizer(channels=channels).eval()


def pipeline(condition: Any, *, grid: tuple[int, int] = (4, 4)) -> Pipeline:
    plain = {
        "codebook_size": 16,
        "condition_size": condition.size,
        "grid": grid,
        "layers": 1,
        "embed_dim": 16,
        "heads": 2,
    }
    torch.manual_seed(1)
    prior = Transformer(parse(TransformerSettings, plain, where="test"))
    for weight in prior.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.3)
    return Pipeline(tokenizer(), prior, condition)


def tokens(*overrides: str) -> Any:
    return select_protocol(TOKENIZER_PROTOCOLS, "tokenizer", overrides=["lpips=[]", "features=null", *overrides])


def priors(*overrides: str) -> Any:
    return select_protocol(PRIOR_PROTOCOLS, "prior", overrides=overrides)


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten light and ten dark ones, 20x20, in a folder each."""
    return write_images(tmp_path_factory.mktemp("measure") / "images")


def images_of(folder: Path, size: int) -> Tensor:
    """All images of a folder at a size, (N,3,H,W), the plain way."""
    source = open_source(folder)
    arrays = [read_image(folder / each.key, channels=3, name=each.key) for each in source.images]
    return torch.stack([to_tensor(center_crop(resize_to_cover(each, (size, size)), (size, size))) for each in arrays])


# --- a tokenizer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_tokenizer_is_measured_as_its_definition_says(data_folder: Path, batch: int) -> None:
    reported: list[tuple[int, int]] = []
    found = measure_tokenizer(
        tokenizer(),
        open_source(data_folder),
        protocol=tokens("images.size=[16,16]"),
        device=CPU,
        batch=batch,
        progress=lambda done, total: reported.append((done, total)),
    )
    images = images_of(data_folder, 16)
    with torch.no_grad():
        back, quantized = tokenizer()(images)
    values = psnr(images, back)
    assert torch.allclose(found.values["psnr"], values, atol=1e-3)
    assert found.scores["psnr"] == pytest.approx(float(values.mean()), rel=1e-6)
    counts = torch.bincount(quantized.codes.flatten(), minlength=16)
    assert found.counts is not None
    assert torch.equal(found.counts, counts)
    assert found.scores["codes_in_use"] == float((counts > 0).double().mean())
    shares = counts[counts > 0] / counts.sum()
    assert found.scores["perplexity"] == pytest.approx(math.exp(-float((shares * shares.log()).sum())), rel=1e-5)
    assert "ms_ssim" not in found.scores
    assert any(note.startswith("ms_ssim is left out: it needs 161 pixels") for note in found.notes)
    assert reported[-1] == (20, 20)
    assert found.names == tuple(each.key for each in open_source(data_folder).images)


def test_the_worst_the_median_and_the_best_are_displayed(data_folder: Path) -> None:
    protocol = tokens("images.size=[16,16]", "examples=3")
    found = measure_tokenizer(tokenizer(), open_source(data_folder), protocol=protocol, device=CPU)
    order = [found.names[place] for place in found.values["psnr"].argsort(stable=True).tolist()]
    shown = [(each.rank, each.name) for each in found.examples]
    expected = (
        [("worst", n) for n in order[:3]] + [("median", n) for n in order[8:11]] + [("best", n) for n in order[-3:]]
    )
    assert shown == expected
    for each in found.examples:
        original, back = (to_tensor(some)[None] for some in (each.original, each.reconstruction))
        assert float(psnr(original, back)) == pytest.approx(each.values["psnr"], abs=1e-3)


def test_rounding_is_part_of_the_protocol(data_folder: Path) -> None:
    scores = []
    for rounding in ("nearest", "down"):
        protocol = tokens("images.size=[16,16]", f"rounding={rounding}")
        scores.append(measure_tokenizer(tokenizer(), open_source(data_folder), protocol=protocol, device=CPU).scores)
    images = images_of(data_folder, 16)
    with torch.no_grad():
        down = to_tensor(to_array(tokenizer()(images)[0], rounding="down"))
    assert scores[1]["psnr"] == pytest.approx(float(psnr(images, down).mean()), rel=1e-6)
    assert scores[0]["psnr"] != scores[1]["psnr"]


def test_reconstructions_are_a_set_as_well(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_means(monkeypatch)
    for network, name in (("inception", "rfid"), ("squeezenet", "reconstruction_frechet_squeezenet")):
        protocol = tokens("images.size=[16,16]", f"features.network={network}", "features.scores=[frechet]")
        found = measure_tokenizer(tokenizer(), open_source(data_folder), protocol=protocol, device=CPU)
        assert found.scores[name] > 0
        assert found.definitions[name].endswith("in the features of the mean colors of four quarters")
        assert len(found.networks) == 1
    images = images_of(data_folder, 16)
    with torch.no_grad():
        back = to_tensor(to_array(tokenizer()(images)[0]))
    pooled = [torch.nn.functional.adaptive_avg_pool2d((x + 1) / 2, 2).flatten(1).double() for x in (back, images)]
    apart = (pooled[0].mean(0) - pooled[1].mean(0)).square().sum()
    a, b = (x.T.cov() for x in pooled)
    root = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    assert found.scores[name] == pytest.approx(float(apart + a.trace() + b.trace() - 2 * root), rel=1e-3)


def test_weights_that_are_missing_are_left_out_or_refused(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_downloads(monkeypatch, tmp_path)
    protocol = select_protocol(TOKENIZER_PROTOCOLS, "tokenizer", overrides=["images.size=[16,16]"])
    found = measure_tokenizer(tokenizer(), open_source(data_folder), protocol=protocol, device=CPU)
    assert set(found.scores) == {"psnr", "ssim", "codes_in_use", "perplexity"}
    for words in ("lpips_squeezenet is left out: squeezenet1_1", "the scores in squeezenet's features are left out"):
        assert any(words in note for note in found.notes), found.notes
    strict = select_protocol(TOKENIZER_PROTOCOLS, "tokenizer", overrides=["missing=refuse"])
    with pytest.raises(SmaltiError, match=r"is needed .* and was not found"):
        measure_tokenizer(tokenizer(), open_source(data_folder), protocol=strict, device=CPU)


def test_only_the_held_out_images(data_folder: Path) -> None:
    source = open_source(data_folder)
    protocol = tokens("images.size=[16,16]", "images.held_out=0.3")
    found = measure_tokenizer(tokenizer(), source, protocol=protocol, device=CPU)
    assert found.names == tuple(each.key for each in split(source.images, validation=0.3)[1])
    assert found.data["images"] == len(found.names) < 20


def test_images_keep_their_sizes_where_none_is_requested(tmp_path: Path) -> None:
    write_noise(tmp_path, count=3, size=(19, 24))
    write_noise(tmp_path / "others", count=2, size=(12, 12))
    Image.fromarray(np.zeros((3, 40, 3), np.uint8)).save(tmp_path / "thin.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = measure_tokenizer(tokenizer(), open_source(tmp_path), protocol=tokens(), device=CPU, batch=2)
    assert found.data["sizes"] == [[12, 12], [16, 24]], "cut to whole tiles of 4"
    assert found.data["images"] == 5
    assert found.data["left_out"]["thin.png"].startswith("is 3x40 pixels, smaller than the downsampling factor 4")
    assert any(note.startswith("2 of 7 images were skipped as damaged: broken.png is not a") for note in found.notes)
    assert any("2 different sizes, from 12x12 to 16x24" in note for note in found.notes)
    assert int(found.values["psnr"].isnan().sum()) == 2
    assert math.isfinite(found.scores["psnr"])


def test_gray_tokenizers_and_files_with_16_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "wide.png")
    protocol = tokens("images.size=[8,8]", "images.filter=bicubic")
    found = measure_tokenizer(tokenizer(channels=1), open_source(tmp_path), protocol=protocol, device=CPU)
    assert math.isfinite(found.scores["ssim" if "ssim" in found.scores else "psnr"])
    assert found.examples[0].original.shape == (8, 8, 1)
    assert found.examples[0].original.dtype == np.uint8
    levels = found.examples[0].original[:, :, 0].astype(int)
    assert levels[0, 0] < 20
    assert levels[-1, -1] > 235


@pytest.mark.parametrize(
    ("channels", "overrides", "sentence"),
    [
        (3, ["images.size=[18,18]"], "18 x 18 .* cannot be cut into tiles of 4"),
        (3, ["images.count=21"], "the protocol takes 21 images and .* has 20"),
        (2, [], "takes 2 channels"),
    ],
)
def test_what_a_tokenizer_cannot_be_measured_on(
    data_folder: Path, channels: int, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        measure_tokenizer(
            tokenizer(channels=channels), open_source(data_folder), protocol=tokens(*overrides), device=CPU
        )


# --- a prior -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [3, 64])
def test_likelihood_is_that_of_the_prior(data_folder: Path, batch: int) -> None:
    pipe = pipeline(Labels(LABELS))
    found = measure_prior(pipe, open_source(data_folder), protocol=priors(), device=CPU, batch=batch)
    with torch.no_grad():
        codes = pipe.tokenizer.encode(images_of(data_folder, 16)).codes
        prefix = torch.tensor([[0]] * 10 + [[1]] * 10)  # the folders come in the order of their names: dark, light
        expected = nll(pipe.prior, prefix, codes)
    assert torch.allclose(found.values["nats_per_code"], expected.mean((1, 2)), atol=1e-5)
    assert found.nats_per_position is not None
    assert torch.allclose(found.nats_per_position, expected.mean(0), atol=1e-5)
    mean = float(expected.mean())
    assert found.scores["nats_per_code"] == pytest.approx(mean, rel=1e-5)
    assert found.scores["bits_per_pixel"] == pytest.approx(mean / math.log(2) * 16 / 256, rel=1e-5)
    entropy = found.scores["entropy_nats_per_code"]
    assert found.scores["below_entropy"] == pytest.approx(1 - mean / entropy, rel=1e-5)
    assert [each.rank for each in found.examples] == ["worst"] * 4 + ["median"] * 4 + ["best"] * 4
    assert found.examples[0].name == found.names[int(found.values["nats_per_code"].argmax())]


def test_a_prior_that_is_unconditional(data_folder: Path) -> None:
    pipe = pipeline(Unconditional())
    found = measure_prior(pipe, open_source(data_folder), protocol=priors("images.count=4"), device=CPU)
    with torch.no_grad():
        codes = pipe.tokenizer.encode(images_of(data_folder, 16)[[0, 5, 10, 15]]).codes
        expected = nll(pipe.prior, pipe.prior.null_prefix(4), codes)
    assert torch.allclose(found.values["nats_per_code"], expected.mean((1, 2)), atol=1e-5)


@pytest.fixture(scope="module")
def codes(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as codes; the second half is held out."""
    source, model, out = open_source(data_folder), tokenizer(), tmp_path_factory.mktemp("codes") / "codes"
    parts = [
        Crops(source, some, size=(16, 16), channels=3, crop=CenterCrop(), seed=0)
        for some in (source.images[:10], source.images[10:])
    ]
    write_codes(
        out,
        ImageSets(training=parts[0], validation=parts[1], labels=LABELS),
        encoder=tokenizer_encoder(model, lambda images: images),
        settings=WritingSettings(batch=8),
        progress=lambda done, total: None,
    )
    return out


def test_codes_give_what_their_images_give(data_folder: Path, codes: Path) -> None:
    pipe = pipeline(Labels(LABELS))
    whole = measure_prior(pipe, open_source(data_folder), protocol=priors(), device=CPU).values["nats_per_code"]
    held_out = measure_prior(pipe, open_codes(codes), protocol=priors(), device=CPU)
    assert torch.allclose(held_out.values["nats_per_code"], whole[10:], atol=1e-5)
    assert held_out.data["images"] == 10
    two = measure_prior(pipe, open_codes(codes), protocol=priors("images.count=2"), device=CPU)
    assert torch.allclose(two.values["nats_per_code"], whole[[10, 15]], atol=1e-5)


def test_samples_are_compared_with_the_data(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_means(monkeypatch)
    pipe = pipeline(Labels(LABELS))
    requested = [
        "samples=10",
        "seed=3",
        "sampler.top_k=4",
        "features.scores=[frechet,precision]",
        "features.network=squeezenet",
    ]
    found = [
        measure_prior(pipe, open_source(data_folder), protocol=priors(*requested), device=CPU, batch=batch)
        for batch in (4, 10)
    ]
    assert found[0].scores["frechet_squeezenet"] == pytest.approx(found[1].scores["frechet_squeezenet"], rel=1e-4)
    shown = [each for each in found[0].examples if each.rank == "sample"]
    assert [each.name for each in shown] == [f"seed {3 + i}, {'dark' if i < 5 else 'light'}" for i in range(10)]
    expected = to_array(pipe.sample(1, label="light", seed=12, top_k=4))[0]
    assert np.array_equal(shown[-1].original, expected)
    assert found[0].protocol["sampler"]["top_k"] == 4
    assert any(note.startswith("the sets have 10 and 20 images") for note in found[0].notes)


def test_what_a_prior_cannot_be_measured_on(data_folder: Path, codes: Path) -> None:
    source, shards = open_source(data_folder), open_codes(codes)
    given = PrecomputedCodes(PrecomputedCodesSettings(codebook_size=3, length=2))
    for pipe, data, protocol, sentence in (
        (pipeline(Labels(("dark", "dim"))), source, priors(), "there is no label 'light'"),
        (
            pipeline(Labels(LABELS)),
            source,
            priors("images.size=[32,32]"),
            "the prior's window, 16x16 pixels, not 32x32",
        ),
        (pipeline(Labels(LABELS), grid=(2, 4)), shards, priors(), "grids of 4x4, the prior's window is 2x4"),
        (pipeline(Labels(LABELS)), shards, priors("images.count=11"), "takes 11 held-out images and .* has 10"),
        (
            pipeline(Labels(LABELS)),
            shards,
            priors("samples=4", "features.kept=9"),
            "not codes; give the images",
        ),
        (pipeline(Labels(LABELS)), source, priors("samples=4"), "set features.network, or samples=0"),
        (pipeline(given), source, priors(), "this prior is conditioned on a codes"),
    ):
        with pytest.raises(SmaltiError, match=sentence):
            measure_prior(pipe, data, protocol=protocol, device=CPU)
    other = pipeline(Labels(LABELS))
    with torch.no_grad():
        other.tokenizer.decoder.last_layer.zero_()
    with pytest.raises(SmaltiError, match="were made by the tokenizer"):
        measure_prior(other, shards, protocol=priors(), device=CPU)
