"""``daskspace resume``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from daskspace.cli.run import (
    backend_options,
    carry_out,
    keep_going_option,
    limit_options,
    output_options,
)

if TYPE_CHECKING:
    from daskspace.results.chain_directory import ChainDirectory
    from daskspace.results.directory import ResultDirectory


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@backend_options
@click.option("--failed", is_flag=True, help="Run again what failed.")
@click.option("--crashed", is_flag=True, help="Run again what crashed.")
@click.option("--lost", is_flag=True, help="Run again what was lost.")
@click.option("--timeout", is_flag=True, help="Run again what ran too long.")
@click.option(
    "--operation-timeout", type=float, metavar="SECONDS", help="Stop the operation after this."
)
@keep_going_option
@limit_options
@output_options
def resume(
    directory: Path,
    backend: str | None,
    config: list[str] | None,
    options: dict[str, Any],
    operation_timeout: float | None,
    keep_going: bool,
    as_json: bool,
    quiet: bool,
    **again: bool,
) -> None:
    """Go on with the operation, or the chain, in DIRECTORY, on any backend.

    What is done is not run again. By default the backend is the one that was used last.
    """
    from daskspace.errors import DirectoryError, SpecError
    from daskspace.operations.spec import load_operation
    from daskspace.results.chain_directory import ChainDirectory
    from daskspace.results.directory import ResultDirectory

    states = [state for state, wanted in again.items() if wanted]
    chain = ChainDirectory(directory)
    if chain.holds_chain:
        _resume_chain(
            chain,
            states,
            keep_going,
            backend,
            config,
            options=options,
            timeout=operation_timeout,
            as_json=as_json,
            quiet=quiet,
        )
    if keep_going:
        raise click.UsageError("--keep-going is for a chain of operations")
    results = ResultDirectory(directory)
    if not results.operation.exists():
        raise DirectoryError(f"{directory} holds no operation: there is no {results.operation}")
    try:
        operation = load_operation(results.operation, directory, resume=states or True)
    except SpecError as error:
        raise SpecError(
            f"{error}; or resume it from the program that made it, with"
            f" result_directory={str(directory)!r} and resume=True"
        ) from error
    if not (backend or config or operation.backend):
        backend, config = _last_backend(results)
    carry_out(operation, backend, config, options, operation_timeout, as_json, quiet)


def _resume_chain(
    directory: ChainDirectory,
    states: list[str],
    keep_going: bool,
    backend: str | None,
    config: list[str] | None,
    **run: Any,
) -> NoReturn:
    from daskspace.cli.chains import carry_out_chain
    from daskspace.errors import DirectoryError, SpecError
    from daskspace.operations.chain import chain

    place = directory.path
    if not directory.description.exists():
        raise DirectoryError(f"{place} holds no chain: there is no {directory.description}")
    try:
        resumed = chain(
            directory.description,
            place,
            on_failure="continue" if keep_going else None,
            resume=states or True,
        )
    except SpecError as error:
        raise SpecError(
            f"{error}; or resume it from the program that made it, with"
            f" result_directory={str(place)!r} and resume=True"
        ) from error
    if not (backend or config or resumed.backend):
        record = directory.read().record
        backend, config = _again(record["backend"], record["given"])
    carry_out_chain(resumed, backend, config, **run)


def _last_backend(results: ResultDirectory) -> tuple[str | None, list[str] | None]:
    """Return what made the backend of the last session, and its configuration."""
    from daskspace.execution.journal import read_journal

    last, sessions = None, 0
    if results.holds_operation:
        for _, entry in read_journal(results.journal):
            if "journal" in entry:
                last, sessions = entry.get("backend", last), sessions + 1
    try:
        text = results.environment_of(sessions).read_text("utf-8")
        given = json.loads(text).get("given")
    except (OSError, ValueError):
        given = None
    return _again(last, given)


def _again(
    last: str | None, given: Mapping[str, Any] | None
) -> tuple[str | None, list[str] | None]:
    from daskspace.backends import BACKENDS
    from daskspace.backends.installed import entry_points
    from daskspace.errors import ConfigError

    if given:
        return given["backend"], given["config"] or None
    offered = {n: point.value for n, of in entry_points().items() for point in of.values()}
    places = {**offered, **BACKENDS}
    name = next((n for n, place in places.items() if place.endswith(f":{last}")), None)
    if last and name is None:
        raise ConfigError(
            f"the operation ran on {last}, from a program: say where it is to go on, by -b NAME"
        )
    return name, None
