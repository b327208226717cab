"""User code runs in a child of a host, a program beside this interpreter that limits it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import daskspace
from daskspace.execution.attempt import Settings, interrupt, load_batch, run_attempts
from daskspace.execution.capture import capturing
from daskspace.execution.environment import without_rank
from daskspace.execution.helping import Helping, Offers
from daskspace.execution.original import holds_originals, one_at_a_time
from daskspace.execution.outcome import describe_error
from daskspace.execution.record_receiver import receiving
from daskspace.execution.subflow_server import serving
from daskspace.execution.tape import Recording, Tape, read_tape
from daskspace.execution.travel import Batch, Package, Parcel, is_client

HEADER = struct.Struct("!cQ")
"""What comes before everything that a worker and its host say to each other: kind and size."""
JOB_START = "DASKSPACE_JOB_START"
"""Set in the environment of a batch job: when it began, in seconds since the epoch."""
_MARK = "DASKSPACE_HOST"
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[2]); from daskspace.execution.host import main; main()"
)
_CLOSE_S = 10.0
_SLICE_S = 0.5
_THREAD_LIMITS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_GROUPS_KEPT = 100

Tell = Callable[[Mapping[str, Any]], object]


class HostLost(Exception):
    """The host ended, or was killed, before it answered."""


class Host:
    """A program beside this one that keeps the child in which user code runs.

    It ends, and with it everything that user code has started, when this interpreter does,
    however that happens.

    Attributes
    ----------
    number : int
        Which of its batches it runs, or ran last.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._mark = uuid.uuid4().hex
        self._sending = threading.Lock()
        self.number = 0
        root = str(Path(daskspace.__file__).parent.parent)
        limits = {name: os.environ.get(name, "1") for name in _THREAD_LIMITS}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM, str(theirs.fileno()), root],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**without_rank(os.environ), **limits, _MARK: self._mark},
            )
        _hosts.add(self)

    def run(
        self,
        settings: Settings,
        package: Package | None,
        parcel: Parcel,
        tape: Path,
        tell: Tell,
        offers: Offers | None,
        wanted: Callable[[], bool],
    ) -> dict[str, Any]:
        """Run a batch, and return how it ended; see `carry_out`.

        Raises
        ------
        HostLost
            The host is gone; the tape tells how far it came.
        """
        head = {
            "number": self.number,
            "group": settings.group,
            "directory": settings.directory,
            "tape": str(tape),
            "count": parcel.count,
            "by_parameters": settings.identity.by_parameters,
            "hidden": settings.identity.hidden,
            "within": settings.identity.within,
            "fresh": settings.isolation == "fresh",
            "timeout": settings.process_timeout,
            "memory": settings.process_memory,
            "budget": parcel.budget or settings.budget,
        }
        helping: Helping | None = None
        try:
            body = pickle.dumps((settings, sys.path, package, parcel.content))
            self._send(b"J", json.dumps(head).encode() + b"\n" + body)
            while True:
                answer: dict[str, Any] = json.loads(self._receive(wanted))
                if "ended" in answer:
                    return answer
                if "subflows" in answer:
                    if helping is None:
                        reply = partial(self._reply, self.number)
                        helping = Helping(settings, package, carry_out, tell, offers, reply)
                    helping.hear(answer)
                else:
                    tell(answer)
        except (OSError, EOFError) as error:
            self.close()
            raise HostLost(self._epitaph()) from error
        finally:
            if helping is not None:
                helping.close()

    def stop(self) -> None:
        """Stop what it runs just now, from any thread."""
        with contextlib.suppress(OSError):
            self._send(b"S", json.dumps({"number": self.number}).encode())

    def close(self) -> None:
        """End it, and everything that runs under it; harmless when repeated."""
        self._socket.close()
        try:
            self._process.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_CLOSE_S)
        if self._process.returncode != 0:
            _kill_marked(self._mark)

    def _reply(self, number: int, subflows: int) -> None:
        """Tell it that subflows of a batch have ended."""
        self._send(b"R", json.dumps({"number": number, "subflows": subflows}).encode())

    def _epitaph(self) -> str:
        code = self._process.poll()
        how = f"by {signal_name(-code)}" if code and code < 0 else f"with exit code {code}"
        return f"the host of its interpreter ended {how}"

    def _send(self, kind: bytes, content: bytes) -> None:
        with self._sending:
            self._socket.sendall(HEADER.pack(kind, len(content)) + content)

    def _receive(self, wanted: Callable[[], bool]) -> bytes:
        has_come = False
        # In slices: a signal that another thread takes does not wake the main thread.
        while not has_come:
            if not wanted():
                self.stop()
            has_come = bool(wait([self._socket], _SLICE_S))
        _, size = HEADER.unpack(receive_exactly(self._socket, HEADER.size))
        return receive_exactly(self._socket, size)


