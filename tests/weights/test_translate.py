"""The tables of names are one to one and agree with the packages they are named after."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from convnext.models.config import FAMILY
from convnext.tasks.factory import create_model
from convnext.weights.layouts import (
    LAYOUTS,
    OURS,
    Layout,
    bare,
    layout_for,
    recognize,
    rename,
    to_layout,
)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("theirs", "row", "ours"),
    [
        ("features.5.2.block.3.bias", "features.{2s+1}.{b}.block.3", "stages.2.2.x.bias"),
        ("layer4.11.conv2.weight", "layer{s+1}.{b}.conv2", "stages.3.11.x.weight"),
        ("stages.1.0.gamma", "stages.{s}.{b}.gamma", "stages.1.0.x"),
        ("features.4.2.block.3.bias", "features.{2s+1}.{b}.block.3", None),  # Not odd.
        ("layer0.1.conv2.weight", "layer{s+1}.{b}.conv2", None),  # No stage -1.
        ("stages.1.0.gamma.weight", "stages.{s}.{b}.gamma", None),
        ("stages.1.0.norm.scale", "stages.{s}.{b}.norm", None),
    ],
)
def test_rename(theirs: str, row: str, ours: str | None) -> None:
    assert rename(theirs, row, "stages.{s}.{b}.x") == ours
    if ours is not None:
        target = row if "gamma" in row else "stages.{s}.{b}.x"
        assert rename(ours, "stages.{s}.{b}.x", row) == theirs or target == row


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.name}-{len(layout.rows)}")
def test_a_table_has_our_names_and_is_one_to_one(layout: Layout) -> None:
    base = {name.replace(".0.", ".{s}.") for name in layout.rows if ".0." in name}
    assert {name for name in layout.rows if ".0." not in name} | base <= set(OURS)
    assert len(set(layout.rows.values())) == len(layout.rows)
    assert len({bare(theirs) for theirs in layout.rows.values()}) == len(layout.rows)


@pytest.mark.parametrize("name", FAMILY)
def test_the_names_of_every_member_return_from_every_layout(name: str) -> None:
    with torch.device("meta"):
        names = list(create_model(name).state_dict())
    config = FAMILY[name]
    forms = [layout for layout in LAYOUTS if layout.covers(config)]
    assert len(forms) == (2 if "isotropic" in name else 6)
    for layout in forms:
        there = to_layout(names, layout)
        assert list(there) == names
        back = recognize(there.values())
        assert back.layout.name == layout.name
        assert back.names == {theirs: ours for ours, theirs in there.items()}
        assert not back.unknown
        assert not back.extra


@pytest.mark.parametrize(
    "size", ["atto", "femto", "pico", "nano", "tiny", "small", "base", "large"]
)
def test_timm_has_the_names_and_shapes_of_the_table(size: str) -> None:
    from convnext.weights import export_weights

    with torch.device("meta"):
        ours, theirs = create_model(f"convnext_{size}"), timm.create_model(f"convnext_{size}")
    exported = {name: tuple(t.shape) for name, t in export_weights(ours, "timm").items()}
    assert exported == shapes(theirs)


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_torchvision_has_the_names_and_shapes_of_the_table(size: str) -> None:
    from convnext.weights import export_weights

    with torch.device("meta"):
        ours = create_model(f"convnext_{size}")
        theirs = getattr(torchvision.models, f"convnext_{size}")()
    exported = {name: tuple(t.shape) for name, t in export_weights(ours, "torchvision").items()}
    assert exported == shapes(theirs)


def test_the_resnet_at_the_start_has_one_table_for_both_packages() -> None:
    from convnext.weights import export_weights

    with torch.device("meta"):
        ours = create_model("roadmap/resnet50/resnet_baseline")
        torchvision_resnet, timm_resnet = (
            torchvision.models.resnet50(),
            timm.create_model("resnet50"),
        )
    for layout, theirs in (("torchvision", torchvision_resnet), ("timm", timm_resnet)):
        exported = {name: tuple(t.shape) for name, t in export_weights(ours, layout).items()}
        assert exported == shapes(theirs)


@pytest.mark.parametrize(
    ("model", "layout", "has"),
    [
        ("convnext_isotropic_small", "timm", "convnext, official"),
        ("roadmap/resnet50/resnet_baseline", "official", "convnext, torchvision, timm"),
        ("roadmap/resnet50/patchify_stem", "torchvision", "convnext"),
        ("roadmap/resnet50/increase_width", "timm", "convnext"),
        ("roadmap/resnet50/bn_to_ln", "official", "convnext"),
    ],
)
def test_a_layout_without_a_form_says_which_have_one(model: str, layout: str, has: str) -> None:
    with torch.device("meta"):
        config = create_model(model).config
    with pytest.raises(ValueError, match=f"; choose {has}$"):
        layout_for(layout, config)
    with pytest.raises(ValueError, match="there is no layout 'keras'; choose one of convnext, off"):
        layout_for("keras", config)
