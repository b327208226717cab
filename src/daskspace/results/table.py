"""The table of results: one row per process, in process order."""

from __future__ import annotations

import contextlib
import csv
import datetime
import importlib.util
import json
import os
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from daskspace.execution import plain
from daskspace.execution.journal import read_journal
from daskspace.execution.outcome import Outcome

if TYPE_CHECKING:
    import pandas as pd

OWN_COLUMNS = (
    "process",
    "data",
    "run",
    "state",
    "start",
    "duration",
    "host",
    "peak_memory",
    "error",
    "message",
)
"""The columns that are ours; parameters and metrics stand between ``run`` and ``start``."""

WAITING = "waiting"
"""The state of a process that is to be run again."""

_OWN = frozenset(OWN_COLUMNS)
_MISSING = -1
_ROWS_AT_ONCE = 10_000


class Table:
    """The rows of an operation, read from its journal.

    The first outcome of a process counts. One of a later session takes its place, and one that
    is ``waiting`` gives its place to any later one.

    Memory grows by 12 bytes a process; the rows themselves are streamed.

    Parameters
    ----------
    journal : Path
        The operation's journal; it may still grow.

    Attributes
    ----------
    columns : list of str
        ``process``, the parameters, ``data``, ``run``, ``state``, the metrics, and the rest of
        `OWN_COLUMNS`. A metric named like another column appears as ``metric.<name>``.
    counts : dict of str to int
        How many processes are in which state.
    header : dict
        The header of the last session.
    end : dict or None
        The end of the last session, None while it has none.
    sessions : int
        How many sessions have begun.

    Raises
    ------
    DirectoryError
        The journal cannot be read.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._offsets = array("q")
        self._marks = array("I")  # for each process, where in `_marked` its session and state are
        self._marked: list[tuple[int, str]] = []
        self._mark_of: dict[str, int] = {}
        self.sessions = 0
        self.header: dict[str, Any] = {}
        self.end: dict[str, Any] | None = None
        self.counts: dict[str, int] = {}
        declared: dict[str, None] = {}
        parameters: dict[str, tuple[int, int]] = {}
        metrics: dict[str, tuple[int, int]] = {}
        self._types: dict[str, defaultdict[str, set[type]]] = {
            "parameters": defaultdict(set),
            "metrics": defaultdict(set),
        }
        for offset, entry in read_journal(journal):
            if "state" in entry and "process" in entry:
                self._note(offset, entry, parameters, metrics)
            elif "journal" in entry:
                self._begin_session(entry)
                declared.update(dict.fromkeys(map(str, entry.get("parameters", ()))))
            elif "end" in entry:
                self.end = entry["end"]
        self._parameters = list(declared) + sorted(
            (name for name in parameters if name not in declared), key=parameters.__getitem__
        )
        self._metrics = _metric_columns(
            sorted(metrics, key=metrics.__getitem__), {*OWN_COLUMNS, *self._parameters}
        )
        before = [name for name in ("data", "run") if name not in self._parameters]
        self.columns = [
            "process",
            *self._parameters,
            *before,
            "state",
            *self._metrics.values(),
            *OWN_COLUMNS[4:],
        ]

    @property
    def parameters(self) -> list[str]:
        """The columns that are parameters."""
        return list(self._parameters)

    @property
    def metrics(self) -> list[str]:
        """The columns that are metrics."""
        return list(self._metrics.values())

    @property
    def fresh(self) -> int:
        """How many processes have ended in the last session."""
        fresh = [session == self.sessions and state != WAITING for session, state in self._marked]
        noted = zip(self._offsets, self._marks, strict=True)
        return sum(offset != _MISSING and fresh[mark] for offset, mark in noted)

    def _begin_session(self, header: dict[str, Any]) -> None:
        self.sessions += 1
        self.header = header
        self.end = None
        self._mark_of.clear()

    def _note(
        self,
        offset: int,
        entry: Mapping[str, Any],
        parameters: dict[str, tuple[int, int]],
        metrics: dict[str, tuple[int, int]],
    ) -> None:
        process = entry["process"]
        while len(self._offsets) <= process:
            self._offsets.append(_MISSING)
            self._marks.append(0)
        if self._offsets[process] != _MISSING and not self._give_up(process, entry["state"]):
            return
        state = entry["state"]
        self._offsets[process] = offset
        self._marks[process] = self._mark(state)
        self.counts[state] = self.counts.get(state, 0) + 1
        for kind, seen in (("parameters", parameters), ("metrics", metrics)):
            types = self._types[kind]
            for position, (name, value) in enumerate(entry.get(kind, {}).items()):
                place = (process, position)
                if name not in seen or place < seen[name]:
                    seen[name] = place
                if value is not None:
                    types[name].add(_type_of(value))

    def _give_up(self, process: int, follower: str) -> bool:
        """Take back the outcome of a process, if it is one that gives its place to another."""
        session, state = self._marked[self._marks[process]]
        if session == self.sessions and WAITING not in (state, follower):
            return False
        self.counts[state] -= 1
        if not self.counts[state]:
            del self.counts[state]
        return True

    def _mark(self, state: str) -> int:
        if state not in self._mark_of:
            self._mark_of[state] = len(self._marked)
            self._marked.append((self.sessions, state))
        return self._mark_of[state]

    def __len__(self) -> int:
        return sum(self.counts.values())

    def outcomes(self) -> Iterator[Outcome]:
        """Yield the outcomes in process order."""
        return map(Outcome.from_fields, self._entries(self._offsets))

    def outcome(self, process: int) -> Outcome | None:
        """Return the outcome of one process, None if it has none."""
        offsets = self._offsets[process : process + 1] if process >= 0 else ()
        return next(map(Outcome.from_fields, self._entries(offsets)), None)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield one mapping per process: every column, with typed values, None where empty."""
        empty = dict.fromkeys(self.columns)
        for entry in self._entries(self._offsets):
            row = {**empty, **{name: entry[name] for name in entry if name in _OWN}}
            if row["start"] is not None:
                row["start"] = datetime.datetime.fromtimestamp(row["start"], datetime.UTC)
            for name, value in entry.get("metrics", {}).items():
                row[self._metrics[name]] = value
            yield {**row, **entry.get("parameters", {})}

    def _entries(self, offsets: Iterable[int]) -> Iterator[dict[str, Any]]:
        with self._journal.open("rb") as file:
            for offset in offsets:
                if offset != _MISSING:
                    file.seek(offset)
                    yield json.loads(file.readline().decode())

    def cells(self) -> Iterator[dict[str, Any]]:
        """Yield the rows as they stand in CSV."""
        for row in self.rows():
            yield {column: _cell(value) for column, value in row.items()}

    def frame(self) -> pd.DataFrame:
        """Return the rows as a pandas DataFrame; whole numbers stay so where some are missing."""
        import pandas as pd

        rows = list(self.rows())
        series: dict[str, Any] = {}
        for column in self.columns:
            values = [row[column] for row in rows]
            series[column] = pd.array(values, "Int64") if self._kind(column) == "int" else values
        frame = pd.DataFrame(series, columns=self.columns)
        frame["start"] = pd.to_datetime(frame["start"], utc=True)
        return frame

    def write(self, csv_path: Path, parquet_path: Path) -> None:
        """Write the rows as CSV, and as Parquet where pyarrow is installed; each all or nothing.

        In CSV, empty cells are values that there are not, lists and mappings are JSON, and
        ``start`` is in ISO 8601, UTC. In Parquet, a column whose values are of several kinds is
        text.
        """
        kinds = {column: self._kind(column) for column in self.columns}
        texts = [column for column, kind in kinds.items() if kind in ("text", "time")]
        with contextlib.ExitStack() as files:
            write_parquet = _parquet_writer(files, parquet_path, kinds)
            writer = files.enter_context(csv_writer(csv_path))
            writer.writerow(self.columns)
            for rows in _chunks(self.rows()):
                write_parquet(rows)
                for row in rows:
                    for column in texts:
                        if type(value := row[column]) is not str and value is not None:
                            row[column] = _cell(value)
                writer.writerows(map(dict.values, rows))

    def _kind(self, column: str) -> str:
        known = {"process": "int", "run": "int", "duration": "float", "peak_memory": "int"}
        if column == "start":
            return "time"
        if column in self._parameters:
            types = self._types["parameters"].get(column, set())
        elif column in self._metrics.values():
            metric = next(name for name, label in self._metrics.items() if label == column)
            types = self._types["metrics"].get(metric, set())
        else:
            return known.get(column, "text")
        if types == {bool}:
            return "bool"
        if types and types <= {int, float}:
            return "int" if types == {int} else "float"
        return "text"


