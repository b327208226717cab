"""What people have for their clusters is recognised; each file is a dialect or a config met in use.

The files are ours; whose layout they have is told by their names.
"""

import contextlib
import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import dask.config
import distributed
import pytest

from daskspace.backends import BACKENDS
from daskspace.clusters import dialects
from daskspace.clusters.config_files import read_configs, shipped_configs
from daskspace.clusters.dialects import recognise
from daskspace.clusters.section import BACKEND_OF, defaults, put_right, system_of
from daskspace.errors import ConfigError

CONFIGS = Path(__file__).with_name("configs")
PROGRAMS = {"sbatch", "qsub", "bsub", "condor_submit", "oarsub", "msub", "llsubmit", "qconf"}


@pytest.fixture(autouse=True)
def no_batch_system(tmp_path, monkeypatch):
    """A machine without any; `install` puts programs on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("NCAR_HOST", "nowhere")


def install(tmp_path, *names):
    (tmp_path / "bin").mkdir(exist_ok=True)
    for name in names:
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
        (tmp_path / "bin" / name).chmod(0o755)


def of(name, given=None, **options):
    path = CONFIGS / name
    return recognise(path if given is None else given, given and path, options)


def section_of(recipe, *keys):
    return [recipe.section[key] for key in keys]


# Files


@pytest.mark.parametrize(
    ("name", "given", "dialect", "backend", "key"),
    [
        ("ncar-tutorial.yaml", "pbs", "jobqueue", "pbs", "jobqueue.pbs"),
        ("ncar-tutorial.yaml", "slurm", "jobqueue", "slurm", "jobqueue.slurm"),
        ("ncar-jobqueue.yaml", "casper", "ncar-jobqueue", "pbs", "casper.pbs"),
        ("ncar-jobqueue.yaml", "hobart", "ncar-jobqueue", "pbs", "hobart.pbs"),
        ("hpcconfig.yaml", "datarmor", "dask-hpcconfig", "pbs", "datarmor.cluster"),
        ("hpcconfig.yaml", "datarmor-local", "dask-hpcconfig", "mcore", "datarmor-local.cluster"),
        ("nersc-cori.yaml", None, "jobqueue", "slurm", "jobqueue.slurm"),
        ("comet.yaml", None, "jobqueue", "slurm", "jobqueue.slurm"),
        ("arrakis.yaml", None, "jobqueue", "slurm", "jobqueue.slurm"),
        ("nomelt.yaml", None, "jobqueue", "slurm", "jobqueue.slurm"),
        ("csiro.yaml", None, "jobqueue", "slurm", "jobqueue.slurm"),
        ("esmvalcore.yaml", None, "ESMValTool", "slurm", "dask.profiles.levante.cluster"),
        ("esmvalcore.yaml", "local_threaded", "ESMValTool", "mcore", None),
        ("esmvalcore.yaml", "local_distributed", "ESMValTool", "mcore", None),
        ("esmvalcore.yaml", "debug", "ESMValTool", "serial", None),
        ("esmvaltool-old.yaml", None, "ESMValTool", "slurm", "cluster"),
        ("fsl-mrs.yaml", "fsl_dynmrs", "jobqueue", "slurm", "jobqueue.fsl_dynmrs"),
        ("fsl-mrs.yaml", "jobqueue.fsl_mrsi", "jobqueue", "slurm", "jobqueue.fsl_mrsi"),
        ("summit.yaml", None, "labextension", "lsf", "labextension.factory"),
        ("azure.yaml", "lsf", "jobqueue", "lsf", "jobqueue.lsf"),
        ("prefect-slurm.yaml", None, "prefect-dask", "slurm", "cluster_class"),
        ("dask-ctl.yaml", None, "dask-ctl", "mcore", "class"),
        ("dagster.yaml", None, "dagster-dask", "slurm", "cluster.slurm"),
        ("casper.yaml", None, "jobqueue", "pbs", "jobqueue.casper"),
        ("several.yaml", None, "jobqueue", "slurm", "jobqueue.slurm"),
        ("janelia", None, "jobqueue", "lsf", "jobqueue.lsf"),
    ],
)
def test_a_file_is_taken_for_what_it_is(name, given, dialect, backend, key):
    recipe = of(name, given)
    assert (recipe.dialect, recipe.backend) == (dialect, backend)
    assert key in (None, recipe.key)
    assert name.partition(".")[0] in recipe.describe()
    assert recipe.describe().startswith(f"{backend}, by ")


def test_every_file_is_under_test():
    text = Path(__file__).read_text()
    assert [path.name for path in CONFIGS.iterdir() if f'"{path.name}' not in text] == []


def test_keys_with_other_names_today_get_those():
    recipe = of("arrakis.yaml")
    assert section_of(recipe, "job-extra-directives", "job-script-prologue", "job-extra") == [
        ["-M galaxy"],
        ["module load singularity", "conda activate pol"],
        None,
    ]
    assert "env-extra: called job-script-prologue today; put right" in recipe.remarks
    skipped = of("summit.yaml").section["job-directives-skip"]
    assert skipped == ["-R", "-n ", "-M"]


def test_project_stays_project_where_the_system_calls_it_so():
    assert put_right({"project": "p"}, "lsf")[0] == {"project": "p"}
    assert put_right({"project": "p"}, "pbs")[0] == {"account": "p"}
    assert put_right({"project": "p", "account": "a"}, "pbs")[0] == {"account": "a"}


def test_times_of_files_stay_as_they_are_spelled():
    assert of("nersc-cori.yaml").section["walltime"] == "00:10:00"
    assert of("ncar-jobqueue.yaml", "casper").section["walltime"] == "02:00:00"
    assert of("prefect-slurm.yaml").options["walltime"] == "04:00:00"
    assert of("hpcconfig.yaml", "datarmor").options["walltime"] == "12:00:00"
    assert of("csiro.yaml").section["walltime"] == "0-2:00:00"


def test_a_time_that_dask_has_read_as_a_number_is_put_right(tmp_path, monkeypatch):
    file = tmp_path / "dask.yaml"
    file.write_text("jobqueue:\n  slurm:\n    cores: 1\n    walltime: 12:00:00\n")
    monkeypatch.setattr("dask.config.paths", [str(file)])
    with dask.config.set(dask.config.collect([str(file)], env={})):
        assert dask.config.get("jobqueue.slurm.walltime") == 43200
        recipe = recognise("slurm")
    assert recipe.section["walltime"] == "12:00:00"
    assert recipe.describe() == f"slurm, by jobqueue.slurm in {file}:3"
    assert "walltime: YAML takes 12:00:00 for the number 43200" in recipe.remarks[0]


def test_what_is_fine_is_left_to_dask_jobqueue():
    with dask.config.set({"jobqueue.slurm": {"cores": 2, "memory": "1GB", "name": "me"}}):
        recipe = recognise("slurm")
    assert (recipe.section, recipe.remarks) == (None, ())


def test_empty_texts_mean_not_set():
    assert of("ncar-tutorial.yaml", "pbs").section["account"] is None
    assert of("nomelt.yaml").section["local-directory"] is None
    assert put_right({"resources": ""}, "loadleveler")[0] == {"resources": ""}


def test_a_set_becomes_a_list():
    assert of("ncar-tutorial.yaml", "slurm").section["job-extra-directives"] == ["-C casper"]


def test_hyphens_and_underscores_are_the_same():
    assert of("nomelt.yaml").section["worker-extra-args"] == ["--lifetime", "85m"]


def test_a_command_stays_one_and_variables_are_left_to_the_job():
    assert of("arrakis.yaml").section["python"] == "srun -n 1 -c 20 python"
    assert of("comet.yaml").section["local-directory"] == "/scratch/$USER/$SLURM_JOB_ID"
    assert of("nersc-cori.yaml").section["local-directory"] == "$localscratch"
    assert of("ncar-tutorial.yaml", "pbs").section["local-directory"] == "/scratch/${USER}/dask"


def test_the_rest_of_a_file_is_configuration_for_the_backend():
    config = of("ncar-tutorial.yaml", "pbs").config
    assert list(config) == ["distributed"]
    assert config["distributed"]["worker"]["memory"]["pause"] == 0.8
    assert of("hpcconfig.yaml", "datarmor").config == {
        "distributed": {"worker": {"use-file-locking": False, "memory": {"spill": 0}}}
    }
    assert of("hpcconfig.yaml", "datarmor-seq").config == {}
    assert of("esmvalcore.yaml").config == {"array": {"chunk-size": "64MiB"}}


def test_missing_keys_are_those_of_the_system():
    section = of("casper.yaml").section
    assert set(defaults()["pbs"]) <= set(section)
    assert (section["queue"], section["walltime"], section["cores"]) == ("casper", "00:30:00", 2)


def test_workers_become_jobs_by_how_many_a_job_has():
    options = of("esmvalcore.yaml").options
    assert (options["jobs"], options["processes"]) == (12, 2)
    assert "n_workers" not in options
    assert of("esmvaltool-old.yaml").options["jobs"] == 2
    summit = of("summit.yaml").options
    assert (summit["jobs"], summit["project"]) == (2, "csc123")
    prefect = of("prefect-slurm.yaml").options
    assert (prefect["jobs"], prefect["adapt"]) == (10, {"minimum_jobs": 0, "maximum_jobs": 10})
    assert prefect["job_extra_directives"] == ["--qos=short"]


def test_options_count_more_than_a_file():
    options = of("esmvalcore.yaml", jobs=1, queue="compute").options
    assert (options["jobs"], options["queue"], options["cores"]) == (1, "compute", 8)


def test_clusters_of_this_machine_are_those_of_mcore():
    assert of("dask-ctl.yaml").options == {"n_workers": 2, "threads_per_worker": 1}
    assert of("hpcconfig.yaml", "datarmor-local").options["n_workers"] == 4
    assert of("esmvalcore.yaml", "local_distributed").options == {"n_workers": 2}


def test_classes_of_other_packages_get_their_keywords_untouched():
    fargate = of("prefect-fargate.yaml")
    assert fargate.cluster_class == "dask_cloudprovider.aws.FargateCluster"
    assert fargate.options == {"image": "daskdev/dask:latest", "n_workers": 4}
    assert (fargate.adapt, fargate.client_kwargs) == ({"maximum": 10}, {"timeout": 60})
    gateway = of("labextension.yaml")
    assert gateway.cluster_class == "dask_gateway:GatewayCluster"
    assert gateway.options == {"address": "http://gateway.example.org"}
    assert gateway.adapt == {"minimum": 0, "maximum": 4}


def test_a_number_of_workers_that_is_no_keyword_is_kept_to_by_adapting():
    factory = {"module": "a", "class": "B", "kwargs": {"x": 1}}
    given = {"labextension": {"factory": factory, "default": {"workers": 2}}}
    recipe = recognise(given)
    assert (recipe.options, recipe.adapt) == ({"x": 1}, {"minimum": 2, "maximum": 2})
    factory["class"] = "LocalCluster"
    factory["module"] = "dask.distributed"
    assert recognise(given).options == {"x": 1, "n_workers": 2}
    factory["args"] = [3]
    with pytest.raises(ConfigError, match="by their names"):
        recognise(given)


def test_schedulers_that_run_are_attached_to():
    assert of("prefect-address.yaml").address == "tcp://10.0.0.1:8786"
    assert of("prefect-address.yaml").client_kwargs == {"timeout": 60}
    assert of("dagster-existing.yaml").address == "tls://10.0.0.1:8786"
    assert of("esmvalcore.yaml", "external").address == "tcp://127.0.0.1:38789"
    assert of("scheduler.json").scheduler_file == str(CONFIGS / "scheduler.json")


def test_several_files_and_documents_are_merged_from_left_to_right():
    files = [CONFIGS / "em-blockrun-1.yaml", CONFIGS / "em-blockrun-2.yaml"]
    recipe = recognise("slurm", files)
    assert section_of(recipe, "cores", "memory", "queue") == [16, "64GB", "ccm"]
    assert recipe.config["distributed"]["worker"]["memory"]["pause"] is False
    assert recipe.files == tuple(files)
    assert section_of(of("several.yaml"), "cores", "memory") == [2, "1GB"]
    mixed = recognise("slurm", [files[0], {"jobqueue": {"slurm": {"cores": 3}}}])
    assert section_of(mixed, "cores", "memory") == [3, "64GB"]


def test_of_several_systems_the_one_that_is_installed_is_taken(tmp_path):
    with pytest.raises(ConfigError, match=r"holds several: pbs, slurm; say which.* -b pbs"):
        of("ncar-tutorial.yaml")
    install(tmp_path, "sbatch")
    assert of("ncar-tutorial.yaml").backend == "slurm"
    assert of("ncar-tutorial.yaml", None, system="pbs").backend == "pbs"


def test_a_host_is_known_by_its_name(monkeypatch):
    monkeypatch.setenv("NCAR_HOST", "derecho7")
    assert of("ncar-jobqueue.yaml").key == "derecho.pbs"


# The system of a section


@pytest.mark.parametrize(
    ("name", "keys", "told", "system"),
    [
        ("mine", {"cores": 1}, "SGE", "sge"),
        ("mine", {"cores": 1, "job_scheduling_system": "loadl"}, None, "loadleveler"),
        ("pbs", {"cores": 1}, None, "pbs"),
        ("mine", {"job-cpu": 4}, None, "slurm"),
        ("mine", {"lsf-units": "mb"}, None, "lsf"),
        ("mine", {"disk": "1GB"}, None, "htcondor"),
        ("mine", {"tasks-per-node": 2}, None, "loadleveler"),
        ("our-oar", {"queue": "x"}, None, "oar"),
    ],
)
def test_the_system_is_what_is_said_or_what_the_keys_and_the_name_tell(name, keys, told, system):
    assert system_of(name, keys, told) == system


def test_else_the_system_is_the_one_that_is_installed(tmp_path):
    keys = {"queue": "x", "resource-spec": "y"}
    with pytest.raises(ConfigError, match=r"does not tell .* system=.*job-scheduling-system"):
        system_of("mine", keys, where="jobqueue.mine in x.yaml")
    install(tmp_path, "qsub")
    assert system_of("mine", keys) == "pbs"
    install(tmp_path, "qconf")
    assert system_of("mine", keys) == "sge"


# Names, addresses, classes, objects


def test_the_names_are_those_of_the_registry():
    assert set(dialects.NAMES) == set(BACKENDS)
    assert set(BACKEND_OF) == set(defaults())


def test_a_name_is_itself():
    assert [recognise(name).backend for name in BACKENDS] == list(BACKENDS)
    assert recognise("serial").describe() == "serial"


@pytest.mark.parametrize("address", ["tcp://a:1", "tls://a:1", "ucx://a:1", "ws://a:1"])
def test_an_address_is_attached_to(address):
    assert recognise(address).address == address


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("gateway://a:1/x", "dask_gateway.GatewayCluster"),
        ("http://a:8787", "no address of a scheduler"),
    ],
)
def test_what_cannot_be_attached_to_is_said(address, message):
    with pytest.raises(ConfigError, match=message):
        recognise(address)


@pytest.mark.parametrize(
    ("dotted", "backend"),
    [
        ("dask_jobqueue.SLURMCluster", "slurm"),
        ("dask_jobqueue.pbs:PBSCluster", "pbs"),
        ("daskspace.clusters.LoadLevelerCluster", "loadl"),
        ("dask.distributed.LocalCluster", "mcore"),
        ("daskspace.clusters:MpiCluster", "mpi"),
        ("coffea_casa.CoffeaCasaCluster", None),
        ("dask_lxplus:CernCluster", None),
    ],
)
def test_a_dotted_class_is_a_backend_where_one_fits(dotted, backend):
    recipe = recognise(dotted, options={"cores": 1})
    assert recipe.backend == backend
    assert (recipe.cluster_class is None) is (backend is not None)
    assert recipe.options == {"cores": 1}


def test_a_class_a_function_and_live_objects_are_themselves():
    def factory():
        return None

    class Own(distributed.LocalCluster):
        pass

    class Running:
        scheduler_address = "tcp://a:1"

    running = Running()
    assert recognise(distributed.LocalCluster).backend == "mcore"
    assert recognise(Own).cluster_class is Own
    assert recognise(factory).cluster_class is factory
    assert recognise(running).target is running
    with pytest.raises(ConfigError, match="no backend can be made from 17"):
        recognise(17)


def test_a_section_comes_before_a_file_and_a_backend_before_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("slurm", "casper", "other"):
        (tmp_path / name).write_text("scheduler: threads\n")
    with dask.config.set({"jobqueue.casper": {"job-cpu": 1}}):
        assert recognise("slurm").dialect == "jobqueue"
        assert recognise("casper").backend == "slurm"
    assert recognise("other").backend == "mcore"


def test_a_recipe_does_not_change():
    with pytest.raises(FrozenInstanceError):
        recognise("serial").backend = "mcore"


# Precedence


def test_the_configuration_counts_less_than_variables_and_more_than_what_dask_has(monkeypatch):
    monkeypatch.setenv("DASK_JOBQUEUE__SLURM__QUEUE", "from-variable")
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__RETRY__COUNT", "7")
    given = {
        "jobqueue": {"slurm": {"queue": "given", "account": "given"}},
        "distributed": {"comm": {"retry": {"count": 3}}},
    }
    with dask.config.set({"jobqueue.slurm": {"account": "file", "cores": 5}}):
        recipe = recognise("slurm", given)
    assert section_of(recipe, "queue", "account", "cores") == ["from-variable", "given", 5]
    assert recipe.config == {"distributed": {"comm": {"retry": {"count": 7}}}}


def test_the_default_backend_is_configured():
    with dask.config.set({"daskspace.backend": "slurm"}):
        assert recognise(None).backend == "slurm"
    with dask.config.set({"daskspace.backend": None}):
        assert recognise(None).backend == "serial"


# What cannot be taken


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"x.yaml configures nothing: it is empty"),
        ("# jobqueue:\n", r"every line is commented out, so remove the #"),
        ("jobqueue:\n  slurm: {cores: 1\n", r"x.yaml:3: "),
        ("a: 1\n\tb: 2\n", r"x.yaml:2: "),
        ("- 1\n", r"x.yaml must hold a mapping of keys to values, not a list"),
        ("just words\n", r"not a text"),
        ("1: 2\n", r"a key must be a text, not 1"),
        ("a: &a\n  b: *a\n", r"x.yaml holds keys that cannot be merged"),
        ("a: !!python/object:os.system {}\n", r"x.yaml:1: "),
        ("jobqueue: [1]\n", r"x.yaml:1: jobqueue must hold keys, not \[1\]"),
        ("jobqueue:\n  slurm: fast\n", r"names no cluster"),
        ("distributed: {}\n", r"x.yaml names no cluster, only distributed: .* -b mcore --config"),
        ("jobqeue: {slurm: {}}\n", r"is the section jobqueue meant"),
        ("version: 2\nclass: C\n", r"dask-ctl's version 2 is unknown"),
        ("cluster_class: C\n", r"'C' is no dotted class"),
        ("address: tcp://a:1\ncluster_class: a.B\n", r"address and cluster_class exclude"),
        ("cluster_class: a.B\ncluster_kwargs: 3\n", r"x.yaml:2: cluster_kwargs must hold keys"),
        ("cluster_class: [a]\n", r"x.yaml: \['a'\] is no class"),
        ("cluster: {slurm: {cores: 2, n_workers: many}}\n", r"n_workers must be a whole number"),
        ("version: 1\nclass: a.B\nargs: 3\n", r"args must be a list, not 3"),
        ("daskspace: {backend: x.yaml}\n", r"must not be another configuration: 'x.yaml'"),
        ("daskspace: {backend: laptop}\n", r"must not be another configuration: 'laptop'"),
        ("cluster_kwargs: {asynchronous: true}\n", r"asynchronous clusters cannot be used"),
        ("a: {cluster: {type: slrum}}\n", r"'slrum'; known are .*; did you mean 'slurm'"),
        ("dask: {use: b, profiles: {a: {}}}\n", r"there is no profile 'b'; known are a"),
        ("jobqueue: {x: {job-scheduling-system: slrum}}\n", r"did you mean 'slurm'"),
        ("jobqueue: {a: {cores: 1}, b: {cores: 1}}\n", r"holds several: a, b; say which"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_place(text, message, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        recognise(file)
    assert str(file) in str(caught.value)


def test_the_fully_commented_file_of_dask_jobqueue_gets_help():
    with pytest.raises(ConfigError, match=r"commented out, .*; see casper, laptop"):
        of("commented.yaml")


@pytest.mark.parametrize("name", ["latin1.yaml", "broken.json", "missing.yaml", "empty"])
def test_what_is_no_configuration_is_refused(name, tmp_path):
    (tmp_path / "latin1.yaml").write_bytes(b"a: \xe9\n")
    (tmp_path / "broken.json").write_text("{\n  a\n}")
    (tmp_path / "empty").mkdir()
    messages = {
        "latin1.yaml": "not a text in UTF-8",
        "broken.json": r"broken.json:2: ",
        "missing.yaml": "there is no file .*missing.yaml",
        "empty": "a directory without .yaml",
    }
    with pytest.raises(ConfigError, match=messages[name]):
        recognise(tmp_path / name)


def test_a_file_that_may_not_be_read_is_told(tmp_path):
    file = tmp_path / "x.yaml"
    file.mkdir()
    with pytest.raises(ConfigError):
        read_configs(file)


def test_a_name_that_is_unknown_is_told_with_what_there_is(monkeypatch):
    section = {"jobqueue": {"casper": {"cores": 1}}}
    monkeypatch.setattr(dask.config, "collect", lambda *a, **k: section)
    with pytest.raises(ConfigError, match=r"unknown backend 'slrum'; .*did you mean 'slurm'"):
        recognise("slrum")
    with pytest.raises(ConfigError, match=r"sections .*: casper; .*did you mean 'casper'"):
        recognise("caspar")
    with pytest.raises(ConfigError, match=r"shipped configurations: .*did you mean 'laptop'"):
        recognise("labtop")
    with pytest.raises(ConfigError, match=r"there is no section jobqueue.slrum"):
        recognise("jobqueue.slrum")
    with pytest.raises(ConfigError, match=r"no file labtop.*did you mean 'laptop'"):
        recognise("mcore", "labtop")


def test_a_configuration_for_something_else_is_refused():
    with pytest.raises(
        ConfigError, match=r"is for slurm, by dask.profiles.* leave the backend pbs"
    ):
        of("esmvalcore.yaml", "pbs")
    assert of("esmvalcore.yaml", "slurm").options["queue"] == "shared"


# What is shipped


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_configuration_has_no_key_that_nothing_reads(name):
    import daskspace.backends.mpi  # noqa: F401 - which registers its defaults

    recipe = recognise(None, name)
    assert recipe.backend in BACKENDS
    assert recipe.remarks == ()
    if recipe.section is not None:
        assert set(recipe.section) <= {*defaults()[recipe.system], "job-scheduling-system"}
    for key in leaves(recipe.config):
        dask.config.get(key if "environ" not in key else key.rpartition(".")[0])


def leaves(config, before=""):
    for key, value in config.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def test_recognising_neither_changes_dask_s_configuration_nor_writes(tmp_path, monkeypatch):
    before = dask.config.merge(dask.config.config)
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in sorted(CONFIGS.glob("*.yaml")):
        with contextlib.suppress(ConfigError):
            recognise(path)
    assert dask.config.config == before
    assert os.listdir(tmp_path) == []
