import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from daskspace.clusters.queues import QUEUES, QueueError, ask, cancel

from .batch_system import processes_of
from .slurm import Slurm, missing

pytestmark = pytest.mark.xdist_group("slurm")
QUEUE = QUEUES["slurm"]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def submit(slurm, monkeypatch):
    """Submit a job, which is cancelled at the end of the test, and return its id."""
    slurm.use(monkeypatch)
    submitted = []

    def submit(*options, command="sleep 100"):
        submitted.append(sbatch(slurm, *options, command=command))
        return submitted[-1]

    yield submit
    cancel(QUEUE, submitted)


def sbatch(slurm, *options, command="sleep 100"):
    argv = ["sbatch", "--parsable", "--output=/dev/null", "--mem=10", *options]
    return slurm.run(*argv, f"--wrap={command}")


def once(job_id, state, seconds=30):
    """Return what the queue says of a job once it says it is in this state."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job = ask(QUEUE, [job_id]).get(job_id)
        if job is not None and job.state == state:
            return job
        time.sleep(0.1)
    raise AssertionError(f"{job_id} is not {state} but {job} after {seconds} s")


def test_it_has_four_nodes_that_run_jobs(slurm):
    assert slurm.run("sinfo", "--noheader", "-N", "--format=%N %c").splitlines() == [
        *("n1 2", "n2 2", "n3 2", "n4 2")
    ]
    assert slurm.run("srun", "--mem=10", "printenv", "SLURMD_NODENAME") in {"n1", "n2", "n3", "n4"}


def test_a_job_that_runs_is_running_under_its_name(submit):
    job = once(submit("--job-name=dask|worker 1"), "running")
    assert (job.word, job.reason, job.name) == ("RUNNING", "", "dask|worker 1")


def test_a_job_that_never_fits_waits_for_a_reason(submit):
    job_id = submit("--nodes=9")
    assert once(job_id, "waiting").word == "PENDING"
    assert "PartitionConfig" in once(job_id, "waiting").reason


def test_a_job_that_is_held_by_its_user_or_after_a_requeue_is_held(slurm, submit):
    job_id = submit("--hold")
    assert once(job_id, "held").reason == "JobHeldUser"
    slurm.run("scontrol", "release", job_id)
    once(job_id, "running")
    slurm.run("scontrol", "requeuehold", job_id)
    assert "held" in once(job_id, "held").reason
    assert once(job_id, "held").word == "PENDING"


def test_a_job_that_failed_has_ended(submit):
    job = once(submit(command="exit 3"), "ended")
    assert (job.word, job.reason) == ("FAILED", "NonZeroExitCode")
    assert once(submit(command="true"), "ended").word == "COMPLETED"


def test_jobs_are_cancelled_by_one_command_and_those_that_are_gone_are_no_error(submit):
    running, waiting, ended = submit(), submit("--nodes=9"), submit(command="true")
    once(running, "running")
    once(ended, "ended")
    assert cancel(QUEUE, [running, waiting, ended, "999999"]) == ""
    assert once(running, "ended").word == once(waiting, "ended").word == "CANCELLED"
    assert once(waiting, "ended").reason == ""
    assert once(ended, "ended").word == "COMPLETED"


def test_a_job_whose_time_is_up_has_ended_by_that(slurm, submit):
    job_id = submit()
    once(job_id, "running")
    slurm.run("scontrol", "update", f"jobid={job_id}", "EndTime=now+1seconds")
    assert once(job_id, "ended", seconds=90).word == "TIMEOUT"  # it looks every 30 s


def test_one_query_tells_of_many_jobs_and_is_silent_of_unknown_ones(submit):
    ids = [submit("--nodes=9") for _ in range(5)]
    assert set(ask(QUEUE, [*ids, "999999"])) == set(ids)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A Slurm of one node for a test that ends it."""
    if reason := missing():
        pytest.skip(reason)
    with Slurm(tmp_path, nodes=1) as slurm:
        slurm.use(monkeypatch)
        yield slurm


def test_a_job_whose_node_failed_has_ended_by_that(own):
    job_id = sbatch(own, "--no-requeue")
    once(job_id, "running")
    own.run("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    assert once(job_id, "ended").word == "NODE_FAIL"


def test_nothing_is_left_of_it_after_stop(own):
    begun = own.path / "begun"
    sbatch(own, command=f"setsid sleep 100 & touch {begun}; sleep 100")
    own.wait_until(begun.exists, "the job's first step")
    assert len(processes_of(own.environment)) >= 6
    own.stop()
    assert processes_of(own.environment) == []
    with pytest.raises(QueueError, match="squeue: "):
        ask(QUEUE, ["1"], timeout_s=3)


KILLED = """
import sys, time
from tests.schedulers.slurm import Slurm
slurm = Slurm(sys.argv[1], nodes=1)
slurm.run("sbatch", "--mem=10", "--output=/dev/null", "--wrap=sleep 100")
print("up", flush=True)
time.sleep(100)
"""


def test_nothing_is_left_of_it_when_the_program_that_started_it_is_killed(tmp_path):
    if reason := missing():
        pytest.skip(reason)
    argv = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout.readline() == "up\n"
        finally:
            program.send_signal(signal.SIGKILL)

    environment = {"SLURM_CONF": f"{tmp_path}/slurm.conf"}
    until = time.monotonic() + 30
    while (left := processes_of(environment)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []
