"""The roadmap: every step against the paper, both ends against networks of other packages."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from convnext.models.config import FAMILY
from convnext.models.flops import cost
from convnext.models.network import Network
from convnext.models.roadmap import PAPER_REGIMES, REGIMES, Rung, kept_rungs, roadmap, stem_stride
from convnext.tasks.factory import create_model
from convnext.weights import load_weights

REFERENCE = Path(__file__).parents[1] / "reference"
RUNGS = [(regime, rung) for regime in REGIMES for rung in roadmap(regime)]
PAPER_RUNGS = [(regime, rung) for regime, rung in RUNGS if regime in PAPER_REGIMES]
IDS = [f"{regime}-{rung.name}" for regime, rung in RUNGS]

# The rows of roadmap_params.csv by the names of the steps.
STEPS = {
    "S0": "resnet_baseline",
    "S2": "stage_ratio",
    "S3": "patchify_stem",
    "S4": "depthwise_conv",
    "S5": "increase_width",
    "S6": "inverting_dimensions",
    "S7_k3": "move_up_depthwise",
    "S8_k5": "kernel_5",
    "S8_k7": "kernel_7",
    "S8_k9": "kernel_9",
    "S8_k11": "kernel_11",
    "S11": "fewer_norms",
    "S13": "separate_downsampling",
}


def read(name: str) -> list[dict[str, str]]:
    with (REFERENCE / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_rungs_are_those_of_the_paper_in_its_order() -> None:
    names = [row["step"] for row in read("roadmap.csv")][:-1]  # The last row is Swin.
    for regime in REGIMES:
        assert [rung.name for rung in roadmap(regime)] == names


@pytest.mark.parametrize(("regime", "rung"), PAPER_RUNGS, ids=IDS[: len(PAPER_RUNGS)])
def test_cost_and_accuracy_are_those_of_the_paper(regime: str, rung: Rung) -> None:
    row = next(row for row in read("roadmap.csv") if row["step"] == rung.name)
    with torch.device("meta"):
        model = Network(rung.config)
    exact = int(row[f"{regime}_macs_exact"])
    assert cost(model).macs == exact
    assert rung.paper_gmacs is not None
    assert rung.paper_gmacs == float(row[f"{regime}_gmacs_paper"])
    assert rung.paper_top1 == float(row[f"{regime}_top1"])
    std = row["resnet50_top1_std"] if regime == "resnet50" else ""
    assert rung.paper_top1_std == (float(std) if std else None)
    # The paper rounds or truncates; its two misprints are marked.
    printed = abs(rung.paper_gmacs - exact / 1e9) < 0.01
    assert printed != rung.paper_misprint


@pytest.mark.parametrize(("regime", "rung"), PAPER_RUNGS, ids=IDS[: len(PAPER_RUNGS)])
def test_parameters(regime: str, rung: Rung) -> None:
    column = "r50_regime_params" if regime == "resnet50" else "r200_regime_params"
    known = {STEPS[row["step"]]: row[column] for row in read("roadmap_params.csv")}
    if known.get(rung.name):
        with torch.device("meta"):
            assert cost(Network(rung.config), 64).params == int(known[rung.name])


@pytest.mark.parametrize(("regime", "rung"), RUNGS, ids=IDS)
def test_a_rung_differs_by_exactly_its_changes(regime: str, rung: Rung) -> None:
    before = next(r for r in roadmap(regime) if r.name == rung.departs_from)
    old, new = asdict(before.config), asdict(rung.config)
    assert {name: value for name, value in new.items() if value != old[name]} == rung.changes
    # Larger kernels are tried but not kept.
    assert (rung.departs_from == "kernel_7") == (
        rung.name in ("kernel_9", "kernel_11", "relu_to_gelu")
    )


def test_the_last_rung_is_the_member_of_the_family() -> None:
    assert roadmap("resnet50")[-1].config == FAMILY["convnext_tiny"]
    assert roadmap("resnet200")[-1].config == FAMILY["convnext_base"]
    with pytest.raises(ValueError, match="there is no regime 'resnet5'; did you mean 'resnet50'"):
        roadmap("resnet5")


def check_one_step(rung: Rung) -> None:
    torch.manual_seed(0)
    model = create_model("convnext_tiny", **asdict(rung.config) | {"num_classes": 10})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = F.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.tensor([1, 7]))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    before = model.head.fc.weight.detach().clone()
    optimizer.step()
    assert loss.isfinite()
    assert not torch.equal(model.head.fc.weight, before)


@pytest.mark.parametrize("rung", roadmap("resnet50"), ids=lambda rung: rung.name)
def test_every_rung_trains_one_step(rung: Rung) -> None:
    check_one_step(rung)


@pytest.mark.slow
@pytest.mark.parametrize("rung", roadmap("resnet200"), ids=lambda rung: rung.name)
def test_every_rung_of_the_larger_regime_trains_one_step(rung: Rung) -> None:
    check_one_step(rung)


@pytest.mark.parametrize("theirs", ["torchvision", "timm", "timm-200"])
def test_the_first_rung_is_the_resnet_of_others(
    theirs: str, randomize: Callable[[nn.Module], nn.Module]
) -> None:
    with torch.device("meta"):
        other = (
            torchvision.models.resnet50()
            if theirs == "torchvision"
            else timm.create_model("resnet200" if theirs.endswith("200") else "resnet50")
        )
    # Affine parameters and running statistics of batch norms are random too, to cover them.
    other = randomize(other.to_empty(device="cpu"))
    regime = "resnet200" if theirs.endswith("200") else "resnet50"
    with torch.device("meta"):
        ours = create_model(f"roadmap/{regime}/resnet_baseline")
    ours = ours.to_empty(device="cpu").eval()
    report = load_weights(ours, other.state_dict())
    assert report.loaded == report.total
    images = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        expected, logits = other(images), ours(images)
    assert expected.std() > 1e-3
    # The outputs of two hundred random layers are large, so compare relative to their size.
    assert (logits - expected).abs().max() <= 1e-4 * max(1, float(expected.abs().max()))


def test_mini_changes_the_same_fields_in_the_same_order() -> None:
    for small, large in zip(roadmap("mini"), roadmap("resnet50"), strict=True):
        assert (small.changes.keys(), small.what) == (large.changes.keys(), large.what)
        assert (small.paper_top1, small.paper_gmacs) == (large.paper_top1, None)
        assert small.config.dims == tuple(dim // 4 for dim in large.config.dims)
    assert (roadmap("mini")[0].config.depths, roadmap("mini")[-1].config.depths) == (
        (1, 1, 2, 1),
        (1, 1, 3, 1),
    )


def test_the_costs_of_mini() -> None:
    # At 32 pixels with a stem of stride 2; stored as data so that a change is noticed.
    with (REFERENCE / "roadmap_mini.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rung = next(rung for rung in roadmap("mini") if rung.name == row["step"])
            with torch.device("meta"):
                counted = cost(Network(replace(rung.config, stem_stride=2)), 32)
            assert (counted.params, counted.macs) == (int(row["params"]), int(row["macs_32"]))


def test_the_road_goes_on_from_all_but_the_largest_kernels() -> None:
    left = {rung.name for rung in roadmap("mini")} - kept_rungs(roadmap("mini"))
    assert left == {"kernel_9", "kernel_11"}


@pytest.mark.parametrize(("size", "stride"), [(8, 1), (16, 1), (17, 2), (64, 2), (65, 4)])
def test_small_images_have_a_smaller_stride(size: int, stride: int) -> None:
    assert stem_stride(size) == stride
