"""Ranges, settings, zip, constraints, runs -> parameter combinations; pure."""

from __future__ import annotations

import inspect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daskspace.errors import SpecError, did_you_mean
from daskspace.operations.expressions import Constraint, evaluate_range


@dataclass(frozen=True)
class Survey:
    """How the constraints treat the first combinations of a space.

    Attributes
    ----------
    seen
        How many combinations were tried.
    kept
        How many of them fulfil all constraints.
    dropped
        For each constraint, in order, its text and how many combinations it was the first to drop.
    """

    seen: int
    kept: int
    dropped: tuple[tuple[str, int], ...]


class FunctionConstraint:
    """A Python function as a condition; it is called with the parameters it asks for by name.

    Parameters
    ----------
    function
        Returns whether to keep a combination; one that takes ``**kwargs`` gets all parameters.

    Attributes
    ----------
    text : str
        The name of the function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.text = getattr(function, "__name__", None) or repr(function)
        self._function = function
        try:
            asked = inspect.signature(function).parameters.values()
        except (TypeError, ValueError) as error:
            raise SpecError(f"the constraint {self.text} does not tell its arguments") from error
        if any(p.kind is p.POSITIONAL_ONLY for p in asked):
            raise SpecError(f"the constraint {self.text} takes arguments without a name")
        named = [p for p in asked if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self._asks_for_all = any(p.kind is p.VAR_KEYWORD for p in asked)
        self._names = [p.name for p in named]
        self._required = [p.name for p in named if p.default is p.empty]

    def __call__(self, parameters: Mapping[str, Any]) -> bool:
        """Return whether `parameters` fulfil the condition."""
        names = parameters if self._asks_for_all else self._names
        try:
            return bool(self._function(**{n: parameters[n] for n in names if n in parameters}))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise SpecError(
                f"the constraint {self.text} fails with {dict(parameters)!r}: {reason}"
            ) from error

    def __repr__(self) -> str:
        return f"FunctionConstraint({self.text})"

    def check_names(self, known: Sequence[str]) -> None:
        """Raise a SpecError if the function needs a parameter that is not in `known`."""
        for name in self._required:
            if name not in known:
                parameters = ", ".join(map(repr, known)) or "there are none"
                raise SpecError(
                    f"the constraint {self.text} asks for the unknown parameter {name!r}"
                    f"{did_you_mean(name, known)} (known: {parameters})"
                )


class ParameterSpace:
    """Every parameter combination of an operation, made one at a time when iterated.

    The combinations come for each of the settings, for each row of zip, for the product of the
    grid, whose last name varies fastest. Iterating again gives the same ones in the same order.

    Parameters
    ----------
    grid
        For each name its values: a list, or an expression such as ``"range(1, 10)"``.
    settings
        Combinations that are listed one by one; they may differ in their names.
    zip
        For each name its values, all equally many, taken together row by row.
    constraints
        Conditions that a combination must fulfil, as texts or as functions.

    Attributes
    ----------
    names : tuple of str
        The names of all parameters, those of the settings first, then zip, then the grid.
    size : int
        The number of combinations before the constraints.
    constraints : tuple
        The constraints, each with a `text`, callable with a combination.

    Raises
    ------
    SpecError
        When a name or its values cannot be used, a name is used in two places, a value is listed
        twice, or a constraint uses an unknown parameter.
    """

    def __init__(
        self,
        grid: Mapping[str, Iterable[Any] | str] | None = None,
        settings: Sequence[Mapping[str, Any]] | None = None,
        zip: Mapping[str, Iterable[Any] | str] | None = None,
        constraints: Sequence[str | Callable[..., Any]] | None = None,
    ) -> None:
        self._settings = _checked_settings(settings)
        self._rows = _checked_rows(zip)
        self._grid = _checked_grid(grid)
        names_of = {
            "settings": dict.fromkeys(itertools.chain.from_iterable(self._settings)),
            "zip": dict.fromkeys(self._rows[0]),
            "grid": dict.fromkeys(self._grid),
        }
        for one, other in itertools.combinations(names_of, 2):
            for name in names_of[one]:
                if name in names_of[other]:
                    raise SpecError(f"the parameter {name!r} is in {one} and in {other}")
        self.names: tuple[str, ...] = tuple(itertools.chain.from_iterable(names_of.values()))
        self.size: int = (
            len(self._settings) * len(self._rows) * math.prod(map(len, self._grid.values()))
        )
        self.constraints = _checked_constraints(constraints, self.names)

    @property
    def is_exact(self) -> bool:
        """Whether `size` is the number of combinations, for there are no constraints."""
        return not self.constraints

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.is_exact:
            return self._all()
        return (c for c in self._all() if self._dropping(c) is None)

    def survey(self, limit: int = 100_000) -> Survey:
        """Try the first `limit` combinations and count what the constraints keep and drop."""
        dropping = Counter(map(self._dropping, itertools.islice(self._all(), limit)))
        dropped = tuple((constraint.text, dropping[constraint]) for constraint in self.constraints)
        return Survey(seen=dropping.total(), kept=dropping[None], dropped=dropped)

    def check_satisfiable(self, limit: int = 100_000) -> None:
        """Raise a SpecError if there are at most `limit` combinations and all are dropped."""
        if self.is_exact:
            return
        first = itertools.islice(self._all(), limit)
        if any(self._dropping(c) is None for c in first) or self.size > limit:
            return
        raise SpecError(f"the constraints drop all {self.size} combinations")

    def describe(self) -> dict[str, Any]:
        """Return the space under the keys of an operation's YAML, as far as it has them."""
        described = {
            "parameter_ranges": {
                name: str(values) if isinstance(values, range) else list(values)
                for name, values in self._grid.items()
            },
            "parameter_settings": [] if self._settings == [{}] else self._settings,
            "parameter_zip": {name: [row[name] for row in self._rows] for name in self._rows[0]},
            "constraints": [constraint.text for constraint in self.constraints],
        }
        return {key: values for key, values in described.items() if values}

    def _all(self) -> Iterator[dict[str, Any]]:
        combinations: Iterator[dict[str, Any]] = (
            {**setting, **row} for setting in self._settings for row in self._rows
        )
        for name, values in self._grid.items():
            combinations = _extended(combinations, name, values)
        return combinations

    def _dropping(self, combination: Mapping[str, Any]) -> Constraint | FunctionConstraint | None:
        """Return the first constraint that `combination` does not fulfil."""
        for constraint in self.constraints:
            if not constraint(combination):
                return constraint
        return None


