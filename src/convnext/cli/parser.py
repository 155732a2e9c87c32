"""One parser, generated from the signatures and docstrings of the verbs' functions."""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, Unpack, get_args, get_origin

import docstring_parser
from jsonargparse import ActionYesNo, ArgumentParser

from convnext.api.settings import (
    ONLY_IN_FULL_HELP,
    ONLY_IN_HELP_OF_TRAIN,
    OnCommandLine,
    PythonOnly,
    Settings,
    TaskOptions,
    short_names,
)
from convnext.cli.verbs import VERBS, Verb
from convnext.recipes.recipe import all_settings, as_list
from convnext.tasks import options_of_tasks, task_folders

BOOL = "{true,false}"
AUTO = "auto"
"""How the empty choice is written on the command line: it leaves the choice to the program."""
_OLD_CHOICES = {"shares"}
"""Choices that are accepted but not shown."""
_OWN_SETTINGS = {"data", "model", "task", "weights"}
"""Settings of a recipe that verbs have as arguments."""


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A verb's argument on the command line."""

    name: str
    """The name in Python."""
    hint: Any
    default: Any
    """`inspect.Parameter.empty` if the argument is required."""
    help: str
    is_positional: bool = False
    how: OnCommandLine = field(default_factory=OnCommandLine)

    @property
    def dest(self) -> str:
        """The name on the command line."""
        return self.how.flag or self.name

    @property
    def is_required(self) -> bool:
        """Whether the argument is required."""
        return self.default is inspect.Parameter.empty


@dataclass(frozen=True, kw_only=True)
class Signature:
    """The arguments of a verb's function."""

    parameters: tuple[Parameter, ...]
    has_settings: bool
    """Whether it takes the settings of a recipe."""
    task_options: str
    """The verb whose task options it takes, or ""."""


@cache
def signature_of(function: Callable[..., Any]) -> Signature:
    """Read the arguments of a function, and their descriptions in its docstring."""
    described = {p.arg_name.lstrip("*"): p.description or "" for p in _docstring(function).params}
    found, has_settings, task_options = [], False, ""
    for p in inspect.signature(function).parameters.values():
        hint, how = _resolve(p.annotation, function)
        if isinstance(how, PythonOnly):
            continue
        if hint is Settings:
            has_settings = True
        elif isinstance(how, TaskOptions):
            task_options = how.verb
        else:
            found.append(
                Parameter(
                    name=p.name,
                    hint=hint,
                    default=p.default,
                    help=_spelled_out(_plain(described.get(p.name, "")), p.name),
                    is_positional=p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    how=how,
                )
            )
    return Signature(parameters=tuple(found), has_settings=has_settings, task_options=task_options)


def build_parser(names: Sequence[str] = tuple(VERBS), *, full: bool = False) -> ArgumentParser:
    """Build the parser of the command line.

    Args:
        names: The verbs to include; fewer are built faster.
        full: Whether the help shows every recipe setting.
    """
    parser = ArgumentParser(prog="convnext", exit_on_error=False, formatter_class=_Formatter)
    verbs = parser.add_subcommands(dest="verb", required=True)
    for name in names:
        verbs.add_subcommand(name, verb_parser(name, full=full))
    return parser


def verb_parser(name: str, *, full: bool = False) -> ArgumentParser:
    """Return the parser of a verb."""
    verb = VERBS[name]
    main = signature_of(verb.load())
    if main.has_settings:
        left_out = ONLY_IN_FULL_HELP | (set() if name == "train" else ONLY_IN_HELP_OF_TRAIN)
        parser = _recipe_parser(full=full, left_out=left_out)
    else:
        parser = ArgumentParser(exit_on_error=False)
    parser.prog = f"convnext {name}"
    parser.allow_abbrev = False
    parser.formatter_class = _Formatter
    parser.description = _description(verb.load())
    parser.epilog = _epilog(verb)
    taken = {action.dest for action in parser._actions}
    for p in main.parameters:
        if p.dest in taken:  # A recipe setting that the verb describes in its own words.
            action = parser._option_string_actions[f"--{p.dest}"]
            action.help, action.metavar = p.help, p.how.metavar or _metavar(action)
        else:
            _add(parser, p)
    for action in parser._actions:  # Recipe settings that the verb sets in another way.
        if action.dest in _OWN_SETTINGS - {p.dest for p in main.parameters}:
            action.help = argparse.SUPPRESS
    if main.has_settings:
        parser.add_argument("--help-all", action="store_true", help="Show every recipe setting.")
    text = "Print the result as one JSON object on the last line."
    parser.add_argument("--json", action="store_true", help=text)
    if main.task_options:
        _add_task_options(parser, main.task_options)
    _add_switches(parser, verb)
    parser.usage = _usage(name, main)
    return parser


