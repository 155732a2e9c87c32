"""What was measured is kept where it can be, and no run ends where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from convnext.hardware.tuning_cache import cache_folder, recall, remember


def test_values_are_kept_beside_each_other(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "values.json"
    remember(path, "a", [1, 2])
    remember(path, "b", {"c": None})
    assert recall(path) == {"a": [1, 2], "b": {"c": None}}
    path.write_text('{"', encoding="utf-8")
    assert recall(path) == {}
    remember(path, "a", 3)
    assert recall(path) == {"a": 3}


def test_a_folder_that_cannot_be_written_costs_the_memory_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    path = tmp_path / "file" / "values.json"
    remember(path, "a", 1)
    assert recall(path) == {}


def test_users_without_a_home_have_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert cache_folder() == tmp_path / "convnext"
