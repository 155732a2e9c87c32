"""Data sets of the hub by name, from a folder that stands for the hub; without the network."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from convnext.api import fix_annotations
from convnext.api.prepare import prepare, prepare_resumed
from convnext.api.settings import data_path
from convnext.cli import main
from convnext.data.downloads import HubName, hub_data, local_data
from convnext.tasks import recognize_task
from convnext.tasks.classification.data import open_dataset

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Noise = Callable[..., Image.Image]


@dataclass
class Hub:
    """Stands for the hub: a folder with the files of one repository."""

    folder: Path
    asked: list[str] = field(default_factory=list)
    """The files that were requested; "" for the list of files."""
    more: list[str] = field(default_factory=list)
    """Names that the hub lists besides, whatever they mean here."""
    broken: str = ""
    """A file that cannot be fetched."""
    lines: list[str] = field(default_factory=list)
    """What the user was told."""

    def dataset_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> object:
        assert files_metadata
        self.asked.append("")
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        listed = [(p.relative_to(self.folder).as_posix(), p.stat().st_size) for p in files]
        listed += [(name, 0) for name in self.more]
        siblings = [SimpleNamespace(rfilename=name, size=size) for name, size in listed]
        return SimpleNamespace(sha=COMMIT, siblings=siblings)

    def download(
        self, repo: str, file: str, *, repo_type: str, revision: str | None, local_dir: Path
    ) -> str:
        assert (repo_type, revision) == ("dataset", COMMIT)
        target = local_dir / file
        if not target.is_file():
            self.asked.append(file)
            if file == self.broken:
                raise ConnectionError("the connection was closed")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.folder / file, target)
            notes = local_dir / ".cache" / "huggingface" / "download"
            notes.mkdir(parents=True, exist_ok=True)
        return str(target)

    def get(self, name: str = "hf:owner/name") -> Path:
        return hub_data(HubName.parse(name), notice=self.lines.append)

    def write(self, name: str, content: str | bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    def said(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """An empty repository on a hub, and an empty cache."""
    import huggingface_hub
    from huggingface_hub import constants

    found = Hub(tmp_path / "repository")
    found.folder.mkdir()
    monkeypatch.setattr(huggingface_hub, "dataset_info", found.dataset_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", found.download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


def png(seed: int, noise: Noise) -> bytes:
    file = io.BytesIO()
    noise(seed=seed).save(file, "PNG")
    return file.getvalue()


def parquet(noise: Noise, first: int, count: int = 4) -> bytes:
    """Return a table of images with a label of two classes, as `datasets` writes it."""
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    rows = [{"bytes": png(first + i, noise), "path": f"{first + i}.png"} for i in range(count)]
    table = pa.table({"image": rows, "label": [i % 2 for i in range(count)]})
    file = io.BytesIO()
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), file)
    return file.getvalue()


CARD = """\
---
license: mit
configs:
- config_name: small
  data_files:
  - split: train
    path: small/train-*
  - split: test
    path: small/test-*
- config_name: large
  data_files:
  - split: train
    path: "large/**"
