"""The wording of pages, messages and docstrings: replaced phrases do not return."""

from __future__ import annotations

from pathlib import Path

import pytest
import words


@pytest.mark.parametrize("page", words.pages(), ids=lambda path: path.relative_to(words.ROOT))
def test_pages_read_as_the_field_writes(page: Path) -> None:
    prose = words.prose_of_markdown(page.read_text(encoding="utf-8"))
    assert [f"{phrase!r}; write: {say}" for phrase, say in words.found_in(prose)] == []


def test_strings_and_docstrings_read_as_the_field_writes() -> None:
    """Files that still have phrases are listed with their number, which may only shrink."""
    left = {}
    for row in words.LEFT.read_text(encoding="utf-8").splitlines():
        number, name = row.split(" ", 1)
        left[name] = int(number)
    new, cleaned = [], []
    for path in words.modules():
        found = words.count(path)
        allowed = left.pop(path.relative_to(words.ROOT).as_posix(), 0)
        if len(found) > allowed:
            new += found
        elif len(found) < allowed:
            cleaned.append(path.name)
    assert not new, "\n".join(new)
    update = "run `python tests/helpers/words.py --update`"
    assert not cleaned, f"{', '.join(cleaned)} became cleaner than the list says; {update}"
    assert not left, f"{', '.join(left)} are listed and do not exist; {update}"


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("a folder is no run", "is no run"),
        ("the digits come along", "come along"),
        ("mends the json", "mends"),
        ("trained anew", "anew"),
        ("it is told of every step", "told"),
        ("walk the road", "the road"),
        ("a rung", "rung"),
        ("goes on where it stopped", "goes on"),
        ("eps: Of the norm.", "Of the"),
        ("predicts what is on images", "what is on images"),
        ("grey colours", "colours"),
        ("it recognises normalised artefacts", "normalised"),
        ("behaviour of the neighbours", "neighbours"),
        ("the licence", "licence"),
        ("unlabelled", "unlabelled"),
    ],
)
def test_phrases_are_found(text: str, phrase: str) -> None:
    assert phrase in [found for found, _ in words.found_in(text)]


@pytest.mark.parametrize(
    "text",
    [
        "there is no run x; did you mean y?",
        "the loss is no longer finite",
        "noise is raised, otherwise pointwise",
        "half of the images, most of what follows",
        "the roadmap",
        "the result is precise and promised",
        "tell them apart; they are told apart by name",
        "the processes of the data loader are started anew",
    ],
)
def test_good_phrases_pass(text: str) -> None:
    assert list(words.found_in(text)) == []


def test_code_is_not_prose() -> None:
    page = "A `rung`.\n\n```python\nrung = colour()  # the anew comment\n```\n\n::: convnext.Rung\n"
    assert [phrase for phrase, _ in words.found_in(words.prose_of_markdown(page))] == ["anew"]
    module = '"""Say `rung`."""\nx = "rung"\ny = f"{x} is no {x} at all"\n'
    strings = list(words.prose_of_python(module))
    assert [line for line, _ in strings] == [1, 3]
    assert [found for found, _ in words.found_in(strings[1][1])] == ["is no X"]
