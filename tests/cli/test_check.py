import json
import os
import subprocess
import sys

import pytest

from .conftest import plain_environment

CLEAN = "jobqueue:\n  slurm: {cores: 2, memory: 2 GB, walltime: '01:00:00'}\n"
ODD = CLEAN.replace("'01:00:00'", "12:00:00")
WRONG = CLEAN.replace("2 GB", "36")


def check(place, *arguments, **environment):
    home = place.path / "home"
    home.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "daskspace", "check", *arguments],
        cwd=place.path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=plain_environment(HOME=str(home), **environment),
    )


@pytest.mark.parametrize(
    ("text", "code", "level", "words"),
    [
        (CLEAN, 0, "nothing is wrong", "a job has 2 workers, each with 1 thread and 0.93 GiB"),
        (ODD, 3, "1 warning", "dask.yaml:2: walltime: YAML takes 12:00:00 for the number 43200"),
        (WRONG, 1, "1 error", "dask.yaml:2: memory: 36 without a unit is 36 bytes"),
    ],
)
def test_the_exit_code_says_how_bad_it_is(place, text, code, level, words):
    place.write("dask.yaml", text)
    ran = check(place, "dask.yaml")
    assert (ran.returncode, ran.stderr) == (code, "")
    assert words in ran.stdout
    assert ran.stdout.splitlines()[-1] == level
    assert "slurm, by jobqueue.slurm in dask.yaml:2 (jobqueue)" in ran.stdout


def test_without_an_argument_all_of_dask_s_configuration_is_looked_at_and_no_home_is_written(place):
    config = place.path / "home/.config/dask"
    config.mkdir(parents=True)
    config.joinpath("1.yaml").write_text(CLEAN)
    config.joinpath("2.yaml").write_text("jobqueue:\n  lsf: {cores: 2, memory: 2 GB, mem: 2GB}\n")
    before = sorted(place.path.rglob("*"))
    ran = check(place, "--json", DASK_JOBQUEUE__SLURM__CORES="3", DASK_JOBQUEUE_SLURM_QUEUE="x")
    assert ran.returncode == 1, ran.stderr
    assert [p for p in sorted(place.path.rglob("*")) if "__pycache__" not in p.parts] == before
    told = json.loads(ran.stdout)
    assert told["ok"] is False
    assert {cluster["backend"] for cluster in told["clusters"]} == {"slurm", "lsf"}
    assert told["files"] == ["~/.config/dask/1.yaml", "~/.config/dask/2.yaml"]
    found = {(f["level"], f["place"], f["key"]) for f in told["findings"]}
    variable = "environment variable DASK_JOBQUEUE"
    assert found >= {
        ("error", "~/.config/dask/2.yaml:2", "mem"),
        ("note", f"{variable}__SLURM__CORES", "jobqueue.slurm.cores"),
        ("warning", f"{variable}_SLURM_QUEUE", "DASK_JOBQUEUE_SLURM_QUEUE"),
    }
    slurm = next(c for c in told["clusters"] if c["backend"] == "slurm")
    cores = next(s for s in slurm["settings"] if s["name"] == "cores")
    assert (cores["value"], cores["source"]) == (3, f"{variable}__SLURM__CORES")
    assert slurm["numbers"]["usable"] == 3540


def test_a_home_that_cannot_be_written_is_no_obstacle(place):
    place.write("dask.yaml", CLEAN)
    home = place.path / "home"
    home.mkdir()
    home.chmod(0o500)
    ran = check(place, "dask.yaml")
    assert (ran.returncode, os.listdir(home)) == (0, [])


def test_a_file_of_dask_s_that_is_no_yaml_is_told_by_its_line(place):
    place.write("dask.yaml", "jobqueue:\n\tslurm: {}\n")
    ran = check(place, DASK_CONFIG=str(place.path / "dask.yaml"))
    assert (ran.returncode, ran.stdout) == (1, "")
    assert f"{place.path}/dask.yaml:2: " in ran.stderr
    assert "Traceback" not in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_nothing_configured_is_told_with_what_helps(place):
    ran = check(place)
    assert ran.returncode == 0
    assert "no cluster is configured: give a backend" in ran.stdout
    ran = check(place, "slrum")
    assert ran.returncode == 1
    assert "did you mean 'slurm'" in ran.stderr
