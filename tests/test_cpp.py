"""The C++ library answers, and refuses, as Python does. tests/cpp holds its own tests, which CTest runs.

Skipped, visibly, where a compiler, CMake or a Debian package is missing (`make cpp-deps`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_damaged as damaged
import tiny_bundles as tiny
from cpp_build import BUNDLE, OK, ROOT, RUNTIME, built, ctest, opened

import edgemed
from edgemed.manifest import ImageInput, sha256_of
from edgemed.pack import add_plan

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("name", ["test_answers", "test_api", "test_inside", "test_memory", "test_threads"])
def test_ctest(build: Path, name: str) -> None:
    ctest(build, f"^{name}$")


@pytest.mark.parametrize("kind", damaged.CASES)
def test_damage_is_refused_with_pythons_message(kind: str, build: Path, tmp_path: Path) -> None:
    damage, expected = damaged.CASES[kind]
    bundle = tiny.bundle(tmp_path / "bundle").path
    damage(bundle)
    found = opened(build, bundle)
    assert found["status"] == BUNDLE
    damaged.re.search(expected, found["message"]) or pytest.fail(found["message"])


def test_an_intact_bundle_is_opened_so_the_refusals_above_are_about_the_damage(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path
    damaged.with_plan(damaged.RTX)(bundle)
    assert opened(build, bundle)["status"] == OK


def test_what_is_no_bundle_is_refused(build: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, message in {"none": "does not exist", "file": "is a file", "empty": "holds no manifest.json"}.items():
        found = opened(build, tmp_path / name)
        assert (found["status"], message in found["message"]) == (BUNDLE, True), found


def test_signatures_are_checked(build: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    from edgemed.signature import public_of

    def key(name: str) -> tuple[bytes, Path]:
        made = damaged.ed25519.Ed25519PrivateKey.generate()
        serialization = damaged.serialization
        private = made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (tmp_path / name).write_bytes(public_of(private))
        return private, tmp_path / name

    (maker, maker_key), (device, device_key), (_, other_key) = key("maker"), key("device"), key("other")
    bundle = tiny.bundle(tmp_path / "bundle", signing_key=maker)
    damaged.with_plan(damaged.RTX)(bundle.path)
    assert "manifest.json is not by the given key" in opened(build, bundle.path, public_key=other_key)["message"]
    assert "made-by-hand.json is not signed" in opened(build, bundle.path, public_key=maker_key)["message"]
    add_plan(bundle, damaged.record(bundle, damaged.RTX), damaged.RTX, device)
    assert "by-hand.json is not by the given key" in opened(build, bundle.path, public_key=maker_key)["message"]
    assert opened(build, bundle.path, public_key=maker_key, plan_key=device_key)["status"] == OK
    assert "the key of plans alone" in opened(build, bundle.path, plan_key=device_key)["message"]
    assert "cannot read the key" in opened(build, bundle.path, public_key=tmp_path / "nowhere")["message"]
    (tmp_path / "empty").touch()
    for keys in ({"public_key": tmp_path / "empty"}, {"public_key": maker_key, "plan_key": tmp_path / "empty"}):
        assert "is empty" in opened(build, bundle.path, **keys)["message"]
    assert "not an Ed25519 key" in opened(build, bundle.path, public_key=bundle.path / "manifest.json")["message"]
    other_kind = ec.generate_private_key(ec.SECP256R1()).public_key()
    form = (damaged.serialization.Encoding.PEM, damaged.serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "other kind").write_bytes(other_kind.public_bytes(*form))
    assert "not an Ed25519 key" in opened(build, bundle.path, public_key=tmp_path / "other kind")["message"]
    signature = bundle.path / "manifest.sig"
    whole = signature.read_bytes()
    for content in (whole + b"x", whole[:-1], b""):
        signature.write_bytes(content)
        assert "manifest.json is not by the given key" in opened(build, bundle.path, public_key=maker_key)["message"]
    signature.write_bytes(whole)
    damaged.flipped("manifest.sig")(bundle.path)
    assert "manifest.json is not by the given key" in opened(build, bundle.path, public_key=maker_key)["message"]
    (bundle.path / "manifest.sig").unlink()
    assert "is not signed" in opened(build, bundle.path, public_key=maker_key)["message"]


def test_a_graph_that_openvino_refuses_is_one_line(build: Path, tmp_path: Path) -> None:
    files = tiny.fields()["files"] | {"model.fp32.onnx": b"\x08\x0a this is no graph"}
    found = opened(build, tiny.bundle(tmp_path / "bundle", files=files).path, "openvino")
    assert found["status"] == RUNTIME
    assert "refuses the graph" in found["message"] and "\n" not in found["message"]


def test_a_graph_that_the_bundle_has_not_is_named(build: Path, tmp_path: Path) -> None:
    files = tiny.fields()["files"]
    del files["model.fp16.onnx"]
    found = opened(build, tiny.bundle(tmp_path / "bundle", files=files).path, "openvino", precision="fp16")
    assert (found["status"], "holds no fp16 graph (model.fp16.onnx)" in found["message"]) == (BUNDLE, True), found


def test_a_graph_of_other_labels_than_the_manifest_gives_no_answer(build: Path, tmp_path: Path) -> None:
    graph = {"model.fp32.onnx": tiny.model(tiny.WEIGHTS[:, :, :2])}
    bundle = tiny.bundle(tmp_path / "bundle", files=tiny.fields()["files"] | graph).path
    found = opened(build, bundle, "openvino", self_test=1)
    assert (found["status"], "other outputs than the manifest" in found["message"]) == (BUNDLE, True), found


def test_a_cache_is_the_users_own_and_closed_to_others(build: Path, tmp_path: Path, cache: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path
    (cache / "edgemed").mkdir(parents=True)
    (cache / "edgemed").chmod(0o777)
    assert opened(build, bundle, "openvino")["warnings"] == []
    folders = [cache / "edgemed", *(path for path in (cache / "edgemed").rglob("*") if path.is_dir())]
    assert [path.stat().st_mode & 0o777 for path in folders] == [0o700] * 3
    if os.getuid() == 0:
        os.chown(folders[-1], 12345, -1)  # what lies in it would be run
        found = opened(build, bundle, "openvino")
        assert (found["status"], "belongs to another user" in found["warnings"][0]) == (OK, True), found


def test_a_cache_folder_that_is_no_absolute_path_is_ignored(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert opened(build, tiny.bundle(tmp_path / "bundle").path, "openvino")["warnings"] == []
    assert (tmp_path / ".cache" / "edgemed").is_dir() and not (tmp_path / "here").exists()


@pytest.mark.parametrize("first", ["python", "cpp"])
def test_the_cache_is_shared_with_python(first: str, build: Path, tmp_path: Path, cache: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle").path

    def run(which: str) -> bool | None:
        if which == "python":
            return edgemed.load(bundle, runtime="openvino", threads=2).session.from_cache
        assert opened(build, bundle, "openvino", threads=2)["warnings"] == []
        return None

    run(first)
    (blob,) = cache.rglob("*.blob")  # two of them, were the keys different
    written = blob.stat().st_mtime_ns
    assert run("cpp" if first == "python" else "python") in (None, True)
    assert [(path, path.stat().st_mtime_ns) for path in cache.rglob("*.blob")] == [(blob, written)]
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[:-1])
    assert any("was damaged" in warning for warning in opened(build, bundle, "openvino", threads=2)["warnings"])
    cut = blob.read_bytes()[:1000]
    blob.write_bytes(cut)
    blob.with_suffix(".sha256").write_text(sha256_of(cut))  # whole, by its note, but nothing that OpenVINO takes
    (warning,) = opened(build, bundle, "openvino", threads=2)["warnings"]
    assert "is refused" in warning and len(blob.read_bytes()) > 1000
    assert opened(build, bundle, "openvino", threads=2)["warnings"] == []


def test_the_command_prints_a_folder_that_cmake_builds(edgemed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert edgemed("cmake-dir") == 0
    assert (Path(capsys.readouterr().out.strip()) / "CMakeLists.txt").is_file()


def test_the_wheel_brings_every_file_of_the_library() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["edgemed"]
    brought = {path for pattern in patterns for path in (ROOT / "edgemed").glob(pattern)}
    files = [path for path in (ROOT / "edgemed" / "cpp").rglob("*") if path.is_file()]
    assert [path.name for path in files if path not in brought] == []
    assert len(files) > 30


def test_the_headers_version_is_pythons(build: Path) -> None:
    assert f'"{edgemed.__version__}"' in (build / "edgemed" / "edgemedConfigVersion.cmake").read_text()


@pytest.mark.parametrize(("weight", "image", "code"), [(1, "good", 0), (1, "bad", 2), (np.nan, "good", 3)])
def test_the_example_ends_with_the_exit_code_of_edgemed_predict(
    weight: float, image: str, code: int, build: Path, tmp_path: Path
) -> None:
    files = tiny.fields()["files"] | {"model.fp32.onnx": tiny.model(tiny.WEIGHTS * np.float32(weight))}
    bundle = tiny.bundle(tmp_path / "bundle", files=files).path
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good = bundle / "golden" / "000.png"
    images = [{"good": good, "bad": bad}[image], good]
    for tool in ([build / "edgemed" / "edgemed-predict"], [sys.executable, "-m", "edgemed", "predict"]):
        done = subprocess.run([*tool, bundle, *images], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        assert (done.stdout.count("000.png") == {0: 2, 2: 1, 3: 0}[code]) or tool[0] == sys.executable, done.stdout


def test_answers_that_a_full_disk_swallows_are_an_error(build: Path, tmp_path: Path) -> None:
    bundle = tiny.bundle(tmp_path / "bundle", image_input=ImageInput(min_side=16, opt_side=48, max_side=640)).path
    for tool in ("edgemed-predict", "edgemed-camera-loop"):
        arguments = [bundle, bundle / "golden" / "000.png"] if tool == "edgemed-predict" else [bundle, "2"]
        with Path("/dev/full").open("w") as full:
            done = subprocess.run([build / "edgemed" / tool, *arguments], stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, b"cannot be written" in done.stderr) == (1, True), done.stderr


USER = """
cmake_minimum_required(VERSION 3.22)
project(user C CXX)
find_package(edgemed REQUIRED)
add_executable(user user.c)
target_link_libraries(user PRIVATE edgemed::edgemed)
"""


@pytest.mark.slow
def test_an_installed_library_is_found_by_cmake_and_pkg_config(build: Path, tmp_path: Path) -> None:
    def run(*command: str | Path, **environment: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    prefix, user = tmp_path / "prefix", tmp_path / "user"
    run("cmake", "--install", build / "edgemed", "--prefix", prefix)
    user.mkdir()
    (user / "CMakeLists.txt").write_text(USER)
    shutil.copy(ROOT / "edgemed" / "cpp" / "examples" / "camera_loop.c", user / "user.c")
    run("cmake", "-S", user, "-B", user / "build", f"-DCMAKE_PREFIX_PATH={prefix}")
    run("cmake", "--build", user / "build")
    bundle = tiny.bundle(tmp_path / "bundle", image_input={"min_side": 16, "opt_side": 48, "max_side": 640}).path
    assert "ms per frame over 5 frames" in run(user / "build" / "user", bundle, "5")
    paths = ":".join(str(path.parent) for path in prefix.rglob("edgemed.pc"))
    flags = run("pkg-config", "--cflags", "--libs", "edgemed", PKG_CONFIG_PATH=paths).split()
    run("cc", user / "user.c", "-o", tmp_path / "plain", *flags)
    libraries = next(prefix.rglob("libedgemed.so")).parent
    assert "over 5 frames" in run(tmp_path / "plain", bundle, "5", LD_LIBRARY_PATH=str(libraries))
    tool = next(prefix.rglob("edgemed-predict"))
    assert run(tool, bundle, bundle / "golden" / "000.png").count("disagreement") == 1


@pytest.mark.slow
def test_sanitizers_are_silent_with_openvino() -> None:
    build = built("cpp-asan", "-DEDGEMED_SANITIZE=address,undefined", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    ctest(build, "test_", EDGEMED_TEST_SECONDS="60")


@pytest.mark.slow
def test_the_thread_sanitizer_is_silent_with_the_stub() -> None:
    settings = ("-DEDGEMED_SANITIZE=thread", "-DEDGEMED_OPENVINO=OFF", "-DCMAKE_BUILD_TYPE=RelWithDebInfo")
    build = built("cpp-tsan", *settings, targets=("stub", "test_threads", "test_api"))
    ctest(build, "test_threads|test_api", EDGEMED_TEST_SECONDS="60")


@pytest.mark.slow
def test_a_thousand_openings_leave_nothing_behind(build: Path) -> None:
    ctest(build, "test_memory", EDGEMED_TEST_OPENS="1000")


@pytest.mark.slow
@pytest.mark.parametrize("target", ["fuzz_documents", "fuzz_images"])
def test_fuzzing_finds_nothing(target: str, tmp_path: Path) -> None:
    """EDGEMED_FUZZ_SECONDS for each target, 60 unless told."""
    settings = ("-DEDGEMED_FUZZ=ON", "-DEDGEMED_SANITIZE=address,undefined", "-DEDGEMED_OPENVINO=OFF")
    build = built("cpp-fuzz", *settings, compiler="clang++", targets=("fuzz_documents", "fuzz_images"))
    ctest(build, "golden_files")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    names = ("*.json", "*/*.json", "*/*/*.json") if target == "fuzz_documents" else ("*.png", "*.jpg", "*/*/*.png")
    for number, path in enumerate(path for name in names for path in sorted((build / "data").glob(name))):
        shutil.copy(path, corpus / str(number))
    seconds = os.environ.get("EDGEMED_FUZZ_SECONDS", "60")
    command = [build / target, corpus, f"-max_total_time={seconds}", "-max_len=20000", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
