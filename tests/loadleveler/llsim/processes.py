"""The processes of a step: started in a session of their own, found again, signalled."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path


class StartError(Exception):
    """The step cannot be started; the message says why."""


def command(step, spool):
    """Return the argument list that runs `step`.

    Without `executable` that is the spooled copy of the job command file: by its own first line,
    else by `shell`, else by the login shell.
    """
    if step["executable"]:
        return [step["executable"], *step["keywords"].get("arguments", "").split()]
    copy = spool.directory / "jobs" / f"{step['job']}.cmd"
    if copy.read_bytes()[:2] == b"#!":
        return [str(copy)]
    return [step["keywords"].get("shell") or step["shell"], str(copy)]


def environment(step, spool):
    """Return the environment of `step`: what was set up for it, and LoadLeveler's own variables."""
    hosts = spool.directory / "jobs" / f"{step['id']}.hosts"
    hosts.write_text("".join(f"{host}\n" for host in step["hosts"]))
    return {
        **json.loads((spool.directory / "jobs" / f"{step['id']}.env").read_text()),
        "LLSIM_SPOOL": str(spool.directory),
        "LOADLBATCH": "yes",
        "LOADL_STEP_ID": step["id"],
        "LOADL_JOB_NAME": step["job_name"],
        "LOADL_STEP_NAME": step["step_name"],
        "LOADL_STEP_CLASS": step["class"],
        "LOADL_STEP_INITDIR": step["directory"],
        "LOADL_TOTAL_TASKS": str(len(step["hosts"])),
        "LOADL_PROCESSOR_LIST": " ".join(step["hosts"]),
        "LOADL_HOSTFILE": str(hosts),
    }


def start(step, spool, lagging=None):
    """Start `step` and return its Popen, or raise StartError.

    With `lagging`, a directory, its output is collected there.
    """
    try:
        paths = [os.path.join(step["directory"], step[name]) for name in ("output", "error")]
        if lagging:
            paths = [str(lagging / name) for name in ("output", "error")]
        with (
            open(os.path.join(step["directory"], step["input"]), "rb") as stdin,
            open(paths[0], "wb", buffering=0) as stdout,
            open(paths[1], "ab" if paths[0] == paths[1] else "wb", buffering=0) as stderr,
        ):
            same = os.path.samestat(os.fstat(stdout.fileno()), os.fstat(stderr.fileno()))
            return subprocess.Popen(
                command(step, spool),
                stdin=stdin,
                stdout=stdout,
                stderr=stdout if same else stderr,
                cwd=step["directory"],
                env=environment(step, spool),
                start_new_session=True,
                restore_signals=True,
            )
    except OSError as error:
        raise StartError(str(error)) from error


def members(step, spool):
    """Return the processes that are left of `step`, also those that have left its session."""
    marks = {f"LLSIM_SPOOL={spool.directory}".encode(), f"LOADL_STEP_ID={step['id']}".encode()}
    return [
        pid
        for pid, (session, state) in _processes().items()
        if state != "Z" and (session == step["pid"] or marks <= _environ(pid))
    ]


def kill_all(spool):
    """Kill what is left of any step of this spool, also of steps that nobody knows of any more."""
    mark = f"LLSIM_SPOOL={spool.directory}".encode()
    for _ in range(20):
        left = [
            pid
            for pid, (_, state) in _processes().items()
            if state != "Z"
            and mark in (environ := _environ(pid))
            and any(entry.startswith(b"LOADL_STEP_ID=") for entry in environ)
        ]
        if not left:
            return
        for pid in left:
            _ignore_gone(os.kill, pid, signal.SIGKILL)


def is_alive(pid):
    """Say whether `pid` is there and no zombie."""
    return _processes([pid]).get(pid, (0, "Z"))[1] != "Z"


def signal_step(step, number):
    """Send a signal to the process group of `step`."""
    if step["pid"]:
        _ignore_gone(os.killpg, step["pid"], number)


def kill_step(step, spool):
    """Kill all that is left of `step`; what forks meanwhile is found in the next round."""
    for _ in range(20):
        left = members(step, spool)
        if not left:
            return
        for pid in left:
            _ignore_gone(os.kill, pid, signal.SIGKILL)
        time.sleep(0.005)


def _ignore_gone(call, *arguments):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        call(*arguments)


def _processes(pids=None):
    found = {}
    for entry in pids if pids is not None else filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
        except (OSError, UnicodeDecodeError):
            continue
        found[int(entry)] = (int(fields[3]), fields[0])
    return found


def _environ(pid):
    try:
        return set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return set()
