"""Files from strangers end in one line: pipes, YAML that expands, odd names, endless numbers."""

from __future__ import annotations

import csv
import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console
from rich.table import Table

import convnext
from convnext.cli import main
from convnext.data.formats.coco import read_categories
from convnext.data.formats.records import FaultList
from convnext.data.images import BadImage, read_header
from convnext.data.masks import num_pixels
from convnext.data.run_lengths import read_counts
from convnext.documents import open_regular, parse_yaml, read_regular
from convnext.names import printable, text_cell
from convnext.progress import safe_console
from convnext.recipes.recipe import read_recipe
from convnext.tasks.figures import draw_confusion, save_bytes

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("network: {changes: &c {a: *c}}", "contains itself"),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("a: " + "[" * 60 + "]" * 60, "nested too deeply"),
        (LAUGHS, "repeat more than 1,000,000 values"),
        ("task: [1]", "task is .1., but must be a name"),
        ("task: 3", "task is 3, but must be a name"),
        ("base: 3", "must be the name of a recipe"),
        ("1: 2", "has the key 1"),
        ("network: {1: 2}", "has the key 1"),
    ],
)
def test_a_recipe_is_bounded(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_recipe(tmp_path / "a.yaml")
    assert "a.yaml" in str(caught.value)


def test_ordinary_aliases_of_yaml_are_read() -> None:
    assert parse_yaml("a: &a [1, 2]\nb: *a") == {"a": [1, 2], "b": [1, 2]}
    assert parse_yaml("a: yes", yaml.BaseLoader) == {"a": "yes"}
    assert parse_yaml("") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(BadImage, match=r"x.png: a named pipe, a socket or a device"):
        read_header(tmp_path / "x.png")
    for path in (tmp_path / "x.png", tmp_path):
        with pytest.raises(OSError, match=r"regular file|directory"):
            open_regular(path)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_regular(tmp_path / "a.txt") == "a\nb"


def test_control_characters_are_printed_as_escapes() -> None:
    name = "\x1b]0;T\x07\x9b2J\r"
    table = Table()
    table.add_column("[bold]class")
    table.add_row(name)
    text = io.StringIO()
    console = safe_console(
        Console(file=text, force_terminal=True, width=60, color_system="standard")
    )
    console.print(table)
    console.print(name, "caf\udce9", style="bold", markup=False)
    printed = text.getvalue()
    assert r"\x1b]0;T" in printed
    assert "\x1b]" not in printed
    assert not {"\x07", "\x9b", "\r", "\udce9"} & set(printed)
    assert r"caf\xe9" in printed
    assert "\x1b[1m" in printed, "styles are kept"
    assert printable("a\tb\nü 猫") == "a\tb\nü 猫"


def test_names_of_any_bytes_are_drawn() -> None:
    figure = draw_confusion(np.eye(3), ["caf\udce9", "$\\x$", "\x1b[2J"])
    assert save_bytes(figure, "svg").startswith(b"<?xml")


def test_no_cell_is_a_formula() -> None:
    for name in ("=1+1", "+1", "-1", "@SUM(1)", "\t=1"):
        assert text_cell(name) == f"'{name}"
    for name in ("", "cat", "a=b", "'"):
        assert text_cell(name) == name
    text = io.StringIO()
    csv.writer(text).writerow([text_cell("=cmd|' '!A0")])
    assert next(csv.reader(io.StringIO(text.getvalue())))[0][0] == "'"


@pytest.mark.parametrize("counts", ["o" * 1_000_000, "P" * 12 + "0", ("o" * 11 + "?") * 30])
def test_a_number_of_run_lengths_has_a_maximum_length(counts: str) -> None:
    with pytest.raises(ValueError, match="more than 60 bits"):
        read_counts(counts)
    assert num_pixels({"size": [64, 64], "counts": counts}) == -1


def test_many_categories_take_linear_time() -> None:
    categories = [{"id": i, "name": str(i), "supercategory": []} for i in range(1, 50_001)]
    content = {"categories": categories, "annotations": []}
    names, placeholders = read_categories(Path("a.json"), content, FaultList())
    assert len(names) == 50_000
    assert placeholders == ()


def test_only_the_supercategory_of_all_others_is_a_placeholder() -> None:
    def placeholders(*pairs: tuple[str, str | None]) -> tuple[str, ...]:
        values = [
            {"id": i, "name": name} | ({} if above is None else {"supercategory": above})
            for i, (name, above) in enumerate(pairs)
        ]
        return read_categories(
            Path("a.json"), {"categories": values, "annotations": []}, FaultList()
        )[1]

    assert placeholders(("fruits", "none"), ("apple", "fruits"), ("pear", "fruits")) == ("fruits",)
    assert placeholders(("fruits", None), ("apple", "fruits"), ("car", "cars")) == ()
    assert placeholders(("none", "none"), ("apple", "none")) == ("none",)
    assert placeholders(("apple", "none"), ("pear", "none")) == ()
    assert placeholders(("apple", None)) == ()


def special(folder: Path, names: tuple[str, ...] = ("pipe.png", "sock.png")) -> None:
    """Write a named pipe and a socket with the endings of images."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no named pipes")
    os.mkfifo(folder / names[0])
    path = os.path.relpath(folder / names[1])  # The name of a socket may not be long.
    with socket.socket(socket.AF_UNIX) as end:
        try:
            end.bind(path)
        except OSError:
            os.mkfifo(folder / names[1])


REASON = "a named pipe, a socket or a device, not a file"


def test_pipes_and_sockets_with_the_endings_of_images_are_named_and_skipped(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)

    def save(path: Path, high: int = 256) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, high, (32, 32)).astype(np.uint8)).save(path)

    for split in ("train", "val"):
        for name in ("a", "b"):
            for i in range(4):
                save(tmp_path / "classes" / split / name / f"{i}.png")
        for i in range(4):
            save(tmp_path / "pairs/images" / split / f"{i}.png")
            save(tmp_path / "pairs/masks" / split / f"{i}.png", 2)
    special(tmp_path / "classes/train/a")
    special(tmp_path / "pairs/images/train")
    special(tmp_path / "pairs/masks/train")
    for i in range(4):
        save(tmp_path / "objects/images" / f"{i}.png")
    special(tmp_path / "objects/images")
    (tmp_path / "objects/labels").mkdir()
    for name in ("0", "1", "2", "3", "pipe", "sock"):
        (tmp_path / "objects/labels" / f"{name}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (tmp_path / "objects/data.yaml").write_text("names: [cat]\n")

    for data in ("classes", "pairs", "objects"):
        report = convnext.check_data(tmp_path / data, progress=False)
        text = str(report.to_dict())
        assert REASON in text
        assert "pipe.png" in text
    small = {
        "network": {"changes": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
        "image_size": 32, "epochs": 1, "progress": False, "device": "cpu", "precision": "fp32",
        "max_bad_share": 0.5,
    }  # fmt: skip
    for data in ("classes", "pairs"):
        run = convnext.train(data=tmp_path / data, output=tmp_path / "runs" / data, **small)
        assert run.validation
        convnext.evaluate(run.folder, progress=False)
    model = convnext.load(tmp_path / "runs/classes")
    found = model.predict(tmp_path / "classes/train", progress=False)
    assert (len(found), [reason for _, reason in found.bad_images]) == (8, [REASON] * 2)
    assert len(model.embed(tmp_path / "classes/train/a", progress=False).paths) == 4
    with pytest.raises(ValueError, match="is a named pipe, a socket or a device"):
        model.predict(tmp_path / "classes/train/a/pipe.png", progress=False)
    main(["data", str(tmp_path / "classes"), "--to-shards", str(tmp_path / "shards")])
    assert (tmp_path / "shards/classes.txt").is_file()
