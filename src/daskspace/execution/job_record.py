"""Which batch jobs work for an operation, on disk before they are used."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PRIVATE_PREFIX = ".daskspace-"
"""How the name of a cluster's private directory begins."""


class JobRecord:
    """Writes down the batch jobs of an operation, so that whoever comes later can cancel them.

    Lines of JSON in one file of the result directory, each on the disk before the call returns.
    A job is written down as soon as its id is known; what a client that was killed meanwhile had
    submitted can be found by the job's name, which no other cluster has.

    Parameters
    ----------
    path : Path
        The file; what is there stays.
    system : str
        The batch system, by its name in `daskspace.clusters.queues.QUEUES`.
    name : str
        The name of the jobs.
    extra : tuple of str
        Arguments that the batch system's commands need.
    private : Path, optional
        A directory with the keys of the cluster.

    Raises
    ------
    OSError
        It cannot be written.
    """

    def __init__(
        self,
        path: Path,
        system: str,
        name: str,
        extra: tuple[str, ...] = (),
        private: Path | None = None,
    ) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._file = os.open(path, flags, 0o600)
        told = {"system": system, "name": name, "extra": list(extra)}
        self._write({**told, **({"private": str(private)} if private else {})})

    def submitted(self, job_id: str) -> None:
        """Write down a job."""
        self._write({"submitted": job_id})

    def ended(self, job_id: str) -> None:
        """Write down that a job needs no care any more."""
        self._write({"ended": job_id})

    def close(self, released: bool) -> None:
        """Write no more; released jobs are no longer those of this operation."""
        try:
            if released:
                self._write({"released": True})
        finally:
            os.close(self._file)

    def _write(self, entry: dict[str, Any]) -> None:
        os.write(self._file, f"\n{json.dumps(entry)}\n".encode())
        os.fsync(self._file)


@dataclass
class Batch:
    """The jobs that one client left behind.

    Parameters
    ----------
    system, name, extra, private
        As those of `JobRecord`.
    job_ids : list of str
        What it had submitted, and had not seen end.
    """

    system: str
    name: str
    extra: tuple[str, ...] = ()
    private: Path | None = None
    job_ids: list[str] = field(default_factory=list)


def read_job_record(path: Path) -> list[Batch]:
    """Return what clients have left behind; nothing where there is no record."""
    batches: list[Batch] = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    for line in filter(None, lines):
        try:
            entry = json.loads(line)
        except ValueError:  # torn by the end of its writer
            continue
        if not isinstance(entry, dict):
            continue
        if "system" in entry:
            private = Path(entry["private"]) if "private" in entry else None
            extra = tuple(map(str, entry.get("extra", ())))
            batches.append(Batch(str(entry["system"]), str(entry.get("name")), extra, private))
        elif batches and "submitted" in entry:
            batches[-1].job_ids.append(str(entry["submitted"]))
        elif batches and entry.get("ended") in batches[-1].job_ids:
            batches[-1].job_ids.remove(entry["ended"])
        elif batches and "released" in entry:
            batches.pop()
    return batches
