"""Jobs of the page: a bounded queue that is fair to addresses and sessions, and one worker.

The next job is that of the address, and then of the session, that has waited longest for its turn. So many jobs of one
visitor delay others by one job at most.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, final

from smalti.core.allocator import release_memory
from smalti.core.errors import SmaltiError
from smalti.web.limits import Limits, busy, too_many

logger = logging.getLogger("smalti")

Phase: TypeAlias = Literal["waiting", "running", "done", "failed", "cancelled"]
ABANDONED = 60.0
"""Seconds after which a job that no client looks at is cancelled."""
MAX_REMEMBERED = 4096
"""Addresses and sessions whose last turn is remembered."""


class ResultImage(NamedTuple):
    """A finished image: the name of its file, what is written below it, its seed, its size, and the PNG file."""

    name: str
    caption: str
    seed: int
    size: tuple[int, int]
    png: bytes


class Outcome(NamedTuple):
    """The result of a job: images, and facts about them as plain values."""

    images: tuple[ResultImage, ...]
    facts: dict[str, Any]


class Progress(NamedTuple):
    """How far a running job is: a fraction, the seconds left (infinite if unknown), and previews as data URLs."""

    share: float
    seconds_left: float
    previews: tuple[str, ...]


class Cancelled(Exception):  # noqa: N818 - named after what it is
    """A job was cancelled while it was running."""


class Task(ABC):
    """What a job does."""

    @property
    @abstractmethod
    def seconds(self) -> float:
        """The estimated time; 0 if unknown."""

    @abstractmethod
    def run(self, report: Report) -> Outcome:
        """The result. Calls `report` after every step, which raises `Cancelled` if the job was cancelled.

        Raises `SmaltiError`.
        """


@final
@dataclass(eq=False)
class Job:
    """A task of a session, and how far it is. `changed` counts the changes."""

    task: Task
    session: str
    address: str
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    phase: Phase = "waiting"
    progress: Progress | None = None
    outcome: Outcome | None = None
    error: str = ""
    changed: int = 0
    cancelled: bool = False
    watched: float = field(default_factory=time.monotonic)
    """When a client last looked at the job."""

    @property
    def is_over(self) -> bool:
        """Whether nothing happens to it any more."""
        return self.phase in ("done", "failed", "cancelled")

    @property
    def size(self) -> int:
        """Bytes of its images."""
        return sum(len(image.png) for image in self.outcome.images) if self.outcome else 0


@final
class Report:
    """What a running task reports to: its job's progress, and whether it is to stop."""

    def __init__(self, job: Job, is_wanted: Callable[[], bool]) -> None:
        self._job, self._is_wanted = job, is_wanted

    def check(self) -> None:
        """Raise `Cancelled` if the job was cancelled, or no client has looked at it for `ABANDONED` seconds."""
        if self._job.cancelled or not self._is_wanted():
            raise Cancelled

    def update(self, share: float, seconds_left: float, previews: tuple[str, ...] = ()) -> None:
        """The task's progress; without previews those before stay. Raises as `check`."""
        self.check()
        before = self._job.progress.previews if self._job.progress else ()
        self._job.progress = Progress(share, seconds_left, previews or before)
        self._job.changed += 1


