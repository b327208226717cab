"""Operation YAML -> Operation."""

from __future__ import annotations

import glob
import importlib
import importlib.machinery
import os
import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from daskspace.errors import SpecError, did_you_mean
from daskspace.operations.base import Operation, Resume
from daskspace.operations.data_sets import DataSet, as_data_sets
from daskspace.operations.function import FunctionOperation
from daskspace.operations.generic import GenericOperation
from daskspace.operations.parameters import ParameterSpace
from daskspace.operations.yaml_file import YamlFile, read_yaml

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
}
_TYPE_NAMES = {str: "a text", list: "a list", dict: "a mapping", int: "a whole number"}


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
    file = read_yaml(Path(path))
    spec = file.values
    kind = _checked_kind(file)
    _check_keys(file, {**_COMMON, **_KINDS[kind]})
    base = Path(path).absolute().parent / os.path.expanduser(spec.get("base_directory", ""))
    python_path = [
        str(base / os.path.expanduser(str(entry))) for entry in spec.get("python_path", ())
    ]
    python_path.append(str(base))
    space = _space(file)
    data_sets = _data_sets(file, base)
    common: dict[str, Any] = {
        "runs": spec.get("runs", 1),
        "result_directory": result_directory,
        "name": spec.get("name", Path(path).stem),
        "hidden": [str(name) for name in spec.get("hide_parameters", ())],
        "resume": resume,
    }
    _check_hidden(file, common["hidden"], space.names)
    operation: FunctionOperation | GenericOperation
    if kind == "function":
        function = _function(file, python_path)
        data = {name: path for name, path in data_sets if name is not None} or None
        operation = _located(file, lambda: FunctionOperation(function, space, data, **common))
    else:
        script = base / os.path.expanduser(spec["script"])
        if not script.is_file():
            raise file.error(f"'script': there is no file {script}", "script")
        python_path.insert(0, str(script.parent))
        template = spec.get("configuration_template", "")
        operation = _located(
            file, lambda: GenericOperation(script, template, space, data_sets, **common)
        )
    operation.python_path = tuple(dict.fromkeys(python_path))
    operation.base_directory = str(base)
    operation.backend = spec.get("backend")
    return operation


def _checked_kind(file: YamlFile) -> str:
    kind = file.values.get("type")
    if kind == "stream" or "made_by" in file.values:
        raise file.error("this operation was made by a program: run that program again", "made_by")
    if kind is None:
        guess = next((k for k, keys in _KINDS.items() if keys.keys() & file.values.keys()), None)
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


def _check_keys(file: YamlFile, known: dict[str, _Kinds]) -> None:
    _check_known(file, known)
    for key, value in file.values.items():
        if not isinstance(value, known[key]) or isinstance(value, bool):
            wanted = " or ".join(_TYPE_NAMES[kind] for kind in known[key])
            raise file.error(f"{key!r} must be {wanted}, not {_shown(value)}", key)
    for key in set(known) - set(_COMMON) - {"configuration_template"}:
        if key not in file.values:
            raise file.error(f"{key!r} is missing")
    if file.values.get("runs", 1) < 1:
        raise file.error(f"'runs' must be at least 1, not {file.values['runs']}", "runs")


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


def _data_sets(file: YamlFile, base: Path) -> Sequence[DataSet]:
    """Return the data sets: named as the file names them, with absolute paths."""
    if "input_path" not in file.values:
        return as_data_sets(None)
    given = file.values["input_path"]
    found: list[DataSet] = []
    for number, pattern in enumerate([given] if isinstance(given, str) else given):
        place = ("input_path",) if isinstance(given, str) else ("input_path", number)
        own = os.path.expanduser(str(pattern))
        is_absolute = os.path.isabs(own)
        full = own if is_absolute else os.path.join(glob.escape(str(base)), own)
        full = str(base / own) if (base / own).exists() else full
        paths = _located(file, partial(as_data_sets, full), *place)
        for path, _ in paths:
            assert path is not None  # noqa: S101 - for mypy
            label = path if is_absolute else os.path.relpath(path, base)
            found.append((label, path))
    if not found:
        raise file.error("'input_path' is empty: give a path", "input_path")
    return list(dict(found).items())


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
