"""Files: accepted and refused ones; no code in a file ever runs."""

from __future__ import annotations

import argparse
import json
import os
import resource
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from convnext.cli import main
from convnext.tasks.factory import create_model
from convnext.weights import export_weights, load_weights
from convnext.weights.files import read_file, save_tensors

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def same(tensors: dict[str, Tensor], wanted: dict[str, Tensor] = TENSORS) -> bool:
    return tensors.keys() == wanted.keys() and all(
        torch.equal(tensors[name], wanted[name]) for name in wanted
    )


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let no file grow beyond 10 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_a_full_disk_is_one_line(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read = create_model("convnext_atto", num_classes=3).state_dict(), {"format": "pt"}
    monkeypatch.setattr("convnext.tasks.exporting.read_source", lambda source: read)
    target = tmp_path / f"b.{ending}"
    target.write_text("old")
    assert main(["convert", "a.safetensors", str(target), "--to", "timm"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "File too large" in line
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    assert target.read_text() == "old"


@pytest.mark.parametrize("padding", range(0, 256, 8))
def test_the_length_of_a_header_is_not_taken_for_a_pickle(tmp_path: Path, padding: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file(TENSORS, path, metadata={"padding": "x" * padding})
    assert read_file(path)[1] == {"padding": "x" * padding}


def test_damage_is_found_by_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {"classes": "cat dog"})
    tensors, metadata = read_file(path)
    assert same(tensors)
    assert metadata["classes"] == "cat dog"
    whole = path.read_bytes()
    for position in (len(whole) - 1, whole.index(b"cat") + 1):
        broken = bytearray(whole)
        broken[position] ^= 1
        path.write_bytes(broken)
        with pytest.raises(ValueError, match="do not have the hash"):
            read_file(path)


def test_safetensors_with_metadata(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"  # The content decides, not the name.
    save_file(TENSORS, path, metadata={"format": "pt", "epoch": "3"})
    tensors, metadata = read_file(path)
    assert same(tensors)
    assert metadata == {"format": "pt", "epoch": "3"}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("key", [None, "model", "state_dict", "module"])
def test_pickles(tmp_path: Path, key: str | None, zipped: bool) -> None:
    path = tmp_path / "a.pth"
    payload = {key: TENSORS, "epoch": 300} if key else OrderedDict(TENSORS)
    torch.save(payload, path, _use_new_zipfile_serialization=zipped)
    tensors, metadata = read_file(path)
    assert same(tensors)
    assert metadata == {}


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "ema_state_dict"])
def test_the_moving_average_is_taken_when_asked_for(tmp_path: Path, key: str) -> None:
    path, average = tmp_path / "a.pth", {"a.weight": torch.full((2, 3), 7.0)}
    torch.save({"model": TENSORS, key: average}, path)
    assert same(read_file(path)[0])
    assert same(read_file(path, ema=True)[0], average)
    torch.save({key: average}, path)
    assert same(read_file(path)[0], average)
    torch.save({"model": TENSORS}, path)
    with pytest.raises(ValueError, match=r"a\.pth has no moving average .*; it holds model"):
        read_file(path, ema=True)


@pytest.mark.parametrize("key", ["model", "state_dict", "ema"])
def test_a_dictionary_that_holds_itself_is_no_state_dict(key: str, tmp_path: Path) -> None:
    payload: dict[str, object] = {}
    payload[key] = payload
    torch.save(payload, tmp_path / "loop.pth")
    with pytest.raises(ValueError, match=r"loop\.pth .* is truncated, damaged or not a torch"):
        read_file(tmp_path / "loop.pth")


@pytest.mark.parametrize("kind", ["several disks", "no text", "another version"])
def test_an_archive_with_a_bad_directory_is_damaged(kind: str, tmp_path: Path) -> None:
    torch.save({"head.fc.weight": torch.ones(3, 8)}, path := tmp_path / "x.pth")
    content = bytearray(path.read_bytes())
    directory = content.index(b"PK\x01\x02")
    if kind == "several disks":
        content[content.rindex(b"PK\x06\x07") + 16] = 2
    elif kind == "no text":
        content[directory + 9] |= 8  # Names are UTF-8.
        content[directory + 48] = 0xFF
    else:
        content[directory + 6] = 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.pth .* is truncated, damaged or not a torch"):
        read_file(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_the_authors_training_checkpoint(
    tmp_path: Path, zipped: bool, randomize: Callable[[nn.Module], nn.Module]
) -> None:
    model = randomize(create_model("convnext_atto"))
    official = export_weights(model, "official")
    path = tmp_path / "checkpoint-best.pth"
    payload = {
        "model": official,
        "model_ema": {name: tensor + 1 for name, tensor in official.items()},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 4e-3}]},
        "scaler": {"scale": 65536.0},
        "epoch": 299,
        "args": argparse.Namespace(model="convnext_atto", lr=np.float64(4e-3), layers=[1, 2]),
    }
    torch.save(payload, path, _use_new_zipfile_serialization=zipped)
    fresh = create_model("convnext_atto")
    assert load_weights(fresh, path).matched == 1.0
    assert torch.equal(fresh.head.fc.bias, model.head.fc.bias)
    load_weights(fresh, path, ema=True)
    assert torch.equal(fresh.head.fc.bias, model.head.fc.bias + 1)


