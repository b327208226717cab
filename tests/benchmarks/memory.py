"""How the memory of the client grows, in which the scheduler runs, too."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import psutil

import daskspace
from tests.benchmarks.contenders import WORKERS, do_nothing, stream

EARLY = 10_000


def measure(number: int) -> dict[str, float]:
    """Return the resident memory in MiB while `number` processes run on mcore."""
    # In an interpreter of its own, as what ran here before would be measured with it.
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
        return fresh.submit(_measure, number).result()


def _measure(number: int) -> dict[str, float]:
    with (
        daskspace.create_backend("mcore", n_workers=WORKERS) as backend,
        tempfile.TemporaryDirectory() as warm_up,
        tempfile.TemporaryDirectory() as directory,
        ThreadPoolExecutor(1) as thread,
    ):
        backend.run(stream(do_nothing, 1_000, warm_up))
        samples = [(0, _resident_mb())]
        running = thread.submit(backend.run, stream(do_nothing, number, directory))
        while not running.done():
            samples.append((backend.check_status().ended, _resident_mb()))
            time.sleep(0.01)
        running.result()
        samples.append((number, _resident_mb()))
    return {
        "before": samples[0][1],
        f"at {EARLY:,}": next(mb for ended, mb in samples if ended >= min(EARLY, number)),
        "at the end": samples[-1][1],
        "peak": max(mb for _, mb in samples),
    }


def _resident_mb() -> float:
    return psutil.Process().memory_info().rss / 2**20
