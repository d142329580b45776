"""A run or a bundle on labelled images that it was not trained on.

edgemed evaluate RUN|BUNDLE DATA [--json]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgemed.dataset import scan
from edgemed.errors import InputError, did_you_mean
from edgemed.evaluate import Predict, evaluation, predict_files
from edgemed.infer import load


def judge(
    model: Path, data: Path, *, runtime: str, precision: str, progress: Callable[[str, int, int, str], None]
) -> dict[str, Any]:
    """Metrics of each member and of the ensemble on `data`, by the names of the model's own classes.

    Raises:
        InputError: `model` is neither a run nor a bundle, or the data have a class that it does not know.
    """
    predict, classes, member_names = _predictor(model, runtime, precision)
    dataset = scan(data, min_classes=1, progress=lambda done, total: progress("scan images", done, total, ""))
    for row in dataset.rows:
        if row.label not in classes:
            hint = did_you_mean(row.label, classes)
            raise InputError(f"{dataset.file(row)}: {model} has no class '{row.label}'.{hint}")
    probabilities, members = predict_files(
        predict, [dataset.file(row) for row in dataset.rows], lambda done, total: progress("evaluate", done, total, "")
    )
    labels = [classes.index(row.label) for row in dataset.rows]
    groups = [row.group for row in dataset.rows]
    return {"model": str(model), "data": str(data)} | evaluation(
        labels, probabilities, members, member_names, groups, classes
    )


def _predictor(model: Path, runtime: str, precision: str) -> tuple[Predict, Sequence[str], Sequence[str]]:
    """A predict callable, the classes and the members' names, of a run (PyTorch) or a bundle (a runtime)."""
    if (model / "run.json").exists():
        if (runtime, precision) != ("auto", "fp32"):
            raise InputError(f"{model} is a run, which PyTorch evaluates; --runtime and --precision are for a bundle")
        from edgemed.ensemble import predict_callable
        from edgemed.run import load_run

        run = load_run(model)
        return predict_callable(run.ensemble), run.classes, run.member_names
    loaded = load(model, runtime=runtime, precision=precision)
    manifest = loaded.bundle.manifest

    def predict(image: Any) -> Any:
        probabilities, members = loaded.predict_pixels(image[None])
        return probabilities[0], members[0]

    return predict, manifest.labels, manifest.member_names
