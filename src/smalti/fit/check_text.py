"""The text of the check before training: what was found, how much is cropped, and what should be changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from smalti.fit.found_conditions import FoundCondition
from smalti.fit.inspection import Inspection, Size

FEW, SOME = 100, 1000
"""With fewer images than the first number a prior memorizes; with fewer than the second it learns no details."""
RARE = 10
"""Images of a class below which it is not learned."""
MAJORITY = 0.9
"""Share of the images in one class above which the others are hardly learned."""
CUT_MUCH = 0.3
"""Share of an image outside of the largest crop above which it is mentioned."""
SIDE_STEP = 16
"""Sides that are suggested are multiples of it, as most tokenizers need."""
CLASSES_LISTED = 12


def check_rows(
    inspection: Inspection, found: Sequence[FoundCondition], *, chosen: Sequence[FoundCondition], size: Size
) -> list[tuple[str, str]]:
    """A data set, its conditions, those to train on, and the (H, W) of crops -> (what, in words) for each fact."""
    rows = [("images", _images(inspection)), ("sizes", _sizes(inspection))]
    if inspection.classes:
        rows.append(("subfolders", _classes(inspection)))
    rows.append(("damaged", _listed(inspection.damaged, inspection.damaged_files)))
    twins = [f"{first} = {second}" for first, second in inspection.duplicate_files]
    rows.append(("duplicates", _listed(inspection.duplicates, twins)))
    rows.append(("crops", f"{_pixels(size)}; {inspection.outside:.0%} of an image is outside of its largest crop"))
    names = [each.name for each in chosen]
    for each in found:
        used = "used" if each.name in names else f"not used: {each.problem or 'left out by --without'}"
        place = f" in {each.path}" if each.path else ""
        rows.append((f"condition {each.name}", f"{each.about}{place}; {used}"))
    if not found:
        rows.append(("conditions", "none found; the images are generated unconditionally"))
    return rows


def advice(inspection: Inspection, found: Sequence[FoundCondition], *, size: Size) -> list[str]:
    """A data set, its conditions and the (H, W) of crops -> what should be changed, a sentence each."""
    return [*_about_images(inspection, size), *_about_classes(inspection), *_about_conditions(found)]


def _about_images(inspection: Inspection, size: Size) -> Iterator[str]:
    count = inspection.images
    if count < FEW:
        yield (
            f"{_are(count, 'image')} too few: the prior will memorize them; add images of the same kind, several "
            "hundred at least"
        )
    elif count < SOME:
        yield (
            f"{count:,} images are enough for colors and layout, not for details; with some thousand of the same kind "
            "they become sharper"
        )
    smaller = _size_option((size[0] // 2, size[1] // 2))
    if inspection.unusable:
        yield (
            f"{_are(inspection.unusable, 'image')} too small and left out, since the least is {_pixels(_half(size))}; "
            f"use larger ones, or {smaller}"
        )
    if inspection.enlarged > inspection.decoded / 4:
        yield (
            f"{_are(inspection.enlarged, 'image')} smaller than {_pixels(size)} and enlarged, and so will be what is "
            f"generated; use larger ones, or {smaller}"
        )
    if inspection.outside > CUT_MUCH:
        shape = _shape_like(inspection.median, size)
        hint = f", or use their shape: {_size_option(shape)}" if shape != size else ""
        yield f"{inspection.outside:.0%} of an image is cut off on average; crop them to what matters{hint}"
    if inspection.damaged:
        yield f"{_are(inspection.damaged, 'file')} damaged and left out; remove such files, or copy them again"
    if inspection.duplicates:
        yield (
            f"{_are(inspection.duplicates, 'file')} a copy of another one; remove copies, since they are learned "
            "twice and may be held out too"
        )


def _about_classes(inspection: Inspection) -> Iterator[str]:
    classes = inspection.classes
    if len(classes) < 2 or inspection.without_class:
        return
    largest = max(classes, key=lambda label: classes[label])
    share = classes[largest] / inspection.images
    if share >= MAJORITY:
        yield (
            f"{share:.0%} of the images are in the class {largest}; add images of the others, or leave classes out: "
            "--without labels"
        )
    rare = [label for label, count in classes.items() if count < RARE]
    if rare:
        yield (
            f"{len(rare)} class{'es have' if len(rare) > 1 else ' has'} fewer than {RARE} images, such as {rare[0]}; "
            "add images, or move them to another class"
        )


def _about_conditions(found: Sequence[FoundCondition]) -> Iterator[str]:
    for each in found:
        if each.problem:
            yield f"the condition {each.name} is not used: {each.problem}"


def _images(inspection: Inspection) -> str:
    count = f"{inspection.images:,}"
    if inspection.decoded < inspection.images:
        return f"{count}, of which {inspection.decoded:,}, evenly spread, were decoded for this check"
    return count


def _sizes(inspection: Inspection) -> str:
    sizes = (inspection.smallest, inspection.median, inspection.largest)
    if len(set(sizes)) == 1:
        return f"{_pixels(sizes[0])} (height x width)"
    smallest, median, largest = map(_pixels, sizes)
    return f"{smallest} to {largest} (height x width), the middle one {median}"


def _classes(inspection: Inspection) -> str:
    ordered = sorted(inspection.classes.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{label} ({count:,})" for label, count in ordered[:CLASSES_LISTED])
    more = f" and {len(ordered) - CLASSES_LISTED} more" if len(ordered) > CLASSES_LISTED else ""
    none = f"; {inspection.without_class:,} images in none" if inspection.without_class else ""
    return f"{shown}{more}{none}"


def _listed(count: int, names: Sequence[str]) -> str:
    if not count:
        return "none"
    return f"{count:,}: {'; '.join(names)}{'; ...' if count > len(names) else ''}"


def _are(count: int, noun: str) -> str:
    """`1 image is`, `1,200 images are`."""
    return f"1 {noun} is" if count == 1 else f"{count:,} {noun}s are"


def _size_option(size: Size) -> str:
    """An option of the command that sets the (H, W) of crops, quoted for a shell."""
    return f"--set 'tokenizer.images.size={list(size)}'"


def _shape_like(full: Size, size: Size) -> Size:
    """The (H, W) of an image and of crops -> a shape as that of the image with the shorter side of the crops."""
    side = min(size)
    longer = max(round(side * max(full) / min(full) / SIDE_STEP), side // SIDE_STEP, 1) * SIDE_STEP
    return (side, longer) if full[1] >= full[0] else (longer, side)


def _half(size: Size) -> Size:
    return -(-size[0] // 2), -(-size[1] // 2)


def _pixels(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
