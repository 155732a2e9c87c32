"""The plan of a study: entries, seeds and a common recipe, resolved once and saved as data."""

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
from convnext.data.contents import changes, read_contents
from convnext.names import portable_name
from convnext.recipes.recipe import change_recipe, flatten, recipe_from_dict, to_dict
from convnext.recipes.schema import Recipe, ResolvedRecipe
from convnext.tasks import task_class
from convnext.tasks.base import Task

# Minimum number of evaluations of a run, for a meaningful curve.
EVALUATIONS = 10
# Settings that determine where a run executes, not its result.
WHERE = ("run.device", "loader.workers")
Kind = Literal["roadmap", "ablate", "compare"]


@dataclass(frozen=True, kw_only=True)
class Paper:
    """The paper's figures for a network, on ImageNet-1K at 224; None if it has none."""

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
    """Recipe settings of this entry only, such as `network.stem_stride`."""
    pins: Mapping[str, Any] = field(default_factory=dict)
    """Settings of this entry that apply if the common recipe leaves them at `auto`."""
    departs_from: str = ""
    runs_as: str = ""
    """The entry whose runs it shares; "" if it has its own."""
    kept: bool = True
    paper: Paper = Paper()

    @property
    def own_name(self) -> str:
        """The name of the entry that its runs belong to."""
        return self.runs_as or self.name

    @property
    def folder_name(self) -> str:
        """Its name as a folder name."""
        kept = "".join(c if c.isalnum() or c in "-_.=," else "_" for c in self.own_name)
        return portable_name(kept)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Entries, seeds, and the common recipe."""

    kind: Kind
    title: str
    entries: Sequence[Entry]
    seeds: Sequence[int]
    recipe: Recipe
    """The resolved recipe, except the settings that belong to one network."""
    regime: str = ""
    threads: int = 0
    """CPU threads of a run; 0 for torch's default. The last bits of a run depend on it."""
    minutes: float = 0.0
    """Training time of every entry; 0 for equal epochs."""
    data: str = ""
    """The fingerprint of the data."""
    command: str = ""
    """The command line that created the study."""

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
        """Return the folder of a run."""
        return root / "runs" / entry.folder_name / f"seed-{seed}"

    def identity(self, entry: Entry) -> str:
        """Return a text that identifies the network and recipe of an entry, regardless of its name.

        Settings at their default are left out, so that new settings do not invalidate a study.
        """
        usual = dict(flatten(type(self.recipe)()))
        leaves = flatten(self.recipe_of(entry, 0))
        own = {n: v for n, v in leaves if n not in WHERE and v != usual[n]}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]

    def own_entries(self) -> list[Entry]:
        """Return the entries that have their own runs."""
        return [entry for entry in self.entries if not entry.runs_as]

    def write(self, root: Path) -> None:
        """Write study.json, from which the study resumes and its page is written."""
        tree = asdict(self) | {"recipe": to_dict(self.recipe)}
        write_text(root / "study.json", json.dumps(tree, indent=1) + "\n")


def read_study(root: Path) -> Study:
    """Read study.json.

    Raises:
        ValueError: If the folder does not contain a study.
    """
    try:
        tree = json.loads((root / "study.json").read_text(encoding="utf-8"))
        entries = [Entry(**e | {"paper": Paper(**e["paper"])}) for e in tree.pop("entries")]
        recipe = recipe_from_dict(tree.pop("recipe"), where=str(root / "study.json"))
        return Study(**tree, entries=entries, recipe=recipe)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{root} is not the folder of a study: {error}") from error


