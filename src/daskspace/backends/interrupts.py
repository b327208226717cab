"""What Ctrl-C and SIGTERM do while an operation runs."""

from __future__ import annotations

import bdb
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from daskspace.execution.attempt import interrupt

EXIT_CODE = 130


class Interrupts:
    """Ends an operation in three steps: let running processes end, stop them, leave.

    SIGTERM goes to the second step at once. While a debugger has the word, Ctrl-C is for the
    debugger; outside of the main thread, and where the program has handlers of its own, nothing
    is changed.

    Parameters
    ----------
    drain, abort : callable
        Called for the first and the second step, with the reason.

    Attributes
    ----------
    steps : int
        How far it has come.
    """

    def __init__(self, drain: Callable[[str], None], abort: Callable[[str], None]) -> None:
        self._drain = drain
        self._abort = abort
        self._is_installed = False
        self._time_is_up = False
        self.steps = 0

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Handle the signals; may be entered again within."""
        main = threading.current_thread() is threading.main_thread()
        if not main or self._is_installed:
            yield
            return
        before = {
            number: handler
            for number, handler in (
                (signal.SIGINT, signal.default_int_handler),
                (signal.SIGTERM, signal.SIG_DFL),
            )
            if signal.getsignal(number) is handler
        }
        self._is_installed = True
        try:
            for number in before:
                signal.signal(number, self._handle)
            yield
        finally:
            self._is_installed = False
            for number, handler in before.items():
                signal.signal(number, handler)

    def regain(self) -> None:
        """Take Ctrl-C back from a debugger that was left: pdb keeps a handler of its own."""
        holder = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        if self._is_installed and isinstance(holder, bdb.Bdb) and sys.gettrace() is None:
            signal.signal(signal.SIGINT, self._handle)

    def stop_main_thread(self) -> None:
        """Stop the process that runs in the main thread, from another thread."""
        if self._is_installed:
            self._time_is_up = True
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def check(self) -> None:
        """Raise KeyboardInterrupt, once, if a signal has ended the operation."""
        if self.steps:
            self.steps = 0
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._time_is_up:
            self._time_is_up = False
            interrupt.stop()
            return
        if number == signal.SIGINT and _debugger_has_the_word(frame):
            signal.default_int_handler(number, frame)
        self.steps = max(self.steps + 1, 2 if number == signal.SIGTERM else 1)
        if self.steps == 1:
            self._drain("interrupted")
        elif self.steps == 2:
            self._abort("interrupted")
            interrupt.stop()
        else:
            os._exit(EXIT_CODE)  # the workers, and what runs there, end when this process does


def _debugger_has_the_word(frame: FrameType | None) -> bool:
    """Return whether a debugger asks for a command, or steps through the code."""
    if isinstance(getattr(sys.gettrace(), "__self__", None), bdb.Bdb):
        return True
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), bdb.Bdb):
            return True
        frame = frame.f_back
    return False
