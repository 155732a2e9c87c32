"""The report on a data set finds, counts and names every fault that was introduced."""

from __future__ import annotations

import io
import json
import shutil

import pytest
from PIL import Image
from rich.console import Console

from convnext.tasks.classification.inspect import contact_sheet, inspect, inspect_with_sheet

QUIET = Console(file=io.StringIO())


@pytest.fixture
def root(make_folder):
    counts = {"train/cat": 40, "train/dog": 12, "val/cat": 4, "val/dog": 3}
    return make_folder(counts, size=(48, 40))


def problem(report, words):
    found = [line for line in report.problems if words in line]
    assert len(found) == 1, report.problems
    return found[0]


def test_a_sound_data_set_has_no_problems(root):
    report = inspect(str(root), console=QUIET)
    assert report.problems == ()
    assert (report.num_train, report.num_val) == ((40, 12), (4, 3))
    assert (report.width.median, report.height.max) == (48, 40)
    assert report.sizes == (("33-64", 59),)
    assert (report.modes, report.formats) == ({"RGB": 59}, {"PNG": 59})
    assert report.imbalance == 3.33
    assert report.num_bytes == sum(path.stat().st_size for path in root.rglob("*.png"))
    assert "class dog has 12 training images, class cat has 40" in report.suggestions[0]
    assert "--balance logit" in report.suggestions[0]


def test_unreadable_images_come_first_with_five_examples(root):
    for i in range(7):
        (root / f"train/cat/x{i}.jpg").write_bytes(b"" if i % 2 else b"text")
    report = inspect(str(root), console=QUIET)
    assert report.problems[0].startswith(
        "images that cannot be read: 7 of 66 (train/cat/x0.jpg: not an"
    )
    assert report.problems[0].endswith("and 2 more)")
    assert len(report.unreadable) == 7
    assert report.num_train == (47, 12)


def test_copies_are_told_by_where_they_lie(root, noise):
    shutil.copy(root / "train/cat/000.png", root / "val/cat/leak.png")
    with Image.open(root / "train/cat/001.png") as image:
        image.save(root / "train/dog/other.bmp")
    shutil.copy(root / "train/cat/002.png", root / "train/cat/again.png")
    report = inspect(str(root), console=QUIET)
    leak = problem(report, "identical to a training image")
    assert leak.endswith("too high: 1 (val/cat/leak.png = train/cat/000.png)")
    conflict = problem(report, "several classes")
    assert "train/cat/001.png = train/dog/other.bmp" in conflict
    assert "train/cat/002.png = train/cat/again.png" in problem(
        report, "duplicate training images with identical pixels: 1 "
    )
    assert report.problems.index(leak) < report.problems.index(conflict)


def test_the_same_picture_saved_again_is_noticed(root, noise):
    with Image.open(root / "train/cat/000.png") as image:
        smooth = image.crop((0, 0, 12, 10)).resize((240, 200), Image.Resampling.BICUBIC)
    smooth.save(root / "train/cat/photo.png")
    smooth.resize((180, 150)).save(root / "val/cat/photo.jpg", quality=80)
    line = problem(inspect(str(root), console=QUIET), "look like a training image")
    assert "val/cat/photo.jpg ~ train/cat/photo.png" in line
    assert line.endswith("; --contact-sheet PNG shows them side by side")


