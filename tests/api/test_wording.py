"""Errors name arguments as the caller writes them, in Python and on the command line."""

from __future__ import annotations

import re
from typing import Any

import pytest

import convnext
from convnext.api.settings import in_python
from convnext.cli import VERBS, main
from convnext.cli.parser import signature_of


@pytest.mark.parametrize(
    ("function", "message", "expected"),
    [
        (convnext.train, "continue it with --resume, or choose another --output",
         "continue it with resume=True, or choose another output"),
        (convnext.train, "Try --optim.lr 0.01, or --network.stem_stride 2",
         "Try lr 0.01, or network.stem_stride 2"),
        (convnext.train, "saved; resume with: convnext train --resume --output a; or --epochs",
         "saved; resume with: convnext train --resume --output a; or epochs"),
        (convnext.train, "see `convnext data PATH --fix`, or allow more with --max-bad-share",
         "see `convnext data PATH --fix`, or allow more with max_bad_share"),
        (convnext.evaluate, "--whole excludes --window", "whole=True excludes window"),
        (convnext.predict, "--no-fast turns this off", "fast=False turns this off"),
        (convnext.run_roadmap, "leave out --from and --to", "leave out start and stop"),
        (convnext.export, "a-b -- c --- d", "a-b -- c --- d"),
    ],
)  # fmt: skip
def test_options_become_arguments(function: object, message: str, expected: str) -> None:
    assert in_python(message, function) == expected  # type: ignore[arg-type]


def test_python_and_the_command_line_each_see_their_own_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^resume=True needs output, the folder"):
            convnext.train(resume=True)
        assert main(["train", "--resume"]) == 2
        assert "convnext: --resume needs --output, the folder" in capsys.readouterr().err


def test_a_decorated_verb_keeps_its_signature() -> None:
    names = [p.name for p in signature_of(convnext.export).parameters]
    assert names[:3] == ["source", "format", "precision"]
    assert convnext.export.__module__ == "convnext.api.tools"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epochs": "ten"}, "epochs is ten, but must be an integer or 'auto'"),
        ({"batch-size": 0}, "batch_size is 0, but must be at least 1"),
        ({"optim.batch_size": 0}, "optim.batch_size is 0, but must be at least 1"),
        ({"images": "x"}, "classification does not use images"),
    ],
)
def test_settings_are_named_as_the_user_wrote_them(
    given: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        convnext.train(data="digits", progress=False, **given)
    ((name, value),) = given.items()
    option = f"--{name}" if "." in name else f"--{name.replace('_', '-')}"
    assert main(["train", "--data", "digits", option, str(value)]) == 2
    said = capsys.readouterr().err
    if "." not in name:
        message = message.replace(name.replace("-", "_"), option)
    assert said.strip() == f"convnext: {message}"


def test_the_help_of_an_option_does_not_refer_to_another_verb(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in VERBS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert "As for `" not in capsys.readouterr().out.replace("written as for", "")


def test_benchmark_takes_the_earlier_name_of_its_backends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for option in ("--forms", "--backends"):
        assert main(["benchmark", "no_such_network", option, "eager"]) == 2
        assert "no_such_network" in capsys.readouterr().err
