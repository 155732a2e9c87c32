"""Recipes: the presets against the paper's numbers, YAML round trips, and clear errors."""

from __future__ import annotations

import pickle
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from convnext.api.settings import full_settings
from convnext.cli.arguments import call_of
from convnext.models.config import FAMILY
from convnext.recipes.recipe import (
    Recipe,
    all_settings,
    as_resolved,
    change_recipe,
    check_ranges,
    flatten,
    read_recipe,
    recipe_from_dict,
    recipe_names,
    recipe_parser,
    to_yaml,
)

TASKS = ("classify", "segment", "detect")
SCRATCH = {
    # name: stochastic depth, epochs, warm-up, EMA, layer scale (paper, Table 5; appendix A.3)
    "imagenet1k_tiny": (0.1, 300, 20, 0.9999, 1e-6),
    "imagenet1k_small": (0.4, 300, 20, 0.9999, 1e-6),
    "imagenet1k_base": (0.5, 300, 20, 0.9999, 1e-6),
    "imagenet1k_large": (0.5, 300, 20, 0.9999, 1e-6),
    "imagenet1k_isotropic_small": (0.1, 300, 50, 0.9999, 0.0),
    "imagenet1k_isotropic_base": (0.2, 300, 50, 0.9999, 0.0),
    "imagenet1k_isotropic_large": (0.5, 300, 50, 0.9999, 1e-6),
    "imagenet22k_tiny": (0.0, 90, 5, 0.0, 1e-6),
    "imagenet22k_small": (0.0, 90, 5, 0.0, 1e-6),
    "imagenet22k_base": (0.1, 90, 5, 0.0, 1e-6),
    "imagenet22k_large": (0.1, 90, 5, 0.0, 1e-6),
    "imagenet22k_xlarge": (0.2, 90, 5, 0.0, 1e-6),
}
FINE_TUNING = {
    # name: weights, stochastic depth, layer decay, EMA, size (paper, Table 6)
    "finetune1k_base_384": ("fb_in1k", 0.8, 0.7, 0.0, 384),
    "finetune1k_large_384": ("fb_in1k", 0.95, 0.7, 0.0, 384),
    **{
        f"finetune22k_{name}_{size}": ("fb_in22k", rate, 0.8, ema, size)
        for name, rate, ema in (
            ("tiny", 0.0, 0.0),
            ("small", 0.1, 0.0),
            ("base", 0.2, 0.0),
            ("large", 0.3, 0.0),
            ("xlarge", 0.4, 0.9999),
        )
        for size in (224, 384)
    },
}


def test_every_shipped_recipe_is_in_a_table() -> None:
    # tests/tasks/segmentation/test_end_to_end.py has those of segmentation.
    own = {name for name in recipe_names() if read_recipe(name).task == "classify"}
    assert own == set(SCRATCH) | set(FINE_TUNING)


@pytest.mark.parametrize("name", SCRATCH)
def test_from_scratch(name: str) -> None:
    recipe = dict(flatten(read_recipe(name)))
    drop_path, epochs, warmup, ema, layer_scale = SCRATCH[name]
    assert recipe["model"] == "convnext_" + name.split("_", 1)[1]
    assert recipe["network.drop_path_rate"] == drop_path
    assert recipe["network.layer_scale_init"] == layer_scale
    assert recipe["schedule.epochs"] == epochs
    assert recipe["schedule.warmup_epochs"] == warmup
    assert recipe["schedule.min_lr"] == 1e-6
    assert recipe["ema.decay"] == ema
    assert recipe["optim.lr"] == 4e-3
    assert recipe["optim.batch_size"] == 4096
    assert recipe["optim.weight_decay"] == 0.05
    assert recipe["optim.betas"] == (0.9, 0.999)
    assert recipe["optim.eps"] == 1e-8
    assert recipe["optim.clip_grad"] == 0.0
    assert recipe["augment.rand_augment"] == "rand-m9-mstd0.5-inc1"
    assert recipe["augment.color_jitter"] == 0.4
    assert (recipe["augment.mixup"], recipe["augment.cutmix"]) == (0.8, 1.0)
    assert (recipe["augment.mix_prob"], recipe["augment.mix_switch_prob"]) == (1.0, 0.5)
    assert recipe["augment.erasing"] == 0.25
    assert recipe["loss.label_smoothing"] == 0.1
    assert recipe["input.crop_pct"] == 0.875
    # A recipe changes how a network is trained, not its architecture.
    assert recipe["network.stem_stride"] == FAMILY[recipe["model"]].stem_stride
    assert recipe["network.layer_scale_init"] == FAMILY[recipe["model"]].layer_scale_init


