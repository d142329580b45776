"""What a reader of report.html relies on: every figure is there, nothing leaves the page, no name becomes code."""

from __future__ import annotations

import base64
import io
import re
from html import unescape

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from report_parts import EVIL, Page, arguments, operating

from edgemed.report import report_html
from edgemed.report_evidence import Duplicate, Hard
from edgemed.report_plots import heat_map, without_removed


def test_every_figure_given_is_in_the_page() -> None:
    given = arguments()
    metrics = given["metrics"]
    text = Page(report_html(**given)).text
    for predictor in (metrics["ensemble"], *metrics["members"].values()):
        for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc"):
            interval = predictor[name]
            assert f"{interval['value']:.3f}\n({interval['low']:.3f} to {interval['high']:.3f})" in text
        chance = predictor["ece_by_chance"]
        assert f"{chance['mean']:.3f}\n(up to {chance['high']:.3f})" in text
        assert f"{predictor['ece']:.3f}" in text
    gain = metrics["ensemble_minus_better"]
    assert f"{gain['value']:+.3f}" in text
    assert f"({gain['low']:+.3f} to {gain['high']:+.3f})" in text
    for figure in (
        "1.234",
        "0.876",
        "60 images in 30 groups",
        "0.8765",
        "0.4321",
        "epoch 2",
        "0.765",
        "0.991",
        "0.987",
    ):
        assert figure in text
    for fact in (
        "convnext_atto",
        "96 px",
        "160 px",
        "4321",
        "scans/breast",
        "1,234",
        "567",
        "abc123",
        "2.14.1",
        "9.8.7",
    ):
        assert fact in text
    for fact in ("1 h 2 min", "1 min 2 s", "4.2 s", "threads: 2", "0.55", "41", "123", "17", "51", "174"):
        assert fact in text
    assert "class malignant has few images" in text
    assert "1.25 to 6.75 bit" in text
    assert "1 of 4 removed" in text


def test_each_predictor_shows_each_class_with_intervals_or_none_from_few_groups() -> None:
    given = arguments()
    metrics = given["metrics"]
    predictors = {"ensemble": metrics["ensemble"], **metrics["members"]}
    metrics["ensemble"]["intervals"]["sensitivity"]["normal"] = {"low": None, "high": None}
    text = Page(report_html(**given)).text
    for name, each in predictors.items():
        lines = [f"By class: {name}", "Class", "Sensitivity", "Specificity", "AUROC"]
        for label in metrics["classes"]:
            lines.append(label)
            for key in ("sensitivity", "specificity", "auroc_per_class"):
                low, high = (each["intervals"][key][label][bound] for bound in ("low", "high"))
                shown = "no interval" if low is None else f"({low:.3f} to {high:.3f})"
                lines += [f"{each[key][label]:.3f}", shown]
        assert "\n".join(lines) in text
    assert text.count("no interval\n") == 1


def test_members_and_ensemble_are_compared_on_the_same_images() -> None:
    text = Page(report_html(**arguments())).text
    row = ["ensemble minus mae", "+0.012", "(-0.034 to +0.057)", "-0.023", "(-0.046 to +0.068)", "1,432 / 11", "0.031"]
    assert "\n".join(row) in text


def test_the_confusion_matrix_reads_row_by_row_with_shares_of_the_true_class() -> None:
    given = arguments()
    given["metrics"]["ensemble"]["confusion"] = [[18, 2, 0], [10, 30, 0], [0, 1, 3]]
    html = report_html(**given)
    matrix = html[html.index("Confusion matrices") :]
    cells = re.findall(r"<td[^>]*>(\d+)<span class=\"sub\">([\d.]+) %</span></td>", matrix)[:9]
    assert [int(count) for count, _ in cells] == [18, 2, 0, 10, 30, 0, 0, 1, 3]
    assert [float(share) for _, share in cells] == [90, 10, 0, 25, 75, 0, 0, 25, 75]


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(0.01, 0.03, "lies above 0"), (-0.03, -0.01, "lies below 0"), (-0.01, 0.03, "do not show that the two differ")],
)
def test_the_sentence_on_the_ensemble_follows_the_interval(low: float, high: float, says: str) -> None:
    given = arguments()
    given["metrics"]["ensemble_minus_better"] = {"better": "mae", "value": (low + high) / 2, "low": low, "high": high}
    text = Page(report_html(**given)).text
    assert says in text
    assert "better member (mae)" in text


