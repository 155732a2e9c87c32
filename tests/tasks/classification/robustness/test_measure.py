"""Benchmarks on disk, their scores, and the measurement that goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from convnext.checkpoint import Card
from convnext.cli import main
from convnext.preprocess import Preprocessing
from convnext.tasks.classification.robustness import measure as measure_module
from convnext.tasks.classification.robustness.benchmarks import (
    ALEXNET_ERROR,
    C_BAR,
    EXTRA,
    find_benchmark,
    mean_ce,
    mean_error,
    score_corruptions,
)
from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS, SEVERITIES
from convnext.tasks.classification.robustness.measure import (
    Kept,
    choose,
    measure_benchmark,
    measure_corruptions,
)
from convnext.tasks.classification.robustness.report import (
    draw_robustness,
    print_robustness,
    read_rows,
    write_robustness,
)
from convnext.tasks.classification.samples import ArraySamples

CPU = torch.device("cpu")


class Brightest(nn.Module):
    """Says which of the three channels is brightest."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.fixture
def card() -> Card:
    return Card(
        model="brightest",
        changes={},
        classes=("red", "green", "blue"),
        preprocessing=Preprocessing(
            image_size=16,
            crop_pct=1.0,
            interpolation="bicubic",
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            in_chans=3,
        ),
        recipe={},
        metrics={},
    )


