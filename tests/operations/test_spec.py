import functools
import os
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from daskspace import SpecError, create_backend, load_operation, operation
from daskspace.execution.identity import describe_process
from daskspace.operations.function import FunctionOperation
from daskspace.operations.generic import GenericOperation


def names_of(op):
    return [op.identity.name(describe_process(0, process)) for process in op.processes]


@pytest.fixture(autouse=True)
def _in_empty_directory(tmp_path, monkeypatch):
    """Run in an empty directory, and forget the modules that were imported from it."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def write(path, text=""):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def load(text, path="op.yaml"):
    return load_operation(write(path, text))


@pytest.fixture(autouse=True)
def module(_in_empty_directory):
    write("mod.py", "def f(x=1, data=None, **given):\n    return str(data)\n\nNUMBER = 7\n")
    write("script.py", "def process(*given):\n    return None\n")


def run(op):
    with create_backend("serial") as backend:
        return backend.run(op)


def identities(op):
    return [(p.parameters, p.data, p.run, p.seed) for p in op.processes]


def parameters_of(op):
    return [process.parameters for process in op.processes]


# The keys


def test_every_key_of_a_function_is_understood():
    write("in/a.csv")
    write("in/b.csv")
    op = load(
        """
        type: function
        name: my name
        backend: mcore
        function: mod:f
        input_path: in/*.csv
        parameter_ranges: {a: [1, 2], b: range(2)}
        parameter_settings: [{c: 3}]
        parameter_zip: {d: [4, 5], e: [6, 7]}
        constraints: [a != b]
        runs: 2
        hide_parameters: [c]
        base_directory: .
        python_path: [lib]
        """
    )
    assert isinstance(op, FunctionOperation)
    assert (op.name, op.backend, op.runs) == ("my-name", "mcore", 2)
    assert op.parameters == ("c", "d", "e", "a", "b")
    assert op.number_processes == len(list(op.processes)) == 2 * 2 * 3 * 2
    first = next(iter(op.processes))
    assert first.parameters == {"c": 3, "d": 4, "e": 6, "a": 1, "b": 0}
    assert first.data == "in/a.csv"
    assert names_of(op)[0].startswith("d=4_e=6_a=1_b=0_data=a.csv_run=0-")
    assert op.python_path == (str(Path("lib").absolute()), os.getcwd())
    assert op.result_directory is None


def test_every_key_of_a_generic_is_understood():
    op = load(
        """
        type: generic
        script: script.py
        configuration_template: "x: __X__"
        parameter_ranges: {__X__: [1, 2]}
        """
    )
    assert isinstance(op, GenericOperation)
    assert parameters_of(op) == [{"__X__": 1}, {"__X__": 2}]
    assert op.script.template == "x: __X__"
    assert op.script.path == str(Path("script.py").absolute())


def test_a_function_alone_is_enough():
    op = load("function: mod:f\n", "short.yaml")
    assert identities(op) == identities(operation(lambda: 1))
    assert (op.name, op.backend, op.number_processes) == ("short", None, 1)


def test_the_type_may_be_left_out():
    assert load("function: mod:f\n").kind == "function"
    assert load("script: script.py\n").kind == "generic"


def test_the_result_directory_is_given_beside_the_file():
    write("op.yaml", "function: mod:f\n")
    assert load_operation("op.yaml", "results").result_directory == "results"
    assert load_operation(Path("op.yaml"), Path("r")).result_directory == "r"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        *[("1e-3", 0.001), ("1E5", 1e5), ("'1e-3'", "1e-3"), ("yes", "yes"), ("true", True)],
        *[("12:00:00", "12:00:00"), ("2024-01-31", "2024-01-31"), ("0x10", 16), ("~", None)],
    ],
)
def test_words_are_read_as_people_mean_them(word, value):
    ((process),) = load(f"function: mod:f\nparameter_ranges: {{x: [{word}]}}\n").processes
    assert process.parameters == {"x": value}
    assert type(process.parameters["x"]) is type(value)


def test_loading_has_no_side_effects():
    write("op.yaml", "function: mod:f\nparameter_ranges: {x: [1]}\nruns: 2\n")
    files, path, here = sorted(os.listdir()), list(sys.path), os.getcwd()
    write_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        load_operation("op.yaml")
    finally:
        sys.dont_write_bytecode = write_bytecode
    assert (sorted(os.listdir()), list(sys.path), os.getcwd()) == (files, path, here)


# Errors: file, line, key and the likely key

ERRORS = {
    "an unknown key": (
        "function: mod:f\n\nrusn: 3\n",
        "op.yaml, line 3: unknown key 'rusn'; did you mean 'runs'?",
    ),
    "an unknown key like no other": (
        "function: mod:f\nqqq: 3\n",
        "op.yaml, line 2: unknown key 'qqq'; known are type, name,",
    ),
    "a key of the other type": (
        "type: function\nfunction: mod:f\nscript: script.py\n",
        "op.yaml, line 3: unknown key 'script'",
    ),
    "a key that is no text": ("function: mod:f\n17: 3\n", "op.yaml, line 2: unknown key 17"),
    "a key given twice": (
        "function: mod:f\nruns: 1\nruns: 2\n",
        "op.yaml, line 3: the key 'runs' is already in line 2",
    ),
    "a parameter given twice": (
        "function: mod:f\nparameter_ranges:\n  x: [1]\n  x: [2]\n",
        "op.yaml, line 4: the key 'x' is already in line 3",
    ),
    "a missing function": ("type: function\n", "op.yaml, line 1: 'function' is missing"),
    "a missing script": ("type: generic\n", "op.yaml, line 1: 'script' is missing"),
    "no type to guess": ("runs: 1\n", "op.yaml, line 1: 'type' is missing: give one of function,"),
    "an unknown type": (
        "function: mod:f\ntype: functoin\n",
        "op.yaml, line 2: unknown type 'functoin'; known are function, generic, merge, analysis;",
    ),
    "a type of another kind": ("type: 17\n", "op.yaml, line 1: unknown type 17; known are"),
    "a type that is a list": (
        "function: mod:f\ntype: [function]\n",
        "op.yaml, line 2: unknown type ['function']",
    ),
    "a typo in the one key that tells the type": (
        "runs: 1\nfucntion: mod:f\n",
        "op.yaml, line 2: unknown key 'fucntion'; did you mean 'function'?",
    ),
    "a program's operation": (
        "type: stream\n",
        "op.yaml, line 1: this operation was made by a program: run that program again",
    ),
    "runs of 0": (
        "function: mod:f\nruns: 0\n",
        "op.yaml, line 2: 'runs' must be at least 1, not 0",
    ),
    "runs that are no number": (
        "function: mod:f\nruns: '2'\n",
        "op.yaml, line 2: 'runs' must be a whole number, not '2'",
    ),
    "runs that are true": ("function: mod:f\nruns: true\n", "'runs' must be a whole number, not T"),
    "runs that are 1.5": ("function: mod:f\nruns: 1.5\n", "'runs' must be a whole number, not 1."),
    "a key without a value": (
        "function: mod:f\nconstraints:\n",
        "op.yaml, line 2: 'constraints' must be a list, not None",
    ),
    "ranges that are a list": (
        "function: mod:f\nparameter_ranges: [1]\n",
        "op.yaml, line 2: 'parameter_ranges' must be a mapping, not [1]",
    ),
    "settings that are a mapping": (
        "function: mod:f\nparameter_settings: {x: 1}\n",
        "op.yaml, line 2: 'parameter_settings' must be a list, not {'x': 1}",
    ),
    "a setting that is no mapping": (
        "function: mod:f\nparameter_settings:\n- x: 1\n- 17\n",
        "op.yaml, line 4: 'parameter_settings' must be a list of mappings, not 17",
    ),
    "a constraint that is no text": (
        "function: mod:f\nconstraints:\n- x > 1\n- 17\n",
        "op.yaml, line 4: 'constraints' must be a list of texts, not 17",
    ),
    "an input path of a wrong type": (
        "function: mod:f\ninput_path: 17\n",
        "op.yaml, line 2: 'input_path' must be a text or a list, not 17",
    ),
    "no ranges": (
        "function: mod:f\nparameter_ranges: {}\n",
        "op.yaml, line 2: 'parameter_ranges' is empty",
    ),
    "no settings": ("function: mod:f\nparameter_settings: []\n", "'parameter_settings' is empty"),
    "no zip": ("function: mod:f\nparameter_zip: {}\n", "line 2: 'parameter_zip' is empty"),
    "no input paths": ("function: mod:f\ninput_path: []\n", "line 2: 'input_path' is empty"),
    "an empty range": (
        "function: mod:f\nparameter_ranges:\n  x: [1]\n  y: []\n",
        "op.yaml, line 4: 'parameter_ranges': the grid of 'y' is empty",
    ),
    "a range that is one value": (
        "function: mod:f\nparameter_ranges:\n  x: 17\n",
        "op.yaml, line 3: 'parameter_ranges': the grid of 'x' must be a list such as [17]",
    ),
    "a value listed twice": (
        "function: mod:f\nparameter_ranges:\n  x: [1, 2, 1]\n",
        "op.yaml, line 3: 'parameter_ranges': the grid of 'x' lists 1 twice",
    ),
    "a bad expression": (
        "function: mod:f\nparameter_ranges:\n  x: rnage(3)\n",
        "op.yaml, line 3: 'parameter_ranges': the grid of 'x': the range 'rnage(3)' cannot be used",
    ),
    "a zip of unequal lengths": (
        "function: mod:f\nparameter_zip:\n  x: [1]\n  y: [1, 2]\n",
        "op.yaml, line 2: 'parameter_zip': zip needs lists of equal length",
    ),
    "a parameter in two places": (
        "function: mod:f\nparameter_ranges: {x: [1]}\nparameter_zip: {x: [1]}\n",
        "op.yaml, line 1: the parameter 'x' is in zip and in grid",
    ),
    "a bad constraint": (
        "function: mod:f\nparameter_ranges: {x: [1]}\nconstraints:\n- x > 0\n- x >\n",
        "op.yaml, line 5: 'constraints': the constraint 'x >' cannot be used: invalid syntax",
    ),
    "a constraint on an unknown parameter": (
        "function: mod:f\nparameter_ranges: {alpha: [1]}\nconstraints: [alhpa > 0]\n",
        "op.yaml, line 3: 'constraints': the constraint 'alhpa > 0' uses the unknown parameter"
        " 'alhpa'; did you mean 'alpha'?",
    ),
    "constraints that drop everything": (
        "function: mod:f\nparameter_ranges: {x: [1, 2]}\nconstraints: [x > 2]\n",
        "the constraints drop all 2 combinations",
    ),
    "constraints that drop everything, with their line": (
        "function: mod:f\nparameter_ranges: {x: [1, 2]}\nconstraints: [x > 2]\n",
        "op.yaml, line 3: 'constraints'",
    ),
    "a hidden parameter that there is not": (
        "function: mod:f\nparameter_ranges: {secret: [1]}\nhide_parameters:\n- secert\n",
        "op.yaml, line 4: there is no parameter 'secert'; did you mean 'secret'?",
    ),
    "no data": (
        "function: mod:f\ninput_path: missing/*.csv\n",
        "op.yaml, line 2: 'input_path': no data set matches",
    ),
    "no data for the second pattern": (
        "function: mod:f\ninput_path:\n- op.yaml\n- missing\n",
        "op.yaml, line 4: 'input_path': no data set matches",
    ),
    "a function without a module": (
        "function: f\n",
        "op.yaml, line 1: 'function' must be 'module:name', not 'f'",
    ),
    "a function with nothing after the colon": ("function: 'mod:'\n", "must be 'module:name'"),
    "a function that is not there": (
        "runs: 1\nfunction: mod:ff\n",
        "op.yaml, line 2: module 'mod' has no function 'ff'; did you mean 'f'?",
    ),
    "a function that is none": (
        "function: mod:NUMBER\n",
        "op.yaml, line 1: 'mod:NUMBER' is not a function but 7",
    ),
    "a module that is not there": (
        "function: nowhere_at_all:f\n",
        "op.yaml, line 1: No module named 'nowhere_at_all'; looked in ",
    ),
    "a relative module": ("function: .mod:f\n", "op.yaml, line 1: "),
    "a module of a module": (
        "function: mod.sub:f\n",
        "No module named 'mod.sub'; 'mod' is not a p",
    ),
    "the program itself": (
        "function: __main__:f\n",
        "op.yaml, line 1: the function 'f' is part of a program: run that program again",
    ),
    "a script that is not there": (
        "type: generic\nscript: missing.py\n",
        "op.yaml, line 2: 'script': there is no file ",
    ),
    "a script without process": (
        "script: mod.py\n",
        "mod.py has no function process(process_id,",
    ),
    "a template with an unknown placeholder": (
        "script: script.py\nconfiguration_template: ${__Y__}\n",
        "configuration_template: ${__Y__} stands for no parameter",
    ),
    "no mapping": ("- 1\n", "op.yaml must hold a mapping, not list"),
    "nothing": ("", "op.yaml is empty"),
    "no yaml": ("function: [\n", "op.yaml, line 2: "),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_tells_file_line_key_and_what_to_do(kind):
    text, message = ERRORS[kind]
    with pytest.raises(SpecError) as caught:
        load(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith("op.yaml")


def test_a_file_that_is_missing_is_told():
    with pytest.raises(SpecError, match=r"missing\.yaml cannot be read: No such file"):
        load_operation("missing.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("function: strict:g\nruns: 1\nparameter_ranges:\n  y: [1]\n", "no argument 'y'"),
        ("function: mod:f\nruns: 1\nparameter_ranges:\n  state: [1]\n", "named 'state'"),
    ],
    ids=["an unknown argument", "the name of a column"],
)
def test_a_parameter_that_the_function_cannot_take_is_told_with_its_line(text, message):
    write("strict.py", "def g(x): pass\n")
    with pytest.raises(SpecError, match=re.escape("op.yaml, line 4: ")) as caught:
        load(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "module 'breaks' cannot be imported: ZeroDivisionError: division by zero"),
        ("a = = 1", "module 'breaks' cannot be imported: SyntaxError: invalid syntax"),
        ("import nowhere_at_all", "No module named 'nowhere_at_all'"),
        ("from mod import ff", "module 'breaks' cannot be imported: ImportError: cannot import"),
        ("raise SystemExit(2)", "module 'breaks' cannot be imported: SystemExit: 2"),
    ],
    ids=["an error", "no Python", "a missing module", "a missing name", "exit"],
)
def test_a_module_that_raises_while_it_is_imported_is_told(code, message):
    write("breaks.py", code + "\n")
    path = list(sys.path)
    with pytest.raises(SpecError) as caught:
        load("runs: 1\nfunction: breaks:f\n")
    assert str(caught.value).startswith("op.yaml, line 2: ")
    assert message in str(caught.value)
    assert sys.path == path
    assert "breaks" not in sys.modules


def test_after_the_error_is_mended_the_module_can_be_loaded():
    write("breaks.py", "1 / 0\n")
    with pytest.raises(SpecError):
        load("function: breaks:f\n")
    write("breaks.py", "def f(): return 'mended now'\n")
    assert next(iter(load("function: breaks:f\n").processes))() == "mended now"


def test_a_module_of_the_same_name_elsewhere_is_not_taken_for_this_one():
    for name in ("one", "two"):
        write(f"{name}/model.py", f"def f(): return {name!r}\n")
        write(f"{name}/op.yaml", "function: model:f\n")
    load_operation("one/op.yaml")
    with pytest.raises(SpecError, match="already imported under this name"):
        load_operation("two/op.yaml")


def test_loading_twice_is_the_same():
    assert identities(load("function: mod:f\nparameter_ranges: {x: [1, 2]}\n")) == identities(
        load("function: mod:f\nparameter_ranges: {x: [1, 2]}\n")
    )


@pytest.mark.parametrize("name", ["os.path:basename", "os:fsdecode"])
def test_a_function_of_a_frozen_module_can_be_used(name):
    argument = {"os.path:basename": "p", "os:fsdecode": "filename"}[name]
    op = load(f"function: {name}\nparameter_ranges: {{{argument}: [a/b]}}\n")
    assert op.number_processes == 1


def test_a_function_may_be_an_attribute_of_a_class_or_in_a_package():
    write("pack/__init__.py")
    write("pack/inner.py", "class A:\n    @staticmethod\n    def f(x): return x + 1\n")
    op = load("function: pack.inner:A.f\nparameter_ranges: {x: [1]}\n")
    assert run(op).rows()[0]["value"] == 2


# Paths


def test_paths_are_relative_to_the_file_and_not_to_the_working_directory(monkeypatch):
    write("there/beside.py", "def f(data):\n    with open(data) as file: return file.read()\n")
    write("there/in/a.txt", "content")
    write("there/op.yaml", "function: beside:f\ninput_path: in/*.txt\n")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    op = run(load_operation("../there/op.yaml"))
    assert [(row["data"], row["value"]) for row in op.rows()] == [("in/a.txt", "content")]
    assert Path(op.result_directory).parent == Path.cwd()


def test_base_directory_moves_the_paths(tmp_path):
    write("base/moved.py", "def f(data): return data\n")
    write("base/in/a.txt")
    for base in ("../base", str(tmp_path / "base")):
        op = load(
            f"function: moved:f\ninput_path: in/*.txt\nbase_directory: {base}\n", "specs/op.yaml"
        )
        ((_, data, _, _),) = identities(op)
        assert data == "in/a.txt"
        assert Path(next(iter(op.processes))()).samefile("base/in/a.txt")


def test_python_path_is_importable():
    write("lib/inlib.py", "def f(): return 'lib'\n")
    op = load("function: inlib:f\npython_path: [lib]\n")
    assert run(op).rows()[0]["value"] == "lib"


def test_the_working_directory_is_importable():
    write("specs/op.yaml", "function: mod:f\n")
    assert load_operation("specs/op.yaml").number_processes == 1


def test_a_script_is_relative_to_the_file_and_its_directory_is_importable():
    write("there/code/s.py", "def process(*_):\n    import nextto\n    return nextto.X\n")
    write("there/code/nextto.py", "X = 5\n")
    write("there/op.yaml", "script: code/s.py\n")
    assert run(load_operation("there/op.yaml")).rows()[0]["value"] == 5


def test_absolute_input_paths_keep_their_names(tmp_path):
    write("in/a.txt")
    op = load(f"function: mod:f\ninput_path: {tmp_path}/in/*.txt\n")
    assert [data for _, data, _, _ in identities(op)] == [f"{tmp_path}/in/a.txt"]


def test_several_patterns_give_each_data_set_once_and_in_order():
    for name in "abc":
        write(f"in/{name}.txt")
    op = load("function: mod:f\ninput_path: [in/b.txt, in/*.txt]\n")
    assert [data for _, data, _, _ in identities(op)] == ["in/b.txt", "in/a.txt", "in/c.txt"]


def test_the_home_directory_may_be_written_short_everywhere(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write("home/lib/athome.py", "def f(data): return data\n")
    write("home/in/a.txt")
    text = "function: athome:f\npython_path: [~/lib]\n"
    assert load(f"{text}input_path: ~/in/*.txt\n").number_processes == 1
    assert load(f"{text}input_path: in/*.txt\nbase_directory: ~/.\n").number_processes == 1


def test_a_directory_with_brackets_in_its_name_is_no_pattern():
    write("run[1]/a.txt")
    op = load("function: mod:f\ninput_path: '*.txt'\n", "run[1]/op.yaml")
    assert [data for _, data, _, _ in identities(op)] == ["a.txt"]


# operation.yaml can be loaded again


def again(op):
    """Run an operation and load it from what its result directory tells."""
    return load_operation(Path(run(op).result_directory, "operation.yaml"))


def test_what_ran_can_be_loaded_again_with_the_same_processes(monkeypatch):
    write("in/a.csv")
    write("in/b.csv")
    op = load(
        """
        function: mod:f
        input_path: in/*.csv
        parameter_ranges:
          a: [1, 2.5, 1e-5, 1e300, .inf, .nan, true, null, "true", "1", "a: b", [1, {b: 2}], ü]
          b: range(2)
          c: logspace(-3, 3, 3)
        parameter_settings: [{d: 1}, {e: 2}]
        parameter_zip: {g: [1, 2], h: [x, y]}
        constraints: [b == 0 or c > 1]
        runs: 2
        hide_parameters: [d]
        """
    )
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    other = again(op)
    assert repr(identities(other)) == repr(identities(op))
    assert names_of(other) == names_of(op)
    assert other.name == op.name
    assert [p() for p in other.processes] == [p() for p in op.processes]


def test_a_generic_operation_that_ran_can_be_loaded_again(monkeypatch):
    op = load(
        "script: script.py\nconfiguration_template: |\n  x: __X__\n\n  y: 'ü'\n"
        "parameter_ranges: {X: [1, 2]}\nruns: 2\n",
    )
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    other = again(op)
    assert identities(other) == identities(op)
    assert other.script.template == op.script.template


def test_a_function_of_a_program_that_can_be_imported_can_be_loaded_again(monkeypatch):
    monkeypatch.syspath_prepend(os.getcwd())
    import mod

    write("in/a.csv")
    grid = {"a": np.arange(3), "b": (1, 2), "x": [10**30, "\u2028", "a\nb", " a ", "", "~", "0o7x"]}
    op = operation(mod.f, grid=grid, zip={"c": [1], "d": [2]}, data="in/*.csv", runs=2)
    assert identities(again(op)) == identities(op)


@pytest.mark.parametrize("text", ["1e-3", "1E5", "-1e3", "0o17", "12e03"])
def test_a_text_that_looks_like_a_number_stays_a_text(text):
    op = load(f"function: mod:f\nparameter_ranges: {{x: ['{text}']}}\n")
    assert identities(again(op)) == identities(op)


def test_a_lone_surrogate_stays_one():
    op = load('function: mod:f\nparameter_ranges: {x: ["\\uDC80"]}\n')
    assert parameters_of(op) == [{"x": "\udc80"}]
    assert parameters_of(again(op)) == [{"x": "\udc80"}]


def test_data_with_brackets_in_its_name_can_be_loaded_again():
    write("in/a[1].csv")
    op = load("function: mod:f\ninput_path: in/*.csv\n")
    assert identities(again(op)) == identities(op)


def test_data_below_the_home_directory_can_be_loaded_again(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write("home/in/a.csv")
    op = load("function: mod:f\ninput_path: ~/in/*.csv\n", "specs/op.yaml")
    assert identities(again(op)) == identities(op)


def test_named_data_is_not_taken_for_paths(monkeypatch):
    monkeypatch.syspath_prepend(os.getcwd())
    import mod

    write("in/a.csv")
    write("a.csv")
    op = operation(mod.f, settings=[{"x": 1}], data={"a.csv": "in/a.csv"})
    with pytest.raises(SpecError, match="made by a program: run that program again"):
        again(op)


def test_a_partial_is_not_taken_for_its_function(monkeypatch):
    monkeypatch.syspath_prepend(os.getcwd())
    import mod

    op = operation(functools.partial(mod.f, x=5), settings=[{"y": 1}])
    with pytest.raises(SpecError):
        again(op)


def test_objects_as_data_cannot_be_loaded_again_and_say_so(monkeypatch):
    monkeypatch.syspath_prepend(os.getcwd())
    import mod

    for data in ({"one": 1}, [object()]):
        with pytest.raises(SpecError, match="made by a program: run that program again"):
            again(operation(mod.f, settings=[{}], data=data))


@pytest.mark.parametrize("make", [lambda: operation(lambda: 1), lambda: operation([lambda: 1])])
def test_what_only_a_program_can_make_cannot_be_loaded_again(make):
    with pytest.raises(SpecError):
        again(make())
