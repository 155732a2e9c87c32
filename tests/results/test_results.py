"""The results of the verbs: validation, drawing, saving, conversion."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import types
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
from faster_coco_eval import mask as coco_mask
from PIL import Image

from convnext.data.drawing import class_colors
from convnext.data.run_lengths import area, compress, decode, decode_window, encode
from convnext.results import (
    Classification,
    Detections,
    Embeddings,
    Exported,
    Scores,
    Segmentation,
    fonts,
    pictures,
)
from convnext.results.scores import file_stem

NAMES = ("cat", "dog", "fox")


@pytest.fixture
def photo():
    values = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def classification(photo):
    return Classification(size=(30, 40), names=NAMES, probabilities=[0.2, 0.7, 0.1], image=photo)


@pytest.fixture
def masks():
    masks = np.zeros((2, 30, 40), bool)
    masks[0, 5:15, 3:20] = True
    masks[1, 20:, 30:] = True
    return masks


@pytest.fixture
def detections(photo, masks):
    return Detections(
        size=(30, 40),
        names=NAMES,
        boxes=[[3, 5, 20, 15], [30, 20, 40, 30]],
        scores=[0.9, 0.6],
        labels=[2, 0],
        masks=masks,
        image=photo,
    )


@pytest.fixture
def segmentation(photo):
    mask = np.zeros((30, 40), np.int64)
    mask[:, 30:] = 2
    return Segmentation(size=(30, 40), names=NAMES, mask=mask, image=photo)


@pytest.fixture
def results(classification, detections, segmentation):
    return classification, detections, segmentation


def test_neither_torch_nor_timm_nor_matplotlib_is_imported():
    code = (
        "import sys, convnext.results, convnext.data.sources\n"
        "from convnext.results import Classification\n"
        "import numpy as np\n"
        "image = np.zeros((20, 30, 3), np.uint8)\n"
        "next(iter(convnext.data.sources.image_sources([image]))).open()\n"
        "Classification(size=(20, 30), names=('a',), probabilities=[1.0], image=image).plot()\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'timm', 'matplotlib')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- Classification ---


def test_classes_come_in_order_of_probability(classification):
    assert classification.top(2) == (("dog", pytest.approx(0.7)), ("cat", pytest.approx(0.2)))
    assert len(classification.top(10)) == 3
    assert classification.labels.tolist() == [1, 0, 2]
    assert classification.probabilities.dtype == np.float32
    assert repr(classification) == "Classification(image: dog 70.0%)"
    with pytest.raises(ValueError, match="k must be at least 1"):
        classification.top(0)
    with pytest.raises(ValueError, match="k must be at least 1"):
        classification.plot(k=0)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([0.5, 0.5], r"shape \(3,\), not \(2,\)"),
        ([3.0, -1.0, 0.2], "from -1 to 3; logits need a softmax"),
        ([0.1, float("nan"), 0.2], r"in \[0, 1\]"),
    ],
)
def test_probabilities_are_checked(values, error):
    with pytest.raises(ValueError, match=error):
        Classification(size=(3, 4), names=NAMES, probabilities=values)


@pytest.mark.parametrize("names", ["cat", (), (1, 2, 3)])
def test_names_are_checked(names):
    with pytest.raises(ValueError, match="names of the classes"):
        Classification(size=(3, 4), names=names, probabilities=[0.1, 0.2, 0.3])


def test_results_cannot_be_changed(classification):
    with pytest.raises(FrozenInstanceError):
        classification.size = (1, 1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(classification)


# --- Detections ---


def test_masks_are_kept_compressed_and_read_as_an_array(detections, masks):
    assert detections.masks.dtype == bool
    np.testing.assert_array_equal(detections.masks, masks)
    assert len(pickle.dumps(replace(detections, image=None))) < masks.size
    assert len(detections) == 2
    assert detections.counts == {"fox": 1, "cat": 1}
    assert repr(detections) == "Detections(image: 1 fox, 1 cat)"


def test_masks_may_be_given_as_run_lengths(detections):
    again = replace(detections, masks=detections.run_lengths)
    assert again == detections
    assert again.run_lengths == detections.run_lengths
    assert replace(detections, masks=None).masks is None


def test_results_compare_by_value_but_not_by_image(detections, classification, photo):
    assert pickle.loads(pickle.dumps(detections)) == detections
    assert replace(detections, image=None) == detections
    assert replace(detections, scores=[0.9, 0.5]) != detections
    assert replace(detections, masks=None) != detections
    assert detections != classification


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"boxes": [[1, 2, 3]] * 2}, r"boxes must have the shape \(2, 4\)"),
        ({"boxes": [[9, 2, 3, 4]] * 2}, "x1 <= x2"),
        ({"boxes": [[1, 2, np.inf, 4]] * 2}, "finite"),
        ({"scores": [0.1]}, r"scores must have the shape \(2,\)"),
        ({"scores": [0.1, 1.5]}, r"scores must be in \[0, 1\]"),
        ({"labels": [0, 3]}, "labels must be from 0 to 2"),
        ({"labels": [0.0, 1.0]}, "labels must be integers"),
        ({"masks": np.zeros((2, 40, 30), bool)}, r"bool \(2, 30, 40\), not bool \(2, 40, 30\)"),
        ({"masks": np.zeros((2, 30, 40))}, "not float64"),
        ({"masks": [{"size": [30, 40], "counts": [1200]}]}, "must be 2 run lengths"),
        ({"masks": [{"size": [30, 40], "counts": [1]}] * 2}, "damaged run lengths"),
        ({"size": (0, 40), "masks": None}, "must be .height, width."),
    ],
)
def test_detections_are_checked(detections, changes, error):
    with pytest.raises(ValueError, match=error):
        replace(detections, **changes)


def test_no_detections(photo):
    none = Detections(size=(30, 40), names=NAMES, boxes=[], scores=[], labels=[], image=photo)
    assert len(none) == 0
    assert none.boxes.shape == (0, 4)
    assert repr(none) == "Detections(image: no objects)"
    assert none.to_dict()["objects"] == none.to_coco(1) == []
    assert np.array(none.plot()).shape == (360, 480, 3)
    empty = replace(none, masks=np.zeros((0, 30, 40), bool))
    assert empty.masks.shape == (0, 30, 40)
    assert empty.plot().size == (480, 360)


def test_coco_results_are_read_by_coco(detections, masks):
    found = detections.to_coco(7, category_ids=[10, 20, 30])
    assert [of["category_id"] for of in found] == [30, 10]
    assert found[0]["bbox"] == [3, 5, 17, 10]
    assert found[0]["image_id"] == 7
    for of, mask in zip(found, masks, strict=True):
        np.testing.assert_array_equal(coco_mask.decode(of["segmentation"]), mask)
    assert [of["category_id"] for of in detections.to_coco(7)] == [3, 1]
    with pytest.raises(ValueError, match="2 values for 3 classes"):
        detections.to_coco(7, [1, 2])


def test_supervision_is_asked_for_only_when_needed(detections, masks, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        detections.to_supervision()
    fake = types.ModuleType("supervision")
    fake.Detections = dict
    monkeypatch.setitem(sys.modules, "supervision", fake)
    given = detections.to_supervision()
    np.testing.assert_array_equal(given["mask"], masks)
    np.testing.assert_array_equal(given["xyxy"], detections.boxes)
    assert given["class_id"].tolist() == [2, 0]
    assert given["data"]["class_name"].tolist() == ["fox", "cat"]
    given["xyxy"][:] = 0
    assert detections.boxes.any()


# --- Segmentation ---


def test_areas_of_classes(segmentation):
    assert segmentation.mask.dtype == np.uint8
    assert segmentation.areas == (("cat", 0, 900, 0.75), ("fox", 2, 300, 0.25))
    assert repr(segmentation) == "Segmentation(image: cat 75.0%, fox 25.0%)"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"mask": np.zeros((40, 30), int)}, r"shape \(30, 40\), not \(40, 30\)"),
        ({"mask": np.full((30, 40), 3)}, "from 0 to 2"),
        ({"mask": np.full((30, 40), 255, np.uint8)}, "from 0 to 2"),
        ({"mask": np.zeros((30, 40))}, "must be integers"),
        ({"probabilities": np.zeros((3, 40, 30))}, r"shape \(3, 30, 40\)"),
    ],
)
def test_segmentations_are_checked(segmentation, changes, error):
    with pytest.raises(ValueError, match=error):
        replace(segmentation, **changes)


def test_more_than_256_classes_have_a_16_bit_mask(photo, tmp_path):
    names = tuple(f"class {i}" for i in range(400))
    mask = np.arange(1200).reshape(30, 40) % 400
    result = Segmentation(size=(30, 40), names=names, mask=mask, image=photo)
    assert result.mask.dtype == np.int32
    _, path, _ = result.save(tmp_path)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), mask)


# --- Pictures ---


def test_each_result_draws_on_its_image(results, photo):
    for result in results:
        drawn = np.asarray(result.plot()).astype(int)
        plain = np.asarray(pictures.enlarged(photo)[0]).astype(int)
        assert drawn.shape[1] == 480
        assert np.abs(drawn[: len(plain)] - plain).max() > 0 or len(drawn) > len(plain)
        np.testing.assert_array_equal(np.asarray(result.plot()), drawn)  # Deterministic.


def test_the_image_is_found_by_path_and_replaced_by_argument(tmp_path, results, photo):
    path = tmp_path / "photo.png"
    photo.save(path)
    gray = np.asarray(photo.convert("L"))
    for result in results:
        by_path = replace(result, image=None, path=path)
        assert by_path.plot().tobytes() == result.plot().tobytes()
        bare = replace(result, image=None)
        with pytest.raises(ValueError, match=r"neither a path nor an image.*pass image="):
            bare.plot()
        assert bare.plot(image=photo).tobytes() == result.plot().tobytes()
        assert by_path.plot(image=gray).tobytes() != result.plot().tobytes()
        with pytest.raises(ValueError, match=r"40 x 30 pixels; the one to draw on has 41 x 30"):
            result.plot(image=np.zeros((30, 41, 3), np.uint8))


def test_boxes_and_masks_are_where_they_belong():
    result = Detections(
        size=(500, 600),
        names=("thing", "other"),
        boxes=[[100, 200, 300, 400]],
        scores=[0.5],
        labels=[0],
        image=np.zeros((500, 600, 3), np.uint8),
    )
    red = class_colors(1)[0]
    drawn = np.asarray(result.plot())
    for y, x in ((300, 100), (300, 299), (200, 200), (399, 200)):
        np.testing.assert_array_equal(drawn[y, x], red)
    for y, x in ((300, 98), (300, 301), (300, 200), (402, 200)):
        assert not drawn[y, x].any()
    mask = np.zeros((1, 500, 600), bool)
    mask[0, 250:350, 150:250] = True
    drawn = np.asarray(replace(result, masks=mask).plot())
    np.testing.assert_array_equal(drawn[300, 200], (red * np.float32(pictures.TINT)).round())
    np.testing.assert_array_equal(drawn[250, 200], red)
    assert not drawn[300, 140].any()


def test_small_objects_are_drawn_above_large_ones(photo):
    boxes = [[0, 0, 40, 30], [10, 10, 20, 20]]
    masks = np.zeros((2, 30, 40), bool)
    masks[0], masks[1, 10:20, 10:20] = True, True
    pictures = [
        Detections(
            size=(30, 40),
            names=NAMES,
            boxes=np.array(boxes)[order],
            scores=[0.9, 0.9],
            labels=np.array([0, 1])[order],
            masks=masks[order],
            image=photo,
        )
        for order in ([0, 1], [1, 0])
    ]
    middle = [np.asarray(result.plot())[150:170, 170:190] for result in pictures]
    np.testing.assert_array_equal(middle[0], middle[1])


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3), (2000, 4000)])
def test_images_of_any_size_are_drawn(size):
    image = np.full((*size, 3), 128, np.uint8)
    height, width = size
    names = ("a" * 300, "")
    whole = np.ones((1, *size), bool)
    box = [[0, 0, width, height]]
    objects = Detections(
        size=size, names=names, boxes=box, scores=[1], labels=[0], masks=whole, image=image
    )
    assert objects.plot().size == pictures.enlarged_size((width, height))
    classes = Classification(size=size, names=names, probabilities=[1, 0], image=image)
    assert classes.plot().width >= 480
    pixels = Segmentation(size=size, names=names, mask=np.ones(size, int), image=image)
    assert pixels.plot().width >= 480


def test_a_box_outside_the_image_and_one_without_area_are_drawn(photo):
    result = Detections(
        size=(30, 40),
        names=NAMES,
        boxes=[[-5, -5, 50, 50], [10, 10, 10, 10], [40, 30, 45, 35]],
        scores=[0.9, 0.8, 0.7],
        labels=[0, 1, 2],
        image=photo,
    )
    assert result.plot().size == (480, 360)


def test_captions_that_would_be_hidden_are_left_out(photo, monkeypatch):
    written = []
    write = pictures._chip

    def record(pen, xy, caption, text, color):
        written.append(caption)
        write(pen, xy, caption, text, color)

    monkeypatch.setattr(pictures, "_chip", record)

    def plot(number):
        written.clear()
        Detections(
            size=(30, 40),
            names=("thing",),
            boxes=[[0, 10, 40, 20]] * number,
            scores=np.linspace(0.1, 1, number),
            labels=[0] * number,
            image=photo,
        ).plot()
        return written

    # Above the box, inside at the top and at the bottom, below it; the highest score on top.
    assert plot(10) == ["thing 0.70", "thing 0.80", "thing 0.90", "thing 1.00"]
    assert plot(pictures.MAX_NAMES + 1) == []


def test_text_is_cut_to_its_room_and_grows_with_the_image():
    assert fonts.fitted("short", 500, 20) == "short"
    cut = fonts.fitted("a very long name of a class", 100, 20)
    assert cut.endswith("…")
    assert fonts.text_width(cut, 20) <= 100
    assert fonts.text_size((32, 32)) == fonts.MIN_TEXT
    assert fonts.text_size((4000, 3000)) > 4 * fonts.text_size((640, 480))


def test_names_that_no_font_has_are_replaced_by_the_index(monkeypatch):
    monkeypatch.setattr(fonts, "SYSTEM_FONTS", ())
    assert fonts.readable("кошка  \n δέλτα", 3) == "кошка δέλτα"
    assert fonts.readable("고양이", 3) == "class 3"
    assert fonts.readable(" \t", 3) == "class 3"
    monkeypatch.setattr(fonts, "_dejavu", lambda file: None)
    assert fonts.readable("кошка", 3) == "class 3"
    assert fonts.readable("cat", 3) == "cat"
    assert fonts.text_width("cat", 20, bold=True) > 10


def test_a_grid_of_bars_has_lengths_in_proportion():
    panel = np.asarray(pictures.bar_panel(600, 20, [("a", 0.8), ("b", 0.4), ("c", 0.0001)]))
    blue, gray = (31, 102, 181), (102, 112, 128)
    first = (panel == blue).all(-1).sum(1).max()
    second = (panel == gray).all(-1).sum(1).max()
    assert first == pytest.approx(2 * second, abs=2)
    assert pictures.percent(0.0001) == "<0.1%"
    assert pictures.percent(0) == "0.0%"


def test_erosion_keeps_what_is_away_from_the_edge():
    random = np.random.default_rng(0)
    inside = random.random((40, 30)) > 0.05
    for width in (1, 2, 5):
        padded = np.pad(inside, width)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * width + 1,) * 2)
        np.testing.assert_array_equal(pictures._eroded(inside, width), windows.all((-1, -2)))


def test_an_overlay_leaves_pixels_without_a_class_alone(photo):
    mask = np.full((30, 40), 255)
    mask[0, 0] = 0
    drawn = np.asarray(pictures.overlay(photo, mask, class_colors(3)))
    changed = (drawn != np.asarray(photo)).any(-1)
    assert changed[0, 0]
    assert changed.sum() == 1
    with pytest.raises(ValueError, match="40 x 30 pixels, its labels 30 x 40"):
        pictures.overlay(photo, mask.T, class_colors(3))


def test_the_color_of_a_class_does_not_depend_on_their_number():
    colors = class_colors(150)
    np.testing.assert_array_equal(colors[:5], class_colors(5))
    assert len({tuple(color) for color in colors.tolist()}) == 150
    assert colors[0].tolist() == [230, 25, 75]
    assert class_colors(0).shape == (0, 3)


# --- Files ---


def test_saved_files_hold_the_result(tmp_path, results):
    for result in results:
        folder = tmp_path / type(result).__name__
        *pictures, path = result.save(folder)
        content = json.loads(path.read_text("utf-8"))
        assert {**content, **result.to_dict()} == content
        assert content["picture"] == pictures[0].name == "image.png"
        with Image.open(pictures[0]) as picture:
            assert picture.tobytes() == result.plot().tobytes()
        assert sorted(folder.iterdir()) == sorted([*pictures, path])


def test_a_folder_named_like_a_picture_is_refused(tmp_path, results):
    for result in results:
        with pytest.raises(ValueError, match=r"into a folder.*\.plot\(\)\.save\(.*found\.JPG"):
            result.save(tmp_path / "found.JPG")
    assert not list(tmp_path.iterdir())


def test_the_index_mask_holds_the_labels(tmp_path, segmentation):
    _, path, described = segmentation.save(tmp_path)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), segmentation.mask)
    assert json.loads(described.read_text())["mask"] == path.name == "image_mask.png"


def test_results_of_one_name_are_kept_apart(tmp_path, classification, segmentation):
    photos = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.jpg"]
    saved = [replace(classification, path=path).save(tmp_path / "out") for path in photos]
    saved.append(replace(segmentation, path=photos[0]).save(tmp_path / "out"))
    names = [path.name for paths in saved for path in paths]
    assert names == [
        "x.png",
        "x.json",
        "x_2.png",
        "x_2.json",
        "x_3.png",
        "x_3_mask.png",
        "x_3.json",
    ]
    for paths, source in zip(saved, [*photos, photos[0]], strict=True):
        assert json.loads(paths[-1].read_text())["path"] == str(source)


def test_the_photo_itself_is_not_overwritten(tmp_path, classification, photo):
    path = tmp_path / "photo.png"
    photo.save(path)
    before = path.read_bytes()
    saved = replace(classification, path=path).save(tmp_path)
    assert path.read_bytes() == before
    assert saved[0].name == "photo_2.png"


def test_threads_that_save_one_name_get_different_files(tmp_path, classification):
    saved = []
    threads = [
        threading.Thread(target=lambda: saved.append(classification.save(tmp_path)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({path for paths in saved for path in paths}) == 16
    assert len(list(tmp_path.iterdir())) == 16


def test_nothing_is_left_behind_when_saving_fails(tmp_path, classification, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("disk full")

    with pytest.raises(ValueError, match="neither a path nor an image"):
        replace(classification, image=None).save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr("convnext.results.predictions.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        classification.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


@pytest.mark.parametrize(
    ("source", "stem"),
    [
        (Path("a/photo.final.jpg"), "photo.final"),
        (Path('a/what?<"yes">|*.jpg'), "what___yes____"),
        (Path("con.jpg"), "_con"),
        (Path("LPT1.b.jpg"), "_LPT1.b"),
        (Path("console.jpg"), "console"),
        (Path("dots. . .jpg"), "dots"),
        (Path("고양이.jpg"), "고양이"),
        ("image_00003", "image_00003"),
        ("frame 1.5", "frame 1.5"),
        ("https://example.com/a/cat.jpeg?size=3", "cat"),
        ("https://example.com/", "image"),
        ("a\udcffb", "a_b"),
        ("...", "image"),
    ],
)
def test_names_of_files_are_valid_everywhere(source, stem):
    assert file_stem(source) == stem


def test_long_names_are_cut_between_characters():
    stem = file_stem(Path(f"{'é' * 300}.jpg"))
    assert stem == "é" * 100


# --- Run lengths ---


@pytest.mark.parametrize("share", [0, 0.02, 0.5, 0.98, 1])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (5, 7), (90, 1), (1, 90), (300, 200)])
def test_run_lengths_are_those_of_coco(size, share):
    mask = np.random.default_rng(0).random(size) < share
    runs = encode(mask)
    reference = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert runs == {"size": list(size), "counts": reference["counts"].decode()}
    np.testing.assert_array_equal(decode(runs), mask)
    assert area(runs) == mask.sum()
    part, (x1, y1, x2, y2) = decode_window(runs)
    np.testing.assert_array_equal(part, mask[y1:y2, x1:x2])
    assert part.sum() == mask.sum()


def test_counts_may_be_a_list_or_bytes():
    mask = np.random.default_rng(1).random((20, 30)) < 0.3
    runs = encode(mask)
    values = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(values, prepend=0)).tolist()
    counts = np.diff([0, *edges, mask.size]).tolist()
    assert compress({"size": [20, 30], "counts": counts}) == runs
    assert compress({"size": [20, 30], "counts": runs["counts"].encode()}) == runs


@pytest.mark.parametrize("counts", [[1, 2], [-1, 7], "", [3, 3, 1]])
def test_damaged_run_lengths_are_refused(counts):
    for function in (decode, decode_window, compress, area):
        with pytest.raises(ValueError, match="damaged run lengths"):
            function({"size": [2, 3], "counts": counts})
    with pytest.raises(ValueError, match="'size' and 'counts', not \\['counts'\\]"):
        decode({"counts": counts})


# --- Scores, Exported, Embeddings ---


def test_scores_are_a_mapping():
    scores = Scores({"top1": 81.25, "loss": np.float32(0.5)}, per_class={"cat": {"f1": 90}})
    assert scores == dict(scores) == {"top1": 81.25, "loss": 0.5}
    assert scores["top1"] == 81.25
    assert "top5" not in scores
    assert scores.get("top5") is None
    assert scores.per_class["cat"]["f1"] == 90
    assert repr(scores) == "Scores(top1=81.25, loss=0.5; 1 class)"
    with pytest.raises(KeyError, match="did you mean 'top1'"):
        scores["top_1"]
    with pytest.raises(ValueError, match="no score may be called per_class"):
        Scores({"per_class": 1.0})


def test_scores_that_are_not_defined_are_valid_json():
    scores = Scores({"ap": float("nan")}, per_class={"cat": {"ap": float("inf")}})
    content = json.loads(json.dumps(scores.to_dict(), allow_nan=False))
    assert content == {"ap": None, "per_class": {"cat": {"ap": None}}}


def test_exported_files():
    exported = Exported(path="model.onnx", proof={"max_difference": 1e-6})
    assert exported.path == Path("model.onnx")
    assert exported.to_dict() == {"path": "model.onnx", "proof": {"max_difference": 1e-6}}
    assert repr(exported) == "Exported(model.onnx)"


def test_embeddings_unpack():
    embeddings = Embeddings(vectors=np.ones((2, 3)), paths=["a.jpg", Path("b.jpg")])
    vectors, paths = embeddings
    assert vectors.dtype == np.float32
    assert paths == ("a.jpg", "b.jpg")
    assert embeddings == Embeddings(vectors=np.ones((2, 3)), paths=paths)
    assert embeddings != Embeddings(vectors=np.zeros((2, 3)), paths=paths)
    assert embeddings.to_dict() == {"paths": ["a.jpg", "b.jpg"], "vectors": [[1.0] * 3] * 2}
    assert repr(embeddings) == "Embeddings(2 images, 3 features)"
    with pytest.raises(ValueError, match=r"for the 1 images, not \(2, 3\)"):
        Embeddings(vectors=np.ones((2, 3)), paths=["a.jpg"])
