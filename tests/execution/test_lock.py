"""Who may write to a result directory."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from daskspace import DirectoryError
from daskspace.execution.lock import Lock, holder

HOLD = """
import pathlib, sys, time
from daskspace.execution.lock import Lock
lock = Lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(100)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.lock"


@pytest.fixture
def lock(path):
    lock = Lock(path)
    yield lock
    lock.release()


@contextlib.contextmanager
def other_process(path):
    """Another process that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def is_free(path):
    Lock(path).release()
    return holder(path) is None


def test_a_lock_tells_who_holds_it(lock, path):
    assert lock.is_held
    told = holder(path)
    assert (told["host"], told["pid"]) == (socket.gethostname(), os.getpid())
    assert json.loads(path.read_text()) == told


def test_a_second_lock_in_the_same_process_is_refused(lock, path):
    words = rf"{path.parent} is in use by process {os.getpid()} on {socket.gethostname()}, since "
    with pytest.raises(DirectoryError, match=words):
        Lock(path)
    assert holder(path)["pid"] == os.getpid()


def test_a_lock_of_another_process_is_refused_until_that_is_killed(path):
    with other_process(path) as process:
        words = f"in use by process {process.pid} on {socket.gethostname()}, since "
        with pytest.raises(DirectoryError, match=words):
            Lock(path)
        assert holder(path)["pid"] == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert holder(path) is None
        assert is_free(path)


def test_a_released_lock_is_free(lock, path):
    lock.release()
    lock.release()
    assert not lock.is_held
    assert path.exists()
    assert is_free(path)


def test_a_lock_that_was_refused_leaves_no_open_file(lock, path):
    before = os.listdir("/proc/self/fd")
    with pytest.raises(DirectoryError):
        Lock(path)
    holder(path)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_who_looks_for_the_holder_does_not_take_the_lock_away(lock, path):
    for _ in range(3):
        holder(path)
    with pytest.raises(DirectoryError):
        Lock(path)


def test_who_looks_for_the_holder_keeps_nobody_out(path):
    Lock(path).release()
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        timer = threading.Timer(0.05, fcntl.flock, (file, fcntl.LOCK_UN))
        timer.start()
        assert is_free(path)
        timer.join()


def test_nobody_holds_a_lock_that_was_never_made(path):
    assert holder(path) is None
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "garbage", "[1]", '{"pid": 1}', "\x00" * 100, "[" * 4096])
def test_a_lock_that_does_not_tell_who_holds_it_is_refused_all_the_same(lock, path, text):
    path.write_text(text)
    with pytest.raises(DirectoryError, match="is in use by another process: wait"):
        Lock(path)
    assert holder(path) == {}


def test_what_a_killed_holder_left_is_replaced(path):
    path.write_text("x" * 10_000)
    lock = Lock(path)
    assert holder(path)["pid"] == os.getpid()
    lock.release()


def test_a_program_that_was_started_does_not_keep_the_lock(lock, path):
    command = [sys.executable, "-c", "import time; time.sleep(100)"]
    with subprocess.Popen(command, close_fds=False) as process:
        lock.release()
        assert is_free(path)
        process.kill()


def test_a_fork_leaves_the_lock_to_its_owner(path):
    program = """
import os, pathlib, sys
from daskspace.execution.lock import Lock, holder
path = pathlib.Path(sys.argv[1])
lock = Lock(path)
if os.fork() == 0:
    lock.release()
    os._exit(0)
os.wait()
print(holder(path)["pid"] == os.getpid())
"""
    command = [sys.executable, "-c", program, str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "True\n"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_without_locks_the_work_goes_on(path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    lock = Lock(path)
    assert not lock.is_held
    assert holder(path) is None
    lock.release()


def test_a_lock_that_cannot_be_made_says_why(tmp_path):
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "absent" / "journal.lock")


def test_a_refusal_comes_soon(lock, path):
    began = time.monotonic()
    with pytest.raises(DirectoryError):
        Lock(path)
    assert time.monotonic() - began < 5
