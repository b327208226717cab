"""Ctrl-C in a terminal reaches the workers too; it is the client's to handle."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading

from distributed import Worker, WorkerPlugin


class IgnoreInterrupts(WorkerPlugin):
    """Lets worker processes pass over SIGINT, which would remove them and their nannies for good.

    Programs that a process starts are not affected.
    """

    name = "daskspace-ignore-interrupts"
    idempotent = True

    def setup(self, worker: Worker) -> None:
        """Pass over SIGINT; a worker that is a thread of the client leaves it alone."""
        # It warns of every task that was running when it is closed, on the user's terminal.
        logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)
        logging.getLogger("distributed.worker").addFilter(_tells_news)
        if threading.current_thread() is threading.main_thread():
            with contextlib.suppress(NotImplementedError):
                worker.loop.asyncio_loop.remove_signal_handler(signal.SIGINT)
            # A handler, unlike SIG_IGN and a mask, is not inherited by the programs it starts.
            signal.signal(signal.SIGINT, lambda *_: None)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            if worker.nanny is not None:  # SIGTERM to the whole group: the nanny ends it in order
                signal.signal(signal.SIGTERM, lambda *_: None)
                signal.set_wakeup_fd(-1)  # nobody listens any more, and its loop may be closed


def _tells_news(record: logging.LogRecord) -> bool:
    """Return False for the traceback of a heartbeat that found the scheduler closed."""
    return "communicate with scheduler during heartbeat" not in str(record.msg)
