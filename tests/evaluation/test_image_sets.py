"""Sets of images: how they are taken and made alike, statistics as files, and scores of one set against another."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from smalti.core.errors import SmaltiError
from smalti.data.sources import Source, held_out_order, identity, open_source
from smalti.evaluation.distances import frechet
from smalti.evaluation.feature_statistics import (
    Statistics,
    StatisticsAccumulator,
    holds_statistics,
    read_statistics,
    write_statistics,
)
from smalti.evaluation.features import NetworkOutput
from smalti.evaluation.measures import Measured, measure_sets
from smalti.evaluation.nearest_neighbors import manifold
from smalti.evaluation.prepared_images import FILTERS, PreparedImages, open_images, scale_and_crop
from smalti.evaluation.protocols import SET_PROTOCOLS, ImageProtocol, SetProtocol, select_protocol
from smalti.images.io import save_png
from smalti.images.resizing import center_crop, resize_to_cover
from tests.feature_networks import Means, forbid_downloads, use_means, write_noise

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_means(monkeypatch)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """40 samples and 60 of a reference, 16x16."""
    path = tmp_path_factory.mktemp("sets")
    return write_noise(path / "samples", count=40, seed=1), write_noise(path / "reference", count=60, seed=2)


def protocol(*overrides: str) -> SetProtocol:
    return select_protocol(
        SET_PROTOCOLS,
        "folder-vs-folder-squeezenet",
        overrides=["features.subset_size=20", "features.splits=3", *overrides],
    )


def measured(samples: Path, reference: Path | Statistics, *overrides: str, **options: Any) -> Measured:
    other = reference if isinstance(reference, Statistics) else open_images(reference)
    return measure_sets(open_images(samples), other, protocol=protocol(*overrides), device=CPU, **options)


def features_of(folder: Path) -> torch.Tensor:
    """All features of a folder, the plain way."""
    arrays = [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]
    seen: NetworkOutput = Means()(torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2))
    return seen.features


# --- scores --------------------------------------------------------------------------------------------------------


def test_scores_do_not_depend_on_the_batch(folders: tuple[Path, Path]) -> None:
    reported: list[tuple[int, int]] = []
    one = measured(*folders, batch=7, progress=lambda done, total: reported.append((done, total)))
    other = measured(*folders, batch=64)
    assert len(one.scores) == 8
    assert one.scores == pytest.approx(other.scores, rel=1e-6)
    assert (reported[0], reported[-1]) == ((7, 100), (100, 100))
    close = manifold(features_of(folders[0]), features_of(folders[1]))
    assert one.scores["precision_squeezenet"] == close.precision
    assert one.scores["coverage_squeezenet"] == close.coverage
    assert one.notes[0] == "the sets have 40 and 60 images; most scores depend on both numbers"
    assert {each.rank for each in one.examples} == {"sample", "reference"}


def test_a_set_is_no_distance_from_itself(folders: tuple[Path, Path]) -> None:
    scores = measured(folders[0], folders[0]).scores
    assert scores["frechet_squeezenet"] == pytest.approx(0, abs=1e-6)
    assert scores["precision_squeezenet"] == scores["coverage_squeezenet"] == 1
    assert measured(*folders).scores["frechet_squeezenet"] > 1e-4


def test_few_images_are_reported(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_noise(tmp_path, count=5)
    found = measured(tmp_path, folders[1], "features.splits=6")
    assert set(found.scores) == {"frechet_squeezenet", "spatial_frechet_squeezenet"}
    notes = "\n".join(found.notes)
    for words in (
        "5 images are fewer than the 12 features, so their covariance is singular (rank 4)",
        "score_squeezenet is left out: 5 images cannot be divided into 6 parts",
        "kernel_squeezenet is left out: it draws subsets of 20 images, and there are 5",
        "density_squeezenet, coverage_squeezenet: left out, since 5 images have no 5 neighbors each",
    ):
        assert words in notes
    shutil.rmtree(tmp_path)
    write_noise(tmp_path, count=1)
    with pytest.raises(SmaltiError, match="a covariance needs at least 2 images, there is 1"):
        measured(tmp_path, folders[1])


def test_a_corrupt_image_is_left_out_and_printed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "damaged")
    (tmp_path / "damaged" / "007.png").write_bytes((folders[0] / "007.png").read_bytes()[:60])
    shutil.copytree(folders[0], tmp_path / "without")
    (tmp_path / "without" / "007.png").unlink()
    requested = "features.scores=[frechet,spatial_frechet,precision,density]"  # parts and subsets go by indices
    found, without = (measured(tmp_path / name, folders[1], requested) for name in ("damaged", "without"))
    assert found.scores == pytest.approx(without.scores, rel=1e-9)
    assert found.samples["images"] == 39
    assert list(found.samples["left_out"]) == ["007.png"]
    assert any(note.startswith("samples: 1 of 40 images was skipped as damaged: 007.png") for note in found.notes)


def test_unequal_sizes_are_reported_and_can_be_made_equal(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write_noise(tmp_path, count=30, size=(24, 24))
    sizes = any(
        "the samples are 24x24 and the reference 16x16" in note for note in measured(tmp_path, folders[1]).notes
    )
    assert sizes
    write_noise(tmp_path / "more", count=3, size=(10, 30))
    found = measured(tmp_path, folders[1])
    assert any("samples: the images have 2 different sizes, from 10x30 to 24x24" in note for note in found.notes)
    alike = measured(tmp_path, folders[1], "samples.size=[16,16]")
    assert alike.samples["sizes"] == [[16, 16]]
    assert any("samples: 3 images were smaller than the size and enlarged" in note for note in alike.notes)


def test_how_samples_were_made_is_read_from_them(folders: tuple[Path, Path], tmp_path: Path) -> None:
    for number in range(8):
        message = {"command": "sample", "top_k": 5, "seed": number, "label": str(number % 2)}
        save_png(tmp_path / f"{number}.png", np.full((16, 16, 3), 20 * number, np.uint8), settings=message)
    assert measured(tmp_path, folders[1]).samples["made_by"] == {"command": "sample", "top_k": 5}
    save_png(tmp_path / "9.png", np.zeros((16, 16, 3), np.uint8), settings={"top_k": 7})
    found = measured(tmp_path, folders[1])
    assert found.samples["made_by"] == {}
    assert "the samples' files say that they were made with different settings" in found.notes


def test_missing_weights_are_a_sentence(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    forbid_downloads(monkeypatch, tmp_path)
    for name in ("folder-vs-folder", "folder-vs-folder-squeezenet"):
        with pytest.raises(SmaltiError, match=r"is needed .* SMALTI_OFFLINE forbids the download\. Get it from https"):
            measure_sets(open_source(folders[0]), open_source(folders[1]), protocol=SET_PROTOCOLS[name], device=CPU)


# --- statistics as files -------------------------------------------------------------------------------------------


def gathered(folder: Path) -> Statistics:
    """The statistics of a folder, as the protocol gathers them."""
    arrays = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])
    accumulator = StatisticsAccumulator(Means(), protocol().features, total=len(arrays), score=False, device=CPU)
    accumulator.update(torch.from_numpy(arrays).permute(0, 3, 1, 2), torch.arange(len(arrays)))
    return accumulator.statistics()


def test_statistics_are_kept_and_read_again(folders: tuple[Path, Path], tmp_path: Path) -> None:
    cache = tmp_path / "kept.npz"
    fresh = measured(*folders, statistics=cache)
    reported: list[int] = []
    again = measured(*folders, statistics=cache, progress=lambda done, total: reported.append(total))
    as_reference = measured(folders[0], read_statistics(cache))
    assert set(reported) == {40}, "the reference's images were not looked at"
    assert fresh.scores == again.scores == as_reference.scores
    assert fresh.notes == again.notes == as_reference.notes
    for found in (again, as_reference):
        assert {key: found.data[key] for key in ("name", "identity", "images")} == {
            key: fresh.data[key] for key in ("name", "identity", "images")
        }
    fewer = measured(*folders, "features.scores=[frechet]", statistics=cache)
    assert fewer.scores["frechet_squeezenet"] == fresh.scores["frechet_squeezenet"]
    with np.load(cache) as file:
        assert file["mu"].shape == (12,)
        assert file["sigma"].shape == (12, 12)
        assert file["mu_s"].shape == (27,)
        features = features_of(folders[1]).double().numpy()
        assert np.allclose(file["mu"], features.mean(0))
        assert np.allclose(file["sigma"], np.cov(features, rowvar=False))


def test_other_statistics_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    cache = tmp_path / "kept.npz"
    measured(*folders, statistics=cache)
    for change, sentence in (
        ("reference.size=[8,8]", r"images is .*None.* there and .*\[8, 8\].* here"),
        ("features.kept=30", "kept is 10000 there and 30 here"),
        ("features.network=inception", "network is 'squeezenet' there and 'inception' here"),
    ):
        with pytest.raises(SmaltiError, match=sentence):
            measured(*folders, change, statistics=cache)
        with pytest.raises(SmaltiError, match=sentence):
            measured(folders[0], read_statistics(cache), change)
    with pytest.raises(
        SmaltiError, match=r"kept\.npz holds other statistics: name is 'reference' there and 'samples' here"
    ):
        measured(folders[0], folders[0], statistics=cache)
    np.savez(cache, mu=np.zeros(12), sigma=np.eye(12))
    with pytest.raises(SmaltiError, match="was not written by smalti; give it as the reference itself"):
        measured(*folders, statistics=cache)


def test_statistics_of_another_program(folders: tuple[Path, Path], tmp_path: Path) -> None:
    kept = gathered(folders[1])
    np.savez(tmp_path / "foreign.npz", mu=kept.pool.mean.numpy(), sigma=kept.pool.covariance.numpy())
    found = measured(folders[0], read_statistics(tmp_path / "foreign.npz"))
    assert set(found.scores) == {"frechet_squeezenet", "score_squeezenet"}
    assert found.scores["frechet_squeezenet"] == pytest.approx(
        frechet(gathered(folders[0]).pool, kept.pool).value, rel=1e-9
    )
    for words in (
        "statistics are of another program",
        "spatial_frechet_squeezenet is left out: the reference file has no mu_s and sigma_s",
        "left out, since the reference holds no features of single images",
    ):
        assert any(words in note for note in found.notes), found.notes
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(SmaltiError, match="statistics of 12 and of 2048 features cannot be compared"):
        measured(folders[0], read_statistics(tmp_path / "wide.npz"))


def arrays_of(folder: Path) -> npt.NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_adm_files(folders: tuple[Path, Path], tmp_path: Path, save: Any) -> None:
    """FID goes by the statistics in the file, precision by the images in it, which are others."""
    whole, images = gathered(folders[1]), arrays_of(folders[1])[:50]
    assert whole.spatial is not None
    path = tmp_path / "reference.npz"
    save(
        path, images, mu=whole.pool.mean.numpy(), sigma=whole.pool.covariance.numpy(),
        mu_s=whole.spatial.mean.numpy(), sigma_s=whole.spatial.covariance.numpy(),
    )  # fmt: skip
    save(tmp_path / "samples.npz", arrays_of(folders[0]))
    assert holds_statistics(path)
    assert not holds_statistics(tmp_path / "samples.npz")
    found = measured(tmp_path / "samples.npz", read_statistics(path))
    plain = measured(*folders)
    for name in ("frechet_squeezenet", "spatial_frechet_squeezenet"):
        assert found.scores[name] == pytest.approx(plain.scores[name], rel=1e-9)
    close = manifold(features_of(folders[0]), features_of(folders[1])[:50])
    assert found.scores["precision_squeezenet"] == close.precision
    assert len(found.scores) == 8


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK no zip file")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    np.savez(tmp_path / "float.npz", np.zeros((2, 8, 8, 3)))
    for read, name, sentence in (
        (read_statistics, "gone.npz", "there is no file"),
        (read_statistics, "broken.npz", r"cannot be read as an \.npz file"),
        (read_statistics, "other.npz", "mu and sigma are needed, and it has weights"),
        (open_images, "broken.npz", r"cannot be read as an \.npz file"),
        (open_images, "other.npz", "has no array arr_0"),
        (open_images, "float.npz", r"arr_0 is float64 of shape \(2, 8, 8, 3\); samples are uint8"),
    ):
        with pytest.raises(SmaltiError, match=sentence):
            read(tmp_path / name)
    np.savez(tmp_path / "said.npz", mu=np.zeros(3), sigma=np.eye(3), smalti=np.array("{no json"))
    with pytest.raises(SmaltiError, match="its metadata is not JSON"):
        read_statistics(tmp_path / "said.npz")


def test_nothing_is_lost_in_a_file(folders: tuple[Path, Path], tmp_path: Path) -> None:
    kept = replace(gathered(folders[0]), made={"network": "squeezenet"}, notes=("a note",))
    write_statistics(tmp_path / "kept.npz", kept)
    read = read_statistics(tmp_path / "kept.npz")
    assert (read.made, read.notes, read.pool.images) == (kept.made, kept.notes, 40)
    assert torch.equal(read.pool.covariance, kept.pool.covariance)
    assert kept.features is not None
    assert read.features is not None
    assert torch.equal(read.features, kept.features)


# --- how images are taken ----------------------------------------------------------------------------------------


def noise(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)


def adm_crop(array: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """ADM's rule for squares, in its own order of steps."""
    image = Image.fromarray(array)
    while min(*image.size) >= 2 * size:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    wanted = (round(image.size[0] * scale), round(image.size[1] * scale))
    whole = np.array(image.resize(wanted, resample=Image.Resampling.BICUBIC))
    top, left = (whole.shape[0] - size) // 2, (whole.shape[1] - size) // 2
    return whole[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(70, 93), (64, 64), (33, 40), (31, 50), (16, 90)])
