"""How a process of pySPACE's own kind is called, and what is as before then."""

import functools
import logging
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from logging.handlers import SocketHandler

import pytest

from daskspace.execution.original import call_original, call_with, fresh, is_original
from daskspace.execution.preparation import Preparation
from daskspace.execution.travel import Shared
from daskspace.operations.base import Process

VALUES = {"configuration": 1, "handler_class": 2, "handler_args": 3, "backend_com": 4}


class Recorded:
    """Notes which of its methods are called."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def prepare(self, configuration, handler_class=None, handler_args=None, backend_com=None):
        self.calls.append(("prepare", configuration, handler_class, handler_args, backend_com))

    def __call__(self):
        self.calls.append("call")
        if self.error is not None:
            raise self.error

    def post_benchmarking(self):
        self.calls.append("post")
        raise RuntimeError("nor can this be done")


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda configuration, handler_class=None: (configuration, handler_class), (1, 2)),
        (lambda backend_com, configuration: (backend_com, configuration), (4, 1)),
        (lambda conf: conf, 1),
        (lambda conf, handler, args=None: (conf, handler, args), (1, 2, 3)),
        (lambda conf, handler, args, com, more=5: (conf, com, more), (1, 4, 5)),
        (lambda: (), ()),
        (lambda other=7: other, 1),
        (lambda conf=None, handler_class=None: (conf, handler_class), (1, 2)),
        (lambda configuration, other=7: (configuration, other), (1, 7)),
        (lambda *all_of_them: all_of_them, (1, 2, 3, 4)),
        (lambda configuration, *rest: (configuration, rest), (1, ())),
        (lambda **named: named, VALUES),
        (lambda configuration, **named: len(named), 3),
        (lambda *, handler_args: handler_args, 3),
        (functools.partial(lambda a, b: (a, b), 0), (0, 1)),
    ],
)
def test_a_function_is_called_with_what_it_takes(function, expected):
    assert call_with(function, VALUES) == expected


def test_what_can_be_prepared_is_a_process_of_its_kind():
    class Own(Process):
        def __call__(self):
            return 1

    assert is_original(Recorded())
    assert not is_original(Own())
    assert not is_original(functools.partial(print))
    assert not is_original(print)


def test_a_process_is_prepared_and_called_and_nothing_else():
    process = Recorded()
    call_original(process, Preparation(Shared({"a": 1}), ("127.0.0.1", 1), 20, ("127.0.0.1", 2)))
    handler = SocketHandler, {"host": "127.0.0.1", "port": 2}
    assert process.calls == [("prepare", {"a": 1}, *handler, ("127.0.0.1", 1)), "call"]


def test_without_anything_to_prepare_it_with_it_gets_none():
    process = Recorded()
    call_original(process, Preparation())
    assert process.calls == [("prepare", None, None, None, None), "call"]


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1), KeyboardInterrupt()])
def test_after_an_exception_it_is_cleared_up_once(error):
    process = Recorded(error)
    with pytest.raises(type(error)):
        call_original(process, Preparation())
    assert process.calls[1:] == ["call", "post"]


def test_what_it_changes_is_as_before_then(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHANGED", "before")
    monkeypatch.setenv("REMOVED", "before")
    kept = logging.NullHandler()
    closed = threading.Event()

    class Handler(logging.Handler):
        def close(self):
            closed.set()
            super().close()

    class Careless(Recorded):
        def __call__(self):
            os.chdir("/")
            sys.path = ["/elsewhere"]
            os.environ.update(CHANGED="after", ADDED="after")
            del os.environ["REMOVED"]
            logging.getLogger().addHandler(Handler())
            logging.getLogger("of.a.library").addHandler(kept)

    path, entries, handlers = sys.path, list(sys.path), list(logging.getLogger().handlers)
    environment = dict(os.environ)
    call_original(Careless(), Preparation())
    assert os.getcwd() == str(tmp_path)
    assert sys.path is path
    assert path == entries
    assert dict(os.environ) == environment
    assert logging.getLogger().handlers == handlers
    assert closed.is_set()
    assert logging.getLogger("of.a.library").handlers == [kept]
    logging.getLogger("of.a.library").removeHandler(kept)


def test_only_one_runs_at_a_time():
    running = []

    class Slow(Recorded):
        def __call__(self):
            running.append(self)
            assert len(running) == 1
            time.sleep(0.05)
            running.remove(self)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: call_original(Slow(), Preparation()), range(4)))


def test_a_copy_is_made_where_that_can_be_done():
    process = Recorded()
    assert fresh(process) is not process
    process.lock = threading.Lock()
    assert fresh(process) is process
