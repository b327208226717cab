"""With what an operation ran: versions, host, command and commit."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from typing import Any

_ALWAYS = ("daskspace", "dask", "distributed", "cloudpickle", "numpy", "pandas")


def describe_environment() -> dict[str, Any]:
    """Return what ``environment.json`` tells."""
    return {
        "python": sys.version,
        "executable": sys.executable,
        "packages": _versions(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "user": _user(),
        "command": sys.orig_argv,
        "working_directory": os.getcwd(),
        "git": _git(),
    }


def _versions() -> dict[str, str]:
    """Return the versions of our packages, and of all that the client has imported."""
    versions = {
        name: version
        for name, module in list(sys.modules.items())
        if "." not in name and isinstance(version := vars(module).get("__version__"), str)
    }
    for name in _ALWAYS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return dict(sorted(versions.items()))


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None


def _git() -> dict[str, Any] | None:
    """Return the commit that the working directory is at, None outside of a repository."""
    commit = _ask_git("rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "changed": bool(_ask_git("status", "--porcelain", "-uno"))}


def _ask_git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", *arguments],  # noqa: S607 - the user's git, as on their command line
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
