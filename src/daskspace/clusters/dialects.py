"""Tells what people give for a cluster: a name, a section, a file of any dialect, an address."""

from __future__ import annotations

import math
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dask.config

from daskspace.clusters.config_files import Contents, is_path, read_configs, shipped_configs
from daskspace.clusters.section import (
    BACKEND_OF,
    filled,
    hyphened,
    is_installed,
    is_set_up,
    put_right,
    system_named,
    system_of,
)
from daskspace.clusters.sources import source_of
from daskspace.errors import ConfigError, did_you_mean

NAMES = ("serial", "mcore", "mpi", "loadl", *(n for n in BACKEND_OF.values() if n != "loadl"))
"""The names of our backends."""

_SYSTEM_OF = {backend: system for system, backend in BACKEND_OF.items()}
_CLASSES = {
    **{f"{system.upper()}Cluster": system for system in ("slurm", "pbs", "sge", "lsf", "oar")},
    "MoabCluster": "moab",
    "HTCondorCluster": "htcondor",
    "LoadLevelerCluster": "loadleveler",
}
_ADDRESS = re.compile(r"([a-z][a-z0-9+]*)://\S+")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(:[A-Za-z_][\w.]*|\.[A-Za-z_]\w*)")
_SCHEDULERS = {
    **dict.fromkeys(("threads", "threading", "processes", "multiprocessing"), "mcore"),
    **dict.fromkeys(("synchronous", "sync", "single-threaded"), "serial"),
}
"""For each of Dask's schedulers on one machine, the backend that comes nearest."""
_WORDS = {
    "local": "distributed:LocalCluster",
    "ssh": "distributed:SSHCluster",
    "yarn": "dask_yarn:YarnCluster",
    "kube": "dask_kubernetes:KubeCluster",
    "kubernetes": "dask_kubernetes:KubeCluster",
}
"""Kinds of clusters that are named by one word."""


@dataclass(frozen=True)
class Recipe:
    """How a backend is made from what was given.

    Parameters
    ----------
    dialect : str
        What it was taken for, for people.
    key : str
        What in it was decisive, such as ``jobqueue.casper``; empty for what is its own name.
    source : str
        Where that is, for people: a file and its line, a variable; empty if nowhere.
    backend : str, optional
        The name of a backend; None for an address, a live cluster, or a class of another package.
    options : mapping
        Keywords for the backend.
    config : mapping
        Dask configuration that holds for this backend alone.
    system : str, optional
        The batch system, by the name of its section in dask-jobqueue.
    section : mapping, optional
        The whole section that dask-jobqueue is to read; None if it is to read that of `system`.
    section_key : str
        Where that is in the configuration, such as ``jobqueue.casper``.
    remarks : tuple of str
        What was put right, or passed over.
    files : tuple of Path
        The files that were read; a later one counts more.
    address, scheduler_file : str, optional
        A scheduler that runs already.
    target : object, optional
        A live cluster or client.
    cluster_class : str or callable, optional
        A dotted class, or a class or function itself, which makes a cluster.
    args : tuple
        Positional arguments for it.
    adapt : mapping, optional
        Keywords of ``cluster.adapt``.
    client_kwargs : mapping
        Keywords for the client.
    """

    dialect: str
    key: str = ""
    source: str = ""
    backend: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None
    section: Mapping[str, Any] | None = None
    section_key: str = ""
    remarks: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    address: str | None = None
    scheduler_file: str | None = None
    target: Any = None
    cluster_class: Any = None
    args: tuple[Any, ...] = ()
    adapt: Mapping[str, Any] | None = None
    client_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """Return which backend it is, and why, in one line."""
        made = self.backend or self.address or self.scheduler_file or _name_of(self.cluster_class)
        made = made or repr(self.target)
        by = f", by {self.key}" if self.key else ""
        where = f" in {self.source}" if self.key and self.source else ""
        where = where or (f", with {self.source}" if self.source else "")
        return f"{made}{by}{where}"


