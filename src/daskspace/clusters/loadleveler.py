"""LoadLeveler, as a dialect of dask-jobqueue."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import math
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.utils import parse_timedelta
from distributed.core import Status
from distributed.deploy.local import nprocesses_nthreads
from distributed.deploy.spec import ProcessInterface

from daskspace.clusters.jobqueue import dask_jobqueue
from daskspace.errors import did_you_mean

logger = logging.getLogger(__name__)

DEFAULTS: Mapping[str, Any] = yaml.safe_load(
    Path(__file__).with_name("loadleveler.yaml").read_text()
)["jobqueue"]["loadleveler"]
dask.config.update_defaults({"jobqueue": {"loadleveler": copy.deepcopy(DEFAULTS)}})

_DIRECTIVE = re.compile(r"\s*#\s*@")
_PREFIX = re.compile(r"(\s*#\s*@)*")
_TIME = re.compile(r"(?:(?:\d+:)?\d+:)?\d+(?:\.\d+)?")
_NO_TIME = {"unlimited", "rlim_infinity", "copy"}
_MEMORY = re.compile(r"0*[1-9]\d*\s*(?:[kmgtpe]?[bw])?", re.IGNORECASE)


def directives(
    values: Mapping[str, Any], skip: Collection[str] = (), extra: Iterable[str] = ()
) -> str:
    """Return `# @ key = value` lines, closed by the obligatory `queue`.

    Parameters
    ----------
    values : mapping
        What is None or empty is left out.
    skip : collection of str
        Lines of `values` that contain one of these are left out.
    extra : iterable of str
        Further directives, with or without ``# @``.

    Raises
    ------
    ValueError
        A value that would end its line or go on in the next one, or a `queue` of its own.
    """
    lines = [f"{key} = {value}" for key, value in values.items() if value not in (None, "")]
    lines = [line for line in lines if not any(word in f"# @ {line}" for word in skip)]
    for line in filter(None, (_PREFIX.sub("", line, count=1).strip() for line in extra)):
        if re.match(r"queue\b", line, re.IGNORECASE):
            raise ValueError("job_extra_directives: 'queue' is added by itself, at the end")
        lines.append(line)
    for line in lines:
        _check_line(line)
    return "\n".join(f"# @ {line}" for line in [*lines, "queue"])


def _check_line(text: str) -> None:
    if any(ord(char) < 32 and char != "\t" for char in text) or text.endswith("\\"):
        raise ValueError(f"a directive must be a single line without control characters: {text!r}")


def megabytes(n_bytes: float) -> int:
    """Return how many of LoadLeveler's megabytes, which are binary, hold `n_bytes`; at least 1."""
    return max(1, math.ceil(n_bytes / 2**20))


def resources(cpus: int, memory: str) -> str:
    """Return the consumable resources of a task; `memory` is in LoadLeveler's words."""
    if isinstance(cpus, bool) or int(cpus) != cpus or cpus < 1:
        raise ValueError(f"ConsumableCpus must be a positive whole number, not {cpus!r}")
    if not _MEMORY.fullmatch(memory):
        raise ValueError(f"ConsumableMemory must be like '3250mb' or '4 gb', not {memory!r}")
    return f"ConsumableCpus({int(cpus)}) ConsumableMemory({memory})"


def wall_clock_limit(value: int | str) -> str:
    """Return `value`, which is ``hard`` or ``hard,soft``, as LoadLeveler takes it.

    Each limit is a number of seconds, ``[[hh:]mm:]ss[.fraction]``, ``unlimited``,
    ``rlim_infinity`` or ``copy``.
    """
    limits = [limit.strip() for limit in str(value).split(",")]
    known = [_TIME.fullmatch(limit) or limit.lower() in _NO_TIME for limit in limits]
    if isinstance(value, bool) or len(limits) > 2 or not all(known):
        raise ValueError(
            "walltime must be like 1800, '00:30:00' or '00:30:00,00:25:00' (hard, soft), "
            f"not {value!r}"
        )
    hard_s, soft_s = _seconds(limits[0]), _seconds(limits[-1])
    if hard_s is not None and soft_s is not None and soft_s > hard_s:
        raise ValueError(
            f"walltime: the soft limit, which comes second, exceeds the hard: {value!r}"
        )
    return ",".join(limits)


def _seconds(limit: str) -> float | None:
    if not _TIME.fullmatch(limit):
        return None
    return sum(float(part) * 60**i for i, part in enumerate(reversed(limit.split(":"))))


