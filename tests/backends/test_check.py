import gc
import os
import random
import textwrap

import dask.config
import pytest

from daskspace.backends.check import check
from daskspace.clusters.config_files import shipped_configs
from daskspace.clusters.traps import LEVELS
from daskspace.errors import ConfigError
from tests.clusters.odd_configs import some_config


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file below the working directory, where Dask has no files of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dask.config.paths", [])

    def writing(text, name="cluster.yaml"):
        (tmp_path / name).write_text(textwrap.dedent(text))
        return name

    return writing


def lines(report):
    return [f"{f.level} {f.place} {f.key}" for f in report.findings]


DIALECTS = {
    "jobqueue": ("jobqueue:\n  slurm:\n    {keys}", "cluster.yaml:3"),
    "prefect-dask": (
        "cluster_class: dask_jobqueue.SLURMCluster\ncluster_kwargs:\n  {keys}",
        "cluster.yaml:3",
    ),
    "dask-ctl": (
        "version: 1\nmodule: dask_jobqueue\nclass: SLURMCluster\nkwargs:\n  {keys}",
        "cluster.yaml:5",
    ),
    "labextension": (
        "labextension:\n  factory:\n    module: dask_jobqueue\n    class: SLURMCluster\n"
        "    kwargs:\n      {keys}",
        "cluster.yaml:6",
    ),
    "ESMValTool": (
        "dask:\n  use: levante\n  profiles:\n    levante:\n      cluster:\n"
        "        type: dask_jobqueue.SLURMCluster\n        {keys}",
        "cluster.yaml:7",
    ),
    "dagster-dask": ("cluster:\n  slurm:\n    {keys}", "cluster.yaml:3"),
    "dask-hpcconfig": ("here:\n  cluster:\n    type: slurm\n    {keys}", "cluster.yaml:4"),
    "ncar-jobqueue": ("here:\n  slurm:\n    {keys}", "cluster.yaml:3"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_line_of_a_value_is_known_in_every_dialect(write, dialect):
    text, place = DIALECTS[dialect]
    indent = " " * (len(text.rpartition("\n")[2]) - len("{keys}"))
    keys = f"\n{indent}".join(["cores: 4", "memory: 8 GB", "processes: 3", "job-cpu: 5"])
    report = check(write(text.format(keys=keys)))
    (cluster,) = report.clusters
    assert (cluster.backend, cluster.dialect) == ("slurm", dialect)
    settings = {setting.name: (setting.value, setting.source) for setting in cluster.settings}
    line = int(place.rpartition(":")[2])
    assert settings["cores"] == (4, place)
    assert settings["memory"] == ("8 GB", f"cluster.yaml:{line + 1}")
    assert lines(report)[:2] == [
        f"warning cluster.yaml:{line + 2} processes",
        f"warning cluster.yaml:{line + 3} job-cpu",
    ]
    assert cluster.numbers["workers"] == 3
    assert cluster.numbers["memory"] == 8 * 10**9 // 3


@pytest.mark.parametrize("name", shipped_configs())
def test_what_is_shipped_is_clean(write, name):
    report = check(str(shipped_configs()[name]))
    assert [f for f in report.findings if f.level != "note"] == []


def test_options_and_what_contradicts_them_are_told(write):
    file = write("jobqueue:\n  slurm: {cores: 2, memory: 2GB, walltime: '00:10:00'}\n")
    given = {"process_timeout": "1h", "adapt": {"minimum": 5, "maximum": 2}, "queue": "$Q"}
    report = check(file, options=given)
    assert [line for line in lines(report) if line.startswith("error")] == [
        "error cluster.yaml:2 adapt",
        "error option process_timeout",
    ]
    assert "warning option queue" in lines(report)
    assert check(file, options={"insecure": True, "protocol": "tcp"}).count("error") == 0
    (finding,) = check(file, options={"protocol": "tcp"}).findings
    assert finding.level == "error"
    assert "insecure=True" in finding.found


def test_a_backend_for_a_file_that_names_none(write):
    file = write("distributed:\n  worker:\n    memory: {target: much}\n")
    assert check(file).clusters == ()
    (cluster,) = check(file, "mcore", {"n_workers": 3}).clusters
    assert cluster.size.startswith("3 workers with 1 thread each")
    assert lines(check(file)) == ["error cluster.yaml:3 distributed.worker.memory.target"]


def test_a_cluster_elsewhere_is_looked_at_without_going_there(write):
    (finding,) = check("tcp://192.0.2.1:8786").findings
    assert (finding.level, finding.key) == ("note", "address")
    report = check(write("cluster_class: no_such_package.SomeCluster\n"))
    assert "there is no package no_such_package here" in report.findings[0].found


def test_what_cannot_be_read_is_a_finding_and_what_is_nothing_an_error(write):
    assert lines(check(write("a:\n\tb: 1\n"))) == ["error cluster.yaml:2 "]
    (finding,) = check(write("# jobqueue: 1\n")).findings
    assert "every line is commented out" in finding.found
    with pytest.raises(ConfigError, match=r"there is no file nowhere\.yaml"):
        check("nowhere.yaml")
    with pytest.raises(ConfigError, match=r"unknown backend 'slrum'.* 'slurm'"):
        check("slrum")


def test_no_configuration_makes_it_fail(write):
    chance = random.Random(2010)
    seen = set()
    for _ in range(80):
        text = some_config(chance)
        try:
            report = check(write(text), options=chance.choice([{}, {"jobs": 3}]))
        except Exception as error:
            raise AssertionError(text) from error
        assert all(f.level in LEVELS and f.found for f in report.findings), text
        seen |= {f.level for f in report.findings}
    assert seen == set(LEVELS)
    assert os.listdir() == ["cluster.yaml"]
    gc.collect()
    assert not [name for name in dask.config.get("jobqueue") if name.startswith("daskspace-")]
