"""One MPI job as a Dask cluster: it starts, it ends in every state, and it says what is wrong."""

import asyncio
import contextlib
import importlib.util
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from distributed import Client
from distributed.core import Status

from daskspace.clusters.mpi import MpiCluster
from daskspace.errors import ClusterStartError, ConfigError

from .launchers import LAUNCHERS, command_of, each_launcher, eventually, marked, nothing_left

pytestmark = [pytest.mark.timeout(120)]


@pytest.fixture(autouse=True)
def mark(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "tmp").mkdir()
    with nothing_left() as value:
        yield value
    assert [p.name for p in tmp_path.rglob(".daskspace-mpi-*")] == []


def ranks(mark):
    """The ranks of the job; the worker processes of nannies are spawned, and look different."""
    found = [p for p in marked(mark) if is_rank(p)]
    return sorted(found, key=lambda p: int(rank_of(p)))


def is_rank(process):
    return command_of(process).startswith(f"{sys.executable} -m dask_mpi.cli")


def rank_of(process):
    variables = process.environ()
    return variables.get("OMPI_COMM_WORLD_RANK") or variables["PMI_RANK"]


def fake_launcher(path, text):
    """A program in place of mpiexec, which is asked for its version first."""
    path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{text}")
    path.chmod(0o755)
    return str(path)


FORWARD = 'if "--version" in sys.argv: print("HYDRA"); sys.exit()\n'


# Start and end


@each_launcher
def test_it_starts_computes_and_ends_on_loopback_alone(launcher, mark):
    with MpiCluster(2, launcher=launcher) as cluster, Client(cluster) as client:
        assert cluster.status == Status.running
        assert client.gather(client.map(pow, range(10), [2] * 10)) == [x * x for x in range(10)]
        assert sum(client.gather(client.map(int, range(1000)))) == 499500
        assert len(ranks(mark)) == 3
        with urllib.request.urlopen(cluster.dashboard_link, timeout=10) as page:
            assert page.status == 200
        assert_loopback(client, cluster)
        assert "Scheduler at" in cluster.get_logs()["MPI job"]
        job = cluster._job
        assert list(Path("tmp").glob(".daskspace-mpi-*")) == []
    assert job.exit_status() == 0
    assert cluster.status == Status.closed


def assert_loopback(client, cluster):
    """See that every port of Dask's is bound to 127.0.0.1."""
    info = client.scheduler_info(n_workers=-1)
    addresses = [info["address"]]
    ports = {info["services"]["dashboard"]}
    for address, worker in info["workers"].items():
        addresses += [address, worker["nanny"]]
        ports.add(worker["services"]["dashboard"])
    assert all(address.startswith("tcp://127.0.0.1:") for address in addresses)
    ports |= {int(address.rpartition(":")[2]) for address in addresses}
    listening = {
        port: {c.laddr.ip for c in psutil.net_connections("tcp") if listens_on(c, port)}
        for port in ports
    }
    assert set(map(frozenset, listening.values())) == {frozenset({"127.0.0.1"})}
    assert len(ports) == 2 + 3 * len(info["workers"])


def listens_on(connection, port):
    return connection.status == psutil.CONN_LISTEN and connection.laddr.port == port


