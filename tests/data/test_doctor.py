"""Reports decode unchanged images once, compare all pixels, and say what else they compare."""

from __future__ import annotations

import io
import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from shapes import write_shapes
from small_objects import coco_squares

import convnext
from convnext.data import doctor, facts, samples
from convnext.data.doctor import ALIKE_BITS, find_nearest
from convnext.data.facts import FactsCache, ImageFacts, read_facts
from convnext.data.images import BadImage
from convnext.tasks import task_module
from convnext.tasks.classification.inspect import DataReport, inspect
from convnext.tasks.classification.shards import to_shards
from convnext.tasks.detection.inspect import inspect as inspect_detection
from convnext.tasks.segmentation.inspect import inspect as inspect_segmentation

QUIET = Console(file=io.StringIO())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own, which takes files that were just written."""
    monkeypatch.setattr(facts, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(facts, "SETTLED_NS", -(10**12))
    return tmp_path / "cache" / "images"


@pytest.fixture
def root(make_folder) -> Path:
    return make_folder({"train/cat": 12, "train/dog": 11, "val/cat": 4, "val/dog": 3})


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded."""
    names: list[str] = []

    def read(path: str) -> ImageFacts:
        names.append(Path(path).name)
        return read_facts(path)

    monkeypatch.setattr(facts, "read_facts", read)
    return names


def look(root: Path, **options: bool) -> DataReport:
    return inspect(str(root), console=QUIET, **options)


def without_notes(report: DataReport) -> dict[str, object]:
    return report.to_dict() | {"notes": ()}


def test_the_second_report_decodes_nothing_and_finds_the_same(
    root: Path, cache: Path, decoded: list[str], noise
) -> None:
    Image.new("RGB", (40, 36), "red").save(root / "train/cat/blank.png")
    noise(50, 40, mode="L", seed=500).save(root / "train/cat/gray.png")
    shutil.copy(root / "train/cat/000.png", root / "val/cat/leak.png")
    before = sorted(root.rglob("*"))
    first = look(root)
    assert len(decoded) == 33
    second = look(root)
    assert len(decoded) == 33
    assert without_notes(second) == without_notes(first)
    assert any("all images are unchanged" in note for note in second.notes)
    assert not any("unchanged" in note for note in first.notes)
    assert sorted(root.rglob("*")) == before
    assert len(list(cache.iterdir())) == 1


def test_damaged_images_are_read_again(root: Path, decoded: list[str]) -> None:
    (root / "train/cat/bad.png").write_bytes(b"text")
    assert look(root).unreadable == look(root).unreadable != ()
    assert decoded.count("bad.png") == 2


def change_pixels(path: Path) -> None:
    """Give a BMP file other pixels, the same size and the same time of modification."""
    times = path.stat()
    data = bytearray(path.read_bytes())
    data[-8:] = bytes(255 - value for value in data[-8:])
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replace_file(path: Path) -> None:
    """Put another file with the same size and time of modification in its place."""
    other = path.with_name("other.tmp")
    shutil.copy2(path, other)
    change_pixels(other)
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


@pytest.mark.skipif(os.name != "posix", reason="Windows has no time of the last change of status")
@pytest.mark.parametrize("change", [change_pixels, replace_file])
def test_a_changed_file_is_read_again(
    change: Callable[[Path], None], root: Path, decoded: list[str], noise
) -> None:
    path = root / "train/cat/x.bmp"
    noise(40, 40).save(path)
    shutil.copy(path, root / "val/cat/y.bmp")
    assert any("identical to a training image" in line for line in look(root).problems)
    decoded.clear()
    before = path.stat()
    change(path)
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    assert not any("identical to a training image" in line for line in look(root).problems)
    assert decoded == ["x.bmp"]


def test_files_that_were_just_written_are_not_cached(
    root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "SETTLED_NS", 10**15)
    look(root)
    look(root)
    assert len(decoded) == 60


def test_the_cache_can_be_bypassed(root: Path, cache: Path, decoded: list[str]) -> None:
    look(root, cache=False)
    assert not cache.exists()
    look(root)
    content = next(cache.iterdir()).read_bytes()
    report = look(root, cache=False)
    assert len(decoded) == 90
    assert not any("unchanged" in note for note in report.notes)
    assert next(cache.iterdir()).read_bytes() == content


