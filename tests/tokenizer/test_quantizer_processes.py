"""Two processes that train together have the quantizer of one that sees both their batches: real processes, gloo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import spawn

from smalti.core.distributed import all_gather
from smalti.core.settings import parse
from smalti.tokenizer.quantizers import QUANTIZERS
from smalti.tokenizer.vqgan import VQGANSettings

STEPS = 3
QUANTIZED: dict[str, dict[str, Any]] = {
    "vq": {"name": "vq", "codebook_size": 24, "codebook_dim": 4, "usage_decay": 0.5, "dead_code_threshold": 0.6},
    "vq rotation": {
        "name": "vq",
        "codebook_size": 24,
        "codebook_dim": 4,
        "l2_normalize": False,
        "gradient": "rotation",
    },
    "ema": {"name": "ema", "codebook_size": 24, "codebook_dim": 4, "decay": 0.5, "dead_code_threshold": 0.6},
    "simvq": {"name": "simvq", "codebook_size": 24, "codebook_dim": 4},
    "gumbel": {"name": "gumbel", "codebook_size": 24, "codebook_dim": 4, "kl_weight": 0.1},
    "fsq": {"name": "fsq", "levels": [5, 4, 3, 3]},
    "lfq": {"name": "lfq", "codebook_dim": 4, "entropy": 1.0},
}


def images(step: int) -> Tensor:
    """Of everyone: (4,6,5,5)."""
    return torch.randn(4, 6, 5, 5, generator=torch.Generator().manual_seed(step))


def trained(plain: dict[str, Any], *, mine: slice) -> tuple[dict[str, Tensor], int]:
    """A linear encoder and the quantizer after some steps on this process's share -> their weights, and the codes that
    moved."""
    torch.manual_seed(0)
    settings = parse(VQGANSettings, {"quantizer": plain}, where="test").quantizer
    module = nn.ModuleDict({"encoder": nn.Conv2d(6, 4, 1), "quantizer": QUANTIZERS[settings.name](settings)})
    encoder: Any = module["encoder"]
    quantizer: Any = module["quantizer"]
    generator, moved = torch.Generator().manual_seed(5), 0
    if quantizer.init_features:
        quantizer.init_codebook(all_gather(encoder(images(100)[mine]).detach()), generator=generator)
    for step in range(STEPS):
        features = encoder(images(step)[mine])
        # Drawn codes are each process's own; what can be compared is the likeliest.
        quantize = quantizer if settings.name == "gumbel" else quantizer.schedule(step, length=STEPS)
        quantized = quantize(features)
        loss = quantized.latents.square().mean() + quantized.loss
        parameters = list(module.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                mean = all_gather(gradient.unsqueeze(0)).mean(0)  # as data-parallel training does
                parameter.sub_(mean, alpha=0.5)
        moved += quantizer.update_codebook(
            all_gather(features.detach()), all_gather(quantized.codes), generator=generator
        )
    return {name: value.clone() for name, value in module.state_dict().items()}, moved


def _half(rank: int, folder: str) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mine = slice(2 * rank, 2 * rank + 2)
    torch.save({name: trained(plain, mine=mine)[0] for name, plain in QUANTIZED.items()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_every_quantizer_is_tried() -> None:
    assert {plain["name"] for plain in QUANTIZED.values()} == set(QUANTIZERS)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    spawn(_half, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, plain in QUANTIZED.items():
        alone, moved = trained(plain, mine=slice(0, 4))
        if name in ("vq", "ema"):
            assert moved > 0, f"{name}: no code restarted, so that restarts were not compared"
        for key, value in alone.items():
            torch.testing.assert_close(found[0][name][key], value, rtol=1e-5, atol=1e-5, msg=f"{name} {key}")
            assert torch.equal(found[0][name][key], found[1][name][key]), f"{name} {key}"