@pytest.mark.parametrize("name", FINE_TUNING)
def test_fine_tuning(name: str) -> None:
    recipe = dict(flatten(read_recipe(name)))
    weights, drop_path, layer_decay, ema, size = FINE_TUNING[name]
    assert recipe["model"] == "convnext_" + name.split("_")[1]
    assert recipe["weights"] == weights
    assert recipe["network.drop_path_rate"] == drop_path
    assert recipe["network.head_init_scale"] == 0.001
    assert recipe["optim.layer_decay"] == layer_decay
    assert recipe["ema.decay"] == ema
    assert recipe["input.image_size"] == size
    assert recipe["input.crop_pct"] == (1.0 if size == 384 else 0.875)
    assert (recipe["optim.lr"], recipe["optim.batch_size"]) == (5e-5, 512)
    assert recipe["optim.weight_decay"] == 1e-8
    assert (recipe["schedule.epochs"], recipe["schedule.warmup_epochs"]) == (30, 0)
    assert (recipe["augment.mixup"], recipe["augment.cutmix"]) == (0.0, 0.0)
    assert recipe["augment.rand_augment"] == "rand-m9-mstd0.5-inc1"
    assert recipe["augment.erasing"] == 0.25
    assert recipe["loss.label_smoothing"] == 0.1


def test_no_shipped_recipe_leaves_the_result_to_auto() -> None:
    free = {
        "loader.workers",
        "run.precision",
        "run.device",
        "run.devices",
        "run.threads",
        "run.save_every",
    }
    free |= {
        "optim.momentum",  # AdamW has none.
        "loss.name",  # Depends on the kind of labels, as do the next four.
        "loss.pos_weight",
        "loss.gamma",
        "loss.alpha",
        "loss.margin",
        "loader.layout",
        "run.channels_last",
        "run.compile",
        "loader.shard_cache",
        "loader.shard_cache_gb",
    }
    for name in recipe_names():
        recipe = read_recipe(name)
        assert {key for key, value in flatten(recipe) if value == "auto"} <= free, name
        assert not recipe.notes


def test_a_folder_of_data_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder, not a recipe; for data write --data "):
        read_recipe(tmp_path)


def test_yaml_round_trip(tmp_path: Path) -> None:
    recipe = change_recipe(Recipe(), {"optim.lr": 1e-3, "augment.scale": (0.2, 1.0)})
    recipe = replace(recipe, data="some folder: with 'odd' characters")
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert read_recipe(path) == recipe


def test_a_base_may_come_along_and_may_not_be_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: imagenet1k_tiny\noptim: {lr: 1.0e-3}")
    recipe = read_recipe(tmp_path / "mine.yaml")
    assert (recipe.optim.lr, recipe.schedule.epochs) == (1e-3, 300)
    (tmp_path / "a.yaml").write_text("base: b")
    (tmp_path / "b.yaml").write_text("base: a")
    with pytest.raises(ValueError, match="is its own base"):
        read_recipe(tmp_path / "a.yaml")


