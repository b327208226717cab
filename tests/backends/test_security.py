"""Who can reach what runs: nobody else on a machine of one's own, elsewhere nobody without keys."""

import asyncio
import contextlib
import ipaddress
import os
import socket
import ssl
import stat
import tempfile
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from cloudpickle import dumps
from distributed import Security
from distributed.core import connect

from daskspace import ClusterStartError, ConfigError, create_backend, operation
from daskspace.clusters.listening import dashboard_at, is_local, worker_arguments

from .backends_under_test import BACKENDS_UNDER_TEST

pytestmark = pytest.mark.timeout(300)


def wide_interface():
    """Return an interface that others reach this machine by, if there is one."""
    return next((name for name in psutil.net_if_addrs() if not is_local(None, name)), None)


OPENED = {
    **BACKENDS_UNDER_TEST,
    "mcore for all": partial(create_backend, "mcore", n_workers=2, host="0.0.0.0"),
    "mpi for all": partial(BACKENDS_UNDER_TEST["mpi"], interface=wide_interface(), protocol="tls"),
}
ENCRYPTED = {"mcore for all", "mpi for all", "loadl", "slurm"}


class Opened:
    """A backend that works, and what came into being with it."""

    def __init__(self, name, backend, before):
        self.name, self.backend, self._before = name, backend, before

    def addresses(self):
        """Return where scheduler, workers and nannies of Dask's can be reached."""
        if self.backend.client is None:
            return {}
        info = self.backend.client.scheduler_info(n_workers=-1)
        workers = info["workers"].items()
        return {
            "scheduler": info["address"],
            "worker": next(address for address, _ in workers),
            **{f"worker {w['name']}": address for address, w in workers},
            **{f"nanny {w['name']}": w["nanny"] for _, w in workers if w["nanny"]},
        }

    def listening(self):
        """Return what its processes listen on: who, address, port."""
        found = set()
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, and listens no more
                for entry in process.net_connections("inet"):
                    if entry.status == psutil.CONN_LISTEN:
                        found.add((process.name(), entry.laddr.ip, entry.laddr.port))
        return {entry for entry in found if entry[1:] not in self._before}

    def _processes(self):
        me = psutil.Process()
        processes = {me, *me.children(recursive=True)}
        if self.backend.client is not None:
            for pid in self.backend.client.run(os.getpid).values():
                worker = psutil.Process(pid)
                processes |= {worker, worker.parent(), *worker.children(recursive=True)}
        return processes


def hold(directory, x):
    Path(directory, f"began-{x}").touch()
    until = time.monotonic() + 250
    while not Path(directory, "enough").exists() and time.monotonic() < until:
        time.sleep(0.05)