def test_names_from_the_user_stay_text() -> None:
    given = arguments([EVIL, "b"])
    given["warnings"] = [EVIL]
    picture = np.zeros((8, 8, 3), np.uint8)
    given["duplicates"] = [
        Duplicate(EVIL, "b", EVIL, "b", 0.9, (picture, picture)),
        Duplicate(EVIL, "b", "b", "b", 0.9),
    ]
    given["hardest"] = [Hard(picture, EVIL, EVIL, 0.1, EVIL, 0.9)]
    threshold = operating()["threshold"] | {"positive": EVIL}
    given["metrics"]["operating"] = operating() | {"threshold": threshold, "decisions": [[9, 1, 2], [3, 4, 5]]}
    given["info"]["dataset"]["root"] = EVIL
    given["info"]["versions"][EVIL] = EVIL
    given["metrics"]["split"] = EVIL
    html = report_html(**given)
    page = Page(html)
    assert "<script" not in html
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "link", "base"})
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not page.unbalanced
    assert unescape(html).count(EVIL) >= 12  # shown as it is, in every table that names it


def test_the_page_asks_nothing_of_any_other_machine() -> None:
    html = report_html(**arguments())
    page = Page(html)
    sources = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert sources
    assert all(source and source.startswith("data:image/") for source in sources)
    assert "url(" not in html
    assert "@import" not in html
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_the_first_words_say_that_it_shows_patient_data_and_is_no_medical_device() -> None:
    text = Page(report_html(**arguments())).text
    banner = text[: text.index("The ensemble")]
    assert "shows patient data and must not be shared" in banner
    assert "not a medical device" in banner


def test_conflicting_duplicates_come_first_and_a_long_list_says_what_it_leaves_out() -> None:
    given = arguments()
    agreeing = [Duplicate(f"same/{k}", f"too/{k}", "benign", "benign", 0.8 + k / 1000) for k in range(130)]
    given["duplicates"] = [*agreeing, Duplicate("one", "two", "benign", "normal", 0.8)]
    text = Page(report_html(**given)).text
    assert "131 pairs found, 1 of them with conflicting labels" in text
    assert text.index("Conflicting labels") < text.index("\ntwo\n") < text.index("same/129") < text.index("same/128")
    assert text.count("same/") == 100
    assert "30 more" in text


def test_the_pictures_are_the_image_its_entropy_the_mask_and_the_reconstruction() -> None:
    given = arguments()
    example = given["examples"][0]
    page = Page(report_html(**given))
    sources = [a["src"] or "" for tag, a in page.tags if tag == "img" and a["src"]]
    panels = [source.removeprefix("data:image/png;base64,") for source in sources if "png" in source]
    image, entropy, masked, filled = (np.asarray(Image.open(io.BytesIO(base64.b64decode(panel)))) for panel in panels)
    np.testing.assert_array_equal(image, example.image)
    np.testing.assert_array_equal(filled, example.reconstruction)
    assert (masked[:32, :32] != 200).all()  # True = removed
    assert (masked[32:] == 200).all()
    assert (masked[:, 32:] == 200).all()
    brightness = entropy[16::32, 16::32].astype(int).sum(axis=-1)
    assert brightness[0, 0] < brightness[0, 1] < brightness[1, 0] < brightness[1, 1]


def test_units_cover_a_picture_whose_side_they_do_not_divide() -> None:
    corner = np.zeros((3, 3), bool)
    corner[2, 2] = True
    hidden: NDArray[np.bool_] = without_removed(np.zeros((100, 100, 3), np.uint8), corner)[..., 0] > 0
    assert hidden[67:, 67:].all()
    assert hidden.sum() == 33 * 33
    assert len(np.unique(heat_map(np.array([[1.0, 1.0]]), 1.0, 1.0, 8).reshape(-1, 3), axis=0)) == 1


