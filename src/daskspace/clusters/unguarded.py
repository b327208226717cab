"""Local workers for programs without an ``if __name__ == "__main__":`` guard."""

from __future__ import annotations

import contextlib
import multiprocessing.resource_tracker
import multiprocessing.spawn
import signal
import threading
from collections.abc import Iterator
from typing import Any

from distributed import Nanny
from distributed.core import Status

_NAME = "Dask Worker process"
_lock = threading.Lock()
_starting = 0
_prepare = multiprocessing.spawn.get_preparation_data


class UnguardedNanny(Nanny):
    """A nanny whose worker does not import the user's main program again.

    A spawned process imports the main program of its parent, to find what is defined there. That
    starts the program a second time where it has no guard, and fails for standard input and
    notebooks. Dask does not need it: cloudpickle sends what is defined there by value.
    """

    async def instantiate(self) -> Status:
        """Start the worker process."""
        if threading.current_thread() is not threading.main_thread():
            # Inherited: Ctrl-C is the client's to handle, also while a worker still imports Dask.
            multiprocessing.resource_tracker.ensure_running()  # its start would unblock it
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with _without_main():
            return await super().instantiate()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    global _starting
    with _lock:
        _starting += 1
        multiprocessing.spawn.get_preparation_data = _prepare_worker
    try:
        yield
    finally:
        with _lock:
            _starting -= 1
            if not _starting:
                multiprocessing.spawn.get_preparation_data = _prepare


def _prepare_worker(name: str) -> dict[str, Any]:
    """Return what a spawned process is told; if it is a worker, nothing of the main program."""
    data = _prepare(name)
    if name.startswith(_NAME):
        data = {key: value for key, value in data.items() if not key.startswith("init_main")}
    return data
