"""The figure is drawn from the table alone; the paper's numbers have a separate column."""

from __future__ import annotations

import pytest
from rich.console import Console

from convnext.tasks.classification.robustness.benchmarks import Score, paper_figures, summarize
from convnext.tasks.classification.robustness.corruptions import CORRUPTIONS
from convnext.tasks.classification.robustness.measure import Progressed
from convnext.tasks.classification.robustness.run import RobustnessResult
from convnext.tasks.classification.robustness.table import draw_robustness, print_robustness


def test_the_papers_figures_stand_beside_published_weights_only() -> None:
    tiny = paper_figures("timm/convnext_tiny.fb_in1k")
    assert tiny is not None
    assert (tiny["clean"], tiny["imagenet-c"], tiny["imagenet-a"]) == (82.1, 53.2, 24.2)
    large = paper_figures("convnext_large.fb_in22k_ft_in1k_384")
    assert large is not None
    assert large["imagenet-sketch"] == 52.8
    for source in ("convnext_tiny.fb_in22k_ft_in1k", "runs/convnext_tiny", "convnext_tiny"):
        assert paper_figures(source) is None


def row(name: str, severity: int, top1: float, benchmark: str = "ImageNet-C") -> dict[str, str]:
    return {
        "benchmark": benchmark,
        "source": "runs/first",
        "model": "convnext_tiny",
        "corruption": name,
        "severity": str(severity),
        "top1": str(top1),
        "error": str(100 - top1),
        "num_images": "10",
        "counted": "0" if name in ("clean", "spatter") else "1",
        "alexnet_error": "",
    }


def test_the_map_shows_every_number_and_only_means_what_counts() -> None:
    rows = [row("clean", 0, 80.0), row("fog", 1, 60.0), row("fog", 3, 50.0), row("spatter", 1, 7.0)]
    fig = draw_robustness(rows)
    (axes,) = fig.axes
    texts = [t.get_text() for t in axes.texts]
    for words in ("fog", "spatter*", "60.0", "50.0", "55.0", "7.0", "-", "weather"):
        assert words in texts
    titles = [t.get_text() for t in fig.texts]
    assert "top-1, %, under ImageNet-C: mean 55.0, clean 80.0" in titles
    alphas = [patch.get_alpha() for patch in axes.patches]
    # fog 1, fog 3, its mean, spatter 1, its mean: a larger loss is darker.
    assert alphas[0] < alphas[2] < alphas[1] < alphas[3] == alphas[4]


def test_one_condition_is_drawn_as_a_bar_beside_the_clean_one() -> None:
    rows = [row("imagenet-a", 0, 24.2, "ImageNet-A"), row("clean", 0, 90.0, "ImageNet-A")]
    (axes,) = draw_robustness(rows).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["clean", "ImageNet-A"]
    assert [t.get_text() for t in axes.texts] == ["90.0", "24.2"]


def test_the_papers_figure_has_a_column_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    conditions = {"split": "all", "precision": "fp32", "backend": "eager"}
    state = Progressed.begin({}, {"title": "ImageNet-C", **conditions}, None)
    for name in CORRUPTIONS:
        for level in range(1, 6):
            state.scores[name, level] = Score(
                corruption=name, severity=level, num_correct=6, num_images=10
            )
    summary = summarize("imagenet-c", list(state.scores.values()), clean=82.1, is_imagenet=True)
    assert summary.mce is not None

    def lines(source: str) -> dict[str, list[str]]:
        result = RobustnessResult(
            state=state,
            kind="imagenet-c",
            summary=summary,
            clean_from="published",
            paper=paper_figures(source),
            notes=(),
        )
        print_robustness(result, Console(width=160))
        shown = capsys.readouterr().out.splitlines()
        return {line.strip().split("  ")[0]: line.split() for line in shown}

    published, own = lines("convnext_tiny.fb_in1k"), lines("runs/convnext_tiny")
    assert published["mCE"] == ["mCE", f"{summary.mce:.2f}", "%", "53.2", "%"]
    assert published["mean error"] == ["mean", "error", "40.00", "%", "-"]
    assert published["clean top-1 (published)"][-2:] == ["82.1", "%"]
    assert own["mCE"] == ["mCE", f"{summary.mce:.2f}", "%"]
