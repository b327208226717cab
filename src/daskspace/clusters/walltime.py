"""Workers that leave before the time limit of their batch job ends them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time

import psutil
from distributed import Worker, WorkerPlugin
from distributed.core import Status
from tornado.ioloop import PeriodicCallback

from daskspace.execution.isolation import JOB_START

_LOOK_EVERY_S = 1.0
_FETCH_S = 10.0
_SMALLEST_MARGIN_S, _LARGEST_MARGIN_S, _MARGIN = 5.0, 60.0, 0.05


def margin(walltime: float) -> float:
    """Return how many seconds before a time limit a worker has to be gone.

    A twentieth of the limit, but no less than 5 and no more than 60 seconds.
    """
    return min(max(_SMALLEST_MARGIN_S, _MARGIN * walltime), _LARGEST_MARGIN_S)


class Walltime(WorkerPlugin):
    """Lets a worker begin only what can end in time, and retire when nothing more can.

    Dask's ``--lifetime`` knows no run times: it lets a worker begin an hour's work in the last
    minute. This one retires when what is left is shorter than a process takes, and a little earlier
    at random, so that the workers of jobs that began together do not leave together.

    Parameters
    ----------
    walltime : float
        The time limit of the worker's batch job, in seconds from the job's begin.
    """

    name = "daskspace-walltime"
    idempotent = True

    def __init__(self, walltime: float) -> None:
        self._walltime = walltime
        self._need = 0.0
        self._is_fresh = True

    def setup(self, worker: Worker) -> None:
        """Find out when the job began, and look from then on every second."""
        began = os.environ.get(JOB_START)
        start = float(began) if began else psutil.Process(os.getppid()).create_time()
        self._worker = worker
        self._end = start + self._walltime - margin(self._walltime)
        self._leaves_at = self._end - random.random() * margin(self._walltime)  # noqa: S311
        self._callback = PeriodicCallback(self._look, _LOOK_EVERY_S * 1000)
        worker.loop.add_callback(self._callback.start)

    def teardown(self, worker: Worker) -> None:
        """Look no more."""
        self._callback.stop()

    def allows(self, need: float) -> bool:
        """Return whether something that takes `need` seconds may begin; if not, retire.

        A worker that has begun nothing yet may begin anything: no other has more time.
        """
        self._need = need
        if self._may_begin():
            self._is_fresh = False
            return True
        self._worker.loop.add_callback(self._look)
        until = time.monotonic() + 2 * _LOOK_EVERY_S
        while self._worker.status == Status.running and time.monotonic() < until:
            time.sleep(0.01)  # else it would be sent here again
        return False

    def _may_begin(self) -> bool:
        now = time.time()
        if self._is_fresh:
            return now < self._end
        return now + self._need < self._end and now < self._leaves_at

    def _look(self) -> None:
        if not self._may_begin() and self._worker.status == Status.running:
            self._callback.stop()
            # The scheduler sends nothing more; what runs goes on.
            self._worker.status = Status.closing_gracefully
            self._worker.loop.add_callback(self._retire)

    async def _retire(self) -> None:
        """Close the worker when what runs has ended and was fetched."""
        worker = self._worker
        while worker.state.executing_count:
            await asyncio.sleep(0.05)
        until = time.monotonic() + _FETCH_S
        while worker.data and time.monotonic() < until:
            await asyncio.sleep(0.05)
        with contextlib.suppress(OSError):
            await worker.scheduler.retire_workers(
                workers=[worker.address],
                close_workers=False,
                remove=True,
                stimulus_id=f"walltime-{time.time()}",
            )
        await worker.close(reason="the time limit of its batch job is near")
