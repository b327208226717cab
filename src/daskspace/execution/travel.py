"""How processes travel: what they share goes once per operation, the rest in batches."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import sys
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import cloudpickle

from daskspace.errors import SpecError
from daskspace.execution.commit import attempts_of
from daskspace.execution.origin import is_library
from daskspace.execution.original import fresh, holds_originals, is_original
from daskspace.execution.tape import SUFFIX, Recording, read_tape

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
Batch = Sequence[tuple[int, Any]]
"""Processes with their positions in the operation."""
Event = Future[Mapping[str, Any]]
"""A batch on its way."""

LARGEST_PROCESS = 100 * 1024 * 1024
"""The largest size of one pickled process, in bytes; larger ones are refused."""
LARGEST_MESSAGE = 1024 * 1024
"""The largest size of a pickled batch that is sent as it is; larger ones go through a file.

All that Dask carries passes the scheduler, which keeps it for as long as the task is not done.
"""


class TravelError(Exception):
    """A batch that cannot be pickled, or is too large to be sent."""


class Shared(Generic[T]):
    """A value that all processes of an operation use, such as its function or data sets.

    A pickled process holds only the key of its `Shared` values. The values themselves travel once
    per operation and are kept by each worker while the operation runs there.
    """

    def __init__(self, value: T) -> None:
        self.key = uuid.uuid4().hex
        self.value = value

    def __reduce__(self) -> Any:
        return arrived, (self.key,)


@dataclass(frozen=True)
class Package:
    """The pickled `Shared` values of one operation, in a file."""

    key: str
    path: Path


@dataclass(frozen=True)
class Parcel:
    """A pickled batch.

    Parameters
    ----------
    count : int
        How many processes are in it.
    content : bytes or Path
        What they are pickled as, or the file that holds it.
    longest : float
        How many seconds one process has taken at most so far.
    has_originals : bool
        Whether any of them wants to be prepared.
    budget : float, optional
        After so many seconds it returns what it has not begun; by default the settings tell.
    """

    count: int
    content: bytes | Path
    longest: float = 0.0
    has_originals: bool = False
    budget: float | None = None


_packages: dict[str, Mapping[str, Shared[Any]]] = {}
_PACKAGES_KEPT = 2
_python_path: set[str] = set()


def pack(values: Iterable[Shared[Any]], directory: Path) -> Package:
    """Return the package that makes `values` known to a worker, written to a file in `directory`.

    Raises
    ------
    SpecError
        A value cannot be pickled.
    OSError
        The file cannot be written.
    """
    contents = {shared.key: shared.value for shared in values}
    try:
        content = cloudpickle.dumps(contents)
    except Exception as error:
        raise SpecError(
            "the operation's function, data or configuration cannot be sent to workers:"
            f" {type(error).__name__}: {error}; open files, locks and connections"
            " inside the function instead"
        ) from error
    key = uuid.uuid4().hex
    package = Package(key, directory / f"{key}.package")
    _write_private(package.path, content)
    return package


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)  # whoever could write to it would run code as this user
    path.write_bytes(content)


def unpack(package: Package, python_path: Sequence[str]) -> None:
    """Make the values of a package known to this interpreter; a second time it costs nothing.

    Modules that earlier operations imported from directories in `python_path` are imported anew,
    so that a warm worker runs the user's code as it is now.
    """
    if package.key not in _packages:
        _forget_modules(tuple(python_path))
        contents = cloudpickle.loads(package.path.read_bytes())
        _packages[package.key] = {key: _restored(key, value) for key, value in contents.items()}
        for stale in list(_packages)[:-_PACKAGES_KEPT]:
            _packages.pop(stale, None)


_modules_of_worker = frozenset(sys.modules)
_is_client = False


def is_client() -> bool:
    """Return whether a client runs in this interpreter, perhaps beside workers."""
    return _is_client


def _forget_modules(directories: tuple[str, ...]) -> None:
    """Have the user's modules imported anew, but not where the client itself runs."""
    if _is_client:
        return
    _python_path.update(directories)
    roots = tuple(os.path.join(directory, "") for directory in _python_path)
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        local = file.startswith(roots) and file.endswith(".py") and not is_library(file)
        if local and name not in _modules_of_worker:
            del sys.modules[name]
    importlib.invalidate_caches()


def _restored(key: str, value: Any) -> Shared[Any]:
    shared: Shared[Any] = Shared(value)
    shared.key = key
    return shared


