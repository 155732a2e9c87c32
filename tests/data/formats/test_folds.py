"""Folds in tables: which rows are for validation, from the command line and from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import convnext
from convnext.cli import main
from convnext.data.formats.tables import TableColumns, parts_of_rows, rows_of
from convnext.tasks.classification.data import open_dataset

ROWS = [f"{i:03d}.png,{'ab'[i % 2]},{i // 2 % 3}" for i in range(12)]


@pytest.fixture
def root(make_folder) -> Path:
    """Return a folder with a table of twelve images in three folds."""
    folder = make_folder({"images": 12})
    (folder / "labels.csv").write_text("\n".join(["file,label,fold", *ROWS]))
    return folder


def held(data) -> list[int]:
    return [int(Path(data.val.source(i)).stem) for i in range(len(data.val))]


def test_the_first_fold_is_for_validation_and_said_so(root) -> None:
    data = open_dataset(str(root))
    assert held(data) == [0, 1, 6, 7]
    assert len(data.train) == 8
    assert (
        "split: the column 'fold': fold 0 of 0, 1, 2 is for validation; --fold chooses another one "
        "(train 8, val 4 images)"
    ) in data.notes


@pytest.mark.parametrize("fold", [2, "2", "2.0"])
def test_a_fold_that_is_asked_for(root, fold) -> None:
    data = open_dataset(str(root), columns=TableColumns.parse("", fold))
    assert held(data) == [4, 5, 10, 11]
    assert "fold 2 of 0, 1, 2 is for validation (" in "\n".join(data.notes)


def test_columns_of_any_name(root) -> None:
    rows = [f"{row},{i},x" for i, row in enumerate(ROWS)]
    (root / "labels.csv").write_text("\n".join(["a,b,c,d,e", *rows]))
    named = TableColumns.parse("image=a, label=b, fold=c", 1)
    for path in (root, root / "labels.csv"):
        data = open_dataset(str(path), columns=named)
        assert data.classes == ("a", "b")
        assert held(data) == [2, 3, 8, 9]


def test_folders_of_folds(make_folder, capsys) -> None:
    counts = {f"fold_{k}/{c}": n for k, n in enumerate((4, 5, 6)) for c in "ab"}
    root = make_folder({**counts, "test/a": 2, "test/b": 1, "fold_1/c": 3})
    for fold, held, first in ((None, 8, "fold_0/a"), (1, 13, "fold_1/a"), ("2", 12, "fold_2/a")):
        columns = TableColumns.parse("", "" if fold is None else fold)
        data = open_dataset(str(root), strict=False, columns=columns)
        assert data.classes == ("a", "b", "c")
        assert (len(data.train), len(data.val), len(data.test)) == (33 - held, held, 3)
        assert first in data.val.source(0)
        chosen = "; --fold chooses another one" if fold is None else ""
        text = f"split: the folders fold_0, fold_1, fold_2: fold {fold or 0} of 0, 1, 2 is for"
        assert any(n.startswith(text) and f"validation{chosen};" in n for n in data.notes)
    with pytest.raises(ValueError, match="no fold '3' in the folders fold_0, fold_1, fold_2, but"):
        open_dataset(str(root), columns=TableColumns.parse("", 3))
    assert main(["data", str(root), "--fold", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["num_val"] == [5, 5, 3]
    # Folds that are split each are data sets of their own.
    each = make_folder(
        {f"fold{k}/{s}/{c}": 2 for k in (1, 2) for s in ("train", "val") for c in "ab"}, name="e"
    )
    with pytest.raises(ValueError, match=r"several data sets: fold1/, fold2/; give one of them"):
        open_dataset(str(each))
    plain = make_folder({"fold_0": 4, "other": 4}, name="plain")
    assert open_dataset(str(plain)).classes == ("fold_0", "other")
    with pytest.raises(ValueError, match="--fold needs a column of a table"):
        open_dataset(str(plain), columns=TableColumns.parse("", 0))


def test_a_table_of_paths(root) -> None:
    rows = [f"images/{row}" for row in ROWS]
    (root / "labels.csv").write_text("\n".join(["path,label,fold", *rows]))
    path = str(root / "labels.csv")
    assert held(open_dataset(path, columns=TableColumns.parse("", 1))) == [2, 3, 8, 9]
    assert held(open_dataset(path)) == [0, 1, 6, 7]
    (root / "labels.csv").write_text("\n".join(["path,label,fold", *rows, "images/000.png,a,2"]))
    with pytest.raises(
        ValueError, match=r"000.png has the split, fold or group 'train 0' .* 'train 2'"
    ):
        open_dataset(path)


def test_test_rows_stay_and_rows_without_a_fold_train(root) -> None:
    rows = [
        f"{row.rpartition(',')[0]},{'test,' if i > 9 else 'train,' + str(float(i // 2 % 3))}"
        for i, row in enumerate(ROWS)
    ]
    rows[0] = "000.png,a,train,"
    (root / "labels.csv").write_text("\n".join(["file,label,split,fold", *rows]))
    data = open_dataset(str(root))
    assert held(data) == [1, 6, 7]
    assert data.test is not None
    assert (len(data.train), len(data.test)) == (7, 2)
    assert "rows without a fold stay in training" in "\n".join(data.notes)


@pytest.mark.parametrize("header", ["file,label,fold", "path,label,fold"])
def test_a_missing_fold_is_not_one_called_nan(root, header) -> None:
    rows = [f"images/{row}" for row in ROWS]
    rows[0] = "images/000.png,a,nan"
    (root / "labels.csv").write_text("\n".join([header, *rows]))
    data = open_dataset(str(root / "labels.csv"))
    assert held(data) == [1, 6, 7]
    text = "fold 0 of 0, 1, 2 is for validation; --fold chooses another one; 1 row without a fold "
    assert text + "stays in training" in "\n".join(data.notes)


@pytest.mark.parametrize("header", ["file,label,label", "path,label,label", "path,label,fold,fold"])
def test_two_columns_of_one_name_are_refused(root, header) -> None:
    rows = [f"images/{row}" + ",0" * (header.count(",") - 2) for row in ROWS]
    (root / "labels.csv").write_text("\n".join([header, *rows]))
    with pytest.raises(ValueError, match=r"several columns called '(label|fold)'"):
        open_dataset(str(root / "labels.csv"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("003.png,b,2", r"003.png several folds: 1 and 2"),
        ("003.png,a,1", r"several labels: b and a"),
    ],
)
def test_an_image_in_two_folds_or_classes_is_refused(root, row, message) -> None:
    # An image that is listed twice alike comes first.
    (root / "labels.csv").write_text("\n".join(["file,label,fold", *ROWS, ROWS[0], row]))
    with pytest.raises(ValueError, match=message):
        open_dataset(str(root))


def test_a_stated_validation_split_wins_until_a_fold_is_asked_for(root) -> None:
    rows = [f"{row},{'valid' if i < 2 else 'train'}" for i, row in enumerate(ROWS)]
    (root / "labels.csv").write_text("\n".join(["file,label,fold,split", *rows]))
    data = open_dataset(str(root))
    assert held(data) == [0, 1]
    assert "the column 'fold' is not used" in "\n".join(data.notes)
    assert held(open_dataset(str(root), columns=TableColumns.parse("", 1))) == [2, 3, 8, 9]


def test_what_cannot_be_a_fold_is_refused(root, make_folder) -> None:
    with pytest.raises(ValueError, match="no fold '7' in the column 'fold', but 0, 1, 2"):
        open_dataset(str(root), columns=TableColumns.parse("", 7))
    with pytest.raises(ValueError, match="has only the fold 3; holding one out needs two"):
        parts_of_rows(["train"] * 2, ["3", "3"], TableColumns(), where="it")
    (root / "labels.csv").write_text("\n".join(["file,label,k", *ROWS]))
    with pytest.raises(ValueError, match="no column called fold, which --fold 1 needs"):
        open_dataset(str(root), columns=TableColumns.parse("label=label", 1))
    for text in ("image", "image=", "picture=a", "image=a,image=b"):
        with pytest.raises(ValueError, match="takes each of image=NAME"):
            TableColumns.parse(text)
    folders = make_folder({"train/a": 3, "train/b": 3}, name="folders")
    with pytest.raises(ValueError, match="--fold needs a column of a table, but"):
        open_dataset(str(folders), columns=TableColumns.parse("", 1))


def test_a_table_in_memory_keeps_its_folds(root, tmp_path) -> None:
    table = {
        "path": [str(root / "images" / row.split(",")[0]) for row in ROWS],
        "label": [row.split(",")[1] for row in ROWS],
        "fold": [int(row.split(",")[2]) for row in ROWS],
    }
    path = tmp_path / "data.csv"
    path.write_text(rows_of(table).text())
    assert held(open_dataset(str(path), columns=TableColumns.parse("", 2))) == [4, 5, 10, 11]


def test_verbs_take_columns_and_a_fold(root, tmp_path, capsys) -> None:
    assert main(["data", str(root), "--fold", "1", "--columns", "label=label", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert sum(report["num_val"]) == 4
    assert any("fold 1 of 0, 1, 2" in note for note in report["notes"])
    assert sum(convnext.check_data(root, fold=2, progress=False).num_val) == 4
    run = convnext.train(
        data=root,
        fold=2,
        columns="label=label",
        model="convnext_atto",
        epochs=1,
        image_size=32,
        workers=0,
        output=tmp_path / "run",
        progress=False,
    )
    names = json.loads((run.folder / "heldout.json").read_text())
    assert sorted(Path(name).stem for name in names) == ["004", "005", "010", "011"]
    result = convnext.load(run.folder).evaluate(progress=False).evaluation.evaluation
    assert result.num_images == 4
