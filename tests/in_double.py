"""`smalti` in double precision, for tests that compare two trainings: `python in_double.py train tokenizer ...`.

Single precision tells processors apart there: convolutions of two images round otherwise than those of four, and after
twenty steps of Adam losses are 1e-5 off on some. In double precision what is left of rounding is far below any fault.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import pytest
from lightning_fabric import Fabric
from torch import Tensor

from smalti.cli.main import main
from smalti.data.loader import Batch
from smalti.training import launcher
from smalti.training.stage1 import TokenizerStage

PRECISION = {"precision": "64-true"}


def doubled(monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[object]:
    """Let trainings of this process be in double precision; inside the context new tensors are, too."""
    single = TokenizerStage._on_device

    def images(stage: TokenizerStage, batch: Batch) -> Tensor:
        return single(stage, batch).double()

    monkeypatch.setattr(TokenizerStage, "_on_device", images)
    monkeypatch.setattr(launcher, "_precision_arguments", lambda run: dict(PRECISION))
    return Fabric(accelerator="cpu", devices=1, **PRECISION).init_tensor()  # type: ignore[arg-type]


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patches, doubled(patches):
        main()
