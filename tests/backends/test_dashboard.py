"""What is seen of an operation on Dask's dashboard, and where that is."""

import contextlib
import gc
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import dask.config
import pytest
from distributed import Client, LocalCluster

from daskspace import DaskBackend, create_backend, operation
from daskspace.backends.links import Dashboard
from daskspace.operations.base import safe_name
from daskspace.results.table import Table
from tests.browser import counts_on, open_page, text_of

from .sites import SITES

pytestmark = pytest.mark.timeout(300)
HERE = socket.gethostname()
HOSTILE = "<img src=x onerror=alert(1)>\n<script>alert(1)</script> ü漢" + "x" * 20


def square(x):
    return {"y": x * x}


def gated(gate, x, note=""):
    if x % 2:
        until = time.monotonic() + 120
        while not Path(gate).exists():
            assert time.monotonic() < until
            time.sleep(0.02)
    if x == 4:
        raise ValueError(HOSTILE)
    return {"y": x}


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"waited for {seconds} s"
        time.sleep(0.05)


def told_by(backend):
    with urllib.request.urlopen(f"{backend.operation_link}.json", timeout=20) as answer:
        return json.load(answer)


def test_the_page_shows_in_a_browser_what_the_table_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gate = str(tmp_path / "gate")
    op = operation(partial(gated, gate), {"x": range(10), "note": [HOSTILE]}, name="squares")
    op.name = HOSTILE.replace("/", "|")
    op.result_directory = "out"
    with create_backend("mcore", n_workers=2) as backend:
        backend.stage_in(op)
        backend.execute()
        wait_until(lambda: told_by(backend)["executing"])
        page = open_page(backend.operation_link)
        counts = counts_on(page)
        assert sum(counts.values()) == 10
        assert counts["running"] == 2
        assert "executing" in text_of(page)
        assert len(backend.cluster.scheduler.task_groups) == 1, "an operation is one group of tasks"
        spans = backend.cluster.scheduler.extensions["spans"].spans_search_by_name
        assert len(spans[(safe_name(op.name),)]) == 1, "and one span"
        Path(gate).touch()
        backend.retrieve()
        backend.consolidate()
        assert op.rows()
        wait_until(lambda: told_by(backend)["operations"][0]["snapshot"]["complete"])
        page = open_page(backend.operation_link)
        assert (
            counts_on(page)
            == Table(Path("out", "journal.jsonl")).counts
            == {"done": 9, "failed": 1}
        )
        text = text_of(page)
        assert text.count(HOSTILE) >= 2, "a parameter and a message are shown as they are"
        assert op.name in text
        assert "<img" not in page
        assert page.count("<script>") == 1
        with urllib.request.urlopen(backend.dashboard_link, timeout=20) as status:
            assert b'href="operation"' in status.read()


def test_the_page_of_a_batch_backend_shows_its_jobs_and_what_the_table_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site, gate = SITES["loadl"](), str(tmp_path / "gate")
    op = operation(partial(gated, gate), {"x": range(6)}, result_directory="out")
    with site.backend(jobs=2) as backend:
        backend.stage_in(op)
        backend.execute()
        wait_until(lambda: len({worker for worker, *_ in told_by(backend)["executing"]}) == 2, 120)
        wait_until(lambda: told_by(backend)["operations"][0]["snapshot"]["jobs"]["running"] == 2)
        wait_until(
            lambda: told_by(backend)["operations"][0]["snapshot"]["counts"].get("running") == 2
        )
        page = open_page(backend.operation_link)
        assert sum(counts_on(page).values()) == 6
        assert counts_on(page)["running"] == 2
        assert "2 submitted, 2 running" in text_of(page)
        Path(gate).touch()
        backend.retrieve()
        backend.consolidate()
        wait_until(lambda: told_by(backend)["operations"][0]["snapshot"]["complete"])
        page = open_page(backend.operation_link)
        assert counts_on(page) == Table(Path("out", "journal.jsonl")).counts
        assert "2 submitted, 2 running" in text_of(page)
        assert backend.operation_link.startswith("http://127.0.0.1:")


class Attached(DaskBackend):
    """Works on a cluster that is somebody else's."""

    def _open_cluster(self):
        client = Client(self.options["address"], set_as_default=False)
        self._resources.callback(client.close)
        return client


