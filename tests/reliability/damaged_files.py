"""The kinds of files that smalti reads, each with a small whole one, how it is damaged, and what reads it."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from smalti.checkpoints.formats import FORMATS, read_foreign
from smalti.conditions.keypoints import Keypoints, KeypointsSettings
from smalti.conditions.layout import Layout
from smalti.conditions.layout_codes import LayoutSettings
from smalti.core.files import read_json
from smalti.core.settings import as_mapping, parse, read_yaml
from smalti.data.annotations.annotation_files import read_annotations
from smalti.data.caption_files import captions_among, read_captions
from smalti.data.code_shards import histogram, open_codes
from smalti.data.sources import open_source
from smalti.evaluation.feature_statistics import read_statistics
from smalti.evaluation.prepared_images import ArraySource
from smalti.generation.generation_checkpoint import SavedGeneration, read_generation, save_generation
from smalti.images.io import DamagedImage, read_covering, read_image, read_numbers, read_settings, save_png
from smalti.images.label_maps import read_depth, read_labels
from smalti.images.masks import read_mask
from smalti.images.png_stream import read_head
from smalti.pipeline import Pipeline
from smalti.tokenizer.vqgan import VQGAN
from smalti.training.config import PriorTraining, TokenizerTraining, resolve
from smalti.training.run_folder import RunFolder, read_metrics
from tests.checkpoints.test_llamagen import Tokenizer, random_weights, save, tokenizer_shapes
from tests.checkpoints.test_taming import gpt
from tests.checkpoints.test_taming import tokenizer as taming_tokenizer
from tests.reliability import damage
from tests.reliability.damage import Damage
from tests.small import RECIPE
from tests.small_pipeline import LABELS, pipeline

HEIGHT, WIDTH = 9, 12


class FileKind(NamedTuple):
    """`write` makes a folder with a whole `file` in it, whose bytes `damage` changes, and `read` reads that folder."""

    file: str
    write: Callable[[Path], object]
    damage: Damage
    read: Callable[[Path], object]


# --- images --------------------------------------------------------------------------------------------------------


def pixels(mode: str) -> Image.Image:
    """A small image with smooth and with noisy parts."""
    chance = np.random.RandomState(0)
    levels = np.clip(
        np.add.outer(np.arange(HEIGHT) * 20, np.arange(WIDTH) * 5) + chance.randint(0, 30, (9, 12)), 0, 255
    )
    image = Image.fromarray(levels.astype(np.uint8))
    if mode in ("I;16", "F"):
        return Image.fromarray(levels.astype(np.uint16 if mode == "I;16" else np.float32))
    return image.convert("RGB").convert(mode)


def image_kind(suffix: str, mode: str, **options: Any) -> FileKind:
    """A kind of image files, read in all the ways there are."""

    def write(folder: Path) -> None:
        pixels(mode).save(folder / f"image{suffix}", **options)

    def read(folder: Path) -> None:
        path = folder / f"image{suffix}"
        several(
            *(lambda channels=channels: read_image(path, channels=channels, name="image") for channels in (1, 3, 4)),
            lambda: read_covering(path, (4, 6), channels=3, name="image"),
            lambda: read_numbers(path, name="image"),
            lambda: read_labels(path, name="image"),
            lambda: read_depth(path, name="image"),
            lambda: read_mask(path, name="image"),
            lambda: read_settings(path),
            lambda: read_head(path),
        )

    return FileKind(f"image{suffix}", write, damage.png if suffix == ".png" else damage.any_bytes, read)


def several(*readers: Callable[[], object]) -> None:
    """All readers of a file; each may find it damaged."""
    for read in readers:
        try:
            read()
        except DamagedImage as error:
            check_sentence(error)


def check_sentence(error: Exception) -> None:
    """One line, of a length that can be read, without what moves a terminal's cursor."""
    text = str(error)
    assert text.strip(), repr(error)
    assert text.isprintable(), repr(text[:500])
    assert len(text) < 4000, repr(text[:500])