def arrived(key: str) -> Shared[Any]:
    """Return the value of a key, which must have travelled to this interpreter before."""
    for contents in reversed(list(_packages.values())):
        if key in contents:
            return contents[key]
    raise LookupError("the values that this process shares have not arrived in this interpreter")


class Carrier(Protocol):
    """Turns a batch into a future of what becomes of it."""

    def submit(self, batch: Batch, longest: float = 0.0, budget: float | None = None) -> Event:
        """Begin a batch; raises TravelError when it cannot be sent.

        `longest` is how many seconds one process has taken at most so far, and `budget` after how
        many it returns what it has not begun.
        """

    def stop(self, running: bool) -> None:
        """Have no more batches begun, and what runs stopped if it is to be."""

    def recording(self, future: Event) -> Recording | None:
        """Return how far a batch came, None if it was never begun."""

    def forget(self, future: Event) -> None:
        """Remove what was kept of a batch that has been taken in."""

    def is_alive(self) -> bool:
        """Whether batches can be sent, and come back."""

    def is_stuck(self) -> bool:
        """Whether no batch is with any worker; asked when nothing has come for long."""


class _Tapes:
    """The tapes of the batches that are on their way."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        mark = uuid.uuid4().hex[:8]  # a cluster that was lost may still write its tapes
        self._names = (f"{mark}-{number}" for number in itertools.count())
        self._paths: dict[Event, Path] = {}
        self._beside: dict[Path, Path] = {}

    def new(self) -> Path:
        """Return a path that no other batch has."""
        directory = attempts_of(self._settings.directory)
        return directory / f"{self._settings.group}-{next(self._names)}{SUFFIX}"

    def beside(self, path: Path) -> Path:
        """Return the path of another file for a batch, which is removed with its tape."""
        self._beside[path] = path.with_suffix(".parcel")
        return self._beside[path]

    def keep(self, future: Event, path: Path | None) -> None:
        """Remember the tape of a batch, if it has one."""
        if path is not None:
            self._paths[future] = path

    def read(self, future: Event) -> Recording | None:
        """Return what a tape holds; None where there is none."""
        try:
            return read_tape(self._paths[future])
        except (OSError, KeyError):
            return None

    def remove(self, future: Event) -> None:
        """Remove the tape of a batch, and the file in which it travelled."""
        tape = self._paths.pop(future, None)
        if tape is not None:
            for path in {tape, self._beside.pop(tape, tape)}:
                with contextlib.suppress(OSError):
                    path.unlink()


class InPlace:
    """A carrier to an executor of this interpreter: nothing is pickled, nothing can get lost.

    Parameters
    ----------
    executor : Executor
        Runs one batch at a time.
    function : callable
        What runs a batch.
    settings
        The first of its arguments, with the result ``directory``, whose ``.attempts`` holds the
        tapes.
    tell : callable
        The last of them.
    again : bool
        Whether a process may be run more than once: one that is callable once only is copied then.
    """

    def __init__(
        self, executor: Executor, function: Any, settings: Any, tell: Any, again: bool = False
    ) -> None:
        self._again = again
        self._tapes = _Tapes(settings)
        self._begin: Callable[[Batch, Path | None], Event] = lambda batch, tape: executor.submit(
            function, settings, None, batch, tape, tell
        )

    def submit(self, batch: Batch, longest: float = 0.0, budget: float | None = None) -> Event:
        """Run a batch with the executor; a process that goes alone needs no tape on disk."""
        if self._again:
            batch = [(n, fresh(call) if is_original(call) else call) for n, call in batch]
        tape = self._tapes.new() if len(batch) > 1 else None
        future = self._begin(batch, tape)
        self._tapes.keep(future, tape)
        return future

    def stop(self, running: bool) -> None:
        """Do nothing: Ctrl-C reaches the process itself."""

    def recording(self, future: Event) -> Recording | None:
        """Return what the tape of a batch holds."""
        return self._tapes.read(future)

    def forget(self, future: Event) -> None:
        """Remove the tape of a batch."""
        self._tapes.remove(future)

    def is_alive(self) -> bool:
        """Return True."""
        return True

    def is_stuck(self) -> bool:
        """Return False."""
        return False


class Away(ABC):
    """A carrier to where batches have to travel: pickled, each with a tape.

    Parameters
    ----------
    settings
        With the result ``directory``, whose ``.attempts`` holds the tapes, and the ``group``.
    """

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._tapes = _Tapes(settings)

    def submit(self, batch: Batch, longest: float = 0.0, budget: float | None = None) -> Event:
        """Pickle a batch and send it."""
        try:
            content = cloudpickle.dumps(list(batch))
        except BaseException as error:
            raise TravelError(
                f"{type(error).__name__} while it was pickled: {str(error)[:1000]}"
            ) from error
        if len(content) > LARGEST_PROCESS:
            raise TravelError(
                f"it is {len(content) / 2**20:.0f} MiB large when pickled, more than the"
                f" {LARGEST_PROCESS / 2**20:.0f} MiB that may travel: pass a path instead"
            )
        tape = self._tapes.new()
        parcel = Parcel(len(batch), content, longest, holds_originals(batch), budget)
        future = self._send(parcel, tape)
        self._tapes.keep(future, tape)
        return future

    @abstractmethod
    def _send(self, parcel: Parcel, tape: Path) -> Event:
        """Send a parcel."""

    @abstractmethod
    def stop(self, running: bool) -> None:
        """Have no more batches begun, and what runs stopped if it is to be."""

    def recording(self, future: Event) -> Recording | None:
        """Return what the tape of a batch holds."""
        return self._tapes.read(future)

    def forget(self, future: Event) -> None:
        """Remove the tape of a batch."""
        self._tapes.remove(future)

    def is_alive(self) -> bool:
        """Whether batches can be sent, and come back."""
        return True

    def is_stuck(self) -> bool:
        """Whether no batch is with any worker."""
        return False


class ToHost(Away):
    """A carrier to a child beside this interpreter.

    Parameters
    ----------
    executor : Executor
        Runs one batch at a time in this interpreter.
    function : callable
        What runs a batch; its last argument is `tell`.
    stop : callable
        Stops it.
    """

    def __init__(
        self,
        executor: Executor,
        function: Any,
        stop: Callable[[str, bool], None],
        settings: Any,
        shared: Iterable[Shared[Any]],
        tell: Any,
    ) -> None:
        super().__init__(settings)
        package = pack(shared, attempts_of(settings.directory))
        self._stop = stop
        self._begin: Callable[[Parcel, Path], Event] = lambda parcel, tape: executor.submit(
            function, settings, package, parcel, tape, tell
        )

    def _send(self, parcel: Parcel, tape: Path) -> Event:
        return self._begin(parcel, tape)

    def stop(self, running: bool) -> None:
        """Have no more batches begun, and what runs stopped if it is to be."""
        self._stop(self._settings.group, running)


class ToWorkers(Away):
    """A carrier to the workers of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        A connected client.
    function : callable
        What runs a batch on a worker.
    stop : callable
        Called on every worker to stop the batches of a group.
    settings
        The first argument of `function`. Its ``group`` is the name under which Dask's dashboard
        shows the tasks.
    shared : iterable of Shared
        What the processes have in common.
    """

    def __init__(
        self,
        client: Client,
        function: Any,
        stop: Callable[[str, bool], None],
        settings: Any,
        shared: Iterable[Shared[Any]],
    ) -> None:
        global _is_client
        _is_client = True
        super().__init__(settings)
        # A file, not data of Dask's: tasks that depend on data go where it is, all to one worker.
        self._package = pack(shared, attempts_of(settings.directory))
        self._client = client
        self._executor = client.get_executor(pure=False)
        self._function = function
        self._stop = stop

    def _send(self, parcel: Parcel, tape: Path) -> Event:
        key = (self._settings.group, tape.stem)
        if isinstance(parcel.content, bytes) and len(parcel.content) > LARGEST_MESSAGE:
            path = self._tapes.beside(tape)
            _write_private(path, parcel.content)
            parcel = replace(parcel, content=path)
        return self._executor.submit(
            self._function, self._settings, self._package, parcel, tape, key=key
        )

    def stop(self, running: bool) -> None:
        """Tell every worker, without waiting for those that do not answer."""
        group = self._settings.group
        patiently(lambda: self._client.run(self._stop, group, running, on_error="ignore"), 2.0)

    def is_alive(self) -> bool:
        """Whether the scheduler is there."""
        return self._client.status == "running"

    def is_stuck(self) -> bool:
        """Whether no worker has a batch of ours, though there are workers."""
        processing = patiently(self._client.processing, 5.0)
        if not processing:
            return False
        return not any(self._settings.group in str(k) for keys in processing.values() for k in keys)


def patiently(function: Callable[[], T], patience: float) -> T | None:
    """Return what a function returns; None if it raises, or takes longer than `patience`."""
    returned: list[T] = []

    def call() -> None:
        with contextlib.suppress(Exception):
            returned.append(function())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(patience)
    return returned[0] if returned else None
