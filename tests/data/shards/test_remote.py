"""Remote shards give the same images as a folder, each once, whatever the server does."""

from __future__ import annotations

import io
import json
import shutil
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from convnext.data.images import BadImage
from convnext.data.preprocessing import Preprocessing
from convnext.data.samples import BadImages
from convnext.data.sampling import StepBatches
from convnext.data.shards.remote import expand
from convnext.tasks.classification.data import facts, open_dataset
from convnext.tasks.classification.dataset import EvalDataset, TrainDataset, collate
from convnext.tasks.classification.recipe import ClassificationAugment
from convnext.tasks.classification.shards import to_shards

AUGMENT = ClassificationAugment(
    scale=(0.35, 1.0),
    hflip=0.5,
    rand_augment="none",
    color_jitter=0.0,
    mixup=0.0,
    cutmix=0.0,
    erasing=0.0,
)
PREPROCESSING = Preprocessing(image_size=8, crop_pct=1.0, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.fixture
def indexed(make_folder):
    """Shards with an index: 48 training images in about 9 shards, 8 for validation."""
    counts = {"train/cat": 24, "train/dog": 24, "val/cat": 4, "val/dog": 4}
    source = make_folder(counts)
    to_shards(str(source), source.parent / "shards", shard_mb=0.018)
    return source.parent / "shards"


@pytest.fixture
def quiet():
    return Console(file=io.StringIO(), width=1000)


def train_set(data, seed=0):
    return TrainDataset(data.train, augment=AUGMENT, preprocessing=PREPROCESSING, seed=seed)


def epoch(data, *, batch_size=8, rank=0, num_ranks=1, workers=0, start_step=0, num_steps=None):
    """Return the batches of one rank."""
    sampler = StepBatches(
        data.train.labels,
        batch_size,
        seed=0,
        shard_sizes=data.train.shard_sizes,
        rank=rank,
        num_ranks=num_ranks,
        start_step=start_step,
    )
    sampler.num_steps = num_steps or sampler.steps_per_epoch
    dataset = train_set(data)
    return list(DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers))


def indices(batches):
    return [index for batch in batches for index in batch.indices.tolist()]


def test_two_ranks_of_two_workers_see_every_image_once(indexed, serve, loader, quiet):
    server = serve(indexed)
    data = open_dataset(server.url, loader=loader, console=quiet)
    assert len(data.train) == 48
    assert len(data.train.shard_sizes) > 6
    assert sum(server.requests[name] for name in server.requests if name.endswith(".tar")) == 0
    seen = [epoch(data, rank=rank, num_ranks=2, workers=2) for rank in range(2)]
    assert [len(batch.labels) for batches in seen for batch in batches] == [4] * 12
    assert Counter(indices(seen[0]) + indices(seen[1])) == Counter(range(48))
    fetched = {n: count for n, count in server.requests.items() if n.endswith(".tar")}
    assert set(fetched.values()) == {1}
    local = open_dataset(str(indexed))
    for batch in seen[0]:
        assert [local.train.labels[i] for i in batch.indices.tolist()] == batch.labels.tolist()
        assert batch.bad == ()


def test_remote_images_are_those_of_the_folder(indexed, serve, loader, quiet):
    remote = open_dataset(serve(indexed).url, loader=loader, console=quiet)
    local = open_dataset(str(indexed))
    assert remote.classes == local.classes == ("cat", "dog")
    assert local.train.shard_sizes is None
    for part in ("train", "val"):
        ours, theirs = getattr(remote, part), getattr(local, part)
        assert list(ours.labels) == list(theirs.labels)
        for index in range(len(theirs)):
            assert ours.open(index, "RGB").tobytes() == theirs.open(index, "RGB").tobytes()
            assert ours.key(index) == theirs.key(index)
    assert remote.val.source(0).startswith("http://127.0.0.1")
    assert "val-000000.tar!" in remote.val.source(0)


def test_it_is_said_before_anything_is_fetched(indexed, serve, loader, quiet):
    data = open_dataset(serve(indexed).url, loader=loader, console=quiet)
    assert f"kept in {loader.shard_cache}" in quiet.file.getvalue()
    assert f"kept in {loader.shard_cache}" in data.notes[3]


def test_a_resumed_epoch_shows_the_rest(indexed, serve, loader, quiet):
    url = serve(indexed).url
    whole = epoch(open_dataset(url, loader=loader, console=quiet), num_steps=9)
    again = open_dataset(url, loader=replace(loader, shard_cache_gb=1e-9), console=quiet)
    rest = epoch(again, start_step=3, num_steps=9, workers=1)
    assert len(rest) == 6
    for one, other in zip(whole[3:], rest, strict=True):
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.indices, other.indices)


