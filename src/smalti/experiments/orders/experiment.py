"""The experiment `orders`: in which order should the codes of an image follow one another? The paper's appendix on
their ordering.

One tokenizer, one set of codes, one network, one rate. A prior for each order sees the same batches; all are evaluated
on the same held-out images, and generate images with the same seeds.

H W pixels, f = H/h, h w grid of codes, n = h w.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from smalti.core.errors import SmaltiError
from smalti.core.settings import Positive, settings
from smalti.experiments import prior_steps, steps
from smalti.experiments.base import Experiment, ExperimentRequest, Step, StepContext
from smalti.experiments.orders.findings import RASTER, findings
from smalti.experiments.sampling import SampleSettings, generate_images
from smalti.experiments.steps import ImageSource, check_overrides_used
from smalti.model_loading import load_tokenizer
from smalti.prior.order import ORDERS, Order


@settings
class OrdersSettings:
    """What is compared, and on what."""

    recipe: str
    """Of the tokenizer and of the priors."""
    tokenizer: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for the tokenizer."""
    prior: tuple[str, ...] = ()
    """`a.b=c` over the recipe, for all priors: their network, and `run.codes`, how many codes each sees."""
    orders: tuple[Order, ...] = tuple(ORDERS)
    """Those that are compared; raster, which the others are set against, is always one of them."""
    size: tuple[Positive, Positive]
    """(H,W) of all images."""
    copies: Positive
    """Crops of each training image that the priors are trained on the codes of. Of each held-out image there is one."""
    held_out: Annotated[float, Field(gt=0, lt=1)]
    """Fraction of the images that trainings do not see."""
    samples: Positive = 8
    """Images that each prior generates."""
    scenes: Positive = 480
    """How many scenes are rendered, where no images are given."""


def plan(chosen: OrdersSettings, request: ExperimentRequest) -> list[Step]:
    """Scenes where no images are given; the tokenizer and its codes; for each order a prior and its samples; the
    comparison."""
    check_overrides_used(request, trains=("tokenizer", "prior"))
    _check_orders(chosen.orders)
    images = ImageSource.of(request.data)
    tokenizer = prior_steps.tokenizer_training(
        chosen.recipe, chosen.tokenizer, request, size=chosen.size, held_out=chosen.held_out
    )
    trainings = {
        order: prior_steps.prior_training(chosen.recipe, chosen.prior, request, changes=[f"network.order={order}"])
        for order in chosen.orders
    }
    read = prior_steps.codes_of_images(tokenizer)
    parameters = {order: prior_steps.parameters(training, read) for order, training in trainings.items()}
    network = {"network": trainings[RASTER].network.name, "parameters": parameters[RASTER]}
    found = [] if request.data else [steps.scenes(count=chosen.scenes, size=chosen.size)]
    found += [
        steps.tokenizer("tokenizer", images=images, training=tokenizer),
        prior_steps.codes(
            images, grid=read.grid, size=chosen.size, held_out=chosen.held_out, copies=(chosen.copies, 1)
        ),
    ]
    for order, training in trainings.items():
        found += [prior_steps.prior(order, training), _samples(order, images, chosen)]
    return [*found, _comparing(chosen.orders, network)]


def _check_orders(orders: Sequence[Order]) -> None:
    """Raise `SmaltiError` if an order is named twice, or raster is not."""
    twice = next((order for order in orders if orders.count(order) > 1), None)
    if twice is not None:
        raise SmaltiError(f"orders = {', '.join(orders)} has {twice} twice; name each once")
    if RASTER not in orders:
        raise SmaltiError(
            f"orders = {', '.join(orders)} is without {RASTER}, which the others are compared with; add it"
        )


def _samples(order: Order, images: ImageSource, chosen: OrdersSettings) -> Step:
    """The step that generates images with the model that a training has kept, as `smalti sample` does."""

    def work(context: StepContext) -> dict[str, Any]:
        tokenizer = load_tokenizer(context.before["tokenizer"].folder)
        wanted = SampleSettings(number=chosen.samples, size=chosen.size, with_frechet=False)
        return generate_images(
            tokenizer, context.before[f"prior-{order}"].folder, images.path(context), context, wanted=wanted
        )

    return Step(
        name=f"samples-{order}",
        settings={"count": chosen.samples, "size": list(chosen.size)},
        work=work,
        after=(*images.after, "tokenizer", f"prior-{order}"),
    )


def _comparing(orders: Sequence[Order], network: Mapping[str, Any]) -> Step:
    """The step that measures the likelihood of each held-out image under all priors, with the exported model of each
    training.

    `network`: what all are, for the page.
    """

    def work(context: StepContext) -> dict[str, Any]:
        found = {order: torch.stack(list(prior_steps.validation_nll(context, order))) for order in orders}  # (B,h,w)
        values = {order: nats.mean((1, 2)).tolist() for order, nats in found.items()}
        done = {order: context.before[f"prior-{order}"].outcome for order in orders}
        return {
            "images": len(values[RASTER]),
            **network,
            "code_entropy_nats": done[RASTER]["code_entropy_nats"],
            "grid": list(found[RASTER].shape[1:]),
            "rows": {
                order: prior_steps.row(done[order], values[order], over=RASTER, others=values[RASTER])
                for order in orders
            },
            "by_turn": {order: in_turn(nats.mean(0), order).tolist() for order, nats in found.items()},
        }

    after = ("codes", *(f"prior-{order}" for order in orders))
    return Step(name="compare", settings={"orders": list(orders), **network}, work=work, after=after)


def in_turn(values: torch.Tensor, order: Order) -> torch.Tensor:
    """A number for each position (h,w) -> the same as the positions follow one another, (n,)."""
    h, w = values.shape
    return values.flatten()[ORDERS[order](h, w)]


ORDERS_COMPARED = Experiment(
    name="orders",
    about="in which order should the codes of an image follow one another: the paper's appendix on their ordering",
    takes_models=False,
    settings=OrdersSettings,
    scales_file=Path(__file__).with_name("scales.yaml"),
    plan=plan,
    findings=findings,
    page="experiments/orders/page.html",
)
