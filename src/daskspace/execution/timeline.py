"""Which worker was at work when, in a bounded number of bars."""

from __future__ import annotations

from collections.abc import Mapping

from daskspace.execution.outcome import GOOD_STATES

Bar = tuple[float, float, int, int]
"""When it begins and ends, how many processes ended in it, and how many of them were not done."""

MOST_BARS = 1_000
_NARROWEST_S = 0.5


class Timeline:
    """Bars of work by worker, the whole of an operation in at most so many.

    Bars of one worker that follow each other are joined while the joint bar is narrow; what is
    narrow is doubled whenever there are too many bars.

    Parameters
    ----------
    most : int
        How many bars there may be.
    """

    def __init__(self, most: int = MOST_BARS) -> None:
        self._most = most
        self._narrow = _NARROWEST_S
        self._rows: dict[str, list[Bar]] = {}
        self._count = 0

    def add(self, worker: str, start: float, stop: float, states: Mapping[str, int]) -> None:
        """Add the work of a worker on a batch, whose processes came to these states."""
        number = sum(states.values())
        good = sum(states.get(state, 0) for state in GOOD_STATES)
        row = self._rows.setdefault(worker, [])
        before = len(row)
        self._append(row, (start, stop, number, number - good))
        self._count += len(row) - before
        if self._count > self._most:
            self._coarsen()

    def rows(self) -> dict[str, list[Bar]]:
        """Return the bars of each worker, in the order in which they came."""
        return {worker: list(row) for worker, row in list(self._rows.items())}

    def _append(self, row: list[Bar], bar: Bar) -> None:
        if row:
            start, stop, number, bad = row[-1]
            joint = (min(start, bar[0]), max(stop, bar[1]), number + bar[2], bad + bar[3])
            if joint[1] - joint[0] <= self._narrow:
                row[-1] = joint
                return
        row.append(bar)

    def _coarsen(self) -> None:
        """Make room by joining what has become narrow, else by forgetting the oldest workers."""
        fewer = self._most * 3 // 4
        longest = max(row[-1][1] - row[0][0] for row in self._rows.values())
        while self._count > fewer and self._narrow <= longest:
            self._narrow *= 2
            for worker, row in self._rows.items():
                joined: list[Bar] = []
                for bar in row:
                    self._append(joined, bar)
                self._rows[worker] = joined
            self._count = sum(map(len, self._rows.values()))
        for worker in sorted(self._rows, key=lambda worker: self._rows[worker][-1][1]):
            if self._count <= self._most:
                break
            self._count -= len(self._rows.pop(worker))
