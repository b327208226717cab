"""Run daemons that must not outlive a test run, however it ends.

``python guard.py`` starts each command line that it reads as a line of JSON. At the end of its
standard input, which also comes when the writer is killed, it kills them and all that they left:
as their subreaper it is the parent of whatever detaches itself, batch jobs included.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36


class Guard:
    """A guard process, and the daemons that it has started.

    Neither is a child of this process: there are tests that look at all of its children.
    """

    def __init__(self, directory):
        self.directory = Path(directory)
        with open(self.directory / "guard.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._process.wait(timeout=60)

    def start(self, *argv, **environment):
        """Start a daemon in this environment, with a log in the directory, named after it."""
        taken = sorted(path.name for path in self.directory.glob("*.log"))
        log = self.directory / f"{len(taken)}-{Path(argv[0]).name}.log"
        log.touch()
        request = {"argv": argv, "log": str(log), "env": {"PATH": os.environ["PATH"]} | environment}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def stop(self):
        """Kill what was started, and wait until nothing is left of it; harmless when repeated."""
        if self._process.stdin.closed:
            return
        self._process.stdin.close()
        with self._process.stdout as answer:
            if answer.read() != b"gone":
                raise RuntimeError((self.directory / "guard.log").read_text())


def main():
    if os.fork():
        os._exit(0)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(kill_all()))
    try:
        serve(psutil.Process(int(sys.argv[1])))
    except Exception:
        traceback.print_exc()
        sys.exit(kill_all())
    if not kill_all():
        print("gone", end="", flush=True)


def serve(client):
    pending = b""
    while client.is_running():
        if select.select([0], [], [], 0.5)[0]:
            read = os.read(0, 65536)
            if not read:
                return
            *requests, pending = (pending + read).split(b"\n")
            for request in map(json.loads, requests):
                start(**request)
        reap()


def start(argv, log, env):
    with open(log, "ab") as file:
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=env,
            start_new_session=True,
        )


def kill_all(seconds=50):
    """Return the number of processes that could not be killed."""
    until = time.monotonic() + seconds
    while children := psutil.Process().children(recursive=True):
        if time.monotonic() > until:
            print("still there:", children, file=sys.stderr)
            return len(children)
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        time.sleep(0.02)
        reap()
    return 0


def reap():
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


if __name__ == "__main__":
    main()
