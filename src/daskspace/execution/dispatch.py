"""Processes -> batches -> futures -> outcomes, through a bounded window."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from daskspace.execution.attempt import describe_process
from daskspace.execution.journal import Journal
from daskspace.execution.outcome import Outcome
from daskspace.execution.source import Source
from daskspace.execution.travel import Batch, Carrier, TravelError

BATCH_BUDGET_S = 0.25
"""How much measured work a batch holds; short enough to watch, long against Dask's 2 ms."""
LARGEST_BATCH = 2_000
_GROWTH = 16
_LOOK_EVERY_S = 0.5

Event = Future[Mapping[str, Any]] | None


class Dispatcher:
    """Carries the processes of one operation to their outcomes.

    One thread runs it, from `run`'s begin to its end; other threads read its counts, and may call
    `abort`.

    Parameters
    ----------
    operation
        Its ``processes`` are pulled as slots free up.
    journal : Journal
        Where receipts go.
    slots : callable
        How many processes can run at the same time, just now.
    travels : bool
        Whether processes run elsewhere. Where they do not, they go one by one.
    """

    def __init__(
        self, operation: Any, journal: Journal, slots: Callable[[], int], travels: bool
    ) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()
        ahead = 4 * LARGEST_BATCH if travels else 0
        self.source = Source(operation, ahead, arrived=lambda: self._events.put(None))
        self._journal = journal
        self._count_slots = slots
        self._travels = travels
        self._slots = 1
        self._slots_counted = -1.0
        self._waiting: deque[tuple[int, Any]] = deque()
        self._alone: deque[tuple[int, Any]] = deque()
        self._suspects: deque[tuple[int, Any]] = deque()
        self._in_flight: dict[Event, Batch] = {}
        self._with_suspect = False
        self._size = 1
        self._abort_reason: str | None = None
        self._samples: deque[tuple[float, int]] = deque(maxlen=20)
        self.counts: Counter[str] = Counter()
        self.first_failure: Outcome | None = None
        self.interrupted = False
        self.left_running = False

    @property
    def ended(self) -> int:
        """How many processes have ended."""
        return self.counts.total()

    @property
    def sent(self) -> int:
        """How many processes are with the workers."""
        return sum(map(len, list(self._in_flight.values())))

    @property
    def running(self) -> int:
        """How many processes run, as far as can be told from here."""
        return min(self.sent, self._slots)

    @property
    def rate(self) -> float | None:
        """Processes that ended per second, of late."""
        samples = list(self._samples)
        if len(samples) < 2 or samples[-1][0] - samples[0][0] < 0.05:
            return None
        return (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])

    def run(self, carrier: Carrier, deadline: float) -> None:
        """Carry every process to its outcome; `deadline` is on the monotonic clock.

        On any exception, what has not ended is ``cancelled``.
        """
        self._samples.append((time.monotonic(), 0))
        try:
            while not (self._abort_reason or self._finished()):
                if time.monotonic() >= deadline:
                    self.abort("the time of the operation was up")
                    break
                self._fill(carrier)
                if not self._finished():
                    self._receive(min(_LOOK_EVERY_S, deadline - time.monotonic()))
        except BaseException as error:
            self.abort(f"the operation ended with {type(error).__name__}")
            raise
        finally:
            if self._abort_reason:
                self._cancel_rest()

    def finish(self) -> None:
        """Write the journal's last line."""
        error = self.source.error
        self._journal.end(
            time=round(time.time(), 3),
            aborted=self._abort_reason,
            error=f"{type(error).__name__}: {error}"[:1000] if error else None,
        )

    def abort(self, reason: str) -> None:
        """Stop pulling and sending; whatever has not ended becomes ``cancelled``."""
        self._abort_reason = self._abort_reason or reason
        self.source.stop()
        self._events.put(None)

    def _finished(self) -> bool:
        left = self._in_flight or self._waiting or self._alone or self._suspects
        return not left and self.source.ended

    def _fill(self, carrier: Carrier) -> None:
        self._look_at_slots()
        window = 2 * self._slots + 1 if self._travels else 1
        while len(self._in_flight) < window and not self._abort_reason:
            batch = [] if self._with_suspect else self._next_batch()
            if not batch:
                return
            self._send(carrier, batch)

    def _look_at_slots(self) -> None:
        now = time.monotonic()
        if now - self._slots_counted > 1.0:
            self._slots = max(self._count_slots(), 1)
            self._slots_counted = now

    def _next_batch(self) -> list[tuple[int, Any]]:
        """Return what to send next; nothing when workers are busy and a batch is not full."""
        if self._suspects:
            if self._in_flight:
                return []
            self._with_suspect = True
            return [self._suspects.popleft()]
        if self._alone:
            return [self._alone.popleft()]
        size = self._size
        if self.source.exhausted:
            left = self.source.ready + len(self._waiting)
            size = min(size, max(left // (2 * self._slots), 1))
        missing = size - len(self._waiting)
        if missing > 0 and not self.source.ended:
            self._waiting.extend(self.source.take(missing))
        idle = len(self._in_flight) < self._slots
        if not (idle or len(self._waiting) >= size or self.source.exhausted):
            return []
        return [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]

    def _send(self, carrier: Carrier, batch: list[tuple[int, Any]]) -> None:
        try:
            future = carrier.submit(batch)
        except TravelError as error:
            self._with_suspect = False
            self._one_by_one(batch, "failed", {"error": "TravelError", "message": str(error)})
            return
        self._in_flight[future] = batch
        future.add_done_callback(self._events.put)

    def _receive(self, patience: float) -> None:
        """Take in everything that has come, waiting up to `patience` seconds for the first."""
        try:
            event = self._events.get(timeout=max(patience, 0))
            while True:
                if event is not None:
                    self._take_in(event)
                event = self._events.get_nowait()
        except Empty:
            pass

    def _take_in(self, future: Future[Mapping[str, Any]]) -> None:
        batch = self._in_flight.pop(future, None)
        if batch is None:
            return
        was_suspect, self._with_suspect = self._with_suspect, False
        try:
            returned = future.result(timeout=0)
        except KeyboardInterrupt:
            self._in_flight[future] = batch
            raise
        except BaseException as error:
            self._take_in_lost(batch, error, was_suspect)
            return
        if "unreadable" in returned:
            self._one_by_one(batch, "failed", returned["unreadable"])
            return
        begun = sum(returned["states"].values())
        self._waiting.extendleft(reversed(batch[begun:]))
        self._record(returned["receipts"], returned["states"], returned["troubles"])
        if self._travels:
            fitting = int(BATCH_BUDGET_S * begun / max(returned["busy"], 1e-9))
            self._size = max(1, min(fitting, begun * _GROWTH, LARGEST_BATCH))
        if returned["interrupted"]:
            self.interrupted = True
            raise KeyboardInterrupt

    def _take_in_lost(self, batch: Batch, error: BaseException, was_suspect: bool) -> None:
        """Find out who killed the worker: all who were on it are sent again, in the end alone."""
        died = type(error).__name__ == "KilledWorker"
        if died and len(batch) == 1 and not was_suspect:
            self._suspects.extend(batch)
            return
        message = "it took its worker down, alone" if died else str(error)[:1000]
        fields = {"error": type(error).__name__, "message": message}
        self._one_by_one(batch, "crashed" if died else "lost", fields)

    def _one_by_one(self, batch: Batch, state: str, fields: Mapping[str, Any]) -> None:
        """Send each process of a batch that got lost as a whole alone, to find the culprit."""
        if len(batch) > 1:
            self._alone.extend(batch)
        else:
            self._record_ended(batch, state, fields)

    def _record_ended(self, batch: Batch, state: str, fields: Mapping[str, Any]) -> None:
        receipts = [
            Outcome(state=state, **describe_process(process, call), **fields).to_json()
            for process, call in batch
        ]
        self._record("\n".join(receipts), {state: len(batch)}, receipts)

    def _record(self, receipts: str, states: Mapping[str, int], troubles: list[str]) -> None:
        self._journal.append(receipts)
        self.counts.update(states)
        if troubles and self.first_failure is None:
            first = Outcome.from_json(troubles[0])
            self.first_failure = None if first.state == "cancelled" else first
        now = time.monotonic()
        if now - self._samples[-1][0] > 0.25:
            self._samples.append((now, self.ended))

    def _cancel_rest(self) -> None:
        """Give up what is with the workers, and record it with what waits as cancelled."""
        self._receive(0)
        rest: list[tuple[int, Any]] = []
        for future, batch in self._in_flight.items():
            if future is not None:
                self.left_running = self.left_running or not future.done()
                future.cancel()
            rest += batch
        self._in_flight.clear()
        rest += [*self._suspects, *self._alone, *self._waiting, *self.source.drain()]
        self._suspects.clear()
        self._alone.clear()
        self._waiting.clear()
        for process in sorted(rest, key=lambda pair: pair[0]):
            self._record_ended([process], "cancelled", {"message": self._abort_reason})
