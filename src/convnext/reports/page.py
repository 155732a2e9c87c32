"""Pages that open from disk, without network, in light and in dark."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from convnext.atomic import write_text
from convnext.tasks.figures import ACCENT, GRID, INK, MUTED, PAPER

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
    head += f' role="img" aria-label="{escape(alt)}"'
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(url\(#|href="#)', rf"\1{name}-", body)
    body = re.sub(r"font: (\d+) ([\d.]+px)[^;\"]*", r"font-weight: \1; font-size: \2", body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", body)
    for color, variable in PAGE_COLORS.items():
        body = body.replace(color, variable)
    return f"{head}>{body}"
