"""What mandelbrot.yaml does: `process` computes a tile, `consolidate` makes them a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

LEFT, BOTTOM = -2.1, -1.4
TILE = "tile-{xind}-{yind}.npy"


def process(
    process_id: int,
    result_directory: str,
    config: dict[str, Any],
    parameter_setting: dict[str, Any],
) -> dict[str, Any]:
    """Compute one tile, keep it in the result directory, and return how much is in the set."""
    xind, yind = config["xind"], config["yind"]
    middles = (np.arange(config["resolution"]) + 0.5) / config["resolution"]
    x = LEFT + (xind + middles) * config["xstep"]
    y = BOTTOM + (yind + middles) * config["ystep"]
    tile = escape_times(x + 1j * y[:, np.newaxis], config["iterations"])
    np.save(Path(result_directory, TILE.format(xind=xind, yind=yind)), tile)
    return {"inside": float(np.isnan(tile).mean())}


def consolidate(result_directory: str, config_template: dict[str, Any]) -> None:
    """Put the tiles together into mandelbrot.png, and remove them."""
    from matplotlib import colormaps  # here, as the workers would import it for nothing
    from matplotlib.image import imsave

    size = config_template["resolution"]
    tiles = {
        tuple(map(int, path.stem.split("-")[1:])): path
        for path in Path(result_directory).glob(TILE.format(xind="*", yind="*"))
    }
    columns, rows = (max(indices) + 1 for indices in zip(*tiles, strict=True))
    picture = np.full((rows * size, columns * size), np.nan, dtype=np.float32)
    for (xind, yind), path in tiles.items():
        picture[yind * size : (yind + 1) * size, xind * size : (xind + 1) * size] = np.load(path)
    colours = colormaps["twilight_shifted"].with_extremes(bad="black")
    # Far from the set the escape times hardly differ, and close to it they differ very much.
    shades = np.ma.masked_invalid(np.log(np.log(picture + 1)))
    imsave(Path(result_directory, "mandelbrot.png"), shades, cmap=colours, origin="lower")
    for path in tiles.values():
        path.unlink()


def escape_times(points: np.ndarray, iterations: int) -> np.ndarray:
    """Return after how many steps z -> z**2 + c escapes, as fractions; NaN where it stays."""
    times = np.full(points.size, np.nan, dtype=np.float32)
    where = np.arange(points.size)
    c = points.ravel()
    z = np.zeros_like(c)
    for step in range(iterations):
        z *= z
        z += c
        size = np.abs(z)
        out = size > 100  # far beyond the needed 2, so that the fractions are smooth
        if out.any():
            times[where[out]] = step + 1 - np.log2(np.log(size[out]) / np.log(100))
            where, z, c = where[~out], z[~out], c[~out]
    return times.reshape(points.shape)
