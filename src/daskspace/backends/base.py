"""The interface that every backend keeps; knows no Dask."""

from __future__ import annotations

import contextlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Any, ClassVar, Self

from daskspace.errors import DirectoryError, LifecycleError
from daskspace.execution.status import Status
from daskspace.results.directory import ResultDirectory

_STEPS = {
    "stage_in": ("idling", "staged"),
    "execute": ("staged", "executing"),
    "retrieve": ("executing", "retrieved"),
    "consolidate": ("retrieved", "consolidated"),
}
_ORDER = ["idling", "staged", "executing", "retrieved", "consolidated"]
_NEXT_STEP = {before: step for step, (before, _) in _STEPS.items()}

_LOG_FORMAT = "%(asctime)s %(name)-40s %(levelname)-8s %(message)s"
LONG_S = 1e6


class _QuietHandler(logging.FileHandler):
    """A handler that a full disk costs its records, and nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Pass over it."""


class Backend(ABC):
    """Runs one operation at a time: stage_in, execute, retrieve, consolidate, cleanup.

    A call in the wrong state raises `LifecycleError` and changes nothing. `cleanup` may be called
    in any state, any number of times.

    Attributes
    ----------
    state : str
        One of `STATES`.
    current_operation
        The operation that is staged, or None.
    console_log_level, file_log_level : int, optional
        From which level on the terminal, and the operation's log, get what is logged; by default
        the terminal gets nothing, and the log what is told there.
    """

    STATES: ClassVar[set[str]] = {"idling", "staged", "executing", "retrieved", "consolidated"}
    console_log_level: int | None = None
    file_log_level: int | None = None

    def __init__(self) -> None:
        self.state = "idling"
        self.current_operation: Any = None
        self._logger = logging.getLogger(f"daskspace.{self}")
        self._log_handler: logging.Handler | None = None
        self._console: logging.Handler | None = None
        self._owner = os.getpid()

    def stage_in(self, operation: Any) -> None:
        """Stage the current operation: idling -> staged.

        When it raises, nothing is left over and the backend is still idling.
        """
        with self._step("stage_in"):
            self.current_operation = operation

    @abstractmethod
    def execute(self, timeout: float | None = LONG_S) -> None:
        """Execute all processes of the staged operation: staged -> executing.

        Parameters
        ----------
        timeout : float or None
            After this many seconds the execution is aborted: what has not ended becomes
            ``cancelled``. That is no exception: retrieve and consolidate go on.
        """

    @abstractmethod
    def check_status(self) -> Status:
        """Return a description of the current state of the operation's execution; in any state."""

    @abstractmethod
    def retrieve(self, timeout: float | None = LONG_S) -> None:
        """Fetch the results of the operation's processes: executing -> retrieved.

        Blocks until all have ended.

        Parameters
        ----------
        timeout : float or None
            Seconds after which it raises.

        Raises
        ------
        RetrieveTimeout
            Processes still run; the state is unchanged, and it may be called again.
        """

    @abstractmethod
    def consolidate(self) -> None:
        """Consolidate the results of the processes into one: retrieved -> consolidated."""

    @abstractmethod
    def cleanup(self) -> None:
        """Remove the current operation and its results from this object; never from the disk."""

    def get_result_directory(self) -> str:
        """Return the result directory of the current operation.

        Raises
        ------
        DirectoryError
            No operation is staged.
        """
        if self.current_operation is None or self.current_operation.result_directory is None:
            raise DirectoryError("no operation staged: call stage_in(operation) first")
        return str(self.current_operation.result_directory)

    def close(self) -> None:
        """Give back what the backend holds; harmless when repeated."""
        self.cleanup()

    def _check_step(self, call: str) -> None:
        needed, _ = _STEPS[call]
        if self.state != needed:
            too_early = _ORDER.index(self.state) < _ORDER.index(needed)
            first = _NEXT_STEP[self.state] if too_early else "cleanup"
            raise LifecycleError(
                f"{call}() needs a backend that is {needed}, but this one is {self.state}:"
                f" call {first}() first"
            )

    @contextlib.contextmanager
    def _step(self, call: str) -> Iterator[None]:
        """Check the order before the work; record the new state once it succeeded."""
        self._check_step(call)
        yield
        self.state = _STEPS[call][1]

    def _start_logging(self) -> None:
        """Let the log of the current operation begin, in its result directory."""
        path = ResultDirectory(self.get_result_directory()).log
        self._stop_logging()
        handler = _QuietHandler(path, encoding="utf-8")
        handler.setFormatter(logging.Formatter(_LOG_FORMAT))
        handler.setLevel(self.file_log_level or logging.NOTSET)
        self._log_handler = handler
        if self.console_log_level is not None and not self._logger.hasHandlers():
            self._console = logging.StreamHandler()
            self._console.setFormatter(logging.Formatter(_LOG_FORMAT))
            self._console.setLevel(self.console_log_level)

    def _stop_logging(self) -> None:
        """End the operation's log; harmless when there is none."""
        if self._log_handler is not None:
            with contextlib.suppress(OSError):
                self._log_handler.close()
            self._log_handler = None
        self._console = None

    def _log(self, message: str, level: int = logging.INFO) -> None:
        """Log a message to the operation's log, and to a logger below ``daskspace``."""
        record = self._logger.makeRecord(self._logger.name, level, "", 0, message, (), None)
        self._log_sent(record)
        if self._logger.isEnabledFor(level) and self._console is None:
            self._logger.handle(record)

    def _log_sent(self, record: logging.LogRecord) -> None:
        """Put a record where the log of the operation goes; a process may have sent it."""
        for handler in (self._log_handler, self._console):
            if handler is not None and record.levelno >= handler.level:
                handler.handle(record)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            if self._owner == os.getpid():  # else it is a fork's copy
                self._stop_logging()
                self.close()

    def __str__(self) -> str:
        return type(self).__name__
