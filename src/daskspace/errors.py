"""Every exception that daskspace raises on purpose, in one tree.

::

    DaskspaceError           the command line prints it without a traceback
    |- ConfigError           an unknown backend or option, a value it cannot take
    |- SpecError             an operation that cannot be run as it is described
    |- DirectoryError        a result directory that cannot be used
    |- LifecycleError        a call in the wrong state of the backend
    |- OperationError        the operation ended before all its processes were seen
    |- ConsolidateError      the operation's own consolidate step raised
    |- SubflowError          a subflow of a process was not done
    `- BackendError          the machine failed, the operation may be fine: worth a retry
       |- ClusterStartError  the cluster did not come up
       `- RetrieveTimeout    processes still run after the time given
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class DaskspaceError(Exception):
    """Base class of all errors that daskspace raises on purpose."""


class ConfigError(DaskspaceError):
    """An unknown backend or option, or a value that it cannot take."""


class SpecError(DaskspaceError):
    """An operation that cannot be run as it is described.

    Parameters
    ----------
    message : str
        What is wrong.
    parameter : str, optional
        The parameter that it is about.
    """

    def __init__(self, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.parameter = parameter


class DirectoryError(DaskspaceError):
    """A result directory that cannot be used, or that holds no operation."""


class LifecycleError(DaskspaceError):
    """A call in the wrong state of the backend."""


class OperationError(DaskspaceError):
    """The operation ended before all its processes were seen; what ended before is kept."""


class ConsolidateError(DaskspaceError):
    """The operation's own consolidate step raised; the table is kept."""


class SubflowError(DaskspaceError):
    """A subflow of a process was not done.

    Parameters
    ----------
    text : str
        All of it in one line.
    index : int
        Which of the items it was.
    state : str
        What became of it: ``failed``, ``crashed``, ``timeout``, ``lost`` or ``cancelled``.
    told : mapping
        What is known of its ``error`` (a class), ``message``, ``where`` and ``traceback``; all of
        them are texts, and attributes of this, None where there is none.
    """

    def __init__(
        self,
        text: str,
        index: int = 0,
        state: str = "failed",
        told: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__(text)
        told = told or {"message": text}
        self.index = index
        self.state = state
        self.error = told.get("error")
        self.message = told.get("message")
        self.where = told.get("where")
        self.traceback = told.get("traceback")


class BackendError(DaskspaceError):
    """The machine failed; the operation may be fine, so a retry can help."""


class ClusterStartError(BackendError):
    """The cluster did not come up."""


class RetrieveTimeout(BackendError):
    """Processes still run after the time given; ``retrieve`` may be called again."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of `known`, or an empty string."""
    nearest = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
