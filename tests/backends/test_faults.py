"""Whatever a process does to its interpreter, it harms nobody but itself, and nothing hangs.

The functions that processes run are closures, so that they travel by value. Those that break
something import what they need themselves.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import cloudpickle
import psutil
import pytest

from daskspace import ConfigError, OperationError, create_backend, operation
from daskspace.backends.options import take_options
from daskspace.execution import dispatch
from daskspace.execution.journal import read_journal

from ..clusters.launchers import launcher_of  # noqa: TID252 - shared by two rooms
from .backends_under_test import commands_backend

MARK = "DASKSPACE_TEST_FAULTS"
"""A variable that everything has which these tests start, however far it goes away."""

NAMES = ("serial", "mcore", "mpi", "openmpi")
EACH = [pytest.param(name, marks=pytest.mark.xdist_group(f"faults of {name}")) for name in NAMES]
DEADLINE = 90
HOST_PROGRAM = "daskspace.execution.host"

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and subreapers")
pytestmark = [pytest.mark.timeout(DEADLINE), linux_only]
cloudpickle.register_pickle_by_value(sys.modules[__name__])


# What the tests use


@pytest.fixture(scope="module", autouse=True)
def mark():
    """Mark what is started, and see at the end that nothing of it is left."""
    value = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, value)
        yield value
        left = eventually(lambda: [p for p in marked(value) if not is_tracker(p)], [])
        assert not left, describe(left)


@pytest.fixture(scope="module", params=EACH)
def warm(request, mark):
    with warm_backend(request.param) as backend:
        yield backend


@pytest.fixture(scope="module")
def warm_mcore(mark):
    with warm_backend("mcore") as backend:
        yield backend


def warm_backend(name):
    return create_backend(isolation="process", **kind(name))


def kind(name):
    if name == "openmpi":
        return {"backend_type": "mpi", "n_workers": 2, "launcher": launcher_of(name)}
    return {"backend_type": name, **({} if name == "serial" else {"n_workers": 2})}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def backend(warm, here, mark):
    yield warm
    warm.cleanup()
    no_strays(mark)


@pytest.fixture
def mcore(warm_mcore, here, mark):
    if warm_mcore.client is not None:  # a worker that the last test cost is on its way
        wait_for(lambda: len(warm_mcore.client.nthreads()) == 2)
    yield warm_mcore
    warm_mcore.cleanup()
    no_strays(mark)


@pytest.fixture(params=EACH)
def name(request, here, mark):
    """The name of a backend, for tests that open one of their own."""
    yield request.param
    no_strays(mark)


def run(backend, op, timeout=None, **options):
    """Run an operation with options; the cluster, whose start takes seconds, is kept."""
    backend._run_options = take_options({"isolation": "process", **options}, "process")
    return backend.run(op, timeout)


def states(op):
    return dict(Counter(row["state"] for row in op.rows()))


def entries(op):
    """The outcomes as they are in the journal, with the fields that tables do not show."""
    path = Path(op.result_directory, "journal.jsonl")
    return {e["process"]: e for _, e in read_journal(path) if "state" in e}


def lines_of(op):
    """How many outcomes the journal has of each process."""
    path = Path(op.result_directory, "journal.jsonl")
    return Counter(e["process"] for _, e in read_journal(path) if "state" in e)


def end_of(op):
    path = Path(op.result_directory, "journal.jsonl")
    return next(e["end"] for _, e in read_journal(path) if "end" in e)


def log_of(op, process):
    return Path(op.result_directory, entries(op)[process]["log"]).read_text("utf-8", "replace")


def note(path, text):
    """Append a line to a file, which several processes do at the same time."""
    import os

    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def noted(path):
    path = Path(path)
    return path.read_text().split() if path.exists() else []


def eventually(ask, wanted, within=20):
    """Ask until the answer is as wanted; return the last one."""
    deadline = time.monotonic() + within
    while (answer := ask()) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return answer


def wait_for(ask, within=30):
    deadline = time.monotonic() + within
    while not ask():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def marked(value):
    """Everything that these tests have started and that runs, but not this process."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == value:
                found.append(process)
    return found


def command_of(process):
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def is_host(process):
    return HOST_PROGRAM in command_of(process)


def is_tracker(process):
    return "resource_tracker" in command_of(process)


def strays(value):
    """What belongs neither to a cluster nor is a host, or the one child that a host keeps."""
    found = {process.pid: process for process in marked(value)}
    parents = {}
    for pid, process in found.items():
        with contextlib.suppress(psutil.Error):
            parents[pid] = process.ppid()
    hosts = {pid for pid, process in found.items() if is_host(process)}
    hosts -= {pid for pid in hosts if parents.get(pid) in hosts}  # forks of a host

    def belongs(pid):
        parent = parents.get(pid)
        if pid in hosts:
            return parent == os.getpid() or (parent in found and parent not in hosts)
        if parent in hosts:
            return is_host(found[pid]) and sum(p == parent for p in parents.values()) == 1
        return parent == os.getpid() or (parent in found and belongs(parent) and not below(parent))

    def below(pid):
        """Whether a process is a host, or below one."""
        while pid in found:
            if pid in hosts:
                return True
            pid = parents.get(pid)
        return False

    return [process for pid, process in found.items() if pid in parents and not belongs(pid)]


def no_strays(value):
    left = eventually(lambda: strays(value), [])
    assert not left, describe(left)


def describe(processes):
    return [f"{p.pid} (parent {p.ppid()}): {command_of(p)[:200]}" for p in processes]


def worker_pids(backend):
    if backend.default_isolation != "none" and backend.client is None:
        run(backend, operation([int]))  # which opens the cluster
    return set(backend.client.run(os.getpid).values()) if backend.client else {os.getpid()}


def host_pids(backend):
    """The hosts, and not the children that they keep."""
    return {
        child.pid
        for pid in worker_pids(backend)
        for child in psutil.Process(pid).children()
        if is_host(child)
    }


# What a process can do to itself


