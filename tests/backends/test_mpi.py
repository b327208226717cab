"""What only the `mpi` backend does: lost jobs, worlds, and processes with ranks of their own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import cloudpickle
import psutil
import pytest

from daskspace import ClusterStartError, ConfigError, create_backend, operation
from daskspace.clusters.mpi_launcher import launch_environment

from ..clusters.launchers import (  # noqa: TID252 - shared by two rooms
    LAUNCHERS,
    command_of,
    each_launcher,
    eventually,
    marked,
    nothing_left,
)

pytestmark = [pytest.mark.timeout(240)]
cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def mark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with nothing_left() as value:
        yield value


def states(op):
    return dict(Counter(row["state"] for row in op.rows()))


# A job that is lost


def slow(x):
    with open(f"begun-{x}", "a") as file:
        file.write("x")
    time.sleep(0.3)
    return {"y": x * x}


def scheduler_of(mark):
    """Return the scheduler of the MPI job; one that was lost may be on its way only."""
    found = eventually(lambda: schedulers(mark), 30)
    assert found
    return found[0]


def schedulers(mark):
    started = f"{sys.executable} -m dask_mpi"
    return [p for p in marked(mark) if command_of(p).startswith(started) and rank_of(p) == "0"]


def rank_of(process):
    with contextlib.suppress(psutil.Error):
        variables = process.environ()
        return variables.get("OMPI_COMM_WORLD_RANK") or variables["PMI_RANK"]
    return None


@each_launcher
def test_when_the_job_is_lost_another_one_finishes_the_operation(launcher, mark):
    with create_backend("mpi", n_workers=2, launcher=launcher) as backend:
        op = operation(slow, {"x": range(16)})
        backend.stage_in(op)
        backend.execute()
        assert eventually(lambda: len(list(Path().glob("begun-*"))) >= 5)
        scheduler_of(mark).kill()
        backend.retrieve(60)
        backend.consolidate()
        assert states(op) == {"done": 16}
        assert [row["y"] for row in op.rows()] == [x * x for x in range(16)]
        log = Path(op.result_directory, "operation.log").read_text()
        assert "the cluster was lost" in log
        assert "the MPI job ended with status" in log
        begun = [len(path.read_text()) for path in Path().glob("begun-*")]
        assert max(begun) <= 2
        assert sum(begun) <= 16 + 2


def test_when_the_job_is_lost_again_and_again_a_resume_finishes_it(mark):
    with create_backend("mpi", n_workers=2) as backend:
        op = operation(slow, {"x": range(12)}, result_directory="out")
        backend.stage_in(op)
        backend.execute()
        for times in (3, 1, 1):  # it is opened anew twice
            before = backend.check_status().ended
            assert eventually(lambda before=before, n=times: ended(backend) >= before + n, 30)
            scheduler = scheduler_of(mark)
            scheduler.kill()
            assert eventually(lambda gone=scheduler: not gone.is_running())
        with pytest.raises(Exception, match="the operation ended early"):
            backend.retrieve(60)
        backend.consolidate()
        assert set(states(op)) <= {"done", "cancelled", "lost"}
        assert states(op)["done"] >= 5
        backend.cleanup()
        again = operation(slow, {"x": range(12)}, result_directory="out", resume=["lost"])
        backend.run(again)
        assert states(again) == {"done": 12}


def ended(backend):
    return backend.check_status().ended


# Ranks of its own


def launch_ranks(launcher, n):
    """What a process does that needs MPI itself."""
    import subprocess
    import sys

    from daskspace.clusters.mpi_launcher import find_launcher

    program = "from mpi4py import MPI; print(MPI.COMM_WORLD.allreduce(1))"
    command = [*find_launcher(launcher), "-n", "2", sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return {
        "sizes": sorted(ran.stdout.replace("\n", "")),
        "rank": "PMI_RANK" in os.environ,
        "told": ran.stderr,
    }


@each_launcher
def test_a_process_may_launch_ranks_of_its_own(launcher):
    with create_backend("mpi", n_workers=2, launcher=launcher) as backend:
        op = backend.run(operation(launch_ranks, {"launcher": [launcher], "n": [1, 2, 3]}))
    for row in op.rows():
        assert (row["sizes"], row["rank"]) == (["2", "2"], False), row["told"]


# A world


WORLD = """
import os, sys, time
import daskspace

