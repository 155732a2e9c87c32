"""Tables of images in memory: what they may be, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnext.data.formats.tables import find_table, rows_of

PATHS, LABELS = ["a.png", "b.png", "c.png"], ["cat", "dog", "cat"]
PAIRS = list(zip(PATHS, LABELS, strict=True))


@pytest.mark.parametrize(
    "table",
    [
        {"path": PATHS, "label": LABELS},
        {"label": np.array(LABELS), "other": [1, 2, 3], "path": tuple(map(Path, PATHS))},
        PAIRS,
        [list(pair) for pair in PAIRS],
        (iter(pair) for pair in PAIRS),
        map(np.array, PAIRS),
        [{"label": label, "path": path} for path, label in PAIRS],
    ],
)
def test_every_kind_of_table_has_the_same_rows(table: Any, tmp_path: Path) -> None:
    rows = rows_of(table)
    assert rows.rows == [(str(Path(path).absolute()), label) for path, label in PAIRS]
    path = tmp_path / "data.csv"
    path.write_text(rows.text(), encoding="utf-8")
    assert (find_table(path).classes, find_table(path).labels) == (("cat", "dog"), [0, 1, 0])


def test_a_table_may_have_a_split(tmp_path: Path) -> None:
    split = ["train", "val", "train"]
    rows = rows_of({"path": PATHS, "label": LABELS, "split": split})
    assert rows == rows_of(list(zip(PATHS, LABELS, split, strict=True)))
    path = tmp_path / "data.csv"
    path.write_text(rows.text(), encoding="utf-8")
    assert (find_table(path).train, find_table(path).val) == ([0, 2], [1])


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"path": PATHS, "label": LABELS[:2]}, "path has 3, label has 2"),
        ({"path": PATHS, "label": LABELS, "split": []}, "label has 3, split has 0"),
        ({"path": PATHS, "labels": LABELS}, "did you mean 'labels'"),
        ([*PAIRS, ("d.png", "cat", "val")], "item 3 of the data has 3 values, but item 0 has 2"),
        ([("d.png", "cat", "val"), *PAIRS], "item 1 of the data has 2 values, but item 0 has 3"),
        ([("a.png",)], "must be"),
        (["ab"], "must be"),
        ([b"ab"], "must be"),
        (
            [{"path": "a.png", "name": "cat"}],
            "needs a column 'label', not ",
        ),
        ([{"path": "a.png", "label": "cat"}, ("b.png", "cat")], "item 1 of the data is"),
        ([{"a.png", "cat"}], "must be"),
        ([("a.png", None)], "a.png, has no label"),
        ([("a.png", float("nan"))], "a.png, has no label"),
        ([("a.png", np.float32("nan"))], "a.png, has no label"),
        ([(7, "cat")], "has int where its path should be"),
        ([], "no images"),
        (7, "not int"),
    ],
)
def test_what_is_no_table_is_refused(table: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rows_of(table)


def test_an_image_with_two_labels_is_refused_and_repeats_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("path,label\na.png,cat\nb.png,dog\n./a.png,cat\n")
    found = find_table(path)
    assert found.keys == ["a.png", "b.png"]
    assert found.notes == ("1 row like another: each image is used once",)
    path.write_text("path,label\na.png,cat\nb.png,dog\na.png,dog\n")
    with pytest.raises(ValueError, match=r"the label 'cat' in line 2 and 'dog' in line 4"):
        find_table(path)
    path.write_text("path,label,split\na.png,cat,train\na.png,cat,val\n")
    with pytest.raises(ValueError, match="fold or group 'train' in line 2 and 'val' in line 3"):
        find_table(path)
    with pytest.raises(ValueError, match=r"a\.png has the label 'x' in item 0 and 'y' in item 1"):
        rows_of([("a.png", "x"), ("a.png", "y")])


def test_a_table_with_an_open_quotation_mark_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text('path,label\na.png,cat\nb.png,"dog\nc.png,cat\n')
    with pytest.raises(ValueError, match=r"labels\.csv:3: a quotation mark is opened"):
        find_table(path)
