"""``daskspace resume`` and ``run --resume``: what they run, say, refuse, and exit with."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter

import psutil
import pytest
from click.testing import CliRunner

from daskspace.cli import operation
from daskspace.results.table import Table

from .conftest import Place, heed_interrupts, plain_environment

pytestmark = pytest.mark.timeout(150)

JOBS = """
import os
import signal
import time


def note(text):
    descriptor = os.open("runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\\n".encode())
    os.close(descriptor)


def job(x):
    note(x)
    return {"y": x * x}


def trouble(x):
    note(x)
    if not os.path.exists("healed"):
        if x == 1:
            raise ValueError("one")
        if x == 2:
            os.abort()
        if x == 3:
            time.sleep(60)
        if x == 4:
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(60)
    return {"y": x * x}


def unlucky(x):
    note(x)
    if not os.path.exists("healed"):
        raise ValueError("always")
    return x


def flaky(x):
    note(x)
    if not os.path.exists(f"tried-{x}"):
        open(f"tried-{x}", "w").close()
        raise ValueError("once")
    return x


def swell(x):
    note(x)
    held = []
    for _ in range(x * 40):
        held.append(bytearray(10_000_000))
        time.sleep(0.02)
    return len(held)


def pid(x):
    return {"pid": os.getpid()}


def gated(x):
    note(x)
    deadline = time.monotonic() + 100
    while x > 1 and not os.path.exists("gate") and time.monotonic() < deadline:
        time.sleep(0.02)
    return {"y": x * x}
"""
STATES = {1: "failed", 2: "crashed", 3: "timeout", 4: "lost"}


@pytest.fixture
def place(place):
    place.write("jobs.py", JOBS)
    return place


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A place with an operation in `out`, where one process of 6 is in each state."""
    place = Place(tmp_path_factory.mktemp("original"))
    place.write("jobs.py", JOBS)
    limits = ["--process-timeout", "1", "-O", "lost_retries=0"]
    ended = place.run("run", spec(place, "trouble", "range(6)"), "-s", *limits, "-o", "out")
    assert ended.returncode == 3, ended.stderr
    assert states(place) == {0: "done", **STATES, 5: "done"}
    return place


@pytest.fixture
def troubled(original, tmp_path):
    """A copy of the original, where all would be well by now."""
    shutil.copytree(original.path, tmp_path / "copy")
    place = Place(tmp_path / "copy")
    (place.path / "runs").unlink()
    (place.path / "healed").touch()
    return place


def spec(place, function, values="range(3)", more=""):
    text = f"function: jobs:{function}\nparameter_ranges:\n  x: {values}\n{more}"
    return place.write(f"{function}.yaml", text)


def states(place, directory="out"):
    return {o.parameters["x"]: o.state for o in outcomes(place, directory)}


def outcomes(place, directory="out"):
    return list(Table(place.path / directory / "journal.jsonl").outcomes())


def runs(place):
    """How often each process was begun."""
    file = place.path / "runs"
    return Counter(map(int, file.read_text().split())) if file.exists() else Counter()


