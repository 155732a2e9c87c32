"""Classes in lists, tags and names of files, and data that is only recognized."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from convnext.data.formats.class_checks import classes_of_names, known_format
from convnext.data.formats.layouts import is_detection
from convnext.tasks.classification.data import open_dataset


def opened(root, **options):
    return open_dataset(str(root), **options)


def labels(samples, classes):
    """Return the class of each image by the last two parts of its path."""
    return {
        "/".join(samples.source(i).replace("\\", "/").split("/")[-2:]): classes[label]
        for i, label in enumerate(samples.labels)
    }


def test_validation_images_by_a_list(make_folder):
    root = make_folder(
        {"train/n01/images": 4, "train/n02/images": 4, "val/images": 4, "test/images": 3}
    )
    (root / "train/n01/n01_boxes.txt").write_text("000.png\t0\t1\t2\t3\n")
    rows = [f"{i:03d}.png\tn0{1 + i % 2}\t0\t32\t44\t62\n" for i in range(4)]
    (root / "val/val_annotations.txt").write_text("".join(rows))
    (root / "wnids.txt").write_text("n01\nn02\n")
    data = opened(root)
    assert data.classes == ("n01", "n02")
    assert (len(data.train), len(data.val), data.test) == (8, 4, None)
    assert labels(data.val, data.classes) == {
        f"images/{i:03d}.png": f"n0{1 + i % 2}" for i in range(4)
    }
    assert "the classes of the images of val/ are those of val/val_annotations.txt" in data.notes
    assert any("classes of its 3 images are unknown" in fault for fault in data.faults)


def test_imagenet_as_kaggle_has_it(make_folder):
    ids = ("n01440764", "n01443537")
    base = "ILSVRC/Data/CLS-LOC"
    root = make_folder({f"{base}/train/{ids[0]}": 4, f"{base}/train/{ids[1]}": 5, f"{base}/val": 6})
    (root / base / "test").mkdir()
    for i in range(6):
        path = root / base / f"val/{i:03d}.png"
        path.rename(path.with_name(f"ILSVRC2012_val_{i:08d}.png"))
    for i in range(2):
        shutil.copy(root / base / f"train/{ids[0]}/00{i}.png", root / base / f"test/t{i}.png")
    rows = [f"ILSVRC2012_val_{i:08d},{ids[i % 2]} 1 2 9 9 {ids[i % 2]} 3 4 8 8 " for i in range(6)]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]))
    # Only images with boxes are in this list, so that the folders count.
    (root / "LOC_train_solution.csv").write_text(
        f"ImageId,PredictionString\n000,{ids[0]} 1 2 3 4\n"
    )
    names = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
    (root / "LOC_synset_mapping.txt").write_text(names)
    data = opened(root)
    assert data.classes == ids
    assert (len(data.train), len(data.val), data.test) == (9, 6, None)
    assert [data.classes[label] for label in data.val.labels] == [*ids[:1] * 3, *ids[1:] * 3]
    assert all(int(Path(data.val.source(i)).stem[-1]) % 2 == data.val.labels[i] for i in range(6))
    text = "\n".join(data.notes)
    assert "the classes of the images of val/ are those of LOC_val_solution.csv" in text
    assert "named by LOC_synset_mapping.txt: n01440764 is tench, n01443537 is goldfish" in text
    assert "test/ has no class folders, so that the classes of its 2 images are unknown" in text
    # Lists above the folder that is given are named, but not read.
    inner = opened(root / base)
    assert len(inner.train) + len(inner.val) == 9
    assert f"(LOC_val_solution.csv has them: give {root} as the data)" in "\n".join(inner.faults)


def test_test_images_by_a_table_of_several_numbers(make_folder):
    root = make_folder({"Train/1": 3, "Train/2": 3, "Test": 4})
    rows = [f"1,2,{1 + i % 2},Test/{i:03d}.png" for i in range(4)]
    (root / "Test.csv").write_text("\n".join(["Width,Height,ClassId,Path", *rows]))
    data = opened(root)
    assert labels(data.test, data.classes) == {
        f"Test/{i:03d}.png": str(1 + i % 2) for i in range(4)
    }
    # Without a usual name, each of two columns of known classes could be meant.
    (root / "Test.csv").write_text("\n".join(["Width,Height,Kind,Path", *rows]))
    assert opened(root).test is None


@pytest.mark.parametrize("below", ["", "birds/"])
def test_numbered_lists(make_folder, below):
    root = make_folder({f"{below}images/001.Auk": 3, f"{below}images/002.Owl": 3})
    folder = root / below
    files = [f"{c}/{i:03d}.png" for c in ("001.Auk", "002.Owl") for i in range(3)]
    lists = {
        "images.txt": [*files, "002.Owl/gone.png"],
        "image_class_labels.txt": [1, 1, 1, 2, 2, 2, 2],
        "train_test_split.txt": [1, 1, 0, 1, 0, 1, 1],
        "bounding_boxes.txt": ["1.0 1.0 5.0 5.0"] * 7,
    }
    for name, values in lists.items():
        text = "".join(f"{number} {value}\n" for number, value in enumerate(values, 1))
        (folder / name).write_text(text)
    (folder / "classes.txt").write_text("1 001.Auk\n2 002.Owl\n")
    assert not is_detection(root)
    data = opened(root)
    assert data.classes == ("001.Auk", "002.Owl")
    assert len(data.train) + len(data.val) == 4
    assert labels(data.test, data.classes) == {
        "001.Auk/002.png": "001.Auk",
        "002.Owl/001.png": "002.Owl",
    }
    assert data.faults[0] == (
        "listed images that are absent, left out: 1 (such as 002.Owl/gone.png)"
    )


def test_tags_of_cvat(make_folder):
    root = make_folder({"images": 8})
    images = "".join(
        f'<image id="{i}" name="{i:03d}.png" width="20" height="16">'
        + (f'<tag label="{"ab"[i % 2]}"></tag>' if i != 7 else "")
        + "</image>"
        for i in range(8)
    )
    (root / "annotations.xml").write_text(
        f"<annotations><version>1.1</version>{images}</annotations>"
    )
    assert not is_detection(root)
    data = opened(root)
    assert data.classes == ("a", "b")
    assert len(data.train) + len(data.val) == 7
    assert "images without one tag, left out: 1 (such as 007.png)" in data.faults
    text = (root / "annotations.xml").read_text()
    both = text.replace("<tag", '<tag label="c"></tag><tag', 3)
    (root / "annotations.xml").write_text(both)
    data = opened(root)
    assert (data.kind, data.classes) == ("multi", ("a", "b", "c"))
    assert len(data.train) + len(data.val) == 8
    assert "images without any tag, negatives of every class: 1 (such as images/007.png)" in (
        data.notes
    )


def test_names_of_files_are_classes_only_if_asked_for(make_folder):
    root = make_folder({"train": 8, "test1": 3})
    for i in range(8):
        name = f"{('cat', 'big dog')[i % 2]}.{i}.png"
        (root / "train" / f"{i:03d}.png").rename(root / "train" / name)
    with pytest.raises(ValueError, match=r"big dog \(4\), cat \(4\).*file_names"):
        opened(root)
    data = opened(root, layout="file_names")
    assert data.classes == ("big dog", "cat")
    assert len(data.train) + len(data.val) == 8
    assert any("images without a class in their name, left out: 3" in f for f in data.faults)


def test_all_names_of_files_have_a_class(make_folder):
    root = make_folder({"images": 8})
    for i in range(8):
        (root / f"images/{i:03d}.png").rename(root / f"images/{('cat', 'dog')[i % 2]}.{i}.png")
    data = opened(root, layout="file_names")
    assert data.classes == ("cat", "dog")
    assert len(data.train) + len(data.val) == 8
    assert not data.faults


@pytest.mark.parametrize(
    "names", [["a_1", "a_2", "b_1"], ["1", "2", "3"], ["img_1", "img_2"], ["a_1", "a_2", "x", "y"]]
)
def test_other_names_are_not_classes(names):
    assert classes_of_names(f"{name}.png" for name in names) is None


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("MNIST/raw/train-images-idx3-ubyte.gz", "torchvision.datasets.MNIST"),
        ("cifar-10-batches-py/data_batch_1", "torchvision.datasets.CIFAR10"),
        ("data/train-00000-of-00001.parquet", "Parquet"),
        ("train.tfrecord-00001-of-00009", "TFRecord"),
        ("flowers.npz", "arrays"),
        ("scans/a.nii.gz", "volumes"),
        ("photos.zip", "unpack"),
        ("xView_train.geojson", "GeoJSON"),
        ("imagelabels.mat", "scipy.io.loadmat"),
        ("query/0001_c1s1.jpg", "Market-1501"),
    ],
)
def test_known_formats_name_a_conversion(make_folder, file, words):
    root = make_folder({"bounding_box_train": 2} if "query" in file else {"photos": 2})
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    assert words in known_format(root)
    with pytest.raises(ValueError, match=words):
        opened(root)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("fer.csv", "emotion,pixels,Usage\n0,70 80,Training\n", "columns of pixels"),
        ("digits.csv", "label,pixel0,pixel1\n5,0,0\n", "columns of pixels"),
        ("MOT17/gt/gt.txt", "1,1,9,9,20,20,1,1,0.8\n", "tracks"),
        ("I0.txt", "% bbGt version=3\nperson 9 9 5 5 0 0 0 0 0 0 0\n", "I0.txt has boxes of Pio"),
        ("a.json", '{"frames": [{"pic": "a.png", "xy": 1}]}', "a.json .* the keys frames, pic, xy"),
    ],
)
def test_contents_that_are_known(make_folder, file, text, words):
    root = make_folder({"photos": 2})
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(text)
    assert re.search(words, known_format(root))
    with pytest.raises(ValueError, match=words):
        opened(root)


def test_a_folder_of_anomalies_is_named(make_folder):
    root = make_folder(
        {"train/good": 3, "test/good": 2, "test/scratch": 2, "ground_truth/scratch": 2}
    )
    assert "MVTec" in known_format(root)
