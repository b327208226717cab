"""An attempt's directory becomes that of its process, and a batch is run once."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
import uuid
from functools import partial
from pathlib import Path

import cloudpickle
import pytest
from dask.local import SynchronousExecutor

from daskspace import operation
from daskspace.execution.attempt import Settings, run_attempts
from daskspace.execution.commit import (
    OUTCOME,
    attempts_of,
    commit,
    committed_receipt,
    in_place,
    make_attempt_directory,
    processes_of,
    retract,
)
from daskspace.execution.isolation import carry_out, close_idle_hosts, stop
from daskspace.execution.outcome import Outcome
from daskspace.execution.seal import sealed, unsealed
from daskspace.execution.tape import Tape, read_tape
from daskspace.execution.travel import Parcel, ToHost, pack

PARTS = 4


def receipt(process=0, **fields):
    return sealed(json.dumps({"process": process, "state": "done", **fields}))


def attempt_with(results, content, name="p"):
    directory = make_attempt_directory(results, name)
    (directory / "content.txt").write_text(content)
    return directory


# One directory


def test_a_commit_moves_the_directory_and_its_receipt_in_one_step(tmp_path):
    directory = attempt_with(tmp_path, "mine")
    final = processes_of(tmp_path) / "p"
    assert commit(directory, final, receipt()) == receipt()
    assert (final / "content.txt").read_text() == "mine"
    assert committed_receipt(final) == receipt()
    assert not directory.exists()


def test_of_two_commits_the_first_counts_for_both_and_the_second_leaves_nothing(tmp_path):
    first, second = attempt_with(tmp_path, "first"), attempt_with(tmp_path, "second")
    final = processes_of(tmp_path) / "p"
    commit(first, final, receipt(value=1))
    assert commit(second, final, receipt(value=2)) == receipt(value=1)
    assert (final / "content.txt").read_text() == "first"
    assert list(attempts_of(tmp_path).iterdir()) == []


def test_a_directory_that_its_process_removed_is_committed_empty(tmp_path):
    directory = make_attempt_directory(tmp_path, "p")
    directory.rmdir()
    final = processes_of(tmp_path) / "p"
    commit(directory, final, receipt())
    assert [path.name for path in final.iterdir()] == [OUTCOME]


def test_a_file_in_the_place_of_the_directories_is_an_error_and_stays(tmp_path):
    processes_of(tmp_path).write_text("a file")
    directory = attempt_with(tmp_path, "mine")
    with pytest.raises(OSError):
        commit(directory, processes_of(tmp_path) / "p", receipt())
    assert processes_of(tmp_path).read_text() == "a file"
    assert (directory / "content.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "left", [None, b"", b"garbage", b'{"state":"done"}', receipt().encode()[:-9], b"\xff\xfe"]
)
def test_a_place_without_a_receipt_that_can_be_read_is_an_error_and_stays(tmp_path, left):
    final = processes_of(tmp_path) / "p"
    final.mkdir(parents=True)
    (final / "half.txt").touch()
    if left is not None:
        (final / OUTCOME).write_bytes(left)
    directory = attempt_with(tmp_path, "mine")
    assert committed_receipt(final) is None
    with pytest.raises(OSError, match="not empty"):
        commit(directory, final, receipt())
    assert (final / "half.txt").exists()
    assert (directory / "content.txt").read_text() == "mine"


def test_a_retracted_directory_makes_room_for_the_next(tmp_path):
    final = processes_of(tmp_path) / "p"
    commit(attempt_with(tmp_path, "first"), final, receipt(value=1))
    retract(tmp_path, "processes/p")
    assert not final.exists()
    assert list(attempts_of(tmp_path).iterdir()) == []
    assert commit(attempt_with(tmp_path, "second"), final, receipt(value=2)) == receipt(value=2)
    assert (final / "content.txt").read_text() == "second"


def test_what_is_not_there_can_be_retracted(tmp_path):
    retract(tmp_path, "processes/never")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["plain", "with space", "ünï-☃", 'quote"s', "back\\slash"])
def test_paths_in_json_lead_to_the_final_place(tmp_path, name):
    results = tmp_path / name
    directory = make_attempt_directory(results, "p")
    final = processes_of(results) / "p"
    text = json.dumps({"path": str(directory / "model.pt"), "other": str(tmp_path)})
    told = json.loads(in_place(text, directory, final))
    assert told == {"path": str(final / "model.pt"), "other": str(tmp_path)}


# Duplicates


def write_parts(x, directory):
    """Leave files that tell which attempt wrote them."""
    token = uuid.uuid4().hex
    for part in range(PARTS):
        (directory / f"part-{part}.txt").write_text(token)
        time.sleep(0.0005 * (x % 3))
    if x % 11 == 5:
        raise ValueError(token)
    return {"token": token, "path": str(directory / "part-0.txt")}


def settings_for(results, op, **more):
    attempts_of(results).mkdir(parents=True, exist_ok=True)
    own = {"identity": op.identity, "group": uuid.uuid4().hex, "budget": 60.0}
    return Settings(str(results), str(results), **{**own, **more})


def parcel_of(op):
    batch = list(enumerate(op.processes))
    return Parcel(len(batch), cloudpickle.dumps(batch))


def check_committed(results, number, told):
    """Check that there are so many directories, each of one attempt, and all receipts agree."""
    directories = sorted(processes_of(results).iterdir())
    assert len(directories) == number
    for directory in directories:
        tokens = {(directory / f"part-{part}.txt").read_text() for part in range(PARTS)}
        outcome = Outcome.from_json((directory / OUTCOME).read_bytes())
        assert tokens == {outcome.metrics.get("token", outcome.message)}
        assert outcome.directory == f"processes/{directory.name}"
        assert outcome.metrics.get("path") in (None, str(directory / "part-0.txt"))
        assert len(list(directory.iterdir())) == PARTS + 1
    committed = {(directory / OUTCOME).read_text().strip() for directory in directories}
    for receipts in told:
        assert len(receipts) == number
        assert set(receipts) == committed
    assert [path for path in attempts_of(results).iterdir() if path.is_dir()] == []


def in_threads(count, function):
    returned = [None] * count

    def call(number):
        returned[number] = function(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert None not in returned
    return returned


def test_three_batches_of_the_same_150_processes_commit_150_directories(tmp_path):
    op = operation(write_parts, grid={"x": range(150)})
    package, parcel = pack(op.shared, tmp_path), parcel_of(op)
    settings = settings_for(tmp_path, op, isolation="process", budget=100.0)
    try:
        told = in_threads(
            3,
            lambda n: carry_out(settings, package, parcel, attempts_of(tmp_path) / f"{n}.tape"),
        )
    finally:
        close_idle_hosts()
    assert [sum(one["states"].values()) for one in told] == [150] * 3
    check_committed(tmp_path, 150, [one["receipts"].split("\n") for one in told])
    assert told[0]["states"] == told[1]["states"] == told[2]["states"]
    for n in range(3):
        assert read_tape(attempts_of(tmp_path) / f"{n}.tape").complete


PROGRAM = """
import sys, time
from pathlib import Path
import cloudpickle
from daskspace.execution.attempt import run_attempts
from daskspace.execution.tape import Tape