def _extended(
    combinations: Iterable[dict[str, Any]], name: str, values: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    for combination in combinations:
        for value in values:
            yield {**combination, name: value}


def _checked_settings(settings: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    if settings is None:
        return [{}]
    if isinstance(settings, str | Mapping) or not isinstance(settings, Iterable):
        raise SpecError("settings must be a list of mappings from names to values")
    checked = [_checked_mapping("a setting", setting) for setting in settings]
    if not checked:
        raise SpecError("settings is an empty list; leave it out if there are none")
    _check_unique("settings", checked)
    return checked


def _checked_rows(columns: Mapping[str, Iterable[Any] | str] | None) -> list[dict[str, Any]]:
    if not columns and isinstance(columns, Mapping | None):
        return [{}]
    checked = {
        name: _values(f"the zip list of {name!r}", values)
        for name, values in _checked_mapping("zip", columns).items()
    }
    lengths = {name: len(values) for name, values in checked.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{name!r} has {length}" for name, length in lengths.items())
        raise SpecError(f"zip needs lists of equal length, but {counts}")
    rows = [dict(zip(checked, row, strict=True)) for row in zip(*checked.values(), strict=True)]
    _check_unique("zip", rows)
    return rows


def _checked_grid(grid: Mapping[str, Iterable[Any] | str] | None) -> dict[str, Sequence[Any]]:
    checked = {}
    for name, values in _checked_mapping("the grid", {} if grid is None else grid).items():
        where = f"the grid of {name!r}"
        checked[name] = _values(where, values)
        _check_unique(where, checked[name])
    return checked


def _checked_constraints(
    constraints: Sequence[str | Callable[..., Any]] | None, names: tuple[str, ...]
) -> tuple[Constraint | FunctionConstraint, ...]:
    if isinstance(constraints, str) or not isinstance(constraints, Iterable | None):
        raise SpecError(f"constraints must be a list of conditions, not {constraints!r}")
    checked = tuple(_constraint(condition) for condition in constraints or ())
    for constraint in checked:
        constraint.check_names(names)
    return checked


def _constraint(condition: str | Callable[..., Any]) -> Constraint | FunctionConstraint:
    if isinstance(condition, str):
        return Constraint(condition)
    if isinstance(condition, Constraint | FunctionConstraint):
        return condition
    if callable(condition):
        return FunctionConstraint(condition)
    raise SpecError(f"a constraint must be a text or a function, not {condition!r}")


def _checked_mapping(where: str, mapping: Any) -> dict[str, Any]:
    if not isinstance(mapping, Mapping):
        raise SpecError(f"{where} must be a mapping from names to values, not {mapping!r}")
    for name in mapping:
        if not isinstance(name, str) or not name:
            raise SpecError(f"{where} names a parameter {name!r}: a name must be a text, not empty")
    return dict(mapping)


def _values(where: str, values: Any) -> Sequence[Any]:
    if isinstance(values, str):
        try:
            return evaluate_range(values)
        except SpecError as error:
            raise SpecError(f"{where}: {error}") from error
    if isinstance(values, range):
        checked: Sequence[Any] = values
    else:
        plain = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(plain, set | frozenset):
            raise SpecError(f"{where} is a set, which has no order; write a list")
        if isinstance(plain, bytes | Mapping) or not isinstance(plain, Iterable):
            raise SpecError(f"{where} must be a list such as [{plain!r}], not {plain!r}")
        checked = list(plain)
    if not checked:
        raise SpecError(f"{where} is empty")
    return checked


def _check_unique(where: str, values: Sequence[Any]) -> None:
    if isinstance(values, range):
        return
    seen = set()
    for value in values:
        identity = _identity(value)
        if identity in seen:
            verb = "list" if where == "settings" else "lists"
            raise SpecError(f"{where} {verb} {value!r} twice")
        seen.add(identity)


def _identity(value: Any) -> Hashable:
    """Return what is equal for equal values: 1 and 1.0 are, 1 and True are not."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return type(value).__name__, value
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, Mapping):
        return "mapping", frozenset((_identity(k), _identity(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return "list", tuple(map(_identity, value))
    if isinstance(value, set | frozenset):
        return "set", frozenset(map(_identity, value))
    if hasattr(value, "tolist"):
        return _identity(value.tolist())
    try:
        hash(value)
    except TypeError:
        return "object", id(value)
    return value
