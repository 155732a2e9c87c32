"""Class folders: names of splits, what is left out, and what is refused."""

from __future__ import annotations

import pytest
from PIL import Image

from convnext.data.formats.paths import kind_of, source_of, split_of, splits_among
from convnext.tasks.classification.data import open_dataset


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("seg_train", "train"),
        ("train2017", "train"),
        ("training_set", "train"),
        ("trainannot", "train"),
        ("stage1_train", "train"),
        ("validate", "val"),
        ("dev", "val"),
        ("TEST", "test"),
        ("Testing", "test"),
        ("trainer", None),
        ("test_pits", None),
        ("trainval", None),
        ("train_val", None),
        ("cats", None),
    ],
)
def test_names_of_splits(name, split):
    assert split_of(name) == split


def test_names_of_kinds_and_pairs_of_names():
    assert [kind_of(n) for n in ("JPEGImages", "train_masks", "Labels", "annots", "cats")] == [
        "image",
        "mask",
        "mask",
        "annotation",
        None,
    ]
    assert splits_among(["flowers_train", "flowers_test", "src"]) == {
        "train": ["flowers_train"],
        "test": ["flowers_test"],
    }
    assert splits_among(["train", "bus_test"]) == {"train": ["train"]}


@pytest.mark.parametrize(
    ("train", "test"),
    [("Training", "Testing"), ("training_set", "test_set"), ("seg_train/seg_train", "seg_test")],
)
def test_a_test_split_is_kept_apart(make_folder, train, test):
    root = make_folder({f"{train}/{c}": 10 for c in "ab"} | {f"{test}/{c}": 3 for c in "ab"})
    data = open_dataset(str(root))
    assert data.classes == ("a", "b")
    assert (len(data.train), len(data.val)) == (16, 4)
    assert data.test is not None
    assert len(data.test) == 6
    assert test.partition("/")[0] in data.notes[1]


def test_a_split_inside_every_class_is_honored(make_folder):
    counts = {"train": 5, "val": 2, "test": 1}
    root = make_folder({f"{c}/{part}": n for c in "ab" for part, n in counts.items()})
    data = open_dataset(str(root))
    assert (data.classes, len(data.train), len(data.val)) == (("a", "b"), 10, 4)
    assert data.test is not None
    assert len(data.test) == 2


def test_the_only_data_folder_of_a_repository_is_entered(make_folder, noise):
    root = make_folder(
        {f"data/{part}/{c}": 2 for part in ("train", "val") for c in "ab"} | {"docs": 3}
    )
    data = open_dataset(str(root))
    assert data.classes == ("a", "b")
    assert data.notes[3:] == ("the data set is in data/; left out: docs/ (3 images)",)
    plain = make_folder({"Dataset/a": 4, "Dataset/b": 4, "docs": 1}, name="plain")
    assert open_dataset(str(plain)).classes == ("a", "b")


def test_two_folders_for_one_split(make_folder):
    counts = {"train/a": 2, "train/b": 2, "val/a": 1, "val/b": 1}
    root = make_folder(counts | {"Training/a": 1, "Training/b": 1})
    data = open_dataset(str(root))
    assert len(data.train) == 4
    assert "Training/ is not used, since train/ exists" in data.notes
    both = make_folder({"dev/a": 1, "valid/a": 1, "train/a": 2, "train/b": 2}, name="both")
    with pytest.raises(ValueError, match=r"dev/ and valid/ in .* could all be its val split"):
        open_dataset(str(both))


def test_images_outside_class_folders_are_counted(make_folder):
    counts = {"train/a": 4, "train/b": 4, "val/a": 1, "val/b": 1, "train": 7, "test": 3, "more": 2}
    root = make_folder({k: n for k, n in counts.items() if k != "train"})
    extra = make_folder({"x": 7}, name="extra")
    for path in (extra / "x").iterdir():
        path.rename(root / "train" / f"loose{path.name}")
    faults = "\n".join(open_dataset(str(root)).faults)
    assert "images directly in train/, outside its class folders, left out: 7" in faults
    assert "test/ has no class folders, so that the classes of its 3 images are unknown" in faults
    assert "more/ is not a split by its name, left out: 2 images" in faults


