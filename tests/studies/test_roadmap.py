"""The networks of a roadmap study or an ablation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from convnext.models.roadmap import REGIMES, roadmap
from convnext.recipes.recipe import Recipe
from convnext.studies.page import network_of
from convnext.studies.roadmap import (
    ablation,
    check_settings,
    choose_rungs,
    parse_decisions,
    parse_value,
    roadmap_entries,
    split_list,
)

LAST = roadmap("mini")[-1]


@pytest.mark.parametrize("regime", REGIMES)
def test_a_walk_has_every_rung_and_trains_equal_networks_once(regime: str) -> None:
    entries = roadmap_entries(regime, choose_rungs(regime))
    assert [entry.name for entry in entries] == [rung.name for rung in roadmap(regime)]
    assert [e.name for e in entries if e.runs_as] == ["enhanced_recipe"]
    assert entries[1].runs_as == "resnet_baseline"
    for entry, rung in zip(entries, roadmap(regime), strict=True):
        assert network_of(entry) == rung.config


def test_a_part_of_the_road() -> None:
    names = [rung.name for rung in choose_rungs("mini", first="kernel_5", last="kernel_9")]
    assert names == ["kernel_5", "kernel_7", "kernel_9"]
    assert [r.name for r in choose_rungs("mini", last="enhanced_recipe")] == [
        "resnet_baseline",
        "enhanced_recipe",
    ]
    chosen = choose_rungs("mini", names=["bn_to_ln", "kernel_7", "stage_ratio"])
    entries = roadmap_entries("mini", chosen)
    # In the order of the roadmap; steps are compared across those left out.
    assert [(e.name, e.departs_from) for e in entries] == [
        ("stage_ratio", ""),
        ("kernel_7", "stage_ratio"),
        ("bn_to_ln", "kernel_7"),
    ]
    alone = roadmap_entries("mini", choose_rungs("mini", names=["enhanced_recipe"]))
    assert (alone[0].runs_as, alone[0].departs_from) == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["kernel_8"]}, "no step 'kernel_8'.*kernel_9"),
        ({"first": "kernel_9", "last": "kernel_5"}, "kernel_9 comes after kernel_5"),
        ({"names": ["kernel_5"], "first": "kernel_5"}, "either --rungs"),
    ],
)
def test_rungs_that_cannot_be_chosen(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_rungs("mini", **options)  # type: ignore[arg-type]


def test_one_decision_varied() -> None:
    entries = ablation("mini", LAST.name, parse_decisions(["kernel_size=3,7,31"], LAST.config))
    # 7 is the step itself.
    assert [e.name for e in entries] == [LAST.name, "kernel_size=3", "kernel_size=31"]
    assert {e.departs_from for e in entries[1:]} == {LAST.name}
    sizes = [config.kernel_size for entry in entries if (config := network_of(entry))]
    assert sizes == [7, 3, 31]


def test_a_grid_and_every_decision_that_a_rung_has() -> None:
    decisions = [
        "norm=batch,layer",
        "act=relu,gelu",
        "depths=[1,1,1,1],[1, 2, 2, 1]",
        "stem=conv_pool",
        "expansion=2,3",
        "layer_scale_init=0,1e-6",
    ]
    entries = ablation("mini", LAST.name, parse_decisions(decisions, LAST.config))
    assert len(entries) == 1 + 2 * 2 * 2 * 1 * 2 * 2
    config = network_of(entries[1])
    assert config is not None
    assert (config.norm, config.act, config.depths) == ("batch", "relu", (1, 1, 1, 1))
    assert (config.stem, config.expansion, config.layer_scale_init) == ("conv_pool", 2, 0)
    assert len({entry.folder_name for entry in entries}) == len(entries)


def test_settings_of_the_recipe_vary_too() -> None:
    entries = ablation("mini", LAST.name, parse_decisions(["optim.lr=1e-3,2e-3"], LAST.config))
    assert [entry.changes for entry in entries[1:]] == [{"optim.lr": 1e-3}, {"optim.lr": 2e-3}]
    check_settings(Recipe(), entries)
    wrong = ablation("mini", LAST.name, parse_decisions(["optim.lr=-1"], LAST.config))
    with pytest.raises(ValueError, match=r"optim\.lr is -1"):
        check_settings(Recipe(), wrong)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ("kernel=3", "no|neither a network nor a recipe has a setting 'kernel'.*kernel_size"),
        ("kernel_size", "FIELD=VALUE"),
        ("kernel_size=", "FIELD=VALUE"),
        ("kernel_size=4", "kernel_size must be odd"),
        ("norm=group", "norm is 'group'"),
    ],
)
def test_decisions_that_cannot_be_varied(decision: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_decisions([decision], LAST.config)


def test_what_the_rung_is_already() -> None:
    with pytest.raises(ValueError, match="has these values already"):
        ablation("mini", LAST.name, parse_decisions(["kernel_size=7"], LAST.config))


def test_lists_and_values() -> None:
    assert split_list("[1,2], [3,(4,5)] ,6") == ["[1,2]", "[3,(4,5)]", "6"]
    assert [parse_value(t) for t in ("1e-6", "3", "[1, 2]", "batch", "true")] == [
        1e-6,
        3,
        [1, 2],
        "batch",
        True,
    ]


def test_what_data_decide_is_never_taken_for_the_rungs_own() -> None:
    # On small images the unchanged step has another stride than its definition.
    entries = ablation("mini", LAST.name, parse_decisions(["stem_stride=2,4"], LAST.config))
    assert [e.name for e in entries[1:]] == ["stem_stride=2", "stem_stride=4"]


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        (["kernel_size=3", "kernel_size=5"], "names kernel_size twice"),
        (["num_classes=3,4"], "num_classes cannot be varied"),
        (["run.seed=1,2"], "use --seeds instead"),
    ],
)
def test_what_cannot_be_varied(decisions: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_decisions(decisions, LAST.config)


def test_a_value_that_is_given_twice_is_one() -> None:
    assert parse_decisions(["optim.lr=1e-3,0.001"], LAST.config) == [("optim.lr", [1e-3])]


def test_two_names_for_one_folder() -> None:
    entries = roadmap_entries("mini", choose_rungs("mini", names=["kernel_5", "kernel_7"]))
    twins = [replace(entries[0], name="a b"), replace(entries[1], name="A_b")]
    with pytest.raises(ValueError, match="two networks are called"):
        check_settings(Recipe(), twins)
