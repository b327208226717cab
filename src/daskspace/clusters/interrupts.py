"""Ctrl-C in a terminal reaches the workers too; it is the client's to handle."""

from __future__ import annotations

import contextlib
import signal

from distributed import Worker, WorkerPlugin


class IgnoreInterrupts(WorkerPlugin):
    """Lets worker processes ignore SIGINT, which would remove them and their nannies for good."""

    name = "daskspace-ignore-interrupts"
    idempotent = True

    def setup(self, worker: Worker) -> None:
        """Ignore SIGINT; a worker that is a thread of the client leaves it alone."""
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGINT, signal.SIG_IGN)
