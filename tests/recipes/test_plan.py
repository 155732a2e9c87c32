"""The learning rate of every step against the authors' formulas."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import cast

import pytest

from convnext.recipes.recipe import Recipe, ResolvedRecipe, change_recipe
from convnext.recipes.resolve import Plan, learning_rate
from convnext.recipes.schema import ScheduleRecipe


def test_schedule_is_linear_then_cosine() -> None:
    cosine = ScheduleRecipe(min_lr=1e-6)
    rates = [
        learning_rate(step, peak=4e-3, num_steps=1000, warmup_steps=100, schedule=cosine)
        for step in range(1000)
    ]
    assert rates[0] == 0.0
    assert rates[99] == pytest.approx(4e-3)
    assert rates[100] == pytest.approx(4e-3)
    assert rates[550] == pytest.approx(1e-6 + (4e-3 - 1e-6) * 0.5, rel=1e-9)
    assert rates[-1] == pytest.approx(1e-6, abs=2e-8)
    assert all(a >= b for a, b in pairwise(rates[99:]))
    down = ScheduleRecipe(min_lr=0.0)
    assert learning_rate(0, peak=1.0, num_steps=10, warmup_steps=0, schedule=down) == 1.0
    only = learning_rate(0, peak=1.0, num_steps=1, warmup_steps=1, schedule=down)
    assert math.isfinite(only)


def test_polynomial_counts_from_the_first_step_as_for_ade20k() -> None:
    poly = ScheduleRecipe(shape="polynomial", warmup_ratio=1e-6, min_lr=0.0)

    def rate(step: int) -> float:
        return learning_rate(step, peak=1e-4, num_steps=160_000, warmup_steps=1500, schedule=poly)

    assert rate(0) == pytest.approx(1e-10)
    assert rate(750) == pytest.approx(1e-4 * (1 - 750 / 160_000) * 0.5, rel=1e-5)
    assert rate(1500) == pytest.approx(1e-4 * (1 - 1500 / 160_000))
    assert rate(80_000) == pytest.approx(0.5e-4)
    assert rate(160_000) == rate(170_000) == 0.0
    square = ScheduleRecipe(shape="polynomial", power=2.0, min_lr=0.0)
    half = learning_rate(5, peak=1.0, num_steps=10, warmup_steps=0, schedule=square)
    assert half == pytest.approx(0.25)


def test_multistep_takes_a_tenth_at_every_milestone_as_for_coco() -> None:
    changes = {
        "schedule.epochs": 12,
        "schedule.shape": "multistep",
        "schedule.milestones": (8.0, 11.0),
        "schedule.warmup_steps": 500,
        "schedule.warmup_epochs": 0,
        "schedule.warmup_ratio": 0.001,
        "run.eval_every": 1,
        "optim.lr": 2e-4,
    }
    recipe = change_recipe(Recipe(), changes | {"run.save_every": 100})
    plan = Plan.of(cast("ResolvedRecipe", recipe), steps_per_epoch=1000)
    assert plan.num_steps == 12_000
    assert plan.rate(0) == pytest.approx(2e-7)
    assert plan.rate(500) == plan.rate(7999) == pytest.approx(2e-4)
    assert plan.rate(8000) == plan.rate(10_999) == pytest.approx(2e-5)
    assert plan.rate(11_000) == plan.rate(12_000) == pytest.approx(2e-6)


def test_a_length_in_steps_goes_before_epochs() -> None:
    changes = {
        "schedule.steps": 70,
        "schedule.epochs": 3,
        "schedule.warmup_steps": 7,
        "schedule.warmup_epochs": 2,
        "run.eval_every": 1,
        "optim.lr": 1.0,
    }
    recipe = change_recipe(Recipe(), changes | {"run.save_every": 100})
    plan = Plan.of(cast("ResolvedRecipe", recipe), steps_per_epoch=10)
    assert (plan.num_steps, plan.warmup_steps, plan.eval_steps) == (70, 7, 10)
