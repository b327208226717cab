"""The options that every backend has, beside those of its cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.utils import parse_bytes, parse_timedelta

from daskspace.clusters.sources import source_of
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
    "subflow_server",
)
"""What every backend takes; all other options are for its cluster.

Each has a key in the section ``daskspace`` of Dask's configuration.
"""


BATCH_OPTIONS = ("jobs", "adapt", "query_interval", "insecure")
"""What backends of batch systems take beside them."""

DEFAULTS: Mapping[str, Any] = yaml.safe_load(
    Path(__file__).parents[1].joinpath("daskspace.yaml").read_text("utf-8")
)["daskspace"]
dask.config.update_defaults({"daskspace": dict(DEFAULTS)})


def configured(name: str) -> Any:
    """Return what Dask's configuration says of one of our options; null is for the default."""
    value = dask.config.get(f"daskspace.{_key(name)}", None)
    return DEFAULTS.get(_key(name)) if value is None else value


def check_section(files: Sequence[Path] = ()) -> None:
    """Refuse keys of our section that there are not.

    Parameters
    ----------
    files : sequence of Path
        Files that count beside Dask's own.

    Raises
    ------
    ConfigError
        A key is unknown; the message tells where it is.
    """
    section = dask.config.get("daskspace", None)
    if not isinstance(section, Mapping):
        where = source_of("daskspace", files).place
        raise ConfigError(f"{where or 'configuration'}: daskspace must hold keys, not {section!r}")
    for key in section:
        if _key(key) not in DEFAULTS:
            where = source_of(f"daskspace.{key}", files).place or "configuration"
            near = did_you_mean(_key(key), DEFAULTS) or f"; known are {', '.join(DEFAULTS)}"
            raise ConfigError(f"{where}: unknown key {key!r} in the section daskspace{near}")


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
    subflow_server : bool
        Whether processes are served that ask for subflows by pySPACE's protocol.
    """

    isolation: str
    process_timeout: float | None
    process_memory: int | None
    policies: Policies
    performance_report: bool = False
    subflow_server: bool = False


def take_options(options: dict[str, Any], default_isolation: str) -> RunOptions:
    """Return the options that are ours, and remove them from `options`.

    Raises
    ------
    ConfigError
        A value cannot be taken, or values exclude each other.
    """
    check_section()
    asked = {name: options.pop(name, None) for name in OWN_OPTIONS}
    if asked["fail_fast"] and asked["max_failures"] is None:
        asked["max_failures"] = 1
    chosen = {name: configured(name) if v is None else v for name, v in asked.items()}
    given = {name: value for name, value in chosen.items() if value is not None}
    timeout = _taken(given, "process_timeout", _seconds, "seconds, such as 60 or '10 minutes'")
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
        bool(given.get("subflow_server", False)),
    )


def _taken(given: dict[str, Any], name: str, take: Callable[[Any], Any], wanted: str) -> Any:
    if name not in given:
        return None
    try:
        return take(given[name])
    except (TypeError, ValueError, KeyError):
        raise ConfigError(
            f"{name} must be {wanted}, not {given[name]!r}{from_(name, given[name])}"
        ) from None


def from_(name: str, value: Any) -> str:
    """Return where a value of our section is from, as the end of a sentence; or nothing."""
    place = source_of(f"daskspace.{_key(name)}").place if configured(name) == value else ""
    return f": see daskspace.{_key(name)}, {place}" if place else ""


def _key(name: Any) -> str:
    return str(name).replace("_", "-")


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
