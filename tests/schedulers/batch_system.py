"""A batch system whose daemons belong to one test run."""

import contextlib
import os
import random
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

import psutil

from .guard import Guard


class BatchSystem(ABC):
    """Is up once it is made, and down at the end of ``with``.

    Whatever ends this program ends daemons and jobs as well.

    Parameters
    ----------
    path : path-like
        An empty directory for all that it writes.
    environment : dict
        What its commands need to find it.
    """

    def __init__(self, path, environment):
        self.path, self.environment = Path(path), environment
        self._configure()
        self._guard = Guard(self.path)
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    @abstractmethod
    def _configure(self):
        """Write the files that its daemons read."""

    @abstractmethod
    def _start(self):
        """Start daemons, and wait until jobs can run."""

    def run(self, *argv, timeout_s=60):
        """Run one of its commands, and return its standard output without blanks around it."""
        ran = self.ran(*argv, timeout_s=timeout_s)
        if ran.returncode:
            raise RuntimeError(f"{argv}: {ran.returncode}\n{ran.stdout}{ran.stderr}\n{self.logs()}")
        return ran.stdout.strip()

    def ran(self, *argv, timeout_s=60):
        """Run one of its commands, which may fail."""
        return subprocess.run(
            argv,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )

    def use(self, monkeypatch):
        """Make the commands that this program runs find it, for the time of one test."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def start(self, *argv, **environment):
        """Start a daemon that ends with this program."""
        self._guard.start(*argv, **environment)

    def wait_until(self, is_true, what, seconds=60):
        """Wait for a condition, or fail with the logs."""
        until = time.monotonic() + seconds
        while not is_true():
            if time.monotonic() > until:
                raise RuntimeError(f"waited {seconds} s for {what}\n{self.logs()}")
            time.sleep(0.1)

    def logs(self, lines=15):
        """Return the last lines of each log."""
        tails = []
        for path in sorted({*self.path.rglob("*.log"), *self.path.rglob("messages")}):
            last = path.read_text(errors="replace").splitlines()[-lines:]
            tails.append("\n".join([f"--- {path}", *last]))
        return "\n".join(tails)

    def stop(self):
        """Kill daemons and jobs; harmless when repeated."""
        self._guard.stop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def processes_of(environment):
    """Return the processes that have a batch system's environment: daemons, and jobs."""
    name, value = next(iter(environment.items()))
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value and process.pid != os.getpid():
                found.append(process)
    return found


def free_ports(count):
    """Return ports that are free, below those that the system hands out by itself."""
    found = []
    for port in random.sample(range(15000, 30000), 1000):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")
