"""The command line as a person uses it: both stages end to end, and every mistake one sentence."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from smalti.cli.main import main
from smalti.evaluation.rejection_sampling import by_likelihood, rejection_sample
from smalti.images.io import read_image, read_settings, to_array, to_tensor
from smalti.images.resizing import center_crop, resize_to_cover
from smalti.pipeline import Pipeline
from tests.small import LABELS, write_images, write_recipe


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


class Ended(Exception):  # noqa: N818, not an error
    """How a command ended."""

    def __init__(self, status: int, out: str, err: str) -> None:
        super().__init__(status, out, err)
        self.status, self.out, self.err = status, out, " ".join(err.split())


@pytest.fixture
def smalti(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Runner:
    return Runner(monkeypatch, capfd)


class Runner:
    """Runs the command `smalti` with arguments, in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capfd = monkeypatch, capfd

    def __call__(self, *arguments: object) -> Ended:
        self.monkeypatch.setattr(sys, "argv", ["smalti", *map(str, arguments)])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self.capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    def fails(self, *arguments: object, sentence: str, status: int = 1) -> None:
        ended = self(*arguments)
        assert ended.status == status, ended.out + ended.err
        assert "Traceback" not in ended.err
        assert re.search(sentence, ended.err), ended.err


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, a recipe, and a pipeline trained by the commands themselves."""
    path = tmp_path_factory.mktemp("cli")
    write_images(path / "images")
    write_recipe(path / "small.yaml")
    with pytest.MonkeyPatch.context() as patch:
        for command in (
            ["train", "tokenizer", "images", "--recipe", "small.yaml", "--out", "model/tokenizer"],
            ["encode", "model/tokenizer", "images", "--out", "codes", "--copies", "2", "--validation", "0.2"],
            [
                "train",
                "prior",
                "codes",
                "--tokenizer",
                "model/tokenizer",
                "--recipe",
                "small.yaml",
                "--out",
                "model/prior",
            ],
        ):
            patch.setattr(sys, "argv", ["smalti", *command])
            patch.chdir(path)
            with pytest.raises(SystemExit) as ended:
                main()
            assert not ended.value.code, command
    return path


def test_samples_carry_their_settings(smalti: Runner, models: Path, tmp_path: Path) -> None:
    done = smalti(
        "sample", models / "model", "--out", tmp_path, "-n", 3, "--label", "dark", "--seed", 5, "--size", "16x24"
    )
    assert done.status == 0, done.err
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["dark-000005.png", "dark-000006.png", "dark-000007.png"]
    settings = read_settings(tmp_path / names[0])
    assert settings is not None
    assert (settings["seed"], settings["label"], settings["size"]) == (5, "dark", [16, 24])
    assert pixels(tmp_path / names[0]).shape == (16, 24, 3)
    assert "seed: 5" in " ".join(smalti("info", tmp_path / names[0]).out.split())


def test_one_seed_is_one_image(smalti: Runner, models: Path, tmp_path: Path) -> None:
    smalti("sample", models / "model", "--out", tmp_path / "seven", "-n", 7, "--label", "light")
    smalti("sample", models / "model", "--out", tmp_path / "one", "-n", 1, "--label", "light", "--seed", 4)
    one, among = tmp_path / "one" / "light-000004.png", tmp_path / "seven" / "light-000004.png"
    assert (pixels(one) == pixels(among)).all()


def test_completion_by_part_and_by_mask(smalti: Runner, models: Path, tmp_path: Path) -> None:
    image = models / "images" / "dark" / "03.png"
    for choice in (["--keep", "top-half"], ["--mask", tmp_path / "mask.png"]):
        mask = np.zeros(pixels(image).shape[:2], np.uint8)
        mask[: len(mask) // 2] = 255
        Image.fromarray(mask).save(tmp_path / "mask.png")
        done = smalti("complete", models / "model", image, *choice, "--out", tmp_path / "done", "-n", 2)
        assert done.status == 0, done.err
    assert len(list((tmp_path / "done").glob("03-*.png"))) == 2


def test_the_most_likely_candidate_is_kept(smalti: Runner, models: Path, tmp_path: Path) -> None:
    command = ("sample", models / "model", "--label", "light", "--size", "16x24")
    best = (*command, "--best-of", 4, "--out", tmp_path / "best")
    assert smalti(*best, "-n", 3, "--batch", 2, "--seed", 8).status == 0
    tried = []
    for path in sorted((tmp_path / "best").iterdir()):
        stored = read_settings(path)
        assert stored is not None
        assert (stored["best_of"], stored["selected_by"]) == (4, "likelihood")
        tried.append(stored["candidate_seed"] != stored["seed"])
        assert smalti(*command, "-n", 1, "--seed", stored["candidate_seed"], "--out", tmp_path / "again").status == 0
        assert (pixels(tmp_path / "again" / f"light-{stored['candidate_seed']:06d}.png") == pixels(path)).all()
    assert len(tried) == 3
    assert any(tried)
    assert smalti(*command, "--best-of", 1, "-n", 1, "--out", tmp_path / "one").status == 0
    assert smalti(*command, "-n", 1, "--out", tmp_path / "plain").status == 0
    one, plain = (tmp_path / name / "light-000000.png" for name in ("one", "plain"))
    assert one.read_bytes() == plain.read_bytes(), "also in what they say about themselves"


def test_a_canvas_around_an_image(smalti: Runner, models: Path, tmp_path: Path) -> None:
    pipe, image = Pipeline.from_pretrained(models / "model"), models / "images" / "dark" / "03.png"
    command = ("complete", models / "model", image, "--label", "dark", "-n", 2)
    wide = ("--canvas", "20x32", "--best-of", 2, "--no-blend", "--out", tmp_path / "wide")
    assert smalti(*command, *wide).status == 0
    given = to_tensor(center_crop(resize_to_cover(read_image(image, channels=3, name=""), (16, 16)), (16, 16)))
    known = torch.full((2, 5, 8), -1)
    known[:, :4, 2:6] = pipe.encode(given[None])  # 5 rows of 4, and 8 columns of 4, in the middle
    request = pipe.request(known, conditions={"label": "dark"})
    chosen = rejection_sample(pipe, request, num_candidates=2, score=by_likelihood(pipe, request))
    for place, expected in enumerate(pipe.decode(chosen.codes)):
        path = tmp_path / "wide" / f"03-{place:06d}.png"
        assert np.abs(pixels(path).astype(int) - to_array(expected)).max() <= 1
        stored = read_settings(path)
        assert stored is not None
        assert (stored["canvas"], stored["candidate_seed"]) == ("20x32", int(chosen.seeds[place]))
    both = smalti(*command, "--canvas", 24, "--keep", "left-half", "--size", "8x16", "--out", tmp_path / "both")
    assert both.status == 0, both.err
    assert pixels(tmp_path / "both" / "03-000001.png").shape == (24, 24, 3)
    out = ("--out", tmp_path / "o")
    smalti.fails(
        *command, *out, "--canvas", 12, sentence="an image of 4 x 4 codes .* on a canvas of 3 x 3; make the canvas"
    )
    smalti.fails(*command, *out, "--canvas", 18, sentence="18 x 18 .* is not made of tiles of 4 pixels")
    assert not (tmp_path / "o").exists()


def test_reconstruction_names_what_it_leaves_out(smalti: Runner, models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "images", tmp_path / "images")
    good = (tmp_path / "images" / "dark" / "00.png").read_bytes()
    (tmp_path / "images" / "dark" / "cut.png").write_bytes(good[: len(good) // 2])
    done = smalti("reconstruct", models / "model" / "tokenizer", tmp_path / "images", "--out", tmp_path / "back")
    assert done.status == 0
    assert re.search(r"20 images, 1 skipped: PSNR \d+\.\d\d dB", done.out)
    assert "dark/cut.png" in done.err


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("images", "labels: dark (10), light (10)"),
        ("codes", "grid: 4x4 codes of 4x4 pixels"),
        ("model", "prior run:"),
        ("model/tokenizer", "progress: 48 of 48 images"),
        ("model/prior/model", "model: prior"),
    ],
)
def test_info_says_what_it_is(smalti: Runner, models: Path, part: str, message: str) -> None:
    assert message in " ".join(smalti("info", models / part).out.split())


def test_the_settings_are_displayed_and_a_dry_run_writes_nothing(smalti: Runner, models: Path, tmp_path: Path) -> None:
    done = smalti(
        "train", "tokenizer", models / "images", "--out", tmp_path / "run", "--dry-run", "--set", "run.seed=7"
    )
    assert done.status == 0
    assert "seed: 7" in done.out
    assert not (tmp_path / "run").exists()


def test_recipes_are_listed(smalti: Runner) -> None:
    assert {"demo:", "small:"} <= {line.split(" ")[0] for line in smalti("recipes").out.splitlines()}


def test_a_truncated_image_among_good_ones_is_named_and_left_out(smalti: Runner, models: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(models / "images", images)
    good = (images / "dark" / "00.png").read_bytes()
    (images / "dark" / "cut.png").write_bytes(good[: len(good) // 2])
    done = smalti("train", "tokenizer", images, "--recipe", models / "small.yaml", "--out", tmp_path / "run")
    assert done.status == 0, done.err
    assert re.search(r"damaged image left out: dark/cut.png", done.err)


def images_of(folder: Path, size: int) -> Path:
    for number in range(4):
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (size, size), (10 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_images_that_cannot_be_trained_on(smalti: Runner, models: Path, tmp_path: Path) -> None:
    recipe = ("--recipe", models / "small.yaml", "--out", tmp_path / "run")
    (tmp_path / "empty").mkdir()
    smalti.fails("train", "tokenizer", tmp_path / "empty", *recipe, sentence="no images in .*empty")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("hello")
    smalti.fails("train", "tokenizer", tmp_path / "texts", *recipe, sentence=r"no images in .*\.txt")
    smalti.fails("train", "tokenizer", tmp_path / "nowhere", *recipe, sentence="there is no .*nowhere")
    dots = images_of(tmp_path / "dots", 1)
    smalti.fails("train", "tokenizer", dots, *recipe, sentence="is 1x1 pixels, too small for size 16x16")
    (tmp_path / "alone").mkdir()
    shutil.copy(models / "images" / "dark" / "00.png", tmp_path / "alone")
    smalti.fails("train", "tokenizer", tmp_path / "alone", *recipe, sentence="holds a single image")


def test_images_a_little_too_small_are_enlarged(smalti: Runner, models: Path, tmp_path: Path) -> None:
    images = images_of(tmp_path / "smaller", 12)
    done = smalti("train", "tokenizer", images, "--recipe", models / "small.yaml", "--out", tmp_path / "run")
    assert done.status == 0, done.err


def test_damaged_and_missing_checkpoints(smalti: Runner, models: Path, tmp_path: Path) -> None:
    smalti.fails("sample", tmp_path / "none", "--out", tmp_path / "o", sentence="there is no folder .*none")
    smalti.fails("sample", models / "images", "--out", tmp_path / "o", sentence="is not a pipeline")
    shutil.copytree(models / "model", tmp_path / "model")
    weights = tmp_path / "model" / "prior" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    smalti.fails("sample", tmp_path / "model", "--out", tmp_path / "o", sentence="is damaged or truncated")
    weights.unlink()
    smalti.fails("sample", tmp_path / "model", "--out", tmp_path / "o", sentence=r"has no model\.safetensors")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["--label", "dask"], 1, "there is no label 'dask'; did you mean 'dark'\\? There are: dark, light"),
        (["--size", "17"], 1, "17 x 17 .* is not made of tiles of 4 pixels; try 16x16"),
        (["--size", "big"], 2, "'big' is not a size"),
        (["--temperature", "-1"], 2, "greater than or equal to"),
        (["--device", "cuda:9"], 1, "device 'cuda:9' cannot be used here"),
    ],
)
def test_wrong_wishes(
    smalti: Runner, models: Path, tmp_path: Path, arguments: list[str], status: int, sentence: str
) -> None:
    smalti.fails("sample", models / "model", "--out", tmp_path / "o", *arguments, status=status, sentence=sentence)


def test_half_precision_is_half_the_size_and_the_same_model_again(smalti: Runner, models: Path, tmp_path: Path) -> None:
    done = smalti("convert", models / "model", tmp_path / "half", "--half")
    assert done.status == 0, done.err
    for part in ("tokenizer", "prior"):
        before, after = models / "model" / part / "model", tmp_path / "half" / part
        sizes = [(folder / "model.safetensors").stat().st_size for folder in (before, after)]
        assert sizes[1] < 0.6 * sizes[0]
    whole, half = (Pipeline.from_pretrained(folder) for folder in (models / "model", tmp_path / "half"))
    torch.testing.assert_close(half.tokenizer.state_dict(), whole.tokenizer.state_dict(), rtol=1e-3, atol=1e-6)
    assert {weight.dtype for weight in half.prior.parameters()} == {torch.float32}
    assert half.sample(1, label="dark", seed=0).shape == whole.sample(1, label="dark", seed=0).shape
    smalti.fails("convert", models / "model", tmp_path / "other", "--half", "--to", "taming", sentence="--half is for")


def test_wrong_masks_and_parts(smalti: Runner, models: Path, tmp_path: Path) -> None:
    image = models / "images" / "dark" / "03.png"
    Image.new("L", (3, 3)).save(tmp_path / "mask.png")
    command = ("complete", models / "model", image, "--out", tmp_path / "o")
    smalti.fails(*command, "--mask", tmp_path / "mask.png", sentence="a mask has the size of its image")
    Image.new("L", pixels(image).shape[1::-1], 255).save(tmp_path / "white.png")
    for nothing in (("--mask", tmp_path / "white.png"), ("--canvas", "16")):  # was decoded and saved without a word
        smalti.fails(*command, *nothing, sentence="the whole image is kept, and there is nothing to generate")
    smalti.fails(*command, "--keep", "tophalf", sentence="did you mean 'top-half'")
    smalti.fails(*command, status=2, sentence="either --mask or --keep")


def test_wrong_settings(smalti: Runner, models: Path, tmp_path: Path) -> None:
    command = ("train", "tokenizer", models / "images", "--out", tmp_path / "run")
    smalti.fails(
        *command, "--recipe", "smal", sentence="there is no recipe 'smal'.*did you mean 'small'.*demo, .*, small"
    )
    smalti.fails(*command, "--set", "run.imagse=3", sentence="unknown key 'run.imagse'; did you mean 'images'")
    smalti.fails(*command, "--set", "images.size=[16,18]", sentence="16 x 18|18 x 16")
    assert not (tmp_path / "run").exists()


def test_another_programs_run_is_not_touched(smalti: Runner, models: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "weights.bin").write_bytes(b"precious")
    command = (
        "train",
        "tokenizer",
        models / "images",
        "--recipe",
        models / "small.yaml",
        "--out",
        tmp_path / "theirs",
    )
    smalti.fails(*command, sentence="holds no run of smalti")
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["weights.bin"]


def test_labels_of_the_data_are_the_labels_of_the_model(smalti: Runner, models: Path) -> None:
    assert all(label in smalti("info", models / "codes").out for label in LABELS)


def test_usage_and_version(smalti: Runner) -> None:
    assert smalti("--version").out.startswith("smalti ")
    assert smalti("train", "tokenizer").status == 2
    assert smalti("paint").status == 2
