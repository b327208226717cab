"""The processes of an operation, pulled lazily and never waited for longer than told."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from daskspace.execution.creator import drained, is_queue

_LOOK_EVERY_S = 0.2


class Source:
    """Hands out processes with their positions.

    Parameters
    ----------
    operation
        Anything with ``processes``: an iterable, an iterator, or a queue that ends with False.
        Where it has a ``create_process`` that fills the queue, its end is noticed.
    ahead : int
        How many processes a thread pulls ahead, so that one slow to come delays no other. With 0
        there is no thread: `take` pulls, and waits for as long as it takes.
    arrived : callable
        Called, in the thread, when a process arrives or the end is reached after `take` found
        nothing.

    Attributes
    ----------
    is_independent : bool
        Whether processes can be pulled before anything is known of those before them.
    """

    def __init__(
        self, operation: Any, ahead: int = 0, arrived: Callable[[], None] = lambda: None
    ) -> None:
        self.is_independent = isinstance(operation.processes, Sequence) or bool(
            getattr(operation, "independent", False)
        )
        self._iterator = _iterate(operation, lambda: self._stopped)
        self._ahead = ahead
        self._arrived = arrived
        self._pulled: deque[Any] = deque()
        self._wanted = threading.Event()
        self._room = threading.Event()
        self._finished = False
        self._stopped = False
        self._next_position = 0
        self.error: BaseException | None = None
        if ahead:
            threading.Thread(target=self._pull, name="daskspace-source", daemon=True).start()

    @property
    def ready(self) -> int:
        """How many processes can be taken without waiting; with no thread, 0."""
        return len(self._pulled)

    @property
    def ended(self) -> bool:
        """Whether no process is left to take: the stream came to its end, or was stopped."""
        return self._stopped or (self._finished and not self._pulled)

    @property
    def exhausted(self) -> bool:
        """Whether no more than `ready` processes will come."""
        return self._stopped or self._finished

    @property
    def complete(self) -> bool:
        """Whether the stream came to its own end, so that its length is known."""
        return self._finished

    @property
    def taken(self) -> int:
        """How many processes have been taken."""
        return self._next_position

    def take(self, most: int) -> list[tuple[int, Any]]:
        """Return up to `most` processes with their positions; with a thread it never waits."""
        taken: list[tuple[int, Any]] = []
        while len(taken) < most and not self._stopped:
            if not self._ahead and not self._finished:
                self._pull_one()
            try:
                process = self._pulled.popleft()
            except IndexError:
                break
            taken.append((self._next_position, process))
            self._next_position += 1
        if self._ahead:
            if len(self._pulled) <= self._ahead // 2:
                self._room.set()
            if not taken:
                self._wanted.set()
                if self._pulled or self._finished:
                    self._notify()
        return taken

    def stop(self) -> None:
        """Pull no more; what was pulled ahead and not taken is left to `drain`."""
        self._stopped = True
        self._room.set()

    def drain(self) -> list[tuple[int, Any]]:
        """Return what was pulled ahead and not taken before `stop`."""
        first = self._next_position
        self._next_position += len(self._pulled)
        return [(first + n, self._pulled.popleft()) for n in range(len(self._pulled))]

    def _pull_one(self) -> None:
        try:
            self._pulled.append(next(self._iterator))
        except StopIteration:
            self._finished = True
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and not self._ahead:
                raise
            self.error = error
            self._finished = True

    def _pull(self) -> None:
        while not (self._finished or self._stopped):
            self._pull_one()
            if self._wanted.is_set():
                self._notify()
            while len(self._pulled) >= self._ahead and not self._stopped:
                self._room.clear()
                if len(self._pulled) >= self._ahead:
                    self._room.wait(_LOOK_EVERY_S)
        with contextlib.suppress(Exception):
            if self._stopped and hasattr(self._iterator, "close"):
                self._iterator.close()

    def _notify(self) -> None:
        self._wanted.clear()
        self._arrived()


def _iterate(operation: Any, stopped: Callable[[], bool]) -> Iterator[Any]:
    if is_queue(operation.processes):
        return drained(operation, stopped)
    return iter(operation.processes)
