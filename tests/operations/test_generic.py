import json
import os
import sys
import textwrap
from pathlib import Path

import pytest

from daskspace import ConsolidateError, SpecError, create_backend, load_operation
from daskspace.operations.data_sets import as_data_sets
from daskspace.operations.generic import GenericOperation, fill_in, load_script
from daskspace.operations.parameters import ParameterSpace

SCRIPT = """
def process(process_id, result_directory, config, parameter_setting):
    return {
        "id": process_id,
        "directory": result_directory,
        "config": config,
        "setting": parameter_setting,
    }
"""


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def generic(template="", script=SCRIPT, data=None, grid=None, **options):
    """Return an operation from the text of a script."""
    path = Path("script.py").absolute()
    path.write_text(textwrap.dedent(script))
    return GenericOperation(path, template, ParameterSpace(grid), as_data_sets(data), **options)


def run(op):
    with create_backend("serial") as backend:
        return backend.run(op)


def rows_of(*args, **options):
    rows = run(generic(*args, **options)).rows()
    assert [row["message"] for row in rows] == [None] * len(rows)
    return rows


# Placeholders


@pytest.mark.parametrize("parameter", ["X", "__X__"])
@pytest.mark.parametrize("placeholder", ["__X__", "${__X__}", "${X}"])
def test_a_placeholder_is_replaced_in_all_its_spellings(parameter, placeholder):
    assert fill_in(f"a: {placeholder}\nb: <{placeholder}>", {parameter: 5}) == "a: 5\nb: <5>"


@pytest.mark.parametrize(
    "text",
    ["X", "_X_", "__X", "X__", "$X", "{X}", "__name__", "__init__", "a__b", "____", "$__Y", "${}"],
)
def test_other_text_stays_as_it_is(text):
    assert fill_in(text, {"X": 5, "name__": 6}) == text


def test_a_placeholder_may_stand_within_a_word():
    assert fill_in("file__X__y.txt ${X}${X}", {"X": 5}) == "file5y.txt 55"


def test_names_with_underscores_are_whole_names():
    values = {"A_B": 1, "A": 2, "B": 3, "LONG_NAME": 4}
    assert fill_in("__A_B__ __A__ __B__ ${LONG_NAME} __LONG_NAME__", values) == "1 2 3 4 4"


def test_a_name_may_hold_two_underscores():
    assert fill_in("__A__B__ ${__A__B__}", {"__A__B__": 5}) == "5 5"


def test_a_name_in_braces_may_be_no_identifier():
    assert fill_in("${learning-rate}", {"learning-rate": 5}) == "5"


def test_a_value_that_looks_like_a_placeholder_is_not_replaced_again():
    values = {"X": "__Y__", "Y": "${X}"}
    assert fill_in("__X__ ${Y} ${X}", values) == "__Y__ ${X} __Y__"


def test_a_value_with_a_backslash_is_text():
    assert fill_in("__X__", {"X": r"\1\g<0>"}) == r"\1\g<0>"


@pytest.mark.parametrize("text", ["${Y}", "${__Y__}", "a ${X} b ${x}"])
def test_a_placeholder_in_braces_that_stands_for_nothing_is_an_error(text):
    with pytest.raises(SpecError, match=r"\$\{.*\} stands for no parameter"):
        fill_in(text, {"X": 5})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[("text", "text"), ("", ""), (1, "1"), (0.5, "0.5"), (True, "true"), (None, "null")],
        *[([1, "a"], '[1,"a"]'), ({"a": [None]}, '{"a":[null]}'), (range(2), "[0,1]")],
    ],
)
def test_values_become_text_that_yaml_can_read(value, text):
    assert fill_in("__X__", {"X": value}) == text


@pytest.mark.parametrize("value", [1, 0.5, -2, 1e-3, 1e-5, 1e20, 1e300, float("inf"), True, None])
def test_a_number_is_a_number_of_the_same_value_in_the_configuration(value):
    (row,) = rows_of("x: __X__", grid={"X": [value]})
    assert row["config"] == {"x": value}
    assert type(row["config"]["x"]) is type(value)


def test_run_and_data_set_have_placeholders_of_their_own():
    rows = rows_of("[__RUN__, __INPUT_DATASET__]", runs=2)
    assert [row["config"] for row in rows] == [[0, None], [1, None]]
    Path("a.csv").touch()
    (row,) = rows_of("r: ${__RUN__}\nd: ${__INPUT_DATASET__}", data="*.csv")
    assert row["config"] == {"r": 0, "d": "a.csv"}


