"""Whose turn it is: contenders play one after the other, and nobody can stop the run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import psutil

from tests.benchmarks.cases import CASES, takes_part

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
"""How much longer than its budget a turn may take before the contender is ended."""
START_S = 90.0
PILOT = 2
_GROWTH = 8
_ENOUGH = 0.5
"""Which part of the budget is enough for a turn."""
FEW = 100
"""So many processes are enough to look past the fixed costs of a turn."""
_RISK = 3.0
_STRIKES = 2
_MEMORY_S = 600.0
_TELLING_S = 1.0
"""How long a turn has to be for the machine's clocks to tell who else was busy."""
_SETTLE_S = 0.3


class Dropped(Exception):
    """A contender does not answer, or is gone."""


class Seat:
    """An interpreter in which one contender plays.

    Parameters
    ----------
    name : str
        The contender.
    log : Path
        The file to which it, and all that it starts, may write.
    """

    def __init__(self, name: str, log: Path) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._scratch = tempfile.mkdtemp(prefix="b-")  # short, as Ray has its sockets there
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.player", name],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, "TMPDIR": self._scratch},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                start_new_session=True,
            )
        self._answers: SimpleQueue[str] = SimpleQueue()
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")

    def hear(self, patience: float) -> dict[str, Any]:
        """Return its next answer; raises Dropped when there is none in time."""
        try:
            line = self._answers.get(timeout=patience)
        except Empty:
            raise Dropped(f"no answer within {patience:.0f} s") from None
        if not line:
            raise Dropped("its interpreter ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Dropped(answer["error"])
        return answer

    def ask(self, patience: float, **task: Any) -> dict[str, Any]:
        """Have it do something; raises Dropped when it does not in time."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(task) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # which `hear` tells
        return self.hear(patience)

    def leave(self) -> None:
        """End it in good order, or otherwise, and all that it has started."""
        self._hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)
        self.end()

    def _hang_up(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def end(self) -> None:
        """Kill it and all that it has started, those first who would start others again."""
        with contextlib.suppress(psutil.Error):
            player = psutil.Process(self._process.pid)
            player.suspend()
            until = time.monotonic() + PATIENCE_S
            while (below := _alive(player.children(recursive=True))) and time.monotonic() < until:
                for process in below:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                time.sleep(0.05)
        with contextlib.suppress(OSError):  # if it had ended before, who else is in its session
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._hang_up()
        self._listener.join(PATIENCE_S)
        shutil.rmtree(self._scratch, ignore_errors=True)


def _alive(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    alive = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


@dataclass
class Figure:
    """What the turns of one way in one case came to.

    Parameters
    ----------
    wanted, number : int
        How many processes the case has, and how many were taken.
    seconds : list of float
        How long each turn took.
    spent : list of mappings
        The processor time of each turn, by role.
    foreign : float
        Which part of the machine others used in the worst of the longer turns.
    dropped : str
        Why there are no more turns; empty while there is no reason.
    """

    wanted: int
    number: int = 0
    seconds: list[float] = field(default_factory=list)
    spent: list[Mapping[str, float]] = field(default_factory=list)
    foreign: float = 0.0
    dropped: str = ""

    def add(self, *played: Mapping[str, Any]) -> None:
        """Take in turns."""
        for turn in played:
            self.seconds.append(turn["seconds"])
            self.spent.append(turn["spent"])
            if turn["seconds"] > _TELLING_S:
                self.foreign = max(self.foreign, turn["foreign"])


class Tournament:
    """All turns of a run.

    Parameters
    ----------
    contenders, cases : sequence of str
        Who plays what.
    budget_s : float, optional
        How long one turn may take; there are fewer processes where all of them would take longer.
        Without, all of them are run.
    plays : int
        How often each case is played while a contender is open.
    directory : Path
        Where the contenders' logs go.
    tell : callable
        Gets a line for people now and then.
    wanted : mapping of str to int
        How many processes cases have, if not what they say themselves.
    patience_s : float
        How much longer than its budget a turn may take.
    takes_part : callable
        Whether a case is for a way.

    Attributes
    ----------
    figures : dict
        For each case the figures by way.
    starts, closes : dict
        For each contender the seconds from nothing to the first result, and to its end.
    out : dict
        Why contenders did not take part to the end.
    """

    def __init__(
        self,
        contenders: Iterable[str],
        cases: Iterable[str],
        budget_s: float | None,
        plays: int,
        directory: Path,
        tell: Callable[[str], None],
        *,
        wanted: Mapping[str, int] | None = None,
        patience_s: float = PATIENCE_S,
        takes_part: Callable[[str, str], bool] = takes_part,
    ) -> None:
        self.contenders, self.cases = list(contenders), list(cases)
        self._wanted, self._takes_part = wanted or {}, takes_part
        self._budget_s, self._plays, self._patience_s = budget_s, plays, patience_s
        self._directory, self._tell = directory, tell
        self._strikes: dict[str, int] = {}
        self._seat: Seat
        self._ways: list[str] = []
        self.figures: dict[str, dict[str, Figure]] = {case: {} for case in self.cases}
        self.starts: dict[str, list[float]] = {}
        self.closes: dict[str, list[float]] = {}
        self.out: dict[str, str] = {}

    def play_round(self) -> None:
        """Give each contender a turn at each case."""
        for contender in self.contenders:
            if contender not in self.out:
                began = time.monotonic()
                self._play(contender)
                self._tell(f"{contender}: {time.monotonic() - began:.0f} s")

    def _play(self, contender: str) -> None:
        try:
            self._open(contender)
            for case in self.cases:
                for way in self._ways:
                    if self._takes_part(case, way) and contender not in self.out:
                        self._take_turn(contender, case, way)
            if contender not in self.out:
                closed = self._seat.ask(self._patience_s, close=True)
                self.closes.setdefault(contender, []).append(closed["seconds"])
                self._seat.leave()
        except Dropped as why:
            self._tell(f"{contender} cannot be opened or closed: {why}")
            self.out.setdefault(contender, f"cannot be opened or closed: {why}")
        finally:
            self._seat.end()

    def _open(self, contender: str) -> None:
        time.sleep(_SETTLE_S)
        self._seat = Seat(contender, self._directory / f"{contender}.log")
        started = self._seat.hear(START_S)
        self.starts.setdefault(contender, []).append(started["seconds"])
        self._ways = started["ways"]

    def _take_turn(self, contender: str, case: str, way: str) -> None:
        """Play; whoever fails is begun anew, unless that happens too often."""
        wanted = self._wanted.get(case, CASES[case].number)
        figure = self.figures[case].setdefault(way, Figure(wanted))
        if figure.dropped:
            return
        budget = max(self._budget_s or 0.0, CASES[case].budget_s)
        patience = budget + self._patience_s
        try:
            turns = max(self._plays, CASES[case].plays)
            if not figure.number:
                figure.number, played = self._pilot(case, way, wanted, budget, patience)
                figure.add(*played)
                turns -= len(played)
            for _ in range(turns):
                figure.add(self._seat.ask(patience, way=way, case=case, number=figure.number))
        except Dropped as why:
            figure.dropped = str(why)
            self._tell(f"{way}, {CASES[case].title}: dropped: {why}")
            self._seat.end()
            self._strikes[contender] = self._strikes.get(contender, 0) + 1
            if self._strikes[contender] >= _STRIKES:
                self.out[contender] = f"dropped after {_STRIKES} failures: {why}"
            else:
                self._open(contender)

    def _pilot(
        self, case: str, way: str, wanted: int, budget: float, patience: float
    ) -> tuple[int, list[dict[str, Any]]]:
        """Return how many processes fit into the budget, and the turn of all, if they do.

        That follows from how much longer more of them take. While there are few, fixed costs hide
        it, so more is risked.
        """
        if self._budget_s is None:
            return wanted, []
        before, earlier, number = 0, 0.0, min(PILOT, wanted)
        while True:
            played = self._seat.ask(patience, way=way, case=case, number=number)
            took = played["seconds"]
            if number == wanted and took <= budget:
                return number, [played]
            is_few = number < FEW and number < wanted
            if took >= (_RISK if is_few else _ENOUGH) * budget:
                return max(1, int(number * min(budget / took, 1.0))), []
            each = max(took - earlier, 1e-9) / (number - before)
            reach = _RISK * budget * number / took if is_few else number + (budget - took) / each
            before, earlier = number, took
            number = max(number + 1, int(min(reach, number * _GROWTH, wanted)))


def measure_memory(number: int, directory: Path, tell: Callable[[str], None]) -> dict[str, float]:
    """Return how the memory of a client grows, in an interpreter of its own."""
    seat = Seat("serial", directory / "memory.log")  # which starts nothing by itself
    try:
        seat.hear(_MEMORY_S)
        return seat.ask(_MEMORY_S, memory=number)
    except Dropped as why:
        tell(f"memory: dropped: {why}")
        return {}
    finally:
        seat.end()


def tell(message: str) -> None:
    """Say something to who watches."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)
