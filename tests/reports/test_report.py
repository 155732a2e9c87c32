"""The report: complete, escaped, without external addresses, made from incomplete runs too."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from convnext.reports.page import duration
from convnext.reports.report import headline, read_run, write_report
from convnext.tasks.classification.report import confusion, per_class, wilson
from convnext.tasks.figures import save_bytes

CLASSES = ["<b>bold</b>", "\"quoted\" & 'odd'", "$x_1$"]
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACw="


class Page(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.alts: list[str] = []
        self.labels: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.addresses += [str(values[k]) for k in ("src", "href", "xlink:href") if values.get(k)]
        if tag == "img":
            self.alts.append(str(values.get("alt")))
        if tag == "svg":
            self.labels.append(str(values.get("aria-label")))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text("task: classify\ndata: 'a <i>folder</i>'\n")
    choice = {"setting": "optim.lr", "value": 0.002, "reason": "for 32 images"}
    (tmp_path / "choices.json").write_text(json.dumps([choice]))
    rows = []
    for step in range(10, 110, 10):
        common = {"step": step, "epoch": step / 10, "images": 32 * step, "seconds": step / 5}
        rows.append({"kind": "train", **common, "loss": 2 / step, "lr": 1e-3, "images_per_s": 90.0,
                     "wait_share": 0.02})  # fmt: skip
        for weights, top1 in (("model", 50 + step / 4), ("ema", 45 + step / 4)):
            rows.append({"kind": "val", **common, "weights": weights, "loss": 3 / step,
                         "top1": top1, "top5": 100.0})  # fmt: skip
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"kind": "tr')
    evaluation = {
        "top1": 75.0, "top5": 100.0, "loss": 0.4, "num_images": 8, "weights": "model", "step": 100,
        "classes": CLASSES, "confusion": [[3, 1, 0], [0, 2, 1], [0, 0, 1]],
        "per_class": [
            {"name": name, "support": 3, "precision": 0.5, "recall": 0.75, "f1": 0.6}
            for name in CLASSES
        ],
        "mistakes": [{"source": "a<b>.jpg", "truth": CLASSES[0], "prediction": CLASSES[1],
                      "probability": 0.987, "thumbnail": PIXEL}],
        "bad_images": [{"source": "broken<.jpg", "reason": "cut off"}],
    }  # fmt: skip
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    (tmp_path / "environment.json").write_text(json.dumps({"device": "cpu", "torch": "2"}))
    model = {"name": "convnext_atto", "params": 3_400_000, "macs": 75_000_000, "input_size": 96,
             "classes": 3}  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps(model))
    return tmp_path


def headline_of(folder: Path) -> list[tuple[str, str]]:
    run = read_run(folder)
    return headline(run, run.task.report(run.evaluation))


def test_the_page_is_whole_and_needs_no_network(run_folder: Path) -> None:
    text = write_report(run_folder).read_text(encoding="utf-8")
    page = Page(text)
    assert page.addresses
    assert all(a.startswith(("data:", "#")) for a in page.addresses), page.addresses
    words = " ".join(page.words)
    for expected in ("75.00\u00a0%", "3.40 M", "75 M", "for 32 images", "98.7\u00a0%", "cut off",
                     "1 of 4", "Best at epoch 10 (step 100)."):  # fmt: skip
        assert expected in words, expected
    assert page.tags.count("svg") == 5
    assert page.alts == [f"{CLASSES[0]}, predicted as {CLASSES[1]}"]
    assert page.labels[1] == (
        "Top-1 on the validation set. validation from 52.5 to 75 over 3.2 k images; "
        "validation, moving average from 47.5 to 70 over 3.2 k images"
    )
    assert f"{CLASSES[1]} instead of {CLASSES[0]}: 1 of 4 images" in page.labels[4]
    figures = {path.name for path in (run_folder / "figures").iterdir()}
    assert figures == {f"{n}.{f}" for n in ("loss", "top1", "lr", "speed", "confusion")
                       for f in ("svg", "png")}  # fmt: skip


def test_names_are_text_and_never_markup(run_folder: Path) -> None:
    text = write_report(run_folder).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"b", "i"} & set(page.tags)
    assert set(CLASSES) <= set(page.words)
    assert any("a <i>folder</i>" in word for word in page.words)


def test_an_unfinished_run_has_a_report_that_says_so(run_folder: Path) -> None:
    for name in ("evaluation.json", "model.json", "environment.json"):
        (run_folder / name).unlink()
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "Not available yet: evaluation.json, environment.json, model.json" in text
    assert "Most confident mistakes" not in text
    assert dict(headline_of(run_folder))["best top-1 so far"] == "75.00\u00a0%"


def test_a_damaged_file_and_a_loss_that_is_no_number(run_folder: Path) -> None:
    (run_folder / "evaluation.json").write_text('{"top1": 7')
    lines = (run_folder / "metrics.jsonl").read_text().replace('"loss": 0.2,', '"loss": NaN,')
    assert "NaN" in lines
    (run_folder / "metrics.jsonl").write_text(lines)
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "Not available yet: evaluation.json (damaged)." in text
    assert Page(text).tags.count("svg") == 4


def test_a_page_that_is_not_a_picture_is_not_shown(run_folder: Path) -> None:
    evaluation = json.loads((run_folder / "evaluation.json").read_text())
    evaluation["mistakes"][0]["thumbnail"] = "https://example.org/a.jpg"
    (run_folder / "evaluation.json").write_text(json.dumps(evaluation))
    assert "example.org" not in write_report(run_folder).read_text(encoding="utf-8")


def test_the_weakest_class_comes_first(run_folder: Path) -> None:
    run = read_run(run_folder)
    scores = [dict(row) | {"f1": f1} for row, f1 in
              zip(run.evaluation["per_class"], (0.9, 0.2, 0.5), strict=True)]  # fmt: skip
    section = per_class({"per_class": scores})
    assert section is not None
    assert [row["f1"] for row in section.parts[0].values["rows"]] == [0.2, 0.5, 0.9]


def test_events_are_listed_even_where_their_steps_were_repeated(run_folder: Path) -> None:
    rows = [
        {"kind": "event", "step": 95, "epoch": 9.5, "event": "top1 is <low>"},
        {"kind": "resume", "step": 90, "epoch": 9.0},
    ]
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.writelines("\n" + json.dumps(row) for row in rows)
    assert [row["step"] for row in read_run(run_folder).rows("train")][-1] == 90
    words = Page(write_report(run_folder).read_text(encoding="utf-8")).words
    for expected in ("Events", "top1 is <low>", "resumed from here; later steps were repeated"):
        assert expected in words


def test_a_run_without_events_has_no_section_of_them(run_folder: Path) -> None:
    assert "Events" not in Page(write_report(run_folder).read_text(encoding="utf-8")).words


def test_the_reference_is_drawn_as_far_as_the_run_has_come(run_folder: Path) -> None:
    curve = run_folder / "earlier.csv"
    curve.write_text("epoch,top1\n2,40\n6,60\n20,95\n")
    (run_folder / "recipe.yaml").write_text(f"task: classify\nrun: {{reference: '{curve}'}}\n")
    page = Page(write_report(run_folder).read_text(encoding="utf-8"))
    assert "reference from 40 to 70 over 3.2 k images" in page.labels[1]


def test_a_reference_that_is_gone_is_said(run_folder: Path) -> None:
    (run_folder / "recipe.yaml").write_text("task: classify\nrun: {reference: gone.csv}\n")
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "Not available yet: the reference gone.csv." in text
    assert Page(text).tags.count("svg") == 5


def test_wilson_interval() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    for count in (1, 3, 10, 97, 1000):
        for share in (0.0, 1.0):
            low, high = wilson(share, count)
            assert 0 <= low < high <= 1, (share, count)


def test_the_page_shows_one_number_and_says_what_it_is(run_folder: Path) -> None:
    path = run_folder / "evaluation.json"
    own = {"top1": 62.5, "split": "val", "precision": "fp32", "backend": "folded"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    facts = {"validation": "8 images, split: val, in bf16, compiled"}
    (run_folder / "environment.json").write_text(json.dumps(facts))
    words = " ".join(Page(write_report(run_folder).read_text(encoding="utf-8")).words)
    assert dict(headline_of(run_folder))["top-1"] == "62.50\u00a0%"
    curve = (run_folder / "figures/top1.svg").read_text()
    assert ">62.50<" in curve
    assert ">75.00<" not in curve
    assert "Measured on 8 images, split: val, in fp32, folded: the 95 % confidence" in words
    assert "training's own validation, 8 images, split: val, in bf16, compiled." in words
    assert (
        "Dot: the evaluation of the best weights, 8 images, split: val, in fp32, folded." in words
    )


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "svg" not in page.tags


def test_the_headline(run_folder: Path) -> None:
    facts = dict(headline_of(run_folder))
    assert facts["top-1"] == "75.00\u00a0%"
    assert facts["MACs at 96 px"] == "75 M"
    assert facts["images seen"] == "3,200"
    assert "top-5" not in facts
    assert facts["parameters"] == "3.40 M"
    path = run_folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"params": 1278}))
    assert dict(headline_of(run_folder))["parameters"] == "1,278"


def test_many_classes_show_the_pairs_that_matter(run_folder: Path) -> None:
    size = 200
    matrix = [[5 if t == p else 0 for p in range(size)] for t in range(size)]
    matrix[7][9] = 4
    run = read_run(run_folder)
    evaluation = dict(run.evaluation) | {
        "classes": [f"class {c}" for c in range(size)], "confusion": matrix,
    }  # fmt: skip
    section = confusion(evaluation)
    assert section is not None
    matrix_part, pairs = section.parts
    (pair,) = pairs.values["rows"]
    assert (pair["truth"], pair["prediction"], pair["share"]) == ("class 7", "class 9", "4 of 9")
    drawing = matrix_part.values["figure"]
    assert len(save_bytes(drawing.figure, "svg")) < 300_000
    assert "class 9 instead of class 7: 4 of 9" in drawing.alt


@pytest.mark.parametrize(("seconds", "words"), [(5.2, "5 s"), (600, "10 min"), (40_000, "11.1 h")])
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_too_many_classes_for_a_matrix_leave_it_out(run_folder: Path) -> None:
    path = run_folder / "evaluation.json"
    evaluation = json.loads(path.read_text()) | {"confusion": []}
    path.write_text(json.dumps(evaluation))
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "Confusion matrix" not in text
    assert "Most confident mistakes" in text
