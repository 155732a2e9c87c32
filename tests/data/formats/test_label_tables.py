"""Tables of labels beside images: columns, names of files, one-hot classes, what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from convnext.tasks.classification.data import open_dataset


def opened(root, **options):
    return open_dataset(str(root), **options)


def test_one_hot_tables_of_roboflow(make_folder):
    root = make_folder({"train": 12, "valid": 6, "test": 3})
    for split, count in (("train", 12), ("valid", 6), ("test", 3)):
        rows = [
            f"{i:03d}.png, {int(i % 3 == 0)}, {int(i % 3 == 1)}, {int(i % 3 == 2)}"
            for i in range(count)
        ]
        (root / split / "_classes.csv").write_text("\n".join(["filename, cat, dog, bird", *rows]))
    data = opened(root)
    assert data.classes == ("cat", "dog", "bird")
    assert (len(data.train), len(data.val), len(data.test)) == (12, 6, 3)
    assert data.train.labels[:4] == [0, 1, 2, 0]
    assert data.train.source(1).endswith("train/001.png")
    assert data.val.source(1).endswith("valid/001.png")


@pytest.mark.parametrize(
    ("name", "header", "row"),
    [
        ("labels.csv", "filename,label", "{0:03d}.png,{1}"),
        ("labels.csv", "id,breed", "{0:03d},{1}"),
        ("Train.csv", "image_id;width;label", "{0:03d}.png;20;{1}"),
        ("anything.tsv", "class\tpath", "{1}\tphotos\\{0:03d}.png"),
        ("list.csv", ",image,label", "{0},/home/me/set/{0:03d}.png,{1}"),
    ],
)
def test_columns_are_found_by_what_they_hold(make_folder, name, header, row):
    root = make_folder({"photos": 10})
    rows = [row.format(i, "ab"[i % 2]) for i in range(9)]
    (root / name).write_text("\n".join([header, *rows]) + "\n")
    for path in (root, root / name):
        data = opened(path)
        assert data.classes == ("a", "b")
        assert len(data.train) + len(data.val) == 9
        assert "images that no table lists, left out: 1 (such as photos/009.png)" in data.faults


def test_splits_of_a_column_and_of_files(make_folder):
    root = make_folder({"images": 8})
    splits = ["train"] * 4 + ["Validation"] * 2 + ["TEST"] * 2
    rows = [f"{i:03d}.png,{'ab'[i % 2]},{split}" for i, split in enumerate(splits)]
    (root / "labels.csv").write_text("\n".join(["file,label,split", *rows]))
    data = opened(root)
    assert (len(data.train), len(data.val), len(data.test)) == (4, 2, 2)
    (root / "labels.csv").unlink()
    for split in ("train", "val"):
        of_split = [row.rpartition(",")[0] for row in rows if split in row.lower()]
        (root / f"{split}.csv").write_text("\n".join(["file,label", *of_split]))
    data = opened(root)
    assert (len(data.train), len(data.val), data.test) == (4, 2, None)


def test_what_is_left_out_is_counted(make_folder):
    root = make_folder({"images": 4})
    rows = ["000.png,a", "001.png,b", "002.png,", "gone.png,a", "003.png,b"]
    (root / "labels.csv").write_text("\n".join(["file,label", *rows]))
    data = opened(root, strict=False, val_share=0.5)
    assert "labels.csv: rows without an image file, left out: 1 (such as gone.png)" in data.faults
    assert "labels.csv: rows without a class, by line, left out: 1 (such as 4)" in data.faults


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["file,color,shape", "000.png,red,round", "001.png,blue,long"],
            "could be any of color, shape; name it `label`",
        ),
        (["file,label", "x.png,a", "y.png,b"], "no column has names of image files"),
        (["file,label", "000.png,a", "001.png"], "line 3: 1 columns, but the header has 2"),
        (["file,label", "000.png,a", "000.png,b"], "several labels: a and b"),
        (
            ["file,label,split", "000.png,a,train", "001.png,b,train", "000.png,a,val"],
            "000.png several splits: train and val",
        ),
    ],
)
def test_what_is_not_clear_is_refused(make_folder, rows, message):
    root = make_folder({"images": 2})
    (root / "labels.csv").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=message):
        opened(root)


def test_an_image_that_is_listed_twice_counts_once(make_folder):
    root = make_folder({"images": 4})
    rows = ["000.png,a", "001.png,b", "000.png,a", "002.png,a", "003.png,b"]
    (root / "labels.csv").write_text("\n".join(["file,label", *rows]))
    data = opened(root, val_share=0.5)
    assert len(data.train) + len(data.val) == 4
    expected = "labels.csv: images listed twice, of which one counts: 1 (such as images/000.png)"
    assert expected in data.faults


def test_class_folders_with_a_table_beside_them_stay_class_folders(make_folder):
    root = make_folder({"a": 5, "b": 5})
    (root / "notes.csv").write_text("file,label\n000.png,x\n")
    assert opened(root).classes == ("a", "b")
    split = make_folder({f"{part}/{c}": 2 for part in ("train", "val") for c in "ab"}, name="split")
    (split / "train.csv").write_text("file,label\n000.png,x\n")
    assert opened(split).classes == ("a", "b")


def test_metadata_of_imagefolder(make_folder):
    root = make_folder({"data/train": 6, "data/validation": 4, "data/test": 2})
    for split, count in (("train", 6), ("validation", 4), ("test", 2)):
        rows = [
            f'{{"file_name": "{i:03d}.png", "label": "{"ab"[i % 2]}", "text": "a photo {i}"}}'
            for i in range(count)
        ]
        (root / "data" / split / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    data = opened(root)
    assert data.classes == ("a", "b")
    assert (len(data.train), len(data.val), len(data.test)) == (6, 4, 2)
    assert data.train.labels == [0, 1, 0, 1, 0, 1]


def test_captions_are_not_classes(make_folder):
    root = make_folder({"photos": 6})
    (root / "metadata.csv").write_text("file_name,text\n000.png,a cat\n001.png,a dog\n")
    with pytest.raises(ValueError, match="column of the labels could be any of none"):
        opened(root / "metadata.csv")
    rows = [f"{i:03d}.png,number {i}" for i in range(6)]
    (root / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    with pytest.raises(ValueError, match="another value for every image"):
        opened(root)


def test_damaged_parquet_beside_images_is_named(make_folder):
    root = make_folder({"train": 2})
    (root / "train/metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"metadata.parquet is not a Parquet file that can be"):
        opened(root)


def table(root, labels, *, name="labels.csv", header="image_id,dx,age"):
    rows = [f"{image},{label},7" for image, label in labels.items()]
    (root / name).write_text("\n".join([header, *rows]))


def test_parts_of_a_table_are_not_classes(make_folder):
    root = make_folder({"SKIN_images_part_1": 4, "SKIN_images_part_2": 4})
    labels = {}
    for part in (1, 2):
        for i in range(4):
            path = root / f"SKIN_images_part_{part}/{i:03d}.png"
            path.rename(path.with_name(f"S_{part}{i}.png"))
            labels[f"S_{part}{i}"] = ("mel", "nv")[i % 2]
    table(root, labels, name="SKIN_metadata.csv")
    (root / "pixels.csv").write_text("pixel0000,label\n3,1\n4,0\n")
    data = opened(root)
    assert data.classes == ("mel", "nv")
    assert len(data.train) + len(data.val) == 8
    assert "pixels.csv: no column has names of image files; not used" in data.notes


def test_folders_or_a_table_of_other_classes(make_folder):
    root = make_folder({"red": 4, "blue": 4})
    labels = {f"{c}/{i:03d}.png": ("cat", "dog")[i % 2] for c in ("red", "blue") for i in range(4)}
    table(root, labels)
    with pytest.raises(ValueError, match=r"its folders \(blue, red ...\) or the labels in labels"):
        opened(root)
    assert opened(root, layout="class_folders").classes == ("blue", "red")
    assert opened(root / "labels.csv").classes == ("cat", "dog")
    table(root, {name: int(name[0] == "r") for name in labels})
    assert opened(root).classes == ("blue", "red")


def test_equal_images_of_one_name_count_once(make_folder):
    root = make_folder({"images_1": 6})
    (root / "images_2").mkdir()
    for path in (root / "images_1").iterdir():
        (root / "images_2" / path.name).write_bytes(path.read_bytes())
    table(root, {f"{i:03d}": "ab"[i % 2] for i in range(6)})
    data = opened(root)
    assert len(data.train) + len(data.val) == 6
    assert any(note.startswith("6 images are there twice") for note in data.notes)
    (root / "images_2/000.png").write_bytes((root / "images_2/001.png").read_bytes())
    assert "rows without an image file, left out: 1 (such as 000)" in opened(root).faults[0]


def test_a_text_of_names_and_classes(make_folder):
    root = make_folder({"images": 8})
    for split, numbers in (("train", range(6)), ("val", (6, 7))):
        lines = "".join(f"images/{i:03d}.png {i % 2}\n" for i in numbers)
        (root / f"{split}.txt").write_text(lines)
    data = opened(root)
    assert data.classes == ("0", "1")
    assert (len(data.train), len(data.val)) == (6, 2)


def test_several_tables_are_refused(make_folder):
    root = make_folder({"photos": 4})
    for name in ("male.csv", "young.csv"):
        table(root, {f"{i:03d}": i % 2 for i in range(4)}, name=name)
    with pytest.raises(ValueError, match=r"several tables: male.csv, young.csv"):
        opened(root)


def test_any_column_of_splits_counts(make_folder):
    root = make_folder({"photos": 8})
    splits = ["train"] * 4 + ["valid"] * 2 + ["test"] * 2
    rows = [f"{i:03d}.png,{'ab'[i % 2]},{split}" for i, split in enumerate(splits)]
    (root / "list.csv").write_text("\n".join(["file,label,dataset", *rows]))
    data = opened(root)
    assert (len(data.train), len(data.val), len(data.test)) == (4, 2, 2)


def test_a_table_without_header(make_folder):
    root = make_folder({"photos": 6})
    (root / "labels.csv").write_text("".join(f"{i:03d}.png,{'ab'[i % 2]}\n" for i in range(6)))
    data = opened(root)
    assert len(data.train) + len(data.val) == 6
    assert "labels.csv: images by the column 'column 1', labels by the column 'column 2'" in (
        data.notes
    )


def test_a_column_tells_the_validation_images(make_folder):
    root = make_folder({"photos": 8})
    rows = [f"{i:03d}.png,{i % 2},{i in (0, 1, 6)}" for i in range(8)]
    (root / "labels.csv").write_text("\n".join(["image,label,is_valid", *rows]))
    data = opened(root)
    assert data.classes == ("0", "1")
    assert [Path(data.val.source(i)).stem for i in range(len(data.val))] == ["000", "001", "006"]
    # Two columns of 0 and 1 are no classes if one is called `label`.
    rows = [f"{i:03d}.png,{i % 2},{int(i < 3)}" for i in range(8)]
    (root / "labels.csv").write_text("\n".join(["image,label,blurred", *rows]))
    assert opened(root).classes == ("0", "1")


@pytest.mark.parametrize(
    ("x", "y"), [("x_{}", "y_{}.csv"), ("X{}", "Y{}.csv"), ("{}_x", "{}_y.csv"), ("{}", "{}.csv")]
)
def test_folders_and_tables_of_inputs_and_targets(make_folder, x, y):
    root = make_folder({x.format("train"): 8, x.format("test"): 4})
    for split, count in (("train", 8), ("test", 4)):
        rows = [f"{i:03d}.png,{'ab'[i % 2]}" for i in range(count)]
        (root / y.format(split)).write_text("\n".join(["name,label", *rows]))
    data = open_dataset(str(root))
    assert data.classes == ("a", "b")
    assert (len(data.train) + len(data.val), len(data.test)) == (8, 4)
    assert all(x.format("test") in data.test.source(i) for i in range(4))
