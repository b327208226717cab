"""Who is measured: each contender runs a function over arguments, on two warm workers.

Each is opened in an interpreter of its own, and imports what it needs only then. A contender has
one or several *ways* to run the same work, each a function of the work and its arguments that
returns a function which does it all, to be timed, and gives the values.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import RESUME, WORKERS

Work = Callable[[Any], int]
Run = Callable[[Work, Sequence[Any]], Any]
"""Run a function over arguments; return a `Result`, or the values."""
Ways = dict[str, Run]

BARE = "distributed client.map, gather"
"""What the others are compared with."""
CHUNK = 100


@dataclass(frozen=True)
class Contender:
    """One of those that are measured.

    Parameters
    ----------
    open : callable
        Returns a context manager of its ways, by name, the first one the most usual.
    module : str
        What must be importable.
    pip : str
        What brings it.
    missing : callable
        Returns why it cannot be had, or an empty string.
    """

    open: Callable[[], AbstractContextManager[Ways]]
    module: str
    pip: str = ""
    missing: Callable[[], str] = str

    def why_not(self) -> str:
        """Return why it cannot take part, or an empty string."""
        if importlib.util.find_spec(self.module) is None:
            return f"not installed: pip install {self.pip or self.module}"
        return self.missing()


@dataclass(frozen=True)
class Result:
    """Values that are read after the time was taken, by the clock or by the way itself."""

    values: Callable[[], list[int]]
    seconds: float | None = None


# Ours


def ours(backend: Any, name: str, *more: str) -> Ways:
    """Return the ways to run an operation: whole, and those of `retrieved` and `resumed` asked for.

    The operation is one of which nothing is known before it runs, not even the length.
    """

    def whole(work: Work, arguments: Sequence[Any]) -> list[int]:
        with tempfile.TemporaryDirectory() as directory:
            return _values(backend.run(_stream(work, arguments, directory)))

    def retrieved(work: Work, arguments: Sequence[Any]) -> Result:
        directory = tempfile.mkdtemp()
        operation = _stream(work, arguments, directory)
        backend.stage_in(operation)
        backend.execute()
        backend.retrieve()

        def values() -> list[int]:
            backend.cleanup()
            values = _values(operation)
            shutil.rmtree(directory)
            return values

        return Result(values)

    ways: Ways = {f"daskspace {name}, `run` and `rows`": whole}
    if "retrieved" in more:
        ways[f"daskspace {name}, `stage_in` to `retrieve`"] = retrieved
    if "resumed" in more:
        ways[RESUME] = partial(_resume, backend)
    return ways


def _resume(backend: Any, work: Work, arguments: Sequence[Any]) -> Result:
    with tempfile.TemporaryDirectory() as directory:
        backend.run(_stream(work, arguments, directory))
        operation = _stream(work, arguments, directory, resume=True)
        began = time.perf_counter()
        backend.run(operation)
        took = time.perf_counter() - began
        values = _values(operation)
    return Result(lambda: values, took)


def _stream(work: Work, arguments: Iterable[Any], directory: str, **options: Any) -> Any:
    import daskspace

    processes = (partial(work, argument) for argument in arguments)
    return daskspace.operation(processes, result_directory=directory, **options)


def _values(operation: Any) -> list[int]:
    return [row["value"] for row in operation.rows()]


@contextmanager
def ours_on(name: str, *more: str, **options: Any) -> Iterator[Ways]:
    """Open a backend of ours."""
    import daskspace

    with daskspace.create_backend(name, **options) as backend:
        yield ours(backend, name, *more)


@contextmanager
def serial() -> Iterator[Ways]:
    """Open the serial backend, beside the bare call."""
    with ours_on("serial", "retrieved") as ways:
        yield {**ways, "bare call, in one process": lambda work, args: [work(a) for a in args]}


@contextmanager
def ours_at(site: str) -> Iterator[Ways]:
    """Open a backend at a site with a batch system."""
    from tests.backends.sites import SITES

    with SITES[site]().backend(jobs=WORKERS) as backend:
        yield ours(backend, site)


def _no_slurm() -> str:
    from tests.schedulers.slurm import missing

    return missing()


# The peers


@contextmanager
def dask() -> Iterator[Ways]:
    """Open a cluster of Dask's: task by task, through a window, and in the partitions of a bag."""
    from dask import bag
    from distributed import Client, LocalCluster, as_completed

    def mapped(work: Work, arguments: Sequence[Any]) -> list[int]:
        return client.gather(client.map(work, arguments, pure=False))

    def windowed(work: Work, arguments: Sequence[Any]) -> list[int]:
        rest = iter(arguments)
        first = [client.submit(work, a, pure=False) for _, a in zip(range(500), rest, strict=False)]
        values, running = [], as_completed(first, with_results=True)
        for _, value in running:
            values.append(value)
            for argument in rest:
                running.add(client.submit(work, argument, pure=False))
                break
        return values

    def bagged(work: Work, arguments: Sequence[Any]) -> list[int]:
        return bag.from_sequence(arguments).map(work).compute()

    with (
        LocalCluster(WORKERS, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        yield {
            BARE: mapped,
            "distributed as_completed, 500 at a time": windowed,
            "dask.bag, default partitions": bagged,
        }


@contextmanager
def futures() -> Iterator[Ways]:
    """Open a ProcessPoolExecutor."""
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS) as pool:
        yield {
            "ProcessPoolExecutor.submit": lambda work, args: [
                future.result() for future in [pool.submit(work, a) for a in args]
            ],
            f"ProcessPoolExecutor.map, chunksize={CHUNK}": lambda work, args: list(
                pool.map(work, args, chunksize=CHUNK)
            ),
        }


@contextmanager
def pool() -> Iterator[Ways]:
    """Open a multiprocessing.Pool."""
    from multiprocessing import Pool

    with Pool(WORKERS) as pool:
        yield {
            "multiprocessing.Pool.apply_async": lambda work, args: [
                result.get() for result in [pool.apply_async(work, (a,)) for a in args]
            ],
            "multiprocessing.Pool.imap_unordered": lambda work, args: list(
                pool.imap_unordered(work, args)
            ),
            f"multiprocessing.Pool.imap_unordered, chunksize={CHUNK}": lambda work, args: list(
                pool.imap_unordered(work, args, chunksize=CHUNK)
            ),
        }


@contextmanager
def joblib() -> Iterator[Ways]:
    """Open joblib's loky."""
    from joblib import Parallel, delayed

    with Parallel(WORKERS) as batches, Parallel(WORKERS, batch_size=1) as one_by_one:
        yield {
            "joblib loky, automatic batches": lambda work, args: batches(
                delayed(work)(a) for a in args
            ),
            "joblib loky, batch_size=1": lambda work, args: one_by_one(
                delayed(work)(a) for a in args
            ),
        }


@contextmanager
def executorlib() -> Iterator[Ways]:
    """Open executorlib with workers that stay."""
    from executorlib import SingleNodeExecutor

    with SingleNodeExecutor(max_workers=WORKERS, block_allocation=True) as executor:
        yield {
            "executorlib, block allocation": lambda work, args: [
                future.result() for future in [executor.submit(work, a) for a in args]
            ]
        }


@contextmanager
def parsl() -> Iterator[Ways]:
    """Open Parsl's HighThroughputExecutor."""
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    def run(work: Work, arguments: Sequence[Any]) -> list[int]:
        app = parsl.python_app(work)
        return [future.result() for future in [app(argument) for argument in arguments]]

    bin_directory = str(Path(sys.executable).parent)  # where its programs are
    os.environ["PATH"] = f"{bin_directory}{os.pathsep}{os.environ['PATH']}"
    executor = HighThroughputExecutor(
        max_workers_per_node=WORKERS,
        address="127.0.0.1",
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        parsl.load(Config(executors=[executor], run_dir=directory, usage_tracking=0)),
    ):
        yield {"Parsl HighThroughputExecutor": run}


@contextmanager
def ray() -> Iterator[Ways]:
    """Open Ray: task by task, and its pool, which makes chunks."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray
    from ray.util.multiprocessing import Pool

    def tasks(work: Work, arguments: Sequence[Any]) -> list[int]:
        remote = ray.remote(work)
        return ray.get([remote.remote(argument) for argument in arguments])

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=directory,
        )
        try:
            with Pool(WORKERS, ray_remote_args={"num_cpus": 0}) as pool:  # which the tasks need
                yield {"Ray tasks": tasks, "ray.util.multiprocessing.Pool.map": pool.map}
        finally:
            ray.shutdown()


@contextmanager
def submitit() -> Iterator[Ways]:
    """Open submitit, which starts an interpreter for each process."""
    import submitit

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        executor = submitit.LocalExecutor(directory)
        executor.update_parameters(timeout_min=5)
        yield {
            "submitit local, no pool": lambda work, args: [
                job.result() for job in executor.map_array(work, args)
            ]
        }


# For the smoke test


@contextmanager
def sleeper() -> Iterator[Ways]:
    """Never come back."""
    yield {"one that hangs": lambda work, args: time.sleep(3600)}


@contextmanager
def liar() -> Iterator[Ways]:
    """Return less than was asked for."""
    yield {"one that loses results": lambda work, args: [work(a) for a in args[1:]]}


CONTENDERS = {
    "serial": Contender(serial, "daskspace"),
    "mcore": Contender(
        partial(ours_on, "mcore", "retrieved", "resumed", n_workers=WORKERS), "daskspace"
    ),
    "mpi": Contender(partial(ours_on, "mpi", n_workers=WORKERS), "dask_mpi", "daskspace[mpi]"),
    "loadl": Contender(partial(ours_at, "loadl"), "pytest"),
    "slurm": Contender(partial(ours_at, "slurm"), "pytest", missing=_no_slurm),
    "dask": Contender(dask, "distributed"),
    "futures": Contender(futures, "concurrent.futures"),
    "pool": Contender(pool, "multiprocessing"),
    "joblib": Contender(joblib, "joblib"),
    "executorlib": Contender(executorlib, "executorlib"),
    "parsl": Contender(parsl, "parsl"),
    "ray": Contender(ray, "ray"),
    "submitit": Contender(submitit, "submitit"),
}
"""By the name that ``--contenders`` takes."""
NOT_ASKED_FOR = {
    "sleeper": Contender(sleeper, "daskspace"),
    "liar": Contender(liar, "daskspace"),
    "absentee": Contender(liar, "daskspace_no_such_module"),
}
"""Those that take part only when they are named."""
