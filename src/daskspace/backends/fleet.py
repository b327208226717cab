"""The batch jobs of a cluster: as many as are needed, and what becomes of them."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskspace.clusters.leftovers import cancel_jobs
from daskspace.clusters.queues import Queue, QueuedJob, QueueError, ask
from daskspace.errors import BackendError
from daskspace.execution.job_record import JobRecord
from daskspace.execution.status import Jobs

if TYPE_CHECKING:
    from dask_jobqueue.core import Job, JobQueueCluster

_LOOK_EVERY_S = 1.0
_FIRST_QUERY_S = 3.0
_AT_ONCE = 8
_DEATHS, _FAILURES = 3, 3
_LONGEST_PAUSE_S = 600.0
_UNKNOWN = 2
"""So often in a row a queue has to leave a job out before it is believed: some do so by mistake."""
_TAIL_LINES = 15
_SYNC_S = 300.0
_LOG_S = 3.0
"""How long the log of a job may take to be seen here."""


@dataclass(frozen=True)
class FleetOptions:
    """How many jobs a fleet keeps, and how patient it is.

    Parameters
    ----------
    most : int
        How many jobs at most.
    per_job : int
        How many processes one of them runs at the same time.
    query_every : float
        Seconds between two questions to the queue.
    arrival : float
        How many seconds after a job began its worker has to be there.
    lost_after : float
        How many seconds a job may be without its workers.
    no_workers_timeout : float
        How long all jobs may be held, in seconds.
    adapt : mapping, optional
        Keywords of ``cluster.adapt``, which then decides on the number of jobs.
    extra : tuple of str
        Arguments that the batch system's commands need.
    """

    most: int
    per_job: int
    query_every: float
    arrival: float
    lost_after: float
    no_workers_timeout: float
    adapt: Mapping[str, Any] | None = None
    extra: tuple[str, ...] = ()


@dataclass
class _Member:
    """A job of the fleet."""

    name: str
    job_id: str
    said: QueuedJob | None = None
    unknown: int = 0
    is_working: bool = False
    has_worked: bool = False
    since: float = field(default_factory=time.monotonic)
    """When it was submitted, began to run, or was seen with a worker for the last time."""

    @property
    def state(self) -> str:
        """What the queue last said of it; ``running`` if its workers are there."""
        if self.is_working:
            return "running"
        if self.unknown >= _UNKNOWN:
            return "ended"
        return self.said.state if self.said else "waiting"

    def hear(self, said: QueuedJob | None) -> None:
        """Take in what the queue says of it, or that it says nothing."""
        if said is None:
            self.unknown += 1
            return
        if said.state == "running" and self.state != "running":
            self.since = time.monotonic()
        self.unknown, self.said = 0, said

    def __str__(self) -> str:
        word = self.said.word if self.said and not self.unknown else "no longer in the queue"
        why = f": {self.said.reason}" if self.said and self.said.reason else ""
        return f"{self.job_id} ({word}{why})"


class Fleet:
    """Keeps as many batch jobs as an operation needs, and finds out what becomes of them.

    It asks for jobs, replaces those that are lost, cancels those that wait in vain, and says what
    keeps them from working. A job that works is never cancelled before `close`.

    Parameters
    ----------
    queue : Queue or None
        How the batch system is asked; None if we do not know it.
    job_name : str
        The name of the jobs, unique.
    options : FleetOptions
        How many jobs, and how patient.
    log : callable
        Writes a message of a level to the operation's log.
    """

    def __init__(
        self,
        queue: Queue | None,
        job_name: str,
        options: FleetOptions,
        log: Callable[[str, int], None],
    ) -> None:
        self._queue = queue
        self.job_name = job_name
        self.extra = options.extra
        self._options = options
        self._log = log
        self._cluster: JobQueueCluster | None = None
        self._members: dict[str, _Member] = {}
        self._numbers = itertools.count()
        self._left: Callable[[], int | None] = lambda: 0
        self._record: JobRecord | None = None
        self._log_directory: Path | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()  # not to be held while the cluster does something
        self._next_query = self._next_submission = 0.0
        self._deaths = self._failures = 0
        self._held_since: float | None = None
        self._trouble = ""
        self._verdict: str | None = None
        self._has_submitted = False
        self.is_closing = False

    @property
    def knows_queue(self) -> bool:
        """Whether it can tell that workers are still to come."""
        return self._queue is not None

    def attach(self, cluster: JobQueueCluster) -> None:
        """Take on the cluster whose jobs these are."""
        self._cluster = cluster

    def begin(
        self, record: JobRecord, left: Callable[[], int | None], log_directory: Path | None
    ) -> None:
        """Work for an operation from now on.

        Parameters
        ----------
        record : JobRecord
            Where its jobs are written down.
        left : callable
            How many of its processes have not ended; None if that is not known.
        log_directory : Path, optional
            Where the jobs write their logs.
        """
        with self._lock:
            self._record, self._left, self._log_directory = record, left, log_directory
            for member in self._members.values():
                record.submitted(member.job_id)
            self._deaths = self._failures = 0
            self._next_submission = 0.0
            self._held_since, self._trouble, self._verdict = None, "", None
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, args=(self._stop,), name="daskspace-fleet", daemon=True
        )
        self._thread.start()

    def end(self) -> None:
        """Let the operation go; jobs without workers are cancelled. Harmless when repeated."""
        self._halt()
        if self._record is None:
            return
        with contextlib.suppress(Exception):
            self._count_workers()
            self._drop([m for m in self._members.values() if not m.is_working])
        with self._lock, contextlib.suppress(OSError):
            record, self._record = self._record, None
            record.close(released=True)

    def prepare_to_close(self) -> None:
        """Cancel no more jobs one by one: `close` cancels all of them."""
        self.is_closing = True
        self._halt()

    def close(self) -> None:
        """Cancel all jobs, and see that they are gone; harmless when repeated."""
        self.prepare_to_close()
        with self._lock:
            job_ids = [m.job_id for m in self._members.values() if m.state != "ended"]
            self._members.clear()
            record, self._record = self._record, None
        left: list[str] = []
        if self._queue is not None and self._has_submitted:
            self._has_submitted = False
            ended = cancel_jobs(self._queue, job_ids, self.job_name, self.extra)
            left = ended.left
            for problem in ended.problems:
                self._log(problem, logging.WARNING)
        if record is not None:
            with contextlib.suppress(OSError):
                for job_id in set(job_ids) - set(left):
                    record.ended(job_id)
                record.close(released=not left)

    def status(self) -> Jobs:
        """Return what the jobs do."""
        members = list(self._members.values())
        states = Counter(member.state for member in members)
        return Jobs(
            submitted=len(members),
            running=states["running"] + states["ending"],
            held=states["held"],
            waiting_for=_most_common_reason(members, "waiting"),
            held_for=_most_common_reason(members, "held"),
            trouble=self._trouble,
        )

    def account(self) -> str:
        """Return what the queue said last of each job, and the end of its log if it has begun."""
        return "; ".join(
            f"job {member} is {member.state}"
            + (self._tail_of(member) if member.state == "running" else "")
            for member in list(self._members.values())
        )

    def check(self) -> None:
        """Raise BackendError if its jobs cannot carry the operation on."""
        if self._verdict is not None:
            raise BackendError(self._verdict)

    def take_in(self, job: Job, job_id: str) -> None:
        """Write down a job that was submitted just now.

        Raises
        ------
        OSError
            It cannot be written down, so it must not be used.
        """
        with self._lock:
            self._has_submitted = True
            before = self._members.get(str(job.name))
            self._members[str(job.name)] = _Member(str(job.name), job_id)
            if self._record is not None:
                self._record.submitted(job_id)
                if before is not None:
                    self._record.ended(before.job_id)
            if len(self._members) == 1:
                self._next_query = max(self._next_query, time.monotonic() + _FIRST_QUERY_S)

    def is_to_be_cancelled(self, job: Job) -> bool:
        """Return whether a job that is closed has to be cancelled there and then."""
        member = self._members.get(str(job.name))
        has_ended = member is not None and member.state == "ended"
        return not (self.is_closing or (has_ended and member and member.job_id == job.job_id))

    def _halt(self) -> None:
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None and thread is not threading.current_thread():
            thread.join(2 * _LOG_S)

    def _keep(self, stop: threading.Event) -> None:
        self._adapt()
        while not stop.is_set():
            try:
                self._look(stop)
            except Exception as error:
                self._complain(f"the jobs could not be looked after: {error}")
            stop.wait(_LOOK_EVERY_S)

    def _look(self, stop: threading.Event) -> None:
        self._count_workers()
        said = self._ask()
        if said is not None:
            for member in list(self._members.values()):
                member.hear(said.get(member.job_id))
        gone = self._find_gone()
        if stop.is_set():
            return
        self._drop(gone)
        self._look_for_held()
        if self._options.adapt is None and self._verdict is None:
            self._adjust()

    def _count_workers(self) -> None:
        assert self._cluster is not None  # noqa: S101 - it is attached before `begin`
        workers = list(self._cluster.scheduler.workers.values())
        names = {str(worker.name) for worker in workers}
        names |= {name.rpartition("-")[0] for name in names}  # several workers of one job
        now = time.monotonic()
        for member in list(self._members.values()):
            if member.name in names:
                if not member.has_worked:
                    self._deaths, self._trouble = 0, ""
                member.is_working = member.has_worked = True
                member.since = now
            else:
                member.is_working = False

    def _ask(self) -> dict[str, QueuedJob] | None:
        """Return what the queue says when it is time to ask, else None."""
        job_ids = [member.job_id for member in list(self._members.values())]
        now = time.monotonic()
        if self._queue is None or not job_ids or now < self._next_query:
            return None
        self._next_query = now + self._options.query_every
        try:
            return ask(self._queue, job_ids, extra=self.extra)
        except QueueError as error:
            self._complain(f"the queue does not answer: {error}")
            return None

    def _find_gone(self) -> list[_Member]:
        """Return the jobs that will do nothing more, after saying why."""
        now, options, gone = time.monotonic(), self._options, []
        for member in list(self._members.values()):
            state, waited = member.state, now - member.since
            if member.is_working:
                continue
            if member.has_worked:
                if state == "ended" or waited > options.lost_after:
                    self._log(f"job {member} has no worker any more", logging.INFO)
                    gone.append(member)
            elif state == "ended":
                self._count_death(member, f"job {member} ended before its worker came")
                gone.append(member)
            elif state == "running" and waited > options.arrival:
                text = f"job {member} has been running for {waited:.0f} s, and no worker has come"
                self._count_death(member, text)
                gone.append(member)
        return gone

    def _count_death(self, member: _Member, what: str) -> None:
        tail = self._tail_of(member)
        self._complain(f"{what}{tail}")
        self._deaths += 1
        if self._deaths < _DEATHS:
            return
        if any(other.is_working for other in self._members.values()):
            pause = self._options.query_every * 2.0 ** (self._deaths - _DEATHS)
            self._next_submission = time.monotonic() + min(pause, _LONGEST_PAUSE_S)
            return
        self._judge(f"{self._deaths} jobs in a row did not work; the last: {what}{tail}")

    def _judge(self, verdict: str) -> None:
        self._verdict = f"{verdict}\n`daskspace doctor` finds out what jobs can do here"

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            self._trouble = trouble
            self._log(trouble, logging.WARNING)

    def _tail_of(self, member: _Member) -> str:
        """Return the end of a job's log, with its place; empty if it wrote none."""
        number = job_number(member.job_id)
        pattern = re.compile(rf"(?<!\d){re.escape(number)}(?!\d)")
        until = time.monotonic() + _LOG_S
        while True:
            for path in _newest_first(self._log_directory or Path()):
                if pattern.search(path.name):
                    with contextlib.suppress(OSError):
                        lines = path.read_text("utf-8", errors="replace").split("\n")
                        if written := [line for line in lines if line.strip()]:
                            tail = "\n  ".join(line[:300] for line in written[-_TAIL_LINES:])
                            return f"; the end of {path}:\n  {tail}"
            if time.monotonic() > until or self._stop.wait(0.2):
                return "; it wrote no log"

    def _look_for_held(self) -> None:
        """Give up when every job is held, for nobody but the user can release them."""
        members = list(self._members.values())
        held = [member for member in members if member.state == "held"]
        if not members or len(held) < len(members):
            self._held_since = None
            return
        reason = _most_common_reason(members, "held") or "the batch system says no reason"
        if self._held_since is None:
            self._held_since = time.monotonic()
            self._complain(f"all {len(held)} jobs are held: {reason}")
        waited = time.monotonic() - self._held_since
        if waited >= self._options.no_workers_timeout:
            self._judge(f"all {len(held)} jobs have been held for {waited:.0f} s: {reason}")

    def _adjust(self) -> None:
        """Ask for as many jobs as are needed, or cancel what waits in vain."""
        left, options = self._left(), self._options
        wanted = options.most
        if left is not None:
            wanted = min(math.ceil(left / options.per_job), options.most)
        missing = wanted - len(self._members)
        if missing > 0 and time.monotonic() >= self._next_submission:
            self._submit(min(missing, _AT_ONCE))
        elif missing < 0:
            idle = [m for m in self._members.values() if m.state in ("waiting", "held") and m.said]
            self._drop(idle[missing:])

    def _submit(self, number: int) -> None:
        cluster = self._cluster
        assert cluster is not None  # noqa: S101 - it is attached before `begin`
        names = [f"{cluster.name}-{next(self._numbers)}" for _ in range(number)]

        async def submit() -> None:
            cluster.worker_spec.update(dict.fromkeys(names, cluster.new_spec))
            await cluster._correct_state()

        try:
            cluster.sync(submit, callback_timeout=_SYNC_S)
            self._failures = 0
        except Exception as error:
            self._take_in_failure(error)
            unused = [name for name in names if name not in self._members]
            self._remove(unused)

    def _take_in_failure(self, error: Exception) -> None:
        """Say why a job could not be submitted, and whether to try again."""
        self._failures += 1
        self._complain(f"a job could not be submitted: {words_of(error)}")
        self._next_submission = time.monotonic() + 2.0**self._failures
        is_permanent = self._failures >= _FAILURES or not isinstance(error, RuntimeError)
        if is_permanent and not self._members:
            self._judge(self._trouble)

    def _drop(self, members: Iterable[_Member]) -> None:
        """Let go of jobs; those that have not ended are cancelled."""
        members = list(members)
        if members:
            self._remove([member.name for member in members])
        with self._lock:
            for member in members:
                if self._members.get(member.name) is member:
                    del self._members[member.name]
                if self._record is not None:
                    self._record.ended(member.job_id)

    def _remove(self, names: list[str]) -> None:
        cluster = self._cluster
        assert cluster is not None  # noqa: S101 - it is attached before `begin`

        async def remove() -> None:
            for name in names:
                cluster.worker_spec.pop(name, None)
            await cluster._correct_state()

        cluster.sync(remove, callback_timeout=_SYNC_S)

    def _adapt(self) -> None:
        if self._options.adapt is not None and self._cluster is not None:
            self._cluster.adapt(**self._options.adapt)


