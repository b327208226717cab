import contextlib
import functools
import json
import sys
import time
import traceback

import pytest

from daskspace import create_backend, operation
from daskspace.execution.outcome import GOOD_STATES, STATES, Outcome, describe_error


def described(function, *args):
    """Return what is told of the exception that a function raises."""
    try:
        function(*args)
    except BaseException as error:
        return describe_error(error)
    raise AssertionError("it raised nothing")


def throw(error):
    raise error


def recurse():
    recurse()


class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")


# Receipts

FULL = Outcome(
    process=3,
    state="failed",
    parameters={"a": 1, "b": [None, "ü", "\udc80"], "c": {}},
    data="data/a b.csv",
    run=0,
    metrics={"loss": 0.1, "large": 2**80, "none": None},
    start=1.5,
    duration=0.0,
    host="here",
    peak_memory=0,
    error="ValueError",
    message="two\nlines\r and \x00",
    where="a.py:1 in f",
    traceback="Traceback\n",
    log="logs/a.log",
    directory="processes/a",
)


@pytest.mark.parametrize("outcome", [FULL, Outcome(0, "done")], ids=["full", "empty"])
def test_a_receipt_gives_back_the_outcome_it_was_made_from(outcome):
    assert Outcome.from_json(outcome.to_json()) == outcome
    assert Outcome.from_json(outcome.to_json().encode()) == outcome


def test_a_receipt_is_one_line_of_ascii_without_what_is_empty():
    assert "\n" not in FULL.to_json()
    assert FULL.to_json().isascii()
    fields = json.loads(Outcome(0, "done", metrics={"a": None}).to_json())
    assert len(fields.pop("crc")) == 8
    assert fields == {"process": 0, "state": "done", "metrics": {"a": None}}


def test_a_receipt_keeps_zeros():
    read = json.loads(Outcome(0, "done", run=0, duration=0.0, peak_memory=0).to_json())
    assert (read["run"], read["duration"], read["peak_memory"]) == (0, 0.0, 0)


def test_fields_that_a_later_version_added_are_left_out():
    assert Outcome.from_json('{"process": 1, "state": "done", "colour": "red"}') == Outcome(
        1, "done"
    )


def test_an_outcome_cannot_be_changed():
    with pytest.raises(AttributeError):
        FULL.state = "done"


def test_the_states_are_the_documented_ones():
    assert " ".join(STATES) == ("waiting running done failed crashed timeout lost cancelled cached")
    assert set(STATES) >= GOOD_STATES


# Errors


def test_an_error_is_told_by_class_text_line_and_traceback():
    error = described(throw, ValueError("too much"))
    assert (error["error"], error["message"]) == ("ValueError", "too much")
    assert error["where"].startswith(f"{__file__}:")
    assert error["where"].endswith(" in throw: raise error")
    assert error["traceback"].startswith("Traceback (most recent call last):\n")
    assert error["traceback"].endswith("ValueError: too much\n")


def test_the_line_is_the_users_own_where_a_library_raised():
    error = described(json.loads, "{")
    assert " in described: function(*args)" in error["where"]
    assert "decoder.py" in error["traceback"]


def test_our_own_frames_do_not_head_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with create_backend("serial") as backend:
        op = backend.run(operation(throw_now, grid={"x": [1]}))
    (log,) = (tmp_path / op.result_directory / "logs").iterdir()
    frames = [line for line in log.read_text().splitlines() if line.startswith("  File")]
    assert len(frames) == 1
    assert __file__ in frames[0]


def throw_now(x):
    raise ValueError(x)


def test_an_error_that_was_never_raised_has_no_line():
    error = describe_error(ValueError("x"))
    assert "where" not in error
    assert error["message"] == "x"


def test_an_error_without_a_text_has_no_message():
    assert "message" not in described(throw, ValueError())


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(), BaseException()]
)
def test_whatever_can_be_raised_can_be_described(error):
    assert described(throw, error)["error"] == type(error).__name__


