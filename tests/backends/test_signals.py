"""Ctrl-C, SIGTERM and worse: nothing is left running, and what has ended stays.

The programs that get the signals are real ones, in sessions of their own, as a terminal has them.
"""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import cloudpickle
import pexpect
import psutil
import pytest

from daskspace import create_backend, operation
from daskspace.execution.journal import read_journal

MARK = "DASKSPACE_TEST_SIGNALS"
"""A variable that everything has which these tests start, however far it goes away."""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and subreapers")
pytestmark = [pytest.mark.timeout(150), linux_only]
cloudpickle.register_pickle_by_value(sys.modules[__name__])

VARIANTS = {
    "serial": {"type": "serial"},
    "serial in a child": {"type": "serial", "isolation": "process"},
    "mcore": {"type": "mcore", "n_workers": 2},
    "mcore in place": {"type": "mcore", "n_workers": 2, "isolation": "none"},
    "mpi": {"type": "mpi", "n_workers": 2},
}
SLOTS = {"serial": 1, "serial in a child": 1, "mcore": 2, "mcore in place": 2, "mpi": 2}
OTHERS = {
    "serial": "mcore",
    "serial in a child": "serial",
    "mcore": "serial in a child",
    "mcore in place": "mcore",
    "mpi": "serial in a child",
}
"""For each variant another one, to go on with."""
N = 24

# The processes of most tests: those from 3 on wait until there is a gate.
WORK = """
import os
import signal
import subprocess
import sys
import time


def note(text):
    descriptor = os.open("runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\\n".encode())
    os.close(descriptor)


def wait_for(path):
    deadline = time.monotonic() + 100
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.02)


def gated(x):
    note(f"begin {x}")
    if x >= 3:
        wait_for("gate")
    note(f"end {x}")
    return {"y": x * x}


def stubborn(x):
    note(f"begin {x}")
    while x >= 3 and not os.path.exists("gate"):
        try:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            wait_for("gate")
        except (KeyboardInterrupt, ValueError):
            note("passed over")
            if threads:
                wait_for("gate")
    note(f"end {x}")
    return {"y": x * x}


threads = False
SLEEP = "import time; time.sleep(100)"


def parent(x):
    note(f"begin {x}")
    if x >= 3 and not os.path.exists("gate"):
        subprocess.Popen([sys.executable, "-c", SLEEP])
        if os.fork() == 0:  # twice, and away
            os.setsid()
            if os.fork() == 0:
                os.execv(sys.executable, [sys.executable, "-c", SLEEP])
            os._exit(0)
        note(f"parent {x}")
        wait_for("gate")
    note(f"end {x}")
    return {"y": x * x}
"""

PROGRAM = """
import signal
import sys
import time

signal.signal(signal.SIGINT, signal.default_int_handler)
import daskspace
import work

options = {options}
backend = daskspace.create_backend(options.pop("type"), **options)
op = daskspace.operation(work.{function}, {{"x": range({n})}}, result_directory="out", name="op")
try:
    with backend:
        backend.run(op)
except KeyboardInterrupt:
    print("raised KeyboardInterrupt", flush=True)
    sys.exit(7)
print("ran to its end")
"""


class Program:
    """A running program; `runs` tells what its processes have noted."""

    def __init__(self, path, *arguments, ignores_hangup=False):
        self.path = path
        with open(path / "stdout", "w") as out, open(path / "stderr", "w") as err:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=path,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=heed_interrupts,
            )
        self.pid = self._process.pid

    def send(self, number):
        """Send a signal as a terminal does: to the whole group."""
        os.killpg(self.pid, number)

    def kill(self):
        self._process.kill()

    def is_running(self):
        return self._process.poll() is None

    def end(self, within=60):
        try:
            return self._process.wait(within)
        finally:
            self.close()

    def close(self):
        if self.is_running():
            self._process.kill()
        self._process.wait()

    @property
    def stderr(self):
        return (self.path / "stderr").read_text()

    @property
    def stdout(self):
        return (self.path / "stdout").read_text()


