"""Backends on batch systems, by the cluster classes of dask-jobqueue."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import re
import secrets
import shutil
import string
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import dask.config
from dask.utils import parse_bytes, parse_timedelta
from distributed import Security, WorkerPlugin
from distributed.deploy.spec import ProcessInterface

from daskspace.backends.base import LONG_S
from daskspace.backends.connection import Connection
from daskspace.backends.dask_backend import DaskBackend
from daskspace.backends.fleet import Fleet, FleetOptions
from daskspace.backends.options import BATCH_OPTIONS, configured
from daskspace.clusters.jobqueue import dask_jobqueue
from daskspace.clusters.keys import is_encrypted, key_paths, make_keys, not_encrypted
from daskspace.clusters.listening import scheduler_options, worker_arguments
from daskspace.clusters.own_config import inheritance, put
from daskspace.clusters.queues import QUEUES, Queue
from daskspace.clusters.walltime import Walltime, margin
from daskspace.errors import ConfigError
from daskspace.execution.creator import hold
from daskspace.execution.isolation import JOB_START
from daskspace.execution.job_record import PRIVATE_PREFIX, JobRecord
from daskspace.execution.status import Jobs, Status
from daskspace.results.directory import unusable

_START_S = 60.0
"""How long a worker may take from the begin of its job until it looks for the scheduler."""
_SAFE_ADAPT = {"minimum_jobs": 0, "interval": "5s", "wait_count": 12}
_PLAIN_PATH = re.compile(r"[\w./+@,=:~-]+", re.ASCII)
_PATH_IN_COMMAND = re.compile(r"[\w./+@,=:~-]+")
_COMMANDS = (
    *("python", "worker_command", "worker_extra_args", "extra", "local_directory", "interface"),
    *("name", "protocol", "death_timeout", "memory", "cores", "processes"),
)
"""Options that dask-jobqueue puts into the command line of a worker as they are."""
_SHELL = re.compile(r"[;&|<>`\n\r\0]|\$\(")


class JobQueueBackend(DaskBackend):
    """Runs the processes in batch jobs, by a cluster class of dask-jobqueue.

    A backend for a batch system that dask-jobqueue knows is a class with a `cluster_class`.

    Parameters
    ----------
    jobs : int
        How many batch jobs there may be at the same time; 1 by default. Fewer are asked for if
        fewer processes are left.
    adapt : bool or mapping
        Let Dask decide on the number of jobs, up to `jobs`; a mapping holds keywords of
        ``cluster.adapt``. Off by default: on a queue, jobs are cancelled and asked for again.
    query_interval : float or str
        Seconds between two looks at the queue; 30 by default.
    insecure : bool
        Whether scheduler and workers may talk without TLS: whoever reaches them over the network
        can then run code as this user.
    **options
        Keywords of the cluster class, untouched, beside those of `DaskBackend`.

    Raises
    ------
    ConfigError
        An option is unknown, or has a value that it cannot take.
    """

    cluster_class: ClassVar[type[dask_jobqueue.JobQueueCluster]]
    option_hints: ClassVar[Mapping[str, str]] = {
        "n_workers": ": jobs says how many jobs there may be, processes how many workers one has"
    }

    def __init__(self, **options: Any) -> None:
        self._fleet: Fleet | None = None
        self._own = {name: configured(name) for name in BATCH_OPTIONS}
        self._own.update({name: options.pop(name) for name in BATCH_OPTIONS if name in options})
        super().__init__(**options)
        self._most = _count(self._own["jobs"], "jobs")
        self._query_every = _duration(self._own["query_interval"], "query_interval")
        _check_values(self.options)

    def job_script(self) -> str:
        """Return what would be submitted for a job; nothing is started or written.

        Raises
        ------
        ConfigError
            An option has a value that it cannot take.
        """
        if self.cluster is not None:
            return str(self.cluster.job_script())
        keywords = self._keywords(Path("<private directory>"), key_paths)
        for name in _parameters(dask_jobqueue.JobQueueCluster.__init__):
            if name not in ("interface", "protocol", "config_name"):
                keywords.pop(name, None)
        job_class = self.options.get("job_cls") or self.cluster_class.job_cls
        scheme = "tcp" if self._is_insecure else "tls"
        address = f"{scheme}://<address of the scheduler>"
        logs = str(keywords.pop("log_directory", "<result directory>/jobs"))
        try:
            # Whoever makes a job makes the directory of its logs as well.
            with tempfile.TemporaryDirectory() as passing:
                job = job_class(address, name="<worker>", log_directory=passing, **keywords)
                return str(job.job_script()).replace(passing, logs)
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{self}: {' '.join(str(error).split())}") from error

    def stage_in(self, operation: Any) -> None:
        """Open the cluster if it is not open, and reserve the operation's result directory.

        Jobs are asked for when the operation is executed.

        Raises
        ------
        ConfigError
            A process may run longer than a job.
        ClusterStartError, DirectoryError
            As `DaskBackend.stage_in`.
        """
        hold(operation)
        self._check_step("stage_in")
        self._check_walltime()
        super().stage_in(operation)

    def execute(self, timeout: float | None = LONG_S) -> None:
        """Execute all processes of the staged operation; see `DaskBackend.execute`."""
        self._check_step("execute")
        with ExitStack() as undo:
            undo.callback(self._let_go)
            self._begin_jobs()
            super().execute(timeout)
            undo.pop_all()

    def check_status(self) -> Status:
        """Return how far the operation has come, and what its jobs do; see `Status`."""
        fleet = self._fleet
        jobs = fleet.status() if fleet is not None else Jobs()
        return dataclasses.replace(super().check_status(), jobs=jobs)

    def cleanup(self) -> None:
        """Let go of the current operation; see `DaskBackend.cleanup`.

        Jobs that have workers stay for the next operation until `close`; others are cancelled.
        """
        super().cleanup()
        self._let_go()

    def _open_cluster(self) -> Any:
        self.job_script()  # raises before anything is started
        shared = self._setting("shared_temp_directory") or os.getcwd()
        shared = os.path.abspath(os.path.expanduser(os.path.expandvars(shared)))
        if not (self._is_insecure or _PATH_IN_COMMAND.fullmatch(shared)):
            raise ConfigError(
                f"jobs cannot read their keys in {shared!r}: job scripts know no such names; give"
                " another directory as shared_temp_directory"
            )
        private = Path(tempfile.mkdtemp(prefix=PRIVATE_PREFIX, dir=shared))
        self._resources.callback(shutil.rmtree, private, ignore_errors=True)
        keywords = self._keywords(private, make_keys)
        fleet = Fleet(self._queue, keywords["name"], self._fleet_options(), self._log)
        self._resources.callback(fleet.close)
        cluster = _recorded(self.options.get("job_cls"), self.cluster_class, fleet)(**keywords)
        fleet.attach(cluster)
        self._private, self._fleet = private, fleet
        return cluster

    def _reconnect(self) -> Connection:
        connection = super()._reconnect()
        self._begin_jobs()
        return connection

    def _disconnect(self) -> None:
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            fleet.prepare_to_close()
        super()._disconnect()

    def _count_slots(self) -> int | None:
        slots = super()._count_slots()
        fleet = self._fleet
        if fleet is None:
            return slots
        fleet.check()
        return slots or (None if fleet.knows_queue else 0)

    def _worker_plugins(self) -> list[WorkerPlugin]:
        walltime = self._walltime
        return [*super()._worker_plugins(), *([Walltime(walltime)] if walltime else [])]

    @classmethod
    def _option_names(cls) -> frozenset[str]:
        cluster, job = cls.cluster_class, cls.cluster_class.job_cls
        names = {n for c in (*cluster.__mro__, *job.__mro__) for n in _parameters(c.__init__)}
        unfit = {"asynchronous", "loop", "scheduler", "worker", "n_workers", "scheduler_cls"}
        return frozenset((names | set(BATCH_OPTIONS)) - unfit)

    def _begin_jobs(self) -> None:
        fleet, stage = self._fleet, self._staged()
        assert fleet is not None  # noqa: S101 - it has been there since `stage_in`
        directory = stage.directory
        try:
            record = JobRecord(
                directory.jobs_record, self._system, fleet.job_name, fleet.extra, self._private
            )
            fleet.begin(record, stage.count_left, self._log_directory(directory.jobs))
        except OSError as error:
            raise unusable(directory.path, error) from error

    def _let_go(self) -> None:
        if self._fleet is not None:
            self._fleet.end()

    def _log_directory(self, ours: Path) -> Path | None:
        """Return where jobs write their logs: where the user wants them, else with the results."""
        if configured := self._configured_logs:
            return configured
        if not _PLAIN_PATH.fullmatch(str(ours)):
            self._log(f"jobs cannot write their logs to {ours}: job scripts know no such names")
            return None
        ours.mkdir(exist_ok=True)
        assert self.cluster is not None  # noqa: S101 - it has been there since `stage_in`
        self.cluster.new_spec["options"]["log_directory"] = str(ours)
        return ours

    def _keywords(self, private: Path, keys_in: Callable[[Path], Security]) -> dict[str, Any]:
        """Return the keywords for the cluster class: the user's, and where there are none, ours."""
        keywords = {key: value for key, value in self.options.items() if key != "job_cls"}
        unique = "".join(secrets.choice(string.digits + "bcdfghjkmnpqrstvwxz") for _ in range(5))
        keywords.setdefault("name", f"daskspace-{unique}")  # PBS takes 15 characters
        if self._setting("job_name", "name") in (None, "dask-worker"):
            keywords["job_name"] = keywords["name"]
        cores, memory = self._setting("cores"), self._setting("memory")
        if cores is None or memory is None:
            raise ConfigError(
                f"{self} needs cores and memory of a job, such as cores=4, memory='8 GB'; on the"
                f" command line: -O cores=4 -O memory='8 GB'; in Dask's configuration:"
                f" {self.section_key}.cores and .memory"
            )
        _check_size(cores, memory)
        # With one thread each; said outright, for the names of workers depend on it.
        keywords["processes"] = int(self._setting("processes") or cores)
        keywords["scheduler_options"] = scheduler_options(self._setting("scheduler_options") or {})
        arguments = self._setting("worker_extra_args") or self._setting("extra") or []
        keywords["worker_extra_args"] = worker_arguments(arguments)
        shebang = self._setting("shebang") or ""
        if re.search(r"\b(ba|da|k|z)?sh\b", shebang):
            prologue = self._setting("job_script_prologue") or self._setting("env_extra") or []
            own = [f'export {JOB_START}="$(date +%s)"', "export MALLOC_MMAP_THRESHOLD_=33554432"]
            inherited = inheritance(self.recipe.config) if self.recipe else None
            own += [f"export DASK_INTERNAL_INHERIT_CONFIG={inherited}"] if inherited else []
            keywords["job_script_prologue"] = [*own, *prologue]
        if not self._is_insecure and self.options.get("security") in (None, True):
            keywords["security"] = keys_in(private)
        if logs := self._configured_logs:
            keywords["log_directory"] = str(logs)  # no batch system knows ~
        return keywords

    @property
    def _configured_logs(self) -> Path | None:
        configured = self._setting("log_directory")
        return Path(os.path.expanduser(os.path.expandvars(configured))) if configured else None

    def _fleet_options(self) -> FleetOptions:
        adapt = self._own["adapt"] or None
        if adapt is not None:
            given = adapt if isinstance(adapt, Mapping) else {}
            adapt = {**_SAFE_ADAPT, "maximum_jobs": self._most, **given}
        death = parse_timedelta(self._setting("death_timeout") or 60)
        lost = dask.config.get("distributed.deploy.lost-worker-timeout")
        return FleetOptions(
            most=self._most,
            per_job=int(self._setting("cores")),
            query_every=self._query_every,
            arrival=death + _START_S,
            lost_after=parse_timedelta(lost),
            no_workers_timeout=self._run_options.policies.no_workers_timeout,
            adapt=adapt,
            extra=tuple(self._setting("cancel_command_extra") or ()),
        )

    @property
    def _system(self) -> str:
        return str(self.cluster_class.job_cls.default_config_name())

    @property
    def section_key(self) -> str:
        """Where Dask's configuration has the settings of the jobs, such as ``jobqueue.slurm``."""
        if self.recipe is not None and self.recipe.section_key:
            return self.recipe.section_key
        return f"jobqueue.{self.options.get('config_name') or self._system}"

    @property
    def _section(self) -> str:
        name = str(self.options.get("config_name") or self._system)
        if self.recipe is not None and self.recipe.section is not None:
            put(name, self.recipe.section)
        return name

    @property
    def _queue(self) -> Queue | None:
        return QUEUES.get(self._system)

    @property
    def _is_insecure(self) -> bool:
        insecure = bool(self._own["insecure"])
        scheduler = self._setting("scheduler_options") or {}
        protocols = filter(None, (o.get("protocol") for o in (self.options, scheduler)))
        plain = not all(map(is_encrypted, protocols)) or self.options.get("security") is False
        if (plain or not scheduler.get("security", True)) and not insecure:
            raise not_encrypted()
        return insecure

    @property
    def _walltime(self) -> float | None:
        """The time limit of a job, in seconds; None if there is none."""
        value = self._setting("walltime")
        if self._queue is None or value in (None, ""):
            return None
        try:
            return self._queue.walltime(value)
        except ValueError as error:
            raise ConfigError(f"{self}: walltime: {error}") from None

    def _check_walltime(self) -> None:
        walltime, limit = self._walltime, self._run_options.process_timeout
        if walltime is None or limit is None:
            return
        usable = walltime - margin(walltime)
        if limit > usable:
            raise ConfigError(
                f"process_timeout is {limit:g} s, but a job of walltime {self._setting('walltime')}"
                f" has {usable:g} s for a process: raise walltime, or lower process_timeout"
            )

    def _setting(self, name: str, key: str | None = None) -> Any:
        """Return an option, or what Dask's configuration says in its place."""
        if self.options.get(name) is not None:
            return self.options[name]
        return dask.config.get(f"jobqueue.{self._section}.{key or name.replace('_', '-')}", None)


