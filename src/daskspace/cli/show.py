"""How things look on the screen."""

from __future__ import annotations

import datetime
import functools
import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from daskspace.execution import plain
from daskspace.execution.outcome import STATES, Outcome

if TYPE_CHECKING:
    from rich.console import Console

_WIDE = 10_000
STATE_STYLES = {"done": "green", "cached": "green", "cancelled": "yellow", "lost": "yellow"}


@functools.cache
def console(stderr: bool = False) -> Console:
    """Return the terminal; what is no terminal gets plain lines of any length."""
    from rich.console import Console

    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, markup=False, highlight=False, width=None if terminal else _WIDE)


def console_on(file: TextIO) -> Console:
    """Return a console that keeps to its file when `sys.stdout` or `sys.stderr` is replaced."""
    from rich.console import Console

    width = None if file.isatty() else _WIDE
    return Console(file=file, markup=False, highlight=False, width=width)


def rows_option(default: int, text: str) -> Callable[[Any], Any]:
    """Return the option that says how many rows to show."""
    kind = click.IntRange(min=0)
    return click.option("-n", "--rows", type=kind, default=default, show_default=True, help=text)


def print_rows(
    columns: Sequence[str], rows: Iterable[Mapping[str, Any]], stderr: bool = False
) -> None:
    """Print rows as a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console(stderr).print(table)


def print_json(value: Any) -> None:
    """Print a value for machines."""
    click.echo(json.dumps(value, default=_json, indent=2))


def counted(counts: Mapping[str, int]) -> str:
    """Return counts by state, such as ``59 done, 1 failed``."""
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts.get(state))


def told(outcome: Outcome) -> str:
    """Return which process it is: its position, parameters, data set and run."""
    values = {**outcome.parameters}
    values.update({"data": outcome.data} if outcome.data is not None else {})
    values.update({"run": outcome.run} if outcome.run is not None else {})
    pairs = (
        f"{name}={value if isinstance(value, str) else plain.dumps(value)}"
        for name, value in values.items()
    )
    return " ".join([f"process {outcome.process}", *pairs])


def reason(outcome: Outcome) -> str:
    """Return why a process is not done, in one line."""
    text = ": ".join(filter(None, (outcome.error, (outcome.message or "").strip())))
    first = text.splitlines()[0] if text else outcome.state
    return first if len(first) <= 300 else f"{first[:297]}..."


@functools.cache
def command() -> str:
    """Return what to type for our command here."""
    name = Path(sys.argv[0]).name
    if name == "dask":
        return "dask operation"
    if shutil.which("daskspace"):
        return "daskspace"
    if name == "daskspace":
        return shell_path(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m daskspace"


def shell_path(path: str | Path) -> str:
    """Return a path as a shell takes it, relative where that is shorter."""
    absolute = Path(path).absolute()
    try:
        relative = absolute.relative_to(Path.cwd())
    except ValueError:
        relative = absolute
    return shlex.quote(str(relative))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ", timespec="seconds").replace("+00:00", "Z")
    if isinstance(value, list | dict):
        return plain.dumps(value)
    text = str(value).replace("\n", " ")
    return text if len(text) <= 120 else f"{text[:117]}..."


def _json(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)
