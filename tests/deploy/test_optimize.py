"""The fastest backend is found by measuring, and incorrect backends are never chosen."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convnext
from convnext.deploy import optimize as module
from convnext.deploy.backends import PLAIN, Backend, Runner, available, build, candidates
from convnext.deploy.optimize import distance, interleaved, known_backend, optimize, search
from convnext.hardware.devices import autocast

CPU = torch.device("cpu")
BACKENDS = [
    Backend(engine=engine, pointwise=pointwise, layout=layout)
    for engine, pointwise, layout in (
        ("eager", "chunked", "channels_last"),
        ("eager", "conv", "channels_first"),
        ("eager", "linear", "channels_last"),
    )
]


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = convnext.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=7
    )
    for p in model.parameters():
        if p.dim() == 1:
            p.data.normal_(1, 0.3)
    return model.eval()


def _images(num: int = 2, side: int = 64) -> Tensor:
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@torch.no_grad()
def test_every_form_computes_the_same(backend: Backend) -> None:
    if not available(backend.engine):
        pytest.skip(f"{backend.engine} is not installed")
    model, images = _model(), _images()
    outputs = build(backend, model, images)(images)
    assert outputs.dtype == torch.float32
    assert distance(outputs, model(images)) < 1e-5


@torch.no_grad()
def test_half_precision_is_close_and_comes_back_in_fp32() -> None:
    model, images = _model(), _images()
    outputs = build(Backend(precision="bf16"), model, images)(images)
    assert outputs.dtype == torch.float32
    assert 0 < distance(outputs, model(images)) < 6e-2


def test_candidates_are_what_is_installed_and_fast_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext.deploy.backends.has_fast_bf16", lambda device: False)
    assert {backend.precision for backend in candidates(CPU, "auto")} == {"fp32"}
    monkeypatch.setattr("convnext.deploy.backends.has_fast_bf16", lambda device: True)
    assert {backend.precision for backend in candidates(CPU, "auto")} == {"fp32", "bf16"}
    assert {backend.precision for backend in candidates(CPU, "bf16")} == {"bf16"}
    monkeypatch.setattr("convnext.deploy.backends.available", lambda engine: engine == "eager")
    assert {backend.engine for backend in candidates(CPU, "fp32")} == {"eager"}
    backends = candidates(CPU, "fp32")
    assert len(set(backends)) == len(backends)


def _fakes(monkeypatch: pytest.MonkeyPatch, seconds: dict[Backend, float]) -> None:
    """Fake the builds: `linear` ones compute wrong outputs, each takes the given seconds."""

    def fake_build(backend: Backend, model: nn.Module, example: Tensor, _: object = ()) -> Runner:
        if backend.engine == "onnxruntime":
            raise RuntimeError("no such operator\nand pages of what the exporter has to say")

        def run(images: Tensor) -> Tensor:
            outputs: Tensor = model(images)
            return outputs + (backend.pointwise == "linear" and backend != PLAIN)

        run.form = backend  # type: ignore[attr-defined]
        return run

    def fake_times(runs: list[Runner], example: Tensor, **options: object) -> list[float]:
        return [seconds[run.form] for run in runs]  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "build", fake_build)
    monkeypatch.setattr(module, "interleaved", fake_times)


CHUNKED, CONV, LINEAR, FAILS = (
    Backend(pointwise="chunked"),
    Backend(pointwise="conv"),
    Backend(pointwise="linear"),
    Backend(engine="onnxruntime"),
)


def test_the_fastest_correct_form_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    _fakes(monkeypatch, {PLAIN: 1.0, CHUNKED: 0.8, CONV: 0.5, LINEAR: 0.1})
    lines: list[str] = []
    found = search(_model(), _images(), backends=[CHUNKED, LINEAR, FAILS, CONV], note=lines.append)
    assert found.form == CONV
    assert found.ratio == pytest.approx(2.0)
    failures = {m.form: m.failure for m in found.measured if m.failure}
    assert set(failures) == {LINEAR, FAILS}
    assert "differ" in failures[LINEAR]
    assert failures[FAILS] == "no such operator"
    assert any("2.00 times as fast" in line for line in lines)


def test_a_search_ends_with_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    _fakes(monkeypatch, {PLAIN: 1.0, CHUNKED: 0.8, CONV: 0.5})
    lines: list[str] = []
    found = search(_model(), _images(), backends=[CHUNKED, CONV], budget_s=-1.0, note=lines.append)
    assert found.form == PLAIN
    assert "not tried" in lines[-1]


def test_a_verdict_is_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fakes(monkeypatch, {PLAIN: 1.0, CHUNKED: 0.8, CONV: 0.5})
    monkeypatch.setattr(module, "candidates", lambda device, precision: [CHUNKED, CONV])
    cache = tmp_path / "forms.json"
    assert optimize(_model(), _images(), cache=cache).measured
    lines: list[str] = []
    again = optimize(_model(), _images(), cache=cache, note=lines.append)
    assert (again.form, again.measured, again.ratio) == (CONV, (), 2.0)
    assert "found before" in lines[0]
    # Another shape is searched for separately, and a damaged file is ignored.
    assert optimize(_model(), _images(side=32), cache=cache).measured
    cache.write_text('{"', encoding="utf-8")
    assert optimize(_model(), _images(), cache=cache).measured


@torch.no_grad()
def test_smaller_batches_and_other_sizes_are_served() -> None:
    model = _model()
    backend = Backend(pointwise="conv")
    shapes: list[tuple[int, ...]] = []

    def run(images: Tensor) -> Tensor:
        shapes.append(tuple(images.shape))
        outputs: Tensor = model(images)
        return outputs

    compiled = Backend(engine="inductor", pointwise="conv")
    found = module.Optimized(model, _images(4), compiled, run, ratio=1.0)
    for images in (_images(4), _images(3), _images(1), _images(5), _images(2, 32)):
        assert distance(found(images), model(images)) < 1e-5
    assert set(shapes) == {(4, 3, 64, 64)}
    assert module.Optimized(
        model, _images(4), backend, build(backend, model, _images(4)), ratio=1.0
    )(_images(1, 32)).shape == (1, 7)


def test_timings_are_taken_in_turns() -> None:
    order: list[int] = []

    def runner(i: int) -> Runner:
        return lambda images: order.append(i) or images  # type: ignore[func-returns-value]

    assert len(interleaved([runner(0), runner(1)], _images(), num=3)) == 2
    assert order == [0, 1] * 4


def test_int8_is_tried_first_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext.deploy.backends.available", lambda engine: True)
    monkeypatch.setattr("convnext.deploy.backends.find_spec", lambda name: True)
    first, *others = candidates(CPU, "int8")
    assert (first.engine, first.precision) == ("openvino", "int8")
    assert others == candidates(CPU, "auto")


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="int8 needs `calibration`"):
        optimize(_model(), _images(), precision="int8")
    with pytest.raises(ValueError, match="batch of normalized float images"):
        optimize(_model(), torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match="must be one of auto, fp32, bf16, fp16"):
        optimize(_model(), _images(), precision="int4")
    detector = convnext.create_model("mask_rcnn_convnext_atto", channels=8)
    with pytest.raises(ValueError, match="detectors do not run in int8"):
        optimize(detector, _images(), precision="int8", calibration=[_images()])


@pytest.mark.parametrize("backend", BACKENDS, ids=str)
@torch.inference_mode()
def test_forms_are_built_where_predict_asks_for_them(backend: Backend) -> None:
    """In inference mode and, for networks trained in bf16, under autocast."""
    if not available(backend.engine):
        pytest.skip(f"{backend.engine} is not installed")
    model, images = _model(), _images().contiguous(memory_format=torch.channels_last)
    expected = model(images)
    with autocast(CPU, "bf16"):
        assert distance(build(backend, model, images)(images), expected) < 1e-5


def test_runtimes_are_imported_without_their_telemetry(tmp_path: Path) -> None:
    for name in ("openvino", "nncf", "onnxruntime"):
        pytest.importorskip(name)
    code = (
        "import os, sys; from convnext.deploy.runtimes import import_openvino, need\n"
        "import_openvino(); need('nncf')\n"
        "from openvino.tools.ovc import telemetry_utils\n"
        "assert telemetry_utils.tm.__name__.endswith('telemetry_stub')\n"
        "from nncf.telemetry.wrapper import NNCFTelemetryStub, telemetry\n"
        "assert isinstance(telemetry, NNCFTelemetryStub)\n"
        "assert 'openvino_telemetry' not in sys.modules and 'onnxruntime' in sys.modules\n"
        "assert 'ORT_DISABLE_TELEMETRY' not in os.environ\n"
    )
    own = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=os.environ | own, check=True)
    assert list(tmp_path.iterdir()) == []  # ONNX Runtime would keep a number of this machine.


def test_compiling_freezes_weights_and_has_no_ninth_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[bool, int]] = []

    def compile_nothing(self: nn.Module, **options: object) -> None:
        self.register_forward_hook(
            lambda *_: seen.append(
                (torch._inductor.config.freezing, torch._dynamo.config.recompile_limit)
            )
        )

    monkeypatch.setattr(nn.Module, "compile", compile_nothing)
    build(Backend(engine="inductor", pointwise="conv"), _model(), _images())(_images())
    assert seen[0][0]
    assert seen[0][1] > 100
    assert not torch._inductor.config.freezing


def test_a_form_found_with_other_weights_is_compared_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _fakes(monkeypatch, {PLAIN: 1.0, CONV: 0.5, LINEAR: 0.1})
    monkeypatch.setattr(module, "candidates", lambda device, precision: [CONV])
    cache = tmp_path / "forms.json"
    key = module.cache_key(_model(), _images(), "auto")
    wrong = {"form": asdict(LINEAR), "ratio": 10.0, "build_seconds": 0.0}
    cache.write_text(json.dumps({key: wrong}), encoding="utf-8")
    lines: list[str] = []
    found = optimize(_model(), _images(), cache=cache, note=lines.append)
    assert found.form == CONV
    assert "but fails now: outputs differ" in lines[0]


@pytest.mark.parametrize(
    "value",
    ["text", [], {"form": {}}, {"form": {"engine": "eager"}, "ratio": 0, "build_seconds": 1},
     {"form": {"engine": "eager"}, "ratio": float("nan"), "build_seconds": 1}],
    ids=str,
)  # fmt: skip
def test_damaged_verdicts_are_forgotten(value: object, tmp_path: Path) -> None:
    cache = tmp_path / "forms.json"
    cache.write_text(json.dumps({"key": value}), encoding="utf-8")
    assert known_backend(cache, "key") is None


def test_a_search_that_tried_nothing_is_not_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _fakes(monkeypatch, {PLAIN: 1.0, CONV: 0.5})
    cache = tmp_path / "forms.json"
    assert optimize(_model(), _images(), cache=cache, budget_s=-1.0).form == PLAIN
    assert not cache.exists()


def test_slow_batches_are_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMED_S", 0.0)
    calls: list[int] = []
    interleaved([lambda images: calls.append(0) or images], _images())  # type: ignore[func-returns-value]
    assert len(calls) == 2


def test_the_baseline_is_what_would_run_otherwise() -> None:
    found = search(_model(), _images(), precision="bf16", backends=[])
    assert (found.form.folded, found.form.precision) == (False, "bf16")


@torch.no_grad()
def test_empty_and_nearly_empty_batches_are_not_filled_up() -> None:
    model = _model()
    calls: list[int] = []

    def run(images: Tensor) -> Tensor:
        calls.append(len(images))
        outputs: Tensor = model(images)
        return outputs

    compiled = Backend(engine="inductor", pointwise="conv")
    found = module.Optimized(model, _images(4), compiled, run, ratio=1.5)
    assert found(_images(0)).shape == (0, 7)
    for num in (1, 3, 9):
        assert distance(found(_images(num)), model(_images(num))) < 1e-5
    assert calls == [4, 4, 4]  # Three filled up, two parts of nine; the rest in eager mode.


def test_eager_forms_let_go_of_the_original() -> None:
    model = _model()
    held = weakref.ref(model)
    found = module.Optimized(model, _images(), CONV, build(CONV, model, _images()), ratio=1.0)
    del model
    gc.collect()
    assert held() is None
    assert found(_images()).shape == (2, 7)
