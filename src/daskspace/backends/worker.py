"""`run_batch`: the only function of ours that Dask runs as a task for each batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed import get_worker

from daskspace.execution.attempt import Settings
from daskspace.execution.isolation import carry_out
from daskspace.execution.travel import Package, Parcel


def run_batch(settings: Settings, package: Package, parcel: Parcel, tape: Path) -> dict[str, Any]:
    """Run a batch on this worker, and never raise; see `carry_out`."""
    worker = get_worker()

    def tell(message: Mapping[str, Any]) -> None:
        worker.log_event(settings.group, {**message, "worker": worker.name})

    return carry_out(settings, package, parcel, tape, tell)
