"""`run_batch`: the only function of ours that Dask runs for each batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from daskspace.clusters.walltime import Walltime
from daskspace.execution.attempt import Settings
from daskspace.execution.isolation import (
    carry_out,
    close_idle_hosts,
    nothing_begun,
    start_hosts,
)
from daskspace.execution.travel import Package, Parcel


def run_batch(settings: Settings, package: Package, parcel: Parcel, tape: Path) -> dict[str, Any]:
    """Run a batch on this worker, and never raise; see `carry_out`."""
    worker = get_worker()
    walltime = worker.plugins.get(Walltime.name)
    if walltime and not walltime.allows(settings.process_timeout or parcel.longest):
        return nothing_begun()

    def tell(message: Mapping[str, Any]) -> None:
        worker.log_event(settings.group, {**message, "worker": worker.name})

    began = time.time()
    returned = carry_out(settings, package, parcel, tape, tell)
    return {**returned, "ran": (str(worker.name), began, time.time())}


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
