import functools
import itertools
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from daskspace import Process, SpecError, create_backend, load_operation, operation
from daskspace.execution.identity import describe_process
from daskspace.results.table import OWN_COLUMNS


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(op):
    with create_backend("serial") as backend:
        return backend.run(op)


def values_of(op):
    rows = run(op).rows()
    assert [row["message"] for row in rows] == [None] * len(rows)
    return [row["value"] for row in rows]


def first(op):
    return next(iter(op.processes))


def square(x):
    return x * x


def nothing(**_):
    """Take anything."""


class Anything:
    pass


# What the function gets


def test_parameters_come_by_name():
    op = operation(lambda b, a: f"{a}{b}", grid={"a": [1, 2], "b": ["x", "y"]})
    assert values_of(op) == ["1x", "1y", "2x", "2y"]


def test_a_default_holds_where_no_value_is_given():
    assert values_of(operation(lambda x, y=3: x + y, grid={"x": [1]})) == [4]
    op = operation(lambda x=1, y=3: x + y, settings=[{"x": 2}, {"y": 5}, {}])
    assert values_of(op) == [5, 6, 4]


def test_no_parameters_at_all_are_one_process():
    op = operation(lambda: "called")
    assert op.number_processes == 1
    assert values_of(op) == ["called"]


def test_run_counts_from_0_and_varies_fastest():
    op = operation(lambda x, run: [x, run], grid={"x": [5, 6]}, runs=2)
    assert values_of(op) == [[5, 0], [5, 1], [6, 0], [6, 1]]


def test_data_is_one_of_the_data_sets():
    op = operation(lambda data, x: data + x, grid={"x": [1, 2]}, data=[10, 20])
    assert values_of(op) == [11, 12, 21, 22]


def test_a_directory_is_private_exists_and_is_kept():
    def write(x, directory):
        (directory / "x.txt").write_text(str(x))

    op = run(operation(write, grid={"x": range(3)}))
    files = Path(op.result_directory, "processes").glob("*/x.txt")
    assert sorted(file.read_text() for file in files) == ["0", "1", "2"]


def test_a_function_that_asks_for_no_directory_gets_none():
    op = run(operation(square, grid={"x": range(3)}))
    assert not Path(op.result_directory, "processes").exists()
    assert not Path(op.result_directory, "logs").exists()


def test_a_log_writes_to_the_log_of_the_process():
    op = run(operation(lambda x, log: log.warning("x is %d", x), grid={"x": [7]}))
    (file,) = Path(op.result_directory, "logs").iterdir()
    assert file.read_text().endswith("x is 7\n")


def test_a_process_can_be_called_without_a_backend():
    process = first(operation(lambda seed, directory: [seed, str(directory)]))
    seed, directory = process()
    assert seed == process.seed
    assert os.listdir(directory) == []
    os.rmdir(directory)


@pytest.mark.parametrize("name", ["data", "run", "seed", "directory", "log", "subflows"])
def test_a_parameter_of_the_user_wins_over_what_is_injected(name):
    namespace = {}
    exec(f"def f({name}): return {name}", namespace)
    assert values_of(operation(namespace["f"], grid={name: ["mine"]})) == ["mine"]


def test_what_a_partial_binds_wins_too():
    def show(x, seed, run):
        return [x, seed, run]

    assert values_of(operation(functools.partial(show, seed=5), grid={"x": [1]})) == [[1, 5, 0]]
    assert values_of(operation(functools.partial(show, 1, run="r", seed=5))) == [[1, 5, "r"]]
    op = operation(functools.partial(functools.partial(show, x=0), seed=5), grid={"x": [1]})
    assert values_of(op) == [[1, 5, 0]]


def test_the_own_arguments_are_injected_even_where_they_have_a_default():
    op = operation(lambda run=None, seed=None, data=7: [run, seed is None, data])
    assert values_of(op) == [[0, False, 7]]


def test_a_function_with_any_keywords_gets_its_parameters_and_nothing_else():
    op = operation(lambda **given: sorted(given), grid={"b": [1], "a": [2]})
    assert values_of(op) == [["a", "b"]]
    op = operation(lambda run, **given: [run, sorted(given)], grid={"a": [2]})
    assert values_of(op) == [[0, ["a"]]]


@pytest.mark.parametrize("signature", ["*run", "*data", "**log", "**seed"])
def test_variable_arguments_are_never_injected(signature):
    namespace = {}
    exec(f"def f(x, {signature}): return len({signature.strip('*')})", namespace)
    assert values_of(operation(namespace["f"], grid={"x": [1]})) == [0]


