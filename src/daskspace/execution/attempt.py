"""`run_attempts`: the only function that Dask ever runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import cloudpickle

from daskspace.execution import memory, plain
from daskspace.execution.capture import AttemptLog, capturing
from daskspace.execution.outcome import describe_error, receipt
from daskspace.execution.travel import Batch, Package, is_client, unpack


@dataclass(frozen=True)
class Settings:
    """What all attempts of an operation have in common.

    Parameters
    ----------
    directory : str
        The result directory, absolute.
    working_directory : str
        Where the processes run: the client's working directory.
    python_path : tuple of str
        Directories that are importable in the processes.
    budget : float
        After this many seconds a batch returns what it has not begun.
    echo : bool
        Whether what a process prints appears on the terminal as well.
    """

    directory: str
    working_directory: str
    python_path: tuple[str, ...] = ()
    budget: float = 1.0
    echo: bool = False


class Attempt:
    """One try at a process; the process reaches it by `current_attempt`."""

    def __init__(self, process: int, call: Any, results: str) -> None:
        self.process = process
        self.results = results
        self.log = AttemptLog(lambda: Path(results, "logs", f"{self.name}.log"))
        self.directory: Path | None = None
        self._call = call

    @property
    def name(self) -> str:
        """The name of its log and directory, unique in the operation."""
        name = getattr(self._call, "attempt_name", None)
        return name if isinstance(name, str) else f"process-{self.process:06d}"

    def make_directory(self) -> Path:
        """Return the private directory, which exists from then on."""
        if self.directory is None:
            directory = Path(self.results, "processes", self.name)
            directory.mkdir(parents=True, exist_ok=True)
            self.directory = directory
        return self.directory


_current: ContextVar[Attempt] = ContextVar("daskspace_attempt")


def current_attempt() -> Attempt:
    """Return the attempt that is running; raises LookupError outside of one."""
    return _current.get()


@contextlib.contextmanager
def attempting(settings: Settings, process: int, call: Any) -> Iterator[Attempt]:
    """Let the current attempt be one at `process`, without catching what it raises."""
    attempt = Attempt(process, call, settings.directory)
    token = _current.set(attempt)
    try:
        _settle(settings)
        yield attempt
    finally:
        _current.reset(token)


class _Interrupt:
    """Whether Ctrl-C, and not the process itself, raised the KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Note a Ctrl-C before Python's own handler raises it; needs the main thread."""
        python_handler = signal.default_int_handler
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not python_handler:
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self.received = True
            python_handler(number, frame)

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, python_handler)


interrupt = _Interrupt()
_HOST = socket.gethostname()


def run_attempts(
    settings: Settings, package: Package | None, batch: Batch | bytes
) -> Mapping[str, Any]:
    """Try a batch of processes one after the other, and never raise.

    Parameters
    ----------
    settings : Settings
        What they have in common.
    package : Package, optional
        The values that they share, when they travelled.
    batch : sequence of (int, process), or bytes
        The processes with their positions; pickled, when they travelled.

    Returns
    -------
    mapping
        Plain data: ``receipts`` (a str, one line of JSON per process begun), ``states`` (how
        many outcomes in which state), ``troubles`` (the receipts that are not ``done``), ``busy``
        (seconds), ``interrupted`` (Ctrl-C ended the batch); or only ``unreadable`` (the fields of
        an outcome), when the batch could not be loaded.
    """
    try:
        _settle(settings)
        if package is not None:
            unpack(package, settings.python_path)
        processes = cloudpickle.loads(batch) if isinstance(batch, bytes) else batch
    except BaseException as error:
        return {"unreadable": describe_error(error)}
    interrupt.received = False
    receipts: list[str] = []
    troubles: list[str] = []
    states: Counter[str] = Counter()
    began = time.perf_counter()
    with capturing(settings.echo, descriptors=package is not None and not is_client()):
        for process, call in processes:
            outcome = _attempt(settings, process, call)
            state = outcome["state"]
            receipts.append(receipt(outcome))
            states[state] += 1
            if state != "done":
                troubles.append(receipts[-1])
            if interrupt.received or time.perf_counter() - began > settings.budget:
                break
    return {
        "receipts": "\n".join(receipts),
        "states": dict(states),
        "troubles": troubles,
        "busy": time.perf_counter() - began,
        "interrupted": interrupt.received,
    }


def describe_process(process: int, call: Any) -> dict[str, Any]:
    """Return the fields of an outcome that tell which process it is."""
    known: dict[str, Any] = {"process": process}
    with contextlib.suppress(Exception):
        parameters, data, run = (
            getattr(call, name, None) for name in ("parameters", "data", "run")
        )
        if isinstance(parameters, Mapping):
            known["parameters"] = plain.plain(parameters)
        if isinstance(data, str | os.PathLike):
            known["data"] = os.fspath(data)
        if isinstance(run, int):
            known["run"] = run
    return known


def _attempt(settings: Settings, process: int, call: Callable[[], Any]) -> dict[str, Any]:
    """Return the fields of the outcome of one attempt."""
    outcome = describe_process(process, call)
    attempt = Attempt(process, call, settings.directory)
    token = _current.set(attempt)
    memory.reset_peak()
    start, began = time.time(), time.perf_counter()
    with attempt.log as log:
        try:
            os.chdir(settings.working_directory)
            if not callable(call):
                kind = type(call).__name__
                raise TypeError(f"a process must be callable without arguments, not {kind!r}")
            outcome.update(state="done", metrics=plain.as_metrics(call()))
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt) and interrupt.received
            outcome.update(
                describe_error(error),
                state="cancelled" if interrupted else "failed",
            )
            log.write(outcome.get("traceback", ""))
        interrupt.received = outcome["state"] == "cancelled"
    duration = time.perf_counter() - began
    _current.reset(token)
    outcome.update(
        start=round(start, 3),
        duration=round(duration, 6),
        host=_HOST,
        peak_memory=memory.peak(),
    )
    if log.exists:
        outcome["log"] = f"logs/{attempt.name}.log"
    if attempt.directory is not None:
        outcome["directory"] = f"processes/{attempt.name}"
    return outcome


def _settle(settings: Settings) -> None:
    """Make this interpreter see the files and modules that the client sees."""
    os.chdir(settings.working_directory)
    for directory in reversed(settings.python_path):
        if directory not in sys.path:
            sys.path.insert(0, directory)
