"""Sessions of the page: each has its own jobs, which no other session sees, stops or deletes.

The server makes the names of sessions and jobs from random numbers of 128 bits or more. Clients can neither
choose nor guess one.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import final

from smalti.web.jobs import Job
from smalti.web.limits import Limits, busy, too_many, unknown

IDLE = 120.0
"""Seconds without a request after which a session may be closed to make room for another one."""
MAX_JOBS = 24
"""Jobs of a session that are remembered; older ones that are over are forgotten."""


@final
class Session:
    """A session: its secret name, its network address, and its jobs, the oldest first."""

    def __init__(self, address: str) -> None:
        self.key, self.address = secrets.token_urlsafe(24), address
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.seen = time.monotonic()

    @property
    def is_busy(self) -> bool:
        """Whether a job waits or runs."""
        return any(not job.is_over for job in self.jobs.values())

    @property
    def size(self) -> int:
        """Bytes of finished images."""
        return sum(job.size for job in self.jobs.values())


@final
class Sessions:
    """The open sessions."""

    def __init__(self, limits: Limits, *, now: Callable[[], float] = time.monotonic) -> None:
        """`now`: the clock, in seconds."""
        self._limits, self._now, self._lock = limits, now, threading.Lock()
        self._known: dict[str, Session] = {}

    def __len__(self) -> int:
        return len(self._known)

    @property
    def size(self) -> int:
        """Bytes of finished images of all sessions."""
        with self._lock:
            return sum(session.size for session in self._known.values())

    def find(self, key: str) -> Session | None:
        """The session of a name, None for an unknown one."""
        with self._lock:
            session = self._known.get(key)
            if session is not None:
                session.seen = self._now()
            return session

    def open(self, address: str) -> Session:
        """A new session of an address. An idle one is closed where there is no room: of the same address if that has
        its share already.

        Raises `Refusal` if no session is idle. A session with a waiting or running job is never closed.
        """
        with self._lock:
            own = [session for session in self._known.values() if session.address == address]
            if len(own) >= self._limits.sessions_per_address:
                self._close_one(own, least=0.0, refusal=too_many("your network has too many open pages; close some"))
            elif len(self._known) >= self._limits.sessions:
                everybody = list(self._known.values())
                refusal = busy(f"{self._limits.sessions} pages are open, the most that are served; try again later")
                self._close_one(everybody, least=IDLE, refusal=refusal)
            session = Session(address)
            session.seen = self._now()
            self._known[session.key] = session
            return session

    def _close_one(self, sessions: list[Session], *, least: float, refusal: Exception) -> None:
        """Close the session that has been idle for longest, if for `least` seconds or more."""
        closable = [one for one in sessions if not one.is_busy and self._now() - one.seen >= least]
        if not closable:
            raise refusal
        del self._known[min(closable, key=lambda one: one.seen).key]

    def add(self, session: Session, job: Job) -> None:
        """A job of a session, which remembers the newest `MAX_JOBS`. Finished images beyond `limits.results` are
        forgotten, first the oldest of the session that holds most."""
        with self._lock:
            session.jobs[job.key] = job
            over = [key for key, one in session.jobs.items() if one.is_over]
            for key in over[: max(len(session.jobs) - MAX_JOBS, 0)]:
                del session.jobs[key]
            while sum(one.size for one in self._known.values()) > self._limits.results * 2**20:
                largest = max(self._known.values(), key=lambda one: one.size)
                del largest.jobs[next(key for key, one in largest.jobs.items() if one.size)]

    def job(self, session: Session | None, key: str) -> Job:
        """The job of a session by its name. Raises `Refusal` for an unknown one, and for one of another session."""
        job = session.jobs.get(key) if session is not None else None
        if job is None:
            raise unknown("there is no such job in this session; it may have been too long ago")
        job.watched = self._now()
        return job
