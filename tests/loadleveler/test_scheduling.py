"""Requirements, dependencies, and who runs where: pure functions."""

import pytest

from . import samples
from .llsim import config, expressions, scheduling
from .llsim.jcf import RefusedError

NODES = [
    *config.nodes(2, cpus=4, memory_mb=8192),
    {"name": "big", "cpus": 16, "memory_mb": 65536, "features": ["mic", "ib"], "domain": "x.org"},
]
SITE = config.complete({"nodes": NODES})


def step(number=1, **changes):
    return samples.step(f"host.{number}.0", **{"class": "general", **changes})


def parallel(nodes, number=1, **changes):
    return step(number, serial=False, nodes=nodes, **changes)


def place(job, running=(), **changes):
    return scheduling.place(job, NODES, list(running), {**SITE, **changes})


@pytest.mark.parametrize(
    ("text", "machines"),
    [
        ('Feature == "mic"', ["big"]),
        ('(Feature == "mic") && (Feature == "ib")', ["big"]),
        ('!(Feature == "mic")', ["n01", "n02"]),
        ('Machine == "n01" || (Machine == "big.x.org")', ["n01", "big"]),
        ('Machine == {"n01" "n02"}', ["n01", "n02"]),
        ('Machine != "n01"', ["n02", "big"]),
        ("(Memory > 4096)", ["n01", "n02", "big"]),
        ("(Memory >= 65536)", ["big"]),
        ("Memory < 65536 && Memory <= 8192", ["n01", "n02"]),
        ('(Arch == "x86_64") && (OpSys == "Linux2")', ["n01", "n02"]),
        ('(Arch == "R6000") && (OpSys == "AIX51")', []),
        ('(Adapter == "hps_user")', []),
        ('Nonsense == "x"', []),
    ],
)
def test_requirements_choose_machines(text, machines):
    job = step(keywords={"requirements": text})
    assert [node["name"] for node in NODES if scheduling.satisfies(job, node)] == machines


@pytest.mark.parametrize(
    "text",
    ["", "(", "Feature", "Feature ==", '"x" == Feature', "A == 1 B == 2", "A = 1", "A == (1)"],
)
def test_malformed_expressions_are_refused(text):
    with pytest.raises(RefusedError):
        expressions.parse(text)


def test_and_binds_closer_than_or():
    tree = expressions.parse("a == 1 || b == 1 && c == 1")
    assert expressions.holds(tree, {"a": 1, "b": 0, "c": 0}.get) is True


def test_what_is_not_known_yet_matters_only_where_it_decides():
    tree = expressions.parse("(a == 0) && (b == 0)")
    assert expressions.holds(tree, {"a": 0.0}.get) is None
    assert expressions.holds(tree, {"a": 1.0}.get) is False
    assert expressions.holds(tree, {"a": 0.0, "b": 0.0}.get) is True


def test_dependencies_ask_for_exit_codes():
    def ended(state, code=None):
        return step(step_name="one", state=state, completion_code=code)

    waiting = step(2, keywords={"dependency": "(one == 0)"})
    assert scheduling.dependency_state(waiting, [ended("R")]) is None
    assert scheduling.dependency_state(waiting, [ended("C", 0)]) is True
    assert scheduling.dependency_state(waiting, [ended("C", 3 << 8)]) is False
    assert scheduling.dependency_state(waiting, [ended("RM")]) is False
    anyway = step(2, keywords={"dependency": "(one >= 3) || (one == CC_REMOVED)"})
    assert scheduling.dependency_state(anyway, [ended("C", 3 << 8)]) is True
    assert scheduling.dependency_state(anyway, [ended("CA")]) is True


def test_a_serial_step_takes_the_first_machine_with_room():
    cpus = {"consumablecpus": 3}
    assert place(step(resources=cpus)) == ["n01"]
    busy = step(2, resources=cpus, hosts=["n01"], state="R")
    assert place(step(resources=cpus), [busy]) == ["n02"]
    assert place(step(resources={"consumablecpus": 16})) == ["big"]
    assert place(step(resources={"consumablecpus": 17})) is None


