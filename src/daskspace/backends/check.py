"""Looks at a cluster's configuration before anybody waits in a queue for it; starts nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
from dask.system import CPU_COUNT
from dask.utils import format_bytes
from distributed.system import MEMORY_LIMIT

from daskspace.backends.choice import make_backend, recipe_for
from daskspace.backends.dask_backend import DaskBackend
from daskspace.backends.jobqueue import JobQueueBackend
from daskspace.backends.mpi import MpiBackend
from daskspace.backends.multicore import MulticoreBackend
from daskspace.backends.options import OWN_OPTIONS
from daskspace.backends.settings import settings_of, size_of
from daskspace.clusters.check import (
    Configuration,
    as_dask_takes,
    defaults_of,
    known_keys,
    mistakes_in,
    oddities_in,
)
from daskspace.clusters.config_files import is_path, read_configs, shipped_configs, short
from daskspace.clusters.dialects import Recipe, sections
from daskspace.clusters.mpi import mpi_settings
from daskspace.clusters.own_config import holding
from daskspace.clusters.section import RENAMED, hyphened, is_set_up
from daskspace.clusters.sources import (
    Entry,
    Setting,
    config_files,
    entries_in,
    entries_of,
    source_of,
)
from daskspace.clusters.traps import ELSEWHERE, LEVELS, Finding, Section, traps_in
from daskspace.errors import ConfigError, DaskspaceError
from daskspace.execution.node import interfaces


@dataclass(frozen=True)
class Checked:
    """A cluster as it is configured.

    Parameters
    ----------
    name : str
        What it is, in words.
    backend : str, optional
        The name of its backend; None where it is not one of ours.
    dialect : str
        What it was taken for.
    settings : tuple of Setting
        Its settings, and where each comes from.
    size : str
        What it is able to do, in words; empty where that cannot be told.
    numbers : mapping
        The same as numbers.
    """

    name: str
    backend: str | None
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


def check(
    config: str | None = None,
    backend: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Report:
    """Look at a cluster's configuration, or at all that Dask's configuration has of use.

    Nothing is started, submitted, imported from other packages or written.

    Parameters
    ----------
    config : str, optional
        What `create_backend` takes.
    backend : str, optional
        The name of the backend that it is for, where that is not clear.
    options : mapping, optional
        Options of the backend, which count more than the configuration.

    Raises
    ------
    ConfigError
        There is nothing that `config` could mean.
    """
    given = dict(options or {})
    recipes: list[tuple[Recipe, _Call | None]] = []
    findings: list[Finding] = []
    for name in [config] if config or backend else _all():
        call = _call(name, backend, given)
        try:
            recipes.append((recipe_for(*call), call))
        except ConfigError as error:
            if plain := _without_cluster(config):
                recipes.append((plain, None))
            elif config and not Path(config).expanduser().exists():
                raise
            else:
                findings.append(_refused(error, name or ""))
        except Exception as error:  # whatever is in it, it is what is looked at
            findings.append(Finding("error", "", name or "", _broken(error)))
    clusters = []
    files: dict[Path, None] = {}
    for recipe, made_by in recipes or [(Recipe("Dask's configuration"), None)]:
        own = [file for file in config_files() if file not in recipe.files]
        of_dask, of_it = _entries(own, findings), _entries(recipe.files, findings)
        variables = entries_in(os.environ)
        findings += oddities_in([*of_dask, *of_it, *variables])
        entries = [*as_dask_takes(of_dask), *of_it, *variables]
        findings += mistakes_in(Configuration(_dask_part(entries, recipe)))
        files |= dict.fromkeys([*own, *recipe.files])
        if made_by is not None:
            clusters.append(_look_at(recipe, made_by, Configuration(entries), findings))
    findings = sorted(dict.fromkeys(findings), key=_order)
    return Report(tuple(clusters), tuple(findings), tuple(map(short, files)))


def _order(finding: Finding) -> tuple[int, str, int]:
    """Errors first; then by file, and from its beginning to its end."""
    file, _, line = finding.place.rpartition(":")
    level = LEVELS.index(finding.level)
    return (level, file, int(line)) if line.isdigit() else (level, finding.place, 0)


def _all() -> list[str]:
    """Return all that Dask's configuration has of use."""
    found = [
        f"jobqueue.{name}" for name in sections() if is_set_up(dask.config.get("jobqueue")[name])
    ]
    chosen = dask.config.get("daskspace.backend", None)
    if isinstance(chosen, str) and chosen and f"jobqueue.{chosen}" not in found:
        found.append(chosen)
    if is_set_up(dask.config.get("mpi", None, config=dask.config.collect())):
        found.append("mpi")
    return found


