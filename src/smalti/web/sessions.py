"""Sessions of the page: each has its own bounded gallery and stop event, invisible to other sessions."""

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


class GalleryImage(NamedTuple):
    """An image that can be downloaded, and its caption."""

    path: Path
    caption: str


@final
class Session:
    """A session: its images, the newest first, and the event that stops its generation."""

    def __init__(self, folder: Path, *, most: int) -> None:
        self.stop = threading.Event()
        self._folder, self._most, self._kept, self._lock = folder, most, list[GalleryImage](), threading.Lock()

    @property
    def gallery(self) -> list[GalleryImage]:
        """The images, the newest first."""
        with self._lock:
            return list(self._kept)

    def keep(self, image: Tensor, *, name: str, caption: str, settings: Mapping[str, Any]) -> Path:
        """Write an image (C,H,W) with its settings -> its file. The oldest image is deleted beyond the limit."""
        # Labels may contain any character; the suffix keeps names unique.
        plain = re.sub(r"[^\w-]+", "-", name).strip("-")[:60] or "image"
        path = self._folder / f"{plain}-{secrets.token_hex(3)}.png"
        save_png(path, image, settings=settings)
        with self._lock:
            self._kept.insert(0, GalleryImage(path, caption))
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
class Sessions:
    """Sessions by the id that gradio gives each of them."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._lock = limits, threading.Lock()
        self._root = tempfile.TemporaryDirectory(prefix="smalti-web-")
        self._known: OrderedDict[str, Session] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def session(self, number: str) -> Session:
        """The session of an id, created for a new id. The least recently used one is closed beyond the limit."""
        with self._lock:
            if number not in self._known:
                folder = Path(tempfile.mkdtemp(dir=self._root.name))
                self._known[number] = Session(folder, most=self._limits.gallery)
            self._known.move_to_end(number)
            gone = [self._known.popitem(last=False)[1] for _ in range(len(self._known) - self._limits.sessions)]
            found = self._known[number]
        for session in gone:
            session.leave()
        return found

    def leave(self, number: str) -> None:
        """Close a session: the page was closed."""
        with self._lock:
            session = self._known.pop(number, None)
        if session is not None:
            session.leave()

    def close(self) -> None:
        """Remove everything."""
        for number in list(self._known):
            self.leave(number)
        self._root.cleanup()
