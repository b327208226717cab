"""Backends of other packages: who offers what, and what happens when it is broken."""

import json
import subprocess
import sys

import pytest

from daskspace import ConfigError, create_backend
from daskspace.backends import backend_class

GOOD = """
from daskspace import DaskBackend


class Theirs(DaskBackend):
    \"\"\"Runs them elsewhere.\"\"\"

    def _open_cluster(self):
        from dask.local import SynchronousExecutor

        return SynchronousExecutor()
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return what makes a package that offers backends, as an installer would leave it."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(package, entry_points, **modules):
        about = tmp_path / f"{package}-1.0.dist-info"
        about.mkdir()
        about.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1")
        about.joinpath("entry_points.txt").write_text(f"[daskspace.backends]\n{entry_points}\n")
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)

    return install


def test_a_backend_of_another_package_is_made_by_its_name(install):
    install("good-cluster", "theirs = their_backend:Theirs", their_backend=GOOD)
    assert str(create_backend("theirs")) == "Theirs"


def test_a_name_of_ours_stays_ours_and_nobody_is_asked_for_it(install, monkeypatch):
    install("bad-cluster", "serial = their_backend:Theirs", their_backend=GOOD)
    monkeypatch.setattr("daskspace.backends.installed.distributions", lambda: 1 / 0)
    assert str(create_backend("serial")) == "SerialBackend"


def test_a_name_in_two_packages_is_told_with_both(install):
    install("one-cluster", "theirs = their_backend:Theirs", their_backend=GOOD)
    install("two-cluster", "theirs = their_backend:Theirs")
    with pytest.raises(ConfigError, match=r"'theirs' .* one-cluster and two-cluster: uninstall"):
        create_backend("theirs")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("no_such_module:Theirs", "No module named 'no_such_module'"),
        ("their_backend:NoSuchClass", "no attribute 'NoSuchClass'"),
        ("raises:Theirs", "ZeroDivisionError: division by zero"),
        ("their_backend:GOOD", "GOOD is no subclass of daskspace.Backend"),
        ("json:JSONDecoder", "JSONDecoder is no subclass of daskspace.Backend"),
        ("not an entry point", "bad-cluster"),
    ],
)
def test_a_broken_backend_is_told_with_its_package(install, entry, told):
    text = f"{GOOD}\nGOOD = 'no class'\n"
    install("bad-cluster", f"broken = {entry}", their_backend=text, raises="1 / 0")
    with pytest.raises(ConfigError, match="'broken' of the package bad-cluster") as caught:
        create_backend("broken")
    assert told in str(caught.value)


def test_an_unknown_name_is_told_with_those_of_all_packages(install):
    install("good-cluster", "theirs = their_backend:Theirs", their_backend=GOOD)
    with pytest.raises(ConfigError, match=r"known are serial, .*theirs; did you mean 'theirs'\?"):
        backend_class("theirz")


def test_the_list_of_backends_shows_whose_they_are_and_survives_the_broken(install, tmp_path):
    install("bad-cluster", "broken = no_such_module:Theirs\nserial = their_backend:Theirs")
    install("good-cluster", "theirs = their_backend:Theirs", their_backend=GOOD)
    ran = subprocess.run(
        [sys.executable, "-m", "daskspace", "backends", "--json"],
        cwd=tmp_path,  # which is where it looks first
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    rows = {(row["package"], row["name"]): row for row in json.loads(ran.stdout)}
    assert rows["good-cluster", "theirs"]["what"] == "Runs them elsewhere."
    assert rows["good-cluster", "theirs"]["class"] == "Theirs"
    broken = rows["bad-cluster", "broken"]["what"]
    assert broken.startswith("not usable: backend 'broken' of the package bad-cluster")
    assert rows["bad-cluster", "serial"]["what"] == "not usable: the name is daskspace's own"
    assert rows["daskspace", "serial"]["what"].startswith("Runs the processes in place")
