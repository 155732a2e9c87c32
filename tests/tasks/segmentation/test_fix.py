"""`data --fix` writes masks that fit their photos after EXIF has turned them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from convnext.api import fix_annotations
from convnext.cli import main
from convnext.data.formats.records import ReadOptions
from convnext.tasks import task_to_fix
from convnext.tasks.segmentation.data import open_dataset

Save = Callable[[Image.Image, Path], None]
TURNS = range(1, 9)


def png(image: Image.Image, path: Path) -> None:
    image.save(path.with_suffix(".png"))


def palette_png(image: Image.Image, path: Path) -> None:
    colors = Image.fromarray(np.asarray(image), "P")
    colors.putpalette([0, 0, 0, 200, 30, 30, *[0] * 759, 224, 224, 192])
    colors.save(path.with_suffix(".png"))


def wide_png(image: Image.Image, path: Path) -> None:
    Image.fromarray(np.asarray(image).astype(np.uint16)).save(path.with_suffix(".png"))


def tiff(image: Image.Image, path: Path) -> None:
    image.save(path.with_suffix(".tif"), compression="tiff_deflate")


def photos(root: Path, *, drawn_before: bool, size: tuple[int, int], save: Save = png) -> Path:
    """Write a photo for each orientation of EXIF in both splits, with the mask of its bright part.

    A mark in one corner makes every orientation different.
    """
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for turn in TURNS:
            values = rng.integers(0, 60, (size[1], size[0], 3)).astype(np.uint8)
            values[2:9, 3:20] = 220
            exif = Image.Exif()
            exif[0x0112] = turn
            path = root / "images" / split / f"{turn}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path, exif=exif)
            shown = Image.fromarray(values) if drawn_before else Image.open(path)
            bright = np.asarray(ImageOps.exif_transpose(shown))[..., 0] > 128
            mask = root / "masks" / split / str(turn)
            mask.parent.mkdir(parents=True, exist_ok=True)
            save(Image.fromarray(bright.astype(np.uint8)), mask)
    (root / "classes.txt").write_text("background\nthing\n")
    return root


def num_fitting(root: Path) -> int:
    """Return how many masks fit their photos if they are read as drawn on turned photos."""
    data = open_dataset(str(root), options=ReadOptions(exif="turned"))
    fits = 0
    for pairs in data.parts.values():
        for i in range(len(pairs)):
            image = np.asarray(pairs.open(i, "L"))
            fits += np.array_equal(pairs.mask(i, image.shape[::-1]) == 1, image > 128)
    return fits


@pytest.mark.parametrize("save", [png, palette_png, wide_png, tiff])
def test_masks_of_unturned_photos_are_turned(save: Save, tmp_path: Path) -> None:
    root = photos(tmp_path / "data", drawn_before=True, size=(32, 32), save=save)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert num_fitting(root) == 2
    report = fix_annotations(
        root, output=tmp_path / "fixed", yes=True, exif="unturned", progress=False
    ).to_dict()
    assert num_fitting(tmp_path / "fixed") == 16
    assert len(report["turned"]) == 14
    assert report["kept"] == report["left"] == ()
    # The data set is complete, in the same files, and the old one is as it was.
    after = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert after == before
    names = {path.relative_to(root) for path in before}
    files = {p.relative_to(tmp_path / "fixed") for p in (tmp_path / "fixed").rglob("*")}
    assert {name for name in files if (tmp_path / "fixed" / name).is_file()} == names
    for name in names:
        if name.parts[0] == "images":
            assert (tmp_path / "fixed" / name).read_bytes() == before[root / name]
    if save is palette_png:
        with Image.open(tmp_path / "fixed/masks/train/6.png") as image:
            assert (image.mode, image.getpalette()[3:6]) == ("P", [200, 30, 30])


def test_masks_of_turned_photos_stay(tmp_path: Path) -> None:
    root = photos(tmp_path / "data", drawn_before=False, size=(32, 32))
    options = {"yes": True, "progress": False, "exif": "turned"}
    report = fix_annotations(root, output=tmp_path / "fixed", **options).to_dict()
    assert num_fitting(tmp_path / "fixed") == 16
    assert (report["turned"], len(report["kept"]), report["left"]) == ((), 14, ())


def test_without_the_users_word_only_sizes_decide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = photos(tmp_path / "data", drawn_before=True, size=(48, 32))
    argv = ["data", str(root), "--fix", "--yes", "--output", str(tmp_path / "fixed"), "--json"]
    assert main(argv) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    # A quarter turn changes the size; mirrored photos may be meant in either way.
    assert len(report["turned"]) == 8
    assert {name for name, _ in report["left"]} == {
        f"masks/{split}/{turn}.png" for split in ("train", "val") for turn in (2, 3, 4)
    }
    assert all("--exif turned or --exif unturned" in reason for _, reason in report["left"])
    assert num_fitting(tmp_path / "fixed") == 10


def test_what_is_not_fixed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = photos(tmp_path / "data", drawn_before=True, size=(32, 32))
    assert main(["data", str(root), "--fix", "--yes", "--exif", "unturned"]) == 2
    assert "give its folder as --output" in capsys.readouterr().err
    with pytest.raises(ValueError, match="is not empty"):
        fix_annotations(root, output=root, yes=True, exif="unturned")
    (root / "masks/val/6.png").write_bytes(b"no image")
    report = fix_annotations(
        root, output=tmp_path / "fixed", yes=True, exif="unturned", progress=False
    ).to_dict()
    assert [name for name, _ in report["left"]] == ["masks/val/6.png"]
    assert (tmp_path / "fixed/masks/val/6.png").read_bytes() == b"no image"
    assert len(report["turned"]) == 13


def test_each_task_fixes_its_own_data(tmp_path: Path, shared_data: Path) -> None:
    root = photos(tmp_path / "data", drawn_before=True, size=(32, 32))
    assert task_to_fix(root, {}) == task_to_fix(root, {"exif": "turned"}) == "segment"
    assert task_to_fix(tmp_path / "absent", {"masks": "*.png"}) == "segment"
    assert task_to_fix(shared_data / "coco_mini_cc", {}) == "detect"
    assert task_to_fix(tmp_path / "absent", {}) == "detect"