def job_number(job_id: str) -> str:
    """Return the number by which a batch system names a job's files.

    ``12`` of ``12``, ``12.server2``, ``12[7].server2`` and ``node007.site.12``.
    """
    labels = re.split(r"[.\[\]]", job_id)
    return next(filter(str.isdecimal, labels), job_id)


def words_of(error: BaseException) -> str:
    """Return what a batch system said, out of dask-jobqueue's account of a command that failed."""
    text = str(error)
    found = re.search(r"Command:\n(.*?)\nstdout:\n(.*?)\nstderr:\n(.*)\Z", text, re.S)
    if found is None:
        return f"{type(error).__name__}: {text}"
    command, output, errors = (part.strip() for part in found.groups())
    name, words = command.partition(" ")[0], errors or output or "it failed without a word"
    return words if words.startswith(name) else f"{name}: {words}"


def _most_common_reason(members: Iterable[_Member], state: str) -> str:
    reasons = Counter(
        member.said.reason or member.said.word
        for member in members
        if member.state == state and member.said and (member.said.reason or state == "held")
    )
    return reasons.most_common(1)[0][0] if reasons else ""


def _newest_first(directory: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        files = [path for path in directory.iterdir() if path.is_file()]
        return sorted(files, key=lambda path: path.stat().st_mtime, reverse=True)
    return []
