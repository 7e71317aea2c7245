"""Both stages joined: a condition -> codes -> images; completion and reconstruction of given images.

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
from smalti.conditions.base import Condition, Grid, check_count, everywhere, keys, value_of
from smalti.conditions.spatial import Maps
from smalti.core.arguments import tiles
from smalti.core.errors import SmaltiError
from smalti.core.files import folder_written_atomically
from smalti.core.settings import as_mapping
from smalti.generation.code_sampler import (
    Sampler,
    check_room,
    finished,
    sample_windows,
    sampler_of,
    seeds_from,
    unknown,
)
from smalti.generation.generation_checkpoint import Keeper, fingerprint
from smalti.hub.bundled_models import SCENES
from smalti.hub.model_cards import Sources, publish
from smalti.hub.pretrained import find_model, here
from smalti.images.io import NO_SETTINGS, to_array
from smalti.images.masks import whole_tiles
from smalti.images.png_stream import write_png
from smalti.prior import Prior, Window
from smalti.prior.code_likelihood import window_nats
from smalti.prior_folder import Network, load_prior, save_prior
from smalti.tokenizer.batches import Codes, Images, code_batch
from smalti.tokenizer.tiled.any_size import decode_of_any_size, decode_tiles, encode_of_any_size
from smalti.tokenizer.tiled.work import Progress, unwatched
from smalti.tokenizer.vqgan import VQGAN


@final
class Pipeline:
    """A tokenizer, a prior over its codes, and the condition that the prior knows."""

    def __init__(self, tokenizer: VQGAN, prior: Prior, condition: Condition) -> None:
        self.tokenizer = tokenizer.eval()
        self.prior = prior.eval()
        self.condition = condition

    @classmethod
    def from_pretrained(cls, name: str | Path = SCENES, *, grid: Grid | None = None) -> Pipeline:
        """A folder with `tokenizer` and `prior` in it (models or run folders), the Hub id of one, or a run folder of the original
        or another foreign format that holds both stages -> the pipeline, on the CPU.

        "scenes", the default, is the model that comes with smalti. `grid` (h,w): the window in codes, where a foreign checkpoint
        does not hold it. Raises `SmaltiError` when one is missing or damaged, or the prior has another tokenizer or grid.
        """
        root = here(name)
        if is_pipeline(root):
            return cls._native(root, grid=grid)
        parts = [part for part in ("tokenizer", "prior") if (root / part).is_dir()]
        imported = None if parts or not root.exists() else find_foreign(root, grid=grid)
        if imported is None:
            raise SmaltiError(_not_a_pipeline(root, parts))
        if imported.tokenizer is None or imported.prior is None or imported.condition is None:
            there, missing = ("tokenizer", "prior") if imported.prior is None else ("prior", "tokenizer")
            raise SmaltiError(f"{root} holds a {there} alone ({imported.format}); to sample, a {missing} is needed too")
        return cls(imported.tokenizer, imported.prior, imported.condition)

    @classmethod
    def _native(cls, root: Path, *, grid: Grid | None) -> Pipeline:
        tokenizer = VQGAN.from_pretrained(root / "tokenizer")
        saved = find_model(root / "prior", kind="prior")
        prior, condition = load_prior(saved)
        check_window(prior, grid, where=root)
        wanted, fingerprint = saved.settings["tokenizer_fingerprint"], tokenizer.fingerprint()
        if wanted != fingerprint:
            raise SmaltiError(
                f"the prior in {root} was trained on codes of the tokenizer {wanted}, but {root / 'tokenizer'} is {fingerprint}; "
                "train the prior again, or bring back its tokenizer"
            )
        return cls(tokenizer, prior, condition)

    def save_pretrained(self, folder: str | Path, *, about: Mapping[str, Any]) -> None:
        """Write the folders `tokenizer` and `prior` into `folder`, which must not exist yet.

        `about` is kept beside the tokenizer's settings, what it holds under the key "prior" beside the prior's.
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
        **given: Any,
    ) -> Tensor:
        """-> `count` images (B,C,H,W) in [-1,1] of `size` (H,W), with the seeds seed, seed + 1, ...

        An image depends on its own seed alone, not on the others it is sampled with. `given` is the condition by its key, such
        as `label="dusk"` or `segmentation=labels`; without it the condition is left open. Sizes above the trained one are laid by
        the sliding window. `speculate` codes are guessed at once: the image is the same, in fewer calls of the prior. Raises
        `SmaltiError` for an unknown key or label (listing those there are), for sizes that are no multiple of f, and for guesses
        above the trained size.
        """
        known, values = unknown(count, self.grid(size)), [self.value(given)] * count
        sampler = sampler_of(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            guidance=guidance,
            guidance_schedule=guidance_schedule,
        )
        seeds = self.seeds(seed, count)
        return self.decode(finished(self.lay(values, known, sampler=sampler, seeds=seeds, speculate=speculate)))

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
        keep: str | Path | None = None,
        **given: Any,
    ) -> Iterator[Tensor]:
        """As `sample`, one image, yielded (C,H,W) whenever another row's worth of codes is laid; what is not yet is mid-gray.

        At most one is yielded in `every` seconds, and the last in any case: each time all of it is decoded. With `keep` a loop that
        is left early, by Ctrl-C too, keeps what is laid in that file; the same call goes on, and ends in the same image.
        Raises `SmaltiError` as `sample`, and where the file keeps another laying.
        """
        known, values, seeds = unknown(1, self.grid(size)), [self.value(given)], self.seeds(seed, 1)
        sampler = sampler_of(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            guidance=guidance,
            guidance_schedule=guidance_schedule,
        )
        said = {"seed": seed, "size": size, **as_mapping(sampler), **given}
        keeper = self.keeper(Path(keep), values, known, sampler=sampler, seeds=seeds, said=said) if keep else None
        shown = -every
        with keeper or nullcontext():
            known = keeper.codes if keeper else known
            for codes in self.lay(values, known, sampler=sampler, seeds=seeds, speculate=speculate):
                if keeper:
                    keeper.laid(codes)
                if time.monotonic() - shown >= every or codes.min() >= 0:
                    yield self.partial(codes)[0]
                    shown = time.monotonic()

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
        """Images, as `encode` takes them, and a mask (H,W) bool, True where a pixel is kept -> completed images (B,C,H,W).

        A code is kept when its whole tile is. The code order is raster: what lies above and to the left of a code guides it;
        kept codes below and to the right stay, but do not guide what comes before them. `speculate` and errors as in `sample`.
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
        """As `complete`, the codes (B,h,w)."""
        kept = self.kept(images, known)
        seeds = self.seeds(seed, len(kept))
        return finished(self.lay(values, kept, sampler=sampler, seeds=seeds, speculate=speculate))

    def kept(self, images: Images, known: Tensor) -> Tensor:
        """Images and a mask (H,W) bool, True where a pixel is kept -> codes (B,h,w), -1 where one is to be laid.

        A code is kept when its whole tile is. Raises `SmaltiError` as `encode`, and as `masks.whole_tiles`.
        """
        images = self.tokenizer.batch(images)
        image = (images.shape[2], images.shape[3])
        whole = whole_tiles(known, factor=self.tokenizer.factor, image=image)  # (h,w)
        # The whole image is encoded, as in the paper's code: gray in place of what is laid anew would shift the statistics of
        # every GroupNorm, and with them the kept codes.
        codes = self.encode(images)
        return torch.where(whole.to(codes.device), codes, -1)

    def lay(
        self, values: Sequence[Any], known: Tensor, *, sampler: Sampler, seeds: Tensor, speculate: int = 0
    ) -> Iterator[Tensor]:
        """Values of the condition, None for "nothing", and codes (B,h,w) with -1 where one is to be laid -> the codes after each
        row, the last complete. Raises `SmaltiError` for values that the condition does not know and codes that are none, and for
        guesses (`speculate`, as in `sample`) on a grid above the trained one."""
        check_count(values, known)
        grid = (known.shape[1], known.shape[2])
        prefixes, middle = self.prefixes(values, grid=grid), self.condition.middle
        known = known.to(self.device)
        return sample_windows(
            self.prior, prefixes, sampler=sampler, seeds=seeds, known=known, middle=middle, speculate=speculate
        )

    def keeper(
        self, path: Path, values: Sequence[Any], known: Tensor, *, sampler: Sampler, seeds: Tensor, said: dict[str, Any]
    ) -> Keeper:
        """A file, what `lay` is given, and what is to be said of it -> what keeps the laying there. Raises as `Keeper`."""
        prefixes = partial(self.prefixes, values, grid=(known.shape[1], known.shape[2]))
        told = partial(fingerprint, self.prior, prefixes, known, sampler=sampler, seeds=seeds)
        return Keeper(path, known, hangs_on=told, settings=said)

    def fitted(self, texts: Mapping[str, str], *, size: tuple[int, int] | int | None) -> tuple[Any, tuple[int, int]]:
        """What a person typed for the condition by its keys, names or paths of files -> its value, and the image's grid (h,w).

        A map without a `size` (H,W) makes an image as large as it is itself, cut to whole tiles; with one it is scaled and cut.
        Raises `SmaltiError` for other keys, for files that cannot be read and for sizes that are no multiple of f.
        """
        self.value(texts)  # which refuses other keys
        grid, values = None if size is None else self.grid(size), {}
        for part in self.condition.parts or (self.condition,):
            if part.key in texts:
                values[part.key] = part.read(texts[part.key])
                if isinstance(part, Maps):
                    values[part.key], grid = part.fit(values[part.key], grid=grid)
        if grid is None:
            return self.value(values), self.grid(size)
        check_room(1, grid)
        return self.value(values), grid

    def value(self, given: Mapping[str, Any]) -> Any:
        """What was given by name -> the condition's value, None for "nothing". Raises `SmaltiError` for another name."""
        named, known = {key: value for key, value in given.items() if value is not None}, keys(self.condition)
        for key in named:
            if key not in known:
                takes = f"takes {' and '.join(map(repr, known))}" if known else "takes no condition"
                raise SmaltiError(f"this model {takes}, {key} = {named[key]!r:.40} was given; leave it out")
        return value_of(self.condition, named)

    def prefixes(self, values: Sequence[Any], *, grid: tuple[int, int]) -> Callable[[Window], Tensor]:
        """Values of the condition, None for "nothing", on a grid (h,w) of codes -> the prefix (B,P) at each place of the window."""
        said = [place for place, value in enumerate(values) if value is not None or self.condition.takes_none]
        if not said:
            return everywhere(self.prior.null_prefix(len(values)))
        laid = self.condition.laid([values[place] for place in said], grid=grid)
        if len(said) == len(values):
            return lambda window: laid(window).to(self.device)
        empty = self.prior.null_prefix(len(values))

        def mixed(window: Window) -> Tensor:
            told = laid(window).to(empty)
            prefix = empty[:, :1].repeat(1, told.shape[1])  # as long as the image's, where the prior sees all of it
            prefix[said] = told
            return prefix

        return mixed

    @torch.no_grad()
    def nats(self, codes: Codes, *, values: Sequence[Any]) -> Tensor:
        """Codes (B,h,w) of images of any size and what each is told, None for "nothing" -> nats of each code (B,h,w).

        That is how unlikely the prior itself finds a code after those before it, without temperature, filters or guidance. Raises
        `SmaltiError` for values that the condition does not know.
        """
        codes = code_batch(codes, size=self.prior.size).to(self.device)
        prefixes = self.prefixes(values, grid=(codes.shape[1], codes.shape[2]))
        return window_nats(self.prior, prefixes, codes, middle=self.condition.middle)

    def seeds(self, seed: int, count: int) -> Tensor:
        """seed, seed + 1, ... (count,) int64. Raises `SmaltiError` for seeds outside [0, 2^63), and for fewer than one."""
        return seeds_from(seed, count)

    def encode(self, images: Images, *, progress: Progress = unwatched) -> Tensor:
        """Images, as `VQGAN.encode` takes them: (B,C,H,W), floats in [-1,1] or uint8, or Pillow's -> codes (B,h,w).

        Large images in bounded memory; `progress` is told rows of pixels.
        """
        return encode_of_any_size(self.tokenizer, images, progress=progress).codes

    def decode(self, codes: Codes, *, progress: Progress = unwatched) -> Tensor:
        """Codes (B,h,w) -> images (B,C,H,W) in [-1,1] on the CPU, clamped; what is large and `progress` as in `encode`."""
        latents = self.tokenizer.latents_of(codes)
        return decode_of_any_size(self.tokenizer, latents, progress=progress).clamp_(-1, 1).contiguous()

    def save(
        self,
        path: str | Path,
        codes: Tensor,
        *,
        settings: Mapping[str, Any] = NO_SETTINGS,
        progress: Progress = unwatched,
    ) -> None:
        """Codes (h,w) -> a PNG file of their image, of any size, written as it is decoded. Settings, errors as `write_png`."""
        latents = self.tokenizer.latents_of(codes[None])
        height, width = (side * self.tokenizer.factor for side in codes.shape)
        strips = (to_array(strip[0]) for strip in decode_tiles(self.tokenizer, latents, progress=progress))
        write_png(Path(path), strips, size=(height, width), settings=settings)

    def reconstruct(self, images: Images) -> Tensor:
        """Images, as `encode` takes them -> what the tokenizer keeps of them (B,C,H,W)."""
        return self.decode(self.encode(images))

    def partial(self, codes: Tensor) -> Tensor:
        """Codes (B,h,w) of which some are -1 -> images (B,C,H,W), mid-gray where nothing is laid yet."""
        images, f = self.decode(codes.clamp(min=0)), self.tokenizer.factor
        laid = (codes >= 0).repeat_interleave(f, 1).repeat_interleave(f, 2).unsqueeze(1).cpu()
        return torch.where(laid, images, 0.0)

    def grid(self, size: tuple[int, int] | int | None) -> tuple[int, int]:
        """(H,W) in pixels, one number for both, None for the trained size -> (h,w).

        Raises `SmaltiError` when f does not divide them, for what is no size, and for what is beyond this machine's memory.
        """
        grid = tiles(self.default_size if size is None else size, factor=self.tokenizer.factor)
        check_room(1, grid)
        return grid


