"""The verbs as functions, and the types they return; imported lazily."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext.api.evaluation import evaluate as evaluate
    from convnext.api.evaluation import evaluate_robustness as evaluate_robustness
    from convnext.api.model import Model as Model
    from convnext.api.model import embed as embed
    from convnext.api.model import load as load
    from convnext.api.model import predict as predict
    from convnext.api.roadmap import RoadmapCosts as RoadmapCosts
    from convnext.api.roadmap import run_roadmap as run_roadmap
    from convnext.api.tools import average as average
    from convnext.api.tools import benchmark as benchmark
    from convnext.api.tools import check_data as check_data
    from convnext.api.tools import convert as convert
    from convnext.api.tools import convert_annotations as convert_annotations
    from convnext.api.tools import export as export
    from convnext.api.tools import find_models as find_models
    from convnext.api.tools import fix_annotations as fix_annotations
    from convnext.api.tools import write_shards as write_shards
    from convnext.api.training import RateSearch as RateSearch
    from convnext.api.training import Run as Run
    from convnext.api.training import StudyResult as StudyResult
    from convnext.api.training import compare as compare
    from convnext.api.training import find_lr as find_lr
    from convnext.api.training import learning_rates as learning_rates
    from convnext.api.training import train as train

HOMES = {
    "Model": "model",
    "RateSearch": "training",
    "RoadmapCosts": "roadmap",
    "Run": "training",
    "StudyResult": "training",
    "average": "tools",
    "benchmark": "tools",
    "check_data": "tools",
    "compare": "training",
    "convert": "tools",
    "convert_annotations": "tools",
    "embed": "model",
    "evaluate": "evaluation",
    "evaluate_robustness": "evaluation",
    "export": "tools",
    "find_lr": "training",
    "find_models": "tools",
    "fix_annotations": "tools",
    "learning_rates": "training",
    "load": "model",
    "predict": "model",
    "run_roadmap": "roadmap",
    "train": "training",
    "write_shards": "tools",
}
"""The module of each name."""

__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'convnext.api' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"convnext.api.{HOMES[name]}"), name)
    globals()[name] = value
    return value
