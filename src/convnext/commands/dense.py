"""The options that only segmentation or detection has, for `evaluate` and `predict`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from convnext.commands import Parser

LOOKS = ("window", "stride", "whole", "multi_scale", "flip")


def add_looks(parser: Parser) -> Any:
    """Add the options of how images are looked at; return their group."""
    group = parser.add_argument_group("segmentation")
    group.add_argument("--window", type=int, metavar="PIXELS", help="slide a window of this side")
    group.add_argument("--stride", type=int, metavar="PIXELS", help="from window to window")
    group.add_argument("--whole", action="store_true", help="look at images whole")
    group.add_argument(
        "--multi-scale", action="store_true", help="average six scales from 0.5 to 1.75"
    )
    group.add_argument("--flip", action="store_true", help="average with the mirrored image")
    return group


def looks(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the option `inference` if the user asks for anything; else nothing."""
    given = {name: getattr(arguments, name) for name in LOOKS}
    if not any(map(_is_given, given.values())):
        return {}
    from convnext.tasks.segmentation.looks import choose_inference
    from convnext.tasks.segmentation.published import published_recipe
    from convnext.weights.open import card_or_none

    card = card_or_none(arguments.source)
    recipe = card.recipe if card else published_recipe(arguments.source)
    return {"inference": choose_inference(recipe, **given)}


REPORTED = ("score", "nms", "max_detections")


def add_reported(parser: Parser, score: str) -> Any:
    """Add the options of which objects are reported; return their group."""
    group = parser.add_argument_group("detection")
    group.add_argument("--score", type=float, help=f"least score of an object (default: {score})")
    group.add_argument(
        "--nms", type=float, help="overlap from which doubles are dropped (default: of training)"
    )
    group.add_argument(
        "--max-detections", type=int, help="objects of an image at most (default: of training)"
    )
    return group


def reported(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the user asks for of these, by the names of the functions."""
    return {
        "score_threshold": arguments.score,
        "nms_threshold": arguments.nms,
        "max_detections": arguments.max_detections,
    }


def refuse(parser: Parser, arguments: argparse.Namespace, names: Iterable[str], task: str) -> None:
    """Refuse options that the task of the network does not have, rather than ignore them."""
    for name in names:
        if _is_given(getattr(arguments, name)):
            parser.error(f"--{name.replace('_', '-')} is nothing for a network that {task}")


def _is_given(value: Any) -> bool:
    """Tell whether an option was given; 0 was, though Python takes it for False."""
    return value is not None and value is not False
