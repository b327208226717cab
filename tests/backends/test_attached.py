"""Clusters that others started, which stay as they were, and cluster classes by name."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from pathlib import Path

import cloudpickle
import dask.config
import pytest
from distributed import Client, LocalCluster, Security

from daskspace import (
    ClusterStartError,
    ConfigError,
    DirectoryError,
    OperationError,
    create_backend,
    operation,
)
from daskspace.backends import attached
from daskspace.backends.attached import AttachedBackend, ClassBackend

cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.timeout(240)
BLOCKED = "import sys; sys.modules['daskspace'] = None\n"
"""What makes a program one that lacks daskspace."""
HERE = {"dashboard_address": "127.0.0.1:0"}
THREADS = {"processes": False, "n_workers": 1, "threads_per_worker": 2, **HERE}
"""A cluster that costs little: its worker is a thread."""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def unprofiled():
    """Keep Dask's profiler away from workers that are threads of these tests.

    It looks at all threads a hundred times a second. Where garbage is collected meanwhile and a
    thread begins, Python 3.11.7 stands still for ever (seen once, gh-106883).
    """
    with dask.config.set({"distributed.worker.profile.enabled": False}):
        yield


class Commands:
    """A scheduler and workers that somebody has started by hand, elsewhere."""

    def __init__(self, directory):
        self.directory = directory
        self.file = directory / "scheduler.json"
        self.processes = []

    def start(self, what, *arguments, before=""):
        program = f"{before}from distributed.cli.dask_{what} import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def scheduler(self, before="", port=0):
        where = ("--host", "127.0.0.1", "--port", port, "--dashboard-address", "127.0.0.1:0")
        process = self.start("scheduler", *where, "--scheduler-file", self.file, before=before)
        wait_for(lambda: self.file.exists() and self.file.read_text().endswith("}"))
        return process

    def worker(self, *arguments, before=""):
        where = ("--scheduler-file", self.file, "--host", "127.0.0.1", "--no-dashboard")
        return self.start("worker", *where, *arguments, before=before)

    @property
    def address(self):
        return json.loads(self.file.read_text())["address"]

    def close(self):
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def commands(directory):
    started = Commands(directory)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A scheduler, a worker with a nanny, and one with two threads and without."""
    with commands(tmp_path_factory.mktemp("foreign")) as started:
        started.scheduler()
        started.worker("--nthreads", 1)
        started.worker("--nthreads", 2, "--no-nanny")
        with Client(started.address, set_as_default=False) as started.client:
            started.client.wait_for_workers(2, timeout=60)
            yield started


def wait_for(ask, within=60):
    until = time.monotonic() + within
    while not (answer := ask()):
        assert time.monotonic() < until, "it has not come"
        time.sleep(0.05)
    return answer


def square(x):
    return {"y": x * x, "worker": os.getppid()}


def squares(n=20):
    return operation(square, grid={"x": range(n)})


def check(op, n=20):
    assert [row["y"] for row in op.rows()] == [x * x for x in range(n)]


def traces(client):
    """What one could tell by that somebody is, or was, there."""

    def of_scheduler(dask_scheduler):
        return (
            sorted(map(str, dask_scheduler.tasks)),
            sorted(dask_scheduler.plugins),
            sorted(dask_scheduler.worker_plugins),
            sorted(dask_scheduler.nanny_plugins),
            sorted(dask_scheduler.clients),
            sorted(dask_scheduler.extensions["publish"].datasets),
        )

    def of_worker(dask_worker):
        import os
        import signal
        import sys

        return (
            os.getpid(),
            os.getcwd(),
            list(sys.path),
            sorted(dask_worker.plugins),
            str(signal.getsignal(signal.SIGINT)),
            sorted(child.pid for child in __import__("psutil").Process().children()),
        )

    return client.run_on_scheduler(of_scheduler), client.run(of_worker)


def has_no_tasks(client):
    return not client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))


@contextlib.contextmanager
def left_as_it_was(client):
    wait_for(lambda: has_no_tasks(client))
    before = traces(client)
    yield
    assert client.status == "running"
    wait_for(lambda: has_no_tasks(client))
    assert traces(client) == before
    assert client.submit(sum, [1, 2], pure=False).result(timeout=30) == 3


# What we attach to


