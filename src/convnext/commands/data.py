"""`convnext data`: what is in a data set, and what is wrong with it; or the same as shards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from convnext.commands import Parser, console, print_json


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "data",
        description="Look at a data set: classes, sizes, damaged files, duplicates across splits;\n"
        "of images with masks also values outside the classes and the share of every class.\n"
        "With --to-shards, write class folders as WebDataset shards for large or remote data.",
        example="convnext data my_photos --contact-sheet sheet.png\n"
        "  convnext data my_masks --contact-sheet sheet.png          # images/ and annotations/\n"
        "  convnext data my_photos --to-shards my_shards --resize 512",
    )
    parser.add_argument("path", help="a folder of classes or shards, an address, or `digits`")
    parser.add_argument(
        "--task", choices=("classify", "segment"), help="what the data is for (default: by layout)"
    )
    parser.add_argument("--contact-sheet", metavar="PNG", help="write a few images of every class")
    parser.add_argument("--to-shards", metavar="DIR", help="write shards and their index to DIR")
    parser.add_argument(
        "--shard-size", metavar="MB", type=float, help="size of a shard (default: 128)"
    )
    parser.add_argument(
        "--resize",
        metavar="PIXELS",
        type=int,
        help="reduce longer short sides to this, as JPEG (default: files stay as they are)",
    )
    masks = parser.add_argument_group("segmentation")
    masks.add_argument("--images", metavar="PATTERN", help="such as 'left/{split}/*/*_left.png'")
    masks.add_argument("--masks", metavar="PATTERN", help="the stars pair it with --images")
    masks.add_argument(
        "--reduce-zero-label", action="store_true", help="value 0 of the masks means no class"
    )
    arguments = parser.parse_args(argv)
    if arguments.to_shards is None and (arguments.shard_size or arguments.resize):
        parser.error("--shard-size and --resize belong to --to-shards DIR")
    if arguments.to_shards is not None and arguments.contact_sheet:
        parser.error("--contact-sheet does not go with --to-shards; run it by itself")

    out = console(as_json=arguments.json)
    report: Any
    if arguments.to_shards is not None:
        from convnext.tasks.classification.shards.convert import SHARD_MB, to_shards

        report = to_shards(
            arguments.path,
            arguments.to_shards,
            shard_mb=SHARD_MB if arguments.shard_size is None else arguments.shard_size,
            resize=arguments.resize,
            console=out,
        )
        report.print(out)
    elif _task(arguments) == "segment":
        report = _look_at_masks(arguments, out)
    else:
        report = _look_at_classes(arguments, out)
    if arguments.json:
        print_json(report.to_dict())
    return 0


def _task(arguments: argparse.Namespace) -> str:
    from convnext.tasks.segmentation.layout import is_segmentation

    if arguments.task is not None:
        return str(arguments.task)
    if arguments.images or arguments.masks or is_segmentation(Path(arguments.path)):
        return "segment"
    return "classify"


def _look_at_classes(arguments: argparse.Namespace, out: Any) -> Any:
    from convnext.tasks.classification.inspect import contact_sheet, inspect

    report = inspect(arguments.path)
    report.print(out)
    if arguments.contact_sheet:
        _save(contact_sheet(arguments.path), arguments.contact_sheet, out)
    return report


def _look_at_masks(arguments: argparse.Namespace, out: Any) -> Any:
    from convnext.tasks.segmentation.contact_sheet import contact_sheet
    from convnext.tasks.segmentation.data import open_dataset
    from convnext.tasks.segmentation.inspect import inspect

    options: dict[str, Any] = {"images": arguments.images or "", "masks": arguments.masks or ""}
    if arguments.reduce_zero_label:
        options["reduce_zero_label"] = True
    report = inspect(arguments.path, **options)
    report.print(out)
    if arguments.contact_sheet:
        data = open_dataset(arguments.path, strict=False, **options)
        _save(contact_sheet(data), arguments.contact_sheet, out)
    return report


def _save(sheet: Any, path: str, out: Any) -> None:
    from convnext.atomic import atomic_write

    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")
    out.print(f"contact sheet: {path}")
