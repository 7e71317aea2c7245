"""Model cards: what a model folder, its runs and its measurements say -> the README.md that stands beside the model on
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
from smalti.hub.hugging_face import pushed

CARD, IMAGES = "README.md", "images"
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
    return pushed(folder, name, private=private)


def write_card(folder: Path, name: str, sources: Sources) -> None:
    """Write README.md, and the images that it shows, beside the models in `folder`; `name` is the repository's,
    owner/name.

    Raises `SmaltiError` for what is no license and for results that were not written by `smalti evaluate`.
    """
    if not _LICENSE.fullmatch(sources.license):
        raise SmaltiError(
            f"{sources.license!r} is no license as the Hub names them; write one such as mit, apache-2.0, "
            "cc-by-4.0 or other"
        )
    models = {kind: read_json(path) for kind, path in _configs(folder).items()}
    sections = [
        _head(models, sources.license),
        f"# {name.partition('/')[2]}\n\n{_sentence(models)}",
        *_images(folder, sources.runs),
        f"## Use\n\n```python\n{_use(models, name)}\n```",
        f"## What it is\n\n{_table(_facts(models))}",
        "## Scores\n\n" + ("\n\n".join(_scores(sources)) or "None were given."),
        *_settings(sources.runs),
    ]
    write_text(folder / CARD, "\n\n".join(sections) + "\n")


def _configs(folder: Path) -> dict[str, Path]:
    """Kind of model -> its config.json: of a pipeline's two folders, or of a tokenizer alone."""
    alone = folder / "config.json"
    if alone.is_file():
        return {"tokenizer": alone}
    return {kind: folder / kind / "config.json" for kind in ("tokenizer", "prior")}


def _head(models: Mapping[str, Any], license: str) -> str:
    tags = ["smalti", "vqgan", "image-generation" if "prior" in models else "image-tokenizer"]
    values = {"license": license, "library_name": "smalti", "tags": tags}
    return f"---\n{yaml.safe_dump(values, sort_keys=False)}---"


def _sentence(models: Mapping[str, Any]) -> str:
    if "prior" in models:
        return (
            "A tokenizer, which encodes images to codes and decodes them, and a prior, which generates codes. "
            "Made with smalti."
        )
    return "A tokenizer, which turns images into codes and back. Made with smalti."


def _use(models: Mapping[str, Any], name: str) -> str:
    """Five lines or fewer, for this model."""
    if "prior" not in models:
        return "\n".join(
            (
                "import smalti",
                "",
                f'tokenizer = smalti.VQGAN.from_pretrained("{name}")',
                "codes = tokenizer.encode(images).codes  # images (B, C, H, W) in [-1, 1]",
                "images = tokenizer.decode_codes(codes)",
            )
        )
    condition = models["prior"]["settings"]["condition"]
    label = f"label={json.dumps(condition['labels'][0])}, " if condition["name"] == "labels" else ""
    return "\n".join(
        (
            "import smalti",
            "",
            f'pipeline = smalti.Pipeline.from_pretrained("{name}")',
            f"images = pipeline.sample(4, {label}seed=0)  # (4, C, H, W) in [-1, 1]",
            'smalti.save_png("sample.png", images[0])',
        )
    )


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


def _table(rows: Iterable[tuple[str, ...]], *, head: tuple[str, ...] = ("", "")) -> str:
    """Rows of text -> a table of Markdown, in which no text ends a cell or a line."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", r"\|") for cell in row) + " |" for row in lines
    )


def _images(folder: Path, runs: Mapping[str, Run]) -> Iterator[str]:
    """Copy the last image of each run beside the models, and show it."""
    what = {
        "prior": "Samples that the prior drew at the end of its training, not chosen.",
        "tokenizer": "Held-out images and what the tokenizer keeps of them.",
    }
    for kind, words in what.items():
        last = runs[kind].image if kind in runs else None
        if last is not None:
            (folder / IMAGES).mkdir(exist_ok=True)
            shutil.copyfile(last, folder / IMAGES / f"{kind}.png")
            yield f"![{words}]({IMAGES}/{kind}.png)\n\n*{words}*"


def _scores(sources: Sources) -> Iterator[str]:
    """Measurements with their protocols; without any, what the runs say of their held-out images."""
    for path in sources.results:
        yield _measured(path)
    if sources.results:
        return
    for kind, run in sources.runs.items():
        last = next((line for line in reversed(run.metrics) if line.get("part") == "validation"), None)
        if last is not None:
            rows = ((key, _number(value)) for key, value in last.items() if key not in ("part", "time", "seen"))
            unit = "codes" if kind == "prior" else "images"
            yield (
                f"The {kind}, on the held-out part of its own training data, after {last['seen']:,} {unit}: the "
                "last validation of "
                f"the training, no protocol of `smalti evaluate`.\n\n{_table(rows, head=('score', 'value'))}"
            )


def _measured(path: Path) -> str:
    """A `result.json` -> its scores, what they mean, and all that they depend on."""
    result = read_json(path)
    if not isinstance(result, dict) or not {"scores", "definitions", "protocol", "data", "made"} <= result.keys():
        raise SmaltiError(f"{path} is no result of `smalti evaluate`; name its result.json")
    scores = result["scores"].items()
    rows = ((key, _number(value), result["definitions"].get(key, "")) for key, value in scores)
    kept = {key: result[key] for key in ("protocol", "networks", "data", "samples") if result.get(key)}
    made = {key: result["made"][key] for key in ("smalti", "torch", "date") if key in result["made"]}
    notes = "".join(f"\n- {note}" for note in result.get("notes", ()))
    return (
        f"`smalti evaluate`, of the {result['kind']}:\n\n{_table(rows, head=('score', 'value', 'meaning'))}\n"
        f"{notes}\n\n{_folded('Protocol', {**kept, 'made': made})}"
    )


def _settings(runs: Mapping[str, Run]) -> Iterator[str]:
    """The settings of each run, as it resolved them."""
    folded = [_folded(f"The {kind}'s run", _without_places(run.config)) for kind, run in runs.items()]
    if folded:
        yield "## Settings\n\n" + "\n\n".join(folded)


def _folded(title: str, values: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
    return f"<details><summary>{title}</summary>\n\n```yaml\n{text}```\n\n</details>"


def _without_places(value: Any) -> Any:
    """Plain values with the last part alone of each absolute path: where somebody keeps their images is nobody's
    business."""
    if isinstance(value, Mapping):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