@pytest.mark.parametrize("how", ["address", "scheduler file", "client", "environment"])
def test_a_cluster_of_others_runs_operations_and_stays_as_it_was(foreign, monkeypatch, how):
    client = foreign.client
    make = {
        "address": lambda: AttachedBackend(foreign.address),
        "scheduler file": lambda: AttachedBackend(scheduler_file=foreign.file),
        "client": lambda: AttachedBackend(client),
        "environment": AttachedBackend,
    }[how]
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", foreign.address)
    with left_as_it_was(client):
        with make() as backend:
            assert str(backend) == "AttachedBackend"
            for _ in range(2):
                check(backend.run(squares()))
            assert backend.dashboard_link == client.dashboard_link
            assert (backend.client is client) == (how == "client")
            assert backend.check_status().workers == 2
        assert backend.client is None


def test_a_live_cluster_stays_open_and_its_users_go_on_meanwhile():
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, host="127.0.0.1", **HERE) as cluster,
        Client(cluster, set_as_default=False) as client,
        left_as_it_was(client),
        AttachedBackend(cluster) as backend,
    ):
        op = squares()
        backend.stage_in(op)
        backend.execute()
        assert client.submit(sum, [3, 4]).result(timeout=30) == 7
        backend.retrieve()
        backend.consolidate()
        check(op)
        assert backend.cluster is cluster
        backend.close()


def test_workers_that_are_threads_of_this_program_will_do():
    with LocalCluster(**THREADS) as cluster:
        assert cluster.scheduler_address.startswith("inproc://")
        before = signal.getsignal(signal.SIGINT)
        with AttachedBackend(cluster.scheduler_address) as backend:
            check(backend.run(squares()))
        assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("isolation", ["none", "fresh"])
def test_what_an_isolation_needs_at_a_worker_ends_with_it(foreign, isolation):
    backend = AttachedBackend(foreign.file, isolation=isolation)
    with left_as_it_was(foreign.client), backend:
        check(backend.run(squares()))
        backend.close()


def test_a_scheduler_file_may_still_be_written(foreign, here):
    path = here / "scheduler.json"
    path.write_text('{"type": "Sche')
    writer = threading.Timer(0.5, path.write_text, [foreign.file.read_text()])
    writer.start()
    with AttachedBackend(path) as backend:
        check(backend.run(squares()))
    writer.join()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file"),
        ("{}", "holds no address"),
        ("[1]", "holds no address"),
        ('{"address": "tcp://127.0.0.1:1"}', "no scheduler answers"),
    ],
)
def test_a_scheduler_file_of_no_use_is_named(here, content, why):
    path = here / "stale.json"
    if content is not None:
        path.write_text(content)
    backend = AttachedBackend(path, client_kwargs={"timeout": 0.5})
    threads = threading.active_count()
    with pytest.raises(ClusterStartError, match=why) as caught:
        backend.stage_in(squares())
    assert str(path) in str(caught.value)
    assert backend.state == "idling"
    wait_for(lambda: threading.active_count() <= threads, within=20)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "which cluster"),
        ({"target": "tcp://h:1", "scheduler_file": "s.json"}, "target and scheduler_file"),
        ({"address": "s.json"}, "no address"),
        ({"target": 5}, "no client, cluster, address or scheduler file"),
        ({"target": "tcp://h:1", "n_workers": 2}, "no option 'n_workers'"),
        ({"target": "tcp://h:1", "client_kwargs": {"asynchronous": True}}, "asynchronous=True"),
        ({"target": "tcp://h:1", "client_kwargs": {"timout": 1}}, "did you mean 'timeout'"),
    ],
)
def test_what_cannot_be_attached_to_is_refused_at_once(monkeypatch, options, why):
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=why):
        AttachedBackend(**options)


def test_the_address_in_dasks_config_is_one(foreign):
    with dask.config.set({"scheduler-address": foreign.address}), AttachedBackend() as backend:
        check(backend.run(squares()))


def test_what_is_for_asynchronous_use_is_refused():
    async def give_it_one():
        async with LocalCluster(asynchronous=True, **THREADS) as cluster:
            with pytest.raises(ConfigError, match="is for asynchronous use"):
                AttachedBackend(cluster)
            async with Client(cluster, asynchronous=True, set_as_default=False) as client:
                with pytest.raises(ConfigError, match="is for asynchronous use"):
                    AttachedBackend(client)

    asyncio.run(give_it_one())


def test_a_client_that_was_closed_is_refused(foreign):
    with Client(foreign.address, set_as_default=False) as client:
        pass
    with pytest.raises(ClusterStartError, match="is closed"):
        AttachedBackend(client).stage_in(squares())


# Who may talk to whom


@pytest.fixture(scope="module")
def keys():
    return Security.temporary()


