"""What a process prints and logs goes to its own log file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

_LINE_FORMAT = "%(asctime)s %(levelname)-8s %(name)s: %(message)s"

_active: dict[int, AttemptLog] = {}
_lock = threading.Lock()
_captures = 0
_descriptors: _Descriptors | None = None


class AttemptLog:
    """The log of one attempt; its file exists once something was written."""

    def __init__(self, path: Callable[[], Path]) -> None:
        self._path = path
        self._file: TextIO | None = None
        self._broken = False
        self._outer: AttemptLog | None = None

    @property
    def exists(self) -> bool:
        """Whether something was written."""
        return self._file is not None

    def write(self, text: str) -> None:
        """Append text; a full disk costs the log, never the process."""
        if not text or self._broken:
            return
        try:
            if self._file is None:
                path = self._path()
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open(
                    "w", buffering=1, encoding="utf-8", errors="backslashreplace"
                )
            self._file.write(text)
        except (OSError, ValueError):
            self._broken = True

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def __enter__(self) -> AttemptLog:
        self._outer = _active.get(threading.get_ident())
        _active[threading.get_ident()] = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._outer is None:
            _active.pop(threading.get_ident(), None)
        else:
            _active[threading.get_ident()] = self._outer
        if _descriptors is not None:
            self.write(_descriptors.take())
        self.close()


def current_log() -> AttemptLog | None:
    """Return the log of the attempt that this thread, or a thread it started, belongs to."""
    log = _active.get(threading.get_ident())
    if log is None and len(_active) == 1:
        return next(iter(_active.values()), None)
    return log


class _Router(io.TextIOBase):
    """Stands in for `sys.stdout` or `sys.stderr` while attempts run."""

    def __init__(self, original: TextIO, echo: bool) -> None:
        self._original = original
        self._echo = echo

    def write(self, text: str) -> int:
        log = current_log()
        if log is not None:
            log.write(text)
        if log is None or self._echo:
            self._original.write(text)
        return len(text)

    def flush(self) -> None:
        self._original.flush()

    def fileno(self) -> int:
        return self._original.fileno()

    def isatty(self) -> bool:
        return self._original.isatty()

    def writable(self) -> bool:
        return True

    @property
    def buffer(self) -> Any:
        return _Bytes(self)

    def __getattribute__(self, name: str) -> Any:
        if name in ("encoding", "errors", "newlines"):
            return getattr(self._original, name)
        return super().__getattribute__(name)


class _Bytes(io.RawIOBase):
    """The `buffer` of a `_Router`, for code that writes bytes."""

    def __init__(self, router: _Router) -> None:
        self._router = router

    def write(self, octets: Any) -> int:
        self._router.write(bytes(octets).decode("utf-8", "backslashreplace"))
        return len(octets)

    def writable(self) -> bool:
        return True


class _Descriptors:
    """Keeps what is written to the descriptors 1 and 2, by other programs for example."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._saved = [(number, os.dup(number)) for number in (1, 2)]
        for number, _ in self._saved:
            os.dup2(self._file.fileno(), number)

    def take(self) -> str:
        """Return what was written since the last call."""
        size = os.fstat(self._file.fileno()).st_size
        if not size:
            return ""
        self._file.seek(0)
        octets = self._file.read(size)
        self._file.seek(0)
        self._file.truncate()
        return octets.decode("utf-8", "backslashreplace")

    def close(self) -> None:
        """Give the descriptors back."""
        for number, saved in self._saved:
            os.dup2(saved, number)
            os.close(saved)
        self._file.close()


class _LogHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log = current_log()
        if log is not None:
            log.write(self.format(record) + "\n")


@contextlib.contextmanager
def capturing(echo: bool = False, descriptors: bool = False) -> Iterator[None]:
    """Send what is printed and logged to the log of the attempt that did it.

    Several threads may enter at the same time; the first sets it up, the last takes it down.

    Parameters
    ----------
    echo : bool
        Whether what is printed appears on the terminal as well.
    descriptors : bool
        Whether this interpreter does nothing else, so that what other programs write to its
        standard output belongs to the attempt that started them.
    """
    global _captures
    with _lock:
        _captures += 1
        if _captures == 1:
            _set_up(echo, descriptors)
    try:
        yield
    finally:
        with _lock:
            _captures -= 1
            if _captures == 0:
                _take_down()


_handler = _LogHandler()
_handler.setFormatter(logging.Formatter(_LINE_FORMAT))
_before: dict[str, Any] = {}


def _set_up(echo: bool, descriptors: bool) -> None:
    global _descriptors
    with contextlib.suppress(OSError):
        _descriptors = _Descriptors() if descriptors else None
    root = logging.getLogger()
    _before.update(stdout=sys.stdout, stderr=sys.stderr, level=root.level)
    sys.stdout = _Router(sys.stdout, echo)
    sys.stderr = _Router(sys.stderr, echo)
    if not root.handlers:
        root.setLevel(logging.INFO)
    root.addHandler(_handler)


def _take_down() -> None:
    global _descriptors
    if _descriptors is not None:
        _descriptors.close()
        _descriptors = None
    root = logging.getLogger()
    root.removeHandler(_handler)
    root.setLevel(_before["level"])
    for name in ("stdout", "stderr"):
        if isinstance(getattr(sys, name), _Router):
            setattr(sys, name, _before[name])
    _before.clear()
