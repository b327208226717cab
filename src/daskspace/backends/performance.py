"""Dask's performance report of an operation, for those who ask for it."""

from __future__ import annotations

import html
import time
from pathlib import Path
from typing import TYPE_CHECKING

from daskspace.results.directory import replace_text

if TYPE_CHECKING:
    from distributed import Client

_ANSWER_S = 30.0


class PerformanceReport:
    """What Dask records of a cluster from now on.

    Parameters
    ----------
    client : distributed.Client
        A connected client of the cluster.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._start = time.time()
        client.get_task_stream(start=0, stop=0)  # has the scheduler record from now on

    def write(self, path: Path, description: str) -> None:
        """Write the report, one page that needs nothing from elsewhere.

        Parameters
        ----------
        path : Path
            Its file.
        description : str
            What ran; shown in place of the calling code.
        """
        client = self._client
        page = client.sync(
            client.scheduler.performance_report,
            start=self._start,
            last_count=0,
            code=html.escape(description),
            mode="inline",
            callback_timeout=_ANSWER_S,
        )
        replace_text(path, page)
