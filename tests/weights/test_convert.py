"""Conversion: any source to any layout, completely or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from convnext.tasks.exporting import convert
from convnext.tasks.factory import create_model
from convnext.weights import LAYOUT_NAMES, export_weights, load_weights, read_source

Randomize = Callable[[nn.Module], nn.Module]


@pytest.fixture
def official(tmp_path: Path, randomize: Randomize) -> Path:
    """Write an atto of ten classes in the authors' layout."""
    model = randomize(create_model("convnext_atto", num_classes=10))
    path = tmp_path / "atto.pth"
    torch.save({"model": export_weights(model, "official")}, path)
    return path


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_there_and_back_is_the_same(
    tmp_path: Path, official: Path, layout: str, ending: str
) -> None:
    there, back = tmp_path / f"there.{ending}", tmp_path / "back.pth"
    report = convert(official, there, layout)
    assert (report.model, report.changes) == ("convnext_atto", {"num_classes": 10})
    assert (report.source_layout, report.written_layout) == ("official", layout)
    assert "convnext_atto with num_classes=10, 128 tensors from official" in str(report)
    json.dumps(report.to_dict())
    assert load_weights(create_model("convnext_atto", num_classes=10), there).layout == layout
    convert(there, back, "official")
    before, after = read_source(official)[0], read_source(back)[0]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # No temporary file is left.
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["atto.pth", "back.pth", there.name]
    )


def test_the_wrapping_is_that_of_the_package(tmp_path: Path, official: Path) -> None:
    for layout, keys in (("openmmlab", {"state_dict"}), ("official", {"model"})):
        convert(official, tmp_path / "out.pth", layout)
        assert set(torch.load(tmp_path / "out.pth", weights_only=True)) == keys
    convert(official, tmp_path / "out.safetensors", "transformers")
    # Without it, transformers does not open a file.
    assert read_source(tmp_path / "out.safetensors")[1] == {"format": "pt"}


def test_precision_and_a_missing_head_are_kept(tmp_path: Path, randomize: Randomize) -> None:
    model = randomize(create_model("convnext_pico", num_classes=0))
    half = {n: t.bfloat16() for n, t in export_weights(model, "timm").items()}
    half["head.fc.extra"] = torch.ones(2)
    save_file(half, tmp_path / "pico.safetensors")
    target = tmp_path / "out.safetensors"
    report = convert(tmp_path / "pico.safetensors", target, "torchvision")
    assert report.changes == {"num_classes": 0}
    assert report.dropped == ("head.fc.extra",)
    assert "left out: head.fc.extra" in str(report)
    tensors = read_source(target)[0]
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert "classifier.2.weight" not in tensors


def test_a_checkpoint_of_ours_says_what_it_is(tmp_path: Path, randomize: Randomize) -> None:
    from convnext.data.preprocessing import Preprocessing
    from convnext.weights.checkpoint import Card
    from convnext.weights.files import save_checkpoint

    # Its tensors do not distinguish this step from the next.
    model = randomize(create_model("roadmap/resnet50/kernel_7", num_classes=4))
    path = tmp_path / "run.safetensors"
    card = Card(
        task="classify",
        model=model.name,
        changes=model.changes,
        classes=tuple("abcd"),
        preprocessing=Preprocessing(
            image_size=64, crop_pct=1.0, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3
        ),
    )
    save_checkpoint(path, model.state_dict(), card)
    report = convert(path, tmp_path / "out.safetensors", "convnext")
    assert (report.model, report.changes) == ("roadmap/resnet50/kernel_7", {"num_classes": 4})
    assert read_source(tmp_path / "out.safetensors")[1] == read_source(path)[1]
    with pytest.raises(
        ValueError, match=r"in the layout 'timm', whose networks do not have .*; choose convnext$"
    ):
        convert(path, tmp_path / "other.safetensors", "timm")
    assert not (tmp_path / "other.safetensors").exists()


def test_refusals_leave_nothing_behind(tmp_path: Path, official: Path) -> None:
    target = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=r"must end in \.safetensors or \.pth"):
        convert(official, tmp_path / "out.onnx", "timm")
    with pytest.raises(ValueError, match="there is no layout 'tim'"):
        convert(official, target, "tim")
    with pytest.raises(ValueError, match="there is no model 'convnext_ato'; did you mean 'convne"):
        convert(official, target, "timm", model="convnext_ato")
    with pytest.raises(ValueError, match=r"atto\.pth is not a convnext_tiny: it has other shapes"):
        convert(official, target, "timm", model="convnext_tiny")
    assert convert(official, target, "timm", model="convnext_atto").changes == {"num_classes": 10}
    target.unlink()
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="belong to neither a ConvNeXt"):
        convert(tmp_path / "a.pth", target, "timm")
    assert not target.exists()


def test_in_place_is_safe(tmp_path: Path, official: Path) -> None:
    before = read_source(official)[0]
    convert(official, official, "official")
    after = read_source(official)[0]
    assert all(torch.equal(before[name], after[name]) for name in before)
