"""An ablation's cells: they differ in one thing, each is trained once, and a finished one is kept."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="extra train is not installed")
from conftest import tiny_flags  # noqa: E402
from safetensors.torch import load_file, save, save_file  # noqa: E402

from edgemed.ablate import ablate, cell_config  # noqa: E402
from edgemed.ablation import CELLS  # noqa: E402
from edgemed.commands import ablate as ablate_command  # noqa: E402
from edgemed.commands import train as train_command  # noqa: E402
from edgemed.config import TrainConfig  # noqa: E402
from edgemed.errors import EdgemedError, InputError  # noqa: E402
from edgemed.files import write_atomic  # noqa: E402

BASE = TrainConfig(sharpness=1.5, renyi_order=2.0, seed=3)


def test_a_cell_differs_from_the_method_in_one_thing() -> None:
    method = cell_config(BASE, "entropy-imagenet").as_dict()
    assert method == BASE.as_dict() | {"renyi_order": 1.0}
    changed = {
        name: {key: value for key, value in cell_config(BASE, name).as_dict().items() if value != method[key]}
        for name in CELLS
    }
    assert changed.pop("again-imagenet").keys() == {"seed"}
    masks = {"entropy": {}, "random": {"sharpness": 0.0}, "low-entropy": {"sharpness": -1.5}}
    own: dict[str, dict[str, float]] = masks | {"none": {"pretrain_epochs": 0}}
    from_scratch = {f"{name}-scratch": {"start": "scratch"} | change for name, change in own.items()}
    from_imagenet = {f"{name}-imagenet": change for name, change in own.items()}
    assert changed == from_scratch | from_imagenet | {"renyi-imagenet": {"renyi_order": 2.0}}


@pytest.mark.parametrize(
    ("changes", "cells", "says"),
    [
        ({}, ["random-imagenett"], "Did you mean 'random-imagenet'?"),
        ({}, [], "--cells names none; they are: entropy-imagenet, none-imagenet"),
        ({}, ["again-imagenet"], "is entropy-imagenet with another seed; ask for both"),
        ({"sharpness": -1.0}, ["entropy-imagenet"], "give the positive values of the method"),
        ({"freeze": 2}, ["entropy-imagenet", "none-scratch"], "would keep the random weights of the cell none-scratch"),
        ({"renyi_order": 1.0}, ["renyi-imagenet"], "try --renyi-order 2"),
    ],
)
def test_a_cell_that_would_compare_nothing_is_refused(
    changes: dict[str, Any], cells: list[str], says: str, tmp_path: Path
) -> None:
    config = TrainConfig(**BASE.as_dict() | changes)
    with pytest.raises(InputError) as caught:
        ablate(config, tmp_path / "data", tmp_path / "out", lambda *_: None, cells)
    assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_it_takes_the_flags_of_train_but_for_what_the_cells_set() -> None:
    train = inspect.signature(train_command.train, eval_str=True).parameters
    own = inspect.signature(ablate_command.ablate).parameters
    assert set(train) - set(own) == {"start"}
    assert set(own) - set(train) == {"cells", "budget"}
    differing = {name for name in set(own) & set(train) if own[name].default != train[name].default}
    assert differing == {"folds", "renyi_order"}


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """(cell, fold, stage) of every training that is begun; each only writes what the real one would, untrained."""
    begun: list[tuple[str, str, str]] = []

    def note(folder: Path, stage: str) -> None:
        begun.append((folder.parts[-5], folder.parts[-3], stage))

    def pretrain(config: TrainConfig, files: object, start: object, source: str, folder: Path, *_: object,
                 **__: object) -> None:  # fmt: skip
        from edgemed.pretrain import _tensors, autoencoder

        note(folder, "pretrain")
        tensors = _tensors(autoencoder(config, start, source))  # type: ignore[arg-type]
        write_atomic(folder / "pretrained.safetensors", save(tensors))

    def finetune(config: TrainConfig, member: str, model: torch.nn.Module, front: object, dataset: object,
                 folder: Path, *_: object, **__: object) -> None:  # fmt: skip
        note(folder, member)
        write_atomic(folder / "history.jsonl", "")
        write_atomic(folder / "model.safetensors", save(model.state_dict()))

    monkeypatch.setattr("edgemed.stages.pretrain", pretrain)
    monkeypatch.setattr("edgemed.stages.finetune", finetune)
    monkeypatch.setattr("edgemed.train.folds_at_once", lambda *_: (1, 1))
    for module in ("stages", "train"):
        monkeypatch.setattr(f"edgemed.{module}.report_of_run", lambda *_: "report")
    return begun


def test_the_imagenet_member_is_trained_once_and_a_finished_cell_never_again(
    trainings: list[tuple[str, str, str]], phantoms: Path, weights: Path, tmp_path: Path, edgemed: Callable[..., int],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    out = tmp_path / "out"

    def run(*more: str) -> tuple[int, str]:
        capsys.readouterr()
        code = edgemed("ablate", phantoms, "--out", out, *tiny_flags(weights), "--folds", "2", "--json", *more)
        return code, capsys.readouterr().out

    both = ("--cells", "none-imagenet, entropy-imagenet")
    assert run(*both, "--budget", "1e-9")[0] == 2  # no time for a cell: nothing is claimed
    assert not (out / "ablation.json").exists()

    real = ablate.__globals__["trained"]

    def failing(config: TrainConfig, *arguments: Any) -> Any:
        if not config.pretrain_epochs:
            raise EdgemedError("the disk is full")
        return real(config, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("edgemed.ablate.trained", failing)
        assert run(*both)[0] == 1
    method = [("entropy-imagenet", fold, stage) for fold in "01" for stage in ("pretrain", "imagenet", "mae")]
    assert trainings == method

    code, shown = run(*both)
    assert code == 0
    assert trainings == method + [("none-imagenet", fold, stage) for fold in "01" for stage in ("pretrain", "mae")]
    found = json.loads(shown)
    assert found["cells"] == ["entropy-imagenet", "none-imagenet"]
    assert found["n"] == 42
    cells = [out / "cells" / name / "folds/1" for name in found["cells"]]
    models = [(cell / "members/imagenet/model.safetensors").read_bytes() for cell in cells]
    assert models[0] == models[1]
    assert (cells[0] / "split.csv").read_bytes() == (cells[1] / "split.csv").read_bytes()
    mae = [(cell / "members/mae/model.safetensors").read_bytes() for cell in cells]
    assert mae[0] != models[0]  # another seed

    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(*both) == (0, shown)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before

    shutil.rmtree(out / "cells" / "none-imagenet" / "folds" / "1")  # a finished cell without one of its folds is none
    del trainings[10:]
    assert run(*both)[0] == 0
    assert trainings[10:] == [("none-imagenet", "1", stage) for stage in ("pretrain", "mae")]
    del trainings[10:]

    shutil.rmtree(out / "cells" / "none-imagenet")  # trained anew, with another outcome
    monkeypatch.setattr("edgemed.stages.fitted_temperatures", lambda *_: [5.0, 5.0])
    code, again = run(*both)
    assert code == 0
    rows = [next(row for row in json.loads(text)["members"] if row["name"] == "imagenet'") for text in (shown, again)]
    assert rows[0]["ece"] != rows[1]["ece"]
    del trainings[10:]

    assert run("--cells", "again-imagenet")[0] == 0
    assert trainings[10:] == [("again-imagenet", fold, stage) for fold in "01" for stage in ("pretrain", "mae")]
    pretrained = [out / "cells" / name / "folds/0/members/mae/pretrained.safetensors"
                  for name in ("entropy-imagenet", "again-imagenet")]  # fmt: skip
    assert pretrained[0].read_bytes() != pretrained[1].read_bytes()
    assert "mae + mae'" in [row["name"] for row in json.loads((out / "ablation.json").read_text())["ensembles"]]


def test_a_cell_goes_on_with_the_folds_and_the_weights_of_the_first(
    trainings: list[tuple[str, str, str]], phantoms: Path, weights: Path, tmp_path: Path, edgemed: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out, own = tmp_path / "out", Path(shutil.copy(weights, tmp_path / "own.safetensors"))

    def run(cell: str) -> tuple[int, str]:
        capsys.readouterr()
        code = edgemed("ablate", phantoms, "--out", out, *tiny_flags(own), "--folds", "2", "--cells", cell)
        return code, " ".join(capsys.readouterr().err.split())

    assert run("entropy-imagenet")[0] == 0
    first, second = (out / "cells" / name / "folds/0" for name in ("entropy-imagenet", "none-imagenet"))
    second.mkdir(parents=True)
    shutil.copy(first / "run.json", second)
    lines = (first / "split.csv").read_text().replace(",test", ",other").replace(",train", ",test")
    (second / "split.csv").write_text(lines.replace(",other", ",train"))
    code, said = run("none-imagenet")
    assert (code, "was begun with other folds" in said) == (2, True), said
    shutil.rmtree(second.parents[1])

    state = load_file(own)
    state["conv_stem.weight"] *= 2
    save_file(state, own)
    code, said = run("none-imagenet")
    assert (code, "was begun with other ImageNet weights" in said) == (2, True), said
    assert {cell for cell, _, _ in trainings} == {"entropy-imagenet"}


@pytest.mark.slow
def test_every_cell_trains_and_the_shared_member_is_what_the_cell_would_have_trained(
    phantoms: Path, weights: Path, tmp_path: Path, edgemed: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out, flags = tmp_path / "out", [*tiny_flags(weights), "--folds", "2"]
    assert edgemed("ablate", phantoms, "--out", out, *flags) == 0
    assert "minus imagenet + imagenet' on the same 42 images" in capsys.readouterr().out
    found = json.loads((out / "ablation.json").read_text())
    assert found["cells"] == list(CELLS)
    assert len(found["members"]) == 1 + len(CELLS)
    assert len(found["ensembles"]) == 1 + len(CELLS)
    alone = tmp_path / "alone"
    assert edgemed("train", phantoms, "--out", alone, *flags, "--start", "scratch", "--sharpness", "0") == 0
    for name in ("members/imagenet/model.safetensors", "members/mae/model.safetensors", "predictions.csv"):
        cell = out / "cells/random-scratch/folds/1" / name
        assert cell.read_bytes() == (alone / "folds/1" / name).read_bytes()