def heed_interrupts():
    """Have Ctrl-C end a child even where the tests run in the background, and ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def mark():
    """Mark what is started, and see at the end that nothing of it is left."""
    value = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, value)
        yield value
    nothing_is_left(value, but_for=[p for p in marked(value) if is_own_tracker(p)])


@pytest.fixture(scope="module")
def opened(mark):
    """Backends by variant, each opened once in this interpreter, to go on with."""
    with contextlib.ExitStack() as stack:
        yield functools.cache(lambda name: stack.enter_context(make_backend(VARIANTS[name])))


def make_backend(options):
    options = dict(options)
    return create_backend(options.pop("type"), **options)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work.py").write_text(WORK)
    return tmp_path


@pytest.fixture
def start(here, monkeypatch):
    """Start programs, and see that none of them leaves anything."""
    own = uuid.uuid4().hex
    programs = []

    def start(text, *arguments):
        (here / "program.py").write_text(textwrap.dedent(text))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DASKSPACE_TEST_PROGRAM", own)
            programs.append(Program(here, "program.py", *arguments))
        return programs[-1]

    start.mark = own
    yield start
    for program in programs:
        program.close()
    nothing_is_left(own, "DASKSPACE_TEST_PROGRAM")


@pytest.fixture
def start_variant(start):
    """Start a program that runs N processes by one of the variants."""

    def start_variant(variant, function="gated", n=N, **more):
        options = {**VARIANTS[variant], **more}
        return start(PROGRAM.format(options=options, function=function, n=n))

    start_variant.mark = start.mark
    return start_variant


def marked(value, name=MARK):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(name) == value:
                found.append(process)
    return found


def command_of(process):
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def is_own_tracker(process):
    """Whether it is the resource tracker of these tests, which ends with them."""
    return "resource_tracker" in command_of(process) and process.ppid() == os.getpid()


def nothing_is_left(value, name=MARK, within=15, but_for=()):
    """See that everything has gone which was started with a mark; remove it where it has not."""

    def those_left():
        return [process for process in marked(value, name) if process not in but_for]

    deadline = time.monotonic() + within
    while (left := those_left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    told = [f"{p.pid}: {command_of(p)[:150]}" for p in left if command_of(p)]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    assert not told


def wait_until(condition, within=60):
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


def runs():
    """What processes have noted, and how often."""
    return Counter(Path("runs").read_text().splitlines()) if os.path.exists("runs") else Counter()


def begun():
    return {int(line.split()[1]) for line in runs() if line.startswith("begin")}


def is_held(variant):
    """Whether every slot of a variant is taken by a process that waits for the gate."""
    return len([x for x in begun() if x >= 3]) == SLOTS[variant]


def states(directory="out"):
    """The last state of each process that the journal has, which must be sound."""
    damaged = []
    found = {}
    for _, entry in read_journal(Path(directory, "journal.jsonl"), damaged.append):
        if "state" in entry:
            found[entry["parameters"]["x"]] = entry["state"]
    assert damaged == []
    return found


def table_states():
    lines = Path("out/table.csv").read_text().splitlines()
    header = lines[0].split(",")
    rows = [dict(zip(header, line.split(","), strict=False)) for line in lines[1:]]
    return {int(row["x"]): row["state"] for row in rows}


def go_on(opened, variant, n=N, function="gated"):
    """Resume in this interpreter; each process must be done, and have come to its end once."""
    done = {x for x, state in states().items() if state == "done"}
    before = runs()
    Path("gate").touch()
    namespace = {"__name__": "resumed"}
    exec(compile(WORK, "resumed", "exec"), namespace)
    op = operation(
        namespace[function], {"x": range(n)}, result_directory="out", name="op", resume=True
    )
    opened(variant).run(op)
    assert {row["x"]: row["state"] for row in op.rows()} == dict.fromkeys(range(n), "done")
    assert {row["x"]: row["y"] for row in op.rows()} == {x: x * x for x in range(n)}
    now = runs()
    assert {x: now[f"end {x}"] for x in range(n)} == dict.fromkeys(range(n), 1)
    for x in done:
        assert now[f"begin {x}"] == before[f"begin {x}"] == 1
    assert table_states() == dict.fromkeys(range(n), "done")
    assert not Path("out/.attempts").exists()


# The three steps


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_first_ctrl_c_lets_what_runs_end_and_begins_no_more(start_variant, opened, variant):
    program = start_variant(variant)
    wait_until(lambda: is_held(variant))
    before = begun()
    program.send(signal.SIGINT)
    time.sleep(1.5)
    assert program.is_running()
    Path("gate").touch()
    assert program.end() == 7, program.stderr
    assert program.stdout == "raised KeyboardInterrupt\n"
    assert program.stderr == ""
    assert begun() == before
    ended = states()
    assert table_states() == ended
    assert {x for x, state in ended.items() if state == "done"} == before
    assert set(ended.values()) <= {"done", "cancelled"}
    nothing_is_left(start_variant.mark, "DASKSPACE_TEST_PROGRAM")
    go_on(opened, OTHERS[variant])


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_second_ctrl_c_stops_what_runs(start_variant, opened, variant):
    program = start_variant(variant)
    wait_until(lambda: is_held(variant))
    before = begun()
    program.send(signal.SIGINT)
    time.sleep(1)
    assert program.is_running()
    program.send(signal.SIGINT)
    assert program.end() == 7, program.stderr
    assert program.stdout == "raised KeyboardInterrupt\n"
    assert program.stderr == ""
    assert begun() == before
    ended = states()
    assert table_states() == ended
    assert {x: ended[x] for x in before} == {x: "cancelled" if x >= 3 else "done" for x in before}
    assert not any(line.startswith("end") for line in runs() if int(line.split()[1]) >= 3)
    nothing_is_left(start_variant.mark, "DASKSPACE_TEST_PROGRAM")
    go_on(opened, variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sigterm_stops_what_runs_at_once(start_variant, opened, variant):
    program = start_variant(variant)
    wait_until(lambda: is_held(variant))
    before = begun()
    os.kill(program.pid, signal.SIGTERM)  # as batch systems and `kill` do
    assert program.end() == 7, program.stderr
    assert program.stdout == "raised KeyboardInterrupt\n"
    assert program.stderr == ""
    ended = states()
    assert table_states() == ended
    assert {x: ended[x] for x in before} == {x: "cancelled" if x >= 3 else "done" for x in before}
    nothing_is_left(start_variant.mark, "DASKSPACE_TEST_PROGRAM")
    go_on(opened, variant)


@pytest.mark.parametrize("variant", ["serial in a child", "mcore"])
def test_sigterm_to_the_whole_group_stops_what_runs_too(start_variant, opened, variant):
    program = start_variant(variant)
    wait_until(lambda: is_held(variant))
    program.send(signal.SIGTERM)
    assert program.end() == 7, program.stderr
    assert program.stdout == "raised KeyboardInterrupt\n"
    assert "distributed." not in program.stderr
    assert states() == table_states()
    nothing_is_left(start_variant.mark, "DASKSPACE_TEST_PROGRAM")
    go_on(opened, variant)


def hold_hosts(value):
    """Have nothing answer that could end: hosts stand still."""
    held = [p for p in marked(value, "DASKSPACE_TEST_PROGRAM") if "execution.host" in command_of(p)]
    for process in held:
        process.suspend()
    return held


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_third_ctrl_c_ends_the_program_at_once_with_130(start_variant, opened, variant):
    program = start_variant(variant, "stubborn")
    wait_until(lambda: is_held(variant))
    held = hold_hosts(start_variant.mark)
    try:
        program.send(signal.SIGINT)
        time.sleep(0.5)
        program.send(signal.SIGINT)
        time.sleep(0.5)
        assert program.is_running()
        program.send(signal.SIGINT)
        assert program.end(10) == 130, program.stderr
    finally:
        for process in held:
            process.resume()
    assert program.stdout == ""
    nothing_is_left(start_variant.mark, "DASKSPACE_TEST_PROGRAM")
    go_on(opened, variant, function="stubborn")


@pytest.mark.parametrize("variant", ["serial in a child", "mcore"])
def test_a_volley_of_ctrl_c_ends_the_program_and_loses_nothing(start_variant, opened, variant):
    program = start_variant(variant)
    wait_until(lambda: is_held(variant))
    for _ in range(12):
        with contextlib.suppress(ProcessLookupError):
            program.send(signal.SIGINT)
        time.sleep(0.05)
    assert program.end() != 0
    nothing_is_left(start_variant.mark, "DASKSPACE_TEST_PROGRAM")
    go_on(opened, variant)


@pytest.mark.parametrize("variant", ["serial in a child", "mcore"])
def test_two_signals_at_the_same_time_are_noticed(start_variant, opened, variant):
    program = start_variant(variant)
    wait_until(lambda: is_held(variant))
    time.sleep(0.2)
    os.kill(program.pid, signal.SIGTERM)
    os.kill(program.pid, signal.SIGINT)
    assert program.end(40) in (7, 130), program.stderr
    nothing_is_left(start_variant.mark, "DASKSPACE_TEST_PROGRAM")
    go_on(opened, OTHERS[variant])


# Signals that come early and late

STAGES = """
import signal
import sys
import time
from pathlib import Path

