"""What limits one scheduler: many workers, whose processes sleep, on this machine.

The scheduler runs in the client's interpreter, as it does on batch systems, and the workers in few
others. Its processor time per task and per batch does not depend on how fast the workers are, so
it tells how many it can serve, where this machine could not run them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cloudpickle
import numpy
from distributed import Client, LocalCluster, as_completed
from distributed.scheduler import heartbeat_interval
from scipy.optimize import nnls

import daskspace
from daskspace.execution.dispatch import LARGEST_BATCH, Dispatcher, budget_for
from daskspace.execution.travel import Away
from tests.benchmarks import report
from tests.benchmarks.turns import ROOT, tell
from tests.benchmarks.usage import resident_mb
from tests.benchmarks.works import echo, nap

PROGRAMS = 2
WORKERS = (8, 32, 64)
SECONDS = 5.0
START_S = 120.0
TURN_S = 600.0
NAPS_S = (0.01, 0.25)
NO_OPS = 100_000
IN_FLIGHT = 2_000
MANY_WORKERS, MANY = 1_000, 10_000_000
DURATIONS_S = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)


@contextmanager
def workers_of(cluster: LocalCluster, number: int) -> Iterator[None]:
    """Have workers in other interpreters join a scheduler in this one."""
    with ExitStack() as stack:
        for program in range(PROGRAMS):
            share = len(range(program, number, PROGRAMS))
            command = [sys.executable, "-m", "tests.benchmarks.many_workers"]
            process = subprocess.Popen(
                [*command, cluster.scheduler_address, str(share)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "DASK_LOGGING__DISTRIBUTED": "error"},
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            stack.callback(_end, process)
        yield


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def measure(number: int, seconds: float) -> dict[str, Any]:
    """Return what tasks, batches and workers cost the client and its scheduler.

    To be called in an interpreter of its own, for the memory that it has.
    """
    figures: dict[str, Any] = {"workers": number}
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", host="127.0.0.1") as cluster,
        Client(cluster) as client,
    ):
        before = resident_mb()
        with workers_of(cluster, number):
            client.wait_for_workers(number, timeout=START_S)
            figures["worker_mb"] = (resident_mb() - before) / number
            figures["task_kib"] = _in_flight(client, b"", IN_FLIGHT)
            no_ops = [(n, partial(echo, n)) for n in range(LARGEST_BATCH)]
            figures["batch_kib"] = _in_flight(client, cloudpickle.dumps(no_ops), 100)
            figures |= _tasks(client, number, seconds)
            figures["operations"] = [_idle(seconds)]
            for nap_s in NAPS_S:
                count = int(number * seconds / nap_s)
                figures["operations"].append(_operate(client, partial(_nap, nap_s), count))
            figures["operations"].append(_operate(client, partial(partial, echo), NO_OPS))
    figures["costs"] = _costs(figures["operations"])
    return figures


def _nap(seconds: float, number: int) -> Callable[[], int]:
    return partial(nap, (number, seconds))


def _tasks(client: Client, number: int, seconds: float) -> dict[str, float]:
    """Keep two tasks with each worker, as a bare client can."""
    done, until = 0, time.monotonic() + seconds
    began = time.process_time(), time.monotonic()
    running = as_completed([client.submit(echo, n, pure=False) for n in range(2 * number)])
    for _ in running:
        done += 1
        if time.monotonic() < until:
            running.add(client.submit(echo, done, pure=False))
    used, took = time.process_time() - began[0], time.monotonic() - began[1]
    return {"tasks_per_s": done / took, "task_us": used / done * 1e6}


def _in_flight(client: Client, content: bytes, count: int) -> float:
    """Return the memory of a task that waits, in KiB, with something of its own to send."""
    before = resident_mb()
    waiting = [
        client.submit(len, content + bytes([n % 256]), resources={"never": 1}, pure=False)
        for n in range(count)
    ]
    client.run_on_scheduler(lambda: None)  # all have arrived by then
    grown = resident_mb() - before
    client.cancel(waiting)
    del waiting
    until = time.monotonic() + START_S
    while client.run_on_scheduler(_count_tasks) and time.monotonic() < until:
        time.sleep(0.05)
    return max(grown, 0.0) / count * 1024


def _count_tasks(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def _idle(seconds: float) -> dict[str, float]:
    began = time.process_time()
    time.sleep(seconds)
    used = time.process_time() - began
    return {"batches": 0, "processes": 0, "seconds": seconds, "processor_s": used}


def _operate(
    client: Client, process: Callable[[int], Callable[[], int]], number: int
) -> dict[str, float]:
    """Run an operation of ours, and count its batches and the processor time of its threads."""
    counted = {"batches": 0, "dispatcher_s": 0.0}
    send, run = Away.submit, Dispatcher.run

    def counting(carrier: Away, *arguments: Any) -> Any:
        counted["batches"] += 1
        return send(carrier, *arguments)

    def timing(dispatcher: Dispatcher, *arguments: Any) -> None:
        began = time.thread_time()
        run(dispatcher, *arguments)
        counted["dispatcher_s"] += time.thread_time() - began

    with tempfile.TemporaryDirectory() as directory:
        operation = daskspace.operation(
            (process(n) for n in range(number)), result_directory=directory
        )
        backend = daskspace.create_backend(client, isolation="none")
        Away.submit, Dispatcher.run = counting, timing  # type: ignore[method-assign,assignment]
        try:
            backend.stage_in(operation)
            began = time.process_time(), time.monotonic()
            backend.execute()
            backend.retrieve()
            used, took = time.process_time() - began[0], time.monotonic() - began[1]
            done = backend.check_status().counts.get("done", 0)
        finally:
            Away.submit, Dispatcher.run = send, run  # type: ignore[method-assign]
            backend.close()
    if done != number:
        raise RuntimeError(f"{done:,} of {number:,} processes were done")
    return {"processes": number, "seconds": took, "processor_s": used, **counted}


def _costs(operations: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the processor time of a batch, of a process in it, and of a second that passes.

    Those are three unknowns, none below zero, of operations that differ in all three.
    """
    amounts = numpy.array([[o["batches"], o["processes"], o["seconds"]] for o in operations])
    used = numpy.array([o["processor_s"] for o in operations])
    found = nnls(amounts / used[:, None], numpy.ones(len(used)))[0]
    return dict(zip(("batch_s", "process_s", "second_s"), map(float, found), strict=True))


