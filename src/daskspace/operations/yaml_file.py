"""A YAML mapping that knows the line of every key."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from daskspace.errors import SpecError
from daskspace.results.directory import replace_text

_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class YamlFile:
    """The mapping in a YAML file, and the lines it was read from.

    Attributes
    ----------
    path
        Where the file is, as it was given.
    values
        The mapping, made of plain dicts, lists, texts, numbers, booleans and None.
    """

    path: Path
    values: dict[Any, Any]
    _lines: dict[int, dict[Any, int]] = field(repr=False)
    _begin: int = field(default=1, repr=False)
    _others: dict[tuple[int, Hashable], YamlFile] = field(default_factory=dict, repr=False)
    _kept: tuple[Any, ...] = field(default=(), repr=False)  # while they live, their ids are theirs

    def line(self, *keys: Hashable) -> int:
        """Return the line, from 1, where the value under nested `keys` begins.

        A list is indexed from 0. What is not in the file has the line of the nearest parent.
        """
        return self._place(*keys)[1]

    def error(self, message: str, *keys: Hashable) -> SpecError:
        """Return an error that begins with the file and the line of `keys`."""
        return _error(*self._place(*keys), message)

    def part(self, *keys: Hashable) -> YamlFile:
        """Return the mapping under nested `keys` as if it were all that there is."""
        value: Any = self.values
        for key in keys:
            value = value[key]
        return replace(self, values=value, _begin=self.line(*keys))

    def without(self, *names: Hashable) -> YamlFile:
        """Return the same mapping without some of its keys."""
        left = {key: value for key, value in self.values.items() if key not in names}
        lines = {**self._lines, id(left): self._lines.get(id(self.values), {})}
        others = {
            (id(left), key): other
            for (owner, key), other in self._others.items()
            if owner == id(self.values)
        }
        others = {**self._others, **others}
        return replace(self, values=left, _lines=lines, _others=others, _kept=(self,))

    def overlaid(self, top: YamlFile) -> YamlFile:
        """Return this mapping with that of `top` laid over it; mappings in both are merged.

        Each value keeps the file and the line that it comes from.
        """
        lines, others = {**self._lines}, {**self._others}

        def lay(below: dict[Any, Any], above: dict[Any, Any]) -> dict[Any, Any]:
            merged = {**below}
            lines[id(merged)] = {**self._lines.get(id(below), {})}
            for key in below:
                others[id(merged), key] = self._others.get((id(below), key), self)
            for key, value in above.items():
                lower = below.get(key)
                is_both = isinstance(value, dict) and isinstance(lower, dict)
                merged[key] = lay(below[key], value) if is_both else value
                lines[id(merged)][key] = top._lines.get(id(above), {}).get(key, 1)
                others[id(merged), key] = top
            return merged

        merged = lay(self.values, top.values)
        lines = {**top._lines, **lines}
        return YamlFile(self.path, merged, lines, self._begin, others, (self, top))

    def _place(self, *keys: Hashable) -> tuple[Path, int]:
        path, line = self.path, self._begin
        value: Any = self.values
        for key in keys:
            lines = self._lines.get(id(value), {})
            if key not in lines:
                break
            line = lines[key]
            other = self._others.get((id(value), key))
            path = path if other is None else other.path
            value = value[key]
        return path, line


def read_yaml(path: Path) -> YamlFile:
    """Return the mapping in the YAML file at `path`.

    Plain words are read as in YAML 1.2: `1e-3` is a number, only `true` and `false` are
    booleans, and `12:00:00` and `2024-01-31` are texts.

    Parameters
    ----------
    path
        A file in UTF-8 with one document.

    Raises
    ------
    SpecError
        When the file cannot be read, is no valid YAML, repeats a key or holds no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} cannot be read: it is not a text in UTF-8") from error
    try:
        loader = _Loader(text)
        values = loader.get_single_data()
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = f"the character {chr(error.character)!r} is not allowed"
        raise _error(path, line, character) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.problem, error.context) if part)
        raise _error(path, mark.line + 1 if mark else 1, reason) from error
    except RecursionError:
        raise SpecError(f"{path} is nested too deeply") from None
    if values is None:
        raise SpecError(f"{path} is empty")
    if not isinstance(values, dict):
        raise SpecError(f"{path} must hold a mapping, not {type(values).__name__}")
    return YamlFile(path, values, loader.lines)


def parse_yaml(text: str) -> Any:
    """Return what a YAML text holds, read by the rules of `read_yaml`.

    Raises
    ------
    yaml.YAMLError
        It is no YAML.
    """
    return _Loader(text).get_single_data()


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write a mapping of plain values, all or nothing, so that `read_yaml` reads it again."""
    text = yaml.dump(
        dict(values),
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=None,
        width=100,
    )
    replace_text(path, text)


def _error(path: Path, line: int, message: str) -> SpecError:
    return SpecError(f"{path}, line {line}: {message}")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's plain words, strict keys, and lines."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    yaml_constructors = {
        _TAG + kind: yaml.SafeLoader.yaml_constructors[_TAG + kind]
        for kind in ("null", "bool", "float", "str")
    } | {None: yaml.SafeLoader.yaml_constructors[None]}

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lines: dict[int, dict[Any, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        node = super().compose_node(parent, index)
        if node is not None and node.end_mark is None:
            raise ComposerError(None, None, "an alias inside of its own anchor", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            mark = key_node.start_mark
            if not isinstance(key_node, yaml.ScalarNode):
                raise ComposerError(None, None, "a key must not be a list or a mapping", mark)
            is_merge = key_node.tag == _TAG + "merge"
            key = key_node.value if is_merge else self.construct_object(key_node)
            if key in lines:
                problem = f"the key {key!r} is already in line {lines[key]}"
                raise ComposerError(None, None, problem, mark)
            lines[key] = mark.line + 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (KeyError, ValueError) as error:
            problem = f"{node.value!r} does not fit its type {node.tag.removeprefix(_TAG)!r}"
            raise ConstructorError(None, None, problem, node.start_mark) from error


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes also the texts that YAML 1.2 takes for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


def _construct_list(loader: _Loader, node: yaml.SequenceNode) -> Iterator[list[Any]]:
    values: list[Any] = []
    yield values
    values.extend(loader.construct_sequence(node))
    loader.lines[id(values)] = {i: item.start_mark.line + 1 for i, item in enumerate(node.value)}


def _construct_dict(loader: _Loader, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
    values: dict[Any, Any] = {}
    yield values
    values.update(loader.construct_mapping(node))
    loader.lines[id(values)] = {
        loader.construct_object(key): key.start_mark.line + 1 for key, _ in node.value
    }


_Loader.add_constructor(_TAG + "int", _construct_int)
_Loader.add_constructor(_TAG + "seq", _construct_list)
_Loader.add_constructor(_TAG + "map", _construct_dict)

_PLAIN_WORDS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}
for _kind, (_pattern, _first) in _PLAIN_WORDS.items():
    _starts = [*_first, ""] if _kind == "null" else [*_first]
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern})$"), _starts)
