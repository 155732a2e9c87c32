"""int8: the choice of layers, its accuracy and proof, and its refusal if it is slower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_exports import FILES, small_checkpoint, small_photos, small_segmentor
from torch import nn

import convnext
from convnext.deploy import quantize as module
from convnext.deploy.export import ExportSettings
from convnext.deploy.fold import fold
from convnext.deploy.layers import spell_out
from convnext.deploy.optimize import distance
from convnext.deploy.quantize import int8_runner, quantize, sensitivity
from convnext.tasks.exporting import export

pytest.importorskip("openvino")
pytest.importorskip("nncf")


def _folded() -> nn.Module:
    torch.manual_seed(0)
    model = convnext.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(16, 16, 32, 32), num_classes=5,
        layer_scale_init=1.0,
    ).eval()  # fmt: skip
    model.head.fc.weight.data.mul_(20)
    return fold(model, form="conv")


def _images(num: int = 4) -> torch.Tensor:
    return torch.randn(num, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_the_most_sensitive_layer_comes_first() -> None:
    folded = _folded()
    before = {name: t.clone() for name, t in folded.state_dict().items()}
    # One output channel dwarfs the others' weights in the input that it reads: a hard range.
    target = folded.stages[1][0].rows[2]
    target.weight.data[:, 0] *= 300
    found = sensitivity(folded, _images())
    names = [layer.name for layer in found]
    assert names[0].startswith("stages.1.0.rows")
    assert [layer.error for layer in found] == sorted((x.error for x in found), reverse=True)
    assert not any("rows.0" in name for name in names)
    assert "head.fc" in names
    target.weight.data[:, 0] /= 300
    for name, t in folded.state_dict().items():
        assert torch.allclose(t, before[name], rtol=1e-5)


@torch.no_grad()
def test_int8_is_close_and_products_are_in_it() -> None:
    folded, images = _folded(), _images()
    expected = folded(images)
    found = int8_runner(_folded(), images, [images])(images)
    assert 1e-4 < distance(found, expected) < 0.25
    assert torch.equal(found.argmax(1), expected.argmax(1))


def test_layers_can_stay_in_float() -> None:
    images = _images()

    def names(keep: tuple[str, ...]) -> list[str]:
        model = quantize(spell_out(_folded()), images, [images], batch=4, keep_float=keep)
        return [
            op.get_friendly_name()
            for op in model.get_ops()
            if op.get_type_name() == "FakeQuantize" or "fq_weights" in op.get_friendly_name()
        ]

    kept = names(("stages.1.0.rows.2",))
    assert any("stages.1.0.rows.2" in name for name in names(()))
    assert not any("stages.1.0.rows.2" in name and "fq_weights" in name for name in kept)
    assert any("stages.2.0.rows.2" in name for name in kept)


def test_nothing_to_calibrate_on_is_named() -> None:
    with pytest.raises(ValueError, match="calibration images"):
        quantize(spell_out(_folded()), _images(), [])


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_segmentor_is_exported_in_int8(
    format: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(module, "_ratio", lambda *_: 2.0)
    checkpoint = small_segmentor(tmp_path / "net.safetensors", channels=64)
    result = export(
        checkpoint,
        settings=ExportSettings(format=format, precision="int8"),
        output=tmp_path / FILES[format],
        images=[small_photos(tmp_path / "photos")],
        force=True,
    )
    # With random weights, classes are close to each other.
    assert result.proof.agreement > 0.5
    assert "decode_head.fusion.conv" in {layer["name"] for layer in result.proof.sensitivity}


@pytest.mark.parametrize("slow", [False, True])
def test_an_int8_file_is_proven_and_refused_if_slower(
    slow: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ratio", lambda *_: 0.8 if slow else 2.0)
    path = tmp_path / "net.xml"
    arguments: dict[str, Any] = {
        "settings": ExportSettings(format="openvino", precision="int8"),
        "output": path,
        "images": [small_photos(tmp_path / "photos")],
    }
    checkpoint = small_checkpoint(tmp_path / "net.safetensors")
    if slow:
        with pytest.raises(ArithmeticError, match="int8 is slower on this machine"):
            export(checkpoint, **arguments)
        assert not path.exists()
        return
    result = export(checkpoint, **arguments)
    assert result.proof.passed
    assert result.proof.sensitivity[0]["error"] >= result.proof.sensitivity[-1]["error"]
    assert path.is_file()
