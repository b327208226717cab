"""Operations in sequence: the results of one are the input of the next."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from daskspace.errors import SpecError, did_you_mean
from daskspace.operations.base import Operation, Resume, checked_resume, safe_name
from daskspace.operations.spec import (
    Link,
    build_operation,
    check_made_by,
    check_types,
    has_placeholder,
    is_chain,
    is_of_tables,
)
from daskspace.operations.yaml_file import YamlFile, read_yaml
from daskspace.results.chain_directory import ChainDirectory

ON_FAILURE = ("stop", "continue")
_KEYS: dict[str, tuple[type, ...]] = {
    "type": (str,),
    "name": (str,),
    "input_path": (str, list),
    "runs": (int,),
    "backend": (str,),
    "on_failure": (str,),
    "base_directory": (str,),
    "prepare_operation": (str, dict),
    "operations": (list,),
}
_ENTRY_KEYS: dict[str, tuple[type, ...]] = {"operation_spec": (str,), "overridden_params": (dict,)}


@dataclass(frozen=True)
class Step:
    """One operation of a chain, which is made when its turn comes.

    Attributes
    ----------
    number : int
        From 1; 0 for the operation that prepares.
    name : str or None
        None until it is made, where a program makes it.
    make : callable
        Gets the operation before, or None, and the chain's directory; returns the operation.
    sketch : callable, optional
        Returns the operation as far as it can be made without results.
    """

    number: int
    name: str | None
    make: Callable[[Any, Path], Any]
    sketch: Callable[[], Operation] | None = None


class Chain:
    """Operations in sequence, each with a result directory of its own; made by `chain`.

    Run it by ``backend.run(chain)``.

    Attributes
    ----------
    result_directory : str or None
        None until it has begun, unless given. The operations' are ``<number>-<name>`` in it.
    operations : list of Operation
        Those whose turn has come, in order.
    stopped : str or None
        Why it has not come to its end.
    on_failure : str
        ``stop`` or ``continue``: what follows an operation of which processes are not done.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        result_directory: str | Path | None = None,
        *,
        name: str = "chain",
        backend: str | None = None,
        on_failure: str = "stop",
        resume: Resume = False,
        description: dict[str, Any] | None = None,
    ) -> None:
        if on_failure not in ON_FAILURE:
            near = did_you_mean(str(on_failure), ON_FAILURE)
            raise SpecError(f"on_failure must be stop or continue, not {on_failure!r}{near}")
        self.steps = tuple(steps)
        self.name = safe_name(name)
        self.backend = backend
        self.on_failure = on_failure
        self.result_directory = None if result_directory is None else str(result_directory)
        self.resume = checked_resume(resume)
        self.automatic_directory: str | None = None
        self.operations: list[Any] = []
        self.stopped: str | None = None
        self._description = description

    def describe(self) -> dict[str, Any]:
        """Return what ``chain.yaml`` tells: the chain, with all that it is made from."""
        head = {"type": "operation_chain", "name": self.name, "on_failure": self.on_failure}
        if self._description is None:
            return {**head, "made_by": "a program"}
        return {**head, **self._description}

    def get_output_directory(self) -> str | None:
        """Return the result directory of the last operation that was run."""
        return self.operations[-1].result_directory if self.operations else None

    def __repr__(self) -> str:
        return f"Chain({self.name!r}, {len(self.steps)} operations)"


def chain(
    operations: str | Path | Iterable[Any],
    result_directory: str | Path | None = None,
    *,
    name: str | None = None,
    on_failure: str | None = None,
    resume: Resume = False,
) -> Chain:
    """Describe a chain of operations; nothing is started, and nothing is written.

    Parameters
    ----------
    operations : iterable, or path
        Operations, and functions that return one: each is called when its turn comes, with the
        operation before it, whose ``result_directory``, ``rows()`` and ``table()`` are there; the
        first gets None. Or a YAML file; docs/chains.md lists its keys.
    result_directory : path, optional
        By default a new ``<name>-<timestamp>`` in the working directory. Each operation has its own
        in it, ``<number>-<name>``.
    name : str, optional
        By default ``chain``, or the name of the file.
    on_failure : str, optional
        What follows an operation of which processes are not done: ``stop``, the default, or
        ``continue``.
    resume : bool, str or sequence of str
        Whether `result_directory` may hold an earlier run of this chain, which then goes on. What
        is done is not run again; states such as ``failed`` say what else is.

    Returns
    -------
    Chain
        Run it with ``create_backend(...).run(chain)``.

    Raises
    ------
    SpecError
        It could not be run as described; with file and line where there is a file.
    """
    if isinstance(operations, str | os.PathLike):
        return _load(Path(operations), result_directory, name, on_failure, resume)
    steps = [_given_step(number, item) for number, item in enumerate(operations, 1)]
    if not steps:
        raise SpecError("a chain needs at least one operation")
    return Chain(
        steps,
        result_directory,
        name=name or "chain",
        on_failure=on_failure or "stop",
        resume=resume,
    )


