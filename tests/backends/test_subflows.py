"""Subflows: processes that run parts of themselves on the cluster that they run on.

The functions travel by value, and import what they need themselves.
"""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import cloudpickle
import psutil
import pytest

import daskspace
from daskspace import SubflowError, create_backend, operation
from daskspace.backends.options import take_options
from daskspace.execution.dispatch import CANCEL

from .backends_under_test import BACKENDS_UNDER_TEST

MARK = "DASKSPACE_TEST_SUBFLOWS"
"""A variable that everything has which these tests start, however far it goes away."""

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and subreapers"),
]
cloudpickle.register_pickle_by_value(sys.modules[__name__])

IN_CHILDREN = {
    "serial": functools.partial(create_backend, "serial", isolation="process"),
    **{name: BACKENDS_UNDER_TEST[name] for name in ("mcore", "mpi", "loadl")},
}


def grouped(name):
    return pytest.param(name, marks=pytest.mark.xdist_group(f"subflows of {name}"))


@pytest.fixture(scope="module", autouse=True)
def mark():
    """Mark what is started, and see at the end that nothing of it is left."""
    value = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, value)
        yield value


@pytest.fixture(scope="module", params=[grouped(name) for name in IN_CHILDREN])
def warm(request, mark):
    with IN_CHILDREN[request.param]() as backend:
        yield backend


@pytest.fixture(scope="module", params=[grouped("mcore")])
def warm_mcore(request, mark):
    with IN_CHILDREN[request.param]() as backend:
        yield backend


@pytest.fixture
def backend(warm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield warm
    warm.cleanup()


@pytest.fixture
def mcore(warm_mcore, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wait_for(lambda: warm_mcore.client is None or len(warm_mcore.client.nthreads()) == 2)
    yield warm_mcore
    warm_mcore.cleanup()


@pytest.fixture(scope="module", params=[grouped("serial")])
def warm_serial(request, mark):
    with IN_CHILDREN[request.param]() as backend:
        yield backend


@pytest.fixture
def serial(warm_serial, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield warm_serial
    warm_serial.cleanup()


def run(backend, function, grid=None, **options):
    """Run an operation with options; return its rows."""
    backend._run_options = take_options({"isolation": "process", **options}, "process")
    return backend.run(operation(function, grid=grid or {"x": [0]})).rows()


def results(backend):
    return Path(backend.current_operation.result_directory)


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.05)


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# What processes and their subflows do


def square(x):
    return x * x


def sum_of_squares(x, subflows):
    return sum(subflows.map(square, range(x, x + 20)))


def twice_nested(x, subflows):
    def inner(n):
        return sum(daskspace.subflows().map(square, [n, n + 1]))

    def outer(n):
        return daskspace.subflows().map(inner, [n, 10 * n])

    return {"y": subflows.map(outer, [x, x + 1])}


def misbehave(how):
    match how:
        case "raise":
            raise LookupError("nothing there")
        case "raise oddly":
            error = ValueError("has a lock")
            error.lock = __import__("_thread").allocate_lock()
            raise error
        case "hang":
            time.sleep(100)
        case "exit":
            os._exit(3)
        case "be killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "return oddly":
            return (n for n in range(3))
        case "leave":
            sys.exit(0)
    return how


def all_kinds_of_trouble(x, subflows):
    hows = ["raise", "raise oddly", "hang", "exit", "be killed", "return oddly", "leave", "nothing"]
    results = subflows.map(misbehave, hows, timeout=1, return_exceptions=True)
    again = subflows.map(square, [3])
    return {"told": [[r.index, r.state] if hasattr(r, "state") else r for r in results + again]}


def worker_of(pid):
    """Return the worker that a child belongs to."""
    import psutil

    return psutil.Process(pid).parents()[1].pid


def workers_seen(x, place, subflows):
    import glob

    def nap(n):
        time.sleep(0.2)
        return worker_of(os.getpid())

    open(os.path.join(place, f"begun-{x}"), "w").close()
    until = time.monotonic() + 60
    while len(glob.glob(f"{place}/begun-*")) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    seen = set()
    while x == 0 and len(seen) < 2 and time.monotonic() < until:
        seen.update(subflows.map(nap, range(12)))
    return {"workers": len(seen)}


def prints(x, subflows):
    def two(item):
        print(item)
        if item == "two":
            daskspace.subflows().map(print, ["two's own"])
            raise LookupError("two")

    subflows.map(two, ["one", "two"], return_exceptions=True)


def fails_by_a_subflow(x, subflows):
    subflows.map(misbehave, ["nothing", "raise", "raise"])


def catches_an_error(x, subflows):
    _, error, _ = subflows.map(misbehave, ["nothing", "raise", "raise"], return_exceptions=True)
    copy = cloudpickle.loads(cloudpickle.dumps(error))
    seen = [copy.index, copy.state, copy.error, copy.message]
    return {"seen": seen, "where_it_was": copy.where, "traceback_of_it": copy.traceback}


def endless(x):
    return daskspace.subflows().map(endless, [x])


def has_a_directory(x):
    from daskspace.execution.attempt import current_attempt

    return current_attempt().make_directory()


def text_of_error(function, *arguments):
    try:
        return str(function(*arguments))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def asks_oddly(x, subflows):
    import threading

    lock = threading.Lock()
    locked = subflows.map(lambda item: item[0], [(0, lock), (1, 2)], return_exceptions=True)

    in_thread = []
    thread = threading.Thread(target=lambda: in_thread.extend(subflows.map(square, range(3))))
    thread.start()
    thread.join()

    def ring(number, frame):
        raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        subflows.map(time.sleep, [100])
    except TimeoutError:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)

    pid = os.fork()
    if pid == 0:
        os._exit(sum(subflows.map(square, [1, 2])))

    return {
        "none": subflows.map(square, []),
        "locked": [[locked[0].index, locked[0].state], locked[1]],
        "in_thread": in_thread,
        "after_alarm": subflows.map(square, range(3)),
        "unpicklable_function": text_of_error(subflows.map, lambda n: lock, [1]),
        "in_fork": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),
        "too_deep": text_of_error(subflows.map, endless, [1]),
        "directory": text_of_error(subflows.map, has_a_directory, [1]),
    }


