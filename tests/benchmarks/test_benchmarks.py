import json
import sys

from tests.benchmarks import goals, scale
from tests.benchmarks.__main__ import Extent, measure

PEERS = {"executorlib", "parsl", "ray", "submitit"}
TINY = Extent(rounds=1, plays=1, budget_s=0.2, cases=("10ms",), memory=0)


def row_of(figures, way):
    return next(row for row in figures["cases"]["10ms"]["rows"] if row["way"] == way)


def test_that_a_tiny_run_gives_a_table_figures_and_a_plot(tmp_path):
    figures = measure(TINY, ["futures", "serial", "liar", "absentee"], TINY.cases, tmp_path)

    pool, ours = (row_of(figures, way) for way in ("ProcessPoolExecutor.submit", goals.SERIAL))
    assert pool["median"] >= 5_000 * (1 - 1 / pool["number"])
    assert ours["median"] >= 10_000
    assert row_of(figures, "one that loses results")["dropped"] == "Wrong: 1 values came of 2"
    assert "not installed" in figures["absent"]["absentee"]
    assert json.loads((tmp_path / "figures.json").read_text()) == figures
    table = (tmp_path / "table.md").read_text()
    assert "| ProcessPoolExecutor.submit |" in table
    assert "absentee: not installed" in table
    assert "ProcessPoolExecutor.submit" in (tmp_path / "plot.svg").read_text()
    assert not PEERS & set(sys.modules)


def test_that_a_contender_that_hangs_is_dropped_and_nothing_of_it_is_left(tmp_path):
    hurried = Extent(rounds=1, plays=1, budget_s=0.2, cases=("10ms",), memory=0, patience_s=1.0)
    figures = measure(hurried, ["sleeper"], hurried.cases, tmp_path)
    assert row_of(figures, "one that hangs")["dropped"] == "no answer within 1 s"
    assert "no answer within 1 s" in (tmp_path / "table.md").read_text()
    assert not children_that_play()


def children_that_play():
    import psutil

    children = psutil.Process().children(recursive=True)
    return [child for child in children if "tests.benchmarks.player" in child.cmdline()]


def test_that_a_goal_is_judged_by_its_figure_and_not_reached_without_one():
    memory = next(goal for goal in goals.GOALS if goal.title.startswith("memory"))
    grown = {"at 10,000": 100.0, "peak": 149.0}
    assert goals.judge(memory, {"memory": grown}) == ("49.0 MiB at the peak", True)
    assert goals.judge(memory, {"memory": {**grown, "peak": 150.0}})[1] is False
    assert goals.judge(memory, {"memory": {}}) == ("not measured", False)


def test_that_the_costs_of_batch_process_and_second_are_told_apart():
    costs = {"batch_s": 0.002, "process_s": 1e-5, "second_s": 0.01}
    amounts = [(0, 0, 5.0), (200, 5_000, 6.0), (500, 500, 7.0), (60, 100_000, 8.0)]
    operations = [
        {
            "batches": batches,
            "processes": processes,
            "seconds": seconds,
            "processor_s": batches * 0.002 + processes * 1e-5 + seconds * 0.01,
        }
        for batches, processes, seconds in amounts
    ]
    found = scale._costs(operations)
    assert {name: round(value, 6) for name, value in found.items()} == costs
