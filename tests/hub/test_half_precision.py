"""Priors under autocast to bfloat16, as run.precision=bf16-mixed has them: near what they are in float32."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from smalti.prior import Prior
from smalti.training import runs
from smalti.training.config import TokenizerTraining, resolve
from tests.prior import test_pixelsnail, test_prior
from tests.small import write_images, write_recipe

PRIORS: dict[str, Callable[[], Prior]] = {
    "pixelsnail": test_pixelsnail.small,
    **{kind: lambda kind=kind: test_prior.some(kind) for kind in test_prior.PRIORS},  # type: ignore[misc]
}


@pytest.mark.parametrize("has", [True, False])
def test_a_machine_without_bfloat16_is_reported(tmp_path: Path, has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path / "images")
    write_recipe(tmp_path / "small.yaml")
    monkeypatch.setattr(runs, "multiplies_bfloat16", lambda device: has)
    overrides = ("run.images=4", "run.precision=bf16-mixed", "run.accelerator=cpu")
    settings = resolve(TokenizerTraining, stage="tokenizer", recipe=str(tmp_path / "small.yaml"), overrides=overrides)
    message = io.StringIO()
    runs.train_tokenizer(tmp_path / "images", tmp_path / "run", settings=settings, console=Console(file=message))
    assert ("set run.precision=32-true" in " ".join(message.getvalue().split())) != has


@pytest.mark.parametrize("kind", PRIORS)
def test_logits_likelihood_and_gradient_are_near_those_of_single_precision(kind: str) -> None:
    prior = PRIORS[kind]()
    prefix = torch.zeros(3, prior.prefix_length, dtype=torch.int64)
    codes = torch.randint(prior.size, (3, 3, 4), generator=torch.Generator().manual_seed(0))
    inputs = prior.join(prefix, codes.flatten(1)[:, :-1])

    def computed(*, half: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B,T,V), the loss (), and its gradient, flat."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            logits = prior(inputs)
        seen = logits[:, prior.prefix_length - 1 :].float()  # what is said about the image codes
        loss = F.cross_entropy(seen.flatten(0, 1), codes.flatten())
        gradients = torch.autograd.grad(loss, list(prior.parameters()), allow_unused=True)
        return logits.detach(), loss.detach(), torch.cat([each.flatten() for each in gradients if each is not None])

    (logits, loss, gradient), (half, half_loss, half_gradient) = computed(half=False), computed(half=True)
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    assert half_gradient.isfinite().all()
    assert (half.softmax(2) - logits.softmax(2)).abs().mean() < 0.02
    assert float(half_loss) == pytest.approx(float(loss), rel=0.03)
    assert F.cosine_similarity(half_gradient, gradient, dim=0) > 0.95
