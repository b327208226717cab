"""How processes travel: what they share goes once per operation, the rest in batches."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import cloudpickle

from daskspace.errors import SpecError
from daskspace.execution.origin import is_library

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
Batch = Sequence[tuple[int, Any]]
"""Processes with their positions in the operation."""

LARGEST_PROCESS = 100 * 1024 * 1024
"""The largest size of one pickled process, in bytes; larger ones are refused."""


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
        return _arrived, (self.key,)


@dataclass(frozen=True)
class Package:
    """The pickled `Shared` values of one operation."""

    key: str
    content: bytes


_packages: dict[str, Mapping[str, Shared[Any]]] = {}
_PACKAGES_KEPT = 2
_python_path: set[str] = set()


def pack(values: Iterable[Shared[Any]]) -> Package:
    """Return the package that makes `values` known to a worker.

    Raises
    ------
    SpecError
        A value cannot be pickled.
    """
    contents = {shared.key: shared.value for shared in values}
    try:
        return Package(uuid.uuid4().hex, cloudpickle.dumps(contents))
    except Exception as error:
        raise SpecError(
            "the operation's function or data cannot be sent to workers:"
            f" {type(error).__name__}: {error}; open files, locks and connections"
            " inside the function instead"
        ) from error


def unpack(package: Package, python_path: Sequence[str]) -> None:
    """Make the values of a package known to this interpreter; a second time it costs nothing.

    Modules that earlier operations imported from directories in `python_path` are imported anew,
    so that a warm worker runs the user's code as it is now.
    """
    if package.key not in _packages:
        _forget_modules(tuple(python_path))
        contents = cloudpickle.loads(package.content)
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


def _arrived(key: str) -> Shared[Any]:
    for contents in reversed(list(_packages.values())):
        if key in contents:
            return contents[key]
    raise LookupError("the values that this process shares have not arrived in this interpreter")


class Carrier(Protocol):
    """Turns a batch into a future of its receipts."""

    def submit(self, batch: Batch) -> Future[Mapping[str, Any]]:
        """Begin a batch; raises TravelError when it cannot be sent."""


class InPlace:
    """A carrier to an executor of this interpreter: nothing is pickled."""

    def __init__(self, executor: Executor, function: Any, settings: Any) -> None:
        self._begin: Callable[[Batch], Future[Mapping[str, Any]]] = partial(
            executor.submit, function, settings, None
        )

    def submit(self, batch: Batch) -> Future[Mapping[str, Any]]:
        """Run a batch with the executor."""
        return self._begin(batch)


class ToWorkers:
    """A carrier to the workers of a Dask cluster.

    Parameters
    ----------
    client : distributed.Client
        A connected client.
    function, settings
        What runs a batch, and the first of its arguments.
    group : str
        The name under which Dask's dashboard shows the tasks.
    shared : iterable of Shared
        What the processes have in common.
    """

    def __init__(
        self,
        client: Client,
        function: Any,
        settings: Any,
        group: str,
        shared: Iterable[Shared[Any]],
    ) -> None:
        global _is_client
        _is_client = True
        package = pack(shared)
        self._executor = client.get_executor(pure=False)
        self._function = function
        self._settings = settings
        self._group = f"{group}-{uuid.uuid4().hex[:8]}"
        self._numbers = itertools.count()
        # A task of its own, so that a worker fetches it from its peers, and a lost one is redone.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            self._package = client.submit(
                _deliver, package, key=(f"{group}-shared-{package.key[:8]}", 0), pure=False
            )

    def submit(self, batch: Batch) -> Future[Mapping[str, Any]]:
        """Send a batch to whichever worker is free."""
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
        return self._executor.submit(
            self._function,
            self._settings,
            self._package,
            content,
            key=(self._group, next(self._numbers)),
        )


def _deliver(package: Package) -> Package:
    return package
