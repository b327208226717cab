"""What is special about all cores of one machine."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from daskspace import ClusterStartError, ConfigError, DaskBackend, create_backend, operation

PROGRAM = """
import daskspace

def double(x):
    return 2 * x

operation = daskspace.operation(double, grid={"x": range(20)})
with daskspace.create_backend("mcore", n_workers=2) as backend:
    backend.run(operation)
print("sum", sum(row["value"] for row in operation.rows()))
"""


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def python(*arguments, cwd, program=None, **more):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        input=program,
        capture_output=True,
        text=True,
        timeout=60,
        **more,
    )


def listening(process):
    return [
        connection.laddr
        for child in [process, *process.children(recursive=True)]
        for connection in child.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


@pytest.mark.parametrize("how", ["script", "module", "standard input", "-c"])
def test_a_program_without_a_main_guard_runs(tmp_path, how):
    (tmp_path / "program.py").write_text(PROGRAM)
    ran = {
        "script": lambda: python("program.py", cwd=tmp_path),
        "module": lambda: python("-m", "program", cwd=tmp_path),
        "standard input": lambda: python("-", cwd=tmp_path, program=PROGRAM),
        "-c": lambda: python("-c", PROGRAM, cwd=tmp_path),
    }[how]()
    assert ran.stdout == "sum 380\n", ran.stderr
    assert ran.stderr == ""
    assert ran.returncode == 0


def test_an_interactive_session_without_a_file_runs(tmp_path):
    session = PROGRAM.replace('print("sum"', '\nprint("sum"')
    ran = python("-i", "-q", cwd=tmp_path, program=session)
    assert "sum 380" in ran.stdout, ran.stderr


def test_a_killed_worker_is_replaced_without_running_the_program_again(tmp_path):
    program = PROGRAM.replace(
        "backend.run(operation)",
        "backend.run(daskspace.operation(double, grid={'x': [1]}));"
        " import os, signal; print('began');"
        " [os.kill(pid, signal.SIGKILL) for pid in"
        " backend.client.run(os.getpid).values()];"
        " backend.run(operation)",
    )
    (tmp_path / "program.py").write_text(program)
    ran = python("program.py", cwd=tmp_path)
    assert ran.stdout == "began\nsum 380\n", ran.stderr


def test_everything_listens_on_loopback_alone():
    with create_backend("mcore", n_workers=2) as backend:
        backend.run(operation([int] * 3))
        addresses = listening(psutil.Process())
        assert len(addresses) >= 4
        assert {address.ip for address in addresses} <= {"127.0.0.1", "::1"}
        assert backend.dashboard_link.startswith("http://127.0.0.1:")


def test_close_leaves_no_process_and_no_open_port():
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    backend = create_backend("mcore", n_workers=2)
    backend.run(operation([int] * 3))
    backend.close()
    backend.close()
    assert backend.client is None
    left = {
        child
        for child in me.children(recursive=True)
        if child.pid not in before and "resource_tracker" not in " ".join(child.cmdline())
    }
    psutil.wait_procs(left, timeout=10)
    assert not [child for child in left if child.is_running()]


def test_options_are_those_of_local_cluster():
    with create_backend("mcore", n_workers=1, threads_per_worker=2) as backend:
        backend.run(operation([int]))
        assert list(backend.client.nthreads().values()) == [2]


def test_threads_of_one_worker_keep_their_output_apart():
    with create_backend("mcore", n_workers=1, threads_per_worker=4) as backend:
        op = backend.run(operation(say, grid={"x": range(12)}))
    logs = {path.read_text() for path in Path(op.result_directory, "logs").iterdir()}
    assert logs == {f"{x}\n{x}\n" for x in range(12)}


def say(x):
    print(x)
    time.sleep(0.05)
    print(x)


def test_an_unknown_option_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"no option 'n_wrokers'; did you mean 'n_workers'\?"):
        create_backend("mcore", n_wrokers=2)


def test_a_cluster_that_does_not_start_tells_why_and_leaves_nothing(tmp_path, monkeypatch):
    backend = create_backend("mcore", n_workers=1, protocol="no-such-protocol")
    with pytest.raises(ClusterStartError, match="no-such-protocol"):
        backend.stage_in(operation([int]))
    assert backend.state == "idling"
    assert os.listdir() == []


def test_a_backend_is_one_small_class_with_one_hook(tmp_path, monkeypatch):
    from distributed import LocalCluster

    class ThreadsBackend(DaskBackend):
        def _open_cluster(self):
            return LocalCluster(processes=False, dashboard_address=":0", **self.options)

    monkeypatch.chdir(tmp_path)
    with ThreadsBackend(n_workers=1, threads_per_worker=2) as backend:
        op = backend.run(operation(say, grid={"x": range(4)}))
    assert [row["state"] for row in op.rows()] == ["done"] * 4


def test_a_client_that_a_backend_was_given_stays_open(tmp_path, monkeypatch):
    from distributed import Client, LocalCluster

    monkeypatch.chdir(tmp_path)
    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):

        class GivenBackend(DaskBackend):
            def _open_cluster(self):
                return client

        with GivenBackend() as backend:
            op = backend.run(operation([int] * 3))
        assert client.submit(int, 5).result() == 5
    assert [row["state"] for row in op.rows()] == ["done"] * 3


def test_processes_that_kill_their_worker_are_crashed_and_all_others_done():
    with create_backend("mcore", n_workers=2) as backend:
        op = backend.run(operation(kill_or_not, grid={"x": range(30)}))
    crashed = [row["x"] for row in op.rows() if row["state"] == "crashed"]
    assert crashed == [3, 17]
    assert [row["state"] for row in op.rows()].count("done") == 28


def kill_or_not(x):
    if x in (3, 17):
        os._exit(1)
    time.sleep(0.01)


def test_a_program_that_a_process_starts_can_be_interrupted():
    with create_backend("mcore", n_workers=1) as backend:
        op = backend.run(operation([start_and_interrupt]))
    assert [row["value"] for row in op.rows()] == [-signal.SIGINT]


def start_and_interrupt():
    child = subprocess.Popen([sys.executable, "-c", "import time; print(1); time.sleep(60)"])
    time.sleep(1)
    child.send_signal(signal.SIGINT)
    return child.wait(20)


@pytest.mark.parametrize("backend_type", ["serial", "mcore"])
def test_ctrl_c_keeps_what_has_ended_and_leaves_no_process(tmp_path, backend_type):
    (tmp_path / "program.py").write_text(
        textwrap.dedent(
            f"""
            import time, daskspace
            def wait(x):
                time.sleep(0.1)
            operation = daskspace.operation(wait, grid={{"x": range(600)}}, result_directory="r")
            with daskspace.create_backend("{backend_type}") as backend:
                backend.run(operation)
            """
        )
    )
    program = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    journal = tmp_path / "r" / "journal.jsonl"
    deadline = time.monotonic() + 40
    while not (journal.exists() and journal.read_text().count('"done"') > 3):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(program.pid).children(recursive=True)
    os.killpg(program.pid, signal.SIGINT)
    _, stderr = program.communicate(timeout=30)
    assert program.returncode == -signal.SIGINT, stderr
    assert "KeyboardInterrupt" in stderr
    table = (tmp_path / "r" / "table.csv").read_text()
    assert table.count(",done,") > 3
    assert ("cancelled" in table) == (backend_type == "mcore")  # serial pulls one at a time
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def test_a_program_that_ends_without_retrieve_says_so_and_leaves_no_process(tmp_path):
    program = textwrap.dedent(
        """
        import time, daskspace
        def wait(x):
            time.sleep(0.05)
        backend = daskspace.create_backend("mcore", n_workers=2)
        backend.stage_in(daskspace.operation(wait, grid={"x": range(1000)}))
        backend.execute()
        print([child.pid for child in __import__("psutil").Process().children(recursive=True)])
        """
    )
    ran = python("-c", program, cwd=tmp_path)
    assert "ended while its operation was running" in ran.stderr
    deadline = time.monotonic() + 10
    while left := [pid for pid in json.loads(ran.stdout) if psutil.pid_exists(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_what_other_programs_print_lies_in_the_log_of_the_process_that_started_them(capfd):
    with create_backend("mcore", n_workers=2) as backend:
        op = backend.run(operation(start_echo, grid={"x": range(20)}))
    logs = [path.read_text() for path in Path(op.result_directory, "logs").iterdir()]
    assert sorted(logs) == sorted(f"before\nprogram {x}\nerror {x}\n" for x in range(20))
    assert capfd.readouterr().out == ""


def start_echo(x):
    print("before")
    subprocess.run(["sh", "-c", f"echo program {x}; echo error {x} >&2"], check=True)


def meet(x):
    Path(f"here-{x}").touch()
    deadline = time.monotonic() + 30
    while len(list(Path().glob("here-*"))) < 2:
        assert time.monotonic() < deadline, "nobody else came"
        time.sleep(0.01)


def test_as_many_processes_as_workers_run_at_the_same_time():
    with create_backend("mcore", n_workers=2) as backend:
        backend.run(operation([int]))  # a warm worker has what its next tasks may depend on
        op = backend.run(operation(meet, grid={"x": range(2)}))
    assert [row["state"] for row in op.rows()] == ["done", "done"]