def work(x):
    if x == 3:
        os._exit(5)
    if x == 5:
        sys.exit(3)
    return {{"y": x * x}}

{before}
for number in range(2):
    with daskspace.create_backend("mpi", **{options}) as backend:
        op = backend.run(daskspace.operation(work, {{"x": range(8)}}, name=f"op{{number}}"))
        counts = sorted((row["state"], row["x"]) for row in op.rows() if row["state"] != "done")
        print("ended", counts, len(op.rows()), backend.check_status().workers, flush=True)
        print(backend.client.scheduler.address, backend.dashboard_link, flush=True)
{after}
"""


def start_world(launcher, ranks, *command, **variables):
    return subprocess.Popen(
        [launcher, "-n", str(ranks), sys.executable, *command],
        env={**launch_environment(os.environ), **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run_world(launcher, ranks, *command, **variables):
    program = start_world(launcher, ranks, *command, **variables)
    try:
        out, err = program.communicate(timeout=150)
    finally:
        program.kill()
    return program.returncode, out, err


def write_world(options=None, before="", after=""):
    text = WORLD.format(options=options or {}, before=before, after=after)
    Path("program.py").write_text(text)


ENDED = "ended [('crashed', 3), ('failed', 5)] 8 2"


@each_launcher
def test_in_a_world_one_rank_goes_on_and_the_others_serve(launcher):
    write_world()
    code, out, err = run_world(launcher, 4, "program.py")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("ended")] == [ENDED] * 2
    for line in lines[1::2]:
        assert line.startswith("tcp://127.0.0.1:")
        assert "http://127.0.0.1:" in line
    assert sorted(p.name[:4] for p in Path().iterdir()) == ["op0-", "op1-", "prog"]


@each_launcher
@pytest.mark.parametrize(
    ("after", "code", "told"),
    [
        ("raise ValueError('oh')", 1, "ValueError: oh"),
        ("sys.exit(4)", 4, ""),
    ],
    ids=["raises", "exits"],
)
def test_a_world_ends_with_its_client_and_its_exit_code(launcher, after, code, told):
    write_world(after=after)
    ended, out, err = run_world(launcher, 4, "program.py")
    assert ended == code
    assert out.count(ENDED) == 2
    assert told in err


@each_launcher
def test_a_world_ends_when_its_client_leaves_without_a_word(launcher):
    write_world(after="os._exit(6)")
    code, out, _ = run_world(launcher, 4, "program.py")
    assert code != 0
    assert out.count(ENDED) == 2


def test_a_world_whose_backend_is_never_closed_ends_as_well():
    Path("program.py").write_text(
        "import daskspace\n"
        "backend = daskspace.create_backend('mpi')\n"
        "print(backend.run(daskspace.operation([int])).rows()[0]['state'])\n"
    )
    assert run_world(LAUNCHERS["hydra"], 3, "program.py") == (0, "done\n", "")


@each_launcher
def test_too_few_ranks_are_told(launcher):
    write_world()
    code, out, err = run_world(launcher, 2, "program.py")
    assert code != 0
    assert out == ""
    assert "needs at least 3 ranks, for scheduler, client and one worker, and this one has 2" in err


def test_without_a_launcher_there_is_no_world():
    with (
        create_backend("mpi", mode="world") as backend,
        pytest.raises(ClusterStartError, match="this one has 1"),
    ):
        backend.stage_in(operation([int]))


def test_ranks_that_do_not_know_of_each_other_are_told():
    if not {"hydra", "openmpi"} <= set(LAUNCHERS):
        pytest.skip("needs MPICH and Open MPI")
    write_world()
    variables = {"MPI4PY_LIBMPI": "libmpi.so.40"}
    code, out, err = run_world(LAUNCHERS["hydra"], 3, "program.py", **variables)
    assert code != 0
    assert out == ""
    assert "the launcher started 3 ranks, but MPI knows of 1" in err


@each_launcher
def test_a_rank_that_never_comes_is_not_waited_for_for_ever(launcher):
    rank = "os.environ.get('OMPI_COMM_WORLD_RANK') or os.environ['PMI_RANK']"
    write_world(before=f"if ({rank}) == '2': time.sleep(100)")
    code, _, err = run_world(launcher, 4, "program.py", DASK_MPI__START_TIMEOUT="3s")
    assert code != 0
    assert "not all ranks of the MPI job have come to stage_in within 3 s" in err


@each_launcher
def test_a_world_may_be_encrypted_and_no_key_is_on_the_disk(launcher, tmp_path):
    write_world()
    (tmp_path / "tmp").mkdir()
    code, out, err = run_world(
        launcher, 4, "program.py", DASK_MPI__PROTOCOL="tls", TMPDIR=str(tmp_path / "tmp")
    )
    assert (code, err) == (0, "")
    assert out.count("tls://127.0.0.1:") == 2
    assert out.count(ENDED) == 2
    left = [p for p in (tmp_path / "tmp").rglob("*") if p.is_file() and "PRIVATE" in text_of(p)]
    assert left == []


def text_of(path):
    return path.read_bytes().decode("latin-1")


def test_workers_without_nanny_serve_a_world_as_well():
    write_world({"worker_class": "distributed.Worker", "n_workers": 7})
    code, out, err = run_world(LAUNCHERS["hydra"], 4, "program.py")
    assert (code, out.count(ENDED)) == (0, 2), err


@each_launcher
def test_the_command_line_runs_in_a_world(launcher):
    Path("roots.py").write_text("def root(x):\n    return x ** 0.5\n")
    Path("spec.yaml").write_text("function: roots:root\nparameter_ranges: {x: [4, 9]}\n")
    command = ["-m", "daskspace", "run", "spec.yaml", "-b", "mpi", "-o", "out", "--json"]
    code, out, err = run_world(launcher, 3, *command)
    assert code == 0, err
    assert out.count('"done": 2') == 1
    assert out.count("result_directory") == 1
    assert "ended early" not in err


@each_launcher
def test_when_the_client_of_a_world_is_killed_the_world_ends_and_can_be_resumed(launcher, mark):
    program = """
