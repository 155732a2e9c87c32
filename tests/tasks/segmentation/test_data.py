"""Data sets on disk: layouts, image-mask pairs, classes, and faults of masks."""

from __future__ import annotations

import json
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from shapes import write_shapes

import convnext
from convnext.cli import main
from convnext.data.formats.mask_folders import is_mask_folder
from convnext.data.formats.records import ReadOptions
from convnext.data.images import BadImage
from convnext.tasks.segmentation.data import facts, open_dataset
from convnext.tasks.segmentation.inspect import _both_readings, _tile, contact_sheet, inspect
from convnext.tasks.segmentation.masks import MaskReader


def write(path: Path, values: object, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint16 if mode == "I;16" else np.uint8))
    image.save(path)
    return path


def pair(root: Path, split: str, name: str, mask: object, masks: str = "annotations") -> None:
    height, width = np.asarray(mask).shape[:2]
    rng = np.random.default_rng(crc32(name.encode()))
    write(root / "images" / split / f"{name}.png", rng.integers(0, 256, (height, width, 3)))
    write(root / masks / split / f"{name}.png", mask)


def test_the_layout_of_ade20k_with_names(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "ü b")
    assert is_mask_folder(root)
    data = open_dataset(str(root))
    assert data.classes == ("ground", "red", "blue")
    assert (len(data.train), len(data.val), data.faults) == (16, 6, ())
    assert data.train.names[:2] == ("000", "001")
    assert set(np.unique(data.train.mask(0))) == {0, 1, 2, 255}
    known = facts(data)
    assert (known.image_height, known.image_width, known.grayscale) == (40, 48, False)
    assert sum(known.pixel_counts) == 16 * 38 * 48


def test_ade20k_itself_has_no_class_zero(tmp_path: Path) -> None:
    for split in ("training", "validation"):
        pair(tmp_path, split, "a", [[0, 1], [2, 150]])
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    lines += [f"{i}\t0.1\t1\t1\t0\tname {i}, other" for i in range(1, 151)]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines))
    data = open_dataset(str(tmp_path))
    assert len(data.classes) == 150
    assert data.classes[0] == "name 1"
    assert data.train.mask(0).tolist() == [[255, 0], [1, 149]]
    assert any("value 0 of the masks means no class" in note for note in data.notes)
    plain = open_dataset(str(tmp_path), reduce_zero_label=False)
    with pytest.raises(BadImage, match="has the value 150 in 1 pixels, but there are 150 classes"):
        plain.train.mask(0)


