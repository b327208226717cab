"""Merge and analysis: one table of many, the best settings, and a plot of them."""

import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from daskspace import SpecError, create_backend, load_operation, operation
from daskspace.operations.analysis import analyse, read_frame
from daskspace.operations.merge import Columns
from daskspace.operations.plot import choose_layout, draw

ROWS = [
    {"C": c, "kernel": kernel, "run": run, "score": c * (1 + run) + (kernel == "b")}
    for c in (0.1, 1, 10)
    for kernel in "ab"
    for run in range(3)
]
COLUMNS = Columns(("C", "kernel"), ("score",))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def serial():
    with create_backend("serial") as backend:
        yield backend


def score(C, kernel, run):
    if kernel == "never":
        raise ValueError(kernel)
    return {"text": "007", "score": C * (1 + run), "flag": run == 0}


def trained(serial, place, **more):
    given = {"grid": {"C": [1, 10], "kernel": ["a", "never"]}, "runs": 3, **more}
    return serial.run(operation(score, result_directory=place, name=Path(place).name, **given))


def run(serial, text, directory="out"):
    Path("op.yaml").write_text(text)
    return serial.run(load_operation("op.yaml", directory))


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# Merge


def test_a_merged_table_has_all_columns_and_tells_where_each_row_is_from(serial):
    trained(serial, "all/one")
    other = operation(lambda D: {"score": D / 3, "loss": [1, 2]}, grid={"D": [7]})
    other.result_directory = "all/two"
    serial.run(other)
    Path("old.csv").write_text('score,note\n1e-3,"a, b"\n')
    done = run(serial, "type: concatenate\ninput_path: [all, old.csv]\n")
    assert done.products() == {"merged": str(Path("out/merged.csv").absolute())}
    rows = read("out/merged.csv")
    assert [row["source"] for row in rows] == ["all/one"] * 12 + ["all/two", "old.csv"]
    head = list(rows[0])
    assert head[:7] == ["source", "process", "C", "kernel", "D", "data", "run"]
    assert head[7:12] == ["state", "text", "score", "flag", "loss"]
    assert head[-1] == "note"
    # what stood in the tables stands here, letter by letter
    for row, before in zip(rows, read("all/one/table.csv"), strict=False):
        assert {k: row[k] for k in before} == before
        assert (row["D"], row["note"]) == ("", "")
    assert (rows[0]["text"], rows[0]["flag"], rows[0]["C"]) == ("007", "True", "1")
    assert (rows[12]["loss"], rows[12]["score"]) == ("[1,2]", repr(7 / 3))
    assert (rows[13]["score"], rows[13]["note"]) == ("1e-3", "a, b")
    (row,) = done.rows()
    assert (row["tables"], row["rows"]) == (3, 14)


def test_a_merged_table_can_be_merged_and_analysed_again(serial):
    trained(serial, "one")
    run(serial, "type: merge\ninput_path: one\n", "m")
    run(serial, "type: merge\ninput_path: [m, one]\n", "again")
    rows = read("again/merged.csv")
    assert len(rows) == 24
    assert (rows[0]["merged.source"], rows[0]["source"]) == ("m", "one")
    run(serial, "type: analysis\ninput_path: again\nmetric: score\n", "best")
    assert read("best/analysis.csv")[0]["C"] == "10"


