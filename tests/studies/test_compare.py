"""Networks named on a command line."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from convnext.models.timm import list_timm_models
from convnext.recipes.recipe import Recipe, change_recipe
from convnext.studies.compare import PAPER_NAMES, entries_of, group_of, paper_figures
from convnext.studies.page import network_of
from convnext.studies.plan import Study
from convnext.studies.roadmap import check_settings


def test_names_labels_weights_and_changes() -> None:
    entries = entries_of(
        [
            "convnext_tiny",
            "wide=convnext_atto:dims=[64,128,256,512],norm=batch",
            "timm/resnet18",
            "small swin=timm/swin_tiny_patch4_window7_224@some/file.safetensors:embed_dim=24",
        ]
    )
    assert [e.name for e in entries] == ["convnext_tiny", "wide", "resnet18", "small swin"]
    assert [e.departs_from for e in entries] == ["", *["convnext_tiny"] * 3]
    assert [e.group for e in entries] == ["ConvNeXt", "ConvNeXt", "ResNet", "Swin"]
    wide, swin = network_of(entries[1]), entries[3].changes
    assert wide is not None
    assert (wide.dims, wide.norm) == ((64, 128, 256, 512), "batch")
    assert swin["weights"] == "some/file.safetensors"
    assert swin["network.changes"] == {"embed_dim": 24}
    check_settings(Recipe(), entries)


def test_a_member_of_the_family_stays_what_the_paper_says() -> None:
    (entry,) = entries_of(["convnext_tiny"])
    # `auto` would give small data a batch norm and another stem.
    recipe = Study(kind="compare", title="", entries=[entry], seeds=[0], recipe=Recipe())
    own = recipe.recipe_of(entry, 0).network
    assert (own.norm, own.stem, own.layer_scale_init) == ("layer", "patchify", 1e-6)
    # Settings for all networks apply to it too.
    asked = change_recipe(Recipe(), {"network.norm": "batch", "network.changes": {"act": "relu"}})
    (changed,) = entries_of(["convnext_tiny:kernel_size=3"])
    own = replace(recipe, recipe=asked).recipe_of(changed, 0).network
    assert (own.norm, own.stem) == ("batch", "patchify")
    assert own.changes == {"act": "relu", "kernel_size": 3}
    config = network_of(changed, asked)
    assert config is not None
    assert (config.norm, config.act, config.kernel_size) == ("batch", "relu", 3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("convnext_tony", "no model 'convnext_tony'.*convnext_tiny"),
        ("timm/resnet1888", "timm has no model 'resnet1888'"),
        ("a=", "is not"),
        ("convnext_tiny:dims=[1", "is not a value"),
    ],
)
def test_networks_that_are_not_there(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entries_of([spec])


def test_two_of_one_name() -> None:
    with pytest.raises(ValueError, match="give one of them a label"):
        entries_of(["convnext_tiny", "convnext_tiny"])


def test_the_papers_figures_are_of_unchanged_networks_only() -> None:
    whole, changed = entries_of(["convnext_tiny", "a=convnext_tiny:kernel_size=3"])
    assert (whole.paper.top1, whole.paper.gmacs, whole.paper.images_per_s) == (82.1, 4.5, 774.7)
    assert changed.paper.top1 is None
    for spec in ("convnext_tiny:norm=batch,stem=conv_pool", "convnext_tiny@fb_in22k"):
        (other,) = entries_of([spec])
        assert other.paper.top1 is None
        assert other.name == spec
    assert paper_figures("roadmap/resnet200/kernel_7").top1 == 82.30
    assert paper_figures("timm/resnet18").top1 is None
    assert set(PAPER_NAMES) - set(list_timm_models("timm/*")) == {
        name for name in PAPER_NAMES if not name.startswith("timm/")
    }


def test_groups() -> None:
    names = ("timm/resnext50_32x4d", "timm/deit_small_patch16_224", "timm/efficientnet_b0")
    assert [group_of(name) for name in names] == ["ResNeXt", "ViT", "other"]


def test_the_papers_figures_are_the_reference_ones() -> None:
    beside = Path(__file__).parents[3] / "shared" / "reference" / "imagenet.csv"
    if not beside.is_file():
        pytest.skip("the reference figures are absent")
    rows = {
        row["model"]: row
        for row in csv.DictReader(beside.read_text().splitlines())
        if row["section"] == "1K" and row["size"] == "224"
    }
    compared = 0
    for name in PAPER_NAMES:
        paper = paper_figures(name)
        if paper.name in rows:
            row = rows[paper.name]
            assert paper.top1 == float(row["top1"])
            assert paper.gmacs == float(row["flops_g"])
            assert paper.images_per_s == float(row["throughput"])
            compared += 1
    assert compared == 9


def test_fine_tuning_has_the_recipe_of_fine_tuning(tmp_path: Path) -> None:
    import torch
    from rich.console import Console

    from convnext.cli import main
    from convnext.studies.plan import common_recipe, representative_recipe
    from convnext.tasks import task_class

    small = "{depths: [1, 1, 1, 1], dims: [8, 8, 8, 8]}"
    options = ["--schedule.epochs", "1", "--run.device", "cpu", "--network.changes", small]
    run = tmp_path / "run"
    assert main(["train", "--model", "convnext_atto", "--output", str(run), *options]) == 0
    tuned = entries_of([f"convnext_atto@{run}", f"b=convnext_atto@{run}"])
    mixed = entries_of([f"convnext_atto@{run}", "roadmap/mini/kernel_7"])
    quiet, cpu = Console(quiet=True), torch.device("cpu")
    asked = Recipe()
    recipes = []
    for entries in (tuned, mixed):
        task = task_class(asked.task).open(representative_recipe(asked, entries), cpu, quiet)
        recipes.append(common_recipe(task.recipe, asked, entries))
    assert recipes[0].optim.layer_decay == 0.8
    assert recipes[1].optim.layer_decay == 1.0
    for recipe in recipes:
        assert (recipe.weights, recipe.model) == ("none", "auto")
        assert recipe.input.mean == "auto"
        assert recipe.input.image_size == 8
        assert recipe.ema.decay == 0.0
