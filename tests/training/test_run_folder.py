"""A run folder has one writer, and nothing in it is deleted that the run did not write."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from convnext.atomic import BusyError, only_writer, remove_temporary_files, whole_folder
from convnext.training.checks import RUN_MARK, check_folder, held_folder, mark_folder

HOLD = """
import sys, time
from convnext.atomic import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(file: Path) -> subprocess.Popen[str]:
    """Start a process that holds a lock."""
    command = [sys.executable, "-c", HOLD, str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_run_folder_has_one_writer(tmp_path: Path) -> None:
    mark_folder(tmp_path / "run")
    with holder(tmp_path / "run" / RUN_MARK) as process:
        with pytest.raises(BusyError, match=r"another process writes into .*run"):
            ExitStack().enter_context(held_folder(tmp_path / "run", Console(), resume=True))
        process.kill()
    text = io.StringIO()
    with held_folder(tmp_path / "run", Console(file=text), resume=False):
        assert not text.getvalue()
        with pytest.raises(BusyError, match="another thread"):
            ExitStack().enter_context(held_folder(tmp_path / "run", Console(), resume=False))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    fork = HOLD.replace(
        "    print", "    import os\n    if os.fork() == 0: time.sleep(5)\n    print"
    )
    command = [sys.executable, "-W", "ignore", "-c", fork, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        with only_writer(file) as is_locked:
            assert is_locked


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext.atomic._lock", lambda handle, path: False)
    text = io.StringIO()
    with held_folder(tmp_path / "run", Console(file=text, width=400), resume=False):
        assert "has no locks" in text.getvalue()


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("my notes")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".keep").touch()
    for resume in (False, True):
        with pytest.raises(ValueError, match=r"holds other things \(checkpoints, recipe.yaml\)"):
            check_folder(tmp_path, resume=resume)
    with pytest.raises(ValueError, match="is not a folder"):
        check_folder(tmp_path / "recipe.yaml", resume=False)
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty", resume=False)
    check_folder(tmp_path / "new", resume=True)


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/step-00000001", "metrics.jsonl"])
def test_links_in_a_run_folder_are_refused(tmp_path: Path, name: str) -> None:
    mark_folder(tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"{name} is a link"):
        check_folder(tmp_path / "run", resume=True)


def test_only_temporary_files_of_own_names_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".metrics.json.0123abcd").touch()
    kept = [".git", ".data.20260101", ".metrics.json.0123abcg", "metrics.json.0123abcd"]
    for name in kept:
        (tmp_path / name).touch()
    remove_temporary_files(tmp_path, r".+\.json")
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_a_folder_is_whole_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "new"

    def fail() -> None:
        with whole_folder(target) as draft:
            (draft / "half").touch()
            assert not target.exists()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())
    with whole_folder(target) as draft:
        (draft / "a").mkdir()
    assert [path.name for path in target.iterdir()] == ["a"]
    with pytest.raises(ValueError, match="not empty"), whole_folder(target):
        pass


def test_the_draft_of_a_dead_process_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "new"
    draft = tmp_path / ".new.unfinished"
    (draft / "deep").mkdir(parents=True)
    with pytest.raises(ValueError, match="is not of this package"), whole_folder(target):
        pass
    (draft / ".convnext-draft").touch()
    target.mkdir()  # An empty folder may be there already.
    with holder(draft / ".convnext-draft") as process:
        with pytest.raises(BusyError), whole_folder(target):
            pass
        process.kill()
    with whole_folder(target) as again:
        (again / "b").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert [path.name for path in target.iterdir()] == ["b"]


def test_a_kill_between_two_operations_leaves_no_folder_that_is_refused(tmp_path: Path) -> None:
    target, draft = tmp_path / "new", tmp_path / ".new.unfinished"
    draft.mkdir()  # The mark was not made yet, or was removed just now.
    with whole_folder(target) as again:
        (again / "b").touch()
    (target / ".convnext-draft").touch()  # It has its name, and still its mark.
    with pytest.raises(ValueError, match="not empty"), whole_folder(target):
        pass
    assert [path.name for path in target.iterdir()] == ["b"]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace the current folder")
def test_the_current_folder_becomes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "here"
    target.mkdir()
    monkeypatch.chdir(target)
    with whole_folder(".") as draft:
        (draft / "a").write_text("1")
    assert (target / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_a_run_removes_what_a_killed_report_left(tmp_path: Path) -> None:
    mark_folder(tmp_path)
    (tmp_path / "figures").mkdir()
    names = (".report.html.0123abcd", "figures/.confusion.svg.0123abcd", "figures/confusion.svg")
    for name in names:
        (tmp_path / name).touch()
    with held_folder(tmp_path, Console(quiet=True), resume=True):
        assert [(tmp_path / name).exists() for name in names] == [False, False, True]
