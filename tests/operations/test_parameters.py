import itertools
import time

import numpy as np
import pytest

from daskspace.errors import SpecError
from daskspace.operations.expressions import Constraint
from daskspace.operations.parameters import ParameterSpace, Survey


def test_that_an_empty_space_has_one_empty_combination():
    space = ParameterSpace()
    assert list(space) == [{}]
    assert (space.names, space.size, space.is_exact) == ((), 1, True)
    assert list(ParameterSpace(grid={}, zip={}, constraints=[])) == [{}]


def test_that_the_last_name_of_the_grid_varies_fastest():
    space = ParameterSpace(grid={"a": [1, 2], "b": "range(3)", "c": ("x",)})
    expected = [{"a": a, "b": b, "c": "x"} for a in (1, 2) for b in (0, 1, 2)]
    assert list(space) == expected
    assert list(space) == expected
    assert space.size == 6


def test_that_settings_come_before_zip_and_zip_before_the_grid():
    space = ParameterSpace(
        grid={"g": [1, 2]},
        settings=[{"s": 1}, {"t": 2}],
        zip={"y": [1, 2], "z": "range(3, 5)"},
    )
    assert list(space)[:5] == [
        {"s": 1, "y": 1, "z": 3, "g": 1},
        {"s": 1, "y": 1, "z": 3, "g": 2},
        {"s": 1, "y": 2, "z": 4, "g": 1},
        {"s": 1, "y": 2, "z": 4, "g": 2},
        {"t": 2, "y": 1, "z": 3, "g": 1},
    ]
    assert space.names == ("s", "t", "y", "z", "g")
    assert list(next(iter(space))) == ["s", "y", "z", "g"]
    assert space.size == len(list(space)) == 8


def test_that_the_product_is_that_of_itertools():
    axes = {"a": [3, 1, 2], "b": ["x", "y"], "c": [0.5], "d": [None, True]}
    expected = [
        dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())
    ]
    assert list(ParameterSpace(grid=axes)) == expected


def test_that_combinations_are_independent_of_each_other_and_of_the_space():
    settings = [{"a": 1}]
    space = ParameterSpace(settings=settings)
    settings[0]["a"] = 2
    next(iter(space))["a"] = 3
    assert list(space) == [{"a": 1}]


def test_that_a_huge_grid_costs_nothing_until_it_is_pulled():
    start = time.perf_counter()
    space = ParameterSpace(grid={"a": "range(10_000_000)", "b": range(10_000_000)})
    assert list(itertools.islice(space, 2)) == [{"a": 0, "b": 0}, {"a": 0, "b": 1}]
    assert space.size == 10**14
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([1, 2]), [1, 2]),
        (np.linspace(0, 1, 3), [0.0, 0.5, 1.0]),
        ((x for x in "ab"), ["a", "b"]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        ([1, True], [1, True]),
        ([1, "1"], [1, "1"]),
        ([0, False, None, ""], [0, False, None, ""]),
        ([{"a": 1}, {"a": True}], [{"a": 1}, {"a": True}]),
    ],
)
def test_that_a_grid_takes_any_ordered_values(values, expected):
    pulled = [combination["a"] for combination in ParameterSpace(grid={"a": values})]
    assert pulled == expected
    assert list(map(type, pulled)) == list(map(type, expected))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (3, "the grid of 'C' must be a list such as [3], not 3"),
        (0.5, "must be a list"),
        (True, "must be a list"),
        (None, "must be a list"),
        (np.array(3), "must be a list"),
        ({"a": 1}, "must be a list"),
        (b"abc", "must be a list"),
        ({1, 2}, "the grid of 'C' is a set, which has no order"),
        ([], "the grid of 'C' is empty"),
        (range(0), "the grid of 'C' is empty"),
        ("range(0)", "the grid of 'C': the range 'range(0)' is empty"),
        ("rbf", "the grid of 'C': the range 'rbf' cannot be used: unknown name 'rbf'"),
        ([1, 2, 1], "the grid of 'C' lists 1 twice"),
        ([1, 1.0], "the grid of 'C' lists 1.0 twice"),
        (["a", "a"], "lists 'a' twice"),
        ([True, 1, True], "lists True twice"),
        ([[1, [2]], [1, [2.0]]], "lists [1, [2.0]] twice"),
        ([{"a": [1]}, {"a": [1]}], "lists {'a': [1]} twice"),
        ([float("nan"), float("nan")], "lists nan twice"),
        (np.array([[1, 2], [1, 2]]), "lists [1, 2] twice"),
    ],
)
def test_that_values_that_cannot_be_used_are_refused(values, reason):
    with pytest.raises(SpecError) as caught:
        ParameterSpace(grid={"C": values})
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"grid": {"a": [1]}, "zip": {"a": [1]}}, "'a' is in zip and in grid"),
        ({"grid": {"a": [1]}, "settings": [{"b": 1}, {"a": 1}]}, "'a' is in settings and in grid"),
        ({"zip": {"a": [1]}, "settings": [{"a": 1}]}, "'a' is in settings and in zip"),
        ({"zip": {"a": [1, 2], "b": [1]}}, "'a' has 2, 'b' has 1"),
        ({"zip": {"a": [], "b": []}}, "the zip list of 'a' is empty"),
        ({"zip": {"a": 3}}, "the zip list of 'a' must be a list"),
        ({"zip": {"a": [1, 1], "b": [2, 2]}}, "zip lists {'a': 1, 'b': 2} twice"),
        ({"zip": [1]}, "zip must be a mapping"),
        ({"grid": [1]}, "the grid must be a mapping"),
        ({"grid": {"": [1]}}, "a name must be a text, not empty"),
        ({"grid": {1: [1]}}, "names a parameter 1"),
        ({"zip": {None: [1]}}, "names a parameter None"),
        ({"settings": [{1: 1}]}, "names a parameter 1"),
        ({"settings": []}, "settings is an empty list"),
        ({"settings": {"a": 1}}, "settings must be a list"),
        ({"settings": [3]}, "a setting must be a mapping"),
        (
            {"settings": [{"a": 1, "b": 2}, {"b": 2.0, "a": 1}]},
            "settings list {'b': 2.0, 'a': 1} twice",
        ),
        ({"constraints": "a > 1"}, "constraints must be a list"),
        ({"constraints": [True]}, "a constraint must be a text or a function, not True"),
        ({"constraints": ["1 >"]}, "invalid syntax"),
        ({"constraints": ["a > 1"]}, "unknown parameter 'a'"),
        ({"grid": {"alpha": [1]}, "constraints": ["alhpa > 1"]}, "did you mean 'alpha'?"),
        ({"grid": {"alpha": [1]}, "constraints": [lambda alhpa: True]}, "did you mean 'alpha'?"),
        ({"constraints": [lambda a, /: True]}, "takes arguments without a name"),
    ],
)
def test_that_a_space_that_makes_no_sense_is_refused(arguments, reason):
    with pytest.raises(SpecError) as caught:
        ParameterSpace(**arguments)
    assert reason in str(caught.value)


