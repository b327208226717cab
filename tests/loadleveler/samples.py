"""Steps and jobs for the tests of the stand-in."""

import re

from .llsim import config, submission, validation


def step(id="host.1.0", keywords=(), **changes):
    """Return a step as the spool keeps it."""
    *_, job, number = id.split(".")
    facts = {"id": id, "job": int(job), "number": int(number), "owner": "me", "group": "users"}
    facts |= {"cwd": "/home/me", "command_file": "/home/me/job.cmd", "submitted": 0.0}
    facts |= {"submit_host": "host", "shell": "/bin/ksh", "cluster": ""}
    keywords = {"job_name": id.rpartition(".")[0], "step_name": str(number), **dict(keywords)}
    name = changes.get("class", keywords.get("class", "No_Class"))
    site = config.complete({"classes": {name: {}}, "default_class": name})
    return {**validation.step_of(keywords, site, facts), **changes}


def command_file(*directives, script="sleep 60", shebang="#!/bin/sh"):
    """Return the text of a job command file with one step."""
    return "\n".join([shebang, *(f"# @ {line}" for line in directives), "# @ queue", script])


def submit(site, *directives, **parts):
    """Submit a job without the cost of a process and return its id."""
    said = submission.submit(command_file(*directives, **parts), site.spool, site.config)
    return re.search(r'The job "([^"]+)"', said)[1]