IMAGES = {
    "bmp": image_kind(".bmp", "RGB"),
    "bmp with a palette": image_kind(".bmp", "P"),
    "gif": image_kind(".gif", "P"),
    "gif of two frames": image_kind(".gif", "P", save_all=True, append_images=[pixels("L")]),
    "jpeg": image_kind(".jpg", "RGB", quality=90),
    "jpeg in progressive order": image_kind(".jpeg", "RGB", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
    "jpeg in gray": image_kind(".jfif", "L"),
    "jpeg of four inks": image_kind(".jpg", "CMYK"),
    "pbm": image_kind(".pbm", "1"),
    "pgm": image_kind(".pgm", "L"),
    "pgm of 16 bits": image_kind(".pgm", "I;16"),
    "ppm": image_kind(".ppm", "RGB"),
    "png": image_kind(".png", "RGB"),
    "png with opacity": image_kind(".png", "RGBA"),
    "png of 16 bits": image_kind(".png", "I;16"),
    "png with a palette": image_kind(".png", "P", transparency=3),
    "tiff": image_kind(".tif", "RGB"),
    "tiff of floats": image_kind(".tiff", "F"),
    "tiff of one bit": image_kind(".tiff", "1", compression="group4"),
    "tiff with deflate": image_kind(".tiff", "RGB", compression="tiff_deflate"),
    "tiff with lzw": image_kind(".tiff", "RGBA", compression="tiff_lzw"),
    "webp": image_kind(".webp", "RGB"),
    "webp without loss": image_kind(".webp", "RGBA", lossless=True),
    "avif": image_kind(".avif", "RGB"),
}


def _write_array(folder: Path) -> None:
    np.save(folder / "depth.npy", np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH))


def _write_own_png(folder: Path) -> None:
    save_png(folder / "made.png", np.asarray(pixels("RGB")), settings={"seed": 3, "labels": ["a"]})


# --- archives and lists of images ----------------------------------------------------------------------------------


def _png_bytes() -> bytes:
    made = io.BytesIO()
    pixels("RGB").save(made, format="PNG")
    return made.getvalue()


def _write_tar(folder: Path) -> None:
    members = {"a/0.png": _png_bytes(), "a/0.cls": b"7", "a/0.txt": b"a house", "b/1.png": _png_bytes()}
    (folder / "set.tar").write_bytes(damage.tar_of({**members, "b/1.json": b'{"label": "dusk"}'}))


def _write_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x/a/0.png", "x/b/1.png"):
            archive.writestr(name, _png_bytes())
        archive.writestr("x/metadata.jsonl", b'{"file_name": "a/0.png", "text": "a house"}')
        link = zipfile.ZipInfo("x/c")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "b")


def _write_list(folder: Path) -> None:
    for name in ("0.png", "1.png"):
        (folder / name).write_bytes(_png_bytes())
    (folder / "list.txt").write_text("0.png\n1.png\n./0.png\n")