def _recorded(
    job_class: type[Any] | None, cluster_class: type[Any], fleet: Fleet
) -> type[dask_jobqueue.JobQueueCluster]:
    """Return the cluster class with jobs that are written down before they are used."""
    base = job_class or cluster_class.job_cls

    class RecordedJob(base):  # type: ignore[misc, valid-type]
        def _job_id_from_submit_output(self, out: str) -> str:
            self.job_id = super()._job_id_from_submit_output(out)
            fleet.take_in(self, self.job_id)
            return str(self.job_id)

        async def close(self) -> None:
            if fleet.is_to_be_cancelled(self):
                await super().close()
            await ProcessInterface.close(self)

    RecordedJob.__name__ = base.__name__
    return type(cluster_class.__name__, (cluster_class,), {"job_cls": RecordedJob})


def _parameters(function: Any) -> set[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return {parameter.name for parameter in found if parameter.kind not in kinds} - {"self"}


def _check_values(options: Mapping[str, Any]) -> None:
    """Refuse values with which a job script would do something else than it says."""
    for name, value in options.items():
        if name in ("job_script_prologue", "env_extra"):
            continue  # these are lines of the script
        if name in ("scheduler_options", "security"):
            continue  # these are not in it
        for text in _texts_in(value):
            wrong = _SHELL.search(text) if name in _COMMANDS else re.search(r"[\n\r\0]", text)
            if wrong:
                raise ConfigError(
                    f"{name}: {text!r} would run as a command of the job script, because of"
                    f" {wrong[0]!r}; what is to run there belongs into job_script_prologue"
                )


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts_in([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_in(item)


def _check_size(cores: Any, memory: Any) -> None:
    for name, value, take, like in (("cores", cores, int, 4), ("memory", memory, _bytes, "8 GB")):
        try:
            fits = take(value) > 0
        except (TypeError, ValueError):
            fits = False
        if not fits:
            raise ConfigError(f"{name} of a job must be like {like!r}, not {value!r}")


def _bytes(value: Any) -> int:
    return int(parse_bytes(value))


def _count(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def _duration(value: Any, name: str) -> float:
    try:
        seconds = float(parse_timedelta(value))
    except (TypeError, ValueError, KeyError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{name} must be seconds, such as 30 or '1 minute', not {value!r}")
    return seconds


class SlurmBackend(JobQueueBackend):
    """Runs the processes in jobs of Slurm, by `dask_jobqueue.SLURMCluster`."""

    cluster_class = dask_jobqueue.SLURMCluster


class PBSBackend(JobQueueBackend):
    """Runs the processes in jobs of PBS or Torque, by `dask_jobqueue.PBSCluster`."""

    cluster_class = dask_jobqueue.PBSCluster


class SGEBackend(JobQueueBackend):
    """Runs the processes in jobs of Grid Engine, by `dask_jobqueue.SGECluster`."""

    cluster_class = dask_jobqueue.SGECluster


class LSFBackend(JobQueueBackend):
    """Runs the processes in jobs of LSF, by `dask_jobqueue.LSFCluster`."""

    cluster_class = dask_jobqueue.LSFCluster


class HTCondorBackend(JobQueueBackend):
    """Runs the processes in jobs of HTCondor, by `dask_jobqueue.HTCondorCluster`."""

    cluster_class = dask_jobqueue.HTCondorCluster


class OARBackend(JobQueueBackend):
    """Runs the processes in jobs of OAR, by `dask_jobqueue.OARCluster`."""

    cluster_class = dask_jobqueue.OARCluster


class MoabBackend(JobQueueBackend):
    """Runs the processes in jobs of Moab, by `dask_jobqueue.MoabCluster`."""

    cluster_class = dask_jobqueue.MoabCluster
