"""Two processes with half of the batch each give what one process gives with all of it: real processes,
joined by gloo."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from smalti.core.settings import parse
from smalti.losses.adversarial import LeCam
from smalti.losses.discriminator import DISCRIMINATORS
from smalti.losses.objective import ObjectiveSettings, ReconstructionLoss
from smalti.tokenizer.quantizers import Quantized
from smalti.training.gan_step import GAN, UPDATES, AdversarialSchedule, StepInputs, gan_step

BATCH, SIDE, STEPS = 4, 16, 3

GANS: dict[str, dict[str, Any]] = {
    "adaptive weight and LeCam": {"lecam": 0.5, "discriminator": {"base_channels": 8, "layers": 1}},
    "R1, blurred and spectral": {
        "r1": 2.0,
        "discriminator": {"name": "blur", "base_channels": 8, "layers": 1, "spectral": True},
    },
    "scales set by the first batch": {"discriminator": {"base_channels": 8, "layers": 1, "norm": "act"}},
}
GLOBAL = ("adaptive_weight", "full_weight", "gradient_norm", "discriminator_gradient_norm")
"""What a process records of all; the rest is of its own share, and is to be averaged."""


class _Tokenizer(nn.Module):
    """Images -> features, a loss of "codes" and reconstructions, in one forward, as a data-parallel wrapper needs
    it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, images: Tensor, quantize: Any) -> tuple[Tensor, Quantized, Tensor]:
        features = self.encoder(images).tanh()
        codes = torch.zeros(len(images), SIDE, SIDE, dtype=torch.int64)
        return features, Quantized(features, codes, features.square().mean()), self.last(features)


def _unused(features: Tensor) -> Quantized:
    raise AssertionError("this tokenizer has no quantizer")


def random_images() -> Tensor:
    drawn = torch.rand(STEPS, BATCH, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return drawn * 2 - 1


def trained(name: str, updates: str, *, rank: int, world: int) -> dict[str, Any]:
    """Some steps of one of `world` processes with its share of every batch -> what it recorded and where it came."""
    torch.manual_seed(0)
    values = {"perceptual": "none", "adversarial": {"updates": updates, **GANS[name]}}
    settings = parse(ObjectiveSettings, values, where="test")
    chosen = settings.adversarial.discriminator
    networks: list[Any] = [_Tokenizer().double(), DISCRIMINATORS[chosen.name](chosen).double()]
    with torch.no_grad():
        for parameter in networks[1].parameters():
            parameter.mul_(3.0)
    wrapped = [DistributedDataParallel(network) for network in networks] if world > 1 else networks
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.05) for network in networks]

    gan = GAN(
        fabric=Fabric(accelerator="cpu"),
        autoencoder=wrapped[0],
        discriminator=wrapped[1],
        discriminator_weights=list(wrapped[1].parameters()),
        reconstruction_loss=ReconstructionLoss(settings),
        last_layer=networks[0].last.weight,
        settings=settings,
        optimizer=optimizers[0],
        discriminator_optimizer=optimizers[1],
    )
    recorded, ema, share = [], LeCam.start(), BATCH // world
    for batch in random_images():
        images = batch[rank * share : (rank + 1) * share]
        inputs = StepInputs(
            quantize=_unused,
            schedule=AdversarialSchedule(0.7, 1.0),
            lecam_ema=ema,
            lr=0.05,
            discriminator_lr=0.05,
        )
        result = gan_step(gan, images, inputs)
        ema = result.lecam_ema
        recorded.append({key: value.double() for key, value in result.values.items()})
    state = [{key: value.clone() for key, value in network.state_dict().items()} for network in networks]
    return {"recorded": recorded, "lecam_ema": dict(ema._asdict()), "state": state}


def _half(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = {f"{name} {updates}": trained(name, updates, rank=rank, world=2) for name in GANS for updates in UPDATES}
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("together")
    spawn(_half, args=(str(folder),), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("updates", sorted(UPDATES))
@pytest.mark.parametrize("name", GANS)
def test_two_processes_train_as_one(name: str, updates: str, both: list[dict[str, Any]]) -> None:
    alone = trained(name, updates, rank=0, world=1)
    halves = [found[f"{name} {updates}"] for found in both]
    for half in halves:
        for a, b in zip(half["state"], alone["state"], strict=True):
            for key in a:
                torch.testing.assert_close(a[key], b[key], rtol=1e-9, atol=1e-11, msg=f"{name}: {key}")
        torch.testing.assert_close(half["lecam_ema"], alone["lecam_ema"], rtol=1e-10, atol=1e-12)
    for step, expected in enumerate(alone["recorded"]):
        first, second = (half["recorded"][step] for half in halves)
        assert first.keys() == second.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                (first[key] + second[key]) / 2, value, rtol=1e-8, atol=1e-11, msg=f"{name}: {key}"
            )
            if key in GLOBAL:
                torch.testing.assert_close(first[key], second[key], rtol=1e-10, atol=1e-12)
    assert first["reconstruction"] != second["reconstruction"]
