"""The table and the figure of the road."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from rich.console import Console

from convnext.road import REGIMES, roadmap
from convnext.roadmap_table import RoadmapRow, draw_staircase, print_roadmap, roadmap_rows


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


def test_the_figure_is_drawn_from_its_csv(
    rows: dict[str, list[RoadmapRow]], tmp_path: Path
) -> None:
    draw_staircase(rows["resnet50"], tmp_path / "road", "resnet50")
    assert (tmp_path / "road.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "road.svg").read_text(encoding="utf-8")
    assert "http://" not in svg.replace("http://www.w3.org", "")
    written = list(csv.DictReader((tmp_path / "road.csv").read_text().splitlines()))
    assert [row["rung"] for row in written[:-1]] == [row.rung for row in rows["resnet50"]]
    assert [int(row["macs"]) for row in written[:-1]] == [row.macs for row in rows["resnet50"]]
    assert (written[-1]["rung"], written[-1]["paper_top1"]) == ("Swin-T", "81.3")
