"""The experiment `f-sweep`: how large should the tile of a code be? Section 4.4 of the paper and its figure.

A prior sees a fixed number of codes at once. With a small f these are a small part of the image, so that details are
exact and the composition is lost; with a large f they are the whole image, and details are lost. Here tokenizers of
several f, with as many codes, are trained on the same number of images; priors of one size, with a window of one size,
on the codes of crops that fill it; and images of one size are laid by the sliding window.

H W pixels, f = H/h, h w the window of the priors, K size of the codebook.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from smalti.core.errors import SmaltiError
from smalti.core.settings import Positive, as_mapping, settings
from smalti.data.crops import CenterCrop
from smalti.data.loader import Crops, in_order
from smalti.data.sources import open_source, split
from smalti.experiments import steps
from smalti.experiments.base import Experiment, ExperimentRequest, Step, StepContext
from smalti.experiments.f_sweep.page import page
from smalti.experiments.f_sweep.scales import SCALES
from smalti.experiments.palette import fitted_palette, load_palette
from smalti.experiments.sampling import SampleSettings, codes_of_crops, generate_images, train_prior_on_codes, zoom_of
from smalti.experiments.steps import Images, Variation, refuse_idle, refuse_twins
from smalti.experiments.tokenizer_comparison import FEATURES
from smalti.experiments.tokenizer_measurement import Measuring
from smalti.model_loading import load_tokenizer
from smalti.training.config import PriorTraining, TokenizerTraining

Side = tuple[Positive, Positive]

PALETTE = "f1"
"""The name of the palette among the tokenizers."""


@settings
class FSweepSettings:
    """What is compared, and on what."""

    recipe: str
    """Of the tokenizers and of the priors."""
    tokenizer: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for all tokenizers."""
    prior: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for all priors."""
    tokenizers: Annotated[tuple[Variation, ...], Field(min_length=1)]
    """Those of f above 1; what makes their f."""
    codebook: Annotated[int, Field(ge=2)]
    """K, of all."""
    palette_rounds: Annotated[int, Field(ge=0)] = 15
    """Rounds of k-means for the palette of f = 1; 0 leaves f = 1 out."""
    palette_images: Positive = 128
    """Training images whose pixels it is made of, at most."""
    window: Side
    """(h,w) codes that a prior sees at once, at every f."""
    size: Side
    """(H,W) of whole images: laid, measured, painted."""
    crop: Side
    """(H,W) of the parts of them that tokenizers are trained on."""
    copies: Positive
    """Crops of each training image that a prior is trained on the codes of."""
    held_out_copies: Positive = 4
    """Likewise of each held-out image."""
    samples: Positive
    """Images laid for each f."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Share of the images that trainings do not see."""
    images: Positive
    """How many are measured at most, evenly spread."""
    shown: Positive
    """How many of those, and of the samples, are shown."""
    scenes: Positive = 320
    """How many scenes are painted, where no images are given."""


def plan(chosen: FSweepSettings, request: ExperimentRequest) -> list[Step]:
    """Scenes where no images are given; then for each f its tokenizer, its codes, its prior, its measuring, its
    samples."""
    refuse_idle(request, trains=("tokenizer", "prior"))
    refuse_twins([PALETTE, *(each.name for each in chosen.tokenizers)], what="tokenizers")
    images = Images.of(request.data)
    trainings = {each.name: _training(each, chosen, request) for each in chosen.tokenizers}
    factors = {name: training.model.autoencoder.factor for name, training in trainings.items()}
    if chosen.palette_rounds:
        factors = {PALETTE: 1, **factors}
    _refuse_sizes(factors, chosen)
    prior = steps.varied_prior(
        chosen.recipe,
        shared=chosen.prior,
        overrides=request.of("prior"),
        changes=["condition=nothing", "condition_dropout=0", "encode={}"],
    )
    how = Measuring.of("f-sweep", size=chosen.size, count=chosen.images, held_out=chosen.held_out, shown=chosen.shown)
    found = [] if request.data else [steps.scenes(count=chosen.scenes, size=chosen.size)]
    for name, f in factors.items():
        if name in trainings:
            found.append(steps.tokenizer(f"tokenizer-{name}", images=images, training=trainings[name]))
        else:
            found.append(_palette(images, chosen))
        load = _loading(name)
        found += [
            _codes(name, f, images, chosen, load),
            _prior(name, prior, load),
            how.step(name, images=images, described={}, after=(f"tokenizer-{name}",), load=load),
            _samples(name, f, images, chosen, load, with_frechet=FEATURES not in how.missing),
        ]
    return found


def _training(each: Variation, chosen: FSweepSettings, request: ExperimentRequest) -> TokenizerTraining:
    zoom = zoom_of(chosen.crop, chosen.size)
    fixed = [
        f"images.size={list(chosen.crop)}",
        f"images.zoom=[{zoom}, {zoom}]",
        f"images.validation={chosen.held_out}",
        f"model.quantizer.codebook_size={chosen.codebook}",
    ]
    return steps.varied(
        chosen.recipe, shared=chosen.tokenizer, overrides=request.of("tokenizer"), changes=[*each.changes, *fixed]
    )


