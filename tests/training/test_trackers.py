"""Trackers get every scalar, and none of them can end a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from convnext.training.trackers import Tracker, make_trackers


class Stub:
    """A Lightning logger that records its calls and fails from a given step."""

    def __init__(self, fails_at: int = 10**9) -> None:
        self.told: list[Any] = []
        self.fails_at = fails_at

    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        self.told.append(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if step >= self.fails_at:
            raise ConnectionError("the server\nis gone")
        self.told.append((step, metrics))

    def save(self) -> None:
        self.told.append("saved")

    def finalize(self, status: str) -> None:
        self.told.append(status)


def test_it_is_made_when_it_is_needed_and_told_the_settings_first() -> None:
    made: list[Stub] = []

    def make() -> Stub:
        made.append(Stub())
        return made[-1]

    tracker = Tracker("stub", make, {"lr": 1})
    assert tracker.save() is None
    assert made == []
    for step in (1, 2):
        assert tracker.send({"loss": 0.5}, step) is None
    tracker.save()
    tracker.close()
    tracker.send({"loss": 0.5}, 3)
    (stub,) = made
    assert stub.told == [
        {"lr": 1}, (1, {"loss": 0.5}), (2, {"loss": 0.5}), "saved", "success"
    ]  # fmt: skip


def test_the_first_failure_is_told_and_ends_it() -> None:
    stub = Stub(fails_at=2)
    tracker = Tracker("stub", lambda: stub)
    assert tracker.send({}, 1) is None
    assert tracker.send({}, 2) == (
        "stub failed (ConnectionError: the server is gone) and gets no more scalars"
    )
    assert [tracker.send({}, 1), tracker.save(), tracker.close()] == [None] * 3
    assert stub.told == [(1, {})]


def test_a_logger_that_cannot_be_made_is_a_failure_like_any_other() -> None:
    def make() -> Any:
        raise OSError("no route")

    tracker = Tracker("stub", make)
    assert "OSError: no route" in str(tracker.send({}, 1))
    assert tracker.send({}, 2) is None


def test_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no 'wandbb'; did you mean 'wandb'\?"):
        make_trackers(["wandbb"], tmp_path, {})
    assert make_trackers([], tmp_path, {}) == []


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext.training.trackers._is_installed", lambda module: False)
    with pytest.raises(ValueError, match=r"pip install 'convnext\[mlflow\]'"):
        make_trackers(["mlflow"], tmp_path, {})


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "modules", "written"),
    [
        ("wandb", ("wandb",), "wandb/offline-run-*/*.wandb"),
        ("mlflow", ("mlflow", "sqlalchemy", "alembic"), "mlflow.db"),
    ],
)
def test_the_real_ones_work_offline(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    modules: tuple[str, ...],
    written: str,
) -> None:
    for module in ("pytorch_lightning", *modules):
        pytest.importorskip(module)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tracker,) = make_trackers([name], tmp_path, {"optim": {"lr": 1e-3}})
    sent = {"train/loss": 1.0, "lr/group 3 no decay": 1e-3}
    assert [tracker.send(sent, 1), tracker.send(sent, 2), tracker.close()] == [None] * 3
    assert list(tmp_path.glob(written))
