"""Runs the operations of a chain, one after the other."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daskspace.backends import create_backend
from daskspace.errors import DirectoryError, SpecError
from daskspace.execution import plain
from daskspace.execution.outcome import GOOD_STATES, STATES
from daskspace.operations.base import Operation, safe_name
from daskspace.operations.chain import Chain, Step
from daskspace.operations.yaml_file import write_yaml
from daskspace.results.chain_directory import ChainDirectory, reserve_chain
from daskspace.results.directory import ResultDirectory
from daskspace.results.table import Table

if TYPE_CHECKING:
    from daskspace.backends.dask_backend import DaskBackend

_logger = logging.getLogger("daskspace.chain")


@dataclass(frozen=True)
class Turn:
    """The turn of one operation of a chain.

    Attributes
    ----------
    position, total : int
        Which it is, from 1, of how many.
    operation
        The operation.
    backend : DaskBackend or None
        On which it is run; None if it had ended before.
    """

    position: int
    total: int
    operation: Any
    backend: DaskBackend | None

    def __str__(self) -> str:
        return f"operation {self.position} of {self.total}: {_name_of(self.operation)}"


Around = Callable[[Turn], contextlib.AbstractContextManager[Any]]


def run_chain(
    chain: Chain,
    backend: DaskBackend,
    timeout: float | None = None,
    *,
    performance_report: bool | None = None,
    around: Around | None = None,
) -> Chain:
    """Run what is left to run of a chain, and return it; see `DaskBackend.run`.

    An operation that asks for a backend of its own gets that; the others run on `backend`, which
    stays open in between.

    Parameters
    ----------
    chain, backend
        The chain, and where it is run.
    timeout : float or None
        After this many seconds the whole chain is stopped.
    performance_report : bool, optional
        As for `DaskBackend.run`, for each operation.
    around : callable, optional
        Called with each `Turn`; returns a context manager that surrounds it.
    """
    until = math.inf if timeout is None else time.monotonic() + timeout
    asked = chain.result_directory
    if asked == chain.automatic_directory and not chain.resume:
        asked = None
    with contextlib.ExitStack() as stack:
        directory, lock = reserve_chain(asked, chain.name, bool(chain.resume))
        stack.callback(lock.release)
        chain.result_directory = str(directory.path)
        if asked is None:
            chain.automatic_directory = chain.result_directory
        directory.cancel.unlink(missing_ok=True)
        write_yaml(directory.description, chain.describe())
        facts = {"name": chain.name, "backend": str(backend), "given": backend.given}
        directory.begin(facts, [(step.number, step.name) for step in chain.steps])
        chain.operations, chain.stopped = [], None
        runner = _Runner(chain, directory, backend, until, performance_report, around, stack)
        for position in range(1, len(chain.steps) + 1):
            chain.stopped = runner.take(position)
            if chain.stopped is not None:
                directory.stop(chain.stopped)
                _logger.warning("%s: %s", chain.name, chain.stopped)
                break
    return chain


class _Runner:
    """What the turns of a chain have in common."""

    def __init__(
        self,
        chain: Chain,
        directory: ChainDirectory,
        backend: DaskBackend,
        until: float,
        performance_report: bool | None,
        around: Around | None,
        stack: contextlib.ExitStack,
    ) -> None:
        self._chain = chain
        self._directory = directory
        self._backend = backend
        self._until = until
        self._performance_report = performance_report
        self._around = around or contextlib.nullcontext
        self._stack = stack
        self._others: dict[str, DaskBackend] = {}
        self._has_run = False

    def take(self, position: int) -> str | None:
        """Take the turn of an operation; return why the chain cannot go on after it."""
        step, total = self._chain.steps[position - 1], len(self._chain.steps)
        operation = self._make(step)
        mark = _mark(operation)
        name = _name_of(operation)
        entry = self._directory.entry(step.number)
        if entry["directory"] is not None and entry["name"] != name:
            raise DirectoryError(
                f"{self._directory.path} holds a chain whose operation {step.number} is"
                f" {entry['name']!r}, not {name!r}: give another directory"
            )
        place = f"{step.number}-{name}"
        operation.result_directory = str(self._directory.path / place)
        operation.resume = self._chain.resume
        if self._is_left_as_it_is(entry, mark):
            self._chain.operations.append(operation)
            with self._around(Turn(position, total, operation, None)):
                pass
            return self._why_to_stop(position, operation, _table_of(operation))
        if (reason := self._why_not_to_begin()) is not None:
            return f"{reason} before operation {position} of {total}, {name}"
        self._has_run = True
        self._directory.note(step.number, name=name, directory=place, state="running")
        self._chain.operations.append(operation)
        backend = self._backend_of(operation)
        with self._around(Turn(position, total, operation, backend)):
            left = None if math.isinf(self._until) else self._until - time.monotonic()
            backend.run(operation, left, performance_report=self._performance_report)
        table = _table_of(operation)
        if not (table.end or {}).get("aborted"):
            self._directory.note(step.number, state="ended", mark=mark, backend=str(backend))
        return self._why_to_stop(position, operation, table)

    def _make(self, step: Step) -> Any:
        before = self._chain.operations[-1] if self._chain.operations else None
        try:
            return step.make(before, self._directory.path)
        except SpecError:
            entry = self._directory.entry(step.number)
            if self._has_run or entry["state"] != "ended" or not self._chain.resume:
                raise
            return Operation((), name=entry["name"])  # what it was made from may be gone by now

    def _is_left_as_it_is(self, entry: dict[str, Any], mark: str) -> bool:
        """Return whether an operation has ended, and nothing that it depends on is new."""
        if self._has_run or entry["state"] != "ended":
            return False
        results = self._directory.results_of(entry)
        if not results.holds_operation:
            return False
        again = self._chain.resume
        counts = Table(results.journal).counts
        return entry["mark"] == mark and (isinstance(again, bool) or not {*again} & counts.keys())

    def _backend_of(self, operation: Any) -> DaskBackend:
        wanted = getattr(operation, "backend", None)
        if wanted is None or wanted == (self._backend.given or {}).get("backend"):
            return self._backend
        if wanted not in self._others:
            self._others[wanted] = self._stack.enter_context(create_backend(wanted))
        return self._others[wanted]

    def _why_not_to_begin(self) -> str | None:
        if self._directory.cancel.exists():
            return "it was cancelled"
        return "the time of the chain was up" if time.monotonic() >= self._until else None

    def _why_to_stop(self, position: int, operation: Any, table: Table) -> str | None:
        of = f"operation {position} of {len(self._chain.steps)}, {_name_of(operation)}"
        if aborted := (table.end or {}).get("aborted"):
            return f"{of}: {aborted}"
        counts = {state: n for state, n in table.counts.items() if state not in GOOD_STATES}
        bad = [f"{counts[state]} {state}" for state in STATES if counts.get(state)]
        if not bad or self._chain.on_failure == "continue" or position == len(self._chain.steps):
            return None
        return f"{of}: {', '.join(bad)}"


def _table_of(operation: Any) -> Table:
    return Table(ResultDirectory(operation.result_directory).journal)


def _name_of(operation: Any) -> str:
    return safe_name(getattr(operation, "name", "operation"))


def _mark(operation: Any) -> str:
    """Return what differs when an operation is described otherwise."""
    describe = getattr(operation, "describe", None)
    return plain.digest(plain.plain(describe() if describe else {})).hex()[:16]
