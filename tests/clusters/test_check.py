import random
import re
import textwrap

import pytest

from daskspace.clusters.check import (
    Configuration,
    as_dask_takes,
    defaults_of,
    known_keys,
    mistakes_in,
    oddities_in,
)
from daskspace.clusters.section import defaults
from daskspace.clusters.sources import entries_in, entries_of
from daskspace.clusters.traps import LEVELS, Section, traps_in

from .odd_configs import some_config


@pytest.fixture
def read(tmp_path):
    """Write a configuration and return what it sets."""

    def reading(text, name="dask.yaml"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return entries_of(path)

    return reading


def section(entries, system="slurm", name=None, keys=None, **more):
    path = f"jobqueue.{name or system}"
    keys = Configuration(entries).below(path) if keys is None else keys
    known, standard = known_keys(f"jobqueue.{system}"), defaults_of(f"jobqueue.{system}")
    return Section(system, path, keys, known, frozenset({"nanny"}), standard, **more)


def told(findings):
    """Return the findings as (level, line, key, all words)."""
    return [
        (f.level, f.place.rpartition(":")[2], f.key, f"{f.found}; {f.remedy}") for f in findings
    ]


def assert_told(findings, level, line, key, words):
    found = told(findings)
    assert any(
        (level, str(line), key) == finding[:3] and words in finding[3] for finding in found
    ), found


IN_SECTIONS = [
    # system, lines of the section (which begin in line 3), level, line, key, words
    ("slurm", "walltime: 12:00:00", "warning", 3, "walltime", "12:00:00 for the number 43200"),
    ("slurm", "walltime: 12:00:00", "warning", 3, "walltime", "it would be 30 days for slurm"),
    ("lsf", "walltime: 12:00", "warning", 3, "walltime", "takes 12:00 for the number 720"),
    ("lsf", "walltime: 12:00", "warning", 3, "walltime", "takes for the same time"),
    ("lsf", "walltime: 12:00:00", "error", 3, "walltime", "no time limit for lsf"),
    ("pbs", "walltime: 12:00:00", "warning", 3, "walltime", "pbs takes for the same time"),
    ("slurm", "walltime: 3600", "warning", 3, "walltime", "as minutes: 3600 is 2.5 days"),
    ("slurm", "walltime: '01:00'", "note", 3, "walltime", "minutes and seconds: 60 s"),
    ("slurm", "walltime: soon", "error", 3, "walltime", "'soon' is no time limit"),
    ("slurm", "death-timeout: 1:00", "warning", 3, "death-timeout", "'1:00'"),
    ("slurm", "account: 0123", "warning", 3, "account", "YAML takes 0123 for the number 83"),
    ("slurm", "queue: on", "error", 3, "queue", "YAML takes on for True"),
    ("slurm", "project: p", "warning", 3, "project", "account"),
    ("slurm", "account: a\nproject: p", "error", 4, "project", "is passed over"),
    ("pbs", "job-extra: [x]", "warning", 3, "job-extra", "job-extra-directives"),
    ("pbs", "env_extra: [x]", "warning", 3, "env_extra", "job-script-prologue"),
    ("lsf", "header-skip: [-n]", "warning", 3, "header-skip", "job-directives-skip"),
    ("oar", "extra: [--x]", "warning", 3, "extra", "worker-extra-args"),
    ("slurm", "worker-extra: []", "warning", 3, "worker-extra", "mean 'worker-extra-args'"),
    ("slurm", "distributed: {worker: 1}", "warning", 3, "distributed", "top level"),
    ("slurm", "silence_logs: error", "warning", 3, "silence_logs", "nothing reads it"),
    ("slurm", "n-workers: 4", "warning", 3, "n-workers", "-O jobs=N"),
    ("slurm", "nanny: false", "warning", 3, "nanny", "-O nanny="),
    ("slurm", "job-extra-directives: {-C casper}", "note", 3, "job-extra-directives", "-C casper"),
    ("slurm", "job-extra-directives: {--gres: 2}", "error", 3, "job-extra-directives", "--gres=2"),
    ("slurm", "job-script-prologue: ml x", "warning", 3, "job-script-prologue", "['ml x']"),
    ("slurm", "job-directives-skip: -t", "error", 3, "job-directives-skip", "into characters"),
    ("slurm", "worker-extra-args: 3", "error", 3, "worker-extra-args", "3 is not a list"),
    ("slurm", "scheduler-options: 3", "error", 3, "scheduler-options", "not a mapping"),
    (
        *("slurm", "walltime: 16:00:00\nworker-extra-args: [--lifetime, 85m]"),
        *("warning", 4, "worker-extra-args", "leave after 9 % of the job"),
    ),
    (
        *("pbs", "walltime: '01:00:00'\nworker-extra-args: [--lifetime=2h]"),
        *("error", 4, "worker-extra-args", "the job ends before"),
    ),
    ("slurm", "cores: 8\nprocesses: 3", "warning", 4, "processes", "2 idle"),
    ("slurm", "cores: 2\nprocesses: 3", "error", 4, "processes", "without a thread"),
    ("slurm", "cores: four", "error", 3, "cores", "no whole number"),
    ("slurm", "cores: '4'", "error", 3, "cores", "write 4"),
    ("slurm", "cores: 4\njob-cpu: 128", "warning", 4, "job-cpu", "124 idle"),
    ("lsf", "cores: 4\nncpus: 2", "warning", 4, "ncpus", "asks for 2 cores"),
    ("pbs", "cores: 10\nresource-spec: nodes=1:ppn=48", "warning", 4, "resource-spec", "38 idle"),
    ("pbs", "resource-spec: select=2:ncpus=4", "warning", 3, "resource-spec", "first node"),
    (
        *("slurm", "cores: 2\njob-extra-directives: [-n 4, --exclusive]"),
        *("note", 4, "job-extra-directives", "has all of a node, and uses 2 cores"),
    ),
    ("slurm", "job-extra-directives: [-N 4]", "warning", 3, "job-extra-directives", "first node"),
    ("pbs", "memory: 109GB\nresource-spec: mem=109GB", "note", 4, "resource-spec", "101.51 GiB"),
    ("pbs", "memory: 109GB\nresource-spec: mem=109GB", "note", 4, "resource-spec", "109.00 GiB"),
    ("pbs", "memory: 109GB\nresource-spec: mem=90GB", "error", 4, "resource-spec", "lower memory"),
    ("slurm", "memory: 8GB\njob-mem: 16000", "warning", 4, "job-mem", "15.62 GiB for slurm"),
    ("slurm", "memory: 36", "error", 3, "memory", "36 bytes; '36 GB'?"),
    ("slurm", "memory: much", "error", 3, "memory", "no amount of memory"),
    ("slurm", "memory: 8000000000", "note", 3, "memory", "7.45 GiB"),
    ("slurm", "memory: 1GB\nprocesses: 20", "warning", 3, "memory", "less than Python"),
    ("lsf", "mem: 4GB", "error", 3, "mem", "mem: 4000000000"),
    ("lsf", "memory: 4GB", "note", 3, "memory", "LSF_UNIT_FOR_LIMITS"),
    ("slurm", "python: srun -n 1 python", "note", 3, "python", "a command with arguments"),
    ("slurm", "python: /no/such/python", "note", 3, "python", "no /no/such/python"),
    ("slurm", "shared-temp-directory: /no/such", "error", 3, "shared-temp-directory", "make it"),
    ("slurm", "local-directory: /x/$USER", "note", 3, "local-directory", "shell of the job"),
    ("slurm", "log-directory: ${HOME}/x", "note", 3, "log-directory", "put in here"),
    ("slurm", "queue: $Q", "warning", 3, "queue", "no shell reads it"),
    ("slurm", "local-directory: ''", "note", 3, "local-directory", "taken as not set"),
    ("slurm", "death-timeout: 5", "warning", 3, "death-timeout", "within 5 s"),
    ("slurm", "death-timeout: soon", "error", 3, "death-timeout", "no time"),
    ("slurm", "interface: ib7", "note", 3, "interface", "it has lo"),
    ("slurm", "queue: x", "error", 3, "memory", "every job needs it"),
]


@pytest.mark.parametrize(("system", "lines", "level", "line", "key", "words"), IN_SECTIONS)
def test_a_trap_in_a_section_is_told_with_its_line(read, system, lines, level, line, key, words):
    entries = read(f"jobqueue:\n  {system}:\n{textwrap.indent(lines, '    ')}\n")
    found = traps_in(section(entries, system, interfaces={"lo": ["127.0.0.1"]}))
    assert_told(found, level, line, key, words)


def test_a_section_without_traps_has_no_finding(read):
    entries = read("""
        jobqueue:
          slurm:
            cores: 24
            memory: 96 GB
            processes: 6
            walltime: '1-12:00:00'
            queue: main
            account: abc
            local_directory: /scratch
            job_extra_directives: ['-C haswell', '--mail-type=none']
            job-script-prologue: [module load python]
            worker-extra-args: [--lifetime, 35h, --lifetime-stagger, 5m]
    """)
    assert traps_in(section(entries)) == []


def test_what_a_section_of_its_own_leaves_out_is_said(read):
    entries = read("jobqueue:\n  casper:\n    cores: 2\n    memory: 2GB\n")
    (finding,) = traps_in(section(entries, name="casper"))
    assert (finding.level, finding.key) == ("note", "jobqueue.casper")
    assert finding.found.endswith("keys that it leaves out are those of jobqueue.slurm")


AT_LARGE = [
    # lines of a file, level, line, key, words
    ("a:\n  b: 1\n  c: 2\n  b: 3", "error", 4, "a.b", "is set in"),
    ("a:\n  b-c: 1\n  b_c: 3", "error", 3, "a.b_c", "same key as b-c"),
    ("jobqeue: {slurm: {cores: 1}}", "warning", 1, "jobqeue", "'jobqueue'"),
    ("slurm: {cores: 1}", "warning", 1, "slurm", "below jobqueue:"),
    ("scheduler:\n  work-stealing: true", "warning", 1, "scheduler", "below distributed:"),
    ("admin:\n  tick: {interval: 20ms}", "warning", 1, "admin", "below distributed:"),
    ("logging: {distributed: info}", "note", 1, "logging", "below distributed:"),
    ("connect-timeout: 3s", "warning", 1, "connect-timeout", "distributed.comm.timeouts.connect"),
    (
        *("distributed:\n  worker:\n    memory:\n      targt: 0.5", "warning", 4),
        *("distributed.worker.memory.targt", "did you mean 'target'"),
    ),
    (
        *("distributed:\n  worker:\n    memory: {target: 0.9, pause: 0.8}", "warning", 3),
        *("distributed.worker.memory.spill", "spill 0.7 is below target 0.9"),
    ),
    (
        *("distributed:\n  worker:\n    memory:\n      pause: 80%", "error", 4),
        *("distributed.worker.memory.pause", "'80%' is no fraction"),
    ),
    (
        *("distributed:\n  worker:\n    memory:\n      spill: 0", "note", 4),
        *("distributed.worker.memory.spill", "as false does"),
    ),
    (
        *("distributed:\n  scheduler:\n    allowed-failures: three", "warning", 3),
        *("distributed.scheduler.allowed-failures", "a text; a integer"),
    ),
    (
        *("distributed:\n  scheduler:\n    worker-ttl: 5:00", "warning", 3),
        *("distributed.scheduler.worker-ttl", "5:00 for the number 300"),
    ),
]


@pytest.mark.parametrize(("lines", "level", "line", "key", "words"), AT_LARGE)
def test_a_mistake_at_large_is_told_with_its_line(read, lines, level, line, key, words):
    entries = read(lines)
    found = [*oddities_in(entries), *mistakes_in(Configuration(entries))]
    assert_told(found, level, line, key, words)


def test_dask_s_own_defaults_and_usual_settings_have_no_finding(read):
    entries = read("""
        distributed:
          dashboard:
            link: "http://{host}/proxy/{port}/status"
          scheduler: {bandwidth: 1 GB, allowed-failures: 10}
          worker:
            memory: {target: false, spill: false, pause: false, terminate: false}
          comm: {compression: null, timeouts: {connect: 60, tcp: 60s}}
          logging: {distributed.worker: debug}
        labextension: {factory: {class: LocalCluster}}
        temporary-directory: /tmp
        array: {chunk-size: 128MiB}
        dataframe: {convert-string: true}
        mpi: {n-workers: 3}
    """)
    assert [*oddities_in(entries), *mistakes_in(Configuration(entries))] == []


def test_merge_keys_and_several_documents_are_no_repetition(read):
    entries = read("""
        base: &base {cores: 1, memory: 1GB}
        more: {<<: *base, cores: 2}
        ---
        more: {cores: 3}
    """)
    assert [f.level for f in oddities_in(entries)] == []
    assert Configuration(entries).last("more.memory").value == "1GB"
    assert Configuration(entries).last("more.cores").value == 3


def test_a_later_file_and_a_variable_hide_what_was_there(read):
    first = read("jobqueue:\n  slurm:\n    cores: 1\n", "1.yaml")
    second = read("jobqueue:\n  slurm:\n    cores: 2\n", "2.yaml")
    third = entries_in({"DASK_JOBQUEUE__SLURM__CORES": "3"})
    entries = [*first, *second, *third]
    found = list(oddities_in(entries))
    assert [f.found.partition(" of ")[0] for f in found] == ["2 hides 1", "3 hides 2"]
    assert found[0].place.endswith("2.yaml:3")
    assert found[0].found.endswith("1.yaml:3")
    assert found[1].place == "environment variable DASK_JOBQUEUE__SLURM__CORES"
    assert Configuration(entries).last("jobqueue.slurm.cores").value == 3


def test_of_two_spellings_in_its_own_files_dask_takes_the_first(read):
    entries = as_dask_takes(read("jobqueue:\n  slurm:\n    job_name: a\n    job-name: b\n"))
    assert Configuration(entries).last("jobqueue.slurm.job-name").value == "a"


def test_a_variable_that_sets_nothing_is_told():
    variables = {"DASK_JOBQUEUE_SLURM_JOB_CPU": "3", "DASK_TEMPORARY_DIRECTORY": "/tmp"}
    (finding,) = mistakes_in(Configuration(entries_in(variables)))
    assert finding.level == "warning"
    assert finding.key == "DASK_JOBQUEUE_SLURM_JOB_CPU"
    assert finding.remedy.endswith("DASK_JOBQUEUE__SLURM__JOB_CPU")


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a:\n\tb: 1\n", 2, "cannot start any token"),
        ("a: {b: 1\nc: 2\n", 2, "flow mapping"),
        ("a: 1\nb: [x\n", 3, "flow sequence"),
        ("a: 1\nb: 2024-13-45\n", 2, "month"),
        ("a: 1\nb: !!python/object:os.system {}\n", 2, "could not determine a constructor"),
        ("a: &a {b: *a}\n", 1, "nested too deeply"),
    ],
)
def test_what_is_no_yaml_is_told_with_its_line(read, text, line, words):
    with pytest.raises(ValueError, match=words) as caught:
        read(text)
    assert f"dask.yaml:{line}: " in str(caught.value)


def test_no_configuration_makes_it_fail(read):
    chance = random.Random(2009)
    seen = set()
    for _ in range(500):
        text = some_config(chance)
        try:
            entries = read(text)
        except ValueError as error:
            seen.add(re.sub(r".*dask\.yaml:\d+: ", "no YAML: ", str(error)))
            continue
        configuration = Configuration(entries)
        found = [*oddities_in(entries), *mistakes_in(configuration)]
        for system in defaults():
            keys = configuration.below(f"jobqueue.{system}") or configuration.below("here.cluster")
            found += traps_in(section(entries, system, keys=keys)) if keys else []
        assert all(f.level in LEVELS and f.found for f in found), text
        seen |= {f.found for f in found}
    assert len(seen) > 100
    assert [words for words in seen if "dask.yaml: " in words] == []
