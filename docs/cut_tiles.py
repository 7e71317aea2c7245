"""Cut photographs into square tiles, a folder for each: `python docs/cut_tiles.py PHOTOGRAPHS OUT [--size 600]`

The folder names become classes, and some tiles of each photograph can be held out, which a split by files could
not do. The tiles do not overlap; what is left over at the borders is cut off evenly. It made the training images of
the bundled model `materials` (docs/model-zoo.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image


def tiles(photograph: Image.Image, size: int) -> dict[str, Image.Image]:
    """Tiles of size x size pixels, named by row and column."""
    rows, columns = photograph.height // size, photograph.width // size
    top, left = (photograph.height - rows * size) // 2, (photograph.width - columns * size) // 2
    boxes = {
        f"{row}-{column}": (left + column * size, top + row * size) for row in range(rows) for column in range(columns)
    }
    return {name: photograph.crop((x, y, x + size, y + size)) for name, (x, y) in boxes.items()}


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
        for name, tile in tiles(Image.open(path).convert("RGB"), chosen.size).items():
            tile.save(folder / f"{name}.png")


if __name__ == "__main__":
    main()