def test_a_class_of_the_test_split_alone_is_left_out(make_folder):
    root = make_folder(
        {f"{part}/{c}": 2 for part in ("train", "val", "test") for c in "ab"} | {"test/new": 3}
    )
    data = open_dataset(str(root))
    assert data.classes == ("a", "b")
    assert data.faults == ("classes that only test/ has, left out with 3 images: new",)


@pytest.mark.parametrize(
    "names",
    [
        ("JPEGImages", "SegmentationClass"),
        ("images", "labels"),
        ("train_masks", "train_images", "extra"),
        ("val", "test"),
    ],
)
def test_folders_of_splits_and_annotations_are_not_classes(make_folder, names):
    root = make_folder(dict.fromkeys(names, 3))
    with pytest.raises(ValueError, match="named for splits or annotations, not for classes"):
        open_dataset(str(root))
    assert open_dataset(str(root), layout="class_folders").classes == tuple(sorted(names))


def test_augmented_copies_stay_together(make_folder):
    root = make_folder({"a": 30, "b": 30})
    for label in "ab":
        for number, path in enumerate(sorted((root / label).iterdir())):
            path.rename(path.with_name(f"{number // 3}_jpg.rf.{number:032x}.png"))
    data = open_dataset(str(root))
    parts = [
        {source_of(part.source(i)) for i in range(len(part))} for part in (data.train, data.val)
    ]
    assert len(parts[1]) == 4
    assert not parts[0] & parts[1]
    assert any("60 images are augmented copies of 20" in note for note in data.notes)


def test_masks_are_not_taken_for_images_of_a_class_without_a_word(make_folder):
    root = make_folder({"benign": 4, "malignant": 4})
    for path in list(root.glob("*/*.png")):
        path.with_stem(f"{path.stem}_mask").write_bytes(path.read_bytes())
    assert (
        "files that look like masks of other images, but are read as images of data/: 8 (such as "
        "benign/000_mask.png)"
    ) in open_dataset(str(root)).faults
    samples = make_folder(
        {f"{i}/{kind}": 1 for i in "xyz" for kind in ("images", "masks")}, "nuclei"
    )
    with pytest.raises(ValueError, match="hold images/ and masks/ each, and are not classes"):
        open_dataset(str(samples))


def test_lists_of_images_split_class_folders(make_folder):
    root = make_folder({"images/pie": 6, "images/cake": 6})
    (root / "meta").mkdir()
    names = [f"{label}/{i:03d}" for i in range(5) for label in ("pie", "cake")]
    (root / "meta/train.txt").write_text("\n".join([*names[:6], "pie/gone"]))
    (root / "meta/test.txt").write_text("\n".join(names[6:]))
    data = open_dataset(str(root))
    assert data.classes == ("cake", "pie")
    assert data.test is not None
    assert len(data.test) == 4
    assert len(data.train) + len(data.val) == 6
    assert data.notes[1].startswith("split: lists test.txt, train.txt")
    assert "listed images that are absent, left out: 1 (such as pie/gone)" in data.faults
    assert "images that no list names, left out: 2 (such as cake/005.png)" in data.faults
    (root / "meta/test.txt").write_text("\n".join(names[5:]))
    with pytest.raises(ValueError, match=r"list 1 images twice"):
        open_dataset(str(root))
    (root / "meta/test.txt").write_text("a 1\nb 2\n" * 20)
    data = open_dataset(str(root))
    assert len(data.train) + len(data.val) == 12
    assert any("most names there are not images" in fault for fault in data.faults)


def test_accents_of_classes_in_another_unicode_form(make_folder):
    composed, other = "\u00e9", "e\u0301"
    root = make_folder({f"train/{composed}": 4, "train/b": 4, f"val/{other}": 2, "val/b": 2})
    data = open_dataset(str(root))
    assert data.classes == ("b", composed)
    assert (len(data.train), len(data.val)) == (8, 4)
    assert [data.val.header(index).width for index in range(4)]


