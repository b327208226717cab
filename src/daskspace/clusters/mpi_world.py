"""The MPI world that this program was started in: one rank goes on, the others are its cluster."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import importlib.util
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import dask.config
from distributed.core import rpc
from distributed.security import Security
from distributed.system import MEMORY_LIMIT

from daskspace.clusters.keys import choose_security, config_of_tls
from daskspace.clusters.listening import dashboard_at, loopback_interface
from daskspace.clusters.mpi import asks_for_loopback, terminate
from daskspace.clusters.mpi_launcher import INSTALL, SETTINGS_BELOW_SRUN
from daskspace.errors import ClusterStartError, ConfigError

LEAST = 3
_CLIENT = 1
_DEATH_S = 60.0
# Others would run the main program again in each worker.
_NANNY = "daskspace.clusters.unguarded.UnguardedNanny"


@dataclass(frozen=True)
class World:
    """The cluster that the other ranks are.

    Parameters
    ----------
    address : str
        Where its scheduler listens.
    workers : int
        How many ranks are workers.
    security : Security, optional
        The keys, where traffic is encrypted.
    """

    address: str
    workers: int
    security: Security | None


_world: World | None = None


def join_world(size: int, settings: dict[str, Any], start_timeout: float) -> World:
    """Return the world in the one rank that is to go on; the others serve, and never return.

    Parameters
    ----------
    size : int
        How many ranks the launcher says there are.
    settings : dict
        As under ``mpi`` in Dask's configuration.
    start_timeout : float
        After so many seconds without all ranks having come, the job is aborted.

    Raises
    ------
    ClusterStartError
        There are too few ranks, or each is alone.
    ConfigError
        Others could reach it without TLS.
    """
    global _world
    if _world is not None:
        return _world
    if size < LEAST:
        raise ClusterStartError(
            f"an MPI world needs at least {LEAST} ranks, for scheduler, client and one worker, and"
            f" this one has {size}: use mpiexec -n {LEAST}, or start this program without mpiexec"
        )
    for module in ("mpi4py", "dask_mpi"):
        if importlib.util.find_spec(module) is None:
            raise ClusterStartError(f"the Python module {module!r} is missing: {INSTALL}")
    _load_library_of_launcher()
    if "SLURM_PROCID" in os.environ:
        os.environ.update({**SETTINGS_BELOW_SRUN, **os.environ})
    with _in_time(start_timeout):
        try:
            from mpi4py import MPI
        except RuntimeError as error:
            cause = str(error).partition("\n")[0]
            raise ClusterStartError(
                f"{cause}: {INSTALL}, or load the module of the MPI whose launcher you use"
            ) from error
        comm = MPI.COMM_WORLD
        if comm.Get_size() != size and comm.Get_size() < LEAST:
            library = MPI.Get_library_version().partition(",")[0].split("\n")[0].strip()
            raise ClusterStartError(
                f"the launcher started {size} ranks, but MPI knows of {comm.Get_size()}: launcher"
                f" and MPI library ({library}) do not match; use the mpiexec of that library, or"
                " set MPI4PY_LIBMPI to the one of the launcher"
            )
        hosts = set(comm.allgather(socket.gethostname()))
    on_loopback = len(hosts) == 1 and asks_for_loopback(settings)
    protocol, tls = comm.bcast(_agree(settings, on_loopback) if comm.Get_rank() == 0 else None)
    if isinstance(tls, ConfigError):
        raise tls
    with dask.config.set(tls):
        security = Security() if tls else None
        address = _initialize(comm, settings, protocol, on_loopback, hosts)
    _world = World(address, comm.Get_size() - 2, security)
    # not by `atexit`, which comes when Python's thread pools have ended
    getattr(threading, "_register_atexit", atexit.register)(_end_world)
    return _world


def _agree(
    settings: dict[str, Any], on_loopback: bool
) -> tuple[str | None, dict[str, Any] | ConfigError]:
    """Return the protocol and the configuration with its keys; or why there are none."""
    try:
        security, protocol = choose_security(
            None, settings["protocol"], on_loopback, settings["insecure"]
        )
    except ConfigError as error:
        return None, error
    return protocol, config_of_tls(security)


def _initialize(
    comm: Any, settings: dict[str, Any], protocol: str | None, on_loopback: bool, hosts: set[str]
) -> str:
    """Return the scheduler's address in the rank of the client; in the others serve."""
    from dask_mpi import initialize

    memory = settings["memory-limit"]
    if memory == "auto" and len(hosts) == 1:
        memory = int(MEMORY_LIMIT / (comm.Get_size() - 2))
    nanny = settings["worker-class"] == "distributed.Nanny"
    arguments = {
        "interface": loopback_interface() if on_loopback else settings["interface"],
        "nthreads": settings["nthreads"],
        "local_directory": settings["local-directory"],
        "memory_limit": memory,
        "dashboard_address": dashboard_at(settings["dashboard-address"]),
        "protocol": protocol,
        "worker_class": _NANNY if nanny else settings["worker-class"],
        "worker_options": {
            "death_timeout": _DEATH_S,
            "silence_logs": logging.CRITICAL,
            **settings["worker-options"],
            "dashboard_address": dashboard_at(settings["worker-options"].get("dashboard_address")),
        },
        "exit": False,
    }
    if comm.Get_rank() != _CLIENT:
        _serve(comm, lambda: initialize(**arguments))
    before = dask.config.get("scheduler-address", None)
    initialize(**arguments)
    address = str(dask.config.get("scheduler-address"))
    dask.config.set({"scheduler-address": before})
    return address


