"""What a tree of processes has used of the machine: processor time, by role."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping

import psutil

ROLES = ("client", "workers", "hosts", "children")


def processor_seconds() -> Counter[str]:
    """Return the processor time of this process and all below it.

    What has ended counts with its parent, so that the difference of two calls misses nobody. The
    child of a host ends with its operation; it counts as a child then, too.
    """
    me = psutil.Process()
    used = Counter({"client": _own(me), "workers": _ended(me)})
    hosts: set[int] = set()
    for process in me.children(recursive=True):  # parents come before their children
        with contextlib.suppress(psutil.Error):
            ended = _ended(process)
            if process.ppid() in hosts:
                used["children"] += _own(process) + ended
            elif _is_host(process):
                hosts.add(process.pid)
                used["hosts"] += _own(process)
                used["children"] += ended
            else:
                used["workers"] += _own(process) + ended
    return used


def machine_seconds() -> float:
    """Return the processor time that the machine has spent on anybody."""
    times = psutil.cpu_times()._asdict()
    return sum(
        times[role] for role in ("user", "system", "nice", "irq", "softirq") if role in times
    )


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds between two calls of `processor_seconds`."""
    return {role: max(after.get(role, 0.0) - before.get(role, 0.0), 0.0) for role in ROLES}


def resident_mb() -> float:
    """Return the resident memory of this process, in MiB."""
    return psutil.Process().memory_info().rss / 2**20


def _own(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _ended(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.children_user + times.children_system


def _is_host(process: psutil.Process) -> bool:
    return any("daskspace.execution.host" in part for part in process.cmdline())
