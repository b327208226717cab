"""What happens to jobs, seen by the commands and in the event log, with a real negotiator."""

import re


def submit(site, *directives, script="sleep 60", shebang="#!/bin/sh"):
    """Submit a job and return its id."""
    lines = [shebang, *(f"# @ {directive}" for directive in directives), "# @ queue", script]
    answer = site.run("llsubmit", "-", stdin="\n".join(lines))
    assert answer.returncode == 0, answer
    return re.search(r'The job "([^"]+)"', answer.stdout)[1]


def test_a_job_runs_and_leaves_its_output(loadleveler, tmp_path):
    job = submit(loadleveler, f"output = {tmp_path}/$(jobid).out", script="echo $LOADL_STEP_ID")
    loadleveler.wait_for(job, "C")
    assert loadleveler.states(job) == ["I", "P", "ST", "R", "CP", "C"]
    assert (tmp_path / "1.out").read_text() == f"{job}.0\n"
