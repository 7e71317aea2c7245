"""A few of many, evenly spaced, such as the examples on a page."""

from __future__ import annotations


def evenly_spaced(length: int, count: int) -> list[int]:
    """`count` indices of `length` items, evenly spaced from the first on; all indices if there are fewer items.

    >>> evenly_spaced(10, 4)
    [0, 2, 5, 7]
    """
    count = min(count, length)
    return [index * length // count for index in range(count)]
