"""Who is on the page: each visitor's own folder of images and wish to stop. Nobody sees another's; all are bounded."""

from __future__ import annotations

import re
import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, final

from torch import Tensor

from smalti.images.io import save_png
from smalti.web.requests import Limits


class Kept(NamedTuple):
    """An image that a visitor may take along, and what is written under it."""

    path: Path
    caption: str


@final
class Visitor:
    """One visitor: images, the newest first, and whether what is being laid is to stop."""

    def __init__(self, folder: Path, *, most: int) -> None:
        self.stop = threading.Event()
        self._folder, self._most, self._kept, self._lock = folder, most, list[Kept](), threading.Lock()

    @property
    def kept(self) -> list[Kept]:
        """The images, the newest first."""
        with self._lock:
            return list(self._kept)

    def keep(self, image: Tensor, *, name: str, caption: str, settings: Mapping[str, Any]) -> Path:
        """Write an image (C,H,W) with its settings in it -> its file. The oldest is forgotten where there are too
        many."""
        # Names come from models, whose labels may hold anything; the number keeps two of one name apart.
        plain = re.sub(r"[^\w-]+", "-", name).strip("-")[:60] or "image"
        path = self._folder / f"{plain}-{secrets.token_hex(3)}.png"
        save_png(path, image, settings=settings)
        with self._lock:
            self._kept.insert(0, Kept(path, caption))
            for old in self._kept[self._most :]:
                old.path.unlink(missing_ok=True)
            del self._kept[self._most :]
        return path

    def leave(self) -> None:
        """Stop, and remove all images."""
        self.stop.set()
        with self._lock:
            self._kept.clear()
        shutil.rmtree(self._folder, ignore_errors=True)


@final
class Visitors:
    """Visitors by the number that the page gives each of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._lock = limits, threading.Lock()
        self._root = tempfile.TemporaryDirectory(prefix="smalti-web-")
        self._known: OrderedDict[str, Visitor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def visitor(self, number: str) -> Visitor:
        """The visitor of a number, a new one for a new number. The one longest away makes room."""
        with self._lock:
            if number not in self._known:
                folder = Path(tempfile.mkdtemp(dir=self._root.name))
                self._known[number] = Visitor(folder, most=self._limits.kept)
            self._known.move_to_end(number)
            gone = [self._known.popitem(last=False)[1] for _ in range(len(self._known) - self._limits.visitors)]
            found = self._known[number]
        for visitor in gone:
            visitor.leave()
        return found

    def leave(self, number: str) -> None:
        """A visitor has closed the page."""
        with self._lock:
            visitor = self._known.pop(number, None)
        if visitor is not None:
            visitor.leave()

    def close(self) -> None:
        """Remove everything."""
        for number in list(self._known):
            self.leave(number)
        self._root.cleanup()