signal.signal(signal.SIGINT, signal.default_int_handler)
import daskspace
import work


def reach(stage):
    if stage == sys.argv[1]:
        Path("reached").touch()


class Backend(type(daskspace.create_backend({type!r}))):
    def _open_cluster(self):
        reach("stage_in")
        opened = super()._open_cluster()
        return opened

    def execute(self, *arguments):
        reach("execute")
        return super().execute(*arguments)

    def _disconnect(self):
        reach("close")
        return super()._disconnect()


op = daskspace.operation(work.gated, {{"x": range({n})}}, result_directory="out", name="op")


def consolidate():
    reach("consolidate")
    if sys.argv[1] == "consolidate":
        time.sleep(100)


op.consolidate = consolidate
try:
    with Backend(**{options}) as backend:
        backend.run(op)
except KeyboardInterrupt:
    sys.exit(7)
"""


MOMENTS = [
    ("serial in a child", "execute", 0.1),
    ("serial in a child", "consolidate", 0.1),
    ("mcore", "stage_in", 0.4),
    ("mcore", "execute", 0),
    ("mcore", "consolidate", 0.1),
    ("mcore", "close", 0.1),
    ("mpi", "stage_in", 0.6),
    ("mpi", "close", 0.1),
]


@pytest.fixture
def start_stage(start):
    def start_stage(variant, stage):
        options = dict(VARIANTS[variant])
        if stage in ("consolidate", "close"):
            Path("gate").touch()
        text = STAGES.format(type=options.pop("type"), options=options, n=N)
        return start(text, stage)

    start_stage.mark = start.mark
    return start_stage


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("variant", "stage", "pause"), MOMENTS)
def test_a_signal_in_any_stage_ends_the_program_and_leaves_nothing(
    start_stage, opened, variant, number, stage, pause
):
    program = start_stage(variant, stage)
    wait_until(lambda: os.path.exists("reached"))
    time.sleep(pause)
    program.send(number)
    time.sleep(2 if stage == "execute" else 0)  # it drains
    Path("gate").touch()
    code = program.end()
    if stage != "close":
        assert code != 0
        assert code in ((7,) if number == signal.SIGINT else (7, -signal.SIGTERM)), program.stderr
    nothing_is_left(start_stage.mark, "DASKSPACE_TEST_PROGRAM")
    if stage in ("consolidate", "close"):
        assert states() == table_states() == dict.fromkeys(range(N), "done")
    if os.path.exists("out/journal.jsonl"):
        go_on(opened, "serial")
    else:
        assert stage == "stage_in"
        assert not os.path.exists("out")


def test_a_program_that_goes_on_after_ctrl_c_at_the_start_has_no_workers_left(start):
    program = start(
        """
        import os
        import signal
        import threading

        signal.signal(signal.SIGINT, signal.default_int_handler)
        import daskspace
        import psutil

        class Backend(type(daskspace.create_backend("mcore"))):
            def _open_cluster(self):
                threading.Timer(0.4, os.kill, (os.getpid(), signal.SIGINT)).start()
                return super()._open_cluster()

        backend = Backend(n_workers=2)
        try:
            backend.run(daskspace.operation([int]))
        except KeyboardInterrupt:
            print("raised KeyboardInterrupt", backend.state)
        children = psutil.Process().children()
        workers = [c for c in children if "resource_tracker" not in " ".join(c.cmdline())]
        print(len(psutil.wait_procs(workers, timeout=15)[1]), os.listdir("."))
        """
    )
    assert program.end() == 0, program.stderr
    first, second = program.stdout.splitlines()
    assert first == "raised KeyboardInterrupt idling"
    assert second.startswith("0 ")
    assert "int-" not in second


# Whose signals they are


def test_a_program_with_a_sigint_handler_of_its_own_keeps_it(start):
    program = start(
        """
        import signal
        import sys
        from pathlib import Path

        import daskspace
        import work

        def own(number, frame):
            Path("gate").touch()
            print("mine", number, flush=True)

        signal.signal(signal.SIGINT, own)
        signal.signal(signal.SIGTERM, own)
        for options in [{}, {"isolation": "process"}]:
            op = daskspace.operation(work.gated, {"x": range(6)})
            with daskspace.create_backend("serial", **options) as backend:
                backend.run(op)
            print({row["state"] for row in op.rows()}, flush=True)
            assert signal.getsignal(signal.SIGINT) is own
            assert signal.getsignal(signal.SIGTERM) is own
            Path("gate").unlink()
        """
    )
    for number, times in ((signal.SIGINT, 1), (signal.SIGTERM, 2)):
        wait_until(lambda times=times: runs()["begin 3"] == times)
        os.kill(program.pid, number)
        wait_until(lambda times=times: program.stdout.count("done") == times)
    assert program.end() == 0, program.stderr
    assert program.stdout == "mine 2\n{'done'}\nmine 15\n{'done'}\n"


def test_the_handlers_are_those_of_before_once_it_has_ended(here):
    handler, before = signal.getsignal(signal.SIGTERM), signal.default_int_handler
    inherited = signal.signal(signal.SIGINT, before)
    try:
        for options in VARIANTS["serial"], VARIANTS["serial in a child"]:
            seen = []
            op = operation([lambda seen=seen: seen.append(signal.getsignal(signal.SIGINT))])
            with make_backend(options) as backend:
                backend.run(op)
                assert signal.getsignal(signal.SIGINT) is before
                assert signal.getsignal(signal.SIGTERM) is handler
            if options == VARIANTS["serial"]:
                assert seen[0] not in (before, None)
    finally:
        signal.signal(signal.SIGINT, inherited)


@pytest.mark.parametrize("variant", ["serial", "serial in a child", "mcore"])
def test_an_operation_runs_in_a_thread_and_changes_no_handler(opened, here, variant):
    Path("gate").touch()
    handlers = []

    def look(x):
        return x * x

    def run():
        op = operation(look, {"x": range(5)})
        opened(variant).run(op)
        handlers.append(op.rows())

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        assert signal.getsignal(signal.SIGINT) is before
        thread.join(0.01)
    (rows,) = handlers
    assert [row["state"] for row in rows] == ["done"] * 5


def test_ctrl_c_while_it_runs_in_a_thread_is_the_programs_own(start):
    program = start(
        """
        import signal
        import threading
        from pathlib import Path

        signal.signal(signal.SIGINT, signal.default_int_handler)
        import daskspace
        import work

        op = daskspace.operation(work.gated, {"x": range(6)}, result_directory="out")

        def run():
            with daskspace.create_backend("mcore", n_workers=2) as backend:
                backend.run(op)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            thread.join()
        except KeyboardInterrupt:
            print("mine", flush=True)
            Path("gate").touch()
            thread.join()
        print({row["state"] for row in op.rows()})
        """
    )
    wait_until(lambda: is_held("mcore"))
    program.send(signal.SIGINT)
    assert program.end() == 0, program.stderr
    assert program.stdout == "mine\n{'done'}\n"


def test_a_program_in_the_background_that_ignores_ctrl_c_goes_on_ignoring_it(start):
    program = start(
        """
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        import daskspace
        import work

        for options in [{"type": "serial"}, {"type": "mcore", "n_workers": 1}]:
            op = daskspace.operation(work.gated, {"x": range(6)})
            with daskspace.create_backend(options.pop("type"), **options) as backend:
                backend.run(op)
            print({row["state"] for row in op.rows()}, flush=True)
        """
    )
    wait_until(lambda: runs()["begin 3"])
    program.send(signal.SIGINT)
    time.sleep(0.5)
    Path("gate").touch()
    wait_until(lambda: runs()["end 5"] == 2 or not program.is_running())
    program.send(signal.SIGINT)
    assert program.end() == 0, program.stderr
    assert program.stdout == "{'done'}\n{'done'}\n"


def raise_interrupt(x):
    if x == 2:
        raise KeyboardInterrupt("of my own")
    return x


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_keyboard_interrupt_that_a_process_raises_is_its_own_failure(opened, here, variant):
    op = opened(variant).run(operation(raise_interrupt, {"x": range(5)}))
    rows = op.rows()
    assert [row["state"] for row in rows] == ["done", "done", "failed", "done", "done"]
    assert (rows[2]["error"], rows[2]["message"]) == ("KeyboardInterrupt", "of my own")


def interrupt_oneself(x):
    if x == 2:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
    return x


@pytest.mark.parametrize("variant", ["serial in a child", "mcore"])
def test_sigint_to_oneself_is_a_processs_own_failure_where_it_is_isolated(opened, here, variant):
    op = opened(variant).run(operation(interrupt_oneself, {"x": range(5)}))
    rows = op.rows()
    assert [row["state"] for row in rows] == ["done", "done", "failed", "done", "done"]
    assert rows[2]["error"] == "KeyboardInterrupt"


def test_sigint_to_oneself_in_place_is_ctrl_c(start, opened):
    program = start(
        """
        import os
        import signal

        signal.signal(signal.SIGINT, signal.default_int_handler)
        import daskspace
        import work

        def interrupt_oneself(x):
            work.note(f"begin {x}")
            if x == 2:
                os.kill(os.getpid(), signal.SIGINT)
            work.note(f"end {x}")
            return {"y": x * x}

        op = daskspace.operation(
            interrupt_oneself, {"x": range(6)}, result_directory="out", name="op"
        )
        with daskspace.create_backend("serial") as backend:
            try:
                backend.run(op)
            except KeyboardInterrupt:
                print(*sorted({row["state"] for row in op.rows() if row["x"] < 3}))
                print(*sorted({row["state"] for row in op.rows() if row["x"] >= 3}))
        """
    )
    assert program.end() == 0, program.stderr
    assert program.stdout in ("done\n\n", "done\ncancelled\n"), "what was pulled is told"
    go_on(opened, "serial", 6)


@pytest.mark.parametrize("variant", ["serial", "mcore"])
def test_a_backend_that_was_interrupted_takes_the_next_operation(start, variant):
    options = VARIANTS[variant]
    program = start(
        f"""
        import signal
        import threading

        signal.signal(signal.SIGINT, signal.default_int_handler)
        import daskspace
        import work

        options = {options}

        def op(**more):
            grid = {{"x": range({N})}}
            return daskspace.operation(
                work.gated, grid, result_directory="out", name="op", **more
            )

        with daskspace.create_backend(options.pop("type"), **options) as backend:
            try:
                backend.run(op())
            except KeyboardInterrupt:
                print("interrupted", backend.state, flush=True)
            open("gate", "w").close()
            print(len(backend.run(op(resume=True)).rows()), flush=True)
        """
    )
    wait_until(lambda: is_held(variant))
    os.kill(program.pid, signal.SIGTERM)
    assert program.end() == 0, program.stderr
    assert program.stdout == f"interrupted idling\n{N}\n"
    assert table_states() == dict.fromkeys(range(N), "done")
    assert {runs()[f"end {x}"] for x in range(N)} == {1}


def test_ctrl_c_during_retrieve_leaves_an_operation_that_can_be_consolidated(start):
    program = start(
        """
        import signal

        signal.signal(signal.SIGINT, signal.default_int_handler)
        import daskspace
        import work

        op = daskspace.operation(work.gated, {"x": range(24)}, result_directory="out", name="op")
        with daskspace.create_backend("mcore", n_workers=2) as backend:
            backend.stage_in(op)
            backend.execute()
            try:
                backend.retrieve()
            except KeyboardInterrupt:
                print("interrupted", backend.state, flush=True)
            if backend.state == "executing":
                backend.retrieve()
            backend.consolidate()
            print(len(op.rows()))
        """
    )
    wait_until(lambda: is_held("mcore"))
    os.kill(program.pid, signal.SIGTERM)
    assert program.end() == 0, program.stderr
    assert program.stdout.startswith("interrupted ")
    assert table_states() == states()


# Killed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
@pytest.mark.parametrize("variant", ["serial in a child", "mcore"])
def test_a_program_that_is_killed_leaves_no_grandchild(start_variant, opened, variant, number):
    program = start_variant(variant, "parent")
    wait_until(lambda: len([r for r in runs() if r.startswith("parent")]) == SLOTS[variant])
    if number == signal.SIGHUP:
        program.send(number)
    else:
        program.kill()
    assert program.end() == -number
    nothing_is_left(start_variant.mark, "DASKSPACE_TEST_PROGRAM", 10)
    go_on(opened, OTHERS[variant], function="parent")


def test_a_terminal_that_hangs_up_leaves_nothing(here, opened):
    own = uuid.uuid4().hex
    options = VARIANTS["mcore"]
    (here / "program.py").write_text(PROGRAM.format(options=options, function="parent", n=N))
    child = pexpect.spawn(
        sys.executable,
        ["program.py"],
        cwd=str(here),
        env={**os.environ, "DASKSPACE_TEST_PROGRAM": own},
        preexec_fn=heed_interrupts,
        ignore_sighup=False,
    )
    try:
        wait_until(lambda: len([r for r in runs() if r.startswith("parent")]) == 2)
        os.close(child.child_fd)
        nothing_is_left(own, "DASKSPACE_TEST_PROGRAM", 10)
    finally:
        with contextlib.suppress(OSError):
            os.kill(child.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            os.waitpid(child.pid, 0)
        child.closed, child.child_fd, child.terminated = True, -1, True
    go_on(opened, "serial in a child", function="parent")


COMMANDS = """
import sys
from pathlib import Path