def test_what_is_called_may_be_a_class_a_method_or_a_builtin():
    class Adder:
        def __init__(self, x=0):
            self.x = x

        def __call__(self, x):
            return self.x + x

        def add(self, x):
            return self.x + x

    assert values_of(operation(Adder(5), grid={"x": [1]})) == [6]
    assert values_of(operation(Adder(5).add, grid={"x": [1]})) == [6]
    assert values_of(operation(dict, grid={"value": [1]})) == [1]


# Seeds


def seeds_of(**options):
    return [process.seed for process in operation(nothing, **options).processes]


def test_seeds_are_numbers_below_2_to_the_32_and_differ_between_processes():
    seeds = seeds_of(grid={"x": range(50), "y": ["a", "b"]}, runs=10)
    assert all(isinstance(seed, int) and 0 <= seed < 2**32 for seed in seeds)
    assert len(set(seeds)) == 1_000
    assert max(seeds) > 2**31


def test_seeds_differ_between_data_sets():
    op = operation(lambda data: None, data={"a": 1, "b": 1})
    assert len({process.seed for process in op.processes}) == 2


def test_seeds_do_not_depend_on_order_or_on_what_else_runs():
    def by_identity(**options):
        processes = operation(nothing, **options).processes
        return {(p.parameters["x"], p.parameters["y"], p.run): p.seed for p in processes}

    few = by_identity(grid={"x": [3, 1], "y": ["b"]}, runs=2)
    many = by_identity(grid={"y": ["a", "b"], "x": range(5)}, runs=3)
    listed = by_identity(settings=[{"y": "b", "x": 3}])
    assert few.items() <= many.items()
    assert listed.items() <= many.items()


def test_seeds_are_the_same_in_another_interpreter():
    code = (
        "from daskspace import operation\n"
        "op = operation(lambda **_: None, grid={'x': [1, 'a', None, 0.1], 'y': [{1, 2, 3}]})\n"
        "print([p.seed for p in op.processes])"
    )
    there = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    here = seeds_of(grid={"x": [1, "a", None, 0.1], "y": [{3, 2, 1}]})
    assert there.stdout.strip() == str(here)


def test_seeds_do_not_change_from_version_to_version():
    # The SHA-256 of [parameters, data, run] as JSON: others would change the results of everyone.
    assert seeds_of(grid={"C": [0.1, 10]}, runs=2) == [
        769379126,
        3451480561,
        2244026031,
        2712777756,
    ]


# Early errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": {"y": [1]}}, "has no argument 'y'"),
        ({"grid": {"x": [1], "xx": [1]}}, "has no argument 'xx'; did you mean 'x'"),
        ({}, "needs 'x': give it in grid, settings or zip"),
        ({"settings": [{"X": 1}]}, "has no argument 'X'"),
        ({"grid": {"x": [1]}, "data": [1]}, "has no argument 'data' to get one"),
        ({"grid": {"x": [1]}, "data": "missing-*.csv"}, "no data set matches 'missing-"),
        ({"grid": {"x": [1]}, "data": []}, "data is empty"),
        ({"grid": {"x": []}}, "is empty"),
        ({"grid": {"x": [1, 1]}}, "lists 1 twice"),
        ({"grid": {"x": "rang(3)"}}, "did you mean 'range'"),
        ({"grid": {"x": [1]}, "constraints": ["x > 1"]}, "drop all 1 combinations"),
        ({"grid": {"x": [1]}, "constraints": ["z > 1"]}, "unknown parameter 'z'"),
        ({"grid": {"x": [1]}, "number_processes": 3}, "number_processes is for"),
        *[
            ({"grid": {"x": [1]}, "runs": runs}, "runs must be a whole number of at least 1")
            for runs in (0, -1, True, "2", 1.0, None)
        ],
    ],
    ids=repr,
)
def test_what_cannot_be_run_is_refused_at_once(options, message):
    with pytest.raises(SpecError) as caught:
        operation(square, **options)
    assert message in str(caught.value)


def test_a_missing_argument_is_named_even_when_data_is_one():
    with pytest.raises(SpecError, match="needs 'data': give data="):
        operation(lambda data: 1)


@pytest.mark.parametrize("name", sorted(set(OWN_COLUMNS) - {"data", "run"}))
def test_a_parameter_named_like_a_column_is_refused(name):
    with pytest.raises(SpecError, match=f"cannot be named {name!r}: that is a column"):
        operation(nothing, grid={name: [1]})


