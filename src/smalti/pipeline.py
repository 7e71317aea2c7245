"""Both stages joined: a condition -> codes -> images; completion and reconstruction of images.

Notation: B batch, C channels, H W pixels, h w code grid, P prefix codes, f = H/h.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, final

import torch
from torch import Tensor

from smalti.checkpoints.base import check_window
from smalti.checkpoints.formats import find_foreign
from smalti.conditions.base import Condition, Grid, check_value_count, condition_keys, condition_value, constant_prefix
from smalti.core.arguments import tiles
from smalti.core.errors import SmaltiError
from smalti.core.files import folder_written_atomically
from smalti.core.progress_callback import Progress, no_progress
from smalti.core.settings import as_mapping
from smalti.generation.code_sampler import Sampler, make_sampler
from smalti.generation.generation_checkpoint import GenerationCheckpoint
from smalti.generation.generation_loop import GenerationState, final_codes, generate, generation_states
from smalti.generation.partial_images import PartialImages, PreviewSchedule
from smalti.generation.request import GenerationRequest, check_generation_memory, seed_range, unknown_codes
from smalti.hub.bundled_models import SCENES
from smalti.hub.model_cards import Sources, publish
from smalti.hub.pretrained import find_model, is_pipeline, missing_parts_message, resolve_model_path
from smalti.images.hole_filling import filled_hole
from smalti.images.io import NO_SETTINGS, to_array
from smalti.images.masks import whole_tiles
from smalti.images.png_stream import write_png
from smalti.images.seams import with_kept_pixels
from smalti.prior import Prior, Window
from smalti.prior.code_likelihood import window_nll
from smalti.prior_folder import load_prior, save_prior
from smalti.tokenizer.batches import Codes, Images, code_batch
from smalti.tokenizer.tiled.any_size import decode_of_any_size, decode_tiles, encode_of_any_size
from smalti.tokenizer.vqgan import VQGAN

NO_CONDITIONS: Mapping[str, Any] = MappingProxyType({})
"""No condition values: unconditional generation."""


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
        root = resolve_model_path(name)
        if is_pipeline(root):
            return cls._native(root, grid=grid)
        parts = [part for part in ("tokenizer", "prior") if (root / part).is_dir()]
        imported = None if parts or not root.exists() else find_foreign(root, grid=grid)
        if imported is None:
            raise SmaltiError(missing_parts_message(root, parts))
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
                f"the prior in {root} was trained on codes of the tokenizer {expected}, but {root / 'tokenizer'} is "
                f"{fingerprint}; train the prior again, or bring back its tokenizer"
            )
        return cls(tokenizer, prior, condition)

    def save_pretrained(self, folder: str | Path, *, about: Mapping[str, Any]) -> None:
        """Write the folders `tokenizer` and `prior` into `folder`, which must not exist yet.

        `about` is stored with the tokenizer's settings, except its key "prior", which is stored with the prior's.
        """
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
        parallel: int = 0,
        **conditions: Any,
    ) -> Tensor:
        """-> `count` images (B,C,H,W) in [-1,1] of `size` (H,W), with the seeds seed, seed + 1, ...

        An image depends only on its own seed, not on the rest of the batch. `conditions` are condition values by
        key, such as `label="dusk"` or `segmentation=labels`; without any, generation is unconditional. Sizes above
        the trained size use the sliding window. `speculate` is the number of draft codes per call: the image is the
        same, with fewer calls of the prior. `parallel` is a number of steps, several codes in each: faster and
        approximate, for any-order priors. Raises `SmaltiError` for an unknown key or label (listing the
        known ones), for sizes that are not multiples of f, and for speculation and parallel steps above the trained
        size.
        """
        request = self.request(
            unknown_codes(count, self.grid(size)),
            seed=seed,
            conditions=conditions,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            guidance=guidance,
            guidance_schedule=guidance_schedule,
            speculate=speculate,
            parallel=parallel,
        )
        return self.decode(final_codes(generate(self.prior, request)))

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
        parallel: int = 0,
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
        request = self.request(
            unknown_codes(1, self.grid(size)),
            seed=seed,
            conditions=conditions,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            guidance=guidance,
            guidance_schedule=guidance_schedule,
            speculate=speculate,
            parallel=parallel,
        )
        if checkpoint is None:
            states = generation_states(self.prior, request)
            yield from (partial.images[0] for partial in self.partial_images(states, every=every))
        else:
            settings = {"seed": seed, "size": size, **as_mapping(request.sampler), **conditions}
            with GenerationCheckpoint(Path(checkpoint), self.prior, request, settings=settings) as resumed:
                yield from (partial.images[0] for partial in self.partial_images(resumed.states(), every=every))

    def complete(
        self,
        images: Images,
        known: Tensor,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        guidance: float = 1.0,
        guidance_schedule: str = "constant",
        speculate: int = 0,
        parallel: int = 0,
        blend: bool = True,
        fill: bool = False,
        **conditions: Any,
    ) -> Tensor:
        """Images, as for `encode`, and a mask (H,W) bool, True for pixels to keep -> completed images (B,C,H,W).

        A code is kept if its whole tile is. An any-order prior conditions each new code on all kept ones.
        Others generate in raster order: each is conditioned on the codes above and to its left; kept codes below and
        to the right stay, but do not influence the codes before them. Kept pixels are the given ones, with a seam
        that cannot be seen (`images.seams`); with `blend` False all are the decoder's. `fill` as in `known_codes`.
        All images have the same `conditions`; `request_for` takes one per image. Options and errors as `sample`.
        """
        request = self.request(
            self.known_codes(images, known, fill=fill),
            seed=seed,
            conditions=conditions,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            guidance=guidance,
            guidance_schedule=guidance_schedule,
            speculate=speculate,
            parallel=parallel,
        )
        completed = self.decode(final_codes(generate(self.prior, request)))
        if not blend:
            return completed
        return with_kept_pixels(completed, self.tokenizer.batch(images).cpu(), known.cpu(), reach=self.tokenizer.factor)

    def request(
        self,
        known: Tensor,
        *,
        seed: int = 0,
        conditions: Mapping[str, Any] = NO_CONDITIONS,
        speculate: int = 0,
        parallel: int = 0,
        order: Tensor | None = None,
        **sampling: float | str,
    ) -> GenerationRequest:
        """Codes (B,h,w) with -1 for codes to generate, and the options of `sample` by name -> the request.

        The images have the seeds seed, seed + 1, ... and the same `conditions`, values by key. `sampling` are the
        fields of `Sampler`. Raises `SmaltiError` as `sample`.
        """
        values = [self.condition_value(conditions)] * len(known)
        sampler, seeds = make_sampler(**sampling), self.seeds(seed, len(known))
        return self.request_for(
            values, known, seeds=seeds, sampler=sampler, speculate=speculate, parallel=parallel, order=order
        )

    def request_for(
        self,
        values: Sequence[Any],
        known: Tensor,
        *,
        seeds: Tensor,
        sampler: Sampler,
        speculate: int = 0,
        parallel: int = 0,
        order: Tensor | None = None,
    ) -> GenerationRequest:
        """As `request`, with a condition value, None for unconditional, and a seed (B,) for each image.

        Raises `SmaltiError` for unknown condition values, and as `GenerationRequest`.
        """
        check_value_count(values, known)
        return GenerationRequest(
            self.window_prefix(values, grid=(known.shape[1], known.shape[2])),
            known.to(self.device),
            seeds=seeds,
            sampler=sampler,
            middle=self.condition.middle,
            speculate=speculate,
            parallel=parallel,
            order=order,
        )

    def partial_images(
        self, states: Iterable[GenerationState], *, every: float = 0.0, max_share: float = 1.0
    ) -> Iterator[PartialImages]:
        """States of a generation -> those that are due, with their images.

        Each decodes the whole images, so at most one is yielded per `every` seconds, and decoding takes at most
        `max_share` of the time. The first and the last state are always due.
        """
        schedule = PreviewSchedule(every=every, max_share=max_share)
        for state in states:
            if schedule.is_due or state.is_complete:
                with schedule:
                    images = self.decode_partial(state.codes)
                yield PartialImages(state, images)

    def known_codes(self, images: Images, known: Tensor, *, fill: bool = False) -> Tensor:
        """Images and a mask (H,W) bool, True for pixels to keep -> codes (B,h,w), -1 for codes to generate.

        A code is kept if its whole tile is. The whole image is encoded, as in the paper's code: kept codes depend a
        little on what is erased. With `fill` the hole is filled by its surroundings first (`images.hole_filling`),
        and they do not. Raises `SmaltiError` as `encode` and `masks.whole_tiles`.
        """
        images = self.tokenizer.batch(images)
        tiles = whole_tiles(known, factor=self.tokenizer.factor, image=(images.shape[2], images.shape[3]))  # (h,w)
        codes = self.encode(filled_hole(images, torch.as_tensor(known)) if fill else images)
        return torch.where(tiles.to(codes.device), codes, -1)

    def read_condition(
        self, texts: Mapping[str, str], *, size: tuple[int, int] | int | None
    ) -> tuple[Any, tuple[int, int]]:
        """Condition values as text by key, names or file paths -> the condition's value, and the image's grid
        (h,w).

        Without a `size` (H,W) a map determines the image's size and is cropped to whole tiles; with one it is
        scaled and cropped. Raises `SmaltiError` for unknown keys, for unreadable files and for sizes that are not
        multiples of f.
        """
        self.condition_value(texts)  # checks the keys
        values = {part.key: part.read(texts[part.key]) for part in self.condition.members if part.key in texts}
        value, grid = self.condition_value(values), None if size is None else self.grid(size)
        if value is not None:
            value, grid = self.condition.resize_to_grid(value, grid=grid)
        if grid is None:
            return value, self.grid(size)
        check_generation_memory(1, grid)
        return value, grid

    def condition_value(self, named_values: Mapping[str, Any]) -> Any:
        """Values by key -> the condition's value, None for unconditional. Raises `SmaltiError` for an unknown key."""
        values = {key: value for key, value in named_values.items() if value is not None}
        keys = condition_keys(self.condition)
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
            # As long as the image's, where the prior sees all of it.
            prefix = null_prefix[:, :1].repeat(1, codes.shape[1])
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
        """seed, seed + 1, ... (count,) int64. Raises `SmaltiError` unless all are in [0, 2^63) and count > 0."""
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
