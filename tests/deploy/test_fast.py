"""A network changes its backend only if the remaining work is worth it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import convnext
from convnext.deploy import fast as module
from convnext.deploy.backends import PLAIN, Backend
from convnext.deploy.fast import Fast, Speedup, choose, seconds_left
from convnext.deploy.layers import ChunkedBlock
from convnext.deploy.optimize import Known, NetworkTuner, Optimized, distance
from convnext.hardware.devices import autocast

CPU = torch.device("cpu")


def _model() -> nn.Module:
    torch.manual_seed(0)
    return convnext.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=7
    ).eval()


def _images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("left", "gain", "is_known", "can_search", "expected"),
    [
        (None, 0, False, True, "wait"),
        (5, 0, False, True, "stay"),
        (5, 4, True, True, "stay"),
        (60, 0, False, True, "fold"),
        (60, 20, True, True, "known"),
        (60, 5, True, True, "fold"),
        (10_000, 0, False, True, "search"),
        (10_000, 0, False, False, "fold"),
    ],
)
def test_what_is_done_follows_from_the_work_ahead(
    left: float | None, gain: float, is_known: bool, can_search: bool, expected: str
) -> None:
    found = choose(left, gain=gain, build_seconds=10, is_known=is_known, can_search=can_search)
    assert found == expected


def test_the_work_ahead_is_known_after_the_first_images() -> None:
    assert seconds_left(0.0, 0, 100) is None
    assert seconds_left(3.0, 0, 100) is None
    assert seconds_left(3.0, 25, 100) == pytest.approx(9.0)


@pytest.mark.parametrize("work", ["nothing", "minutes", "hours", "refused"])
@torch.inference_mode()
def test_a_job_of_minutes_is_folded_and_one_of_hours_searched(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"nothing": 1.0, "minutes": 100.0, "hours": 10_000.0, "refused": 10_000.0}[work]
    monkeypatch.setattr(module, "seconds_left", lambda *_: seconds)
    monkeypatch.setattr(module, "known_backend", lambda *_: None)
    best = Backend(pointwise="conv")

    def find(tuner: NetworkTuner, example: Tensor, **options: object) -> Optimized:
        model = tuner.model
        return Optimized(model, example, best, lambda images: model(images), ratio=1.0)

    monkeypatch.setattr(NetworkTuner, "find", find)
    model, images = _model(), _images()
    expected = model(images)
    lines: list[str] = []
    network = Fast(
        model,
        device=CPU,
        precision="fp32",
        num_images=100,
        backend="eager" if work == "refused" else "fastest",
        keep=False,
        note=lines.append,
    ).eval()
    assert distance(network(images), expected) < 1e-5
    if work in ("nothing", "refused"):
        assert network.form is None
        assert torch.equal(network(images), expected)
        backend = network.conditions(4, "val").backend
        assert backend == (module.TOO_FEW if work == "nothing" else "eager")
    elif work == "minutes":
        assert network.form is not None
        assert any(isinstance(m, ChunkedBlock) for m in network.modules())
    else:
        assert network.form == best
        assert "--no-fast" in lines[0]


@torch.inference_mode()
def test_a_folded_job_does_not_depend_on_the_machines_speed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "seconds_left", lambda *_: 1e6)
    outputs = []
    for num_images in (4, 10**6):
        network = Fast(
            *(_model(),),
            device=CPU,
            precision="fp32",
            num_images=num_images,
            backend="folded",
            keep=False,
        ).eval()
        count = network.watch(lambda _: None)
        for _ in range(2):
            outputs.append(network(_images()))
            count(2)
        conditions = network.conditions(4, "val")
        assert str(conditions) == "4 images, split: val, in fp32, folded"
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    assert distance(outputs[0], _model()(_images())) < 1e-5


def test_images_are_counted_on_their_way_to_the_bar() -> None:
    told: list[int] = []
    network = Fast(_model(), device=CPU, precision="fp32", num_images=10, keep=False)
    count = network.watch(told.append)
    count(3)
    count(4)
    assert told == [3, 4]
    assert network._done == 7


def _fast(model: nn.Module, lines: list[str], precision: str = "fp32") -> Fast:
    network = Fast(
        model, device=CPU, precision=precision, num_images=100, keep=False, note=lines.append
    )
    return network.eval()


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@torch.inference_mode()
def test_a_folded_network_goes_on_in_the_precision_of_the_job(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "seconds_left", lambda *_: 100.0)
    monkeypatch.setattr(module, "known_backend", lambda *_: None)
    model, images = _model(), _images()
    expected = model(images)
    network = _fast(model, [], precision)
    with autocast(CPU, precision):
        found = network(images)
    assert network.form is not None
    assert distance(found.float(), expected) < (3e-2 if precision == "bf16" else 1e-5)


@torch.inference_mode()
def test_a_known_form_that_is_wrong_now_is_no_reason_to_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "seconds_left", lambda *_: 100.0)
    wrong = Backend(engine="onnxruntime", pointwise="dense")  # type: ignore[arg-type]
    monkeypatch.setattr(module, "known_backend", lambda *_: Known(wrong, 3.0, 1.0))
    monkeypatch.setattr(NetworkTuner, "find", lambda *_, **__: pytest.fail("a search"))
    model, images, lines = _model(), _images(), list[str]()
    expected = model(images)
    network = _fast(model, lines)
    assert distance(network(images), expected) < 1e-5
    assert network.form == Backend(pointwise="chunked")
    assert "but fails now" in lines[0]


@torch.inference_mode()
def test_a_network_that_is_fastest_as_trained_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "seconds_left", lambda *_: 100.0)
    monkeypatch.setattr(module, "known_backend", lambda *_: Known(PLAIN, 1.0, 0.0))
    model, images = _model(), _images()
    network = _fast(model, [])
    assert torch.equal(network(images), model(images))
    assert network.form is None
    assert not any(isinstance(m, ChunkedBlock) for m in network.modules())


@torch.inference_mode()
def test_images_of_changing_sizes_are_no_job_for_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([None, 10_000.0])
    monkeypatch.setattr(module, "seconds_left", lambda *_: next(left))
    monkeypatch.setattr(NetworkTuner, "find", lambda *_, **__: pytest.fail("a search"))
    network = _fast(_model(), [])
    for images in (_images(), _images()[..., :32]):
        network(images)
    assert network.form == Backend(pointwise="chunked")


@torch.inference_mode()
def test_a_search_is_on_as_many_images_as_come_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    left = iter([None, 10_000.0])
    monkeypatch.setattr(module, "seconds_left", lambda *_: next(left))
    monkeypatch.setattr(module, "known_backend", lambda *_: None)
    shapes = []

    def find(tuner: NetworkTuner, example: Tensor, **options: object) -> Optimized:
        model = tuner.model
        shapes.append(tuple(example.shape))
        return Optimized(model, example, PLAIN, lambda images: model(images), ratio=1.0)

    monkeypatch.setattr(NetworkTuner, "find", find)
    network = _fast(_model(), [])
    full = torch.cat([_images()] * 5)
    for images in (full, full[:3]):  # Seven of the second batch could not be read.
        network(images)
    assert shapes == [(module.NUM_EXAMPLES, 3, 64, 64)]


@torch.inference_mode()
def test_the_first_call_of_a_gpu_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "seconds_left", lambda *facts: asked.append(facts))
    monkeypatch.setattr("convnext.hardware.tuner.wait_for", lambda device: None)
    cuda = torch.device("cuda")
    network = Fast(_model(), device=cuda, precision="fp32", num_images=100, keep=False)
    count = network.watch(lambda num: None)
    for _ in range(3):
        network.eval()(_images())
        count(2)
    assert [(done, total) for _, done, total in asked] == [(0, 100), (0, 98), (2, 98)]
    assert asked[1][0] == 0.0
    assert asked[2][0] > 0.0


@pytest.mark.parametrize(
    ("backend", "device", "calls"),
    [("fastest", "cpu", 1), ("folded", "cpu", 1), ("fastest", "cuda", 0), ("eager", "cpu", 0)],
)
def test_only_a_network_that_may_speed_up_keeps_freed_memory(
    backend: Speedup, device: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    monkeypatch.setattr(module, "keep_freed_memory", lambda: called.append(True))
    where, precision = torch.device(device), "fp32"
    Fast(_model(), device=where, precision=precision, num_images=1, backend=backend, keep=True)
    assert len(called) == calls
