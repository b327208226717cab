"""Clusters that others started, and cluster classes that nobody here knows."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import dask.config
from dask.utils import parse_timedelta
from distributed import Client, Security, SpecCluster, Worker, WorkerPlugin
from distributed.comm import CommClosedError, resolve_address
from distributed.comm.core import FatalCommClosedError
from distributed.deploy.cluster import Cluster

import daskspace
from daskspace.backends.connection import CLOSE_S, Connection
from daskspace.backends.dask_backend import DaskBackend
from daskspace.backends.worker import Hosts
from daskspace.clusters.interrupts import IgnoreInterrupts
from daskspace.errors import (
    ClusterStartError,
    ConfigError,
    DaskspaceError,
    DirectoryError,
    did_you_mean,
)
from daskspace.execution.commit import attempts_of
from daskspace.execution.travel import patiently

_ANSWER_S = 30.0
_SEEN_S = 10.0
_SECURE = ("tls", "wss", "inproc", "gateway")
_HOST_AND_PORT = re.compile(r"[\w.-]+:\d+")
_ADDRESS = "DASK_SCHEDULER_ADDRESS"
_SHOWN = 3


class AttachedBackend(DaskBackend):
    """Runs the processes on a Dask cluster that is there already, and leaves it as it was.

    The cluster, its workers and a `Client` that was given go on after `close`; nothing of ours is
    registered, kept or left running there. What it lost cannot be started anew: the connection is
    tried again when the scheduler is lost, and otherwise the operation ends, and can be resumed.

    Parameters
    ----------
    target : distributed.Client, cluster, str or Path, optional
        A live client, a live Dask cluster, an address or a scheduler file. Without any, what
        ``DASK_SCHEDULER_ADDRESS`` or ``scheduler-address`` in Dask's config says.
    address : str, optional
        The address of a scheduler, for example ``tcp://host:8786``.
    scheduler_file : str or Path, optional
        The file that ``dask scheduler --scheduler-file`` writes.
    security : distributed.Security, optional
        The keys for a ``tls://`` address; those in Dask's config by default.
    client_kwargs : mapping, optional
        More keywords of `distributed.Client`, for example ``timeout``.
    **options
        Those of `DaskBackend`.

    Raises
    ------
    ConfigError
        It is not said which cluster, or more than once, or it is one for asynchronous use.
    """

    def __init__(
        self,
        target: Any = None,
        *,
        address: str | None = None,
        scheduler_file: str | os.PathLike[str] | None = None,
        security: Security | None = None,
        client_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        named = {
            "target": target,
            "address": address,
            "scheduler_file": scheduler_file,
            "security": security,
            "client_kwargs": client_kwargs,
        }
        given = {name: value for name, value in named.items() if value is not None}
        super().__init__(**given, **options)
        self._target = _one_target(given)
        self._keywords = _client_keywords(client_kwargs)
        if security is not None:
            if not isinstance(self._target, (str, Path)):
                raise ConfigError("security= is for an address or a scheduler file")
            self._keywords["security"] = security
        self._has_warned = False

    def stage_in(self, operation: Any) -> None:
        """Connect to the cluster, and reserve the operation's result directory.

        Raises
        ------
        ClusterStartError
            Nobody answers, or scheduler or workers cannot run operations; the message tells why.
        DirectoryError
            The result directory cannot be used, or not be seen by all workers.
        """
        super().stage_in(operation)
        stage = self._staged()
        try:
            self._greet(Path(stage.directory.path))
        except BaseException:
            stage.revoke()
            self._forget()
            raise
        if self.client is not None and _is_exposed(self.client.scheduler.address):
            self._log(
                f"{self.client.scheduler.address} is without TLS: whoever can reach it over the"
                " network can run code as the user of its workers",
                logging.INFO if self._has_warned else logging.WARNING,
            )
            self._has_warned = True

    def _open_cluster(self) -> Client:
        client = self._find_client()
        self._resources.callback(_take_leave, client)
        _check_fitness(client, self._log)
        self._prepare_workers(client)
        return client

    def _find_client(self) -> Client:
        target = self._target
        if isinstance(target, Client):
            _wait_until_running(target)
            return target
        where = None
        if isinstance(target, Path):
            where, target = target, _address_in(target, _timeout(self._keywords))
        client = _connect(target, self._keywords, where)
        self._resources.callback(_close_client, client)
        return client

    def _reconnect(self) -> Connection:
        connection = self._connection
        if connection is not None and connection.is_alive and not connection.workers:
            raise ClusterStartError(
                "the cluster has no workers, and is not ours to start any; when there are some,"
                " the operation can be resumed"
            )
        return super()._reconnect()

    def _disconnect(self) -> None:
        if self._stage is not None and self._connection is not None and self._connection.is_alive:
            self._log(
                "what still runs on the workers cannot be stopped from here, and goes on",
                logging.WARNING,
            )
        super()._disconnect()

    def _worker_plugins(self) -> list[WorkerPlugin]:
        """Return none: they would stay when we are killed, and keep other workers from starting."""
        return []

    def _prepare_workers(self, client: Client) -> None:
        isolates = self._run_options.isolation != "none"
        patiently(lambda: client.run(_prepare, _terminal(), isolates, on_error="ignore"), _ANSWER_S)

    def _greet(self, directory: Path) -> None:
        """Prepare workers that have come since, and see that all see the result directory."""
        client = self.client
        assert client is not None  # noqa: S101 - it has been there since `stage_in`
        self._prepare_workers(client)
        token = attempts_of(directory) / f"{uuid.uuid4().hex}.token"
        token.touch(mode=0o600)
        until = time.monotonic() + _SEEN_S
        try:
            while blind := _blind_workers(client, token):
                if time.monotonic() > until:
                    break
                time.sleep(0.5)
        finally:
            token.unlink(missing_ok=True)
        if blind:
            raise DirectoryError(
                f"{_listed('worker', blind)} cannot use the result directory {directory}"
                f" ({next(iter(blind.values()))}): give one on a file system that all workers share"
            )

    @classmethod
    def _option_names(cls) -> frozenset[str]:
        named = inspect.signature(AttachedBackend).parameters
        return frozenset(named) - {"options"}


class ClassBackend(DaskBackend):
    """Runs the processes on a cluster of any Dask cluster class, which is closed in the end.

    Parameters
    ----------
    cluster_class : type, callable or str
        The class, a function that returns a cluster, or the name of either: ``package.module:Name``
        or ``package.module.Name``.
    args : sequence
        Positional arguments of the class.
    adapt : mapping, optional
        Keywords of ``cluster.adapt``, which is then called.
    client_kwargs : mapping, optional
        Keywords of `distributed.Client`.
    insecure : bool
        Whether the scheduler may be reached over the network without TLS, without a word.
    **kwargs
        Keywords of the class, untouched, beside those of `DaskBackend`.

    Raises
    ------
    ConfigError
        There is no such class, or it does not take one of the keywords.
    """

    def __init__(
        self,
        cluster_class: Callable[..., Any] | str,
        *,
        args: Sequence[Any] = (),
        adapt: Mapping[str, Any] | None = None,
        client_kwargs: Mapping[str, Any] | None = None,
        insecure: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(cluster_class=cluster_class, **kwargs)
        self._class = _find_class(cluster_class)
        self._args = tuple(args)
        self._kwargs = {k: v for k, v in self.options.items() if k != "cluster_class"}
        self._adapt = adapt
        self._keywords = _client_keywords(client_kwargs)
        self._insecure = insecure
        _refuse_asynchronous(self._kwargs)
        _check_arguments(self._class, self._args, self._kwargs)

    def _open_cluster(self) -> Client:
        name = _name_of(self._class)
        try:
            cluster = self._class(*self._args, **self._kwargs)
        except DaskspaceError:
            raise
        except Exception as error:
            raise ClusterStartError(f"{name} did not start: {_told(error)}") from error
        if not _is_cluster(cluster):
            raise ClusterStartError(f"{name} returned {cluster!r}, which is no Dask cluster")
        self._resources.callback(_close, cluster)
        if self._adapt is not None:
            cluster.adapt(**self._adapt)
        elif isinstance(cluster, SpecCluster) and not cluster.worker_spec:
            raise ClusterStartError(f"{name} starts no workers by itself: give n_workers, or adapt")
        client = _connect(cluster, self._keywords)
        self._resources.callback(_close_client, client)
        if not self._insecure and _is_exposed(cluster.scheduler_address):
            self._log(
                f"{cluster.scheduler_address} is without TLS: whoever can reach it over the network"
                " can run code as this user; give it a security, or insecure=True",
                logging.WARNING,
            )
        _check_fitness(client, self._log)
        return client


def _one_target(given: Mapping[str, Any]) -> Any:
    """Return what to attach to: a client, a cluster, an address, or the path of a file."""
    named = [name for name in ("target", "address", "scheduler_file") if name in given]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)} both say which cluster: leave one of them out")
    target = given[named[0]] if named else None
    if target is None:
        target = dask.config.get("scheduler-address", None) or os.environ.get(_ADDRESS)
        if not target:
            raise ConfigError(
                "which cluster? Give an address, a scheduler file, a client or a cluster, or set"
                f" {_ADDRESS}"
            )
    if "scheduler_file" in given:
        return Path(target)
    if isinstance(target, str) and ("://" in target or _HOST_AND_PORT.fullmatch(target)):
        return target
    if "address" in given or not named:
        raise ConfigError(f"{target!r} is no address, such as tcp://host:8786")
    if isinstance(target, (str, os.PathLike)):
        return Path(target)
    if not isinstance(target, Client) and not _is_cluster(target):
        raise ConfigError(f"{target!r} is no client, cluster, address or scheduler file")
    loop = getattr(target, "_loop_runner", None)
    if getattr(target, "asynchronous", False) or getattr(loop, "_asynchronous", False):
        raise ConfigError(
            f"{target!r} is for asynchronous use, which this is not: give its address, or one made"
            " without asynchronous=True"
        )
    return target


def _client_keywords(given: Mapping[str, Any] | None) -> dict[str, Any]:
    _refuse_asynchronous(given or {})
    known = inspect.signature(Client).parameters
    for name in given or {}:
        if name not in known:
            raise ConfigError(f"Client has no keyword {name!r}{did_you_mean(name, known)}")
    return {"set_as_default": False, **(given or {})}


def _refuse_asynchronous(keywords: Mapping[str, Any]) -> None:
    if keywords.get("asynchronous"):
        raise ConfigError("asynchronous=True cannot be had: a backend waits for its cluster")


def _timeout(keywords: Mapping[str, Any]) -> float:
    configured = dask.config.get("distributed.comm.timeouts.connect")
    return float(parse_timedelta(keywords.get("timeout") or configured))


def _address_in(path: Path, timeout: float) -> str:
    """Return the address in a scheduler file, which may still be written."""
    until = time.monotonic() + timeout
    while True:
        try:
            address = json.loads(path.read_text(encoding="utf-8"))["address"]
            return str(address)
        except FileNotFoundError:
            why = "there is no such file"
        except OSError as error:
            why = str(error)
        except (ValueError, KeyError, TypeError):
            why = "it holds no address"
        if time.monotonic() > until:
            raise ClusterStartError(f"scheduler file {path}: {why}, after {timeout:g} s")
        time.sleep(0.1)


def _connect(target: Any, keywords: Mapping[str, Any], file: Path | None = None) -> Client:
    """Return a client of ours, connected to an address or a cluster."""
    client = Client.__new__(Client)  # so that one which cannot connect can be closed
    try:
        client.__init__(target, **keywords)
        return client
    except Exception as error:
        with contextlib.suppress(Exception):
            client.close(timeout=CLOSE_S)
            client._loop_runner.stop()  # which it does itself only where it was connected
        address = target if isinstance(target, str) else target.scheduler_address
        named = f"{address}, from {file}" if file is not None else address
        raise ClusterStartError(f"{named}: {_explain(address, error)}") from error


def _close_client(client: Client) -> None:
    """Close a client of ours, without the traceback of one whose scheduler is gone."""
    logger = logging.getLogger("distributed.client")
    level = logger.level
    if client.status != "running":
        logger.setLevel(logging.CRITICAL)
    try:
        client.close()
    finally:
        logger.setLevel(level)


def _explain(address: str, error: Exception) -> str:
    """Return why a client could not connect, as far as one can tell."""
    secure = address.startswith(("tls:", "wss:"))
    if isinstance(error, FatalCommClosedError):
        return "its certificate was not made with our keys, so it may be anybody's"
    if secure and isinstance(error, TypeError):
        return "it needs keys: give security, or set distributed.comm.tls in Dask's config"
    if secure and isinstance(error, (ValueError, CommClosedError)):
        return f"it refused our keys, or speaks without TLS ({_told(error)})"
    if isinstance(error, CommClosedError):
        return f"it hung up; if it speaks TLS, its address begins with tls:// ({_told(error)})"
    return f"no scheduler answers ({_told(error)})"


def _told(error: BaseException) -> str:
    """Return what began it."""
    seen = {id(error)}
    while (cause := error.__cause__ or error.__context__) is not None and id(cause) not in seen:
        seen.add(id(cause))
        error = cause
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _wait_until_running(client: Client) -> None:
    """Wait for a client of the user's to be connected, which it tries by itself."""
    until = time.monotonic() + _timeout({})
    while client.status != "running":
        if client.status == "closed" or time.monotonic() > until:
            raise ClusterStartError(f"the client {client!r} is {client.status}")
        time.sleep(0.1)


