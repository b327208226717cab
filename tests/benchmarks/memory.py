"""How the memory of the client grows, in which the scheduler runs, too."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import daskspace
from tests.benchmarks.cases import WORKERS
from tests.benchmarks.usage import resident_mb
from tests.benchmarks.works import echo

EARLY = 10_000


def measure(number: int) -> dict[str, float]:
    """Return the resident memory in MiB while `number` processes run on mcore.

    To be called in an interpreter of its own, as what ran there before is measured with it.
    """

    def operation(number: int, directory: str) -> daskspace.Operation:
        processes = (partial(echo, n) for n in range(number))
        return daskspace.operation(processes, result_directory=directory)

    with (
        daskspace.create_backend("mcore", n_workers=WORKERS) as backend,
        tempfile.TemporaryDirectory() as warm_up,
        tempfile.TemporaryDirectory() as directory,
        ThreadPoolExecutor(1) as thread,
    ):
        backend.run(operation(1_000, warm_up))
        samples = [(0, resident_mb())]
        running = thread.submit(backend.run, operation(number, directory))
        while not running.done():
            samples.append((backend.check_status().ended, resident_mb()))
            time.sleep(0.02)
        running.result()
        samples.append((number, resident_mb()))
    return {
        "before": samples[0][1],
        f"at {EARLY:,}": next(mb for ended, mb in samples if ended >= min(EARLY, number)),
        "at the end": samples[-1][1],
        "peak": max(mb for _, mb in samples),
    }
