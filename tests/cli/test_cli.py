"""What the command promises: what it prints where, how it exits, and that it cleans up."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pexpect
import psutil
import pytest
from click.testing import CliRunner

from daskspace.cli import operation

from .conftest import heed_interrupts, plain_environment

BACKEND_OPTIONS = {
    "serial": ["-s"],
    "mcore": ["-b", "mcore", "-O", "n_workers=2"],
    "mpi": ["--mpi", "-O", "n_workers=2"],
}
A_SECOND_TIME = "run one again"


@pytest.fixture
def invoke(finished, monkeypatch):
    """Call the command in this interpreter, where `out` holds a finished operation."""
    monkeypatch.chdir(finished.path)
    return lambda *arguments: CliRunner().invoke(operation, [*map(str, arguments)])


def assert_refused(ended, *words):
    """Bad input is told in one sentence on stderr."""
    code = ended.returncode if hasattr(ended, "returncode") else ended.exit_code
    assert (code, ended.stdout) == (1, ""), ended.stderr
    assert ended.stderr.startswith("Error: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    for word in words:
        assert word in ended.stderr


def assert_usage(ended, *words):
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("Usage: ")
    for word in words:
        assert word in ended.stderr


def words_of(output):
    """Return the rows of a printed table."""
    return [line.split() for line in output.splitlines()]


def wait_until(true, seconds=40):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# daskspace run


@pytest.mark.parametrize("backend", BACKEND_OPTIONS)
def test_run_takes_a_yaml_file_to_its_table(place, backend):
    ended = place.run("run", place.spec("square"), *BACKEND_OPTIONS[backend], "-o", "out")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("3 processes: 3 done, in ")
    assert "daskspace table out\n" in ended.stdout
    assert "failures" not in ended.stdout
    header, *rows = (place.path / "out" / "table.csv").read_text().splitlines()
    assert header.startswith("process,x,data,run,state,y,")
    assert len(rows) == 3


def test_run_without_a_directory_makes_a_new_one_each_time(place):
    spec = place.spec("square")
    first, second = (
        json.loads(place.run("run", spec, "--json").stdout)["result_directory"] for _ in range(2)
    )
    assert first != second
    assert os.path.dirname(first) == str(place.path)


def test_run_exits_with_3_when_some_processes_failed_and_says_what_to_type(place):
    ended = place.run("run", place.spec("invert", "[0, 1]"), "-o", "out")
    assert ended.returncode == 3
    assert "2 processes: 1 done, 1 failed" in ended.stdout
    assert "daskspace failures out\n" in ended.stdout
    assert "first failure: process 0 x=0" in ended.stderr
    assert "ZeroDivisionError: division by zero" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("backend", BACKEND_OPTIONS)
def test_run_exits_with_4_when_the_time_is_up(place, backend):
    spec = place.spec("nap", "range(500)")
    ended = place.run("run", spec, *BACKEND_OPTIONS[backend], "-o", "out", "--timeout", "1")
    assert ended.returncode == 4, ended.stderr
    assert "stopped    the time of the operation was up\n" in ended.stdout


def test_the_backend_on_the_command_line_wins_over_that_of_the_file(place):
    spec = place.spec("square", more="backend: mcore\n")
    assert place.run("run", spec, "-b", "serial", "-o", "out").returncode == 0
    environment = json.loads((place.path / "out" / "environment.json").read_text())
    assert environment["backend"] == "SerialBackend"


def test_the_backend_of_the_file_is_taken_when_the_command_line_names_none(place):
    ended = place.run("run", place.spec("square", more="backend: mcroe\n"))
    assert_refused(ended, "unknown backend 'mcroe'", "did you mean 'mcore'?")


def test_json_is_all_that_is_on_stdout_even_when_processes_print(place):
    ended = place.run("run", place.spec("chatty"), "--json", "-o", "out")
    assert ended.returncode == 0
    summary = json.loads(ended.stdout)
    assert summary["counts"] == {"done": 3}
    assert summary["stopped"] is None
    assert "said 2" in ended.stderr


def test_quiet_leaves_stderr_empty(place):
    ended = place.run("run", place.spec("invert", "[0, 1]"), "-q")
    assert (ended.returncode, ended.stderr) == (3, "")


def test_what_is_piped_holds_no_escape_sequences(place):
    ended = place.run("run", place.spec("invert", "[0, 1]"))
    assert "\x1b" not in ended.stdout + ended.stderr


# Bad input


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("function: work:square\nparameter_ranges:\n  x: [1, 2\n", ["spec.yaml, line "]),
        ("functoin: work:square\n", ["spec.yaml, line 1", "'functoin'", "'function'?"]),
        ("function: work:sqare\n", ["spec.yaml, line 1", "'sqare'; did you mean 'square'?"]),
        ("function: work:square\nrusn: 2\n", ["spec.yaml, line 2", "did you mean 'runs'?"]),
        ("function: absent:square\n", ["No module named 'absent'"]),
        ("function: broken:square\n", ["'broken' cannot be imported: ZeroDivisionError"]),
        ("function: work:square\n", ["needs 'x'"]),
        ("", ["is empty"]),
        ("- a list\n", ["must hold a mapping"]),
    ],
)
def test_a_bad_specification_is_refused_in_one_sentence(place, text, words):
    place.write("broken.py", "1 / 0\n")
    place.write("spec.yaml", text)
    before = place.files()
    assert_refused(place.run("run", "spec.yaml"), *words)
    assert place.files() == before


def test_a_missing_file_is_refused(invoke):
    assert_refused(invoke("run", "absent.yaml"), "absent.yaml", "No such file")
    assert_refused(invoke("plan", "absent.yaml"), "absent.yaml", "No such file")


def test_an_unknown_backend_is_refused_with_the_nearest(invoke):
    assert_refused(
        invoke("run", "invert.yaml", "-b", "mcor"), "serial, mcore, mpi", "did you mean 'mcore'?"
    )


def test_an_unknown_option_of_a_backend_is_refused_with_the_nearest(invoke):
    assert_refused(
        invoke("run", "invert.yaml", "-m", "-O", "n_wokers=2"), "did you mean 'n_workers'?"
    )
    assert_refused(invoke("run", "invert.yaml", "-s", "-O", "n_workers=2"), "'n_workers'")


def test_an_option_that_the_cluster_does_not_take_is_refused(place):
    ended = place.run("run", place.spec("square"), "-m", "-O", "n_workers=many", "-o", "out")
    assert_refused(ended, "cluster")
    assert not (place.path / "out").exists()


def test_a_directory_that_holds_an_operation_is_refused_and_kept(finished):
    before = (finished.path / "out" / "journal.jsonl").read_bytes()
    assert_refused(finished.run("run", "invert.yaml", "-o", "out"), "out already holds an")
    assert (finished.path / "out" / "journal.jsonl").read_bytes() == before


def test_a_file_in_the_place_of_the_result_directory_is_refused(finished):
    assert_refused(finished.run("run", "invert.yaml", "-o", "work.py"), "work.py cannot be used")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], ["Missing argument 'SPEC'"]),
        (["run", "invert.yaml", "-O", "n_workers"], ["'n_workers' is not KEY=VALUE"]),
        (["run", "invert.yaml", "-O", "=2"], ["'=2' is not KEY=VALUE"]),
        (["run", "invert.yaml", "-O", "a=[1"], ["the value of 'a=[1' is no YAML"]),
        (["run", "invert.yaml", "-s", "-m"], ["one backend only"]),
        (["run", "invert.yaml", "-s", "-b", "mcore"], ["one backend only"]),
        (["run", "invert.yaml", "--timeout", "soon"], ["'soon'"]),
        (["table"], ["Missing argument 'DIRECTORY'"]),
        (["table", "out", "-n", "-1"], ["-1"]),
        (["failures", "out", "-n", "-1"], ["-1"]),
        (["plan", "invert.yaml", "-n", "-1"], ["-1"]),
        (["logs", "out", "one"], ["'one'"]),
        (["rerun", "out"], ["Missing argument 'PROCESS'"]),
        (["fly"], ["No such command 'fly'"]),
        (["run", "invert.yaml", "--fast"], ["No such option", "--fast"]),
    ],
)
def test_wrong_usage_exits_with_2(invoke, arguments, words):
    assert_usage(invoke(*arguments), *words)


@pytest.mark.parametrize("command", ["table", "failures", "status", "logs", "rerun"])
def test_a_directory_that_holds_no_operation_is_refused(invoke, tmp_path, command):
    process = [0] if command == "rerun" else []
    assert_refused(invoke(command, tmp_path, *process), "holds no operation", "a run printed")
    assert_refused(invoke(command, tmp_path / "absent", *process), "is no directory")


@pytest.mark.parametrize("command", ["table", "failures", "status", "rerun"])
@pytest.mark.parametrize("journal", ["", '{"journal": 2, "na', "garbage\n", '{"journal": 99}\n'])
def test_a_journal_that_cannot_be_read_is_refused(invoke, tmp_path, command, journal):
    (tmp_path / "journal.jsonl").write_text(journal)
    assert_refused(invoke(command, tmp_path, *([0] if command == "rerun" else [])), "journal")


# Ctrl-C


@pytest.mark.parametrize("backend", BACKEND_OPTIONS)
def test_an_interrupt_keeps_what_has_ended_and_leaves_no_process_behind(place, backend):
    command = [*place.command, "run", place.spec("wait"), *BACKEND_OPTIONS[backend], "-o", "out"]
    with subprocess.Popen(
        command,
        cwd=place.path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=plain_environment(),
        start_new_session=True,
        preexec_fn=heed_interrupts,
    ) as run:
        try:
            wait_until(lambda: [*place.path.glob("began-*")])
            journal = place.path / "out" / "journal.jsonl"
            wait_until(lambda: '"done"' in journal.read_text())
            family = psutil.Process(run.pid).children(recursive=True)
            os.killpg(run.pid, signal.SIGINT)
            time.sleep(1)  # what runs would go on for a minute
            assert run.poll() is None
            os.killpg(run.pid, signal.SIGINT)
            stdout, stderr = run.communicate(timeout=40)
        finally:
            if run.poll() is None:
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 130, stderr
    assert bool(family) == (backend != "serial")
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert stdout == ""
    assert "interrupted: 1 done, " in stderr
    assert "results in out; go on with  daskspace resume out\n" in stderr.replace(
        shlex.join([*place.command]), "daskspace"
    )
    assert "Traceback" not in stderr
    assert "distributed." not in stderr
    _, *rows = words_of((place.path / "out" / "table.csv").read_text().replace(",", " "))
    assert sorted(row[3] for row in rows)[-1] == "done"
    assert {row[3] for row in rows} == {"cancelled", "done"}


# On a terminal


@pytest.fixture
def terminal(place):
    """Start the real command on a terminal; at the end, none of it may be left."""
    children = []

    def start(*arguments, columns=100):
        children.append(
            pexpect.spawn(
                place.command[0],
                [*place.command[1:], *map(str, arguments)],
                cwd=str(place.path),
                env=plain_environment(TERM="xterm-256color", PYTHON_BASIC_REPL="1"),
                encoding="utf-8",
                dimensions=(30, columns),
                timeout=40,
                preexec_fn=heed_interrupts,
            )
        )
        return children[-1]

    yield start
    for child in children:
        child.close(force=True)


def end_of(child):
    """Return what the terminal got since, and the exit code."""
    child.expect(pexpect.EOF)
    child.close()
    return child.before, child.exitstatus


def test_a_bar_on_a_terminal_counts_names_the_first_failure_and_disappears(terminal, place):
    child = terminal("run", place.spec("nap", "range(6)"), "-s")
    child.expect("[1-5]/6")
    screen, code = end_of(child)
    assert code == 0
    assert "6 processes: 6 done" in re.sub(r".*\x1b\[2K", "", screen)


def test_what_processes_print_is_whole_lines_in_spite_of_the_bar(terminal, place):
    child = terminal("run", place.spec("invert", "[1, 0, 2]"), "-s")
    screen, code = end_of(child)
    assert code == 3
    lines = [
        re.sub(r".*\x1b\[2K|\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in screen.split("\r\n")
    ]
    assert [line for line in lines if line.startswith("inverting")] == [
        "inverting 1",
        "inverting 0",
        "inverting 2",
    ]
    assert "first failure: process 1 x=0 run=0" in lines


def test_the_log_of_a_process_holds_nothing_of_the_bar(terminal, place):
    child = terminal("run", place.spec("chatty"), "-s", "-o", "out")
    assert end_of(child)[1] == 0
    logs = sorted(path.read_text() for path in (place.path / "out" / "logs").iterdir())
    assert logs == ["said 0\n", "said 1\n", "said 2\n"]


def test_a_breakpoint_in_a_serial_process_is_a_debugger_on_the_terminal(terminal, place):
    child = terminal("run", place.spec("debug"), "-s")
    child.expect_exact("(Pdb) ")
    for typed, told in (("p doubled", "2"), ("p x", "1"), ("n", "-> return doubled")):
        child.sendline(typed)
        child.expect_exact(told)
        child.expect_exact("(Pdb) ")
        assert "/3" not in child.before  # the bar stays away
    child.sendline("c")
    screen, code = end_of(child)
    assert code == 0
    assert "3 processes: 3 done" in screen


def test_a_serial_process_can_ask_on_the_terminal(terminal, place):
    child = terminal("run", place.spec("ask", "[1, 2]"), "-s", "-o", "out")
    for number in (1, 2):
        child.expect_exact(f"what is {number}? ")
        child.sendline(f"answer {number}")
    assert end_of(child)[1] == 0
    assert "answer 2" in (place.path / "out" / "table.csv").read_text()


def test_ctrl_c_on_a_terminal_says_what_is_kept(terminal, place):
    child = terminal("run", place.spec("wait"), "-s")
    wait_until((place.path / "began-1").exists)
    child.sendintr()
    child.expect("Ctrl-C again stops it")
    child.sendintr()
    screen, code = end_of(child)
    assert code == 130
    assert "interrupted: 1 done" in screen
    assert "daskspace resume" in screen
    assert "Traceback" not in screen


# daskspace plan


PLAN = """
    function: work:square
    parameter_ranges: {x: range(12)}
    constraints: [x != 3, x % 2 == 1]
    runs: 2