def as_markdown(all_figures: Sequence[Mapping[str, Any]]) -> str:
    """Return what was measured, and what follows for many workers."""
    lines = ["| workers | " + " | ".join(f"{f['workers']}" for f in all_figures) + " |"]
    lines += ["| :-- |" + " --: |" * len(all_figures)]
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "bare tasks per second": lambda f: f"{f['tasks_per_s']:,.0f}",
        "µs of processor time per bare task": lambda f: f"{f['task_us']:,.0f}",
        "MiB per worker": lambda f: f"{f['worker_mb']:.2f}",
        "KiB per task that waits": lambda f: f"{f['task_kib']:.1f}",
        "KiB per batch of 2,000 no-ops that waits": lambda f: f"{f['batch_kib']:.1f}",
    }
    for position, nap_s in enumerate(NAPS_S, 1):
        title = f"naps of {nap_s * 1e3:.0f} ms"
        rows[f"{title}: processes in a batch"] = partial(_batch_size, position)
        rows[f"{title}: share of the workers busy"] = partial(_share, position, nap_s)
    rows |= {
        "µs per batch, of the dispatcher": partial(_dispatcher, 1),
        "µs per batch, of client and scheduler": lambda f: f"{f['costs']['batch_s'] * 1e6:,.0f}",
        "µs per process in it": lambda f: f"{f['costs']['process_s'] * 1e6:,.1f}",
        "share of a core beside that": lambda f: f"{f['costs']['second_s']:.1%}",
    }
    for title, show in rows.items():
        lines.append(f"| {title} | " + " | ".join(map(show, all_figures)) + " |")
    return "\n".join([*lines, "", *_extrapolated(all_figures[-1])])