def lifetime(walltime: int | str, margin: int | float | str) -> list[str]:
    """Return arguments that end a worker around `margin` before its job's (soft) limit."""
    limit_s = _seconds(wall_clock_limit(walltime).split(",")[-1])
    if limit_s is None:
        return []
    margin_s = parse_timedelta(margin)
    if not 0 < margin_s < limit_s:
        raise ValueError(f"lifetime_margin must be between 0 and the walltime, not {margin!r}")
    stagger_s = min(margin_s, limit_s - margin_s) / 2
    return ["--lifetime", f"{limit_s - margin_s:.0f}s", "--lifetime-stagger", f"{stagger_s:.0f}s"]


def job_key(job_id: str) -> tuple[str, int]:
    """Return what `llsubmit` and `llq` agree on: the short host name and the number of the job.

    >>> job_key("juqueen1c1.zam.kfa-juelich.de.281506") == job_key("juqueen1c1.281506.0")
    True
    """
    *host, last = job_id.split(".")
    number = host.pop() if host and host[-1].isdigit() and last.isdigit() else last
    return (host[0].lower() if host else ""), int(number)


def yes_no(value: bool | str) -> str:
    """Return ``yes`` or ``no``, whichever way a configuration says it."""
    words = {"true": "yes", "yes": "yes", "false": "no", "no": "no"}
    if str(value).lower() not in words:
        raise ValueError(f"restart must be true or false, not {value!r}")
    return words[str(value).lower()]


def absolute(path: str | os.PathLike[str]) -> str:
    """Return `path` with ``~`` and variables put in, which LoadLeveler does not do.

    One that begins with a variable of LoadLeveler's, like ``$(home)``, is left to it.
    """
    path = os.path.expandvars(os.path.expanduser(path))
    return path if path.startswith("$(") else os.path.abspath(path)


def complete_section(name: str) -> None:
    """Give the section `name` of Dask's `jobqueue` configuration what it leaves out."""
    sections = dask.config.get("jobqueue", {})
    if name not in sections and name != LoadLevelerJob.config_name:
        raise ValueError(
            f"there is no section jobqueue.{name} in Dask's configuration"
            f"{did_you_mean(name, sections)}"
        )
    present = {key.replace("_", "-") for key in sections.get(name) or {}}
    if not present.issuperset(DEFAULTS):
        dask.config.update_defaults({"jobqueue": {name: copy.deepcopy(DEFAULTS)}})


def _words(extra: str | Sequence[str]) -> list[str]:
    return shlex.split(extra) if isinstance(extra, str) else [str(word) for word in extra]


