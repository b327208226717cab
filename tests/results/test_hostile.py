"""Values that want out of the result directory, or into each other's files."""

import os
import unicodedata
from pathlib import Path

import pytest

from daskspace import create_backend, operation

VALUES = [
    "../../x",
    "/abs",
    "..",
    ".",
    "",
    " ",
    "a",
    "A",
    "a.",
    "a ",
    "a" * 4000,
    "a" * 4000 + "b",
    "a\0b",
    "a\nb",
    "-rf",
    "~",
    "$(touch hacked)",
    "\U0001f600" * 200,
    "\udcff",
    "\ud800x",
    unicodedata.normalize("NFC", "Zo\u00eb"),
    unicodedata.normalize("NFD", "Zo\u00eb"),
    "outcome.json",
    "\x1b[2J",
    {"../x": "/y"},
    ["../../x"],
]
NAMES = ["../../x", "/abs", "..", "", "a\0b", "a\nb", "x" * 4000, "\udcff", "-rf", "\U0001f600"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return the working directory; what is above it must stay as it is."""
    home = tmp_path / "a/b/c"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    yield home
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.glob("*")} == {"a"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"b"}
    assert {path.name for path in (tmp_path / "a/b").iterdir()} == {"c"}


def keep(value, directory):
    print("said")
    (directory / "mine.txt").write_text(ascii(value))


@pytest.mark.parametrize("backend_type", ["serial", "mcore"])
def test_each_value_has_its_own_directory_and_log_within_the_results(home, backend_type):
    options = {"n_workers": 1} if backend_type == "mcore" else {}
    with create_backend(backend_type, **options) as backend:
        op = backend.run(operation(keep, grid={"value": VALUES}, result_directory="out"))
    assert [row["state"] for row in op.rows()] == ["done"] * len(VALUES)
    assert [row["value"] for row in op.rows()] == VALUES
    assert os.listdir(home) == ["out"]
    for room, kept in (("processes", "mine.txt"), ("logs", None)):
        places = list(Path("out", room).iterdir())
        names = {unicodedata.normalize("NFC", path.name).casefold().rstrip(". ") for path in places}
        assert len(names) == len(VALUES)
        assert max(len(os.fsencode(path.name)) for path in places) <= 120
        assert not [path.name for path in places if path.name.startswith((".", "-"))]
        if kept:
            assert {(path / kept).read_text() for path in places} == set(map(ascii, VALUES))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_an_operation_leads_nowhere_else(home, name):
    class Theirs:
        def __init__(self):
            self.processes, self.number_processes, self.name = iter([int]), 1, name
            self.result_directory = None

        def consolidate(self):
            pass

    for op in (Theirs(), operation([int], name=name)):
        with create_backend("serial") as backend:
            backend.run(op)
        assert Path(op.result_directory).parent == home
    assert len(os.listdir(home)) == 2


def see(data, directory):
    return {"here": directory.parent.name}


def test_names_of_data_sets_lead_nowhere_else(home):
    data = {value: n for n, value in enumerate(VALUES) if isinstance(value, str)}
    with create_backend("serial") as backend:
        op = backend.run(operation(see, data=data, result_directory="out"))
    assert [row["state"] for row in op.rows()] == ["done"] * len(data)
    assert len(list(Path("out/processes").iterdir())) == len(data)
    assert os.listdir(home) == ["out"]
