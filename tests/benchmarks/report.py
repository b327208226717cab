"""What came of a run: JSON, tables and a plot."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from tests.benchmarks.cases import CASES, WORKERS
from tests.benchmarks.contenders import BARE
from tests.benchmarks.turns import Figure, Tournament
from tests.benchmarks.usage import ROLES

PACKAGES = (
    "daskspace",
    "dask",
    "distributed",
    "dask-mpi",
    "dask-jobqueue",
    "joblib",
    "executorlib",
    "parsl",
    "ray",
    "submitit",
)
IDLE = 0.1
"""Which part of the machine may be busy without a warning."""


def machine() -> dict[str, Any]:
    """Describe this machine and how busy it is just now."""
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "busy": psutil.cpu_percent(0.5) / 100,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of what is measured."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def figures_of(tournament: Tournament) -> dict[str, Any]:
    """Return the figures of a tournament as plain data."""
    return {
        "cases": {
            name: {
                "title": CASES[name].title,
                "unit": CASES[name].unit,
                "rows": _rows(name, figures),
            }
            for name, figures in tournament.figures.items()
            if figures
        },
        "starts": tournament.starts,
        "closes": tournament.closes,
        "out": tournament.out,
    }


def _rows(case_name: str, figures: Mapping[str, Figure]) -> list[dict[str, Any]]:
    rows = [_row(case_name, way, figure) for way, figure in figures.items()]
    bare = next((row for row in rows if row["way"] == BARE and "median" in row), None)
    for row in rows if bare else ():
        if "share" in row:  # which allows for different numbers, and those of different length
            row["times_faster"] = row["share"] / bare["share"]
        elif "median" in row:
            row["times_faster"] = bare["median"] / row["median"]
    return rows


def _row(case_name: str, way: str, figure: Figure) -> dict[str, Any]:
    case = CASES[case_name]
    row: dict[str, Any] = {"way": way, "wanted": figure.wanted, "number": figure.number}
    if figure.dropped:
        row["dropped"] = figure.dropped
    if figure.seconds:
        costs = [seconds / figure.number * 1e6 for seconds in figure.seconds]
        row |= {"median": median(costs), "min": min(costs), "max": max(costs)}
        row["processor"] = {
            role: median(turn[role] for turn in figure.spent) / figure.number * 1e6
            for role in ROLES
        }
        row["foreign"] = figure.foreign
        if ideal := case.ideal_s(figure.number):
            row["total"], row["ideal"] = case.total_s(figure.number), ideal
            row["longest"] = case.longest_s(figure.number)
            row["share"] = ideal / median(figure.seconds)
            row["tail"] = median(figure.seconds) - ideal
    return row


def as_markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as tables."""
    return "\n".join(
        [
            *_heading(figures),
            *(line for case in figures["cases"].values() for line in _case_table(case)),
            *_start_table(figures),
            *_memory_table(figures.get("memory")),
            *_processor_table(figures["cases"]),
            *_absentees(figures),
        ]
    )


def _heading(figures: Mapping[str, Any]) -> list[str]:
    begin, end = figures["machine"]["begin"], figures["machine"]["end"]
    lines = [
        f"`{figures['command']}`: {figures['repeated']}, median (min-max); {WORKERS} workers each",
        "",
        f"{begin['processor']}, {begin['cores']} cores, {begin['system']}; load {begin['load']:.2f}"
        f" at the begin, {end['load']:.2f} at the end",
        "",
        ", ".join(f"{name} {number}" for name, number in figures["versions"].items()),
    ]
    rows = [row for case in figures["cases"].values() for row in case["rows"]]
    disturbed = [row for row in rows if row.get("foreign", 0.0) > IDLE]
    if begin["busy"] > IDLE or disturbed:
        worst = max((row["foreign"] for row in disturbed), default=0.0)
        lines += [
            "",
            f"**The machine was not idle**: {begin['busy']:.0%} of it were in use at the begin;"
            f" in {len(disturbed)} of {len(rows)} rows others used more than {IDLE:.0%} of it"
            f" while somebody had a turn, at most {worst:.0%}.",
        ]
    return lines


