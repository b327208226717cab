"""The `loadl` backend: batch jobs of IBM LoadLeveler."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from daskspace.backends.jobqueue import JobQueueBackend
from daskspace.clusters.loadleveler import LoadLevelerCluster
from daskspace.errors import ConfigError

_SETTINGS = {
    "job_class": ("queue",),
    "consumable_memory": ("memory", "job_mem"),
    "consumable_cpus": ("cores",),
    "anode": ("requirements",),
}
"""pySPACE's settings, and the options that they stand for."""
_UNITS = {"b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40}


class LoadLevelerBackend(JobQueueBackend):
    """Runs the processes in jobs of LoadLeveler, by `daskspace.clusters.LoadLevelerCluster`.

    Parameters
    ----------
    job_class, consumable_memory, consumable_cpus, anode
        pySPACE's settings: the class of the jobs, the memory (in LoadLeveler's units, which are
        binary) and the number of CPUs of one, and the ``requirements`` on its node. They stand for
        ``queue``, ``memory`` with ``job_mem``, ``cores``, and ``requirements``.
    **options
        Keywords of the cluster class, untouched, beside those of `JobQueueBackend`.
    """

    cluster_class = LoadLevelerCluster
    configuration_options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        name: (name, *options) for name, options in _SETTINGS.items()
    }

    def __init__(self, **options: Any) -> None:
        options.setdefault("submit_retries", 0)  # the fleet tries again, and says why it has to
        super().__init__(**_from_pyspace(options))


def _from_pyspace(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with pySPACE's settings replaced by those of the cluster class."""
    names = {"job_class": "queue", "consumable_cpus": "cores", "anode": "requirements"}
    for old, new in names.items():
        if (value := options.pop(old, None)) not in (None, ""):
            options.setdefault(new, value)
    memory = options.pop("consumable_memory", None)
    if memory not in (None, ""):
        found = re.fullmatch(r"\s*(\d+)\s*([kmgt]?b)?\s*", str(memory), re.IGNORECASE)
        if found is None:
            raise ConfigError(f"consumable_memory must be like '3250mb', not {memory!r}")
        size = int(found[1]) * _UNITS[(found[2] or "mb").lower()]
        options.setdefault("memory", f"{size} B")
        options.setdefault("job_mem", str(memory).strip())
    return options
