"""Dask configuration that holds for one backend alone."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import dask.config

from daskspace.errors import ConfigError

_NOT_FOR_WORKERS = ("jobqueue", "labextension", "daskspace", "mpi")
_numbers = itertools.count(1)
_turn = threading.RLock()
_MISSING = object()


@contextlib.contextmanager
def holding(config: Mapping[str, Any]) -> Iterator[None]:
    """Have the configuration hold for a while, over what is there.

    Dask has one configuration for all threads, so one at a time gets its own. What imports add to
    it meanwhile stays, which it does not with `dask.config.set`.
    """
    if not config:
        yield
        return
    with _turn:
        held = dict(_leaves(config))
        before = {key: dask.config.get(key, _MISSING) for key in held}
        dask.config.set(held)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is _MISSING:
                    value = _default_of(key)
                if value is _MISSING:
                    _remove(key)
                else:
                    dask.config.set({key: value})


def register(section: Mapping[str, Any], owner: object) -> str:
    """Return the name of a new section for dask-jobqueue, which goes when its owner goes."""
    name = f"daskspace-{next(_numbers)}"
    put(name, section)
    weakref.finalize(owner, _remove, f"jobqueue.{name}")
    return name


def put(name: str, section: Mapping[str, Any]) -> None:
    """Put a section there, again if it is gone."""
    if dask.config.get(f"jobqueue.{name}", None) is None:
        dask.config.set({f"jobqueue.{name}": dict(section)})


def inheritance(config: Mapping[str, Any]) -> str | None:
    """Return the configuration as a variable hands it to programs; None if there is none.

    Raises
    ------
    ConfigError
        A value cannot be handed on.
    """
    told = {key: value for key, value in config.items() if key not in _NOT_FOR_WORKERS}
    if not told:
        return None
    try:
        return str(dask.config.serialize(told))
    except TypeError as error:
        raise ConfigError(
            f"the configuration for workers holds a value of a kind: {error}"
        ) from error


def _leaves(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        key = f"{before}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _default_of(key: str) -> Any:
    """Return what packages have as the default of a key."""
    values = (dask.config.get(key, _MISSING, config=each) for each in dask.config.defaults)
    return next((value for value in values if value is not _MISSING), _MISSING)


def _remove(key: str) -> None:
    *sections, name = key.split(".")
    keys = dask.config.config
    for section in sections:
        keys = keys.get(dask.config.canonical_name(section, keys), {})
    keys.pop(dask.config.canonical_name(name, keys), None)
