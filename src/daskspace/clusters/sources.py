"""Where the settings in Dask's configuration come from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import yaml

from daskspace.clusters.config_files import read_config, short


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


def source_of(key: str, files: Sequence[Path] = ()) -> Source:
    """Return where the value of a key is from that Dask's configuration has now.

    Parameters
    ----------
    key : str
        Its name, with dots between its parts.
    files : sequence of Path
        Files that count more than Dask's own.
    """
    for variable in os.environ:
        if variable.startswith("DASK_") and _same(variable[5:].lower().replace("__", "."), key):
            return Source(f"environment variable {variable}")
    last = Source()
    own = dask.config.collect_yaml(dask.config.paths, return_paths=True)
    for path, config in [*own, *((path, read_config(path)) for path in files)]:
        if _has(config, key):
            node = find_node(path, key.split("."))
            line = f":{node.start_mark.line + 1}" if node is not None else ""
            text = str(node.value) if isinstance(node, yaml.ScalarNode) else ""
            last = Source(f"{short(path)}{line}", text)
    if last.place:
        return last
    if "DASK_INTERNAL_INHERIT_CONFIG" in os.environ:
        inherited = dask.config.deserialize(os.environ["DASK_INTERNAL_INHERIT_CONFIG"])
        if _has(inherited, key):
            return Source("the program that started this one")
    return last


def keys_set(section: str, files: Sequence[Path] = ()) -> list[str]:
    """Return the keys that files and environment variables give a section."""
    config = dask.config.merge(dask.config.collect(), *(read_config(path) for path in files))
    found = dask.config.get(section, None, config=config)
    return [str(key) for key in found] if isinstance(found, dict) else []


def _has(config: dict[str, Any], key: str) -> bool:
    missing = object()
    with contextlib.suppress(TypeError):  # a text where a section should be
        return dask.config.get(key, missing, config=config) is not missing
    return False


def find_node(path: Path, names: Sequence[str]) -> yaml.Node | None:
    """Return the node of a value in a YAML file, in the last document that has it."""
    try:
        with path.open(encoding="utf-8") as file:
            documents = list(yaml.compose_all(file, yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    found = None
    for document in documents:
        node: yaml.Node | None = document
        for name in names:
            node = next((value for key, value in _pairs(node) if _same(str(key.value), name)), None)
        found = node or found
    return found


def _pairs(node: yaml.Node | None) -> Iterator[tuple[yaml.Node, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from node.value


def _same(one: str, other: str) -> bool:
    return one.replace("_", "-") == other.replace("_", "-")
