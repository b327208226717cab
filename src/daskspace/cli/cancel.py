"""``daskspace cancel``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daskspace.cli.show import command, console, shell_path
from daskspace.errors import BackendError

if TYPE_CHECKING:
    from daskspace.results.chain_directory import ChainDirectory
    from daskspace.results.directory import ResultDirectory

_LOOK_EVERY_S = 0.2


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="How long whoever runs it may take to stop.",
)
def cancel(directory: Path, timeout: float) -> None:
    """Stop the operation, or the chain, in DIRECTORY wherever it runs, and cancel its batch jobs.

    What has ended is kept, and the rest can be resumed. If the program that ran it was killed, the
    batch jobs that it left in the queue are cancelled.
    """
    from daskspace.clusters.leftovers import cancel_leftovers
    from daskspace.execution.lock import holder
    from daskspace.results.chain_directory import ChainDirectory
    from daskspace.results.directory import opened

    chain = ChainDirectory(directory)
    results = None if chain.holds_chain else opened(directory)
    lock = chain.lock if results is None else results.lock
    out = console()
    if (owner := holder(lock)) is not None:
        until = time.monotonic() + timeout
        while holder(lock) == owner:
            for place in _places(chain, results):
                place.touch()
            if time.monotonic() > until:
                raise BackendError(
                    "process {pid} on {host} has not stopped".format(**owner)
                    + f" within {timeout:g} s: kill it, and call this again, which cancels its jobs"
                    if owner
                    else f"whoever runs it has not stopped within {timeout:g} s"
                )
            time.sleep(_LOOK_EVERY_S)
        out.print("stopped")
    parts = [chain.results_of(entry) for entry in chain.begun()] if results is None else [results]
    cancelled, problems = [], []
    chain.cancel.unlink(missing_ok=True)
    for part in parts:
        part.cancel.unlink(missing_ok=True)
        ended = cancel_leftovers(part.jobs_record)
        cancelled += ended.cancelled
        problems += ended.problems
    if cancelled:
        out.print(f"cancelled the batch jobs {', '.join(cancelled)}", soft_wrap=True)
    elif owner is None:
        out.print("nothing was running")
    out.print(f"go on with  {command()} resume {shell_path(directory)}", soft_wrap=True)
    if problems:
        raise BackendError("\n".join(problems))


def _places(chain: ChainDirectory, results: ResultDirectory | None) -> list[Path]:
    """Return the files by which whoever runs it is asked to stop."""
    if results is not None:
        return [results.cancel]
    from daskspace.cli.chains import running_in

    return [chain.cancel, *(chain.results_of(entry).cancel for entry in running_in(chain))]
