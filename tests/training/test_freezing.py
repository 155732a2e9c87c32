"""Frozen parts: what does not train, and exact resumption around the epoch that unfreezes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cli_runs import TWENTY, Runs, assert_close, state
from torch import nn
from toy import ToyTask, assert_same_states, run, toy_model, weights

from convnext import create_model
from convnext.recipes.recipe import Recipe, change_recipe
from convnext.recipes.resolve import check_freezing, warn_of_freezing
from convnext.recipes.schema import OptimRecipe
from convnext.training.freezing import Frozen, frozen_names
from convnext.training.optim import group_rows, group_table


def meta_model(name: str) -> nn.Module:
    with torch.device("meta"):
        return create_model(name)


@pytest.mark.parametrize(
    ("name", "freeze", "first_trained"),
    [
        ("convnext_tiny", "backbone", "head.fc.weight"),
        ("convnext_tiny", "stages:1", "downsample.1.norm.weight"),
        ("convnext_tiny", "stages:4", "head.norm.weight"),
        ("roadmap/resnet50/resnet_baseline", "stages:2", "stages.2.0.pwconv1.weight"),
        ("convnext_isotropic_small", "stages:1", "head.norm.weight"),
        ("timm/resnet18", "backbone", "network.fc.weight"),
        ("timm/resnet18", "stages:3", "network.layer4.0.conv1.weight"),
        ("timm/swin_tiny_patch4_window7_224", "stages:2", "network.layers.2."),
        ("timm/vit_tiny_patch16_224", "backbone", "network.head.weight"),
        ("upernet_convnext_atto", "backbone", "output_norms"),
        ("upernet_convnext_atto", "stages:2", "backbone.downsample.2.norm.weight"),
        ("mask_rcnn_timm/resnet18", "backbone", "fpn."),
    ],
)
def test_what_is_frozen(name: str, freeze: str, first_trained: str) -> None:
    model = meta_model(name)
    names = [n for n, _ in model.named_parameters()]
    frozen = frozen_names(model, freeze)
    trained = [n for n in names if n not in frozen]
    assert frozen <= set(names)
    assert trained[0].startswith(first_trained)
    if name.startswith("timm/"):  # The order of definition is that of the layers.
        assert frozen == set(names[: len(frozen)])
    elif freeze.startswith("stages"):
        kept = [n.split("stages.")[1][0] for n in frozen if "stages." in n]
        assert sorted(set(kept)) == [str(s) for s in range(int(freeze[-1]))]
    elif name.startswith(("upernet", "mask_rcnn")):
        assert frozen == {n for n in names if n.startswith("backbone.")}
    else:
        assert set(trained) == {"head.fc.weight", "head.fc.bias"}


@pytest.mark.parametrize(
    ("name", "freeze", "message"),
    [
        ("convnext_tiny", "stages:5", r"stages 1 to 4, so --freeze stages:5 is one of stages:1 to"),
        ("timm/vit_tiny_patch16_224", "stages:2", r"its parts are patch_embed, .*blocks, .*head;"),
        ("convnext_tiny", "stages:0", "must be none, backbone, or stages:K such as stages:2"),
        ("convnext_tiny", "stem", "must be none, backbone, or stages:K such as stages:2"),
    ],
)
def test_what_cannot_be_frozen_is_named(name: str, freeze: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frozen_names(meta_model(name), freeze)


def test_the_parts_of_other_networks_are_not_known() -> None:
    with pytest.raises(ValueError, match=r"Linear is not a network .* leave out --freeze"):
        frozen_names(nn.Linear(2, 2), "backbone")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.unfreeze_at": 2.0}, "nothing is frozen; add --freeze backbone"),
        (
            {"optim.freeze": "backbone", "optim.unfreeze_at": 4.0, "schedule.epochs": 4},
            "unfreeze_at is 4, but the run has 4 epochs",
        ),
        ({"optim.freeze": "stages:1", "run.strategy": "fsdp"}, "use ddp"),
    ],
)
def test_settings_that_contradict_freezing_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_freezing(change_recipe(Recipe(), changes))


def test_frozen_random_weights_are_warned_of() -> None:
    frozen = change_recipe(Recipe(), {"optim.freeze": "backbone"})
    assert "keeps random weights" in warn_of_freezing(frozen)[0]
    assert warn_of_freezing(change_recipe(frozen, {"weights": "fb_in1k"})) == ()
    assert warn_of_freezing(change_recipe(frozen, {"model": "given/Own"})) == ()


def test_frozen_norms_and_drop_path_do_not_train() -> None:
    model = toy_model(norm="batch")
    frozen = Frozen(model, "stages:3")
    frozen.hold()
    model.train()
    frozen.eval()
    for name, module in model.named_modules():
        if name.startswith(("stem.", "downsample.2.", "stages.2.")):
            assert not module.training, name
        elif name.startswith(("downsample.3.", "stages.3.", "head")):
            assert module.training, name
    frozen.hold(frozen=False)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("freeze", ["backbone", "stages:2"])
def test_frozen_parts_keep_every_bit(tmp_path: Path, freeze: str) -> None:
    # Batch norms, whose statistics would change, and decay, which would shrink the weights.
    changes = {"optim__freeze": freeze, "optim__lr": 2e-2, "schedule__epochs": 2}
    run(tmp_path, ToyTask(), norm="batch", **changes)
    first = toy_model(norm="batch").state_dict()
    last = weights(tmp_path / "checkpoints/step-00000006/model.safetensors")
    rest = weights(tmp_path / "checkpoints/step-00000006/state.safetensors")
    kept = {name for name in first if torch.equal(first[name], last[name])}
    frozen = frozen_names(toy_model(norm="batch"), freeze)
    norms = {n for n in first if "running" in n or "num_batches" in n}
    of_frozen = {n for n in norms if f"{n.rpartition('.')[0]}.weight" in frozen}
    assert kept >= frozen | of_frozen
    assert not kept & (norms - of_frozen)
    assert all(torch.equal(rest[f"ema.{n}"], first[n]) for n in frozen)
    moments = {n.split(".", 2)[2] for n in rest if n.startswith("optim.exp_avg.")}
    assert moments == {n for n, _ in toy_model(norm="batch").named_parameters()} - frozen


@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.parametrize("stop_at", [4, 6, 7, 10])
def test_resume_is_exact_around_unfreezing(tmp_path: Path, name: str, stop_at: int) -> None:
    # Three steps an epoch: the states of the steps 3 and 6 are from before.
    changes = {"optim__name": name, "optim__freeze": "stages:3", "optim__unfreeze_at": 2.0}
    run(tmp_path / "whole", ToyTask(), norm="batch", **changes)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", ToyTask(stop_at=stop_at), norm="batch", **changes)
    run(tmp_path / "parts", ToyTask(), norm="batch", resume=True, **changes)
    assert_same_states(tmp_path / "whole", tmp_path / "parts")
    first = toy_model(norm="batch").state_dict()
    last = weights(tmp_path / "whole/checkpoints/step-00000012/model.safetensors")
    assert not any(
        torch.equal(first[n], last[n]) for n in frozen_names(toy_model(norm="batch"), "stages:3")
    )


def test_a_run_that_returns_to_before_unfreezing_freezes_again(tmp_path: Path) -> None:
    changes = {"optim__freeze": "backbone", "optim__unfreeze_at": 1.5, "schedule__epochs": 3}
    # The loss of step 6 is not a number: the run returns to step 3, where it was frozen.
    run(tmp_path, ToyTask(nan_at=5, nans=1), run__on_nan="rollback", **changes)
    rest = weights(tmp_path / "checkpoints/step-00000006/state.safetensors")
    names = [n for n in rest if n.startswith("optim.step.")]
    assert {n: float(rest[n]) for n in names if "head.fc" not in n}.keys()
    assert {float(rest[n]) for n in names if "head.fc" not in n} == {2.0}
    assert {float(rest[n]) for n in names if "head.fc" in n} == {6.0}


def test_two_processes_unfreeze_as_one(runs: Runs, tmp_path: Path) -> None:
    frozen = (*TWENTY, "--freeze", "stages:3", "--unfreeze-at", "0.5")
    printed = runs.finish(tmp_path / "one", *frozen)
    assert "keeps random weights" in printed
    assert "to epoch 0.5" in printed
    assert "step 10: the frozen parts train from here on" in printed
    runs.finish(tmp_path / "two", *frozen, "--run.devices", "2")
    assert_close(state(tmp_path / "one"), state(tmp_path / "two"))


def test_the_table_says_what_is_frozen() -> None:
    model = create_model("convnext_atto", num_classes=2)
    recipe = OptimRecipe(lr=1e-3, weight_decay=0.05, layer_decay=1.0, freeze="backbone")
    frozen = frozen_names(model, "backbone")
    rows = group_rows(model, recipe, frozen)
    assert [row["frozen"] for row in rows] == ["", "to the end"] * 2
    assert sum(r["params"] for r in rows if not r["frozen"]) == model.num_features * 2 + 2
    shown = list(group_table(model, recipe, frozen).columns[0].cells)
    assert [text.partition("\n")[2] for text in shown] == ["", "frozen to the end"] * 2  # type: ignore[union-attr]
