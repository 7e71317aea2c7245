"""The models that come with smalti: installed with it, small, and they follow their conditions."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

import smalti as package
from smalti.core.errors import SmaltiError
from smalti.evaluation.metrics import psnr
from smalti.generation.code_sampler import Sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import unknown_codes
from smalti.hub.bundled_models import BUNDLED, SCENES, model_path
from smalti.images.io import to_tensor
from smalti.pipeline import Pipeline
from smalti.scenes.scene_classes import CLASSES, LABELS, paint
from smalti.tokenizer.vqgan import VQGAN
from tests.cli.test_cli import Runner
from tests.cli.test_cli import smalti as smalti
from tests.small_pipeline import written

MAX_BYTES = {"scenes": 27_000_000, "landscapes": 10_000_000, "materials": 21_000_000}
"""Bytes of their folders."""

there = pytest.mark.skipif(
    not SCENES.is_dir(), reason="the model that comes with smalti is not in this checkout yet: src/smalti/models/scenes"
)


@pytest.fixture(scope="module")
def scenes() -> Pipeline:
    return Pipeline.from_pretrained()


def segmentation(*, ground: str) -> Tensor:
    """(128,128): sky above, and below it one label."""
    labels = torch.full((128, 128), LABELS.index("sky"))
    labels[64:] = LABELS.index(ground)
    return labels


@there
def test_it_is_small_and_for_scenes(scenes: Pipeline) -> None:
    files = [path for path in SCENES.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if path.parent.name != "examples"} == {".json", ".safetensors"}
    assert scenes.default_size == (128, 128)
    assert (scenes.tokenizer.factor, scenes.tokenizer.size) == (8, 1024)
    assert scenes.prior.knows_any_order
    labels, texts, maps = scenes.condition.parts
    assert (labels.key, texts.key, maps.key) == ("label", "text", "segmentation")
    assert set(getattr(labels, "names")) == set(CLASSES)  # noqa: B009, a field of labels alone
    assert VQGAN.from_pretrained("scenes").fingerprint() == scenes.tokenizer.fingerprint()


@there
@pytest.mark.parametrize("conditioned_on", ["nothing", "label", "text", "segmentation", "all"])
def test_it_generates_what_it_is_conditioned_on(scenes: Pipeline, conditioned_on: str) -> None:
    values = {"label": "summer-day", "text": "a lake in summer", "segmentation": segmentation(ground="water")}
    value = {key: each for key, each in values.items() if conditioned_on in (key, "all")} or None
    known, seeds = unknown_codes(2, scenes.grid(None)), scenes.seeds(0, 2)
    codes = final_codes(generate(scenes.prior, scenes.request_for([value] * 2, known, sampler=Sampler(), seeds=seeds)))
    assert codes.shape == (2, 16, 16)
    assert codes.min() >= 0
    assert codes.max() < scenes.tokenizer.size
    assert len(torch.unique(codes)) > 10
    images = scenes.decode(codes)
    assert images.shape == (2, 3, 128, 128)
    assert images.std() > 0.05


@there
def test_it_knows_day_from_night_and_summer_from_winter(scenes: Pipeline) -> None:
    day, night, winter = (
        scenes.sample(3, label=label, seed=0) for label in ("summer-day", "summer-night", "winter-day")
    )
    assert day.mean() > night.mean() + 0.2, "a night is darker"
    green = [(images[:, 1] - images[:, 2])[:, 80:].mean() for images in (day, winter)]
    assert green[0] > green[1] + 0.1, "the ground of summer is greener than snow is"


@there
def test_it_follows_a_map(scenes: Pipeline) -> None:
    water, ground = (
        scenes.sample(3, segmentation=segmentation(ground=name), label="summer-day", seed=0)
        for name in ("water", "ground")
    )
    blue = [(images[:, 2] - images[:, 1])[:, 80:].mean() for images in (water, ground)]
    assert blue[0] > blue[1] + 0.1, "where water was asked for it is bluer than where there is grass"


@there
def test_it_keeps_most_of_a_scene(scenes: Pipeline) -> None:
    images = torch.stack([to_tensor(paint(99, index, size=(128, 128)).image) for index in range(4)])
    assert psnr(images, scenes.reconstruct(images)).mean() > 20, "below 20 dB houses cannot be told from trees"


@there
def test_the_commands_take_it_where_none_is_named(smalti: Runner, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    message = "no model given; using the bundled model: scenes"
    done = smalti("sample", "-n", 1, "--label", "winter-dusk", *out)
    assert done.status == 0, done.err
    assert message in done.out
    image = tmp_path / "out" / "winter-dusk-000000.png"
    assert "model: scenes" in " ".join(smalti("info", image).out.split())
    described = smalti("info").out
    assert message in described
    assert "prior condition.name: " in described
    assert smalti("info", "scenes").out == described.partition("\n")[2]
    for command in (("complete", "scenes", image, "--keep", "top-half", "-n", 1), ("reconstruct", "scenes", image)):
        done = smalti(*command, "--out", tmp_path / command[0])
        assert done.status == 0, done.err
        assert message not in done.out


@there
@pytest.mark.slow
def test_the_five_lines_of_the_readme_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    (tmp_path / "lines.py").write_text(readme.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    assert runpy.run_path("lines.py")["codes"].shape == (4, 16, 32)
    assert (tmp_path / "wide.png").is_file()


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_are_small(name: str) -> None:
    assert sum(path.stat().st_size for path in BUNDLED[name].rglob("*") if path.is_file()) < MAX_BYTES[name]


def test_landscapes_have_the_tokenizer_of_scenes_and_follow_a_map(scenes: Pipeline) -> None:
    landscapes = Pipeline.from_pretrained("landscapes")
    assert landscapes.tokenizer.fingerprint() == scenes.tokenizer.fingerprint()
    assert landscapes.default_size == (256, 256)
    labels, maps = landscapes.condition.parts
    assert (labels.key, maps.key) == ("label", "segmentation")
    water, ground = (
        landscapes.sample(
            2,
            segmentation=segmentation(ground=name).repeat_interleave(2, 0).repeat_interleave(2, 1),
            label="summer-day",
            size=256,
            seed=0,
            guidance=2.0,
        )
        for name in ("water", "ground")
    )
    blue = [(images[:, 2] - images[:, 1])[:, 160:].mean() for images in (water, ground)]
    assert blue[0] > blue[1] + 0.1, "where water was asked for it is bluer than where there is grass"


def test_materials_differ_by_class() -> None:
    """The mean colors of leaves, lanterns and snow."""
    materials = Pipeline.from_pretrained("materials")
    images = {
        name: materials.sample(2, label=name, size=128, seed=0).mean((0, 2, 3))
        for name in ("green-maple", "red-maple", "lanterns", "snow-trees")
    }
    red, green, blue = range(3)
    redness = {name: mean[red] - mean[green] for name, mean in images.items()}
    assert redness["red-maple"] > redness["green-maple"] + 0.05
    blueness = {name: mean[blue] - mean[red] for name, mean in images.items()}
    assert blueness["snow-trees"] > blueness["lanterns"] + 0.1
    assert "Aitzol Berasategi" in (BUNDLED["materials"] / "README.md").read_text("utf-8")


# --- without it: the rules by which it is found --------------------------------------------------------------------


def test_a_folder_here_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_path("scenes") == SCENES == BUNDLED["scenes"]
    assert model_path("runs/scenes") == Path("runs/scenes")
    written(Path("scenes"))
    assert model_path("scenes") == Path("scenes")
    assert Pipeline.from_pretrained("scenes").default_size == (12, 16)


def test_what_is_not_named_is_not_looked_for_here(
    smalti: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of images that happens to be called scenes is not taken for the model."""
    monkeypatch.chdir(tmp_path)
    Path("scenes").mkdir()
    monkeypatch.setattr("smalti.hub.pretrained.read_json", lambda path: pytest.fail(f"{path} was read"))
    monkeypatch.setattr(
        "smalti.pipeline.resolve_model_path", lambda name: (_ for _ in ()).throw(SmaltiError(f"asked for {name}"))
    )
    smalti.fails("sample", "--out", "out", sentence=rf"asked for {re.escape(str(SCENES))}$")
    with pytest.raises(SmaltiError, match=rf"asked for {re.escape(str(SCENES))}$"):
        Pipeline.from_pretrained()


def test_a_pipeline_stands_for_its_tokenizer(tmp_path: Path) -> None:
    pipe = written(tmp_path / "model")
    assert VQGAN.from_pretrained(tmp_path / "model").fingerprint() == pipe.tokenizer.fingerprint()


@pytest.mark.slow
def test_it_is_in_the_wheel_and_in_the_source_archive(tmp_path: Path) -> None:
    """Of a copy of the sources, in which a model stands in where there is none."""
    pytest.importorskip("setuptools", minversion="77")  # which pip brings along by itself
    root = Path(package.__file__).parents[2]
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, tmp_path / name)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(root / "src", tmp_path / "src", ignore=ignored)
    models = tmp_path / "src" / "smalti" / "models"
    if not models.is_dir():
        written(models / "scenes")
    wanted = {path.relative_to(tmp_path / "src").as_posix() for path in models.rglob("*") if path.is_file()}
    assert len(wanted) >= 4
    make = "from setuptools.build_meta import build_sdist as s, build_wheel as w; s('dist'); w('dist')"
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, capture_output=True, text=True, check=True)
    (wheel,), (archive,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    assert wanted <= set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(archive) as sources:
        packed = {name.partition("/src/")[2] for name in sources.getnames()}
    assert wanted <= packed
