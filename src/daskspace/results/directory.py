"""The result directory: what lies where, and who owns it."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable
from pathlib import Path

from daskspace.errors import DirectoryError
from daskspace.execution.commit import committed_receipt, fields_of, processes_of
from daskspace.execution.dispatch import CANCEL
from daskspace.execution.lock import holder, in_use
from daskspace.execution.outcome import GOOD_STATES

CHAIN = "chain.json"
"""The record of a chain, in its directory."""


class ResultDirectory:
    """The layout of a result directory.

    ======================  =================================================================
    ``operation.yaml``      what ran
    ``environment.json``    with which versions, where, from which commit
    ``journal.jsonl``       everything that happened, as it happened
    ``operation.log``       the backend's log
    ``table.csv``           one row per process (``table.parquet`` too, where pyarrow is there)
    ``logs/``               what each process printed and logged, if it did
    ``processes/``          the private directories of processes that asked for one
    ``journal.lock``        held by whoever writes the journal
    ``jobs.jsonl``          the batch jobs that worked for it
    ``jobs/``               what they wrote
    ``performance-report``  ``.html``: Dask's performance report, if it was asked for
    ``.cancel``             asks whoever runs it to stop
    ``.attempts/``          what is being worked on; gone when nothing runs
    ``earlier-<n>/``        the same of an earlier operation, where several share a directory
    ======================  =================================================================
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.journal = self.path / "journal.jsonl"
        self.operation = self.path / "operation.yaml"
        self.environment = self.path / "environment.json"
        self.log = self.path / "operation.log"
        self.table = self.path / "table.csv"
        self.parquet = self.path / "table.parquet"
        self.lock = self.path / "journal.lock"
        self.jobs = self.path / "jobs"
        self.jobs_record = self.path / "jobs.jsonl"
        self.cancel = self.path / CANCEL
        self.performance_report = self.path / "performance-report.html"

    @property
    def own_files(self) -> tuple[Path, ...]:
        """The files that every operation has from its begin."""
        return self.journal, self.operation, self.environment, self.log, self.lock

    @property
    def later_files(self) -> tuple[Path, ...]:
        """The files and directories that an operation may have from its course."""
        names = ("logs", "processes")
        known = (self.table, self.parquet, self.jobs, self.jobs_record, self.performance_report)
        sessions = self.path.glob("environment.[0-9]*.json")
        return (*known, *(self.path / name for name in names), *sessions)

    def environment_of(self, session: int) -> Path:
        """Return the file that tells with what a session ran."""
        return self.environment if session == 1 else self.path / f"environment.{session}.json"

    @property
    def holds_operation(self) -> bool:
        """Whether an operation was staged here."""
        return self.journal.exists()


def reserve(
    path: str | Path | None, name: str, resume: bool = False, *, for_chain: bool = False
) -> tuple[ResultDirectory, bool]:
    """Return a result directory that no other operation has, and whether it was made now.

    Parameters
    ----------
    path : path or None
        The directory that was asked for; None for ``<name>-<timestamp>`` in the working directory.
    name : str
        The operation's name.
    resume : bool
        Whether `path` may hold an operation, which is then to be resumed.
    for_chain : bool
        Whether `path` may hold a chain.

    Raises
    ------
    DirectoryError
        `path` holds an operation or a chain, is no directory, or cannot be made.
    """
    try:
        if path is None:
            if resume:
                raise DirectoryError("resume needs the result directory of the operation")
            return _reserve_new(name), True
        if not for_chain and (Path(path) / CHAIN).exists():
            raise DirectoryError(f"{path} holds a chain: give another directory")
        return _reserve_given(Path(path), resume)
    except (OSError, ValueError) as error:
        raise unusable(path or "in the working directory", error) from error


def unusable(path: str | Path, error: OSError | ValueError) -> DirectoryError:
    """Return the error that says why a result directory cannot be used."""
    why = error.strerror if isinstance(error, OSError) else error
    return DirectoryError(f"the result directory {path} cannot be used: {why}")


