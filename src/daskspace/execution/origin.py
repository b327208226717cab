"""Whose code a file is: the user's, or that of a library."""

from __future__ import annotations

import sysconfig
from pathlib import Path

_PACKAGE = str(Path(__file__).parents[1])
_EXAMPLES = str(Path(_PACKAGE, "examples"))
_PATHS = ("stdlib", "platstdlib", "purelib", "platlib")
_LIBRARIES = (*{sysconfig.get_path(name) for name in _PATHS}, "<frozen")


def is_ours(filename: str) -> bool:
    """Return whether a file belongs to daskspace, other than its examples."""
    return filename.startswith(_PACKAGE) and not filename.startswith(_EXAMPLES)


def is_library(filename: str) -> bool:
    """Return whether a file belongs to Python, to an installed package, or to us."""
    if filename.startswith(_EXAMPLES):
        return False
    installed = filename.startswith(_LIBRARIES) or "site-packages" in filename
    return installed or is_ours(filename)
