"""The fastest form is found by measuring, and wrong forms never win."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import convnext
from convnext.deploy import optimize as module
from convnext.deploy.build import Runner, build
from convnext.deploy.forms import PLAIN, Form, available, candidates
from convnext.deploy.optimize import distance, interleaved, optimize, search

CPU = torch.device("cpu")
FORMS = [
    Form(engine=engine, pointwise=pointwise, layout=layout)
    for engine, pointwise, layout in (
        ("eager", "chunked", "channels_last"),
        ("eager", "conv", "channels_first"),
        ("eager", "linear", "channels_last"),
        ("onnxruntime", "linear", "channels_first"),
        ("openvino", "conv", "channels_first"),
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


@pytest.mark.parametrize("form", FORMS, ids=str)
@torch.no_grad()
def test_every_form_computes_the_same(form: Form) -> None:
    if not available(form.engine):
        pytest.skip(f"{form.engine} is not installed")
    model, images = _model(), _images()
    outputs = build(form, model, images)(images)
    assert outputs.dtype == torch.float32
    assert distance(outputs, model(images)) < 1e-5


@torch.no_grad()
def test_half_precision_is_close_and_comes_back_in_fp32() -> None:
    model, images = _model(), _images()
    outputs = build(Form(precision="bf16"), model, images)(images)
    assert outputs.dtype == torch.float32
    assert 0 < distance(outputs, model(images)) < 6e-2


def test_candidates_are_what_is_installed_and_fast_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext.deploy.forms.has_fast_bf16", lambda device: False)
    assert {form.precision for form in candidates(CPU, "auto")} == {"fp32"}
    monkeypatch.setattr("convnext.deploy.forms.has_fast_bf16", lambda device: True)
    assert {form.precision for form in candidates(CPU, "auto")} == {"fp32", "bf16"}
    assert {form.precision for form in candidates(CPU, "bf16")} == {"bf16"}
    monkeypatch.setattr("convnext.deploy.forms.available", lambda engine: engine == "eager")
    assert {form.engine for form in candidates(CPU, "fp32")} == {"eager"}
    forms = candidates(CPU, "fp32")
    assert len(set(forms)) == len(forms)


def _fakes(monkeypatch: pytest.MonkeyPatch, seconds: dict[Form, float]) -> None:
    """Let forms be built without compilers, wrong for those of `linear`, and take given seconds."""

    def fake_build(form: Form, model: nn.Module, example: Tensor, _: object = ()) -> Runner:
        if form.engine == "onnxruntime":
            raise RuntimeError("no such operator\nand pages of what the exporter has to say")

        def run(images: Tensor) -> Tensor:
            outputs: Tensor = model(images)
            return outputs + (form.pointwise == "linear" and form != PLAIN)

        run.form = form  # type: ignore[attr-defined]
        return run

    def fake_times(runs: list[Runner], example: Tensor, **options: object) -> list[float]:
        return [seconds[run.form] for run in runs]  # type: ignore[attr-defined]

    monkeypatch.setattr(module, "build", fake_build)
    monkeypatch.setattr(module, "interleaved", fake_times)


CHUNKED, CONV, LINEAR, FAILS = (
    Form(pointwise="chunked"),
    Form(pointwise="conv"),
    Form(pointwise="linear"),
    Form(engine="onnxruntime"),
)


def test_the_fastest_correct_form_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    _fakes(monkeypatch, {PLAIN: 1.0, CHUNKED: 0.8, CONV: 0.5, LINEAR: 0.1})
    lines: list[str] = []
    found = search(_model(), _images(), forms=[CHUNKED, LINEAR, FAILS, CONV], note=lines.append)
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
    found = search(_model(), _images(), forms=[CHUNKED, CONV], budget_s=-1.0, note=lines.append)
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
    # Another shape is another question, and a damaged file none.
    assert optimize(_model(), _images(side=32), cache=cache).measured
    cache.write_text('{"', encoding="utf-8")
    assert optimize(_model(), _images(), cache=cache).measured


@torch.no_grad()
def test_smaller_batches_and_other_sizes_are_served() -> None:
    model = _model()
    form = Form(pointwise="conv")
    shapes: list[tuple[int, ...]] = []

    def run(images: Tensor) -> Tensor:
        shapes.append(tuple(images.shape))
        outputs: Tensor = model(images)
        return outputs

    compiled = Form(engine="inductor", pointwise="conv")
    found = module.Optimized(model, _images(4), compiled, run, ratio=1.0)
    for images in (_images(4), _images(3), _images(1), _images(5), _images(2, 32)):
        assert distance(found(images), model(images)) < 1e-5
    assert set(shapes) == {(4, 3, 64, 64)}
    assert module.Optimized(model, _images(4), form, build(form, model, _images(4)), ratio=1.0)(
        _images(1, 32)
    ).shape == (1, 7)


def test_timings_are_taken_in_turns() -> None:
    order: list[int] = []

    def runner(i: int) -> Runner:
        return lambda images: order.append(i) or images  # type: ignore[func-returns-value]

    assert len(interleaved([runner(0), runner(1)], _images(), num=3)) == 2
    assert order == [0, 1] * 4


def test_int8_is_tried_first_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext.deploy.forms.available", lambda engine: True)
    monkeypatch.setattr("convnext.deploy.forms.find_spec", lambda name: True)
    first, *others = candidates(CPU, "int8")
    assert (first.engine, first.precision) == ("openvino", "int8")
    assert others == candidates(CPU, "auto")


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="int8 needs `calibration`"):
        optimize(_model(), _images(), precision="int8")
    with pytest.raises(ValueError, match="batch of images"):
        optimize(_model(), torch.zeros(3, 32, 32))
