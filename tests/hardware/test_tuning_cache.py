"""Several processes share the tuning cache, and a run continues if it cannot be written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest
import torch

from convnext.hardware import devices
from convnext.hardware import tuning_cache as module
from convnext.hardware.system import cache_folder
from convnext.hardware.tuning_cache import TuningCache, cache_file, key_of
from convnext.names import portable_name

CPU = torch.device("cpu")


def test_entries_are_kept_beside_each_other(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path / "deep" / "values.json")
    assert cache.load("a") is None
    cache.store("a", [1, 2])
    cache.store("b", {"c": None})
    assert (cache.load("a"), cache.load("b")) == ([1, 2], {"c": None})
    cache.store("a", 3)
    assert TuningCache(cache.path).load("a") == 3


@pytest.mark.parametrize("text", ['{"', "[1]", "\x00"])
def test_a_damaged_file_is_ignored_with_a_note(text: str, tmp_path: Path) -> None:
    lines: list[str] = []
    cache = TuningCache(tmp_path / "values.json", lines.append)
    cache.path.write_text(text, encoding="utf-8")
    assert cache.load("a") is None
    assert len(lines) == 1
    assert "ignoring the damaged" in lines[0]
    cache.store("a", 3)
    assert cache.load("a") == 3


def test_a_damaged_entry_is_ignored_alone(tmp_path: Path) -> None:
    lines: list[str] = []
    cache = TuningCache(tmp_path / "values.json", lines.append)
    cache.store("good", 1)
    cache.store("bad", "text")
    assert cache.load("bad", int) is None
    assert cache.load("good", int) == 1
    assert ["bad" in line for line in lines] == [True]


def test_a_folder_that_cannot_be_written_costs_the_memory_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    cache = TuningCache(tmp_path / "file" / "values.json")
    cache.store("a", 1)
    assert cache.load("a") is None


STORE = """
import sys, time
from pathlib import Path
from convnext.hardware.tuning_cache import TuningCache
path, number = Path(sys.argv[1]), sys.argv[2]
path.with_name(number).touch()
while not all(path.with_name(other).exists() for other in "012"):
    time.sleep(0.01)
for i in range(20):
    TuningCache(path).store(f"{number}-{i}", i)
"""


def test_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    workers = [subprocess.Popen([sys.executable, "-c", STORE, str(path), n]) for n in "012"]
    assert [worker.wait(240) for worker in workers] == [0, 0, 0]
    assert len(json.loads(path.read_text(encoding="utf-8"))) == 60


def test_an_entry_is_stored_while_others_are_kept_out(tmp_path: Path) -> None:
    cache = TuningCache(tmp_path / "values.json")
    with cache.exclusive(), TuningCache(cache.path).exclusive():
        cache.store("a", 1)
    assert cache.load("a") == 1


def test_a_key_names_machine_versions_and_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of("inference", CPU, "network", (1, 3))
    assert key == key_of("inference", CPU, "network", (1, 3))
    assert key.startswith("inference-")
    assert portable_name(key) == key
    others = [
        key_of("training", CPU, "network", (1, 3)),
        key_of("inference", CPU, "network", (2, 3)),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(module, "cpu_facts", lambda: ("name", "avx2"))
        others.append(key_of("inference", CPU, "network", (1, 3)))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_version", lambda name: "99")
        others.append(key_of("inference", CPU, "network", (1, 3)))
    for fact in ("cpu", "cores", "threads", "torch", "convnext", "device"):
        with monkeypatch.context() as patch:
            known = devices.environment(CPU)
            patch.setattr(devices, "environment", lambda _, f=fact, k=known: k | {f: "other"})
            others.append(key_of("inference", CPU, "network", (1, 3)))
    assert len({key, *others}) == 1 + len(others)


def test_the_folder_is_the_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path(platformdirs.user_cache_dir("convnext", False))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "convnext" / "tuning.json"


def test_users_without_a_home_have_a_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    home = Path("~/.cache/convnext")  # An unknown home stays unexpanded.
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: home)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert cache_folder() == tmp_path / "convnext"
