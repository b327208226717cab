"""One MPI job: a launcher, a child of this process, and the ranks below it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import psutil

_LOG_BYTES = 200_000
_TAIL_LINES = 15
_TERM_S = 1.5
_KILL_S = 1.0
_LOOK_S = 0.02

# The launcher is asked to end when the thread that started it is gone, however that happens.
_TIED = (
    "import ctypes, os, sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)\n"
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])"
)


class MpiJob:
    """Starts a launcher; the job ends with the thread that has started it, if not before.

    What it and its ranks write goes to a file without a name, so that nothing is left on the disk
    however this program ends.

    Parameters
    ----------
    command : sequence of str
        The launcher and its arguments.
    environment : mapping
        The launcher's environment.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._ranks: set[psutil.Process] = set()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `kill`
        self._log_at_end = ""
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid()), *command],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # Ctrl-C in a terminal is this program's to handle
        )

    @property
    def pid(self) -> int:
        """The process number of the launcher."""
        return self._process.pid

    def exit_status(self) -> int | None:
        """Return the launcher's exit status, None while it runs."""
        return self._process.poll()

    def note_ranks(self) -> None:
        """Remember what runs below the launcher, for ranks may outlive it."""
        with contextlib.suppress(psutil.Error):
            self._ranks.update(psutil.Process(self.pid).children(recursive=True))

    def has_ended(self) -> bool:
        """Return whether the launcher and all ranks of this host that were noted are gone."""
        return self.exit_status() is not None and not any(map(_runs, self._ranks))

    def log(self) -> str:
        """Return what launcher and ranks have written, of a long log the end."""
        if self._log.closed:
            return self._log_at_end
        size = os.fstat(self._log.fileno()).st_size
        # with an offset: ours is the writers' as well
        text = os.pread(self._log.fileno(), _LOG_BYTES, max(size - _LOG_BYTES, 0))
        return text.decode("utf-8", "replace")

    def tail(self) -> str:
        """Return the last lines of the log."""
        return "\n".join([line for line in self.log().splitlines() if line.strip()][-_TAIL_LINES:])

    def kill(self) -> None:
        """End what is left of it: SIGTERM for the launcher, which passes it on, then SIGKILL."""
        self.note_ranks()
        if not self.has_ended():
            self._process.terminate()
            self._wait(_TERM_S)
        left = [psutil.Process(self.pid)] if self.exit_status() is None else []
        for process in [*left, *filter(_runs, self._ranks)]:
            with contextlib.suppress(psutil.Error):
                left += process.children(recursive=True)
            left.append(process)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._wait(_KILL_S)
        self._log_at_end = self.log()
        self._log.close()

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.has_ended() and time.monotonic() < until:
            time.sleep(_LOOK_S)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
