"""Pages that open from disk, without network, in light and in dark, and the curves of a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from convnext.atomic import write_text
from convnext.tasks.figures import (
    ACCENT,
    GRID,
    INK,
    MUTED,
    PAPER,
    Curve,
    figure_style,
    new_figure,
)

# Maximum number of points drawn per curve.
MAX_POINTS = 400

# The variables of the page's style sheet that replace the print colors.
PAGE_COLORS = {
    PAPER: "var(--panel)",
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    ACCENT: "var(--accent)",
}


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Write a page from one of the templates; a value that the template lacks is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("convnext.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_text(path, environment.get_template(template).render(**values))
    return path


def duration(seconds: float) -> str:
    """Format seconds as seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


SCALES = {"min": 1.412, "max": 1.8}
"""Pixels of a page per unit of a figure, whose smallest common labels have 8.5 units: 12 pixels."""


def inline_svg(svg: str, name: str, alt: str) -> str:
    """Return one of our SVG files as markup inside a page, in the page's colors and font.

    Args:
        svg: What `save_bytes` returned.
        name: Prefix of every id, since a page may hold several figures.
        alt: The alternative text of the figure.
    """
    svg = svg[svg.index("<svg") :]
    head, _, body = svg.partition(">")
    head = re.sub(r' (?:width|height|version|xmlns(?::\w+)?)="[^"]*"', "", head)
    width = float(re.findall(r'viewBox="[^"]* ([\d.]+) [\d.]+"', head)[0])
    # A figure that is wider than its panel scrolls, so that its labels can be read.
    limits = "; ".join(f"{key}-width: {width * scale:.0f}px" for key, scale in SCALES.items())
    head += f' role="img" aria-label="{escape(alt)}" style="{limits}"'
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\1{name}-", body)
    body = re.sub(r"font: (\d+) ([\d.]+px)[^;\"]*", r"font-weight: \1; font-size: \2", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    for color, variable in PAGE_COLORS.items():
        body = body.replace(color, variable)
    return f"{head}>{body}"


def draw_curves(
    curves: Sequence[Curve], *, label: str, mark: tuple[float, float, str] | None = None
) -> Figure:
    """Draw a quantity against the images seen.

    Args:
        curves: The lines.
        label: Label of the vertical axis.
        mark: A point to highlight, as x, y and a label.
    """
    with figure_style():
        fig, (axes,) = new_figure(4.7, 2.7)
        for curve in curves:
            x, y = thin(curve.x, curve.y)
            axes.plot(
                x,
                y,
                label=curve.label,
                color=curve.color,
                linestyle="--" if curve.dashed else "-",
                linewidth=1.2 if curve.dashed else 1.8,
                marker="o" if len(x) <= 30 and not curve.dashed else "",
                markersize=3,
            )
        low, high = axes.get_ylim()
        if low < 0 <= min((value for curve in curves for value in curve.y), default=0):
            # Margins around a flat line at zero would show negative losses or scores.
            axes.set_ylim(0, high if high > 2 * -low else 1)
        if mark is not None:
            _mark(axes, *mark)
        if len(curves) > 1:
            axes.legend(loc="best" if mark is None else "lower right", handlelength=1.6)
        _images_axis(axes, label)
    return fig


def draw_rates(
    rates: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
) -> Figure:
    """Draw the loss against a growing learning rate, and the suggested rate."""
    with figure_style():
        fig, (axes,) = new_figure(4.7, 2.7)
        axes.plot(rates, losses, ".", color=MUTED, markersize=3)
        axes.plot(rates, smoothed, color=ACCENT, linewidth=1.8)
        axes.set_xscale("log")
        # Where the loss explodes, the rest would be a flat line.
        axes.set_ylim(top=1.5 * max(smoothed[0], smoothed[len(smoothed) // 2]))
        if suggestion is not None:
            at = float(np.interp(np.log(suggestion), np.log(rates), smoothed))
            _mark(axes, suggestion, at, f"{suggestion:g}")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
    return fig


def draw_speed(images: Sequence[float], speed: Sequence[float], waiting: Sequence[float]) -> Figure:
    """Draw images per second, and below that the percentage of time spent waiting for data."""
    with figure_style():
        fig, (top, bottom) = new_figure(4.7, 2.7, heights=(2, 1))
        x, y = thin(images, speed)
        top.plot(x, y, color=ACCENT, marker="o" if len(x) <= 30 else "", markersize=3)
        top.set_ylim(bottom=0)
        top.set_ylabel("images/s")
        top.tick_params(labelbottom=False)
        x, y = thin(images, [100 * share for share in waiting])
        bottom.fill_between(x, y, color=MUTED, alpha=0.35, linewidth=0)
        bottom.plot(x, y, color=MUTED, linewidth=1.2)
        bottom.set_ylim(0, max(10.0, 1.15 * max(y, default=0)))
        bottom.yaxis.set_major_locator(MaxNLocator(2))
        top.sharex(bottom)
        _images_axis(bottom, "waiting %")
    return fig


def thin(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return at most 400 points: means of groups of neighbors."""
    if len(x) <= MAX_POINTS:
        return list(x), list(y)
    points = np.array_split(np.array([x, y], dtype=np.float64), MAX_POINTS, axis=1)
    means = np.array([block.mean(axis=1) for block in points])
    return means[:, 0].tolist(), means[:, 1].tolist()


def _images_axis(axes: Axes, label: str) -> None:
    axes.set_ylabel(label)
    axes.set_xlabel("images seen")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))


def short_count(value: float) -> str:
    """Return 1500000 as "1.5 M"."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"


def _mark(axes: Axes, x: float, y: float, words: str) -> None:
    axes.plot([x], [y], "o", color=ACCENT, markersize=6, zorder=5)
    # Leave room for the label above the best point.
    axes.margins(y=0.16)
    axes.annotate(
        words,
        (x, y),
        xytext=(0, 6),
        textcoords="offset points",
        ha="right" if x > np.mean(axes.get_xlim()) else "left",
        va="bottom",
        fontsize=9,
        fontweight="bold",
        color=ACCENT,
    )
