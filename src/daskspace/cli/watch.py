"""``daskspace watch``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from daskspace.cli import DONE, STOPPED
from daskspace.cli.inspect import facts_of
from daskspace.cli.progress import Progress
from daskspace.cli.run import exit_code, report
from daskspace.cli.show import command, console, counted, print_json, shell_path
from daskspace.execution.journal import last_end
from daskspace.execution.lock import holder
from daskspace.execution.snapshot import read_snapshot, status_of
from daskspace.execution.status import Status, seconds

if TYPE_CHECKING:
    from daskspace.backends.links import Dashboard
    from daskspace.results.directory import ResultDirectory

_LOOK_EVERY_S = 0.5
_SILENCE_S = 15.0
_SAID_AGAIN_S = 60.0
_BEYOND = ("rate", "eta", "workers", "jobs", "first_failure")


@dataclass(frozen=True)
class _Ended:
    name: str
    result_directory: str
    number_processes: int | None


class _Watched:
    """What a result directory tells while somebody works there."""

    def __init__(self, results: ResultDirectory) -> None:
        self._results = results
        self._status = Status("staged")
        self._dashboard: Dashboard | None = None
        self._has_page = False
        self._last: Any = None
        self._changed = time.monotonic()
        self._next_word = 0.0

    @property
    def dashboard_link(self) -> str | None:
        """The address of Dask's dashboard, from here."""
        return self._dashboard.link if self._dashboard else None

    @property
    def operation_link(self) -> str | None:
        """The address of the operation's page on it."""
        return self._dashboard.operation_link if self._dashboard and self._has_page else None

    @property
    def tunnel(self) -> str | None:
        """The command that brings it to the user's own machine, if it needs one."""
        return self._dashboard.tunnel() if self._dashboard else None

    def check_status(self) -> Status:
        """Return what was told last."""
        return self._status

    def look(self) -> str | None:
        """Look again; return what there is to say if nothing new has come for long."""
        snapshot, now = read_snapshot(self._results.path), time.monotonic()
        if snapshot is not None:
            self._status = status_of(snapshot)
            self._has_page = bool(snapshot.get("page"))
            if place := snapshot.get("dashboard"):
                from daskspace.backends.links import Dashboard

                self._dashboard = Dashboard(**place)
        if snapshot != self._last:
            self._last, self._changed, self._next_word = snapshot, now, 0.0
        silence = now - self._changed
        if silence < _SILENCE_S or now < self._next_word:
            return None
        self._next_word = now + _SAID_AGAIN_S
        owner = holder(self._results.lock)
        who = "process {pid} on {host}".format(**owner) if owner else "whoever runs it"
        what = "nothing is executed yet" if snapshot is None else "it may be stopped, or hang"
        return f"no news from {who} for {seconds(silence)}: {what}"


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print how far it is, as JSON, and exit.")
def watch(directory: Path, as_json: bool) -> None:
    """Watch the operation, or the chain, in DIRECTORY until it ends.

    Ctrl-C leaves, with exit code 130; the operation goes on, and may be watched again. At its end
    the exit code is that of `run`. If nobody works there any more, it is 4.
    """
    from daskspace.cli.chains import is_chain_directory
    from daskspace.results.directory import opened

    if is_chain_directory(directory):
        _watch_chain(directory, as_json)
    results = opened(directory)
    if as_json:
        facts, _ = facts_of(directory)
        snapshot = (facts["state"] == "running" and read_snapshot(results.path)) or {}
        newer = {name: snapshot[name] for name in ("counts", "ended", "total") if snapshot}
        watched = _Watched(results)
        watched.look()
        link = (watched.operation_link or watched.dashboard_link) if snapshot else None
        more = {name: snapshot.get(name) for name in _BEYOND}
        print_json({**facts, **more, **newer, "dashboard": link})
        return
    with _left_alone(directory):
        _follow(results)
    _tell_end(results, directory)


def _follow(results: ResultDirectory) -> None:
    """Show the progress of an operation until nobody works on it."""
    watched = _Watched(results)
    if not _is_worked_on(results):
        return
    watched.look()
    with Progress(watched) as progress:
        while _is_worked_on(results):
            if word := watched.look():
                progress.tell(word, style="yellow")
            time.sleep(_LOOK_EVERY_S)


def _watch_chain(directory: Path, as_json: bool) -> NoReturn:
    """Watch the operations of a chain, one after the other, until it ends."""
    from daskspace.cli.chains import code_of, running_in, show_chain
    from daskspace.results.chain_directory import ChainDirectory

    if as_json:
        show_chain(directory, as_json)
        raise SystemExit(DONE)
    chain = ChainDirectory(directory)
    shown = None
    with _left_alone(directory):
        while holder(chain.lock) is not None:
            for entry in running_in(chain):
                if entry["number"] != shown:
                    shown = entry["number"]
                    position = chain.operations.index(entry) + 1
                    told = f"operation {position} of {len(chain.operations)}: {entry['name']}"
                    console(stderr=True).print(told, style="bold")
                _follow(chain.results_of(entry))
            time.sleep(_LOOK_EVERY_S)
    raise SystemExit(code_of(show_chain(directory, as_json)))


def _is_worked_on(results: ResultDirectory) -> bool:
    return holder(results.lock) is not None and last_end(results.journal) is None


@contextlib.contextmanager
def _left_alone(directory: Path) -> Iterator[None]:
    """Say at Ctrl-C that the operation goes on."""
    try:
        yield
    except KeyboardInterrupt:
        again = f"{command()} watch {shell_path(directory)}"
        console(stderr=True).print(f"left; it goes on, and  {again}  comes back", soft_wrap=True)
        raise


def _tell_end(results: ResultDirectory, directory: Path) -> NoReturn:
    from daskspace.execution.job_record import read_job_record
    from daskspace.results.table import Table

    table = Table(results.journal)
    header, end = table.header, table.end
    if end is not None:
        told = _Ended(str(header.get("name")), str(results.path), header.get("number_processes"))
        report(told, table, max(end["time"] - header["start"], 0.0))
        if end.get("error"):
            console().print(f"error      {end['error']}", soft_wrap=True)
        raise SystemExit(STOPPED if end.get("error") else exit_code(table))
    out, place = console(), shell_path(directory)
    out.print(
        f"nobody works on it any more: process {header.get('pid')} was killed, or its host is"
    )
    out.print(f"gone; ended so far: {counted(table.counts) or 'none'}")
    if jobs := [job for batch in read_job_record(results.jobs_record) for job in batch.job_ids]:
        left = ", ".join(jobs[:10]) + (", ..." if len(jobs) > 10 else "")
        out.print(
            f"its batch jobs may be left ({left}): {command()} cancel {place}", soft_wrap=True
        )
    out.print(f"go on with  {command()} resume {place}", soft_wrap=True)
    raise SystemExit(STOPPED)
