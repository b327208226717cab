"""Receives the log records that processes send, as data alone, and passes them on."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import logging
import math
import os
import pickle
import selectors
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from daskspace.execution.preparation import Preparation

LARGEST_RECORD = 1 << 20
"""The largest size of one pickled log record, in bytes."""
_LOOPBACK = "127.0.0.1"
_SIZE = struct.Struct(">L")
_READ = 1 << 16
_MOST_CONNECTIONS = 200
_BUNCH_S, _BUNCH_SIZE = 0.2, 1 << 16
_QUIET_S = 0.2
_LONGEST_END_S = 10.0
_TABLES = tuple(Path(f"/proc/net/{name}") for name in ("tcp", "tcp6"))
_ESCAPES = (
    *("persid", "binpersid", "reduce", "obj", "newobj", "newobj_ex", "build"),
    *("ext1", "ext2", "ext4", "bytearray8", "next_buffer", "readonly_buffer"),
)
_MENDED = "pass such values as text, str(value), to the logger and in its `extra`"

Tell = Callable[[Mapping[str, Any]], object]


class RefusedRecord(Exception):
    """A log record that is not made of plain data alone."""


class _PlainUnpickler(pickle._Unpickler):
    """Reads plain data, and knows no class or function.

    Python's own, not that in C, which reserves as much memory as a few bytes ask it to.
    """

    dispatch = {  # noqa: RUF012 - as in the base class
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if load.__name__.removeprefix("load_") not in _ESCAPES
    }

    def find_class(self, module: str, name: str) -> Any:
        raise RefusedRecord(f"{module}.{name}"[:200])


def read_record(content: bytes) -> dict[str, Any]:
    """Return the fields of a pickled log record that are of use, as plain data.

    Raises
    ------
    RefusedRecord
        It is no record, or holds more than plain data; nothing in it was run.
    """
    try:
        fields = _PlainUnpickler(io.BytesIO(content)).load()
        if not isinstance(fields, dict):
            raise RefusedRecord("no log record")
        level, created = fields["levelno"], fields["created"]
        record: dict[str, Any] = {
            "name": fields["name"],
            "levelname": fields["levelname"],
            "msg": fields["msg"],
        }
        for field in ("exc_text", "stack_info"):
            if fields.get(field) is not None:
                record[field] = fields[field]
    except RefusedRecord:
        raise
    except Exception as error:
        raise RefusedRecord(f"no log record: {type(error).__name__}") from None
    if not all(isinstance(text, str) for text in record.values()):
        raise RefusedRecord("a message that is no text")
    if not (isinstance(level, int) and 0 <= level < 1000):
        raise RefusedRecord("no level")
    if not (isinstance(created, int | float) and 0 <= created < 1e11 and math.isfinite(created)):
        raise RefusedRecord("no time")
    return {**record, "levelno": int(level), "created": float(created)}


def make_record(fields: Mapping[str, Any]) -> logging.LogRecord:
    """Return the log record of fields that `read_record` returned."""
    record = logging.makeLogRecord({**fields, "args": None})
    record.msecs = (record.created - int(record.created)) * 1000
    return record


def is_own(peer: tuple[str, int], port: int) -> bool:
    """Return whether the peer of a connection to `port` belongs to the user of this program.

    Only Linux tells; where its tables do not show the port itself, whoever reaches it is served.
    """
    number = struct.unpack("=I", socket.inet_aton(peer[0]))[0]
    theirs, ours = f"{number:08X}:{peer[1]:04X}", f":{port:04X}"
    tells = False
    for table in _TABLES:
        with contextlib.suppress(OSError), table.open(encoding="ascii") as lines:
            for line in lines:
                columns = line.split()
                tells = tells or columns[1].endswith(ours)
                if columns[1].endswith(theirs) and columns[2].endswith(ours):
                    # that of a connection which was closed is 0, and so is its inode
                    return columns[9] != "0" and int(columns[7]) == os.geteuid()
    return not tells


class RecordReceiver:
    """Listens on this machine, for one batch, to what its processes log.

    Parameters
    ----------
    tell : callable
        Gets mappings whose ``records`` are lists of what `read_record` returns.
    level : int
        Records below it are passed over.

    Attributes
    ----------
    address : (str, int)
        Where it listens.
    told : int
        How many records it has passed on.

    Raises
    ------
    OSError
        It cannot listen.
    """

    def __init__(self, tell: Tell, level: int = logging.NOTSET) -> None:
        self._tell = tell
        self._level = level
        self._listener = socket.create_server((_LOOPBACK, 0), backlog=_MOST_CONNECTIONS)
        self._listener.setblocking(False)
        self.address: tuple[str, int] = self._listener.getsockname()
        self.told = 0
        self._content: dict[socket.socket, bytearray] = {}
        self._bunch: list[dict[str, Any]] = []
        self._bunch_size = 0
        self._bunch_since = 0.0
        self._refused: Counter[str] = Counter()
        self._closes = threading.Event()
        self._wakeup, self._wake = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wakeup, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="daskspace-records", daemon=True)
        self._thread.start()
        _open.append(self)

    def close(self) -> None:
        """Take in what has been sent, and listen no more."""
        _open.remove(self)
        self._closes.set()
        self._wake.close()
        self._thread.join(2 * _LONGEST_END_S)

    def _run(self) -> None:
        try:
            while not self._closes.is_set():
                self._take(_BUNCH_S if self._bunch else None)
                if self._bunch and time.monotonic() - self._bunch_since > _BUNCH_S:
                    self._flush()
            until = time.monotonic() + _LONGEST_END_S
            while self._take(_QUIET_S if self._content else 0.0) and time.monotonic() < until:
                pass
            for why, times in self._refused.items():
                if times > 1:
                    self._say(f"{times - 1} more log records were refused: {why}")
            self._flush()
        finally:
            for connection in list(self._content):
                self._drop(connection)
            for part in (self._selector, self._listener, self._wakeup):
                part.close()

    def _take(self, patience: float | None) -> bool:
        """Take in what comes; return whether anything did."""
        ready = [key.fileobj for key, _ in self._selector.select(patience)]
        for source in ready:
            if source is self._listener:
                self._accept()
            elif source is self._wakeup:
                self._selector.unregister(self._wakeup)
            elif isinstance(source, socket.socket):
                self._read(source)
        return bool(ready)

    def _accept(self) -> None:
        try:
            connection, peer = self._listener.accept()
        except OSError:
            return
        if len(self._content) >= _MOST_CONNECTIONS or not is_own(peer, self.address[1]):
            connection.close()
            self._refuse("a connection of which nobody can tell whose it is, or of another user")
            return
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)  # says that it was looked at
        self._content[connection] = bytearray()
        self._selector.register(connection, selectors.EVENT_READ)

    def _read(self, connection: socket.socket) -> None:
        try:
            part = connection.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        content = self._content[connection]
        content += part
        begin = 0
        while len(content) - begin >= _SIZE.size:
            (size,) = _SIZE.unpack_from(content, begin)
            if size > LARGEST_RECORD:
                self._refuse(f"it is larger than {LARGEST_RECORD >> 20} MiB: log less at once")
                part = b""
                break
            end = begin + _SIZE.size + size
            if len(content) < end:
                break
            self._take_in(bytes(content[begin + _SIZE.size : end]))
            begin = end
        del content[:begin]
        if not part:
            self._drop(connection)

    def _take_in(self, content: bytes) -> None:
        try:
            record = read_record(content)
        except RefusedRecord as error:
            self._refuse(f"it holds more than plain data ({error}): {_MENDED}")
            return
        if record["levelno"] >= self._level:
            self._add(record, len(content))

    def _add(self, record: dict[str, Any], size: int) -> None:
        if not self._bunch:
            self._bunch_since = time.monotonic()
        self._bunch.append(record)
        self._bunch_size += size
        if self._bunch_size > _BUNCH_SIZE:
            self._flush()

    def _flush(self) -> None:
        if self._bunch:
            bunch, self._bunch, self._bunch_size = self._bunch, [], 0
            self.told += len(bunch)
            with contextlib.suppress(Exception):
                self._tell({"records": bunch})

    def _refuse(self, why: str) -> None:
        """Say once why something was refused, and count what follows."""
        why = why if len(self._refused) < _MOST_CONNECTIONS else "they were of many kinds"
        self._refused[why] += 1
        if self._refused[why] == 1:
            self._say(f"a log record was refused: {why}")

    def _say(self, text: str) -> None:
        level = logging.WARNING
        record = {"name": "daskspace", "levelname": "WARNING", "levelno": level, "msg": text}
        self._add({**record, "created": time.time()}, len(text))

    def _drop(self, connection: socket.socket) -> None:
        del self._content[connection]
        self._selector.unregister(connection)
        connection.close()


_open: list[RecordReceiver] = []


def address() -> tuple[str, int] | None:
    """Return where records are received in this interpreter just now, None if nowhere."""
    return _open[-1].address if _open else None


@contextlib.contextmanager
def receiving(
    preparation: Preparation, wanted: bool, tell: Tell
) -> Iterator[tuple[Preparation, Callable[[], dict[str, int]]]]:
    """Receive what is logged meanwhile, if it is wanted.

    Yields
    ------
    Preparation
        With the receiver's address.
    callable
        Ends it, and returns how many ``records`` were told.
    """
    if not wanted:
        yield preparation, dict
        return
    with contextlib.ExitStack() as stack:
        try:
            receiver = RecordReceiver(tell, preparation.log_level)
        except OSError as error:
            tell({"log": f"log records cannot be received: {error}"})
            yield preparation, dict
            return
        stack.callback(receiver.close)

        def end() -> dict[str, int]:
            stack.close()
            return {"records": receiver.told}

        yield dataclasses.replace(preparation, records_to=receiver.address), end
