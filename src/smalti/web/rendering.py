"""The large image of the page as HTML: what is laid so far, how long it will take, and what codes keep of an image."""

from __future__ import annotations

import html
import math

from smalti.images.io import Array
from smalti.web.code_images import as_text, colors, laid_so_far, mosaic
from smalti.web.studio import Moment, Reconstructed

SKETCH = 640  # pixels of the longer side of what is looked at for a moment
WHOLE = 2048  # ... of what stays

Shown = list[tuple[Array, str]]
"""Images (H,W,3 or 4) uint8, and what stands under each."""


def moment(now: Moment) -> str:
    """What is laid so far -> the images, a bar and the time that is left; when all is laid, the images alone."""
    if now.share >= 1:
        return stage([(colors(image), "") for image in now.images], said="", side=WHOLE)
    images: Shown = [(laid_so_far(image, codes), "") for image, codes in zip(now.images, now.codes, strict=True)]
    return stage(images, said=progress(now), side=SKETCH, share=now.share)


def stopped(last: Moment | None) -> str:
    """What was laid until a visitor cancelled, None for nothing."""
    if last is None:
        return waiting("Cancelled.")
    shown: Shown = [(laid_so_far(*both), "") for both in zip(last.images, last.codes, strict=True)]
    return stage(shown, said=f"Cancelled, {last.share:.0%} laid.", side=SKETCH)


def progress(now: Moment) -> str:
    """How much is laid, and how long the rest will take."""
    rows = now.codes.shape[1]
    whole = int((now.codes >= 0).all(dim=2).all(dim=0).sum())
    left = "" if math.isinf(now.left) else f", about {time_left(now.left)} left"
    return f"Row {min(whole + 1, rows)} of {rows}{left}"


def time_left(seconds: float) -> str:
    """Seconds -> as people say it."""
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    return f"{round(seconds / 60)} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def reconstruction(found: Reconstructed, *, size: int) -> str:
    """An image, what its codes keep of it, and the codes as a mosaic, side by side. `size` is that of the codebook."""
    rows, columns = found.codes.shape
    height, width = found.image.shape[1:]
    used = len(set(found.codes.flatten().tolist()))
    shown: Shown = [
        (colors(found.image), "Your image"),
        (colors(found.kept), f"What the codes keep of it: {found.psnr:.1f} dB"),
        (mosaic(found.codes, found.kept), f"{rows} x {columns} codes, {used} kinds of tiles"),
    ]
    bits = rows * columns * math.ceil(math.log2(size)) / 8
    said = f"{height * width * 3:,} bytes of pixels became {math.ceil(bits):,} bytes of codes."
    return stage(shown, said=said, side=WHOLE)


def stage(images: Shown, *, said: str, side: int, share: float | None = None) -> str:
    """Images side by side, a line of text, and a bar where a `share` is laid -> HTML."""
    columns = _columns(images)
    figures = "".join(_figure(pixels, caption, side=side) for pixels, caption in images)
    bar = "" if share is None else f'<div class="track"><i style="width:{share:.1%}"></i></div>'
    line = f'<p class="said" aria-live="polite">{html.escape(said)}</p>'
    style = f"grid-template-columns:repeat({columns},minmax(0,1fr))"
    return f'<div class="stage"><div class="images" style="{style}">{figures}</div>{bar}{line}</div>'


def _figure(pixels: Array, caption: str, *, side: int) -> str:
    height, width = pixels.shape[:2]
    shape = f"aspect-ratio:{width}/{height};width:min(100%,calc(70vh*{width}/{height}))"
    below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    alt = html.escape(caption or "The image")
    return f'<figure><img alt="{alt}" style="{shape}" src="{as_text(pixels, side=side)}">{below}</figure>'


def waiting(said: str) -> str:
    """No image yet, and why -> HTML."""
    return f'<div class="stage"><div class="empty"><p aria-live="polite">{html.escape(said)}</p></div></div>'


def _columns(images: Shown) -> int:
    """Wide images stand below one another, others side by side, three where it is so."""
    height, width = images[0][0].shape[:2]
    return max(1, min(len(images), math.ceil(math.sqrt(len(images) * 1.6 * height / width))))
