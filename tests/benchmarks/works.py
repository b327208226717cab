"""What is run: functions of one argument that return the number which it begins with."""

from __future__ import annotations

import time
from pathlib import Path

PARAMETER_BYTES = 50 * 1024
RESULT_BYTES = 1024 * 1024


def echo(number: int) -> int:
    """Do nothing: what is left is the overhead."""
    return number


def nap(task: tuple[int, float]) -> int:
    """Sleep, which takes as long on any machine, where work would not."""
    number, seconds = task
    time.sleep(seconds)
    return number


def measure(task: tuple[int, bytes]) -> int:
    """Tell what came, if all of it came."""
    number, content = task
    return number if len(content) == PARAMETER_BYTES else -1


def write(task: tuple[int, str]) -> int:
    """Write a large result to a file."""
    number, directory = task
    content = number.to_bytes(8, "big") * (RESULT_BYTES // 8)
    Path(directory, f"{number}.bin").write_bytes(content)
    return number


def are_written(number: int, directory: str) -> bool:
    """Whether `write` has been at work so often, and remove what it wrote."""
    files = list(Path(directory).iterdir())
    sizes = [file.stat().st_size for file in files]
    for file in files:
        file.unlink()
    return sizes == [RESULT_BYTES] * number


def nothing_amiss(number: int, directory: str) -> bool:
    """Expect nothing beside the values."""
    return True
