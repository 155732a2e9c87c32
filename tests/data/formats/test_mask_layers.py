"""Several mask files for an image: one for each class, or one for each object."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext.data.formats.mask_folders import is_mask_folder
from convnext.data.images import BadImage
from convnext.tasks.segmentation.data import open_dataset


def write(path: Path, *boxes: tuple[int, int], top: int = 255) -> None:
    """Write a mask with squares of 4 x 4 pixels, or noise without any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not boxes:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)).save(path)
        return
    mask = np.zeros((12, 16), np.uint8)
    for y, x in boxes:
        mask[y : y + 4, x : x + 4] = top
    Image.fromarray(mask).save(path)


@pytest.mark.parametrize("pattern", ["masks/{0}/{1}.png", "masks/{1}_{0}.png"])
def test_a_mask_for_each_class(tmp_path: Path, pattern: str) -> None:
    for i in range(8):
        write(tmp_path / f"images/{i}.png")
        write(tmp_path / pattern.format("road", i), (0, 0), (4, 4))
        if i != 5:
            write(tmp_path / pattern.format("car", i), (2, 8), top=1)
    data = open_dataset(str(tmp_path))
    assert data.classes == ("background", "car", "road")
    assert len(data.train) + len(data.val) == 8
    assert "an image has a mask file for each class or object" in data.notes
    labels = {
        name: part.mask(i) for part in (data.train, data.val) for i, name in enumerate(part.names)
    }
    for name, mask in labels.items():
        assert (mask[0:4, 0:4] == 2).all()
        assert (mask[2:6, 8:12] == int(name != "5")).all()
        assert (mask == 0).sum() == 12 * 16 - 32 - 16 * (name != "5")


def test_a_folder_for_each_image_with_a_mask_for_each_object(tmp_path: Path) -> None:
    for i in range(6):
        write(tmp_path / f"stage1_train/a{i}/images/a{i}.png")
        for k in range(1 + i % 3):
            write(tmp_path / f"stage1_train/a{i}/masks/{k}f.png", (4 * k, 4 * k))
    assert is_mask_folder(tmp_path)
    data = open_dataset(str(tmp_path))
    assert data.classes == ("background", "foreground")
    for part in (data.train, data.val):
        for i, name in enumerate(part.names):
            assert int(part.mask(i).sum()) == 16 * (1 + int(name[1:]) % 3)


def test_several_masks_beside_an_image(tmp_path: Path) -> None:
    for kind in ("benign", "normal"):
        for i in range(4):
            write(tmp_path / f"{kind}/{kind} ({i}).png")
            write(tmp_path / f"{kind}/{kind} ({i})_mask.png", (0, 0))
    write(tmp_path / "benign/benign (2)_mask_1.png", (8, 8))
    assert is_mask_folder(tmp_path)
    data = open_dataset(str(tmp_path))
    assert len(data.train) + len(data.val) == 8
    assert data.faults == ()
    sums = {
        name: int(part.mask(i).sum())
        for part in (data.train, data.val)
        for i, name in enumerate(part.names)
    }
    assert sums["benign/benign (2)"] == 32
    assert sums["normal/normal (0)"] == 16


def test_a_layer_with_indices_is_refused(tmp_path: Path) -> None:
    for i in range(8):
        write(tmp_path / f"images/{i}.png")
        for name in ("left", "right"):
            write(tmp_path / f"masks/{i}_{name}.png", (0, 0), top=1)
    mask = np.zeros((12, 16), np.uint8)
    mask[:4], mask[4:8] = 1, 2
    Image.fromarray(mask).save(tmp_path / "masks/0_left.png")
    data = open_dataset(str(tmp_path))
    part = data.train if "0" in data.train.names else data.val
    with pytest.raises(BadImage, match="has the values 0, 1, 2, but is taken for the mask of"):
        part.mask(part.names.index("0"))
