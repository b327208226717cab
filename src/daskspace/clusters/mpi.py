"""`MpiCluster`: scheduler and workers as the ranks of one MPI job."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.config
import yaml
from dask.system import CPU_COUNT
from dask.utils import parse_timedelta
from distributed.core import Status, rpc
from distributed.deploy.cluster import Cluster
from distributed.security import Security
from distributed.system import MEMORY_LIMIT
from distributed.utils import Log, Logs

from daskspace.clusters import mpi_guard
from daskspace.clusters.keys import choose_security, config_of_tls
from daskspace.clusters.listening import dashboard_at, is_local, loopback_interface
from daskspace.clusters.mpi_job import MpiJob
from daskspace.clusters.mpi_launcher import (
    INSTALL,
    SETTINGS_BELOW_SRUN,
    allocation_slots,
    find_launcher,
    hint_for,
    inspect_launcher,
    launch_command,
    launch_environment,
    matching_library,
    pmi_of_library,
    stays_here,
    world_size,
)
from daskspace.errors import ClusterStartError, ConfigError
from daskspace.execution.environment import without_rank

_ADDRESS_FILE = "scheduler.json"
_LOOK_S = 0.05
_ANSWER_S = 2.0
_STATUS_S = 2.0

_DEFAULTS = yaml.safe_load(Path(__file__).with_name("mpi.yaml").read_text("utf-8"))
dask.config.update_defaults(_DEFAULTS)


class MpiCluster(Cluster):
    """A Dask cluster whose scheduler and workers are the ranks of one MPI job.

    It starts ``mpiexec -n N+1 python -m dask_mpi.cli``, and it is one unit: workers are neither
    added nor removed. Where all ranks are on this host, all of Dask listens on 127.0.0.1 alone;
    otherwise traffic is encrypted with keys made for the run. What MPI listens on is its own. What
    is not given is taken from ``mpi:`` in Dask's configuration.

    Parameters
    ----------
    n_workers : int, optional
        By default the slots of the allocation of a batch system, else the number of cores.
    launcher : str or list of str, optional
        A command, such as ``srun``. By default the ``mpiexec`` beside this Python, then on PATH.
    launcher_args : list of str
        Added to the launcher as they are.
    nthreads, memory_limit, local_directory, interface, protocol, dashboard_address
        As of ``dask-mpi``.
    worker_class, worker_options
        The class of the workers, and keywords for it.
    hosts : list of str, optional
        Where to run, such as ``["node1", "node2:4"]``.
    hostfile : str, optional
        Handed on to the launcher unchanged.
    directory : str, optional
        Where ranks find each other while they start; on a file system of all hosts. By default the
        directory for temporary files, or the current one where ranks may run on other hosts.
    env : dict
        Variables for the ranks; they can be seen in the list of processes.
    security : Security or bool, optional
        By default made when needed; False for none.
    insecure : bool
        Whether others may reach it without TLS, and so run code as this user.
    start_timeout, close_timeout, orphan_timeout
        Seconds, or a text such as ``60s``: how long the start may take, how long the job may
        take to end by itself, and after how long it ends when its owner and all clients are gone.

    Raises
    ------
    ClusterStartError
        It did not come up; nothing is left over.
    ConfigError
        An argument has a value that it cannot take, others could reach it without TLS, or this
        program is a rank itself.
    """

    _supports_scaling = False

    def __init__(
        self,
        n_workers: int | None = None,
        *,
        launcher: str | Sequence[str] | None = None,
        launcher_args: Sequence[str] | None = None,
        nthreads: int | None = None,
        memory_limit: str | float | None = None,
        hosts: Sequence[str] | None = None,
        hostfile: str | None = None,
        interface: str | None = None,
        protocol: str | None = None,
        dashboard_address: str | None = None,
        local_directory: str | None = None,
        directory: str | None = None,
        worker_class: str | None = None,
        worker_options: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        security: Security | bool | None = None,
        insecure: bool | None = None,
        start_timeout: str | float | None = None,
        close_timeout: str | float | None = None,
        orphan_timeout: str | float | None = None,
        name: str | None = None,
        asynchronous: bool = False,
        loop: Any = None,
    ) -> None:
        self._job: MpiJob | None = None
        self._directory: Path | None = None
        self._ends: asyncio.Task[None] | None = None
        self._cleaning: weakref.finalize[..., Any] | None = None
        self.end: str | None = None
        ranks = world_size(os.environ)
        if ranks > 1:
            raise ConfigError(
                f"this program is one of {ranks} ranks of an MPI job, and each would start a"
                " cluster of its own: start it once, or use the backend with mode='world'"
            )
        for module in ("mpi4py", "dask_mpi"):
            if importlib.util.find_spec(module) is None:
                raise ClusterStartError(f"the Python module {module!r} is missing: {INSTALL}")
        setting = mpi_settings(
            n_workers=n_workers,
            launcher=launcher,
            launcher_args=launcher_args,
            nthreads=nthreads,
            memory_limit=memory_limit,
            hosts=hosts,
            hostfile=hostfile,
            interface=interface,
            protocol=protocol,
            dashboard_address=dashboard_address,
            local_directory=local_directory,
            directory=directory,
            worker_class=worker_class,
            worker_options=worker_options,
            env=env,
            insecure=insecure,
            start_timeout=start_timeout,
            close_timeout=close_timeout,
            orphan_timeout=orphan_timeout,
        )
        self._settings = setting
        self._environment = without_rank(os.environ)
        self._launcher = inspect_launcher(find_launcher(setting["launcher"]))
        self._is_local = stays_here(
            self._launcher, setting["hosts"], setting["hostfile"], self._environment
        )
        self._n_workers = _count_workers(setting, self._environment)
        self._start_timeout = parse_timedelta(setting["start-timeout"])
        self._close_timeout = parse_timedelta(setting["close-timeout"])
        on_loopback = self._is_local and asks_for_loopback(setting)
        self._interface = loopback_interface() if on_loopback else setting["interface"]
        self.security, self._protocol = choose_security(
            security, setting["protocol"], on_loopback, setting["insecure"]
        )
        super().__init__(asynchronous=asynchronous, loop=loop, name=name, quiet=True)
        if not self.called_from_running_loop:
            self._loop_runner.start()
            try:
                self.sync(self._start)
            except BaseException:
                self.close()
                raise

    def __await__(self) -> Any:
        async def start() -> MpiCluster:
            if self.status == Status.created:
                try:
                    await self._start()
                except BaseException:
                    await self._close()
                    raise
            return self

        return start().__await__()

    async def _start(self) -> None:
        self.status = Status.starting
        deadline = time.monotonic() + self._start_timeout
        parent = self._settings["directory"] or (None if self._is_local else os.getcwd())
        try:
            if parent is not None:
                os.makedirs(parent, exist_ok=True)
            self._directory = Path(tempfile.mkdtemp(prefix=".daskspace-mpi-", dir=parent))
        except OSError as error:
            raise ClusterStartError(f"the directory of the MPI job: {error}") from error
        self._launch(self._directory)
        address = await self._wait_for_scheduler(self._directory / _ADDRESS_FILE, deadline)
        arguments = self.security.get_connection_args("client") if self.security else {}
        self.scheduler_comm = rpc(address, connection_args=arguments)
        left = max(deadline - time.monotonic(), 1.0)
        await asyncio.wait_for(super()._start(), left)
        self._owning = await self.scheduler_comm.live_comm()
        await self._owning.write({"op": mpi_guard.OPERATION, "reply": False})
        await self._wait_for_workers_to_join(deadline)
        assert self._job is not None  # noqa: S101 - for mypy
        self._job.note_ranks()
        shutil.rmtree(self._directory, ignore_errors=True)  # each rank has read what is there
        self._ends = asyncio.ensure_future(self._note_end())

    def _launch(self, directory: Path) -> None:
        setting = self._settings
        by_srun = self._launcher.flavour == "srun"
        config = directory / "dask.yaml"
        for file in (config, directory / _ADDRESS_FILE):  # which the scheduler would open to all
            file.touch(0o600)
        config.write_text(yaml.safe_dump(self._config_of_ranks()), "utf-8")
        variables = {
            "DASK_CONFIG": str(config),
            **matching_library(self._launcher, self._environment),
            **{str(name): str(value) for name, value in setting["env"].items()},
        }
        command = launch_command(
            self._launcher,
            self._n_workers + 1,
            self._command_of_ranks(directory, variables),
            setting["hosts"],
            setting["hostfile"],
            [str(argument) for argument in setting["launcher-args"]],
            pmi_of_library(self._environment) if by_srun else None,
        )
        # what they say is in the configuration already, with what was set later
        environment = {k: v for k, v in self._environment.items() if not k.startswith("DASK_")}
        path = os.pathsep.join([os.path.dirname(command[0]), environment.get("PATH", os.defpath)])
        if self._is_local:  # within a step of Slurm, MPICH would wait for another step
            environment = {"HYDRA_LAUNCHER": "fork", **environment}
        if by_srun:
            environment = {**SETTINGS_BELOW_SRUN, **environment}
        environment = {**launch_environment(environment), "PATH": path, **variables}
        try:
            self._job = MpiJob(command, environment)
        except OSError as error:
            raise ClusterStartError(f"{self._launcher.name} cannot be run: {error}") from error
        self._cleaning = weakref.finalize(self, _clean, self._job, directory)

    def _command_of_ranks(self, directory: Path, variables: Mapping[str, str]) -> list[str]:
        setting = self._settings
        memory = setting["memory-limit"]
        if memory == "auto" and self._is_local:
            memory = int(MEMORY_LIMIT / self._n_workers)
        options = {
            "death_timeout": max(self._start_timeout, 1.0),
            **setting["worker-options"],
        }
        options["dashboard_address"] = dashboard_at(options.get("dashboard_address"))
        given = {
            "--scheduler-file": directory / _ADDRESS_FILE,
            "--scheduler-port": 0,
            "--interface": self._interface,
            "--protocol": self._protocol,
            "--nthreads": setting["nthreads"],
            "--memory-limit": memory,
            "--local-directory": setting["local-directory"],
            "--dashboard-address": dashboard_at(setting["dashboard-address"]),
            "--worker-class": setting["worker-class"],
            "--worker-options": json.dumps(options),
            "--name": "mpi",
        }
        flags = [str(part) for pair in given.items() if pair[1] is not None for part in pair]
        set_variables = ["/usr/bin/env", *(f"{name}={value}" for name, value in variables.items())]
        return [*set_variables, sys.executable, "-m", "dask_mpi.cli", *flags]

    def _config_of_ranks(self) -> dict[str, Any]:
        """Return this program's Dask configuration, with keys and guard for the ranks."""
        config: dict[str, Any] = _plain(dask.config.config)
        config.pop("scheduler-address", None)
        changes: dict[str, Any] = config_of_tls(self.security)
        if self._settings["orphan-timeout"] is not None:
            before = dask.config.get("distributed.scheduler.preload", []) or []
            before = [before] if isinstance(before, str) else list(before)
            arguments = dask.config.get("distributed.scheduler.preload-argv", []) or []
            if not (arguments and isinstance(arguments[0], str)):
                arguments = [*(list(arguments) or [[]] * len(before)), []]
            changes |= {
                "distributed.scheduler.preload": [*before, mpi_guard.__name__],
                "distributed.scheduler.preload-argv": arguments,
                "mpi.orphan-timeout": self._settings["orphan-timeout"],
            }
        dask.config.set(changes, config=config)
        return config

    async def _wait_for_scheduler(self, file: Path, deadline: float) -> str:
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError):  # it is not written at once
                return str(json.loads(file.read_text())["address"])
            self._check_start(deadline, "the scheduler")
            await asyncio.sleep(_LOOK_S)

    async def _wait_for_workers_to_join(self, deadline: float) -> None:
        while (joined := len(self.scheduler_info["workers"])) < self._n_workers:
            self._check_start(deadline, f"workers ({joined} of {self._n_workers} have come)")
            await asyncio.sleep(_LOOK_S)

    def _check_start(self, deadline: float, what: str) -> None:
        """Raise if there is no point in waiting on."""
        assert self._job is not None  # noqa: S101 - for mypy
        status = self._job.exit_status()
        if status is not None:
            text = f"{self._launcher.name} ended with status {status} before {what} came up"
        elif time.monotonic() > deadline:
            text = f"timed out after {self._start_timeout:g} s of waiting for {what}"
        else:
            return
        raise ClusterStartError(text + self._told_by_log())

    def _told_by_log(self) -> str:
        tail = self._job.tail() if self._job else ""
        return f"{hint_for(tail)}; end of its log:\n{tail}" if tail else "; its log is empty"

    async def _note_end(self) -> None:
        """Note how the job ended when it does so unasked."""
        assert self._job is not None  # noqa: S101 - for mypy
        assert self._watch_worker_status_task is not None  # noqa: S101 - for mypy
        await asyncio.wait([self._watch_worker_status_task])
        if self.status != Status.running:
            return
        until = time.monotonic() + _STATUS_S
        while (status := self._job.exit_status()) is None and time.monotonic() < until:
            await asyncio.sleep(_LOOK_S)
        how = "has lost its scheduler" if status is None else f"ended with status {status}"
        self.end = f"the MPI job {how}{self._told_by_log()}"
        if self.status == Status.running:
            self.status = Status.failed

    async def _close(self) -> None:
        if self.status == Status.closed:
            return
        if self._job is not None and not self._job.has_ended():
            self._job.note_ranks()
        running = self.status == Status.running
        self.status = Status.closing
        if running and self.scheduler_comm is not None:
            await terminate(self.scheduler_comm)
        if self._ends is not None:
            self._ends.cancel()
        owning = getattr(self, "_owning", None)
        if owning is not None:
            owning.abort()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(super()._close(), _ANSWER_S)
        until = time.monotonic() + (self._close_timeout if running else 0)
        while self._job is not None and not self._job.has_ended() and time.monotonic() < until:
            await asyncio.sleep(_LOOK_S)
        if self._cleaning is not None:
            await asyncio.to_thread(self._cleaning)
        elif self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
        self.status = Status.closed

    def close(self, timeout: float | None = None) -> Any:
        """End the job, in every state; harmless when repeated.

        Parameters
        ----------
        timeout : float, optional
            Seconds after which it raises TimeoutError; by default it waits until all has ended,
            which takes at most some ten seconds.
        """
        was_closed = self.status == Status.closed
        closing = super().close(timeout)
        if not self.asynchronous and not was_closed:
            self._loop_runner.stop()
        return closing

    async def _get_logs(
        self, cluster: bool = True, scheduler: bool = True, workers: bool = True
    ) -> Logs:
        logs = await super()._get_logs(cluster=cluster, scheduler=scheduler, workers=workers)
        if cluster and self._job is not None:
            logs["MPI job"] = Log(self._job.log())
        return logs


