"""What is measured: the work, how much of it, and what it would take at best."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.benchmarks import works

WORKERS = 2
"""How many everybody has."""
SEED = 20_090_901
MEDIAN_S, SIGMA = 0.015, 1.2
MIXED = 160


@dataclass(frozen=True)
class Case:
    """So many processes of one kind.

    Parameters
    ----------
    title : str
        Its heading in the report.
    work : callable
        What each process does with its argument; it returns the number of the process.
    number : int
        How many processes there are, if they fit into the budget.
    argument : callable
        Returns the argument of a process, from its number and an empty directory.
    seconds : callable
        Returns how long a process sleeps, from its number.
    is_right : callable
        Whether all is there beside the values, from the number and the directory.
    unit : str
        ``us`` for microseconds per process, ``ms`` for milliseconds in all.
    ways : sequence of str
        Who takes part, by the beginning of the name of the way; everybody, if it is empty.
    plays : int
        How often it is played in each turn.
    budget_s : float
        How long it may take where that is longer than the budget of the run.
    """

    title: str
    work: Callable[[Any], int] = works.echo
    number: int = 10_000
    argument: Callable[[int, str], Any] = lambda number, directory: number
    seconds: Callable[[int], float] = lambda number: 0.0
    is_right: Callable[[int, str], bool] = works.nothing_amiss
    unit: str = "us"
    ways: Sequence[str] = ()
    plays: int = 1
    budget_s: float = 0.0

    def ideal_s(self, number: int) -> float:
        """Return what so many processes take at best on all workers."""
        return self.total_s(number) / WORKERS

    def total_s(self, number: int) -> float:
        """Return the work in so many processes."""
        return sum(map(self.seconds, range(number)))

    def longest_s(self, number: int) -> float:
        """Return the longest of so many processes."""
        return max(map(self.seconds, range(number)), default=0.0)


def _lognormal() -> list[float]:
    source = random.Random(SEED)
    return [source.lognormvariate(math.log(MEDIAN_S), SIGMA) for _ in range(MIXED)]


DURATIONS = _lognormal()


def _naps(title: str, seconds: Callable[[int], float], number: int) -> Case:
    return Case(
        title,
        works.nap,
        number,
        argument=lambda n, _: (n, seconds(n)),
        seconds=seconds,
    )


def _no_op(number: int, **more: Any) -> Case:
    return Case(f"{number:,} no-ops", number=number, **more)


def _parameters(number: int, directory: str) -> tuple[int, bytes]:
    return number, number.to_bytes(8, "big") * (works.PARAMETER_BYTES // 8)


RESUME = "daskspace mcore, resume"
"""The way that runs an operation, and measures how long it takes to find that all is done."""

CASES = {
    "first": Case("first result of a running backend", number=1, unit="ms", plays=5),
    "noop-1k": _no_op(1_000),
    "noop": _no_op(10_000),
    "noop-100k": _no_op(100_000),
    "noop-1m": _no_op(1_000_000, ways=("daskspace",), budget_s=300.0),
    "1ms": _naps("sleep of 1 ms", lambda n: 0.001, 2_000),
    "10ms": _naps("sleep of 10 ms", lambda n: 0.01, 400),
    "100ms": _naps("sleep of 100 ms", lambda n: 0.1, 40),
    "mixed": _naps("sleep of mixed length", lambda n: DURATIONS[n], MIXED),
    "parameters": Case("50 KiB parameters", works.measure, 1_000, argument=_parameters),
    "files": Case(
        "1 MiB results, written as files",
        works.write,
        200,
        argument=lambda n, directory: (n, directory),
        is_right=works.are_written,
    ),
    "resume": Case("resume of 100,000 no-ops", number=100_000, ways=(RESUME,), budget_s=120.0),
}
"""By the name that ``--only`` takes."""


def takes_part(name: str, way: str) -> bool:
    """Whether a way is measured in a case."""
    case = CASES[name]
    if way == RESUME:
        return RESUME in case.ways
    return not case.ways or way.startswith(tuple(case.ways))