@pytest.fixture
def samples() -> ArraySamples:
    labels = [i % 3 for i in range(12)]
    images = np.random.default_rng(0).integers(60, 120, (12, 16, 16, 3)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[..., label] += 60
    return ArraySamples("made up", images, labels)


def measured(card: Card, samples: ArraySamples, **options: Any) -> Any:
    return measure_corruptions(
        Brightest(),
        card,
        samples,
        **{
            "device": CPU,
            "precision": "fp32",
            "source": "somewhere",
            "data": "made up",
            "corruptions": ("gaussian_noise", "fog"),
            "severities": (1, 5),
        }
        | options,
    )


def test_mce_is_as_its_authors_define_it() -> None:
    # Errors of 10, 20, ... 50 at the five severities, and AlexNet's own for one corruption.
    errors = {(name, s): 10.0 * s for name in ALEXNET_ERROR for s in SEVERITIES}
    errors |= {("fog", s): ALEXNET_ERROR["fog"] for s in SEVERITIES}
    errors |= {("spatter", s): 99.0 for s in SEVERITIES}
    scores = score_corruptions(errors, published=True)
    by_name = {score.corruption: score for score in scores}
    assert by_name["fog"].ce == pytest.approx(100)
    assert by_name["snow"].ce == pytest.approx(100 * 30 / 86.7)
    assert by_name["spatter"].ce is None
    expected = [100 * 30 / e for name, e in ALEXNET_ERROR.items() if name != "fog"] + [100]
    assert mean_ce(scores) == pytest.approx(sum(expected) / 15)
    assert mean_error(scores) == pytest.approx((14 * 30 + 81.9) / 15)


def test_a_partial_copy_has_no_mce() -> None:
    errors = {(name, s): 50.0 for name in ALEXNET_ERROR for s in SEVERITIES}
    del errors["snow", 5]
    assert mean_ce(score_corruptions(errors, published=True)) is None
    whole = {(name, s): 50.0 for name in ALEXNET_ERROR for s in SEVERITIES}
    # What is corrupted here is not what AlexNet was measured on.
    assert mean_ce(score_corruptions(whole, published=False)) is None


def test_alexnets_errors_are_those_of_all_fifteen() -> None:
    assert set(ALEXNET_ERROR) == set(CORRUPTIONS)
    assert not set(CORRUPTIONS) & {*EXTRA, *C_BAR}


@pytest.mark.parametrize(
    ("folders", "kind", "count"),
    [
        (["fog/1/a", "fog/2/a", "snow/1/a"], "c", 3),
        (["noise/gaussian_noise/3/a", "weather/fog/1/a"], "c", 2),
        (["sparkles/1/a", "plasma_noise/5/a"], "c-bar", 2),
        (["n01440764", "n01443537"], "pictures", 1),
    ],
)
def test_benchmarks_are_recognised(
    make_folder: Callable[..., Path], folders: list[str], kind: str, count: int
) -> None:
    found = find_benchmark(str(make_folder(dict.fromkeys(folders, 1))))
    assert (found.kind, len(found.conditions)) == (kind, count)


def test_what_is_no_benchmark(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="CORRUPTION/SEVERITY/CLASS"):
        find_benchmark(str(tmp_path))
    with pytest.raises(ValueError, match="there is no folder"):
        find_benchmark(str(tmp_path / "absent"))


def test_the_choice_is_among_the_classes_that_are_there() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
    assert choose(logits, None).tolist() == [0, 1]
    assert choose(logits, [1, 2]).tolist() == [2, 1]


def test_a_subset_of_the_classes_is_easier(card: Card, samples: ArraySamples) -> None:
    images = samples.images[[1, 2]].copy()  # type: ignore[attr-defined]
    images[..., 0] = 255  # All of them look red, which neither of them is.
    two = ArraySamples("two", images, [1, 2])
    found = find_benchmark_of_one()
    result = measure_benchmark(
        Brightest(), card, found, lambda _: two, device=CPU, precision="fp32", source="x"
    )
    assert (result.num_classes, 100 - result.mean_error) == (2, 100.0)
    three = ArraySamples("three", np.concatenate([images, images[:1]]), [1, 2, 0])
    result = measure_benchmark(
        Brightest(), card, found, lambda _: three, device=CPU, precision="fp32", source="x"
    )
    assert result.num_classes == 3
    assert 100 - result.mean_error == pytest.approx(100 / 3)


def find_benchmark_of_one() -> Any:
    from convnext.tasks.classification.robustness.benchmarks import Benchmark, Condition

    condition = Condition(corruption="imagenet-a", severity=0, path="x")
    return Benchmark(kind="pictures", title="imagenet-a", conditions=[condition])


def test_corruptions_cost_accuracy(card: Card, samples: ArraySamples) -> None:
    result = measured(card, samples, corruptions=("gaussian_noise", "contrast"))
    assert result.clean == 100.0
    assert {s.corruption for s in result.scores} == {"gaussian_noise", "contrast"}
    assert all(set(score.errors) == {1, 5} for score in result.scores)
    assert result.mce is None
    assert measured(card, samples, corruptions=("gaussian_noise", "contrast")) == result


def test_an_interrupted_measurement_goes_on(
    card: Card, samples: ArraySamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.json"
    whole = measured(card, samples)
    calls: list[str] = []
    real = measure_module._top1

    def counted(model: Any, dataset: Any, *rest: Any) -> float:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(f"{dataset.corruption} {dataset.severity}")
        return real(model, dataset, *rest)

    monkeypatch.setattr(measure_module, "_top1", counted)
    with pytest.raises(KeyboardInterrupt):
        measured(card, samples, kept=kept)
    calls[:] = ["x", "y"]
    with pytest.raises(KeyboardInterrupt):
        measured(card, samples, kept=kept)
    # Clean, noise 1 and noise 5 were kept: the next is fog.
    assert calls == ["x", "y", "fog 1"]
    calls.clear()
    assert measured(card, samples, kept=kept) == whole
    assert calls == ["fog 5"]
    assert Kept(kept, {"another": "key"}).values == {}


def test_a_fixed_part_of_the_images(card: Card, samples: ArraySamples) -> None:
    one, other = (measured(card, samples, max_images=5) for _ in range(2))
    assert one.num_images == 5
    assert one == other


def test_what_is_written_and_drawn(card: Card, samples: ArraySamples, tmp_path: Path) -> None:
    result = measured(card, samples)
    written = write_robustness(result, tmp_path)
    assert [path.suffix for path in written] == [".json", ".csv", ".svg", ".png"]
    tree = json.loads(written[0].read_text())
    assert tree["clean_top1"] == 100.0
    rows = read_rows(written[1])
    assert len(rows) == 1 + 2 * 2
    fig = draw_robustness(rows)
    assert fig is not None
    assert [axes.get_title(loc="left") for axes in fig.axes] == ["gaussian noise", "fog"]
    drawn = dict(zip((1, 5), fig.axes[0].lines[1].get_ydata(), strict=True))
    assert drawn == pytest.approx({k: 100 - v for k, v in result.scores[0].errors.items()})
    console = Console(width=100)
    with console.capture() as captured:
        print_robustness(result, console)
    assert "compare them with each other" in " ".join(captured.get().split())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--output", str(tmp_path / "run"), *SHORT]) == 0
    capsys.readouterr()
    arguments = ["evaluate", str(tmp_path / "run"), "--robustness", "--max-images", "40"]
    assert main([*arguments, "--corruptions", "fog,pixelate", "--severities", "2", "--json"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    tree = json.loads(last)
    assert [row["corruption"] for row in tree["corruptions"]] == ["fog", "pixelate"]
    assert (tmp_path / "run" / "robustness.png").is_file()
    assert main([*arguments, "--corruptions", "rain"]) == 2
    assert "there is no corruption 'rain'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "run"), "--severities", "2"])
    assert "belong to --robustness" in capsys.readouterr().err


SHORT = (
    "--schedule.epochs",
    "1",
    "--network.changes",
    "{depths: [1, 1, 1, 1], dims: [8, 8, 8, 8]}",
    "--run.device",
    "cpu",
)
