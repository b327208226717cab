"""The peak memory of this interpreter between two moments."""

from __future__ import annotations

import os
import resource
import sys

_UNIT = 1 if sys.platform == "darwin" else 1024


def _open_reset() -> int | None:
    try:
        return os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return None


_reset_fd = _open_reset()


def _open_own_reset() -> None:
    global _reset_fd
    _reset_fd = _open_reset()


os.register_at_fork(after_in_child=_open_own_reset)


def reset_peak() -> None:
    """Begin to measure; without Linux's ``/proc`` the peak is that of the interpreter's life."""
    global _reset_fd
    if _reset_fd is not None:
        try:
            os.write(_reset_fd, b"5")
        except OSError:
            _reset_fd = None


def peak() -> int:
    """Return the largest resident memory since `reset_peak`, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT
