"""The backend that docs/backends.md shows, installed and run as a user would."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/backends.md"
SOME = "steps_lead or 200_processes or cannot_be_unpickled or once_per_operation or without_us"


@pytest.fixture
def installed(tmp_path):
    """Take the files out of the page, and install them as pip does, without its network."""
    blocks = re.findall(r'^```\w+ title="(.+?)"\n(.*?)^```', PAGE.read_text(), re.M | re.S)
    for name, text in blocks:
        (tmp_path / name).write_text(text)
    project = tomllib.loads((tmp_path / "pyproject.toml").read_text())["project"]
    packages = tmp_path / "packages"
    about = packages / f"{project['name']}-{project['version']}.dist-info"
    about.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    about.joinpath("METADATA").write_text(metadata)
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    about.joinpath("entry_points.txt").write_text("\n".join(lines))
    (tmp_path / "daskspace_commands.py").rename(packages / "daskspace_commands.py")
    return tmp_path


@pytest.mark.timeout(300)
def test_the_documented_backend_can_be_installed_and_keeps_the_contract(installed):
    def python(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=installed,
            env={**os.environ, "PYTHONPATH": str(installed / "packages")},
            capture_output=True,
            text=True,
            timeout=280,
        )

    rows = json.loads(python("-m", "daskspace", "backends", "--json").stdout)
    assert next(row for row in rows if row["name"] == "commands") == {
        "name": "commands",
        "class": "CommandsBackend",
        "package": "daskspace-commands",
        "what": "Runs the processes on workers that are started as commands.",
    }
    ran = python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SOME, "test_commands.py")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"^5 passed, \d+ deselected", ran.stdout, re.M), ran.stdout
