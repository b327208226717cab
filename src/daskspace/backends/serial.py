"""The `serial` backend: every process in this process, one after the other."""

from __future__ import annotations

from dask.local import SynchronousExecutor

from daskspace.backends.dask_backend import DaskBackend


class SerialBackend(DaskBackend):
    """Runs the processes in place, by Dask's synchronous executor; a debugger works in them.

    With ``process_timeout`` or ``process_memory``, or ``isolation="process"``, they run in a child
    of this process, one after the other.
    """

    default_isolation = "none"

    def _open_cluster(self) -> SynchronousExecutor:
        return SynchronousExecutor()

    @classmethod
    def _option_names(cls) -> frozenset[str]:
        return frozenset()
