"""An operation over data sets x parameter combinations x runs."""

from __future__ import annotations

import builtins
import copy
import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from daskspace.errors import SpecError
from daskspace.execution import plain
from daskspace.execution.identity import Identity, digest
from daskspace.execution.travel import Shared
from daskspace.operations.base import Operation, Process, Resume
from daskspace.operations.data_sets import DataSet, is_path
from daskspace.operations.parameters import ParameterSpace
from daskspace.results.table import OWN_COLUMNS

_UNCHANGING = (int, float, str, bytes, type(None))
_COUNTED = 10_000
"""Up to so many combinations are counted exactly where there are constraints."""


class ParameterProcess(Process):
    """A process that is told by its parameters, data set and run."""

    def __init__(
        self, recipe: Shared[Any], parameters: Mapping[str, Any], data_set: int, run: int
    ) -> None:
        self._recipe = recipe
        self._data_set = data_set
        self.parameters = parameters
        self.run = run
        self.data = recipe.value.data_sets[data_set][0]

    @property
    def seed(self) -> int:
        """A number from 0 to 2**32 - 1 that depends on parameters, data set and run alone."""
        return int.from_bytes(digest(plain.plain(self.parameters), self.data, self.run)[:4], "big")

    def own_parameters(self) -> dict[str, Any]:
        """Return the parameters for the user's code, which may change them."""
        return {
            name: value if isinstance(value, _UNCHANGING) else copy.deepcopy(value)
            for name, value in self.parameters.items()
        }


class ParameterOperation(Operation):
    """An operation over data sets x parameter combinations x runs, produced lazily.

    Iterating over `processes` begins anew each time; the order is always the same: data sets
    outermost, runs innermost.
    """

    process_class: type[ParameterProcess] = ParameterProcess
    independent = True

    def __init__(
        self,
        recipe: Any,
        space: ParameterSpace,
        runs: int,
        name: str,
        result_directory: str | Path | None,
        resume: Resume = False,
    ) -> None:
        check_names(space.names)
        self.space = space
        self.runs = _checked_runs(runs)
        self.data_sets: Sequence[DataSet] = recipe.data_sets
        self._recipe = Shared(recipe)
        self.shared = (self._recipe,)
        self.parameters = space.names
        self.identity = Identity(by_parameters=True, hidden=tuple(sorted(recipe.hidden)))
        super().__init__(_Processes(self), result_directory, name=name, resume=resume)
        _check_conflicts(self)
        _check_tellable(space)
        space.check_satisfiable()
        countable = not space.is_exact and space.size <= _COUNTED
        combinations = space.survey(_COUNTED).kept if countable else space.size
        self.number_processes = len(self.data_sets) * combinations * self.runs

    def iterate(self) -> Iterator[ParameterProcess]:
        """Yield the processes."""
        for data_set in range(len(self.data_sets)):
            for parameters in self.space:
                for run in range(self.runs):
                    yield self.process_class(self._recipe, parameters, data_set, run)

    def fingerprints(self) -> dict[str, str]:
        """Return marks of the data sets, which differ when they have changed."""
        marks = {
            f"data set {label}": _fingerprint(value)
            for label, value in self.data_sets
            if label is not None
        }
        return {name: mark for name, mark in marks.items() if mark is not None}

    def _can_be_loaded(self) -> bool:
        """Return whether `describe` tells all that there is to know."""
        base = self.base_directory or os.getcwd()
        raw = self.space.describe()
        return plain.dumps(plain.plain(raw)) == _json_or_none(raw) and all(
            label is None or is_path(value, os.path.join(base, label))
            for label, value in self.data_sets
        )

    def describe(self) -> dict[str, Any]:
        """Return the operation as a specification that can be run again where that is possible."""
        described = {
            **super().describe(),
            **plain.plain(self.space.describe()),
            "runs": self.runs,
        }
        labels = [label for label, _ in self.data_sets if label is not None]
        if labels:
            described["input_path"] = labels
        if not self._can_be_loaded():
            described["made_by"] = "a program"
        hidden = self._recipe.value.hidden
        return {**described, "hide_parameters": sorted(hidden)} if hidden else described


class _Processes:
    """The processes of an operation, made while they are pulled."""

    def __init__(self, operation: ParameterOperation) -> None:
        self._operation = operation

    def __iter__(self) -> Iterator[ParameterProcess]:
        return self._operation.iterate()


def _json_or_none(value: Any) -> str | None:
    try:
        return plain.dumps(value)
    except (TypeError, ValueError):
        return None


def _fingerprint(value: Any) -> str | None:
    """Return a mark of a file, an array or bytes; None for what would have to be pickled first."""
    try:
        if isinstance(value, str | os.PathLike):
            stat = os.stat(value)
            return f"{stat.st_size}-{stat.st_mtime_ns}"
        return hashlib.sha256(memoryview(value).cast("B")).hexdigest()[:16]
    except (OSError, TypeError, ValueError):
        return None


def check_names(names: Sequence[str]) -> None:
    """Raise SpecError where a parameter has the name of one of our columns."""
    for name in names:
        if name in OWN_COLUMNS and name not in ("data", "run"):
            raise SpecError(
                f"a parameter cannot be named {name!r}: that is a column of the table",
                parameter=name,
            )


def _check_conflicts(operation: ParameterOperation) -> None:
    if "data" in operation.parameters and operation.data_sets[0][0] is not None:
        raise SpecError("'data' is a parameter, and data sets are given: rename the parameter")
    if "run" in operation.parameters and operation.runs != 1:
        raise SpecError("'run' is a parameter, and runs is more than 1: rename the parameter")


def _check_tellable(space: ParameterSpace) -> None:
    """Refuse values that differ, but look the same in the table and in the names of files."""
    described = space.describe()
    lists = dict(described.get("parameter_ranges", {}))
    lists["a setting"] = described.get("parameter_settings", [])
    columns = described.get("parameter_zip", {})
    lists["a row of zip"] = list(builtins.zip(*columns.values(), strict=True))
    for name, values in lists.items():
        if isinstance(values, str) or not values:
            continue
        shown, count = Counter(plain.dumps(plain.plain(v)) for v in values).most_common(1)[0]
        if count > 1:
            raise SpecError(
                f"two values of {name!r} look the same, {shown}: use their names as values",
                parameter=name,
            )


def _checked_runs(runs: Any) -> int:
    if isinstance(runs, bool) or not isinstance(runs, int) or runs < 1:
        raise SpecError(f"runs must be a whole number of at least 1, not {runs!r}")
    return runs
