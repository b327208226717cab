"""The MPI launchers of this machine, one of each flavour; and what MPI jobs leave behind."""

import contextlib
import os
import re
import shutil
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from daskspace.clusters.mpi_launcher import inspect_launcher

MARK = "DASKSPACE_TEST_MPI"
"""A variable that everything has which these tests start."""
INSTALLED = {
    "hydra": "MPICH: pip install mpich",
    "openmpi": "Open MPI: apt-get install openmpi-bin",
}


def find_launchers():
    beside = str(Path(sys.executable).parent / "mpiexec")
    found = {}
    for name in (beside, "mpiexec.openmpi", "mpiexec.mpich", "mpiexec"):
        if path := shutil.which(name):
            found.setdefault(inspect_launcher([path]).flavour, path)
    return found


LAUNCHERS = find_launchers()


def launcher_of(flavour):
    """The launcher of a flavour; without one the test is skipped."""
    if flavour not in LAUNCHERS:
        pytest.skip(f"needs {INSTALLED[flavour]}")
    return LAUNCHERS[flavour]


each_launcher = pytest.mark.parametrize(
    "launcher",
    [
        pytest.param(
            LAUNCHERS.get(flavour),
            marks=[] if flavour in LAUNCHERS else [pytest.mark.skip(reason=f"needs {what}")],
            id=flavour,
        )
        for flavour, what in INSTALLED.items()
    ],
)


def marked(value):
    """Everything that has the mark and runs, but not this process."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == value:
                found.append(process)
    return found


def command_of(process):
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def eventually(ask, within=20):
    """Ask until the answer is true, and return it."""
    deadline = time.monotonic() + within
    while not (answer := ask()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return answer


def sweep():
    """Remove the shared memory of MPI jobs that were killed; the libraries leave it for ever.

    A private Slurm counts its jobs from 1 on, and MPICH trips over what is named after such a job.
    """
    old = [p for kind in ("mpich_shm_*", "vader_segment.*") for p in Path("/dev/shm").glob(kind)]
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            mapped |= set(re.findall(r"/dev/shm/\S+", maps.read_text()))
    for path in old:
        with contextlib.suppress(OSError):
            if str(path) not in mapped and time.time() - path.stat().st_mtime > 10:
                path.unlink()


@contextlib.contextmanager
def nothing_left(within=20):
    """Mark what is started, and see that nothing of it runs at the end."""
    value = uuid.uuid4().hex
    sweep()

    def left():
        return [p for p in marked(value) if "resource_tracker" not in command_of(p)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, value)
        yield value
        gone = eventually(lambda: not left(), within)
        survivors = left()
        told = [f"{p.pid}: {command_of(p)[:150]}" for p in survivors]
        for process in survivors:
            with contextlib.suppress(psutil.Error):
                process.kill()
        assert gone, told