def test_folders_that_repeat_the_others_are_left_out(make_folder):
    root = make_folder(
        {f"Leaves/{below}{c}": 5 for below in ("", "Leaves/") for c in ("apple", "corn")}
    )
    data = open_dataset(str(root))
    assert data.classes == ("apple", "corn")
    assert len(data.train) + len(data.val) == 10
    assert "Leaves/Leaves/ repeats the class folders beside it, left out: 10 images" in data.faults


def test_versions_of_the_same_images_are_not_classes(make_folder):
    root = make_folder({f"{v}/{c}": 3 for v in ("color", "gray") for c in ("apple", "corn")})
    with pytest.raises(ValueError, match=r"color/, gray/ .* hold folders of the same names"):
        open_dataset(str(root))
    assert open_dataset(str(root), layout="class_folders").classes == ("color", "gray")


def test_names_of_two_groups_of_splits_are_not_classes(make_folder):
    root = make_folder({f"{kind}_{split}": 3 for kind in "pq" for split in ("train", "val")})
    with pytest.raises(ValueError, match="p_train and p_val and q_train and q_val"):
        open_dataset(str(root))


def test_tables_split_class_folders(make_folder):
    root = make_folder({"Scenes/Crop": 6, "Scenes/Forest": 6})
    for split, numbers in (("train", range(3)), ("validation", (3, 4)), ("test", (5,))):
        rows = [f"{c}/{i:03d}.png,{k}" for k, c in enumerate(("Crop", "Forest")) for i in numbers]
        (root / "Scenes" / f"{split}.csv").write_text("\n".join(["Filename,Label", *rows]))
    data = open_dataset(str(root))
    assert data.classes == ("Crop", "Forest")
    assert (len(data.train), len(data.val), len(data.test)) == (6, 4, 2)
    assert data.test.source(0).endswith("Crop/005.png")


def test_a_list_of_the_test_images_alone(make_folder):
    root = make_folder({"cat": 4, "dog": 4})
    (root / "test.txt").write_text("cat/000\n/home/me/dog/003.png\n")
    data = open_dataset(str(root))
    assert len(data.test) == 2
    assert len(data.train) + len(data.val) == 6
    assert data.test.labels == [0, 1]


def test_two_folders_of_images_and_masks_are_not_classes(make_folder):
    root = make_folder({"train/X": 4, "train/Y": 4, "val/X": 2, "val/Y": 2})
    for path in root.glob("*/Y/*.png"):
        Image.new("L", (20, 16), 255).save(path)
    with pytest.raises(ValueError, match=r"X/ and Y/ in .* those of Y/ look like masks"):
        open_dataset(str(root))
    data = open_dataset(str(root), layout="class_folders")
    assert (data.classes, len(data.train), len(data.val)) == (("X", "Y"), 8, 4)


@pytest.mark.parametrize("inner", ["{}", "cell_{}"])
def test_kinds_of_images_in_a_split_are_not_classes(make_folder, inner):
    names = [f"{inner.format('a')}/{kind}" for kind in ("images", "masks")] * (inner != "{}")
    names += [f"{inner.format('b')}/{kind}" for kind in ("images", "masks")] * (inner != "{}")
    names = names or ["images", "manual", "mask"]
    root = make_folder({f"training/{name}": 3 for name in names} | {"test/images": 1})
    with pytest.raises(ValueError, match=r"are named for splits or annotations|hold images/ and"):
        open_dataset(str(root))


def test_files_without_endings_are_named(make_folder):
    root = make_folder({"a": 2, "b": 2})
    for path in list(root.glob("*/*.png")):
        path.rename(path.with_suffix(""))
    with pytest.raises(ValueError, match=r"not images by their ending, left out: 4 \(4 no ending"):
        open_dataset(str(root))
