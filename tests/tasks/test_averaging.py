"""Averages of runs: the arithmetic, the greedy choice, and what cannot be averaged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import SMALL

import convnext
from convnext.cli import main
from convnext.recipes.recipe import change_recipe, recipe_from_dict
from convnext.tasks import averaging
from convnext.tasks.averaging import check_alike
from convnext.weights.files import read_file, save_checkpoint
from convnext.weights.sources import open_weights


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three runs: one from scratch, and two that start from its weights."""
    root = tmp_path_factory.mktemp("runs")
    # Batch norms, whose counters are whole numbers.
    changes = {"network.norm": "batch", "schedule.steps": 40, "run.eval_every": 10}
    recipe = change_recipe(recipe_from_dict(SMALL), changes)
    found: list[str] = []
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        weights = {"weights": found[0]} if found else {}
        run = convnext.train(recipe, output=root / name, progress=False, seed=seed, **weights)
        found.append(str(run.folder))
    return found


def test_the_uniform_average_is_the_mean(runs: list[str], tmp_path: Path) -> None:
    found = convnext.average(runs, how="uniform", output=tmp_path / "soup", progress=False)
    assert sorted(found.used) == sorted(runs)
    states = {run: open_weights(run)[1] for run in runs}
    averaged = open_weights(str(tmp_path / "soup"))[1]
    for name, tensor in averaged.items():
        if tensor.is_floating_point():
            expected = torch.stack([state[name].double() for state in states.values()]).mean(0)
            assert torch.allclose(tensor.double(), expected, rtol=1e-6, atol=1e-8), name
        else:
            assert torch.equal(tensor, states[found.used[0]][name])
    # It is a run folder like any other: it loads, and scores the same on what the runs held out.
    model = convnext.load(tmp_path / "soup")
    assert model.evaluate(progress=False)["top1"] == found.score
    assert json.loads((tmp_path / "soup/average.json").read_text())["score"] == found.score
    for run in runs:
        assert convnext.evaluate(run, progress=False)["top1"] == found.scores[run]


def test_the_greedy_average_takes_what_helps(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The runs by their scores: c, a, b. With a the score falls, with b it rises.
    given = iter([80.0, 70.0, 90.0, 85.0, 95.0])

    class Result:
        def scores(self) -> dict[str, float]:
            return {"top1": next(given)}

    class Task:
        @staticmethod
        def metric_of(_: Any) -> tuple[str, str]:
            return "top1", "top-1"

        @staticmethod
        def evaluate(*_: Any) -> Result:
            return Result()

    monkeypatch.setattr(averaging, "task_class", lambda _: Task)
    a, b, c = runs
    found = convnext.average(runs, output=tmp_path / "soup", progress=False)
    assert found.used == (c, b)
    assert (found.score, dict(found.scores)) == (95.0, {a: 80.0, b: 70.0, c: 90.0})
    one, other = (open_weights(run)[1]["stem.conv.weight"].double() for run in (c, b))
    mean = open_weights(str(tmp_path / "soup"))[1]["stem.conv.weight"].double()
    assert torch.allclose(mean, (one + other) / 2, rtol=1e-6, atol=1e-9)


def test_the_greedy_average_is_not_worse_than_the_best(runs: list[str], tmp_path: Path) -> None:
    found = convnext.average(runs, output=tmp_path / "soup", progress=False)
    assert found.score >= max(found.scores.values())
    assert found.used[0] == max(runs, key=lambda run: found.scores[run])


def test_other_networks_are_refused(runs: list[str], tmp_path: Path) -> None:
    card, weights = open_weights(runs[0])
    assert card is not None
    for change, message in (
        ({"model": "convnext_nano"}, r"their networks differ \(convnext_atto and convnext_nano\)"),
        ({"classes": (*card.classes[:9], "x")}, "their classes differ"),
        ({"changes": {**card.changes, "dims": [8, 8, 8, 8]}}, "their values of dims differ"),
        ({"preprocessing": replace(card.preprocessing, image_size=9)}, "their preprocessing"),
    ):
        with pytest.raises(ValueError, match=message):
            check_alike({"one": card, "other": replace(card, **change)})
    rate = {"changes": {**card.changes, "drop_path_rate": 0.3}}
    check_alike({"one": card, "other": replace(card, **rate)})

    file = tmp_path / "net.safetensors"
    save_checkpoint(file, weights, card)
    with pytest.raises(ValueError, match="does not say which images were held out; give data"):
        convnext.average([runs[0], file], output=tmp_path / "soup", progress=False)
    bare = tmp_path / "bare.safetensors"
    from safetensors.torch import save_file

    save_file(dict(read_file(file)[0]), bare)
    with pytest.raises(ValueError, match="is not a run or a checkpoint of one"):
        convnext.average([runs[0], bare], output=tmp_path / "soup", progress=False)


def test_the_command_line_averages(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "soup")
    assert main(["average", *runs[:2], "--data", "digits", "--output", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["folder"] == folder
    assert main(["average", *runs[:2], "--output", folder]) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["average", runs[0], "--output", folder]) == 2
    assert "average needs two or more different runs" in capsys.readouterr().err
