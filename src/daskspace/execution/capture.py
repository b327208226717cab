"""What a process prints and logs goes to its own log file."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

_TAIL = 2_000
_TOLD_AT_ONCE = 10
_TOLD_PER_S = 5.0
_LONGEST_TOLD = 1_000
_LINE_FORMAT = "%(asctime)s %(levelname)-8s %(name)s: %(message)s"

_active: dict[int, AttemptLog] = {}
_lock = threading.Lock()
_captures = 0
_descriptors: _Descriptors | None = None


class AttemptLog:
    """The log of one attempt; its file exists once something was written.

    Parameters
    ----------
    directory : path
        Where logs lie.
    name : callable
        Returns the name of the process. An earlier log of that name is never touched: this one
        then gets a number.
    opened : callable
        Called with the file's name when it exists.
    """

    def __init__(
        self,
        directory: str | Path,
        name: Callable[[], str],
        opened: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.path: Path | None = None
        self._directory = directory
        self._name = name
        self._opened = opened
        self._file: TextIO | None = None
        self._broken = False
        self._outer: AttemptLog | None = None

    @property
    def exists(self) -> bool:
        """Whether something was written."""
        return self.path is not None

    def write(self, text: str) -> None:
        """Append text; a full disk costs the log, never the process."""
        if not text or self._broken:
            return
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write(text)
        except (OSError, ValueError):
            self._broken = True

    def tail(self) -> str:
        """Return its end, at most 2,000 characters."""
        return tail_of(self.path) if self.path is not None else ""

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _open(self) -> TextIO:
        directory = Path(self._directory)
        directory.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            name = f"{self._name()}.log" if number == 1 else f"{self._name()}.{number}.log"
            with contextlib.suppress(FileExistsError):
                file = (directory / name).open(
                    "x", buffering=1, encoding="utf-8", errors="backslashreplace"
                )
                break
        self.path = directory / name
        self._opened(name)
        return file

    def __enter__(self) -> AttemptLog:
        self._outer = _active.get(threading.get_ident())
        _active[threading.get_ident()] = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._outer is None:
            _active.pop(threading.get_ident(), None)
        else:
            _active[threading.get_ident()] = self._outer
        self.take_spool()
        self.close()

    def take_spool(self) -> None:
        """Append what other programs wrote to this interpreter's standard output."""
        if _descriptors is not None:
            self.write(_descriptors.take())


def tail_of(path: Path) -> str:
    """Return the end of a text file, at most 2,000 characters; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - 4 * _TAIL, 0))
            return file.read().decode("utf-8", "replace")[-_TAIL:]
    except OSError:
        return ""


def current_log() -> AttemptLog | None:
    """Return the log of the attempt that this thread, or a thread it started, belongs to."""
    log = _active.get(threading.get_ident())
    if log is None and len(_active) == 1:
        return next(iter(_active.values()), None)
    return log


class _Router(io.TextIOBase):
    """Stands in for `sys.stdout` or `sys.stderr` while attempts run."""

    def __init__(self, original: TextIO, echo: bool | Callable[[str], object]) -> None:
        self._original = original
        self._echo = echo

    def write(self, text: str) -> int:
        log = current_log()
        if log is not None:
            log.write(text)
        if callable(self._echo) and log is not None:
            self._echo(text)
        elif log is None or self._echo:
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

    def __init__(self, spool: BinaryIO | None) -> None:
        self._is_own = spool is None
        self._file = spool or tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._saved = [(number, os.dup(number)) for number in (1, 2)]
        for number, _ in self._saved:
            os.dup2(self._file.fileno(), number)

    def take(self) -> str:
        """Return what was written since the last call."""
        return take_spool(self._file)

    def close(self) -> None:
        """Give the descriptors back."""
        for number, saved in self._saved:
            os.dup2(saved, number)
            os.close(saved)
        if self._is_own:
            self._file.close()


def take_spool(file: BinaryIO) -> str:
    """Return what a spool file holds, and empty it."""
    size = os.fstat(file.fileno()).st_size
    if not size:
        return ""
    octets = os.pread(file.fileno(), size, 0)
    os.lseek(file.fileno(), 0, os.SEEK_SET)
    os.ftruncate(file.fileno(), 0)
    return octets.decode("utf-8", "backslashreplace")


class Allowance:
    """Lets a few things pass at once, and then so many a second.

    Parameters
    ----------
    at_once : int
        How many.
    per_second : float
        How many.

    Attributes
    ----------
    refused : int
        How many did not pass since the last one that did.
    """

    def __init__(self, at_once: int, per_second: float) -> None:
        self._most, self._rate = float(at_once), per_second
        self._left, self._since = self._most, time.monotonic()
        self.refused = 0

    def take(self) -> bool:
        """Return whether another one may pass."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._since) * self._rate, self._most)
        self._since = now
        if self._left < 1:
            self.refused += 1
            return False
        self._left -= 1
        return True


class _LogHandler(logging.Handler):
    """Writes records to the attempt's log, and tells a few of them to whoever watches."""

    def __init__(self) -> None:
        super().__init__()
        self.tell: Callable[[str], object] | None = None
        self._is_telling = False
        self._allowance = Allowance(_TOLD_AT_ONCE, _TOLD_PER_S)

    def emit(self, record: logging.LogRecord) -> None:
        log = current_log()
        if log is None or self._is_telling:
            return
        log.write(self.format(record) + "\n")
        if self.tell is not None and record.levelno >= logging.INFO:
            self._tell(record, self.tell)

    def _tell(self, record: logging.LogRecord, tell: Callable[[str], object]) -> None:
        if not self._allowance.take():
            return
        untold, self._allowance.refused = self._allowance.refused, 0
        before = f" ({untold} records before it are in the logs alone)" * bool(untold)
        text = f"{record.levelname} {record.name}: {record.getMessage()}"
        self._is_telling = True
        try:
            tell(text[:_LONGEST_TOLD] + before)
        finally:
            self._is_telling = False


@contextlib.contextmanager
def capturing(
    echo: bool | Callable[[str], object] = False,
    spool: BinaryIO | bool = False,
    tell: Callable[[str], object] | None = None,
) -> Iterator[None]:
    """Send what is printed and logged to the log of the attempt that did it.

    Several threads may enter at the same time; the first sets it up, the last takes it down.

    Parameters
    ----------
    echo : bool or callable
        Whether what is printed appears on the terminal as well; a callable gets it instead.
    spool : binary file or bool
        Whether this interpreter does nothing else, so that what other programs write to its
        standard output belongs to the attempt that started them; if a file is given, it is kept
        there until it is taken.
    tell : callable, optional
        Gets records of level INFO and above as they come, at a bounded rate.
    """
    global _captures
    with _lock:
        _captures += 1
        if _captures == 1:
            _set_up(echo, spool, tell)
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


def _set_up(
    echo: bool | Callable[[str], object],
    spool: BinaryIO | bool,
    tell: Callable[[str], object] | None,
) -> None:
    global _descriptors
    with contextlib.suppress(OSError):
        own = None if isinstance(spool, bool) else spool
        _descriptors = _Descriptors(own) if spool else None
    root = logging.getLogger()
    _before.update(stdout=sys.stdout, stderr=sys.stderr, level=root.level)
    sys.stdout = _Router(sys.stdout, echo)
    sys.stderr = _Router(sys.stderr, echo)
    if not root.handlers:
        root.setLevel(logging.INFO)
    _handler.tell = tell
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
