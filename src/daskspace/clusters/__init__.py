"""Dask cluster types, and parts of them, that the ecosystem lacks; useful without our backends."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # type checkers see what `__getattr__` finds
    from daskspace.clusters.loadleveler import LoadLevelerCluster, LoadLevelerJob
    from daskspace.clusters.mpi import MpiCluster

_HOME_OF = {
    "LoadLevelerCluster": "daskspace.clusters.loadleveler",
    "LoadLevelerJob": "daskspace.clusters.loadleveler",
    "MpiCluster": "daskspace.clusters.mpi",
}

__all__ = ["LoadLevelerCluster", "LoadLevelerJob", "MpiCluster"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
