"""An operation that merges the tables of others into one."""

from __future__ import annotations

import contextlib
import csv
import os
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from daskspace.errors import SpecError
from daskspace.execution import plain
from daskspace.execution.attempt import current_attempt
from daskspace.execution.commit import OUTCOME, committed_receipt, fields_of, processes_of
from daskspace.execution.outcome import GOOD_STATES
from daskspace.operations.base import Operation, Process, Resume
from daskspace.operations.data_sets import DataSet, is_path
from daskspace.results.directory import ResultDirectory
from daskspace.results.table import OWN_COLUMNS, Table, csv_writer

MERGED = "merged.csv"
SOURCE = "source"
"""The column that tells from which table a row is."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are; `metrics` is None where nobody can tell."""

    parameters: tuple[str, ...]
    metrics: tuple[str, ...] | None


def tables_in(label: str, path: str) -> list[tuple[str, str]]:
    """Return the tables that a path stands for, as names and paths.

    A CSV file stands for itself; a result directory for its ``merged.csv`` or, where there is
    none, its own table; any other directory for all result directories below it.

    Raises
    ------
    SpecError
        There is no table.
    """
    if os.path.isfile(path):
        if path.endswith(".csv"):
            return [(label, path)]
        raise SpecError(f"{path} is neither a result directory nor a CSV file")
    if (merged := os.path.join(path, MERGED)) and os.path.isfile(merged):
        return [(label, merged)]
    if ResultDirectory(path).holds_operation:
        return [(label, path)]
    found = []
    for below in sorted(p.parent for p in Path(path).rglob("journal.jsonl")):
        found += tables_in(os.path.join(label, below.relative_to(path)), str(below))
    if not found:
        raise SpecError(f"{path} holds no result directory")
    return found


def columns_of(names: Sequence[str]) -> Columns:
    """Return what the columns of a CSV file are: known where it is a table of ours."""
    own = [name for name in names if name in OWN_COLUMNS]
    if not {"process", "state", "start"} <= {*own}:
        return Columns(tuple(names), None)
    begin, state, start = (names.index(name) for name in ("process", "state", "start"))
    parameters = [n for n in names[begin + 1 : state] if n not in OWN_COLUMNS]
    return Columns(tuple(parameters), tuple(names[state + 1 : start]))


@contextlib.contextmanager
def opened_table(path: str) -> Iterator[tuple[list[str], Iterator[Mapping[str, Any]]]]:
    """Return the columns of a table and its rows, as they stand in CSV."""
    if os.path.isdir(path):
        table = Table(ResultDirectory(path).journal)
        yield table.columns, table.cells()
        return
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restkey="")
        yield list(reader.fieldnames or ()), reader


class TablesProcess(Process):
    """The one process of an operation on tables; it writes files into its private directory."""

    def __init__(
        self, name: str, tables: Sequence[tuple[str, str]], options: Mapping[str, Any]
    ) -> None:
        marks = [(label, _mark(path)) for label, path in tables]
        self.tables = tuple(tables)
        self.options = dict(options)
        self.key = f"{name}-{plain.digest([marks, plain.plain(self.options)]).hex()[:8]}"
        self.data = tables[0][0] if len(tables) == 1 else None

    def __call__(self) -> Any:
        """Write the files, and return what the operation's row shows."""
        return self.write(current_attempt().make_directory())

    @abstractmethod
    def write(self, directory: Path) -> dict[str, Any]:
        """Write the files into `directory`."""


def merge_tables(tables: Sequence[tuple[str, str]], path: Path) -> dict[str, int]:
    """Write one table of many: all columns of all, and a first one that tells the source.

    Cells stay as they stand in the tables; those that a table has not are empty.
    """
    heads = []
    for _, table in tables:
        with opened_table(table) as (names, _rows):
            heads.append(names)
    columns = _united(heads)
    source = SOURCE
    while source in columns:
        source = f"merged.{source}"
    number = 0
    with csv_writer(path) as writer:
        writer.writerow([source, *columns])
        for label, table in tables:
            with opened_table(table) as (_, rows):
                for row in rows:
                    if "" in row:
                        raise ValueError(f"{table}: a row has more cells than there are columns")
                    writer.writerow([label, *(row.get(column) for column in columns)])
                    number += 1
    return {"tables": len(tables), "rows": number}