def asks_for_loopback(settings: Mapping[str, Any]) -> bool:
    """Return whether nothing is to listen where other hosts could reach it."""
    workers = settings["worker-options"]
    return settings["interface"] is None and is_local(workers.get("host"), workers.get("interface"))


def mpi_settings(**given: Any) -> dict[str, Any]:
    """Return what was given, and for the rest what Dask's configuration says under ``mpi``."""
    settings = {}
    for name, default in _DEFAULTS["mpi"].items():
        value = given.get(name.replace("-", "_"))
        value = dask.config.get(f"mpi.{name}", default) if value is None else value
        settings[name] = default if value is None and default in ([], {}) else value
    return settings


async def terminate(scheduler: Any) -> None:
    """Ask the nannies, then the scheduler to end.

    Told by the scheduler alone, each nanny would wait two seconds for its worker.
    """

    async def end_nannies() -> None:
        workers = (await scheduler.identity())["workers"].values()
        nannies = [worker["nanny"] for worker in workers if worker["nanny"]]
        await scheduler.broadcast(msg={"op": "terminate"}, workers=nannies, on_error="ignore")

    with contextlib.suppress(Exception):
        await asyncio.wait_for(end_nannies(), _ANSWER_S)
    with contextlib.suppress(Exception):
        await asyncio.wait_for(scheduler.terminate(), _ANSWER_S)


def _count_workers(setting: Mapping[str, Any], environment: Mapping[str, str]) -> int:
    number = setting["n-workers"]
    if number is None:
        if setting["hosts"] or setting["hostfile"]:
            raise ConfigError("where hosts are given, n_workers has to be given as well")
        number = allocation_slots(environment) or CPU_COUNT
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ConfigError(f"n_workers must be a whole number of at least 1, not {number!r}")
    return number


def _plain(value: Any) -> Any:
    """Return what of a configuration can be written down."""
    if isinstance(value, Mapping):
        return {
            str(key): _plain(item)
            for key, item in value.items()
            if item is None or isinstance(item, Mapping | list | tuple | str | int | float)
        }
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def _clean(job: MpiJob, directory: Path) -> None:
    job.kill()
    shutil.rmtree(directory, ignore_errors=True)