def test_memory_counts_per_task():
    job = parallel([1, 1], tasks_per_node=2, resources={"consumablememory": 6000})
    assert place(job) == ["big", "big"]


def test_consumables_that_are_not_scheduled_do_not_count():
    job = step(resources={"consumablememory": 10**9, "consumablecpus": 1})
    assert place(job) is None
    assert place(job, schedule_by_resources=["ConsumableCpus"]) == ["n01"]


def test_steps_without_processors_take_starters():
    running = [step(number, hosts=["n01"], state="R") for number in range(4)]
    assert place(step(9), running) == ["n02"]


def test_parallel_steps_spread_over_machines():
    assert place(parallel([2, 2], tasks_per_node=4)) == ["big"] * 4 + ["n01"] * 4
    assert place(parallel([1, 3], tasks_per_node=4)) == ["big"] * 4 + ["n01"] * 4 + ["n02"] * 4
    assert place(parallel([4, 4])) is None
    uneven = parallel([3, 3], total_tasks=5, has_total=True)
    assert sorted(place(uneven)) == ["big", "big", "n01", "n01", "n02"]
    anywhere = parallel([1, 1], total_tasks=20, has_total=True, has_nodes=False)
    assert len(place(anywhere)) == 20


def test_machines_are_shared_or_not():
    mine = step(1, shared=False, hosts=["n01"], state="R")
    assert place(step(2), [mine]) == ["n02"]
    other = step(1, hosts=["n01"], state="R")
    assert place(step(2, shared=False), [other]) == ["n02"]


def test_node_resources_are_taken_once_per_machine():
    assert place(step(node_resources={"consumablememory": 9000})) == ["big"]


def schedule(*steps, **changes):
    starts, reasons = scheduling.schedule(list(steps), NODES, {**SITE, **changes}, now=100.0)
    return [started["job"] for started, _ in starts], reasons


def test_higher_priority_goes_first_then_the_order_of_submission():
    whole = {"resources": {"consumablecpus": 16}}
    started, _ = schedule(step(1, **whole), step(2, priority=60, **whole), step(3, **whole))
    assert started == [2]


def test_nobody_overtakes_a_step_that_waits_for_room_unless_there_is_backfill():
    running = step(1, state="R", hosts=["big"] * 16)
    large, small = step(2, resources={"consumablecpus": 16}), step(3)
    started, reasons = schedule(running, large, small)
    assert started == []
    assert "Not enough resources to start now." in reasons["host.2.0"]
    assert "backfill" in reasons["host.3.0"]
    assert schedule(running, large, small, backfill=True)[0] == [3]


def test_an_impossible_step_waits_for_ever_and_blocks_nobody():
    started, reasons = schedule(step(1, resources={"consumablecpus": 99}), step(2))
    assert started == [2]
    assert "never run" in reasons["host.1.0"]


def test_classes_limit_slots_jobs_and_machines():
    classes = {"general": {"max_starters": 1}}
    assert schedule(step(1), step(2), classes=classes)[0] == [1]
    classes = {"general": {"maxjobs_per_user": 1}}
    assert schedule(step(1), step(2), classes=classes)[0] == [1]
    assert schedule(step(1), step(2, owner="you"), classes=classes)[0] == [1, 2]
    assert place(step(1), classes={"general": {"nodes": ["big"]}}) == ["big"]


def test_a_site_may_take_its_time_to_start_a_step():
    assert schedule(step(1), queue_delay_s=1000)[0] == []
    assert schedule(step(1), queue_delay_s=10)[0] == [1]
    waits = [step(number) for number in range(1, 5)]
    started, _ = schedule(*waits, queue_delay_s=[0, 200])
    assert 0 < len(started) < 4
