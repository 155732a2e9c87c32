"""Pointwise convolutions as linear layers: the same network with unchanged weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from convnext.tasks.factory import create_model
from pointwise import PointwiseLinear, is_pointwise, set_pointwise


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", ["convnext_atto", "roadmap/resnet50/inverting_dimensions"])
def test_outputs_and_gradients_stay(name, layout, randomize):
    model = randomize(create_model(name, num_classes=5, depths=(1, 1, 1, 1), drop_path_rate=0.0))
    model = model.double().to(memory_format=layout)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=generator)
    images = images.contiguous(memory_format=layout)
    names = list(model.state_dict())
    found = []
    for linear in (False, True, False):
        count = set_pointwise(model, linear=linear)
        assert count >= 8  # Two in each block.
        assert sum(isinstance(m, PointwiseLinear) for m in model.modules()) == count * linear
        model.zero_grad()
        logits = model(images)
        logits.square().sum().backward()
        found.append([logits.detach(), *(p.grad for p in model.parameters())])
    assert list(model.state_dict()) == names
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)


def test_other_convolutions_are_no_pointwise_ones():
    others = [
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Conv2d(4, 4, 1, stride=2),
        nn.Conv2d(4, 4, 1, groups=4),
        nn.Conv2d(4, 4, 1, padding=1),
        nn.Linear(4, 4),
    ]
    assert not any(map(is_pointwise, others))
    assert set_pointwise(nn.Sequential(*others), linear=True) == 0
    assert is_pointwise(nn.Conv2d(4, 8, 1))
