"""Run exported files in their own runtime: ONNX Runtime, OpenVINO, or torch for pt2.

Inputs and outputs are arrays, which the task interprets. Only pt2 needs torch; the other formats
work where torch is not installed.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext.data.images import Mode, as_mode
from convnext.data.preprocessing import Pixels, to_array
from convnext.deploy.untrusted import (
    EXTRA,
    check_digest,
    checked_archive,
    checked_onnx,
    digest_of_file,
    one_line,
)
from convnext.names import install_extra
from convnext.weights.checkpoint import EXPORTED, Card

# Loggers of exporters; their reports do not concern the user's code.
LOGGERS = ("torch.onnx", "onnxscript", "torch.utils.cpp_extension", "nncf")
Inside = Literal["none", "normalize", "full"]
"""The part of the preprocessing in a file: none (takes normalized floats, N C H W), normalization
(takes pixels of the network's input size, uint8 N H W C), or all (takes one image of any size,
uint8 1 H W C)."""
MAX_INPUT = 2**28
"""Pixels that the input of a file may have, so that it fits into memory."""
Array = NDArray[Any]
Call = Callable[[Sequence[Array]], list[Array]]
"""Maps all inputs of a graph to all outputs."""


@dataclass(frozen=True)
class Exported:
    """An exported file, opened in its runtime."""

    path: Path
    metadata: Mapping[str, str]
    call: Call

    @property
    def source(self) -> str:
        """The path, for messages."""
        return str(self.path)

    @cached_property
    def graph(self) -> dict[str, Any]:
        """The file's description of its graph (`ExportSpec.facts`); empty if it has none.

        Always contains `inside`, `precision`, `output`, `batch` and `size` (both None for any).

        Raises:
            ValueError: If one of these is damaged.
        """
        return _graph(self.metadata.get("graph", "{}"), self.path)

    @cached_property
    def card(self) -> Card:
        """The card of the network.

        Raises:
            ValueError: If the metadata are damaged.
        """
        return Card.from_metadata(self.metadata, where=str(self.path))

    def run(self, images: Array) -> Array:
        """Run a graph that has one input and one output."""
        return self.call([images])[0]

    def run_in_batches(self, images: Array) -> Array:
        """Run any number of images; repeats the last one to fill a fixed batch size."""
        size = self.graph["batch"] or max(1, len(images))
        parts = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            missing = size - len(part)
            if missing and self.graph["batch"]:
                part = np.concatenate([part, np.repeat(part[-1:], missing, 0)])
            parts.append(self.run(np.ascontiguousarray(part)))
        return np.concatenate(parts)[: len(images)]


def open_exported(path: str | Path) -> Exported:
    """Open an exported file.

    Raises:
        ValueError: If the file does not exist, its runtime is not installed, it is damaged, it was
            not exported by this package, or it could execute code.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    openers = {"onnx": _open_onnx, "openvino": _open_openvino, "pt2": _open_pt2}
    metadata, call = openers[EXPORTED[path.suffix]](path)

    def run(given: Sequence[Array]) -> list[Array]:
        with one_line(path, "cannot be run"):
            return call(given)

    exported = Exported(path, metadata, run)
    if not {"inside", "precision"} <= exported.graph.keys():
        raise ValueError(f"{path} was not written by `convnext export`: it has no metadata")
    exported.card  # noqa: B018 - A damaged one is refused before it is used.
    return exported


def _texts(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, Mapping):
        raise TypeError("its metadata is not a JSON object")
    return {str(key): str(value) for key, value in metadata.items()}


def _graph(text: str, where: Path) -> dict[str, Any]:
    """Read `Exported.graph`.

    Raises:
        ValueError: If an entry that every file has is of another type.
    """
    try:
        graph = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(graph, dict) or not {"inside", "precision"} <= graph.keys():
        return {}
    batch, size, output = (graph.get(name) for name in ("batch", "size", "output"))
    is_size = isinstance(size, list) and len(size) == 2 and all(map(_is_count, size))
    numbers = [*(size if isinstance(size, list) and is_size else ()), batch]
    is_small = math.prod(n for n in numbers if n is not None and _is_count(n)) <= MAX_INPUT
    for name, is_right in (
        ("inside", graph["inside"] in get_args(Inside)),
        ("precision", isinstance(graph["precision"], str)),
        ("batch", batch is None or (_is_count(batch) and is_small)),
        ("size", size is None or (is_size and is_small)),
        ("output", isinstance(output, str)),
    ):
        if not is_right:
            value = repr(graph.get(name))[:40]
            raise ValueError(f"{where} has damaged metadata: {name} of the graph is {value}")
    return {"batch": None, "size": None, **graph}


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _open_onnx(path: Path) -> tuple[dict[str, str], Call]:
    (ort,) = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads()
    options.log_severity_level = 3
    metadata = checked_onnx(path)
    with one_line(path, "cannot be read"):
        session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        names = [entry.name for entry in session.get_inputs()]

    def call(given: Sequence[Array]) -> list[Array]:
        found: list[Array] = session.run(None, dict(zip(names, given, strict=True)))
        return found

    return metadata, call


