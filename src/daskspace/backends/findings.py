"""What can be wrong between this machine and a batch system, and what helps; pure functions."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask.utils import format_bytes

_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run", "/local", "/scratch/local")  # noqa: S108
_LARGEST_SKEW_S = 5.0
_SMALLEST_SPACE = 500 * 10**6
_SHARE = "run in a directory that this host and the nodes share, or give one: run -o DIRECTORY"
_MATTERS = ("daskspace", "dask", "distributed", "cloudpickle")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Parameters
    ----------
    name : str
        What was looked at.
    ok : bool
        Whether it can stay as it is.
    found : str
        What was seen.
    remedy : str
        What to do; where it is ok, what to keep in mind.
    """

    name: str
    ok: bool
    found: str
    remedy: str = ""


def programs(names: Iterable[str], path: str | None = None) -> Finding:
    """Find the programs of a batch system, on `path` or on PATH."""
    places = {name: shutil.which(name, path=path) for name in dict.fromkeys(names)}
    missing = [name for name, place in places.items() if place is None]
    if missing:
        return Finding(
            "programs",
            False,
            f"not on PATH: {', '.join(missing)}",
            "log in to a host from where jobs can be submitted, or load the batch system's module",
        )
    return Finding("programs", True, ", ".join(place for place in places.values() if place))


def working_directory(path: str, error: OSError | None = None) -> Finding:
    """Say whether a directory, in which `error` came from writing, can be that of an operation."""
    if error is not None:
        found = f"{path} cannot be written to: {error.strerror or error}"
        return Finding("working directory", False, found, "run in a directory of yours")
    real = os.path.realpath(path)
    local = next((p for p in _LOCAL if real == p or real.startswith(f"{p}/")), None)
    if local is not None:
        return Finding(
            "working directory",
            True,
            f"{path} is below {local}, which each node often has for itself",
            "run in a directory that the nodes share, such as one below your home",
        )
    return Finding("working directory", True, path)


def network(
    interfaces: Mapping[str, Sequence[str]], address: str, interface: str | None = None
) -> Finding:
    """Say on which of this host's addresses workers could reach it."""
    listed = _listed(interfaces)
    if interface and interface not in interfaces:
        return Finding(
            "network",
            False,
            f"this host has no interface {interface!r}, or it is down; it has {listed}",
            f"give one of them: -O interface={_best(interfaces) or 'NAME'}; where that of the nodes"
            " has another name: -O scheduler_options={interface: NAME}",
        )
    if not _reachable(interfaces):
        return Finding(
            "network",
            False,
            f"this host has only {listed}, where no other host can reach it",
            "run on a host that is in the nodes' network",
        )
    return Finding("network", True, f"{listed}; Dask takes {interface or address}")


def versions(here: Mapping[str, Any], there: Mapping[str, Any]) -> Finding:
    """Compare Python and packages of this program and of a worker."""
    different = [
        f"{name} {mine or 'none'} here, {theirs or 'none'} there"
        for name, mine, theirs in (
            ("python", here["python"], there["python"]),
            *((n, here["packages"].get(n), there["packages"].get(n)) for n in _MATTERS),
        )
        if mine != theirs
    ]
    if different:
        return Finding(
            "versions",
            False,
            f"{'; '.join(different)} ({there['executable']})",
            f"use the same environment on both: -O python={here['executable']}",
        )
    told = ", ".join(f"{name} {here['packages'].get(name)}" for name in _MATTERS)
    return Finding("versions", True, f"the same on both: python {here['python']}, {told}")


def shared_directory(path: str, read: str | None, nonce: str, error: str | None = None) -> Finding:
    """Say whether what a process wrote as `nonce` was `read` here."""
    if error:
        return Finding("result directory", False, f"the node cannot write to it: {error}", _SHARE)
    if read is None:
        found = f"what the node wrote to {path} cannot be seen here"
        return Finding("result directory", False, found, _SHARE)
    if read != nonce:
        return Finding(
            "result directory", False, "what the node wrote is not what can be read here", _SHARE
        )
    return Finding("result directory", True, f"what the node wrote to {path} can be read here")


def clock(asked: float, told: float, answered: float) -> Finding:
    """Say how far a worker's clock is from ours, which was `asked` and `answered` around `told`."""
    least, most = told - answered, told - asked
    apart = 0.0 if least <= 0 <= most else min(abs(least), abs(most))
    if apart > _LARGEST_SKEW_S:
        ahead = "ahead of" if least > 0 else "behind"
        return Finding(
            "clock",
            False,
            f"the node's clock is at least {apart:.0f} s {ahead} this host's",
            "tell the administrators: times in logs mislead, keys may not be valid yet, and time"
            " limits are missed",
        )
    if apart == 0.0:
        return Finding("clock", True, f"no different, within {max(-least, most):.3f} s")
    return Finding("clock", True, f"{apart:.3f} s apart")


def node(seen: Mapping[str, Any], cores: int | None, memory: int | None) -> Finding:
    """Say what a process sees of its node, against what its job has asked for."""
    found = (
        f"{seen['host']}: {seen['cpus']} cores, {format_bytes(seen['memory'])} of memory,"
        f" {format_bytes(seen['temporary_free'])} free in {seen['temporary']}"
    )
    remedies = []
    if cores is not None and seen["cpus"] < cores:
        remedies.append(f"{cores} cores were asked for: lower cores, or see to it that jobs get so")
    if memory is not None and seen["memory"] < memory:
        remedies.append(
            f"it has less memory than the {format_bytes(memory)} of a job: lower memory"
        )
    if seen["temporary_free"] < _SMALLEST_SPACE:
        remedies.append("little space is free: set TMPDIR in job_script_prologue")
    return Finding("node", True, found, "; ".join(remedies))


