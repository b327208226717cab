"""The program that one contender is measured in: `python -m tests.benchmarks.player NAME`.

It opens the contender, and then plays what it is told to by lines of JSON, one answer for each.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from tests.benchmarks import memory, usage, works
from tests.benchmarks.cases import CASES
from tests.benchmarks.contenders import CONTENDERS, NOT_ASKED_FOR, Result, Run

_PR_SET_CHILD_SUBREAPER = 36


class Wrong(Exception):
    """What came back is not what should have."""


def main() -> None:
    """Open the contender that the command line names, and play until it is to be closed."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what others print is no answer
    if sys.platform == "linux":  # whoever detaches itself is found, counted and killed as well
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def answer(play: Callable[[], dict[str, Any]]) -> None:
        try:
            told = play()
        except BaseException as error:
            told = {"error": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(told) + "\n")

    contender = {**CONTENDERS, **NOT_ASKED_FOR}[sys.argv[1]]
    opened = contender.open()
    ways: dict[str, Run] = {}

    def start() -> dict[str, Any]:
        began = time.perf_counter()
        ways.update(opened.__enter__())
        if sys.argv[1] not in NOT_ASKED_FOR:
            _checked(next(iter(ways.values()))(works.echo, [0]), 1)
        return {"seconds": time.perf_counter() - began, "ways": list(ways)}

    def close() -> dict[str, Any]:
        began = time.perf_counter()
        opened.__exit__(None, None, None)
        return {"seconds": time.perf_counter() - began}

    answer(start)
    is_open = True
    for line in sys.stdin:
        task = json.loads(line)
        if "close" in task:
            answer(close)
            is_open = False
        elif "memory" in task:
            answer(lambda: memory.measure(task["memory"]))  # noqa: B023 - called at once
        else:
            answer(lambda: play(ways[task["way"]], task["case"], task["number"]))  # noqa: B023
    if is_open:  # whoever gave the tasks is gone
        close()


def play(run: Run, case_name: str, number: int) -> dict[str, Any]:
    """Return what so many processes of a case cost, once what came back has been checked."""
    case = CASES[case_name]
    with tempfile.TemporaryDirectory() as directory:
        arguments = [case.argument(n, directory) for n in range(number)]
        gc.collect()
        used, machine = usage.processor_seconds(), usage.machine_seconds()
        began = time.perf_counter()
        returned = run(case.work, arguments)
        took = time.perf_counter() - began
        machine = usage.machine_seconds() - machine
        spent = usage.spent(used, usage.processor_seconds())
        _checked(returned, number)
        if not case.is_right(number, directory):
            raise Wrong("the files are not what they should be")
    if isinstance(returned, Result) and returned.seconds is not None:
        took = returned.seconds
    foreign = (machine - sum(spent.values())) / (took * (os.cpu_count() or 1))
    return {"seconds": took, "spent": spent, "foreign": max(foreign, 0.0)}


def _checked(returned: Any, number: int) -> None:
    values = returned.values() if isinstance(returned, Result) else returned
    if len(values) != number:
        raise Wrong(f"{len(values):,} values came of {number:,}")
    if sorted(values) != list(range(number)):
        raise Wrong("the values are not what they should be")


if __name__ == "__main__":
    main()