def _batch_size(position: int, figures: Mapping[str, Any]) -> str:
    operation = figures["operations"][position]
    return f"{operation['processes'] / operation['batches']:.1f}"


def _share(position: int, nap_s: float, figures: Mapping[str, Any]) -> str:
    operation = figures["operations"][position]
    return f"{operation['processes'] * nap_s / figures['workers'] / operation['seconds']:.1%}"


def _dispatcher(position: int, figures: Mapping[str, Any]) -> str:
    operation = figures["operations"][position]
    return f"{operation['dispatcher_s'] / operation['batches'] * 1e6:,.0f}"


def _extrapolated(figures: Mapping[str, Any]) -> list[str]:
    """Return what the figures of most workers mean for many more, and how that is computed."""
    batch, process = figures["costs"]["batch_s"], figures["costs"]["process_s"]
    heartbeats = [n / heartbeat_interval(n) for n in (figures["workers"], MANY_WORKERS)]
    idle = figures["costs"]["second_s"] / heartbeats[0] * heartbeats[1]
    left = max(1 - idle, 0.01)
    budget = budget_for(MANY_WORKERS)
    memory = MANY_WORKERS * (figures["worker_mb"] + 2 * figures["batch_kib"] / 1024)
    lines = [
        f"For {MANY_WORKERS:,} workers and {MANY:,} processes of d seconds, in batches of"
        f" b = {budget:g} s / d, from 1 to {LARGEST_BATCH:,}, with the costs measured with"
        f" {figures['workers']} workers:",
        "",
        f"    workers need   {MANY:,} d / {MANY_WORKERS:,}",
        f"    client needs   {MANY:,} ({batch * 1e6:,.0f} µs / b + {process * 1e6:,.1f} µs)"
        f" / {left:.2f}, as {heartbeats[1]:.0f} heartbeats a second take {idle:.0%} of a core",
        "    it takes       whichever is longer",
        f"    memory         {MANY_WORKERS:,} ({figures['worker_mb']:.2f} MiB"
        f" + 2 x {figures['batch_kib']:,.0f} KiB) = {memory:,.0f} MiB, with full batches",
        f"    busy workers   at most {budget:g} s / {batch * 1e6:,.0f} µs x {left:.2f} ="
        f" {budget / max(batch, 1e-9) * left:,.0f}, while d is below {budget:g} s",
        "",
        "| d | processes in a batch | workers need | client needs | share of the workers busy |",
        "| --: | --: | --: | --: | --: |",
    ]
    for duration in DURATIONS_S:
        size = min(max(budget / duration, 1.0), LARGEST_BATCH)
        theirs, ours = MANY * duration / MANY_WORKERS, MANY * (batch / size + process) / left
        lines.append(
            f"| {duration:g} s | {size:,.0f} | {theirs:,.0f} s | {ours:,.0f} s"
            f" | {min(theirs / ours, 1.0):.0%} |"
        )
    return lines


def main(arguments: Sequence[str]) -> None:
    """Measure, extrapolate and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks scale", description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for each measurement")
    parser.add_argument("--output", type=Path, help="a file for the figures as JSON")
    given = parser.parse_args(arguments)
    if (busy := report.machine()["busy"]) > report.IDLE:
        tell(f"the machine is not idle: {busy:.0%} of it are in use")
    figures = []
    for number in sorted(given.workers):
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            figures.append(fresh.submit(measure, number, given.seconds).result(TURN_S))
        tell(f"{number} workers: done")
    print(as_markdown(figures))
    if given.output:
        given.output.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
