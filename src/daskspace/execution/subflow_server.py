"""Serves processes of pySPACE's own kind, which ask for subflows by its text protocol."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle

from daskspace.execution.attempt import Settings
from daskspace.execution.commit import discard
from daskspace.execution.helping import Offers, Round, Run
from daskspace.execution.identity import Identity
from daskspace.execution.peers import is_own
from daskspace.execution.subflow_protocol import (
    ProtocolError,
    Request,
    Splitter,
    error_reply,
    parse,
    reply,
)
from daskspace.execution.subflows import directory_of, read_items, value_of, write_items
from daskspace.execution.tape import Tape
from daskspace.execution.travel import Package

DATA = "subflow_data.pickle"
"""What a process writes into the directory that it names: the training data of its subflows."""
_LOOPBACK = "127.0.0.1"
_READ = 1 << 16
_CLOSE_S = 10.0

Id = str | int


@dataclass(frozen=True)
class OriginalSubflow:
    """A subflow of pySPACE's own kind, as a process.

    Parameters
    ----------
    directory : str
        Where its pickle is, and where its id and its result are to be.
    number : int
        Which of the subflows there.
    name : str
        The name of the attempt, unique in the directory.
    path : str
        The directory of the training data.
    runs : tuple of int
        The runs that it has.
    """

    directory: str
    number: int
    name: str
    path: str
    runs: tuple[int, ...]

    def __call__(self) -> None:
        """Call the subflow, and write its result."""
        (content,) = read_items(self.directory, self.number)
        subflow = cloudpickle.loads(content)
        _write_id(self.directory, self.number, subflow.id)
        instances = cloudpickle.loads(Path(self.path, DATA).read_bytes())
        _, result = subflow(train_instances=instances, runs=list(self.runs))
        value_of(self.directory, self.name).write_bytes(cloudpickle.dumps(result))


def _write_id(directory: str, number: int, identifier: Any) -> None:
    if not isinstance(identifier, str | int):
        raise TypeError(f"the id of a subflow is a text, not {type(identifier).__name__!r}")
    path = Path(directory, f"{number}.id")
    new = path.with_suffix(f".{uuid.uuid4().hex}")
    new.write_text(json.dumps(identifier), encoding="utf-8")
    os.replace(new, path)


@dataclass
class _Asked:
    """The subflows of one ``execute_subflows``."""

    directory: Path
    round: Round
    thread: threading.Thread
    numbers: set[int]
    ids: dict[Id, int] = field(default_factory=dict)

    def look(self) -> None:
        """Take in the ids that subflows have told."""
        for number in self.numbers - set(self.ids.values()):
            with contextlib.suppress(OSError, ValueError):
                path = self.directory / f"{number}.id"
                self.ids[json.loads(path.read_text(encoding="utf-8"))] = number

    def outcome(self, number: int) -> dict[str, Any] | None:
        """Return what became of a subflow, None while that is open."""
        stopped = None if self.thread.is_alive() else {"state": "cancelled", "message": "stopped"}
        return self.round.outcomes.get(number, stopped)

    @property
    def nameless(self) -> list[int]:
        """The subflows that have not told their ids."""
        return sorted(self.numbers - set(self.ids.values()))


class SubflowServer:
    """Answers the messages of the protocol, over connections of this user's programs alone.

    What is pickled in them goes to the subflows' children, and what these have pickled goes back;
    it is never unpickled here.

    Parameters
    ----------
    settings : Settings
        Those of the subflows, but for their identity.
    name : callable
        Returns the name of the process that runs, after which logs of its subflows are named.
    package : Package, optional
        The operation's shared values.
    run : callable
        `carry_out`, with `tell` and `offers` filled in.
    offers : Offers, optional
        The cluster.

    Attributes
    ----------
    address : (str, int)
        Where it listens.
    """

    def __init__(
        self,
        settings: Settings,
        name: Callable[[], str],
        package: Package | None,
        run: Run,
        offers: Offers | None,
    ) -> None:
        self._settings = settings
        self._name_of_process = name
        self._package = package
        self._run = run
        self._offers = offers
        self._asked: list[_Asked] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._is_closed = False
        self._socket = socket.create_server((_LOOPBACK, 0))
        self.address: tuple[str, int] = self._socket.getsockname()
        self._start(self._accept)

    def close(self) -> None:
        """Serve no more, and stop what runs."""
        with self._lock:
            self._is_closed = True
            asked, connections = list(self._asked), list(self._connections)
        for one in [self._socket, *connections]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for each in asked:
            each.round.cancel()
        for each in asked:
            each.thread.join(_CLOSE_S)
            discard(each.directory)

    def answer(self, message: bytes) -> bytes | None:
        """Return the reply to a message, None where the protocol has none."""
        try:
            request = parse(message)
            with self._lock:
                return _ANSWERS[request.kind](self, request)
        except ProtocolError as error:
            return error_reply(str(error))
        except Exception as error:
            return error_reply(f"{type(error).__name__}: {error}")

    def _name(self, request: Request) -> bytes:
        return reply("mcore")

    def _pool_size(self, request: Request) -> None:
        """Accept it without a reply, which no client would read; the cluster has its own size."""

    def _execute(self, request: Request) -> bytes:
        if self._is_closed:
            raise ProtocolError("it is too late")
        directory = directory_of(self._settings, uuid.uuid4().int >> 65)
        directory.mkdir(mode=0o700)
        write_items(directory, request.pickles)
        count = len(request.pickles)
        round_ = Round(
            directory,
            count,
            lambda number, name: OriginalSubflow(
                str(directory), number, name, request.path, request.runs
            ),
            self._run,
            replace(self._settings, identity=Identity(within=self._name_of_process())),
            self._package,
            self._offers,
        )
        thread = self._start(round_.run)
        self._asked.append(_Asked(directory, round_, thread, set(range(count))))
        return reply("OK")

    def _is_ready(self, request: Request) -> bytes:
        ready = {one for one in request.ids if self._outcome(one) is not None}
        return reply(repr(ready))

    def _send_results(self, request: Request) -> bytes:
        found, contents = [], []
        for identifier in request.ids:
            outcome = self._outcome(identifier)
            if outcome is None:
                raise ProtocolError(f"subflow {identifier} has not ended")
            if outcome["state"] != "done":
                why = ": ".join(outcome[n] for n in ("error", "message") if outcome.get(n))
                raise ProtocolError(f"subflow {identifier} {outcome['state']}: {why}")
            asked, number = self._find(identifier)
            contents.append(value_of(asked.directory, outcome["name"]).read_bytes())
            found.append((asked, number, identifier))
        for asked, number, identifier in found:  # each is sent once
            asked.numbers.discard(number)
            asked.ids.pop(identifier, None)
            if not asked.numbers:
                self._asked.remove(asked)
                discard(asked.directory)
        return reply(repr(contents))

    def _outcome(self, identifier: Id) -> dict[str, Any] | None:
        """Return what became of a subflow, None while that is open.

        One that ended before it told its id is taken for whatever id nobody knows: it failed.
        """
        for asked in self._asked:
            asked.look()
        with contextlib.suppress(LookupError):
            asked, number = self._find(identifier)
            return asked.outcome(number)
        nameless = [asked.outcome(n) for asked in self._asked for n in asked.nameless]
        if None in nameless:
            return None
        if not nameless:
            raise ProtocolError(f"there is no subflow {identifier}")
        return nameless[0]

    def _find(self, identifier: Id) -> tuple[_Asked, int]:
        for asked in self._asked:
            if identifier in asked.ids:
                return asked, asked.ids[identifier]
        raise LookupError(identifier)

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self._socket.accept()
            except OSError:
                return
            with self._lock:
                serves = not self._is_closed and is_own(peer, self.address[1])
                if serves:
                    self._connections.add(connection)
            if not serves:
                connection.close()
                continue
            self._start(partial(self._serve, connection))

    def _serve(self, connection: socket.socket) -> None:
        splitter = Splitter()
        with connection, contextlib.suppress(OSError):
            while content := connection.recv(_READ):
                try:
                    messages = splitter.feed(content)
                except ProtocolError as error:
                    connection.sendall(error_reply(str(error)))
                    break
                for message in messages:
                    if (answer := self.answer(message)) is not None:
                        connection.sendall(answer)
        with self._lock:
            self._connections.discard(connection)

    def _start(self, function: Callable[[], object]) -> threading.Thread:
        thread = threading.Thread(target=function, name="daskspace-subflow-server", daemon=True)
        thread.start()
        return thread


_ANSWERS: Mapping[str, Callable[[SubflowServer, Request], bytes | None]] = {
    "name": SubflowServer._name,
    "subflow_poolsize": SubflowServer._pool_size,
    "execute_subflows": SubflowServer._execute,
    "is_ready": SubflowServer._is_ready,
    "send_results": SubflowServer._send_results,
}


@contextlib.contextmanager
def serving(
    settings: Settings,
    package: Package | None,
    tape: Tape,
    run: Run,
    tell: Callable[[Mapping[str, Any]], object],
    offers: Offers | None,
) -> Iterator[Settings]:
    """Serve the processes of a batch while it runs.

    Parameters
    ----------
    tape : Tape
        Tells the process that runs, which the logs of its subflows are named after.

    Yields
    ------
    Settings
        Those of the batch, with the server's address.
    """
    own = replace(
        settings,
        depth=settings.depth + 1,
        isolation="process" if settings.isolation == "none" else settings.isolation,
    )

    def name() -> str:
        begun = tape.recording().begun
        return settings.identity.name(begun) if begun else "process"

    server = SubflowServer(own, name, package, partial(run, tell=tell, offers=offers), offers)
    try:
        told = replace(settings.preparation, backend_com=server.address)
        yield replace(settings, preparation=told)
    finally:
        server.close()