def test_cityscapes_and_any_pattern(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for city in ("aachen", "bonn"):
            stem = f"{split}/{city}/{city}_000"
            write(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png", np.zeros((4, 6, 3)))
            write(tmp_path / f"gtFine/{stem}_gtFine_labelTrainIds.png", np.full((4, 6), 3))
    (tmp_path / "classes.txt").write_text("a\nb\nc\nd\n")
    data = open_dataset(str(tmp_path))
    assert data.train.names == ("aachen/aachen_000", "bonn/bonn_000") or len(data.train) == 2
    assert (len(data.train), len(data.val)) == (2, 2)
    images = "leftImg8bit/{split}/*/*_000_leftImg8bit.png"
    masks = "gtFine/{split}/*/*_000_gtFine_labelTrainIds.png"
    again = open_dataset(str(tmp_path), images=images, masks=masks)
    assert again.train.images == data.train.images
    with pytest.raises(ValueError, match="same number of stars"):
        open_dataset(str(tmp_path), images=images, masks="gtFine/{split}/*.png")
    with pytest.raises(ValueError, match="pass both patterns"):
        open_dataset(str(tmp_path), images=images)
    with pytest.raises(ValueError, match="no pair of files"):
        open_dataset(str(tmp_path), images="x/{split}/*.png", masks="y/{split}/*.png")


def test_without_a_split_a_share_is_held_out_by_name(tmp_path: Path) -> None:
    for i in range(20):
        pair(tmp_path, "", f"{i:02d}", [[0, 1]], masks="masks")
    data = open_dataset(str(tmp_path), val_share=0.25)
    assert (len(data.train), len(data.val)) == (15, 5)
    assert data.classes == ("class 0", "class 1")
    again = open_dataset(str(tmp_path), val_share=0.25)
    assert data.val.names == again.val.names
    assert not set(data.val.names) & set(data.train.names)


def test_files_without_a_partner_are_named(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "s")
    (root / "annotations/train/003.png").unlink()
    (root / "images/train/005.png").unlink()
    data = open_dataset(str(root))
    assert len(data.train) == 14
    assert data.faults == (
        f"1 images without a mask in the train split, left out (such as "
        f"{root / 'images/train/003.png'})",
        f"1 masks without an image in the train split, left out (such as "
        f"{root / 'annotations/train/005.png'})",
    )


def test_an_empty_split_and_no_layout(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "s", num_val=0)
    with pytest.raises(ValueError, match="no image with a mask in its val split"):
        open_dataset(str(root))
    assert (
        "there is no image with a mask in the val split"
        in open_dataset(str(root), strict=False).faults
    )
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="supported layouts: images"):
        open_dataset(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="does not exist"):
        open_dataset(str(tmp_path / "nothing"))
    assert main(["data", str(root)]) == 0


@pytest.mark.parametrize("value", [3, 7, 254])
def test_a_value_that_is_no_class_names_file_and_value(tmp_path: Path, value: int) -> None:
    root = write_shapes(tmp_path / "s")
    path = write(root / "annotations/train/002.png", np.full((40, 48), value))
    data = open_dataset(str(root))
    with pytest.raises(BadImage, match=f"has the value {value} in 1,920 pixels") as error:
        data.train.mask(2)
    assert error.value.source == str(path)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "s")
    write(root / "annotations/train/002.png", np.zeros((39, 48)))
    data = open_dataset(str(root))
    with pytest.raises(BadImage, match="has 48 x 39 pixels, but its image 48 x 40"):
        data.train.mask(2, data.train.open(2, "RGB").size)


def test_color_masks_need_a_palette_and_say_how(tmp_path: Path) -> None:
    colors = np.zeros((2, 3, 3))
    colors[0] = (128, 64, 128)
    for split in ("train", "val"):
        pair(tmp_path, split, "a", colors)
    with pytest.raises(ValueError, match=r"color image.*palette.json.*\[128, 64, 128\]"):
        open_dataset(str(tmp_path))
    palette = {"road": [128, 64, 128], "car": [0, 0, 142], "void": [0, 0, 0]}
    (tmp_path / "palette.json").write_text(json.dumps(palette))
    data = open_dataset(str(tmp_path))
    assert data.classes == ("road", "car")
    assert data.train.mask(0).tolist() == [[0, 0, 0], [255, 255, 255]]
    pair(tmp_path, "train", "b", np.full((1, 1, 3), 9))
    with pytest.raises(BadImage, match=r"has the color \(9, 9, 9\), which is not in the palette"):
        open_dataset(str(tmp_path)).train.mask(1)


def test_binary_masks_of_black_and_white(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pair(tmp_path, split, "a", [[0, 255], [255, 0]])
    data = open_dataset(str(tmp_path))
    assert data.classes == ("background", "foreground")
    assert data.train.mask(0).tolist() == [[0, 1], [1, 0]]
    assert any("background and foreground" in note for note in data.notes)


def test_masks_of_sixteen_bits_are_read_exactly(tmp_path: Path) -> None:
    values = np.array([[0, 300], [499, 65_535]], dtype=np.uint16)
    path = write(tmp_path / "m.png", values, "I;16")
    reader = MaskReader(num_classes=500, ignore_index=65_535)
    assert reader.read(path).tolist() == values.tolist()
    with pytest.raises(BadImage, match="has the value 499"):
        MaskReader(num_classes=400, ignore_index=65_535).read(path)


def test_palette_masks_are_read_by_their_index(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 255]], dtype=np.uint8))
    image.putpalette([7] * 768)
    image.save(tmp_path / "m.png")
    assert MaskReader(num_classes=2).read(tmp_path / "m.png").tolist() == [[0, 1, 255]]