sys.path.insert(0, {tests!r})
import daskspace
import work
from tests.backends.backends_under_test import commands_backend

with commands_backend() as backend:
    op = daskspace.operation(work.parent, {{"x": range({n})}}, result_directory="out", name="op")
    backend.stage_in(op)
    Path("workers").write_text(repr([
        (i["nanny"], i["id"]) for i in backend.client.scheduler_info()["workers"].values()
    ]))
    backend.execute()
    backend.retrieve(None)
    backend.consolidate()
"""


@pytest.mark.parametrize("which", ["worker", "nanny"])
def test_what_ran_on_a_worker_ends_when_the_worker_or_its_nanny_is_killed(start, which):
    program = start(COMMANDS.format(tests=str(Path(__file__).parents[2]), n=8))
    wait_until(lambda: len([r for r in runs() if r.startswith("parent")]) == 2)
    found = marked(start.mark, "DASKSPACE_TEST_PROGRAM")
    hosts = [p for p in found if "execution.host" in command_of(p)]
    worker = next(p for p in found if any(h.ppid() == p.pid for h in hosts) and p not in hosts)
    below = worker.children(recursive=True)
    assert len([p for p in below if "time.sleep(100)" in command_of(p)]) >= 1
    if which == "worker":
        worker.kill()
    else:
        psutil.Process(worker.ppid()).kill()
        below.append(worker)
    # what went away from its parents is below nobody: see what notes tell, too
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive
    Path("gate").touch()
    assert program.end(100) == 0, program.stderr
    assert set(table_states().values()) == {"done"}
    assert {runs()[f"end {x}"] for x in range(8)} == {1}
    nothing_is_left(start.mark, "DASKSPACE_TEST_PROGRAM")


# A debugger, and a notebook

DEBUGGED = """
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
import daskspace
import work


