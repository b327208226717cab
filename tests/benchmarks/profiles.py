"""Where the time of a no-op goes: profiles of the client's threads, and of a child.

Nothing in the product knows of it: the client's methods are wrapped from outside, and what a child
does is done in this interpreter, with pickled batches and tapes on disk as it has there.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import os
import pstats
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle

import daskspace
from daskspace.execution.attempt import Settings, load_batch, run_attempts
from daskspace.execution.dispatch import LARGEST_BATCH, Dispatcher
from daskspace.execution.tape import Tape
from tests.benchmarks.cases import WORKERS
from tests.benchmarks.works import echo

TOP = 25
Call = Callable[[Callable[[], Any]], Any]
"""Calls a function, and observes it."""


def profile_method(owner: type, name: str, number: int, call: Call) -> float:
    """Run no-ops on mcore with `call` around a method; return the seconds of its thread."""
    seconds = 0.0
    method = getattr(owner, name)

    def observed(*arguments: Any) -> None:
        nonlocal seconds
        began = time.thread_time()
        call(lambda: method(*arguments))
        seconds = time.thread_time() - began

    with daskspace.create_backend("mcore", n_workers=WORKERS) as backend:
        _run(backend, 1_000)
        setattr(owner, name, observed)
        try:
            _run(backend, number)
        finally:
            setattr(owner, name, method)
    return seconds


def _run(backend: daskspace.DaskBackend, number: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        processes = (partial(echo, n) for n in range(number))
        backend.run(daskspace.operation(processes, result_directory=directory))


def profile_child(number: int, call: Call) -> float:
    """Do with batches of no-ops what a child does, with `call` around it; return the seconds."""
    where = os.getcwd()
    with tempfile.TemporaryDirectory() as directory:
        settings = Settings(directory, where, isolation="process", group="profile")
        batches = [
            cloudpickle.dumps([(n, partial(echo, n)) for n in range(first, first + LARGEST_BATCH)])
            for first in range(0, number, LARGEST_BATCH)
        ]

        def work() -> None:
            for position, content in enumerate(batches):
                tape = Tape(Path(directory, str(position)), new=True)
                batch = load_batch(settings, None, content)
                run_attempts(settings, batch, tape, time.monotonic() + 60.0)
                tape.flush()
                tape.close()

        began = time.thread_time()
        call(work)
        return time.thread_time() - began


def describe(name: str, measure: Callable[[int, Call], float], number: int, top: int) -> str:
    """Return what a no-op costs without the profiler, and where the time goes with it."""
    plain = measure(number, lambda function: function()) / number * 1e6
    profile = cProfile.Profile()
    profiled = measure(number, profile.runcall) / number * 1e6
    text = io.StringIO()
    statistics = pstats.Stats(profile, stream=text).strip_dirs()
    statistics.sort_stats("tottime").print_stats(top)
    return (
        f"{name}: {plain:.1f} µs of processor time per no-op, {profiled:.1f} µs under the profiler,"
        f" {number:,} no-ops\n{text.getvalue()}"
    )


def main(arguments: Sequence[str]) -> None:
    """Profile, and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks profile", description=__doc__)
    parser.add_argument("--processes", type=int, default=20_000)
    parser.add_argument("--top", type=int, default=TOP, help="how many functions are shown")
    parser.add_argument("--output", type=Path, help="a file for the text as well")
    given = parser.parse_args(arguments)
    measures = {
        "the client's dispatcher": partial(profile_method, Dispatcher, "run"),
        "the client's table": partial(profile_method, daskspace.DaskBackend, "consolidate"),
        "a child": profile_child,
    }
    texts = [describe(name, f, given.processes, given.top) for name, f in measures.items()]
    print("\n".join(texts))
    if given.output:
        given.output.write_text("\n".join(texts), "utf-8")
