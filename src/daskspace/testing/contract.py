"""What every backend promises."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daskspace.backends import create_backend, run_operation
from daskspace.backends.base import Backend
from daskspace.backends.dask_backend import DaskBackend
from daskspace.errors import (
    ConsolidateError,
    DirectoryError,
    LifecycleError,
    OperationError,
    RetrieveTimeout,
)
from daskspace.execution.outcome import Outcome
from daskspace.operations.function import operation
from daskspace.testing.processes import (
    FAILURES,
    Counted,
    Cubes,
    NotLoadable,
    Original,
    change,
    chdir_away,
    fail,
    import_beside,
    import_changing,
    injected,
    maybe_fail,
    seeds_of,
    sleep_long,
    square,
    squares,
    time_sleep,
    touch,
    typed,
    use,
    use_it,
)

STEPS = ["stage_in", "execute", "retrieve", "consolidate"]
PATIENCE = (1, 4, 16)
"""Time limits within which something is done, the later ones where a machine is busy."""


STATES = ["idling", "staged", "executing", "retrieved", "consolidated"]


def states_of(op):
    return [row["state"] for row in op.rows()]


def bring_to(backend, state, op):
    for step in STEPS[: STATES.index(state)]:
        getattr(backend, step)(*([op] if step == "stage_in" else []))


class InPlaceContract:
    """What a backend promises that runs processes in this program: the contract without workers."""

    def make_backend(self) -> DaskBackend:
        """Return a small backend; it is opened once for all tests of the class."""
        raise NotImplementedError(f"{type(self).__name__} has no make_backend")

    @pytest.fixture(scope="class")
    @classmethod
    def warm_backend(cls) -> Iterator[DaskBackend]:
        """Keep the backend of the class open."""
        with cls().make_backend() as backend:
            yield backend

    @pytest.fixture
    def backend(
        self, warm_backend: DaskBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[DaskBackend]:
        """Lend the backend to a test, in an empty working directory."""
        monkeypatch.chdir(tmp_path)
        yield warm_backend
        warm_backend.cleanup()

    # The interface

    def test_a_backend_is_a_backend_and_its_text_is_its_class_name(self, backend):
        assert isinstance(backend, Backend)
        assert str(backend) == type(backend).__name__

    def test_the_steps_lead_from_state_to_state(self, backend):
        op = squares()
        for step, state in zip(STEPS, STATES[1:], strict=True):
            getattr(backend, step)(*([op] if step == "stage_in" else []))
            assert backend.state == state
        backend.cleanup()
        assert backend.state == "idling"
        assert [row["y"] for row in op.rows()] == [0, 1, 4, 9, 16]

    @pytest.mark.parametrize(
        ("state", "step"),
        [
            (state, step)
            for state, step in itertools.product(STATES, STEPS)
            if STATES.index(state) != STEPS.index(step)
        ],
    )
    def test_a_call_in_the_wrong_state_is_refused_and_changes_nothing(self, backend, state, step):
        bring_to(backend, state, squares())
        with pytest.raises(LifecycleError) as caught:
            getattr(backend, step)(*([squares()] if step == "stage_in" else []))
        assert backend.state == state
        for word in (step, state, "first"):
            assert word in str(caught.value)

    @pytest.mark.parametrize("state", STATES)
    def test_cleanup_leads_from_any_state_to_idling_any_number_of_times(self, backend, state):
        bring_to(backend, state, squares())
        backend.cleanup()
        backend.cleanup()
        assert backend.state == "idling"
        assert backend.current_operation is None

    @pytest.mark.parametrize("state", STATES)
    def test_the_status_can_be_asked_in_any_state(self, backend, state):
        bring_to(backend, state, squares())
        status = backend.check_status()
        assert state in str(status)
        assert 0.0 <= float(status) <= 1.0
        assert float(status) == 1.0 or state not in ("retrieved", "consolidated")

    def test_the_operation_goes_to_its_end_without_another_call(self, backend):
        backend.stage_in(squares(50))
        backend.execute()
        deadline = time.monotonic() + 30
        while float(backend.check_status()) < 1.0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert backend.check_status().counts == {"done": 50}

    def test_the_result_directory_can_be_had_only_while_an_operation_is_staged(self, backend):
        with pytest.raises(DirectoryError, match="no operation staged"):
            backend.get_result_directory()
        op = squares()
        backend.stage_in(op)
        assert backend.get_result_directory() == op.result_directory == op.get_output_directory()
        backend.cleanup()
        with pytest.raises(DirectoryError, match="no operation staged"):
            backend.get_result_directory()

    def test_run_takes_an_operation_through_all_steps_and_returns_it(self, backend):
        op = squares()
        assert backend.run(op) is op
        assert backend.state == "idling"
        assert states_of(op) == ["done"] * 5

    def test_run_refuses_a_backend_that_is_busy_and_leaves_its_operation_alone(self, backend):
        first = squares()
        backend.stage_in(first)
        with pytest.raises(LifecycleError):
            backend.run(squares())
        assert backend.current_operation is first

    def test_run_operation_returns_the_output_directory(self, backend):
        op = squares()
        assert run_operation(backend, op) == op.result_directory
        assert Path(op.result_directory, "table.csv").exists()

    def test_an_operation_that_asks_for_another_backend_gets_it(self, backend):
        op = squares()
        op.backend = "serial"
        run_operation(backend, op)
        environment = json.loads(Path(op.result_directory, "environment.json").read_text())
        assert environment["backend"] == "SerialBackend"

    def test_a_backend_runs_several_operations_on_the_same_cluster(self, backend):
        backend.run(squares())
        client = backend.client
        backend.run(squares())
        assert backend.client is client

    # What a process gets and gives

    def test_a_function_gets_what_it_asks_for(self, backend, tmp_path):
        op = backend.run(operation(injected, grid={"x": [1, 2]}, data={"a": "A", "b": "B"}, runs=2))
        rows = op.rows()
        assert [(row["data"], row["x"], row["run"]) for row in rows] == list(
            itertools.product("ab", [1, 2], [0, 1])
        )
        assert len({row["seed_seen"] for row in rows}) == 8
        assert {row["cwd"] for row in rows} == {str(tmp_path)}
        files = sorted(Path(op.result_directory, "processes").glob("*/file.txt"))
        assert sorted(file.read_text() for file in files) == ["A"] * 4 + ["B"] * 4
        logs = [log.read_text() for log in Path(op.result_directory, "logs").iterdir()]
        assert len(logs) == 8
        assert all("in the log" in log and "printed" in log for log in logs)

    def test_seeds_are_the_same_on_every_backend(self, backend):
        seeds = {
            name: [row["value"] for row in runner.run(seeds_of([1, 2])).rows()]
            for name, runner in {"this": backend, "serial": create_backend("serial")}.items()
        }
        assert seeds["this"] == seeds["serial"]
        assert len(set(seeds["this"])) == 2

    def test_a_process_that_is_silent_leaves_no_file(self, backend):
        op = backend.run(squares())
        left = {path.name for path in Path(op.result_directory).iterdir()}
        assert not left & {"logs", "processes"}

    def test_a_process_that_changes_its_directory_does_not_move_the_next(self, backend, tmp_path):
        op = backend.run(operation(chdir_away, grid={"x": range(6)}))
        assert {row["value"] for row in op.rows()} == {str(tmp_path)}
        assert Path.cwd() == tmp_path

    def test_modules_beside_the_program_can_be_imported_in_a_process(self, backend, tmp_path):
        Path("beside_it.py").write_text("ANSWER = 42\n")
        op = backend.run(operation(import_beside, grid={"x": [1]}))
        sys.modules.pop("beside_it", None)
        assert [row["value"] for row in op.rows()] == [42]

    def test_a_process_that_changes_its_parameters_changes_them_for_no_other(self, backend):
        op = backend.run(operation(change, grid={"layers": [[1], [1, 2]]}, runs=3))
        assert [row["value"] for row in op.rows()] == [2, 2, 2, 3, 3, 3]
        assert [row["layers"] for row in op.rows()] == [[1]] * 3 + [[1, 2]] * 3

    def test_function_and_data_travel_once_per_operation(self, backend):
        Counted.pickled = 0
        op = backend.run(operation(use, grid={"x": range(300)}, data={"big": Counted()}))
        assert states_of(op) == ["done"] * 300
        assert Counted.pickled == (0 if backend.client is None else 1)

    def test_metrics_may_be_a_mapping_a_scalar_or_nothing(self, backend):
        op = backend.run(operation([lambda: {"a": 1, "b": [1, 2]}, lambda: 2.5, lambda: None]))
        assert [(row["a"], row["b"], row["value"]) for row in op.rows()] == [
            (1, [1, 2], None),
            (None, None, 2.5),
            (None, None, None),
        ]

    # Failures

    def test_of_200_processes_7_fail_in_different_ways_and_193_are_done(self, backend):
        op = backend.run(operation(maybe_fail, grid={"x": range(200)}))
        failed = {row["x"]: row["error"] for row in op.rows() if row["state"] != "done"}
        assert failed == {20 * n + 7: error for n, error in enumerate(list(FAILURES.values())[:7])}
        assert states_of(op).count("done") == 193

    @pytest.mark.parametrize("kind", FAILURES)
    def test_whatever_a_process_raises_is_its_own_outcome(self, backend, kind):
        op = backend.run(operation([functools.partial(fail, k) for k in ("none", kind, "none")]))
        row = op.rows()[1]
        assert states_of(op) == ["done", "failed", "done"]
        assert row["error"] == FAILURES[kind]
        assert len(row["message"] or "") < 3000

    def test_a_failure_tells_the_users_line_and_lies_in_the_log(self, backend):
        op = backend.run(operation(fail, grid={"kind": ["value"]}))
        first = json.loads(Path(op.result_directory, "journal.jsonl").read_text().splitlines()[1])
        assert "processes.py" in first["where"]
        assert "in fail" in first["where"]
        log = Path(op.result_directory, first["log"]).read_text()
        assert 'raise ValueError("a value")' in log

    def test_something_that_is_no_process_fails_alone(self, backend):
        op = backend.run(
            operation([functools.partial(square, 2), 17, functools.partial(square, 3)])
        )
        assert states_of(op) == ["done", "failed", "done"]
        assert "callable" in op.rows()[1]["message"]

    def test_a_process_that_cannot_travel_fails_alone(self, backend):
        lock = threading.Lock()
        processes = [functools.partial(square, 1)] * 30
        processes[11] = functools.partial(square, lock)
        op = backend.run(operation(processes))
        assert [n for n, state in enumerate(states_of(op)) if state == "failed"] == [11]

    def test_a_process_that_cannot_be_unpickled_fails_alone(self, backend):
        processes = [functools.partial(square, 1)] * 30
        processes[11] = functools.partial(use_it, NotLoadable())
        op = backend.run(operation(processes))
        failed = [n for n, state in enumerate(states_of(op)) if state == "failed"]
        assert failed == ([] if backend.client is None else [11])

    # Streams

    def test_processes_are_pulled_lazily_from_an_endless_generator(self, backend):
        pulled = itertools.count()

        def endless():
            for n in itertools.count():
                next(pulled)
                yield functools.partial(time.sleep, 0.01 if n else 0)

        for timeout in PATIENCE:
            op = operation(endless())
            assert op.number_processes is None
            backend.run(op, timeout)
            states = states_of(op)
            assert set(states) <= {"done", "cancelled"}
            if "done" in states:
                break
        else:
            pytest.fail(f"nothing was done in {PATIENCE} s")
        assert next(pulled) < 20_000

    def test_a_generator_that_raises_ends_the_operation_and_keeps_what_ended(self, backend):
        def broken():
            yield from [functools.partial(square, 2)] * 3
            raise ValueError("no more")

        op = operation(broken())
        with pytest.raises(OperationError, match="ValueError: no more"):
            backend.run(op)
        assert states_of(op) == ["done"] * 3
        assert Path(op.result_directory, "table.csv").exists()

    def test_after_a_generator_raised_the_steps_go_on(self, backend):
        def broken():
            yield functools.partial(square, 2)
            raise ValueError("no more")

        backend.stage_in(operation(broken()))
        backend.execute()
        with pytest.raises(OperationError):
            backend.retrieve()
        assert backend.state == "retrieved"
        backend.consolidate()

    def test_an_operation_without_processes_is_complete_at_once(self, backend):
        op = operation([])
        backend.run(op)
        assert op.rows() == []

    def test_anything_with_processes_directory_and_consolidate_is_an_operation(
        self, backend, tmp_path
    ):
        directory = tmp_path / "original"
        directory.mkdir()
        (directory / "source_operation.yaml").touch()
        op = Original(directory)
        backend.stage_in(op)
        backend.execute()
        backend.retrieve()
        assert float(backend.check_status()) == 1.0
        backend.consolidate()
        backend.cleanup()
        assert op.consolidated == 1
        assert (directory / "table.csv").read_text().count("done") == 3

    def test_operation_and_process_can_be_subclassed(self, backend):
        op = backend.run(Cubes())
        assert [(row["x"], row["value"]) for row in op.rows()] == [(0, 0), (1, 1), (2, 8), (3, 27)]
        assert Path(op.result_directory, "sum.txt").read_text() == "36"

    # Limits

    def test_execute_aborts_after_its_timeout_and_raises_nothing(self, backend):
        for timeout in PATIENCE:
            op = operation(time_sleep, grid={"x": range(2000)})
            backend.stage_in(op)
            backend.execute(timeout)
            backend.retrieve()
            assert "of 2000" in str(backend.check_status())
            backend.consolidate()
            backend.cleanup()
            states = states_of(op)
            assert set(states) <= {"done", "cancelled"}
            assert states.count("done") < 2000
            if "done" in states:
                break
        else:
            pytest.fail(f"nothing was done in {PATIENCE} s")

    def test_with_no_time_at_all_nothing_runs(self, backend):
        op = backend.run(operation(touch, grid={"n": range(3)}), timeout=0)
        assert not list(Path().glob("made-*"))
        assert set(states_of(op)) <= {"cancelled"}

    @pytest.mark.parametrize("timeout", [None, math.inf, 1e6])
    def test_no_limit_can_be_said_in_several_ways(self, backend, timeout):
        backend.stage_in(squares())
        backend.execute(timeout)
        backend.retrieve(timeout)
        assert backend.state == "retrieved"

    # The result directory

    def test_the_result_directory_can_be_read_without_us(self, backend):
        op = backend.run(squares(3, name="my-op"))
        directory = Path(op.result_directory)
        assert directory.name.startswith("my-op-")
        assert "function" in (directory / "operation.yaml").read_text()
        environment = json.loads((directory / "environment.json").read_text())
        assert environment["packages"]["dask"]
        assert "consolidated" in (directory / "operation.log").read_text()
        header, *lines = (directory / "table.csv").read_text().splitlines()
        assert header == "process,x,data,run,state,y,start,duration,host,peak_memory,error,message"
        assert [line.split(",")[:6] for line in lines] == [
            [str(x), str(x), "", "0", "done", str(x * x)] for x in range(3)
        ]

    def test_two_operations_never_share_a_directory(self, backend):
        directories = {backend.run(squares()).result_directory for _ in range(3)}
        assert len(directories) == 3

    def test_an_operation_that_runs_again_gets_a_new_directory(self, backend):
        op = squares()
        directories = {backend.run(op).result_directory for _ in range(2)}
        assert len(directories) == 2

    def test_a_directory_that_holds_an_operation_is_refused_and_nothing_in_it_changes(
        self, backend
    ):
        backend.run(squares(result_directory="here"))
        before = {path: path.stat().st_mtime_ns for path in Path("here").iterdir()}
        with pytest.raises(DirectoryError, match="already holds an operation"):
            backend.run(squares(result_directory="here"))
        assert {path: path.stat().st_mtime_ns for path in Path("here").iterdir()} == before
        assert backend.state == "idling"

    def test_a_failed_stage_in_leaves_no_directory_and_an_idling_backend(self, backend):
        Path("file").touch()
        with pytest.raises(DirectoryError):
            backend.stage_in(squares(result_directory="file/below"))
        assert backend.state == "idling"
        assert os.listdir() == ["file"]

    def test_rows_work_after_cleanup_and_close_and_are_typed(self, backend):
        op = backend.run(operation(typed, grid={"x": [1, "a", None, 2.5, True]}))
        assert [row["x"] for row in op.rows()] == [1, "a", None, 2.5, True]
        assert op.rows()[0]["start"].tzinfo is not None
        assert op.table().shape[0] == 5

    def test_a_consolidate_step_that_raises_keeps_table_and_state_and_may_be_repeated(
        self, backend
    ):
        class Moody(Original):
            def consolidate(self):
                self.consolidated += 1
                if self.consolidated == 1:
                    raise ValueError("not yet")

        op = Moody("moody")
        backend.stage_in(op)
        backend.execute()
        backend.retrieve()
        with pytest.raises(ConsolidateError, match="ValueError: not yet"):
            backend.consolidate()
        assert backend.state == "retrieved"
        assert Path("moody/table.csv").exists()
        backend.consolidate()
        assert backend.state == "consolidated"

    def test_an_outcome_is_plain_data(self, backend):
        backend.stage_in(operation(fail, grid={"kind": ["none", "value"]}))
        backend.execute()
        backend.retrieve()
        first = backend.check_status().first_failure
        assert isinstance(first, Outcome)
        assert (first.process, first.state, first.error) == (1, "failed", "ValueError")
        assert Outcome.from_json(first.to_json()) == first

    def test_it_shows_itself_in_a_notebook(self, backend):
        assert str(backend) in backend._repr_html_()
        op = squares()
        assert "not run yet" in op._repr_html_()
        backend.run(op)
        assert "<table" in op._repr_html_()

    def test_creating_things_has_no_side_effects(self, backend, tmp_path):
        create_backend("mcore")
        squares()
        assert list(tmp_path.iterdir()) == []
        assert create_backend().state == "idling"

    def test_a_program_may_write_to_the_log_of_the_operation(self, backend):
        op = squares()
        backend.stage_in(op)
        backend._start_logging()
        backend._log("a note of the program's")
        backend._stop_logging()
        backend._log("not this one")
        log = Path(op.result_directory, "operation.log").read_text()
        assert log.count("a note of the program's") == 1
        assert "not this one" not in log

    def test_a_stage_in_that_fails_late_takes_everything_back(self, backend, monkeypatch):
        def no_log():
            raise OSError("no log today")

        monkeypatch.setattr(backend, "_start_logging", no_log)
        with pytest.raises(OSError, match="no log today"):
            backend.stage_in(squares(result_directory="here"))
        assert (backend.state, backend.current_operation) == ("idling", None)
        assert os.listdir() == []
        monkeypatch.undo()


class BackendContract(InPlaceContract):
    """What a backend promises whose processes run on workers.

    A subclass has `make_backend`, and is collected by pytest as any class of tests.
    """

    def test_a_module_that_changed_between_operations_is_imported_anew_by_workers(self, backend):
        for answer in (1, 2):
            Path("changing.py").write_text(f"ANSWER = {answer}\n\n" + "#" * answer)
            op = backend.run(operation(import_changing, grid={"x": [1]}))
            assert [row["value"] for row in op.rows()] == [answer]

    def test_a_generator_that_waits_for_its_own_results_is_not_waited_for(self, backend):

        def chain():
            for n in range(5):
                if n:
                    deadline = time.monotonic() + 20
                    while not Path(f"made-{n - 1}").exists():
                        assert time.monotonic() < deadline
                        time.sleep(0.01)
                yield functools.partial(touch, n)

        op = backend.run(operation(chain()))
        assert states_of(op) == ["done"] * 5

    def test_retrieve_raises_after_its_timeout_and_may_be_called_again(self, backend):
        backend.stage_in(operation(time_sleep, grid={"x": range(20)}))
        backend.execute()
        with pytest.raises(RetrieveTimeout, match="of 20"):
            backend.retrieve(timeout=0.01)
        assert backend.state == "executing"
        backend.retrieve(timeout=60)
        assert backend.state == "retrieved"

    def test_cleanup_while_processes_run_ends_soon_and_the_backend_goes_on(self, backend):
        backend.stage_in(operation(sleep_long, grid={"x": range(4)}))
        backend.execute()
        began = time.monotonic()
        backend.cleanup()
        assert time.monotonic() - began < 30
        assert states_of(backend.run(squares())) == ["done"] * 5

    def test_what_ended_can_be_seen_while_the_operation_runs(self, backend):
        op = operation(time_sleep, grid={"x": range(60)})
        backend.stage_in(op)
        backend.execute()
        deadline = time.monotonic() + 30
        while not (seen := len(op.rows())) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert 0 < seen <= 60
