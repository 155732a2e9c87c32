"""The card of a checkpoint: it round trips, and can only name networks."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convnext import create_model, load
from convnext.data.preprocessing import DensePreprocessing, Preprocessing
from convnext.tasks import DEFAULT, trained
from convnext.tasks.detection.model.heads import DetectorConfig
from convnext.tasks.segmentation.model import UPerNetConfig
from convnext.tasks.segmentation.scores import inference_of
from convnext.tasks.trained import pick_precision, task_of
from convnext.weights import checkpoint
from convnext.weights.checkpoint import Card, data_of, val_share_of

ADDRESS = "http://127.0.0.1:9/file.pth"
MEAN, STD = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
CROPPED = Preprocessing(image_size=32, crop_pct=0.9, mean=MEAN, std=STD)
WHOLE = DensePreprocessing(image_size=64, max_size=128, mean=MEAN, std=STD)


def card(preprocessing: Any = CROPPED, **changes: Any) -> Card:
    given: dict[str, Any] = {
        "task": "classify",
        "model": "convnext_atto",
        "changes": {"num_classes": 2, "dims": [8, 8, 8, 8]},
        "classes": ("cat", "dog"),
        "recipe": {"run": {"precision": "fp32"}},
        "metrics": {"top1": 91.5},
    }
    return Card(preprocessing=preprocessing, **given | changes)


@pytest.mark.parametrize(
    "written", [card(), card(WHOLE, task="detect", category_ids=(1, 7)), card(WHOLE, task="other")]
)
def test_what_is_read_is_what_was_written(written: Card) -> None:
    assert Card.from_metadata(written.to_metadata(), "here") == written


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("changes", "[1]"),
        ("changes", "{"),
        ("classes", '"cat"'),
        ("classes", "[1, 2]"),
        ("recipe", "null"),
        ("recipe", '{"segment":' * 2000 + "{}" + "}" * 2000),
        ("changes", '{"depths": ' + "[" * 5000 + "]" * 5000 + "}"),
        ("metrics", "3"),
        ("category_ids", "[true]"),
        ("preprocessing", "[]"),
        ("model", None),
    ],
)
def test_damage_is_named(key: str, text: str | None) -> None:
    metadata = card().to_metadata() | {key: text or ""}
    if text is None:
        del metadata[key]
    with pytest.raises(ValueError, match="here has damaged metadata"):
        Card.from_metadata(metadata, "here")


def test_a_wrong_preprocessing_says_what_is_wrong() -> None:
    metadata = card().to_metadata()
    metadata["preprocessing"] = metadata["preprocessing"].replace("0.9", "7")
    with pytest.raises(ValueError, match="crop_pct is 7"):
        Card.from_metadata(metadata, "here")


@pytest.mark.parametrize("mean", ["NaN", "Infinity", '"0.5"', "true"])
def test_a_mean_is_a_number(mean: str) -> None:
    metadata = card().to_metadata()
    metadata["preprocessing"] = metadata["preprocessing"].replace("[0.5,", f"[{mean},")
    with pytest.raises(ValueError, match=r"mean is .*, but must be a tuple of numbers"):
        Card.from_metadata(metadata, "here")


def test_metadata_of_others_is_not_ours() -> None:
    with pytest.raises(ValueError, match="here is not a checkpoint of this package"):
        Card.from_metadata({"format": "pt"}, "here")


def read(model: str, **changes: Any) -> Card:
    metadata = card(model=model).to_metadata() | {"changes": json.dumps(changes)}
    return Card.from_metadata(metadata, "net.safetensors")


@pytest.mark.parametrize(
    ("model", "changes", "named"),
    [
        ("timm/resnet18", {"pretrained": True}, "pretrained=True"),
        ("timm/resnet18", {"pretrained_cfg": {"url": ADDRESS}}, "pretrained_cfg"),
        ("timm/resnet18", {"pretrained_cfg_overlay": {"file": "x"}}, "pretrained_cfg_overlay"),
        ("timm/resnet18", {"checkpoint_path": "/etc/passwd"}, "checkpoint_path"),
        ("timm/resnet18", {"cache_dir": "/tmp/x"}, "cache_dir"),
        ("timm/resnet18", {"scriptable": True}, "scriptable"),
        ("timm/resnet18", {"num_classes": "3"}, "num_classes"),
        ("timm/resnet18", {"channels": [8, {"url": ADDRESS}]}, "channels"),
        ("timm/resnet18", {"fc_dim": 8}, "fc_dim"),
        ("upernet_timm/resnet18", {"pretrained": True}, "pretrained=True"),
        ("mask_rcnn_timm/resnet18", {"checkpoint_path": "x"}, "checkpoint_path"),
        ("convnext_atto", {"weights": ADDRESS}, "other weights"),
        ("upernet_convnext_atto", {"weights": "hf:a/b"}, "other weights"),
        ("timm/resnet18", {"weights": ADDRESS}, "other weights"),
    ],
)
def test_a_card_gives_timm_no_file_and_no_address(
    model: str, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=f"net.safetensors asks for .*{named}"):
        read(model, **changes)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("timm/resnet18", {"num_classes": 3, "channels": [8, 8, 16, 16], "global_pool": "avg"}),
        ("timm/vit_tiny_patch16_224", {"patch_size": 2, "img_size": 32, "drop_path_rate": 0.1}),
        ("upernet_timm/resnet18", {"auxiliary": True, "channels": 8, "output_norms": False}),
        ("convnext_atto", {"norm": "batch", "dims": [8, 8, 16, 16]}),
    ],
)
def test_sizes_and_rates_are_taken(model: str, changes: dict[str, Any]) -> None:
    assert read(model, **changes).changes == changes


def test_the_settings_of_dense_networks_are_known() -> None:
    own = {field.name for kind in (UPerNetConfig, DetectorConfig) for field in fields(kind)}
    assert own == checkpoint._DENSE


@pytest.mark.parametrize(
    "data",
    [
        *("https://host/shards", "s3://bucket/x", "lists/shards.txt"),
        *(
            "//host/share",
            "\\\\host\\share",
            "/\\host\\share",
            "\\/host/share",
            "\\\\?\\UNC\\host\\x",
        ),
    ],
)
def test_no_address_is_taken_from_a_run(data: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="URLs in a checkpoint are not used"):
        data_of(tmp_path, card(recipe={"data": data}))


def test_a_run_folder_names_its_data(tmp_path: Path) -> None:
    assert data_of(tmp_path, card(recipe={"data": "/photos"})) == "/photos"
    with pytest.raises(ValueError, match="does not say what it was trained on; give --data PATH"):
        data_of(tmp_path, card())
    loose = tmp_path / "net.safetensors"
    loose.touch()
    for recipe in ({"data": "/photos"}, {"data": ADDRESS}):
        with pytest.raises(ValueError, match="is not a run folder"):
            data_of(loose, card(recipe=recipe))


@pytest.mark.parametrize("wrong", [[], 3, "x", True])
def test_what_a_card_says_has_the_right_type(wrong: Any, tmp_path: Path) -> None:
    read = [
        (lambda c: data_of(tmp_path, c), {"data": wrong}),
        (val_share_of, {"loader": wrong}),
        (lambda c: pick_precision("auto", c, torch.device("cpu")), {"run": wrong}),
        (lambda c: pick_precision("auto", c, torch.device("cpu")), {"run": {"precision": wrong}}),
        (lambda c: inference_of(c.recipe), {"segment": wrong}),
        (lambda c: inference_of(c.recipe), {"segment": {"mode": "slide", "window": [wrong]}}),
    ]
    for function, recipe in read[wrong == "x" :]:  # Any text may be a path.
        with pytest.raises(ValueError, match="the model card has"):
            function(card(recipe=recipe))


@pytest.mark.parametrize(
    ("loader", "share"),
    [({"val_share": 0.4}, 0.4), ({"val_share": "x"}, 0.2), ({"val_share": 9}, 0.2), ({}, 0.2)],
)
def test_only_the_share_held_out_is_read_from_a_loader(
    loader: dict[str, Any], share: float
) -> None:
    assert val_share_of(card(recipe={"loader": loader | {"shard_cache": "/home"}})) == share


@pytest.mark.parametrize(
    "changes", [{}, {"num_classes": 3}, {"depths": 7}, {"depths": [1, 1, 10**9, 1]}]
)
def test_weights_that_do_not_fit_their_card_are_one_sentence(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    model = create_model("convnext_atto", depths=[1, 1, 1, 1], dims=[8, 8, 8, 8], num_classes=2)
    checkpoint.save_checkpoint(path, model.state_dict(), card(changes=changes))
    with pytest.raises(ValueError, match=r"net.safetensors: its weights do not fit its model card"):
        load(path)


@pytest.mark.parametrize("name", ["upernet_convnext_atto", "timm/resnet10t"])
def test_a_card_that_asks_for_terabytes_is_refused_before_they_are_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.safetensors"
    changes = {"channels": 10**6} if name.startswith("upernet") else {"num_classes": 10**9}
    task = "segment" if name.startswith("upernet") else "classify"
    own = card(model=name, changes=changes, task=task)
    checkpoint.save_checkpoint(path, {"a": torch.ones(2)}, own)
    built = []
    create = trained.build

    def build(own: Card) -> Any:
        network = create(own)
        built.append({p.device.type for p in network.parameters()})
        return network

    monkeypatch.setattr(trained, "build", build)
    with pytest.raises(ValueError, match="its weights do not fit its model card"):
        load(path)
    assert built == [{"meta"}]


def test_the_task_of_a_card_is_that_of_its_network(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    own = card(model="mask_rcnn_convnext_atto", task="classify")
    checkpoint.save_checkpoint(path, {"a": torch.ones(2)}, own)
    with pytest.raises(ValueError, match="its task is 'classify', but mask_rcnn_convnext_atto is"):
        load(path)


def test_images_too_small_for_the_network_are_one_sentence(tmp_path: Path) -> None:
    network = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "num_classes": 2}
    preprocessing = Preprocessing(image_size=2, crop_pct=1.0, mean=(0.5,) * 3, std=(0.2,) * 3)
    own = Card(
        task="classify",
        model="convnext_atto",
        changes=network,
        classes=("a", "b"),
        preprocessing=preprocessing,
    )
    path = tmp_path / "net.safetensors"
    checkpoint.save_checkpoint(path, create_model("convnext_atto", **network).state_dict(), own)
    with pytest.raises(ValueError, match="images of 2 x 2 pixels are too small for the network"):
        load(path).predict(np.zeros((9, 9, 3), np.uint8), progress=False)


def test_a_card_without_a_task_is_of_the_default_task(tmp_path: Path) -> None:
    network = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "num_classes": 2}
    plain = card(task="", changes=network)
    path = tmp_path / "net.safetensors"
    model = create_model("convnext_atto", **network)
    checkpoint.save_checkpoint(path, model.state_dict(), plain)  # Its place in 0.1.0.
    assert Card(**{k: v for k, v in vars(plain).items() if k != "task"}) == plain
    assert task_of(str(path)) == DEFAULT
    assert load(path).task == DEFAULT
