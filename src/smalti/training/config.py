"""The settings of a training run: a recipe (a YAML file), then `a.b=c` overrides, checked before anything starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import partial
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, final

import yaml
from pydantic import Field, model_validator
from typing_extensions import Self

from smalti.core.errors import SmaltiError, suggestion
from smalti.core.settings import (
    Amount,
    Fraction,
    Natural,
    Positive,
    Rate,
    amount,
    apply_override,
    as_mapping,
    parse,
    parse_yaml,
    settings,
)
from smalti.data.config import ImageSettings
from smalti.losses.objective import ObjectiveSettings
from smalti.tokenizer.code_replacement import MAX_TABLE_SIZE
from smalti.tokenizer.vqgan import VQGANSettings
from smalti.training.order_mixture import OrderMixture
from smalti.training.prior_networks import NetworkSettings, TransformerNetwork

T = TypeVar("T")


@settings
class OptimizerSettings:
    """AdamW with warm-up, cosine decay and gradient clipping.

    With `weight_decay` 0 it is Adam; with `warmup` 0 and `final_lr` 1 the learning rate is constant.
    """

    lr: Rate = 2e-4
    """Largest learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup: Fraction = 0.02
    """Fraction of the training over which the rate rises from 0."""
    final_lr: Fraction = 0.1
    """Fraction of the largest rate that the cosine ends at."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Gradients with a larger norm are scaled down to it; 0 does not clip."""


