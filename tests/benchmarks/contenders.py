"""Who is measured: each contender runs a function so and so often, on two warm workers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

import joblib
from distributed import Client, LocalCluster

import daskspace

WORKERS = 2
BARE = "distributed.Client.map"
"""What the others are compared with."""

Work = Callable[..., None]
Run = Callable[[Work, int], float]
"""Run a function so often, and return the seconds that it took."""


def do_nothing(_: int = 0) -> None:
    """Show the overhead alone."""


def nap(_: int = 0) -> None:
    """Show what is left of the overhead when there is something to do."""
    time.sleep(0.1)


@contextmanager
def serial() -> Iterator[Run]:
    with daskspace.create_backend("serial") as backend:
        yield whole(backend)


@contextmanager
def mcore() -> Iterator[Run]:
    with daskspace.create_backend("mcore", n_workers=WORKERS) as backend:
        yield whole(backend)


@contextmanager
def mpi() -> Iterator[Run]:
    with daskspace.create_backend("mpi", n_workers=WORKERS) as backend:
        yield whole(backend)


@contextmanager
def mcore_without_table() -> Iterator[Run]:
    with daskspace.create_backend("mcore", n_workers=WORKERS) as backend:

        def run(work: Work, number: int) -> float:
            with tempfile.TemporaryDirectory() as directory:
                backend.stage_in(stream(work, number, directory))
                seconds = timed(lambda: (backend.execute(), backend.retrieve()))
                backend.cleanup()
            return seconds

        yield run


@contextmanager
def bare_dask() -> Iterator[Run]:
    with (
        LocalCluster(WORKERS, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield lambda work, number: timed(
            lambda: client.gather(client.map(work, range(number), pure=False))
        )


@contextmanager
def process_pool() -> Iterator[Run]:
    with ProcessPoolExecutor(WORKERS, get_context("spawn")) as pool:
        yield lambda work, number: timed(lambda: list(pool.map(work, range(number))))


@contextmanager
def joblib_batches() -> Iterator[Run]:
    with joblib.Parallel(WORKERS) as parallel:
        yield lambda work, number: timed(
            lambda: parallel(joblib.delayed(work)(n) for n in range(number))
        )


CONTENDERS = {
    "daskspace serial, `run`": serial,
    "daskspace mcore, `run`": mcore,
    "daskspace mpi, `run`": mpi,
    "daskspace mcore, `execute` to `retrieve`": mcore_without_table,
    BARE: bare_dask,
    "concurrent.futures.ProcessPoolExecutor.map": process_pool,
    "joblib.Parallel": joblib_batches,
}
STARTS = {"daskspace mcore": mcore, "daskspace mpi": mpi}
"""Whose start is measured as well: those that bring up a cluster on this machine."""


def whole(backend: daskspace.DaskBackend) -> Run:
    """Time everything that `run` does, with journal and table."""

    def run(work: Work, number: int) -> float:
        with tempfile.TemporaryDirectory() as directory:
            return timed(lambda: backend.run(stream(work, number, directory)))

    return run


def stream(work: Work, number: int, directory: str) -> daskspace.Operation:
    """Describe an operation of which nothing is known before it runs, not even the length."""
    return daskspace.operation((work for _ in range(number)), result_directory=directory)


def timed(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
