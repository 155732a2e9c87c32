"""A made-up study of the mini roadmap, in the format of real studies."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from convnext.models.roadmap import roadmap
from convnext.recipes.recipe import Recipe
from convnext.studies.compare import FINISHED, WAITING, Result, write_results
from convnext.studies.plan import Study
from convnext.studies.roadmap import roadmap_entries

CONDITIONS = "360 images, split: val, in fp32, eager"


def made_up(seeds: Sequence[int] = (0, 1, 2), missing: Sequence[str] = ()) -> list[Result]:
    """Return results of all steps: the paper's accuracies, lowered and with noise."""
    results = []
    for i, entry in enumerate(roadmap_entries("mini", roadmap("mini"))):
        for seed in seeds:
            noise = random.Random(f"{entry.own_name} {seed}").gauss(0, 0.4)
            done = entry.name not in missing
            assert entry.paper.top1 is not None
            results.append(
                Result(
                    study="roadmap",
                    regime="mini",
                    entry=entry.name,
                    what=entry.what,
                    group=entry.group,
                    kept=entry.kept,
                    departs_from=entry.departs_from,
                    runs_as=entry.own_name,
                    seed=seed,
                    state=FINISHED if done else WAITING,
                    score=entry.paper.top1 - 20 + noise if done else None,
                    epochs=8.0 if done else None,
                    seconds=60.0 if done else None,
                    conditions=CONDITIONS if done else "",
                    image_size=32,
                    params=10**6 + i * 1000,
                    macs=10**7 + i * 10**5,
                    train_images_per_s=700.0 + i,
                    infer_images_per_s=2000.0 + i,
                    train_memory=10**8,
                    infer_memory=10**7,
                    speed_batch=64,
                    paper_name=entry.paper.name,
                    paper_top1=entry.paper.top1,
                    paper_top1_std=entry.paper.top1_std,
                )
            )
    return results


def write_study(root: Path, results: Sequence[Result], title: str = "The road mini") -> Study:
    """Write the folder of a study: plan, table, and curves of the runs that finished."""
    plan = Study(
        kind="roadmap",
        title=title,
        regime="mini",
        entries=roadmap_entries("mini", roadmap("mini")),
        seeds=sorted({result.seed for result in results}) or [0],
        recipe=Recipe(),
        command="convnext roadmap --regime mini --data <b>",
    )
    root.mkdir(parents=True, exist_ok=True)
    plan.write(root)
    write_results(root, results, {"environment": {"cpu": "made up"}, "seconds": 1.0})
    by_name = {entry.name: entry for entry in plan.entries}
    for result in results:
        if result.score is None:
            continue
        folder = plan.run_folder(root, by_name[result.entry], result.seed)
        folder.mkdir(parents=True, exist_ok=True)
        rows = [
            {
                "kind": "val",
                "step": step,
                "epoch": step / 10,
                "images": 100 * step,
                "seconds": step,
                "weights": "model",
                "top1": result.score - 30 / step,
            }
            for step in (10, 20, 40)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines)
        if result.seed == 0:
            (folder / "report.html").write_text("<!doctype html>")
    return plan
