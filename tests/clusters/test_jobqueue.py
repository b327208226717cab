"""Importing dask-jobqueue changes what Dask knows, and nothing else."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import signal
import dask.config
ensure_file, set_signal = dask.config.ensure_file, signal.signal
handler = signal.getsignal(signal.SIGINT)
{imports}
assert signal.signal is set_signal
assert signal.getsignal(signal.SIGINT) is handler
import daskspace.clusters.jobqueue
assert dask.config.ensure_file is ensure_file
assert dask.config.get("jobqueue.slurm.walltime") == "00:30:00"
"""


def python(program, tmp_path, **variables):
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path / "home"), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("variables", [{}, {"DASK_CONFIG": "config"}], ids=["home", "DASK_CONFIG"])
@pytest.mark.parametrize(
    "imports",
    [
        "from daskspace.clusters.jobqueue import dask_jobqueue",
        "from daskspace.clusters import LoadLevelerCluster",
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from importlib import import_module\n"
        "modules = ['daskspace.clusters.jobqueue', 'daskspace.clusters.loadleveler'] * 4\n"
        "with ThreadPoolExecutor(8) as executor:\n"
        "    list(executor.map(import_module, modules))\n",
    ],
    ids=["module", "cluster", "threads"],
)
def test_importing_it_writes_no_file(imports, variables, tmp_path):
    variables = {key: str(tmp_path / value) for key, value in variables.items()}
    ran = python(PROGRAM.format(imports=imports), tmp_path, **variables)
    assert ran.returncode == 0, ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_files_of_others_are_still_written_meanwhile(tmp_path):
    (tmp_path / "other.yaml").write_text("other: 1\n")
    program = """
import sys, dask.config

class WritesItsFile:
    def find_spec(self, name, *rest):
        if name == "dask_jobqueue":
            dask.config.ensure_file(source="other.yaml", destination="config")

sys.meta_path.insert(0, WritesItsFile())
import daskspace.clusters.jobqueue
"""
    ran = python(program, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "config" / "other.yaml").exists()
    assert not (tmp_path / "home").exists()


def test_importing_our_clusters_imports_no_dask_until_one_is_asked_for(tmp_path):
    program = """
import sys
import daskspace.clusters
assert "dask" not in sys.modules
assert dir(daskspace.clusters) == ["LoadLevelerCluster", "LoadLevelerJob", "MpiCluster"]
assert not hasattr(daskspace.clusters, "NoSuchCluster")
assert daskspace.clusters.LoadLevelerJob.submit_command == "llsubmit"
"""
    ran = python(program, tmp_path)
    assert ran.returncode == 0, ran.stderr