def receive_exactly(connection: socket.socket, size: int) -> bytes:
    """Return `size` bytes; raises EOFError when the other side is gone before."""
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def signal_name(number: int) -> str:
    """Return the name of a signal; most real-time signals have none of their own."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _kill_marked(mark: str) -> None:
    """Kill what a host left behind when it was killed itself."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(_MARK) == mark:
                process.kill()


_hosts: weakref.WeakSet[Host] = weakref.WeakSet()


def _leave_hosts_to_parent() -> None:
    """Close a fork's ends of their sockets, by which they would outlive this interpreter."""
    for host in list(_hosts):
        host._socket.close()


os.register_at_fork(after_in_child=_leave_hosts_to_parent)
_lock = threading.Lock()
_idle: list[Host] = []
_running: defaultdict[str, set[Host]] = defaultdict(set)
_stopped: OrderedDict[str, bool] = OrderedDict()


def stop(group: str, running: bool) -> None:
    """Begin no more batches of an operation in this interpreter.

    Parameters
    ----------
    group : str
        The name of the operation on the cluster.
    running : bool
        Whether what runs is stopped as well; where it runs in place, that cannot be done.
    """
    with _lock:
        _stopped[group] = running or _stopped.get(group, False)
        while len(_stopped) > _GROUPS_KEPT:
            _stopped.popitem(last=False)
        hosts = list(_running[group]) if running else []
    for host in hosts:
        host.stop()


def _is_stopped(settings: Settings) -> bool:
    """Return whether a batch may not begin; the subflows of what still runs may."""
    running = _stopped.get(settings.group)
    return bool(running) if settings.depth else running is not None


def start_hosts(number: int) -> None:
    """Start hosts ahead of the batches, until there are `number`."""
    while True:
        with _lock:
            if len(_idle) + sum(map(len, _running.values())) >= number:
                return
        try:
            host = Host()
        except OSError:
            return
        with _lock:
            _idle.append(host)


def close_idle_hosts() -> None:
    """End the hosts of this interpreter that run nothing."""
    with _lock:
        hosts, _idle[:] = list(_idle), []
    for host in hosts:
        host.close()