def _check_fitness(client: Client, log: Callable[[str, int], None]) -> None:
    """Raise if scheduler or workers cannot run operations, and say which and why.

    Versions are asked for first, and by no code of ours, which could not be read by another Python.
    """
    versions = patiently(client.get_versions, _ANSWER_S)
    if versions is None:
        log(f"its workers did not all answer within {_ANSWER_S:g} s: unchecked", logging.WARNING)
        return
    for difference in _differences(versions):
        log(difference, logging.WARNING)
    ask = _question()
    answers = patiently(lambda: client.run(ask, on_error="ignore"), _ANSWER_S) or {}
    _refuse(
        {"scheduler": patiently(lambda: client.run_on_scheduler(ask), _ANSWER_S), **answers},
        lambda answer: isinstance(answer, tuple) and answer != ("", daskspace.__version__),
        lambda answer: answer[0] or f"daskspace {answer[1]}, here it is {daskspace.__version__}",
    )


def _differences(versions: Mapping[str, Any]) -> list[str]:
    """Return what may do harm, and raise what does: another Python cannot read our code."""
    ours = versions["client"]["packages"]
    answers = {"scheduler": versions["scheduler"], **versions["workers"]}
    theirs = {who: told["packages"] for who, told in answers.items() if isinstance(told, dict)}
    here = _minor(ours["python"])
    _refuse(
        {who: _minor(packages["python"]) for who, packages in theirs.items()},
        lambda python: python != here,
        lambda python: f"Python {python}, here it is {here}",
    )
    differences = []
    for name in ("dask", "distributed"):
        others = {who: p.get(name) for who, p in theirs.items() if p.get(name) != ours[name]}
        if others:
            found = ", ".join(sorted({str(version) for version in others.values()}))
            differences.append(f"{name} {found} on {_parties(others)}, here it is {ours[name]}")
    return differences


