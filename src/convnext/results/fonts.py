"""Text in pictures: fonts with the characters of a name, readable sizes, and widths that fit."""

from __future__ import annotations

import importlib.util
import math
from functools import cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Minimum and maximum text size in pixels, and the lines of text that would fill a square image.
MIN_TEXT, MAX_TEXT, LINES = 13, 96, 46

# DejaVu has Latin, Greek, Cyrillic, Hebrew and Arabic. These system fonts have Korean, Chinese and
# Japanese, in the order Windows, macOS, Linux; the first with all characters of a name is used.
SYSTEM_FONTS = (
    "malgun.ttf",
    "msyh.ttc",
    "YuGothM.ttc",
    "msgothic.ttc",
    "Nirmala.ttc",
    "AppleSDGothicNeo.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "Arial Unicode.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKkr-Regular.otf",
    "NanumGothic.ttf",
    "DroidSansFallbackFull.ttf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "unifont.ttf",
)


def text_size(size: tuple[int, int]) -> int:
    """Return the height in pixels of readable text on an image of `size` (W, H)."""
    return round(min(max(math.sqrt(size[0] * size[1]) / LINES, MIN_TEXT), MAX_TEXT))


def font_for(text: str, size: int, *, bold: bool = False) -> Font | None:
    """Return a font that has every character of a text, or None if this machine has none."""
    names = (_dejavu("DejaVuSans-Bold.ttf"),) if bold else ()
    for name in (*names, _dejavu("DejaVuSans.ttf"), *SYSTEM_FONTS):
        if name is not None and all(_has_glyph(name, character) for character in text):
            return _font(name, size)
    # Pillow's own font has Latin only.
    return ImageFont.load_default(size) if text.isascii() else None


def readable(name: str, label: int) -> str:
    """Return the name of a class on one line, or "class 3" if no font here can draw it."""
    printable = "".join(c if c.isprintable() else " " for c in name)
    text = " ".join(printable.split())
    return text if text and font_for(text, MIN_TEXT) else f"class {label}"


def fitted(text: str, width: float, size: int, *, bold: bool = False) -> str:
    """Return a text that is at most `width` pixels wide, cut with "…" if needed."""
    if text_width(text, size, bold=bold) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(f"{text[:middle].rstrip()}…", size, bold=bold) <= width:
            low = middle
        else:
            high = middle - 1
    return f"{text[:low].rstrip()}…"


def text_width(text: str, size: int, *, bold: bool = False) -> int:
    """Return the width of a text in pixels."""
    return math.ceil(_drawable(text, size, bold).getlength(text))


def write(
    pen: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    size: int,
    *,
    fill: str,
    anchor: str = "lm",
    bold: bool = False,
) -> None:
    pen.text(xy, text, fill=fill, font=_drawable(text, size, bold), anchor=anchor)


def _drawable(text: str, size: int, bold: bool) -> Font:
    return font_for(text, size, bold=bold) or ImageFont.load_default(size)


@cache
def _dejavu(file: str) -> str | None:
    """Return the path of a font that is bundled with matplotlib, without importing matplotlib."""
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / file
    return str(path) if path.is_file() else None


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:  # Not on this machine.
        return None


@cache
def _has_glyph(name: str, character: str) -> bool:
    """Whether a font has a character, and does not draw the box for missing ones."""
    font = _font(name, 20)
    if font is None:
        return False
    drawn, missing = font.getmask(character), font.getmask("\U0010fffe")
    return drawn.size != missing.size or bytes(drawn) != bytes(missing)