def sessions(place, directory="out"):
    """The headers of all sessions in the journal."""
    lines = (place.path / directory / "journal.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "journal" in entry]


def assert_refused(ended, *words):
    """Bad input is told in one sentence on stderr."""
    assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr
    assert ended.stderr.startswith("Error: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    for word in words:
        assert word in ended.stderr


def wait_until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


class Running:
    """The command while it runs, in a session of its own; it leaves no process."""

    def __init__(self, place, *arguments):
        self._stdout, self._stderr = place.path / "stdout", place.path / "stderr"
        with self._stdout.open("w") as stdout, self._stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [*place.command, *map(str, arguments)],
                cwd=place.path,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=plain_environment(),
                start_new_session=True,
                preexec_fn=heed_interrupts,
            )

    def send(self, number):
        os.killpg(self.process.pid, number)

    def end(self):
        """Return it as if it had been run."""
        command = psutil.Process(self.process.pid)
        family = command.children(recursive=True)
        code = self.process.wait(60)
        assert psutil.wait_procs(family, timeout=15)[1] == []
        out, err = self._stdout.read_text(), self._stderr.read_text()
        return subprocess.CompletedProcess([], code, out, err)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


# What is run again


def test_resume_alone_keeps_what_has_ended_in_whatever_state(troubled):
    ended = troubled.run("resume", "out")
    assert ended.returncode == 3
    assert runs(troubled) == {}
    first, second, *_ = ended.stdout.splitlines()
    assert first.startswith("6 processes: 2 done, 1 failed, 1 crashed, 1 timeout, 1 lost, none")
    assert second == "nothing was left to run"
    assert "daskspace failures out" in ended.stdout
    assert len(sessions(troubled)) == 2


@pytest.mark.parametrize(("x", "state"), STATES.items())
def test_an_option_for_each_state_runs_that_again_and_no_other(troubled, x, state):
    ended = troubled.run("resume", "out", f"--{state}", "--process-timeout", "30")
    assert ended.returncode == 3, ended.stderr
    assert runs(troubled) == {x: 1}
    expected = {0: "done", **STATES, 5: "done", x: "done"}
    assert states(troubled) == expected
    assert "3 done" in ended.stdout
    assert "1 of them now" in ended.stdout


def test_with_all_options_all_is_done_and_it_exits_with_0(troubled):
    options = [f"--{state}" for state in STATES.values()]
    ended = troubled.run("resume", "out", *options, "--isolation", "process")
    assert ended.returncode == 0, ended.stderr
    assert runs(troubled) == dict.fromkeys(STATES, 1)
    assert ended.stdout.startswith("6 processes: 6 done, 4 of them now, in ")
    assert "failures" not in ended.stdout
    assert troubled.run("failures", "out").stdout == "no failures: 6 done\n"


def test_what_fails_again_stays_failed_with_its_last_outcome(troubled):
    (troubled.path / "healed").unlink()
    ended = troubled.run("resume", "out", "--failed", "--timeout", "--process-timeout", "1")
    assert ended.returncode == 3, ended.stderr
    assert runs(troubled) == {1: 1, 3: 1}
    assert states(troubled) == {0: "done", **STATES, 5: "done"}
    assert "first failure: process 1 x=1" in ended.stderr
    assert "ValueError: one" in ended.stderr


# What it says


def test_the_json_of_resume_is_all_that_is_on_stdout(troubled):
    ended = troubled.run("resume", "out", "--failed", "--json")
    summary = json.loads(ended.stdout)
    assert summary.keys() == {
        "name",
        "result_directory",
        "processes",
        "counts",
        "cached",
        "seconds",
        "stopped",
    }
    assert summary["processes"] == 6
    assert summary["counts"] == {"done": 3, "crashed": 1, "timeout": 1, "lost": 1}
    assert summary["cached"] == 5
    assert summary["stopped"] is None
    assert summary["result_directory"] == str(troubled.path / "out")
    assert summary["name"] == "trouble"
    assert ended.returncode == 3


def test_quiet_leaves_stderr_empty(troubled):
    ended = troubled.run("resume", "out", "--failed", "-q")
    assert (ended.returncode, ended.stderr) == (3, "")
    assert ended.stdout.startswith("6 processes: 3 done")


def test_a_finished_operation_says_so_and_is_quick(place):
    assert place.run("run", spec(place, "job", "range(2000)"), "-s", "-o", "out").returncode == 0
    before = (place.path / "out" / "table.csv").read_bytes()
    (place.path / "runs").unlink()
    began = time.monotonic()
    ended = place.run("resume", "out")
    assert time.monotonic() - began < 30
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("2000 processes: 2000 done, none of them now, in ")
    assert "nothing was left to run\n" in ended.stdout
    assert runs(place) == {}
    assert (place.path / "out" / "table.csv").read_bytes() == before
    again = json.loads(place.run("resume", "out", "--json").stdout)
    assert (again["processes"], again["cached"], again["stopped"]) == (2000, 2000, None)


def test_status_tells_of_a_resumed_operation_as_of_any_other(troubled):
    troubled.run("resume", "out", "--failed")
    status = json.loads(troubled.run("status", "out", "--json").stdout)
    assert status["counts"] == {"done": 3, "crashed": 1, "timeout": 1, "lost": 1}
    assert status["total"] == 6


# Where it runs


def test_by_default_it_goes_on_with_the_backend_that_was_used_last(place):
    place.run("run", spec(place, "job"), "-m", "-O", "n_workers=1", "-o", "out")
    place.run("resume", "out", "-O", "n_workers=1")
    place.run("resume", "out", "-s")
    place.run("resume", "out")
    used = [session["backend"] for session in sessions(place)]
    assert used == ["MulticoreBackend"] * 2 + ["SerialBackend"] * 2


def test_another_backend_may_go_on(troubled):
    ended = troubled.run("resume", "out", "-b", "mcore", "-O", "n_workers=2", "--failed", "--lost")
    assert ended.returncode == 3, ended.stderr
    assert runs(troubled) == {1: 1, 4: 1}
    assert sessions(troubled)[-1]["backend"] == "MulticoreBackend"
    facts = json.loads((troubled.path / "out" / "environment.2.json").read_text())
    assert facts["options"] == {"n_workers": "2"}


def test_an_unknown_backend_or_option_is_refused_and_nothing_is_begun(troubled):
    before = (troubled.path / "out" / "journal.jsonl").read_bytes()
    assert_refused(troubled.run("resume", "out", "-b", "mcroe"), "did you mean 'mcore'?")
    assert_refused(troubled.run("resume", "out", "-s", "-O", "n_workers=2"), "'n_workers'")
    assert (troubled.path / "out" / "journal.jsonl").read_bytes() == before


# Limits, of `run` and of `resume`


def begin(place, function, values, *arguments, resumed):
    """Run an operation with options, at once or as one that nothing was run of yet."""
    file = spec(place, function, values)
    if not resumed:
        return place.run("run", file, "-s", "-o", "out", *arguments)
    ended = place.run("run", file, "-s", "-o", "out", "--timeout", "0")
    assert ended.returncode == 4, ended.stderr
    assert runs(place) == {}
    return place.run("resume", "out", *arguments)


both = pytest.mark.parametrize("resumed", [False, True], ids=["run", "resume"])


@both
def test_isolation_says_where_user_code_runs(place, resumed):
    ended = begin(place, "pid", "range(3)", "--isolation", "fresh", resumed=resumed)
    assert ended.returncode == 0, ended.stderr
    assert len({outcome.metrics["pid"] for outcome in outcomes(place)}) == 3


@both
def test_process_timeout_stops_what_runs_longer(place, resumed):
    ended = begin(place, "trouble", "[0, 3, 5]", "--process-timeout", "1 s", resumed=resumed)
    assert ended.returncode == 3, ended.stderr
    assert states(place) == {0: "done", 3: "timeout", 5: "done"}
    assert "ProcessTimeout" in ended.stderr


@both
def test_process_memory_stops_what_uses_more(place, resumed):
    ended = begin(place, "swell", "[0, 10]", "--process-memory", "300 MB", resumed=resumed)
    assert ended.returncode == 3, ended.stderr
    assert states(place)[0] == "done"
    assert states(place)[10] in ("crashed", "failed")
    assert "Memory" in ended.stderr


@both
def test_retries_run_again_what_failed(place, resumed):
    ended = begin(place, "flaky", "range(3)", "--retries", "1", resumed=resumed)
    assert ended.returncode == 0, ended.stderr
    assert runs(place) == dict.fromkeys(range(3), 2)


@both
@pytest.mark.parametrize(("options", "most"), [(["--max-failures", 2], 2), (["--fail-fast"], 1)])
def test_too_many_failures_end_it_with_4(place, resumed, options, most):
    ended = begin(place, "unlucky", "range(9)", *options, resumed=resumed)
    assert ended.returncode == 4, ended.stderr
    assert sum(runs(place).values()) == most
    assert f"stopped    {most} processes failed, and max_failures is {most}\n" in ended.stdout
    assert "daskspace failures out" in ended.stdout
    assert json.loads(place.run("resume", "out", "--json").stdout)["stopped"] is None


@both
def test_twenty_failures_alike_end_it_with_4_unless_that_is_switched_off(place, resumed):
    ended = begin(place, "unlucky", "range(25)", resumed=resumed)
    assert ended.returncode == 4, ended.stderr
    assert sum(runs(place).values()) == 20
    assert "the first 20 processes all failed with ValueError: always" in ended.stdout
    assert "circuit_breaker=0" in ended.stdout

    (place.path / "runs").unlink()
    ended = place.run("resume", "out", "--failed", "-O", "circuit_breaker=0", "--json")
    assert ended.returncode == 3, ended.stderr
    assert runs(place) == dict.fromkeys(range(25), 1)
    assert json.loads(ended.stdout)["stopped"] is None


def test_the_time_of_the_operation_ends_it_with_4(place):
    place.run("run", spec(place, "gated", "range(4)"), "-s", "-o", "out", "--timeout", "0")
    ended = place.run("resume", "out", "--operation-timeout", "1")
    assert ended.returncode == 4, ended.stderr
    assert "stopped    the time of the operation was up\n" in ended.stdout
    assert {states(place)[x] for x in (0, 1)} == {"done"}
    summary = json.loads(place.run("resume", "out", "--operation-timeout", "1", "--json").stdout)
    assert summary["stopped"] == "the time of the operation was up"
    (place.path / "gate").touch()
    assert place.run("resume", "out").returncode == 0
    assert states(place) == dict.fromkeys(range(4), "done")


@pytest.mark.parametrize(
    ("option", "code", "words"),
    [
        (["--process-timeout", "soon"], 1, "process_timeout must be seconds"),
        (["--process-timeout", "-1"], 1, "process_timeout must be seconds"),
        (["--process-memory", "lots"], 1, "process_memory must be bytes"),
        (["--isolation", "none", "--process-timeout", "5"], 1, "isolation='none' cannot keep"),
        (["-O", "circuit_breaker=few"], 1, "circuit_breaker must be a whole number"),
        (["--isolation", "some"], 2, "'some'"),
        (["--retries", "-1"], 2, "--retries"),
        (["--max-failures", "0"], 2, "--max-failures"),
        (["--max-failures", "many"], 2, "'many'"),
    ],
)
def test_a_limit_that_cannot_be_is_refused(original, monkeypatch, option, code, words):
    monkeypatch.chdir(original.path)
    before = (original.path / "out" / "journal.jsonl").read_bytes()
    for what in ["resume", "out"], ["run", "trouble.yaml", "-o", "new"]:
        ended = CliRunner().invoke(operation, [*what, *option])
        assert (ended.exit_code, ended.stdout) == (code, "")
        assert words in ended.stderr
        assert "Traceback" not in ended.stderr
    assert (original.path / "out" / "journal.jsonl").read_bytes() == before
    assert not (original.path / "new").exists()


# What it refuses


def test_a_directory_that_is_not_there_is_refused_and_not_made(place):
    before = place.files()
    assert_refused(place.run("resume", "absent"), "absent")
    assert place.files() == before
    assert place.run("resume").returncode == 2


def test_an_empty_directory_and_a_file_are_refused(place):
    (place.path / "empty").mkdir()
    assert_refused(place.run("resume", "empty"), "empty holds no operation")
    assert list((place.path / "empty").iterdir()) == []
    assert_refused(place.run("resume", "jobs.py"), "jobs.py")


PROGRAM = """
    import daskspace

    def local(x):
        return x

    grid = {"x": range(3)}
    with daskspace.create_backend("serial") as backend:
        backend.run(daskspace.operation(lambda x: x, grid, result_directory="nameless"))
        backend.run(daskspace.operation([int, int], result_directory="stream"))
"""


@pytest.mark.parametrize("directory", ["nameless", "stream"])
def test_what_a_program_made_is_refused_with_what_to_do(place, directory):
    place.write("program.py", PROGRAM)
    ran = place.run("program.py", command=[place.command[0]])
    assert ran.returncode == 0, ran.stderr
    before = (place.path / directory / "journal.jsonl").read_bytes()
    ended = place.run("resume", directory)
    assert_refused(ended, "made by a program", "run that program again", "resume=True")
    assert f"result_directory='{directory}'" in ended.stderr
    assert (place.path / directory / "journal.jsonl").read_bytes() == before


def test_a_directory_in_use_is_refused_with_host_and_process(place):
    with Running(place, "run", spec(place, "gated"), "-s", "-o", "out") as other:
        wait_until(lambda: runs(place)[2])
        begun = runs(place)
        refusals = [
            place.run("resume", "out"),
            place.run("run", "gated.yaml", "-o", "out", "--resume"),
            place.run("run", "gated.yaml", "-o", "out"),
        ]
        for ended in refusals:
            assert_refused(ended, "in use", f"process {other.process.pid}", socket.gethostname())
        assert runs(place) == begun
        (place.path / "gate").touch()
        ended = other.end()
    assert ended.returncode == 0, ended.stderr
    assert states(place) == dict.fromkeys(range(3), "done")
    assert place.run("resume", "out").returncode == 0


def test_a_journal_of_a_newer_version_is_refused_and_stays(troubled):
    journal = troubled.path / "out" / "journal.jsonl"
    journal.write_text(journal.read_text().replace('{"journal": 2', '{"journal": 3', 1))
    before = journal.read_bytes()
    assert_refused(troubled.run("resume", "out"), "format is 3", "reads 2", "upgrade")
    assert_refused(
        troubled.run("run", "trouble.yaml", "-o", "out", "--resume"), "format is 3", "upgrade"
    )
    assert journal.read_bytes() == before


def test_a_specification_that_was_damaged_is_refused_with_its_line(troubled):
    described = troubled.path / "out" / "operation.yaml"
    described.write_text(described.read_text().replace("jobs:trouble", "jobs:touble"))
    assert_refused(troubled.run("resume", "out"), "operation.yaml, line", "'trouble'?")


def test_a_module_that_is_gone_is_refused(place):
    place.run("run", spec(place, "job"), "-s", "-o", "out")
    (place.path / "jobs.py").unlink()
    assert_refused(place.run("resume", "out"), "No module named 'jobs'")


# daskspace run --resume


@pytest.mark.parametrize("made", [False, True])
def test_run_resume_begins_where_there_is_nothing_yet(place, made):
    if made:
        (place.path / "out").mkdir()
    ended = place.run("run", spec(place, "job"), "-s", "-o", "out", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("3 processes: 3 done, in ")
    ended = place.run("run", "job.yaml", "-s", "-o", "out", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert "nothing was left to run" in ended.stdout
    assert runs(place) == dict.fromkeys(range(3), 1)


def test_run_resume_without_a_directory_is_wrong_usage(place):
    ended = place.run("run", spec(place, "job"), "--resume")
    assert ended.returncode == 2
    assert "-o" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_run_resume_runs_only_what_an_extended_grid_has_more(place):
    place.run("run", spec(place, "job", "[1, 3]"), "-s", "-o", "out")
    (place.path / "runs").unlink()
    ended = place.run("run", spec(place, "job", "[0, 1, 2, 3]"), "-s", "-o", "out", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert runs(place) == {0: 1, 2: 1}
    assert ended.stdout.startswith("4 processes: 4 done, 2 of them now, in ")
    numbers = {outcome.parameters["x"]: outcome.process for outcome in outcomes(place)}
    assert (numbers[1], numbers[3]) == (0, 1)
    assert sorted(numbers.values()) == [0, 1, 2, 3]
    # and `resume` goes by the grid as it is now
    summary = json.loads(place.run("resume", "out", "--json").stdout)
    assert (summary["processes"], summary["cached"]) == (4, 4)


def test_run_resume_with_a_smaller_grid_keeps_the_other_rows(place):
    place.run("run", spec(place, "job", "range(4)"), "-s", "-o", "out")
    ended = place.run("run", spec(place, "job", "[1, 2]"), "-s", "-o", "out", "--resume")
    assert ended.returncode == 0, ended.stderr
    assert set(states(place)) == {0, 1, 2, 3}


@pytest.mark.parametrize("command", [["resume", "out"], ["run", "job.yaml", "-o", "out", "-r"]])
def test_a_function_that_has_changed_is_told_with_what_becomes_of_it(place, command):
    command = ["--resume" if word == "-r" else word for word in command]
    place.run("run", spec(place, "job", "range(4)"), "-s", "-o", "out")
    journal = place.path / "out" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"x":3' not in line))
    place.write("jobs.py", JOBS.replace('note(x)\n    return {"y": x * x}', 'return {"y": -x}', 1))
    ended = place.run(*command)
    assert ended.returncode == 0, ended.stderr
    assert {o.parameters["x"]: o.metrics["y"] for o in outcomes(place)} == {0: 0, 1: 1, 2: 4, 3: -3}
    told = "changed since the last session: function jobs:job; what is done is kept as it is"
    assert told in (place.path / "out" / "operation.log").read_text()
    assert told in ended.stderr.replace("\n", " ")


# Interrupted


@pytest.mark.parametrize(
    "backend",
    [["-s"], ["-s", "--isolation", "process"], ["-m", "-O", "n_workers=2"]],
    ids=["serial", "isolated", "mcore"],
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_operation_exits_with_130_and_goes_on(place, backend, number):
    with Running(place, "run", spec(place, "gated", "range(8)"), *backend, "-o", "out") as run:
        wait_until(lambda: max(runs(place), default=0) > 1)
        os.kill(run.process.pid, number)
        if number == signal.SIGINT:
            time.sleep(1)
            (place.path / "gate").touch()
        ended = run.end()
    assert ended.returncode == 130, ended.stderr
    assert ended.stdout == ""
    assert "interrupted: " in ended.stderr
    assert re.search("results in out; go on with  .*daskspace resume out\n", ended.stderr)
    assert "Traceback" not in ended.stderr
    done = {x for x, state in states(place).items() if state == "done"}
    (place.path / "gate").touch()
    ended = place.run("resume", "out")
    assert ended.returncode == 0, ended.stderr
    assert states(place) == dict.fromkeys(range(8), "done")
    assert all(runs(place)[x] == 1 for x in done)
    assert max(runs(place).values()) <= 2


def test_a_resume_can_be_interrupted_and_resumed(place):
    place.run("run", spec(place, "gated", "range(6)"), "-s", "-o", "out", "--timeout", "0")
    with Running(place, "resume", "out", "--json") as resumed:
        wait_until(lambda: runs(place)[2])
        os.kill(resumed.process.pid, signal.SIGTERM)
        ended = resumed.end()
    assert (ended.returncode, ended.stdout) == (130, "")
    (place.path / "gate").touch()
    assert place.run("resume", "out").returncode == 0
    assert runs(place) == {**dict.fromkeys(range(6), 1), 2: 2}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_cluster_starts_exits_with_130_and_leaves_nothing(place, number):
    with Running(place, "run", spec(place, "job"), "-m", "-o", "out") as run:
        wait_until(lambda: psutil.Process(run.process.pid).children(recursive=True))
        run.send(number)
        ended = run.end()
    assert ended.returncode == 130, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (place.path / "out").exists()
    assert runs(place) == {}
