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


@contextlib.contextmanager
def holding(config: Mapping[str, Any]) -> Iterator[None]:
    """Have the configuration hold for a while, over what is there.

    Dask has one configuration for all threads, so one at a time gets its own.
    """
    if not config:
        yield
        return
    with _turn:
        before = dask.config.config
        over = {key: dask.config.merge(_part(before, key), {key: config[key]}) for key in config}
        with setting({key: part[next(iter(part))] for key, part in over.items()}):
            yield


@contextlib.contextmanager
def setting(values: Mapping[str, Any]) -> Iterator[None]:
    """Have values set for a while, as by `dask.config.set`; what imports add meanwhile stays.

    That takes a whole section away again which was not there before.
    """
    known = len(dask.config.defaults)
    try:
        with dask.config.set(values):
            yield
    finally:
        for added in dask.config.defaults[known:]:
            dask.config.update(dask.config.config, added, priority="old")


def register(section: Mapping[str, Any], owner: object) -> str:
    """Return the name of a new section for dask-jobqueue, which goes when its owner goes."""
    name = f"daskspace-{next(_numbers)}"
    put(name, section)
    weakref.finalize(owner, _remove, name)
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


def _part(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    name = dask.config.canonical_name(key, dict(config))
    return {name: config[name]} if name in config else {}


def _remove(name: str) -> None:
    dask.config.config.get("jobqueue", {}).pop(name, None)