def option_name(name: str) -> str:
    """Return an option as users write it: hyphens in short names, dotted names unchanged."""
    return f"--{name}" if "." in name else f"--{name.replace('_', '-')}"


# Sections of a recipe with settings that say how data is read.
_SECTIONS = ("input", "loader", *task_folders())


def canonical(argv: Sequence[str], parser: ArgumentParser) -> list[str]:
    """Return the arguments with every option spelled as the parser knows it.

    Hyphens and underscores are equivalent, short names stand for full ones, a boolean setting
    needs no value, and a list no brackets. A verb without settings takes the names that they have
    for `train` too: `--segment.images` is the option `--images` of `data`.
    """
    known = {name.replace("-", "_"): name for name in parser._option_string_actions}
    switches = {f"__{short}" for short, full in short_names().items() if _is_bool_setting(full)}
    result: list[str] = []
    words = list(argv)
    for i, word in enumerate(words):
        if word == "--":
            return [*result, *argv[i:]]
        if not word.startswith("--"):
            result.append(word)
            continue
        name, equals, value = word.partition("=")
        key = name.replace("-", "_")
        full = f"--{short_names().get(key[2:], '')}"
        if f"__{key[5:]}" in switches and key.startswith("__no_") and not equals:
            full, equals, value = f"--{short_names()[key[5:]]}", "=", "false"
        if full in parser._option_string_actions and key not in known:
            following = argv[i + 1] if i + 1 < len(argv) else ""
            if key in switches and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
            name = full
        else:
            name = known.get(key, name)
            section, dot, leaf = key.partition(".")
            is_setting = bool(dot) and section[2:] in _SECTIONS and name not in known.values()
            if is_setting and "__schedule.epochs" not in known:
                name = known.get(f"__{leaf}", name)
        hint = getattr(parser._option_string_actions.get(name), "_typehint", None)
        if equals:
            value = _value(hint, value)
        elif i + 1 < len(argv) and not argv[i + 1].startswith("--"):
            words[i + 1] = _value(hint, argv[i + 1])
        result.append(f"{name}{equals}{value}")
    return result


def _value(hint: Any, text: str) -> str:
    """Return an option's value as the parser takes it: lists with brackets, `auto` as empty."""
    choices = _choices(hint)
    return "" if text == AUTO and "" in choices and AUTO not in choices else as_list(hint, text)


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the texts to choose from, if the type is a choice alone."""
    parts = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is not Literal:
        return _choices(parts[0]) if len(parts) == 1 and type(None) in get_args(hint) else ()
    return tuple(map(str, parts))


def unknown_option(word: str, verb: str, parser: ArgumentParser) -> str:
    """Return the error message for an option that a verb does not have."""
    from convnext.names import nearest

    name = word.lstrip("-").partition("=")[0]
    known = [s.lstrip("-") for s in parser._option_string_actions if s.startswith("--")]
    has_settings = "--schedule.epochs" in parser._option_string_actions
    close = nearest(name, [*(short_names() if has_settings else ()), *known], option_name)
    return f"{verb} has no option {word}{close}"


def _is_bool_setting(full: str) -> bool:
    known = all_settings()
    return full in known and isinstance(known[full].default, bool)


def _plain(text: str) -> str:
    """Return an argument's description without the part that applies to Python only."""
    return re.sub(r"; in Python.*?(?=\.$|\. |$)", "", " ".join(text.split()))


def _spelled_out(text: str, name: str) -> str:
    """Return "As for `verb`" as that verb's description of the argument."""
    match = re.fullmatch(r"As for `(\w+)`(?:; (.+)|\.)", text)
    if match is None or match[1] not in VERBS:
        return text
    others = signature_of(VERBS[match[1]].load()).parameters
    described = next(p.help for p in others if p.name == name)
    return f"{described} {match[2][0].upper()}{match[2][1:]}" if match[2] else described


