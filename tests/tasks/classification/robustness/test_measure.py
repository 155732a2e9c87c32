"""Logits restricted to a benchmark's classes, scores that survive an interruption, bad images."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convnext.data.preprocessing import Preprocessing
from convnext.data.samples import ArraySamples, FolderSamples
from convnext.tasks.classification.robustness.measure import (
    CorruptedDataset,
    Execution,
    Progressed,
    SomeSamples,
    Trial,
    choose,
    fingerprint,
    restrict,
    run_trials,
)

GRAY = Preprocessing(image_size=4, crop_pct=1.0, in_chans=1, mean=(0.0,), std=(1.0,))
EXECUTION = Execution(device=torch.device("cpu"), precision="fp32", batch_size=4)


class Favorite(nn.Module):
    """Predicts class 3 first, and second the class given by the image's brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.num_calls += 1
        level = (images.mean((1, 2, 3)) * 3).round().long().clamp(0, 2)
        logits = torch.zeros(len(images), 4)
        logits[torch.arange(len(images)), level] = 1.0
        logits[:, 3] = 2.0
        return logits


def levels(labels: list[int]) -> ArraySamples:
    """Return flat images with a brightness of 0, 1/3 or 2/3, according to their label."""
    images = np.stack([np.full((4, 4), 85 * label, np.uint8) for label in labels])
    return ArraySamples("levels", images, labels)


def clean(samples: SomeSamples, seed: int = 0) -> CorruptedDataset:
    return CorruptedDataset(samples, GRAY, seed=seed)


def test_only_the_classes_of_the_benchmark_compete() -> None:
    samples = choose(levels([0, 1, 2, 1, 0]), max_images=None, seed=0)
    scores = {}
    for kept in (None, [0, 1, 2], [1, 2]):
        state = Progressed.begin({}, {}, None)
        trial = Trial(corruption="imagenet-a", severity=0, open=lambda: clean(samples))
        run_trials(Favorite(), [trial], state, EXECUTION, kept_classes=kept)
        scores[str(kept)] = state.scores["imagenet-a", 0].top1
    # The favorite class wins; without it the image decides; without class 0, those fail.
    assert scores == {"None": 0.0, "[0, 1, 2]": 100.0, "[1, 2]": 60.0}


def test_restricted_logits_keep_their_values() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0]])
    assert restrict(logits, [0, 2]).tolist() == [[1.0, -np.inf, 2.0]]
    assert restrict(logits, None) is logits


def test_a_fixed_random_part_by_seed_of_some_classes() -> None:
    samples = levels([k % 3 for k in range(60)])
    first, again, other = (choose(samples, max_images=10, seed=s).positions for s in (1, 1, 2))
    assert first == again == sorted(set(first))
    assert len(first) == 10
    assert first != other
    some = choose(samples, max_images=None, seed=0, labels=[1])
    assert some.positions == list(range(1, 60, 3))
    assert set(some.labels) == {1}
    assert choose(samples, max_images=100, seed=0).positions == list(range(60))
    assert some.source(2) == samples.source(7)
    assert some.header(0) == samples.header(1)
    assert fingerprint(some) != fingerprint(choose(samples, max_images=None, seed=0, labels=[2]))


def test_an_image_is_corrupted_alike_alone_and_among_others() -> None:
    samples = levels([k % 3 for k in range(8)])
    every = clean(choose(samples, max_images=None, seed=0)).under("gaussian_noise", 3)
    one = clean(SomeSamples(samples, [5])).under("gaussian_noise", 3)
    assert torch.equal(every[5].pixels, one[0].pixels)
    assert not torch.equal(every[5].pixels, every[2].pixels)
    plain = clean(SomeSamples(samples, [5]))
    assert torch.equal(plain[0].pixels, torch.full((1, 4, 4), 170, dtype=torch.uint8))


