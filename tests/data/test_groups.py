"""Images of one patient, video or place, which stay in one split."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_objects import coco_squares

import convnext
from convnext.data.formats.records import ReadOptions
from convnext.data.formats.tables import TableColumns, rows_of
from convnext.data.objects import open_dataset as open_objects
from convnext.data.samples import groups_of, held_out_groups, straddling_groups
from convnext.tasks.classification.data import open_dataset
from convnext.tasks.segmentation.data import open_dataset as open_pairs


def photo(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
    Image.fromarray(values).save(path)


def patients(root: Path, *, count: int = 10, each: int = 3) -> list[str]:
    """Write images of two classes, of patients who have some of each."""
    names = []
    for i in range(count * each):
        name = f"{'ab'[i % 2]}/patient{i // each:02d}_{i}.png"
        photo(root / name, i)
        names.append(name)
    return names


def patient_of(name: str) -> str:
    return Path(name).name.split("patient")[1][:2]


def shared(parts: dict[str, Any], of: Any = patient_of) -> set[str]:
    """Return the groups that are in both parts."""
    groups = {k: {of(p.source(i)) for i in range(len(p))} for k, p in parts.items()}
    assert groups["train"]
    assert groups["val"]
    return groups["train"] & groups["val"]


def test_images_of_a_patient_stay_together(tmp_path: Path) -> None:
    patients(tmp_path)
    without = open_dataset(str(tmp_path))
    assert shared(without.parts)
    data = open_dataset(str(tmp_path), group=r"patient(\d+)")
    assert not shared(data.parts)
    assert 3 <= len(data.val) <= 9
    assert set(data.val.labels) == {0, 1}
    assert any("of 10 groups of images are held out" in note for note in data.notes)
    again = open_dataset(str(tmp_path), group="patient[0-9]+")  # All that it matches.
    assert not shared(again.parts)


@pytest.mark.parametrize("kind", ["csv", "labels.csv", "parquet"])
def test_a_column_of_a_table_is_the_group(kind: str, tmp_path: Path) -> None:
    names = patients(tmp_path)
    rows = [(name, name[0], f"P{patient_of(name)}") for name in names]
    path = tmp_path / f"table.{kind.split('.')[-1]}"
    if kind == "parquet":
        arrow, parquet = (pytest.importorskip(f"pyarrow{end}") for end in ("", ".parquet"))
        images = [{"bytes": (tmp_path / name).read_bytes(), "path": name} for name in names]
        columns = {"image": images, "label": [r[1] for r in rows], "who": [r[2] for r in rows]}
        parquet.write_table(arrow.table(columns), path)
    else:
        with path.open("w", newline="") as file:
            header = ("path" if kind == "csv" else "file_name", "label", "who")
            csv.writer(file).writerows([header, *rows])
    for columns, group in (("", "who"), ("group=who", "")):
        named = TableColumns.parse(columns, "", group)
        data = open_dataset(str(path), columns=named, group=group)
        assert not shared(data.parts)
    with pytest.raises(ValueError, match=r"group=who and --group label: give one"):
        TableColumns.parse("group=who", "", "label")


def test_a_table_with_a_pattern_of_its_paths(tmp_path: Path) -> None:
    names = patients(tmp_path)
    (tmp_path / "table.csv").write_text(
        "path,label\n" + "".join(f"{name},{name[0]}\n" for name in names)
    )
    group = r"patient(\d+)"
    named = TableColumns.parse("", "", group)
    data = open_dataset(str(tmp_path / "table.csv"), columns=named, group=group)
    assert not shared(data.parts)


def test_groups_of_objects_and_of_masks(tmp_path: Path) -> None:
    coco_squares(tmp_path / "coco", num_train=12)
    (file,) = (tmp_path / "coco").rglob("*train*.json")
    content = json.loads(file.read_text())
    for other in (tmp_path / "coco").rglob("*val*.json"):
        other.unlink()
    names = [image["file_name"] for image in content["images"]]
    assert len(names) == 12
    data = open_objects(str(tmp_path / "coco"), options=ReadOptions(group=r"(\d)\.\w+$"))
    assert not shared(data.parts, lambda source: Path(source).stem[-1])
    assert "groups of images are held out" in data.understood.split
    for i in range(12):
        photo(tmp_path / "pairs/images" / f"v{i // 3}_{i}.png", i)
        mask = Image.fromarray(np.full((20, 20), i % 2, np.uint8))
        (tmp_path / "pairs/masks").mkdir(exist_ok=True)
        mask.save(tmp_path / "pairs/masks" / f"v{i // 3}_{i}.png")
    found = open_pairs(str(tmp_path / "pairs"), options=ReadOptions(group=r"v(\d)_"))
    assert not shared(found.parts, lambda source: Path(source).stem.split("_")[0])
    assert any("of 4 groups of images are held out" in note for note in found.notes)


def test_a_stated_split_that_groups_straddle_is_a_problem(tmp_path: Path) -> None:
    for i in range(12):
        photo(tmp_path / ("train", "val")[i % 2] / "ab"[i // 2 % 2] / f"p{i // 4}_{i}.png", i)
    report = convnext.check_data(tmp_path, group=r"p(\d)_", progress=False)
    (fault,) = (str(one) for one in report.problems if "groups of images" in str(one))
    assert "3 of 3 (such as '0' in train and val)" in fault
    assert not [one for one in convnext.check_data(tmp_path, progress=False).problems
                if "groups of images" in str(one)]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("person", r"--group 'person' is found in no path of an image, such as 'a/patient"),
        ("(", r"--group '\(' is not a regular expression"),
        ("patient", r"none of the 1 group of images can be held out"),
        ("^(.)", r"none of the 2 groups of images can be held out"),
    ],
)
def test_patterns_that_make_no_split_are_refused(
    pattern: str, message: str, tmp_path: Path
) -> None:
    patients(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_dataset(str(tmp_path), group=pattern)


def test_names_without_a_group_are_groups_with_their_copies() -> None:
    names = ["a/x1_0.png", "a/x1_1.png", "a/y_jpg.rf.0123456789.jpg", "a/y_jpg.rf.9876543210.jpg"]
    first, second, third, fourth = groups_of(names, r"x(\d)")
    assert (first, second) == ("1", "1")
    assert third == fourth != "1"


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2)), min_size=8, max_size=60),
    st.floats(0.1, 0.5),
)
def test_groups_are_whole_and_classes_stay(rows: Sequence[tuple[int, int]], share: float) -> None:
    groups, labels = [f"g{group}" for group, _ in rows], [label for _, label in rows]
    try:
        held = held_out_groups(groups, labels, share)
    except ValueError:
        return
    rest = [i for i in range(len(rows)) if i not in held]
    assert held == sorted(set(held))
    assert not {groups[i] for i in held} & {groups[i] for i in rest}
    assert {labels[i] for i in rest} == set(labels)
    assert held_out_groups(groups[::-1], labels[::-1], share) == sorted(
        len(rows) - 1 - i for i in held
    )


def test_straddling_groups_are_counted() -> None:
    assert straddling_groups({"train": ["a", "b"], "val": ["c"]}) == []
    (fault,) = straddling_groups({"train": ["a", "b"], "val": ["b", "c"], "test": ["b"]})
    assert "1 of 3 (such as 'b' in train and val and test)" in fault


def test_a_run_with_groups_scores_what_it_held_out(tmp_path: Path) -> None:
    patients(tmp_path / "data")
    short = {"epochs": 1, "batch_size": 8, "image_size": 32, "device": "cpu"}
    run = convnext.train(
        data=tmp_path / "data", output=tmp_path / "run", model="convnext_atto",
        group=r"patient(\d+)", progress=False, **short,
    )  # fmt: skip
    data = open_dataset(str(tmp_path / "data"), group=r"patient(\d+)")
    found = convnext.evaluate(run.folder, progress=False)
    assert found.conditions is not None
    assert found.conditions.num_images == len(data.val)
    loose = tmp_path / "loose.safetensors"
    loose.write_bytes((run.folder / "checkpoints" / "best.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"trained with group, and only its run folder"):
        convnext.evaluate(loose, data=tmp_path / "data", progress=False)


def test_a_table_in_memory_has_a_column_of_groups(tmp_path: Path) -> None:
    names = patients(tmp_path)
    table = {
        "path": [tmp_path / name for name in names],
        "label": [name[0] for name in names],
        "fold_id": [patient_of(name) for name in names],
        "age": [30] * len(names),
    }
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    path = tmp_path / "data.csv"
    texts = set()
    for data in (table, pandas.DataFrame(table), rows):
        for columns, group in (("", "fold_id"), ("group=fold_id", "")):
            named = TableColumns.parse(columns, "", group)
            written = rows_of(data, named)
            assert written.header == ("path", "label", "fold_id")
            texts.add(written.text())
            path.write_text(written.text())
            # Its name is that of a column of folds, but the user says what it is.
            assert not shared(open_dataset(str(path), columns=named, group=group).parts)
    assert len(texts) == 1
    # A pattern of paths is not a column.
    assert rows_of(table, TableColumns.parse("", "", r"patient(\d+)")).header == ("path", "label")
    with pytest.raises(ValueError, match=r"needs a column 'foldid', not .*did you mean 'fold_id'"):
        rows_of(table, TableColumns.parse("group=foldid"))
    table["fold_id"][0] = None  # An image without a group is one of its own.
    assert rows_of(table, TableColumns.parse("group=fold_id")).rows[0][2] == ""
    twice = {"path": ["a.png"] * 2, "label": ["x"] * 2, "who": ["p", "q"]}
    with pytest.raises(ValueError, match=r"split, fold or group 'p' in item 0 and 'q' in item 1"):
        rows_of(twice, TableColumns.parse("group=who"))
