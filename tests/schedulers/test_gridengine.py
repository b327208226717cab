import time

import pytest

from daskspace.clusters.queues import QUEUES, QueueError, ask, cancel, why

from .batch_system import processes_of
from .gridengine import GridEngine, missing

pytestmark = pytest.mark.xdist_group("gridengine")
QUEUE = QUEUES["sge"]


@pytest.fixture
def submit(gridengine, monkeypatch):
    """Submit a job, which is deleted at the end of the test, and return its id."""
    gridengine.use(monkeypatch)
    submitted = []

    def submit(*options):
        submitted.append(qsub(gridengine, *options))
        return submitted[-1]

    yield submit
    cancel(QUEUE, submitted)
    for job_id in submitted:
        once(job_id, None)


def qsub(gridengine, *options):
    argv = ["qsub", "-terse", "-b", "yes", "-j", "yes", "-o", "/dev/null", *options]
    return gridengine.run(*argv, "sleep", "100")


def once(job_id, state, seconds=30):
    """Return what the queue says of a job once it is in this state; None is to be unknown."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        job = ask(QUEUE, [job_id]).get(job_id)
        if (job and job.state) == state:
            return job
        time.sleep(0.1)
    raise AssertionError(f"{job_id} is not {state} but {job} after {seconds} s")


def test_a_job_that_runs_is_running_under_its_name(submit):
    job = once(submit("-N", "dask-worker"), "running")
    assert job.word in {"t", "r"}  # transferred to its node, running
    assert job.name == "dask-worker"


def test_a_job_for_which_there_is_no_slot_waits(submit):
    job_id = submit("-l", "num_proc=999")
    assert once(job_id, "waiting").word == "qw"
    assert f"job_number: {job_id}" in " ".join(why(QUEUE, job_id).split())


def test_a_job_that_is_held_is_held(gridengine, submit):
    job_id = submit("-h")
    assert once(job_id, "held").word == "hqw"
    gridengine.run("qrls", job_id)
    once(job_id, "running")


def test_a_job_that_could_not_be_started_is_held_with_its_error(submit):
    job_id = submit("-o", "/no/such/directory/log")
    assert once(job_id, "held").word == "Eqw"
    assert "/no/such/directory" in why(QUEUE, job_id)


def test_jobs_are_deleted_by_one_command_and_unknown_ones_are_told(submit):
    running, waiting = submit(), submit("-l", "num_proc=999")
    once(running, "running")
    assert "999999" in cancel(QUEUE, [running, waiting, "999999"])
    once(running, None)
    once(waiting, None)


def test_a_job_whose_time_is_up_is_no_longer_known(submit):
    job_id = submit("-l", "h_rt=0:0:2")
    once(job_id, "running")
    once(job_id, None)


def test_nothing_is_left_of_it_after_stop(tmp_path, monkeypatch):
    if reason := missing():
        pytest.skip(reason)
    with GridEngine(tmp_path) as own:
        own.use(monkeypatch)
        once(qsub(own), "running")
        assert len(processes_of(own.environment)) >= 3
        own.stop()
        assert processes_of(own.environment) == []
        with pytest.raises(QueueError, match="qstat: "):
            ask(QUEUE, ["1"])
