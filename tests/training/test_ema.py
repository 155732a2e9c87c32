"""The moving average: timm's values without a second module."""

from __future__ import annotations

import pytest
import torch
from timm.utils import ModelEmaV3

from convnext import create_model
from convnext.training.optim import Ema


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_it_is_that_of_timm(norm: str) -> None:
    torch.manual_seed(0)
    model = create_model("convnext_atto", depths=(1, 1), dims=(8, 16), norm=norm, num_classes=3)
    ours = Ema(model, 0.99)
    theirs = ModelEmaV3(model, decay=0.99, use_warmup=True, warmup_power=3 / 4)
    for step in range(1, 600):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if "num_batches" in name:
                    buffer.add_(1)
        ours.update(model, step)
        theirs.update(model, step)
    expected = theirs.module.state_dict()
    assert ours.tensors.keys() == expected.keys()
    assert all(torch.equal(ours.tensors[name], expected[name]) for name in expected)


def test_it_is_lent_and_given_back() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    ema = Ema(model, 0.9)
    first = {name: t.clone() for name, t in model.state_dict().items()}
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    own = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(AssertionError), ema.applied_to(model):
        assert not all(torch.equal(t, first[n]) for n, t in model.state_dict().items())
    assert all(torch.equal(t, own[n]) for n, t in model.state_dict().items())
