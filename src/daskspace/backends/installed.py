"""Backends that other packages bring, by entry points of the group ``daskspace.backends``."""

from __future__ import annotations

from importlib.metadata import EntryPoint, distributions

from daskspace.backends.base import Backend
from daskspace.errors import ConfigError

GROUP = "daskspace.backends"


def entry_points() -> dict[str, dict[str, EntryPoint]]:
    """Return for each name what the packages that are installed here offer by it."""
    found: dict[str, dict[str, EntryPoint]] = {}
    for package in distributions():
        for point in package.entry_points.select(group=GROUP):
            # of a package that is there twice, Python takes the first
            found.setdefault(point.name, {}).setdefault(package.name, point)
    return found


def load(name: str, offers: dict[str, EntryPoint]) -> type[Backend]:
    """Return the class of the one backend that is offered by a name.

    Raises
    ------
    ConfigError
        Several packages offer it, or its package is broken.
    """
    if len(offers) > 1:
        raise ConfigError(
            f"backend {name!r} is in several packages, {' and '.join(sorted(offers))}:"
            " uninstall all but one"
        )
    ((package, point),) = offers.items()
    try:
        found = point.load()
    except Exception as error:
        raise ConfigError(
            f"backend {name!r} of the package {package} cannot be used:"
            f" {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Backend)):
        raise ConfigError(
            f"backend {name!r} of the package {package} cannot be used:"
            f" {point.value} is no subclass of daskspace.Backend"
        )
    return found