import os, time, daskspace
def work(x):
    open(f"begun-{x}", "w").write("")
    time.sleep(0.05 if x < 4 or os.path.exists("gate") else 60)
    return x
op = daskspace.operation(work, {"x": range(8)}, result_directory="out", resume=True)
with daskspace.create_backend("mpi") as backend:
    open("client", "w").write(str(os.getpid())) if backend.stage_in(op) is None else None
    backend.execute()
    backend.retrieve()
    backend.consolidate()
    print(op.rows()[7]["state"], backend.check_status().counts["cached"] >= 2)
"""
    Path("program.py").write_text(program)
    world = start_world(launcher, 4, "program.py")
    try:
        assert eventually(lambda: len(list(Path().glob("begun-*"))) >= 6, 40)
        os.kill(int(Path("client").read_text()), signal.SIGKILL)
        world.communicate(timeout=20)
        assert world.returncode != 0
        assert eventually(lambda: not marked(mark))
    finally:
        with contextlib.suppress(ProcessLookupError):
            world.kill()
    Path("gate").touch()
    code, out, err = run_world(launcher, 4, "program.py")
    assert (code, out) == (0, "done True\n"), err


# Options


def test_an_unknown_mode_is_told_with_those_there_are():
    with pytest.raises(ConfigError, match="known are auto, launch, world; did you mean 'launch'"):
        create_backend("mpi", mode="lanch")


def test_an_unknown_option_is_told():
    with pytest.raises(ConfigError, match="did you mean 'n_workers'"):
        create_backend("mpi", n_wrokers=2)


def test_a_job_is_not_launched_from_within_a_world(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "4")
    with (
        create_backend("mpi", mode="launch") as backend,
        pytest.raises(ConfigError, match="one of 4 ranks"),
    ):
        backend.stage_in(operation([int]))
