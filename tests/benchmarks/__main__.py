"""What a process costs, side by side: `python -m tests.benchmarks` from the repository's root."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import time
from contextlib import ExitStack
from importlib.metadata import version
from statistics import median
from typing import Any

from tests.benchmarks import memory
from tests.benchmarks.contenders import BARE, CONTENDERS, STARTS, Run, Work, do_nothing, nap

PACKAGES = ("daskspace", "dask", "distributed", "joblib")
MANY, FEW, WARM_UP, NAPS = 100_000, 2_000, 200, 40
SETTLE_S = 0.3


def measure(runs: dict[str, Run], work: Work, numbers: dict[str, int], repeat: int) -> list[Any]:
    """Let the contenders take turns, and return for each what a process costs, in microseconds."""
    costs: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            gc.collect()
            time.sleep(SETTLE_S)
            costs[name].append(run(work, numbers[name]) / numbers[name] * 1e6)
    bare = median(costs[BARE])
    return [
        {
            "contender": name,
            "processes": numbers[name],
            "median": median(cost),
            "min": min(cost),
            "max": max(cost),
            "times_faster": bare / median(cost),
        }
        for name, cost in costs.items()
    ]


def measure_starts(repeat: int) -> dict[str, list[float]]:
    """Return the seconds from nothing to the first result, for backends that start a cluster."""
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(repeat):
        for name, open_contender in STARTS.items():
            began = time.perf_counter()
            with open_contender() as run:
                run(do_nothing, 1)
                seconds[name].append(time.perf_counter() - began)
    return seconds


def measure_all(processes: int, repeat: int) -> dict[str, Any]:
    """Return all figures; memory first, while nothing else runs."""
    figures: dict[str, Any] = {
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "repeat": repeat,
        "memory": {"processes": MANY, "resident_mb": memory.measure(MANY)},
        "starts": measure_starts(repeat),
    }
    with ExitStack() as stack:
        runs: dict[str, Run] = {}
        for name, open_contender in CONTENDERS.items():
            runs[name] = stack.enter_context(open_contender())
            runs[name](do_nothing, WARM_UP)
        many = {**dict.fromkeys(runs, processes), BARE: min(processes, FEW)}
        figures["no-op"] = measure(runs, do_nothing, many, repeat)
        figures["sleep of 100 ms"] = measure(runs, nap, dict.fromkeys(runs, NAPS), repeat)
    return figures


def as_markdown(figures: dict[str, Any]) -> str:
    """Return the figures as tables."""
    versions = ", ".join(f"{name} {number}" for name, number in figures["versions"].items())
    lines = [f"{figures['machine']}; {versions}; median of {figures['repeat']} (min-max)"]
    for case in ("no-op", "sleep of 100 ms"):
        most = max(row["processes"] for row in figures[case])
        lines += ["", f"| {case} | processes | µs per process | times faster than {BARE} |"]
        lines += ["| :-- | --: | --: | --: |"]
        for row in figures[case]:
            mark = " (fewer)" if row["processes"] < most else ""
            lines.append(
                f"| {row['contender']} | {row['processes']:,}{mark}"
                f" | {row['median']:,.0f} ({row['min']:,.0f}-{row['max']:,.0f})"
                f" | {row['times_faster']:.2f} |"
            )
    resident = figures["memory"]["resident_mb"]
    lines += ["", f"| {figures['memory']['processes']:,} no-ops on mcore | client's memory, MiB |"]
    lines += ["| :-- | --: |", *(f"| {when} | {mb:.1f} |" for when, mb in resident.items())]
    lines += ["", "| from nothing to the first result | seconds |", "| :-- | --: |"]
    for name, took in figures["starts"].items():
        lines.append(f"| {name} | {median(took):.1f} ({min(took):.1f}-{max(took):.1f}) |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--processes", type=int, default=10_000, help="how many no-ops")
    parser.add_argument("--repeat", type=int, default=3, help="how often everybody's turn comes")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    arguments = parser.parse_args()
    figures = measure_all(arguments.processes, arguments.repeat)
    print(json.dumps(figures, indent=2) if arguments.json else as_markdown(figures))


if __name__ == "__main__":
    main()
