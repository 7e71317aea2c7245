"""The studio without its user interface: requests, generation, reconstruction and error messages."""

from __future__ import annotations

import math
import re
import sys
import threading
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from smalti.conditions.base import Condition
from smalti.conditions.composite import CompositeCondition
from smalti.conditions.labels import Labels, Unconditional
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import LayoutSettings
from smalti.conditions.precomputed import PrecomputedCodes, PrecomputedCodesSettings
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.core.errors import SmaltiError
from smalti.core.files import write_json
from smalti.core.settings import parse
from smalti.evaluation.metrics import psnr
from smalti.pipeline import Pipeline
from smalti.prior import Transformer, TransformerSettings
from smalti.tokenizer.vqgan import VQGAN, VQGANSettings
from smalti.web import rendering
from smalti.web.code_images import as_text, from_text
from smalti.web.requests import (
    ConditionInput,
    Limits,
    SamplingRequest,
    condition_inputs,
    from_link,
    link,
    parse_request,
    smallest,
)
from smalti.web.server import serve
from smalti.web.studio import Studio
from tests.images.test_images import png_of_size

CLASSES = ("dawn", "dusk", "night")
PLACES = ("sky", "ground", "water")
LIMITS = Limits(side=64, codes=300, count=4, upload=1, gallery=3, sessions=2)
NEVER = threading.Event()


def tokenizer(channels: int = 3) -> VQGAN:
    """A small random tokenizer, f = 4, 16 codes."""
    plain = {
        "autoencoder": {
            "channels": channels,
            "base_channels": 8,
            "channel_multipliers": [1],
            "patch_size": 4,
            "res_blocks": 1,
            "latent_channels": 4,
        },
        "quantizer": {"codebook_size": 16, "codebook_dim": 4},
    }
    torch.manual_seed(0)
    return VQGAN(parse(VQGANSettings, plain, where="test"))


def pipeline(condition: Condition) -> Pipeline:
    """A small random pipeline with a window of 3 x 4 codes, whose codes show all that its prior reads."""
    plain = {
        "codebook_size": 16,
        "condition_size": condition.size,
        "prefix_length": condition.length,
        "grid": (3, 4),
        "layers": 1,
        "embed_dim": 16,
        "heads": 2,
    }
    torch.manual_seed(1)
    prior = Transformer(parse(TransformerSettings, plain, where="test"))
    with torch.no_grad():
        for weight in prior.parameters():
            weight.normal_(0, 0.4) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    return Pipeline(tokenizer(), prior, condition)


def both() -> CompositeCondition:
    """A class and a segmentation."""
    maps = SpatialConditionSettings(kind="segmentation", key="segmentation", grid=(3, 4))
    return CompositeCondition([Labels(CLASSES), SpatialCondition(maps, tokenizer(len(PLACES)))])


def studio(condition: Condition | None = None, limits: Limits = LIMITS) -> Studio:
    return Studio(pipeline(condition or Labels(CLASSES)), limits, name="tiny")


def written(path: Path, height: int = 20, width: int = 30) -> Path:
    """An image file."""
    pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def painted(labels: Tensor) -> str:
    """Labels (H,W) -> what the canvas of the page sends."""
    numbers = labels.numpy().astype(np.uint8)
    return as_text(np.dstack([numbers, numbers * 0, numbers * 0]), side=10**6)


# --- requests ------------------------------------------------------------------------------------------------------


