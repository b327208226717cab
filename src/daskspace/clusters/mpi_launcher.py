"""Launchers of MPI jobs and their dialects: text in, text out; imports neither Dask nor MPI."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from daskspace.errors import ClusterStartError, ConfigError

INSTALL = "pip install 'daskspace[mpi]' brings all that is needed"
_VERSION_S = 20.0
_LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

_SETTINGS = {
    # Open MPI binds a rank to one core, and has no more ranks than cores, unless told otherwise.
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
    "I_MPI_PIN": "0",
}
# What MPICH's default, UCX, tells the other ranks can be longer than a line that Slurm reads.
SETTINGS_BELOW_SRUN = {"MPIR_CVAR_CH4_NETMOD": "ofi"}
_SETTINGS_OF_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}

_HINTS = (
    (
        r"cannot load MPI library",
        f"mpi4py finds no MPI library: {INSTALL}, or load the module of your MPI",
    ),
    (
        r"WorldTooSmall|unsupported PMI version",
        "the launcher and the MPI library of mpi4py do not match: set mpi.launcher to the mpiexec"
        " of that library, or the variable MPI4PY_LIBMPI to the library of the launcher; srun needs"
        " --mpi=pmi2 for MPICH and --mpi=pmix for Open MPI",
    ),
    (r"Couldn't find the specified plugin name for mpi", "see srun --mpi=list for what there is"),
    (r"run as root|ALLOW_RUN_AS_ROOT", "set OMPI_ALLOW_RUN_AS_ROOT=1 and ..._CONFIRM=1"),
    (r"not enough slots", "ask for fewer n_workers, or give launcher_args=['--oversubscribe']"),
    (r"bind(ing)? .*more (cpus|processes)", "give launcher_args=['--bind-to', 'none']"),
    (
        r"More processors requested|Requested node configuration is not available",
        "ask for fewer n_workers: there are n_workers + 1 ranks",
    ),
    (
        r"Job step creation|step creation temporarily disabled",
        "the job's CPUs are in use by another step: give launcher_args=['--overlap']",
    ),
    (r"No module named", "the Python of the ranks lacks a module: install it on all hosts"),
)


@dataclass(frozen=True)
class Launcher:
    """A command that starts the ranks of an MPI job.

    Parameters
    ----------
    command : tuple of str
        The command and its own arguments.
    flavour : str
        ``openmpi``, ``hydra`` (MPICH, Intel), ``srun``, ``poe``, or ``unknown``.
    """

    command: tuple[str, ...]
    flavour: str

    @property
    def name(self) -> str:
        """The command as one would type it."""
        return shlex.join(self.command)


def find_launcher(wanted: str | Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the command that starts MPI ranks, its program with a path.

    Parameters
    ----------
    wanted : str or sequence of str, optional
        A command. By default ``mpiexec`` or ``mpirun`` beside this Python, then on the PATH, or
        ``srun`` in an allocation of Slurm.

    Raises
    ------
    ClusterStartError
        There is none.
    """
    beside = str(Path(sys.executable).parent)
    path = os.pathsep.join([beside, os.environ.get("PATH", os.defpath)])
    if wanted:
        program, *more = shlex.split(wanted) if isinstance(wanted, str) else map(str, wanted)
        found = shutil.which(program, path=path)
        if found is None:
            raise ClusterStartError(f"MPI launcher {program!r} not found: see mpi.launcher")
        return (found, *more)
    slurm = ["srun"] if "SLURM_JOB_ID" in os.environ else []
    for program in ["mpiexec", "mpirun", *slurm]:
        if found := shutil.which(program, path=path):
            return (found,)
    raise ClusterStartError(
        "no MPI launcher found: there is no mpiexec beside this Python or on the PATH;"
        f" {INSTALL}, or set mpi.launcher"
    )


