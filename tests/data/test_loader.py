"""Crops of images, what happens when some are damaged, and the stream of batches that training reads."""

from __future__ import annotations

import logging
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from smalti.core.errors import SmaltiError
from smalti.data.config import ImageSettings
from smalti.data.crops import CenterCrop, Crop, RandomCrop, uniform_numbers
from smalti.data.damage import DamageRecord
from smalti.data.loader import Batch, Crops, Example, batches, evenly_spaced_batch, first_readable, in_order
from smalti.data.sources import held_out_order, open_source, split
from smalti.data.splits import move_to_held_out
from smalti.data.splits import split_crops as parts_to_train
from smalti.images.io import DamagedImage, to_tensor
from smalti.images.resizing import center_crop
from tests.data.test_sources import fill, make_image, zipped


def made(
    folder: Path,
    good: int,
    *,
    bad: Sequence[int] = (),
    size: tuple[int, int] = (16, 16),
    crop: Crop | None = None,
    cache_mib: int = 64,
    seed: int = 0,
) -> Crops:
    """A data set of numbered images, those in `bad` damaged."""
    if not folder.exists():
        fill(folder, {f"{n:03d}.png": b"damaged" if n in bad else make_image(n) for n in range(good + len(bad))})
    source = open_source(folder)
    crop = crop if crop is not None else RandomCrop()
    return Crops(source, source.images, size=size, channels=3, crop=crop, seed=seed, cache_mib=cache_mib)


# ------------------------------------------------------------------------------------------------------------ crops


def test_center_crops_are_the_middle_of_the_fitted_image(tmp_path: Path) -> None:
    crops = made(tmp_path / "p", 2, size=(24, 16), crop=CenterCrop())
    image, label = crops[1, 77]
    assert image.dtype == torch.float32
    assert label.item() == -1
    expected = center_crop(crops.source.read(crops.images[1], 3), (24, 16))
    assert torch.equal(image, to_tensor(expected))


def test_random_crops_depend_on_seed_and_draw_alone(tmp_path: Path) -> None:
    crops = made(tmp_path / "p", 1, crop=RandomCrop(zoom=(1, 2)))
    images = [crops[0, draw].image for draw in range(20)]
    assert {tuple(image.shape) for image in images} == {(3, 16, 16)}
    assert len({image.numpy().tobytes() for image in images}) == 20
    again = made(tmp_path / "p", 1, crop=RandomCrop(zoom=(1, 2)), cache_mib=0)
    assert all(torch.equal(again[0, draw].image, images[draw]) for draw in reversed(range(20)))
    other = made(tmp_path / "p", 1, crop=RandomCrop(zoom=(1, 2)), seed=1)
    assert not torch.equal(other[0, 0].image, images[0])


def test_random_crops_mirror_half_and_reach_both_ends(tmp_path: Path) -> None:
    fill(tmp_path / "p", {"a.png": make_image(0, 16, 19)})
    crops = made(tmp_path / "p", 1)
    firsts, mirrored = set(), 0
    for draw in range(200):
        blue = ((crops[0, draw].image[2, 0] + 1) * 127.5).round().int() // 8
        mirrored += int(blue[0] > blue[1])
        firsts.add(int(blue.min()))
    assert firsts == {0, 1, 2, 3}
    assert 70 < mirrored < 130


def test_without_flip_nothing_is_mirrored(tmp_path: Path) -> None:
    plain, mirrored = made(tmp_path / "p", 1, crop=RandomCrop(flip=False)), made(tmp_path / "p", 1)
    pairs = [(plain[0, draw].image, mirrored[0, draw].image) for draw in range(40)]
    assert all((image[2].diff(dim=1) > 0).all() for image, _ in pairs)
    assert all(torch.equal(a, b) or torch.equal(a, b.flip(2)) for a, b in pairs)  # the window is the same


def test_zoom_decides_how_much_of_the_image_is_seen(tmp_path: Path) -> None:
    fill(tmp_path / "p", {"a.png": make_image(0, 31, 31)})
    seen = []
    for zoom in ((1.0, 1.0), (2.0, 2.0)):
        blue = made(tmp_path / "p", 1, crop=RandomCrop(zoom=zoom))[0, 3].image[2, 8]
        seen.append(float(blue.max() - blue.min()))
    assert seen[1] < 0.6 * seen[0]


