"""The table of published weights, against timm's registry."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import timm
import torch

from convnext.tasks.classification.model import published_card
from convnext.tasks.factory import create_model, list_models
from convnext.tasks.trained import card_of, task_of
from convnext.weights import export_weights, load_weights
from convnext.weights.published import (
    PUBLISHED,
    PUBLISHED_DENSE,
    Published,
    find_published,
    find_published_dense,
    published,
)

REFERENCE = Path(__file__).parents[1] / "reference"
IN_TIMM = [entry for entry in PUBLISHED if entry.hub_id.startswith("timm/")]


@pytest.mark.parametrize("entry", IN_TIMM, ids=lambda entry: f"{entry.model}.{entry.tag}")
def test_an_entry_agrees_with_timm(entry: Published) -> None:
    name = f"{entry.model}.{entry.tag}"
    assert entry.hub_id == f"timm/{name}"
    assert name in timm.list_pretrained(f"{entry.model}.*")
    config = timm.get_pretrained_cfg(name)
    assert config.num_classes == entry.num_classes
    assert (config.mean, config.std) == (entry.mean, entry.std)
    assert config.interpolation == entry.interpolation
    assert config.license == entry.license
    sizes = {(config.input_size[-1], config.crop_pct)}
    if config.test_input_size:
        sizes.add((config.test_input_size[-1], config.test_crop_pct))
    assert (entry.input_size, entry.crop_pct) in sizes


def test_what_timm_does_not_have() -> None:
    others = [entry for entry in PUBLISHED if entry not in IN_TIMM]
    assert [(e.model, e.tag) for e in others] == [
        ("convnext_base", "fb_in1k_384"),
        ("convnext_large", "fb_in1k_384"),
    ]


def test_every_tag_of_the_authors_is_listed() -> None:
    theirs = {
        name
        for size in ("tiny", "small", "base", "large", "xlarge")
        for name in timm.list_pretrained(f"convnext_{size}.fb_*")
    }
    assert theirs <= {f"{entry.model}.{entry.tag}" for entry in PUBLISHED}


def test_entries_are_unique_and_of_known_networks() -> None:
    keys = [(entry.model, entry.tag) for entry in PUBLISHED]
    assert len(set(keys)) == len(keys)
    assert {entry.model for entry in PUBLISHED} - set(list_models()) == {"resnet50"}
    assert all((entry.top1 is None) == (entry.num_classes != 1000) for entry in PUBLISHED)


def test_the_ends_of_the_road_share_the_weights_of_what_they_are() -> None:
    assert published("roadmap/resnet50/separate_downsampling") == published("convnext_tiny")
    assert published("roadmap/resnet200/separate_downsampling") == published("convnext_base")
    assert [e.tag for e in published("roadmap/resnet50/resnet_baseline")][:1] == ["tv_in1k"]
    assert published("roadmap/resnet50/kernel_9") == []
    assert published("convnext_isotropic_small") == []


@pytest.mark.parametrize(
    ("source", "model", "hub_id"),
    [
        ("fb_in1k", "convnext_tiny", "timm/convnext_tiny.fb_in1k"),
        ("fb_in22k_ft_in1k_384", "convnext_xlarge", "timm/convnext_xlarge.fb_in22k_ft_in1k_384"),
        ("d2_in1k", "convnext_atto", "timm/convnext_atto.d2_in1k"),
        ("a1_in1k", "roadmap/resnet50/enhanced_recipe", "timm/resnet50.a1_in1k"),
        ("convnext_tiny.fb_in1k", None, "timm/convnext_tiny.fb_in1k"),
        ("timm/convnext_tiny.fb_in1k@abc", None, "timm/convnext_tiny.fb_in1k"),
        ("hf:timm/convnext_tiny.fb_in1k", None, "timm/convnext_tiny.fb_in1k"),
        ("hf:timm/convnext_tiny.fb_in1k@abc", None, "timm/convnext_tiny.fb_in1k"),
        ("hf:facebook/convnext-base-384", None, "facebook/convnext-base-384"),
        ("/c/models--timm--convnext_base.fb_in22k/snapshots/1/model.safetensors", None,
         "timm/convnext_base.fb_in22k"),
        ("fb_in1k", None, None),
        ("fb_in1k", "convnext_atto", None),
        ("none", "convnext_tiny", None),
        ("facebook/convnext-tiny-224", None, None),
    ],
)  # fmt: skip
def test_find_published(source: str, model: str | None, hub_id: str | None) -> None:
    entry = find_published(source, model)
    assert (entry and entry.hub_id) == hub_id


@pytest.mark.parametrize("prefix", ["", "hf:"])
@pytest.mark.parametrize("revision", ["", "@main"])
def test_a_hub_id_has_the_published_preprocessing_before_anything_is_fetched(
    prefix: str, revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # A download would be an error.
    source = f"{prefix}timm/convnext_tiny.fb_in22k_ft_in1k_384{revision}"
    assert task_of(source) == "classify"
    card = card_of(source, "convnext_tiny")
    assert card is not None
    assert (card.preprocessing.image_size, card.preprocessing.crop_pct) == (384, 1.0)
    assert published_card(source, "convnext_tiny", {}).preprocessing == card.preprocessing


def test_dense_entries_are_those_of_the_reference() -> None:
    sizes = {"T": "tiny", "S": "small", "B": "base", "L": "large", "XL": "xlarge"}
    expected = {}
    for row in csv.DictReader((REFERENCE / "ade20k.csv").read_text().splitlines()):
        family, _, size = row["backbone"].partition("-")
        if family == "ConvNeXt":
            key = f"upernet_convnext_{sizes[size]}", f"ade20k_{row['pretrain'].lower()}"
            scores = {"miou_ms": float(row["miou_ms"]), "miou": float(row["miou_ss"])}
            expected[key] = scores, int(row["crop"])
    for row in csv.DictReader((REFERENCE / "coco.csv").read_text().splitlines()):
        family, _, size = row["backbone"].partition("-")
        if family == "ConvNeXt":
            method = {"cascade": "cascade_mask_rcnn"}.get(row["method"], row["method"])
            key = f"{method}_convnext_{sizes[size]}", f"coco_{row['pretrain'].lower()}"
            expected[key] = {"box_ap": float(row["ap_box"]), "mask_ap": float(row["ap_mask"])}, 800
    assert {(e.model, e.tag): (dict(e.scores), e.input_size) for e in PUBLISHED_DENSE} == expected


def test_a_data_set_names_the_only_weights_of_it() -> None:
    found = find_published_dense("ade20k", "upernet_convnext_tiny")
    assert found is not None
    assert found.filename == "upernet_convnext_tiny_1k_512x512.pth"
    assert find_published_dense("upernet_convnext_tiny.ade20k") == found
    assert find_published_dense("ade20k", "convnext_tiny") is None
    assert find_published_dense("coco", "upernet_convnext_tiny") is None
    with pytest.raises(
        ValueError, match=r"several weights 'coco': choose coco_1k .*52\.7.* or coco"
    ):
        find_published_dense("coco", "cascade_mask_rcnn_convnext_base")


def test_a_file_that_no_hub_has_is_read_from_where_torch_keeps_its_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    sizes = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "channels": 16, "fc_dim": 16}
    model = create_model("mask_rcnn_convnext_tiny", **sizes)
    with pytest.raises(ValueError, match=r"fetch https://\S+/mask_rcnn_convnext_tiny_1k_3x.pth"):
        load_weights(model, "coco")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    other = create_model("mask_rcnn_convnext_tiny", **sizes)
    file = folder / "mask_rcnn_convnext_tiny_1k_3x.pth"
    torch.save({"state_dict": export_weights(other, "official")}, file)
    report = load_weights(model, "coco")
    assert (report.loaded, report.head) == (report.total, "loaded, 80 classes")
    with pytest.raises(ValueError, match="has no weights 'cocoa'; did you mean 'coco"):
        load_weights(model, "cocoa")
