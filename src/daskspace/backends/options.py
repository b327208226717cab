"""The options that every backend has, beside those of its cluster."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dask.utils import parse_bytes, parse_timedelta

from daskspace.errors import ConfigError, did_you_mean
from daskspace.execution.attempt import ISOLATIONS
from daskspace.execution.dispatch import Policies

OWN_OPTIONS = (
    "isolation",
    "process_timeout",
    "process_memory",
    "retries",
    "lost_retries",
    "max_failures",
    "fail_fast",
    "circuit_breaker",
    "no_workers_timeout",
    "performance_report",
)
"""What every backend takes; all other options are for its cluster."""


@dataclass(frozen=True)
class RunOptions:
    """How processes are run.

    Parameters
    ----------
    isolation : str
        ``process``: in a child that is kept while it is healthy; ``fresh``: each in a child of its
        own; ``none``: in place, where nothing can be limited.
    process_timeout : float, optional
        After so many seconds a process is stopped.
    process_memory : int, optional
        A process that uses more, in bytes, is stopped.
    policies : Policies
        When a process is run again, and when an operation ends early.
    performance_report : bool
        Whether Dask's performance report is saved with the results.
    """

    isolation: str
    process_timeout: float | None
    process_memory: int | None
    policies: Policies
    performance_report: bool = False


def take_options(options: dict[str, Any], default_isolation: str) -> RunOptions:
    """Return the options that are ours, and remove them from `options`.

    Raises
    ------
    ConfigError
        A value cannot be taken, or values exclude each other.
    """
    given = {name: options.pop(name) for name in OWN_OPTIONS if options.get(name) is not None}
    for name in OWN_OPTIONS:
        options.pop(name, None)
    timeout = _taken(given, "process_timeout", _seconds, "seconds, such as 60 or '10 min'")
    memory = _taken(given, "process_memory", _bytes, "bytes, such as '2 GB'")
    limited = [name for name in ("process_timeout", "process_memory") if name in given]
    isolation = given.get("isolation", "process" if limited else default_isolation)
    if isolation not in ISOLATIONS:
        near = did_you_mean(str(isolation), ISOLATIONS)
        known = ", ".join(ISOLATIONS)
        raise ConfigError(f"unknown isolation {isolation!r}; known are {known}{near}")
    if isolation == "none" and limited:
        raise ConfigError(f"isolation='none' cannot keep {limited[0]}: leave one of them out")
    if given.get("fail_fast"):
        given.setdefault("max_failures", 1)
    defaults = Policies()
    waiting = _taken(given, "no_workers_timeout", _seconds, "seconds, such as 60 or '1 h'")
    return RunOptions(
        isolation,
        timeout,
        memory,
        Policies(
            _taken(given, "retries", _count, "a whole number") or 0,
            _or(_taken(given, "lost_retries", _count, "a whole number"), defaults.lost_retries),
            _taken(given, "max_failures", _positive, "a whole number of at least 1"),
            _or(
                _taken(given, "circuit_breaker", _count, "a whole number, 0 for off"),
                defaults.circuit_breaker,
            ),
            _or(
                waiting, math.inf if "no_workers_timeout" in given else defaults.no_workers_timeout
            ),
        ),
        bool(given.get("performance_report", False)),
    )


def _taken(given: dict[str, Any], name: str, take: Callable[[Any], Any], wanted: str) -> Any:
    if name not in given:
        return None
    try:
        return take(given[name])
    except (TypeError, ValueError, KeyError):
        raise ConfigError(f"{name} must be {wanted}, not {given[name]!r}") from None


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _seconds(value: Any) -> float | None:
    seconds = float(value) if not isinstance(value, str) else float(parse_timedelta(value))
    if isinstance(value, bool) or not seconds > 0:
        raise ValueError
    return None if math.isinf(seconds) else seconds


def _bytes(value: Any) -> int:
    size = int(parse_bytes(value))
    if isinstance(value, bool) or size <= 0:
        raise ValueError
    return size


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError
    return value


def _positive(value: Any) -> int:
    if _count(value) == 0:
        raise ValueError
    return int(value)