def test_that_a_column_of_zip_may_repeat_a_value():
    assert len(list(ParameterSpace(zip={"a": [1, 1], "b": [1, 2]}))) == 2


def test_that_constraints_are_texts_or_functions():
    def is_odd(b, missing=1):
        return b % 2 * missing

    space = ParameterSpace(
        grid={"a": range(4), "__b__": range(3), "b": range(4)},
        constraints=["a > 1", "${__b__} < 2", is_odd, lambda **all_of_them: len(all_of_them) == 3],
    )
    assert {c["a"] for c in space} == {2, 3}
    assert {c["b"] for c in space} == {1, 3}
    assert not space.is_exact
    assert [c.text for c in space.constraints] == ["a > 1", "${__b__} < 2", "is_odd", "<lambda>"]
    assert isinstance(space.constraints[0], Constraint)


def test_that_a_constraint_may_ask_for_what_only_some_settings_have():
    space = ParameterSpace(
        settings=[
            {"kernel": "linear"},
            {"kernel": "rbf", "gamma": 1},
            {"kernel": "rbf", "gamma": 3},
        ],
        constraints=["kernel == 'linear' or gamma > 2"],
    )
    assert [c.get("gamma") for c in space] == [None, 3]


def test_that_a_function_that_raises_is_told_with_the_parameters():
    def inverse(a):
        return 1 / a

    with pytest.raises(SpecError) as caught:
        list(ParameterSpace(grid={"a": [0], "b": [1]}, constraints=[inverse]))
    assert "inverse fails with {'a': 0, 'b': 1}: ZeroDivisionError" in str(caught.value)


def test_that_a_survey_charges_the_first_constraint_that_fails():
    space = ParameterSpace(grid={"a": range(10)}, constraints=["a > 2", "a > 4", "a < 9"])
    dropped = (("a > 2", 3), ("a > 4", 2), ("a < 9", 1))
    assert space.survey() == Survey(seen=10, kept=4, dropped=dropped)
    assert space.survey(limit=4) == Survey(4, 0, (("a > 2", 3), ("a > 4", 1), ("a < 9", 0)))
    assert ParameterSpace(grid={"a": range(10)}).survey(3) == Survey(3, 3, ())


def test_that_constraints_that_drop_everything_are_an_error():
    space = ParameterSpace(grid={"a": range(10)}, constraints=["a > 9"])
    with pytest.raises(SpecError, match="the constraints drop all 10 combinations"):
        space.check_satisfiable(limit=10)
    space.check_satisfiable(limit=9)
    assert list(space) == []


def test_that_satisfiability_is_known_at_the_first_combination_kept():
    calls = []
    space = ParameterSpace(
        grid={"a": range(10_000_000)}, constraints=[lambda a: calls.append(a) or a == 3]
    )
    space.check_satisfiable()
    assert calls == [0, 1, 2, 3]
    ParameterSpace(grid={"a": range(10_000_000)}).check_satisfiable()
