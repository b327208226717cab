"""Operation YAML -> Operation."""

from __future__ import annotations

import glob
import importlib
import importlib.machinery
import inspect
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from daskspace.errors import SpecError, did_you_mean
from daskspace.operations.analysis import AnalysisOperation
from daskspace.operations.base import Operation, Resume
from daskspace.operations.data_sets import DataSet, as_data_sets
from daskspace.operations.function import FunctionOperation
from daskspace.operations.generic import GenericOperation
from daskspace.operations.merge import MergeOperation
from daskspace.operations.parameters import ParameterSpace
from daskspace.operations.yaml_file import YamlFile, read_yaml
from daskspace.results.directory import results_in

_Kinds = tuple[type, ...]
_COMMON: dict[str, _Kinds] = {
    "type": (str,),
    "name": (str,),
    "backend": (str,),
    "input_path": (str, list),
    "parameter_ranges": (dict,),
    "parameter_settings": (list,),
    "parameter_zip": (dict,),
    "constraints": (list,),
    "runs": (int,),
    "hide_parameters": (list,),
    "base_directory": (str,),
    "python_path": (list,),
}
_KINDS: dict[str, dict[str, _Kinds]] = {
    "function": {"function": (str,)},
    "generic": {"script": (str,), "configuration_template": (str,)},
    "merge": {},
    "analysis": {
        "metric": (str,),
        "maximize": (bool,),
        "minimize": (bool,),
        "parameters": (list,),
        "plot": (dict,),
    },
}
_OF_TABLES = {"type", "name", "backend", "input_path", "base_directory", "python_path"}
_COMMON_OF: dict[str, dict[str, _Kinds]] = {
    kind: {key: kinds for key, kinds in _COMMON.items() if key in _OF_TABLES}
    for kind in ("merge", "analysis")
}
_GUESSED = ("function", "generic")
_SYNONYMS = {"concatenate": "merge"}
_OPTIONAL = {"configuration_template", *_KINDS["analysis"]}
_TYPE_NAMES = {
    str: "a text",
    list: "a list",
    dict: "a mapping",
    int: "a whole number",
    bool: "true or false",
}


def load_operation(
    path: str | Path, result_directory: str | Path | None = None, *, resume: Resume = False
) -> Operation:
    """Read an operation from a YAML file; nothing is started, and nothing is written.

    Paths in the file are relative to the file, or to its ``base_directory``. That directory, the
    script's, the working directory, and those in ``python_path`` are importable in the processes.

    Parameters
    ----------
    path : path
        The YAML file; docs/operations.md lists its keys.
    result_directory : path, optional
        By default a new ``<name>-<timestamp>`` in the working directory.
    resume : bool, str or sequence of str
        As for `operation`.

    Returns
    -------
    Operation
        Its ``backend`` is the name that the file asks for, or None.

    Raises
    ------
    SpecError
        With file, line and key, and the likely key for a typo.
    """
    path = Path(path)
    file = read_yaml(path)
    if is_chain(file):
        raise file.error("this is a chain of operations: load it by daskspace.chain", "operations")
    return build_operation(file, path.absolute().parent, path.stem, result_directory, resume)


@dataclass(frozen=True)
class Link:
    """What a chain gives to one of its operations.

    Attributes
    ----------
    root : Path
        The chain's directory.
    previous : Path or None
        The result directory of the operation before; None for the first, which has the chain's
        `input_path`.
    input_path : str or list, optional
        What it reads where its own specification says nothing.
    file, base : YamlFile, Path
        Where that stands, and what it is relative to.
    is_sketch : bool
        Whether there are no results yet, so that only the specification can be looked at.
    """

    root: Path
    previous: Path | None
    input_path: Any
    file: YamlFile
    base: Path
    is_sketch: bool = False

    def fill_in(self, text: str) -> str:
        """Return a path with its placeholders filled in; raise SpecError for an unknown one."""
        places = {"chain": self.root, "previous": self.previous}
        places = {name: place for name, place in places.items() if place is not None}

        def place_of(found: re.Match[str]) -> str:
            name = found[1]
            if name not in places:
                near = did_you_mean(name, places) or f"; known are {', '.join(places)}"
                what = "the first operation has none before it" if name == "previous" else ""
                raise SpecError(f"unknown placeholder {found[0]!r}{f': {what}' if what else near}")
            return glob.escape(str(places[name]))

        return _PLACEHOLDER.sub(place_of, text)


