"""TLS for one cluster: whether it has to be, and keys that are made for it and end with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dask.config
from distributed import Security

from daskspace.errors import ConfigError

_ENCRYPTED = ("tls", "wss")


def is_encrypted(protocol: str) -> bool:
    """Return whether a protocol of Dask's, or the address of something that speaks it, is TLS."""
    return protocol.partition("://")[0] in _ENCRYPTED


def choose_security(
    security: Security | bool | None, protocol: str | None, is_local: bool, insecure: bool
) -> tuple[Security | None, str]:
    """Return the keys and the protocol of a cluster.

    Parameters
    ----------
    security : Security or bool, optional
        What was asked for: keys, True for keys made here, False for none.
    protocol : str, optional
        The protocol that was asked for.
    is_local : bool
        Whether the cluster can be reached from this machine alone; then it may do without TLS.
    insecure : bool
        Whether it may do without in any case.

    Raises
    ------
    ConfigError
        It has to be TLS, and what was asked for is not.
    """
    configured = bool(dask.config.get("distributed.comm.tls.ca-file", None))
    if protocol is None:
        if isinstance(security, Security):
            tls = bool(security.tls_ca_file)
        else:
            tls = configured or not (is_local or insecure) if security is None else security
        protocol = "tls" if tls else "tcp"
    elif security and not is_encrypted(protocol):
        raise ConfigError(f"security is given, but with protocol={protocol!r} there is none")
    if not is_encrypted(protocol):
        if not (is_local or insecure):
            raise not_encrypted()
        return None, protocol
    if isinstance(security, Security):
        return security, protocol
    return Security(require_encryption=True) if configured else Security.temporary(), protocol


def not_encrypted() -> ConfigError:
    """Return the error for a cluster that others would reach without keys."""
    return ConfigError(
        "without TLS, whoever reaches the scheduler over the network can run code as you;"
        " if that cannot be, say so: insecure=True"
    )


def config_of_tls(security: Security | None) -> dict[str, Any]:
    """Return the Dask configuration with which others use the same keys."""
    if security is None:
        return {}
    roles = {
        f"distributed.comm.tls.{role}.{part}": getattr(security, f"tls_{role}_{part}")
        for role in ("client", "scheduler", "worker")
        for part in ("cert", "key")
    }
    return {
        "distributed.comm.require-encryption": True,
        "distributed.comm.tls.ca-file": security.tls_ca_file,
        **roles,
    }


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
