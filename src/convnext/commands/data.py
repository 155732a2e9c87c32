"""`convnext data`: what is in a data set and what is wrong with it; or the same in another form."""

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
        "of images with masks also values outside the classes and the share of every class; of\n"
        "COCO's json every fault of an image or an annotation, and --fix mends those it can.\n"
        "With --to-shards, write class folders as WebDataset shards for large or remote data;\n"
        "with --to coco, write Pascal VOC or YOLO folders as COCO's json.",
        example="convnext data my_photos --contact-sheet sheet.png\n"
        "  convnext data my_masks --contact-sheet sheet.png          # images/ and annotations/\n"
        "  convnext data my_photos --to-shards my_shards --resize 512\n"
        "  convnext data my_objects --fix                            # instances_{train,val}.json\n"
        "  convnext data my_voc --to coco --output my_objects        # or YOLO's text files",
    )
    parser.add_argument("path", help="a folder, a json, an address of shards, or `digits`")
    parser.add_argument(
        "--task",
        choices=("classify", "detect", "segment"),
        help="what the data is for (default: by layout)",
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
    objects = parser.add_argument_group("detection")
    objects.add_argument(
        "--fix",
        action="store_true",
        help="mend what needs no decision in the json; the old one is kept beside it",
    )
    objects.add_argument("--to", choices=("coco",), help="convert Pascal VOC or YOLO folders")
    objects.add_argument("--output", metavar="DIR", help="where --fix or --to writes")
    objects.add_argument(
        "--difficult",
        choices=("keep", "crowd", "drop"),
        default="keep",
        help="objects that VOC marks so; crowd: neither trained on nor counted (default: keep)",
    )
    arguments = parser.parse_args(argv)
    _check(parser, arguments)
    if arguments.to_shards is None and (arguments.shard_size or arguments.resize):
        parser.error("--shard-size and --resize belong to --to-shards DIR")
    if arguments.to_shards is not None and arguments.contact_sheet:
        parser.error("--contact-sheet does not go with --to-shards; run it by itself")

    out = console(as_json=arguments.json)
    report: Any
    if arguments.to_shards is not None:
        from convnext.tasks.classification.shards import SHARD_MB, to_shards

        report = to_shards(
            arguments.path,
            arguments.to_shards,
            shard_mb=SHARD_MB if arguments.shard_size is None else arguments.shard_size,
            resize=arguments.resize,
            console=out,
        )
        report.print(out)
    elif arguments.to is not None:
        from convnext.tasks.detection.data.convert import to_coco

        report = to_coco(
            arguments.path, arguments.output, difficult=arguments.difficult, console=out
        )
        report.print(out)
    elif arguments.fix:
        report = _fix(arguments, out)
    elif _task(arguments) == "detect":
        report = _look_at_objects(arguments, out)
    elif _task(arguments) == "segment":
        report = _look_at_masks(arguments, out)
    else:
        report = _look_at_classes(arguments, out)
    if arguments.json:
        print_json(report.to_dict())
    return 0


def _check(parser: Parser, arguments: argparse.Namespace) -> None:
    """Leave with exit code 2 if options do not go together."""
    writes = [name for name in ("to_shards", "fix", "to") if getattr(arguments, name)]
    if len(writes) > 1:
        parser.error("give one of --to-shards, --fix and --to")
    if arguments.to is not None and arguments.output is None:
        parser.error("--to coco needs --output DIR, where the json and the images go")
    if arguments.output is not None and not (arguments.fix or arguments.to):
        parser.error("--output belongs to --fix or --to coco")
    if arguments.contact_sheet and arguments.to is not None:
        parser.error("--contact-sheet does not go with --to; look at what it wrote afterwards")
    if arguments.contact_sheet and arguments.fix:
        parser.error("--contact-sheet does not go with --fix; run it afterwards")
    if arguments.fix and arguments.task not in (None, "detect"):
        parser.error("--fix mends COCO's json of objects, the data of --task detect")


def _task(arguments: argparse.Namespace) -> str:
    from convnext.data.formats.coco_layout import is_detection
    from convnext.tasks.segmentation.layout import is_segmentation

    if arguments.task is not None:
        return str(arguments.task)
    if arguments.images or arguments.masks:
        return "segment"
    if is_detection(Path(arguments.path)):
        return "detect"
    return "segment" if is_segmentation(Path(arguments.path)) else "classify"


def _fix(arguments: argparse.Namespace, out: Any) -> Any:
    from convnext.tasks.detection.data.fix import fix_dataset

    report = fix_dataset(arguments.path, arguments.output, console=out)
    report.print(out)
    return report


def _look_at_objects(arguments: argparse.Namespace, out: Any) -> Any:
    from convnext.data.objects import open_dataset
    from convnext.tasks.detection.data.inspect import contact_sheet, inspect

    report = inspect(arguments.path)
    report.print(out)
    if arguments.contact_sheet:
        data = open_dataset(arguments.path, strict=False)
        _save(contact_sheet(data), arguments.contact_sheet, out)
    return report


def _look_at_classes(arguments: argparse.Namespace, out: Any) -> Any:
    from convnext.tasks.classification.inspect import contact_sheet, inspect

    report = inspect(arguments.path)
    report.print(out)
    if arguments.contact_sheet:
        _save(contact_sheet(arguments.path), arguments.contact_sheet, out)
    return report


def _look_at_masks(arguments: argparse.Namespace, out: Any) -> Any:
    from convnext.tasks.segmentation.data import open_dataset
    from convnext.tasks.segmentation.inspect import contact_sheet, inspect

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
