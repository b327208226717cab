"""Where the settings in Dask's configuration come from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import yaml


@dataclass(frozen=True)
class Setting:
    """A setting, and who has set it.

    Parameters
    ----------
    name : str
        Its name.
    value : object
        Its value, as it counts.
    source : str
        Where the value is from.
    remark : str
        What is wrong with it.
    """

    name: str
    value: Any
    source: str
    remark: str = ""


@dataclass(frozen=True)
class Source:
    """Where a key of Dask's configuration was set.

    Parameters
    ----------
    place : str
        The environment variable, or the file and where possible its line; empty for a default.
    text : str
        How a file spells the value, empty where that cannot be told.
    """

    place: str = ""
    text: str = ""


def source_of(key: str) -> Source:
    """Return where the value of a key is from that Dask's configuration has now."""
    for variable in os.environ:
        if variable.startswith("DASK_") and _same(variable[5:].lower().replace("__", "."), key):
            return Source(f"environment variable {variable}")
    last = Source()
    for path, config in dask.config.collect_yaml(dask.config.paths, return_paths=True):
        if _has(config, key):
            node = _find(path, key.split("."))
            line = f":{node.start_mark.line + 1}" if node is not None else ""
            text = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
            last = Source(f"{_short(path)}{line}", text)
    if last.place:
        return last
    if "DASK_INTERNAL_INHERIT_CONFIG" in os.environ:
        inherited = dask.config.deserialize(os.environ["DASK_INTERNAL_INHERIT_CONFIG"])
        if _has(inherited, key):
            return Source("the program that started this one")
    return last


def keys_set(section: str) -> list[str]:
    """Return the keys that files and environment variables give a section."""
    found = dask.config.get(section, None, config=dask.config.collect())
    return [str(key) for key in found] if isinstance(found, dict) else []


def _has(config: dict[str, Any], key: str) -> bool:
    missing = object()
    with contextlib.suppress(TypeError):  # a text where a section should be
        return dask.config.get(key, missing, config=config) is not missing
    return False


def _find(path: Path, names: list[str]) -> yaml.Node | None:
    """Return the node of a value in a YAML file."""
    try:
        with path.open(encoding="utf-8") as file:
            node = yaml.compose(file, yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError):
        return None
    for name in names:
        node = next((value for key, value in _pairs(node) if _same(str(key.value), name)), None)
    return node


def _pairs(node: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from node.value


def _same(one: str, other: str) -> bool:
    return one.replace("_", "-") == other.replace("_", "-")


def _short(path: Path) -> str:
    with contextlib.suppress(ValueError, RuntimeError):
        return str(Path("~", path.relative_to(Path.home())))
    return str(path)
