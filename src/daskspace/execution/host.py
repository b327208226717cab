"""The program beside a worker: it keeps the child that user code runs in, and its limits.

It runs no user code and unpickles nothing. It has one thread, so that it can fork, and it adopts
every program whose parent has ended, so that nothing which user code starts can outlive it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import linecache
import os
import pickle
import re
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import enumerate as enumerate_threads
from types import FrameType
from typing import Any, BinaryIO

from daskspace.execution import plain
from daskspace.execution.attempt import load_batch, record, run_attempts
from daskspace.execution.capture import AttemptLog, capturing, tail_of, take_spool
from daskspace.execution.identity import Identity
from daskspace.execution.isolation import HEADER, JOB_START, receive_exactly, signal_name
from daskspace.execution.origin import is_library, is_ours
from daskspace.execution.outcome import describe_error
from daskspace.execution.subflows import ANSWER, Channel, open_channel
from daskspace.execution.tape import Recording, Tape, TapeReader

GRACE_S = 0.5
"""How long a process may take to end after SIGTERM, before SIGKILL."""
_KILL_S = 5.0
_IDLE_S = 60.0
_BROKEN = 70
"""The exit code of a child that cannot go on."""
_PIPE = 4096
"""What a pipe that is ready takes without waiting."""
_LOAD_S = 60.0
"""How much longer than a process the batch may take to load."""
_LOOK_AT_MEMORY_EVERY_S = 0.1
_END_OF_JOB_S = 1.0
"""How far apart a batch system's signals to the processes of a job may come."""
_SIZE = struct.Struct("!Q")
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_HOST = socket.gethostname()
_ENDINGS = {"tidy", "unreadable", "lost"}
"""What a child says at the end of its job."""


class WorkerGone(Exception):
    """The worker that this host belongs to has ended."""


class Child:
    """A fork of the host in which user code runs."""

    def __init__(self, first_job: bytes, memory: int | None) -> None:
        self._host = os.getpid()
        jobs, self._jobs = os.pipe()
        answers, self._answers = os.pipe()
        self.messages, messages = os.pipe()
        self.spool: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self.exit: int | None = None
        self.peak_memory = 0
        self.is_silent = False
        self.asked: set[int] = set()
        self._asked_at = self._waited = self._since = 0.0
        self._rest = b""
        # what comes before the child has handlers of its own is to wait, and not for the host's
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGCHLD))
        try:
            self.pid = os.fork()
            if self.pid == 0:
                try:
                    _close_all_but(jobs, messages, answers, self.spool.fileno())
                    self._live(first_job, (messages, jobs, answers), memory, mask)
                except BaseException as error:
                    with contextlib.suppress(OSError):
                        os.write(2, f"{type(error).__name__}: {error}\n".encode())
                finally:
                    os._exit(_BROKEN)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for descriptor in (jobs, messages, answers):
            os.close(descriptor)

    def send(self, job: bytes) -> None:
        """Give it another job; one that takes nothing any more is left to be found out."""
        content = memoryview(_SIZE.pack(len(job)) + job)
        deadline = time.monotonic() + _LOAD_S
        with contextlib.suppress(BrokenPipeError):
            while content and time.monotonic() < deadline:
                if select.select([], [self._jobs], [], 1.0)[1]:
                    content = content[os.write(self._jobs, content[:_PIPE]) :]

    def receive(self) -> Iterator[dict[str, Any]]:
        """Yield the messages that have come."""
        content = os.read(self.messages, 1 << 16)
        self.is_silent = not content
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict):
                    yield message

    def ask(self, subflows: int) -> None:
        """Note that its process waits for subflows."""
        if not self.asked:
            self._asked_at = time.monotonic()
        self.asked.add(subflows)

    def answer(self, subflows: int) -> None:
        """Tell it that subflows have ended."""
        if subflows not in self.asked:
            return
        self.asked.remove(subflows)
        if not self.asked:
            self._waited += time.monotonic() - self._asked_at
        with contextlib.suppress(OSError):
            os.write(self._answers, ANSWER.pack(subflows))

    def waited(self, since: float) -> float:
        """Return how long the process that began at `since` has waited for subflows."""
        if self._since != since:
            self._since, self._waited = since, 0.0
        return self._waited

    def look(self) -> bool:
        """Return whether it has ended."""
        if self.exit is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid == self.pid:
                self.exit = os.waitstatus_to_exitcode(status)
                self.peak_memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return self.exit is not None

    def close(self) -> None:
        """Close what led to it."""
        for descriptor in (self._jobs, self._answers, self.messages):
            os.close(descriptor)
        self.spool.close()

    def _live(
        self,
        job: bytes,
        pipes: tuple[int, int, int],
        memory: int | None,
        mask: set[signal.Signals | int],
    ) -> None:
        messages, jobs, _ = pipes
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        if os.getppid() != self._host:
            return
        signal.set_wakeup_fd(-1)
        # Ranks of MPICH are started with SIGTTIN ignored.
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGTTIN):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        faulthandler.enable(self.spool)
        if memory is not None:
            _limit_memory(memory)
        while True:
            message = _run_job(job, pipes, self.spool)
            _tell(messages, message)
            size = os.read(jobs, _SIZE.size)
            if len(size) < _SIZE.size:
                os._exit(0)
            job = _read_exactly(jobs, _SIZE.unpack(size)[0])


