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

IDLE_SECONDS = 120.0
"""Seconds without a request after which a session may be closed to make room for another one."""
MAX_JOBS = 24
"""Jobs of a session that are remembered; older ones that are over are forgotten."""


@final
class Session:
    """A session: its secret name, its network address, and its jobs, the oldest first."""

    def __init__(self, address: str) -> None:
        self.key, self.address = secrets.token_urlsafe(24), address
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.last_seen = time.monotonic()

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
                session.last_seen = self._now()
            return session

    def open(self, address: str) -> Session:
        """Open a session for an address. If there is no room, the longest idle session is closed, one of the same
        address if that has its share already.

        Raises `Refusal` if no session is idle. A session with a waiting or running job is never closed.
        """
        with self._lock:
            own = [session for session in self._known.values() if session.address == address]
            if len(own) >= self._limits.sessions_per_address:
                self._close_one(own, min_idle=0.0, refusal=too_many("your network has too many open pages; close some"))
            elif len(self._known) >= self._limits.sessions:
                all_sessions = list(self._known.values())
                refusal = busy(f"{self._limits.sessions} pages are open, the most that are served; try again later")
                self._close_one(all_sessions, min_idle=IDLE_SECONDS, refusal=refusal)
            session = Session(address)
            session.last_seen = self._now()
            self._known[session.key] = session
            return session

    def _close_one(self, sessions: list[Session], *, min_idle: float, refusal: Exception) -> None:
        """Close the session that has been idle for longest, if for `min_idle` seconds or more."""
        closable = [
            session for session in sessions if not session.is_busy and self._now() - session.last_seen >= min_idle
        ]
        if not closable:
            raise refusal
        del self._known[min(closable, key=lambda session: session.last_seen).key]

    def add(self, session: Session, job: Job) -> None:
        """Add a job to a session, which keeps its newest `MAX_JOBS`. While finished images exceed `limits.results`, the
        session with the most of them forgets its oldest."""
        with self._lock:
            session.jobs[job.key] = job
            finished = [key for key, job in session.jobs.items() if job.is_over]
            for key in finished[: max(len(session.jobs) - MAX_JOBS, 0)]:
                del session.jobs[key]
            while sum(session.size for session in self._known.values()) > self._limits.results * 2**20:
                largest = max(self._known.values(), key=lambda session: session.size)
                del largest.jobs[next(key for key, job in largest.jobs.items() if job.size)]

    def job(self, session: Session | None, key: str) -> Job:
        """The job of a session by its name. Raises `Refusal` for an unknown one, and for one of another session."""
        job = session.jobs.get(key) if session is not None else None
        if job is None:
            raise unknown("there is no such job in this session; it may have been too long ago")
        job.watched = self._now()
        return job
