"""The page of a study, made from the table, the plan and the run folders.

For every network it shows its block, and the changes against the network before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from html import escape
from pathlib import Path
from typing import Any

from convnext.models.blocks import Row, block_rows
from convnext.models.config import NetworkConfig, change
from convnext.recipes.recipe import Recipe, flatten
from convnext.reports import page as pages
from convnext.reports.page import draw_curves, duration, inline_svg
from convnext.studies.compare import FINISHED, Result, read_results
from convnext.studies.figures import write_figures
from convnext.studies.plan import Entry, Study, read_study
from convnext.studies.roadmap_figure import GROUPS
from convnext.studies.statistics import (
    Summary,
    correlate,
    difference,
    mean_and_std,
    notes,
    shorten,
    summarize,
)
from convnext.tasks import task_of_metric
from convnext.tasks.figures import Curve, save_bytes
from convnext.training.log import read_metrics

TITLES = {
    "top1_macs": "Accuracy against multiply-accumulates",
    "top1_throughput": "Accuracy against measured speed",
    "top1_params": "Accuracy against parameters",
}
SEED_COLORS = ("#1f66b5", "#e8710a", "#009e73", "#b8558a", "#667080", "#c77b00")


def write_page(root: Path) -> Path:
    """Write report.html and the figures into the folder of a study; return the page's path.

    Raises:
        ValueError: If the folder does not hold a study and its table.
    """
    plan, results = read_study(root), read_results(root / "results.csv")
    summaries = summarize(results)
    drawn = write_figures(root)
    facts = json.loads((root / "results.json").read_text(encoding="utf-8"))
    finished = sum(result.state == FINISHED for result in results)
    return pages.write_page(
        root / "report.html",
        "study.html.jinja",
        title=plan.title,
        headline=_headline(plan, results, facts),
        reading=reading(summaries),
        notes=notes(results).split("\n"),
        finished=finished,
        staircase=inline_svg(drawn["staircase"], "staircase", _spoken(summaries)),
        scatters=[
            {"title": title, "svg": inline_svg(drawn[name], name, f"{title}; numbers below.")}
            for name, title in TITLES.items()
            if name in drawn
        ],
        rows=[_row(summary) for summary in summaries],
        score=summaries[0].first.metric_label,
        has_paper=any(s.first.paper_top1 is not None for s in summaries),
        has_speed=any(s.first.infer_images_per_s is not None for s in summaries),
        entries=[_story(root, plan, summary, number) for number, summary in enumerate(summaries)],
        command=plan.command,
        environment=_environment(facts),
    )


def reading(summaries: Sequence[Summary]) -> list[str]:
    """Summarize the results in plain sentences."""
    measured = [s for s in summaries if s.estimate is not None]
    if not measured:
        return ["No run has finished yet."]
    said = []
    compared = [s for s in measured if s.comparison and s.comparison.words != "the same network"]
    for words in ("better", "worse"):
        seen = [s for s in compared if s.comparison and s.comparison.words == words]
        seen.sort(key=lambda s: -abs(_mean_difference(s)))
        if seen:
            named = ", ".join(f"{_called(s)} ({_mean_difference(s):+.2f})" for s in seen)
            said.append(f"{words.capitalize()} beyond the variation over seeds: {named}.")
    unseen = [s for s in compared if s.comparison and s.comparison.words == "no difference seen"]
    if unseen:
        said.append(f"No difference seen: {', '.join(map(_called, unseen))}.")
    if any(s.comparison and s.comparison.words == "one seed" for s in compared):
        said.append("With one seed, differences may be due to chance.")
    best = max(measured, key=lambda s: s.estimate.mean if s.estimate else 0)
    said.append(f"Highest: {_called(best)}, {mean_and_std(best.estimate)} %.")
    found = correlate(summaries)
    if found is not None:
        said.append(
            f"Rank correlation with the paper's accuracies over {found.count} networks: "
            f"{found.spearman:+.2f} (Spearman; 1 is the same order, 0 no correlation)."
        )
    lost = [s for s in summaries if s.estimate is None]
    if lost:
        said.append(f"No results yet for {', '.join(map(_called, lost))}.")
    return said


def network_of(entry: Entry, recipe: Recipe | None = None) -> NetworkConfig | None:
    """Return the configuration of a ConvNeXt network under a recipe; None for timm models."""
    from convnext.models.factory import network_configs

    config = network_configs().get(entry.model)
    if config is None:
        return None
    known = set(NetworkConfig.__dataclass_fields__)
    asked = dict(flatten(recipe or Recipe()))
    changes = asked["network.changes"] | dict(entry.changes.get("network.changes", {}))
    pins = {name: value for name, value in entry.pins.items() if asked[name] == "auto"}
    for name, value in (asked | pins | dict(entry.changes)).items():
        leaf = name.removeprefix("network.")
        if name.startswith("network.") and leaf in known and value != "auto":
            changes[leaf] = value
    return change(config, **changes)


def _headline(
    plan: Study, results: Sequence[Result], facts: Mapping[str, Any]
) -> list[tuple[str, str]]:
    spent = sum(result.seconds or 0 for result in results if result.runs_as == result.entry)
    finished = sum(result.state == FINISHED for result in results)
    sizes = {result.image_size for result in results if result.image_size}
    epochs = sorted({result.epochs for result in results if result.epochs})
    said = [
        ("data", Path(plan.recipe.data).name or plan.recipe.data),
        ("networks", str(len(plan.entries))),
        ("seeds", str(len(plan.seeds))),
        ("runs", f"{finished} of {len(results)}"),
        ("training time", duration(spent)),
    ]
    if epochs:
        few = f"{epochs[0]:g}" + (f" to {epochs[-1]:g}" if len(epochs) > 1 else "")
        said.append(("epochs", few))
    if len(sizes) == 1:
        said.append(("pixels", str(sizes.pop())))
    return said


def _row(summary: Summary) -> dict[str, str]:
    first, estimate = summary.first, summary.estimate
    interval = ""
    if estimate is not None and estimate.low is not None:
        interval = f"{estimate.low:.2f} to {estimate.high:.2f}"
    states = sorted({state for state in summary.states.values() if state != FINISHED})
    return {
        "name": first.entry,
        "what": first.what,
        "color": GROUPS.get(first.group, GROUPS["other"])[1],
        "params": shorten(first.params) if first.params else "",
        "macs": shorten(first.macs) if first.macs else "",
        "train": f"{first.train_images_per_s:,.0f}" if first.train_images_per_s else "",
        "infer": f"{first.infer_images_per_s:,.0f}" if first.infer_images_per_s else "",
        "memory": f"{first.train_memory / 1e6:,.0f}" if first.train_memory else "",
        "infer_memory": f"{first.infer_memory / 1e6:,.0f}" if first.infer_memory else "",
        "score": mean_and_std(estimate) or ", ".join(states),
        "interval": interval,
        "difference": difference(summary),
        "words": summary.comparison.words if summary.comparison else "",
        "paper": f"{first.paper_top1:.2f}" if first.paper_top1 is not None else "",
        "reasons": "; ".join(summary.reasons),
    }


def _story(root: Path, plan: Study, summary: Summary, number: int) -> dict[str, Any]:
    """Return the content of the page for one network."""
    entries = {entry.name: entry for entry in plan.entries}
    entry = entries[summary.first.entry]
    config = network_of(entry, plan.recipe)
    base = entries.get(entry.departs_from)
    before = network_of(base, plan.recipe) if base else None
    changed = changed_fields(config, before) if config and before else []
    changed += [
        (name, str(_asked(plan, name)), str(value))
        for name, value in entry.changes.items()
        if not name.startswith("network.")
    ]
    folders = {seed: plan.run_folder(root, entry, seed) for seed in plan.seeds}
    return {
        "id": f"network-{number}",
        "group": GROUPS.get(entry.group, GROUPS["other"])[0],
        "row": _row(summary),
        "same_as": "" if entry.own_name == entry.name else entry.own_name,
        "against": summary.comparison.to if summary.comparison else "",
        "block": block_svg(config, before) if config else "",
        "changed": changed,
        "curves": _curves(folders, f"curve-{number}", summary.first.metric),
        "links": [
            (seed, (folder / "report.html").relative_to(root).as_posix())
            for seed, folder in folders.items()
            if (folder / "report.html").is_file()
        ],
    }


def _asked(plan: Study, name: str) -> Any:
    """Return the value in the shared recipe of a setting that an entry changes."""
    return dict(flatten(plan.recipe)).get(name, "")


def _curves(folders: Mapping[int, Path], name: str, metric: str) -> str:
    """Draw the metric over the images seen, a line per seed; "" if nothing was evaluated."""
    curves = []
    for i, (seed, folder) in enumerate(folders.items()):
        path = folder / "metrics.jsonl"
        rows = read_metrics(path) if path.is_file() else []
        points = [
            (row["images"], row[metric])
            for row in rows
            if row["kind"] == "val" and row.get("weights") == "model"
        ]
        if points:
            x, y = zip(*points, strict=True)
            color = SEED_COLORS[i % len(SEED_COLORS)]
            curves.append(Curve(label=f"seed {seed}", x=x, y=y, color=color))
    if not curves:
        return ""
    label = task_of_metric(metric).metrics()[metric]
    figure = draw_curves(curves, label=f"{label}, %")
    return inline_svg(
        save_bytes(figure, "svg").decode(),
        name,
        f"{label} of every seed.",
    )


def _environment(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in facts.get("environment", {}).items()]


def _spoken(summaries: Sequence[Summary]) -> str:
    label = summaries[0].first.metric_label.capitalize()
    parts = [f"{_called(s)} {mean_and_std(s.estimate)}" for s in summaries if s.estimate]
    return f"{label} in percent: " + "; ".join(parts) if parts else "No run has finished yet."


def _called(summary: Summary) -> str:
    return summary.first.what if summary.first.study == "roadmap" else summary.first.entry


def _mean_difference(summary: Summary) -> float:
    return summary.comparison.difference.mean if summary.comparison else 0.0


WIDTH, ROW, GAP, TOP = 340, 34, 12, 34
LEFT, RIGHT = 46, 214


def block_svg(config: NetworkConfig, before: NetworkConfig | None = None) -> str:
    """Draw a block of the first stage as SVG in the colors of a page.

    Args:
        config: The network.
        before: The previous network; rows that it does not have are marked.
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
    spoken = f"Block: {'; '.join(_alt_of(row) for row in rows)}"
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
    """Return (field, old value, new value) for every field that differs."""
    found = []
    for f in fields(NetworkConfig):
        old, new = getattr(before, f.name), getattr(config, f.name)
        if old != new:
            found.append((f.name, _plain(old), _plain(new)))
    return found


def _rows(config: NetworkConfig) -> tuple[Row, Row, Row]:
    return block_rows(config, in_dim=config.stage_dims[0], dim=config.dims[0])


def _words(row: Row) -> tuple[str, str]:
    """Return the operation of a row, and the layers that follow it."""
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


def _alt_of(row: Row) -> str:
    label, tags = _words(row)
    return f"{label.replace('x', ' by ').replace('→', 'to')}{', ' + tags if tags else ''}"


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
