"""Every backend that the contract tests run over."""

import os
from functools import partial
from pathlib import Path

from daskspace import DaskBackend, create_backend

from ..clusters.launchers import launcher_of  # noqa: TID252 - shared by two rooms
from .sites import SITES


class CommandsBackend(DaskBackend):
    """What a user writes for another Dask cluster: here scheduler and workers are commands."""

    def _open_cluster(self):
        from distributed.deploy.subprocess import SubprocessCluster  # children import this as well

        return SubprocessCluster(**self.options)


def let_tests_be_imported():
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])


def mpi_backend(**options):
    let_tests_be_imported()
    return create_backend("mpi", **{"n_workers": 2, **options})


def commands_backend():
    let_tests_be_imported()
    return CommandsBackend(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
    )


BACKENDS_UNDER_TEST = {
    "serial": partial(create_backend, "serial"),
    "mcore": partial(create_backend, "mcore", n_workers=2),
    "mpi": mpi_backend,
    "openmpi": lambda: mpi_backend(launcher=launcher_of("openmpi")),
    "commands": commands_backend,
    "loadl": lambda **options: SITES["loadl"]().backend(jobs=2, **options),
    "slurm": lambda: SITES["slurm"]().backend(jobs=2),
}
"""For each backend what makes one, small."""

NOT_TO_BE_HAD = {"pbs", "sge", "lsf", "htcondor", "oar", "moab"}
"""Batch systems that no test can start, or not as a whole; they differ by their dialect alone."""
