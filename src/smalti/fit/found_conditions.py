"""The conditions in and beside a folder of images: classes, captions, boxes, label maps, depths.

What is found is usable if it is known of every image; otherwise the reason is kept, to be shown. H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import Natural, settings
from smalti.data.annotations.annotation_files import holds_annotations, read_annotations
from smalti.data.annotations.objects import paired_annotations
from smalti.data.caption_files import captions_among
from smalti.data.file_types import Depth, FileType, Labels
from smalti.data.image_entries import ImageEntry
from smalti.data.paired import paired_entries
from smalti.data.sources import Source, open_source
from smalti.images.io import DamagedImage, read_size
from smalti.images.label_maps import read_depth, read_labels

CONDITIONS = ("labels", "text", "layout", "segmentation", "depth")
"""All that can be found, in the order in which their codes precede those of an image."""
SEGMENTATIONS = ("segmentations", "segmentation", "masks", "labels", "label_maps", "annotations")
DEPTHS = ("depths", "depth")
"""Names of folders beside that of the images."""
IMAGE_FOLDERS = ("images", "JPEGImages")
"""Names of the folder of the images, where a folder holds it and what belongs to it."""
SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test"))
"""Names of subfolders that are parts of a data set, and no classes."""
MAX_LABELS = 256
UNLABELED = 255
DEPTHS_READ = 64
"""So many depth maps, evenly spread, are read to see that they can be; of label maps all, for their numbers."""


@settings
class FoundCondition:
    """A condition of the images."""

    name: str
    """One of `CONDITIONS`, as for `smalti encode --condition`."""
    path: str = ""
    """Where its files are; "" for among the images."""
    about: str
    """What was found, in words."""
    problem: str = ""
    """Why it cannot be used, in words; "" where it can."""
    channels: Natural = 0
    """Labels in the label maps, with one for what has no label."""
    unlabeled: Annotated[int, Field(ge=0, le=65535)] | None = None
    """The number in the label maps that stands for no label."""

    @property
    def has_tokenizer(self) -> bool:
        """Whether it is a map with a tokenizer of its own."""
        return self.name in ("segmentation", "depth")


def images_folder(path: Path) -> Path:
    """What a user gives -> the path of the images: a folder that holds `images` and other folders means the former."""
    if path.is_dir():
        for name in IMAGE_FOLDERS:
            if (path / name).is_dir() and _is_data_set(path):
                return path / name
    return path


def _is_data_set(folder: Path) -> bool:
    """Whether what is in a folder besides its images describes them."""
    others = ("scenes.json", *SEGMENTATIONS, *DEPTHS)
    return any((folder / name).exists() for name in others) or holds_annotations(folder)


def find_conditions(source: Source, *, progress: Callable[[int, int], object]) -> tuple[FoundCondition, ...]:
    """Images -> their conditions, in the order of `CONDITIONS`. `progress` is called with maps read and their total."""
    found = [_labels(source), _captions(source)]
    if source.path.is_dir():
        home = source.path.resolve().parent
        found.append(_boxes(source, (source.path, home, home / "annotations")))
        maps = (_MapFolders("segmentation", Labels(), SEGMENTATIONS), _MapFolders("depth", Depth(), DEPTHS))
        found += [_first_of(source, home, each, progress) for each in maps]
    return tuple(each for each in found if each is not None)


def chosen_conditions(found: Sequence[FoundCondition], *, without: Sequence[str]) -> tuple[FoundCondition, ...]:
    """Conditions that were found -> those to train on. Raises `SmaltiError` for a name in `without` that was not
    found."""
    names = [each.name for each in found]
    for name in without:
        if name not in names:
            known = names if names else CONDITIONS
            reason = "was not found" if name in CONDITIONS else "is not a condition"
            raise SmaltiError(f"--without {name}: this condition {reason} here; {suggestion(name, known)}")
    return tuple(each for each in found if not each.problem and each.name not in without)


def _labels(source: Source) -> FoundCondition | None:
    if not source.labels:
        return None
    count = len(source.labels)
    found = FoundCondition(name="labels", about=f"{count} subfolder{'s' * (count != 1)}: {_listed(source.labels)}")
    missing = sum(image.label is None for image in source.images)
    if missing:
        return _unusable(found, f"{missing:,} of {len(source.images):,} images are in no subfolder")
    if SPLITS.issuperset(label.lower() for label in source.labels):
        return _unusable(found, "these are names of parts of a data set, not of classes")
    if count == 1:
        return _unusable(found, "all images are in one class")
    return found


def _captions(source: Source) -> FoundCondition | None:
    try:
        captions = captions_among(source)
    except SmaltiError as error:
        return FoundCondition(name="text", about="captions", problem=str(error))
    if not captions:
        return None
    count = sum(len(each) for each in captions.values())
    return FoundCondition(name="text", about=f"{count:,} captions of {len(captions):,} images")


def _boxes(source: Source, folders: Sequence[Path]) -> FoundCondition | None:
    folder = next((folder for folder in folders if folder.is_dir() and holds_annotations(folder)), None)
    if folder is None:
        return None
    try:
        annotated = read_annotations(folder)
        objects = sum(map(len, paired_annotations(source.images, annotated)))
    except SmaltiError as error:
        return FoundCondition(name="layout", path=str(folder), about="boxes", problem=str(error))
    about = f"{objects:,} boxes of {len(annotated.classes)} classes: {_listed(annotated.classes)}"
    return FoundCondition(name="layout", path=str(folder), about=about)


class _MapFolders(NamedTuple):
    """A kind of maps in a folder beside that of the images."""

    name: str
    file_type: FileType
    folders: Sequence[str]


def _first_of(
    source: Source, home: Path, maps: _MapFolders, progress: Callable[[int, int], object]
) -> FoundCondition | None:
    """The first folder of maps for all images; without one, the first folder of some maps, with the reason."""
    refused: FoundCondition | None = None
    for name in maps.folders:
        folder = home / name
        if not folder.is_dir() or folder.samefile(source.path):
            continue
        try:
            files = open_source(folder, file_type=maps.file_type)
        except SmaltiError:  # it holds other things
            continue
        found = FoundCondition(name=maps.name, path=str(folder), about=f"{len(files.images):,} {maps.file_type.files}")
        try:
            pairs = list(zip(source.images, paired_entries(source.images, files), strict=True))
            return (
                _segmentation(found, source, files, pairs, progress)
                if maps.name == "segmentation"
                else (_depth(found, source, files, pairs, progress))
            )
        except SmaltiError as error:
            refused = refused or _unusable(found, str(error))
    return refused


_Pairs = Sequence[tuple[ImageEntry, ImageEntry]]


def _segmentation(
    found: FoundCondition, source: Source, files: Source, pairs: _Pairs, progress: Callable[[int, int], object]
) -> FoundCondition:
    numbers: set[int] = set()
    for array in _arrays(source, files, pairs, read_labels, progress):
        numbers.update(np.unique(array).tolist())
    missing = UNLABELED in numbers and max(numbers - {UNLABELED}, default=0) < UNLABELED - 1
    top = max(numbers - {UNLABELED} if missing else numbers, default=0)
    channels = top + 1 + missing
    about = f"{found.about} with the labels 0 to {top}" + f", and {UNLABELED} for none" * missing
    if channels < 2:
        raise SmaltiError(f"all pixels of the label maps in {files.path} have the label {top}")
    if channels > MAX_LABELS:
        raise SmaltiError(
            f"the label maps in {files.path} have labels up to {top}, and {MAX_LABELS} are supported here"
        )
    return FoundCondition(
        name=found.name,
        path=found.path,
        about=about,
        channels=channels,
        unlabeled=UNLABELED if missing else None,
    )


def _depth(
    found: FoundCondition, source: Source, files: Source, pairs: _Pairs, progress: Callable[[int, int], object]
) -> FoundCondition:
    some = [pairs[index * len(pairs) // DEPTHS_READ] for index in range(DEPTHS_READ)]
    for _ in _arrays(source, files, some if len(pairs) > DEPTHS_READ else pairs, read_depth, progress):
        pass
    return found


def _arrays(
    source: Source,
    files: Source,
    pairs: _Pairs,
    read: Callable[..., npt.NDArray[Any]],
    progress: Callable[[int, int], object],
) -> Iterator[npt.NDArray[Any]]:
    """The arrays of maps. Raises `SmaltiError` if one cannot be read or is not as large as its image."""
    for done, (image, entry) in enumerate(pairs, 1):
        array = read(files.stream(entry), name=str(files.path / entry.key))
        try:
            height, width = read_size(source.stream(image), name=image.key)
        except DamagedImage:  # left out of the training, with its map
            continue
        if array.shape[:2] != (height, width):
            raise SmaltiError(
                f"{files.path / entry.key} is {array.shape[0]}x{array.shape[1]} pixels (height x width), and its image "
                f"{height}x{width}"
            )
        yield array
        progress(done, len(pairs))


def _unusable(found: FoundCondition, problem: str) -> FoundCondition:
    return FoundCondition(name=found.name, path=found.path, about=found.about, problem=problem)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown}, ..." if len(names) > 8 else shown
