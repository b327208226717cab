"""How an operation is driven: the registry of backends."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from daskspace.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from daskspace.backends.base import Backend
    from daskspace.backends.dask_backend import DaskBackend

BACKENDS = {
    "serial": "daskspace.backends.serial:SerialBackend",
    "mcore": "daskspace.backends.multicore:MulticoreBackend",
    "mpi": "daskspace.backends.mpi:MpiBackend",
    "loadl": "daskspace.backends.loadleveler:LoadLevelerBackend",
    "slurm": "daskspace.backends.jobqueue:SlurmBackend",
    "pbs": "daskspace.backends.jobqueue:PBSBackend",
    "sge": "daskspace.backends.jobqueue:SGEBackend",
    "lsf": "daskspace.backends.jobqueue:LSFBackend",
    "htcondor": "daskspace.backends.jobqueue:HTCondorBackend",
    "oar": "daskspace.backends.jobqueue:OARBackend",
    "moab": "daskspace.backends.jobqueue:MoabBackend",
}
"""The name of every backend of ours, and where its class is."""


def backend_class(name: str) -> type[DaskBackend]:
    """Return the class of a backend: one of ours, or one that another package brings.

    Raises
    ------
    ConfigError
        There is none of this name, or its package is broken.
    """
    if name in BACKENDS:
        module, _, class_name = BACKENDS[name].partition(":")
        ours: type[DaskBackend] = getattr(importlib.import_module(module), class_name)
        return ours
    from daskspace.backends.installed import entry_points, load

    offered = entry_points()
    if name not in offered:
        known = {**BACKENDS, **offered}
        near = did_you_mean(str(name), known)
        raise ConfigError(f"unknown backend {name!r}; known are {', '.join(known)}{near}")
    theirs: Any = load(name, offered[name])
    return theirs


def create_backend(
    backend_type: Any = "serial",
    *,
    config: Any = None,
    configuration: Any = None,
    **options: Any,
) -> DaskBackend:
    """Return a backend; nothing is started before its `stage_in` or `run`.

    Parameters
    ----------
    backend_type
        ``serial`` (this process), ``mcore`` (all cores), ``mpi``, ``loadl`` (LoadLeveler), or
        another batch system: ``slurm``, ``pbs``, ``sge``, ``lsf``, ``htcondor``, ``oar``, ``moab``;
        or a name that an installed package brings, see ``daskspace backends``. Or what describes a
        cluster elsewhere: a section of Dask's configuration such as ``jobqueue.casper``, a file of
        any known dialect, an address, a scheduler file, a class as ``package.module:Class``, a
        function that returns a cluster, a live cluster or client. None is for the one that `config`
        or Dask's configuration, ``daskspace.backend``, is about.
    config : path, str, mapping or list of them, optional
        Dask configuration for this backend alone: a file, the name of a shipped one such as
        ``laptop``, or a mapping. It counts more than Dask's files and less than its variables.
    configuration : mapping or object, optional
        pySPACE's configuration. Its own processes are prepared with it; ``pool_size``, the levels
        of its logs and the settings of LoadLeveler's jobs stand for options that are not given.
    **options
        Keywords of the backend's Dask cluster, passed on untouched: for ``mcore`` those of
        `distributed.LocalCluster`. They count more than all else.

    Raises
    ------
    ConfigError
        It is nothing that is known, or an option is unknown.
    """
    from daskspace.backends.choice import make_backend

    return make_backend(backend_type, config, options, configuration)


def run_operation(
    default_backend: Backend, operation: Any, ex_timeout: float = 1e6, re_timeout: float = 1e6
) -> str | None:
    """Take an operation through all steps and return its output directory, as pySPACE did.

    Parameters
    ----------
    default_backend : Backend
        Used unless the operation asks for another one by its ``backend``.
    operation
        The operation.
    ex_timeout, re_timeout : float
        The time limits of `execute` and `retrieve`, in seconds.

    Raises
    ------
    DaskspaceError
        What the steps raise; never because processes failed.
    """
    wanted = _backend_of(operation)
    configuration = getattr(default_backend, "configuration", None)
    backend = create_backend(wanted, configuration=configuration) if wanted else default_backend
    try:
        backend.stage_in(operation)
        backend.execute(timeout=ex_timeout)
        backend.retrieve(timeout=re_timeout)
        backend.consolidate()
    finally:
        backend.cleanup()
        if wanted:
            backend.close()
    get = getattr(operation, "get_output_directory", None)
    directory: str | None = get() if get is not None else operation.result_directory
    return directory


def run_operation_chain(
    default_backend: Any, chain: Any, ex_timeout: float = 1e6, re_timeout: float = 1e6
) -> str | None:
    """Run operations in sequence and return the output directory of the last, as pySPACE did.

    Parameters
    ----------
    default_backend : DaskBackend
        Used for each operation that does not ask for another one by its ``backend``.
    chain : Chain, or what `daskspace.chain` takes
        The operations: a YAML file, or a list.
    ex_timeout, re_timeout : float
        After as many seconds as both together the chain is stopped.

    Raises
    ------
    DaskspaceError
        What the steps raise; never because processes failed: then the chain stops, which its
        ``stopped`` tells, and `daskspace.chain` says how it goes on.
    """
    from daskspace.operations.chain import Chain, chain as make_chain

    made = chain if isinstance(chain, Chain) else make_chain(chain)
    default_backend.run(made, ex_timeout + re_timeout)
    return made.get_output_directory()


def _backend_of(operation: Any) -> str | None:
    wanted: str | None = getattr(operation, "backend", None)
    spec = getattr(operation, "operation_spec", None)
    return wanted or (spec.get("backend") if isinstance(spec, Mapping) else None)