def faults():
    """For each fault the function that commits it, the state, and what the outcome tells."""
    import asyncio
    import ctypes
    import faulthandler
    import shutil
    import tempfile

    class Picky(Exception):
        def __init__(self, first, *, second):
            super().__init__(f"{first} and {second}")

    class Silent(Exception):
        def __str__(self):
            raise RuntimeError("no text")

    class Exits(Exception):
        def __str__(self):
            sys.exit(4)

    class Hostile(Exception):
        def __reduce__(self):
            return os._exit, (5,)

    class Holder(Exception):
        def __init__(self):
            super().__init__("held")
            self.lock = threading.Lock()

    class Chameleon(dict):
        def items(self):
            raise SystemExit(6)

        keys = __iter__ = items

    def throw(error):
        def fault():
            raise error

        return fault

    def chained():
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise KeyError("k") from error

    def deep(n=0):
        return deep(n + 1)

    def deep_pickle():
        made = []
        for _ in range(100_000):
            made = [made]
        return {"deep": made}

    def segfault():
        ctypes.string_at(0)

    def signalled(number):
        def fault():
            os.kill(os.getpid(), number)
            time.sleep(60)

        return fault

    def exit_in_thread():
        threading.Thread(target=os._exit, args=(7,)).start()
        time.sleep(60)

    def close_descriptors():
        os.closerange(0, 4096)

    def swap_descriptors():
        # whatever we write there is taken, and whatever we read there never comes
        globals()["kept"] = one, other = socket.socketpair()
        for number in range(3, 100):
            if number not in (one.fileno(), other.fileno()):
                os.dup2(one.fileno(), number)

    def kill_group():
        os.killpg(os.getpgrp(), signal.SIGKILL)
        time.sleep(60)

    def close_output():
        sys.stdout.close()
        sys.stderr.close()
        os.close(1)
        os.close(2)
        return 1

    def deleted_directory():
        place = tempfile.mkdtemp()
        os.chdir(place)
        shutil.rmtree(place)
        return 1

    def ringing():
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        return 1

    def rings():
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        time.sleep(60)

    def deaf():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_IGN)
        return 1

    def child_handled():
        signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, os.WNOHANG))
        subprocess.run(["true"], check=False)
        return 1

    def dumped():
        faulthandler._sigsegv()

    failed, crashed, done = "failed", "crashed", "done"
    return {
        "ValueError": (throw(ValueError("bad")), failed, "ValueError"),
        "chained": (chained, failed, "KeyError"),
        "needs arguments": (throw(Picky("one", second="two")), failed, "Picky"),
        "no text": (throw(Silent()), failed, "Silent"),
        "exits in its text": (throw(Exits()), failed, "Exits"),
        "hostile pickle": (throw(Hostile("h")), failed, "Hostile"),
        "holds a lock": (throw(Holder()), failed, "Holder"),
        "group": (throw(ExceptionGroup("g", [ValueError(1)])), failed, "ExceptionGroup"),
        "base group": (
            throw(BaseExceptionGroup("g", [SystemExit(1)])),
            failed,
            "BaseExceptionGroup",
        ),
        "StopIteration": (throw(StopIteration(1)), failed, "StopIteration"),
        "CancelledError": (throw(asyncio.CancelledError()), failed, "CancelledError"),
        "GeneratorExit": (throw(GeneratorExit()), failed, "GeneratorExit"),
        "SystemExit": (throw(SystemExit()), failed, "SystemExit"),
        "sys.exit(3)": (lambda: sys.exit(3), failed, "SystemExit"),
        "KeyboardInterrupt": (throw(KeyboardInterrupt()), failed, "KeyboardInterrupt"),
        "MemoryError": (throw(MemoryError()), failed, "MemoryError"),
        "surrogates": (throw(ValueError("\ud800\x00\n")), failed, "ValueError"),
        "huge message": (lambda: throw(ValueError("x" * 50_000_000))(), failed, "ValueError"),
        "deep recursion": (deep, failed, "RecursionError"),
        "unpicklable result": (lambda: {"lock": threading.Lock()}, failed, "TypeError"),
        "generator result": (lambda: (x for x in "ab"), failed, "TypeError"),
        "huge result": (lambda: {"big": "x" * 50_000_000}, failed, "ValueError"),
        "deep result": (deep_pickle, failed, "TypeError"),
        "result that exits": (lambda: Chameleon(a=1), failed, "SystemExit"),
        "SIGINT": (signalled(signal.SIGINT), failed, "KeyboardInterrupt"),
        "os._exit(0)": (lambda: os._exit(0), crashed, "Exit"),
        "os._exit(3)": (lambda: os._exit(3), crashed, "Exit"),
        "segfault": (segfault, crashed, "SIGSEGV"),
        "faulthandler": (dumped, crashed, "SIGSEGV"),
        "SIGSEGV": (signalled(signal.SIGSEGV), crashed, "SIGSEGV"),
        "abort": (os.abort, crashed, "SIGABRT"),
        "SIGKILL": (signalled(signal.SIGKILL), crashed, "SIGKILL"),
        "SIGTERM": (signalled(signal.SIGTERM), crashed, "SIGTERM"),
        "SIGHUP": (signalled(signal.SIGHUP), crashed, "SIGHUP"),
        "real-time signal": (signalled(signal.SIGRTMIN + 3), crashed, None),
        "alarm": (rings, crashed, "SIGALRM"),
        "exit in a thread": (exit_in_thread, crashed, "Exit"),
        "closes all descriptors": (close_descriptors, crashed, None),
        "takes our descriptors": (swap_descriptors, crashed, None),
        "kills its group": (kill_group, crashed, "SIGKILL"),
        "closes its output": (close_output, done, None),
        "deleted directory": (deleted_directory, done, None),
        "alarm left ringing": (ringing, done, None),
        "ignores signals": (deaf, done, None),
        "handles its children": (child_handled, done, None),
    }


@pytest.mark.parametrize("isolation", ["process", "fresh"])
def test_every_fault_has_its_outcome_and_harms_no_neighbour(backend, tmp_path, isolation):
    workers, expected = worker_pids(backend), faults()
    kinds = [kind for fault in expected for kind in (fault, "good")]

    def job(kind, number):
        note(tmp_path / "runs", number)
        if kind != "good":
            return faults()[kind][0]()
        time.sleep(0.01)
        return {"sum": sum(range(number)), "written": (print(number), 1)[1]}

    settings = [{"kind": kind, "number": number} for number, kind in enumerate(kinds)]
    op = run(backend, operation(job, settings=settings), isolation=isolation)
    outcomes = entries(op)
    assert sorted(map(int, noted(tmp_path / "runs"))) == list(range(len(kinds)))
    assert lines_of(op) == dict.fromkeys(range(len(kinds)), 1)
    found = {
        kind: (outcomes[number]["state"], outcomes[number].get("error"))
        for number, kind in enumerate(kinds)
        if kind != "good"
    }
    wanted = {
        kind: (state or found[kind][0], error if state and error else found[kind][1])
        for kind, (_, state, error) in expected.items()
    }
    assert found == wanted
    for number, kind in enumerate(kinds):
        if kind == "good":
            assert outcomes[number]["state"] == "done", (kinds[number - 1], outcomes[number])
            assert outcomes[number]["metrics"]["sum"] == sum(range(number))
            assert log_of(op, number) == f"{number}\n"
    assert all(e.get("message") for e in outcomes.values() if e["state"] == "crashed")
    assert worker_pids(backend) == workers
    assert run(backend, operation([int] * 5)).rows()


