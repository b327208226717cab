"""An operation from a script with `process` and `consolidate`, as pySPACE had it."""

from __future__ import annotations

import importlib.util
import math
import re
import symtable
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from daskspace.errors import SpecError, did_you_mean
from daskspace.execution import plain
from daskspace.execution.attempt import current_attempt
from daskspace.operations.base import Resume
from daskspace.operations.data_sets import DataSet
from daskspace.operations.parameters import ParameterSpace
from daskspace.operations.parametric import ParameterOperation, ParameterProcess
from daskspace.operations.yaml_file import parse_yaml


@dataclass(frozen=True)
class Script:
    """What all processes of a generic operation have in common."""

    path: str
    template: str
    data_sets: Sequence[DataSet]
    hidden: frozenset[str] = frozenset()


class GenericProcess(ParameterProcess):
    """One call of the script's ``process``.

    It gets ``process_id``, the position of the process; ``result_directory``; ``config``, the
    configuration template with this process's parameters filled in and read as YAML; and
    ``parameter_setting``, the parameters themselves.
    """

    def __call__(self) -> Any:
        """Call the script and return what it returns."""
        script = self._recipe.value
        attempt = current_attempt()
        data = script.data_sets[self._data_set][1]
        values = {**self.parameters, "__RUN__": self.run, "__INPUT_DATASET__": data}
        config = parse_yaml(fill_in(script.template, values))
        process = load_script(script.path).process
        return process(attempt.process, attempt.results, config, self.own_parameters())


class GenericOperation(ParameterOperation):
    """An operation whose processes and consolidate step are functions of a script.

    As in the original, the processes write into the result directory itself.

    Parameters
    ----------
    script : path
        A Python file that defines ``process`` and, if there is anything to merge,
        ``consolidate(result_directory, config_template)``.
    template : str
        YAML with the placeholders ``__NAME__`` or ``${__NAME__}``.
    space : ParameterSpace
        The parameters ``NAME`` or ``__NAME__``.
    """

    kind = "generic"
    process_class = GenericProcess

    def __init__(
        self,
        script: Path,
        template: str,
        space: ParameterSpace,
        data_sets: Sequence[DataSet],
        runs: int = 1,
        result_directory: str | Path | None = None,
        name: str | None = None,
        hidden: Sequence[str] = (),
        resume: Resume = False,
    ) -> None:
        _check_script(script)
        _check_template(template, space.names)
        recipe = Script(str(script), template, data_sets, frozenset(hidden))
        self.script = recipe
        super().__init__(recipe, space, runs, name or script.stem, result_directory, resume)

    def consolidate(self) -> None:
        """Call the script's ``consolidate``, if it has one."""
        consolidate = getattr(load_script(self.script.path), "consolidate", None)
        if consolidate is not None:
            consolidate(self.result_directory, parse_yaml(_without_braces(self.script.template)))

    def fingerprints(self) -> dict[str, str]:
        """Return marks of the script and the data sets, which differ when they have changed."""
        mark = plain.digest(Path(self.script.path).read_text(encoding="utf-8")).hex()[:16]
        return {f"script {self.script.path}": mark, **super().fingerprints()}

    def describe(self) -> dict[str, Any]:
        """Return the operation as a specification."""
        described = {"script": self.script.path, "configuration_template": self.script.template}
        return {**super().describe(), **described}


_BRACED = re.compile(r"\$\{([^{}]+)\}")


def fill_in(template: str, values: Mapping[str, Any]) -> str:
    """Return a template with its placeholders replaced by values, as text.

    A placeholder ``${__NAME__}``, ``${NAME}`` or ``__NAME__`` stands for the parameter ``NAME`` or
    ``__NAME__``; other text stays as it is.

    Raises
    ------
    SpecError
        A placeholder ``${...}`` stands for no parameter.
    """
    stands_for = {spelling: name for name in values for spelling in _spellings(name)}
    for braced in _BRACED.finditer(template):
        if braced[0] not in stands_for:
            near = did_you_mean(braced[0], stands_for)
            raise SpecError(f"configuration_template: {braced[0]} stands for no parameter{near}")
    longest_first = sorted(stands_for, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, longest_first)))
    return pattern.sub(lambda match: _as_yaml(values[stands_for[match[0]]]), template)


def _spellings(name: str) -> Iterator[str]:
    bare = name.removeprefix("__").removesuffix("__") if name.startswith("__") else name
    yield from (f"${{__{bare}__}}", f"${{{bare}}}", f"__{bare}__")


def _as_yaml(value: Any) -> str:
    value = plain.plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return value if isinstance(value, str) else plain.dumps(value)


def _without_braces(template: str) -> str:
    """Return a template that is YAML before it is filled in, also within ``[...]``."""
    return _BRACED.sub(r"\1", template)


def load_script(path: str) -> ModuleType:
    """Return a script as a module, loaded again when its file has changed."""
    stat = Path(path).stat()
    name = f"daskspace_script_{plain.digest([path, stat.st_mtime_ns, stat.st_size]).hex()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise SpecError(f"{path} cannot be loaded as Python: its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _check_script(script: Path) -> None:
    try:
        text = script.read_bytes()
        names = symtable.symtable(text.decode(), str(script), "exec").get_identifiers()
    except SyntaxError as error:
        raise SpecError(f"{script}, line {error.lineno}: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"the script {script} cannot be read: {error}") from None
    if "process" not in names and b"import *" not in text:
        raise SpecError(
            f"{script} has no function"
            " process(process_id, result_directory, config, parameter_setting)"
        )


def _check_template(template: str, names: Sequence[str]) -> None:
    filled = fill_in(template, {**dict.fromkeys(names, 0), "__RUN__": 0, "__INPUT_DATASET__": ""})
    try:
        parse_yaml(filled)
        parse_yaml(_without_braces(template))
    except yaml.YAMLError as error:
        raise SpecError(f"configuration_template is no YAML: {error}") from None