def test_orientation_is_applied_to_image_and_mask_alike(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    Image.fromarray(values).save(tmp_path / "m.png", exif=turned)
    read = MaskReader(num_classes=6).read(tmp_path / "m.png", size=(2, 3))
    assert read.tolist() == np.rot90(values, -1).tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a", "a"]', "lists a class twice"),
        ('[{"id": 0, "name": "a"}, {"id": 2, "name": "b"}]', "without gaps"),
        ("{", "does not list classes"),
        ('{"classes": [{"id": 0, "name": "a", "color": [1, 2]}]}', "does not list classes"),
    ],
)
def test_damaged_lists_of_classes(tmp_path: Path, text: str, message: str) -> None:
    root = write_shapes(tmp_path / "s")
    (root / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_dataset(str(root))


def test_what_is_wrong_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_shapes(tmp_path / "s")
    write(root / "annotations/train/002.png", np.full((40, 48), 9))
    write(root / "annotations/train/004.png", np.full((40, 48), 255))
    (root / "images/val/001.png").write_bytes((root / "images/train/001.png").read_bytes())
    (root / "images/train/006.png").write_bytes(b"no image")
    report = inspect(str(root))
    assert report.num_train == 16
    assert {reason[:19] for _, reason in report.unusable} == {
        "has the value 9 in ",
        "not an image, or a ",
    }
    text = "\n".join(report.problems)
    assert "pairs that cannot be used: 2 of 22" in text
    assert "identical to a training image" in text
    assert "images without a labeled pixel: 1" in text
    assert sum(row.train_share for row in report.classes) == pytest.approx(1)
    assert [row.train_images for row in report.classes] == [13, 13, 13]
    sheet = tmp_path / "sheet.png"
    assert main(["data", str(root), "--contact-sheet", str(sheet), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["num_val"] == 6
    assert shown["classes"] == [row["name"] for row in shown["per_class"]]
    assert len(shown["classes"]) == 3
    with Image.open(sheet) as image:
        assert image.width > 800


def test_camvid(shared_data: Path) -> None:
    data = open_dataset(str(shared_data / "camvid"))
    assert (len(data.train), len(data.val)) == (367, 101)
    assert data.classes[:3] == ("Sky", "Building", "Pole")
    assert contact_sheet(data, per_part=2).height > 200


@pytest.mark.parametrize("listed", [False, True])
def test_masks_of_0_and_255_are_binary_whether_classes_are_listed_or_not(
    tmp_path: Path, listed: bool
) -> None:
    for split in ("train", "val"):
        pair(tmp_path, split, "a", [[0, 255], [0, 0]])
    if listed:
        (tmp_path / "classes.txt").write_text("sound\nrotten\n")
    data = open_dataset(str(tmp_path))
    assert data.classes == (("sound", "rotten") if listed else ("background", "foreground"))
    assert data.train.mask(0).tolist() == [[0, 1], [0, 0]]
    assert any("have only 0 and 255" in note for note in data.notes)


def test_255_stays_no_class_beside_both_classes(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pair(tmp_path, split, "a", [[0, 255], [1, 0]])
    (tmp_path / "classes.txt").write_text("sound\nrotten\n")
    assert open_dataset(str(tmp_path)).train.mask(0).tolist() == [[0, 255], [1, 0]]


@pytest.mark.parametrize("listed", [False, True])
def test_65535_is_no_class_in_masks_of_16_bits(tmp_path: Path, listed: bool) -> None:
    for split in ("train", "val"):
        pair(tmp_path, split, "a", [[0, 0], [0, 0]])
        write(tmp_path / "annotations" / split / "a.png", [[0, 1], [2, 65_535]], "I;16")
    if listed:
        (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    data = open_dataset(str(tmp_path))
    assert (len(data.classes), data.ignore_index) == (3, 255)
    assert data.train.mask(0).tolist() == [[0, 1], [2, 255]]


def test_zero_means_none_beyond_255_classes_and_255_is_one(tmp_path: Path) -> None:
    path = write(tmp_path / "m.png", [[0, 255], [300, 65_535]], "I;16")
    reader = MaskReader(num_classes=300, ignore_index=65_535, reduce_zero_label=True)
    assert reader.read(path).tolist() == [[65_535, 254], [299, 65_535]]


def test_values_that_are_no_indices_are_refused(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pair(tmp_path, split, "a", [[0, 0], [0, 0]])
        write(tmp_path / "annotations" / split / "a.png", [[0, 40], [9000, 21_000]], "I;16")
    with pytest.raises(ValueError, match=r"up to 21,000, but only 4 different ones.*classes.txt"):
        open_dataset(str(tmp_path))


def test_a_mask_is_handed_to_no_other_program(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n%%EOF\n")
    with pytest.raises(BadImage, match="not an image, or a damaged one"):
        MaskReader(num_classes=2).read(path)


@pytest.mark.parametrize("ending", ["JPEG", "jpg"])
def test_masks_of_jpeg_are_named(tmp_path: Path, ending: str) -> None:
    for split in ("train", "val"):
        pair(tmp_path, split, "a", [[0, 1], [1, 0]])
        (tmp_path / "annotations" / split / "a.png").unlink()
        write(tmp_path / "annotations" / split / f"a.{ending}", [[0, 1], [1, 0]])
    with pytest.raises(ValueError, match=r"1 JPEG masks.* save them as PNG"):
        open_dataset(str(tmp_path))


def test_masks_without_a_labelled_pixel_end_a_run_before_it_begins(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pair(tmp_path, split, "a", [[255, 255], [255, 255]])
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(ValueError, match=r"mask .* has a labeled pixel: all pixels are 255"):
        facts(open_dataset(str(tmp_path)))


def test_validation_without_a_labeled_pixel_ends_a_run_before_it_begins(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "s")
    for path in (root / "annotations/val").iterdir():
        write(path, np.full((40, 48), 255))
    with pytest.raises(ValueError, match=r"no validation mask of .* has a labeled pixel"):
        facts(open_dataset(str(root)))


def test_turned_images_are_counted(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "s")
    turned = Image.Exif()
    turned[0x0112] = 3
    for kind in ("images", "annotations"):
        path = root / kind / "train/002.png"
        with Image.open(path) as image:
            image.save(path, exif=turned)
    text = "\n".join(inspect(str(root)).problems)
    assert "turned by their EXIF orientation: 1 (" in text


def test_what_training_refuses_is_the_first_problem(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "s", 2, 1)
    for path in (root / "annotations/val").iterdir():
        write(path, np.full((40, 48), 255))
    first = inspect(str(root)).problems[0]
    assert first.startswith("training is refused: no validation mask of")


def turned_pairs(root: Path, size: tuple[int, int], turn: int, *, drawn_before: bool) -> None:
    """Write photos that EXIF turns, with the mask of their bright part."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = turn
    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            values = rng.integers(0, 60, (size[1], size[0], 3)).astype(np.uint8)
            values[2:9, 3:20] = 220
            image = Image.fromarray(values)
            path = root / "images" / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, exif=exif)
            shown = image if drawn_before else ImageOps.exif_transpose(Image.open(path))
            write(root / "masks" / split / f"{i}.png", np.asarray(shown)[..., 0] > 128)


@pytest.mark.parametrize("turn", range(2, 9))
@pytest.mark.parametrize("drawn_before", [False, True])
def test_masks_fit_turned_images_as_the_user_says(
    turn: int, drawn_before: bool, tmp_path: Path
) -> None:
    turned_pairs(tmp_path, (32, 32), turn, drawn_before=drawn_before)
    for exif in ("turned", "unturned"):
        pairs = open_dataset(str(tmp_path), options=ReadOptions(exif=exif)).train
        for i in range(len(pairs)):
            image = np.asarray(pairs.open(i, "L"))
            fits = np.array_equal(pairs.mask(i, (32, 32)) > 0, image > 128)
            assert fits == (drawn_before == (exif == "unturned"))
            assert np.array_equal(pairs.mask(i), pairs.mask(i, (32, 32)))


def test_sizes_show_masks_that_were_drawn_before_turning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned_pairs(tmp_path, (48, 32), 6, drawn_before=True)
    pairs = open_dataset(str(tmp_path)).train
    image = pairs.open(0, "L")
    assert image.size == (32, 48)
    assert np.array_equal(pairs.mask(0, image.size) > 0, np.asarray(image) > 128)
    lines = [str(line) for line in inspect(str(tmp_path)).problems]
    assert any("6 masks have the size of the image before it is turned" in line for line in lines)
    with pytest.raises(BadImage, match="has 48 x 32 pixels, but its image 32 x 48"):
        open_dataset(str(tmp_path), options=ReadOptions(exif="turned")).train.mask(0, image.size)
    main(["data", str(tmp_path), "--exif", "unturned"])
    assert "turned with them, as --exif unturned says" in " ".join(capsys.readouterr().out.split())


def test_the_short_name_of_exif_is_the_tasks_setting(tmp_path: Path) -> None:
    turned_pairs(tmp_path / "pairs", (32, 32), 6, drawn_before=True)
    small = {
        "network": {"changes": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
        "image_size": 32, "epochs": 1, "progress": False, "device": "cpu", "precision": "fp32",
    }  # fmt: skip
    run = convnext.train(data=tmp_path / "pairs", output=tmp_path / "a", exif="unturned", **small)
    text = (run.folder / "recipe.yaml").read_text(encoding="utf-8")
    assert "task: segment" in text
    assert "exif: unturned" in text
    convnext.evaluate(run.folder, progress=False)


def test_masks_of_several_bands_are_indices_only_if_all_are_equal(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (24, 20)).astype(np.uint16)
    reader = MaskReader(num_classes=3)
    gray, other = tmp_path / "gray.tif", tmp_path / "other.tif"
    tifffile.imwrite(gray, np.stack([ids] * 3, -1), photometric="rgb")
    assert np.array_equal(reader.read(gray), ids)
    bands = np.stack([ids, ids, 2 - ids, ids], -1)
    tifffile.imwrite(other, bands, photometric="minisblack", planarconfig="contig")
    with pytest.raises(BadImage, match="has 4 bands of uint16, not class indices"):
        reader.read(other)


def test_the_contact_sheet_shows_masks_of_turned_photos_in_both_readings(tmp_path: Path) -> None:
    turned_pairs(tmp_path, (32, 32), 6, drawn_before=True)
    data = open_dataset(str(tmp_path))
    plain = open_dataset(str(tmp_path), options=ReadOptions(exif="unturned"))
    both, one = contact_sheet(data), contact_sheet(plain)
    # Two sections of six images in two rows, beside those of one reading.
    assert both.height > one.height + 4 * 220
    tiles = _both_readings(data, 8, 64, "RGB")
    assert [len(images) for images in tiles.values()] == [6, 6]
    assert [title.rpartition("(")[2] for title in tiles] == ["--exif turned)", "--exif unturned)"]
    off, right = (np.asarray(images[0]) for images in tiles.values())
    assert np.array_equal(right, np.asarray(_tile(plain.train, 0, len(plain.classes), 64, "RGB")))
    assert not np.array_equal(off, right)
    upright = write_shapes(tmp_path / "upright")
    assert _both_readings(open_dataset(str(upright)), 8, 64, "RGB") == {}
