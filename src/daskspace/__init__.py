"""One operation, any Dask cluster.

Describe an operation once, and run it in this process, on all cores, or on any other Dask cluster::

    import daskspace

    operation = daskspace.operation(train, grid={"C": [0.1, 1, 10]}, runs=3)
    with daskspace.create_backend("mcore") as backend:
        backend.run(operation)
    print(operation.table())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # type checkers see what `__getattr__` finds; `as` exports it
    from daskspace.backends import (
        create_backend as create_backend,
        run_operation as run_operation,
        run_operation_chain as run_operation_chain,
    )
    from daskspace.backends.base import Backend as Backend
    from daskspace.backends.dask_backend import DaskBackend as DaskBackend
    from daskspace.backends.multicore import MulticoreBackend as MulticoreBackend
    from daskspace.backends.serial import SerialBackend as SerialBackend
    from daskspace.errors import (
        BackendError as BackendError,
        ClusterStartError as ClusterStartError,
        ConfigError as ConfigError,
        ConsolidateError as ConsolidateError,
        DaskspaceError as DaskspaceError,
        DirectoryError as DirectoryError,
        LifecycleError as LifecycleError,
        OperationError as OperationError,
        RetrieveTimeout as RetrieveTimeout,
        SpecError as SpecError,
        SubflowError as SubflowError,
    )
    from daskspace.execution.outcome import Outcome as Outcome
    from daskspace.execution.status import Status as Status
    from daskspace.execution.subflows import subflows as subflows
    from daskspace.operations.base import Operation as Operation, Process as Process
    from daskspace.operations.chain import Chain as Chain, chain as chain
    from daskspace.operations.function import operation as operation
    from daskspace.operations.spec import load_operation as load_operation

__version__ = "0.1.0"

_HOMES = {
    "daskspace.backends": ("create_backend", "run_operation", "run_operation_chain"),
    "daskspace.backends.base": ("Backend",),
    "daskspace.backends.dask_backend": ("DaskBackend",),
    "daskspace.backends.multicore": ("MulticoreBackend",),
    "daskspace.backends.serial": ("SerialBackend",),
    "daskspace.errors": (
        "BackendError",
        "ClusterStartError",
        "ConfigError",
        "ConsolidateError",
        "DaskspaceError",
        "DirectoryError",
        "LifecycleError",
        "OperationError",
        "RetrieveTimeout",
        "SpecError",
        "SubflowError",
    ),
    "daskspace.execution.outcome": ("Outcome",),
    "daskspace.execution.status": ("Status",),
    "daskspace.execution.subflows": ("subflows",),
    "daskspace.operations.base": ("Operation", "Process"),
    "daskspace.operations.chain": ("Chain", "chain"),
    "daskspace.operations.function": ("operation",),
    "daskspace.operations.spec": ("load_operation",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
