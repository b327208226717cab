"""``daskspace run``."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daskspace.cli import DONE, FAILED, STOPPED
from daskspace.cli.show import command, console, counted, print_json, shell_path
from daskspace.errors import DirectoryError
from daskspace.execution.outcome import GOOD_STATES
from daskspace.execution.status import seconds

if TYPE_CHECKING:
    from daskspace.operations.base import Operation
    from daskspace.results.table import Table


def _parse_options(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, Any]:
    import yaml

    options = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        try:
            options[key.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise click.BadParameter(f"the value of {text!r} is no YAML") from None
    return options


def backend_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose a backend."""
    for option in (
        click.option("-m", "--mcore", is_flag=True, help="Short for -b mcore."),
        click.option("-s", "--serial", is_flag=True, help="Short for -b serial."),
        click.option(
            "-O",
            "--option",
            "options",
            multiple=True,
            metavar="KEY=VALUE",
            callback=_parse_options,
            help="An option of the backend, its value in YAML; may be repeated.",
        ),
        click.option("-b", "--backend", metavar="NAME", help="Where to run; see `backends`."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@backend_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The result directory.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop the operation after this.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
def run(
    spec: Path,
    backend: str | None,
    options: dict[str, Any],
    serial: bool,
    mcore: bool,
    output: Path | None,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the operation that SPEC, a YAML file, describes."""
    from daskspace.operations.spec import load_operation

    chosen = choose_backend(backend, serial, mcore)
    operation = load_operation(spec, output)
    # What processes print here would spoil the JSON.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        table, took = run_operation(operation, chosen, options, timeout, quiet)
    report(operation, table, took, as_json)
    raise SystemExit(exit_code(table))


def choose_backend(backend: str | None, serial: bool, mcore: bool) -> str | None:
    """Return the one backend that the options name, None if they name none."""
    flags = {"serial": serial, "mcore": mcore}
    named = {name for name, given in flags.items() if given} | ({backend} if backend else set())
    if len(named) > 1:
        raise click.UsageError("give one backend only")
    return named.pop() if named else None


def run_operation(
    operation: Operation,
    backend_type: str | None,
    options: Mapping[str, Any],
    timeout: float | None = None,
    quiet: bool = False,
) -> tuple[Table, float]:
    """Run an operation while showing its progress; return its table, and the seconds it took."""
    from daskspace.backends import create_backend
    from daskspace.cli.progress import Progress
    from daskspace.results.directory import opened
    from daskspace.results.table import Table

    began = time.monotonic()
    with create_backend(backend_type or operation.backend or "serial", **options) as backend:
        try:
            with Progress(backend, quiet) as progress:
                backend.run(operation, timeout)
        except DirectoryError:
            raise
        except BaseException as error:
            _tell_end(operation, error)
            raise
    took = time.monotonic() - began
    table = Table(opened(str(operation.result_directory)).journal)
    if _failed(table):
        progress.tell_failure(next(o for o in table.outcomes() if o.state not in GOOD_STATES))
    return table, took


def report(operation: Operation, table: Table, took: float, as_json: bool = False) -> None:
    """Print what came of an operation, and what to type next."""
    directory = str(operation.result_directory)
    if as_json:
        print_json(
            {
                "name": operation.name,
                "result_directory": directory,
                "processes": len(table),
                "counts": table.counts,
                "seconds": round(took, 3),
                "stopped": (table.end or {}).get("aborted"),
            }
        )
        return
    shown = console()
    place = shell_path(directory)
    total = operation.number_processes
    of_all = f" of {total}" if total is not None and total > len(table) else ""
    shown.print(f"{len(table)}{of_all} processes: {counted(table.counts)}, in {seconds(took)}")
    if (table.end or {}).get("aborted"):
        shown.print(f"stopped    {(table.end or {})['aborted']}")
    shown.print(f"results    {place}", soft_wrap=True)
    shown.print(f"table      {command()} table {place}", soft_wrap=True)
    if _failed(table):
        shown.print(f"failures   {command()} failures {place}", soft_wrap=True)


def exit_code(table: Table) -> int:
    """Return the exit code that tells what came of an operation."""
    if (table.end or {}).get("aborted"):
        return STOPPED
    return FAILED if _failed(table) else DONE


def _failed(table: Table) -> bool:
    return any(state not in GOOD_STATES for state in table.counts)


def _tell_end(operation: Operation, error: BaseException) -> None:
    """Say what is kept when an operation ends early."""
    from daskspace.results.directory import ResultDirectory
    from daskspace.results.table import Table

    if operation.result_directory is None:
        return
    directory = ResultDirectory(operation.result_directory)
    if not directory.holds_operation:
        return
    counts = Table(directory.journal).counts
    word = "interrupted" if isinstance(error, KeyboardInterrupt) else "ended early"
    place = shell_path(directory.path)
    console(stderr=True).print(
        f"{word}: {counted(counts) or 'no process has ended'}; results in {place}", soft_wrap=True
    )
