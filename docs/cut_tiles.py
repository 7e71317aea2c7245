"""Cut photographs into square tiles, a folder for each: `python docs/cut_tiles.py PHOTOGRAPHS OUT [--size 600]`

The folder names become classes, and some tiles of each photograph can be held out, which a split by files could
not do. The tiles do not overlap; what is left over at the borders is cut off evenly. It made the training images of
the bundled model `materials` (docs/model-zoo.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from smalti.images.io import Array, read_image, save_png


def tiles(photograph: Array, size: int) -> dict[str, Array]:
    """(H,W,C) -> tiles of size x size pixels, named by row and column."""
    (rows, top), (columns, left) = ((n // size, n % size // 2) for n in photograph.shape[:2])
    return {
        f"{row}-{column}": photograph[top + row * size :, left + column * size :][:size, :size]
        for row in range(rows)
        for column in range(columns)
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=600)
    chosen = parser.parse_args()
    for path in sorted(chosen.photographs.glob("*.jpg")):
        folder = chosen.out / path.stem
        folder.mkdir(parents=True, exist_ok=True)
        for name, tile in tiles(read_image(path, channels=3, name=path.name), chosen.size).items():
            save_png(folder / f"{name}.png", tile)


if __name__ == "__main__":
    main()
