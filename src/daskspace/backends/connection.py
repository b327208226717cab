"""What a backend holds of its cluster while it is open."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from types import FrameType
from typing import TYPE_CHECKING, Any

import dask.config

from daskspace.backends.links import Dashboard, find_dashboard
from daskspace.clusters.own_config import setting
from daskspace.errors import ClusterStartError, DaskspaceError
from daskspace.execution.isolation import close_idle_hosts
from daskspace.execution.travel import patiently

if TYPE_CHECKING:
    from distributed import Client, WorkerPlugin
    from distributed.deploy.cluster import Cluster

_ANSWER_S = 5.0
CLOSE_S = 10.0
"""How long the end of anything may take, in seconds."""

_DASK_CONFIG = {
    # The scheduler keeps the last messages to each worker, with the batches in them.
    "distributed.admin.low-level-log-length": 20,
    # Dask sets MALLOC_TRIM_THRESHOLD_, with which glibc maps every array above 128 KiB anew: NumPy
    # takes up to four times as long. With this as well it is as fast as elsewhere.
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 32 * 1024 * 1024,
}
"""Settings of the clusters that we start, where the user has none."""


class Connection:
    """An open cluster, and what turns batches into futures there.

    Parameters
    ----------
    open_cluster : callable
        Returns a Dask cluster, a connected client, or an executor.
    resources : ExitStack
        What `close` closes, last entered first.
    worker_plugins : callable
        Returns the plugins that its workers get.

    Raises
    ------
    ClusterStartError
        The cluster did not come up; the message tells the root cause. Nothing is left over.

    Attributes
    ----------
    executor : concurrent.futures.Executor
        Where batches go.
    client : distributed.Client or None
        None where batches run in this process.
    cluster : distributed cluster or None
        None where there is none, or where it cannot be known.
    workers : int
        The number of workers when `count_slots` was last called.
    dashboard : Dashboard or None
        Where the dashboard is; None where there is none.
    no_page : str
        Why there is no Operation page on it; empty where there is one.
    """

    def __init__(
        self,
        open_cluster: Callable[[], Cluster | Client | Executor],
        resources: contextlib.ExitStack,
        worker_plugins: Callable[[], Iterable[WorkerPlugin]],
    ) -> None:
        self._resources = resources
        self._worker_plugins = worker_plugins
        self.client: Client | None = None
        self.cluster: Cluster | None = None
        self.workers = 0
        self.dashboard: Dashboard | None = None
        self.no_page = ""
        self._slots = 1
        try:
            with setting(_missing_config()), _interrupts_wait(), _any_port():
                opened = open_cluster()
                self.executor = opened if isinstance(opened, Executor) else self._connect(opened)
        except BaseException as error:
            self.close()
            if isinstance(error, DaskspaceError) or not isinstance(error, Exception):
                raise
            raise ClusterStartError(f"the cluster did not start: {_root_cause(error)}") from error

    @property
    def is_alive(self) -> bool:
        """Whether batches can be sent."""
        return self.client is None or self.client.status == "running"

    def count_slots(self) -> int:
        """Return how many processes can run at the same time, just now.

        If the scheduler does not answer soon, it is what it was before.
        """
        if self.client is None:
            return 1
        threads = patiently(self.client.nthreads, _ANSWER_S)
        if threads is not None:
            self.workers, self._slots = len(threads), sum(threads.values())
        return self._slots

    def show(self, group: str, snapshot: str) -> None:
        """Show on the Operation page how far an operation has come."""
        if self.client is not None and not self.no_page and self.is_alive:
            self._call("daskspace_show", group=group, snapshot=snapshot)

    def close(self) -> None:
        """Close what was opened; harmless when repeated."""
        with contextlib.suppress(Exception), _unworried():
            self._resources.close()
        close_idle_hosts()

    def _connect(self, opened: Cluster | Client) -> Executor:
        from distributed import Client

        if isinstance(opened, Client):
            self.client, self.cluster = opened, opened.cluster
        else:
            self._resources.callback(opened.close, timeout=CLOSE_S)
            self.cluster = opened
            self.client = Client(opened, set_as_default=False)
            self._resources.callback(self.client.close)
        for plugin in self._worker_plugins():
            self.client.register_plugin(plugin)
        self._put_page(self.client)
        return self.client.get_executor(pure=False)

    def _put_page(self, client: Client) -> None:
        """Put our page on the dashboard, if the scheduler can do that, and find the dashboard."""
        told = None
        try:
            from daskspace.backends.operation_page import OperationPage

            client.register_plugin(OperationPage())
            told = self._call("daskspace_join")
            self._resources.callback(self._take_page_away)
        except Exception as error:
            self.no_page = _root_cause(error)
        try:
            self.dashboard = find_dashboard(client, told)
        except Exception as error:  # an address of a kind that nobody here knows
            self.no_page = _root_cause(error)

    def _take_page_away(self) -> None:
        if self.is_alive:
            with contextlib.suppress(Exception):
                self._call("daskspace_leave")

    def _call(self, name: str, **arguments: Any) -> Any:
        client = self.client
        assert client is not None  # noqa: S101 - nobody else is called
        call = getattr(client.scheduler, name)
        return client.sync(call, client=client.id, **arguments, callback_timeout=_ANSWER_S)

    def __str__(self) -> str:
        if self.client is None:
            return "this process"
        link = self.dashboard and self.dashboard.link
        return f"{self.cluster or self.client!r}, dashboard {link}" + (
            f", without the Operation page: {self.no_page}" if self.no_page else ""
        )


def _missing_config() -> dict[str, Any]:
    set_by_user = dask.config.collect()
    return {
        key: value
        for key, value in _DASK_CONFIG.items()
        if dask.config.get(key, None, config=set_by_user) is None
    }


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM wait for the cluster: only then can it be closed in order."""
    main = threading.current_thread() is threading.main_thread()
    handlers = ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL))
    before = {n: handler for n, handler in handlers if main and signal.getsignal(n) is handler}
    received = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = True

    try:
        for number in before:
            signal.signal(number, note)
        yield
    except Exception:  # SIGTERM to the whole group ends workers while they start
        if not received:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _any_port() -> Iterator[None]:
    """Take it as it is when the dashboard gets another port than it wants: the link tells."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Port \d+ is already in use")
        yield


@contextlib.contextmanager
def _unworried() -> Iterator[None]:
    """Keep nannies from warning that they kill what was given up."""
    logger = logging.getLogger("distributed.nanny")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _root_cause(error: BaseException) -> str:
    seen = {id(error)}
    while (cause := error.__cause__ or error.__context__) is not None and id(cause) not in seen:
        seen.add(id(cause))
        error = cause
    return f"{type(error).__name__}: {error}"
