import functools
import itertools
import queue
import threading
import time
from types import SimpleNamespace

import pytest

from daskspace.execution.source import Source

PATIENCE_S = 20


def source_of(processes, ahead=0, **options):
    return Source(SimpleNamespace(processes=processes), ahead, **options)


def take_all(source, most=7):
    """Take until the source has ended, as the dispatcher does."""
    taken = []
    deadline = time.monotonic() + PATIENCE_S
    while not source.ended:
        assert time.monotonic() < deadline
        got = source.take(most)
        taken += got
        if not got:
            time.sleep(0.001)
    return taken


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def raising(n, error):
    yield from range(n)
    raise error


def filled(*items):
    processes = queue.Queue()
    for item in items:
        processes.put(item)
    return processes


@pytest.fixture(params=[0, 5, 1000], ids=["no thread", "5 ahead", "1000 ahead"])
def ahead(request):
    return request.param


KINDS = {
    "list": lambda: list(range(20)),
    "tuple": lambda: tuple(range(20)),
    "iterator": lambda: iter(range(20)),
    "generator": lambda: (n for n in range(20)),
    "iterable": lambda: dict.fromkeys(range(20)).keys(),
    "queue": lambda: filled(*range(20), False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_is_handed_out_once_with_its_position(kind, ahead):
    source = source_of(KINDS[kind](), ahead)
    assert take_all(source) == [(n, n) for n in range(20)]
    assert source.taken == 20
    assert source.exhausted
    assert source.error is None
    assert source.take(1) == []


def test_an_empty_stream_ends_at_once(ahead):
    source = source_of([], ahead)
    assert take_all(source) == []
    assert (source.ended, source.taken) == (True, 0)


def test_without_a_thread_nothing_is_pulled_before_it_is_taken():
    pulled = []
    before = set(threading.enumerate())
    source = source_of(pulled.append(n) or n for n in itertools.count())
    assert pulled == []
    assert source.take(3) == [(0, 0), (1, 1), (2, 2)]
    assert pulled == [0, 1, 2]
    assert source.ready == 0
    assert not source.ended
    assert set(threading.enumerate()) <= before


def test_with_a_thread_an_endless_stream_is_pulled_so_far_ahead_and_no_further():
    pulled = []
    source = source_of((pulled.append(n) or n for n in itertools.count()), 10)
    wait_until(lambda: source.ready == 10)
    time.sleep(0.3)
    assert len(pulled) == 10
    assert len(source.take(100)) == 10
    wait_until(lambda: source.ready == 10)
    assert len(pulled) == 20
    source.stop()


def test_taking_goes_on_while_the_thread_pulls():
    source = source_of(itertools.count(), 50)
    taken = []
    wait_until(lambda: taken.extend(source.take(13)) or len(taken) > 5_000)
    source.stop()
    assert taken == [(n, n) for n in range(len(taken))]


def test_with_a_thread_taking_never_waits_for_a_process_that_is_slow_to_come():
    go_on = threading.Event()

    def slow():
        yield "first"
        go_on.wait(PATIENCE_S)
        yield "second"

    source = source_of(slow(), 10)
    wait_until(lambda: source.ready == 1)
    began = time.monotonic()
    assert source.take(10) == [(0, "first")]
    assert source.take(10) == []
    assert time.monotonic() - began < 1
    assert not source.ended
    go_on.set()
    assert take_all(source) == [(1, "second")]


def test_after_nothing_could_be_taken_the_next_arrival_is_told():
    go_on, told = threading.Event(), threading.Event()

    def slow():
        go_on.wait(PATIENCE_S)
        yield 1

    source = source_of(slow(), 10, arrived=told.set)
    assert source.take(1) == []
    assert not told.wait(0.1)
    go_on.set()
    assert told.wait(PATIENCE_S)
    assert take_all(source) == [(0, 1)]


def test_the_end_is_told_as_well():
    go_on, told = threading.Event(), threading.Event()

    def empty():
        go_on.wait(PATIENCE_S)
        yield from ()

    source = source_of(empty(), 10, arrived=told.set)
    assert source.take(1) == []
    go_on.set()
    assert told.wait(PATIENCE_S)
    assert source.ended


def test_whoever_waits_to_be_told_gets_everything():
    told = queue.SimpleQueue()

    def jerky():
        for n in range(200):
            if n % 20 == 0:
                time.sleep(0.005)
            yield n

    source = source_of(jerky(), 10, arrived=lambda: told.put(None))
    taken = []
    while not source.ended:
        got = source.take(3)
        taken += got
        if not got and not source.ended:
            told.get(timeout=PATIENCE_S)
    assert taken == [(n, n) for n in range(200)]


@pytest.mark.parametrize("error", [ValueError("no more"), SystemExit(1), MemoryError()])
def test_a_generator_that_raises_ends_the_stream_after_what_it_gave(error, ahead):
    source = source_of(raising(3, error), ahead)
    assert take_all(source) == [(n, n) for n in range(3)]
    assert source.error is error


def test_without_a_thread_ctrl_c_reaches_the_caller():
    source = source_of(raising(0, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        source.take(1)
    assert source.error is None


def test_what_is_no_stream_is_refused_at_once(ahead):
    with pytest.raises(TypeError):
        source_of(17, ahead)


# Queues


def test_a_queue_ends_with_false_and_with_nothing_else(ahead):
    source = source_of(filled(0, None, "", [], 1, False, 2), ahead)
    assert take_all(source) == list(enumerate([0, None, "", [], 1]))
    assert source.error is None


def test_a_queue_may_be_filled_while_it_is_drained():
    processes = queue.Queue(4)

    def fill():
        for n in range(100):
            processes.put(n, timeout=PATIENCE_S)
        processes.put(False, timeout=PATIENCE_S)

    creator = threading.Thread(target=fill, daemon=True)
    creator.start()
    source = Source(SimpleNamespace(processes=processes, create_process=creator), 10)
    assert take_all(source) == [(n, n) for n in range(100)]
    assert source.error is None


class Creator:
    def __init__(self, alive=True, exitcode=None):
        self.alive = alive
        self.exitcode = exitcode

    def is_alive(self):
        return self.alive


def test_a_creator_that_died_without_false_ends_the_stream_with_an_error(ahead):
    creator = Creator(alive=False, exitcode=-9)
    source = Source(SimpleNamespace(processes=filled(0, 1), create_process=creator), ahead)
    assert take_all(source) == [(0, 0), (1, 1)]
    assert isinstance(source.error, RuntimeError)
    assert "exit code -9" in str(source.error)
    assert "without the False" in str(source.error)


def test_a_creator_that_lives_is_waited_for():
    creator = Creator()
    source = Source(SimpleNamespace(processes=filled(0), create_process=creator), 10)
    wait_until(lambda: source.ready == 1)
    time.sleep(0.5)
    assert source.take(2) == [(0, 0)]
    assert not source.exhausted
    creator.alive = False
    assert take_all(source) == []
    assert isinstance(source.error, RuntimeError)


def test_a_queue_without_a_creator_is_waited_for():
    processes = filled(0)
    source = Source(SimpleNamespace(processes=processes, create_process=None), 10)
    wait_until(lambda: source.ready == 1)
    time.sleep(0.5)
    assert not source.exhausted
    processes.put(False)
    assert take_all(source) == [(0, 0)]


# Stopping


def test_after_a_stop_nothing_is_taken_and_the_rest_can_be_drained():
    source = source_of(itertools.count(), 10)
    wait_until(lambda: source.ready == 10)
    assert source.take(3) == [(0, 0), (1, 1), (2, 2)]
    source.stop()
    assert source.take(3) == []
    assert source.ended
    rest = source.drain()
    assert rest == [(n, n) for n in range(3, 3 + len(rest))]
    assert len(rest) >= 7
    assert source.taken == 3 + len(rest)


def test_without_a_thread_a_stop_leaves_nothing_to_drain():
    source = source_of(itertools.count())
    source.take(3)
    source.stop()
    assert (source.take(1), source.drain(), source.ended, source.taken) == ([], [], True, 3)


def test_a_stopped_generator_is_closed_where_a_thread_pulled():
    closed = threading.Event()

    def endless():
        try:
            yield from itertools.count()
        finally:
            closed.set()

    source = source_of(endless(), 10)
    wait_until(lambda: source.ready == 10)
    source.stop()
    assert closed.wait(PATIENCE_S)
    assert source.error is None


def test_a_stop_ends_the_thread_even_while_it_waits_at_a_queue():
    before = set(threading.enumerate())
    source = source_of(queue.Queue(), 10)
    (thread,) = set(threading.enumerate()) - before
    assert thread.daemon
    source.stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_processes_may_be_any_objects_and_are_not_called(ahead):
    calls = []
    process = functools.partial(calls.append, 1)
    assert take_all(source_of([process] * 3, ahead)) == [(n, process) for n in range(3)]
    assert calls == []