def _given_step(number: int, item: Any) -> Step:
    if isinstance(item, Chain):
        raise SpecError(f"operation {number} of the chain is a chain itself")
    if hasattr(item, "processes") and hasattr(item, "consolidate"):
        _check_place(number, item)
        return Step(number, _name_of(item), lambda before, root: item)
    if callable(item):
        return Step(number, None, lambda before, root: _made(number, item, before))
    kind = type(item).__name__
    raise SpecError(f"operation {number} is neither an operation nor a function, but {kind!r}")


def _made(number: int, make: Callable[[Any], Any], before: Any) -> Any:
    operation = make(before)
    if not hasattr(operation, "processes") or not hasattr(operation, "consolidate"):
        kind = type(operation).__name__
        raise SpecError(f"the function for operation {number} returned no operation, but {kind!r}")
    _check_place(number, operation)
    return operation


def _check_place(number: int, operation: Any) -> None:
    given = getattr(operation, "result_directory", None)
    if given is not None and given != getattr(operation, "automatic_directory", None):
        raise SpecError(
            f"operation {number} has a result directory of its own, {given}: in a chain it gets one"
            " from the chain (operations that must have one, as pySPACE's, run one after the other"
            " by run_operation)"
        )


def _name_of(operation: Any) -> str:
    return safe_name(getattr(operation, "name", "operation"))


def _load(
    path: Path,
    result_directory: str | Path | None,
    name: str | None,
    on_failure: str | None,
    resume: Resume,
) -> Chain:
    file = read_yaml(path)
    check_made_by(file)
    if not is_chain(file):
        raise file.error("this is an operation, no chain: load it by daskspace.load_operation")
    check_types(file, _KEYS)
    values = file.values
    if values.get("type", "operation_chain") != "operation_chain":
        raise file.error(f"a chain is of type 'operation_chain', not {values['type']!r}", "type")
    if not values.get("operations"):
        raise file.error("'operations' is missing, or empty: list what is to be run", "operations")
    if values.get("on_failure", "stop") not in ON_FAILURE:
        near = did_you_mean(values["on_failure"], ON_FAILURE)
        raise file.error(f"'on_failure' must be stop or continue{near}", "on_failure")
    base = path.absolute().parent / os.path.expanduser(values.get("base_directory", ""))
    places: list[tuple[int, tuple[str | int, ...]]] = [
        (number, ("operations", number - 1)) for number in range(1, len(values["operations"]) + 1)
    ]
    if "prepare_operation" in values:
        places.insert(0, (0, ("prepare_operation",)))
    described, steps = [], []
    for position, (number, keys) in enumerate(places):
        is_first = position == 0
        part = _Part.read(file, base, keys, is_first)
        steps.append(part.step(number))
        described.append(part.describe())
    head = {key: values[key] for key in ("input_path", "backend") if key in values}
    prepare = {"prepare_operation": described.pop(0)} if places[0][0] == 0 else {}
    chosen = on_failure or values.get("on_failure", "stop")
    made = Chain(
        steps,
        result_directory,
        name=name or values.get("name", path.stem),
        backend=values.get("backend"),
        on_failure=chosen,
        resume=resume,
        description={
            **head,
            "base_directory": str(base),
            **prepare,
            "operations": described,
        },
    )
    _check(made)
    return made


