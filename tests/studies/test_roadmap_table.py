"""The table and the figure of the roadmap."""

from __future__ import annotations

import csv
from dataclasses import fields
from pathlib import Path

import pytest
from rich.console import Console

from convnext.models.roadmap import REGIMES, roadmap
from convnext.studies.roadmap_figure import (
    REGIME_FACTS,
    RoadmapRow,
    draw_staircase,
    print_roadmap,
    roadmap_rows,
    staircase,
)


@pytest.fixture(scope="module")
def rows() -> dict[str, list[RoadmapRow]]:
    return {regime: roadmap_rows(regime) for regime in REGIMES}


def printed(rows: list[RoadmapRow], width: int) -> str:
    console = Console(width=width, record=True, quiet=False, file=None)
    with console.capture() as captured:
        print_roadmap(rows, console)
    return captured.get()


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("width", [80, 120])
def test_the_table_names_every_rung_and_its_change(
    rows: dict[str, list[RoadmapRow]], regime: str, width: int
) -> None:
    text = printed(rows[regime], width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    flat = " ".join(text.split())
    for rung, row in zip(roadmap(regime), rows[regime], strict=True):
        assert rung.name in text
        assert f"{row.params / 1e6:.2f}" in text
        assert f"{rung.paper_top1:.2f}" in text
        assert rung.what.split()[0] in flat


def test_both_misprints_are_marked(rows: dict[str, list[RoadmapRow]]) -> None:
    text = printed(rows["resnet50"], 120)
    assert "4.46*" in text
    assert "4.49*" in text
    assert "4.4555" in text
    assert "*" not in printed(rows["resnet200"], 120)


@pytest.mark.parametrize("width", [50, 64])
def test_a_narrow_terminal_keeps_whole_words(rows: dict[str, list[RoadmapRow]], width: int) -> None:
    text = printed(rows["resnet50"], width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert all(row.rung in text for row in rows["resnet50"])
    assert "…" not in text
    assert "4.46*" in text


def test_the_road_goes_on_from_kernel_7(rows: dict[str, list[RoadmapRow]]) -> None:
    left = [row.rung for row in rows["resnet50"] if not row.kept]
    assert left == ["kernel_9", "kernel_11"]


def test_the_figure_is_drawn_from_its_csv(
    rows: dict[str, list[RoadmapRow]], tmp_path: Path
) -> None:
    draw_staircase(rows["resnet50"], tmp_path / "road", "resnet50")
    png = (tmp_path / "road.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    assert len(png) < 120_000
    svg = (tmp_path / "road.svg").read_text(encoding="utf-8")
    assert "http://" not in svg.replace("http://www.w3.org", "")
    written = list(csv.DictReader((tmp_path / "road.csv").read_text().splitlines()))
    assert [row["rung"] for row in written[:-1]] == [row.rung for row in rows["resnet50"]]
    assert [int(row["macs"]) for row in written[:-1]] == [row.macs for row in rows["resnet50"]]
    names = [field.name for field in fields(RoadmapRow)]
    for line, row in zip(written, rows["resnet50"], strict=False):
        values = (getattr(row, name) for name in names)
        assert list(line.values()) == ["" if v is None else str(v) for v in values]
    assert (written[-1]["rung"], written[-1]["paper_top1"]) == ("Swin-T", "81.3")


@pytest.mark.parametrize("regime", REGIMES)
def test_the_staircase_shows_every_rung_at_its_place(
    rows: dict[str, list[RoadmapRow]], regime: str
) -> None:
    fig = staircase(rows[regime], REGIME_FACTS[regime])
    dots, bars = fig.axes
    unit = 1e6 if regime == "mini" else 1e9
    assert [bar.get_width() for bar in bars.patches] == [row.macs / unit for row in rows[regime]]
    assert [bool(bar.get_hatch()) for bar in bars.patches] == [not r.kept for r in rows[regime]]
    words = [text.get_text() for text in dots.texts]
    assert all(f"{row.paper_top1:.2f}" in words for row in rows[regime])
    fig.draw_without_rendering()
    width = fig.bbox.width
    assert all(t.get_window_extent().x0 >= 0 for axes in fig.axes for t in axes.texts)
    assert all(t.get_window_extent().x1 <= width for axes in fig.axes for t in axes.texts)
