"""The subflows of a process: how it asks for them, and what one of them does."""

from __future__ import annotations

import json
import os
import struct
import threading
import uuid
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle

from daskspace.errors import SubflowError
from daskspace.execution.attempt import Settings, current_attempt
from daskspace.execution.commit import attempts_of, discard
from daskspace.execution.outcome import describe_error

MAX_DEPTH = 4
"""How deep subflows may be nested: the subflows of a process are at depth 1."""
ANSWER = struct.Struct("!Q")
"""What a child is told when its subflows have ended: their number."""
_LONGEST_S = 1e8
_ITEMS, _ENDS, _OUTCOMES = "items", "ends", "outcomes.json"

Tell = Callable[[Mapping[str, Any]], object]


class Subflows:
    """Runs functions in processes of their own on the cluster that the calling process runs on."""

    def map(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        timeout: float | None = None,
        return_exceptions: bool = False,
    ) -> list[Any]:
        """Call a function with each item, and return what it returned, in the order of the items.

        Where processes run in place, and outside of processes, the calls are made here, one after
        the other.

        Parameters
        ----------
        function : callable
            Called with one item. It may call `map` as well, up to `MAX_DEPTH` deep.
        items : iterable
            They are pickled, as are the function and what it returns.
        timeout : float, optional
            After so many seconds a call is stopped; by default, after ``process_timeout``. In place
            there is no limit.
        return_exceptions : bool
            Whether a `SubflowError` stands in the list where a call has not returned.

        Raises
        ------
        SubflowError
            A call has not returned: it raised, ran too long, or ended its interpreter. All have
            ended; the error is that of the first item of those.
        """
        if timeout is not None and not 0 < timeout <= _LONGEST_S:
            raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        listed = list(items)
        channel = _channel if _channel is not None and _channel.is_here else None
        if (channel.depth if channel else _depth.get()) >= MAX_DEPTH:
            raise SubflowError(f"subflows may be nested {MAX_DEPTH} deep, and not deeper")
        if not listed:
            return []
        run = channel.run if channel else _run_here
        results = run(function, listed, timeout)
        _count(results)
        errors = [result for result in results if isinstance(result, SubflowError)]
        if errors and not return_exceptions:
            raise errors[0]
        return [result.value if isinstance(result, _Done) else result for result in results]


def subflows() -> Subflows:
    """Return what runs functions as subflows of the process that runs here.

    A function of an operation gets the same by an argument of this name.
    """
    return Subflows()


@dataclass(frozen=True)
class _Done:
    value: Any


_Result = _Done | SubflowError


@dataclass(frozen=True)
class Subflow:
    """One call of `Subflows.map`, as a process.

    Parameters
    ----------
    directory : str
        Where the function and the items are, and where the value is to be.
    number : int
        Which item.
    name : str
        The name of the attempt, unique in the directory.
    """

    directory: str
    number: int
    name: str

    def __call__(self) -> None:
        """Call the function, and write what it returns."""
        function, item = (
            cloudpickle.loads(content) for content in read_items(self.directory, 0, self.number + 1)
        )
        value = cloudpickle.dumps(function(item))
        value_of(self.directory, self.name).write_bytes(value)


def write_items(directory: Path, contents: Iterable[bytes]) -> None:
    """Write what the subflows of one call read, one after the other."""
    ends = array("Q", [0])
    with Path(directory, _ITEMS).open("wb") as file:
        for content in contents:
            file.write(content)
            ends.append(file.tell())
    Path(directory, _ENDS).write_bytes(ends.tobytes())


def read_items(directory: str | Path, *numbers: int) -> list[bytes]:
    """Return some of what `write_items` has written."""
    ends = array("Q", Path(directory, _ENDS).read_bytes())
    contents = []
    with Path(directory, _ITEMS).open("rb") as file:
        for number in numbers:
            file.seek(ends[number])
            contents.append(file.read(ends[number + 1] - ends[number]))
    return contents


def value_of(directory: str | Path, name: str) -> Path:
    """Return where an attempt at a subflow writes its value."""
    return Path(directory, f"{name}.value")


def directory_of(settings: Settings, number: int) -> Path:
    """Return the directory of one call of `Subflows.map`."""
    return attempts_of(settings.directory) / f"{settings.group}-{number:016x}.subflows"