def interface_of(address: str, interfaces: Mapping[str, Sequence[str]]) -> str:
    """Return the interface that an address such as ``tls://10.0.0.1:8786`` is on, if any."""
    host = re.sub(r"^\w+://|:\d+$", "", address).strip("[]")
    return next((name for name, addresses in interfaces.items() if host in addresses), "")


def remedy_for_log(
    log: str, address: str = "", interfaces: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return what helps against what a worker that did not come has written, if that is known.

    Parameters
    ----------
    log : str
        All of it.
    address : str
        Where the worker was to look for the scheduler.
    interfaces : mapping, optional
        Addresses of this host by interface.
    """
    for pattern, remedy in _LOGS:
        if found := re.search(pattern, log, re.MULTILINE):
            return remedy.format(**found.groupdict())
    if _UNREACHABLE.search(log):
        here = interfaces or {}
        other = "it, or something else answers there" if "certificate" in log else "this host"
        return (
            f"the node cannot reach {other}, at {address or 'its address'}; this host has"
            f" {_listed(here)}: choose an interface, -O interface={_best(here) or 'NAME'}, or an"
            " address, -O scheduler_options={host: ADDRESS}; or have the firewall let nodes in"
        )
    return ""


def remedy_for_queue(words: str) -> str:
    """Return what helps against what a batch system says of a job, if that is known."""
    for pattern, remedy in _QUEUE:
        if re.search(pattern, words, re.IGNORECASE):
            return remedy
    return ""


_UNREACHABLE = re.compile(
    r"Timed out (starting worker|trying to connect)|Connection refused|No route to host"
    r"|Network is unreachable|certificate does not match|certificate verify failed"
)
_PYTHON = "give one that the nodes have, with the same packages: -O python=/path/to/python"
_LOGS = (
    (
        r"(?P<name>'[^']+') is not a valid network interface",
        "the node has no interface {name}: leave interface out, or give one that it has; this"
        " host's may have another name: -O scheduler_options={{interface: NAME}}",
    ),
    (r"No module named '?(?P<name>[\w.]+)", f"the node's Python has no {{name}}: {_PYTHON}"),
    (r"python\S*: .*(No such file|not found|denied)", f"the node has no such Python: {_PYTHON}"),
    (
        r"\.pem.*(No such file|denied)|(No such file|denied).*\.pem"
        r"|load_(cert_chain|verify_locations)[\s\S]*FileNotFoundError",
        "the node cannot read the keys: run in a directory that it shares with this host, or give"
        " one: -O shared_temp_directory=DIRECTORY",
    ),
    (
        r"certificate (is not yet valid|has expired)",
        "the keys are not valid there: compare the clocks of this host and of the node",
    ),
    (r"node does not see|\.attempts/|\.tape\b", _SHARE),
    (
        r"ImportError|unsupported pickle protocol|SyntaxError|No such option",
        f"the node's Python or packages have other versions: {_PYTHON}",
    ),
    (r"No space left|[Qq]uota exceeded", "free some space, or give -O local_directory=DIRECTORY"),
    (
        r"[Oo][Oo][Mm][-_ ]?[Kk]ill|[Oo]ut of memory|exceeded memory|Cannot allocate memory",
        "give jobs more memory: -O memory='8 GB'",
    ),
    (
        r": (command )?not found$|: No such file or directory$|: Permission denied$",
        "a line of the job script fails on the node: look at `daskspace job-script`, and correct"
        " job_script_prologue or python",
    ),
)
_QUEUE = (
    (
        r"\bheld\b|\bhold|JobHeld",
        "release it, or find out who holds such jobs, and why; what is asked for by the job itself"
        " is in job_extra_directives",
    ),
    (
        r"invalid partition|(unknown|no such|invalid) (queue|class)|(queue|class)\b.*(not|unknown)",
        "give a queue that there is: -O queue=NAME",
    ),
    (r"account|project", "give an account that you may use: -O account=NAME"),
    (r"OUT_OF_MEMORY|memory limit", "give jobs more memory: -O memory='8 GB'"),
    (
        r"PartitionConfig|PartitionNodeLimit|PartitionTimeLimit|BadConstraints|Nodes? required"
        r"|configuration is not available|ReqNodeNotAvail|exceed",
        "no node takes such a job just now: lower cores, memory or walltime, or give another queue",
    ),
    (
        r"is waiting|Priority|Resources",
        "wait longer: --timeout; or ask for less, for a job that is short and small begins soon",
    ),
)


def _reachable(interfaces: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return an address by which others may reach this host, by interface."""
    found: dict[str, str] = {}
    for name, addresses in interfaces.items():
        for address in addresses:
            parsed = ipaddress.ip_address(address)
            if not (parsed.is_loopback or parsed.is_link_local):
                found.setdefault(name, address)
    return found


def _best(interfaces: Mapping[str, Sequence[str]]) -> str:
    names = list(_reachable(interfaces))
    return next((name for name in names if re.match("ib|hsn|ipogif", name)), "".join(names[:1]))


def _listed(interfaces: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{name} {' '.join(addresses)}" for name, addresses in interfaces.items())
