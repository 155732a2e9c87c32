"""Detectors in the layouts of other packages, and classifiers loaded into a backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_detectors import METHODS, NARROW, SMALL, small_detector
from torch import Tensor, nn

from convnext.tasks.exporting import convert
from convnext.tasks.factory import create_model, infer_model
from convnext.weights import export_weights, load_weights, read_source

Randomize = Callable[..., nn.Module]
LAYOUTS = ["convnext", "official", "openmmlab"]


def build(method: str, **changes: object) -> nn.Module:
    return small_detector(f"{method}convnext_atto", **changes)


def same(a: nn.Module, b: nn.Module) -> bool:
    return equal(a.state_dict(), b.state_dict())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_there_and_back_is_the_same(method: str, layout: str, randomize: Randomize) -> None:
    detector = randomize(build(method))
    exported = export_weights(detector, layout)
    wrapped = {f"module.{name}": tensor for name, tensor in exported.items()}
    wrapped["data_preprocessor.mean"] = torch.zeros(3)
    again = build(method)
    report = load_weights(again, wrapped)
    assert (report.layout, report.missing, report.matched) == (layout, (), 1.0)
    assert report.unexpected == ("data_preprocessor.mean",)
    assert report.loaded == report.total == len(detector.state_dict())
    assert report.head == "loaded, 5 classes"
    assert same(again, detector)


# reference: checkpoints.md, for 5 classes, 16 channels and fully connected layers of 24.
@pytest.mark.parametrize("layout", ["official", "openmmlab"])
@pytest.mark.parametrize("method", METHODS)
def test_names_of_the_toolboxes(method: str, layout: str) -> None:
    exported = export_weights(build(method), layout)
    block = "backbone.stages.2.1."
    stages = [f"{s}." for s in range(3)] if method == "cascade_mask_rcnn_" else [""]
    shapes = {
        block + ("dwconv" if layout == "official" else "depthwise_conv"): (16, 1, 7, 7),
        block + ("pwconv1" if layout == "official" else "pointwise_conv1"): (64, 16),
        "neck.lateral_convs.0.conv": (16, 8, 1, 1),
        "neck.fpn_convs.3.conv": (16, 16, 3, 3),
        "rpn_head.rpn_conv": (16, 16, 3, 3),
        "rpn_head.rpn_cls": (3, 16, 1, 1),
        "rpn_head.rpn_reg": (12, 16, 1, 1),
    }
    for s in stages:
        box, mask = f"roi_head.bbox_head.{s}", f"roi_head.mask_head.{s}"
        shapes |= {
            f"{box}fc_cls": (6, 24),
            f"{box}fc_reg": (20, 24),
            f"{box}shared_fcs.0": (24, 784),
            f"{mask}convs.3.conv": (16, 16, 3, 3),
            f"{mask}upsample": (16, 16, 2, 2),
            f"{mask}conv_logits": (5, 16, 1, 1),
        }
        if s:
            shapes[f"{box}shared_convs.3.conv"] = (16, 16, 3, 3)
            assert exported[f"{box}shared_convs.3.bn.running_var"].shape == (16,)
            assert f"{box}shared_convs.0.conv.bias" not in exported
        else:
            shapes[f"{box}shared_fcs.1"] = (24, 24)
    for name, shape in shapes.items():
        assert exported[f"{name}.weight"].shape == shape
    assert exported["backbone.norm3.bias"].shape == (16,)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_other_classes_keep_the_fresh_classifiers(
    method: str, layout: str, randomize: Randomize
) -> None:
    detector, other = randomize(build(method)), build(method, num_classes=3)
    before = other.box_heads[0].classifier.weight.clone()
    report = load_weights(other, export_weights(detector, layout))
    assert report.head == "fresh for 3 classes, the source has 5"
    assert report.head_replaced
    layers = {name.rpartition("heads.")[2].split(".")[1] for name in report.missing}
    assert layers == {"classifier", "regressor"}
    assert len(report.missing) == 6 * len(detector.box_heads)
    assert torch.equal(other.box_heads[0].classifier.weight, before)
    kernels = (model.mask_heads[-1].convs[2].weight for model in (other, detector))
    assert torch.equal(*kernels)


@pytest.mark.parametrize("layout", ["convnext", "official", "openmmlab", "timm", "torchvision"])
@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_goes_into_the_backbone(
    method: str, layout: str, randomize: Randomize
) -> None:
    classifier = randomize(create_model("convnext_atto", num_classes=10, **NARROW))
    model = build(method)
    heads = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith("backbone.")}
    report = load_weights(model, export_weights(classifier, layout))
    assert report.layout == layout
    assert report.missing == tuple(heads)
    assert report.head == "fresh, the source has none for this task"
    images = torch.randn(1, 3, 64, 64)
    expected, maps = classifier.pyramid(images), model.eval().backbone.pyramid(images)
    assert all(torch.equal(maps[name], expected[name]) for name in expected)
    assert equal({n: t for n, t in model.state_dict().items() if n in heads}, heads)


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_timm_go_into_its_own_backbone(method: str, randomize: Randomize) -> None:
    classifier = randomize(create_model("timm/resnet18", num_classes=10))
    model = small_detector(f"{method}timm/resnet18").eval()
    report = load_weights(model, classifier.state_dict())
    assert report.head_replaced
    images = torch.randn(1, 3, 64, 64)
    expected, maps = classifier.pyramid(images), model.backbone.pyramid(images)
    assert all(torch.equal(maps[name], expected[name]) for name in expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", METHODS)
def test_a_file_says_what_it_is(method: str, layout: str) -> None:
    for changes in ({}, {"in_chans": 1, "kernel_size": 5, "channels": 8}):
        model = build(method, **changes)
        name, told = infer_model(export_weights(model, layout))
        assert name.startswith(method)
        again = create_model(name, **told)
        shapes = {n: t.shape for n, t in again.state_dict().items()}
        assert shapes == {n: t.shape for n, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"this file looks like {method}convnext_.*channels=16"):
        load_weights(build(method, channels=8), export_weights(build(method), layout))


@pytest.mark.parametrize("method", METHODS)
def test_a_published_size_has_its_own_name(method: str) -> None:
    with torch.device("meta"):
        model = create_model(f"{method}convnext_small")
    assert infer_model(export_weights(model, "official")) == (f"{method}convnext_small", {})


@pytest.mark.parametrize("method", METHODS)
def test_a_file_of_the_other_method_gives_its_backbone(method: str, randomize: Randomize) -> None:
    other = next(m for m in METHODS if m != method)
    model, source = build(method), randomize(build(other))
    report = load_weights(model, export_weights(source, "official"))
    assert report.head_replaced
    inner = {name for name in model.state_dict() if name.startswith("backbone.")}
    assert inner.isdisjoint(report.missing)
    assert torch.equal(model.backbone.stem.conv.weight, source.backbone.stem.conv.weight)


@pytest.mark.parametrize("method", METHODS)
def test_what_has_no_form(method: str) -> None:
    with pytest.raises(
        ValueError, match=r"cannot be written in the layout 'official', .*; choose .*convnext"
    ):
        export_weights(small_detector(f"{method}roadmap/resnet50/kernel_7"), "official")
    with pytest.raises(ValueError, match="cannot be written in the layout 'timm'"):
        export_weights(build(method), "timm")
    with pytest.raises(ValueError, match="this network has none; build it with output_norms=True"):
        export_weights(build(method, output_norms=False), "official")


@pytest.mark.parametrize("layout", ["convnext", "openmmlab"])
@pytest.mark.parametrize("method", METHODS)
def test_conversion_of_a_file(
    method: str, layout: str, tmp_path: Path, randomize: Randomize
) -> None:
    detector = randomize(build(method))
    source, there, back = (tmp_path / f"{n}.pth" for n in ("source", "there", "back"))
    torch.save({"state_dict": export_weights(detector, "official")}, source)
    report = convert(source, there, layout)
    assert (report.source_layout, report.written_layout) == ("official", layout)
    assert report.dropped == ()
    told = {key: report.changes[key] for key in SMALL}
    assert told == SMALL
    convert(there, back, "official")
    assert equal(read_source(source)[0], read_source(back)[0])
    again = create_model(report.model, **report.changes)
    load_weights(again, there)
    assert same(again, detector)


@pytest.mark.parametrize(
    ("layout", "empty"), [("official", None), ("openmmlab", False), ("convnext", None)]
)
@pytest.mark.parametrize("method", METHODS)
def test_empty_proposals_follow_the_layout(
    method: str, layout: str, empty: bool | None, randomize: Randomize
) -> None:
    exported = export_weights(randomize(build(method)), layout)
    assert infer_model(exported)[1].get("empty_proposals") is empty
    model = build(method)
    report = load_weights(model, exported)
    assert model.config.empty_proposals is empty
    assert model.changes["empty_proposals"] is empty
    assert any("empty_proposals=False" in note for note in report.notes) == (empty is False)
    told = build(method, empty_proposals=True)
    load_weights(told, exported)
    assert told.config.empty_proposals is True
    # Boxes completely outside the image are clipped to a line.
    model.rpn.deltas.bias.data.copy_(torch.tensor([30.0, 0, 0, 0] * 3))
    maps = [torch.zeros(1, model.config.channels, s, s) for s in (16, 8, 4, 2, 1)]
    ((boxes, _),) = model.eval().proposals(maps, [(64, 64)])
    has_lines = bool((boxes[:, 2] <= boxes[:, 0]).any())
    assert has_lines == (empty is not False)


def test_weights_of_a_backbone_leave_empty_proposals_open(randomize: Randomize) -> None:
    classifier = randomize(create_model("convnext_atto", num_classes=3))
    model = small_detector("mask_rcnn_convnext_atto", **dict(classifier.changes, num_classes=5))
    load_weights(model, export_weights(classifier, "openmmlab"))
    assert model.config.empty_proposals is None
