"""Both stages joined: a condition -> codes -> pictures; completion and reconstruction of given pictures.

Letters: B batch, C channels, H W pixels, h w code grid, P prefix codes, f = H/h.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from smalti.conditions.base import Condition
from smalti.conditions.labels import build_condition
from smalti.errors import SmaltiError, suggestion
from smalti.pretrained import find_model, load_weights_into, save_model
from smalti.prior import Prior, Sampler, Transformer, TransformerSettings, finished, sample, unknown
from smalti.settings import as_mapping, parse
from smalti.tokenizer.vqgan import VQGAN

PRIORS: dict[str, tuple[type[Transformer], type[TransformerSettings]]] = {
    "transformer": (Transformer, TransformerSettings)
}


def save_prior(
    prior: Transformer, condition: Condition, folder: Path, *, fingerprint: str, about: Mapping[str, Any]
) -> None:
    """Write a prior's model folder: its network, its condition, and the fingerprint of the tokenizer whose codes it knows."""
    settings = {
        "network": as_mapping(prior.settings),
        "condition": condition.settings(),
        "tokenizer_fingerprint": fingerprint,
    }
    save_model(folder, kind="prior", settings=settings, about=about, weights=prior.state_dict())


@final
class Pipeline:
    """A tokenizer, a prior over its codes, and the condition that the prior knows."""

    def __init__(self, tokenizer: VQGAN, prior: Prior, condition: Condition) -> None:
        self.tokenizer = tokenizer.eval()
        self.prior = prior.eval()
        self.condition = condition

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Pipeline:
        """A folder with `tokenizer` and `prior` in it (models or run folders) -> the pipeline, on the CPU.

        Raises `SmaltiError` when one of the two is missing or damaged, or when the prior belongs to another tokenizer.
        """
        root = Path(name).expanduser()
        if not root.is_dir():
            raise SmaltiError(f"there is no folder {root}; it should hold the folders tokenizer and prior")
        for part in ("tokenizer", "prior"):
            if not (root / part).is_dir():
                train = f"smalti train {part} ... --out {root / part}"
                raise SmaltiError(f"{root} is not a pipeline: it has no folder {part}; train one with: {train}")
        tokenizer = VQGAN.from_pretrained(root / "tokenizer")
        saved = find_model(root / "prior", kind="prior")
        for key in ("tokenizer_fingerprint", "network", "condition"):
            if key not in saved.settings:
                raise SmaltiError(
                    f"the config of {saved.folder} holds no {key}; copy it again or train the prior again"
                )
        wanted, fingerprint = saved.settings["tokenizer_fingerprint"], tokenizer.fingerprint()
        if wanted != fingerprint:
            raise SmaltiError(
                f"the prior in {root} was trained on codes of the tokenizer {wanted}, but {root / 'tokenizer'} is {fingerprint}; "
                "train the prior again, or bring back its tokenizer"
            )
        network = saved.settings["network"]
        kind = network.get("name")
        if kind not in PRIORS:
            raise SmaltiError(f"{saved.folder} holds an unknown prior {kind!r}; {suggestion(str(kind), PRIORS)}")
        build, options = PRIORS[kind]
        prior = build(parse(options, network, where=str(saved.folder)))
        load_weights_into(prior, saved)
        return cls(tokenizer, prior.requires_grad_(False), build_condition(saved.settings["condition"]))

    def to(self, device: torch.device | str) -> Pipeline:
        """Move both networks; returns the pipeline itself."""
        self.tokenizer.to(device)
        self.prior.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.prior.parameters()).device

    @property
    def default_size(self) -> tuple[int, int]:
        """(H,W) in pixels that the prior was trained on."""
        h, w = self.prior.grid
        return h * self.tokenizer.factor, w * self.tokenizer.factor

    def sample(
        self,
        count: int = 1,
        *,
        label: str | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
    ) -> Tensor:
        """-> `count` pictures (B,C,H,W) in [-1,1] of `size` (H,W), with the seeds seed, seed + 1, ...

        A picture depends on its own seed alone, not on the others it is sampled with. `label` None leaves the condition open.
        Sizes above the trained one are laid by the sliding window. Raises `SmaltiError` for an unknown label (listing those
        there are) and for sizes that are no multiple of f.
        """
        known, prefix = unknown(count, self.grid(size)), self.prefix([label] * count)
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        sampler = parse(Sampler, options, where="sampling")
        return self.decode(finished(self.lay(prefix, known, sampler=sampler, seeds=self.seeds(seed, count))))

    def stream(
        self,
        *,
        label: str | None = None,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        guidance: float = 1.0,
    ) -> Iterator[Tensor]:
        """As `sample`, one picture, yielded (C,H,W) after each row of codes; what is not laid yet is mid-grey."""
        known = unknown(1, self.grid(size))
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        sampler = parse(Sampler, options, where="sampling")
        for codes in self.lay(self.prefix([label]), known, sampler=sampler, seeds=self.seeds(seed, 1)):
            yield self.partial(codes)[0]

    def complete(
        self, images: Tensor, known: Tensor, *, labels: Sequence[str | None], sampler: Sampler, seed: int = 0
    ) -> Tensor:
        """Pictures (B,C,H,W) and a mask (H,W) bool, True where a pixel is kept -> completed pictures (B,C,H,W).

        A code is kept when its whole tile is. The code order is raster: what lies above and to the left of a code guides it;
        kept codes below and to the right stay, but do not guide what comes before them.
        """
        return self.decode(self.complete_codes(images, known, labels=labels, sampler=sampler, seed=seed))

    def complete_codes(
        self, images: Tensor, known: Tensor, *, labels: Sequence[str | None], sampler: Sampler, seed: int = 0
    ) -> Tensor:
        """As `complete`, the codes (B,h,w)."""
        if known.shape != images.shape[2:]:
            raise SmaltiError(
                f"the mask has the shape {tuple(known.shape)}, the picture (height, width) {tuple(images.shape[2:])}; "
                "give a mask of the picture's size"
            )
        f = self.tokenizer.factor
        # The whole picture is encoded, as in the paper's code: grey in place of what is laid anew would shift the statistics of
        # every GroupNorm, and with them the kept codes.
        codes = self.encode(images)
        whole = known.unfold(0, f, f).unfold(1, f, f).all(-1).all(-1)  # (h,w)
        codes = torch.where(whole.to(codes.device), codes, -1)
        seeds = self.seeds(seed, len(images))
        return finished(self.lay(self.prefix(labels), codes, sampler=sampler, seeds=seeds))

    @torch.no_grad()
    def lay(self, prefix: Tensor, known: Tensor, *, sampler: Sampler, seeds: Tensor) -> Iterator[Tensor]:
        """prefix (B,P) and codes (B,h,w) with -1 where one is to be laid -> the codes after each row, the last complete."""
        yield from sample(
            self.prior, prefix, (known.shape[1], known.shape[2]), sampler=sampler, seeds=seeds, known=known
        )

    def prefix(self, values: Sequence[Any]) -> Tensor:
        """Values of the condition, None for "nothing" -> prefix codes (B,P)."""
        empty = self.prior.null_prefix(len(values))
        given = [value for value in values if value is not None]
        encoded = self.condition.encode(given)
        places = [place for place, value in enumerate(values) if value is not None]
        empty[places] = encoded.to(empty.device)
        return empty

    def seeds(self, seed: int, count: int) -> Tensor:
        """seed, seed + 1, ... (count,) int64. Raises `SmaltiError` for seeds outside [0, 2^63)."""
        if seed < 0 or seed + count >= 2**63:
            raise SmaltiError(
                f"the seed {seed} is not from 0 to {2**63 - 1 - count}; choose a smaller one, not negative"
            )
        return torch.arange(seed, seed + count)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures (B,C,H,W) in [-1,1] -> codes (B,h,w)."""
        return self.tokenizer.encode(images.to(self.device)).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B,h,w) -> pictures (B,C,H,W) in [-1,1] on the CPU, clamped."""
        return self.tokenizer.decode_codes(codes.to(self.device)).clamp(-1, 1).cpu().contiguous()

    def reconstruct(self, images: Tensor) -> Tensor:
        """Pictures (B,C,H,W) -> what the tokenizer keeps of them (B,C,H,W)."""
        return self.decode(self.encode(images))

    def partial(self, codes: Tensor) -> Tensor:
        """Codes (B,h,w) of which some are -1 -> pictures (B,C,H,W), mid-grey where nothing is laid yet."""
        f = self.tokenizer.factor
        laid = (codes >= 0).repeat_interleave(f, 1).repeat_interleave(f, 2).unsqueeze(1).cpu()
        return torch.where(laid, self.decode(codes.clamp(min=0)), 0.0)

    def grid(self, size: tuple[int, int] | None) -> tuple[int, int]:
        """(H,W) in pixels, None for the trained size -> (h,w). Raises `SmaltiError` when f does not divide them."""
        height, width = self.default_size if size is None else size
        f = self.tokenizer.factor
        if height % f or width % f or height < f or width < f:
            raise SmaltiError(
                f"a picture of {height} x {width} (height x width) is not made of tiles of {f} pixels; "
                f"try {max(round(height / f), 1) * f}x{max(round(width / f), 1) * f}"
            )
        return height // f, width // f
