"""Looks at a cluster's configuration before anybody waits in a queue for it; starts nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dask.system import CPU_COUNT
from dask.utils import format_bytes
from distributed.system import MEMORY_LIMIT

from daskspace.backends import BACKENDS, create_backend
from daskspace.backends.dask_backend import DaskBackend
from daskspace.backends.jobqueue import JobQueueBackend
from daskspace.backends.mpi import MpiBackend
from daskspace.backends.multicore import MulticoreBackend
from daskspace.backends.options import OWN_OPTIONS
from daskspace.backends.settings import settings_of, size_of
from daskspace.clusters.check import (
    Configuration,
    defaults_of,
    known_keys,
    mistakes_in,
    oddities_in,
)
from daskspace.clusters.mpi import mpi_settings
from daskspace.clusters.sources import Entry, Setting, config_files, entries_in, entries_of
from daskspace.clusters.traps import LEVELS, Finding, Section, traps_in
from daskspace.errors import ConfigError, DaskspaceError, did_you_mean
from daskspace.execution.node import interfaces


@dataclass(frozen=True)
class Checked:
    """A cluster as it is configured.

    Parameters
    ----------
    backend : str
        The name of its backend.
    dialect : str
        What it was taken for.
    settings : tuple of Setting
        Its settings, and where each comes from.
    size : str
        What it is able to do, in words; empty where that cannot be told.
    numbers : mapping
        The same as numbers.
    """

    backend: str
    dialect: str
    settings: tuple[Setting, ...] = ()
    size: str = ""
    numbers: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Report:
    """What was looked at, and what came of it.

    Parameters
    ----------
    clusters : tuple of Checked
        The clusters.
    findings : tuple of Finding
        What somebody should know of, errors first.
    files : tuple of str
        The files that were read.
    """

    clusters: tuple[Checked, ...]
    findings: tuple[Finding, ...]
    files: tuple[str, ...] = ()

    def count(self, level: str) -> int:
        """Return how many findings of a level there are."""
        return sum(finding.level == level for finding in self.findings)


@dataclass(frozen=True)
class _Target:
    """A backend to look at, what it was taken for, and the options that follow from that."""

    backend: str
    dialect: str
    options: Mapping[str, Any] = field(default_factory=dict)


def check(config: str | None = None, options: Mapping[str, Any] | None = None) -> Report:
    """Look at a cluster's configuration, or at all that Dask's configuration has of use.

    Nothing is started, submitted or written.

    Parameters
    ----------
    config : str, optional
        What `create_backend` takes.
    options : mapping, optional
        Options of the backend, which count more than the configuration.

    Raises
    ------
    ConfigError
        There is nothing that `config` could mean.
    """
    given = dict(options or {})
    files = config_files()
    entries = [entry for file in files for entry in entries_of(file)] + entries_in(os.environ)
    configuration = Configuration(entries)
    targets = _all_targets(configuration) if config is None else [_target(config)]
    clusters, findings = [], []
    for target in targets:
        checked, more = _look_at(target, given, configuration)
        clusters.append(checked)
        findings += more
    findings += [*oddities_in(entries), *mistakes_in(configuration)]
    findings = list(dict.fromkeys(findings))
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return Report(tuple(clusters), tuple(findings), tuple(map(str, files)))


def _target(config: str) -> _Target:
    if config in BACKENDS:
        return _Target(config, "the name of a backend")
    raise ConfigError(f"unknown backend {config!r}{did_you_mean(config, BACKENDS)}")


def _all_targets(configuration: Configuration) -> list[_Target]:
    names = {_system_of(name): name for name in BACKENDS}
    return [
        _Target(names[section], f"jobqueue.{section} of Dask's configuration")
        for section in configuration.below("jobqueue")
        if section in names
    ]


def _system_of(backend: str) -> str:
    return "loadleveler" if backend == "loadl" else backend


def _look_at(
    target: _Target, given: Mapping[str, Any], configuration: Configuration
) -> tuple[Checked, list[Finding]]:
    """Return what a cluster is like, and what is wrong with it."""
    options = {**target.options, **given}
    nothing = Checked(target.backend, target.dialect)
    try:
        made = create_backend(target.backend, **options)
        findings = list(_contradictions(made, options))
        if not isinstance(made, JobQueueBackend):
            return _other(made, target, options, configuration), findings
        section = _section(made, options, configuration)
    except DaskspaceError as error:
        return nothing, [Finding("error", target.backend, _place(given), str(error))]
    found = traps_in(section)
    settings = tuple(_placed(setting, section) for setting in settings_of(made, options))
    size, numbers = "", None
    if not any(finding.level == "error" for finding in found):
        findings += _job(made)
    with contextlib.suppress(Exception):  # what is wrong is among the findings
        job = size_of(made)
        size, numbers = job.describe(), dataclasses.asdict(job)
    return Checked(target.backend, target.dialect, settings, size, numbers), [*found, *findings]


def _section(
    backend: JobQueueBackend, options: Mapping[str, Any], configuration: Configuration
) -> Section:
    path = ("jobqueue", backend._section)
    arguments = frozenset(name.replace("_", "-") for name in backend._option_names())
    set_here = {
        name.replace("_", "-"): Entry((*path, name), value, "option")
        for name, value in {**backend.options, **options}.items()
        if value is not None and name not in OWN_OPTIONS and name in backend._option_names()
    }
    name = ".".join(path)
    system = f"jobqueue.{backend._system}"
    return Section(
        backend._system,
        name,
        {**configuration.below(path), **set_here},
        known_keys(system),
        arguments | {name.replace("_", "-") for name in OWN_OPTIONS},
        defaults_of(system),
        interfaces(),
    )


def _placed(setting: Setting, section: Section) -> Setting:
    """Return a setting with the place that it has in a file that Dask does not know of."""
    entry = section.keys.get(setting.name.replace("_", "-"))
    if entry is None or setting.source.startswith(("option", "default of daskspace")):
        return setting
    return dataclasses.replace(setting, source=entry.place, remark="")


def _job(backend: JobQueueBackend) -> Iterator[Finding]:
    """Yield what keeps a backend from making jobs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # renamed keys are told as findings
        try:
            backend.job_script()
        except Exception as error:
            found = " ".join(str(error).split()) or type(error).__name__
            yield Finding("error", "job script", f"jobqueue.{backend._section}", found)


