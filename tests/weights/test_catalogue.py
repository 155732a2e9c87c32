"""What `convnext models` lists."""

from __future__ import annotations

import pytest

from convnext.weights.catalogue import catalogue


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
    assert (row.input_size, row.num_classes, row.weights) == (512, 150, "")
    assert round(row.params / 1e6, 2) == 60.24
    assert row.macs == pytest.approx(938.92e9 / 4, rel=1e-4)


def test_detectors_are_counted_as_on_coco() -> None:
    (row,) = catalogue("mask_rcnn_convnext_tiny")
    assert (row.input_size, row.num_classes, row.weights) == (800, 80, "")
    assert round(row.params / 1e6, 2) == 48.10
    assert round(row.macs / 1e9, 2) == 262.11
