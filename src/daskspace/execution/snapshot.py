"""How far an operation has come, as plain data for those who watch it from elsewhere."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daskspace.execution.commit import attempts_of, fields_of
from daskspace.execution.outcome import Outcome
from daskspace.execution.status import Jobs, Status

_SHOWN = ("process", "state", "error", "message", "where", "host")
_TEXT, _MORE = 300, 100


def snapshot_path(results: Path) -> Path:
    """Return where the snapshot of an operation is while it runs."""
    return attempts_of(results) / "snapshot.json"


def describe_status(status: Status) -> dict[str, Any]:
    """Return a status as plain data."""
    jobs = status.jobs
    first = status.first_failure
    return {
        "state": status.state,
        "complete": status.complete,
        "counts": dict(status.counts),
        "ended": status.ended,
        "total": status.total,
        "rate": status.rate and round(status.rate, 3),
        "eta": status.eta and round(status.eta, 1),
        "workers": status.workers,
        "jobs": None if jobs is None else {**dataclasses.asdict(jobs), "waiting": jobs.waiting},
        "ending": status.ending and status.ending[:_TEXT],
        "first_failure": None if first is None else describe_failure(first),
    }


def describe_failure(outcome: Outcome) -> dict[str, Any]:
    """Return what is shown of a process that is not done, cut to what fits on a page."""
    fields = {name: _cut(getattr(outcome, name)) for name in _SHOWN}
    values = {**outcome.parameters, "data": outcome.data, "run": outcome.run}
    told = {str(n)[:_MORE]: _cut(v, _MORE) for n, v in list(values.items())[:20] if v is not None}
    return {**fields, "parameters": told}


def describe_receipts(receipts: list[str]) -> list[dict[str, Any]]:
    """Return what is shown of these receipts, without those of cancelled processes."""
    outcomes = (Outcome.from_fields(fields_of(receipt)) for receipt in receipts)
    return [describe_failure(o) for o in outcomes if o.state != "cancelled"]


def read_snapshot(results: Path) -> dict[str, Any] | None:
    """Return the snapshot of an operation that runs; None where there is none."""
    try:
        told = json.loads(snapshot_path(results).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None


def status_of(snapshot: Mapping[str, Any]) -> Status:
    """Return the status that a snapshot tells."""
    jobs, first = snapshot.get("jobs"), snapshot.get("first_failure")
    names = {field.name for field in dataclasses.fields(Jobs)}
    return Status(
        state=str(snapshot.get("state")),
        counts=dict(snapshot.get("counts") or {}),
        total=snapshot.get("total"),
        complete=bool(snapshot.get("complete")),
        rate=snapshot.get("rate"),
        workers=int(snapshot.get("workers") or 0),
        jobs=Jobs(**{n: v for n, v in jobs.items() if n in names}) if jobs else None,
        first_failure=Outcome.from_fields(first) if first else None,
        ending=snapshot.get("ending"),
    )


def _cut(value: Any, limit: int = _TEXT) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value if abs(value or 0) < 1e15 else str(value)[:limit]
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= limit else f"{text[:limit]}..."
