"""An ImageNet classifier as a score of samples: the log-probability of the requested class.

Notation: B batch, C channels, H W pixels, K = 1000 classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from smalti.checkpoints.pickles import read_tensors
from smalti.checkpoints.renaming import Renaming, Rule
from smalti.core.errors import SmaltiError, suggestion
from smalti.losses.logits import CLASSIFIERS, LogitDistance, logit_distance
from smalti.losses.resnet50 import CLASSES, ResNet50

_WNID = re.compile(r"n\d{8}(?!\d)")  # a synset of WordNet: n01440764, or n01440764_tench


def read_classifier(name: str) -> LogitDistance:
    """The file of a ResNet-50 in torchvision's keys (.pth, .safetensors), or a name in `losses.logits.CLASSIFIERS`
    whose published weights are looked for -> the classifier, on the CPU.

    Raises `SmaltiError` for a file that is damaged or holds something else, and for unavailable weights.
    """
    if name in CLASSIFIERS and not Path(name).exists():
        return logit_distance(name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise SmaltiError(
            f"there is no file {path}, and no classifier of that name; {suggestion(name, CLASSIFIERS)}, or give the "
            "file of a ResNet-50"
        )
    network = ResNet50()
    # torchvision's files may hold num_batches_tracked, which is not needed here.
    renaming = Renaming.of(network, (Rule(r"(.*)", r"\1"),))
    renaming.read_into(network, read_tensors(path), where=f"{path} (a ResNet-50)", ignored=r".*num_batches_tracked")
    return LogitDistance(network).eval()


def imagenet_classes(labels: Sequence[str]) -> dict[str, int]:
    """The labels of a model -> the number of each among the 1000 classes of ImageNet's classifiers.

    Labels are synsets, or begin with one (`n01440764_tench`), of all 1000 classes: sorted they are the classes in
    order. Or they are the numbers themselves, 0 to 999. Raises `SmaltiError` for others: which class they are is then
    not known.
    """
    synsets = {label: found[0] for label in labels if (found := _WNID.match(label))}
    if len(synsets) == len(set(synsets.values())) == len(labels) == CLASSES:
        ordered = sorted(labels, key=lambda label: synsets[label])
        return {label: number for number, label in enumerate(ordered)}
    numbers = {label: int(label) for label in labels if re.fullmatch(r"[0-9]{1,3}", label)}
    if labels and len(numbers) == len(labels):
        return numbers
    other = next((label for label in labels if label not in synsets and label not in numbers), None)
    which = f"the {len(labels)} labels" if other is None else f"the label {other!r}"
    raise SmaltiError(
        f"cannot map {which} of this model to the {CLASSES} ImageNet classes; labels must be the "
        f"numbers 0 to {CLASSES - 1}, or the synsets (n01440764) of all {CLASSES} classes"
    )


def by_class(classifier: LogitDistance, classes: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """A classifier and the requested class of each of B images -> a score: images (B,C,H,W) -> (B,).

    It gives the logarithm of the probability of that class: the order is that of the probabilities, also where they
    round to 1. The score raises `SmaltiError` for images that have neither 1 nor 3 channels.
    """
    classes_of_images = torch.tensor(list(classes), dtype=torch.int64)

    @torch.no_grad()
    def classifier_score(images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise SmaltiError(
                f"a classifier takes images of 1 or 3 channels, these have {images.shape[1]}; score by likelihood, "
                "without a classifier"
            )
        device = classifier.scale.device
        log_probabilities = classifier.logits(images.to(device)).log_softmax(1)  # (B,K)
        return log_probabilities[torch.arange(len(classes_of_images)), classes_of_images.to(device)].cpu()

    return classifier_score
