"""Dialects of MPI launchers: text in, text out."""

import pytest

from daskspace.clusters.mpi_launcher import (
    Launcher,
    allocation_slots,
    find_launcher,
    flavour_of,
    hint_for,
    inspect_launcher,
    launch_command,
    launch_environment,
    matching_library,
    stays_here,
    world_size,
)
from daskspace.errors import ClusterStartError, ConfigError
from daskspace.execution.environment import without_rank

VERSIONS = {
    "mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/": "openmpi",
    "mpiexec (Open MPI) 5.0.11": "openmpi",
    "HYDRA build details:\n    Version:    5.0.2": "hydra",
    "Intel(R) MPI Library for Linux* OS, Version 2021.18": "hydra",
    "slurm 22.05.8": "srun",
    "jsrun 10.3": "unknown",
    "": "unknown",
}


@pytest.mark.parametrize(("version", "flavour"), VERSIONS.items())
def test_a_launcher_is_known_by_what_it_says_of_itself(version, flavour):
    assert flavour_of(version) == flavour


SRUN = ["--overcommit", "--cpu-bind=none", "--kill-on-bad-exit=1"]
COMMANDS = [
    ("openmpi", {}, ["mpiexec", "-n", "3", "python", "x"]),
    ("openmpi", {"hosts": ["a:4", "b"]}, ["mpiexec", "--host", "a:4,b", "-n", "3", "python", "x"]),
    ("openmpi", {"hostfile": "/h"}, ["mpiexec", "--hostfile", "/h", "-n", "3", "python", "x"]),
    ("hydra", {"hosts": ["a:4", "b"]}, ["mpiexec", "-hosts", "a:4,b", "-n", "3", "python", "x"]),
    ("hydra", {"hostfile": "/h"}, ["mpiexec", "-f", "/h", "-n", "3", "python", "x"]),
    ("srun", {}, ["mpiexec", *SRUN, "-n", "3", "python", "x"]),
    ("srun", {"hosts": ["a:4", "b"]}, ["mpiexec", *SRUN, "-w", "a,b", "-n", "3", "python", "x"]),
    (
        "srun",
        {"arguments": ["--mpi=pmi2"]},
        ["mpiexec", *SRUN, "--mpi=pmi2", "-n", "3", "python", "x"],
    ),
    ("srun", {"pmi": "pmix"}, ["mpiexec", *SRUN, "--mpi=pmix", "-n", "3", "python", "x"]),
    (
        "srun",
        {"pmi": "pmix", "arguments": ["--mpi=pmi2"]},
        ["mpiexec", *SRUN, "--mpi=pmi2", "-n", "3", "python", "x"],
    ),
    ("poe", {"hostfile": "/h"}, ["mpiexec", "python", "x", "-procs", "3", "-hostfile", "/h"]),
    ("unknown", {"arguments": ["-q"]}, ["mpiexec", "-q", "-n", "3", "python", "x"]),
]


@pytest.mark.parametrize(("flavour", "where", "command"), COMMANDS)
def test_each_launcher_is_told_in_its_own_words(flavour, where, command):
    launcher = Launcher(("mpiexec",), flavour)
    assert launch_command(launcher, 3, ["python", "x"], **where) == command


@pytest.mark.parametrize(
    ("flavour", "where"),
    [("poe", {"hosts": ["a"]}), ("unknown", {"hosts": ["a"]}), ("unknown", {"hostfile": "h"})],
)
def test_hosts_that_a_launcher_cannot_be_told_are_refused(flavour, where):
    with pytest.raises(ConfigError, match="launcher_args"):
        launch_command(Launcher(("run",), flavour), 3, ["python"], **where)


def test_what_the_user_has_set_stays_and_only_root_is_allowed_to_be_root():
    given = {"I_MPI_PIN": "1", "X": "y"}
    environment = launch_environment(given, as_root=True)
    assert environment.items() >= given.items()
    assert environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert "OMPI_ALLOW_RUN_AS_ROOT" not in launch_environment(given, as_root=False)


def test_a_command_of_several_words_is_found_on_the_path(tmp_path, monkeypatch):
    program = tmp_path / "mympi"
    program.write_text("#!/bin/sh\necho HYDRA $*\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    command = find_launcher("mympi -a 'b c'")
    assert command == (str(program), "-a", "b c")
    assert find_launcher(["mympi", "-a", "b c"]) == command
    assert inspect_launcher(command).flavour == "hydra"


def test_in_an_allocation_of_slurm_srun_will_do(tmp_path, monkeypatch):
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ClusterStartError):
        find_launcher()
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert find_launcher() == (str(tmp_path / "srun"),)


def test_a_launcher_that_cannot_be_run_is_told(tmp_path):
    (tmp_path / "mpiexec").write_text("no program")
    (tmp_path / "mpiexec").chmod(0o755)
    with pytest.raises(ClusterStartError, match="cannot be run"):
        inspect_launcher([str(tmp_path / "mpiexec")])


