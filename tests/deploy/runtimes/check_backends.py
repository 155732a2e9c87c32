"""The backends of other runtimes compute the same outputs, and their exporters print nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import convnext
from convnext.deploy.backends import Backend, available, build
from convnext.deploy.optimize import distance

BACKENDS = [
    Backend(engine="onnxruntime", pointwise="linear", layout="channels_first"),
    Backend(engine="openvino", pointwise="conv", layout="channels_first"),
]


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = convnext.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=7
    )
    for p in model.parameters():
        if p.dim() == 1:
            p.data.normal_(1, 0.3)
    return model.eval()


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@torch.no_grad()
def test_every_form_computes_the_same(backend: Backend, capfd: pytest.CaptureFixture[str]) -> None:
    if not available(backend.engine):
        pytest.skip(f"{backend.engine} is not installed")
    model = _model()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    outputs = build(backend, model, images)(images)
    assert outputs.dtype == torch.float32
    assert distance(outputs, model(images)) < 1e-5
    assert capfd.readouterr().out == ""
