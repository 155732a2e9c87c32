"""Pages that are generated when the documentation is built, so that they cannot fall behind.

A line `{{ commands }}` of a page is replaced by the command reference, taken from
`convnext VERB --help`, a line `{{ recipes }}` by tables of the bundled recipes, and a line
`{{ short_names }}` by a table of the settings with short names.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import convnext
from convnext.api.settings import SHORT
from convnext.cli import VERBS
from convnext.recipes.recipe import all_settings

# As wide as the code blocks of a page.
COLUMNS = 88
PAPER_SECTIONS = {
    "imagenet1k": "ImageNet-1K from scratch",
    "imagenet22k": "ImageNet-22K",
    "finetune": "Fine-tuning on ImageNet-1K",
    "ade20k": "ADE20K, segmentation",
    "coco": "COCO, detection and instance segmentation",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the generated parts of a page; MkDocs calls this for each page."""
    for generate in (commands, recipes, short_names):
        marker = f"{{{{ {generate.__name__} }}}}"
        if marker in markdown.splitlines():
            markdown = markdown.replace(marker, generate())
    return markdown


def commands() -> str:
    """Return the help of every verb of the command line as Markdown.

    Raises:
        RuntimeError: If a verb cannot print its help.
    """
    return "\n\n".join(f"## {verb}\n\n```text\n{_help(verb)}\n```" for verb in VERBS)


def short_names() -> str:
    """Return a Markdown table of the settings with short names: both names and the description."""
    known = all_settings()
    rows = [f"| `{short}` | `{full}` | {known[full].help} |" for short, full in SHORT.items()]
    return "\n".join(["| short | full | what it sets |", "|---|---|---|", *rows])


def _help(verb: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "convnext", verb, "--help"],
        env=os.environ | {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
    )
    if ran.returncode or not ran.stdout:
        raise RuntimeError(f"`convnext {verb} --help` failed: {ran.stderr.strip()}")
    return ran.stdout.rstrip()


def recipes() -> str:
    """Return the bundled recipes as Markdown tables, one for each kind.

    Raises:
        RuntimeError: If there are no recipe files, or one belongs to no kind.
    """
    files = sorted(Path(convnext.__file__).parent.glob("recipes/**/*.yaml"))
    if not files:
        raise RuntimeError("there are no recipe files in the package")
    sections: dict[str, list[str]] = {prefix: [] for prefix in PAPER_SECTIONS}
    for file in files:
        prefix = next((p for p in PAPER_SECTIONS if file.stem.startswith(p)), None)
        if prefix is None:
            raise RuntimeError(f"docs/hooks.py has no heading for the recipe {file.stem}")
        sections[prefix].append(_row(file, files))
    head = "| recipe | model | weights | pixels | batch | length | expected |\n" + "|---" * 7 + "|"
    return "\n\n".join(
        "\n".join([f"### {PAPER_SECTIONS[prefix]}", "", head, *rows])
        for prefix, rows in sections.items()
    )


def _row(file: Path, files: list[Path]) -> str:
    text = file.read_text(encoding="utf-8")
    expected = next(
        line.removeprefix("# Expected:").strip().rstrip(".")
        for line in text.splitlines()
        if line.startswith("# Expected:")
    )
    values = _values(file, files)
    schedule = values["schedule"]
    steps = schedule.get("steps", 0)
    length = f"{steps:,} steps" if steps else f"{schedule['epochs']} epochs"
    cells = (
        f"`{file.stem}`",
        f"`{values['model']}`",
        f"`{values['weights']}`",
        values["input"]["image_size"],
        f"{values['optim']['batch_size']:,}",
        length,
        expected,
    )
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _values(file: Path, files: list[Path]) -> dict[str, Any]:
    """Return the values of a recipe file over those of the file that its `base` names."""
    own: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    if "base" not in own:
        return own
    base = next(other for other in files if other.stem == own["base"])
    values = _values(base, files)
    for name, value in own.items():
        values[name] = values.get(name, {}) | value if isinstance(value, dict) else value
    return values
