"""An operation from a Python function."""

from __future__ import annotations

import builtins
import copy
import functools
import glob
import inspect
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskspace.errors import SpecError, did_you_mean
from daskspace.execution import plain
from daskspace.execution.attempt import current_attempt
from daskspace.execution.travel import Shared
from daskspace.operations.base import Operation, Process, readable_name
from daskspace.operations.parameters import ParameterSpace
from daskspace.results.table import OWN_COLUMNS

INJECTED = ("data", "run", "seed", "directory", "log")
"""The arguments that a function gets by naming them."""

_UNCHANGING = (int, float, str, bytes, type(None))
_COUNTED = 10_000
"""Up to so many combinations are counted exactly where there are constraints."""

DataSet = tuple[str | None, Any]
"""The name of a data set, and what the function gets."""


@dataclass(frozen=True)
class Recipe:
    """What all processes of a function's operation have in common."""

    function: Callable[..., Any]
    injected: tuple[str, ...]
    data_sets: Sequence[DataSet]
    hidden: frozenset[str]


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
        return int.from_bytes(self._digest()[:4], "big")

    @property
    def attempt_name(self) -> str:  # type: ignore[override]
        """A readable name with a hash, the same on every backend."""
        hidden = self._recipe.value.hidden
        shown = {name: value for name, value in self._identity()[0].items() if name not in hidden}
        if self.data is not None:
            shown["data"] = Path(self.data).name
        return f"{readable_name({**shown, 'run': self.run})}-{self._digest().hex()[:16]}"

    def own_parameters(self) -> dict[str, Any]:
        """Return the parameters for the user's code, which may change them."""
        return {
            name: value if isinstance(value, _UNCHANGING) else copy.deepcopy(value)
            for name, value in self.parameters.items()
        }

    def _identity(self) -> tuple[dict[str, Any], str | None, int | None]:
        return plain.plain(self.parameters), self.data, self.run

    def _digest(self) -> bytes:
        return plain.digest(self._identity())


class FunctionProcess(ParameterProcess):
    """One call of the operation's function."""

    def __call__(self) -> Any:
        """Call the function and return what it returns."""
        recipe = self._recipe.value
        injected = {name: self._injected(name) for name in recipe.injected}
        return recipe.function(**injected, **self.own_parameters())

    def _injected(self, name: str) -> Any:
        match name:
            case "data":
                return self._recipe.value.data_sets[self._data_set][1]
            case "run":
                return self.run
            case "seed":
                return self.seed
            case "directory":
                return self._directory()
            case _:
                log = logging.getLogger("daskspace.process")
                log.setLevel(logging.DEBUG)
                return log

    def _directory(self) -> Path:
        try:
            return current_attempt().make_directory()
        except LookupError:
            return Path(tempfile.mkdtemp(prefix="daskspace-"))