def test_parts_say_how_they_are_given() -> None:
    assert condition_inputs(Unconditional()) == ()
    assert condition_inputs(Labels(CLASSES)) == (ConditionInput("label", "choice", CLASSES),)
    label, segmentation = condition_inputs(both(), names=PLACES)
    assert (label.kind, segmentation.kind, segmentation.names) == ("choice", "paint", PLACES)
    assert len(set(segmentation.colors)) == 3
    assert all(re.fullmatch("#[0-9a-f]{6}", color) for color in segmentation.colors)
    assert condition_inputs(both())[1].names == ("label 0", "label 1", "label 2")
    assert condition_inputs(PrecomputedCodes(PrecomputedCodesSettings(codebook_size=4, length=2)))[0].kind == "text"
    assert condition_inputs(Layout(LayoutSettings(classes=("tree",), codebook_size=101)))[0].kind == "json"
    depth = SpatialCondition(SpatialConditionSettings(kind="depth", key="depth", grid=(3, 4)), tokenizer(1))
    assert condition_inputs(depth)[0].kind == "image"
    named = SpatialConditionSettings(kind="segmentation", key="segmentation", grid=(3, 4), names=PLACES)
    assert condition_inputs(SpatialCondition(named, tokenizer(3)))[0].names == PLACES
    with pytest.raises(SmaltiError, match="the model has 3 segmentation labels, not 2"):
        condition_inputs(both(), names=PLACES[:2])


def test_a_map_fills_the_window_and_a_label_does_not_need_one() -> None:
    assert smallest(pipeline(both())) == (12, 16)
    assert smallest(pipeline(Labels(CLASSES))) == (4, 4)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"width": -8}, "width = -8: input should be greater than or equal to 1"),
        ({"height": 10}, r"10 x 16 .* is not made of tiles of 4 pixels; try 8x16"),
        ({"width": 4000}, "the limit of a side is 64 pixels"),
        (
            {"width": 64, "height": 64, "count": 2},
            "2 of 64 x 64 pixels are 512 codes, and the limit is 300 per request",
        ),
        ({"count": 5}, "5 images requested, and the limit is 4 per request"),
        ({"count": 0}, "count = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**60}, "seed = "),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 2}, "top_p = 2"),
        ({"guidence": 2}, "unknown key 'guidence'; did you mean 'guidance'"),
    ],
)
def test_invalid_requests_are_refused(values: dict[str, float], sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence):
        parse_request(pipeline(Labels(CLASSES)), values, LIMITS)


PIPE = pipeline(Labels(CLASSES))
REQUESTS = st.builds(
    SamplingRequest,
    height=st.integers(1, 4).map(lambda rows: 4 * rows),
    width=st.integers(1, 4).map(lambda columns: 4 * columns),
    count=st.integers(1, 4),
    seed=st.integers(0, 2**53),
    temperature=st.floats(0, 10),
    top_k=st.integers(0, 100),
    top_p=st.floats(0, 1),
    guidance=st.floats(0, 10),
)


@given(REQUESTS, st.sampled_from(["", *CLASSES]))
def test_a_link_restores_what_was_requested(request: SamplingRequest, label: str) -> None:
    chosen = {"label": label} if label else {}
    query = link(request, chosen)
    assert query.startswith("?")
    found = from_link(PIPE, {**dict(parse_qsl(query[1:])), "__theme": "dark"}, condition_inputs(PIPE.condition), LIMITS)
    assert found == (request, chosen)


def test_a_wrong_link_is_reported() -> None:
    parts = condition_inputs(PIPE.condition)
    with pytest.raises(SmaltiError, match="there is no label 'dusc'; did you mean 'dusk'"):
        from_link(PIPE, {"label": "dusc"}, parts, LIMITS)
    with pytest.raises(SmaltiError, match="width = 'wide'"):
        from_link(PIPE, {"width": "wide"}, parts, LIMITS)


# --- generation ---------------------------------------------------------------------------------------------------


def test_the_last_state_is_the_pipelines_sample() -> None:
    work = studio(both())
    labels = torch.randint(0, 3, (12, 24))
    request = parse_request(work.pipeline, {"width": 24, "count": 2, "seed": 5, "guidance": 2.0}, LIMITS)
    value = work.condition_value({"label": "dusk", "segmentation": painted(labels)}, request.size)
    *before, last = work.generate(request, value, NEVER)
    expected = work.pipeline.sample(2, size=(12, 24), seed=5, guidance=2.0, label="dusk", segmentation=labels)
    assert torch.equal(last.images, expected)
    assert last.state.is_complete
    for now in before:
        assert 0 < now.state.share < 1
        assert now.state.share == pytest.approx(float((now.state.codes >= 0).float().mean()))
    other = [*work.generate(request, work.condition_value({"label": "dusk"}, request.size), NEVER)][-1]
    assert not torch.equal(other.state.codes, last.state.codes)