def test_a_base_is_merged_leaf_by_leaf(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text("optim: {lr: 1.0e-3, batch_size: 8}\nmodel: convnext_pico")
    (tmp_path / "above.yaml").write_text("base: below\noptim: {lr: 2.0e-3}")
    recipe = read_recipe(tmp_path / "above.yaml")
    assert (recipe.optim.lr, recipe.optim.batch_size) == (2e-3, 8)
    assert recipe.model == "convnext_pico"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"optim": {"lrr": 1.0}}, "there is no setting optim.lrr; did you mean 'lr'?"),
        ({"modle": "x"}, "there is no setting modle; did you mean 'model'?"),
        ({"optim": 3}, "optim is a section of settings, not 3"),
        ({"optim": {"lr": "fast"}}, "optim.lr is fast, but must be a number or 'auto'"),
        ({"loader": {"sampling": "fair"}}, "loader.sampling is fair, but must be one of"),
        ({"optim": {"name": "adm"}}, "optim.name is adm, but must be one of 'adamw', 'nadamw',"),
    ],
)
def test_mistakes_are_named(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^r\.yaml: ") as caught:
        recipe_from_dict(tree, where="r.yaml")
    assert message in str(caught.value)


def test_types_of_settings_are_words() -> None:
    for name, setting in all_settings().items():
        unquoted = re.sub(r"'[^']*'", "", setting.shown)
        assert not re.search(r"\b[A-Z][a-z]", unquoted), f"{name}: {setting.shown}"


@pytest.mark.parametrize(
    ("name", "value"),
    [("optim.batch_size", 0), ("ema.decay", 1.0), ("schedule.epochs", -1), ("loader.workers", -1)],
)
def test_numbers_out_of_range_are_named(name: str, value: float) -> None:
    check_ranges(Recipe())
    with pytest.raises(ValueError, match=f"{name} is {value}, but must be"):
        check_ranges(change_recipe(Recipe(), {name: value}))


def test_unknown_recipe_and_broken_yaml(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'imagenet1k_tiny'"):
        read_recipe("imagenet1k_tinny")
    path = tmp_path / "broken.yaml"
    path.write_text("optim: [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"broken.yaml is not valid YAML"):
        read_recipe(path)
    with pytest.raises(ValueError, match=r"no setting 'optim.lrr'; did you mean 'optim.lr'"):
        change_recipe(Recipe(), {"optim.lrr": 1})


def test_each_task_has_the_settings_that_it_reads() -> None:
    found = {task: {n for n, _ in flatten(Recipe(task=task))} for task in TASKS}
    for name, setting in all_settings().items():
        assert {task for task in TASKS if name in found[task]} == set(setting.tasks), name
    assert found["classify"] >= {"augment.mixup", "input.crop_pct", "loss.label_smoothing"}
    assert found["segment"] - found["detect"] == {n for n in found["segment"] if "segment." in n}
    assert found["detect"] - found["segment"] == {n for n in found["detect"] if "detect." in n}
    assert found["segment"] - found["classify"] > {"input.max_size"}


@pytest.mark.parametrize("task", TASKS)
def test_a_recipe_is_of_the_class_of_its_task(task: str) -> None:
    recipe = Recipe(task=task, model="some")
    assert recipe.task == task
    assert type(recipe) is not Recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe == replace(recipe)
    with pytest.raises(ValueError, match="use change_recipe, which keeps"):
        replace(recipe, task="other")
    with pytest.raises(ValueError, match="no task 'segmnt'; did you mean 'segment'"):
        Recipe(task="segmnt")


def test_another_task_takes_what_both_have() -> None:
    recipe = change_recipe(Recipe(), {"optim.lr": 0.5, "input.image_size": 96})
    changed = change_recipe(recipe, {"task": "detect", "detect.crop": 64})
    settings = dict(flatten(changed))
    assert (settings["optim.lr"], settings["input.image_size"]) == (0.5, 96)
    assert settings["detect.crop"] == 64
    with pytest.raises(ValueError, match=r"detection does not use augment\.mixup"):
        change_recipe(change_recipe(recipe, {"augment.mixup": 0.8}), {"task": "detect"})


@pytest.mark.parametrize(
    ("task", "tree", "message"),
    [
        ("segment", {"augment": {"mixup": 0.8}}, "segmentation does not use augment.mixup"),
        ("detect", {"segment": {"crop": 64}}, "detection does not use segment.crop"),
        ("classify", {"detect": {"crop": 64}}, "classification does not use detect.crop"),
        ("detct", {}, "there is no task 'detct'; did you mean 'detect'?"),
    ],
)
def test_settings_of_other_tasks_are_refused(
    task: str, tree: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=r"^mine: ") as caught:
        recipe_from_dict({"task": task} | tree, where="mine")
    assert message in str(caught.value)


def test_what_runs_of_0_1_0_saved_without_reading_it_is_left_out() -> None:
    for folder, count in (("segmentation", 19), ("detection", 19), ("classification", 1)):
        file = Path(__file__).parents[1] / "fixtures" / "v0_1_0" / folder / "recipe.yaml"
        (note,) = read_recipe(file).notes
        settings = "1 setting" if count == 1 else f"{count} settings"
        assert note == f"{file}: ignored {settings} that {folder} does not use"


def test_a_resolved_recipe_has_no_auto_that_a_task_resolves() -> None:
    with pytest.raises(ValueError, match=r"still has auto for model, .*optim.lr.*; resolve it"):
        as_resolved(Recipe())
    names = [name for name, setting in all_settings().items() if setting.resolves]
    assert "run.device" not in names  # The best device of this machine.
    assert "network.norm" not in names  # The default of a timm model.


def test_options_have_help_types_and_bounds() -> None:
    actions = {a.dest: a for a in recipe_parser()._actions}
    assert set(all_settings()) <= set(actions)
    assert actions["network.norm"].choices is None or "auto" in actions["network.norm"].choices
    help_of_rate = "Peak learning rate for the given `batch_size`; it is never rescaled."
    assert actions["optim.lr"].help == help_of_rate
    assert all_settings()["ema.decay"].bounds == (0, 0.9999999)


@pytest.mark.parametrize("given", ["0,4095", "(0, 4095)", "[0,4095]", [0, 4095], (0, 4095)])
def test_lists_need_no_brackets(given: Any) -> None:
    assert full_settings({"input": {"range": given}}) == {"input.range": (0.0, 4095.0)}
    assert full_settings({"input.mean": "auto"}) == {"input.mean": "auto"}


def test_lists_on_the_command_line_need_no_brackets() -> None:
    def given(*words: str) -> dict[str, Any]:
        return call_of("train", ["digits", "--output", "x", *words]).arguments

    for words in (["--input.range", "-3,5"], ["--input.range=-3,5"], ["--input.range", "[-3,5]"]):
        assert given(*words)["input.range"] == (-3.0, 5.0)
    assert given("--run.loggers", "wandb")["run.loggers"] == ("wandb",)
    assert given("--input.std", "auto", "--input.mean", "0.5")["input.mean"] == (0.5,)
    with pytest.raises(ValueError, match="but must be a list of numbers"):
        given("--input.range", "a,b")
