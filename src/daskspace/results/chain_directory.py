"""The directory of a chain: one result directory per operation, and how far the chain is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from daskspace.errors import DirectoryError
from daskspace.execution.dispatch import CANCEL
from daskspace.execution.lock import Lock
from daskspace.results.directory import CHAIN, ResultDirectory, replace_text, reserve


class ChainDirectory:
    """The layout of the directory of a chain, and its record.

    ==================  =======================================================
    ``chain.yaml``      the chain, with all that its operations are made from
    ``chain.json``      how far it is
    ``chain.lock``      held by whoever runs it
    ``1-train/``        the result directory of the first operation, and so on
    ``.cancel``         asks whoever runs it to stop
    ==================  =======================================================

    Attributes
    ----------
    record : dict
        What ``chain.json`` tells: ``name``, ``backend``, ``given``, ``stopped``, and ``operations``
        with ``number``, ``name``, ``directory``, ``state`` and ``mark`` each.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.description = self.path / "chain.yaml"
        self.lock = self.path / "chain.lock"
        self.cancel = self.path / CANCEL
        self._record = self.path / CHAIN
        self.record: dict[str, Any] = {"operations": []}

    @property
    def holds_chain(self) -> bool:
        """Whether a chain was begun here."""
        return self._record.exists()

    def read(self) -> ChainDirectory:
        """Read the record, and return itself.

        Raises
        ------
        DirectoryError
            There is none, or it cannot be read.
        """
        try:
            self.record = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DirectoryError(f"{self._record} cannot be read: {error}") from error
        return self

    @property
    def operations(self) -> list[dict[str, Any]]:
        """The operations of the record, in order."""
        operations: list[dict[str, Any]] = self.record["operations"]
        return operations

    def begun(self) -> list[dict[str, Any]]:
        """Read the record; return the operations that have a directory."""
        return [entry for entry in self.read().operations if entry["directory"]]

    def results_of(self, entry: Mapping[str, Any]) -> ResultDirectory:
        """Return the result directory of an operation of the record."""
        return ResultDirectory(self.path / str(entry["directory"]))

    def begin(self, facts: Mapping[str, Any], names: Iterable[tuple[int, str | None]]) -> None:
        """Write the record of a chain that begins, or goes on; what has ended stays ended."""
        before = {entry["number"]: entry for entry in self.operations}
        fresh = [
            {"number": n, "name": name, "directory": None, "state": "waiting"} for n, name in names
        ]
        operations = [{**entry, **before.get(entry["number"], {})} for entry in fresh]
        self.record = {**facts, "stopped": None, "operations": operations}
        self._write()

    def entry(self, number: int) -> dict[str, Any]:
        """Return what the record tells of an operation."""
        return next(entry for entry in self.operations if entry["number"] == number)

    def note(self, number: int, **facts: Any) -> None:
        """Note what is new about an operation."""
        self.entry(number).update(facts)
        self._write()

    def stop(self, reason: str) -> None:
        """Note why the chain has not gone on."""
        self.record["stopped"] = reason
        self._write()

    def _write(self) -> None:
        replace_text(self._record, json.dumps(self.record, indent=2) + "\n")


def reserve_chain(path: str | Path | None, name: str, resume: bool) -> tuple[ChainDirectory, Lock]:
    """Return the directory of a chain, and the lock that nobody else has.

    Raises
    ------
    DirectoryError
        It holds an operation, or a chain that is not to be resumed, or is in use.
    """
    if path is not None and ResultDirectory(path).holds_operation:
        raise DirectoryError(f"{path} holds an operation, not a chain: give another directory")
    if path is not None and ChainDirectory(path).holds_chain and not resume:
        raise DirectoryError(f"{path} already holds a chain: resume it, or give another directory")
    reserved, _ = reserve(path, name, resume, for_chain=True)
    directory = ChainDirectory(reserved.path)
    lock = Lock(directory.lock)
    if directory.holds_chain:
        directory.read()
    return directory, lock
