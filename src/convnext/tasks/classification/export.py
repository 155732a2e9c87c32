"""Export of a classifier: its graph, the verification, and the file as a network."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from convnext.data.contents import held_names
from convnext.data.tensors import to_batch
from convnext.deploy.export import ExportRequest, ExportSpec
from convnext.deploy.formats import ExportSettings
from convnext.deploy.graphs import (
    MAX_SIDE,
    MIN_SIDE,
    image_blueprint,
    image_graph,
    run_images,
)
from convnext.deploy.quantize import image_calibration
from convnext.deploy.runtimes import Exported, outside
from convnext.deploy.verify import Proof, ScoredComparison
from convnext.weights.checkpoint import Card, data_of


def export_spec(request: ExportRequest) -> ExportSpec:
    """Return the export spec of a classifier; see `Task.export_spec`."""
    from convnext.tasks.classification.evaluate import open_split, relabel

    model, card, source = request.model, request.card, request.source
    settings = request.settings
    check_settings(settings)
    if isinstance(settings.size, tuple):
        # Export, calibration and verification all use this size.
        resized = replace(card.preprocessing, image_size=settings.size[0])
        card = replace(card, preprocessing=resized)
    pre = card.preprocessing
    side = int(pre.image_size)
    whole = settings.inside == "full"

    def blueprint() -> Any:
        own = LabelProbabilities() if card.thresholds else Probabilities()
        finish = own if settings.answers else nn.Identity()
        return image_blueprint(
            image_graph(model, pre, settings, finish=finish),
            pre,
            settings,
            size=(side, side),
            open_sides=(MIN_SIDE, MAX_SIDE) if whole else None,
        )

    def split(name: str) -> Any:
        opened_split = open_split(data_of(source, card), name, card, None, held=held_names(source))
        return relabel(opened_split.images, opened_split.classes, card.classes)

    return ExportSpec(
        source=source,
        card=card,
        settings=settings,
        facts={
            "batch": settings.fixed_batch,
            "size": None if whole else [side, side],
            "output": "probabilities" if settings.answers else "logits",
            "activation": "sigmoid" if card.thresholds else "softmax",
        },
        blueprint=blueprint,
        images=request.proofs(split, lambda s, i: s.target(i) if card.thresholds else s.labels[i]),
        compare=lambda exported: (LabelComparison if card.thresholds else ClassifierComparison)(
            model, card, exported
        ),
        calibration=image_calibration(model, pre, settings, num_judged=8),
    )


def check_settings(settings: ExportSettings) -> None:
    """Check that a classifier supports the settings.

    Raises:
        ValueError: If it does not; the message names the option and an alternative.
    """
    if settings.masks is not None:
        raise ValueError("--masks is only for detectors")
    if isinstance(settings.size, tuple) and settings.size[0] != settings.size[1]:
        raise ValueError(
            f"a classifier's images are square, not {settings.size[0]} x {settings.size[1]}: use "
            f"--size {min(settings.size)}"
        )
    if settings.size == "any":
        raise ValueError(
            "--size any is only for segmentors: a classifier's file takes images of one size"
        )


class Probabilities(nn.Module):
    """Maps logits (N, K) to probabilities in fp32."""

    def forward(self, logits: Tensor) -> Tensor:
        return F.softmax(logits.float(), 1)


class LabelProbabilities(nn.Module):
    """Maps logits (N, K) to the probability of each label in fp32."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits.float().sigmoid()


