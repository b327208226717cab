"""``daskspace table``, ``failures``, ``status`` and ``logs``: looking at a result directory."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daskspace.cli.show import (
    STATE_STYLES,
    command,
    console,
    counted,
    print_json,
    print_rows,
    reason,
    rows_option,
    shell_path,
    told,
)
from daskspace.errors import ConfigError, did_you_mean
from daskspace.execution.outcome import GOOD_STATES, Outcome
from daskspace.execution.status import seconds

if TYPE_CHECKING:
    from daskspace.results.table import Table

_directory = click.argument("directory", type=click.Path(path_type=Path))
_as_json = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
_NO_FAILURES = GOOD_STATES | {"waiting"}
_LONG_COLUMNS = ("start", "host", "peak_memory", "message")


@click.command()
@_directory
@click.option("--sort", metavar="COLUMN", help="Sort by this column, largest first.")
@click.option("-r", "--reverse", is_flag=True, help="Smallest first.")
@rows_option(20, "How many rows; 0 for all.")
@click.option("-a", "--all-columns", is_flag=True, help="Show every column.")
@_as_json
def table(
    directory: Path, sort: str | None, reverse: bool, rows: int, all_columns: bool, as_json: bool
) -> None:
    """Show the table of the operation in DIRECTORY; it may still run."""
    results = _read(directory)
    shown = results.rows() if sort is None else iter(sorted_rows(results, sort, reverse))
    limited = list(itertools.islice(shown, rows or None))
    if as_json:
        print_json(limited)
        return
    hidden = () if all_columns else _LONG_COLUMNS
    empty = {c for c in ("data", "run", "error") if all(row[c] is None for row in limited)}
    print_rows([c for c in results.columns if c not in hidden and c not in empty], limited)
    if len(limited) < len(results):
        path = shell_path(directory / "table.csv")
        console().print(f"({len(limited)} of {len(results)} rows; all are in {path})")


def sorted_rows(results: Table, column: str, smallest_first: bool = False) -> list[dict[str, Any]]:
    """Return the rows sorted by a column; those without a value come last."""
    if column not in results.columns:
        near = did_you_mean(column, results.columns)
        known = ", ".join(results.columns)
        raise ConfigError(f"the table has no column {column!r}{near or f'; it has {known}'}")
    rows = list(results.rows())
    valued = [row for row in rows if row[column] is not None]
    try:
        valued.sort(key=lambda row: row[column], reverse=not smallest_first)
    except TypeError:
        valued.sort(key=lambda row: str(row[column]), reverse=not smallest_first)
    return valued + [row for row in rows if row[column] is None]


@click.command()
@_directory
@rows_option(5, "How many of each kind.")
@_as_json
def failures(directory: Path, rows: int, as_json: bool) -> None:
    """Show what failed in DIRECTORY, grouped by error, and how to run one of it again."""
    results = _read(directory)
    failed = [outcome for outcome in results.outcomes() if outcome.state not in _NO_FAILURES]
    if as_json:
        print_json(
            [
                {**dataclasses.asdict(outcome), "rerun": _rerun(directory, outcome)}
                for outcome in failed
            ]
        )
        return
    out = console()
    if not failed:
        out.print(f"no failures: {counted(results.counts) or 'no process has ended'}")
        return
    groups: dict[tuple[str, str | None], list[Outcome]] = {}
    for outcome in failed:
        groups.setdefault((outcome.state, outcome.error), []).append(outcome)
    for (state, error), members in sorted(groups.items(), key=lambda item: -len(item[1])):
        style = STATE_STYLES.get(state, "bold red")
        out.print(f"{len(members)} {state}{f' with {error}' if error else ''}", style=style)
        for outcome in members[:rows]:
            _print_failure(directory, outcome)
        if len(members) > rows:
            out.print(f"  ... and {len(members) - rows} more (-n {len(members)} shows them)")
    out.print(f"run one again  {_rerun(directory, failed[0])} --pdb", soft_wrap=True)


def _print_failure(directory: Path, outcome: Outcome) -> None:
    out = console()
    out.print(f"  {told(outcome)}", soft_wrap=True)
    out.print(f"    {reason(outcome)}", soft_wrap=True)
    if outcome.where:
        out.print(f"    {outcome.where}", soft_wrap=True)
    if outcome.log:
        out.print(f"    log {shell_path(directory / outcome.log)}", soft_wrap=True)


def _rerun(directory: Path, outcome: Outcome) -> str:
    return f"{command()} rerun {shell_path(directory)} {outcome.process}"


@click.command()
@_directory
@_as_json
def status(directory: Path, as_json: bool) -> None:
    """Show how far the operation, or the chain, in DIRECTORY has come."""
    from daskspace.cli.chains import is_chain_directory, show_chain

    if is_chain_directory(directory):
        show_chain(directory, as_json)
        return
    facts, start = facts_of(directory)
    if as_json:
        print_json(facts)
        return
    out = console()
    counts, total, took = counted(facts["counts"]) or "none yet", facts["total"], facts["seconds"]
    out.print(f"{facts['name']} on {facts['backend']}: {facts['state']}")
    out.print(f"ended      {facts['ended']} of {'?' if total is None else total}: {counts}")
    where = f" on {facts['host']}" if facts["host"] else ""
    out.print(f"started    {start:%Y-%m-%d %H:%M:%S} UTC, by process {facts['pid']}{where}")
    if took is not None:
        out.print(f"took       {seconds(took)}")
    for name in ("stopped", "error"):
        if facts[name]:
            out.print(f"{name:<10} {facts[name]}", soft_wrap=True)


def facts_of(directory: Path) -> tuple[dict[str, Any], datetime.datetime]:
    """Return what a result directory tells of its operation, and when its last session began."""
    from daskspace.execution.lock import holder
    from daskspace.results.directory import ResultDirectory

    writer = holder(ResultDirectory(directory).lock)  # asked first: it may end at any moment
    results = _read(directory)
    header, end = results.header, results.end
    total = len(results) if end is not None else header.get("number_processes")
    start = datetime.datetime.fromtimestamp(header["start"], datetime.UTC)
    ended = len(results) - results.counts.get("waiting", 0)
    took = None if end is None else round(end["time"] - header["start"], 3)
    writer = writer if end is None else None
    facts = {
        "name": header.get("name"),
        "backend": header.get("backend"),
        "state": "ended" if end is not None else "interrupted" if writer is None else "running",
        "ended": ended,
        "total": total,
        "counts": results.counts,
        "start": start.isoformat(timespec="seconds"),
        "seconds": took,
        "stopped": end and end.get("aborted"),
        "error": end and end.get("error"),
        "pid": (writer or header).get("pid"),
        "host": writer and writer.get("host"),
    }
    return facts, start


@click.command()
@_directory
@click.argument("process", type=int, required=False)
@click.option("--failed", is_flag=True, help="The logs of all processes that are not done.")
def logs(directory: Path, process: int | None, failed: bool) -> None:
    """Show the log of PROCESS in DIRECTORY, or of the operation if none is given."""
    results = _read(directory)
    if failed:
        chosen = [o for o in results.outcomes() if o.state not in _NO_FAILURES]
        for outcome in chosen:
            console().print(f"--- {told(outcome)}: {outcome.state}", style="bold", soft_wrap=True)
            _print_log(directory, outcome)
        return
    if process is None:
        _print_file(directory / "operation.log")
        return
    _print_log(directory, outcome_of(results, process))


def outcome_of(results: Table, process: int) -> Outcome:
    """Return the outcome of a process; raise when it has none."""
    outcome = results.outcome(process)
    if outcome is None:
        last = max((outcome.process for outcome in results.outcomes()), default=None)
        known = "none has" if last is None else f"the last that has is process {last}"
        raise ConfigError(f"process {process} has not ended: {known}")
    return outcome


def _print_log(directory: Path, outcome: Outcome) -> None:
    if outcome.log is None:
        click.echo(f"process {outcome.process} printed and logged nothing", err=True)
    else:
        _print_file(directory / outcome.log)


def _print_file(path: Path) -> None:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                click.echo(line, nl=False)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _read(directory: Path) -> Table:
    from daskspace.results.directory import opened
    from daskspace.results.table import Table

    return Table(opened(directory).journal)
