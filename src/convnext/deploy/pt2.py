"""pt2 files from anywhere: what torch would execute on loading is refused before it sees it.

torch.export's archives may hold pickled objects beside tensors. Readers of zip files disagree on
what an archive holds (names that occur twice, or differ in case alone), so torch is not given the
file: it is given a new archive of the entries that were looked at, and of nothing else.
"""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

import torch

_PLAIN = ("archive_format", "archive_version", "byteorder", "/.data/version", "serialization_id")


def checked_archive(path: Path) -> BytesIO:
    """Return the archive of a pt2 file that holds tensors and programs alone.

    Raises:
        ValueError: If it is no such file, is damaged, or holds what would run code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # Stored as they are, none is larger than the file, whatever a header says.
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            contents = {entry.filename: archive.read(entry) for entry in entries if stored}
        harmful = not stored or len({name.casefold() for name in contents}) != len(entries)
        harmful = harmful or _runs_code(contents)
    except Exception as error:  # What a damaged or a malicious archive raises is anybody's guess.
        raise ValueError(f"{path} is damaged, or holds more than tensors: {error}") from error
    if harmful:
        raise ValueError(f"{path} holds objects that would run code when they are loaded; refused")
    copy = BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    copy.seek(0)
    return copy


def _runs_code(contents: dict[str, bytes]) -> bool:
    """Tell whether entries hold pickles, compiled code, or what is not known.

    Raises:
        Exception: If an example of the inputs is more than tensors, or a description is damaged.
    """
    names = {name.casefold(): name for name in contents}
    configs = [n for n in names if n.endswith("_config.json") and "/data/" in n]
    inputs = [n for n in names if "/data/sample_inputs/" in n]
    for name in inputs:
        torch.load(BytesIO(contents[names[name]]), weights_only=True)
    pickled = any(
        entry.get("use_pickle") or "custom_obj" in str(entry.get("path_name"))
        for name in configs
        for entry in json.loads(contents[names[name]]).get("config", {}).values()
    )
    folders = ("/data/", "/models/", "/extra/")
    known = all(n.endswith(_PLAIN) or any(folder in n for folder in folders) for n in names)
    compiled = any("aotinductor" in n for n in names)
    return pickled or compiled or not (configs and inputs and known)
