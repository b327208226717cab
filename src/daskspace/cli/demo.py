"""``daskspace demo``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from daskspace.cli import DONE, FAILED
from daskspace.cli.inspect import sorted_rows
from daskspace.cli.run import backend_options, report, run_operation
from daskspace.cli.show import command, console, print_rows, reason, shell_path, told
from daskspace.errors import ConfigError

EXAMPLES = Path(__file__).parents[1] / "examples"
_BEST = 5


@click.command()
@click.argument(
    "example", type=click.Choice(["classification", "mandelbrot"]), default="classification"
)
@backend_options
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The result directory.")
def demo(
    example: str,
    backend: str | None,
    config: list[str] | None,
    options: dict[str, Any],
    output: Path | None,
) -> None:
    """Run EXAMPLE, by default on all cores.

    classification: a support vector machine on scikit-learn's bundled data sets; one combination
    is planned to fail. mandelbrot: 49 tiles of a picture.
    """
    from daskspace.operations.spec import load_operation

    for module, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f'the demo needs {package}: pip install "daskspace[demo]"')
    spec = EXAMPLES / f"{example}.yaml"
    out = console()
    out.print(f"operation  {spec}", soft_wrap=True)
    operation = load_operation(spec, output)
    table, took = run_operation(operation, backend or "mcore", config, options)
    if example == "classification":
        columns = [*operation.parameters, "run", "accuracy", "f1", "duration"]
        out.print(f"the best {_BEST} of {len(table)}:", style="bold")
        print_rows(columns, sorted_rows(table, "accuracy")[:_BEST])
        planned = next(outcome for outcome in table.outcomes() if outcome.state != "done")
        out.print("a failure that is planned:", style="bold")
        out.print(f"{told(planned)}\n  {reason(planned)}\n  {planned.where}", soft_wrap=True)
    else:
        out.print(f"picture    {shell_path(f'{operation.result_directory}/mandelbrot.png')}")
    report(operation, table, took)
    out.print(
        f"yours      cp {shell_path(spec.with_suffix(''))}.* . && {command()} run {example}.yaml"
    )
    expected = {"done", "failed"} if example == "classification" else {"done"}
    raise SystemExit(DONE if set(table.counts) == expected else FAILED)
