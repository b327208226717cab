"""The examples that we ship: real data, the same results on every backend."""

import functools
import shutil
from pathlib import Path

import pytest

from daskspace import chain, load_operation
from daskspace.cli.demo import EXAMPLES

from .backends.backends_under_test import BACKENDS_UNDER_TEST

MAY_DIFFER = {"start", "duration", "host", "peak_memory"}


pytestmark = pytest.mark.xdist_group("examples")  # on serial they run but once


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """The examples in a directory of a user's own."""
    directory = tmp_path_factory.mktemp("examples")
    for path in EXAMPLES.iterdir():
        if path.is_file():
            shutil.copy(path, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        yield directory


@pytest.fixture(scope="module")
def on_serial(examples):
    """Run an example on serial, once; return its operation."""
    return functools.cache(functools.partial(run, backend_type="serial"))


def run(example, backend_type):
    with BACKENDS_UNDER_TEST[backend_type]() as backend:
        return backend.run(load_operation(f"{example}.yaml"))


def comparable(operation):
    return [{k: v for k, v in row.items() if k not in MAY_DIFFER} for row in operation.rows()]


each_other_backend = pytest.mark.parametrize(
    "backend_type", [name for name in BACKENDS_UNDER_TEST if name != "serial"]
)


@each_other_backend
def test_the_benchmark_gives_the_same_table_on_every_backend(on_serial, backend_type):
    reference = comparable(on_serial("classification"))
    assert [row["state"] for row in reference].count("failed") == 3
    assert min(row["accuracy"] for row in reference if row["state"] == "done") > 0.3
    assert comparable(run("classification", backend_type)) == reference


@each_other_backend
def test_mandelbrot_gives_the_same_picture_on_every_backend(on_serial, backend_type):
    operation = run("mandelbrot", backend_type)
    assert [row["state"] for row in operation.rows()] == ["done"] * 49
    assert not list(Path(operation.result_directory).glob("*.npy"))
    assert picture_of(operation) == picture_of(on_serial("mandelbrot"))


def picture_of(operation):
    return Path(operation.result_directory, "mandelbrot.png").read_bytes()


def test_the_chain_ends_with_the_best_settings_of_the_benchmark_and_a_plot(examples, on_serial):
    with BACKENDS_UNDER_TEST["serial"]() as backend:
        done = backend.run(chain("classification_chain.yaml"))
    benchmark, analysis = done.operations
    assert comparable(benchmark) == comparable(on_serial("classification"))
    results = Path(analysis.result_directory)
    assert "| 1 | rbf | 1 | 0.97" in (results / "best.md").read_text()
    assert (results / "plot.svg").stat().st_size > 5_000