@cache
def _docstring(function: Callable[..., Any]) -> docstring_parser.Docstring:
    return docstring_parser.parse(
        inspect.getdoc(function) or "", style=docstring_parser.DocstringStyle.GOOGLE
    )


def _resolve(annotation: Any, function: Callable[..., Any]) -> tuple[Any, Any]:
    """Return a type that the parser understands, and the marker of the annotation."""
    hint = annotation
    if isinstance(hint, str):
        hint = eval(hint, inspect.unwrap(function).__globals__)
    if get_origin(hint) is Unpack:
        return get_args(hint)[0], OnCommandLine()
    parts = tuple(part for part in get_args(hint) if part is not type(None))
    is_optional = type(None) in get_args(hint)
    for part in parts if is_optional else (hint,):
        if get_origin(part) is Annotated:
            inner, *extra = get_args(part)
            for how in extra:
                if isinstance(how, TaskOptions | PythonOnly):
                    return inner, how
                if isinstance(how, OnCommandLine):
                    return how.type or _type_of(inner), how
    return (parts[0] if is_optional and len(parts) == 1 else hint), OnCommandLine()


def _type_of(hint: Any) -> Any:
    """Return the type of an option's value: that of the argument, or text if it is wider."""
    parts = [part for part in get_args(hint) if part is not type(None)]
    known = parts[0] if type(None) in get_args(hint) and len(parts) == 1 else hint
    return known if known in (bool, int, float) or get_origin(known) is Literal else str


def _recipe_parser(*, full: bool, left_out: Set[str]) -> ArgumentParser:
    """Build a parser with an option for every recipe setting, shown by its short name.

    The help has those with a short name that is not `left_out`, or all if it is `full`.
    """
    from convnext.recipes.recipe import recipe_parser

    parser: ArgumentParser = recipe_parser("convnext")
    defaults = {name: setting.default for name, setting in all_settings().items()}
    short = {name: alias for alias, name in short_names().items()}
    sections = parser._action_groups[2:]
    settings = None if full else parser.add_argument_group("settings")
    for action in list(parser._actions):
        if action.dest in defaults:
            action.metavar = _metavar(action)
            action.help = _with_default(action.help or "", defaults[action.dest], sep=",")
            alias = short.get(action.dest)
            if alias:
                action.option_strings = [option_name(alias), *action.option_strings]
            is_shown = alias not in left_out if alias else "." not in action.dest
            if settings is not None and is_shown:
                settings._group_actions.append(action)
    if not full:
        for section in sections:
            section.title = section.description = None
            section._group_actions = []
    return parser


def _add(group: Any, p: Parameter) -> None:
    """Add an argument with the type of the function's parameter."""
    if p.is_positional:
        nargs = p.how.nargs or (None if p.is_required else "?")
        options = {} if nargs is None else {"nargs": nargs}
        group.add_argument(
            p.dest, type=p.hint, help=p.help, metavar=p.how.metavar or p.dest.upper(), **options
        )
        return
    name, shown = option_name(p.dest), _with_default(p.help, p.default)
    if p.hint is bool and p.default is True:
        group.add_argument(name, action=ActionYesNo(no_prefix="no-"), default=True, help=shown)
    elif p.hint in (bool, bool | None):
        group.add_argument(name, action="store_true", help=p.help)
    elif p.how.action:
        metavar = p.how.metavar or "TEXT"
        group.add_argument(name, action=p.how.action, help=p.help, metavar=metavar)
    else:
        options = {} if p.how.nargs is None else {"nargs": p.how.nargs}
        if p.how.const is not None:
            options["const"] = p.how.const
        action = group.add_argument(name, type=p.hint, help=shown, **options)
        action.metavar = p.how.metavar or _metavar(action)


def _add_switches(parser: ArgumentParser, verb: Verb) -> None:
    """Add the options that switch to another function, and that function's own options."""
    taken = {action.dest for action in parser._actions}
    for switch in verb.switches:
        function = verb.load(switch)
        group = parser.add_argument_group(
            f"only with {option_name(switch)}", (_docstring(function).short_description or "")
        )
        own = [p for p in signature_of(function).parameters if p.dest not in taken]
        if switch not in {p.dest for p in own}:
            text = (_docstring(function).short_description or "").rstrip(".")
            group.description = None
            group.add_argument(option_name(switch), action="store_true", help=text)
            taken.add(switch)
        for p in own:
            _add(group, p)
            taken.add(p.dest)


