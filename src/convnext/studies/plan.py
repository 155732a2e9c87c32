"""What a study compares: entries, seeds and the one recipe, as data that is saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from convnext.atomic import write_text
from convnext.names import portable_name
from convnext.recipes.recipe import Recipe, change_recipe, flatten, recipe_from_dict, to_dict

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
    """Resolved, but for what is the network's own."""
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
        usual = dict(flatten(Recipe()))
        leaves = flatten(self.recipe_of(entry, 0))
        own = {n: v for n, v in leaves if n not in WHERE and v != usual[n]}
        return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:16]

    def own_entries(self) -> list[Entry]:
        """Return the entries that have runs of their own."""
        return [entry for entry in self.entries if not entry.runs_as]

    def write(self, root: Path) -> None:
        """Write study.json, from which the study goes on and its page is made."""
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
