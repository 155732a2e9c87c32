"""The learning rate range test: its steps are those of training, the suggestion is on its curve."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runs import SMALL
from PIL import Image

import convnext
from convnext.cli import main
from convnext.recipes.recipe import recipe_from_dict
from convnext.training.range_test import smooth, suggest

RATES = np.geomspace(1e-6, 1.0, 61).tolist()


def test_the_suggestion_is_between_the_steepest_and_the_lowest_point() -> None:
    # A loss that falls along tanh around 1e-3, is lowest near 1e-2, and then explodes.
    decades = np.log10(RATES)
    curve = 1.5 - np.tanh(2 * (decades + 3)) + 10.0 ** (2 * (decades + 1.3))
    found, reason = suggest(RATES, curve.tolist())
    lowest = RATES[int(curve.argmin())]
    assert found == pytest.approx(math.sqrt(1e-3 * lowest), rel=0.15)
    assert f"lowest at {lowest:.2g}" in reason


@pytest.mark.parametrize("curve", [[2.0] * 61, [2.0 + i / 61 for i in range(61)]])
def test_a_loss_that_does_not_fall_suggests_nothing(curve: list[float]) -> None:
    found, reason = suggest(RATES, curve)
    assert found is None
    assert "does not fall between 1e-06 and 1" in reason


def test_smoothing_keeps_the_place_of_a_fall() -> None:
    losses = [2.0] * 30 + [1.0] * 30
    smoothed = smooth(losses, 60)
    assert smoothed[29] + smoothed[30] == pytest.approx(3.0)
    assert len(smoothed) == 60


def test_its_steps_are_those_of_training(tmp_path: Path) -> None:
    recipe = recipe_from_dict(SMALL)
    settings: dict[str, Any] = {"optim.lr": 1e-3, "schedule.steps": 1, "schedule.warmup_steps": 1}
    found = convnext.find_lr(
        recipe,
        output=tmp_path / "lr",
        num_steps=12,
        lowest=1e-5,
        highest=1e-1,
        progress=False,
        **settings,
    )
    assert found.test.rates[0] == pytest.approx(1e-5)
    assert len(found.test.losses) <= len(found.test.smoothed) == len(found.test.rates)
    assert found.test.auto == 1e-3
    assert found.test.batch_size == 48
    # The first loss comes before any update, so it is that of a run.
    run = convnext.train(recipe, output=tmp_path / "run", progress=False, **settings)
    first = next(row for row in run.metrics if row["kind"] == "train")
    assert found.test.losses[0] == pytest.approx(first["loss"], rel=1e-6)
    written = json.loads((tmp_path / "lr/learning_rates.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(found.to_dict()))
    with Image.open(tmp_path / "lr/learning_rates.png") as curve:
        assert curve.width > 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--num-steps", "3"], "--num-steps is 3, but must be at least 10"),
        (["--lowest", "0.1", "--highest", "0.01"], "the rates must grow, but go from 0.1 to 0.01"),
        (["--devices", "2"], "find-lr uses one device"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ["--output", str(tmp_path / "lr"), "--device", "cpu"]
    assert main(["find-lr", *output, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "lr").exists()