def recognise(
    given: Any,
    config: Any = None,
    options: Mapping[str, Any] | None = None,
    other_names: Callable[[], Iterable[str]] = tuple,
) -> Recipe:
    """Return how a backend is made from what was given; starts and imports nothing.

    It is taken for the first of these that fits: a live cluster or client, a class or function, a
    mapping, a path; and a text for the name of a backend, a section of Dask's configuration, an
    address, a file or directory, a shipped configuration, a dotted class.

    Parameters
    ----------
    given
        What is to be recognised. None is for the one backend that `config` is about.
    config : path, str, mapping or list of them, optional
        Configuration that counts more than Dask's files and less than its environment variables.
    options : mapping, optional
        Keywords, which count more than all else. ``system`` says which batch system a section is
        for.
    other_names : callable
        Returns the names of backends that are not ours.

    Raises
    ------
    ConfigError
        It is nothing that is known, or it is ambiguous.
    """
    contents = Contents({}) if config is None else read_configs(config)
    asked = dict(options or {})
    told = asked.pop("system", None)
    about = _About(contents, told, asked)
    recipe = _recognised(given, about, other_names)
    if told is not None and recipe.system is None:
        asked["system"] = told  # a keyword of another cluster class
    elif told is not None and system_named(told, "system") != recipe.system:
        raise ConfigError(f"system={told!r} does not fit {recipe.describe()}")
    return replace(recipe, options={**recipe.options, **asked})


def sections() -> list[str]:
    """Return the names of the sections that the user's Dask configuration has for job queues."""
    found = dask.config.get("jobqueue", None, config=dask.config.collect())
    named = found.items() if isinstance(found, Mapping) else ()
    return [str(name) for name, keys in named if isinstance(keys, Mapping)]


@dataclass(frozen=True)
class _About:
    """What recognition knows beside what was given."""

    contents: Contents
    told: Any = None
    asked: Mapping[str, Any] = field(default_factory=dict)

    @property
    def values(self) -> Mapping[str, Any]:
        return self.contents.values

    @property
    def place(self) -> str:
        return self.contents.place

    @property
    def config(self) -> dict[str, Any]:
        """The given configuration as it counts: the environment counts more."""
        if not self.values:
            return {}
        variables = {k: v for k, v in os.environ.items() if k != "DASK_INTERNAL_INHERIT_CONFIG"}
        merged = dask.config.merge(self.values, dask.config.collect_env(variables))
        return _alike(merged, self.values)

    def jobqueue(self) -> Mapping[str, Any]:
        """Return all sections for job queues, as they count."""
        given = _keys(self.config.get("jobqueue"), "jobqueue", self)
        live = _keys(dask.config.get("jobqueue", None), "jobqueue", self)
        return dask.config.merge(live, given)

    def recipe(self, dialect: str, **more: Any) -> Recipe:
        apart = ("jobqueue", "labextension") if more.get("backend") else ()
        config = {k: v for k, v in self.config.items() if k not in apart}
        more.setdefault("source", self.place)
        more["config"] = dask.config.merge(config, more.get("config", {}))
        return Recipe(dialect, files=self.contents.files, **more)

    def and_also(self, given: Any) -> _About:
        """Return this with more configuration, which counts less."""
        first = read_configs(given)
        values = dask.config.merge(first.values, self.values)
        place = ", ".join(filter(None, (first.place, self.place)))
        contents = Contents(values, (*first.files, *self.contents.files), place)
        return replace(self, contents=contents)


def _recognised(given: Any, about: _About, other_names: Callable[[], Iterable[str]]) -> Recipe:
    if given is None or given == "":
        return _of_contents(about) if about.values else _of_default(about, other_names)
    if isinstance(given, str):
        return _of_text(given, about, other_names)
    if isinstance(given, Mapping | list | tuple | os.PathLike):
        return _of_contents(about.and_also(given))
    if _is_live(given):
        kind = "live client" if hasattr(given, "submit") else "live cluster"
        return about.recipe(kind, target=given)
    if isinstance(given, type):
        return _of_class(about, "class", given)
    if callable(given):
        return about.recipe("factory", cluster_class=given)
    raise ConfigError(
        f"no backend can be made from {given!r}: give a name, a section of Dask's configuration, a"
        " file, an address, a class, a cluster, or a client"
    )


