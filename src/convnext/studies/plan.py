"""What a study compares: entries, seeds and the one recipe, chosen once and saved as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from convnext.atomic import write_text
from convnext.names import portable_name
from convnext.recipes.recipe import change_recipe, flatten, recipe_from_dict, to_dict
from convnext.recipes.schema import Recipe, ResolvedRecipe
from convnext.tasks import task_class
from convnext.tasks.base import Task

# Evaluations of a run, so that its curve has a shape.
EVALUATIONS = 10
# Settings that say where a run executes, and not what it is.
WHERE = ("run.device", "loader.workers")
Kind = Literal["roadmap", "ablate", "compare"]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What the paper reports of a network, on ImageNet-1K at 224; None where it does not."""

    name: str = ""
    top1: float | None = None
    top1_std: float | None = None
    gmacs: float | None = None
    images_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One network of a study."""

    name: str
    what: str
    group: str
    model: str
    """A name that `create_model` knows."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Leaves of the recipe that are its own, such as `network.stem_stride`."""
    pins: Mapping[str, Any] = field(default_factory=dict)
    """Leaves that it has where the recipe of all leaves them to `auto`."""
    departs_from: str = ""
    runs_as: str = ""
    """The entry whose runs it shares; "" for its own."""
    kept: bool = True
    paper: Paper = Paper()

    @property
    def own_name(self) -> str:
        """The entry whose runs these are."""
        return self.runs_as or self.name

    @property
    def folder_name(self) -> str:
        """Its name as a folder."""
        kept = "".join(c if c.isalnum() or c in "-_.=," else "_" for c in self.own_name)
        return portable_name(kept)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Entries, seeds, and the recipe that all of them share."""

    kind: Kind
    title: str
    entries: Sequence[Entry]
    seeds: Sequence[int]
    recipe: Recipe
    """The resolved recipe, except the settings that belong to a network."""
    regime: str = ""
    threads: int = 0
    """CPU threads of a run; 0 leaves it to torch. The last bits of a run depend on it."""
    minutes: float = 0.0
    """Equal training time of all entries; 0 where they have equal epochs."""
    data: str = ""
    """The fingerprint of the data."""
    command: str = ""
    """The command line that made the study."""

    def recipe_of(self, entry: Entry, seed: int) -> Recipe:
        """Return the recipe of one run."""
        leaves = dict(flatten(self.recipe))
        pins = {name: value for name, value in entry.pins.items() if leaves[name] == "auto"}
        changes = pins | dict(entry.changes)
        if "network.changes" in changes:
            changes["network.changes"] = leaves["network.changes"] | changes["network.changes"]
        own = change_recipe(self.recipe, changes)
        return replace(own, model=entry.model, run=replace(own.run, seed=seed))

    def run_folder(self, root: Path, entry: Entry, seed: int) -> Path:
        """Return where a run lies under the folder of the study."""
        return root / "runs" / entry.folder_name / f"seed-{seed}"

    def identity(self, entry: Entry) -> str:
        """Return what tells the runs of an entry from those of any other, whatever its name.

        Settings that have their default do not count, so that a study outlives new settings.
        """
        usual = dict(flatten(type(self.recipe)()))
        leaves = flatten(self.recipe_of(entry, 0))
        own = {n: v for n, v in leaves if n not in WHERE and v != usual[n]}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]

    def own_entries(self) -> list[Entry]:
        """Return the entries that have runs of their own."""
        return [entry for entry in self.entries if not entry.runs_as]

    def write(self, root: Path) -> None:
        """Write study.json, from which the study resumes and its page is made."""
        tree = asdict(self) | {"recipe": to_dict(self.recipe)}
        write_text(root / "study.json", json.dumps(tree, indent=1) + "\n")


def read_study(root: Path) -> Study:
    """Read study.json.

    Raises:
        ValueError: If the folder is not one of a study.
    """
    try:
        tree = json.loads((root / "study.json").read_text(encoding="utf-8"))
        entries = [Entry(**e | {"paper": Paper(**e["paper"])}) for e in tree.pop("entries")]
        recipe = recipe_from_dict(tree.pop("recipe"), where=str(root / "study.json"))
        return Study(**tree, entries=entries, recipe=recipe)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{root} is not the folder of a study: {error}") from error


# A study measures the networks, not what the moving average or a growing image adds: the paper's
# roadmap has neither.
DEFAULTS: Mapping[str, Any] = {"ema.decay": 0.0, "schedule.progressive": False}
# What published weights were made for, as far as it is not the size of the images.
WEIGHTS_SETTINGS = ("mean", "std", "interpolation", "crop_pct")
# What equal time gives to each network.
TIME_SETTINGS = ("schedule.epochs", "schedule.warmup_epochs", "run.eval_every")
STAND_IN = "roadmap/resnet50/separate_downsampling"


def resolve_study(
    asked: Study,
    root: Path,
    device: torch.device,
    console: Console,
    given: Collection[str] = (),
) -> tuple[Study, Task]:
    """Return the plan of a new or resumed study, and its opened task.

    `given` are the recipe settings that were set explicitly.

    Raises:
        ValueError: If the data cannot be used, or the folder was begun with something else.
    """
    kind = task_class(asked.recipe.task)
    if not (root / "study.json").exists():
        task = kind.open(representative_recipe(asked.recipe, asked.entries), device, console)
        resolved = for_all(task.recipe, asked.recipe, asked.entries)
        return replace(asked, recipe=resolved, data=task.fingerprint), task
    before = read_study(root)
    resolved = resume_recipe(before.recipe, asked.recipe, given, root)
    task = kind.open(replace(resolved, model=stand_in(resolved)), device, Console(quiet=True))
    for name, old, new in (
        ("the data", before.data, task.fingerprint),
        ("--minutes", before.minutes, asked.minutes),
        ("a study of the kind", before.kind, asked.kind),
        ("--regime", before.regime, asked.regime),
    ):
        if old != new:
            raise ValueError(
                f"{root} was begun with {name} {old}, not {new}; take another --output"
            )
    plan = replace(asked, recipe=resolved, threads=before.threads, data=before.data)
    return replace(plan, entries=_known_entries(before, plan, root)), task


def representative_recipe(recipe: Recipe, entries: Sequence[Entry]) -> Recipe:
    """Return the recipe by which `auto` is asked: that of one network, for all of them.

    ConvNeXt-T stands for all, whatever they are, so that a study that is extended by another
    network still has the same recipe. If all of them start from weights, the first one stands for
    them: fine-tuning has other settings than training from scratch.
    """
    leaves = dict(flatten(recipe))
    unset = {name: value for name, value in DEFAULTS.items() if leaves.get(name) == "auto"}
    # The regimes of the road differ in their stochastic depth.
    model = entries[0].model if entries[0].model.startswith("roadmap/") else stand_in(recipe)
    recipe = change_recipe(replace(recipe, model=model), unset)
    if all(map(starts_from_weights, entries)):
        first = entries[0]
        recipe = replace(recipe, model=first.model, weights=str(first.changes["weights"]))
    return recipe


def stand_in(recipe: Recipe) -> str:
    """Return the network that stands for all of a study, for a task."""
    return task_class(recipe.task).default_prefix() + STAND_IN


def for_all(resolved: ResolvedRecipe, asked: Recipe, entries: Sequence[Entry]) -> Recipe:
    """Return a resolved recipe without what belongs to one network, evaluated often enough."""
    # Stochastic depth is one number for all; timm's networks have defaults of their own.
    network = replace(asked.network, drop_path_rate=resolved.network.drop_path_rate)
    changes: dict[str, Any] = {"model": "auto", "weights": "none", "network": network}
    if any(map(starts_from_weights, entries)):
        # Weights know what their images looked like; all else is the same for all.
        own = {name: value for name, value in vars(asked.input).items() if name in WEIGHTS_SETTINGS}
        changes["input"] = replace(resolved.input, **own)
    if asked.run.eval_every == "auto":
        every = max(1, round(resolved.schedule.epochs / EVALUATIONS))
        changes["run"] = replace(resolved.run, eval_every=every)
    return replace(resolved, **changes)


def starts_from_weights(entry: Entry) -> bool:
    """Return whether a network is fine-tuned."""
    return bool(entry.changes.get("weights", "none") != "none")


def resume_recipe(before: Recipe, asked: Recipe, given: Collection[str], root: Path) -> Recipe:
    """Return the recipe of a resumed study.

    Args:
        before: The recipe that it started with.
        asked: The recipe that is requested now.
        given: The settings that were set explicitly; others keep their values.
        root: The folder of the study.

    Raises:
        ValueError: If what is asked for is not what the study began with.
    """
    old, default = dict(flatten(before)), dict(flatten(type(before)()))
    free = {"run.seed", "model", "data", "weights"}
    for name, value in flatten(asked):
        if name in free or value == "auto" or (name not in given and value == default[name]):
            continue
        if _plain(value) != _plain(old[name]):
            raise ValueError(
                f"{root} was begun with {name} {old[name]}, not {value}; runs of another recipe "
                "need another --output"
            )
    if _place(asked.data) != _place(before.data):
        raise ValueError(f"{root} was begun on {before.data}; other data need another --output")
    return before


def _place(data: str) -> str:
    return str(Path(data).resolve()) if Path(data).exists() else data


def _known_entries(before: Study, plan: Study, root: Path) -> list[Entry]:
    """Return the entries of a plan, those that were there before with the epochs they had."""
    old = {entry.name: entry for entry in before.entries}
    entries = []
    for entry in plan.entries:
        other = old.get(entry.name)
        if other is None:
            entries.append(entry)
            continue
        had = dict(other.changes)
        # Its schedule for equal time was resolved together with the others.
        timed = {n: v for n, v in had.items() if plan.minutes and n in TIME_SETTINGS}
        now = _listed(entry.changes) | timed
        if (other.model, had) != (entry.model, now):
            raise ValueError(
                f"{entry.name} was another network when {root} was begun; take another --output"
            )
        entries.append(replace(entry, changes=now))
    return entries


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _listed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes as JSON gives them back."""
    return dict(json.loads(json.dumps(dict(changes))))
