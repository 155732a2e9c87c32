"""Reports that are kept while no file of the data changes."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shapes import write_shapes
from small_objects import coco_squares

import convnext
from convnext import tasks
from convnext.data import facts
from convnext.data.facts import from_plain
from convnext.tasks import task_module


def settle(root: Path, seconds: float = 60.0) -> None:
    """Let a time of the past be the last change of all files."""
    for path in root.rglob("*"):
        os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock run ahead, since the time of a change of status cannot be set back."""
    now = time.time_ns
    monkeypatch.setattr(facts.time, "time_ns", lambda: now() + 60 * 10**9)


def make(task: str, root: Path) -> None:
    if task == "detect":
        coco_squares(root)
        return
    if task == "segment":
        write_shapes(root)
        return
    for seed, name in enumerate(("train/a/0", "train/b/1", "val/a/2", "val/b/3")):
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True)
        values = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(values).save(path)


def look(root: Path, task: str | None, **options: Any) -> tuple[dict[str, Any], bool]:
    """Return the report without its last note, and whether it is the stored one."""
    report = convnext.check_data(root, task=task, progress=False, **options).to_dict()
    *notes, last = report["notes"]
    is_stored = last.startswith("no file has changed since")
    return {**report, "notes": tuple(notes)} if is_stored else report, is_stored


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_the_second_report_of_unchanged_data_reads_nothing(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "within" / "data"
    make(task, root)
    first, is_stored = look(root, task)
    assert not is_stored
    module = task_module(task, "inspect")
    with monkeypatch.context() as patch:
        patch.delattr(module, "inspect_with_sheet")
        assert look(root, task) == (first, True)
    assert not look(root, None)[1]
    with monkeypatch.context() as patch:
        patch.delattr(tasks, "recognize_task")
        again, is_stored = look(root, None)
        assert is_stored
        assert {**again, "notes": ()} == {**first, "notes": ()}
    assert not look(root, task, cache=False)[1]
    assert not look(root, task, deep=True)[1]


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize(
    "change", ["changed", "added", "removed", "renamed", "beside", "same size"]
)
def test_any_change_of_a_file_is_seen(change: str, tmp_path: Path) -> None:
    root = tmp_path / "within" / "data"
    make("classify", root)
    look(root, "classify")
    path = root / "train" / "a" / "0.png"
    if change == "changed":
        Image.new("RGB", (50, 60)).save(path)
    elif change == "same size":
        content, times = path.read_bytes(), (path.stat().st_atime, path.stat().st_mtime)
        path.write_bytes(content[:-20] + bytes(20))
        os.utime(path, times)
    elif change == "added":
        (root / "train" / "c").mkdir()
        Image.new("RGB", (50, 60)).save(root / "train" / "c" / "1.png")
    elif change == "removed":
        path.unlink()
    elif change == "renamed":
        path.rename(path.with_name("9.png"))
    else:
        root.with_name("classes.txt").write_text("a\nb\n")
    assert not look(root, "classify")[1]


@pytest.mark.usefixtures("later")
def test_a_change_is_seen_behind_a_link_in_the_middle_of_a_path(tmp_path: Path) -> None:
    make("classify", tmp_path / "within" / "data")
    make("classify", tmp_path / "other" / "data")
    (tmp_path / "other" / "inner").mkdir()
    (tmp_path / "within" / "link").symlink_to(tmp_path / "other" / "inner")
    root = tmp_path / "within" / "link" / ".." / "data"  # other/data, not within/data
    look(root, "classify")
    assert look(root, "classify")[1]
    Image.new("RGB", (50, 60)).save(tmp_path / "other" / "data" / "train" / "a" / "0.png")
    assert not look(root, "classify")[1]


def test_a_report_on_files_that_were_just_written_is_not_kept(tmp_path: Path) -> None:
    root = tmp_path / "within" / "data"
    make("classify", root)
    look(root, "classify")
    assert not look(root, "classify")[1]


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("damage", ["no json", "{}", "[]", "types", "names", "task"])
def test_a_damaged_stored_report_is_ignored_with_a_warning(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "within" / "data"
    make("classify", root)
    first, _ = look(root, "classify")
    found = (facts.cache_folder() / "reports").glob("*.json")
    stored = max(found, key=lambda path: path.stat().st_mtime_ns)
    content = json.loads(stored.read_text())
    if damage == "types":
        content["report"]["num_train"] = ["many"]
    elif damage == "names":
        content["report"]["other"] = 1
    elif damage == "task":
        content["task"] = "none"
    text = json.dumps(content) if damage in ("types", "names", "task") else damage
    stored.write_text(text)
    caplog.clear()
    report, is_stored = look(root, "classify")
    assert not is_stored
    assert {**report, "notes": ()} == {**first, "notes": ()}
    assert "ignoring the damaged file" in caplog.text


# What a damaged file may have where a report has another value.
ODD = [
    None,
    True,
    -1,
    10**400,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "\ud800",
    [],
    {},
    [[]],
    {"a": 1},
]


def damaged(content: Any) -> Iterator[Any]:
    """Yield a JSON with each of its values in turn replaced by an odd one, or left out."""
    if isinstance(content, dict | list):
        keys = list(content) if isinstance(content, dict) else range(len(content))
        for key in keys:
            rest = copy.copy(content)
            del rest[key]
            yield rest
            for other in (*damaged(content[key]), *ODD):
                changed = copy.copy(content)
                changed[key] = other
                yield changed


@pytest.mark.usefixtures("later")
def test_no_damage_of_a_stored_report_is_read_or_ends_the_reading(tmp_path: Path) -> None:
    root = tmp_path / "within" / "data"
    make("classify", root)
    look(root, "classify")
    question = {"task": "classify", "deep": False, "range": []}
    stored = facts.StoredReport(str(root), question)
    content = json.loads(stored.path.read_text())

    def load() -> Any:
        return stored.load(lambda task: task_module(task, "inspect").DataReport)

    assert load() is not None
    whole = json.dumps(content)
    texts = [whole[: i * len(whole) // 50] for i in range(50)]
    texts += ["[" * 200_000, '{"key": ' * 50_000, whole.replace(": ", ": 9" + "9" * 5000, 1)]
    texts += [json.dumps(one) for one in damaged(content) if one != content]
    assert len(texts) > 500
    for text in texts:
        stored.path.write_text(text)
        assert load() is None, text[:200]
    stored.path.write_bytes(whole.encode()[:100] + b"\xff\xfe" + whole.encode()[100:])
    assert load() is None
    stored.path.write_text(whole)
    assert load() is not None


@pytest.mark.parametrize(
    ("hint", "value"),
    [(int, "1"), (int, True), (str, None), (tuple[int, str], [1]), (dict[str, int], {"a": "b"})],
)
def test_values_of_other_types_are_refused(hint: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"argument 2|is not of the type"):
        from_plain(hint, value)