job, tape, start = map(Path, sys.argv[1:])
settings, batch = cloudpickle.loads(job.read_bytes())
tape.with_suffix(".ready").touch()
while not start.exists():
    time.sleep(0.001)
tape = Tape(tape, new=True)
run_attempts(settings, batch, tape, time.monotonic() + 100)
tape.complete()
tape.close()
"""


def test_three_programs_that_run_the_same_attempts_agree_on_one_outcome_each(tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        results = tmp_path / "results"
        stream = [partial(WithDirectory(), n) for n in range(150)]
        op = operation(stream)
        batch = list(enumerate(op.processes))
        settings = settings_for(results, op)
        (tmp_path / "job").write_bytes(cloudpickle.dumps((settings, batch)))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    tapes = [tmp_path / f"{n}.tape" for n in range(3)]
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "job")]
    programs = [subprocess.Popen([*command, str(tape), str(tmp_path / "start")]) for tape in tapes]
    try:
        wait_until(lambda: all(tape.with_suffix(".ready").exists() for tape in tapes))
        (tmp_path / "start").touch()
        assert [program.wait(100) for program in programs] == [0, 0, 0]
    finally:
        for program in programs:
            program.kill()
            program.wait()
    check_committed(results, 150, [read_tape(tape).receipts for tape in tapes])


class WithDirectory:
    """Runs `write_parts` in the private directory of the current attempt."""

    def __call__(self, x):
        from daskspace.execution.attempt import current_attempt

        return write_parts(x, current_attempt().make_directory())


def wait_until(condition, patience=60.0):
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# Batches


def note(runs, x):
    with open(runs, "a") as file:
        file.write(f"{x}\n")
    return x


def noting(tmp_path, n=5):
    runs = tmp_path / "runs.txt"
    runs.touch()
    return operation(partial(note, str(runs)), grid={"x": range(n)}), runs


@pytest.mark.parametrize("isolation", ["process", "none"])
def test_a_batch_whose_tape_is_complete_is_not_run_again_and_tells_the_same(tmp_path, isolation):
    op, runs = noting(tmp_path)
    package, parcel = pack(op.shared, tmp_path), parcel_of(op)
    settings = settings_for(tmp_path, op, isolation=isolation, budget=100.0)
    tape = attempts_of(tmp_path) / "one.tape"
    try:
        first = carry_out(settings, package, parcel, tape)
        again = carry_out(settings, package, parcel, tape)
    finally:
        close_idle_hosts()
    assert runs.read_text().split() == ["0", "1", "2", "3", "4"]
    assert first["states"] == {"done": 5}
    for name in ("receipts", "states", "troubles", "begun"):
        assert again[name] == first[name]
    assert "lost" not in again


@pytest.mark.parametrize("isolation", ["process", "none"])
def test_a_batch_whose_tape_breaks_off_is_lost_with_the_process_that_had_begun(tmp_path, isolation):
    op, runs = noting(tmp_path)
    settings = settings_for(tmp_path, op, isolation=isolation)
    path = attempts_of(tmp_path) / "one.tape"
    run_attempts(
        settings, list(enumerate(op.processes))[:2], tape := Tape(path), time.monotonic() + 9
    )
    tape.begin(1.5, '{"process":2,"parameters":{"x":2}}')
    tape.close()
    told = carry_out(settings, pack(op.shared, tmp_path), parcel_of(op), path)
    assert runs.read_text().split() == ["0", "1"]
    assert told["states"] == {"done": 2}
    assert [unsealed(line.encode())["process"] for line in told["receipts"].split("\n")] == [0, 1]
    assert told["begun"]["process"] == 2
    assert "lost" in told["lost"]


def test_a_batch_whose_tape_was_made_and_no_more_is_lost_before_it_began(tmp_path):
    op, runs = noting(tmp_path)
    settings = settings_for(tmp_path, op, isolation="process")
    path = attempts_of(tmp_path) / "one.tape"
    path.touch()
    told = carry_out(settings, pack(op.shared, tmp_path), parcel_of(op), path)
    assert (told["receipts"], told["begun"]) == ("", None)
    assert told["lost"]
    assert runs.read_text() == ""


@pytest.mark.parametrize(
    "torn", [b'begin 12.5 {"proc', b'done {"process":1,"st', b"no", b"\n", b"\xff\xfe\n"]
)
def test_a_line_that_its_writer_left_torn_spoils_neither_the_lines_before_nor_after(tmp_path, torn):
    path = tmp_path / "one.tape"
    path.write_bytes(f"done {receipt(0)}\n".encode() + torn)
    tape = Tape(path)
    tape.end("crashed", receipt(1, state="crashed"))
    tape.complete()
    tape.close()
    recording = read_tape(path)
    assert recording.receipts == [receipt(0), receipt(1, state="crashed")]
    assert recording.states == {"done": 1, "crashed": 1}
    assert recording.complete


def test_the_batches_of_another_carrier_of_the_operation_are_never_taken_for_its_own(tmp_path):
    op, runs = noting(tmp_path, 6)
    settings = settings_for(tmp_path, op, isolation="process")
    processes = list(enumerate(op.processes))
    told = []
    try:
        for batch in (processes[:3], processes[3:]):  # the first cluster is lost, and its tape left
            carrier = ToHost(
                SynchronousExecutor(), carry_out, stop, settings, op.shared, lambda message: None
            )
            told.append(carrier.submit(batch).result())
    finally:
        close_idle_hosts()
    ended = [unsealed(line.encode())["process"] for one in told for line in one["receipts"].split()]
    assert ended == [0, 1, 2, 3, 4, 5]
    assert runs.read_text().split() == ["0", "1", "2", "3", "4", "5"]


def test_a_batch_that_cannot_have_a_tape_is_lost_and_not_run(tmp_path):
    op, runs = noting(tmp_path)
    settings = settings_for(tmp_path, op, isolation="process")
    told = carry_out(
        settings, pack(op.shared, tmp_path), parcel_of(op), tmp_path / "nowhere" / "one.tape"
    )
    assert "tape cannot be written" in told["lost"]
    assert (told["receipts"], told["begun"]) == ("", None)
    assert runs.read_text() == ""


def test_what_is_on_a_tape_counts_though_its_end_could_not_be_written(tmp_path, monkeypatch):
    def fail(tape):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Tape, "complete", fail)
    op, runs = noting(tmp_path)
    settings = settings_for(tmp_path, op, isolation="process", budget=100.0)
    try:
        told = carry_out(
            settings, pack(op.shared, tmp_path), parcel_of(op), attempts_of(tmp_path) / "one.tape"
        )
    finally:
        close_idle_hosts()
    assert runs.read_text().split() == ["0", "1", "2", "3", "4"]
    assert told["states"] == {"done": 5}
    assert "No space left" in told["lost"]


def test_a_directory_that_cannot_be_committed_makes_its_process_lost_with_its_metrics(tmp_path):
    op = operation([partial(WithDirectory(), 0)])
    settings = settings_for(tmp_path, op)
    processes_of(tmp_path).touch()
    tape = Tape()
    here = os.getcwd()
    try:
        run_attempts(settings, list(enumerate(op.processes)), tape, time.monotonic() + 9)
    finally:
        os.chdir(here)
    (line,) = tape.recording().receipts
    outcome = Outcome.from_json(line)
    assert outcome.state == "lost"
    assert "could not be committed" in outcome.message
    assert outcome.metrics["token"]


def test_the_directory_of_a_process_that_fails_is_committed_as_well(tmp_path):
    op = operation([partial(WithDirectory(), 5)])
    settings = settings_for(tmp_path, op)
    tape = Tape()
    here = os.getcwd()
    try:
        run_attempts(settings, list(enumerate(op.processes)), tape, time.monotonic() + 9)
    finally:
        os.chdir(here)
    (line,) = tape.recording().receipts
    outcome = Outcome.from_json(line)
    assert outcome.state == "failed"
    assert committed_receipt(Path(tmp_path, outcome.directory)) == line
