"""The options of the command line: frozen, the same in Python, and shown on two screens."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path

import pytest

from convnext.api.settings import SHORT, Settings
from convnext.cli import VERBS, main
from convnext.cli.arguments import call_of
from convnext.cli.parser import build_parser, signature_of
from convnext.recipes.recipe import all_settings
from convnext.tasks import DEFAULT, given_options, options_of_tasks, task_folder, task_names

FROZEN = Path(__file__).with_name("options.txt")
# Two screens of 45 lines.
MAX_LINES = 90


def options() -> str:
    """Return a line for every verb and each of its options, sorted."""
    parser = build_parser(full=True)
    assert parser._subcommands_action is not None
    lines = []
    for verb, inner in parser._subcommands_action._name_parser_map.items():
        for action in inner._actions:
            names = " ".join(action.option_strings) or action.dest.upper()
            choices = f" {{{','.join(map(str, action.choices))}}}" if action.choices else ""
            lines.append(f"{verb} {names}{choices}")
    return "\n".join(sorted(lines)) + "\n"


def test_the_options_are_frozen() -> None:
    found = options()
    # To change them on purpose, write `options()` into the file.
    assert found == FROZEN.read_text(encoding="utf-8")


def test_the_short_names_are_frozen() -> None:
    assert SHORT == {
        "epochs": "schedule.epochs",
        "warmup_epochs": "schedule.warmup_epochs",
        "batch_size": "optim.batch_size",
        "micro_batch_size": "optim.micro_batch_size",
        "lr": "optim.lr",
        "weight_decay": "optim.weight_decay",
        "layer_decay": "optim.layer_decay",
        "freeze": "optim.freeze",
        "unfreeze_at": "optim.unfreeze_at",
        "image_size": "input.image_size",
        "drop_path_rate": "network.drop_path_rate",
        "mixup": "augment.mixup",
        "cutmix": "augment.cutmix",
        "rand_augment": "augment.rand_augment",
        "label_smoothing": "loss.label_smoothing",
        "thresholds": "loss.thresholds",
        "balance": "loss.balance",
        "ema_decay": "ema.decay",
        "workers": "loader.workers",
        "val_share": "loader.val_share",
        "max_bad_share": "loader.max_bad_share",
        "group": "loader.group",
        "columns": "loader.columns",
        "fold": "loader.fold",
        "layout": "detect.layout",
        "annotations": "detect.annotations",
        "images": "detect.images",
        "exif": "detect.exif",
        "boxes": "detect.boxes",
        "allow_outside": "detect.allow_outside",
        "device": "run.device",
        "devices": "run.devices",
        "precision": "run.precision",
        "eval_every": "run.eval_every",
        "primary": "run.primary",
        "patience": "run.patience",
        "seed": "run.seed",
        "deterministic": "run.deterministic",
    }


def test_short_names_stand_for_settings_in_python_too() -> None:
    leaves = all_settings()
    assert set(SHORT.values()) <= set(leaves)
    sections = {name.partition(".")[0] for name in leaves if "." in name}
    assert set(Settings.__annotations__) == set(SHORT) | sections


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_on_two_screens(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= 100


def test_every_setting_is_in_the_full_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["train", "--help-all"])
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    short = {full: f"--{name.replace('_', '-')}" for name, full in SHORT.items()}
    for name in all_settings():
        assert short.get(name, f"--{name}") in shown, name


@pytest.mark.parametrize(
    "words",
    [
        ["--batch-size", "8"],
        ["--batch_size=8"],
        ["--optim.batch_size", "8"],
        ["--optim.batch-size", "8"],
    ],
)
def test_all_spellings_of_a_setting_are_one(words: list[str]) -> None:
    assert call_of("train", words).arguments == {"optim.batch_size": 8}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--deterministic"], True),
        (["--deterministic", "true"], True),
        (["--no-deterministic"], False),
        (["--run.deterministic", "false"], False),
    ],
)
def test_settings_that_are_true_or_false_need_no_value(words: list[str], expected: bool) -> None:
    assert call_of("train", words).arguments == {"run.deterministic": expected}


@pytest.mark.parametrize(
    ("verb", "words", "message"),
    [
        ("predict", ["run", "a.png", "--scroe", "1"], "did you mean --score\\?"),
        ("predict", ["run"], "predict needs IMAGE"),
        ("train", ["--epoch", "3"], "did you mean --epochs\\?"),
        ("train", ["--epochs", "many"], "schedule.epochs is many"),
        ("evaluate", ["run", "--severities", "1"], "--severities needs --robustness"),
        ("evaluate", ["run", "--robustness", "--boundary"], "cannot be used with --robustness"),
        ("data", ["d", "--to-shards", "x", "--fix"], "give one of --to-shards, --fix"),
        ("data", ["d", "--to", "coco"], "data --to needs --output"),
        ("export", ["run"], "export needs"),
        (
            "export",
            ["r", "--format", "onyx"],
            "onyx, but must be one of 'onnx', 'openvino', 'pt2'$",
        ),
        ("predict", ["run", "a.png", "--topk", "x"], "topk is x, but must be an integer"),
        ("predict", ["run", "a.png", "--score", "x"], "score is x, but must be a number"),
    ],
)
def test_mistakes_name_what_was_meant(verb: str, words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call_of(verb, words)


@pytest.mark.parametrize("verb", VERBS)
def test_every_argument_of_a_verb_is_documented(verb: str) -> None:
    for switch in ("", *VERBS[verb].switches):
        function = VERBS[verb].load(switch)
        assert inspect.getdoc(function)
        missing = [p.name for p in signature_of(function).parameters if not p.help]
        assert missing in ([], ["recipe", "data", "model", "weights", "task"])


def test_what_follows_two_hyphens_is_no_option() -> None:
    call = call_of("predict", ["run", "--", "--help-all", "--json"])
    assert call.arguments["images"] == ["--help-all", "--json"]
    assert not call.as_json


def test_options_have_the_types_of_their_arguments() -> None:
    words = ["run", "--format", "onnx", "--batch", "2", "--size", "64"]
    call = call_of("export", words)
    assert (call.arguments["batch"], call.arguments["size"]) == (2, "64")
    with pytest.raises(ValueError, match="batch"):
        call_of("export", [*words, "--batch", "many"])


def test_auto_stands_for_the_empty_choice() -> None:
    assert call_of("data", ["cells", "--exif", "auto", "--boxes=auto"]).arguments["boxes"] == ""
    assert call_of("data", ["cells", "--exif", "turned"]).arguments["exif"] == "turned"
    assert call_of("train", ["--precision", "auto"]).arguments["run.precision"] == "auto"


@pytest.mark.parametrize("task", task_names())
def test_every_verb_that_reads_data_takes_the_options_of_data(task: str) -> None:
    kinds = {verb: options_of_tasks(verb)[task_folder(task)] for verb in ("data", "evaluate")}
    of_data, of_evaluate = ({f.name for f in fields(kind)} for kind in kinds.values())
    # Other data without a split is evaluated as a whole, so that groups do not matter.
    assert of_data - of_evaluate <= {"group"}
    settings = {name.rpartition(".")[2] for name, s in all_settings().items() if task in s.tasks}
    assert of_data <= settings | SHORT.keys()
    for switch in ("", "to_shards", "fix", "to"):
        assert signature_of(VERBS["data"].load(switch)).task_options == "data"
    robust = {p.name for p in signature_of(VERBS["evaluate"].load("robustness")).parameters}
    assert task != DEFAULT or of_data - {"group"} <= robust


def test_masks_of_a_file_have_an_old_name() -> None:
    named = [
        given_options("detect", "export", {"masks": name}) for name in ("probabilities", "shares")
    ]
    assert named[0] == named[1] == {"masks": "shares"}
