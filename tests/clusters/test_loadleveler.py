"""The LoadLeveler dialect: what it writes, what it reads, and that real jobs come and go."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import dask.config
import psutil
import pytest
from dask.distributed import Client

from daskspace.clusters import LoadLevelerCluster, LoadLevelerJob
from daskspace.clusters.jobqueue import dask_jobqueue
from daskspace.clusters.loadleveler import directives, job_key, megabytes, wall_clock_limit

try:
    from tests.loadleveler.llsim import jcf
except ImportError:
    jcf = None

LLSUBMIT = """
import fcntl, json, os, subprocess, sys, time
from pathlib import Path

state = Path(STATE)
with open(state / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with open(state / "llsubmit.calls", "a") as calls:
        calls.write(json.dumps({"argv": sys.argv[1:], "LC_ALL": os.environ.get("LC_ALL")}) + "\\n")
    failures = int((state / "failures").read_text())
    (state / "failures").write_text(str(max(0, failures - 1)))
    number = int((state / "number").read_text()) + 1
    (state / "number").write_text(str(number))
sys.stderr.buffer.write(b'llsubmit: Processed through Submit Filter: "/opt/\\xff/filter".\\n')
if failures:
    sys.exit("llsubmit: 2512-051 This job has not been submitted to LoadLeveler.")
mode = (state / "mode").read_text()
if mode == "hang":
    time.sleep(60)
script = sys.stdin.read() if sys.argv[-1] == "-" else Path(sys.argv[-1]).read_text()
(state / f"{number}.sh").write_text(script)
if mode == "quiet":
    sys.exit()
with open(state / f"{number}.log", "w") as log:
    job = subprocess.Popen(
        ["bash", str(state / f"{number}.sh")],
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
    )
(state / f"{number}.pid").write_text(str(job.pid))
print(f'llsubmit: The job "ll1.cluster-7.example.org.{number}" has been submitted.')
"""

LLCANCEL = """
import os, signal, sys
from pathlib import Path

state = Path(STATE)
with open(state / "llcancel.calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
if (state / "mode").read_text() == "no cancel":
    sys.exit("llcancel: no such job")
try:
    os.killpg(int((state / f"{sys.argv[-1].split('.')[-1]}.pid").read_text()), signal.SIGTERM)
except ProcessLookupError:
    pass
"""


class FakeLoadLeveler:
    """`llsubmit` and `llcancel` that run jobs in the background, and tell how they were called."""

    def __init__(self, tmp_path):
        self.state = tmp_path / "ll"
        self.bin = tmp_path / "bin"
        self.state.mkdir()
        self.bin.mkdir()
        self.set(failures=0, mode="", number=100)
        for name, program in {"llsubmit": LLSUBMIT, "llcancel": LLCANCEL}.items():
            code = program.replace("STATE", repr(str(self.state)))
            (self.bin / name).write_text(f"#!{sys.executable} -IS\n{code}")
            (self.bin / name).chmod(0o755)

    def set(self, **values):
        for name, value in values.items():
            (self.state / name).write_text(str(value))

    def _lines(self, name):
        path = self.state / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def submissions(self):
        return [json.loads(line) for line in self._lines("llsubmit.calls")]

    @property
    def cancelled(self):
        return [line.split()[-1] for line in self._lines("llcancel.calls")]

    @property
    def cancel_calls(self):
        return self._lines("llcancel.calls")

    def script(self, job_id):
        return (self.state / f"{job_id.split('.')[-1]}.sh").read_text()

    def running(self):
        groups = {int(path.read_text()) for path in self.state.glob("*.pid")}
        return [
            process
            for process in psutil.process_iter()
            if process.is_running() and _group_of(process.pid) in groups
        ]


def _group_of(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def wait_until(condition, limit_s=60):
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.fixture
def ll(tmp_path, monkeypatch):
    fake = FakeLoadLeveler(tmp_path)
    monkeypatch.setenv("PATH", f"{fake.bin}{os.pathsep}{os.environ['PATH']}")
    yield fake
    for process in fake.running():
        process.send_signal(signal.SIGKILL)


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))


MINIMAL = {"cores": 4, "memory": "8GB"}


def job(**options):
    return LoadLevelerJob("tcp://127.0.0.1:1", **{"name": "w", **MINIMAL, **options})


def idle_job(**options):
    """Return a job that ends at once."""
    return job(python="/bin/true", submit_retry_delay="10ms", **options)


def header(**options):
    return job(**options).job_header.splitlines()


def directive(key, **options):
    found = [line for line in header(**options) if line.startswith(f"# @ {key} = ")]
    assert len(found) <= 1
    return found[0].partition(" = ")[2] if found else None


def cluster_of(ll, **options):
    return LoadLevelerCluster(
        **{
            "cores": 1,
            "memory": "500MB",
            "interface": "lo",
            "scheduler_options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
            "worker_extra_args": ["--no-dashboard"],
            "submit_retry_delay": "10ms",
            "local_directory": str(ll.state),
            **options,
        }
    )


# What it writes


def test_the_least_that_is_said_gives_a_complete_header():
    assert header() == [
        "# @ job_name = dask-worker",
        "# @ job_type = serial",
        "# @ resources = ConsumableCpus(4) ConsumableMemory(7630mb)",
        "# @ wall_clock_limit = 00:30:00",
        "# @ environment = COPY_ALL",
        "# @ notification = never",
        "# @ restart = no",
        "# @ queue",
    ]


def test_a_job_script_begins_with_the_shebang_and_ends_with_the_worker():
    lines = job().job_script().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines.index("# @ queue") < lines.index("unset LC_ALL")
    assert "-m distributed.cli.dask_worker tcp://127.0.0.1:1 --name w" in lines[-1]


EVERYTHING = {
    "queue": ("class", "general", "general"),
    "account": ("account_no", "h0351", "h0351"),
    "group": ("group", "staff", "staff"),
    "walltime": ("wall_clock_limit", "02:00:00, 01:50:00", "02:00:00,01:50:00"),
    "job_cpu": ("resources", 2, "ConsumableCpus(2) ConsumableMemory(7630mb)"),
    "job_mem": ("resources", "3250mb", "ConsumableCpus(4) ConsumableMemory(3250mb)"),
    "resources": ("resources", "Licences(1)", "Licences(1)"),
    "job_type": ("job_type", "bluegene", "bluegene"),
    "node": ("node", "1,2", "1,2"),
    "tasks_per_node": ("tasks_per_node", 3, "3"),
    "node_usage": ("node_usage", "not_shared", "not_shared"),
    "requirements": ("requirements", '(Feature == "mic")', '(Feature == "mic")'),
    "preferences": ("preferences", "(Memory > 4096)", "(Memory > 4096)"),
    "environment": ("environment", ["COPY_ALL", "A=1"], "COPY_ALL; A=1"),
    "initialdir": ("initialdir", "/work/x", "/work/x"),
    "notification": ("notification", "error", "error"),
    "notify_user": ("notify_user", "$(user)@example.org", "$(user)@example.org"),
    "restart": ("restart", True, "yes"),
    "shell": ("shell", "/bin/ksh", "/bin/ksh"),
    "comment": ("comment", "a sweep", '"a sweep"'),
    "job_name": ("job_name", "my job/1+2-a_b.c", "my_job_1_2-a_b.c"),
}


@pytest.mark.parametrize("option", EVERYTHING)
def test_an_option_becomes_its_directive(option):
    key, value, expected = EVERYTHING[option]
    assert directive(key, **{option: value}) == expected


@pytest.mark.parametrize("option", sorted(EVERYTHING.keys() - {"job_name", "job_cpu"}))
def test_the_configuration_says_the_same(option):
    key, value, expected = EVERYTHING[option]
    with dask.config.set({f"jobqueue.loadleveler.{option.replace('_', '-')}": value}):
        assert directive(key) == expected


@pytest.mark.skipif(jcf is None, reason="the stand-in for LoadLeveler is not here")
@pytest.mark.parametrize("skip", [{"resources"}, {"job_cpu", "job_mem"}], ids=["computed", "said"])
def test_what_is_asked_for_is_what_loadleveler_reads(skip, tmp_path):
    options = {option: value for option, (_, value, _) in EVERYTHING.items() if option not in skip}
    expected = {key: text for option, (key, _, text) in EVERYTHING.items() if option in options}
    if "job_cpu" in options:
        expected["resources"] = "ConsumableCpus(2) ConsumableMemory(3250mb)"
    log = tmp_path / "my logs" / expected["job_name"]
    expected |= {end: f"{log}.$(jobid).$(stepid).{end[:3]}" for end in ("output", "error")}
    expected["network.mpi"] = "sn_all,,us"
    one = job(
        log_directory=tmp_path / "my logs",
        job_extra_directives=["#@ network.MPI = sn_all,,us"],
        job_script_prologue=["## @ class = no", "echo '# @ queue'"],
        **options,
    )
    steps, script = jcf.parse(one.job_script())
    assert steps == [expected]
    assert script.splitlines()[-3:-1] == ["## @ class = no", "echo '# @ queue'"]


@pytest.mark.parametrize("option", ["resources", "environment", "notification", "walltime"])
def test_an_empty_string_leaves_a_directive_out(option):
    assert directive(EVERYTHING[option][0], **{option: ""}) is None


@pytest.mark.parametrize("job_type", ["parallel", "MPICH"])
def test_a_parallel_job_is_one_task_on_one_node(job_type):
    lines = header(job_type=job_type)
    assert {"# @ node = 1", "# @ tasks_per_node = 1"} < set(lines)
    assert directive("node", job_type=job_type, node=2) == "2"
    assert directive("tasks_per_node", job_type=job_type, tasks_per_node=4) == "4"


@pytest.mark.parametrize(
    ("memory", "expected"), [(1, 1), ("1MiB", 1), ("1.5GiB", 1536), ("10GB", 9537)]
)
def test_memory_is_rounded_up_to_binary_megabytes(memory, expected):
    assert f"ConsumableMemory({expected}mb)" in directive("resources", memory=memory)
    assert megabytes(dask.utils.parse_bytes(memory)) == expected


@pytest.mark.parametrize(
    ("restart", "expected"), [(False, "no"), ("no", "no"), ("False", "no"), ("yes", "yes")]
)
def test_restart_is_no_however_a_configuration_says_it(restart, expected):
    assert directive("restart", restart=restart) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (90, "90"),
        ("90", "90"),
        ("1:30", "1:30"),
        ("25:00:00", "25:00:00"),
        ("00:30:00.5", "00:30:00.5"),
        ("660,600", "660,600"),
        ("600,600", "600,600"),
        ("00:25:00, 00:20:00", "00:25:00,00:20:00"),
        ("unlimited", "unlimited"),
        ("rlim_infinity,01:00:00", "rlim_infinity,01:00:00"),
    ],
)
def test_a_wall_clock_limit_is_taken_as_loadleveler_takes_it(value, expected):
    assert wall_clock_limit(value) == expected


@pytest.mark.parametrize(
    "value", ["abc", "1h", "", "1:2:3:4", "-5", "1,2,3", "600,660", True, "90\n# @ x"]
)
def test_any_other_wall_clock_limit_is_refused(value):
    with pytest.raises(ValueError, match="walltime"):
        wall_clock_limit(value)


def test_directives_can_be_skipped_but_not_the_last():
    assert directive("resources", job_directives_skip=["resources"]) is None
    lines = header(job_directives_skip=["queue", "@ class"], queue="general")
    assert lines[-1] == "# @ queue"
    assert not any("class" in line for line in lines)
    extra = ["resources = Licences(1)"]
    assert (
        directive("resources", job_directives_skip=["resources"], job_extra_directives=extra)
        == "Licences(1)"
    )


@pytest.mark.parametrize(
    "extra",
    [
        ["network.MPI = sn_all,not_shared,us", "#@ group = g", "  #  @ island_count = 1 ", "#@"],
        {"network.MPI": "sn_all,not_shared,us", "group": "g", "island_count": 1},
    ],
    ids=["list", "dict"],
)
def test_further_directives_get_one_prefix_and_come_before_the_last(extra):
    assert header(job_extra_directives=extra)[-4:] == [
        "# @ network.MPI = sn_all,not_shared,us",
        "# @ group = g",
        "# @ island_count = 1",
        "# @ queue",
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"job_extra_directives": ["queue"]},
        {"job_extra_directives": ["# @ Queue"]},
        {"job_extra_directives": ["#@ # @ queue"]},
        {"job_extra_directives": ["a = b\n# @ queue"]},
        {"job_extra_directives": ["a = b\\"]},
        {"queue": "general\n# @ executable = /bin/sh"},
        {"environment": ["COPY_ALL", "A=1\nB=2"]},
        {"notify_user": "me\r"},
        {"log_directory": "logs\n# @ x"},
        {"initialdir": "a\\"},
        {"log_directory": "$NO_SUCH_VARIABLE/logs"},
        {"log_directory": "$(home)/logs"},
        {"job_mem": 0},
        {"comment": 'a" b'},
        {"restart": "perhaps"},
        {"job_cpu": 0},
        {"job_cpu": 1.5},
        {"job_mem": "0mb"},
        {"job_mem": "3 GiB"},
        {"job_mem": "1mb) Other(1"},
        {"shebang": "#!/bin/sh\n# @ queue"},
        {"shebang": "# @ queue"},
        {"job_script_prologue": ["#@ x"]},
        {"job_script_prologue": ["echo\n  # @ class = other"]},
        {"worker_extra_args": ["--name\n# @ queue"]},
        {"submit_command_extra": ["-q"]},
        {"lifetime_margin": "1h"},
    ],
    ids=repr,
)
def test_what_would_change_the_job_command_file_is_refused(options):
    with pytest.raises(ValueError):
        job(**options)
    assert os.listdir() == []


@pytest.mark.parametrize("line", ["## @ x", "##@ x", "# notification = never", "echo '# @ x'"])
def test_comments_that_are_no_directives_stay_in_the_prologue(line):
    assert line in job(job_script_prologue=[line]).job_script().splitlines()


def test_the_original_backend_s_jobs_are_asked_for_in_the_same_words():
    expression = '( Machine == "anode01" )'
    lines = header(
        queue="general",
        cores=1,
        job_mem="3250mb",
        requirements=expression,
        log_directory="logs",
    )
    said = dict(line.removeprefix("# @ ").split(" = ", 1) for line in lines[:-1])
    assert said["job_type"] == "serial"
    assert said["notification"] == "never"
    assert said["class"] == "general"
    assert said["requirements"] == expression
    assert set(said["resources"].lower().split()) == {
        "consumablememory(3250mb)",
        "consumablecpus(1)",
    }
    assert said["output"].endswith(".$(jobid).$(stepid).out")
    assert said["error"].endswith(".$(jobid).$(stepid).err")
    ours = {"job_name", "wall_clock_limit", "environment", "restart"}
    theirs = {"job_type", "notification", "class", "requirements", "resources", "output", "error"}
    assert said.keys() == ours | theirs


def test_the_log_directory_is_made_and_named_absolutely(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "my home"))
    monkeypatch.setenv("USER", "me")
    lines = header(log_directory="~/x/$USER", job_name="a b")
    path = tmp_path / "my home" / "x" / "me"
    assert path.is_dir()
    assert f"# @ output = {path}/a_b.$(jobid).$(stepid).out" in lines
    assert f"# @ error = {path}/a_b.$(jobid).$(stepid).err" in lines
    assert not (tmp_path / "~").exists()


def test_a_directory_that_only_loadleveler_knows_is_left_to_it():
    assert directive("initialdir", initialdir="$(home)/x") == "$(home)/x"
    assert directive("initialdir", initialdir="x") == os.path.abspath("x")


def test_a_worker_ends_before_its_job_when_a_margin_is_given():
    assert "--lifetime" not in job().job_script()
    script = job(walltime="01:00:00,00:50:00", lifetime_margin="90s").job_script()
    assert "--lifetime 2910s --lifetime-stagger 45s" in script
    own = job(lifetime_margin="90s", worker_extra_args=["--lifetime", "5m"]).job_script()
    assert own.count("--lifetime") == 1
    assert "--lifetime" not in job(walltime="unlimited", lifetime_margin="90s").job_script()


def test_a_job_keeps_the_locale_of_its_user(monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    prologue = ["module load python"]
    lines = job(job_script_prologue=prologue).job_script().splitlines()
    assert lines.index("export LC_ALL=de_DE.UTF-8") < lines.index("module load python")
    assert prologue == ["module load python"]
    assert "LC_ALL" not in job(environment="HOME=/x").job_script()
    assert job(environment="COPY_ALL; LC_ALL=C.UTF-8").job_script().count("LC_ALL") == 1


# What it is told by its configuration


def test_the_section_has_every_key_that_dask_jobqueue_reads():
    ours = dask.config.get("jobqueue.loadleveler")
    theirs = [dask.config.get(f"jobqueue.{name}") for name in ("slurm", "lsf", "pbs", "sge", "oar")]
    assert set.intersection(*map(set, theirs)) <= ours.keys()
    assert ours["job-script-epilogue"] == []


def test_a_section_may_say_only_what_differs():
    with dask.config.set({"jobqueue.loadl-test": {"queue": "debug", "job_cpu": 3}}):
        lines = header(config_name="loadl-test")
    assert "# @ class = debug" in lines
    assert "# @ wall_clock_limit = 00:30:00" in lines
    assert "# @ resources = ConsumableCpus(3) ConsumableMemory(7630mb)" in lines


def test_a_section_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"no section jobqueue\.loadlevler.*'loadleveler'"):
        job(config_name="loadlevler")


def test_cores_and_memory_have_to_be_said():
    with pytest.raises(ValueError, match=r"LoadLevelerCluster\(cores=8"):
        LoadLevelerCluster()


def test_the_environment_overrides_the_defaults():
    program = (
        "from daskspace.clusters import LoadLevelerJob\n"
        "print(LoadLevelerJob('tcp://x:1', name='w', cores=1, memory='1GB').job_header)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={
            **os.environ,
            "DASK_JOBQUEUE__LOADLEVELER__QUEUE": "debug",
            "DASK_JOBQUEUE__LOADLEVELER__RESTART": "no",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    assert "# @ class = debug" in ran.stdout
    assert "# @ restart = no" in ran.stdout


# What it reads

TRANSCRIPTS = {
    "srv24ib.840220": 'llsubmit: The job "srv24ib.840220" has been submitted.',
    "srv03-ib.443336": 'llsubmit: The job "srv03-ib.443336" has been submitted.',
    "juqueen1c1.zam.kfa-juelich.de.281506": (
        'llsubmit: The job "juqueen1c1.zam.kfa-juelich.de.281506" has been submitted.'
    ),
    "mesocentre.2172": 'llsubmit: The job "mesocentre.2172" has been submitted.',
    "meso-d.16247": 'llsubmit: The job "meso-d.16247" has been submitted.',
    "host.102": 'llsubmit: The job "host.102" has been submitted.',
    "htcf02c01p02.134491": (
        "KBGT60003-I Budget function authenticated bu0701.\n"
        'llsubmit: The job "htcf02c01p02.134491" has been submitted.'
    ),
    "xcat.2021566": (
        "INFO: Project: pr83te\nINFO: used 259009 (19%) of 1363000 core hours\n"
        'llsubmit: Processed command file through Submit Filter: "/lrz/loadl/filter.pl".\n'
        'llsubmit: The job "xcat.2021566" has been submitted.'
    ),
    "mgmt.12309": (
        'llsubmit: The job "mgmt.12309" has been submitted.\n'
        'llsubmit: Stdin job command file written to "/tmp/loadlx_stdin.27558.CdoVxX".\n'
        'llsubmit: Processed command file through Submit Filter: "/usr/local/filter".'
    ),
    "fe1.bgl.bu.edu.61332": (
        "llsubmit: Processed command file through Submit Filter: "
        '"/usr/local/etc/loadl/submit_filter".\n'
        'llsubmit: The job "fe1.bgl.bu.edu.61332" has been submitted.\n'
    ),
    "c1a0303.4290133": ('llsubmit: The job "c1a0303.4290133" with 3 job steps has been submitted.'),
}


@pytest.mark.parametrize("job_id", TRANSCRIPTS)
def test_the_id_is_found_in_what_sites_print(job_id):
    assert job()._job_id_from_submit_output(TRANSCRIPTS[job_id]) == job_id


def test_the_default_pattern_of_dask_jobqueue_would_cancel_another_job():
    text = TRANSCRIPTS["juqueen1c1.zam.kfa-juelich.de.281506"]
    assert re.search(dask_jobqueue.core.Job.job_id_regexp, text)["job_id"] == "1"
    assert job()._job_id_from_submit_output(text) != "1"


@pytest.mark.parametrize(
    "text", ["", "llsubmit: 2512-051 This job has not been submitted to LoadLeveler."]
)
def test_what_holds_no_id_is_shown(text):
    with pytest.raises(ValueError, match=re.escape(f"output is:\n{text}")):
        job()._job_id_from_submit_output(text)


@pytest.mark.parametrize(
    ("job_id", "key"),
    [
        ("juqueen1c1.zam.kfa-juelich.de.281506", ("juqueen1c1", 281506)),
        ("juqueen1c1.281506.0", ("juqueen1c1", 281506)),
        ("fe1.bgl.bu.edu.61332.12", ("fe1", 61332)),
        ("meso-d.16247", ("meso-d", 16247)),
        ("450383", ("", 450383)),
    ],
)
def test_long_and_short_forms_of_an_id_are_the_same_job(job_id, key):
    assert job_key(job_id) == key


# How it submits and cancels


def test_chatter_on_standard_error_is_no_failure(ll):
    one = idle_job()
    asyncio.run(one.start())
    assert one.job_id == "ll1.cluster-7.example.org.101"
    assert len(ll.submissions) == 1
    assert ll.submissions[0]["LC_ALL"] == "C"
    assert ll.script(one.job_id) == one.job_script()


def test_a_submission_that_fails_is_tried_again(ll):
    ll.set(failures=3)
    one = idle_job()
    asyncio.run(one.start())
    assert one.status.name == "running"
    assert len(ll.submissions) == 4


def test_one_that_keeps_failing_says_why(ll):
    ll.set(failures=99)
    one = idle_job()
    with pytest.raises(RuntimeError, match=r"2512-051") as caught:
        asyncio.run(one.start())
    assert "Submit Filter" in str(caught.value)
    assert one.status.name == "failed"
    assert len(ll.submissions) == 4


def test_one_that_tells_no_id_is_not_repeated(ll):
    ll.set(mode="quiet")
    one = idle_job()
    with pytest.raises(ValueError, match="Submit Filter"):
        asyncio.run(one.start())
    assert one.status.name == "failed"
    assert len(ll.submissions) == 1


def test_one_that_hangs_is_killed_and_not_repeated(ll, monkeypatch):
    monkeypatch.setattr(LoadLevelerJob, "command_timeout_s", 0.5)
    ll.set(mode="hang")
    one = idle_job()
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"llsubmit .*no answer within 0\.5 s"):
        asyncio.run(one.start())
    assert time.monotonic() - started < 20
    assert one.status.name == "failed"
    assert len(ll.submissions) <= 1
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not any(str(ll.bin / "llsubmit") in command for command in commands)


def test_jobs_can_be_submitted_by_standard_input_and_to_another_cluster(ll):
    extra = ["-X", "big cluster"]
    one = idle_job(use_stdin=True, submit_command_extra=extra, cancel_command_extra="-X far")
    asyncio.run(one.start())
    asyncio.run(one.close())
    assert ll.submissions[0]["argv"] == ["-X", "big cluster", "-"]
    assert ll.script(one.job_id) == one.job_script()
    assert ll.cancel_calls == [f"-X far {one.job_id}"]


def test_a_job_is_cancelled_once(ll):
    one = idle_job()

    async def start_and_close():
        await one
        await asyncio.gather(one.close(), one.close())
        await one.close()

    asyncio.run(start_and_close())
    assert ll.cancelled == [one.job_id]
    assert one.status.name == "closed"


def test_a_job_that_was_never_submitted_is_not_cancelled(ll):
    asyncio.run(idle_job().close())
    assert ll.cancelled == []


@pytest.mark.parametrize("trouble", ["none", "refused", "no such command", "hangs"])
def test_a_cluster_closes_whatever_becomes_of_the_cancelling(ll, trouble, monkeypatch):
    with cluster_of(ll, python="/bin/true") as cluster:
        cluster.scale(3)
        wait_until(lambda: [job.job_id for job in cluster.workers.values()].count(None) == 0)
        wait_until(lambda: len(cluster.workers) == 3)
        jobs = list(cluster.workers.values())
        if trouble == "refused":
            ll.set(mode="no cancel")
        elif trouble == "no such command":
            (ll.bin / "llcancel").unlink()
        elif trouble == "hangs":
            monkeypatch.setattr(LoadLevelerJob, "command_timeout_s", 0.5)
            (ll.bin / "llcancel").write_text("#!/bin/sh\nsleep 60\n")
        cluster.close()
    assert {job.status.name for job in jobs} == {"closed"}
    if trouble in ("none", "refused"):
        assert Counter(ll.cancelled) == Counter(job.job_id for job in jobs)


def test_jobs_submitted_at_the_same_time_have_their_own_ids(ll):
    with cluster_of(ll, python="/bin/true") as cluster:
        cluster.scale(8)
        wait_until(lambda: len(cluster.workers) == 8)
        ids = {job.job_id for job in cluster.workers.values()}
    assert len(ids) == 8
    assert Counter(ll.cancelled) == Counter(ids)


def test_a_job_class_can_be_extended_to_hear_of_every_job(ll):
    begun, ended = [], []

    class Hearing:
        async def start(self):
            await super().start()
            begun.append(self.job_id)

        async def close(self):
            await super().close()
            ended.append(self.job_id)

    hearing = type("HearingJob", (Hearing, LoadLevelerJob), {})
    with cluster_of(ll, job_cls=hearing, python="/bin/true") as cluster:
        cluster.scale(2)
        wait_until(lambda: len(cluster.workers) == 2)
    assert len(begun) == 2
    assert sorted(begun) == sorted(ended) == sorted(ll.cancelled)


# Real workers


@pytest.mark.parametrize(("options", "n_processes"), [({"processes": 2}, 2), ({"cores": 4}, 4)])
def test_one_job_holds_all_its_processes(ll, options, n_processes):
    with cluster_of(ll, **{"cores": 2, "python": "/bin/true", **options}) as cluster:
        script = cluster.job_script()
        cluster.scale(n_processes)
        wait_until(lambda: len(cluster.workers) == 1)
        (name,) = cluster.workers
        assert cluster.plan == {f"{name}-{i}" for i in range(n_processes)}
    assert f"--nworkers {n_processes}" in script
    assert f"ConsumableCpus({options.get('cores', 2)})" in script
    assert len(ll.submissions) == 1


def test_workers_compute_and_go_with_the_work(ll):
    def slowly(x):
        time.sleep(0.1)
        return x * x

    logs = ll.state / "logs"
    with cluster_of(ll, log_directory=str(logs)) as cluster, Client(cluster) as client:
        cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        assert client.gather(client.map(slowly, range(20))) == [x * x for x in range(20)]
        first = [job.job_id for job in cluster.workers.values()]
        cluster.adapt(minimum=0, maximum=2, interval="100ms", wait_count=2)
        wait_until(lambda: not cluster.workers)
        assert Counter(ll.cancelled) == Counter(first)
        assert client.submit(slowly, 7).result(timeout=60) == 49
    wait_until(lambda: not ll.running())
    assert len(ll.cancelled) == len(set(ll.cancelled)) == len(ll.submissions)
    assert logs.is_dir()


def test_a_job_that_cannot_be_submitted_is_reported_and_tried_again_on_request(ll):
    with cluster_of(ll, submit_retries=1) as cluster, Client(cluster) as client:
        ll.set(failures=99)
        cluster.scale(1)
        with pytest.raises(RuntimeError, match=r"0 of 1 workers are to come: (.|\n)*2512-051"):
            client.wait_for_workers(1, timeout=60)
        assert len(ll.submissions) == 2
        assert isinstance(cluster.submit_error, RuntimeError)
        assert not cluster.workers
        assert not cluster.worker_spec
        ll.set(failures=0)
        cluster.scale(1)
        client.wait_for_workers(1, timeout=60)
    wait_until(lambda: not ll.running())


def test_jobs_that_could_be_submitted_stay_when_another_could_not(ll):
    with cluster_of(ll, python="/bin/true", submit_retries=0) as cluster:
        ll.set(failures=1)
        cluster.scale(3)
        wait_until(lambda: cluster.submit_error is not None)
        assert len(cluster.workers) == len(cluster.plan) == 2
        cluster.scale(3)
        wait_until(lambda: len(cluster.workers) == 3)
        ids = {job.job_id for job in cluster.workers.values()}
    assert Counter(ll.cancelled) == Counter(ids)
    assert len(ll.submissions) == 4


def test_an_adaptive_cluster_asks_again_by_itself(ll):
    with cluster_of(ll, python="/bin/true", submit_retries=0) as cluster:
        ll.set(failures=2)
        cluster.adapt(minimum=1, maximum=1, interval="100ms")
        wait_until(lambda: [job.status.name for job in cluster.workers.values()] == ["running"])
    assert len(ll.submissions) == 3
    assert len(ll.cancelled) == 1


def test_workers_that_cannot_be_had_at_once_are_reported_before_the_cluster_is_used(ll):
    ll.set(failures=99)

    async def start():
        async with cluster_of(ll, n_workers=1, submit_retries=0, asynchronous=True) as cluster:
            await cluster.wait_for_workers(1, timeout=60)

    with pytest.raises(RuntimeError, match="2512-051"):
        asyncio.run(start())


def test_encryption_interface_and_protocol_reach_the_workers(ll, tmp_path):
    with (
        cluster_of(ll, security=True, shared_temp_directory=str(tmp_path)) as cluster,
        Client(cluster) as client,
    ):
        script = cluster.job_script()
        assert "--interface lo --protocol tls://" in script
        assert {"--tls-ca-file", "--tls-key", "--tls-cert"} < set(script.split())
        assert "PRIVATE KEY" not in script
        cluster.scale(1)
        client.wait_for_workers(1, timeout=60)
        assert client.submit(sum, [1, 2]).result(timeout=60) == 3
        assert len(list(tmp_path.glob(".dask-jobqueue.worker.*"))) == 3
    assert not list(tmp_path.glob(".dask-jobqueue.worker.*"))
    wait_until(lambda: not ll.running())


def test_directives_are_lines_of_text():
    assert directives({"class": "a", "group": None, "shell": ""}, extra=["x = y"]) == (
        "# @ class = a\n# @ x = y\n# @ queue"
    )