def debugged(x):
    work.note(f"begin {x}")
    if x == 1:
        breakpoint()
    if x == 3:
        work.wait_for("gate")
    work.note(f"end {x}")
    return {"y": x * x}


op = daskspace.operation(debugged, {"x": range(6)}, result_directory="out", name="op")
try:
    with daskspace.create_backend("serial") as backend:
        backend.run(op)
except KeyboardInterrupt:
    print("raised KeyboardInterrupt", [row["state"] for row in op.rows()])
"""


@pytest.fixture
def terminal(here):
    children = []

    def start(text):
        (here / "program.py").write_text(text)
        children.append(
            pexpect.spawn(
                sys.executable,
                ["program.py"],
                cwd=str(here),
                env={**os.environ, "TERM": "dumb", "PYTHON_BASIC_REPL": "1"},
                encoding="utf-8",
                timeout=40,
                preexec_fn=heed_interrupts,
            )
        )
        return children[-1]

    yield start
    for child in children:
        child.close(force=True)


def test_at_the_prompt_of_the_debugger_ctrl_c_is_the_debuggers(terminal, opened):
    child = terminal(DEBUGGED)
    child.expect_exact("(Pdb) ")
    for _ in range(3):
        child.sendintr()
        child.expect_exact("(Pdb) ")
    child.sendline("p 'x is', x")
    child.expect_exact("('x is', 1)")
    child.expect_exact("(Pdb) ")
    child.sendline("c")
    wait_until(lambda: runs()["begin 3"])
    assert runs()["end 2"] == 1
    child.close(force=True)


def test_once_the_debugger_was_left_ctrl_c_drains(terminal, opened):
    child = terminal(DEBUGGED)
    child.expect_exact("(Pdb) ")
    child.sendintr()
    child.expect_exact("(Pdb) ")
    child.sendline("c")
    wait_until(lambda: runs()["begin 3"])
    child.sendintr()
    time.sleep(0.5)
    Path("gate").touch()
    child.expect(pexpect.EOF)
    assert "raised KeyboardInterrupt ['done', 'done', 'done', 'done'" in child.before
    assert child.before.count("'done'") == 4
    child.close()
    go_on(opened, "serial", 6)


CELLS = """
import daskspace, os, sys
sys.path.insert(0, os.getcwd())
import work
options = {options}
backend = daskspace.create_backend(options.pop("type"), **options)
def op(**more):
    return daskspace.operation(
        work.gated, {{"x": range(24)}}, result_directory="out", name="op", **more)
