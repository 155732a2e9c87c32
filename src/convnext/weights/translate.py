"""Translate names between layouts by the tables of `layouts`, and recognize a file's layout."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from convnext.weights.layouts import LAYOUTS, WRAPPERS, Layout

_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
_PLACEHOLDER = re.compile(r"\{(\d*)([sb])(?:\+(\d+))?\}")


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """The names of a file, read by one table."""

    layout: Layout
    names: dict[str, str]
    """Our name by the name in the file."""
    unknown: tuple[str, ...]
    """Names inside the network that the table does not have: another kind of network."""
    extra: tuple[str, ...]
    """Names outside the network: heads of other tasks, preprocessing, counters."""


def rename(name: str, source: str, target: str) -> str | None:
    """Return the name of a tensor under the row `target`, or None if `source` does not match.

    rename("features.5.2.block.3.bias", "features.{2s+1}.{b}.block.3", "stages.{s}.{b}.pwconv1")
    == "stages.2.2.pwconv1.bias"
    """
    matcher, forms = _compiled(source)
    match = matcher.fullmatch(name)
    if match is None:
        return None
    indices = {}
    for symbol, factor, offset in forms:
        index, rest = divmod(int(match[symbol]) - offset, factor)
        if rest or index < 0:
            return None
        indices[symbol] = index
    filled = _PLACEHOLDER.sub(
        lambda m: str(int(m[1] or 1) * indices[m[2]] + int(m[3] or 0)), target
    )
    return filled + (match["leaf"] or "")


def to_layout(names: Iterable[str], layout: Layout) -> dict[str, str]:
    """Return the name of each of our tensors in a layout; names without a row are left out."""
    found = ((name, _first(name, layout.rows.items())) for name in names)
    return {ours: theirs for ours, theirs in found if theirs is not None}


def recognize(names: Iterable[str], layouts: Iterable[Layout] = LAYOUTS) -> Recognition:
    """Read the names of a file by the table that knows most of them."""
    names = list(names)
    return max((_read(names, layout) for layout in layouts), key=lambda r: len(r.names))


def bare(name: str) -> str:
    """Return a name without the wrappers around the network (`module.`, `backbone.`, ...)."""
    while wrapper := next((w for w in WRAPPERS if name.startswith(w)), None):
        name = name.removeprefix(wrapper)
    return name


def _read(names: list[str], layout: Layout) -> Recognition:
    rows = [(bare(theirs), ours) for ours, theirs in layout.rows.items()]
    roots = {_root(theirs) for theirs, ours in rows if not ours.startswith("head.")}
    known: dict[str, str] = {}
    unknown, extra = [], []
    for name in names:
        ours = _first(bare(name), rows)
        if ours is not None and ours not in known.values():
            known[name] = ours
        elif _root(bare(name)) in roots and bare(name).split(".")[0] not in layout.ignored:
            unknown.append(name)
        else:
            extra.append(name)
    return Recognition(layout=layout, names=known, unknown=tuple(unknown), extra=tuple(extra))


def _first(name: str, rows: Iterable[tuple[str, str]]) -> str | None:
    return next((new for row in rows if (new := rename(name, *row)) is not None), None)


def _root(name: str) -> str:
    """Return the first component without its number: `layer` of `layer{s+1}.0` and `layer3.0`."""
    return re.sub(r"\{.*?\}|\d+", "", name.split(".")[0])


@cache
def _compiled(row: str) -> tuple[re.Pattern[str], tuple[tuple[str, int, int], ...]]:
    """Return a row as a regular expression, and (symbol, factor, offset) per placeholder."""
    expression, forms, end = "", [], 0
    for match in _PLACEHOLDER.finditer(row):
        expression += re.escape(row[end : match.start()]) + rf"(?P<{match[2]}>\d+)"
        forms.append((match[2], int(match[1] or 1), int(match[3] or 0)))
        end = match.end()
    expression += re.escape(row[end:])
    # A layer scale is a single tensor; every other row is a module.
    single = row.endswith(("gamma", "layer_scale", "layer_scale_parameter"))
    leaf = r"(?P<leaf>)" if single else rf"(?P<leaf>\.(?:{'|'.join(_LEAVES)}))"
    return re.compile(expression + leaf), tuple(forms)
