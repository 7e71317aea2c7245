"""Speed of stage 2 on this machine's CPU, as ratios to a peer in the same run. Prints one JSON line per item
at the end.

    python benchmarks/stage2.py [--peer "python bench_original.py --taming CHECKOUT"]

items
  stage2        GPT, vocabulary 1024, 8 layers, 8 heads, width 512, block 256, batch 4: forward, backward, AdamW
  stage2-bf16   the same with run.precision=bf16-mixed, against the peer in float32 (the original has nothing else);
                the floor is that of float32

Without --peer smalti is compared with a plain implementation in this file: attention written out with
a mask, and AdamW one parameter after the other.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pairs import Item, Workload, main
from smalti.prior import GPT, GPTSettings, nll, parameter_groups
from smalti.training.config import OptimizerSettings
from smalti.training.launcher import BFloat16
from smalti.training.optimizer import build_optimizer
from stage1 import count_gflop

BATCH = 4
SIZES = GPTSettings(
    vocab_size=1024, codebook_size=1024, grid=(16, 16), block_size=256, layers=8, embed_dim=512, heads=8, start_code=0
)
OPTIMIZER = OptimizerSettings(lr=4.5e-6, betas=(0.9, 0.95), weight_decay=0.01)


def network() -> GPT:
    torch.manual_seed(0)
    return GPT(SIZES)


def some_codes() -> Tensor:
    return torch.randint(0, SIZES.codebook_size, (BATCH, *SIZES.grid))


def trained(prior: GPT) -> Callable[[Tensor], None]:
    """A prior -> one step of its training on codes (B,h,w)."""
    optimizer = build_optimizer(parameter_groups(prior, weight_decay=OPTIMIZER.weight_decay), OPTIMIZER)
    prefix = prior.null_prefix(BATCH)

    def step(codes: Tensor) -> None:
        nll(prior, prefix, codes).mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def stage2_bf16() -> Workload:
    step, codes = trained(network()), some_codes()

    def run() -> None:
        with BFloat16("cpu").forward_context():
            step(codes)

    return Workload(run, step_floor())


def step_floor() -> float:
    """Operations that no step can do without: a forward pass, as many for the gradient of each input, and
    of each weight."""
    plain, inputs = PlainGPT(network()), some_codes().flatten(1)
    return 3 * count_gflop(torch.no_grad()(lambda: plain(inputs)))


def stage2() -> Workload:
    step, codes = trained(network()), some_codes()
    return Workload(lambda: step(codes), step_floor())


class PlainGPT(nn.Module):
    """The GPT's own weights, with the attention written out: codes (B,T) -> logits (B,T,V)."""

    def __init__(self, prior: GPT) -> None:
        super().__init__()
        self.prior = prior
        self.register_buffer("mask", torch.ones(SIZES.block_size, SIZES.block_size).tril())

    def forward(self, codes: Tensor) -> Tensor:
        prior, length = self.prior, codes.shape[1]
        x = prior.embedding(codes) + prior.positions.weight[:length]
        for block in prior.blocks:
            x = x + self.attended(block.attention, block.attention_norm(x))
            x = x + block.down(F.gelu(block.up(block.mlp_norm(x))))
        return prior.head(prior.norm(x))

    def attended(self, attention: nn.Module, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = (batch, length, attention.heads, width // attention.heads)
        queries, keys, values = (
            layer(x).view(heads).transpose(1, 2) for layer in (attention.query, attention.key, attention.value)
        )
        scores = (queries @ keys.transpose(-2, -1)) * heads[-1] ** -0.5
        scores = scores.masked_fill(self.mask[:length, :length] == 0, -torch.inf)
        seen = F.softmax(scores, dim=-1) @ values
        return attention.out(seen.transpose(1, 2).contiguous().view(batch, length, width))


def plain_stage2() -> Workload:
    model, codes = PlainGPT(network()), some_codes().flatten(1)
    optimizer = torch.optim.AdamW(
        parameter_groups(model.prior, weight_decay=OPTIMIZER.weight_decay),
        lr=OPTIMIZER.lr,
        betas=OPTIMIZER.betas,
        foreach=False,
    )
    inputs = F.pad(codes[:, :-1], (1, 0))

    def run() -> None:
        loss = F.cross_entropy(model(inputs).view(-1, SIZES.vocab_size), codes.view(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Workload(run, step_floor())


def run() -> None:
    """The command line."""
    ours: dict[str, Item] = {"stage2": stage2, "stage2-bf16": stage2_bf16}
    reference: dict[str, Item] = {"stage2": plain_stage2}
    main(__doc__ or "", {"ours": ours, "reference": reference}, compare={"stage2-bf16": "stage2"})


if __name__ == "__main__":
    run()
