"""Parameter groups and schedule against the numbers of the authors' recipe."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from convnext import create_model, list_models
from convnext.models.network import Network
from convnext.recipes.resolve import OPTIMIZERS
from convnext.recipes.schema import OptimRecipe
from convnext.training.optim import (
    DecayBy,
    group_rows,
    group_table,
    layer_ids,
    make_optimizer,
    name_modules,
    parameter_groups,
)

# rate ** (13 - id) for id 0 to 13, by hand.
SCALES = {
    0.7: (0.00968890, 0.01384129, 0.01977327, 0.02824752, 0.04035361, 0.05764801, 0.0823543,
          0.117649, 0.16807, 0.2401, 0.343, 0.49, 0.7, 1.0),
    0.8: (0.05497558, 0.06871948, 0.08589935, 0.10737418, 0.13421773, 0.16777216, 0.2097152,
          0.262144, 0.32768, 0.4096, 0.512, 0.64, 0.8, 1.0),
}  # fmt: skip
# The modules with each of those scales, for depths 3-3-27-3.
HOLDS = (
    "stem",
    "stages.0.0 stages.0.1 stages.0.2",
    "downsample.1 stages.1.0 stages.1.1 stages.1.2",
    "downsample.2 stages.2.0 stages.2.1 stages.2.2",
    "stages.2.3 stages.2.4 stages.2.5",
    "stages.2.6 stages.2.7 stages.2.8",
    "stages.2.9 stages.2.10 stages.2.11",
    "stages.2.12 stages.2.13 stages.2.14",
    "stages.2.15 stages.2.16 stages.2.17",
    "stages.2.18 stages.2.19 stages.2.20",
    "stages.2.21 stages.2.22 stages.2.23",
    "stages.2.24 stages.2.25 stages.2.26",
    "downsample.3 stages.3.0 stages.3.1 stages.3.2",
    "head",
)
TINY_HOLDS = (*HOLDS[:6], *HOLDS[12:])


class Wrapper(nn.Module):
    """A backbone inside a larger network, as in detection and segmentation."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.neck = nn.Conv2d(8, 8, 1)
        self.backbone = backbone
        self.backbone_norm = nn.LayerNorm(8)