def test_the_log_in_a_file_of_openmmlab_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HistoryBuffer:
        """Pickled like mmengine's: with arrays, and with its own methods."""

        def __init__(self) -> None:
            self._log_history = np.arange(4.0)
            self._count_history = np.ones(4, dtype=np.int64)

        def mean(self) -> float:
            return float(self._log_history.mean())

        def __getstate__(self) -> dict[str, object]:
            return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}

        def __setstate__(self, state: dict[str, object]) -> None:
            (tmp_path / "ran").touch()

    class ConfigDict(dict):  # type: ignore[type-arg]
        pass

    modules = {
        name: types.ModuleType(name)
        for package in ("logging.history_buffer", "config.config")
        for name in ("mmengine", f"mmengine.{package.split('.')[0]}", f"mmengine.{package}")
    }
    for name, kind in (
        ("mmengine.logging.history_buffer", HistoryBuffer),
        ("mmengine.config.config", ConfigDict),
    ):
        kind.__module__, kind.__qualname__ = name, kind.__name__
        setattr(modules[name], kind.__name__, kind)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    HistoryBuffer.mean.__module__ = "mmengine.logging.history_buffer"
    path = tmp_path / "epoch_300.pth"
    payload = {
        "meta": {"epoch": 300, "seed": np.int64(1), "cfg": ConfigDict(lr=0.1), "CLASSES": ("a",)},
        "message_hub": {"log_scalars": OrderedDict(loss=HistoryBuffer())},
        "state_dict": OrderedDict(TENSORS),
    }
    torch.save(payload, path)
    for name in modules:
        monkeypatch.delitem(sys.modules, name)
    assert same(read_file(path)[0])
    assert not (tmp_path / "ran").exists()