_Call = tuple[Any, Any, Mapping[str, Any]]
"""The arguments by which a backend is made."""


def _call(config: str | None, backend: str | None, options: Mapping[str, Any]) -> _Call:
    if not backend:
        return config, None, options
    if config is None or is_path(config) or config in shipped_configs():
        return backend, config, options
    return config, None, {"system": backend, **options}


def _without_cluster(config: str | None) -> Recipe | None:
    """Return a recipe for a file that has Dask's configuration, but no cluster in it."""
    with contextlib.suppress(ConfigError):
        contents = read_configs(config)
        if contents.values and known_keys("").issuperset(map(hyphened, contents.values)):
            return Recipe("Dask configuration", files=contents.files, source=contents.place)
    return None


def _broken(error: Exception) -> str:
    words = " ".join(str(error).split())
    return f"no backend can be made from it: {type(error).__name__}: {words}"


def _refused(error: DaskspaceError, name: str) -> Finding:
    """Return a finding for what could not be recognised."""
    place, found = name, str(error)
    if at := re.match(r"(?P<place>\S+:\d+): (?P<found>.*)", found, re.DOTALL):
        place, found = at["place"], at["found"]
    return Finding("error", "", place, found.removeprefix(f"{name} "))


def _entries(files: Iterable[Path], findings: list[Finding]) -> list[Entry]:
    """Return what files set; those that cannot be read become findings."""
    found: list[Entry] = []
    for file in files:
        try:
            found += entries_of(file)
        except OSError as error:
            reason = f"cannot be read: {error.strerror or error}"
            findings.append(Finding("error", file.name, short(file), reason))
        except ValueError as error:
            place, _, reason = str(error).partition(": ")
            findings.append(Finding("error", file.name, place, reason))
    return found


_OF_DASK = ("jobqueue", "name", "Dask configuration", "Dask's configuration")
_KEYWORDS = {
    "prefect-dask": "cluster_kwargs",
    "dask-ctl": "kwargs",
    "labextension": "labextension.factory.kwargs",
}
"""Where dialects have the keywords of the cluster class; others have them below their key."""


def _home(recipe: Recipe) -> str:
    """Return where the keywords of a cluster class are, as a path of names."""
    return _KEYWORDS.get(recipe.dialect, recipe.key)


_TOLD = re.compile(r"put right|taken as|passed over, for")


def _dask_part(entries: Sequence[Entry], recipe: Recipe) -> list[Entry]:
    """Return what of it is Dask's configuration, with the paths that it has there."""
    if recipe.dialect in _OF_DASK:
        return list(entries)
    files = {short(file) for file in recipe.files}
    inner = tuple(recipe.key.split("."))[:-1]  # the profile, or the entry of a host
    found = []
    for entry in entries:
        path = entry.path
        if inner and path[: len(inner)] == inner:
            path = tuple(".".join(path[len(inner) :]).split("."))
        is_given = entry.place.rpartition(":")[0] in files
        if path and (not is_given or path[0] in ("distributed", "jobqueue", "array", "dataframe")):
            found.append(dataclasses.replace(entry, path=path))
    return found


