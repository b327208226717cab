"""The `mcore` backend: all cores of this machine."""

from __future__ import annotations

import inspect

from distributed import LocalCluster, Nanny, Worker

from daskspace.backends.dask_backend import DaskBackend
from daskspace.clusters.unguarded import UnguardedNanny


class MulticoreBackend(DaskBackend):
    """Runs the processes on a `distributed.LocalCluster`.

    One worker process per core with one thread each; everything listens on 127.0.0.1 alone.

    Parameters
    ----------
    **options
        Keywords of `distributed.LocalCluster`, for example ``n_workers=4``.
    """

    def _open_cluster(self) -> LocalCluster:
        defaults = {
            "threads_per_worker": 1,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
        }
        if self.options.get("processes", True):
            defaults["worker_class"] = UnguardedNanny
        return LocalCluster(**{**defaults, **self.options})

    @classmethod
    def _option_names(cls) -> frozenset[str]:
        signatures = (inspect.signature(c).parameters for c in (LocalCluster, Nanny, Worker))
        names = frozenset(name for parameters in signatures for name in parameters)
        return names - {"args", "kwargs", "worker_kwargs", "asynchronous"}