def test_removed_images_are_forgotten(root: Path, cache: Path) -> None:
    look(root)
    size = next(cache.iterdir()).stat().st_size
    shutil.rmtree(root / "train/cat")
    shutil.rmtree(root / "val/cat")
    (root / "train/cow").mkdir()
    shutil.copy(root / "train/dog/000.png", root / "train/cow")
    look(root)
    assert next(cache.iterdir()).stat().st_size < size


def test_a_damaged_cache_is_ignored_with_a_warning(
    root: Path, cache: Path, decoded: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = look(root)
    file = next(cache.iterdir())
    whole = file.read_bytes()
    for content in (b"", b"text", whole[:200], whole[: len(whole) // 2]):
        file.write_bytes(content)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "convnext"):
            assert without_notes(look(root)) == without_notes(first)
        assert "damaged" in caplog.text
    assert len(decoded) == 5 * 30


def test_the_facts_of_another_version_are_not_used(
    root: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look(root)
    monkeypatch.setattr(facts, "version", lambda name: "0.1")
    look(root)
    assert len(decoded) == 60


def test_a_cache_that_cannot_be_written_is_only_a_warning(
    root: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file where a folder should be")
    with caplog.at_level(logging.WARNING, "convnext"):
        assert look(root).problems == ()
    assert "not cached" in caplog.text


def test_the_cache_is_bounded_and_forgets_what_was_not_used_for_longest(
    make_folder, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [make_folder({"train/a": 9, "train/b": 9}, name=name) for name in "xyz"]
    files = []
    for number, root in enumerate(sets[:2]):
        look(root)
        files += [path for path in cache.iterdir() if path not in files]
        os.utime(files[-1], (1_000 + number, 1_000 + number))
    look(sets[0])  # Used again.
    monkeypatch.setattr(facts, "MAX_CACHE_BYTES", 5 * files[0].stat().st_size // 2)
    look(sets[2])
    left = list(cache.iterdir())
    assert files[0] in left
    assert files[1] not in left
    assert len(left) == 2


def test_several_writers_leave_a_whole_file(root: Path) -> None:
    paths = [str(path) for path in sorted(root.rglob("*.png"))]

    def work() -> None:
        for _ in range(5):
            facts = FactsCache(root)
            for path in paths:
                facts.read(path)
            facts._new.clear() if facts.num_found else None
            facts.save()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = FactsCache(root)
    assert [again.read(path) for path in paths] == [read_facts(path) for path in paths]
    assert again.num_found == len(paths)


def write_dim(path: Path, kind: str, seed: int) -> None:
    """Write an image that differs from others only in what a picture of 8 bits does not show."""
    values = np.random.default_rng(seed).integers(0, 100, (40, 40))
    if kind == "bands":
        bands = np.stack([np.zeros_like(values)] * 4 + [values], -1).astype(np.uint8)
        tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")
    elif kind == "rgb":
        colors = np.stack([values] * 3, -1).astype(np.uint16)
        tifffile.imwrite(path, colors, photometric="rgb")
    else:
        scale, offset = {"uint16": (1, 0), "int32": (1, 0), "float32": (1e-4, -5)}[kind]
        Image.fromarray((values * scale + offset).astype(kind)).save(path)


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32", "rgb", "bands"])
def test_images_are_compared_with_all_their_bits_and_bands(
    kind: str, tmp_path: Path, decoded: list[str]
) -> None:
    paths = [tmp_path / f"{i}.tif" for i in range(3)]
    for seed, path in enumerate(paths):
        write_dim(path, kind, seed)
    shutil.copy(paths[0], tmp_path / "copy.tif")
    facts = FactsCache(tmp_path)
    found = [facts.read(str(path)) for path in (*paths, tmp_path / "copy.tif")]
    facts.save()
    assert found[0] == found[3]
    assert len({one.digest for one in found}) == 3
    assert not any(one.is_blank for one in found)
    assert {one.is_gray for one in found} == {kind != "bands"}
    assert len({one.sketch for one in found}) == (1 if kind == "bands" else 3)
    decoded.clear()
    again = FactsCache(tmp_path)
    assert again.read(str(paths[1])) == found[1]
    assert decoded == []


def test_a_16_bit_image_of_one_value_is_blank(tmp_path: Path) -> None:
    values = np.full((40, 40), 300, np.uint16)
    Image.fromarray(values).save(tmp_path / "blank.png")
    values[7, 9] = 301
    Image.fromarray(values).save(tmp_path / "spot.png")
    assert read_facts(str(tmp_path / "blank.png")).is_blank
    assert not read_facts(str(tmp_path / "spot.png")).is_blank


@pytest.mark.parametrize("inspect", [inspect_detection, inspect_segmentation])
def test_dim_images_are_no_copies_of_each_other(
    inspect: Callable[..., Any], tmp_path: Path
) -> None:
    annotations = "labels" if inspect is inspect_detection else "masks"
    for seed, name in enumerate(("train/a", "train/b", "val/c", "val/d")):
        image = tmp_path / f"images/{name}.png"
        annotation = tmp_path / f"{annotations}/{name}"
        for path in (image, annotation):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_dim(image, "uint16", seed)
        if annotations == "labels":
            annotation.with_suffix(".txt").write_text("0 0.5 0.5 0.2 0.2")
        else:
            Image.fromarray(np.eye(40, dtype=np.uint8)).save(annotation.with_suffix(".png"))
    (tmp_path / "classes.txt").write_text("thing\nother\n")
    problems = [str(one) for one in inspect(str(tmp_path), console=QUIET).problems]
    assert not [one for one in problems if "identical" in one or "duplicate" in one]


@pytest.mark.parametrize("kind", ["uint16", "bands"])
def test_the_values_of_a_data_set_are_sampled_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("train/a/0", "train/b/0", "val/a/0", "val/b/0")):
        (tmp_path / name).parent.mkdir(parents=True)
        write_dim(tmp_path / f"{name}.tif", kind, seed)
    sampled: list[str] = []
    for name in ("pixel_range", "band_sample"):
        sample = getattr(samples, name)
        monkeypatch.setattr(
            samples, name, lambda images, f=sample, name=name: (sampled.append(name), f(images))[1]
        )
    report = inspect(str(tmp_path), console=QUIET)
    assert any("were sampled" in note for note in report.notes)
    assert len(sampled) == len(set(sampled))
    assert {"uint16": "pixel_range", "bands": "band_sample"}[kind] in sampled


def test_missing_files_are_bad_images(root: Path) -> None:
    with pytest.raises(BadImage, match="no such file"):
        FactsCache(root).read(str(root / "absent.png"))


@pytest.mark.parametrize("last", [(9, 9, 9), (9, 9, 8), (8, 8, 8)])
@pytest.mark.parametrize("color", [(9, 9, 9), (9, 9, 8)])
def test_gray_and_single_colors_are_recognized_by_all_pixels(
    color: tuple[int, ...], last: tuple[int, ...], tmp_path: Path
) -> None:
    values = np.full((70, 70, 3), color, np.uint8)
    values[-1, -1] = last
    image = Image.fromarray(values)
    image.save(tmp_path / "x.png")
    red, green, blue = image.split()
    found = read_facts(str(tmp_path / "x.png"))
    assert found.is_gray == (red.tobytes() == green.tobytes() == blue.tobytes())
    assert found.is_blank == all(low == high for low, high in image.getextrema())


def brute_force(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> list[int]:
    found = []
    for row in second:
        distances = np.bitwise_count(first ^ row).sum(1)
        nearest = int(distances.argmin())
        found.append(nearest if distances[nearest] <= ALIKE_BITS else -1)
    return found


@pytest.mark.parametrize("at_once", [1, 50, 10**6])
def test_the_nearest_sketches_are_those_of_a_full_comparison(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "MAX_PAIRS", at_once)
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (60, 32), np.uint8)
    first[20:30] = first[5]  # Equal ones, as of pictures on white.
    first[30:40, :28] = 0
    rows = rng.integers(0, 60, 120)
    bits = np.unpackbits(first[rows], axis=1)
    for row in bits:  # Up to 12 bits differ, in any place or all in one.
        places = rng.choice(256, rng.integers(0, 13), replace=False)
        row[places if rng.random() < 0.5 else places % 32] ^= 1
    second = np.packbits(bits, axis=1)
    found = find_nearest(first, second).tolist()
    assert found == brute_force(first, second)
    assert -1 in found
    assert len(set(found)) > 20
    assert find_nearest(first[:0], second).tolist() == [-1] * 120
    assert find_nearest(first, second[:0]).tolist() == []


def photos(root: Path, count: int) -> None:
    """Write photos into training, and the same ones, smaller and as JPEG, into validation."""
    rng = np.random.default_rng(1)
    for part in ("train", "val"):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
    for i in range(count):
        cells = rng.integers(0, 256, (8, 10, 3), np.uint8)
        image = Image.fromarray(cells).resize((240, 200), Image.Resampling.BICUBIC)
        image.save(root / f"train/{'ab'[i % 2]}/{i}.png")
        image.resize((180, 150)).save(root / f"val/{'ab'[i % 2]}/{i}.jpg", quality=80)


def near(report: DataReport) -> int:
    lines = [line for line in report.problems if "look like a training image" in line]
    return int(lines[0].split("saved again: ")[1].split(" ")[0]) if lines else 0


def test_near_duplicates_of_a_sample_and_of_all_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "photos"
    photos(root, 10)
    everything = look(root)
    assert near(everything) == 10
    assert any(
        "all 10 held-out images were compared with 10 training" in n for n in everything.notes
    )
    assert not any("--deep" in note for note in everything.notes)
    monkeypatch.setattr(doctor, "NUM_ALIKE", 4)
    sample = look(root)
    assert near(sample) == 4
    (note,) = (note for note in sample.notes if "near duplicates" in note)
    assert "the pixels of all 20 readable images were compared" in note
    assert "4 of 10 held-out images were compared with 10 training images" in note
    assert note.endswith("--deep compares all")
    deep = look(root, deep=True)
    assert near(deep) == 10
    assert not any("--deep" in note for note in deep.notes)


def test_copies_are_found_in_every_split(root: Path, noise) -> None:
    (root / "test/cat").mkdir(parents=True)
    (root / "test/dog").mkdir(parents=True)
    noise(seed=900).save(root / "test/dog/new.png")
    shutil.copy(root / "train/cat/000.png", root / "test/cat/leak.png")
    (root / "test/cat/bad.png").write_bytes(b"")
    report = look(root)
    (line,) = (line for line in report.problems if "identical" in line)
    assert line.startswith("test images identical to a training image, which makes test scores too")
    assert line.endswith("high: 1 (test/cat/leak.png = train/cat/000.png)")
    assert "cannot be read: 1 of 33 (test/cat/bad.png" in report.problems[0]


def test_copies_are_found_across_shards(root: Path, tmp_path: Path) -> None:
    shutil.copy(root / "train/cat/000.png", root / "val/cat/leak.png")
    to_shards(str(root), tmp_path / "shards", console=QUIET)
    (line,) = (line for line in look(tmp_path / "shards").problems if "identical" in line)
    assert "too high: 1 (" in line


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_shows_what_is_being_done(root: Path, is_terminal: bool) -> None:
    out = io.StringIO()
    inspect(str(root), console=Console(file=out, force_terminal=is_terminal))
    assert ("listing files and annotations" in out.getvalue()) == is_terminal
    assert ("reading images" in out.getvalue()) == is_terminal


@pytest.mark.parametrize("task", ["classify", "segment", "detect"])
def test_a_report_with_a_contact_sheet_opens_the_data_once(
    task: str, make_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = {"segment": write_shapes, "detect": coco_squares}.get(task)
    path = make_folder({"cat": 9, "dog": 8}) if make is None else make(tmp_path / "data")
    module = task_module(task, "inspect")
    name = "open_as" if hasattr(module, "open_as") else "open_dataset"
    opened, open_dataset = [], getattr(module, name)

    def count(*args: object, **options: object) -> object:
        opened.append(args)
        return open_dataset(*args, **options)

    monkeypatch.setattr(module, name, count)
    sheet = tmp_path / "sheet.png"
    with_sheet = convnext.check_data(path, contact_sheet=sheet, cache=False, progress=False)
    assert len(opened) == 1
    with Image.open(sheet) as image:
        assert min(image.size) > 100
    assert with_sheet == convnext.check_data(path, cache=False, deep=True, progress=False)
    assert len(opened) == 2
