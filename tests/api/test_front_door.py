"""The verbs from Python: train, load, predict, evaluate, embed; what they return and refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import convnext

TINY: dict[str, Any] = {
    "model": "convnext_atto",
    "network": {"changes": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
    "image_size": 32,
    "batch_size": 8,
    "epochs": 2,
    "lr": 3e-3,
    "device": "cpu",
    "precision": "fp32",
    "progress": False,
}
COLORS = {"blue": (40, 60, 200), "red": (210, 50, 40)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return class folders of noisy pictures in two colors, of different sizes."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (root / name).mkdir()
        for i in range(10):
            pixels = np.clip(rng.normal(color, 70, (40 + i, 52 - i, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> convnext.Run:
    return convnext.train(data=photos, output=tmp_path_factory.mktemp("runs") / "first", **TINY)


@pytest.fixture(scope="module")
def model(run: convnext.Run) -> convnext.Model:
    return run.model(device="cpu")


def test_a_run_says_what_it_reached(run: convnext.Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.best["top1"] == max(r["top1"] for r in run.metrics if r["kind"] == "val")
    assert run.report.is_file()
    assert run.to_dict()["model"] == "convnext_atto"
    assert json.dumps(run.to_dict())


def test_load_takes_the_best_or_the_last(run: convnext.Run) -> None:
    best, last = (convnext.load(run.folder, which=w, device="cpu") for w in ("best", "last"))
    assert best.classes == last.classes == ("blue", "red")
    assert best.preprocessing.image_size == 32
    assert not best.network.training
    with pytest.raises(ValueError, match="which is 'first'"):
        convnext.load(run.folder, which="first")  # type: ignore[arg-type]


def test_predictions_are_typed_and_the_same_for_every_kind_of_source(
    model: convnext.Model, photos: Path
) -> None:
    path = photos / "red" / "00.png"
    image = Image.open(path)
    array = np.array(image)
    sources: list[Any] = [
        path,
        str(path),
        [path],
        str(photos / "red" / "0[0].png"),
        image,
        array,
        torch.from_numpy(array).permute(2, 0, 1),
    ]
    found = [model.predict(source, progress=False)[0] for source in sources]
    assert all(isinstance(result, convnext.Classification) for result in found)
    assert all(np.array_equal(r.probabilities, found[0].probabilities) for r in found)
    assert found[0].names == ("blue", "red")
    assert found[0].size == array.shape[:2]
    assert found[0].path == path
    assert found[4].path is None
    bgr = model.predict(array[..., ::-1], channels="bgr", progress=False)[0]
    assert np.array_equal(bgr.probabilities, found[0].probabilities)
    assert found[4].plot().size[0] >= image.width


def test_streams_read_no_further_than_they_must(model: convnext.Model, photos: Path) -> None:
    taken = 0

    def frames() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal taken
        for path in sorted(photos.glob("*/*.png")):
            taken += 1
            yield np.asarray(Image.open(path))

    stream = model.predict(frames(), stream=True, batch_size=4, progress=False)
    first = next(stream)
    assert taken == 4
    assert not torch.is_inference_mode_enabled()
    assert len([first, *stream]) == taken == 20


def test_predict_leaves_the_loaded_network_as_it_is(model: convnext.Model, photos: Path) -> None:
    before = {name: t.clone() for name, t in model.network.state_dict().items()}
    model.predict(photos, progress=False)
    after = model.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_unreadable_images_are_listed(model: convnext.Model, photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    found = model.predict([broken, photos / "red" / "00.png"], progress=False)
    assert len(found) == 1
    assert found.bad_images[0][0] == str(broken)
    with pytest.raises(ValueError, match="none of the 1 images can be read"):
        model.predict(broken, progress=False)


def test_wide_tables_have_a_row_per_image_and_the_true_class(
    model: convnext.Model, photos: Path, tmp_path: Path
) -> None:
    model.predict(photos, output=tmp_path, wide=True, progress=False)
    lines = (tmp_path / "predictions.csv").read_text().splitlines()
    assert lines[0] == "image,true class,class,probability,blue,red"
    assert len(lines) == 21
    assert lines[1].split(",")[1] == "blue"


def test_the_folder_is_the_one_that_is_named(
    model: convnext.Model, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.predict(photos / "red", output="auto", progress=False)
    assert (tmp_path / "auto" / "predictions.json").is_file()


def test_scores_are_a_mapping(model: convnext.Model, run: convnext.Run) -> None:
    scores = model.evaluate(progress=False)
    assert scores["top1"] == run.best["top1"]
    assert set(scores.per_class) == {"blue", "red"}
    assert "thumbnail" not in json.dumps(scores.evaluation.to_dict())


def test_embeddings_are_what_the_classifier_sees(
    model: convnext.Model, photos: Path, tmp_path: Path
) -> None:
    vectors, paths = model.embed(photos, progress=False)
    assert vectors.shape == (20, 16)
    assert vectors.dtype == np.float32
    fc = model.network.head.fc  # type: ignore[union-attr]
    logits = fc(torch.from_numpy(vectors))  # type: ignore[operator]
    found = model.predict(list(paths), progress=False)
    expected = np.stack([result.probabilities for result in found])
    np.testing.assert_allclose(logits.softmax(1).detach().numpy(), expected, atol=1e-5)
    for ending in ("npz", "csv"):
        model.embed(photos / "red", output=tmp_path / f"f.{ending}", progress=False)
    assert np.load(tmp_path / "f.npz")["vectors"].shape == (10, 16)
    assert len((tmp_path / "f.csv").read_text().splitlines()) == 11


@pytest.mark.parametrize("as_frame", [True, False])
def test_tables_in_memory_are_data(photos: Path, tmp_path: Path, as_frame: bool) -> None:
    pairs = [(path, path.parent.name) for path in sorted(photos.glob("*/*.png"))]
    columns = {"path": [p for p, _ in pairs], "label": [c for _, c in pairs]}
    run = convnext.train(
        data=columns if as_frame else pairs, output=tmp_path / "run", **(TINY | {"epochs": 1})
    )
    assert run.model(device="cpu").classes == ("blue", "red")
    assert (run.folder / "data.csv").is_file()
    again = convnext.train(resume=True, output=run.folder, epochs=2, progress=False)
    assert again.steps == 2 * run.steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "convnext_tinny"}, "did you mean 'convnext_tiny'"),
        ({"weights": "absent.pth"}, "there is no file or folder absent.pth"),
        ({"epoch": 3}, "no setting epoch; did you mean 'epochs'"),
        ({"epochs": "many"}, "^epochs is many, but must be an integer"),
        ({"epochs": 1, "schedule": {"epochs": 2}}, "given twice"),
        ({"task": "clasify"}, "clasify"),
    ],
)
def test_mistakes_are_found_before_the_data_is_read(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convnext.train(data="no/such/data", progress=False, **options)


def test_options_of_other_tasks_are_refused(model: convnext.Model, photos: Path) -> None:
    with pytest.raises(ValueError, match="window is an option for segmentation"):
        model.predict(photos, window=64, progress=False)
    with pytest.raises(ValueError, match="no option topc; did you mean topk\\?"):
        model.predict(photos, topc=1, progress=False)


def test_weights_of_a_run_bring_their_network(run: convnext.Run, photos: Path) -> None:
    from convnext.api.prepare import prepare

    own = {"weights": str(run.folder), "data": str(photos)}
    segmentor = prepare(None, own | {"task": "segment"})
    assert segmentor.model == "upernet_convnext_atto"
    assert segmentor.network.changes["dims"] == [8, 8, 16, 16]
    assert prepare(None, own).task == "classify"


def test_weights_in_a_bare_file_are_recognized(tmp_path: Path, photos: Path) -> None:
    from safetensors.torch import save_file

    from convnext.api.prepare import prepare

    network = convnext.create_model("convnext_atto", num_classes=7)
    save_file(convnext.export_weights(network, "timm"), tmp_path / "a.safetensors")
    recipe = prepare(None, {"weights": str(tmp_path / "a.safetensors"), "data": str(photos)})
    assert recipe.model == "convnext_atto"


class Plain(torch.nn.Module):
    """A custom classifier."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 4, 4)
        self.fc = torch.nn.Linear(8, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv(images).relu().mean((2, 3)))


