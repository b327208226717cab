"""What happens to a batch, on disk while it happens."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daskspace.execution.outcome import STATES
from daskspace.execution.seal import is_sealed

SUFFIX = ".tape"


@dataclass
class Recording:
    """What a tape holds.

    Parameters
    ----------
    receipts : list of str
        One for each process that has ended.
    states : Counter
        How many of them in which state.
    troubles : list of str
        The receipts that are not ``done``.
    head : str, optional
        The process that has begun and not ended, as JSON fields of its outcome.
    since : float
        When it began, on the monotonic clock.
    notes : dict
        Which files it made: its ``log``, its ``directory``.
    complete : bool
        Whether the batch came to its end.
    """

    receipts: list[str] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    troubles: list[str] = field(default_factory=list)
    head: str | None = None
    since: float = 0.0
    notes: dict[str, Any] = field(default_factory=dict)
    complete: bool = False

    @property
    def begun(self) -> dict[str, Any] | None:
        """The fields of `head`."""
        return None if self.head is None else json.loads(self.head)

    @property
    def ended(self) -> int:
        """How many processes have ended."""
        return len(self.receipts)

    def take_all(self, content: bytes) -> bytes:
        """Take in all lines that are complete, and return the rest."""
        *lines, rest = content.split(b"\n")
        for line in lines:
            try:
                self.take(line.decode())
            except ValueError:  # it was torn by its writer's end
                continue
        return rest

    def take(self, line: str) -> None:
        """Take in one line of a tape."""
        kind, _, rest = line.partition(" ")
        if kind == "begin":
            since, _, self.head = rest.partition(" ")
            self.since, self.notes = float(since), {}
        elif kind == "note":
            self.notes.update(json.loads(rest))
        elif kind == "complete":
            self.complete = True
        elif kind in STATES and is_sealed(rest.encode()):
            self.head = None
            self.receipts.append(rest)
            self.states[kind] += 1
            if kind != "done":
                self.troubles.append(rest)


class Tape:
    """Records what happens to the processes of one batch, one after the other.

    Whoever runs the batch writes it, a line with each system call; what was written survives the
    writer. Without a path it is kept in memory.

    Parameters
    ----------
    path : Path, optional
        A file to which lines are appended.
    new : bool
        Whether the file must not exist yet.

    Attributes
    ----------
    has_trouble : bool
        Whether a process ended that was not ``done``.

    Raises
    ------
    FileExistsError
        It exists: the batch has been begun before.
    """

    def __init__(self, path: Path | None = None, new: bool = False) -> None:
        self.path = path
        self.has_trouble = False
        self._lines: list[str] = []
        self._kept = ""
        self._file: int | None = None
        if path is not None:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | (os.O_EXCL if new else 0)
            self._file = os.open(path, flags, 0o666)
            self._kept = "" if new else "\n"  # its last writer may have left a line torn

    def begin(self, since: float, head: str) -> None:
        """Record that a process begins, told by JSON fields of its outcome."""
        self._write(f"{self._kept}begin {since} {head}\n")
        self._kept = ""

    def note(self, **files: Any) -> None:
        """Record which files the process makes."""
        self._write(f"note {json.dumps(files)}\n")

    def end(self, state: str, receipt: str) -> None:
        """Record that the process has ended; on disk with the next line."""
        self.has_trouble = self.has_trouble or state != "done"
        if self._file is None:
            self._lines.append(f"{state} {receipt}")
        else:
            self._kept += f"{state} {receipt}\n"

    def complete(self) -> None:
        """Record that the batch came to its end."""
        self._write(f"{self._kept}complete \n")
        self._kept = ""

    def fileno(self) -> int:
        """Return the descriptor of the file, -1 where there is none."""
        return -1 if self._file is None else self._file

    def flush(self) -> None:
        """Write what has ended."""
        self._write(self._kept)
        self._kept = ""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def recording(self) -> Recording:
        """Return what it holds."""
        recording = Recording()
        if self._file is not None:  # by its descriptor: the file may have been moved, or deleted
            recording.take_all(os.pread(self._file, os.fstat(self._file).st_size, 0))
        elif self.path is not None:
            return read_tape(self.path)
        for line in self._lines:
            recording.take(line)
        return recording

    def _write(self, text: str) -> None:
        if self._file is None or not text:
            return
        left = memoryview(text.encode())
        while left:
            left = left[os.write(self._file, left) :]


class TapeReader:
    """Follows a tape while it is written.

    Raises
    ------
    FileNotFoundError
        There is no tape: the batch was never begun.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._rest = b""
        self.recording = Recording()

    def read(self) -> Recording:
        """Return what it holds by now; a line torn by its writer's end is passed over."""
        self._rest = self.recording.take_all(self._rest + self._file.read())
        return self.recording

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_tape(path: Path) -> Recording:
    """Return what a tape holds; raises FileNotFoundError where there is none."""
    reader = TapeReader(path)
    try:
        return reader.read()
    finally:
        reader.close()
