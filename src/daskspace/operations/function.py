"""An operation from a Python function."""

from __future__ import annotations

import functools
import inspect
import logging
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskspace.errors import SpecError, did_you_mean
from daskspace.execution import plain
from daskspace.execution.attempt import current_attempt
from daskspace.execution.subflows import Subflows
from daskspace.operations.base import Operation, Resume
from daskspace.operations.data_sets import DataSet, as_data_sets
from daskspace.operations.parameters import ParameterSpace
from daskspace.operations.parametric import ParameterOperation, ParameterProcess, check_names

INJECTED = ("data", "run", "seed", "directory", "log", "subflows")
"""The arguments that a function gets by naming them."""


@dataclass(frozen=True)
class Recipe:
    """What all processes of a function's operation have in common."""

    function: Callable[..., Any]
    injected: tuple[str, ...]
    data_sets: Sequence[DataSet]
    hidden: frozenset[str]


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
            case "subflows":
                return Subflows()
            case _:
                log = logging.getLogger("daskspace.process")
                log.setLevel(logging.DEBUG)
                return log

    def _directory(self) -> Path:
        try:
            return current_attempt().make_directory()
        except LookupError:
            return Path(tempfile.mkdtemp(prefix="daskspace-"))


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
        resume: Resume = False,
    ) -> None:
        check_names(space.names)
        data_sets = as_data_sets(data)
        injected = _injected(function, space.names, has_data=data is not None)
        recipe = Recipe(function, injected, data_sets, frozenset(hidden))
        self.function = function
        name = name or _function_name(function)
        super().__init__(recipe, space, runs, name, result_directory, resume)

    def _can_be_loaded(self) -> bool:
        function = self.function
        plainly = inspect.isfunction(function) or inspect.isbuiltin(function)
        importable = plainly and "<" not in function.__qualname__
        return importable and function.__module__ != "__main__" and super()._can_be_loaded()

    def describe(self) -> dict[str, Any]:
        """Return the operation as a specification."""
        return {**super().describe(), "function": reference(self.function)}

    def fingerprints(self) -> dict[str, str]:
        """Return marks of the function and the data sets, which differ when they have changed."""
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        try:
            source = inspect.getsource(inspect.unwrap(function))
        except (OSError, TypeError, ValueError):
            return super().fingerprints()
        mark = plain.digest(source).hex()[:16]
        return {f"function {reference(self.function)}": mark, **super().fingerprints()}


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
    resume: Resume = False,
) -> Operation:
    """Describe an operation; nothing is started, and nothing is written.

    Parameters
    ----------
    function : callable, or iterable of callables
        Called with its parameters by name. By naming them it also gets ``data`` (one data set),
        ``run`` (an int from 0), ``seed`` (an int below 2**32, the same on every backend),
        ``directory`` (a `pathlib.Path`, private to the process and kept with the results),
        ``log`` (a `logging.Logger`) and ``subflows``, whose ``map`` calls a function on the same
        cluster; a parameter of the same name wins. It returns a mapping of metrics, one scalar, or
        None.
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
    resume : bool, str or sequence of str
        Whether `result_directory` may hold an earlier run of this operation, which then goes on:
        what is done is not run again. ``failed``, ``crashed``, ``timeout`` and ``lost`` say which
        processes beside those that have not ended are run again.

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
        return FunctionOperation(function, space, data, runs, result_directory, name, resume=resume)
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
        resume=resume,
    )


def reference(function: Callable[..., Any]) -> str:
    """Return ``module:name``, by which a function can be imported again where that is possible."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', None) or type(function).__module__}:{name}"


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
