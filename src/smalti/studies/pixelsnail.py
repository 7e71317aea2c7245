"""The study `transformer-vs-pixelsnail`: the paper's table 1. Which prior finds the same codes likelier?

One tokenizer, one set of codes. PixelSNAIL and the transformer, with about as many parameters, are trained on as many codes; then
the transformer once more, for as long by the clock as PixelSNAIL took. All are judged on the same held-out codes.

H W pixels, f = H/h, h w grid of codes, K size of the codebook, B batch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field

from smalti.conditions.labels import Nothing
from smalti.data.codes import open_codes
from smalti.data.loading import in_order
from smalti.devices import pick_device
from smalti.errors import SmaltiError
from smalti.pipeline import load_prior, load_tokenizer
from smalti.pretrained import find_model
from smalti.prior import nats
from smalti.settings import as_mapping, settings
from smalti.studies import steps
from smalti.studies.base import Asked, Place, Step, Study
from smalti.studies.compared import difference
from smalti.studies.laying import codes_of_crops, trained_prior
from smalti.studies.pixelsnail_page import CONTENDERS, PIXELSNAIL, SAME_STEPS, SAME_TIME, page
from smalti.studies.pixelsnail_scales import SCALES
from smalti.studies.steps import Pictures, refuse_idle
from smalti.studies.timed import POINTS, SAVED
from smalti.training.config import PriorTraining
from smalti.training.folder import read_metrics
from smalti.training.networks import Codes, build_network

Positive = Annotated[int, Field(ge=1)]

JUDGED = 64
"""Pictures whose codes are judged at once."""


@settings
class PixelSNAILStudySettings:
    """What is compared, and on what."""

    recipe: str
    """Of the tokenizer and of the priors."""
    tokenizer: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for the tokenizer."""
    prior: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for both priors. `run.length` is how many codes PixelSNAIL sees, and the transformer at first."""
    transformer: tuple[str, ...]
    """`a.b=c` over that, for the transformer: its network, and what else it needs."""
    pixelsnail: tuple[str, ...]
    """Likewise for PixelSNAIL."""
    parameters_within: Annotated[float, Field(ge=0)] = 0.05
    """How far the numbers of parameters may lie apart, as a share of PixelSNAIL's."""
    size: tuple[Positive, Positive]
    """(H,W) of all pictures."""
    copies: Positive
    """Crops of each training picture that the priors are trained on the codes of."""
    held_out_copies: Positive = 2
    """Likewise of each held-out picture."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Share of the pictures that trainings do not see."""
    scenes: Positive = 480
    """How many scenes are painted, where no pictures are given."""


def plan(chosen: PixelSNAILStudySettings, asked: Asked) -> list[Step]:
    """Scenes where no pictures are given; the tokenizer, its codes, the three trainings, and the comparison."""
    refuse_idle(asked, trains=("tokenizer", "prior"))
    pictures = Pictures.of(asked.data)
    tokenizer = steps.varied(
        chosen.recipe,
        shared=chosen.tokenizer,
        overrides=asked.of("tokenizer"),
        changes=[f"pictures.size={list(chosen.size)}", f"pictures.validation={chosen.held_out}"],
    )
    f = tokenizer.model.pyramid.factor
    grid = chosen.size[0] // f, chosen.size[1] // f
    trainings = {PIXELSNAIL: chosen.pixelsnail, SAME_STEPS: chosen.transformer, SAME_TIME: chosen.transformer}
    priors = {name: _training(changes, chosen, asked) for name, changes in trainings.items()}
    read = Codes(size=tokenizer.model.quantizer.size, grid=grid, condition_size=Nothing().size, prefix=Nothing().length)
    sizes = {name: parameters(training, read) for name, training in priors.items()}
    refuse_unequal(sizes, within=chosen.parameters_within)
    found = [] if asked.data else [steps.scenes(count=chosen.scenes, size=chosen.size)]
    return [
        *found,
        steps.tokenizer("tokenizer", pictures=pictures, training=tokenizer),
        _codes(pictures, grid, chosen),
        _prior(PIXELSNAIL, priors[PIXELSNAIL]),
        _prior(SAME_STEPS, priors[SAME_STEPS]),
        _timed_prior(SAME_TIME, priors[SAME_TIME]),
        _comparing(sizes),
    ]


def _training(changes: Sequence[str], chosen: PixelSNAILStudySettings, asked: Asked) -> PriorTraining:
    fixed = ["condition=nothing", "drop_condition=0", "encode={}", "run.patience=0"]
    return steps.varied_prior(
        chosen.recipe, shared=chosen.prior, overrides=asked.of("prior"), changes=[*changes, *fixed]
    )


def parameters(training: PriorTraining, codes: Codes) -> int:
    """A training and the codes that it reads -> how many numbers it learns, without making them."""
    with torch.device("meta"):
        prior = build_network(training.network, codes).prior
    return sum(each.numel() for each in prior.parameters())


def refuse_unequal(found: Mapping[str, int], *, within: float) -> None:
    """Raise `SmaltiError` where a prior has more or fewer parameters than PixelSNAIL, beyond a share of them."""
    wanted = found[PIXELSNAIL]
    for name, count in found.items():
        if abs(count / wanted - 1) > within:
            raise SmaltiError(
                f"{name} has {count:,} parameters and {PIXELSNAIL} {wanted:,}: {count / wanted - 1:+.0%}, where {within:.0%} is "
                "allowed; change network.width or network.layers of one of them (settings transformer, pixelsnail), or set "
                "parameters_within"
            )


