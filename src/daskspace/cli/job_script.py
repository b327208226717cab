"""``daskspace job-script``."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from daskspace.cli.run import config_option, options_option, tell_choice
from daskspace.cli.show import console, print_json, print_rows
from daskspace.errors import ConfigError


@click.command("job-script")
@click.argument("backend", metavar="BACKEND")
@config_option
@options_option
@click.option("--json", "as_json", is_flag=True, help="Print script and settings as JSON.")
def job_script(
    backend: str, config: list[str] | None, options: dict[str, Any], as_json: bool
) -> None:
    """Show what BACKEND would submit for a job; submits nothing and writes nothing.

    The script goes to standard output, and where its settings come from to standard error.
    """
    from daskspace.backends import create_backend
    from daskspace.backends.jobqueue import JobQueueBackend
    from daskspace.backends.settings import settings_of, size_of

    made = create_backend(backend, config=config, **options)
    if not isinstance(made, JobQueueBackend):
        raise ConfigError(f"{backend} submits no jobs, so it has no job script")
    script = made.job_script()
    settings, size = settings_of(made, options), size_of(made)
    if as_json:
        print_json(
            {
                "script": script,
                "settings": [dataclasses.asdict(setting) for setting in settings],
                "size": dataclasses.asdict(size),
            }
        )
        return
    tell_choice(made)
    click.echo(script.rstrip())
    rows = [
        {
            "setting": setting.name,
            "value": "not set" if setting.value is None else setting.value,
            "from": f"{setting.source}{f' ({setting.remark})' if setting.remark else ''}",
        }
        for setting in settings
    ]
    print_rows(["setting", "value", "from"], rows, stderr=True)
    console(stderr=True).print(size.describe(), soft_wrap=True)