def _run_job(job: bytes, pipes: tuple[int, int, int], spool: BinaryIO) -> dict[str, Any]:
    """Run a job in the child; return the message that tells its end."""
    line, _, body = job.partition(b"\n")
    head = json.loads(line)
    try:
        settings, sys.path[:], package, pickled = pickle.loads(body)
        with capturing(spool=spool):
            batch = load_batch(settings, package, pickled)
    except BaseException as error:
        return {"unreadable": describe_error(error)}
    tape = Tape(Path(head["tape"]))
    tidy = True
    messages, _, answers = pipes
    open_channel(Channel(settings, lambda message: _tell(messages, message), answers))
    numbers = (*pipes, tape.fileno())
    own = _files_of(numbers)

    def goes_on() -> bool:
        nonlocal tidy
        if _files_of(numbers) != own:
            os._exit(_BROKEN)  # else what it runs from now on could not be told
        signal.setitimer(signal.ITIMER_REAL, 0)  # no alarm of one process rings in the next
        memory = head["memory"]
        swollen = memory is not None and _memory_of(os.getpid()) > memory / 2
        tidy = not (head["fresh"] or swollen or _has_threads() or _has_children())
        return tidy

    def echo(text: str) -> None:
        _tell(messages, {"echo": text})

    def log(text: str) -> None:
        _tell(messages, {"log": text})

    try:
        with capturing(echo if settings.echo else False, spool, log):
            run_attempts(settings, batch[head["first"] :], tape, head["until"], goes_on)
        tape.flush()
    except OSError as error:
        return {"lost": f"its tape cannot be written: {error}"}
    tape.close()
    return {"tidy": tidy}


def _files_of(descriptors: tuple[int, ...]) -> list[tuple[int, ...]] | None:
    """Return which files are open, by inode and device; None if one is closed."""
    try:
        return [os.fstat(descriptor)[1:3] for descriptor in descriptors]
    except OSError:
        return None


_telling = threading.RLock()


def _tell(messages: int, message: Mapping[str, Any]) -> None:
    content = memoryview(json.dumps(message).encode() + b"\n")
    with _telling:
        while content:
            content = content[os.write(messages, content) :]


