"""Log records come as data alone, from the user's own programs, and none gets lost."""

import contextlib
import logging
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
from logging.handlers import SocketHandler
from pathlib import Path

import pytest

from daskspace.execution.record_receiver import (
    LARGEST_RECORD,
    RecordReceiver,
    RefusedRecord,
    address,
    make_record,
    read_record,
)

FIELDS = {"name": "n", "levelname": "INFO", "levelno": 20, "msg": "text", "created": 1.5e9}


class Evil:
    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


def frame(fields, protocol=1):
    content = pickle.dumps(fields, protocol)
    return struct.pack(">L", len(content)) + content


@contextlib.contextmanager
def receiver(level=logging.NOTSET):
    told = []
    running = RecordReceiver(lambda message: told.extend(message["records"]), level)
    try:
        yield running, told
    finally:
        running.close()
    assert running.told == len(told)


@contextlib.contextmanager
def logger_to(running):
    handler = SocketHandler(*running.address)
    logger = logging.Logger("sender")
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        handler.close()


def say(running, content):
    """Send bytes as somebody does who waits until he was looked at."""
    with socket.create_connection(running.address, timeout=20) as connection:
        assert connection.recv(1) == b""
        with contextlib.suppress(OSError):
            connection.sendall(content)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_record_is_read_whatever_protocol_it_was_pickled_with(protocol):
    more = {"args": None, "exc_text": "Traceback", "extra": [1, (2.5, None), {"a": {True}}, b"x"]}
    more["extra"] = [1, (2.5, None), {"a": True}]
    read = read_record(pickle.dumps({**FIELDS, **more}, protocol))
    assert read == {**FIELDS, "exc_text": "Traceback"}
    assert make_record(read).getMessage() == "text"


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
@pytest.mark.parametrize("call", [os.system, eval, exec, Path, getattr, open])
def test_nothing_that_is_sent_is_run(protocol, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for evil in (Evil(call, "touch made"), {**FIELDS, "msg": Evil(call, "touch made")}):
        with pytest.raises(RefusedRecord):
            read_record(pickle.dumps(evil, protocol))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"cos\nsystem\n(S'touch made'\ntR.",
        b"(S'touch made'\nios\nsystem\n.",
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
        b"r\xff\xff\xff\xff.",
        b"]" * 100_000 + b".",
        pickle.dumps([]),
        pickle.dumps({}),
        pickle.dumps({**FIELDS, "msg": ["a list"]}),
        pickle.dumps({**FIELDS, "levelno": "high"}),
        pickle.dumps({**FIELDS, "levelno": 10**30}),
        pickle.dumps({**FIELDS, "created": float("nan")}),
        pickle.dumps({**FIELDS, "created": 10**300}),
        pickle.dumps({**FIELDS, "name": None}),
        pickle.dumps({**FIELDS, "exc_text": b"bytes"}),
    ],
    ids=lambda content: repr(content[:12]),
)
def test_what_is_no_record_is_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RefusedRecord):
        read_record(content)
    assert not list(tmp_path.iterdir())


def test_all_that_a_handler_sends_is_told_in_order_when_the_receiver_closes():
    with receiver() as (running, told), logger_to(running) as logger:
        assert address() == running.address
        for n in range(3000):
            logger.info("record %d", n)
        try:
            raise ValueError("for the log")
        except ValueError:
            logger.exception("at last")
        time.sleep(0.05)
    assert [record["msg"] for record in told] == [*(f"record {n}" for n in range(3000)), "at last"]
    assert "ValueError: for the log" in told[-1]["exc_text"]
    assert address() is None


def test_records_below_the_level_are_passed_over():
    with receiver(logging.WARNING) as (running, told), logger_to(running) as logger:
        logger.info("no")
        logger.error("yes")
        time.sleep(0.05)
    assert [record["msg"] for record in told] == ["yes"]


def test_an_attack_costs_a_line_in_the_log_and_nothing_else(tmp_path):
    mark = tmp_path / "made"
    with receiver() as (running, told):
        for _ in range(50):
            say(running, frame({**FIELDS, "msg": Evil(os.system, f"touch {mark}")}))
        say(running, struct.pack(">L", LARGEST_RECORD + 1) + b"x" * 1000)
        say(running, os.urandom(10_000))
        say(running, frame(FIELDS)[:-3])
        say(running, frame(FIELDS))
    assert not mark.exists()
    texts = [record["msg"] for record in told]
    assert texts.count("text") == 1
    assert sum("more than plain data (posix.system)" in text for text in texts) == 2
    assert any(text.startswith("49 more log records were refused") for text in texts)
    assert all("extra" in text for text in texts if "plain data" in text)
    assert len(texts) <= 8


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells whose a connection is")
def test_another_user_is_not_served(monkeypatch):
    program = """
import encodings.idna, os, socket, sys
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20)
print("connected", flush=True)
connection.sendall(sys.stdin.buffer.read())
if len(sys.argv) > 2:
    connection.recv(1)
"""
    own = os.geteuid()
    with receiver() as (running, told):
        if own != 0:  # who cannot become somebody else, is taken for that
            monkeypatch.setattr(os, "geteuid", lambda: own + 1)
        for more in (["waits"], [])[: 2 if own == 0 else 1]:
            argv = [sys.executable, "-I", "-c", program, str(running.address[1]), *more]
            subprocess.run(argv, input=frame(FIELDS), timeout=60, check=False, stderr=-3)
        monkeypatch.undo()
        say(running, frame({**FIELDS, "msg": "own"}))
    texts = [record["msg"] for record in told]
    assert "own" in texts
    assert "text" not in texts
    assert any("of another user" in text for text in texts)


def test_a_receiver_that_is_gone_holds_nobody_up():
    with receiver() as (running, _):
        pass
    with logger_to(running) as logger:
        logging.raiseExceptions, before = False, logging.raiseExceptions
        try:
            began = time.monotonic()
            for _ in range(100):
                logger.info("to nobody")
            assert time.monotonic() - began < 20
        finally:
            logging.raiseExceptions = before
