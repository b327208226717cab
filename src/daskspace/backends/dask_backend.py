"""The lifecycle of every backend, written once; one hook says how its cluster is opened."""

from __future__ import annotations

import atexit
import contextlib
import functools
import html
import logging
import math
import os
import sys
import threading
import time
import weakref
from abc import abstractmethod
from concurrent.futures import Executor
from typing import TYPE_CHECKING, ClassVar, TypeVar

from daskspace.backends.base import LONG_S, Backend
from daskspace.backends.connection import CLOSE_S, Connection
from daskspace.backends.options import OWN_OPTIONS, take_options
from daskspace.backends.stage import Stage
from daskspace.clusters.own_config import holding
from daskspace.errors import (
    ConfigError,
    ConsolidateError,
    DirectoryError,
    LifecycleError,
    OperationError,
    RetrieveTimeout,
    SpecError,
    did_you_mean,
)
from daskspace.execution import record_receiver
from daskspace.execution.creator import hold
from daskspace.execution.preparation import Preparation
from daskspace.execution.status import Status
from daskspace.execution.travel import Shared
from daskspace.operations.chain import Chain

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from distributed import Client, WorkerPlugin
    from distributed.deploy.cluster import Cluster

    from daskspace.clusters.dialects import Recipe

_O = TypeVar("_O")