class Host:
    """Runs one job after the other, each in a child."""

    def __init__(self, worker: socket.socket) -> None:
        self._worker = worker
        self._child: Child | None = None
        self._group = ""
        self._stopped = -1
        self._wakeup, wakeup = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _leave)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def serve(self) -> None:
        """Do what the worker asks for until it is gone."""
        try:
            while True:
                if not select.select([self._worker], [], [], _IDLE_S)[0]:
                    self._end_child()
                    continue
                kind, content = self._receive()
                if kind == b"J":
                    self._answer(self._run(content))
        except (WorkerGone, SystemExit):
            pass
        finally:
            kill_descendants()

    def _receive(self) -> tuple[bytes, bytes]:
        """Return the next thing that the worker says."""
        try:
            kind, size = HEADER.unpack(receive_exactly(self._worker, HEADER.size))
            content = receive_exactly(self._worker, size)
        except (OSError, EOFError) as error:
            raise WorkerGone from error
        if kind == b"S":
            self._stopped = json.loads(content)["number"]
        return kind, content

    def _answer(self, message: dict[str, Any]) -> None:
        content = json.dumps(message).encode()
        try:
            self._worker.sendall(HEADER.pack(b"A", len(content)) + content)
        except OSError as error:
            raise WorkerGone from error

    def _run(self, content: bytes) -> dict[str, Any]:
        """Run one batch to its end, in as many children as it takes."""
        line, _, body = content.partition(b"\n")
        head = json.loads(line)
        if head["group"] != self._group:
            self._end_child()
            self._group = head["group"]
        head.update(first=0, until=time.monotonic() + head["budget"])
        tape, reader = Tape(Path(head["tape"])), TapeReader(Path(head["tape"]))
        try:
            while True:
                message = self._run_in_child(head, body, tape, reader)
                head["first"] = reader.read().ended
                is_over = head["first"] >= head["count"] or time.monotonic() > head["until"]
                if is_over or message or self._stopped == head["number"]:
                    return {"ended": True, **message}
        except OSError as error:
            self._end_child()
            return {"ended": True, "lost": f"its tape cannot be written: {error}"}
        finally:
            tape.close()
            reader.close()

    def _run_in_child(
        self, head: dict[str, Any], body: bytes, tape: Tape, reader: TapeReader
    ) -> dict[str, Any]:
        """Have a child run what is left of a batch; return what there is to say about its end."""
        if self._stopped == head["number"]:
            return {}
        job = json.dumps(head).encode() + b"\n" + body
        was_kept = self._child is not None
        if self._child is None:
            self._child = Child(job, head["memory"])
        else:
            self._child.send(job)
        child = self._child
        verdict = self._watch(child, head, reader, was_kept)
        if verdict.keys() & _ENDINGS:
            if not verdict.pop("tidy", False):
                self._end_child()
            return verdict
        if (child.exit or 0) < 0 and JOB_START in os.environ:
            time.sleep(_END_OF_JOB_S)  # at the end of a job, the signal comes here as well
        self._end_child(GRACE_S if verdict["state"] != "crashed" else 0.0, forget=False)
        verdict = _explained(verdict, child, head)
        recording = reader.read()
        has_begun = recording.head is not None
        if has_begun:
            _record_end(recording, verdict, child, head, tape)
        child.close()
        if has_begun or verdict["state"] == "cancelled" or was_kept:
            return {}
        return {"unreadable": {**verdict, "message": f"{verdict['message']}, before it began"}}

    def _watch(
        self, child: Child, head: dict[str, Any], reader: TapeReader, was_kept: bool
    ) -> dict[str, Any]:
        """Wait until a child has done its job, has ended, or must be ended; return which."""
        loaded_by = time.monotonic() + _LOAD_S
        while True:
            has_ended = child.look()  # before it is listened to: its last words may be in the pipe
            patience = 0.0 if has_ended else _until_limit(head, reader, child, loaded_by, was_kept)
            if patience is not None and patience <= 0 and not has_ended:
                limit = head["timeout"] or _LOAD_S
                text = f"it ran longer than process_timeout, {limit:g} s"
                verdict = {"state": "timeout", "error": "ProcessTimeout", "message": text}
                return self._hear(child, head, reader) or verdict
            if head["memory"] is not None and not has_ended:
                patience = min(patience or _LOOK_AT_MEMORY_EVERY_S, _LOOK_AT_MEMORY_EVERY_S)
                used = _memory_of(child.pid)
                if used > head["memory"]:
                    used = _memory_of(child.pid, exactly=True)
                if used > head["memory"]:
                    text = (
                        f"it used {used / 2**20:.0f} MiB, more than process_memory,"
                        f" {head['memory'] / 2**20:.0f} MiB"
                    )
                    return {"state": "crashed", "error": "ProcessMemory", "message": text}
            heard = [] if child.is_silent else [child.messages]
            sources: list[Any] = [self._worker, self._wakeup, *heard]
            ready = select.select(sources, [], [], patience)[0]
            if self._wakeup in ready:
                self._clear_wakeup()
            if child.messages in ready:
                if last_word := self._hear(child, head, reader):
                    return last_word
            elif has_ended:
                return {"state": "crashed"}
            if self._worker in ready:
                kind, content = self._receive()
                if kind == b"R" and (answer := json.loads(content))["number"] == head["number"]:
                    child.answer(answer["subflows"])
                if self._stopped == head["number"]:
                    return {"state": "cancelled", "message": "it was stopped"}

    def _hear(
        self, child: Child, head: dict[str, Any], reader: TapeReader
    ) -> dict[str, Any] | None:
        """Pass on what a child has said; return its last word on its job, if that was said."""
        if child.is_silent or not select.select([child.messages], [], [], 0)[0]:
            return None
        for message in child.receive():
            if message.keys() & _ENDINGS:
                return message
            if isinstance(number := message.get("subflows"), int):
                begun = reader.read().begun or {"process": head["first"]}
                child.waited(reader.recording.since)
                message["within"] = _identity(head).name(begun)
                if "dropped" in message:
                    child.answer(number)
                else:
                    child.ask(number)
            self._answer(message)
        return None

    def _clear_wakeup(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wakeup, 1 << 12)

    def _end_child(self, grace: float = 0.0, forget: bool = True) -> None:
        """End the child, and all that it has started."""
        child, self._child = self._child, None
        if child is None:
            return
        if grace and not child.look():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace
            while not child.look() and time.monotonic() < deadline:
                select.select([self._wakeup], [], [], 0.02)
                self._clear_wakeup()
        deadline = time.monotonic() + _KILL_S
        while not child.look() and time.monotonic() < deadline:
            _kill([child.pid])
            time.sleep(0.001)
        kill_descendants()
        asked, child.asked = child.asked, set()
        for number in asked:
            self._answer({"subflows": number, "dropped": True})
        if forget:
            child.close()