def _of_default(about: _About, other_names: Callable[[], Iterable[str]]) -> Recipe:
    name = dask.config.get("daskspace.backend", None) or "serial"
    recipe = _of_text(str(name), about, other_names)
    where = source_of("daskspace.backend").place
    if where and not recipe.key:
        recipe = replace(recipe, key="daskspace.backend", source=where)
    return recipe


def _of_text(given: str, about: _About, other_names: Callable[[], Iterable[str]]) -> Recipe:
    if given in NAMES:
        return _of_name(given, about)
    entry = _entry_named(given, about)
    if entry is not None:
        return entry
    name = given.removeprefix("jobqueue.")
    known = about.jobqueue()
    if name in known or name in BACKEND_OF:
        return _of_section(about, name)
    if given.startswith("jobqueue."):
        raise ConfigError(
            f"there is no section {given} in Dask's configuration"
            f"{did_you_mean(name, [*known, *BACKEND_OF])}"
        )
    if _ADDRESS.fullmatch(given):
        return _of_address(about, given, "address")
    if is_path(given):
        return _of_contents(about.and_also(given))
    if given in shipped_configs():
        return _of_contents(about.and_also(given))
    theirs = list(other_names())
    if given in theirs:
        return about.recipe("name", backend=given)
    if _DOTTED.fullmatch(given) and ("." in given or ":" in given):
        return _of_class(about, "class", given)
    everything = [*NAMES, *theirs, *sections(), *shipped_configs()]
    named = "".join(
        f"; {what}: {', '.join(names)}"
        for what, names in (
            ("sections of your Dask configuration", sections()),
            ("shipped configurations", shipped_configs()),
        )
        if names
    )
    near = did_you_mean(given, dict.fromkeys(everything))
    if re.fullmatch(r"[\w.-]+:\d+", given):
        near = f"; did you mean 'tcp://{given}'?"
    raise ConfigError(
        f"unknown backend {given!r}; known are {', '.join([*NAMES, *theirs])}{named}{near}"
    )


def _of_name(name: str, about: _About) -> Recipe:
    """Return the recipe for the name of one of our backends, with the configuration given."""
    system = _SYSTEM_OF.get(name)
    foreign = _foreign(about) if about.values else None
    if foreign is not None and foreign.backend == name:
        return foreign
    if foreign is not None and foreign.dialect != "labextension":  # every JupyterLab has one
        raise ConfigError(
            f"{about.place} is for {foreign.describe()}; leave the backend {name} out, or give"
            " another configuration"
        )
    if system is None:
        return about.recipe("name", backend=name)
    return _of_section(about, str(about.asked.get("config_name") or system), system)


def _of_section(about: _About, name: str, system: str | None = None) -> Recipe:
    """Return the recipe for a section of the `jobqueue` configuration."""
    found = about.jobqueue().get(name)
    key = f"jobqueue.{name}"
    if found is None and name not in BACKEND_OF:
        raise ConfigError(
            f"there is no section {key} in Dask's configuration"
            f"{did_you_mean(name, about.jobqueue())}"
        )
    keys = _keys(found, key, about)
    place = source_of(key, about.contents.files).place
    if not place and _has(about.values.get("jobqueue") or {}, name):
        place = about.place
    system = system or system_of(name, keys, about.told, f"{key} in {place or about.place}")
    right, remarks = put_right(keys, system, lambda k: _spelled(f"{key}.{k}", about))
    full = filled(right, system)
    unchanged = name == system and not remarks and "jobqueue" not in about.values
    return about.recipe(
        "jobqueue",
        key=key if place else "",
        source=place or about.place,
        backend=BACKEND_OF[system],
        system=system,
        section=None if unchanged else full,
        section_key=key,
        remarks=remarks,
    )


