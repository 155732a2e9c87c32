"""The numbers and the tables of a benchmark, and one benchmark that really runs."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

import convnext
from convnext.benchmarking import measure as module
from convnext.benchmarking import show, worker
from convnext.benchmarking.measure import BenchmarkResult, benchmark, timm_name
from convnext.benchmarking.show import draw, print_result, write_result
from convnext.cli import main
from convnext.hardware.peak_rates import Limits, copy_limit
from convnext.models.flops import Demand, demand

# Three stages of the arithmetic: 2 GFLOP an image, 1 GB moved, on a machine of 10 and 4.
WANTED = Demand(params=10, flops=2 * 10**9, activation_bytes=10**9, weight_bytes=10**9)
LIMITS = Limits(flops={"bf16": 4e10, "fp32": 1e10}, bytes_per_s=4e9)


def _told(seconds: float, **more: Any) -> dict[str, Any]:
    return {"times": [seconds, seconds, 9 * seconds], "peak_gb": 0.5} | more


def test_shares_and_ratios_follow_from_the_times() -> None:
    told = [_told(2.0), _told(1.0, form="eager conv"), {"times": [], "failure": "no room"}]
    first, second, third = module._timings(["timm", "eager", "best"], told, 4, WANTED, LIMITS)
    assert (first.ratio, second.ratio) == (1.0, 2.0)
    assert (second.seconds, second.images_per_s) == (1.0, 4.0)
    assert second.matrix_share == pytest.approx(4 * 2e9 / 1e10)
    assert second.memory_share == pytest.approx((4 * 1e9 + 1e9) / 4e9)
    assert second.form == "eager conv"
    assert third.failure == "no room"
    assert second.latency_ms is None


def test_single_images_have_percentiles() -> None:
    told = [{"times": [i / 1000 for i in range(1, 101)], "peak_gb": 0.1}]
    (timing,) = module._timings(["eager"], told, 1, WANTED, LIMITS)
    assert timing.latency_ms is not None
    assert timing.latency_ms == pytest.approx({"p50": 50.5, "p90": 90.1, "p99": 99.01})


def test_demand_is_counted_by_hand() -> None:
    model = convnext.create_model(
        "convnext_atto", depths=(1,), dims=(2,), num_classes=3, stem_stride=4
    )
    # At 8 x 8: four positions; per position 96 -> 2, 7 x 7 depthwise, 2 -> 8 -> 2; then 2 -> 3.
    found = demand(model, (8, 8))
    assert found.flops == 2 * (4 * (48 * 2 + 49 * 2 + 16 + 16) + 6)
    stem, spatial, wide, narrow, head = 192 + 8, 8 + 8, 8 + 32, 32 + 8, 2 + 3
    assert found.activation_bytes == 4 * (stem + spatial + wide + narrow + head)
    assert found.weight_bytes == 4 * sum(p.numel() for p in model.parameters())


def test_a_copy_is_timed() -> None:
    assert copy_limit(torch.device("cpu")) > 1e8


@pytest.mark.parametrize(
    ("name", "size", "peer"),
    [
        ("convnext_isotropic_small", (224, 224), ""),
        ("convnext_tiny", (224, 224), "convnext_tiny"),
        ("mask_rcnn_convnext_tiny", (800, 1280), ""),
        ("roadmap/resnet50/kernel_7", (224, 224), ""),
        ("timm/resnet50", (224, 224), "resnet50"),
        ("upernet_convnext_tiny", (512, 512), ""),
    ],
)
def test_names_say_what_is_measured(name: str, size: tuple[int, int], peer: str) -> None:
    assert module.input_size_of(name) == size
    assert timm_name(name) == peer


@pytest.fixture(scope="module")
def result() -> BenchmarkResult:
    """Return a small benchmark that really ran, each backend in its own process."""
    lines: list[str] = []
    found = benchmark(
        ["convnext_atto"], batches=(1,), size=(32, 32), rounds=1, threads=1, note=lines.append,
        kinds=("timm", "eager"),
    )  # fmt: skip
    assert any("GFLOP/s" in line for line in lines)
    return found


def test_it_runs_and_is_told(result: BenchmarkResult, tmp_path: Path) -> None:
    (network,) = result.networks
    assert [t.kind for t in network.timings] == ["timm", "eager"]
    for timing in network.timings:
        assert not timing.failure
        assert 0 < timing.images_per_s < 1e6
        assert 0 < timing.matrix_share < 1.5
    console = Console(record=True, width=200)
    print_result(result, console)
    text = console.export_text()
    assert "convnext_atto" in text
    assert "1.00" in text
    paths = write_result(result, tmp_path)
    assert json.loads(paths[0].read_text()) == json.loads(json.dumps(result.to_dict()))
    assert all(path.stat().st_size > 1000 for path in paths)


def test_a_failed_form_is_shown_and_not_drawn(result: BenchmarkResult) -> None:
    (network,) = result.networks
    failed = replace(network.timings[1], seconds=float("nan"), failure="no room")
    shown = replace(result, networks=(replace(network, timings=(network.timings[0], failed)),))
    console = Console(record=True, width=200)
    print_result(shown, console)
    assert "no room" in console.export_text()
    assert len(draw(shown).axes[0].patches) == 1


def test_a_form_that_cannot_be_built_does_not_end_the_others() -> None:
    told = module._take_turns(
        [
            {"model": "no_such_network", "kind": "eager", "batch": 1, "device": "cpu",
             "threads": 1, "in_chans": 3, "size": [32, 32], "precision": "fp32"},
        ],
        1,
        lambda _: None,
    )  # fmt: skip
    assert "there is no model 'no_such_network'" in told[0]["failure"]


def test_mistakes_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        benchmark(["convnext_atto"], rounds=0)
    with pytest.raises(ValueError, match="batch sizes must be at least 1"):
        benchmark(["convnext_atto"], batches=(0,))
    with pytest.raises(ValueError, match="no backend 'fast'"):
        benchmark(["convnext_atto"], kinds=("fast",))
    assert main(["benchmark", "no_such_network", "--forms", "eager"]) == 2
    assert "there is no model" in capsys.readouterr().err
    with pytest.raises(ValueError, match="sizes must be at least 1"):
        benchmark(["convnext_atto"], size=(0, 32))
    with pytest.raises(ValueError, match="threads must be at least 1"):
        benchmark(["convnext_atto"], threads=-1)
    with pytest.raises(ValueError, match="timm has no model convnext_isotropic_small"):
        benchmark(["convnext_isotropic_small"], kinds=("timm",))
    with pytest.raises(ValueError, match="cannot take images of 8 x 8 pixels; try --size 224"):
        benchmark(["convnext_atto"], size=(8, 8))


def test_every_name_is_read_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "measure_limits", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match="there is no model 'no_such_network'"):
        benchmark(["convnext_atto", "no_such_network"], size=(32, 32))


def test_the_threads_of_a_benchmark_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def measure(*_: Any) -> Limits:
        seen.append(torch.get_num_threads())
        raise LookupError

    monkeypatch.setattr(module, "measure_limits", measure)
    before = torch.get_num_threads()
    for threads in (before + 2, 0):
        with pytest.raises(LookupError):
            benchmark(["convnext_atto"], size=(32, 32), threads=threads)
        assert torch.get_num_threads() == before
    assert seen == [before + 2, before]


def test_shares_are_of_the_limits_in_the_precision_of_the_form() -> None:
    told = [_told(1.0, precision="fp32"), _told(1.0, precision="bf16")]
    wide, narrow = module._timings(["eager", "best"], told, 4, WANTED, LIMITS)
    assert narrow.matrix_share == pytest.approx(wide.matrix_share / 4)
    assert narrow.memory_share == pytest.approx(wide.memory_share / 2)


def test_failures_are_valid_json(result: BenchmarkResult) -> None:
    (network,) = result.networks
    failed = replace(network.timings[1], seconds=float("nan"), failure="no room")
    shown = replace(result, networks=(replace(network, timings=(failed,)),))
    text = json.dumps(shown.to_dict(), allow_nan=False)
    assert json.loads(text)["networks"][0]["timings"][0]["seconds"] is None


def _request(**changes: Any) -> dict[str, Any]:
    return {
        "model": "convnext_atto", "kind": "eager", "batch": 2, "device": "cpu",
        "threads": 1, "in_chans": 3, "size": [32, 32], "precision": "fp32",
    } | changes  # fmt: skip


def test_what_libraries_print_neither_stops_nor_confuses_a_worker(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import json, sys\n"
        "sys.stderr.write('noise ' * 50_000)\n"
        "plain = json.loads\n"
        "def loads(*given, **options):\n"
        "    print('{no json', end='', flush=True)\n"
        "    return plain(*given, **options)\n"
        "json.loads = loads\n",
        encoding="utf-8",
    )
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{before}")
    (told,) = module._take_turns([_request()], 2, lambda _: None)
    assert "failure" not in told
    assert len(told["times"]) == 2


def test_a_worker_that_dies_says_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (told,) = module._take_turns([_request()], 1, lambda _: None)
    assert "its process died" in told["failure"]


def test_a_form_that_was_searched_for_is_measured_in_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, list[str]]] = []
    found = {"engine": "eager", "pointwise": "conv"}

    class Recorder:
        count = 0

        def __init__(self, note: object) -> None:
            Recorder.count += 1
            self.number = Recorder.count

        def ask(self, **request: Any) -> dict[str, Any]:
            asked.append((self.number, sorted(request.get("build", request))))
            if "build" not in request:
                return {"seconds": [1.0], "peak_gb": 0.1 * self.number}
            if "found" in request["build"]:
                return {"peak_gb": 0.2}
            return {"search": [{}], "found": found, "form": "eager conv", "peak_gb": 9.0}

        def end(self) -> None:
            pass

    monkeypatch.setattr(module, "_Worker", Recorder)
    (told,) = module._take_turns([_request(kind="best")], 1, lambda _: None)
    assert told["peak_gb"] == pytest.approx(0.2)
    assert (told["form"], told["search"]) == ("eager conv", [{}])
    assert [number for number, _ in asked] == [1, 2, 2]


@pytest.mark.parametrize("found", [False, True])
@pytest.mark.parametrize("name", ["convnext_atto", "mask_rcnn_convnext_atto"])
def test_a_worker_calls_every_network_as_it_is_called(name: str, found: bool) -> None:
    form = {"engine": "eager", "pointwise": "chunked"}
    more = {"kind": "best", "found": form} if found else {"kind": "eager"}
    run, told = worker.build(_request(model=name, size=[64, 96], **more), lambda _: None)
    outputs = run()
    assert len(outputs) == 2
    assert ("build_seconds" in told) == found
    assert isinstance(outputs, list) == name.startswith("mask_rcnn_")


def test_a_worker_has_no_int8_of_a_network_that_follows_its_data() -> None:
    with pytest.raises(ValueError, match="no int8 backend"):
        worker.build(_request(model="mask_rcnn_convnext_atto", kind="int8"), lambda _: None)


@torch.inference_mode()
def test_fresh_networks_do_what_trained_ones_have_to() -> None:
    detector = worker._network(_request(model="mask_rcnn_convnext_atto")).eval()
    (found,) = detector([torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0))])
    assert len(found["masks"]) > 10
    for kind in ("eager", "timm"):
        network = worker._network(_request(kind=kind, timm="convnext_atto"))
        scales = [p for name, p in network.named_parameters() if name.endswith("gamma")]
        assert scales
        assert all((p == worker.LAYER_SCALE).all() for p in scales)


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (0.0034, "0.3 %"), (0.012, "1 %"), (0.5, "50 %")]
)
def test_small_shares_are_not_shown_as_none(share: float, text: str) -> None:
    assert show._percent(share) == text


@pytest.mark.parametrize(("limit", "num_lines"), [(30.0, 1), (10_000.0, 0)])
def test_a_limit_far_away_leaves_room_for_the_bars(limit: float, num_lines: int) -> None:
    timing = SimpleNamespace(seconds=0.1, images_per_s=10.0, ratio=1.0, kind="eager", batch=1)
    axes = Figure().subplots()
    show._draw_network(axes, SimpleNamespace(model="tiny", timings=[timing]), limit)
    assert len(axes.lines) == num_lines
    assert axes.get_xlim()[1] < 50
    assert ("limit" in axes.get_title(loc="left")) == (not num_lines)
