"""The floors of the house: a file imports only from files that stand before it in `docs/inside.md`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

MAP = (ROOT / "docs" / "inside.md").read_text(encoding="utf-8")
FLOORS = " ".join(re.findall(r"\| `([a-z_ ]+)` \|$", MAP, flags=re.M)).split()

RUNTIME_SIDE = """
errors files allowance progress stats timing dicom_codecs dicom damage images listing phantoms
columns manifest operating records signature evidence bundle pack preflight
runtimes gates engines infer certify plans nvml conditions power limits
bench_latency bench_stages startup bench bench_report bench_diff contenders decoders parity display tables
commands cli
""".split()
HEAVY = {"torch", "torchvision", "timm", "onnx", "onnxscript", "nvidia", "cv2", "sklearn", "matplotlib", "scipy"}


def _files() -> list[tuple[str, Path]]:
    """(name of the room, file) of every module of the package but the package's own __init__."""
    rooms = [(path.stem, path) for path in sorted((ROOT / "edgemed").glob("*.py")) if path.stem != "__init__"]
    rooms += [("runtimes", path) for path in sorted((ROOT / "edgemed" / "runtimes").glob("*.py"))]
    rooms += [("commands", path) for path in sorted((ROOT / "edgemed" / "commands").glob("*.py"))]
    rooms += [("kernels", path) for path in sorted((ROOT / "kernels").glob("*.py"))]
    return rooms


def _imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path.name} line {node.lineno}: a relative import hides the floor"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def _room_of(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "edgemed" and len(parts) > 1 and parts[1] in FLOORS else None


def test_every_file_has_one_place_and_every_place_a_file() -> None:
    assert sorted(FLOORS) == sorted({room for room, _ in _files()})


@pytest.mark.parametrize(("room", "path"), _files(), ids=[path.name for _, path in _files()])
def test_a_file_imports_only_from_floors_below(room: str, path: Path) -> None:
    assert room in FLOORS, f"{path.name} has no place in docs/inside.md"
    below = FLOORS[: FLOORS.index(room)]
    used = {name for module in _imports(path) if (name := _room_of(module)) and name != room}
    assert used <= set(below), f"{path.name} reaches up to {sorted(used - set(below))}"


@pytest.mark.parametrize("path", [path for room, path in _files() if room in RUNTIME_SIDE], ids=lambda path: path.name)
def test_the_runtime_side_imports_nothing_heavy_at_its_top(path: Path) -> None:
    modules = _imports(path, top_level_only=True)
    heavy = {module.split(".")[0] for module in modules} & HEAVY
    assert not heavy, f"{path.name} imports {heavy}: a device without torch could not load it"
    rooms = {room for module in modules if (room := _room_of(module))} - {"kernels"}
    assert rooms <= set(RUNTIME_SIDE), f"{path.name} imports {sorted(rooms - set(RUNTIME_SIDE))}: list them above, too"


def test_source_files_stay_under_300_lines() -> None:
    patterns = ("edgemed/**/*.*", "kernels/*", "tests/**/*.*", "benchmarks/*.py")
    suffixes = {".py", ".cu", ".cuh", ".h", ".hpp", ".cpp", ".c"}
    files = [path for pattern in patterns for path in ROOT.glob(pattern) if path.suffix in suffixes]
    long = {path.name: count for path in files if (count := len(path.read_text().splitlines())) > 300}
    assert not long


@pytest.mark.parametrize(
    "code", ["import edgemed.cli", "import edgemed; edgemed.load", "import edgemed.kernels", "import edgemed.judge"]
)
def test_imports_load_no_torch(code: str) -> None:
    script = f"import sys; {code}; print(sorted({{'torch', 'triton', 'timm', 'onnx'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
