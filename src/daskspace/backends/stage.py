"""One operation while a backend has it: its directory, its journal and its execution."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskspace.backends.connection import CLOSE_S
from daskspace.errors import OperationError
from daskspace.execution.attempt import Settings, interrupt, run_attempts
from daskspace.execution.capture import capturing
from daskspace.execution.dispatch import Dispatcher
from daskspace.execution.journal import Journal
from daskspace.execution.status import Status
from daskspace.execution.travel import Carrier, InPlace, ToWorkers
from daskspace.operations.yaml_file import write_yaml
from daskspace.results.directory import ResultDirectory, reserve, unreserve, unusable
from daskspace.results.environment import describe_environment
from daskspace.results.table import Table

if TYPE_CHECKING:
    from daskspace.backends.connection import Connection


class Stage:
    """What belongs to one operation from `stage_in` to `cleanup`.

    Parameters
    ----------
    operation
        Its result directory is reserved, and set where it had none.
    facts : mapping
        What ``environment.json`` tells of the backend.

    Raises
    ------
    DirectoryError
        The result directory cannot be used; nothing is left over.
    """

    def __init__(self, operation: Any, facts: dict[str, Any]) -> None:
        self.operation = operation
        self.name = str(getattr(operation, "name", "operation"))
        self._dispatcher: Dispatcher | None = None
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        with contextlib.ExitStack() as undo:
            self.directory = self._reserve(undo)
            try:
                self._journal = Journal(self.directory.journal, self._header(facts))
                undo.callback(self._journal.close)
                self._describe(facts)
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
        """
        settings = Settings(
            directory=str(self.directory.path),
            working_directory=os.getcwd(),
            python_path=self._python_path(),
            echo=connection.client is None,
        )
        executor: Executor = connection.executor
        if connection.client is None:
            return InPlace(executor, run_attempts, settings)
        shared = getattr(self.operation, "shared", ())
        return ToWorkers(connection.client, run_attempts, settings, self.name, shared)

    def execute(self, connection: Connection, carrier: Carrier, deadline: float) -> None:
        """Begin to carry all processes to their outcomes; without workers, do all of it."""
        travels = connection.client is not None
        self._dispatcher = Dispatcher(
            self.operation, self._journal, connection.count_slots, travels
        )
        if travels:
            arguments = (self._dispatcher, carrier, deadline)
            threading.Thread(
                target=self._carry, args=arguments, name=f"daskspace-{self.name}", daemon=True
            ).start()
            return
        with interrupt.watched(), self.surroundings(), capturing(echo=True):
            self._carry(self._dispatcher, carrier, deadline)
        if self._dispatcher.interrupted:
            raise KeyboardInterrupt

    def wait(self, timeout: float) -> bool:
        """Wait for the end of the execution; return whether it has come."""
        return self._ended.wait(timeout)

    def abort(self, reason: str) -> None:
        """End the execution early: what has not ended is ``cancelled``."""
        if self._dispatcher is not None and not self._ended.is_set():
            self._dispatcher.abort(reason)

    def release(self) -> bool:
        """Let go of the operation; return whether processes may still run on the workers."""
        self.abort("it was cleaned up")
        begun = self._dispatcher is not None
        ended = not begun or self._ended.wait(CLOSE_S)
        self._journal.close()
        return not ended or (self._dispatcher is not None and self._dispatcher.left_running)

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
        )

    def check(self) -> None:
        """Raise OperationError if not all processes could be had or carried to their end."""
        if self._dispatcher is None:
            return
        error = self._failure or self._dispatcher.source.error
        if error is not None:
            what = "it could not go on" if self._failure else "its processes could not all be had"
            raise OperationError(
                f"the operation ended early, {what}: {type(error).__name__}: {error}; what ended"
                f" before, {self._dispatcher.ended} processes, is in {self.directory.path}"
            ) from error

    def write_table(self) -> None:
        """Write the table of what has ended."""
        try:
            Table(self.directory.journal).write(self.directory.table, self.directory.parquet)
        except OSError as error:
            raise unusable(self.directory.path, error) from error

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

    def _carry(self, dispatcher: Dispatcher, carrier: Carrier, deadline: float) -> None:
        try:
            dispatcher.run(carrier, deadline)
        except KeyboardInterrupt:
            dispatcher.interrupted = True
        except BaseException as error:
            self._failure = error
        finally:
            with contextlib.suppress(OSError, ValueError):
                dispatcher.finish()
            self._ended.set()

    def _reserve(self, undo: contextlib.ExitStack) -> ResultDirectory:
        operation = self.operation
        before = asked = getattr(operation, "result_directory", None)
        if asked is not None and asked == getattr(operation, "automatic_directory", None):
            asked = None
        directory, made = reserve(asked, self.name)
        undo.callback(setattr, operation, "result_directory", before)
        undo.callback(unreserve, directory, made)
        operation.result_directory = str(directory.path)
        if asked is None:
            operation.automatic_directory = operation.result_directory
        return directory

    def _header(self, facts: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": self.name,
            "backend": facts["backend"],
            "number_processes": getattr(self.operation, "number_processes", None),
            "parameters": list(getattr(self.operation, "parameters", ())),
            "pid": os.getpid(),
            "start": round(time.time(), 3),
        }

    def _describe(self, facts: dict[str, Any]) -> None:
        operation = self.operation
        describe = getattr(operation, "describe", None)
        described = describe() if describe else {"type": "stream", "name": self.name}
        path = [str(entry) for entry in getattr(operation, "python_path", ())]
        described["base_directory"] = getattr(operation, "base_directory", None) or os.getcwd()
        described.update({"python_path": path} if path else {})
        write_yaml(self.directory.operation, described)
        text = json.dumps({**facts, **describe_environment()}, indent=2)
        self.directory.environment.write_text(text + "\n", encoding="utf-8")

    def _python_path(self) -> tuple[str, ...]:
        own = getattr(self.operation, "python_path", ())
        script = sys.path[0] if sys.path and Path(sys.path[0] or ".").is_dir() else "."
        return tuple(dict.fromkeys([*own, os.getcwd(), os.path.abspath(script)]))
