"""``daskspace run``."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import click

from daskspace.cli import DONE, FAILED, STOPPED
from daskspace.cli.show import command, console, counted, print_json, shell_path
from daskspace.errors import DirectoryError
from daskspace.execution.outcome import GOOD_STATES
from daskspace.execution.status import seconds

if TYPE_CHECKING:
    from daskspace.backends.dask_backend import DaskBackend
    from daskspace.operations.base import Operation
    from daskspace.results.table import Table

_TIME = re.compile(r"\d+(:\d+)+")


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
            # YAML takes a time such as 12:00:00 for the number 43200.
            is_time = _TIME.fullmatch(value)
            options[key.replace("-", "_")] = value if is_time else yaml.safe_load(value)
        except yaml.YAMLError:
            raise click.BadParameter(f"the value of {text!r} is no YAML") from None
    return options


options_option = click.option(
    "-O",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_parse_options,
    help="An option of the backend, its value in YAML; may be repeated.",
)
config_option = click.option(
    "--config",
    multiple=True,
    metavar="FILE",
    callback=lambda context, parameter, given: list(given) or None,
    help="Dask configuration for it: a file, or the name of a shipped one; may be repeated.",
)
_SHORT = {"serial": "-s", "mcore": "-m", "mpi": "-i", "loadl": "-L"}


def backend_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that choose a backend: `backend`, `config` and `options`."""

    @functools.wraps(command)
    def choosing(*, backend: str | None, **given: Any) -> Any:
        named = {name for name in _SHORT if given.pop(name)} | ({backend} if backend else set())
        if len(named) > 1:
            raise click.UsageError("give one backend only")
        return command(backend=named.pop() if named else None, **given)

    for option in (
        *(
            click.option(short, f"--{name}", is_flag=True, help=f"Short for -b {name}.")
            for name, short in reversed(_SHORT.items())
        ),
        options_option,
        config_option,
        click.option(
            "-b",
            "--backend",
            metavar="NAME",
            help="Where to run: a name, see `backends`, a file, an address, a class.",
        ),
    ):
        choosing = option(choosing)
    return choosing


_LIMITS = {
    "isolation": click.option(
        "--isolation",
        type=click.Choice(["process", "fresh", "none"]),
        help="Where user code runs: in a child, in a new one for each process, in place.",
    ),
    "process_timeout": click.option(
        "--process-timeout", metavar="TIME", help="Stop a process that runs longer: 60, '10 m'."
    ),
    "process_memory": click.option(
        "--process-memory", metavar="SIZE", help="Stop a process that uses more: '2 GB'."
    ),
    "retries": click.option(
        "--retries", type=click.IntRange(min=0), help="Run a failed process again, so often."
    ),
    "max_failures": click.option(
        "--max-failures", type=click.IntRange(min=1), metavar="N", help="Stop after N failures."
    ),
    "fail_fast": click.option("--fail-fast", is_flag=True, help="Stop after the first failure."),
    "performance_report": click.option(
        "--performance-report", is_flag=True, help="Save Dask's performance report as well."
    ),
}


def limit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that limit processes; they are added to those of the backend."""

    @functools.wraps(command)
    def limited(*, options: dict[str, Any], **given: Any) -> Any:
        limits = {name: given.pop(name) for name in _LIMITS}
        number = limits["process_timeout"]
        with contextlib.suppress(TypeError, ValueError):
            limits["process_timeout"] = float(number)
        chosen = {name: value for name, value in limits.items() if value not in (None, False)}
        return command(options={**options, **chosen}, **given)

    for option in reversed(_LIMITS.values()):
        limited = option(limited)
    return limited


keep_going_option = click.option(
    "--keep-going",
    is_flag=True,
    help="In a chain, go on after an operation of which processes are not done.",
)


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say what is printed."""
    quiet = click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
    return as_json(quiet(command))


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@backend_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The result directory.")
@click.option("--resume", is_flag=True, help="Go on with what is in the result directory.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop the operation after this.")
@keep_going_option
@limit_options
@output_options
def run(
    spec: Path,
    backend: str | None,
    config: list[str] | None,
    options: dict[str, Any],
    output: Path | None,
    resume: bool,
    timeout: float | None,
    keep_going: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Run the operation, or the chain of operations, that SPEC, a YAML file, describes."""
    from daskspace.cli.chains import carry_out_chain, is_chain_file
    from daskspace.operations.spec import load_operation

    if resume and output is None:
        raise click.UsageError("--resume needs the result directory: -o DIRECTORY")
    if is_chain_file(spec):
        from daskspace.operations.chain import chain

        on_failure = "continue" if keep_going else None
        described = chain(spec, output, on_failure=on_failure, resume=resume)
        carry_out_chain(described, backend, config, options, timeout, as_json, quiet)
    if keep_going:
        raise click.UsageError("--keep-going is for a chain of operations")
    operation = load_operation(spec, output, resume=resume)
    carry_out(operation, backend, config, options, timeout, as_json, quiet)


def carry_out(
    operation: Operation,
    backend_type: str | None,
    config: list[str] | None,
    options: Mapping[str, Any],
    timeout: float | None,
    as_json: bool,
    quiet: bool,
) -> NoReturn:
    """Run an operation, say what came of it, and exit."""
    # What processes print here would spoil the JSON.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        table, took = run_operation(operation, backend_type, config, options, timeout, quiet)
    report(operation, table, took, as_json)
    raise SystemExit(exit_code(table))


def run_operation(
    operation: Operation,
    backend_type: str | None,
    config: list[str] | None,
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
    wanted = backend_type or operation.backend
    with create_backend(wanted, config=config, **options) as backend:
        if not quiet:
            tell_choice(backend)
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


def tell_choice(backend: DaskBackend) -> None:
    """Say which backend was chosen and by what, unless that was its name alone."""
    if backend.recipe is not None and (backend.recipe.key or backend.recipe.source):
        told = f"backend: {backend.recipe.describe()}"
        console(stderr=True).print(told, soft_wrap=True)


class Told(Protocol):
    """What is told of an operation at its end."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def result_directory(self) -> str | None: ...  # noqa: D102

    @property
    def number_processes(self) -> int | None: ...  # noqa: D102


def report(operation: Told, table: Table, took: float, as_json: bool = False) -> None:
    """Print what came of an operation, and what to type next."""
    from daskspace.cli.chains import tell_products

    directory = str(operation.result_directory)
    if as_json:
        print_json(
            {
                "name": operation.name,
                "result_directory": directory,
                "processes": len(table),
                "counts": table.counts,
                "cached": len(table) - table.fresh,
                "seconds": round(took, 3),
                "stopped": (table.end or {}).get("aborted"),
            }
        )
        return
    shown = console()
    place = shell_path(directory)
    total = operation.number_processes
    of_all = f" of {total}" if total is not None and total > len(table) else ""
    now = f", {table.fresh or 'none'} of them now" if table.sessions > 1 else ""
    counts = counted(table.counts)
    shown.print(f"{len(table)}{of_all} processes: {counts}{now}, in {seconds(took)}")
    if table.sessions > 1 and not table.fresh:
        shown.print("nothing was left to run")
    if (table.end or {}).get("aborted"):
        shown.print(f"stopped    {(table.end or {})['aborted']}")
    tell_products(operation)
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
    told = f"{word}: {counted(counts) or 'no process has ended'}; results in {place}"
    console(stderr=True).print(f"{told}; go on with  {command()} resume {place}", soft_wrap=True)
