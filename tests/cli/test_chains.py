"""Chains from the command line: progress, exit codes, and that nothing is lost."""

import json
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from daskspace.cli import operation

from .conftest import heed_interrupts, plain_environment

pytestmark = pytest.mark.timeout(240)

JOBS = """
import os
import time
from pathlib import Path


def note(text):
    descriptor = os.open("runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\\n".encode())
    os.close(descriptor)


def make(n, directory):
    (directory / "n.txt").write_text(str(n))


def work(data, C, seed, directory):
    note(f"{data} {C}")
    n = int((Path(data) / "n.txt").read_text())
    deadline = time.monotonic() + 100
    while C > 1 and os.path.exists("closed") and time.monotonic() < deadline:
        time.sleep(0.02)
    (directory / "score.txt").write_text(f"{n * C} {seed}")
    return {"score": n * C, "seen": seed}


def nap(x):
    note(x)
    time.sleep(0.2)


def invert(x):
    return {"y": 1 / (x + os.path.exists("healed"))}
"""
CHAIN = """
name: study
prepare_operation: {function: "jobs:make", parameter_ranges: {n: [2, 3, 4]}}
operations:
  - operation_spec: work.yaml
    overridden_params:
      parameter_ranges: {C: [1, 2, 3]}
  - {type: merge}
  - {type: analysis, metric: score, parameters: [C, data]}
"""
NAPS = """
operations:
  - {function: "jobs:nap", parameter_ranges: {x: range(600)}}
  - {type: merge}
"""
FAILING = """
operations:
  - {function: "jobs:invert", parameter_ranges: {x: [0, 1]}}
  - {type: merge}
"""


@pytest.fixture
def place(place):
    place.write("jobs.py", JOBS)
    place.write("work.yaml", "function: jobs:work\nparameter_ranges: {C: [7]}\n")
    place.write("chain.yaml", CHAIN)
    place.write("failing.yaml", FAILING)
    return place


def start(place, *arguments):
    return subprocess.Popen(
        [*place.command, *arguments],
        cwd=place.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=plain_environment(),
        preexec_fn=heed_interrupts,
    )


def wait_until(true, seconds=90):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def invoke(place, monkeypatch):
    """Call a command that only looks, in this interpreter."""
    monkeypatch.chdir(place.path)

    def call(*arguments):
        try:
            return CliRunner().invoke(operation, [*map(str, arguments)])
        finally:
            sys.modules.pop("jobs", None)  # that of another test is another one

    return call


@pytest.fixture
def states(invoke):
    def look():
        told = json.loads(invoke("status", "out", "--json").stdout)
        return told["state"], [entry["state"] for entry in told["operations"]]

    return look


def results(place, directory):
    """Return all that does not differ from run to run."""
    merged = (place.path / directory / "2-merge" / "merged.csv").read_text().splitlines()
    head = merged[0].split(",")
    kept = [head.index(name) for name in ("process", "C", "data", "state", "score", "seen")]
    files = {
        path.parent.name: path.read_text()
        for path in (place.path / directory / "1-work" / "processes").glob("*/score.txt")
    }
    analysis = (place.path / directory / "3-analysis" / "analysis.csv").read_text()
    return [[row.split(",")[n] for n in kept] for row in merged[1:]], files, analysis


def note_of(place, running):
    runs = place.path / "runs"
    wait_until(lambda: runs.exists() and len(runs.read_text().split("\n")) > running)


def test_a_chain_whose_client_is_killed_goes_on_elsewhere_and_loses_nothing(place, invoke, states):
    ended = place.run("run", "chain.yaml", "-s", "-o", "undisturbed")
    assert ended.returncode == 0, ended.stderr
    assert "operation 1 of 4: make\n" in ended.stderr
    assert "operation 4 of 4: analysis\n" in ended.stderr
    assert "4 of 4 operations, in " in ended.stdout
    assert "plot       undisturbed/3-analysis/plot.svg\n" in ended.stdout
    assert "daskspace table undisturbed/3-analysis\n" in ended.stdout
    (place.path / "runs").unlink()
    (place.path / "closed").touch()
    client = start(place, "run", "chain.yaml", "-b", "mcore", "-O", "n_workers=1", "-o", "out")
    try:
        note_of(place, 2)
        assert states() == ("running", ["ended", "running", "waiting", "waiting"])
        second = invoke("resume", "out", "-s")
        assert second.exit_code == 1
        assert second.stderr.startswith(f"Error: {place.path}/out is in use by process ")
    finally:
        client.kill()
        client.communicate(timeout=60)
    assert states()[0] == "interrupted"
    watched = invoke("watch", "out")
    assert watched.exit_code == 4
    assert "daskspace resume out" in watched.stdout
    (place.path / "closed").unlink()
    (place.path / "chain.yaml").unlink()
    (place.path / "work.yaml").unlink()
    ended = place.run("resume", "out", "-b", "serial")
    assert ended.returncode == 0, ended.stderr
    assert "operation 1 of 4: make: ended before\n" in ended.stderr
    assert results(place, "out") == results(place, "undisturbed")
    assert states() == ("ended", ["ended"] * 4)
    ran = (place.path / "runs").read_text().splitlines()
    assert len(set(ran)) == 9
    assert len(ran) <= 9 + 2  # but for what was running when the client was killed


