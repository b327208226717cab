"""A program that runs or resumes one operation, to be killed: DIR RUNS NUMBER BACKEND."""

import os
import random
import sys
import time
from functools import partial

from daskspace import create_backend, operation
from daskspace.execution.attempt import current_attempt

BACKENDS = {
    "process": partial(create_backend, "serial", isolation="process"),
    "mcore": partial(create_backend, "mcore", n_workers=2),
    "none": partial(create_backend, "serial"),
}
SLOTS = {"process": 1, "mcore": 2, "none": 1}


def note(runs, word, x):
    descriptor = os.open(runs, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{word} {x}\n".encode())
    os.close(descriptor)


def work(runs, x, seed):
    note(runs, "begin", x)
    pause = random.Random(x).random() * 0.02
    path = None
    if x % 4 == 0:
        print("hello from", x)
    if x % 5 == 0:
        path = current_attempt().make_directory() / "first.txt"
        path.write_text(f"{x} {seed}")
    time.sleep(pause)
    if path is not None:
        (path.parent / "last.txt").write_text(f"{x} {seed}")
    if x % 7 == 3:
        raise ValueError(f"not {x}")
    note(runs, "end", x)
    return {"square": x * x, "seen": seed, "path": path and str(path)}


def main(directory, runs, number, backend):
    grid = {"x": range(int(number))}
    with BACKENDS[backend]() as runner:
        op = operation(partial(work, runs), grid, result_directory=directory, resume=True)
        runner.run(op)


if __name__ == "__main__":
    main(*sys.argv[1:])