@contextlib.contextmanager
def csv_writer(path: Path) -> Iterator[Any]:
    """Return what writes rows of CSV; the file takes its place once all are written."""
    with _replacing(path) as file:
        yield csv.writer(_UnixLines(file), lineterminator="\r\n")


class _UnixLines:
    """Ends rows with a newline alone, while the csv module quotes what holds a carriage return."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(row.removesuffix("\r\n") + "\n")


def _metric_columns(metrics: Iterable[str], taken: set[str]) -> dict[str, str]:
    """Return the column of each metric: its name, after ``metric.`` where that is taken."""
    metrics = list(metrics)
    columns = {name: name for name in metrics if name not in taken}
    taken = taken | columns.keys()
    for name in metrics:
        column = columns.get(name, f"metric.{name}")
        while name not in columns and column in taken:
            column = f"metric.{column}"
        columns[name] = column
        taken.add(column)
    return {name: columns[name] for name in metrics}


def _parquet_writer(
    files: contextlib.ExitStack, path: Path, kinds: Mapping[str, str]
) -> Callable[[list[dict[str, Any]]], None]:
    """Return what appends rows to a Parquet file; without pyarrow it does nothing."""
    if importlib.util.find_spec("pyarrow") is None:
        return lambda rows: None
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    types = {
        "bool": pyarrow.bool_(),
        "int": pyarrow.int64(),
        "float": pyarrow.float64(),
        "time": pyarrow.timestamp("ms", tz="UTC"),
        "text": pyarrow.string(),
    }
    schema = pyarrow.schema([(column, types[kind]) for column, kind in kinds.items()])
    part = _part_of(path)
    files.callback(part.unlink, missing_ok=True)
    writer = ParquetWriter(part, schema)
    files.push(lambda kind, *_: _finish(writer, part, path, kind is None))

    def write(rows: list[dict[str, Any]]) -> None:
        arrays = [
            pyarrow.array([_fit(row[column], kind) for row in rows], types[kind])
            for column, kind in kinds.items()
        ]
        writer.write_batch(pyarrow.record_batch(arrays, schema=schema))

    return write


def _finish(writer: Any, part: Path, path: Path, complete: bool) -> None:
    writer.close()
    if complete:
        part.replace(path)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[TextIO]:
    """Open a file that takes the place of `path` once it was written to its end."""
    part = _part_of(path)
    try:
        with part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _fit(value: Any, kind: str) -> Any:
    if type(value) is str and value.isascii():
        return value
    if value is None or kind in ("time", "bool", "int"):
        return value
    if kind == "float":
        return float(value)
    return str(_cell(value)).encode("utf-8", "backslashreplace").decode()


def _type_of(value: Any) -> type:
    too_large = type(value) is int and not -(2**63) <= value < 2**63
    return object if too_large else type(value)


def _cell(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return plain.dumps(value) if isinstance(value, list | dict) else value


def _chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _ROWS_AT_ONCE:
            yield chunk
            chunk = []
    yield chunk


def _part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")