@each_launcher
def test_workers_need_no_nanny(launcher):
    with (
        MpiCluster(1, launcher=launcher, worker_class="distributed.Worker") as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(sum, [1, 2]).result() == 3


@each_launcher
def test_workers_may_use_all_cores_and_be_more_than_there_are(launcher):
    number = (os.cpu_count() or 1) + 2
    with MpiCluster(number, launcher=launcher, nthreads=2) as cluster, Client(cluster) as client:
        assert set(client.nthreads().values()) == {2}
        affinities = client.run(lambda: sorted(os.sched_getaffinity(0)))
    assert list(affinities.values()) == [sorted(os.sched_getaffinity(0))] * number


@each_launcher
def test_hosts_may_be_given_by_a_list_or_a_file(launcher):
    Path("hosts").write_text("localhost slots=4\n" if "openmpi" in launcher else "localhost:4\n")
    for where in ({"hosts": ["localhost"]}, {"hostfile": "hosts"}):
        with MpiCluster(1, launcher=launcher, **where) as cluster:
            assert cluster.scheduler_address.startswith("tcp://127.0.0.1:")


def test_settings_come_from_the_configuration_and_reach_the_ranks(tmp_path):
    import dask

    def settings():
        from dask import config

        return config.get("distributed.worker.profile.interval"), os.environ["A"]

    config = {
        "mpi.n-workers": 1,
        "mpi.memory-limit": "300 MB",
        "mpi.local-directory": str(tmp_path / "scratch"),
        "mpi.env": {"A": "b c"},
        "mpi.worker-options": {"resources": {"gpu": 1}},
        "distributed.worker.profile.interval": "77ms",
    }
    with dask.config.set(config), MpiCluster() as cluster, Client(cluster) as client:
        (worker,) = client.scheduler_info(n_workers=-1)["workers"].values()
        assert worker["memory_limit"] == 300_000_000
        assert worker["resources"] == {"gpu": 1}
        assert Path(worker["local_directory"]).is_relative_to(tmp_path / "scratch")
        assert list(client.run(settings).values()) == [("77ms", "b c")]


def test_two_clusters_at_the_same_time_do_not_know_each_other():
    with MpiCluster(1) as one, MpiCluster(1) as two:
        assert one.scheduler_address != two.scheduler_address
        for cluster in (one, two):
            assert len(cluster.scheduler_info["workers"]) == 1


def test_it_can_be_used_in_an_event_loop():
    async def use():
        async with (
            MpiCluster(1, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            return await client.submit(sum, [1, 2])

    assert asyncio.run(use()) == 3


def test_it_may_be_closed_any_number_of_times_and_before_its_start():
    cluster = MpiCluster(1)
    for _ in range(3):
        cluster.close()
    assert cluster.status == Status.closed

    async def never_started():
        cluster = MpiCluster(1, asynchronous=True)
        await cluster.close()
        return cluster.status

    assert asyncio.run(never_started()) == Status.closed


def test_it_ends_while_a_nanny_starts_its_worker_again(mark):
    with MpiCluster(2) as cluster, Client(cluster) as client:
        time.sleep(1)  # what dies sooner is given up by its nanny
        for pid in client.run(os.getpid).values():
            os.kill(pid, signal.SIGKILL)
    assert cluster.status == Status.closed


def test_it_ends_while_its_workers_are_busy():
    with MpiCluster(1) as cluster, Client(cluster) as client:
        future = client.submit(time.sleep, 100)
        eventually(lambda: client.processing() and any(client.processing().values()))
        began = time.monotonic()
        cluster.close()
        assert time.monotonic() - began < 12
        del future


def test_a_memory_limit_holds(tmp_path):
    with (
        MpiCluster(1, memory_limit="400 MB") as cluster,
        Client(cluster) as client,
    ):
        assert client.submit(sum, [1]).result() == 1
        time.sleep(1)
        pid = client.submit(os.getpid, pure=False).result()
        client.submit(lambda: bytearray(900_000_000) and time.sleep(60), retries=0)
        assert eventually(lambda: not psutil.pid_exists(pid), 30)


# Encryption


def test_where_it_listens_wider_it_is_encrypted_and_keys_are_for_the_owner_only(tmp_path):
    look = f"""
config = next(a.partition("=")[2] for a in sys.argv if a.startswith("DASK_CONFIG="))
modes = [oct(os.stat(path).st_mode & 0o777) for path in (config, os.path.dirname(config))]
open("{tmp_path}/modes", "w").write(" ".join(modes))
assert "PRIVATE KEY" in open(config).read()
assert not any("PRIVATE KEY" in text for text in [*sys.argv, *os.environ.values()])
os.execv("{LAUNCHERS["hydra"]}", ["{LAUNCHERS["hydra"]}", *sys.argv[1:]])
"""
    launcher = fake_launcher(tmp_path / "mpiexec", FORWARD + look)
    with MpiCluster(1, launcher=launcher, security=True) as cluster, Client(cluster) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        assert cluster.scheduler_address.startswith("tls://")
        assert client.scheduler_info(n_workers=-1)["workers"].popitem()[0].startswith("tls://")
        plain = cluster.scheduler_address.replace("tls", "tcp")
        with pytest.raises(OSError):
            Client(plain, timeout=2)
    assert (tmp_path / "modes").read_text() == "0o600 0o700"


def test_an_interface_that_is_named_is_encrypted():
    (loopback,) = [
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(a.address == "127.0.0.1" for a in addresses)
    ]
    with MpiCluster(1, interface=loopback) as cluster, Client(cluster) as client:
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        assert client.submit(sum, [1, 2]).result() == 3


# What fails at the start


def test_a_launcher_that_is_not_there_is_named():
    with pytest.raises(ClusterStartError, match=r"'mpirum' not found: see mpi\.launcher"):
        MpiCluster(1, launcher="mpirum -q")


def test_without_a_launcher_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ClusterStartError, match=r"no MPI launcher.*daskspace\[mpi\]"):
        MpiCluster(1)


@pytest.mark.parametrize("module", ["mpi4py", "dask_mpi"])
def test_a_missing_module_is_named(module, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == module else find(name)
    )
    with pytest.raises(ClusterStartError, match=rf"'{module}' is missing: pip install"):
        MpiCluster(1)


@each_launcher
def test_a_flag_that_the_launcher_does_not_know_is_told_with_the_log(launcher):
    with pytest.raises(ClusterStartError, match=r"ended with status \d+ (.|\n)*no-such-flag"):
        MpiCluster(1, launcher=launcher, launcher_args=["--no-such-flag"])


def test_a_host_that_is_not_there_is_told_with_the_log():
    with pytest.raises(ClusterStartError, match="no-such-host"):
        MpiCluster(1, hosts=["no-such-host.invalid"], start_timeout=20)


def test_ranks_that_never_come_are_waited_for_no_longer_than_was_asked(tmp_path):
    launcher = fake_launcher(tmp_path / "mpiexec", FORWARD + "print('I wait'); time.sleep(100)")
    began = time.monotonic()
    with pytest.raises(ClusterStartError, match=r"after 2 s of waiting for the scheduler"):
        MpiCluster(1, launcher=launcher, start_timeout="2s")
    assert time.monotonic() - began < 15


def test_workers_that_never_come_are_counted(tmp_path):
    fewer = f"""
arguments = sys.argv[1:]
arguments[arguments.index("-n") + 1] = "2"
os.execv("{LAUNCHERS["hydra"]}", ["{LAUNCHERS["hydra"]}", *arguments])
"""
    launcher = fake_launcher(tmp_path / "mpiexec", FORWARD + fewer)
    with pytest.raises(ClusterStartError, match=r"waiting for workers \(1 of 2 have come\)"):
        MpiCluster(2, launcher=launcher, start_timeout=8)


@pytest.mark.parametrize(("launcher", "library"), [("hydra", "libmpi.so.40"), ("openmpi", None)])
def test_a_launcher_that_does_not_match_the_library_is_told(launcher, library, monkeypatch):
    if not {"hydra", "openmpi"} <= set(LAUNCHERS):
        pytest.skip("needs MPICH and Open MPI")
    beside = Path(sys.prefix, "lib", "libmpi.so.12")
    if library is None and not beside.exists():
        pytest.skip("needs MPICH beside this Python")
    monkeypatch.setenv("MPI4PY_LIBMPI", library or str(beside))
    with pytest.raises(ClusterStartError, match="do not match"):
        MpiCluster(2, launcher=LAUNCHERS[launcher])


def test_without_an_mpi_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("MPI4PY_LIBMPI", "/no/libmpi.so")
    with pytest.raises(ClusterStartError, match=r"finds no MPI library: pip install"):
        MpiCluster(1)


def test_within_a_rank_it_is_refused(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "4")
    with pytest.raises(ConfigError, match="one of 4 ranks"):
        MpiCluster(1)


@pytest.mark.parametrize("number", [0, -1, 1.5, "two", True])
def test_a_number_of_workers_that_is_none_is_refused(number):
    with pytest.raises(ConfigError, match="n_workers must be a whole number"):
        MpiCluster(number)


def test_a_directory_that_cannot_be_used_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ClusterStartError, match="the directory of the MPI job"):
        MpiCluster(1, directory=str(tmp_path / "file"))


# What is killed


@each_launcher
def test_when_the_scheduler_is_killed_the_cluster_has_failed_and_tells_how(launcher, mark):
    cluster = MpiCluster(2, launcher=launcher)
    ranks(mark)[0].kill()
    assert eventually(lambda: cluster.status == Status.failed, 10)
    assert cluster.end.startswith("the MPI job ended with status ")
    cluster.close()
    assert cluster.status == Status.closed


@each_launcher
def test_when_the_launcher_is_killed_nothing_is_left_after_close(launcher):
    cluster = MpiCluster(2, launcher=launcher)
    os.kill(cluster._job.pid, signal.SIGKILL)
    time.sleep(0.5)
    cluster.close()
    assert cluster.status == Status.closed


OWNER = """
import os, sys, time
from daskspace.clusters.mpi import MpiCluster
cluster = MpiCluster(2, launcher=sys.argv[1], orphan_timeout=2)
print("ready", cluster._job.pid, flush=True)
{then}
"""


@contextlib.contextmanager
def owner(launcher, then="time.sleep(100)"):
    """A program that has a cluster; and its launcher's process number."""
    program = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(then=then), launcher],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        word, _, pid = program.stdout.readline().partition(" ")
        assert word == "ready", program.stderr.read()
        yield program, int(pid)
    finally:
        program.kill()
        program.communicate()


