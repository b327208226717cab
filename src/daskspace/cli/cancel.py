"""``daskspace cancel``."""

from __future__ import annotations

import time
from pathlib import Path

import click

from daskspace.cli.show import command, console, shell_path
from daskspace.errors import BackendError

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
    """Stop the operation in DIRECTORY wherever it runs, and cancel its batch jobs.

    What has ended is kept, and the rest can be resumed. If the program that ran it was killed, the
    batch jobs that it left in the queue are cancelled.
    """
    from daskspace.clusters.leftovers import cancel_leftovers
    from daskspace.execution.lock import holder
    from daskspace.results.directory import opened

    results = opened(directory)
    out = console()
    if (owner := holder(results.lock)) is not None:
        results.cancel.touch()
        until = time.monotonic() + timeout
        while holder(results.lock) == owner:
            if time.monotonic() > until:
                raise BackendError(
                    "process {pid} on {host} has not stopped".format(**owner)
                    + f" within {timeout:g} s: kill it, and call this again, which cancels its jobs"
                    if owner
                    else f"whoever runs it has not stopped within {timeout:g} s"
                )
            time.sleep(_LOOK_EVERY_S)
        out.print("stopped")
    results.cancel.unlink(missing_ok=True)
    ended = cancel_leftovers(results.jobs_record)
    if ended.cancelled:
        out.print(f"cancelled the batch jobs {', '.join(ended.cancelled)}", soft_wrap=True)
    elif owner is None:
        out.print("nothing was running")
    out.print(f"go on with  {command()} resume {shell_path(directory)}", soft_wrap=True)
    if ended.problems:
        raise BackendError("\n".join(ended.problems))
