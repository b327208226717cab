"""What the backends on batch systems promise, at a stand-in for LoadLeveler and a real Slurm."""

import collections
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from daskspace import ConfigError, OperationError, create_backend, operation
from daskspace.backends import BACKENDS
from daskspace.backends.fleet import job_number, words_of
from daskspace.clusters.queues import QUEUES, cancel, look
from daskspace.clusters.walltime import margin
from daskspace.execution.job_record import JobRecord, read_job_record
from daskspace.results.table import Table
from tests.cli.conftest import heed_interrupts

from .sites import SITES

pytestmark = pytest.mark.timeout(480)


@pytest.fixture(
    params=["loadl", pytest.param("slurm", marks=pytest.mark.xdist_group("slurm"))],
)
def site(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = SITES[request.param]()
    yield site
    left = site.jobs()
    site.cancel(*left)
    assert not left, "jobs were left in the queue"
    assert not list(tmp_path.glob(".daskspace-*")), "keys were left"


@pytest.fixture
def loadl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = SITES["loadl"]()
    yield site
    site.running.mend()
    assert not site.jobs(), "jobs were left in the queue"


def note(directory, word):
    descriptor = os.open(Path(directory, "noted"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{word}\n".encode())
    os.close(descriptor)


def noted(directory="."):
    try:
        return Path(directory, "noted").read_text().split()
    except FileNotFoundError:
        return []


def nap(directory, seconds, x):
    note(directory, x)
    time.sleep(seconds)
    return {"y": x * x}


def naps(number, seconds=0.1, **options):
    return operation(partial(nap, os.getcwd(), seconds), {"x": range(number)}, **options)


def squares_of(op):
    return [row["y"] for row in op.rows()]


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited for {seconds} s"
        time.sleep(0.05)


class Running:
    """An operation that runs in a thread of this program."""

    def __init__(self, backend, op, **arguments):
        self.backend, self.error = backend, None
        self._thread = threading.Thread(target=self._run, args=(op, arguments))
        self._thread.start()

    def _run(self, op, arguments):
        try:
            self.backend.run(op, **arguments)
        except BaseException as error:
            self.error = error

    def wait(self, seconds=300):
        self._thread.join(seconds)
        assert not self._thread.is_alive(), f"{self.backend.check_status()} after {seconds} s"
        if self.error is not None:
            raise self.error


PROGRAM = """
import os
import sys
from tests.backends.sites import SITES
from tests.backends.test_batch import naps
from daskspace import create_backend

name, number, seconds, options = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
with create_backend(name, **eval(options)) as backend:
    backend.run(naps(number, seconds, result_directory="out", resume=True))
"""


def client(site, number, seconds, **options):
    """Start a program that runs an operation in `out`, to be killed."""
    Path("program.py").write_text(PROGRAM)
    argv = [sys.executable, "program.py", site.backend_type, str(number), str(seconds)]
    options = repr({**site.options, **options})
    return subprocess.Popen([*argv, options], preexec_fn=heed_interrupts)


# How many jobs


def test_an_operation_outlives_a_job_that_is_cancelled_in_the_middle(site):
    with site.backend(jobs=3) as backend:
        op = naps(500, 0.02)
        running = Running(backend, op)
        wait_until(lambda: len(noted()) > 50)
        victim, *_ = site.jobs()
        site.cancel(victim)
        running.wait()
    assert squares_of(op) == [x * x for x in range(500)]
    assert {row["state"] for row in op.rows()} == {"done"}
    assert site.is_empty()


def test_a_lost_job_is_replaced(site):
    with site.backend(jobs=1) as backend:
        op = naps(30, 0.3)
        running = Running(backend, op)
        wait_until(lambda: len(noted()) > 3)
        (victim,) = site.jobs()
        site.cancel(victim)
        running.wait()
        assert victim not in site.jobs()
    assert squares_of(op) == [x * x for x in range(30)]


def test_no_more_jobs_are_asked_for_than_there_are_processes(site):
    with site.backend(jobs=10) as backend:
        running = Running(backend, op := naps(3, 2))
        site.wait_for_jobs(lambda jobs: len(jobs) == 3)
        running.wait()
        assert backend.check_status().jobs.submitted == 3
    assert squares_of(op) == [0, 1, 4]


def test_more_jobs_than_fit_wait_and_are_cancelled_when_they_are_no_longer_needed(site):
    with site.backend(jobs=11) as backend:
        op = naps(60, 0.5)
        running = Running(backend, op)
        site.wait_for_jobs(lambda jobs: len(jobs) == 11)
        wait_until(lambda: backend.check_status().jobs.running == 8)
        status = backend.check_status()
        assert status.jobs.waiting == 3
        assert f"jobs: 11 submitted, 8 running, {status.workers} workers" in str(status)
        running.wait()
        site.wait_for_jobs(lambda jobs: len(jobs) <= 8)
    assert squares_of(op) == [x * x for x in range(60)]


def test_jobs_stay_for_the_next_operation_and_end_with_the_backend(site):
    with site.backend(jobs=2) as backend:
        backend.run(naps(4))
        jobs = set(site.jobs())
        backend.run(op := naps(6))
        assert set(site.jobs()) == jobs
        assert len(jobs) == 2
    assert squares_of(op) == [0, 1, 4, 9, 16, 25]
    assert site.is_empty()


def test_a_job_of_several_cores_has_a_worker_for_each(site):
    with site.backend(jobs=2, cores=2) as backend:
        op = naps(40, 0.2)
        running = Running(backend, op)
        wait_until(lambda: backend.check_status().workers == 4)
        assert len(site.jobs()) == 2
        victim, *_ = site.jobs()
        site.cancel(victim)
        running.wait()
    assert squares_of(op) == [x * x for x in range(40)]


def test_dask_decides_on_the_number_of_jobs_when_it_is_asked_to(site):
    with site.backend(jobs=3, adapt={"interval": "0.5s", "wait_count": 2}) as backend:
        backend.run(op := naps(60, 0.1))
        site.wait_for_jobs(lambda jobs: not jobs)
    assert squares_of(op) == [x * x for x in range(60)]


def test_nothing_is_submitted_when_nothing_is_left_to_run(site):
    backend = create_backend("serial")
    backend.run(naps(3, result_directory="out"))
    with site.backend() as backend:
        backend.run(op := naps(3, result_directory="out", resume=True))
        assert backend.check_status().jobs.submitted == 0
    assert squares_of(op) == [0, 1, 4]


# What keeps jobs from working


def test_a_job_that_cannot_be_submitted_is_said_in_the_words_of_the_batch_system(site):
    began = time.monotonic()
    with site.backend(queue=site.no_such_queue) as backend:
        with pytest.raises(OperationError, match="a job could not be submitted") as caught:
            backend.run(op := naps(3))
        assert time.monotonic() - began < 60
    assert "class" in str(caught.value) or "partition" in str(caught.value)
    assert [row["state"] for row in op.rows()] == ["cancelled"] * 3


def test_a_submission_that_fails_once_is_tried_again(loadl):
    loadl.running.fault("submit_fail", 1, text="llsubmit: 2512-000 try later")
    with loadl.backend() as backend:
        backend.run(op := naps(3))
    assert squares_of(op) == [0, 1, 4]


def test_jobs_that_die_before_their_workers_come_end_the_operation_with_their_log(site):
    with (
        site.backend(python="/no/such/python") as backend,
        pytest.raises(OperationError, match="3 jobs in a row did not work") as caught,
    ):
        backend.run(naps(3))
    assert "/no/such/python: No such file" in str(caught.value)
    assert "daskspace doctor" in str(caught.value)


def test_a_job_that_runs_without_a_worker_is_given_up(site, monkeypatch):
    monkeypatch.setattr("daskspace.backends.jobqueue._START_S", 8.0)
    prologue = ["echo waiting for nobody", "exec sleep 300"]
    with (
        site.backend(job_script_prologue=prologue, death_timeout=1) as backend,
        pytest.raises(OperationError, match="no worker has come") as caught,
    ):
        backend.run(naps(3))
    assert "waiting for nobody" in str(caught.value)


def test_held_jobs_are_said_and_not_waited_for(site):
    with site.backend(**site.hold_new(), jobs=2, no_workers_timeout=4) as backend:
        running = Running(backend, naps(3))
        wait_until(lambda: backend.check_status().jobs.held == 2)
        assert "2 held: " in str(backend.check_status())
        with pytest.raises(OperationError, match="all 2 jobs have been held"):
            running.wait()


def test_a_held_job_that_is_released_does_its_work(site):
    with site.backend(**site.hold_new(), no_workers_timeout=60) as backend:
        running = Running(backend, op := naps(3))
        wait_until(lambda: backend.check_status().jobs.held == 1)
        site.release(*site.jobs())
        running.wait()
    assert squares_of(op) == [0, 1, 4]


def test_a_queue_that_forgets_a_job_once_is_not_believed(loadl):
    with loadl.backend(jobs=1) as backend:
        running = Running(backend, op := naps(20, 0.3))
        wait_until(lambda: len(noted()) > 1)
        jobs = loadl.jobs()
        loadl.running.fault("llq_empty_once", 1)
        running.wait()
        assert set(loadl.jobs()) == set(jobs)
    assert squares_of(op) == [x * x for x in range(20)]


def test_an_operation_goes_on_while_the_central_manager_is_down(loadl):
    with loadl.backend(jobs=1) as backend:
        running = Running(backend, op := naps(20, 0.3))
        wait_until(lambda: len(noted()) > 1)
        loadl.running.fault("cm_down")
        wait_until(lambda: "the queue does not answer" in str(backend.check_status()))
        loadl.running.mend()
        running.wait()
    assert squares_of(op) == [x * x for x in range(20)]


# Time limits


def test_a_job_that_is_ended_by_a_time_limit_that_nobody_told_is_lost_and_replaced(loadl):
    limit = ["wall_clock_limit = 25"]  # the backend knows of half an hour
    options = {"jobs": 2, "lost_retries": 100}  # a busy machine takes its time to start workers
    with loadl.backend(job_extra_directives=limit, **options) as backend:
        backend.run(op := naps(14, 4))
    assert {row["state"] for row in op.rows()} == {"done"}
    assert squares_of(op) == [x * x for x in range(14)]
    assert len(noted()) > 14, "some were cut off"


@pytest.mark.xdist_group("slurm")
def test_a_job_that_slurm_ends_at_its_time_limit_is_lost_and_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = SITES["slurm"]()
    with site.backend(jobs=1) as backend:
        running = Running(backend, op := naps(14, 4))
        wait_until(lambda: noted())
        (job_id,) = site.jobs()
        site.running.run("scontrol", "update", f"jobid={job_id}", "EndTime=now+8seconds")
        site.wait_for_jobs(lambda jobs: job_id not in jobs, 90)
        running.wait(180)
    assert {row["state"] for row in op.rows()} == {"done"}
    assert len(noted()) > 14


def test_workers_retire_before_the_time_limit_and_lose_nothing(loadl):
    """80 s of work in jobs of 35 s, which is where Dask's own lifetime never comes to an end."""
    with loadl.backend(jobs=2, walltime=35) as backend:
        backend.run(op := naps(80, 1))
    assert squares_of(op) == [x * x for x in range(80)]
    assert sorted(map(int, noted())) == list(range(80)), "none was run twice"


def test_a_process_that_cannot_end_in_time_is_not_begun(loadl):
    with loadl.backend(jobs=1, walltime=45, process_timeout=9) as backend:
        backend.run(op := naps(7, 7))
    assert [row["state"] for row in op.rows()] == ["done"] * 7
    assert len(noted()) == 7, "none was cut off"


def test_a_process_timeout_beyond_the_time_limit_is_refused_at_once(site):
    minute = 60 if site.backend_type == "loadl" else 1
    with site.backend(walltime=minute, process_timeout=56) as backend:
        with pytest.raises(ConfigError, match="has 55 s for a process"):
            backend.stage_in(naps(1))
        assert backend.state == "idling"


@pytest.mark.parametrize(("walltime", "kept"), [(60, 5), (1200, 60), (600, 30), (1e6, 60)])
def test_the_margin_is_a_twentieth_of_the_time_limit_within_bounds(walltime, kept):
    assert margin(walltime) == kept


# Nothing is left behind


def test_close_cancels_jobs_that_wait_and_jobs_that_run(site):
    with site.backend(jobs=11) as backend:
        backend.stage_in(naps(100, 1))
        backend.execute()
        wait_until(lambda: backend.check_status().workers >= 2)
        assert len(site.jobs()) == 11
        began = time.monotonic()
        backend.close()
        assert time.monotonic() - began < 40
    assert site.is_empty()


def test_what_a_killed_client_left_is_cancelled_on_resume(site):
    options = {**site.never(), "jobs": 2}
    killed = client(site, 3, 0.1, **options)
    try:
        jobs = site.wait_for_jobs(lambda jobs: len(jobs) == 2)
        killed.kill()
        killed.wait(10)
        assert set(site.jobs()) == set(jobs), "the batch system knows nothing of the client"
    finally:
        killed.kill()
    with site.backend() as backend:
        backend.run(op := naps(3, result_directory="out", resume=True))
        assert not set(jobs) & set(site.jobs())
    assert squares_of(op) == [0, 1, 4]
    assert "cancelled the batch jobs that were left over" in Path("out/operation.log").read_text()


def test_an_operation_whose_client_was_killed_is_finished_by_resume(site):
    killed = client(site, 40, 0.2, jobs=2)
    try:
        wait_until(lambda: len(noted()) > 8)
    finally:
        killed.kill()
        killed.wait(10)
    with create_backend("serial") as backend:
        backend.run(op := naps(40, 0, result_directory="out", resume=True))
    assert squares_of(op) == [x * x for x in range(40)]
    assert site.is_empty()
    again = collections.Counter(noted())
    assert sum(count > 1 for count in again.values()) <= 2, "only what was running ran again"


def test_cancel_stops_an_operation_that_runs_elsewhere(site):
    running = client(site, 200, 0.3, jobs=2)
    try:
        wait_until(lambda: len(noted()) > 3)
        said = daskspace_command("cancel", "out")
        assert running.wait(20) == 0
    finally:
        running.kill()
    assert said.returncode == 0, said.stderr
    assert "stopped" in said.stdout
    assert "resume out" in said.stdout
    assert site.is_empty()
    counts = Table(Path("out/journal.jsonl")).counts
    assert counts["done"] >= 3
    assert counts["cancelled"] > 100


def test_cancel_removes_the_jobs_of_a_client_that_was_killed(site):
    killed = client(site, 3, 0.1, **site.never(), jobs=2)
    try:
        jobs = site.wait_for_jobs(lambda jobs: len(jobs) == 2)
    finally:
        killed.kill()
        killed.wait(10)
    said = daskspace_command("cancel", "out")
    assert said.returncode == 0, said.stderr
    assert all(job_id.partition(".")[0] in said.stdout for job_id in jobs)
    assert site.is_empty()
    assert "nothing was running" in daskspace_command("cancel", "out").stdout


def test_ctrl_c_ends_an_operation_whose_jobs_still_wait(site):
    running = client(site, 3, 0.1, **site.never())
    try:
        site.wait_for_jobs(lambda jobs: len(jobs) == 1)
        running.send_signal(signal.SIGINT)
        assert running.wait(60) != 0
    finally:
        running.kill()
    assert site.is_empty()


def daskspace_command(*arguments):
    argv = [sys.executable, "-m", "daskspace", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=90)


# The record of jobs


def test_jobs_are_in_the_record_before_they_are_used(site):
    with site.backend(jobs=2) as backend:
        running = Running(backend, naps(30, 0.2, result_directory="out"))
        jobs = site.wait_for_jobs(lambda jobs: len(jobs) == 2)
        (batch,) = read_job_record(Path("out/jobs.jsonl"))
        keys = {site.queue.key(job_id) for job_id in batch.job_ids}
        assert keys == {site.queue.key(job_id) for job_id in jobs}
        assert all(job.name in ("", batch.name) for job in jobs.values())
        running.wait()
    assert read_job_record(Path("out/jobs.jsonl")) == []


def test_a_record_tells_what_a_client_had_not_seen_end(tmp_path):
    path = tmp_path / "jobs.jsonl"
    first = JobRecord(path, "slurm", "daskspace-abcde", ("-M", "east"), tmp_path / "keys")
    first.submitted("7")
    first.submitted("8")
    first.ended("7")
    with path.open("a") as file:
        file.write('{"submitted": "9')  # its writer was killed
    second = JobRecord(path, "loadleveler", "daskspace-fghij")
    second.submitted("host.3")
    second.close(released=True)
    (batch,) = read_job_record(path)
    assert (batch.system, batch.name, batch.job_ids) == ("slurm", "daskspace-abcde", ["8"])
    assert (batch.extra, batch.private) == (("-M", "east"), tmp_path / "keys")
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("text", ["", "\0\0", "[]", '{"ended": "1"}', "{"])
def test_a_damaged_record_is_one_without_jobs(tmp_path, text):
    path = tmp_path / "jobs.jsonl"
    path.write_text(text)
    assert read_job_record(path) == []


def test_words_of_a_failed_submission_are_those_of_the_batch_system():
    said = "Command exited with non-zero exit code.\nExit code: 1\nCommand:\nsbatch /tmp/x.sh\n"
    error = RuntimeError(f"{said}stdout:\n\nstderr:\nsbatch: error: no\n\n")
    assert words_of(error) == "sbatch: error: no"
    assert words_of(ValueError("x")) == "ValueError: x"


# Security


def test_scheduler_and_workers_speak_tls_with_keys_of_their_own(site):
    with site.backend() as backend:
        backend.run(naps(2))
        (private,) = Path().glob(".daskspace-*")
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in private.iterdir()} == {0o600}
        scheduler = backend.cluster.scheduler_address
        (worker,) = backend.client.scheduler_info()["workers"]
        for address in (scheduler, worker):
            assert address.startswith("tls://")
            assert_is_closed_to_strangers(address)
        assert backend.dashboard_link.startswith("http://127.0.0.1:")


def assert_is_closed_to_strangers(address):
    host, _, port = address.removeprefix("tls://").rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        pytest.raises((ssl.SSLError, ConnectionError, EOFError)),
        context.wrap_socket(plain) as connection,
    ):
        if not connection.recv(1):
            raise EOFError


@pytest.mark.parametrize(
    "options", [{"protocol": "tcp"}, {"protocol": "tcp://"}, {"security": False}]
)
def test_plain_tcp_has_to_be_asked_for(options):
    with (
        create_backend("slurm", cores=1, memory="1GB", **options) as backend,
        pytest.raises(ConfigError, match="insecure=True"),
    ):
        backend.stage_in(naps(1))


def test_plain_tcp_works_where_it_was_asked_for(loadl):
    with loadl.backend(insecure=True) as backend:
        backend.run(op := naps(2))
        assert backend.cluster.scheduler_address.startswith("tcp://")
    assert squares_of(op) == [0, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"local_directory": "/tmp/a; touch hacked"},
        {"local_directory": "$(touch hacked)"},
        {"worker_extra_args": ["--name", "`touch hacked`"]},
        {"queue": "main\ntouch hacked"},
        {"interface": "eth0 && touch hacked"},
        {"job_name": "x\n#SBATCH --mail-user=me"},
        {"python": "python | tee"},
    ],
)
def test_values_that_would_run_as_commands_are_refused(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: .* would run as a command"):
        create_backend("slurm", cores=1, memory="1GB", **options)


# Options, and other batch systems


@pytest.mark.xdist_group("gridengine")
def test_an_operation_runs_on_grid_engine_and_leaves_no_job(gridengine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gridengine.use(monkeypatch)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    options = {"cores": 1, "memory": "500MB", "query_interval": 0.5, "jobs": 2}
    more = ["-V"]  # jobs of Grid Engine do not get the environment by themselves
    with create_backend("sge", job_extra_directives=more, **options) as backend:
        running = Running(backend, op := naps(30, 0.2))
        wait_until(lambda: len(noted()) > 3)
        queue = QUEUES["sge"]
        victim, *_ = look(queue, ["1"])
        cancel(queue, [victim.job_id])
        running.wait()
    assert squares_of(op) == [x * x for x in range(30)]
    wait_until(lambda: not look(queue, ["1"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs must be a whole number of at least 1"),
        ({"jobs": "many"}, "jobs must be a whole number"),
        ({"query_interval": "soon"}, "query_interval must be seconds"),
        ({"wall_time": "1:00"}, "no option 'wall_time'; did you mean 'walltime'"),
        ({"coers": 1}, "did you mean 'cores'"),
    ],
)
def test_a_wrong_option_is_told_with_what_it_may_have_been(options, message):
    with pytest.raises(ConfigError, match=message):
        create_backend("slurm", **options)


def test_cores_and_memory_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with (
        create_backend("slurm") as backend,
        pytest.raises(ConfigError, match="needs cores and memory"),
    ):
        backend.stage_in(naps(1))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("slurm", "#SBATCH -t 00:30:00"),
        ("pbs", "#PBS -l walltime=00:30:00"),
        ("sge", "#$ -l h_rt=00:30:00"),
        ("lsf", "#BSUB -W 00:30"),
        ("oar", "#OAR -l /nodes=1/core=2,walltime=00:30:00"),
        ("moab", "#PBS -l walltime=00:30:00"),
        ("htcondor", "Executable = "),
        ("loadl", "# @ wall_clock_limit = 00:30:00"),
    ],
)
def test_every_batch_system_has_a_job_script_and_nothing_is_started_for_it(name, line):
    more = {"oar": {"memory_per_core_property_name": "memcore"}, "htcondor": {"disk": "1GB"}}
    prologue = ["module load x"]
    backend = create_backend(
        name, cores=2, memory="4GB", job_script_prologue=prologue, **more.get(name, {})
    )
    script = backend.job_script()
    assert line in script
    told = () if name == "htcondor" else ("DASKSPACE_JOB_START",)  # no shell script of its own
    for word in ("module load x", "tls://", "--nworkers 2", *told):
        assert word in script
    assert backend.cluster is None


def test_every_batch_system_has_a_name():
    batch = {"loadl", "slurm", "pbs", "sge", "lsf", "htcondor", "oar", "moab"}
    assert batch <= set(BACKENDS)


def test_settings_of_pyspace_are_understood():
    backend = create_backend(
        "loadl",
        job_class="general",
        consumable_memory="3250mb",
        consumable_cpus=1,
        anode='(Machine == "anode01")',
    )
    script = backend.job_script()
    for line in (
        "# @ class = general",
        "# @ resources = ConsumableCpus(1) ConsumableMemory(3250mb)",
        '# @ requirements = (Machine == "anode01")',
    ):
        assert line in script
    assert "3.17GiB" in script


def test_two_backends_do_not_get_into_each_others_way(loadl):
    with loadl.backend() as one, loadl.backend() as other:
        first, second = Running(one, a := naps(20, 0.2)), Running(other, b := naps(20, 0.2))
        first.wait()
        one.close()
        second.wait()
    assert squares_of(a) == squares_of(b) == [x * x for x in range(20)]


@pytest.mark.parametrize(
    ("job_id", "number"),
    [
        ("12", "12"),
        ("12.server2345", "12"),
        ("12[7].server2", "12"),
        ("12.0", "12"),
        ("Moab.12", "12"),
        ("node007.site.org.12", "12"),
        ("node007.12.0", "12"),
    ],
)
def test_the_number_of_a_job_is_not_that_of_a_host(job_id, number):
    assert job_number(job_id) == number
