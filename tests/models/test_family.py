"""The family: sizes, costs, the logits of three other packages, and `create_model`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from convnext.models.config import FAMILY
from convnext.models.flops import cost
from convnext.tasks.factory import create_model, list_models
from convnext.weights import export_weights

REFERENCE = Path(__file__).parents[1] / "reference"
SIZES = {"T": "tiny", "S": "small", "B": "base", "L": "large", "XL": "xlarge"}
SLOW = pytest.mark.slow


def read_family() -> list[dict[str, str]]:
    with (REFERENCE / "family.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", read_family(), ids=lambda row: row["variant"])
def test_sizes_parameters_and_costs_are_those_of_the_paper(row: dict[str, str]) -> None:
    name = f"convnext_{SIZES[row['variant']]}"
    assert FAMILY[name].depths == tuple(map(int, row["depths"].split("-")))
    assert FAMILY[name].dims == tuple(map(int, row["dims"].split("-")))
    with torch.device("meta"):
        model, wide = create_model(name), create_model(name, num_classes=21841)
    assert cost(model, 224).params == int(row["params_1000"])
    assert cost(model, 224).macs == int(row["macs_224"])
    assert round(cost(model, 384).macs / 1e9, 4) == float(row["macs_384_G"])
    assert cost(wide, 32).params == int(row["params_21841"])


@pytest.mark.parametrize(
    ("name", "mega_params", "giga_macs"),
    [("small", 22, 4.3), ("base", 87, 16.9), ("large", 306, 59.7)],
)
def test_the_isotropic_members_cost_what_table_2_says(
    name: str, mega_params: int, giga_macs: float
) -> None:
    with torch.device("meta"):
        counted = cost(create_model(f"convnext_isotropic_{name}"))
    assert round(counted.params / 1e6) == mega_params
    assert round(counted.macs / 1e9, 1) == giga_macs


@pytest.mark.parametrize("size", ["atto", "femto", "pico", "nano", *SIZES.values()])
def test_parameters_are_those_of_timm(size: str) -> None:
    with torch.device("meta"):
        ours, theirs = create_model(f"convnext_{size}"), timm.create_model(f"convnext_{size}")
    assert cost(ours, 32).params == sum(p.numel() for p in theirs.parameters())


def other_network(package: str, size: str) -> nn.Module:
    """Build a network of another package without spending time on its initial weights."""
    name = f"convnext_{size}"
    with torch.device("meta"):
        if package == "timm":
            model = timm.create_model(name)
        elif package == "torchvision":
            model = getattr(torchvision.models, name)()
        else:
            from transformers import ConvNextConfig, ConvNextForImageClassification

            config = ConvNextConfig(
                depths=list(FAMILY[name].depths),
                hidden_sizes=list(FAMILY[name].dims),
                num_labels=1000,
            )
            model = ConvNextForImageClassification(config)
    assert isinstance(model, nn.Module)
    return model.to_empty(device="cpu").eval()


@pytest.mark.parametrize("package", ["timm", "torchvision", "transformers"])
@pytest.mark.parametrize(
    "size",
    ["atto", "tiny", "small", pytest.param("base", marks=SLOW), pytest.param("large", marks=SLOW),
     pytest.param("xlarge", marks=SLOW)],
)  # fmt: skip
def test_logits_are_those_of_other_packages(
    package: str, size: str, randomize: Callable[[nn.Module], nn.Module]
) -> None:
    if package == "torchvision" and size in ("atto", "xlarge"):
        pytest.skip(f"torchvision has no {size}")
    with torch.device("meta"):
        ours = create_model(f"convnext_{size}")
    ours = randomize(ours.to_empty(device="cpu"))
    theirs = other_network(package, size)
    theirs.load_state_dict(export_weights(ours, package))
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected, logits = theirs(images), ours(images)
    expected = expected.logits if package == "transformers" else expected
    assert expected.std() > 0.01
    assert (logits - expected).abs().max() < 1e-4


# Large members are replaced by narrower networks with the same structure.
NARROW = {
    name: {"dims": tuple(8 * 2**s for s in range(len(config.dims)))}
    for name, config in FAMILY.items()
    if max(config.dims) > 640
}


@pytest.mark.parametrize("name", FAMILY)
def test_every_member_has_logits_and_a_gradient_everywhere(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=10, **NARROW.get(name, {}))
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 10)
    F.cross_entropy(logits, torch.tensor([1, 7])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


def test_layer_scale_is_where_the_paper_has_it() -> None:
    with_scale = {name for name, config in FAMILY.items() if config.layer_scale_init}
    assert set(FAMILY) - with_scale == {"convnext_isotropic_small", "convnext_isotropic_base"}


def test_list_models() -> None:
    assert list_models()[:2] == ["convnext_atto", "convnext_femto"]
    assert len(list_models()) == 12 + 3 * 17
    assert len(list_models("roadmap/resnet200/*")) == 17
    assert "timm/swin_tiny_patch4_window7_224" in list_models("timm/swin_tiny*")
    assert list_models("nothing") == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("convnext_tny", {}, "there is no model 'convnext_tny'; did you mean 'convnext_tiny'"),
        ("roadmap/resnet50/kernel_8", {}, "did you mean 'roadmap/resnet50/kernel_"),
        ("timm/resnet5", {}, "timm has no model 'resnet5'; did you mean 'resnet5"),
        ("convnext_tiny", {"num_clases": 3}, "did you mean 'num_classes'"),
        ("convnext_tiny", {"weights": "fb_in1K"}, "no weights 'fb_in1K'; did you mean 'fb_in1k'"),
    ],
)
def test_mistakes_are_named(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **changes)  # type: ignore[arg-type]