def test_the_placeholder_of_the_data_set_is_a_path_that_can_be_opened():
    Path("elsewhere").mkdir()
    Path("elsewhere/data.csv").touch()
    Path("elsewhere/script.py").write_text(
        "import os\n\ndef process(i, d, config, s): return os.path.exists(config)\n"
    )
    Path("elsewhere/op.yaml").write_text(
        "script: script.py\nconfiguration_template: __INPUT_DATASET__\ninput_path: '*.csv'\n"
    )
    (row,) = run(load_operation("elsewhere/op.yaml")).rows()
    assert row["value"] is True


# What the script gets


def test_process_gets_its_position_the_directory_the_configuration_and_the_parameters():
    op = run(generic("a: __A__\nb: [1, __B__]", grid={"A": [1, 2], "__B__": ["x"]}))
    assert [row["id"] for row in op.rows()] == [0, 1]
    assert [row["config"] for row in op.rows()] == [{"a": a, "b": [1, "x"]} for a in (1, 2)]
    assert [row["setting"] for row in op.rows()] == [{"A": a, "__B__": "x"} for a in (1, 2)]
    assert {row["directory"] for row in op.rows()} == {op.result_directory}
    assert op.rows()[0]["A"] == 1


def test_without_a_template_the_configuration_is_none():
    (row,) = rows_of("")
    assert row["config"] is None


def test_what_the_script_does_to_its_arguments_reaches_no_other_process():
    script = """
    def process(process_id, result_directory, config, parameter_setting):
        config["list"].append(1)
        parameter_setting["X"] = 0
        return len(config["list"])
    """
    rows = rows_of("list: []", script, grid={"X": [1, 2]})
    assert [(row["X"], row["value"]) for row in rows] == [(1, 1), (2, 1)]


def test_processes_write_into_the_result_directory_itself():
    script = """
    import os

    def process(process_id, result_directory, config, parameter_setting):
        with open(os.path.join(result_directory, f"tile-{process_id}.txt"), "w") as file:
            file.write("x")
    """
    op = run(generic("", script, grid={"X": [1, 2]}))
    assert len(list(Path(op.result_directory).glob("tile-*.txt"))) == 2


def test_a_process_that_raises_fails_with_the_line_of_the_script():
    script = """
    def process(process_id, result_directory, config, parameter_setting):
        if process_id:
            raise ValueError("too late")
    """
    op = run(generic("", script, grid={"X": [1, 2]}))
    assert [row["state"] for row in op.rows()] == ["done", "failed"]
    (log,) = Path(op.result_directory, "logs").iterdir()
    assert "script.py" in log.read_text()
    assert 'raise ValueError("too late")' in log.read_text()


# consolidate

CONSOLIDATE = """
import json

def process(process_id, result_directory, config, parameter_setting):
    return config

def consolidate(result_directory, config_template):
    with open(result_directory + "/consolidated.json", "a") as file:
        json.dump([result_directory, config_template], file)
"""


def test_consolidate_gets_the_directory_and_the_template_as_it_was_parsed():
    op = run(generic("a: __A__\nb: {c: [1, x]}", CONSOLIDATE, grid={"A": [1, 2]}))
    read = json.loads(Path(op.result_directory, "consolidated.json").read_text())
    assert read == [op.result_directory, {"a": "__A__", "b": {"c": [1, "x"]}}]


def test_a_script_without_consolidate_ends_with_the_table():
    op = run(generic())
    assert Path(op.result_directory, "table.csv").exists()


def test_a_consolidate_that_raises_is_told_and_keeps_the_table():
    op = generic("", "def process(*a): pass\ndef consolidate(*a): raise ValueError('no')\n")
    with pytest.raises(ConsolidateError, match="ValueError: no"):
        run(op)
    assert Path(op.result_directory, "table.csv").exists()


def test_consolidate_may_import_what_lies_beside_the_script(monkeypatch):
    Path("beside_generic.py").write_text("ANSWER = 42\n")
    script = """
    def process(*_):
        import beside_generic
        return beside_generic.ANSWER

    def consolidate(directory, template):
        import beside_generic
        with open(directory + "/answer.txt", "w") as file:
            file.write(str(beside_generic.ANSWER))
    """
    op = generic("", script)
    op.python_path = [os.getcwd()]
    Path("other").mkdir()
    monkeypatch.chdir("other")
    run(op)
    assert op.rows()[0]["value"] == 42
    assert Path(op.result_directory, "answer.txt").read_text() == "42"


