"""All kernels compile where a compiler is: without them everything still works, slower, and no other test would
notice."""

from __future__ import annotations

import os
import shutil
from types import ModuleType

import pytest

from smalti.kernels import causal_attention, decode_block, group_norm, native, winograd


@pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc")) is None or native._instructions() is None or "SMALTI_DIRECT" in os.environ,
    reason="no C compiler, or a processor for which PyTorch is as fast",
)
@pytest.mark.parametrize(
    "kernel", [causal_attention, decode_block, group_norm, winograd], ids=lambda each: each.__name__
)
def test_kernels_compile(kernel: ModuleType) -> None:
    assert kernel._library() is not None
