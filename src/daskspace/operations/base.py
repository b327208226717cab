"""Operation and Process: the contract between what is run and what runs it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskspace.errors import DirectoryError, SpecError, did_you_mean
from daskspace.execution.identity import Identity
from daskspace.execution.past import AGAIN
from daskspace.results.directory import ResultDirectory
from daskspace.results.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from daskspace.execution.travel import Shared

Resume = bool | str | Iterable[str]


class Process:
    """One independent, picklable unit of work: call it without arguments.

    A subclass implements `__call__`, which returns a mapping of metrics, one scalar, or None. What
    it raises makes this process ``failed`` and stops no other. Any callable serves as well.

    Attributes
    ----------
    parameters : mapping of str
        Its parameters, shown in the table.
    data : str, optional
        The name or path of its data set.
    run : int, optional
        Its run, from 0.
    key : str or int, optional
        What tells it from the others when the operation is resumed, unique in the operation; by
        default its position.
    """

    parameters: Mapping[str, Any] = {}
    data: str | None = None
    run: int | None = None
    key: str | int | None = None

    def __call__(self) -> Any:
        """Do the work and return its metrics."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")

    def __repr__(self) -> str:
        return type(self).__name__


class Operation:
    """A finite or endless stream of processes, a result directory, and a consolidate step.

    No base class is needed: a backend takes any object with ``processes``, ``result_directory``
    and ``consolidate()``.

    Parameters
    ----------
    processes : iterable of callables
        A list, a generator, or a queue that ends with False. It may be endless.
    result_directory : path, optional
        Where the results go: a directory that holds no operation yet. By default the backend
        makes ``<name>-<timestamp>`` in the working directory.
    name : str
        Shown in logs, on Dask's dashboard and in the name of the result directory.
    number_processes : int, optional
        How many there are, as an estimate; None when unknown. By default the length of
        `processes`, where it has one.
    resume : bool, str or sequence of str
        Whether `result_directory` may hold an earlier run of this operation, which then goes on:
        what is done is not run again. States such as ``failed`` say what else is to be run again.

    Attributes
    ----------
    result_directory : str or None
        None until the operation is staged, unless given.
    independent : bool
        Whether its processes can be had before anything is known of those before them, as from a
        list; then ``serial``, too, takes several at a time.
    """

    kind = "stream"
    shared: Sequence[Shared[Any]] = ()
    python_path: Sequence[str] = ()
    base_directory: str | None = None
    parameters: Sequence[str] = ()
    backend: str | None = None
    automatic_directory: str | None = None
    independent = False
    identity = Identity()

    def __init__(
        self,
        processes: Iterable[Any],
        result_directory: str | Path | None = None,
        *,
        name: str = "operation",
        number_processes: int | None = None,
        resume: Resume = False,
    ) -> None:
        self.processes = processes
        self.name = safe_name(name)
        self.result_directory = None if result_directory is None else str(result_directory)
        if number_processes is None and isinstance(processes, Sized):
            number_processes = len(processes)
        self.number_processes = number_processes
        self.resume = checked_resume(resume)

    def consolidate(self) -> None:
        """Merge the results of the processes; called once all have ended, after the table.

        Whatever it raises is reported as ConsolidateError, and it may be called again.
        """

    def get_output_directory(self) -> str | None:
        """Return the result directory."""
        return self.result_directory

    def describe(self) -> dict[str, Any]:
        """Return what ``operation.yaml`` in the result directory tells about this operation."""
        return {"type": self.kind, "name": self.name}

    def rows(self) -> list[dict[str, Any]]:
        """Return one mapping per process in process order, with typed values.

        The keys are the columns of ``table.csv``. It reads the result directory, so it works while
        the operation runs, and long after.

        Raises
        ------
        DirectoryError
            The operation has not been staged.
        """
        return list(self._table().rows())

    def table(self) -> pd.DataFrame:
        """Return the rows as a pandas DataFrame; ``start`` is a time stamp in UTC."""
        return self._table().frame()

    def _table(self) -> Table:
        if self.result_directory is None:
            raise DirectoryError(
                f"{self!r} has no results yet: run it first, for example with"
                ' create_backend("mcore").run(operation)'
            )
        return Table(ResultDirectory(self.result_directory).journal)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def _repr_html_(self) -> str:
        if self.result_directory is None:
            return f"<p>{self!r}: {self.number_processes or '?'} processes, not run yet</p>"
        return f"<p>{self!r} in {self.result_directory}</p>{self.table().head(20).to_html()}"


def checked_resume(resume: Resume) -> bool | tuple[str, ...]:
    """Return whether to resume, and in which states processes are run again."""
    if isinstance(resume, bool):
        return resume
    states = (resume,) if isinstance(resume, str) else tuple(resume)
    for state in states:
        if state not in AGAIN:
            near = did_you_mean(str(state), AGAIN)
            raise SpecError(f"resume: {state!r} is none of {', '.join(AGAIN)}{near}")
    return states or True


def safe_name(name: str) -> str:
    """Return a name that is safe in paths and task names."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", str(name)).strip("-.")[:60].strip("-.") or "operation"
