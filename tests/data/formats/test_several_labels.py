"""Images with several labels, or with probabilities, in tables: how they are read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnext.data.doctor import open_and_scan
from convnext.data.formats.tables import TableColumns, find_table, rows_of
from convnext.tasks.classification.data import ClassificationData, facts, open_dataset
from convnext.tasks.classification.inspect import contact_sheet, report
from convnext.tasks.classification.problems import scan
from convnext.tasks.classification.shards import to_shards

TAGS = ("cat|dog", "dog", "", "bird|cat", "bird", "cat|dog|bird", "dog|bird", "cat")


def opened(root: Path, columns: str = "", **options: Any) -> ClassificationData:
    return open_dataset(str(root), columns=TableColumns.parse(columns), **options)


def write(root: Path, lines: list[str], name: str = "labels.csv") -> None:
    (root / name).write_text("\n".join(lines) + "\n")


def sets_of(data: ClassificationData) -> dict[str, set[str]]:
    """Return the labels of every image by its number."""
    found = {}
    for samples in data.parts.values():
        assert samples.targets is not None
        for i, target in enumerate(samples.targets):
            names = {data.classes[c] for c in np.flatnonzero(target)}
            found[Path(samples.source(i)).stem] = names
    return found


def expected(tags: tuple[str, ...] = TAGS) -> dict[str, set[str]]:
    return {f"{i:03d}": {t for t in tag.split("|") if t} for i, tag in enumerate(tags)}


@pytest.mark.parametrize(
    ("sign", "columns"),
    [("|", ""), ("; ", ""), (",", ""), (" ", "separator=space"), ("/", "label=tags,separator=/")],
)
def test_labels_in_one_column(make_folder: Any, sign: str, columns: str) -> None:
    root = make_folder({"images": 2 * len(TAGS)})
    rows = [f'{i:03d}.png,"{tag.replace("|", sign)}"' for i, tag in enumerate(TAGS * 2)]
    write(root, ["image,tags", *rows])
    data = opened(root, columns, val_share=0.3)
    assert (data.kind, data.classes) == ("multi", ("bird", "cat", "dog"))
    assert sets_of(data) == expected(TAGS * 2)
    assert (
        "labels: multi-label, 3 classes, 1.5 labels an image on average; 2 images without any "
        in (" ".join(data.notes))
    )
    negative = "labels.csv: images without any label, negatives of every class: 2 (such as line 4)"
    assert negative in data.notes
    if columns:
        return
    one = opened(root, "separator=none", val_share=0.3)
    assert (one.kind, len(one.classes)) == ("single", 7)


def test_columns_of_0_and_1(make_folder: Any) -> None:
    root = make_folder({"images": len(TAGS)})
    rows = [
        f"{i:03d}.png,{int('cat' in tag)},{int('dog' in tag)},{int('bird' in tag)}"
        for i, tag in enumerate(TAGS)
    ]
    write(root, ["image,cat,dog,bird", *rows])
    data = opened(root, val_share=0.3)
    assert (data.kind, data.classes) == ("multi", ("cat", "dog", "bird"))
    assert sets_of(data) == expected()
    with pytest.raises(ValueError, match="4 of 8 images have several classes"):
        opened(root, "separator=none")
    # One 1 in each row is one class, unless the user says otherwise.
    write(root, ["image,cat,dog", *[f"{i:03d}.png,{i % 2},{1 - i % 2}" for i in range(8)]])
    assert opened(root).kind == "single"
    assert opened(root, "separator=columns").kind == "multi"


def test_few_rows_of_several_classes_are_left_out_and_said(make_folder: Any) -> None:
    root = make_folder({"images": 200})
    rows = [f"{i:03d}.png,{i % 2},{1 - i % 2}" for i in range(199)]
    write(root, ["image,cat,dog", *rows, "199.png,1,1"])
    data = opened(root)
    assert (data.kind, len(data.train) + len(data.val)) == ("single", 199)
    assert (
        "labels.csv: rows with several classes, by line, left out: 1 (such as 201)" in data.faults
    )
    assert any("--columns separator=columns keeps" in note for note in data.notes)


def test_one_hot_tables_of_roboflow_with_several_ones(make_folder: Any) -> None:
    root = make_folder({"train": 8, "valid": 4})
    header = "filename, cat, dog, bird"
    rows = [f"{i:03d}.png, {i % 2}, {i // 2 % 2}, {i // 4 % 2}" for i in range(8)]
    write(root / "train", [header, *rows], "_classes.csv")
    # In validation each image happens to have one label; the data is multi-label all the same.
    ones = [f"{i:03d}.png, {int(i == 0)}, {int(i == 1)}, {int(i > 1)}" for i in range(4)]
    write(root / "valid", [header, *ones], "_classes.csv")
    data = opened(root)
    assert data.kind == "multi"
    assert data.val.kind == "multi"
    assert data.train.targets is not None
    assert data.train.targets.tolist() == [[i % 2, i // 2 % 2, i // 4 % 2] for i in range(8)]
    assert data.val.target(3).tolist() == [0, 0, 1]
    known = facts(data)
    assert (known.kind, known.class_counts, known.labels_per_image) == ("multi", (4, 4, 4), 1.5)


@pytest.mark.parametrize(
    ("labels", "is_refused"),
    [
        (("red car", "blue car", "red bike", "blue bike"), True),
        (("golden retriever", "labrador retriever", "pug"), False),
        (("tench, Tinca tinca", "goldfish, Carassius auratus"), False),
        (("a|x", "b|y"), True),
        (("Paris, France", "Lyon, France", "Nice, France", "Rome, Italy", "Pisa, Italy"), False),
    ],
)
def test_names_of_several_words(
    make_folder: Any, labels: tuple[str, ...], is_refused: bool
) -> None:
    root = make_folder({"images": 10})
    rows = [f'{i:03d}.png,"{labels[i % len(labels)]}"' for i in range(10)]
    write(root, ["image,label", *rows])
    if is_refused:
        with pytest.raises(ValueError, match=r"may be the labels .* or one label: say which with"):
            opened(root)
    else:
        assert opened(root).kind == "single"
    assert set(opened(root, "separator=none").classes) == set(labels)


def test_lists_in_json_lines_and_json(make_folder: Any) -> None:
    root = make_folder({"images": len(TAGS)})
    entries = [
        {"file_name": f"{i:03d}.png", "labels": [t for t in tag.split("|") if t]}
        for i, tag in enumerate(TAGS)
    ]
    write(root, [json.dumps(entry) for entry in entries], "metadata.jsonl")
    assert sets_of(opened(root, val_share=0.3)) == expected()
    (root / "metadata.jsonl").unlink()
    by_name = {str(entry["file_name"]): entry["labels"] for entry in entries}
    (root / "labels.json").write_text(json.dumps(by_name))
    assert sets_of(opened(root, val_share=0.3)) == expected()


def test_probabilities_are_soft_labels(make_folder: Any) -> None:
    root = make_folder({"images": 6})
    rows = [f"{i:03d}.png,{0.1 * i:.1f},{1 - 0.1 * i:.1f}" for i in range(6)]
    write(root, ["image,cat,dog", *rows])
    data = opened(root, val_share=0.4)
    assert (data.kind, data.classes) == ("soft", ("cat", "dog"))
    every = {
        Path(samples.source(i)).stem: samples.target(i).tolist()
        for samples in data.parts.values()
        for i in range(len(samples))
    }
    assert every["003"] == pytest.approx([0.3, 0.7])
    assert data.train.labels.count(1) + data.val.labels.count(1) == 6 - every_above_half(every)
    write(root, ["image,cat,dog", *rows[:-1], "005.png,0.4,0.4"])
    with pytest.raises(ValueError, match=r"line 7: the probabilities .* have the sum 0.8, not 1"):
        opened(root)


def every_above_half(rows: dict[str, list[float]]) -> int:
    """Return how many images are rather cats; a tie counts for the first class."""
    return sum(row[0] >= row[1] for row in rows.values())


@pytest.mark.parametrize("kind", ["pairs", "mapping", "columns"])
def test_tables_in_memory(tmp_path: Path, kind: str) -> None:
    paths = [f"{i}.png" for i in range(len(TAGS))]
    lists = [[t for t in tag.split("|") if t] for tag in TAGS]
    table: Any = {
        "pairs": list(zip(paths, lists, strict=True)),
        "mapping": {"path": paths, "label": lists},
        "columns": {"path": paths}
        | {c: [int(c in own) for own in lists] for c in ("bird", "cat", "dog")},
    }[kind]
    path = tmp_path / "data.csv"
    path.write_text(rows_of(table).text(), encoding="utf-8")
    found = find_table(path)
    assert (found.kind, found.classes) == ("multi", ("bird", "cat", "dog"))
    assert found.targets is not None
    assert found.targets.tolist() == [
        [int(c in own) for c in ("bird", "cat", "dog")] for own in lists
    ]


def test_one_label_beside_lists_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"item 1 of the data, b.png, has the label 'dog', but item"
    ):
        rows_of([("a.png", ["cat"]), ("b.png", "dog")])


def test_probabilities_in_memory(tmp_path: Path) -> None:
    rows = rows_of([("a.png", {"cat": 0.25, "dog": 0.75}), ("b.png", {"cat": 1.0, "dog": 0.0})])
    path = tmp_path / "data.csv"
    path.write_text(rows.text(), encoding="utf-8")
    found = find_table(path)
    assert (found.kind, found.classes, found.labels) == ("soft", ("cat", "dog"), [1, 0])
    assert found.targets is not None
    assert found.targets.tolist() == [[0.25, 0.75], [1.0, 0.0]]


def test_a_split_keeps_the_share_of_every_label(make_folder: Any) -> None:
    root = make_folder({"images": 100})
    tags = [
        "|".join(t for t, n in (("a", 2), ("b", 3), ("rare", 20)) if i % n == 0) for i in range(100)
    ]
    write(root, ["image,tags", *[f"{i:03d}.png,{tag}" for i, tag in enumerate(tags)]])
    data = opened(root)
    assert data.train.targets is not None
    assert data.val.targets is not None
    shares = data.val.targets.sum(0) / (data.train.targets.sum(0) + data.val.targets.sum(0))
    assert np.all(shares > 0.1)
    assert np.all(shares < 0.35)
    assert data.val.targets[:, data.classes.index("rare")].sum() == 1


def test_the_doctor_counts_every_label(make_folder: Any) -> None:
    root = make_folder({"images": len(TAGS)})
    write(root, ["image,tags", *[f"{i:03d}.png,{tag}" for i, tag in enumerate(TAGS)]])
    data, scanned = open_and_scan(lambda: opened(root, val_share=0.3), scan)
    found = report(data, scanned)
    both = np.add(found.num_train, found.num_val)
    assert (found.num_images, both.tolist()) == (8, [4, 4, 4])
    assert any(note.startswith("labels: multi-label, 3 classes") for note in found.notes)
    assert contact_sheet(data).height > 0
    with pytest.raises(ValueError, match="several labels for an image, but shards hold one"):
        to_shards(str(root), root.parent / "shards")


@pytest.mark.parametrize("cell", ["{[1]: 1}", "[{[1]: 1}]", "[True, False]", "[true, false]"])
def test_a_cell_that_is_not_a_list_of_names_is_refused(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(f'path,label\na.png,"{cell}"\nb.png,"{cell}"\n')
    with pytest.raises(ValueError, match="is not a list of labels"):
        find_table(path)


def test_an_empty_name_in_a_list_is_no_class(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("path,label\na.png,\"['cat', '']\"\nb.png,\"['dog']\"\n")
    assert find_table(path).classes == ("cat", "dog")


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_value_in_a_list_of_labels_is_refused(missing: object) -> None:
    with pytest.raises(ValueError, match=r"b\.png, has a missing label"):
        rows_of([("a.png", ["cat"]), ("b.png", ["dog", missing])])


def test_labels_of_an_iterator_are_kept() -> None:
    assert rows_of([("a.png", iter(["cat", "dog"]))]).rows[0][1] == '["cat", "dog"]'


@pytest.mark.parametrize("how", ["names", "numbers", "sign"])
def test_parquet_with_images_and_several_labels(tmp_path: Path, how: str) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    classes = ["bird", "cat", "dog"]
    lists = [[t for t in tag.split("|") if t] for tag in TAGS]
    column: Any = {
        "names": lists,
        "numbers": [[classes.index(name) for name in own] for own in lists],
        "sign": ["|".join(own) or None for own in lists],
    }[how]
    images = []
    for i in range(len(TAGS)):
        buffer = io.BytesIO()
        Image.new("L", (8, 8), 10 * i).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"{i:03d}.png"})
    rows = pa.table({"image": images, "labels": column})
    if how == "numbers":
        label = {"feature": {"names": classes, "_type": "ClassLabel"}, "_type": "Sequence"}
        features = {"info": {"features": {"image": {"_type": "Image"}, "labels": label}}}
        rows = rows.replace_schema_metadata({b"huggingface": json.dumps(features).encode()})
    pq.write_table(rows, tmp_path / "all.parquet")
    data = opened(tmp_path, val_share=0.3)
    assert (data.kind, data.classes) == ("multi", ("bird", "cat", "dog"))
    # A missing value of text is an image that is not labeled, which is left out.
    rest = {name: own for name, own in expected().items() if own or how != "sign"}
    assert {key.rpartition("!")[2]: own for key, own in sets_of(data).items()} == rest
