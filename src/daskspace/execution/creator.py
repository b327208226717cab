"""A queue of processes, and the creator that fills it while it is emptied."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

QUEUE_TIMEOUT_S = 60.0
"""How long nothing may come from a queue whose filler nobody knows, in seconds.

Nothing tells a filler that is slow from one that has gone; those of pySPACE fill their queue at
once, or have a creator. An operation may have another limit as its ``queue_timeout``.
"""
_LOOK_EVERY_S = 0.2
_STUCK_S = 30.0
_END_S = 60.0
"""How long a creator may go on after the False that ends its queue."""
_EMPTY_S, _TERMINATE_S = 2.0, 1.0


def is_queue(processes: Any) -> bool:
    """Return whether processes are got from a queue that ends with False."""
    return not hasattr(processes, "__iter__") and hasattr(processes, "get")


def drained(operation: Any, stopped: Callable[[], bool]) -> Iterator[Any]:
    """Yield from the queue of an operation until it gives False, or `stopped` says so.

    Raises
    ------
    RuntimeError
        Its ``create_process`` ended without that False, or failed; or nothing has come for
        `QUEUE_TIMEOUT_S`, and there is none.
    """
    processes, creator = operation.processes, getattr(operation, "create_process", None)
    patience = float(getattr(operation, "queue_timeout", QUEUE_TIMEOUT_S))
    reader = _Reader(processes, stopped if creator is not None else None)
    try:
        while not stopped():
            try:
                process = _wait(reader, creator, patience, stopped)
            except (ImportError, AttributeError, pickle.UnpicklingError) as error:
                process = NotLoaded(f"{type(error).__name__}: {error}")
            except queue.Empty:
                return
            if process is False:
                _check_end(creator, stopped)
                return
            yield process
    finally:
        reader.stop()


def _wait(reader: _Reader, creator: Any, patience: float, stopped: Callable[[], bool]) -> Any:
    """Return what comes next; raises queue.Empty when stopped."""
    since, gone_since = time.monotonic(), None
    looks = 0
    while not stopped():
        if gone_since is None and creator is not None and _has_ended(creator):
            gone_since, looks = time.monotonic(), reader.looks
        try:
            return reader.get()
        except queue.Empty:
            now = time.monotonic()
        if gone_since is not None and (
            # one look may have begun before; a message torn by its end is never had as a whole
            reader.looks >= looks + 2 or now - gone_since > _STUCK_S
        ):
            raise RuntimeError(
                f"the creator of the processes ended (exit code {_exit_code(creator)}) without"
                " the False that ends the queue"
            )
        if creator is None and now - since > patience:
            raise RuntimeError(
                f"nothing has come from the queue of processes for {patience:g} s, and there is no"
                " create_process to be watched: whoever fills it puts False at its end"
            )
    raise queue.Empty


class NotLoaded:
    """Stands for a process that was got from a queue, and could not be unpickled.

    Parameters
    ----------
    why : str
        What was raised.
    """

    def __init__(self, why: str) -> None:
        self.why = why

    def __call__(self) -> None:
        """Raise."""
        raise RuntimeError(f"it could not be unpickled when it came from the queue: {self.why}")


class _Reader:
    """Gets from a queue: in a thread if `stopped` is given, for a `get` may never come back.

    A creator that is killed while it writes leaves half a message, for the rest of which a
    multiprocessing queue waits without limit.
    """

    def __init__(self, processes: Any, stopped: Callable[[], bool] | None) -> None:
        self._processes = processes
        self._got: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(1)
        self._stopped = stopped
        self._over = False
        self.looks = 0
        if stopped is not None:
            threading.Thread(target=self._read, name="daskspace-queue", daemon=True).start()

    def get(self) -> Any:
        if self._stopped is None:
            return self._look()
        item, error = self._got.get(timeout=_LOOK_EVERY_S)
        if error is not None:
            raise error
        return item

    def stop(self) -> None:
        self._over = True

    def _look(self) -> Any:
        try:
            return self._processes.get(timeout=_LOOK_EVERY_S)
        except queue.Empty:
            self.looks += 1
            raise

    def _read(self) -> None:
        while not self._is_over:
            got: tuple[Any, BaseException | None]
            try:
                got = self._look(), None
            except queue.Empty:
                continue
            except BaseException as error:
                got = None, error
            while not self._is_over:
                with contextlib.suppress(queue.Full):
                    self._got.put(got, timeout=_LOOK_EVERY_S)
                    break

    @property
    def _is_over(self) -> bool:
        return self._over or (self._stopped is not None and self._stopped())


def _check_end(creator: Any, stopped: Callable[[], bool]) -> None:
    """Raise RuntimeError if a creator that gave its False ends with an error."""
    if creator is None:
        return
    until = time.monotonic() + _END_S
    while not _has_ended(creator) and time.monotonic() < until and not stopped():
        time.sleep(0.01)
    if (code := _exit_code(creator)) not in (None, 0):
        raise RuntimeError(
            f"the creator of the processes failed (exit code {code}), so that some may be missing;"
            " its traceback is in the program's standard error"
        )


def _has_ended(creator: Any) -> bool:
    try:
        if not creator.is_alive():
            return True
    except AssertionError:  # the child of another program
        pass
    except ValueError:  # closed
        return True
    pid = getattr(creator, "pid", None)
    try:
        if pid is not None:
            os.kill(pid, 0)
    except ProcessLookupError:  # somebody else has waited for it
        return True
    except OSError:
        pass
    return False


def _exit_code(creator: Any) -> int | None:
    try:
        code: int | None = getattr(creator, "exitcode", None)
    except (AssertionError, ValueError):
        return None
    return code


_held: dict[int, tuple[int, Any]] = {}


def hold(operation: Any) -> None:
    """See to it that the creator of an operation does not keep this program from its end.

    It may wait for room in its queue, and Python waits for it; `let_go` ends that sooner.
    """
    if is_queue(getattr(operation, "processes", None)):
        _held[id(operation)] = os.getpid(), operation
        _register_let_go()


def let_go(operation: Any) -> str | None:
    """Close the queue of an operation and end its creator; harmless when repeated.

    Returns
    -------
    str or None
        What there is to say about the creator's end.
    """
    _held.pop(id(operation), None)
    processes = getattr(operation, "processes", None)
    if not is_queue(processes):
        return None
    creator = getattr(operation, "create_process", None)
    told = None
    if creator is not None and not _has_ended(creator):
        told = _end(processes, creator)
    for name in ("cancel_join_thread", "close"):
        with contextlib.suppress(Exception):
            getattr(processes, name, lambda: None)()
    return told


def _end(processes: Any, creator: Any) -> str | None:
    """Empty the queue until its creator ends, or has to be ended."""
    over = threading.Event()

    def empty() -> None:
        while not over.is_set():
            try:
                processes.get(timeout=_LOOK_EVERY_S)
            except (OSError, EOFError, ValueError):
                return
            except Exception:  # noqa: S112 - nobody wants what comes
                continue

    threading.Thread(target=empty, daemon=True).start()
    try:
        for way, patience in (("", _EMPTY_S), ("terminate", _TERMINATE_S), ("kill", _TERMINATE_S)):
            with contextlib.suppress(Exception):
                getattr(creator, way, lambda: None)()
            until = time.monotonic() + patience
            while time.monotonic() < until:
                if _has_ended(creator):
                    return "the creator of the processes was ended" if way else None
                time.sleep(0.01)
    finally:
        over.set()
    return "the creator of the processes cannot be ended"


@functools.cache
def _register_let_go() -> None:
    """Have `_let_all_go` called at the program's end, before Python waits for its children."""
    getattr(threading, "_register_atexit", atexit.register)(_let_all_go)


def _let_all_go() -> None:
    for owner, operation in list(_held.values()):
        if owner == os.getpid():
            let_go(operation)
