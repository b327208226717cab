"""How far an operation has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from daskspace.execution.outcome import STATES, Outcome

_SHORT = 200


@dataclass(frozen=True)
class Jobs:
    """What becomes of the batch jobs of a cluster.

    Parameters
    ----------
    submitted : int
        How many there are, in whichever state.
    running, held : int
        How many of them run, and how many are held back.
    waiting_for, held_for : str
        Why, in the words of the batch system; empty where it does not tell.
    trouble : str
        What went wrong last; empty once it goes well again.
    """

    submitted: int = 0
    running: int = 0
    held: int = 0
    waiting_for: str = ""
    held_for: str = ""
    trouble: str = ""

    @property
    def waiting(self) -> int:
        """How many wait in the queue."""
        return self.submitted - self.running - self.held

    def describe(self, workers: int) -> str:
        """Return it as people read it; `workers` is how many workers have come from them."""
        parts = [f"jobs: {self.submitted} submitted, {self.running} running, {workers} workers"]
        if self.waiting and self.waiting_for:
            parts.append(f"{self.waiting} waiting: {self.waiting_for}")
        if self.held:
            parts.append(f"{self.held} held: {self.held_for or 'the batch system says no reason'}")
        if self.trouble:
            parts.append(self.trouble.partition("\n")[0][:_SHORT])
        return "; ".join(parts)


@dataclass(frozen=True)
class Status:
    """How far the operation of a backend has come.

    ``str()`` describes it, ``float()`` is the finished fraction from 0 to 1; for an operation of
    unknown length it is 0 until the end.

    Parameters
    ----------
    state : str
        The state of the backend.
    counts : mapping of str to int
        How many processes are in which of the outcome states; those that are none are left out.
    total : int, optional
        The number of processes; an estimate until all were seen, None when unknown.
    complete : bool
        Whether the execution has ended.
    rate : float, optional
        Processes that end per second, of late.
    workers : int
        Workers of the cluster.
    jobs : Jobs, optional
        Its batch jobs, where it has such.
    first_failure : Outcome, optional
        The first process that was not done.
    ending : str, optional
        Why it ends early, while it does.
    """

    state: str
    counts: Mapping[str, int] = field(default_factory=dict)
    total: int | None = None
    complete: bool = False
    rate: float | None = None
    workers: int = 0
    jobs: Jobs | None = None
    first_failure: Outcome | None = None
    ending: str | None = None

    @property
    def ended(self) -> int:
        """The number of processes that have ended, in whichever way."""
        return sum(n for state, n in self.counts.items() if state not in ("waiting", "running"))

    @property
    def eta(self) -> float | None:
        """Seconds until the end at the present rate, None while it cannot be told."""
        if self.complete or self.total is None or not self.rate:
            return None
        return max(self.total - self.ended, 0) / self.rate

    def __float__(self) -> float:
        if self.complete:
            return 1.0
        if not self.total:
            return 0.0
        return min(self.ended / self.total, 0.999)

    def __str__(self) -> str:
        total = "?" if self.total is None else str(self.total)
        counts = ", ".join(f"{self.counts[s]} {s}" for s in STATES if self.counts.get(s))
        parts = [f"{self.state}: {self.ended} of {total} ended" if counts else self.state]
        parts += [counts] if counts else []
        parts += [f"{self.rate:.3g} a second"] if self.rate else []
        parts += [f"{seconds(self.eta)} left"] if self.eta is not None else []
        if self.jobs is not None:
            parts.append(self.jobs.describe(self.workers))
        elif self.workers:
            parts.append(f"{self.workers} workers")
        parts += [self.ending] if self.ending and not self.complete else []
        return "; ".join(parts)


def seconds(duration: float) -> str:
    """Return a duration as people write it: ``0.4 s``, ``12 s``, ``3:07``, ``2:00:00``."""
    if duration < 10:
        return f"{duration:.1f} s"
    if duration < 60:
        return f"{duration:.0f} s"
    minutes, rest = divmod(round(duration), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
