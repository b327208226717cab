"""Dask configuration files of any kind, read as Dask reads them, but for times."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import dask.config
import yaml

from daskspace.errors import ConfigError, did_you_mean

SHIPPED = Path(__file__).parents[1] / "cluster_configs"
_SUFFIXES = (".yaml", ".yml", ".json")
_PREFERRED = ("dask-config.yaml", "dask-cluster.yaml")
_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0b[0-1_]+|0[0-7_]+|0x[0-9a-fA-F_]+|(?:0|[1-9][0-9_]*))$",
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?"
        r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
}


@dataclass(frozen=True)
class Contents:
    """What was given as configuration.

    Parameters
    ----------
    values : mapping
        The keys, deep-merged.
    files : tuple of Path
        The files that they are from; a later one counts more.
    place : str
        Where that is, for people.
    """

    values: Mapping[str, Any]
    files: tuple[Path, ...] = ()
    place: str = ""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader that leaves times such as 12:00:00 as texts."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        first: [
            (tag, re.compile(_NUMBERS[tag]) if tag in _NUMBERS else pattern)
            for tag, pattern in resolvers
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def shipped_configs() -> dict[str, Path]:
    """Return the configurations that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def read_configs(given: Any) -> Contents:
    """Return what is configured by a path, the name of a shipped configuration, or a mapping.

    A list of them is deep-merged from left to right.

    Raises
    ------
    ConfigError
        A file is not there, cannot be read, or holds something else.
    """
    parts = given if isinstance(given, list | tuple) else [given]
    values: dict[str, Any] = {}
    files: list[Path] = []
    for part in parts:
        if isinstance(part, Mapping):
            values = _merged(values, part, "config")
            continue
        for path in _paths(part):
            values = _merged(values, read_config(path), str(path))
            files.append(path)
    place = ", ".join(short(path) for path in files) or "the mapping given"
    return Contents(values, tuple(files), place)


def read_config(path: Path) -> dict[str, Any]:
    """Return what a file holds; the documents of one file are deep-merged.

    Raises
    ------
    ConfigError
        It cannot be read, or holds no mapping.
    """
    where = short(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} cannot be read: it is not a text in UTF-8") from error
    try:
        if path.suffix == ".json":
            documents = [json.loads(text)] if text.strip() else []
        else:
            documents = list(yaml.load_all(text, _Loader))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}:{error.lineno}: {error.msg}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        reason = ", ".join(part for part in (error.problem, error.context) if part)
        raise ConfigError(f"{where}{line}: {reason}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ConfigError(f"{where} is nested too deeply") from None
    values: dict[str, Any] = {}
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, Mapping):
            kind = {"list": "a list", "str": "a text"}.get(type(document).__name__, "a value")
            raise ConfigError(f"{where} must hold a mapping of keys to values, not {kind}")
        values = _merged(values, document, where)
    return values


def is_path(text: str) -> bool:
    """Whether a text can only be meant as a path, or is the path of something that exists."""
    if "/" in text or text.endswith(_SUFFIXES) or text.startswith("~"):
        return True
    return Path(text).exists()


def short(path: Path) -> str:
    """Return a path for people."""
    if path.parent == SHIPPED:
        return str(path.relative_to(SHIPPED.parents[1]))
    with contextlib.suppress(ValueError, RuntimeError):
        return str(Path("~", path.relative_to(Path.home())))
    return str(path)


def _paths(given: Any) -> Sequence[Path]:
    try:
        path = Path(given).expanduser()
        exists, is_directory = path.exists(), path.is_dir()
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"config must be a path, the name of a shipped configuration, a list of them, or a"
            f" mapping, not {given!r}"
        ) from error
    if is_directory:
        for name in _PREFERRED:
            if (path / name).exists():
                return [path / name]
        found = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES and p.is_file())
        if not found:
            raise ConfigError(f"{short(path)} is a directory without {', '.join(_SUFFIXES)} files")
        return found
    shipped = shipped_configs()
    if not exists:
        if str(given) in shipped:
            return [shipped[str(given)]]
        near = did_you_mean(str(given), shipped) if not is_path(str(given)) else ""
        raise ConfigError(
            f"there is no file {given}, and none of the configurations that are shipped has this"
            f" name: {', '.join(shipped)}{near}"
        )
    return [path]


def _merged(values: Mapping[str, Any], more: Mapping[Any, Any], where: str) -> dict[str, Any]:
    for key in more:
        if not isinstance(key, str):
            raise ConfigError(f"{where}: a key must be a text, not {key!r}")
    try:
        return dict(dask.config.merge(values, more))
    except (AttributeError, TypeError, RecursionError) as error:
        raise ConfigError(f"{where} holds keys that cannot be merged: {error}") from error