def test_halving_is_adms_rule(shape: tuple[int, int]) -> None:
    array = noise(*shape, 3)
    assert np.array_equal(scale_and_crop(array, size=(16, 16), filter="halving"), adm_crop(array, 16))


@pytest.mark.parametrize("name", list(FILTERS))
def test_every_filter_gives_the_size(name: Any) -> None:
    for array in (noise(40, 50, 3), noise(9, 12, 1), noise(30, 60, 1).astype(np.uint16) * 257):
        made = scale_and_crop(array, size=(12, 20), filter=name)
        assert made.shape == (12, 20, array.shape[2])
        assert made.dtype == array.dtype
        assert abs(float(made.mean()) - float(array.mean())) < 0.1 * np.iinfo(array.dtype).max
    same = noise(12, 20, 3)
    assert np.array_equal(scale_and_crop(same, size=(12, 20), filter=name), same)


def test_lanczos_is_that_of_training() -> None:
    array = noise(50, 41, 3)
    expected = center_crop(resize_to_cover(array, (16, 16)), (16, 16))
    assert np.array_equal(scale_and_crop(array, size=(16, 16), filter="lanczos"), expected)


def taken(source: Source, **settings: Any) -> PreparedImages:
    return PreparedImages(source, ImageProtocol(**settings), channels=3)


