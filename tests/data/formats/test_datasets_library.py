"""Data sets that Hugging Face's `datasets` writes: both readers find the same in them.

One file, since importing the library takes seconds. It is never online.
"""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnext.data.samples import Samples
from convnext.tasks.classification.data import ClassificationData, open_dataset

NAMES = ["dog", "cat", "bird"]
Noise = Callable[..., Image.Image]
Row = tuple[bytes, str]
"""The pixels of an image and the name of its class."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The library, with a cache of its own, and offline."""
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        import datasets

        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        datasets.disable_progress_bars()
        yield datasets


def load(library: ModuleType, kind: str, cache: Path, **files: Any) -> Any:
    """Return a data set that the library loads from files, some of which it does not close."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        found = library.load_dataset(kind, cache_dir=str(cache), **files)
        gc.collect()
    return found


@pytest.fixture
def make(library: ModuleType, noise: Noise) -> Callable[..., Any]:
    """A function (first seed, number of images) -> data set with images and classes."""
    features = library.Features(
        {"image": library.Image(), "label": library.ClassLabel(names=NAMES)}
    )

    def build(first: int, count: int, images: list[Any] | None = None) -> Any:
        pictures = images or [noise(seed=first + i) for i in range(count)]
        labels = [(first + i) % 3 for i in range(count)]
        return library.Dataset.from_dict({"image": pictures, "label": labels}, features=features)

    return build


def theirs(data: Any) -> list[Row]:
    """Return the images of a split as the library reads them."""
    names = data.features["label"]
    rows = []
    for row in data:
        label = row["label"]
        name = names.int2str(label) if hasattr(names, "int2str") else str(label)
        rows.append((np.asarray(row["image"].convert("RGB")).tobytes(), name))
    return sorted(rows)


def ours(data: ClassificationData, *splits: str) -> list[Row]:
    """Return the images of our splits together."""
    rows = []
    for split in splits:
        samples: Samples = data.parts[split]
        for i, label in enumerate(samples.labels):
            rows.append((np.asarray(samples.open(i, "RGB")).tobytes(), data.classes[label]))
    return sorted(rows)


def test_a_saved_dictionary_of_splits(
    library: ModuleType, make: Callable[..., Any], tmp_path: Path
) -> None:
    saved = library.DatasetDict(train=make(0, 9), validation=make(20, 6), test=make(40, 3))
    saved.save_to_disk(tmp_path / "data", num_shards={"train": 3, "validation": 1, "test": 1})
    found, read = open_dataset(str(tmp_path / "data")), library.load_from_disk(tmp_path / "data")
    assert list(found.classes) == read["train"].features["label"].names
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert ours(found, split) == theirs(read[name])
    assert "split: the names of the files or folders" in "\n".join(found.notes)


def test_one_saved_split_is_divided(make: Callable[..., Any], tmp_path: Path) -> None:
    data = make(0, 30).shuffle(seed=1).select(range(20))
    data.save_to_disk(tmp_path / "data", num_shards=2)
    found = open_dataset(str(tmp_path / "data"))
    assert ours(found, "train", "val") == theirs(data)
    assert len(found.val) > 0


def test_images_that_were_paths_are_saved_with_their_bytes(
    make: Callable[..., Any], noise: Noise, tmp_path: Path
) -> None:
    paths = [str(tmp_path / f"{i}.png") for i in range(6)]
    for i, path in enumerate(paths):
        noise(seed=i).save(path)
    data = make(0, 6, paths)
    data.save_to_disk(tmp_path / "data")
    expected = theirs(data)
    for path in paths:
        Path(path).unlink()
    assert ours(open_dataset(str(tmp_path / "data")), "train", "val") == expected


def test_files_of_an_earlier_save_are_left_out(
    library: ModuleType, make: Callable[..., Any], tmp_path: Path
) -> None:
    """The library does not remove them, and does not read them either."""
    folder = tmp_path / "data"
    make(0, 9).save_to_disk(folder, num_shards=3)
    make(30, 6).save_to_disk(folder, num_shards=2)
    found = open_dataset(str(folder))
    assert ours(found, "train", "val") == theirs(library.load_from_disk(folder))
    assert len(found.train) + len(found.val) == 6
    assert any("does not list, perhaps of an earlier save, left out: 3" in f for f in found.faults)

    library.DatasetDict(train=make(0, 9), test=make(40, 3)).save_to_disk(tmp_path / "dict")
    library.DatasetDict(train=make(0, 9), validation=make(50, 3)).save_to_disk(tmp_path / "dict")
    found = open_dataset(str(tmp_path / "dict"))
    assert found.test is None
    assert ours(found, "val") == theirs(library.load_from_disk(tmp_path / "dict")["validation"])
    assert any("(such as test/data-00000-of-00001.arrow)" in fault for fault in found.faults)

    (folder / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"state.json lists data-00001-of-00002.arrow, which does"):
        open_dataset(str(folder))


def test_parquet_of_each_split(
    library: ModuleType, make: Callable[..., Any], tmp_path: Path
) -> None:
    parts = {"train": make(0, 9), "validation": make(20, 6), "test": make(40, 3)}
    for name, data in parts.items():
        data.to_parquet(tmp_path / f"{name}-00000-of-00001.parquet")
    found = open_dataset(str(tmp_path))
    files = {name: str(tmp_path / f"{name}-*.parquet") for name in parts}
    read = load(library, "parquet", tmp_path / ".cache", data_files=files)
    assert list(found.classes) == read["train"].features["label"].names == NAMES
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert ours(found, split) == theirs(read[name]) == theirs(parts[name])


@pytest.mark.parametrize("table", ["metadata.csv", "metadata.jsonl"])
def test_an_imagefolder_with_metadata(
    library: ModuleType, noise: Noise, tmp_path: Path, table: str
) -> None:
    root = tmp_path / "pets"
    for split, first in (("train", 0), ("validation", 20), ("test", 40)):
        folder = root / split / "inner"
        folder.mkdir(parents=True)
        rows = [(f"inner/{i}.png", NAMES[i % 3]) for i in range(6)]
        for i, (name, _) in enumerate(rows):
            noise(seed=first + i).save(root / split / name)
        if table.endswith(".csv"):
            text = "\n".join(["file_name,label", *(",".join(row) for row in rows)])
        else:
            text = "\n".join(json.dumps({"file_name": n, "label": label}) for n, label in rows)
        (root / split / table).write_text(text)
    found = open_dataset(str(root))
    read = load(library, "imagefolder", tmp_path / "cache", data_dir=str(root))
    assert found.classes == ("bird", "cat", "dog")
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        assert ours(found, split) == theirs(read[name])


def test_an_imagefolder_with_classes(library: ModuleType, noise: Noise, tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for number, split in enumerate(("train", "test")):
        for label, name in enumerate(NAMES):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                image = noise(seed=100 * number + 10 * label + i)
                image.save(root / split / name / f"{i}.png")
    found = open_dataset(str(root))
    read = load(library, "imagefolder", tmp_path / "cache", data_dir=str(root))
    assert list(found.classes) == read["train"].features["label"].names
    assert ours(found, "train", "val") == theirs(read["train"])
    assert ours(found, "test") == theirs(read["test"])
