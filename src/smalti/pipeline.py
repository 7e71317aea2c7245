"""Both stages joined: a condition -> codes -> images; completion and reconstruction of images.

Letters: B batch, C channels, H W pixels, h w code grid, P prefix codes, f = H/h.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from smalti.checkpoints.base import check_window
from smalti.checkpoints.formats import find_foreign
from smalti.conditions.base import Condition, Grid, check_count, condition_keys, condition_value, constant_prefix
from smalti.conditions.spatial import SpatialCondition
from smalti.core.arguments import tiles
from smalti.core.errors import SmaltiError
from smalti.core.files import folder_written_atomically
from smalti.core.settings import as_mapping
from smalti.generation.code_sampler import (
    Sampler,
    check_generation_memory,
    final_codes,
    generate,
    make_sampler,
    seed_range,
    unknown_codes,
)
from smalti.generation.generation_checkpoint import GenerationCheckpoint, generation_fingerprint
from smalti.hub.bundled_models import SCENES
from smalti.hub.model_cards import Sources, publish
from smalti.hub.pretrained import find_model, here
from smalti.images.io import NO_SETTINGS, to_array
from smalti.images.masks import whole_tiles
from smalti.images.png_stream import write_png
from smalti.prior import Prior, Window
from smalti.prior.code_likelihood import window_nll
from smalti.prior_folder import Network, load_prior, save_prior
from smalti.tokenizer.batches import Codes, Images, code_batch
from smalti.tokenizer.tiled.any_size import decode_of_any_size, decode_tiles, encode_of_any_size
from smalti.tokenizer.tiled.tiled_progress import Progress, no_progress
from smalti.tokenizer.vqgan import VQGAN


@final
class Pipeline:
    """A tokenizer, a prior over its codes, and the prior's condition."""

    def __init__(self, tokenizer: VQGAN, prior: Prior, condition: Condition) -> None:
        self.tokenizer = tokenizer.eval()
        self.prior = prior.eval()
        self.condition = condition

    @classmethod
    def from_pretrained(cls, name: str | Path = SCENES, *, grid: Grid | None = None) -> Pipeline:
        """A folder with `tokenizer` and `prior` (models or run folders), the Hub id of one, or a run folder of the
        original or another foreign format that holds both stages -> the pipeline, on the CPU.

        "scenes", the default, is the model that comes with smalti. `grid` (h,w) is the window in codes, needed if a
        foreign checkpoint does not hold it. Raises `SmaltiError` if a model is missing or damaged, or if the prior
        has another tokenizer or grid.
        """
        root = here(name)
        if is_pipeline(root):
            return cls._native(root, grid=grid)
        parts = [part for part in ("tokenizer", "prior") if (root / part).is_dir()]
        imported = None if parts or not root.exists() else find_foreign(root, grid=grid)
        if imported is None:
            raise SmaltiError(_missing_parts_message(root, parts))
        if imported.tokenizer is None or imported.prior is None or imported.condition is None:
            present, missing = ("tokenizer", "prior") if imported.prior is None else ("prior", "tokenizer")
            raise SmaltiError(
                f"{root} holds a {present} alone ({imported.format}); to sample, a {missing} is needed too"
            )
        return cls(imported.tokenizer, imported.prior, imported.condition)

    @classmethod
    def _native(cls, root: Path, *, grid: Grid | None) -> Pipeline:
        tokenizer = VQGAN.from_pretrained(root / "tokenizer")
        saved = find_model(root / "prior", kind="prior")
        prior, condition = load_prior(saved)
        check_window(prior, grid, where=root)
        expected, fingerprint = saved.settings["tokenizer_fingerprint"], tokenizer.fingerprint()
        if expected != fingerprint:
            raise SmaltiError(
                f"the prior in {root} was trained on codes of the tokenizer {expected}, but {root / 'tokenizer'} is {fingerprint}; "
                "train the prior again, or bring back its tokenizer"
            )
        return cls(tokenizer, prior, condition)

    def save_pretrained(self, folder: str | Path, *, about: Mapping[str, Any]) -> None:
        """Write the folders `tokenizer` and `prior` into `folder`, which must not exist yet.

        `about` is stored with the tokenizer's settings, except its key "prior", which is stored with the prior's.
        """
        assert isinstance(self.prior, Network), "a prior of a kind that is in PRIORS"
        with folder_written_atomically(Path(folder)) as temporary:
            fingerprint = self.tokenizer.fingerprint()
            facts = {key: value for key, value in about.items() if key != "prior"}
            self.tokenizer.save_pretrained(temporary / "tokenizer", about={**facts, "fingerprint": fingerprint})
            facts = about.get("prior", {})
            save_prior(self.prior, self.condition, temporary / "prior", fingerprint=fingerprint, about=facts)

    def push_to_hub(
        self, name: str, *, license: str, about: Mapping[str, Any], private: bool = False, results: Sequence[Path] = ()
    ) -> str:
        """As `VQGAN.push_to_hub`, both stages; `about` as in `save_pretrained`."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "pipeline"
            self.save_pretrained(folder, about=about)
            return publish(folder, name, Sources(license, results=results), private=private)

    def to(self, device: torch.device | str) -> Pipeline:
        """Move all networks; returns the pipeline itself."""
        for network in (self.tokenizer, self.prior, *self.condition.networks):
            network.to(device)
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
        size: tuple[int, int] | int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        guidance: float = 1.0,
        guidance_schedule: str = "constant",
        speculate: int = 0,
        **conditions: Any,
    ) -> Tensor:
        """-> `count` images (B,C,H,W) in [-1,1] of `size` (H,W), with the seeds seed, seed + 1, ...

        An image depends only on its own seed, not on the rest of the batch. `conditions` are condition values by
        key, such as `label="dusk"` or `segmentation=labels`; without any, generation is unconditional. Sizes above
        the trained size use the sliding window. `speculate` is the number of draft codes per call: the image is the
        same, with fewer calls of the prior. Raises `SmaltiError` for an unknown key or label (listing the known
        ones), for sizes that are not multiples of f, and for speculation above the trained size.
        """
        known, values = unknown_codes(count, self.grid(size)), [self.condition_value(conditions)] * count
        sampler = make_sampler(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            guidance=guidance,
            guidance_schedule=guidance_schedule,
        )
        seeds = self.seeds(seed, count)
        return self.decode(
            final_codes(self.generate_codes(values, known, sampler=sampler, seeds=seeds, speculate=speculate))
        )

    def stream(
        self,
        *,
        size: tuple[int, int] | int | None = None,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        guidance: float = 1.0,
        guidance_schedule: str = "constant",
        speculate: int = 0,
        every: float = 0.0,
        checkpoint: str | Path | None = None,
        **conditions: Any,
    ) -> Iterator[Tensor]:
        """As `sample`, for one image, yielded (C,H,W) after each row's worth of codes; missing codes are mid-gray.

        At most one image is yielded per `every` seconds, plus the last one, since each yield decodes the whole
        image. With `checkpoint`, a loop that ends early, also by Ctrl-C, saves its codes to that file; the same
        call resumes, and gives the same image. Raises `SmaltiError` as `sample`, and if the file holds another
        generation.
        """
        known, values, seeds = (
            unknown_codes(1, self.grid(size)),
            [self.condition_value(conditions)],
            self.seeds(seed, 1),
        )
        sampler = make_sampler(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            guidance=guidance,
            guidance_schedule=guidance_schedule,
        )
        settings = {"seed": seed, "size": size, **as_mapping(sampler), **conditions}
        writer = (
            self.generation_checkpoint(Path(checkpoint), values, known, sampler=sampler, seeds=seeds, settings=settings)
            if checkpoint
            else None
        )
        last_shown = -every
        with writer or nullcontext():
            known = writer.codes if writer else known
            for codes in self.generate_codes(values, known, sampler=sampler, seeds=seeds, speculate=speculate):
                if writer:
                    writer.update(codes)
                if time.monotonic() - last_shown >= every or codes.min() >= 0:
                    yield self.decode_partial(codes)[0]
                    last_shown = time.monotonic()

    def complete(
        self,
        images: Images,
        known: Tensor,
        *,
        values: Sequence[Any],
        sampler: Sampler,
        seed: int = 0,
        speculate: int = 0,
    ) -> Tensor:
        """Images, as for `encode`, and a mask (H,W) bool, True for pixels to keep -> completed images (B,C,H,W).

        A code is kept if its whole tile is. Codes are generated in raster order: each is conditioned on the codes
        above and to its left. Kept codes below and to the right stay, but do not influence the codes before them.
        `speculate` and errors as in `sample`.
        """
        codes = self.complete_codes(images, known, values=values, sampler=sampler, seed=seed, speculate=speculate)
        return self.decode(codes)

    def complete_codes(
        self,
        images: Images,
        known: Tensor,
        *,
        values: Sequence[Any],
        sampler: Sampler,
        seed: int = 0,
        speculate: int = 0,
    ) -> Tensor:
        """As `complete`, but returns the codes (B,h,w)."""
        known_codes = self.known_codes(images, known)
        seeds = self.seeds(seed, len(known_codes))
        return final_codes(self.generate_codes(values, known_codes, sampler=sampler, seeds=seeds, speculate=speculate))

    def known_codes(self, images: Images, known: Tensor) -> Tensor:
        """Images and a mask (H,W) bool, True for pixels to keep -> codes (B,h,w), -1 where a code is to be
        generated.

        A code is kept if its whole tile is. Raises `SmaltiError` as `encode` and `masks.whole_tiles`.
        """
        images = self.tokenizer.batch(images)
        image = (images.shape[2], images.shape[3])
        known_tiles = whole_tiles(known, factor=self.tokenizer.factor, image=image)  # (h,w)
        # The whole image is encoded, as in the paper's code: gray in place of the generated part would shift the
        # statistics of every GroupNorm, and so the kept codes.
        codes = self.encode(images)
        return torch.where(known_tiles.to(codes.device), codes, -1)

    def generate_codes(
        self, values: Sequence[Any], known: Tensor, *, sampler: Sampler, seeds: Tensor, speculate: int = 0
    ) -> Iterator[Tensor]:
        """Condition values, None for unconditional, and codes (B,h,w) with -1 where a code is to be generated ->
        the codes after each row; the last are complete.

        Raises `SmaltiError` for unknown condition values and invalid codes, and for speculation (`speculate`, as in
        `sample`) on a grid above the trained one.
        """
        check_count(values, known)
        grid = (known.shape[1], known.shape[2])
        prefix_at, middle = self.window_prefix(values, grid=grid), self.condition.middle
        known = known.to(self.device)
        return generate(
            self.prior, prefix_at, sampler=sampler, seeds=seeds, known=known, middle=middle, speculate=speculate
        )

    def generation_checkpoint(
        self,
        path: Path,
        values: Sequence[Any],
        known: Tensor,
        *,
        sampler: Sampler,
        seeds: Tensor,
        settings: dict[str, Any],
    ) -> GenerationCheckpoint:
        """A file, the arguments of `generate_codes`, and the settings to store -> the checkpoint of that
        generation. Raises as `GenerationCheckpoint`."""
        prefixes = partial(self.window_prefix, values, grid=(known.shape[1], known.shape[2]))
        fingerprint = partial(generation_fingerprint, self.prior, prefixes, known, sampler=sampler, seeds=seeds)
        return GenerationCheckpoint(path, known, fingerprint=fingerprint, settings=settings)

    def fit_condition(
        self, texts: Mapping[str, str], *, size: tuple[int, int] | int | None
    ) -> tuple[Any, tuple[int, int]]:
        """Condition values as text by key, names or file paths -> the condition's value, and the image's grid
        (h,w).

        Without a `size` (H,W) a map determines the image's size and is cropped to whole tiles; with one it is
        scaled and cropped. Raises `SmaltiError` for unknown keys, for unreadable files and for sizes that are not
        multiples of f.
        """
        self.condition_value(texts)  # checks the keys
        grid, values = None if size is None else self.grid(size), {}
        for part in self.condition.parts or (self.condition,):
            if part.key in texts:
                values[part.key] = part.read(texts[part.key])
                if isinstance(part, SpatialCondition):
                    values[part.key], grid = part.fit(values[part.key], grid=grid)
        if grid is None:
            return self.condition_value(values), self.grid(size)
        check_generation_memory(1, grid)
        return self.condition_value(values), grid

    def condition_value(self, named_values: Mapping[str, Any]) -> Any:
        """Values by key -> the condition's value, None for unconditional. Raises `SmaltiError` for an unknown key."""
        values, keys = (
            {key: value for key, value in named_values.items() if value is not None},
            condition_keys(self.condition),
        )
        for key in values:
            if key not in keys:
                accepted = f"takes {' and '.join(map(repr, keys))}" if keys else "takes no condition"
                raise SmaltiError(f"this model {accepted}, {key} = {values[key]!r:.40} was given; leave it out")
        return condition_value(self.condition, values)

    def window_prefix(self, values: Sequence[Any], *, grid: tuple[int, int]) -> Callable[[Window], Tensor]:
        """Condition values, None for unconditional, on a grid (h,w) of codes -> the prefix (B,P) per window
        position."""
        conditioned = [row for row, value in enumerate(values) if value is not None or self.condition.optional]
        if not conditioned:
            return constant_prefix(self.prior.null_prefix(len(values)))
        encoded = self.condition.encode_windows([values[row] for row in conditioned], grid=grid)
        if len(conditioned) == len(values):
            return lambda window: encoded(window).to(self.device)
        null_prefix = self.prior.null_prefix(len(values))

        def mixed(window: Window) -> Tensor:
            codes = encoded(window).to(null_prefix)
            prefix = null_prefix[:, :1].repeat(
                1, codes.shape[1]
            )  # as long as the image's, where the prior sees all of it
            prefix[conditioned] = codes
            return prefix

        return mixed

    @torch.no_grad()
    def nll(self, codes: Codes, *, values: Sequence[Any]) -> Tensor:
        """Codes (B,h,w) of images of any size and their condition values, None for unconditional -> the negative
        log-likelihood of each code in nats (B,h,w).

        It is computed without temperature, filters or guidance. Raises `SmaltiError` for unknown condition values.
        """
        codes = code_batch(codes, size=self.prior.size).to(self.device)
        prefix_at = self.window_prefix(values, grid=(codes.shape[1], codes.shape[2]))
        return window_nll(self.prior, prefix_at, codes, middle=self.condition.middle)

    def seeds(self, seed: int, count: int) -> Tensor:
        """seed, seed + 1, ... (count,) int64. Raises `SmaltiError` for seeds outside [0, 2^63), and for fewer than one."""
        return seed_range(seed, count)

    def encode(self, images: Images, *, progress: Progress = no_progress) -> Tensor:
        """Images, as for `VQGAN.encode`: (B,C,H,W), floats in [-1,1] or uint8, or Pillow images -> codes (B,h,w).

        Large images take bounded memory; `progress` counts rows of pixels.
        """
        return encode_of_any_size(self.tokenizer, images, progress=progress).codes

    def decode(self, codes: Codes, *, progress: Progress = no_progress) -> Tensor:
        """Codes (B,h,w) -> images (B,C,H,W) in [-1,1] on the CPU, clamped. Memory and `progress` as in `encode`."""
        latents = self.tokenizer.latents_of(codes)
        return decode_of_any_size(self.tokenizer, latents, progress=progress).clamp_(-1, 1).contiguous()

    def save(
        self,
        path: str | Path,
        codes: Tensor,
        *,
        settings: Mapping[str, Any] = NO_SETTINGS,
        progress: Progress = no_progress,
    ) -> None:
        """Codes (h,w) -> a PNG file of the image, of any size, written while it is decoded. Settings and errors as
        `write_png`."""
        latents = self.tokenizer.latents_of(codes[None])
        height, width = (side * self.tokenizer.factor for side in codes.shape)
        strips = (to_array(strip[0]) for strip in decode_tiles(self.tokenizer, latents, progress=progress))
        write_png(Path(path), strips, size=(height, width), settings=settings)

    def reconstruct(self, images: Images) -> Tensor:
        """Images, as for `encode` -> their reconstructions (B,C,H,W)."""
        return self.decode(self.encode(images))

    def decode_partial(self, codes: Tensor) -> Tensor:
        """Codes (B,h,w), some of them -1 -> images (B,C,H,W), mid-gray where codes are missing."""
        images, f = self.decode(codes.clamp(min=0)), self.tokenizer.factor
        is_known = (codes >= 0).repeat_interleave(f, 1).repeat_interleave(f, 2).unsqueeze(1).cpu()
        return torch.where(is_known, images, 0.0)

    def grid(self, size: tuple[int, int] | int | None) -> tuple[int, int]:
        """(H,W) in pixels, one number for both, or None for the trained size -> (h,w).

        Raises `SmaltiError` if f does not divide them, for invalid sizes, and for sizes that exceed this machine's
        memory.
        """
        grid = tiles(self.default_size if size is None else size, factor=self.tokenizer.factor)
        check_generation_memory(1, grid)
        return grid


def is_pipeline(root: Path) -> bool:
    return (root / "tokenizer").is_dir() and (root / "prior").is_dir()


def _missing_parts_message(root: Path, parts: Sequence[str]) -> str:
    if not root.exists():
        return f"there is no folder {root}; it should hold the folders tokenizer and prior"
    part = "tokenizer" if "tokenizer" not in parts else "prior"
    train = f"smalti train {part} ... --out {root / part}"
    return f"{root} is not a pipeline: it has no folder {part}; train one with: {train}"
