"""What `train` makes of its inputs before it trains: a first start, tables, networks, types."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin, get_overloads

import numpy as np
import pytest
from PIL import Image
from small_objects import coco_squares
from torch import nn

import convnext
from convnext import api, cli
from convnext.api import settings
from convnext.recipes.recipe import Recipe, change_recipe, to_yaml
from convnext.recipes.schema import _parts
from convnext.tasks import given_options
from convnext.weights.published import PUBLISHED_DENSE

Trained = list[tuple[Recipe, Path | None]]
ROWS = [("a.png", "cat"), ("b.png", "dog")]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trained:
    """Return the recipes and folders that would be trained, in an empty working directory."""
    calls: Trained = []

    def train(recipe: Recipe, *, output: Path | None, **_: Any) -> Any:
        calls.append((recipe, output))
        folder = output or Path("none")
        empty: dict[str, Any] = {
            "best": {},
            "model": "",
            "data": "",
            "bad_images": (),
            "validation": None,
        }
        return SimpleNamespace(folder=folder, steps=0, seconds=0.0, **empty)

    monkeypatch.setattr("convnext.training.run.train", train)
    monkeypatch.chdir(tmp_path)
    for name, _ in ROWS:
        Path(name).touch()
    return calls


def run_folder(root: Path, **changes: Any) -> Path:
    """Write what a run leaves in its folder, without its weights."""
    (root / "checkpoints" / "step-00000001").mkdir(parents=True)
    (root / "recipe.yaml").write_text(to_yaml(change_recipe(Recipe(), changes)))
    return root


def test_a_tag_of_weights_names_the_network_of_the_task(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    objects = coco_squares(tmp_path / "data")

    def train(**options: Any) -> None:
        convnext.train(data=objects, output="new", progress=False, **options)

    # Nothing is fetched: the message names the file and where to put it.
    for given in ({}, {"model": "convnext_tiny"}):
        with pytest.raises(ValueError, match="coco_1k of mask_rcnn_convnext_tiny are not on the"):
            train(weights="coco", **given)
    with pytest.raises(ValueError, match=r"ade20k_1k of upernet_convnext_tiny are not on the hub"):
        train(weights="ade20k", task="segment")
    for entry in PUBLISHED_DENSE:
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / "checkpoints" / entry.filename).touch()
    train(weights="coco")
    train(weights="fb_in22k")
    convnext.train(data=ROWS, weights="fb_in22k", output="one", progress=False)
    models = ["mask_rcnn_convnext_tiny", "mask_rcnn_convnext_tiny", "convnext_tiny"]
    assert [recipe.model for recipe, _ in trained] == models
    with pytest.raises(ValueError, match=r"model cascade_mask_rcnn_convnext_base$"):
        train(weights="coco", model="convnext_base")
    with pytest.raises(ValueError, match=r"model mask_rcnn_convnext_femto or mask_rcnn_convnext_p"):
        train(weights="d1_in1k")
    with pytest.raises(ValueError, match=r"model convnext_femto or convnext_pico$"):
        convnext.train(data=ROWS, weights="d1_in1k", output="one", progress=False)
    listed = (
        r"are those of upernet_.*, .* or 2 others \(see `convnext models`\), which do not class"
    )
    with pytest.raises(ValueError, match=listed):
        convnext.train(data=ROWS, weights="ade20k", output="two", progress=False)


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


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"callbacks": print}, TypeError, "is not a callback"),
        ({"callbacks": [convnext.Callback]}, TypeError, "pass an instance"),
        ({"loggers": ["absent"]}, ValueError, "run.loggers has no 'absent'"),
        ({"epochs": -1}, ValueError, "^epochs is -1, but must be at least 1"),
        ({"device": "abacus"}, ValueError, "abacus"),
    ],
)
def test_a_refused_run_leaves_no_table(
    trained: Trained, wrong: dict[str, Any], error: type[Exception], message: str
) -> None:
    wrong = {f"run.{name}" if name == "loggers" else name: value for name, value in wrong.items()}
    with pytest.raises(error, match=message):
        convnext.train(data=ROWS, output="new", progress=False, **wrong)
    assert not Path("new").exists()
    assert not trained


def test_several_callbacks_may_come_from_an_iterator(trained: Trained) -> None:
    heard = convnext.Callback()
    convnext.train(data=ROWS, output="new", progress=False, callbacks=iter([heard]))
    assert trained[0][0].data == str(Path("new") / "data.csv")


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
    convnext.train(data=ROWS, devices=2, progress=False)
    assert Path(trained.pop()[0].data).is_file()
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ValueError, match="a table in memory needs output="):
        convnext.train(data=ROWS, progress=False)
    convnext.train(data=ROWS, output="new", progress=False)
    assert trained[0][0].data == str(Path("new") / "data.csv")
    assert not Path("new").exists()


def test_files_that_do_not_exist_are_reported_before_training(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    convnext.train(data=[*ROWS, ("c.png", "cat")], output="new")
    assert "1 of the 3 files do not exist, such as" in capsys.readouterr().out
    swapped = [(label, path) for path, label in ROWS]
    message = r"none of the 2 files exists, such as 'cat': is the order \(path, label\)"
    with pytest.raises(ValueError, match=message):
        convnext.train(data=swapped, output="swapped")
    assert len(trained) == 1


def test_what_does_not_resume_bit_for_bit_is_said(
    trained: Trained, capsys: pytest.CaptureFixture[str]
) -> None:
    convnext.train(data=ROWS, model=nn.Conv2d(3, 2, 1), callbacks=convnext.Callback(), output="new")
    shown = capsys.readouterr().out
    assert "resumes bit for bit only if the network's state_dict is its whole state" in shown
    assert f"the table is saved as {Path('new') / 'data.csv'}" in shown
    assert "does not resume bit for bit" in shown
    convnext.train(model="convnext_atto", output="other")
    assert "bit for bit" not in capsys.readouterr().out
    assert len(trained) == 2


def test_a_named_recipe_is_compared_with_the_saved_one(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path / "run", **{"optim.lr": 0.5, "schedule.epochs": 3})
    named = change_recipe(Recipe(), {"optim.lr": 0.004, "schedule.epochs": 9})
    convnext.train(named, resume=True, output=run, epochs=4)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"the run resumes by its saved recipe {run / 'recipe.yaml'}; not used of the" in shown
    assert shown.endswith("not used of the given recipe: optim.lr 0.004 (saved: 0.5)")
    convnext.train(run / "recipe.yaml", resume=True, output=run)
    assert "not used of" not in capsys.readouterr().out
    assert trained[0][0].optim.lr == 0.5


def test_hyphens_in_names_are_underscores(trained: Trained) -> None:
    convnext.train(output="new", progress=False, **{"batch-size": 4})  # type: ignore[arg-type]
    assert trained[0][0].optim.batch_size == 4
    with pytest.raises(TypeError, match="batch_size is given twice, with a hyphen"):
        convnext.train(progress=False, **{"batch-size": 4, "batch_size": 4})  # type: ignore[arg-type]


VERBS = [name for name in api.__all__ if hasattr(getattr(api, name), "__wrapped__")]


def test_every_command_is_a_checked_verb() -> None:
    assert {verb.function for verb in cli.VERBS.values()} <= set(VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_checks_words_and_numbers(name: str) -> None:
    verb = getattr(api, name)
    hints = settings._hints(inspect.unwrap(verb))
    kinds = {argument: set(_parts(hint)) - {type(None)} for argument, hint in hints.items()}
    words = {n for n, parts in kinds.items() if all(get_origin(p) is Literal for p in parts)}
    numbers = {n for n, parts in kinds.items() if parts <= {int, float, bool}}
    usual: dict[str, Any] = {}
    for p in inspect.signature(verb).parameters.values():
        if p.default is p.empty and p.kind is not p.VAR_KEYWORD:
            usual[p.name] = get_args(hints[p.name])[0] if p.name in words else "x"
    assert words | numbers or name in ("find_models", "learning_rates")
    for argument in words | numbers:
        kind = ValueError if argument in words else TypeError
        with pytest.raises(kind, match=rf"^{argument} is 'fp8', but must be \w"):
            verb(**usual | {argument: "fp8"})


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_a_typed_result(name: str) -> None:
    function = inspect.unwrap(getattr(api, name))
    assert "Any" not in inspect.signature(function).return_annotation.replace("[Any]", "")


def test_predict_has_a_type_for_each_kind_of_result() -> None:
    for function in (inspect.unwrap(api.predict), api.Model.predict):
        returned = [inspect.signature(one).return_annotation for one in get_overloads(function)]
        assert returned == ["Predictions", "PredictionStream[Prediction]"]


def test_python_is_never_asked_for_a_line_of_text(tmp_path: Path) -> None:
    data = coco_squares(tmp_path / "data")
    before = {path: path.read_bytes() for path in data.rglob("*.json")}
    with pytest.raises(ValueError, match="pass yes=True to write without asking"):
        api.fix_annotations(data, progress=False)
    assert {path: path.read_bytes() for path in data.rglob("*.json")} == before
    api.fix_annotations(data, yes=True, progress=False)


def test_options_of_a_task_are_checked_too() -> None:
    with pytest.raises(TypeError, match="--batch-size is 'a', but must be a whole number"):
        given_options("classify", "predict", {"batch_size": "a"})
    with pytest.raises(ValueError, match=r"overlays is 'gif', but must be \w+"):
        given_options("detect", "predict", {"overlays": "gif"})
    assert given_options("classify", "predict", {"batch_size": np.int64(3)})["batch_size"] == 3


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
