"""The report's pictures as inline SVG data URIs (matplotlib's object interface: no global state, no display)."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

REAL, SYNTHETIC = "#9aa5b1", "#0b6e8f"


def margins(columns: list[dict[str, Any]]) -> str:
    """Small multiples: each column's shares, real (noised) beside synthetic."""
    from matplotlib.figure import Figure

    across = 3
    down = math.ceil(len(columns) / across)
    figure = Figure(figsize=(11, 2.3 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis in axes[len(columns) :]:
        axis.set_visible(False)
    for axis, column in zip(axes, columns, strict=False):
        at = range(len(column["labels"]))
        if column["real_noised"] is not None:
            axis.bar([x - 0.2 for x in at], column["real_noised"], 0.4, color=REAL, label="real (noised)")
        axis.bar([x + 0.2 for x in at], column["synthetic"], 0.4, color=SYNTHETIC, label="synthetic")
        axis.set_title(column["name"], fontsize=9, loc="left")
        long = len(column["labels"]) > 5 or max(map(len, column["labels"])) > 6
        axis.set_xticks(
            list(at),
            [label[:14] for label in column["labels"]],
            fontsize=7,
            rotation=45 if long else 0,
            ha="right" if long else "center",
        )
        axis.tick_params(axis="y", labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    return _uri(figure)


def survival(found: dict[str, Any]) -> str:
    """Kaplan-Meier curves, one panel a treatment, as steps that begin at 1."""
    from matplotlib.figure import Figure

    curves = found["curves"]
    figure = Figure(figsize=(min(11.0, 1 + 4.5 * len(curves)), 3.2), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False, sharey=True).ravel()
    for axis, curve in zip(axes, curves, strict=True):
        for key, color, label in (("real_noised", REAL, "real (noised)"), ("synthetic", SYNTHETIC, "synthetic")):
            if curve[key] is not None:
                axis.step(found["cuts"], [1.0, *curve[key]], where="post", color=color, label=label, linewidth=2)
        axis.set_title(curve["name"], fontsize=9, loc="left")
        axis.set_xlabel(found["time"], fontsize=8)
        axis.set_ylim(0, 1.02)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False)
    return _uri(figure)


def nearness(found: list[tuple[str, dict[str, Any]]]) -> str:
    """Histograms of the distance to the nearest synthetic image, training over hold-out patients; a panel for each way it was measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(found), 3.0), layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False, sharey=True).ravel()
    for axis, (how, memorisation) in zip(axes, found, strict=True):
        held = memorisation["histogram"]
        axis.stairs(held["holdout"], held["edges"], color=REAL, fill=True, label="hold-out patients")
        axis.stairs(held["train"], held["edges"], color=SYNTHETIC, linewidth=2, label="training patients")
        axis.axvline(memorisation["near"], color="#1c2733", linewidth=1, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set_xticks([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1], ["1/16 or less", "1/8", "1/4", "1/2", "1 or more"])
        axis.set_title(how, fontsize=9, loc="left")
        axis.set_xlabel("distance to the nearest synthetic image", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of patients", fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    return _uri(figure)


def heat_map(pairs: list[dict[str, Any]]) -> str:
    """Distance of every pair of columns; darker is further apart."""
    import numpy as np
    from matplotlib.figure import Figure

    names = list(dict.fromkeys([p["a"] for p in pairs] + [p["b"] for p in pairs]))
    grid = np.full((len(names), len(names)), np.nan)
    for p in pairs:
        grid[names.index(p["b"]), names.index(p["a"])] = p["tvd"]
    side = min(9.0, 2.5 + 0.42 * len(names))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(grid, cmap="YlGnBu", vmin=0, vmax=max(0.2, float(np.nanmax(grid))))
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.spines[:].set_visible(False)
    if len(names) <= 16:
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                dark = value > 0.6 * image.norm.vmax  # type: ignore[operator]
                axis.text(
                    column,
                    row,
                    f"{value:.2f}".lstrip("0"),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if dark else "black",
                )
    figure.colorbar(image, shrink=0.7).ax.tick_params(labelsize=7)
    return _uri(figure)


def _uri(figure: Any) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()
