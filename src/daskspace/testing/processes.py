"""What the processes of the contract do; workers import it, so it needs no pytest."""

from __future__ import annotations

import functools
import os
import queue
import threading
import time
from pathlib import Path

from daskspace.operations.base import Operation, Process
from daskspace.operations.function import operation


def square(x):
    return {"y": x * x}


def squares(n=5, **options):
    return operation(square, grid={"x": range(n)}, **options)


def injected(x, data, run, seed, directory, log):
    log.info("in the log")
    print("printed")
    (directory / "file.txt").write_text(data)
    return {"ran": run, "seed_seen": seed, "cwd": os.getcwd()}


def seed_of(x, seed):
    return seed


def seeds_of(xs):
    return operation(seed_of, grid={"x": xs})


def chdir_away(x):
    there = os.getcwd()
    os.chdir("/")
    return there


def import_beside(x):
    import beside_it  # type: ignore[import-not-found]

    return beside_it.ANSWER


def import_changing(x):
    import changing  # type: ignore[import-not-found]

    return changing.ANSWER


def change(layers):
    layers.append(0)
    return len(layers)


class Counted:
    pickled = 0

    def __reduce__(self):
        Counted.pickled += 1
        return Counted, ()


def use(x, data):
    time.sleep(0.001)
    return type(data).__name__


class Awkward(Exception):
    def __init__(self, first, *, second):
        super().__init__(first, second)


def endless_recursion():
    return endless_recursion()


def fail(kind):
    match kind:
        case "value":
            raise ValueError("a value")
        case "awkward":
            raise Awkward(1, second=2)
        case "recursion":
            endless_recursion()
        case "exit":
            raise SystemExit(3)
        case "interrupt":
            raise KeyboardInterrupt
        case "unpicklable":
            return threading.Lock()
        case "huge":
            raise RuntimeError("x" * 200_000_000)
        case "stop":
            raise StopIteration
        case "generator exit":
            raise GeneratorExit
        case "group":
            raise BaseExceptionGroup("several", [KeyboardInterrupt(), ValueError()])
    return {"kind": kind}


FAILURES = {
    "value": "ValueError",
    "awkward": "Awkward",
    "recursion": "RecursionError",
    "exit": "SystemExit",
    "interrupt": "KeyboardInterrupt",
    "unpicklable": "TypeError",
    "huge": "RuntimeError",
    "stop": "StopIteration",
    "generator exit": "GeneratorExit",
    "group": "BaseExceptionGroup",
}


def maybe_fail(x):
    return fail(list(FAILURES)[x // 20] if x % 20 == 7 and x < 140 else "none")


class NotLoadable:
    def __reduce__(self):
        return _explode, ()


def _explode():
    raise ImportError("not here")


def use_it(thing):
    return 1


def touch(n):
    Path(f"made-{n}").touch()


class Original:
    """An operation as the original's: no base class, a queue ended by False."""

    def __init__(self, directory, n=3):
        self.result_directory = str(directory)
        self.processes = queue.Queue()
        for x in range(n):
            self.processes.put(functools.partial(square, x))
        self.processes.put(False)
        self.number_processes = 17
        self.create_process = None
        self.consolidated = 0

    def consolidate(self):
        self.consolidated += 1


class Cube(Process):
    def __init__(self, x):
        self.parameters = {"x": x}

    def __call__(self):
        return self.parameters["x"] ** 3


class Cubes(Operation):
    def __init__(self):
        super().__init__([Cube(x) for x in range(4)], name="cubes")

    def consolidate(self):
        Path(self.result_directory, "sum.txt").write_text(str(sum(r["value"] for r in self.rows())))


def time_sleep(x):
    time.sleep(0.05)


def sleep_long(x):
    time.sleep(60)


def typed(x):
    return {"same": x}