class ParameterOperation(Operation):
    """An operation over data sets x parameter combinations x runs, produced lazily.

    Iterating over `processes` begins anew each time; the order is always the same: data sets
    outermost, runs innermost.
    """

    process_class: type[ParameterProcess] = ParameterProcess

    def __init__(
        self,
        recipe: Any,
        space: ParameterSpace,
        runs: int,
        name: str,
        result_directory: str | Path | None,
    ) -> None:
        _check_names(space.names)
        self.space = space
        self.runs = _checked_runs(runs)
        self.data_sets: Sequence[DataSet] = recipe.data_sets
        self._recipe = Shared(recipe)
        self.shared = (self._recipe,)
        self.parameters = space.names
        super().__init__(_Processes(self), result_directory, name=name)
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

    def _can_be_loaded(self) -> bool:
        """Return whether `describe` tells all that there is to know."""
        base = self.base_directory or os.getcwd()
        raw = self.space.describe()
        return plain.dumps(plain.plain(raw)) == _json_or_none(raw) and all(
            label is None or _is_path(value, os.path.join(base, label))
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


class FunctionOperation(ParameterOperation):
    """One call of a function per data set, parameter combination and run; see `operation`."""

    kind = "function"
    process_class = FunctionProcess

    def __init__(
        self,
        function: Callable[..., Any],
        space: ParameterSpace,
        data: Any = None,
        runs: int = 1,
        result_directory: str | Path | None = None,
        name: str | None = None,
        hidden: Iterable[str] = (),
    ) -> None:
        _check_names(space.names)
        data_sets = as_data_sets(data)
        injected = _injected(function, space.names, has_data=data is not None)
        recipe = Recipe(function, injected, data_sets, frozenset(hidden))
        self.function = function
        super().__init__(recipe, space, runs, name or _function_name(function), result_directory)

    def _can_be_loaded(self) -> bool:
        function = self.function
        plainly = inspect.isfunction(function) or inspect.isbuiltin(function)
        importable = plainly and "<" not in function.__qualname__
        return importable and function.__module__ != "__main__" and super()._can_be_loaded()

    def describe(self) -> dict[str, Any]:
        """Return the operation as a specification."""
        return {**super().describe(), "function": reference(self.function)}


def operation(
    function: Callable[..., Any] | Iterable[Callable[[], Any]],
    grid: Mapping[str, Iterable[Any] | str] | None = None,
    settings: Sequence[Mapping[str, Any]] | None = None,
    zip: Mapping[str, Sequence[Any]] | None = None,
    data: Any = None,
    runs: int = 1,
    constraints: Sequence[str | Callable[..., Any]] | None = None,
    result_directory: str | Path | None = None,
    *,
    name: str | None = None,
    number_processes: int | None = None,
) -> Operation:
    """Describe an operation; nothing is started, and nothing is written.

    Parameters
    ----------
    function : callable, or iterable of callables
        Called with its parameters by name. By naming them it also gets ``data`` (one data set),
        ``run`` (an int from 0), ``seed`` (an int below 2**32, the same on every backend),
        ``directory`` (a `pathlib.Path`, private to the process and kept with the results) and
        ``log`` (a `logging.Logger`); a parameter of the same name wins. It returns a mapping of
        metrics, one scalar, or None.
        Instead of a function: a list or generator of callables without arguments, finite or
        endless, for which only `result_directory`, `name` and `number_processes` are used.
    grid : mapping of str to iterable or expression, optional
        All combinations of these values; an expression is a str such as ``"range(1, 5)"``.
    settings : sequence of mappings, optional
        Explicit combinations.
    zip : mapping of str to sequence, optional
        Values that belong together: the first of each, the second of each, ...
        Where several of `grid`, `settings` and `zip` are given, each goes with each.
    data : path, sequence or mapping, optional
        The data sets. A str or path is a glob pattern of paths; a sequence holds paths or objects;
        a mapping gives objects names.
    runs : int
        How often each combination runs; run 0, 1, ...
    constraints : sequence of str or callable, optional
        Expressions such as ``"C > gamma"``, or functions of the parameters; a combination that
        gives something false is dropped.
    result_directory : path, optional
        By default a new ``<name>-<timestamp>`` in the working directory.
    name : str, optional
        By default the function's name.
    number_processes : int, optional
        How many callables there are, when known.

    Returns
    -------
    Operation
        Run it with ``create_backend(...).run(operation)``.

    Raises
    ------
    SpecError
        It could not be run as described.
    """
    if callable(function):
        if number_processes is not None:
            raise SpecError("number_processes is for a list or generator of callables")
        space = ParameterSpace(grid, settings, zip, constraints)
        return FunctionOperation(function, space, data, runs, result_directory, name)
    given = {
        "grid": grid,
        "settings": settings,
        "zip": zip,
        "data": data,
        "constraints": constraints,
    }
    unused = [key for key, value in given.items() if value is not None]
    unused += ["runs"] if runs != 1 else []
    if unused:
        raise SpecError(f"{', '.join(unused)}: only for an operation from a function")
    if not (hasattr(function, "__iter__") or hasattr(function, "get")):
        kind = type(function).__name__
        raise SpecError(f"an operation is made from a function or an iterable, not {kind!r}")
    return Operation(
        function,
        result_directory,
        name=name or "operation",
        number_processes=number_processes,
    )


def as_data_sets(data: Any) -> Sequence[DataSet]:
    """Return named data sets; one without name or value when there is no data."""
    if data is None:
        return [(None, None)]
    if isinstance(data, str | os.PathLike):
        pattern = os.path.expanduser(os.fspath(data))
        exists = os.path.exists(pattern)
        paths = [pattern] if exists else sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise SpecError(f"no data set matches {os.fspath(data)!r} in {os.getcwd()}")
        return [(path, path) for path in paths]
    if isinstance(data, Mapping):
        named: list[DataSet] = [(str(name), value) for name, value in data.items()]
    elif isinstance(data, Iterable):
        named = [(_data_name(n, value), value) for n, value in enumerate(data)]
    else:
        raise SpecError(
            "data must be a path, a list of paths or objects, or a mapping of names to objects,"
            f" not {type(data).__name__!r}"
        )
    if not named:
        raise SpecError("data is empty: give at least one data set")
    label, count = Counter(label for label, _ in named).most_common(1)[0]
    if count > 1:
        raise SpecError(f"data set {label!r} is given twice")
    return named


def reference(function: Callable[..., Any]) -> str:
    """Return ``module:name``, by which a function can be imported again where that is possible."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or type(function).__module__}:{name}"


def _is_path(value: Any, path: str) -> bool:
    """Return whether a data set is the file at `path`."""
    is_path = isinstance(value, str | os.PathLike) and os.path.exists(path)
    return is_path and os.path.abspath(value) == os.path.abspath(path)


def _json_or_none(value: Any) -> str | None:
    try:
        return plain.dumps(value)
    except (TypeError, ValueError):
        return None


def _data_name(position: int, value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    return str(plain.plain(value)) if isinstance(value, int | float) else f"#{position}"


def _function_name(function: Callable[..., Any]) -> str:
    return reference(function).rpartition(":")[2].replace("<lambda>", "lambda").split(".")[-1]


def _injected(
    function: Callable[..., Any], names: Sequence[str], has_data: bool
) -> tuple[str, ...]:
    """Return what the function gets beside its parameters; raise when it cannot be called so."""
    shown = reference(function)
    try:
        arguments = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    kinds = {name: a.kind for name, a in arguments.items() if a.kind not in variable}
    positional = [n for n, k in kinds.items() if k is inspect.Parameter.POSITIONAL_ONLY]
    if positional:
        raise SpecError(f"{shown} takes {positional[0]!r} by position only; parameters go by name")
    takes_any = any(a.kind is inspect.Parameter.VAR_KEYWORD for a in arguments.values())
    bound = function.keywords if isinstance(function, functools.partial) else {}
    injected = tuple(n for n in INJECTED if n in kinds and n not in names and n not in bound)
    if not has_data:
        injected = tuple(name for name in injected if name != "data")
    for name in names:
        if name not in kinds and not takes_any:
            near = did_you_mean(name, kinds)
            raise SpecError(f"{shown} has no argument {name!r}{near}", parameter=name)
    for name, argument in arguments.items():
        given = name in names or name in injected or name not in kinds
        if argument.default is argument.empty and not given:
            near = did_you_mean(name, names)
            hint = "give data=" if name == "data" else "give it in grid, settings or zip"
            raise SpecError(f"{shown} needs {name!r}: {hint}{near}")
    if has_data and "data" not in injected and "data" not in names:
        raise SpecError(f"data sets are given, but {shown} has no argument 'data' to get one")
    return injected


def _check_names(names: Sequence[str]) -> None:
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
