"""The `mpi` backend: an MPI job that it launches, or the one that the program is in."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from dask.utils import parse_timedelta
from distributed import Client

from daskspace.backends.dask_backend import DaskBackend
from daskspace.clusters.mpi import MpiCluster, mpi_settings
from daskspace.clusters.mpi_launcher import world_size
from daskspace.clusters.mpi_world import join_world
from daskspace.errors import ClusterStartError, ConfigError, did_you_mean

MODES = ("auto", "launch", "world")


class MpiBackend(DaskBackend):
    """Runs the processes on the ranks of an MPI job.

    Parameters
    ----------
    mode : str
        ``launch``: start ``mpiexec`` with scheduler and workers. ``world``: the program itself was
        started by ``mpiexec``; in `stage_in` one rank goes on, the others become scheduler and
        workers and never return. ``auto``, the default: whichever it is.
    **options
        Keywords of `daskspace.clusters.mpi.MpiCluster`, for example ``n_workers=4``. In a world
        those that are about launching are passed over.
    """

    configuration_options: ClassVar[Mapping[str, tuple[str, ...]]] = {"pool_size": ("n_workers",)}

    def __init__(self, mode: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._mode = mode or mpi_settings()["mode"]
        self._launched: MpiCluster | None = None
        if self._mode not in MODES:
            near = did_you_mean(str(self._mode), MODES)
            raise ConfigError(f"unknown mode {self._mode!r}; known are {', '.join(MODES)}{near}")

    def _open_cluster(self) -> MpiCluster | Client:
        ranks = world_size(os.environ)
        if self._mode == "world" or (self._mode == "auto" and ranks > 1):
            return self._join(ranks)
        if self._launched is not None and self._launched.end is not None:
            self._log(self._launched.end, logging.WARNING)
        self._launched = MpiCluster(**self.options)
        return self._launched

    def _join(self, ranks: int) -> Client:
        settings = mpi_settings(**self.options)
        timeout = parse_timedelta(settings["start-timeout"])
        world = join_world(ranks, settings, timeout)
        client = Client(world.address, security=world.security, set_as_default=False)
        self._resources.callback(client.close)
        try:
            client.wait_for_workers(world.workers, timeout=timeout)
        except TimeoutError as error:
            raise ClusterStartError(
                f"only {len(client.nthreads())} of {world.workers} workers of the MPI world have"
                f" come within {timeout:g} s"
            ) from error
        return client

    @classmethod
    def _option_names(cls) -> frozenset[str]:
        return frozenset(inspect.signature(MpiCluster).parameters) - {"asynchronous", "loop"}
