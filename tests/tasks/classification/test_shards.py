"""Class folders to shards and back: the same images, the same bytes each time."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext.cli import main
from convnext.data.shards import index as shard_index
from convnext.data.shards.index import Places, read_places, write_places
from convnext.tasks.classification import shards as module
from convnext.tasks.classification.data import open_dataset
from convnext.tasks.classification.shards import to_shards


@pytest.fixture
def photos(make_folder):
    """Three classes with a split, 42 images."""
    counts = {"train/a": 20, "train/b": 9, "train/c": 4, "val/a": 3, "val/b": 3, "val/c": 3}
    return make_folder(counts)


def pixels(samples):
    """Return the label and the pixels of every image, sorted."""
    return sorted(
        (samples.labels[i], samples.open(i, "RGB").tobytes()) for i in range(len(samples))
    )


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_there_and_back(photos, tmp_path):
    report = to_shards(str(photos), tmp_path / "shards", shard_mb=0.01)
    before, after = open_dataset(str(photos)), open_dataset(str(tmp_path / "shards"))
    assert after.classes == before.classes == ("a", "b", "c")
    assert after.notes[3:] == ()
    for part in ("train", "val"):
        assert pixels(getattr(after, part)) == pixels(getattr(before, part))
    assert (report.num_train, report.num_val, report.unreadable) == (33, 9, ())
    tars = list((tmp_path / "shards").glob("*.tar"))
    assert report.num_shards == len(tars) > 4
    assert report.num_bytes == sum(tar.stat().st_size for tar in tars)


def test_images_in_parquet_become_shards_of_the_same_bytes(photos, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "tables").mkdir()
    before = {}
    for part in ("train", "val"):
        paths = sorted((photos / part).glob("*/*"))
        before[part] = Counter((path.read_bytes(), path.parent.name) for path in paths)
        rows = {
            "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
            "kind": [path.parent.name for path in paths],
            "note": ["x"] * len(paths),
        }
        pq.write_table(pa.table(rows), tmp_path / f"tables/{part}.parquet", row_group_size=7)
    words = ["--to-shards", str(tmp_path / "shards"), "--shard-size", "0.01"]
    assert main(["data", str(tmp_path / "tables"), *words]) == 2  # The label could be either.
    assert main(["data", str(tmp_path / "tables"), *words, "--columns", "label=kind"]) == 0
    after = open_dataset(str(tmp_path / "shards"))
    assert after.classes == ("a", "b", "c")
    for part, wanted in before.items():
        samples = getattr(after, part)
        found = ((samples._bytes(i), after.classes[samples.labels[i]]) for i in range(len(samples)))
        assert Counter(found) == wanted
    names = {after.train.source(i).rpartition(".")[2] for i in range(len(after.train))}
    assert names == {"png"}
    assert main(["data", str(tmp_path / "tables"), *words, "--columns", "label=kind"]) == 0
    small = tmp_path / "small"
    to_shards(str(tmp_path / "tables"), small, resize=8, columns="label=kind")
    header = open_dataset(str(small)).train.header(0)
    assert (min(header.size), header.format) == (8, "JPEG")


def test_files_stay_as_they_are(photos, tmp_path):
    to_shards(str(photos), tmp_path / "shards")
    before, after = open_dataset(str(photos)), open_dataset(str(tmp_path / "shards"))
    ours = Counter(after.train._bytes(i) for i in range(33))
    assert ours == Counter(Path(before.train.source(i)).read_bytes() for i in range(33))


def test_shards_are_mixed_and_keys_are_unique(photos, tmp_path):
    to_shards(str(photos), tmp_path / "shards", shard_mb=0.01)
    data = open_dataset(str(tmp_path / "shards"))
    assert list(data.train.labels) != sorted(data.train.labels)
    keys = [data.train.key(i).rpartition("!")[2] for i in range(33)]
    assert keys == [f"{i:09d}.png" for i in range(33)]


def test_the_same_folder_gives_the_same_bytes(photos, tmp_path):
    for name in ("one", "two"):
        to_shards(str(photos), tmp_path / name, shard_mb=0.01)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_an_interrupted_conversion_goes_on(photos, tmp_path, monkeypatch):
    whole, target = tmp_path / "whole", tmp_path / "shards"
    to_shards(str(photos), whole, shard_mb=0.01)
    write = module.write_shard

    def stop(tar, *arguments):
        if tar.name == "train-000002.tar":
            raise KeyboardInterrupt
        return write(tar, *arguments)

    monkeypatch.setattr(module, "write_shard", stop)
    with pytest.raises(KeyboardInterrupt):
        to_shards(str(photos), target, shard_mb=0.01)
    monkeypatch.undo()
    assert not (target / "shards.json").exists()
    tar = target / "train-000001.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    times = (target / "train-000000.tar").stat().st_mtime_ns
    report = to_shards(str(photos), target, shard_mb=0.01)
    assert report.num_kept == 1
    assert (target / "train-000000.tar").stat().st_mtime_ns == times
    assert contents(target) == contents(whole)


def test_a_conversion_that_was_killed_is_finished_by_the_same_command(photos, tmp_path):
    target = tmp_path / "shards"
    target.mkdir()
    (target / ".convnext-shards").touch()
    (target / "..plan.json.01234567").touch()
    to_shards(str(photos), target, shard_mb=0.01)
    whole = contents(target)
    assert "..plan.json.01234567" not in whole
    (target / "shards.json").unlink()
    with pytest.raises(ValueError, match=r"is unfinished.*--to-shards"):
        open_dataset(str(target))
    tar = target / "train-000000.tar"
    damaged = bytearray(tar.read_bytes())
    damaged[600] ^= 1
    tar.write_bytes(damaged)
    report = to_shards(str(photos), target, shard_mb=0.01)
    assert report.num_kept == report.num_shards - 1
    assert contents(target) == whole


def test_another_folder_is_not_touched(photos, tmp_path):
    target = tmp_path / "mine"
    target.mkdir()
    (target / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"has other files \(letter.txt\)"):
        to_shards(str(photos), target)
    assert list(target.iterdir()) == [target / "letter.txt"]
    to_shards(str(photos), tmp_path / "shards")
    with pytest.raises(ValueError, match="other images or settings"):
        to_shards(str(photos), tmp_path / "shards", shard_mb=5)
    with pytest.raises(ValueError, match="is a file"):
        to_shards(str(photos), target / "letter.txt")
    with pytest.raises(ValueError, match="has no image files"):
        to_shards("digits", tmp_path / "digits")
    with pytest.raises(ValueError, match="must be above 0"):
        to_shards(str(photos), tmp_path / "none", shard_mb=0)


def test_unreadable_files_are_left_out_and_listed(photos, tmp_path):
    for name in ("train/a/003.png", "val/c/001.png"):
        (photos / name).write_bytes((photos / name).read_bytes()[:100])
    for _ in range(2):  # Reported again if the shards already exist.
        report = to_shards(str(photos), tmp_path / "shards", shard_mb=0.01)
        assert (report.num_train, report.num_val) == (32, 8)
        assert [source for source, _ in report.unreadable] == [
            str(photos / name) for name in ("train/a/003.png", "val/c/001.png")
        ]
        assert all(reason for _, reason in report.unreadable)


def test_a_disk_that_is_too_small_is_noticed_before(photos, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ValueError, match="only 1e-06 GB are free"):
        to_shards(str(photos), tmp_path / "shards")
    assert not list((tmp_path / "shards").glob("*.tar"))


def test_large_images_can_be_reduced(photos, tmp_path, noise):
    noise(300, 200).save(photos / "train/a/wide.jpg")
    noise(200, 90, mode="L").save(photos / "train/b/grey.png")
    to_shards(str(photos), tmp_path / "shards", resize=64)
    data = open_dataset(str(tmp_path / "shards"))
    sizes = Counter(data.train.open(i, "RGB").size for i in range(len(data.train)))
    assert sizes == {(20, 16): 33, (96, 64): 1, (142, 64): 1}
    modes = Counter(data.train.header(i).mode for i in range(len(data.train)))
    assert modes == {"RGB": 34, "L": 1}


def test_a_share_is_held_out_as_training_would(make_folder, tmp_path):
    root = make_folder({"a": 10, "b": 10})
    report = to_shards(str(root), tmp_path / "shards")
    assert (report.num_train, report.num_val) == (16, 4)
    assert "are held out for validation" in report.notes[1]
    before, after = open_dataset(str(root)), open_dataset(str(tmp_path / "shards"))
    assert pixels(after.val) == pixels(before.val)


def test_other_libraries_read_the_shards(photos, tmp_path):
    iterators = pytest.importorskip("webdataset.tariterators")
    to_shards(str(photos), tmp_path / "shards", shard_mb=0.01)
    theirs = []
    for tar in (tmp_path / "shards").glob("train-*.tar"):
        with tar.open("rb") as stream:
            files = iterators.tar_file_expander([{"url": str(tar), "stream": stream}])
            for sample in iterators.group_by_keys(files):
                image = Image.open(io.BytesIO(sample["png"])).convert("RGB")
                theirs.append((int(sample["cls"]), image.tobytes()))
    assert sorted(theirs) == pixels(open_dataset(str(photos)).train)


def test_the_command(photos, tmp_path, capsys, monkeypatch):
    target = tmp_path / "shards"
    command = ["data", str(photos), "--to-shards", str(target), "--shard-size", "0.01", "--json"]
    assert main(command) == 0
    output = capsys.readouterr()
    assert "33 training and 9 validation images of 3 classes" in output.err
    assert json.loads(output.out.splitlines()[-1])["num_val"] == 9
    assert main(["data", str(photos), "--resize", "9"]) == 2
    assert "--resize needs --to-shards" in capsys.readouterr().err


def test_the_index_spares_reading_the_shards(photos, tmp_path, monkeypatch):
    from convnext.data.shards import layout as shard_layout

    to_shards(str(photos), tmp_path / "shards", shard_mb=0.01)
    monkeypatch.setattr(shard_layout, "index_shard", None)
    data = open_dataset(str(tmp_path / "shards"))
    assert len(data.train) == 33
    assert data.train.source(0).endswith("train-000000.tar!000000000.png")


@pytest.mark.parametrize("damage", ["tar", "same size", "idx", "no idx", "json"])
def test_an_index_that_disagrees_with_its_shards_is_not_used(photos, tmp_path, write_tar, damage):
    root = tmp_path / "shards"
    to_shards(str(photos), root, shard_mb=0.01)
    whole = pixels(open_dataset(str(root)).train)
    tar, index = root / "train-000000.tar", root / "train-000000.idx"
    if damage == "tar":
        tar.write_bytes(tar.read_bytes() + bytes(512))
    elif damage == "same size":
        first = read_places(index, num_classes=3)
        content = tar.read_bytes()
        place = int(first.offsets[1]) - 512
        # The first image is gone, and the others moved up.
        tar.write_bytes(content[place:] + bytes(place))
    elif damage == "idx":
        index.write_bytes(index.read_bytes()[:-40])
    elif damage == "no idx":
        index.unlink()
    else:
        (root / "shards.json").write_text("{}")
    data = open_dataset(str(root))
    expected = "every shard was read" if damage == "json" else "out of date, and 1 of"
    assert expected in data.notes[3]
    assert pixels(data.train) == whole or (damage == "same size" and len(data.train) == 32)


def places(**changes):
    values = {
        "offsets": np.array([512, 2048]),
        "sizes": np.array([100, 200]),
        "labels": np.array([0, 1]),
        "names": b"a\0b",
        "num_bytes": 10_240,
    }
    return Places(**(values | changes))


def test_an_index_file_holds_what_was_written(tmp_path):
    path = tmp_path / "x.idx"
    write_places(path, places(sha256="ab" * 32))
    found = read_places(path, num_classes=2, with_names=True)
    assert found.offsets.tolist() == [512, 2048]
    assert found.sizes.tolist() == [100, 200]
    assert found.labels.tolist() == [0, 1]
    assert (found.num_bytes, found.sha256) == (10_240, "ab" * 32)
    assert shard_index.unpack_names(found.names) == ["a", "b"]
    assert shard_index.read_names(path) == b"a\0b"
    write_places(path, places(offsets=np.array([]), sizes=np.array([]), labels=np.array([])))
    assert len(read_places(path, num_classes=0)) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([512, 10_200])}, "outside of the shard"),
        ({"offsets": np.array([-1, 512])}, "outside of the shard"),
        ({"sizes": np.array([2**62, 1])}, "outside of the shard"),
        ({"sizes": np.array([-5, 1])}, "outside of the shard"),
        ({"labels": np.array([0, 2])}, "beyond the 2 classes"),
        ({"labels": np.array([0, -1])}, "beyond the 2 classes"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, changes, message):
    write_places(tmp_path / "x.idx", places(**changes))
    with pytest.raises(ValueError, match=message):
        read_places(tmp_path / "x.idx", num_classes=2)


@pytest.mark.parametrize("content", [b"", b"CNVXIDX1", b"CNVXIDX1" + b"\xff" * 60, b"x" * 100])
def test_what_is_no_index_is_refused_without_much_memory(tmp_path, content):
    (tmp_path / "x.idx").write_bytes(content)
    with pytest.raises(ValueError, match=r"is not the index|cut off or damaged"):
        read_places(tmp_path / "x.idx", num_classes=2)


def test_a_test_split_is_written_and_read(make_folder, tmp_path):
    root = make_folder({f"{part}/{c}": 3 for part in ("train", "val", "test") for c in "ab"})
    report = to_shards(str(root), tmp_path / "shards")
    assert (report.num_train, report.num_val, report.num_test) == (6, 6, 6)
    for data in (open_dataset(str(root)), open_dataset(str(tmp_path / "shards"))):
        assert (len(data.train), len(data.val), len(data.test)) == (6, 6, 6)
        assert "test is kept apart" in data.notes[1]
    for index in range(6):
        assert "test" in data.test.source(index).replace(str(tmp_path), "")
        assert data.test.open(index, "RGB").size == (20, 16)


def test_a_test_split_in_shards_is_not_validation(make_folder, tmp_path):
    root = make_folder({f"{part}/{c}": 5 for part in ("train", "val") for c in "ab"})
    shards = tmp_path / "shards"
    to_shards(str(root), shards)
    tar = next(shards.glob("val-*.tar"))
    tar.rename(shards / "test-000000.tar")
    tar.with_suffix(".idx").unlink()
    for name in ("shards.json", ".plan.json"):
        (shards / name).unlink(missing_ok=True)
    data = open_dataset(str(shards))
    assert (len(data.train), len(data.val), len(data.test)) == (8, 2, 10)
    assert not any("/test-000" in data.val.source(i) for i in range(2))
    assert any("shards for a test are not used for validation" in note for note in data.notes)
    assert "are held out for validation" in data.notes[1]


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_class_names_that_are_not_utf8_are_carried(photos, tmp_path):
    root = photos
    for part in ("train", "val"):
        (root / part / "b").rename(root / part / os.fsdecode(b"caf\xe9"))
    to_shards(str(root), tmp_path / "shards")
    for data in (open_dataset(str(root)), open_dataset(str(tmp_path / "shards"))):
        assert "caf\udce9" in data.classes
