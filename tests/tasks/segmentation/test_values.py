"""What the values of masks mean: edges, sparse values, palettes, ids of objects, and lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from convnext.data.images import BadImage
from convnext.tasks.segmentation.data import SegmentationData, open_dataset
from convnext.tasks.segmentation.values import voc_colors

SIDE = 48


def write(
    root: Path, draw: Callable[[int], Image.Image], masks: str = "masks", ending: str = "png"
) -> Path:
    """Write ten images with masks."""
    for kind in ("images", masks):
        (root / kind).mkdir(parents=True, exist_ok=True)
    for i in range(10):
        pixels = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        draw(i).save(root / masks / f"{i}.{ending}")
    return root


def square(i: int, value: int = 1) -> np.ndarray:
    """A large square of a value on 0."""
    values = np.zeros((SIDE, SIDE), np.uint8)
    y, x = np.random.default_rng(i).integers(2, SIDE - 26, 2)
    values[y : y + 24, x : x + 24] = value
    return values


def labels_of(data: SegmentationData) -> dict[str, np.ndarray]:
    return {
        name: part.mask(i) for part in (data.train, data.val) for i, name in enumerate(part.names)
    }


def text(data: SegmentationData) -> str:
    return "\n".join(data.notes)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_gray_images_of_several_channels_hold_indices(tmp_path: Path, mode: str) -> None:
    data = open_dataset(str(write(tmp_path, lambda i: Image.fromarray(square(i, 2)).convert(mode))))
    assert data.classes == ("class 0", "class 1", "class 2")
    assert all((mask == square(int(name), 2)).all() for name, mask in labels_of(data).items())


def test_masks_that_are_transparent_in_places_are_refused(tmp_path: Path) -> None:
    def draw(i: int) -> Image.Image:
        picture = Image.fromarray(square(i)).convert("LA")
        if i:
            picture.putalpha(Image.fromarray(square(i) * np.uint8(255)))
        return picture

    data = open_dataset(str(write(tmp_path, draw)), strict=False)
    part, index = next((p, p.names.index("3")) for p in (data.train, data.val) if "3" in p.names)
    with pytest.raises(BadImage, match="transparent in places"):
        part.mask(index)


def test_floats_are_indices_only_if_they_are_whole(tmp_path: Path) -> None:
    root = write(tmp_path, lambda i: Image.fromarray(square(i, 2).astype(np.float32)), ending="tif")
    assert len(open_dataset(str(root)).classes) == 3
    half = write(
        tmp_path / "half",
        lambda i: Image.fromarray(square(i).astype(np.float32) / 2),
        ending="tif",
    )
    (half / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(BadImage, match="holds fractions, not class indices"):
        open_dataset(str(half)).train.mask(0)


@pytest.mark.parametrize("top", [251, 254, 100])
def test_two_values_are_background_and_foreground(tmp_path: Path, top: int) -> None:
    data = open_dataset(str(write(tmp_path, lambda i: Image.fromarray(square(i, top)))))
    assert data.classes == ("background", "foreground")
    assert f"the masks have only 0 and {top}" in text(data)
    assert all((mask == square(int(name))).all() for name, mask in labels_of(data).items())


def test_gray_edges_are_split_in_the_middle_and_said(tmp_path: Path) -> None:
    def draw(i: int) -> Image.Image:
        return Image.fromarray(square(i, 255)).filter(ImageFilter.GaussianBlur(0.6))

    data = open_dataset(str(write(tmp_path, draw)))
    assert data.classes == ("background", "foreground")
    assert "along their edges" in text(data)
    assert "palette.json" in text(data)
    assert all(
        (mask == (np.asarray(draw(int(name))) >= 128)).all()
        for name, mask in labels_of(data).items()
    )


def test_black_and_white_masks_of_jpeg_are_read(tmp_path: Path) -> None:
    root = write(tmp_path, lambda i: Image.fromarray(square(i, 255)), ending="jpg")
    data = open_dataset(str(root))
    assert data.classes == ("background", "foreground")
    assert "along their edges" in text(data)
    assert all((mask == square(int(name))).all() for name, mask in labels_of(data).items())


def test_a_value_between_two_that_is_not_an_edge_is_a_class(tmp_path: Path) -> None:
    def draw(i: int) -> Image.Image:
        values = square(i, 254)
        values[:3, :] = 127
        return Image.fromarray(values)

    data = open_dataset(str(write(tmp_path, draw)))
    assert data.classes == ("value 0", "value 127", "value 254")
    assert "far apart: each is a class" in text(data)
    assert set(np.unique(data.train.mask(0))) == {0, 1, 2}
    Image.fromarray(square(0, 90)).save(tmp_path / "masks" / f"{data.train.names[0]}.png")
    with pytest.raises(BadImage, match="has the value 90 in 576 pixels, which is not a class"):
        data.train.mask(0)


def test_sparse_values_with_255_have_two_readings(tmp_path: Path) -> None:
    def draw(i: int) -> Image.Image:
        values = square(i, 80)
        values[-9:] = 200
        values[:3] = 255
        return Image.fromarray(values)

    root = write(tmp_path, draw)
    with pytest.raises(ValueError, match=r"255 may be a class or mean no class.*palette\.json"):
        open_dataset(str(root))
    (root / "palette.json").write_text('{"ground": 0, "leaf": 80, "soil": 200, "void": 255}')
    data = open_dataset(str(root))
    assert data.classes == ("ground", "leaf", "soil")
    assert set(np.unique(data.train.mask(0))) == {0, 1, 2, 255}


def test_palettes_in_black_and_white_are_read_by_color(tmp_path: Path) -> None:
    def draw(i: int) -> Image.Image:
        if i % 3:
            return Image.fromarray(square(i, 255))
        picture = Image.fromarray(square(i, 251))
        picture.putpalette([255 * (k == 251) for k in range(256) for _ in range(3)])
        return picture

    data = open_dataset(str(write(tmp_path, draw)))
    assert data.classes == ("background", "foreground")
    assert all((mask == square(int(name))).all() for name, mask in labels_of(data).items())


def test_palettes_that_differ_are_refused(tmp_path: Path) -> None:
    def draw(i: int) -> Image.Image:
        picture = Image.fromarray(square(i))
        picture.putpalette([0, 0, 0, 200 if i else 10, 0, 0])
        return picture

    root = write(tmp_path, draw)
    with pytest.raises(ValueError, match=r"palettes differ: index 1 is .* palette.json"):
        open_dataset(str(root))
    (root / "palette.json").write_text(
        '{"ground": [0, 0, 0], "red": [200, 0, 0], "dark": [10, 0, 0]}'
    )
    data = open_dataset(str(root))
    labels = labels_of(data)
    assert (set(np.unique(labels["0"])), set(np.unique(labels["1"]))) == ({0, 2}, {0, 1})


def test_ids_of_objects_are_a_foreground_and_it_is_said(tmp_path: Path) -> None:
    def draw(i: int) -> Image.Image:
        values = np.zeros((SIDE, SIDE), np.uint16)
        for k in range(5 + i):
            y, x = divmod(k, 6)
            values[8 * y : 8 * y + 6, 8 * x : 8 * x + 6] = k + 1
        return Image.fromarray(values)

    root = write(tmp_path, draw, ending="tif")
    data = open_dataset(str(root))
    assert data.classes == ("background", "foreground")
    assert "ids of objects, up to 14 in an image" in text(data)
    assert set(np.unique(data.train.mask(0))) == {0, 1}
    (root / "classes.txt").write_text("\n".join(f"c{k}" for k in range(15)))
    assert len(open_dataset(str(root)).classes) == 15


def test_a_stack_of_slices_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, lambda i: Image.fromarray(square(i)), ending="tif")
    slices = [Image.fromarray(square(k)) for k in range(4)]
    data = open_dataset(str(root))
    path = root / "masks" / f"{data.train.names[0]}.tif"
    slices[0].save(path, save_all=True, append_images=slices[1:])
    with pytest.raises(BadImage, match="is a stack of 4 slices"):
        data.train.mask(0)
    slices[0].save(path, save_all=True, append_images=[slices[0].resize((12, 12))])
    assert data.train.mask(0).shape == (SIDE, SIDE)


def test_colors_of_pascal_voc(tmp_path: Path) -> None:
    colors = {index: color for color, index in voc_colors().items()}
    assert (colors[1], colors[2], colors[15]) == ((128, 0, 0), (0, 128, 0), (192, 128, 128))
    assert colors[255] == (224, 224, 192)
    table = np.array([colors[k] for k in range(256)], np.uint8)

    def draw(i: int) -> Image.Image:
        values = square(i, 2)
        values[0] = 255
        return Image.fromarray(table[values])

    root = write(tmp_path, draw, masks="SegmentationClass")
    (root / "images").rename(root / "JPEGImages")
    data = open_dataset(str(root))
    assert len(data.classes) == 3
    assert set(np.unique(data.train.mask(0))) == {0, 2, 255}
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nplant:0,128,0::\n"
        "ignored:224,224,192::\n"
    )
    named = open_dataset(str(root))
    assert named.classes == ("background", "plant")
    assert set(np.unique(named.train.mask(0))) == {0, 1, 255}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("_classes.csv", "Pixel Value, Class\n0, ground\n7, plant\n"),
        ("class_names.txt", "__ignore__\n_background_\n" + "x\ny\nz\nu\nv\nw\nplant\n"),
    ],
)
def test_lists_of_other_tools(tmp_path: Path, name: str, content: str) -> None:
    root = write(tmp_path, lambda i: Image.fromarray(square(i, 7)))
    (root / name).write_text(content)
    data = open_dataset(str(root))
    assert data.classes[0] in ("ground", "background")
    mask = data.train.mask(0)
    assert data.classes[int(mask.max())] == "plant"


def test_class_dict_lists_colors(tmp_path: Path) -> None:
    table = np.array([(0, 0, 0), (60, 60, 200)], np.uint8)
    root = write(tmp_path, lambda i: Image.fromarray(table[square(i)]))
    (root / "class_dict.csv").write_text("name,r,g,b\nroad,60,60,200\nVoid,0,0,0\n")
    data = open_dataset(str(root))
    assert data.classes == ("road",)
    assert set(np.unique(data.train.mask(0))) == {0, 255}


def test_as_many_values_as_listed_classes(tmp_path: Path) -> None:
    def draw(i: int) -> Image.Image:
        values = square(i, 254)
        values[:9] = 127
        return Image.fromarray(values)

    root = write(tmp_path, draw)
    (root / "classes.txt").write_text("ground\nleaf\nsoil\n")
    data = open_dataset(str(root))
    assert "0 is ground, 127 is leaf, 254 is soil" in text(data)
    assert set(np.unique(data.train.mask(0))) == {0, 1, 2}


def numbered(i: int) -> Image.Image:
    """One to four squares in a row, numbered from 1."""
    values = np.zeros((SIDE, SIDE), np.uint8)
    for k in range(1 + i % 4):
        values[4:16, 1 + 12 * k : 11 + 12 * k] = k + 1
    return Image.fromarray(values)


def test_numbers_of_objects_are_not_called_classes(tmp_path: Path) -> None:
    write(tmp_path, numbered)
    with pytest.raises(ValueError, match="may be classes, or number the objects of an image"):
        open_dataset(str(tmp_path))
    (tmp_path / "classes.txt").write_text("background\nperson\n")
    data = open_dataset(str(tmp_path))
    assert data.classes == ("background", "person")
    assert "every object is person, and 0 is background" in text(data)
    assert all(
        (mask == (np.asarray(numbered(int(name))) > 0)).all()
        for name, mask in labels_of(data).items()
    )
    (tmp_path / "classes.txt").write_text("background\na\nb\nc\nd\n")
    data = open_dataset(str(tmp_path))
    assert all(
        (mask == np.asarray(numbered(int(name)))).all() for name, mask in labels_of(data).items()
    )


def test_classes_that_skip_a_value_are_classes(tmp_path: Path) -> None:
    def draw(i: int) -> Image.Image:
        values = np.asarray(numbered(i)).copy()
        values[values == 1] = 3
        return Image.fromarray(values)

    assert len(open_dataset(str(write(tmp_path, draw))).classes) == 5


def test_masks_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    write(tmp_path, lambda i: Image.fromarray(square(i)))
    for path in (tmp_path / "masks").iterdir():
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"0\.png: cannot be read \(a pointer of Git LFS"):
        open_dataset(str(tmp_path))