def test_a_second_run_fetches_only_the_list(indexed, serve, loader, quiet):
    server = serve(indexed)
    for _ in range(2):
        epoch(open_dataset(server.url, loader=loader, console=quiet))
    assert server.requests.pop("shards.json") == 2
    assert set(server.requests.values()) == {1}


def test_what_looks_at_the_data_fetches_two_shards_at_most(indexed, serve, loader, quiet):
    server = serve(indexed)
    data = open_dataset(server.url, loader=loader, console=quiet)
    known = facts(data)
    assert (known.num_train, known.class_counts) == (48, (24, 24))
    assert (known.image_width, known.image_height) == (20, 16)
    assert sum(name.endswith(".tar") for name in server.requests) <= 2
    assert "are remote" in train_set(data).fill_cache()
    assert "are remote" in EvalDataset(data.val, PREPROCESSING).fill_cache()


@pytest.mark.parametrize("fault", [500, 30.0, 404])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_cannot_be_had_is_replaced_and_counted(
    indexed, serve, loader, quiet, impatient, fault, workers
):
    server = serve(indexed)
    server.faults["train-000002.tar"] = [fault]
    loader = replace(loader, timeout=30.0, retries=1)
    if isinstance(fault, float):
        impatient("train-000002.tar", 0.5)
    data = open_dataset(server.url, loader=loader, console=quiet)
    lost = data.train.shard_sizes[2]
    first = sum(data.train.shard_sizes[:2])
    for _ in range(2):
        batches = epoch(data, workers=workers)
        assert [len(batch.labels) for batch in batches] == [8] * 6
        records = [record for batch in batches for record in batch.bad]
        assert {index for index, _ in records} == set(range(first, first + lost))
        assert all("the shard cannot be read" in reason for _, reason in records)
    # Images of the next shard replace them, with their own labels.
    extra = Counter(indices(batches)) - Counter(range(48))
    assert set(extra) <= set(range(first + lost, first + lost + data.train.shard_sizes[3]))
    assert max(extra.values()) <= -(-lost // data.train.shard_sizes[3])
    for batch in batches:
        assert [data.train.labels[i] for i in batch.indices.tolist()] == batch.labels.tolist()
    expected = 1 if fault == 404 else 2
    # A request is counted when the server reads it, which a client that gave up does not wait for.
    for _ in range(100):
        if server.requests["train-000002.tar"] >= expected:
            break
        time.sleep(0.1)
    assert server.requests["train-000002.tar"] == expected
    assert len(BadImages(data.train, max_share=0.5).update(records)) == lost
    with pytest.raises(ValueError, match="cannot be read, more than"):
        BadImages(data.train, max_share=0.01).update(records)


def test_of_a_shard_that_ends_early_what_is_whole_is_used(indexed, serve, loader, quiet, capfd):
    server = serve(indexed)
    data = open_dataset(server.url, loader=loader, console=quiet)
    path = indexed / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:5000])
    start, size = data.train.shard_sizes[0], data.train.shard_sizes[1]
    batches = epoch(data, workers=2)
    bad = {index: reason for batch in batches for index, reason in batch.bad}
    assert 0 < len(bad) < size
    assert set(bad) == set(range(start + size - len(bad), start + size))
    assert all("the shard ends after" in reason for reason in bad.values())
    assert set(range(start, start + size - len(bad))) <= set(indices(batches))
    assert capfd.readouterr().err.count("ends after 5,000 of") == 1


def test_a_shard_cut_to_a_tenth_does_not_end_the_run(make_folder, serve, loader, quiet, tmp_path):
    source = make_folder({"train/cat": 50, "train/dog": 50, "val/cat": 1, "val/dog": 1})
    to_shards(str(source), tmp_path / "cut", console=quiet)
    server = serve(tmp_path / "cut")
    data = open_dataset(server.url, loader=loader, console=quiet)
    path = max((tmp_path / "cut").glob("train-*.tar"), key=lambda tar: tar.stat().st_size)
    path.write_bytes(path.read_bytes()[: int(data.train._offsets[10])])
    data_set = train_set(data)
    shown = [data_set[(0, i)] for i in range(100)]
    assert [len(item.bad) for item in shown] == [0] * 10 + [1] * 90
    assert {item.position for item in shown} == set(range(10))
    assert not data_set._known_bad  # Later the server may have the complete shard.


def test_another_shard_under_the_old_name_is_not_used(indexed, serve, loader, quiet):
    server = serve(indexed)
    data = open_dataset(server.url, loader=replace(loader, retries=0), console=quiet)
    first = indexed / "train-000000.tar"
    first.write_bytes(b"x" * (first.stat().st_size - 1))
    with pytest.raises(BadImage, match="not the one that was indexed"):
        data.train.open(0, "RGB")


