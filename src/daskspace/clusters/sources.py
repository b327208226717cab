"""Where the settings in Dask's configuration come from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.config
import yaml

from daskspace.clusters.config_files import read_config, short

_NO_KEYS = ("DASK_CONFIG", "DASK_ROOT_CONFIG", "DASK_INTERNAL_INHERIT_CONFIG")
_MOST, _DEEPEST = 20_000, 50


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


@dataclass(frozen=True)
class Entry:
    """A key as a file, an environment variable or an option sets it.

    Parameters
    ----------
    path : tuple of str
        Its name and those of the sections around it, outermost first, as they are spelled.
    value : object
        Its value.
    place : str
        Who has set it: the file and its line, the environment variable, or ``option``.
    text : str
        How a file spells the value, empty where that cannot be told or the value is quoted.
    repeated : str
        Where the same file has set it before, if it has.
    """

    path: tuple[str, ...]
    value: Any
    place: str
    text: str = ""
    repeated: str = ""


def canonical(path: tuple[str, ...] | str) -> tuple[str, ...]:
    """Return a path whose names have hyphens; Dask takes underscores for the same."""
    names = path.split(".") if isinstance(path, str) else path
    return tuple(name.replace("_", "-") for name in names)


def entries_of(path: Path) -> list[Entry]:
    """Return all keys of a YAML or JSON file in their order, those of sections within as well.

    Of several documents, all are read. A key that is there twice is returned twice.

    Raises
    ------
    OSError, ValueError
        The file cannot be read, or is no YAML; the message begins with file and line.
    """
    place = short(path)
    text = path.read_text(encoding="utf-8-sig")
    try:
        loader = yaml.SafeLoader(text)
        try:
            found: list[Entry] = []
            while loader.check_node():
                found += _collect(loader, loader.get_node(), (), place)
            return found
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{place}{_line_of(error)}: {_problem_of(error)}") from error


def entries_in(environment: Mapping[str, str]) -> list[Entry]:
    """Return what environment variables set in Dask's configuration."""
    return [
        Entry(
            tuple(variable[5:].lower().split("__")),
            dask.config.interpret_value(value),
            f"environment variable {variable}",
        )
        for variable, value in sorted(environment.items())
        if variable.startswith("DASK_") and variable not in _NO_KEYS
    ]


def config_files() -> list[Path]:
    """Return the files of Dask's configuration; of two that set a key, the later one counts."""
    return [path for path, _ in dask.config.collect_yaml(dask.config.paths, return_paths=True)]


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


def _collect(
    loader: yaml.SafeLoader, node: yaml.Node | None, path: tuple[str, ...], place: str
) -> list[Entry]:
    """Return what is below a node; what a merge key brings in comes first, for it counts less."""
    if not isinstance(node, yaml.MappingNode):
        return []
    loader.flatten_mapping(node)
    found: list[Entry] = []
    seen: dict[str, str] = {}
    for key, value in node.value:
        name = str(key.value)
        line = key.start_mark.line + 1
        if len(path) >= _DEEPEST:
            raise ValueError(f"{place}:{line}: it is nested too deeply")
        below = _collect(loader, value, (*path, name), place)
        if len(found) + len(below) > _MOST:
            raise ValueError(f"{place}:{line}: there are too many keys")
        try:
            content = loader.construct_document(value)
        except (ValueError, OverflowError) as error:  # a date that there is not
            raise ValueError(f"{place}:{line}: {error}") from error
        is_plain = isinstance(value, yaml.ScalarNode) and value.style is None
        text = str(value.value) if is_plain else ""
        where = f"{place}:{line}"
        found += [Entry((*path, name), content, where, text, seen.get(name, "")), *below]
        if key.start_mark.index >= node.start_mark.index:  # else it is merged in
            seen[name] = where
    return found


def _line_of(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


def _problem_of(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    problem = getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    return " ".join((f"{problem}, {context}" if context else str(problem)).split())


def _same(one: str, other: str) -> bool:
    return one.replace("_", "-") == other.replace("_", "-")