def of_length(training: PriorTraining, length: int) -> PriorTraining:
    """A training -> the same over `length` codes: it looks at held-out codes right after each report, which is when the clock is
    read."""
    every = math.ceil(length / POINTS)
    run = replace(
        training.run,
        length=length,
        report_every=every,
        validate_every=every,
        picture_every=length,
        checkpoint_every=math.ceil(length / SAVED),
        tensorboard=False,
    )
    return replace(training, run=run)


def _codes(pictures: Pictures, grid: tuple[int, int], chosen: PixelSNAILStudySettings) -> Step:
    """The step that encodes whole pictures, and their mirror images."""
    copies = chosen.copies, chosen.held_out_copies

    def work(place: Place) -> dict[str, Any]:
        return codes_of_crops(
            load_tokenizer(place.before["tokenizer"].folder),
            pictures.path(place),
            place,
            window=grid,
            size=chosen.size,
            held_out=chosen.held_out,
            copies=copies,
        )

    said = {"size": list(chosen.size), "held_out": chosen.held_out, "copies": list(copies)}
    return Step(name="codes", settings={**pictures.described, **said}, work=work, after=(*pictures.after, "tokenizer"))


def _trained(place: Place, training: PriorTraining) -> dict[str, Any]:
    """Train a prior in the step's folder -> what is known of it then."""
    tokenizer = load_tokenizer(place.before["tokenizer"].folder)
    outcome = trained_prior(tokenizer, place.before["codes"].folder / "codes", place, settings=training)
    points = curve(read_metrics(place.folder))
    return {**outcome, "codes": points[-1]["codes"], "seconds": points[-1]["seconds"], "curve": points}


def _prior(name: str, training: PriorTraining) -> Step:
    """The step that trains a prior over `run.length`; its folder is a run folder."""
    training = of_length(training, training.run.length)
    return Step(
        name=f"prior-{name}",
        settings={"training": steps.decisive(as_mapping(training))},
        work=lambda place: _trained(place, training),
        after=("tokenizer", "codes"),
    )


def _timed_prior(name: str, training: PriorTraining) -> Step:
    """The step that trains the transformer over as many codes as it would have seen in the time that PixelSNAIL took.

    A schedule has to know where it ends, so that the pace must be known before: it is that of the training before.
    """

    def work(place: Place) -> dict[str, Any]:
        shards = open_codes(place.before["codes"].folder / "codes")
        batch = training.run.batch * math.prod(shards.meta.grid)
        pace = place.before[f"prior-{SAME_STEPS}"].outcome
        seen = pace["codes"] * place.before[f"prior-{PIXELSNAIL}"].outcome["seconds"] / pace["seconds"]
        return _trained(place, of_length(training, max(round(seen / batch), 1) * batch))

    settings = {"training": steps.decisive(as_mapping(training))}
    after = ("tokenizer", "codes", f"prior-{PIXELSNAIL}", f"prior-{SAME_STEPS}")
    return Step(name=f"prior-{name}", settings=settings, work=work, after=after)


def curve(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Lines of a prior's metrics -> the nats a code of held-out codes, after how many codes and seconds of training.

    As `timed.curve`: what passes between a report and the validation after it is no training, and is taken off.
    """
    found, reported, looking = [], 0.0, 0.0
    for line in lines:
        if line["part"] == "validation":
            found.append({"seconds": round(reported - looking, 3), "codes": line["seen"], "nats": line["nats"]})
            looking += line["elapsed"] - reported
        reported = line["elapsed"]
    return found


def _comparing(sizes: Mapping[str, int]) -> Step:
    """The step that asks all for the likelihood of each held-out picture, with the model that each training has kept."""

    def work(place: Place) -> dict[str, Any]:
        values = {name: list(_judged(place, name)) for name in CONTENDERS}
        rows = {}
        for name in CONTENDERS:
            outcome = place.before[f"prior-{name}"].outcome
            gain = difference(values[name], values[PIXELSNAIL])
            rows[name] = {
                "parameters": sizes[name],
                "codes": outcome["codes"],
                "seconds": outcome["seconds"],
                "nats": statistics.fmean(values[name]),
                "last_nats": outcome["curve"][-1]["nats"],
                "over_pixelsnail": gain.mean,
                "error": gain.error if len(values[name]) > 1 else None,
            }
        entropy = place.before[f"prior-{PIXELSNAIL}"].outcome["code_entropy_nats"]
        return {"pictures": len(values[PIXELSNAIL]), "code_entropy_nats": entropy, "rows": rows}

    after = ("codes", *(f"prior-{name}" for name in CONTENDERS))
    return Step(name="compare", settings={"parameters": dict(sizes)}, work=work, after=after)


@torch.no_grad()
def _judged(place: Place, name: str) -> Iterator[float]:
    """The nats a code of each held-out picture, by one prior."""
    device = pick_device("auto")
    prior, _ = load_prior(find_model(place.before[f"prior-{name}"].folder, kind="prior"))
    prior.to(device)
    shards = open_codes(place.before["codes"].folder / "codes")
    for batch in in_order(shards.validation, batch=JUDGED):
        losses = nats(prior, prior.null_prefix(len(batch.codes)), batch.codes.to(device))  # (B,h,w)
        yield from losses.mean(dim=(1, 2)).tolist()


TRANSFORMER_VS_PIXELSNAIL = Study(
    about="which prior finds the same codes likelier at equal steps and in equal time: the paper's table 1",
    takes_models=False,
    settings=PixelSNAILStudySettings,
    scales=SCALES,
    plan=plan,
    page=page,
)
