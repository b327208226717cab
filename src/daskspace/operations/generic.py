"""An operation from a script with `process` and `consolidate`, as pySPACE had it."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from daskspace.errors import SpecError
from daskspace.execution import plain
from daskspace.execution.attempt import current_attempt
from daskspace.operations.function import DataSet, ParameterOperation, ParameterProcess
from daskspace.operations.parameters import ParameterSpace


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
        values = {**self.parameters, "__RUN__": self.run, "__INPUT_DATASET__": self.data}
        config = yaml.safe_load(fill_in(script.template, values))
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
    ) -> None:
        _check_script(script)
        _check_template(template, space.names)
        recipe = Script(str(script), template, data_sets, frozenset(hidden))
        self.script = recipe
        super().__init__(recipe, space, runs, name or script.stem, result_directory)

    def consolidate(self) -> None:
        """Call the script's ``consolidate``, if it has one."""
        consolidate = getattr(load_script(self.script.path), "consolidate", None)
        if consolidate is not None:
            consolidate(self.result_directory, yaml.safe_load(self.script.template))

    def describe(self) -> dict[str, Any]:
        """Return the operation as a specification."""
        described = {"script": self.script.path, "configuration_template": self.script.template}
        return {**super().describe(), **described}


_PLACEHOLDER = re.compile(r"\$\{(\w+)\}|__\w+?__")


def fill_in(template: str, values: Mapping[str, Any]) -> str:
    """Return a template with its placeholders replaced by values, as text.

    A placeholder ``${__NAME__}``, ``${NAME}`` or ``__NAME__`` stands for the parameter ``NAME`` or
    ``__NAME__``; other text stays as it is.

    Raises
    ------
    SpecError
        A placeholder ``${...}`` stands for no parameter.
    """

    def text(match: re.Match[str]) -> str:
        word = match[1] or match[0]
        for name in (word, word.removeprefix("__").removesuffix("__"), f"__{word}__"):
            if name in values:
                value = plain.plain(values[name])
                return value if isinstance(value, str) else plain.dumps(value)
        if match[1]:
            raise SpecError(f"configuration_template: {match[0]} stands for no parameter")
        return match[0]

    return _PLACEHOLDER.sub(text, template)


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
        tree = ast.parse(script.read_bytes(), str(script))
    except SyntaxError as error:
        raise SpecError(f"{script}, line {error.lineno}: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"the script {script} cannot be read: {error}") from None
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    names |= {
        alias.asname or alias.name
        for n in tree.body
        if isinstance(n, ast.ImportFrom)
        for alias in n.names
    }
    if "process" not in names:
        raise SpecError(
            f"{script} has no function"
            " process(process_id, result_directory, config, parameter_setting)"
        )


def _check_template(template: str, names: Sequence[str]) -> None:
    filled = fill_in(template, {**dict.fromkeys(names, 0), "__RUN__": 0, "__INPUT_DATASET__": ""})
    try:
        yaml.safe_load(filled)
        yaml.safe_load(template)
    except yaml.YAMLError as error:
        raise SpecError(f"configuration_template is no YAML: {error}") from None