def test_mpi4py_is_told_the_library_of_a_launcher_from_elsewhere(tmp_path):
    for directory in ("lib", "bin"):
        (tmp_path / directory).mkdir()
    (tmp_path / "lib" / "libmpi.so.12").touch()
    there = (str(tmp_path / "bin" / "mpiexec"),)
    wanted = {"MPI4PY_LIBMPI": str(tmp_path / "lib" / "libmpi.so.12")}
    assert matching_library(Launcher(there, "hydra"), {}) == wanted
    assert matching_library(Launcher(there, "openmpi"), {}) == {"MPI4PY_LIBMPI": "libmpi.so.40"}
    assert matching_library(Launcher(there, "hydra"), {}, prefix=str(tmp_path)) == {}
    assert matching_library(Launcher(there, "hydra"), {"MPI4PY_MPIABI": "mpich"}) == {}
    assert matching_library(Launcher(there, "srun"), {}) == {}


@pytest.mark.parametrize(
    ("environment", "slots"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "12", "SLURM_JOB_CPUS_PER_NODE": "4(x2)"}, 12),
        ({"SLURM_JOB_CPUS_PER_NODE": "8(x2),4"}, 20),
        ({"LSB_DJOB_NUMPROC": "6"}, 6),
        ({"NSLOTS": "5"}, 5),
        ({"LOADL_TOTAL_TASKS": "4"}, 4),
        ({"PBS_NODEFILE": "nodes"}, 3),
        ({"LOADL_HOSTFILE": "missing"}, None),
    ],
)
def test_the_slots_of_an_allocation_are_counted(environment, slots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nodes").write_text("a\na\nb\n")
    assert allocation_slots(environment) == slots


@pytest.mark.parametrize(
    ("flavour", "where", "environment", "here"),
    [
        ("hydra", {}, {}, True),
        ("openmpi", {}, {}, True),
        ("unknown", {}, {}, False),
        ("srun", {}, {}, False),
        ("poe", {}, {}, False),
        ("hydra", {"hosts": ["localhost:4", "127.0.0.1"]}, {}, True),
        ("hydra", {"hosts": ["localhost", "other"]}, {}, False),
        ("hydra", {"hostfile": "local"}, {}, True),
        ("hydra", {"hostfile": "both"}, {}, False),
        ("hydra", {}, {"HYDRA_HOST_FILE": "both"}, False),
        ("hydra", {}, {"PBS_NODEFILE": "both"}, False),
        ("hydra", {}, {"PBS_NODEFILE": "local"}, True),
        ("hydra", {}, {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1"}, False),
        (
            "srun",
            {},
            {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1", "SLURMD_NODENAME": "n1"},
            True,
        ),
        (
            "srun",
            {},
            {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n[1-2]", "SLURMD_NODENAME": "n1"},
            False,
        ),
    ],
)
def test_only_what_is_certain_to_stay_on_this_host_is_local(
    flavour, where, environment, here, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").write_text("# mine\nlocalhost slots=2\n\nroot@localhost:3\n")
    (tmp_path / "both").write_text("localhost\nother:2\n")
    wanted = {"hosts": None, "hostfile": None, **where}
    launcher = Launcher(("mpiexec",), flavour)
    assert stays_here(launcher, wanted["hosts"], wanted["hostfile"], environment) is here


@pytest.mark.parametrize(
    ("environment", "size"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"PMI_SIZE": "3"}, 3),
        ({"PMI_SIZE": "1"}, 1),
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "4"}, 4),
        ({"MP_CHILD": "0", "MP_PROCS": "8"}, 8),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, 1),
    ],
)
def test_a_program_knows_of_how_many_ranks_it_is_one(environment, size):
    assert world_size(environment) == size


def test_tasks_of_srun_that_have_no_mpi_are_refused():
    with pytest.raises(ConfigError, match="each would be alone"):
        world_size({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"})


def test_what_makes_a_program_a_rank_is_taken_away_and_settings_stay():
    of_a_rank = [
        "PMI_RANK PMI_FD PMIX_RANK PMIX_NAMESPACE HYDI_CONTROL_FD MPI_LOCALRANKID PRTE_LAUNCHED",
        "OMPI_COMM_WORLD_RANK OMPI_UNIVERSE_SIZE OMPI_MCA_ess OMPI_MCA_orte_hnp_uri OMPI_MCA_pmix",
    ]
    settings = [
        "PATH OMPI_ALLOW_RUN_AS_ROOT OMPI_MCA_btl OMPI_MCA_rmaps_base_oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy I_MPI_PIN MPIR_CVAR_X SLURM_JOB_ID",
    ]
    names = " ".join(of_a_rank + settings).split()
    left = without_rank(dict.fromkeys(names, "1"))
    assert list(left) == " ".join(settings).split()


@pytest.mark.parametrize(
    ("log", "hint"),
    [
        ("RuntimeError: cannot load MPI library", "finds no MPI library"),
        ("WorldTooSmallException: Not enough MPI ranks", "do not match"),
        ("Runtime environment uses unsupported PMI version PMIx", "do not match"),
        ("There are not enough slots available", "fewer n_workers"),
        ("srun: error: Unable to create step: More processors requested", "fewer n_workers"),
        ("ModuleNotFoundError: No module named 'dask_mpi'", "lacks a module"),
        ("something else", ""),
    ],
)
def test_known_errors_in_a_log_come_with_their_remedy(log, hint):
    assert hint in hint_for(log)
    assert bool(hint_for(log)) == bool(hint)
