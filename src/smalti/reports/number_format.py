"""Numbers as people read them on a page."""

from __future__ import annotations

import math


def short(number: float) -> str:
    """A number -> about four significant digits, in thousands (k, M, G) from 10k up; a dash when it is not finite."""
    if not math.isfinite(number):
        return "\u2013"
    size = abs(number)
    if size >= 1e12 or 0 < size < 1e-3:
        mantissa, exponent = f"{number:.2e}".split("e")
        digits = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    else:
        units = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
        factor, letter = next((f, unit) for f, unit in units if size >= max(f, 1e4) or f == 1)
        digits = f"{number / factor:.4g}{letter}"
    return digits.replace("-", "\u2212")


def whole(number: int) -> str:
    """1234567 -> "1 234 567", with narrow spaces that do not break."""
    return f"{number:,}".replace(",", "\u202f").replace("-", "\u2212")


def counted(number: int, noun: str) -> str:
    """2, "image" -> "2 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def minutes(seconds: float) -> str:
    """90 -> "1.5"."""
    return f"{seconds / 60:.1f}"


def signed(mean: float, error: float | None) -> str:
    """A difference and its standard error, if it has one -> "+0.012 ± 0.003"."""
    spread = "" if error is None else f" ± {error:.3f}"
    return f"{mean:+.3f}{spread}".replace("-", "\u2212")
