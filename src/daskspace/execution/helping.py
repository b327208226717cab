"""Whoever waits for a process runs the subflows that it asks for, with those who have time."""

from __future__ import annotations

import contextlib
import json
import pickle
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

from daskspace.execution.attempt import Settings
from daskspace.execution.commit import discard
from daskspace.execution.identity import Identity
from daskspace.execution.subflows import Subflow, directory_of, write_outcomes
from daskspace.execution.tape import SUFFIX, read_tape
from daskspace.execution.travel import Package, Parcel

_TRIES = 3
_FAILED_OFFERS = 3
_LOOK_EVERY_S = 0.5
_LOOK_AROUND_EVERY_S = 2.0
_CLOSE_S = 10.0


class Offers(Protocol):
    """A cluster that subflows can be offered to."""

    def count_slots(self) -> int:
        """Return how many processes can run there at the same time."""

    def offer(
        self, settings: Settings, package: Package | None, parcel: Parcel, tape: Path
    ) -> Future[Mapping[str, Any]]:
        """Have a batch run by whoever has time, unless its tape exists by then."""


Run = Callable[..., dict[str, Any]]
"""`carry_out`."""


class Round:
    """The subflows of one call, from its begin until all have ended.

    Each is a batch of its own. A few of them are offered to the cluster, and the thread that runs
    this takes those that nobody has begun: it never waits but for what others run at that moment,
    so there is always progress, however many processes wait for their subflows. Whose attempt made
    the tape runs the batch.

    Parameters
    ----------
    directory : Path
        Where the tapes are.
    count : int
        How many there are.
    make : callable
        Returns one of them as a process, from its number and the name of the attempt.
    run : callable
        Runs a batch here: `carry_out`, with `tell` and `offers` filled in.
    settings : Settings
        What they have in common.
    package : Package, optional
        The operation's shared values.
    offers : Offers, optional
        The cluster.
    """

    def __init__(
        self,
        directory: Path,
        count: int,
        make: Callable[[int, str], Any],
        run: Run,
        settings: Settings,
        package: Package | None,
        offers: Offers | None,
    ) -> None:
        self._directory = directory
        self._count = count
        self._make = make
        self._run = run
        self._settings = settings
        self._package = package
        self._offers = offers
        self._window = 0
        self._next_look = 0.0
        self._own: int | None = None
        self._waiting = deque(range(count))
        self._offered: dict[int, Future[Mapping[str, Any]]] = {}
        self._elsewhere: set[int] = set()
        self._arrived: SimpleQueue[tuple[int, Future[Mapping[str, Any]]]] = SimpleQueue()
        self._tries: Counter[int] = Counter()
        self._failed_offers = 0
        self._cancelled = threading.Event()
        self.outcomes: dict[int, dict[str, Any]] = {}

    def cancel(self) -> None:
        """Stop what runs, and begin no more; from any thread."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether it was stopped before all had ended, or the operation was."""
        return self._cancelled.is_set()

    def run(self) -> list[dict[str, Any]]:
        """Run them all, and return the fields of their outcomes."""
        try:
            while len(self.outcomes) < self._count and not self._cancelled.is_set():
                self._offer()
                has_run = self._run_one()
                self._take_in(0.0 if has_run else _LOOK_EVERY_S)
        finally:
            for future in self._offered.values():
                _let_go(future)
        stopped = {"state": "cancelled", "message": "it was stopped"}
        return [self.outcomes.get(number, stopped) for number in range(self._count)]

    def _look_around(self, offers: Offers) -> None:
        """See from time to time how many workers there are: some may be on their way."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_AROUND_EVERY_S
        with contextlib.suppress(Exception):
            slots = offers.count_slots()
            self._window = 2 * slots if slots > 1 else 0

    def _offer(self) -> None:
        """Offer some of what nobody has, and leave the last one to this thread if it is idle."""
        left = 1 if self._own is None else 0
        if self._offers and len(self._waiting) > left:
            self._look_around(self._offers)
        while self._offers and len(self._waiting) > left and len(self._offered) < self._window:
            number = self._waiting.popleft()
            try:
                future = self._offers.offer(self._settings, self._package, *self._batch(number))
            except Exception:
                self._waiting.appendleft(number)
                self._offers = None
                return
            self._offered[number] = future
            future.add_done_callback(lambda f, n=number: self._arrived.put((n, f)))  # type: ignore[misc]

    def _run_one(self) -> bool:
        """Run one that nobody has begun; return whether there was one that may be."""
        if self._waiting:
            number = self._waiting.pop()
        else:
            left = [n for n in reversed(self._offered) if n not in self._elsewhere]
            if not left:
                return False
            number = left[0]
        self._own = number
        returned = self._run(
            self._settings, self._package, *self._batch(number), wanted=self._go_on
        )
        self._own = None
        if "taken" in returned and number in self._offered:
            self._elsewhere.add(number)
            return True
        if (future := self._offered.pop(number, None)) is not None:
            _let_go(future)
        self._settle(number, returned)
        return True

    def _take_in(self, patience: float) -> None:
        """Take in what came of offers, waiting up to `patience` seconds for the first."""
        with contextlib.suppress(Empty):
            number, future = self._arrived.get(timeout=patience)
            while True:
                if self._offered.get(number) is future:
                    del self._offered[number]
                    self._elsewhere.discard(number)
                    if number != self._own:
                        self._take(number, future)
                number, future = self._arrived.get_nowait()

    def _take(self, number: int, future: Future[Mapping[str, Any]]) -> None:
        try:
            returned = future.result(timeout=0)
        except BaseException as error:  # its worker was lost, or there is no scheduler any more
            returned = self._left_over(number, f"{type(error).__name__}: {error}"[:1000])
        self._settle(number, returned)

    def _left_over(self, number: int, why: str) -> dict[str, Any]:
        """Return what the tape of one tells that did not come back."""
        try:
            recording = read_tape(self._batch(number)[1])
        except OSError:
            return {"receipts": ""}  # nobody has begun it
        if recording.receipts and "cancelled" not in recording.states:
            return {"receipts": recording.receipts[0]}
        return {"receipts": "", "lost": f"its worker was lost: {why}"}

    def _settle(self, number: int, returned: Mapping[str, Any]) -> None:
        """Note what became of one, or have it tried again."""
        name = self._name(number)
        if "unreadable" in returned:
            self.outcomes[number] = {"state": "failed", **returned["unreadable"]}
        elif returned["receipts"]:
            self.outcomes[number] = {**json.loads(returned["receipts"]), "name": name}
        elif "stopped" in returned:
            self._cancelled.set()
        elif "lost" not in returned and number not in self._tries:
            self._failed_offers += 1  # nothing was begun: that worker's time is nearly up
            if self._failed_offers >= _FAILED_OFFERS:
                self._offers = None
            self._tries[number] += 1
            self._waiting.append(number)
        else:
            self._tries[number] += 1
            why = returned.get("lost", "nobody could begin it")
            if self._tries[number] < _TRIES:
                self._waiting.append(number)
            else:
                times = self._tries[number]
                text = f"whoever ran it was lost {times} times: {why}"
                self.outcomes[number] = {"state": "lost", "error": "Lost", "message": text}

    def _go_on(self) -> bool:
        """Keep the others busy while one runs here; return whether it may go on."""
        self._take_in(0.0)
        self._offer()
        return not self._cancelled.is_set()

    def _name(self, number: int) -> str:
        return f"{number}-{self._tries[number]}"

    def _batch(self, number: int) -> tuple[Parcel, Path]:
        """Return the batch of one, and its tape: a new one for each try."""
        name = self._name(number)
        content = pickle.dumps([(number, self._make(number, name))])
        return Parcel(1, content), self._directory / f"{name}{SUFFIX}"


def _let_go(future: Future[Mapping[str, Any]]) -> None:
    with contextlib.suppress(Exception):
        future.cancel()


class Helping:
    """Runs the subflows that the processes of a batch ask for, while they wait.

    Parameters
    ----------
    settings : Settings
        Those of the batch.
    package : Package, optional
        The operation's shared values.
    run : callable
        `carry_out`.
    tell : callable
        As in `carry_out`.
    offers : Offers, optional
        The cluster.
    answer : callable
        Tells the host that all subflows of a number have ended.
    """

    def __init__(
        self,
        settings: Settings,
        package: Package | None,
        run: Run,
        tell: Callable[[Mapping[str, Any]], object],
        offers: Offers | None,
        answer: Callable[[int], object],
    ) -> None:
        self._settings = settings
        self._package = package
        self._offers = offers
        self._answer = answer
        self._run: Run = partial(run, tell=tell, offers=offers)
        self._rounds: dict[int, tuple[Round, threading.Thread]] = {}

    def hear(self, message: Mapping[str, Any]) -> None:
        """Do what a host asks for: begin some subflows, or stop some."""
        number = message["subflows"]
        if "dropped" in message:
            if (begun := self._rounds.get(number)) is not None:
                begun[0].cancel()
            return
        settings = replace(
            self._settings,
            depth=self._settings.depth + 1,
            identity=Identity(within=message["within"]),
            process_timeout=message["timeout"] or self._settings.process_timeout,
        )
        directory = directory_of(settings, number)
        round_ = Round(
            directory,
            message["count"],
            lambda index, name: Subflow(str(directory), index, name),
            self._run,
            settings,
            self._package,
            self._offers,
        )
        thread = threading.Thread(
            target=self._carry, args=(number, round_, directory), name="daskspace-subflows"
        )
        thread.daemon = True
        self._rounds[number] = round_, thread
        try:
            thread.start()
        except RuntimeError:  # there are too many threads
            del self._rounds[number]
            self._answer(number)

    def close(self) -> None:
        """Stop all that still runs."""
        rounds = list(self._rounds.values())
        for round_, _ in rounds:
            round_.cancel()
        for _, thread in rounds:
            thread.join(_CLOSE_S)

    def _carry(self, number: int, round_: Round, directory: Path) -> None:
        try:
            outcomes = round_.run()
            with contextlib.suppress(OSError):  # the process finds out
                write_outcomes(directory, outcomes)
        finally:
            if round_.is_cancelled:  # there may be nobody left who would remove it
                discard(directory)
            self._rounds.pop(number, None)
            with contextlib.suppress(OSError):
                self._answer(number)
