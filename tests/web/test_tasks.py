"""What jobs do: the images are the library's, kept pixels are exact, and files hold what restores them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import torch

from smalti.core.errors import SmaltiError
from smalti.evaluation.metrics import psnr
from smalti.images.io import read_image, read_settings, to_array, to_tensor
from smalti.web.code_images import masked_image, mosaic
from smalti.web.examples import Examples, example_plan, read_examples
from smalti.web.jobs import Cancelled, Job, Outcome, Report, Task
from smalti.web.requests import parse_job
from smalti.web.studio import Studio
from smalti.web.submission import Submission, dropped_image, known_settings, loaded_map, task_of
from smalti.web.tasks import EditTask, VaryTask
from smalti.web.uploads import Upload
from tests.web.pipelines import PLACES, SEASONAL, all_three, both, file_bytes, pixels, studio, upload
from tests.web.test_uploads import COLORS, colored


def run(task: Task, *, stop_after: int = 0) -> tuple[Outcome, Job]:
    job = Job(task, "s", "x")
    steps = [0]

    def is_wanted() -> bool:
        steps[0] += 1
        return not stop_after or steps[0] <= stop_after

    return task.run(Report(job, is_wanted)), job


def images(outcome: Outcome) -> list[Any]:
    return [read_image(io.BytesIO(image.png), channels=3, name="") for image in outcome.images]


def task(work: Studio, fields: dict[str, Any], **files: Upload) -> Task:
    return task_of(work, parse_job(fields), files)


def test_a_sample_is_the_pipelines() -> None:
    work = studio(both())
    labels = np.random.RandomState(0).randint(0, 3, (12, 24))
    fields = {
        "settings": {"width": 24, "count": 2, "seed": 5, "guidance": 2.0},
        "conditions": {"label": "dusk"},
    }
    outcome, job = run(task(work, fields, segmentation=upload(colored(labels))))
    expected = work.pipeline.sample(
        2, size=(12, 24), seed=5, guidance=2.0, label="dusk", segmentation=torch.from_numpy(labels)
    )
    assert all(np.array_equal(a, to_array(b)) for a, b in zip(images(outcome), expected, strict=True))
    assert [(image.name, image.seed) for image in outcome.images] == [("dusk-5.png", 5), ("dusk-6.png", 6)]
    assert job.progress is not None
    assert job.progress.previews
    assert work.pace.per_code()
    work.close()


def test_the_file_restores_settings_and_map() -> None:
    work = studio(all_three(), order="any")
    labels = np.random.RandomState(0).randint(-1, 3, (12, 16))
    fields = {
        "settings": {"seed": 7, "count": 2, "temperature": 0.9, "guidance": 3.0},
        "conditions": {"label": "winter-night", "text": "a red house"},
    }
    outcome, _ = run(task(work, fields, segmentation=upload(colored(labels))))
    found = dropped_image(work, Submission({}, {"image": Upload("a.png", outcome.images[1].png)}, {}))
    restored = found["settings"]
    assert restored["settings"] | {"count": 1} == restored["settings"]
    assert (restored["settings"]["seed"], restored["settings"]["temperature"]) == (8, 0.9)
    assert restored["conditions"] == {"label": "winter-night", "text": "a red house"}
    painted = Upload("map.png", base64.b64decode(restored["maps"]["segmentation"]))
    assert np.array_equal(work.label_map(work.part("segmentation"), painted, (12, 16)).numpy(), labels)
    again, _ = run(task(work, {key: restored[key] for key in ("settings", "conditions")}, segmentation=painted))
    assert np.array_equal(images(again)[0], images(outcome)[1])
    assert known_settings(work, {"height": 9999, "width": 16}) is None  # of another model
    assert known_settings(work, {"label": "noon", "maps": [1]}) == {
        "settings": work_defaults(work),
        "conditions": {},
        "maps": {},
    }
    work.close()


def work_defaults(work: Studio) -> dict[str, Any]:
    height, width = work.pipeline.default_size
    return {
        "height": height, "width": width, "count": 1, "seed": 0, "temperature": 1.0, "top_k": 0, "top_p": 1.0,
        "guidance": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize("order", ["raster", "any"])
def test_kept_pixels_are_exact_and_the_rest_is_new(order: str) -> None:
    work = studio(order=order)
    given = pixels(12, 24)
    mask = np.zeros((12, 24), np.uint8)
    mask[3:9, 7:12] = 255
    fields = {"task": "edit", "settings": {"count": 3, "seed": 2}, "extend": {"right": 8, "top": 4}}
    outcome, _ = run(task(work, fields, image=upload(given), mask=upload(mask)))
    assert outcome.facts == {"exact": order == "any"}
    made = images(outcome)
    assert made[0].shape == (16, 32, 3)
    keep = mask == 0
    for image in made:
        assert np.array_equal(image[4:, :24][keep], given[keep])
        assert not np.array_equal(image[4:, :24][~keep], given[~keep])
    assert not np.array_equal(made[0], made[1])
    settings = read_settings(io.BytesIO(outcome.images[0].png))
    assert settings is not None
    assert (settings["command"], settings["height"], settings["width"]) == ("complete", 16, 32)
    work.close()


def test_an_exact_edit_is_the_pipelines_completion() -> None:
    work = studio(order="any")
    given, mask = pixels(12, 16), np.zeros((12, 16), np.uint8)
    mask[4:8, 4:12] = 255
    fields = {"task": "edit", "settings": {"seed": 3}, "conditions": {"label": "dusk"}}
    outcome, _ = run(task(work, fields, image=upload(given), mask=upload(mask)))
    expected = work.pipeline.complete(to_tensor(given)[None], torch.from_numpy(mask == 0), seed=3, label="dusk")
    assert np.array_equal(images(outcome)[0], to_array(expected[0]))
    work.close()


def test_an_image_is_extended_again_and_again() -> None:
    work, image = studio(order="any"), pixels(12, 16)
    for side, amount in (("right", 16), ("left", 4), ("bottom", 12)):
        fields = {"task": "edit", "settings": {"seed": 1}, "extend": {side: amount}}
        outcome, _ = run(task(work, fields, image=upload(image)))
        new = images(outcome)[0]
        top, left = 0, 4 if side == "left" else 0
        assert np.array_equal(new[top : top + image.shape[0], left : left + image.shape[1]], image)
        image = new
    assert image.shape == (24, 36, 3)
    work.close()


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "nothing is marked and nothing added"),
        ({"extend": {"right": 3}}, "extended by multiples of 4 pixels"),
        ({"extend": {"bottom": 400}}, "the limit of a side is 64 pixels"),
        ({"extend": {"right": 4}, "conditions": {"label": "noon"}}, "noon"),
        ({"extend": {"right": 4}, "conditions": {"color": "red"}}, "takes 'label'"),
    ],
)
def test_what_cannot_be_edited_is_reported(fields: dict[str, Any], sentence: str) -> None:
    work = studio()
    with pytest.raises(SmaltiError, match=sentence):
        run(task(work, {"task": "edit", **fields}, image=upload(pixels(12, 16))))
    work.close()


def test_an_image_is_needed() -> None:
    work = studio()
    for kind in ("edit", "vary", "reconstruct"):
        with pytest.raises(SmaltiError, match=f"the task '{kind}' needs an image"):
            task(work, {"task": kind})
    with pytest.raises(SmaltiError, match="there is no image"):
        dropped_image(work, Submission({}, {}, {}))
    work.close()


@pytest.mark.parametrize("order", ["raster", "any"])
def test_variations_keep_a_part_of_the_codes(order: str) -> None:
    work = studio(order=order)
    made = task(work, {"task": "vary", "settings": {"count": 2}, "strength": 0.5}, image=upload(pixels(12, 16)))
    assert isinstance(made, VaryTask)
    codes = work.pipeline.encode(to_tensor(made.pixels)[None])
    renewed = made.renewed(codes)
    assert renewed.sum() == 6
    assert (order == "any") or bool(renewed.flatten()[6:].all())
    outcome, _ = run(made)
    assert len(outcome.images) == 2
    work.close()


def test_a_cancelled_task_stops() -> None:
    for order, fields in (
        ("raster", {}),
        ("raster", {"task": "edit", "extend": {"right": 16}}),
        ("any", {"task": "vary"}),
    ):
        work = studio(order=order)
        made = task(work, fields, image=upload(pixels(12, 16)))
        with pytest.raises(Cancelled):
            run(made, stop_after=1)
        work.close()


def test_greedy_settings_are_commented() -> None:
    work = studio()
    for settings in ({"temperature": 0}, {"top_k": 1}):
        outcome, _ = run(task(work, {"settings": settings}))
        assert "always the most likely code" in outcome.facts["note"]
    assert "note" not in run(task(work, {}))[0].facts
    work.close()


def test_reconstruction() -> None:
    work, given = studio(), pixels(24, 30)
    outcome, _ = run(task(work, {"task": "reconstruct"}, image=upload(given, name="my photo.png")))
    original, reconstruction, tiles = images(outcome)
    assert np.array_equal(original, given[:, 1:29])
    expected = work.pipeline.reconstruct(to_tensor(original)[None])
    assert np.array_equal(reconstruction, to_array(expected[0]))
    assert outcome.facts["psnr"] == pytest.approx(float(psnr(expected, to_tensor(original)[None])), abs=1e-3)
    assert np.array(outcome.facts["codes"]).shape == (6, 7)
    assert outcome.facts["bytes"] == [24 * 28 * 3, 21]
    assert tiles.shape == original.shape
    assert [image.name for image in outcome.images][1] == "my-photo-reconstruction.png"
    work.close()


def test_loaded_maps_come_back_in_the_colors_of_the_page() -> None:
    work, labels = studio(both()), np.random.RandomState(0).randint(0, 3, (12, 16))
    file = upload(labels.astype(np.uint8), name="map.png")
    png = loaded_map(work, "segmentation", Submission({}, {"map": file}, {"height": "24", "width": "32"}))
    shown = read_image(io.BytesIO(png), channels=4, name="")
    assert np.array_equal(shown, colored(labels.repeat(2, 0).repeat(2, 1)))
    with pytest.raises(SmaltiError, match="the label is not painted"):
        loaded_map(work, "label", Submission({}, {"map": file}, {}))
    with pytest.raises(SmaltiError, match="there is no map"):
        loaded_map(work, "segmentation", Submission({}, {}, {}))
    with pytest.raises(SmaltiError, match="takes 'label' and 'segmentation'"):
        loaded_map(work, "depth", Submission({}, {"map": file}, {}))
    assert work.part("segmentation").names == PLACES
    assert work.part("segmentation").colors == COLORS
    work.close()


def test_images_too_small_for_the_model_are_reported() -> None:
    work = studio(both())
    with pytest.raises(SmaltiError, match=r"small\.png is 8 x 16 pixels .* at least 12 x 16"):
        dropped_image(work, Submission({}, {"image": Upload("small.png", file_bytes(pixels(9, 17)))}, {}))
    work.close()


def test_examples_are_read_or_made(tmp_path: Any) -> None:
    work = studio(all_three())
    plan = example_plan(work, 1)
    assert plan.about == {"label": SEASONAL[2]}
    known: list[Any] = []
    made = Examples(work, known)
    while (missing := made.next_task()) is not None:
        run(missing)
    assert len(made.images) == 4
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "0-a.png").write_bytes(made.images[0].png)
    (tmp_path / "examples" / "1-foreign.png").write_bytes(file_bytes(pixels(4, 4)))
    (found,) = read_examples(tmp_path)
    assert found.size == (12, 16)
    assert found.settings["label"] == SEASONAL[0]
    shipped = Examples(work, [found])
    assert shipped.next_task() is not None  # the pace is measured nevertheless
    assert shipped.next_task() is None
    work.close()


def test_edits_check_their_size_once_more() -> None:
    work = studio()
    made = task(work, {"task": "edit", "extend": {"right": 16}}, image=upload(pixels(12, 16)))
    assert isinstance(made, EditTask)
    run(made)
    assert made.seconds > 0
    work.close()


# --- what is shown -------------------------------------------------------------------------------------------------


def test_codes_not_generated_are_transparent() -> None:
    image, codes = torch.rand(3, 8, 12) * 2 - 1, torch.tensor([[3, 4, -1], [-1, -1, -1]])
    shown = masked_image(image, codes)
    assert shown.shape == (8, 12, 4)
    assert (shown[:4, :8, 3] == 255).all()
    assert shown[:, :, 3].sum() == 255 * 4 * 8
    assert masked_image(image[:1], codes).shape == (8, 12, 4)


def test_a_mosaic_has_one_color_per_code() -> None:
    codes = torch.tensor([[7, 2, 7], [2, 2, 5]])
    ramp = torch.arange(6.0).view(2, 3).repeat_interleave(4, 0).repeat_interleave(4, 1) / 10
    shown = mosaic(codes, ramp.expand(3, -1, -1))
    level = [round((number / 10 + 1) * 127.5) for number in range(6)]
    seven, two = round((level[0] + level[2]) / 2), round((level[1] + level[3] + level[4]) / 3)
    corners = shown[::4, ::4, 0].tolist()
    assert corners == [[seven, two, seven], [two, two, level[5]]]
    assert (shown[3::4] == int(255 * 0.82)).all()  # the lines
    assert (shown[:, 3::4] == int(255 * 0.82)).all()
    assert len(np.unique(mosaic(codes, ramp[None, ::4, ::4]).reshape(-1, 3), axis=0)) == 3  # f = 1: no room for lines