def _reserve_given(path: Path, resume: bool) -> tuple[ResultDirectory, bool]:
    directory = ResultDirectory(path)
    if directory.holds_operation and not resume:
        if (owner := holder(directory.lock)) is not None:
            raise in_use(directory.lock, owner)
        raise DirectoryError(
            f"{path} already holds an operation: resume it, or give another directory"
        )
    for file in directory.own_files:
        if file.exists() and not resume:
            raise DirectoryError(
                f"{path} holds a file {file.name}, which would be overwritten: give another"
                " directory"
            )
    if (path / "processes").exists() and not resume:
        raise DirectoryError(
            f"{path} holds the directories of processes, which would be taken for those of this"
            " operation: give another directory"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
        return directory, False
    return directory, True


def set_aside(path: str | Path) -> Callable[[], None]:
    """Make room in a directory for another operation of pySPACE's kind; return what undoes that.

    The records of an earlier one go to ``earlier-<n>`` in it, which is a result directory as well.
    All other files stay where they are.

    Raises
    ------
    DirectoryError
        The earlier operation still runs, or its records cannot be moved.
    """
    directory = ResultDirectory(path)
    if (owner := holder(directory.lock)) is not None:
        raise in_use(directory.lock, owner)
    records = [file for file in directory.own_files if file.exists()]
    if directory.holds_operation:
        records += [file for file in directory.later_files if file.exists()]
    if not records:
        return lambda: None
    moved: list[tuple[Path, Path]] = []

    def move_back() -> None:
        for here, there in moved:
            there.rename(here)
        aside.rmdir()

    try:
        aside = _make_numbered(directory.path, "earlier")
        for here in records:
            here.rename(aside / here.name)
            moved.append((here, aside / here.name))
    except OSError as error:
        if moved:
            move_back()
        raise unusable(directory.path, error) from error
    return move_back


def _make_numbered(path: Path, name: str) -> Path:
    for number in range(1, 100_000):
        made = path / f"{name}-{number}"
        with contextlib.suppress(FileExistsError):
            made.mkdir()
            return made
    raise FileExistsError(f"no free name for {name} in {path}")


def _reserve_new(name: str) -> ResultDirectory:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in range(1, 10_000):
        path = Path(f"{name}-{stamp}" if number == 1 else f"{name}-{stamp}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return ResultDirectory(path)
    raise DirectoryError(f"no free name for a result directory {name}-{stamp}")


def opened(path: str | Path) -> ResultDirectory:
    """Return a result directory that holds an operation.

    Raises
    ------
    DirectoryError
        It does not exist, or holds none.
    """
    directory = ResultDirectory(path)
    if not directory.holds_operation:
        if (directory.path / CHAIN).exists():
            parts = sorted(p.parent.name for p in directory.path.glob("*/journal.jsonl"))
            which = ", ".join(os.path.join(path, part) for part in parts) or "none has begun yet"
            raise DirectoryError(f"{path} is a chain: give one of its operations: {which}")
        what = "holds no operation" if directory.path.is_dir() else "is no directory"
        raise DirectoryError(f"{path} {what}: give the directory that a run printed at its end")
    return directory


def results_in(path: str) -> list[str]:
    """Return what `path` stands for as the input of another operation.

    For a result directory these are the private directories of its processes that are done, in
    process order, or itself where no process has made one. Any other path stands for itself.
    """
    if not ResultDirectory(path).holds_operation:
        return [path]
    done, made = [], False
    for directory in processes_of(path).glob("*"):
        receipt = committed_receipt(directory)
        fields = fields_of(receipt) if receipt is not None else {}
        made = made or bool(fields)
        if fields.get("state") in GOOD_STATES:
            done.append((fields["process"], os.path.join(path, "processes", directory.name)))
    return [directory for _, directory in sorted(done)] if made else [path]


def replace_text(path: Path, text: str) -> None:
    """Write a text file, all or nothing."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def unreserve(directory: ResultDirectory, made: bool) -> None:
    """Take back what `reserve` did: remove our own files, and the directory if it was made."""
    for file in directory.own_files:
        file.unlink(missing_ok=True)
    if made:
        with contextlib.suppress(OSError):
            directory.path.rmdir()