def test_a_chain_is_interrupted_and_cancelled_like_an_operation(place, states):
    place.write("naps.yaml", NAPS)
    client = start(place, "run", "naps.yaml", "-s", "-o", "out")
    note_of(place, 2)
    client.terminate()
    told, _ = client.communicate(timeout=60)
    assert client.returncode == 130, told
    assert "interrupted in operation 1 of 2, nap; results in out; go on with  " in told
    noted = len((place.path / "runs").read_text().splitlines())
    client = start(place, "resume", "out")
    note_of(place, noted + 2)
    cancelled = place.run("cancel", "out")
    told, _ = client.communicate(timeout=60)
    assert client.returncode == 4, told
    assert "stopped    operation 1 of 2, nap: cancelled by `daskspace cancel`\n" in told
    assert "daskspace resume out\n" in told
    assert cancelled.stdout.startswith("stopped\n")
    assert states() == ("stopped", ["ended", "waiting"])
    assert not list(place.path.glob("out/**/.cancel"))


def test_a_failure_stops_a_chain_with_exit_code_3_and_the_next_commands(place, states):
    ended = place.run("run", "failing.yaml", "-o", "out")
    assert ended.returncode == 3
    assert "first failure: process 0 x=0" in ended.stderr
    assert "1 of 2 operations, in " in ended.stdout
    assert "stopped    operation 1 of 2, invert: 1 failed\n" in ended.stdout
    for command in ("failures out/1-invert", "resume out --failed", "resume out --keep-going"):
        assert f"daskspace {command}\n" in ended.stdout
    assert states() == ("stopped", ["ended", "waiting"])
    ended = place.run("resume", "out", "--keep-going", "--json")
    told = json.loads(ended.stdout)
    assert ended.returncode == 3
    assert [op["counts"] for op in told["operations"]] == [{"done": 1, "failed": 1}, {"done": 1}]
    assert told["operations"][1]["products"] == {"merged": f"{place.path}/out/2-merge/merged.csv"}
    (place.path / "healed").touch()
    assert place.run("resume", "out", "--failed").returncode == 0
    assert (place.path / "out/2-merge/merged.csv").read_text().count(",done,") == 2


def test_commands_that_look_at_one_operation_name_those_of_a_chain(place, invoke):
    assert place.run("run", "failing.yaml", "-o", "out", "--keep-going").returncode == 3
    refused = invoke("table", "out")
    assert refused.exit_code == 1
    assert "out is a chain: give one of its operations: out/1-invert, out/2-merge" in refused.stderr
    shown = invoke("status", "out").stdout
    assert shown.startswith("failing on SerialBackend: ended, 2 operations\n")
    assert "1 invert   ended  2 of 2  1 done, 1 failed  out/1-invert" in shown
    watched = invoke("watch", "out")
    assert (watched.exit_code, watched.stdout) == (3, shown)


def test_plan_shows_the_operations_of_a_chain_and_writes_nothing(place, invoke):
    before = place.files()
    planned = invoke("plan", "chain.yaml", "--json")
    assert planned.exit_code == 0, planned.stderr
    rows = json.loads(planned.stdout)["operations"]
    assert [(row["operation"], row["type"], row["processes"]) for row in rows] == [
        ("0 make", "function", 3),
        ("1 work", "function", 3),
        ("2 merge", "merge", 1),
        ("3 analysis", "analysis", 1),
    ]
    assert "study: 4 operations" in invoke("plan", "chain.yaml").stdout
    assert place.files() == before
    place.write("wrong.yaml", CHAIN.replace("metric:", "metirc:"))
    refused = invoke("run", "wrong.yaml")
    assert refused.exit_code == 1
    assert "wrong.yaml, line 9: unknown key 'metirc'; did you mean 'metric'?" in refused.stderr
    assert invoke("run", "work.yaml", "--keep-going").exit_code == 2
