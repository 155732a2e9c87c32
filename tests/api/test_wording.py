"""Errors name arguments as the caller writes them, in Python and on the command line."""

from __future__ import annotations

import pytest

import convnext
from convnext.api.settings import in_python
from convnext.cli import main
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
