"""Sites with a batch system, one of each for a program: a stand-in for LoadLeveler, real Slurm."""

import atexit
import functools
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from daskspace import create_backend
from daskspace.clusters.queues import QUEUES, cancel, look
from tests.loadleveler.standin import StandIn
from tests.schedulers import slurm

SMALL = {"cores": 1, "memory": "500MB", "query_interval": 0.5}


class Site:
    """What tests do at a site behind a backend's back, whatever its batch system is."""

    def __init__(self, backend_type, running, queue, **options):
        self.backend_type, self.running, self.queue = backend_type, running, queue
        self.options = {**SMALL, **options}
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])  # where tests can be imported

    def backend(self, **options):
        return create_backend(self.backend_type, **{**self.options, **options})

    def jobs(self):
        """Return the jobs that are there, by id."""
        jobs = look(self.queue, ["1"])
        return {job.job_id: job for job in jobs if job.state not in ("ended", "ending")}

    def wait_for_jobs(self, condition, seconds=40):
        until = time.monotonic() + seconds
        while not condition(jobs := self.jobs()):
            assert time.monotonic() < until, f"{jobs} after {seconds} s"
            time.sleep(0.1)
        return jobs

    def cancel(self, *job_ids):
        cancel(self.queue, job_ids)

    def is_empty(self):
        self.wait_for_jobs(lambda jobs: not jobs, 20)
        return True


class LoadLevelerSite(Site):
    no_such_queue = "no_such_class"

    def hold_new(self):
        return {"job_extra_directives": ["hold = user"]}

    def release(self, *job_ids):
        for job_id in job_ids:
            self.running.release(job_id)

    def never(self):
        """Return options of a job that is never begun."""
        return {"requirements": '(Machine == "no_such_machine")'}


class SlurmSite(Site):
    no_such_queue = "no_such_partition"

    def hold_new(self):
        return {"job_extra_directives": ["--hold"]}

    def release(self, *job_ids):
        for job_id in job_ids:
            self.running.run("scontrol", "release", job_id)

    def never(self):
        """Return options of a job that is never begun."""
        return {"job_extra_directives": ["--begin=now+1hour"]}


@functools.cache
def loadleveler_site():
    site = StandIn(_directory("loadleveler")).__enter__()
    atexit.register(site.__exit__)
    os.environ.update(site.environment)
    return LoadLevelerSite("loadl", site, QUEUES["loadleveler"], job_extra_directives=[])


@functools.cache
def slurm_site():
    if reason := slurm.missing():
        pytest.skip(reason)
    running = slurm.Slurm(_directory("slurm"))
    atexit.register(running.stop)
    os.environ.update(running.environment)
    return SlurmSite("slurm", running, QUEUES["slurm"], walltime="00:10:00")


SITES = {"loadl": loadleveler_site, "slurm": slurm_site}


def _directory(name):
    path = Path(tempfile.mkdtemp(prefix=f"daskspace-{name}-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path
