"""dask-jobqueue, imported without a trace in the user's home."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.config


@contextlib.contextmanager
def _without_side_effects() -> Iterator[None]:
    """Keep dask-jobqueue from what its import does beside defining things.

    It copies its commented defaults to the user's directory, and lets Ctrl-C end the program with
    exit code 0, which fails in a thread.
    """
    ensure_file, set_signal = dask.config.ensure_file, signal.signal

    def ensure_file_of_others(source: str, *args: Any, **kwargs: Any) -> None:
        if Path(source).parent.name != "dask_jobqueue":
            ensure_file(source, *args, **kwargs)

    def set_signal_of_others(number: int, handler: Any) -> Any:
        if getattr(handler, "__module__", "") == "dask_jobqueue.runner":
            return signal.getsignal(number)
        return set_signal(number, handler)

    dask.config.ensure_file = ensure_file_of_others
    signal.signal = set_signal_of_others  # type: ignore[assignment]
    try:
        yield
    finally:
        dask.config.ensure_file, signal.signal = ensure_file, set_signal


with _without_side_effects():
    import dask_jobqueue
    import dask_jobqueue.core

__all__ = ["dask_jobqueue"]
