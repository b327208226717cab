"""The page ``/operation`` on Dask's dashboard, served by the scheduler."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distributed import Scheduler, SchedulerPlugin
from tornado.web import Application, RequestHandler

NAME = "operation"
_KEPT = 4
_PAGE = Path(__file__).with_name("operation.html")
_LARGEST = 1 << 20


class OperationPage(SchedulerPlugin):
    """Puts the page on a scheduler's dashboard, for all clients that have operations there.

    It keeps the latest snapshot of each operation, the last four of them, and parses none; what
    runs where just now is known to the scheduler. With its last client the page goes away.
    """

    name = "daskspace-operation"
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Add the page, and what it is told by."""
        self._scheduler = scheduler
        self._snapshots: dict[str, tuple[str, float, str]] = {}
        self._clients: set[str] = set()
        self._application = Application(
            [
                (rf"(?:/.*)?/{NAME}/?", _Page),
                (rf"(?:/.*)?/{NAME}\.json", _Told, {"page": self}),
            ]
        )
        scheduler.http_application.add_application(self._application)
        scheduler.handlers["daskspace_join"] = self.join
        scheduler.handlers["daskspace_show"] = self.show
        scheduler.handlers["daskspace_leave"] = self.leave
        with contextlib.suppress(Exception):  # without bokeh there are no other pages
            _pages_of(scheduler).insert(1, NAME)

    def join(self, client: str) -> dict[str, Any]:
        """Take on a client; return on which host and address the dashboard listens."""
        self._clients.add(client)
        server = self._scheduler.http_server
        return {"host": socket.gethostname(), "address": server.address, "port": server.port}

    def show(self, client: str, group: str, snapshot: str) -> None:
        """Show the latest snapshot of an operation."""
        if len(snapshot) <= _LARGEST:
            self._snapshots.pop(group, None)
            self._snapshots[group] = client, time.monotonic(), snapshot
            for stale in list(self._snapshots)[:-_KEPT]:
                del self._snapshots[stale]

    def leave(self, client: str) -> None:
        """Let a client go, and the page with the last one."""
        self._clients.discard(client)
        self._clients.intersection_update(self._scheduler.clients)  # some were killed
        if self._clients:
            return
        with contextlib.suppress(ValueError):
            self._scheduler.http_application.applications.remove(self._application)
        for call in ("join", "show", "leave"):
            self._scheduler.handlers.pop(f"daskspace_{call}", None)
        with contextlib.suppress(Exception):
            _pages_of(self._scheduler).remove(NAME)
        with contextlib.suppress(ValueError):
            self._scheduler.remove_plugin(self.name)

    def to_json(self) -> str:
        """Return what the page shows, the latest operation first."""
        now = time.monotonic()
        operations = ",".join(
            f'{{"age": {now - since:.1f}, "gone": {_js(client not in self._scheduler.clients)},'
            f' "group": {_js(group)}, "snapshot": {snapshot}}}'
            for group, (client, since, snapshot) in reversed(self._snapshots.items())
        )
        return (
            f'{{"now": {time.time():.2f}, "operations": [{operations}],'
            f' "executing": {_js(list(self._executing()))},'
            f' "workers": {_js(sorted(str(ws.name) for ws in self._workers()))}}}'
        )

    def _executing(self) -> Iterator[tuple[str, str, float]]:
        """Yield worker, operation and begin of what the workers said last that they run."""
        for ws in self._workers():
            for task, duration in list(ws.executing.items()):
                if task.state == "processing" and task.group_key in self._snapshots:
                    yield str(ws.name), str(task.group_key), round(ws.last_seen - duration, 2)

    def _workers(self) -> list[Any]:
        return list(self._scheduler.workers.values())


class _Page(RequestHandler):
    def get(self) -> None:
        page = _PAGE.read_text(encoding="utf-8")
        script = re.search(r"<script>(.*?)</script>", page, re.S)
        digest = hashlib.sha256(script[1].encode() if script else b"").digest()
        allowed = f"'sha256-{base64.b64encode(digest).decode()}'"
        self.set_header(
            "Content-Security-Policy",
            f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:;"
            " connect-src 'self'; base-uri 'none'; form-action 'none'",
        )
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(page)


class _Told(RequestHandler):
    def initialize(self, page: OperationPage) -> None:
        self._page = page

    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.finish(self._page.to_json())


def _pages_of(scheduler: Scheduler) -> list[str]:
    """Return the pages in the navigation bar, a list that all of Dask's pages share."""
    from distributed.dashboard.scheduler import template_variables

    pages: list[str] = template_variables(scheduler)["pages"]
    return pages


def _js(value: Any) -> str:
    return json.dumps(value)
