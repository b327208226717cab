"""How a process of pySPACE's own kind is called: prepared, one at a time, and cleared up after."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from logging.handlers import SocketHandler
from typing import TYPE_CHECKING, Any

import cloudpickle

if TYPE_CHECKING:
    from daskspace.execution.preparation import Preparation

_ACCEPT_S = 5.0
one_at_a_time = threading.RLock()
"""Held while such a process runs: what it changes belongs to the whole interpreter."""


def is_original(call: Any) -> bool:
    """Return whether a process wants to be prepared before it is called."""
    kind: Any = type(call)
    return _has_prepare(kind)


@functools.lru_cache(256)  # asked for each process, and types are slow to say no
def _has_prepare(kind: type) -> bool:
    return hasattr(kind, "prepare")


def holds_originals(batch: Iterable[tuple[int, Any]]) -> bool:
    """Return whether any process of a batch wants to be prepared."""
    return any(is_original(call) for _, call in batch)


def fresh(call: Any) -> Any:
    """Return a copy of a process that may be callable only once, itself if it has none."""
    try:
        return cloudpickle.loads(cloudpickle.dumps(call))
    except Exception:
        return call


def call_original(process: Any, preparation: Preparation) -> Any:
    """Prepare a process and call it; what it changed in this interpreter is as before then.

    The process itself calls its ``pre_benchmarking`` and ``post_benchmarking``. Only when it
    raises, so that it may not have come to the latter, that is called here.
    """
    with one_at_a_time, _as_before(), _looked_at(preparation.records_to):
        call_with(process.prepare, preparation.arguments())
        try:
            return process()
        except BaseException:
            with contextlib.suppress(Exception):
                process.post_benchmarking()
            raise


def call_with(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """Call a function with those of `values` that it takes.

    They are passed by their names; to a function that has other names for them, by their order, as
    many as it takes.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return function(*values.values())
    ordered = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    kinds = {p.kind for p in parameters}
    takes_any_number = inspect.Parameter.VAR_POSITIONAL in kinds
    takes_any_name = inspect.Parameter.VAR_KEYWORD in kinds
    needed = [p.name for p in parameters if p.default is p.empty and "VAR" not in p.kind.name]
    goes_by_name = ordered[0].name in values if ordered else not takes_any_number
    if goes_by_name and all(name in values and name in named for name in needed):
        names = values if takes_any_name else [name for name in named if name in values]
        return function(**{name: values[name] for name in names})
    most = None if takes_any_number else len(ordered)
    return function(*list(values.values())[:most])


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Give back what belongs to all that runs in this interpreter."""
    here, environment = os.getcwd(), dict(os.environ)
    path, entries = sys.path, list(sys.path)
    handlers = {id(handler) for logger in _loggers() for handler in logger.handlers}
    try:
        yield
    finally:
        sys.path = path
        path[:] = entries
        with contextlib.suppress(OSError):
            os.chdir(here)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        for name, value in environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        for logger in _loggers():
            for handler in list(logger.handlers):
                if id(handler) not in handlers and not isinstance(handler, logging.NullHandler):
                    logger.removeHandler(handler)
                    with contextlib.suppress(Exception):
                        handler.close()


def _loggers() -> list[logging.Logger]:
    known = list(logging.Logger.manager.loggerDict.values())
    return [logging.getLogger(), *(one for one in known if isinstance(one, logging.Logger))]


@contextlib.contextmanager
def _looked_at(address: tuple[str, int] | None) -> Iterator[None]:
    """Have connections to the receiver of log records used only once it has looked at them.

    Of one that is closed before, nobody can tell any more whose it was. The receiver says that it
    has looked by ending its own direction, which no handler reads.
    """
    if address is None:
        yield
        return
    make = SocketHandler.makeSocket

    def make_and_wait(self: SocketHandler, timeout: float = 1) -> socket.socket:
        made = make(self, timeout)
        if (self.host, self.port) == address:
            before = made.gettimeout()
            with contextlib.suppress(OSError):
                made.settimeout(_ACCEPT_S)
                made.recv(1)
            made.settimeout(before)
        return made

    SocketHandler.makeSocket = make_and_wait  # type: ignore[method-assign]
    try:
        yield
    finally:
        SocketHandler.makeSocket = make  # type: ignore[method-assign]
