"""Turn command-line arguments into a call of a function of `convnext.api`."""

from __future__ import annotations

import inspect
import itertools
import shlex
import sys
from argparse import Action
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from convnext.cli.parser import (
    Signature,
    build_parser,
    canonical,
    option_name,
    signature_of,
    task_parameters,
    unknown_option,
    verb_parser,
)
from convnext.cli.verbs import VERBS, Verb
from convnext.recipes.recipe import all_settings, explain, one_line


@dataclass(frozen=True, kw_only=True)
class Call:
    """A function of `convnext.api` and its arguments."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    as_json: bool


def call_of(name: str, argv: Sequence[str]) -> Call:
    """Parse the arguments of a verb.

    Raises:
        ValueError: If the arguments are wrong; the message is one line.
        SystemExit: After printing the help.
    """
    verb = VERBS[name]
    if "--help-all" in itertools.takewhile(lambda word: word != "--", argv):
        verb_parser(name, full=True).print_help(sys.stdout)
        sys.exit(0)
    root = build_parser([name])
    assert root._subcommands_action is not None
    parser = root._subcommands_action._name_parser_map[name]
    words = canonical(_renamed(argv, verb), parser)
    for word in itertools.takewhile(lambda word: word != "--", words):
        if word.startswith("--") and word.partition("=")[0] not in parser._option_string_actions:
            raise ValueError(unknown_option(word, name, parser))
    try:
        parsed = root.parse_args([name, *words], defaults=False)
    except ArgumentError as error:
        raise ValueError(_explain(error, name, parser)) from error
    given = {key: value for key, value in vars(parsed[name].as_flat()).items() if value is not None}
    as_json = bool(given.pop("json", False))
    chosen = [switch for switch in verb.switches if switch in given]
    if len(chosen) > 1:
        raise ValueError(f"give one of {', '.join(map(option_name, chosen))}")
    switch = chosen[0] if chosen else ""
    function = verb.load(switch)
    arguments = _arguments(name, verb, switch, signature_of(function), given)
    if not switch:
        arguments = {**verb.fixed, **arguments}
    if "command" in inspect.signature(function).parameters:
        arguments["command"] = shlex.join(["convnext", name, *argv])
    return Call(function=function, arguments=arguments, as_json=as_json)


def _renamed(argv: Sequence[str], verb: Verb) -> list[str]:
    """Return the words with the options of earlier versions under their present names."""
    options = list(itertools.takewhile(lambda word: word != "--", argv))
    renamed = [new for word in options for new in verb.former.get(word, (word,))]
    return renamed + list(argv[len(options) :])


def _arguments(
    name: str, verb: Verb, switch: str, signature: Signature, given: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments under the names of the function's parameters.

    Raises:
        ValueError: If the function has no such option, or a required one is missing.
    """
    by_dest = {p.dest: p for p in signature.parameters}
    known = set(by_dest)
    if signature.has_settings:
        known |= set(all_settings())
    if signature.task_options:
        known |= {p.dest for _, p in task_parameters(signature.task_options)}
    arguments = {}
    for dest, value in given.items():
        if dest == switch and dest not in by_dest:
            continue
        if dest not in known:
            raise ValueError(_misplaced(name, verb, switch, dest))
        p = by_dest.get(dest)
        arguments[p.name if p else dest] = p.how.convert(value) if p and p.how.convert else value
    for p in signature.parameters:
        if p.is_required and p.name not in arguments:
            what = (p.how.metavar or p.dest.upper()) if p.is_positional else option_name(p.dest)
            asked = f" {option_name(switch)}" if switch else ""
            raise ValueError(f"{name}{asked} needs {what}; see convnext {name} --help")
    return arguments


def _misplaced(name: str, verb: Verb, switch: str, dest: str) -> str:
    option = option_name(dest)
    if switch:
        return f"{option} cannot be used with {option_name(switch)}"
    owners = [
        option_name(other)
        for other in verb.switches
        if dest in {p.dest for p in signature_of(verb.load(other)).parameters}
    ]
    return f"{option} needs {' or '.join(owners)}" if owners else f"{name} has no {option}"


def _explain(error: ArgumentError, name: str, parser: ArgumentParser) -> str:
    message = one_line(error)
    if "are required:" in message:
        missing = message.rpartition(": ")[2].replace(f"{name}.", "")
        shown = {a.dest: str(a.metavar) for a in parser._actions if not a.option_strings}
        missing = ", ".join(shown.get(dest, dest) for dest in missing.split(", "))
        return f"{name} needs {missing}; see convnext {name} --help"
    if "nrecognized arguments" in message:
        words = message.rpartition("arguments: ")[2]
        return f"{name} does not take {words}; see convnext {name} --help"
    return explain(error, {action.dest: _type_in_text(action) for action in parser._actions})


def _type_in_text(action: Action) -> str:
    """Return the type of an option's value, as an annotation."""
    hint = getattr(action, "_typehint", None) or action.type
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")
