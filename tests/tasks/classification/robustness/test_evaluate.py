"""`convnext evaluate --robustness`, as a user runs it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import convnext.tasks.classification.robustness.measure as dataset_module
from convnext.cli import main
from convnext.data.preprocessing import Preprocessing
from convnext.tasks.classification.robustness.benchmarks import ALEXNET_ERROR, C_BAR, subset_synsets
from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS
from convnext.tasks.classification.robustness.table import draw_robustness, read_rows
from convnext.tasks.figures import save_bytes
from convnext.tasks.trained import build
from convnext.weights.checkpoint import Card
from convnext.weights.files import save_checkpoint

SMALL = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "stem_stride": 1}


def checkpoint(path: Path, classes: tuple[str, ...], in_chans: int, **recipe: str) -> str:
    torch.manual_seed(0)
    card = Card(
        task="classify",
        model="convnext_atto",
        changes={**SMALL, "num_classes": len(classes), "in_chans": in_chans},
        classes=classes,
        preprocessing=Preprocessing(
            image_size=8,
            crop_pct=0.5,
            in_chans=in_chans,
            mean=(0.5,) * in_chans,
            std=(0.2,) * in_chans,
        ),
        recipe=recipe,
    )
    save_checkpoint(path, build(card).state_dict(), card)
    return str(path)


@pytest.fixture
def digits(tmp_path: Path) -> str:
    return checkpoint(tmp_path / "digits.safetensors", tuple("0123456789"), 1, data="digits")


@pytest.fixture
def imagenet(tmp_path: Path) -> str:
    return checkpoint(tmp_path / "imagenet.safetensors", subset_synsets("imagenet"), 3)


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(found, dict)
    return found


FEW = (
    "--data",
    "digits",
    "--robustness",
    "--corruptions",
    "fog,contrast",
    "--severities",
    "5",
    "1",
)


def test_corruptions_of_the_users_own_data(
    digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["evaluate", digits, *FEW, "--max-images", "20", "--output", str(out)]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    for words in ("top-1 error in percent", "clean top-1", "relative loss of top-1", "not with"):
        assert words in shown
    assert sorted(p.name for p in out.iterdir()) == [
        f"robustness.{form}" for form in ("csv", "json", "png", "svg")
    ]
    rows = read_rows(out / "robustness.csv")
    assert [(r["corruption"], r["severity"]) for r in rows] == [
        *(("clean", "0"), ("fog", "1"), ("fog", "5"), ("contrast", "1"), ("contrast", "5")),
    ]
    assert {r["num_images"] for r in rows} == {"20"}
    # The figure shows exactly its table.
    assert save_bytes(draw_robustness(rows), "svg") == (out / "robustness.svg").read_bytes()

    assert main([*argv, "--json"]) == 0
    found = last_json(capsys)
    written = json.loads((out / "robustness.json").read_text())
    assert found == written
    assert found["complete"] is True
    assert len(found["conditions"]) == 5  # type: ignore[arg-type]


def test_going_on_gives_what_one_go_gives(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str, code: int = 0) -> dict[str, object]:
        argv = ["evaluate", digits, *FEW, "--max-images", "20", "--output", str(tmp_path / folder)]
        assert main(argv) == code
        found = json.loads((tmp_path / folder / "robustness.json").read_text())
        assert isinstance(found, dict)
        return found

    whole = run("whole")
    real, calls = dataset_module.corrupt, 0

    def count(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == limit:
            raise KeyboardInterrupt
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset_module, "corrupt", count)
    limit = 50
    assert run("parts", code=130)["complete"] is False
    calls, limit = 0, 10**9
    assert run("parts") == whole
    assert calls == 2 * 20  # Two of four conditions were finished.


def test_other_weights_are_another_evaluation(digits: str, tmp_path: Path) -> None:
    argv = ["evaluate", digits, *FEW, "--max-images", "5", "--output", str(tmp_path / "out")]
    assert main(argv) == 0
    first = json.loads((tmp_path / "out" / "robustness.json").read_text())["key"]
    torch.manual_seed(1)
    card_path = Path(digits)
    from convnext.weights.files import read_file

    weights, metadata = read_file(card_path)
    card = Card.from_metadata(metadata, where=digits)
    save_checkpoint(card_path, {n: t + 0.1 for n, t in weights.items()}, card)
    assert main(argv) == 0
    assert json.loads((tmp_path / "out" / "robustness.json").read_text())["key"] != first
    assert (tmp_path / "out" / f"robustness-{first[:8]}.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--robustness", "--corruptions", "smog"], "no corruption 'smog'"),
        (["--robustness", "--severities", "0", "6"], "severities are 1 to 5, not 0, 6"),
        (["--robustness", "--max-images", "0"], "max_images is 0"),
        (["--robustness", "absent"], "the folder absent does not exist"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], message: str, digits: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", digits, *options]) == 2
    assert message in capsys.readouterr().err


def test_its_options_alone_are_a_mistake(digits: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", digits, "--severities", "1"]) == 2
    assert "--severities needs --robustness" in capsys.readouterr().err


def pictures(folder: Path, synset: str, color: str, name: str = "x.JPEG") -> None:
    (folder / synset).mkdir(parents=True)
    Image.new("RGB", (8, 8), color).save(folder / synset / name)


def test_imagenet_c_whole_and_then_in_part(
    imagenet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "c"
    synsets = subset_synsets("imagenet")[:2]
    for k, name in enumerate([*CORRUPTIONS, "spatter"]):
        for level in range(1, 6):
            for synset in synsets:
                pictures(root / name / str(level), synset, f"hsl({20 * k}, 80%, {15 * level}%)")
    argv = ["evaluate", imagenet, "--robustness", str(root), "--json"]
    assert main(argv) == 0
    found = last_json(capsys)
    summary = found["summary"]
    assert isinstance(summary, dict)
    conditions = found["conditions"]
    assert isinstance(conditions, list)
    assert len(conditions) == 80
    by_hand = sum(
        sum(row["error"] for row in conditions if row["corruption"] == name) / 5 / alexnet
        for name, alexnet in ALEXNET_ERROR.items()
    )
    assert summary["mce"] == pytest.approx(100 * by_hand / 15)
    assert found["notes"] == ["the data has 2 of ImageNet's 1,000 classes"]
    assert not (tmp_path / "robustness.json").exists()

    assert main([*argv[:-1], "--severities", "1", "--corruptions", "fog,spatter"]) == 0
    shown = capsys.readouterr().out
    assert "spatter (not counted)" in shown
    assert "no mCE: 14 of 15 corruptions are missing" in shown


def test_images_of_imagenet_c_are_not_cropped_again(imagenet: str, tmp_path: Path) -> None:
    from convnext.tasks.classification.robustness.benchmarks import find_benchmark
    from convnext.tasks.classification.robustness.run import benchmark_trials
    from convnext.weights.checkpoint import find_checkpoint
    from convnext.weights.files import read_file

    found = find_checkpoint(imagenet)
    assert found is not None
    card = Card.from_metadata(read_file(found)[1], where=imagenet)
    synset = subset_synsets("imagenet")[0]
    folder = tmp_path / "sparkles" / "1" / synset
    folder.mkdir(parents=True)
    # The checkpoint's crop to one half would remove the white frame.
    image = Image.new("RGB", (8, 8), "white")
    image.paste("black", (1, 1, 7, 7))
    image.save(folder / "x.png")
    (folder / "a.png").write_bytes(b"no image, and the first by its name")
    (trial,) = benchmark_trials(find_benchmark(str(tmp_path)), card, None, 0)
    pixels = trial.open()[1].pixels
    assert (pixels[:, 0] == 255).all()
    assert (pixels[:, 1:7, 1:7] == 0).all()


def test_imagenet_a_chooses_among_its_200_classes(
    imagenet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from convnext.weights.files import read_file

    weights, metadata = read_file(Path(imagenet))
    card = Card.from_metadata(metadata, where=imagenet)
    every, subset = subset_synsets("imagenet"), subset_synsets("imagenet_a")
    outside = next(k for k, synset in enumerate(every) if synset not in subset)
    # The bias alone decides: a class outside the benchmark, then its first class.
    bias = torch.zeros(1000)
    bias[outside], bias[every.index(subset[0])] = 9.0, 5.0
    zeroed = {n: t * 0 if n.startswith("head") else t for n, t in weights.items()}
    name = next(n for n in weights if n.startswith("head") and weights[n].shape == (1000,))
    save_checkpoint(imagenet, zeroed | {name: bias}, card)
    for synset in subset:
        pictures(tmp_path / "a", synset, "red")
    out = tmp_path / "out"
    argv = ["evaluate", imagenet, "--robustness", str(tmp_path / "a"), "--output", str(out)]
    assert main([*argv, "--json"]) == 0
    found = last_json(capsys)
    assert isinstance(found["summary"], dict)
    assert found["benchmark"] == "imagenet-a"
    assert found["summary"]["mean_top1"] == pytest.approx(0.5)  # One of 200.
    assert (out / "robustness.png").is_file()


def test_the_csv_is_read_by_anything(digits: str, tmp_path: Path) -> None:
    argv = ["evaluate", digits, *FEW, "--max-images", "4", "--output", str(tmp_path)]
    assert main(argv) == 0
    with (tmp_path / "robustness.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            assert float(line["top1"]) + float(line["error"]) == pytest.approx(100)


def test_c_bar_has_its_mean_and_no_mce(
    imagenet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in C_BAR[1:]:
        pictures(tmp_path / "bar" / name / "2", subset_synsets("imagenet")[0], "blue")
    assert main(["evaluate", imagenet, "--robustness", str(tmp_path / "bar")]) == 0
    shown = capsys.readouterr().out
    assert "ImageNet-C-bar" in shown
    assert "mCE" not in shown
    assert "missing corruptions: blue_noise_sample" in shown