def _open_openvino(path: Path) -> tuple[dict[str, str], Call]:
    (openvino,) = need("openvino")
    with one_line(path, "cannot be read"):
        model = openvino.Core().read_model(str(path))
        metadata = _texts(json.loads(model.get_rt_info(["convnext"]).astype(str)))
    # A file in fp16 stores its weights in fp16 and computes in fp32.
    precision = _graph(metadata.get("graph", "{}"), path).get("precision")
    weights = path.with_suffix(".bin")
    check_digest(path, metadata, digest_of_file(weights) if weights.is_file() else "none")
    with one_line(path, "cannot be read"):
        request = openvino_request(model, "bf16" if precision == "bf16" else "fp32")

    def call(given: Sequence[Array]) -> list[Array]:
        found = request.infer([np.ascontiguousarray(array) for array in given])
        # The request owns the memory of the result, so copy it before the next call.
        return [np.array(found[i]) for i in range(len(found))]

    return metadata, call


def _open_pt2(path: Path) -> tuple[dict[str, str], Call]:
    import torch
    import torchvision  # noqa: F401 - Detectors call its operators.

    archive, extra = checked_archive(path), {EXTRA: ""}
    with one_line(path, "cannot be read"):
        module = torch.export.load(archive, extra_files=extra).module()
        metadata = _texts(json.loads(extra[EXTRA] or "{}"))

    def call(given: Sequence[Array]) -> list[Array]:
        # The program has its own precision; ignore the caller's autocast.
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            found = module(*map(torch.from_numpy, given))
        return [out.numpy() for out in ((found,) if isinstance(found, torch.Tensor) else found)]

    return metadata, call


@dataclass(frozen=True, kw_only=True)
class NoNormalization:
    """The preprocessing of a checkpoint without normalization, which the file contains.

    With `whole`, the file also resizes.
    """

    normalizes: ClassVar[bool] = False
    inner: Any
    whole: bool

    @property
    def mode(self) -> Mode:
        """The image mode of the checkpoint's preprocessing."""
        return cast(Mode, self.inner.mode)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def pixels(self, image: Image.Image) -> Pixels:
        """Return uint8 (C, H, W)."""
        if self.whole:
            return to_array(as_mode(image, self.mode))
        return cast(Pixels, self.inner.pixels(image))

    def normalize(self, batch: Array) -> NDArray[np.float32]:
        """Return uint8 pixels (N, C, H, W) as fp32, 0 to 255."""
        return batch.astype(np.float32)


def outside(preprocessing: Any, inside: str) -> Any:
    """Return the part of a preprocessing that is left to do for a file that contains `inside`."""
    if inside == "none":
        return preprocessing
    return NoNormalization(inner=preprocessing, whole=inside == "full")


def num_threads() -> int:
    """Return torch's number of threads if torch is loaded; else 0, for the runtime's default."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() else 0


def openvino_request(model: Any, precision: str) -> Any:
    """Return a CPU inference request for an OpenVINO model, with torch's number of threads.

    Args:
        model: The OpenVINO model.
        precision: The precision of inference: `bf16`, `fp16`, or fp32 for all other values.
    """
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": num_threads(),
        "INFERENCE_PRECISION_HINT": {"bf16": "bf16", "fp16": "f16"}.get(precision, "f32"),
    }
    return import_openvino().Core().compile_model(model, "CPU", settings).create_infer_request()


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry.

    The converter is imported only if torch is loaded; running files does not need it.
    """
    with _no_telemetry():
        import openvino

        if "torch" in sys.modules:
            import openvino.tools.ovc
    return cast(ModuleType, openvino)


@contextmanager
def _no_telemetry() -> Iterator[None]:
    """Import runtimes without their telemetry, which reports every conversion to their vendors.

    OpenVINO and NNCF import a module for it; ONNX Runtime reads a variable when it is imported, and
    else also writes a number of this machine into the user's cache.
    """
    module, variable = "openvino_telemetry", "ORT_DISABLE_TELEMETRY"
    hides, sets = module not in sys.modules, variable not in os.environ
    if hides:
        sys.modules[module] = None  # type: ignore[assignment]  # Hides an installed module.
    if sets:
        os.environ[variable] = "1"
    try:
        yield
    finally:
        if hides:
            del sys.modules[module]
        if sets:
            del os.environ[variable]


def need(*modules: str) -> list[Any]:
    """Import modules of an optional dependency.

    Raises:
        ValueError: If one is not installed.
    """
    try:
        if "openvino" in modules:
            import_openvino()
        with _no_telemetry():
            if "nncf" in modules and importlib.util.find_spec("onnxruntime"):
                importlib.import_module("onnxruntime")  # NNCF would import it later.
            return [importlib.import_module(name) for name in modules]
    except ImportError as error:
        raise ValueError(
            f"this needs {error.name}, which is not installed: {install_extra('export')}"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hide warnings, and log messages of exporters below the level of errors."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
