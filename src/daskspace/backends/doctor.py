"""Finds out what a backend can do here: by looking around, then by one tiny job."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

from dask.utils import parse_bytes
from distributed.utils import get_ip, get_ip_interface

from daskspace.backends import create_backend, findings
from daskspace.backends.dask_backend import DaskBackend
from daskspace.backends.findings import Finding
from daskspace.backends.jobqueue import JobQueueBackend
from daskspace.backends.settings import size_of
from daskspace.clusters.keys import make_keys
from daskspace.clusters.leftovers import cancel_jobs
from daskspace.clusters.queues import QUEUES, QueueError, look
from daskspace.errors import DaskspaceError
from daskspace.execution.job_record import Batch, read_job_record
from daskspace.execution.node import describe_node, interfaces, report_back
from daskspace.execution.outcome import Outcome
from daskspace.execution.status import Status, seconds
from daskspace.execution.travel import patiently
from daskspace.operations.base import Operation
from daskspace.results.directory import ResultDirectory
from daskspace.results.table import Table

_LOOK_EVERY_S = 0.2
_VISIBLE_S = 10.0
_GONE_S = 10.0
_QUERY_S = 3
_TIMES_ASKED = 3
_RETRIEVE_S = 10.0
_PATIENCE_S = 3.0
_ANSWER_S = 5.0


def examine(
    backend_type: Any,
    options: Mapping[str, Any],
    timeout_s: float = 300.0,
    tell: Callable[[str], object] = str,
    config: Any = None,
) -> Generator[Finding, None, None]:
    """Yield what is found out about a backend, as it is found out.

    Only what is looked at here comes first; if all of it is ok, one process is run in one job, in
    a directory of its own in the working directory. Neither is left over, even if the iterator is
    closed early.

    Parameters
    ----------
    backend_type
        What `create_backend` takes.
    options : mapping
        The backend's options.
    timeout_s : float
        How long the process may take to come back, its job's time in the queue included.
    tell : callable
        Gets what is being waited for, now and then.
    config
        As `create_backend` takes it.

    Raises
    ------
    ConfigError
        The backend or an option is unknown.
    """
    backend = create_backend(backend_type, config=config, **options)
    here = []
    for finding in _look_around(backend):
        here.append(finding)
        yield finding
    if not all(finding.ok for finding in here):
        yield Finding(
            "job", False, "not tried, because of what is bad above", "mend that, and call me again"
        )
        return
    chosen = dict(options)
    if isinstance(backend, JobQueueBackend):
        chosen.update(jobs=1, adapt=False)
        chosen.setdefault("query_interval", _QUERY_S)
    with contextlib.ExitStack() as undo:
        directory = Path(tempfile.mkdtemp(prefix="daskspace-doctor-", dir="."))
        undo.callback(_remove, directory)
        visit = _Visit(create_backend(backend_type, config=config, **chosen), directory.absolute())
        undo.callback(visit.close)
        try:
            yield from visit.carry_out(timeout_s, tell)
        except BaseException:
            undo.close()
            if not (left := visit.left_over()).ok:
                tell(f"{left.found}: {left.remedy}")
            raise
        undo.close()
        yield visit.left_over()


def _look_around(backend: DaskBackend) -> Iterator[Finding]:
    """Yield what can be seen without a job."""
    yield _working_directory()
    if not isinstance(backend, JobQueueBackend):
        return
    yield findings.programs(_programs(backend))
    yield _queue(backend)
    yield _job_script(backend)
    yield _network(backend)
    yield _keys(backend)


def _working_directory() -> Finding:
    try:
        with tempfile.TemporaryFile(dir="."):
            return findings.working_directory(os.getcwd())
    except OSError as error:
        return findings.working_directory(os.getcwd(), error)


def _programs(backend: JobQueueBackend) -> list[str]:
    job = backend.options.get("job_cls") or backend.cluster_class.job_cls
    commands = [str(job.submit_command), str(job.cancel_command)]
    queue = backend._queue
    asked = [queue.query(["1"], "user")[0], queue.cancel[0]] if queue else []
    return [*(command.split()[0] for command in commands), *asked]


def _queue(backend: JobQueueBackend) -> Finding:
    queue = backend._queue
    if queue is None or not queue.tells_all:
        return Finding("queue", True, "asked once there is a job")
    extra = tuple(backend._setting("cancel_command_extra") or ())
    try:
        began = time.monotonic()
        jobs = look(queue, [], extra=extra)
    except QueueError as error:
        remedy = "ask the batch system's administrators whether it is up, from here"
        return Finding("queue", False, f"does not answer: {error}", remedy)
    waiting = sum(job.state not in ("ended", "ending") for job in jobs)
    took = seconds(time.monotonic() - began)
    return Finding("queue", True, f"answers in {took}; you have {waiting} jobs there")


def _job_script(backend: JobQueueBackend) -> Finding:
    try:
        backend.job_script()
        size = size_of(backend)
    except DaskspaceError as error:
        remedy = "set it by -O KEY=VALUE, or in Dask's configuration; see `daskspace job-script`"
        return Finding("job script", False, str(error), remedy)
    remedy = ""
    if size.usable is not None and size.usable < 60:
        remedy = "a process has little time in such a job: raise walltime"
    return Finding("job script", True, size.describe(), remedy)


def _network(backend: JobQueueBackend) -> Finding:
    options = backend._setting("scheduler_options") or {}
    interface = options.get("interface") or backend._setting("interface")
    address = str(options.get("host") or get_ip())
    with contextlib.suppress(ValueError):
        address = get_ip_interface(interface) if interface else address
    return findings.network(interfaces(), address, interface)


def _keys(backend: JobQueueBackend) -> Finding:
    if backend._is_insecure:
        remedy = "whoever reaches the scheduler can run code as you: leave insecure out"
        return Finding("keys", True, "TLS is off: insecure=True", remedy)
    if backend.options.get("security") not in (None, True):
        return Finding("keys", True, "yours: security is set")
    shared = str(backend._setting("shared_temp_directory") or ".")
    shared = os.path.expanduser(os.path.expandvars(shared))
    try:
        with tempfile.TemporaryDirectory(prefix=".daskspace-", dir=shared) as directory:
            make_keys(Path(directory))
    except Exception as error:
        remedy = "give a directory of yours that nodes share: -O shared_temp_directory=DIRECTORY"
        return Finding("keys", False, f"cannot be made in {shared}: {error}", remedy)
    return Finding("keys", True, "TLS is on")


class _Times:
    """How long things take since a job was asked for."""

    def __init__(self) -> None:
        self._began, self._asked = time.monotonic(), time.time()
        self._worker: float | None = None

    @property
    def passed(self) -> float:
        return time.monotonic() - self._began

    def see(self, status: Status) -> None:
        if self._worker is None and status.workers:
            self._worker = self.passed

    def worker_is_there_for(self, duration: float) -> bool:
        return self._worker is not None and self.passed - self._worker > duration

    def describe(self, job_began: float | None) -> str:
        passed = self.passed
        text = f"the result came after {seconds(passed)}"
        if job_began is None:
            return text
        waited = min(max(job_began - self._asked, 0.0), passed)
        return f"{text}, about {waited:.0f} s of it in the queue"


class _Visit:
    """One process that goes where the processes of a backend go, and reports back."""

    def __init__(self, backend: DaskBackend, directory: Path) -> None:
        self._backend = backend
        self._directory = directory
        self._nonce = secrets.token_hex(8)
        self._batches: list[Batch] = []

    def carry_out(self, timeout_s: float, tell: Callable[[str], object]) -> Iterator[Finding]:
        """Run the process, and yield what it has found out."""
        process = functools.partial(report_back, str(self._directory), self._nonce)
        operation = Operation([process], self._directory, name="doctor")
        trouble = ""
        try:
            self._backend.stage_in(operation)
            times = _Times()
            # longer: an operation that ends by itself cancels the jobs that we want to tell of
            self._backend.execute(timeout_s + _RETRIEVE_S)
            trouble = self._wait(times, timeout_s, tell)
        except DaskspaceError as error:
            trouble = str(error)
        outcome = self._outcome()
        if outcome is None or outcome.state != "done":
            yield self._failed(trouble, outcome)
            return
        yield Finding("job", True, times.describe(outcome.metrics.get("job_began")))
        yield from self._report(outcome.metrics)

    def left_over(self) -> Finding:
        """Say whether something is left after `close`."""
        problems = []
        for batch in self._batches:
            queue = QUEUES.get(batch.system)
            if queue is not None:
                ended = cancel_jobs(queue, batch.job_ids, batch.name, batch.extra)
                problems += ended.problems
        if self._directory.exists():
            problems.append(f"{self._directory} could not be removed: remove it")
        if problems:
            return Finding("end", False, "something is left", "; ".join(problems))
        return Finding("end", True, "no job and no file is left")

    def close(self) -> None:
        """Give back the cluster."""
        self._batches = read_job_record(ResultDirectory(self._directory).jobs_record)
        self._backend.close()

    def _wait(self, times: _Times, timeout_s: float, tell: Callable[[str], object]) -> str:
        """Wait for the process, and return what keeps it from coming back; empty if it came."""
        while times.passed < timeout_s:
            status = self._backend.check_status()
            times.see(status)
            if status.complete:
                self._backend.retrieve(_RETRIEVE_S)
                return ""
            if times.worker_is_there_for(_PATIENCE_S) and not self._is_seen():
                return f"its node does not see {self._directory}"
            if status.jobs is not None:
                tell(status.jobs.describe(status.workers))
                if status.jobs.trouble:
                    return status.jobs.trouble
            time.sleep(_LOOK_EVERY_S)
        account = ""
        if isinstance(self._backend, JobQueueBackend) and self._backend._fleet is not None:
            account = self._backend._fleet.account()
        return f"nothing came back within {timeout_s:g} s{f'; {account}' if account else ''}"

    def _is_seen(self) -> bool:
        """Return whether all workers see the result directory, as far as they answer."""
        client = self._backend.client
        if client is None:
            return True
        look_there = functools.partial(
            client.run, os.path.isdir, str(self._directory), on_error="return"
        )
        seen = patiently(look_there, _ANSWER_S) or {}
        return all(answer is not False for answer in seen.values())

    def _outcome(self) -> Outcome | None:
        with contextlib.suppress(DaskspaceError, OSError):
            return Table(ResultDirectory(self._directory).journal).outcome(0)
        return None

    def _failed(self, trouble: str, outcome: Outcome | None) -> Finding:
        if not trouble and outcome is not None:
            told = (outcome.state, outcome.error, outcome.message)
            trouble = ": ".join(filter(None, told))
        scheduler = getattr(self._backend.cluster, "scheduler", None)
        address = str(
            getattr(scheduler, "contact_address", None) or getattr(scheduler, "address", "")
        )
        remedy = (
            findings.remedy_for_log(self._log_in(trouble), address, interfaces())
            or findings.remedy_for_queue(trouble)
            or "look at the job script, by `daskspace job-script`, and try it by hand"
        )
        found = trouble.partition("\n`daskspace doctor`")[0].replace(f"{self._directory}/", "")
        return Finding("job", False, found, remedy)

    def _log_in(self, trouble: str) -> str:
        """Return all of the log whose end `trouble` tells, and `trouble`."""
        log = ""
        if place := re.search(r"the end of (.+):\n", trouble):
            with contextlib.suppress(OSError):
                log = Path(place[1]).read_text("utf-8", errors="replace")
        return f"{trouble}\n{log}"

    def _report(self, there: Mapping[str, Any]) -> Iterator[Finding]:
        here = describe_node()
        if self._backend.client is not None:
            try:
                yield from self._connection(here, there)
            except Exception as error:
                found = f"the worker could not be asked: {type(error).__name__}: {error}"
                yield Finding("connection", False, found, "call me again")
        yield findings.versions(here, there)
        read = self._read_nonce()
        place, failed = str(self._directory.parent), there.get("write_error")
        yield findings.shared_directory(place, read, self._nonce, failed)
        cores = memory = None
        if isinstance(self._backend, JobQueueBackend):
            cores = int(self._backend._setting("cores"))
            memory = int(parse_bytes(self._backend._setting("memory")))
        yield findings.node(there, cores, memory)

    def _connection(self, here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield how the worker is connected, and what its clock says."""
        client = self._backend.client
        assert client is not None  # noqa: S101 - it was looked at
        scheduler = str(client.scheduler.address)
        workers = list(client.scheduler_info(n_workers=-1)["workers"])
        worker = workers[0]
        on = findings.interface_of(scheduler, here["interfaces"])
        other = findings.interface_of(worker, there["interfaces"])
        found = (
            f"{worker}{f' ({other})' if other else ''} has reached"
            f" {scheduler}{f' ({on})' if on else ''}"
        )
        yield Finding("connection", True, f"{found}; TLS {_on(scheduler.startswith('tls'))}")
        times = []
        for _ in range(_TIMES_ASKED):
            asked = time.time()
            told = patiently(functools.partial(client.run, time.time, workers=[worker]), _ANSWER_S)
            if told is None:
                raise TimeoutError(f"no answer within {_ANSWER_S:g} s")
            times.append((asked, told[worker], time.time()))
        yield findings.clock(*min(times, key=lambda time: time[2] - time[0]))

    def _read_nonce(self) -> str | None:
        """Return what the process wrote, once it can be seen here."""
        until = time.monotonic() + _VISIBLE_S
        while True:
            with contextlib.suppress(OSError):
                os.listdir(self._directory)  # has NFS look anew
                return (self._directory / self._nonce).read_text()
            if time.monotonic() > until:
                return None
            time.sleep(_LOOK_EVERY_S)


def _on(is_on: bool) -> str:
    return "on" if is_on else "off"


def _remove(directory: Path) -> None:
    """Remove a directory; the last files of a job may come late, from its node."""
    until = time.monotonic() + _GONE_S
    while True:
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists() or time.monotonic() > until:
            return
        time.sleep(_LOOK_EVERY_S)
