"""What pySPACE's configuration says to a backend: its options, and what is logged."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from daskspace.errors import ConfigError

if TYPE_CHECKING:
    from daskspace.backends.dask_backend import DaskBackend

_NUMBERS = ("pool_size",)
_HIGHEST_LEVEL = 1000


def options_from(
    configuration: Any, names: Mapping[str, tuple[str, ...]], given: Collection[str] = ()
) -> dict[str, Any]:
    """Return the options of a backend that pySPACE's configuration has.

    Parameters
    ----------
    configuration
        A mapping, or an object with attributes; what is not in `names` is passed over.
    names : mapping of str to tuple of str
        For each setting the name of its option, and those of others that it stands for.
    given : collection of str
        Options that count more.

    Raises
    ------
    ConfigError
        A setting has a value that it cannot take.
    """
    options: dict[str, Any] = {}
    for key, (name, *others) in names.items():
        value = setting(configuration, key)
        if value not in (None, "") and not any(option in given for option in (name, *others)):
            options[name] = _positive(key, value) if key in _NUMBERS else value
    return options


def set_log_levels(backend: DaskBackend, configuration: Any) -> None:
    """Let a backend log what pySPACE's configuration wants to be logged.

    Raises
    ------
    ConfigError
        A level is none.
    """
    for key in ("console_log_level", "file_log_level"):
        value = setting(configuration, key)
        if value not in (None, ""):
            setattr(backend, key, log_level(key, value))


def setting(configuration: Any, key: str) -> Any:
    """Return a setting of pySPACE's configuration, None if it has none of this name."""
    if isinstance(configuration, Mapping) and key in configuration:
        return configuration[key]
    with contextlib.suppress(Exception):  # its `__getattr__` may raise anything
        return getattr(configuration, key, None)
    return None


def log_level(key: str, value: Any) -> int:
    """Return a level as a number that is given as ``logging.INFO``, ``INFO`` or 20.

    Parameters
    ----------
    key : str
        Which setting it is the value of.
    value : str or int
        The level; it is never evaluated.

    Raises
    ------
    ConfigError
        It is none.
    """
    level: Any = value
    if isinstance(value, str):
        text = value.strip().removeprefix("logging.")
        level = int(text) if text.isdecimal() else logging.getLevelNamesMapping().get(text.upper())
    is_number = isinstance(level, int) and not isinstance(level, bool)
    if not (is_number and 0 <= level <= _HIGHEST_LEVEL):
        names = ", ".join(("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"))
        raise ConfigError(
            f"configuration: {key} must be a level such as 'logging.INFO', 'INFO' or 20, not"
            f" {value!r}; known are {names}"
        )
    return int(level)


def _positive(key: str, value: Any) -> int:
    text = str(value).strip()
    if isinstance(value, bool | float) or not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"configuration: {key} must be a whole number of at least 1, not {value!r}"
        )
    return int(text)