_SKETCHED = "the result of the operation before"
_PLACEHOLDER = re.compile(r"\$\{([^{}]*)\}")


def is_chain(file: YamlFile) -> bool:
    """Return whether a file describes a chain of operations."""
    return file.values.get("type") == "operation_chain" or "operations" in file.values


def has_placeholder(given: Any) -> bool:
    """Return whether an `input_path` has a placeholder that a chain fills in."""
    return any(_PLACEHOLDER.search(str(p)) for p in (given if isinstance(given, list) else [given]))


def build_operation(
    file: YamlFile,
    directory: Path,
    name: str,
    result_directory: str | Path | None = None,
    resume: Resume = False,
    link: Link | None = None,
) -> Operation:
    """Return the operation that a mapping in a file describes; see `load_operation`.

    Parameters
    ----------
    file : YamlFile
        The mapping.
    directory : path
        What paths are relative to, unless it has a ``base_directory``.
    name : str
        Its name, unless it says one.
    result_directory, resume
        As for `load_operation`.
    link : Link, optional
        What the chain that it belongs to gives to it.
    """
    spec = file.values
    kind = _checked_kind(file)
    _check_keys(file, {**_COMMON_OF.get(kind, _COMMON), **_KINDS[kind]})
    base = directory / os.path.expanduser(spec.get("base_directory", ""))
    python_path = [
        str(base / os.path.expanduser(str(entry))) for entry in spec.get("python_path", ())
    ]
    python_path.append(str(base))
    common: dict[str, Any] = {
        "result_directory": result_directory,
        "name": spec.get("name", name),
        "resume": resume,
    }
    make = _build_from_tables if kind in _COMMON_OF else _build_from_parameters
    operation, label_base = make(file, kind, base, python_path, common, link)
    operation.python_path = tuple(dict.fromkeys(python_path))
    operation.base_directory = str(label_base)
    operation.backend = spec.get("backend")
    return operation


def _build_from_parameters(
    file: YamlFile,
    kind: str,
    base: Path,
    python_path: list[str],
    common: dict[str, Any],
    link: Link | None,
) -> tuple[Operation, Path]:
    spec = file.values
    space = _space(file)
    data_sets, label_base = _data_sets(file, base, link, kind)
    common["runs"] = spec.get("runs", 1)
    common["hidden"] = [str(name) for name in spec.get("hide_parameters", ())]
    _check_hidden(file, common["hidden"], space.names)
    if kind == "function":
        function = _function(file, python_path)
        is_offered = link is not None and "input_path" not in spec
        if is_offered and not _takes_data(function, space.names):
            data_sets, label_base = as_data_sets(None), base
        data = {name: path for name, path in data_sets if name is not None} or None
        return _located(file, lambda: FunctionOperation(function, space, data, **common)), (
            label_base
        )
    script = base / os.path.expanduser(spec["script"])
    if not script.is_file():
        raise file.error(f"'script': there is no file {script}", "script")
    python_path.insert(0, str(script.parent))
    template = spec.get("configuration_template", "")
    generic = _located(file, lambda: GenericOperation(script, template, space, data_sets, **common))
    return generic, label_base


def _build_from_tables(
    file: YamlFile,
    kind: str,
    base: Path,
    python_path: list[str],
    common: dict[str, Any],
    link: Link | None,
) -> tuple[Operation, Path]:
    if link is None and "input_path" not in file.values:
        raise file.error("'input_path' is missing: give a result directory, or a CSV file")
    data_sets, label_base = _data_sets(file, base, link, kind)
    options = {key: value for key, value in file.values.items() if key in _KINDS[kind]}
    made = {"merge": MergeOperation, "analysis": AnalysisOperation}[kind]
    is_sketch = data_sets[0][0] == _SKETCHED
    return _located(file, lambda: made(data_sets, options, **common, is_sketch=is_sketch)), (
        label_base
    )


def _takes_data(function: Callable[..., Any], names: Collection[str]) -> bool:
    """Return whether a function wants what the operation before has left."""
    if "data" in names:
        return False
    try:
        return "data" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def is_of_tables(file: YamlFile) -> bool:
    """Return whether an operation works on the tables of others, and so has no runs."""
    kind = file.values.get("type")
    return isinstance(kind, str) and _SYNONYMS.get(kind, kind) in _COMMON_OF


def check_made_by(file: YamlFile) -> None:
    """Raise SpecError for what only a program can make again."""
    if file.values.get("type") == "stream" or "made_by" in file.values:
        what = "chain" if is_chain(file) else "operation"
        raise file.error(f"this {what} was made by a program: run that program again", "made_by")


