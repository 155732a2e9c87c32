"""Reports and the page of a study in Chromium, on a phone and on a desk, light and dark.

Needs a Chromium that is installed: `pytest -m slow tests/reports/test_in_a_browser.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from killed import train
from shapes import write_shapes
from small_objects import coco_squares

from convnext.cli import main
from convnext.studies.page import write_page
from studies import made_up, write_study

pytestmark = pytest.mark.slow
PAGES = ("classify", "segment", "detect", "study")
# Labels of points in the scatter plots of a study are smaller than others.
MIN_LABEL = {"study": 10.5}

MEASURE = """() => {
  const scrolls = (element) => {
    for (let e = element; e; e = e.parentElement)
      if (["auto", "scroll"].includes(getComputedStyle(e).overflowX)) return true;
    return false;
  };
  const outside = [...document.querySelectorAll("body *")]
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1 && !scrolls(e))
    .map((e) => `${e.tagName} ${(e.textContent || "").slice(0, 40)}`);
  const labels = [...document.querySelectorAll("svg text")]
    .map((e) => {
      const m = e.getScreenCTM();
      return [parseFloat(getComputedStyle(e).fontSize) * Math.hypot(m.a, m.b), e.textContent];
    });
  const broken = [];
  for (const cell of document.querySelectorAll("td, th")) {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    while (texts.nextNode())
      for (const word of texts.currentNode.data.matchAll(/[\\w.]+/g)) {
        const range = document.createRange();
        range.setStart(texts.currentNode, word.index);
        range.setEnd(texts.currentNode, word.index + word[0].length);
        const lines = new Set([...range.getClientRects()].map((r) => Math.round(r.top)));
        if (lines.size > 1) broken.push(word[0]);
      }
  }
  const light = (name) => {
    const value = getComputedStyle(document.body)[name].match(/[\\d.]+/g).slice(0, 3);
    const [r, g, b] = value.map((v) => v / 255)
      .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return {
    tooWide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    outside, labels, broken, ink: light("color"), page: light("backgroundColor"),
  };
}"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a run of every task and of a study, each with its page."""
    root = tmp_path_factory.mktemp("pages")
    write_shapes(root / "shapes")
    coco_squares(root / "squares")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for task, data in (("classify", "digits"), ("segment", "shapes"), ("detect", "squares")):
            assert main([*train(task, data), "--output", task]) == 0
    write_study(root / "study", made_up())
    write_page(root / "study")
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as running:
        # The sandbox of Chromium refuses to run as root, as in containers.
        opened = running.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read(
    pages: Path, browser: Any, name: str, width: int, scheme: str, tmp_path: Path
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((pages / name / "report.html").as_uri())
    found = page.evaluate(MEASURE)
    # For whoever looks at a failure.
    page.screenshot(path=tmp_path / f"{name}-{width}-{scheme}.png", full_page=True)
    context.close()
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert found["tooWide"] == 0
    assert found["outside"] == []
    assert found["broken"] == []
    assert len(found["labels"]) > 20
    assert min(found["labels"])[0] >= MIN_LABEL.get(name, 12) - 0.05, min(found["labels"])
    darker, lighter = sorted((found["ink"], found["page"]))
    assert (lighter + 0.05) / (darker + 0.05) > 7
    assert (found["page"] < found["ink"]) == (scheme == "dark")