class ExportedNetwork(nn.Module):
    """An exported classifier as a network: maps images (N, C, H, W) in fp32 to logits (N, K).

    Files that normalize take pixels from 0 to 255, others normalized images. Probabilities are
    returned as logarithms, those of several labels as logits.
    """

    def __init__(self, exported: Exported) -> None:
        super().__init__()
        self.exported = exported

    def forward(self, images: Tensor) -> Tensor:
        graph = self.exported.graph
        if graph["size"] is not None and list(images.shape[2:]) != graph["size"]:
            size, own = ("{} x {}".format(*s) for s in (graph["size"], images.shape[2:]))
            raise ValueError(f"the file takes images of {size} pixels, not {own}")
        out = run_images(self.exported, images)
        if graph["output"] != "probabilities":
            return out
        is_multi = bool(self.exported.card.thresholds)
        return out.logit(eps=1e-7) if is_multi else out.clamp_min(1e-38).log()


def open_network(exported: Exported) -> tuple[ExportedNetwork, Card]:
    """Return a file as a network, and a card with the preprocessing outside of the file."""
    card = exported.card
    left = outside(card.preprocessing, exported.graph["inside"])
    return ExportedNetwork(exported).eval(), replace(card, preprocessing=left)


@dataclass(frozen=True, kw_only=True)
class ClassifierProof(Proof):
    """Proof that also compares probabilities."""

    def answer_rows(self) -> list[tuple[str, str]]:
        """Return the comparison of the outputs."""
        name = "max probability difference"
        return [(name, f"{self.max_difference:.2g}"), *super().answer_rows()]


class ClassifierComparison(ScoredComparison[Tensor]):
    """Compares the probabilities (K,) of a network and of its file."""

    proof = ClassifierProof
    metric = "top-1"

    def __init__(self, model: nn.Module, card: Card, exported: Exported) -> None:
        super().__init__()
        self.model, self.preprocessing = model, card.preprocessing
        self.exported, own = open_network(exported)
        self.left = own.preprocessing

    def network(self, image: Image.Image) -> Tensor:
        return _probabilities(self.model, self.preprocessing, image)

    def file(self, image: Image.Image) -> Tensor:
        return _probabilities(self.exported, self.left, image)

    def add(self, image: Image.Image, network: Tensor, file: Tensor, truth: Any) -> None:
        self.differences.append(float((network - file).abs().max()))
        answers = (int(network.argmax()), int(file.argmax()))
        self.same.append(float(answers[0] == answers[1]))
        if truth is not None:
            self.scored.append((answers[0] == truth, answers[1] == truth))

    def score(self, scored: Sequence[bool | float]) -> float:
        return 100 * statistics.fmean(scored)


class LabelComparison(ClassifierComparison):
    """Compares the probabilities (K,) of several labels, and the labels that reach thresholds."""

    metric = "F1 of the images"

    def __init__(self, model: nn.Module, card: Card, exported: Exported) -> None:
        super().__init__(model, card, exported)
        self.thresholds = torch.tensor(card.thresholds, dtype=torch.float64)

    def network(self, image: Image.Image) -> Tensor:
        return _logits(self.model, self.preprocessing, image).sigmoid()

    def file(self, image: Image.Image) -> Tensor:
        return _logits(self.exported, self.left, image).sigmoid()

    def add(self, image: Image.Image, network: Tensor, file: Tensor, truth: Any) -> None:
        self.differences.append(float((network - file).abs().max()))
        own, other = network >= self.thresholds, file >= self.thresholds
        self.same.append(float(torch.equal(own, other)))
        if truth is not None:
            right = torch.as_tensor(truth) > 0.5
            self.scored.append((_f1(own, right), _f1(other, right)))


def _f1(predicted: Tensor, truth: Tensor) -> float:
    """Return the F1 of the labels of an image; 1 if it has none and none is predicted."""
    total = int(predicted.sum() + truth.sum())
    return 2 * int((predicted & truth).sum()) / total if total else 1.0


@torch.inference_mode()
def _logits(model: nn.Module, preprocessing: Any, image: Image.Image) -> Tensor:
    logits: Tensor = model(to_batch(preprocessing, image))
    return logits[0]


def _probabilities(model: nn.Module, preprocessing: Any, image: Image.Image) -> Tensor:
    return _logits(model, preprocessing, image)[None].softmax(1)[0]
