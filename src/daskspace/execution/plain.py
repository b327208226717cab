"""Python values as plain JSON values: what may travel, be stored and be read by anyone."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

METRICS_LIMIT = 64 * 1024
"""The largest size of the metrics of one process, in bytes of JSON."""

METRICS_DEPTH = 100
"""How deep lists and mappings in metrics may be nested."""


def as_metrics(result: Any) -> dict[str, Any]:
    """Return what a process returned as metrics.

    Parameters
    ----------
    result : mapping of str, scalar or None
        NumPy scalars are converted. A scalar becomes the metric ``value``, None no metric at all.

    Raises
    ------
    TypeError
        A key is no string, or a value is no JSON value; the message names the key.
    ValueError
        The metrics are larger than `METRICS_LIMIT`.
    """
    if result is None:
        return {}
    metrics = dict(result) if isinstance(result, Mapping) else {"value": result}
    size = 0
    for key, value in metrics.items():
        if not isinstance(key, str):
            raise TypeError(f"metric {key!r}: a metric's name is a str, not {type(key).__name__}")
        try:
            _check_depth(value, METRICS_DEPTH)
            text = dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            kind = type(value).__name__
            raise TypeError(
                f"metric {key!r} is no JSON value but {kind!r} ({_shortened(error)}): return"
                " numbers, texts, lists or mappings, and write the rest to a file in `directory`"
            ) from None
        size += len(text) + len(dumps(key)) + 2
        if size > METRICS_LIMIT:
            raise ValueError(
                f"the metrics are larger than {METRICS_LIMIT // 1024} KiB at {key!r}:"
                " write large results to a file in `directory`"
            )
    return metrics


def plain(value: Any) -> Any:
    """Return a parameter's value as JSON can hold it, the same in every interpreter.

    Values that JSON does not know become a text: a class or function its dotted name, anything
    else its `repr`, or its type's dotted name where the `repr` tells only an address.
    """
    if (scalar := _numpy_value(value)) is not None:
        return plain(scalar)
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=dumps)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    try:
        text = repr(value)
    except Exception:
        return _name(type(value))
    return _name(type(value)) if " at 0x" in text else text


def digest(value: Any) -> bytes:
    """Return 32 bytes that depend on a plain value alone."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def _check_depth(value: Any, left: int) -> None:
    if isinstance(value, list | tuple | dict):
        if not left:
            raise ValueError(f"it is nested more than {METRICS_DEPTH} deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def _scalar(value: Any) -> Any:
    scalar = _numpy_value(value)
    if scalar is None or isinstance(scalar, list):
        raise TypeError(f"{_name(type(value))} is not a JSON value")
    return scalar


def _numpy_value(value: Any) -> Any:
    """Return what a NumPy scalar or array holds; None for anything else."""
    if type(value).__module__.partition(".")[0] == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    return None


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _shortened(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]


dumps = json.JSONEncoder(default=_scalar, separators=(",", ":")).encode
"""Return one line of JSON; NumPy scalars become numbers."""
