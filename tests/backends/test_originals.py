"""pySPACE's own operations run unchanged on all backends."""

import csv
import os
import queue
import sys
from pathlib import Path

import psutil
import pytest

from daskspace import DirectoryError, OperationError, create_backend, operation

from .backends_under_test import BACKENDS_UNDER_TEST
from .originals import BIG, Flow, LiveOperation, OldFlow, Operation, run_operation

ROOT = str(Path(__file__).parents[2])
CONFIGURATION = {"name": "tested", "paths": ["/of/pyspace"], "file_log_level": "logging.INFO"}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs fork")


EACH = [
    pytest.param(name, marks=pytest.mark.xdist_group(f"originals on {name}"))
    for name in ("serial", "mcore", "mpi", "loadl")
]
AWAY = EACH[1:]


@pytest.fixture(scope="module", params=EACH)
def warm_backend(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)  # where workers find the classes
        with BACKENDS_UNDER_TEST[request.param](configuration=CONFIGURATION, retries=1) as backend:
            yield backend


@pytest.fixture
def backend(warm_backend, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield warm_backend
    warm_backend.cleanup()
    assert not [child for child in psutil.Process().children() if is_creator(child)]


def is_creator(child):
    return child.cmdline() == psutil.Process().cmdline()  # it is a fork


def table(directory):
    with Path(directory, "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def states(directory):
    return sorted(row["state"] for row in table(directory))


def log_of(directory):
    return Path(directory, "operation.log").read_text()


def test_a_whole_run_behind_a_short_queue(backend, tmp_path):
    where = tmp_path / "first"
    does = ["fail_once", "fail", "wander", *["look"] * 3, "log_an_object", "log_much"]
    flows = [Flow(n, where, act) for n, act in enumerate(does)]
    flows += [OldFlow(n, where, ballast=BIG // 8) for n in range(len(does), 12)]
    where.mkdir()
    op = LiveOperation(where, flows)
    here = os.getcwd()
    assert run_operation(backend, op) == str(where)
    assert os.getcwd() == here
    assert not {"/of/pyspace", "/nowhere", "WANDERED"} & {*sys.path, *os.environ}
    assert op.consolidated == 1
    assert states(where) == ["done"] * 11 + ["failed"]
    assert "as wanted" in str(table(where))
    assert len((where / "results.csv").read_text().split()) == 11
    text = (where / "result_3").read_text()
    assert text == f"tested {here} 0"
    for number in (3, 4, 5):
        assert (where / f"seen_{number}").read_text() == repr([here, False, False, 0])
    log = log_of(where)
    for number in range(12):
        times = 2 if number in (0, 1) else 1
        for n in range(3):
            assert log.count(f"INFO     record {n} of process {number}\n") == times
    assert [log.count(f"much {n}\n") for n in range(2000)] == [1] * 2000
    assert "detail of" not in log
    assert log.count("it holds more than plain data (pathlib.") == 1
    assert "`extra`" in log
    assert not op.create_process.is_alive()
    with pytest.raises(ValueError, match="closed"):
        op.processes.get()


@pytest.mark.parametrize("number", [0, 1, 1000])
def test_the_number_of_processes_is_an_estimate(backend, tmp_path, number):
    op = Operation(tmp_path / "here", [Flow(n, tmp_path) for n in range(4)])
    op.number_processes = number
    assert float(backend.check_status()) == 0
    backend.stage_in(op)
    assert float(backend.check_status()) == 0
    backend.execute(timeout=1e6)
    assert 0 <= float(backend.check_status()) <= 1
    backend.retrieve(timeout=1e6)
    assert float(backend.check_status()) == 1
    backend.cleanup()
    assert states(op.result_directory) == ["done"] * 4


@pytest.mark.parametrize(
    ("ends", "why"),
    [
        ("raising", "exit code 1\\) without the False"),
        ("killed", "exit code -9\\) without the False"),
        ("forgetful", "exit code 0\\) without the False"),
        ("raising after all", "failed \\(exit code 1\\), so that some may be missing"),
    ],
    ids=lambda text: text.partition("\\")[0],
)
def test_a_creator_that_does_not_end_well_is_told(backend, tmp_path, ends, why):
    where = tmp_path / "here"
    op = LiveOperation(where, [Flow(n, where) for n in range(3)], ends)
    with pytest.raises(OperationError, match=why):
        run_operation(backend, op)
    assert states(where) == ["done"] * 3
    assert why.split("\\")[0] in log_of(where)
    assert not op.create_process.is_alive()


def test_a_creator_is_not_left_behind_when_its_operation_is_given_up(backend, tmp_path):
    where = tmp_path / "here"
    op = LiveOperation(where, [Flow(n, where) for n in range(300)])
    backend.stage_in(op)
    backend.cleanup()
    assert not op.create_process.is_alive()
    again = LiveOperation(where, [Flow(n, where) for n in range(300)])
    backend.stage_in(again)
    backend.execute(timeout=0)
    backend.cleanup()
    assert not again.create_process.is_alive()


def test_operations_may_share_a_directory_one_after_the_other(backend, tmp_path):
    where = tmp_path / "shared"
    for number in range(3):
        run_operation(backend, Operation(where, [Flow(number, where)]))
    assert {path.name for path in where.iterdir() if path.name.startswith("earlier")} == {
        "earlier-1",
        "earlier-2",
    }
    assert len(list(where.glob("result_*"))) == 3
    assert "process 2" in log_of(where)
    assert "process 0" in log_of(where / "earlier-1")
    assert states(where / "earlier-2") == ["done"]
    with pytest.raises(DirectoryError, match="already holds"):
        backend.stage_in(operation([], result_directory=where))


@pytest.mark.parametrize("warm_backend", AWAY, indirect=True)
def test_a_process_that_is_killed_or_too_large_costs_no_other(backend, tmp_path):
    where = tmp_path / "here"
    flows = [
        Flow(0, where),
        Flow(1, where, "kill"),
        Flow(2, where, ballast=BIG),
        Flow(3, where, ballast=101 * 2**20),
        Flow(4, where),
    ]
    op = Operation(where)
    op.processes = queue.Queue()
    for flow in [*flows, False]:
        op.processes.put(flow)
    run_operation(backend, op)
    rows = table(where)
    assert [row["state"] for row in rows] == ["done", "crashed", "done", "failed", "done"]
    assert "101 MiB large" in rows[3]["message"]
    assert f" {BIG}" in (where / "result_2").read_text()
    assert not (where / ".attempts").exists()
    log = log_of(where)
    assert log.count("record 2 of process 1\n") == 2
    assert log.count("record 2 of process 2\n") == 1


def test_a_child_of_this_program_is_prepared_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    where = tmp_path / "here"
    options = {"configuration": {**CONFIGURATION, "file_log_level": "DEBUG"}}
    with create_backend("serial", isolation="process", retries=1, **options) as backend:
        flows = [Flow(0, where, "kill"), Flow(1, where, "fail_once"), Flow(2, where)]
        run_operation(backend, Operation(where, flows))
    assert [row["state"] for row in table(where)] == ["crashed", "done", "done"]
    log = log_of(where)
    assert [log.count(f"detail of process {n}\n") for n in range(3)] == [2, 2, 1]


def test_where_several_threads_of_a_worker_run_processes_originals_run_one_by_one(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    where = tmp_path / "here"
    options = {"n_workers": 1, "threads_per_worker": 4, "isolation": "none"}
    with create_backend("mcore", configuration=CONFIGURATION, **options) as backend:
        does = ["wander", "look"] * 6
        flows = [Flow(n, where, act) for n, act in enumerate(does)]
        run_operation(backend, LiveOperation(where, flows))
    assert states(where) == ["done"] * 12
    seen = {path.read_text() for path in where.glob("seen_*")}
    assert seen == {repr([str(tmp_path), False, False, 0])}
    assert log_of(where).count(" of process ") == 36


def test_the_other_attributes_of_its_backends_are_there(backend):
    assert (backend.host, backend.port) == (None, None)
    assert (backend.SERVER_IP, backend.SERVER_PORT) == (None, None)
    assert backend.reset_queue() is None
    backend._stop_logging()