def meta_model(name: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(name)


def modules_by_scale(model: nn.Module, decay: float, by: DecayBy = "layer") -> dict[float, str]:
    """Return which modules have each scale, in the order of the network."""
    groups = parameter_groups(
        model, lr=1.0, weight_decay=0.05, layer_decay=decay, layer_decay_by=by
    )
    assert all(group["lr"] == group["lr_scale"] for group in groups)
    scale_of = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    found: dict[float, dict[str, None]] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        length = {"downsample": 2, "stages": 3}.get(parts[0], 1)
        found.setdefault(scale_of[id(parameter)], {})[".".join(parts[:length])] = None
    return {scale: " ".join(modules) for scale, modules in found.items()}


@pytest.mark.parametrize("decay", SCALES)
@pytest.mark.parametrize(
    ("name", "holds"), [("convnext_base", HOLDS), ("convnext_tiny", TINY_HOLDS)]
)
def test_the_scales_and_what_has_them(name: str, holds: tuple[str, ...], decay: float) -> None:
    found = modules_by_scale(meta_model(name), decay)
    scales = sorted(found)
    assert scales == pytest.approx(SCALES[decay][-len(holds) :], rel=1e-6)
    assert tuple(found[scale] for scale in scales) == holds


@pytest.mark.parametrize(
    ("name", "depths", "last"),
    [("convnext_tiny", (3, 3, 9, 3), 7), ("convnext_base", (3, 3, 27, 3), 13)],
)
def test_the_scales_by_stage(name: str, depths: tuple[int, ...], last: int) -> None:
    found = modules_by_scale(meta_model(name), 0.9, "stage")
    blocks = [" ".join(f"stages.{s}.{b}" for b in range(d)) for s, d in enumerate(depths)]
    holds = ["stem downsample.1 downsample.2 downsample.3", *blocks, "head"]
    scales = [0.9 ** (last - i) for i in (0, 1, 2, 3, 4, last)]
    assert sorted(found) == pytest.approx(scales)
    assert [found[scale] for scale in sorted(found)] == holds


@pytest.mark.parametrize("by", ["layer", "stage"])
@pytest.mark.parametrize(
    "name", [*list_models(), "timm/resnet18", "timm/swin_tiny_patch4_window7_224"]
)
def test_every_parameter_is_in_one_group(name: str, by: DecayBy) -> None:
    model = meta_model(name)
    groups = parameter_groups(model, lr=1.0, weight_decay=0.05, layer_decay=0.9, layer_decay_by=by)
    members = [id(p) for group in groups for p in group["params"]]
    assert sorted(members) == sorted(map(id, model.parameters()))
    ids = layer_ids(model, by)
    names = list(ids)
    assert ids[names[0]] == 0
    assert ids[names[-1]] == max(ids.values()) > 3
    if isinstance(model, Network):
        # Deeper blocks never have a lower rate.
        depth = [ids[n] for n in names if n.startswith("stages")]
        assert depth == sorted(depth)
        assert all(ids[n] == 0 for n in names if n.startswith("stem"))


def test_stages_of_peers() -> None:
    ids = layer_ids(meta_model("timm/swin_tiny_patch4_window7_224"), "stage")
    assert ids["network.patch_embed.proj.weight"] == 0
    assert ids["network.layers.2.downsample.reduction.weight"] == 0
    assert [ids[f"network.layers.{s}.blocks.0.norm1.weight"] for s in range(4)] == [1, 2, 3, 4]
    assert ids["network.norm.weight"] == ids["network.head.fc.bias"] == 13
    ids = layer_ids(meta_model("timm/efficientnet_b0"), "stage")
    # Strides 4, 8, 16 and 32; layers before the first stage belong to it.
    found = [ids[f"network.blocks.{b}.0.bn1.weight"] for b in range(7)]
    assert found == [1, 1, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/vit_tiny_patch16_224", "single scale .* set optim.layer_decay_by to layer"),
        ("timm/vgg11", "cannot be told apart by stage; set optim.layer_decay_by to layer"),
        ("timm/poolformerv2_s12", "has no groups .* set optim.layer_decay to 1"),
    ],
)
def test_peers_without_stages_say_so(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer_ids(meta_model(name), "stage")


@pytest.mark.parametrize("by", ["layer", "stage"])
@pytest.mark.parametrize("name", ["convnext_tiny", "timm/resnet18"])
def test_a_backbone_inside_a_model(name: str, by: DecayBy) -> None:
    backbone = meta_model(name)
    inside = layer_ids(backbone, by)
    last = max(inside.values())
    expected = {f"backbone.{n}": i for n, i in inside.items()}
    for n in ("neck.weight", "neck.bias", "backbone_norm.weight", "backbone_norm.bias"):
        expected[n] = last
    assert layer_ids(Wrapper(backbone), by) == expected


def test_a_model_without_a_backbone_says_so() -> None:
    with pytest.raises(ValueError, match=r"Linear contains no network .* optim.layer_decay to 1"):
        layer_ids(nn.Linear(2, 2))


def test_the_table_of_groups() -> None:
    model = meta_model("convnext_tiny")
    recipe = OptimRecipe(lr=1e-4, weight_decay=0.05, layer_decay=0.9)
    rows = group_rows(model, recipe)
    assert len(rows) == 16
    assert sum(row["params"] for row in rows) == sum(p.numel() for p in model.parameters())
    assert sum(row["tensors"] for row in rows) == len(list(model.parameters()))
    row = rows[9]
    assert (row["name"], row["holds"]) == ("group 4 decay", "stages.2.3 to stages.2.5")
    assert (row["tensors"], row["weight_decay"]) == (9, 0.05)
    assert row["lr"] == pytest.approx(0.9**3 * 1e-4)
    table = group_table(model, recipe)
    assert table.row_count == 16
    assert list(table.columns[3].cells)[9] == "3.595"
    by_stage = group_rows(model, replace(recipe, layer_decay_by="stage"))
    assert by_stage[0]["holds"] == "stem.conv to stem.norm, downsample.1 to downsample.3"


def test_names_of_many_modules_are_cut() -> None:
    names = [f"part{c}.0.weight" for c in "abcdef"]
    assert name_modules(names) == "parta.0, partb.0, partc.0, partd.0 and 2 more"


def test_biases_and_norms_do_not_decay() -> None:
    model = meta_model("convnext_atto")
    groups = parameter_groups(model, lr=1.0, weight_decay=0.05, layer_decay=1.0)
    assert len(groups) == 2
    without = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    expected = {
        id(p) for name, p in model.named_parameters() if p.ndim <= 1 or name.endswith("bias")
    }
    assert without == expected
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_optimizer_takes_the_recipe() -> None:
    model = create_model("convnext_atto", num_classes=2)
    recipe = OptimRecipe(lr=1e-3, weight_decay=0.1, layer_decay=0.9, betas=(0.8, 0.95))
    optimizer = make_optimizer(model, recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.8, 0.95)
    assert max(group["lr"] for group in optimizer.param_groups) == 1e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_the_groups_and_its_own_settings(name: str) -> None:
    model = create_model("convnext_atto", num_classes=2)
    own = OPTIMIZERS[name]
    recipe = OptimRecipe(name=name, lr=1e-3, weight_decay=0.1, layer_decay=0.9)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, recipe)
    expected = group_rows(model, recipe)
    assert len(optimizer.param_groups) == len(expected) > 10
    for group, row in zip(optimizer.param_groups, expected, strict=True):
        assert (group["name"], group["lr"]) == (row["name"], row["lr"])
        assert (group["weight_decay"], group["lr_scale"]) == (row["weight_decay"], row["lr_scale"])
    for setting in ("betas", "eps", "momentum"):
        if (value := getattr(own, setting)) is not None:
            assert optimizer.defaults[setting] == value
        else:
            with pytest.raises(ValueError, match=f"{name} has no {setting}, .* set it to auto"):
                make_optimizer(model, replace(recipe, **{setting: 0.5}))


def test_an_optimizer_that_timm_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm.optim

    monkeypatch.setattr(timm.optim, "list_optimizers", lambda: ["adamw", "lion", "sgd"])
    recipe = OptimRecipe(name="muon", lr=1e-3, weight_decay=0.1, layer_decay=1.0)
    with pytest.raises(ValueError, match=r"has no muon: .* choose one of adamw, lion, sgd$"):
        make_optimizer(create_model("convnext_atto", num_classes=2), recipe)
