"""A run from data to predictions, on pictures so small that it takes seconds."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from predicting import run_predictor
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

import convnext.tasks.classification.evaluate
import convnext.tasks.classification.predict
import convnext.tasks.classification.task
from convnext import load
from convnext.cli import main
from convnext.data.tensors import to_batch
from convnext.hardware import peak_rates
from convnext.recipes import resolve as resolving
from convnext.recipes.recipe import Recipe, change_recipe, flatten, read_recipe, to_dict
from convnext.reports.report import write_report
from convnext.tasks.classification.evaluate import evaluate
from convnext.tasks.classification.predict import infer
from convnext.tasks.classification.recipe import ClassificationLoader
from convnext.tasks.evaluation import EvaluationSettings
from convnext.tasks.trained import open_model
from convnext.training import run as run_module
from convnext.training.log import read_metrics
from convnext.training.run import RunResult, train
from convnext.weights.checkpoint import Card, find_checkpoint
from convnext.weights.files import read_file

QUIET = Console(quiet=True)
SMALL = {
    "model": "convnext_atto",
    "network.changes": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]},
    "input.image_size": 32,
    "optim.batch_size": 8,
    "optim.lr": 3e-3,
    "schedule.epochs": 4,
    "run.eval_every": 1,
    "run.device": "cpu",
    "run.precision": "fp32",
}
COLORS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (210, 50, 40)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of noisy pictures of different sizes in three colors."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 7)):
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                shape = (40 + 3 * i, 52 - i, 3)
                pixels = np.clip(rng.normal(color, 70, shape), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:02d}.jpg", quality=90)
    (root / "val/red/broken.jpg").write_bytes((root / "val/red/00.jpg").read_bytes()[:300])
    return root


def recipe(photos: Path, **changes: Any) -> Recipe:
    settings = SMALL | {"data": str(photos), "loader.max_bad_share": 0.1}
    return change_recipe(Recipe(), settings | {k.replace("__", "."): v for k, v in changes.items()})


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    folder = tmp_path_factory.mktemp("runs") / "first"
    return train(recipe(photos), output=folder, console=QUIET, write_report=write_report)


def test_it_learns(finished: RunResult) -> None:
    assert finished.best["top1"] > 60


def test_the_run_folder_is_complete(finished: RunResult) -> None:
    folder = finished.folder
    for name in (
        "recipe.yaml",
        "metrics.jsonl",
        "report.html",
        "evaluation.json",
        "choices.json",
        "environment.json",
        "model.json",
        "data.json",
        "checkpoints/best.safetensors",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert list((folder / "tensorboard").glob("events*"))
    resolved = dict(flatten(read_recipe(folder / "recipe.yaml")))
    of_the_machine = {
        "optim.momentum",  # AdamW has none.
        "run.device",
        "run.devices",
        "run.threads",
        "loader.shard_cache",
        "loader.shard_cache_gb",
    }
    of_the_optimizer = {"optim.betas", "optim.eps", "optim.momentum"}  # Its own, if not given.
    # Those of the loss are for several labels.
    of_labels = ("loss.pos_weight", "loss.gamma", "loss.alpha", "loss.margin")
    others = ("segment.", "detect.", "loader.layout", *of_labels)
    own = [
        k
        for k in resolved
        if k not in of_the_machine | of_the_optimizer and not k.startswith(others)
    ]
    assert "auto" not in [resolved[k] for k in own]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert evaluation["top1"] == finished.best["top1"]
    assert (evaluation["precision"], evaluation["backend"]) == ("fp32", "folded")
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["validation"] == "22 images, split: val, in fp32, eager"
    assert [bad["source"].endswith("broken.jpg") for bad in evaluation["bad_images"]] == [True]


def test_a_checkpoint_says_what_it_is(finished: RunResult) -> None:
    path = find_checkpoint(finished.folder)
    assert path is not None
    _, metadata = read_file(path)
    card = Card.from_metadata(metadata, where=str(path))
    assert card.classes == ("blue", "green", "red")
    assert card.model == "convnext_atto"
    assert card.preprocessing.image_size == 32
    assert card.metrics["top1"] == finished.best["top1"]
    assert card.recipe["optim"]["lr"] == 3e-3


def test_training_evaluate_and_predict_agree_bit_for_bit(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: dict[str, list[Tensor]] = {}

    def record(name: str) -> Any:
        def recording(*args: Any, **kwargs: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            rows = recorded[name] = []
            for batch in infer(*args, **kwargs):
                rows.append(batch[0])
                yield batch

        return recording

    for name, module in (
        ("train", convnext.tasks.classification.task),
        ("evaluate", convnext.tasks.classification.evaluate),
        ("predict", convnext.tasks.classification.predict),
    ):
        monkeypatch.setattr(module, "infer", record(name))
    # One evaluation of the final weights, with the moving average off.
    changes = {"schedule__epochs": 2, "run__eval_every": 2, "ema__decay": 0.0}
    run = train(recipe(photos, **changes), output=tmp_path / "run", console=QUIET)
    evaluate(str(run.folder), EvaluationSettings(backend="eager"))
    run_predictor(str(run.folder), [photos / "val"])
    logits = {name: torch.cat(rows) for name, rows in recorded.items()}
    assert len(logits["train"]) == 21
    assert torch.equal(logits["train"], logits["evaluate"])
    assert torch.equal(logits["train"], logits["predict"])


def test_predictions_are_written(finished: RunResult, photos: Path, tmp_path: Path) -> None:
    images = [str(photos / "val/blue/00.jpg"), str(photos / "val/red")]
    assert main(["predict", str(finished.folder), *images, "--output", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert len(written["predictions"]) == 8
    assert len(written["bad_images"]) == 1
    first = written["predictions"][0]
    assert first["source"] == images[0]
    assert sum(first["probabilities"]) == pytest.approx(1, abs=1e-5)
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert len(rows) == 8 * 3
    assert rows[0]["class"] == first["classes"][0]


def test_evaluate_from_the_command_line(
    finished: RunResult, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["evaluate", str(finished.folder), "--max-bad-share", "0.1", "--json"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    shown = json.loads(captured.out.splitlines()[-1])
    assert shown["top1"] == finished.best["top1"]
    conditions = {"num_images": 21, "split": "val", "precision": "fp32", "backend": "folded"}
    assert conditions.items() <= shown.items()
    assert "21 images, split: val, in fp32, folded" in " ".join(captured.err.split())
    assert np.sum(shown["confusion"]) == shown["num_images"] == 21
    assert main([*argv, "--data", "digits"]) == 2
    assert "does not know 10 of the data's 10 classes" in capsys.readouterr().err


def test_the_primary_metric_selects_the_best_weights(photos: Path, tmp_path: Path) -> None:
    changes = {"run__primary": "balanced_accuracy", "loss__balance": "sampler"}
    found = train(
        recipe(photos, **changes), output=tmp_path, console=QUIET, write_report=write_report
    )
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if row["kind"] == "val"]
    best = max(row["balanced_accuracy"] for row in rows)
    assert found.best["balanced_accuracy"] == best
    assert {"top1", "macro_f1"} <= found.best.keys()
    assert "balanced accuracy" in (tmp_path / "report.html").read_text(encoding="utf-8")
    task = convnext.tasks.classification.task.ClassificationTask
    assert task.metric_of(to_dict(read_recipe(tmp_path / "recipe.yaml")))[0] == "balanced_accuracy"
    assert task.metric_of({})[0] == "top1"


def test_views_of_an_image_are_averaged(
    finished: RunResult, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, images = load(finished.folder, device="cpu"), sorted((photos / "val/red").glob("0*.jpg"))
    good = [Image.open(file).convert("RGB") for file in images[1:4]]
    image = good[0]
    mirrored = ImageOps.mirror(image)
    (one,), (other,) = (model.predict([i], progress=False) for i in (image, mirrored))
    assert np.abs(one.probabilities - other.probabilities).max() > 1e-4
    (one,), (other,) = (model.predict([i], flip=True, progress=False) for i in (image, mirrored))
    assert np.allclose(one.probabilities, other.probabilities, atol=1e-6)

    # The mean of the logits of six views, by hand.
    batch = torch.cat([to_batch(model.preprocessing, i) for i in good])
    logits = []
    with torch.no_grad():
        for size in (32, 37, 42):
            view = (
                batch
                if size == 32
                else F.interpolate(batch, [size, size], mode="bilinear", antialias=True)
            )
            logits += [model.network(view), model.network(view.flip(-1))]
    expected = torch.stack(logits).mean(0).softmax(1).numpy()
    found = model.predict(good, flip=True, multi_scale=True, progress=False)
    assert np.allclose([f.probabilities for f in found], expected, atol=1e-5)

    argv = ["evaluate", str(finished.folder), "--flip", "--multi-scale", "--max-bad-share", "0.1"]
    assert main([*argv, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["backend"] == "folded, mean of 6 views"


def test_resuming_gives_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    settings = {"augment__mixup": 0.2, "network__drop_path_rate": 0.2, "ema__decay": 0.8}
    whole = train(recipe(photos, **settings), output=tmp_path / "whole", console=QUIET)

    parts = tmp_path / "parts"
    original = convnext.tasks.classification.task.ClassificationTask.losses

    def interrupted(self: Any, model: Any, batch: Any, step: int, *rest: Any) -> Any:
        if step == 10:
            raise KeyboardInterrupt
        return original(self, model, batch, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convnext.tasks.classification.task.ClassificationTask, "losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(photos, **settings), output=parts, console=QUIET)
    assert main(["train", "--resume", "--output", str(parts)]) == 0
    for path in sorted((whole.folder / "checkpoints").rglob("*.safetensors")):
        same = parts / "checkpoints" / path.relative_to(whole.folder / "checkpoints")
        expected, got = read_file(path)[0], read_file(same)[0]
        assert all(torch.equal(expected[name], got[name]) for name in expected), path.name
    rows = [
        [
            (r["step"], r["weights"], r["top1"], r["loss"])
            for r in read_metrics(f / "metrics.jsonl")
            if r["kind"] == "val"
        ]
        for f in (whole.folder, parts)
    ]
    assert rows[0] == rows[1]


def test_the_seed_decides(photos: Path, tmp_path: Path) -> None:
    results = [
        train(
            recipe(photos, run__seed=seed, schedule__epochs=1),
            output=tmp_path / name,
            console=QUIET,
        )
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    a, b, c = (read_file(r.folder / "checkpoints/best.safetensors")[0] for r in results)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


def test_a_folder_holds_one_run(finished: RunResult, photos: Path) -> None:
    with pytest.raises(ValueError, match="already holds a run"):
        train(recipe(photos), output=finished.folder, console=QUIET)


def test_too_many_bad_images_end_the_run(photos: Path, tmp_path: Path) -> None:
    strict = recipe(photos, loader__max_bad_share=0.0, schedule__epochs=1)
    with pytest.raises(ValueError, match=r"1 of 22 images cannot be read.*broken.jpg"):
        train(strict, output=tmp_path / "run", console=QUIET)


def test_a_peer_trains_by_the_same_recipe(photos: Path, tmp_path: Path) -> None:
    settings = {
        "model": "timm/resnet18",
        "network__changes": {"channels": [8, 8, 16, 16]},
        "schedule__epochs": 1,
    }
    result = train(recipe(photos, **settings), output=tmp_path / "run", console=QUIET)
    model, card = open_model(str(result.folder), torch.device("cpu"))
    assert card.model == "timm/resnet18"
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_what_a_checkpoint_could_not_be_opened_with_is_refused_before_training(
    photos: Path, tmp_path: Path
) -> None:
    settings = {"model": "timm/resnet18", "network__changes": {"act_layer": "silu"}}
    with pytest.raises(ValueError, match="act_layer='silu', which a checkpoint must not pass"):
        train(recipe(photos, **settings), output=tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_only_a_run_folder_may_name_its_data(finished: RunResult) -> None:
    loose = finished.folder / "checkpoints/best.safetensors"
    with pytest.raises(ValueError, match=r"is not a run folder, .* give --data PATH"):
        evaluate(str(loose))


def test_auto_leaves_bf16_where_a_layer_is_wrong_in_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "the gradients of Conv2d(...) on 4 x 8 x 1 x 1 are off by 300 %"
    monkeypatch.setattr(run_module, "why_not_bf16", lambda *_, **__: wrong)
    for module in (peak_rates, resolving):
        monkeypatch.setattr(module, "has_fast_bf16", lambda device: True)
    kinds: set[torch.dtype] = set()
    original = convnext.tasks.classification.task.ClassificationTask.losses

    def noted(self: Any, model: Any, *rest: Any) -> Any:
        hook = model.register_forward_hook(
            lambda _, given, out: kinds.update({given[0].dtype, out.dtype})
        )
        found = original(self, model, *rest)
        hook.remove()
        return found

    monkeypatch.setattr(convnext.tasks.classification.task.ClassificationTask, "losses", noted)
    settings = {"run__precision": "auto", "schedule__epochs": 1}
    result = train(recipe(photos, **settings), output=tmp_path / "auto", console=QUIET)
    plain = train(
        recipe(photos, **settings | {"run__precision": "fp32"}),
        output=tmp_path / "fp32",
        console=QUIET,
    )
    assert kinds == {torch.float32}
    choices = json.loads((result.folder / "choices.json").read_text())
    chosen = next(choice for choice in choices if choice["setting"] == "run.precision")
    assert chosen["value"] == "fp32"
    assert wrong in chosen["reason"]
    assert read_recipe(result.folder / "recipe.yaml").run.precision == "fp32"
    one, other = (read_file(r.folder / "checkpoints/best.safetensors")[0] for r in (result, plain))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_fine_tuning_starts_from_the_weights(
    photos: Path, finished: RunResult, tmp_path: Path
) -> None:
    weights = str(finished.folder / "checkpoints/best.safetensors")
    settings = {"weights": weights, "schedule__epochs": 1, "optim__lr": 1e-9, "ema__decay": 0.0}
    result = train(recipe(photos, **settings), output=tmp_path / "run", console=QUIET)
    before, after = (
        read_file(folder / "checkpoints/best.safetensors")[0]
        for folder in (finished.folder, result.folder)
    )
    key = "stages.3.0.pwconv1.weight"
    assert torch.allclose(before[key], after[key], atol=1e-4)


def test_a_run_in_unusual_places(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "my photos \u00e4\u4e2d"
    shutil.copytree(photos, data)
    for path in (data, *data.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    # Another file system than that of the data and temporary files, if there is one.
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as elsewhere:
        output = Path(elsewhere) / "a run \u00fc\u6587"
        short = recipe(data, schedule__epochs=1)
        result = train(short, output=output, console=QUIET, write_report=write_report)
        assert (result.folder / "report.html").is_file()
        assert evaluate(str(output)).evaluation.top1 == result.best["top1"]
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before
    for path in (data, *data.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_growing_images_are_validated_at_the_full_size_too(photos: Path, tmp_path: Path) -> None:
    printed = Console(file=io.StringIO(), width=200)
    growing = recipe(
        photos,
        schedule__progressive=True,
        input__image_size=64,
        network__stem_stride=1,
        ema__decay=0.8,
        run__patience=2,
    )
    run = train(growing, output=tmp_path / "run", console=printed)
    rows = read_metrics(run.folder / "metrics.jsonl")
    val = {(row["step"], row["weights"]): row["top1"] for row in rows if row["kind"] == "val"}
    phase = {
        (row["step"], row["weights"]): row["image_size"]
        for row in rows
        if row["kind"] == "val_phase"
    }
    # The phases end at 40 and 80 percent of 16 steps; the last one has the full size.
    assert phase == {
        (4, "model"): 32,
        (4, "ema"): 32,
        (8, "model"): 48,
        (8, "ema"): 48,
        (12, "model"): 48,
        (12, "ema"): 48,
    }
    assert set(phase) < set(val)
    assert run.best["top1"] == max(val.values())
    assert isinstance(printed.file, io.StringIO)
    assert "val (ema) at 48 px, the size of this phase:" in printed.file.getvalue()
    assert evaluate(str(run.folder)).evaluation.top1 == run.best["top1"]


def test_threads_of_a_run(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    short = {"schedule__epochs": 1}
    train(recipe(photos, run__threads=3, **short), output=tmp_path / "a", console=QUIET)
    assert used[0] == 3
    used.clear()
    train(recipe(photos, **short), output=tmp_path / "b", console=QUIET)
    assert used == []  # OMP_NUM_THREADS says so.
    monkeypatch.delenv("OMP_NUM_THREADS")
    train(recipe(photos, **short), output=tmp_path / "b", resume=True, console=QUIET)
    facts = json.loads((tmp_path / "b/environment.json").read_text(encoding="utf-8"))
    assert used[0] == facts["threads"] == torch.get_num_threads()
    (tmp_path / "b/environment.json").write_text(json.dumps(facts | {"threads": 7}))
    train(recipe(photos, **short), output=tmp_path / "b", resume=True, console=QUIET)
    assert 7 in used


def test_an_image_that_breaks_in_the_middle_of_an_epoch(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    victim = data / "train/green/05.jpg"
    original = convnext.tasks.classification.task.ClassificationTask.losses

    def breaking(self: Any, model: Any, batch: Any, step: int, *rest: Any) -> Any:
        if step == 5:
            victim.write_bytes(victim.read_bytes()[:200])
        return original(self, model, batch, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convnext.tasks.classification.task.ClassificationTask, "losses", breaking)
        result = train(
            recipe(data, loader__cache=False, schedule__epochs=4),
            output=tmp_path / "run",
            console=QUIET,
        )
    assert result.steps == 16
    rows = read_metrics(result.folder / "metrics.jsonl", raw=True)
    told = [row["event"] for row in rows if row["kind"] == "event"]
    assert len([text for text in told if str(victim) in text]) == 1


def test_evaluate_tells_of_the_average(photos: Path, tmp_path: Path) -> None:
    run = train(recipe(photos, ema__decay=0.8), output=tmp_path / "run", console=QUIET)
    result = evaluate(str(run.folder), only_best=False)
    assert [(v.weights, v.step) for v in result.last] == [("model", 16), ("ema", 16)]
    rows = {
        row["weights"]: row["top1"]
        for row in read_metrics(run.folder / "metrics.jsonl")
        if row["kind"] == "val" and row["step"] == 16
    }
    assert {v.weights: v.top1 for v in result.last} == rows
    assert evaluate(str(run.folder)).last == ()


def test_show_groups(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "--data", str(photos), "--model", "convnext_atto", "--show-groups", "--json"]
    assert main([*argv, "--optim.layer_decay", "0.5", "--optim.lr", "1"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    rates = {row["name"].split()[1]: row["lr"] for row in rows}
    assert rates == {str(group): 0.5 ** (6 - group) for group in range(7)}
    assert not (Path("runs")).exists() or not list(Path("runs").glob(f"{photos.name}*"))


def test_remote_shards_train_like_local_ones(
    photos: Path, tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["data", str(photos), "--to-shards", str(tmp_path / "shards")]) == 0
    server = serve(tmp_path / "shards")
    settings = {
        "data": server.url,
        "loader__shard_cache": str(tmp_path / "copies"),
        "schedule__epochs": 2,
    }
    whole = train(recipe(photos, **settings), output=tmp_path / "whole", console=QUIET)
    assert whole.best["top1"] > 40
    with pytest.raises(ValueError, match=r"URLs in a checkpoint are not used.* give --data PATH"):
        evaluate(str(whole.folder))
    again = evaluate(
        str(whole.folder),
        EvaluationSettings(data=server.url),
        loader=ClassificationLoader(shard_cache=str(tmp_path / "own")),
    )
    assert again.evaluation.top1 == whole.best["top1"]
    assert list((tmp_path / "own").rglob("*.bin"))
    stopped = recipe(photos, **settings, run__save_every=3)
    original = convnext.tasks.classification.task.ClassificationTask.losses

    def interrupted(self: Any, model: Any, batch: Any, step: int, *rest: Any) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return original(self, model, batch, step, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convnext.tasks.classification.task.ClassificationTask, "losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(stopped, output=tmp_path / "parts", console=QUIET)
    train(stopped, output=tmp_path / "parts", resume=True, console=QUIET)
    last = f"checkpoints/step-{whole.steps:08d}/model.safetensors"
    one, other = (read_file(tmp_path / name / last)[0] for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