@settings
class RunSettings(ABC):
    """How long, how often, and on what. A tokenizer's run is counted in images, a prior's in codes."""

    batch: Positive = 16
    """Images per step, over all devices."""
    seed: Natural = 0
    ema_half_life: Annotated[float, Field(ge=0)] = 0.05
    """Half-life of the running average (EMA) of the weights, as a fraction of what has been seen; the average is
    exported. 0 keeps no average, and exports the weights themselves."""
    log_every: Positive
    validate_every: Positive
    sample_every: Positive
    checkpoint_every: Positive
    accelerator: str = "auto"
    """"auto", "cpu", "gpu": as Lightning Fabric names them."""
    devices: Natural = 0
    """Processes on each machine, one per GPU. 0: as many as torchrun or Slurm started, and one without them."""
    nodes: Natural = 0
    """Number of machines; 0 likewise."""
    strategy: str = "auto"
    """"auto" and "ddp": every process has the whole model, and gradients are averaged. "fsdp", of priors:
    each has a part of it."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """"bf16-mixed" computes convolutions and matrix products in half the memory; weights, distances and losses stay
    float32."""
    accumulate: Positive = 1
    """Number of parts of a process's share of the batch whose gradients are accumulated before an optimizer step, to
    save memory. The losses are those of the whole batch, but the adaptive weight of the discriminator is
    that of each part."""
    recompute: bool = False
    """Activation checkpointing: compute each block again in the backward pass. Less memory, about a third slower."""
    compile: bool = False
    """Compile the blocks with torch.compile: the first steps take minutes, later steps are faster."""
    max_skipped_steps: Positive = 10
    """A step whose metrics are not finite is skipped. Training stops after this many skipped steps in a row."""
    patience: Natural = 0
    """For a prior: training stops after this many validations without a better likelihood of held-out data; 0: never.
    The best model is exported in any case."""
    workers: Natural = 0
    """Processes that read images; 0 reads them in the training process."""
    tensorboard: bool = True

    @model_validator(mode="after")
    def _equal_parts(self) -> RunSettings:
        if self.batch % self.accumulate:
            raise ValueError(f"batch = {self.batch} cannot be cut into accumulate = {self.accumulate} equal parts")
        return self

    @property
    @abstractmethod
    def total(self) -> int:
        """How many images or codes are seen in all."""

    @abstractmethod
    def with_total(self, total: int) -> Self:
        """The same settings with another total."""


@final
@settings
class TokenizerRun(RunSettings):
    """The run of a tokenizer, counted in images."""

    images: Positive
    """How many images are seen in all."""

    @property
    def total(self) -> int:
        return self.images

    def with_total(self, total: int) -> TokenizerRun:
        return replace(self, images=total)


@final
@settings
class PriorRun(RunSettings):
    """The run of a prior, counted in codes."""

    codes: Positive
    """How many codes are seen in all."""

    @property
    def total(self) -> int:
        return self.codes

    def with_total(self, total: int) -> PriorRun:
        return replace(self, codes=total)


@settings
class DecoderPhaseSettings:
    """A last phase that freezes encoder and codebook, and trains the decoder on codes some of which are replaced."""

    start: Amount = 1.0
    """When it begins, as a fraction of the training or in images; 1.0: no such phase."""
    replaced: Fraction = 0.1
    """Probability that a code is replaced by one of its neighbors."""
    neighbors: Positive = 16
    """The number of nearest codes, by distance of latents, to draw from."""

    def begins(self, length: int) -> float:
        """When it begins in a training of `length` images, in images."""
        return amount(self.start, length=length)


@settings
class TokenizerTraining:
    """Stage 1."""

    run: TokenizerRun
    model: VQGANSettings = VQGANSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    discriminator_optimizer: OptimizerSettings = OptimizerSettings(betas=(0.5, 0.99))
    images: ImageSettings = ImageSettings()
    quantize_from: Fraction = 0.05
    """Fraction of the training after which the codebook is initialized and used; until then features are not
    quantized."""
    decoder_phase: DecoderPhaseSettings = DecoderPhaseSettings()

    @property
    def has_decoder_phase(self) -> bool:
        """Whether the decoder learns alone at the end."""
        return self.decoder_phase.begins(self.run.images) < self.run.images

    @model_validator(mode="after")
    def _whole_tiles(self) -> TokenizerTraining:
        (height, width), f = self.images.size, self.model.autoencoder.factor
        if height % f or width % f:
            raise ValueError(f"images.size = {height} x {width} is not made of tiles of {f} pixels, the model's factor")
        return self

    @model_validator(mode="after")
    def _alternating_batch_is_whole(self) -> TokenizerTraining:
        adversarial, parts = self.objective.adversarial, self.run.accumulate
        if adversarial.weight and adversarial.updates == "alternating" and parts > 1:
            raise ValueError(
                f"run.accumulate = {parts} and objective.adversarial.updates = alternating: the generator would be "
                "updated before the discriminator has seen all parts of the batch; set updates to simultaneous, or "
                "accumulate to 1"
            )
        return self

    @model_validator(mode="after")
    def _decoder_has_codes(self) -> TokenizerTraining:
        if not self.has_decoder_phase:
            return self
        phase, codes = self.decoder_phase, self.model.quantizer.size
        if self.quantize_from and phase.begins(self.run.images) <= self.quantize_from * self.run.images:
            raise ValueError(
                f"decoder_phase.start = {phase.start:g} is not after quantize_from = {self.quantize_from:g}, when the "
                "codes are placed that the decoder learns from; start later"
            )
        if phase.neighbors >= codes:
            raise ValueError(
                f"decoder_phase.neighbors = {phase.neighbors}, but each of the {codes} codes has only {codes - 1} "
                f"others; set it to {codes - 1} or less"
            )
        if (table := codes * phase.neighbors) > MAX_TABLE_SIZE:
            raise ValueError(
                f"decoder_phase.neighbors = {phase.neighbors} of each of {codes:,} codes are a table of {table:,}, and "
                f"{MAX_TABLE_SIZE:,} may be held; use fewer neighbors or fewer codes, or set decoder_phase.start=1"
            )
        return self


@settings
class CopiesSettings:
    """How images are encoded into code shards, where the prior is trained on images."""

    copies: Positive = 8
    """The number of random crops and flips of each training image that are encoded."""
    images: ImageSettings = ImageSettings()


@settings
class PriorTraining:
    """Stage 2."""

    run: PriorRun
    network: NetworkSettings = TransformerNetwork()
    condition: str = "auto"
    """The condition: "labels", the names of the images' subfolders; "unconditional"; or the name of the condition that
    was encoded with the images, such as "segmentation"; several with commas, such as "labels,text". "auto": that
    condition, else labels, else unconditional."""
    keep_probability: Fraction = 1.0
    """Probability that an input code of the prior is kept in training; all others are replaced by random codes, while
    the targets stay. The original's `pkeep`, against overfitting."""
    condition_dropout: Fraction = 0.1
    """Fraction of the training images whose condition is dropped, which classifier-free guidance needs. Of several
    conditions each is dropped with this probability, and all of them together."""
    part_dropout: dict[str, Fraction] = field(default_factory=dict)
    """The same for single ones of several conditions, by key, such as {segmentation: 0.7}: drop often what determines
    an image, so that the prior learns from the others too."""
    orders: OrderMixture = OrderMixture()
    """The orders of the training images, where `network.order` is "any"."""
    optimizer: OptimizerSettings = OptimizerSettings(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    encode: CopiesSettings = CopiesSettings()


STAGES: dict[str, type[TokenizerTraining] | type[PriorTraining]] = {
    "tokenizer": TokenizerTraining,
    "prior": PriorTraining,
}


def recipes() -> dict[str, str]:
    """The recipes that come with smalti: name -> what it is for, and what it costs where that was measured."""
    read = {name: yaml.safe_load(text()) for name, text in _texts().items()}
    return {name: " ".join(filter(None, (each["about"], each.get("measured")))) for name, each in read.items()}


def _texts() -> dict[str, Callable[[], str]]:
    """The recipes that come with smalti: name -> how to read its text."""
    folder = resources.files("smalti") / "recipes"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".yaml")), key=lambda entry: entry.name)
    return {Path(entry.name).stem: partial(entry.read_text, "utf-8") for entry in files}