def _check(made: Chain) -> None:
    """Make all operations once, as far as that is possible without results."""
    ended: set[int] = set()
    if made.resume and made.result_directory is not None:
        directory = ChainDirectory(made.result_directory)
        if directory.holds_chain:
            entries = directory.read().operations
            ended = {entry["number"] for entry in entries if entry["state"] == "ended"}
    for step in made.steps:
        if step.sketch is not None and step.number not in ended:
            step.sketch()


@dataclass(frozen=True)
class _Part:
    """What a chain's file tells of one of its operations."""

    file: YamlFile
    directory: Path
    name: str
    chain: YamlFile
    chain_base: Path
    is_first: bool

    @classmethod
    def read(
        cls, chain: YamlFile, base: Path, keys: tuple[str | int, ...], is_first: bool
    ) -> _Part:
        entry: Any = chain.values
        for key in keys:
            entry = entry[key]
        top = None
        if isinstance(entry, dict) and "operation_spec" in entry:
            check_types(chain.part(*keys), _ENTRY_KEYS)
            if "overridden_params" in entry:
                top = chain.part(*keys, "overridden_params")
            keys, entry = (*keys, "operation_spec"), entry["operation_spec"]
        if isinstance(entry, dict):
            if "overridden_params" in entry:
                raise chain.error(
                    "'overridden_params' goes with 'operation_spec'", *keys, "overridden_params"
                )
            own = chain.part(*keys)
            directory, name = base, _name_for(entry)
            file = own if is_of_tables(own) else _runs_of(chain).overlaid(own)
            file = replace(file, _begin=chain.line(*keys))
        elif isinstance(entry, str):
            path = _found(chain, base, entry, keys)
            own, directory, name = read_yaml(path), path.absolute().parent, path.stem
            file = own if is_of_tables(own) else own.overlaid(_runs_of(chain))
            is_given = not is_first or "input_path" in chain.values
            if is_given and not has_placeholder(own.values.get("input_path", "")):
                file = file.without("input_path")
            if top is not None:
                file = file.overlaid(top)
        else:
            raise chain.error(
                f"an operation is a file, or a mapping, not {entry!r}: see docs/chains.md", *keys
            )
        if is_chain(own):
            raise chain.error("an operation of a chain cannot be a chain itself", *keys)
        return cls(file, directory, name, chain, base, is_first)

    def step(self, number: int) -> Step:
        """Return the step that makes it."""

        def make(before: Any, root: Path) -> Operation:
            return self._build(root, None if before is None else Path(before.result_directory))

        name = safe_name(self.file.values.get("name", self.name))
        return Step(number, name, make, self._sketch)

    def describe(self) -> dict[str, Any]:
        """Return the whole specification."""
        base = self.directory / os.path.expanduser(self.file.values.get("base_directory", ""))
        return {"name": self.name, **self.file.values, "base_directory": str(base)}

    def _sketch(self) -> Operation:
        previous = None if self.is_first else self.chain_base
        return self._build(self.chain_base, previous, is_sketch=True)

    def _build(self, root: Path, previous: Path | None, is_sketch: bool = False) -> Operation:
        given = self.chain.values.get("input_path") if self.is_first else "${previous}"
        base = self.chain_base if self.is_first else root
        link = Link(root, previous, given, self.chain, base, is_sketch)
        return build_operation(self.file, self.directory, self.name, link=link)


def _runs_of(chain: YamlFile) -> YamlFile:
    return chain.without(*(key for key in chain.values if key != "runs"))


def _found(chain: YamlFile, base: Path, text: str, keys: tuple[str | int, ...]) -> Path:
    """Return the file of an operation, which may be named without its ending."""
    path = base / os.path.expanduser(text)
    for candidate in (path, path.with_name(f"{path.name}.yaml")):
        if candidate.is_file():
            return candidate
    there = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    raise chain.error(f"there is no file {path}{did_you_mean(path.name, there)}", *keys)


def _name_for(spec: dict[Any, Any]) -> str:
    """Return the name of an operation that has no file and says none."""
    if isinstance(spec.get("function"), str):
        return str(spec["function"].rpartition(":")[2])
    if isinstance(spec.get("script"), str):
        return Path(spec["script"]).stem
    return str(spec.get("type", "operation"))
