"""What is done is not run again, whatever ended the program, and wherever it goes on."""

import contextlib
import errno
import functools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from functools import partial
from pathlib import Path

import psutil
import pytest

from daskspace import (
    DirectoryError,
    OperationError,
    SpecError,
    create_backend,
    load_operation,
    operation,
)
from daskspace.execution.commit import make_attempt_directory
from daskspace.execution.journal import Journal
from daskspace.execution.seal import sealed, unsealed

from . import kill_resume
from .backends_under_test import mpi_backend

FULL = os.environ.get("DASKSPACE_FULL") == "1"
only_full = pytest.mark.skipif(not FULL, reason="takes minutes: set DASKSPACE_FULL=1")
MARK = "DASKSPACE_TEST_MARK"
AGAIN = ("failed", "crashed", "timeout", "lost")

BACKENDS = {
    "serial": partial(create_backend, "serial"),
    "serial in a child": partial(create_backend, "serial", isolation="process"),
    "mcore": partial(create_backend, "mcore", n_workers=2),
    "mcore in place": partial(create_backend, "mcore", n_workers=2, isolation="none"),
    "mpi": mpi_backend,
}


@pytest.fixture(scope="module")
def opened():
    """Backends by name, each opened once."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda name: stack.enter_context(BACKENDS[name]()))


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def serial():
    with create_backend("serial") as backend:
        yield backend


class Runs:
    """What was run, in a file to which every attempt appends a line."""

    def __init__(self, path="runs.txt"):
        self.path = Path(path).absolute()
        self.path.touch()

    def counts(self):
        return Counter(self.path.read_text(encoding="utf-8").splitlines())

    def forget(self):
        self.path.write_text("")


@pytest.fixture
def runs():
    return Runs()


def note(runs, text):
    descriptor = os.open(runs, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


def comparable(rows):
    """Return rows without what differs from one run to the next."""
    differing = ("start", "duration", "host", "peak_memory")
    return [{k: v for k, v in row.items() if k not in differing} for row in rows]


def stepwise(backend, op, timeout=None):
    """Take an operation through all steps, and return the last status."""
    try:
        backend.stage_in(op)
        backend.execute(timeout)
        backend.retrieve(None)
        status = backend.check_status()
        backend.consolidate()
    finally:
        backend.cleanup()
    return status


def states(op):
    return dict(Counter(row["state"] for row in op.rows()))


def journal_of(directory):
    return Path(directory, "journal.jsonl")


def entries(directory):
    return [unsealed(line) for line in journal_of(directory).read_bytes().splitlines()]


def numbers_and_names(directory):
    """Return the number and the directory of each process by the end of its journal."""
    named = {}
    for entry in entries(directory):
        if entry and "process" in entry and "directory" in entry:
            named[entry["process"]] = entry["directory"]
    return named


def wait_until(condition, patience=60.0):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


# Interrupted and resumed


def gated(runs, gate, x, seed):
    note(runs, x)
    if x >= 7 and not os.path.exists(gate):
        time.sleep(60)
    return {"y": x * x, "seen": seed}


def gated_operation(runs, n=30, directory="results", **options):
    function = partial(gated, str(runs.path), os.path.abspath("gate"))
    return operation(
        function, grid={"x": range(n)}, result_directory=directory, name="gated", **options
    )


PAIRS = [
    ("serial", "mcore"),
    ("serial in a child", "mcore"),
    ("serial", "mcore in place"),
    ("mcore", "serial"),
    ("mcore", "serial in a child"),
    ("mcore", "mcore"),
    ("serial", "serial"),
    ("mpi", "mcore"),
    ("mcore", "mpi"),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_an_operation_that_was_cut_goes_on_with_any_backend(opened, runs, first, second):
    stepwise(opened(first), gated_operation(runs), timeout=4)
    before = {row["x"]: row["state"] for row in gated_operation(runs, resume=True).rows()}
    ran_before = set(runs.counts())
    assert {"done"} <= set(before.values()) <= {"done", "cancelled"}
    done = {str(x) for x, state in before.items() if state == "done"}
    assert len(done) <= 7

    Path("gate").touch()
    op = gated_operation(runs, resume=True)
    status = stepwise(opened(second), op)

    assert status.counts == {"cached": len(done), "done": 30 - len(done)}
    counts = runs.counts()
    assert set(counts) == {str(x) for x in range(30)}
    twice = {x for x, times in counts.items() if times > 1}
    assert max(counts.values()) <= 2
    assert twice == ran_before - done
    assert len(twice) <= 2
    undisturbed = gated_operation(runs, directory="undisturbed")
    opened("serial").run(undisturbed)
    assert comparable(op.rows()) == comparable(undisturbed.rows())
    csv = [Path(name, "table.csv").read_text() for name in ("results", "undisturbed")]
    assert [len(text.splitlines()) for text in csv] == [31, 31]
    assert not Path("results/.attempts").exists()


@pytest.mark.parametrize("name", ["serial", "mcore"])
def test_of_a_finished_operation_nothing_runs_and_the_status_says_cached(opened, runs, name):
    Path("gate").touch()
    opened("serial").run(gated_operation(runs))
    table = Path("results/table.csv").read_bytes()
    runs.forget()
    op = gated_operation(runs, resume=True)
    status = stepwise(opened(name), op)
    assert runs.counts() == {}
    assert status.counts == {"cached": 30}
    assert float(status) == 1.0
    assert "30 cached" in str(status)
    assert Path("results/table.csv").read_bytes() == table
    assert states(op) == {"done": 30}


def test_resuming_again_and_again_changes_nothing(serial, runs):
    Path("gate").touch()
    serial.run(gated_operation(runs))
    rows = gated_operation(runs, resume=True).rows()
    for _ in range(3):
        op = gated_operation(runs, resume=True)
        serial.run(op)
        assert op.rows() == rows
    assert set(runs.counts().values()) == {1}


def test_resume_begins_where_there_is_nothing_yet(serial, runs):
    Path("gate").touch()
    Path("empty").mkdir()
    for directory in ("empty", "missing"):
        op = gated_operation(runs, n=3, directory=directory, resume=True)
        assert stepwise(serial, op).counts == {"done": 3}


def test_without_resume_a_directory_with_an_operation_is_refused_and_stays_as_it_is(serial, runs):
    Path("gate").touch()
    serial.run(gated_operation(runs))
    before = journal_of("results").read_bytes()
    with pytest.raises(DirectoryError, match="already holds an operation"):
        serial.run(gated_operation(runs))
    assert journal_of("results").read_bytes() == before


def test_resume_without_a_directory_is_refused(serial):
    with pytest.raises(DirectoryError, match="resume needs the result directory"):
        serial.run(stream(2, resume=True))


@pytest.mark.parametrize("resume", ["fail", ["failed", "done"], ["cached"], [1]])
def test_a_state_that_cannot_be_run_again_is_refused(resume):
    with pytest.raises(SpecError, match="failed, crashed, timeout, lost"):
        stream(2, resume=resume)


def stream(n, **options):
    return operation([partial(pow, x, 2) for x in range(n)], **options)


def test_an_operation_from_a_file_goes_on(serial, runs):
    Path("cubes_here.py").write_text(
        "def cube(x, runs):\n"
        "    with open(runs, 'a') as file:\n"
        "        file.write(f'{x}\\n')\n"
        "    return x ** 3\n"
    )
    text = (
        "type: function\nfunction: cubes_here:cube\n"
        "parameter_ranges:\n  x: {x}\n  runs: ['{runs}']\n"
    )
    Path("op.yaml").write_text(text.format(x=[1, 2], runs=runs.path))
    serial.run(load_operation("op.yaml", "results", resume=True))
    Path("op.yaml").write_text(text.format(x=[3, 2, 1], runs=runs.path))
    op = load_operation("op.yaml", "results", resume=True)
    assert stepwise(serial, op).counts == {"cached": 2, "done": 1}
    assert runs.counts() == {"1": 1, "2": 1, "3": 1}
    assert sorted(row["value"] for row in op.rows()) == [1, 8, 27]
    with pytest.raises(DirectoryError, match="already holds"):
        serial.run(load_operation("op.yaml", "results"))


# What is run again


def troubled(runs, world, x, directory):
    """End in another way for each x while the world is bad."""
    note(runs, x)
    bad = Path(world).read_text() == "bad"
    (directory / "world.txt").write_text("bad" if bad else "good")
    if bad:
        match x:
            case "failed":
                raise ValueError("bad world")
            case "crashed":
                os._exit(3)
            case "timeout":
                time.sleep(60)
            case "lost":
                os.kill(os.getppid(), signal.SIGKILL)  # the host of this interpreter
                time.sleep(60)
    return {"bad": bad}


TROUBLED = ["fine", *AGAIN, "fine too"]
LIMITS = {"isolation": "process", "process_timeout": 3, "lost_retries": 0}


def troubled_operation(folder, **options):
    function = partial(troubled, str(folder / "runs.txt"), str(folder / "world.txt"))
    return operation(function, grid={"x": TROUBLED}, result_directory=folder / "results", **options)


@pytest.fixture(scope="module")
def after_trouble(tmp_path_factory):
    """A folder with an operation of which one process ended in each way."""
    folder = tmp_path_factory.mktemp("trouble")
    (folder / "world.txt").write_text("bad")
    before = os.getcwd()
    os.chdir(folder)
    try:
        with create_backend("serial", **LIMITS) as backend:
            op = backend.run(troubled_operation(folder))
    finally:
        os.chdir(before)
    assert [row["state"] for row in op.rows()] == ["done", *AGAIN, "done"]
    return folder


@pytest.fixture
def trouble(after_trouble, tmp_path):
    """A copy of it, in a world that has become good."""
    folder = tmp_path / "moved"
    shutil.copytree(after_trouble, folder)
    (folder / "world.txt").write_text("good")
    (folder / "runs.txt").write_text("")
    return folder


def worlds(folder):
    """Return what the directory of each process says."""
    return {
        entry["parameters"]["x"]: Path(
            folder, "results", entry["directory"], "world.txt"
        ).read_text()
        for entry in entries(folder / "results")
        if entry and "directory" in entry
    }


@pytest.mark.parametrize("state", AGAIN)
def test_processes_in_a_state_that_is_named_are_run_again_and_no_others(trouble, state):
    before = {row["x"]: row for row in troubled_operation(trouble, resume=True).rows()}
    with create_backend("serial", **LIMITS) as backend:
        op = troubled_operation(trouble, resume=state)
        status = stepwise(backend, op)
    assert Counter((trouble / "runs.txt").read_text().split("\n")[:-1]) == {state: 1}
    assert status.counts == {"cached": 2, "done": 1} | {s: 1 for s in AGAIN if s != state}
    rows = {row["x"]: row for row in op.rows()}
    assert [row["process"] for row in op.rows()] == list(range(6))
    assert {x: row for x, row in rows.items() if x != state} == {
        x: row for x, row in before.items() if x != state
    }
    again = rows[state]
    assert (again["state"], again["bad"], again["error"]) == ("done", False, None)
    told = worlds(trouble)
    assert told.pop(state) == "good"
    assert set(told.values()) == {"bad"}
    directories = list((trouble / "results/processes").iterdir())
    assert len(directories) == len(told) + 1
    assert not (trouble / "results/.attempts").exists()


def test_with_resume_alone_what_failed_stays_as_it_is(trouble):
    with create_backend("serial", **LIMITS) as backend:
        op = troubled_operation(trouble, resume=True)
        status = stepwise(backend, op)
    assert (trouble / "runs.txt").read_text() == ""
    assert status.counts == {"cached": 2, "failed": 1, "crashed": 1, "timeout": 1, "lost": 1}
    assert states(op) == {"done": 2, "failed": 1, "crashed": 1, "timeout": 1, "lost": 1}


def test_several_states_are_run_again_by_another_backend(trouble, opened):
    op = troubled_operation(trouble, resume=AGAIN)
    assert stepwise(opened("mcore"), op).counts == {"cached": 2, "done": 4}
    assert states(op) == {"done": 6}
    told = worlds(trouble)
    assert {told.pop("fine"), told.pop("fine too")} == {"bad"}
    assert told == dict.fromkeys(AGAIN, "good")


def test_what_fails_again_has_the_row_of_its_last_try(trouble):
    (trouble / "world.txt").write_text("bad")
    with create_backend("serial", **LIMITS) as backend:
        op = troubled_operation(trouble, resume="failed")
        status = stepwise(backend, op)
        assert status.counts["failed"] == 1
        assert states(op) == {"done": 2, "failed": 1, "crashed": 1, "timeout": 1, "lost": 1}
        (trouble / "world.txt").write_text("good")
        op = troubled_operation(trouble, resume="failed")
        assert stepwise(backend, op).counts["cached"] == 2
    assert (trouble / "runs.txt").read_text().split() == ["failed", "failed"]
    assert worlds(trouble)["failed"] == "good"


def test_a_cut_while_failed_ones_are_run_again_leaves_them_to_be_run(trouble):
    with create_backend("serial", **LIMITS) as backend:
        stepwise(backend, troubled_operation(trouble, resume="failed"), timeout=0)
        op = troubled_operation(trouble, resume="failed")
        stepwise(backend, op)
    assert states(op) == {"done": 3, "crashed": 1, "timeout": 1, "lost": 1}


def test_what_had_failed_keeps_row_and_directory_until_it_is_begun_again(trouble):
    before = troubled_operation(trouble, resume=True).rows()
    with create_backend("serial", **LIMITS) as backend:
        op = troubled_operation(trouble, resume=AGAIN)
        stepwise(backend, op, timeout=0)
    assert (trouble / "runs.txt").read_text() == ""
    assert op.rows() == before
    assert set(worlds(trouble).values()) == {"bad"}


def test_what_was_done_and_fails_when_it_is_run_again_is_known_to_have_failed(trouble):
    (fine,) = (e["directory"] for e in entries(trouble / "results") if e and of_x(e) == "failed")
    (trouble / "world.txt").write_text("good")
    with create_backend("serial", **LIMITS) as backend:
        stepwise(backend, troubled_operation(trouble, resume="failed"))
        shutil.rmtree(trouble / "results" / fine)
        (trouble / "world.txt").write_text("bad")
        op = troubled_operation(trouble, resume=True)
        assert stepwise(backend, op).counts["failed"] == 1
        assert states(op)["failed"] == 1
        op = troubled_operation(trouble, resume=True)
        assert stepwise(backend, op).counts["failed"] == 1
        (trouble / "world.txt").write_text("good")
        op = troubled_operation(trouble, resume="failed")
        assert stepwise(backend, op).counts["done"] == 1
        assert "failed" not in states(op)


def of_x(entry):
    return entry["parameters"]["x"] if "process" in entry else None


@pytest.mark.parametrize("where", ["directory", "tape"])
def test_what_failed_and_was_only_saved_by_the_resume_is_run_again_if_asked_for(trouble, where):
    lines = journal_of(trouble / "results").read_bytes().splitlines(keepends=True)
    (failed,) = (line for line in lines if of_x(unsealed(line[:-1])) == "failed")
    journal_of(trouble / "results").write_bytes(b"".join(line for line in lines if line != failed))
    if where == "tape":
        (trouble / "results/.attempts").mkdir()
        (trouble / "results/.attempts/gone.tape").write_bytes(b"failed " + failed)
    with create_backend("serial", **LIMITS) as backend:
        op = troubled_operation(trouble, resume="failed")
        status = stepwise(backend, op)
    assert status.counts["done"] == 1
    assert states(op) == {"done": 3, "crashed": 1, "timeout": 1, "lost": 1}
    assert worlds(trouble)["failed"] == "good"


def test_what_an_operation_of_no_time_cancelled_is_run_later(serial, runs):
    Path("gate").touch()
    stepwise(serial, gated_operation(runs, n=5), timeout=0)
    assert runs.counts() == {}
    op = gated_operation(runs, n=5, resume=True)
    assert stepwise(serial, op).counts == {"done": 5}
    assert states(op) == {"done": 5}


# Which process is which


def keep(runs, name, directory, data=None, run=None):
    text = f"{name}/{data}/{run}"
    note(runs, text)
    (directory / "kept.txt").write_text(text)
    print("kept", name)
    return {"kept": text}


def kept_consistently(op):
    """Check that each process has its own number, log and directory, with what is its own."""
    rows = op.rows()
    assert len({row["process"] for row in rows}) == len(rows)
    last = {
        entry["process"]: entry
        for entry in entries(op.result_directory)
        if entry and "process" in entry and entry["state"] == "done"
    }
    for name in ("directory", "log"):
        assert len({entry[name] for entry in last.values()}) == len(rows)
    for row in rows:
        directory = Path(op.result_directory, last[row["process"]]["directory"])
        assert (directory / "kept.txt").read_text() == row["kept"]
        outcome = json.loads((directory / "outcome.json").read_text())
        assert outcome["process"] == row["process"]
    assert len(list(Path(op.result_directory, "processes").iterdir())) == len(rows)
    return {row["kept"]: row["process"] for row in rows}


def without_data(runs, name, directory, run=None):
    return keep(runs, name, directory, run=run)


def kept(log, names, **options):
    options.setdefault("result_directory", "results")
    function = keep if "data" in options else without_data
    return operation(partial(function, str(log.path)), grid={"name": names}, **options)


@pytest.mark.parametrize("backend", ["serial", "mcore"])
def test_of_a_grid_that_grew_the_new_processes_run_with_numbers_that_are_free(
    opened, runs, backend
):
    opened(backend).run(kept(runs, ["b", "d"], runs=2))
    before = kept_consistently(kept(runs, ["b", "d"], runs=2, resume=True))
    assert sorted(before.values()) == [0, 1, 2, 3]
    op = kept(runs, ["a", "b", "c", "d"], runs=2, resume=True)
    assert stepwise(opened(backend), op).counts == {"cached": 4, "done": 4}
    after = kept_consistently(op)
    assert {key: number for key, number in after.items() if key in before} == before
    assert len(after) == 8
    assert set(runs.counts().values()) == {1}
    again = kept(runs, ["a", "b", "c", "d"], runs=2, resume=True)
    assert stepwise(opened(backend), again).counts == {"cached": 8}
    assert kept_consistently(again) == after


def test_with_more_runs_only_the_new_runs_run(serial, runs):
    serial.run(kept(runs, ["a", "b"], runs=1))
    op = kept(runs, ["a", "b"], runs=3, resume=True)
    assert stepwise(serial, op).counts == {"cached": 2, "done": 4}
    assert set(runs.counts().values()) == {1}
    assert [(row["name"], row["run"]) for row in op.rows()][:2] == [("a", 0), ("b", 0)]
    kept_consistently(op)


def test_with_fewer_processes_the_others_keep_their_rows(serial, runs):
    serial.run(kept(runs, ["a", "b", "c"]))
    op = kept(runs, ["b"], resume=True)
    assert stepwise(serial, op).counts == {"cached": 1}
    assert states(op) == {"done": 3}


def test_settings_may_be_reordered_and_so_may_the_names_in_them(serial, runs):
    def make(settings, **options):
        function = partial(two, str(runs.path))
        return operation(function, settings=settings, result_directory="results", **options)

    serial.run(make([{"a": 1, "b": 2}, {"a": 3, "b": 4}]))
    op = make([{"b": 4, "a": 3}, {"a": 5, "b": 6}, {"b": 2, "a": 1}], resume=True)
    assert stepwise(serial, op).counts == {"cached": 2, "done": 1}
    assert runs.counts() == {"1 2": 1, "3 4": 1, "5 6": 1}
    assert [(row["process"], row["a"], row["value"]) for row in op.rows()] == [
        (0, 1, 2),
        (1, 3, 12),
        (2, 5, 30),
    ]


def two(runs, a, b):
    note(runs, f"{a} {b}")
    return a * b


def test_a_grid_may_become_a_list_of_settings(serial, runs):
    function = partial(two, str(runs.path))
    serial.run(operation(function, grid={"a": [1, 2], "b": [3]}, result_directory="results"))
    op = operation(
        function,
        settings=[{"a": 2, "b": 3}, {"a": 4, "b": 3}],
        result_directory="results",
        resume=True,
    )
    assert stepwise(serial, op).counts == {"cached": 1, "done": 1}


def test_values_that_look_alike_and_differ_are_different_processes(serial, runs):
    values = [1, "1", None, "None", "null", [1], "[1]", {"a": 1}, 0.5, "0.5", "", " ", [[]], []]
    op = serial.run(kept(runs, values))
    assert [row["name"] for row in op.rows()] == values
    again = kept(runs, values[::-1], resume=True)
    assert stepwise(serial, again).counts == {"cached": len(values)}
    assert [row["name"] for row in again.rows()] == values
    assert len(list(Path("results/processes").iterdir())) == len(values)


def test_data_sets_are_known_by_their_path_and_by_their_name(serial, runs):
    Path("data").mkdir()
    for name in "ab":
        Path("data", f"{name}.csv").write_text(name)
    serial.run(kept(runs, ["n"], data="data/*.csv"))
    Path("data", "aa.csv").write_text("new")
    op = kept(runs, ["n"], data="data/*.csv", resume=True)
    assert stepwise(serial, op).counts == {"cached": 2, "done": 1}
    assert (
        runs.counts() == {f"n/data/{name}.csv/0": 1 for name in ("a", "aa", "b")}
        or len(runs.counts()) == 3
    )
    kept_consistently(op)

    named = kept(runs, ["n"], data={"one": 1, "two": 2}, result_directory="named")
    serial.run(named)
    again = kept(
        runs, ["n"], data={"two": 2, "new": 3, "one": 1}, result_directory="named", resume=True
    )
    assert stepwise(serial, again).counts == {"cached": 2, "done": 1}
    assert [row["data"] for row in again.rows()] == ["one", "two", "new"]


def test_it_is_told_when_the_function_or_a_data_set_has_changed_and_not_when_one_is_new(
    serial, runs
):
    def told_of(**options):
        log = Path("results/operation.log")
        before = len(log.read_text()) if log.exists() else 0
        stepwise(serial, kept(runs, ["n"], resume=True, **options))
        return "changed since" in log.read_text()[before:]

    Path("a.csv").write_text("a")
    Path("b.csv").write_text("b")
    assert not told_of(data=["a.csv"])
    assert not told_of(data=["a.csv"])
    assert not told_of(data=["a.csv", "b.csv"])
    Path("b.csv").write_text("not b any more")
    assert told_of(data=["a.csv", "b.csv"])
    assert told_of()  # without data sets it is another function


def test_a_data_set_is_the_same_from_whichever_working_directory(serial, runs, monkeypatch):
    Path("data").mkdir()
    Path("data/a.csv").touch()
    Path("elsewhere").mkdir()
    results = os.path.abspath("results")
    absolute = os.path.abspath("data/*.csv")
    serial.run(kept(runs, ["n"], data=absolute, result_directory=results))
    monkeypatch.chdir("elsewhere")
    op = kept(runs, ["n"], data=absolute, result_directory=results, resume=True)
    assert stepwise(serial, op).counts == {"cached": 1}


class Keyed:
    """A process with a key, or without one."""

    def __init__(self, runs, name, key=None):
        self.runs, self.name, self.key = str(runs.path), name, key

    def __call__(self):
        from daskspace.execution.attempt import current_attempt

        return without_data(self.runs, self.name, current_attempt().make_directory())


def test_processes_of_a_stream_are_known_by_their_position(serial, runs):
    serial.run(operation([Keyed(runs, n) for n in "abc"], result_directory="results"))
    op = operation((Keyed(runs, n) for n in "abcde"), result_directory="results", resume=True)
    assert stepwise(serial, op).counts == {"cached": 3, "done": 2}
    assert kept_consistently(op) == {f"{n}/None/None": i for i, n in enumerate("abcde")}
    assert set(runs.counts().values()) == {1}


@pytest.mark.parametrize(
    "keys", [{name: name for name in "abcdef"}, {"abcdef"[n]: n for n in range(6)}]
)
def test_processes_with_keys_may_come_in_any_order(serial, runs, keys):
    def make(names, **options):
        processes = [Keyed(runs, n, keys[n]) for n in names]
        return operation(processes, result_directory="results", **options)

    serial.run(make("abc"))
    before = kept_consistently(make("abc", resume=True))
    op = make("fcebad", resume=True)
    assert stepwise(serial, op).counts == {"cached": 3, "done": 3}
    after = kept_consistently(op)
    assert {k: after[k] for k in before} == before
    assert set(runs.counts().values()) == {1}
    assert stepwise(serial, make("defabc", resume=True)).counts == {"cached": 6}


def test_keys_of_strange_kinds_are_told_apart(serial, runs):
    keys = [1, "1", "", "a/b", "a b", "../up", "ü☃", "x" * 300, "x" * 301, 0, -1, 2**70]
    processes = [Keyed(runs, f"n{n}", key) for n, key in enumerate(keys)]
    serial.run(operation(processes, result_directory="results"))
    op = operation(processes[::-1], result_directory="results", resume=True)
    assert stepwise(serial, op).counts == {"cached": len(keys)}
    kept_consistently(op)


# Disk is the truth


def finished(serial, runs, n=12):
    """Return a finished operation of processes with directories, and how to make it anew."""
    serial.run(kept(runs, list(range(n))))
    runs.forget()
    return partial(kept, runs, list(range(n)), resume=True)


def rewrite(directory, change):
    lines = journal_of(directory).read_bytes().splitlines(keepends=True)
    journal_of(directory).write_bytes(b"".join(change(lines)))


def test_a_process_whose_directory_was_deleted_is_run_again_and_no_other(serial, runs):
    again = finished(serial, runs)
    rows = again().rows()
    shutil.rmtree(Path("results", numbers_and_names("results")[5]))
    op = again()
    assert stepwise(serial, op).counts == {"cached": 11, "done": 1}
    assert runs.counts() == {"5/None/0": 1}
    assert comparable(op.rows()) == comparable(rows)
    kept_consistently(op)


def test_when_all_directories_were_deleted_all_run_again(serial, runs):
    again = finished(serial, runs)
    shutil.rmtree("results/processes")
    op = again()
    assert stepwise(serial, op).counts == {"done": 12}
    kept_consistently(op)


@pytest.mark.parametrize("lost", [1, 4, 12])
def test_directories_whose_lines_the_journal_lost_are_adopted(serial, runs, lost):
    again = finished(serial, runs)
    rows = again().rows()
    rewrite("results", lambda lines: lines[: -1 - lost])
    op = again()
    assert stepwise(serial, op).counts == {"cached": 12}
    assert runs.counts() == {}
    assert op.rows() == rows
    kept_consistently(op)


def test_what_an_extended_grid_lost_of_its_journal_keeps_its_numbers(serial, runs):
    finished(serial, runs, 4)
    names = [10, 0, 11, 1, 2, 3]
    serial.run(kept(runs, names, resume=True))
    before = kept_consistently(kept(runs, names, resume=True))
    runs.forget()
    rewrite("results", lambda lines: lines[:-2])
    op = kept(runs, [12, *names], resume=True)
    assert stepwise(serial, op).counts == {"cached": 6, "done": 1}
    after = kept_consistently(op)
    assert {key: after[key] for key in before} == before


def plain_work(runs, x):
    note(runs, x)
    return x * x


def plain_operation(runs, n=12, **options):
    function = partial(plain_work, str(runs.path))
    return operation(function, grid={"x": range(n)}, result_directory="results", **options)


@pytest.mark.parametrize("lost", [1, 5])
def test_without_directories_only_what_the_journal_lost_is_run_again(serial, runs, lost):
    rows = serial.run(plain_operation(runs)).rows()
    rewrite("results", lambda lines: lines[: -1 - lost])
    op = plain_operation(runs, resume=True)
    assert stepwise(serial, op).counts == {"cached": 12 - lost, "done": lost}
    assert sum(runs.counts().values()) == 12 + lost
    assert comparable(op.rows()) == comparable(rows)


def damage(lines, number=6):
    middle = len(lines[number]) // 2
    lines[number] = lines[number][:middle] + b"#" + lines[number][middle + 1 :]
    return lines


def test_a_process_whose_line_is_damaged_is_run_again_and_no_other(serial, runs):
    rows = serial.run(plain_operation(runs)).rows()
    rewrite("results", damage)
    op = plain_operation(runs, resume=True)
    assert len(op.rows()) == 11
    assert stepwise(serial, op).counts == {"cached": 11, "done": 1}
    assert runs.counts()["5"] == 2
    assert comparable(op.rows()) == comparable(rows)
    assert stepwise(serial, plain_operation(runs, resume=True)).counts == {"cached": 12}


def test_a_process_whose_line_is_damaged_is_adopted_if_it_has_a_directory(serial, runs):
    again = finished(serial, runs)
    rows = again().rows()
    rewrite("results", damage)
    op = again()
    assert stepwise(serial, op).counts == {"cached": 12}
    assert runs.counts() == {}
    assert op.rows() == rows


def test_a_damaged_receipt_in_a_directory_does_no_harm_while_the_journal_is_whole(serial, runs):
    again = finished(serial, runs)
    rows = again().rows()
    Path("results", numbers_and_names("results")[5], "outcome.json").write_text("garbage")
    op = again()
    assert stepwise(serial, op).counts == {"cached": 12}
    assert op.rows() == rows


@pytest.mark.parametrize("left", ["", "garbage", "damaged", None])
def test_a_process_of_which_line_and_receipt_are_damaged_is_run_again(serial, runs, left):
    again = finished(serial, runs)
    rows = again().rows()
    outcome = Path("results", numbers_and_names("results")[5], "outcome.json")
    if left is None:
        outcome.unlink()
    else:
        outcome.write_text(left if left != "damaged" else outcome.read_text().replace("5", "6", 1))
    rewrite("results", damage)
    op = again()
    assert stepwise(serial, op).counts == {"cached": 11, "done": 1}
    assert runs.counts() == {"5/None/0": 1}
    assert comparable(op.rows()) == comparable(rows)
    kept_consistently(op)


@pytest.mark.parametrize("cut", [1, 2, 30, 100])
def test_a_torn_last_line_is_cut_off_and_its_process_run_again(serial, runs, cut):
    rows = serial.run(plain_operation(runs)).rows()
    rewrite("results", lambda lines: [*lines[:-2], lines[-2][:-cut]])
    op = plain_operation(runs, resume=True)
    assert stepwise(serial, op).counts == {"cached": 11, "done": 1}
    assert runs.counts()["11"] == 2
    assert comparable(op.rows()) == comparable(rows)
    assert all(entries("results"))


def test_lines_that_are_none_of_ours_are_passed_over(serial, runs):
    serial.run(plain_operation(runs))
    strange = [b"\n", b"[]\n", b"\xff\xfe\x00\n", b"null\n", sealed('{"hello":1}').encode() + b"\n"]
    rewrite("results", lambda lines: [*lines[:4], *strange, *lines[4:]])
    op = plain_operation(runs, resume=True)
    assert stepwise(serial, op).counts == {"cached": 12}
    assert states(op) == {"done": 12}


@pytest.mark.parametrize("content", [b"garbage\n" * 100, b"\x00" * 4096 + b"\n", b"{}\n", b"\n"])
def test_a_journal_that_is_garbage_is_refused_and_stays(serial, runs, content):
    serial.run(plain_operation(runs))
    journal_of("results").write_bytes(content)
    with pytest.raises(DirectoryError, match=r"journal\.jsonl"):
        serial.run(plain_operation(runs, resume=True))
    assert journal_of("results").read_bytes() == content
    assert serial.state == "idling"
    assert sum(runs.counts().values()) == 12


def test_garbage_without_an_end_of_line_is_not_thrown_away(serial, runs):
    serial.run(plain_operation(runs))
    journal_of("results").write_bytes(b"\x00garbage" * 1000)
    with pytest.raises(DirectoryError, match=r"journal\.jsonl"):
        serial.run(plain_operation(runs, resume=True))
    assert journal_of("results").read_bytes() == b"\x00garbage" * 1000


def test_a_journal_of_a_newer_version_is_refused_and_stays(serial, runs):
    serial.run(plain_operation(runs))
    newer = sealed(json.dumps({"journal": 99, "session": 1})).encode() + b"\n"
    rewrite("results", lambda lines: [newer, *lines[1:]])
    before = journal_of("results").read_bytes()
    with pytest.raises(DirectoryError, match=r"99.*upgrade"):
        serial.run(plain_operation(runs, resume=True))
    assert journal_of("results").read_bytes() == before


@pytest.mark.parametrize("torn", [0, 1, 20])
def test_a_journal_without_a_whole_header_begins_anew(serial, runs, torn):
    serial.run(plain_operation(runs))
    header = journal_of("results").read_bytes()[:torn]
    journal_of("results").write_bytes(header)
    op = plain_operation(runs, resume=True)
    assert stepwise(serial, op).counts == {"done": 12}
    assert set(runs.counts().values()) == {2}


def test_an_empty_journal_adopts_the_directories_that_are_there(serial, runs):
    again = finished(serial, runs)
    rows = again().rows()
    journal_of("results").write_bytes(b"")
    op = again()
    assert stepwise(serial, op).counts == {"cached": 12}
    assert runs.counts() == {}
    assert op.rows() == rows


def test_a_missing_journal_adopts_the_directories_that_are_there(serial, runs):
    again = finished(serial, runs)
    rows = again().rows()
    journal_of("results").unlink()
    op = again()
    assert stepwise(serial, op).counts == {"cached": 12}
    assert runs.counts() == {}
    assert op.rows() == rows


def with_directory(answer, x, directory):
    return answer


def test_without_resume_directories_of_another_operation_are_never_taken_for_results(serial):
    def make(answer):
        function = partial(with_directory, answer)
        return operation(function, grid={"x": [1, 2]}, result_directory="results")

    serial.run(make("old"))
    for path in Path("results").iterdir():
        if path.is_file():
            path.unlink()
    try:
        op = serial.run(make("new"))
    except DirectoryError:
        assert [path.name for path in Path("results").iterdir()] == ["processes"]
    else:
        assert [row["value"] for row in op.rows()] == ["new", "new"]


def test_a_journal_that_is_a_directory_is_refused(serial, runs):
    serial.run(plain_operation(runs))
    journal_of("results").unlink()
    journal_of("results").mkdir()
    for resume in (True, False):
        with pytest.raises(DirectoryError):
            serial.run(plain_operation(runs, resume=resume))
    assert journal_of("results").is_dir()
    assert sum(runs.counts().values()) == 12


@pytest.mark.parametrize(
    "name", ["operation.yaml", "environment.json", "operation.log", "table.csv"]
)
def test_every_file_but_the_journal_may_be_missing(serial, runs, name):
    serial.run(plain_operation(runs))
    Path("results", name).unlink()
    op = plain_operation(runs, resume=True)
    assert stepwise(serial, op).counts == {"cached": 12}
    assert states(op) == {"done": 12}
    if name != "environment.json":
        assert Path("results", name).exists()


def test_tapes_of_a_killed_client_are_taken_over(serial, runs):
    serial.run(plain_operation(runs))
    lines = journal_of("results").read_bytes().splitlines(keepends=True)
    taped = [b"done " + line for line in lines[8:11]]
    Path("results/.attempts").mkdir()
    Path("results/.attempts/gone-0.tape").write_bytes(
        b"".join([b'begin 1.0 {"process":7}\n', *taped, b'begin 2.0 {"process":10}\ntorn'])
    )
    Path("results/.attempts/gone-1.tape").write_bytes(b"")
    Path("results/.attempts/some-process.01234567").mkdir()
    journal_of("results").write_bytes(b"".join(lines[:8]))
    op = plain_operation(runs, resume=True)
    assert stepwise(serial, op).counts == {"cached": 10, "done": 2}
    assert {x for x, times in runs.counts().items() if times == 2} == {"10", "11"}
    assert not Path("results/.attempts").exists()
    assert [row["value"] for row in op.rows()] == [x * x for x in range(12)]


def test_what_ended_while_the_journal_could_not_be_written_is_taken_over_later(
    opened, runs, monkeypatch
):
    append, left = Journal.append, [3]

    def fail_later(journal, receipts):
        left[0] -= receipts.count('"process"')
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(journal, receipts)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", fail_later)
        with pytest.raises(OperationError, match="No space left"):
            opened("serial in a child").run(plain_operation(runs))
    ended = runs.counts()
    assert len(ended) >= 4
    op = plain_operation(runs, resume=True)
    stepwise(opened("serial"), op)
    assert {x: runs.counts()[x] for x in ended} == ended
    assert set(runs.counts().values()) == {1}
    assert states(op) == {"done": 12}
    assert not Path("results/.attempts").exists()


def test_tapes_are_kept_until_what_is_on_them_is_in_the_journal(serial, runs, monkeypatch):
    serial.run(plain_operation(runs))
    lines = journal_of("results").read_bytes().splitlines(keepends=True)
    Path("results/.attempts").mkdir()
    Path("results/.attempts/gone.tape").write_bytes(
        b"".join(b"done " + line for line in lines[8:-1])
    )
    journal_of("results").write_bytes(b"".join(lines[:8]))

    def fail(journal, receipts):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", fail)
        with pytest.raises(DirectoryError, match="No space left"):
            serial.run(plain_operation(runs, resume=True))
    op = plain_operation(runs, resume=True)
    assert stepwise(serial, op).counts == {"cached": 12}
    assert set(runs.counts().values()) == {1}


def test_what_a_killed_client_left_working_does_not_keep_it_from_going_on(serial, runs):
    serial.run(plain_operation(runs))
    ends = threading.Event()

    def work():
        while not ends.is_set():
            with contextlib.suppress(OSError):
                make_attempt_directory("results", "orphan")
            time.sleep(0.001)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            assert stepwise(serial, plain_operation(runs, resume=True)).counts == {"cached": 12}
    finally:
        ends.set()
        thread.join()


def test_the_environment_of_every_session_is_kept(serial, runs):
    for _ in range(3):
        serial.run(plain_operation(runs, resume=True))
    names = sorted(path.name for path in Path("results").glob("environment*.json"))
    assert names == ["environment.2.json", "environment.3.json", "environment.json"]
    assert [e["session"] for e in entries("results") if "journal" in e] == [1, 2, 3]


# What a process tells


def odd(x, directory):
    path = directory / "möd el☃.pt"
    path.write_text("kept")
    return {
        "path": str(path),
        "real": os.path.realpath(path),
        "below": os.path.relpath(path, directory.parent.parent),
        "x_again": x,
    }


ODD = [
    "ünï",
    "☃",
    "a/b",
    "a\\b",
    'a"b',
    "a'b",
    "a\nb",
    "a\tb",
    "..",
    ".",
    "",
    " ",
    "\x00",
    "-x",
    "~",
    "$HOME",
    "*",
    "x" * 1000,
    "\ud800",
    "a,b;c",
    "# c",
    "null",
]


@pytest.mark.parametrize("name", ["serial", "mcore"])
def test_paths_into_the_directory_lead_to_where_it_is_kept_whatever_the_parameters_are(
    opened, name
):
    Path("linked to").symlink_to("rësults", target_is_directory=True)
    Path("rësults").mkdir()
    function = operation(odd, grid={"x": ODD}, result_directory="linked to")
    opened(name).run(function)
    rows = function.rows()
    assert [row["x"] for row in rows] == ODD
    for row in rows:
        assert row["state"] == "done"
        assert row["x_again"] == row["x"]
        assert Path(row["path"]).read_text() == "kept"
        assert ".attempts" not in row["path"]
        assert Path(row["real"]).read_text() == "kept"
        assert Path("rësults", row["below"]).read_text() == "kept"
    op = operation(odd, grid={"x": ODD}, result_directory="rësults", resume=True)
    assert stepwise(opened(name), op).counts == {"cached": len(ODD)}
    assert op.rows() == rows


def where_it_fails(directory):
    raise ValueError(f"see {directory / 'core.txt'}")


def test_the_message_of_a_failure_leads_to_the_final_directory(serial):
    op = serial.run(operation(where_it_fails, settings=[{}]))
    (row,) = op.rows()
    assert row["state"] == "failed"
    path = Path(row["message"].removeprefix("see ")).parent
    assert path.is_dir()
    assert path.parent.name == "processes"


# One client at a time


HOLDER = """
import sys, time
from daskspace import create_backend, operation
with create_backend(sys.argv[1], **({"n_workers": 1} if sys.argv[1] == "mcore" else {})) as backend:
    backend.stage_in(operation([time.time], result_directory=sys.argv[2], resume=True))
    print("staged", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize("name", ["serial", "mcore"])
def test_a_second_client_is_refused_with_host_and_pid_until_the_first_is_killed(serial, runs, name):
    command = [sys.executable, "-c", HOLDER, name, "results"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "staged\n"
            before = journal_of("results").read_bytes()
            words = f"in use by process {holder.pid} on {socket.gethostname()}"
            with pytest.raises(DirectoryError, match=words):
                serial.run(operation([time.time], result_directory="results", resume=True))
            assert journal_of("results").read_bytes() == before
            assert Path("results/.attempts").exists()
        finally:
            holder.kill()
            holder.wait()
    op = operation([time.time], result_directory="results", resume=True)
    assert stepwise(serial, op).counts == {"done": 1}


def test_two_backends_of_one_program_cannot_have_the_same_directory(serial, runs):
    with create_backend("serial") as other:
        other.stage_in(plain_operation(runs))
        words = f"in use by process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(DirectoryError, match=words):
            serial.run(plain_operation(runs, resume=True))
        other.execute()
        other.retrieve()
        other.consolidate()
    assert stepwise(serial, plain_operation(runs, resume=True)).counts == {"cached": 12}


def fork_and_wait(runs, x):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    note(runs, "forked")
    time.sleep(60)


FORKER = """
import sys
from functools import partial
from daskspace import create_backend, operation
sys.path.insert(0, sys.argv[2])
from tests.backends.test_resume import fork_and_wait
with create_backend("serial") as backend:
    function = partial(fork_and_wait, sys.argv[1])
    backend.run(operation(function, grid={"x": [0]}, result_directory="results"))
"""


def test_what_a_killed_client_forked_does_not_keep_its_directory_locked(serial, runs):
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", FORKER, str(runs.path), root]
    mark = uuid.uuid4().hex
    try:
        with subprocess.Popen(command, env={**os.environ, MARK: mark}) as client:
            wait_until(lambda: runs.counts())
            client.kill()
            client.wait()
        op = operation([time.time], result_directory="results", resume=True)
        serial.stage_in(op)
        serial.cleanup()
    finally:
        for process in marked(mark):
            process.kill()


def marked(mark):
    """Return the processes whose environment has the mark."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


# Killed at any moment


class Killed:
    """An operation whose client is killed again and again."""

    def __init__(self, folder, number):
        self.results = folder / "results"
        self.runs = folder / "runs.txt"
        self.runs.touch()
        self.number = number
        self.mark = uuid.uuid4().hex
        self.kills = []

    def start(self, backend):
        root = Path(__file__).parents[2]
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.backends.kill_resume",
                str(self.results),
                str(self.runs),
                str(self.number),
                backend,
            ],
            cwd=root,
            env={**os.environ, MARK: self.mark},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def begun(self):
        return self.runs.read_bytes().count(b"begin")

    def kill_when(self, client, begun, pause):
        """Kill a client a moment after so many processes have begun; tell whether it still ran."""
        deadline = time.monotonic() + 60
        while self.begun() < begun and client.poll() is None:
            assert time.monotonic() < deadline, "nothing goes on"
            time.sleep(0.001)
        time.sleep(pause)
        has_ended = client.poll() is not None
        client.kill()
        _, errors = client.communicate()
        if has_ended:
            assert client.returncode == 0, errors
        return not has_ended


@pytest.mark.timeout(1200)
def test_killed_again_and_again_it_ends_as_if_nothing_had_been(tmp_path, serial):
    number, kills = (500, 30) if FULL else (120, 6)
    seed = int(os.environ.get("DASKSPACE_SEED", random.randrange(2**32)))
    print("DASKSPACE_SEED", seed)
    chance = random.Random(seed)
    killed = Killed(tmp_path, number)
    moments = sorted(chance.randrange(number) for _ in range(kills))
    slots = 0
    backends = ["process", "mcore", "none"]
    for n, moment in enumerate(moments):
        backend = backends[n % 3]
        client = killed.start(backend)
        startup = chance.random() < 0.15
        pause = chance.uniform(0, 1.5) if startup else chance.uniform(0, 0.03)
        if killed.kill_when(client, 0 if startup else moment, pause):
            killed.kills.append(backend)
            slots += kill_resume.SLOTS[backend]
    assert len(killed.kills) >= kills // 2
    client = killed.start(backends[kills % 3])
    _, errors = client.communicate(timeout=600)
    assert client.returncode == 0, errors

    op = operation(
        partial(kill_resume.work, str(tmp_path / "undisturbed.txt")),
        grid={"x": range(number)},
        result_directory="undisturbed",
    )
    serial.run(op)
    # every process has ended once, as undisturbed
    here, there = table(killed.results), table("undisturbed")
    assert here == there
    # only what ran when the program was killed was run again
    lines = killed.runs.read_text().splitlines()
    begun = Counter(line.split()[1] for line in lines if line.startswith("begin"))
    extra = sum(begun.values()) - number
    print(f"{len(killed.kills)} kills, {extra} extra executions")
    assert set(begun) == {str(x) for x in range(number)}
    assert extra <= slots
    # all directories and logs are there
    assert contents(killed.results) == contents("undisturbed")
    for x, log in logs(killed.results).items():
        assert log.count(f"hello from {x}\n") == 1
    assert len(logs(killed.results)) == len(range(0, number, 4))
    assert not (killed.results / ".attempts").exists()
    wait_until(lambda: not marked(killed.mark), 20)
    # and it is known to be finished
    resumed = operation(
        partial(kill_resume.work, str(killed.runs)),
        grid={"x": range(number)},
        result_directory=killed.results,
        resume=True,
    )
    status = stepwise(serial, resumed)
    assert sum(status.counts.values()) == number
    assert set(status.counts) == {"cached", "failed"}
    assert len(killed.runs.read_text().splitlines()) == len(lines)


def table(results):
    """Return the rows of a table without what differs from one run to the next."""
    probe = operation([], result_directory=results)
    rows = comparable(probe.rows())
    for row in rows:
        row["path"] = row["path"] and str(Path(row["path"]).relative_to(Path(results).absolute()))
    assert len({row["process"] for row in rows}) == len(rows)
    return rows


def contents(results):
    """Return what the directories of processes hold."""
    held = {}
    for directory in Path(results, "processes").iterdir():
        outcome = unsealed((directory / "outcome.json").read_bytes().strip())
        held[directory.name] = (
            outcome["process"],
            outcome["parameters"],
            outcome["state"],
            {p.name: p.read_text() for p in directory.iterdir() if p.name != "outcome.json"},
        )
    return held


def logs(results):
    """Return the text of the log of each process that said hello, by its x."""
    return {
        entry["parameters"]["x"]: Path(results, entry["log"]).read_text()
        for entry in entries(results)
        if entry and "log" in entry and entry["parameters"]["x"] % 4 == 0
    }


# What goes wrong with the disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def stepping(runs, folder, x):
    """Run when the file of the same number allows it."""
    note(runs, x)
    deadline = time.monotonic() + 60
    while x >= 5 and not os.path.exists(f"{folder}/go") and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.02)
    return {"text": "x" * 100, "x_again": x}


def stepping_operation(runs, folder, results, n=200, **options):
    function = partial(stepping, str(runs.path), str(folder))
    return operation(function, grid={"x": range(n)}, result_directory=results, **options)


def while_it_runs(runs, tmp_path, action, op, backend):
    """Run an operation, and do something once five of its processes have ended."""

    def act():
        wait_until(lambda: sum(runs.counts().values()) > 5)
        time.sleep(0.3)
        try:
            action()
        finally:
            (tmp_path / "go").touch()

    thread = threading.Thread(target=act)
    thread.start()
    try:
        return backend.run(op)
    finally:
        thread.join()


def fill(folder):
    with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with contextlib.suppress(OSError), open(folder / "filler", "ab", buffering=0) as file:
        while True:
            file.write(b"x")


ON_DISKS = pytest.mark.parametrize("name", ["serial", "serial in a child", "mcore"])


@ON_DISKS
def test_a_disk_that_gets_full_ends_it_and_all_that_had_ended_is_kept(
    opened, runs, tmp_path, small_disk, name
):
    results = small_disk / "results"
    op = stepping_operation(runs, tmp_path, results)
    with pytest.raises(OperationError, match=r"[Nn]o space left") as caught:
        while_it_runs(runs, tmp_path, lambda: fill(small_disk), op, opened(name))
    kept = {row["x"] for row in op.rows() if row["state"] == "done"}
    assert int(re.search(r"(\d+) processes", str(caught.value))[1]) < 200
    assert kept >= {0, 1, 2, 3}
    assert {row["state"] for row in op.rows()} <= {"done", "cancelled"}
    (small_disk / "filler").unlink()
    before = runs.counts()
    again = stepping_operation(runs, tmp_path, results, resume=True)
    status = stepwise(opened(name), again)
    assert states(again) == {"done": 200}
    assert status.counts["cached"] >= len(kept)
    twice = {int(x) for x, times in runs.counts().items() if times > 1}
    assert not twice & kept
    assert before.keys() <= runs.counts().keys()


@ON_DISKS
def test_a_disk_that_is_full_from_the_begin_is_told_at_once(
    opened, runs, tmp_path, small_disk, name
):
    fill(small_disk)
    with pytest.raises(DirectoryError, match="No space left"):
        opened(name).run(stepping_operation(runs, tmp_path, small_disk / "results"))
    assert opened(name).state == "idling"
    assert runs.counts() == {}


@ON_DISKS
def test_a_directory_that_becomes_read_only_ends_it_and_all_that_had_ended_is_kept(
    opened, runs, tmp_path, small_disk, name
):
    results = small_disk / "results"
    op = stepping_operation(runs, tmp_path, results)

    def lock_down():  # what is open stays writable, as on a disk that is going away
        subprocess.run(["mount", "--bind", str(results), str(results)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(results)], check=True)

    try:
        with pytest.raises((OperationError, DirectoryError), match="Read-only file system"):
            while_it_runs(runs, tmp_path, lock_down, op, opened(name))
        kept = {row["x"] for row in op.rows() if row["state"] == "done"}
        assert kept >= {0, 1, 2, 3}
    finally:
        subprocess.run(["umount", "-l", str(results)], check=True)
    again = stepping_operation(runs, tmp_path, results, resume=True)
    assert stepwise(opened(name), again).counts["cached"] >= len(kept)
    assert states(again) == {"done": 200}
    assert not {int(x) for x, times in runs.counts().items() if times > 1} & kept


@ON_DISKS
def test_a_read_only_directory_is_refused(opened, runs, tmp_path, small_disk, name):
    (tmp_path / "go").touch()
    results = small_disk / "results"
    opened(name).run(stepping_operation(runs, tmp_path, results, n=3))
    remount(small_disk, "ro")
    for resume, where in ((True, results), (False, small_disk / "other")):
        with pytest.raises(DirectoryError, match="Read-only file system"):
            op = stepping_operation(runs, tmp_path, where, n=3, resume=resume)
            opened(name).run(op)
        assert opened(name).state == "idling"
    assert len(stepping_operation(runs, tmp_path, results).rows()) == 3
    remount(small_disk, "rw")
    op = stepping_operation(runs, tmp_path, results, n=3, resume=True)
    assert stepwise(opened(name), op).counts == {"cached": 3}


@ON_DISKS
@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_result_directory_that_goes_away_ends_it_and_the_journal_is_kept(
    opened, runs, tmp_path, name, how
):
    results = tmp_path / "results"
    op = stepping_operation(runs, tmp_path, results, n=600)

    def take_away():
        if how == "moved":
            results.rename(tmp_path / "elsewhere")
        else:
            shutil.rmtree(tmp_path / "results", ignore_errors=True)

    with pytest.raises(OperationError, match="deleted or moved") as caught:
        while_it_runs(runs, tmp_path, take_away, op, opened(name))
    assert str(results) in str(caught.value)
    kept = {row["x"] for row in op.rows() if row["state"] == "done"}
    assert kept >= {0, 1, 2, 3, 4}
    assert (results / "table.csv").exists()
    if how == "moved":
        there = stepping_operation(runs, tmp_path, tmp_path / "elsewhere", n=600)
        assert {row["x"] for row in there.rows() if row["state"] == "done"} >= kept
    again = stepping_operation(runs, tmp_path, results, n=600, resume=True)
    assert stepwise(opened(name), again).counts["cached"] >= len(kept)
    assert states(again) == {"done": 600}
    assert not {int(x) for x, times in runs.counts().items() if times > 1} & kept


# Many processes


MANY = """
import json, resource, sys, time
from pathlib import Path
from daskspace import create_backend, operation

def nothing(x):
    return None

def memory():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

n, backend, options = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
op = operation(nothing, grid={"x": range(n)}, result_directory="results", resume=True)
before = memory()
with create_backend(backend, **options) as runner:
    began = time.monotonic()
    runner.stage_in(op)
    staged = time.monotonic()
    runner.execute()
    runner.retrieve()
    executed = time.monotonic()
    runner.consolidate()
    counts = dict(runner.check_status().counts)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(json.dumps({"counts": counts, "stage_in": staged - began, "execute": executed - staged,
    "all": time.monotonic() - began, "before": before, "peak": peak}))
"""


@only_full
@pytest.mark.timeout(1800)
def test_of_100000_finished_processes_resume_takes_seconds_and_little_memory():
    def run(n, backend, **options):
        ran = subprocess.run(
            [sys.executable, "-c", MANY, str(n), backend, json.dumps(options)],
            capture_output=True,
            text=True,
            check=True,
        )
        told = json.loads(ran.stdout)
        print(n, backend, told)
        return told

    first = run(100_000, "mcore", n_workers=2)
    assert first["counts"] == {"done": 100_000}
    for backend in ("serial", "mcore"):
        again = run(100_000, backend, **({"n_workers": 2} if backend == "mcore" else {}))
        assert again["counts"] == {"cached": 100_000}
        assert again["all"] < 60
        assert again["peak"] < first["peak"] + 200