@pytest.fixture(scope="module")
def secure(keys):
    with LocalCluster(security=keys, protocol="tls", host="127.0.0.1", **THREADS) as cluster:
        yield cluster.scheduler_address


def test_a_scheduler_with_tls_takes_those_who_have_its_keys(secure, keys, here):
    with AttachedBackend(secure, security=keys) as backend:
        op = backend.run(squares())
    check(op)
    environment = Path(op.result_directory, "environment.json").read_text()
    assert "PRIVATE KEY" not in environment


def test_the_keys_in_dasks_config_are_used(secure, keys, here):
    files = {"ca-file": keys.tls_ca_file}
    for part in ("cert", "key"):
        (here / part).write_text(getattr(keys, f"tls_client_{part}"))
        files[part] = str(here / part)
    (here / "ca").write_text(files["ca-file"])
    config = {"ca-file": str(here / "ca"), "client": {p: files[p] for p in ("cert", "key")}}
    settings = {f"distributed.comm.tls.{name}": value for name, value in config.items()}
    with dask.config.set(settings), AttachedBackend(secure) as backend:
        check(backend.run(squares()))


@pytest.mark.parametrize(
    ("scheme", "has_keys", "why"),
    [
        ("tls", True, "not made with our keys"),
        ("tls", False, "needs keys"),
        ("tcp", False, "begins with tls://"),
    ],
)
def test_a_scheduler_with_other_keys_is_refused_and_it_is_said_why(secure, scheme, has_keys, why):
    address = secure.replace("tls", scheme)
    security = Security.temporary() if has_keys else None
    backend = AttachedBackend(address, security=security, client_kwargs={"timeout": 5})
    with pytest.raises(ClusterStartError, match=why) as caught:
        backend.stage_in(squares())
    assert address in str(caught.value)
    assert backend.state == "idling"


@pytest.mark.parametrize(
    ("address", "is_exposed"),
    [
        ("tcp://127.0.0.1:8786", False),
        ("tcp://localhost:8786", False),
        ("tcp://[::1]:8786", False),
        ("127.0.0.1:8786", False),
        ("inproc://192.0.2.1/1/1", False),
        ("tls://192.0.2.1:8786", False),
        ("wss://192.0.2.1:8786", False),
        ("tcp://192.0.2.1:8786", True),
        ("ws://192.0.2.1:8786", True),
        ("ucx://192.0.2.1:8786", True),
        ("tcp://[2001:db8::1]:8786", True),
        ("tcp://no-such-host.invalid:8786", True),
    ],
)
def test_what_others_can_reach_without_keys_is_known(address, is_exposed):
    assert attached._is_exposed(address) == is_exposed


def test_a_scheduler_on_the_network_without_tls_is_said_once(foreign, caplog):
    warnings = lambda: [r for r in caplog.records if r.levelno >= logging.WARNING]  # noqa: E731
    with AttachedBackend(foreign.address) as backend:
        backend.run(squares())
    assert not warnings()
    with AttachedBackend(foreign.address.replace("127.0.0.1", "0.0.0.0")) as backend:
        for _ in range(2):
            op = backend.run(squares())
            assert Path(op.result_directory, "operation.log").read_text().count("without TLS") == 1
    assert ["without TLS" in record.message for record in warnings()] == [True]


# Who can run operations


def test_workers_that_lack_daskspace_are_named_and_keep_their_cluster(foreign):
    lacking = foreign.worker("--no-nanny", "--nthreads", 1, before=BLOCKED)
    foreign.client.wait_for_workers(3, timeout=60)
    others = set(foreign.client.run(os.getpid, on_error="ignore"))
    pids = foreign.client.run(os.getpid)
    (theirs,) = [worker for worker, pid in pids.items() if pid == lacking.pid]
    try:
        with left_as_it_was(foreign.client), pytest.raises(ClusterStartError) as caught:
            AttachedBackend(foreign.address).stage_in(squares())
        assert f"worker {theirs} cannot run operations (ModuleNotFoundError" in str(caught.value)
    finally:
        lacking.terminate()
        lacking.wait(20)
        wait_for(lambda: set(foreign.client.run(os.getpid, on_error="ignore")) < others)


def test_a_scheduler_that_lacks_daskspace_is_named(here):
    with commands(here) as started:
        started.scheduler(before=BLOCKED)
        with pytest.raises(ClusterStartError, match="the scheduler cannot run operations"):
            AttachedBackend(started.file).stage_in(squares())


