"""The initial weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convnext import create_model
from convnext.models.network import init_fan_in


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_fan_in_carries_the_variance_through_every_block(norm: str) -> None:
    torch.manual_seed(0)
    settings = {"layer_scale_init": 0.0, "num_classes": 10, "norm": norm}
    model = create_model("convnext_atto", **settings)  # type: ignore[arg-type]
    scales: dict[str, float] = {}
    for name, module in model.named_modules():
        if name.endswith("pwconv2"):
            module.register_forward_hook(
                lambda _, __, y, name=name: scales.__setitem__(name, float(y.detach().std()))
            )
    images = torch.randn(4, 3, 96, 96)
    model(images)
    assert max(scales.values()) < 0.2
    init_fan_in(model)
    model(images)
    assert len(scales) == 12
    assert all(0.3 < scale < 3 for scale in scales.values()), scales


def test_fan_in_leaves_heads_norms_and_biases() -> None:
    torch.manual_seed(0)
    model = create_model("convnext_atto", num_classes=10)
    kept = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if tensor.ndim == 1 or name.startswith("head")
    }
    init_fan_in(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())


def test_depthwise_kernels_have_unit_energy_and_a_window() -> None:
    torch.manual_seed(0)
    model = create_model("convnext_atto", num_classes=10)
    init_fan_in(model)
    kernels = torch.cat(
        [m.weight[:, 0] for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    )
    assert torch.allclose(kernels.flatten(1).norm(dim=1), torch.ones(len(kernels)), atol=1e-5)
    energy = kernels.square().mean(0)
    assert energy[3, 3] > 5 * energy[0, 0]
