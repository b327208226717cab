"""``daskspace backends``."""

from __future__ import annotations

from collections.abc import Iterator

import click

from daskspace.cli.show import print_json, print_rows
from daskspace.errors import ConfigError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def backends(as_json: bool) -> None:
    """List the backends, and whether each can be used here."""
    rows = list(_rows())
    if as_json:
        print_json(rows)
    else:
        print_rows(["name", "class", "package", "what"], rows)


def _rows() -> Iterator[dict[str, str]]:
    from daskspace.backends import BACKENDS
    from daskspace.backends.installed import entry_points

    for name, home in BACKENDS.items():
        yield _row(name, home, "daskspace")
    for name, offers in entry_points().items():
        for package, point in offers.items():
            taken = "not usable: the name is daskspace's own" if name in BACKENDS else ""
            yield _row(name, point.value, package, taken)
    yield from _configured()


def _configured() -> Iterator[dict[str, str]]:
    """Yield sections of Dask's configuration, and shipped configurations."""
    from daskspace.backends.choice import recipe_for
    from daskspace.clusters.config_files import shipped_configs
    from daskspace.clusters.dialects import sections

    given: list[tuple[str, str | None, str]] = []
    given += [(f"jobqueue.{name}", None, "your Dask configuration") for name in sections()]
    given += [(name, name, "daskspace, by --config") for name in shipped_configs()]
    for name, config, package in given:
        try:
            what = recipe_for(None if config else name, config).describe()
        except ConfigError as error:
            what = f"not usable: {error}"
        yield {"name": name, "class": "", "package": package, "what": what}


def _row(name: str, home: str, package: str, what: str = "") -> dict[str, str]:
    from daskspace.backends import backend_class

    try:
        what = what or (backend_class(name).__doc__ or "").partition("\n")[0]
    except (ImportError, ConfigError) as error:
        what = f"not usable: {error}"
    return {"name": name, "class": home.rpartition(":")[2], "package": package, "what": what}