def test_the_cache_holds_clean_images() -> None:
    dataset = clean(choose(levels([0, 1, 2]), max_images=None, seed=0))
    direct = dataset.under("impulse_noise", 5)[1].pixels
    dataset.fill_cache()
    assert torch.equal(dataset.under("impulse_noise", 5)[1].pixels, direct)
    assert torch.equal(dataset[1].pixels, torch.full((1, 4, 4), 85, dtype=torch.uint8))


def trials(dataset: CorruptedDataset, stop_at: int | None = None) -> list[Trial]:
    def stop() -> CorruptedDataset:
        raise KeyboardInterrupt

    names = ["gaussian_noise", "shot_noise", "fog"]
    opens: list[Callable[[], CorruptedDataset]] = [partial(dataset.under, n, 3) for n in names]
    if stop_at is not None:
        opens[stop_at] = stop
    return [Trial(corruption=n, severity=3, open=o) for n, o in zip(names, opens, strict=True)]


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    dataset = clean(choose(levels([0, 1, 2, 1]), max_images=None, seed=0))
    state = Progressed.begin({"seed": 0}, {"model": "m"}, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_trials(Favorite(), trials(dataset, stop_at=2), state, EXECUTION)
    kept = json.loads((tmp_path / "robustness.json").read_text())
    assert kept["complete"] is False
    assert [row["corruption"] for row in kept["conditions"]] == ["gaussian_noise", "shot_noise"]

    again = Progressed.begin({"seed": 0}, {"model": "m"}, tmp_path)
    assert again.num_found == 2
    model = Favorite()
    run_trials(model, trials(dataset), again, EXECUTION)
    assert model.num_calls == 1
    whole = Progressed.begin({"seed": 0}, {"model": "m"}, None)
    run_trials(Favorite(), trials(dataset), whole, EXECUTION)
    assert again.scores == whole.scores


def test_another_evaluation_is_moved_aside_and_found_again(tmp_path: Path) -> None:
    dataset = clean(choose(levels([0, 1]), max_images=None, seed=0))
    first = Progressed.begin({"seed": 0}, {}, tmp_path)
    run_trials(Favorite(), trials(dataset), first, EXECUTION)
    (tmp_path / "robustness.csv").write_text("first")
    second = Progressed.begin({"seed": 1}, {}, tmp_path)
    assert second.num_found == 0
    assert second.moved == f"robustness-{first.key[:8]}"
    assert (tmp_path / f"{second.moved}.csv").read_text() == "first"
    assert not (tmp_path / "robustness.json").exists()
    run_trials(Favorite(), trials(dataset), second, EXECUTION)
    third = Progressed.begin({"seed": 0}, {}, tmp_path)
    assert (third.num_found, third.scores) == (3, first.scores)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 3}'])
def test_a_file_that_is_not_ours_is_no_evaluation(content: str, tmp_path: Path) -> None:
    (tmp_path / "robustness.json").write_text(content)
    assert Progressed.begin({"seed": 0}, {}, tmp_path).num_found == 0


def test_one_bad_image_does_not_end_it_and_does_not_count(
    make_folder: Callable[..., Path],
) -> None:
    root = make_folder({"a": 5})
    (root / "a" / "002.png").write_bytes(b"no image")
    names = [f"a/{i:03d}.png" for i in range(5)]
    samples = choose(FolderSamples(root, names, [3] * 5), max_images=None, seed=0)
    state = Progressed.begin({}, {}, None)
    run_trials(Favorite(), trials(clean(samples)), state, EXECUTION)
    for score in state.scores.values():
        assert (score.num_images, score.num_correct) == (4, 4)
        ((source, reason),) = score.bad_images
        assert source == str(root / "a" / "002.png")
        assert "not an image" in reason
    none = Execution(device=torch.device("cpu"), precision="fp32", max_bad_share=0.0)
    with pytest.raises(ValueError, match="1 of 5 images cannot be read"):
        run_trials(Favorite(), trials(clean(samples)), Progressed.begin({}, {}, None), none)