# Checks of the script and the template


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("x = 1\n", "has no function process(process_id, result_directory, config, parameter"),
        ("", "has no function process"),
        ("class A:\n    def process(self): pass\n", "has no function process"),
        ("x = 1\ny = = 2\n", "script.py, line 2: invalid syntax"),
        ("def process(a:\n", "script.py, line 1: "),
        ("x = 'a\n", "script.py, line 1: "),
        ("x = '\0'\n", "script.py"),
    ],
)
def test_a_script_that_cannot_be_run_is_refused_at_once(script, message):
    with pytest.raises(SpecError) as caught:
        generic("", script)
    assert message in str(caught.value)


@pytest.mark.parametrize("path", ["missing.py", "."])
def test_a_script_that_cannot_be_read_is_refused(path):
    with pytest.raises(SpecError, match=r"the script .* cannot be read"):
        GenericOperation(Path(path), "", ParameterSpace(), as_data_sets(None))


def test_a_script_is_not_run_before_its_processes_are():
    generic("", "open('side-effect', 'w')\n" + SCRIPT)
    assert os.listdir() == ["script.py"]


@pytest.mark.parametrize(
    "script",
    [
        "from json import loads as process\n",
        "def helper(): pass\ndef process(*_): pass\n",
        "import functools\nprocess = functools.partial(dict)\n",
        "if True:\n    def process(*_): pass\n",
        "try:\n    from json import loads as process\nexcept ImportError:\n    pass\n",
        "class process:\n    def __init__(self, *_): pass\n",
    ],
    ids=["import", "def", "assignment", "if", "try", "class"],
)
def test_process_may_be_defined_in_any_way(script):
    assert generic("", script).number_processes == 1


@pytest.mark.parametrize("template", ["a: [1", "a: b: c", "\t- a", "a: 'x"])
def test_a_template_that_is_no_yaml_is_refused(template):
    with pytest.raises(SpecError, match="configuration_template is no YAML"):
        generic(template)


def test_a_template_with_an_unknown_placeholder_is_refused():
    with pytest.raises(SpecError, match=r"\$\{__Y__\} stands for no parameter"):
        generic("a: ${__Y__}", grid={"X": [1]})


def test_a_placeholder_in_braces_may_stand_in_a_list():
    (row,) = rows_of("a: [${__X__}, 2]", grid={"X": [1]})
    assert row["config"] == {"a": [1, 2]}


# Loading


def test_a_script_that_did_not_change_is_loaded_once():
    Path("s.py").write_text("x = []\n")
    path = str(Path("s.py").absolute())
    assert load_script(path) is load_script(path)


def test_a_script_that_changed_is_loaded_again():
    script = "def process(*_): return {}\n"
    op = generic("", script.format("'before'"))
    assert [row["value"] for row in run(op).rows()] == ["before"]
    assert [row["value"] for row in rows_of("", script.format("'later on'"))] == ["later on"]
    assert run(op).rows()[0]["value"] == "later on"


def test_a_script_that_raises_while_it_is_loaded_fails_its_processes():
    op = generic("", "raise ImportError('not here')\ndef process(*_): pass\n")
    with pytest.raises(ConsolidateError, match="ImportError: not here"):
        run(op)
    assert [(row["state"], row["error"]) for row in op.rows()] == [("failed", "ImportError")]


def test_a_script_is_known_by_its_path_and_leaves_the_names_of_modules_alone():
    Path("json.py").write_text("def process(*_): return 1\n")
    op = GenericOperation(
        Path("json.py").absolute(), "", ParameterSpace(), as_data_sets(None), runs=2
    )
    assert [row["value"] for row in run(op).rows()] == [1, 1]
    assert json.loads("1") == 1


def test_the_description_holds_script_and_template():
    op = generic("a: __X__\n", grid={"X": [1]}, name="mine", hidden=["X"])
    assert op.describe() == {
        "type": "generic",
        "name": "mine",
        "parameter_ranges": {"X": [1]},
        "runs": 1,
        "hide_parameters": ["X"],
        "script": str(Path("script.py").absolute()),
        "configuration_template": "a: __X__\n",
    }
