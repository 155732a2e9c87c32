"""Benchmarks are recognized by their layouts and names; other folders are refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from convnext.tasks.classification.robustness.benchmarks import (
    C_BAR,
    EXTRAS,
    find_benchmark,
    subset_synsets,
)
from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS


def corrupted(root: Path, names: Iterable[str], levels: Iterable[int] = range(1, 6)) -> str:
    for name in names:
        for level in levels:
            (root / name / str(level) / "n01440764").mkdir(parents=True)
    return str(root)


def classes(root: Path, names: Iterable[str], file: str = "x.jpg") -> str:
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / file).touch()
    return str(root)


def test_imagenet_c_in_the_order_of_its_paper_with_the_extra_ones_last(tmp_path: Path) -> None:
    found = find_benchmark(corrupted(tmp_path, [*EXTRAS, *sorted(CORRUPTIONS)]))
    assert (found.kind, found.synsets, found.notes) == ("imagenet-c", None, ())
    names = [c.corruption for c in found.conditions if c.severity == 1]
    assert names == [*CORRUPTIONS, *EXTRAS]
    assert len(found.conditions) == 19 * 5
    assert found.conditions[7].folder == tmp_path / "shot_noise" / "3"


def test_imagenet_c_as_its_archives_unpack(tmp_path: Path) -> None:
    corrupted(tmp_path / "noise", ["gaussian_noise", "shot_noise"])
    corrupted(tmp_path / "blur", ["zoom_blur"])
    found = find_benchmark(str(tmp_path))
    assert found.kind == "imagenet-c"
    assert {c.corruption for c in found.conditions} == {"gaussian_noise", "shot_noise", "zoom_blur"}
    (note,) = found.notes
    assert note.startswith("missing corruptions: impulse_noise, defocus_blur")
    assert "zoom_blur" not in note


def test_a_folder_in_a_folder_of_its_own(tmp_path: Path) -> None:
    corrupted(tmp_path / "ImageNet-C" / "ImageNet-C", CORRUPTIONS)
    assert len(find_benchmark(str(tmp_path / "ImageNet-C")).conditions) == 75


def test_a_missing_severity_is_noted(tmp_path: Path) -> None:
    corrupted(tmp_path, ["fog"], (1, 2, 4))
    found = find_benchmark(str(tmp_path))
    assert [c.severity for c in found.conditions] == [1, 2, 4]
    assert found.notes[-1] == "fog has no severity 3, 5"


def test_c_bar(tmp_path: Path) -> None:
    found = find_benchmark(corrupted(tmp_path, C_BAR))
    assert (found.kind, found.notes, len(found.conditions)) == ("imagenet-c-bar", (), 50)


def test_some_corruptions_and_severities_only(tmp_path: Path) -> None:
    path = corrupted(tmp_path, [*CORRUPTIONS, *C_BAR])
    with pytest.raises(
        ValueError, match="measure one at a time, for example with --corruptions blue"
    ):
        find_benchmark(path)
    found = find_benchmark(path, corruptions=["sparkles"], severities=(2, 4))
    assert found.kind == "imagenet-c-bar"
    assert [(c.corruption, c.severity) for c in found.conditions] == [
        ("sparkles", 2),
        ("sparkles", 4),
    ]
    with pytest.raises(ValueError, match="has no smog; it has blue_noise_sample"):
        find_benchmark(path, corruptions=["smog"])


@pytest.mark.parametrize("kind", ["imagenet-a", "imagenet-r"])
def test_a_and_r_are_known_by_their_classes(kind: str, tmp_path: Path) -> None:
    synsets = subset_synsets(kind.replace("-", "_"))
    found = find_benchmark(classes(tmp_path / "folder", synsets))
    assert (found.kind, found.synsets, found.notes) == (kind, synsets, ())
    (condition,) = found.conditions
    assert (condition.corruption, condition.severity) == (kind, 0)


def test_a_partial_copy_keeps_the_classes_of_the_benchmark(tmp_path: Path) -> None:
    synsets = subset_synsets("imagenet_r")
    found = find_benchmark(classes(tmp_path / "folder", synsets[:150]))
    assert found.kind == "imagenet-r"
    assert found.synsets == synsets
    assert found.notes == ("50 of its 200 classes are missing",)


def test_sketch_is_known_by_its_files_or_its_name(tmp_path: Path) -> None:
    synsets = subset_synsets("imagenet")
    by_file = find_benchmark(classes(tmp_path / "folder", synsets[:30], "sketch_1.JPEG"))
    by_name = find_benchmark(classes(tmp_path / "imagenet-sketch", synsets[:30]))
    assert {by_file.kind, by_name.kind} == {"imagenet-sketch"}
    assert by_file.synsets is None
    assert by_file.notes == ("970 of its 1,000 classes are missing",)


def test_classes_of_both_need_a_name(tmp_path: Path) -> None:
    both = sorted({*subset_synsets("imagenet_a")} & {*subset_synsets("imagenet_r")})
    with pytest.raises(ValueError, match="could be ImageNet-A or ImageNet-R"):
        find_benchmark(classes(tmp_path / "folder", both))
    assert find_benchmark(classes(tmp_path / "ImageNet_R", both)).kind == "imagenet-r"


def test_plain_imagenet_is_none(tmp_path: Path) -> None:
    path = classes(tmp_path / "val", subset_synsets("imagenet"), "ILSVRC2012_val_1.JPEG")
    with pytest.raises(ValueError, match=r"1,000 folders .* are of none .* use --data"):
        find_benchmark(path)


def test_other_folders_are_none_and_it_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gaussian_noise/1 .*plasma_noise/1 .*found cat, dog"):
        find_benchmark(classes(tmp_path, ["cat", "dog"]))
    with pytest.raises(ValueError, match="does not exist; --robustness takes"):
        find_benchmark(str(tmp_path / "absent"))
    (tmp_path / "c" / "fog" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match="no folders of severities 1 to 5"):
        find_benchmark(str(tmp_path / "c"))