def _of_address(about: _About, address: str, dialect: str, **more: Any) -> Recipe:
    if address.startswith("gateway://"):
        raise ConfigError(
            f"{address} is a cluster behind a Dask Gateway, which is reached by a class of its own:"
            " dask_gateway.GatewayCluster, on the command line -b dask_gateway.GatewayCluster"
        )
    scheme = address.partition("://")[0]
    if scheme in ("http", "https", "file", "ssh"):
        raise ConfigError(
            f"{address} is no address of a scheduler: these begin with tcp://, tls://, ucx:// or"
            " ws://, and are told when one starts"
        )
    return about.recipe(dialect, address=address, **more)


def _of_class(
    about: _About,
    dialect: str,
    given: Any,
    keywords: Mapping[str, Any] | None = None,
    **more: Any,
) -> Recipe:
    """Return the recipe for a cluster class; where one of our backends fits, it is that."""
    if not (isinstance(given, str) or callable(given)):
        raise ConfigError(f"{about.place}: {given!r} is no class")
    name = _name_of(given)
    last, root = re.split(r"[.:]", name)[-1], re.split(r"[.:]", name)[0]
    options = {str(k).replace("-", "_"): v for k, v in (keywords or {}).items()}
    if options.pop("asynchronous", False):
        raise ConfigError(f"{about.place or name}: asynchronous clusters cannot be used")
    if dialect == "class" and isinstance(given, str):
        more["key"] = given
    batch = root in ("dask_jobqueue", "daskspace") and last in _CLASSES
    local = root in ("dask", "distributed") and last == "LocalCluster"
    if (batch or local) and more.get("args"):
        raise ConfigError(f"{about.place}: give the arguments of {name} by their names, as kwargs")
    if batch:
        return _of_keywords(about, dialect, _CLASSES[last], options, **more)
    if local:
        return _of_local(about, dialect, options, **more)
    workers = more.pop("workers", None)
    if root == "daskspace" and last == "MpiCluster":
        options = {**options, "n_workers": workers} if workers else options
        return about.recipe(dialect, backend="mpi", options=options, **more)
    if isinstance(given, str) and ":" not in given and "." not in given:
        raise ConfigError(
            f"{about.place}: {given!r} is no dotted class, such as distributed.LocalCluster"
        )
    if workers and not more.get("adapt"):  # not every class has a keyword for it
        more["adapt"] = {"minimum": workers, "maximum": workers}
    return about.recipe(dialect, cluster_class=given, options=options, **more)


def _of_keywords(
    about: _About, dialect: str, system: str, keywords: Mapping[str, Any], **more: Any
) -> Recipe:
    """Return the recipe for keywords of a cluster class of dask-jobqueue."""
    base = _of_section(about, str(keywords.get("config_name") or system), system)
    right, remarks = put_right(keywords, system, lambda key: "")
    options = {key.replace("-", "_"): value for key, value in right.items() if key != "config-name"}
    section = base.section if base.section is not None else {}
    cores = options.get("cores") or _setting(section, system, "cores")
    workers = options.get("processes") or _setting(section, system, "processes") or cores or 1
    workers = _whole(workers, "processes", about)
    standard = more.pop("workers", None)
    wanted = options.pop("n_workers", standard)
    jobs = options.get("jobs")
    if wanted:
        jobs = math.ceil(_whole(wanted, "n_workers", about) / workers)
        options.setdefault("jobs", jobs)
    if adapt := dict(more.pop("adapt", None) or {}):
        for name in ("minimum", "maximum"):
            if adapt.get(name) is not None:
                count = _whole(adapt.pop(name), name, about)
                adapt.setdefault(f"{name}_jobs", math.ceil(count / workers))
        options["adapt"] = {key: value for key, value in adapt.items() if value is not None}
        options.setdefault("jobs", adapt.get("maximum_jobs") or jobs or 1)
    if more.get("client_kwargs"):
        remarks = (*remarks, "the keywords for the client are passed over")
    return about.recipe(
        dialect,
        backend=BACKEND_OF[system],
        system=system,
        section=base.section,
        section_key=base.section_key,
        options=options,
        remarks=(*base.remarks, *remarks),
        **more,
    )