def test_the_message_of_a_crash_tells_how_the_interpreter_ended(backend):
    def job(kind):
        return faults()[kind][0]()

    kinds = ["os._exit(3)", "segfault", "SIGKILL"]
    op = run(backend, operation(job, grid={"kind": kinds}))
    messages = [row["message"] for row in op.rows()]
    assert "exit code 3" in messages[0]
    assert "SIGSEGV" in messages[1]
    assert "memory" in messages[2]
    rows = entries(op)
    assert all(rows[n]["duration"] >= 0 and rows[n]["peak_memory"] > 0 for n in range(3))


def test_a_process_that_kills_its_host_is_lost_and_its_neighbours_are_not(backend, tmp_path):
    workers = worker_pids(backend)

    def job(x):
        note(tmp_path / "runs", x)
        if x == 3:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
        return x

    op = run(backend, operation(job, grid={"x": range(8)}))
    assert states(op) == {"done": 7, "lost": 1}
    assert op.rows()[3]["state"] == "lost"
    assert Counter(noted(tmp_path / "runs")) == {**{str(x): 1 for x in range(8)}, "3": 3}
    assert worker_pids(backend) == workers


def test_lost_retries_say_how_often_a_lost_process_is_run(backend, tmp_path):
    def job(x):
        note(tmp_path / "runs", x)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    op = run(backend, operation(job, grid={"x": [1]}), lost_retries=0)
    assert states(op) == {"lost": 1}
    assert noted(tmp_path / "runs") == ["1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV])
def test_a_host_that_is_ended_in_another_way_leaves_nothing(backend, tmp_path, number):
    def job(x):
        if x == 1:
            note(tmp_path / "runs", x)
            stranger = ["sh", "-c", "setsid sleep 555 & sleep 555"]
            subprocess.Popen(stranger, start_new_session=True)
            time.sleep(0.1)
            os.kill(os.getppid(), number)
            time.sleep(60)

    op = run(backend, operation(job, grid={"x": range(3)}), lost_retries=0)
    assert [row["state"] for row in op.rows()] == ["done", "lost", "done"]


# What a process can start


def strangers():
    """Programs that are left running, from the harmless to the malicious."""

    def child():
        subprocess.Popen(["sleep", "777"])

    def session():
        subprocess.Popen(["sleep", "777"], start_new_session=True, close_fds=False)

    def daemon():
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                time.sleep(777)
            os._exit(0)
        os.wait()

    def without_mark():
        subprocess.Popen(["sh", "-c", "setsid sleep 777 &"], env={"PATH": os.environ["PATH"]})

    def pool():
        import multiprocessing

        made = multiprocessing.get_context("fork").Pool(2)
        assert made.map(abs, [-1, -2]) == [1, 2]
        globals()["kept"] = made

    def breeding():
        if os.fork() == 0:
            os.setsid()
            until = time.monotonic() + 30
            while time.monotonic() < until:
                if os.fork() == 0:
                    time.sleep(20)
                    os._exit(0)
                time.sleep(0.01)
            os._exit(0)

    return {
        "child": child,
        "session": session,
        "daemon": daemon,
        "without mark": without_mark,
        "pool": pool,
        "breeding": breeding,
    }


def test_what_a_process_leaves_running_is_killed_when_it_ends(backend, here):
    kinds = [kind for stranger in strangers() for kind in (stranger, "next")]

    def job(kind, number):
        if kind != "next":
            strangers()[kind]()
        note(here / "pids", f"{number}:{os.getpid()}")

    settings = [{"kind": kind, "number": number} for number, kind in enumerate(kinds)]
    before = sleepers()
    op = run(backend, operation(job, settings=settings))
    assert states(op) == {"done": len(kinds)}
    pids = dict(line.split(":") for line in noted(here / "pids"))
    assert len(pids) == len(kinds)
    unclean = [pids[str(n)] for n, kind in enumerate(kinds) if kind != "next"]
    assert len(set(unclean)) == len(unclean), "the next process got the same interpreter"
    assert eventually(lambda: sleepers() - before, set()) == set()


def sleepers():
    """Programs that have no mark, told by their argument."""
    return {p.pid for p in psutil.process_iter() if command_of(p).endswith("sleep 777")}


@pytest.mark.parametrize("how", ["segfault", "ValueError"])
def test_what_a_process_left_running_is_killed_when_it_breaks(backend, how):
    before = sleepers()

    def job(kind):
        strangers()[kind]()
        return faults()[how][0]()

    op = run(backend, operation(job, grid={"kind": list(strangers())}))
    assert set(states(op)) == {"crashed" if how == "segfault" else "failed"}
    assert eventually(lambda: sleepers() - before, set()) == set()


def test_a_long_process_is_cleaned_up_after_as_a_short_one(backend, here):
    # longer than the budget of a batch
    def job(x):
        note(here / "pids", os.getpid())
        signal.setitimer(signal.ITIMER_REAL, 3)
        subprocess.Popen(["sleep", "777"])
        time.sleep(1.3)

    before = sleepers()
    op = run(backend, operation(job, grid={"x": range(3)}))
    assert states(op) == {"done": 3}
    assert len(set(noted(here / "pids"))) == 3
    assert eventually(lambda: sleepers() - before, set()) == set()


@pytest.mark.parametrize("how", ["returns", "raises", "exits", "late", "both late"])
def test_a_fork_that_comes_back_into_our_code_ends_there(backend, tmp_path, how):
    def job(x):
        note(tmp_path / "runs", x)
        if x % 4 != 2:
            return {"x": x}
        parent = os.getpid()
        if os.fork() == 0:
            if how == "raises":
                raise ValueError("in the fork")
            if how == "exits":
                sys.exit(3)
            if how in ("late", "both late"):
                time.sleep(0.3)
            return {"x": -1}
        if how in ("returns", "raises", "exits"):
            os.wait()
        if how == "both late":
            time.sleep(0.3)
        assert os.getpid() == parent
        return {"x": x}

    op = run(backend, operation(job, grid={"x": range(12)}))
    assert Counter(noted(tmp_path / "runs")) == {str(x): 1 for x in range(12)}
    assert [(row["state"], row["x"]) for row in op.rows()] == [("done", x) for x in range(12)]
    assert lines_of(op) == dict.fromkeys(range(12), 1)


@pytest.mark.parametrize("options", ["", ", isolation='none'", ", isolation='process'"])
def test_a_fork_in_a_program_does_not_run_the_program_twice(here, mark, options):
    program = f"""
import os, daskspace
def job(x):
    if x == 1 and os.fork() == 0:
        return -1
    return x
with daskspace.create_backend("serial"{options}) as backend:
    op = backend.run(daskspace.operation(job, grid={{"x": range(3)}}))
print("end", [row["value"] for row in op.rows()], flush=True)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stdout == "end [0, 1, 2]\n", ran.stderr
    no_strays(mark)


def test_multiprocessing_works_in_a_process(backend):
    def job(method):
        import multiprocessing

        with multiprocessing.get_context(method).Pool(2) as pool:
            return sum(pool.map(abs, range(-10, 0)))

    op = run(backend, operation(job, grid={"method": ["fork", "spawn"]}))
    assert [row["value"] for row in op.rows()] == [55, 55], op.rows()


def test_a_thread_that_a_process_leaves_behind_does_not_harm_the_next(backend):
    # "process" keeps the interpreter; a neighbour must not pay for what still runs in it
    def job(x):
        if x == 0:
            threading.Thread(target=lambda: (time.sleep(0.4), os._exit(9)), daemon=True).start()
            return
        time.sleep(0.25)

    op = run(backend, operation(job, grid={"x": range(8)}))
    assert states(op) == {"done": 8}


def test_threads_of_one_worker_do_not_harm_each_other(here, mark):
    with create_backend("mcore", n_workers=1, threads_per_worker=4) as backend:

        def job(x):
            note(here / "runs", x)
            time.sleep(0.05)
            if x % 3 == 1:
                faults()["segfault"][0]()
            if x == 5:
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(60)
            return {"parent": os.getppid()}

        op = run(backend, operation(job, grid={"x": range(24)}))
    wanted = {x: "crashed" if x % 3 == 1 else "lost" if x == 5 else "done" for x in range(24)}
    assert {row["process"]: row["state"] for row in op.rows()} == wanted
    assert Counter(noted(here / "runs")) == {str(x): 3 if x == 5 else 1 for x in range(24)}
    assert len({row["parent"] for row in op.rows() if row["parent"]}) >= 2
    no_strays(mark)


# Limits


def slow():
    """Ways not to end; an alarm ends all of them at last."""
    import ctypes

    def holds_the_gil():
        ctypes.PyDLL(None).sleep(60)

    def loops():
        while True:
            pass

    def ignores():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(60)

    def catches():
        def stubborn(*_):
            raise SystemExit

        signal.signal(signal.SIGTERM, stubborn)
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(60)

    def stopped():
        os.kill(os.getpid(), signal.SIGSTOP)

    def waits():
        subprocess.run(["sleep", "777"], start_new_session=True, check=False)

    return {f.__name__: f for f in (holds_the_gil, loops, ignores, catches, stopped, waits)}


def test_what_runs_too_long_is_stopped_whatever_it_does(backend, tmp_path):
    workers, before = worker_pids(backend), sleepers()
    kinds = [kind for way in slow() for kind in (way, "good")]

    def job(kind, number):
        note(tmp_path / "runs", number)
        return slow()[kind]() if kind != "good" else number

    settings = [{"kind": kind, "number": number} for number, kind in enumerate(kinds)]
    op = run(backend, operation(job, settings=settings), process_timeout=1.5)
    rows = op.rows()
    assert [row["state"] for row in rows] == ["timeout", "done"] * len(slow())
    assert {row["error"] for row in rows} == {"ProcessTimeout", None}
    assert all(1.4 < row["duration"] < 15 for row in rows if row["state"] == "timeout")
    assert Counter(noted(tmp_path / "runs")) == {str(n): 1 for n in range(len(kinds))}
    assert worker_pids(backend) == workers
    assert eventually(lambda: sleepers() - before, set()) == set()


def test_the_time_of_a_process_does_not_count_for_the_next(backend):
    op = run(backend, operation(sleep, grid={"x": range(8)}), process_timeout=2)
    assert states(op) == {"done": 8}


def sleep(x):
    time.sleep(0.4)


def test_a_process_that_is_stopped_may_clean_up(backend, tmp_path):
    def job(x):
        def clean(*_):
            note(tmp_path / "cleaned", x)
            sys.exit(0)

        signal.signal(signal.SIGTERM, clean)
        time.sleep(60)

    op = run(backend, operation(job, grid={"x": [1]}), process_timeout=1)
    assert states(op) == {"timeout": 1}
    assert noted(tmp_path / "cleaned") == ["1"]


def test_what_uses_too_much_memory_is_stopped(backend):
    kinds = ["good", "at once", "slowly", "in a program", "in forks", "good"]
    program = "a=[]\nwhile True: a.append(b'x' * 4_000_000); __import__('time').sleep(0.01)"

    def job(kind, number):
        kept = []
        if kind == "at once":
            import numpy

            kept.append(numpy.ones(200_000_000))
        elif kind == "slowly":
            for _ in range(500):
                kept.append(b"x" * 4_000_000)
                time.sleep(0.01)
        elif kind == "in a program":
            subprocess.run([sys.executable, "-c", program], check=True)
        elif kind == "in forks":
            for _ in range(4):
                if os.fork() == 0:
                    kept.append(b"x" * 120_000_000)
                    time.sleep(60)
                    os._exit(0)
            time.sleep(60)
        return len(kept)

    settings = [{"kind": kind, "number": number} for number, kind in enumerate(kinds)]
    op = run(backend, operation(job, settings=settings), process_memory="400 MB")
    rows = op.rows()
    assert [row["state"] for row in rows[::5]] == ["done", "done"]
    assert {row["error"] for row in rows[1:3]} <= {
        "MemoryError",
        "_ArrayMemoryError",
        "ProcessMemory",
    }
    assert all(row["state"] in ("failed", "crashed") for row in rows[1:5]), rows
    assert rows[4]["error"] == "ProcessMemory"
    assert "process_memory" in rows[4]["message"]


def test_memory_below_the_limit_is_at_a_processs_disposal(backend):
    def job(x):
        import numpy

        return float(numpy.ones(25_000_000).sum())

    op = run(backend, operation(job, grid={"x": range(6)}), process_memory="600 MB")
    assert states(op) == {"done": 6}


def test_memory_that_forks_share_counts_once(backend):
    # what is resident in each adds up to five times what is there
    def job(x):
        kept = b"x" * 200_000_000
        for _ in range(4):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
        time.sleep(1)
        return len(kept)

    op = run(backend, operation(job, grid={"x": [1]}), process_memory="500 MB")
    assert states(op) == {"done": 1}, op.rows()


def test_limits_hold_for_every_try_and_tries_for_every_limit(backend, tmp_path):
    def job(x):
        note(tmp_path / "runs", x)
        if len(noted(tmp_path / "runs")) < 3:
            time.sleep(60)

    op = run(backend, operation(job, grid={"x": [1]}), process_timeout=1, retries=2)
    assert states(op) == {"done": 1}
    assert len(noted(tmp_path / "runs")) == 3


# Retries


@pytest.mark.parametrize("how", ["ValueError", "segfault"])
@pytest.mark.parametrize("retries", [0, 2])
def test_retries_say_how_often_what_failed_or_crashed_is_run(backend, tmp_path, how, retries):
    def job(x):
        note(tmp_path / "runs", x)
        if x % 3 == 1:
            faults()[how][0]()

    op = run(backend, operation(job, grid={"x": range(6)}), retries=retries)
    assert states(op) == {"done": 4, "crashed" if how == "segfault" else "failed": 2}
    wanted = {str(x): 1 + retries * (x % 3 == 1) for x in range(6)}
    assert Counter(noted(tmp_path / "runs")) == wanted
    assert lines_of(op) == dict.fromkeys(range(6), 1)


@pytest.mark.parametrize("how", ["ValueError", "segfault"])
def test_a_process_that_succeeds_in_its_second_try_is_done(backend, tmp_path, how):
    def job(x, directory):
        note(tmp_path / "runs", x)
        tries = noted(tmp_path / "runs").count(str(x))
        (directory / f"try-{tries}").write_text("here")
        if x % 2 and tries == 1:
            faults()[how][0]()
        return {"tries": tries, "file": str(directory / f"try-{tries}")}

    op = run(backend, operation(job, grid={"x": range(4)}), retries=1)
    rows = op.rows()
    assert [(row["state"], row["tries"]) for row in rows] == [("done", 1), ("done", 2)] * 2
    for row, entry in zip(rows, entries(op).values(), strict=True):
        place = Path(op.result_directory, entries(op)[row["process"]]["directory"])
        assert {p.name for p in place.iterdir()} == {f"try-{row['tries']}", "outcome.json"}
        assert Path(row["file"]).read_text() == "here"
        assert entry["state"] == "done"
    assert len(list(Path(op.result_directory, "processes").iterdir())) == 4
    assert not Path(op.result_directory, ".attempts").exists()


def test_the_directory_of_a_process_that_crashed_is_kept(backend):
    def job(x, directory):
        (directory / "half").write_text("of it")
        os._exit(3)

    op = run(backend, operation(job, grid={"x": [1]}))
    (entry,) = entries(op).values()
    assert entry["state"] == "crashed"
    assert Path(op.result_directory, entry["directory"], "half").read_text() == "of it"


# Isolation


def pid_and_leak(x):
    leaked = os.environ.get("LEAKED")
    os.environ["LEAKED"] = "1"
    return {"pid": os.getpid(), "leaked": leaked}


def test_with_fresh_each_process_has_an_interpreter_of_its_own(backend):
    op = run(backend, operation(pid_and_leak, grid={"x": range(10)}), isolation="fresh")
    rows = op.rows()
    assert len({row["pid"] for row in rows}) == 10
    assert {row["leaked"] for row in rows} == {None}


def test_with_fresh_long_processes_have_interpreters_of_their_own_too(backend):
    def job(x):
        time.sleep(1.2)
        return pid_and_leak(x)

    op = run(backend, operation(job, grid={"x": range(4)}), isolation="fresh")
    rows = op.rows()
    assert len({row["pid"] for row in rows}) == 4
    assert {row["leaked"] for row in rows} == {None}


def test_with_process_healthy_interpreters_are_kept(backend):
    op = run(backend, operation(pid_and_leak, grid={"x": range(20)}))
    pids = {row["pid"] for row in op.rows()}
    assert len(pids) <= 2
    assert not pids & worker_pids(backend)


def test_what_one_operation_changes_ends_with_it(backend):
    run(backend, operation(pid_and_leak, grid={"x": range(4)}))
    op = run(backend, operation(pid_and_leak, grid={"x": range(4)}))
    first = [row for row in op.rows() if row["leaked"] is None]
    assert len(first) >= 1
    assert "LEAKED" not in os.environ


def test_with_none_processes_run_in_place(backend):
    op = run(backend, operation(pid_and_leak, grid={"x": range(4)}), isolation="none")
    try:
        assert {row["pid"] for row in op.rows()} <= worker_pids(backend)
    finally:
        os.environ.pop("LEAKED", None)
        if backend.client:
            backend.client.run(lambda: os.environ.pop("LEAKED", None))


def test_with_none_a_process_that_kills_its_worker_is_found_out(mcore, tmp_path):
    def job(x):
        note(tmp_path / "runs", x)
        if x == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)
        return x

    op = run(mcore, operation(job, grid={"x": range(12)}), isolation="none")
    assert states(op) == {"done": 11, "crashed": 1}
    assert op.rows()[4]["state"] == "crashed"
    runs = Counter(noted(tmp_path / "runs"))
    assert runs["4"] == 3
    assert all(runs[str(x)] <= 3 for x in range(12))


@pytest.mark.parametrize("limit", [{"process_timeout": 5}, {"process_memory": "1 GB"}])
def test_a_limit_without_isolation_is_refused(name, limit):
    with pytest.raises(ConfigError, match=next(iter(limit))):
        create_backend(isolation="none", **kind(name), **limit)


@pytest.mark.parametrize("limit", [{"process_timeout": 30}, {"process_memory": "1 GB"}])
def test_serial_isolates_where_there_is_a_limit(here, mark, limit):
    with create_backend("serial", **limit) as backend:
        op = backend.run(operation(pid_and_leak, grid={"x": range(3)}))
    assert os.getpid() not in {row["pid"] for row in op.rows()}
    with create_backend("serial") as backend:
        op = backend.run(operation(os.getpid, grid=None))
    assert op.rows()[0]["value"] == os.getpid()
    no_strays(mark)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("isolation", "proces"),
        ("process_timeout", 0),
        ("process_timeout", "soon"),
        ("process_memory", -1),
        ("process_memory", "much"),
        ("retries", -1),
        ("retries", 1.5),
        ("lost_retries", True),
        ("max_failures", 0),
        ("circuit_breaker", "x"),
        ("no_workers_timeout", 0),
    ],
)
def test_an_option_that_cannot_be_taken_is_refused(option, value):
    with pytest.raises(ConfigError, match=option):
        create_backend("serial", **{option: value})


def test_user_code_sees_no_socket_and_an_empty_standard_input(backend):
    def job(x):
        found = {}
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found[number] = os.readlink(f"/proc/self/fd/{number}")
        return {"fds": found, "read": sys.stdin.read(), "raw": os.read(0, 10).decode()}

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        op = run(backend, operation(job, grid={"x": range(3)}))
    for row in op.rows():
        assert row["state"] == "done", row
        assert not [where for where in row["fds"].values() if where.startswith("socket:")]
        assert (row["read"], row["raw"]) == ("", "")
        assert len(row["fds"]) < 15


def test_programs_that_a_process_starts_inherit_no_descriptor_of_ours(backend):
    def job(x):
        ran = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, check=True)
        return len(ran.stdout.split())

    op = run(backend, operation(job, grid={"x": [1]}))
    assert op.rows()[0]["value"] <= 4


def test_signals_and_masks_are_as_in_a_program_of_its_own(backend):
    def ignored():
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"SigIgn:\s*(\w+)", status)[1], 16)

    def job(x):
        blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM, signal.SIGHUP)
        handlers = [getattr(h, "__name__", h) for h in map(signal.getsignal, numbers)]
        return {"blocked": blocked, "handlers": handlers, "ignored": ignored()}

    op = run(backend, operation(job, grid={"x": [1]}))
    (row,) = op.rows()
    assert row["blocked"] == []
    assert row["handlers"] == ["default_int_handler", 0, 0, 0, 0]
    python_ignores = (1 << signal.SIGPIPE - 1) | (1 << signal.SIGXFSZ - 1)
    assert row["ignored"] & ~(python_ignores | ignored()) == 0


def test_signal_handlers_can_be_set_for_a_process_runs_in_the_main_thread(backend):
    def job(x):
        rung = []
        signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(0.3)
        return {"rung": len(rung), "main": threading.current_thread() is threading.main_thread()}

    (row,) = run(backend, operation(job, grid={"x": [1]})).rows()
    assert (row["rung"], row["main"]) == (1, True)


THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@pytest.mark.parametrize("given", [None, "3"])
def test_numeric_libraries_use_one_thread_unless_it_was_said(name, monkeypatch, given):
    for variable in THREADS:
        monkeypatch.delenv(variable, raising=False)
        if given is not None:
            monkeypatch.setenv(variable, given)

    def job(x):
        return {variable: os.environ.get(variable) for variable in THREADS}

    with warm_backend(name) as backend:
        (row,) = backend.run(operation(job, grid={"x": [1]})).rows()
    assert {row[variable] for variable in THREADS} == {given or "1"}


# Output


def test_a_crash_leaves_its_last_words_in_its_log_and_outcome(backend):
    def job(kind):
        import faulthandler

        print("printed before")
        subprocess.run(["sh", "-c", "echo from a program; echo to stderr >&2"], check=True)
        os.write(2, b"raw bytes\n")
        if kind == "segfault":
            faulthandler._sigsegv()
        if kind == "fails":
            raise ValueError("at last")
        os._exit(3)

    kinds = ["segfault", "exits", "fails"]
    op = run(backend, operation(job, grid={"kind": kinds}))
    outcomes = entries(op)
    for number, kind in enumerate(kinds):
        log = log_of(op, number)
        for words in ("printed before", "from a program", "to stderr", "raw bytes"):
            assert log.count(words) == 1, (kind, log)
            assert words in outcomes[number]["log_tail"]
        assert len(outcomes[number]["log_tail"]) <= 2_000
    assert "Segmentation fault" in log_of(op, 0)
    assert "in job" in outcomes[0]["log_tail"]
    assert "at last" in log_of(op, 2)


def test_words_that_only_a_program_said_are_in_the_log_of_a_crash(backend):
    def job(x):
        subprocess.run(["echo", f"program {x}"], check=True)
        os.kill(os.getpid(), signal.SIGKILL)

    op = run(backend, operation(job, grid={"x": range(3)}))
    assert [log_of(op, n) for n in range(3)] == [f"program {n}\n" for n in range(3)]


def test_a_flood_of_output_is_kept_in_the_log_and_harms_nobody(backend, capfd):
    size = 50_000_000

    def job(kind):
        if kind == "print":
            for _ in range(500):
                print("x" * 99_999)
        elif kind == "program":
            subprocess.run(["head", "-c", str(size), "/dev/zero"], check=True)
        elif kind == "crash":
            print("y" * 5_000_000)
            subprocess.run(["head", "-c", str(size), "/dev/zero"], check=True)
            os.abort()

    kinds = ["print", "good", "program", "good ", "crash"]
    op = run(backend, operation(job, grid={"kind": kinds}))
    assert [row["state"] for row in op.rows()] == ["done"] * 4 + ["crashed"]
    logs = {n: Path(op.result_directory, entries(op)[n]["log"]) for n in (0, 2, 4)}
    sizes = {n: path.stat().st_size for n, path in logs.items()}
    assert sizes[0] == size
    assert sizes[2] >= size
    assert sizes[4] >= size + 5_000_000
    assert Path(op.result_directory, "operation.log").stat().st_size < 100_000
    assert Path(op.result_directory, "journal.jsonl").stat().st_size < 100_000


def test_a_crash_in_the_midst_of_a_flood_is_noticed_though_forks_live_on(backend, capfd):
    # a fork holds the pipes of its parent, so that their end tells nothing
    def job(x):
        if os.fork() == 0:
            time.sleep(777)
            os._exit(0)
        for _ in range(200):
            print("x" * 2_000)
        os._exit(3)

    op = run(backend, operation(job, grid={"x": range(6)}), timeout=30)
    assert states(op) == {"crashed": 6}


def test_a_warning_is_in_the_log_of_the_operation_while_its_process_runs(backend, here):
    def job(x, log):
        log.warning("about to wait")
        deadline = time.monotonic() + 40
        while not (here / "go").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return (here / "go").exists()

    def watch():
        path = here / "results" / "operation.log"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if path.exists() and "about to wait" in path.read_text():
                (here / "go").touch()
                return
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    op = run(backend, operation(job, grid={"x": [1]}, result_directory=here / "results"))
    watcher.join()
    assert [row["value"] for row in op.rows()] == [True]


def test_a_flood_of_records_is_bounded_in_the_log_of_the_operation(backend):
    def job(x, log):
        for number in range(50_000):
            log.warning("record %d", number)

    op = run(backend, operation(job, grid={"x": range(2)}))
    assert states(op) == {"done": 2}
    log = Path(op.result_directory, "operation.log").read_text()
    assert "record" in log
    assert log.count("\n") < 2_000
    for number in range(2):
        assert log_of(op, number).count("\n") == 50_000


# When an operation ends early


def test_the_circuit_breaker_ends_what_only_fails_in_the_same_way(backend, tmp_path):
    def job(x):
        note(tmp_path / "runs", x)
        raise ValueError("always the same")

    op = run(backend, operation(job, grid={"x": range(2_000)}), circuit_breaker=5)
    counts = states(op)
    assert counts["failed"] >= 5
    assert set(counts) <= {"failed", "cancelled"}
    assert len(noted(tmp_path / "runs")) < 2_000
    assert "always the same" in end_of(op)["aborted"]
    assert "first 5 processes" in end_of(op)["aborted"]
    assert states(run(backend, operation([int] * 5))) == {"done": 5}


def test_the_circuit_breaker_is_for_crashes_as_well(backend):
    op = run(backend, operation(exits, grid={"x": range(100)}), circuit_breaker=3)
    assert states(op)["crashed"] < 100
    assert "exit code 3" in end_of(op)["aborted"]


def exits(x):
    os._exit(3)


@pytest.mark.parametrize("why", ["switched off", "some are done", "errors differ"])
def test_the_circuit_breaker_lets_other_operations_go_on(backend, why):
    def job(x):
        if x % 2 == 0 and why == "some are done":
            return
        raise ValueError(x if why == "errors differ" else "same")

    breaker = 0 if why == "switched off" else 20
    op = run(backend, operation(job, grid={"x": range(50)}), circuit_breaker=breaker)
    assert states(op)["failed"] == (25 if why == "some are done" else 50)
    assert len(op.rows()) == 50
    assert end_of(op).get("aborted") is None


@pytest.mark.parametrize("options", [{"max_failures": 3}, {"fail_fast": True}])
def test_an_operation_ends_when_too_many_processes_fail(backend, options):
    most = options.get("max_failures", 1)

    def job(x):
        time.sleep(0.02)
        if x % 2:
            raise ValueError(x)

    op = run(backend, operation(job, grid={"x": range(400)}), **options)
    counts = states(op)
    assert counts["failed"] >= most
    assert counts["failed"] < 100
    assert set(counts) <= {"failed", "cancelled", "done"}
    assert "max_failures" in end_of(op)["aborted"]


def test_the_end_of_time_stops_what_runs(backend, tmp_path):
    workers, before = worker_pids(backend), sleepers()

    def job(x):
        note(tmp_path / "begun", x)
        if x:
            ways = list(slow().values())
            ways[x % len(ways)]()

    began = time.monotonic()
    op = run(backend, operation(job, grid={"x": range(40)}), timeout=5)
    assert time.monotonic() - began < 30
    counts = states(op)
    assert set(counts) <= {"done", "cancelled"}
    assert counts["cancelled"] >= 1
    assert len(noted(tmp_path / "begun")) <= 4
    assert "time" in end_of(op)["aborted"]
    assert eventually(lambda: sleepers() - before, set()) == set()
    op = run(backend, operation([int] * 10))
    assert states(op) == {"done": 10}
    assert worker_pids(backend) == workers


def test_cleanup_stops_what_runs_and_the_cluster_stays(mcore, tmp_path):
    workers = worker_pids(mcore)

    def job(x):
        note(tmp_path / "begun", x)
        slow()["holds_the_gil"]()

    run(mcore, operation([int]))
    mcore.stage_in(operation(job, grid={"x": range(4)}))
    mcore.execute()
    wait_for(lambda: len(noted(tmp_path / "begun")) >= 2)
    mcore.cleanup()
    op = run(mcore, operation([int] * 10))
    assert states(op) == {"done": 10}
    assert worker_pids(mcore) == workers


# What is lost


def executing(backend, here, n, wait=0.5, **options):
    """Begin an operation of processes that take their time, and note when they begin."""

    def job(x):
        note(here / "runs", x)
        time.sleep(wait)
        note(here / "ended", x)
        return x

    op = operation(job, grid={"x": range(n)})
    backend._run_options = take_options({"isolation": "process", **options}, "process")
    backend.stage_in(op)
    backend.execute()
    return op


def finish(backend):
    backend.retrieve(70)
    op = backend.current_operation
    backend.consolidate()
    backend.cleanup()
    return op


def only_begun_repeated(here, n, lost_retries=2):
    runs, ended = Counter(noted(here / "runs")), Counter(noted(here / "ended"))
    assert set(runs) == {str(x) for x in range(n)}
    assert max(runs.values()) <= 1 + lost_retries
    assert ended == dict.fromkeys(runs, 1), "a process that had ended ran again"


def test_processes_of_a_killed_worker_run_elsewhere(mcore, here):
    executing(mcore, here, 16)
    wait_for(lambda: len(noted(here / "ended")) >= 3)
    time.sleep(0.2)  # what has just ended is on its tape by now, and the next is under way
    victim = min(worker_pids(mcore))
    os.kill(victim, signal.SIGKILL)
    op = finish(mcore)
    assert states(op) == {"done": 16}
    assert lines_of(op) == dict.fromkeys(range(16), 1)
    only_begun_repeated(here, 16)
    assert sum(Counter(noted(here / "runs")).values()) <= 17
    assert len(worker_pids(mcore)) >= 1


def test_short_processes_of_a_killed_worker_run_once(mcore, here):
    executing(mcore, here, 600, wait=0.01)
    wait_for(lambda: len(noted(here / "ended")) >= 150)
    os.kill(min(worker_pids(mcore)), signal.SIGKILL)
    op = finish(mcore)
    assert states(op) == {"done": 600}
    assert lines_of(op) == dict.fromkeys(range(600), 1)
    runs = Counter(noted(here / "runs"))
    assert sum(runs.values()) <= 601 + 1
    eventually(lambda: len(worker_pids(mcore)), 2)


def test_processes_of_a_killed_host_run_again(mcore, here):
    workers = worker_pids(mcore)
    executing(mcore, here, 16)
    wait_for(lambda: len(noted(here / "ended")) >= 3)
    time.sleep(0.2)  # what has just ended is on its tape by now, and the next is under way
    os.kill(min(host_pids(mcore)), signal.SIGKILL)
    op = finish(mcore)
    assert states(op) == {"done": 16}
    only_begun_repeated(here, 16)
    assert worker_pids(mcore) == workers


def test_a_worker_that_stands_still_for_a_while_loses_nothing(mcore, here):
    executing(mcore, here, 16)
    wait_for(lambda: len(noted(here / "ended")) >= 3)
    time.sleep(0.2)  # what has just ended is on its tape by now, and the next is under way
    victim = min(worker_pids(mcore))
    os.kill(victim, signal.SIGSTOP)
    try:
        time.sleep(4)
    finally:
        os.kill(victim, signal.SIGCONT)
    op = finish(mcore)
    assert states(op) == {"done": 16}
    assert Counter(noted(here / "runs")) == {str(x): 1 for x in range(16)}


def test_a_host_that_stands_still_for_a_while_loses_nothing(mcore, here):
    executing(mcore, here, 16)
    wait_for(lambda: len(noted(here / "ended")) >= 3)
    time.sleep(0.2)  # what has just ended is on its tape by now, and the next is under way
    victim = min(host_pids(mcore))
    os.kill(victim, signal.SIGSTOP)
    try:
        time.sleep(3)
    finally:
        os.kill(victim, signal.SIGCONT)
    op = finish(mcore)
    assert states(op) == {"done": 16}
    assert Counter(noted(here / "runs")) == {str(x): 1 for x in range(16)}


def test_both_workers_killed_at_once_come_back(mcore, here):
    executing(mcore, here, 16)
    wait_for(lambda: len(noted(here / "ended")) >= 3)
    time.sleep(0.2)  # what has just ended is on its tape by now, and the next is under way
    for pid in worker_pids(mcore):
        os.kill(pid, signal.SIGKILL)
    op = finish(mcore)
    assert states(op) == {"done": 16}
    only_begun_repeated(here, 16)
    assert eventually(lambda: len(worker_pids(mcore)), 2) == 2


def test_a_cluster_without_workers_is_opened_anew(here, mark):
    with warm_backend("mcore") as backend:
        executing(backend, here, 16, no_workers_timeout=3)
        wait_for(lambda: len(noted(here / "ended")) >= 3)
        time.sleep(0.2)  # what has just ended is on its tape by now, and the next is under way
        backend.cluster.scale(0)
        op = finish(backend)
        assert states(op) == {"done": 16}
        assert lines_of(op) == dict.fromkeys(range(16), 1)
        only_begun_repeated(here, 16)
        assert "opened anew" in Path(op.result_directory, "operation.log").read_text()
        assert states(run(backend, operation([int] * 4))) == {"done": 4}
    no_strays(mark)


def test_a_cluster_that_cannot_be_opened_anew_ends_the_operation(here, mark, monkeypatch):
    with warm_backend("mcore") as backend:
        op = executing(backend, here, 12, no_workers_timeout=3)
        wait_for(lambda: len(noted(here / "ended")) >= 2)

        def refuse():
            raise RuntimeError("no machine left")

        monkeypatch.setattr(backend, "_open_cluster", refuse)
        backend.cluster.scale(0)
        with pytest.raises(OperationError, match="no machine left"):
            backend.retrieve(60)
        backend.consolidate()
        assert set(states(op)) <= {"done", "cancelled", "lost"}
        assert states(op)["done"] >= 2
    no_strays(mark)


never_collected = []  # Dask cannot close a cluster without its scheduler, and warns of that


def test_a_cluster_whose_scheduler_was_killed_is_opened_anew(here, mark):
    backend = commands_backend()
    with backend:
        executing(backend, here, 16)
        wait_for(lambda: len(noted(here / "ended")) >= 3)
        time.sleep(0.2)  # what has just ended is on its tape by now, and the next is under way
        never_collected.append(backend.cluster)
        (scheduler,) = [p for p in marked(mark) if "distributed.Scheduler" in command_of(p)]
        scheduler.kill()
        try:
            op = finish(backend)
        except OperationError:
            op = None
        if op is not None:
            assert states(op) == {"done": 16}
            assert lines_of(op) == dict.fromkeys(range(16), 1)
            runs = Counter(noted(here / "runs"))
            assert set(runs) == {str(x) for x in range(16)}
            assert runs.total() <= 16 + 2  # what ran on the workers of the old cluster
    no_strays(mark)


def test_futures_that_never_resolve_are_given_up(here, mark, monkeypatch):
    monkeypatch.setattr(dispatch, "_ASK_EVERY_S", 1.0)
    with warm_backend("mcore") as backend:
        executing(backend, here, 8, wait=0.2)
        wait_for(lambda: len(noted(here / "ended")) >= 2)
        # the scheduler runs in this process, and from now on the client hears nothing of tasks
        scheduler = backend.cluster.scheduler
        send_all = scheduler.send_all
        monkeypatch.setattr(scheduler, "report", lambda *args, **more: None)
        monkeypatch.setattr(
            scheduler, "send_all", lambda client_msgs, worker_msgs: send_all({}, worker_msgs)
        )
        op = finish(backend)
        assert states(op) == {"done": 8}
        assert lines_of(op) == dict.fromkeys(range(8), 1)
        only_begun_repeated(here, 8)
    no_strays(mark)


def test_a_killed_program_leaves_nothing_running(name, here, mark):
    program = f"""
import os, time, subprocess, daskspace
def job(x):
    subprocess.Popen(["sh", "-c", "setsid sleep 777 & sleep 777"], start_new_session=True)
    open(f"begun-{{x}}", "w").close()
    time.sleep(60)
backend = daskspace.create_backend(isolation="process", **{kind(name)!r})
backend.run(daskspace.operation(job, grid={{"x": range(4)}}))
"""
    (here / "program.py").write_text(program)
    child = subprocess.Popen([sys.executable, "program.py"])
    try:
        wait_for(lambda: list(here.glob("begun-*")))
    finally:
        child.kill()
        child.wait()
    assert eventually(lambda: [p for p in marked(mark) if "sleep 777" in command_of(p)], []) == []


def test_the_journal_of_a_faulty_operation_is_sound(backend):
    def job(kind):
        return faults()[kind][0]()

    op = run(backend, operation(job, grid={"kind": ["segfault", "ValueError", "surrogates"]}))
    for line in Path(op.result_directory, "journal.jsonl").read_bytes().splitlines():
        json.loads(line)
    damaged = []
    list(read_journal(Path(op.result_directory, "journal.jsonl"), damaged.append))
    assert damaged == []