def _read_images(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        source = open_source(folder / name)
        several(*(lambda image=image: source.read(image, 3) for image in source.images))
        several(lambda: [source.length(image) for image in source.images], lambda: captions_among(source))

    return read


# --- what is beside images -----------------------------------------------------------------------------------------

OBJECTS = {"class": "tree", "box": [0.1, 0.2, 0.3, 0.4], "group": False, "keypoints": [[0.1, 0.2], None]}
OWN = {"version": 1, "classes": ["tree"], "keypoints": ["a", "b"], "images": [{"key": "a/0", "objects": [OBJECTS]}]}
COCO = {
    "images": [{"id": 1, "file_name": "0.png", "width": 12, "height": 9}],
    "annotations": [
        {"id": 5, "image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 0, "keypoints": [1, 2, 2]},
        {"image_id": 1, "segments_info": [{"id": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 1}]},
    ],
    "categories": [{"id": 2, "name": "tree", "keypoints": ["top"], "supercategory": "plant"}],
}
GENOME = [{"image_id": 1, "objects": [{"names": ["tree"], "x": 1, "y": 2, "w": 3, "h": 4}]}]
CAPTIONS = {
    "images": [{"id": 1, "file_name": "a/0.png"}],
    "annotations": [{"image_id": 1, "caption": "a house"}, {"image_id": 1, "caption": ["a", "b"]}],
}
BOXES = (
    "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf,IsOccluded,IsDepiction,IsInside\n"
    "00a,/m/1,0.1,0.5,0.2,0.6,0,1,-1,0\n00b,/m/1,0.1,0.5,0.2,0.6,0,1,-1,0\n"
)
ROWS = '{"file_name": "a/0.png", "text": "a house"}\n{"file_name": "b/1.png", "text": ["left", "right"]}\n'


def _json_file(name: str, value: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(value))


def _write_genome(folder: Path) -> None:
    (folder / "objects.json").write_text(json.dumps(GENOME))
    (folder / "image_data.json").write_text(json.dumps([{"image_id": 1, "width": 12, "height": 9}]))


def _write_boxes(folder: Path) -> None:
    (folder / "train-annotations-bbox.csv").write_text(BOXES)
    (folder / "class-descriptions-boxable.csv").write_text("/m/1,Tree\n")


def _with_images(name: str, text: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        for image in ("a/0.png", "b/1.png"):
            (folder / image).parent.mkdir()
            (folder / image).write_bytes(_png_bytes())
        (folder / name).write_text(text)

    return write


LAYOUT = Layout(LayoutSettings(classes=("tree",), max_objects=2, codebook_size=32))
KEYPOINTS = Keypoints(KeypointsSettings(points=("a", "b"), max_figures=2, codebook_size=32))


# --- models, codes and runs ----------------------------------------------------------------------------------------


def _write_codes(folder: Path) -> None:
    part = {"shards": [2], "copies": 1, "damaged": 0, "data": {"size": [8, 8]}}
    facts = {"format": 1, "fingerprint": "f", "size": 16, "grid": [2, 2], "factor": 4, "labels": ["a"], "seed": 0}
    (folder / "codes.json").write_text(json.dumps({**facts, "training": part, "validation": part}))
    for name in ("training", "validation"):
        np.save(folder / f"{name}-00000.npy", np.arange(8, dtype=np.uint16).reshape(2, 1, 2, 2))
        np.save(folder / f"{name}-00000.labels.npy", np.zeros(2, np.int32))


def _read_codes(folder: Path) -> None:
    codes = open_codes(folder)
    histogram(codes.training, codes.meta.size)
    for index in range(len(codes.training)):
        codes.training[index, 0]


def _write_pipeline(folder: Path) -> None:
    pipeline(LABELS).save_pretrained(folder / "model", about={})


def _read_pipeline(folder: Path) -> None:
    pipe = Pipeline.from_pretrained(folder / "model")
    assert pipe.tokenizer.size > 0


def _write_generation(folder: Path) -> None:
    save_generation(folder / "x.generation", SavedGeneration(torch.zeros(1, 2, 2).long(), "f", {"seed": 1}))


def _foreign(name: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        prior = gpt(LABELS) if name != "diffusers" else None
        condition = LABELS if prior is not None else None
        FORMATS[name].write(taming_tokenizer(), prior, condition, folder / "model", about={})

    return write


def _read_foreign(folder: Path) -> None:
    read_foreign(folder / "model")


def _write_llamagen(folder: Path) -> None:
    save(folder / "model" / "vq.pt", random_weights(tokenizer_shapes(Tokenizer())))


def _write_tensors(folder: Path) -> None:
    (folder / "model").mkdir()
    save_file({"mean": torch.ones(3), "log": torch.ones(2, 2)}, folder / "model" / "weights.safetensors")


def _write_statistics(folder: Path) -> None:
    np.savez(folder / "a.npz", mu=np.zeros(3), sigma=np.eye(3), arr_0=np.zeros((2, 4, 4, 3), np.uint8))


def _read_statistics(folder: Path) -> None:
    read_statistics(folder / "a.npz")
    source = ArraySource(folder / "a.npz")
    several(*(lambda image=image: source.read(image, 3) for image in source.images))


def _read_recipe(folder: Path) -> None:
    for cls, stage in ((TokenizerTraining, "tokenizer"), (PriorTraining, "prior")):
        as_mapping(resolve(cls, stage=stage, recipe=str(folder / "recipe.yaml"), overrides=["run.seed=1"]))


_TRAINING = as_mapping(parse(TokenizerTraining, RECIPE["tokenizer"], where="test"))
RUN = {"smalti": "1", "stage": "tokenizer", "data": "x", **_TRAINING}


def _write_run(folder: Path) -> None:
    (folder / "run" / "state").mkdir(parents=True)
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(RUN))
    lines = [{"part": "train", "seen": 8, "loss": 0.5}, {"part": "validation", "seen": 16, "psnr": 20.0}]
    (folder / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_run(folder: Path) -> None:
    read_metrics(folder / "run")
    read_yaml(folder / "run" / "config.yaml")
    before = {path: path.read_bytes() for path in (folder / "run").glob("*.*")}
    try:
        RunFolder(folder / "run", RUN).cut_metrics(8)
    finally:
        for path, content in before.items():
            path.write_bytes(content)


WEIGHTS = "model/prior/model.safetensors"
KINDS: dict[str, FileKind] = {
    **IMAGES,
    "depth as npy": FileKind(
        "depth.npy", _write_array, damage.any_bytes, lambda folder: read_depth(folder / "depth.npy", name="depth")
    ),
    "png of ours": FileKind(
        "made.png",
        _write_own_png,
        damage.png,
        lambda folder: (read_head(folder / "made.png"), read_settings(folder / "made.png")),
    ),
    "tar": FileKind("set.tar", _write_tar, damage.tar, _read_images("set.tar")),
    "zip": FileKind("set.zip", _write_zip, damage.zipped(damage.any_bytes), _read_images("set.zip")),
    "list": FileKind("list.txt", _write_list, damage.any_bytes, _read_images("list.txt")),
    "objects.json": FileKind("objects.json", _json_file("objects.json", OWN), damage.json_text, read_annotations),
    "coco": FileKind("instances_x.json", _json_file("instances_x.json", COCO), damage.json_text, read_annotations),
    "visual genome": FileKind("objects.json", _write_genome, damage.json_text, read_annotations),
    "open images": FileKind("train-annotations-bbox.csv", _write_boxes, damage.any_bytes, read_annotations),
    "classes of open images": FileKind(
        "class-descriptions-boxable.csv", _write_boxes, damage.any_bytes, read_annotations
    ),
    "captions in lines": FileKind(
        "metadata.jsonl",
        _with_images("metadata.jsonl", ROWS),
        damage.json_lines,
        lambda folder: read_captions(open_source(folder)),
    ),
    "captions in a table": FileKind(
        "metadata.csv",
        _with_images("metadata.csv", 'file_name,text\na/0.png,"a, house"\n'),
        damage.any_bytes,
        lambda folder: read_captions(open_source(folder)),
    ),
    "captions of coco": FileKind(
        "captions_x.json",
        _with_images("captions_x.json", json.dumps(CAPTIONS)),
        damage.json_text,
        lambda folder: read_captions(open_source(folder)),
    ),
    "a layout": FileKind(
        "layout.json",
        _json_file("layout.json", [{"class": "tree", "box": [0.1, 0.2, 0.3, 0.4]}]),
        damage.json_text,
        lambda folder: LAYOUT.encode([LAYOUT.read(str(folder / "layout.json"))]),
    ),
    "keypoints": FileKind(
        "points.json",
        _json_file("points.json", [{"a": [0.1, 0.2]}, [[0.5, 0.5], None]]),
        damage.json_text,
        lambda folder: KEYPOINTS.encode([KEYPOINTS.read(str(folder / "points.json"))]),
    ),
    "codes.json": FileKind("codes.json", _write_codes, damage.json_text, _read_codes),
    "code shards": FileKind("training-00000.npy", _write_codes, damage.any_bytes, _read_codes),
    "labels of codes": FileKind("training-00000.labels.npy", _write_codes, damage.any_bytes, _read_codes),
    "config of a tokenizer": FileKind(
        "model/tokenizer/config.json",
        _write_pipeline,
        damage.json_text,
        lambda folder: VQGAN.from_pretrained(folder / "model"),
    ),
    "config of a prior": FileKind("model/prior/config.json", _write_pipeline, damage.json_text, _read_pipeline),
    "weights": FileKind(WEIGHTS, _write_pipeline, damage.safetensors, _read_pipeline),
    "a generation": FileKind(
        "x.generation",
        _write_generation,
        damage.safetensors,
        lambda folder: read_generation(folder / "x.generation"),
    ),
    "taming checkpoint": FileKind(
        "model/checkpoints/last.ckpt", _foreign("taming"), damage.zipped(damage.any_bytes), _read_foreign
    ),
    "taming settings": FileKind(
        "model/configs/smalti-project.yaml", _foreign("taming"), damage.yaml_text, _read_foreign
    ),
    "diffusers settings": FileKind("model/config.json", _foreign("diffusers"), damage.json_text, _read_foreign),
    "diffusers weights": FileKind(
        "model/diffusion_pytorch_model.safetensors", _foreign("diffusers"), damage.safetensors, _read_foreign
    ),
    "transformers settings": FileKind("model/config.json", _foreign("transformers"), damage.json_text, _read_foreign),
    "llamagen checkpoint": FileKind(
        "model/vq.pt",
        _write_llamagen,
        damage.zipped(damage.any_bytes),
        lambda folder: read_foreign(folder / "model/vq.pt"),
    ),
    "statistics": FileKind("a.npz", _write_statistics, damage.zipped(damage.any_bytes), _read_statistics),
    "recipe": FileKind(
        "recipe.yaml",
        lambda folder: (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE)),
        damage.yaml_text,
        _read_recipe,
    ),
    "config of a run": FileKind("run/config.yaml", _write_run, damage.yaml_text, _read_run),
    "metrics of a run": FileKind("run/metrics.jsonl", _write_run, damage.json_lines, _read_run),
    "any json": FileKind(
        "a.json", _json_file("a.json", COCO), damage.json_text, lambda folder: read_json(folder / "a.json")
    ),
}
