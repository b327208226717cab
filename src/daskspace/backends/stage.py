"""One operation while a backend has it: its directory, its journal and its execution."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskspace.backends.connection import CLOSE_S
from daskspace.backends.interrupts import Interrupts
from daskspace.backends.options import RunOptions
from daskspace.backends.reporter import Reporter
from daskspace.clusters.leftovers import cancel_leftovers
from daskspace.errors import DaskspaceError, DirectoryError, OperationError
from daskspace.execution.attempt import Settings
from daskspace.execution.capture import Allowance, capturing
from daskspace.execution.commit import attempts_of, discard
from daskspace.execution.creator import is_queue, let_go
from daskspace.execution.dispatch import ClusterLost, Dispatcher
from daskspace.execution.identity import Identity
from daskspace.execution.isolation import carry_out, nothing_begun, stop
from daskspace.execution.journal import Journal
from daskspace.execution.lock import Lock
from daskspace.execution.original import call_with, is_original
from daskspace.execution.past import Past, has_header
from daskspace.execution.preparation import Preparation
from daskspace.execution.record_receiver import make_record
from daskspace.execution.snapshot import describe_receipts, describe_status, snapshot_path
from daskspace.execution.status import Status
from daskspace.execution.timeline import Bar
from daskspace.execution.travel import Batch, Carrier, InPlace, ToHost, ToWorkers
from daskspace.operations.base import Operation, safe_name
from daskspace.operations.yaml_file import write_yaml
from daskspace.results.directory import (
    ResultDirectory,
    replace_text,
    reserve,
    set_aside,
    unreserve,
    unusable,
)
from daskspace.results.environment import describe_environment
from daskspace.results.table import Table

if TYPE_CHECKING:
    from distributed import Client

    from daskspace.backends.connection import Connection
    from daskspace.backends.performance import PerformanceReport


REBUILDS = 2
"""How often a lost cluster is opened anew during one operation."""
_TOLD_AT_ONCE, _TOLD_PER_S = 50, 20.0
_SLICE_S = 0.5
_REPORT_S = 40.0
_RECORDS_S = 5.0


class Stage:
    """What belongs to one operation from `stage_in` to `cleanup`.

    Parameters
    ----------
    operation
        Its result directory is reserved, and set where it had none.
    facts : mapping
        What ``environment.json`` tells of the backend.
    options : RunOptions
        How its processes are run.
    log : callable
        Writes a message of a level to the operation's log.
    log_sent : callable
        Puts a log record there that a process has sent.

    Attributes
    ----------
    remarks : list of (int, str)
        What is to be said once the log is open, and at which level.
    wants_performance_report : bool
        Whether Dask's performance report is to be saved.
    is_original : bool
        Whether it is of pySPACE's own kind.
    preparation : Preparation
        What its processes are prepared with then.

    Raises
    ------
    DirectoryError
        The result directory cannot be used; nothing is left over.
    """

    def __init__(
        self,
        operation: Any,
        facts: dict[str, Any],
        options: RunOptions,
        log: Callable[[str, int], None],
        log_sent: Callable[[logging.LogRecord], None] = lambda record: None,
    ) -> None:
        self.operation = operation
        self.name = safe_name(getattr(operation, "name", "operation"))
        self.remarks: list[tuple[int, str]] = []
        self.interrupts = Interrupts(self.drain, self.abort)
        self._options = options
        self._backend = str(facts["backend"])
        self._log = log
        self._log_sent = log_sent
        self._records = 0
        self.preparation = Preparation()
        self._has_table = False
        self._group = f"{self.name}-{uuid.uuid4().hex[:8]}"
        self.is_original = is_original_operation(operation)
        self._allowance = Allowance(_TOLD_AT_ONCE, _TOLD_PER_S)
        self._dispatcher: Dispatcher | None = None
        self.wants_performance_report = options.performance_report
        self._performance: PerformanceReport | None = None
        self._reporter: Reporter | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            self.directory = self._reserve(undo)
            try:
                self._open(facts, undo)
            except OSError as error:
                raise unusable(self.directory.path, error) from error
            self._undo = undo.pop_all()

    def revoke(self) -> None:
        """Take everything back, as if the operation had not been staged."""
        self._undo.close()

    def make_carrier(self, connection: Connection) -> Carrier:
        """Return what carries batches to the cluster.

        Raises
        ------
        SpecError
            What the processes share cannot be sent to workers.
        DirectoryError
            It cannot be written to the result directory, from where workers read it.
        """
        if self.wants_performance_report:
            self._begin_performance_report(connection.client)
        try:
            return self._make_carrier(connection.client, connection.executor)
        except OSError as error:
            raise unusable(self.directory.path, error) from error

    def _make_carrier(self, client: Client | None, executor: Executor) -> Carrier:
        options, preparation = self._options, self.preparation
        in_place = client is None and options.isolation == "none"
        settings = Settings(
            directory=str(self.directory.path),
            working_directory=os.getcwd(),
            python_path=self._python_path(),
            identity=self._identity,
            group=self._group,
            isolation=options.isolation,
            process_timeout=options.process_timeout,
            process_memory=options.process_memory,
            echo=client is None,
            preparation=preparation if in_place else preparation.travelling(),
            subflow_server=options.subflow_server,
        )
        shared = (*getattr(self.operation, "shared", ()), *preparation.shared)
        if client is not None:
            from daskspace.backends.worker import run_batch

            client.subscribe_topic(self._group, lambda event: self._tell(event[1]))
            self._resources.callback(_forget_topic, client, self._group)
            return ToWorkers(client, run_batch, stop, settings, shared)
        if in_place:
            again = options.policies.retries > 0
            return InPlace(executor, self._carry_out_here, settings, self._tell, again)
        return ToHost(executor, carry_out, stop, settings, shared, self._tell)

    def execute(
        self,
        connection: Connection,
        carrier: Carrier,
        deadline: float,
        count_slots: Callable[[], int | None],
        reconnect: Callable[[], Connection],
    ) -> None:
        """Begin to carry all processes to their outcomes; without workers, do all of it."""
        travels = connection.client is not None
        self._dispatcher = Dispatcher(
            self.operation,
            self._journal,
            count_slots,
            travels,
            self._past,
            self._options.policies,
            isolated=self._options.isolation != "none",
            log=self._tell_log,
        )
        arguments = (self._dispatcher, carrier, deadline, reconnect)
        if travels:
            self._thread = threading.Thread(
                target=self._carry_as_span,
                args=arguments,
                name=f"daskspace-{self.name}",
                daemon=True,
            )
            self._thread.start()
            return
        in_place = self._options.isolation == "none"
        with contextlib.ExitStack() as around:
            around.enter_context(self.interrupts.handled())
            around.enter_context(self._limited(deadline))
            around.enter_context(self.surroundings())
            if in_place:  # set up once, not for every process
                tell = self._tell
                around.enter_context(capturing(echo=True, tell=lambda text: tell({"log": text})))
            self._carry(*arguments)
        self.interrupts.check()
        if self._was_interrupted:
            raise KeyboardInterrupt

    def report(
        self, check_status: Callable[[], Status], connection: Callable[[], Connection | None]
    ) -> None:
        """Tell those who watch how far the operation has come, from now to its end."""
        began = round(time.time(), 2)
        facts = {
            "name": str(getattr(self.operation, "name", self.name))[:200],
            "backend": self._backend,
            "directory": str(self.directory.path),
            "host": socket.gethostname(),
            "start": began,
        }

        def take() -> tuple[dict[str, Any], dict[str, Any]]:
            place, dispatcher = connection(), self._dispatcher
            dashboard = place and place.dashboard
            told = {
                **facts,
                **describe_status(check_status()),
                "dashboard": dashboard and dataclasses.asdict(dashboard),
                "page": bool(place and dashboard and not place.no_page),
            }
            if dispatcher is None:
                return told, {}
            failure = self._failure or dispatcher.source.error
            return told, {
                "stopped": dispatcher.reason and dispatcher.reason[:500],
                "error": failure and _told(failure)[:500],
                "failures": describe_receipts(list(dispatcher.latest_failures)),
                "timeline": _relative(dispatcher.timeline.rows(), began),
            }

        def show(snapshot: str) -> None:
            place = connection()
            if place is not None:
                place.show(self._group, snapshot)

        file = snapshot_path(self.directory.path)
        self._reporter = Reporter(take, file, show, self._ended, self._tell_log)

    def wait(self, timeout: float) -> bool:
        """Wait for the end of the execution; return whether it has come.

        Raises
        ------
        KeyboardInterrupt
            A signal has ended it.
        """
        until = time.monotonic() + timeout
        with self.interrupts.handled():
            # In slices: a signal that another thread takes does not wake this one.
            while not (has_ended := self._ended.wait(min(timeout, _SLICE_S))):
                if (timeout := until - time.monotonic()) <= 0:
                    break
        if has_ended:
            self.interrupts.check()
        return has_ended

    def drain(self, reason: str) -> None:
        """End the execution when what runs has ended; what waits is ``cancelled``."""
        if self._dispatcher is not None and not self._ended.is_set():
            self._dispatcher.drain(reason)

    def abort(self, reason: str) -> None:
        """End the execution at once: what has not ended is ``cancelled``."""
        if self._dispatcher is not None and not self._ended.is_set():
            self._dispatcher.abort(reason)

    def release(self) -> bool:
        """Let go of the operation; return whether processes may still run on the workers."""
        self.abort("it was cleaned up")
        begun = self._dispatcher is not None
        if not begun:
            self._ended.set()
        ended = not begun or self._ended.wait(CLOSE_S)
        left_running = self._dispatcher is not None and self._dispatcher.left_running
        self._journal.close()
        if self._reporter is not None and ended:
            self._reporter.finish()
        if self._performance is not None and self._thread is not None and ended:
            self._thread.join(_REPORT_S)  # needs the cluster, which may be closed next
        self._let_creator_go()
        if begun and ended and not self._has_table:
            with contextlib.suppress(DirectoryError, OSError, ValueError):
                self.write_table()
        if ended and not left_running and not isinstance(self._failure, OSError):
            discard(attempts_of(self.directory.path))
        self._resources.close()
        return not ended or left_running

    def count_left(self) -> int | None:
        """Return how many processes are to be run, None if nobody can tell.

        0 until the first that is to be run has been found.
        """
        dispatcher = self._dispatcher
        if dispatcher is None or not dispatcher.has_sent or self._ended.is_set():
            return 0
        status = self.status("", 0)
        if status.total is None:
            return None
        # what a queue or generator gives may be more than was estimated
        return max(status.total - status.ended, 0 if dispatcher.source.exhausted else 1)

    def status(self, state: str, workers: int) -> Status:
        """Return how far the operation has come."""
        dispatcher = self._dispatcher
        estimate = getattr(self.operation, "number_processes", None)
        if dispatcher is None:
            return Status(state, total=estimate, workers=workers)
        source = dispatcher.source
        if source.complete:
            total: int | None = source.taken + source.ready
        else:
            total = None if estimate is None else max(int(estimate), source.taken)
        running = dispatcher.running
        left = dispatcher.sent if total is None else total - dispatcher.ended
        counts = {**dispatcher.counts, "running": running, "waiting": max(left - running, 0)}
        return Status(
            state=state,
            counts={name: number for name, number in counts.items() if number},
            total=total,
            complete=self._ended.is_set(),
            rate=dispatcher.rate,
            workers=workers,
            first_failure=dispatcher.first_failure,
            ending=dispatcher.ending,
        )

    def check(self) -> None:
        """Raise OperationError if not all processes could be had or carried to their end."""
        if self._dispatcher is None:
            return
        error = self._failure or self._dispatcher.source.error
        if error is not None:
            what = "it could not go on" if self._failure else "its processes could not all be had"
            counts = self._dispatcher.counts
            raise OperationError(
                f"the operation ended early, {what}: {_told(error)}; what ended"
                f" before, {counts.total() - counts['cancelled']} processes, is in"
                f" {self.directory.path}"
            ) from error

    def write_table(self) -> None:
        """Write the table of what has ended."""
        try:
            Table(self.directory.journal).write(self.directory.table, self.directory.parquet)
        except OSError as error:
            raise unusable(self.directory.path, error) from error
        self._has_table = True

    def consolidate(self) -> None:
        """Run the operation's own consolidate step."""
        with self.surroundings():
            if self.is_original:
                call_with(self.operation.consolidate, {"results": None})
            else:
                self.operation.consolidate()

    @contextlib.contextmanager
    def surroundings(self) -> Iterator[None]:
        """Let the operation's code import what it needs, and what it changes end with it."""
        here, path = os.getcwd(), list(sys.path)
        sys.path[:0] = [entry for entry in self._python_path() if entry not in path]
        try:
            yield
        finally:
            sys.path[:] = path
            with contextlib.suppress(OSError):
                os.chdir(here)

    def _carry_as_span(self, *arguments: Any) -> None:
        """Carry the operation to its end as a span, by which Dask's pages tell tasks apart."""
        from distributed import span

        with span(self.name):
            self._carry(*arguments)

    def _carry(
        self,
        dispatcher: Dispatcher,
        carrier: Carrier,
        deadline: float,
        reconnect: Callable[[], Connection],
    ) -> None:
        self._was_interrupted = False
        try:
            for rebuilds in range(REBUILDS + 1):
                try:
                    dispatcher.run(carrier, deadline)
                    break
                except ClusterLost as error:
                    if rebuilds == REBUILDS:
                        raise
                    message = f"the cluster was lost: {error}; it is opened anew"
                # not within `except`: what `reconnect` raises is to tell its own cause
                self._log(message, logging.WARNING)
                carrier = self.make_carrier(reconnect())
        except KeyboardInterrupt:
            self._was_interrupted = True
        except BaseException as error:
            self._failure = error
            self._log(f"it could not go on: {_told(error)}", logging.INFO)
            with contextlib.suppress(OSError, ValueError):
                dispatcher.abort(f"{type(error).__name__}: {error}"[:500])
                dispatcher.give_up()
        finally:
            with contextlib.suppress(OSError, ValueError):
                dispatcher.finish()
            try:
                self._let_creator_go()
                self._await_records(dispatcher.records_told)
            finally:
                self._ended.set()
            if self._performance is not None:
                self._write_performance_report(self._performance)

    def _let_creator_go(self) -> None:
        if told := let_go(self.operation):
            self._log(told, logging.WARNING)

    def _await_records(self, told: int) -> None:
        """Wait until the log records have come that were told where processes ran."""
        until = time.monotonic() + _RECORDS_S
        while self._records < told and time.monotonic() < until:
            time.sleep(0.01)
        if self._records < told:
            self._log(f"{told - self._records} log records did not arrive", logging.WARNING)

    def _begin_performance_report(self, client: Client | None) -> None:
        """Have Dask record what its performance report tells; a failure costs the report alone."""
        self._performance = None
        if client is None:
            self._tell_log("no performance report: it is Dask's, and there is no cluster")
            return
        from daskspace.backends.performance import PerformanceReport

        try:
            self._performance = PerformanceReport(client)
        except Exception as error:
            self._tell_log(f"no performance report: {_told(error)}")

    def _write_performance_report(self, report: PerformanceReport) -> None:
        path = self.directory.performance_report
        try:
            report.write(path, self.directory.operation.read_text(encoding="utf-8"))
        except Exception as error:
            self._tell_log(f"no performance report: {_told(error)}")

    def _carry_out_here(
        self, settings: Settings, package: None, batch: Batch, tape: Path | None, tell: Any
    ) -> dict[str, Any]:
        def wanted() -> bool:
            self.interrupts.regain()
            return self._dispatcher is not None and self._dispatcher.reason is None

        if not wanted():
            return nothing_begun()
        return carry_out(settings, package, batch, tape, tell, wanted=wanted)

    @contextlib.contextmanager
    def _limited(self, deadline: float) -> Iterator[None]:
        """Stop at the deadline what runs while this thread waits for it."""

        def end() -> None:
            self.abort("the time of the operation was up")
            if self._options.isolation == "none":
                self.interrupts.stop_main_thread()

        timer = threading.Timer(min(deadline - time.monotonic(), threading.TIMEOUT_MAX), end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _tell_log(self, message: str) -> None:
        self._log(message, logging.INFO)

    def _tell(self, message: Mapping[str, Any]) -> None:
        """Pass on what is told from where processes run."""
        if "echo" in message:
            sys.stdout.write(str(message["echo"]))
        for fields in message.get("records", ()):
            self._log_sent(make_record(fields))
            self._records += 1
        if "log" in message and self._allowance.take():
            place = f"{message['worker']}: " if "worker" in message else ""
            self._log(f"{place}{message['log']}", logging.INFO)

    def _reserve(self, undo: contextlib.ExitStack) -> ResultDirectory:
        operation = self.operation
        before = asked = getattr(operation, "result_directory", None)
        resume = self._resume
        automatic = getattr(operation, "automatic_directory", None)
        if asked is not None and asked == automatic and not resume:
            asked = None
        if self.is_original and asked is not None:
            undo.callback(set_aside(asked))
        directory, made = reserve(asked, self.name, resume=bool(resume))
        undo.callback(setattr, operation, "result_directory", before)
        self._made = made
        operation.result_directory = str(directory.path)
        if asked is None:
            operation.automatic_directory = operation.result_directory
        return directory

    @property
    def _resume(self) -> Any:
        """Whether to resume; nothing tells original processes from those of an earlier run."""
        return False if self.is_original else getattr(self.operation, "resume", False)

    def _open(self, facts: dict[str, Any], undo: contextlib.ExitStack) -> None:
        """Open the journal: a new one, or that of an operation that is resumed."""
        operation, directory = self.operation, self.directory
        self._identity = getattr(operation, "identity", None) or Identity()
        tell = getattr(operation, "fingerprints", None)
        fingerprints: dict[str, str] = tell() if tell else {}
        lock = Lock(directory.lock)
        undo.callback(lock.release)
        self._resources.callback(lock.release)
        directory.cancel.unlink(missing_ok=True)
        resume = self._resume
        again = () if isinstance(resume, bool) else resume
        if resume:
            self._cancel_jobs()
        if resume and directory.holds_operation and has_header(directory.journal):
            self._past = Past(self._identity, directory.journal, again)
            self._describe(facts, self._past.sessions + 1)
            header = self._header(facts, fingerprints)
            self._journal = Journal.resume(directory.journal, header)
        else:
            if directory.holds_operation and not resume:
                raise DirectoryError(f"{directory.path} already holds an operation")
            undo.callback(unreserve, directory, self._made)
            directory.journal.unlink(missing_ok=True)
            self._past = Past(self._identity, directory.journal if resume else None, again)
            self._describe(facts, 1)
            self._journal = Journal(directory.journal, self._header(facts, fingerprints))
        undo.callback(self._journal.close)
        if resume:
            adopted = list(self._past.adopt(directory.path))
            self._journal.append("\n".join(adopted))
            if not self._past.is_empty:
                self._remark(fingerprints, len(adopted))
        discard(attempts_of(directory.path))
        attempts_of(directory.path).mkdir(exist_ok=True)  # what was killed may still make it
        undo.callback(discard, attempts_of(directory.path))

    def _cancel_jobs(self) -> None:
        """Cancel the batch jobs that a client which was killed has left in a queue."""
        ended = cancel_leftovers(self.directory.jobs_record)
        if ended.cancelled:
            text = f"cancelled the batch jobs that were left over: {', '.join(ended.cancelled)}"
            self.remarks.append((logging.INFO, text))
        self.remarks.extend((logging.WARNING, problem) for problem in ended.problems)

    def _remark(self, fingerprints: Mapping[str, str], adopted: int) -> None:
        """Remember what there is to say about a resumed operation."""
        done = self._past.done
        self.remarks.append((logging.INFO, f"resumed: {done} processes are done already"))
        if adopted:
            text = f"{adopted} of them had ended when the program was killed, and were saved"
            self.remarks.append((logging.INFO, text))
        before = self._past.fingerprints
        changed = [
            name
            for name, mark in fingerprints.items()
            if before.get(name, mark if name.startswith("data set ") else None) != mark
        ]  # a data set may be new; a function that is has another result
        if changed and done:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            text = (
                f"changed since the last session: {', '.join(changed[:3])}{more}; what is done is"
                " kept as it is, and the rest runs with what is there now (a new directory runs all"
                " of it again)"
            )
            self.remarks.append((logging.WARNING, text))

    def _header(self, facts: dict[str, Any], fingerprints: Mapping[str, str]) -> dict[str, Any]:
        return {
            "name": self.name,
            "backend": facts["backend"],
            "number_processes": getattr(self.operation, "number_processes", None),
            "parameters": list(getattr(self.operation, "parameters", ())),
            "pid": os.getpid(),
            "start": round(time.time(), 3),
            "fingerprints": fingerprints,
        }

    def _describe(self, facts: dict[str, Any], session: int) -> None:
        operation = self.operation
        describe = getattr(operation, "describe", None)
        described = describe() if describe else {"type": "stream", "name": self.name}
        path = [str(entry) for entry in getattr(operation, "python_path", ())]
        described["base_directory"] = getattr(operation, "base_directory", None) or os.getcwd()
        described.update({"python_path": path} if path else {})
        write_yaml(self.directory.operation, described)
        text = json.dumps({**facts, **describe_environment()}, indent=2)
        replace_text(self.directory.environment_of(session), text + "\n")

    def _python_path(self) -> tuple[str, ...]:
        own = getattr(self.operation, "python_path", ())
        script = sys.path[0] if sys.path and Path(sys.path[0] or ".").is_dir() else "."
        return tuple(dict.fromkeys([*own, os.getcwd(), os.path.abspath(script)]))


def is_original_operation(operation: Any) -> bool:
    """Return whether an operation is of pySPACE's own kind.

    It is no `Operation` of ours, and its processes come from a queue or want to be prepared.
    """
    if isinstance(operation, Operation):
        return False
    processes = operation.processes
    first = processes[0] if isinstance(processes, list | tuple) and processes else None
    return is_queue(processes) or is_original(first)


def _told(error: BaseException) -> str:
    own = isinstance(error, DaskspaceError)
    return str(error) if own else f"{type(error).__name__}: {error}"


def _relative(rows: Mapping[str, list[Bar]], begin: float) -> dict[str, list[Bar]]:
    """Return a timeline in seconds since `begin`."""
    return {
        worker: [(round(a - begin, 2), round(b - begin, 2), n, bad) for a, b, n, bad in row]
        for worker, row in rows.items()
    }


def _forget_topic(client: Client, topic: str) -> None:
    with contextlib.suppress(Exception):
        client.unsubscribe_topic(topic)
