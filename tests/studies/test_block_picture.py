"""The picture of a block matches its rows."""

from __future__ import annotations

import re

import pytest

from convnext.models.blocks import block_rows
from convnext.models.roadmap import REGIMES, Rung, roadmap
from convnext.studies.page import block_svg, changed_fields

RUNGS = [(regime, rung) for regime in REGIMES for rung in roadmap(regime)]


@pytest.mark.parametrize(("regime", "rung"), RUNGS, ids=[f"{r}-{x.name}" for r, x in RUNGS])
def test_the_rows_in_their_order(regime: str, rung: Rung) -> None:
    config = rung.config
    svg = block_svg(config)
    words = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    for row in block_rows(config, in_dim=config.stage_dims[0], dim=config.dims[0]):
        side = f"{row.kernel_size}x{row.kernel_size}"
        label = f"{side}, {row.in_dim} → {row.out_dim}"
        if row.groups > 1:
            label = f"depthwise {side}, {row.out_dim}"
        place = words.index(label)
        assert words[place + 1].split() == ["norm"] * row.norm + ["act"] * row.act
        words = words[place + 2 :]
    assert ("layer scale" in svg) == (config.layer_scale_init > 0)
    assert 'class="changed"' not in svg


def test_what_changed_is_marked() -> None:
    rungs = {rung.name: rung.config for rung in roadmap("resnet50")}
    svg = block_svg(rungs["kernel_7"], rungs["kernel_5"])
    assert svg.count('<g class="changed">') == 1
    assert changed_fields(rungs["kernel_7"], rungs["kernel_5"]) == [("kernel_size", "5", "7")]
    # All rows except the last move when the spatial convolution moves up.
    moved = block_svg(rungs["move_up_depthwise"], rungs["inverting_dimensions"])
    assert moved.count('<g class="changed">') == 2
    last = block_svg(rungs["separate_downsampling"], rungs["bn_to_ln"])
    assert 'class="tag changed"' in last
