"""What a job of a batch system is made from: its settings, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.config
from dask.utils import format_bytes, parse_bytes

from daskspace.clusters.sources import Setting, keys_set, source_of
from daskspace.clusters.walltime import margin
from daskspace.errors import did_you_mean

if TYPE_CHECKING:
    from daskspace.backends.jobqueue import JobQueueBackend

_ALWAYS = (
    *("cores", "memory", "processes", "walltime", "queue", "account", "interface", "python"),
    *("worker-extra-args", "job-script-prologue", "job-extra-directives", "log-directory"),
    *("local-directory", "shared-temp-directory", "death-timeout", "scheduler-options"),
)
_OURS = {"jobs": 1, "adapt": False, "insecure": False, "query_interval": 30}
_KEYS = {"job_name": "name"}
"""Options that have another name in Dask's configuration."""


@dataclass(frozen=True)
class JobSize:
    """What a backend's jobs are able to do.

    Parameters
    ----------
    jobs : int
        How many there are at most.
    workers, threads : int
        How many workers a job has, and how many threads each of them.
    memory : int
        The memory of a worker, in bytes.
    walltime, usable : float, optional
        The time limit of a job, and how much of it a process can use, in seconds.
    """

    jobs: int
    workers: int
    threads: int
    memory: int
    walltime: float | None
    usable: float | None

    def describe(self) -> str:
        """Return it as people read it."""
        workers = f"{self.workers} workers" if self.workers > 1 else "1 worker"
        threads = f"{self.threads} threads" if self.threads > 1 else "1 thread"
        time = (
            f"{self.walltime:g} s, of which a process can use {self.usable:g} s"
            if self.walltime is not None
            else "no time limit that is known"
        )
        each = "each with " if self.workers > 1 else "with "
        return (
            f"at most {self.jobs} job{'s' * (self.jobs > 1)}; a job has {workers}, {each}{threads}"
            f" and {format_bytes(self.memory)}; {time}"
        )


def size_of(backend: JobQueueBackend) -> JobSize:
    """Return what the jobs of a backend are able to do; cores and memory are known to be set."""
    cores = int(backend._setting("cores"))
    processes = int(backend._setting("processes") or cores)
    memory = int(parse_bytes(backend._setting("memory")))
    walltime = backend._walltime
    usable = None if walltime is None else walltime - margin(walltime)
    jobs = backend._own.get("jobs", 1)
    return JobSize(jobs, processes, cores // processes, memory // processes, walltime, usable)


def settings_of(backend: JobQueueBackend, given: Mapping[str, Any]) -> list[Setting]:
    """Return the settings that make the jobs of a backend, and where each comes from.

    Parameters
    ----------
    backend : JobQueueBackend
        The backend.
    given : mapping
        The options that it was made with.
    """
    section = f"jobqueue.{backend._section}"
    known = dask.config.get(section, None) or {}
    listed = [key for key in _ALWAYS if _in(known, key)]
    present = dict.fromkeys(key.replace("_", "-") for key in [*listed, *keys_set(section)])
    settings = [_setting(backend, given, section, key) for key in present]
    names = {setting.name for setting in settings}
    for name, value in {**_OURS, **given}.items():
        if name not in names:
            source = "option" if name in given else "default of daskspace"
            settings.append(Setting(name, value, source))
    return settings


def _setting(backend: JobQueueBackend, given: Mapping[str, Any], section: str, key: str) -> Setting:
    name = next((n for n, k in _KEYS.items() if k == key), key.replace("-", "_"))
    if backend.options.get(name) is not None:
        source = "option" if name in given else "option, by pySPACE's name for it"
        return Setting(name, backend.options[name], source)
    value = dask.config.get(f"{section}.{key}", None)
    origin = source_of(f"{section}.{key}")
    ours = _our_default(backend, name, value)
    if ours is not None:
        return Setting(name, ours, "default of daskspace")
    if not origin.place:
        package = "daskspace" if backend._section == "loadleveler" else "dask-jobqueue"
        return Setting(name, value, f"default of {package}")
    remark = ""
    if name != "job_name" and name not in backend._option_names():
        near = did_you_mean(name, backend._option_names())
        remark = f"nothing reads it{near}"
    elif ":" in origin.text and isinstance(value, int):
        remark = f"YAML takes {origin.text} for the number {value}: put it in quotes"
    return Setting(name, value, origin.place, remark)


def _our_default(backend: JobQueueBackend, name: str, value: Any) -> Any:
    """Return what we put in the place of what is not set."""
    if name == "processes" and value is None and backend._setting("cores"):
        return int(backend._setting("cores"))
    if name == "log_directory" and not value:
        return "<result directory>/jobs"
    return None


def _in(section: Mapping[str, Any], key: str) -> bool:
    return key in section or key.replace("-", "_") in section
