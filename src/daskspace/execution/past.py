"""What earlier sessions made of an operation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskspace.execution.commit import attempts_of, committed_receipt, processes_of
from daskspace.execution.identity import Identity, describe_process
from daskspace.execution.journal import HEADER, read_journal
from daskspace.execution.outcome import GOOD_STATES
from daskspace.execution.seal import unsealed
from daskspace.execution.tape import SUFFIX, read_tape

AGAIN = ("failed", "crashed", "timeout", "lost")
"""States that are settled, unless it is asked for them to be run again."""
WAITING = "waiting"
"""The state of a process that is to be run again; it takes the place of any other."""
_UNSETTLED = (WAITING, "cancelled")


@dataclass(frozen=True)
class Known:
    """What is known of a process.

    Parameters
    ----------
    number : int
        Its number in the journal.
    settled : str, optional
        The state in which it stays; None if it is to be run.
    before : str, optional
        The state that it came to in an earlier session, and stays in until it is begun again.
    directory : str, optional
        Its directory, relative to the result directory, which has to go before it is begun.
    """

    number: int
    settled: str | None = None
    before: str | None = None
    directory: str | None = None


class Past:
    """The outcomes of earlier sessions, by the identity of their processes.

    Parameters
    ----------
    identity : Identity
        What tells the processes apart.
    journal : Path, optional
        The operation's journal; without it there is no past.
    again : collection of str
        States of `AGAIN` in which a process is run again.

    Attributes
    ----------
    sessions : int
        How many there were.
    fingerprints : dict of str to str
        What the function and the data sets were when they were last used.
    """

    def __init__(
        self,
        identity: Identity,
        journal: Path | None = None,
        again: Collection[str] = (),
    ) -> None:
        self._identity = identity
        self._again = frozenset(again)
        self._known: dict[bytes, tuple[int, str, str | None, int]] = {}
        self._directories: set[str] = set()
        self._numbers: set[int] = set()
        self._next_number = 0
        self.sessions = 0
        self.fingerprints: dict[str, str] = {}
        if journal is None:
            return
        self._directories = _names_in(processes_of(journal.parent))
        if not has_header(journal):
            return
        for _, entry in read_journal(journal):
            if "journal" in entry:
                self.sessions = max(self.sessions + 1, int(entry.get("session", 1)))
                self.fingerprints.update(entry.get("fingerprints", {}))
            elif "state" in entry and "process" in entry:
                self._note(entry)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known."""
        return not (self._known or self._directories)

    @property
    def done(self) -> int:
        """How many processes are done."""
        return sum(known[1] in GOOD_STATES for known in self._known.values())

    def find(self, position: int, call: Any) -> Known:
        """Return what is known of the process at `position` of the operation."""
        fields = describe_process(position, call)
        key = self._identity.digest(fields)[:16]
        known = self._known.get(key)
        if known is None or known[1] in _UNSETTLED:
            number = self._new_number(position) if known is None else known[0]
            return Known(number, directory=self._left_over({**fields, "process": number}))
        number, state, directory, _ = known
        is_gone = directory is not None and Path(directory).name not in self._directories
        if state in self._again or is_gone:
            return Known(number, None, state, None if is_gone else directory)
        return Known(number, state, state, directory)

    def adopt(self, results: Path) -> Iterator[str]:
        """Yield receipts that the last session was killed before it could write them down.

        They lie on tapes and in the directories of processes.
        """
        attempts = attempts_of(results)
        for tape in sorted(attempts.glob(f"*{SUFFIX}")):
            yield from filter(self._adopt, read_tape(tape).receipts)
        named = {Path(known[2]).name for known in self._known.values() if known[2]}
        for name in sorted(self._directories - named):
            receipt = committed_receipt(processes_of(results) / name)
            if receipt is not None and self._adopt(receipt):
                yield receipt

    def _adopt(self, receipt: str) -> bool:
        entry = unsealed(receipt.encode())
        if entry is None or "process" not in entry or entry.get("state") in (None, *_UNSETTLED):
            return False
        key = self._key(entry)
        known = self._known.pop(key, None)
        if known is not None and known[1] not in _UNSETTLED:
            self._known[key] = known
            return False
        self._note(entry)
        return True

    def _note(self, entry: dict[str, Any]) -> None:
        key, number, state = self._key(entry), entry["process"], entry["state"]
        known = self._known.get(key)
        if known is None or known[3] != self.sessions or WAITING in (known[1], state):
            self._known[key] = number, state, entry.get("directory"), self.sessions
        self._numbers.add(number)
        self._next_number = max(self._next_number, number + 1)

    def _left_over(self, fields: dict[str, Any]) -> str | None:
        """Return the directory of a process that has no receipt, if it is there."""
        if not self._directories:
            return None
        name = self._identity.name(fields)
        return f"processes/{name}" if name in self._directories else None

    def _key(self, entry: dict[str, Any]) -> bytes:
        return self._identity.digest(entry)[:16]

    def _new_number(self, position: int) -> int:
        """Return a number that no other process has, the position where that is possible."""
        number = position if position not in self._numbers else self._next_number
        self._numbers.add(number)
        self._next_number = max(self._next_number, number + 1)
        return number


def has_header(journal: Path) -> bool:
    """Return whether a journal is more than what a killed writer left of its first line."""
    try:
        with journal.open("rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return False
    return line.endswith(b"\n") or not HEADER.startswith(line[: len(HEADER)])


def _names_in(directory: Path) -> set[str]:
    try:
        return {path.name for path in directory.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