def _case_table(case: Mapping[str, Any]) -> list[str]:
    rows = case["rows"]
    measured = [row for row in rows if "median" in row]
    is_long = any("share" in row for row in measured)
    unit, scale = ("µs per process", 1.0) if case["unit"] == "us" else ("ms", 1e-3)
    lines = ["", f"| {case['title']} | processes | {unit} | times faster than {BARE} |"]
    lines += ["| :-- | --: | --: | --: |"]
    if is_long:
        lines = ["", f"{lines[1]} share of the ideal | beyond the ideal, s |"]
        lines += ["| :-- | --: | --: | --: | --: | --: |"]
    for row in rows:
        if "median" not in row:
            blanks = " |" * (4 if is_long else 2)
            lines.append(f"| {row['way']} | {row.get('dropped', '')} |{blanks}")
            continue
        fewer = " (fewer)" if row["number"] < row["wanted"] else ""
        dropped = f", then dropped: {row['dropped']}" if "dropped" in row else ""
        digits = 2 if row["median"] * scale < 10 else 1 if row["median"] * scale < 100 else 0
        shown, *ends = (f"{row[k] * scale:,.{digits}f}" for k in ("median", "min", "max"))
        times = f"{row['times_faster']:.2f}" if "times_faster" in row else ""
        line = (
            f"| {row['way']} | {row['number']:,}{fewer}{dropped}"
            f" | {shown} ({'-'.join(ends)}) | {times} |"
        )
        if is_long:
            line += f" {row['share']:.1%} | {row['tail']:.2f} |" if "share" in row else " | |"
        lines.append(line)
    longest = max(measured, key=lambda row: row["number"], default={})
    if is_long and longest["longest"] * longest["number"] > 1.01 * longest["total"]:
        lines += [
            "",
            f"{longest['number']:,} are {longest['total']:.2f} s of work, the longest one"
            f" {longest['longest']:.3f} s; at best {longest['ideal']:.2f} s on {WORKERS} workers.",
        ]
    return lines


def _start_table(figures: Mapping[str, Any]) -> list[str]:
    if not figures["starts"]:
        return []
    lines = [
        "",
        "| | from nothing to the first result, s | to close it, s |",
        "| :-- | --: | --: |",
    ]
    for name, starts in figures["starts"].items():
        closes = figures["closes"].get(name, [])
        lines.append(f"| {name} | {_seconds(starts)} | {_seconds(closes)} |")
    return lines


def _seconds(values: list[float]) -> str:
    if not values:
        return ""
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def _memory_table(memory: Mapping[str, Any] | None) -> list[str]:
    if not memory:
        return []
    lines = ["", f"| {memory['processes']:,} no-ops on mcore | client and scheduler, MiB |"]
    return [*lines, "| :-- | --: |", *(f"| {k} | {v:.1f} |" for k, v in memory["mb"].items())]


def _processor_table(cases: Mapping[str, Any]) -> list[str]:
    """Show where the processor time goes, which tells more than the clock on a busy machine."""
    name = next((name for name in ("noop", "noop-1k") if name in cases), None)
    if name is None:
        return []
    title = f"{cases[name]['title']}: µs of processor time per process"
    lines = ["", f"| {title} | {' | '.join(ROLES)} | in all |", "| :-- " + "| --: " * 5 + "|"]
    for row in cases[name]["rows"]:
        if "processor" in row:
            used = [row["processor"][role] for role in ROLES]
            shown = " | ".join(f"{us:,.0f}" for us in [*used, sum(used)])
            lines.append(f"| {row['way']} | {shown} |")
    return lines


def _absentees(figures: Mapping[str, Any]) -> list[str]:
    told = {**figures.get("absent", {}), **figures["out"]}
    if not told:
        return []
    return ["", "Not there, or not to the end:", "", *(f"- {k}: {v}" for k, v in told.items())]


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Draw a panel for each case: what a process costs, ours in another colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = []
    for case in figures["cases"].values():
        rows = [row for row in case["rows"] if "median" in row]
        if rows:
            panels.append((case, sorted(rows, key=_rank)))
    heights = [1.2 + 0.24 * len(rows) for _, rows in panels]
    figure, axes = pyplot.subplots(
        len(panels),
        figsize=(9, sum(heights)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for (case, rows), axis in zip(panels, axes[:, 0], strict=True):
        names, colours = [row["way"] for row in rows], [_colour(row["way"]) for row in rows]
        axis.set_title(case["title"], loc="left", fontsize=10)
        axis.tick_params(labelsize=8)
        if all("share" in row for row in rows):
            axis.barh(names, [row["share"] * 100 for row in rows], color=colours)
            axis.set_xlabel("share of the ideal, %", fontsize=8)
            continue
        scale = 1.0 if case["unit"] == "us" else 1e-3
        errors = [
            [(row["median"] - row["min"]) * scale for row in rows],
            [(row["max"] - row["median"]) * scale for row in rows],
        ]
        values = [row["median"] * scale for row in rows]
        axis.barh(names, values, xerr=errors, color=colours, ecolor="0.3")
        axis.set_xscale("log")
        axis.set_xlabel("µs per process" if case["unit"] == "us" else "ms", fontsize=8)
    figure.savefig(path, format="svg")
    pyplot.close(figure)


def _rank(row: Mapping[str, Any]) -> float:
    """Have the best come last, which is drawn on top."""
    return row["share"] if "share" in row else -row["median"]


def _colour(way: str) -> str:
    if way.startswith("daskspace"):
        return "tab:orange"
    return "tab:gray" if way == BARE else "tab:blue"


def write(figures: Mapping[str, Any], directory: Path) -> None:
    """Write `table.md`, `figures.json` and `plot.svg`."""
    (directory / "table.md").write_text(as_markdown(figures) + "\n", "utf-8")
    (directory / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    if any("median" in row for case in figures["cases"].values() for row in case["rows"]):
        plot(figures, directory / "plot.svg")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