def inspect_launcher(command: Sequence[str]) -> Launcher:
    """Return the launcher with its flavour, which it is asked for.

    Raises
    ------
    ClusterStartError
        It cannot be run.
    """
    if Path(command[0]).name == "poe":
        return Launcher(tuple(command), "poe")
    try:
        asked = subprocess.run(
            [*command, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_VERSION_S,
            env=launch_environment(os.environ),
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ClusterStartError(f"MPI launcher {command[0]!r} cannot be run: {error}") from error
    return Launcher(
        tuple(command), flavour_of((asked.stdout + asked.stderr).decode("utf-8", "replace"))
    )


def flavour_of(version: str) -> str:
    """Return the flavour that a launcher's ``--version`` tells."""
    for flavour, pattern in (
        ("openmpi", r"open ?mpi|OpenRTE|\bprte|open-mpi\.org"),
        ("hydra", r"HYDRA|mpich|Intel"),
        ("srun", r"^slurm\b"),
    ):
        if re.search(pattern, version, re.I | re.M):
            return flavour
    return "unknown"


def launch_command(
    launcher: Launcher,
    ranks: int,
    program: Sequence[str],
    hosts: Sequence[str] | None = None,
    hostfile: str | None = None,
    arguments: Sequence[str] = (),
    pmi: str | None = None,
) -> list[str]:
    """Return the whole command that starts `ranks` times `program`.

    `pmi` is how ranks of ``srun`` find each other; see `pmi_of_library`.

    Raises
    ------
    ConfigError
        The launcher has no way to be told the hosts.
    """
    where: list[str] = []
    flavour = launcher.flavour
    if hosts:
        flags = {"openmpi": "--host", "hydra": "-hosts", "srun": "-w"}
        if flavour not in flags:
            raise ConfigError(f"hosts cannot be given to {launcher.name}: use launcher_args")
        bare = flavour == "srun"
        where = [flags[flavour], ",".join(h.partition(":")[0] if bare else h for h in hosts)]
    elif hostfile:
        flags = {"openmpi": "--hostfile", "hydra": "-f", "srun": "-w", "poe": "-hostfile"}
        if flavour not in flags:
            raise ConfigError(f"a hostfile cannot be given to {launcher.name}: use launcher_args")
        where = [flags[flavour], os.path.abspath(hostfile)]
    if flavour == "poe":  # its options come last
        return [*launcher.command, *program, "-procs", str(ranks), *where, *arguments]
    own: list[str] = []
    if flavour == "srun":
        own = ["--overcommit", "--cpu-bind=none", "--kill-on-bad-exit=1"]
        if pmi and not any(a.startswith("--mpi") for a in [*launcher.command, *arguments]):
            own.append(f"--mpi={pmi}")
    return [*launcher.command, *own, *where, *arguments, "-n", str(ranks), *program]


def launch_environment(
    environment: Mapping[str, str], as_root: bool | None = None
) -> dict[str, str]:
    """Return an environment in which a launcher starts as many ranks as it is asked for.

    What the user has set stays. The same is set for all flavours: each ignores the others'.
    """
    as_root = os.geteuid() == 0 if as_root is None else as_root
    return {**_SETTINGS, **(_SETTINGS_OF_ROOT if as_root else {}), **environment}


def matching_library(
    launcher: Launcher, environment: Mapping[str, str], prefix: str = sys.prefix
) -> dict[str, str]:
    """Return the variables with which mpi4py loads the library of the launcher.

    Left alone, mpi4py takes one that was installed with pip first.
    """
    if "MPI4PY_LIBMPI" in environment or "MPI4PY_MPIABI" in environment:
        return {}
    soname = {"openmpi": "libmpi.so.40", "hydra": "libmpi.so.12"}.get(launcher.flavour)
    program = Path(launcher.command[0])
    if soname is None or program.parent == Path(prefix, "bin"):
        return {}
    for directory in ("lib64", "lib"):
        library = Path(os.path.realpath(program)).parent.parent / directory / soname
        if library.exists():
            return {"MPI4PY_LIBMPI": str(library)}
    if launcher.flavour == "openmpi":
        return {"MPI4PY_LIBMPI": soname}
    return {}


def pmi_of_library(environment: Mapping[str, str]) -> str | None:
    """Return the ``--mpi`` of ``srun`` that suits the library of mpi4py; None if unknown."""
    if "SLURM_MPI_TYPE" in environment:
        return None
    program = (
        "import mpi4py; mpi4py.rc.initialize = False\n"
        "from mpi4py import MPI; print(MPI.Get_library_version())"
    )
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = [sys.executable, "-c", program]
        ran = subprocess.run(
            command, env=dict(environment), capture_output=True, text=True, timeout=_VERSION_S
        )
        for library, pmi in (("Open MPI", "pmix"), ("MPICH", "pmi2"), ("Intel", "pmi2")):
            if library in ran.stdout:
                return pmi
    return None


def allocation_slots(environment: Mapping[str, str]) -> int | None:
    """Return how many processes a batch system gave room for; None outside of one."""
    for name in ("SLURM_NTASKS", "LSB_DJOB_NUMPROC", "NSLOTS", "LOADL_TOTAL_TASKS"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    if cpus := environment.get("SLURM_JOB_CPUS_PER_NODE"):  # such as "8(x2),4"
        parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", cpus)
        return sum(int(number) * int(times or 1) for number, times in parts)
    for name in ("PBS_NODEFILE", "LOADL_HOSTFILE"):
        if lines := _lines_of(environment.get(name)):
            return len(lines)
    return None


def stays_here(
    launcher: Launcher,
    hosts: Sequence[str] | None,
    hostfile: str | None,
    environment: Mapping[str, str],
) -> bool:
    """Return whether all ranks are certain to run on this host."""
    own = {*_LOCAL_NAMES, socket.gethostname(), socket.getfqdn()}
    if hosts:
        return all(_host_of(host) in own for host in hosts)
    if hostfile or (hostfile := environment.get("HYDRA_HOST_FILE")):
        return all(_host_of(line) in own for line in _lines_of(hostfile))
    if "SLURM_JOB_ID" in environment:
        node = environment.get("SLURMD_NODENAME")
        return node is not None and node == environment.get("SLURM_JOB_NODELIST")
    for name in ("PBS_NODEFILE", "LOADL_HOSTFILE", "LSB_DJOB_HOSTFILE", "PE_HOSTFILE"):
        if lines := _lines_of(environment.get(name)):
            return all(_host_of(line) in own for line in lines)
    return launcher.flavour in ("openmpi", "hydra")


def world_size(environment: Mapping[str, str]) -> int:
    """Return of how many ranks the MPI job is in which this program was started; 1 if of none.

    Raises
    ------
    ConfigError
        ``srun`` started several tasks without MPI: each would be alone.
    """
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
    if "PMIX_RANK" in environment:
        return max(tasks, 2)
    if "MP_CHILD" in environment:  # poe
        return int(environment.get("MP_PROCS", "2"))
    if tasks > 1 and "SLURM_PROCID" in environment:
        raise ConfigError(
            f"srun started {tasks} tasks, but no MPI for them, so each would be alone: use srun"
            " --mpi=pmi2 with MPICH, srun --mpi=pmix with Open MPI, or start this program once"
        )
    return 1


def hint_for(log: str) -> str:
    """Return what to do about the errors in a log; empty if there is nothing known in it."""
    return next((f"; {hint}" for pattern, hint in _HINTS if re.search(pattern, log)), "")


def _host_of(entry: str) -> str:
    """Return the host of an entry: ``host``, ``host:4``, ``host slots=4``, ``user@host``."""
    word = entry.split()[0].rpartition("@")[2]
    return word if word in _LOCAL_NAMES else word.partition(":")[0]


def _lines_of(path: str | None) -> list[str]:
    try:
        lines: Iterable[str] = Path(path).read_text().splitlines() if path else ()
    except OSError:
        return []
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
