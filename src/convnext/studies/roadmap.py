"""Roadmap studies: train its steps, or vary one decision at one step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from convnext.models.config import NetworkConfig, change
from convnext.models.roadmap import Rung, kept_rungs, roadmap
from convnext.names import nearest
from convnext.recipes.recipe import all_settings, change_recipe
from convnext.recipes.schema import Recipe
from convnext.studies.plan import Entry, Paper

# Fields that depend on the data, where a trained step may differ from its definition.
CHOSEN_BY_DATA = {"stem_stride", "drop_path_rate"}
NOT_VARIED = {
    "num_classes": "it follows from the data",
    "in_chans": "it follows from the images",
    "run.seed": "use --seeds instead",
    "model": "use convnext compare instead",
    "weights": "use convnext compare instead",
    "data": "a study has one data set",
    "task": "a study has one task",
}


def choose_rungs(
    regime: str, *, names: Sequence[str] = (), first: str = "", last: str = ""
) -> list[Rung]:
    """Return the selected steps, in roadmap order.

    Args:
        regime: "resnet50", "resnet200" or "mini".
        names: The steps by name; if empty, all from `first` to `last`, both included.
        first: The first step; "" for the start of the roadmap.
        last: The last step; "" for the end of the roadmap.

    Raises:
        ValueError: If a name is unknown, or `names` is combined with `first` or `last`.
    """
    rungs = roadmap(regime)
    known = [rung.name for rung in rungs]
    for name in (*names, first or known[0], last or known[-1]):
        if name not in known:
            raise ValueError(f"the roadmap {regime} has no step {name!r}{nearest(name, known)}")
    if names and (first or last):
        raise ValueError("give either --rungs, or --from and --to")
    if names:
        return [rung for rung in rungs if rung.name in names]
    begin, end = known.index(first or known[0]), known.index(last or known[-1])
    if begin > end:
        raise ValueError(f"{first} comes after {last} in the roadmap")
    return list(rungs[begin : end + 1])


def roadmap_entries(regime: str, rungs: Sequence[Rung]) -> list[Entry]:
    """Return an entry for every step.

    All entries use the same recipe. The first two steps of the roadmap differ only in their recipe,
    so they share their runs if both are chosen.
    """
    kept = kept_rungs(roadmap(regime))
    chosen = {rung.name: rung for rung in rungs}
    entries: list[Entry] = []
    for rung in rungs:
        before = _nearest_before(rung, chosen, regime)
        same = [e for e in entries if chosen[e.own_name].config == rung.config]
        entries.append(
            Entry(
                name=rung.name,
                what=rung.what,
                group=rung.group,
                model=f"roadmap/{regime}/{rung.name}",
                departs_from=before,
                runs_as=same[0].own_name if same else "",
                kept=rung.name in kept,
                paper=paper_of(rung, regime),
            )
        )
    return entries


def paper_of(rung: Rung, regime: str) -> Paper:
    """Return the paper's figures for a step; for `mini`, those of the ResNet-50 regime."""
    name = {"resnet50": "ResNet-50 regime", "resnet200": "ResNet-200 regime"}
    return Paper(
        name=name.get(regime, "ResNet-50 regime"),
        top1=rung.paper_top1,
        top1_std=rung.paper_top1_std,
        gmacs=rung.paper_gmacs,
    )


def parse_decisions(decisions: Sequence[str], config: NetworkConfig) -> list[tuple[str, list[Any]]]:
    """Read `FIELD=a,b,c`, of the network or of the recipe (`optim.lr=1e-3,2e-3`).

    Raises:
        ValueError: If there is no such field, or a value is not valid for it.
    """
    known = [f.name for f in fields(NetworkConfig)]
    settings = all_settings()
    read: list[tuple[str, list[Any]]] = []
    for decision in decisions:
        name, equals, text = decision.partition("=")
        values: list[Any] = []
        for value in map(parse_value, split_list(text)):
            values += [] if value in values else [value]
        if name in (done for done, _ in read):
            raise ValueError(f"--ablate names {name} twice; give all its values at once")
        if name in NOT_VARIED:
            raise ValueError(f"{name} cannot be varied: {NOT_VARIED[name]}")
        if not equals or not values:
            raise ValueError(f"--ablate takes FIELD=VALUE,VALUE,..., not {decision!r}")
        if name not in known and name not in settings:
            raise ValueError(
                f"neither a network nor a recipe has a setting {name!r}"
                f"{nearest(name, [*known, *settings])}"
            )
        for value in values:
            if name in known:
                change(config, **{name: value})
        read.append((name, values))
    return read


