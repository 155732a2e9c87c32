"""One recipe for all networks of a study, and the changes allowed when it resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

from convnext.data.contents import FILE as CONTENTS
from convnext.recipes.recipe import Recipe, change_recipe
from convnext.studies.compare import entries_of
from convnext.studies.plan import Study, read_study, resolve_study

QUIET, CPU = Console(quiet=True), torch.device("cpu")
NETWORKS = ["roadmap/mini/kernel_5", "timm/resnet18"]


def asked(specs: list[str] = NETWORKS, seeds: int = 1, **options: Any) -> Study:
    changes = {k.replace("__", "."): v for k, v in options.pop("recipe", {}).items()}
    return Study(
        kind="compare",
        title="",
        entries=entries_of(specs),
        seeds=list(range(seeds)),
        recipe=change_recipe(Recipe(), {"run.device": "cpu"} | changes),
        threads=1,
        **options,
    )


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    plan, _ = resolve_study(asked(), tmp_path, CPU, QUIET)
    plan.write(tmp_path)
    return tmp_path


def test_what_is_left_open_is_settled_once(begun: Path) -> None:
    recipe = read_study(begun).recipe
    assert (recipe.ema.decay, recipe.schedule.progressive) == (0.0, False)
    assert recipe.optim.lr != "auto"
    # Settings of a network are left to each network.
    assert (recipe.model, recipe.network.stem) == ("auto", "auto")


def test_it_goes_on_with_more_seeds_and_networks(begun: Path) -> None:
    more = asked([*NETWORKS, "convnext_atto"], seeds=3)
    plan, _ = resolve_study(replace(more, threads=2), begun, CPU, QUIET)
    assert plan.recipe == read_study(begun).recipe
    assert (len(plan.entries), plan.seeds, plan.threads) == (3, [0, 1, 2], 1)
    # The same setting in words is not a change.
    same = asked(recipe={"optim__lr": plan.recipe.optim.lr})
    assert resolve_study(same, begun, CPU, QUIET)[0].recipe == plan.recipe


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (asked(recipe={"optim__lr": 0.5}), r"started with optim\.lr 0\.002, not 0\.5"),
        (asked(minutes=3.0), r"started with --minutes 0\.0, not 3\.0"),
        (asked(["roadmap/mini/kernel_5:kernel_size=3", "timm/resnet18"]), None),
        (asked(["kernel_5=roadmap/mini/kernel_7", "timm/resnet18"]), None),
        (asked(["resnet18=timm/resnet34"]), "resnet18 was another network"),
    ],
)
def test_what_needs_another_folder(begun: Path, other: Study, message: str | None) -> None:
    if message is None:  # Another name adds a network to the study.
        assert len(resolve_study(other, begun, CPU, QUIET)[0].entries) == 2
        return
    with pytest.raises(ValueError, match=message):
        resolve_study(other, begun, CPU, QUIET)


def test_other_data_are_noticed(begun: Path) -> None:
    replace(read_study(begun), data="1 + 1 images, 0").write(begun)
    with pytest.raises(ValueError, match="started with the data 1 \\+ 1 images"):
        resolve_study(asked(), begun, CPU, QUIET)


def test_equal_time_is_settled_once_too(tmp_path: Path) -> None:
    plan, _ = resolve_study(asked(minutes=1.0), tmp_path, CPU, QUIET)
    timed = [
        replace(entry, changes=dict(entry.changes) | {"schedule.epochs": 7})
        for entry in plan.entries
    ]
    replace(plan, entries=timed).write(tmp_path)
    again, _ = resolve_study(asked([*NETWORKS, "convnext_atto"], minutes=1.0), tmp_path, CPU, QUIET)
    assert [entry.changes.get("schedule.epochs") for entry in again.entries] == [7, 7, None]


def test_the_identity_of_runs_is_what_they_are_and_not_where(begun: Path) -> None:
    plan = read_study(begun)
    entry = plan.entries[0]

    def under(**changes: Any) -> str:
        settings = {k.replace("__", "."): v for k, v in changes.items()}
        return replace(plan, recipe=change_recipe(plan.recipe, settings)).identity(entry)

    own = plan.identity(entry)
    assert under(run__device="cuda", loader__workers=4) == own
    assert under(optim__lr=0.5) != own
    assert plan.identity(plan.entries[1]) != own
    # Defaults are not stored, so a study can be resumed after new settings are introduced.
    assert under(augment__ratio=Recipe().augment.ratio) == own
    assert under(augment__ratio=(0.5, 2.0)) != own


def test_data_that_changed_under_the_same_names_is_noticed(tmp_path: Path) -> None:
    """The labels and pictures count, not the names of the files alone."""
    data, root = tmp_path / "data", tmp_path / "study"
    for split in ("train", "val"):
        for k, name in enumerate("ab"):
            (data / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("L", (32, 32), 50 * k + i).save(data / split / name / f"{i}.png")
    study = asked(recipe={"data": str(data)})
    plan, task = resolve_study(study, root, CPU, QUIET)
    plan.write(root)
    (root / CONTENTS).write_text(task.contents().to_json(), encoding="utf-8")
    assert resolve_study(study, root, CPU, QUIET)[0].data == plan.data
    Image.new("L", (32, 32), 255).save(data / "val" / "a" / "2.png")
    with pytest.raises(
        ValueError, match=r"changed pictures of validation images: 1 \(val/a/2\.png"
    ):
        resolve_study(study, root, CPU, QUIET)
