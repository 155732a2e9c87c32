"""`convnext data`: what is in a data set, and what is wrong with it; or the same as shards."""

from __future__ import annotations

from convnext.commands import Parser, console, print_json


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "data",
        description="Look at a data set: classes, sizes, damaged files, duplicates across splits.\n"
        "With --to-shards, write class folders as WebDataset shards for large or remote data.",
        example="convnext data my_photos --contact-sheet sheet.png\n"
        "  convnext data my_photos --to-shards my_shards --resize 512",
    )
    parser.add_argument("path", help="a folder of classes or shards, an address, or `digits`")
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
    arguments = parser.parse_args(argv)
    if arguments.to_shards is None and (arguments.shard_size or arguments.resize):
        parser.error("--shard-size and --resize belong to --to-shards DIR")
    if arguments.to_shards is not None and arguments.contact_sheet:
        parser.error("--contact-sheet does not go with --to-shards; run it by itself")

    out = console(as_json=arguments.json)
    if arguments.to_shards is not None:
        from convnext.tasks.classification.shards.convert import SHARD_MB, to_shards

        written = to_shards(
            arguments.path,
            arguments.to_shards,
            shard_mb=SHARD_MB if arguments.shard_size is None else arguments.shard_size,
            resize=arguments.resize,
            console=out,
        )
        written.print(out)
        if arguments.json:
            print_json(written.to_dict())
        return 0

    from convnext.atomic import atomic_write
    from convnext.tasks.classification.inspect import contact_sheet, inspect

    report = inspect(arguments.path)
    report.print(out)
    if arguments.contact_sheet:
        with atomic_write(arguments.contact_sheet) as temporary:
            contact_sheet(arguments.path).save(temporary, format="PNG")
        out.print(f"contact sheet: {arguments.contact_sheet}")
    if arguments.json:
        print_json(report.to_dict())
    return 0
