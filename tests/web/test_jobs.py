"""The queue of jobs: fair, bounded, cancellable at any time; and the sessions that jobs belong to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from smalti.core.errors import SmaltiError
from smalti.web import jobs as jobs_module
from smalti.web.jobs import Cancelled, Job, JobQueue, Outcome, Report, ResultImage, Task
from smalti.web.limits import Limits, Refusal
from smalti.web.pace import Pace
from smalti.web.sessions import IDLE_SECONDS, MAX_JOBS, Sessions

LIMITS = Limits(waiting=6, waiting_per_session=3, waiting_per_address=4, sessions=4, sessions_per_address=3, results=1)


class Named(Task):
    """Notes its name, and waits until it may go on."""

    def __init__(self, name: str, done: list[str], gate: threading.Event, *, error: Exception | None = None) -> None:
        self.name, self.done, self.gate, self.error = name, done, gate, error
        self.began = threading.Event()

    @property
    def seconds(self) -> float:
        return 2.0

    def run(self, report: Report) -> Outcome:
        self.began.set()
        while not self.gate.wait(0.01):
            report.update(0.25, 3.0)
        report.check()
        if self.error:
            raise self.error
        self.done.append(self.name)
        return Outcome((), {"name": self.name})


@contextmanager
def queue(limits: Limits = LIMITS, **options: Any) -> Iterator[tuple[JobQueue, threading.Event, list[str]]]:
    """A queue, the gate that all tasks wait for, and the names of those that are done."""
    made, gate = JobQueue(limits, **options), threading.Event()
    try:
        yield made, gate, []
    finally:
        gate.set()
        made.close()


def until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_a_job_goes_from_waiting_to_done() -> None:
    with queue() as (made, gate, done):
        first = made.submit(Named("a", done, gate), session="s", address="x")
        second = made.submit(Named("b", done, gate), session="s", address="x")
        until(lambda: first.progress is not None)
        assert (first.phase, second.phase) == ("running", "waiting")
        assert made.position(first) == (0, 0.0)
        assert made.position(second) == (1, 3.0)  # the seconds left of the running one
        gate.set()
        until(lambda: second.is_over)
        assert done == ["a", "b"]
        assert second.outcome == Outcome((), {"name": "b"})


def test_turns_are_fair_to_addresses_and_to_sessions() -> None:
    with queue(Limits(waiting_per_session=9)) as (made, gate, done):
        blocker = Named("0", done, gate)
        made.submit(blocker, session="z", address="z")
        blocker.began.wait(5)
        many = [made.submit(Named(f"many{n}", done, gate), session="m", address="x") for n in range(3)]
        same = made.submit(Named("same address", done, gate), session="n", address="x")
        other = made.submit(Named("other", done, gate), session="o", address="y")
        assert [made.position(job)[0] for job in (*many, same, other)] == [1, 4, 5, 3, 2]
        until(lambda: made.position(other)[1] == 3.0 + 2.0)
        gate.set()
        until(lambda: len(done) == 6)
        assert done == ["0", "many0", "other", "same address", "many1", "many2"]


def test_the_queue_is_bounded_and_says_so() -> None:
    with queue() as (made, gate, done):
        blocker = Named("0", done, gate)
        made.submit(blocker, session="z", address="z")
        blocker.began.wait(5)
        for number in range(3):
            made.submit(Named("x", done, gate), session="a", address="x")
            if number == 2:
                with pytest.raises(Refusal, match="you have 3 jobs waiting already") as error:
                    made.submit(Named("x", done, gate), session="a", address="x")
                assert error.value.status == 429
        made.submit(Named("x", done, gate), session="b", address="x")
        with pytest.raises(Refusal, match="4 jobs from your network"):
            made.submit(Named("x", done, gate), session="c", address="x")
        for number in range(2):
            made.submit(Named("y", done, gate), session=f"d{number}", address=f"y{number}")
        with pytest.raises(Refusal, match="the queue is full: 6 jobs are waiting") as full:
            made.submit(Named("y", done, gate), session="e", address="z2")
        assert full.value.status == 503
        gate.set()
        until(lambda: len(done) == 7)
        made.submit(Named("later", done, gate), session="e", address="z2")  # and it goes on working
        until(lambda: done[-1] == "later")


def test_a_waiting_job_is_cancelled_at_once_and_frees_its_place() -> None:
    with queue() as (made, gate, done):
        running = made.submit(Named("a", done, gate), session="s", address="x")
        waiting = made.submit(Named("b", done, gate), session="s", address="x")
        last = made.submit(Named("c", done, gate), session="s", address="x")
        until(lambda: running.phase == "running")
        made.cancel(waiting)
        assert waiting.phase == "cancelled"
        assert made.position(last)[0] == 1
        made.submit(Named("d", done, gate), session="s", address="x")  # there is room again
        made.cancel(running)
        until(lambda: running.phase == "cancelled")
        gate.set()
        until(lambda: len(done) == 2)
        assert done == ["c", "d"]
        made.cancel(last)  # too late, and nothing happens
        assert last.phase == "done"


def test_errors_are_sentences_and_the_worker_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with queue() as (made, gate, done):
        gate.set()
        known = made.submit(Named("a", done, gate, error=SmaltiError("the map is unpainted")), session="s", address="x")
        defect = made.submit(Named("b", done, gate, error=ZeroDivisionError("/srv/secret")), session="s", address="x")
        good = made.submit(Named("c", done, gate), session="s", address="x")
        until(lambda: good.is_over)
        assert (known.phase, known.error) == ("failed", "the map is unpainted")
        assert defect.phase == "failed"
        assert "secret" not in defect.error
        assert "a job of the page failed" in caplog.text
        assert good.phase == "done"


def test_jobs_that_nobody_watches_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    with queue() as (made, gate, done):
        running = made.submit(Named("a", done, gate), session="s", address="x")
        waiting = made.submit(Named("b", done, gate), session="s", address="x")
        until(lambda: running.phase == "running")
        running.watched = waiting.watched = time.monotonic() - jobs_module.ABANDONED - 1
        until(lambda: running.phase == "cancelled")
        until(lambda: waiting.phase == "cancelled")
        assert done == []


def test_idle_work_yields_to_jobs_and_begins_again() -> None:
    gate, done = threading.Event(), list[str]()
    tasks = [Named("idle", done, gate)]
    with queue(idle=lambda: tasks.pop() if tasks else None) as (made, other_gate, _):
        until(lambda: not tasks)
        other_gate.set()
        made.submit(Named("job", done, other_gate), session="s", address="x")
        until(lambda: done == ["job"])
        gate.set()
        until(lambda: done == ["job", "idle"])


def test_closing_ends_everything() -> None:
    with queue() as (made, gate, done):
        running = made.submit(Named("a", done, gate), session="s", address="x")
        waiting = made.submit(Named("b", done, gate), session="s", address="x")
        until(lambda: running.phase == "running")
        made.close()
        assert (running.phase, waiting.phase) == ("cancelled", "cancelled")


def test_a_report_of_a_cancelled_job_raises() -> None:
    job = Job(Named("a", [], threading.Event()), "s", "x")
    report = Report(job, lambda: True)
    report.update(0.5, 1.0, ("first",))
    report.update(0.6, 1.0)
    assert job.progress is not None
    assert job.progress.previews == ("first",)
    job.cancelled = True
    with pytest.raises(Cancelled):
        report.check()
    with pytest.raises(Cancelled):
        Report(job, lambda: False).check()


# --- sessions ------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def job_of(phase: Any, *, bytes_of_png: int = 0) -> Job:
    job = Job(Named("a", [], threading.Event()), "s", "x", phase=phase)
    if bytes_of_png:
        job.outcome = Outcome((ResultImage("a.png", "a", 0, (1, 1), bytes(bytes_of_png)),), {})
    return job


def test_names_are_random_and_made_by_the_server() -> None:
    sessions = Sessions(LIMITS)
    names = {sessions.open(f"a{number}").key for number in range(4)}
    assert len(names) == 4
    assert all(len(name) >= 32 for name in names)
    assert sessions.find("chosen") is None
    assert len(sessions) == 4
    assert len(job_of("done").key) >= 22


def test_only_idle_sessions_are_closed_to_make_room() -> None:
    clock = Clock()
    sessions = Sessions(LIMITS, now=clock)
    opened = [sessions.open(f"a{number}") for number in range(4)]
    with pytest.raises(Refusal, match="4 pages are open") as error:
        sessions.open("b")  # all were seen a moment ago
    assert error.value.status == 503
    clock.seconds = IDLE_SECONDS + 1
    opened[0].jobs["j"] = job_of("waiting")
    sessions.find(opened[1].key)
    new = sessions.open("b")
    assert sessions.find(opened[2].key) is None  # the one that was idle for longest, and has no job
    assert all(sessions.find(one.key) for one in (opened[0], opened[1], opened[3], new))


def test_many_sessions_of_one_address_evict_each_other_alone() -> None:
    clock = Clock()
    sessions = Sessions(LIMITS, now=clock)
    victim = sessions.open("victim")
    clock.seconds = 1000.0
    for _ in range(100):
        clock.seconds += 1
        sessions.open("attacker")
    assert sessions.find(victim.key) is victim
    for session in list(sessions._known.values()):
        if session.address == "attacker":
            session.jobs["j"] = job_of("running")
    with pytest.raises(Refusal, match="your network has too many open pages"):
        sessions.open("attacker")


def test_jobs_belong_to_their_session_and_old_ones_are_forgotten() -> None:
    sessions = Sessions(LIMITS)
    one, other = sessions.open("a"), sessions.open("b")
    made = [job_of("done") for _ in range(MAX_JOBS + 5)]
    for job in made:
        sessions.add(one, job)
    assert len(one.jobs) == MAX_JOBS
    assert sessions.job(one, made[-1].key) is made[-1]
    for session, key in ((other, made[-1].key), (None, made[-1].key), (one, made[0].key)):
        with pytest.raises(Refusal, match="there is no such job"):
            sessions.job(session, key)


def test_finished_images_are_bounded_first_of_whom_has_most() -> None:
    sessions = Sessions(LIMITS)
    small, large = sessions.open("a"), sessions.open("b")
    kept = job_of("done", bytes_of_png=1000)
    sessions.add(small, kept)
    for _ in range(10):
        sessions.add(large, job_of("done", bytes_of_png=300_000))
    assert sessions.size <= 2**20
    assert sessions.job(small, kept.key) is kept
    assert len(large.jobs) == 3


# --- pace ----------------------------------------------------------------------------------------------------------


def test_times_are_estimated_from_measured_ones() -> None:
    pace = Pace((16, 16))
    assert pace.estimate((16, 16), codes=256, count=4, guided=True) == 0
    assert pace.per_code() == {}
    pace.record(2.0, (16, 16), codes=256, count=1, guided=False)
    assert pace.estimate((16, 16), codes=256, count=1, guided=False) == pytest.approx(2.0)
    assert pace.estimate((16, 16), codes=128, count=1, guided=False) == pytest.approx(1.0)
    assert 2 < pace.estimate((16, 16), codes=256, count=4, guided=True) < 8
    assert pace.estimate((16, 32), codes=512, count=1, guided=False) > 4  # slower beyond the window
    pace.record(30.0, (16, 32), codes=512, count=1, guided=False)
    assert pace.estimate((16, 32), codes=512, count=1, guided=False) == pytest.approx(30.0)
    assert [pace.region(grid) for grid in ((8, 16), (8, 17), (17, 17))] == ["window", "strip", "field"]
    pace.record(0.1, (16, 16), codes=0, count=1, guided=False)  # nothing was generated
    assert pace.estimate((16, 16), codes=256, count=1, guided=False) == pytest.approx(2.0)
