"""`run_batch` and `run_subflow`: the functions of ours that Dask runs for batches."""

from __future__ import annotations

import copy
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from distributed import Client, Security, Worker, WorkerPlugin, get_worker

from daskspace.clusters.mpi_guard import OF_WORKERS
from daskspace.clusters.walltime import Walltime
from daskspace.execution.attempt import Settings
from daskspace.execution.isolation import (
    carry_out,
    close_idle_hosts,
    nothing_begun,
    start_hosts,
)
from daskspace.execution.travel import Package, Parcel

_PRIORITY = 10


def run_batch(settings: Settings, package: Package, parcel: Parcel, tape: Path) -> dict[str, Any]:
    """Run a batch on this worker, and never raise; see `carry_out`."""
    return _run(get_worker(), settings, package, parcel, tape)


def run_subflow(
    settings: Settings, package: Package | None, parcel: Parcel, tape: Path
) -> dict[str, Any]:
    """Run a subflow that another worker has offered, as long as anybody wants it."""
    worker = get_worker()
    key = worker.get_current_task()

    def is_wanted() -> bool:
        # Whoever offered it may have ended; Dask itself lets a task go on that nobody wants.
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "executing"

    return _run(worker, settings, package, parcel, tape, is_wanted)


def _run(
    worker: Worker,
    settings: Settings,
    package: Package | None,
    parcel: Parcel,
    tape: Path,
    wanted: Callable[[], bool] = lambda: True,
) -> dict[str, Any]:
    walltime = worker.plugins.get(Walltime.name)
    if walltime and not walltime.allows(settings.process_timeout or parcel.longest):
        return nothing_begun()

    def tell(message: Mapping[str, Any]) -> None:
        worker.log_event(settings.group, {**message, "worker": worker.name})

    began = time.time()
    returned = carry_out(settings, package, parcel, tape, tell, ToOthers(worker), wanted)
    return {**returned, "ran": (str(worker.name), began, time.time())}


class ToOthers:
    """Offers subflows to all workers of the cluster that a worker belongs to."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def count_slots(self) -> int:
        """Return how many processes can run on the cluster at the same time."""
        return sum(_client_of(self._worker).nthreads().values())

    def offer(
        self, settings: Settings, package: Package | None, parcel: Parcel, tape: Path
    ) -> Future[Mapping[str, Any]]:
        """Have a subflow run by the next worker that has time."""
        future: Future[Mapping[str, Any]] = (
            _client_of(self._worker)
            .get_executor(pure=False)
            .submit(
                run_subflow,
                settings,
                package,
                parcel,
                tape,
                key=(f"{settings.group}-subflows", f"{tape.parent.stem[-16:]}-{tape.stem}"),
                priority=_PRIORITY * settings.depth,
            )
        )
        return future


_clients: weakref.WeakKeyDictionary[Worker, Client] = weakref.WeakKeyDictionary()
_opening = threading.Lock()


def _client_of(worker: Worker) -> Client:
    """Return the client of a worker, which is nobody's default client."""
    with _opening:
        client = _clients.get(worker)
        if client is None or client.status != "running":
            client = _clients[worker] = Client(
                worker.scheduler.address,
                loop=worker.loop,
                security=_of_a_client(worker.security),
                set_as_default=False,
                name=OF_WORKERS,
            )
        return client


def _of_a_client(security: Security) -> Security:
    """Return the keys of a worker as those of a client: its command line names no others."""
    own = copy.copy(security)
    own.tls_client_cert = security.tls_client_cert or security.tls_worker_cert
    own.tls_client_key = security.tls_client_key or security.tls_worker_key
    return own


class Hosts(WorkerPlugin):
    """Has the hosts of a worker start with it, before there is a batch to wait for them."""

    name = "daskspace-hosts"
    idempotent = True

    def setup(self, worker: Worker) -> None:
        """Start one host for each thread that runs tasks, in the background."""
        threads = worker.state.nthreads
        threading.Thread(target=start_hosts, args=(threads,), daemon=True).start()

    def teardown(self, worker: Worker) -> None:
        """End them."""
        close_idle_hosts()
        if (client := _clients.pop(worker, None)) is not None:
            worker.loop.add_callback(client._close)
