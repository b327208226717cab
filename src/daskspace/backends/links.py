"""Where a browser finds the dashboard of a cluster."""

from __future__ import annotations

import getpass
import os
import socket
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.config

from daskspace.clusters.listening import LOOPBACK

if TYPE_CHECKING:
    from distributed import Client

_TEMPLATE = "distributed.dashboard.link"
_DASKS_OWN = "{scheme}://{host}:{port}/status"
_HUB = "JUPYTERHUB_SERVICE_PREFIX"


@dataclass(frozen=True)
class Dashboard:
    """A dashboard that listens somewhere.

    Parameters
    ----------
    port : int
        Its port.
    reached_at : str
        The host under which others reach the scheduler.
    host : str
        The name of the host that it is on.
    address : str
        The address that it listens on.
    own_link : str, optional
        The address of its status page, where the cluster's class knows better.
    """

    port: int
    reached_at: str
    host: str
    address: str
    own_link: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it can be reached from its own host alone."""
        return self.address in (LOOPBACK, "::1", "localhost")

    @property
    def link(self) -> str:
        """The address of Dask's status page, as ``distributed.dashboard.link`` wants it.

        Under JupyterHub, where that is not set, it is a path behind the hub's proxy.
        """
        if self.own_link:
            return self.own_link
        from distributed.utils import format_dashboard_link

        host = LOOPBACK if self.is_local else self.reached_at
        if dask.config.get(_TEMPLATE, _DASKS_OWN) != _DASKS_OWN or _HUB not in os.environ:
            try:
                return str(format_dashboard_link(host, self.port))
            except (KeyError, IndexError, ValueError):  # the template names what there is not
                return f"http://{host}:{self.port}/status"
        is_here = self.host == socket.gethostname()
        place = f"{self.port}" if is_here else f"{self.host}:{self.port}"
        return f"{os.environ[_HUB].rstrip('/')}/proxy/{place}/status"

    @property
    def operation_link(self) -> str:
        """The address of the Operation page, beside that of Dask's status page."""
        return urllib.parse.urljoin(self.link, "operation")

    def tunnel(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """Return the command that brings the dashboard to the user's own machine.

        None where it needs none: the user sits at this host, or a proxy is in between.
        """
        link, here = urllib.parse.urlsplit(self.link), socket.gethostname()
        came_by_ssh = "SSH_CONNECTION" in environ
        is_elsewhere = self.host != here and self.is_local
        is_direct = link.hostname in (LOOPBACK, "localhost", self.reached_at)
        if self.own_link or not is_direct or not (came_by_ssh or is_elsewhere):
            return None
        jump = f" -J {_at(here)}" if came_by_ssh and is_elsewhere else ""
        target = LOOPBACK if self.is_local else self.reached_at
        via = self.host if self.is_local else here
        return f"ssh -N{jump} -L {self.port}:{target}:{self.port} {_at(via)}"


def find_dashboard(client: Client, told: Mapping[str, Any] | None) -> Dashboard | None:
    """Return where the dashboard of a client's scheduler is; None where it has none.

    Parameters
    ----------
    client : distributed.Client
        A connected client.
    told : mapping, optional
        What `OperationPage.join` returned; without it, the client's own knowledge has to do.
    """
    from distributed.comm import get_address_host
    from distributed.deploy.cluster import Cluster

    port = client.scheduler_info(n_workers=0).get("services", {}).get("dashboard")
    if not port:
        return None
    host = get_address_host(client.scheduler.address)
    link_of = getattr(type(client.cluster), "dashboard_link", Cluster.dashboard_link)
    is_plain = link_of is Cluster.dashboard_link
    own_link = None if is_plain else client.cluster.dashboard_link
    if told is None:
        return Dashboard(port, host, socket.gethostname(), host, own_link)
    return Dashboard(port, host, told["host"], told["address"], own_link)


def _at(host: str) -> str:
    try:
        return f"{getpass.getuser()}@{host}"
    except (OSError, KeyError):  # nobody knows the user's name
        return host
