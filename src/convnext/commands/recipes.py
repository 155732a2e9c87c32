"""What verbs share that take a recipe: its settings as options, and errors in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convnext.names import nearest
from convnext.recipes.recipe import (
    Recipe,
    as_recipe,
    explain,
    flatten,
    one_line,
    recipe_parser,
)


def make_parser(verb: str, *, usage: str, description: str, examples: str) -> Any:
    """Return a parser with an option for every setting of a recipe; a verb adds its own."""
    from argparse import RawDescriptionHelpFormatter

    parser = recipe_parser(f"convnext {verb}")
    parser.allow_abbrev = False
    parser.usage = usage
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.description = description
    parser.epilog = examples
    parser.add_argument("--seed", type=int, help="short for --run.seed: the same bits on a CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object as last line")
    return parser


def parse(parser: Any, argv: Sequence[str], own: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Return the parsed arguments, and the recipe's leaves that the command line sets.

    Args:
        parser: One of `make_parser`.
        argv: The arguments.
        own: Options of the verb itself, which are no settings of a recipe.

    Raises:
        ValueError: With one line about what is wrong.
    """
    from jsonargparse import ArgumentError

    own = (*own, "seed", "json")
    try:
        arguments = parser.parse_args(argv)
    except ArgumentError as error:
        raise ValueError(_explain(error, parser, own)) from error
    flat = dict(flatten(as_recipe(_without(arguments, own))))
    given_here = set(parser.parse_args(argv, defaults=False).keys())
    given = {name: value for name, value in flat.items() if name in given_here}
    if arguments.seed is not None:
        given["run.seed"] = arguments.seed
    return arguments, given


def _without(namespace: Any, names: Sequence[str]) -> Any:
    rest = namespace.clone()
    for name in names:
        rest.pop(name, None)
    return rest


def _explain(error: Exception, parser: Any, own: Sequence[str]) -> str:
    message = one_line(error)
    if "nrecognized arguments" in message:
        word = next((w for w in message.split() if w.startswith("--")), "")
        name = word.lstrip("-").split("=")[0]
        known = [name for name, _ in flatten(Recipe())] + [o.replace("_", "-") for o in own]
        verb = parser.prog.removeprefix("convnext ")
        return f"{verb} has no option {word or message}{nearest(name, known)}"
    return explain(error)
