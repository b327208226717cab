"""pySPACE's text protocol for subflows: bytes in, requests out; nothing in them is evaluated.

A message is text whose fields are separated by ``;``, and ends with ``!END!``. Its lists are lists
of literals: bytes, texts or whole numbers, as `repr` writes them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")
END = b"!END!"
LARGEST_MESSAGE = 256 << 20
"""The largest size of a message, in bytes."""
_MOST_LITERALS = 100_000
_LITERAL = re.compile(r"""b?'(?:[^'\\\n]++|\\.)*+'|b?"(?:[^"\\\n]++|\\.)*+"|-?[0-9]{1,18}""")
_BETWEEN = re.compile(r"\s*(,?)\s*")
_BRACKETS = {"[": "]", "{": "}", "(": ")"}
_SHOWN = 60


class ProtocolError(Exception):
    """A message that is none of the protocol's."""


@dataclass(frozen=True)
class Request:
    """What a message asks for.

    Parameters
    ----------
    kind : str
        ``name``, ``subflow_poolsize``, ``execute_subflows``, ``is_ready`` or ``send_results``.
    path : str
        The directory of ``subflow_data.pickle``.
    pickles : tuple of bytes
        The subflows.
    runs : tuple of int
        The runs that each of them has.
    ids : tuple
        The ids of the subflows that it is about.
    """

    kind: str
    path: str = ""
    pickles: tuple[bytes, ...] = ()
    runs: tuple[int, ...] = ()
    ids: tuple[str | int, ...] = ()


class Splitter:
    """Cuts what comes over a connection into messages.

    Parameters
    ----------
    largest : int
        The largest size of a message, in bytes.
    """

    def __init__(self, largest: int = LARGEST_MESSAGE) -> None:
        self._largest = largest
        self._rest = bytearray()
        self._seen = 0

    def feed(self, content: bytes) -> list[bytes]:
        """Return the messages that have ended, without their ends.

        Raises
        ------
        ProtocolError
            A message is too large; the connection is of no use any more.
        """
        self._rest += content
        messages = []
        while (end := self._rest.find(END, self._seen)) >= 0:
            messages.append(bytes(self._rest[:end]))
            del self._rest[: end + len(END)]
            self._seen = 0
        self._seen = max(len(self._rest) - len(END) + 1, 0)
        if max(map(len, [self._rest, *messages])) > self._largest:
            raise ProtocolError(f"a message is larger than {self._largest} bytes")
        return messages


def parse(message: bytes) -> Request:
    """Return what a message asks for.

    Raises
    ------
    ProtocolError
        It is malformed.
    """
    try:
        kind, *fields = message.decode("utf-8").split(";", 1)
    except UnicodeDecodeError as error:
        raise ProtocolError(f"not UTF-8: {error}") from None
    rest = fields[0] if fields else None
    if kind == "name" and rest is None:
        return Request(kind)
    if rest is None or kind not in _PARSERS:
        raise ProtocolError(f"unknown message {_shown(kind)}")
    return _PARSERS[kind](kind, rest)


def error_reply(text: str) -> bytes:
    """Return the reply to whatever cannot be answered: ``error;`` and one line of text."""
    line = " ".join(text.split()).replace(END.decode(), "!end!")
    return f"error;{line}".encode("utf-8", "backslashreplace") + END


def reply(text: str) -> bytes:
    """Return a reply."""
    return text.encode("ascii", "backslashreplace") + END


def literals(text: str) -> list[bytes | str | int]:
    """Return the members of a flat list, set or tuple of literals.

    Raises
    ------
    ProtocolError
        It is none.
    """
    text = text.strip()
    if text in ("set()", "[]", "()"):
        return []
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1]:
        raise ProtocolError(f"no list: {_shown(text)}")
    members: list[bytes | str | int] = []
    position, end = 1, len(text) - 1
    while position < end:
        found = _LITERAL.match(text, position, end)
        if found is None:
            raise ProtocolError(f"no literal: {_shown(text[position:])}")
        if len(members) >= _MOST_LITERALS:
            raise ProtocolError(f"more than {_MOST_LITERALS} members")
        try:
            members.append(ast.literal_eval(found[0]))
        except (ValueError, SyntaxError, MemoryError) as error:
            raise ProtocolError(f"no literal: {type(error).__name__}") from None
        between = _BETWEEN.match(text, found.end(), end)
        position = between.end() if between else end
        if position < end and not (between and between[1]):
            raise ProtocolError(f"no comma: {_shown(text[position:])}")
    return members


def _pool_size(kind: str, rest: str) -> Request:
    _number(rest)
    return Request(kind)


def _execute(kind: str, rest: str) -> Request:
    path, *more = rest.split(";", 2)  # the pickles after them may hold any text
    if len(more) != 2 or not path.startswith("/") or "\0" in path:
        raise ProtocolError("execute_subflows needs an absolute path, a number and two lists")
    pickles, _, runs = more[1].rpartition(";")
    return Request(
        kind,
        path=path,
        pickles=tuple(_counted(more[0], _all_of(bytes, literals(pickles)))),
        runs=tuple(_all_of(int, literals(runs))),
    )


def _is_ready(kind: str, rest: str) -> Request:
    number, _, ids = rest.partition(";")
    return Request(kind, ids=tuple(_counted(number, _all_of((str, int), literals(ids)))))


def _send_results(kind: str, rest: str) -> Request:
    return Request(kind, ids=tuple(_all_of((str, int), literals(rest))))


_PARSERS = {
    "subflow_poolsize": _pool_size,
    "execute_subflows": _execute,
    "is_ready": _is_ready,
    "send_results": _send_results,
}


def _number(text: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text, re.ASCII):
        raise ProtocolError(f"no number: {_shown(text)}")
    return int(text)


def _counted(number: str, members: list[_T]) -> list[_T]:
    if _number(number) != len(members):
        raise ProtocolError(f"{_number(number)} announced, but {len(members)} sent")
    return members


def _all_of(kinds: type[_T] | tuple[type[_T], ...], members: Iterable[object]) -> list[_T]:
    listed = list(members)
    of_kind = [member for member in listed if isinstance(member, kinds)]
    if len(of_kind) != len(listed):
        raise ProtocolError("a member of a list is of another type")
    return of_kind


def _shown(text: str) -> str:
    return repr(text[:_SHOWN])
