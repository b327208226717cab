"""What the commands do where they are given a chain of operations."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from daskspace.cli import DONE, FAILED, STOPPED
from daskspace.cli.run import exit_code, tell_choice
from daskspace.cli.show import command, console, counted, print_json, print_rows, shell_path
from daskspace.execution.outcome import GOOD_STATES
from daskspace.execution.status import seconds

if TYPE_CHECKING:
    from daskspace.backends.chains import Turn
    from daskspace.cli.progress import Progress
    from daskspace.operations.base import Operation
    from daskspace.operations.chain import Chain
    from daskspace.results.chain_directory import ChainDirectory
    from daskspace.results.table import Table


def is_chain_directory(directory: Path) -> bool:
    """Return whether there is a chain in a directory."""
    from daskspace.results.chain_directory import ChainDirectory

    return ChainDirectory(directory).holds_chain


def is_chain_file(spec: Path) -> bool:
    """Return whether a YAML file describes a chain."""
    from daskspace.operations.spec import is_chain
    from daskspace.operations.yaml_file import read_yaml

    return is_chain(read_yaml(spec))


def carry_out_chain(
    chain: Chain,
    backend_type: str | None,
    config: list[str] | None,
    options: Mapping[str, Any],
    timeout: float | None,
    as_json: bool,
    quiet: bool,
) -> NoReturn:
    """Run a chain, say what came of it, and exit."""
    from daskspace.backends import create_backend
    from daskspace.backends.chains import run_chain

    began = time.monotonic()
    # What processes print here would spoil the JSON.
    with (
        contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext(),
        create_backend(backend_type or chain.backend, config=config, **options) as backend,
    ):
        if not quiet:
            tell_choice(backend)
        try:
            run_chain(chain, backend, timeout, around=_Shown(quiet))
        except BaseException as error:
            _tell_end(chain, error)
            raise
    tables = [(operation, _table(operation)) for operation in chain.operations]
    _report(chain, tables, time.monotonic() - began, as_json)
    raise SystemExit(_exit_code(chain, tables))


class _Shown:
    """Shows the progress of the operations of a chain, one after the other."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._links_of: set[int] = set()

    @contextlib.contextmanager
    def __call__(self, turn: Turn) -> Iterator[None]:
        from daskspace.cli.progress import Progress

        out, quiet = console(stderr=True), self._quiet
        if not quiet:
            before = ": ended before" if turn.backend is None else ""
            out.print(f"{turn}{before}", style=None if before else "bold")
        if turn.backend is None:
            yield
            return
        backend = id(turn.backend)
        with Progress(turn.backend, quiet, link_told=backend in self._links_of) as progress:
            yield
        self._links_of.add(backend)
        _tell_first_failure(turn, progress)


def _tell_first_failure(turn: Turn, progress: Progress) -> None:
    bad = (o for o in _table(turn.operation).outcomes() if o.state not in GOOD_STATES)
    if (first := next(bad, None)) is not None:
        progress.tell_failure(first)


def _table(operation: Any) -> Table:
    from daskspace.results.directory import opened
    from daskspace.results.table import Table

    return Table(opened(str(operation.result_directory)).journal)


def _exit_code(chain: Chain, tables: Sequence[tuple[Any, Table]]) -> int:
    codes = {exit_code(table) for _, table in tables}
    if STOPPED in codes or (chain.stopped and FAILED not in codes):
        return STOPPED
    return FAILED if FAILED in codes else DONE


def _report(chain: Chain, tables: Sequence[tuple[Any, Table]], took: float, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "name": chain.name,
                "result_directory": chain.result_directory,
                "operations": [
                    {
                        "name": operation.name,
                        "result_directory": operation.result_directory,
                        "processes": len(table),
                        "counts": table.counts,
                        "products": _products(operation),
                    }
                    for operation, table in tables
                ],
                "seconds": round(took, 3),
                "stopped": chain.stopped,
            }
        )
        return
    out, place = console(), shell_path(str(chain.result_directory))
    out.print(f"{len(tables)} of {len(chain.steps)} operations, in {seconds(took)}")
    for operation, table in tables:
        name = Path(str(operation.result_directory)).name
        out.print(f"  {name}: {counted(table.counts)}")
    for operation, _ in tables:
        tell_products(operation)
    out.print(f"results    {place}", soft_wrap=True)
    for operation, of in tables:
        if any(state not in GOOD_STATES for state in of.counts):
            results = shell_path(str(operation.result_directory))
            out.print(f"failures   {command()} failures {results}", soft_wrap=True)
    if tables:
        last = shell_path(str(tables[-1][0].result_directory))
        out.print(f"table      {command()} table {last}", soft_wrap=True)
    if chain.stopped is None:
        return
    out.print(f"stopped    {chain.stopped}", soft_wrap=True)
    again = f"{command()} resume {place}"
    last_table = tables[-1][1] if tables else None
    if last_table is None or (last_table.end or {}).get("aborted"):
        out.print(f"go on with  {again}", soft_wrap=True)
        return
    states = [s for s in ("failed", "crashed", "timeout", "lost") if last_table.counts.get(s)]
    if not states:
        out.print(f"go on with  {again}", soft_wrap=True)
        return
    flags = " ".join(f"--{state}" for state in states)
    out.print(f"run them again  {again} {flags}", soft_wrap=True)
    out.print(f"go on without   {again} --keep-going", soft_wrap=True)


def _products(operation: Any) -> dict[str, str]:
    products = getattr(operation, "products", None)
    told: dict[str, str] = products() if products else {}
    return told


