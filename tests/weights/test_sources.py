"""Sources: paths, folders, tags and hub ids, from a cache on disk and never from the network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convnext.tasks.factory import create_model
from convnext.weights import export_weights, load_weights, read_source
from convnext.weights.sources import download, locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a cache in the layout of the hub's client, and forbid network access."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache: Path, repo_id: str, filename: str, content: Path, revision: str = "main") -> Path:
    """Put a file into a cache: a blob, a snapshot that points to it, a branch that names it."""
    repository = cache / f"models--{repo_id.replace('/', '--')}"
    blob = repository / "blobs" / "e3b0c442"
    pointer = repository / "snapshots" / COMMIT / filename
    for path in (blob, pointer, repository / "refs" / revision):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content.read_bytes())
    pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    (repository / "refs" / revision).write_text(COMMIT)
    return pointer


@pytest.fixture
def atto(tmp_path: Path) -> Path:
    """Write an atto as timm publishes it."""
    torch.manual_seed(1)
    path = tmp_path / "atto.safetensors"
    save_file(export_weights(create_model("convnext_atto"), "timm"), path, {"format": "pt"})
    return path


def test_a_tag_and_a_hub_id_are_found_in_the_cache(cache: Path, atto: Path) -> None:
    pointer = put(cache, "timm/convnext_atto.d2_in1k", "model.safetensors", atto)
    for source in (
        "d2_in1k",
        "timm/convnext_atto.d2_in1k",
        "convnext_atto.d2_in1k",
        str(pointer),
        f"timm/convnext_atto.d2_in1k@{COMMIT}",
        pointer.parent,
        pointer.parents[2],
    ):
        model = create_model("convnext_atto")
        report = load_weights(model, source)
        assert report.layout == "timm"
        assert report.source == str(source)
        assert report.matched == 1.0  # fmt: skip
    model = create_model("convnext_atto", weights="d2_in1k")
    assert torch.equal(model.head.fc.weight, read_source(atto)[0]["head.fc.weight"])


def test_safetensors_come_before_pickles(cache: Path, atto: Path, tmp_path: Path) -> None:
    pickle = tmp_path / "pickle.bin"
    torch.save({"a.weight": torch.ones(2)}, pickle)
    put(cache, "facebook/convnext-tiny-224", "pytorch_model.bin", pickle)
    assert download("facebook/convnext-tiny-224").name == "pytorch_model.bin"
    assert set(read_source("facebook/convnext-tiny-224")[0]) == {"a.weight"}
    repository = cache / "models--facebook--convnext-tiny-224"
    (repository / "snapshots" / COMMIT / "model.safetensors").write_bytes(atto.read_bytes())
    assert download("facebook/convnext-tiny-224").name == "model.safetensors"


def test_peers_have_the_tags_of_timm(cache: Path, tmp_path: Path) -> None:
    import timm

    path = tmp_path / "resnet18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    put(cache, "timm/resnet18.a1_in1k", "model.safetensors", path)
    assert load_weights(create_model("timm/resnet18"), "a1_in1k").matched == 1.0


def test_nothing_is_said_of_what_is_there(
    cache: Path, atto: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(cache, "timm/convnext_atto.d2_in1k", "model.safetensors", atto)
    locate("timm/convnext_atto.d2_in1k")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_what_is_fetched_is_said(
    cache: Path, atto: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []

    def fetch(repo_id: str, filename: str, **_: object) -> str:
        asked.append(filename)
        if filename == "model.safetensors":
            raise EntryNotFoundError("404")
        return str(atto)

    def no_metadata(*_: object, **__: object) -> None:
        raise OSError("unreachable")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", no_metadata)
    assert download("owner/name") == atto
    assert asked == ["model.safetensors", "pytorch_model.bin"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[1].startswith("fetching pytorch_model.bin of owner/name from https://")

    def offline(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ValueError, match=r"cannot be reached; fetch it on a machine that is onl"):
        download("owner/name")


def test_offline_and_absent_says_what_to_put_where(cache: Path) -> None:
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE forbids") as error:
        locate("fb_in1k", model="convnext_tiny")
    for part in (
        "model.safetensors",
        "timm/convnext_tiny.fb_in1k",
        "give the path of the file",
        str(cache / "models--timm--convnext_tiny.fb_in1k"),
    ):
        assert part in str(error.value)  # fmt: skip


@pytest.mark.parametrize(
    ("source", "model", "message"),
    [
        ("fb_in1K", "convnext_tiny", r"has no weights 'fb_in1K'; did you mean 'fb_in1k'\?"),
        ("fb_in1k", "roadmap/resnet50/kernel_9", "no weights are published for roadmap/resnet50/k"),
        ("fb_in1k", "", "'fb_in1k' is not a run, a file or a folder"),
        ("convnext_tiny", "", "but a network; name its weights too: convnext_tiny.fb_in1k, convn"),
        ("convnext_tinny.in12k_ft", "", r"did you mean 'convnext_tiny.in12k_ft_in1k'\?"),
        ("absent/tiny.pth", "convnext_tiny", "there is no file or folder absent/tiny.pth"),
        ("./absent", "convnext_tiny", "there is no file or folder ./absent"),
        ("https://host/tiny.pth", "convnext_tiny", "no file or folder https"),
        ("https://host/tiny", "convnext_tiny", "is a URL; download the file"),
        ("a/b/c", "convnext_tiny", "there is no such run, file or folder a/b/c"),
        ("runs/first", "", "there is no such run, file or folder runs/first$"),
    ],
)
def test_unknown_sources(cache: Path, source: str, model: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        locate(source, model=model)


def test_folders(tmp_path: Path, atto: Path) -> None:
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    (run / "best.safetensors").write_bytes(atto.read_bytes())
    assert locate(tmp_path / "run") == run / "best.safetensors"
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ValueError, match="folder holds no weights"):
        locate(folder)
    (folder / "a.pth").write_bytes(b"")
    assert locate(folder).name == "a.pth"
    (folder / "b.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="holds 2 files of weights; name one"):
        locate(folder)
    (folder / "model.safetensors").write_bytes(b"")
    assert locate(folder).name == "model.safetensors"


def test_the_environment_of_the_hub_holds(tmp_path: Path, atto: Path) -> None:
    cache = tmp_path / "elsewhere"
    put(cache, "timm/convnext_atto.d2_in1k", "model.safetensors", atto)
    code = (
        "from convnext.weights.sources import locate\n"
        "print(locate('d2_in1k', model='convnext_atto'))\n"
        "try: locate('fb_in1k', model='convnext_tiny')\n"
        "except ValueError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert Path(first).is_relative_to(cache)
    assert str(cache / "models--timm--convnext_tiny.fb_in1k") in second


def test_a_run_with_a_mistake_in_its_name_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs" / "signs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("runs/sgns", "run/signs"):
        with pytest.raises(ValueError, match=rf"no such run.* {name}; did you mean 'runs/signs'"):
            locate(name)
    assert capsys.readouterr().err == ""


def test_the_hub_is_asked_for_owner_and_name_after_saying_so(
    cache: Path, atto: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pointer = put(cache, "someone/their_model", "model.safetensors", atto)
    assert locate("hf:someone/their_model") == pointer
    assert capsys.readouterr().err == ""
    assert locate("someone/their_model") == pointer
    assert "looking for it on the hub" in capsys.readouterr().err