# A study measures networks without moving average or progressive resizing: the paper's roadmap uses
# neither.
DEFAULTS: Mapping[str, Any] = {"ema.decay": 0.0, "schedule.progressive": False}
# Preprocessing that follows from published weights, except the image size.
WEIGHTS_SETTINGS = ("mean", "std", "interpolation", "crop_pct")
# Settings that differ between networks with equal training time.
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
        ValueError: If the data cannot be used or has changed, or the folder holds a different
            study.
    """
    kind = task_class(asked.recipe.task)
    if not (root / "study.json").exists():
        task = kind.open(representative_recipe(asked.recipe, asked.entries), device, console)
        resolved = common_recipe(task.recipe, asked.recipe, asked.entries)
        return replace(asked, recipe=resolved, data=task.fingerprint), task
    before = read_study(root)
    resolved = resume_recipe(before.recipe, asked.recipe, given, root)
    task = kind.open(
        replace(resolved, model=representative_model(resolved)), device, Console(quiet=True)
    )
    for name, old, new in (
        ("the data", before.data, task.fingerprint),
        ("--minutes", before.minutes, asked.minutes),
        ("a study of the kind", before.kind, asked.kind),
        ("--regime", before.regime, asked.regime),
    ):
        if old != new:
            raise ValueError(
                f"{root} was started with {name} {old}, not {new}; choose another --output"
            )
    known = read_contents(root)
    changed = () if known is None else changes(known, task.contents())
    if changed:
        raise ValueError(
            f"{root} was started with other data under the same names: {'; '.join(changed)}; "
            "choose another --output"
        )
    plan = replace(asked, recipe=resolved, threads=before.threads, data=before.data)
    return replace(plan, entries=_known_entries(before, plan, root)), task


def representative_recipe(recipe: Recipe, entries: Sequence[Entry]) -> Recipe:
    """Return the recipe that `auto` settings are resolved with: that of a representative network.

    The representative is ConvNeXt-T, regardless of the entries, so that the recipe stays the same
    when a study is extended. If all entries start from weights, it is the first one, because
    fine-tuning needs other settings than training from scratch.
    """
    leaves = dict(flatten(recipe))
    unset = {name: value for name, value in DEFAULTS.items() if leaves.get(name) == "auto"}
    # The regimes of the roadmap differ in stochastic depth.
    model = (
        entries[0].model
        if entries[0].model.startswith("roadmap/")
        else representative_model(recipe)
    )
    recipe = change_recipe(replace(recipe, model=model), unset)
    if all(map(starts_from_weights, entries)):
        first = entries[0]
        recipe = replace(recipe, model=first.model, weights=str(first.changes["weights"]))
    return recipe


def representative_model(recipe: Recipe) -> str:
    """Return the representative network of a study."""
    return task_class(recipe.task).default_prefix() + STAND_IN


def common_recipe(resolved: ResolvedRecipe, asked: Recipe, entries: Sequence[Entry]) -> Recipe:
    """Return a resolved recipe without settings of one network, and with enough evaluations."""
    # All networks have the same stochastic depth rate; timm models would have other defaults.
    network = replace(asked.network, drop_path_rate=resolved.network.drop_path_rate)
    changes: dict[str, Any] = {"model": "auto", "weights": "none", "network": network}
    if any(map(starts_from_weights, entries)):
        # Preprocessing follows from the weights; everything else is common.
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
        ValueError: If the recipe differs from the one that the study started with.
    """
    old, default = dict(flatten(before)), dict(flatten(type(before)()))
    free = {"run.seed", "model", "data", "weights"}
    for name, value in flatten(asked):
        if name in free or value == "auto" or (name not in given and value == default[name]):
            continue
        if _plain(value) != _plain(old[name]):
            raise ValueError(
                f"{root} was started with {name} {old[name]}, not {value}; another recipe needs "
                "another --output"
            )
    if _place(asked.data) != _place(before.data):
        raise ValueError(f"{root} was started on {before.data}; other data need another --output")
    return before


def _place(data: str) -> str:
    return str(Path(data).resolve()) if Path(data).exists() else data


def _known_entries(before: Study, plan: Study, root: Path) -> list[Entry]:
    """Return the entries of a plan; entries from before keep their epochs."""
    old = {entry.name: entry for entry in before.entries}
    entries = []
    for entry in plan.entries:
        other = old.get(entry.name)
        if other is None:
            entries.append(entry)
            continue
        had = dict(other.changes)
        # Its epochs for equal training time were computed with the other entries.
        timed = {n: v for n, v in had.items() if plan.minutes and n in TIME_SETTINGS}
        now = _listed(entry.changes) | timed
        if (other.model, had) != (entry.model, now):
            raise ValueError(
                f"{entry.name} was another network when {root} was started; choose another --output"
            )
        entries.append(replace(entry, changes=now))
    return entries


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _listed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes as they are after a round trip through JSON."""
    return dict(json.loads(json.dumps(dict(changes))))