@pytest.mark.parametrize("zoom", [(0.5, 1.0), (2.0, 1.5)])
def test_impossible_zooms_are_reported(zoom: tuple[float, float]) -> None:
    with pytest.raises(SmaltiError, match=f"not {zoom[0]} to {zoom[1]}"):
        RandomCrop(zoom=zoom)


def test_labels_are_places_in_the_labels_of_the_source(tmp_path: Path) -> None:
    fill(tmp_path / "p", {name: make_image(1) for name in ("a.png", "cat/a.png", "dog/a.png")})
    crops = made(tmp_path / "p", 3)
    assert [crops[index, 0].label.item() for index in range(3)] == [-1, 0, 1]


def test_chances_are_uniform_and_fixed() -> None:
    """Streams are resumed across versions: these numbers never change."""
    assert uniform_numbers(0, 0) == pytest.approx((0.57499730, 0.42243958, 0.08265593, 0.21453973), abs=1e-8)
    drawn = np.array([uniform_numbers(5, draw) for draw in range(4000)])
    assert np.abs(drawn.mean(0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.06
    assert 0 <= drawn.min() < 0.01
    assert 0.99 < drawn.max() < 1


def test_images_are_decoded_once_when_they_fit_in_memory(tmp_path: Path) -> None:
    cached, uncached = made(tmp_path / "p", 3), made(tmp_path / "p", 3, cache_mib=0)
    for crops in (cached, uncached):
        for index in range(3):
            crops[index, index]
    for file in (tmp_path / "p").iterdir():
        file.unlink()
    assert cached.example(1, 9).image.shape == (3, 16, 16)
    with pytest.raises(DamagedImage, match=r"001\.png is missing"):
        uncached.example(1, 9)
    assert list(uncached.damaged) == ["001.png"]  # though it was good before


# ----------------------------------------------------------------------------------------------------------- damage


def test_a_damaged_image_is_named_once_and_the_next_good_one_takes_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crops = made(tmp_path / "p", 8, bad=(3, 4), crop=CenterCrop())
    with caplog.at_level(logging.WARNING, logger="smalti"):
        for _ in range(2):
            assert [red(crops[index, 0]) for index in range(10)] == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9]
    assert [record.getMessage().split(" is ")[0] for record in caplog.records] == [
        "damaged image left out: 003.png",
        "damaged image left out: 004.png",
    ]
    assert all(record.getMessage().endswith(f"(in {tmp_path / 'p'})") for record in caplog.records)
    assert list(crops.damaged) == ["003.png", "004.png"]
    assert crops.damaged["003.png"].startswith("is not an image")
    with pytest.raises(DamagedImage, match=r"003\.png is not an image"):
        crops.example(3, 0)


def red(example: Example) -> int:
    return int(((example.image[0, 0, 0] + 1) * 127.5).round())


def test_after_the_last_image_comes_the_first(tmp_path: Path) -> None:
    assert red(made(tmp_path / "p", 3, bad=(3,), crop=CenterCrop())[3, 0]) == 0


def test_when_all_are_damaged_reading_ends(tmp_path: Path) -> None:
    crops = made(tmp_path / "p", 0, bad=(0, 1), crop=CenterCrop())
    for _ in range(2):
        with pytest.raises(SmaltiError, match=r"2 of the 2 images looked at in .* are damaged: 000\.png is not an i"):
            crops[0, 0]


def test_more_than_a_tenth_damaged_ends_reading(tmp_path: Path) -> None:
    few = made(tmp_path / "few", 27, bad=(0, 1, 2))  # a tenth, not more
    assert sum(len(batch.labels) for batch in in_order(few, batch=8)) == 30
    many = made(tmp_path / "many", 20, bad=(0, 7, 9, 11))
    with pytest.raises(SmaltiError, match=r"4 of the 24 images looked at .* 009\.png is not .*; \.\.\.; fix or remov"):
        list(in_order(many, batch=8))


def test_a_bad_beginning_is_not_yet_a_verdict(tmp_path: Path) -> None:
    fill(tmp_path / "p", {f"{n:03d}.png": b"damaged" if n < 5 else make_image(n) for n in range(120)})
    assert red(made(tmp_path / "p", 0)[0, 0]) == 5


def parts_of(folder: Path, held_out: Sequence[int], *, good: int, bad: Sequence[int]) -> tuple[Crops, Crops]:
    """Two parts of one data set, with one record of damage."""
    whole = made(folder, good, bad=bad, crop=CenterCrop())
    images = whole.images
    some = [make_image for number, make_image in enumerate(images) if number not in held_out]
    record = DamageRecord(whole.source, [len(some), len(held_out)])
    return whole.of(some, record=(record, 0)), whole.of([images[n] for n in held_out], record=(record, 1))


def test_parts_of_one_source_are_scored_together(tmp_path: Path) -> None:
    """The only held-out image was damaged, one of fourteen: all of its part were, and training ended."""
    training, held_out = parts_of(tmp_path / "p", [4], good=13, bad=(4,))
    with pytest.raises(DamagedImage, match=r"004\.png is not an image"):
        held_out.example(0, 0)
    assert first_readable(held_out) is None
    assert sum(len(batch.labels) for batch in in_order(training, batch=4)) == 13
    assert list(held_out.damaged) == ["004.png"]
    assert not training.damaged
    few, more = parts_of(tmp_path / "q", [0, 1, 2], good=27, bad=(0, 1, 2))  # a tenth of all
    assert [first_readable(part) for part in (few, more)] == [0, None]
    assert sum(len(batch.labels) for batch in in_order(few, batch=4)) == 27


def test_damage_in_both_parts_adds_up(tmp_path: Path) -> None:
    training, held_out = parts_of(tmp_path / "p", [0, 1], good=8, bad=(0, 1, 5))
    assert first_readable(held_out) is None
    with pytest.raises(SmaltiError, match=r"3 of the 11 images looked at in .* are damaged: 005\.png .*; \.\.\.; fix"):
        list(in_order(training, batch=4))


def test_a_training_image_can_be_held_out_too(tmp_path: Path) -> None:
    training, held_out = move_to_held_out(parts_of(tmp_path / "p", [4], good=4, bad=(4,)), 2)
    assert [each.key for each in training.images] == ["000.png", "001.png", "003.png"]
    assert [each.key for each in held_out.images] == ["004.png", "002.png"]
    assert first_readable(held_out) == 1
    assert [red(example) for example in (held_out[0, 0], held_out[1, 1])] == [2, 2]


@pytest.mark.parametrize("bad", [1, 2])
def test_some_held_out_image_can_be_read(bad: int, tmp_path: Path) -> None:
    names = [f"{n:03d}.png" for n in range(14)]
    fill(tmp_path / "p", {name: make_image(n) for n, name in enumerate(names)})
    source = open_source(tmp_path / "p")
    order = [source.images[number].key for number in held_out_order(source.images)]
    for name in order[:bad]:
        (tmp_path / "p" / name).write_bytes(b"")
    settings = ImageSettings(size=(16, 16), validation=bad / 14)
    _, before = split(source.images, validation=bad / 14)
    training, held_out = parts_to_train(source, settings, channels=3, seed=0)
    extra = [] if len(before) > bad else [order[bad]]
    assert [each.key for each in held_out.images] == [*(each.key for each in before), *extra]
    assert len(training) + len(held_out) == 14
    assert first_readable(held_out) is not None


def test_images_far_too_small_count_as_damaged(tmp_path: Path) -> None:
    sizes = {"a.png": (32, 32), "b.png": (7, 20), "c.png": (8, 8), "d.png": (1, 1)}
    fill(tmp_path / "p", {name: make_image(n, *size) for n, (name, size) in enumerate(sizes.items())})
    crops = made(tmp_path / "p", 0, crop=CenterCrop())
    assert [red(crops[index, 0]) for index in range(4)] == [0, 2, 2, 0]
    assert crops.damaged["d.png"] == (
        "is 1x1 pixels, too small for size 16x16; use images of at least 8x8 pixels or a smaller size"
    )
    assert list(crops.damaged) == ["b.png", "d.png"]


# ----------------------------------------------------------------------------------------------------------- stream


class Numbers:
    """Examples that say which index and draw they are."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int], /) -> tuple[Tensor, ...]:
        return torch.tensor(key[0]), torch.tensor(key[1])

    def batch_of(self, *stacked: Tensor) -> Batch:
        return Batch(*stacked)


def flat(stream: Iterator[Batch], count: int) -> list[tuple[int, int]]:
    """The first `count` batches as (index, draw) pairs."""
    return [
        pair
        for batch in islice(stream, count)
        for pair in zip(batch.images.tolist(), batch.labels.tolist(), strict=True)
    ]


def test_every_epoch_is_another_permutation() -> None:
    stream = flat(batches(Numbers(10), batch=4, seed=0, start=0), 10)
    assert [draw for _, draw in stream] == list(range(40))
    epochs = [[index for index, _ in stream[first : first + 10]] for first in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert flat(batches(Numbers(10), batch=4, seed=1, start=0), 10) != stream


def test_the_order_is_what_it_always_was() -> None:
    """Runs are resumed across versions: this order never changes."""
    stream = flat(batches(Numbers(8), batch=8, seed=0, start=0), 2)
    assert [index for index, _ in stream] == [2, 6, 0, 3, 4, 5, 1, 7, 5, 3, 4, 1, 7, 6, 2, 0]


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 40))
def test_resuming_goes_on_where_the_stream_was(count: int, batch: int, start: int) -> None:
    whole = flat(batches(Numbers(count), batch=1, seed=3, start=0), start + 2 * batch)
    assert flat(batches(Numbers(count), batch=batch, seed=3, start=start), 2) == whole[start:]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_share_out_every_batch(world: int) -> None:
    whole = flat(batches(Numbers(7), batch=6, seed=3, start=5), 4)
    for rank in range(world):
        part = flat(batches(Numbers(7), batch=6, seed=3, start=5, rank=rank, world=world), 4)
        assert part == [pair for n, pair in enumerate(whole) if n % 6 % world == rank]


def test_impossible_batches_are_reported() -> None:
    with pytest.raises(SmaltiError, match="a batch of 5 cannot be shared out evenly to 2 devices; use a multiple of 2"):
        batches(Numbers(4), batch=5, seed=0, start=0, rank=0, world=2)
    with pytest.raises(SmaltiError, match="a batch of 0"):
        batches(Numbers(4), batch=0, seed=0, start=0)
    with pytest.raises(SmaltiError, match="there are no examples"):
        batches(Numbers(0), batch=4, seed=0, start=0)


def test_in_order_gives_every_example_once() -> None:
    parts = list(in_order(Numbers(7), batch=3))
    assert [len(part.labels) for part in parts] == [3, 3, 1]
    assert flat(iter(parts), 3) == [(n, n) for n in range(7)]
    assert list(in_order(Numbers(0), batch=3)) == []


def test_reading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(batches(made(tmp_path / "p", 4), batch=2, seed=0, start=0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a machine with one core
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    files = {f"{n:02d}.png": b"damaged" if n == 4 else make_image(n) for n in range(11)}
    source = open_source(zipped(tmp_path / "p.zip", files))

    def crops() -> Crops:
        return Crops(source, source.images, size=(16, 16), channels=3, crop=RandomCrop(zoom=(1, 1.5)), seed=0)

    source.read(source.images[0], 3)  # the file is open here already when the workers start
    with_workers = crops()
    stream = batches(with_workers, batch=5, seed=2, start=3, workers=2)
    found = list(islice(stream, 6))
    expected = list(islice(batches(crops(), batch=5, seed=2, start=3), 6))
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
    assert list(with_workers.damaged) == ["04.png"]  # though another process found it


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who sent a signal")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_worker_processes_outlive_foreign_signals_but_end_when_the_main_process_asks(tmp_path: Path) -> None:
    """A terminal or Slurm signals all processes at once; a dead worker would break the saving that the main one does.

    A worker that ignored every signal made the program wait for it forever at its end.
    """
    stream = batches(made(tmp_path / "p", 4), batch=2, seed=0, start=0, workers=1)
    next(stream)
    (worker,) = multiprocessing.active_children()
    for name in ("INT", "TERM"):
        subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    for _ in range(8):  # more than is read ahead
        assert next(stream).images.shape == (2, 3, 16, 16)
    worker.terminate()
    worker.join(20)
    assert worker.exitcode == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_errors_of_worker_processes_stay_sentences(tmp_path: Path) -> None:
    crops = made(tmp_path / "p", 0, bad=(0, 1))
    with pytest.raises(SmaltiError) as caught:
        next(batches(crops, batch=2, seed=0, start=0, workers=1))
    assert type(caught.value) is SmaltiError
    assert "Traceback" not in str(caught.value)
    assert "2 of the 2 images looked at" in str(caught.value)


def test_spread_takes_examples_from_all_over(tmp_path: Path) -> None:
    crops = made(tmp_path / "p", 9, crop=CenterCrop())
    assert torch.equal(evenly_spaced_batch(crops, 3).images, torch.stack([crops[n, n].image for n in (0, 3, 6)]))
    assert torch.equal(evenly_spaced_batch(crops, 20).images, next(in_order(crops, batch=9)).images)