"""


@pytest.fixture
def notebook(here):
    """Run cells in a kernel; `tell` gives what a cell printed, and the error it ended with."""
    manager = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    own = uuid.uuid4().hex
    kernel = manager.KernelManager(kernel_name="python3")
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.kernel_spec.argv = command
    with contextlib.ExitStack() as stack:
        inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
        stack.callback(signal.signal, signal.SIGINT, inherited)
        environment = {**os.environ, "DASKSPACE_TEST_PROGRAM": own, "IPYTHONDIR": str(here / "i")}
        kernel.start_kernel(cwd=str(here), env=environment)
    client = kernel.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield kernel, client
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
        kernel.cleanup_resources()
    nothing_is_left(own, "DASKSPACE_TEST_PROGRAM")


def answer_of(client, request, within=60):
    """Return the status of a cell, its error, and what it printed."""
    printed, error = [], None
    deadline = time.monotonic() + within
    while True:
        message = client.get_iopub_msg(timeout=max(deadline - time.monotonic(), 0.1))
        if message["parent_header"].get("msg_id") != request:
            continue
        content = message["content"]
        if message["msg_type"] == "stream":
            printed.append(content["text"])
        if message["msg_type"] == "error":
            error = content["ename"]
        if message["msg_type"] == "status" and content["execution_state"] == "idle":
            return error, "".join(printed)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["serial", "mcore"])
def test_interrupting_a_notebook_is_ctrl_c(notebook, variant):
    kernel, client = notebook
    assert answer_of(client, client.execute(CELLS.format(options=VARIANTS[variant]))) == (None, "")
    request = client.execute("backend.run(op())")
    wait_until(lambda: is_held(variant))
    before = begun()
    kernel.interrupt_kernel()
    time.sleep(1)
    Path("gate").touch()
    error, _ = answer_of(client, request)
    assert error == "KeyboardInterrupt"
    assert begun() == before
    assert {x for x, state in states().items() if state == "done"} == before
    request = client.execute("print(len(backend.run(op(resume=True)).rows()))")
    assert answer_of(client, request) == (None, "24\n")
    assert table_states() == dict.fromkeys(range(24), "done")
    assert {runs()[f"end {x}"] for x in range(24)} == {1}

    os.remove("gate")
    Path("runs").unlink()
    request = client.execute("other = op(); other.result_directory = 'other'; backend.run(other)")
    wait_until(lambda: is_held(variant))
    kernel.interrupt_kernel()
    time.sleep(1)
    kernel.interrupt_kernel()
    error, _ = answer_of(client, request)
    assert error == "KeyboardInterrupt"
    assert "cancelled" in states("other").values()
    assert answer_of(client, client.execute("backend.close(); print(backend.state)")) == (
        None,
        "idling\n",
    )