def write_outcomes(directory: Path, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Write what became of the subflows of one call, for the process that waits for it."""
    Path(directory, _OUTCOMES).write_text(json.dumps(outcomes), encoding="utf-8")


class Channel:
    """Leads from a process in a child to whoever runs its subflows.

    Parameters
    ----------
    settings : Settings
        Those of the process.
    tell : callable
        Tells the host.
    answers : int
        A descriptor, by which the host answers.
    """

    def __init__(self, settings: Settings, tell: Tell, answers: int) -> None:
        self.depth = settings.depth
        self._settings = settings
        self._tell = tell
        self._answers = answers
        self._pid = os.getpid()
        self._lock = threading.Lock()

    @property
    def is_here(self) -> bool:
        """Whether this is the child itself, and no fork that the process made."""
        return os.getpid() == self._pid

    def run(
        self, function: Callable[[Any], Any], items: Sequence[Any], timeout: float | None
    ) -> list[_Result]:
        """Have a function called with each item, and wait until all calls have ended."""
        number = uuid.uuid4().int >> 65
        directory = directory_of(self._settings, number)
        directory.mkdir(mode=0o700)  # whoever could write there would run code as this user
        try:
            refused = _write(directory, function, items)
            count = len(items) - len(refused)
            if count:
                self._ask(number, count, timeout)
            outcomes = iter(_read_outcomes(directory, count))
            return [
                refused[index] if index in refused else _result(directory, index, next(outcomes))
                for index in range(len(items))
            ]
        finally:
            discard(directory)

    def _ask(self, number: int, count: int, timeout: float | None) -> None:
        with self._lock:
            self._tell({"subflows": number, "count": count, "timeout": timeout})
            try:
                while (answer := os.read(self._answers, ANSWER.size)) != ANSWER.pack(number):
                    if not answer:
                        raise SubflowError("whoever runs the subflows is gone", state="lost")
            except BaseException:
                self._tell({"subflows": number, "dropped": True})
                raise


_channel: Channel | None = None
_depth: ContextVar[int] = ContextVar("daskspace_subflow_depth", default=0)


def open_channel(channel: Channel | None) -> None:
    """Have the processes of this interpreter ask for subflows by a channel."""
    global _channel
    _channel = channel


def _write(
    directory: Path, function: Callable[[Any], Any], items: Sequence[Any]
) -> dict[int, SubflowError]:
    """Write the function and the items; return the errors of those that cannot be pickled."""
    refused: dict[int, SubflowError] = {}
    try:
        first = cloudpickle.dumps(function)
    except Exception as error:
        raise TypeError(f"the function of subflows cannot be pickled: {error}") from error

    def pickled() -> Iterator[bytes]:
        yield first
        for index, item in enumerate(items):
            try:
                yield cloudpickle.dumps(item)
            except Exception as error:
                message = f"its item cannot be pickled: {error}"
                fields = {"state": "failed", "error": type(error).__name__, "message": message}
                refused[index] = _error(index, fields)

    write_items(directory, pickled())
    return refused


def _read_outcomes(directory: Path, count: int) -> list[dict[str, Any]]:
    if not count:
        return []
    try:
        outcomes: list[dict[str, Any]] = json.loads(Path(directory, _OUTCOMES).read_bytes())
    except (OSError, ValueError) as error:
        message = f"what became of it cannot be read: {error}"
        return [{"state": "lost", "message": message}] * count
    return outcomes


def _result(directory: Path, index: int, outcome: Mapping[str, Any]) -> _Result:
    if outcome["state"] != "done":
        return _error(index, outcome)
    try:
        return _Done(cloudpickle.loads(value_of(directory, outcome["name"]).read_bytes()))
    except Exception as error:
        message = f"what it returned cannot be had: {error}"
        fields = {"state": "failed", "error": type(error).__name__, "message": message}
        return _error(index, fields)


def _error(index: int, outcome: Mapping[str, Any]) -> SubflowError:
    told = {name: outcome.get(name) for name in ("error", "message", "where", "traceback")}
    why = ": ".join(text for text in (told["error"], told["message"]) if text)
    state = str(outcome["state"])
    return SubflowError(f"subflow {index} {state}: {why or 'no more is known'}", index, state, told)


def _run_here(
    function: Callable[[Any], Any], items: Sequence[Any], timeout: float | None
) -> list[_Result]:
    """Call a function with each item in this interpreter."""
    results: list[_Result] = []
    token = _depth.set(_depth.get() + 1)
    try:
        for index, item in enumerate(items):
            try:
                results.append(_Done(function(item)))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raised = _error(index, {"state": "failed", **describe_error(error)})
                raised.__cause__ = error
                results.append(raised)
    finally:
        _depth.reset(token)
    return results


def _count(results: Sequence[_Result]) -> None:
    """Let the receipt of the process tell how many subflows there were, by state."""
    try:
        attempt = current_attempt()
    except LookupError:  # in a thread of the process, or outside of processes
        return
    counts = attempt.subflows = attempt.subflows or Counter()
    counts.update(r.state if isinstance(r, SubflowError) else "done" for r in results)