def test_arguments_by_position_only_are_refused():
    with pytest.raises(SpecError, match="takes 'x' by position only"):
        operation(lambda x, /: x, grid={"x": [1]})
    with pytest.raises(SpecError, match="takes 'x' by position only"):
        operation(math.sqrt, grid={"x": [1]})


def test_a_parameter_named_like_a_variable_argument_is_refused():
    with pytest.raises(SpecError, match="has no argument 'args'"):
        operation(lambda *args: args, grid={"args": [1]})


@pytest.mark.parametrize(
    "values",
    [[lambda: 1, lambda: 2], [Anything(), Anything()], [Path("a"), "a"], [{1: 2}, {"1": 2}]],
)
def test_values_that_look_the_same_are_refused(values):
    with pytest.raises(SpecError, match=r"two values of 'x' look the same.*use their names"):
        operation(nothing, grid={"x": values})


@pytest.mark.parametrize("kind", ["settings", "zip"])
def test_values_that_look_the_same_are_refused_in_settings_and_zip_too(kind):
    values = [lambda: 1, lambda: 2]
    given = {"x": values} if kind == "zip" else [{"x": value} for value in values]
    with pytest.raises(SpecError, match="look the same"):
        operation(nothing, **{kind: given})


def test_the_same_object_may_stand_in_several_settings():
    function = Anything()
    settings = [{"x": function, "y": 1}, {"x": function, "y": 2}]
    assert operation(nothing, settings=settings).number_processes == 2


def test_data_sets_and_runs_do_not_go_with_parameters_of_that_name():
    with pytest.raises(SpecError, match="'data' is a parameter, and data sets are given"):
        operation(lambda data: 1, grid={"data": [1]}, data=[1])
    with pytest.raises(SpecError, match="'run' is a parameter, and runs is more than 1"):
        operation(lambda run: 1, grid={"run": [1]}, runs=2)


@pytest.mark.parametrize("option", [{"grid": {"x": [1]}}, {"data": ["a"]}, {"runs": 2}])
def test_what_only_a_function_can_use_is_refused_for_a_stream(option):
    with pytest.raises(SpecError, match=f"{next(iter(option))}: only for an operation from a func"):
        operation([square], **option)


def test_an_array_of_data_for_a_stream_is_refused_in_words():
    with pytest.raises(SpecError, match="data: only for an operation from a function"):
        operation([square], data=np.arange(3))


@pytest.mark.parametrize("thing", [None, 17, object()])
def test_what_is_neither_function_nor_stream_is_refused(thing):
    with pytest.raises(SpecError, match="made from a function or an iterable, not"):
        operation(thing)


# Data


def names_and_data(data):
    op = operation(lambda data: None, data=data)
    return [(process.data, process._injected("data")) for process in op.processes]


@pytest.fixture
def files():
    for name in ("b.csv", "a.csv", "sub/c.csv", "d.txt"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.csv", ["a.csv", "b.csv"]),
        (Path("*.csv"), ["a.csv", "b.csv"]),
        ("**/*.csv", ["a.csv", "b.csv", "sub/c.csv"]),
        ("d.txt", ["d.txt"]),
        ("sub", ["sub"]),
        ("[ab].csv", ["a.csv", "b.csv"]),
    ],
)
@pytest.mark.usefixtures("files")
def test_a_text_is_a_pattern_of_paths(pattern, found):
    assert names_and_data(pattern) == [(path, path) for path in found]


@pytest.mark.usefixtures("files")
def test_the_home_directory_may_be_written_short(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "sub"))
    assert names_and_data("~/*.csv") == [(f"{tmp_path}/sub/c.csv",) * 2]


def test_data_may_be_a_list_of_paths_of_objects_or_a_mapping():
    one, two = object(), object()
    paths = ["a.csv", Path("b.csv")]
    assert names_and_data(paths) == [("a.csv", "a.csv"), ("b.csv", Path("b.csv"))]
    assert names_and_data([one, two]) == [("#0", one), ("#1", two)]
    assert names_and_data((1, 2.5)) == [("1", 1), ("2.5", 2.5)]
    assert names_and_data({"one": one, 2: two}) == [("one", one), ("2", two)]
    assert names_and_data(iter(["a"])) == [("a", "a")]


