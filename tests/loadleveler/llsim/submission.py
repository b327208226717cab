"""What llsubmit does: read, check, number, spool."""

import grp
import json
import os
import pwd
import re
import time
from pathlib import Path

from . import jcf, messages, validation, values


def submit(text, spool, config, command_file="-", environ=None):
    """Submit the job command file `text` for this user; return what llsubmit says on stdout."""
    environ = dict(os.environ if environ is None else environ)
    user = pwd.getpwuid(os.getuid())
    if 0 in (os.getuid(), os.getgid()) and not config["allow_root"]:
        raise jcf.RefusedError("users with uid or gid 0 may not submit jobs")
    site_filter = config["submit_filter"] or {}
    if site_filter.get("reject") and re.search(site_filter["reject"], text):
        raise jcf.RefusedError("the submit filter refused the job command file")
    steps, _ = jcf.parse(text)
    for keywords in steps:
        validation.check(keywords, config, user.pw_name)
    login = {
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": user.pw_shell or config["login_shell"],
        "PATH": config["login_path"],
    }
    with spool.transaction():
        number = spool.next_job()
        job = f"{config['schedd_host']}.{number}"
        records = []
        for index, keywords in enumerate(steps):
            facts = {
                "job": number,
                "number": index,
                "id": f"{job}.{index}",
                "owner": user.pw_name,
                "group": grp.getgrgid(os.getgid()).gr_name,
                "cwd": os.getcwd(),
                "command_file": os.path.abspath(command_file),
                "submitted": time.time(),
                "submit_host": os.uname().nodename,
                "shell": user.pw_shell or config["login_shell"],
                "cluster": config["cluster"],
            }
            known = variables(facts, keywords, config, user)
            resolved = {"job_name": known["job_name"], "step_name": known["step_name"]}
            resolved |= jcf.resolve(keywords, known)
            record = validation.step_of(resolved, config, facts)
            own = values.environment(resolved.get("environment", ""), environ)
            copy = spool.directory / "jobs" / f"{record['id']}.env"
            copy.write_text(json.dumps({**login, **own}))
            records.append(record)
        _write_command_file(spool, number, text)
        spool.save(*records)
    for record in records:
        spool.log("state", id=record["id"], old=None, new="I", why="submitted")
    if len(records) > 1:
        return messages.SUBMITTED_STEPS.format(job=job, steps=len(records))
    return messages.SUBMITTED.format(job=job)


def variables(facts, keywords, config, user):
    """Return what `$(name)` stands for when the schedd has taken the job."""
    schedd, number, index = config["schedd_host"], facts["job"], facts["number"]
    short, _, domain = schedd.partition(".")
    return {
        "jobid": number,
        "cluster": number,
        "stepid": index,
        "process": index,
        "host": short,
        "hostname": short,
        "domain": domain,
        "schedd_host": short,
        "schedd_hostname": schedd,
        "home": user.pw_dir,
        "user": user.pw_name,
        "base_executable": os.path.basename(keywords.get("executable", "")),
        "job_name": keywords.get("job_name") or f"{schedd}.{number}",
        "step_name": keywords.get("step_name") or str(index),
        "class": keywords.get("class") or config["default_class"],
    }


def _write_command_file(spool, number, text):
    copy = Path(spool.directory, "jobs", f"{number}.cmd")
    copy.write_text(text if text.endswith("\n") else text + "\n", errors="surrogateescape")
    copy.chmod(0o700)


def read_command_file(name, stdin, spool):
    """Return the text of the file `name`, or of stdin for `-`, and what llsubmit says about it."""
    if name != "-":
        try:
            return Path(name).read_text(errors="surrogateescape"), ""
        except OSError as error:
            raise jcf.RefusedError(f"cannot read {name}: {error.strerror}") from error
    path = spool.directory / f"loadlx_stdin.{os.getpid()}"
    text = stdin.buffer.read().decode(errors="surrogateescape")
    path.write_text(text, errors="surrogateescape")
    return text, messages.FROM_STDIN.format(path=path)