@final
class JobQueue:
    """The jobs that wait, and the thread that runs them, one at a time."""

    def __init__(self, limits: Limits, *, idle: Callable[[], Task | None] = lambda: None) -> None:
        """`idle` gives a task for when no job waits, or None. It is interrupted when one does, and repeated."""
        self._limits, self._idle = limits, idle
        self._changed = threading.Condition()
        self._waiting: list[Job] = []
        self._order: list[Job] | None = None  # those in the order in which they will run; None if it has to be found
        self._running: Job | None = None
        self._turns: OrderedDict[str, int] = OrderedDict()  # address or session -> number of its last turn
        self._turn, self._closed = 0, False
        self._worker = threading.Thread(target=self._work, name="smalti-jobs", daemon=True)
        self._worker.start()

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, task: Task, *, session: str, address: str) -> Job:
        """A task -> its job, which waits. Raises `Refusal` if the queue is full, or the session or address has as many
        jobs as it may have."""
        with self._changed:
            self._drop_abandoned()
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            limits = self._limits
            if sum(job.session == session for job in jobs) >= limits.waiting_per_session:
                raise too_many(
                    f"you have {limits.waiting_per_session} jobs waiting already; wait for one of them, or cancel it"
                )
            if sum(job.address == address for job in jobs) >= limits.waiting_per_address:
                raise too_many(
                    f"{limits.waiting_per_address} jobs from your network are waiting already; try again in a minute"
                )
            if len(self._waiting) >= limits.waiting:
                raise busy(f"the queue is full: {limits.waiting} jobs are waiting; try again in a minute")
            job = Job(task, session, address)
            self._waiting.append(job)
            self._order = None
            self._changed.notify_all()
            return job

    def cancel(self, job: Job) -> None:
        """Cancel a job: a waiting one leaves its place at once, a running one stops after its current step."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._leave(job)
                job.phase = "cancelled"
                job.changed += 1

    def position(self, job: Job) -> tuple[int, float]:
        """A waiting job -> its place in the queue, 1 for the next, and the estimated seconds until it begins.

        (0, 0.0) for a job that does not wait.
        """
        with self._changed:
            ahead = 0.0
            if self._running is not None:
                running = self._running
                ahead = min(running.progress.seconds_left, 1e6) if running.progress else running.task.seconds
            for place, each in enumerate(self._in_order(), 1):
                if each is job:
                    return place, ahead
                ahead += each.task.seconds
        return 0, 0.0

    def has_jobs(self, session: str) -> bool:
        """Whether jobs of a session wait or run."""
        with self._changed:
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            return any(job.session == session for job in jobs)

    def close(self) -> None:
        """Cancel everything and end the worker."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.cancelled, job.phase = True, "cancelled"
            self._waiting.clear()
            self._order = None
            if self._running is not None:
                self._running.cancelled = True
            self._changed.notify_all()
        self._worker.join(timeout=30)

    def _in_order(self) -> list[Job]:
        """The waiting jobs in the order in which they will run, if none is added. Many clients ask for it often."""
        if self._order is None:
            self._order = []
            left, turns, turn = list(self._waiting), dict(self._turns), self._turn
            while left:
                job = min(left, key=lambda each: (turns.get(each.address, 0), turns.get(each.session, 0)))
                left.remove(job)
                turn += 1
                turns[job.address] = turns[job.session] = turn
                self._order.append(job)
        return self._order

    def _leave(self, job: Job) -> None:
        """A waiting job waits no more."""
        self._waiting.remove(job)
        self._order = None

    def _take(self) -> Job | None:
        """The next job, None if there is none; it runs from now on."""
        if not self._waiting:
            return None
        job = self._in_order()[0]
        self._leave(job)
        self._turn += 1
        for name in (job.address, job.session):
            self._turns[name] = self._turn
            self._turns.move_to_end(name)
        while len(self._turns) > MAX_REMEMBERED:
            self._turns.popitem(last=False)
        self._running, job.phase = job, "running"
        job.changed += 1
        return job

    def _work(self) -> None:
        idle: Task | None = None
        while not self._closed:
            with self._changed:
                self._drop_abandoned()
                job = self._take()
                if job is None and (idle := idle or self._idle()) is None:
                    self._changed.wait(timeout=1.0)
                    continue
            if job is not None:
                self._run(job)
            elif idle is not None and self._run_idle(idle):
                idle = None
            release_memory()

    def _run(self, job: Job) -> None:
        try:
            outcome = job.task.run(Report(job, lambda: time.monotonic() - job.watched < ABANDONED))
            phase: Phase = "done"
            job.outcome = outcome
        except Cancelled:
            phase = "cancelled"
        except SmaltiError as error:
            job.error, phase = str(error), "failed"
        except Exception:  # a defect: it is logged, and the server continues
            logger.exception("a job of the page failed")
            job.error, phase = "the server has a defect that stopped this job; its log has the details", "failed"
        with self._changed:
            job.phase, self._running = phase, None
            job.changed += 1

    def _run_idle(self, task: Task) -> bool:
        """Run a task while no job waits; returns whether it is over."""
        job = Job(task, session="", address="")
        with suppress(SmaltiError):
            try:
                task.run(Report(job, lambda: not self._waiting and not self._closed))
            except Cancelled:
                return False
        return True

    def _drop_abandoned(self) -> None:
        now = time.monotonic()
        for job in [each for each in self._waiting if now - each.watched > ABANDONED]:
            self._leave(job)
            job.cancelled, job.phase = True, "cancelled"
            job.changed += 1