def _look_at(
    recipe: Recipe, call: _Call, configuration: Configuration, findings: list[Finding]
) -> Checked:
    """Return what a cluster is like; what is wrong with it is added to the findings."""
    for remark in recipe.remarks:
        if not _TOLD.search(remark):
            findings.append(Finding("note", recipe.key, recipe.source, remark))
    given = call[2]
    settings = _given(recipe, given, configuration)
    nothing = Checked(recipe.describe(), recipe.backend, recipe.dialect)
    if recipe.backend is None:
        findings += _elsewhere(recipe)
        return dataclasses.replace(nothing, settings=settings)
    with holding(recipe.config):
        try:
            made = make_backend(*call)
            if isinstance(made, JobQueueBackend):
                return _look_at_jobs(made, recipe, given, configuration, findings)
        except DaskspaceError as error:
            place = "option" if given else recipe.source
            remedy = ELSEWHERE["n-workers"] if "n_workers" in given else ""
            findings.append(dataclasses.replace(_refused(error, place), remedy=remedy))
            return nothing
        except Exception as error:
            findings.append(Finding("error", recipe.backend, recipe.source, _broken(error)))
            return nothing
        more, size, numbers = _other(made, given, configuration)
    settings = (*settings, *more)
    return dataclasses.replace(nothing, settings=settings, size=size, numbers=numbers)


def _look_at_jobs(
    backend: JobQueueBackend,
    recipe: Recipe,
    given: Mapping[str, Any],
    configuration: Configuration,
    findings: list[Finding],
) -> Checked:
    section = _section(backend, recipe, given, configuration)
    keywords = configuration.below(_home(recipe))
    workers = keywords.get("n-workers")
    if workers is not None and ("jobs" in keywords or "jobs" in given):
        found = "is passed over, because jobs is set as well"
        findings.append(Finding("warning", "n_workers", workers.place, found, "remove one of them"))
    traps = [*traps_in(section), *_contradictions(backend, given, recipe)]
    if not any(trap.level == "error" for trap in traps):
        traps += _job(backend)
    findings += traps
    listed: dict[str, Setting] = {}
    with contextlib.suppress(Exception):  # what is wrong is among the findings
        listed = {s.name: s for s in settings_of(backend, given) if s.name != "config_name"}
    for key, entry in section.keys.items():
        if key in RENAMED and not (key == "project" and key in section.known):
            continue  # its new name is listed
        if key == "name" and "job_name" in listed:
            continue
        listed.setdefault(_word(key), Setting(_word(key), entry.value, entry.place))
    settings = tuple(_placed(setting, section, given) for setting in listed.values())
    size, numbers = "", None
    with contextlib.suppress(Exception):  # what is wrong is among the findings
        job = size_of(backend)
        size, numbers = job.describe(), dataclasses.asdict(job)
    return Checked(recipe.describe(), recipe.backend, recipe.dialect, settings, size, numbers)


def _elsewhere(recipe: Recipe) -> Iterator[Finding]:
    """Yield what is odd about a cluster that none of our backends starts."""
    address = recipe.address or ""
    if address.startswith("tcp://"):
        found = "is not encrypted: whoever reaches the scheduler can run code as its user"
        yield Finding("note", recipe.key or "address", recipe.source, f"{address} {found}")
    if isinstance(recipe.cluster_class, str):
        package = re.split(r"[.:]", recipe.cluster_class)[0]
        if importlib.util.find_spec(package) is None:
            found = f"there is no package {package} here, which {recipe.cluster_class} needs"
            yield Finding(
                "error", recipe.key, recipe.source, found, "install it into the environment in use"
            )


def _given(
    recipe: Recipe, given: Mapping[str, Any], configuration: Configuration
) -> tuple[Setting, ...]:
    """Return the options of a recipe, and who has set them."""
    keywords = configuration.below(_home(recipe))
    settings = []
    for name, value in recipe.options.items():
        entry = keywords.get(hyphened(name))
        source = entry.place if entry is not None else recipe.source or "option"
        settings.append(Setting(name, value, "option" if name in given else source))
    return tuple(settings)


