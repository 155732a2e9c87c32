"""The figures of a study are drawn from its table alone."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from convnext.studies.compare import write_results
from convnext.studies.figures import COSTS, scatter, write_figures
from convnext.studies.staircase import staircase
from studies import made_up, write_study


def test_the_csv_alone_gives_the_same_figures(tmp_path: Path) -> None:
    write_study(tmp_path / "study", made_up())
    drawn = write_figures(tmp_path / "study")
    assert set(drawn) == {"staircase", *COSTS}
    (tmp_path / "alone").mkdir()
    table = (tmp_path / "study" / "results.csv").read_bytes()
    (tmp_path / "alone" / "results.csv").write_bytes(table)
    assert write_figures(tmp_path / "alone") == drawn
    for form in ("svg", "png"):
        for name in drawn:
            one, other = (tmp_path / f / "figures" / f"{name}.{form}" for f in ("study", "alone"))
            assert one.read_bytes() == other.read_bytes()


def test_every_network_is_at_its_place() -> None:
    results = made_up(seeds=(0, 1), missing=["fewer_norms"])
    fig = staircase(results)
    ours, macs, papers = fig.axes
    names = {result.entry: result for result in results}
    words = [text.get_text() for text in ours.texts]
    for result in names.values():
        label = result.what + ("" if result.kept else ", not kept")
        assert label in words
    assert words.count("waiting") == 1
    assert [bar.get_width() * 1e6 for bar in macs.patches] == pytest.approx(
        [result.macs for result in names.values()]
    )
    assert [bool(bar.get_hatch()) for bar in macs.patches] == [not r.kept for r in names.values()]
    # The paper's numbers have a separate axis.
    assert "paper" in papers.get_xlabel()
    assert "measured here" in ours.get_xlabel()
    assert ours.get_xlim()[1] < 65 < papers.get_xlim()[0]


def test_a_rival_is_a_line_beside_the_road_and_no_step_of_it() -> None:
    results = made_up(seeds=(0,))
    rival = replace(
        results[-1],
        entry="swin",
        what="timm/swin",
        group="Swin",
        departs_from="",
        runs_as="swin",
        score=60.5,
        paper_top1=None,
    )
    ours = staircase([*results, rival]).axes[0]
    assert "swin" in [text.get_text() for text in ours.texts]
    dashed = [line for line in ours.lines if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [60.5]
    stair = max(ours.lines, key=lambda line: len(line.get_xdata()))
    assert 60.5 not in list(stair.get_xdata())


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
@pytest.mark.parametrize("count", [1, 2, 17])
def test_nothing_is_cut_off(seeds: tuple[int, ...], count: int) -> None:
    entries = [result.entry for result in made_up(seeds=(0,))][-count:]
    fig = staircase([result for result in made_up(seeds) if result.entry in entries])
    fig.draw_without_rendering()
    box = fig.bbox
    for text in [t for axes in fig.axes for t in axes.texts] + fig.texts:
        extent = text.get_window_extent()
        assert box.x0 <= extent.x0
        assert extent.x1 <= box.x1
        assert box.y0 <= extent.y0
        assert extent.y1 <= box.y1


def test_costs_that_were_not_measured_give_no_figure(tmp_path: Path) -> None:
    results = made_up()
    one = [result for result in results if result.entry == "kernel_7"]
    assert scatter(one, COSTS["top1_macs"]) is None
    write_results(tmp_path, made_up(missing=[r.entry for r in results]), {})
    assert set(write_figures(tmp_path)) == {"staircase"}


def test_names_do_not_hide_each_other() -> None:
    fig = scatter(made_up(), COSTS["top1_params"])
    assert fig is not None
    fig.draw_without_rendering()
    boxes = [t.get_window_extent() for t in fig.axes[0].texts if t.get_text()]
    assert len(boxes) == 16
    hidden = sum(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert hidden <= 2


def test_the_svg_needs_no_network(tmp_path: Path) -> None:
    write_study(tmp_path, made_up())
    for svg in write_figures(tmp_path).values():
        assert not re.search(r"https?://(?!www\.w3\.org)", svg)
