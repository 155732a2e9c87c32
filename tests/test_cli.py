"""The command line: imports, help, exit codes, one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from shapes import write_shapes

from convnext.cli import VERBS, main

EXPORTERS = ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")
HEAVY = ("torch", "torchvision", "timm", "numpy", "PIL", "rich", "matplotlib", "jsonargparse")


def imported_by(code: str) -> set[str]:
    """Return the heavy packages that a fresh interpreter imports for `code`."""
    script = f"import sys\n{code}\nprint([m for m in {HEAVY + EXPORTERS!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return set(eval(done.stdout.splitlines()[-1]))


def test_import_is_light() -> None:
    assert imported_by("import convnext") == set()


def test_help_is_light() -> None:
    assert imported_by("from convnext.cli import main\nmain(['--help'])") == set()


def test_no_export_library_comes_before_it_is_asked_for() -> None:
    found = imported_by(
        "import convnext.api.model, convnext.deploy.export, convnext.deploy.fast\n"
        "import torch\n"
        "network = convnext.create_model('convnext_atto', depths=(1, 1, 1, 1), num_classes=2)\n"
        "convnext.fold(network.eval())(torch.zeros(1, 3, 32, 32))"
    )
    assert "torch" in found
    assert not found & set(EXPORTERS)


def test_public_names_are_lazy_but_there() -> None:
    import convnext

    for name in convnext.__all__:
        assert getattr(convnext, name) is not None
    assert set(dir(convnext)) == set(convnext.__all__)
    # Functions keep their names after modules have been imported.
    assert callable(convnext.roadmap)
    assert callable(convnext.cost)
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        _ = convnext.creat_model


def test_usage_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(verb in shown for verb in VERBS)
    assert main([]) == 2


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main([verb, "--help"])
    assert leaving.value.code == 0
    shown = capsys.readouterr().out
    assert "example" in shown
    assert f"convnext {verb}" in shown
    assert "--json" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "there is no verb 'trian'; did you mean 'train'?"),
        (["train", "--optim.lrr", "1"], "no option --optim.lrr; did you mean --optim.lr?"),
        (["train", "--optim.lr", "fast"], "optim.lr is fast, but must be a number or 'auto'"),
        (["train", "imagenet1k_tinny"], "did you mean 'imagenet1k_tiny'?"),
        (["train", "--resume"], "--resume needs --output"),
        (["train", "--data", "no/such/folder"], "no/such/folder"),
        (["train", "--model", "convnext_tinny", "--data", "digits"], "did you mean"),
        (["models", "convnxt_*"], "no model matches"),
        (["predict", "no/such/run", "image.png"], "no/such/run"),
        (["evaluate", "no/such/run"], "no/such/run"),
        (["data", "no/such/folder"], "no/such/folder"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(argv) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("convnext: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in error


def test_unknown_options_of_plain_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--colour"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_json_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "convnext_atto", "--json"]) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out.splitlines()[-1])["models"]
    assert {row["model"] for row in rows} == {"convnext_atto"}
    assert rows[0]["params"] == 3_695_520 or rows[0]["num_classes"] != 1000
    assert main(["roadmap", "--json"]) == 0
    rungs = json.loads(capsys.readouterr().out.splitlines()[-1])["rungs"]
    assert len(rungs) == 17


def test_data_takes_options_as_train_names_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_shapes(tmp_path / "s", 2, 1)
    (root / "images").rename(root / "left")
    (root / "annotations").rename(root / "truth")
    patterns = "left/{split}/*.png", "truth/{split}/*.png"
    for section in ("segment.", ""):
        options = f"--{section}images", patterns[0], f"--{section}masks={patterns[1]}"
        sheet = tmp_path / "[b] sheet[" / "x].png"
        assert main(["data", str(root), *options, "--contact-sheet", str(sheet)]) == 0
        assert f"contact sheet: {sheet}" in capsys.readouterr().out
        assert sheet.is_file()
    assert main(["data", str(root), "--segment.nothing", "x"]) == 2


def test_commands_work_with_closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["--version"]) == 0
    assert main(["no-such-verb"]) == 2
    for stream in (sys.stdout, sys.stderr):
        stream.close()
