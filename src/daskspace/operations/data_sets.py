"""Data sets: paths or objects, each with a name."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from daskspace.errors import SpecError
from daskspace.execution import plain

DataSet = tuple[str | None, Any]
"""The name of a data set, and what the function gets."""


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


def is_path(value: Any, path: str) -> bool:
    """Return whether a data set is the file at `path`."""
    is_path = isinstance(value, str | os.PathLike) and os.path.exists(path)
    return is_path and os.path.abspath(value) == os.path.abspath(path)


def _data_name(position: int, value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    return str(plain.plain(value)) if isinstance(value, int | float) else f"#{position}"
