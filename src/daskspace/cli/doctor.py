"""``daskspace doctor``."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from daskspace.cli import BAD_INPUT, DONE
from daskspace.cli.run import config_option, options_option
from daskspace.cli.show import console, print_json

if TYPE_CHECKING:
    from daskspace.backends.findings import Finding


@click.command()
@click.argument("backend", metavar="BACKEND")
@config_option
@options_option
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long the job may take, its time in the queue included.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(
    backend: str,
    config: list[str] | None,
    options: dict[str, Any],
    timeout: float,
    as_json: bool,
) -> None:
    """Find out what BACKEND can do here, and what helps if that is too little.

    Looks around first, then runs one tiny job through the backend, in a directory of its own in
    the working directory; nothing is left of either. Exit code 0 if all is ok, 1 if not.
    """
    from daskspace.backends.doctor import examine

    found = []
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        if text != last:
            console(stderr=True).print(f"... {text}", soft_wrap=True)
        last = text

    with (
        _terminated_as_interrupted(),
        contextlib.closing(examine(backend, options, timeout, tell, config)) as findings,
    ):
        for finding in findings:
            found.append(finding)
            if not as_json:
                _show(finding)
    is_ok = all(finding.ok for finding in found)
    if as_json:
        told = [dataclasses.asdict(finding) for finding in found]
        print_json({"backend": backend, "ok": is_ok, "findings": told})
    raise SystemExit(DONE if is_ok else BAD_INPUT)


def _show(finding: Finding) -> None:
    out = console()
    out.print("ok " if finding.ok else "bad", style="green" if finding.ok else "red", end="  ")
    out.print(f"{finding.name}: {finding.found}", soft_wrap=True)
    if finding.remedy:
        out.print(f"     {'mind' if finding.ok else 'do'}: {finding.remedy}", soft_wrap=True)


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does, so that nothing is left over."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
