"""ConvNeXt and every step from ResNet to it: train, evaluate, export and compare networks.

Public names are imported on first use, which keeps `import convnext` fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext.api import Model as Model
    from convnext.api import RateSearch as RateSearch
    from convnext.api import RoadmapCosts as RoadmapCosts
    from convnext.api import Run as Run
    from convnext.api import StudyResult as StudyResult
    from convnext.api import average as average
    from convnext.api import benchmark as benchmark
    from convnext.api import check_data as check_data
    from convnext.api import compare as compare
    from convnext.api import convert as convert
    from convnext.api import embed as embed
    from convnext.api import evaluate as evaluate
    from convnext.api import export as export
    from convnext.api import find_lr as find_lr
    from convnext.api import find_models as find_models
    from convnext.api import load as load
    from convnext.api import predict as predict
    from convnext.api import run_roadmap as run_roadmap
    from convnext.api import train as train
    from convnext.data.preprocessing import DensePreprocessing as DensePreprocessing
    from convnext.data.preprocessing import Preprocessing as Preprocessing
    from convnext.deploy.fold import fold as fold
    from convnext.deploy.optimize import optimize as optimize
    from convnext.models.blocks import Row as Row
    from convnext.models.blocks import block_rows as block_rows
    from convnext.models.config import FAMILY as FAMILY
    from convnext.models.config import NetworkConfig as NetworkConfig
    from convnext.models.flops import Cost as Cost
    from convnext.models.flops import cost as cost
    from convnext.models.network import Network as Network
    from convnext.models.roadmap import Rung as Rung
    from convnext.models.roadmap import roadmap as roadmap
    from convnext.recipes.recipe import Recipe as Recipe
    from convnext.recipes.recipe import read_recipe as read_recipe
    from convnext.results import Classification as Classification
    from convnext.results import Detections as Detections
    from convnext.results import Embeddings as Embeddings
    from convnext.results import Exported as Exported
    from convnext.results import Prediction as Prediction
    from convnext.results import Predictions as Predictions
    from convnext.results import Scores as Scores
    from convnext.results import Segmentation as Segmentation
    from convnext.tasks.factory import create_model as create_model
    from convnext.tasks.factory import list_models as list_models
    from convnext.training.loop import Outcome as Outcome
    from convnext.training.trackers import Callback as Callback
    from convnext.training.trackers import EvaluationEnd as EvaluationEnd
    from convnext.training.trackers import StepEnd as StepEnd
    from convnext.weights import LoadReport as LoadReport
    from convnext.weights import export_weights as export_weights
    from convnext.weights import load_weights as load_weights

__version__ = "0.1.0"

_HOMES = {
    "Model": "api",
    "RateSearch": "api",
    "RoadmapCosts": "api",
    "Run": "api",
    "StudyResult": "api",
    "average": "api",
    "benchmark": "api",
    "check_data": "api",
    "compare": "api",
    "convert": "api",
    "embed": "api",
    "evaluate": "api",
    "export": "api",
    "find_lr": "api",
    "find_models": "api",
    "load": "api",
    "predict": "api",
    "run_roadmap": "api",
    "train": "api",
    "DensePreprocessing": "data.preprocessing",
    "Preprocessing": "data.preprocessing",
    "Row": "models.blocks",
    "block_rows": "models.blocks",
    "NetworkConfig": "models.config",
    "Cost": "models.flops",
    "cost": "models.flops",
    "fold": "deploy.fold",
    "optimize": "deploy.optimize",
    "FAMILY": "models.config",
    "create_model": "tasks.factory",
    "list_models": "tasks.factory",
    "Network": "models.network",
    "Recipe": "recipes.recipe",
    "read_recipe": "recipes.recipe",
    "Classification": "results",
    "Detections": "results",
    "Segmentation": "results",
    "Scores": "results",
    "Embeddings": "results",
    "Exported": "results",
    "Prediction": "results",
    "Predictions": "results",
    "Rung": "models.roadmap",
    "roadmap": "models.roadmap",
    "Callback": "training.trackers",
    "EvaluationEnd": "training.trackers",
    "StepEnd": "training.trackers",
    "Outcome": "training.loop",
    "LoadReport": "weights",
    "export_weights": "weights",
    "load_weights": "weights",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'convnext' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"convnext.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
