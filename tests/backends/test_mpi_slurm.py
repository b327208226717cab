"""The `mpi` backend in allocations of a real Slurm: by mpiexec, by srun, and as a world."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..clusters.launchers import LAUNCHERS, eventually, sweep  # noqa: TID252 - shared by two rooms

pytestmark = [
    pytest.mark.xdist_group("slurm"),
    pytest.mark.timeout(120),
    pytest.mark.skipif("hydra" not in LAUNCHERS, reason="needs MPICH: pip install mpich"),
]

PROGRAM = """
import json, os, sys, time, daskspace

def work(x):
    time.sleep(0.1)
    return {"node": os.environ["SLURMD_NODENAME"]}

with daskspace.create_backend("mpi", **json.loads(sys.argv[1])) as backend:
    op = backend.run(daskspace.operation(work, {"x": range(24)}))
    rows = op.rows()
    address = backend.client.scheduler.address
    print(backend.check_status().workers, address.partition(":")[0], {r["state"] for r in rows})
    print("nodes", *sorted({r["node"] for r in rows}))
"""
TASKS = ["-N2", "-n4", "--mem=2000"]


@pytest.fixture
def place(slurm, tmp_path, monkeypatch):
    sweep()
    slurm.use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def batch(place, options):
    """Run the program as a batch script and return what it printed."""
    script = f"#!/bin/sh\n'{sys.executable}' program.py '{json.dumps(options)}'\necho code $?\n"
    Path("script").write_text(script)
    subprocess.run(["sbatch", *TASKS, "-o", "out", "script"], check=True, capture_output=True)
    text = eventually(lambda: "code" in (out := read("out")) and out, 90)
    assert text, read("out")
    return text


def read(path):
    return Path(path).read_text() if Path(path).exists() else ""


@pytest.mark.parametrize("options", [{}, {"launcher": "srun"}], ids=["mpiexec", "srun"])
def test_in_a_batch_job_it_has_a_worker_for_each_task_and_is_encrypted(place, options):
    out = batch(place, options)
    lines = out.splitlines()
    assert lines[0] == "4 tls {'done'}", out
    assert len(lines[1].split()) == 3, out
    assert lines[-1] == "code 0", out
    assert list(place.glob(".daskspace-mpi-*")) == []


def test_srun_may_start_it_from_outside_an_allocation(place):
    options = {"launcher": "srun", "n_workers": 2, "launcher_args": ["--mem=2000"]}
    ran = subprocess.run(
        [sys.executable, "program.py", json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert ran.stdout.startswith("2 tls {'done'}"), ran.stderr


def test_a_world_may_be_started_by_srun_whatever_its_program_has_in_memory(place):
    text = "import random\ntexts = [random.randbytes(n) for n in range(100, 5000)]\ndel texts\n"
    (place / "program.py").write_text(text + PROGRAM)  # MPICH tells the others unused memory too
    ran = world("pmi2")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("2 tcp {'done'}")


def test_tasks_of_srun_without_mpi_are_told(place):
    ran = world("none")
    assert ran.returncode != 0
    assert ran.stdout == ""
    assert "each would be alone: use srun --mpi=pmi2 with MPICH" in ran.stderr


def world(mpi):
    command = [shutil.which("srun"), f"--mpi={mpi}", *TASKS, sys.executable, "program.py", "{}"]
    return subprocess.run(command, capture_output=True, text=True, timeout=90)


def test_within_a_step_of_slurm_on_one_node_it_and_ranks_of_processes_stay_there(place):
    program = """
import subprocess, sys, daskspace
def work(x):
    from daskspace.clusters.mpi_launcher import find_launcher
    ranks = "from mpi4py import MPI; print(MPI.COMM_WORLD.size)"
    command = [*find_launcher(), "-n", "2", sys.executable, "-c", ranks]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=30)
    return ran.stdout.count("2")
with daskspace.create_backend("mpi", n_workers=2) as backend:
    op = backend.run(daskspace.operation(work, {"x": range(2)}))
    print(backend.client.scheduler.address[:3], [row["value"] for row in op.rows()])
"""
    (place / "program.py").write_text(program)
    command = ["srun", "--mpi=none", "-n1", "-c2", "--mem=2000", sys.executable, "program.py"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert ran.stdout == "tcp [2, 2]\n", ran.stderr
