"""The page of a study: complete, safe, and consistent with the table."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from convnext.models.roadmap import roadmap
from convnext.studies.page import reading, write_page
from convnext.studies.statistics import measured_on, summarize
from studies import CONDITIONS, made_up, write_study


class Reader(HTMLParser):
    """Collects ids and links."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("href", "src", "xlink:href") and value:
                self.links.append(value)


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_no_link_is_broken_and_nothing_comes_from_elsewhere(
    tmp_path: Path, seeds: tuple[int, ...]
) -> None:
    write_study(tmp_path, made_up(seeds, missing=["bn_to_ln"]))
    page = write_page(tmp_path).read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert len(set(reader.ids)) == len(reader.ids)
    for link in reader.links:
        if link.startswith("#"):
            assert link[1:] in reader.ids
        else:
            assert (tmp_path / link).is_file()
    # 16 networks, of which the first two share a run; seed 0 has a report.
    assert sum(link.endswith("report.html") for link in reader.links) == 16
    assert not re.search(r"https?://(?!www\.w3\.org)", page)
    assert len(page) < 2_000_000


def test_the_story_is_told_in_order(tmp_path: Path) -> None:
    write_study(tmp_path, made_up())
    page = write_page(tmp_path).read_text(encoding="utf-8")
    places = [page.index(f"<h2>{rung.what}") for rung in roadmap("mini")]
    assert places == sorted(places)
    assert page.count('class="block"') == 17
    assert "<code>kernel_size</code> 3 → 5" in page
    assert "one run counts for both" in page
    assert "paper (ImageNet-1K)" in page


def test_scores_say_what_they_were_measured_on(tmp_path: Path) -> None:
    results = made_up()
    write_study(tmp_path, results)
    page = write_page(tmp_path).read_text(encoding="utf-8")
    sentence = f"training&#39;s own validation: {CONDITIONS}."
    assert page.count(sentence) == 1
    assert page.count(CONDITIONS) == 2  # The figure says it too.
    first = replace(results[0], conditions=CONDITIONS.replace("fp32", "bf16"))
    older = replace(results[3], conditions="")
    assert measured_on([first, *results[6:9], older]) == [
        "Measured by training's own validation: 360 images, split: val, in bf16, eager "
        f"({first.entry}).",
        f"Measured by training's own validation: {CONDITIONS} ({results[6].entry}).",
        "Measured by training's own validation: precision and backend were not recorded "
        f"({older.entry}).",
    ]


def test_names_are_text(tmp_path: Path) -> None:
    write_study(tmp_path, made_up(), title="<script>alert(1)</script>")
    page = write_page(tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "--data &lt;b&gt;" in page


def test_a_study_without_a_finished_run_has_a_page(tmp_path: Path) -> None:
    every = [rung.name for rung in roadmap("mini")]
    write_study(tmp_path, made_up(missing=every))
    assert "No run has finished yet" in write_page(tmp_path).read_text(encoding="utf-8")


def test_the_reading_says_what_the_numbers_allow() -> None:
    said = " ".join(reading(summarize(made_up())))
    assert "Better beyond the variation over seeds: wider" in said
    assert "No difference seen: " in said
    assert "Highest: " in said
    one = " ".join(reading(summarize(made_up((0,)))))
    assert "With one seed" in one
    assert "beyond the variation" not in one


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the folder of a study"):
        write_page(tmp_path)