def test_each_image_comes_once_with_its_place(tmp_path: Path) -> None:
    write_noise(tmp_path, count=50)
    write_noise(tmp_path / "other", count=37, size=(8, 8), seed=3)
    source = open_source(tmp_path)
    for batch in (1, 5, 64):
        some = taken(source)
        seen: dict[int, npt.NDArray[np.uint8]] = {}
        for indices, pixels in some.batches(batch):
            assert len(indices) == len(pixels) <= batch
            seen.update(zip(indices.tolist(), pixels, strict=True))
        assert sorted(seen) == list(range(87))
        assert all(np.array_equal(seen[place], source.read(source.images[place], 3)) for place in seen)
        assert some.sizes == {(16, 16), (8, 8)}


def test_a_count_is_spread_over_the_source(tmp_path: Path) -> None:
    source = open_source(write_noise(tmp_path, count=10))
    assert [each.key for each in taken(source, count=4).images] == ["000.png", "002.png", "005.png", "007.png"]
    with pytest.raises(SmaltiError, match=r"the protocol takes 11 images and .* has 10"):
        taken(source, count=11)
    single = open_source(write_noise(tmp_path / "one", count=1))
    with pytest.raises(SmaltiError, match="holds a single image, and none is held out"):
        taken(single, held_out=0.5)