def _of_local(about: _About, dialect: str, options: dict[str, Any], **more: Any) -> Recipe:
    workers, adapt = more.pop("workers", None), more.pop("adapt", None) or {}
    workers = workers or adapt.get("maximum")
    if workers and not options.get("n_workers"):
        options["n_workers"] = workers
    remarks: tuple[str, ...] = ()
    if adapt:
        remarks = ("all workers of this machine are started at once, not as they are needed",)
    if more.get("client_kwargs"):
        remarks = (*remarks, "the keywords for the client are passed over")
    return about.recipe(dialect, backend="mcore", options=options, remarks=remarks, **more)


def _of_word(
    about: _About, dialect: str, key: str, word: Any, keywords: Mapping[str, Any], **more: Any
) -> Recipe:
    """Return the recipe for a kind of cluster: a word such as ``pbs``, or a dotted class."""
    name = str(word)
    if "." in name or ":" in name:
        return _of_class(about, dialect, name, keywords, key=key, **more)
    if name in _WORDS:
        return _of_class(about, dialect, _WORDS[name], keywords, key=key, **more)
    return _of_keywords(about, dialect, system_named(name, about.place), keywords, key=key, **more)


# What a file, or a mapping, holds


def _of_contents(about: _About) -> Recipe:
    """Return the recipe for what a configuration is about."""
    if not about.values:
        raise ConfigError(
            f"{about.place} configures nothing: {_why_empty(about.contents)}; see"
            f" {', '.join(shipped_configs())} among the shipped configurations"
        )
    foreign = _foreign(about)
    if foreign is not None:
        return foreign
    own = about.values.get("daskspace")
    if isinstance(own, Mapping) and own.get("backend"):
        return _of_text_in_file(str(own["backend"]), about)
    found = [name for name, keys in _jobqueue_of(about).items() if is_set_up(keys)]
    if found:
        return _of_section(about, _the_one(found, about))
    simple = _of_scheduler(about, about.values, "Dask configuration", "")
    if simple is not None:
        return simple
    slip = did_you_mean("jobqueue", about.values) and "; is the section jobqueue meant?"
    raise ConfigError(
        f"{about.place} names no cluster, only {', '.join(map(str, about.values))}: say which"
        f" backend it is for, such as create_backend('mcore', config=...), on the command line"
        f" -b mcore --config FILE{slip}"
    )


def _of_text_in_file(name: str, about: _About) -> Recipe:
    known = name in NAMES or name.removeprefix("jobqueue.") in about.jobqueue()
    if not known and (is_path(name) or name in shipped_configs()):
        raise ConfigError(
            f"{about.place}: daskspace.backend must not be another configuration: {name!r}"
        )
    return _of_text(name, about, tuple)


def _foreign(about: _About) -> Recipe | None:
    """Return the recipe of the first dialect, of those that are not jobqueue's, that fits."""
    for dialect in (
        _scheduler_file,
        _dask_ctl,
        _prefect,
        _labextension,
        _esmvaltool,
        _dagster,
        _hpcconfig,
        _ncar,
    ):
        recipe = dialect(about)
        if recipe is not None:
            return recipe
    return None


def _scheduler_file(about: _About) -> Recipe | None:
    values = about.values
    if not ("address" in values and "workers" in values and len(about.contents.files) == 1):
        return None
    return about.recipe("scheduler file", scheduler_file=str(about.contents.files[0]), source="")