@each_launcher
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_when_the_owner_is_killed_nothing_is_left(launcher, number, mark):
    with owner(launcher) as (program, _):
        program.send_signal(number)
        program.wait(20)
        assert eventually(lambda: not marked(mark), 15)


@each_launcher
def test_when_owner_and_launcher_are_killed_the_scheduler_ends_the_rest(launcher, mark):
    with owner(launcher) as (program, pid):
        os.kill(pid, signal.SIGSTOP)  # so that it passes nothing on
        program.kill()
        os.kill(pid, signal.SIGKILL)
        assert eventually(lambda: not marked(mark), 30)


def test_a_program_that_forgets_to_close_leaves_nothing(mark):
    with owner(LAUNCHERS["hydra"], "del cluster") as (program, _):
        _, errors = program.communicate(timeout=30)
        assert program.returncode == 0
        assert "Traceback" not in errors
        assert eventually(lambda: not marked(mark), 15)


def test_a_cluster_without_a_client_stays_as_long_as_its_owner():
    with MpiCluster(1, orphan_timeout=1) as cluster:
        time.sleep(3)
        assert cluster.status == Status.running
        with Client(cluster) as client:
            assert client.submit(sum, [1, 2]).result() == 3


def test_the_run_directory_is_private_and_where_it_was_asked_for(tmp_path):
    look = f"""
path = next(a for a in sys.argv if a.endswith("scheduler.json"))
open("{tmp_path}/seen", "w").write(os.path.dirname(path))
os.execv("{LAUNCHERS["hydra"]}", ["{LAUNCHERS["hydra"]}", *sys.argv[1:]])
"""
    launcher = fake_launcher(tmp_path / "mpiexec", FORWARD + look)
    modes, started = set(), threading.Event()

    def watch():
        while not started.wait(0.005):
            for path in tmp_path.glob("shared/*/scheduler.json"):
                with contextlib.suppress(OSError):
                    modes.update([path.stat().st_mode & 0o777] if path.stat().st_size else [])

    threading.Thread(target=watch).start()
    with contextlib.ExitStack() as end:
        end.callback(started.set)
        end.enter_context(MpiCluster(1, launcher=launcher, directory=str(tmp_path / "shared")))
        assert modes == {0o600}
        seen = Path((tmp_path / "seen").read_text())
        assert seen.parent == tmp_path / "shared"
        assert not seen.exists()
    assert stat.S_ISDIR((tmp_path / "shared").stat().st_mode)