def test_a_set_without_a_readable_image(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(SmaltiError, match=r"none of the 2 images in .* can be read; the first: a\.png is empty"):
        list(taken(open_source(tmp_path)).batches(4))


def test_another_image_is_held_out_where_all_held_out_ones_are_damaged(tmp_path: Path) -> None:
    """Training took the next one, and evaluation ended: none of the 1 images could be read."""
    source = open_source(write_noise(tmp_path, count=10))
    order = [source.images[place].key for place in held_out_order(source.images)]
    for key in order[:2]:
        (tmp_path / key).write_bytes(b"")
    some = taken(source, held_out=0.001)
    assert [len(indices) for indices, _ in some.batches(4)] == [1]
    assert [each.key for each in some.images] == [order[0], order[2]]
    assert list(some.left_out) == [order[0]]
    for key in order[2:]:
        (tmp_path / key).write_bytes(b"")
    with pytest.raises(SmaltiError, match=r"none of the 1 images in .* can be read"):
        list(taken(source, held_out=0.001).batches(4))


def test_a_reader_that_is_left_early_stops(tmp_path: Path) -> None:
    batches = taken(open_source(write_noise(tmp_path, count=200, size=(4, 4)))).batches(2)
    assert len(next(batches).indices) == 2
    before = threading.active_count()
    del batches
    assert threading.active_count() < before, "the readers have ended"


def test_identity_is_of_names_and_lengths(tmp_path: Path) -> None:
    first, copy = write_noise(tmp_path / "first", count=4), tmp_path / "copy"
    shutil.copytree(first, copy)
    assert identity(open_source(first)) == identity(open_source(copy))
    (copy / "000.png").write_bytes((copy / "001.png").read_bytes() + b"0")
    assert identity(open_source(first)) != identity(open_source(copy))
    (first / "000.png").rename(first / "zero.png")
    assert identity(open_source(first)) != identity(open_source(copy))
    json.dumps(taken(open_source(first)).described())
