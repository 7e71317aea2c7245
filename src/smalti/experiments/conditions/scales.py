"""What the experiment `conditions` trains at each scale: plain values, to be changed here or with `--set`."""

from __future__ import annotations

from smalti.experiments.base import Scale

_QUIET = [
    "run.log_every=200",
    "run.validate_every=1800",
    "run.sample_every=3600",
    "run.checkpoint_every=900",
    "run.tensorboard=false",
]

SCALES = {
    "tiny": Scale(
        about="four conditions for a minute each: ten minutes on two CPU cores; shows that all of it works, not "
        "how well",
        data="the embedded scenes at 64 pixels",
        renders_scenes=True,
        settings={
            "recipe": "demo",
            "tokenizer": ["run.images=1000", "objective.adversarial.weight=0", *_QUIET],
            "maps": ["run.images=800", "model.quantizer.codebook_size=128"],
            "prior": ["run.codes=61440", "run.sample_every=614400", "optimizer.lr=0.001", "run.tensorboard=false"],
            "conditions": ["label", "segmentation", "lowres", "coordinates"],
            "scenes": 400,
            "copies": 2,
            "scene_network_steps": 150,
            "samples": 24,
        },
    ),
    "small": Scale(
        about="nine conditions, three to ten minutes each, boxes and keypoints three times that: one to three "
        "hours on a CPU",
        data="the embedded scenes at 64 pixels",
        renders_scenes=True,
        settings={
            "recipe": "demo",
            "tokenizer": ["run.images=3600", *_QUIET],
            "maps": ["run.images=1500", "model.quantizer.codebook_size=256"],
            "prior": ["run.codes=409600", "run.sample_every=614400", "optimizer.lr=0.001", "run.tensorboard=false"],
            "scenes": 1600,
            "samples": 144,
            "shown": 9,
        },
    ),
    "full": Scale(
        about="nine conditions for as long as they gain from it: hours on a GPU; not run",
        data="the embedded scenes at 128 pixels",
        renders_scenes=True,
        settings={
            "recipe": "demo",
            "tokenizer": ["run.images=100000", "run.batch=16"],
            "maps": ["run.images=50000", "model.quantizer.codebook_size=512"],
            "prior": ["run.codes=100000000", "network.layers=8", "network.embed_dim=384", "network.heads=8"],
            "scenes": 20000,
            "size": [128, 128],
            "copies": 8,
            "scene_network_steps": 3000,
            "samples": 512,
        },
    ),
}