def _add_task_options(parser: ArgumentParser, verb: str) -> None:
    """Add the task options, grouped by the tasks that have them."""
    groups: dict[str, Any] = {}
    for owners, p in task_parameters(verb):
        title = " and ".join([", ".join(owners[:-1]), owners[-1]] if owners[1:] else owners)
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add(groups[title], p)


def task_parameters(verb: str) -> Iterator[tuple[tuple[str, ...], Parameter]]:
    """Yield a verb's task options, each with the folders of the tasks that have it."""
    owners: dict[str, list[str]] = {}
    found: dict[str, Parameter] = {}
    for task, kind in options_of_tasks(verb).items():
        described = {
            p.arg_name: p.description or ""
            for base in reversed(kind.__mro__[:-1])
            for p in _docstring(base).params
        }
        for f in fields(kind):
            owners.setdefault(f.name, []).append(task)
            hint, how = _resolve(f.type, _module_of(kind))
            found[f.name] = Parameter(
                name=f.name,
                hint=hint,
                default=None if f.default is MISSING else f.default,
                help=_plain(described.get(f.name, "")),
                how=how,
            )
    for name, p in found.items():
        yield tuple(owners[name]), p


def _module_of(kind: type) -> Any:
    """Return something with the globals of a class's module."""
    import sys
    from types import SimpleNamespace

    return SimpleNamespace(__globals__=vars(sys.modules[kind.__module__]))


def _description(function: Callable[..., Any]) -> str:
    parsed = _docstring(function)
    parts = (parsed.short_description, parsed.long_description)
    return "\n\n".join(part for part in parts if part)


def _epilog(verb: Verb) -> str:
    lines = verb.example.splitlines()
    text = f"example{'s' if len(lines) > 1 else ''}:\n" + "\n".join(f"  {line}" for line in lines)
    return f"{text}\n\n{verb.note}" if verb.note else text


def _usage(name: str, main: Signature) -> str:
    words = []
    for p in main.parameters:
        metavar = p.how.metavar or p.dest.upper()
        if p.is_positional:
            word = metavar if p.is_required else f"[{metavar}]"
            words.append(f"{word} ..." if p.how.nargs == "+" else word)
        elif p.is_required:
            words.append(f"{option_name(p.dest)} {metavar}")
    return " ".join(["convnext", name, *words, "[--option VALUE ...]"])


def _with_default(text: str, default: Any, sep: str = " ") -> str:
    if default is True:
        return f"{text.rstrip('.')} (default: yes)"
    if default is None or default == () or default == "" or isinstance(default, bool | dict):
        return text
    if default is inspect.Parameter.empty or "by default" in text or "efault:" in text:
        return text
    shown = f"{default:g}" if isinstance(default, float) else str(default)
    if isinstance(default, tuple):
        shown = sep.join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in default)
        shown = f"[{shown}]" if sep == "," else shown
    return f"{text.rstrip('.')} (default: {shown})".lstrip()


def _metavar(action: Any) -> str:
    """Return the placeholder for an option's value in the help."""
    if choices := _choices(getattr(action, "_typehint", None)):
        return f"{{{','.join(c or AUTO for c in choices if c not in _OLD_CHOICES)}}}"
    if action.metavar is not None and "ITEM" not in action.metavar:
        return str(action.metavar)
    hint = str(getattr(action, "_typehint", None) or action.type or "")
    kinds = {
        "tuple[str": "NAME,...",
        "tuple[int": "N,...",
        "tuple": "X,...",
        "dict": "{K: V}",
    }
    for kind, word in (*kinds.items(), ("float", "X"), ("int", "N"), ("bool", BOOL)):
        if kind in hint:
            return word
    return "TEXT"


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help text 100 columns wide that shows only the first name of each option."""

    def __init__(self, prog: str, **_: Any) -> None:
        super().__init__(prog, max_help_position=28, width=100)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        names = action.option_strings
        shown = names if names[0] == "-h" or isinstance(action, ActionYesNo) else names[:1]
        if action.nargs == 0 or (action.metavar == BOOL and "." not in shown[0]):
            return ", ".join(shown)
        return f"{', '.join(shown)} {self._format_args(action, 'VALUE')}"