class MergeProcess(TablesProcess):
    """Writes ``merged.csv``."""

    def write(self, directory: Path) -> dict[str, Any]:
        """Merge the tables, and return how many there were."""
        return merge_tables(self.tables, directory / MERGED)


class TablesOperation(Operation):
    """An operation of one process, which makes files from the tables of other operations.

    The files lie in the result directory itself when it has ended.

    Parameters
    ----------
    data_sets : sequence of (str, str)
        Names and paths of result directories, of directories that hold such, or of CSV files.
    options : mapping
        What the specification says beside that.
    """

    process_class: ClassVar[type[TablesProcess]]

    def __init__(
        self,
        data_sets: Sequence[DataSet],
        options: Mapping[str, Any],
        result_directory: str | Path | None = None,
        name: str | None = None,
        resume: Resume = False,
        is_sketch: bool = False,
    ) -> None:
        self.options = options
        self._data_sets = data_sets
        tables = {} if is_sketch else dict(_tables(data_sets))
        name = name or self.kind
        self.process = (
            None if is_sketch else self.process_class(name, list(tables.items()), options)
        )
        processes = [] if self.process is None else [self.process]
        super().__init__(processes, result_directory, name=name, resume=resume)
        self.number_processes = 1

    def consolidate(self) -> None:
        """Copy what the process has written to the result directory itself."""
        if self.process is None:
            return
        results = Path(str(self.result_directory))
        name = self.identity.name({"process": 0, "key": self.process.key})
        receipt = committed_receipt(processes_of(results) / name)
        if receipt is None or fields_of(receipt)["state"] not in GOOD_STATES:
            return
        for path in (processes_of(results) / name).iterdir():
            if path.name != OUTCOME:
                part = results / f".{path.name}.part"
                shutil.copyfile(path, part)
                part.replace(results / path.name)

    def products(self) -> dict[str, str]:
        """Return what there is to look at: what it is, and its path or why there is none."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Return the operation as a specification."""
        labels = [label for label, _ in self._data_sets]
        described = {**super().describe(), **self.options, "input_path": labels}
        base = self.base_directory or os.getcwd()
        if not all(
            is_path(path, os.path.join(base, str(label))) for label, path in self._data_sets
        ):
            described["made_by"] = "a program"
        return described


class MergeOperation(TablesOperation):
    """Merges tables into one, ``merged.csv``: all columns of all, and where a row came from."""

    kind = "merge"
    process_class = MergeProcess

    def products(self) -> dict[str, str]:
        """Return where the merged table is."""
        return {"merged": str(Path(str(self.result_directory), MERGED))}


def _tables(data_sets: Sequence[DataSet]) -> list[tuple[str, str]]:
    return [table for label, path in data_sets for table in tables_in(str(label), str(path))]


def _united(heads: Sequence[Sequence[str]]) -> list[str]:
    """Return all columns, in the order of our tables: parameters, state, metrics, the rest."""
    known = [columns for names in heads if (columns := columns_of(names)).metrics is not None]
    parameters = [name for columns in known for name in columns.parameters]
    metrics = [name for columns in known for name in columns.metrics or ()]
    before, after = OWN_COLUMNS[:1], OWN_COLUMNS[1:4]
    order = [*before, *parameters, *after, *metrics, *OWN_COLUMNS[4:]]
    there = [name for names in heads for name in names]
    return [name for name in dict.fromkeys([*order, *there]) if name in there]


def _mark(path: str) -> list[int]:
    """Return what differs when a table has changed."""
    stat = os.stat(ResultDirectory(path).journal if os.path.isdir(path) else path)
    return [stat.st_size, stat.st_mtime_ns]
