"""Chains: what goes from one operation to the next, what stops them, what they resume."""

import json
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest

from daskspace import (
    ConsolidateError,
    DirectoryError,
    SerialBackend,
    SpecError,
    chain,
    create_backend,
    load_operation,
    operation,
    run_operation_chain,
)
from daskspace.operations.yaml_file import read_yaml

MODULE = """
import os
from pathlib import Path


def note(text):
    with open("ran", "a") as file:
        file.write(text + "\\n")


def prepare(n, directory):
    note(f"prepare {n}")
    (directory / "n.txt").write_text(str(n))


def train(data, C, seed, directory):
    name = Path(data).name
    note(f"train {C}")
    text = Path(data, "n.txt").read_text() if Path(data).is_dir() else Path(data).read_text()
    (directory / "model.txt").write_text(f"{text} {C} {seed}")
    return {"score": int(text) * C}


def judge(data):
    note("judge")
    path = Path(data)
    return {"read": (path / "model.txt" if path.is_dir() else path).read_text()}


def look(data):
    return {"there": sorted(os.listdir(data))}


def free(x):
    return {"y": x}


def invert(x):
    note(f"invert {x}")
    return {"y": 1 / (x + os.path.exists("healed"))}
"""
TRAIN = """
function: steps:train
parameter_ranges:
  C: [1, 2]
"""
CHAIN = """
type: operation_chain
prepare_operation:
  function: steps:prepare
  parameter_ranges: {n: [3, 4]}
operations:
  - train.yaml
  - {function: "steps:judge"}
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write("steps.py", MODULE)
    write("train.yaml", TRAIN)
    yield tmp_path
    sys.modules.pop("steps", None)


@pytest.fixture
def serial():
    with create_backend("serial") as backend:
        yield backend


def write(name, text):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return name


def written(text, **more):
    return chain(write("chain.yaml", text), "out", **more)


def ran():
    return Path("ran").read_text().splitlines() if Path("ran").exists() else []


def of(chain, number):
    return chain.operations[number].rows()


# What goes from one to the next


def test_each_operation_gets_what_the_processes_before_have_left(serial):
    done = serial.run(written(CHAIN))
    assert done.stopped is None
    assert [Path(op.result_directory).name for op in done.operations] == [
        "0-prepare",
        "1-train",
        "2-judge",
    ]
    assert [row["score"] for row in of(done, 1)] == [3, 6, 4, 8]
    assert [row["read"].split()[:2] for row in of(done, 2)] == [[n, c] for n in "34" for c in "12"]
    assert of(done, 2)[0]["data"].startswith("1-train/processes/C=1_")


def test_the_seeds_do_not_depend_on_where_the_chain_is(serial):
    here, there = (
        serial.run(chain(write("chain.yaml", CHAIN), place)) for place in ("a", "deep/in/b")
    )
    assert [row["read"] for row in of(here, 2)] == [row["read"] for row in of(there, 2)]


def test_an_operation_whose_processes_left_no_directories_is_the_input_itself(serial):
    text = """
    operations:
      - {function: "steps:free", parameter_ranges: {x: [1, 2]}}
      - {function: "steps:look"}
      - {function: "steps:free", parameter_ranges: {x: [1]}}
    """
    done = serial.run(written(text))
    (row,) = of(done, 1)
    assert "table.csv" in row["there"]
    assert row["data"] == "1-free"
    assert [row["data"] for row in of(done, 2)] == [None]  # its function wants no data


def test_failed_processes_are_no_input(serial):
    text = """
    on_failure: continue
    operations:
      - {function: "steps:prepare", parameter_ranges: {n: [1, 2]}}
      - {function: "steps:train", parameter_settings: [{C: 1}, {C: null}]}
      - {function: "steps:judge"}
    """
    done = serial.run(written(text))
    assert [row["state"] for row in of(done, 1)] == ["done", "failed", "done", "failed"]
    assert [row["read"].split()[0] for row in of(done, 2)] == ["1", "2"]


def test_an_operation_of_which_nothing_is_done_is_no_input(serial):
    text = """
    on_failure: continue
    operations:
      - {function: "steps:train", parameter_settings: [{C: null}], input_path: steps.py}
      - {function: "steps:judge"}
    """
    with pytest.raises(SpecError, match=r"'input_path': no process in .*out/1-train is done"):
        serial.run(written(text))


def test_placeholders_lead_to_files_of_the_operation_before_and_of_any(serial):
    text = """
    operations:
      - {function: "steps:prepare", parameter_ranges: {n: [3]}}
      - train.yaml
      - {function: "steps:judge", input_path: "${previous}/processes/*/model.txt"}
      - {function: "steps:judge", input_path: ["${chain}/1-prepare/processes/*/n.txt", train.yaml]}
    """
    done = serial.run(written(text))
    assert [row["read"].split()[:2] for row in of(done, 2)] == [["3", "1"], ["3", "2"]]
    assert of(done, 3)[0]["read"] == "3"
    assert of(done, 3)[1]["read"] == TRAIN
    # each can be resumed alone, from its own directory
    for number, name in enumerate(("1-prepare", "2-train", "3-judge", "4-judge")):
        again = load_operation(f"out/{name}/operation.yaml", f"out/{name}", resume=True)
        before = len(ran())
        serial.run(again)
        assert len(ran()) == before
        assert len(again.rows()) == len(of(done, number))


def test_the_keys_of_a_chain_and_overridden_params_win_over_those_of_a_file(serial):
    write("data/5", "5")
    write("train.yaml", f"{TRAIN}  D: [1]\ninput_path: nowhere\nruns: 2\nbackend: mcore\n")
    write("steps.py", MODULE.replace("data, C, seed", "data, C, D, seed"))
    text = """
    input_path: data/*
    runs: 3
    operations:
      - operation_spec: train
        overridden_params:
          name: renamed
          backend: serial
          parameter_ranges: {D: [8, 9]}
      - {function: "steps:judge", runs: 1}
    """
    done = serial.run(written(text))
    rows = of(done, 0)
    assert Path(done.operations[0].result_directory).name == "1-renamed"
    assert {row["data"] for row in rows} == {"data/5"}
    assert [(row["C"], row["D"], row["run"]) for row in rows] == [
        (c, d, run) for c in (1, 2) for d in (8, 9) for run in range(3)
    ]
    assert {row["run"] for row in of(done, 1)} == {0}


def test_an_operation_may_ask_for_a_backend_of_its_own():
    text = """
    operations:
      - {function: "steps:free", parameter_ranges: {x: [1]}}
      - {function: "steps:free", parameter_ranges: {x: [1]}, backend: serial}
    """
    with SerialBackend(isolation="process") as backend:
        backend.run(written(text))
    facts = [
        json.loads(Path(f"out/{n}-free/environment.json").read_text())["isolation"] for n in (1, 2)
    ]
    assert facts == ["process", "none"]


def test_a_program_makes_an_operation_from_what_the_one_before_has_found(serial):
    def refined(before):
        best = max(before.rows(), key=lambda row: row["value"])["x"]
        return operation(lambda x: x * x, grid={"x": [best, best + 0.5]}, name="refined")

    coarse = operation(lambda x: x * x, grid={"x": [1, 2]}, name="coarse")
    made = chain([coarse, refined])
    assert serial.run(made) is made
    assert [row["value"] for row in made.operations[1].rows()] == [4, 6.25]
    assert Path(made.result_directory).name.startswith("chain-")
    assert made.get_output_directory() == f"{made.result_directory}/2-refined"
    first = made.result_directory
    serial.run(made)
    assert made.result_directory != first


# What stops it, and what it resumes


FAILING = """
operations:
  - {function: "steps:invert", parameter_ranges: {x: [0, 1]}}
  - {type: merge}
"""


def test_it_stops_after_an_operation_of_which_processes_are_not_done(serial):
    stopped = serial.run(written(FAILING))
    assert stopped.stopped == "operation 1 of 2, invert: 1 failed"
    assert len(stopped.operations) == 1
    again = serial.run(written(FAILING, resume=True))
    assert again.stopped == stopped.stopped
    Path("healed").touch()
    healed = serial.run(written(FAILING, resume="failed"))
    assert healed.stopped is None
    assert len(healed.operations) == 2
    assert sorted(ran()) == ["invert 0", "invert 0", "invert 1"]


def test_it_goes_on_if_it_is_to(serial):
    serial.run(written(FAILING))
    done = serial.run(written(FAILING, resume=True, on_failure="continue"))
    assert done.stopped is None
    assert len(Path("out/2-merge/merged.csv").read_text().splitlines()) == 3
    assert len(ran()) == 2


def test_it_stops_when_its_time_is_up(serial):
    done = serial.run(written(CHAIN), timeout=0)
    assert done.stopped == "the time of the chain was up before operation 1 of 3, prepare"
    assert serial.run(written(CHAIN, resume=True)).stopped is None


SCRIPT = """
import os
from pathlib import Path


def process(process_id, result_directory, config, parameter_setting):
    with open("ran", "a") as file:
        file.write("script\\n")


def consolidate(result_directory, config_template):
    if not os.path.exists("healed"):
        raise ValueError("not yet")
    Path(result_directory, "once").touch(exist_ok=False)
"""


def test_what_has_ended_is_not_run_again_and_what_was_interrupted_goes_on(serial):
    write("work.py", SCRIPT)
    text = CHAIN + "  - {script: work.py}\n  - {type: merge, name: last}\n"
    with pytest.raises(ConsolidateError):
        serial.run(written(text))
    states = [e["state"] for e in json.loads(Path("out/chain.json").read_text())["operations"]]
    assert states == ["ended", "ended", "ended", "running", "waiting"]
    before = ran()
    with pytest.raises(DirectoryError, match="already holds a chain"):
        serial.run(written(text))
    # the record is all that it needs, even where what was ended was made from is gone
    for name in ("train.yaml", "chain.yaml"):
        Path(name).unlink()
    Path("healed").touch()
    resumed = serial.run(chain("out/chain.yaml", "out", resume=True))
    assert [len(op.rows()) for op in resumed.operations] == [2, 4, 4, 1, 1]
    assert Path("out/4-last/merged.csv").exists()
    serial.run(chain("out/chain.yaml", "out", resume=True))  # nor is it consolidated again
    assert ran() == before


def test_what_is_new_in_an_operation_goes_through_all_that_follow(serial):
    serial.run(written(CHAIN))
    longer = CHAIN.replace("[3, 4]", "[3, 4, 5]")
    serial.run(written(longer, resume=True))
    assert ran().count("prepare 3") == 1
    assert ran().count("train 1") == 3
    assert ran().count("judge") == 6


def test_a_merge_is_made_anew_when_its_tables_have_changed(serial):
    text = CHAIN + "  - type: merge\n"
    serial.run(written(text))
    assert len(Path("out/3-merge/merged.csv").read_text().splitlines()) == 5
    serial.run(written(text.replace("[3, 4]", "[3, 4, 5]"), resume=True))
    assert len(Path("out/3-merge/merged.csv").read_text().splitlines()) == 7


def test_the_record_is_a_chain_that_runs_elsewhere(serial):
    serial.run(written(CHAIN))
    again = serial.run(chain("out/chain.yaml", "again"))
    assert [row["score"] for row in of(again, 1)] == [3, 6, 4, 8]


def test_a_program_resumes_its_own_chain(serial):
    def made(**more):
        first = operation(lambda x: x, grid={"x": [1]}, name="first")
        later = lambda before: operation(lambda x: x, grid={"x": [2]}, name="later")  # noqa: E731
        return chain([first, later], "out", **more)

    serial.run(made())
    starts = [op.rows()[0]["start"] for op in serial.run(made(resume=True)).operations]
    assert starts == [op.rows()[0]["start"] for op in serial.run(made(resume=True)).operations]
    with pytest.raises(SpecError, match="this chain was made by a program"):
        chain("out/chain.yaml", "out", resume=True)
    other = chain([operation(lambda x: x, grid={"x": [1]}, name="other")], "out", resume=True)
    with pytest.raises(DirectoryError, match="operation 1 is 'first', not 'other'"):
        serial.run(other)


def test_a_directory_holds_a_chain_or_an_operation(serial):
    serial.run(operation(lambda x: x, grid={"x": [1]}, result_directory="op"))
    with pytest.raises(DirectoryError, match="holds an operation, not a chain"):
        serial.run(chain(write("chain.yaml", CHAIN), "op"))
    serial.run(written(CHAIN))
    with pytest.raises(DirectoryError, match="out holds a chain"):
        serial.run(operation(lambda x: x, grid={"x": [1]}, result_directory="out"))


# What it refuses


FILE_ERRORS = {
    "an unknown key": (
        "operatoins: [train.yaml]\ntype: operation_chain\n",
        "chain.yaml, line 1: unknown key 'operatoins'; did you mean 'operations'?",
    ),
    "no operations": ("type: operation_chain\n", "chain.yaml, line 1: 'operations' is missing"),
    "another type": (
        "type: function\noperations: [train]\n",
        "chain.yaml, line 1: a chain is of type 'operation_chain', not 'function'",
    ),
    "a wrong kind": (
        "operations: [train.yaml]\nruns: many\n",
        "chain.yaml, line 2: 'runs' must be a whole number, not 'many'",
    ),
    "a word that is unknown": (
        "on_failure: contine\noperations: [train]\n",
        "chain.yaml, line 1: 'on_failure' must be stop or continue; did you mean 'continue'?",
    ),
    "a file that is missing": (
        "operations:\n  - train.yaml\n  - trian.yaml\n",
        "chain.yaml, line 3: there is no file {home}/trian.yaml; did you mean 'train.yaml'?",
    ),
    "an error in an operation's own file": (
        "operations:\n  - train.yaml\n  - wrong.yaml\n",
        "{home}/wrong.yaml, line 2: unknown key 'rnus'; did you mean 'runs'?",
    ),
    "an error in an operation that is written right here": (
        "operations:\n  - train.yaml\n  - type: analysis\n    metirc: score\n",
        "chain.yaml, line 4: unknown key 'metirc'; did you mean 'metric'?",
    ),
    "an entry that is unknown": (
        "operations:\n  - operation_spec: train.yaml\n    overriden_params: {}\n",
        "chain.yaml, line 3: unknown key 'overriden_params'; did you mean 'overridden_params'?",
    ),
    "an error in what is overridden": (
        "operations:\n  - operation_spec: train.yaml\n    overridden_params:\n      run: 3\n",
        "chain.yaml, line 4: unknown key 'run'; did you mean 'runs'?",
    ),
    "an error within what is overridden": (
        "operations:\n  - operation_spec: train.yaml\n    overridden_params:\n"
        "      parameter_ranges:\n        gamma: [1]\n",
        "steps:train has no argument 'gamma'",
    ),
    "a value that is overridden twice": (
        "operations:\n  - operation_spec: train.yaml\n    overridden_params:\n"
        "      parameter_ranges:\n        C: [1, 1]\n",
        "chain.yaml, line 5: ",
    ),
    "overridden params of nothing": (
        "operations:\n  - type: merge\n    overridden_params: {}\n",
        "chain.yaml, line 3: 'overridden_params' goes with 'operation_spec'",
    ),
    "a number": (
        "operations:\n  - 7\n",
        "chain.yaml, line 2: an operation is a file, or a mapping",
    ),
    "a chain in a chain": (
        "operations:\n  - operations: [train.yaml]\n",
        "chain.yaml, line 2: an operation of a chain cannot be a chain itself",
    ),
    "an input that is missing": (
        "input_path: nothing/*\noperations: [train.yaml]\n",
        "chain.yaml, line 1: 'input_path': no data set matches",
    ),
    "an unknown placeholder": (
        "operations:\n  - train.yaml\n  - {type: merge, input_path: '${previuos}'}\n",
        "chain.yaml, line 3: 'input_path': unknown placeholder '${previuos}'; did you mean",
    ),
    "the previous of the first": (
        "operations:\n  - {type: merge, input_path: '${previous}'}\n",
        "chain.yaml, line 2: 'input_path': unknown placeholder '${previous}': the first operation",
    ),
}


@pytest.mark.parametrize("case", FILE_ERRORS)
def test_an_error_tells_file_line_and_the_likely_key(case, home):
    text, expected = FILE_ERRORS[case]
    write("data", "1")
    write("train.yaml", f"{TRAIN}input_path: data\n")
    write("wrong.yaml", "function: steps:judge\nrnus: 2\n")
    with pytest.raises(SpecError) as error:
        chain(write("chain.yaml", text), "out")
    assert expected.replace("{home}", str(home)) in str(error.value)
    assert not Path("out").exists()


def test_what_is_given_in_a_program_must_be_operations_and_functions(serial):
    with pytest.raises(SpecError, match="at least one operation"):
        chain([])
    with pytest.raises(SpecError, match="operation 1 is neither an operation nor a function"):
        chain([7])
    with pytest.raises(SpecError, match="a chain itself"):
        chain([chain([lambda before: None])])
    with pytest.raises(SpecError, match="has a result directory of its own, mine"):
        chain([operation([int], result_directory="mine")])
    with pytest.raises(SpecError, match="on_failure must be stop or continue"):
        chain([operation([int])], on_failure="stpo")
    with pytest.raises(SpecError, match="the function for operation 1 returned no operation"):
        serial.run(chain([lambda before: 7]))
    with pytest.raises(SpecError, match="run as a whole"):
        serial.stage_in(chain([operation([int])]))
    assert serial.state == "idling"


def test_a_chain_and_an_operation_are_told_apart():
    with pytest.raises(SpecError, match="line 2: this is a chain of operations"):
        load_operation(write("chain.yaml", "name: x\noperations: [train.yaml]\n"))
    with pytest.raises(SpecError, match="this is an operation, no chain"):
        chain("train.yaml")
    with pytest.raises(SpecError, match="line 2: 'input_path': only in a chain"):
        load_operation(write("op.yaml", "type: merge\ninput_path: ${previous}\n").replace("'", ""))


def test_values_laid_over_others_keep_their_lines(home):
    below = read_yaml(Path(write("below.yaml", "a: 1\nb: {c: 2,\n  d: [3]}\n")))
    above = read_yaml(Path(write("above.yaml", "\nb:\n\n  d: 5\n  e: {f: 6}\n")))
    both = below.overlaid(above)
    assert both.values == {"a": 1, "b": {"c": 2, "d": 5, "e": {"f": 6}}}
    places = {("b", "d"): "above.yaml, line 4", ("b", "e", "f"): "above.yaml, line 5"}
    places |= {("a",): "below.yaml, line 1", ("b", "c"): "below.yaml, line 2"}
    for keys, place in places.items():
        assert str(both.error("x", *keys)) == f"{place}: x"
    assert below.values["b"] == {"c": 2, "d": [3]}


class Bare:
    """An operation without a base class, as pySPACE's, and as duck typing allows."""

    def __init__(self, result_directory=None):
        self.processes = [partial(float, 1)]
        self.result_directory = result_directory

    def consolidate(self):
        pass


def test_a_chain_runs_as_pyspace_ran_one_and_returns_the_last_directory(serial, tmp_path):
    made = [Bare(), lambda before: operation([partial(len, before.result_directory)], name="len")]
    place = run_operation_chain(serial, chain(made, tmp_path / "chain"))
    assert place == str(tmp_path / "chain" / "2-len")
    assert Path(place, "table.csv").exists()


def test_an_operation_that_brings_its_directory_is_told_how_to_run(serial, tmp_path):
    (tmp_path / "own").mkdir()
    for item in (Bare(str(tmp_path / "own")), lambda before: Bare(str(tmp_path / "own"))):
        with pytest.raises(SpecError, match=r"has a result directory of its own.*run_operation"):
            run_operation_chain(serial, chain([item], tmp_path / "chain"))
