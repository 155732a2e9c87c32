"""Copies of remote files are complete, fetched once per machine, and stay within their limit."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import time

import pytest
from shard_server import patience

from convnext.data.shards import store as store_module
from convnext.data.shards.store import (
    Missing,
    Remote,
    Store,
    Unavailable,
    open_filesystem,
)

CONTENT = bytes(range(256)) * 400


@pytest.fixture
def served(tmp_path, serve):
    folder = tmp_path / "served"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(name.encode() + CONTENT)
    return serve(folder)


@pytest.fixture
def make_store(tmp_path):
    def make(**options):
        return Store(tmp_path / "cache", **({"retries": 3, "timeout": 5.0} | options))

    return make


def remote(server, name="a", **options):
    content = name.encode() + CONTENT
    known = {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return Remote(url=f"{server.url}/{name}", **(known | options))


def test_a_file_is_fetched_once(served, make_store):
    for store in (make_store(), make_store()):
        for _ in range(2):
            assert store.get(remote(served)).read_bytes() == b"a" + CONTENT
    assert served.requests["a"] == 1


@pytest.mark.parametrize("faults", [[500, 500, None], [503, 429, None], [9.0, None]])
def test_what_fails_for_a_while_is_tried_again(served, make_store, faults):
    served.faults["a"] = list(faults)
    assert (
        make_store(timeout=patience(faults[0])).get(remote(served)).read_bytes() == b"a" + CONTENT
    )
    assert served.requests["a"] == len(faults)


@pytest.mark.parametrize(
    ("fault", "reason", "tries"),
    [(500, "answers 500", 4), (9.0, "time", 4), (404, "no such file", 1), (403, "refuses it", 1)],
)
def test_what_fails_for_good_is_remembered_by_all_processes(
    served, make_store, capsys, fault, reason, tries
):
    served.faults["a"] = [fault]
    for store in (make_store(timeout=patience(fault)), make_store()):
        for _ in range(2):
            with pytest.raises(Unavailable, match=reason):
                store.get(remote(served))
    assert served.requests["a"] == tries
    assert capsys.readouterr().err.count("is left out for now") == 1


def test_a_failure_is_forgotten_by_a_new_run(served, make_store):
    store = make_store(retries=0)
    served.faults["a"] = [500, None]
    with pytest.raises(Unavailable):
        store.get(remote(served))
    store.forget_failures()
    assert store.get(remote(served)).read_bytes() == b"a" + CONTENT


def test_a_failure_is_forgotten_after_some_minutes(served, make_store, monkeypatch):
    monkeypatch.setattr(store_module, "FORGET_AFTER", 0.2)
    store = make_store(retries=0)
    served.faults["a"] = [500, None]
    with pytest.raises(Unavailable):
        store.get(remote(served))
    time.sleep(0.25)
    assert store.get(remote(served)).read_bytes() == b"a" + CONTENT


def test_what_does_not_exist_is_told_from_what_fails(served, make_store):
    with pytest.raises(Missing):
        make_store().get(remote(served, "d"))


def test_a_wrong_content_is_not_accepted(served, make_store):
    with pytest.raises(Unavailable, match="SHA-256 is not the one"):
        make_store(retries=1).get(remote(served, sha256="0" * 64))
    assert served.requests["a"] == 2
    with pytest.raises(Unavailable, match="more than 1,000 bytes, the limit"):
        make_store(retries=0).get(remote(served, "b", num_bytes=1000))


def test_a_file_that_ends_early_is_taken_as_it_is_and_said_once(served, make_store, capsys):
    file = remote(served, num_bytes=200_000)
    for store in (make_store(), make_store()):
        assert store.get(file).read_bytes() == b"a" + CONTENT
    assert served.requests["a"] == 2
    said = capsys.readouterr().err
    assert said.count("ends after 102,401 of 200,000 bytes") == 1
    make_store().forget_failures()
    make_store().get(file)
    assert served.requests["a"] == 4


def test_a_copy_that_was_cut_is_fetched_again(served, make_store):
    path = make_store().get(remote(served))
    path.write_bytes(CONTENT[:10])
    assert make_store().get(remote(served)).read_bytes() == b"a" + CONTENT


def test_a_file_longer_than_its_index_says_is_not_taken(served, make_store, tmp_path):
    with pytest.raises(Unavailable, match="more than 9 bytes"):
        make_store(retries=0).get(remote(served, num_bytes=9, sha256=""))
    assert not list((tmp_path / "cache").rglob(".*.bin.*"))


@pytest.mark.parametrize("declared", [False, True])
def test_a_file_of_unknown_size_stays_within_the_limit(served, make_store, tmp_path, declared):
    served.declares_length = declared
    unknown = [remote(served, name, num_bytes=None, sha256="") for name in "ab"]
    with pytest.raises(Unavailable, match=r"more than 100,000 bytes, .*--loader.shard_cache_gb"):
        make_store(limit_gb=1e-4).get(unknown[0])
    assert served.requests["a"] == 1
    assert not [path for path in (tmp_path / "cache").rglob("*.bin*") if path.is_file()]
    store = make_store(limit_gb=1.5 * len(CONTENT) / 1e9)
    store.forget_failures()
    paths = [store.get(file) for file in unknown]
    assert [path.exists() for path in paths] == [False, True]


def test_an_index_has_a_limit(served, make_store, tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_INDEX_BYTES", 1000)
    with pytest.raises(Unavailable, match="more than 1,000 bytes, the limit of an index"):
        make_store().download(remote(served, num_bytes=None), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_size_beyond_the_room_removes_nothing(served, make_store):
    make_store().get(remote(served, "b"))
    small = make_store(limit_gb=0.0002)
    with pytest.raises(Unavailable, match="has room for"):
        small.get(remote(served, num_bytes=2**62))
    small.get(remote(served, "b"))
    assert served.requests["b"] == 1


def test_a_trickle_is_given_up(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(store_module.time, "monotonic", lambda: clock[0])
    watch = store_module.make_watch(max_bytes=10**9, reason="", patience=1.0)
    for _ in range(3):
        clock[0] += 2.0
        watch.relative_update(10_000)
    clock[0] += 6.0  # A new window began at six seconds.
    with pytest.raises(TimeoutError, match="less than 1,000 bytes a second"):
        watch.relative_update(10)


def test_what_a_killed_process_left_is_removed(served, make_store, tmp_path):
    file = remote(served)
    half = make_store().folder / f".{file.key}.bin.abc"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    make_store().get(file)
    assert not half.exists()


def test_what_was_used_least_recently_makes_room(served, make_store):
    store = make_store(limit_gb=2.5 * len(CONTENT) / 1e9)
    paths = [store.get(remote(served, name)) for name in "ab"]
    os.utime(paths[0], (time.time() - 10,) * 2)
    os.utime(paths[1], (time.time() - 20,) * 2)
    third = store.get(remote(served, "c"))
    assert [path.exists() for path in (*paths, third)] == [True, False, True]
    assert store.get(remote(served, "b")).exists()
    assert served.requests == {"a": 1, "b": 2, "c": 1}


def test_what_a_store_did_not_write_is_neither_removed_nor_counted(served, make_store, tmp_path):
    names = ["pytorch_model.bin", f"{'0' * 32}.bin", f".{'0' * 32}.bin.abc", "jobs.failed"]
    names += ["list.short", f"{'0' * 32}.failed", "sub/weights.bin"]
    store = make_store(limit_gb=0.5 * len(CONTENT) / 1e9)
    others = [tmp_path / "cache" / name for name in names]
    # Files whose names the store never uses stay, even in its own folder.
    others += [store.folder / name for name in ("weights.bin", "jobs.failed", ".a.bin.old")]
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(CONTENT)
        os.utime(path, (time.time() - 1e7,) * 2)
    store.forget_failures()
    for name in "abc":
        store.get(remote(served, name))
    assert [path for path in others if not path.exists()] == []
    copies = [path for path in store.folder.iterdir() if path.suffix == ".bin"]
    assert sorted(path.name for path in copies) == sorted(
        [f"{remote(served, 'c').key}.bin", "weights.bin"]
    )


def test_without_a_limit_half_of_the_free_disk_is_used(make_store):
    assert make_store().limit() > 10**6
    assert make_store(limit_gb=3).limit() == 3 * 10**9


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_two_processes_fetch_a_file_once(served, make_store, method):
    context, store = multiprocessing.get_context(method), make_store()
    store.get(remote(served, "b"))  # Child processes cannot use the connections of this process.
    served.faults["a"] = [9.0, None]
    store.timeout = patience(9.0)
    processes = [context.Process(target=store.get, args=(remote(served),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert served.requests["a"] == 2  # One failed attempt, one successful.


def test_a_store_goes_to_another_process_without_its_connections(served, make_store):
    store = make_store(retries=7)
    store.prefetch([remote(served)])
    other = pickle.loads(pickle.dumps(store))
    assert (other.retries, other.folder) == (7, store.folder)
    assert other._thread is None


def test_files_are_fetched_ahead_in_the_order_of_their_use(served, make_store):
    store = make_store()
    served.faults["b"] = [404]
    store.prefetch([remote(served, name) for name in "abcab"])
    deadline = time.monotonic() + 10
    while served.requests.total() < 3 or store._queued:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert served.requests == {"a": 1, "b": 1, "c": 1}
    store.get(remote(served, "c"))
    assert served.requests["c"] == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [("nonsense://x", "not known to fsspec"), ("s3://x/y", "pip install s3fs")],
)
def test_a_protocol_that_cannot_be_used_is_explained(url, message, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=message):
        open_filesystem(url, timeout=1)
