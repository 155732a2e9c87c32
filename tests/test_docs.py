"""The documentation builds strictly, is complete, and loads nothing from the network."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest

import convnext
import convnext.api
from convnext.api.settings import SHORT
from convnext.cli import VERBS

ROOT = Path(__file__).parents[1]


class Loads(HTMLParser):
    """Collect the addresses that a browser loads automatically with a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        name = {"link": "href", "script": "src", "img": "src", "iframe": "src"}.get(tag)
        self.addresses += [value for key, value in attributes if key == name and value]


def test_the_site_is_complete_and_reads_without_a_network(tmp_path: Path) -> None:
    """One test, so that the site is built once, however many processes run the tests."""
    site = tmp_path / "site"
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        # The theme's notice about the future of MkDocs is not about our pages.
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert built.returncode == 0, built.stdout + built.stderr
    check_pages_load_local_files(site)
    check_search_works_from_disk(site)
    commands = (site / "commands.html").read_text(encoding="utf-8")
    for verb in VERBS:
        assert f'<h2 id="{verb}">' in commands
        assert f"convnext {verb}" in commands
    recipes = (site / "recipes.html").read_text(encoding="utf-8")
    names = [file.stem for file in Path(convnext.__file__).parent.glob("recipes/**/*.yaml")]
    assert names
    assert [name for name in names if f"<code>{name}</code>" not in recipes] == []


def check_pages_load_local_files(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.addresses
        remote = [a for a in loads.addresses if re.match(r"(\w+:)?//", a)]
        assert not remote, f"{page.name} loads {remote}"
        # Only a server shows the 404 page, from its root.
        if page.name != "404.html":
            for address in loads.addresses:
                assert (page.parent / address.split("#")[0].split("?")[0]).exists(), address
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text("utf-8"))


def check_search_works_from_disk(site: Path) -> None:
    index = (site / "search" / "search_index.js").read_text(encoding="utf-8")
    documents = json.loads(index.removeprefix("var __index = "))["docs"]
    assert "api.html#convnext.create_model" in {document["location"] for document in documents}
    assert 'src="javascripts/iframe-worker.js"' in (site / "index.html").read_text("utf-8")


def test_the_python_reference_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: convnext\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(set(convnext.__all__) - {"__version__"})
    # Functions of commands that are in `convnext.api` alone.
    listed = re.findall(r"^::: convnext\.api\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted(set(convnext.api.__all__) - set(convnext.__all__))
    functions = {
        name for verb in VERBS.values() for name in (verb.function, *verb.switches.values())
    }
    assert functions <= set(convnext.__all__) | set(listed)


@pytest.fixture
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_verb_without_help_stops_the_build(hooks: ModuleType) -> None:
    hooks.VERBS = {"trian": "misspelled"}
    with pytest.raises(RuntimeError, match=r"convnext trian --help` failed.*train"):
        hooks.on_page_markdown("# Commands\n\n{{ commands }}\n")


def test_other_pages_stay_as_they_are(hooks: ModuleType) -> None:
    text = "# Page\n\nA line about {{ commands }} in passing.\n"
    assert hooks.on_page_markdown(text) == text


def test_every_short_name_is_in_the_table(hooks: ModuleType) -> None:
    page = hooks.on_page_markdown((ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| `(\w+)` \| `([\w.]+)` \| [^|]+ \|$", page, re.MULTILINE)
    assert dict(rows) == SHORT


def test_decisions_are_numbered_dated_and_complete() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    entries = re.split(r"^### ", text, flags=re.MULTILINE)[1:]
    numbers = sorted(int(entry.split(".")[0]) for entry in entries)
    assert numbers == list(range(1, len(entries) + 1))
    for entry in entries:
        parts = re.findall(r"^- \*\*(\w+):\*\* \S", entry, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequence", "Date"], entry.splitlines()[0]
        assert re.search(r"^- \*\*Date:\*\* 20\d\d-\d\d-\d\d", entry, re.MULTILINE)


def test_every_threat_has_a_test_that_exists() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 10
    for row in rows:
        tests = re.findall(r"`(tests/[\w/]+\.py)`", row.split("|")[-2])
        assert tests, row
        assert [name for name in tests if not (ROOT / name).is_file()] == []