def test_curves_draw_the_values_of_each_epoch() -> None:
    def drawn(scale: float) -> list[str]:
        given = arguments()
        for row in given["histories"]["imagenet"]:
            row["train_loss"] *= scale
        page = Page(report_html(**given))
        return [a["src"] or "" for tag, a in page.tags if tag == "img" and "svg" in (a["src"] or "")]

    once, again, other = drawn(1.0), drawn(1.0), drawn(1.7)
    assert len(once) == 10  # calibration, risk, ROC of 3 classes; pretraining, and loss and accuracy of both members
    assert once == again
    assert [a != b for a, b in zip(once, other, strict=True)][5:] == [False, True, False, True, False]
    svg = base64.b64decode(once[6].split(",")[1]).decode()
    # Epochs 1, 2, 3 at equal distances, the losses 1, 1/2, 1/3 downwards on the page.
    path = next(p for p in re.findall(r'<path d="(M[^"]*)" clip-path[^>]*stroke: #0072b2', svg) if p.count("L") == 2)
    (x1, y1), (x2, y2), (x3, y3) = [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.01)
    assert (y2 - y1) / (y3 - y1) == pytest.approx((1 / 2) / (2 / 3), abs=0.001)


def test_a_folded_run_shows_each_fold_its_mean_and_its_spread() -> None:
    given = arguments()
    values = {"mean": 0.8812, "std": 0.0321, "folds": [0.8511, 0.9111, None]}
    keys = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
    given["metrics"]["folds"] = {name: dict.fromkeys(keys, values) for name in ("ensemble", "imagenet", "mae")}
    given |= {"histories": {"imagenet": [], "mae": [], "pretraining": []}, "examples": []}
    given["info"]["durations"] = {}
    given["split_table"] = {"all": dict.fromkeys(given["metrics"]["classes"], 43)}
    given["fold_table"] = {"fold 3, test": dict.fromkeys(given["metrics"]["classes"], 11)}
    text = Page(report_html(**given)).text
    assert "fold 3, test\n11\n11\n11\n33\n" in text
    assert "all splits" not in text
    assert text.count("0.881\n0.032\n0.851\n0.911\n-\n") == 12
    assert "fold 3" in text
    assert "The curves are in each fold's report: folds/K/report.html." in text
    assert "Entropy and masks\nThe pictures are in each fold's report: folds/K/report.html." in text
    assert "not measured" not in text
    given["info"]["config"]["pretrain_epochs"] = 0
    assert "Entropy and masks" not in Page(report_html(**given)).text


def test_what_is_undefined_or_was_not_measured_is_said_so_and_never_shown_as_zero() -> None:
    given = arguments()
    given["metrics"]["ensemble"]["auroc"] = {"value": None, "low": None, "high": None}
    given["metrics"]["ensemble"]["sensitivity"]["normal"] = None
    given["metrics"]["ensemble"]["intervals"]["sensitivity"]["normal"] = {"low": None, "high": None}
    given["metrics"]["ensemble"]["confusion"][2] = [0, 0, 0]
    given["info"]["durations"] = {}
    given |= {"duplicates": [], "warnings": []}
    text = Page(report_html(**given)).text
    assert "-\nundefined" in text
    assert "normal\n-\nundefined\n" in text
    assert "0\n-\n0\n-\n0\n-\n" in text
    assert "not measured" in text
    assert "None found." in text


def test_the_side_of_the_training_crops_is_told_where_it_is_not_the_networks() -> None:
    given = arguments()
    assert "Image size\n96 px, pretraining 160 px\n" in Page(report_html(**given)).text
    given["info"]["config"]["train_size"] = 64
    assert "Image size\n96 px, learnt from crops of 64 px, pretraining 160 px\n" in Page(report_html(**given)).text
