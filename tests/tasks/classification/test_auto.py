"""The choices and warnings of `auto`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from convnext.data.preprocessing import Preprocessing
from convnext.data.ranges import BandSample
from convnext.recipes.recipe import Recipe, change_recipe, flatten
from convnext.recipes.resolve import Choice, ResolveContext
from convnext.tasks.classification.data import DataFacts
from convnext.tasks.classification.task import ClassificationTask, progressive_sizes

PHOTOS = DataFacts(
    num_train=1500,
    num_val=400,
    num_classes=6,
    class_counts=(290, 300, 290, 300, 230, 90),
    image_height=256,
    image_width=192,
    grayscale=False,
)
GLYPHS = replace(PHOTOS, image_height=8, image_width=8, grayscale=True, num_classes=10)
IMAGENET = replace(
    PHOTOS, num_train=1_281_167, num_classes=1000, class_counts=(1300,) * 1000, image_height=400,
    image_width=500,
)  # fmt: skip
CPU = ResolveContext(device="cpu", has_bf16=False)
GPU = ResolveContext(device="cuda", has_bf16=True)


def resolved(
    facts: DataFacts, where: ResolveContext = CPU, **changes: Any
) -> tuple[Recipe, dict[str, Any], tuple[Choice, ...]]:
    recipe = change_recipe(Recipe(), {k.replace("__", "."): v for k, v in changes.items()})
    recipe, choices = ClassificationTask.resolve(recipe, facts, where)
    return recipe, dict(flatten(recipe)), choices


@pytest.mark.parametrize("facts", [PHOTOS, GLYPHS, IMAGENET])
@pytest.mark.parametrize("where", [CPU, GPU])
@pytest.mark.parametrize("weights", ["none", "fb_in1k"])
def test_nothing_is_left_to_auto(facts: DataFacts, where: ResolveContext, weights: str) -> None:
    recipe, settings, choices = resolved(facts, where, weights=weights)
    assert [k for k, v in settings.items() if v == "auto"] == [
        "optim.momentum",
        "run.device",
        "run.devices",
        "run.threads",
        "run.channels_last",
        "run.compile",
        "loss.pos_weight",  # Only for several labels, as are the next three.
        "loss.gamma",
        "loss.alpha",
        "loss.margin",
    ]
    assert all(choice.reason and settings[choice.setting] == choice.value for choice in choices)
    assert ClassificationTask.warnings(recipe, facts) == ()


def test_what_the_user_sets_stays() -> None:
    _, settings, choices = resolved(PHOTOS, optim__lr=0.123, schedule__epochs=7)
    assert (settings["optim.lr"], settings["schedule.epochs"]) == (0.123, 7)
    assert not {"optim.lr", "schedule.epochs"} & {choice.setting for choice in choices}


def test_a_range_of_the_user_is_printed_beside_the_measured_one() -> None:
    facts = replace(PHOTOS, pixel_range=(1.0, 4093.0))
    _, settings, choices = resolved(facts, input__range=(0.0, 255.0))
    assert settings["input.range"] == (0.0, 255.0)
    (choice,) = [choice for choice in choices if choice.setting == "input.range"]
    assert choice.value == (0.0, 255.0)
    assert "training images: 1, 4,093" in choice.reason
    _, _, choices = resolved(facts, input__range=facts.pixel_range)
    assert "input.range" not in {choice.setting for choice in choices}


def test_a_range_of_the_user_for_bands_is_printed_beside_the_measured_ones() -> None:
    values = np.array([[0, 100, 0], [4000, 200, 9000]], np.float32)
    sample = BandSample(values=values, num_images=1, counts={3: "a.tif"}, is_wide=True)
    _, settings, choices = resolved(replace(PHOTOS, bands=sample), input__range=(0.0, 255.0))
    assert settings["input.range"] == (0.0, 255.0)
    (choice,) = [choice for choice in choices if choice.setting == "input.range"]
    assert choice.value == (0.0, 255.0)
    assert "each band of the training images: " in choice.reason
    measured = sample.ranges()
    _, settings, choices = resolved(replace(PHOTOS, bands=sample))
    assert settings["input.range"] == measured
    _, _, choices = resolved(replace(PHOTOS, bands=sample), input__range=measured)
    assert "input.range" not in {choice.setting for choice in choices}


def test_a_resolved_recipe_is_not_explained_again() -> None:
    facts = replace(PHOTOS, pixel_range=(1.0, 4093.0))
    gray = Preprocessing(image_size=32, crop_pct=1.0, in_chans=1, mean=(0.5,), std=(0.2,))
    where = replace(CPU, preprocessing=gray)
    changes = {"input__range": (0.0, 255.0), "input__in_chans": 3, "weights": "a.safetensors"}
    recipe, _, choices = resolved(facts, where, **changes)
    assert {"input.range", "weights"} <= {choice.setting for choice in choices}
    again, choices = ClassificationTask.resolve(recipe, facts, where)
    assert (again, choices) == (recipe, ())


def test_large_data_takes_the_recipe_of_the_paper() -> None:
    from convnext.recipes.recipe import read_recipe

    _, settings, _ = resolved(IMAGENET, GPU)
    paper = dict(flatten(read_recipe("imagenet1k_tiny")))
    free = {"data", "loader.workers", "loader.cache", "run.precision", "run.eval_every",
            "optim.micro_batch_size", "run.save_every", "loss.name"}  # fmt: skip
    different = {k: (settings[k], paper[k]) for k in paper if settings[k] != paper[k]}
    assert set(different) <= free, different


def test_small_images_keep_their_detail() -> None:
    _, settings, _ = resolved(GLYPHS)
    assert settings["input.image_size"] <= 32
    assert settings["network.stem_stride"] == 1
    assert settings["input.in_chans"] == 1
    assert settings["augment.hflip"] == 0.0


def test_small_data_from_scratch() -> None:
    _, settings, _ = resolved(PHOTOS)
    assert (settings["network.norm"], settings["network.stem"]) == ("batch", "conv_pool")
    assert settings["network.init"] == "fan_in"
    assert settings["network.layer_scale_init"] == 0.0
    assert settings["optim.batch_size"] <= 64
    assert settings["augment.mixup"] == 0.0
    steps = settings["schedule.epochs"] * 1500 // settings["optim.batch_size"]
    assert 1 / (1 - settings["ema.decay"]) < steps / 4


def test_fine_tuning_is_gentle() -> None:
    _, scratch, _ = resolved(PHOTOS)
    known = Preprocessing(image_size=384, crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    where = replace(CPU, preprocessing=known)
    _, tuned, _ = resolved(PHOTOS, where, weights="fb_in22k_ft_in1k_384")
    assert tuned["optim.lr"] < scratch["optim.lr"] / 4
    assert tuned["optim.layer_decay"] < 1
    assert tuned["network.layer_scale_init"] == 1e-6
    assert (tuned["input.image_size"], tuned["input.crop_pct"]) == (384, 1.0)
    assert tuned["input.mean"] == (0.5, 0.5, 0.5)
    assert tuned["schedule.epochs"] < scratch["schedule.epochs"]


@pytest.mark.parametrize(
    ("size", "stride", "phases"),
    [
        (224, 32, [(0, 40, 112), (40, 80, 144), (80, 100, 224)]),
        (96, 32, [(0, 80, 64), (80, 100, 96)]),  # Not 48 pixels, of which 1 x 1 would be left.
        (96, 8, [(0, 40, 48), (40, 80, 64), (80, 100, 96)]),
        (64, 32, [(0, 100, 64)]),
        (32, 32, [(0, 100, 32)]),
    ],
)
def test_progressive_sizes(size: int, stride: int, phases: list[tuple[int, int, int]]) -> None:
    assert list(progressive_sizes(size, 100, stride=stride)) == phases


@pytest.mark.parametrize(
    ("name", "lr", "decay"), [("lion", 2e-4, 0.5), ("sgd", 0.04, 2.5e-4), ("lamb", 5e-3, 0.02)]
)
def test_rates_are_scaled_to_the_optimizer(name: str, lr: float, decay: float) -> None:
    recipe, settings, choices = resolved(PHOTOS, optim__name=name)
    assert (settings["optim.lr"], settings["optim.weight_decay"]) == (lr, decay)
    reason = next(choice.reason for choice in choices if choice.setting == "optim.lr")
    assert reason.endswith(f"for {name} instead of adamw")
    assert ClassificationTask.warnings(recipe, PHOTOS) == ()
    high = replace(recipe, optim=replace(recipe.optim, lr=3 * lr))
    assert ClassificationTask.warnings(high, PHOTOS)[0].endswith(f"Try --optim.lr {lr:g}")
    _, given, _ = resolved(PHOTOS, optim__name=name, optim__lr=0.1, optim__weight_decay=0.2)
    assert (given["optim.lr"], given["optim.weight_decay"]) == (0.1, 0.2)


def test_settings_that_an_optimizer_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"sgd has no betas, .* \(sgd has optim.momentum\)"):
        resolved(PHOTOS, optim__name="sgd", optim__betas=(0.9, 0.99))
    with pytest.raises(ValueError, match=r"adamw has no momentum, but optim.momentum is 0.9"):
        resolved(PHOTOS, optim__momentum=0.9)


def test_peers_keep_what_is_theirs() -> None:
    _, settings, _ = resolved(PHOTOS, model="timm/resnet18")
    network = {k: v for k, v in settings.items() if k.startswith("network.")}
    assert network.pop("network.changes") == {}
    assert set(network.values()) == {"auto"}


def test_a_rung_stays_the_rung() -> None:
    _, settings, _ = resolved(PHOTOS, model="roadmap/resnet50/bn_to_ln")
    assert settings["network.norm"] == settings["network.stem"] == "auto"
    assert settings["network.layer_scale_init"] == "auto"
    _, small, _ = resolved(GLYPHS, model="roadmap/resnet50/bn_to_ln")
    assert (small["network.stem_stride"], small["network.init"]) == (1, "fan_in")
    for regime, rate in (("resnet50", 0.1), ("resnet200", 0.5)):
        _, large, _ = resolved(IMAGENET, model=f"roadmap/{regime}/bn_to_ln")
        assert (large["network.drop_path_rate"], large["network.init"]) == (rate, "auto")


def test_a_rung_is_tuned_with_the_stem_of_its_weights() -> None:
    where = replace(CPU, weights_network={"stem_stride": 1, "stem": "conv_pool", "norm": "batch"})
    _, settings, _ = resolved(PHOTOS, where, model="roadmap/mini/kernel_7", weights="somewhere")
    assert (settings["network.stem_stride"], settings["network.stem"]) == (1, "conv_pool")


@pytest.mark.parametrize("n", [1, 7, 30, 33, 64, 1000, 60_000])
def test_any_number_of_images_gives_a_run(n: int) -> None:
    recipe, settings, _ = resolved(replace(PHOTOS, num_train=n, class_counts=(n,)))
    assert settings["optim.batch_size"] <= n
    parts = -(-settings["optim.batch_size"] // settings["optim.micro_batch_size"])
    assert settings["optim.batch_size"] > (parts - 1) * settings["optim.micro_batch_size"]
    assert settings["schedule.warmup_epochs"] < settings["schedule.epochs"]
    assert recipe.optim.lr != "auto"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ema__decay": 0.9999}, "spans 10,000 steps"),
        ({"input__image_size": 32, "network__stem_stride": 4}, "Try --network.stem_stride 2"),
        ({"optim__lr": 4e-3, "optim__batch_size": 64}, "Try --optim.lr 0.0028"),
        (
            {"optim__batch_size": 2000, "optim__lr": 1e-3, "ema__decay": 0.0},
            "exceeds the number of images",
        ),
        ({"network__layer_scale_init": 1e-6}, "Try --network.layer_scale_init 0"),
        ({"schedule__epochs": 3, "schedule__warmup_epochs": 5}, "warm-up lasts as long"),
    ],
)
def test_settings_that_cannot_work_are_named(changes: dict[str, Any], message: str) -> None:
    recipe, _, _ = resolved(PHOTOS, **changes)
    found = ClassificationTask.warnings(recipe, PHOTOS)
    assert len(found) == 1, found
    assert message in found[0]


def test_the_stem_of_a_foreign_network_is_not_known() -> None:
    small = {"input__image_size": 32, "network__stem_stride": 4}
    for model, num_warnings in (("convnext_atto", 1), ("timm/resnet18", 0), ("given/Own", 0)):
        recipe, _, _ = resolved(PHOTOS, **small)
        assert (
            len(ClassificationTask.warnings(replace(recipe, model=model), PHOTOS)) == num_warnings
        )


def test_imbalance_is_named() -> None:
    facts = replace(PHOTOS, class_counts=(1400, 60))
    recipe, _, _ = resolved(facts)
    assert any(
        "--primary balanced_accuracy" in warning
        for warning in ClassificationTask.warnings(recipe, facts)
    )
    recipe, _, _ = resolved(facts, loader__sampling="balanced")
    assert ClassificationTask.warnings(recipe, facts) == ()
    assert recipe.loss.balance == "sampler"


@pytest.mark.parametrize(
    ("primary", "counts", "balance", "reason"),
    [
        (
            "top1",
            (1400, 60),
            "none",
            "also of large classes; the largest class has 2",
        ),
        ("top1", (750, 750), "none", "top-1 counts every image"),
        (
            "balanced_accuracy",
            (1400, 60),
            "logit",
            "classes equally; the largest class has 2",
        ),
        ("macro_f1", (800, 700), "none", "about equally many images"),
    ],
)
def test_auto_balances_for_metrics_of_classes(
    primary: str, counts: tuple[int, ...], balance: str, reason: str
) -> None:
    facts = replace(PHOTOS, class_counts=counts)
    _, settings, choices = resolved(facts, run__primary=primary)
    assert settings["loss.balance"] == balance
    assert any(c.setting == "loss.balance" and reason in c.reason for c in choices)
    _, settings, _ = resolved(facts, run__primary=primary, loss__balance="loss")
    assert settings["loss.balance"] == "loss"


def test_classes_are_not_balanced_twice() -> None:
    with pytest.raises(ValueError, match=r"is loss.balance sampler, .* leave one of them out"):
        resolved(PHOTOS, loader__sampling="balanced", loss__balance="logit")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("multi", {"run__primary": "top1"}, "have several labels: use one of map, macro_f1"),
        ("single", {"run__primary": "map"}, "have one label each: use one of top1, balanced"),
        ("multi", {"loss__balance": "logit"}, "weigh rare labels with --loss.pos_weight"),
    ],
)
def test_metrics_and_balance_fit_the_labels(
    kind: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(replace(PHOTOS, kind=kind), **changes)
    _, settings, _ = resolved(replace(PHOTOS, kind="multi"), run__primary="macro_f1")
    assert (settings["run.primary"], settings["loss.balance"]) == ("macro_f1", "none")
