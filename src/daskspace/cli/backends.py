"""``daskspace backends``."""

from __future__ import annotations

import importlib

import click

from daskspace.cli.show import print_json, print_rows


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def backends(as_json: bool) -> None:
    """List the backends, and whether each can be used here."""
    from daskspace.backends import BACKENDS

    rows = []
    for name, home in BACKENDS.items():
        module_name, _, class_name = home.partition(":")
        try:
            module = importlib.import_module(module_name)
            summary = (getattr(module, class_name).__doc__ or "").partition("\n")[0]
        except ImportError as error:
            summary = f"not usable: {error}"
        rows.append({"name": name, "class": class_name, "what": summary})
    if as_json:
        print_json(rows)
    else:
        print_rows(["name", "class", "what"], rows)
