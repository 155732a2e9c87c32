"""What `train` makes of its inputs before it trains: a first start, tables, networks, types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from small_objects import coco_squares
from torch import nn

import convnext
from convnext import api
from convnext.recipes.recipe import Recipe, change_recipe, to_yaml

Trained = list[tuple[Recipe, Path | None]]
ROWS = [("a.png", "cat"), ("b.png", "dog")]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trained:
    """Return the recipes and folders that would be trained, in an empty working directory."""
    calls: Trained = []

    def train(recipe: Recipe, *, output: Path | None, **_: Any) -> Any:
        calls.append((recipe, output))
        folder = output or Path("none")
        empty = {"best": {}, "validation": None, "model": "", "data": "", "steps": 0}
        return SimpleNamespace(folder=folder, **empty, seconds=0.0)

    monkeypatch.setattr("convnext.training.run.train", train)
    monkeypatch.chdir(tmp_path)
    return calls


def run_folder(root: Path, **changes: Any) -> Path:
    """Write what a run leaves in its folder, without its weights."""
    (root / "checkpoints" / "step-00000001").mkdir(parents=True)
    (root / "recipe.yaml").write_text(to_yaml(change_recipe(Recipe(), changes)))
    return root


def test_a_first_start_with_resume_is_one_without(trained: Trained, tmp_path: Path) -> None:
    data = coco_squares(tmp_path / "data")
    for resume in (False, True):
        convnext.train(data=data, resume=resume, output="new", progress=False)
    (first, _), (again, _) = trained
    assert first == again
    assert again.task == "detect"
    with pytest.raises(ValueError, match="did you mean 'convnext_tiny'"):
        convnext.train(model="convnext_tinny", resume=True, output="new", progress=False)


def test_a_network_is_trained_at_the_first_start_too(trained: Trained) -> None:
    network = nn.Conv2d(3, 2, 1)
    run = convnext.train(model=network, resume=True, output="new", progress=False)
    assert trained[0][0].model == "given/Conv2d"
    assert run.network is network


def test_a_run_is_resumed_on_its_own_kind_of_network(trained: Trained, tmp_path: Path) -> None:
    named = run_folder(tmp_path / "named", model="convnext_atto")
    dense = run_folder(tmp_path / "dense", model="upernet_given/Conv2d")
    with pytest.raises(ValueError, match="trains convnext_atto, not given/Conv2d"):
        convnext.train(model=nn.Conv2d(3, 2, 1), resume=True, output=named, progress=False)
    with pytest.raises(ValueError, match="trains upernet_given/Conv2d, not given/Linear"):
        convnext.train(model=nn.Linear(3, 2), resume=True, output=dense, progress=False)
    convnext.train(model=nn.Conv2d(3, 2, 1), resume=True, output=dense, progress=False)
    assert [recipe.model for recipe, _ in trained] == ["upernet_given/Conv2d"]


def test_a_table_does_not_touch_another_run(trained: Trained, tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / "data.csv").write_text("path,label\nold.png,old\n")
    with pytest.raises(ValueError, match="already holds a run"):
        convnext.train(data=ROWS, output=folder, progress=False)
    with pytest.raises(ValueError, match="has other rows than the given data"):
        convnext.train(data=ROWS, output=folder, resume=True, progress=False)
    with pytest.raises(ValueError, match="did you mean 'convnext_tiny'"):
        convnext.train(data=ROWS, output="new", model="convnext_tinny", progress=False)
    assert (folder / "data.csv").read_text() == "path,label\nold.png,old\n"
    assert not trained
    assert not Path("new").exists()


def test_a_table_is_in_the_run_folder(trained: Trained) -> None:
    for resume in (False, True):
        convnext.train(data=ROWS, output="new", resume=resume, progress=False)
    convnext.train(data=ROWS, progress=False)
    for recipe, folder in trained:
        assert folder is not None
        assert Path(recipe.data) == folder / "data.csv"
        assert Path(recipe.data).read_text().startswith("path,label\n")
    assert trained[2][1] is not None
    assert trained[2][1].parent == Path("runs")
    assert trained[2][1].name.startswith("table-")


def test_one_process_writes_the_table(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a table in memory needs output="):
        convnext.train(data=ROWS, devices=2, progress=False)
    monkeypatch.setenv("LOCAL_RANK", "1")
    convnext.train(data=ROWS, devices=2, output="new", progress=False)
    assert trained[0][0].data == str(Path("new") / "data.csv")
    assert not Path("new").exists()


TABLE = {"path": ["a.png"], "label": ["a"]}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "load": (lambda: convnext.load(TABLE), "a source is a path.*not dict"),  # type: ignore[arg-type]
    "predict": (
        lambda: convnext.predict(nn.Linear(1, 1), Image.new("L", (8, 8))),
        "a source is a path.*not Linear",
    ),
    "export": (
        lambda: convnext.export(nn.Linear(1, 1), format="onnx"),
        r"convnext.load\(module.*not Linear",
    ),
    "evaluate": (lambda: convnext.evaluate("absent", data=TABLE), "data is a path.*not dict"),  # type: ignore[arg-type]
    "robustness": (
        lambda: api.evaluate_robustness(nn.Linear(1, 1)),  # type: ignore[arg-type]
        "a source is a run folder.*not Linear",
    ),
    "robustness data": (
        lambda: api.evaluate_robustness("absent", data=TABLE),  # type: ignore[arg-type]
        "data is a path.*not dict",
    ),
    "compare": (
        lambda: convnext.compare([nn.Linear(1, 1)]),  # type: ignore[list-item]
        "a network of a study is a text.*not Linear",
    ),
    "compare one": (
        lambda: convnext.compare(nn.Linear(1, 1)),  # type: ignore[arg-type]
        "a network of a study is a text.*not Linear",
    ),
    "compare data": (
        lambda: convnext.compare("convnext_atto", data=TABLE),  # type: ignore[arg-type]
        "data is a path.*not dict",
    ),
    "roadmap": (lambda: convnext.run_roadmap(data=TABLE), "data is a path.*not dict"),  # type: ignore[arg-type]
    "learning rates": (
        lambda: api.learning_rates(data=TABLE),  # type: ignore[arg-type]
        "data is a path.*not dict",
    ),
    "progress": (
        lambda: convnext.find_models(progress="no"),  # type: ignore[arg-type]
        "progress is True, False or a rich Console, not 'no'",
    ),
    "train": (lambda: convnext.train(model=3), r"an nn\.Module, not 3"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_objects_are_not_taken_for_text(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(TypeError, match=message):
        call()


def test_rates_of_a_network_of_ones_own() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 10)

        def forward(self, images: Any) -> Any:
            return self.fc(images.mean((2, 3)))

    rows = api.learning_rates(data="digits", model=Plain(), device="cpu", progress=False).rows
    assert sum(int(row["params"]) for row in rows) == 40
