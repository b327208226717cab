"""``daskspace plan``."""

from __future__ import annotations

import itertools
from pathlib import Path

import click

from daskspace.cli.show import command, console, print_json, print_rows, rows_option

_SURVEYED = 100_000


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@rows_option(10, "How many processes to show.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def plan(spec: Path, rows: int, as_json: bool) -> None:
    """Show what the operation, or the chain, in SPEC would run; runs and writes nothing."""
    from daskspace.cli.chains import is_chain_file, plan_chain, plan_tables
    from daskspace.execution.identity import describe_process
    from daskspace.operations.parametric import ParameterOperation
    from daskspace.operations.spec import load_operation

    if is_chain_file(spec):
        plan_chain(spec, as_json)
        return
    operation = load_operation(spec)
    if not isinstance(operation, ParameterOperation):
        plan_tables(operation, as_json)
        return
    space = operation.space
    survey = space.survey(_SURVEYED)
    exact = space.is_exact or survey.seen == space.size
    combinations = space.size if space.is_exact else survey.kept
    factor = len(operation.data_sets) * operation.runs
    shown = [
        {**known.get("parameters", {}), "data": known.get("data"), "run": known["run"]}
        for number, process in enumerate(itertools.islice(operation.processes, rows))
        for known in [{"run": None, **describe_process(number, process)}]
    ]
    if as_json:
        print_json(
            {
                "name": operation.name,
                "type": operation.kind,
                "processes": combinations * factor if exact else None,
                "combinations": {"all": space.size, "seen": survey.seen, "kept": survey.kept},
                "dropped": [{"constraint": c, "combinations": n} for c, n in survey.dropped],
                "data_sets": [label for label, _ in operation.data_sets if label is not None],
                "runs": operation.runs,
                "first": shown,
            }
        )
        return
    out = console()
    some = "" if exact else f"at least, in the first {survey.seen:,} of {space.size:,}: "
    out.print(f"{operation.name}: {some}{combinations * factor:,} processes")
    data = len(operation.data_sets) if operation.data_sets[0][0] is not None else 0
    parts = [f"{combinations:,} combinations"] + ([f"{data} data sets"] if data else [])
    out.print(" x ".join([*parts, f"{operation.runs} runs"]))
    for constraint, number in survey.dropped:
        out.print(f"dropped {number:,} of {survey.seen:,} combinations by  {constraint}")
    columns = [*space.names, *(["data"] if data else []), "run"]
    out.print(f"the first {len(shown)}:")
    print_rows(list(dict.fromkeys(columns)), shown)
    out.print(f"run it     {command()} run {spec}", soft_wrap=True)
