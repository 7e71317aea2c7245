"""Folders for code that is loaded and run, such as compiled kernels: no other user may be able to write there.

The rule is that of OpenSSH's StrictModes: the file, its folder and all folders above belong to the user or to the
administrator, and no other user may write into them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_ROOT = 0


def make_private_folder(path: Path) -> bool:
    """Make a folder that only this user may enter, unless there is something already -> whether it `is_private`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return False
    return path.is_dir() and is_private(path)


def is_private(path: Path) -> bool:
    """Whether only this user and the administrator can replace or change a file or folder.

    Links are followed, and the folders above the link count as well as those above what it leads to. Folders that all
    may write into but where each may only rename their own, such as /tmp, are fine above it. A group may write if it is
    the user's own, which has the user's number, as distributions with a umask of 002 have it.
    """
    if os.name != "posix":  # the cache is in the user's profile, whose access lists are not modes
        return True
    try:
        lexical, real = Path(os.path.abspath(path)), Path(os.path.realpath(path))
        found = real.stat()
        if found.st_uid not in (os.getuid(), _ROOT) or _others_write(found):
            return False
        above = {*lexical.parents, *real.parents}
        return all(_holds_privately(folder.stat()) for folder in above)
    except OSError:
        return False


def _holds_privately(folder: os.stat_result) -> bool:
    """Whether no other user can rename what this user has in a folder."""
    sticky = bool(folder.st_mode & stat.S_ISVTX)
    return folder.st_uid in (os.getuid(), _ROOT) and (sticky or not _others_write(folder))


def _others_write(found: os.stat_result) -> bool:
    own_group = found.st_gid == found.st_uid == os.getuid()
    return bool(found.st_mode & (stat.S_IWOTH if own_group else stat.S_IWOTH | stat.S_IWGRP))
