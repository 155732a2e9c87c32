"""What figures of a road share: a row per network from top to bottom, under headings in colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROAD = ("start", "macro", "resnext", "inverted", "kernel", "micro")
# Okabe and Ito's colours, which stay apart for every kind of colour vision.
GROUPS = {
    "start": ("start", "#667080"),
    "macro": ("macro design", "#0072b2"),
    "resnext": ("ResNeXt-ify", "#c77b00"),
    "inverted": ("inverted bottleneck", "#009e73"),
    "kernel": ("large kernel", "#b8558a"),
    "micro": ("micro design", "#d55e00"),
    "variant": ("varied", "#1f66b5"),
    "ResNet": ("ResNet", "#667080"),
    "ResNeXt": ("ResNeXt", "#c77b00"),
    "Swin": ("Swin", "#009e73"),
    "ViT": ("ViT, DeiT", "#b8558a"),
    "ConvNeXt": ("ConvNeXt", "#0072b2"),
    "ConvNeXt (isotropic)": ("ConvNeXt, isotropic", "#56a5d8"),
    "other": ("other", "#8a6d3b"),
}
STAIRS = "#b4bcc7"


def places(groups: Sequence[str]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return the vertical place of every row, and of the heading above each run of a group."""
    found: list[float] = []
    headings: list[tuple[float, str]] = []
    y = -1.0
    for i, group in enumerate(groups):
        if i == 0 or group != groups[i - 1]:
            headings.append((y + (0.35 if i else 0), group))
            y += 1.35 if i else 1.0
        found.append(y)
        y += 1
    return found, headings


def beside(axes: Axes, words: str, y: float, *, x: float = 1.0, **style: Any) -> None:
    """Write beside the axes at a height in data units: at a column on the left, or at the right."""
    axes.annotate(
        words,
        (x, y),
        xycoords=("axes fraction", "data"),
        xytext=(6 if x == 1 else 0, 0),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
        **style,
    )


def aligned(value: float) -> str:
    """Return a number as wide as 15.01, the missing digit a space of a digit's width."""
    return f"{value:5.2f}".replace(" ", "\u2007")


def climb(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Draw a stair through (value, place): down to the next place, then across to its value."""
    x = [value for value, _ in points for _ in range(2)][:-1]
    y = [place for _, place in points for _ in range(2)][1:]
    axes.plot(x, y, color=STAIRS, linewidth=1.4, zorder=2)