class Counting(Plain):
    """A classifier whose computation depends on its input."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * (2 if float(images.mean()) > 0 else 1)


class Other(Plain):
    """Another class with the same tensors."""


class Pyramid(torch.nn.Module):
    """A custom backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = torch.nn.ModuleList(
            torch.nn.Conv2d(i, o, s, s)
            for i, o, s in ((3, 8, 4), (8, 16, 2), (16, 24, 2), (24, 32, 2))
        )

    def pyramid(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = {}
        for level, stage in enumerate(self.stages, start=2):
            images = maps[f"c{level}"] = stage(images).relu()
        return maps


def test_a_network_of_ones_own_is_trained_and_loaded(photos: Path, tmp_path: Path) -> None:
    options = {k: v for k, v in TINY.items() if k not in ("model", "network")}
    network = Plain()
    before = network.fc.weight.detach().clone()
    run = convnext.train(data=photos, model=network, output=tmp_path / "run", **options)
    assert torch.equal(network.fc.weight, before)
    model = convnext.load(run.folder, network=Plain(), device="cpu")
    assert isinstance(model.network.network, Plain)
    scores = model.evaluate(progress=False)
    assert scores["top1"] == run.best["top1"]
    again = run.model(device="cpu").network.state_dict()
    assert all(torch.equal(again[name], t) for name, t in model.network.state_dict().items())
    for format in ("onnx", "pt2"):
        exported = run.model(device="cpu").export(format, progress=False)
        assert exported.proof["passed"]
    with pytest.raises(ValueError, match=r"torch\.export does not support this network; its"):
        convnext.load(Counting(), preprocessing=model.preprocessing, classes=("a", "b")).export(
            "pt2", images=[photos], output=tmp_path / "counting.pt2", progress=False
        )
    with pytest.raises(TypeError, match=r"network is an nn\.Module of the run's class, not 'x'"):
        convnext.load(run.folder, network="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"was given as an object, which is not here"):
        convnext.load(run.folder)
    with pytest.raises(ValueError, match=r"the class \S*test_front_door\.Plain, not \S*Other"):
        convnext.load(run.folder, network=Other())
    with pytest.raises(ValueError, match=r"returns \(1, 3\).*one for each class"):
        convnext.train(data=photos, model=Plain(3), output=tmp_path / "wrong", **options)
    with pytest.raises(TypeError, match=r"an nn\.Module, not"):
        convnext.train(data=photos, model=Plain, **options)  # type: ignore[arg-type]


def test_a_backbone_of_ones_own_is_built_into_a_dense_network() -> None:
    from convnext.models.given import provided

    with provided(Pyramid()):
        segmentor = convnext.create_model("upernet_given/Pyramid", num_classes=3, channels=16)
    assert segmentor(torch.zeros(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    with provided(Plain()), pytest.raises(ValueError, match="has no method `pyramid`"):
        convnext.create_model("upernet_given/Plain", num_classes=3)
    with pytest.raises(ValueError, match=r"given/Plain was given as an object.*network=\.\.\."):
        convnext.create_model("given/Plain")


def test_a_module_is_a_model_with_its_preprocessing_and_classes(
    model: convnext.Model, photos: Path
) -> None:
    own = convnext.load(Plain(), preprocessing=model.preprocessing, classes=("a", "b"))
    assert own.predict(photos / "red" / "00.png", progress=False)[0].names == ("a", "b")
    fields = {"image_size": 32, "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}
    same = convnext.load(Plain(), preprocessing=fields, classes=("a", "b"))
    assert same.preprocessing == convnext.Preprocessing(
        image_size=32, crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    with pytest.raises(ValueError, match="needs preprocessing"):
        convnext.load(Plain())
    with pytest.raises(ValueError, match="preprocessing lacks image_size"):
        convnext.load(Plain(), preprocessing=dict(list(fields.items())[1:]), classes=("a", "b"))
    with pytest.raises(TypeError, match=r"is a convnext\.Preprocessing or a dict of its.*not 'x'"):
        convnext.load(Plain(), preprocessing="x", classes=("a", "b"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"is a convnext\.DensePreprocessing or a dict"):
        convnext.load(Plain(), preprocessing=same.preprocessing, classes="ab", task="segment")


def test_held_out_images_are_listed(run: convnext.Run) -> None:
    held_out = json.loads((run.folder / "heldout.json").read_text())
    assert len(held_out) == 4
    assert all(Path(name).is_file() for name in held_out)


def test_training_says_how_many_tensors_were_loaded(
    run: convnext.Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {k: v for k, v in TINY.items() if k not in ("model", "network", "progress")}
    again = convnext.train(
        data=photos, weights=str(run.folder), output=tmp_path / "run", **(options | {"epochs": 1})
    )
    assert "tensors loaded, 0 of the file not used, 0 start from scratch" in capsys.readouterr().out
    assert again.name == "convnext_atto"