def _question() -> Callable[[], tuple[str, str]]:
    """Return a function that travels by value, since it is none of a module's."""

    def ask() -> tuple[str, str]:
        try:
            import daskspace.backends.worker
        except ImportError as error:
            return f"{type(error).__name__}: {error}", ""
        return "", daskspace.__version__

    return ask


def _refuse(
    answers: Mapping[str, Any], is_unfit: Callable[[Any], bool], why: Callable[[Any], str]
) -> None:
    unfit = {where: answer for where, answer in answers.items() if is_unfit(answer)}
    if unfit:
        raise ClusterStartError(
            f"{_parties(unfit)} cannot run operations ({why(next(iter(unfit.values())))}):"
            " scheduler and workers need the same Python, Dask and daskspace as this program"
        )


def _parties(which: Mapping[str, Any]) -> str:
    workers = {name: value for name, value in which.items() if name != "scheduler"}
    parties = ["the scheduler"] if "scheduler" in which else []
    return " and ".join([*parties, *([_listed("worker", workers)] if workers else [])])


def _listed(kind: str, names: Mapping[str, Any]) -> str:
    shown = list(names)[:_SHOWN]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{kind}{'s' if len(names) > 1 else ''} {', '.join(shown)}{more}"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _is_exposed(address: str) -> bool:
    """Return whether others can reach an address over the network, and without keys."""
    scheme, _, rest = address.rpartition("://")
    if scheme in _SECURE:
        return False
    try:
        host = resolve_address(f"tcp://{rest}").removeprefix("tcp://").rpartition(":")[0]
        return not ipaddress.ip_address(host.strip("[]")).is_loopback
    except (ValueError, OSError):
        return True


