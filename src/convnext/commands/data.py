"""`convnext data`: what is in a data set, and what is wrong with it."""

from __future__ import annotations

from convnext.commands import Parser, console, print_json


def run(argv: list[str]) -> int:
    """Run the verb."""
    parser = Parser(
        "data",
        description="Look at a data set: classes, sizes, damaged files, duplicates across splits.",
        example="convnext data my_photos --contact-sheet sheet.png",
    )
    parser.add_argument("path", help="a folder of classes or shards, or `digits`")
    parser.add_argument("--contact-sheet", metavar="PNG", help="write a few images of every class")
    arguments = parser.parse_args(argv)

    from convnext.atomic import atomic_write
    from convnext.tasks.classification.inspect import contact_sheet, inspect

    out = console(as_json=arguments.json)
    report = inspect(arguments.path)
    report.print(out)
    if arguments.contact_sheet:
        with atomic_write(arguments.contact_sheet) as temporary:
            contact_sheet(arguments.path).save(temporary, format="PNG")
        out.print(f"contact sheet: {arguments.contact_sheet}")
    if arguments.json:
        print_json(report.to_dict())
    return 0