def test_empty_inputs_are_unconditional() -> None:
    work = studio(both())
    assert work.condition_value({"label": "", "segmentation": None}, (12, 16)) is None
    assert work.condition_value({}, (12, 16)) is None


def test_a_painted_map_is_scaled_to_the_image(tmp_path: Path) -> None:
    work, labels = studio(both()), torch.randint(0, 3, (12, 16))
    value = work.condition_value({"segmentation": painted(labels)}, (24, 32))
    assert torch.equal(value["segmentation"], labels.repeat_interleave(2, 0).repeat_interleave(2, 1))
    file = tmp_path / "map.png"
    Image.fromarray(labels.numpy().astype(np.uint8)).save(file)
    assert torch.equal(work.condition_value({"segmentation": file}, (12, 16))["segmentation"], labels)
    assert torch.equal(from_text(work.canvas("segmentation", file, (12, 16)), max_length=10**6, name="map"), labels)


def test_a_place_without_a_label_is_painted_and_loaded(tmp_path: Path) -> None:
    maps = SpatialConditionSettings(
        kind="segmentation", key="segmentation", grid=(3, 4), unlabeled=255, names=PLACES[:2]
    )
    work = studio(SpatialCondition(maps, tokenizer(3)))
    assert work.parts[0].names == ("sky", "ground", "no label")
    labels = torch.tensor([[0, 1, 2, 2]]).repeat_interleave(4, 1).repeat(12, 1)
    wanted = labels.masked_fill(labels == 2, 255)
    assert isinstance(work.pipeline.condition, SpatialCondition)
    values = [work.condition_value({"segmentation": painted(labels)}, (12, 16)), wanted]
    by_paint, by_numbers = work.pipeline.condition.encode(values)
    assert torch.equal(by_paint, by_numbers)
    file = tmp_path / "map.png"
    Image.fromarray(wanted.numpy().astype(np.uint8)).save(file)
    assert torch.equal(from_text(work.canvas("segmentation", file, (12, 16)), max_length=10**6, name="map"), labels)


def test_files_and_texts_are_not_mistaken(tmp_path: Path) -> None:
    layout = studio(Layout(LayoutSettings(classes=("tree",), codebook_size=101)))
    file = tmp_path / "boxes.json"
    write_json(file, [{"class": "tree", "box": [0.1, 0.1, 0.5, 0.5]}])
    assert layout.condition_value({"layout": file}, (12, 16))[0].category == 0
    with pytest.raises(SmaltiError, match="the layout takes a file"):
        layout.condition_value({"layout": str(file)}, (12, 16))  # a text never opens a file of this machine
    with pytest.raises(SmaltiError, match="the label takes text"):
        studio().condition_value({"label": file}, (12, 16))
    with pytest.raises(SmaltiError, match="takes 'label', color = 'red' was given"):
        studio().condition_value({"color": "red"}, (12, 16))
    assert studio(PrecomputedCodes(PrecomputedCodesSettings(codebook_size=4, length=2))).condition_value(
        {"codes": "1, 3"}, (12, 16)
    ) == (
        1,
        3,
    )


def test_generation_stops() -> None:
    work, stop = studio(), threading.Event()
    request = parse_request(work.pipeline, {"height": 40, "width": 16}, LIMITS)
    seen = []
    for now in work.generate(request, None, stop):
        seen.append(now)
        stop.set()
    assert len(seen) == 1
    assert seen[0].state.share < 1


