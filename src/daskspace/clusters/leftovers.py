"""Cancels batch jobs, and sees that they are gone."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daskspace.clusters.queues import QUEUES, Queue, QueueError, cancel, look
from daskspace.execution.job_record import PRIVATE_PREFIX, Batch, read_job_record

_GONE_S = 20.0
_BETWEEN_S = 1.0
_AT_ONCE = 100


@dataclass
class Cancelled:
    """What became of jobs that were to be cancelled.

    Parameters
    ----------
    cancelled : list of str
        Those that were there, and are gone now.
    left : list of str
        Those that are still there, or of which nobody could tell.
    problems : list of str
        What the user has to know.
    """

    cancelled: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def cancel_jobs(
    queue: Queue,
    job_ids: Sequence[str],
    name: str,
    extra: Sequence[str] = (),
    timeout_s: float = _GONE_S,
) -> Cancelled:
    """Cancel jobs, and wait until the queue has seen the last of them; never raises.

    Parameters
    ----------
    queue : Queue
        How the batch system is told and asked.
    job_ids : sequence of str
        Their ids.
    name : str
        Jobs of this name are cancelled as well, where the queue tells names: the id of one may
        never have been written down.
    extra : sequence of str
        Arguments that the batch system's commands need.
    timeout_s : float
        How long it may take until they are gone.
    """
    until = time.monotonic() + timeout_s
    result = Cancelled(left=list(job_ids))
    said = ""
    try:
        while True:
            alive = _alive(queue, job_ids, name, extra)
            result.cancelled += [job for job in result.left if job not in alive]
            result.left = alive
            if not alive or time.monotonic() > until:
                break
            for first in range(0, len(alive), _AT_ONCE):
                said = cancel(queue, alive[first : first + _AT_ONCE], extra=extra)
            time.sleep(_BETWEEN_S)
    except (QueueError, ValueError) as error:
        said = str(error)
    if result.left:
        command = " ".join([*queue.cancel, *result.left[:20]])
        result.problems.append(
            f"{len(result.left)} jobs may still be in the queue"
            f"{f' ({said})' if said else ''}; cancel them by: {command}"
        )
    return result


def cancel_leftovers(record: Path) -> Cancelled:
    """Cancel what clients that were killed have left of an operation's jobs.

    Parameters
    ----------
    record : Path
        Its `daskspace.execution.job_record.JobRecord`; where there is none, nothing is done.
    """
    total = Cancelled()
    for batch in read_job_record(record):
        queue = QUEUES.get(batch.system)
        if queue is None:
            total.left += batch.job_ids
            if batch.job_ids:
                ids = ", ".join(batch.job_ids)
                total.problems.append(f"{batch.system} cannot be asked for the jobs {ids}")
            continue
        ended = cancel_jobs(queue, batch.job_ids, batch.name, batch.extra)
        total.cancelled += ended.cancelled
        total.left += ended.left
        total.problems += ended.problems
        if not ended.left:
            _forget(record, batch)
    return total


def _alive(queue: Queue, job_ids: Sequence[str], name: str, extra: Sequence[str]) -> list[str]:
    """Return which of the jobs are there, those that are about to end left out."""
    wanted = {queue.key(job_id): job_id for job_id in job_ids}
    return [
        wanted.get(queue.key(job.job_id), job.job_id)
        for job in look(queue, job_ids, extra=extra)
        if job.state not in ("ending", "ended")
        and (queue.key(job.job_id) in wanted or (name and job.name == name))
    ]


def _forget(record: Path, batch: Batch) -> None:
    with contextlib.suppress(OSError), record.open("a", encoding="utf-8") as file:
        for job_id in batch.job_ids:
            file.write(f"\n{json.dumps({'ended': job_id})}\n")
    private = batch.private
    if private is not None and private.name.startswith(PRIVATE_PREFIX):
        with contextlib.suppress(OSError):
            if not private.is_symlink() and private.stat().st_uid == os.getuid():
                shutil.rmtree(private)
