"""`run_attempts`: runs the processes of a batch, one after the other, in this interpreter."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle

from daskspace.execution import memory, plain
from daskspace.execution.capture import AttemptLog
from daskspace.execution.commit import (
    commit,
    discard,
    fields_of,
    in_place,
    make_attempt_directory,
    processes_of,
)
from daskspace.execution.identity import Identity, describe_process
from daskspace.execution.original import call_original, is_original
from daskspace.execution.outcome import describe_error
from daskspace.execution.preparation import Preparation
from daskspace.execution.seal import sealed
from daskspace.execution.tape import Tape
from daskspace.execution.travel import Batch, Package, unpack

ISOLATIONS = ("process", "fresh", "none")
"""Where user code runs: in a child that is kept, in one of its own for each process, in place."""


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
    identity : Identity
        What tells the processes apart.
    group : str
        The name of the operation on the cluster, unique.
    isolation : str
        One of `ISOLATIONS`.
    process_timeout : float, optional
        After so many seconds a process is stopped.
    process_memory : int, optional
        A process that uses more, in bytes, is stopped.
    budget : float
        After this many seconds a batch returns what it has not begun.
    echo : bool
        Whether what a process prints appears on the terminal as well.
    preparation : Preparation
        What processes of pySPACE's own kind are prepared with.
    """

    directory: str
    working_directory: str
    python_path: tuple[str, ...] = ()
    identity: Identity = field(default_factory=Identity)
    group: str = ""
    isolation: str = "none"
    process_timeout: float | None = None
    process_memory: int | None = None
    budget: float = 1.0
    echo: bool = False
    preparation: Preparation = field(default_factory=Preparation)


class Attempt:
    """One try at a process; the process reaches it by `current_attempt`."""

    def __init__(self, process: int, head: dict[str, Any], settings: Settings, tape: Tape) -> None:
        self.process = process
        self.results = settings.directory
        self.place: tuple[Path, Path] | None = None
        self._head = head
        self._identity = settings.identity
        self._tape = tape
        self.log = AttemptLog(
            f"{settings.directory}/logs",
            lambda: self.name,
            lambda name: tape.note(log=f"logs/{name}"),
        )

    @property
    def name(self) -> str:
        """The name of the process's log and directory, unique in the operation."""
        return self._identity.name(self._head)

    @property
    def directory(self) -> Path | None:
        """The private directory, if it was asked for."""
        return self.place and self.place[0]

    def make_directory(self) -> Path:
        """Return the private directory, which exists from then on."""
        if self.place is None:
            directory = make_attempt_directory(self.results, self.name)
            self.place = directory, processes_of(self.results) / self.name
            self._tape.note(place=[str(path) for path in self.place])
        return self.place[0]


_current: ContextVar[Attempt] = ContextVar("daskspace_attempt")


def current_attempt() -> Attempt:
    """Return the attempt that is running; raises LookupError outside of one."""
    return _current.get()


@contextlib.contextmanager
def attempting(settings: Settings, process: int, call: Any) -> Iterator[Attempt]:
    """Let the current attempt be one at `process`, without catching what it raises."""
    attempt = Attempt(process, describe_process(process, call), settings, Tape())
    token = _current.set(attempt)
    try:
        settle(settings)
        yield attempt
    finally:
        _current.reset(token)


class Interrupt:
    """Whether Ctrl-C, and not the process itself, raised the KeyboardInterrupt.

    Attributes
    ----------
    received : bool
        Set by whoever stops the process that runs in this interpreter.
    running : bool
        Whether a process runs just now.
    """

    def __init__(self) -> None:
        self.received = False
        self.running = False

    def stop(self) -> None:
        """Stop the process that runs in the main thread; call it there."""
        self.received = True
        if self.running:
            raise KeyboardInterrupt


interrupt = Interrupt()
_HOST = socket.gethostname()


def load_batch(settings: Settings, package: Package | None, batch: Batch | bytes | Path) -> Batch:
    """Return the processes of a batch, after making this interpreter ready for them."""
    settle(settings)
    if package is not None:
        unpack(package, settings.python_path)
    batch = batch.read_bytes() if isinstance(batch, Path) else batch
    loaded: Batch = cloudpickle.loads(batch) if isinstance(batch, bytes) else batch
    return loaded