def _section(
    backend: JobQueueBackend,
    recipe: Recipe,
    given: Mapping[str, Any],
    configuration: Configuration,
) -> Section:
    """Return the settings of a job: those of its section, then keywords, then options."""
    name = backend.section_key
    keys = configuration.below(name)
    home = _home(recipe)
    taken = backend._option_names()
    if home and home != name:
        keys |= {k: e for k, e in configuration.below(home).items() if _word(k) in taken}
    for option in taken.intersection(backend.options) - {"config_name"}:
        key, value = hyphened(option), backend.options[option]
        is_there = key in keys or any(new == key and old in keys for old, new in RENAMED.items())
        if value is not None and (option in given or not is_there):
            is_ours = option not in given and option not in recipe.options
            place = (
                "default of daskspace"
                if is_ours
                else "option"
                if option in given
                else recipe.source
            )
            keys[key] = Entry((option,), value, place)
    system = f"jobqueue.{backend._system}"
    return Section(
        backend._system,
        name,
        keys,
        known_keys(system),
        frozenset(map(hyphened, (*taken, *OWN_OPTIONS))),
        defaults_of(system),
        interfaces(),
        recipe.dialect if recipe.dialect in ("ncar-jobqueue", "dask-hpcconfig") else "",
    )


def _word(key: str) -> str:
    return key.replace("-", "_")


def _placed(setting: Setting, section: Section, given: Mapping[str, Any]) -> Setting:
    """Return a setting with its place in files that Dask does not read by itself."""
    key = hyphened(setting.name)
    entry, source = section.keys.get(key), setting.source
    if entry is None or entry.value in (None, "", []):  # what an older name says counts then
        olds = [
            section.keys[old] for old, new in RENAMED.items() if new == key and old in section.keys
        ]
        entry = next((old for old in olds if old.value == setting.value), entry)
    if entry is None or setting.name in given or source == "default of daskspace":
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
            yield Finding("error", "job script", backend.section_key, found)


def _contradictions(
    backend: JobQueueBackend, given: Mapping[str, Any], recipe: Recipe
) -> Iterator[Finding]:
    """Yield options that exclude each other, or the configuration."""
    place = recipe.source or "option"
    try:
        backend._check_walltime()
    except ConfigError as error:
        if "process_timeout" in str(error):  # what is wrong with walltime itself is told elsewhere
            where = source_of("daskspace.process-timeout", recipe.files).place
            where = "option" if "process_timeout" in given else where or place
            found, _, remedy = str(error).partition(": ")
            yield Finding("error", "process_timeout", where, found, remedy)
    if backend._is_insecure:
        found = "TLS is off: whoever reaches the scheduler can run code as you"
        yield Finding("note", "insecure", place, found, "leave insecure out")
    adapt = backend._own["adapt"]
    if isinstance(adapt, Mapping):
        for kind in ("", "_jobs", "_cores"):
            least, most = adapt.get(f"minimum{kind}"), adapt.get(f"maximum{kind}")
            if isinstance(least, int) and isinstance(most, int) and least > most:
                found = f"minimum{kind} {least} is above maximum{kind} {most}"
                yield Finding("error", "adapt", place, found, "exchange them")
        least, jobs = adapt.get("minimum_jobs"), adapt.get("maximum_jobs", backend._most)
        if isinstance(least, int) and "maximum_jobs" not in adapt and least > jobs:
            found = f"minimum_jobs {least} is above jobs {jobs}"
            yield Finding("error", "adapt", place, found, f"raise jobs to {least}")


def _other(
    backend: DaskBackend, options: Mapping[str, Any], configuration: Configuration
) -> tuple[list[Setting], str, Mapping[str, Any] | None]:
    """Return what else a backend is made from that submits no jobs, and its size."""
    settings = []
    size, numbers = "", None
    if isinstance(backend, MulticoreBackend):
        size, numbers = _local_size(options)
    if isinstance(backend, MpiBackend):
        for key, value in mpi_settings(**backend.options).items():
            if _word(key) not in options:
                entry = configuration.last(("mpi", key))
                source = entry.place if entry is not None else "default of daskspace"
                settings.append(Setting(_word(key), value, source))
    return settings, size, numbers


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