def test_the_page_goes_away_with_the_backend_that_put_it_on_a_foreign_cluster(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        scheduler = cluster.scheduler
        before = [*scheduler.http_application.applications], {*scheduler.handlers}
        with Attached(address=cluster.scheduler_address) as first:
            first.run(operation(square, {"x": [1, 2]}, result_directory="first"))
            with Attached(address=cluster.scheduler_address) as second:
                second.run(operation(square, {"x": [3]}, result_directory="second"))
                assert len(told_by(first)["operations"]) == 2
            link = first.operation_link
            assert told_by(first)["operations"][0]["gone"] is True
            join = first.client.scheduler.daskspace_join
            first.client.sync(join, client="Client-that-was-killed")
        assert ([*scheduler.http_application.applications], {*scheduler.handlers}) == before
        assert "daskspace-operation" not in scheduler.plugins
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(link, timeout=20)


OLDER = """
import sys
sys.modules["daskspace.backends.operation_page"] = None
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


def test_a_scheduler_that_cannot_show_the_page_runs_the_operation_all_the_same(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("older.py").write_text(OLDER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "older.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as program:
        address = program.stdout.readline().strip()
        with Attached(address=address) as backend:
            op = operation(square, {"x": [1, 2]}, result_directory="out")
            backend.run(op)
            assert backend.operation_link is None
            assert backend.dashboard_link.startswith("http://127.0.0.1:")
        program.communicate()
    assert [row["y"] for row in op.rows()] == [1, 4]
    assert "without the Operation page: " in Path("out", "operation.log").read_text()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_report_is_saved_when_the_operation_is_stopped_and_a_taken_port_is_no_trouble(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    op = operation(partial(gated, "never"), {"x": [1]}, result_directory="out")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        with create_backend("mcore", n_workers=1, dashboard_address=f"127.0.0.1:{port}") as backend:
            backend.run(op, timeout=1, performance_report=True)
            assert f":{port}/" not in backend.dashboard_link
            assert told_by(backend)["operations"][0]["snapshot"]["counts"] == {"cancelled": 1}
    gc.collect()  # tornado leaves the socket open that found the port taken
    report = Path("out", "performance-report.html").read_text()
    assert "Dask Performance Report" in report
    assert "partial" in report, "it tells what ran"
    assert '<script src="http' not in report


def test_what_has_no_dashboard_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with create_backend("serial", performance_report=True) as backend:
        backend.run(operation(square, {"x": [1]}, result_directory="out"))
        assert backend.dashboard_link is backend.operation_link is backend.tunnel is None
    assert "no performance report: " in Path("out", "operation.log").read_text()
    assert not Path("out", "performance-report.html").exists()
    assert "daskspace-reporter" not in {thread.name for thread in threading.enumerate()}


LOCAL = Dashboard(8787, "10.0.0.5", HERE, "127.0.0.1")
OPEN = Dashboard(8787, "10.0.0.5", HERE, "0.0.0.0")
ELSEWHERE = Dashboard(8787, "10.0.0.7", "node7", "127.0.0.1")


@pytest.fixture
def user(monkeypatch):
    for name in ("JUPYTERHUB_SERVICE_PREFIX", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOGNAME", "anna")
    return monkeypatch


@pytest.mark.parametrize(
    ("dashboard", "link", "tunnel", "over_ssh"),
    [
        (LOCAL, "http://127.0.0.1:8787/status", None, f"ssh -N -L 8787:127.0.0.1:8787 anna@{HERE}"),
        (OPEN, "http://10.0.0.5:8787/status", None, f"ssh -N -L 8787:10.0.0.5:8787 anna@{HERE}"),
        (
            ELSEWHERE,
            "http://127.0.0.1:8787/status",
            "ssh -N -L 8787:127.0.0.1:8787 anna@node7",
            f"ssh -N -J anna@{HERE} -L 8787:127.0.0.1:8787 anna@node7",
        ),
    ],
)
def test_a_link_comes_with_the_tunnel_that_it_needs(user, dashboard, link, tunnel, over_ssh):
    assert (dashboard.link, dashboard.tunnel()) == (link, tunnel)
    user.setenv("SSH_CONNECTION", "192.0.2.1 50000 10.0.0.5 22")
    assert (dashboard.link, dashboard.tunnel()) == (link, over_ssh)


def test_under_jupyterhub_links_go_through_its_proxy(user):
    user.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/anna/")
    user.setenv("SSH_CONNECTION", "192.0.2.1 50000 10.0.0.5 22")
    assert LOCAL.link == "/user/anna/proxy/8787/status"
    assert LOCAL.operation_link == "/user/anna/proxy/8787/operation"
    assert ELSEWHERE.link == "/user/anna/proxy/node7:8787/status"
    assert LOCAL.tunnel() is ELSEWHERE.tunnel() is None


@pytest.mark.parametrize(
    ("template", "link"),
    [
        ("https://site/{USER}/proxy/{port}/status", "https://site/anna/proxy/8787/status"),
        ("{NO_SUCH_NAME}/{port}", "http://127.0.0.1:8787/status"),
    ],
)
def test_the_users_template_is_taken_where_it_can_be(user, template, link):
    user.setenv("USER", "anna")
    user.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/anna/")
    with dask.config.set({"distributed.dashboard.link": template}):
        assert LOCAL.link == link
