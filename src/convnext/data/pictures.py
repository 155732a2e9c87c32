"""Pictures as files, and inside a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from PIL import Image

from convnext.atomic import atomic_write


def save_image(image: Image.Image, path: Path, **options: Any) -> None:
    """Write an image atomically, in the format that its ending names."""
    form = Image.registered_extensions()[path.suffix.lower()]
    with atomic_write(path) as temporary:
        image.save(temporary, form, **options)


def data_uri(image: Image.Image) -> str:
    """Return an image as a JPEG inside an address, for a page that needs no other file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
