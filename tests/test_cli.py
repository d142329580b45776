"""The command line answers at once, lists what there is, and says what a user typed wrong."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_bundles as tiny
from PIL import Image
from report_parts import metrics_of
from rich.console import Console

import edgemed as package
from edgemed import display, tables
from edgemed.commands import goes_on
from edgemed.commands.build import build_engine
from edgemed.commands.certify import certify
from edgemed.commands.train import settings, train
from edgemed.config import TrainConfig
from edgemed.errors import InputError, flag
from edgemed.gates import Gates, default_gates
from edgemed.infer import Prediction
from edgemed.manifest import IMAGE_SIZE, OperatingPoint
from edgemed.runtimes.tensorrt_builder import TARGETS


def _edgemed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edgemed", *arguments], capture_output=True, text=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a system without /dev/full")
def test_a_full_disk_at_the_other_end_of_the_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "edgemed", "--version"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode() == "error: the output cannot be written: No space left on device\n"


def test_json_that_swallowed_the_next_flag_is_told_of(tmp_path: Path) -> None:
    """`--json` of bench takes a file, other commands' none: `--json --strict` would have switched the gate off."""
    path = str(tiny.bundle(tmp_path / "bundle").path)
    for command in (("bench", path, "--json"), ("bench", path, "--markdown"), ("train", str(tmp_path), "--out")):
        done = _edgemed(*command, "--strict")
        assert (done.returncode, "got '--strict'" in done.stderr) == (2, True), done.stderr


