"""dask-jobqueue, imported without a trace in the user's home."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask.config


@contextlib.contextmanager
def _without_its_config_file() -> Iterator[None]:
    """Keep dask-jobqueue from copying its commented defaults to the user's directory."""
    ensure_file = dask.config.ensure_file

    def ensure_file_of_others(source: str, *args: Any, **kwargs: Any) -> None:
        if Path(source).parent.name != "dask_jobqueue":
            ensure_file(source, *args, **kwargs)

    dask.config.ensure_file = ensure_file_of_others
    try:
        yield
    finally:
        dask.config.ensure_file = ensure_file


with _without_its_config_file():
    import dask_jobqueue
    import dask_jobqueue.core

__all__ = ["dask_jobqueue"]
