"""Names: suggestions, counts, and file names that every system accepts."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path, PureWindowsPath

import pytest

from convnext.data.drawing import output_names
from convnext.names import (
    count_noun,
    nearest,
    nearest_names,
    nearest_path,
    portable_name,
    short_time,
)
from convnext.recipes.recipe import Recipe
from convnext.studies.plan import Entry
from convnext.training.run import new_folder

DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{n}" for d in ("com", "lpt") for n in range(10))}
AWKWARD = (
    "a:b",
    "aux",
    "Con.txt",
    "dots...",
    "blank ",
    "what?",
    'a"b',
    "a<b>|c*",
    "tab\t",
    "",
    "x/y\\z",
)


def accepted(name: str) -> bool:
    """Tell whether Windows accepts a name by its documented rules."""
    return (
        bool(name)
        and not re.search(r'[<>:"/\\|?*\x00-\x1f]', name)
        and name[-1] not in ". "
        and name.split(".")[0].lower() not in DEVICES
    )


@pytest.mark.parametrize("name", AWKWARD)
def test_names_become_portable(name: str) -> None:
    assert not accepted(name)
    assert accepted(portable_name(name))
    assert portable_name(portable_name(name)) == portable_name(name)


@pytest.mark.parametrize("name", ["photo", "a.b-c_d=1,2", "눈", ".hidden", "auxiliary", "com10"])
def test_portable_names_stay(name: str) -> None:
    assert accepted(name)
    assert portable_name(name) == name


def test_names_of_results_and_runs_are_portable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = output_names([tmp_path / f"{name}.jpg" for name in ("a:b", "a?b", "aux", "dots..")])
    assert all(accepted(name) for name in names)
    assert len({name.casefold() for name in names}) == 4
    monkeypatch.chdir(tmp_path)
    recipe = replace(Recipe(), data="https://host/a?b=1:2", model="timm/hf-hub:owner")
    folder = new_folder(recipe)
    assert all(accepted(part) for part in PureWindowsPath(folder).parts)
    entry = Entry(name="con", what="", group="", model="convnext_atto")
    assert accepted(entry.folder_name)


def test_the_nearest_path_is_similar_in_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    (tmp_path / "runs" / "blood").mkdir()
    monkeypatch.chdir(tmp_path)
    found = str(Path("runs", "photos"))
    assert nearest_path(Path("run", "phtos")) == f"; did you mean {found!r}?"
    assert nearest_path(Path("runs", "mod")) == ""


def test_a_suggestion_is_written_as_the_user_writes_it() -> None:
    def option(name: str) -> str:
        return f"--{name}"

    assert nearest("topc", ["topk", "wide"], option) == "; did you mean --topk?"
    settings = ["stem", "schedule.steps", "run.keep", "loader.keep"]
    assert nearest("steps", settings) == "; did you mean 'schedule.steps'?"
    assert nearest("learning_rate", ["lr", "learning_rule"]) == "; did you mean 'lr'?"
    optim = ["optim.lr", "optim.name"]
    assert nearest("optimizer", optim) == "; did you mean 'optim.name'?"
    both = ["segment.crop", "detect.crop"]
    assert nearest("crop", both, option) == "; did you mean --segment.crop or --detect.crop?"
    assert "run.keep" in nearest("keep", settings)
    assert nearest("x", ["topk", "wide"], option) == "; choose one of --topk, --wide"


def test_a_count_agrees_with_its_noun() -> None:
    assert [count_noun(n, "image") for n in (0, 1, 1000)] == ["0 images", "1 image", "1,000 images"]
    assert count_noun(2, "class", "classes") == "2 classes"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2e-7, "0.2 µs"),
        (4.31e-5, "43.1 µs"),
        (2.5e-4, "0.25 ms"),
        (0.0123, "12.3 ms"),
        (2.31, "2,310 ms"),
    ],
)
def test_a_time_has_digits_at_any_size(seconds: float, text: str) -> None:
    assert short_time(seconds) == text


def test_long_lists_of_names_are_grouped() -> None:
    assert nearest_names("tiny", ["tiny", "base"]) == "tiny or base"
    known = ["resnet", "tiny", "tiny_2", "tinny", "large"]
    assert nearest_names("tiny", known) == "tiny, tinny, tiny_2 or 2 others (see `convnext models`)"