def test_an_error_whose_text_cannot_be_had_still_has_class_line_and_traceback():
    error = described(throw, Mute())
    assert error["error"] == "Mute"
    assert "RuntimeError" in error["message"]
    assert "raise error" in error["where"]
    assert "Mute" in error["traceback"]


def test_a_message_of_200_mb_is_cut_and_its_length_told():
    error = described(throw, ValueError("x" * 200_000_000))
    assert len(error["message"]) < 2_100
    assert error["message"].endswith("... (200,000,000 characters)")
    assert len(error["traceback"]) < 21_000


def test_a_deep_recursion_is_described_briefly():
    error = described(recurse)
    assert error["error"] == "RecursionError"
    assert " in recurse: recurse()" in error["where"]
    assert len(error["traceback"]) < 21_000
    assert error["traceback"].endswith("RecursionError: maximum recursion depth exceeded\n")


def test_a_recursion_far_beyond_pythons_own_limit_is_described_in_no_time():
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        began = time.monotonic()
        error = described(recurse)
    finally:
        sys.setrecursionlimit(limit)
    assert time.monotonic() - began < 10
    assert error["error"] == "RecursionError"
    assert len(error["traceback"]) < 21_000


def chained(first, second, is_cause):
    try:
        raise first
    except Exception as error:
        raise second from (error if is_cause else None)


def in_handler(first, second):
    try:
        raise first
    except Exception:
        raise second  # noqa: B904 - the context is what is tested


@pytest.mark.parametrize("raise_both", [functools.partial(chained, is_cause=True), in_handler])
def test_the_error_before_is_named(raise_both):
    traceback = described(raise_both, KeyError("one"), ValueError("two"))["traceback"]
    assert traceback.startswith("(after KeyError: 'one')\n")
    assert traceback.endswith("ValueError: two\n")


def test_an_error_before_that_was_hidden_stays_so():
    hidden = described(chained, KeyError("one"), ValueError("two"), False)
    assert "(after" not in hidden["traceback"]


def test_the_text_of_the_error_before_is_cut():
    error = described(chained, ValueError("x" * 1_000_000), ValueError("two"), True)
    assert len(error["traceback"]) < 2_500


def test_a_cause_whose_text_cannot_be_had_leaves_the_traceback():
    error = described(chained, Mute(), ValueError("two"), True)
    assert "Mute" in error["traceback"]
    assert "ValueError: two" in error["traceback"]


def test_a_group_is_described_by_its_own_text():
    error = described(throw, ExceptionGroup("several", [ValueError("inner"), KeyError("k")]))
    assert error["error"] == "ExceptionGroup"
    assert error["message"] == "several (2 sub-exceptions)"


def test_the_traceback_of_a_group_tells_its_members():
    error = described(throw, ExceptionGroup("several", [ValueError("inner"), KeyError("k")]))
    assert "ValueError: inner" in error["traceback"]
    assert "KeyError: 'k'" in error["traceback"]


def test_a_large_group_is_described_briefly():
    group = ExceptionGroup("several", [ValueError("x" * 1_000) for _ in range(10_000)])
    error = described(throw, group)
    assert len(error["traceback"]) < 21_000
    assert json.dumps(error)


def test_a_syntax_error_tells_the_line_it_is_about():
    error = described(compile, "a = 1\nb = = 2\n", "script.py", "exec")
    assert error["error"] == "SyntaxError"
    assert 'File "script.py", line 2' in error["traceback"]
    assert "b = = 2" in error["traceback"]


def test_notes_are_told():
    error = ValueError("x")
    error.add_note("a note")
    assert "a note" in described(throw, error)["traceback"]


def test_a_line_whose_file_is_gone_is_told_without_its_code():
    code = compile("def f():\n    raise ValueError('x')\n", "/no/such/file.py", "exec")
    names = {}
    exec(code, names)
    assert described(names["f"])["where"] == "/no/such/file.py:2 in f"


def test_describing_an_error_leaves_it_alone():
    error = ValueError("x")
    with contextlib.suppress(ValueError):
        throw(error)
    before = traceback.format_exception(error)
    describe_error(error)
    assert traceback.format_exception(error) == before