def many_and_large(x, subflows):
    large = subflows.map(lambda octets: octets * 2, [b"." * (4 << 20)] * 3)
    return {"sum": sum(subflows.map(square, range(1000))), "sizes": [len(o) for o in large]}


def waits_for_long(then, subflows):
    subflows.map(time.sleep, [0.4] * 5)
    time.sleep(then)


def kills_another_worker(marker, subflows):
    own = worker_of(os.getpid())

    def cut(n):
        worker = worker_of(os.getpid())
        if worker != own:
            try:
                open(marker, "x").close()
                os.kill(worker, signal.SIGKILL)
            except FileExistsError:
                pass
        time.sleep(0.2)
        return n

    return sum(subflows.map(cut, range(12)))


def stay(place):
    pids = os.path.join(place, "pids")
    os.makedirs(pids, exist_ok=True)
    open(os.path.join(pids, str(os.getpid())), "w").close()
    time.sleep(100)


def waits_with_subflows(place, subflows):
    subflows.map(stay, [place] * 8)


def is_killed(place, whose, subflows):
    import glob
    import threading

    def kill():
        while len(glob.glob(f"{place}/pids/*")) < 2:
            time.sleep(0.05)
        own = os.getpid()
        os.kill(own if whose == "child" else worker_of(own), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    waits_with_subflows(place, subflows)


# Tests


def test_parents_and_subflows_on_few_workers_come_to_the_same_result(backend):
    rows = run(backend, sum_of_squares, {"x": range(8)})
    assert [row["value"] for row in rows] == [sum(map(square, range(x, x + 20))) for x in range(8)]


def test_subflows_may_have_subflows(backend):
    rows = run(backend, twice_nested, {"x": [1, 2]})
    assert [row["y"] for row in rows] == [
        twice_nested(x, daskspace.subflows())["y"] for x in (1, 2)
    ]


def test_a_subflow_that_misbehaves_costs_nobody_but_itself(backend):
    (row,) = run(backend, all_kinds_of_trouble)
    states = ["failed", "failed", "timeout", "crashed", "crashed", "failed", "failed"]
    assert row["told"] == [*map(list, enumerate(states)), "nothing", 9]


@pytest.mark.parametrize(
    "warm", [grouped(name) for name in IN_CHILDREN if name != "serial"], indirect=True
)
def test_idle_workers_take_part(backend, tmp_path):
    row, _ = run(backend, workers_seen, {"x": [0, 1], "place": [str(tmp_path)]})
    assert row["workers"] == 2


def test_what_a_subflow_prints_is_in_a_log_named_after_its_process(serial):
    op = serial.run(operation(prints, grid={"x": [0]}, result_directory="results"))
    logs = {path.name: path.read_text() for path in Path("results/logs").iterdir()}
    process = min(logs).partition(".")[0]
    names = [f"{process}.subflow-{n}.log" for n in ("0", "1", "1.subflow-0")]
    assert sorted(logs) == sorted(names)
    assert [logs[name].splitlines()[0] for name in names] == ["one", "two", "two's own"]
    assert "LookupError: two" in logs[names[1]]
    assert op._table().outcome(0).subflows == {"done": 1, "failed": 1}


def test_an_error_tells_what_and_where(serial):
    (row,) = run(serial, fails_by_a_subflow)
    assert row["error"] == "SubflowError"
    assert row["message"] == "subflow 1 failed: LookupError: nothing there"
    (row,) = run(serial, catches_an_error)
    assert row["seen"] == [1, "failed", "LookupError", "nothing there"]
    assert "in misbehave" in row["where_it_was"]
    assert "LookupError" in row["traceback_of_it"]


def test_odd_calls_are_answered(serial):
    (row,) = run(serial, asks_oddly)
    assert row["none"] == []
    assert row["locked"] == [[0, "failed"], 1]
    assert row["in_thread"] == [0, 1, 4]
    assert row["after_alarm"] == [0, 1, 4]
    assert row["unpicklable_function"].startswith("TypeError: the function of subflows cannot")
    assert row["in_fork"] == 5
    assert "deep" in row["too_deep"]
    assert "no directory" in row["directory"]


def test_a_thousand_subflows_and_large_values_are_nothing_special(mcore):
    (row,) = run(mcore, many_and_large)
    assert row["sum"] == sum(map(square, range(1000)))
    assert row["sizes"] == [8 << 20] * 3


def test_the_clock_of_a_process_stands_still_while_its_subflows_run(serial):
    rows = run(serial, waits_for_long, {"then": [0, 60]}, process_timeout=1)
    assert [row["state"] for row in rows] == ["done", "timeout"]


def test_a_new_child_for_each_subflow_gives_the_same(serial):
    (row,) = run(serial, twice_nested, {"x": [1]}, isolation="fresh")
    assert row["y"] == twice_nested(1, daskspace.subflows())["y"]


def test_subflows_in_place_give_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with create_backend("serial") as backend:
        (row,) = backend.run(operation(twice_nested, grid={"x": [1]})).rows()
        assert row["y"] == twice_nested(1, daskspace.subflows())["y"]
        (row,) = backend.run(operation(catches_an_error, grid={"x": [0]})).rows()
        assert row["seen"] == [1, "failed", "LookupError", "nothing there"]
        (row,) = backend.run(operation(endless, grid={"x": [0]})).rows()
        assert "nested 4 deep" in row["message"]
    with pytest.raises(SubflowError, match="subflow 0 failed: LookupError"):
        daskspace.subflows().map(misbehave, ["raise"])


def test_a_subflow_whose_worker_is_killed_runs_again(mcore, tmp_path):
    (row,) = run(mcore, kills_another_worker, {"marker": [str(tmp_path / "killed")]})
    assert (tmp_path / "killed").exists()
    assert (row["state"], row["value"]) == ("done", sum(range(12)))


@pytest.mark.parametrize("whose", ["child", "worker"])
def test_a_process_that_is_killed_leaves_no_subflow_running(mcore, tmp_path, mark, whose):
    grid = {"place": [str(tmp_path)], "whose": [whose]}
    (row,) = run(mcore, is_killed, grid, lost_retries=0)
    assert row["state"] == {"child": "crashed", "worker": "lost"}[whose]
    pids = [int(path.name) for path in tmp_path.glob("pids/*")]
    assert len(pids) >= 2
    wait_for(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize("how", ["time is up", "cancelled"])
def test_an_operation_that_is_stopped_leaves_no_subflow_running(mcore, tmp_path, mark, how):
    mcore._run_options = take_options({"isolation": "process"}, "process")
    mcore.stage_in(operation(waits_with_subflows, grid={"place": [str(tmp_path)]}, runs=4))
    mcore.execute(5 if how == "time is up" else 100)
    wait_for(lambda: len(list(tmp_path.glob("pids/*"))) >= 2)
    if how == "cancelled":
        (results(mcore) / CANCEL).touch()
    mcore.retrieve(30)
    mcore.consolidate()
    assert {row["state"] for row in mcore.current_operation.rows()} == {"cancelled"}
    pids = [int(path.name) for path in tmp_path.glob("pids/*")]
    wait_for(lambda: not any(map(is_alive, pids)), 10)


def test_a_client_that_is_killed_leaves_no_subflow_running(tmp_path, mark):
    program = """
    import daskspace
    from tests.backends.test_subflows import waits_with_subflows

    operation = daskspace.operation(waits_with_subflows, grid={"place": ["."]}, runs=4)
    with daskspace.create_backend("mcore", n_workers=2) as backend:
        backend.run(operation)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    argv = [sys.executable, "-c", textwrap.dedent(program)]
    client = subprocess.Popen(argv, cwd=tmp_path, env=environment, start_new_session=True)
    try:
        wait_for(lambda: len(list(tmp_path.glob("pids/*"))) >= 2)
    finally:
        client.kill()
        client.wait(10)
    pids = [int(path.name) for path in tmp_path.glob("pids/*")]
    wait_for(lambda: not any(map(is_alive, pids)), 30)
