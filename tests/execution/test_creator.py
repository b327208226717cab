"""A queue is emptied while its creator fills it, and however the creator ends, nothing hangs."""

import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import warnings
from types import SimpleNamespace

import pytest

from daskspace.execution import creator as module
from daskspace.execution.creator import NotLoaded, drained, is_queue, let_go

FORK = multiprocessing.get_context("fork")
PATIENCE_S = 30
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork")


def operation_of(fill, size=4):
    processes = FORK.Queue(size)
    creator = FORK.Process(target=fill, args=(processes,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        creator.start()
    return SimpleNamespace(processes=processes, create_process=creator)


def drain(operation):
    return list(drained(operation, lambda: False))


class Torn:
    """Kills its creator while it is written to the queue."""

    def __reduce__(self):
        return bytes, (b"x" * 2**20,)


def fill_well(processes):
    for n in range(50):
        processes.put(n)
    processes.put(False)


def fill_and_die_while_writing(processes):
    processes.put(1)
    processes.put(Torn())
    time.sleep(0.5)  # the pipe holds 64 KiB of it, as long as nobody reads
    os.kill(os.getpid(), signal.SIGKILL)


def fill_without_end(processes):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        processes.put(0)
        time.sleep(0.001)


class Unloadable:
    def __reduce__(self):
        return _fail, ()


def _fail():
    raise ImportError("not here")


def fill_with_one_that_cannot_be_loaded(processes):
    for process in (1, Unloadable(), 2, False):
        processes.put(process)


def test_what_is_got_and_not_iterated_over_is_a_queue():
    assert is_queue(queue.Queue())
    assert is_queue(FORK.Queue())
    assert not is_queue([])
    assert not is_queue({})


def test_a_short_queue_is_emptied_while_it_is_filled():
    operation = operation_of(fill_well)
    assert drain(operation) == list(range(50))
    assert let_go(operation) is None
    assert let_go(operation) is None


def test_half_a_process_from_a_killed_creator_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "_STUCK_S", 1.0)
    operation = operation_of(fill_and_die_while_writing)
    operation.create_process.join(PATIENCE_S)
    got = []
    with pytest.raises(RuntimeError, match=r"exit code -9\) without the False"):
        got.extend(iter(drained(operation, lambda: False)))
    let_go(operation)


def test_a_process_that_cannot_be_loaded_costs_no_other():
    first, broken, last = drain(operation_of(fill_with_one_that_cannot_be_loaded))
    assert (first, last) == (1, 2)
    assert isinstance(broken, NotLoaded)
    with pytest.raises(RuntimeError, match="when it came from the queue: ImportError: not here"):
        broken()


def test_a_creator_that_never_ends_is_ended():
    operation = operation_of(fill_without_end)
    began = time.monotonic()
    assert "was ended" in let_go(operation)
    assert time.monotonic() - began < PATIENCE_S
    assert operation.create_process.exitcode == -signal.SIGKILL


def test_an_empty_queue_that_nobody_is_known_to_fill_is_waited_for_only_so_long():
    operation = SimpleNamespace(processes=queue.Queue(), create_process=None, queue_timeout=0.3)
    with pytest.raises(RuntimeError, match=r"nothing has come .* for 0.3 s, and there is no"):
        drain(operation)


def test_the_time_counts_from_the_last_process_that_came():
    operation = SimpleNamespace(processes=queue.Queue(), queue_timeout=1.5)

    def fill():
        for n in range(4):
            time.sleep(0.5)
            operation.processes.put(n)
        operation.processes.put(False)

    threading.Thread(target=fill, daemon=True).start()
    assert drain(operation) == [0, 1, 2, 3]


@pytest.mark.parametrize("failure", ["stage_in", "nothing", "interrupt"])
def test_a_program_can_end_whatever_failed(tmp_path, failure):
    """Its creator waits for room in a queue that nobody empties."""
    program = f"""
import functools, multiprocessing, os, signal
from types import SimpleNamespace
from daskspace import create_backend

def fill(processes):
    for n in range(1000):
        processes.put(functools.partial(os.kill, parent, signal.SIGINT))
    processes.put(False)

parent = os.getpid()
fork = multiprocessing.get_context("fork")
processes = fork.Queue(4)
creator = fork.Process(target=fill, args=(processes,))
creator.start()
directory = "/dev/null/below" if {failure!r} == "stage_in" else "results"
operation = SimpleNamespace(processes=processes, create_process=creator,
                            result_directory=directory, consolidate=print)
backend = create_backend("serial")
backend.stage_in(operation)
if {failure!r} == "interrupt":
    backend.execute()
raise SystemExit("not executed")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    word = {"stage_in": "cannot be used", "interrupt": "KeyboardInterrupt"}
    assert word.get(failure, "not executed") in ran.stderr
