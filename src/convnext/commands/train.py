"""`convnext train`: a recipe, options for what differs from it, and a run folder at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convnext.commands import console, print_json
from convnext.commands.recipes import make_parser, parse
from convnext.recipes.recipe import Recipe, change_recipe, read_recipe, recipe_names

DESCRIPTION = """\
Train a network. Without arguments: the built-in digits, in under two minutes on two cores.
Settings that read `auto` are chosen from the data, the weights and the device, and explained.

recipes that come along (or give a YAML file): {recipes}
"""
EXAMPLE = """\
examples:
  convnext train
  convnext train --data my_photos
  convnext train --data my_photos --model convnext_tiny --weights fb_in22k_ft_in1k
  convnext train --data my_photos --schedule.epochs 50 --optim.lr 1e-3 --output runs/first
  convnext train --resume --output runs/first
  convnext train --resume --output runs/first --schedule.epochs 90     # and longer
  convnext train --data my_photos --weights runs/first                 # anew, from its weights
  convnext train imagenet1k_tiny --data shards --run.devices 8         # docs/scaling.md has more

A run that is asked to end (SIGTERM, SIGINT, SIGUSR1) saves its state and leaves with exit code 75.
"""


# Options of the verb itself, which are no settings of a recipe.
OWN = ("recipe", "output", "resume", "deterministic", "show_groups")


def run(argv: list[str]) -> int:
    """Run the verb."""
    arguments, given = _parse(argv)
    from convnext.training.run import show_groups, train

    recipe = _recipe(arguments, given)
    out = console(as_json=arguments.json)
    if arguments.show_groups:
        rows = show_groups(recipe, out)
        if arguments.json:
            print_json(rows)
        return 0
    result = train(
        recipe,
        output=Path(arguments.output) if arguments.output else None,
        resume=arguments.resume,
        console=out,
    )
    if arguments.json:
        print_json(result.to_dict())
    return 0


def _parser() -> Any:
    parser = make_parser(
        "train",
        usage="convnext train [RECIPE] [--setting VALUE ...]",
        description=DESCRIPTION.format(recipes=", ".join(recipe_names()) or "none"),
        examples=EXAMPLE,
    )
    parser.add_argument("recipe", nargs="?", help="a recipe's name or YAML file")
    parser.add_argument("--output", help="the run folder (default: a new one under runs/)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="short for --run.deterministic true: the same bits on a GPU too",
    )
    parser.add_argument(
        "--show-groups",
        action="store_true",
        help="print the optimizer's groups with their learning rates, and do not train",
    )
    return parser


def _parse(argv: list[str]) -> tuple[Any, dict[str, Any]]:
    """Return the parsed arguments, and the recipe's leaves that the command line sets."""
    arguments, given = parse(_parser(), argv, OWN)
    if arguments.deterministic:
        given["run.deterministic"] = True
    return arguments, given


def _recipe(arguments: Any, given: dict[str, Any]) -> Recipe:
    source = arguments.recipe
    if arguments.resume:
        from convnext.training.distributed import started_by_launcher

        if not arguments.output:
            raise ValueError("--resume needs --output, the run folder to go on with")
        saved = Path(arguments.output) / "recipe.yaml"
        # A scheduler starts the same command again and again: the first time, there is no run yet.
        starts = bool(source or given)
        if saved.is_file():
            source = saved
            if started_by_launcher():
                # It has settled how many processes there are; the run may have had others.
                given = {"run.devices": "auto", "run.num_nodes": 1} | given
        elif not starts:
            raise ValueError(f"{arguments.output} is not a run folder: it has no recipe.yaml")
    return change_recipe(read_recipe(source) if source else Recipe(), given)
