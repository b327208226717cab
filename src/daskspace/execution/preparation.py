"""What processes of pySPACE's own kind are prepared with."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from logging.handlers import SocketHandler
from typing import Any

from daskspace.execution.travel import Shared, arrived


@dataclass(frozen=True)
class Preparation:
    """What the processes of an operation are prepared with.

    Parameters
    ----------
    configuration : Shared or str, optional
        pySPACE's configuration; once it has travelled, its key.
    backend_com : (str, int), optional
        The address of the server that takes subflows.
    log_level : int
        Log records below this level are not passed on.
    records_to : (str, int), optional
        Where log records are received, in the interpreter that has the batch.
    """

    configuration: Shared[Any] | str | None = None
    backend_com: tuple[str, int] | None = None
    log_level: int = logging.INFO
    records_to: tuple[str, int] | None = None

    @property
    def shared(self) -> tuple[Shared[Any], ...]:
        """The value that has to travel, if there is one."""
        held = self.configuration
        return (held,) if isinstance(held, Shared) else ()

    def travelling(self) -> Preparation:
        """Return it as it is sent to where `shared` goes as well."""
        return dataclasses.replace(
            self, configuration=self.shared[0].key if self.shared else self.configuration
        )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of a process's ``prepare``, in their order."""
        held = self.configuration
        shared = arrived(held) if isinstance(held, str) else held
        host, port = self.records_to or (None, None)
        return {
            "configuration": None if shared is None else shared.value,
            "handler_class": SocketHandler if self.records_to else None,
            "handler_args": {"host": host, "port": port} if self.records_to else None,
            "backend_com": self.backend_com,
        }
