"""An operation that says which settings are best, from the tables of others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daskspace.errors import SpecError, did_you_mean
from daskspace.execution import plain
from daskspace.operations.data_sets import DataSet
from daskspace.operations.merge import (
    MERGED,
    SOURCE,
    Columns,
    TablesOperation,
    TablesProcess,
    columns_of,
    merge_tables,
)
from daskspace.operations.plot import PLOT_OPTIONS, can_plot, draw
from daskspace.results.directory import ResultDirectory, replace_text
from daskspace.results.table import Table, csv_writer

if TYPE_CHECKING:
    import pandas as pd

ANALYSIS, BEST = "analysis.csv", "best.md"
NO_PLOT = 'not drawn: pip install "daskspace[plot]"'
_STATISTICS = ("mean", "std", "count", "min", "max")
_SHOWN = 10


@dataclass(frozen=True)
class Analysis:
    """What a table tells of a metric.

    Attributes
    ----------
    metric : str
        Its column.
    parameters : list of str
        The columns that make a setting.
    settings : DataFrame
        One row per setting, the best first: ``rank``, its parameters, and the statistics.
    rows : DataFrame
        The rows of the table that count: they are done, and have a value.
    left_out : int
        How many others there are.
    averaged : dict
        What a setting does not tell and varies, and how many values it has.
    fixed : dict
        The parameters that are the same in all rows.
    """

    metric: str
    parameters: list[str]
    settings: pd.DataFrame
    rows: pd.DataFrame
    left_out: int
    averaged: dict[str, int]
    fixed: dict[str, Any]


def analyse(
    frame: pd.DataFrame,
    columns: Columns,
    metric: str | None = None,
    minimize: bool = False,
    parameters: Sequence[str] | None = None,
) -> Analysis:
    """Return the statistics of a metric for each setting, the best first.

    Parameters
    ----------
    frame : DataFrame
        The table.
    columns : Columns
        What its columns are.
    metric : str, optional
        By default its first metric that is a number.
    minimize : bool
        Whether the smallest mean is the best.
    parameters : sequence of str, optional
        What makes a setting; by default all parameters that vary.

    Raises
    ------
    ValueError
        There is no such column, or nothing to analyse.
    """
    import pandas as pd

    if metric is None:
        metric = _first_metric(frame, columns)
    for name in (metric, *(parameters or ())):
        if name not in frame.columns:
            near = did_you_mean(name, frame.columns) or f"; it has {', '.join(frame.columns)}"
            raise ValueError(f"the table has no column {name!r}{near}")
    values = pd.to_numeric(frame[metric], errors="coerce").astype("float64")
    counts = values.notna()
    if "state" in frame.columns:
        counts &= frame["state"] == "done"
    rows = frame[counts].assign(**{metric: values[counts]})
    if rows.empty:
        raise ValueError(f"no row of the table is done and has a number as {metric!r}")
    known = [] if columns.metrics is None else [n for n in columns.parameters if n != SOURCE]
    also = [name for name in ("data", "run") if name in frame.columns and name not in known]
    numbers = {name: rows[name].nunique(dropna=False) for name in (*known, *also)}
    if parameters is None:
        if columns.metrics is None:
            raise ValueError("the table is none of daskspace: say which columns are 'parameters'")
        parameters = [name for name in known if numbers[name] > 1]
    return Analysis(
        metric,
        list(parameters),
        _ranked(statistics(rows, metric, parameters), minimize),
        rows,
        len(frame) - len(rows),
        {n: number for n, number in numbers.items() if number > 1 and n not in parameters},
        {n: rows[n].iloc[0] for n in known if numbers[n] == 1 and n not in parameters},
    )


def statistics(rows: pd.DataFrame, metric: str, names: Sequence[str]) -> pd.DataFrame:
    """Return mean, standard deviation, count and range of a metric for each setting of `names`."""
    if not names:
        return rows[[metric]].agg([*_STATISTICS])[[metric]].T.reset_index(drop=True)
    grouped = rows.groupby(list(names), dropna=False, sort=False, observed=True)[metric]
    return grouped.agg([*_STATISTICS]).reset_index()


def _first_metric(frame: pd.DataFrame, columns: Columns) -> str:
    import pandas as pd

    if columns.metrics is None:
        raise ValueError("the table is none of daskspace: say which column is the 'metric'")
    for name in columns.metrics:
        if pd.to_numeric(frame[name], errors="coerce").notna().any():
            return name
    raise ValueError("the table has no metric that is a number")


def _ranked(settings: pd.DataFrame, minimize: bool) -> pd.DataFrame:
    ordered = settings.sort_values("mean", ascending=minimize, kind="stable", ignore_index=True)
    ordered.insert(0, "rank", range(1, len(ordered) + 1))
    return ordered


def read_frame(path: str) -> tuple[pd.DataFrame, Columns]:
    """Return a table with typed values, and what its columns are."""
    import pandas as pd

    if Path(path).is_dir():
        table = Table(ResultDirectory(path).journal)
        frame, columns = table.frame(), Columns(tuple(table.parameters), tuple(table.metrics))
    else:
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
        columns = columns_of(list(frame.columns))
    for name in columns.parameters:
        if any(isinstance(value, list | dict) for value in frame[name]):
            frame[name] = [plain.dumps(value) for value in frame[name]]
    return frame, columns


class AnalysisProcess(TablesProcess):
    """Writes ``analysis.csv``, ``best.md`` and a plot."""

    def write(self, directory: Path) -> dict[str, Any]:
        """Analyse the table, and return the best setting."""
        path = self.tables[0][1]
        if len(self.tables) > 1:
            path = str(directory / MERGED)
            merge_tables(self.tables, Path(path))
        frame, columns = read_frame(path)
        options = self.options
        minimize = bool(options.get("minimize", not options.get("maximize", True)))
        found = analyse(frame, columns, options.get("metric"), minimize, options.get("parameters"))
        with csv_writer(directory / ANALYSIS) as writer:
            writer.writerow(found.settings.columns)
            writer.writerows(_cells(found.settings))
        plot = None
        if can_plot() and found.parameters:
            plot = draw(
                found.rows,
                found.metric,
                found.parameters,
                directory,
                self.plot_options,
                found.averaged,
            )
        replace_text(directory / BEST, describe(found, minimize, plot))
        if not can_plot():
            print(f"plot {NO_PLOT}")
        best = found.settings.iloc[0]
        named = {f"best.{name}": _plain(best[name]) for name in found.parameters}
        return {
            "metric": found.metric,
            "best": _plain(best["mean"]),
            "settings": len(found.settings),
            **named,
            "plot": plot,
        }

    @property
    def plot_options(self) -> Mapping[str, Any]:
        """What the specification says of the plot."""
        return self.options.get("plot", {})


class AnalysisOperation(TablesOperation):
    """Says which settings are best: ``analysis.csv``, ``best.md``, and a plot."""

    kind = "analysis"
    process_class = AnalysisProcess

    def __init__(
        self, data_sets: Sequence[DataSet], options: Mapping[str, Any], **common: Any
    ) -> None:
        if {"maximize", "minimize"} <= options.keys():
            raise SpecError("give 'maximize' or 'minimize', not both", "minimize")
        for name, value in options.get("plot", {}).items():
            if name not in PLOT_OPTIONS:
                near = did_you_mean(str(name), PLOT_OPTIONS)
                known = ", ".join(PLOT_OPTIONS)
                raise SpecError(f"'plot' has no key {name!r}{near or f'; known are {known}'}")
            if not isinstance(value, str) or (name == "format" and value not in ("svg", "png")):
                wanted = "svg or png" if name == "format" else "the name of a parameter"
                raise SpecError(f"'plot': {name!r} must be {wanted}, not {value!r}")
        super().__init__(data_sets, options, **common)

    def products(self) -> dict[str, str]:
        """Return where the analysis is."""
        results = Path(str(self.result_directory))
        told = {"analysis": str(results / ANALYSIS), "best": str(results / BEST)}
        drawn = [str(path) for path in sorted(results.glob("plot.*"))]
        if drawn:
            told["plot"] = drawn[0]
        elif not can_plot():
            told["plot"] = NO_PLOT
        return told


def describe(found: Analysis, minimize: bool, plot: str | None) -> str:
    """Return the best settings as Markdown."""
    word = "smallest" if minimize else "largest"
    settings = found.settings
    over = ", ".join(f"{name} ({number})" for name, number in found.averaged.items())
    lines = [f"# {found.metric}", ""]
    lines.append(f"The {word} mean is the best; mean ± standard deviation of n values each")
    lines[-1] += f", over {over}." if over else "."
    if found.left_out:
        lines.append(f"{found.left_out} rows are left out: not done, or without a value.")
    if found.fixed:
        same = ", ".join(f"{name} = {_shown(value)}" for name, value in found.fixed.items())
        lines.append(f"The same in all: {same}.")
    head = ["rank", *found.parameters, found.metric, "n"]
    lines += ["", _row(head), _row(["---"] * len(head))]
    for _, setting in settings.head(_SHOWN).iterrows():
        spread = "" if setting["count"] < 2 else f" ± {setting['std']:.2g}"
        value = f"{setting['mean']:.4g}{spread}"
        cells = [setting[name] for name in ("rank", *found.parameters)]
        lines.append(_row([*map(_shown, cells), value, str(int(setting["count"]))]))
    if len(settings) > _SHOWN:
        lines += ["", f"All {len(settings)} settings are in {ANALYSIS}."]
    if plot:
        lines += ["", f"![{found.metric}]({plot})"]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _shown(value: Any) -> str:
    value = _plain(value)
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def _cells(frame: pd.DataFrame) -> list[list[Any]]:
    return [[_plain(value) for value in row] for row in frame.itertuples(index=False, name=None)]


def _plain(value: Any) -> Any:
    """Return a value without NumPy, None where it is missing."""
    import pandas as pd

    value = value.item() if hasattr(value, "item") else value
    return None if value is pd.NA or value != value else value
