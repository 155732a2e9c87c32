"""Loading: every layout round trips exactly, and mismatches are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convnext.models.config import FAMILY
from convnext.tasks.factory import create_model
from convnext.weights import LAYOUT_NAMES, export_weights, load_weights

Randomize = Callable[[nn.Module], nn.Module]

# Narrower networks of the same structure: the tables do not depend on the width.
SMALL = {
    name: {"dims": tuple(8 * 2**s for s in range(len(config.dims)))}
    for name, config in FAMILY.items()
} | {"convnext_atto": {}}


def equal(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("name", SMALL)
def test_every_member_round_trips_in_every_layout(name: str, randomize: Randomize) -> None:
    model = randomize(create_model(name, **SMALL[name], num_classes=7))
    layouts = ("official", "convnext") if "isotropic" in name else LAYOUT_NAMES
    for layout in layouts:
        exported = export_weights(model, layout)
        fresh = create_model(name, **SMALL[name], num_classes=7)
        report = load_weights(fresh, {k: v.clone() for k, v in exported.items()})
        assert equal(model, fresh)
        assert report.layout == layout
        assert (report.loaded, report.matched) == (report.total, 1.0)
        assert not report.missing
        assert not report.unexpected
        assert not report.resized
        assert not report.head_replaced


@pytest.mark.parametrize("regime", ["resnet50", "resnet200"])
@pytest.mark.parametrize("layout", ["torchvision", "timm", "convnext"])
def test_the_starts_of_the_road_round_trip(regime: str, layout: str, randomize: Randomize) -> None:
    name = f"roadmap/{regime}/resnet_baseline"
    model = randomize(create_model(name, depths=(1, 2, 1, 1), num_classes=5))
    fresh = create_model(name, depths=(1, 2, 1, 1), num_classes=5)
    report = load_weights(fresh, export_weights(model, layout))
    assert equal(model, fresh)
    assert report.matched == 1.0


def test_every_rung_round_trips_under_our_names(randomize: Randomize) -> None:
    from convnext.models.roadmap import roadmap

    for rung in roadmap("resnet50"):
        name = f"roadmap/resnet50/{rung.name}"
        small = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "num_classes": 3}
        model, fresh = randomize(create_model(name, **small)), create_model(name, **small)
        assert load_weights(fresh, export_weights(model, "convnext")).matched == 1.0
        assert equal(model, fresh)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.model.", "_orig_mod.", ""])
def test_wrappers_around_a_network_are_no_obstacle(prefix: str, randomize: Randomize) -> None:
    model = randomize(create_model("convnext_atto"))
    wrapped = {prefix + name: t for name, t in export_weights(model, "official").items()}
    fresh = create_model("convnext_atto")
    assert load_weights(fresh, wrapped).layout == "official"
    assert equal(model, fresh)


def test_the_backbone_of_a_detector_leaves_its_norms_and_heads(randomize: Randomize) -> None:
    model = randomize(create_model("convnext_atto"))
    file = {
        f"backbone.{name}": t
        for name, t in export_weights(model, "official").items()
        if not name.startswith(("norm", "head"))
    }
    file |= {f"backbone.norm{i}.weight": torch.ones(40 * 2**i) for i in range(4)}
    file |= {"neck.lateral_convs.0.conv.weight": torch.ones(256, 40, 1, 1)}
    report = load_weights(fresh := create_model("convnext_atto"), file)
    assert report.layout == "official"
    assert report.matched == 1.0
    assert set(report.unexpected) == set(file) - {n for n in file if "s." in n} | {
        "neck.lateral_convs.0.conv.weight"
    }
    assert report.head == "fresh, the source has none"
    assert torch.equal(fresh.stages[3][1].pwconv2.weight, model.stages[3][1].pwconv2.weight)


def test_openmmlab_with_1x1_convolutions_and_a_preprocessor(randomize: Randomize) -> None:
    model = randomize(create_model("convnext_atto"))
    file = {
        name: t[..., None, None] if "pointwise" in name and t.ndim == 2 else t
        for name, t in export_weights(model, "openmmlab").items()
    }
    file["data_preprocessor.mean"] = torch.zeros(3, 1, 1)
    fresh = create_model("convnext_atto")
    report = load_weights(fresh, file)
    assert report.layout == "openmmlab"
    assert report.unexpected == ("data_preprocessor.mean",)
    assert equal(model, fresh)


def test_a_head_of_other_classes_stays_fresh(randomize: Randomize) -> None:
    source = randomize(create_model("convnext_atto", num_classes=20))
    model = create_model("convnext_atto", num_classes=10)
    before = model.head.fc.weight.clone()
    report = load_weights(model, export_weights(source, "timm"))
    assert report.head_replaced
    assert report.head == "fresh for 10 classes, the source has 20"
    assert report.missing == ("head.fc.weight", "head.fc.bias")
    assert torch.equal(model.head.fc.weight, before)
    assert "head: fresh for 10 classes, the source has 20" in str(report)
    json.dumps(report.to_dict())


def test_a_network_without_a_head_leaves_that_of_the_source(randomize: Randomize) -> None:
    source = randomize(create_model("convnext_atto"))
    model = create_model("convnext_atto", num_classes=0)
    report = load_weights(model, source.state_dict())
    assert report.head == "the network has none, that of the source is not used"
    assert report.unexpected == ("head.fc.weight", "head.fc.bias")


def test_the_22k_head_is_cut_down_to_1k(randomize: Randomize) -> None:
    from timm.data import ImageNetInfo

    source = randomize(create_model("convnext_atto", num_classes=21841))
    model = create_model("convnext_atto").eval()
    report = load_weights(model, export_weights(source, "timm"))
    assert not report.head_replaced
    assert "cut down to the 1,000" in report.head
    wide, narrow = ImageNetInfo("imagenet-22k"), ImageNetInfo("imagenet-1k")
    synsets = wide.label_names()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits_22k, logits_1k = source(images), model(images)
    known = 0
    for index in range(1000):
        name = narrow.index_to_label_name(index)
        if name != "n04399382":
            assert torch.allclose(
                logits_1k[:, index], logits_22k[:, synsets.index(name)], atol=1e-4
            )
            known += 1
    assert known == 999
    # The teddy bear, which 22K lacks, is never the best guess.
    assert (logits_1k.argmax(1) != narrow.label_names().index("n04399382")).all()


def test_other_channels_and_stems_are_resampled(randomize: Randomize) -> None:
    source = randomize(create_model("convnext_atto"))
    reference = source.stem.conv(torch.ones(1, 3, 64, 64))[0, :, 4, 4]
    for in_chans in (1, 2, 3, 4, 6):
        for stride in (1, 2, 4):
            model = create_model("convnext_atto", in_chans=in_chans, stem_stride=stride)
            report = load_weights(model, export_weights(source, "official"))
            response = model.stem.conv(torch.ones(1, in_chans, 64, 64))[0, :, 4, 4]
            # One channel gets the sum over RGB; several divide the same sum.
            assert torch.allclose(response, reference, atol=1e-5)
            assert len(report.resized) == ((in_chans, stride) != (3, 4))
    assert "(40, 3, 4, 4) -> (40, 6, 2, 2)" in str(
        load_weights(create_model("convnext_atto", in_chans=6, stem_stride=2), source.state_dict())
    )


def test_another_spatial_kernel_is_resampled(randomize: Randomize) -> None:
    source = randomize(create_model("convnext_atto"))
    model = create_model("convnext_atto", kernel_size=9)
    report = load_weights(model, source.state_dict())
    assert len(report.resized) == 12
    mine, theirs = model.stages[0][0].spatial.weight, source.stages[0][0].spatial.weight
    assert torch.allclose(mine.sum((2, 3)), theirs.sum((2, 3)), atol=1e-5)


def test_layer_scales_of_one_side_keep_the_function(randomize: Randomize) -> None:
    images = torch.randn(2, 3, 64, 64)
    scaled = randomize(create_model("convnext_atto"))
    plain = create_model("convnext_atto", layer_scale_init=0.0).eval()
    report = load_weights(plain, export_weights(scaled, "torchvision"))
    assert "folded" in report.notes[0]
    assert report.matched == 1.0
    assert not report.unexpected
    with torch.inference_mode():
        assert torch.allclose(plain(images), scaled(images), atol=1e-5)
        again = create_model("convnext_atto").eval()
        report = load_weights(again, export_weights(plain, "official"))
        assert "set to 1" in report.notes[0]
        assert torch.allclose(again(images), plain(images), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_point_types_are_cast(dtype: torch.dtype, randomize: Randomize) -> None:
    source = {
        n: t.to(dtype) for n, t in randomize(create_model("convnext_atto")).state_dict().items()
    }
    model = create_model("convnext_atto")
    load_weights(model, source)
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.head.fc.bias.to(dtype), source["head.fc.bias"])


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("source", "words"),
    [
        # Small has every tensor of tiny; the additional ones distinguish it.
        ("convnext_small", ("nearest layout is 'convnext'", "looks like convnext_small: create")),
        ("timm/convnextv2_tiny", ("nearest layout is 'timm'", "stages.0.blocks.0.mlp.grn.weight")),
        ("timm/convnext_atto_ols", ("of another shape", "stem.conv.weight")),
        ("timm/resnet50", ("looks like roadmap/resnet50/resnet_baseline",)),
        ("timm/vit_tiny_patch16_224", ("0 % of the backbone matches",)),
        ("convnext_base", ("of another shape", "(128, 3, 4, 4)", "looks like convnext_base")),
    ],
)
def test_what_does_not_fit_is_refused_and_named(source: str, words: tuple[str, ...]) -> None:
    model = create_model("convnext_atto" if "atto" in source else "convnext_tiny")
    before = snapshot(model)
    other = create_model(source)
    other = getattr(other, "network", other)
    with pytest.raises(ValueError, match="does not fit convnext_") as error:
        load_weights(model, other.state_dict())
    for word in words:
        assert word in str(error.value)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_ninety_percent_are_needed(randomize: Randomize) -> None:
    source = dict(randomize(create_model("convnext_atto")).state_dict())
    names = [n for n in source if not n.startswith("head.")]
    model = create_model("convnext_atto")
    few = {n: t for n, t in source.items() if n not in names[: len(names) // 11]}
    report = load_weights(model, few)
    assert 0.9 <= report.matched < 1
    assert report.missing[0] == "stem.conv.weight"
    assert "missing: stem.conv.weight, " in str(report)
    fewer = {n: t for n, t in source.items() if n not in names[: len(names) // 9]}
    with pytest.raises(ValueError, match=r"not in the source: stem\.conv\.weight"):
        load_weights(model, fewer)


def test_a_peer_takes_its_own_names(randomize: Randomize, tmp_path: Path) -> None:
    theirs = randomize(timm.create_model("resnet18"))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    peer = create_model("timm/resnet18", num_classes=4)
    report = load_weights(peer, tmp_path)
    assert report.layout == "timm"
    assert report.matched == 1.0
    assert report.head == "fresh for 4 classes, the source has 1,000"
    assert torch.equal(peer.network.layer1[0].conv1.weight, theirs.layer1[0].conv1.weight)
    # Our checkpoints add another wrapper.
    again = create_model("timm/resnet18", num_classes=4)
    assert load_weights(again, peer.state_dict()).loaded == len(peer.state_dict())
    assert equal(again, peer)
    assert export_weights(peer, "timm").keys() == theirs.state_dict().keys()
    with pytest.raises(ValueError, match="does not fit timm/resnet18"):
        load_weights(peer, timm.create_model("resnet50").state_dict())


def test_create_model_takes_weights(randomize: Randomize, tmp_path: Path) -> None:
    source = randomize(create_model("convnext_atto"))
    path = tmp_path / "atto.pth"
    torch.save({"model": export_weights(source, "official")}, path)
    assert equal(create_model("convnext_atto", weights=str(path)), source)


def test_backbones_of_transformers_have_no_prefix(randomize: Randomize) -> None:
    from transformers import ConvNextBackbone, ConvNextConfig, ConvNextModel

    config = ConvNextConfig(
        depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320], out_features=["stage1", "stage4"]
    )
    for kind in (ConvNextModel, ConvNextBackbone):
        theirs = randomize(kind(config))
        model = create_model("convnext_atto")
        report = load_weights(model, theirs.state_dict())
        assert report.layout == "transformers"
        assert report.matched == 1.0
        assert report.head == "fresh, the source has none"
        assert all("hidden_states_norms" in name for name in report.unexpected)
        images = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            expected = theirs(images)
            if kind is ConvNextModel:
                assert torch.allclose(
                    model(images), model.head.fc(expected.pooler_output), atol=1e-5
                )
            else:
                assert len(report.unexpected) == 4
                assert report.missing[:2] == ("head.norm.weight", "head.norm.bias")


@pytest.mark.parametrize(
    "key",
    [
        *("model", "state_dict", "model_state_dict", "module", "net", "network"),
        *("model_ema", "state_dict_ema", "ema_state_dict", "ema", "teacher"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_torch_load_returns_is_taken_as_the_file_is(
    key: str, prefix: str, randomize: Randomize, tmp_path: Path
) -> None:
    model = randomize(create_model("convnext_atto", num_classes=7))
    tensors = {f"{prefix}{n}": t.clone() for n, t in export_weights(model, "official").items()}
    path = tmp_path / "published.pth"
    torch.save({key: tensors, "epoch": 3, "args": None}, path)
    loaded = torch.load(path, weights_only=True)
    for source in (str(path), loaded):
        fresh = create_model("convnext_atto", num_classes=7)
        report = load_weights(fresh, source)
        assert equal(model, fresh)
        assert (report.loaded, report.layout) == (report.total, "official")


def test_the_average_is_taken_from_a_loaded_file_when_it_is_asked_for(
    randomize: Randomize,
) -> None:
    models = [randomize(create_model("convnext_atto", num_classes=n)) for n in (7, 5)]
    plain, average = (export_weights(model, "official") for model in models)
    for ema, classes in ((False, 7), (True, 5)):
        fresh = create_model("convnext_atto", num_classes=classes)
        load_weights(fresh, {"model": plain, "model_ema": average}, ema=ema)
        assert equal(fresh, models[ema])
    with pytest.raises(ValueError, match="no moving average of the weights; it holds model"):
        load_weights(models[0], {"model": plain}, ema=True)


def test_a_loaded_file_without_weights_is_refused_by_its_keys() -> None:
    model = create_model("convnext_atto")
    with pytest.raises(ValueError, match="holds no state dict but the keys epoch, optimizer"):
        load_weights(model, {"epoch": 1, "optimizer": {}})
    with pytest.raises(ValueError, match="holds no state dict"):
        load_weights(model, {})


def test_a_moving_average_that_is_not_taken_is_named(tmp_path: Path) -> None:
    model = create_model("convnext_atto", num_classes=2)
    both = {"model": model.state_dict(), "model_ema": model.state_dict()}
    torch.save(both, tmp_path / "both.pth")
    for source in (both, tmp_path / "both.pth"):
        taken = "took 'model'; 'model_ema' is available with ema=True"
        assert load_weights(model, source).notes == (taken,)
        assert load_weights(model, source, ema=True).notes == ()
    assert load_weights(model, {"model": model.state_dict()}).notes == ()
