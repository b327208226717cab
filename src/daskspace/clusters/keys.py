"""TLS for one cluster: keys that are made for it, and end with it."""

from __future__ import annotations

import os
from pathlib import Path

from distributed import Security


def make_keys(directory: Path) -> Security:
    """Return the security of a cluster whose workers read their keys from `directory`.

    Scheduler, workers and client prove to each other that they have the same key, which was made
    here; nobody else can connect.

    Parameters
    ----------
    directory : Path
        A private directory that client and workers share. Its files are readable for their owner
        alone; whoever closes the cluster removes them.

    Raises
    ------
    OSError
        A file cannot be written.
    """
    made = Security.temporary().get_tls_config_for_role("scheduler")
    for name, path in _paths(directory).items():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(made[name])
    return key_paths(directory)


def key_paths(directory: Path) -> Security:
    """Return the security of a cluster whose keys lie, or are to lie, in `directory`."""
    paths = {name: str(path) for name, path in _paths(directory).items()}
    own = {
        f"tls_{role}_{part}": paths[part]
        for role in ("scheduler", "worker", "client")
        for part in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=paths["ca_file"], **own)


def _paths(directory: Path) -> dict[str, Path]:
    return {name: directory / f"{name}.pem" for name in ("ca_file", "cert", "key")}
