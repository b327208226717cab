"""The progress of an operation: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO, cast

from daskspace.cli.show import STATE_STYLES, console_on, reason, told
from daskspace.execution.outcome import STATES, Outcome
from daskspace.execution.status import Status, seconds

if TYPE_CHECKING:
    from rich.console import Console

_LOOK_EVERY_S = 0.1
_LINE_EVERY_S = 10.0
_LATEST_S = 2.0
_BAR_WIDTH = 30
_ERASE = "\r\x1b[2K"


class Watched(Protocol):
    """What can tell how far an operation has come: a backend, or a result directory."""

    @property
    def operation_link(self) -> str | None: ...  # noqa: D102

    @property
    def dashboard_link(self) -> str | None: ...  # noqa: D102

    @property
    def tunnel(self) -> str | None: ...  # noqa: D102

    def check_status(self) -> Status: ...  # noqa: D102


class Progress:
    """Shows how far an operation has come while the `with` block runs.

    Parameters
    ----------
    backend : Watched
        Asked for its status ten times a second.
    quiet : bool
        Show nothing.
    link_told : bool
        Whether the link to the dashboard was shown before.
    """

    def __init__(self, backend: Watched, quiet: bool = False, *, link_told: bool = False) -> None:
        self._backend = backend
        self._quiet = quiet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._console = console_on(sys.stderr)
        self._bar: _Bar | None = None
        self._failure_told = False
        self._link_told = link_told
        self._ending_told = ""
        self._next_line = time.monotonic() + _LATEST_S

    def __enter__(self) -> Self:
        if not self._quiet:
            if self._console.is_terminal:
                self._bar = _Bar(self._console, lambda: self._backend.check_status().ended)
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
            self._bar.close()

    def _watch(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            self._look()
        self._look()

    def _look(self) -> None:
        status = self._backend.check_status()
        if self._bar is not None and self._bar.is_away(status):
            return
        link = self._backend.operation_link or self._backend.dashboard_link
        if link and not self._link_told:
            self._link_told = True
            self.tell(f"dashboard  {link}")
            if tunnel := self._backend.tunnel:
                self.tell(f"  from your own machine: {tunnel}")
        if status.first_failure is not None:
            self.tell_failure(status.first_failure)
        if status.ending and status.ending != self._ending_told and not status.complete:
            self._ending_told = status.ending
            self.tell(status.ending, style="yellow")
        if not status.counts:
            return
        if self._bar is not None:
            self._bar.draw(status)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + _LINE_EVERY_S
            self.tell(str(status))

    def tell_failure(self, first: Outcome) -> None:
        """Say what failed first, unless it was said, or it is quiet."""
        if self._quiet or self._failure_told or first.state == "cancelled":
            return
        self._failure_told = True
        self.tell(f"first failure: {told(first)}", style="red")
        self.tell(f"  {reason(first)}")
        if first.where:
            self.tell(f"  {first.where}")

    def tell(self, line: str, style: str | None = None) -> None:
        """Print a line, above the bar."""
        if self._bar is not None:
            self._bar.erase()
        self._console.print(line, style=style, soft_wrap=True)


class _Bar:
    """The last line of the terminal; it steps aside for whatever else is printed.

    Where processes run in this interpreter they may ask something, or a debugger may: after text
    that ends no line the bar stays away until another process has ended.
    """

    def __init__(self, console: Console, count_ended: Callable[[], int]) -> None:
        self._console = console
        self._count_ended = count_ended
        self._lock = threading.RLock()
        self._text = ""
        self._line_is_open = False
        self._asked_after: int | None = None
        self._stdout, self._stderr = sys.stdout, sys.stderr
        sys.stdout = cast(TextIO, _Aside(sys.stdout, self))
        sys.stderr = cast(TextIO, _Aside(sys.stderr, self))

    def draw(self, status: Status) -> None:
        """Draw it if something has changed."""
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        text = _summary(status)
        with self._lock:
            if text == self._text:
                return
            self.erase()
            self._text = text
            words = Text.from_markup(f" {text}")
            words.truncate(max(self._console.width - _BAR_WIDTH - 1, 0), overflow="ellipsis")
            with self._console:
                self._console.print(ProgressBar(status.total or 1, status.ended, _BAR_WIDTH))
                self._console.print(words, end="\r", soft_wrap=True)

    def erase(self) -> None:
        """Let the cursor be at the begin of an empty line."""
        with self._lock:
            if self._line_is_open or self._text:
                self._console.file.write("\n" if self._line_is_open else _ERASE)
                self._console.file.flush()
            self._text, self._line_is_open = "", False

    def step_aside(self, line_is_open: bool | None) -> None:
        """Make room for text of others, None for a prompt that is to come."""
        with self._lock:
            if self._text:
                self.erase()
            self._asked_after = None if line_is_open is False else self._count_ended()
            self._line_is_open = self._line_is_open if line_is_open is None else line_is_open

    def is_away(self, status: Status) -> bool:
        """Return whether it has to stay away."""
        with self._lock:
            return self._asked_after == status.ended and not status.complete

    def close(self) -> None:
        """Erase it, and give the terminal back."""
        sys.stdout, sys.stderr = self._stdout, self._stderr
        self.erase()


class _Aside:
    """Stands in for `sys.stdout` or `sys.stderr` while there is a bar."""

    def __init__(self, file: TextIO, bar: _Bar) -> None:
        self._file = file
        self._bar = bar

    def write(self, text: str) -> int:
        if text:
            self._bar.step_aside(line_is_open=not text.endswith("\n"))
        return self._file.write(text)

    def flush(self) -> None:
        self._bar.step_aside(line_is_open=None)
        self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _summary(status: Status) -> str:
    from rich.markup import escape

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
    if status.jobs is not None:
        parts.append(escape(status.jobs.describe(status.workers)))
    return "  ".join(parts)
