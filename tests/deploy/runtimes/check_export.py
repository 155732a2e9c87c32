"""Exported files describe themselves and compute the same as the network, or are not kept."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predicting import run_predictor
from small_exports import (
    CLASSES,
    FILES,
    small_checkpoint,
    small_photos,
    small_segmentor,
)

import convnext
from convnext.cli import main
from convnext.deploy import export as module
from convnext.deploy.export import ExportResult, ExportSettings, ExportSpec
from convnext.deploy.runtimes import need, open_exported
from convnext.deploy.verify import MAX_LOST, judge
from convnext.tasks import task_class
from convnext.tasks.exporting import export
from convnext.tasks.segmentation.inference import has_scores
from convnext.tasks.trained import open_model
from convnext.weights.checkpoint import is_exported

CPU = torch.device("cpu")

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a classifier of three classes whose answers differ."""
    return small_checkpoint(tmp_path_factory.mktemp("checkpoint") / "net.safetensors")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of images of several sizes."""
    return small_photos(tmp_path_factory.mktemp("data") / "photos")


Exporter = Callable[..., ExportResult]


@pytest.fixture(scope="module")
def exported(checkpoint: str, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """Return a function that exports the classifier once for each kind of settings."""
    made: dict[ExportSettings, ExportResult] = {}

    def get(**fields: Any) -> ExportResult:
        settings = ExportSettings(**fields)
        if settings not in made:
            path = tmp_path_factory.mktemp("exported") / FILES[settings.format]
            made[settings] = export(checkpoint, settings=settings, output=path, images=[photos])
        return made[settings]

    return get


@pytest.mark.parametrize(
    ("format", "precision"),
    [
        ("onnx", "fp16"),
        ("onnx", "fp32"),
        ("openvino", "fp16"),
        ("openvino", "fp32"),
        ("pt2", "bf16"),
        ("pt2", "fp32"),
    ],
)
def test_a_file_predicts_like_its_checkpoint(
    format: Any, precision: Any, checkpoint: str, photos: Path, exported: Exporter
) -> None:
    result = exported(format=format, precision=precision)
    assert result.proof.passed
    assert result.proof.num_images == 4
    assert json.loads(result.proof_path.read_text())["agreement"] == result.proof.agreement
    expected = run_predictor(checkpoint, [photos], topk=3)
    found = run_predictor(str(result.path), [photos], topk=3, batch_size=3)
    tolerance = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}[precision]
    for a, b in zip(expected.predictions, found.predictions, strict=True):
        before, after = (dict(zip(p.classes, p.probabilities, strict=True)) for p in (a, b))
        assert after == pytest.approx(before, abs=tolerance)


def test_a_file_of_a_run_in_half_precision_runs_in_its_own(photos: Path, tmp_path: Path) -> None:
    checkpoint = small_checkpoint(tmp_path / "net.safetensors", {"run": {"precision": "bf16"}})
    path = tmp_path / "net.pt2"
    export(checkpoint, settings=ExportSettings(format="pt2"), output=path, images=[photos])
    expected = run_predictor(checkpoint, [photos], topk=3, precision="fp32")
    found = run_predictor(str(path), [photos], topk=3)
    for a, b in zip(expected.predictions, found.predictions, strict=True):
        before, after = (dict(zip(p.classes, p.probabilities, strict=True)) for p in (a, b))
        assert after == pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize("format", sorted(FILES))
def test_a_file_with_all_preprocessing_takes_images_of_any_size(
    format: Any, checkpoint: str, photos: Path, exported: Exporter
) -> None:
    path = exported(format=format, inside="full").path
    file = open_exported(path)
    expected = run_predictor(checkpoint, [photos], topk=3)
    for prediction in expected.predictions:
        image = np.array(Image.open(prediction.source))[None]
        found = file.run(image)[0]
        assert found.sum() == pytest.approx(1, abs=1e-4)
        assert CLASSES[int(found.argmax())] == prediction.classes[0]
        assert found.max() == pytest.approx(prediction.probabilities[0], abs=5e-3)
    again = run_predictor(str(path), [photos], topk=1)
    assert [p.classes for p in again.predictions] == [p.classes[:1] for p in expected.predictions]


WITHOUT_TORCH = """
import json, sys
from PIL import Image
import convnext

