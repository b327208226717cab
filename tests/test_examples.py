"""The examples that we ship: real data, the same results on every backend."""

import shutil
from pathlib import Path

import pytest

from daskspace import load_operation
from daskspace.cli.demo import EXAMPLES

from .backends.backends_under_test import BACKENDS_UNDER_TEST

MAY_DIFFER = {"start", "duration", "host", "peak_memory"}


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """The examples in a directory of a user's own."""
    for path in EXAMPLES.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(example, backend_type):
    with BACKENDS_UNDER_TEST[backend_type]() as backend:
        return backend.run(load_operation(f"{example}.yaml"))


def comparable(operation):
    return [{k: v for k, v in row.items() if k not in MAY_DIFFER} for row in operation.rows()]


@pytest.mark.timeout(600)
def test_the_benchmark_gives_the_same_table_on_every_backend(copied):
    tables = {name: comparable(run("classification", name)) for name in BACKENDS_UNDER_TEST}
    reference = tables.pop("serial")
    assert [row["state"] for row in reference].count("failed") == 3
    assert min(row["accuracy"] for row in reference if row["state"] == "done") > 0.3
    for name, table in tables.items():
        assert table == reference, name


@pytest.mark.timeout(600)
def test_mandelbrot_gives_the_same_picture_on_every_backend(copied):
    pictures = set()
    for name in BACKENDS_UNDER_TEST:
        operation = run("mandelbrot", name)
        assert [row["state"] for row in operation.rows()] == ["done"] * 49
        directory = Path(operation.result_directory)
        pictures.add((directory / "mandelbrot.png").read_bytes())
        assert not list(directory.glob("*.npy"))
    assert len(pictures) == 1
