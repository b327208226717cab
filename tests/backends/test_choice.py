"""One door for every cluster that people have: what `create_backend` makes of what is given."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import dask.config
import pytest
import yaml

import daskspace
from daskspace import ConfigError, create_backend, operation
from daskspace.backends.options import BATCH_OPTIONS, DEFAULTS, OWN_OPTIONS
from daskspace.clusters.config_files import shipped_configs
from daskspace.execution.dispatch import Policies

from .sites import SITES

CONFIGS = Path(__file__).parents[1] / "clusters/configs"
HOME = Path(daskspace.__file__).parent


def script_of(name, given=None, **options):
    path = CONFIGS / name
    return create_backend(given or path, config=path if given else None, **options).job_script()


# Batch systems


@pytest.mark.parametrize(
    ("name", "given", "lines", "never"),
    [
        (
            "ncar-tutorial.yaml",
            "pbs",
            ["#PBS -l select=1:ncpus=36:mem=109GB", "#PBS -l walltime=01:00:00", "--interface ib0"],
            ["#PBS -A", "3600"],
        ),
        ("ncar-tutorial.yaml", "slurm", ["#SBATCH -C casper", "#SBATCH -t 06:00:00"], ["21600"]),
        ("ncar-jobqueue.yaml", "casper", ["#PBS -l walltime=02:00:00", "--interface ext"], []),
        (
            "hpcconfig.yaml",
            "datarmor",
            ["#PBS -m n", "#PBS -l walltime=12:00:00", "--nworkers 14", "--death-timeout 250"],
            [],
        ),
        (
            "nersc-cori.yaml",
            None,
            ["#SBATCH -C haswell", "#SBATCH -L project, SCRATCH, cscratch1", "$localscratch"],
            ["600\n"],
        ),
        ("comet.yaml", None, ["--local-directory /scratch/$USER/$SLURM_JOB_ID"], []),
        (
            "arrakis.yaml",
            None,
            ["\nsrun -n 1 -c 20 python -m distributed", "module load singularity\nconda activate"],
            [],
        ),
        ("nomelt.yaml", None, ["--lifetime 85m", "#SBATCH --exclusive"], ["--local-directory"]),
        ("csiro.yaml", None, ["#SBATCH -t 0-2:00:00", "--memory-limit 8.38GiB"], []),
        ("esmvalcore.yaml", None, ["#SBATCH -A bk1088", "--nworkers 2", "--nthreads 4"], []),
        ("esmvaltool-old.yaml", None, ["#SBATCH -p compute", "--nworkers 32"], []),
        ("fsl-mrs.yaml", "fsl_dynmrs", ["#SBATCH -p long", "-J fsl_dynmrs"], ["-p short"]),
        (
            "summit.yaml",
            None,
            ["#BSUB -nnodes 1", '#BSUB -P "csc123"', "#BSUB -W 00:30"],
            ["#BSUB -R", "#BSUB -n ", "#BSUB -M"],
        ),
        ("azure.yaml", "lsf", ["#BSUB -q htc", "#BSUB -n 2"], []),
        ("prefect-slurm.yaml", None, ["#SBATCH --qos=short", "#SBATCH -t 04:00:00"], []),
        ("dagster.yaml", None, ["#SBATCH -p short"], []),
        ("casper.yaml", None, ["#PBS -q casper", "#PBS -l walltime=00:30:00"], []),
        ("several.yaml", None, ["#SBATCH --cpus-per-task=2"], []),
        ("janelia", None, ["#BSUB -W 08:00", "#BSUB -e job-logs/"], []),
    ],
)
def test_the_jobs_are_those_that_the_file_describes(name, given, lines, never):
    script = script_of(name, given)
    assert [line for line in lines if line not in script] == []
    assert [line for line in never if line in script] == []
    assert not (Path.cwd() / "job-logs").exists()


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_configuration_makes_the_backend_that_it_is_for(name):
    values = yaml.safe_load(shipped_configs()[name].read_text())
    with create_backend(None, config=name) as backend:
        assert backend.recipe.backend in (values["daskspace"]["backend"], "pbs")
        assert f"daskspace/cluster_configs/{name}.yaml" in backend.recipe.describe()
    if "jobqueue" not in values:
        return
    ((_, section),) = values["jobqueue"].items()
    script = backend.job_script()
    wanted = ("queue", "account", "walltime", "resource-spec", "interface", "local-directory")
    texts = [section[key] for key in wanted if section.get(key)]
    texts += section.get("job-extra-directives", [])
    assert [text for text in texts if str(text) not in script] == []
    assert f"--nworkers {section['cores']} " in script or section["cores"] == 1
    assert backend._most == values["daskspace"].get("jobs", 1)


def test_workers_in_jobs_get_the_configuration():
    given = {"jobqueue": {"slurm": {"cores": 1, "memory": "1GB"}}, "distributed": {"x": {"y": 1}}}
    script = create_backend("slurm", config=given).job_script()
    (line,) = (line for line in script.splitlines() if "INHERIT" in line)
    inherited = dask.config.deserialize(line.partition("=")[2])
    assert inherited == {"distributed": {"x": {"y": 1}}}
    del given["distributed"]
    assert "INHERIT" not in create_backend("slurm", config=given).job_script()


def test_sections_of_two_backends_do_not_meet_and_go_with_them():
    import daskspace.backends.jobqueue  # noqa: F401 - which brings the sections of all systems

    gc.collect()
    before = set(dask.config.get("jobqueue"))
    one, other = (
        create_backend("slurm", config={"jobqueue": {"slurm": {"queue": q}}}, cores=1, memory="1GB")
        for q in ("short", "long")
    )
    assert "-p short" in one.job_script()
    assert "-p long" in other.job_script()
    assert dask.config.get("jobqueue.slurm.queue") is None
    del one, other
    gc.collect()
    assert set(dask.config.get("jobqueue")) == before


def test_a_message_names_the_section_as_its_file_does():
    with pytest.raises(ConfigError, match=r"configuration: jobqueue\.mine\.cores"):
        create_backend(
            "mine", config={"jobqueue": {"mine": {"queue": "x"}}}, system="slurm"
        ).job_script()


def test_an_operation_runs_in_the_jobs_of_a_section(tmp_path, monkeypatch):
    site = SITES["loadl"]()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "jobqueue:\n  mine: {cores: 1, memory: 500MB, job-scheduling-system: loadleveler}\n"
        "distributed: {client: {heartbeat: 5}, comm: {retry: {count: 17}}}\n"
    )
    op = operation(retry_count, grid={"x": [1]})
    with create_backend("mine", config="mine.yaml", query_interval=0.5) as backend:
        backend.run(op)
        log = Path(op.result_directory, "operation.log").read_text()
    assert [(row["state"], row["count"]) for row in op.rows()] == [("done", 17)]
    assert "backend: loadl, by jobqueue.mine in mine.yaml:2" in log
    assert site.is_empty()


def retry_count(x):
    import dask.config
    import distributed  # noqa: F401 - which registers its defaults

    return {"count": dask.config.get("distributed.comm.retry.count")}


# This machine


def test_the_configuration_holds_for_its_backend_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gc.collect()  # the sections of backends that are gone
    before = dask.config.merge(dask.config.config)
    given = {"distributed": {"comm": {"retry": {"count": 23}}}}
    op = operation(retry_count, grid={"x": [1]})
    with create_backend("mcore", config=given, n_workers=1, isolation="none") as backend:
        backend.run(op)
        assert dask.config.config == before
    assert [row["count"] for row in op.rows()] == [23]
    assert dask.config.config == before


def test_a_class_of_distributed_is_made_by_its_backend_and_others_as_they_are():
    assert str(create_backend("dask.distributed.LocalCluster")) == "MulticoreBackend"
    backend = create_backend("distributed:SSHCluster")
    assert str(backend) == "ClassBackend"
    assert str(create_backend("tcp://127.0.0.1:1")) == "AttachedBackend"
    assert str(create_backend(CONFIGS / "scheduler.json")) == "AttachedBackend"


def test_options_are_those_of_the_backend_that_was_found():
    with pytest.raises(ConfigError, match="has no option 'n_wrokers'"):
        create_backend(CONFIGS / "dask-ctl.yaml", n_wrokers=2)


def test_who_counts_workers_is_told_of_jobs():
    with pytest.raises(ConfigError, match="'n_workers': jobs says how many"):
        create_backend("slurm", n_workers=4)


# Our own section


def test_every_option_of_ours_has_a_key_and_every_key_a_line_in_the_schema():
    keys = {key.replace("_", "-") for key in ("backend", *OWN_OPTIONS, *BATCH_OPTIONS)}
    assert set(DEFAULTS) == keys
    schema = yaml.safe_load((HOME / "daskspace-schema.yaml").read_text())
    assert set(schema["properties"]["daskspace"]["properties"]) == keys


def test_the_defaults_are_those_of_the_code():
    made, policies = create_backend("mcore")._run_options, Policies()
    assert made.policies == policies
    assert (made.process_timeout, made.process_memory, made.isolation) == (None, None, "process")
    assert create_backend("serial")._run_options.isolation == "none"


def test_arguments_count_more_than_our_section_and_it_more_than_defaults(monkeypatch):
    monkeypatch.setenv("DASK_DASKSPACE__LOST_RETRIES", "9")
    given = {"daskspace": {"retries": 1, "lost_retries": 3, "process-timeout": "10 minutes"}}
    with dask.config.set({"daskspace.max-failures": 4}):
        made = create_backend("serial", config=given, retries=2)._run_options
        hasty = create_backend("serial", fail_fast=True)._run_options
    assert (made.policies.retries, made.policies.max_failures) == (2, 4)
    assert (made.policies.lost_retries, made.process_timeout) == (9, 600)
    assert hasty.policies.max_failures == 1


def test_null_is_for_the_default():
    with dask.config.set({"daskspace": dict.fromkeys(DEFAULTS)}):
        assert create_backend("serial")._run_options.policies == Policies()
        assert create_backend("slurm")._most == DEFAULTS["jobs"]


def test_a_key_of_our_section_that_there_is_not_is_refused_with_its_place(tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("daskspace:\n  retries: 1\n  retreis: 2\n")
    message = r"x.yaml:3: unknown key 'retreis' in the section daskspace; did you mean 'retries'"
    with pytest.raises(ConfigError, match=message):
        create_backend("serial", config=file)
    create_backend("serial")  # nothing is left of it
    with (
        dask.config.set({"daskspace.retries": "many"}),
        pytest.raises(ConfigError, match="retries must be a whole number, not 'many'"),
    ):
        create_backend("serial")


# The command line


@pytest.fixture
def place(tmp_path):
    (tmp_path / "work.py").write_text("def square(x):\n    return {'y': x * x}\n")
    (tmp_path / "op.yaml").write_text("function: work:square\nparameter_ranges: {x: [1, 2]}\n")
    (tmp_path / "site.yaml").write_text("scheduler: synchronous\n")
    return tmp_path


def run(place, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "daskspace", *arguments],
        cwd=place,
        env={**os.environ, "HOME": str(place), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_what_was_chosen_is_said_and_taken_again_by_resume(place):
    ran = run(place, "run", "op.yaml", "-b", "site.yaml", "-o", "out", DASK_DASKSPACE__RETRIES="1")
    assert ran.returncode == 0, ran.stderr
    assert "backend: serial, by scheduler in site.yaml\n" in ran.stderr
    assert "backend: serial, by scheduler in site.yaml" in (place / "out/operation.log").read_text()
    told = json.loads((place / "out/environment.json").read_text())
    assert told["given"] == {"backend": str(place / "site.yaml"), "config": []}
    again = run(place, "resume", "out")
    assert again.returncode == 0, again.stderr
    assert "backend: serial, by scheduler in ~/site.yaml" in again.stderr
    (place / "site.yaml").unlink()
    gone = run(place, "resume", "out")
    assert (gone.returncode, "there is no file" in gone.stderr) == (1, True)


def test_backends_lists_sections_and_shipped_configurations(place):
    (place / "dask.yaml").write_text("jobqueue: {casper: {job-scheduling-system: pbs}, odd: {}}\n")
    ran = run(place, "backends", "--json", DASK_CONFIG=str(place / "dask.yaml"))
    rows = {row["name"]: row for row in json.loads(ran.stdout)}
    assert rows["casper"]["package"] == "daskspace, by --config"
    assert rows["jobqueue.casper"]["what"].startswith("pbs, by jobqueue.casper in ~/dask.yaml:1")
    assert "not usable: jobqueue.odd in ~/dask.yaml:1 does not tell" in rows["jobqueue.odd"]["what"]
    assert rows["laptop"]["what"] == "mcore, with daskspace/cluster_configs/laptop.yaml"
    assert sorted(path.name for path in place.iterdir()) == [
        *("dask.yaml", "op.yaml", "site.yaml", "work.py"),
    ]


def test_a_configuration_without_a_backend_says_what_to_do(place):
    (place / "plain.yaml").write_text("distributed: {comm: {compression: null}}\n")
    ran = run(place, "run", "op.yaml", "--config", "plain.yaml")
    assert ran.returncode == 1
    assert "plain.yaml names no cluster, only distributed" in ran.stderr
    assert "Traceback" not in ran.stderr
