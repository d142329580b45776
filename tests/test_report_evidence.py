"""What the report says of trust: operating point, calibration, ROC, hardest images, conflicting labels."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from report_parts import Page, arguments, operating

from edgemed.report import report_html


def test_the_operating_point_is_shown_with_what_was_asked_and_what_it_attains() -> None:
    given = arguments()
    given["metrics"]["operating"] = operating()
    text = Page(report_html(**given)).text
    for lines in (
        "Prediction sets that hold the true label\n0.9\n0.912\n(0.876 to 0.943)",
        "Sensitivity for malignant\nat least 0.95\n0.961",
        "Specificity for malignant\n-\n0.722",
        "Images that are answered\nat least 0.85\n0.844",
        "Wrong answers among all images\n-\n0.056",
        "Labels in a set, on average\n-\n1.432",
        "Fitted on 77 calibration images",
        "0.2345",
        "0.1357",
        "0.0579",
        "0.84 answered",
    ):
        assert lines in text
    table = text[text.index("ensemble at the operating point") :]
    assert table.index("referred") < table.index("15\n75.0 %\n3\n15.0 %\n0\n0.0 %\n2\n10.0 %")


def test_without_a_calibration_split_the_report_says_that_nothing_is_promised() -> None:
    text = Page(report_html(**arguments())).text
    assert "nothing is promised" in text
    assert "--calibration 0.15" in text
    assert "at the operating point" not in text


def test_the_hardest_images_and_conflicting_labels_are_seen_with_what_was_said_of_them() -> None:
    given = arguments()
    page = Page(report_html(**given))
    assert "benign (0.012), most probable malignant (0.946): b/7.png" in page.text
    assert "benign or malignant? Correlation 0.987" in page.text
    photos = [a["src"] or "" for tag, a in page.tags if tag == "img" and "jpeg" in (a["src"] or "")]
    levels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(p.split(",")[1])))).mean() for p in photos]
    assert levels == pytest.approx([200, 200, 66], abs=1.5)


def test_every_class_has_its_roc_with_the_area_and_its_interval() -> None:
    given = arguments()
    text = Page(report_html(**given)).text
    for name, area in given["metrics"]["ensemble"]["auroc_per_class"].items():
        low, high = given["metrics"]["ensemble"]["intervals"]["auroc_per_class"][name].values()
        assert f"{name}: AUROC {area:.3f}, ({low:.3f} to {high:.3f})" in text  # those of metrics.json
