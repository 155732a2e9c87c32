"""The list of `convnext models`."""

from __future__ import annotations

import csv
from io import StringIO

import pytest
from rich.console import Console

from convnext.tasks import factory
from convnext.tasks.factory import (
    COSTS,
    catalogue,
    count_cost,
    dense_kind,
    dense_prefix,
    input_size_of,
    list_models,
    print_catalogue,
    task_of_name,
)
from convnext.weights.published import published


def test_every_weight_has_the_cost_of_its_own_head_and_size() -> None:
    rows = {row.weights: row for row in catalogue("convnext_tiny")}
    # reference: family.csv
    assert (rows["fb_in1k"].params, rows["fb_in1k"].macs) == (28_589_128, 4_455_531_264)
    assert rows["fb_in22k"].params == 44_615_857
    assert rows["fb_in22k_ft_in1k_384"].macs == pytest.approx(13.0923e9, rel=1e-5)
    assert rows["fb_in1k"].top1 == 82.1


def test_a_network_without_published_weights_has_a_row() -> None:
    (row,) = catalogue("convnext_isotropic_small")
    assert (row.weights, row.top1) == ("", None)


def test_peers_are_listed_and_counted() -> None:
    (row,) = catalogue("timm/resnet18")
    assert row.params == 11_689_512


def test_segmentors_are_counted_at_their_crop() -> None:
    (row,) = catalogue("upernet_convnext_tiny")
    assert (row.input_size, row.num_classes, row.weights) == (512, 150, "ade20k_1k")
    assert row.scores == {"miou_ms": 46.7, "miou": 46.0}  # reference: ade20k.csv
    assert round(row.params / 1e6, 2) == 60.24
    assert row.macs == pytest.approx(938.92e9 / 4, rel=1e-4)


def test_detectors_are_counted_as_on_coco() -> None:
    (row,) = catalogue("mask_rcnn_convnext_tiny")
    assert (row.input_size, row.num_classes, row.weights) == (800, 80, "coco_1k")
    assert row.scores == {"box_ap": 46.2, "mask_ap": 41.7}  # reference: coco.csv
    assert round(row.params / 1e6, 2) == 48.10
    assert round(row.macs / 1e9, 2) == 262.11


def test_dense_checkpoints_of_the_authors_follow_their_backbones() -> None:
    rows = [row for row in catalogue("convnext_base") if row.scores]
    assert [(row.model, row.weights) for row in rows] == [
        ("upernet_convnext_base", "ade20k_1k"),
        ("upernet_convnext_base", "ade20k_22k"),
        ("cascade_mask_rcnn_convnext_base", "coco_1k"),
        ("cascade_mask_rcnn_convnext_base", "coco_22k"),
    ]
    assert rows[1].url.endswith("/ade20k/upernet_convnext_base_22k_640x640.pth")
    assert not any(row.scores for row in catalogue("convnext_atto"))


def test_the_scores_of_a_dense_checkpoint_are_printed() -> None:
    console = Console(width=200, record=True, quiet=False, file=StringIO())
    print_catalogue(catalogue("mask_rcnn_convnext_tiny"), console)
    assert "46.2 / 41.7" in console.export_text()


PATTERNS = ("*", "upernet_*", "mask_rcnn_*", "cascade_mask_rcnn_*")


def listed() -> list[tuple[str, int, int, int]]:
    """Return name, height, width and classes of every row that is listed."""
    found = []
    for name in [name for pattern in PATTERNS for name in list_models(pattern)]:
        kind = dense_kind(name)
        num_classes = 1000 if kind is None else int(kind.tables.defaults["num_classes"])
        default = (*input_size_of(name), num_classes)
        own = {(w.input_size, w.input_size, w.num_classes) for w in published(name)}
        found += [(name, *key) for key in sorted(own or {default})]
    return found


def test_the_prefixes_of_the_recipes_are_those_of_the_networks() -> None:
    for name in ("upernet_x", "mask_rcnn_x", "cascade_mask_rcnn_x", "x"):
        kind = dense_kind(name)
        assert dense_prefix(name) == (None if kind is None else kind.tables.prefix)
        assert task_of_name(name) == ("classify" if kind is None else kind.task)


def stored() -> list[list[str]]:
    with COSTS.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_listing_builds_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, **_: object) -> None:
        raise AssertionError(f"{name} is built")

    monkeypatch.setattr(factory, "create_model", refuse)
    rows = [row for pattern in PATTERNS for row in catalogue(pattern)]
    assert len(rows) > 250
    assert all(row.params and row.macs for row in rows)
    assert [tuple(row[:4]) for row in stored()[1:]] == [tuple(map(str, key)) for key in listed()]


@pytest.mark.slow
def test_the_stored_costs_are_those_of_the_networks() -> None:
    """To change them on purpose, write the rows into `costs.csv`."""
    counted = [
        [name, *map(str, (*key, *count_cost(name, key[:2], key[2])))] for name, *key in listed()
    ]
    assert stored()[1:] == counted