def test_whoever_interrupts_a_training_is_told_that_it_goes_on_once_there_is_one(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    for folder in (tmp_path, tmp_path / "not yet"):
        with pytest.raises(KeyboardInterrupt), goes_on(folder):
            raise KeyboardInterrupt
    assert caplog.messages == [f"interrupted; the same command goes on in {tmp_path}"]


def test_predict_takes_a_folder_of_images(tmp_path: Path) -> None:
    path = tiny.bundle(tmp_path / "bundle").path
    for k in range(3):
        Image.fromarray(tiny.image(k)).save(tmp_path / f"{k}.png")
    (tmp_path / "notes.txt").write_text("no image")
    folder = tmp_path / "images"
    folder.mkdir()
    for k in (2, 0):
        (tmp_path / f"{k}.png").rename(folder / f"{k}.png")
    done = _edgemed("predict", str(path), str(folder), str(tmp_path / "1.png"), "--json")
    assert done.returncode == 0, done.stderr
    assert [Path(each["path"]).name for each in json.loads(done.stdout)] == ["0.png", "2.png", "1.png"]
    (tmp_path / "empty").mkdir()
    for bad in (tmp_path / "empty", tmp_path / f"{'x' * 300}.png"):
        done = _edgemed("predict", str(path), str(bad), str(tmp_path / "1.png"), "--json")
        assert (done.returncode, len(json.loads(done.stdout))) == (2, 1), done.stderr  # the others go on


def test_help_lists_every_command() -> None:
    done = _edgemed("--help")
    assert done.returncode == 0
    commands = "train ablate build-engine predict evaluate bench inspect certify parity sample calibrate cmake-dir data"
    for command in commands.split():
        assert command in done.stdout


def test_help_cuts_off_no_name_and_no_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    commands = _edgemed("--help").stdout.partition("Commands:")[2]
    assert "train " in commands and "..." not in commands and "…" not in commands
    told = _edgemed("train", "--help").stdout
    names = (flag(name) for name in TrainConfig().as_dict())
    assert [name for name in names if f"{name} " not in told] == []
    assert "…" not in told


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys, edgemed.cli; sys.argv = ['edgemed', '--help']\n"
        "try: edgemed.cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'openvino', 'pydantic', 'PIL'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_command_lines_own_defaults_are_those_of_the_rooms_that_help_must_not_load() -> None:
    options = inspect.signature(build_engine, eval_str=True).parameters
    names = ("image_size", "max_prob_error", "targets")
    shown = {name: options[name].annotation.__metadata__[0].show_default for name in names}
    assert shown["targets"] == ",".join(TARGETS)
    assert shown["image_size"] == ",".join(map(str, IMAGE_SIZE))
    errors = [default_gates(precision).max_prob_error for precision in ("fp32", "fp16")]
    assert [float(figure) for figure in re.findall(r"\de-\d", shown["max_prob_error"])] == errors
    for command in (build_engine, certify):
        options = inspect.signature(command).parameters
        assert options["max_flips"].default == Gates.max_flips
        assert options["max_auroc_drop"].default == Gates.max_auroc_drop


def test_what_train_does_unless_told_is_what_its_settings_do() -> None:
    options = {name: option.default for name, option in inspect.signature(train).parameters.items()}
    for name in ("data", "out", "json_"):
        del options[name]
    assert settings(options) == TrainConfig()


def test_a_name_that_the_terminal_cannot_show_is_told_by_its_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "\u00e9.png"
    Image.fromarray(tiny.image(1)).save(image)
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("COLUMNS", "200")
    done = _edgemed("predict", str(tiny.bundle(tmp_path / "bundle").path), str(image))
    assert done.returncode == 0
    assert "\\xe9.png" in done.stdout


def test_a_mistyped_command_gets_a_suggestion() -> None:
    done = _edgemed("trian", "data")
    assert done.returncode == 2
    assert "Did you mean 'train'?" in done.stderr


@pytest.mark.parametrize(("columns", "lines"), [(80, True), (200, False)])
def test_a_terminal_that_is_too_narrow_for_the_figures_gets_them_whole_and_on_lines(
    columns: int, lines: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = ("akiec", "bcc", "bkl", "df", "mel", "nevus", "vasc")
    point = OperatingPoint(images=50, max_disagreement=0.2, coverage=0.9, min_probability=0.1)
    manifest = SimpleNamespace(operating_point=point)
    bundle = SimpleNamespace(path=tmp_path / "bundle", manifest=manifest)
    model = SimpleNamespace(bundle=bundle, runtime="openvino", precision="fp32", labels=labels)
    shares = dict(zip(labels, (0.123, 0.377, 0.05, 0.15, 0.1, 0.1, 0.1), strict=True))
    found = Prediction("bcc", shares, {}, "openvino", "id", "refer", 0.3, ("bcc", "df"), path="folder/lesion 1.png")
    monkeypatch.setattr(display, "_out", Console(width=columns, emoji=False))
    tables.predictions([found, found], model)  # type: ignore[arg-type]
    told = capsys.readouterr().out
    assert told.count("0.377") == told.count("refer") == told.count("lesion 1.png") == 2 and "…" not in told
    assert ("bcc 0.377" in told) == lines and "bcc, df" in told


def test_the_table_of_classes_is_of_the_ensemble_and_holds_each_figure_with_its_interval(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = metrics_of(["benign", "malignant", "[b]"])
    monkeypatch.setattr(display, "_out", Console(width=100, emoji=False))
    tables.metrics(found, as_json=False, title="run")
    told = capsys.readouterr().out
    ensemble, rows = found["ensemble"], [line.split() for line in told.partition("sensitivity")[2].splitlines()]
    for name in found["classes"]:
        at = next(k for k, row in enumerate(rows) if row[:1] == [name])
        keys = ("sensitivity", "specificity", "auroc_per_class")
        assert rows[at] == [name, *(f"{ensemble[key][name]:.3f}" for key in keys)]
        bounds = [ensemble["intervals"][key][name] for key in keys]
        assert rows[at + 1] == [f"{each['low']:.3f}-{each['high']:.3f}" for each in bounds]


def test_names_are_shown_as_they_are_and_never_as_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    display.document({"a:x:b.png": ":100:"})
    display.say("lesion :o: 3.png")
    display.error(InputError("no:x:such.png: does not exist"))
    with display.progress() as progress:
        progress("compare :o:", 1, 1, "fine:x:such.png [b]")
    told = capsys.readouterr()
    assert json.loads(told.out.partition("}")[0] + "}") == {"a:x:b.png": ":100:"}
    assert "lesion :o: 3.png" in told.out
    assert "no:x:such.png" in told.err
    assert "compare :o:" in told.err and "fine:x:such.png [b]" in told.err


def test_version(edgemed: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert edgemed("--version") == 0
    assert capsys.readouterr().out.strip() == package.__version__


@pytest.mark.parametrize(("module", "extra"), [("torch", "train"), ("sklearn", "eval"), ("cv2", "eval")])
def test_a_missing_extra_is_named_in_one_line(
    module: str,
    extra: str,
    edgemed: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named '{module}.nn'", name=f"{module}.nn")

    monkeypatch.setattr("edgemed.phantoms.write_dataset", missing)
    assert edgemed("sample", "anywhere") == 2
    assert f"pip install 'edgemed[{extra}]'" in capsys.readouterr().err


def test_what_the_system_refuses_is_one_line_with_its_path(
    edgemed: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.csv").write_text(f"path,label\n{'x' * 300}.png,a\n")
    assert edgemed("train", tmp_path / "data.csv", "--out", tmp_path / "run") == 2
    said = "".join(capsys.readouterr().err.split())
    assert "x.png:Filenametoolong;checkthepath" in said
    assert "Traceback" not in said


def test_an_internal_error_is_not_dressed_up_as_the_users_fault(
    edgemed: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("edgemed.phantoms.write_dataset", broken)
    with pytest.raises(ZeroDivisionError):
        edgemed("sample", "anywhere")


def test_the_bars_of_many_folds_leave_room_for_the_newest(capsys: pytest.CaptureFixture[str]) -> None:
    with display.progress() as progress:
        for fold in range(40):
            progress(f"fold {fold} done", 1, 1, "")
        progress("fold 40 running", 1, 2, "loss 0.5")
    shown = capsys.readouterr().err.splitlines()
    assert len([line for line in shown if "fold" in line]) < 20
    assert "fold 39 done" in shown[-2]
    assert "fold 40 running" in shown[-1]


def test_a_bar_in_80_columns_cuts_what_it_tells_and_no_figure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "_log", Console(stderr=True, width=80))
    with display.progress() as progress:
        progress("fold 2/5 fine-tune imagenet", 12, 30, "accuracy 0.812, loss 0.512, and more than there is room for")
    shown = capsys.readouterr().err
    assert "fold 2/5 fine-tune imagenet" in shown and "12/30 0:00:00 accuracy 0.812, lo" in shown
