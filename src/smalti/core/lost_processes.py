"""RuntimeErrors by which PyTorch reports a worker or rank that has died -> an error of one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from smalti.core.errors import SmaltiError

_WORKER = "DataLoader worker"
_PEER = ("closed by peer", "reset by peer", "Broken pipe", "remote process exited", "Socket Timeout", "gloo")


@contextmanager
def lost_processes_explained() -> Iterator[None]:
    """Inside, a worker process or another process of the same training that is killed is a `SmaltiError`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if _WORKER in text:
            raise SmaltiError(
                "a process that reads images was killed, most often by the system for want of memory; repeat the "
                "command with fewer of them (run.workers or --workers), or with a smaller images.cache_mib"
            ) from error
        if any(words in text for words in _PEER):
            raise SmaltiError(
                "another process of this training has ended, and the exchange with it failed "
                f"({text.splitlines()[0][:200]}); start all again with the same command to go on from the newest state"
            ) from error
        raise
