"""Parquet and Arrow files with the images inside, as `datasets` writes them."""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from convnext.data.contents import held_names
from convnext.data.formats import parquet
from convnext.data.formats.parquet import ParquetSamples
from convnext.data.formats.tables import TableColumns
from convnext.data.images import BadImage
from convnext.data.samples import FolderSamples
from convnext.tasks.classification.data import ClassificationData, open_dataset
from convnext.tasks.classification.inspect import inspect

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ("cat", "dog", "bird")


def png(seed: int) -> bytes:
    """Return a PNG of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def features(label: str = "label", names: Sequence[str] = NAMES) -> dict[bytes, bytes]:
    """Return the metadata of a schema with a `ClassLabel`."""
    found = {"image": {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": found}}).encode()}


def table(
    count: int,
    *,
    first: int = 0,
    names: Sequence[str] = NAMES,
    image: Callable[[int], Any] = lambda i: {"bytes": png(i), "path": f"{i}.png"},
    label: Callable[[int], Any] = lambda i: i % 3,
) -> pa.Table:
    """Return a table as `datasets` writes it."""
    rows = range(first, first + count)
    columns = {
        "image": pa.array([image(i) for i in rows], IMAGE),
        "label": pa.array([label(i) for i in rows], pa.int64()),
    }
    return pa.table(columns).replace_schema_metadata(features(names=names))


def opened(path: Path, **options: Any) -> ClassificationData:
    return open_dataset(str(path), **options)


def pixels(data: ClassificationData, part: str, index: int) -> np.ndarray:
    return np.asarray(getattr(data, part).open(index, "RGB"))


def original(seed: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png(seed))))


def test_files_of_the_hub_with_names_in_the_schema(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    pq.write_table(table(9), folder / "train-00000-of-00002-0a1b2c3d.parquet", row_group_size=4)
    pq.write_table(table(6, first=9), folder / "train-00001-of-00002-0a1b2c3d.parquet")
    pq.write_table(table(6, first=15), folder / "validation-00000-of-00001.parquet")
    pq.write_table(table(3, first=21), folder / "test-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("---\n---\n")
    data = opened(tmp_path)
    assert data.classes == NAMES
    assert data.test is not None
    assert (len(data.train), len(data.val), len(data.test)) == (15, 6, 3)
    assert list(data.train.labels) == [i % 3 for i in range(15)]
    for index in (0, 14, 3, 4, 8, 9):
        np.testing.assert_array_equal(pixels(data, "train", index), original(index))
    np.testing.assert_array_equal(pixels(data, "val", 5), original(20))
    assert data.train.source(10).endswith("train-00001-of-00002-0a1b2c3d.parquet!10.png")
    assert "split: the names of the files" in "\n".join(data.notes)
    assert "images in 4 Parquet files" in data.notes[0]
    assert data.train.header(0).size == (20, 16)
    assert data.train.num_bytes(0) == len(png(0))
    # The processes of a loader get the same images.
    copy = pickle.loads(pickle.dumps(data.train))
    np.testing.assert_array_equal(np.asarray(copy.open(8, "RGB")), original(8))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_bytes_and_texts_as_labels(tmp_path: Path, kind: pa.DataType) -> None:
    columns = {
        "img": pa.array([png(i) for i in range(10)], kind),
        "species": [("oak", "elm")[i % 2] for i in range(10)],
        "width": [20] * 10,
    }
    path = tmp_path / "trees.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=3)
    for given in (path, tmp_path):
        data = opened(given)
        assert data.classes == ("elm", "oak")
        assert (len(data.train), len(data.val)) == (8, 2)
    found = sorted(int(data.train.names[i].split()[1]) for i in range(8))
    for index, row in enumerate(data.train.names):
        number = int(row.split()[1])
        np.testing.assert_array_equal(pixels(data, "train", index), original(number))
        assert data.train.labels[index] == (1, 0)[number % 2]
    assert len(set(found)) == 8


def test_rows_without_an_image_or_a_label_are_counted(tmp_path: Path) -> None:
    Image.open(io.BytesIO(png(100))).save(tmp_path / "beside.png")

    def image(i: int) -> Any:
        special = {
            2: {"bytes": None, "path": "beside.png"},
            4: {"bytes": None, "path": "gone.png"},
            5: {"bytes": None, "path": None},
            6: None,
        }
        return special.get(i, {"bytes": png(i), "path": f"{i}.png"})

    def label(i: int) -> int | None:
        return {7: -1, 8: None}.get(i, i % 3)

    pq.write_table(table(15, image=image, label=label), tmp_path / "train.parquet")
    data = opened(tmp_path, strict=False)
    assert len(data.train) + len(data.val) == 10
    assert (
        "rows with neither bytes nor a file of an image, left out: 3 "
        "(such as train.parquet, row 4: gone.png)"
    ) in data.faults
    assert "rows without a label, left out: 2 (such as train.parquet, row 7)" in data.faults
    parts = [(part, i) for part in (data.train, data.val) for i in range(len(part))]
    beside = next((p, i) for p, i in parts if p.source(i) == str(tmp_path / "beside.png"))
    np.testing.assert_array_equal(np.asarray(beside[0].open(beside[1], "RGB")), original(100))
    assert beside[0].labels[beside[1]] == 2


def test_images_outside_the_data_are_refused_with_what_can_be_done(tmp_path: Path) -> None:
    Image.open(io.BytesIO(png(100))).save(tmp_path / "outside.png")
    (tmp_path / "data").mkdir()
    row = {"bytes": None, "path": "../outside.png"}
    rows = table(6, image=lambda i: row if i == 3 else {"bytes": png(i), "path": None})
    pq.write_table(rows, tmp_path / "data/train.parquet")
    with pytest.raises(
        ValueError, match=r"lies outside .*; move it into the data, or list"
    ) as caught:
        opened(tmp_path / "data")
    assert "--allow-outside" not in str(caught.value)
    listed = "../outside.png,a\n../outside.png,a\nx.png,b\ny.png,b\nz.png,a\n"
    (tmp_path / "data" / "all.csv").write_text(f"path,label\n{listed}")
    assert opened(tmp_path / "data" / "all.csv", strict=False).classes == ("a", "b")


def test_a_file_that_cannot_be_read_matters_only_if_it_is_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(10):
        Image.open(io.BytesIO(png(i))).save(tmp_path / f"{i}.png")
    listed = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(10))
    (tmp_path / "labels.csv").write_text(f"filename,label\n{listed}")
    pq.write_table(table(12, first=50), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"images in other\.parquet, and labels of other"):
        opened(tmp_path)
    for missing in (True, False):  # Without the library, and with a damaged file.
        with monkeypatch.context() as patch:
            if missing:
                patch.setitem(sys.modules, "pyarrow", None)
            else:
                (tmp_path / "other.parquet").write_bytes(b"PAR1 damaged")
            data = opened(tmp_path)
            assert data.classes == ("a", "b")
            assert (len(data.train), len(data.val)) == (8, 2)
            reason = "needs pyarrow" if missing else "is not a Parquet file"
            assert any("not read, and not needed" in n and reason in n for n in data.notes)
            (tmp_path / "labels.csv").rename(tmp_path / "labels.bak")
            with pytest.raises(ValueError, match=reason):
                opened(tmp_path)
            (tmp_path / "labels.bak").rename(tmp_path / "labels.csv")


def test_damaged_images_in_rows_are_named(tmp_path: Path) -> None:
    def image(i: int) -> Any:
        return {"bytes": b"" if i == 1 else png(i)[:60] if i == 3 else png(i), "path": f"{i}.png"}

    pq.write_table(table(12, image=image), tmp_path / "train.parquet")
    report = inspect(str(tmp_path))
    assert report.num_images == 12
    bad = dict(report.unreadable)
    assert bad[f"{tmp_path / 'train.parquet'}!1.png"] == "the file is empty"
    assert "cut off" in bad[f"{tmp_path / 'train.parquet'}!3.png"]
    assert len(bad) == 2


def test_a_data_set_saved_to_disk(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 3)):
        folder = tmp_path / split
        folder.mkdir()
        rows = table(count)
        with (
            pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file,
            pa.ipc.new_stream(file, rows.schema) as writer,
        ):
            writer.write_table(rows, max_chunksize=4)
        (folder / "cache-0123456789abcdef.arrow").write_bytes(b"not read")
        (folder / "state.json").write_text("{}")
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    data = opened(tmp_path, val_share=0.5)
    assert data.classes == NAMES
    assert data.test is not None
    assert (len(data.train) + len(data.val), len(data.test)) == (6, 3)
    assert isinstance(data.test, ParquetSamples)
    np.testing.assert_array_equal(pixels(data, "test", 2), original(2))
    assert "Arrow" in data.notes[0]


def test_what_is_not_clear_is_refused(tmp_path: Path) -> None:
    rows = table(6)
    two = rows.append_column("second", rows.column("image"))
    pq.write_table(two, tmp_path / "two.parquet")
    with pytest.raises(ValueError, match="could be 'image' or 'second'; say which with --columns"):
        opened(tmp_path / "two.parquet")
    several = rows.append_column("age", [[1] * 6]).append_column("sex", [[0] * 6])
    several = several.rename_columns(["image", "kind", "age", "sex"])
    pq.write_table(several.replace_schema_metadata(None), tmp_path / "labels.parquet")
    with pytest.raises(ValueError, match="could be any of kind, age, sex; say which"):
        opened(tmp_path / "labels.parquet")
    other = table(6, names=("dog", "cat", "bird"))
    folder = tmp_path / "swapped"
    folder.mkdir()
    pq.write_table(rows, folder / "train.parquet")
    pq.write_table(other, folder / "validation.parquet")
    with pytest.raises(ValueError, match="name other classes in the column 'label'"):
        opened(folder)
    pq.write_table(table(6, label=lambda i: 7), tmp_path / "beyond.parquet")
    with pytest.raises(ValueError, match="row 0: the column 'label' is 7, but the schema names 3"):
        opened(tmp_path / "beyond.parquet")
    sets = tmp_path / "sets"
    for name in ("small", "large"):
        (sets / name).mkdir(parents=True)
        pq.write_table(rows, sets / name / "train.parquet")
    with pytest.raises(ValueError, match=r"several data sets: large/ .* and small/"):
        opened(sets)


def test_columns_that_the_user_names(tmp_path: Path) -> None:
    from convnext.data.formats.tables import TableColumns

    rows = table(12)
    rows = rows.append_column("thumb", rows.column("image"))
    rows = rows.append_column("k", [[i % 4 for i in range(12)]])
    pq.write_table(rows, tmp_path / "all.parquet", row_group_size=5)
    named = TableColumns.parse("image=image,label=label,fold=k", 2)
    data = opened(tmp_path / "all.parquet", columns=named)
    assert list(data.val.names) == ["2.png", "6.png", "10.png"]
    assert len(data.train) == 9
    with pytest.raises(ValueError, match="no column 'lable', which --columns names; did you mean"):
        opened(
            tmp_path / "all.parquet",
            columns=TableColumns.parse("label=lable"),
        )


def test_damaged_files_and_files_that_change(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(ValueError, match=r"train.parquet is not a Parquet file that can be read"):
        opened(path)
    pq.write_table(table(9), path)
    data = opened(path)
    path.unlink()
    with pytest.raises(BadImage, match="there is no file"):
        data.train.open(0, "RGB")


def test_metadata_beside_images(make_folder) -> None:
    root = make_folder({"train": 6, "test": 3})
    for split, count in (("train", 6), ("test", 3)):
        columns = {
            "file_name": [f"{i:03d}.png" for i in range(count)],
            "label": pa.array([i % 3 for i in range(count)], pa.int64()),
        }
        rows = pa.table(columns).replace_schema_metadata(features())
        pq.write_table(rows, root / split / "metadata.parquet")
    data = opened(root, val_share=0.5)
    assert data.classes == ("bird", "cat", "dog")
    assert isinstance(data.train, FolderSamples)
    assert data.test is not None
    assert [data.classes[label] for label in data.test.labels] == ["cat", "dog", "bird"]


def test_a_run_on_parquet_is_evaluated_on_what_it_held_out(tmp_path: Path) -> None:
    import convnext

    pq.write_table(table(24), tmp_path / "all.parquet", row_group_size=7)
    run = convnext.train(
        data=tmp_path / "all.parquet",
        model="convnext_atto",
        output=tmp_path / "run",
        epochs=1,
        image_size=32,
        progress=False,
        workers=1,
        **{"optim.batch_size": 8},
    )
    held = held_names(run.folder)
    assert len(held) == 6
    scores = convnext.load(run.folder).evaluate(progress=False)
    assert scores.evaluation.evaluation.num_images == 6


@pytest.mark.parametrize("ending", [".parquet", ".arrow"])
def test_bytes_that_are_not_images_are_not_the_data(tmp_path: Path, ending: str) -> None:
    (tmp_path / "images").mkdir()
    for i in range(8):
        (tmp_path / "images" / f"{i}.png").write_bytes(png(i))
    rows = "".join(f"{i}.png,{'ab'[i % 2]}\n" for i in range(8))
    (tmp_path / "labels.csv").write_text(f"file,label\n{rows}")
    columns = {"id": [str(i) for i in range(20)], "embedding": [None] * 10 + [bytes(64)] * 10}
    other = pa.table(columns)
    if ending == ".parquet":
        pq.write_table(other, tmp_path / "embeddings.parquet")
    else:
        with pa.ipc.new_file(tmp_path / "embeddings.arrow", other.schema) as file:
            file.write_table(other)
    assert opened(tmp_path).classes == ("a", "b")
    # Nor are they a second column that could be meant.
    (tmp_path / "rows").mkdir()
    columns = {"img": [png(i) for i in range(10)], "hash": [b"0a"] * 10, "kind": [0, 1] * 5}
    pq.write_table(pa.table(columns), tmp_path / "rows" / "all.parquet")
    assert "images by the column 'img', labels by the column 'kind'" in "\n".join(
        opened(tmp_path / "rows").notes
    )


def test_numbers_of_classes_may_be_floats_and_nan_is_no_label(tmp_path: Path) -> None:
    images = pa.array([{"bytes": png(i), "path": None} for i in range(10)], IMAGE)
    numbers = pa.array([float("nan"), -1.0, *[0.0, 2.0] * 4])
    rows = pa.table({"image": images, "label": numbers})
    path = tmp_path / "all.parquet"
    for metadata, classes in ((features(), NAMES), ({}, ("-1", "0", "2"))):
        pq.write_table(rows.replace_schema_metadata(metadata), path)
        data = opened(path)
        assert data.classes == classes
        left = 2 if metadata else 1
        assert len(data.train) + len(data.val) == 10 - left
        assert f"rows without a label, left out: {left}" in "\n".join(data.faults)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0.5] * 6, r"row 0: the column 'label' is 0.5, but the schema names 3 classes"),
        (["cat"] * 6, r"row 0: the column 'label' is 'cat', but the schema names 3 classes"),
        ([[0], [1]] * 3, r"the column 'label' has several values in a row"),
    ],
)
def test_labels_that_are_not_numbers_of_the_named_classes(
    tmp_path: Path, labels: list[Any], message: str
) -> None:
    images = pa.array([{"bytes": png(i), "path": None} for i in range(6)], IMAGE)
    rows = pa.table({"image": images, "label": labels}).replace_schema_metadata(features())
    pq.write_table(rows, tmp_path / "all.parquet")
    with pytest.raises(ValueError, match=message):
        opened(tmp_path, columns=TableColumns(label="label"))


def test_columns_of_one_name_and_no_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    rows = table(6)
    pq.write_table(rows.append_column("label", rows["label"]), path)
    with pytest.raises(ValueError, match=r"several columns called 'label'"):
        opened(path)
    pq.write_table(rows.slice(0, 0), path)
    with pytest.raises(ValueError, match=r"no row has an image and a label \(there are no rows\)"):
        opened(path)


def test_the_columns_of_splits_and_folds_are_not_the_labels(tmp_path: Path) -> None:
    images = pa.array([{"bytes": png(i), "path": None} for i in range(12)], IMAGE)
    columns = {"image": images, "kind": [0, 1] * 6, "fold": [0, 1, 2] * 4}
    rows = pa.table(columns).replace_schema_metadata(features("fold"))
    pq.write_table(rows, tmp_path / "all.parquet")
    data = opened(tmp_path)
    assert data.classes == ("0", "1")
    assert (len(data.train), len(data.val)) == (8, 4)


def test_a_group_of_rows_that_fills_the_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(png(0))
    monkeypatch.setattr(parquet, "MAX_BYTES", 6 * size)
    path = tmp_path / "all.parquet"
    for rows, is_large in ((12, True), (3, False)):
        pq.write_table(table(12), path, row_group_size=rows)
        text = "\n".join(opened(path).notes)
        assert ("GB in one group of rows" in text) == is_large