def _checked_kind(file: YamlFile) -> str:
    check_made_by(file)
    kind = file.values.get("type")
    kind = _SYNONYMS.get(kind, kind) if isinstance(kind, str) else kind
    if kind is None:
        guess = next((k for k in _GUESSED if _KINDS[k].keys() & file.values.keys()), None)
        if guess is None:
            _check_known(file, {key for keys in (_COMMON, *_KINDS.values()) for key in keys})
            raise file.error(f"'type' is missing: give one of {', '.join(_KINDS)}")
        return guess
    if not isinstance(kind, str) or kind not in _KINDS:
        near = did_you_mean(str(kind), _KINDS)
        known = ", ".join(_KINDS)
        raise file.error(f"unknown type {kind!r}; known are {known}{near}", "type")
    return kind


def _check_known(file: YamlFile, known: Collection[str]) -> None:
    for key in file.values:
        if key not in known:
            near = did_you_mean(str(key), known)
            raise file.error(f"unknown key {key!r}{near or '; known are ' + ', '.join(known)}", key)


def check_types(file: YamlFile, known: dict[str, _Kinds]) -> None:
    """Raise SpecError for a key that is unknown, or whose value is of another kind."""
    _check_known(file, known)
    for key, value in file.values.items():
        if not isinstance(value, known[key]) or (
            isinstance(value, bool) and bool not in known[key]
        ):
            wanted = " or ".join(_TYPE_NAMES[kind] for kind in known[key])
            raise file.error(f"{key!r} must be {wanted}, not {_shown(value)}", key)
    if file.values.get("runs", 1) < 1:
        raise file.error(f"'runs' must be at least 1, not {file.values['runs']}", "runs")


def _check_keys(file: YamlFile, known: dict[str, _Kinds]) -> None:
    check_types(file, known)
    for key in set(known) - set(_COMMON) - _OPTIONAL:
        if key not in file.values:
            raise file.error(f"{key!r} is missing")


def _space(file: YamlFile) -> ParameterSpace:
    spec = file.values
    for number, entry in enumerate(spec.get("parameter_settings", ())):
        if not isinstance(entry, dict):
            raise file.error(
                f"'parameter_settings' must be a list of mappings, not {_shown(entry)}",
                "parameter_settings",
                number,
            )
    for number, entry in enumerate(spec.get("constraints", ())):
        if not isinstance(entry, str):
            raise file.error(
                f"'constraints' must be a list of texts, not {_shown(entry)}", "constraints", number
            )
    for key in ("parameter_ranges", "parameter_zip", "parameter_settings", "constraints"):
        if key in spec and not spec[key] and key != "constraints":
            raise file.error(f"{key!r} is empty: give values, or leave the key out", key)
    # Each part alone first, so that an error is told with the line of the key it belongs to.
    for name, values in spec.get("parameter_ranges", {}).items():
        _located(file, partial(ParameterSpace, {name: values}), "parameter_ranges", name)
    settings, zipped = spec.get("parameter_settings"), spec.get("parameter_zip")
    if settings:
        _located(file, lambda: ParameterSpace(settings=settings), "parameter_settings")
    if zipped:
        _located(file, lambda: ParameterSpace(zip=zipped), "parameter_zip")
    ranges = spec.get("parameter_ranges")
    _located(file, lambda: ParameterSpace(ranges, settings, zipped))
    for number, text in enumerate(spec.get("constraints", ())):
        _located(
            file,
            partial(ParameterSpace, ranges, settings, zipped, [text]),
            "constraints",
            number,
        )
    space = ParameterSpace(ranges, settings, zipped, spec.get("constraints"))
    _located(file, space.check_satisfiable, "constraints")
    return space


