"""The paper's robustness results: its Table 8, copied to paper.csv.

In percent: top-1 of `clean`, `imagenet-a`, `imagenet-r` and `imagenet-sketch`, mean corruption
error of `imagenet-c` relative to AlexNet, and mean error of `imagenet-c-bar`. Rows of other
families are left out. `model` and `tag` are those of `weights.published`.
"""

from __future__ import annotations

import csv
from importlib import resources

from convnext.weights.published import find_published

SOURCE = "A ConvNet for the 2020s, Table 8"


def paper_figures(source: str) -> dict[str, float] | None:
    """Return the paper's results by benchmark for published weights, None for any others.

    Args:
        source: The source of the network. Files and runs have no results, even if the paper has
            some for their network.
    """
    published = find_published(source)
    if published is None:
        return None
    text = (resources.files(__package__) / "paper.csv").read_text(encoding="utf-8")
    for row in csv.DictReader(text.splitlines()):
        if (row["model"], row["tag"]) == (published.model, published.tag):
            return {name: float(row[name]) for name in row if name not in ("model", "tag", "size")}
    return None