def run_attempts(
    settings: Settings,
    batch: Batch,
    tape: Tape,
    until: float,
    goes_on: Callable[[], bool] = lambda: True,
) -> None:
    """Try processes one after the other, and never raise.

    Parameters
    ----------
    settings : Settings
        What they have in common.
    batch : sequence of (int, process)
        The processes with their positions.
    tape : Tape
        Gets what becomes of them.
    until : float
        After this moment, on the monotonic clock, none is begun.
    goes_on : callable
        Asked between two processes.
    """
    for process, call in batch:
        _attempt(settings, process, call, tape)
        if not goes_on() or interrupt.received or time.monotonic() > until:
            break


def _attempt(settings: Settings, process: int, call: Callable[[], Any], tape: Tape) -> None:
    """Try one process, and record what becomes of it."""
    known = describe_process(process, call)
    told = plain.dumps(known) if len(known) > 1 else f'{{"process":{process}}}'
    head = f'{told[:-1]},"start":{time.time():.3f}}}'
    attempt = Attempt(process, known, settings, tape)
    token = _current.set(attempt)
    memory.reset_peak()
    began = time.monotonic()
    outcome: dict[str, Any] = {}
    own_pid = os.getpid()
    tape.begin(began, head)
    with attempt.log as log:
        try:
            os.chdir(settings.working_directory)
            if not callable(call):
                kind = type(call).__name__
                raise TypeError(f"a process must be callable without arguments, not {kind!r}")
            interrupt.running = True
            if interrupt.received:  # since the last process ended
                raise KeyboardInterrupt
            original = is_original(call)
            result = call_original(call, settings.preparation) if original else call()
            interrupt.running = False
            outcome = {"state": "done", "metrics": plain.as_metrics(result)}
        except BaseException as error:
            interrupt.running = False
            interrupted = isinstance(error, KeyboardInterrupt) and interrupt.received
            described = describe_error(error)
            log.take_spool()
            outcome = {"state": "cancelled" if interrupted else "failed", **described}
            outcome["log_tail"] = log.tail()
            log.write(described.get("traceback", ""))
    if os.getpid() != own_pid:
        os._exit(0)  # a fork that the process made, which has come back from it
    outcome["duration"] = round(time.monotonic() - began, 6)
    outcome["host"] = _HOST
    outcome["peak_memory"] = memory.peak()
    _current.reset(token)
    if log.path is not None:
        outcome["log"] = f"logs/{log.path.name}"
    record(tape, head, outcome, attempt.place)


def record(
    tape: Tape, head: str, outcome: dict[str, Any], place: tuple[Path, Path] | None = None
) -> None:
    """Put the outcome of an attempt on the tape, and commit its directory if it has one.

    Parameters
    ----------
    tape : Tape
        The tape of its batch.
    head : str
        The fields that told the process when it began, as JSON.
    outcome : dict
        All other fields.
    place : tuple of Path, optional
        The attempt's directory, and where it belongs.
    """
    if place is not None and outcome["state"] == "cancelled":
        discard(place[0])
        place = None
    if place is None:
        tape.end(outcome["state"], _receipt(head, outcome))
        return
    directory, final = place
    own = _receipt(head, {**outcome, "directory": f"processes/{final.name}"}, place)
    try:
        receipt = commit(directory, final, own)
        state = outcome["state"] if receipt is own else fields_of(receipt)["state"]
    except (OSError, ValueError) as error:
        state = "lost"
        message = f"its directory could not be committed: {error}"
        lost = {"state": state, "error": type(error).__name__, "message": message}
        receipt = _receipt(head, {**outcome, **lost})
    tape.end(state, receipt)


def _receipt(head: str, outcome: dict[str, Any], place: tuple[Path, Path] | None = None) -> str:
    """Return the line of JSON that tells all about an outcome."""
    filled = {name: value for name, value in outcome.items() if value or value == 0}
    text = f"{head[:-1]},{plain.dumps(filled)[1:]}"
    return sealed(text if place is None else in_place(text, *place))


def settle(settings: Settings) -> None:
    """Make this interpreter see the files and modules that the client sees."""
    os.chdir(settings.working_directory)
    for directory in reversed(settings.python_path):
        if directory not in sys.path:
            sys.path.insert(0, directory)
