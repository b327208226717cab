"""``daskspace check``."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import click

from daskspace.cli import BAD_INPUT, DONE, FAILED
from daskspace.cli.run import options_option
from daskspace.cli.show import console, print_json, print_rows
from daskspace.errors import ConfigError

if TYPE_CHECKING:
    from daskspace.backends.check import Checked, Report
    from daskspace.clusters.traps import Finding

_STYLES = {"error": "red", "warning": "yellow", "note": "cyan"}
_LINE = re.compile(r"line (\d+), column \d+")
_MALFORMED = re.compile(r"A dask config file at '(?P<file>.+?)' is malformed", re.DOTALL)


@click.command()
@click.argument("config", required=False)
@click.option("-b", "--backend", metavar="NAME", help="The backend that CONFIG is for.")
@options_option
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def check(config: str | None, backend: str | None, options: dict[str, Any], as_json: bool) -> None:
    """Look at the configuration of a Dask cluster; starts, submits and writes nothing.

    CONFIG is what a backend can be made from: a name of `backends`, a section or a file of Dask's
    configuration. Without it, all that Dask's configuration has of use is looked at.

    \b
    Exit codes: 0 neither errors nor warnings, 1 an error, 2 usage,
    3 warnings, but no error.
    """
    try:
        from daskspace.backends.check import check as look

        report = look(config, backend, options)
    except ValueError as error:  # importing Dask reads its configuration
        raise ConfigError(_malformed(error)) from error
    if as_json:
        print_json(_as_data(report))
    else:
        _show(report)
    raise SystemExit(
        BAD_INPUT if report.count("error") else FAILED if report.count("warning") else DONE
    )


def _malformed(error: ValueError) -> str:
    text = str(error)
    file = _MALFORMED.match(text)
    if file is None:
        return text
    lines = _LINE.findall(text)
    reason = " ".join(text.partition("original error message:")[2].split())
    return f"{file['file']}{f':{lines[-1]}' if lines else ''}: {reason or text}"


def _as_data(report: Report) -> dict[str, Any]:
    return {
        "ok": not report.count("error") and not report.count("warning"),
        "clusters": [dataclasses.asdict(cluster) for cluster in report.clusters],
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
        "files": list(report.files),
    }


def _show(report: Report) -> None:
    out = console()
    for cluster in report.clusters:
        _show_cluster(cluster)
        out.print()
    for finding in report.findings:
        _show_finding(finding)
    counts = [
        f"{number} {level}{'s' * (number > 1)}"
        for level in _STYLES
        if (number := report.count(level))
    ]
    if not report.clusters and not report.count("error"):
        out.print(
            "no cluster is configured: give a backend (see `backends`), a section or a file",
            soft_wrap=True,
        )
    out.print(", ".join(counts) or "nothing is wrong")


def _show_cluster(cluster: Checked) -> None:
    out = console()
    out.print(f"{cluster.name} ({cluster.dialect})", style="bold", soft_wrap=True)
    rows = [
        {"setting": setting.name, "value": setting.value, "from": setting.source}
        for setting in cluster.settings
        if setting.value not in (None, "", [], {})
    ]
    if rows:
        print_rows(["setting", "value", "from"], rows)
    if cluster.size:
        out.print(cluster.size, soft_wrap=True)


def _show_finding(finding: Finding) -> None:
    out = console()
    out.print(f"{finding.level:7}", style=_STYLES[finding.level], end="  ")
    told = filter(None, (finding.place, finding.key, finding.found))
    out.print(": ".join(told), soft_wrap=True)
    if finding.remedy:
        out.print(f"         do: {finding.remedy}", soft_wrap=True)
