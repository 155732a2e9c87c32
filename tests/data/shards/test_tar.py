"""WebDataset shards: complete, truncated, and with false headers."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter

import pytest
import torch

from convnext.data.images import BadImage
from convnext.data.shards.index import index_shard
from convnext.data.tensors import to_pixels
from convnext.tasks.classification.data import facts, open_dataset


@pytest.fixture
def png(noise):
    def make(seed):
        buffer = io.BytesIO()
        noise(12, 10, seed=seed).save(buffer, "PNG")
        return buffer.getvalue()

    return make


def write_tar(path, files, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples_of(png, labels, first=0):
    files = []
    for i, label in enumerate(labels, start=first):
        files += [(f"{i:06d}.png", png(i)), (f"{i:06d}.cls", str(label).encode())]
    return files


def test_shards_are_read_at_random(tmp_path, png, noise):
    write_tar(tmp_path / "train-000000.tar", samples_of(png, [0, 1, 1]))
    write_tar(tmp_path / "train-000001.tar", samples_of(png, [0], first=3))
    write_tar(tmp_path / "val-000000.tar", samples_of(png, [1, 0], first=4))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    data = open_dataset(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert list(data.train.labels) == [0, 1, 1, 0]
    assert list(data.val.labels) == [1, 0]
    assert data.notes[3:] == ()
    for index in (3, 0, 2):
        assert data.train.open(index, "RGB").tobytes() == noise(12, 10, seed=index).tobytes()
        whole = (0.0, 0.0, 12.0, 10.0)
        crop = data.train.open_crop(index, "RGB", draw=lambda *size: (0.0, 0.0, *size), size=8)
        assert torch.equal(crop[0], to_pixels(noise(12, 10, seed=index)))
        assert crop[1] == whole
    assert data.train.source(3) == f"{tmp_path / 'train-000001.tar'}!000003.png"
    assert data.train.num_bytes(0) == len(png(0))
    assert facts(data).image_width == 12


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar_and_long_names(tmp_path, png, format):
    deep = "/".join(["folder" * 3] * (4 if format == tarfile.USTAR_FORMAT else 20))
    files = [(f"{deep}/a.png", png(0)), (f"{deep}/a.cls", b"0")]
    index = index_shard(write_tar(tmp_path / "x.tar", files, format=format))
    assert [m.name for m in index.images] == [f"{deep}/a.png"]
    assert index.images[0].read() == png(0)
    assert index.faults == []


def test_labels_in_json_and_by_name(tmp_path, png):
    files = [
        ("a.jpg", png(0)),
        ("a.json", json.dumps({"label": "dog", "width": 3}).encode()),
        ("b.json", b'{"label": "cat"}'),
        ("b.png", png(1)),
    ]
    write_tar(tmp_path / "train-0.tar", files)
    write_tar(tmp_path / "val-0.tar", files)
    data = open_dataset(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert list(data.train.labels) == [1, 0]


def test_without_names_the_classes_are_numbered(tmp_path, png):
    write_tar(tmp_path / "imagenet-train-0000.tar", samples_of(png, [0, 1, 2]))
    write_tar(tmp_path / "imagenet-validation-0000.tar", samples_of(png, [0, 1, 2]))
    data = open_dataset(str(tmp_path))
    assert data.classes == ("0", "1", "2")
    assert "the 3 classes are numbered" in data.notes[3]
    assert len(data.val) == 3


def test_shards_without_a_split_are_held_out_from(tmp_path, png):
    write_tar(tmp_path / "pictures.tar", samples_of(png, [0, 1] * 10))
    data = open_dataset(str(tmp_path))
    assert Counter(data.val.labels) == {0: 2, 1: 2}


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_of_a_tar_that_is_cut_off_what_is_whole_is_used(tmp_path, png, share):
    path = write_tar(tmp_path / "train-0.tar", samples_of(png, [0, 1] * 10))
    whole = index_shard(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    index = index_shard(path)
    assert 0 < len(index.images) < 20
    assert index.images == whole.images[: len(index.images)]
    assert index.faults[0].startswith("train-0.tar: ")


def test_a_tar_cut_between_two_members_is_noticed_by_its_missing_end(tmp_path, png):
    path = write_tar(tmp_path / "train-0.tar", samples_of(png, [0, 1]))
    last = index_shard(path).images[-1]
    path.write_bytes(path.read_bytes()[: last.offset - 512])
    index = index_shard(path)
    assert len(index.images) == 1
    assert "has no end mark" in index.faults[0]


@pytest.mark.parametrize("size", [10**6, 8**11 - 1])
def test_a_header_that_lies_about_its_size_is_not_believed(tmp_path, png, size):
    files = samples_of(png, [0, 1, 0])
    path = write_tar(tmp_path / "train-0.tar", files)
    content = bytearray(path.read_bytes())
    place = index_shard(path).images[1].offset - 512
    header = tarfile.TarInfo(files[2][0])
    header.size = size
    content[place : place + 512] = header.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(content)
    index = index_shard(path)
    assert len(index.images) == 1
    assert f"declares {size:,} bytes" in index.faults[0]


def test_a_long_name_that_lies_about_its_length_takes_no_memory(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type = tarfile.GNUTYPE_LONGNAME
    header.size = 8 * 10**9
    path = tmp_path / "train-0.tar"
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert index_shard(path).images == []


def test_damage_in_the_middle_is_reported(tmp_path, png):
    path = write_tar(tmp_path / "train-0.tar", samples_of(png, [0, 1, 0]))
    content = bytearray(path.read_bytes())
    place = index_shard(path).images[1].offset - 512
    content[place : place + 512] = bytes(range(256)) * 2
    path.write_bytes(content)
    index = index_shard(path)
    assert len(index.images) == 1
    assert "damaged there" in index.faults[0]


@pytest.mark.parametrize("content", [b"", b"not a tar" * 300, bytes(100)])
def test_what_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "train-0.tar").write_bytes(content)
    with pytest.raises(ValueError, match="hold no sample of an image"):
        open_dataset(str(tmp_path))


def test_images_without_a_label_are_left_out_and_counted(tmp_path, png):
    files = [*samples_of(png, [0, 1]), ("x.png", png(7)), ("y.png", png(8)), ("y.json", b"{")]
    write_tar(tmp_path / "train-0.tar", files)
    write_tar(tmp_path / "val-0.tar", samples_of(png, [0, 1]))
    data = open_dataset(str(tmp_path))
    assert len(data.train) == 2
    assert "without a readable .cls or .json, left out: 2 (such as x.png)" in data.faults[0]


def test_labels_that_fit_no_class_are_refused(tmp_path, png):
    write_tar(tmp_path / "train-0.tar", samples_of(png, [0, 2]))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"000001\.png has the label 2, but .* lists 2 classes"):
        open_dataset(str(tmp_path))
    (tmp_path / "classes.txt").unlink()
    write_tar(tmp_path / "train-0.tar", samples_of(png, [0, 999_999_999]))
    with pytest.raises(ValueError, match="label 999,999,999"):
        open_dataset(str(tmp_path))


def test_a_broken_image_inside_a_shard_is_named(tmp_path, png):
    write_tar(tmp_path / "train-0.tar", [("a.png", png(0)[:60]), ("a.cls", b"0")])
    write_tar(tmp_path / "val-0.tar", samples_of(png, [0, 1]))
    data = open_dataset(str(tmp_path), strict=False)
    with pytest.raises(BadImage, match=r"train-0\.tar!a\.png: "):
        data.train.open(0, "RGB")


def test_links_and_folders_are_no_images(tmp_path, png):
    path = tmp_path / "train-0.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        label = tarfile.TarInfo("a.cls")
        label.size = 1
        tar.addfile(label, io.BytesIO(b"0"))
    assert index_shard(path).images == []


def test_the_real_shards(shared_data):
    data = open_dataset(str(shared_data / "cifar10_subset"))
    assert data.classes[0] == "airplane"
    assert Counter(data.train.labels) == dict.fromkeys(range(10), 800)
    assert Counter(data.val.labels) == dict.fromkeys(range(10), 200)
    assert data.train.open(7999, "RGB").size == (32, 32)
    assert data.notes[3:] == ()
