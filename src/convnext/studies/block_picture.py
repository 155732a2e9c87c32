"""The picture of a block: its three rows as they run, drawn from `block_rows`."""

from __future__ import annotations

from dataclasses import fields
from html import escape

from convnext.models.blocks import Row, block_rows
from convnext.models.config import NetworkConfig

WIDTH, ROW, GAP, TOP = 340, 34, 12, 34
LEFT, RIGHT = 46, 214


def block_svg(config: NetworkConfig, before: NetworkConfig | None = None) -> str:
    """Return a block of the first stage as SVG in the colours of a page.

    Args:
        config: The network.
        before: The network that it departs from; rows that it does not have are marked.
    """
    rows = _rows(config)
    old = {row.name: _words(row) for row in _rows(before)} if before else {}
    order = [row.name for row in _rows(before)] if before else []
    parts = []
    for i, row in enumerate(rows):
        label, tags = _words(row)
        moved = before is not None and order[i] != row.name
        changed = before is not None and (moved or old.get(row.name) != (label, tags))
        parts.append(_box(TOP + i * (ROW + GAP), label, tags, changed=changed))
    bottom = TOP + 3 * (ROW + GAP)
    after = "act" if config.acts == "every" else ""
    scale = f"{config.layer_scale_init:g}" if config.layer_scale_init else ""
    scale_is_new = bool(scale) and before is not None and not before.layer_scale_init
    height = bottom + 26
    middle = (LEFT + RIGHT) // 2
    spoken = f"Block: {'; '.join(_spoken(row) for row in rows)}"
    lines = [
        f'<path d="M{middle} 8V{TOP}M{middle} {bottom - GAP}V{height - 4}" class="flow"/>',
        f'<path d="M{middle} 16H16V{bottom + 6}H{middle - 9}" class="flow"/>',
        f'<circle cx="{middle}" cy="{bottom + 6}" r="9" class="sum"/>',
        f'<text x="{middle}" y="{bottom + 10}" text-anchor="middle">+</text>',
        f'<text x="{middle + 16}" y="{bottom + 10}" class="tag">{after}</text>',
    ]
    if scale:
        kind = "tag changed" if scale_is_new else "tag"
        lines.append(
            f'<text x="{RIGHT + 8}" y="{bottom + 10}" class="{kind}">layer scale {scale}</text>'
        )
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" class="block" role="img" '
        f'aria-label="{escape(spoken)}">{"".join(lines)}{"".join(parts)}</svg>'
    )


def changed_fields(config: NetworkConfig, before: NetworkConfig) -> list[tuple[str, str, str]]:
    """Return (field, value before, value now) of every field that differs."""
    found = []
    for f in fields(NetworkConfig):
        old, new = getattr(before, f.name), getattr(config, f.name)
        if old != new:
            found.append((f.name, _plain(old), _plain(new)))
    return found


def _rows(config: NetworkConfig) -> tuple[Row, Row, Row]:
    return block_rows(config, in_dim=config.stage_dims[0], dim=config.dims[0])


def _words(row: Row) -> tuple[str, str]:
    """Return what a row computes, and what follows it."""
    side = f"{row.kernel_size}x{row.kernel_size}"
    if row.groups > 1:
        label = f"depthwise {side}, {row.out_dim}"
    else:
        label = f"{side}, {row.in_dim} → {row.out_dim}"
    tags = [name for name, there in (("norm", row.norm), ("act", row.act)) if there]
    return label, " ".join(tags)


def _box(y: int, label: str, tags: str, *, changed: bool) -> str:
    kind = ' class="changed"' if changed else ""
    return (
        f'<g{kind}><rect x="{LEFT}" y="{y}" width="{RIGHT - LEFT}" height="{ROW}" rx="6"/>'
        f'<text x="{(LEFT + RIGHT) // 2}" y="{y + 22}" text-anchor="middle">{label}</text>'
        f'<text x="{RIGHT + 8}" y="{y + 22}" class="tag">{tags}</text></g>'
    )


def _spoken(row: Row) -> str:
    label, tags = _words(row)
    return f"{label.replace('x', ' by ').replace('→', 'to')}{', ' + tags if tags else ''}"


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