def test_a_contact_sheet_shows_pairs_across_splits_side_by_side(root, noise):
    plain = inspect_with_sheet(str(root), sheet=True, console=QUIET)[1]
    assert plain.size == contact_sheet(str(root)).size
    for i, color in enumerate(("red", "blue")):
        spots = noise(12, 10, seed=900 + i).resize((240, 200), Image.Resampling.BICUBIC)
        photo = Image.blend(spots, Image.new("RGB", spots.size, color), 0.7)
        photo.save(root / f"train/cat/photo{i}.png")
        photo.resize((180, 150)).save(root / f"val/cat/photo{i}.png")
    found, sheet = inspect_with_sheet(str(root), sheet=True, console=QUIET)
    assert "saved again: 2 (" in problem(found, "look like a training image")
    above = sheet.height - contact_sheet(str(root)).height
    assert above > 150
    assert sheet.width == plain.width
    # The red pair is in the left frame, the blue one in the right.
    frame = sheet.width // 2
    for i, channel in enumerate((0, 2)):
        for x in (frame * i + frame // 4, frame * i + 3 * frame // 4):
            pixel = sheet.getpixel((x, above // 2 - 10))
            assert pixel[channel] == max(pixel) > min(pixel) + 50


def test_odd_images_and_classes_are_named(root, noise):
    Image.new("RGB", (48, 40), "red").save(root / "train/cat/blank.png")
    noise(6, 5).save(root / "train/cat/tiny.png")
    noise(300, 40).save(root / "train/cat/long.png")
    Image.new("L", (6000, 5000), 3).save(root / "train/cat/huge.png")
    (root / "train/rare").mkdir()
    noise(48, 40, seed=999).save(root / "train/rare/one.png")
    (root / "train/empty").mkdir()
    (root / "train/cat/notes.txt").write_text("x")
    report = inspect(str(root), console=QUIET)
    assert "train/cat/tiny.png (6 x 5)" in problem(report, "tiny")
    assert "train/cat/long.png (300 x 40)" in problem(report, "so long")
    assert "train/cat/huge.png (6,000 x 5,000)" in problem(report, "million pixels")
    assert "single color: 2 (" in problem(report, "single color")
    assert "rare (1)" in problem(report, "fewer than 10")
    assert "without any validation image: rare" in problem(report, "without any validation")
    assert "left out: 1 (empty)" in problem(report, "class folders without images")
    assert "cat/notes.txt" in problem(report, "not images by their ending")


def test_a_class_that_training_lacks_is_reported_and_not_fatal(root, noise):
    (root / "val/bird").mkdir()
    noise(48, 40, seed=77).save(root / "val/bird/a.png")
    report = inspect(str(root), console=QUIET)
    assert "only validation has: bird" in report.problems[0]
    assert report.num_train == (0, 40, 12)


def test_the_report_fits_80_columns_and_is_json(root):
    for i in range(7):
        (root / f"train/cat/a_rather_long_name_of_a_file_that_is_broken_{i}.jpg").write_bytes(b"")
    report = inspect(str(root), console=QUIET)
    out = Console(file=io.StringIO(), width=80)
    report.print(out)
    text = out.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for words in ("66 images of 2 classes", "cat", "cannot be read: 7 of 66", "suggestions"):
        assert words in text
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["num_images"] == 66
    assert plain["problems"] == list(report.problems)


def test_many_classes_are_shortened(make_folder):
    root = make_folder({f"{part}/c{c:02d}": 1 for part in ("train", "val") for c in range(40)})
    out = Console(file=io.StringIO(), width=80)
    inspect(str(root), console=QUIET).print(out)
    assert out.file.getvalue().count("\nc") < 35


def test_a_contact_sheet_has_a_row_per_class(root, noise):
    (root / "train/cat/0.png").write_bytes(b"")
    two = contact_sheet(str(root), per_class=3, size=48)
    assert two.width == 2 * 16 + 3 * 48 + 2 * 6
    (root / "train/fox").mkdir()
    noise().save(root / "train/fox/a.png")
    three = contact_sheet(str(root), per_class=3, size=48)
    assert three.height - two.height == 48 + 22 + 12


def test_the_digits_have_nothing_wrong():
    report = inspect("digits", console=QUIET)
    assert report.problems == ()
    assert report.num_images == 1797
    assert contact_sheet("digits").size[0] > 800


@pytest.mark.parametrize(
    "name", ["trashnet_photos", pytest.param("cifar10_subset", marks=pytest.mark.slow)]
)
def test_the_real_sets_have_nothing_wrong(shared_data, name):
    report = inspect(str(shared_data / name), console=QUIET)
    assert report.problems == ()
    assert report.unreadable == ()
