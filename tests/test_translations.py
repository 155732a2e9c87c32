"""The Korean README and quickstart have the same commands and numbers as the English ones."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest
from snippets import ROOT, Snippet, snippets

PAGES = ["README.md", "docs/quickstart.md"]


def translated(page: str) -> Path:
    return ROOT / page.replace(".md", ".ko.md")


def without_comments(snippet: Snippet) -> list[str]:
    if snippet.language != "python":
        return [re.sub(r"\s+#.*", "", line) for line in snippet.code.splitlines()]
    tokens = tokenize.generate_tokens(io.StringIO(snippet.code).readline)
    return [token.string for token in tokens if token.type != tokenize.COMMENT]


def numbers(page: Path) -> list[str]:
    """Return the numbers above nine; smaller ones may be spelled out in either language."""
    not_prose = re.compile(r"```.*?```|`[^`]*`|\]\([^)]*\)", re.DOTALL)
    prose = not_prose.sub("", page.read_text(encoding="utf-8"))
    return sorted(re.findall(r"(?<![A-Za-z\d])\d[\d,.]*\d", prose))


@pytest.mark.parametrize("page", PAGES)
def test_code_is_the_same(page: str) -> None:
    one, other = snippets(ROOT / page), snippets(translated(page))
    assert one
    assert [s.language for s in one] == [s.language for s in other]
    for english, korean in zip(one, other, strict=True):
        assert without_comments(english) == without_comments(korean)
        assert english.reason == korean.reason


@pytest.mark.parametrize("page", PAGES)
def test_numbers_and_names_are_the_same(page: str) -> None:
    one, other = ROOT / page, translated(page)
    assert numbers(one) == numbers(other)
    names = [set(re.findall(r"`[^`\n]+`", p.read_text("utf-8"))) for p in (one, other)]
    assert names[0] == names[1]


@pytest.mark.parametrize("page", PAGES)
def test_links_are_the_same(page: str) -> None:
    def targets(path: Path) -> set[str]:
        found = set(re.findall(r"\]\(([^)]+)\)", path.read_text("utf-8")))
        return {target.replace(".ko.md", ".md") for target in found}

    own = {page, translated(page).name.replace(".ko.md", ".md")}
    assert targets(ROOT / page) - own == targets(translated(page)) - own
