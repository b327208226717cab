"""Tells those who watch an operation how far it has come."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daskspace.results.directory import replace_text

_FIRST_S = 0.2
_EVERY_S = 1.0
_AT_LEAST_EVERY_S = 5.0
_END_S = 2.0


class Reporter:
    """A thread that reports once a second, if there is something new, until an operation ends.

    Parameters
    ----------
    take : callable
        Returns the snapshot that the file gets, and what the dashboard gets beyond it.
    file : Path
        It holds the latest snapshot.
    show : callable
        Gives a snapshot, as JSON in ASCII, to the dashboard. What it raises is said once.
    ended : threading.Event
        Set when the operation has ended; the last report tells how.
    log : callable
        Writes a line to the operation's log.
    """

    def __init__(
        self,
        take: Callable[[], tuple[dict[str, Any], dict[str, Any]]],
        file: Path,
        show: Callable[[str], None],
        ended: threading.Event,
        log: Callable[[str], None],
    ) -> None:
        self._take = take
        self._file = file
        self._show = show
        self._ended = ended
        self._log = log
        self._last: Any = None
        self._next = 0.0
        self._has_complained = False
        self._thread = threading.Thread(target=self._keep, name="daskspace-reporter", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait a moment for the last report."""
        self._thread.join(_END_S)

    def _keep(self) -> None:
        ended = self._ended.wait(_FIRST_S)
        while not ended:
            self._report(False)
            ended = self._ended.wait(_EVERY_S)
        self._report(True)

    def _report(self, is_last: bool) -> None:
        try:
            snapshot, more = self._take()
            new = {**snapshot, **more}
            if new == self._last and time.monotonic() < self._next and not is_last:
                return
            self._last, self._next = new, time.monotonic() + _AT_LEAST_EVERY_S
            if not is_last:  # what has ended is told by the journal
                with contextlib.suppress(OSError):
                    replace_text(self._file, json.dumps({**snapshot, "time": time.time()}))
            self._show(json.dumps({**new, "time": time.time()}))
        except Exception as error:
            if not self._has_complained:
                self._has_complained = True
                self._log(f"nobody can be told how far it is: {type(error).__name__}: {error}")
