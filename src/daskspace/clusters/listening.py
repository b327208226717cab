"""Who can reach what a cluster listens on: this machine alone, or others as well."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import psutil

from daskspace.errors import ClusterStartError

LOOPBACK = "127.0.0.1"


def is_local(host: str | None, interface: str | None) -> bool:
    """Return whether what listens there can be reached from this machine alone.

    Parameters
    ----------
    host : str, optional
        A name or an address, with or without a protocol before it and a port after it.
    interface : str, optional
        The name of a network interface.
    """
    if interface is not None and not all(map(_is_loopback, _addresses_of(interface))):
        return False
    if host is None:
        return True
    name = str(host).rpartition("://")[2]
    bracketed = re.fullmatch(r"\[([^]]*)\](:\d+)?", name)
    if bracketed:
        name = bracketed[1]
    elif name.count(":") == 1:
        name = name.partition(":")[0]
    if _is_loopback(name):
        return True
    try:
        found = (
            {str(entry[4][0]) for entry in socket.getaddrinfo(name or None, 0)} if name else {""}
        )
    except (OSError, UnicodeError):
        return False
    return all(map(_is_loopback, found))


def dashboard_at(address: Any) -> str:
    """Return where a dashboard is to listen: a port without a host is one of this machine's.

    Dask would open it for all hosts, and HTTP knows no keys.
    """
    if address is None:
        return f"{LOOPBACK}:0"
    if isinstance(address, tuple):
        address = ":".join(map(str, address))
    parts = address if isinstance(address, list) else str(address).split(",")
    return ",".join(re.sub(r"^\s*:?(\d+)\s*$", rf"{LOOPBACK}:\1", str(part)) for part in parts)


def scheduler_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a scheduler, with its dashboard where others do not see it.

    Also where it is to have none, for then it still speaks HTTP.
    """
    given = {"dashboard_address": f"{LOOPBACK}:0", **options}
    if given["dashboard_address"] is None:
        given.setdefault("dashboard", False)
    return {**given, "dashboard_address": dashboard_at(given["dashboard_address"])}


def worker_arguments(arguments: Iterable[Any]) -> list[str]:
    """Return the arguments of a worker's command, with its dashboard where others do not see it."""
    text = "\n".join(map(str, arguments))
    if "dashboard" not in text:
        text += f"\n--dashboard-address\n{LOOPBACK}:0"
    given = re.compile(r"(--dashboard-address[=\s]\s*)(\S+)")
    text = given.sub(lambda found: found[1] + dashboard_at(found[2]), text)
    return text.strip("\n").split("\n")


def loopback_interface() -> str:
    """Return the name of the network interface that has the address 127.0.0.1."""
    for name in psutil.net_if_addrs():
        if LOOPBACK in _addresses_of(name):
            return name
    raise ClusterStartError(f"this host has no network interface with the address {LOOPBACK}")


def _addresses_of(interface: str) -> list[str]:
    families = (socket.AF_INET, socket.AF_INET6)
    addresses = psutil.net_if_addrs().get(interface, [])
    return [a.address for a in addresses if a.family in families] or [""]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