class DaskBackend(Backend):
    """Runs one operation at a time on a Dask cluster.

    A subclass says how its cluster is opened, in `_open_cluster`, and nothing else. The cluster is
    opened by the first `stage_in` and stays warm until `close`.

    Parameters
    ----------
    isolation : str
        Where user code runs: ``process``, in a child that is kept while it is healthy; ``fresh``,
        in a child of its own for each process; ``none``, in place.
    process_timeout : float or str, optional
        Seconds after which a process is stopped; its state is then ``timeout``.
    process_memory : int or str, optional
        Bytes, or a text such as ``2 GB``. A process that uses more is stopped: ``crashed``.
    retries : int
        How often a process that failed, crashed or ran too long is run again; 0 by default.
    lost_retries : int
        How often a process is run again whose worker was lost; 2 by default.
    max_failures : int, optional
        The operation ends when so many processes were not done.
    fail_fast : bool
        Short for ``max_failures=1``.
    circuit_breaker : int
        It ends when the first so many processes, 20 by default, all failed with the same error
        and message; 0 switches that off.
    no_workers_timeout : float or str
        How long the cluster may be without workers, in seconds; 60 by default.
    performance_report : bool
        Whether Dask's performance report is saved as ``performance-report.html`` in the result
        directory, however the operation ends; it is there after `cleanup`.
    subflow_server : bool
        Whether processes of pySPACE's own kind are served that ask for subflows by its protocol:
        programs of this user can then have code run by it.
    **options
        What the subclass needs to open its cluster.

    Attributes
    ----------
    options : dict
        Those for the cluster, as given.
    recipe : Recipe or None
        What `create_backend` made it from.
    given : mapping or None
        What was given to `create_backend`, if another program can give the same again.
    configuration
        pySPACE's configuration, which its own processes are prepared with.
    SERVER_IP, SERVER_PORT
        None: where processes ask for subflows, they are told by ``prepare``.

    Raises
    ------
    ConfigError
        An option is unknown, or has a value that it cannot take.
    """

    default_isolation: ClassVar[str] = "process"
    option_hints: ClassVar[Mapping[str, str]] = {}
    recipe: Recipe | None = None
    given: Mapping[str, Any] | None = None
    configuration_options: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    configuration: Any = None
    SERVER_IP: str | None = None
    SERVER_PORT: int | None = None

    def __init__(self, **options: Any) -> None:
        self._resources = contextlib.ExitStack()
        self._connection: Connection | None = None
        self._stage: Stage | None = None
        super().__init__()
        self._run_options = take_options(options, self.default_isolation)
        self.options = options
        self._check_options()

    @abstractmethod
    def _open_cluster(self) -> Cluster | Client | Executor:
        """Open and return the cluster: a Dask cluster, a connected client, or an executor.

        The backend closes a cluster. A client it leaves as it is: put on ``self._resources``, an
        `contextlib.ExitStack`, whatever else is to be closed. An executor runs batches in this
        process.
        """

    @classmethod
    def _option_names(cls) -> frozenset[str] | None:
        """Return the options that there are, or None where only the cluster can tell."""
        return None

    @property
    def cluster(self) -> Cluster | None:
        """The open cluster; None before `stage_in`, and where there is none."""
        return self._connection.cluster if self._connection else None

    @property
    def client(self) -> Client | None:
        """The client of the open cluster; None before `stage_in`, and where there is none."""
        return self._connection.client if self._connection else None

    @property
    def dashboard_link(self) -> str | None:
        """The address of Dask's dashboard; None before `stage_in`, and where there is none."""
        dashboard = self._connection.dashboard if self._connection else None
        return dashboard.link if dashboard else None

    @property
    def operation_link(self) -> str | None:
        """The address of our page on Dask's dashboard, that of the operation; None without it."""
        connection = self._connection
        if connection is None or connection.dashboard is None or connection.no_page:
            return None
        return connection.dashboard.operation_link

    @property
    def tunnel(self) -> str | None:
        """The command that brings the dashboard to the user's own machine, if it needs one."""
        dashboard = self._connection.dashboard if self._connection else None
        return dashboard.tunnel() if dashboard else None

    @property
    def host(self) -> str | None:
        """Where log records of processes are received in this program; None while nowhere."""
        address = record_receiver.address()
        return address and address[0]

    @property
    def port(self) -> int | None:
        """The port that belongs to `host`."""
        address = record_receiver.address()
        return address and address[1]

    def reset_queue(self) -> None:
        """Do nothing: pySPACE's programs call it where processes of before could be left."""

    def stage_in(self, operation: Any) -> None:
        """Open the cluster if it is not open, and reserve the operation's result directory.

        Raises
        ------
        ClusterStartError
            The cluster did not come up; the message tells the root cause.
        DirectoryError
            The result directory cannot be used.
        """
        if isinstance(operation, Chain):
            raise SpecError("a chain of operations is run as a whole: run(chain)")
        hold(operation)
        with self._step("stage_in"), contextlib.ExitStack() as undo:
            connection = self._connect(undo)
            facts = {
                "backend": str(self),
                "options": {k: repr(v) for k, v in self.options.items()},
                "isolation": self._run_options.isolation,
                "given": self.given,
            }
            stage = Stage(operation, facts, self._run_options, self._log, self._log_sent)
            undo.callback(stage.revoke)
            undo.callback(self._forget)
            self._stage, self.current_operation = stage, operation
            self._start_logging()
            self._log(f"staged {operation!r} on {connection}")
            if self.recipe is not None:
                self._log(f"backend: {self.recipe.describe()}")
                for remark in self.recipe.remarks:
                    self._log(remark)
            for level, remark in stage.remarks:
                self._log(remark, level)
            undo.pop_all()

    def execute(self, timeout: float | None = LONG_S) -> None:
        """Execute all processes of the staged operation.

        Without workers this is where they run. With workers it returns once the work has begun,
        and a thread carries the operation to its end without another call.

        Raises
        ------
        SpecError
            The function or the data sets cannot be sent to workers; the state is unchanged.
        KeyboardInterrupt
            Ctrl-C or SIGTERM, where the processes run here: see `run`. What has not ended is
            ``cancelled``; `retrieve` and `consolidate` may be called.
        """
        self._check_step("execute")
        stage, connection = self._staged(), self._connection
        assert connection is not None  # noqa: S101 - it has been there since `stage_in`
        stage.preparation = self._preparation(stage.is_original)
        carrier = stage.make_carrier(connection)
        self.state = "executing"
        self._log("executing")
        deadline = time.monotonic() + _finite(timeout)
        stage.report(self.check_status, lambda: self._connection)
        stage.execute(connection, carrier, deadline, self._count_slots, self._reconnect)

    def check_status(self) -> Status:
        """Return how far the operation has come; see `Status`."""
        workers = self._connection.workers if self._connection else 0
        if self._stage is None:
            return Status(self.state, workers=workers)
        return self._stage.status(self.state, workers)

    def retrieve(self, timeout: float | None = LONG_S) -> None:
        """Wait until all processes have ended.

        Raises
        ------
        RetrieveTimeout
            Processes still run after `timeout` seconds; it may be called again.
        OperationError
            The operation's processes could not all be had, for example because its generator
            raised, or the disk was full. What ended is kept, the state is retrieved, and
            `consolidate` may be called.
        """
        with self._step("retrieve"):
            stage = self._staged()
            if not stage.wait(_finite(timeout)):
                status = self.check_status()
                total = "?" if status.total is None else status.total
                raise RetrieveTimeout(
                    f"{status.ended} of {total} processes have ended after {timeout} s;"
                    " retrieve() may be called again"
                )
        self._log(str(self.check_status()))
        try:
            stage.check()
        except OperationError as error:
            self._log(str(error))
            raise

    def consolidate(self) -> None:
        """Write the table, then run the operation's own consolidate step.

        Raises
        ------
        ConsolidateError
            That step raised. The table is kept, the state is retrieved, and it may be called
            again.
        DirectoryError
            The table could not be written; it may be called again.
        """
        with self._step("consolidate"):
            stage = self._staged()
            stage.write_table()
            try:
                stage.consolidate()
            except Exception as error:
                self._log(f"the consolidate step raised {error!r}")
                raise ConsolidateError(
                    f"the operation's consolidate step raised {type(error).__name__}: {error};"
                    f" the table is in {stage.directory.table}"
                ) from error
            self._log("consolidated")

    def cleanup(self) -> None:
        """Let go of the current operation; what still runs is given up. The cluster stays warm.

        Only where processes were given up while they ran, the cluster is closed, for nothing else
        stops what a Dask worker runs; the next `stage_in` opens a new one.
        """
        if self._stage is not None:
            if self._stage.release():
                self._disconnect()
            self._log("cleaned up")
        self._forget()

    def run(
        self,
        operation: _O,
        timeout: float | None = None,
        *,
        performance_report: bool | None = None,
    ) -> _O:
        """Take an operation through all steps and return it.

        Never raises because processes failed: see ``operation.rows()``.

        Parameters
        ----------
        operation
            The operation, or a chain of them: see `daskspace.chain`.
        timeout : float or None
            After this many seconds what has not ended is ``cancelled``; by default there is no
            limit.
        performance_report : bool, optional
            As the option of that name, for this operation.

        Raises
        ------
        DaskspaceError
            What the steps raise, after cleaning up.
        KeyboardInterrupt
            Ctrl-C, once the processes that ran have ended; a second Ctrl-C, or SIGTERM, stops
            them; a third ends the program at once, with exit code 130. The table holds what has
            ended; what waited for a worker is ``cancelled``, and what was not pulled yet has no
            row. The operation can be resumed.
        """
        self._check_step("stage_in")
        if isinstance(operation, Chain):
            from daskspace.backends.chains import run_chain

            run_chain(operation, self, timeout, performance_report=performance_report)
            return operation
        try:
            self.stage_in(operation)
            if performance_report is not None:
                self._staged().wants_performance_report = performance_report
            try:
                self.execute(timeout)
                self.retrieve(None)
            except (KeyboardInterrupt, OperationError):
                self._wind_up()
                raise
            self.consolidate()
        finally:
            self.cleanup()
        return operation

    def close(self) -> None:
        """Clean up and give the cluster back; harmless when repeated."""
        self.cleanup()
        self._disconnect()

    def _wind_up(self) -> None:
        """Make a table of what has ended when an operation ends early."""
        stage = self._staged()
        if self.state == "executing":
            stage.abort("interrupted")
            with contextlib.suppress(KeyboardInterrupt):
                if stage.wait(CLOSE_S):
                    self.state = "retrieved"
        if self.state == "retrieved":
            self._log(f"ended early; {self.check_status()}")
            with contextlib.suppress(ConsolidateError, DirectoryError):
                self.consolidate()

    def _preparation(self, is_original: bool) -> Preparation:
        """Return what processes of pySPACE's own kind are prepared with."""
        held = self.configuration
        if held is None and is_original:  # where pySPACE's own backends took it from
            held = getattr(sys.modules.get("pySPACE"), "configuration", None)
        level = logging.INFO if self.file_log_level is None else self.file_log_level
        return Preparation(None if held is None else Shared(held), log_level=level)

    def _forget(self) -> None:
        self._stop_logging()
        self._stage = self.current_operation = None
        self.state = "idling"

    def _connect(self, undo: contextlib.ExitStack) -> Connection:
        if self._connection is not None and not self._connection.is_alive:
            self._disconnect()
        if self._connection is None:
            self._connection = self._open_connection()
            undo.callback(self._disconnect)
            _connected.add(self)
            _register_close()
        return self._connection

    def _reconnect(self) -> Connection:
        """Open the cluster anew after it was lost."""
        self._disconnect()
        self._connection = self._open_connection()
        return self._connection

    def _open_connection(self) -> Connection:
        with holding(self.recipe.config if self.recipe else {}):
            return Connection(self._open_cluster, self._resources, self._worker_plugins)

    def _worker_plugins(self) -> list[WorkerPlugin]:
        """Return the plugins that the workers of the cluster get."""
        from daskspace.backends.worker import Hosts
        from daskspace.clusters.interrupts import IgnoreInterrupts

        isolates = self._run_options.isolation != "none"
        return [IgnoreInterrupts(), *([Hosts()] if isolates else [])]

    def _count_slots(self) -> int | None:
        """Return how many processes can run just now; see `Dispatcher`."""
        return self._connection.count_slots() if self._connection else 0

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _staged(self) -> Stage:
        if self._stage is None:
            raise LifecycleError("no operation staged: call stage_in(operation) first")
        return self._stage

    def _check_options(self) -> None:
        known = self._option_names() if self.options else None
        for name in self.options if known is not None else ():
            if known is not None and name not in known:
                all_known = {*known, *OWN_OPTIONS}
                near = (
                    self.option_hints.get(name)
                    or did_you_mean(name, all_known)
                    or f"; known are {', '.join(sorted(all_known))}"
                )
                raise ConfigError(f"{self} has no option {name!r}{near}")

    def _repr_html_(self) -> str:
        shown = html.escape(str(self.check_status()))
        links = {"operation": self.operation_link, "dashboard": self.dashboard_link}
        more = "".join(
            f', <a href="{html.escape(link)}" target="_blank">{name}</a>'
            for name, link in links.items()
            if link
        )
        if tunnel := self.tunnel:
            more += f"<br>from your own machine: <code>{html.escape(tunnel)}</code>"
        return f"<p><b>{self}</b>: {shown}{more}</p>"

    def __repr__(self) -> str:
        return f"<{self}: {self.check_status()}>"


_connected: weakref.WeakSet[DaskBackend] = weakref.WeakSet()
os.register_at_fork(after_in_child=_connected.clear)  # a fork must not close what is its parent's


def _close_connected() -> None:
    """Close what a program left open at its end, before Python takes Dask's threads away."""
    for backend in list(_connected):
        status = backend.check_status()
        if backend.state == "executing" and not status.complete:
            logging.getLogger("daskspace").warning(
                "the program ended while its operation was running (%s): retrieve() waits for its"
                " end; the results are in %s",
                status,
                backend.get_result_directory(),
            )
        backend.close()


@functools.cache
def _register_close() -> None:
    """Have `_close_connected` called at the program's end.

    `atexit` comes too late: the thread pools that Dask uses end before it, and end last what was
    registered first; so this is called when they are there.
    """
    getattr(threading, "_register_atexit", atexit.register)(_close_connected)


def _finite(timeout: float | None) -> float:
    longest = threading.TIMEOUT_MAX / 2
    return longest if timeout is None or math.isinf(timeout) else min(timeout, longest)