def versions(**others):
    ours = {"python": "3.11.7.final.0", "dask": "2026.8.0", "distributed": "2026.8.0"}
    told = {"packages": ours}
    workers = {name: {"packages": {**ours, **changed}} for name, changed in others.items()}
    return {"client": told, "scheduler": told, "workers": {"w0": told, **workers}}


def test_another_python_is_refused_and_another_dask_is_said():
    assert attached._differences(versions(w1={"python": "3.11.9.final.0"})) == []
    (said,) = attached._differences(versions(w1={"dask": "2025.1.0"}))
    assert said == "dask 2025.1.0 on worker w1, here it is 2026.8.0"
    changed = {f"w{n}": {"python": "3.12.1.final.0"} for n in range(1, 6)}
    with pytest.raises(ClusterStartError, match=r"workers w1, w2, w3 and 2 more .*\(Python 3.12"):
        attached._differences(versions(**changed))


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="needs /proc")
def test_a_result_directory_that_workers_do_not_see_is_said(foreign, here, monkeypatch):
    monkeypatch.setattr(attached, "_SEEN_S", 0.5)
    op = operation(square, grid={"x": range(3)}, result_directory="/proc/self/cwd/out")
    with left_as_it_was(foreign.client), AttachedBackend(foreign.address) as backend:
        with pytest.raises(DirectoryError, match=r"workers .* cannot use the result directory"):
            backend.stage_in(op)
        assert not (here / "out").exists()
        check(backend.run(squares()))
        backend.close()


# Losses and ends


def slow(x, pids):
    Path(pids, f"{x}-{os.getpid()}").touch()
    time.sleep(0.2)
    return {"y": x * x}


def test_a_worker_that_is_killed_costs_nothing_but_time(here):
    (here / "pids").mkdir()
    with commands(here) as started:
        started.scheduler()
        victim, _ = started.worker("--no-nanny", "--nthreads", 1), started.worker("--nthreads", 1)
        with AttachedBackend(started.file) as backend:
            op = operation(slow, grid={"x": range(20), "pids": [str(here / "pids")]})
            backend.stage_in(op)
            wait_for(lambda: len(backend.client.nthreads()) == 2)
            backend.execute()
            wait_for(lambda: any((here / "pids").iterdir()))
            victim.kill()
            backend.retrieve()
            backend.consolidate()
            check(op)


def test_a_scheduler_that_is_killed_ends_the_operation_which_can_be_resumed(here):
    (here / "pids").mkdir()
    pids = {"pids": [str(here / "pids")]}
    with commands(here) as started:
        scheduler = started.scheduler()
        started.worker("--nthreads", 1)
        backend = AttachedBackend(started.file, client_kwargs={"timeout": 1})
        op = operation(slow, grid={"x": range(12), **pids}, result_directory="out")
        with backend, pytest.raises(OperationError, match="no scheduler answers") as caught:
            backend.stage_in(op)
            backend.execute()
            wait_for(lambda: any((here / "pids").iterdir()))
            scheduler.kill()
            backend.retrieve()
        assert str(started.file) in str(caught.value)
    again = operation(slow, grid={"x": range(12), **pids}, result_directory="out", resume=True)
    check(create_backend("serial").run(again), 12)


def test_a_scheduler_that_comes_back_is_found_again(here):
    (here / "pids").mkdir()
    with commands(here) as started:
        scheduler, _ = started.scheduler(), started.worker("--nthreads", 1)
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "90s"}),
            Client(started.address, set_as_default=False) as client,
            AttachedBackend(client) as backend,
        ):
            op = operation(slow, grid={"x": range(20), "pids": [str(here / "pids")]})
            backend.stage_in(op)
            backend.execute()
            wait_for(lambda: any((here / "pids").iterdir()))
            port = started.address.rpartition(":")[2]
            scheduler.kill()
            scheduler.wait()
            started.file.unlink()
            started.scheduler(port=port)
            started.worker("--nthreads", 1)
            backend.retrieve()
            backend.consolidate()
            check(op)
            assert client.status == "running"


def test_a_cluster_without_workers_is_not_waited_for_twice(here):
    with commands(here) as started:
        started.scheduler()
        backend = AttachedBackend(started.file, no_workers_timeout=1)
        with backend, pytest.raises(OperationError, match="not ours to start any"):
            backend.run(squares())


