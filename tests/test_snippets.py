"""Every command and program of README and docs runs, with small data and short trainings.

The commands run in this process through `convnext.cli.main`, in a folder that has the data, runs
and files that the pages name. Recipes are made small inside the verbs, so that commands are
executed word for word. A local hub has published weights under their real names, with random
values. Studies are planned but not trained, unless slow tests run.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from shapes import write_shapes
from small_objects import coco_squares
from snippets import REASONS, ROOT, Command, Snippet, pages, snippets

import convnext
from convnext.cli import main
from convnext.cli.arguments import call_of
from convnext.data.downloads import HubName
from convnext.recipes.recipe import Recipe, change_recipe
from convnext.studies.plan import Study

ALL = [snippet for page in pages() for snippet in snippets(page)]
STUDIES = ("compare", "roadmap")
# Searches for the fastest backend, and the pages of results, whose networks take long to build.
SLOW = ("benchmark", "--format openvino", "convnext.optimize(")
SLOW_PAGES = ROOT / "docs" / "results"

SMALL: dict[str, Any] = {
    "schedule.epochs": 1,
    "schedule.steps": 2,
    "schedule.warmup_epochs": 0.0,
    "optim.batch_size": 8,
    "optim.micro_batch_size": 8,
    "loader.workers": 0,
    "run.precision": "fp32",
    "run.channels_last": True,
    "run.compile": False,
}
SMALL_TASK: dict[str, dict[str, Any]] = {
    "classify": {"input.image_size": 32, "schedule.progressive": False},
    "segment": {"segment.channels": 16, "segment.crop": 40, "segment.jitter": (0.9, 1.1)},
    "detect": {
        "input.image_size": 64,
        "detect.channels": 16,
        "detect.fc_dim": 24,
        "detect.jitter": (0.9, 1.1),
        "detect.num_proposals": 30,
        "detect.rpn_batch_size": 32,
        "detect.box_batch_size": 16,
        "detect.max_detections": 20,
    },
}
# Options added to commands whose cost does not depend on a recipe.
SHORTER = {
    "--robustness": ["--max-images", "2", "--workers", "0"],
    "benchmark": ["--batch", "1", "--rounds", "1", "--size", "32"],
    "compare": ["--seeds", "1", "--no-speed", "--jobs", "1"],
    "roadmap": ["--seeds", "1", "--no-speed", "--jobs", "1"],
}


# The commands that make the runs that snippets read.
RUNS = {
    "runs/first": "train --output runs/first",
    "runs/photos": "train --data my_photos --output runs/photos",
    "runs/tags": "train --data tags/labels.csv --output runs/tags",
    "runs/tuned": "train --data my_photos --weights runs/photos --output runs/tuned",
    "runs/streets": "train --task segment --data streets --output runs/streets",
    "runs/cells": "train --task detect --data cells --output runs/cells",
}


def tables(root: Path) -> None:
    """Write a table beside images, and a Parquet file with images inside."""
    rows, images, labels = ["file,species,part,k"], [], []
    for i in range(20):
        path = root / "trees" / f"{i}.jpg"
        photo(path, seed=i)
        rows.append(f"{i}.jpg,{('elm', 'oak')[i % 2]},{'val' if i > 15 else 'train'},{i // 2 % 4}")
        images.append({"bytes": path.read_bytes(), "path": path.name})
        labels.append(i % 2)
    (root / "trees" / "labels.csv").write_text("\n".join(rows))
    rows = ["path,label,patient_id"]
    for i in range(20):
        name = f"{('healthy', 'ill')[i % 2]}/patient{i // 3}_{i}.jpg"
        photo(root / "scans" / name, seed=i)
        rows.append(f"{name},{name.partition('/')[0]},{i // 3}")
    (root / "scans" / "labels.csv").write_text("\n".join(rows))
    rows = ["image,tags"]
    for i in range(24):
        photo(root / "tags" / f"{i}.jpg", seed=i)
        rows.append(f"{i}.jpg,{('sea', 'sky', 'sea|sky', '')[i % 4]}")
    (root / "tags" / "labels.csv").write_text("\n".join(rows))
    file = root / "beans" / "data" / "train-00000-of-00001.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({"image": images, "labels": labels}), file, row_group_size=8)


class PlannedError(Exception):
    """A study reached its runs."""


class Workspace:
    """A folder with the files that the pages name. Runs are made when a snippet needs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[tuple[str, ...]] = set()

    def run(self, command: Command) -> None:
        """Run a command unless it has run before; its output folder may be created again."""
        words = list(command.argv)
        if command.argv in self.done:
            return
        self.need(command)
        if words[0] == "train" and "--output" in words and "--resume" not in words:
            shutil.rmtree(words[words.index("--output") + 1], ignore_errors=True)
        for sign, options in SHORTER.items():
            if sign in words:
                words += options
        with contextlib.ExitStack() as stack:
            if command.output:
                file = stack.enter_context(Path(command.output).open("w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(file))
            assert main(words) == 0, shlex.join(["convnext", *words])
        self.done.add(command.argv)

    def need(self, command: Command) -> None:
        """Create the runs that a command reads."""
        for run, words in RUNS.items():
            made_by = tuple(words.split())
            reads = any(word == run or word.startswith(f"{run}/") for word in command.argv)
            if reads and command.argv != made_by and not Path(run).exists():
                self.run(Command(argv=made_by, output=""))


@pytest.fixture(scope="session")
def workspace(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("snippets")
    for name in ("my_photos", "more_photos", "other_photos", "imagenet", "cifar10"):
        photos(root / name)
    for name in ("cifar10_subset", "trashnet_photos"):
        photos(root / name)
    for name in ("slides", "drive", "photos"):
        for i in range(2):
            photo(root / name / f"{i}.jpg", seed=i)
    for name in ("holiday", "photo"):
        photo(root / f"{name}.jpg", seed=9)
    tables(root)
    for i in range(20):
        path = root / "satellite" / ("val" if i >= 16 else "train") / ("dry", "wet")[i % 2]
        path.mkdir(parents=True, exist_ok=True)
        bands = np.random.default_rng(i).integers(0, 256, (40, 40, 4), dtype=np.uint8)
        tifffile.imwrite(path / f"{i}.tif", bands, photometric="minisblack", planarconfig="contig")
    for severity in range(1, 6):
        photo(root / "imagenet-c" / "fog" / str(severity) / "n01440764" / "x.jpg", seed=severity)
    write_shapes(root / "streets", num_train=8, num_val=2)
    coco_squares(root / "cells", num_train=8, num_val=2)
    (coco_squares(root / "my_objects", num_train=8, num_val=2) / "annotations").mkdir()
    for split in ("train", "val"):
        (root / "my_objects" / f"instances_{split}.json").rename(
            root / "my_objects" / "annotations" / f"instances_{split}2017.json"
        )
    (recipe,) = [s.code for s in ALL if s.language == "yaml" and "my_recipe.yaml" in s.code]
    (root / "my_recipe.yaml").write_text(recipe, encoding="utf-8")
    os.link(hub / "weights.safetensors", root / "convnext_tiny.safetensors")
    save_file(timm.create_model("resnet50").state_dict(), root / "resnet50.safetensors")
    return Workspace(root)


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def photos(root: Path) -> None:
    for split, count in (("train", 8), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                seed = 100 * label + i + 50 * (split == "val")
                photo(root / split / name / f"{i}.jpg", seed=seed)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub cache with random weights of ConvNeXt-T under the authors' names, and data sets."""
    cache = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    tensors = convnext.export_weights(convnext.create_model("convnext_tiny"), "timm")
    blob = cache / "weights.safetensors"
    save_file(tensors, blob, {"format": "pt"})
    for tag in ("fb_in1k", "fb_in22k", "fb_in22k_ft_in1k"):
        repository = cache / f"models--timm--convnext_tiny.{tag}"
        commit = "0123456789abcdef0123456789abcdef01234567"
        file = repository / "snapshots" / commit / "model.safetensors"
        file.parent.mkdir(parents=True)
        os.link(blob, file)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache / "cache"))
        for name in ("hf:owner/name", "hf:owner/name/config", "hf:owner/name@v1.0"):
            photos(HubName.parse(name).folder())  # As if they were fetched before.
    return cache


@pytest.fixture
def small(
    workspace: Workspace, hub: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> Workspace:
    """Use the folder as the current one, with small recipes, the local hub, and no network."""
    from huggingface_hub import constants

    import convnext.api.roadmap
    import convnext.api.training
    import convnext.studies.study as studies

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(hub / "cache"))
    monkeypatch.chdir(workspace.folder)
    for module, name in (
        (convnext.api.training, "prepare"),
        (convnext.api.training, "make_recipe"),
        (convnext.api.roadmap, "make_recipe"),
    ):
        monkeypatch.setattr(module, name, made_small(getattr(module, name)))
    if request.function is not test_studies_run_to_their_end:
        monkeypatch.setattr(studies, "run_jobs", planned)
        monkeypatch.setattr(studies, "speeds_of", lambda *_: {})
        monkeypatch.setattr(studies, "rates_of_runs", even_rates)
    return workspace


def made_small(make_recipe: Callable[..., Recipe]) -> Callable[..., Recipe]:
    def make(*arguments: Any) -> Recipe:
        recipe = make_recipe(*arguments)
        return change_recipe(recipe, SMALL | SMALL_TASK[recipe.task])

    return make


def planned(jobs: Any, **_: Any) -> None:
    assert jobs
    raise PlannedError


def even_rates(plan: Study, *_: Any) -> dict[str, float]:
    return {entry.own_name: 1.0 for entry in plan.entries}


def is_slow(snippet: Snippet) -> bool:
    return SLOW_PAGES in snippet.page.parents or any(sign in snippet.code for sign in SLOW)


def run(snippet: Snippet, workspace: Workspace) -> None:
    if snippet.language == "python":
        exec(compile(snippet.code, str(snippet), "exec"), {"__name__": "__main__"})
        return
    commands = snippet.commands()
    assert commands, "a block without a command of ours needs a reason not to run"
    for command in commands:
        with contextlib.suppress(*([PlannedError] if command.argv[0] in STUDIES else [])):
            workspace.run(command)


def test_a_snippet_that_is_not_run_has_a_reason_that_counts() -> None:
    assert {snippet.reason for snippet in ALL} - {""} <= REASONS
    assert {snippet.language for snippet in ALL} <= {"bash", "python", "yaml", "text"}


def test_commands_that_are_not_run_have_options_that_exist() -> None:
    """Calls by any launcher are found."""
    unrun = [snippet for snippet in ALL if snippet.reason or is_slow(snippet)]
    commands = {command.argv for snippet in unrun for command in snippet.commands()}
    assert len(commands) > 10
    for name, *rest in sorted(commands - {("--version",)}):
        assert callable(call_of(name, rest).function)
    with pytest.raises(ValueError, match="--epoch"):
        call_of("train", ["--data", "my_photos", "--epoch", "3"])


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_snippets_run(page: Path, small: Workspace) -> None:
    for snippet in snippets(page):
        is_code = snippet.language in ("bash", "python")
        if is_code and not snippet.reason and not is_slow(snippet):
            run(snippet, small)


@pytest.mark.parametrize(
    "data",
    [
        "my_photos",
        pytest.param("streets", marks=pytest.mark.slow),
        pytest.param("cells", marks=pytest.mark.slow),
    ],
)
def test_the_program_of_the_readme_runs_for_every_task(
    data: str, small: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file of a detector is compared by its detections, and after two steps there are none.
    monkeypatch.setitem(SMALL_TASK["detect"], "schedule.steps", 60)
    (program,) = [s for s in snippets(ROOT / "README.md") if s.language == "python"]
    assert len(program.code.splitlines()) < 10
    shutil.copytree(small.folder / data, tmp_path / "my_photos")
    shutil.copy(small.folder / "holiday.jpg", tmp_path)
    monkeypatch.chdir(tmp_path)
    run(program, small)
    (file,) = tmp_path.glob("runs/*/*.onnx")
    kinds = {"my_photos": "Classification", "streets": "Segmentation", "cells": "Detections"}
    assert type(convnext.load(file).predict("holiday.jpg")[0]).__name__ == kinds[data]
    with Image.open("result.png") as picture:
        assert min(picture.size) > 0


@pytest.mark.slow
@pytest.mark.parametrize("snippet", [s for s in ALL if is_slow(s)], ids=str)
def test_slow_snippets_run(snippet: Snippet, small: Workspace) -> None:
    run(snippet, small)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/roadmap.md", "docs/detection.md"])
def test_studies_run_to_their_end(page: str, small: Workspace) -> None:
    """One network of each study is enough, because other tests plan all of them."""
    for snippet in snippets(ROOT / page):
        for command in snippet.commands():
            if command.argv[0] in STUDIES:
                small.run(command)
