"""What became of a process: plain data, never an exception in flight."""

from __future__ import annotations

import json
import linecache
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import TracebackType
from typing import Any

from daskspace.execution import plain
from daskspace.execution.origin import is_library, is_ours
from daskspace.execution.seal import sealed

STATES = (
    "waiting",
    "running",
    "done",
    "failed",
    "crashed",
    "timeout",
    "lost",
    "cancelled",
    "cached",
)
"""Everything a process can be, in the order in which it is shown."""

GOOD_STATES = frozenset({"done", "cached"})

_MESSAGE_LIMIT = 2_000
_TRACEBACK_LIMIT = 20_000
_MEMBERS_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one process.

    Parameters
    ----------
    process : int
        The position of the process in its operation, from 0.
    state : str
        One of `STATES`.
    parameters : mapping
        The parameters of the process, as plain JSON values.
    data : str, optional
        The name or path of its data set.
    run : int, optional
        Its run, from 0.
    key : str or int, optional
        What tells a process of a stream from the others, where it has one.
    metrics : mapping
        What it returned.
    start : float, optional
        When it began, in seconds since the epoch.
    duration : float, optional
        How long it ran, in seconds.
    host : str, optional
        The name of the host that it ran on.
    peak_memory : int, optional
        The largest resident memory of its interpreter while it ran, in bytes.
    error, message : str, optional
        Class and text of the exception that ended it; the text is cut to 2,000 characters.
    where : str, optional
        The user's line that raised it, as ``file:line in function: code``.
    traceback : str, optional
        The traceback, cut to 20,000 characters.
    log_tail : str, optional
        The last 2,000 characters of its log, without the traceback, if it was not done.
    log, directory : str, optional
        Its log and its private directory, relative to the result directory, if it made them.
    subflows : mapping
        How many subflows it had, by state.
    """

    process: int
    state: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    run: int | None = None
    key: str | int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    start: float | None = None
    duration: float | None = None
    host: str | None = None
    peak_memory: int | None = None
    error: str | None = None
    message: str | None = None
    where: str | None = None
    traceback: str | None = None
    log_tail: str | None = None
    log: str | None = None
    directory: str | None = None
    subflows: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the receipt: one sealed line of JSON without the fields that are empty."""
        return receipt({name: getattr(self, name) for name in _FIELDS})

    @classmethod
    def from_json(cls, line: str | bytes) -> Outcome:
        """Return the outcome that a receipt holds."""
        return cls.from_fields(json.loads(line))

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> Outcome:
        """Return the outcome with these fields; names it does not know are left out."""
        return cls(**{name: value for name, value in values.items() if name in _FIELDS})


_FIELDS = {entry.name: None for entry in fields(Outcome)}


def receipt(fields: Mapping[str, Any]) -> str:
    """Return fields of an outcome as one sealed line of JSON, without those that are empty."""
    return sealed(
        plain.dumps(
            {name: value for name, value in fields.items() if value is not None and value != {}}
        )
    )


def describe_error(error: BaseException) -> dict[str, str]:
    """Return the fields of an outcome that describe an exception.

    Parameters
    ----------
    error : BaseException
        What was raised, however large, deep or broken it is.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_next and is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    described = {"error": type(error).__name__, "message": _text(error)}
    try:
        described["where"] = _where(trace)
        described["traceback"] = _format(error, trace)
    except BaseException as broken:
        described["traceback"] = f"<the traceback cannot be had: {type(broken).__name__}>"
    return {name: text for name, text in described.items() if text}


def _text(error: BaseException) -> str:
    try:
        return _cut(str(error), _MESSAGE_LIMIT)
    except BaseException as broken:
        return f"<its text cannot be had: {type(broken).__name__}>"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text):,} characters)"


def _where(trace: TracebackType | None) -> str:
    """Return the innermost line of the user's own code, else the innermost line."""
    frames = traceback.StackSummary.extract(
        traceback.walk_tb(trace), limit=-200, lookup_lines=False
    )
    own = [frame for frame in frames if not is_library(frame.filename)]
    if not frames:
        return ""
    frame = (own or frames)[-1]
    code = linecache.getline(frame.filename, frame.lineno or 0).strip()
    return f"{frame.filename}:{frame.lineno} in {frame.name}" + (f": {code}" if code else "")


def _format(error: BaseException, trace: TracebackType | None) -> str:
    lines: list[str] = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        lines += [f"(after {type(cause).__name__}: {_text(cause)[:500]})\n"]
    lines += ["Traceback (most recent call last):\n", *traceback.format_tb(trace, limit=-50)]
    last = traceback.format_exception_only(error)
    lines += [_cut(line, _MESSAGE_LIMIT) for line in last]
    if isinstance(error, BaseExceptionGroup):
        members = error.exceptions[:_MEMBERS_SHOWN]
        lines += [f"  with {type(member).__name__}: {_text(member)[:500]}\n" for member in members]
    return _cut("".join(lines), _TRACEBACK_LIMIT)