def ablation(regime: str, at: str, decisions: Sequence[tuple[str, Sequence[Any]]]) -> list[Entry]:
    """Return the step unchanged, and every combination of the values that differs from it."""
    rung = next(rung for rung in roadmap(regime) if rung.name == at)
    model = f"roadmap/{regime}/{at}"
    base = Entry(
        name=at,
        what="as in the roadmap",
        group=rung.group,
        model=model,
        paper=paper_of(rung, regime),
    )
    entries = [base]
    for values in itertools.product(*(values for _, values in decisions)):
        changed = dict(zip((name for name, _ in decisions), values, strict=True))
        network = {n: v for n, v in changed.items() if "." not in n}
        settings = {n: v for n, v in changed.items() if "." in n}
        chosen_by_data = network.keys() & CHOSEN_BY_DATA
        same = change(rung.config, **network) == rung.config
        if same and not settings and not chosen_by_data:
            continue
        name = ",".join(f"{n}={show(v)}" for n, v in changed.items())
        entries.append(
            Entry(
                name=name,
                what=", ".join(f"{n} {show(v)}" for n, v in changed.items()),
                group="variant",
                model=model,
                changes=settings | ({"network.changes": network} if network else {}),
                departs_from=at,
                kept=False,
            )
        )
    if len(entries) == 1:
        raise ValueError(f"{at} has these values already; give others to --ablate")
    return entries


def pin_network(config: NetworkConfig) -> Mapping[str, Any]:
    """Return the recipe settings that keep a network of the family as in the paper.

    For training from scratch on small data, `auto` would choose batch norm and another stem.
    """
    return {
        "network.stem": config.stem,
        "network.norm": config.norm,
        "network.layer_scale_init": config.layer_scale_init,
    }


def split_list(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[({") - (letter in "])}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def parse_value(text: str) -> Any:
    """Read a value as YAML does, but also accept 1e-6 as a number."""
    import yaml

    try:
        return float(text) if _is_exponent(text) else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r} is not a value: {' '.join(str(error).split())}") from error


def show(value: Any) -> str:
    """Format a value without spaces and brackets, for use in a folder name."""
    if isinstance(value, list | tuple):
        return "-".join(map(show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def check_settings(recipe: Recipe, entries: Sequence[Entry]) -> None:
    """Check that the changes of the entries are valid in the recipe.

    Raises:
        ValueError: If a change is not valid.
    """
    from convnext.recipes.recipe import check_ranges, recipe_from_dict, to_dict

    names = [entry.name for entry in entries]
    folders = [entry.folder_name.casefold() for entry in entries if not entry.runs_as]
    for called in (names, folders):
        twice = sorted({name for name in called if called.count(name) > 1})
        if twice:
            raise ValueError(f"two networks are called {twice[0]!r}; give them different labels")
    for entry in entries:
        changed = change_recipe(recipe, dict(entry.changes))
        check_ranges(recipe_from_dict(to_dict(changed), where=entry.name))


def _nearest_before(rung: Rung, chosen: Mapping[str, Rung], regime: str) -> str:
    """Return the nearest chosen step before a step, skipping those that were left out."""
    every = {r.name: r for r in roadmap(regime)}
    name = rung.departs_from
    while name not in chosen and name != every[name].departs_from:
        name = every[name].departs_from
    return name if name in chosen and name != rung.name else ""


def _is_exponent(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "e" in text.lower()
