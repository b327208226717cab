"""Processes -> batches -> futures -> outcomes, through a bounded window."""

from __future__ import annotations

import heapq
import math
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from daskspace.execution.commit import attempts_of, fields_of, retract
from daskspace.execution.identity import describe_process
from daskspace.execution.journal import Journal
from daskspace.execution.outcome import GOOD_STATES, Outcome
from daskspace.execution.past import AGAIN, Known, Past
from daskspace.execution.source import Source
from daskspace.execution.tape import Recording
from daskspace.execution.timeline import Timeline
from daskspace.execution.travel import Batch, Carrier, Event, TravelError

CANCEL = ".cancel"
"""The file in a result directory that asks whoever runs its operation to stop."""
BATCH_BUDGET_S = 0.5
"""How much measured work a batch holds; short enough to watch, long against Dask's 2 ms."""
BUDGET_OF_A_SLOT_S = 0.006
"""How much more it holds for each slot where there are many: a batch costs client and scheduler
some 3 ms, so a thousand workers are kept busy with half of their time."""
_BUDGET_HERE_S = 0.05
"""The same where processes run in this interpreter: what a program that is killed loses."""
LARGEST_BATCH = 2_000
AHEAD_OF_CREATOR = 200
"""How many processes are pulled ahead where a creator keeps few of them: they may be large."""
SMALLEST_BATCH_S = 0.02
"""How much measured work a batch holds at the end, where batches get smaller."""
_GROWTH = 16
_LOOK_EVERY_S = 0.5
_SYNC_EVERY_S = 1.0
_ASK_EVERY_S = 10.0
_STUCK_AFTER = 3
_STOP_S = 8.0
_LOSSES_IN_A_ROW = 10
_LONGEST_PAUSE_S = 8.0
_LATEST = 20


class ClusterLost(Exception):
    """The cluster is gone, or has been without workers for too long."""


class DirectoryLost(Exception):
    """The result directory was deleted or moved while the operation ran."""


@dataclass(frozen=True)
class Policies:
    """When a process is run again, and when an operation ends early.

    Parameters
    ----------
    retries : int
        How often a process that failed, crashed or ran too long is run again.
    lost_retries : int
        How often a process is run again whose worker or host was lost.
    max_failures : int, optional
        The operation ends when so many processes were not done.
    circuit_breaker : int
        It ends when the first so many that ended all failed with the same error and message; 0
        switches that off.
    no_workers_timeout : float
        How long a cluster may be without workers, in seconds.
    """

    retries: int = 0
    lost_retries: int = 2
    max_failures: int | None = None
    circuit_breaker: int = 20
    no_workers_timeout: float = 60.0