async def run(
    command: Sequence[str], *, text: bytes | None = None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run one of LoadLeveler's commands, in English, and return what came of it.

    It gets a session of its own, so that Ctrl-C does not hit it half-way. Raises TimeoutError,
    after killing it, when it takes longer than `timeout_s`.
    """
    logger.debug("Executing: %s", shlex.join(command))
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.DEVNULL if text is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        start_new_session=True,
    )
    try:
        streams = await asyncio.wait_for(process.communicate(text), timeout_s)
    except TimeoutError:
        raise TimeoutError(f"{shlex.join(command)}: no answer within {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    out, err = (stream.decode(errors="replace") for stream in streams)
    return subprocess.CompletedProcess(command, process.returncode or 0, out, err)


class LoadLevelerJob(dask_jobqueue.core.Job):
    """One LoadLeveler job that runs Dask workers; see `LoadLevelerCluster` for its keywords."""

    submit_command = "llsubmit"
    cancel_command = "llcancel"
    config_name = "loadleveler"
    # A submit filter's lines may surround it, and host names hold digits, dots and dashes.
    job_id_regexp = (
        r'llsubmit:\s+The job\s+"(?P<job_id>[^"\s]+)"'
        r"(?:\s+with\s+\d+\s+job\s+steps?)?\s+has been submitted"
    )
    command_timeout_s = 120.0

    job_name: str | None
    _job_script_prologue: list[str]

    def __init__(
        self,
        scheduler: str | None = None,
        name: str | None = None,
        queue: str | None = None,
        account: str | None = None,
        group: str | None = None,
        walltime: int | str | None = None,
        lifetime_margin: int | float | str | None = None,
        job_cpu: int | None = None,
        job_mem: int | str | None = None,
        resources: str | None = None,
        job_type: str | None = None,
        node: int | str | None = None,
        tasks_per_node: int | str | None = None,
        node_usage: str | None = None,
        requirements: str | None = None,
        preferences: str | None = None,
        environment: str | Sequence[str] | None = None,
        initialdir: str | None = None,
        notification: str | None = None,
        notify_user: str | None = None,
        restart: bool | None = None,
        shell: str | None = None,
        comment: str | None = None,
        log_directory: str | None = None,
        worker_extra_args: Sequence[str] | None = None,
        use_stdin: bool | None = None,
        submit_command_extra: Sequence[str] | None = None,
        cancel_command_extra: Sequence[str] | None = None,
        submit_retries: int | None = None,
        submit_retry_delay: int | float | str | None = None,
        config_name: str | None = None,
        **base_class_kwargs: Any,
    ) -> None:
        section = config_name or self.default_config_name()
        complete_section(section)

        def setting(key: str, given: Any) -> Any:
            return dask.config.get(f"jobqueue.{section}.{key}") if given is None else given

        walltime = setting("walltime", walltime)
        margin = setting("lifetime-margin", lifetime_margin)
        arguments = [
            str(argument) for argument in setting("worker-extra-args", worker_extra_args) or ()
        ]
        is_timed = any(re.match(r"--lifetime(=|$)", argument) for argument in arguments)
        if walltime and margin and not is_timed:
            arguments += lifetime(walltime, margin)

        log_directory = setting("log-directory", log_directory)
        if log_directory:
            log_directory = absolute(log_directory)
            _check_line(log_directory)
            if "$" in log_directory:
                raise ValueError(f"log_directory: a variable is not set here: {log_directory!r}")
            os.makedirs(log_directory, exist_ok=True)

        super().__init__(
            scheduler=scheduler,
            name=name,
            config_name=section,
            log_directory=log_directory or None,
            worker_extra_args=arguments,
            **base_class_kwargs,
        )
        if self.job_name is not None:
            self.job_name = re.sub(r"[^A-Za-z0-9_.-]", "_", str(self.job_name))

        self.use_stdin = setting("use-stdin", use_stdin)
        self.submit_retries = int(setting("submit-retries", submit_retries))
        self.submit_retry_delay_s = parse_timedelta(
            setting("submit-retry-delay", submit_retry_delay)
        )
        submit_extra = _words(setting("submit-command-extra", submit_command_extra))
        if "-q" in submit_extra:
            raise ValueError("submit_command_extra: with -q, llsubmit does not tell the job's id")
        cancel_extra = _words(setting("cancel-command-extra", cancel_command_extra))
        self.submit_command = " ".join([self.submit_command, *map(shlex.quote, submit_extra)])
        self.cancel_command = " ".join([self.cancel_command, *map(shlex.quote, cancel_extra)])

        job_type = setting("job-type", job_type)
        is_parallel = str(job_type).lower() in {"parallel", "mpich"}
        node = setting("node", node)
        tasks_per_node = setting("tasks-per-node", tasks_per_node)
        variables = setting("environment", environment)
        variables = variables if isinstance(variables, str) else "; ".join(variables or [])
        comment = setting("comment", comment)
        if comment and '"' in comment:
            raise ValueError(f"comment must not contain a double quote: {comment!r}")
        initialdir = setting("initialdir", initialdir)
        log = f"{log_directory}/{self.job_name or 'dask-worker'}.$(jobid).$(stepid)"
        values = {
            "job_name": self.job_name,
            "job_type": job_type,
            "class": setting("queue", queue),
            "account_no": setting("account", account),
            "group": setting("group", group),
            "comment": f'"{comment}"' if comment else None,
            "node": 1 if node is None and is_parallel else node,
            "tasks_per_node": 1 if tasks_per_node is None and is_parallel else tasks_per_node,
            "node_usage": setting("node-usage", node_usage),
            "resources": self._resources(
                setting("resources", resources),
                setting("job-cpu", job_cpu),
                setting("job-mem", job_mem),
            ),
            "requirements": setting("requirements", requirements),
            "preferences": setting("preferences", preferences),
            "wall_clock_limit": wall_clock_limit(walltime) if walltime else None,
            "environment": variables,
            "shell": setting("shell", shell),
            "initialdir": absolute(initialdir) if initialdir else None,
            "output": f"{log}.out" if log_directory else None,
            "error": f"{log}.err" if log_directory else None,
            "notification": setting("notification", notification),
            "notify_user": setting("notify-user", notify_user),
            "restart": yes_no(setting("restart", restart)),
        }
        extra = self.job_extra_directives
        if isinstance(extra, Mapping):
            extra = [f"{key} = {value}" for key, value in extra.items()]
        self.job_header = directives(values, self.job_directives_skip, extra)

        if "COPY_ALL" in variables.upper() and "LC_ALL" not in variables:  # that of `run` comes too
            own = os.environ.get("LC_ALL")
            line = "unset LC_ALL" if own is None else f"export LC_ALL={shlex.quote(own)}"
            self._job_script_prologue = [line, *self._job_script_prologue]
        self._refuse_stray_directives()

    def _resources(self, text: str | None, cpus: int | None, memory: int | str | None) -> str:
        if text is not None:
            return text
        cpus = self.worker_cores if cpus is None else cpus
        memory = f"{megabytes(self.worker_memory)}mb" if memory is None else memory
        return resources(cpus, str(memory))

    def _refuse_stray_directives(self) -> None:
        """LoadLeveler obeys directives wherever they stand in a file."""
        if not re.fullmatch(r"#!.+", str(self.shebang)):
            raise ValueError(f"shebang must be a single line that begins with #!: {self.shebang!r}")
        epilogue = getattr(self, "_job_script_epilogue", None) or []
        for text in [*self._job_script_prologue, self._command_template, *epilogue]:
            for line in str(text).splitlines():
                if _DIRECTIVE.match(line):
                    raise ValueError(
                        f"LoadLeveler would take this line of the job script for a directive: "
                        f"{line!r}; use job_extra_directives for those"
                    )

    async def start(self) -> None:
        """Submit the job; one that cannot be submitted is `failed`."""
        try:
            await super().start()
        except BaseException:
            self.status = Status.failed
            raise

    async def _submit_job(self, script_filename: str) -> str:
        text = Path(script_filename).read_bytes() if self.use_stdin else None
        command = [*shlex.split(self.submit_command), "-" if self.use_stdin else script_filename]
        for attempt in range(self.submit_retries):
            try:
                return await self._call(command, text=text)
            except RuntimeError as error:
                delay_s = self.submit_retry_delay_s * 2**attempt
                logger.warning("%s is tried again in %g s: %s", self.name, delay_s, error)
                await asyncio.sleep(delay_s)
        return await self._call(command, text=text)

    async def close(self) -> None:
        """Cancel the job, once."""
        if self.status in (Status.closing, Status.closed):
            return
        self.status = Status.closing
        await super().close()
        await ProcessInterface.close(self)

    @classmethod
    async def _close_job(cls, job_id: str | None, cancel_command: str) -> None:
        if job_id:
            try:
                await cls._call([*shlex.split(cancel_command), job_id])
            except (RuntimeError, OSError) as error:  # it may be gone already
                logger.warning("Job %s could not be cancelled: %s", job_id, error)

    @classmethod
    async def _call(cls, cmd: Sequence[str], *, text: bytes | None = None) -> str:
        """Return both streams of a command, standard output first.

        Raises RuntimeError when its exit code is not 0, TimeoutError when it does not end.
        """
        ran = await run(cmd, text=text, timeout_s=cls.command_timeout_s)
        if ran.returncode != 0:
            raise RuntimeError(
                "Command exited with non-zero exit code.\n"
                f"Exit code: {ran.returncode}\n"
                f"Command:\n{shlex.join(cmd)}\n"
                f"stdout:\n{ran.stdout}\n"
                f"stderr:\n{ran.stderr}\n"
            )
        if ran.stderr:
            logger.info("%s said: %s", cmd[0], ran.stderr.rstrip())
        return ran.stdout + ran.stderr


class LoadLevelerCluster(dask_jobqueue.JobQueueCluster):  # noqa: D101 - it has one
    __doc__ = f""" Launch Dask on a LoadLeveler cluster

    Values are LoadLeveler's own and go into the job command file as they are. An empty string
    leaves out a directive that has a default.

    Parameters
    ----------
    queue : str
        Class of each worker job. Passed to `# @ class`.
    account : str
        Account to charge. Passed to `# @ account_no`.
    group : str
        LoadLeveler group. Passed to `# @ group`.
    {dask_jobqueue.core.job_parameters}
    {dask_jobqueue.core.cluster_parameters}
    walltime : int or str
        Wall clock limit of each worker job, ``hard`` or ``hard,soft``, each in seconds or as
        ``[[hh:]mm:]ss``. Passed to `# @ wall_clock_limit`.
    lifetime_margin : str
        End workers around this long before the (soft) limit, so that they can hand over their
        results: adds ``--lifetime`` and ``--lifetime-stagger``. Defaults to no lifetime.
    job_cpu : int
        ConsumableCpus of a job. Defaults to `cores`.
    job_mem : str
        ConsumableMemory of a job, like ``'3250mb'``; LoadLeveler's units are binary, and it
        takes a bare number for megabytes. Defaults to `memory`.
    resources : str
        Passed to `# @ resources` instead of what `job_cpu` and `job_mem` say. An empty string is
        for sites without consumable resources.
    job_type : str
        ``serial`` (default), ``parallel``, ``MPICH`` or ``bluegene``. With ``parallel`` and
        ``MPICH``, one task on one node is asked for unless `node` and `tasks_per_node` say more.
    node, tasks_per_node, node_usage, requirements, preferences, initialdir, shell : str
        Passed to the directives of the same names.
    environment : str or list of str
        Passed to `# @ environment`. Defaults to ``COPY_ALL``.
    notification : str
        When LoadLeveler sends mail. Defaults to ``never``.
    notify_user : str
        Whom it sends mail.
    restart : bool
        Whether a job that LoadLeveler vacates is queued again. Defaults to False, because the
        cluster replaces it.
    comment : str
        Passed to `# @ comment`.
    use_stdin : bool
        Submit by ``llsubmit -`` instead of a temporary file.
    submit_command_extra : list of str
        Extra arguments to pass to llsubmit, like ``['-X', 'cluster']``
    cancel_command_extra : list of str
        Extra arguments to pass to llcancel
    submit_retries : int
        How often a submission is tried again that failed. Defaults to 3.
    submit_retry_delay : str
        Time before the first retry, doubled before each further one. Defaults to ``'1s'``.
    job_extra : list or dict
        Deprecated: use ``job_extra_directives`` instead. This parameter will be removed in a
        future version.
    job_extra_directives : list or dict
        Other LoadLeveler directives, like ``network.MPI = sn_all,not_shared,us``. Each will be
        prepended with ``# @``.

    Attributes
    ----------
    submit_error : Exception or None
        Why a job could last not be submitted. Such jobs are dropped, so that the next ``scale``,
        or ``adapt``, tries again.

    Examples
    --------
    >>> from daskspace.clusters import LoadLevelerCluster
    >>> cluster = LoadLevelerCluster(queue='general', cores=24, memory='60 GB',
    ...                              walltime='04:00:00,03:55:00', log_directory='~/dask-logs')
    >>> cluster.scale(jobs=10)  # ask for 10 jobs

    >>> from dask.distributed import Client
    >>> client = Client(cluster)

    This also works with adaptive clusters, which launch and kill workers based on load.

    >>> cluster.adapt(maximum_jobs=20)
    """
    job_cls = LoadLevelerJob
    status: Status

    def __init__(
        self,
        *args: Any,
        config_name: str | None = None,
        processes: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.submit_error: BaseException | None = None
        job_cls = kwargs.get("job_cls") or self.job_cls
        section = config_name or job_cls.default_config_name()
        complete_section(section)
        processes = processes or dask.config.get(f"jobqueue.{section}.processes")
        cores = kwargs.get("cores") or dask.config.get(f"jobqueue.{section}.cores")
        if processes is None and cores:
            processes, _ = nprocesses_nthreads(cores)
        # Said outright, for the names of a job's workers depend on it.
        try:
            super().__init__(*args, config_name=config_name, processes=processes or 1, **kwargs)
        except BaseException:
            if self.status == Status.created:  # nothing is open that would have to be closed
                self.status = Status.closed
            raise

    async def _close(self) -> None:
        await super()._close()
        for key in ("ca_file", "key", "cert"):  # the files that were written for the workers
            if file := getattr(self, f"_job_{key}", None):
                file.close()

    async def _correct_state_internal(self) -> None:
        try:
            await super()._correct_state_internal()
        except Exception as error:
            for name, job in list(self.workers.items()):
                if job.status == Status.failed:
                    self.submit_error = error
                    del self.workers[name]
                    self.worker_spec.pop(name, None)
            raise

    async def _wait_for_workers(self, n_workers: int = 0, timeout: Any = None) -> None:
        """Wait, unless the jobs that are missing could not be submitted."""
        waiting = asyncio.ensure_future(super()._wait_for_workers(n_workers, timeout))
        try:
            while not waiting.done():
                if self.submit_error is not None and len(self.plan) < n_workers:
                    raise RuntimeError(
                        f"{len(self.plan)} of {n_workers} workers are to come: {self.submit_error}"
                    ) from self.submit_error
                await asyncio.wait([waiting], timeout=0.1)
        finally:
            waiting.cancel()
        await waiting
