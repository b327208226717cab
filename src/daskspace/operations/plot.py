"""A plot of a metric over parameters, as one shows it to others."""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_OPTIONS = ("x", "lines", "panels", "format")
_LINES, _PANELS, _MARKED = 8, 6, 25
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito's, which also those tell apart who see fewer colours."""
_MARKERS = "osD^vP<>"
_WIDTH, _HEIGHT = 3.4, 3.2


@dataclass(frozen=True)
class Layout:
    """Which parameter is where.

    Attributes
    ----------
    x : str
        Along the horizontal axis.
    lines : str or None
        One line for each of its values; in a heat map, along the vertical axis.
    panels : str or None
        One panel for each of its values.
    is_map : bool
        Whether it is a heat map.
    """

    x: str
    lines: str | None = None
    panels: str | None = None
    is_map: bool = False


def can_plot() -> bool:
    """Return whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def choose_layout(
    rows: pd.DataFrame, parameters: Sequence[str], options: Mapping[str, Any]
) -> Layout:
    """Return which parameter goes where, as far as `options` do not say it.

    The number with the most values is along the axis, or what has the most values where there are
    no numbers; of the rest the last makes lines, and the first panels, where they have few values.
    Two numbers with more values than lines can be told apart make a heat map.
    """
    for name in (options.get(key) for key in ("x", "lines", "panels")):
        if name is not None and name not in rows.columns:
            raise ValueError(f"'plot': the table has no column {name!r}")
    numbers = {name: rows[name].nunique(dropna=False) for name in parameters}
    free = [name for name in parameters if name not in options.values()]
    ranked = sorted(free, key=lambda name: (not _is_numeric(rows[name]), -numbers[name]))
    x = options.get("x") or (ranked or list(parameters))[0]
    rest = [name for name in free if name != x and numbers[name] > 1]
    many = [name for name in rest if numbers[name] > _LINES and _is_numeric(rows[name])]
    few = [name for name in rest if numbers[name] <= _LINES]
    lines = options.get("lines") or (few[-1] if few else None)
    if lines is None and many and _is_numeric(rows[x]):
        return Layout(x, many[0], options.get("panels"), is_map=True)
    panels = [name for name in few if name != lines and numbers[name] <= _PANELS]
    return Layout(x, lines, options.get("panels") or (panels[0] if panels else None))


def draw(
    rows: pd.DataFrame,
    metric: str,
    parameters: Sequence[str],
    directory: Path,
    options: Mapping[str, Any],
    averaged: Iterable[str] = (),
) -> str:
    """Draw the metric over the parameters; return the name of the file in `directory`."""
    from matplotlib.figure import Figure

    layout = choose_layout(rows, parameters, options)
    values = [None] if layout.panels is None else _ordered(rows[layout.panels])
    columns = min(len(values), 3)
    lines = math.ceil(len(values) / columns)
    width = _WIDTH * columns + 1.6 if columns > 1 else 5.6
    figure = Figure(figsize=(width, _HEIGHT * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    shown = []
    for axis, value in zip(axes.flat, values, strict=False):
        if layout.panels is not None:
            axis.set_title(f"{layout.panels} = {_label(value)}", fontsize="medium")
        axis.spines[["top", "right"]].set_visible(False)
        part = rows if layout.panels is None else rows[rows[layout.panels] == value]
        shown.append((axis, part))
    for axis in list(axes.flat)[len(values) :]:
        axis.set_visible(False)
    paint = _draw_map if layout.is_map else _draw_lines
    paint(figure, shown, rows, metric, layout)
    for axis in axes[-1, :]:
        axis.set_xlabel(layout.x)
    for axis in axes[:, 0]:
        axis.set_ylabel(layout.lines if layout.is_map else metric)
    if caption := _caption(rows, metric, layout, [*averaged, *parameters]):
        figure.suptitle(caption, fontsize="small", color="#555555")
    kind = options.get("format", "svg")
    name = f"plot.{kind}"
    if kind == "svg":
        figure.savefig(directory / name, metadata={"Date": None})
    else:
        figure.savefig(directory / name, dpi=200)
    return name


def _draw_lines(
    figure: Figure,
    shown: Sequence[tuple[Axes, pd.DataFrame]],
    rows: pd.DataFrame,
    metric: str,
    layout: Layout,
) -> None:
    x, lines = layout.x, layout.lines
    values = [None] if lines is None else _ordered(rows[lines])
    colours = _colours(rows[lines], len(values)) if lines is not None else list(_COLOURS[:1])
    ticks = _ordered(rows[x])
    is_axis = _is_numeric(rows[x])
    handles: dict[str, Any] = {}
    for axis, part in shown:
        for number, value in enumerate(values):
            chosen = part if value is None else part[part[lines] == value]
            if chosen.empty:
                continue
            found = chosen.groupby(x, sort=False)[metric].agg(["mean", "std", "count"])
            found = found.reindex([tick for tick in ticks if tick in found.index])
            spread = found["std"].fillna(0)
            style: dict[str, Any] = {
                "color": colours[number],
                "marker": _MARKERS[number % len(_MARKERS)] if len(found) <= _MARKED else None,
                "markersize": 4.5,
                "linewidth": 1.5,
            }
            if is_axis:
                places = [float(tick) for tick in found.index]
                handle: Any = axis.plot(places, found["mean"], **style)[0]
                low, high = found["mean"] - spread, found["mean"] + spread
                axis.fill_between(places, low, high, color=style["color"], alpha=0.15, linewidth=0)
            else:
                dodge = (number - (len(values) - 1) / 2) * 0.6 / len(values)
                places = [ticks.index(tick) + dodge for tick in found.index]
                style["linestyle"] = "none"
                handle = axis.errorbar(
                    places, found["mean"], yerr=spread, capsize=2.5, elinewidth=1.2, **style
                )
            handles.setdefault(_label(value), handle)
    for axis, _ in shown:
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        if is_axis:
            _scale(axis, [float(tick) for tick in ticks])
        else:
            _name_ticks(axis, ticks)
    if lines is not None:
        figure.legend(
            handles.values(), handles, title=lines, frameon=False, loc="outside right upper"
        )


def _draw_map(
    figure: Figure,
    shown: Sequence[tuple[Axes, pd.DataFrame]],
    rows: pd.DataFrame,
    metric: str,
    layout: Layout,
) -> None:
    x, y = layout.x, str(layout.lines)
    across, up = _ordered(rows[x]), _ordered(rows[y])
    means = [
        part.groupby([y, x])[metric].mean().unstack().reindex(index=up, columns=across)
        for _, part in shown
    ]
    low, high = min(m.min().min() for m in means), max(m.max().max() for m in means)
    image: Any = None
    for (axis, _), mean in zip(shown, means, strict=True):
        image = axis.imshow(mean, origin="lower", aspect="auto", vmin=low, vmax=high)
        axis.spines[:].set_visible(False)
        for set_ticks, values in ((axis.set_xticks, across), (axis.set_yticks, up)):
            step = math.ceil(len(values) / 6)
            places = range(0, len(values), step)
            set_ticks(list(places), [_label(values[place]) for place in places])
    figure.colorbar(image, ax=[axis for axis, _ in shown], label=metric)


def _scale(axis: Axes, values: Sequence[float]) -> None:
    """Let the axis be logarithmic where the values are spaced like that, and few be named."""
    if len(values) > 2 and values[0] > 0:
        ratios = [b / a for a, b in itertools.pairwise(values)]
        steps = [b - a for a, b in itertools.pairwise(values)]
        if max(ratios) / min(ratios) < max(steps) / min(steps) and values[-1] / values[0] > 9:
            axis.set_xscale("log")
    if len(values) <= 6:
        axis.set_xticks(values, [_label(value) for value in values])
        axis.set_xticks([], minor=True)


def _name_ticks(axis: Axes, values: Sequence[Any]) -> None:
    names = [_label(value) for value in values]
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.6, len(names) - 0.4)
    if sum(map(len, names)) > 36:
        for tick in axis.get_xticklabels():
            tick.set(rotation=30, ha="right", rotation_mode="anchor")


def _caption(rows: pd.DataFrame, metric: str, layout: Layout, others: Iterable[str]) -> str:
    """Return what was averaged over."""
    left = [name for name in others if name not in (layout.x, layout.lines, layout.panels)]
    over = [f"{name} ({rows[name].nunique()})" for name in left if rows[name].nunique() > 1]
    what = "mean" if layout.is_map else "mean ± standard deviation"
    placed = [name for name in (layout.x, layout.lines, layout.panels) if name is not None]
    most = int(rows.groupby(placed, dropna=False).size().max())
    if most == 1:
        return ""
    return f"{metric}: {what} over {', '.join(over)}" if over else f"{metric}: {what}, n = {most}"


def _colours(values: pd.Series[Any], number: int) -> list[Any]:
    """Return a colour for each line: in order for numbers, distinct for the rest."""
    if not _is_numeric(values) or number < 3:
        return [_COLOURS[n % len(_COLOURS)] for n in range(number)]
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * n / (number - 1)) for n in range(number)]


def _is_numeric(values: Any) -> bool:
    import pandas as pd

    kinds = pd.api.types
    return kinds.is_numeric_dtype(values) and not kinds.is_bool_dtype(values)


def _ordered(values: pd.Series[Any]) -> list[Any]:
    """Return the values that there are: numbers by size, the rest as they come."""
    found = values.dropna().unique().tolist()
    return sorted(found) if _is_numeric(values) else found


def _label(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"
