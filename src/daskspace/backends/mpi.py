"""The `mpi` backend: the ranks of an MPI job."""

from __future__ import annotations

import inspect
from typing import Any

from daskspace.backends.dask_backend import DaskBackend
from daskspace.clusters.mpi import MpiCluster


class MpiBackend(DaskBackend):
    """Runs the processes under MPI."""

    def _open_cluster(self) -> Any:
        return MpiCluster(**self.options)

    @classmethod
    def _option_names(cls) -> frozenset[str]:
        names = frozenset(inspect.signature(MpiCluster).parameters)
        return (names | {"mode"}) - {"asynchronous", "loop"}