REFUSED = {
    "type: merge\n": "op.yaml, line 1: 'input_path' is missing",
    "type: merge\ninput_path: nothing\n": "op.yaml, line 2: 'input_path': no data set matches",
    "type: merge\ninput_path: empty\n": "empty holds no result directory",
    "type: merge\ninput_path: op.yaml\n": "is neither a result directory nor a CSV file",
    "type: merge\nruns: 3\n": "op.yaml, line 2: unknown key 'runs'",
    "type: analysis\ninput_path: t.csv\nmetirc: x\n": "line 3: unknown key 'metirc'; did you mean",
    "type: analysis\ninput_path: t.csv\nmaximize: 1\n": "line 3: 'maximize' must be true or false",
    "type: analysis\ninput_path: t.csv\nmaximize: true\nminimize: true\n": "not both",
    "type: analysis\ninput_path: t.csv\nplot: {frmat: png}\n": "no key 'frmat'; did you mean",
    "type: analysis\ninput_path: t.csv\nplot: {format: gif}\n": "'format' must be svg or png",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_merged_or_analysed_is_refused(text):
    Path("empty").mkdir()
    Path("t.csv").write_text("x,y\n1,2\n")
    Path("op.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"op\.yaml") as error:
        load_operation("op.yaml")
    assert REFUSED[text] in str(error.value)


# Analysis


def test_the_best_setting_comes_first_with_mean_deviation_and_count():
    found = analyse(pd.DataFrame(ROWS), COLUMNS)
    best = found.settings.iloc[0]
    assert found.parameters == ["C", "kernel"]
    assert (best["rank"], best["C"], best["kernel"]) == (1, 10, "b")
    assert (best["mean"], best["std"], best["count"]) == (21, 10, 3)
    assert (best["min"], best["max"]) == (11, 31)
    assert found.averaged == {"run": 3}
    smallest = analyse(pd.DataFrame(ROWS), COLUMNS, minimize=True).settings.iloc[0]
    assert (smallest["C"], smallest["kernel"]) == (0.1, "a")


def test_rows_that_are_not_done_or_have_no_number_are_left_out():
    frame = pd.DataFrame(ROWS).assign(state="done")
    frame.loc[17, ["state", "score"]] = "failed", 1e9
    frame.loc[16, "score"] = math.nan
    found = analyse(frame, COLUMNS)
    assert found.left_out == 2
    best = found.settings.iloc[0]
    assert (best["kernel"], best["mean"], best["count"]) == ("a", 20, 3)
    single = found.settings[found.settings["count"] == 1].iloc[0]
    assert math.isnan(single["std"])
    with pytest.raises(ValueError, match="no row of the table is done"):
        analyse(frame.assign(state="lost"), COLUMNS)


def test_parameters_may_be_chosen_and_what_does_not_vary_is_no_parameter():
    frame = pd.DataFrame(ROWS).assign(fixed=7)
    columns = Columns(("C", "kernel", "fixed"), ("score",))
    found = analyse(frame, columns, parameters=["kernel"])
    assert found.averaged == {"C": 3, "run": 3}
    assert found.fixed == {"fixed": 7}
    assert len(found.settings) == 2
    assert analyse(frame[:1], columns).settings["mean"].tolist() == [0.1]
    with pytest.raises(ValueError, match="no column 'kernle'; did you mean 'kernel'"):
        analyse(frame, columns, parameters=["kernle"])
    unknown = Columns(tuple(frame.columns), None)
    with pytest.raises(ValueError, match="which column is the 'metric'"):
        analyse(frame, unknown)
    with pytest.raises(ValueError, match="which columns are 'parameters'"):
        analyse(frame, unknown, "score")


def test_an_analysis_writes_a_table_a_text_and_a_plot(serial):
    trained(serial, "one", grid={"C": [1, 10, 100], "kernel": ["a", "b", "never"]})
    done = run(serial, "type: analysis\ninput_path: one\nmetric: score\n")
    names = {"analysis": "analysis.csv", "best": "best.md", "plot": "plot.svg"}
    assert done.products() == {k: str(Path("out", n).absolute()) for k, n in names.items()}
    best = read("out/analysis.csv")[0]
    assert (best["C"], best["kernel"], best["mean"], best["count"]) == ("100", "a", "200.0", "3")
    text = Path("out/best.md").read_text()
    assert "| 1 | 100 | a | 200 ± 1e+02 | 3 |" in text
    assert "9 rows are left out" in text
    assert "(plot.svg)" in text
    (row,) = done.rows()
    assert (row["metric"], row["best"], row["best.C"], row["plot"]) == (
        "score",
        200,
        100,
        "plot.svg",
    )
    assert row["data"] == "one"
    assert "<svg" in Path("out/plot.svg").read_text()[:1000]


def test_an_analysis_that_is_resumed_makes_its_files_again(serial):
    trained(serial, "one")
    run(serial, "type: analysis\ninput_path: one\nmetric: score\n")
    Path("out/best.md").unlink()
    done = serial.run(load_operation("out/operation.yaml", "out", resume=True))
    assert len(done.rows()) == 1
    assert Path("out/best.md").exists()


def test_a_mistake_in_the_names_fails_the_process_and_tells_the_names_that_there_are(serial):
    trained(serial, "one")
    (row,) = run(serial, "type: analysis\ninput_path: one\nmetric: scroe\n").rows()
    assert (row["state"], row["error"]) == ("failed", "ValueError")
    assert "no column 'scroe'; did you mean 'score'?" in row["message"]


WITHOUT_MATPLOTLIB = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "matplotlib" else find(name, *more)
from daskspace.cli import main
main()
"""


def test_without_matplotlib_the_tables_are_written_and_a_line_says_what_to_install(serial):
    trained(serial, "one")
    Path("op.yaml").write_text("type: analysis\ninput_path: one\nmetric: score\n")
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_MATPLOTLIB, "run", "op.yaml", "-s", "-q", "-o", "out"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert 'plot       not drawn: pip install "daskspace[plot]"\n' in ended.stdout
    assert Path("out/analysis.csv").exists()
    assert not list(Path("out").glob("plot.*"))


# The plot


def frame_of(**values):
    """Return a row for each combination, with the metric `m`."""
    index = pd.MultiIndex.from_product(values.values(), names=values)
    return index.to_frame(index=False).assign(m=[float(n % 7) for n in range(len(index))])


LAYOUTS = {
    "numbers along the axis, words as lines": (
        {"kernel": ["a", "b"], "C": [1, 2, 3]},
        ("C", "kernel", None, False),
    ),
    "words only": (
        {"kernel": ["a", "b", "c"], "norm": ["x", "y"]},
        ("kernel", "norm", None, False),
    ),
    "one": ({"kernel": ["a", "b"]}, ("kernel", None, None, False)),
    "three": (
        {"data": ["p", "q"], "kernel": ["a", "b"], "C": [1, 2, 3]},
        ("C", "kernel", "data", False),
    ),
    "many numbers": ({"x": range(12), "y": range(9)}, ("x", "y", None, True)),
    "truth is no number": ({"flag": [True, False], "C": [1, 2]}, ("C", "flag", None, False)),
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_each_parameter_has_its_place_in_the_plot(case, home):
    values, expected = LAYOUTS[case]
    rows = frame_of(**values)
    layout = choose_layout(rows, list(values), {})
    assert (layout.x, layout.lines, layout.panels, layout.is_map) == expected
    assert draw(rows, "m", list(values), home, {}) == "plot.svg"


def test_what_the_plot_shows_may_be_chosen(home):
    rows = frame_of(kernel=["a", "b"], C=[1, 2, 3], run=[0, 1])
    chosen = {"x": "kernel", "lines": "C", "format": "png"}
    layout = choose_layout(rows, ["kernel", "C"], chosen)
    assert (layout.x, layout.lines) == ("kernel", "C")
    assert draw(rows, "m", ["kernel", "C"], home, chosen) == "plot.png"
    assert (home / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no column 'D'"):
        draw(rows, "m", ["C"], home, {"x": "D"})


def test_a_plot_names_its_axes_lines_and_what_was_averaged(home, monkeypatch):
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")
    rows = frame_of(kernel=["a", "b"], C=[0.1, 1, 10], run=[0, 1])
    draw(rows.rename(columns={"m": "accuracy"}), "accuracy", ["kernel", "C"], home, {}, ["run"])
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", (home / "plot.svg").read_text())
    assert {"accuracy", "C", "kernel", "a", "b", "0.1", "1", "10"} <= {*texts}
    assert "accuracy: mean ± standard deviation over run (2)" in texts


def test_lists_as_values_make_a_setting(serial):
    made = operation(lambda size: len(size), grid={"size": [[1, 2], [3]]}, result_directory="one")
    serial.run(made)
    frame, columns = read_frame("one")
    found = analyse(frame, columns)
    assert found.settings["size"].tolist() == ["[1,2]", "[3]"]
    assert json.loads(found.settings["size"][0]) == [1, 2]