def _contradictions(backend: DaskBackend, options: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield options that exclude each other, or the configuration."""
    if not isinstance(backend, JobQueueBackend):
        return
    try:
        backend._check_walltime()
    except ConfigError as error:
        text = str(error)
        if "process_timeout" in text:  # what is wrong with walltime itself is told elsewhere
            found, _, remedy = text.partition(": ")
            yield Finding("error", "process_timeout", _place(options), found, remedy)
    if backend._is_insecure:
        found = "TLS is off: whoever reaches the scheduler can run code as you"
        yield Finding("note", "insecure", _place(options), found, "leave insecure out")
    adapt = options.get("adapt")
    if isinstance(adapt, Mapping):
        for kind in ("", "_jobs", "_cores"):
            least, most = adapt.get(f"minimum{kind}"), adapt.get(f"maximum{kind}")
            if isinstance(least, int) and isinstance(most, int) and least > most:
                found = f"minimum{kind} {least} is above maximum{kind} {most}"
                yield Finding("error", "adapt", _place(options), found, "exchange them")
        jobs, least = options.get("jobs", 1), adapt.get("minimum_jobs")
        if isinstance(least, int) and isinstance(jobs, int) and least > jobs:
            found = f"minimum_jobs {least} is above jobs {jobs}"
            yield Finding("error", "adapt", _place(options), found, f"raise jobs to {least}")


def _other(
    backend: DaskBackend,
    target: _Target,
    options: Mapping[str, Any],
    configuration: Configuration,
) -> Checked:
    """Return what a backend is like that submits no jobs."""
    settings = [Setting(name, value, "option") for name, value in options.items()]
    size, numbers = "", None
    if isinstance(backend, MulticoreBackend):
        size, numbers = _local_size(options)
    if isinstance(backend, MpiBackend):
        names = {setting.name for setting in settings}
        for key, value in mpi_settings(**backend.options).items():
            if (name := key.replace("-", "_")) not in names:
                entry = configuration.last(("mpi", key))
                source = entry.place if entry is not None else "default of daskspace"
                settings.append(Setting(name, value, source))
    return Checked(target.backend, target.dialect, tuple(settings), size, numbers)


def _local_size(options: Mapping[str, Any]) -> tuple[str, Mapping[str, Any] | None]:
    workers, threads = options.get("n_workers"), options.get("threads_per_worker") or 1
    if not options.get("processes", True) or not isinstance(threads, int):
        return "", None
    workers = workers if isinstance(workers, int) else max(1, CPU_COUNT // threads)
    if workers < 1:
        return "", None
    limit = options.get("memory_limit", "auto")
    memory = min(MEMORY_LIMIT, int(MEMORY_LIMIT * min(1, threads / CPU_COUNT)))
    size = f"{workers} worker{'s' * (workers > 1)} with {threads} thread{'s' * (threads > 1)} each"
    if limit == "auto":
        size += f" and {format_bytes(memory)}"
    return size, {"workers": workers, "threads": threads}


def _place(options: Mapping[str, Any]) -> str:
    return "option" if options else ""