def amid(codes: Tensor, grid: tuple[int, int]) -> Tensor:
    """Codes (B,h,w) -> the same in the middle of a larger `grid`, -1 around them, where codes are to be laid.

    Where the middle is between two places, there is one row or column more below or to the right. Raises `SmaltiError` for a
    smaller grid.
    """
    height, width = codes.shape[1:]
    if grid[0] < height or grid[1] < width:
        raise SmaltiError(
            f"an image of {height} x {width} codes (height x width) has no place on a canvas of {grid[0]} x {grid[1]}; make the "
            "canvas larger or the image smaller"
        )
    top, left = (grid[0] - height) // 2, (grid[1] - width) // 2
    canvas = codes.new_full((len(codes), *grid), -1)
    canvas[:, top : top + height, left : left + width] = codes
    return canvas


def is_pipeline(root: Path) -> bool:
    return (root / "tokenizer").is_dir() and (root / "prior").is_dir()


def _not_a_pipeline(root: Path, parts: Sequence[str]) -> str:
    if not root.exists():
        return f"there is no folder {root}; it should hold the folders tokenizer and prior"
    part = "tokenizer" if "tokenizer" not in parts else "prior"
    train = f"smalti train {part} ... --out {root / part}"
    return f"{root} is not a pipeline: it has no folder {part}; train one with: {train}"