class Malicious:
    """Creates a file when it is unpickled normally."""

    def __init__(self, marker: Path, call: Callable[[str], object]) -> None:
        self.marker, self.call = marker, call

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return self.call, (f"touch {self.marker}" if self.call is os.system else str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (os.system, "system"),
        (os.mkdir, "mkdir"),
        (eval, "eval"),
        (torch.hub.load_state_dict_from_url, r"torch\.hub\.load_state_dict_from_url"),
    ],
)
def test_code_in_a_pickle_is_named_and_not_run(
    tmp_path: Path, call: Callable[[str], object], name: str, zipped: bool, protocol: int
) -> None:
    marker, path = tmp_path / "marker", tmp_path / "convnext_tiny.pth"
    payload = {"model": TENSORS, "args": Malicious(marker, call)}
    torch.save(payload, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=rf"convnext_tiny\.pth was not loaded: .*\b{name}\b.*code"):
        read_file(path)
    assert not marker.exists()
    if call is os.system:  # The file is a real attack.
        torch.load(path, weights_only=False)
        assert marker.exists()


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    cases = {
        "empty.pth": (b"", "is empty"),
        "page.pth": (b"\n <!DOCTYPE html><html>404</html>", "is a web page"),
        "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        "notes.pth": (b"these are my notes", "is not a checkpoint: neither safetensors nor"),
        "photo.bin": (b"\xff\xd8\xff\xe0" + b"0" * 90, "is not a checkpoint"),
        "short.safetensors": (b"\x10\x00", "declares a header of 16 bytes but has 2"),
        "junk.safetensors": (struct.pack("<Q", 4) + b"{{{{", "damaged safetensors header"),
        "list.safetensors": (struct.pack("<Q", 2) + b"[]", "damaged safetensors header"),
        "null.safetensors": (
            struct.pack("<Q", 22) + b'{"__metadata__": null}',
            "damaged safetensors header",
        ),
        "word.safetensors": (
            struct.pack("<Q", 32) + b'{"a": {"data_offsets": [0,"x"]}}',
            "damaged safetensors header",
        ),
        "archive.pth": (b"PK\x03\x04 and nothing more", "truncated, damaged or not a torch"),
        "pickle.pth": (b"\x80\x02}q\x00.", "truncated, damaged or not a torch"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            read_file(path)
        assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="there is no file"):
        read_file(tmp_path / "absent.pth")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated_files(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"weights.{kind}"
    tensors = {f"layers.{i}.weight": torch.randn(40, 30) for i in range(5)}
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"weights\.\w+ .*(truncated|damaged)"):
        read_file(path)


def header(entries: dict[str, object]) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def test_sizes_in_a_header_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b'{"a":1}')
    with pytest.raises(ValueError, match="declares a header of 4,611,686,018,427,387,904 bytes"):
        read_file(path)
    huge = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}
    path.write_bytes(header(huge) + b"0" * 64)
    with pytest.raises(
        ValueError, match="declares 4,398,046,511,104 bytes of tensors but holds 64"
    ):
        read_file(path)
    wrong = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 64]}}
    path.write_bytes(header(wrong) + b"0" * 64)
    with pytest.raises(ValueError, match="is not a valid safetensors file"):
        read_file(path)


def test_an_archive_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(ValueError, match=r"declares 10,000,0.* bytes but holds"):
        read_file(path)


def test_a_tensor_that_is_larger_than_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a.weight": torch.ones(1).expand(10**12)}, path)
    with pytest.raises(ValueError, match=r"a\.weight declares more numbers than there are"):
        read_file(path)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, 3, dtype=torch.int8), r"a\.weight is torch\.int8, but weights are floating"),
        (torch.tensor([1.0, float("nan")]), r"a\.weight contains NaN or infinity"),
        (torch.tensor([1.0, float("inf")]).half(), r"a\.weight contains NaN or infinity"),
        (torch.ones(2, 2).to_sparse(), r"a\.weight is not a plain dense tensor"),
        (torch.ones(2, device="meta"), r"a\.weight is not a plain dense tensor"),
    ],
)
def test_weights_that_no_network_can_use(tmp_path: Path, tensor: Tensor, message: str) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a.weight": tensor}, path)
    with pytest.raises(ValueError, match=message):
        read_file(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_narrow_floating_point_numbers_are_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a.weight": torch.ones(3).to(dtype), "a.bias": torch.ones(0)}, path)
    assert read_file(path)[0]["a.weight"].dtype == dtype


@pytest.mark.parametrize("payload", [[1, 2], {"epoch": 3}, torch.ones(2), {}])
def test_pickles_without_a_state_dict(tmp_path: Path, payload: object) -> None:
    path = tmp_path / "a.pth"
    torch.save(payload, path)
    with pytest.raises(ValueError, match=r"a\.pth holds no state dict but"):
        read_file(path)


def test_equal_tensors_and_metadata_give_equal_bytes(tmp_path: Path) -> None:
    metadata = {name: f'"{name}" \u00e4\n\x7f' for name in ("b", "a", "d", "c", "e")}
    for number in range(4):
        save_tensors(tmp_path / str(number), TENSORS, dict(reversed(metadata.items())))
    written = {(tmp_path / str(number)).read_bytes() for number in range(4)}
    assert len(written) == 1
    assert same(read_file(tmp_path / "0")[0])
