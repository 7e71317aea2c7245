"""A private folder for files that a reader wants by path. It is removed at the end, or at the next start."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from smalti.conditions.base import Condition
from smalti.core.errors import SmaltiError
from smalti.web.uploads import Upload

PREFIX = "smalti-web-"


@final
class Scratch:
    """A folder that its owner alone can read (mode 700), named after this process."""

    def __init__(self) -> None:
        remove_stale()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))  # of mode 700

    def read(self, condition: Condition, file: Upload) -> Any:
        """A condition's file -> its value, by `Condition.read`. Errors name the upload, and no path."""
        suffix = Path(file.name).suffix[:8]
        path = self.folder / f"{secrets.token_hex(8)}{suffix if suffix[1:].isalnum() else ''}"
        try:
            path.write_bytes(file.data)
            return condition.read(str(path))
        except SmaltiError as error:
            raise SmaltiError(str(error).replace(str(path), file.name).replace(path.name, file.name)) from None
        finally:
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_stale() -> None:
    """Remove the folders of servers of this user that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        match = re.fullmatch(rf"{PREFIX}(\d+)-\w+", folder.name)
        with suppress(OSError):
            if match and folder.stat().st_uid == os.getuid() and not _runs(int(match[1])):
                shutil.rmtree(folder, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