@pytest.mark.parametrize("data", [["a", "b", "a"], [1, 1], {1: "x", "1": "y"}, ["a", Path("a")]])
def test_a_data_set_given_twice_is_refused(data):
    with pytest.raises(SpecError, match=r"data set .* is given twice"):
        operation(lambda data: None, data=data)


@pytest.mark.parametrize("data", [5, object()])
def test_data_that_is_no_collection_is_refused(data):
    with pytest.raises(SpecError):
        operation(lambda data: None, data=data)


def test_the_table_tells_the_name_of_the_data_set():
    op = run(operation(lambda data: data, data={"small": 1, "large": 2}))
    assert [(row["data"], row["value"]) for row in op.rows()] == [("small", 1), ("large", 2)]


# Laziness


def test_a_grid_of_10_million_costs_nothing_until_it_is_pulled():
    began = time.monotonic()
    op = operation(nothing, grid={"x": range(10_000_000), "y": "range(10_000_000)"}, runs=3)
    assert op.number_processes == 3 * 10**14
    pulled = list(itertools.islice(op.processes, 5))
    assert [(p.parameters["y"], p.run) for p in pulled] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert time.monotonic() - began < 2


def test_iterating_again_begins_anew_with_the_same():
    op = operation(lambda x, data: None, grid={"x": range(3)}, data=["a", "b"], runs=2)

    def identities():
        return [(p.parameters, p.data, p.run, p.seed) for p in op.processes]

    assert identities() == identities()
    assert len(identities()) == op.number_processes == 12


def test_the_number_of_processes_is_exact_for_few_and_an_estimate_for_very_many():
    for n, estimate in ((100, 4), (20_000, 40_000)):
        op = operation(square, grid={"x": range(n)}, constraints=["x < 2"], runs=2)
        assert op.number_processes == estimate
        assert len(list(op.processes)) == 4


def test_a_constraint_may_be_a_function():
    op = operation(square, grid={"x": range(10)}, constraints=[lambda x: x > 7])
    assert values_of(op) == [64, 81]


def test_describing_an_operation_writes_and_calls_nothing():
    def explode(x):
        raise AssertionError("it was called")

    op = operation(explode, grid={"x": range(3)}, runs=2)
    list(op.processes)
    assert os.listdir() == []
    assert op.result_directory is None


# Running


@pytest.mark.parametrize(
    "values",
    [np.linspace(0, 1, 3), list(np.linspace(0, 1, 3)), [np.int64(0)], [np.str_("a")], [True]],
    ids=["array", "list of float64", "list of int64", "list of str_", "bool"],
)
def test_numbers_of_numpy_can_be_parameters(values):
    read = values_of(operation(lambda x: x, grid={"x": values}))
    assert read == list(values)
    assert {type(value).__module__ for value in read} == {"builtins"}


@pytest.mark.parametrize(
    "value", ["ü", "\udc80", "a\nb", "", "yes", math.inf, 10**30, None, [1, {"a": 2}], (1,), b"x"]
)
def test_parameters_of_all_kinds_can_be_run_and_are_in_the_table(value):
    op = run(operation(nothing, grid={"x": [value]}))
    shown = {(1,): [1], b"x": "b'x'"}.get(value, value) if not isinstance(value, list) else value
    assert [(row["state"], row["x"]) for row in op.rows()] == [("done", shown)]


def test_functions_and_objects_can_be_parameters():
    op = run(operation(lambda f: f(4), grid={"f": [math.sqrt, math.exp]}))
    assert [(row["f"], row["value"]) for row in op.rows()] == [
        ("math.sqrt", 2.0),
        ("math.exp", math.exp(4)),
    ]


def test_the_description_is_yaml_with_the_keys_of_a_specification():
    op = operation(
        square,
        grid={"x": range(3)},
        settings=[{}],
        constraints=["x > 0"],
        runs=2,
        name="my op",
    )
    described = yaml.safe_load(yaml.safe_dump(op.describe()))
    assert described == {
        "type": "function",
        "name": "my-op",
        "parameter_ranges": {"x": "range(0, 3)"},
        "constraints": ["x > 0"],
        "runs": 2,
        "function": f"{__name__}:square",
    }


# Streams


def test_a_stream_may_be_a_list_or_a_generator():
    calls = [functools.partial(square, x) for x in range(3)]
    assert operation(calls).number_processes == 3
    assert values_of(operation(calls)) == [0, 1, 4]
    assert operation(call for call in calls).number_processes is None
    assert values_of(operation(call for call in calls)) == [0, 1, 4]
    assert operation(iter(calls), number_processes=3).number_processes == 3