def tell_products(operation: Any) -> None:
    """Print which files an operation has made for people to look at."""
    for name, place in _products(operation).items():
        shown = shell_path(place) if Path(place).exists() else place
        console().print(f"{name:<10} {shown}", soft_wrap=True)


def _tell_end(chain: Chain, error: BaseException) -> None:
    """Say what is kept when a chain ends early."""
    if chain.result_directory is None or not is_chain_directory(Path(chain.result_directory)):
        return
    if not chain.operations:
        return
    word = "interrupted" if isinstance(error, KeyboardInterrupt) else "ended early"
    place = shell_path(chain.result_directory)
    at = f"operation {len(chain.operations)} of {len(chain.steps)}, {chain.operations[-1].name}"
    console(stderr=True).print(
        f"{word} in {at}; results in {place}; go on with  {command()} resume {place}",
        soft_wrap=True,
    )


def chain_facts(directory: Path) -> dict[str, Any]:
    """Return what the directory of a chain tells of it."""
    from daskspace.cli.inspect import facts_of
    from daskspace.execution.lock import holder
    from daskspace.results.chain_directory import ChainDirectory

    chain = ChainDirectory(directory)
    owner = holder(chain.lock)  # asked first: it may end at any moment
    chain.read()
    operations = []
    for entry in chain.operations:
        facts: dict[str, Any] = {"number": entry["number"], "name": entry["name"]}
        place = str(directory / entry["directory"]) if entry["directory"] else None
        facts.update(directory=place, state="waiting", ended=0, total=None, counts={})
        if place is not None and chain.results_of(entry).holds_operation:
            known, _ = facts_of(Path(place))
            facts.update({name: known[name] for name in ("state", "ended", "total", "counts")})
            facts["backend"] = known["backend"]
        operations.append(facts)
    if owner is not None:
        state = "running"
    elif chain.record["stopped"]:
        state = "stopped"
    else:
        ended = all(entry["state"] == "ended" for entry in chain.operations)
        state = "ended" if ended else "interrupted"
    return {
        "name": chain.record["name"],
        "backend": chain.record["backend"],
        "state": state,
        "stopped": chain.record["stopped"],
        "pid": owner and owner.get("pid"),
        "host": owner and owner.get("host"),
        "operations": operations,
    }


def show_chain(directory: Path, as_json: bool) -> dict[str, Any]:
    """Show how far a chain has come, and return what is known of it."""
    facts = chain_facts(directory)
    if as_json:
        print_json(facts)
        return facts
    out = console()
    number = len(facts["operations"])
    out.print(f"{facts['name']} on {facts['backend']}: {facts['state']}, {number} operations")
    rows = [
        {
            "operation": f"{entry['number']} {entry['name'] or ''}",
            "state": entry["state"],
            "ended": _of(entry),
            "processes": counted(entry["counts"]),
            "results": shell_path(entry["directory"]) if entry["directory"] else "",
        }
        for entry in facts["operations"]
    ]
    print_rows(["operation", "state", "ended", "processes", "results"], rows)
    if facts["stopped"]:
        out.print(f"stopped    {facts['stopped']}", soft_wrap=True)
    if facts["state"] in ("stopped", "interrupted"):
        out.print(f"go on with  {command()} resume {shell_path(directory)}", soft_wrap=True)
    return facts


def _of(entry: Mapping[str, Any]) -> str:
    if entry["state"] == "waiting":
        return ""
    total = entry["total"]
    return f"{entry['ended']} of {'?' if total is None else total}"


def code_of(facts: Mapping[str, Any]) -> int:
    """Return the exit code that tells what came of a chain."""
    states = {state for entry in facts["operations"] for state in entry["counts"]}
    if facts["state"] == "interrupted":
        return STOPPED
    if "cancelled" in states:
        return STOPPED
    if states - GOOD_STATES - {"waiting"}:
        return FAILED
    return STOPPED if facts["stopped"] else DONE


def running_in(chain: ChainDirectory) -> Iterator[dict[str, Any]]:
    """Yield the operations of a chain that somebody works on."""
    from daskspace.execution.lock import holder

    for entry in chain.begun():
        if holder(chain.results_of(entry).lock) is not None:
            yield entry


def plan_tables(operation: Operation, as_json: bool) -> None:
    """Show what an operation on tables would read."""
    labels = operation.describe()["input_path"]
    if as_json:
        print_json(
            {
                "name": operation.name,
                "type": operation.kind,
                "processes": operation.number_processes,
                "data_sets": labels,
            }
        )
        return
    out = console()
    out.print(f"{operation.name}: 1 process, type {operation.kind}, on {len(labels)} data sets")
    for label in labels[:10]:
        out.print(f"  {label}", soft_wrap=True)


def plan_chain(spec: Path, as_json: bool) -> None:
    """Show which operations a chain would run."""
    from daskspace.operations.chain import chain

    planned = chain(spec)
    rows = []
    for step in planned.steps:
        assert step.sketch is not None  # noqa: S101 - all that YAML describes have one
        operation = step.sketch()
        labels = operation.describe().get("input_path") or []
        rows.append(
            {
                "operation": f"{step.number} {step.name}",
                "type": operation.kind,
                "processes": operation.number_processes,
                "data": ", ".join(labels[:3]) + (", ..." if len(labels) > 3 else ""),
                "backend": operation.backend,
            }
        )
    if as_json:
        print_json({"name": planned.name, "on_failure": planned.on_failure, "operations": rows})
        return
    out = console()
    out.print(
        f"{planned.name}: {len(rows)} operations; processes are counted for one data set where"
    )
    out.print("the data are the result of the operation before")
    print_rows(["operation", "type", "processes", "data", "backend"], rows)
    out.print(f"run it     {command()} run {shell_path(spec)}", soft_wrap=True)
