"""What would fail the self-test of a bundle is found before the bundle is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_build
from test_build import SIDES, Made

from edgemed import build, precision
from edgemed.ensemble import Ensemble, predict_callable
from edgemed.errors import GateError
from edgemed.sources import source_from_run

made, quick = test_build.made, test_build.quick


def test_a_graph_that_would_fail_its_own_self_test_is_not_shipped(
    made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(ensemble: Ensemble) -> Any:
        return lambda image: tuple(np.roll(each, 1, axis=-1) for each in predict_callable(ensemble)(image))

    monkeypatch.setattr(build, "predict_callable", elsewhere)  # what PyTorch made of the golden images
    with pytest.raises(GateError, match="fp32 graph in openvino .* on the golden images differs from its reference"):
        build.build_bundle(source_from_run(made.run.path), tmp_path / "b", image_size=SIDES)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("golden_image", [0, 5])
def test_golden_images_that_lose_too_much_in_half_precision_are_not_shipped(
    made: Made, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_image: int
) -> None:
    def lossy(ensemble: Ensemble, images: Any) -> precision.SafeHalf:
        found = precision.safe_half(ensemble, images)
        found.rounded.members[-6 + golden_image, 0, :2] += np.float32([6e-3, -6e-3])  # the gate is 5e-3
        return found

    monkeypatch.setattr(build, "safe_half", lossy)
    with pytest.raises(GateError, match="rounded, on the golden images, member imagenet, differs .* --golden"):
        build.build_bundle(source_from_run(made.run.path), tmp_path / "b", image_size=SIDES)
    assert not (tmp_path / "b").exists()