def test_an_endless_generator_runs_until_its_time_is_up():
    op = operation(functools.partial(time.sleep, 0.001) for _ in itertools.count())
    assert op.number_processes is None
    with create_backend("serial") as backend:
        backend.run(op, timeout=0.2)
    assert len(op.rows()) > 3


def test_a_process_of_a_stream_may_tell_its_parameters():
    class Cube(Process):
        def __init__(self, x):
            self.parameters, self.data, self.run = {"x": x}, f"d{x}", 5
            self.key = x

        def __call__(self):
            print("cubed")
            return self.parameters["x"] ** 3

    op = run(operation([Cube(2), Cube(3)]))
    assert [(r["x"], r["data"], r["run"], r["value"]) for r in op.rows()] == [
        (2, "d2", 5, 8),
        (3, "d3", 5, 27),
    ]
    logs = sorted(os.listdir(Path(op.result_directory, "logs")))
    assert [re.sub("-[0-9a-f]{16}", "", log) for log in logs] == ["key=2.log", "key=3.log"]


def test_the_logs_of_a_stream_are_named_by_position():
    op = run(operation([lambda: print("x")] * 2))
    logs = sorted(os.listdir(Path(op.result_directory, "logs")))
    assert logs == ["process-000000.log", "process-000001.log"]


# Names


def names_of(op):
    return [op.identity.name(describe_process(0, process)) for process in op.processes]


@pytest.mark.parametrize(
    "value",
    [
        *[
            "../../etc/passwd",
            "..",
            ".",
            "",
            "/",
            "a/b\\c",
            "-rf",
            "ü ä €",
            "日本語",
            "\udc80",
            "\x00\n",
        ],
        *[
            "x" * 10_000,
            None,
            1e-300,
            [1, [2]],
            {"a": {"b": 1}},
            "a b",
            "*?[]",
            "CON",
            "~",
            "$HOME",
        ],
    ],
    ids=ascii,
)
def test_a_name_is_safe_for_any_value(value):
    (name,) = names_of(operation(nothing, grid={"x": [value], "../y": [1]}))
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.=+-_")
    assert name[0] not in ".-"
    assert len(name) < 100
    Path(name).mkdir()
    assert os.listdir() == [name]


def test_a_name_tells_the_parameters_the_data_and_the_run():
    (name,) = names_of(
        operation(lambda C, kernel, data: 1, {"C": [0.1], "kernel": ["rbf"]}, data=["d/a.csv"])
    )
    assert name.startswith("C=0.1_kernel=rbf_data=a.csv_run=0-")


def test_names_are_unique_even_where_they_look_the_same():
    values = ["a/b", "a b", "a-b", "ä", "ö", "1", 1, True, "True", None, "null", "x" * 99, "x" * 98]
    op = operation(lambda x, data: 1, grid={"x": values}, data=["a/d", "b/d"], runs=3)
    names = names_of(op)
    assert len(set(names)) == len(names) == 78
    assert len({name.lower() for name in names}) == 78


def test_names_are_unique_among_very_many():
    op = operation(nothing, grid={"text": ["a" * 100], "x": [18_191, 131_530]})
    assert len(set(names_of(op))) == 2


def test_hidden_parameters_are_in_the_table_but_not_in_names():
    Path("mine.py").write_text("def f(secret, x): print(x)\n")
    Path("mine.yaml").write_text(
        "function: mine:f\nparameter_ranges: {secret: [abc], x: [1]}\nhide_parameters: [secret]\n"
    )
    op = load_operation("mine.yaml")
    sys.modules.pop("mine")
    (name,) = names_of(op)
    assert name.startswith("x=1_run=0-")
    assert [(row["secret"], row["x"]) for row in run(op).rows()] == [("abc", 1)]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({}, "square"),
        ({"name": "mine"}, "mine"),
        ({"name": "a/b c"}, "a-b-c"),
        ({"name": "../.."}, "operation"),
        ({"name": "ü"}, "operation"),
    ],
)
def test_the_name_of_an_operation_is_safe_in_paths(given, name):
    op = operation(square, grid={"x": [1]}, **given)
    assert op.name == name
    assert Path(run(op).result_directory).name.startswith(f"{name}-")


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda: 1, "lambda"),
        (functools.partial(square, 1), "square"),
        (Anything, "Anything"),
        (dict, "dict"),
    ],
)
def test_an_operation_is_named_after_its_function(function, name):
    assert operation(function).name == name
