"""The append-only record of an operation: JSON lines with checksums, one writer."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from daskspace.errors import DirectoryError
from daskspace.execution.seal import sealed, unsealed

FORMAT = 2
"""The version of the journal's format."""

HEADER = b'{"journal"'
_END = b'{"end"'
_LONGEST_END = 1 << 16
_COPIED_AT_ONCE = 1 << 20


class Journal:
    """Writes the record of one operation.

    A session is the work of one client on the operation. Its first line is its header,
    ``{"journal": 2, "session": 1, ...}``; then comes one line per outcome in the order in which
    they came; at the end ``{"end": ...}``. Sessions follow each other in the same file. Every
    line is sealed, see `daskspace.execution.seal`. A reader needs nothing else.

    One thread writes at a time; that no other program does is for `daskspace.execution.lock`.

    Parameters
    ----------
    path : Path
        A file that does not exist yet: whoever creates it owns the operation.
    header : mapping
        What is known of the operation when the session begins.

    Attributes
    ----------
    session : int
        The number of the session, from 1.

    Raises
    ------
    FileExistsError
        There is a journal at `path`.
    """

    _file: io.FileIO

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        # without a buffer, so that what failed is not tried again later
        self._begin(path, path.open("xb+", buffering=0), 1, header)

    @classmethod
    def resume(cls, path: Path, header: Mapping[str, Any]) -> Journal:
        """Return the journal at `path`, where the next session has begun.

        A last line that a killed writer left torn is cut off.

        Raises
        ------
        DirectoryError
            As `read_journal`.
        OSError
            It can be read, but not written.
        """
        session, end = _last_session(path)
        file = path.open("rb+", buffering=0)
        file.truncate(end)
        file.seek(end)
        journal = cls.__new__(cls)
        journal._begin(path, file, session + 1, header)
        return journal

    def append(self, receipts: str) -> None:
        """Append receipts, one a line; they are with the operating system on return."""
        self._write(receipts)

    def sync(self) -> None:
        """Wait until everything that was appended is on the disk."""
        os.fsync(self._file.fileno())

    def end(self, **facts: Any) -> None:
        """Append the session's last line, and close the file; harmless when repeated."""
        if not self._file.closed:
            self._write(sealed(json.dumps({"end": facts})))
            try:
                self.sync()
            finally:
                self.close()

    def close(self) -> None:
        """Close the file without a last line."""
        self._file.close()

    def is_in_place(self) -> bool:
        """Return whether the file at `path` is the one that is written to."""
        try:
            return os.path.samestat(self.path.stat(), os.fstat(self._file.fileno()))
        except OSError:  # a file that was removed on another host has several
            return False

    def rescue(self) -> None:
        """Put the journal back to its path after it was removed, and go on there.

        Its directory is made anew where it is missing too. A file that has come to stand in its
        place is left alone.
        """
        if self.is_in_place():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            copy = self.path.open("xb+", buffering=0)
        except FileExistsError:
            return
        with contextlib.ExitStack() as undo:
            undo.callback(copy.close)
            _copy(self._file.fileno(), copy)
            os.fsync(copy.fileno())
            undo.pop_all()
        self._file.close()
        self._file = copy

    def _begin(self, path: Path, file: io.FileIO, session: int, header: Mapping[str, Any]) -> None:
        self.path = path
        self.session = session
        self._file = file
        self._is_torn = False
        with contextlib.ExitStack() as undo:
            undo.callback(file.close)
            self._write(sealed(json.dumps({"journal": FORMAT, "session": session, **header})))
            undo.pop_all()

    def _write(self, text: str) -> None:
        if not text:
            return
        lines = f"{text}\n".encode()
        if self._is_torn:
            lines = b"\n" + lines
        self._is_torn = True
        _write_all(self._file, lines)
        self._is_torn = False


def read_journal(
    path: Path, damaged: Callable[[int], object] = lambda offset: None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of a journal, header first, each with its offset in bytes.

    Lines that are damaged are passed over, and so is a last line without its end: it was left
    torn, or is being written.

    Parameters
    ----------
    path : Path
        The journal; it may still grow.
    damaged : callable, optional
        It is called with the offset of each damaged line.

    Raises
    ------
    DirectoryError
        There is no journal, it cannot be read, it has no header, or its format is another.
    """
    with _opened(path) as file:
        offset = 0
        for line in file:
            if not line.endswith(b"\n"):
                return
            entry = unsealed(line[:-1])
            if entry is not None:
                yield offset, entry
            elif line != b"\n":
                damaged(offset)
            offset += len(line)


def last_end(path: Path) -> dict[str, Any] | None:
    """Return the end of a journal's last session, None while it has none; however long it is."""
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _LONGEST_END, 0))
            lines = file.read().rstrip(b"\n").rpartition(b"\n")
    except OSError:
        return None
    entry = unsealed(lines[2]) if lines[2].startswith(_END) else None
    return entry["end"] if entry else None


def _last_session(path: Path) -> tuple[int, int]:
    """Return the number of the last session of a journal, and where its last line ends."""
    session = end = 0
    with _opened(path) as file:
        for line in file:
            if line.endswith(b"\n"):
                end += len(line)
                if line.startswith(HEADER):
                    session = (unsealed(line[:-1]) or {}).get("session", session)
    return session, end


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a journal for reading, once its header is known to be one that can be read."""
    try:
        with path.open("rb") as file:
            _check_header(path, file.readline())
            file.seek(0)
            yield file
    except OSError as error:
        raise DirectoryError(
            f"{path.parent} holds no operation that can be read: {error.strerror}: {path.name}"
        ) from error


def _check_header(path: Path, line: bytes) -> None:
    if not line.endswith(b"\n"):
        raise DirectoryError(f"{path} has no header: its writer was killed, or the disk full")
    if (unsealed(line[:-1]) or {}).get("journal") == FORMAT:
        return
    version = _version_of(line)
    if version in (None, FORMAT):
        raise DirectoryError(f"{path} has no header that can be read: its first line is damaged")
    advice = "upgrade" if version > FORMAT else "read it with the version that wrote it"
    raise DirectoryError(
        f"{path}: the journal's format is {version}, and this version of daskspace reads"
        f" {FORMAT}: {advice}"
    )


def _version_of(header: bytes) -> Any:
    """Return the format that a header tells, which may be damaged, or sealed in another way."""
    try:
        version = json.loads(header)["journal"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return version if type(version) is int else None


def _copy(descriptor: int, file: io.FileIO) -> None:
    """Copy an open file from its begin, whatever its position is and will be."""
    offset = 0
    while chunk := os.pread(descriptor, _COPIED_AT_ONCE, offset):
        _write_all(file, chunk)
        offset += len(chunk)


def _write_all(file: io.FileIO, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]
