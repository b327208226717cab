"""One writer per result directory, told by a lock that ends with its process."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import time
import weakref
from pathlib import Path
from typing import Any

from daskspace.errors import DirectoryError

_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_TRIES = 10
_BETWEEN_TRIES_S = 0.02
_READ_AT_MOST = 4096


class Lock:
    """Keeps other writers out of a result directory for as long as this process lives.

    Parameters
    ----------
    path : Path
        The lock's file; it is made where it is missing, and never removed. While the lock is
        held, the file tells by whom.

    Attributes
    ----------
    is_held : bool
        False after `release`, and where the file system knows no locks.

    Raises
    ------
    DirectoryError
        Somebody else holds the lock, in this process or in another one.
    OSError
        The file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_held = False
        self._owner = os.getpid()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, self._descriptor)
            self.is_held = self._take()
            if self.is_held:
                self._tell()
                undo.pop_all()
                _held.add(self)

    def release(self) -> None:
        """Let others in; harmless when repeated."""
        if not self.is_held:
            return
        self.is_held = False
        try:
            if os.getpid() == self._owner:  # a fork has the same lock, and must leave it alone
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, 0)
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            os.close(self._descriptor)

    def _leave_to_parent(self) -> None:
        """Close the file in a fork, which would keep the lock when this process was killed."""
        if self.is_held:
            self.is_held = False
            os.close(self._descriptor)

    def _take(self) -> bool:
        """Lock the file; return False where there are no locks."""
        for _ in range(_TRIES):
            taken = _lock(self._descriptor, fcntl.LOCK_EX)
            if taken is not False:
                return taken is True
            time.sleep(_BETWEEN_TRIES_S)  # it may be `holder`, who looks for a moment only
        raise in_use(self.path, _read(self._descriptor))

    def _tell(self) -> None:
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        told = {"host": socket.gethostname(), "pid": self._owner, "since": since}
        with contextlib.suppress(OSError):  # on a full disk, the lock is as good without
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{json.dumps(told)}\n".encode(), 0)


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _leave_all_to_parent() -> None:
    for lock in list(_held):
        lock._leave_to_parent()


os.register_at_fork(after_in_child=_leave_all_to_parent)


def holder(path: Path) -> dict[str, Any] | None:
    """Return who holds the lock of a file just now, None if it is free.

    Parameters
    ----------
    path : Path
        The lock's file, which may be missing.

    Returns
    -------
    dict or None
        Its ``host``, ``pid`` and ``since``; empty if the lock is held but does not tell by whom.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        # closing the file ends this lock, and no other: flock belongs to the open file
        return _read(descriptor) if _lock(descriptor, fcntl.LOCK_SH) is False else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool | None:
    """Lock a file; return False where somebody else has it, None where there are no locks."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _read(descriptor: int) -> dict[str, Any]:
    try:
        told = json.loads(os.pread(descriptor, _READ_AT_MOST, 0))
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) and {"host", "pid", "since"} <= told.keys() else {}


def in_use(path: Path, told: dict[str, Any]) -> DirectoryError:
    """Return the error that says who has a result directory."""
    who = "process {pid} on {host}, since {since}".format(**told) if told else "another process"
    return DirectoryError(f"{path.parent} is in use by {who}: wait for its end, or stop it")
