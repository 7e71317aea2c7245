"""smalti: train discrete image tokenizers and priors on images, and generate images with them.

    tokenizer = smalti.VQGAN.from_pretrained("runs/photos/tokenizer")
    codes = tokenizer.encode(images).codes                       # (B, h, w)
    images = tokenizer.decode_codes(codes)                       # (B, C, H, W) in [-1, 1]
    pipeline = smalti.Pipeline.from_pretrained("runs/photos")    # without a name: the model that comes with smalti
    images = pipeline.sample(4, label="dusk", size=(256, 512), seed=0)

The names below are the public ones. They are loaded at first use, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from smalti.core.errors import SmaltiError
from smalti.core.version import __version__

if TYPE_CHECKING:
    from smalti.evaluation.rejection_sampling import rejection_sample
    from smalti.generation.code_sampler import Sampler
    from smalti.images import read_image, save_png, to_array, to_tensor
    from smalti.pipeline import Pipeline
    from smalti.prior import Transformer, TransformerSettings
    from smalti.tokenizer.quantizers import VQSettings
    from smalti.tokenizer.vqgan import VQGAN, VQGANSettings

_MODULES = {
    "Pipeline": "smalti.pipeline",
    "Sampler": "smalti.generation.code_sampler",
    "Transformer": "smalti.prior",
    "TransformerSettings": "smalti.prior",
    "VQGAN": "smalti.tokenizer.vqgan",
    "VQGANSettings": "smalti.tokenizer.vqgan",
    "VQSettings": "smalti.tokenizer.quantizers",
    "rejection_sample": "smalti.evaluation.rejection_sampling",
    "read_image": "smalti.images",
    "save_png": "smalti.images",
    "to_array": "smalti.images",
    "to_tensor": "smalti.images",
}

__all__ = [
    "VQGAN",
    "Pipeline",
    "Sampler",
    "SmaltiError",
    "Transformer",
    "TransformerSettings",
    "VQGANSettings",
    "VQSettings",
    "__version__",
    "read_image",
    "rejection_sample",
    "save_png",
    "to_array",
    "to_tensor",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'smalti' has no attribute {name!r}")
