"""What we want to reach, and whether we do; never a test, as no machine is like another."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import report
from tests.benchmarks.cases import WORKERS
from tests.benchmarks.contenders import BARE
from tests.benchmarks.turns import Tournament, measure_memory, tell

WHOLE, RETRIEVED = "daskspace mcore, `run` and `rows`", "daskspace mcore, `stage_in` to `retrieve`"
SERIAL, CALL = "daskspace serial, `stage_in` to `retrieve`", "bare call, in one process"
_PATIENCE_S = 600.0
_BATCH_S = 1.0
_EARLY = "10,000"

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """Something to reach.

    Parameters
    ----------
    title : str
        What is wanted.
    judge : callable
        Returns what was measured and whether that is enough, from the figures of a run; raises
        LookupError when something was not measured.
    """

    title: str
    judge: Callable[[Figures], tuple[str, bool]]


def _row(figures: Figures, case: str, way: str) -> Mapping[str, Any]:
    return next(
        row for row in figures["cases"][case]["rows"] if row["way"] == way and "median" in row
    )


def _throughput(figures: Figures) -> tuple[str, bool]:
    ours, whole = _row(figures, "noop", RETRIEVED), _row(figures, "noop", WHOLE)
    times = ours["times_faster"]
    return (
        f"{times:.1f} times ({ours['median']:.1f} µs), `run` and `rows`"
        f" {whole['times_faster']:.1f} times",
        times >= 30,
    )


def _short(figures: Figures) -> tuple[str, bool]:
    share = _row(figures, "10ms", RETRIEVED)["share"]
    return f"{share:.1%}", share >= 0.95


def _mixed(figures: Figures) -> tuple[str, bool]:
    row = _row(figures, "mixed", RETRIEVED)
    allowed = row["longest"] + _BATCH_S
    return f"{row['tail']:.2f} s beyond the ideal, {allowed:.2f} s allowed", row["tail"] <= allowed


def _first(figures: Figures) -> tuple[str, bool]:
    ms = _row(figures, "first", RETRIEVED)["median"] / 1e3
    return f"{ms:.1f} ms", ms <= 50


def _serial(figures: Figures) -> tuple[str, bool]:
    us = _row(figures, "noop", SERIAL)["median"] - _row(figures, "noop", CALL)["median"]
    return f"{us:.1f} µs", us <= 20


def _memory(figures: Figures) -> tuple[str, bool]:
    mb = figures["memory"]
    grown = mb["peak"] - mb[f"at {_EARLY}"]
    return f"{grown:.1f} MiB at the peak", grown < 50


def _linear(figures: Figures) -> tuple[str, bool]:
    costs = {case: _row(figures, case, WHOLE)["median"] for case in ("noop", *_MANY)}
    shown = ", ".join(f"{us:.1f} µs" for us in costs.values())
    early = costs.pop("noop")
    return shown, all(abs(us / early - 1) <= 0.2 for us in costs.values())


_MANY = ("noop-100k", "noop-1m")
GOALS = (
    Goal(f"no-ops on mcore at least 30 times as fast as {BARE}; we aim at 50", _throughput),
    Goal(f"processes of 10 ms at 95 % of the ideal of {WORKERS} workers", _short),
    Goal("mixed processes: a tail of no more than the longest one and a batch", _mixed),
    Goal("the first result of a running backend within 50 ms", _first),
    Goal("serial: at most 20 µs per process above the bare call", _serial),
    Goal("memory of client and scheduler grows by less than 50 MB after 10,000", _memory),
    Goal("the cost of a process, `run` and `rows`, as at 10,000, within 20 %", _linear),
)


_NEEDED = {
    "first": (RETRIEVED,),
    "noop": (BARE, RETRIEVED, WHOLE, SERIAL, CALL),
    "10ms": (RETRIEVED,),
    "mixed": (RETRIEVED,),
    "noop-100k": (WHOLE,),
    "noop-1m": (WHOLE,),
}


def measure(many: int, directory: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures that the goals are about; `many` is what stands for a million."""
    memory = measure_memory(many, directory, tell)
    tournament = Tournament(
        ("dask", "serial", "mcore"),
        _NEEDED,
        None,
        1,
        directory,
        tell,
        wanted={"noop-100k": min(100_000, many), "noop-1m": many},
        patience_s=_PATIENCE_S,
        takes_part=lambda case, way: way in _NEEDED[case],
    )
    tournament.play_round()
    return {**report.figures_of(tournament), "memory": memory}


def judge(goal: Goal, figures: Figures) -> tuple[str, bool]:
    """Return what was measured, and whether it is enough."""
    try:
        return goal.judge(figures)
    except (LookupError, StopIteration):
        return "not measured", False


def main(arguments: Sequence[str]) -> None:
    """Measure, judge and print, so often as is asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks goals", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="how often in a row")
    parser.add_argument("--processes", type=int, default=1_000_000, help="instead of a million")
    parser.add_argument("--output", type=Path, help="a directory for figures and logs")
    given = parser.parse_args(arguments)
    directory = given.output or Path(tempfile.mkdtemp(prefix="daskspace-goals-"))
    directory.mkdir(parents=True, exist_ok=True)
    machine, runs = report.machine(), []
    for number in range(given.repeat):
        tell(f"run {number + 1} of {given.repeat}")
        runs.append(measure(given.processes, directory, tell))
        text = as_markdown(runs, machine, given.processes)
        (directory / "goals.md").write_text(text + "\n", "utf-8")
        (directory / "goals.json").write_text(json.dumps(runs, indent=1) + "\n", "utf-8")
    print(text)
    tell(f"goals.md, goals.json and logs are in {directory}")


def as_markdown(runs: Sequence[Figures], machine: Mapping[str, Any], many: int) -> str:
    """Return for each goal what was measured in each run."""
    titles = " | ".join(f"run {number}" for number, _ in enumerate(runs, 1))
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['busy']:.0%} of them in use"
        f" at the begin; {many:,} processes where there are many",
        "",
        f"| goal | reached | {titles} |",
        "| :-- | --: |" + " --: |" * len(runs),
    ]
    for goal in GOALS:
        judged = [judge(goal, figures) for figures in runs]
        reached = sum(is_reached for _, is_reached in judged)
        shown = " | ".join(f"{text}{'' if good else ' **no**'}" for text, good in judged)
        lines.append(f"| {goal.title} | {reached} of {len(runs)} | {shown} |")
    return "\n".join(lines)