def _until_limit(
    head: dict[str, Any], reader: TapeReader, child: Child, loaded_by: float, was_kept: bool
) -> float | None:
    """Return in how many seconds to look again, none or less when the limit is reached."""
    limit = head["timeout"]
    if limit is None and not was_kept:
        return None
    recording = reader.read()
    if recording.head is None and recording.ended == head["first"]:
        return float(min(loaded_by - time.monotonic(), limit or _LOAD_S))
    if limit is None or child.asked:
        return None
    began = recording.since + child.waited(recording.since)
    return float(began + limit - time.monotonic())


def _explained(verdict: dict[str, Any], child: Child, head: dict[str, Any]) -> dict[str, Any]:
    """Return a verdict that says how the child ended, if it ended by itself."""
    if "message" in verdict:
        return verdict
    code = child.exit or 0
    if code >= 0:
        text = f"it ended its interpreter with exit code {code}"
        if code == _BROKEN:
            text += "; perhaps it closed descriptors that are not its own"
        return {**verdict, "error": "Exit", "message": text}
    name = signal_name(-code)
    text = f"its interpreter was ended by {name} ({signal.strsignal(-code)})"
    if -code == signal.SIGKILL:
        text += "; perhaps the machine was out of memory"
    return {**verdict, "error": name, "message": text}


