"""What a job of a batch system is made from: its settings, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.config
from dask.utils import format_bytes, parse_bytes

from daskspace.backends.options import BATCH_OPTIONS
from daskspace.clusters.section import RENAMED, hyphened
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
    jobs = backend._most
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
    known = dask.config.get(f"jobqueue.{backend._section}", None) or {}
    listed = [key for key in _ALWAYS if _in(known, key)]
    files = backend.recipe.files if backend.recipe else ()
    in_files = [hyphened(key) for key in keys_set(backend.section_key, files)]
    right = backend.recipe is not None and backend.recipe.section is not None
    in_files = [RENAMED.get(k, k) if right and not known.get(k) else k for k in in_files]
    present = dict.fromkeys(key.replace("_", "-") for key in [*listed, *in_files])
    settings = [_setting(backend, given, key) for key in present]
    names = {setting.name for setting in settings}
    ours = {name: backend._own[name] for name in BATCH_OPTIONS}
    rest = {**(backend.recipe.options if backend.recipe else {}), **ours, **given}
    for name, value in rest.items():
        if name not in names:
            settings.append(Setting(name, value, _source_of_option(backend, name, given)))
    return settings


def _source_of_option(backend: JobQueueBackend, name: str, given: Mapping[str, Any]) -> str:
    recipe = backend.recipe
    if name in given:
        return "option"
    if recipe is not None and name in recipe.options:
        return f"{recipe.key} in {recipe.source}" if recipe.key else "option"
    if name not in BATCH_OPTIONS:
        return "option, by pySPACE's name for it"
    files = recipe.files if recipe is not None else ()
    return source_of(f"daskspace.{hyphened(name)}", files).place or "default of daskspace"


def _setting(backend: JobQueueBackend, given: Mapping[str, Any], key: str) -> Setting:
    name = next((n for n, k in _KEYS.items() if k == key), key.replace("-", "_"))
    if backend.options.get(name) is not None:
        return Setting(name, backend.options[name], _source_of_option(backend, name, given))
    value = dask.config.get(f"jobqueue.{backend._section}.{key}", None)
    files = backend.recipe.files if backend.recipe else ()
    spellings = [key, *(old for old, new in RENAMED.items() if new == key and value is not None)]
    origins = [(old, source_of(f"{backend.section_key}.{old}", files)) for old in spellings]
    old, origin = next((found for found in origins if found[1].place), (key, origins[0][1]))
    ours = _our_default(backend, name, value)
    if ours is not None:
        return Setting(name, ours, "default of daskspace")
    if not origin.place:
        package = "daskspace" if backend._system == "loadleveler" else "dask-jobqueue"
        return Setting(name, value, f"default of {package}")
    remarks = backend.recipe.remarks if backend.recipe else ()
    remark = next((r.partition(": ")[2] for r in remarks if _same(r.partition(": ")[0], old)), "")
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


def _same(key: str, other: str) -> bool:
    return hyphened(key) == hyphened(other)


def _in(section: Mapping[str, Any], key: str) -> bool:
    return key in section or key.replace("-", "_") in section