PROGRAM = """
    import os, time
    from distributed import Client, LocalCluster
    from daskspace import operation
    from daskspace.backends.attached import AttachedBackend

    def work(x):
        time.sleep(1)
        return 2 * x

    if __name__ == "__main__":
        cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        )
        client = Client(cluster)
        pids = client.run(os.getpid)
        try:
            with AttachedBackend(client) as backend:
                backend.stage_in(operation(work, grid={"x": range(50)}))
                backend.execute()
                while not any(client.processing().values()):
                    time.sleep(0.01)
                print("begun", flush=True)
                backend.retrieve()
        except KeyboardInterrupt:
            print("interrupted", client.run(os.getpid) == pids)
        print(client.submit(sum, [1, 2]).result(timeout=20), flush=True)
        client.close()
        cluster.close()
"""


def test_ctrl_c_in_the_terminal_of_a_users_own_cluster_leaves_its_workers(here):
    (here / "program.py").write_text(textwrap.dedent(PROGRAM))
    program = subprocess.Popen(
        [sys.executable, "program.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert program.stdout.readline() == "begun\n"
        os.killpg(program.pid, signal.SIGINT)
        told, errors = program.communicate(timeout=90)
    finally:
        program.kill()
    assert told == "interrupted True\n3\n", errors
    assert program.returncode == 0


def test_what_runs_in_place_cannot_be_stopped_there_and_that_is_said(foreign, here, caplog):
    def wait(gate):
        Path(gate, "begun").touch()
        until = time.monotonic() + 60
        while not Path(gate, "open").exists() and time.monotonic() < until:
            time.sleep(0.05)

    pids = foreign.client.run(os.getpid)
    with AttachedBackend(foreign.client, isolation="none") as backend:
        op = operation(wait, grid={"gate": [str(here)]})
        backend.stage_in(op)
        backend.execute()
        wait_for((here / "begun").exists)
        backend.cleanup()
        assert "cannot be stopped from here, and goes on" in caplog.text
    assert foreign.client.run(os.getpid) == pids
    (here / "open").touch()


# Cluster classes


@pytest.mark.parametrize(
    "named",
    [
        LocalCluster,
        lambda **keywords: LocalCluster(**keywords),
        "distributed:LocalCluster",
        "distributed.deploy.local.LocalCluster",
    ],
    ids=["class", "function", "colon", "dot"],
)
def test_a_cluster_class_is_opened_and_closed(named):
    with ClassBackend(named, client_kwargs={"name": "ours"}, **THREADS) as backend:
        assert backend.cluster is None
        check(backend.run(squares()))
        cluster = backend.cluster
        assert backend.client.id.startswith("Client-ours-")
        with urllib.request.urlopen(backend.dashboard_link, timeout=30) as page:
            assert page.status == 200
    assert cluster.status.name == "closed"


def test_a_cluster_that_adapts_comes_and_goes():
    options = {**THREADS, "n_workers": 0}
    with ClassBackend(
        LocalCluster, adapt={"maximum": 1, "interval": "100ms"}, **options
    ) as backend:
        check(backend.run(squares()))


def test_a_cluster_class_that_starts_no_workers_is_not_waited_for():
    backend = ClassBackend(LocalCluster, **{**THREADS, "n_workers": 0})
    with pytest.raises(ClusterStartError, match="starts no workers by itself: give n_workers"):
        backend.stage_in(squares())


def picky(n_workers):
    raise TypeError(f"it takes no {n_workers}")


def returns_nothing():
    pass


@pytest.mark.parametrize(
    ("named", "options", "why"),
    [
        ("distributed:LocalClutser", {}, "did you mean 'LocalCluster'"),
        ("no_such_package_at_all:X", {}, "cannot be imported: ModuleNotFoundError"),
        ("LocalCluster", {}, "no name of a class"),
        ("distributed:__version__", {}, "no class or function"),
        (LocalCluster, {"asynchronous": True}, "asynchronous=True"),
        (picky, {"n_wrokers": 1}, "did you mean 'n_workers'"),
        (picky, {}, "missing a required argument: 'n_workers'"),
        (picky, {"n_workers": 1, "retries": -1}, "retries must be"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_at_once(named, options, why):
    with pytest.raises(ConfigError, match=why):
        ClassBackend(named, **options)


@pytest.mark.parametrize(
    ("made", "options", "why"),
    [
        (picky, {"n_workers": 7}, "picky did not start: TypeError: it takes no 7"),
        (returns_nothing, {}, "returned None, which is no Dask cluster"),
        (LocalCluster, {"n_wrokers": 1, "processes": False, **HERE}, "'n_wrokers'"),
    ],
)
def test_an_error_of_the_class_is_told_in_a_sentence(made, options, why):
    backend = ClassBackend(made, **options)
    with pytest.raises(ClusterStartError, match=why) as caught:
        backend.stage_in(squares())
    assert "\n" not in str(caught.value)
