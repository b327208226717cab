"""The command line: the only place that prints, parses arguments and exits."""

from __future__ import annotations

import importlib
from typing import Any

import click

from daskspace.errors import DaskspaceError

DONE, BAD_INPUT, USAGE, FAILED, STOPPED, INTERRUPTED = 0, 1, 2, 3, 4, 130

_COMMANDS = {
    "run": "daskspace.cli.run:run",
    "resume": "daskspace.cli.resume:resume",
    "cancel": "daskspace.cli.cancel:cancel",
    "plan": "daskspace.cli.plan:plan",
    "table": "daskspace.cli.inspect:table",
    "failures": "daskspace.cli.inspect:failures",
    "rerun": "daskspace.cli.rerun:rerun",
    "status": "daskspace.cli.inspect:status",
    "watch": "daskspace.cli.watch:watch",
    "logs": "daskspace.cli.inspect:logs",
    "backends": "daskspace.cli.backends:backends",
    "job-script": "daskspace.cli.job_script:job_script",
    "check": "daskspace.cli.check:check",
    "doctor": "daskspace.cli.doctor:doctor",
    "demo": "daskspace.cli.demo:demo",
}
_SUMMARIES = {
    "run": "Run an operation.",
    "resume": "Go on with an operation that was interrupted.",
    "cancel": "Stop an operation, and cancel its batch jobs.",
    "plan": "Show what would run; runs nothing.",
    "table": "Show the table of results.",
    "failures": "Show what failed, why, and how to run it again.",
    "rerun": "Run one process again, in the foreground.",
    "status": "Show how far an operation has come.",
    "watch": "Watch an operation until it ends; may be left.",
    "logs": "Show the log of the operation or of a process.",
    "backends": "List the backends.",
    "job-script": "Show the job script of a batch system; submits nothing.",
    "check": "Look at the configuration of a cluster; starts nothing.",
    "doctor": "Find out what a backend can do here.",
    "demo": "Run a real benchmark on all cores.",
}


class _Operation(click.Group):
    """A group that imports a command when it is used, and tells our errors in one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DaskspaceError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.group(
    name="operation", cls=_Operation, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(package_name="daskspace", prog_name="daskspace")
def operation() -> None:
    """Run one operation, many parameter combinations, on any Dask cluster.

    \b
    Exit codes: 0 all done, 1 bad input, 2 usage, 3 some processes failed,
    4 stopped by a limit, 130 interrupted.
    """


def main() -> None:
    """Run the command ``daskspace``."""
    operation(prog_name="daskspace")
