"""The `mcore` backend: all cores of this machine."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

from distributed import LocalCluster, Nanny, Worker

from daskspace.backends.dask_backend import DaskBackend
from daskspace.clusters.keys import choose_security
from daskspace.clusters.listening import LOOPBACK, dashboard_at, is_local, scheduler_options
from daskspace.clusters.unguarded import UnguardedNanny
from daskspace.errors import ConfigError


class MulticoreBackend(DaskBackend):
    """Runs the processes on a `distributed.LocalCluster`.

    One worker process per core with one thread each; everything listens on 127.0.0.1 alone, which
    all users of this machine can reach.

    Parameters
    ----------
    insecure : bool
        Whether the cluster may do without TLS where `host` or `interface` let others reach it:
        they can then run code as this user.
    **options
        Keywords of `distributed.LocalCluster`, for example ``n_workers=4``. With
        ``protocol="tls"`` keys are made for the cluster.
    """

    configuration_options: ClassVar[Mapping[str, tuple[str, ...]]] = {"pool_size": ("n_workers",)}

    def __init__(self, *, insecure: bool = False, **options: Any) -> None:
        self._insecure = insecure
        super().__init__(**options)

    def _open_cluster(self) -> LocalCluster:
        options = {"threads_per_worker": 1, **self.options}
        dashboard = {n: options.pop(n) for n in ("dashboard_address",) if n in options}
        scheduler = scheduler_options({**dashboard, **(options.get("scheduler_kwargs") or {})})
        places = [
            (o.get(n), o.get("interface")) for o in (options, scheduler) for n in ("host", "ip")
        ]
        local = all(is_local(*place) for place in places)
        if not (local or self._insecure) and {"protocol", "security"} & scheduler.keys():
            raise ConfigError(f"{self} takes protocol and security, but not in scheduler_kwargs")
        in_children = options.get("processes", True)
        if in_children:
            options.setdefault("worker_class", UnguardedNanny)
        if in_children or not local or options.get("protocol") or options.get("scheduler_port"):
            if not any(options.get(name) for name in ("interface", "host", "ip")):
                options["host"] = LOOPBACK
            scheme, found, _ = str(options.get("host")).partition("://")
            protocol = options.get("protocol") or (scheme if found else None)
            options["security"], options["protocol"] = choose_security(
                options.get("security"), protocol, local, self._insecure
            )
        if not (in_children and local):
            options.setdefault("worker_dashboard_address", None)
        if "worker_dashboard_address" in options:
            at = dashboard_at(options["worker_dashboard_address"])
            options["worker_dashboard_address"] = at
        return LocalCluster(**{**options, "scheduler_kwargs": scheduler})

    @classmethod
    def _option_names(cls) -> frozenset[str]:
        signatures = (inspect.signature(c).parameters for c in (LocalCluster, Nanny, Worker))
        names = frozenset(name for parameters in signatures for name in parameters)
        return names - {"args", "kwargs", "worker_kwargs", "asynchronous"} | {"insecure"}
