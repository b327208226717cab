"""What a process costs, side by side: `python -m tests.benchmarks` from the repository's root.

`goals`, `profile` and `scale` after it are programs of their own; each has its ``--help``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks import goals, profiles, report, scale
from tests.benchmarks.cases import CASES
from tests.benchmarks.contenders import CONTENDERS, NOT_ASKED_FOR
from tests.benchmarks.turns import PATIENCE_S, Tournament, measure_memory, tell

MEMORY = "memory"
"""The case that `memory` measures."""


@dataclass(frozen=True)
class Extent:
    """How much of everything is measured."""

    rounds: int
    plays: int
    budget_s: float
    cases: Sequence[str]
    memory: int
    patience_s: float = PATIENCE_S


_USUAL = ("first", "noop", "1ms", "10ms", "100ms", "mixed", "parameters", "files")
QUICK = Extent(1, 2, 0.6, ("first", "noop", "10ms", "mixed"), 20_000)
DEFAULT = Extent(3, 1, 5.0, ("noop-1k", *_USUAL, "resume"), 100_000)
FULL = Extent(3, 1, 30.0, (*CASES,), 1_000_000)


def measure(
    extent: Extent, contenders: Sequence[str], cases: Sequence[str], directory: Path
) -> dict[str, Any]:
    """Return all figures, and write them after each round, so that none is in vain."""
    everybody = {**CONTENDERS, **NOT_ASKED_FOR}
    absent = {name: why for name in contenders if (why := everybody[name].why_not())}
    present = [name for name in contenders if name not in absent]
    figures: dict[str, Any] = {
        "command": f"python -m tests.benchmarks {' '.join(sys.argv[1:])}".strip(),
        "repeated": f"{extent.rounds} rounds of {extent.plays} turns",
        "machine": {"begin": (begin := report.machine()), "end": begin},
        "versions": report.versions(),
        "absent": absent,
    }
    if begin["busy"] > report.IDLE:
        tell(f"the machine is not idle: {begin['busy']:.0%} of it are in use")
    if MEMORY in cases and "mcore" in present:
        mb = measure_memory(extent.memory, directory, tell)
        figures["memory"] = {"processes": extent.memory, "mb": mb}
    played = [case for case in cases if case != MEMORY]
    tournament = Tournament(
        present,
        played,
        extent.budget_s,
        extent.plays,
        directory,
        tell,
        patience_s=extent.patience_s,
    )
    for number in range(extent.rounds):
        tournament.play_round()
        tell(f"round {number + 1} of {extent.rounds} is over")
        figures |= report.figures_of(tournament)
        figures["machine"]["end"] = report.machine()
        report.write(figures, directory)
    return figures


def main() -> None:
    """Measure, write and print."""
    programs = {"goals": goals.main, "profile": profiles.main, "scale": scale.main}
    if len(sys.argv) > 1 and sys.argv[1] in programs:
        return programs[sys.argv[1]](sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_const", dest="extent", const=QUICK)
    extent.add_argument("--full", action="store_const", dest="extent", const=FULL)
    parser.add_argument("--only", nargs="+", choices=[*CASES, MEMORY], metavar="CASE")
    parser.add_argument("--contenders", nargs="+", choices=[*CONTENDERS, *NOT_ASKED_FOR])
    parser.add_argument("--rounds", type=int, help="how often everybody has a turn")
    parser.add_argument("--budget", type=float, help="how long a turn may take, in seconds")
    parser.add_argument("--output", type=Path, help="a directory for tables, figures and plot")
    arguments = parser.parse_args()
    chosen: Extent = arguments.extent or DEFAULT
    given = {"rounds": arguments.rounds, "budget_s": arguments.budget}
    chosen = replace(chosen, **{name: value for name, value in given.items() if value is not None})
    directory = arguments.output or Path(tempfile.mkdtemp(prefix="daskspace-benchmarks-"))
    directory.mkdir(parents=True, exist_ok=True)
    cases = arguments.only or [*chosen.cases, MEMORY]
    figures = measure(chosen, arguments.contenders or list(CONTENDERS), cases, directory)
    print(report.as_markdown(figures))
    tell(f"table.md, figures.json, plot.svg and logs are in {directory}")
    return None


if __name__ == "__main__":
    main()