def _refuse_sizes(factors: dict[str, int], chosen: FSweepSettings) -> None:
    """Raise `SmaltiError` where images are not made of whole tiles, or a window is larger than an image."""
    (height, width), (h, w) = chosen.size, chosen.window
    for name, f in factors.items():
        if height % f or width % f:
            raise SmaltiError(
                f"size = {height} x {width} (height x width) is not made of the tiles of {f} pixels that {name} has; "
                f"set it to a multiple"
            )
        if h * f > height or w * f > width:
            raise SmaltiError(
                f"a window of {h} x {w} codes of {name} is {h * f} x {w * f} pixels, more than the images of {height} x "
                f"{width}; set a smaller window, or a larger size"
            )


def _loading(name: str) -> Callable[[StepContext], Any]:
    """How later steps find a tokenizer: a `VQGAN`, or the palette, which has its methods."""

    def load(context: StepContext) -> Any:
        folder = context.before[f"tokenizer-{name}"].folder
        return load_palette(folder) if name == PALETTE else load_tokenizer(folder)

    return load


def _palette(data: Images, chosen: FSweepSettings) -> Step:
    """The step that makes the palette, on the training images as they are measured."""

    def work(context: StepContext) -> dict[str, Any]:
        source = open_source(data.path(context))
        training, _ = split(source.images, validation=chosen.held_out)
        count = min(chosen.palette_images, len(training))
        some = [training[number * len(training) // count] for number in range(count)]
        crops = Crops(source, some, size=chosen.size, channels=3, crop=CenterCrop(), seed=0)
        images = (batch.images for batch in in_order(crops, batch=16))
        palette = fitted_palette(images, size=chosen.codebook, rounds=chosen.palette_rounds, count=count, seed=0)
        palette.save(context.folder / "model", about={"images": count})
        return {}

    shaped = {"size": list(chosen.size), "held_out": chosen.held_out, "codebook": chosen.codebook}
    made = {"rounds": chosen.palette_rounds, "most": chosen.palette_images}
    return Step(
        name=f"tokenizer-{PALETTE}",
        settings={**data.described, **shaped, **made},
        work=work,
        after=data.after,
    )


def _codes(name: str, f: int, images: Images, chosen: FSweepSettings, load: Callable[[StepContext], Any]) -> Step:
    """The step that encodes crops that fill the priors' window, cut from images at their whole size."""

    def work(context: StepContext) -> dict[str, Any]:
        return codes_of_crops(
            load(context),
            images.path(context),
            context,
            window=chosen.window,
            size=chosen.size,
            held_out=chosen.held_out,
            copies=(chosen.copies, chosen.held_out_copies),
        )

    shaped = {"window": list(chosen.window), "size": list(chosen.size), "held_out": chosen.held_out, "f": f}
    copies = {"copies": chosen.copies, "held_out_copies": chosen.held_out_copies}
    return Step(
        name=f"codes-{name}",
        settings={**images.described, **shaped, **copies},
        work=work,
        after=(*images.after, f"tokenizer-{name}"),
    )


def _prior(name: str, training: PriorTraining, load: Callable[[StepContext], Any]) -> Step:
    """The step that trains a prior on the codes of one tokenizer; its folder is a run folder."""

    def work(context: StepContext) -> dict[str, Any]:
        return train_prior_on_codes(
            load(context), context.before[f"codes-{name}"].folder / "codes", context, settings=training
        )

    return Step(
        name=f"prior-{name}",
        settings={"training": steps.decisive(as_mapping(training))},
        work=work,
        after=(f"tokenizer-{name}", f"codes-{name}"),
    )


def _samples(
    name: str, f: int, images: Images, chosen: FSweepSettings, load: Callable[[StepContext], Any], *, with_frechet: bool
) -> Step:
    """The step that lays whole images by the sliding window, and compares them with all images there are."""

    def work(context: StepContext) -> dict[str, Any]:
        prior: Path = context.before[f"prior-{name}"].folder
        wanted = SampleSettings(number=chosen.samples, size=chosen.size, with_frechet=with_frechet)
        return generate_images(load(context), prior, images.path(context), context, wanted=wanted)

    return Step(
        name=f"samples-{name}",
        settings={
            **images.described,
            "count": chosen.samples,
            "size": list(chosen.size),
            "f": f,
            "judged": with_frechet,
        },
        work=work,
        after=(*images.after, f"tokenizer-{name}", f"prior-{name}"),
    )


F_SWEEP = Experiment(
    about="how large should the tile of a code be: reconstruction against composition over f, as in the paper's section 4.4",
    takes_models=False,
    settings=FSweepSettings,
    scales=SCALES,
    plan=plan,
    page=page,
)
