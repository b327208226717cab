"""pySPACE's text protocol: whatever comes over the connection, it is told or refused."""

import contextlib
import os
import pickle
import random
import socket
import subprocess
import sys

import pytest

from daskspace.execution.peers import is_own
from daskspace.execution.subflow_protocol import (
    END,
    ProtocolError,
    Request,
    Splitter,
    error_reply,
    literals,
    parse,
    reply,
)

PICKLES = [
    pickle.dumps({"text": "a;b;[1];'x'\"y\"\\", "octets": bytes(range(256))}),
    b"",
    b"];[0]",
    b"'\"\\;",
]
EXECUTE = f"execute_subflows;/tmp/sp0;{len(PICKLES)};{PICKLES!r};[0, 1]"
MESSAGES = {
    "name": Request("name"),
    "subflow_poolsize;2": Request("subflow_poolsize"),
    EXECUTE: Request("execute_subflows", "/tmp/sp0", tuple(PICKLES), (0, 1)),
    "is_ready;2;{'a', 'b;c'}": Request("is_ready", ids=("a", "b;c")),
    "is_ready;0;set()": Request("is_ready"),
    "send_results;['a', 'b']": Request("send_results", ids=("a", "b")),
}
HOSTILE = [
    *("", ";", "name;", "names", "get;state", "set;state;1", "finished", "subflow_poolsize"),
    *("subflow_poolsize;", "subflow_poolsize;x", "subflow_poolsize;-1", "subflow_poolsize;\u0661"),
    *("is_ready", "is_ready;1", "is_ready;1;{}", "is_ready;1;{'a'", "is_ready;1;{'a': 1}"),
    *("is_ready;2;{'a'}", "is_ready;1;{'a' 'b'}", "is_ready;1;{__import__('os')}"),
    *("send_results;", "send_results;[b'x']", "send_results;['a'];['b']", "send_results;[[1]]"),
    "send_results;['a\n']",
    "send_results;[1.5]",
    "send_results;['\\N{no such character}']",
    "send_results;" + "[" * 100_000,
    "send_results;[" + "-" * 100_000 + "1]",
    "send_results;[" + "(" * 10_000 + ")" * 10_000 + "]",
    "send_results;[" + "9" * 100_000 + "]",
    "send_results;['" + "\\" * 99_999 + "']",
    "execute_subflows;/tmp;1",
    "execute_subflows;relative;0;[];[0]",
    "execute_subflows;/tmp\0;0;[];[0]",
    "execute_subflows;/tmp;1;['text'];[0]",
    "execute_subflows;/tmp;1;[b'x'];['0']",
    "execute_subflows;/tmp;2;[b'x'];[0]",
    "execute_subflows;/tmp;1;[b'\xff'];[0]",
    "execute_subflows;/tmp;1;[b'x'];[0];[0]",
    "execute_subflows;/tmp;1;exit();[0]",
]


@pytest.mark.parametrize("text", MESSAGES)
def test_messages_are_told(text):
    assert parse(text.encode()) == MESSAGES[text]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:30]))
def test_what_is_malformed_is_refused(text):
    with pytest.raises(ProtocolError) as refused:
        parse(text.encode())
    answer = error_reply(str(refused.value))
    assert answer.startswith(b"error;")
    assert answer.count(END) == 1
    assert len(answer) < 300
    assert b"\n" not in answer


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(ProtocolError, match="UTF-8"):
        parse(b"name\xff")


def test_an_error_reply_is_one_message_whatever_it_tells():
    assert error_reply("a!END!b\nc\ud800") == b"error;a!end!b c\\ud800!END!"


def test_messages_are_the_same_in_however_many_packets_they_come():
    stream = b"".join(text.encode() + END for text in MESSAGES) * 3
    for seed in range(300):
        dice = random.Random(seed)
        splitter, position, told = Splitter(), 0, []
        while position < len(stream):
            size = dice.choice([1, 2, 3, 5, 50, 2000])
            told += splitter.feed(stream[position : position + size])
            position += size
        assert [message.decode() for message in told] == list(MESSAGES) * 3


def test_random_damage_is_told_or_refused_and_nothing_else():
    for seed in range(2000):
        dice = random.Random(seed)
        message = bytearray(dice.choice(list(MESSAGES)).encode())
        for _ in range(dice.randint(1, 4)):
            message[dice.randrange(len(message))] = dice.randrange(256)
        with contextlib.suppress(ProtocolError):
            parse(bytes(message))


def test_a_message_that_never_ends_is_refused_and_costs_no_more_than_its_size():
    splitter = Splitter(largest=1 << 20)
    with pytest.raises(ProtocolError, match="larger"):
        for _ in range(300):
            splitter.feed(b"x" * 4096)


def test_any_bytes_come_back_from_their_repr():
    for seed in range(200):
        dice = random.Random(seed)
        members = [dice.randbytes(dice.randint(0, 300)) for _ in range(3)]
        assert literals(repr(members)) == members
        assert literals(reply(repr(members))[: -len(END)].decode()) == members


def test_large_pickles_are_read_quickly():
    members = [os.urandom(4 << 20)]
    assert literals(repr(members)) == members


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/net/tcp")
def test_peers_are_told_from_those_of_other_users():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, peer = server.accept()
            with accepted:
                assert is_own(peer, port)
                assert not is_own(peer, port + 1)
        if os.geteuid() != 0:
            return
        program = "import encodings.idna, os, socket, sys; os.setuid(65534);"
        program += "socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(1)"
        other = subprocess.Popen([sys.executable, "-c", program, str(port)])
        try:
            accepted, peer = server.accept()
            with accepted:
                assert not is_own(peer, port)
        finally:
            other.wait(20)