def _record_end(
    recording: Recording, verdict: dict[str, Any], child: Child, head: dict[str, Any], tape: Tape
) -> None:
    """Record what became of the process that ran when its child ended."""
    begun = dict(recording.begun or {})
    identity = _identity(head)
    logs = Path(head["directory"], "logs")
    path = logs.parent / recording.notes["log"] if "log" in recording.notes else None
    text = take_spool(child.spool)
    if path is not None:
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
            file.write(text)
    elif text:
        log = AttemptLog(logs, lambda: identity.name(begun))
        log.write(text)
        log.close()
        path = log.path
    outcome = {
        **verdict,
        "duration": round(time.monotonic() - recording.since, 6),
        "host": _HOST,
        "peak_memory": child.peak_memory,
    }
    if path is not None:
        outcome["log"] = f"logs/{path.name}"
        outcome["log_tail"] = tail_of(path)
        outcome["where"] = _where(text)
    place = recording.notes.get("place")
    record(
        tape,
        plain.dumps(begun),
        outcome,
        (Path(place[0]), Path(place[1])) if place else None,
    )
    tape.flush()


def _identity(head: dict[str, Any]) -> Identity:
    return Identity(head["by_parameters"], tuple(head["hidden"]), head["within"])


def _where(dump: str) -> str | None:
    """Return the user's innermost line from what Python's fault handler has written."""
    for file, line, function in re.findall(r'File "(.+)", line (\d+) in (\S+)', dump):
        if not (is_library(file) or is_ours(file)):
            code = linecache.getline(file, int(line)).strip()
            return f"{file}:{line} in {function}" + (f": {code}" if code else "")
    return None


def _memory_of(pid: int, exactly: bool = False) -> int:
    """Return the memory of a process and all below it, in bytes.

    What forks share counts for each of them, but exactly, which takes milliseconds, once.
    """
    return sum(
        (_exact_memory(number) if exactly else None) or _resident_memory(number)
        for number in (pid, *_descendants(pid))
    )


def _resident_memory(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
        return (int(pages[1]) - int(pages[2])) * resource.getpagesize()
    return 0


def _exact_memory(pid: int) -> int | None:
    with contextlib.suppress(OSError, ValueError, LookupError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        sizes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
        return int(sizes["Pss_Anon"]) * 1024
    return None


def _limit_memory(memory: int) -> None:
    """Let a request for far more memory than the limit raise MemoryError at once."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
        limit = used * resource.getpagesize() + memory
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _has_threads() -> bool:
    """Return whether code of the process goes on in other threads."""
    threads = len(sys._current_frames())
    if threads > 1:  # the monitor of a progress bar, which stays for all that follow, is no harm
        threads -= sum(
            type(thread).__module__.startswith("tqdm.") for thread in enumerate_threads()
        )
    return threads > 1


def _has_children() -> bool:
    """Return whether programs are left that the process has started; ended ones are reaped."""
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                return True
        except ChildProcessError:
            return False


def kill_descendants() -> None:
    """Kill everything below this process, however far it has gone away from it."""
    deadline = time.monotonic() + _KILL_S
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        _kill(_descendants(os.getpid()))
        time.sleep(0.002)


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    """Return the processes below one."""
    try:
        below = [
            int(child)
            for thread in os.listdir(f"/proc/{pid}/task")
            for child in Path(f"/proc/{pid}/task/{thread}/children").read_text("ascii").split()
        ]
    except FileNotFoundError:
        return [] if os.path.exists("/proc/self/task") else _descendants_by_psutil(pid)
    except OSError:
        return []
    return below + [further for child in below for further in _descendants(child)]


def _descendants_by_psutil(pid: int) -> list[int]:
    import psutil

    with contextlib.suppress(psutil.Error):
        return [process.pid for process in psutil.Process(pid).children(recursive=True)]
    return []


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _libc.prctl(option, value, 0, 0, 0)


_libc = ctypes.CDLL(None)


def _read_exactly(descriptor: int, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = os.read(descriptor, min(size - len(parts), 1 << 20))
        if not part:
            os._exit(0)
        parts += part
    return bytes(parts)


def _close_all_but(*kept: int) -> None:
    """Close what the host has open, so that nothing which user code starts holds it."""
    before = 2
    for descriptor in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
        os.closerange(before + 1, descriptor)
        before = descriptor


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(0)


def main() -> None:
    """Serve the worker at the other end of a socket."""
    worker = socket.socket(fileno=int(sys.argv[1]))
    sys.argv[1:] = []
    Host(worker).serve()