def _dask_ctl(about: _About) -> Recipe | None:
    spec = about.values
    if not ("version" in spec and "class" in spec):
        return None
    if spec["version"] != 1:
        raise ConfigError(f"{about.place}: dask-ctl's version {spec['version']!r} is unknown; 1 is")
    name = f"{spec['module']}:{spec['class']}" if spec.get("module") else str(spec["class"])
    args = _listed(spec.get("args"), "args", about)
    keywords = _keys(spec.get("kwargs"), "kwargs", about)
    return _of_class(about, "dask-ctl", name, keywords, key="class", args=args)


def _prefect(about: _About) -> Recipe | None:
    given = {str(key).replace("-", "_"): value for key, value in about.values.items()}
    words = ("cluster_class", "cluster_kwargs", "adapt_kwargs", "client_kwargs")
    if not any(word in given for word in words) and not _is_address(given.get("address")):
        return None
    keywords = {word: _keys(given.get(word), word, about) for word in words[1:]}
    more = {"client_kwargs": keywords["client_kwargs"]}
    if address := given.get("address"):
        clash = [word for word in words[:3] if given.get(word)]
        if clash:
            raise ConfigError(f"{about.place}: address and {clash[0]} exclude each other")
        recipe = _of_address(about, str(address), "prefect-dask", key="address", **more)
    else:
        recipe = _of_class(
            about,
            "prefect-dask",
            given.get("cluster_class") or "distributed:LocalCluster",
            keywords["cluster_kwargs"],
            key="cluster_class" if given.get("cluster_class") else "cluster_kwargs",
            adapt=keywords["adapt_kwargs"] or None,
            **more,
        )
    if given.get("performance_report_path"):
        recipe = replace(recipe, options={**recipe.options, "performance_report": True})
    return recipe


def _labextension(about: _About) -> Recipe | None:
    extension = about.values.get("labextension")
    if not isinstance(extension, Mapping):
        return None
    factory = extension.get("factory")
    if not (isinstance(factory, Mapping) and factory.get("class")):
        return None
    module = factory.get("module") or "distributed"
    if is_set_up(about.values.get("jobqueue")) and not str(module).startswith("dask_jobqueue"):
        return None
    standard = _keys(extension.get("default"), "labextension.default", about)
    return _of_class(
        about,
        "labextension",
        f"{module}:{factory['class']}",
        _keys(factory.get("kwargs"), "labextension.factory.kwargs", about),
        key="labextension.factory",
        args=_listed(factory.get("args"), "labextension.factory.args", about),
        workers=standard.get("workers"),
        adapt=standard.get("adapt"),
    )


def _esmvaltool(about: _About, wanted: str | None = None) -> Recipe | None:
    settings = about.values.get("dask")
    if isinstance(settings, Mapping) and isinstance(settings.get("profiles"), Mapping):
        profiles = settings["profiles"]
        name = wanted or settings.get("use") or _the_one(list(profiles), about)
        if name not in profiles:
            near = did_you_mean(str(name), profiles)
            raise ConfigError(
                f"{about.place}: there is no profile {name!r}; known are"
                f" {', '.join(map(str, profiles))}{near}"
            )
        return _profile(about, profiles[name], f"dask.profiles.{name}.")
    cluster = about.values.get("cluster")
    client = about.values.get("client")
    if isinstance(cluster, Mapping) and cluster.get("type"):
        return _profile(about, {"cluster": cluster}, "", _keys(client, "client", about))
    if isinstance(client, Mapping) and _is_address(client.get("address")):
        rest = {key: value for key, value in client.items() if key != "address"}
        return _of_address(
            about, client["address"], "ESMValTool", key="client.address", client_kwargs=rest
        )
    return None


