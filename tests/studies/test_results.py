"""The table of a study as a file."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from convnext.studies.compare import read_results, write_results
from studies import made_up


def test_the_csv_gives_back_what_was_written(tmp_path: Path) -> None:
    results = made_up(missing=["bn_to_ln"])
    odd = 'a "quoted", name\nof two lines'
    results[0] = replace(results[0], what=odd, state="failed", reason=odd)
    write_results(tmp_path, results, {"title": "x"})
    assert read_results(tmp_path / "results.csv") == results
    tree = json.loads((tmp_path / "results.json").read_text())
    assert tree["title"] == "x"
    assert tree["results"][0]["what"] == odd


def test_tables_of_older_versions_are_read(tmp_path: Path) -> None:
    write_results(tmp_path, made_up(), {})
    path = tmp_path / "results.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    old = [name for name in rows[0] if name != "conditions"]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, old, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    assert read_results(path) == [replace(result, conditions="") for result in made_up()]


def test_another_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("entry,top1\na,1\n")
    with pytest.raises(ValueError, match=r"results\.csv is not a table of results"):
        read_results(path)
