"""Which process is which: the same in every run, on every backend."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daskspace.execution import plain


@dataclass(frozen=True)
class Identity:
    """What tells the processes of one operation apart.

    Parameters
    ----------
    by_parameters : bool
        A process is told by its parameters, data set and run. Otherwise by its ``key``, and where
        it has none by its position.
    hidden : tuple of str
        Parameters that do not appear in names.
    """

    by_parameters: bool = False
    hidden: tuple[str, ...] = ()

    def digest(self, outcome: Mapping[str, Any]) -> bytes:
        """Return 32 bytes that differ from process to process, from the fields of an outcome."""
        if self.by_parameters:
            return digest(outcome.get("parameters", {}), outcome.get("data"), outcome.get("run"))
        key = outcome.get("key")
        return plain.digest(["position", outcome["process"]] if key is None else ["key", key])

    def name(self, outcome: Mapping[str, Any]) -> str:
        """Return the name of a process's log and directory, unique in its operation."""
        if self.by_parameters:
            shown = {
                name: value
                for name, value in outcome.get("parameters", {}).items()
                if name not in self.hidden
            }
            data = outcome.get("data")
            shown |= {"data": Path(data).name} if data is not None else {}
            shown["run"] = outcome.get("run")
        elif "key" in outcome:
            shown = {"key": outcome["key"]}
        else:
            return f"process-{outcome['process']:06d}"
        return f"{_readable_name(shown)}-{self.digest(outcome).hex()[:16]}"


def digest(parameters: Mapping[str, Any], data: str | None, run: int | None) -> bytes:
    """Return 32 bytes that depend on plain parameters, the data set's name and the run alone."""
    return plain.digest((parameters, data, run))


def describe_process(process: int, call: Any) -> dict[str, Any]:
    """Return the fields of an outcome that tell which process it is."""
    known: dict[str, Any] = {"process": process}
    try:
        parameters, data = getattr(call, "parameters", None), getattr(call, "data", None)
        run, key = getattr(call, "run", None), getattr(call, "key", None)
        if parameters and isinstance(parameters, Mapping):
            known["parameters"] = plain.plain(parameters)
        if data is not None and isinstance(data, str | os.PathLike):
            known["data"] = os.fspath(data)
        if isinstance(run, int):
            known["run"] = run
        if key is not None and isinstance(key, str | int):
            known["key"] = key
    except Exception:  # noqa: S110 - what a user's attributes raise tells nothing
        pass
    return known


def _readable_name(values: Mapping[str, Any], length: int = 80) -> str:
    """Return ``key=value`` pairs as the begin of a file name: safe, short, never hidden."""
    pairs = (
        f"{key}={value if isinstance(value, str) else plain.dumps(value)}"
        for key, value in values.items()
    )
    text = "_".join(re.sub(r"[^A-Za-z0-9.=+-]+", "-", pair).strip("-") for pair in pairs)
    return text[:length].strip("-._") or "process"