def _data_sets(
    file: YamlFile, base: Path, link: Link | None, kind: str
) -> tuple[Sequence[DataSet], Path]:
    """Return the data sets, and what their names are relative to; their paths are absolute."""
    key: tuple[str | int, ...] = ("input_path",)
    if key[0] in file.values:
        given = file.values[key[0]]
    elif link is not None and link.input_path is not None:
        given, file, base = link.input_path, link.file, link.base
    else:
        return as_data_sets(None), base
    label_base, expand = base, kind not in _COMMON_OF
    patterns: list[tuple[str, bool]] = []
    for number, pattern in enumerate(given if isinstance(given, list) else [given]):
        place = (*key, number) if isinstance(given, list) else key
        text = os.path.expanduser(str(pattern))
        is_filled = _PLACEHOLDER.search(text) is not None
        if is_filled:
            if link is None:
                raise file.error(
                    f"'input_path': only in a chain can there be a placeholder, as in {text!r}",
                    *place,
                )
            text, label_base = _located(file, partial(link.fill_in, text), *place), link.root
        patterns.append((text, is_filled))
    if link is not None and link.is_sketch and has_placeholder(given):
        return [(_SKETCHED, str(link.root))], label_base
    found: list[DataSet] = []
    for number, (own, is_filled) in enumerate(patterns):
        place = (*key, number) if isinstance(given, list) else key
        is_absolute = os.path.isabs(own) and not is_filled
        full = own if os.path.isabs(own) else os.path.join(glob.escape(str(base)), own)
        full = str(base / own) if (base / own).exists() else full
        for path, _ in _located(file, partial(as_data_sets, full), *place):
            assert path is not None  # noqa: S101 - for mypy
            inputs = results_in(path) if expand else [path]
            if not inputs:
                raise file.error(f"'input_path': no process in {path} is done", *place)
            for each in inputs:
                label = each if is_absolute else os.path.relpath(each, label_base)
                found.append((label, each))
    if not found:
        raise file.error("'input_path' is empty: give a path", "input_path")
    return list(dict(found).items()), label_base


def _function(file: YamlFile, python_path: Sequence[str]) -> Callable[..., Any]:
    text = file.values["function"]
    module_name, _, name = text.partition(":")
    if not (module_name and name):
        raise file.error(f"'function' must be 'module:name', not {text!r}", "function")
    if module_name == "__main__":
        raise file.error(
            f"the function {name!r} is part of a program: run that program again", "function"
        )
    module = _imported(file, module_name, python_path)
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            near = did_you_mean(part, [n for n in dir(function) if not n.startswith("_")])
            raise file.error(f"module {module_name!r} has no function {part!r}{near}", "function")
        function = getattr(function, part)
    if not callable(function):
        raise file.error(f"{text!r} is not a function but {_shown(function)}", "function")
    return function


def _imported(file: YamlFile, name: str, python_path: Sequence[str]) -> Any:
    before = list(sys.path)
    sys.path[:0] = [*python_path, os.getcwd()]
    try:
        importlib.invalidate_caches()
        spec = importlib.machinery.PathFinder.find_spec(name.partition(".")[0], sys.path)
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise file.error(f"module {name!r} cannot be imported: {error}", "function") from error
        where = ", ".join(dict.fromkeys([*python_path, os.getcwd()]))
        raise file.error(f"{error}; looked in {where} and the environment", "function") from None
    except (Exception, SystemExit) as error:
        raise file.error(
            f"module {name!r} cannot be imported: {type(error).__name__}: {error}", "function"
        ) from error
    finally:
        sys.path[:] = before
    _check_same(file, name, spec)
    return module


def _check_same(file: YamlFile, name: str, spec: Any) -> None:
    """Refuse a module that was imported before from elsewhere under the same name."""
    top = sys.modules[name.partition(".")[0]]
    loaded = getattr(top, "__file__", None)
    origin = spec.origin if spec is not None and spec.has_location else None
    if origin and loaded and os.path.exists(loaded) and not os.path.samefile(origin, loaded):
        raise file.error(
            f"module {name!r} of {origin} cannot be imported: {loaded} is already imported"
            " under this name; rename one of the two",
            "function",
        )


def _check_hidden(file: YamlFile, hidden: Sequence[str], names: Sequence[str]) -> None:
    for number, name in enumerate(hidden):
        if name not in names:
            near = did_you_mean(name, names)
            raise file.error(f"there is no parameter {name!r}{near}", "hide_parameters", number)


def _located(file: YamlFile, make: Callable[[], Any], *place: str | int) -> Any:
    """Return what `make` gives; a SpecError gets the file and the line of `place`."""
    try:
        return make()
    except SpecError as error:
        place = place or _place_of(file, error.parameter)
        shown = f"{place[0]!r}: " if place else ""
        raise file.error(f"{shown}{error}", *place) from None


def _place_of(file: YamlFile, parameter: str | None) -> tuple[str | int, ...]:
    for key in ("parameter_ranges", "parameter_zip"):
        if parameter is not None and parameter in file.values.get(key, {}):
            return key, parameter
    for number, setting in enumerate(file.values.get("parameter_settings", ())):
        if parameter in setting:
            return "parameter_settings", number, str(parameter)
    return ()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
