import datetime
import decimal
import enum
import functools
import json
import math
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from daskspace import create_backend, operation
from daskspace.execution.plain import METRICS_LIMIT, as_metrics, digest, dumps, plain


class Colour(enum.IntEnum):
    RED = 1


class Mood(enum.StrEnum):
    GOOD = "good"


class Plainless:
    def method(self):
        """Do nothing."""


class Nameless:
    def __repr__(self):
        raise ValueError("no text")


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


# Metrics


@pytest.mark.parametrize(
    ("result", "metrics"),
    [
        (None, {}),
        ({}, {}),
        ({"a": 1, "b": None}, {"a": 1, "b": None}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        *[(value, {"value": value}) for value in (0, 2.5, False, "text", [1, 2])],
        ((1, 2), {"value": (1, 2)}),
    ],
)
def test_a_mapping_is_metrics_and_a_scalar_is_the_metric_value_and_none_is_none(result, metrics):
    assert as_metrics(result) == metrics


def test_metrics_keep_their_order_and_leave_what_was_returned_alone():
    result = {"z": 1, "a": 2}
    metrics = as_metrics(result)
    metrics["new"] = 3
    assert list(result) == ["z", "a"]
    assert list(metrics) == ["z", "a", "new"]


@pytest.mark.parametrize(
    ("scalar", "number"),
    [
        (np.int64(3), 3),
        (np.uint8(200), 200),
        (np.float32(0.5), 0.5),
        (np.float64(0.1), 0.1),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (np.array(5), 5),
    ],
)
def test_numpy_scalars_become_plain_numbers_alone_and_within_lists(scalar, number):
    assert json.loads(dumps(as_metrics({"a": scalar, "b": [scalar], "c": {"d": scalar}}))) == {
        "a": number,
        "b": [number],
        "c": {"d": number},
    }
    assert json.loads(dumps(as_metrics(scalar))) == {"value": number}


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3),
        np.zeros((2, 2)),
        b"bytes",
        {1, 2},
        lambda: 1,
        object(),
        3j,
        decimal.Decimal(1),
        datetime.date(2024, 1, 31),
        Path("a"),
        (number for number in range(3)),
        {(1, 2): 3},
        [{"deep": [b"bytes"]}],
        nested(100_000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_json_is_refused_with_the_name_of_its_metric(value):
    with pytest.raises(TypeError, match="metric 'odd' is no JSON value") as caught:
        as_metrics({"fine": 1, "odd": value})
    assert len(str(caught.value)) < 600
    assert "`directory`" in str(caught.value)


def test_an_array_alone_is_refused_as_the_metric_value():
    with pytest.raises(TypeError, match=r"metric 'value' is no JSON value but 'ndarray'"):
        as_metrics(np.arange(3))


def test_a_value_that_holds_itself_is_refused():
    circle = []
    circle.append(circle)
    with pytest.raises(TypeError, match=r"metric 'circle'.*nested"):
        as_metrics({"circle": circle})


@pytest.mark.parametrize("key", [1, None, ("a", "b"), b"a"])
def test_a_name_that_is_no_text_is_refused(key):
    with pytest.raises(TypeError, match="a metric's name is a str, not") as caught:
        as_metrics({key: 1})
    assert repr(key) in str(caught.value)


def test_a_nested_metric_is_taken_or_refused_but_never_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with create_backend("serial") as backend:
        op = backend.run(operation(nested, grid={"depth": [1, 99, 100, 101, 800, 990]}))
    assert {row["state"] for row in op.rows()} == {"done", "failed"}


def test_metrics_up_to_64_kib_are_taken_and_larger_ones_refused_with_the_name():
    assert METRICS_LIMIT == 65536
    as_metrics({"text": "x" * 65_000})
    with pytest.raises(ValueError, match=r"64 KiB at 'text'.*`directory`"):
        as_metrics({"text": "x" * 65_536})


def test_many_small_metrics_are_counted_together():
    as_metrics({f"metric {n}": n for n in range(1_000)})
    with pytest.raises(ValueError, match="64 KiB at 'metric"):
        as_metrics({f"metric {n}": n for n in range(10_000)})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_finite_can_be_written_and_read(value):
    read = json.loads(dumps(as_metrics(value)))["value"]
    assert read == pytest.approx(value, nan_ok=True)


def test_a_lone_surrogate_can_be_written_and_read():
    assert json.loads(dumps(as_metrics("\udc80")).encode()) == {"value": "\udc80"}


# Parameters


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[(value, value) for value in (None, True, 1, 2.5, "text", [1, "a"])],
        *[((1, 2), [1, 2]), (range(3), [0, 1, 2]), ({3, 1, 2}, [1, 2, 3])],
        ({1: (2,), "a": {"b": {4}}}, {"1": [2], "a": {"b": [4]}}),
        *[(np.int64(3), 3), (np.bool_(False), False), (np.arange(3), [0, 1, 2])],
        *[(Path("a/b"), "a/b"), (b"a", "b'a'"), (1 + 2j, "(1+2j)")],
        *[(math.sqrt, "math.sqrt"), (dict, "builtins.dict")],
        (decimal.Decimal("0.1"), "Decimal('0.1')"),
        (Plainless, f"{__name__}.Plainless"),
        (Plainless(), f"{__name__}.Plainless"),
        (Plainless.method, f"{__name__}.Plainless.method"),
        (functools.partial(print), "functools.partial(<built-in function print>)"),
        (functools.partial(Plainless.method), "functools.partial"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_parameter_is_shown_as_json_can_hold_it(value, expected):
    assert plain(value) == expected
    assert json.loads(dumps(plain(value))) == expected


def test_a_lambda_is_shown_by_its_place_and_never_by_its_address():
    text = plain(lambda: 1)
    assert "lambda" in text
    assert " at 0x" not in text


@pytest.mark.parametrize(
    ("value", "kind"),
    [(np.float64(0.5), float), (np.str_("a"), str), (Colour.RED, int), (Mood.GOOD, str)],
    ids=repr,
)
def test_a_value_of_a_subclass_becomes_one_of_the_plain_class(value, kind):
    assert type(plain(value)) is kind
    assert type(plain([{"a": value}])[0]["a"]) is kind


def test_an_object_without_a_text_is_shown_as_its_type():
    assert plain(Nameless()) == f"{__name__}.Nameless"


def test_a_digest_depends_on_the_value_alone():
    values = [[1, {"b": 1, "a": [None]}], "ü\udc80", math.nan, 10**30]
    code = "from math import nan; from daskspace.execution.plain import digest; print([digest("
    there = subprocess.run(
        [sys.executable, "-c", f"{code}value).hex() for value in {values!a}])"],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert there.stdout.strip() == str([digest(value).hex() for value in values])
    assert {len(digest(value)) for value in values} == {32}


def test_the_digest_of_a_mapping_does_not_depend_on_its_order():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 2, "b": 1})
