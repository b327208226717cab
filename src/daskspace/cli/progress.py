"""The progress of an operation: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from daskspace.cli.show import STATE_STYLES, console, reason, told
from daskspace.execution.outcome import STATES
from daskspace.execution.status import Status, seconds

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

    from daskspace.backends.dask_backend import DaskBackend

_LOOK_EVERY_S = 0.1
_LINE_EVERY_S = 10.0
_LATEST_S = 2.0


class Progress:
    """Shows how far a backend's operation has come while the `with` block runs.

    Parameters
    ----------
    backend : DaskBackend
        Asked for its status ten times a second.
    quiet : bool
        Show nothing.
    """

    def __init__(self, backend: DaskBackend, quiet: bool = False) -> None:
        self._backend = backend
        self._quiet = quiet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._console = console(stderr=True)
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._shown = ""
        self._failure_told = False
        self._link_told = False
        self._next_line = time.monotonic() + _LATEST_S

    def __enter__(self) -> Self:
        if not self._quiet:
            if self._console.is_terminal:
                self._start_bar()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_LATEST_S)
        if self._bar is not None:
            self._bar.stop()

    def _start_bar(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        # Drawn only when something has changed, so that it leaves a debugger's prompt alone.
        self._bar = Progress(
            BarColumn(bar_width=30),
            TextColumn("{task.description}", markup=True),
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            self._look()
        self._look()

    def _look(self) -> None:
        status = self._backend.check_status()
        link = self._backend.dashboard_link
        if link and not self._link_told:
            self._console.print(f"dashboard  {link}", soft_wrap=True)
            self._link_told = True
        if status.first_failure is not None and not self._failure_told:
            self._failure_told = True
            first = status.first_failure
            self._console.print(f"first failure: {told(first)}", style="red", soft_wrap=True)
            self._console.print(f"  {reason(first)}", soft_wrap=True)
            if first.where:
                self._console.print(f"  {first.where}", soft_wrap=True)
        if not status.counts:
            return
        if self._bar is not None and self._task is not None:
            self._draw(self._bar, self._task, status)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY_S
            self._console.print(str(status), soft_wrap=True)

    def _draw(self, bar: Bar, task: TaskID, status: Status) -> None:
        text = _summary(status)
        if text != self._shown:
            self._shown = text
            bar.update(task, description=text, completed=status.ended, total=status.total)
            bar.refresh()


def _summary(status: Status) -> str:
    parts = [f"{status.ended}/{'?' if status.total is None else status.total}"]
    for state in STATES:
        number = status.counts.get(state)
        if number and state not in ("waiting", "done"):
            style = STATE_STYLES.get(state, "cyan" if state == "running" else "red")
            parts.append(f"[{style}]{number} {state}[/]")
    if status.rate:
        parts.append(f"{status.rate:.3g}/s")
    if status.eta is not None:
        parts.append(f"ETA {seconds(status.eta)}")
    return "  ".join(parts)
