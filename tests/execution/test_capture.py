import contextlib
import io
import logging
import sys
import threading
from pathlib import Path

import pytest

from daskspace import create_backend, operation
from daskspace.execution import capture
from daskspace.execution.capture import AttemptLog, capturing, current_log


@pytest.fixture
def log_at(tmp_path):
    return lambda name="a": AttemptLog(tmp_path, lambda: name)


@pytest.fixture
def text_of(tmp_path):
    return lambda name="a": (tmp_path / f"{name}.log").read_text(encoding="utf-8")


@contextlib.contextmanager
def pythons_own_logging():
    """Let the root logger be as Python begins with, without the handlers of pytest."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    root.handlers[:], root.level = [], logging.WARNING
    try:
        yield root
    finally:
        root.handlers[:], root.level = before
        root.setLevel(root.level)


def logs_of(op):
    return {path.stem: path.read_text() for path in Path(op.result_directory, "logs").iterdir()}


def run(op):
    with create_backend("serial") as backend:
        return backend.run(op)


# One attempt


def test_what_is_printed_goes_to_the_log_and_not_to_the_terminal(log_at, text_of, capsys):
    with capturing(), log_at():
        print("to out")
        print("to err", file=sys.stderr)
    assert text_of() == "to out\nto err\n"
    assert capsys.readouterr() == ("", "")


def test_with_echo_it_appears_on_the_terminal_as_well(log_at, text_of, capsys):
    with capturing(echo=True), log_at():
        print("to out")
        print("to err", file=sys.stderr)
    assert text_of() == "to out\nto err\n"
    assert capsys.readouterr() == ("to out\n", "to err\n")


def test_what_is_printed_outside_of_an_attempt_goes_to_the_terminal(log_at, text_of, capsys):
    with capturing():
        print("before")
        with log_at():
            print("within")
        print("after")
    assert text_of() == "within\n"
    assert capsys.readouterr().out == "before\nafter\n"


def test_without_a_word_there_is_no_file(log_at, tmp_path):
    with capturing(), log_at("quiet") as log:
        print("", end="")
        sys.stdout.flush()
    assert not log.exists
    assert list(tmp_path.iterdir()) == []


def test_the_streams_are_put_back_even_after_an_exception(log_at):
    before = sys.stdout, sys.stderr
    with pytest.raises(SystemExit), capturing(), log_at():
        sys.exit(1)
    assert (sys.stdout, sys.stderr) == before
    assert current_log() is None


def test_a_stream_that_the_process_put_in_place_stays(log_at, monkeypatch):
    own = io.StringIO()
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with capturing(), log_at():
        sys.stdout = own
    assert sys.stdout is own


def test_redirecting_within_an_attempt_is_left_alone(log_at, text_of):
    own = io.StringIO()
    with capturing(), log_at():
        with contextlib.redirect_stdout(own):
            print("mine")
        print("yours")
    assert own.getvalue() == "mine\n"
    assert text_of() == "yours\n"


def test_bytes_may_be_written_too(log_at, text_of):
    with capturing(), log_at():
        print("a")
        assert sys.stdout.buffer.write("ü\n".encode()) == 3
        sys.stdout.buffer.write(b"\xff\n")
        sys.stdout.buffer.flush()
        print("b")
    assert text_of() == "a\nü\n\\xff\nb\n"


def test_what_cannot_be_encoded_is_escaped(log_at, text_of):
    with capturing(), log_at():
        print("\udc80 ü")
    assert text_of() == "\\udc80 ü\n"


def test_the_stand_in_is_a_stream_like_the_real_one(log_at, text_of):
    real = sys.stdout
    with capturing(), log_at():
        assert sys.stdout.writable()
        assert not sys.stdout.readable()
        assert sys.stdout.encoding == real.encoding
        assert sys.stdout.errors == real.errors
        assert sys.stdout.isatty() == real.isatty()
        assert not sys.stdout.closed
        sys.stdout.writelines(["a\n", "b\n"])
        with pytest.raises(TypeError):
            sys.stdout.write(5)
    assert text_of() == "a\nb\n"


def test_the_log_can_be_read_while_the_attempt_runs(log_at, text_of):
    with capturing(), log_at():
        print("a line")
        assert text_of() == "a line\n"


# Logging


def test_what_is_logged_goes_to_the_log_with_level_and_name(log_at, text_of):
    with pythons_own_logging(), capturing(), log_at():
        logging.getLogger("mine").info("an info %d", 1)
        logging.getLogger().warning("a warning")
    first, second = text_of().splitlines()
    assert first.endswith("INFO     mine: an info 1")
    assert second.endswith("WARNING  root: a warning")


def test_the_root_logger_is_put_back(log_at):
    with pythons_own_logging() as root:
        with capturing(), log_at():
            assert root.level == logging.INFO
        assert root.level == logging.WARNING
        assert root.handlers == []


def test_a_root_logger_that_the_user_set_up_keeps_its_level(log_at, tmp_path):
    with pythons_own_logging() as root:
        root.addHandler(logging.NullHandler())
        root.setLevel(logging.ERROR)
        with capturing(), log_at():
            root.warning("not wanted")
    assert list(tmp_path.iterdir()) == []


def test_the_log_argument_takes_everything_from_debug_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    op = run(operation(lambda x, log: log.debug("detail %s", x), grid={"x": [1]}))
    assert [text[-len("detail 1\n") :] for text in logs_of(op).values()] == ["detail 1\n"]


# Threads, nesting


def test_a_thread_that_the_process_started_writes_to_its_log(log_at, text_of):
    with capturing(), log_at():
        thread = threading.Thread(target=print, args=("from a thread",))
        thread.start()
        thread.join(10)
    assert text_of() == "from a thread\n"


def test_attempts_in_several_threads_have_logs_of_their_own(log_at, text_of, capsys):
    together = threading.Barrier(8, timeout=10)

    def attempt(name):
        with capturing(), log_at(name):
            together.wait()
            for n in range(50):
                print(f"{name} {n}")
            together.wait()

    threads = [threading.Thread(target=attempt, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for name in map(str, range(8)):
        assert text_of(name) == "".join(f"{name} {n}\n" for n in range(50))
    assert capsys.readouterr().out == ""
    assert capture._captures == 0


def test_the_streams_stay_in_place_until_the_last_capture_ends(log_at, text_of):
    before = sys.stdout
    with capturing(), log_at():
        with capturing():
            print("inner")
        assert sys.stdout is not before
        print("outer")
    assert sys.stdout is before
    assert text_of() == "inner\nouter\n"


def test_after_an_attempt_within_an_attempt_the_outer_one_goes_on(log_at, text_of):
    with capturing(), log_at("outer"):
        print("before")
        with capturing(), log_at("inner"):
            print("within")
        print("after")
    assert text_of("inner") == "within\n"
    assert text_of("outer") == "before\nafter\n"


def test_a_process_may_run_an_operation_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def outer(x):
        print("before")
        run(operation([lambda: print("within")], name="inner"))
        print("after")

    (text,) = logs_of(run(operation(outer, grid={"x": [1]}, name="outer"))).values()
    assert [line for line in text.splitlines() if "daskspace" not in line] == ["before", "after"]


# A full disk


@pytest.mark.parametrize("place", ["file", "file/below", "/proc"])
def test_a_log_that_cannot_be_written_costs_only_the_log(tmp_path, place, capsys):
    (tmp_path / "file").touch()
    with capturing(echo=True), AttemptLog(tmp_path / place, lambda: "a") as log:
        print("a line")
        print("no end of line", end="")
        log.write("more")
    assert capsys.readouterr().out == "a line\nno end of line"


def test_on_a_full_disk_the_processes_go_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path("results/logs").symlink_to("/dev/full")
    op = run(operation([lambda: print("x") or 1] * 3, result_directory="results"))
    assert [(row["state"], row["value"]) for row in op.rows()] == [("done", 1)] * 3


def test_after_its_end_a_log_takes_nothing_more(log_at, text_of):
    with capturing(), log_at() as log:
        print("within")
    log.write("too late\n")
    assert text_of() == "within\n"


# Through a backend


def test_every_process_has_a_log_of_its_own_and_those_without_a_word_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def talk(x):
        if x:
            print("x is", x)

    op = run(operation(talk, grid={"x": [0, 1, 2]}))
    assert sorted(logs_of(op).values()) == ["x is 1\n", "x is 2\n"]