def read_recipe(recipe: str) -> dict[str, Any]:
    """The name of a recipe, or a path to a YAML file -> its plain values.

    A recipe may be `like` one of those that come with smalti: it then says only what differs. Raises `SmaltiError` for
    an unknown name (listing those there are) and for a file that is not such YAML.
    """
    known = _texts()
    if recipe in known:
        text = known[recipe]()
    elif Path(recipe).is_file():
        text = Path(recipe).read_text("utf-8", errors="replace")
    else:
        raise SmaltiError(f"there is no recipe {recipe!r} and no such file; {suggestion(recipe, known)}")
    try:
        values = parse_yaml(text)
    except yaml.YAMLError as error:
        raise SmaltiError(f"recipe {recipe} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SmaltiError(f"recipe {recipe} must hold the sections 'about', 'tokenizer' and 'prior'")
    sections = ["about", "measured", "like", *STAGES]
    unknown = sorted(set(values) - set(sections), key=str)
    if unknown:
        raise SmaltiError(f"recipe {recipe}: unknown section {unknown[0]!r}; {suggestion(str(unknown[0]), sections)}")
    like, _ = values.pop("like", None), values.pop("measured", None)  # what another one like it costs is another thing
    if like is None:
        return values
    if like not in known:
        raise SmaltiError(
            f"recipe {recipe} is like {like!r}, which is not a recipe of smalti; {suggestion(str(like), known)}"
        )
    whole = read_recipe(like)
    return {**whole, **{key: _changed(whole.get(key), change) for key, change in values.items()}}


def _changed(values: Any, changes: Any) -> Any:
    """Nested values with `changes` merged in; where the kind of a part changes (its `name`), the whole part does."""
    if not (isinstance(values, dict) and isinstance(changes, dict)):
        return changes
    if "name" in changes and changes["name"] != values.get("name"):
        return changes
    return {**values, **{key: _changed(values.get(key), change) for key, change in changes.items()}}


def resolve(
    cls: type[T], *, stage: str, recipe: str, overrides: Sequence[str], fixed: Mapping[str, Any] = MappingProxyType({})
) -> T:
    """Settings of `stage` ("tokenizer" or "prior") from a recipe, with `a.b=c` overrides applied.

    `fixed`: sections that replace the recipe's.
    """
    values = read_recipe(recipe).get(stage)
    if not isinstance(values, dict):
        having = ", ".join(name for name in _texts() if stage in read_recipe(name))
        raise SmaltiError(f"recipe {recipe} has no section {stage!r}; those that have one are {having}")
    values = {**values, **fixed}
    for override in overrides:
        apply_override(values, override)
    return parse(cls, values, where=f"recipe {recipe}" + (" with --set" if overrides else ""))


def as_yaml(value: Any) -> str:
    """Settings, or plain values -> YAML text."""
    plain = value if isinstance(value, Mapping) else as_mapping(value)
    return yaml.safe_dump(dict(plain), sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