# On the workers


class _PassOver:
    """A signal handler that does nothing, and knows which was there before."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        pass


_surroundings: list[tuple[str, list[str]]] = []
"""Where this worker was, and where it looked for modules, before processes ran in place."""


def _terminal() -> tuple[str, int]:
    """Return what Ctrl-C reaches: a process group on a machine."""
    return socket.gethostname(), os.getpgrp()


def _prepare(terminal: tuple[str, int], isolates: bool, dask_worker: Worker) -> None:
    """Prepare a worker: its hosts begin to start, and Ctrl-C in our terminal passes it over.

    Where our Ctrl-C does not reach it, signals are for whoever started it to use.
    """
    if isolates:
        Hosts().setup(dask_worker)
    elif not _surroundings:
        _surroundings.append((os.getcwd(), list(sys.path)))
    handler = signal.getsignal(signal.SIGINT)
    ignored = isinstance(handler, _PassOver) or IgnoreInterrupts.name in dask_worker.plugins
    if _is_main_thread() and _terminal() == terminal and not ignored:
        signal.signal(signal.SIGINT, _PassOver(handler))


def _restore(dask_worker: Worker) -> None:
    """Undo what `_prepare` and processes in place did."""
    Hosts().teardown(dask_worker)
    while _surroundings:
        directory, sys.path[:] = _surroundings.pop()
        with contextlib.suppress(OSError):
            os.chdir(directory)
    handler = signal.getsignal(signal.SIGINT)
    if isinstance(handler, _PassOver) and _is_main_thread():
        signal.signal(signal.SIGINT, handler.before)


def _is_main_thread() -> bool:
    """Return whether signal handlers can be set; a worker may be a thread of the client."""
    return threading.current_thread() is threading.main_thread()


def _take_leave(client: Client) -> None:
    """Leave the workers as they were, those that answer."""
    if client.status == "running":
        patiently(lambda: client.run(_restore, on_error="ignore"), CLOSE_S)


def _blind_workers(client: Client, token: Path) -> dict[str, str]:
    """Return the workers that do not see a file or cannot write beside it, and why."""
    answers = patiently(lambda: client.run(_look, token, on_error="ignore"), _ANSWER_S) or {}
    return {worker: why for worker, why in answers.items() if why}


def _look(token: Path) -> str:
    try:
        os.stat(token)
        with tempfile.TemporaryFile(dir=token.parent):
            return ""
    except OSError as error:
        return error.strerror or type(error).__name__


# Cluster classes


def _find_class(given: Any) -> Callable[..., Any]:
    if callable(given):
        found: Callable[..., Any] = given
        return found
    module, separator, name = str(given).partition(":")
    if not separator:
        module, separator, name = str(given).rpartition(".")
    if not (module and separator and name):
        raise ConfigError(f"{given!r} is no name of a class, such as package.module:Name")
    if module.partition(".")[0] == "dask_jobqueue":
        import daskspace.clusters.jobqueue  # noqa: F401 - without a trace in the user's home
    try:
        found = importlib.import_module(module)  # type: ignore[assignment]
        for part in name.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ConfigError(f"{given}: {module} cannot be imported: {_told(error)}") from error
    except AttributeError:
        near = did_you_mean(name, dir(importlib.import_module(module)))
        raise ConfigError(f"{module} has no {name!r}{near}") from None
    if not callable(found):
        raise ConfigError(f"{given} is no class or function: {found!r}")
    return found


def _check_arguments(made: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> None:
    """Raise what a call would, as far as the signature tells."""
    try:
        signature = inspect.signature(made)
    except (TypeError, ValueError):
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in () if takes_any else kwargs:
        if name not in signature.parameters:
            near = did_you_mean(name, signature.parameters)
            raise ConfigError(f"{_name_of(made)} has no keyword {name!r}{near}")
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise ConfigError(f"{_name_of(made)}: {error}") from None


def _name_of(made: Callable[..., Any]) -> str:
    return getattr(made, "__qualname__", None) or repr(made)


def _is_cluster(candidate: Any) -> bool:
    """Return whether a `Client` takes it for a cluster; not all have the same base."""
    return isinstance(candidate, Cluster) or hasattr(candidate, "scheduler_address")


def _close(cluster: Any) -> None:
    takes_timeout = "timeout" in inspect.signature(cluster.close).parameters
    cluster.close(**({"timeout": CLOSE_S} if takes_timeout else {}))
