import os
import signal
import subprocess
import sys
import textwrap

import pytest

MODULE = r"""
import os
import time
from pathlib import Path


def square(x):
    return {"y": x * x}


def chatty(x):
    print("said", x)
    return {"y": x * x}


def invert(x):
    with open("inverted.txt", "a") as file:
        file.write(f"{x}\n")
    print("inverting", x)
    return {"y": 1 / x}


def wait(x):
    try:
        os.mkdir("first")
    except FileExistsError:
        Path(f"began-{x}").touch()
        time.sleep(60)


def nap(x):
    time.sleep(0.3)
    return x


def size(data):
    return {"size": os.path.getsize(data)}


def debug(x):
    doubled = 2 * x
    if x == 1:
        breakpoint()
    return doubled


def ask(x):
    return {"answer": input(f"what is {x}? ")}


def fly(x):
    return x
"""


class Place:
    """A directory with a module, where the real command is run."""

    command = (sys.executable, "-m", "daskspace")

    def __init__(self, path):
        self.path = path
        path.joinpath("work.py").write_text(MODULE)

    def write(self, name, text):
        (self.path / name).parent.mkdir(exist_ok=True)
        (self.path / name).write_text(textwrap.dedent(text))
        return name

    def spec(self, function, values="range(3)", more=""):
        """Write an operation of one parameter, `x`."""
        text = f"function: work:{function}\nparameter_ranges:\n  x: {values}\n{more}"
        return self.write(f"{function}.yaml", text)

    def run(self, *arguments, command=None, input=None):
        return subprocess.run(
            [*(command or self.command), *map(str, arguments)],
            cwd=self.path,
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=60,
            env=plain_environment(),
        )

    def files(self):
        return sorted(p.name for p in self.path.iterdir() if p.name != "__pycache__")


def heed_interrupts():
    """Have Ctrl-C end a child even where the tests run in the background, and ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def plain_environment(**more):
    keep = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    return {**keep, **more}


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A place with a finished operation in `out`; process 1 of 3 failed."""
    place = Place(tmp_path_factory.mktemp("finished"))
    ended = place.run("run", place.spec("invert", "[1, 0, 2]"), "-o", "out")
    assert ended.returncode == 3, ended.stderr
    return place
