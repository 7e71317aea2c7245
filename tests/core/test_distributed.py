"""Scores of several processes are those of one: real processes, states exchanged by gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed
from torch.multiprocessing.spawn import spawn

from smalti.evaluation.distances import FeatureMoments, InceptionScore, frechet
from smalti.evaluation.metrics import Accumulator, CodeUse
from smalti.evaluation.nearest_neighbors import FeatureReservoir, kernel_distance, manifold

N, D, CLASSES = 60, 5, 4


def draws(seed: int) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(seed)) + seed


def counted(places: Tensor, *, batch: int) -> list[Accumulator]:
    """The images of one set whose places these are, counted by every kind of accumulator."""
    features = draws(0)
    moments, kept = FeatureMoments(D), FeatureReservoir(D, limit=40)
    score, use = InceptionScore(CLASSES, images=N, splits=3), CodeUse(16)
    for some in places.split(batch):  # type: ignore[no-untyped-call]
        moments.update(features[some])
        kept.update(features[some], some)
        score.update(features[some][:, :CLASSES], some)
        use.add(some % 16)
    return [moments, kept, score, use]


def scores(accumulators: list[Accumulator]) -> dict[str, float]:
    moments, kept, score, use = accumulators
    assert isinstance(moments, FeatureMoments)
    assert isinstance(kept, FeatureReservoir)
    assert isinstance(score, InceptionScore)
    assert isinstance(use, CodeUse)
    reference = FeatureMoments(D)
    reference.update(draws(1))
    near = manifold(kept.features(), draws(1))
    return {
        "frechet": frechet(moments.gaussian(), reference.gaussian()).value,
        "kernel": kernel_distance(kept.features(), draws(1), subsets=5, size=20).mean,
        "precision": near.precision,
        "recall": near.recall,
        "score": score.score().mean,
        "perplexity": use.perplexity,
    }


def _half(rank: int, folder: str) -> None:
    """One of two processes: its share of the images, then everyone's states."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(7))
    mine, total = counted(order[rank::2], batch=7), counted(order[:0], batch=7)
    for part, whole in zip(mine, total, strict=True):
        states = {}
        for name, tensor in part.state().items():
            gathered = [torch.empty_like(tensor) for _ in range(2)]
            distributed.all_gather(gathered, tensor.contiguous())
            states[name] = torch.stack(gathered)
        whole.merge_gathered(states)
    torch.save(scores(total), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    spawn(_half, args=(str(tmp_path),), nprocs=2)  # type: ignore[no-untyped-call]
    alone = scores(counted(torch.arange(N), batch=N))
    for rank in (0, 1):
        together = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert together == pytest.approx(alone, rel=1e-6)
