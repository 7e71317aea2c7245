"""HTML of the page's image area: partial images with their progress, and reconstructions."""

from __future__ import annotations

import html
import math

from smalti.generation.generation_loop import GenerationState
from smalti.generation.partial_images import PartialImages
from smalti.images.io import Array
from smalti.web.code_images import as_text, colors, masked_image, mosaic
from smalti.web.studio import Reconstruction

PREVIEW_SIDE = 640  # maximum longer side of previews in pixels
FINAL_SIDE = 2048  # ... of final images

CaptionedImages = list[tuple[Array, str]]
"""Images (H,W,3 or 4) uint8 and their captions."""


def generation(now: PartialImages) -> str:
    """A state of generation -> partial images, a progress bar and the time left; complete images alone."""
    if now.state.is_complete:
        return stage([(colors(image), "") for image in now.images], message="", side=FINAL_SIDE)
    images: CaptionedImages = [
        (masked_image(image, codes), "") for image, codes in zip(now.images, now.state.codes, strict=True)
    ]
    return stage(images, message=progress(now.state), side=PREVIEW_SIDE, share=now.state.share)


def stopped(last: PartialImages | None) -> str:
    """The last state before cancellation, None for none -> HTML."""
    if last is None:
        return waiting("Cancelled.")
    shown: CaptionedImages = [(masked_image(*both), "") for both in zip(last.images, last.state.codes, strict=True)]
    return stage(shown, message=f"Cancelled at {last.state.share:.0%}.", side=PREVIEW_SIDE)


def progress(state: GenerationState) -> str:
    """The row in progress and the time left."""
    rows = state.codes.shape[1]
    whole = int((state.codes >= 0).all(dim=2).all(dim=0).sum())
    left = "" if math.isinf(state.seconds_left) else f", about {time_left(state.seconds_left)} left"
    return f"Row {min(whole + 1, rows)} of {rows}{left}"


def time_left(seconds: float) -> str:
    """Seconds -> a short text."""
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    return f"{round(seconds / 60)} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def reconstruction(found: Reconstruction, *, size: int) -> str:
    """An image, its reconstruction and its codes as a mosaic, side by side. `size` is that of the codebook."""
    rows, columns = found.codes.shape
    height, width = found.image.shape[1:]
    used = len(set(found.codes.flatten().tolist()))
    shown: CaptionedImages = [
        (colors(found.image), "Original"),
        (colors(found.reconstruction), f"Reconstruction, PSNR {found.psnr:.1f} dB"),
        (mosaic(found.codes, found.reconstruction), f"{rows} x {columns} codes, {used} distinct"),
    ]
    bits = rows * columns * math.ceil(math.log2(size)) / 8
    message = f"{height * width * 3:,} bytes of pixels, {math.ceil(bits):,} bytes of codes."
    return stage(shown, message=message, side=FINAL_SIDE)


def stage(images: CaptionedImages, *, message: str, side: int, share: float | None = None) -> str:
    """Images side by side, a line of text, and a progress bar for a `share` -> HTML."""
    columns = _columns(images)
    figures = "".join(_figure(pixels, caption, side=side) for pixels, caption in images)
    bar = "" if share is None else f'<div class="track"><i style="width:{share:.1%}"></i></div>'
    line = f'<p class="message" aria-live="polite">{html.escape(message)}</p>'
    style = f"grid-template-columns:repeat({columns},minmax(0,1fr))"
    return f'<div class="stage"><div class="images" style="{style}">{figures}</div>{bar}{line}</div>'


def _figure(pixels: Array, caption: str, *, side: int) -> str:
    height, width = pixels.shape[:2]
    shape = f"aspect-ratio:{width}/{height};width:min(100%,calc(70vh*{width}/{height}))"
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    alt = html.escape(caption or "The image")
    return f'<figure><img alt="{alt}" style="{shape}" src="{as_text(pixels, side=side)}">{below}</figure>'


def waiting(message: str) -> str:
    """A message in place of an image -> HTML."""
    return f'<div class="stage"><div class="empty"><p aria-live="polite">{html.escape(message)}</p></div></div>'


def _columns(images: CaptionedImages) -> int:
    """Number of columns: wide images are stacked, others are placed side by side."""
    height, width = images[0][0].shape[:2]
    return max(1, min(len(images), math.ceil(math.sqrt(len(images) * 1.6 * height / width))))