class Dispatcher:
    """Carries the processes of one operation to their outcomes.

    One thread runs it, from `run`'s begin to its end; other threads read its counts, and may call
    `drain` and `abort`.

    Parameters
    ----------
    operation
        Its ``processes`` are pulled as slots free up.
    journal : Journal
        Where receipts go.
    slots : callable
        How many processes can run at the same time, just now; 0 when there is no worker, None
        when there is none yet, but some are to come. What it raises ends the operation.
    travels : bool
        Whether processes run on workers. Where they do not, a stream whose later processes may
        depend on what came of earlier ones goes one by one.
    past : Past
        What earlier sessions made of the operation.
    policies : Policies
        When a process is run again, and when to end early.
    isolated : bool
        Whether a worker cannot be lost because of the process that it runs.
    log : callable
        Writes a line to the operation's log.
    """

    def __init__(
        self,
        operation: Any,
        journal: Journal,
        slots: Callable[[], int | None],
        travels: bool,
        past: Past,
        policies: Policies,
        isolated: bool,
        log: Callable[[str], None],
    ) -> None:
        self._arrived: SimpleQueue[Event | None] = SimpleQueue()
        ahead = 4 * LARGEST_BATCH if travels else 0
        if getattr(operation, "create_process", None) is not None:
            ahead = min(ahead, AHEAD_OF_CREATOR)
        self.source = Source(operation, ahead, arrived=lambda: self._arrived.put(None))
        self._journal = journal
        self._count_slots = slots
        self._travels = travels
        self._past = past
        self._policies = policies
        self._isolated = isolated
        self._log = log
        self._slots = 1
        self._has_workers = True
        self._next_look = 0.0
        self._next_sync = time.monotonic() + _SYNC_EVERY_S
        self._waiting: deque[tuple[int, Any]] = deque()
        self._alone: deque[tuple[int, Any]] = deque()
        self._later: list[tuple[float, int, Any]] = []
        self._in_flight: dict[Event, Batch] = {}
        self._replaced: dict[int, Known] = {}
        self._failures: Counter[int] = Counter()
        self._losses: Counter[int] = Counter()
        self._losses_in_a_row = 0
        self._longest = 0.0
        self._size = self._least = 1
        self._drains = False
        self._aborts = False
        self._carrier: Carrier | None = None
        self._without_workers_since: float | None = None
        self._last_arrival = time.monotonic()
        self._next_question = 0.0
        self._times_stuck = 0
        self._samples: deque[tuple[float, int]] = deque(maxlen=20)
        self._alike: list[tuple[Any, Any]] | None = [] if policies.circuit_breaker else None
        self._failed_here = 0
        self.counts: Counter[str] = Counter()
        self.records_told = 0
        self.has_sent = False
        self.first_failure: Outcome | None = None
        self.latest_failures: deque[str] = deque(maxlen=_LATEST)
        self.timeline = Timeline()
        self.reason: str | None = None
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
        return min(self.sent, self._slots) if self._has_workers else 0

    @property
    def ending(self) -> str | None:
        """Why it ends early, and in which way; None while it does not."""
        if self.reason is None:
            return None
        if self._aborts:
            return f"{self.reason}: what runs is stopped"
        return f"{self.reason}: what runs may end; Ctrl-C again stops it"

    @property
    def rate(self) -> float | None:
        """Processes that ended per second, of late."""
        samples = list(self._samples)
        if len(samples) < 2 or samples[-1][0] - samples[0][0] < 0.05:
            return None
        return (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])

    def run(self, carrier: Carrier, deadline: float) -> None:
        """Carry every process to its outcome; `deadline` is on the monotonic clock.

        Raises
        ------
        ClusterLost
            The cluster is gone. It may be called again with a carrier to another one; what was
            with the workers is sent again, after what their tapes tell was recorded.
        DirectoryLost
            The result directory is gone.
        """
        self._samples.append((time.monotonic(), self.ended))
        self._carrier = carrier
        try:
            while not self._finished():
                if time.monotonic() >= deadline:
                    self.abort("the time of the operation was up")
                if self._aborts:
                    break
                if self._drains and not self._has_workers:
                    self._recall(carrier)
                self._fill(carrier)
                if not self._finished():
                    self._receive(carrier, min(self._patience(), deadline - time.monotonic()))
        except ClusterLost:
            for future, batch in list(self._in_flight.items()):
                self._losses_in_a_row = 0  # each of them is to be taken in
                self._in_flight.pop(future)
                self._take_in_lost(carrier, future, batch, "the cluster was lost")
            self._losses_in_a_row = 0
            if self._aborts or self._drains:
                self.give_up()
                return
            raise
        except BaseException as error:
            self.abort(f"the operation ended with {type(error).__name__}")
            self._end_early(carrier)
            raise
        if self.reason is not None:
            self._end_early(carrier)

    def finish(self) -> None:
        """Write the journal's last line; save the journal if its directory is gone."""
        if not self._journal.is_in_place():
            self._journal.rescue()
            self._journal.close()
            return
        error = self.source.error
        self._journal.end(
            time=round(time.time(), 3),
            aborted=self.reason,
            error=f"{type(error).__name__}: {error}"[:1000] if error else None,
        )

    def drain(self, reason: str) -> None:
        """Send no more; what runs may end, and what waits becomes ``cancelled``."""
        self.reason = self.reason or reason
        self._drains = True
        self.source.stop()
        self._arrived.put(None)
        if self._carrier is not None:  # which may be waited for in the thread that runs this
            arguments = {"running": self._aborts}
            threading.Thread(target=self._carrier.stop, kwargs=arguments, daemon=True).start()

    def abort(self, reason: str) -> None:
        """Stop what runs as well; whatever has not ended becomes ``cancelled``."""
        if not self._aborts:
            self._aborts = True
            self.drain(reason)

    def give_up(self) -> None:
        """Record all that has not ended as cancelled."""
        rest = [pair for batch in self._in_flight.values() for pair in batch]
        rest += [*self._alone, *self._waiting, *((n, call) for _, n, call in self._later)]
        rest += self._new_only(self.source.drain())
        self._in_flight.clear()
        self._alone.clear()
        self._waiting.clear()
        self._later.clear()
        for process, call in sorted(rest, key=lambda pair: pair[0]):
            known = self._replaced.pop(process, None)
            if known is not None and known.before is not None:
                self._count_known(known.before)
                continue
            self._record_ended(process, call, "cancelled", {"message": self.reason})

    def _finished(self) -> bool:
        if self._in_flight:
            return False
        left = self._waiting or self._alone or self._later
        return self._drains or (not left and self.source.ended)

    def _patience(self) -> float:
        if not self._later:
            return _LOOK_EVERY_S
        return min(_LOOK_EVERY_S, max(self._later[0][0] - time.monotonic(), 0.01))

    def _fill(self, carrier: Carrier) -> None:
        self._look(carrier)
        while self._later and self._later[0][0] <= time.monotonic():
            _, process, call = heapq.heappop(self._later)
            self._alone.append((process, call))
        window = 2 * self._slots + 1 if self._travels else 1
        while len(self._in_flight) < window and not self._drains:
            batch = self._next_batch()
            if not batch:
                return
            self._send(carrier, batch)

    def _look(self, carrier: Carrier) -> None:
        """See from time to time whether everything is still there."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + 1.0
        slots = self._count_slots()
        self._slots = max(slots or 0, 1)
        self._has_workers = bool(slots)
        if self._travels:
            if not carrier.is_alive():
                raise ClusterLost("its scheduler is gone")
            self._look_for_workers(slots, now)
            self._look_for_stuck(carrier, now)

    def _look_for_workers(self, slots: int | None, now: float) -> None:
        if slots or slots is None:
            self._without_workers_since = None
            return
        self._without_workers_since = self._without_workers_since or now
        waited = now - self._without_workers_since
        if waited >= self._policies.no_workers_timeout:
            raise ClusterLost(f"it has had no worker for {waited:.0f} s")

    def _look_for_stuck(self, carrier: Carrier, now: float) -> None:
        """Find out about futures that never resolve, whatever the reason is."""
        if not self._in_flight or now - self._last_arrival < _ASK_EVERY_S:
            self._times_stuck = 0
        elif now >= self._next_question:
            self._next_question = now + _ASK_EVERY_S
            self._times_stuck = self._times_stuck + 1 if carrier.is_stuck() else 0
            if self._times_stuck >= _STUCK_AFTER:
                raise ClusterLost("its workers and scheduler have forgotten what they were sent")

    def _next_batch(self) -> list[tuple[int, Any]]:
        """Return what to send next; nothing when workers are busy and a batch is not full."""
        if self._alone:
            return [self._alone.popleft()]
        size = self._size
        if self.source.exhausted:
            left = self.source.ready + len(self._waiting)
            size = min(size, max(left // (2 * self._slots), self._least))
        while (missing := size - len(self._waiting)) > 0 and not self.source.ended:
            taken = self.source.take(missing)
            self._waiting.extend(self._new_only(taken))
            if not taken:
                break
        idle = len(self._in_flight) < self._slots
        if not (idle or len(self._waiting) >= size or self.source.exhausted):
            return []
        return [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]

    def _new_only(self, taken: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Return the processes that are to be run, with their numbers in the journal."""
        if self._past.is_empty:
            return taken
        new: list[tuple[int, Any]] = []
        for position, call in taken:
            known = self._past.find(position, call)
            if known.settled is not None:
                self._count_known(known.settled)
                continue
            if known.before is not None or known.directory is not None:
                self._replaced[known.number] = known
            new.append((known.number, call))
        return new

    def _count_known(self, state: str) -> None:
        self.counts["cached" if state in GOOD_STATES else state] += 1

    def _replace(self, process: int, call: Any) -> None:
        """Make room for a process that is run again, or of which something was left over."""
        known = self._replaced.pop(process, None)
        if known is None:
            return
        if known.before is not None:
            fields = describe_process(process, call)
            self._journal.append(Outcome.from_fields({**fields, "state": "waiting"}).to_json())
        if known.directory is not None:
            retract(self._journal.path.parent, known.directory)

    def _send(self, carrier: Carrier, batch: list[tuple[int, Any]]) -> None:
        if self._replaced:
            for process, call in batch:
                self._replace(process, call)
        try:
            future = carrier.submit(batch, self._longest, 2 * self._budget)
        except TravelError as error:
            self._one_by_one(batch, {"error": "TravelError", "message": str(error)})
            return
        self._in_flight[future] = batch
        self.has_sent = True
        future.add_done_callback(self._arrived.put)

    def _recall(self, carrier: Carrier) -> None:
        """Take back what was sent and not begun, when there is no worker that could begin it."""
        for future, batch in list(self._in_flight.items()):
            if carrier.recording(future) is None:
                del self._in_flight[future]
                future.cancel()
                carrier.forget(future)
                self._waiting.extend(batch)

    def _receive(self, carrier: Carrier, patience: float) -> None:
        """Take in everything that has come, waiting up to `patience` seconds for the first."""
        try:
            future = self._arrived.get(timeout=max(patience, 0))
            while True:
                if future is not None:
                    self._take_in(carrier, future)
                future = self._arrived.get_nowait()
        except Empty:
            pass
        if time.monotonic() >= self._next_sync:
            self._sync()

    def _sync(self) -> None:
        if not self._journal.is_in_place():
            self._next_sync = math.inf
            raise DirectoryLost("the result directory was deleted or moved while it ran")
        self._journal.sync()
        if (self._journal.path.parent / CANCEL).exists():
            self.abort("cancelled by `daskspace cancel`")
        self._next_sync = time.monotonic() + _SYNC_EVERY_S

    def _check_directory(self) -> None:
        """Raise what keeps the result directory from being written to, if anything does."""
        if not self._journal.is_in_place():
            self._sync()
        attempts = attempts_of(self._journal.path.parent)
        attempts.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=attempts) as file:
            file.write(b"\n" * 4096)

    def _take_in(self, carrier: Carrier, future: Event) -> None:
        batch = self._in_flight.pop(future, None)
        if batch is None:
            return
        self._last_arrival = time.monotonic()
        try:
            returned = future.result(timeout=0)
        except KeyboardInterrupt:
            self._in_flight[future] = batch
            raise
        except BaseException as error:
            if not carrier.is_alive():
                self._in_flight[future] = batch
                raise ClusterLost("its scheduler is gone") from error
            self._take_in_lost(carrier, future, batch, f"{type(error).__name__}: {error}")
            return
        self.records_told += returned.get("records", 0)
        if "unreadable" in returned:
            carrier.forget(future)
            self._one_by_one(batch, returned["unreadable"])
            return
        ended = sum(returned["states"].values())
        self._longest = max(self._longest, returned["busy"])
        self._take_in_receipts(batch, returned)
        carrier.forget(future)
        if "lost" in returned:
            was_begun, was_opened = returned["begun"] is not None, returned["opened"]
            self._take_in_rest(batch, ended, was_begun, was_opened, returned["lost"])
            return
        self._losses_in_a_row = 0
        self._waiting.extendleft(reversed(batch[ended:]))
        if "ran" in returned and ended:
            worker, start, stop = returned["ran"]
            self.timeline.add(worker, start, stop, returned["states"])
        if ended and (self._travels or self.source.is_independent):
            per_second = ended / max(returned["busy"], 1e-9)
            largest = min(ended * _GROWTH, LARGEST_BATCH)
            self._size = max(1, min(int(self._budget * per_second), largest))
            self._least = max(1, min(int(SMALLEST_BATCH_S * per_second), self._size))

    @property
    def _budget(self) -> float:
        if not self._travels:
            return _BUDGET_HERE_S
        return budget_for(self._slots)

    def _take_in_lost(self, carrier: Carrier, future: Event, batch: Batch, why: str) -> None:
        """Take in what the tape of a batch tells whose worker was lost."""
        recording = carrier.recording(future)
        future.cancel()
        if recording is None:
            carrier.forget(future)
            self._take_in_rest(batch, 0, False, False, why)
            return
        self._take_in_recording(batch, recording)
        carrier.forget(future)
        if recording.begun is not None:  # it takes at least as long as it ran before it was lost
            ran = time.time() - recording.begun.get("start", math.inf)
            self._longest = max(self._longest, ran)
        self._take_in_rest(batch, recording.ended, recording.head is not None, True, why)

    def _take_in_rest(
        self, batch: Batch, ended: int, was_begun: bool, was_opened: bool, why: str
    ) -> None:
        """Send the rest of a lost batch again; only the process that had begun is charged."""
        rest = list(batch[ended:])
        if was_opened and not (ended or was_begun):  # whoever it is that cannot even be loaded
            was_begun = len(batch) == 1
            self._alone.extend(() if was_begun else rest)
            rest = rest if was_begun else []
        self._losses_in_a_row = 0 if ended or was_begun else self._losses_in_a_row + 1
        if self._losses_in_a_row > _LOSSES_IN_A_ROW:
            self._waiting.extendleft(reversed(rest))
            self._check_directory()
            raise ClusterLost(f"nothing can be begun on it: {why}")
        if was_begun and rest:
            (process, call), *rest = rest
            self._charge(process, call, why[:1000])
        pause = min(0.1 * 2**self._losses_in_a_row, _LONGEST_PAUSE_S)
        if self._losses_in_a_row > 1:
            for process, call in rest:
                heapq.heappush(self._later, (time.monotonic() + pause, process, call))
        else:
            self._waiting.extendleft(reversed(rest))

    def _charge(self, process: int, call: Any, why: str) -> None:
        """Run a lost process again, unless that has been tried often enough."""
        self._losses[process] += 1
        times = self._losses[process]
        told = "once" if times == 1 else f"{times} times"
        self._log(f"process {process} was lost {told}: {why}")
        if times <= self._policies.lost_retries:
            self._run_later(process, call, times)
            return
        state = "lost" if self._isolated else "crashed"
        fields = {"error": "Lost", "message": f"its worker was lost {told}: {why}"}
        self._record_ended(process, call, state, fields)

    def _run_later(self, process: int, call: Any, times: int) -> None:
        pause = min(0.5 * 2 ** (times - 1), _LONGEST_PAUSE_S)
        heapq.heappush(self._later, (time.monotonic() + pause, process, call))

    def _one_by_one(self, batch: Batch, fields: Mapping[str, Any]) -> None:
        """Send each process of a batch that could not be had as a whole alone."""
        if len(batch) > 1:
            self._alone.extend(batch)
            return
        process, call = batch[0]
        self._record_ended(process, call, **_split(fields))

    def _record_ended(self, process: int, call: Any, state: str, fields: Mapping[str, Any]) -> None:
        told = {**describe_process(process, call), **fields, "state": state}
        receipt = Outcome.from_fields(told).to_json()
        self._record(receipt, {state: 1}, [receipt])

    def _take_in_recording(self, batch: Batch, recording: Recording) -> None:
        told = {
            "receipts": "\n".join(recording.receipts),
            "states": recording.states,
            "troubles": recording.troubles,
        }
        self._take_in_receipts(batch, told)

    def _take_in_receipts(self, batch: Batch, told: Mapping[str, Any]) -> None:
        """Record what came of a batch, but for what is to be tried again."""
        again = self._tried_again(batch, told["troubles"]) if self._policies.retries else []
        if not again:
            self._record(told["receipts"], told["states"], told["troubles"])
            return
        states = Counter(told["states"])
        states.subtract(fields_of(receipt)["state"] for receipt in again)
        receipts = [line for line in told["receipts"].split("\n") if line not in again]
        troubles = [line for line in told["troubles"] if line not in again]
        self._record("\n".join(receipts), +states, troubles)

    def _tried_again(self, batch: Batch, troubles: list[str]) -> list[str]:
        """Return the receipts that do not count yet; their processes are sent again."""
        calls = dict(batch)
        again = []
        for receipt in troubles:
            fields = fields_of(receipt)
            process, state = fields["process"], fields["state"]
            if state not in ("failed", "crashed", "timeout") or self._drains:
                continue
            self._failures[process] += 1
            times, retries = self._failures[process], self._policies.retries
            if times <= retries:
                why = f"{fields.get('error')}: {fields.get('message')}"[:300]
                self._log(f"process {process} {state}, try {times} of {retries + 1}: {why}")
                if "directory" in fields:
                    retract(self._journal.path.parent, fields["directory"])
                self._run_later(process, calls[process], times)
                again.append(receipt)
        return again

    def _record(self, receipts: str, states: Mapping[str, int], troubles: list[str]) -> None:
        if not receipts:
            return
        self._journal.append(receipts)
        self.counts.update(states)
        self._failed_here += sum(states.get(state, 0) for state in AGAIN)
        if troubles and states.keys() != {"cancelled"}:
            self.latest_failures.extend(troubles[-_LATEST:])
        if troubles and self.first_failure is None:
            first = Outcome.from_json(troubles[0])
            self.first_failure = None if first.state == "cancelled" else first
        if self._alike is not None and not self._trips:
            self._look_for_likeness(receipts)
        if troubles and not self._drains:
            self._end_on_failures()
        now = time.monotonic()
        if now - self._samples[-1][0] > 0.25:
            self._samples.append((now, self.ended))

    def _look_for_likeness(self, receipts: str) -> None:
        """See whether the first processes that end all fail in the same way."""
        for receipt in receipts.split("\n", self._policies.circuit_breaker):
            outcome = Outcome.from_json(receipt.partition("\n")[0])
            failure = (outcome.error, outcome.message)
            alike = self._alike in ([], [failure] * len(self._alike or ()))
            if outcome.state not in ("failed", "crashed") or not alike:
                self._alike = None
                return
            self._alike = [*(self._alike or ()), failure]
            if self._trips:
                return

    @property
    def _trips(self) -> bool:
        return bool(self._alike) and len(self._alike or ()) >= self._policies.circuit_breaker

    def _end_on_failures(self) -> None:
        """Abort when there have been too many failures, or only the same one."""
        most = self._policies.max_failures
        if most is not None and self._failed_here >= most:
            self.abort(f"{self._failed_here} processes failed, and max_failures is {most}")
        elif self._alike and self._trips:
            error, message = self._alike[0]
            self.abort(
                f"the first {len(self._alike)} processes all failed with {error}: {message}"[:500]
                + " (circuit_breaker=0 lets it go on)"
            )

    def _end_early(self, carrier: Carrier) -> None:
        """Wait for what was stopped, give up what does not answer, and record the rest."""
        if self._aborts:
            if not self._has_workers:
                self._recall(carrier)
            until = time.monotonic() + (_STOP_S if self._isolated else _STOP_S / 8)
            while self._in_flight and time.monotonic() < until and carrier.is_alive():
                try:
                    self._receive(carrier, 0.1)
                except ClusterLost:
                    break
        for future, batch in list(self._in_flight.items()):
            self.left_running = self.left_running or not future.done()
            future.cancel()
            recording = carrier.recording(future)
            if recording is not None and "lost" not in recording.states:
                self._take_in_recording(batch, recording)
                self._in_flight[future] = batch[recording.ended :]
        self.give_up()


def budget_for(slots: int) -> float:
    """Return how much measured work a batch holds where so many processes run at a time."""
    return max(BATCH_BUDGET_S, BUDGET_OF_A_SLOT_S * slots)


def _split(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state that fields of an outcome tell, and the others."""
    others = {name: value for name, value in fields.items() if name != "state"}
    return {"state": fields.get("state", "failed"), "fields": others}