def _profile(
    about: _About, profile: Any, before: str, client: Mapping[str, Any] | None = None
) -> Recipe:
    given = dict(_keys(profile, before.rstrip("."), about))
    cluster = given.pop("cluster", None)
    address = given.pop("scheduler_address", None) or given.pop("scheduler-address", None)
    rest: dict[str, Any] = {}
    dask.config.set(given, config=rest)  # which takes keys with dots apart
    alone = replace(about, contents=replace(about.contents, values={}))
    if address:
        recipe = _of_address(alone, str(address), "ESMValTool", key=f"{before}scheduler_address")
    elif cluster is None:
        simple = _of_scheduler(alone, given, "ESMValTool", before)
        recipe = simple or alone.recipe("ESMValTool", backend="serial", key=before.rstrip("."))
    else:
        keywords = dict(_keys(cluster, f"{before}cluster", about))
        name = keywords.pop("type", None) or "distributed.LocalCluster"
        more = {"client_kwargs": client} if client else {}
        recipe = _of_word(alone, "ESMValTool", f"{before}cluster", name, keywords, **more)
    config = dask.config.merge(recipe.config, rest)
    return replace(recipe, config=config, files=about.contents.files)


def _dagster(about: _About) -> Recipe | None:
    cluster = about.values.get("cluster")
    execution = about.values.get("execution")
    if cluster is None and isinstance(execution, Mapping):
        inner = execution.get("config")
        cluster = inner.get("cluster") if isinstance(inner, Mapping) else None
    if not (isinstance(cluster, Mapping) and len(cluster) == 1):
        return None
    ((word, keywords),) = cluster.items()
    known = {*BACKEND_OF, *_WORDS, "existing"}
    if word not in known:
        return None
    given = _keys(keywords, f"cluster.{word}", about)
    if word == "existing":
        address = str(given.get("address") or "")
        return _of_address(about, address, "dagster-dask", key="cluster.existing")
    return _of_word(about, "dagster-dask", f"cluster.{word}", word, given)


def _hpcconfig(about: _About, wanted: str | None = None) -> Recipe | None:
    found = [
        name
        for name, entry in about.values.items()
        if isinstance(entry, Mapping)
        and isinstance(entry.get("cluster"), Mapping)
        and "type" in entry["cluster"]
    ]
    if not found or wanted not in (None, *found):
        return None
    name = wanted or _the_one(found, about)
    entry = dict(about.values[name])
    keywords = dict(entry.pop("cluster"))
    rest = {key: value for key, value in about.values.items() if key not in found}
    contents = replace(about.contents, values=dask.config.merge(rest, entry))
    alone = replace(about, contents=contents)
    word = keywords.pop("type")
    return _of_word(alone, "dask-hpcconfig", f"{name}.cluster", word, keywords)


def _ncar(about: _About, wanted: str | None = None) -> Recipe | None:
    hosts = [
        str(name)
        for name, entry in about.values.items()
        if isinstance(entry, Mapping) and entry and all(key in BACKEND_OF for key in entry)
    ]
    slip = did_you_mean("jobqueue", hosts)
    if not hosts or slip or wanted not in (None, *hosts):
        return None
    here = os.environ.get("NCAR_HOST") or socket.gethostname().partition(".")[0]
    named = [host for host in hosts if here.startswith(host)]
    host = wanted or (named[0] if named else _the_one(hosts, about))
    entry = about.values[host]
    system = _the_one(list(entry), about, f"{host}.") if about.told is None else about.told
    system = system_named(system, "system")
    if system not in entry:
        raise ConfigError(f"{about.place}: {host} has {', '.join(entry)}, not {system}")
    key = f"{host}.{system}"
    right, remarks = put_right(
        _keys(entry[system], key, about), system, lambda k: _spelled(f"{key}.{k}", about)
    )
    others = {name: value for name, value in about.values.items() if name not in hosts}
    alone = replace(about, contents=replace(about.contents, values=others))
    return alone.recipe(
        "ncar-jobqueue",
        key=key,
        backend=BACKEND_OF[system],
        system=system,
        section=filled(right, system),
        section_key=key,
        remarks=remarks,
    )