"""


def test_plan_counts_and_tells_what_each_constraint_drops(place):
    place.write("plan.yaml", PLAN)
    ended = place.run("plan", "plan.yaml", "-n", "3")
    assert (ended.returncode, ended.stderr) == (0, "")
    lines = words_of(ended.stdout)
    assert lines[0] == ["plan:", "10", "processes"]
    assert lines[1] == ["5", "combinations", "x", "2", "runs"]
    assert "dropped 1 of 12 combinations by  x != 3\n" in ended.stdout
    assert "dropped 6 of 12 combinations by  x % 2 == 1\n" in ended.stdout
    assert lines[-5:-1] == [["x", "run"], ["1", "0"], ["1", "1"], ["5", "0"]]
    assert ended.stdout.endswith("daskspace run plan.yaml\n")


def test_plan_runs_nothing_and_writes_nothing(place):
    spec = place.spec("invert", "[1, 2]")
    before = place.files()
    assert place.run("plan", spec).returncode == 0
    assert place.files() == before


def test_the_json_of_plan_says_the_same(place):
    place.write("plan.yaml", PLAN)
    plan = json.loads(place.run("plan", "plan.yaml", "-n", "1", "--json").stdout)
    assert plan["processes"] == 10
    assert plan["combinations"] == {"all": 12, "seen": 12, "kept": 5}
    assert [entry["combinations"] for entry in plan["dropped"]] == [1, 6]
    assert plan["first"] == [{"x": 1, "data": None, "run": 0}]


# Looking at results


def test_table_prints_a_row_a_process(invoke):
    header, *rows = words_of(invoke("table", "out").stdout)
    assert header == ["process", "x", "run", "state", "y", "duration", "error"]
    assert [row[3] for row in rows] == ["done", "failed", "done"]


def test_table_sorts_the_largest_first_or_last_and_the_empty_to_the_end(invoke):
    def order(*options):
        return [row[0] for row in words_of(invoke("table", "out", "--sort", *options).stdout)[1:]]

    assert order("y") == ["0", "2", "1"]
    assert order("y", "-r") == ["2", "0", "1"]
    assert order("error")[0] == "1"


def test_table_refuses_an_unknown_column_with_the_nearest(invoke):
    assert_refused(invoke("table", "out", "--sort", "durtion"), "did you mean 'duration'?")
    assert_refused(invoke("table", "out", "--sort", "%%"), "it has process, x,")


def test_table_shows_fewer_rows_or_all_columns(invoke):
    shown = invoke("table", "out", "-n", "1").stdout
    assert "(1 of 3 rows; all are in out/table.csv)\n" in shown
    assert len(words_of(shown)) == 3
    assert len(words_of(invoke("table", "out", "-n", "0").stdout)) == 4
    assert "peak_memory" in invoke("table", "out", "-a").stdout


def test_the_json_of_table_is_a_list_of_rows(invoke):
    rows = json.loads(invoke("table", "out", "--sort", "y", "--json").stdout)
    assert [(row["process"], row["y"]) for row in rows] == [(0, 1.0), (2, 0.5), (1, None)]


def test_failures_tells_what_why_where_and_how_to_run_it_again(invoke):
    lines = invoke("failures", "out").stdout.splitlines()
    assert lines[0] == "1 failed with ZeroDivisionError"
    assert lines[1] == "  process 1 x=0 run=0"
    assert lines[2] == "    ZeroDivisionError: division by zero"
    assert re.fullmatch(r'    /.*/work\.py:\d+ in invert: return {"y": 1 / x}', lines[3])
    assert re.fullmatch(r"    log out/logs/\S+", lines[4])
    assert os.path.exists(lines[4].split()[1])
    assert lines[5].startswith(A_SECOND_TIME)
    assert lines[5].endswith("daskspace rerun out 1 --pdb")


def test_failures_groups_by_error_and_shows_some_of_each(place):
    place.run("run", place.spec("invert", "[0, a, 1]", more="runs: 3\n"), "-o", "out")
    shown = place.run("failures", "out", "-n", "2").stdout
    groups = [line for line in shown.splitlines() if line[0] != " " and "again" not in line]
    assert groups == ["3 failed with ZeroDivisionError", "3 failed with TypeError"]
    assert shown.count("  ... and 1 more (-n 3 shows them)\n") == 2


def test_the_command_that_failures_prints_runs_exactly_that_process_again(finished):
    shown = finished.run("failures", "out").stdout
    line = next(line for line in shown.splitlines() if line.startswith(A_SECOND_TIME))
    printed = shlex.split(line.removeprefix(A_SECOND_TIME))
    ran = finished.path / "inverted.txt"
    before = ran.read_text()
    files = sorted((finished.path / "out").rglob("*"))
    again = subprocess.run(
        printed, cwd=finished.path, input="p x\nq\n", capture_output=True, text=True, timeout=60
    )
    assert again.returncode == 3
    assert ran.read_text() == before + "0\n"
    assert sorted((finished.path / "out").rglob("*")) == files
    assert "inverting 0\n" in again.stdout
    assert "(Pdb) 0\n" in again.stdout
    assert "ZeroDivisionError: division by zero" in again.stderr
    assert "daskspace/cli" not in again.stderr


def test_the_json_of_failures_has_the_traceback_and_the_command(invoke):
    (failure,) = json.loads(invoke("failures", "out", "--json").stdout)
    assert failure["parameters"] == {"x": 0}
    assert failure["rerun"].endswith("daskspace rerun out 1")
    assert failure["traceback"].endswith("ZeroDivisionError: division by zero\n")


def test_failures_says_so_when_there_are_none(place):
    place.run("run", place.spec("square"), "-o", "out")
    ended = place.run("failures", "out")
    assert (ended.returncode, ended.stdout) == (0, "no failures: 3 done\n")


def test_status_tells_counts_and_times(invoke):
    lines = invoke("status", "out").stdout.splitlines()
    assert lines[0] == "invert on SerialBackend: ended"
    assert lines[1].split(maxsplit=1) == ["ended", "3 of 3: 2 done, 1 failed"]
    status = json.loads(invoke("status", "out", "--json").stdout)
    assert status["counts"] == {"done": 2, "failed": 1}
    assert status["total"] == 3


def test_logs_prints_that_of_the_operation_of_a_process_or_of_all_that_failed(invoke):
    assert "consolidated" in invoke("logs", "out").stdout
    assert invoke("logs", "out", "2").stdout == "inverting 2\n"
    failed = invoke("logs", "out", "--failed").stdout
    assert failed.startswith("--- process 1 x=0 run=0: failed\ninverting 0\nTraceback")
    assert "inverting 2" not in failed
    assert_refused(invoke("logs", "out", "3"), "process 3 has not ended", "process 2")


def test_logs_says_on_stderr_that_a_process_printed_nothing(place):
    place.run("run", place.spec("square"), "-o", "out")
    ended = place.run("logs", "out", "0")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr == "process 0 printed and logged nothing\n"


def test_a_reader_that_goes_away_is_no_error(finished):
    command = f"{shlex.join(finished.command)} table out | true; exit ${{PIPESTATUS[0]}}"
    ended = finished.run("-c", command, command=["bash"])
    assert "Traceback" not in ended.stderr
    assert "Exception" not in ended.stderr


# daskspace rerun


def test_rerun_of_a_process_that_succeeded_prints_its_metrics(finished):
    ended = finished.run("rerun", "out", "2")
    assert ended.returncode == 0
    assert ended.stdout == 'inverting 2\n{"y":0.5}\n'


def test_rerun_finds_a_process_that_has_moved_and_refuses_one_that_is_gone(place):
    place.run("run", place.spec("square"), "-o", "out")
    described = place.path / "out" / "operation.yaml"
    described.write_text(described.read_text().replace("range(0, 3)", "range(1, 4)"))
    assert "x=1" in place.run("rerun", "out", "1").stderr
    assert_refused(place.run("rerun", "out", "0"), "process 0 is no longer part")


def test_rerun_refuses_when_a_data_set_is_gone(place):
    for name in "ab":
        place.write(f"data/{name}.txt", name)
    place.write("size.yaml", "function: work:size\ninput_path: data/*.txt\n")
    assert place.run("run", "size.yaml", "-o", "out").returncode == 0
    (place.path / "data" / "a.txt").unlink()
    assert_refused(place.run("rerun", "out", "1"), "a.txt")


def test_rerun_refuses_a_process_that_there_is_not(invoke):
    assert_refused(invoke("rerun", "out", "3"), "process 3 has not ended")


# The rest


def test_backends_lists_all_with_their_classes(invoke):
    rows = json.loads(invoke("backends", "--json").stdout)
    assert {"name": "serial", "class": "SerialBackend"}.items() <= rows[0].items()
    assert all(row["what"] and not row["what"].startswith("not usable") for row in rows[:2])
    assert words_of(invoke("backends").stdout)[0] == ["name", "class", "package", "what"]


def test_the_command_is_a_command_of_dask_too(place):
    dask = [sys.executable, "-W", "error", "-m", "dask"]
    listed = place.run("--help", command=dask)
    assert re.search(r"^  operation +Run one operation", listed.stdout, re.MULTILINE)
    assert listed.stderr == ""
    ended = place.run("operation", "run", place.spec("square"), "-o", "out", command=dask)
    assert ended.returncode == 0, ended.stderr
    assert "3 processes: 3 done" in ended.stdout


def test_the_installed_command_is_the_same(place):
    command = [os.path.join(os.path.dirname(sys.executable), "daskspace")]
    assert place.run("--help", command=command).stdout.startswith("Usage: daskspace ")
    assert place.run("--version").stdout == place.run("--version", command=command).stdout


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["table", "--help"]])
def test_help_imports_nothing_that_takes_long(place, arguments):
    program = f"""
        import sys
        from daskspace.cli import operation
        try:
            operation({arguments!r}, prog_name="daskspace")
        finally:
            slow = {{"dask", "distributed", "pandas", "numpy", "rich", "yaml"}} & set(sys.modules)
            print("slow:", sorted(slow), file=sys.stderr)
    """
    place.write("program.py", program)
    ended = place.run("program.py", command=[sys.executable])
    assert (ended.returncode, ended.stderr) == (0, "slow: []\n")
    assert ended.stdout.startswith("Usage: daskspace")


@pytest.mark.parametrize("command", sorted(operation.list_commands(None)))
def test_every_command_has_help(invoke, command):
    ended = invoke(command, "--help")
    assert (ended.exit_code, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"Usage: operation {command} ")
    assert command in invoke("--help").stdout


@pytest.mark.parametrize("backend_type", ["serial", "mcore"])
def test_a_disk_that_is_full_ends_the_operation_with_one_sentence(tmp_path, backend_type):
    (tmp_path / "many.py").write_text("def same(x):\n    return x\n")
    (tmp_path / "many.yaml").write_text(
        "function: many:same\nparameter_ranges: {x: 'range(3000)'}\n"
    )
    program = [sys.executable, "-m", "daskspace", "run", "many.yaml", "-o", "out"]
    command = shlex.join([*program, "-b", backend_type])
    limited = f"ulimit -f 60 && exec {command}"  # no file grows beyond 30 KiB
    ran = subprocess.run(
        ["sh", "-c", limited], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    assert "it could not go on: OSError" in ran.stderr.replace("\n", " ")
    rows = json.loads(
        subprocess.run(
            [sys.executable, "-m", "daskspace", "table", "out", "-n", "0", "--json"],
            cwd=tmp_path,
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
    )
    assert rows
    assert {row["x"] for row in rows if row["state"] == "done"} <= set(range(3000))