model = convnext.load(sys.argv[1])
found = model.predict([Image.open(path) for path in sys.argv[2:]])
assert model.task == "classify" and not found.bad_images
assert not {"torch", "torchvision", "timm"} & sys.modules.keys()
print(json.dumps([[list(result.names), result.probabilities.tolist()] for result in found]))
"""


@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize(
    "fields", [{}, {"inside": "none", "answers": False, "batch": 3}, {"inside": "full"}]
)
def test_a_file_is_used_without_torch(
    format: Any, fields: Any, photos: Path, exported: Exporter
) -> None:
    path = exported(format=format, **fields).path
    expected = run_predictor(str(path), [photos], topk=3).predictions
    command = [sys.executable, "-c", WITHOUT_TORCH, str(path), *(p.source for p in expected)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert len(found) == len(expected) == 4
    for prediction, (names, row) in zip(expected, found, strict=True):
        values = dict(zip(prediction.classes, prediction.probabilities, strict=True))
        assert dict(zip(names, row, strict=True)) == pytest.approx(values, abs=1e-5)


def test_bad_images_are_named_by_a_file_alone(
    photos: Path, exported: Exporter, tmp_path: Path
) -> None:
    path, bad = exported().path, tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    model = convnext.load(path)
    found = model.predict([bad, *sorted(photos.iterdir())])
    assert [result.path.name for result in found] == ["0.png", "1.png", "2.png", "3.png"]
    assert [source for source, _ in found.bad_images] == [str(bad)]
    assert model.network(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    with pytest.raises(ValueError, match="1 of 5 images cannot be read"):
        model.predict([bad, *sorted(photos.iterdir())], max_bad_share=0.1)
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        model.predict(bad)
    with pytest.raises(ValueError, match="topk must be at least 1"):
        model.predict(photos, topk=0)


def test_the_server_of_the_example_needs_nothing_of_ours(
    checkpoint: str, photos: Path, exported: Exporter, capsys: pytest.CaptureFixture[str]
) -> None:
    path = exported(inside="full").path
    example = Path(__file__).parents[3] / "examples" / "07_serve_onnx.py"
    source = example.read_text(encoding="utf-8")
    assert "import convnext" not in source
    assert "from convnext" not in source
    images = sorted(map(str, photos.iterdir()))
    capsys.readouterr()
    runpy.run_path(str(example))["main"](str(path), images)
    lines = capsys.readouterr().out.splitlines()
    for line, expected in zip(
        lines, run_predictor(checkpoint, images, topk=1).predictions, strict=True
    ):
        assert line.split()[:2] == [expected.source, expected.classes[0]]


def test_an_onnx_file_says_what_it_is(exported: Exporter) -> None:
    written = onnx.load(str(exported().path))
    assert "LayerNormalization" in {node.op_type for node in written.graph.node}
    assert written.opset_import[0].version >= 17
    metadata = {entry.key: entry.value for entry in written.metadata_props}
    assert json.loads(metadata["classes"]) == ["cat", "dog", "héron"]
    assert json.loads(metadata["preprocessing"])["image_size"] == 64
    assert json.loads(metadata["graph"])["inside"] == "normalize"
    assert {"convnext", "license", "model", "task"} <= metadata.keys()


def test_the_batch_is_open_or_fixed(exported: Exporter) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    # OpenVINO's files are written fastest; ONNX files with a fixed batch are read above.
    paths = [exported().path, exported(format="openvino", batch=2).path]
    assert open_exported(paths[0]).run(pixels).shape == (5, 3)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    first, second = (open_model(str(path), CPU)[0](images) for path in paths)
    assert torch.allclose(first, second, atol=1e-4)


def test_a_segmentor_is_exported(tmp_path: Path, photos: Path) -> None:
    checkpoint = small_segmentor(tmp_path / "seg.safetensors")
    for answers, format in ((True, "onnx"), (False, "openvino")):
        path = tmp_path / f"seg{answers}{Path(FILES[format]).suffix}"
        result = export(
            checkpoint,
            settings=ExportSettings(format=format, answers=answers),  # type: ignore[arg-type]
            output=path,
            images=[photos],
        )
        assert result.proof.agreement > 0.995
        network, own = open_model(str(path), CPU)
        assert has_scores(network) is not answers
        assert own.recipe["segment"]["window"] == 64
        assert network(torch.zeros(2, 3, 50, 64)).shape == (2, 3, 50, 64)
    assert main(["predict", str(path), str(photos), "--output", str(tmp_path / "masks")]) == 0
    assert (tmp_path / "masks" / "0_mask.png").is_file()
    with pytest.raises(ValueError, match="aspect ratio"):
        export(
            checkpoint,
            settings=ExportSettings(inside="full"),
            output=tmp_path / "full.onnx",
            images=[photos],
        )


def test_a_file_that_fails_its_proof_is_not_kept(
    checkpoint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = module.write

    def write_another(spec: ExportSpec, path: Path) -> None:
        blueprint = spec.blueprint()
        network: Any = blueprint.graph.network
        torch.nn.init.normal_(network.head.fc.weight, std=5.0)
        write(replace(spec, blueprint=lambda: blueprint), path)

    # The network is compared as loaded; the file contains a copy with another head.
    monkeypatch.setattr(module, "write", write_another)
    path, settings = tmp_path / "net.xml", ExportSettings(format="openvino")  # Two files.
    with pytest.raises(ArithmeticError, match="it was deleted"):
        export(checkpoint, settings=settings, output=path, images=[photos])
    assert list(tmp_path.iterdir()) == []
    kept = export(checkpoint, settings=settings, output=path, images=[photos], force=True)
    assert not kept.proof.passed
    assert path.is_file()


@pytest.mark.parametrize(
    ("difference", "agreement", "before", "after", "num", "precision", "wrong"),
    [
        (1e-5, 1.0, None, None, 32, "fp32", ""),
        (1e-2, 1.0, None, None, 32, "fp32", "differs by 0.01"),
        (float("nan"), 1.0, None, None, 32, "fp32", "differs by nan"),
        (0.3, 0.99, 80.0, 80.0 - MAX_LOST, 500, "int8", ""),
        (0.3, 0.99, 80.0, 79.0, 500, "int8", "1.00 points"),
        (0.3, 0.80, 80.0, 79.9, 100, "int8", "80.0 %"),
    ],
)
def test_verdicts(
    difference: float,
    agreement: float,
    before: float | None,
    after: float | None,
    num: int,
    precision: str,
    wrong: str,
) -> None:
    found = judge(difference, agreement, before, after, num, precision)
    assert bool(found) == bool(wrong)
    assert wrong in found


def test_a_pickle_in_a_pt2_file_is_never_loaded(exported: Exporter, tmp_path: Path) -> None:
    path = exported(format="pt2").path
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    evil = pickle.dumps(Evil())
    for name in ("net/data/sample_inputs/model.pt", "net/data/weights/weight_0"):
        bad = tmp_path / "bad.pt2"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(bad, "w") as new:
            for entry in old.infolist():
                content = old.read(entry)
                if re.sub("^[^/]*/", "net/", entry.filename) == name:
                    content = evil
                if entry.filename.endswith("model_weights_config.json") and "weights" in name:
                    content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
                    content = content.replace(b'"use_pickle":false', b'"use_pickle":true')
                new.writestr(entry, content)
        with pytest.raises(ValueError, match="holds"):
            open_exported(bad)
    # With two entries of one name, the archive reader decides which one counts.
    config = "model_weights_config.json"
    for others in ((config, config), (config.upper(),)):
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(bad, "w") as new, _no_warnings():
            for entry in old.infolist():
                content = old.read(entry)
                if entry.filename.endswith(config):
                    harmful = content.replace(b'"use_pickle": false', b'"use_pickle": true')
                    assert harmful != content
                    for other in others:
                        new.writestr(entry.filename.replace(config, other), harmful)
                new.writestr(
                    entry.filename, evil if entry.filename.endswith("weight_0") else content
                )
        with pytest.raises(ValueError, match="holds"):
            open_exported(bad)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(bad, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(ValueError, match="holds"):
        open_exported(bad)
    assert not marker.exists()


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of names that occur twice.
        yield


def test_mistakes_are_named(
    checkpoint: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for fields, words in (
        ({"precision": "bf16"}, "OpenVINO for bf16"),
        ({"format": "pt2", "precision": "int8"}, "--format openvino"),
        ({"batch": 0}, "batch is 0"),
        ({"format": "tflite"}, "must be one of onnx"),
        ({"precision": "int8", "inside": "full"}, "--preprocess normalize"),
        ({"precision": "int8", "batch": 4}, "leave out --batch"),
        ({"inside": "full", "batch": 4}, "one image at a time"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            ExportSettings(**fields)
    with pytest.raises(ValueError, match="must end in"):
        export(checkpoint, settings=ExportSettings(), output="net.xml", images=[photos])
    assert (
        main(["export", checkpoint, "--format", "onnx", "--output", str(tmp_path / "a.onnx")]) == 2
    )
    assert "--images FOLDER" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"pip install 'convnext\[export\]'"):
        need("no_such_runtime")
    for name, content in (("a.onnx", b"nothing"), ("a.xml", b"<net/>"), ("a.pt2", b"PK")):
        (tmp_path / name).write_bytes(content)
        assert is_exported(tmp_path / name)
        with pytest.raises(ValueError, match=r"cannot be read|damaged"):
            open_exported(tmp_path / name)
    with pytest.raises(ValueError, match="there is no file"):
        open_exported(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r'<convnext value="[^"]*"', '<convnext value="[1]"'),
        pytest.param(
            r'<convnext value="[^"]*"', f'<convnext value="{"[" * 100_000}"', id="deep nesting"
        ),
        (r"<rt_info>.*</rt_info>", ""),
        (r'type="Convolution"', 'type="Nonsense"'),
        (r"<edges>.*</edges>", "<edges/>"),
        (r'offset="\d+"', 'offset="999999999"'),
        (r'shape="[^"]*"', 'shape="7"'),
    ],
)
def test_a_damaged_openvino_file_is_one_sentence(
    exported: Exporter, tmp_path: Path, old: str, new: str
) -> None:
    whole = exported(format="openvino").path
    path = tmp_path / "net.xml"
    shutil.copyfile(whole.with_suffix(".bin"), path.with_suffix(".bin"))
    text = whole.read_text(encoding="utf-8")
    damaged = re.sub(old, new, text, flags=re.DOTALL)
    assert damaged != text
    path.write_text(damaged, encoding="utf-8")
    with pytest.raises(ValueError, match=r"net.xml cannot be (read|run)") as raised:
        open_exported(path).run(np.zeros((1, 64, 64, 3), np.uint8))
    assert "\n" not in str(raised.value)


def test_a_task_has_its_own_mistakes() -> None:
    for fields, task, words in (
        ({"size": (64, 96)}, "classify", "--size 64"),
        ({"inside": "full"}, "segment", "--preprocess normalize"),
        ({"size": "any"}, "detect", "for segmentors"),
        ({"masks": "full"}, "segment", "for detectors"),
    ):
        settings = ExportSettings(**fields)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=re.escape(words)):
            task_class(task).task_module("export").check_settings(settings)


def test_a_classifier_of_another_size_is_read_and_proven_at_it(
    checkpoint: str, photos: Path, tmp_path: Path
) -> None:
    path = tmp_path / "float.xml"
    settings = ExportSettings(format="openvino", size=(96, 96))
    result = export(checkpoint, settings=settings, output=path, images=[photos])
    assert result.proof.agreement == 1
    assert open_exported(path).graph["size"] == [96, 96]
    _, card = open_model(str(path), CPU)
    assert card.preprocessing.image_size == 96


@pytest.mark.parametrize("file", ["net.onnx", "net.xml", "int8.onnx"])
def test_a_file_has_no_paths_and_no_code(
    checkpoint: str, photos: Path, exported: Exporter, tmp_path: Path, file: str
) -> None:
    if file == "int8.onnx":  # Of so few images that it may fail its proof.
        settings, path = ExportSettings(precision="int8"), tmp_path / file
        export(checkpoint, settings=settings, output=path, images=[photos], force=True)
    else:
        path = exported(format="openvino" if file == "net.xml" else "onnx").path
    content = path.read_bytes()
    for words in ("site-packages", str(Path(__file__).parents[3]), "in forward", "convnext.models"):
        assert words.encode() not in content


def test_a_file_that_says_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    torch.onnx.export(
        torch.nn.Flatten().eval(), (torch.zeros(2, 3),), str(path), dynamo=True, verbose=False
    )
    with pytest.raises(ValueError, match="it has no metadata"):
        open_exported(path)
