"""Short hashes that stand for values and for a network's weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def values_fingerprint(values: Any) -> str:
    """Plain values -> 16 hexadecimal digits of the SHA-256 of their JSON with sorted keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def weights_fingerprint(weights: Mapping[str, Tensor], *, identity: str = "") -> str:
    """A state dict -> 16 hexadecimal digits of the SHA-256 of its names and values: equal for equal weights.

    Values count as float32 numbers. `identity` is hashed before them: what else the network's output depends on.
    """
    digest = hashlib.sha256(identity.encode())
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