---
# Pets
"""


def test_the_parts_of_a_repository_are_read_by_name(hub: Hub, noise: Noise) -> None:
    hub.write("README.md", CARD)
    hub.write("small/train-00000-of-00001.parquet", parquet(noise, 0))
    hub.write("small/test-00000-of-00001.parquet", parquet(noise, 10, 2))
    hub.write("large/a/train.parquet", parquet(noise, 20, 8))
    hub.write("pets.py", "raise SystemExit")
    with pytest.raises(ValueError, match="holds 2 data sets: give one of hf:owner/name/small, hf:"):
        hub.get()
    with pytest.raises(ValueError, match=r"no part 'smal'; did you mean 'small'\?"):
        hub.get("hf:owner/name/smal")
    folder = hub.get("hf:owner/name/small")
    found = open_dataset(str(folder))
    assert found.classes == ("cat", "dog")
    assert found.test is not None
    assert len(found.test) == 2
    assert len(found.train) + len(found.val) == 4
    assert folder.name == "name--small"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    tables = {f"small/{split}-00000-of-00001.parquet" for split in ("train", "test")}
    assert files == {*tables, ".hub/README.md", ".hub/commit"}
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert f") of hf:owner/name/small from https://huggingface.co into {folder}" in hub.said()
    large = open_dataset(str(hub.get("hf:owner/name/large")))
    assert len(large.train) + len(large.val) == 8


def test_a_copy_is_used_without_asking_again(
    hub: Hub, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.write("data/train.parquet", parquet(noise, 0))
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ValueError, match=r"not in the cache, and HF_HUB_OFFLINE forbids.*copy"):
            hub.get()
    folder = hub.get()
    asked = [*hub.asked]
    assert asked == ["", "data/train.parquet"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.get() == folder
    assert hub.asked == asked
    assert hub.lines[-1] == (
        f"hf:owner/name: the copy of the commit {COMMIT[:12]} in {folder} is used; remove this "
        "folder to fetch the data again"
    )
    assert local_data("hf:owner/name") == str(folder)
    assert local_data("hf://datasets/owner/name/{0..3}.tar").startswith("hf://")
    # Another revision is another copy.
    with pytest.raises(ValueError, match="hf:owner/name@v2 is not in the cache"):
        hub.get("hf:owner/name@v2")


def test_images_with_metadata_are_read_by_every_verb(
    hub: Hub, noise: Noise, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["file_name,label"]
    for i in range(8):
        hub.write(f"train/{i}.png", png(i, noise))
        rows.append(f"{i}.png,{'cat' if i % 2 else 'dog'}")
    hub.write("train/metadata.csv", "\n".join(rows))
    hub.write(".gitattributes", "*.png")
    assert main(["data", "hf:owner/name", "--json"]) == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert report["classes"] == ["cat", "dog"]
    assert report["num_images"] == 8
    assert captured.err.startswith("fetching 9 files (")
    folder = str(HubName.parse("hf:owner/name").folder())
    words = ["--data", "hf:owner/name", "--model", "convnext_atto"]
    assert main(["train", "--show-groups", *words]) == 0
    assert "the copy of the commit" in capsys.readouterr().err
    # A run keeps the folder, so that nothing that reads the run later asks the hub.
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: hf:owner/name")
    assert prepare(recipe, {}).data == folder
    assert data_path("hf:owner/name") == folder
    assert hub.asked.count("") == 1
    with pytest.raises(ValueError, match="fix would change the copy of hf:owner/name"):
        fix_annotations("hf:owner/name", yes=True)


def test_a_name_in_a_file_of_others_asks_for_nothing(
    hub: Hub, noise: Noise, tmp_path: Path
) -> None:
    """Only what the user gives is fetched: not the data of a checkpoint, nor of a saved run."""
    hub.write("train.parquet", parquet(noise, 0))
    assert recognize_task("hf:owner/name") == "classify"
    with pytest.raises(ValueError, match="hf:owner/name is fetched only if it is given as --data"):
        open_dataset("hf:owner/name")
    saved = tmp_path / "recipe.yaml"
    saved.write_text("data: hf:owner/name")
    assert prepare_resumed(saved, {}).data == "hf:owner/name"
    assert hub.asked == []


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.zip", "b.zip"], r"neither images nor Parquet or Arrow files \(2 .zip\); archives are"),
        (["pets.py"], r"\(1 .py\); its script is not run.*hf:owner/name@refs/convert/parquet"),
        (["labels.csv", "x.npy"], r"neither images nor Parquet or Arrow files \(1 .npy\)$"),
        ([], r"\(no files\)"),
    ],
)
def test_what_cannot_be_read_is_not_fetched(hub: Hub, files: list[str], message: str) -> None:
    for name in files:
        hub.write(name, "content")
    with pytest.raises(ValueError, match=message):
        hub.get()
    assert set(hub.asked) == {""}


def test_the_rest_of_a_repository_is_counted(hub: Hub, noise: Noise) -> None:
    for i in range(20):  # So many share one progress bar.
        hub.write(f"{'cat' if i < 2 else 'dog'}/{i}.png", png(i, noise))
    hub.write("more.zip", "PK")
    hub.write("load.py", "import os")
    folder = hub.get()
    assert sorted(path.name for path in folder.iterdir()) == [".hub", "cat", "dog"]
    assert "files that are not fetched: 1 .py, 1 .zip; archives are not unpacked" in hub.said()
    assert open_dataset(str(folder)).classes == ("cat", "dog")


def test_a_split_that_only_the_card_states_is_kept(hub: Hub, noise: Noise) -> None:
    hub.write(
        "README.md",
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - {split: train, path: a.parquet}\n"
        "  - {split: validation, path: b.parquet}\n  - {split: train, path: test.parquet}\n"
        "- config_name: other\n  data_files: c.parquet\n---\n",
    )
    for number, name in enumerate("abc"):
        hub.write(f"{name}.parquet", parquet(noise, 10 * number, 4 + 2 * number))
    hub.write("test.parquet", parquet(noise, 50, 2))
    found = open_dataset(str(hub.get()))
    assert found.test is not None
    assert [len(found.train), len(found.val), len(found.test)] == [4, 6, 2]
    assert "is its part 'default'; hf:owner/name/NAME reads another: other" in hub.said()
    assert "test.parquet is read as test by its name, though the card calls it train" in hub.said()


def test_names_that_lead_elsewhere_are_not_fetched(hub: Hub, noise: Noise, tmp_path: Path) -> None:
    hub.more = ["../evil.png", "/evil.png", "a/../../evil.png", "a\\..\\evil.png", "C:evil.png",
                "a//evil.png", "./evil.png"]  # fmt: skip
    hub.write(
        "README.md",
        "---\nconfigs:\n- config_name: default\n  data_dir: ../..\n  data_files:\n"
        "  - {split: ../../train, path: x.parquet}\n  - {split: /val, path: y.parquet}\n"
        "  - {split: val, path: '**'}\n---\n",
    )
    hub.write("x.parquet", parquet(noise, 0))
    hub.write("y.parquet", parquet(noise, 4))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    folder = hub.get()
    assert set(hub.asked) == {"", "README.md", "x.parquet", "y.parquet"}
    assert (folder / "train" / "x.parquet").is_file()
    assert (folder / "val" / "y.parquet").is_file()
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    assert "files that are not fetched: 7 .png" in hub.said()
    for name in ("hf:../name", "hf:owner/..", "hf:owner", "hf:owner/name@", "hf:", "hf:owner/"):
        with pytest.raises(ValueError, match="write hf:OWNER/NAME"):
            HubName.parse(name)


def test_an_interrupted_download_continues(hub: Hub, noise: Noise) -> None:
    for name in "abcd":
        hub.write(f"{'cat' if name < 'c' else 'dog'}/{name}.png", png(ord(name), noise))
    hub.broken = "dog/d.png"
    with pytest.raises(ValueError, match=r"cannot be fetched from .*closed\); the same command"):
        hub.get()
    assert not HubName.parse("hf:owner/name").folder().exists()
    hub.broken, hub.asked = "", []
    folder = hub.get()
    assert hub.asked == ["", "dog/d.png"]
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["name"]
    assert len(open_dataset(str(folder)).classes) == 2


def test_a_file_that_arrives_in_part_is_not_used(
    hub: Hub, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    hub.write("train.parquet", parquet(noise, 0))

    def part(repo: str, file: str, *, local_dir: Path, **_: object) -> str:
        (local_dir / file).parent.mkdir(parents=True, exist_ok=True)
        (local_dir / file).write_bytes(b"PAR1")
        return str(local_dir / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", part)
    with pytest.raises(ValueError, match=r"train.parquet did not arrive as a file of [\d,]+ bytes"):
        hub.get()
    assert not HubName.parse("hf:owner/name").folder().exists()


def test_what_the_hub_answers_is_said(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    errors: list[tuple[type[Exception], str]] = [
        (GatedRepoError, "asks for consent: accept its terms"),
        (RepositoryNotFoundError, "no public data set owner/name with the revision v2; check"),
        (OSError, r"cannot be fetched from https?://.* \(OSError: no route\)"),
    ]
    for kind, message in errors:

        def fail(*_: object, kind: type[Exception] = kind, **__: object) -> None:
            error = kind.__new__(kind, "no route")
            raise error

        monkeypatch.setattr(huggingface_hub, "dataset_info", fail)
        with pytest.raises(ValueError, match=message):
            hub.get("hf:owner/name@v2")


def test_other_data_has_another_folder() -> None:
    names = ("", "@refs/convert/parquet", "@refs_convert_parquet", "@main", "/a/b", "/a_b", "/a:b")
    folders = [HubName.parse(f"hf:owner/name{rest}").folder() for rest in names]
    assert folders[0] == folders[3]  # The branch that is taken if none is named.
    assert len(set(folders)) == len(names) - 1