def listening_here():
    me, found = psutil.Process(), set()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = process.net_connections("inet")
            found |= {tuple(c.laddr) for c in connections if c.status == "LISTEN"}
    return found


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.xdist_group("slurm") if name == "slurm" else [])
        for name in OPENED
    ],
)
def opened(request, tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    umask = os.umask(0)
    try:
        backend = OPENED[request.param]()  # which starts a batch system, but no cluster
        opened = Opened(request.param, backend, listening_here())
        with backend:
            backend.stage_in(operation(partial(hold, place), grid={"x": [1]}))
            if request.param == "serial":  # which runs it in `execute`
                (place / "enough").touch()
            backend.execute()
            until = time.monotonic() + 120
            while not (place / "began-1").exists():
                assert time.monotonic() < until, backend.check_status()
                time.sleep(0.05)
            yield opened
            (place / "enough").touch()
            backend.retrieve(100)
            assert backend.check_status().counts == {"done": 1}
    finally:
        os.umask(umask)
    left = [path for path in place.rglob(".daskspace-*") if path.exists()]
    assert not left, "keys were left"


def test_others_reach_nothing_but_what_needs_keys_and_nobody_else_has_them(opened, tmp_path):
    check_listening(opened)
    check_modes_of_keys(opened)
    if opened.name in ENCRYPTED:
        (tmp_path / "made").mkdir()
        check_strangers(opened, tmp_path / "made")


def check_listening(opened):
    addresses = opened.addresses().values()
    comms = {int(a.rpartition(":")[2]) for a in addresses}
    encrypted = {int(a.rpartition(":")[2]) for a in addresses if a.startswith("tls://")}
    listening = opened.listening()
    for who, address, port in listening:
        is_open = not ipaddress.ip_address(address).is_loopback
        if is_open and str(opened.backend) == "MpiBackend" and port not in comms:
            continue  # of MPI's own, see docs/security.md
        assert not is_open or port in encrypted, f"{who} listens on {address}:{port}"
    assert comms <= {port for _, _, port in listening}
    if opened.backend.client is not None:
        assert len(listening) > len(comms), "the dashboard has not been seen"


def check_modes_of_keys(opened):
    """See that keys are for their owner; the umask was 0."""
    for path in Path().rglob(".daskspace-*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
        assert set(modes.values()) == {0o600}
        assert {"key.pem", "cert.pem"} <= set(modes)
    if str(opened.backend) in ("LoadLevelerBackend", "SlurmBackend"):
        assert list(Path().glob(".daskspace-*"))


def check_strangers(opened, tmp_path):
    """See that a stranger can neither connect nor run code, where we can."""
    addresses = opened.addresses()
    assert {role.split()[0] for role in addresses} == {"scheduler", "worker", "nanny"}
    own = opened.backend.client.security.get_connection_args("client")
    no_keys = ssl.create_default_context()
    no_keys.check_hostname, no_keys.verify_mode = False, ssl.CERT_NONE
    strangers = {
        "other keys": ("tls", Security.temporary().get_connection_args("client")),
        "no keys": ("tls", {"ssl_context": no_keys, "require_encryption": True}),
        "no encryption": ("tcp", {}),
    }

    async def attempts():
        for role, address in addresses.items():  # this is what a stranger would do, with keys
            made = tmp_path / f"own-{role}"
            await run_code(role, address, made, own)
            assert made.exists()
        tried = {}
        for name, (protocol, arguments) in strangers.items():
            for role, address in addresses.items():
                there = address.replace("tls", protocol, 1)
                tried[name, role] = run_code(role, there, tmp_path / f"{name}-{role}", arguments)
        return dict(
            zip(tried, await asyncio.gather(*tried.values(), return_exceptions=True), strict=True)
        )

    for who, came in asyncio.run(attempts()).items():
        assert isinstance(came, OSError | ssl.SSLError), f"{who}: {came!r}"
    assert {path.name for path in tmp_path.iterdir()} == {f"own-{role}" for role in addresses}
    for address in addresses.values():
        assert_silent(address)


async def run_code(role, address, made, arguments):
    """Have a server of Dask's make a file, over a connection of our own."""
    comm = await connect(address, timeout=3, **arguments)
    try:
        message = {
            "op": "run_function" if role == "scheduler" else "run",
            "function": dumps(made.touch),
            "args": dumps(()),
            "kwargs": dumps({}),
            "wait": True,
            "reply": True,
        }
        await comm.write(message)
        return await asyncio.wait_for(comm.read(), 20)
    finally:
        comm.abort()


def assert_silent(address):
    """See that a server says nothing to who has no keys, in TLS and without."""
    host, _, port = address.removeprefix("tls://").rpartition(":")
    for data in (b"GET / HTTP/1.0\r\n\r\n", b"\0" * 64):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            said = b""
            try:
                connection.sendall(data)
                said = connection.recv(100)
            except ConnectionError:
                pass
            assert said[:1] in (b"", b"\x15"), said  # an alert of TLS


# What is asked for


def test_local_traffic_is_encrypted_where_that_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with create_backend("mcore", n_workers=1, protocol="tls") as backend:
        op = backend.run(operation([int]))
        assert backend.cluster.scheduler_address.startswith("tls://127.0.0.1:")
        assert next(iter(backend.client.nthreads())).startswith("tls://127.0.0.1:")
    assert [row["state"] for row in op.rows()] == ["done"]
    assert "PRIVATE KEY" not in Path(op.result_directory, "environment.json").read_text()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mcore", {"host": "0.0.0.0", "protocol": "tcp"}),
        ("mcore", {"host": "tcp://0.0.0.0"}),
        ("mcore", {"scheduler_kwargs": {"host": ""}, "protocol": "tcp"}),
        ("mcore", {"host": "0.0.0.0", "security": False}),
        ("mcore", {"ip": "0.0.0.0", "protocol": "tcp"}),
        ("mcore", {"interface": "no-such", "protocol": "tcp"}),
        ("mcore", {"host": "0.0.0.0", "protocol": "ws"}),
        ("mcore", {"host": "0.0.0.0", "processes": False, "protocol": "tcp"}),
        ("mpi", {"interface": "eth0", "protocol": "tcp"}),
        ("mpi", {"worker_options": {"interface": "eth0"}, "protocol": "tcp"}),
        ("mpi", {"hosts": ["elsewhere"], "n_workers": 1, "security": False}),
        ("slurm", {"protocol": "tcp"}),
        ("slurm", {"protocol": "ucx://"}),
        ("slurm", {"security": False}),
        ("slurm", {"scheduler_options": {"protocol": "tcp", "security": None}}),
    ],
)
def test_what_others_could_use_is_refused_unless_it_is_asked_for(
    name, options, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    size = {"cores": 1, "memory": "1 GB"} if name == "slurm" else {}
    with (
        create_backend(name, **size, **options) as backend,
        pytest.raises(ConfigError, match="insecure=True"),
    ):
        backend.stage_in(operation([int]))
    assert os.listdir() == []


def test_keys_cannot_be_taken_from_the_scheduler_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kwargs = {"security": None, "protocol": "tcp"}
    with (
        create_backend("mcore", host="0.0.0.0", scheduler_kwargs=kwargs) as backend,
        pytest.raises(ConfigError, match="not in scheduler_kwargs"),
    ):
        backend.stage_in(operation([int]))


def test_plain_tcp_for_others_works_where_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with create_backend("mcore", n_workers=1, host="0.0.0.0", insecure=True) as backend:
        op = backend.run(operation([int]))
        assert backend.cluster.scheduler_address.startswith("tcp://")
    assert [row["state"] for row in op.rows()] == ["done"]


@pytest.mark.parametrize("dashboard", [":0", None, 0])
def test_workers_that_are_threads_and_a_dashboard_by_its_port_listen_here(
    dashboard, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = listening_here()
    with create_backend("mcore", processes=False, dashboard_address=dashboard) as backend:
        backend.run(operation([int]))
        assert {address for address, _ in listening_here() - before} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("given", "there"),
    [
        (8787, "127.0.0.1:8787"),
        (":8787", "127.0.0.1:8787"),
        ("8787", "127.0.0.1:8787"),
        (None, "127.0.0.1:0"),
        (("", 8787), "127.0.0.1:8787"),
        (":8787,:8788", "127.0.0.1:8787,127.0.0.1:8788"),
        ([8787, "node:1"], "127.0.0.1:8787,node:1"),
        ("0.0.0.0:8787", "0.0.0.0:8787"),
        ("node", "node"),
    ],
)
def test_a_dashboard_by_its_port_alone_is_one_of_this_machine(given, there):
    assert dashboard_at(given) == there
    assert worker_arguments(["--x", "--dashboard-address=:1"])[-1].endswith("=127.0.0.1:1")


@pytest.mark.parametrize(
    ("host", "local"),
    [
        *((host, True) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost", "[::1]:80")),
        *((host, True) for host in ("tls://127.0.0.1:0", None)),
        *((host, False) for host in ("", "0.0.0.0", "::", "tcp://0.0.0.0:80", "192.0.2.1")),
        *((host, False) for host in ("no-such-host.invalid", "x" * 300)),
    ],
)
def test_a_host_is_local_if_it_is_sure_to_be(host, local):
    assert is_local(host, None) is local


# What is left, and what is made of values


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("slurm", {"scheduler_options": {"no_such_option": 1}}),
        ("mpi", {"n_workers": 1, "protocol": "tls", "start_timeout": 0.01, "directory": "."}),
    ],
)
def test_a_start_that_fails_leaves_no_keys(name, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    size = {"cores": 1, "memory": "1 GB"} if name == "slurm" else {}
    with create_backend(name, **size, **options) as backend, pytest.raises(ClusterStartError):
        backend.stage_in(operation([int]))
    assert not [path for path in Path().rglob("*") if "daskspace" in path.name]


@pytest.mark.parametrize(
    "options",
    [
        {"name": "x; touch hacked"},
        {"protocol": "tls; touch hacked"},
        {"death_timeout": "60; touch hacked"},
        {"extra": ["`touch hacked`"]},
        {"worker_command": "dask_worker | tee"},
        {"job_extra_directives": {"+Extra": "1\ntouch hacked"}},
        {"job_extra_directives": ["--hold\ntouch hacked"]},
        {"account": "me\ntouch hacked"},
    ],
)
def test_no_option_becomes_a_command_of_the_job_script(options):
    with pytest.raises(ConfigError, match=f"{next(iter(options))}: .* would run as a command"):
        create_backend("slurm", cores=1, memory="1GB", **options)


def test_a_directory_that_a_shell_would_read_differently_gets_no_keys(tmp_path, monkeypatch):
    place = tmp_path / "a b; touch hacked"
    place.mkdir()
    monkeypatch.chdir(place)
    with (
        create_backend("slurm", cores=1, memory="1GB") as backend,
        pytest.raises(ConfigError, match="give another directory as shared_temp_directory"),
    ):
        backend.stage_in(operation([int]))
    assert os.listdir() == []
