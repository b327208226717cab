"""The append-only record of an operation: JSON lines, one writer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from daskspace.errors import DirectoryError

FORMAT = 1
"""The version of the journal's format."""


class Journal:
    """Writes the record of one operation.

    The first line is the header, ``{"journal": 1, ...}``; then one line per outcome in the order
    in which they came; at the end ``{"end": ...}``. A reader needs nothing else.

    Parameters
    ----------
    path : Path
        A file that does not exist yet: whoever creates it owns the operation.
    header : mapping
        What is known of the operation when it begins.

    Raises
    ------
    FileExistsError
        There is a journal at `path`.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path = path
        self._file = path.open("xb", buffering=0)  # so that what failed is not tried again later
        self._is_torn = False
        self._write(json.dumps({"journal": FORMAT, **header}))

    def append(self, receipts: str) -> None:
        """Append receipts, one a line; they are with the operating system on return."""
        self._write(receipts)

    def end(self, **facts: Any) -> None:
        """Append the last line, and close the file; harmless when repeated."""
        if not self._file.closed:
            self._write(json.dumps({"end": facts}))
            self.close()

    def close(self) -> None:
        """Close the file without a last line."""
        self._file.close()

    def _write(self, text: str) -> None:
        if not text:
            return
        left = memoryview(f"{text}\n".encode())
        if self._is_torn:
            left = memoryview(b"\n" + left)
        self._is_torn = True
        while left:
            left = left[self._file.write(left) or 0 :]
        self._is_torn = False


def read_journal(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of a journal, header first, each with its offset in bytes.

    A line that a killed writer left torn is passed over, and so is anything that is no JSON.

    Raises
    ------
    DirectoryError
        There is no journal, it cannot be read, or its format is newer than this program.
    """
    try:
        with path.open("rb") as file:
            offset = 0
            for line in file:
                if line.endswith(b"\n"):
                    entry = _parse(line)
                    if offset == 0 and entry.get("journal") != FORMAT:
                        seen = entry.get("journal", "no version at all")
                        raise DirectoryError(
                            f"{path}: the journal's format is {seen}, and this version of"
                            f" daskspace reads {FORMAT}"
                        )
                    if entry:
                        yield offset, entry
                offset += len(line)
    except OSError as error:
        raise DirectoryError(
            f"{path.parent} holds no operation that can be read: {error.strerror}: {path.name}"
        ) from error


def _parse(line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line.decode())
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}
