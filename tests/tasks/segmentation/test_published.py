"""Files with only a segmentor's tensors: recognition, inference and fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from shapes import write_shapes

from convnext.cli import main
from convnext.data.preprocessing import DensePreprocessing
from convnext.tasks.factory import create_model
from convnext.tasks.segmentation.model import ADE20K, published_side
from convnext.tasks.trained import card_of, open_model, task_of
from convnext.weights import export_weights

CPU = torch.device("cpu")
SMALL = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "channels": 16, "auxiliary_channels": 8}


def publish(path: Path, num_classes: int = 150) -> Path:
    torch.manual_seed(0)
    model = create_model("upernet_convnext_tiny", num_classes=num_classes, **SMALL)
    tensors = export_weights(model, "official")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("openmmlab/upernet-convnext-large", 640),
        ("openmmlab/upernet-convnext-tiny", 512),
        ("runs/640/upernet_convnext_small_1k_512x512.pth", 512),
        ("upernet_convnext_base_22k_640x640.pth", 640),
    ],
)
def test_the_size_is_in_the_name(name: str, side: int) -> None:
    assert published_side(name) == side


def test_the_classes_are_those_of_ade20k() -> None:
    assert len(ADE20K) == len(set(ADE20K)) == 150
    assert (ADE20K[0], ADE20K[48], ADE20K[76], ADE20K[149]) == (
        "wall",
        "skyscraper",
        "boat",
        "flag",
    )


def test_a_published_file_reads_images_whole_as_it_was_trained(tmp_path: Path) -> None:
    path = publish(tmp_path / "upernet_512x512.safetensors")
    assert task_of(str(path)) == "segment"
    _, card = open_model(str(path), CPU)
    assert (card.task, card.classes) == ("segment", ADE20K)
    assert isinstance(card.preprocessing, DensePreprocessing)
    assert card.preprocessing.size_of(1024, 768) == (683, 512)
    assert card.recipe["segment"] == {"mode": "slide", "window": 512, "stride": 341}
    _, card = open_model(str(publish(tmp_path / "five_640.safetensors", 5)), CPU)
    assert card.classes == ("0", "1", "2", "3", "4")
    assert card.recipe["segment"]["stride"] == 426


def test_training_takes_its_width(tmp_path: Path) -> None:
    path = publish(tmp_path / "upernet.safetensors")
    card = card_of(str(path), "auto")
    assert card is not None
    assert (card.model, card.changes["channels"]) == ("upernet_convnext_tiny", 16)
    tensors = {"stem.weight": torch.zeros(1)}
    save_file(tensors, tmp_path / "other.safetensors")
    assert card_of(str(tmp_path / "other.safetensors"), "auto") is None


def test_it_is_evaluated_whatever_the_data_calls_its_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_shapes(tmp_path / "data", 1, 1)
    path = publish(tmp_path / "three.safetensors", 3)
    assert main(["evaluate", str(path), "--data", str(data), "--flip", "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["inference"] == "windows of 512 every 341, flipped"
    other = str(publish(tmp_path / "four.safetensors", 4))
    assert main(["evaluate", other, "--data", str(data)]) == 2
    assert "does not know 3 of the data's 3 classes, such as 'ground'" in capsys.readouterr().err
