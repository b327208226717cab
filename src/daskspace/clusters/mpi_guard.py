"""A Dask preload: a scheduler that nobody cares for any more ends itself, and its MPI job.

It prints nothing: where the launcher is dead, standard output is a broken pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import dask.config
from dask.utils import parse_timedelta
from distributed import Scheduler
from distributed.comm import Comm
from distributed.core import Status

OPERATION = "daskspace_own"
"""What an owner sends over a connection that it keeps open as long as it lives."""
OF_WORKERS = "daskspace-subflows"
"""The name of clients that workers have, which keep nothing alive."""
_LOOK_EVERY_S = 0.5


class _Guard:
    def __init__(self, scheduler: Scheduler, patience: float) -> None:
        self._scheduler = scheduler
        self._patience = patience
        self._owners = 0

    async def own(self, comm: Comm) -> Status:
        """Hold the connection of an owner until it closes."""
        self._owners += 1
        try:
            with contextlib.suppress(OSError):
                while True:
                    await comm.read()
        finally:
            self._owners -= 1
        return Status.dont_reply

    async def watch(self) -> None:
        """Close the scheduler when it was alone for too long."""
        seen = time.monotonic()
        while self._scheduler.status in (Status.init, Status.running):
            await asyncio.sleep(_LOOK_EVERY_S)
            if self._owners or any(map(_is_of_a_user, self._scheduler.clients)):
                seen = time.monotonic()
            elif time.monotonic() - seen > self._patience:
                await self._scheduler.close(reason="nobody is left who wants it")


def _is_of_a_user(client: str) -> bool:
    return client != "fire-and-forget" and OF_WORKERS not in client


def dask_setup(scheduler: Scheduler) -> None:
    """Begin to watch."""
    guard = _Guard(scheduler, parse_timedelta(dask.config.get("mpi.orphan-timeout")))
    scheduler.handlers[OPERATION] = guard.own
    scheduler.daskspace_guard = asyncio.ensure_future(guard.watch())
