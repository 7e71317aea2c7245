"""Results: files that say all that a score depends on, and comparisons that refuse what differs."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.errors import SmaltiError
from smalti.core.files import write_json
from smalti.core.version import __version__
from smalti.evaluation.results import (
    DEFINITIONS,
    ExampleImage,
    Measured,
    ScorePair,
    as_plain,
    compare_results,
    format_score,
    read_result,
    write_result,
)
from smalti.reports.evaluation_page import TEMPLATE, page_values, score_name
from smalti.reports.report import render_report

PIXELS = np.zeros((16, 16, 3), np.uint8)


def measured(**changes: Any) -> Measured:
    """A measurement of a tokenizer, as small as can be."""
    values: dict[str, Any] = {
        "kind": "tokenizer",
        "scores": {"psnr": 20.5, "codes_in_use": 0.5},
        "deviations": {},
        "definitions": {name: DEFINITIONS[name] for name in ("psnr", "codes_in_use")},
        "protocol": {"about": "A test.", "images": {"count": None, "size": [16, 16]}, "rounding": "nearest"},
        "networks": {"lpips_squeezenet": "abc"},
        "data": {"name": "images", "identity": "1234", "images": 3, "left_out": {}, "sizes": [[16, 16]]},
        "model": {"tokenizer": "f00d", "codes": 4, "factor": 8},
        "notes": ("ssim is left out: a <b>test</b>",),
        "names": ("a", "b, c", "d"),
        "values": {"psnr": torch.tensor([20.0, torch.nan, 21.0])},
        "counts": torch.tensor([3, 0, 9, 0]),
        "examples": (ExampleImage("worst", "a", {"psnr": 20.0}, PIXELS, PIXELS + 60),),
    }
    return Measured(**{**values, **changes})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    plain = as_plain(measured(), command="smalti evaluate", model={"name": "runs/tokenizer"})
    write_result(tmp_path, plain, measured())
    assert read_result(tmp_path) == read_result(tmp_path / "result.json") == plain
    assert plain["model"] == {"tokenizer": "f00d", "codes": 4, "factor": 8, "name": "runs/tokenizer"}
    assert plain["made"]["smalti"] == __version__
    assert plain["made"]["torch"] == torch.__version__
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT.*", plain["made"]["date"])
    with (tmp_path / "images.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["image", "psnr"], ["a", "20"], ["b, c", ""], ["d", "21"]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "is not a result of `smalti evaluate`"),
        ("[1]", "is not a result of `smalti evaluate`"),
        ("{", "cannot read"),
        ('{"smalti": 99, "scores": {}}', r"newer smalti \(format 99\)"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(SmaltiError, match=sentence):
        read_result(tmp_path)
    with pytest.raises(SmaltiError, match="there is no file"):
        read_result(tmp_path / "gone.json")


def changed(**changes: Any) -> dict[str, Any]:
    """The plain values of `measured`, through JSON, with changes."""
    return as_plain(measured(**changes))


def test_two_results_side_by_side(tmp_path: Path) -> None:
    other = changed(scores={"ssim": 0.5, "psnr": 22.0}, model={"tokenizer": "another"})
    write_json(tmp_path / "other.json", other)
    assert compare_results(changed(), read_result(tmp_path / "other.json")) == [ScorePair("psnr", 20.5, 22.0)]


def test_what_does_not_change_a_score_may_differ() -> None:
    protocol = {**measured().protocol, "about": "Another sentence.", "examples": 9, "missing": "refuse"}
    assert compare_results(changed(), changed(protocol=protocol, networks={}, notes=()))


DATA = measured().data


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"protocol": {**measured().protocol, "rounding": "down"}},
            r"protocol\.rounding is 'nearest' in one and 'down' in the other",
        ),
        (
            {"protocol": {**measured().protocol, "images": {"count": 5, "size": [16, 16]}}},
            r"protocol\.images\.count is None in one and 5",
        ),
        ({"networks": {"lpips_squeezenet": "xyz"}}, r"weights of lpips_squeezenet is 'abc' in one and 'xyz'"),
        ({"data": {**DATA, "identity": "5678"}}, r"data\.identity is '1234'"),
        ({"data": {**DATA, "images": 2}}, r"data\.images is 3 in one and 2"),
        ({"samples": {"images": 7}}, r"samples\.images is None in one and 7"),
        ({"kind": "folders"}, "a result of tokenizer cannot be compared with one of folders"),
        ({"scores": {"fid": 3.0}}, "no score in common"),
    ],
)
def test_what_was_measured_differently_is_not_compared(changes: dict[str, Any], sentence: str) -> None:
    assert compare_results(changed(), changed())
    for first, second in ((changed(), changed(**changes)), (changed(**changes), changed())):
        with pytest.raises(SmaltiError):
            compare_results(first, second)
    with pytest.raises(SmaltiError, match=sentence):
        compare_results(changed(), changed(**changes))


def test_likelihoods_of_other_codes_are_not_compared() -> None:
    one = changed(kind="prior", scores={"nats_per_code": 3.0})
    other = changed(kind="prior", scores={"nats_per_code": 2.0}, model={"tokenizer": "another"})
    with pytest.raises(SmaltiError, match="tokenizer is 'f00d' in one and 'another'"):
        compare_results(one, other)


def test_scores_in_words() -> None:
    assert format_score("codes_in_use", 0.956) == "95.6%"
    assert format_score("psnr", 20.5) == "20.5"
    assert format_score("kid", 0.12345, deviation=0.0123) == "0.1235 ± 0.012"
    assert score_name("spatial_frechet_squeezenet") == "Spatial frechet (SqueezeNet)"
    assert score_name("rfid") == "rFID"


def page(result: Measured, plain: dict[str, Any]) -> str:
    """The page with its runs of white space as single spaces."""
    return " ".join(render_report(TEMPLATE, page_values(result, plain)).split())


def test_a_page_shows_all_of_it() -> None:
    plain = as_plain(measured(), command="smalti evaluate tokenizer M D", model={"name": "runs/<i>"})
    html = page(measured(), plain)
    assert "runs/&lt;i&gt;" in html
    assert "a &lt;b&gt;test&lt;/b&gt;" in html
    for words in (
        "20.5",
        "50.0%",
        "The worst reconstructions",
        "2 of 4 codes occur among 12",
        "rounding: nearest",
        "abc",
    ):
        assert words in html, words
    assert html.count("<img") == 3, "an original, its reconstruction and their difference"
    assert "20 dB" in html


def test_pages_of_the_other_kinds() -> None:
    prior = measured(
        kind="prior",
        scores={"nats_per_code": 3.0},
        model={"tokenizer": "f00d", "prior": "cafe"},
        nats_per_position=torch.tensor([[1.0, 2.0], [3.0, 3.5]]),
        examples=(ExampleImage("best", "a", {}, PIXELS, PIXELS), ExampleImage("sample", "seed 0", {}, PIXELS, PIXELS)),
    )
    html = page(prior, as_plain(prior))
    assert "difference</th>" not in html, "of codes there is no original"
    for words in (
        "The most likely images",
        "from its codes",
        "black 1.00, white 3.50",
        "seed 0",
        "The prior <code>cafe</code>",
    ):
        assert words in html, words
    sets = measured(
        kind="folders",
        scores={"fid": 3.0},
        samples={"name": "mine", "images": 1234},
        data={"name": "statistics", "identity": "1", "images": None},
        values={},
        counts=None,
        examples=(ExampleImage("reference", "z", {}, PIXELS[:, :, :1], PIXELS),),
    )
    html = page(sets, as_plain(sets))
    for words in ("1,234 images of <code>mine</code>", "an unknown number of images", "Reference", "FID"):
        assert words in html, words
