"""The directory of an attempt becomes that of its process: the first commit wins."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from daskspace.execution.seal import unsealed

OUTCOME = "outcome.json"
"""The receipt of a process, in its directory."""


def attempts_of(results: str | Path) -> Path:
    """Return where attempts work; empty when no operation runs."""
    return Path(results, ".attempts")


def processes_of(results: str | Path) -> Path:
    """Return where the directories of processes are."""
    return Path(results, "processes")


def make_attempt_directory(results: str | Path, name: str) -> Path:
    """Make and return the directory of an attempt at the process called `name`."""
    directory = attempts_of(results) / f"{name}.{uuid.uuid4().hex[:8]}"
    directory.mkdir(parents=True)
    return directory


def in_place(text: str, directory: Path, final: Path) -> str:
    """Return JSON text in which paths into an attempt's directory lead to where it will be."""
    here, there = (f"{path.parent.name}/{path.name}" for path in (directory, final))
    return text.replace(here, there)  # however the path to the result directory is written


def commit(directory: Path, final: Path, receipt: str) -> str:
    """Let an attempt's directory be that of its process; return the receipt that counts.

    Parameters
    ----------
    directory : Path
        The attempt's directory, which `receipt` is written into.
    final : Path
        The process's directory. If another attempt has been committed there, its receipt counts,
        and `directory` is removed.
    receipt : str
        The outcome of this attempt.

    Raises
    ------
    OSError
        Neither could be done; `final` is as it was.
    """
    directory.mkdir(parents=True, exist_ok=True)  # the process may have removed it
    (directory / OUTCOME).write_text(receipt + "\n", encoding="utf-8")
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(directory, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise
        committed = committed_receipt(final)
        if committed is None:
            raise
        discard(directory)
        return committed
    return receipt


def committed_receipt(final: Path) -> str | None:
    """Return the receipt in a process's directory, None where none was committed."""
    try:
        receipt = (final / OUTCOME).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    fields = unsealed(receipt.encode()) or {}
    return receipt if {"process", "state"} <= fields.keys() else None


def discard(directory: Path) -> None:
    """Remove a directory as far as that is possible."""
    with contextlib.suppress(OSError):
        shutil.rmtree(directory, ignore_errors=True)


def retract(results: str | Path, relative: str) -> None:
    """Make room for another attempt at a process whose directory has been committed."""
    directory = Path(results, relative)
    if directory.is_dir():
        aside = attempts_of(results) / f"{directory.name}.{uuid.uuid4().hex[:8]}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.rename(directory, aside)
        discard(aside)


def fields_of(receipt: str) -> dict[str, Any]:
    """Return the fields of the outcome that a receipt holds."""
    fields: dict[str, Any] = json.loads(receipt)
    return fields
