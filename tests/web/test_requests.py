"""What a page may request: conditions with their names and colors, sampling settings, links, and their errors."""

from __future__ import annotations

import math
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smalti.conditions.labels import Labels, Unconditional
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import LayoutSettings
from smalti.conditions.precomputed import PrecomputedCodes, PrecomputedCodesSettings
from smalti.conditions.spatial import SpatialCondition, SpatialConditionSettings
from smalti.core.errors import SmaltiError
from smalti.core.settings import as_mapping
from smalti.scenes.scene_classes import CLASSES as SCENE_CLASSES
from smalti.scenes.scene_classes import COLORS, LABELS
from smalti.web.requests import (
    ConditionInput,
    SamplingRequest,
    condition_inputs,
    from_link,
    label_colors,
    parse_job,
    parse_request,
    smallest,
)
from smalti.web.studio import two_axes
from tests.small_pipeline import pipeline, tokenizer
from tests.web.pipelines import CLASSES, LIMITS, PLACES, SEASONAL, all_three, both, studio


def test_parts_say_how_they_are_given() -> None:
    assert condition_inputs(Unconditional()) == ()
    assert condition_inputs(Labels(CLASSES)) == (ConditionInput("label", "choice", CLASSES),)
    label, segmentation = condition_inputs(both())
    assert (label.kind, segmentation.kind, segmentation.names) == ("choice", "paint", PLACES)
    assert condition_inputs(both(), names=("a", "b", "c"))[1].names == ("a", "b", "c")
    assert condition_inputs(PrecomputedCodes(PrecomputedCodesSettings(codebook_size=4, length=2)))[0].kind == "text"
    assert condition_inputs(Layout(LayoutSettings(classes=("tree",), codebook_size=101)))[0].kind == "json"
    depth = SpatialCondition(SpatialConditionSettings(kind="depth", key="depth", grid=(3, 4)), tokenizer(channels=1))
    assert condition_inputs(depth)[0].kind == "image"
    with pytest.raises(SmaltiError, match="the model has 3 segmentation labels, not 2"):
        condition_inputs(both(), names=PLACES[:2])


def test_labels_of_scenes_have_natural_colors_and_others_distinct_ones() -> None:
    assert label_colors(LABELS) == COLORS
    sky, water = label_colors(("sky", "water"))
    assert sky[2] > sky[0]  # blue
    assert (sky, water) == (COLORS[0], COLORS[LABELS.index("water")])
    others = label_colors(tuple(f"label {number}" for number in range(40)))
    assert len(set(others)) == 40


def test_the_model_is_described() -> None:
    message = studio(all_three(), order="any").describe()
    assert (message["size"], message["smallest"], message["factor"], message["codes"]) == ([12, 16], [12, 16], 4, 16)
    assert [(part["key"], part["kind"]) for part in message["conditions"]] == [
        ("label", "choice"),
        ("text", "text"),
        ("segmentation", "paint"),
    ]
    assert message["conditions"][0]["axes"] == [["spring", "summer", "autumn", "winter"], ["day", "night"]]
    assert message["any_order"]
    assert not studio().describe()["any_order"]
    assert message["guidance"]
    assert message["limits"]["side"] == 64


def test_names_of_a_full_grid_are_two_choices() -> None:
    assert two_axes(SCENE_CLASSES) == [["spring", "summer", "autumn", "winter"], ["day", "dusk", "night"]]
    assert two_axes(SEASONAL)[1] == ["day", "night"]
    assert two_axes(("a-x", "a-y", "b-y", "b-x")) == [["a", "b"], ["x", "y"]]
    for names in (
        CLASSES,
        SEASONAL[1:],
        ("a-x", "a-y"),
        ("a-x-1", "a-y-1", "b-x-1", "b-y-1"),
        ("-x", "-y", "b-x", "b-y"),
    ):
        assert two_axes(names) == []


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


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (None, "a job is a JSON object"),
        ([], "a job is a JSON object"),
        ("sample", "a job is a JSON object"),
        ({"task": "format"}, "task = 'format'"),
        ({"settings": [1]}, "settings = "),
        ({"conditions": {"label": ["dusk"]}}, "conditions"),
        ({"conditions": {"label": None}}, "conditions"),
        ({"extend": {"top": -4}}, "extend.top = -4"),
        ({"strength": 2}, "strength = 2"),
        ({"prompt": "x"}, "unknown key 'prompt'"),
    ],
)
def test_wrong_shapes_of_jobs_are_sentences(value: object, sentence: str) -> None:
    with pytest.raises(SmaltiError, match=sentence) as error:
        parse_job(value)
    assert "\n" not in str(error.value)


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
    query = urlencode({**chosen, **as_mapping(request)})
    found = from_link(PIPE, {**dict(parse_qsl(query)), "utm": "x"}, condition_inputs(PIPE.condition), LIMITS)
    assert found == (request, chosen)


def test_a_link_restores_a_text() -> None:
    parts = condition_inputs(all_three())
    query = {"text": "a lake & more", "label": "winter-day", "width": "16"}
    assert from_link(PIPE, query, parts, LIMITS)[1] == {"text": "a lake & more", "label": "winter-day"}


def test_a_wrong_link_is_reported() -> None:
    parts = condition_inputs(PIPE.condition)
    with pytest.raises(SmaltiError, match="there is no label 'dusc'; did you mean 'dusk'"):
        from_link(PIPE, {"label": "dusc"}, parts, LIMITS)
    with pytest.raises(SmaltiError, match="width = 'wide'"):
        from_link(PIPE, {"width": "wide"}, parts, LIMITS)
