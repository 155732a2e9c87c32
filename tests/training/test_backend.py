"""The backend of training: measured only in long runs, cached, and safe for the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import BATCH, ToyTask, toy_model

from convnext.hardware.devices import Ranks
from convnext.recipes.recipe import Recipe, change_recipe
from convnext.training import backend as module
from convnext.training.backend import Backend, Chosen, choose_backend

CPU = torch.device("cpu")
LONG = 10**8


def choose(
    cache: Path, *, num_steps: int = LONG, task: ToyTask | None = None, **changes: Any
) -> Chosen:
    settings = {"run.precision": "fp32"} | {k.replace("__", "."): v for k, v in changes.items()}
    recipe = change_recipe(Recipe(), settings)
    return choose_backend(
        task or ToyTask(),
        toy_model(),
        recipe,
        CPU,
        ranks=Ranks(),
        num_steps=num_steps,
        micro_batch_size=BATCH,
        cache=cache,
    )


# The backends that were timed, and whether by one pass.
calls: list[tuple[Backend, bool]] = []


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[Backend, float | Exception]:
    """Fake the seconds of each backend; an exception makes it fail."""
    calls.clear()
    known: dict[Backend, float | Exception] = {
        Backend(channels_last, compiled): 1.0
        for channels_last in (True, False)
        for compiled in (True, False)
    }

    def seem(
        task: Any, model: Any, backend: Backend, *_: Any, once: bool = False, **__: Any
    ) -> float:
        found = known[backend]
        if isinstance(found, Exception):
            raise found
        calls.append((backend, once))
        return 3 * found if once else found

    monkeypatch.setattr(module, "_time_backend", seem)
    return known


def test_the_first_pass_alone_shows_that_a_run_is_short(
    tmp_path: Path, times: dict[Backend, float | Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "too short" in choose(tmp_path / "forms.json", num_steps=50).reason
    assert calls == [(Backend(), True)]
    monkeypatch.setattr(module, "WORTH_SECONDS", 2.0 * 50)
    assert "too short" in choose(tmp_path / "forms.json", num_steps=50).reason
    assert calls[1:] == [(Backend(), True), (Backend(), False)]


def test_a_short_run_measures_nothing_else(tmp_path: Path) -> None:
    chosen = choose(tmp_path / "forms.json", num_steps=10)
    assert chosen.backend == Backend(channels_last=True, compile=False)
    assert "too short" in chosen.reason
    assert not (tmp_path / "forms.json").exists()


def test_the_recipe_decides(tmp_path: Path) -> None:
    chosen = choose(tmp_path / "forms.json", run__channels_last=False, run__compile=True)
    assert chosen == Chosen(Backend(False, True), "as the recipe says")
    chosen = choose(tmp_path / "forms.json", run__deterministic=True, run__channels_last=False)
    assert chosen.backend == Backend(channels_last=False, compile=False)


def test_the_fastest_is_taken_and_remembered(
    tmp_path: Path, times: dict[Backend, float | Exception]
) -> None:
    times[Backend(False, True)] = 0.5
    chosen = choose(tmp_path / "forms.json")
    assert chosen.backend == Backend(channels_last=False, compile=True)
    assert "eager channels_last 1,000 ms" in chosen.reason
    assert "compiled channels_first 500 ms" in chosen.reason
    times[Backend(False, True)] = 2.0
    again = choose(tmp_path / "forms.json")
    assert again == Chosen(chosen.backend, "measured before on this machine")
    other = choose(tmp_path / "forms.json", run__precision="bf16")
    assert other.backend == Backend()
    assert len(json.loads((tmp_path / "forms.json").read_text())) == 2


def test_only_what_a_run_is_long_enough_for_is_measured(
    tmp_path: Path, times: dict[Backend, float | Exception]
) -> None:
    announced: list[str] = []
    recipe = change_recipe(Recipe(), {"run.precision": "fp32"})
    chosen = {
        num_steps: choose_backend(
            ToyTask(),
            toy_model(),
            recipe,
            CPU,
            ranks=Ranks(),
            num_steps=num_steps,
            micro_batch_size=BATCH,
            cache=tmp_path / "forms.json",
            announce=announced.append,
        )
        for num_steps in (900, 1900)
    }
    assert "compiled" not in chosen[900].reason
    assert "compiled" in chosen[1900].reason  # The shorter run's answer is not taken for it.
    assert announced[0].startswith("measuring 2 training backends, since this run takes about 15 m")
    assert announced[1].startswith("measuring 4 training backends, since this run takes about 32 m")
    assert "compiling may take minutes" in announced[1]


def test_a_form_that_fails_is_passed_over(
    tmp_path: Path, times: dict[Backend, float | Exception]
) -> None:
    times[Backend(True, True)] = RuntimeError("no compiler")
    times[Backend(False, False)] = 0.98  # Within the noise.
    chosen = choose(tmp_path / "forms.json")
    assert chosen.backend == Backend()
    assert "compiled channels_last fails" in chosen.reason


@pytest.mark.parametrize(
    ("error", "text"), [(0.3, "off by 30 %"), (float("nan"), "not numbers"), (0.04, "")]
)
def test_a_backend_with_wrong_gradients_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float, text: str
) -> None:
    fast = Backend(channels_last=False)
    exact = [torch.ones(3, 4), torch.zeros(5)]

    def seem(task: Any, model: Any, backend: Backend, *_: Any, **options: Any) -> float:
        if "grads" in options:
            options["grads"] += [grad * (1 + error * (backend == fast)) for grad in exact]
        return 0.5 if backend == fast else 1.0

    monkeypatch.setattr(module, "_time_backend", seem)
    chosen = choose(tmp_path / "forms.json", run__compile=False)
    assert chosen.backend == (fast if not text else Backend())
    assert (f"eager channels_first is not used: its gradients are {text}" in chosen.reason) == bool(
        text
    )
    again = choose(tmp_path / "forms.json", run__compile=False)
    assert again.backend == chosen.backend


def test_two_backends_have_the_same_gradients() -> None:
    task, model = ToyTask(), toy_model(norm="batch", drop_path_rate=0.5)
    part = module.first_part(task, BATCH)
    run = change_recipe(Recipe(), {"run.precision": "fp32"}).run
    before = {name: t.clone() for name, t in model.state_dict().items()}
    other = Backend(channels_last=False)
    error = module._backend_error(task, model, other, Backend(), part, CPU, run)
    assert error < 1e-4
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    model.train()
    assert all(m.training for m in model.modules())


def test_memory_that_does_not_suffice_is_left_to_the_loop(
    tmp_path: Path, times: dict[Backend, float | Exception]
) -> None:
    times[Backend()] = torch.OutOfMemoryError("out of memory")
    assert choose(tmp_path / "forms.json").backend == Backend()


def test_measuring_leaves_no_trace(tmp_path: Path) -> None:
    task, model = ToyTask(), toy_model(norm="batch")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    recipe = change_recipe(Recipe(), {"run.precision": "fp32", "run.compile": False})
    chosen = choose_backend(
        task,
        model,
        recipe,
        CPU,
        ranks=Ranks(),
        num_steps=LONG,
        micro_batch_size=BATCH,
        cache=tmp_path / "forms.json",
    )
    assert "ms" in chosen.reason
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