def test_an_index_that_cannot_be_had_ends_the_start(indexed, serve, loader, quiet):
    server = serve(indexed)
    server.faults["train-000001.idx"] = [500]
    with pytest.raises(ValueError, match=r"train-000001.idx cannot be fetched: .*Try again"):
        open_dataset(server.url, loader=replace(loader, retries=0), console=quiet)
    server.faults.clear()
    assert len(open_dataset(server.url, loader=loader, console=quiet).train) == 48


def test_a_run_starts_though_its_first_shards_are_down(indexed, serve, loader, quiet):
    server = serve(indexed)
    for name in ("train-000000.tar", "train-000001.tar"):
        server.faults[name] = [500]
    data = open_dataset(server.url, loader=replace(loader, retries=0), console=quiet)
    assert facts(data).num_train == 48
    for number in range(2, len(data.train.shards)):
        server.faults[f"train-{number:06d}.tar"] = [500]
    data = open_dataset(
        server.url, loader=replace(loader, retries=0, shard_cache=f"{indexed}-2"), console=quiet
    )
    with pytest.raises(ValueError, match="none of the sampled training images"):
        facts(data)


def test_a_list_of_another_server_cannot_name_local_files(serve, loader, quiet, tmp_path):
    (tmp_path / "list.txt").write_text("file:///etc/train-0.tar\n")
    with pytest.raises(ValueError, match="only shards of its own protocol or https"):
        open_dataset(f"{serve(tmp_path).url}/list.txt", loader=loader, console=quiet)


def test_a_bad_image_is_replaced_by_the_next_of_its_shard(make_shards, tmp_path):
    root = make_shards(sizes=(4, 4))
    data = open_dataset(str(root))
    path, place = root / "train-000000.tar", int(data.train._offsets[1])
    content = bytearray(path.read_bytes())
    content[place : place + 60] = bytes(60)
    path.write_bytes(content)
    item = train_set(open_dataset(str(root)))[(0, 1)]
    assert (item.position, item.label) == (2, 0)
    assert [index for index, _ in item.bad] == [1]


def test_a_server_that_is_gone_ends_the_run_with_a_reason(indexed, serve, loader, quiet):
    server = serve(indexed)
    data = open_dataset(server.url, loader=replace(loader, retries=0), console=quiet)
    for path in indexed.glob("train-*.tar"):
        server.faults[path.name] = [500]
    with pytest.raises(ValueError, match="8 consecutive images cannot be read, such as http"):
        train_set(data)[(0, 0)]


def test_evaluation_reads_ahead_and_leaves_out_what_it_cannot_have(indexed, serve, loader, quiet):
    server = serve(indexed)
    server.faults["val-000000.tar"] = [500]
    data = open_dataset(server.url, loader=replace(loader, retries=0), console=quiet)
    dataset = EvalDataset(data.val, PREPROCESSING)
    batches = list(DataLoader(dataset, batch_size=3, collate_fn=collate, num_workers=2))
    lost = data.val.shard_sizes[0]
    assert indices(batches) == list(range(lost, 8))
    assert sorted(index for batch in batches for index, _ in batch.bad) == list(range(lost))


def test_a_pattern_of_shards_is_indexed_once(make_shards, serve, loader, quiet):
    root = make_shards()
    server = serve(root)
    pattern = f"{server.url}/{{train-{{000000..000007}},val-{{000000..000001}}}}.tar"
    local = open_dataset(str(root))
    for _ in range(2):
        data = open_dataset(pattern, loader=loader, console=quiet)
        assert data.classes == ("cat", "dog")
        assert list(data.train.labels) == list(local.train.labels)
        assert data.train.shard_sizes == (7, 5, 9, 6, 8, 7, 6, 8)
        assert list(data.val.labels) == list(local.val.labels)
        assert set(indices(epoch(data))) <= set(range(56))
    tars = [count for name, count in server.requests.items() if name.endswith(".tar")]
    assert tars == [1] * 10
    assert "10 shards are fetched once" in quiet.file.getvalue()
    assert any("from an earlier run" in note for note in data.notes)


@pytest.mark.parametrize("where", ["remote", "local"])
def test_a_list_of_shards(make_shards, serve, loader, quiet, tmp_path, where):
    root = make_shards(sizes=(3, 3))
    server = serve(root)
    names = ["# a comment", "train-000000.tar", "train-000001.tar", "val-000001.tar"]
    if where == "local":
        names = [f"{server.url}/{name}" for name in names[1:]]
    path = (root if where == "remote" else tmp_path) / "list.txt"
    path.write_text("\n".join(names))
    address = f"{server.url}/list.txt" if where == "remote" else str(path)
    data = open_dataset(address, loader=loader, console=quiet)
    assert (len(data.train), len(data.val)) == (6, 4)


