"""Model cards: what a model folder, its runs and its measurements say -> the README.md that is beside the model on
the Hub.

Nothing is claimed that is not in a file: scores come with their protocol from `result.json`, else from the run's last
validation and are called that; a license is what its owner says it is.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from smalti.core.errors import SmaltiError
from smalti.core.files import read_json, write_text
from smalti.hub.hugging_face import upload

CARD, IMAGES = "README.md", "images"
TEMPLATE = Path(__file__).with_name("model_card.md")
SHOWN_LABELS = 24
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


class Run(NamedTuple):
    """What a training left behind."""

    config: Mapping[str, Any]
    """Its settings as resolved."""
    metrics: Sequence[Mapping[str, Any]]
    """The lines of its `metrics.jsonl`, oldest first."""
    image: Path | None
    """The last image that it made, if there is one."""


class Sources(NamedTuple):
    """What a card is written from, besides the model."""

    license: str
    """As the Hub names it, such as "mit", "cc-by-4.0" or "other"."""
    runs: Mapping[str, Run] = MappingProxyType({})
    """The runs that the models come from: of the "tokenizer", of the "prior"; those there are."""
    results: Sequence[Path] = ()
    """Measurements: files `result.json` of `smalti evaluate`."""


def publish(folder: Path, name: str, sources: Sources, *, private: bool) -> str:
    """Write the card of the models in `folder` beside them, and send all -> the repository's address. Errors as
    both."""
    write_card(folder, name, sources)
    return upload(folder, name, private=private)


def write_card(folder: Path, name: str, sources: Sources) -> None:
    """Write README.md, and the images that it shows, beside the models in `folder`; `name` is the repository's,
    owner/name.

    Raises `SmaltiError` for a value that is not a license and for results that were not written by `smalti evaluate`.
    """
    if not _LICENSE.fullmatch(sources.license):
        raise SmaltiError(
            f"{sources.license!r} is not a license as the Hub names them; write one such as mit, apache-2.0, "
            "cc-by-4.0 or other"
        )
    from huggingface_hub import ModelCard, ModelCardData

    models = {kind: read_json(path) for kind, path in _configs(folder).items()}
    condition = models["prior"]["settings"]["condition"] if "prior" in models else {"name": "none"}
    tags = ["smalti", "vqgan", "image-generation" if "prior" in models else "image-tokenizer"]
    card = ModelCard.from_template(
        ModelCardData(license=sources.license, library_name="smalti", tags=tags),
        template_path=str(TEMPLATE),
        name=name,
        title=name.partition("/")[2],
        prior="prior" in models,
        label=json.dumps(condition["labels"][0]) if condition["name"] == "labels" else "",
        images=_copied_images(folder, sources.runs),
        facts=[_cells(row) for row in _facts(models)],
        measurements=[_measurement(path) for path in sources.results],
        validations=[] if sources.results else list(_validations(sources.runs)),
        settings={kind: _yaml(_without_places(run.config)) for kind, run in sources.runs.items()},
    )
    write_text(folder / CARD, str(card).rstrip() + "\n")


def _configs(folder: Path) -> dict[str, Path]:
    """Kind of model -> its config.json: of a pipeline's two folders, or of a tokenizer alone."""
    alone = folder / "config.json"
    if alone.is_file():
        return {"tokenizer": alone}
    return {kind: folder / kind / "config.json" for kind in ("tokenizer", "prior")}


def _facts(models: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What the configs say: (what, value)."""
    settings, about = models["tokenizer"]["settings"], models["tokenizer"]["about"]
    autoencoder, quantizer = settings["autoencoder"], settings["quantizer"]
    factor = autoencoder["patch_size"] << (len(autoencoder["channel_multipliers"]) - 1)
    yield "images", f"{autoencoder['channels']} channels; a code stands for {factor} x {factor} pixels"
    yield (
        "codebook",
        ", ".join(f"{key} {quantizer[key]}" for key in ("name", "codebook_size", "codebook_dim") if key in quantizer),
    )
    yield from _stored_facts(
        about, names={"data": "data", "images": "images in the data", "size": "trained at (height x width)"}
    )
    yield from _stored_facts(about, names={"images_seen": "images seen in training", "imported_from": "imported from"})
    yield "fingerprint of the tokenizer", str(about.get("fingerprint", "none"))
    if "prior" in models:
        settings, about = models["prior"]["settings"], models["prior"]["about"]
        network, condition = settings["network"], settings["condition"]
        yield "prior", f"{network['name']}, a window of {' x '.join(map(str, network['grid']))} codes"
        yield "conditioned on", condition["name"]
        labels = condition.get("labels", [])
        if labels:
            more = f", and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
            yield "labels", ", ".join(labels[:SHOWN_LABELS]) + more
        yield from _stored_facts(
            about, names={"images": "images that its codes are of", "codes_seen": "codes seen in training"}
        )


def _stored_facts(about: Mapping[str, Any], *, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Those facts of `about` that are there, in words."""
    for key, words in names.items():
        if key in about:
            value = about[key]
            yield words, " x ".join(map(str, value)) if isinstance(value, list) else _number(value)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cells(row: Iterable[str]) -> list[str]:
    """Texts -> the cells of a row of Markdown, in which no text ends a cell or a line."""
    return [re.sub(r"\s+", " ", cell).replace("|", r"\|") for cell in row]


def _copied_images(folder: Path, runs: Mapping[str, Run]) -> dict[str, str]:
    """Copy the last image of each run beside the models -> their paths within the folder."""
    copied = {}
    for kind, run in runs.items():
        if run.image is not None:
            (folder / IMAGES).mkdir(exist_ok=True)
            shutil.copyfile(run.image, folder / IMAGES / f"{kind}.png")
            copied[kind] = f"{IMAGES}/{kind}.png"
    return copied


class _Validation(NamedTuple):
    """What a run says about its held-out images."""

    kind: str
    seen: str
    rows: Sequence[Sequence[str]]


def _validations(runs: Mapping[str, Run]) -> Iterator[_Validation]:
    for kind, run in runs.items():
        last = next((line for line in reversed(run.metrics) if line.get("part") == "validation"), None)
        if last is not None:
            rows = [_cells((key, _number(each))) for key, each in last.items() if key not in ("part", "time", "seen")]
            yield _Validation(kind, f"{last['seen']:,}", rows)


class _Measurement(NamedTuple):
    """The scores of a `result.json`, what they mean, and all that they depend on."""

    kind: str
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    protocol: str


def _measurement(path: Path) -> _Measurement:
    result = read_json(path)
    if not isinstance(result, dict) or not {"scores", "definitions", "protocol", "data", "made"} <= result.keys():
        raise SmaltiError(f"{path} is not a result of `smalti evaluate`; name its result.json")
    scores = result["scores"].items()
    rows = [_cells((key, _number(value), result["definitions"].get(key, ""))) for key, value in scores]
    kept = {key: result[key] for key in ("protocol", "networks", "data", "samples") if result.get(key)}
    made = {key: result["made"][key] for key in ("smalti", "torch", "date") if key in result["made"]}
    return _Measurement(result["kind"], rows, result.get("notes", ()), _yaml({**kept, "made": made}))


def _yaml(values: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)


def _without_places(value: Any) -> Any:
    """Plain values with the last part alone of each absolute path: the folders of a user's images are private."""
    if isinstance(value, Mapping):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
