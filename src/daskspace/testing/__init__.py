"""What every backend promises, as tests for whoever writes one; they need pytest.

::

    from daskspace.testing import BackendContract

    class TestMine(BackendContract):
        def make_backend(self):
            return MyBackend(n_workers=2)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # type checkers see what `__getattr__` finds
    from daskspace.testing.contract import BackendContract, InPlaceContract

__all__ = ["BackendContract", "InPlaceContract"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        import pytest
    except ImportError as error:
        raise ImportError(f"{name} is made of tests for pytest: pip install pytest") from error
    pytest.register_assert_rewrite("daskspace.testing.contract")  # so that failures show values
    return getattr(importlib.import_module("daskspace.testing.contract"), name)


def __dir__() -> list[str]:
    return __all__