def test_without_validation_shards_a_share_is_held_out(make_shards, serve, loader, quiet):
    root = make_shards(sizes=(10, 10), val_sizes=())
    pattern = f"{serve(root).url}/train-{{000000..000001}}.tar"
    data = open_dataset(pattern, loader=loader, console=quiet)
    local = open_dataset(str(root))
    assert list(data.val.labels) == list(local.val.labels)
    assert [data.val.key(i) for i in range(4)] == [local.val.key(i) for i in range(4)]
    assert sum(data.train.shard_sizes) == 16


def test_what_is_not_there_is_explained(make_shards, serve, loader, quiet):
    server = serve(make_shards())
    with pytest.raises(ValueError, match=r"no http.*/shards.json: write .*--to-shards DIR"):
        open_dataset(server.url, loader=loader, console=quiet)
    pattern = f"{server.url}/train-{{000008..000009}}.tar"
    with pytest.raises(
        ValueError, match=r"00000[89]\.tar cannot be fetched: there is no such file"
    ):
        open_dataset(pattern, loader=loader, console=quiet)
    with pytest.raises(ValueError, match="nonsense:// is not known to fsspec"):
        open_dataset("nonsense://x/y", loader=loader, console=quiet)
    server.faults["shards.json"] = [500]
    with pytest.raises(ValueError, match=r"shards.json cannot be fetched: .* 500 .* 4 times"):
        open_dataset(server.url, loader=loader, console=quiet)


def test_an_index_is_not_trusted(indexed, serve, loader, quiet):
    path = indexed / "shards.json"
    server = serve(indexed)
    listing = json.loads(path.read_text())

    def refusal(**changes):
        entry = listing["parts"]["train"][0]
        parts = {"train": [entry | changes, *listing["parts"]["train"][1:]]}
        path.write_text(json.dumps(listing | {"parts": parts | {"val": listing["parts"]["val"]}}))
        try:
            data = open_dataset(server.url, loader=loader, console=quiet)
        except ValueError as error:
            return str(error)
        return data.faults[0]

    assert "lies outside of the folder" in refusal(name="../../etc/passwd")
    assert "only shards of its own protocol" in refusal(name="file:///etc/passwd.tar")
    assert "its .idx belongs to another shard" in refusal(num_images=3)
    assert "'7' must be of type int" in refusal(num_bytes="7")
    assert "an impossible size" in refusal(num_images=-1)
    assert "an impossible size" in refusal(num_bytes=2**63)
    assert "not an index of shards" in refusal(sha256="zz")
    path.write_text("[1")
    with pytest.raises(ValueError, match="is not an index of shards"):
        open_dataset(server.url, loader=loader, console=quiet)


def test_other_protocols(indexed, loader, quiet):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(f"{indexed}/", "/remote-test/", recursive=True)
    try:
        for url in ("memory://remote-test", f"file://{indexed}"):
            data = open_dataset(url, loader=loader, console=quiet)
            assert sorted(indices(epoch(data))) == list(range(48))
    finally:
        memory.rm("/remote-test", recursive=True)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{a,b-{0..1}}.x{1,2}", ["a.x1", "a.x2", "b-0.x1", "b-0.x2", "b-1.x1", "b-1.x2"]),
    ],
)
def test_patterns(pattern, expected):
    assert list(expand(pattern)) == expected


@pytest.mark.parametrize("pattern", ["a{0..1", "a{5..1}", "a{0..99999999}"])
def test_patterns_that_make_no_sense(pattern):
    with pytest.raises(ValueError, match=r"brace|range"):
        list(expand(pattern))


def test_a_shard_that_vanishes_locally_is_a_bad_image(make_shards):
    root = make_shards()
    data = open_dataset(str(root))
    shutil.move(root / "train-000000.tar", root / "gone")
    with pytest.raises(BadImage, match="the shard cannot be read"):
        data.train.open(0, "RGB")


def test_millions_of_images_take_twenty_odd_bytes_each(indexed, serve, loader, quiet):
    samples = open_dataset(serve(indexed).url, loader=loader, console=quiet).train
    arrays = (samples._offsets, samples._sizes, samples._numbers, np.asarray(samples.labels))
    assert sum(array.nbytes for array in arrays) == 24 * 48
    assert all(shard.places.names == b"" for shard in samples.shards)
