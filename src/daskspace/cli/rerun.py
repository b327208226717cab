"""``daskspace rerun``."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pdb
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daskspace.cli import DONE, FAILED
from daskspace.cli.inspect import outcome_of
from daskspace.cli.show import console, told
from daskspace.errors import SpecError
from daskspace.execution import plain
from daskspace.execution.identity import describe_process
from daskspace.execution.origin import is_ours

if TYPE_CHECKING:
    from daskspace.execution.outcome import Outcome
    from daskspace.operations.base import Operation


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.argument("process", type=int)
@click.option("--pdb", "debug", is_flag=True, help="Open the debugger where it raises.")
def rerun(directory: Path, process: int, debug: bool) -> None:
    """Run PROCESS of the operation in DIRECTORY again, in the foreground.

    Its output appears on the terminal; files go to a temporary directory, and DIRECTORY stays as
    it is.
    """
    from daskspace.execution.attempt import Settings, attempting
    from daskspace.operations.spec import load_operation
    from daskspace.results.directory import opened
    from daskspace.results.table import Table

    results = opened(directory)
    outcome = outcome_of(Table(results.journal), process)
    operation = load_operation(results.operation)
    call = _find(operation, outcome)
    scratch = tempfile.mkdtemp(prefix="daskspace-rerun-")
    settings = Settings(scratch, str(Path.cwd()), tuple(operation.python_path))
    console(stderr=True).print(f"{told(outcome)}, files in {scratch}", soft_wrap=True)
    try:
        try:
            with attempting(settings, process, call):
                metrics = plain.as_metrics(call())
        finally:
            with contextlib.suppress(OSError):
                os.rmdir(scratch)  # removes it where nothing was written
    except Exception as error:
        trace = error.__traceback__
        while trace and trace.tb_next and is_ours(trace.tb_frame.f_code.co_filename):
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace)
        if debug:
            pdb.post_mortem(trace)
        sys.exit(FAILED)
    click.echo(plain.dumps(metrics))
    sys.exit(DONE)


def _find(operation: Operation, outcome: Outcome) -> Any:
    """Return the process that an outcome is of; raise when the operation has it no more."""
    digest = operation.identity.digest
    wanted = digest(dataclasses.asdict(outcome))
    there = itertools.islice(operation.processes, outcome.process, outcome.process + 1)
    for call in itertools.chain(there, operation.processes):
        if digest(describe_process(outcome.process, call)) == wanted:
            return call
    raise SpecError(
        f"process {outcome.process} is no longer part of the operation:"
        " its data sets, or what makes its parameters, have changed"
    )
