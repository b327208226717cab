"""What a program sees of the machine that it runs on."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import socket
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from daskspace.execution.isolation import JOB_START

PACKAGES = ("daskspace", "dask", "distributed", "cloudpickle")
"""What has to be the same where a process is made and where it runs."""


def describe_node() -> dict[str, Any]:
    """Return plain facts about this machine and this Python."""
    temporary = tempfile.gettempdir()
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in PACKAGES},
        "cpus": _cpus(),
        "memory": psutil.virtual_memory().total,
        "temporary": temporary,
        "temporary_free": shutil.disk_usage(temporary).free,
        "interfaces": interfaces(),
    }


def report_back(directory: str, nonce: str) -> dict[str, Any]:
    """Write `nonce` to a file of that name in `directory`, and return what this node is like.

    A process of ``daskspace doctor``; it tells what goes wrong instead of raising it.
    """
    seen = describe_node()
    if began := os.environ.get(JOB_START):
        seen["job_began"] = float(began)
    try:
        Path(directory, nonce).write_text(nonce)
    except OSError as error:
        seen["write_error"] = str(error)
    return seen


def interfaces() -> dict[str, list[str]]:
    """Return the IP addresses of the network interfaces that are up, the loopback one first."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    families = (socket.AF_INET, socket.AF_INET6)
    found = {
        name: [a.address.partition("%")[0] for a in addresses if a.family in families]
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
    }
    return {name: addresses for name, addresses in found.items() if addresses}


def _version(name: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
