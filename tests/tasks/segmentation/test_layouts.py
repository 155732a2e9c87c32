"""Segmentors in the layouts of other packages, and classifiers loaded into a backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from convnext.data.preprocessing import DensePreprocessing
from convnext.tasks.exporting import convert
from convnext.tasks.factory import create_model, infer_model
from convnext.weights import export_weights, load_weights, read_source
from convnext.weights.checkpoint import Card
from convnext.weights.files import save_checkpoint

Randomize = Callable[..., nn.Module]
NAME = "upernet_convnext_atto"
SMALL = {
    "num_classes": 5,
    "channels": 8,
    "auxiliary_channels": 4,
    "depths": (1, 1, 2, 1),
    "dims": (8, 8, 16, 16),
}
LAYOUTS = ["convnext", "official", "openmmlab", "transformers"]


def build(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    return create_model(NAME, **{**SMALL, **changes})


@pytest.fixture
def segmentor(randomize: Randomize) -> nn.Module:
    return randomize(build())


def from_transformers() -> nn.Module:
    from transformers import ConvNextConfig, UperNetConfig, UperNetForSemanticSegmentation

    backbone = ConvNextConfig(
        depths=list(SMALL["depths"]),
        hidden_sizes=list(SMALL["dims"]),
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=8, auxiliary_channels=4, num_labels=5
    )
    return UperNetForSemanticSegmentation(config)


@pytest.mark.parametrize("size", [(64, 64), (70, 101)], ids=str)
def test_logits_are_those_of_transformers_both_ways(
    segmentor: nn.Module, randomize: Randomize, size: tuple[int, int]
) -> None:
    theirs = from_transformers().eval()
    images = torch.randn(1, 3, *size)
    theirs.load_state_dict(export_weights(segmentor, "transformers"))
    with torch.inference_mode():
        expected, logits = theirs(images).logits, segmentor(images)
    assert expected.std() > 0.01
    assert (logits - expected).abs().max() < 1e-4
    randomize(theirs, seed=1)
    report = load_weights(segmentor, theirs.state_dict())
    assert (report.layout, report.missing, report.unexpected) == ("transformers", (), ())
    with torch.inference_mode():
        assert (segmentor(images) - theirs(images).logits).abs().max() < 1e-4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_the_same(segmentor: nn.Module, layout: str) -> None:
    exported = export_weights(segmentor, layout)
    wrapped = {f"module.{name}": tensor for name, tensor in exported.items()}
    wrapped["data_preprocessor.mean"] = torch.zeros(3)
    again = build()
    report = load_weights(again, wrapped)
    assert (report.layout, report.missing, report.matched) == (layout, (), 1.0)
    assert report.unexpected == ("data_preprocessor.mean",)
    assert report.loaded == report.total == len(segmentor.state_dict())
    assert same(again, segmentor)


def test_names_of_the_toolboxes(segmentor: nn.Module) -> None:
    official, openmmlab = (export_weights(segmentor, name) for name in ("official", "openmmlab"))
    assert "backbone.stages.2.1.dwconv.weight" in official
    assert "backbone.stages.2.1.depthwise_conv.weight" in openmmlab
    assert openmmlab["backbone.stages.2.1.pointwise_conv1.weight"].shape == (64, 16)
    for names in (official, openmmlab):
        assert names["backbone.norm3.weight"].shape == (16,)
        assert names["decode_head.psp_modules.3.1.bn.running_mean"].shape == (8,)
        assert names["decode_head.fpn_bottleneck.conv.weight"].shape == (8, 32, 3, 3)
        assert names["auxiliary_head.convs.0.conv.weight"].shape == (4, 16, 3, 3)
        assert names["decode_head.conv_seg.bias"].shape == (5,)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_other_classes_keep_the_fresh_classifiers(segmentor: nn.Module, layout: str) -> None:
    other = build(num_classes=3)
    before = other.decode_head.classifier.weight.clone()
    report = load_weights(other, export_weights(segmentor, layout))
    assert report.head == "fresh for 3 classes, the source has 5"
    assert report.head_replaced
    assert report.missing == tuple(
        f"{head}_head.classifier.{leaf}"
        for head in ("decode", "auxiliary")
        for leaf in ("weight", "bias")
    )
    assert torch.equal(other.decode_head.classifier.weight, before)
    kernels = (model.decode_head.fusion.conv.weight for model in (other, segmentor))
    assert torch.equal(*kernels)


@pytest.mark.parametrize("ours", [False, True])
def test_only_one_side_has_the_auxiliary_head(segmentor: nn.Module, ours: bool) -> None:
    without = build(auxiliary=False)
    target, source = (segmentor, without) if ours else (without, segmentor)
    report = load_weights(target, export_weights(source, "official"))
    assert not report.head_replaced
    only = report.missing if ours else report.unexpected
    assert len(only) == 8
    assert all(name.startswith("auxiliary_head.") for name in only)


@pytest.mark.parametrize(
    "layout", ["convnext", "official", "openmmlab", "timm", "torchvision", "transformers"]
)
def test_a_classifier_goes_into_the_backbone(layout: str, randomize: Randomize) -> None:
    sizes = {key: SMALL[key] for key in ("depths", "dims")}
    classifier = randomize(create_model("convnext_atto", num_classes=10, **sizes))
    model = build()
    heads = {n: t.clone() for n, t in model.state_dict().items() if not n.startswith("backbone.")}
    report = load_weights(model, export_weights(classifier, layout))
    assert report.layout == layout
    assert report.missing == tuple(heads)
    assert report.head == "fresh, the source has none for this task"
    assert report.loaded + len(heads) == report.total == len(model.state_dict())
    images = torch.randn(1, 3, 64, 64)
    expected = classifier.pyramid(images)
    maps = model.eval().backbone.pyramid(images)
    assert all(torch.equal(maps[name], expected[name]) for name in expected)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in heads.items())


def test_a_file_of_a_classifier_is_named_when_the_segmentor_is_built(
    tmp_path: Path, randomize: Randomize
) -> None:
    for name in ("convnext_atto", "timm/resnet18"):
        classifier = randomize(create_model(name, num_classes=10))
        torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
        model = create_model(
            f"upernet_{name}", weights=str(tmp_path / "classifier.pth"), channels=8
        ).eval()
        images = torch.randn(1, 3, 64, 64)
        maps, expected = model.backbone.pyramid(images), classifier.pyramid(images)
        assert all(torch.equal(maps[level], expected[level]) for level in expected)


@pytest.mark.parametrize("name", ["convnext_tiny", "roadmap/resnet50/resnet_baseline"])
def test_a_classifier_of_another_size_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="does not fit upernet_convnext_atto"):
        load_weights(build(), create_model(name, num_classes=10).state_dict())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_says_what_it_is(layout: str) -> None:
    for changes in ({}, {"auxiliary": False, "in_chans": 1, "kernel_size": 5}):
        model = build(**changes)
        name, told = infer_model(export_weights(model, layout))
        again = create_model(name, **told)
        shapes = {n: t.shape for n, t in again.state_dict().items()}
        assert shapes == {n: t.shape for n, t in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"this file looks like upernet_convnext_.*channels=8"):
        load_weights(build(channels=16), export_weights(model, layout))


def test_a_published_size_has_its_own_name() -> None:
    with torch.device("meta"):
        model = create_model("upernet_convnext_small")
    assert infer_model(export_weights(model, "official")) == ("upernet_convnext_small", {})


def test_what_has_no_form() -> None:
    with pytest.raises(
        ValueError, match=r"cannot be written in the layout 'official', .*; choose .*convnext"
    ):
        export_weights(create_model("upernet_roadmap/resnet50/kernel_7", **SMALL), "official")
    with pytest.raises(ValueError, match="there is no layout 'mmseg'; choose one of"):
        export_weights(build(), "mmseg")
    with pytest.raises(ValueError, match="cannot be written in the layout 'timm'"):
        export_weights(build(), "timm")
    with pytest.raises(ValueError, match="this network has none; build it with output_norms=True"):
        export_weights(build(output_norms=False), "official")
    model = create_model("upernet_timm/resnet18", channels=8)
    assert export_weights(model, "convnext").keys() == model.state_dict().keys()
    with pytest.raises(
        ValueError, match="upernet_timm/resnet18 cannot be written in the layout 'timm'"
    ):
        export_weights(model, "timm")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conversion_of_a_file(tmp_path: Path, segmentor: nn.Module, layout: str) -> None:
    source, there, back = (tmp_path / f"{n}.pth" for n in ("source", "there", "back"))
    torch.save({"state_dict": export_weights(segmentor, "official")}, source)
    report = convert(source, there, layout)
    assert (report.source_layout, report.written_layout) == ("official", layout)
    assert report.dropped == ()
    convert(there, back, "official")
    assert equal(read_source(source)[0], read_source(back)[0])
    again = create_model(report.model, **report.changes)
    load_weights(again, there)
    assert same(again, segmentor)


def test_conversion_of_our_own_checkpoint(tmp_path: Path, segmentor: nn.Module) -> None:
    card = Card(
        model=segmentor.name,
        changes=segmentor.changes,
        classes=tuple("abcde"),
        task="segment",
        preprocessing=DensePreprocessing(
            image_size=64, in_chans=3, mean=(0.5,) * 3, std=(0.2,) * 3
        ),
    )
    source, target = tmp_path / "ours.safetensors", tmp_path / "theirs.pth"
    save_checkpoint(source, segmentor.state_dict(), card)
    report = convert(source, target, "official")
    assert (report.model, report.changes) == (NAME, SMALL)
    # The name implies sizes that differ from those in this file.
    with pytest.raises(ValueError, match="is not a upernet_convnext_atto: it"):
        convert(source, target, "official", model=NAME)
    assert set(torch.load(target, weights_only=True)) == {"state_dict"}
    assert same(load(build(), target), segmentor)
    with pytest.raises(ValueError, match="there is no model 'upernet_convnext_ato'"):
        convert(source, target, "official", model="upernet_convnext_ato")


def load(model: nn.Module, source: Path) -> nn.Module:
    load_weights(model, source)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return equal(a.state_dict(), b.state_dict())


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