def test_a_masked_region_is_generated_and_the_rest_kept(tmp_path: Path) -> None:
    work = studio()
    request = parse_request(work.pipeline, {"count": 2}, LIMITS)
    image = work.image(written(tmp_path / "given.png"), request.size)
    assert image.shape == (3, 12, 16)
    masked = torch.zeros(12, 16, dtype=torch.bool)
    masked[5, 9] = True  # one pixel: its whole tile
    assert torch.equal(work.mask(painted(masked), (12, 16)), masked)
    last = [*work.complete(request, None, image, masked, (4, 8, 0, 0), NEVER)][-1]
    assert last.state.codes.shape == (2, 4, 6)
    kept = torch.zeros(4, 6, dtype=torch.bool)
    kept[1:, :4] = True
    kept[2, 2] = False
    before = work.pipeline.encode(image[None])[0]
    assert torch.equal(last.state.codes[:, kept], before.flatten()[kept[1:, :4].flatten()].expand(2, -1))
    assert not torch.equal(last.state.codes[0], last.state.codes[1])


def test_a_mask_may_be_a_file(tmp_path: Path) -> None:
    mask = np.zeros((24, 32), dtype=np.uint8)
    mask[10:12] = 200
    Image.fromarray(mask).save(tmp_path / "mask.png")
    masked = studio().mask(tmp_path / "mask.png", (12, 16))
    assert masked.sum() == 16
    assert masked[5].all()
    assert not studio().mask("", (12, 16)).any()


@pytest.mark.parametrize(
    ("around", "sentence"),
    [
        ((0, 0, 0, 0), "nothing is masked and nothing added"),
        ((0, 3, 0, 0), "multiples of 4 pixels"),
        ((0, -4, 0, 0), "multiples of 4 pixels"),
        ((0, 0, 400, 0), "the limit of a side is 64 pixels"),
    ],
)
def test_what_cannot_be_completed_is_reported(around: tuple[int, int, int, int], sentence: str) -> None:
    work, nothing = studio(), torch.zeros(12, 16, dtype=torch.bool)
    with pytest.raises(SmaltiError, match=sentence):
        next(
            work.complete(
                parse_request(work.pipeline, {}, LIMITS), None, torch.zeros(3, 12, 16), nothing, around, NEVER
            )
        )


def test_reconstruction(tmp_path: Path) -> None:
    work = studio()
    image = work.read_photo(written(tmp_path / "given.png", height=50, width=101))
    assert image.shape == (3, 12, 32)  # half of the longest side, whole tiles
    found = work.reconstruct(image)
    assert torch.equal(found.reconstruction, work.pipeline.reconstruct(image[None])[0])
    assert found.psnr == pytest.approx(float(psnr(found.reconstruction[None], image[None])))
    page = rendering.reconstruction(found, size=16)
    assert page.count("<img") == 3
    assert "1,152 bytes of pixels, 12 bytes of codes" in page
    small = work.read_photo(written(tmp_path / "small.png", height=9, width=6))
    assert small.shape == (3, 8, 4)  # never scaled up
    with pytest.raises(SmaltiError, match=r"tiny\.png is 3x2 pixels"):
        work.read_photo(written(tmp_path / "tiny.png", height=3, width=2))


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("bomb.png", png_of_size(20_000, 20_000), r"bomb\.png has more than 89,478,485 pixels"),
        ("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"drawing\.svg is not an image of any kind"),
        ("large.png", bytes(3 * 2**20), r"large\.png has 3 MiB, and the limit is 1"),
        ("empty.png", b"", r"empty\.png is empty"),
    ],
)
def test_uploads_that_are_no_images_are_reported(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    for read in (lambda file: studio().image(file, (12, 16)), studio().read_photo):
        with pytest.raises(SmaltiError, match=sentence):
            read(tmp_path / name)
    with pytest.raises(SmaltiError, match=r"the file gone\.png no longer exists"):
        studio().image(tmp_path / "gone.png", (12, 16))


# --- the command ---------------------------------------------------------------------------------------------------


def test_a_missing_gradio_is_reported_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SmaltiError, match=r"pip install 'smalti\[web\]'"):
        serve("anything")
