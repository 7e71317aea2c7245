"""How well the bundled model follows texts, labels and label maps, and how fast it generates.
Prints one JSON line per part, and writes the images and the last captions to `--out`.

    python benchmarks/bundled_model.py --out DIR [--model scenes] [--images 120] [--guidance 2] [--training 800]

A network that predicts labels of pixels and classes is trained on `--training` scenes (seed 11) and judges all images,
at half their size.
The captions, labels and label maps are those of scenes of seed 12, which neither the model nor that network has seen.

network  on real held-out scenes and on their reconstructions: classes named right, and mean IoU of the labels
label    samples of labels: season and time of day named right
text     samples of captions: season and time of day named right where the caption names them; and for house, water and
         moon how often they are seen in the sample where the caption has them, and not seen where it has not
segmentation  samples of label maps (no label or text): mean IoU of the labels
speed    codes per second of a batch of four

An object is seen if at least `VISIBLE` of the pixels have its label: the smallest fraction that captions mention.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.core.allocator import keep_memory
from smalti.experiments.condition_fidelity import mean_iou
from smalti.experiments.scene_network import KnownScenes, SceneNetwork, ScenePrediction, predict, train_scene_network
from smalti.generation.code_sampler import make_sampler
from smalti.generation.generation_loop import final_codes, generate
from smalti.generation.request import unknown_codes
from smalti.images.io import save_png, to_tensor
from smalti.pipeline import Pipeline
from smalti.scenes.captions import captions
from smalti.scenes.scene_classes import CLASSES, LABELS, paint

TRAINING_SEED, TEST_SEED = 11, 12
STEPS = 700
BATCH = 12
VISIBLE = {"house": 0.004, "water": 0.005, "moon": 0.0004}
"""Fractions of an image from which an object counts as seen."""
SEASONS = {"spring": "spring", "summer": "summer", "autumn": "autumn|fall", "winter": "winter"}
TIMES = {"day": "day|daylight|daytime", "dusk": "dusk|sunset|evening|nightfall", "night": "night|dark of night"}
SUBJECTS = {"house": "houses?|home|cottage|cabin|farm", "water": "lake|pond|water|shore", "moon": "moon"}


class TestScenes(NamedTuple):
    """Scenes with a caption each."""

    known: KnownScenes
    captions: Sequence[str]


def painted(seed: int, count: int, size: tuple[int, int], *, with_captions: bool = False) -> TestScenes:
    """The first scenes of a data set."""
    scenes = [paint(seed, index, size=size) for index in range(count)]
    known = KnownScenes(
        torch.stack([to_tensor(scene.image) for scene in scenes]),
        torch.tensor([CLASSES.index(scene.label) for scene in scenes]),
        torch.stack([torch.from_numpy(scene.segmentation).long() for scene in scenes]),
        torch.zeros(count, 1, *size),
    )
    texts = [captions(scene, seed=seed, index=i, count=1)[0] for i, scene in enumerate(scenes)] if with_captions else []
    return TestScenes(known, texts)


def halved(images: Tensor) -> Tensor:
    """(B,C,H,W) -> (B,C,H/2,W/2): what the network sees."""
    return F.avg_pool2d(images, 2)


def named(text: str, words: Mapping[str, str]) -> str | None:
    """The first of `words` (name -> pattern) that a caption contains, or None."""
    return next((name for name, pattern in words.items() if re.search(rf"\b({pattern})\b", text.lower())), None)


def sampled(pipeline: Pipeline, values: Sequence[Mapping[str, Any]], *, guidance: float) -> Tensor:
    """One image per condition value, with the seeds 0, 1, 2, ...: (B,3,H,W)."""
    images = []
    for start in range(0, len(values), BATCH):
        some = values[start : start + BATCH]
        request = pipeline.request_for(
            [pipeline.condition_value(value) for value in some],
            unknown_codes(len(some), pipeline.grid(None)),
            seeds=pipeline.seeds(start, len(some)),
            sampler=make_sampler(guidance=guidance),
        )
        images.append(pipeline.decode(final_codes(generate(pipeline.prior, request))))
    return torch.cat(images)


def fractions(prediction: ScenePrediction) -> dict[str, Tensor]:
    """Label -> the fraction of the pixels that show it, (B,)."""
    labels = prediction.labels.argmax(1)
    return {name: (labels == LABELS.index(name)).float().mean((1, 2)) for name in VISIBLE}


def of_labels(network: SceneNetwork, images: Tensor, classes: Tensor) -> dict[str, float]:
    """How often season and time of day are those of the classes."""
    seen = predict(network, halved(images)).classes.argmax(1)
    pairs = [(CLASSES[int(a)].split("-"), CLASSES[int(b)].split("-")) for a, b in zip(seen, classes, strict=True)]
    return {
        "season": mean([a[0] == b[0] for a, b in pairs]),
        "time": mean([a[1] == b[1] for a, b in pairs]),
        "class": mean([a == b for a, b in pairs]),
    }


def of_texts(network: SceneNetwork, images: Tensor, texts: Sequence[str]) -> dict[str, float]:
    """How often what a caption says can be seen."""
    prediction = predict(network, halved(images))
    classes = [CLASSES[int(index)].split("-") for index in prediction.classes.argmax(1)]
    scores = {}
    for part, (key, words) in enumerate((("season", SEASONS), ("time", TIMES))):
        wanted = [named(text, words) for text in texts]
        scores[key] = mean([seen[part] == word for seen, word in zip(classes, wanted, strict=True) if word])
    for name, seen in fractions(prediction).items():
        mentioned = [re.search(rf"\b({SUBJECTS[name]})\b", text.lower()) is not None for text in texts]
        shown = (seen >= VISIBLE[name]).tolist()
        scores[f"{name}_mentioned"] = mean([show for show, says in zip(shown, mentioned, strict=True) if says])
        scores[f"{name}_not_mentioned"] = mean(
            [not show for show, says in zip(shown, mentioned, strict=True) if not says]
        )
    return scores


def mean(values: Sequence[bool]) -> float:
    """The fraction that is true."""
    return sum(values) / max(len(values), 1)


def report(part: str, values: Mapping[str, float]) -> None:
    """Print a line."""
    print(json.dumps({"part": part, **{key: round(value, 3) for key, value in values.items()}}), flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--images", type=int, default=120)
    parser.add_argument("--training", type=int, default=800)
    parser.add_argument("--guidance", type=float, default=2.0)
    chosen = parser.parse_args()
    keep_memory()
    pipeline = Pipeline.from_pretrained(chosen.model)
    size = pipeline.default_size
    images, classes, labels, depths = painted(TRAINING_SEED, chosen.training, size).known
    training = KnownScenes(halved(images), classes, labels[:, ::2, ::2], halved(depths))
    network = train_scene_network(
        training, labels=len(LABELS), classes=len(CLASSES), steps=STEPS, progress=lambda done, total: None
    )
    test = painted(TEST_SEED, chosen.images, size, with_captions=True)
    images, classes, labels, _ = test.known

    def iou(shown: Tensor) -> dict[str, float]:
        return {"iou": mean_iou(predict(network, halved(shown)).labels.argmax(1), labels[:, ::2, ::2])}

    def classified(shown: Tensor) -> dict[str, float]:
        return {**of_labels(network, shown, classes), **iou(shown)}

    report("network, real", {**classified(images), **of_texts(network, images, test.captions)})
    report("network, reconstructions", classified(pipeline.reconstruct(images)))
    names = [CLASSES[int(index)] for index in classes]
    keys = [part.key for part in pipeline.condition.parts]
    for key, values in (("label", names), ("text", test.captions), ("segmentation", list(labels))):
        if key not in keys:
            continue
        shown = sampled(pipeline, [{key: value} for value in values], guidance=chosen.guidance)
        if key == "label":
            report(key, of_labels(network, shown, classes))
        elif key == "text":
            report(key, of_texts(network, shown, test.captions))
        else:
            report(key, iou(shown))
        for index, image in enumerate(shown):
            save_png(chosen.out / key / f"{index:06d}.png", image)
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "captions.txt").write_text("\n".join(test.captions) + "\n", "utf-8")
    start = time.perf_counter()
    pipeline.sample(4, seed=0)
    height, width = pipeline.grid(None)
    report("speed", {"codes_per_second": 4 * height * width / (time.perf_counter() - start)})


if __name__ == "__main__":
    main()
