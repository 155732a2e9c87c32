"""The figures show the given numbers and suit light and dark pages."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib import rcParams
from matplotlib.colors import to_rgb
from PIL import Image

from convnext.reports.page import draw_curves, draw_speed, inline_svg, short_count, thin
from convnext.tasks.figures import (
    ACCENT,
    HIT,
    MISS,
    Curve,
    draw_confusion,
    normalize_rows,
    save_bytes,
    shorten,
    shrink,
)


def test_curves_hold_their_points_and_the_mark() -> None:
    curve = Curve(label="weights", x=[0, 100, 200], y=[1.0, 3.0, 2.0])
    (axes,) = draw_curves([curve], label="top-1, %", mark=(100, 3.0, "3.00")).axes
    line, mark = axes.lines
    assert list(line.get_xdata()) == [0, 100, 200]
    assert list(line.get_ydata()) == [1.0, 3.0, 2.0]
    assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (100, 3.0)
    assert [text.get_text() for text in axes.texts] == ["3.00"]
    assert axes.get_ylabel() == "top-1, %"
    assert axes.get_legend() is None


@pytest.mark.parametrize(
    ("values", "bottom", "top"),
    [([0.0, 0.0], 0, 1), ([0.0, 10.0], 0, 10.5), ([-1.0, 1.0], -1.1, 1.1)],
)
def test_an_axis_is_negative_only_where_values_are(
    values: list[float], bottom: float, top: float
) -> None:
    (axes,) = draw_curves([Curve(label="a", x=[0, 1], y=values)], label="score, %").axes
    assert axes.get_ylim() == pytest.approx((bottom, top))


def test_two_curves_have_a_legend() -> None:
    curves = [Curve(label=name, x=[0, 1], y=[0, 1]) for name in ("weights", "moving average")]
    legend = draw_curves(curves, label="loss").axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["weights", "moving average"]


def test_a_dashed_curve_is_thin_and_without_points() -> None:
    plain = Curve(label="weights", x=[0, 1], y=[0, 1])
    dashed = Curve(label="reference", x=[0, 1], y=[1, 1], dashed=True)
    first, second = draw_curves([plain, dashed], label="top-1, %").axes[0].lines
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")
    assert (first.get_marker(), second.get_marker()) == ("o", "")
    assert second.get_linewidth() < first.get_linewidth()


def test_speed_is_drawn_from_zero_and_waiting_in_percent() -> None:
    top, bottom = draw_speed([0, 64], [90.0, 110.0], [0.5, 0.25]).axes
    assert top.get_ylim()[0] == 0
    assert list(bottom.lines[0].get_ydata()) == [50, 25]


def test_confusion_is_blue_where_right_and_orange_where_wrong() -> None:
    confusion = np.array([[3, 1], [0, 0]])
    (axes,) = draw_confusion(confusion, ["a", "b"]).axes
    pixels = np.asarray(axes.images[0].get_array())
    assert pixels[0, 0, :3] == pytest.approx(to_rgb(HIT))
    assert pixels[0, 1, :3] == pytest.approx(to_rgb(MISS))
    assert pixels[..., 3] == pytest.approx(0.85 * np.sqrt([[0.75, 0.25], [0, 0]]))
    assert [text.get_text() for text in axes.texts] == ["3", "1"]


@pytest.mark.parametrize(
    ("num_classes", "cells", "named"), [(2, 2, 2), (30, 30, 30), (40, 40, 0), (1000, 50, 0)]
)
def test_confusion_of_few_and_many_classes(num_classes: int, cells: int, named: int) -> None:
    names = [f"class {c}" for c in range(num_classes)]
    (axes,) = draw_confusion(np.eye(num_classes, dtype=int), names).axes
    assert np.asarray(axes.images[0].get_array()).shape == (cells, cells, 4)
    assert len(axes.get_yticklabels()) == named


def test_shares_of_a_class_without_images_are_zero() -> None:
    assert normalize_rows(np.array([[1, 3], [0, 0]])).tolist() == [[0.25, 0.75], [0, 0]]


def test_shrinking_keeps_the_mean_of_every_block() -> None:
    shares = np.random.default_rng(0).random((100, 100))
    small = shrink(shares, cells=50)
    assert small.shape == (50, 50)
    assert small[3, 7] == pytest.approx(shares[6:8, 14:16].mean())
    assert shrink(shares[:7, :7], cells=50) is not None


def test_thinning_keeps_short_series_and_means_of_long_ones() -> None:
    assert thin([1, 2], [3, 4]) == ([1, 2], [3, 4])
    x, y = thin(list(range(4000)), [float(i % 2) for i in range(4000)])
    assert len(x) == len(y) == 400
    assert set(y) == {0.5}


def test_an_svg_inside_a_page_takes_its_colors_and_says_what_it_shows() -> None:
    fig = draw_curves([Curve(label="<b>", x=[0, 1], y=[0, 1])], label='"$x_1$" & <i>')
    svg = save_bytes(fig, "svg").decode()
    assert ACCENT in svg
    page = inline_svg(svg, "loss", 'of "<b>"')
    assert ACCENT not in page
    assert "var(--accent)" in page
    assert 'aria-label="of &quot;&lt;b&gt;&quot;"' in page
    assert "<i>" not in page
    assert "$x_1$" in page
    assert "http" not in page
    assert all(part.startswith("loss-") for part in page.split('id="')[1:])


def test_a_png_is_on_white_and_of_one_palette() -> None:
    fig = draw_curves([Curve(label="a", x=[0, 1], y=[0, 1])], label="loss")
    image = Image.open(io.BytesIO(save_bytes(fig, "png")))
    assert image.mode == "P"
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_the_same_numbers_give_the_same_file_and_nothing_global_changes() -> None:
    before = dict(rcParams)
    files = {save_bytes(draw_speed([0, 1], [1, 2], [0, 0.1]), "svg") for _ in range(2)}
    assert len(files) == 1
    assert dict(rcParams) == before


def test_glyphs_that_the_font_lacks_are_no_warning() -> None:
    save_bytes(draw_confusion(np.eye(2, dtype=int), ["猫", "犬"]), "png")


def test_names_and_counts_in_short() -> None:
    assert shorten("a  long\nname that goes on and on") == "a long name that …"
    assert [short_count(v) for v in (0, 950, 1500, 2e6)] == ["0", "950", "1.5 k", "2 M"]