def carry_out(
    settings: Settings,
    package: Package | None,
    batch: Batch | Parcel,
    tape_path: Path | None = None,
    tell: Tell = lambda message: None,
    offers: Offers | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    """Run a batch where its operation wants it, and never raise.

    A batch whose tape exists has been begun before, by a worker that was lost since; it is not
    run again, and what is on the tape is returned.

    Parameters
    ----------
    settings : Settings
        What its processes have in common.
    package : Package, optional
        The values that they share, when they travelled.
    batch : sequence of (int, process), or Parcel
        The processes with their positions; in a parcel, when they travelled.
    tape_path : Path, optional
        Where its tape is; by default it is kept in memory.
    tell : callable
        Gets mappings that are of interest while it runs.
    offers : Offers, optional
        The cluster that subflows are offered to.
    wanted : callable
        Asked between two processes that run in place, and all along while they run in a child;
        when it returns False, the batch is stopped.

    Returns
    -------
    dict
        Plain data: ``receipts`` (a str, one line of JSON per process that has ended), ``states``
        (how many outcomes in which state), ``troubles`` (the receipts that are not ``done``),
        ``busy`` (seconds), ``begun`` (the process that began and did not end, since its host was
        lost), ``opened`` (whether any may have begun), ``lost`` (why, if it was), ``taken`` (if it
        had been begun before), ``stopped`` (if it may not begin), ``records`` (how many of their
        log records were told, where they sent such); or only ``unreadable`` (the fields of an
        outcome), when the batch could not be loaded.
    """
    if _is_stopped(settings):
        return {**nothing_begun(), "stopped": True}
    try:
        tape = Tape(tape_path, new=True)
    except FileExistsError:
        assert tape_path is not None  # noqa: S101 - for mypy
        why = "the worker that had begun it was lost"
        return _returned(read_tape(tape_path), lost=why, taken=True)
    except OSError as error:
        return _returned(Recording(), lost=f"its tape cannot be written: {error}", opened=False)
    began = time.perf_counter()
    extra: dict[str, Any] = {}
    originals = batch.has_originals if isinstance(batch, Parcel) else holds_originals(batch)
    try:
        with contextlib.ExitStack() as around:
            receiver = receiving(settings.preparation, originals, tell)
            preparation, end = around.enter_context(receiver)
            if originals:
                settings = dataclasses.replace(settings, preparation=preparation)
            if settings.subflow_server and not settings.depth:
                server = serving(settings, package, tape, carry_out, tell, offers)
                settings = around.enter_context(server)
            if settings.isolation == "none":
                with one_at_a_time if originals else contextlib.nullcontext():
                    extra = _in_place(settings, package, batch, tape, tell, wanted)
            elif isinstance(batch, Parcel) and tape_path is not None:
                extra = _in_host(settings, package, batch, tape_path, tell, offers, wanted)
            extra.update(end())
        if "unreadable" in extra:
            return extra
        if "lost" not in extra:
            tape.complete()
        return _returned(tape.recording(), busy=time.perf_counter() - began, **extra)
    except OSError as error:
        return _returned(
            _left_on(tape_path), lost=f"its tape cannot be used: {error}", opened=False
        )
    finally:
        tape.close()


def nothing_begun() -> dict[str, Any]:
    """Return what `carry_out` does when it begins none of a batch."""
    return _returned(Recording())


def _left_on(tape_path: Path | None) -> Recording:
    try:
        return read_tape(tape_path) if tape_path is not None else Recording()
    except OSError:
        return Recording()


def _returned(recording: Recording, **more: Any) -> dict[str, Any]:
    if recording.complete:
        more.pop("lost", None)
    return {
        "receipts": "\n".join(recording.receipts),
        "states": dict(recording.states),
        "troubles": recording.troubles,
        "begun": recording.begun,
        "busy": 0.0,
        "opened": True,
        **more,
    }


def _in_place(
    settings: Settings,
    package: Package | None,
    batch: Batch | Parcel,
    tape: Tape,
    tell: Tell,
    wanted: Callable[[], bool],
) -> dict[str, Any]:
    interrupt.received = False
    alone = package is not None and not is_client()
    try:
        content = batch.content if isinstance(batch, Parcel) else batch
        processes = load_batch(settings, package, content)
    except BaseException as error:
        return {"unreadable": describe_error(error)}

    def has_next() -> bool:
        return not (tape.has_trouble or settings.group in _stopped) and wanted()

    budget = (batch.budget if isinstance(batch, Parcel) else None) or settings.budget
    with capturing(settings.echo, spool=alone, tell=lambda text: tell({"log": text})):
        run_attempts(settings, processes, tape, time.monotonic() + budget, has_next)
    return {}


def _in_host(
    settings: Settings,
    package: Package | None,
    parcel: Parcel,
    tape_path: Path,
    tell: Tell,
    offers: Offers | None,
    wanted: Callable[[], bool],
) -> dict[str, Any]:
    with _lock:
        host = _idle.pop() if _idle else None
    try:
        host = host or Host()
    except OSError as error:
        return {"lost": f"its host could not be started: {error}", "opened": False}
    with _lock:
        host.number += 1
        _running[settings.group].add(host)
        stopped = _is_stopped(settings)
    try:
        answer = (
            {"stopped": True}
            if stopped
            else host.run(settings, package, parcel, tape_path, tell, offers, wanted)
        )
    except HostLost as error:
        return {"lost": str(error)}
    finally:
        with _lock:
            _running[settings.group].discard(host)
            if not _running[settings.group]:
                del _running[settings.group]
    with _lock:
        _idle.append(host)
    answer.pop("ended", None)
    return answer