def _of_scheduler(
    about: _About, values: Mapping[str, Any], dialect: str, before: str
) -> Recipe | None:
    """Return the recipe for Dask's own keys that say where work is done."""
    address = values.get("scheduler-address") or values.get("scheduler_address")
    if _is_address(address):
        return _of_address(about, str(address), dialect, key=f"{before}scheduler-address")
    word = values.get("scheduler")
    if not isinstance(word, str) or word not in _SCHEDULERS:
        return None
    backend = _SCHEDULERS[word]
    workers = values.get("num_workers") or values.get("num-workers")
    options = {"n_workers": workers} if workers and backend == "mcore" else {}
    return about.recipe(dialect, backend=backend, options=options, key=f"{before}scheduler")


def _entry_named(name: str, about: _About) -> Recipe | None:
    """Return the recipe for an entry of the given configuration, such as a host or a profile."""
    values = about.values
    if name in values and isinstance(values[name], Mapping) and name != "jobqueue":
        return _hpcconfig(about, name) or _ncar(about, name)
    settings = values.get("dask")
    profiles = settings.get("profiles") if isinstance(settings, Mapping) else None
    if isinstance(profiles, Mapping) and name in profiles:
        return _esmvaltool(about, name)
    return None


def _the_one(names: list[str], about: _About, before: str = "") -> str:
    """Return the only name, or the only one whose batch system is installed here."""
    if len(names) == 1:
        return names[0]
    if about.told in names:
        return str(about.told)
    systems = [name for name in names if name in BACKEND_OF and is_installed(name)]
    if len(systems) == 1:
        return systems[0]
    several = ", ".join(f"{before}{name}" for name in names)
    first = BACKEND_OF.get(names[0], names[0])
    raise ConfigError(
        f"{about.place} holds several: {several}; say which, such as create_backend({first!r},"
        f" config=...), on the command line -b {first} --config FILE"
    )


def _jobqueue_of(about: _About) -> Mapping[str, Any]:
    found = about.values.get("jobqueue")
    return _keys(found, "jobqueue", about)


def _keys(value: Any, key: str, about: _About) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        where = source_of(key, about.contents.files).place or about.place
        raise ConfigError(f"{where}: {key} must hold keys, not {value!r}")
    return value


def _whole(value: Any, name: str, about: _About) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if number < 0 or isinstance(value, bool):
        raise ConfigError(f"{about.place}: {name} must be a whole number, not {value!r}")
    return number


def _listed(value: Any, name: str, about: _About) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple | None):
        raise ConfigError(f"{about.place}: {name} must be a list, not {value!r}")
    return tuple(value or ())


def _setting(section: Mapping[str, Any], system: str, key: str) -> Any:
    return section.get(key) or dask.config.get(f"jobqueue.{system}.{key}", None)


def _spelled(key: str, about: _About) -> str:
    return source_of(key, about.contents.files).text


def _is_address(value: Any) -> bool:
    return isinstance(value, str) and _ADDRESS.fullmatch(value) is not None


def _is_live(given: Any) -> bool:
    return not isinstance(given, type) and (
        hasattr(given, "scheduler_address") or hasattr(given, "scheduler_info")
    )


def _name_of(given: Any) -> str:
    if given is None or isinstance(given, str):
        return given or ""
    return f"{getattr(given, '__module__', '')}:{getattr(given, '__qualname__', repr(given))}"


def _alike(values: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values whose keys are in `like` as well."""
    found = {}
    for key, model in like.items():
        value = values[key]
        both = isinstance(value, Mapping) and isinstance(model, Mapping)
        found[key] = _alike(value, model) if both else value
    return found


def _has(values: Mapping[str, Any], key: str) -> bool:
    return key in values or any(hyphened(k) == hyphened(key) for k in values)


def _why_empty(contents: Contents) -> str:
    for path in contents.files:
        if path.read_text(encoding="utf-8-sig").strip():
            return "every line is commented out, so remove the # where a value is to count"
    return "it is empty"