def _serve(comm: Any, initialize: Callable[[], object]) -> NoReturn:
    """Be scheduler or worker, and end here: nothing more of the user's program is to run."""
    from mpi4py import MPI

    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the terminal is the client's
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        initialize()
    except BaseException:
        traceback.print_exc()
        comm.Abort(1)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    MPI.Finalize()
    # not `os._exit`: MPICH takes what its library has not been told of for a crash
    ctypes.CDLL(None).exit(0)
    raise SystemExit


def _load_library_of_launcher() -> None:
    """Have mpi4py load Open MPI under its launcher, also where another MPI came with pip."""
    under_openmpi = "OMPI_COMM_WORLD_SIZE" in os.environ or "PMIX_RANK" in os.environ
    chosen = {"MPI4PY_LIBMPI", "MPI4PY_MPIABI"} & set(os.environ)
    soname = "libmpi.so.40"
    if under_openmpi and not chosen and not Path(sys.prefix, "lib", soname).exists():
        os.environ["MPI4PY_LIBMPI"] = soname


_WATCH = (
    "import os, select, signal, sys\n"
    "if not select.select([0], [], [], float(sys.argv[1]))[0]:\n"
    "    os.write(2, sys.argv[3].encode())\n"
    "    os.kill(int(sys.argv[2]), signal.SIGKILL)"
)


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """Kill this rank, and so the job, if not all ranks have come in time.

    MPI has no deadlines, and a thread could not help: MPI_Init holds the interpreter's lock.
    """
    text = (
        f"not all ranks of the MPI job have come to stage_in within {seconds:g} s: each has to run"
        " the same program up to there\n"
    )
    command = [sys.executable, "-I", "-S", "-c", _WATCH, str(seconds), str(os.getpid()), text]
    watch = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        watch.communicate()


def _end_world() -> None:
    """Let the other ranks end."""
    if _world is None:
        return
    world = _world

    async def end() -> None:
        arguments = world.security.get_connection_args("client") if world.security else {}
        async with rpc(world.address, connection_args=arguments) as scheduler:
            await terminate(scheduler)

    with contextlib.suppress(Exception):
        asyncio.run(end())
