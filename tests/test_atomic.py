"""Outputs are complete or absent, and a folder has one writer at a time, also after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from small_exports import small_photos, small_segmentor

import convnext
from convnext.atomic import BusyError, draft_beside, one_writer, write_together

HOLD = """
import sys, time
from convnext.atomic import one_writer
with one_writer(sys.argv[1], ".*"):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold the lock of a folder in another process, and kill that process at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_folder_has_one_writer_until_that_process_dies(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with held_elsewhere(folder), pytest.raises(BusyError, match="another process writes into"):
        one_writer(folder, ".*").__enter__()
    assert [p.name for p in folder.iterdir()] == [".convnext-lock"]
    with one_writer(folder, ".*") as is_locked:
        assert is_locked
        with pytest.raises(BusyError, match="another thread"):
            one_writer(folder, ".*").__enter__()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_a_lock_that_was_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    original = fcntl.lockf

    def late(handle: object, *options: int) -> None:
        (tmp_path / ".convnext-lock").unlink()  # Its last holder ends at this moment.
        original(handle, *options)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "lockf", late)
    with pytest.raises(BusyError, match="has just written into"):
        one_writer(tmp_path, ".*").__enter__()


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    left = [".a.json.0123abcd", ".b.png.89abcdef"]
    others = [".a.txt.0123abcd", ".a.json", ".gitignore", "a.json"]
    for name in left + others:
        (tmp_path / name).write_text("")
    with one_writer(tmp_path, r".+\.(json|png)"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(others)


def test_files_that_belong_together_have_one_that_appears_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = tmp_path / "main.json"
    write_together(main, "old", {"a.csv": "old", "b.csv": "old"})
    replaced = Path.replace
    for count in range(3):
        done = []

        def replace(self: Path, target: Path, count: int = count, done: list[Path] = done) -> Path:
            if len(done) == count:
                raise KeyboardInterrupt
            done.append(target)
            return replaced(self, target)

        monkeypatch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            write_together(main, "new", {"a.csv": "new", "b.csv": "new"})
        assert not main.exists()
        monkeypatch.setattr(Path, "replace", replaced)
    written = write_together(main, "new", {"a.csv": "new", "b.csv": "new"})
    assert [path.name for path in written] == ["main.json", "a.csv", "b.csv"]
    assert {path.read_text() for path in written} == {"new"}


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL does not exist there")
@pytest.mark.parametrize("name", ["net.xml", "other.onnx"])
def test_a_draft_of_a_killed_process_is_removed_by_the_next(name: str, tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from convnext.atomic import draft_beside\n"
        "with draft_beside(Path(sys.argv[1])) as draft:\n"
        "    (draft / 'half').write_text('half'); os.kill(os.getpid(), 9)"
    )
    target = tmp_path / "net.xml"
    ended = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "half").is_file()
    with draft_beside(tmp_path / name) as draft:
        assert [p.name for p in tmp_path.iterdir()] == [draft.name]
        assert [p.name for p in draft.iterdir()] == [".convnext-draft"]
        with pytest.raises(BusyError):
            draft_beside(tmp_path / name).__enter__()
    assert list(tmp_path.iterdir()) == []


def test_a_draft_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "others"
    other.mkdir()
    with draft_beside(tmp_path / "a.onnx") as first:
        (first / "half").write_text("half")
        (tmp_path / ".link.unfinished").symlink_to(other)
        (other / ".convnext-draft").touch()
        with draft_beside(tmp_path / "b.onnx"):
            pass
        assert (first / "half").is_file()
        assert (other / ".convnext-draft").is_file()


def test_a_folder_of_others_is_no_draft(tmp_path: Path) -> None:
    (tmp_path / ".net.xml.unfinished").mkdir()
    (tmp_path / ".net.xml.unfinished" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="is not of this package"):
        draft_beside(tmp_path / "net.xml").__enter__()
    assert (tmp_path / ".net.xml.unfinished" / "mine").read_text() == "mine"


def test_predictions_have_one_writer_and_a_list_that_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, photos = small_segmentor(tmp_path / "net.safetensors"), small_photos(tmp_path / "in")
    output = tmp_path / "out"
    options: dict[str, Any] = {"output": output, "device": "cpu", "progress": False}
    with held_elsewhere(output), pytest.raises(BusyError, match="another process writes into"):
        convnext.predict(source, photos, **options)
    convnext.predict(source, photos, **options)
    assert (output / "predictions.json").is_file()
    assert not list(output.glob(".*"))
    stream = convnext.predict(source, photos, stream=True, **options)
    next(iter(stream))  # As far as a process that is killed now.
    assert not (output / "predictions.json").exists()
    stream.summary()
    assert (output / "predictions.json").is_file()
