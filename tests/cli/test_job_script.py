import json
import os
import subprocess
import sys

import pytest

from daskspace.clusters.sources import Source, source_of

from .conftest import plain_environment

CONFIGURED = """\
jobqueue:
  slurm:
    cores: 2
    memory: 1 GB
    walltime: 12:00:00
    worker-extra: [--x]
    job_extra_directives: {-C casper: null}
"""


def job_script(place, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "daskspace", "job-script", *arguments],
        cwd=place.path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=plain_environment(DASK_CONFIG=str(place.path / "dask.yaml"), **environment),
    )


def settings(place, *arguments, **environment):
    ran = job_script(place, *arguments, "--json", **environment)
    assert ran.returncode == 0, ran.stderr
    return {setting["name"]: setting for setting in json.loads(ran.stdout)["settings"]}


def test_the_script_alone_is_on_standard_output(place):
    ran = job_script(place, "slurm", "-O", "cores=2", "-O", "memory=1GB", "-O", "queue=short")
    assert ran.returncode == 0
    assert ran.stdout.startswith("#!/usr/bin/env bash\n")
    assert "#SBATCH -p short\n" in ran.stdout
    assert "#SBATCH -e <result directory>/jobs/" in ran.stdout
    assert "not set" not in ran.stdout
    assert "at most 1 job; a job has 2 workers, each with 1 thread and 476.84 MiB" in ran.stderr
    assert "1800 s, of which a process can use 1740 s" in ran.stderr


def test_nothing_is_written_not_even_the_directory_of_the_logs(place):
    logs = place.path / "logs" / "of jobs"
    ran = job_script(
        place, "slurm", *("-O", "cores=1", "-O", "memory=1GB", "-O", f"log_directory={logs}")
    )
    assert ran.returncode == 0
    assert f"#SBATCH -e {logs}/" in ran.stdout
    assert place.files() == ["work.py"]


def test_every_setting_tells_where_it_is_from(place):
    place.write("dask.yaml", CONFIGURED)
    found = settings(
        place,
        *("slurm", "-O", "jobs=3", "-O", "memory=2GB"),
        DASK_JOBQUEUE__SLURM__QUEUE="short",
    )
    file = place.path / "dask.yaml"
    assert (found["cores"]["value"], found["cores"]["source"]) == (2, f"{file}:3")
    assert (found["memory"]["value"], found["memory"]["source"]) == ("2GB", "option")
    assert found["queue"]["source"] == "environment variable DASK_JOBQUEUE__SLURM__QUEUE"
    assert found["job_extra_directives"]["source"] == f"{file}:7"
    assert found["death_timeout"]["source"] == "default of dask-jobqueue"
    assert (found["processes"]["value"], found["processes"]["source"]) == (
        2,
        "default of daskspace",
    )
    assert (found["jobs"]["value"], found["jobs"]["source"]) == (3, "option")


def test_settings_that_do_something_else_than_they_say_are_pointed_out(place):
    place.write("dask.yaml", CONFIGURED)
    found = settings(place, "slurm")
    assert found["walltime"]["value"] == "12:00:00"
    assert "takes 12:00:00 for the number 43200" in found["walltime"]["remark"]
    assert "nothing reads it; did you mean 'worker_extra_args'" in found["worker_extra"]["remark"]


def test_the_last_file_wins_and_a_section_of_its_own_is_looked_up(place, monkeypatch):
    place.write("dask/1.yaml", "jobqueue: {mine: {cores: 2, memory: 1GB}}")
    place.write("dask/2.yaml", "jobqueue:\n  mine:\n    cores: 3\n")
    files = [str(place.path / "dask")]
    monkeypatch.setattr("dask.config.paths", files)
    assert source_of("jobqueue.mine.cores") == Source(f"{place.path}/dask/2.yaml:3", "3")
    assert source_of("jobqueue.mine.memory").place == f"{place.path}/dask/1.yaml:1"
    assert source_of("jobqueue.mine.queue") == Source()


def test_a_time_on_the_command_line_stays_one(place):
    ran = job_script(
        place, *("slurm", "-O", "cores=1", "-O", "memory=1GB", "-O", "walltime=12:00:00")
    )
    assert "#SBATCH -t 12:00:00\n" in ran.stdout
    assert "43200 s, of which a process can use 43140 s" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mcore"], "mcore submits no jobs, so it has no job script"),
        (["serial"], "serial submits no jobs"),
        (["slurm"], "needs cores and memory of a job"),
        (["slurm", "-O", "cores=2"], "-O cores=4 -O memory='8 GB'"),
        (["slurm", "-O", "cores=two", "-O", "memory=1GB"], "cores of a job must be like 4"),
        (["slurm", "-O", "cores=2", "-O", "memory=much"], "memory of a job must be like '8 GB'"),
        (["htcondor", "-O", "cores=2", "-O", "memory=1GB"], "disk"),
        (["slurm", "-O", "cores=1", "-O", "memory=1GB", "-O", "walltime=soon"], "no time limit"),
        (["nowhere"], "unknown backend 'nowhere'"),
    ],
)
def test_what_makes_no_job_script_is_told_in_a_sentence(place, arguments, message):
    ran = job_script(place, *arguments)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert message in ran.stderr
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_pyspace_s_settings_of_loadleveler_are_told_by_both_names(place):
    found = settings(place, *("loadl", "-O", "consumable_memory=3250mb", "-O", "consumable_cpus=1"))
    assert found["memory"]["source"] == "option, by pySPACE's name for it"
    assert found["consumable_memory"]["source"] == "option"
    assert os.listdir(place.path) == ["work.py"]
